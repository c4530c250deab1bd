"""Columns: every valid log comes back, nothing else is accepted, and recorded meters stay small."""

import contextlib
import random
from itertools import pairwise

import pytest
from energybid.core import cbor
from energybid.core.entries import VALUES_MAX, Clock, Entry, Epoch, Reading, Unknown
from energybid.core.errors import EvidenceError
from energybid.sync import bits, columns, formulas, predict
from energybid.sync.columns import CELLS_MAX, DEFLATE, RAW_MAX, STORED, decode, encode, pack, unpack
from energybid.sync.formulas import HYPOTENUSE, LEG, PRODUCT, SUM2, SUM3, Formula
from energybid.sync.predict import DELTA, PACED, PLAIN, SMOOTH
from hypothesis import given, settings
from hypothesis import strategies as st
from log_entries import METERS, logs, recorded

INTS = st.integers(-(2**63), 2**63 - 1) | st.integers(-3000, 3000)
COLUMN = st.lists(INTS, min_size=1, max_size=40)


def reading(number: int, values: tuple[int | None, ...], status: tuple[int, ...] | None = None) -> Reading:
    return Reading(2, 0, 1_790_000_000_000 + 1000 * number, 9, 2, 1, 5_000 + 1000 * number, values, status)


# ---------------------------------------------------------------- there and back


@pytest.mark.untraced
@given(logs())
@settings(max_examples=300, deadline=None)
def test_every_log_comes_back(entries: list[Entry]) -> None:
    raw = encode(entries)
    assert decode(raw, limit=len(entries)) == entries
    assert decode(raw, limit=len(entries), trusted=True) == entries
    assert encode(list(entries)) == raw
    assert unpack(*pack(raw), limit=RAW_MAX) == raw


def test_recorded_meters_come_back() -> None:
    entries: list[Entry] = [*recorded(60)]
    assert len(entries) == 60 * METERS
    assert decode(encode(entries), limit=len(entries)) == entries


@pytest.mark.parametrize(
    "values",
    [
        (-(2**63), 2**63 - 1, 0),
        (2**63 - 1, -(2**63), -1),
        tuple(range(VALUES_MAX)),
        (0,),
    ],
)
def test_extreme_values_come_back(values: tuple[int, ...]) -> None:
    entries: list[Entry] = [reading(number, values[number % 2 :] + values[: number % 2]) for number in range(20)]
    assert decode(encode(entries), limit=20) == entries


def test_a_meter_without_any_number_comes_back() -> None:
    entries: list[Entry] = [reading(number, (None,) * 24, (1,) * 24) for number in range(60)]
    raw = encode(entries)
    assert decode(raw, limit=60) == entries
    assert len(raw) < 80


