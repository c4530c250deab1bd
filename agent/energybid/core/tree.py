"""RFC 9162 §2.1 Merkle tree: hashing, a frontier to append with, inclusion and consistency proofs.

Appending needs only the *frontier*: the roots of the perfect subtrees that make up the tree, largest first, one for
each bit set in the size. Old hashes are never needed. All hashes are 32-byte SHA-256.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256

from energybid.core.errors import EvidenceError

HASH_SIZE = 32
EMPTY_ROOT = sha256(b"").digest()
"""Root of a tree without leaves (RFC 9162 §2.1.1)."""


def leaf_hash(canonical: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry), RFC 9162 §2.1.1."""
    return sha256(b"\x00" + canonical).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right), RFC 9162 §2.1.1."""
    return sha256(b"\x01" + left + right).digest()


def _fold(peaks: Sequence[bytes]) -> bytes:
    """Root over perfect subtrees, largest first."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


class Frontier:
    """What must be kept of a tree to append to it: its size and its perfect subtrees' roots."""

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        """Resume a tree.

        Args:
            size: Number of leaves, ≥ 0.
            peaks: 32-byte roots of the perfect subtrees, largest first; one for each bit set in ``size``.

        Raises:
            EvidenceError: The peaks do not fit the size.
        """
        self.size = size
        self._peaks = list(peaks)
        if size < 0 or len(self._peaks) != size.bit_count() or any(len(p) != HASH_SIZE for p in self._peaks):
            raise EvidenceError(f"a frontier of size {size} has {size.bit_count()} hashes of 32 bytes")

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """Roots of the perfect subtrees, largest first."""
        return tuple(self._peaks)

    def copy(self) -> "Frontier":
        """An independent frontier at the same size."""
        return Frontier(self.size, self._peaks)

    def append(self, leaf: bytes) -> None:
        """Add one leaf hash: amortised one node hash."""
        peaks = self._peaks
        size = self.size
        self.size = size + 1
        while size & 1:
            leaf = sha256(b"\x01" + peaks.pop() + leaf).digest()
            size >>= 1
        peaks.append(leaf)

    def root(self) -> bytes:
        """Root hash of the tree so far."""
        return _fold(self._peaks)


def root_of(leaves: Sequence[bytes]) -> bytes:
    """Root over leaf hashes."""
    frontier = Frontier()
    for leaf in leaves:
        frontier.append(leaf)
    return frontier.root()


def split(size: int) -> int:
    """Largest power of two smaller than ``size`` (≥ 2)."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """PATH(m, D[n]) of RFC 9162 §2.1.3.1, sibling of the leaf first.

    Args:
        leaves: All leaf hashes of the tree.
        index: 0-based leaf index, smaller than the tree's size.
    """
    size = len(leaves)
    if not 0 <= index < size:
        raise ValueError(f"no leaf {index} in a tree of {size}")
    if size == 1:
        return []
    k = split(size)
    if index < k:
        return [*inclusion_proof(leaves[:k], index), root_of(leaves[k:])]
    return [*inclusion_proof(leaves[k:], index - k), root_of(leaves[:k])]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> None:
    """RFC 9162 §2.1.3.2.

    Args:
        leaf: Leaf hash.
        index: 0-based leaf index.
        size: Tree size.
        proof: Hashes of PATH, sibling of the leaf first.
        root: The tree's root.

    Raises:
        EvidenceError: The proof does not lead to the root.
    """
    if not 0 <= index < size:
        raise EvidenceError(f"no leaf {index} in a tree of {size}")
    _hashes(leaf, root)
    node, last, hashed = index, size - 1, leaf
    for sibling in proof:
        if last == 0 or len(sibling) != HASH_SIZE:
            raise EvidenceError("inclusion proof has the wrong length")
        if node & 1 or node == last:
            hashed = node_hash(sibling, hashed)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            hashed = node_hash(hashed, sibling)
        node >>= 1
        last >>= 1
    if last or hashed != root:
        raise EvidenceError(f"inclusion proof of leaf {index} does not lead to the root of size {size}")


def _hashes(*items: bytes) -> None:
    """Refuse what is no hash: a proof without a path shows of leaf and root only that they are the same bytes."""
    if any(len(item) != HASH_SIZE for item in items):
        raise EvidenceError(f"a hash has {HASH_SIZE} bytes")


def consistency_proof(leaves: Sequence[bytes], first: int) -> list[bytes]:
    """PROOF(m, D[n]) of RFC 9162 §2.1.4.1 between the first ``first`` leaves and all of them.

    Args:
        leaves: All leaf hashes of the larger tree.
        first: Size of the smaller tree, 0 to ``len(leaves)``; at both ends the proof is empty.
    """
    if not 0 <= first <= len(leaves):
        raise ValueError(f"no tree of {first} inside one of {len(leaves)}")
    if first in {0, len(leaves)}:
        return []
    return _subproof(leaves, first, whole=True)


def _subproof(leaves: Sequence[bytes], first: int, *, whole: bool) -> list[bytes]:
    if first == len(leaves):
        return [] if whole else [root_of(leaves)]
    k = split(len(leaves))
    if first <= k:
        return [*_subproof(leaves[:k], first, whole=whole), root_of(leaves[k:])]
    return [*_subproof(leaves[k:], first - k, whole=False), root_of(leaves[:k])]


def verify_consistency(first: int, second: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes) -> None:
    """RFC 9162 §2.1.4.2: the tree of ``first`` leaves is a prefix of the tree of ``second``.

    Raises:
        EvidenceError: It is not, or the proof does not show it.
    """
    if not 0 <= first <= second:
        raise EvidenceError(f"a tree of {first} can not be a prefix of one of {second}")
    if first == 0 < second:
        _hashes(second_root)
    if first in {0, second}:
        if proof or (first == 0 and first_root != EMPTY_ROOT) or (first == second and first_root != second_root):
            raise EvidenceError(f"sizes {first} and {second}: roots differ or the proof is not empty")
        return
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    if not path or any(len(p) != HASH_SIZE for p in path):
        raise EvidenceError("consistency proof has the wrong length")
    if _climb(path, first - 1, second - 1) != (first_root, second_root):
        raise EvidenceError(f"the tree of {first} is not shown to be a prefix of the tree of {second}")


def _climb(path: Sequence[bytes], node: int, last: int) -> tuple[bytes, bytes]:
    """Roots of the smaller and the larger tree that a consistency path leads to."""
    while node & 1:
        node >>= 1
        last >>= 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            raise EvidenceError("consistency proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, sibling)
        node >>= 1
        last >>= 1
    if last:
        raise EvidenceError("consistency proof is too short")
    return old, new
