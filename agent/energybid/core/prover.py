"""Making proofs from stored history, pruned or whole: which hashes are needed, and what they are made of.

A proof needs the hashes of a few subtrees. Each is looked up where a kept frontier has it, else put together from its
halves, down to the entries: so a proof costs the hashes of the entries between two kept frontiers, not of the log.
What was pruned left its frontier at the first kept entry; with it, every inclusion proof of a kept entry can be made,
and every consistency proof from the size at which the kept part begins on (docs/formats.md §13.4). Pure: the history is
a port.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from energybid.core import cose
from energybid.core.disclosure import ConsistencyProof, Disclosed, EntryProof, ReadingProof, explained, same_tree
from energybid.core.entries import Declaration, Entry, Reading, parse
from energybid.core.errors import EnergybidError
from energybid.core.evidence import Checkpoint, parse_checkpoint, parse_receipt
from energybid.core.tree import (
    Frontier,
    leaf_hash,
    node_hash,
    root_of,
    split,
    verify_consistency,
    verify_inclusion,
)

LEAVES_AT_ONCE = 512
"""A subtree of so many leaves, or fewer, is made from its leaves; a larger one is looked for in kept frontiers."""
STRAY_MS = 60_000
"""How far a reading's time may lie outside the times of the checkpoints around it, the clock not stepping twice."""

Span = tuple[int, int]
"""Leaves [first, end)."""


class LostError(EnergybidError):
    """What is asked for was pruned here, or never was here: the head-end has all of it."""


class Commit(NamedTuple):
    """Entries [first, end), signed together."""

    first: int
    end: int
    since_ms: int | None
    """Time of the checkpoint before; None where that is not known."""
    time_ms: int
    """Time of the checkpoint at the end."""


class Tree(Protocol):
    """The part of a tree that is kept."""

    @property
    def first(self) -> int:
        """Sequence of the first entry that is kept, together with all that follow."""

    def leaves(self, first: int, end: int) -> list[bytes]:
        """Hashes of kept entries."""

    def frontier(self, least: int, below: int) -> Frontier | None:
        """A kept frontier of a size in [least, below), if there is one; the one at ``first`` is."""


class History(Tree, Protocol):
    """One epoch of a log as a journal or a head-end keeps it."""

    @property
    def origin(self) -> str:
        """``tenant/gateway``."""

    @property
    def epoch(self) -> bytes:
        """The epoch's id."""

    def commits(self) -> Iterator[Commit]:
        """All that are kept, newest first."""

    def entries(self, first: int, end: int) -> Iterator[tuple[int, Entry]]:
        """Kept entries with their sequence."""

    def canonical(self, sequence: int) -> bytes:
        """Canonical bytes of a kept entry."""

    def checkpoint(self, size: int) -> bytes | None:
        """COSE message of the checkpoint at exactly this size, if it is kept."""

    def signed(self, sequence: int) -> tuple[bytes, bytes | None]:
        """COSE messages: a checkpoint that covers an entry, and the receipt for the same tree if there is one.

        Raises:
            LostError: No checkpoint that covers it is kept.
        """


# ---------------------------------------------------------------- hashes


def inclusion_spans(index: int, size: int) -> list[Span]:
    """The subtrees of PATH(index, D[size]) of RFC 9162 §2.1.3.1, sibling of the leaf first."""
    spans: list[Span] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + split(high - low)
        spans.append((middle, high) if index < middle else (low, middle))
        low, high = (low, middle) if index < middle else (middle, high)
    return spans[::-1]


def consistency_spans(first: int, size: int) -> list[Span]:
    """The subtrees of PROOF(first, D[size]) of RFC 9162 §2.1.4.1; none if ``first`` is 0 or ``size``."""
    spans: list[Span] = []
    low, high = 0, size
    while first not in {0, high}:
        middle = low + split(high - low)
        spans.append((middle, high) if first <= middle else (low, middle))
        low, high = (low, middle) if first <= middle else (middle, high)
    return [(low, high), *spans[::-1]] if low else spans[::-1]


