"""Proof files: what verifies, that nothing else does, and that others' libraries agree."""

import contextlib
import random
from typing import Any

import cbor2
import golden_core
import pytest
import stranger
import stranger_proof
from cryptography.hazmat.primitives.asymmetric import ed25519
from cwt import COSE, COSEKey
from energybid.core import cbor
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.disclosure import (
    FILE_MAX,
    ConsistencyProof,
    Disclosed,
    EntryProof,
    ProvenEntry,
    ProvenReading,
    ReadingProof,
    is_proof,
    parse_proof,
    verify_continuation,
    verify_entry,
    verify_reading,
)
from energybid.core.entries import Declaration, Known, Reading, canonical
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, Receipt, sign_checkpoint, sign_receipt
from energybid.core.tree import EMPTY_ROOT, consistency_proof, inclusion_proof, leaf_hash, root_of
from hypothesis import given
from hypothesis import strategies as st
from pycose.keys import EC2Key, OKPKey
from pycose.keys.curves import P256, Ed25519
from pycose.messages import Sign1Message

KEYS = golden_core.KEYS
GOLDEN = [name for name in golden_core.files() if name.startswith("proof")]
READINGS = [name for name in GOLDEN if "reading" in name]
ENTRIES = [name for name in GOLDEN if "entry" in name]
BOTH = {key.kid: key.public for key in KEYS.values()}
LOG, HEADEND = KEYS["ed25519"], KEYS["es256"]


def check(data: bytes, keys: dict[bytes, PublicKey] = BOTH) -> Any:
    proof = parse_proof(data)
    if isinstance(proof, ReadingProof):
        return verify_reading(proof, keys.get)
    if isinstance(proof, EntryProof):
        return verify_entry(proof, keys.get)
    return verify_continuation(proof, keys.get)


def accepted(data: bytes) -> bool:
    with contextlib.suppress(EvidenceError):
        check(data)
        return True
    return False


def pem(key: str | None) -> str | None:
    return None if key is None else str(golden_core.read("log")["keys"][key]["pem"])


def accepted_by_the_stranger(name: str, data: bytes) -> bool:
    golden = golden_core.read(name)
    with contextlib.suppress(stranger.Refused):
        if name in READINGS:
            stranger_proof.reading_proof(data, str(pem(golden["key"])), pem(golden["headend_key"]))
        elif name in ENTRIES:
            stranger_proof.entry_proof(data, str(pem(golden["key"])), pem(golden["headend_key"]))
        else:
            stranger_proof.consistency_proof(data, str(pem(golden["key"])))
        return True
    return False


# ---------------------------------------------------------------- the golden files


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_proofs_verify_and_come_back_as_the_same_bytes(name: str) -> None:
    file = golden_core.read(name)["file"]
    assert is_proof(file)
    assert parse_proof(file).encode() == file
    check(file)


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_proof_tells_the_reading_its_meaning_and_who_signed(name: str) -> None:
    golden = golden_core.read(name)
    proven: ProvenReading = check(golden["file"])
    assert proven.reading == golden_core.ENTRIES[golden["entry"]]
    assert proven.declaration == golden_core.ENTRIES["declaration"]
    assert (proven.checkpoint, proven.kid) == (golden_core.CHECKPOINT, KEYS[golden["key"]].kid)
    if golden["headend_key"]:
        assert (proven.receipt, proven.receipt_kid) == (golden_core.RECEIPT, KEYS[golden["headend_key"]].kid)
    else:
        assert (proven.receipt, proven.receipt_kid) == (None, None)


@pytest.mark.parametrize("name", GOLDEN)
def test_the_stranger_agrees_with_the_golden_proofs(name: str) -> None:
    golden = golden_core.read(name)
    if name in READINGS:
        head, declared, read = stranger_proof.reading_proof(
            golden["file"], str(pem(golden["key"])), pem(golden["headend_key"])
        )
        assert declared[3:] == golden_core.untuple(golden_core.ENTRIES["declaration"])
        assert read[3:] == golden_core.untuple(golden_core.ENTRIES[golden["entry"]])
    elif name in ENTRIES:
        head, array = stranger_proof.entry_proof(golden["file"], str(pem(golden["key"])), pem(golden["headend_key"]))
        assert array == stranger.cbor(golden_core.read(f"entry-{golden['entry']}")["canonical"])
    else:
        first, head = stranger_proof.consistency_proof(golden["file"], str(pem(golden["key"])))
        assert first == list(golden_core.FIRST_CHECKPOINT)
    assert head == list(golden_core.CHECKPOINT)


