"""Checkpoints (the gateway's signature over its log) and receipts (the head-end's over what it stored).

Payloads are deterministic CBOR arrays that begin with their own name, so that neither can pass for the other
(docs/formats.md §5).
"""

from typing import Any, NamedTuple

from energybid.core import cbor, cose
from energybid.core.entries import ID_SIZE, TEXT_MAX
from energybid.core.errors import EvidenceError
from energybid.core.quantities import ClockState
from energybid.core.tree import HASH_SIZE

CHECKPOINT = "energybid checkpoint 1"
RECEIPT = "energybid receipt 1"
UINT64_MAX = 2**64 - 1


class Checkpoint(NamedTuple):
    """The log's head at one commit."""

    origin: str
    """``tenant/gateway``."""
    epoch: bytes
    size: int
    root: bytes
    previous_size: int
    previous_root: bytes
    time_ms: int
    clock: int
    counter: int
    """Grows by at least one from checkpoint to checkpoint, over all epochs."""

    def payload(self) -> bytes:
        """The bytes that are signed."""
        return cbor.encode((CHECKPOINT, *self))


class Receipt(NamedTuple):
    """The head-end has committed the first ``size`` entries, whose root is ``root``."""

    origin: str
    epoch: bytes
    size: int
    root: bytes
    time_ms: int
    """By the head-end's clock."""

    def payload(self) -> bytes:
        """The bytes that are signed."""
        return cbor.encode((RECEIPT, *self))


def _uint(x: Any) -> bool:  # noqa: ANN401
    return type(x) is int and 0 <= x <= UINT64_MAX


def _time(x: Any) -> bool:  # noqa: ANN401
    return type(x) is int and -(2**63) <= x < 2**63


def _hash(x: Any) -> bool:  # noqa: ANN401
    return isinstance(x, bytes) and len(x) == HASH_SIZE


def _fields(payload: bytes, name: str, count: int) -> list[Any]:
    item = cbor.decode(payload)
    if not isinstance(item, list) or len(item) != 1 + count or item[0] != name:
        raise EvidenceError(f"payload is not an {name!r}")
    origin, epoch, size, root = item[1:5]
    if (
        not (isinstance(origin, str) and len(origin.encode()) <= TEXT_MAX)
        or not (isinstance(epoch, bytes) and len(epoch) == ID_SIZE)
        or not (_uint(size) and _hash(root))
    ):
        raise EvidenceError(f"{name!r}: origin, epoch, size or root is out of its bounds")
    return item[1:]


def parse_checkpoint(payload: bytes) -> Checkpoint:
    """Read a checkpoint's payload.

    Raises:
        EvidenceError: Another shape, or a field out of its bounds.
    """
    checkpoint = Checkpoint(*_fields(payload, CHECKPOINT, len(Checkpoint._fields)))
    if (
        not (_uint(checkpoint.previous_size) and _hash(checkpoint.previous_root) and _time(checkpoint.time_ms))
        or checkpoint.previous_size > checkpoint.size
        or not (_uint(checkpoint.clock) and checkpoint.clock <= ClockState.SYNCHRONISED)
        or not _uint(checkpoint.counter)
    ):
        raise EvidenceError("checkpoint: a field is out of its bounds")
    return checkpoint


def parse_receipt(payload: bytes) -> Receipt:
    """Read a receipt's payload.

    Raises:
        EvidenceError: Another shape, or a field out of its bounds.
    """
    receipt = Receipt(*_fields(payload, RECEIPT, len(Receipt._fields)))
    if not _time(receipt.time_ms):
        raise EvidenceError("receipt: the time is out of its bounds")
    return receipt


def sign_receipt(receipt: Receipt, signer: cose.Signer) -> bytes:
    """The receipt as a COSE_Sign1 message."""
    payload = receipt.payload()
    return cose.message(signer.algorithm, signer.kid, payload, cose.sign(signer, payload))


def verify_receipt(message: bytes, key: cose.PublicKey) -> Receipt:
    """The receipt in a message that the head-end's key signed.

    Raises:
        EvidenceError: It is not one.
    """
    return parse_receipt(cose.verify(message, key))


class SignedCheckpoint(NamedTuple):
    """A checkpoint with its signature; the COSE message is put together when it is needed."""

    checkpoint: Checkpoint
    algorithm: int
    kid: bytes
    signature: bytes

    def message(self) -> bytes:
        """The COSE_Sign1 message."""
        return cose.message(self.algorithm, self.kid, self.checkpoint.payload(), self.signature)

    def verify(self, key: cose.PublicKey) -> None:
        """Check the signature.

        Raises:
            EvidenceError: ``key`` did not sign this checkpoint.
        """
        cose.verify(self.message(), key)


def sign_checkpoint(checkpoint: Checkpoint, signer: cose.Signer) -> SignedCheckpoint:
    """Sign a checkpoint."""
    return SignedCheckpoint(checkpoint, signer.algorithm, signer.kid, cose.sign(signer, checkpoint.payload()))


def read_checkpoint(message: bytes, key: cose.PublicKey) -> SignedCheckpoint:
    """Read and verify a checkpoint's COSE_Sign1 message.

    Raises:
        EvidenceError: It is not one, or ``key`` did not sign it.
    """
    checkpoint = parse_checkpoint(cose.verify(message, key))
    return SignedCheckpoint(checkpoint, key.algorithm, key.kid, message[-cose.SIGNATURE_SIZE :])
