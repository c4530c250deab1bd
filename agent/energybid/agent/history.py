"""A journal as a source of proofs (core/prover.py): reads only, also while the agent runs.

What the journal keeps of an epoch is its last segments; the first kept one carries the frontier before it.
"""

from collections.abc import Iterator

from energybid.agent.journal import Journal
from energybid.agent.rows import SEQUENCE_BITS, SEQUENCE_MAX, EpochRow, Segment, end_of, seal_of
from energybid.agent.rows import split_hashes as split
from energybid.core import cose
from energybid.core.entries import Entry
from energybid.core.errors import EvidenceError
from energybid.core.evidence import parse_receipt
from energybid.core.log import Salts
from energybid.core.ports import Database
from energybid.core.prover import Commit, History, LostError
from energybid.core.tree import EMPTY_ROOT, Frontier, leaf_hash

_TIME = 1
"""Position of time_ms in a segment's checkpoint."""


def journal_histories(database: Database, path: str) -> list[History] | None:
    """Every epoch of a journal, oldest first; None when the database is no journal.

    Args:
        database: Opened for reading; best inside one transaction.
        path: Its name.
    """
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not {"epoch", "segment", "acknowledged"} <= tables:
        return None
    journal = Journal(database, path, check=False)
    return [JournalHistory(database, journal, epoch) for epoch in journal.epochs()]


class JournalHistory:
    """What a journal keeps of one epoch."""

    def __init__(self, database: Database, journal: Journal, row: EpochRow) -> None:
        """Read from an open journal."""
        self.origin = row.origin
        self.epoch = row.id
        self._row = row
        self._run = database.execute
        self._journal = journal
        self._low = row.number << SEQUENCE_BITS
        self._salts = Salts(row.secret)
        self._last: tuple[tuple[int, int], list[Entry]] | None = None
        self.first = next((segment.first for segment in journal.segments(row.number, 0)), 0)

    # ------------------------------------------------------------ the tree

    def leaves(self, first: int, end: int) -> list[bytes]:
        """Hashes of kept entries."""
        return [leaf_hash(self._salts.canonical(n, entry)) for n, entry in self.entries(first, end)]

    def frontier(self, least: int, below: int) -> Frontier | None:
        """The frontier of an anchor in the range."""
        for first, anchored in self._firsts(least):
            if first >= below:
                break
            if first >= least and anchored:
                segment = next(self._journal.segments(self._row.number, first))
                return Frontier(first, split(segment.peaks or b""))
        return None

    def _firsts(self, least: int) -> Iterator[tuple[int, bool]]:
        query = "SELECT first, peaks IS NOT NULL FROM segment WHERE key > ? AND key <= ? ORDER BY key"
        return iter(self._run(query, (self._low | least, self._low | SEQUENCE_MAX)))

    # ------------------------------------------------------------ entries

    def commits(self) -> Iterator[Commit]:
        """Segments, newest first; only their checkpoints are read."""
        query = "SELECT key, first, checkpoint FROM segment WHERE key > ? AND key <= ? ORDER BY key DESC"
        after: tuple[int, int, int] | None = None
        for key, first, seal in self._run(query, (self._low, self._low | SEQUENCE_MAX)):
            fields = seal_of(seal)
            time_ms = fields[_TIME]
            if after:
                yield Commit(*after[:2], time_ms, after[2])
            after = first, end_of(key, fields), time_ms
        if after:
            yield Commit(*after[:2], None, after[2])

    def entries(self, first: int, end: int) -> Iterator[tuple[int, Entry]]:
        """Kept entries with their sequence."""
        for segment in self._journal.segments(self._row.number, first):
            if segment.first >= end:
                break
            at = max(first, segment.first)
            yield from enumerate(self._unpacked(segment)[at - segment.first : end - segment.first], at)

    def _unpacked(self, segment: Segment) -> list[Entry]:
        """A segment's entries; a proof asks for the same one again and again."""
        if self._last is None or self._last[0] != (segment.first, segment.end):
            self._last = (segment.first, segment.end), segment.entries()
        return self._last[1]

    def canonical(self, sequence: int) -> bytes:
        """Canonical bytes of a kept entry."""
        for number, entry in self.entries(sequence, sequence + 1):
            return self._salts.canonical(number, entry)
        raise LostError(f"entry {sequence} is not kept here: ask the head-end")

    # ------------------------------------------------------------ what was signed

    def checkpoint(self, size: int) -> bytes | None:
        """COSE message of the checkpoint at exactly this size."""
        segment = self._holding(size - 1) if size else None
        return self._message(segment) if segment and segment.end == size else None

    def signed(self, sequence: int) -> tuple[bytes, bytes | None]:
        """The tree of the last receipt if it covers the entry, else of the entry's own commit."""
        mark = self._journal.acknowledged()
        if mark and mark.epoch == self._row.number and sequence < mark.size:
            message = self.checkpoint(mark.size)
            if message:
                if parse_receipt(cose.peek(mark.receipt)[1]).size != mark.size:
                    raise EvidenceError("the stored receipt is for another size than the acknowledged mark")
                return message, mark.receipt
        segment = self._holding(sequence)
        if segment is None:
            raise LostError(f"entry {sequence} is not kept here: ask the head-end")
        return self._message(segment), None

    def _holding(self, sequence: int) -> Segment | None:
        segment = next(self._journal.segments(self._row.number, sequence), None)
        return segment if segment and segment.first <= sequence else None

    def _message(self, segment: Segment) -> bytes:
        return Journal.checkpoint_after(self._row, segment, self._root_before(segment)).message()

    def _root_before(self, segment: Segment) -> bytes:
        """Root at the segment's first entry; the first kept segment has it in its frontier."""
        if segment.first == 0:
            return EMPTY_ROOT
        root = self._journal.root_at(self._row.number, segment.first)
        return root if root is not None else Frontier(segment.first, split(segment.peaks or b"")).root()
