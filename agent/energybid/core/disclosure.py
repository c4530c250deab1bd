"""Proof files: what a stranger needs to check one reading, one other entry, or that a checkpoint continues another.

Here: the three formats of docs/formats.md §13, read strictly and verified with nothing but public keys. Never here: a
database or a clock. Making the proofs is prover.py's.

Whatever stands in a file is either signed, hashed into what is signed, or has one permitted encoding: any change of a
file is refused.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from energybid.core import cbor, cose
from energybid.core.cose import PublicKey
from energybid.core.entries import ENTRY_MAX, Declaration, Entry, Reading, is_uint, parse
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, Receipt, parse_checkpoint, parse_receipt
from energybid.core.tree import HASH_SIZE, leaf_hash, verify_consistency, verify_inclusion

READING = "energybid reading proof 1"
CONSISTENCY = "energybid consistency proof 1"
ENTRY = "energybid entry proof 1"
FILE_MAX = 147_456
"""Longest proof file, bytes: two entries, two COSE messages and two paths of their greatest lengths, and some room."""
PATH_MAX = 64
"""Most hashes in a path: trees have fewer than 2**63 leaves."""

_OPENINGS = (b"\x85\x78\x19" + READING[:-1].encode(), b"\x84\x78\x1d" + CONSISTENCY[:-1].encode(),
             b"\x84\x77" + ENTRY[:-1].encode())  # fmt: skip
"""First bytes of the files, but for the version's digit."""

KeyFor = Callable[[bytes], PublicKey | None]
"""kid → the key that the verifier trusts, or None."""


class Disclosed(NamedTuple):
    """One entry of a log, with the way from its hash to the root."""

    sequence: int
    canonical: bytes
    """With its salt; says nothing about its neighbours'."""
    path: tuple[bytes, ...]
    """Inclusion proof, the leaf's sibling first."""


class ReadingProof(NamedTuple):
    """One reading, and the declaration that says what its numbers mean."""

    checkpoint: bytes
    """COSE message: the gateway's signature over the tree that the paths lead to."""
    receipt: bytes | None
    """COSE message: the head-end's signature over the same tree."""
    declaration: Disclosed
    reading: Disclosed

    def encode(self) -> bytes:
        """The file's bytes."""
        entries = ((e.sequence, e.canonical, b"".join(e.path)) for e in (self.declaration, self.reading))
        return cbor.encode((READING, self.checkpoint, self.receipt, *entries))


class ConsistencyProof(NamedTuple):
    """Two checkpoints of one epoch, the log of the first being the beginning of the second's."""

    first: bytes
    """COSE message of the checkpoint with the smaller size."""
    second: bytes
    path: tuple[bytes, ...]
    """Consistency proof."""

    def encode(self) -> bytes:
        """The file's bytes."""
        return cbor.encode((CONSISTENCY, self.first, self.second, b"".join(self.path)))


class EntryProof(NamedTuple):
    """One entry of any type, such as a market's message."""

    checkpoint: bytes
    """COSE message: the gateway's signature over the tree that the path leads to."""
    receipt: bytes | None
    """COSE message: the head-end's signature over the same tree."""
    entry: Disclosed

    def encode(self) -> bytes:
        """The file's bytes."""
        entry = self.entry.sequence, self.entry.canonical, b"".join(self.entry.path)
        return cbor.encode((ENTRY, self.checkpoint, self.receipt, entry))


class ProvenReading(NamedTuple):
    """What a verified reading proof says."""

    checkpoint: Checkpoint
    kid: bytes
    """Key that signed the checkpoint."""
    receipt: Receipt | None
    receipt_kid: bytes | None
    sequence: int
    reading: Reading
    declaration: Declaration


class ProvenEntry(NamedTuple):
    """What a verified entry proof says."""

    checkpoint: Checkpoint
    kid: bytes
    """Key that signed the checkpoint."""
    receipt: Receipt | None
    receipt_kid: bytes | None
    sequence: int
    entry: Entry


class ProvenConsistency(NamedTuple):
    """What a verified consistency proof says."""

    first: Checkpoint
    first_kid: bytes
    second: Checkpoint
    second_kid: bytes