@given(logs(), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_what_an_earlier_stream_left_in_memory_changes_sizes_only(entries: list[Entry], polls: int) -> None:
    memory = columns.Memory()
    for before in (recorded(2), recorded(polls)):
        encode(before, memory=memory)
    assert decode(encode(entries, memory=memory), limit=len(entries)) == entries


def test_memory_spares_the_search() -> None:
    memory = columns.Memory()
    first = encode(recorded(2), memory=memory)
    assert encode(recorded(2), memory=memory) == first
    shape = columns._Shape(24, None)
    for _ in range(200):
        if memory.recall(shape) is None:
            break
    else:
        pytest.fail("it never searches again")


# ---------------------------------------------------------------- sizes in bytes


def packed_per_value(polls: int, *, each: int) -> float:
    entries = recorded(polls)
    parts = [entries[at : at + each * METERS] for at in range(0, len(entries), each * METERS)]
    return sum(len(pack(encode(part))[1]) for part in parts) / sum(len(entry.values) for entry in entries)


def test_a_segment_of_one_poll_of_32_meters_is_small() -> None:
    assert packed_per_value(10, each=1) < 0.76


def test_a_batch_of_ten_polls_of_32_meters_is_small() -> None:
    assert packed_per_value(60, each=10) < 0.40


def test_a_batch_of_sixty_polls_of_32_meters_is_small() -> None:
    assert packed_per_value(60, each=60) < 0.345


def test_sixty_readings_of_one_register_are_small() -> None:
    steps = random.Random(1)
    entries, count = [], 5_000_000
    for number in range(60):
        count += steps.choice((0, 1, 1, 2))
        jitter = steps.randrange(12)
        at = 60_000 * number + jitter
        entries.append(
            Reading(2, 0, 1_790_000_000_000 + at, steps.randrange(8, 12), 2, 1, 7_000_000 + at, (count,), None)
        )
    assert len(encode(entries)) <= 130


def test_meters_polled_in_turn_have_no_order_to_tell() -> None:
    symbols = list(range(1, 33)) * 10
    assert columns._surprises(symbols, 32) == [320]
    assert columns._surprises([0] * 5, 0) == [5]


# ---------------------------------------------------------------- parts


@given(st.lists(st.integers(0, 6), max_size=60))
def test_order_comes_back(raw: list[int]) -> None:
    seen = sorted(set(raw) - {0}, key=raw.index)
    symbols = [seen.index(symbol) + 1 if symbol else 0 for symbol in raw]
    assert columns._symbols(columns._surprises(symbols, len(seen)), len(symbols), len(seen)) == symbols


@given(
    st.lists(st.lists(st.integers(0, 2**130) | st.integers(0, 40) | st.just(0), min_size=1, max_size=50), max_size=6)
)
def test_vectors_come_back_with_every_choice(vectors: list[list[int]]) -> None:
    for choice in (None, 0, 1, 9, 10, 11, 28):
        writer = bits.Writer() if choice is None else bits.Writer(lambda _, choice=choice, **__: choice)
        for vector in vectors:
            writer.vector(vector)
        reader = bits.Reader(writer.finish())
        assert [reader.vector(len(vector)) for vector in vectors] == vectors
        reader.end()


@given(COLUMN, st.data(), st.sampled_from([DELTA, PACED, SMOOTH]))
def test_prediction_in_time_is_undone(column: list[int], data: st.DataObject, mode: int) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(column)))) | {0, len(column)})
    runs = list(pairwise(cuts))
    pace = data.draw(st.integers(-2000, 2000)) if mode == PACED else 0
    left = predict.firsts(column, runs), predict.rests(column, runs, mode, pace)
    assert predict.undo(*left, runs, mode, pace) == column
    chosen, pace, rest, _ = predict.choose(column, runs, predict.firsts(column, runs), plain=True)
    assert chosen == PLAIN or predict.undo(left[0], rest, runs, chosen, pace) == column


@given(st.lists(st.tuples(INTS, INTS, INTS, INTS), min_size=1, max_size=20), st.integers(0, 4), st.integers(0, 6))
def test_formulas_are_undone(rows: list[tuple[int, ...]], kind: int, decimals: int) -> None:
    table = list(zip(*rows, strict=True))
    formula = Formula(0, kind, (1, 2, 3)[: formulas.OPERANDS[kind]], decimals if kind == PRODUCT else 0)
    left = formulas.subtract(formula, table[0], table)
    assert formulas.restore(formula, left, table) == list(table[0])


def test_formulas_of_a_meter_are_found() -> None:
    """The recorded columns are V, I, P, S, Q, power factor of three phases, P, f, four energies."""
    table = list(zip(*(entry.values for entry in recorded(3)), strict=True))
    found = {formula.target: formula for formula in formulas.search(table)}
    assert [found[9 + phase].operands for phase in range(3)] == [(phase, 3 + phase) for phase in range(3)]
    assert [found[6 + phase].kind for phase in range(3)] == [PRODUCT] * 3
    assert [found[12 + phase].operands for phase in range(3)] == [(9 + phase, 6 + phase) for phase in range(3)]
    assert {found[12 + phase].kind for phase in range(3)} == {LEG}
    assert (found[18].kind, found[18].operands) == (SUM3, (6, 7, 8))
    assert (found[22].kind, found[22].operands) == (SUM2, (20, 21))