def subtree(tree: Tree, first: int, end: int) -> bytes:
    """Hash of the subtree over the leaves [first, end).

    Args:
        tree: What is kept.
        first: A multiple of the least power of two that is not below the number of leaves.
        end: Above ``first``.

    Raises:
        LostError: It can not be made from what is kept.
    """
    width = end - first
    if width & width - 1 == 0 and first % (2 * width) == 0:
        kept = tree.frontier(end, end + width)  # in every tree of these sizes the subtree is a peak
        if kept is not None:
            return kept.peaks[(kept.size >> width.bit_length()).bit_count()]
    if first >= tree.first and width <= LEAVES_AT_ONCE:
        return root_of(tree.leaves(first, end))
    if width == 1:
        raise LostError(f"the proof needs entries before {tree.first}, which are not kept here: ask the head-end")
    middle = first + split(width)
    return node_hash(subtree(tree, first, middle), subtree(tree, middle, end))


def inclusion(tree: Tree, index: int, size: int) -> tuple[bytes, ...]:
    """Inclusion proof of the leaf ``index`` in the tree of the first ``size``.

    Raises:
        LostError: It can not be made from what is kept. Never for a kept entry.
    """
    return tuple(subtree(tree, *span) for span in inclusion_spans(index, size))


def consistency(tree: Tree, first: int, size: int) -> tuple[bytes, ...]:
    """Consistency proof between the trees of the first ``first`` and ``size`` leaves.

    Raises:
        LostError: It can not be made from what is kept. Never from the size ``tree.first`` on.
    """
    return tuple(subtree(tree, *span) for span in consistency_spans(first, size))


# ---------------------------------------------------------------- finding


class Found(NamedTuple):
    """A reading that was asked for."""

    sequence: int
    reading: Reading
    declaration: Declaration


class Finder:
    """Finds readings of one meter in one epoch."""

    def __init__(self, history: History, meter: str, quantity: bytes | None = None) -> None:
        """Look for readings of a meter.

        Args:
            history: Where.
            meter: The meter's name in its declaration.
            quantity: OBIS code; only readings that have it.
        """
        self.meters: set[str] = set()
        """Other meters that were seen."""
        self.lost = False
        """Readings were seen whose declaration is not kept."""
        self._history = history
        self._meter = meter
        self._quantity = quantity
        self._declarations: dict[int, Declaration | None] = {}

    def find(self, at_ms: int | None = None) -> Found | None:
        """The reading with the greatest time at or before ``at_ms``; of several at one time the last in the log.

        Times are those in the readings, by the gateway's wall clock. A reading that lies more than STRAY_MS outside
        the times of the checkpoints before and after it may be overlooked: the clock stepped twice between them.
        """
        best: Found | None = None
        for commit in self._history.commits():
            if self._may_hold(commit, at_ms, best):
                best = self._better(commit, at_ms, best)
        return best

    @staticmethod
    def _may_hold(commit: Commit, at_ms: int | None, best: Found | None) -> bool:
        if commit.since_ms is None:
            return True
        earliest, latest = sorted((commit.since_ms, commit.time_ms))
        if at_ms is not None and earliest - STRAY_MS > at_ms:
            return False
        return best is None or latest + STRAY_MS > best.reading.time_ms

    def _better(self, commit: Commit, at_ms: int | None, best: Found | None) -> Found | None:
        for sequence, entry in self._history.entries(commit.first, commit.end):
            if not isinstance(entry, Reading) or (at_ms is not None and entry.time_ms > at_ms):
                continue
            if best and (entry.time_ms, sequence) <= (best.reading.time_ms, best.sequence):
                continue
            declaration = self._declaration(entry)
            if declaration:
                best = Found(sequence, entry, declaration)
        return best

    def _declaration(self, reading: Reading) -> Declaration | None:
        """The reading's declaration if it is of the meter and has the quantity."""
        at = reading.declaration
        if at not in self._declarations:
            self._declarations[at] = self._read_declaration(at)
        declaration = self._declarations[at]
        if declaration is None or declaration.meter != self._meter or reading.group >= len(declaration.groups):
            return None
        quantities = declaration.groups[reading.group][1]
        wanted = self._quantity is None or any(quantity[0] == self._quantity for quantity in quantities)
        return declaration if wanted else None

    def _read_declaration(self, at: int) -> Declaration | None:
        if at < self._history.first:
            self.lost = True
            return None
        for _, entry in self._history.entries(at, at + 1):
            if isinstance(entry, Declaration):
                self.meters.add(entry.meter)
                return entry
        return None


