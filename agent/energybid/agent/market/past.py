"""The market's messages that the journal holds: what an earlier run of the agent knew, and what people look at.

Reads only. A journal is long and has few of them: rows are walked from the newest back, a number of them at a time, and
of those that hold nothing but readings only the head is looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from energybid.agent.rows import SEQUENCE_MAX
from energybid.core.entries import MarketMessage
from energybid.sync import columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    from energybid.agent.journal import Journal
    from energybid.agent.rows import EpochRow, Segment

AT_ONCE = 64
"""Rows looked at in one go: commits wait for that long."""
PLAUSIBLE_MS = 1_577_836_800_000
"""2020-01-01: a wall clock that shows less was never set, and says nothing of a row's age."""


class Kept(NamedTuple):
    """A market's message in the journal."""

    epoch: int
    """Number of the epoch."""
    sequence: int
    entry: MarketMessage


class Past:
    """A walk along the journal, from its end back."""

    def __init__(self, journal: Journal, since_ms: int, most: int) -> None:
        """Walk back to rows that were committed before a time by the wall clock, or until enough were seen.

        Args:
            journal: Open.
            since_ms: Wall clock.
            most: Rows.
        """
        self._journal = journal
        self._left = most
        self._since_ms = since_ms
        self._epochs: list[EpochRow] | None = None
        """Those that are left, oldest first."""
        self._end = SEQUENCE_MAX

    def look(self) -> list[Kept] | None:
        """Messages of the next rows, in their order; None when all rows were looked at. Blocks.

        Raises:
            JournalError: The journal can not be read.
            EvidenceError: What it holds is damaged.
        """
        if self._epochs is None:
            self._epochs = self._journal.epochs()
        if not self._epochs or self._left <= 0:
            return None
        epoch = self._epochs[-1]
        found: list[Kept] = []
        rows = 0
        for segment in self._journal.segments_back(epoch.number, self._end, AT_ONCE):
            if PLAUSIBLE_MS < segment.time_ms < self._since_ms:
                self._epochs = []
                break
            rows, self._end = rows + 1, segment.first
            self._left -= 1
            found[:0] = messages_of(epoch, segment)
        else:
            if rows < AT_ONCE:
                self._epochs.pop()
                self._end = SEQUENCE_MAX
        return found


def messages_of(epoch: EpochRow, segment: Segment) -> Iterator[Kept]:
    """The market's messages of one row."""
    if not columns.others(columns.unpack(segment.method, segment.columns, limit=columns.RAW_MAX)):
        return
    for sequence, entry in enumerate(segment.entries(), segment.first):
        if isinstance(entry, MarketMessage):
            yield Kept(epoch.number, sequence, entry)
