"""Batches: golden frames both ways, what is refused, and what a frame weighs."""

import random
from hashlib import sha256
from typing import Any

import golden_batch
import pytest
from energybid.core import cbor
from energybid.core.cose import PrivateKey
from energybid.core.entries import ENTRY_MAX, Entry, Reading, Unknown, parse
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, SignedCheckpoint, read_checkpoint, sign_checkpoint
from energybid.core.log import Log, Salts
from energybid.core.tree import Frontier, leaf_hash
from energybid.sync import batch as batches
from energybid.sync import columns
from energybid.sync.batch import (
    ENTRIES_MAX,
    FRAME_MAX,
    Batch,
    BatchTooLargeError,
    Replayed,
    decode_batch,
    encode_batch,
    replay,
)
from golden_batch import EPOCH, KEYS, NAMES, ORIGIN, SALTS, key_for, unhex
from hypothesis import given, settings
from hypothesis import strategies as st
from log_entries import logs, recorded

KEY = KEYS["ed25519"]
GOLDEN = {name: golden_batch.read(name) for name in NAMES}


def redigested(body: bytes) -> bytes:
    return body + sha256(body).digest()[:16]


def fields(frame: bytes) -> list[Any]:
    item: list[Any] = cbor.decode(frame[1:-16])
    return item


def frame_of(item: list[Any]) -> bytes:
    return redigested(b"\x01" + cbor.encode(item))


def replay_alone(frame: bytes, key: Any = key_for) -> Replayed:
    return replay(decode_batch(frame), origin=ORIGIN, frontier=None, key_for=key)


def make(entries: list[Entry], *, first: int = 0, since: int = 0, before: Frontier | None = None) -> bytes:
    """A frame of entries, signed at their end."""
    start = before or Frontier(first, [sha256(bytes([n])).digest() for n in range(first.bit_count())])
    raws = [SALTS.canonical(first + place, entry) for place, entry in enumerate(entries)]
    middle, end = golden_batch.tree(raws[:since], start), golden_batch.tree(raws, start)
    head = Checkpoint(ORIGIN, EPOCH, end.size, end.root(), middle.size, middle.root(), 1_790_000_000_000, 2, 7)
    return encode_batch(
        first=first, entries=entries, checkpoint=sign_checkpoint(head, KEY), salts=SALTS, frontier=start
    )


# ---------------------------------------------------------------- golden frames


@pytest.mark.parametrize("name", NAMES)
def test_golden_frames_are_read(name: str) -> None:
    golden = GOLDEN[name]
    batch = decode_batch(unhex(golden["frame"]))
    assert (batch.epoch, batch.first, batch.end) == (unhex(golden["epoch"]), golden["first"], golden["end"])
    assert batch.seeds == tuple((span, unhex(seed)) for span, seed in golden["seeds"])
    assert batch.peaks == (golden["peaks"] and tuple(map(unhex, golden["peaks"])))
    replayed = replay(batch, origin=golden["origin"], frontier=None, key_for=key_for)
    assert replayed.canonical == list(map(unhex, golden["canonical"]))
    assert replayed.checkpoint.message() == unhex(golden["checkpoint"])
    assert replayed.frontier.root() == replayed.checkpoint.checkpoint.root
    assert replayed.anchored == (golden["first"] == 0)


@pytest.mark.parametrize("name", NAMES)
def test_golden_frames_are_written(name: str) -> None:
    """Byte for byte but for the deflate stream, which another build of zlib may write otherwise."""
    golden = GOLDEN[name]
    entries = [parse(unhex(raw))[1] for raw in golden["canonical"]]
    assert columns.encode(entries) == unhex(golden["columns"])
    key = next(key for key in KEYS.values() if key.kid in unhex(golden["checkpoint"]))
    checkpoint = read_checkpoint(unhex(golden["checkpoint"]), key.public)
    frontier = Frontier(golden["first"], map(unhex, golden["peaks"])) if golden["peaks"] else None
    frame = encode_batch(first=golden["first"], entries=entries, checkpoint=checkpoint, salts=SALTS, frontier=frontier)
    *made, packed = fields(frame)
    *kept, kept_packed = fields(unhex(golden["frame"]))
    assert made == kept
    method = golden["method"]
    for each in (packed, kept_packed):
        assert columns.unpack(method, each, limit=columns.RAW_MAX) == unhex(golden["columns"])


