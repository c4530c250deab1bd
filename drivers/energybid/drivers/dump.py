"""A recording of all that a meter lets one read: which registers there are, what they hold, what is refused.

Here live the exploration of a meter and the recording as a value; ``dump_file`` writes it down. A read of many
registers that is refused is halved until it is known what exactly is refused. A recording answers as the meter did:
whatever was asked while it was made is answered or refused again, so that a dump of a served dump is the same dump.
"""

from __future__ import annotations

import asyncio
import re
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from energybid.core.errors import GarbledError, NoReplyError
from energybid.drivers.modbus import objects
from energybid.drivers.modbus.exchange import READ_OVERHEAD
from energybid.drivers.modbus.map import ADDRESSES, HOLDING, REGISTERS_MAX, TABLES
from energybid.drivers.profile import FUNCTION_OF

if TYPE_CHECKING:
    from collections.abc import Iterable

    from energybid.drivers.probe import Prober
    from energybid.drivers.profile import LoadedProfile

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3
"""Exceptions (Modbus Application Protocol V1.1b3 §7)."""
SILENCE = 0
"""In place of an exception's code: no reply at all."""
TRIES = 2
SILENT_MAX = 12
"""So many reads in a row without any reply end a dump: the meter is gone."""
NOBODY_MAX = 2
"""The same before the first reply: nobody is there."""
SILENT_SPAN = 8
"""Where a meter is silent rather than refuse, spans are not halved below so many registers: silence takes long."""
BUSY = frozenset({5, 6, 10, 11})
"""Exceptions that say nothing about the registers: ask again."""
BUSY_PAUSE_S = 0.2
CAUTIOUS = 40
"""Registers in one read where nobody knows how many the meter allows."""
SERIAL_NUMBER = "serial number"
SUNSPEC_COMMON = b"SunS\x00\x01"
COMMON_SERIAL_AT, COMMON_SERIAL_COUNT = 52, 16
"""Where the SunSpec common model keeps the serial number, registers from the marker on."""


class Span(NamedTuple):
    """Registers of one table."""

    function: int
    """HOLDING or INPUT."""
    first: int
    end: int
    """Behind the last one."""

    def __str__(self) -> str:
        """As ``parse_span`` takes it."""
        return f"{TABLES[self.function]}:{self.first}-{self.end - 1}"


_ADDRESS = r"(0[xX][0-9a-fA-F]{1,4}|\d{1,5})"
_SPAN = re.compile(rf"(holding|input):{_ADDRESS}(?:-{_ADDRESS})?", re.ASCII)


