"""The market's database: SQL and nothing else. What is put into it is decided in ``operator.py``.

One SQLite file in WAL mode with synchronous FULL. Messages stand in it, and in the outbox, before they are sent, with
the counters that were used for them: a market that is killed goes on where it was, and never signs two things with one
number. Everything here runs in one thread on one connection.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import apsw

from energybid.core.errors import JournalError
from energybid.core.ports import Database

APPLICATION_ID = 0x45424D4B
"""``PRAGMA application_id``: "EBMK"."""
MIGRATIONS = (
    f"""
    PRAGMA application_id = {APPLICATION_ID};
    CREATE TABLE counter ( -- the last number used
        name TEXT PRIMARY KEY,
        value INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE round (
        number INTEGER PRIMARY KEY,
        begins_ms INTEGER NOT NULL UNIQUE,
        message BLOB NOT NULL, -- COSE_Sign1, as all messages here
        outcome TEXT, -- NULL until the gate; then as it was cleared, or lapsed
        ticks INTEGER,
        declined INTEGER NOT NULL DEFAULT 0, -- all-or-nothing steps
        done INTEGER NOT NULL DEFAULT 0 -- nothing is left to settle
    ) STRICT;
    CREATE INDEX open_round ON round (done) WHERE done = 0;
    CREATE TABLE bid ( -- of each gateway the one that counts
        number INTEGER NOT NULL REFERENCES round,
        origin TEXT NOT NULL, -- tenant/gateway
        version INTEGER NOT NULL,
        received_ms INTEGER NOT NULL,
        message BLOB NOT NULL,
        PRIMARY KEY (number, origin)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE award (
        number INTEGER NOT NULL REFERENCES round,
        origin TEXT NOT NULL,
        message BLOB NOT NULL,
        confirmation BLOB,
        statement BLOB, -- the last one
        inputs BLOB, -- of the statement
        done INTEGER NOT NULL, -- it is settled, or there is nothing to settle
        PRIMARY KEY (number, origin)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE outbox ( -- in the order of sending
        id INTEGER PRIMARY KEY,
        topic TEXT NOT NULL,
        payload BLOB NOT NULL,
        until_ms INTEGER NOT NULL -- useless after this
    ) STRICT;
    CREATE TABLE retained ( -- what the broker is to keep
        topic TEXT PRIMARY KEY,
        payload BLOB NOT NULL,
        sent INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
)


class RoundRow(NamedTuple):
    """A round."""

    number: int
    begins_ms: int
    message: bytes
    outcome: str | None
    ticks: int | None
    declined: int
    done: bool


class BidRow(NamedTuple):
    """The bid that counts."""

    origin: str
    version: int
    received_ms: int
    message: bytes


class AwardRow(NamedTuple):
    """What became of a bid."""

    origin: str
    message: bytes
    confirmation: bytes | None
    statement: bytes | None
    inputs: bytes | None
    done: bool


class Letter(NamedTuple):
    """Something to be published."""

    id: int
    """Of the outbox; 0 for what is retained."""
    topic: str
    payload: bytes
    retain: bool


class Store:
    """An open database of a market."""

    def __init__(self, database: Database, name: str) -> None:
        """Use a database that ``open`` made ready, or one that is only read."""
        self._database = database
        self._name = name

    @classmethod
    def open(cls, database: Database, name: str) -> Self:
        """Make a database ready.

        Args:
            database: Freshly opened; may be empty.
            name: Its path, for messages.

        Raises:
            JournalError: It is another program's, of a newer version, or fails.
        """
        store = cls(database, name)
        with _failing(name):
            version, application, tables = (
                store._one(sql)[0]
                for sql in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_schema")
            )
            if version > len(MIGRATIONS) or (tables and application != APPLICATION_ID):
                raise JournalError(f"{name}: is no database of a market that this version can use")
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                database.execute(f"PRAGMA {pragma}")
            for number, statements in enumerate(MIGRATIONS[version:], version + 1):
                with store.transaction():
                    database.execute(f"{statements}; PRAGMA user_version = {number}")
        return store

    def close(self) -> None:
        """Close; idempotent."""
        self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, durable at the end.

        Raises:
            JournalError: The database failed; nothing of it is stored.
        """
        with _failing(self._name):
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _all(self, sql: str, *values: Any) -> list[Any]:  # noqa: ANN401  what the column is
        with _failing(self._name):
            return list(self._database.execute(sql, values))

    def _one(self, sql: str, *values: Any) -> Any:  # noqa: ANN401
        found = self._all(sql, *values)
        return found[0] if found else None

    def _run(self, sql: str, *values: Any) -> None:  # noqa: ANN401
        self._all(sql, *values)

    # ------------------------------------------------------------ counters

    def next_number(self, name: str) -> int:
        """Use the next number of a counter; they begin at 1."""
        sql = "INSERT INTO counter VALUES (?, 1) ON CONFLICT DO UPDATE SET value = value + 1 RETURNING value"
        return int(self._one(sql, name)[0])

    def number(self, name: str) -> int:
        """The last number used of a counter; 0 where none was."""
        found = self._one("SELECT value FROM counter WHERE name = ?", name)
        return int(found[0]) if found else 0

    def set_number(self, name: str, value: int) -> None:
        """Move a counter."""
        self._run("INSERT OR REPLACE INTO counter VALUES (?, ?)", name, value)

    # ------------------------------------------------------------ rounds

    def add_round(self, number: int, begins_ms: int, message: bytes) -> None:
        """A round that is announced."""
        self._run("INSERT INTO round (number, begins_ms, message) VALUES (?, ?, ?)", number, begins_ms, message)

    def clear_round(self, number: int, outcome: str, ticks: int | None, declined: int, *, done: bool) -> None:
        """How a round was cleared."""
        sql = "UPDATE round SET outcome = ?, ticks = ?, declined = ?, done = ? WHERE number = ?"
        self._run(sql, outcome, ticks, declined, done, number)

    def finish_round(self, number: int) -> None:
        """Nothing is left to settle."""
        self._run("UPDATE round SET done = 1 WHERE number = ?", number)

    def last_begins_ms(self) -> int:
        """Begin of the last round that was announced; -1 before the first."""
        return int(self._one("SELECT ifnull(max(begins_ms), -1) FROM round")[0])

    def round(self, number: int) -> RoundRow | None:
        """One round."""
        return next(
            (_round(row) for row in self._all("SELECT * FROM round WHERE number = ?", number)),
            None,
        )

    def open_rounds(self) -> list[RoundRow]:
        """Rounds with something to do, oldest first."""
        return [_round(row) for row in self._all("SELECT * FROM round WHERE done = 0 ORDER BY number")]

    def last_rounds(self, count: int) -> list[RoundRow]:
        """The newest rounds, oldest first."""
        rows = self._all("SELECT * FROM round ORDER BY number DESC LIMIT ?", count)
        return [_round(row) for row in reversed(rows)]

    def forget(self, before_ms: int) -> None:
        """Delete finished rounds that began before a moment."""
        old = "SELECT number FROM round WHERE done AND begins_ms < ?"
        for table in ("bid", "award"):
            self._run(f"DELETE FROM {table} WHERE number IN ({old})", before_ms)  # noqa: S608  two fixed words
        self._run("DELETE FROM round WHERE done AND begins_ms < ?", before_ms)

    # ------------------------------------------------------------ bids

    def put_bid(self, number: int, bid: BidRow) -> None:
        """The bid that counts from now on."""
        sql = "INSERT OR REPLACE INTO bid VALUES (?, ?, ?, ?, ?)"
        self._run(sql, number, bid.origin, bid.version, bid.received_ms, bid.message)

    def bid(self, number: int, origin: str) -> BidRow | None:
        """The bid of a gateway that counts."""
        sql = "SELECT origin, version, received_ms, message FROM bid WHERE number = ? AND origin = ?"
        return next((BidRow(*row) for row in self._all(sql, number, origin)), None)

    def bids(self, number: int) -> list[BidRow]:
        """Those that count, in the order in which they came."""
        sql = "SELECT origin, version, received_ms, message FROM bid WHERE number = ? ORDER BY received_ms, origin"
        return [BidRow(*row) for row in self._all(sql, number)]

    # ------------------------------------------------------------ awards

    def add_awards(self, number: int, awards: Iterable[tuple[str, bytes, bool]]) -> None:
        """(origin, message, nothing to settle) of a round."""
        for origin, message, done in awards:
            self._run(
                "INSERT INTO award (number, origin, message, done) VALUES (?, ?, ?, ?)", number, origin, message, done
            )

    def awards(self, number: int) -> list[AwardRow]:
        """Those of a round, by origin."""
        sql = (
            "SELECT origin, message, confirmation, statement, inputs, done FROM award WHERE number = ? ORDER BY origin"
        )
        return [_award(row) for row in self._all(sql, number)]

    def confirm(self, number: int, origin: str, message: bytes) -> None:
        """What the gateway did about its award; the last word counts."""
        self._run("UPDATE award SET confirmation = ? WHERE number = ? AND origin = ?", message, number, origin)

    def settle(self, number: int, origin: str, statement: bytes | None, inputs: bytes | None) -> None:
        """An award is settled, or never will be."""
        sql = "UPDATE award SET statement = ?, inputs = ?, done = 1 WHERE number = ? AND origin = ?"
        self._run(sql, statement, inputs, number, origin)

    # ------------------------------------------------------------ what is sent

    def post(self, topic: str, payload: bytes, until_ms: int) -> None:
        """Have something sent."""
        self._run("INSERT INTO outbox (topic, payload, until_ms) VALUES (?, ?, ?)", topic, payload, until_ms)

    def retain(self, topic: str, payload: bytes) -> None:
        """Have something sent that the broker is to keep, in place of the last one."""
        self._run("INSERT OR REPLACE INTO retained VALUES (?, ?, 0)", topic, payload)

    def letters(self, now_ms: int) -> list[Letter]:
        """What is to be sent; what came to be useless is dropped."""
        kept = self._all("SELECT topic, payload FROM retained WHERE sent = 0 ORDER BY topic")
        rows = self._all("SELECT id, topic, payload FROM outbox WHERE until_ms > ? ORDER BY id", now_ms)
        return [
            *(Letter(0, topic, payload, retain=True) for topic, payload in kept),
            *(Letter(number, topic, payload, retain=False) for number, topic, payload in rows),
        ]

    def sent(self, letters: Iterable[Letter], now_ms: int) -> None:
        """The broker has taken them."""
        with self.transaction():
            for letter in letters:
                if letter.retain:
                    sql = "UPDATE retained SET sent = 1 WHERE topic = ? AND payload = ?"
                    self._run(sql, letter.topic, letter.payload)
                else:
                    self._run("DELETE FROM outbox WHERE id = ?", letter.id)
            self._run("DELETE FROM outbox WHERE until_ms <= ?", now_ms)

    def resend(self) -> None:
        """The broker may have lost what it kept."""
        with self.transaction():
            self._run("UPDATE retained SET sent = 0")


def _round(row: Sequence[Any]) -> RoundRow:
    return RoundRow._make((*row[:-1], bool(row[-1])))


def _award(row: Sequence[Any]) -> AwardRow:
    return AwardRow._make((*row[:-1], bool(row[-1])))


@contextmanager
def _failing(name: str) -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        raise JournalError(f"{name}: {error}") from None
