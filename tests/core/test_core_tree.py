"""The tree: RFC 9162 §2.1 against its recursive definitions, known vectors, and every mutation of a proof refused."""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256

import golden_core
import pytest
import stranger
from energybid.core.errors import EvidenceError
from energybid.core.tree import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    node_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from hypothesis import given
from hypothesis import strategies as st

# The reference tree of the Certificate Transparency projects (RFC 6962 and RFC 9162 hash alike): leaf inputs and the
# root of each prefix, as their tests have carried them since 2013.
REFERENCE_LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
REFERENCE_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
SIZE = 64
LEAVES = [leaf_hash(bytes([n])) for n in range(SIZE)]


@cache
def mth(start: int, end: int) -> bytes:
    """MTH of RFC 9162 §2.1.1 over LEAVES[start:end], as it is written there."""
    if start == end:
        return sha256(b"").digest()
    if end - start == 1:
        return LEAVES[start]
    k = largest_power_below(end - start)
    return sha256(b"\x01" + mth(start, start + k) + mth(start + k, end)).digest()


def largest_power_below(n: int) -> int:
    return max(1 << bit for bit in range(n.bit_length()) if 1 << bit < n)


def path(m: int, start: int, end: int) -> list[bytes]:
    """PATH of RFC 9162 §2.1.3.1."""
    if end - start == 1:
        return []
    k = largest_power_below(end - start)
    if m < k:
        return [*path(m, start, start + k), mth(start + k, end)]
    return [*path(m - k, start + k, end), mth(start, start + k)]


def subproof(m: int, start: int, end: int, *, whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 9162 §2.1.4.1."""
    if m == end - start:
        return [] if whole else [mth(start, end)]
    k = largest_power_below(end - start)
    if m <= k:
        return [*subproof(m, start, start + k, whole=whole), mth(start + k, end)]
    return [*subproof(m - k, start + k, end, whole=False), mth(start, start + k)]


def test_reference_tree() -> None:
    leaves = [leaf_hash(bytes.fromhex(leaf)) for leaf in REFERENCE_LEAVES]
    assert [root_of(leaves[:n]).hex() for n in range(9)] == REFERENCE_ROOTS
    # RFC 9162 §2.1.5 draws the tree of seven and names its proofs.
    a, b, c, d, e, f, j = leaves[:7]
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l_ = node_hash(g, h), node_hash(i, j)
    seven = leaves[:7]
    assert root_of(seven) == node_hash(k, l_)
    assert inclusion_proof(seven, 0) == [b, h, l_]
    assert inclusion_proof(seven, 3) == [c, g, l_]
    assert inclusion_proof(seven, 4) == [f, j, k]
    assert inclusion_proof(seven, 6) == [i, k]
    assert consistency_proof(seven, 3) == [c, d, g, l_]
    assert consistency_proof(seven, 4) == [l_]
    assert consistency_proof(seven, 6) == [i, j, k]


@pytest.mark.parametrize("size", range(SIZE + 1))
def test_frontier_is_the_recursive_tree(size: int) -> None:
    frontier = Frontier()
    for leaf in LEAVES[:size]:
        frontier.append(leaf)
    assert (frontier.size, frontier.root()) == (size, mth(0, size))
    assert frontier.root() == stranger.root(LEAVES[:size])
    bits = [1 << bit for bit in reversed(range(7)) if size & 1 << bit]
    starts = [sum(bits[:n]) for n in range(len(bits))]
    assert frontier.peaks == tuple(mth(start, start + bit) for start, bit in zip(starts, bits, strict=True))


@given(st.integers(0, SIZE), st.integers(0, SIZE))
def test_a_resumed_frontier_goes_on_and_the_first_stays(first: int, second: int) -> None:
    first, second = sorted((first, second))
    frontier = Frontier()
    for leaf in LEAVES[:first]:
        frontier.append(leaf)
    resumed = Frontier(first, frontier.peaks)
    copied = frontier.copy()
    for leaf in LEAVES[first:second]:
        resumed.append(leaf)
        copied.append(leaf)
    assert resumed.root() == copied.root() == mth(0, second)
    assert (frontier.size, frontier.root()) == (first, mth(0, first))


@pytest.mark.parametrize(
    ("size", "peaks"),
    [(-1, []), (0, [bytes(32)]), (1, []), (2, [bytes(32)] * 2), (3, [bytes(32)] * 3), (1, [bytes(31)])],
)
def test_refuses_peaks_that_do_not_fit(size: int, peaks: list[bytes]) -> None:
    with pytest.raises(EvidenceError, match="hashes of 32 bytes"):
        Frontier(size, peaks)


def test_a_huge_tree_goes_on() -> None:
    size = 2**62 + 2**61 - 1
    frontier = Frontier(size, [bytes([n]) * 32 for n in range(size.bit_count())])
    frontier.append(bytes(32))
    assert (frontier.size, len(frontier.peaks)) == (size + 1, 2)


@pytest.mark.parametrize("size", range(1, SIZE + 1))
def test_inclusion_proofs(size: int) -> None:
    for index in range(size):
        proof = inclusion_proof(LEAVES[:size], index)
        assert proof == path(index, 0, size)
        verify_inclusion(LEAVES[index], index, size, proof, mth(0, size))
        assert stranger.included(LEAVES[index], index, size, proof) == mth(0, size)


@pytest.mark.parametrize("size", range(SIZE + 1))
def test_consistency_proofs(size: int) -> None:
    for first in range(size + 1):
        proof = consistency_proof(LEAVES[:size], first)
        assert proof == ([] if first == 0 else subproof(first, 0, size, whole=True))
        verify_consistency(first, size, proof, mth(0, first), mth(0, size))


def refused(check: Callable[[], None]) -> bool:
    try:
        check()
    except EvidenceError:
        return True
    return False


def flips(data: bytes) -> Iterator[bytes]:
    number = int.from_bytes(data, "big")
    return ((number ^ 1 << bit).to_bytes(len(data), "big") for bit in range(8 * len(data)))


def altered(proof: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Every single-bit change of a proof, and every proof longer, shorter, cut or turned around."""
    for position, node in enumerate(proof):
        for flipped in flips(node):
            yield [*proof[:position], flipped, *proof[position + 1 :]]
        yield [*proof[:position], *proof[position + 1 :]]
        yield [*proof[:position], node, *proof[position:]]
        yield [*proof[:position], node[:-1], *proof[position + 1 :]]
        yield [*proof[:position], node + b"\0", *proof[position + 1 :]]
    yield [*proof, bytes(32)]
    yield [*proof, b""]
    if len(proof) > 1:
        yield [*reversed(proof)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 11])
