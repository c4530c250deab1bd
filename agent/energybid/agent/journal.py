"""The journal: the log on disk, in one SQLite database that is also the only queue to the utility.

Rows are *segments*: the entries of one commit, or of a few, as packed columns, with the checkpoint that ends them. A
segment's key is ``epoch << 40 | end of its first commit``, so the table is written only at its right edge and needs no
index. A commit is one transaction of one row, in WAL mode with ``synchronous=FULL``; the acknowledged mark rides along.
The committed end of the log is the last segment: its root is signed, its counter is the log's, and the frontier is
rebuilt at start from the last *anchor*, a segment that carries the frontier before it. Nothing here knows the clock or
a thread; callers run it through ``Platform.offload``, one call at a time.

The newest row may grow with the next commit (growing.py), for as long as nobody has been shown its checkpoint.

Opening checks the stored entries against the signed roots, at least from the last anchor on. What is wrong is told
apart by what is to be done: a ``JournalDamagedError`` where the file holds something else than what was committed
(quarantine.py), a ``JournalStalledError`` where the disk does not take or give anything now (the recorder waits).
"""

from __future__ import annotations

import itertools
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw

from energybid.agent.budget import FRAME, Usage
from energybid.agent.growing import ANCHOR_EVERY, INSERT, Newest
from energybid.agent.rows import (
    MIGRATIONS,
    ROLLED_BACK,
    SEAL,
    SEQUENCE_BITS,
    SEQUENCE_MAX,
    Acknowledged,
    Contradiction,
    EpochRow,
    Segment,
    Succession,
    end_of,
    row_of,
    seal_of,
    typed,
    walk,
)
from energybid.core import cbor
from energybid.core.errors import EvidenceError, JournalDamagedError, JournalError, JournalStalledError
from energybid.core.evidence import Checkpoint, SignedCheckpoint
from energybid.core.tree import EMPTY_ROOT, Frontier

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from energybid.agent.growing import Commit
    from energybid.core.ports import Database

CHECK_AT_OPEN = 65_536
"""Most entries checked at start; ``energybid verify`` checks all."""
PRUNE_AT_ONCE = 4 * ANCHOR_EVERY
"""Most segments looked at in one transaction."""

WAL_PAGES = 1000
"""SQLite's own measure for folding the write-ahead log into the file."""
MEMORY_KEYS, MEMORY_BYTES = 1024, 256 * 1024
"""What ``remember`` keeps at most, in all; beyond that, what was remembered the longest time ago is forgotten."""
MEMORY_KEY_CHARACTERS, MEMORY_VALUE_BYTES = 200, 4096
_DAMAGED_IO = {apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_CORRUPTFS, apsw.SQLITE_IOERR_DATA}

ROWS = "SELECT key, first, checkpoint, method, columns, peaks FROM segment"
LAST = "SELECT key, checkpoint FROM segment WHERE key > ? AND key <= ? ORDER BY key DESC LIMIT 1"
ACKNOWLEDGE = "INSERT OR REPLACE INTO acknowledged VALUES (1, ?, ?, ?)"
FORGET = """
DELETE FROM memory WHERE number IN (
    SELECT number FROM (
        SELECT number, row_number() OVER newest AS rank, sum(length(key) + length(value)) OVER newest AS size
        FROM memory WINDOW newest AS (ORDER BY number DESC)
    ) WHERE rank > ? OR size > ?
)"""


class Head(NamedTuple):
    """The committed end of the log."""

    epoch: EpochRow
    frontier: Frontier
    counter: int