def test_golden_readings_use_formulas() -> None:
    """So that other implementations meet them."""
    stream = unhex(GOLDEN["batch-readings"]["columns"])
    decoder = columns._Decoder(stream)
    decoder.entries(24)
    kinds = [formula.kind for choice in decoder.choices() if isinstance(choice, list) for formula in choice]
    assert len(kinds) >= 2


@pytest.mark.parametrize("name", NAMES)
def test_every_flipped_bit_of_a_golden_frame_is_refused(name: str) -> None:
    frame = unhex(GOLDEN[name]["frame"])
    for bit in range(len(frame) * 8):
        broken = bytearray(frame)
        broken[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(EvidenceError):
            decode_batch(bytes(broken))


@pytest.mark.parametrize("name", NAMES)
def test_a_forged_digest_does_not_help(name: str) -> None:
    """What decodes in spite of a flipped bit is refused by the signature, or is the same log and checkpoint."""
    frame = unhex(GOLDEN[name]["frame"])
    expected = replay_alone(frame)
    for bit in range(8, (len(frame) - 16) * 8, 7):
        broken = bytearray(frame[:-16])
        broken[bit >> 3] ^= 1 << (bit & 7)
        try:
            replayed = replay_alone(redigested(bytes(broken)))
        except EvidenceError:
            continue
        assert (replayed.canonical, replayed.checkpoint) == (expected.canonical, expected.checkpoint)


# ---------------------------------------------------------------- there and back


@given(logs().filter(bool), st.data())
@settings(deadline=None, max_examples=60)
def test_every_log_is_replayed(entries: list[Entry], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, 2**40) | st.integers(0, 300))
    since = data.draw(st.integers(0, len(entries)))
    frame = make(entries, first=first, since=since)
    batch = decode_batch(frame)
    assert (batch.first, batch.end, batch.previous_size) == (first, first + len(entries), first + since)
    assert batch.entries == entries
    replayed = replay(batch, origin=ORIGIN, frontier=None, key_for=key_for)
    assert replayed.canonical == [SALTS.canonical(first + place, entry) for place, entry in enumerate(entries)]
    assert replayed.anchored == (first == 0)


def test_a_log_is_followed_batch_by_batch() -> None:
    log = Log(origin=ORIGIN, epoch=EPOCH, secret=bytes(32), signer=KEY, frontier=Frontier(), counter=0)
    frontier, first = Frontier(), 0
    entries: list[Reading] = recorded(12)
    for end in (1, 2, 255, 256, 257, 300):
        for entry in entries[first:end]:
            log.append(entry)
        checkpoint = log.checkpoint(1_790_000_000_000, 2)
        frame = encode_batch(first=first, entries=entries[first:end], checkpoint=checkpoint, salts=log.salts)
        before = frontier.peaks
        replayed = replay(decode_batch(frame), origin=ORIGIN, frontier=frontier, key_for=key_for)
        assert (frontier.size, frontier.peaks) == (first, before)
        assert (replayed.frontier.peaks, replayed.anchored) == (log.peaks, True)
        assert replayed.checkpoint == checkpoint
        frontier, first = replayed.frontier, end


def test_one_batch_may_hold_several_checkpoints() -> None:
    log = Log(origin=ORIGIN, epoch=EPOCH, secret=bytes(32), signer=KEY, frontier=Frontier(), counter=0)
    entries = recorded(3)
    for entry in entries:
        log.append(entry)
        if log.size % 32 == 0:
            checkpoint = log.checkpoint(1_790_000_000_000, 2)
    batch = decode_batch(encode_batch(first=0, entries=entries, checkpoint=checkpoint, salts=log.salts))
    assert (batch.previous_size, batch.peaks) == (64, None)
    assert replay(batch, origin=ORIGIN, frontier=None, key_for=key_for).checkpoint == checkpoint


# ---------------------------------------------------------------- sizes


def test_sixty_readings_of_one_register_weigh_at_most_eight_bytes_each() -> None:
    steps, count, entries = random.Random(1), 5_000_000, []
    for number in range(60):
        count += steps.choice((0, 1, 1, 2))
        at = 60_000 * number + steps.randrange(12)
        entries.append(
            Reading(2, 0, 1_790_000_000_000 + at, steps.randrange(8, 12), 2, 1, 7_000_000 + at, (count,), None)
        )
    log: list[Entry] = [*entries]
    assert len(make(log, first=2000, before=None)) - 32 * (2000).bit_count() <= 480 - 60
    assert len(make(log, first=2040)) <= 480 + 32 * (2040).bit_count()  # two seeds, and the frontier