def parse_span(text: str) -> Span:
    """Registers as people write them: holding:0-999, input:342, holding:0x5000-0x5007.

    Raises:
        ValueError: They are not so written, or there are none such.
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ValueError(f"write holding:0-999, input:342 or holding:0x5000-0x5007 (found {text!r})")
    first, last = (int(part, 16 if part[:2] in {"0x", "0X"} else 10) for part in (match[2], match[3] or match[2]))
    if not first <= last < ADDRESSES:
        raise ValueError(f"registers are 0 to {ADDRESSES - 1}, the lower first (found {text!r})")
    return Span(FUNCTION_OF[match[1]], first, last + 1)


class Run(NamedTuple):
    """Registers that can be read together, and their contents."""

    span: Span
    data: bytes
    """Two bytes for each register."""


class Refused(NamedTuple):
    """Registers that can not be read."""

    span: Span
    code: int
    """The exception; SILENCE where no reply came."""


@dataclass(kw_only=True)
class Dump:
    """A recording of one meter."""

    manufacturer: str = "unknown"
    model: str = "unknown"
    hardware: str = "unknown"
    firmware: str = "unknown"
    profile: str | None = None
    max_registers: int = REGISTERS_MAX
    """More in one read were not asked for."""
    objects: dict[int, str] = field(default_factory=dict)
    """Device identification, basic stream."""
    objects_refused: int | None = None
    """The exception to device identification; None where it was answered."""
    runs: list[Run] = field(default_factory=list)
    """By table and address; two that touch can not be read in one request."""
    refused: list[Refused] = field(default_factory=list)
    masked: list[tuple[Span, str]] = field(default_factory=list)
    """Registers whose contents were replaced by zeros, and what they were."""


class DumpWatcher(Protocol):
    """Is told how a dump goes."""

    def progress(self, span: Span, done: float, left_s: float) -> None:
        """Before each read: what, the share that is done, seconds that are left."""


class Explorer:
    """Reads everything of one unit, once."""

    def __init__(self, prober: Prober, unit: int, timeout_s: float, watcher: DumpWatcher) -> None:
        """Prepare.

        Args:
            prober: The bus.
            unit: Whom to ask.
            timeout_s: How long it may take to reply.
            watcher: Is told.
        """
        self._prober = prober
        self._unit = unit
        self._timeout_s = timeout_s
        self._watcher = watcher
        self._silent, self._silent_max = 0, NOBODY_MAX
        self._done = self._whole = 0
        self._began = 0.0
        self._unknown: set[int] = set()
        """Functions that the meter does not have."""
        self.pieces: list[Run] = []
        """What was read so far, request by request."""
        self._cuts: set[tuple[int, int]] = set()
        """Table and address at which what can be read together begins anew."""
        self._reasons = 0
        """Refused registers and boundaries so far: why a read that reaches over them is refused."""
        self.dump = Dump()
        """What is known so far; ``finish`` adds the contents."""

    async def identification(self) -> None:
        """Read what the meter says of itself."""
        walk = objects.Walk()
        while walk.next_request is not None:
            pdu = await self._ask(walk.next_request, 64)
            if pdu is None or pdu[0] != objects.FUNCTION:
                self.dump.objects_refused = SILENCE if pdu is None else pdu[1]
                break
            try:
                walk.feed(pdu)
            except GarbledError:  # what came before is kept; the registers have nothing to do with it
                break
        self.dump.objects = {number: objects.text(value) for number, value in walk.objects.items()}

    async def explore(self, spans: Iterable[Span], most: int) -> None:
        """Read registers.

        Args:
            spans: Which; they may overlap.
            most: Most registers in one read.

        Raises:
            NoReplyError: The meter answers no more.
            BusDownError: The bus is lost.
        """
        self.dump.max_registers = most
        merged = merge(spans)
        self._whole = sum(span.end - span.first for span in merged)
        self._began = asyncio.get_running_loop().time()
        for span in merged:
            self._cuts.add((span.function, span.first))
            for first in range(span.first, span.end, most):
                await self._part(Span(span.function, first, min(span.end, first + most)))

    async def _part(self, span: Span) -> None:
        """Read a part, or its halves where it is refused."""
        code = await self._read(span)
        if code is None:
            return
        size = span.end - span.first
        if size == 1 or span.function in self._unknown or (code == SILENCE and size <= SILENT_SPAN):
            self._refuse(span, code)
            return
        middle = span.first + (size + 1) // 2
        middle += (middle - span.first) % 2 if middle + 1 < span.end else 0  # numbers of two registers stay whole
        reasons = self._reasons
        await self._part(Span(span.function, span.first, middle))
        await self._part(Span(span.function, middle, span.end))
        if self._reasons == reasons:
            # Both halves can be read and the whole can not: between them is a boundary.
            self._cuts.add((span.function, middle))
            self._reasons += 1

    def finish(self) -> Dump:
        """Join what can be read together; the dump."""
        runs: list[Run] = []
        for span, data in sorted(self.pieces):
            last = runs[-1].span if runs else None
            place = span.function, span.first
            if last and (last.function, last.end) == place and place not in self._cuts:
                runs[-1] = Run(Span(span.function, last.first, span.end), runs[-1].data + data)
            else:
                runs.append(Run(span, data))
        self.dump.runs = runs
        return self.dump

    async def _read(self, span: Span) -> int | None:
        """Keep the registers' contents; the exception's code where they are refused."""
        if span.function in self._unknown:
            return ILLEGAL_FUNCTION
        self._tell(span)
        count = span.end - span.first
        pdu = await self._ask(struct.pack(">BHH", span.function, span.first, count), READ_OVERHEAD + 2 * count)
        if pdu is None:
            return SILENCE
        if pdu[0] == span.function:
            self.pieces.append(Run(span, pdu[READ_OVERHEAD:]))
            self._done += count
            return None
        if pdu[1] == ILLEGAL_FUNCTION and not any(piece.span.function == span.function for piece in self.pieces):
            self._unknown.add(span.function)
        return pdu[1]

    def _refuse(self, span: Span, code: int) -> None:
        self._reasons += 1
        self._done += span.end - span.first
        refused = self.dump.refused
        before = refused[-1] if refused else None
        if before and before.code == code and (before.span.function, before.span.end) == (span.function, span.first):
            refused[-1] = Refused(Span(span.function, before.span.first, span.end), code)
        else:
            refused.append(Refused(span, code))

    async def _ask(self, pdu: bytes, reply: int) -> bytes | None:
        """The reply; asked again where it says nothing about the registers."""
        for _ in range(TRIES):
            heard = await self._prober.ask(self._unit, pdu, self._timeout_s, reply=reply)
            if heard.exception in BUSY:
                await asyncio.sleep(BUSY_PAUSE_S)
            elif heard.pdu is not None:
                self._silent, self._silent_max = 0, SILENT_MAX
                return heard.pdu
        self._silent += 1
        if self._silent >= self._silent_max:
            raise NoReplyError(f"unit {self._unit} does not answer")
        return None

    def _tell(self, span: Span) -> None:
        done = self._done / self._whole
        passed_s = asyncio.get_running_loop().time() - self._began
        self._watcher.progress(span, done, passed_s / done - passed_s if done else 0.0)


def merge(spans: Iterable[Span]) -> list[Span]:
    """The same registers by table and address; what overlaps becomes one, what only touches stays apart."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and merged[-1].function == span.function and span.first < merged[-1].end:
            merged[-1] = Span(span.function, merged[-1].first, max(span.end, merged[-1].end))
        else:
            merged.append(span)
    return merged