@pytest.mark.untraced
@pytest.mark.parametrize("name", GOLDEN)
def test_every_flipped_bit_of_every_golden_proof_is_refused(name: str) -> None:
    """All of them: heads and lengths, kid and unprotected headers, signatures, salts, paths. By both verifiers."""
    file = golden_core.read(name)["file"]
    number = int.from_bytes(file, "big")
    for bit in range(8 * len(file)):
        flipped = (number ^ 1 << bit).to_bytes(len(file), "big")
        assert not accepted(flipped), f"bit {bit}"
        assert not accepted_by_the_stranger(name, flipped), f"bit {bit}, the stranger"


@pytest.mark.parametrize("name", GOLDEN)
def test_cut_longer_and_spliced_files_are_refused(name: str) -> None:
    file = golden_core.read(name)["file"]
    assert not any(accepted(file[:size]) for size in range(len(file)))
    assert not any(accepted(bad) for bad in (file + b"\0", b"\0" + file, file[1:], file + file))
    chance = random.Random(name)
    for _ in range(300):
        at, end = sorted(chance.choices(range(len(file) + 1), k=2))
        for spliced in (file[:at] + file[end:], file[:end] + file[at:], file[:at] + chance.randbytes(3) + file[at:]):
            assert spliced == file or not accepted(spliced)


def independent_key(name: str) -> Any:
    public = KEYS[name].public.key
    if isinstance(public, ed25519.Ed25519PublicKey):
        return OKPKey(crv=Ed25519, x=public.public_bytes_raw())
    numbers = public.public_numbers()
    return EC2Key(crv=P256, x=numbers.x.to_bytes(32, "big"), y=numbers.y.to_bytes(32, "big"))


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_proof_tells_the_entry_and_who_signed(name: str) -> None:
    golden = golden_core.read(name)
    proven: ProvenEntry = check(golden["file"])
    assert proven.entry == golden_core.ENTRIES[golden["entry"]]
    assert proven.sequence == list(golden_core.ENTRIES).index(golden["entry"])
    assert (proven.checkpoint, proven.kid) == (golden_core.CHECKPOINT, KEYS[golden["key"]].kid)
    if golden["headend_key"]:
        assert (proven.receipt, proven.receipt_kid) == (golden_core.RECEIPT, KEYS[golden["headend_key"]].kid)
        proof = parse_proof(golden["file"])
        assert isinstance(proof, EntryProof)
        bare = verify_entry(proof, {proven.kid: KEYS[golden["key"]].public}.get, ignore_receipt=True)
        assert (bare.receipt, bare.receipt_kid) == (None, None)
    else:
        assert (proven.receipt, proven.receipt_kid) == (None, None)


@pytest.mark.parametrize("name", READINGS)
def test_two_other_cose_libraries_verify_the_signatures_inside(name: str) -> None:
    """The file is opened by cbor2, the messages are verified by cwt and by pycose: no code of ours."""
    golden = golden_core.read(name)
    _, checkpoint, receipt, _, _ = cbor2.loads(golden["file"])
    for message, signer, text in (
        (checkpoint, golden["key"], "energybid checkpoint 1"),
        (receipt, golden["headend_key"], "energybid receipt 1"),
    ):
        if message is None:
            continue
        algorithm = {"ed25519": "EdDSA", "es256": "ES256"}[signer]
        key = COSEKey.from_pem(KEYS[signer].public.pem(), kid=KEYS[signer].kid, alg=algorithm)
        assert cbor2.loads(COSE.new().decode(message, keys=[key]))[0] == text
        signed = Sign1Message.decode(message)
        signed.key = independent_key(signer)
        assert signed.verify_signature()


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    assert not accepted(data)
    assert not accepted(golden_core.read("proof-consistency-ed25519")["file"][:34] + data)


