"""Entries: the leaves of the log, and their canonical bytes (docs/formats.md §3).

An entry is the deterministic CBOR array ``[version, type, salt, *fields]``. Here each type is a NamedTuple of its
fields in that order; nested arrays are tuples. References to other entries are sequence numbers of the same epoch.
All times are milliseconds: ``*time_ms`` since the Unix epoch by the wall clock, ``mono_ms`` since boot.

Entries of a type or version this code does not know travel and are stored as ``Unknown``: their raw bytes.
"""

import re
from collections.abc import Callable
from enum import IntEnum
from types import NoneType
from typing import Any, NamedTuple

from energybid.core import cbor
from energybid.core.errors import EvidenceError
from energybid.core.quantities import MANTISSA_MAX, MANTISSA_MIN, OBIS_SIZE, UNITS, ClockState, Status
from energybid.core.salt import SALT_SIZE
from energybid.core.tree import HASH_SIZE

VERSION = 1
ENTRY_MAX = 65_536
"""Longest canonical entry, bytes."""
TEXT_MAX = 255
"""Longest text in an entry, UTF-8 bytes."""
VALUES_MAX = 1024
"""Most quantities in a poll group."""
UINT_MAX = 2**63 - 1
STATUS_MAX = 255
GROUPS_MAX = 255
MESSAGE_MAX = 4096
"""Longest message of a market in an entry, bytes: as long as any COSE message may be."""
ID_SIZE = 16
"""Size of an epoch's and a boot's id, bytes."""


_SURROGATE = re.compile("[\ud800-\udfff]")
_ORIGIN = re.compile(r"[A-Za-z0-9._-]{1,64}/[A-Za-z0-9._-]{1,64}")


class Epoch(NamedTuple):
    """Opens an epoch; always at sequence 0."""

    origin: str
    """``tenant/gateway``."""
    time_ms: int
    previous: tuple[bytes, int, bytes] | None
    """Id, size and root of the epoch before, as far as this gateway knew it."""


class Start(NamedTuple):
    """The agent started. Later entries refer to it for their boot."""

    boot_id: bytes
    """16 bytes; the same as long as ``mono_ms`` counts on."""
    time_ms: int
    mono_ms: int
    clock: int
    version: str
    """The agent's version."""
    configuration: bytes
    """SHA-256 of the checked configuration."""


class Declaration(NamedTuple):
    """Says what a meter's readings mean; comes before them."""

    meter: str
    profile: str
    """The profile's name."""
    profile_hash: bytes
    """SHA-256 of the profile file."""
    serial: str | None
    """The meter's own serial number, where it tells."""
    groups: tuple[tuple[int, tuple[tuple[bytes, str, int, bool], ...]], ...]
    """Poll groups: interval in ms, then quantities as (OBIS, unit, exponent, cumulative)."""


class Reading(NamedTuple):
    """All quantities of one poll group of one meter."""

    declaration: int
    """Sequence of the declaration."""
    group: int
    time_ms: int
    """When the last reply was received."""
    span_ms: int
    """From the first request sent to the last reply received."""
    clock: int
    """ClockState at ``time_ms``."""
    start: int
    """Sequence of the Start entry whose boot ``mono_ms`` counts from."""
    mono_ms: int
    """When the last reply was received, since boot."""
    values: tuple[int | None, ...]
    """One for each quantity of the group; None where the status says that there is no number."""
    status: tuple[int, ...] | None
    """One Status for each quantity, or None where all are OK."""


class Clock(NamedTuple):
    """The wall clock stepped, or its state changed. Re-bases times taken before it; nothing is rewritten."""

    start: int
    mono_ms: int
    before_ms: int
    """What the wall clock would have shown without the step."""
    after_ms: int
    clock: int


class Gap(NamedTuple):
    """Readings that were due and are not in the log."""

    declaration: int | None
    """The meter, or None for all."""
    from_ms: int
    to_ms: int
    reason: int
    """GapReason."""
    missed: int
    """How many readings."""