def test_ten_polls_of_32_meters_weigh_little() -> None:
    entries: list[Entry] = [*recorded(10)]
    values = 10 * 32 * 24
    frame = make(entries, first=1_000_000)
    assert len(frame) - 32 * (1_000_000).bit_count() < 0.45 * values


# ---------------------------------------------------------------- what is refused


def change(name: str, value: Any) -> bytes:
    """The golden readings with another header field and a digest that fits."""
    item = fields(unhex(GOLDEN["batch-readings"]["frame"]))
    item[[field for field, _ in batches._HEADER].index(name)] = value
    return frame_of(item)


GOOD = fields(unhex(GOLDEN["batch-readings"]["frame"]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epoch", bytes(15)),
        ("first", -1),
        ("first", 2**63),
        ("first", 2**63 - 5),
        ("first", None),
        ("first", True),
        ("count", 0),
        ("count", 23),
        ("count", 25),
        ("count", ENTRIES_MAX + 1),
        ("seeds", b""),
        ("seeds", bytes(31)),
        ("seeds", bytes(64)),
        ("peaks", b""),
        ("peaks", bytes(32)),
        ("peaks", bytes(33)),
        ("peaks", 0),
        ("since", 25),
        ("since", -1),
        ("time_ms", 2**63),
        ("time_ms", "now"),
        ("clock", 3),
        ("counter", 0),
        ("counter", 2**63),
        ("kid", bytes(7)),
        ("signature", bytes(63)),
        ("method", 0),
        ("method", 2),
        ("columns", b""),
        ("columns", GOOD[-1] + b"\0"),
        ("columns", None),
    ],
)
def test_a_header_out_of_its_bounds_is_refused(name: str, value: Any) -> None:
    with pytest.raises(EvidenceError):
        decode_batch(change(name, value))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("epoch", bytes(16), "signature"),
        ("first", GOOD[1] + 2, "signature"),
        ("seeds", bytes(32), "signature"),
        ("peaks", bytes(96), "signature"),
        ("peaks", None, "no frontier"),
        ("since", 3, "signature"),
        ("time_ms", -5, "signature"),
        ("clock", 1, "signature"),
        ("counter", 99, "signature"),
        ("algorithm", -7, "does not sign with"),
        ("kid", bytes(8), "no log key"),
        ("signature", bytes(64), "signature"),
    ],
)
def test_a_header_that_was_not_signed_is_refused(name: str, value: Any, what: str) -> None:
    with pytest.raises(EvidenceError, match=what):
        replay_alone(change(name, value))


def test_another_origin_or_key_is_refused() -> None:
    batch = decode_batch(unhex(GOLDEN["batch-readings"]["frame"]))
    with pytest.raises(EvidenceError, match="signature"):
        replay(batch, origin="acme/gw-8", frontier=None, key_for=key_for)
    foreign = PrivateKey.from_entropy(bytes(48)).public
    with pytest.raises(EvidenceError):
        replay(batch, origin=ORIGIN, frontier=None, key_for=lambda _: foreign)


def test_another_tree_is_refused() -> None:
    batch = decode_batch(unhex(GOLDEN["batch-readings"]["frame"]))
    ours = Frontier(batch.first, batch.peaks or ())
    assert replay(batch, origin=ORIGIN, frontier=ours, key_for=key_for).anchored
    forked = Frontier(batch.first, [bytes(32), *ours.peaks[1:]])
    with pytest.raises(EvidenceError, match="is not the one known here"):
        replay(batch, origin=ORIGIN, frontier=forked, key_for=key_for)
    with pytest.raises(EvidenceError, match="signature"):
        replay(batch._replace(peaks=None), origin=ORIGIN, frontier=forked, key_for=key_for)
    with pytest.raises(ValueError, match="can not begin"):
        replay(batch, origin=ORIGIN, frontier=Frontier(), key_for=key_for)


@pytest.mark.parametrize("frame", [b"", b"\x01", b"\x02" + bytes(40), bytes(40), b"\x01" * 17, bytes(FRAME_MAX + 1)])
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(EvidenceError):
        decode_batch(frame)


@given(st.binary(max_size=300), st.booleans())
@settings(deadline=None)
def test_random_bytes_raise_evidence_errors_only(data: bytes, digested: bool) -> None:  # noqa: FBT001
    with pytest.raises(EvidenceError):
        decode_batch(redigested(b"\x01" + data) if digested else data)


@given(st.binary(max_size=200), st.sampled_from([0, 1]))
@settings(deadline=None)
def test_random_columns_raise_evidence_errors_only(data: bytes, method: int) -> None:
    with pytest.raises(EvidenceError):
        decode_batch(frame_of([*GOOD[:-2], method, data]))


