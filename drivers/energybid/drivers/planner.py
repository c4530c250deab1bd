"""The request planner: which registers to read at once, so that a poll takes the least time on its bus. Pure.

A request costs its frames' overhead and the meter's reply delay; every register it brings costs its own time on the
wire, wanted or not. On Ethernet a gap is read over whenever that is allowed; on a slow line a large gap may be dearer
than a second request. The plan is optimal: wanted registers that lie in order on a line are cut into runs, each run is
one request, and dynamic programming finds the cheapest cuts. (Requests that cross each other are never cheaper: two of
them can exchange what they read until they no longer do, and neither grows.)
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations
from typing import NamedTuple

from energybid.core.ports import Endpoint, SerialEndpoint, TcpEndpoint
from energybid.drivers.modbus.map import REGISTERS_MAX
from energybid.drivers.modbus.timing import character_s, silence_s

REPLY_DELAY_S = 0.02
"""How long a meter on a serial line takes to begin its reply, where nothing is known of it."""
ROUND_TRIP_S = 0.01
"""From request to reply over TCP, where nothing is known."""
TCP_REGISTER_NS = 1_000
"""Two bytes through two small computers' network stacks, roughly; a request always costs more than 125 registers."""

_NS = 1_000_000_000
_RTU_OVERHEAD, _ASCII_OVERHEAD = 13, 28
"""Characters of both frames beside the registers: 8 + 5 and 17 + 11 (Modbus over Serial Line V1.02 §2.5.1, §2.5.2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What requests cost on a bus, in whole nanoseconds: plans are compared exactly."""

    request_ns: int
    """Each request, whatever it reads."""
    register_ns: int
    """Each register that is read."""
    registers_max: int = REGISTERS_MAX
    """Most registers that fit a reply on the way, such as through a gateway's buffer."""
    assumed_ns: int = 0
    """Part of ``request_ns``: the meter's reply delay, where it is a guess."""

    def with_delay(self, delay_s: float) -> "Cost":
        """The same with the meter's reply delay as it was measured in place of the guess, if there is one."""
        if not self.assumed_ns:
            return self
        measured_ns = round(delay_s * _NS)
        return replace(self, request_ns=self.request_ns - self.assumed_ns + measured_ns, assumed_ns=measured_ns)

    def of(self, spans: Sequence["Span"]) -> int:
        """Nanoseconds that requests take."""
        return len(spans) * self.request_ns + sum(span.length for span in spans) * self.register_ns


class Span(NamedTuple):
    """Consecutive registers of one table."""

    function: int
    """Of the table: HOLDING or INPUT."""
    first: int
    """Address on the wire, 0-based."""
    end: int
    """Address behind the last one."""

    @property
    def length(self) -> int:
        """How many."""
        return self.end - self.first

    def holds(self, other: "Span") -> bool:
        """Whether ``other`` lies within."""
        return self.function == other.function and self.first <= other.first and other.end <= self.end


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a meter's requests are planned by; a running driver plans anew around what the meter refuses."""

    readable: tuple["Span", ...]
    """Registers that may be read at once."""
    cost: Cost
    registers_max: int
    """Most registers that the meter answers at once."""


def tcp_cost(*, reply_delay_s: float | None = None) -> Cost:
    """What requests cost over TCP, where the number of requests is what counts.

    Args:
        reply_delay_s: From request to reply, measured.
    """
    delay_s = ROUND_TRIP_S if reply_delay_s is None else reply_delay_s
    request_ns = max(round(delay_s * _NS), (REGISTERS_MAX + 1) * TCP_REGISTER_NS)
    return Cost(request_ns=request_ns, register_ns=TCP_REGISTER_NS)


