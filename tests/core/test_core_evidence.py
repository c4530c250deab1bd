"""Checkpoints and receipts: golden bytes both ways, every field's bounds, neither passes for the other."""

from typing import Any

import cbor2
import golden_core
import pytest
import stranger
from energybid.core import cbor, cose
from energybid.core.errors import EvidenceError
from energybid.core.evidence import (
    Checkpoint,
    Receipt,
    SignedCheckpoint,
    parse_checkpoint,
    parse_receipt,
    read_checkpoint,
    sign_checkpoint,
    sign_receipt,
    verify_receipt,
)
from energybid.core.tree import EMPTY_ROOT
from hypothesis import given
from hypothesis import strategies as st
from strategies_core import CLOCK, HASH, ID, INT, ORIGIN, UINT

KEYS = golden_core.KEYS
POSITIVE = st.integers(1, 2**63 - 1)


@st.composite
def checkpoints(draw: st.DrawFn) -> Checkpoint:
    before, size = sorted((draw(UINT), draw(UINT)))
    root = draw(HASH) if size else EMPTY_ROOT
    before_root = root if before == size else draw(HASH) if before else EMPTY_ROOT
    return Checkpoint(draw(ORIGIN), draw(ID), size, root, before, before_root, draw(INT), draw(CLOCK), draw(POSITIVE))


@given(checkpoints())
def test_checkpoints_read_back(checkpoint: Checkpoint) -> None:
    assert parse_checkpoint(checkpoint.payload()) == checkpoint
    assert stranger.checkpoint(checkpoint.payload()) == list(checkpoint)


@given(ORIGIN, ID, POSITIVE, HASH, INT)
def test_receipts_read_back(origin: str, epoch: bytes, size: int, root: bytes, time_ms: int) -> None:
    receipt = Receipt(origin, epoch, size, root, time_ms)
    assert parse_receipt(receipt.payload()) == receipt
    assert stranger.receipt(receipt.payload()) == list(receipt)


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("kind", ["checkpoint", "checkpoint-first"])
def test_golden_checkpoints_both_ways(kind: str, name: str) -> None:
    golden, key = golden_core.read(f"{kind}-{name}"), KEYS[name]
    checkpoint = Checkpoint(**golden["fields"])
    assert checkpoint.payload() == golden["payload"]
    signed = read_checkpoint(golden["message"], key.public)
    assert signed.checkpoint == checkpoint
    assert signed.message() == golden["message"]
    if key.algorithm == cose.EDDSA:  # ES256 draws a nonce for each signature
        assert sign_checkpoint(checkpoint, key).message() == golden["message"]


@pytest.mark.parametrize("name", KEYS)
def test_golden_receipts_both_ways(name: str) -> None:
    golden, key = golden_core.read(f"receipt-{name}"), KEYS[name]
    receipt = Receipt(**golden["fields"])
    assert receipt.payload() == golden["payload"]
    assert verify_receipt(golden["message"], key.public) == receipt
    if key.algorithm == cose.EDDSA:
        assert sign_receipt(receipt, key) == golden["message"]


@pytest.mark.parametrize("name", KEYS)
def test_refuses_every_flipped_bit(name: str) -> None:
    for kind, read in (("checkpoint", read_checkpoint), ("receipt", verify_receipt)):
        message = golden_core.read(f"{kind}-{name}")["message"]
        number = int.from_bytes(message, "big")
        for bit in range(8 * len(message)):
            with pytest.raises(EvidenceError):
                read((number ^ 1 << bit).to_bytes(len(message), "big"), KEYS[name].public)


def test_neither_passes_for_the_other() -> None:
    key = KEYS["ed25519"].public
    checkpoint, receipt = (golden_core.read(f"{kind}-ed25519")["message"] for kind in ("checkpoint", "receipt"))
    with pytest.raises(EvidenceError, match="not an 'energybid receipt 1'"):
        verify_receipt(checkpoint, key)
    with pytest.raises(EvidenceError, match="not an 'energybid checkpoint 1'"):
        read_checkpoint(receipt, key)


