"""Making proofs: from whole and from pruned trees exactly when it is possible; finding readings; degenerate sizes."""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence

import pytest
import stranger
import stranger_proof
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.disclosure import verify_continuation, verify_reading
from energybid.core.entries import Clock, Declaration, Entry, Epoch, Known, Reading, Start
from energybid.core.errors import EnergybidError, EvidenceError
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log
from energybid.core.prover import (
    LEAVES_AT_ONCE,
    Commit,
    Finder,
    Found,
    LostError,
    consistency,
    inclusion,
    prove_consistency,
    prove_reading,
)
from energybid.core.tree import (
    EMPTY_ROOT,
    Frontier,
    consistency_proof,
    inclusion_proof,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)

SIZE = 34
LEAVES = [leaf_hash(bytes([n])) for n in range(SIZE)]


class Kept:
    """A tree without its first leaves; with some frontiers."""

    def __init__(self, leaves: Sequence[bytes], first: int, frontiers: Sequence[int] = ()) -> None:
        self.first = first
        self.asked = 0
        self._leaves = leaves
        self._frontiers = []
        tree = Frontier()
        for size in range(len(leaves) + 1):
            if size == first or size in frontiers:
                self._frontiers.append(tree.copy())
            if size < len(leaves):
                tree.append(leaves[size])

    def leaves(self, first: int, end: int) -> list[bytes]:
        assert self.first <= first < end
        self.asked += end - first
        return list(self._leaves[first:end])

    def frontier(self, least: int, below: int) -> Frontier | None:
        assert 0 < least < below
        return next((f for f in self._frontiers if least <= f.size < below), None)


@functools.cache
def possible(first: int, low: int, high: int, pruned: int) -> bool:
    """Whether the hash of [low, high) follows from the frontier at ``pruned`` and the leaves after it; by its meaning.

    Independent of the prover: a hash is known, or made of the two hashes under it.
    """
    if (low, high) in peaks(pruned) or (high - low == 1 and low >= pruned):
        return True
    if high - low == 1:
        return False
    middle = low + next(1 << bit for bit in reversed(range(10)) if 1 << bit < high - low)
    return possible(first, low, middle, pruned) and possible(first, middle, high, pruned)


@functools.cache
def peaks(size: int) -> frozenset[tuple[int, int]]:
    found, low = set(), 0
    for bit in reversed(range(10)):
        if size & 1 << bit:
            found.add((low, low + (1 << bit)))
            low += 1 << bit
    return frozenset(found)


def path_spans(index: int, low: int, high: int) -> list[tuple[int, int]]:
    """The subtrees beside the leaf's way up (RFC 9162 §2.1.3.1, as it stands there)."""
    if high - low == 1:
        return []
    k = low + next(1 << bit for bit in reversed(range(10)) if 1 << bit < high - low)
    return [*path_spans(index, low, k), (k, high)] if index < k else [*path_spans(index, k, high), (low, k)]


def proof_spans(first: int, low: int, high: int, *, whole: bool) -> list[tuple[int, int]]:
    """The subtrees of SUBPROOF (RFC 9162 §2.1.4.1, as it stands there)."""
    if first == high:
        return [] if whole else [(low, high)]
    k = low + next(1 << bit for bit in reversed(range(10)) if 1 << bit < high - low)
    if first <= k:
        return [*proof_spans(first, low, k, whole=whole), (k, high)]
    return [*proof_spans(first, k, high, whole=False), (low, k)]


@pytest.mark.parametrize("size", range(1, SIZE))
def test_inclusion_proofs_from_pruned_trees_exactly_when_possible(size: int) -> None:
    for pruned, index in itertools.product(range(size + 1), range(size)):
        tree = Kept(LEAVES[:size], pruned)
        if all(possible(0, *span, pruned) for span in path_spans(index, 0, size)):
            proof = inclusion(tree, index, size)
            assert list(proof) == inclusion_proof(LEAVES[:size], index)
            assert stranger.included(LEAVES[index], index, size, proof) == root_of(LEAVES[:size])
        else:
            assert index < pruned, "every entry that is kept can be proven"
            with pytest.raises(LostError, match=rf"before {pruned}, .* ask the head-end"):
                inclusion(tree, index, size)