def serial_cost(
    baudrate: int, *, parity: str = "N", stop_bits: int = 1, reply_delay_s: float | None = None, is_ascii: bool = False
) -> Cost:
    """What requests cost on a serial line: the characters of both frames, the silence before, the meter's delay.

    Args:
        baudrate: Bits per second.
        parity: N, E or O.
        stop_bits: 1 or 2.
        reply_delay_s: From the end of a request to the beginning of its reply, measured.
        is_ascii: Modbus ASCII (7 data bits, two characters a byte) in place of RTU.
    """
    data_bits = 7 if is_ascii else 8
    line = SerialEndpoint(device="", baudrate=baudrate, parity=parity, stop_bits=stop_bits, data_bits=data_bits)
    one_s = character_s(line)
    delay_s = REPLY_DELAY_S if reply_delay_s is None else reply_delay_s
    assumed_s = REPLY_DELAY_S if reply_delay_s is None else 0.0
    overhead_s = _ASCII_OVERHEAD * one_s if is_ascii else _RTU_OVERHEAD * one_s + silence_s(line)
    return Cost(
        request_ns=round((overhead_s + delay_s) * _NS),
        register_ns=round((4 if is_ascii else 2) * one_s * _NS),
        assumed_ns=round(assumed_s * _NS),
    )


def bus_cost(endpoint: Endpoint, *, is_ascii: bool = False, reply_delay_s: float | None = None) -> Cost:
    """What requests cost on a bus. A line behind a network gateway of which nothing is known counts as network.

    Args:
        endpoint: Where the bus is.
        is_ascii: Modbus ASCII.
        reply_delay_s: The meter's, measured or from its profile.
    """
    if isinstance(endpoint, SerialEndpoint):
        return serial_cost(
            endpoint.baudrate,
            parity=endpoint.parity,
            stop_bits=endpoint.stop_bits,
            reply_delay_s=reply_delay_s,
            is_ascii=is_ascii,
        )
    if isinstance(endpoint, TcpEndpoint) and endpoint.baudrate:
        return serial_cost(endpoint.baudrate, reply_delay_s=reply_delay_s, is_ascii=is_ascii)
    return tcp_cost(reply_delay_s=reply_delay_s)


def plan(wanted: Iterable[Span], readable: Iterable[Span], cost: Cost, *, registers_max: int) -> list[Span]:
    """The cheapest requests that read everything wanted; of equally cheap ones the fewest.

    Args:
        wanted: Registers of single numbers: none is split over requests. What overlaps is read together.
        readable: Registers that may be read at once. A request stays within one of these spans.
        cost: Of the bus.
        registers_max: Most registers that the meter answers at once.

    Returns:
        Requests by table and address; of plans that are equal in all this the one with the fullest first requests.

    Raises:
        ValueError: A number lies in no readable span, or is larger than a request may be.
    """
    cells, blocks = _cells(wanted), sorted(readable)
    most = min(registers_max, cost.registers_max, REGISTERS_MAX)
    best: list[tuple[int, int, int]] = [(0, 0, 0)]
    """For the first so many cells: (cost, requests, minus the cells before the last request)."""
    for last in range(len(cells)):
        ways = (
            (best[first][0] + cost.of([run]), best[first][1] + 1, -first)
            for first, run in _runs(cells, last, blocks, most)
        )
        found = min(ways, default=None)
        if found is None:
            raise ValueError(f"{cells[last]} can not be read in one request")
        best.append(found)
    return list(_cuts(cells, best))[::-1]


def _cells(wanted: Iterable[Span]) -> list[Span]:
    """Registers that are read together or not at all, in order."""
    cells: list[Span] = []
    for span in sorted(wanted):
        if cells and cells[-1].function == span.function and span.first < cells[-1].end:
            cells[-1] = cells[-1]._replace(end=max(cells[-1].end, span.end))
        else:
            cells.append(span)
    return cells


def _runs(cells: Sequence[Span], last: int, blocks: Sequence[Span], most: int) -> Iterator[tuple[int, Span]]:
    """Every allowed request that ends with a cell, as (index of its first cell, registers)."""
    end = cells[last].end
    block = next((block for block in blocks if block.holds(cells[last])), None)
    for first in range(last, -1, -1):
        run = Span(cells[first].function, cells[first].first, end)
        if block is None or not block.holds(run) or run.length > most:
            return
        yield first, run


def _cuts(cells: Sequence[Span], best: Sequence[tuple[int, int, int]]) -> Iterator[Span]:
    """The requests of the best plan, the last one first."""
    end = len(cells)
    while end:
        first = -best[end][2]
        yield Span(cells[first].function, cells[first].first, cells[end - 1].end)
        end = first


def choices(count: int) -> Iterator[tuple[int, ...]]:
    """Every set of two or more of ``count`` poll groups: those that may fall due at once."""
    return chain.from_iterable(combinations(range(count), size) for size in range(2, count + 1))
