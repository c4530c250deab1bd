"""Batches: the frame that carries a stretch of the log to the head-end (docs/formats.md §7).

Pure: bytes in, values out; nothing here stores, sends or looks at a clock.

A frame is ``0x01 ‖ header ‖ digest``. The header is one deterministic CBOR array::

    [epoch, first, count, seeds, peaks, since, time_ms, clock, counter, algorithm, kid, signature, method, columns]

* ``epoch``: 16 bytes; ``first``: sequence of the first entry; ``count``: how many entries, at least one.
* ``seeds``: the 32-byte salt seeds of the spans ``first // 256`` to ``(first + count - 1) // 256``, one after another.
* ``peaks``: null, or the frontier at ``first`` (> 0) as its 32-byte hashes, largest subtree first: sent when the batch
  starts beyond what the head-end has receipted.
* ``since`` to ``signature``: what the receiver can not derive of the checkpoint at ``first + count``. ``since`` is the
  previous checkpoint's size, less ``first``: from 0 to ``count``. Origin, size, root and previous root are rebuilt.
* ``method``, ``columns``: the entries as ``columns.encode`` and ``columns.pack`` made them.

The digest is the first 16 bytes of SHA-256 over all bytes before it. It finds transmission faults before anything is
parsed; what proves who said it is the checkpoint's signature over the rebuilt root.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from energybid.core import cbor
from energybid.core.cose import KID_SIZE, SIGNATURE_SIZE, PublicKey
from energybid.core.entries import ENTRY_MAX, ID_SIZE, UINT_MAX, Entry
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, SignedCheckpoint
from energybid.core.log import SPAN, Salts, seeds_for
from energybid.core.quantities import MANTISSA_MAX, MANTISSA_MIN, ClockState
from energybid.core.salt import SEED_SIZE
from energybid.core.tree import HASH_SIZE, Frontier, leaf_hash
from energybid.sync import columns

VERSION = 1
FRAME_MAX = 256 * 1024
"""Longest frame, bytes."""
ENTRIES_MAX = 65_536
"""Most entries of a batch."""
RAW_MAX = columns.RAW_MAX
DIGEST_SIZE = 16


class BatchTooLargeError(ValueError):
    """These entries do not fit one frame: end the batch at an earlier checkpoint."""


class Batch(NamedTuple):
    """A decoded frame; nothing in it is verified yet but its form."""

    epoch: bytes
    first: int
    """Sequence of the first entry."""
    end: int
    """Sequence after the last entry: the checkpoint's size."""
    seeds: tuple[tuple[int, bytes], ...]
    """(span, seed) pairs that cover [first, end)."""
    peaks: tuple[bytes, ...] | None
    """The frontier at ``first``, if the sender gave it."""
    entries: list[Entry]
    previous_size: int
    """Size of the checkpoint before; within [first, end]."""
    time_ms: int
    clock: int
    counter: int
    algorithm: int
    kid: bytes
    signature: bytes


class Replayed(NamedTuple):
    """A batch whose checkpoint verifies."""

    canonical: list[bytes]
    """Canonical bytes of the entries, in order."""
    frontier: Frontier
    """The tree at ``batch.end``."""
    checkpoint: SignedCheckpoint
    anchored: bool
    """The tree before the batch was ours. False: it was taken from the batch's own ``peaks``."""


def _digest(frame: bytes) -> bytes:
    return sha256(frame).digest()[:DIGEST_SIZE]