class Command(NamedTuple):
    """A number of a meter or device was to be written, and what became of it (docs/control.md)."""

    meter: str
    """Name of the meter."""
    writable: str
    """What its profile calls the number."""
    mantissa: int
    """What was to be written, in units of 10^exponent of the unit."""
    exponent: int
    unit: str
    found: int | None
    """What was read back, like ``mantissa``; None where nothing was read, or what no such number shows exactly."""
    owner: str
    """Who wanted it."""
    rank: int
    """The owner's priority; greater goes first."""
    cause: int
    """CommandCause."""
    outcome: int
    """CommandOutcome."""
    time_ms: int
    clock: int
    """ClockState at ``time_ms``."""
    start: int
    """Sequence of the Start entry of this run."""
    mono_ms: int
    until_ms: int | None
    """Until when it was to hold, on the scale of ``mono_ms``; None where it is not for a time."""


class MarketMessage(NamedTuple):
    """A message between the gateway and its market, as it travelled, and whether it counts (docs/market.md)."""

    kind: int
    """MarketKind."""
    reason: int
    """MarketReason: 0 it counts, else why not."""
    message: bytes
    """The signed message. Where the reason is TOO_LONG, only how it began."""
    missed: int
    """How many refused messages are not in the log since the last entry of this type: a flood is not logged."""
    time_ms: int
    """When it was about to be sent, or had come."""
    clock: int
    """ClockState at ``time_ms``."""
    start: int
    """Sequence of the Start entry of this run."""
    mono_ms: int


class Unknown(NamedTuple):
    """An entry of another version or type: its canonical bytes, salt included."""

    raw: bytes


class GapReason:
    """Values of ``Gap.reason``."""

    NO_REPLY = 1
    BUS_DOWN = 2
    NO_SPACE = 3
    """The journal's budget was used up, or the disk was full or could not be written."""
    REFUSED = 4
    THINNED = 5
    """Left out on purpose while the journal's budget ran low; the readings between are there."""
    DAMAGED = 6
    """Read, and lost with a journal that was damaged before they were committed."""


class CommandCause:
    """Values of ``Command.cause``: why the number was to be written."""

    HELD = 1
    """Its owner wanted it."""
    RETURNED = 2
    """Who had overridden its owner is gone."""
    EXPIRED = 3
    """The last owner's time was over: the safe number."""
    RELEASED = 4
    """The last owner let it go: the safe number."""
    STOPPED = 5
    """The agent stops: the safe number."""
    RESTARTED = 6
    """The agent was gone without a word while it was held: the safe number."""
    FAILED = 7
    """An owner's number could not be written, and nobody else holds it: the safe number."""


class CommandOutcome:
    """Values of ``Command.outcome``."""

    DONE = 1
    """Written, and read back the same."""
    DIFFERENT = 2
    """Written, and read back another."""
    REFUSED = 3
    """The device refused."""
    NO_REPLY = 4
    """Nothing came, or only garbage: the device may have taken it."""
    BUS_DOWN = 5
    """The bus was down: the device may have taken it."""
    OVERRULED = 6
    """Not written: an owner of a higher rank holds it."""
    NOT_ALLOWED = 7
    """Not written: out of the profile's bounds, or between its steps."""


class MarketKind:
    """Values of ``MarketMessage.kind``: which message it is, by the topic it came on or was sent to."""

    ROUND = 0
    BID = 1
    """Sent by the gateway, as the confirmation is."""
    AWARD = 2
    CONFIRMATION = 3
    STATEMENT = 4
    PRICES = 5
    UNKNOWN = 6
    """On a topic that tells nothing."""


class MarketReason:
    """Values of ``MarketMessage.reason``."""

    NONE = 0
    """It counts: accepted, or made by the gateway to be sent."""
    UNVERIFIED = 1
    """Not what the market's key signed, or no such message."""
    RETAINED = 2
    """Retained by the broker: it may be from any time."""
    FOREIGN = 3
    """For another gateway or market."""
    UNKNOWN = 4
    """Of a round that is not known."""
    OLD_ROUND = 5
    """Announces a round again, or one before the last."""
    TOO_FAR = 6
    """Begins too far from now."""
    LATE = 7
    """Came after its time."""
    REPLAYED = 8
    """Its counter was there before."""
    OTHER_BID = 9
    """Answers no bid of the gateway for the round, or one that was replaced many times."""
    OTHER_AWARD = 10
    """Is about another award."""
    NOT_OFFERED = 11
    """Awards what the bid did not offer."""
    NOT_NOW = 12
    """Does not fit the state of the round."""
    TOO_LONG = 13
    """Longer than any message may be."""