def test_a_checkpoint_is_not_another_ones_signature() -> None:
    signed = sign_checkpoint(golden_core.CHECKPOINT, KEYS["ed25519"])
    signed.verify(KEYS["ed25519"].public)
    for field, other in (("origin", "acme/gw-8"), ("size", 12), ("counter", 1), ("clock", 1), ("time_ms", 0)):
        moved = SignedCheckpoint(golden_core.CHECKPOINT._replace(**{field: other}), *signed[1:])  # type: ignore[arg-type]
        with pytest.raises(EvidenceError, match="does not verify"):
            moved.verify(KEYS["ed25519"].public)


BAD_UINT: tuple[Any, ...] = (-1, 2**63, True, None, 1.0, "1")
BAD_INT: tuple[Any, ...] = (-(2**63) - 1, 2**63, False, None)
BAD_HASH: tuple[Any, ...] = (bytes(31), bytes(33), "x" * 32, None)
BAD: dict[str, tuple[Any, ...]] = {
    "origin": ("", "acme", "acme/gw/7", "acme/gw 7", "acme/#", b"acme/gw-7", "a" * 65 + "/b", None),
    "epoch": (bytes(15), bytes(17), None),
    "size": BAD_UINT,
    "root": BAD_HASH,
    "previous_size": (*BAD_UINT, 12),
    "previous_root": BAD_HASH,
    "time_ms": BAD_INT,
    "clock": (-1, 3, True, None),
    "counter": (*BAD_UINT, 0),
}


@pytest.mark.parametrize(("field", "bad"), [(field, bad) for field, bads in BAD.items() for bad in bads])
def test_refuses_fields_beyond_their_bounds(field: str, bad: Any) -> None:
    for whole, parse, read in (
        (golden_core.CHECKPOINT, parse_checkpoint, stranger.checkpoint),
        (golden_core.RECEIPT, parse_receipt, stranger.receipt),
    ):
        if field in whole._fields:
            item = cbor2.loads(whole.payload())
            payload = cbor2.dumps(
                [*item[: 1 + whole._fields.index(field)], bad, *item[2 + whole._fields.index(field) :]]
            )
            with pytest.raises(EvidenceError):
                parse(payload)
            with pytest.raises(stranger.Refused):
                read(payload)


def test_every_field_has_its_negative_cases() -> None:
    assert set(BAD) == {*Checkpoint._fields, *Receipt._fields}


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0, "previous_size": 0, "previous_root": EMPTY_ROOT},  # root of nothing is not this
        {"previous_size": 0},
        {"previous_size": 11},  # the same size with another root
        {"size": 3},
    ],
)
def test_refuses_sizes_and_roots_that_disagree(change: dict[str, Any]) -> None:
    payload = golden_core.CHECKPOINT._replace(**change).payload()
    with pytest.raises(EvidenceError, match="checkpoint"):
        parse_checkpoint(payload)
    with pytest.raises(stranger.Refused):
        stranger.checkpoint(payload)


def test_an_empty_log_has_one_root() -> None:
    empty = Receipt("a/b", bytes(16), 0, EMPTY_ROOT, 0)
    assert parse_receipt(empty.payload()) == empty
    with pytest.raises(EvidenceError):
        parse_receipt(empty._replace(root=bytes(32)).payload())


@pytest.mark.parametrize(
    "item", [None, 5, "energybid receipt 1", [], ["energybid receipt 1"], ["energybid receipt 2"] * 6]
)
def test_refuses_other_shapes(item: Any) -> None:
    for parse in (parse_checkpoint, parse_receipt):
        with pytest.raises(EvidenceError):
            parse(cbor.encode(item))
    for whole, parse_whole in ((golden_core.CHECKPOINT, parse_checkpoint), (golden_core.RECEIPT, parse_receipt)):
        with pytest.raises(EvidenceError):
            parse_whole(cbor.encode([*cbor.decode(whole.payload()), None]))
        with pytest.raises(EvidenceError):
            parse_whole(cbor.encode(cbor.decode(whole.payload())[:-1]))
