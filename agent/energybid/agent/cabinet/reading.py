"""Reading a meter once, with everything that was on the wire beside the values: registers, delays, errors.

The driver keeps only what a reading needs. Here each request goes out by itself, through the prober that ``scan`` uses,
and what came of it is kept. Requests that are refused are halved, down to single values.
"""

from __future__ import annotations

import asyncio
from collections import deque
from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.errors import GarbledError, NoReplyError, RefusedError
from energybid.core.quantities import Status
from energybid.drivers.modbus.decode import decoder, factor_data, scaled_decoder
from energybid.drivers.modbus.driver import BUSY, BUSY_PAUSE_S, UNREACHED
from energybid.drivers.modbus.exchange import READ_OVERHEAD, Failure, Outcome
from energybid.drivers.modbus.map import TABLES, TYPES, ModbusMap, Request
from energybid.drivers.modbus.split import Part, cells_of, part_of, parts_of
from energybid.drivers.modbus.unit import REFUSED, SPLIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from energybid.agent.cabinet.places import Place
    from energybid.core.errors import MeterError
    from energybid.drivers.probe import Prober
    from energybid.drivers.profile import Register

FAILURES: dict[int, str] = {Failure.NO_REPLY: "no reply", Failure.GARBLED: "garbled"}
SILENCE = UNREACHED | {Failure.NO_REPLY}
"""A gateway that says so for it is as good as the meter's silence."""


class Asked(NamedTuple):
    """One request and what became of it."""

    function: int
    first: int
    length: int
    delay_s: float
    """From the request's end to the reply's beginning; how long was waited where there was none."""
    outcome: Outcome

    @property
    def error(self) -> str | None:
        """``no reply``, ``garbled``, ``exception N``; None for a reply."""
        if isinstance(self.outcome, bytes):
            return None
        return FAILURES.get(self.outcome, f"exception {self.outcome}")

    def __str__(self) -> str:
        """The registers."""
        return span_text(self.function, self.first, self.length)


class Value(NamedTuple):
    """One quantity as it was read."""

    register: Register
    raw: bytes | None
    """Its registers, as on the wire; None where they were not read."""
    mantissa: int | None
    status: int
    """A ``Status``."""
    exception: int | None = None
    """The code with which the meter refused it."""


class Look(NamedTuple):
    """What one pass over a meter brought."""

    time_ms: int
    """Wall clock at its end."""
    mono_s: float
    """Loop time at its end."""
    values: tuple[Value, ...]
    asked: tuple[Asked, ...]

    @property
    def read(self) -> bool:
        """Anything was read at all."""
        return any(value.raw is not None for value in self.values)

    @property
    def outcome(self) -> int:
        """Where nothing was read: why, as a Failure or exception code."""
        last = self.asked[-1].outcome
        return last if isinstance(last, int) else Failure.NO_REPLY

    @property
    def whole(self) -> bool:
        """Nothing is missing that should have been answered."""
        return all(value.status != Status.NO_REPLY for value in self.values)


class RawRun(NamedTuple):
    """Registers that were asked for, or why they are not there."""

    function: int
    first: int
    length: int
    outcome: Outcome


def span_text(function: int, first: int, count: int) -> str:
    """Registers, for people: ``input 0-79``."""
    return f"{TABLES[function]} {first}" + (f"-{first + count - 1}" if count > 1 else "")