# ---------------------------------------------------------------- what else must be refused


def entry_bytes(entry: Known) -> bytes:
    return canonical(entry, bytes(16))


DECLARATION = Declaration("m", "p", bytes(32), None, ((1000, ((bytes(6), "W", 0, False),)),))
READING = Reading(0, 0, 5, 1, 2, 0, 5, (7,), None)


def reading_file(
    *entries: Known,
    declared: int = 0,
    read: int = 1,
    log: PrivateKey = LOG,
    headend: PrivateKey | None = HEADEND,
    **receipt: Any,
) -> bytes:
    """A proof over a log of just these entries, everything in it signed: only its meaning may be wrong."""
    raw = [entry_bytes(entry) for entry in entries]
    leaves = [leaf_hash(entry) for entry in raw]
    root = root_of(leaves)
    checkpoint = Checkpoint("t/g", bytes(16), len(raw), root, 0, EMPTY_ROOT, 9, 2, 1)
    stored = Receipt("t/g", bytes(16), len(raw), root, 9)._replace(**receipt)
    found = [Disclosed(n, raw[n], tuple(inclusion_proof(leaves, n))) for n in (declared, read)]
    message = sign_checkpoint(checkpoint, log).message()
    return ReadingProof(message, sign_receipt(stored, headend) if headend else None, *found).encode()


def test_the_smallest_proof_verifies() -> None:
    assert check(reading_file(DECLARATION, READING)).receipt is not None
    assert check(reading_file(DECLARATION, READING, headend=None)).receipt is None


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (reading_file(DECLARATION, READING._replace(declaration=2), READING), "does not refer back"),
        (reading_file(READING, DECLARATION, declared=1, read=0), "does not refer back"),
        (reading_file(READING._replace(declaration=1), DECLARATION, declared=1, read=0), "does not refer back"),
        (reading_file(READING, READING), "not a declaration and a reading"),
        (reading_file(DECLARATION, DECLARATION), "not a declaration and a reading"),
        (reading_file(DECLARATION, READING._replace(group=1)), "is of group 1"),
        (reading_file(DECLARATION, READING._replace(values=(7, 8))), "another number of values"),
        (reading_file(DECLARATION, READING, headend=LOG), "gateway's own key"),
        (reading_file(DECLARATION, READING, origin="t/h"), "for another log"),
        (reading_file(DECLARATION, READING, epoch=b"x" * 16), "for another log"),
        (reading_file(DECLARATION, READING, size=3), "for another log"),
        (reading_file(DECLARATION, READING, root=bytes(32)), "for another log"),
    ],
)
def test_what_was_signed_and_does_not_fit_is_refused(file: bytes, reason: str) -> None:
    with pytest.raises(EvidenceError, match=reason):
        check(file)
    with pytest.raises(stranger.Refused):
        stranger_proof.reading_proof(file, str(pem("ed25519")), str(pem("ed25519" if "own" in reason else "es256")))


def test_a_checkpoint_can_not_pass_for_a_receipt_nor_the_other_way() -> None:
    proof = parse_proof(reading_file(DECLARATION, READING))
    assert isinstance(proof, ReadingProof)
    assert proof.receipt is not None
    checkpoint = sign_checkpoint(Checkpoint("t/g", bytes(16), 0, EMPTY_ROOT, 0, EMPTY_ROOT, 9, 2, 1), HEADEND).message()
    assert not accepted(proof._replace(receipt=checkpoint).encode())
    assert not accepted(proof._replace(checkpoint=proof.receipt, receipt=None).encode())


def test_a_key_that_was_not_given_is_named() -> None:
    file = reading_file(DECLARATION, READING)
    for missing, what in ((LOG, "checkpoint"), (HEADEND, "receipt")):
        keys = {kid: key for kid, key in BOTH.items() if kid != missing.kid}
        with pytest.raises(EvidenceError, match=f"{what}: signed by key {missing.kid.hex()}, which was not given"):
            check(file, keys)