Entry = Epoch | Start | Declaration | Reading | Clock | Gap | Command | MarketMessage | Unknown
Known = Epoch | Start | Declaration | Reading | Clock | Gap | Command | MarketMessage

_TYPES: tuple[type[Known], ...] = (Epoch, Start, Declaration, Reading, Clock, Gap, Command, MarketMessage)
TYPE_OF: dict[type[Known], int] = {kind: number for number, kind in enumerate(_TYPES)}
"""Type number on the wire of each known entry type."""


def canonical(entry: Known, salt: bytes, encode: Callable[[object], bytes] = cbor.encode) -> bytes:
    """The bytes that are hashed into the tree; ``encode`` may be a faster one (``cbor.encoder``)."""
    return encode((VERSION, TYPE_OF[type(entry)], salt, *entry))


def _integer(x: Any) -> bool:  # noqa: ANN401
    """An integer that is no bool (which CBOR writes as another type)."""
    return type(x) is int or isinstance(x, IntEnum)


def is_uint(x: Any) -> bool:  # noqa: ANN401
    """Whether ``x`` is an integer from 0 to UINT_MAX."""
    return (type(x) is int or isinstance(x, IntEnum)) and 0 <= x <= UINT_MAX


def is_int(x: Any) -> bool:  # noqa: ANN401
    """Whether ``x`` is an integer of 64 bits with sign."""
    return _integer(x) and MANTISSA_MIN <= x <= MANTISSA_MAX


def is_bytes(x: Any, size: int) -> bool:  # noqa: ANN401
    """Whether ``x`` is a byte string of that size."""
    return isinstance(x, bytes) and len(x) == size


def is_clock(x: Any) -> bool:  # noqa: ANN401
    """Whether ``x`` is a ClockState."""
    return _integer(x) and 0 <= x <= ClockState.SYNCHRONISED


def is_origin(x: Any) -> bool:  # noqa: ANN401
    """Whether ``x`` is ``tenant/gateway``, both of 1 to 64 letters, digits, dots, underscores and hyphens."""
    return isinstance(x, str) and _ORIGIN.fullmatch(x) is not None


def _text(x: Any) -> bool:  # noqa: ANN401
    """Text that UTF-8 can carry: no lone surrogates."""
    return isinstance(x, str) and not _SURROGATE.search(x) and len(x.encode()) <= TEXT_MAX


def _bytes(size: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, bytes) and len(x) == size


def _message(x: Any) -> bool:  # noqa: ANN401
    return isinstance(x, bytes) and len(x) <= MESSAGE_MAX


def _quantity(x: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(x, tuple)
        and len(x) == 4  # noqa: PLR2004  OBIS, unit, exponent, cumulative
        and is_bytes(x[0], OBIS_SIZE)
        and x[1] in UNITS
        and _exponent(x[2])
        and isinstance(x[3], bool)
    )


def _groups(x: Any) -> bool:  # noqa: ANN401
    return (
        isinstance(x, tuple)
        and 0 < len(x) <= GROUPS_MAX
        and all(
            isinstance(g, tuple)
            and len(g) == 2  # noqa: PLR2004  interval, quantities
            and is_uint(g[0])
            and isinstance(g[1], tuple)
            and 0 < len(g[1]) <= VALUES_MAX
            and all(map(_quantity, g[1]))
            for g in x
        )
    )


def _previous(x: Any) -> bool:  # noqa: ANN401
    return x is None or (
        isinstance(x, tuple)
        and len(x) == 3  # noqa: PLR2004  epoch, size, root
        and is_bytes(x[0], ID_SIZE)
        and is_uint(x[1])
        and is_bytes(x[2], HASH_SIZE)
    )