class Reader:
    """Asks one meter."""

    def __init__(self, prober: Prober, place: Place, now_ns: Callable[[], int]) -> None:
        """Prepare; nothing is sent yet.

        Args:
            prober: Of the meter's bus.
            place: The meter.
            now_ns: Wall clock.
        """
        self._prober = prober
        self._place = place
        self._now_ns = now_ns
        self._loop = asyncio.get_running_loop()
        compiled = place.meter.map if place.meter else None
        self._parts = parts_of(compiled.groups[0]) if isinstance(compiled, ModbusMap) else []
        self._asked: list[Asked] = []

    async def look(self) -> Look:
        """Read all quantities of the profile.

        Raises:
            BusDownError: The bus can not be opened, or was lost.
        """
        self._asked = []
        waiting = deque(self._parts)
        done: list[tuple[Part, Outcome]] = []
        while waiting:
            part = waiting.popleft()
            dead = bool(done) and all(asked.outcome in SILENCE for asked in self._asked)
            outcome = Failure.NO_REPLY if dead else await self.fetch(part.request)
            cells = cells_of(part) if outcome in SPLIT else []
            if len(cells) > 1:
                half = len(cells) // 2
                waiting.extendleft(part_of(part.request.function, half_) for half_ in (cells[half:], cells[:half]))
            else:
                done.append((part, outcome))
        self._parts = [part for part, _ in done]  # what is refused is read by itself from now on
        return Look(self._now_ns() // 1_000_000, self._loop.time(), self._values(done), tuple(self._asked))

    async def fetch(self, request: Request) -> Outcome:
        """The registers of one request, after all tries; or a Failure or exception code."""
        outcome: Outcome = Failure.NO_REPLY
        for _ in range(1 + self._place.retries):
            if self._place.bus.pause_s:
                await asyncio.sleep(self._place.bus.pause_s)
            outcome = await self._once(request)
            if isinstance(outcome, bytes) or outcome in REFUSED:
                break
            if outcome in BUSY:
                await asyncio.sleep(BUSY_PAUSE_S)
        return outcome

    async def _once(self, request: Request) -> Outcome:
        pdu = pack(">BHH", request.function, request.first, request.count)
        size = READ_OVERHEAD + 2 * request.count
        heard = await self._prober.ask(self._place.unit, pdu, self._place.timeout_s, reply=size)
        outcome: Outcome
        if heard.pdu is None:
            outcome = Failure.GARBLED if heard.noise else Failure.NO_REPLY
        else:
            outcome = heard.pdu[READ_OVERHEAD:] if heard.exception is None else heard.exception
        self._asked.append(Asked(request.function, request.first, request.count, heard.delay_s, outcome))
        return outcome

    def _values(self, done: Sequence[tuple[Part, Outcome]]) -> tuple[Value, ...]:
        assert self._place.loaded is not None  # noqa: S101  without a profile there are no parts
        registers = self._place.loaded.registers
        factors: dict[str, bytes | int] = {}
        for part, outcome in done:
            factors |= factor_data(part.request, outcome if isinstance(outcome, bytes) else _state(outcome))
        found: dict[int, Value] = {}
        for (request, places), outcome in done:
            if isinstance(outcome, bytes):
                scaled = scaled_decoder(request)
                numbers, states = scaled(outcome, factors) if scaled else decoder(request)(outcome)
                for i, (place, field) in enumerate(zip(places, request.fields, strict=True)):
                    raw = outcome[2 * field.offset : 2 * (field.offset + TYPES[field.type].registers)]
                    found[place] = Value(registers[place], raw, numbers[i], states[i] if states else Status.OK)
                continue
            code = outcome if outcome > 0 else None
            found |= {place: Value(registers[place], None, None, _state(outcome), code) for place in places}
        return tuple(found[place] for place in sorted(found))

    async def answers(self) -> bool:
        """Whether the unit gives registers to the first request of the profile."""
        return bool(self._parts) and isinstance(await self.fetch(self._parts[0].request), bytes)

    async def registers(self, function: int, first: int, end: int, most: int) -> list[RawRun]:
        """Read raw registers; what is refused is halved, so that what can be read is.

        Args:
            function: HOLDING or INPUT.
            first: The first register.
            end: Behind the last.
            most: Most of them in one request.
        """
        self._asked = []
        waiting = deque((at, min(most, end - at)) for at in range(first, end, most))
        runs: list[RawRun] = []
        while waiting:
            at, count = waiting.popleft()
            outcome = await self.fetch(Request(function=function, first=at, count=count, fields=()))
            if outcome in SPLIT and count > 1:
                waiting.extendleft([(at + count // 2, count - count // 2), (at, count // 2)])
            elif runs and runs[-1].outcome == outcome and isinstance(outcome, int):
                runs[-1] = runs[-1]._replace(length=runs[-1].length + count)
            else:
                runs.append(RawRun(function, at, count, outcome))
            if runs and all(run.outcome in SILENCE for run in runs):
                break
        return runs

    @property
    def asked(self) -> tuple[Asked, ...]:
        """The requests of the last look."""
        return tuple(self._asked)

    def error(self, outcome: Outcome) -> MeterError:
        """Why nothing was read, as an exception."""
        place = self._place
        if outcome == Failure.GARBLED:
            return GarbledError(
                f"{place.label}: what came was not the answer: another rate or parity, or two meters with one address?"
            )
        if outcome in UNREACHED:
            return NoReplyError(f"{place.label}: the gateway does not reach it (exception {outcome:d})")
        if isinstance(outcome, int) and outcome > 0:
            return RefusedError(
                f"{place.label}: refuses all that is asked (exception {outcome}): is it that model? "
                "energybid scan says what is there",
                outcome,
            )
        return NoReplyError(f"{place.label}: no answer within {place.timeout_s:g} s, asked {1 + place.retries} times")


def _state(outcome: int) -> Status:
    return Status.REFUSED if outcome in REFUSED else Status.NO_REPLY