def encode_batch(
    *,
    first: int,
    entries: Sequence[Entry],
    checkpoint: SignedCheckpoint,
    salts: Salts,
    frontier: Frontier | None = None,
    memory: columns.Memory | None = None,
) -> bytes:
    """Frame of the entries [first, checkpoint.size).

    Args:
        first: Sequence of the first entry.
        entries: At least one; they end where the checkpoint does.
        checkpoint: Signed at the end of the entries; the one before it lies within them or at ``first``.
        salts: Of the epoch.
        frontier: The tree at ``first``, to be sent along when the head-end does not have it.
        memory: Of this gateway's batches before; see ``columns.encode``.

    Raises:
        BatchTooLargeError: More than ENTRIES_MAX entries, RAW_MAX bytes of columns or FRAME_MAX bytes in all.
        ValueError: The arguments do not belong together.
    """
    head = checkpoint.checkpoint
    if not entries or first + len(entries) != head.size or not first <= head.previous_size <= head.size:
        raise ValueError(f"a checkpoint of {head.previous_size} to {head.size} can not end {len(entries)} from {first}")
    if frontier is not None and frontier.size != first:
        raise ValueError(f"a frontier of size {frontier.size} can not begin a batch at {first}")
    if len(entries) > ENTRIES_MAX:
        raise BatchTooLargeError(f"{len(entries)} entries; a batch has at most {ENTRIES_MAX}")
    try:
        method, packed = columns.pack(columns.encode(entries, memory=memory))
    except columns.TooLargeError as error:
        raise BatchTooLargeError(str(error)) from None
    header = (
        head.epoch,
        first,
        len(entries),
        b"".join(seed for _, seed in seeds_for(salts, first, head.size)),
        b"".join(frontier.peaks) if frontier is not None and first else None,
        head.previous_size - first,
        head.time_ms,
        head.clock,
        head.counter,
        checkpoint.algorithm,
        checkpoint.kid,
        checkpoint.signature,
        method,
        packed,
    )
    frame = bytes((VERSION,)) + cbor.encode(header)
    if len(frame) + DIGEST_SIZE > FRAME_MAX:
        raise BatchTooLargeError(f"a frame of {len(frame) + DIGEST_SIZE} bytes; at most {FRAME_MAX} are allowed")
    return frame + _digest(frame)


def _uint(most: int, least: int = 0) -> Callable[[Any], bool]:
    return lambda x: type(x) is int and least <= x <= most


def _bytes(size: int) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, bytes) and len(x) == size


def _hashes(x: Any) -> bool:  # noqa: ANN401
    return isinstance(x, bytes) and len(x) % HASH_SIZE == 0


_HEADER: tuple[tuple[str, Callable[[Any], bool]], ...] = (
    ("epoch", _bytes(ID_SIZE)),
    ("first", _uint(UINT_MAX - ENTRIES_MAX)),
    ("count", _uint(ENTRIES_MAX, 1)),
    ("seeds", _hashes),
    ("peaks", lambda x: x is None or _hashes(x)),
    ("since", _uint(ENTRIES_MAX)),
    ("time_ms", _uint(MANTISSA_MAX, MANTISSA_MIN)),
    ("clock", _uint(ClockState.SYNCHRONISED)),
    ("counter", _uint(UINT_MAX, 1)),
    ("algorithm", _uint(MANTISSA_MAX, MANTISSA_MIN)),
    ("kid", _bytes(KID_SIZE)),
    ("signature", _bytes(SIGNATURE_SIZE)),
    ("method", _uint(255)),
    ("columns", lambda x: isinstance(x, bytes)),
)


def _split(joined: bytes, size: int) -> list[bytes]:
    return [joined[at : at + size] for at in range(0, len(joined), size)]


def _header(frame: bytes) -> list[Any]:
    """The header's fields, each within its bounds."""
    if len(frame) > FRAME_MAX:
        raise EvidenceError(f"batch of {len(frame)} bytes; at most {FRAME_MAX} are allowed")
    if not frame or frame[0] != VERSION:
        raise EvidenceError("not a batch of version 1")
    if _digest(frame[:-DIGEST_SIZE]) != frame[-DIGEST_SIZE:]:
        raise EvidenceError("batch: the digest does not fit; the frame was damaged on its way")
    item = cbor.decode(frame[1:-DIGEST_SIZE])
    if not isinstance(item, list) or len(item) != len(_HEADER):
        raise EvidenceError(f"batch: the header is not an array of {len(_HEADER)}")
    for value, (name, fits) in zip(item, _HEADER, strict=True):
        if not fits(value):
            raise EvidenceError(f"batch: {name} is out of its bounds")
    return item