@pytest.mark.parametrize("size", range(1, SIZE))
def test_consistency_proofs_from_pruned_trees_exactly_when_possible(size: int) -> None:
    for pruned, first in itertools.product(range(size + 1), range(size + 1)):
        tree = Kept(LEAVES[:size], pruned)
        spans = proof_spans(first, 0, size, whole=True) if first > 0 else []
        if all(possible(0, *span, pruned) for span in spans):
            proof = consistency(tree, first, size)
            assert list(proof) == consistency_proof(LEAVES[:size], first)
        else:
            assert first < pruned, "every size from the first kept entry on can be proven"
            with pytest.raises(LostError):
                consistency(tree, first, size)


def test_frontiers_on_the_way_save_the_entries_between() -> None:
    size = 50_000
    leaves = [n.to_bytes(32, "big") for n in range(size)]
    tree = Kept(leaves, 0, range(100, size, 100))
    for index in (0, 31_234, 49_999):
        tree.asked = 0
        assert inclusion(tree, index, size) == tuple(inclusion_proof(leaves, index))
        assert tree.asked <= 17 * LEAVES_AT_ONCE, "a few for each level of the tree"
    bare = Kept(leaves, 0)
    assert inclusion(bare, 31_234, size) == tuple(inclusion_proof(leaves, 31_234))
    assert bare.asked < size, "each hash is made once"
    tree.asked = 0
    assert consistency(tree, 31_234, size) == tuple(consistency_proof(leaves, 31_234))
    assert tree.asked <= 17 * LEAVES_AT_ONCE, "a few for each level of the tree"


# ---------------------------------------------------------------- degenerate sizes, from RFC 9162 §2.1.3 and §2.1.4
# Our own vectors, of the kinds that implementations of the RFC get wrong: empty, one leaf, borders, lengths, roots.

ROOTS = [root_of(LEAVES[:size]) for size in range(10)]
H = LEAVES
BAD_INCLUSION = [
    # index, size, proof, root
    ("no leaf in an empty tree", 0, 0, [], EMPTY_ROOT),
    ("no leaf in an empty tree, its own hash as root", 0, 0, [], H[0]),
    ("index at the size", 1, 1, [], H[0]),
    ("index beyond the size", 2, 1, [H[0]], ROOTS[2]),
    ("index far beyond", 2**63, 1, [], H[0]),
    ("negative index", -1, 1, [], H[0]),
    ("size one with a proof", 0, 1, [H[1]], ROOTS[2]),
    ("size one with an empty hash", 0, 1, [b""], H[0]),
    ("size one, wrong root", 0, 1, [], H[1]),
    ("size one, root of the empty tree", 0, 1, [], EMPTY_ROOT),
    ("size two without a proof", 0, 2, [], H[0]),
    ("size two, proof too long", 0, 2, [H[1], H[2]], ROOTS[2]),
    ("the other leaf's index", 1, 2, [H[1]], ROOTS[2]),
    ("last leaf of an odd tree, proof too short", 4, 5, [], H[4]),
    ("last leaf of an odd tree, proof of a smaller size", 4, 5, inclusion_proof(H[:6], 4), ROOTS[5]),
    ("true proof, root of the next size", 2, 7, inclusion_proof(H[:7], 2), ROOTS[8]),
    ("true proof and root, wrong size", 2, 9, inclusion_proof(H[:8], 2), ROOTS[8]),
    ("true proof in reverse", 2, 8, inclusion_proof(H[:8], 2)[::-1], ROOTS[8]),
    ("the root itself as the only hash", 0, 2, [ROOTS[2]], ROOTS[2]),
    ("empty root", 0, 2, [H[1]], b""),
]


@pytest.mark.parametrize(
    ("index", "size", "proof", "root"), [case[1:] for case in BAD_INCLUSION], ids=[c[0] for c in BAD_INCLUSION]
)
def test_degenerate_inclusion_proofs_are_refused(index: int, size: int, proof: list[bytes], root: bytes) -> None:
    leaf = H[index] if 0 <= index < len(H) else H[0]
    with pytest.raises(EvidenceError):
        verify_inclusion(leaf, index, size, proof, root)
    with contextlib.suppress(stranger.Refused):
        assert stranger.included(leaf, index, size, proof) != root