def _exponent(x: Any) -> bool:  # noqa: ANN401
    return _integer(x) and -18 <= x <= 18  # noqa: PLR2004


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: x is None or check(x)


def _values(x: Any) -> bool:  # noqa: ANN401
    if not isinstance(x, tuple) or not 0 < len(x) <= VALUES_MAX:
        return False
    kinds = set(map(type, x))
    numbers = x if kinds == {int} else [v for v in x if v is not None]
    return kinds <= {int, NoneType} and (not numbers or (min(numbers) >= MANTISSA_MIN and max(numbers) <= MANTISSA_MAX))


def _status(x: Any) -> bool:  # noqa: ANN401
    return x is None or (isinstance(x, tuple) and all(_integer(s) and 0 <= s <= STATUS_MAX for s in x) and any(x))


_SHAPES: tuple[tuple[Callable[[Any], bool], ...], ...] = (
    (is_origin, is_int, _previous),
    (_bytes(ID_SIZE), is_int, is_uint, is_clock, _text, _bytes(HASH_SIZE)),
    (_text, _text, _bytes(HASH_SIZE), _optional(_text), _groups),
    (is_uint, is_uint, is_int, is_uint, is_clock, is_uint, is_uint, _values, _status),
    (is_uint, is_uint, is_int, is_int, is_clock),
    (_optional(is_uint), is_int, is_int, is_uint, is_uint),
    (
        _text,
        _text,
        is_int,
        _exponent,
        _text,
        _optional(is_int),
        _text,
        is_uint,
        is_uint,
        is_uint,
        is_int,
        is_clock,
        is_uint,
        is_uint,
        _optional(is_uint),
    ),
    (is_uint, is_uint, _message, is_uint, is_int, is_clock, is_uint, is_uint),
)


def check(entry: Known) -> None:
    """Check every field against docs/formats.md §3.

    Raises:
        EvidenceError: A field has another type or is out of its bounds.
    """
    shape = _SHAPES[TYPE_OF[type(entry)]]
    for fits, value in zip(shape, entry, strict=True):
        if not fits(value):
            wrong = [name for name, fits, value in zip(entry._fields, shape, entry, strict=True) if not fits(value)]
            kind = type(entry).__name__.lower()
            raise EvidenceError(f"{kind} entry: {', '.join(wrong)}: another type, or out of bounds")
    if isinstance(entry, Reading) and not _agree(entry.values, entry.status):
        raise EvidenceError("reading entry: status and values disagree")


def _agree(values: tuple[int | None, ...], status: tuple[int, ...] | None) -> bool:
    """Whether there is a status for each value, and no number just where the status says so."""
    if status is None:
        return None not in values
    return len(values) == len(status) and all(
        (value is None) == (0 < mark < Status.SUSPECT) for value, mark in zip(values, status, strict=True)
    )


def _tuples(item: Any) -> Any:  # noqa: ANN401
    return tuple(map(_tuples, item)) if isinstance(item, list) else item


def parse(raw: bytes) -> tuple[bytes | None, Entry]:
    """Canonical bytes → (salt, entry); (None, Unknown) for another version or type.

    Raises:
        EvidenceError: Not deterministic CBOR, or a known type with fields out of their bounds.
    """
    if len(raw) > ENTRY_MAX:
        raise EvidenceError(f"entry of {len(raw)} bytes; at most {ENTRY_MAX} are allowed")
    item = cbor.decode(raw)
    if not isinstance(item, list) or len(item) < 2 or not all(map(is_uint, item[:2])):  # noqa: PLR2004
        raise EvidenceError("an entry is an array that begins with version and type")
    if item[0] != VERSION or item[1] >= len(_TYPES):
        return None, Unknown(raw)
    kind = _TYPES[item[1]]
    if len(item) != 3 + len(kind._fields) or not is_bytes(item[2], SALT_SIZE):
        raise EvidenceError(f"{kind.__name__.lower()} entry has the wrong number of fields or no salt")
    entry = kind(*map(_tuples, item[3:]))
    check(entry)
    return item[2], entry