def _seeds(first: int, end: int, joined: bytes) -> tuple[tuple[int, bytes], ...]:
    spans = range(first // SPAN, (end - 1) // SPAN + 1)
    if len(joined) != len(spans) * SEED_SIZE:
        raise EvidenceError(f"batch: {len(joined)} bytes of seeds for {len(spans)} spans of salts")
    return tuple(zip(spans, _split(joined, SEED_SIZE), strict=True))


def _peaks(first: int, joined: bytes | None) -> tuple[bytes, ...] | None:
    if joined is None:
        return None
    if not joined or len(joined) != first.bit_count() * HASH_SIZE:
        raise EvidenceError(f"batch: {len(joined)} bytes of peaks do not fit a tree of {first}")
    return tuple(_split(joined, HASH_SIZE))


def decode_batch(frame: bytes) -> Batch:
    """Read a frame; ``replay`` then verifies it.

    Raises:
        EvidenceError: Damaged, out of a bound, or not what ``encode_batch`` makes.
    """
    epoch, first, count, seeds, peaks, since, *rest, method, packed = _header(frame)
    if since > count:
        raise EvidenceError("batch: the checkpoint before ends beyond this one")
    entries = columns.decode(columns.unpack(method, packed, limit=RAW_MAX), limit=count)
    if len(entries) != count:
        raise EvidenceError(f"batch: {len(entries)} entries, and {count} in the header")
    end = first + count
    return Batch(epoch, first, end, _seeds(first, end, seeds), _peaks(first, peaks), entries, first + since, *rest)


def _start(batch: Batch, frontier: Frontier | None) -> tuple[Frontier, bool]:
    """(a tree at ``batch.first`` to append to, whether it is our own)."""
    if frontier is None and batch.first == 0:
        return Frontier(), True
    if frontier is None:
        if batch.peaks is None:
            raise EvidenceError(f"batch: starts at {batch.first} and carries no frontier to start from")
        return Frontier(batch.first, batch.peaks), False
    if frontier.size != batch.first:
        raise ValueError(f"a frontier of size {frontier.size} can not begin a batch at {batch.first}")
    if batch.peaks is not None and batch.peaks != frontier.peaks:
        raise EvidenceError(f"batch: its tree of the first {batch.first} entries is not the one known here")
    return frontier.copy(), True


def replay(
    batch: Batch,
    *,
    origin: str,
    frontier: Frontier | None,
    key_for: Callable[[bytes], PublicKey | None],
) -> Replayed:
    """Rebuild the canonical bytes and the tree, and verify the checkpoint's signature over its root.

    Args:
        batch: From ``decode_batch``.
        origin: ``tenant/gateway`` that the batch is said to come from.
        frontier: Our own tree of the first ``batch.first`` entries; it is not changed. None: start from the batch's
            own peaks (then ``anchored`` is False), or from nothing if it begins the epoch.
        key_for: The origin's log key with this kid, or None.

    Raises:
        EvidenceError: No such key, no frontier to start from, a frontier other than ours, or a signature that does
            not verify over what was rebuilt.
        ValueError: ``frontier`` is of another size than ``batch.first``.
    """
    tree, anchored = _start(batch, frontier)
    salts = Salts(seeds=batch.seeds)
    canonical = [salts.canonical(sequence, entry) for sequence, entry in enumerate(batch.entries, batch.first)]
    if max(map(len, canonical)) > ENTRY_MAX:
        raise EvidenceError(f"batch: an entry is longer than {ENTRY_MAX} bytes")
    since = batch.previous_size - batch.first
    for raw in canonical[:since]:
        tree.append(leaf_hash(raw))
    previous_root = tree.root()
    for raw in canonical[since:]:
        tree.append(leaf_hash(raw))
    checkpoint = Checkpoint(
        origin,
        batch.epoch,
        batch.end,
        tree.root(),
        batch.previous_size,
        previous_root,
        batch.time_ms,
        batch.clock,
        batch.counter,
    )
    return Replayed(canonical, tree, _verified(batch, checkpoint, key_for), anchored)


def _verified(batch: Batch, checkpoint: Checkpoint, key_for: Callable[[bytes], PublicKey | None]) -> SignedCheckpoint:
    """The checkpoint with the batch's signature, which holds."""
    key = key_for(batch.kid)
    if key is None:
        raise EvidenceError(f"batch: no log key {batch.kid.hex()} is known for {checkpoint.origin}")
    if key.algorithm != batch.algorithm:
        raise EvidenceError(f"batch: key {batch.kid.hex()} does not sign with algorithm {batch.algorithm}")
    signed = SignedCheckpoint(checkpoint, batch.algorithm, batch.kid, batch.signature)
    signed.verify(key)
    return signed
