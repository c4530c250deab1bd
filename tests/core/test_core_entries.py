"""Entries: canonical bytes both ways, every field at and beyond its bounds, unknown types."""

import contextlib
from typing import Any

import golden_core
import pytest
import stranger
from energybid.core import cbor
from energybid.core.entries import ENTRY_MAX, TYPE_OF, Known, Reading, Unknown, canonical, check, parse
from energybid.core.errors import EvidenceError
from energybid.core.quantities import ClockState, Status
from energybid.core.tree import leaf_hash
from hypothesis import given
from hypothesis import strategies as st
from strategies_core import ENTRIES

SALT = bytes(range(16))
GOLDEN = golden_core.ENTRIES | golden_core.LATER


@given(ENTRIES, st.binary(min_size=16, max_size=16))
def test_reads_back_what_it_writes(entry: Known, salt: bytes) -> None:
    check(entry)
    raw = canonical(entry, salt)
    assert parse(raw) == (salt, entry)
    assert canonical(entry, salt, cbor.encoder()) == raw
    assert stranger.entry(raw)[:3] == [1, TYPE_OF[type(entry)], salt]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_entries_both_ways(name: str) -> None:
    golden, entry = golden_core.read(f"entry-{name}"), GOLDEN[name]
    salt, read = parse(golden["canonical"])
    assert read == entry
    assert leaf_hash(golden["canonical"]) == golden["leaf"]
    if not isinstance(entry, Unknown):
        assert salt == golden["salt"]
        assert entry._asdict() == golden["fields"]
        assert canonical(entry, golden["salt"]) == golden["canonical"]


U64, I64 = 2**63, -(2**63) - 1
BAD_UINT: tuple[Any, ...] = (-1, U64, True, False, None, 1.0, "1", b"1", (1,))
BAD_INT: tuple[Any, ...] = (I64, U64, True, None, 0.5)
BAD_CLOCK: tuple[Any, ...] = (-1, 3, True, None)
BAD_TEXT: tuple[Any, ...] = ("x" * 256, "ü" * 128, b"x", None, 1, "\ud800")
BAD_HASH: tuple[Any, ...] = (b"", bytes(31), bytes(33), "x" * 32, None)
BAD_ID: tuple[Any, ...] = (bytes(15), bytes(17), None, "x" * 16)
BAD_ORIGIN: tuple[Any, ...] = (
    "",
    "a",
    "a/",
    "/b",
    "a/b/c",
    "a/b ",
    "a/#",
    "ä/b",
    "a/b\n",
    f"{'a' * 65}/b",
    b"a/b",
    None,
)
Q = (bytes(6), "W", 0, False)
BAD_QUANTITY: tuple[Any, ...] = (
    (bytes(5), "W", 0, False),
    (bytes(6), "kW", 0, False),
    (bytes(6), b"W", 0, False),
    (bytes(6), "W", 19, False),
    (bytes(6), "W", -19, False),
    (bytes(6), "W", True, False),
    (bytes(6), "W", 0, 0),
    (bytes(6), "W", 0),
    (bytes(6), "W", 0, False, None),
    None,
)
BAD_GROUPS: tuple[Any, ...] = (
    (),
    None,
    ((1, ()),),
    ((-1, (Q,)),),
    ((1, (Q,), 1),),
    ((1, (Q,) * 1025),),
    ((1, (Q,)),) * 256,
    *(((1, (quantity,)),) for quantity in BAD_QUANTITY),
)
BAD_VALUES: tuple[Any, ...] = ((), None, (U64,), (I64,), (True,), (1.0,), ("1",), (1,) * 1025, [1, 2])
BAD_STATUS: tuple[Any, ...] = ((0, 0), (0,), (0, 16, 0), (0, 256), (-1, 16), (True, 0), (1, 0), (0, 15), ())