def test_refuses_every_changed_inclusion_proof(size: int) -> None:
    root = mth(0, size)
    for index in range(size):
        leaf, proof = LEAVES[index], path(index, 0, size)
        for changed in altered(proof):
            assert refused(lambda p=changed, i=index, h=leaf: verify_inclusion(h, i, size, p, root))
        for flipped in flips(leaf):
            assert refused(lambda h=flipped, i=index, p=proof: verify_inclusion(h, i, size, p, root))
        for flipped in flips(root):
            assert refused(lambda r=flipped, i=index, p=proof, h=leaf: verify_inclusion(h, i, size, p, r))
        for other in {-1, *range(size + 2)} - {index}:
            assert refused(lambda i=other, p=proof, h=leaf: verify_inclusion(h, i, size, p, root))


@pytest.mark.parametrize("second", [1, 2, 3, 5, 6, 7, 8, 11])
def test_refuses_every_changed_consistency_proof(second: int) -> None:
    for first in range(second + 1):
        proof = consistency_proof(LEAVES[:second], first)
        roots = mth(0, first), mth(0, second)
        for changed in altered(proof):
            assert refused(lambda p=changed, f=first, r=roots: verify_consistency(f, second, p, *r))
        for flipped in flips(roots[0]):
            assert refused(lambda r=flipped, f=first, p=proof, s=roots[1]: verify_consistency(f, second, p, r, s))
        if first:
            for flipped in flips(roots[1]):
                assert refused(lambda r=flipped, f=first, p=proof, s=roots[0]: verify_consistency(f, second, p, s, r))


def test_a_tree_is_no_prefix_of_a_smaller_one() -> None:
    assert refused(lambda: verify_consistency(5, 4, [], mth(0, 5), mth(0, 4)))
    assert refused(lambda: verify_consistency(-1, 4, [], EMPTY_ROOT, mth(0, 4)))


def test_makers_of_proofs_refuse_places_outside_the_tree() -> None:
    for index in (-1, 4):
        with pytest.raises(ValueError, match="no leaf"):
            inclusion_proof(LEAVES[:4], index)
    for first in (-1, 5):
        with pytest.raises(ValueError, match="no tree"):
            consistency_proof(LEAVES[:4], first)


def test_golden_tree() -> None:
    tree = golden_core.read("tree")
    leaves, roots = tree["leaves"], tree["roots"]
    frontier = Frontier()
    for size, (root, peaks) in enumerate(zip(roots, tree["frontiers"], strict=True)):
        assert (frontier.root(), frontier.peaks) == (root, peaks)
        assert Frontier(size, peaks).root() == root
        if size < len(leaves):
            frontier.append(leaves[size])
    for case in tree["inclusion"]:
        assert inclusion_proof(leaves[: case["size"]], case["index"]) == list(case["proof"])
        verify_inclusion(leaves[case["index"]], case["index"], case["size"], case["proof"], roots[case["size"]])
    for case in tree["consistency"]:
        first, second = case["first"], case["second"]
        assert consistency_proof(leaves[:second], first) == list(case["proof"])
        verify_consistency(first, second, case["proof"], roots[first], roots[second])


def test_refuses_true_hashes_under_false_sizes() -> None:
    """Roots do not hold the size: only the length of the path does."""
    assert refused(lambda: verify_inclusion(LEAVES[1], 0, 1, [LEAVES[0]], mth(0, 2)))
    assert refused(lambda: verify_inclusion(LEAVES[0], 0, 4, [LEAVES[1]], mth(0, 2)))
    assert refused(lambda: verify_consistency(1, 4, [LEAVES[1]], mth(0, 1), mth(0, 2)))
    assert refused(lambda: verify_consistency(3, 4, consistency_proof(LEAVES[:8], 7), mth(0, 7), mth(0, 8)))
    assert refused(lambda: verify_consistency(7, 8, consistency_proof(LEAVES[:4], 3), mth(0, 3), mth(0, 4)))


def test_refuses_hashes_joined_in_one() -> None:
    assert refused(lambda: verify_inclusion(b"", 1, 2, [LEAVES[0] + LEAVES[1]], mth(0, 2)))


@pytest.mark.parametrize("item", [b"", b"x", bytes(31), bytes(33)])
def test_what_is_no_hash_is_no_leaf_and_no_root(item: bytes) -> None:
    """A tree of one leaf has an empty path: equal bytes of another length would pass for it."""
    with pytest.raises(EvidenceError, match="32 bytes"):
        verify_inclusion(item, 0, 1, [], item)
    with pytest.raises(EvidenceError, match="32 bytes"):
        verify_consistency(0, 1, [], EMPTY_ROOT, item)
