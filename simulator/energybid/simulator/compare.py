"""What became of every reading: the gateway's journal beside the head-end's database, entry by entry.

Reads both files only, after the processes that write them have ended. Signatures and trees are not checked here:
that is ``energybid verify``, a program of its own.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import apsw

from energybid.agent.journal import Journal
from energybid.agent.rows import EpochRow
from energybid.core.entries import Entry, MarketMessage, Reading
from energybid.core.log import Salts, parse_entry
from energybid.headend.store import EpochRow as StoredEpoch
from energybid.headend.store import Store

SEQUENCES = 2**63 - 1


class Logged(NamedTuple):
    """An entry of the journal."""

    entry: Entry
    canonical: bytes
    acknowledged: bool


@dataclass(slots=True)
class Comparison:
    """Counts over all epochs of the journal."""

    entries: int = 0
    """In the journal."""
    readings: int = 0
    """In the journal."""
    acknowledged: int = 0
    """Readings of the journal that a receipt covers."""
    stored: int = 0
    """Entries at the head-end."""
    missing: int = 0
    """Entries that a receipt covers and that the head-end does not hold, or holds otherwise."""
    foreign: int = 0
    """Entries at the head-end that the journal does not hold so."""
    duplicated: int = 0
    """Readings at the head-end that are there already, under another number."""
    market_bytes: int = 0
    """What the market and the gateway said to each other, as the journal holds it."""


def compare(journal_path: Path, headend_path: Path) -> Comparison:
    """Compare two databases at rest.

    Raises:
        EvidenceError: Entries are damaged.
        apsw.Error: A file is not there or no such database.
    """
    result = Comparison()
    with closing(_open(journal_path)) as ours, closing(_open(headend_path)) as theirs:
        journal, store = Journal(ours, str(journal_path)), Store(theirs, str(headend_path))
        for epoch in journal.epochs():
            _compare_epoch(result, dict(_logged(journal, epoch)), _stored(store, epoch))
    return result


def _open(path: Path) -> apsw.Connection:
    return apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)


def _logged(journal: Journal, epoch: EpochRow) -> Iterator[tuple[int, Logged]]:
    mark, salts = journal.acknowledged(), Salts(epoch.secret)
    size = mark.size if mark and mark.epoch == epoch.number else 0
    for segment in journal.segments(epoch.number, 0):
        for sequence, entry in enumerate(segment.entries(), segment.first):
            yield sequence, Logged(entry, salts.canonical(sequence, entry), sequence < size)


def _stored(store: Store, epoch: EpochRow) -> Iterator[tuple[int, bytes]]:
    for number, _ in store.origins():
        for row in store.epochs(number):
            if row.epoch == epoch.id:
                yield from _rows(store, row)


def _rows(store: Store, row: StoredEpoch) -> Iterator[tuple[int, bytes]]:
    return store.entries(row, 0, SEQUENCES)


def _compare_epoch(result: Comparison, logged: dict[int, Logged], stored: Iterator[tuple[int, bytes]]) -> None:
    kept = dict(stored)
    times = Counter(
        (entry.declaration, entry.group, entry.start, entry.mono_ms)
        for entry in map(parse_entry, kept.values())
        if isinstance(entry, Reading)
    )
    result.entries += len(logged)
    result.readings += sum(isinstance(item.entry, Reading) for item in logged.values())
    result.acknowledged += sum(item.acknowledged and isinstance(item.entry, Reading) for item in logged.values())
    result.market_bytes += sum(
        len(item.entry.message) for item in logged.values() if isinstance(item.entry, MarketMessage)
    )
    result.stored += len(kept)
    result.missing += sum(item.acknowledged and kept.get(number) != item.canonical for number, item in logged.items())
    result.foreign += sum(number not in logged or logged[number].canonical != raw for number, raw in kept.items())
    result.duplicated += sum(times.values()) - len(times)
