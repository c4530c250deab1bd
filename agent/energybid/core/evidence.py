"""Checkpoints (the gateway's signature over its log) and receipts (the head-end's over what it stored).

Payloads are deterministic CBOR arrays that begin with their own name, so that neither can pass for the other
(docs/formats.md §5).
"""

from typing import Any, NamedTuple

from energybid.core import cbor, cose
from energybid.core.entries import ID_SIZE, is_bytes, is_clock, is_int, is_origin, is_uint
from energybid.core.errors import EvidenceError
from energybid.core.tree import EMPTY_ROOT, HASH_SIZE

CHECKPOINT = "energybid checkpoint 1"
RECEIPT = "energybid receipt 1"


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
    """Above 0; grows by at least one from checkpoint to checkpoint, over all epochs."""

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


def _fields(payload: bytes, name: str, count: int) -> list[Any]:
    item = cbor.decode(payload)
    if not isinstance(item, list) or len(item) != 1 + count or item[0] != name:
        raise EvidenceError(f"payload is not an {name!r}")
    origin, epoch, size, root = item[1:5]
    if not (is_origin(origin) and is_bytes(epoch, ID_SIZE) and _is_head(size, root)):
        raise EvidenceError(f"{name!r}: origin, epoch, size or root is out of its bounds")
    return item[1:]


def _is_head(size: Any, root: Any) -> bool:  # noqa: ANN401
    return is_uint(size) and is_bytes(root, HASH_SIZE) and (size > 0 or root == EMPTY_ROOT)


def parse_checkpoint(payload: bytes) -> Checkpoint:
    """Read a checkpoint's payload.

    Raises:
        EvidenceError: Another shape, or a field out of its bounds.
    """
    checkpoint = Checkpoint(*_fields(payload, CHECKPOINT, len(Checkpoint._fields)))
    if not (
        _is_head(checkpoint.previous_size, checkpoint.previous_root)
        and is_int(checkpoint.time_ms)
        and is_clock(checkpoint.clock)
        and is_uint(checkpoint.counter)
        and checkpoint.counter > 0
    ):
        raise EvidenceError("checkpoint: a field is out of its bounds")
    before, after = checkpoint[4:6], checkpoint[2:4]
    if before[0] > after[0] or (before[0] == after[0] and before != after):
        raise EvidenceError("checkpoint: what came before is larger, or of the same size with another root")
    return checkpoint


def parse_receipt(payload: bytes) -> Receipt:
    """Read a receipt's payload.

    Raises:
        EvidenceError: Another shape, or a field out of its bounds.
    """
    receipt = Receipt(*_fields(payload, RECEIPT, len(Receipt._fields)))
    if not is_int(receipt.time_ms):
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
