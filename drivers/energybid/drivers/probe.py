"""One request at a time to any unit of a bus, and all that is heard meanwhile: what ``scan`` and ``dump`` ask by.

A driver (``modbus/driver``) polls meters that are configured and takes nothing but the answer. Here nobody knows yet
who is there: any reply with a right checksum is a sign of life, a late one too, and bytes that are none are counted.
Framing is the drivers' own, ports are opened through the platform. Only reads are ever sent.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple, Protocol

from energybid.core.errors import BusDownError
from energybid.drivers.modbus import objects
from energybid.drivers.modbus.ascii import ASCII_MAX, ascii_frame, parse_line
from energybid.drivers.modbus.exchange import READ_OVERHEAD
from energybid.drivers.modbus.framing import (
    EXCEPTION_FLAG,
    RTU_MAX,
    RTU_OVERHEAD,
    Frame,
    Garbled,
    MbapFramer,
    mbap_frame,
    rtu_frame,
)
from energybid.drivers.modbus.listen import RtuListener
from energybid.drivers.modbus.map import HOLDING, INPUT
from energybid.drivers.modbus.timing import character_s, silence_s
from energybid.drivers.target import ASCII, RTU, RTU_TCP, TCP, UDP

if TYPE_CHECKING:
    from energybid.core.ports import Endpoint, OpenBus
    from energybid.drivers.target import BusTarget

REGISTER_READS = frozenset({HOLDING, INPUT})
READS = REGISTER_READS | {objects.FUNCTION}
"""The only functions that are ever sent: none of them changes anything in a meter."""
EXCEPTION_PDU = 2
QUIET_S = 0.05
"""Silence that ends noise or a frame that is still coming: longer than adapters hold back a part of it (16 ms)."""
LATENESS_S = 1.0
"""A reply that misses its time-out comes at most this much later."""
PAUSE_S = 0.005
"""Least pause before a request."""
TRANSACTIONS = 65_536


class Heard(NamedTuple):
    """What one request brought."""

    pdu: bytes | None
    """The unit's own reply or exception; None where none came in time."""
    delay_s: float
    """From the request's end to the reply's; how long was waited where there was none."""
    noise: int = 0
    """Bytes that belong to no frame."""
    late: tuple[tuple[int, bytes, float], ...] = ()
    """Replies to earlier requests: unit, PDU, seconds after the request."""

    @property
    def exception(self) -> int | None:
        """The exception's code; None for a reply or none."""
        if self.pdu is None or not self.pdu[0] & EXCEPTION_FLAG:
            return None
        return self.pdu[1]


def fits(asked: bytes, pdu: bytes) -> bool:
    """Whether a PDU can be the reply to a read, or its exception."""
    if pdu[0] == asked[0] | EXCEPTION_FLAG:
        return len(pdu) == EXCEPTION_PDU
    if pdu[0] != asked[0]:
        return False
    return asked[0] not in REGISTER_READS or (len(pdu) == READ_OVERHEAD + 2 * asked[4] and pdu[1] == 2 * asked[4])


class Wire(Protocol):
    """A framing, as a client needs it that does not know whom it will hear."""

    @property
    def noise(self) -> int:
        """Bytes since the last request that belong to no frame."""

    broken: bool
    """Nothing more can be found in this stream: connect again."""
    matched: bool
    """Replies name the request that they answer."""

    def request(self, unit: int, pdu: bytes) -> bytes:
        """The frame to send now."""

    def feed(self, data: bytes) -> list[tuple[int, bytes, bool]]:
        """Unit, PDU and whether it answers the request sent last, for each frame that is complete."""


class RtuWire:
    """RTU frames, over a line or a stream."""

    broken = matched = False

    def __init__(self) -> None:
        """Hear nothing yet."""
        self._listener = RtuListener()
        self._asked = (0, b"\x00")

    @property
    def noise(self) -> int:
        """Bytes since the last request that belong to no frame."""
        return self._listener.noise

    def request(self, unit: int, pdu: bytes) -> bytes:
        """The frame to send."""
        self._listener.expect(unit, pdu)
        self._asked = unit, pdu
        return rtu_frame(unit, pdu)

    def feed(self, data: bytes) -> list[tuple[int, bytes, bool]]:
        """Frames, matched by unit, function and length."""
        unit, asked = self._asked
        return [(f.unit, f.pdu, f.unit == unit and fits(asked, f.pdu)) for f in self._listener.feed(data)]