def test_a_phase_that_feeds_back_keeps_its_formulas() -> None:
    numbers = random.Random(2)
    rows = []
    for _ in range(40):
        p, q = -numbers.randrange(900, 4000), -numbers.randrange(300, 900)
        rows.append(reading(len(rows), (p, q, round((p * p + q * q) ** 0.5))))
    raw = encode([*rows])
    assert decode(raw, limit=40) == rows
    assert formulas.search(list(zip(*(row.values for row in rows), strict=True))) == [Formula(2, HYPOTENUSE, (0, 1), 0)]


# ---------------------------------------------------------------- what is refused


def refused(data: bytes, *, limit: int = 70_000) -> bool:
    try:
        decode(data, limit=limit)
    except EvidenceError:
        return True
    return False


def small() -> list[Entry]:
    entries: list[Entry] = [*recorded(2)[:40]]
    entries.insert(3, reading(1, (7, None, 3), (0, 1, 16)))
    entries.insert(7, Clock(1, 5, 6, 7, 2))
    entries.insert(9, Unknown(cbor.encode([2, 7, b"later"])))
    return entries


@pytest.mark.untraced
def test_a_flipped_bit_is_refused_or_seen() -> None:
    """A bit may be a value's, which the hashes then tell, or make another choice that leads to the same entries."""
    entries = small()
    raw = encode(entries)
    unseen = []
    # All bits of control, some of the planes.
    for bit in (*range(1600), *range(1600, len(raw) * 8, 7)):
        broken = bytearray(raw)
        broken[bit >> 3] ^= 1 << (bit & 7)
        with contextlib.suppress(EvidenceError):
            if decode(bytes(broken), limit=len(entries)) == entries:
                unseen.append(bit)
    assert len(unseen) < 10, unseen


@pytest.mark.parametrize("cut", range(1, 60))
def test_cut_off_or_longer_is_refused(cut: int) -> None:
    raw = encode(small())
    assert refused(raw[:-cut])
    assert refused(raw[cut:])
    assert refused(raw + bytes(cut))
    assert refused(raw + b"\xff" * cut)


@given(st.binary(max_size=200))
@settings(max_examples=1500, deadline=None)
def test_random_bytes_raise_evidence_errors_only(data: bytes) -> None:
    refused(data)


@given(st.integers(0, 2**32), st.integers(1, 6))
@settings(max_examples=500, deadline=None)
def test_damaged_streams_raise_evidence_errors_only(seed: int, changes: int) -> None:
    random_ = random.Random(seed)
    broken = bytearray(SMALL_RAW)
    for _ in range(changes):
        broken[random_.randrange(len(broken))] = random_.randrange(256)
    refused(bytes(broken))


@pytest.mark.untraced
@given(st.lists(st.integers(0, 40) | st.integers(0, 255), max_size=120), st.binary(max_size=40), st.binary(max_size=40))
@settings(max_examples=1500, deadline=None)
def test_any_control_raises_evidence_errors_only(control: list[int], unary: bytes, lows: bytes) -> None:
    """Nearly well-formed streams come further than random bytes."""
    refused(bytes((len(control), 0, len(unary), *control)) + unary + lows)


SMALL_RAW = encode(small())


def constant(count: int, width: int, tables: int = 1) -> bytes:
    """A stream that claims ``count`` readings of ``width`` zeros each, in a few dozen bytes."""
    writer = bits.Writer()
    for number in (count, 0, 1, width, 0, tables):
        writer.varint(number)
    nothing = DELTA << bits.CHOICE_BITS | bits.ZERO
    writer.control += bytes([nothing, bits.ZERO][: min(tables, 2)] * 4)
    writer.varint(1)
    writer.vector([count])
    writer.control += bytes([nothing, bits.ZERO] * 4)
    writer.varint(0)
    writer.control += bytes([nothing, bits.ZERO] * width)
    return writer.finish()


def test_few_bytes_can_not_claim_much_memory() -> None:
    assert decode(constant(1000, 3), limit=1000) == [Reading(0, 0, 0, 0, 0, 0, 0, (0, 0, 0), None)] * 1000
    with pytest.raises(EvidenceError, match=f"more than {CELLS_MAX} values"):
        decode(constant(60_000, 1000), limit=65_536)
    with pytest.raises(EvidenceError, match="a table twice"):
        decode(constant(60_000, 1000, tables=60_000), limit=65_536)
    with pytest.raises(EvidenceError, match="values"):
        decode(constant(1, VALUES_MAX + 1), limit=65_536)
    with pytest.raises(EvidenceError, match="numbers"):
        decode(b"\0\0" + b"\x80\x80\x40" + b"\xff" * (1 << 20), limit=65_536)