BEYOND: dict[str, dict[str, tuple[Any, ...]]] = {
    "epoch": {
        "origin": BAD_ORIGIN,
        "time_ms": BAD_INT,
        "previous": ((), (bytes(16), 1), (bytes(15), 1, bytes(32)), (bytes(16), -1, bytes(32)), (bytes(16), 1, b"")),
    },
    "start": {
        "boot_id": BAD_ID,
        "time_ms": BAD_INT,
        "mono_ms": BAD_UINT,
        "clock": BAD_CLOCK,
        "version": BAD_TEXT,
        "configuration": BAD_HASH,
    },
    "declaration": {
        "meter": BAD_TEXT,
        "profile": BAD_TEXT,
        "profile_hash": BAD_HASH,
        "serial": ("x" * 256, b"x", 1),
        "groups": BAD_GROUPS,
    },
    "reading": {
        "declaration": BAD_UINT,
        "group": BAD_UINT,
        "time_ms": BAD_INT,
        "span_ms": BAD_UINT,
        "clock": BAD_CLOCK,
        "start": BAD_UINT,
        "mono_ms": BAD_UINT,
        "values": (*BAD_VALUES, (None, 1)),
        "status": BAD_STATUS,
    },
    "clock": {"start": BAD_UINT, "mono_ms": BAD_UINT, "before_ms": BAD_INT, "after_ms": BAD_INT, "clock": BAD_CLOCK},
    "gap": {
        "declaration": tuple(bad for bad in BAD_UINT if bad is not None),
        "from_ms": BAD_INT,
        "to_ms": BAD_INT,
        "reason": BAD_UINT,
        "missed": BAD_UINT,
    },
    "market": {
        "kind": BAD_UINT,
        "reason": BAD_UINT,
        "message": (bytes(4097), "x", None, 1, (1,)),
        "missed": BAD_UINT,
        "time_ms": BAD_INT,
        "clock": BAD_CLOCK,
        "start": BAD_UINT,
        "mono_ms": BAD_UINT,
    },
}
CASES = [(name, field, bad) for name, fields in BEYOND.items() for field, bads in fields.items() for bad in bads]


@pytest.mark.parametrize(("name", "field", "bad"), CASES)
def test_refuses_fields_beyond_their_bounds(name: str, field: str, bad: Any) -> None:
    entry = golden_core.known(name)._replace(**{field: bad})
    with pytest.raises(EvidenceError, match=f"{field}|status and values"):
        check(entry)
    with contextlib.suppress(UnicodeEncodeError, TypeError):
        raw = canonical(entry, SALT)
        if bad != [1, 2]:
            with pytest.raises(EvidenceError):
                parse(raw)
            with pytest.raises(stranger.Refused):
                stranger.entry(raw)


def test_every_field_has_its_negative_cases() -> None:
    for name, fields in BEYOND.items():
        assert set(fields) == set(golden_core.known(name)._fields)


def test_names_every_field_that_is_wrong() -> None:
    entry = golden_core.known("reading")._replace(group=-1, clock=7)  # type: ignore[call-arg]
    with pytest.raises(EvidenceError, match="reading entry: group, clock"):
        check(entry)


@pytest.mark.parametrize("item", [0, "x", [], [1], [1, None], [True, 3], [1, True], [-1, 3], ["1", 3], [2**63, 0]])
def test_refuses_what_does_not_open_like_an_entry(item: Any) -> None:
    with pytest.raises(EvidenceError, match="begins with version and type"):
        parse(cbor.encode(item))


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("kind", range(8))
def test_refuses_known_types_with_other_numbers_of_fields(kind: int, change: int) -> None:
    entry = next(e for e in GOLDEN.values() if not isinstance(e, Unknown) and TYPE_OF[type(e)] == kind)
    fields = (*entry, None)[: len(entry) + change]
    with pytest.raises(EvidenceError, match="number of fields"):
        parse(cbor.encode((1, kind, SALT, *fields)))
    with pytest.raises(EvidenceError, match="no salt"):
        parse(cbor.encode((1, kind, SALT[1:], *entry)))


@pytest.mark.parametrize("opening", [(0, 0), (2, 3), (1, 8), (2**63 - 1, 2**63 - 1)])
def test_other_versions_and_types_stay_bytes(opening: tuple[int, int]) -> None:
    raw = cbor.encode((*opening, "anything", [None, [b"", -5]]))
    assert parse(raw) == (None, Unknown(raw))


def test_unknown_types_are_still_of_the_profile() -> None:
    with pytest.raises(EvidenceError):
        parse(bytes.fromhex("8301190fa0f93c00"))
    with pytest.raises(EvidenceError):
        parse(bytes.fromhex("8301190fa0a0"))


def test_length_at_the_bound() -> None:
    raw = cbor.encode((1, 77, bytes(ENTRY_MAX - 7)))
    assert len(raw) == ENTRY_MAX
    assert parse(raw)[1] == Unknown(raw)
    with pytest.raises(EvidenceError, match="65537 bytes"):
        parse(cbor.encode((1, 77, bytes(ENTRY_MAX - 6))))


def test_enumerations_are_written_as_their_numbers() -> None:
    plain = Reading(2, 0, 5, 1, 1, 1, 5, (None, 7), (1, 0))
    named = plain._replace(clock=ClockState.HOLDOVER, status=(Status.NO_REPLY, Status.OK))
    check(named)
    assert canonical(named, SALT) == canonical(plain, SALT)