class AsciiWire:
    """ASCII frames: lines of hexadecimal digits (Modbus over Serial Line V1.02 §2.5.2)."""

    broken = matched = False

    def __init__(self) -> None:
        """Hear nothing yet."""
        self._asked = (0, b"\x00")
        self._buffer = b""
        self.noise = 0

    def request(self, unit: int, pdu: bytes) -> bytes:
        """The frame to send."""
        self._asked = unit, pdu
        self._buffer = b""
        self.noise = 0
        return ascii_frame(unit, pdu)

    def feed(self, data: bytes) -> list[tuple[int, bytes, bool]]:
        """Frames, matched by unit, function and length; the echo of the request is none."""
        unit, asked = self._asked
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest[-ASCII_MAX:]
        found = []
        for line in lines:
            frame = parse_line(line.removesuffix(b"\r"))
            if frame is None:
                self.noise += len(line) + 1
            elif (frame.unit, frame.pdu) != self._asked:
                found.append((frame.unit, frame.pdu, frame.unit == unit and fits(asked, frame.pdu)))
        return found


class MbapWire:
    """Modbus TCP frames, matched by transaction and unit."""

    matched = True

    def __init__(self) -> None:
        """Begin with transaction 1: some servers answer 0 oddly."""
        self._framer = MbapFramer()
        self._transaction = 0
        self._asked: dict[int, tuple[int, bytes]] = {}
        self.noise = 0
        self.broken = False

    def request(self, unit: int, pdu: bytes) -> bytes:
        """The frame to send."""
        self._transaction = self._transaction % (TRANSACTIONS - 1) + 1
        self._asked[self._transaction] = unit, pdu
        self.noise = 0
        return mbap_frame(self._transaction, unit, pdu)

    def feed(self, data: bytes) -> list[tuple[int, bytes, bool]]:
        """Frames, matched by transaction, unit, function and length."""
        found = []
        for event in self._framer.feed(data):
            if not isinstance(event, Garbled) and self._matches(event):
                del self._asked[event.transaction]
                found.append((event.unit, event.pdu, event.transaction == self._transaction))
            else:
                self.noise += len(data)
                self.broken |= isinstance(event, Garbled) and event.fatal
        return found

    def _matches(self, frame: Frame) -> bool:
        unit, asked = self._asked.get(frame.transaction, (-1, b""))
        return unit == frame.unit and fits(asked, frame.pdu)


WIRES: dict[str, type[RtuWire | AsciiWire | MbapWire]] = {
    RTU: RtuWire,
    ASCII: AsciiWire,
    RTU_TCP: RtuWire,
    TCP: MbapWire,
    UDP: MbapWire,
}
"""Framing by kind of bus."""