BAD_CONSISTENCY = [
    # first, second, proof, first root, second root
    ("first above second", 2, 1, [], ROOTS[2], ROOTS[1]),
    ("first above second, with their true proof", 3, 2, consistency_proof(H[:3], 2), ROOTS[3], ROOTS[2]),
    ("negative first", -1, 1, [], EMPTY_ROOT, ROOTS[1]),
    ("both empty, roots differ", 0, 0, [], EMPTY_ROOT, ROOTS[1]),
    ("both empty, a proof", 0, 0, [EMPTY_ROOT], EMPTY_ROOT, EMPTY_ROOT),
    ("first empty, a proof", 0, 1, [ROOTS[1]], EMPTY_ROOT, ROOTS[1]),
    ("first empty, wrong first root", 0, 1, [], ROOTS[1], ROOTS[1]),
    ("same size, roots differ", 1, 1, [], ROOTS[1], H[1]),
    ("same size, a proof", 5, 5, [H[0]], ROOTS[5], ROOTS[5]),
    ("one to two without a proof", 1, 2, [], ROOTS[1], ROOTS[2]),
    ("one to two without a proof, same roots", 1, 2, [], ROOTS[1], ROOTS[1]),
    ("one to two, proof too long", 1, 2, [H[1], H[2]], ROOTS[1], ROOTS[2]),
    ("a power of two, first root in the proof", 4, 7, [ROOTS[4], *consistency_proof(H[:7], 4)], ROOTS[4], ROOTS[7]),
    ("not a power of two, proof of one hash", 3, 4, [H[2]], ROOTS[3], ROOTS[4]),
    ("proof too short", 6, 8, consistency_proof(H[:8], 6)[:-1], ROOTS[6], ROOTS[8]),
    ("proof too long", 6, 8, [*consistency_proof(H[:8], 6), H[0]], ROOTS[6], ROOTS[8]),
    ("proof in reverse", 6, 8, consistency_proof(H[:8], 6)[::-1], ROOTS[6], ROOTS[8]),
    ("roots exchanged", 6, 8, consistency_proof(H[:8], 6), ROOTS[8], ROOTS[6]),
    ("wrong first root", 6, 8, consistency_proof(H[:8], 6), ROOTS[5], ROOTS[8]),
    ("wrong second root", 6, 8, consistency_proof(H[:8], 6), ROOTS[6], ROOTS[9]),
    ("wrong second size", 6, 9, consistency_proof(H[:8], 6), ROOTS[6], ROOTS[8]),
    ("a hash of no length", 1, 2, [b""], ROOTS[1], ROOTS[2]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "proof", "first_root", "second_root"),
    [case[1:] for case in BAD_CONSISTENCY],
    ids=[case[0] for case in BAD_CONSISTENCY],
)
def test_degenerate_consistency_proofs_are_refused(
    first: int, second: int, proof: list[bytes], first_root: bytes, second_root: bytes
) -> None:
    with pytest.raises(EvidenceError):
        verify_consistency(first, second, proof, first_root, second_root)
    assert not stranger_proof.continues(first, second, proof, first_root, second_root)


@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_degenerate_consistency_proofs_that_hold(size: int) -> None:
    verify_consistency(0, size, [], EMPTY_ROOT, ROOTS[size])
    verify_consistency(size, size, [], ROOTS[size], ROOTS[size])


def test_no_proof_is_made_of_a_leaf_outside_the_tree() -> None:
    assert inclusion(Kept(LEAVES[:1], 0), 0, 1) == ()
    assert consistency(Kept(LEAVES[:1], 0), 0, 1) == consistency(Kept(LEAVES[:1], 0), 1, 1) == ()


# ---------------------------------------------------------------- histories

KEY, HEADEND = PrivateKey.from_entropy(b"k" * 48), PrivateKey.from_entropy(b"h" * 48)
OBIS, OTHER = bytes(6), b"\1" * 6


