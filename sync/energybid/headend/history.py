"""A head-end's database as a source of proofs (core/prover.py): it holds all history and every receipt. Reads only."""

from collections.abc import Iterator

from energybid.core import cose
from energybid.core.entries import Entry
from energybid.core.evidence import parse_checkpoint
from energybid.core.log import parse_entry
from energybid.core.ports import Database
from energybid.core.prover import Commit, History, LostError
from energybid.core.tree import Frontier, leaf_hash
from energybid.headend.store import EpochRow, Store, known


def histories(database: Database, path: str) -> list[History] | None:
    """Every epoch of every gateway, oldest first; None when the database is not a head-end's.

    Args:
        database: Opened for reading; best inside one transaction.
        path: Its name.
    """
    if known(database) is None:
        return None
    store = Store(database, path)
    return [StoredHistory(store, origin, row) for number, origin in store.origins() for row in store.epochs(number)]


class StoredHistory:
    """One epoch, from its first entry on."""

    first = 0

    def __init__(self, store: Store, origin: str, row: EpochRow) -> None:
        """Read from an open store."""
        self.origin = origin
        self.epoch = row.epoch
        self._store = store
        self._row = row

    # ------------------------------------------------------------ the tree

    def leaves(self, first: int, end: int) -> list[bytes]:
        """Hashes of stored entries."""
        return [leaf_hash(raw) for _, raw in self._store.entries(self._row, first, end)]

    def frontier(self, least: int, below: int) -> Frontier | None:
        """The frontier of a stored checkpoint in the range."""
        return self._store.frontier_in(self._row, least, below)

    # ------------------------------------------------------------ entries

    def commits(self) -> Iterator[Commit]:
        """Batches, newest first; only their checkpoints are read."""
        after: tuple[int, int] | None = None
        for size, message in self._store.checkpoints(self._row, newest_first=True):
            time_ms = parse_checkpoint(cose.peek(message)[1]).time_ms
            if after:
                yield Commit(size, after[0], time_ms, after[1])
            after = size, time_ms
        if after:
            yield Commit(0, after[0], None, after[1])

    def entries(self, first: int, end: int) -> Iterator[tuple[int, Entry]]:
        """Stored entries with their sequence."""
        return ((sequence, parse_entry(raw)) for sequence, raw in self._store.entries(self._row, first, end))

    def canonical(self, sequence: int) -> bytes:
        """Canonical bytes of a stored entry."""
        for _, raw in self._store.entries(self._row, sequence, sequence + 1):
            return raw
        raise LostError(f"entry {sequence} is not stored")

    # ------------------------------------------------------------ what was signed

    def checkpoint(self, size: int) -> bytes | None:
        """COSE message of the checkpoint at exactly this size."""
        return self._store.checkpoint(self._row, size)

    def signed(self, sequence: int) -> tuple[bytes, bytes | None]:
        """The tree of the first receipt that covers the entry: it bounds the entry's time best; else of its batch."""
        for receipt in self._store.receipts(self._row, covering=sequence):
            message = self.checkpoint(receipt.size)
            if message:
                return message, receipt.message
        for _, message in self._store.checkpoints(self._row, covering=sequence):
            return message, None
        raise LostError(f"no checkpoint over entry {sequence} is stored")