def test_more_than_the_limit_is_refused() -> None:
    raw = encode(small())
    with pytest.raises(EvidenceError, match="at most 3"):
        decode(raw, limit=3)


def test_too_many_values_are_the_callers_fault() -> None:
    one = reading(0, (0,) * VALUES_MAX)
    with pytest.raises(columns.TooLargeError):
        encode([one] * (CELLS_MAX // VALUES_MAX + 1))
    most: list[Entry] = [one] * (CELLS_MAX // VALUES_MAX)
    assert decode(encode(most), limit=len(most), trusted=True) == most


def test_too_many_bytes_are_the_callers_fault() -> None:
    with pytest.raises(columns.TooLargeError):
        encode([Unknown(cbor.encode([9, 9, random.Random(3).randbytes(60_000)]))] * 80)
    with pytest.raises(EvidenceError, match="at most"):
        decode(bytes(RAW_MAX + 1), limit=1)


def other(raw: bytes, *, unknown: bool) -> bytes:
    """A stream of one entry that is no reading."""
    writer = bits.Writer()
    for number in (1, 1, 0, 0, 1):
        writer.varint(number)
    writer.vector([1])
    writer.varint(len(raw) << 1 | unknown)
    writer.control += raw
    return writer.finish()


def test_an_entry_is_the_cbor_of_its_fields() -> None:
    raw = cbor.encode([0, "acme/gw-7", 5, None])
    assert encode([Epoch("acme/gw-7", 5, None)]) == other(raw, unknown=False)


@pytest.mark.parametrize(
    ("raw", "unknown"),
    [
        (cbor.encode([0, "acme/gw-7", 5, None]), True),
        (cbor.encode([1, 0, bytes(16), "acme/gw-7", 5, None]), True),
        (cbor.encode([3, 2, 0, 0, 0, 0, 0, 0, [1], None]), False),
        (cbor.encode([99]), False),
        (cbor.encode([]), False),
        (cbor.encode([0, "acme/gw-7", 5]), False),
        (cbor.encode([0, "no origin", 5, None]), False),
        (cbor.encode(7), False),
        (b"", False),
        (b"\xff", True),
    ],
)
def test_an_entry_in_the_wrong_place_is_refused(raw: bytes, unknown: bool) -> None:  # noqa: FBT001
    with pytest.raises(EvidenceError):
        decode(other(raw, unknown=unknown), limit=1)


# ---------------------------------------------------------------- compression


@pytest.mark.parametrize("raw", [b"", b"a", b"a" * 5000, random.Random(4).randbytes(3000)])
def test_packing_is_undone_and_never_grows(raw: bytes) -> None:
    method, packed = pack(raw)
    assert unpack(method, packed, limit=len(raw)) == raw
    assert len(packed) <= len(raw)
    if raw:
        with pytest.raises(EvidenceError):
            unpack(method, packed, limit=len(raw) - 1)


def test_a_deflate_stream_is_consumed_exactly() -> None:
    method, packed = pack(b"a" * 5000)
    assert method == DEFLATE
    for broken in (packed[:-1], packed + b"\0", packed[1:], b""):
        with pytest.raises(EvidenceError):
            unpack(DEFLATE, broken, limit=RAW_MAX)
    with pytest.raises(EvidenceError, match="not known"):
        unpack(7, packed, limit=RAW_MAX)


@given(st.binary(max_size=100), st.sampled_from([STORED, DEFLATE, 2, 255]))
def test_unpacking_anything_raises_evidence_errors_only(data: bytes, method: int) -> None:
    with contextlib.suppress(EvidenceError):
        unpack(method, data, limit=50)


def test_a_deflate_bomb_stops_at_the_limit() -> None:
    _, packed = pack(bytes(RAW_MAX))
    assert len(packed) < 8000
    with pytest.raises(EvidenceError):
        unpack(DEFLATE, packed, limit=1000)