class Memory:
    """A history in memory, the first entries of which may be pruned."""

    def __init__(self) -> None:
        self.origin, self.epoch = "t/g", bytes(16)
        self.log = Log(
            origin=self.origin, epoch=self.epoch, secret=bytes(32), signer=KEY, frontier=Frontier(), counter=0
        )
        self.kept: list[Known] = []
        self.cuts: list[tuple[int, int, int | None, bytes]] = []
        self.first = 0
        self.receipt: tuple[int, bytes] | None = None

    def commit(self, time_ms: int, *entries: Known) -> None:
        first = self.log.size
        for entry in entries:
            self.log.append(entry)
            self.kept.append(entry)
        since = self.cuts[-1][1] if self.cuts else None
        self.cuts.append((self.log.size, time_ms, since, self.log.checkpoint(time_ms, 2).message()))
        assert first < self.log.size

    def receipted(self, size: int, **changed: object) -> None:
        root = root_of([leaf_hash(self.raw(n)) for n in range(size)])
        receipt = Receipt(self.origin, self.epoch, size, root, 99)._replace(**changed)
        self.receipt = size, sign_receipt(receipt, HEADEND)

    def raw(self, sequence: int) -> bytes:
        return self.log.salts.canonical(sequence, self.kept[sequence])

    # what the prover asks

    def leaves(self, first: int, end: int) -> list[bytes]:
        assert first >= self.first
        return [leaf_hash(self.raw(n)) for n in range(first, end)]

    def frontier(self, least: int, below: int) -> Frontier | None:
        if not least <= self.first < below:
            return None
        frontier = Frontier()
        for sequence in range(self.first):
            frontier.append(leaf_hash(self.raw(sequence)))
        return frontier

    def commits(self) -> Iterator[Commit]:
        begin = 0
        found = []
        for end, time_ms, since, _ in self.cuts:
            if begin >= self.first:
                found.append(Commit(begin, end, since if begin > self.first else None, time_ms))
            begin = end
        return reversed(found)

    def entries(self, first: int, end: int) -> Iterator[tuple[int, Entry]]:
        assert first >= self.first
        return ((n, self.kept[n]) for n in range(first, end))

    def canonical(self, sequence: int) -> bytes:
        assert sequence >= self.first
        return self.raw(sequence)

    def checkpoint(self, size: int) -> bytes | None:
        return next((message for end, *_, message in self.cuts if end == size), None)

    def signed(self, sequence: int) -> tuple[bytes, bytes | None]:
        if self.receipt and sequence < self.receipt[0]:
            message = self.checkpoint(self.receipt[0])
            assert message
            return message, self.receipt[1]
        return next(message for end, *_, message in self.cuts if sequence < end), None


def declared(meter: str, *groups: bytes) -> Declaration:
    return Declaration(meter, "p", bytes(32), None, tuple((1000, ((code, "W", 0, False),)) for code in groups))


def read(declaration: int, time_ms: int, group: int = 0) -> Reading:
    return Reading(declaration, group, time_ms, 1, 2, 1, time_ms, (time_ms % 1000,), None)


@pytest.fixture
def history() -> Memory:
    """Two meters, one with two groups; commits every 10 s."""
    history = Memory()
    history.commit(
        100_000, Epoch("t/g", 0, None), Start(bytes(16), 0, 0, 2, "v", bytes(32)), declared("a", OBIS, OTHER),
        declared("b", OBIS),
    )  # fmt: skip
    for at in range(100_000, 400_000, 10_000):
        history.commit(at + 10_000, read(2, at + 1), read(2, at + 2, 1), read(3, at + 3))
    return history


def found_at(history: Memory, at_ms: int | None, meter: str = "a", quantity: bytes | None = None) -> tuple[int, int]:
    found = Finder(history, meter, quantity).find(at_ms)
    assert found
    assert found.declaration.meter == meter
    return found.sequence, found.reading.time_ms


def test_finds_the_reading_at_or_before_a_time(history: Memory) -> None:
    assert found_at(history, 100_001) == (4, 100_001)
    assert found_at(history, 100_002) == (5, 100_002)
    assert found_at(history, 100_002, quantity=OBIS) == (4, 100_001)
    assert found_at(history, 150_000) == (17, 140_002)
    assert found_at(history, 150_000, "b") == (18, 140_003)
    assert found_at(history, None) == (92, 390_002)
    assert found_at(history, None, quantity=OBIS) == (91, 390_001)
    assert Finder(history, "a").find(100_000) is None
    finder = Finder(history, "c")
    assert finder.find() is None
    assert finder.meters == {"a", "b"}
    assert not finder.lost


