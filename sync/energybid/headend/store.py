"""The head-end's database: SQL and nothing else. What may be stored is decided in ledger.py.

One SQLite file in WAL mode with synchronous FULL: what a receipt was signed for survives a power cut. Entries are never
changed or deleted. Everything here runs in one thread (``offload``) on one connection.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import NamedTuple, Self

import apsw

from energybid.core.errors import EvidenceError, JournalError
from energybid.core.ports import Database
from energybid.core.tree import HASH_SIZE, Frontier, leaf_hash

APPLICATION_ID = 0x45424845
"""``PRAGMA application_id``: "EBHE"."""
MIGRATIONS = (
    f"""
    PRAGMA application_id = {APPLICATION_ID};
    CREATE TABLE gateway (
        id INTEGER PRIMARY KEY,
        origin TEXT NOT NULL UNIQUE -- tenant/gateway
    ) STRICT;
    CREATE TABLE key ( -- every key that was ever registered; gateway NULL: the head-end's own
        kid BLOB NOT NULL,
        gateway INTEGER REFERENCES gateway,
        pem TEXT NOT NULL,
        UNIQUE (kid, gateway)
    ) STRICT;
    CREATE TABLE epoch (
        id INTEGER PRIMARY KEY, -- in the order in which they were first heard of
        gateway INTEGER NOT NULL REFERENCES gateway,
        epoch BLOB NOT NULL,
        size INTEGER NOT NULL, -- of the contiguous prefix
        peaks BLOB NOT NULL, -- the frontier at that size, largest subtree first
        readings INTEGER NOT NULL,
        created_ms INTEGER NOT NULL,
        UNIQUE (gateway, epoch)
    ) STRICT;
    CREATE TABLE entry (
        epoch INTEGER NOT NULL REFERENCES epoch,
        sequence INTEGER NOT NULL,
        canonical BLOB NOT NULL,
        PRIMARY KEY (epoch, sequence)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE checkpoint ( -- the gateway's signature at the end of each batch
        epoch INTEGER NOT NULL REFERENCES epoch,
        size INTEGER NOT NULL,
        message BLOB NOT NULL, -- COSE_Sign1
        peaks BLOB NOT NULL,
        received_ms INTEGER NOT NULL,
        PRIMARY KEY (epoch, size)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE receipt ( -- every receipt for stored entries that was ever published
        epoch INTEGER NOT NULL REFERENCES epoch,
        size INTEGER NOT NULL,
        message BLOB NOT NULL, -- COSE_Sign1
        time_ms INTEGER NOT NULL,
        PRIMARY KEY (epoch, size)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE conflict ( -- evidence against a gateway, or whoever has its key
        id INTEGER PRIMARY KEY,
        gateway INTEGER NOT NULL REFERENCES gateway,
        epoch BLOB NOT NULL,
        first INTEGER NOT NULL,
        end INTEGER NOT NULL,
        kind TEXT NOT NULL,
        detail TEXT NOT NULL,
        digest BLOB NOT NULL,
        frame BLOB NOT NULL, -- the whole batch as it came
        received_ms INTEGER NOT NULL,
        UNIQUE (gateway, digest, kind)
    ) STRICT;
    CREATE TABLE pending ( -- batches that verify by themselves and wait for what comes before them
        gateway INTEGER NOT NULL REFERENCES gateway,
        epoch BLOB NOT NULL,
        first INTEGER NOT NULL,
        end INTEGER NOT NULL,
        frame BLOB NOT NULL,
        PRIMARY KEY (gateway, epoch, first, end)
    ) STRICT, WITHOUT ROWID;
    """,
)
CONFLICTS_MAX = 1000
"""Most conflicting batches kept for each gateway; the first ones tell the most."""
PENDING_MAX, PENDING_BYTES_MAX = 256, 16 << 20
"""Most batches, and bytes, that wait for each gateway."""


class EpochRow(NamedTuple):
    """The stored prefix of one epoch."""

    id: int
    gateway: int
    epoch: bytes
    size: int
    peaks: tuple[bytes, ...]
    readings: int

    def frontier(self) -> Frontier:
        """The tree at ``size``."""
        return Frontier(self.size, self.peaks)


def _epoch_row(number: int, gateway: int, epoch: bytes, size: int, peaks: bytes, readings: int) -> EpochRow:
    return EpochRow(number, gateway, epoch, size, split(peaks), readings)


class ReceiptRow(NamedTuple):
    """A published receipt."""

    size: int
    message: bytes
    time_ms: int


def split(joined: bytes) -> tuple[bytes, ...]:
    """Joined hashes → hashes."""
    return tuple(joined[i : i + HASH_SIZE] for i in range(0, len(joined), HASH_SIZE))


def known(database: Database) -> int | None:
    """The schema's version if this is a head-end's database, else None."""
    ((application,),) = database.execute("PRAGMA application_id")
    ((version,),) = database.execute("PRAGMA user_version")
    return int(version) if application == APPLICATION_ID else None


def migrate(database: Database, path: str) -> None:
    """Create the tables, or bring those of an older version up to date.

    Raises:
        JournalError: Another program's database, or a newer version's.
    """
    version = known(database) or 0
    ((tables,),) = database.execute("SELECT count(*) FROM sqlite_schema")
    if tables and not version:
        raise JournalError(f"{path}: is a database of something else than the head-end")
    if version > len(MIGRATIONS):
        raise JournalError(f"{path}: written by a newer version (schema {version}, this one knows {len(MIGRATIONS)})")
    for number in range(version, len(MIGRATIONS)):
        database.execute(f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT")


class Store:
    """The open database."""

    def __init__(self, database: Database, path: str) -> None:
        """Read from a connection, which may be read-only; ``open`` makes it ready for more."""
        self.path = path
        self._database = database

    @classmethod
    def open(cls, database: Database, path: str) -> Self:
        """Take over a connection and bring the tables up to date.

        Raises:
            JournalError: It can not be used, or is not ours.
        """
        try:
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                database.execute(f"PRAGMA {pragma}")
            migrate(database, path)
        except apsw.Error as error:
            raise JournalError(f"{path}: {error}") from None
        return cls(database, path)

    def close(self) -> None:
        """Close the connection; idempotent."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing.

        Raises:
            JournalError: The database failed; nothing of it is stored.
        """
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")
        except apsw.Error as error:
            raise JournalError(f"{self.path}: {error}") from None

    # ------------------------------------------------------------ gateways and keys

    def register(self, origin: str, keys: dict[bytes, bytes]) -> int:
        """Number of a gateway; its keys (kid → PEM) are kept for later verification."""
        self._database.execute("INSERT OR IGNORE INTO gateway (origin) VALUES (?)", (origin,))
        ((number,),) = self._database.execute("SELECT id FROM gateway WHERE origin = ?", (origin,))
        for kid, pem in keys.items():
            self._database.execute("INSERT OR IGNORE INTO key VALUES (?, ?, ?)", (kid, number, pem.decode()))
        return int(number)

    def register_self(self, kid: bytes, pem: bytes) -> None:
        """Keep the head-end's own public key."""
        ((count,),) = self._database.execute("SELECT count(*) FROM key WHERE kid = ? AND gateway IS NULL", (kid,))
        if not count:
            self._database.execute("INSERT INTO key VALUES (?, NULL, ?)", (kid, pem.decode()))

    def registered(self) -> list[tuple[str | None, str]]:
        """(origin, PEM) of every key; origin None for the head-end's own."""
        return list(self._database.execute("SELECT origin, pem FROM key LEFT JOIN gateway ON gateway = id"))

    def origins(self) -> list[tuple[int, str]]:
        """(number, origin) of every gateway."""
        return list(self._database.execute("SELECT id, origin FROM gateway ORDER BY origin"))

    # ------------------------------------------------------------ epochs and entries

    def epochs(self, gateway: int) -> list[EpochRow]:
        """A gateway's epochs, newest last."""
        rows = self._database.execute(
            "SELECT id, gateway, epoch, size, peaks, readings FROM epoch WHERE gateway = ? ORDER BY id", (gateway,)
        )
        return [_epoch_row(*row) for row in rows]

    def epoch(self, gateway: int, epoch: bytes) -> EpochRow | None:
        """One epoch, if it is known."""
        rows = self._database.execute(
            "SELECT id, gateway, epoch, size, peaks, readings FROM epoch WHERE gateway = ? AND epoch = ?",
            (gateway, epoch),
        )
        return next((_epoch_row(*row) for row in rows), None)

    def newest(self, gateway: int) -> int | None:
        """Number of a gateway's newest epoch."""
        ((number,),) = self._database.execute("SELECT max(id) FROM epoch WHERE gateway = ?", (gateway,))
        return None if number is None else int(number)

    def add_epoch(self, gateway: int, epoch: bytes, now_ms: int) -> EpochRow:
        """A new epoch without entries."""
        ((number,),) = self._database.execute(
            "INSERT INTO epoch (gateway, epoch, size, peaks, readings, created_ms) VALUES (?, ?, 0, x'', 0, ?)"
            " RETURNING id",
            (gateway, epoch, now_ms),
        )
        return EpochRow(number, gateway, epoch, 0, (), 0)

    def append(
        self, row: EpochRow, canonical: list[bytes], frontier: Frontier, *, readings: int, message: bytes, now_ms: int
    ) -> EpochRow:
        """Add entries behind the prefix.

        Args:
            row: The epoch as it stands.
            canonical: The entries' bytes, from sequence ``row.size`` on.
            frontier: The tree with them.
            readings: How many of them are readings.
            message: The checkpoint over them, COSE_Sign1.
            now_ms: Wall clock.
        """
        insert = "INSERT INTO entry VALUES (?, ?, ?)"
        for sequence, raw in enumerate(canonical, row.size):
            self._database.execute(insert, (row.id, sequence, raw))
        peaks = b"".join(frontier.peaks)
        self._database.execute(
            "INSERT INTO checkpoint VALUES (?, ?, ?, ?, ?)", (row.id, frontier.size, message, peaks, now_ms)
        )
        self._database.execute(
            "UPDATE epoch SET size = ?, peaks = ?, readings = readings + ? WHERE id = ?",
            (frontier.size, peaks, readings, row.id),
        )
        return row._replace(size=frontier.size, peaks=frontier.peaks, readings=row.readings + readings)

    def entries(self, row: EpochRow, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """(sequence, canonical bytes) of the stored entries in [first, end)."""
        return iter(
            self._database.execute(
                "SELECT sequence, canonical FROM entry WHERE epoch = ? AND sequence >= ? AND sequence < ?"
                " ORDER BY sequence",
                (row.id, first, end),
            )
        )

    def checkpoints(
        self, row: EpochRow, *, covering: int = -1, newest_first: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """(size, COSE_Sign1 message) of the stored checkpoints that cover an entry."""
        query = "SELECT size, message FROM checkpoint WHERE epoch = ? AND size > ? ORDER BY size"
        return iter(self._database.execute(query + (" DESC" if newest_first else ""), (row.id, covering)))

    def checkpoint(self, row: EpochRow, size: int) -> bytes | None:
        """The checkpoint that was stored at exactly this size."""
        rows = self._database.execute("SELECT message FROM checkpoint WHERE epoch = ? AND size = ?", (row.id, size))
        return next((message for (message,) in rows), None)

    def frontier_at(self, row: EpochRow, size: int) -> Frontier:
        """The tree of the first ``size`` stored entries, from the checkpoint before it.

        Raises:
            EvidenceError: Fewer are stored.
        """
        if size > row.size:
            raise EvidenceError(f"only {row.size} entries are stored, not {size}")
        query = "SELECT size, peaks FROM checkpoint WHERE epoch = ? AND size <= ? ORDER BY size DESC LIMIT 1"
        frontier = Frontier()
        for at, peaks in self._database.execute(query, (row.id, size)):
            frontier = Frontier(at, split(peaks))
        for _, raw in self.entries(row, frontier.size, size):
            frontier.append(leaf_hash(raw))
        return frontier

    def frontier_in(self, row: EpochRow, least: int, below: int) -> Frontier | None:
        """The frontier of a stored checkpoint of a size in [least, below)."""
        query = "SELECT size, peaks FROM checkpoint WHERE epoch = ? AND size >= ? AND size < ? ORDER BY size LIMIT 1"
        rows = self._database.execute(query, (row.id, least, below))
        return next((Frontier(size, split(peaks)) for size, peaks in rows), None)

    # ------------------------------------------------------------ receipts

    def receipt(self, row: EpochRow) -> ReceiptRow | None:
        """The last receipt of an epoch."""
        query = "SELECT size, message, time_ms FROM receipt WHERE epoch = ? ORDER BY size DESC LIMIT 1"
        return next((ReceiptRow(*found) for found in self._database.execute(query, (row.id,))), None)

    def receipts(self, row: EpochRow, *, covering: int = -1) -> Iterator[ReceiptRow]:
        """Every receipt of an epoch that covers an entry."""
        query = "SELECT size, message, time_ms FROM receipt WHERE epoch = ? AND size > ? ORDER BY size"
        return (ReceiptRow(*found) for found in self._database.execute(query, (row.id, covering)))

    def add_receipt(self, row: EpochRow, receipt: ReceiptRow) -> None:
        """Keep a receipt before it is published; of several for the same size, the last."""
        self._database.execute("INSERT OR REPLACE INTO receipt VALUES (?, ?, ?, ?)", (row.id, *receipt))

    # ------------------------------------------------------------ what does not fit

    def add_conflict(  # noqa: PLR0913  one argument for each column
        self, gateway: int, epoch: bytes, span: tuple[int, int], *, kind: str, detail: str, frame: bytes, now_ms: int
    ) -> bool:
        """Keep a frame as evidence; False when it is there already, or too many are."""
        ((count,),) = self._database.execute("SELECT count(*) FROM conflict WHERE gateway = ?", (gateway,))
        if count >= CONFLICTS_MAX:
            return False
        rows = self._database.execute(
            "INSERT OR IGNORE INTO conflict (gateway, epoch, first, end, kind, detail, digest, frame, received_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
            (gateway, epoch, *span, kind, detail, sha256(frame).digest(), frame, now_ms),
        )
        return bool(list(rows))

    def conflicts(self, gateway: int) -> list[tuple[bytes, int, int, str, str, int]]:
        """(epoch, first, end, kind, detail, received_ms) of a gateway's conflicts."""
        return list(
            self._database.execute(
                "SELECT epoch, first, end, kind, detail, received_ms FROM conflict WHERE gateway = ? ORDER BY id",
                (gateway,),
            )
        )

    def add_pending(self, gateway: int, epoch: bytes, span: tuple[int, int], frame: bytes) -> bool:
        """Let a batch wait; False when too many do."""
        count, size = self.pending(gateway)
        if count >= PENDING_MAX or size + len(frame) > PENDING_BYTES_MAX:
            return False
        self._database.execute("INSERT OR IGNORE INTO pending VALUES (?, ?, ?, ?, ?)", (gateway, epoch, *span, frame))
        return True

    def pending(self, gateway: int) -> tuple[int, int]:
        """(batches, bytes) that wait."""
        query = "SELECT count(*), coalesce(sum(length(frame)), 0) FROM pending WHERE gateway = ?"
        ((count, size),) = self._database.execute(query, (gateway,))
        return count, size

    def take_pending(self, row: EpochRow) -> bytes | None:
        """Remove and return a batch that begins within the prefix."""
        rows = self._database.execute(
            "SELECT first, end, frame FROM pending WHERE gateway = ? AND epoch = ? AND first <= ?"
            " ORDER BY first LIMIT 1",
            (row.gateway, row.epoch, row.size),
        )
        found = next(iter(rows), None)
        if found is None:
            return None
        self._database.execute(
            "DELETE FROM pending WHERE gateway = ? AND epoch = ? AND first = ? AND end = ?",
            (row.gateway, row.epoch, *found[:2]),
        )
        frame: bytes = found[2]
        return frame
