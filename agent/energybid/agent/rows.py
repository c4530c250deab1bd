"""What the journal's tables hold: their definition, their rows, and how rows are checked.

Here live the tables with their migrations, the values made of rows, and the walk along segments that rebuilds what they
claim. No database is touched: rows come in and go out (``journal`` reads and writes them).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.core import cbor
from energybid.core.entries import ID_SIZE
from energybid.core.errors import EvidenceError
from energybid.core.log import Salts
from energybid.core.salt import SECRET_SIZE
from energybid.core.tree import HASH_SIZE, Frontier, leaf_hash
from energybid.sync import columns

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from energybid.core.entries import Entry
    from energybid.core.evidence import SignedCheckpoint

SEQUENCE_BITS = 40
SEQUENCE_MAX = (1 << SEQUENCE_BITS) - 1
SEGMENT_ENTRIES_MAX = 65_536
SEAL = (bytes, int, int, int, int, bytes, bytes)
GROWN = (*SEAL, int, int, bytes)

MIGRATIONS = (
    """
    CREATE TABLE epoch (
        number INTEGER PRIMARY KEY,
        id BLOB NOT NULL UNIQUE,
        origin TEXT NOT NULL,
        secret BLOB NOT NULL
    ) STRICT;
    CREATE TABLE segment (
        key INTEGER PRIMARY KEY,   -- epoch number << 40 | sequence after the last entry
        first INTEGER NOT NULL,
        checkpoint BLOB NOT NULL,  -- CBOR [root, time_ms, clock, counter, algorithm, kid, signature]
        method INTEGER NOT NULL,
        columns BLOB NOT NULL,
        peaks BLOB                 -- frontier at the segment's first entry, on every 32nd segment
    ) STRICT;
    CREATE TABLE acknowledged (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch INTEGER NOT NULL REFERENCES epoch (number),
        size INTEGER NOT NULL,
        receipt BLOB NOT NULL      -- COSE_Sign1
    ) STRICT;
    """,
    """
    CREATE TABLE succession (      -- why an epoch that is not the first began
        epoch INTEGER PRIMARY KEY, -- number of the new one
        kind TEXT NOT NULL,        -- damaged, rolled back, operator, renamed
        reason TEXT NOT NULL,      -- for people
        time_ms INTEGER NOT NULL,
        previous BLOB,             -- CBOR [id, size, root] that it names
        counter INTEGER NOT NULL   -- of checkpoints, at its begin
    ) STRICT;
    CREATE TABLE contradiction (   -- a receipt that does not fit the newest epoch: nothing more may be signed in it
        one INTEGER PRIMARY KEY CHECK (one = 1),
        detail TEXT NOT NULL,
        receipt BLOB NOT NULL      -- COSE_Sign1
    ) STRICT;
    PRAGMA application_id = 1161972300; -- "EBJL"
    """,
    """
    -- From here on segments may have grown: then the key has the sequence after their first commit, and the checkpoint
    -- three fields more: sequence after the last entry, and size and root of the checkpoint before theirs.
    CREATE TABLE memory (          -- operational state: no evidence, and learned again where it is lost
        number INTEGER PRIMARY KEY, -- in the order of writing
        key TEXT NOT NULL UNIQUE,
        value BLOB NOT NULL
    ) STRICT;
    """,
)
"""Applied in order; ``PRAGMA user_version`` counts those that were. Never change one that was released."""


class EpochRow(NamedTuple):
    """An epoch as the journal keeps it."""

    number: int
    id: bytes
    origin: str
    secret: bytes

    @classmethod
    def read(cls, row: tuple[Any, ...]) -> EpochRow:
        """From its columns.

        Raises:
            EvidenceError: They are of other types, or lengths.
        """
        found = cls(*typed(row, int, bytes, str, bytes))
        if (len(found.id), len(found.secret)) != (ID_SIZE, SECRET_SIZE):
            raise EvidenceError("an epoch's id or secret has another length")
        return found


class Succession(NamedTuple):
    """Why an epoch followed another."""

    kind: str
    """damaged, rolled back, operator or renamed."""
    reason: str
    time_ms: int
    previous: tuple[bytes, int, bytes] | None
    """Id, size and root of the epoch before, as the new one's Epoch entry names them."""
    counter: int = 0
    """Checkpoints of the new epoch count on from here, or from what the journal holds if that is more."""


class Contradiction(NamedTuple):
    """A receipt that shows the journal to be rolled back, copied or changed."""

    detail: str
    receipt: bytes


ROLLED_BACK = "rolled back"
"""Succession of an epoch whose tail must not be sent any more."""


class Acknowledged(NamedTuple):
    """The last receipt that was accepted."""

    epoch: int
    """Its number."""
    size: int
    receipt: bytes