class Journal:
    """One journal file."""

    def __init__(
        self, database: Database, path: str, *, check: bool = True, wal_pages: int = WAL_PAGES, fold: bool = False
    ) -> None:
        """Open it, make it or bring it up to date.

        Args:
            database: The open database; the journal closes it, at once if it can not be used.
            path: Its name, for messages.
            check: Rebuild the head; without it, segments can be read and nothing can be committed or brought up to
                date (the database may be read-only).
            wal_pages: The write-ahead log is folded into the file at so many pages.
            fold: Small commits of readings share a row.

        Raises:
            JournalDamagedError: Not a journal, or not as it was committed.
            JournalStalledError: The disk refuses now.
            JournalError: Of a newer program, or locked.
        """
        self.path = path
        self.grown = 0
        """Bytes of segments stored since the usage was measured."""
        self._database = database
        self._newest = Newest(fold=fold)
        try:
            with self._reported():
                self._prepare(wal_pages, migrate=check)
                self._head = self._read_head() if check else None
        except BaseException:
            self.close()
            raise

    def _prepare(self, wal_pages: int, *, migrate: bool) -> None:
        run = self._database.execute
        if migrate:  # else it may be a copy in another mode, which can be read and not changed
            run("PRAGMA page_size = 512")  # a commit writes whole pages, twice
            run("PRAGMA journal_mode = WAL")
            run("PRAGMA synchronous = FULL")
            run(f"PRAGMA wal_autocheckpoint = {wal_pages}")
            run(f"PRAGMA journal_size_limit = {wal_pages * FRAME}")  # a log that a long reader made grow shrinks again
        run("PRAGMA cache_size = -512")
        (self.version,) = next(run("PRAGMA user_version"))
        if self.version > len(MIGRATIONS):
            raise JournalError(
                f"{self.path}: version {self.version} is newer than this program's {len(MIGRATIONS)}: upgrade it"
            )
        if migrate:
            self._migrate(self.version)

    def _migrate(self, version: int) -> None:
        run = self._database.execute
        for number in range(version, len(MIGRATIONS)):
            run(f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; COMMIT")
            self.version = number + 1

    def _read_head(self) -> Head | None:
        epochs = self.epochs()
        if not epochs:
            return None
        succession = self.succession(epochs[-1].number)
        counter = succession.counter if succession else 0
        counter = max(counter, self.newest_counter() or 0)
        frontier, _ = self._replay(epochs[-1], most=0)
        return Head(epochs[-1], frontier, counter)

    @property
    def head(self) -> Head | None:
        """The committed end; None in a new journal. Its frontier must not be changed."""
        return self._head

    def epochs(self) -> list[EpochRow]:
        """All epochs, oldest first."""
        with self._reported("epochs"):
            return [
                EpochRow.read(row)
                for row in self._database.execute("SELECT number, id, origin, secret FROM epoch ORDER BY 1")
            ]

    def last_of(self, epoch: EpochRow) -> tuple[bytes, int, bytes]:
        """(id, size, root) of an epoch as far as it was committed."""
        low = epoch.number << SEQUENCE_BITS
        for key, seal in self._rows(LAST, (low, low | SEQUENCE_MAX)):
            end, fields = self._unsealed(key, seal)
            return epoch.id, end, fields[0]
        return epoch.id, 0, EMPTY_ROOT

    def undelivered(self) -> list[tuple[EpochRow, int, int]]:
        """(epoch, first, end) of what epochs before the newest hold without a receipt, oldest first.

        An epoch whose successor says that it was rolled back holds nothing that anybody should get.
        """
        epochs, mark = self.epochs(), self.acknowledged()
        found: list[tuple[EpochRow, int, int]] = []
        for epoch, following in itertools.pairwise(epochs):
            succession = self.succession(following.number)
            if (mark and epoch.number < mark.epoch) or (succession and succession.kind == ROLLED_BACK):
                continue
            first = mark.size if mark and mark.epoch == epoch.number else 0
            end = self.last_of(epoch)[1]
            if end > first and epoch.origin == epochs[-1].origin:
                found.append((epoch, first, end))
        return found

    def previous_of(self, epoch: EpochRow) -> tuple[bytes, int, bytes] | None:
        """(id, size, root) of the epoch before, as an Epoch entry names it; None for the first."""
        succession = self.succession(epoch.number)
        if succession:
            return succession.previous
        before = [row for row in self.epochs() if row.number < epoch.number]
        return self.last_of(before[-1]) if before else None

    def acknowledged(self) -> Acknowledged | None:
        """The last receipt that was accepted."""
        for row in self._rows("SELECT epoch, size, receipt FROM acknowledged"):
            with self._reported("acknowledged"):
                return Acknowledged(*typed(row, int, int, bytes))
        return None

    def succession(self, number: int) -> Succession | None:
        """Why the epoch of that number began; None for a first one."""
        if self.version < 2:  # noqa: PLR2004  the migration that brought the table
            return None
        for kind, reason, time_ms, previous, counter in self._rows(
            "SELECT kind, reason, time_ms, previous, counter FROM succession WHERE epoch = ?", (number,)
        ):
            with self._reported("succession"):
                typed((kind, reason, time_ms, previous or b"", counter), str, str, int, bytes, int)
                named = cbor.decode(previous) if previous else None
                if named is not None:
                    id_, size, root = typed(tuple(named) if isinstance(named, list) else (named,), bytes, int, bytes)
                    named = id_, size, root
                return Succession(kind, reason, time_ms, named, counter)
        return None

    def contradiction(self) -> Contradiction | None:
        """The receipt that forbids signing in the newest epoch."""
        rows = () if self.version < 2 else self._rows("SELECT detail, receipt FROM contradiction")  # noqa: PLR2004
        return next((Contradiction(*row) for row in rows), None)

    def contradict(self, contradiction: Contradiction) -> None:
        """Keep the receipt that shows the newest epoch to be rolled back or copied."""
        self._transaction([("INSERT OR REPLACE INTO contradiction VALUES (1, ?, ?)", tuple(contradiction))])

    def begin_epoch(self, *, id_: bytes, origin: str, secret: bytes, succession: Succession | None = None) -> Head:
        """Begin a new epoch; its first entries come with the next commit.

        Args:
            id_: 16 random bytes.
            origin: ``tenant/gateway``.
            secret: 32 random bytes, for salts.
            succession: Why, where there was one before.
        """
        number = self._head.epoch.number + 1 if self._head else 1
        counter = max(self._head.counter if self._head else 0, succession.counter if succession else 0)
        statements: list[tuple[str, tuple[Any, ...]]] = [
            ("INSERT INTO epoch VALUES (?, ?, ?, ?)", (number, id_, origin, secret)),
            ("DELETE FROM contradiction", ()),
        ]
        if succession:
            previous = succession.previous and cbor.encode(succession.previous)
            why = (number, succession.kind, succession.reason, succession.time_ms, previous, counter)
            statements.append(("INSERT INTO succession VALUES (?, ?, ?, ?, ?, ?)", why))
        self._transaction(statements)
        self._newest.forget()
        self._head = Head(EpochRow(number, id_, origin, secret), Frontier(), counter)
        return self._head

    def _transaction(self, statements: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        run = self._database.execute
        with self._reported():
            run("BEGIN IMMEDIATE")
            try:
                for statement, bindings in statements:
                    run(statement, bindings)
                run("COMMIT")
            except BaseException:
                with suppress(apsw.Error):  # what went wrong first is what counts
                    if self._database.in_transaction:
                        run("ROLLBACK")
                raise

    def commit(self, commit: Commit) -> None:
        """Store the entries since the last checkpoint, durably.

        Raises:
            JournalStalledError: The disk refused; nothing of the commit is stored, and it may be tried again.
            JournalDamagedError: The file is not what it was.
        """
        if self._head is None:
            raise ValueError("begin an epoch first")
        signed = commit.checkpoint
        checkpoint = signed.checkpoint
        first = checkpoint.size - len(commit.entries)
        if first != self._head.frontier.size:
            raise ValueError(f"commit begins at {first}, the journal ends at {self._head.frontier.size}")
        written = self._newest.row_of(self._head.epoch.number, commit)
        statements = [written.statement]
        if commit.acknowledged:
            statements.append((ACKNOWLEDGE, tuple(commit.acknowledged)))
        self._transaction(statements)
        self.grown += written.grown
        self._newest.took(written)
        self._head = Head(self._head.epoch, Frontier(checkpoint.size, commit.after), checkpoint.counter)

    def adopt(self, epoch: EpochRow, mark: Acknowledged | None) -> None:
        """Take over an epoch that was salvaged from another journal; its segments follow."""
        self._transaction([("INSERT INTO epoch VALUES (?, ?, ?, ?)", tuple(epoch))])
        if mark and mark.epoch == epoch.number:
            self.acknowledge(mark)

    def adopt_segments(self, epoch: EpochRow, segments: Sequence[Segment]) -> None:
        """Store segments as they are."""
        self._transaction([(INSERT, row_of(epoch, segment)) for segment in segments])

    def reread(self) -> None:
        """Rebuild the head after ``adopt``."""
        self._newest.forget()
        with self._reported():
            self._head = self._read_head()

    def acknowledge(self, mark: Acknowledged) -> None:
        """Store the acknowledged mark alone; while the agent runs it goes with a commit."""
        self._transaction([(ACKNOWLEDGE, tuple(mark))])

    def remember(self, key: str, value: bytes) -> None:
        """Keep a little state for later runs, durably: what was learned of a meter, say. No evidence, not signed.

        It outlives epochs and pruning, not a quarantine. What is remembered already is not written again; write rarely,
        each is a commit of its own. The table is bounded: see ``MEMORY_KEYS``.

        Args:
            key: 1 to 200 printable characters; a name of the kind first, so that ``recall`` can ask for it.
            value: Up to 4 KiB; replaces what was remembered under the key.

        Raises:
            ValueError: Key or value is too long, or the key can not be printed.
            JournalStalledError: The disk refused; nothing is changed.
        """
        self.remember_all({key: value})

    def remember_all(self, values: Mapping[str, bytes]) -> None:
        """Keep several values in one transaction: after a power cut there are all of the new ones or all of the old.

        Raises:
            ValueError: As ``remember``; nothing is changed.
            JournalStalledError: The disk refused; nothing is changed.
        """
        for key, value in values.items():
            if not (0 < len(key) <= MEMORY_KEY_CHARACTERS and key.isprintable()):
                raise ValueError(f"a key is 1 to {MEMORY_KEY_CHARACTERS} printable characters, not {key!r}")
            if len(value) > MEMORY_VALUE_BYTES:
                raise ValueError(f"{key}: {len(value)} bytes; {MEMORY_VALUE_BYTES} can be remembered")
        known = "SELECT value FROM memory WHERE key = ?"
        news = [(key, value) for key, value in values.items() if self._rows(known, (key,)) != [(value,)]]
        if news:
            kept = [("INSERT OR REPLACE INTO memory (key, value) VALUES (?, ?)", pair) for pair in news]
            self._transaction([*kept, (FORGET, (MEMORY_KEYS, MEMORY_BYTES))])

    def recall(self, prefix: str = "") -> dict[str, bytes]:
        """What was remembered under keys with this prefix, in the order of writing; nothing in an older journal."""
        if self.version < 3:  # noqa: PLR2004  the migration that brought the table
            return {}
        query = "SELECT key, value FROM memory WHERE substr(key, 1, ?) = ? ORDER BY number"
        rows = self._rows(query, (len(prefix), prefix))
        return {key: value for key, value in rows if (type(key), type(value)) == (str, bytes)}  # others are damaged

    def segments(self, epoch: int, first: int) -> Iterator[Segment]:
        """Segments of an epoch from the one that holds sequence ``first`` on, in order.

        Args:
            epoch: Its number.
            first: A sequence number.
        """
        low = epoch << SEQUENCE_BITS
        with self._reported():
            cursor = self._database.execute(
                f"{ROWS} WHERE key > ? AND key <= ? ORDER BY key", (low | first, low | SEQUENCE_MAX)
            )
        row = self._next_row(cursor)
        if row is None or not isinstance(row[1], int) or row[1] > first:
            yield from self._grown_over(low, first)
        while row is not None:
            yield self._segment(*row)
            row = self._next_row(cursor)

    def segments_back(self, epoch: int, end: int, most: int) -> Iterator[Segment]:
        """The last segments of an epoch that begin before sequence ``end``, newest first, so many at most."""
        low = epoch << SEQUENCE_BITS
        with self._reported():
            cursor = self._database.execute(
                f"{ROWS} WHERE key > ? AND key <= ? AND first < ? ORDER BY key DESC LIMIT ?",
                (low, low | SEQUENCE_MAX, end, most),
            )
        while (row := self._next_row(cursor)) is not None:
            yield self._segment(*row)

    def _grown_over(self, low: int, first: int) -> Iterator[Segment]:
        """The segment that has grown over a sequence from a key that is not above it, if there is one."""
        for row in self._rows(f"{ROWS} WHERE key > ? AND key <= ? ORDER BY key DESC LIMIT 1", (low, low | first)):
            segment = self._segment(*row)
            if segment.end > first:
                yield segment

    def _next_row(self, cursor: Any) -> tuple[Any, ...] | None:  # noqa: ANN401  apsw's
        with self._reported():
            return next(cursor, None)

    def _segment(self, key: int, first: int, seal: bytes, method: int, packed: bytes, peaks: bytes | None) -> Segment:
        with self._reported(f"segment at {key & SEQUENCE_MAX}"):
            typed((first, seal, method, packed, peaks or b""), int, bytes, int, bytes, bytes)
        end, fields = self._unsealed(key, seal)
        root, time_ms, clock, counter, algorithm, kid, signature = fields[: len(SEAL)]
        previous = (fields[-2], fields[-1]) if len(fields) > len(SEAL) else None
        return Segment(
            first, end, root, time_ms, clock, counter, algorithm, kid, signature, method, packed, peaks, previous
        )

    def _unsealed(self, key: int, seal: bytes) -> tuple[int, list[Any]]:
        """(sequence after the last entry, seal) of a row; who asks for the newest one's keeps it from growing."""
        with self._reported(f"segment at {key & SEQUENCE_MAX}"):
            fields = seal_of(seal)
            end = end_of(key, fields)
        self._newest.shown(key)
        return end, fields

    def root_at(self, epoch: int, size: int) -> bytes | None:
        """Root of the checkpoint at ``size``; None if no checkpoint of that size is kept."""
        low = epoch << SEQUENCE_BITS
        for key, seal in self._rows(LAST, (low, low | size)):
            end, fields = self._unsealed(key, seal)
            root: bytes = fields[0]
            return root if end == size else None
        return EMPTY_ROOT if size == 0 else None

    def checkpoint(self, epoch: EpochRow, segment: Segment) -> SignedCheckpoint:
        """The signed checkpoint that ends a segment.

        Raises:
            EvidenceError: The segment before it, whose root it names, is not kept any more.
        """
        previous_root = self.root_at(epoch.number, segment.first) if segment.previous is None else segment.previous[1]
        if previous_root is None:
            raise EvidenceError(f"the checkpoint at {segment.first} is not kept any more")
        return self.checkpoint_after(epoch, segment, previous_root)

    @staticmethod
    def checkpoint_after(epoch: EpochRow, segment: Segment, previous_root: bytes) -> SignedCheckpoint:
        """The signed checkpoint that ends a segment, given the root before it (a grown one has its own)."""
        checkpoint = Checkpoint(
            epoch.origin,
            epoch.id,
            segment.end,
            segment.root,
            *(segment.previous or (segment.first, previous_root)),
            segment.time_ms,
            segment.clock,
            segment.counter,
        )
        return SignedCheckpoint(checkpoint, segment.algorithm, segment.kid, segment.signature)

    def check(self, *, most: int = CHECK_AT_OPEN) -> int:
        """Rebuild the tree over the newest entries and compare every root on the way with what is stored.

        What else a start of the agent needs is read too: damage in it is found here, and nowhere later.

        Args:
            most: How many entries at most, counted back from the end (the check begins at an anchor before that).

        Returns:
            How many entries were checked.

        Raises:
            JournalError: Something stored does not fit.
        """
        if self._head is None:
            return 0
        with self._reported():
            frontier, checked = self._replay(self._head.epoch, most=most)
            if (frontier.size, frontier.peaks) != (self._head.frontier.size, self._head.frontier.peaks):
                raise EvidenceError(f"the entries end at {frontier.size}, not at {self._head.frontier.size}")
        self.acknowledged()
        self.previous_of(self._head.epoch)
        self.recall()
        return checked

    def _rows(self, statement: str, bindings: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._reported():
            return list(self._database.execute(statement, bindings))

    @contextmanager
    def _reported(self, what: str = "") -> Iterator[None]:
        """Whatever is wrong with the file is a JournalError that names it, by what is to be done about it."""
        try:
            yield
        except (apsw.Error, EvidenceError, UnicodeDecodeError) as error:  # the last: a text that was changed
            raise judged(error)(f"{self.path}: {what and what + ': '}{error}") from error

    def usage(self, wal_bytes: int) -> Usage:
        """What the journal takes on the disk.

        Args:
            wal_bytes: Size of the write-ahead log's file.
        """
        run = self._database.execute
        with self._reported():
            ((pages,), (free,), (size,)) = (
                next(run(f"PRAGMA {name}")) for name in ("page_count", "freelist_count", "page_size")
            )
        self.grown = 0
        return Usage((pages - free) * size, pages * size, wal_bytes)

    def newest_counter(self) -> int | None:
        """Counter of the newest checkpoint, over all epochs."""
        for (seal,) in self._database.execute("SELECT checkpoint FROM segment ORDER BY key DESC LIMIT 1"):
            counter: int = seal_of(seal)[3]
            return counter
        return None

    def anchor_at(self, epoch: EpochRow, size: int) -> int:
        """First sequence of the newest anchor at or before ``size``, else of the oldest one."""
        low = epoch.number << SEQUENCE_BITS
        anchors = "SELECT first FROM segment WHERE key > ? AND key <= ? AND peaks IS NOT NULL"
        run = self._database.execute
        for row in run(f"{anchors} AND first <= ? ORDER BY key DESC LIMIT 1", (low, low | SEQUENCE_MAX, size)):
            return int(typed(row, int)[0])
        for row in run(f"{anchors} ORDER BY key LIMIT 1", (low, low | SEQUENCE_MAX)):
            return int(typed(row, int)[0])
        return 0

    def readable(self, epoch: int) -> Iterator[Segment]:
        """Every segment of an epoch on both sides of what SQLite can not read, in no promised order."""
        reached, top = epoch << SEQUENCE_BITS, epoch << SEQUENCE_BITS | SEQUENCE_MAX
        with suppress(apsw.Error):
            for row in self._database.execute(f"{ROWS} WHERE key > ? AND key <= ? ORDER BY key", (reached, top)):
                reached = row[0]
                with suppress(JournalDamagedError):
                    yield self._segment(*row)
        with suppress(apsw.Error):
            for row in self._database.execute(f"{ROWS} WHERE key > ? AND key <= ? ORDER BY key DESC", (reached, top)):
                with suppress(JournalDamagedError):
                    yield self._segment(*row)

    def check_all(self, epoch: EpochRow) -> tuple[int, int]:
        """Check everything of an epoch that is kept; (first, end) of what was checked.

        Raises:
            JournalDamagedError: Something stored does not fit.
        """
        first, end = -1, 0
        with self._reported():
            for segment, after in walk(epoch, self.segments(epoch.number, 0)):
                first = segment.first if first < 0 else first
                end = after.size
        return max(first, 0), end

    def check_from(self, epoch: EpochRow, first: int, *, most: int) -> None:
        """Check the segments from the anchor before ``first`` on, about ``most`` entries, against their roots.

        Raises:
            JournalDamagedError: Something stored does not fit.
        """
        with self._reported():
            begin = self.anchor_at(epoch, first)
            for _ in walk(epoch, (s for s in self.segments(epoch.number, begin) if s.first < first + most)):
                pass

    def _replay(self, epoch: EpochRow, *, most: int) -> tuple[Frontier, int]:
        """Rebuild the tree from an anchor at least ``most`` entries before the end; (frontier, entries replayed)."""
        frontier = Frontier()
        begin: int | None = None
        for segment, after in walk(epoch, self.segments(epoch.number, self._anchor_before(epoch, most))):
            begin = segment.first if begin is None else begin
            frontier = after
        return frontier, frontier.size - (begin or 0)

    def _anchor_before(self, epoch: EpochRow, most: int) -> int:
        """First sequence of the newest anchor with ``most`` entries behind it, else of the oldest."""
        return self.anchor_at(epoch, self.last_of(epoch)[1] - most)

    def prune(self, before_ms: int) -> int:
        """Delete acknowledged segments older than ``before_ms``; the newest acknowledged one always stays.

        Returns:
            How many segments went; call again until it is 0.
        """
        mark = self.acknowledged()
        if mark is None:
            return 0
        limit = mark.epoch << SEQUENCE_BITS | mark.size
        rows = self._rows(
            "SELECT key, checkpoint, peaks IS NOT NULL FROM segment WHERE key < ? ORDER BY key LIMIT ?",
            (limit, PRUNE_AT_ONCE),
        )
        ends: list[int] = []
        gone = 0
        for key, seal, anchored in rows:
            if anchored:  # what is kept must begin where a check can begin
                gone = len(ends)
            with self._reported(f"segment at {key & SEQUENCE_MAX}"):
                time_ms = seal_of(seal)[1]
            if time_ms >= before_ms:
                break
            ends.append(key)
        if gone:
            self._transaction([("DELETE FROM segment WHERE key <= ?", (ends[gone - 1],))])
        return gone

    def close(self) -> None:
        """Close the file; idempotent. A disk that refuses now has what was committed in its write-ahead log."""
        with suppress(apsw.Error):
            self._database.close()


def judged(error: Exception) -> type[JournalError]:
    """What to do about an error of SQLite's, or about evidence that does not fit."""
    if isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) in _DAMAGED_IO:
        return JournalDamagedError
    if isinstance(error, (apsw.FullError, apsw.ReadOnlyError, apsw.IOError, apsw.CantOpenError)):
        return JournalStalledError
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError, EvidenceError, UnicodeDecodeError)):
        return JournalDamagedError
    return JournalError