def profile_spans(loaded: LoadedProfile) -> list[Span]:
    """Everything that a profile says may be read."""
    spans = [Span(FUNCTION_OF[b.table], b.first, b.first + b.count) for b in loaded.profile.block]
    spans += [Span(mark.function, mark.first, mark.first + mark.count) for mark in loaded.fingerprints]
    spans += [Span(factor.function, factor.first, factor.end) for factor in loaded.factors]
    spans += [Span(HOLDING, writable.first, writable.first + writable.count) for writable in loaded.writables]
    return [*spans, *serial_spans(loaded)]


def serial_spans(loaded: LoadedProfile) -> list[Span]:
    """Where a profile says that the serial number is."""
    place = loaded.profile.identification.serial_number
    if place is None:
        return []
    return [Span(FUNCTION_OF[place.table], place.register_, place.register_ + place.count)]


def mask(dump: Dump, spans: Iterable[Span], what: str = SERIAL_NUMBER) -> None:
    """Replace registers' contents by zeros, where they were read, and note it."""
    for span in spans:
        hit = False
        for index, run in enumerate(dump.runs):
            first, end = max(span.first, run.span.first), min(span.end, run.span.end)
            if run.span.function != span.function or first >= end:
                continue
            a, b = 2 * (first - run.span.first), 2 * (end - run.span.first)
            dump.runs[index] = Run(run.span, run.data[:a] + bytes(b - a) + run.data[b:])
            hit = True
        if hit:
            dump.masked.append((span, what))


def sunspec_serial(dump: Dump) -> list[Span]:
    """Where a SunSpec common model, if one was read, keeps the serial number."""
    spans = []
    for run in dump.runs:
        at = run.data.find(SUNSPEC_COMMON)
        if at >= 0 and not at % 2 and run.span.function == HOLDING:
            first = run.span.first + at // 2 + COMMON_SERIAL_AT
            spans.append(Span(HOLDING, first, first + COMMON_SERIAL_COUNT))
    return spans


def answer(dump: Dump, pdu: bytes) -> bytes:
    """The recorded meter's reply to a request; empty where it gave none.

    What was never asked is refused with exception 2: nobody knows.
    """
    function = pdu[0]
    if function == objects.FUNCTION:
        return _identification(dump, pdu)
    if function not in TABLES or _has_no(dump, function):
        return _refusal(function, ILLEGAL_FUNCTION)
    if len(pdu) != 5:  # noqa: PLR2004  function, address, quantity (V1.1b3 §6.3)
        return _refusal(function, ILLEGAL_VALUE)
    _, first, count = struct.unpack(">BHH", pdu)
    if not 1 <= count <= dump.max_registers:
        return _refusal(function, ILLEGAL_VALUE)
    for span, data in dump.runs:
        if span.function == function and span.first <= first and first + count <= span.end:
            at = 2 * (first - span.first)
            return bytes((function, 2 * count)) + data[at : at + 2 * count]
    wanted = Span(function, first, first + count)
    code = next((r.code for r in dump.refused if _touch(r.span, wanted)), ILLEGAL_ADDRESS)
    return b"" if code == SILENCE else _refusal(function, code)


def _has_no(dump: Dump, function: int) -> bool:
    """The meter does not know the function."""
    if any(run.span.function == function for run in dump.runs):
        return False
    return any(r.code == ILLEGAL_FUNCTION and r.span.function == function for r in dump.refused)


def _touch(a: Span, b: Span) -> bool:
    return a.function == b.function and a.first < b.end and b.first < a.end


def _refusal(function: int, code: int) -> bytes:
    return bytes((function | 0x80, code))


def _identification(dump: Dump, pdu: bytes) -> bytes:
    """All objects at once: a recording need not be split."""
    if dump.objects_refused is not None:
        return b"" if dump.objects_refused == SILENCE else _refusal(pdu[0], dump.objects_refused)
    if len(pdu) != 4 or pdu[1] != objects.MEI_TYPE:  # noqa: PLR2004  function, type, stream, object (V1.1b3 §6.21)
        return _refusal(pdu[0], ILLEGAL_VALUE)
    return objects.reply(dump.objects, stream=pdu[2])