def test_finds_readings_whatever_the_clock_did(history: Memory) -> None:
    """By their own times, also behind steps in both directions; of two at one time the later one."""
    everything = list(history.kept)

    def best(at_ms: int) -> tuple[int, int]:
        times = [(e.time_ms, n) for n, e in enumerate(everything) if isinstance(e, Reading) and e.declaration == 2]
        time_ms, sequence = max(pair for pair in times if pair[0] <= at_ms)
        return sequence, time_ms

    for at in (1_000_000, 5_000, 250_000, 100_000):
        batch = [Clock(1, 1, at - 1, at, 2), read(2, at + 1), read(2, at + 1), read(2, at + 4_000)]
        history.commit(at + 5_000, *batch)
        everything += batch
    for at_ms in (9_000, 5_001, 104_000, 120_000, 250_001, 250_500, 254_000, 390_002, 999_999, 1_000_001, 2_000_000):
        assert found_at(history, at_ms) == best(at_ms)


def test_old_commits_are_not_opened(history: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    entries = Memory.entries

    def counted(self: Memory, first: int, end: int) -> Iterator[tuple[int, Entry]]:
        opened.append(first)
        return entries(self, first, end)

    monkeypatch.setattr(Memory, "entries", counted)
    assert found_at(history, 390_500, "b")[1] == 390_003
    assert len(opened) < 14, "30 commits; within a minute of the one found"


def test_what_was_pruned_is_said_to_be_lost(history: Memory) -> None:
    history.first = 4
    finder = Finder(history, "a")
    assert finder.find() is None
    assert finder.lost, "the declaration went"
    with pytest.raises(LostError, match="declaration 2 of reading 7 is not kept"):
        prove_reading(history, 7)
    with pytest.raises(LostError, match="no checkpoint at 5 entries"):
        prove_consistency(history, 5, 7)


# ---------------------------------------------------------------- proofs of histories


def trusted(kid: bytes) -> PublicKey | None:
    return {KEY.kid: KEY.public, HEADEND.kid: HEADEND.public}.get(kid)


@pytest.mark.parametrize("size", [None, 7, 10, 94])
def test_every_reading_can_be_proven(history: Memory, size: int | None) -> None:
    if size:
        history.receipted(size)
    for sequence in range(4, 94):
        proven = verify_reading(prove_reading(history, sequence), trusted)
        assert proven.reading == history.kept[sequence]
        assert (proven.receipt is not None) == (size is not None and sequence < size)


def test_every_two_checkpoints_can_be_proven(history: Memory) -> None:
    for first, second in itertools.combinations_with_replacement([end for end, *_ in history.cuts], 2):
        proven = verify_continuation(prove_consistency(history, first, second), trusted)
        assert (proven.first.size, proven.second.size) == (first, second)


def test_a_declaration_made_again_survives_pruning(history: Memory) -> None:
    history.commit(420_000, declared("a", OBIS), read(94, 410_000))
    history.first = 94
    assert verify_reading(prove_reading(history, 95), trusted).sequence == 95
    assert isinstance(Finder(history, "a").find(), Found)


def test_what_is_stored_is_checked_before_it_is_handed_out(history: Memory) -> None:
    history.receipted(10, root=bytes(32))
    with pytest.raises(EvidenceError, match="for another log"):
        prove_reading(history, 5)
    history.receipt = None
    with pytest.raises(EvidenceError, match="not a declaration and a reading"):
        prove_reading(history, 3)
    history.kept[5] = read(2, 100_099, 1)
    with pytest.raises(EvidenceError, match="does not lead to the root"):
        prove_reading(history, 5)
    with pytest.raises(EvidenceError, match="not shown to be a prefix"):
        prove_consistency(history, 7, 13)


def test_lost_is_no_fault_of_evidence() -> None:
    assert issubclass(LostError, EnergybidError)
    assert not issubclass(LostError, EvidenceError)