def is_proof(data: bytes) -> bool:
    """Whether bytes begin as proof files do, of whatever version."""
    return data.startswith(_OPENINGS)


# ---------------------------------------------------------------- reading files


def _path(joined: Any) -> tuple[bytes, ...]:  # noqa: ANN401
    if not isinstance(joined, bytes) or len(joined) % HASH_SIZE or len(joined) > PATH_MAX * HASH_SIZE:
        raise EvidenceError(f"proof: a path is at most {PATH_MAX} hashes of {HASH_SIZE} bytes")
    return tuple(joined[at : at + HASH_SIZE] for at in range(0, len(joined), HASH_SIZE))


def _disclosed(item: Any) -> Disclosed:  # noqa: ANN401
    if not isinstance(item, list) or len(item) != len(Disclosed._fields):
        raise EvidenceError("proof: an entry is [sequence, canonical bytes, path]")
    sequence, canonical, path = item
    if not is_uint(sequence) or not isinstance(canonical, bytes) or len(canonical) > ENTRY_MAX:
        raise EvidenceError("proof: an entry's sequence or bytes are out of their bounds")
    return Disclosed(sequence, canonical, _path(path))


def _message(item: Any) -> bytes:  # noqa: ANN401
    if not isinstance(item, bytes) or len(item) > cose.MESSAGE_MAX:
        raise EvidenceError(f"proof: a signed message is at most {cose.MESSAGE_MAX} bytes")
    return item


def parse_proof(data: bytes) -> ReadingProof | ConsistencyProof | EntryProof:
    """Read a proof file; nothing in it is verified.

    Raises:
        EvidenceError: Not a proof file of this version in its one permitted encoding.
    """
    if len(data) > FILE_MAX:
        raise EvidenceError(f"a proof file has at most {FILE_MAX} bytes")
    match cbor.decode(data):
        case [str() as name, checkpoint, receipt, declaration, reading] if name == READING:
            receipt = None if receipt is None else _message(receipt)
            return ReadingProof(_message(checkpoint), receipt, _disclosed(declaration), _disclosed(reading))
        case [str() as name, first, second, path] if name == CONSISTENCY:
            return ConsistencyProof(_message(first), _message(second), _path(path))
        case [str() as name, checkpoint, receipt, entry] if name == ENTRY:
            receipt = None if receipt is None else _message(receipt)
            return EntryProof(_message(checkpoint), receipt, _disclosed(entry))
    raise EvidenceError(f"not an {READING!r}, an {CONSISTENCY!r} nor an {ENTRY!r}")


# ---------------------------------------------------------------- verifying


def _signed(message: bytes, key_for: KeyFor, what: str) -> tuple[bytes, bytes]:
    """(kid, payload) of a message whose signature holds under a key that is trusted."""
    kid, _ = cose.peek(message)
    key = key_for(kid)
    if key is None:
        raise EvidenceError(f"{what}: signed by key {kid.hex()}, which was not given (--key)")
    try:
        return kid, cose.verify(message, key)
    except EvidenceError as error:
        raise EvidenceError(f"{what}: {error}") from None


def _checkpoint(message: bytes, key_for: KeyFor, what: str = "checkpoint") -> tuple[bytes, Checkpoint]:
    kid, payload = _signed(message, key_for, what)
    return kid, parse_checkpoint(payload)


def same_tree(receipt: Receipt, checkpoint: Checkpoint) -> None:
    """Check that both are about one tree.

    Raises:
        EvidenceError: Another origin, epoch, size or root.
    """
    if receipt[:4] != checkpoint[:4]:
        raise EvidenceError("the receipt is for another log, size or root than the checkpoint")


def _receipt(
    message: bytes | None, checkpoint: Checkpoint, log_kid: bytes, key_for: KeyFor
) -> tuple[bytes, Receipt] | tuple[None, None]:
    if message is None:
        return None, None
    kid, payload = _signed(message, key_for, "receipt")
    receipt = parse_receipt(payload)
    if kid == log_kid:
        raise EvidenceError("the receipt is signed with the gateway's own key: it would say nothing more")
    same_tree(receipt, checkpoint)
    return kid, receipt


