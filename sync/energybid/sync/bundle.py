"""The evidence bundle of a settled round: one file from which anybody recomputes the money (docs/settlement.md).

It holds the round's signed messages, the log's entries of them and the readings, both with inclusion proofs under the
gateway's checkpoints and the head-end's receipts, and the baseline's inputs, whose hash the market signed in its
statement. Here: the format, read strictly. Never here: verifying, which is ``recompute``. Whatever stands in a file is
signed, hashed into what is signed, or has one permitted encoding: any change is refused.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.bidding.calendar_days import day_number, day_of
from energybid.core import cbor, cose
from energybid.core.disclosure import PATH_MAX, Disclosed
from energybid.core.entries import ENTRY_MAX, is_bytes, is_int, is_uint
from energybid.core.errors import EvidenceError
from energybid.core.quantities import OBIS_SIZE
from energybid.core.tree import HASH_SIZE

if TYPE_CHECKING:
    from datetime import date

BUNDLE = "energybid settlement 1"
INPUTS = "energybid settlement inputs 1"
FILE_MAX = 16 << 20
LOGS_MAX = 64
ENTRIES_MAX = 65_536
"""In one part of a log."""
LOADS_MAX = 65_536
EVENTS_MAX = 512
METER_MAX = 255
_OPENING = b"\x88\x76" + BUNDLE[:-1].encode()
"""First bytes of a file, but for the version's digit."""


class Inputs(NamedTuple):
    """What the baseline was computed from."""

    programme: bytes
    """The programme's file."""
    meter: str
    imports: bytes
    """OBIS code of the register of imported energy."""
    exports: bytes | None
    interval_ms: int
    events: tuple[date, ...]
    """Other event days, ascending."""
    loads: tuple[tuple[int, int], ...]
    """(Beginning of an interval, Wh), ascending; what is not there is not known."""

    def encode(self) -> bytes:
        """The bytes whose SHA-256 the statement names."""
        days = [day_number(day) for day in self.events]
        return cbor.encode((INPUTS, *self[:5], days, self.loads))


class LogPart(NamedTuple):
    """Entries of one epoch, proven under one checkpoint; an epoch may have several parts, which follow one another."""

    checkpoint: bytes
    receipt: bytes | None
    path: tuple[bytes, ...]
    """Consistency proof from the part before, where that is of the same epoch; else empty."""
    entries: tuple[Disclosed, ...]
    """By sequence."""


class Bundle(NamedTuple):
    """The file; nothing in it is verified."""

    round: bytes
    bid: bytes
    award: bytes
    confirmation: bytes | None
    statement: bytes
    inputs: bytes
    logs: tuple[LogPart, ...]

    def encode(self) -> bytes:
        """The file's bytes."""
        return cbor.encode((BUNDLE, *self[:-1], list(map(_encoded, self.logs))))


def _encoded(part: LogPart) -> tuple[Any, ...]:
    entries = [(each.sequence, each.canonical, b"".join(each.path)) for each in part.entries]
    return part.checkpoint, part.receipt, b"".join(part.path), entries


def is_bundle(data: bytes) -> bool:
    """Whether bytes begin as bundles do, of whatever version."""
    return data.startswith(_OPENING)


# ---------------------------------------------------------------- reading


def need(holds: object, what: str) -> None:
    """Refuse a bundle unless something holds.

    Raises:
        EvidenceError: It does not.
    """
    if not holds:
        raise EvidenceError(f"bundle: {what}")


def _message(item: Any) -> bytes:  # noqa: ANN401
    need(isinstance(item, bytes) and len(item) <= cose.MESSAGE_MAX, "a signed message is too long, or none")
    return bytes(item)


def _optional(item: Any) -> bytes | None:  # noqa: ANN401
    return None if item is None else _message(item)