class Prober(asyncio.Protocol):
    """Asks one unit at a time. Opens the bus when it is first needed, and again after a loss."""

    def __init__(self, open_bus: OpenBus, target: BusTarget) -> None:
        """Prepare; nothing is opened yet.

        Args:
            open_bus: The platform's.
            target: The bus.

        Raises:
            ValueError: A kind of bus that can not be asked so.
        """
        if target.kind not in WIRES:
            raise ValueError(f"a bus of kind {target.kind} can not be scanned")
        self._open_bus = open_bus
        self._kind, self._endpoint = target
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()
        self._wire: Wire = WIRES[self._kind]()
        self._character_s = character_s(self._endpoint) * (2 if self._kind == ASCII else 1)
        """A byte of a frame on the line; ASCII has two characters for it."""
        self._silence_s = max(PAUSE_S, silence_s(self._endpoint))
        self._free_at = 0.0
        self._heard_at = 0.0
        self._asked_at: dict[int, float] = {}
        """Unit → when it was asked last."""
        self._passed_at: dict[tuple[int, int], float] = {}
        """(unit, function) that may still answer late → until when."""
        self._answer: asyncio.Future[tuple[bytes, float] | None] | None = None
        self._late: list[tuple[int, bytes, float]] = []
        self._reason = "closed by the other side"
        self.requests = 0
        """Sent so far."""

    @property
    def endpoint(self) -> Endpoint:
        """The bus."""
        return self._endpoint

    def _on_line_s(self, size: int) -> float:
        return size * self._character_s

    async def ask(self, unit: int, pdu: bytes, timeout_s: float, *, reply: int = EXCEPTION_PDU) -> Heard:
        """Send a request and wait for what comes.

        Args:
            unit: Whom.
            pdu: A read; anything else is refused here.
            timeout_s: How long the unit may take to begin; the time on the line comes on top.
            reply: Length of the reply's PDU, as far as it is known.

        Raises:
            BusDownError: The bus can not be opened.
        """
        if pdu[0] not in READS:
            raise ValueError(f"function {pdu[0]} is no read")
        if self._transport is None:
            await self._open()
        await asyncio.sleep(max(0.0, self._free_at - self._loop.time()))
        await self._no_late_reply(unit, pdu[0])
        if self._transport is None:
            raise BusDownError(f"connection lost: {self._reason}")
        frame = self._wire.request(unit, pdu)
        sent_at = self._loop.time() + self._on_line_s(len(frame))
        self._asked_at[unit] = sent_at
        self._answer = self._loop.create_future()
        self._transport.write(frame)
        self.requests += 1
        try:
            answer = await self._wait(sent_at + self._on_line_s(reply + RTU_OVERHEAD) + timeout_s)
        finally:
            self._answer = None
        if answer is None:
            self._passed_at[unit, pdu[0]] = self._loop.time() + LATENESS_S
        return self._heard(answer, sent_at)

    async def _no_late_reply(self, unit: int, function: int) -> None:
        """A late reply looks like the answer to the next request of the same unit and function: let it pass first."""
        if not self._wire.matched:
            await asyncio.sleep(max(0.0, self._passed_at.get((unit, function), 0.0) - self._loop.time()))

    async def _wait(self, deadline: float) -> tuple[bytes, float] | None:
        """The answer; where bytes are still coming at the deadline, until they are quiet."""
        assert self._answer is not None  # noqa: S101  set by the only caller
        last = deadline + self._on_line_s(RTU_MAX) + QUIET_S
        while (left_s := deadline - self._loop.time()) > 0:
            done, _ = await asyncio.wait([self._answer], timeout=left_s)
            if done:
                return self._answer.result()
            deadline = min(last, self._heard_at + QUIET_S)
        return None

    def _heard(self, answer: tuple[bytes, float] | None, sent_at: float) -> Heard:
        now = self._loop.time()
        late, self._late = tuple(self._late), []
        noise = self._wire.noise
        # After noise the line must be quiet before anybody is asked again.
        self._free_at = max(now, self._heard_at) + (QUIET_S if noise else self._silence_s)
        if answer is None:
            return Heard(None, now - sent_at, noise, late)
        pdu, at = answer
        return Heard(pdu, max(0.0, at - sent_at - self._on_line_s(len(pdu) + RTU_OVERHEAD)), noise, late)

    def data_received(self, data: bytes) -> None:
        """Look for frames."""
        now = self._heard_at = self._loop.time()
        for unit, pdu, answers in self._wire.feed(data):
            if answers and self._answer is not None and not self._answer.done():
                self._answer.set_result((pdu, now))
            elif unit in self._asked_at:
                self._late.append((unit, pdu, now - self._asked_at[unit]))
                self._passed_at.pop((unit, pdu[0] & ~EXCEPTION_FLAG), None)
        if self._wire.broken and self._transport is not None:
            self._reason = "what came is no Modbus"
            self._transport.abort()

    # ------------------------------------------------------------ connection

    async def _open(self) -> None:
        self._wire = WIRES[self._kind]()
        await self._open_bus(self._endpoint, lambda: self)
        self._free_at = self._loop.time() + QUIET_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Use a fresh connection."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  the seam's promise
        self._transport = transport
        self._gone.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more will come; the next request connects again."""
        self._transport = None
        self._reason = str(exc or self._reason)
        self._gone.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(None)

    async def close(self) -> None:
        """Release the bus; idempotent."""
        if self._transport is not None:
            self._transport.abort()
            await self._gone.wait()