def test_without_the_headends_key_the_receipt_can_be_left_out_knowingly() -> None:
    proof = parse_proof(reading_file(DECLARATION, READING))
    assert isinstance(proof, ReadingProof)
    proven = verify_reading(proof, {LOG.kid: LOG.public}.get, ignore_receipt=True)
    assert (proven.receipt, proven.receipt_kid) == (None, None)


def test_a_file_is_bounded() -> None:
    with pytest.raises(EvidenceError, match="at most"):
        parse_proof(bytes(FILE_MAX + 1))
    proof = parse_proof(reading_file(DECLARATION, READING))
    assert isinstance(proof, ReadingProof)
    long = proof.reading._replace(path=(bytes(32),) * 64)
    assert isinstance(parse_proof(proof._replace(reading=long).encode()), ReadingProof)
    for wrong in (
        proof._replace(reading=long._replace(path=(bytes(32),) * 65)),
        proof._replace(reading=long._replace(path=(bytes(31),))),
        proof._replace(reading=long._replace(canonical=bytes(65_537))),
        proof._replace(reading=long._replace(sequence=2**63)),
        proof._replace(checkpoint=bytes(4097)),
        proof._replace(receipt=bytes(4097)),
    ):
        with pytest.raises(EvidenceError):
            parse_proof(wrong.encode())


@pytest.mark.parametrize("position", range(5))
def test_fields_of_other_types_are_refused(position: int) -> None:
    item = cbor.decode(reading_file(DECLARATION, READING))
    for other in (1, "x", [], [1, 2, 3], ["x", b"", b""], True):
        assert not accepted(cbor.encode([*item[:position], other, *item[position + 1 :]]))
    assert not accepted(cbor.encode([*item, None]))
    assert not accepted(cbor.encode(item[:position] + item[position + 1 :]))


def test_a_newer_version_is_recognised_and_refused() -> None:
    file = reading_file(DECLARATION, READING).replace(b"proof 1", b"proof 2")
    assert is_proof(file)
    with pytest.raises(EvidenceError, match="not an 'energybid reading proof 1'"):
        parse_proof(file)


# ---------------------------------------------------------------- two checkpoints

LEAVES = [leaf_hash(bytes([n])) for n in range(9)]


def checkpoint_at(size: int, counter: int = 0, key: PrivateKey = LOG, **more: Any) -> bytes:
    root = root_of(LEAVES[:size])
    fields = Checkpoint("t/g", bytes(16), size, root, 0, EMPTY_ROOT, 9, 2, counter or size + 1)
    return sign_checkpoint(fields._replace(**more), key).message()


def consistency_file(first: int, second: int, **more: Any) -> bytes:
    path = tuple(consistency_proof(LEAVES[:second], first))
    return ConsistencyProof(checkpoint_at(first), checkpoint_at(second, **more), path).encode()


@pytest.mark.parametrize("second", range(10))
def test_every_pair_of_sizes(second: int) -> None:
    for first in range(second + 1):
        file = consistency_file(first, second)
        proven = check(file)
        assert (proven.first.size, proven.second.size) == (first, second)
        stranger_proof.consistency_proof(file, str(pem("ed25519")))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (consistency_file(3, 7, origin="t/h"), "two gateways"),
        (consistency_file(3, 7, epoch=b"x" * 16), "two gateways"),
        (consistency_file(3, 7, counter=4), "counter did not grow"),
        (consistency_file(3, 7, root=bytes(32)), "not shown to be a prefix"),
        (ConsistencyProof(checkpoint_at(7), checkpoint_at(3), ()).encode(), "can not be a prefix"),
        (ConsistencyProof(checkpoint_at(3), checkpoint_at(3, root=bytes(32)), ()).encode(), "roots differ"),
        (ConsistencyProof(checkpoint_at(3), checkpoint_at(7), ()).encode(), "wrong length"),
    ],
)
def test_checkpoints_that_do_not_continue_each_other_are_refused(file: bytes, reason: str) -> None:
    with pytest.raises(EvidenceError, match=reason):
        check(file)
    with pytest.raises(stranger.Refused):
        stranger_proof.consistency_proof(file, str(pem("ed25519")))