class Segment(NamedTuple):
    """One row: the entries of a commit, or of several when it has grown, with the checkpoint that ends them."""

    first: int
    end: int
    root: bytes
    time_ms: int
    clock: int
    counter: int
    algorithm: int
    kid: bytes
    signature: bytes
    method: int
    columns: bytes
    peaks: bytes | None
    previous: tuple[int, bytes] | None = None
    """Size and root of the checkpoint before, where the segment has grown over it."""

    def entries(self) -> list[Entry]:
        """The entries, unpacked.

        Raises:
            EvidenceError: They are damaged.
        """
        raw = columns.unpack(self.method, self.columns, limit=columns.RAW_MAX)
        entries = columns.decode(raw, limit=SEGMENT_ENTRIES_MAX, trusted=True)
        if len(entries) != self.end - self.first:
            raise EvidenceError(f"segment {self.first} to {self.end} holds {len(entries)} entries")
        if self.previous and not self.first < self.previous[0] < self.end:
            raise EvidenceError(f"segment {self.first} to {self.end} can not have grown at {self.previous[0]}")
        return entries


def walk(epoch: EpochRow, segments: Iterable[Segment]) -> Iterator[tuple[Segment, Frontier]]:
    """Segments as long as they follow one another and lead to their roots, each with the frontier after it.

    Args:
        epoch: Theirs.
        segments: In order; the first is an anchor. (The frontier is the same object each time, growing.)

    Raises:
        EvidenceError: Where they do not.
    """
    frontier: Frontier | None = None
    salts = Salts(epoch.secret)
    for segment in segments:
        if frontier is None:
            frontier = Frontier(segment.first, split_hashes(segment.peaks or b""))
        if segment.first != frontier.size:
            raise EvidenceError(f"entries {frontier.size} to {segment.first} are missing")
        for leaf in leaves_of(salts, segment):
            frontier.append(leaf)
            if segment.previous and segment.previous[0] == frontier.size:
                same_root(segment, frontier)
        if frontier.root() != segment.root:
            raise EvidenceError(f"entries {segment.first} to {segment.end} do not lead to their root")
        yield segment, frontier


def leaves_of(salts: Salts, segment: Segment) -> list[bytes]:
    """Hashes of the entries of a segment.

    Raises:
        EvidenceError: It is damaged.
    """
    return [leaf_hash(salts.canonical(place, entry)) for place, entry in enumerate(segment.entries(), segment.first)]


def row_of(epoch: EpochRow, segment: Segment) -> tuple[Any, ...]:
    """The row that a segment is stored as."""
    grown = (segment.end, *segment.previous) if segment.previous else ()
    seal = cbor.encode((*segment[2:9], *grown))
    key = epoch.number << SEQUENCE_BITS | segment.end
    return key, segment.first, seal, segment.method, segment.columns, segment.peaks


def end_of(key: int, fields: list[Any]) -> int:
    """Sequence after the last entry of a row.

    Args:
        key: The row's.
        fields: Its seal, see ``seal_of``.

    Raises:
        EvidenceError: The two do not fit.
    """
    end = key & SEQUENCE_MAX
    if len(fields) > len(SEAL):
        reached, previous = fields[-3:-1]
        if not (previous < reached and end <= reached <= SEQUENCE_MAX):
            raise EvidenceError("its checkpoint does not fit its key")
        end = reached
    return end


def seal_of(seal: object) -> list[Any]:
    """What a row keeps of its checkpoint.

    Raises:
        EvidenceError: The seal is none.
    """
    fields = cbor.decode(seal) if isinstance(seal, bytes) else None
    if not isinstance(fields, list) or tuple(map(type, fields)) not in {SEAL, GROWN}:
        raise EvidenceError("its checkpoint is no checkpoint")
    return fields


def typed(row: tuple[Any, ...], *types: type) -> tuple[Any, ...]:
    """A row as its table has it: SQLite does not look at what it reads, and damage makes numbers of bytes.

    Raises:
        EvidenceError: It is another.
    """
    if len(row) != len(types) or not all(map(isinstance, row, types)):
        raise EvidenceError("a row holds other types than its table")
    return row


def same_root(segment: Segment, frontier: Frontier) -> None:
    """Check the root before the last commit of a grown segment.

    Raises:
        EvidenceError: It is another.
    """
    if segment.previous and segment.previous[1] != frontier.root():
        raise EvidenceError(f"entries up to {frontier.size} do not lead to the root before the checkpoint")


def sealed(signed: SignedCheckpoint) -> tuple[bytes, int, int, int, int, bytes, bytes]:
    """What a row keeps of its checkpoint."""
    of = signed.checkpoint
    return of.root, of.time_ms, of.clock, of.counter, signed.algorithm, signed.kid, signed.signature


def split_hashes(data: bytes) -> list[bytes]:
    """Concatenated 32-byte hashes → list."""
    return [data[i : i + HASH_SIZE] for i in range(0, len(data), HASH_SIZE)]
