"""The newest row: how a commit becomes a row of the journal, and when it joins the row before (docs/decisions/015).

A row grows while it fits its page, holds readings alone and nobody has been shown its checkpoint: the next commit's
readings are added to it, and its checkpoint gives way to the new one. Entries stay what and where they are. Whoever is
given a segment, or a root, of the newest row keeps it: the next commit begins another. No database is touched here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.agent.rows import SEQUENCE_BITS, Acknowledged, sealed
from energybid.core import cbor
from energybid.core.entries import Entry, Reading
from energybid.sync import columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.core.evidence import SignedCheckpoint

ANCHOR_EVERY = 32
"""Every so many segments (by checkpoint counter) carry the frontier: a check can begin there, pruning ends there."""
ROW_BYTES = 250
"""What a segment takes beside its columns, about."""
GROW_BYTES = 440
"""A row grows up to so many bytes of seal, columns and peaks: with SQLite's own it still fits a page of 512, alone."""
GROW_ENTRIES = 128
"""And up to so many entries: each commit packs them all again."""

INSERT = "INSERT INTO segment VALUES (?, ?, ?, ?, ?, ?)"
GROW = "UPDATE segment SET checkpoint = ?, method = ?, columns = ? WHERE key = ?"


class Commit(NamedTuple):
    """What one transaction stores."""

    entries: Sequence[Entry]
    checkpoint: SignedCheckpoint
    before: tuple[bytes, ...]
    """Peaks of the frontier before the first entry."""
    after: tuple[bytes, ...]
    """Peaks after the last entry."""
    acknowledged: Acknowledged | None
    """To be stored with it, if it changed."""


class Tail(NamedTuple):
    """The newest row, while it may grow."""

    key: int
    first: int
    entries: list[Entry]
    size: int
    """Bytes of columns."""
    peaks: int
    """Bytes of peaks."""


class Written(NamedTuple):
    """What a commit does to the table."""

    grown: int
    """Bytes."""
    tail: Tail | None
    statement: tuple[str, tuple[Any, ...]]


class Newest:
    """Knows the newest row of one journal as long as it may grow."""

    def __init__(self, *, fold: bool) -> None:
        """Begin with a row of its own.

        Args:
            fold: Small commits of readings share a row.
        """
        self._fold = fold
        self._memory = columns.Memory()
        self._tail: Tail | None = None

    def row_of(self, epoch: int, commit: Commit) -> Written:
        """The statement that stores a commit.

        Args:
            epoch: Number of the epoch that is written.
            commit: Its next one.
        """
        return self._grown(commit) or self._begun(epoch, commit)

    def took(self, written: Written) -> None:
        """The table holds it."""
        self._tail = written.tail

    def shown(self, key: int) -> None:
        """Somebody was shown the checkpoint of the row with this key: if it is the newest, it stays as it is."""
        if self._tail and self._tail.key == key:
            self._tail = None

    def forget(self) -> None:
        """The next commit begins a row."""
        self._tail = None

    def _begun(self, epoch: int, commit: Commit) -> Written:
        """A commit as a row of its own."""
        checkpoint = commit.checkpoint.checkpoint
        key, first = epoch << SEQUENCE_BITS | checkpoint.size, checkpoint.size - len(commit.entries)
        anchored = first == 0 or checkpoint.counter % ANCHOR_EVERY == 0
        peaks = b"".join(commit.before) if anchored else None
        seal = cbor.encode(sealed(commit.checkpoint))
        method, packed = columns.pack(columns.encode(commit.entries, memory=self._memory))
        row = key, first, seal, method, packed, peaks
        tail = Tail(key, first, list(commit.entries), len(packed), len(peaks or b""))
        size = len(seal) + len(packed) + tail.peaks
        may_grow = self._fold and 2 * size <= GROW_BYTES + len(seal) and _readings_alone(commit)
        return Written(len(packed) + ROW_BYTES, tail if may_grow else None, (INSERT, row))

    def _grown(self, commit: Commit) -> Written | None:
        """A commit as what the newest row becomes; None where it must not or can not grow."""
        tail, checkpoint = self._tail, commit.checkpoint.checkpoint
        if tail is None or checkpoint.counter % ANCHOR_EVERY == 0 or not _readings_alone(commit):
            return None
        entries = [*tail.entries, *commit.entries]
        if len(entries) > GROW_ENTRIES:
            return None
        previous = checkpoint.previous_size, checkpoint.previous_root
        seal = cbor.encode((*sealed(commit.checkpoint), checkpoint.size, *previous))
        method, packed = columns.pack(columns.encode(entries, memory=self._memory))
        if len(seal) + len(packed) + tail.peaks > GROW_BYTES:
            return None
        larger = tail._replace(entries=entries, size=len(packed))
        return Written(max(0, len(packed) - tail.size), larger, (GROW, (seal, method, packed, tail.key)))


def _readings_alone(commit: Commit) -> bool:
    """Whether a commit may share a row: what moves the clock stays between the checkpoints around it."""
    return all(isinstance(entry, Reading) for entry in commit.entries)