def explained(reading: Any, sequence: int, declaration: Any, at: int) -> tuple[Reading, Declaration]:  # noqa: ANN401
    """A reading (entry ``sequence``) and the declaration (entry ``at``) that it refers to, checked to fit each other.

    Raises:
        EvidenceError: Other types of entries, or they do not fit (docs/formats.md §3.9).
    """
    if not isinstance(reading, Reading) or not isinstance(declaration, Declaration):
        raise EvidenceError("the entries are not a declaration and a reading")
    if reading.declaration != at or at >= sequence:
        raise EvidenceError(f"reading {sequence} does not refer back to declaration {at}")
    if reading.group >= len(declaration.groups):
        raise EvidenceError(f"reading {sequence} is of group {reading.group}, which its declaration does not have")
    if len(reading.values) != len(declaration.groups[reading.group][1]):
        raise EvidenceError(f"reading {sequence} has another number of values than its declaration")
    return reading, declaration


def verify_reading(proof: ReadingProof, key_for: KeyFor, *, ignore_receipt: bool = False) -> ProvenReading:
    """Verify everything in a reading proof.

    Args:
        proof: From ``parse_proof``.
        key_for: The gateway's log key and the head-end's receipt key.
        ignore_receipt: Do not look at the receipt: nothing is then known from the head-end.

    Raises:
        EvidenceError: Something does not check; the message says what.
    """
    signed = _signed_tree(proof, key_for, (proof.declaration, proof.reading), ignore_receipt=ignore_receipt)
    reading, declaration = explained(
        parse(proof.reading.canonical)[1],
        proof.reading.sequence,
        parse(proof.declaration.canonical)[1],
        proof.declaration.sequence,
    )
    return ProvenReading(*signed, proof.reading.sequence, reading, declaration)


def verify_entry(proof: EntryProof, key_for: KeyFor, *, ignore_receipt: bool = False) -> ProvenEntry:
    """Verify everything in an entry proof.

    Args:
        proof: From ``parse_proof``.
        key_for: The gateway's log key and the head-end's receipt key.
        ignore_receipt: Do not look at the receipt: nothing is then known from the head-end.

    Raises:
        EvidenceError: Something does not check; the message says what.
    """
    signed = _signed_tree(proof, key_for, (proof.entry,), ignore_receipt=ignore_receipt)
    return ProvenEntry(*signed, proof.entry.sequence, parse(proof.entry.canonical)[1])


def _signed_tree(
    proof: ReadingProof | EntryProof, key_for: KeyFor, entries: Sequence[Disclosed], *, ignore_receipt: bool
) -> tuple[Checkpoint, bytes, Receipt | None, bytes | None]:
    """The signed tree that these entries are leaves of: checkpoint, key, receipt, key."""
    kid, checkpoint = _checkpoint(proof.checkpoint, key_for)
    message = None if ignore_receipt else proof.receipt
    receipt_kid, receipt = _receipt(message, checkpoint, kid, key_for)
    for entry in entries:
        verify_inclusion(leaf_hash(entry.canonical), entry.sequence, checkpoint.size, entry.path, checkpoint.root)
    return checkpoint, kid, receipt, receipt_kid


def verify_continuation(proof: ConsistencyProof, key_for: KeyFor) -> ProvenConsistency:
    """Verify everything in a consistency proof.

    Raises:
        EvidenceError: Something does not check; the message says what.
    """
    first_kid, first = _checkpoint(proof.first, key_for, "first checkpoint")
    second_kid, second = _checkpoint(proof.second, key_for, "second checkpoint")
    if first[:2] != second[:2]:
        raise EvidenceError("the checkpoints are of two gateways or epochs")
    verify_consistency(first.size, second.size, proof.path, first.root, second.root)
    if first.size < second.size and first.counter >= second.counter:
        raise EvidenceError("the counter did not grow from the smaller checkpoint to the larger: two were signed apart")
    return ProvenConsistency(first, first_kid, second, second_kid)