def test_a_deflate_bomb_is_refused() -> None:
    _, packed = columns.pack(bytes(8 * columns.RAW_MAX))
    with pytest.raises(EvidenceError):
        decode_batch(frame_of([*GOOD[:-2], columns.DEFLATE, packed]))


def test_an_entry_too_long_for_a_log_is_refused() -> None:
    """Its columns may be short where its canonical bytes are not."""
    quantity = (bytes(6), "W", 0, False)
    groups = ((1000, (quantity,) * 1000),) * 8
    entries = [parse(SALTS.canonical(0, golden_batch.readings()[0]))[1]]
    long = batches.columns.decode(columns.encode(entries), limit=1)
    declaration = golden_batch.parse(golden_batch.log_entries()[2])[1]._replace(groups=groups)  # type: ignore[union-attr]
    batch = decode_batch(make([*long, declaration]))
    with pytest.raises(EvidenceError, match=f"longer than {ENTRY_MAX}"):
        replay(batch, origin=ORIGIN, frontier=None, key_for=key_for)


# ---------------------------------------------------------------- the caller's faults


def test_arguments_that_do_not_belong_together() -> None:
    log = Log(origin=ORIGIN, epoch=EPOCH, secret=bytes(32), signer=KEY, frontier=Frontier(), counter=0)
    entries = recorded(1)
    for entry in entries:
        log.append(entry)
    checkpoint = log.checkpoint(5, 2)
    good: dict[str, Any] = {"first": 0, "entries": entries, "checkpoint": checkpoint, "salts": log.salts}
    encode_batch(**good)
    for wrong in (
        {"entries": []},
        {"entries": entries[1:]},
        {"first": 1},
        {"first": 1, "entries": entries[1:]},
        {"frontier": Frontier(1, [bytes(32)])},
    ):
        with pytest.raises(ValueError, match="can not"):
            encode_batch(**{**good, **wrong})
    with pytest.raises(EvidenceError, match="no salt seed"):
        encode_batch(**{**good, "salts": Salts()})


def blob(size: int, number: int) -> Unknown:
    return Unknown(cbor.encode([9, 9, random.Random(number).randbytes(size)]))


def test_a_frame_at_its_bound() -> None:
    """Bytes that do not compress, up to the last one that fits."""
    some: list[Entry] = [blob(60_000, number) for number in range(4)]
    last = FRAME_MAX - len(make([*some, blob(20_000, 4)])) + 20_000
    frame = make([*some, blob(last, 4)])
    assert len(frame) == FRAME_MAX
    assert decode_batch(frame).entries[:4] == some
    with pytest.raises(BatchTooLargeError, match=f"of {FRAME_MAX + 1} bytes"):
        make([*some, blob(last + 1, 4)])


def test_entries_at_their_bound() -> None:
    one: list[Entry] = [Reading(2, 0, 5, 0, 2, 1, 5, (1,), None)]
    checkpoint = SignedCheckpoint(
        Checkpoint(ORIGIN, EPOCH, ENTRIES_MAX, bytes(32), 0, sha256(b"").digest(), 5, 2, 1), -8, KEY.kid, bytes(64)
    )
    frame = encode_batch(first=0, entries=one * ENTRIES_MAX, checkpoint=checkpoint, salts=SALTS)
    assert len(decode_batch(frame).entries) == ENTRIES_MAX
    more = checkpoint._replace(checkpoint=checkpoint.checkpoint._replace(size=ENTRIES_MAX + 1))
    with pytest.raises(BatchTooLargeError, match="entries"):
        encode_batch(first=0, entries=one * (ENTRIES_MAX + 1), checkpoint=more, salts=SALTS)


def test_values_beyond_their_bound() -> None:
    wide: list[Entry] = [Reading(2, 0, 5, 0, 2, 1, 5, (0,) * 1024, None)] * 1025
    head = Checkpoint(ORIGIN, EPOCH, 1025, bytes(32), 0, sha256(b"").digest(), 5, 2, 1)
    with pytest.raises(BatchTooLargeError, match="values"):
        encode_batch(first=0, entries=wide, checkpoint=SignedCheckpoint(head, -8, KEY.kid, bytes(64)), salts=SALTS)


def test_a_batch_is_what_it_says() -> None:
    batch = decode_batch(unhex(GOLDEN["batch-whole"]["frame"]))
    assert isinstance(batch, Batch)
    assert leaf_hash(SALTS.canonical(0, batch.entries[0])) == unhex(golden_batch.read("entry-epoch")["leaf"])