# ---------------------------------------------------------------- proofs


def prove_reading(history: History, sequence: int) -> ReadingProof:
    """Make the proof of a kept reading, and check it but for the signatures.

    Raises:
        LostError: Its declaration or a checkpoint over it is not kept.
        EvidenceError: What is stored does not fit together.
    """
    message, receipt, checkpoint = _signed(history, sequence)
    raw = history.canonical(sequence)
    reading = parse(raw)[1]
    at = reading.declaration if isinstance(reading, Reading) else sequence
    if at < history.first:
        raise LostError(f"declaration {at} of reading {sequence} is not kept here any more: ask the head-end")
    declared = history.canonical(at)
    explained(reading, sequence, parse(declared)[1], at)
    entries = [_included(history, n, canonical, checkpoint) for n, canonical in ((at, declared), (sequence, raw))]
    return ReadingProof(message, receipt, *entries)


def prove_entry(history: History, sequence: int) -> EntryProof:
    """Make the proof of a kept entry of any type, and check it but for the signatures.

    Raises:
        LostError: It, or a checkpoint over it, is not kept.
        EvidenceError: What is stored does not fit together.
    """
    if sequence < history.first:
        raise LostError(f"entry {sequence} is not kept here any more: ask the head-end")
    message, receipt, checkpoint = _signed(history, sequence)
    return EntryProof(message, receipt, _included(history, sequence, history.canonical(sequence), checkpoint))


def _signed(history: History, sequence: int) -> tuple[bytes, bytes | None, Checkpoint]:
    message, receipt = history.signed(sequence)
    checkpoint = parse_checkpoint(cose.peek(message)[1])
    if receipt is not None:
        same_tree(parse_receipt(cose.peek(receipt)[1]), checkpoint)
    return message, receipt, checkpoint


def _included(history: History, sequence: int, canonical: bytes, checkpoint: Checkpoint) -> Disclosed:
    entry = Disclosed(sequence, canonical, inclusion(history, sequence, checkpoint.size))
    verify_inclusion(leaf_hash(canonical), sequence, checkpoint.size, entry.path, checkpoint.root)
    return entry


def prove_consistency(
    history: History, first: int, second: int, shown: Mapping[int, bytes] = MappingProxyType({})
) -> ConsistencyProof:
    """Make the proof that the log at size ``second`` continues the log at size ``first``; check all but signatures.

    Args:
        history: Of the epoch.
        first: Entries of the smaller one.
        second: Entries of the larger one.
        shown: COSE messages of checkpoints by size, which need not be kept here.

    Raises:
        LostError: One of the checkpoints, or a hash between, is not kept.
        EvidenceError: What is stored does not fit together.
    """
    earlier, later = (shown.get(size) or _checkpoint_at(history, size) for size in (first, second))
    smaller, larger = (parse_checkpoint(cose.peek(message)[1]) for message in (earlier, later))
    path = consistency(history, first, second)
    verify_consistency(first, second, path, smaller.root, larger.root)
    return ConsistencyProof(earlier, later, path)


def _checkpoint_at(history: History, size: int) -> bytes:
    message = history.checkpoint(size)
    if message is None:
        raise LostError(f"no checkpoint at {size} entries is kept here for epoch {history.epoch.hex()}")
    return message