def parse_bundle(data: bytes) -> Bundle:
    """Read a bundle; nothing in it is verified.

    Raises:
        EvidenceError: Not a bundle of this version in its one permitted encoding.
    """
    need(len(data) <= FILE_MAX, f"at most {FILE_MAX} bytes are allowed")
    item = cbor.decode(data)
    need(isinstance(item, list) and len(item) == 8 and item[0] == BUNDLE, f"no {BUNDLE!r}")  # noqa: PLR2004
    inputs, logs = item[6:]
    need(isinstance(inputs, bytes), "the inputs are no byte string")
    need(isinstance(logs, list) and 0 < len(logs) <= LOGS_MAX, f"1 to {LOGS_MAX} logs are wanted")
    return Bundle(
        round=_message(item[1]),
        bid=_message(item[2]),
        award=_message(item[3]),
        confirmation=_optional(item[4]),
        statement=_message(item[5]),
        inputs=inputs,
        logs=tuple(map(_log, logs)),
    )


def _log(item: Any) -> LogPart:  # noqa: ANN401
    need(isinstance(item, list) and len(item) == 4, "a log is [checkpoint, receipt, path, entries]")  # noqa: PLR2004
    checkpoint, receipt, path, entries = item
    need(isinstance(entries, list) and 0 < len(entries) <= ENTRIES_MAX, f"1 to {ENTRIES_MAX} entries are wanted")
    found = tuple(map(_entry, entries))
    need(all(a.sequence < b.sequence for a, b in pairwise(found)), "entries are out of order")
    return LogPart(_message(checkpoint), _optional(receipt), _path(path), found)


def _path(item: Any) -> tuple[bytes, ...]:  # noqa: ANN401
    need(isinstance(item, bytes) and len(item) % HASH_SIZE == 0 and len(item) <= PATH_MAX * HASH_SIZE, "a path")
    return tuple(item[at : at + HASH_SIZE] for at in range(0, len(item), HASH_SIZE))


def _entry(item: Any) -> Disclosed:  # noqa: ANN401
    need(isinstance(item, list) and len(item) == 3, "an entry is [sequence, canonical bytes, path]")  # noqa: PLR2004
    sequence, canonical, path = item
    need(is_uint(sequence) and isinstance(canonical, bytes) and len(canonical) <= ENTRY_MAX, "an entry's bounds")
    return Disclosed(sequence, canonical, _path(path))


def parse_inputs(data: bytes) -> Inputs:
    """Read a baseline's inputs.

    Raises:
        EvidenceError: Another shape, or a value out of its bounds.
    """
    item = cbor.decode(data)
    need(isinstance(item, list) and len(item) == 8 and item[0] == INPUTS, f"no {INPUTS!r}")  # noqa: PLR2004
    programme, meter, imports, exports, interval_ms, days, loads = item[1:]
    need(isinstance(programme, bytes), "inputs: the programme is no byte string")
    need(isinstance(meter, str) and 0 < len(meter.encode()) <= METER_MAX, "inputs: the meter's name")
    need(is_bytes(imports, OBIS_SIZE) and (exports is None or is_bytes(exports, OBIS_SIZE)), "inputs: registers")
    need(is_uint(interval_ms), "inputs: the interval")
    need(isinstance(days, list) and len(days) <= EVENTS_MAX and all(map(is_int, days)), "inputs: event days")
    need(isinstance(loads, list) and len(loads) <= LOADS_MAX and all(map(_is_load, loads)), "inputs: loads")
    need(days == sorted(set(days)), "inputs: event days are out of order")
    need(all(a[0] < b[0] for a, b in pairwise(loads)), "inputs: loads are out of order")
    try:
        events = tuple(map(day_of, days))
    except ValueError as error:
        raise EvidenceError(f"bundle: inputs: {error}") from None
    return Inputs(programme, meter, imports, exports, interval_ms, events, tuple(map(tuple, loads)))


def _is_load(item: Any) -> bool:  # noqa: ANN401
    return isinstance(item, list) and len(item) == 2 and is_int(item[0]) and is_int(item[1])  # noqa: PLR2004
