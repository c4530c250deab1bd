"""The invariants: what must be true of a gateway and of its head-end after every step, whatever the world does.

An oracle beside the running code: it learns of every durable commit at the database's seam and of every message at the
broker, rebuilds log and tree by itself, and says at once what does not fit. It never tells the product anything.

| invariant | checked |
|---|---|
| ``gap``: sequence numbers go on without one | at every commit, at every start, at the end |
| ``unsent``: what is sent was committed before | at every batch that the broker takes |
| ``signature``: checkpoints and receipts verify | at every commit, at every receipt |
| ``root``: roots at head-end and gateway are equal | at every commit, at every receipt |
| ``premature``: a receipt covers only what the head-end has committed | at every receipt |
| ``shown``: a checkpoint that ended a batch stays in the journal | at every commit |
| ``lost``: nothing acknowledged or committed is missing | at every start of an agent, at the end |
| ``value``: the log holds what the meter answered, and when | at every commit |
| ``decrease``: a cumulative register never decreases without a mark | at every commit |
| ``clock``: a jump of the wall clock stands in the log | at every commit |
| ``bounds``: batches under way, bytes on the disk, memory (world.py) | at batches, commits, every half hour |
| ``refused``: the head-end refuses nothing that the gateway sends, and finds no conflict | at the end |
| ``stopped``: no agent ends but by a fault of the world | when it ends |
| ``epoch``: a new one begins only where the disk was damaged, and names how far the last one was saved | at commits |
| ``delivered``: all of the log is at the head-end | at the end |
| ``resumed``: every meter is read and logged again when nothing is wrong any more | at the end |
"""

from collections.abc import Callable, Mapping
from enum import IntEnum
from itertools import islice
from typing import NamedTuple

import apsw

from energybid.agent.plan import AgentPlan
from energybid.agent.rows import SEQUENCE_BITS, SEQUENCE_MAX
from energybid.core import cbor
from energybid.core.cose import PublicKey
from energybid.core.entries import Clock, Declaration, Entry, Reading, Start
from energybid.core.entries import Epoch as EpochEntry
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, SignedCheckpoint, verify_receipt
from energybid.core.log import Salts
from energybid.core.quantities import Status
from energybid.core.tree import EMPTY_ROOT, Frontier, leaf_hash
from energybid.drivers.modbus.map import ModbusMap
from energybid.simulator.world.meters import Answer, Memory
from energybid.simulator.world.trace import Trace
from energybid.sync import columns
from energybid.sync.batch import DIGEST_SIZE

STEP_MS = 1000
ROUNDING_MS = 2
"""Of the times in a reading, together."""
DISK_BASE, DISK_PER_ENTRY = 2 << 20, 1024
"""Bound of the bytes on a gateway's disk: WAL and empty pages, and what an entry takes at most."""
ENTRIES_MAX = 65_536
SEAL_SIZE = 7
"""Fields of a row's checkpoint; one that has grown has more."""

SEGMENTS = "SELECT key, first, checkpoint, method, columns FROM segment WHERE key >= ? AND key <= ? ORDER BY key"
"""Columns by name: there may come to be others."""


NEWEST = "SELECT key, first, checkpoint FROM segment WHERE key > ? AND key <= ? ORDER BY key DESC LIMIT 1"


class Violation(NamedTuple):
    """An invariant that did not hold."""

    invariant: str
    text: str


class Hurt(IntEnum):
    """What befell the journal's file."""

    UNREADABLE = 1
    """A read failed, once: everything is there."""
    DAMAGED = 2
    """Bytes were changed: what can not be read, and what comes after it, may be lost if nobody had acknowledged it."""


class _Request(NamedTuple):
    """One request of a poll."""

    read: tuple[int, int, int]
    """Function, first register, count."""
    places: tuple[int, ...]
    """Addresses of the quantities that are logged."""

    def whole(self, answer: Answer, part: tuple[int | None, ...]) -> bool:
        """Whether an answer to this very request had these numbers."""
        if answer[:3] != self.read:
            return False
        if answer.places == self.places:
            return answer.mantissas == part
        numbers = dict(zip(answer.places, answer.mantissas, strict=True))
        return tuple(map(numbers.get, self.places)) == part

    def missing(self, answers: list[Answer], part: tuple[int | None, ...], status: tuple[int, ...] | None) -> list[int]:
        """Addresses of numbers that nobody gave.

        After a refusal a request is made again in pieces: then each run of numbers must come from one answer.
        """
        given = [
            dict(zip(answer.places, answer.mantissas, strict=True))
            for answer in answers
            if answer.function == self.read[0]
        ]
        found: list[int] = []
        at = 0
        while at < len(part):
            runs = [_agree(numbers, self.places[at:], part[at:]) for numbers in given] if part[at] is not None else []
            run = max(runs, default=0)
            if not run and (part[at] is not None or not status or not status[at]):
                found.append(self.places[at])
            at += run or 1
        return found


def _agree(numbers: dict[int, int], places: tuple[int, ...], part: tuple[int | None, ...]) -> int:
    """How many of the numbers, from the first on, are these."""
    count = 0
    for place, number in zip(places, part, strict=True):
        if number is None or numbers.get(place) != number:
            break
        count += 1
    return count


class _Row(NamedTuple):
    """One row of the journal: the entries of a commit, or of several when it has grown (docs/formats.md)."""

    key: int
    first: int
    end: int
    previous: int
    """Size at the checkpoint before."""
    seal: tuple[bytes, int, int, int, int, bytes, bytes]

    @classmethod
    def of(cls, key: int, first: int, seal: bytes) -> "_Row":
        fields = cbor.decode(seal)
        end, previous = fields[7:9] if len(fields) > SEAL_SIZE else (key, first)
        return cls(key, first, end, previous, tuple(fields[:SEAL_SIZE]))


class Epoch:
    """One epoch as the oracle knows it."""

    def __init__(self, number: int, epoch: bytes, secret: bytes) -> None:
        """Begin it."""
        self.number, self.id = number, epoch
        self.salts = Salts(secret)
        self.frontier = Frontier()
        self.leaves: list[bytes] = []
        self.row = 0
        """Sequence in the newest row's key."""
        self.roots: dict[int, bytes] = {0: EMPTY_ROOT}
        """At each checkpoint."""
        self.newest: list[Entry] = []
        """Those of the newest row."""
        self.shown: set[int] = set()
        """Ends of the batches that were sent."""
        self.acknowledged = 0
        """Largest receipt that was ever published."""
        self.meters: dict[int, str] = {}
        """Declaration → meter."""
        self.follows: Hurt | None = None
        """What was wrong with the disk when it began; None for the first."""
        self.ended: int | None = None
        """How many entries of it were saved, once it is over."""

    @property
    def size(self) -> int:
        """Entries committed."""
        return self.frontier.size

    @property
    def due(self) -> int:
        """Entries that the head-end must come to hold."""
        return self.size if self.ended is None else self.ended

    @property
    def kept(self) -> int:
        """Entries that were not lost with a damaged disk."""
        return self.size if self.ended is None else max(self.ended, min(self.acknowledged, self.size))


class GatewayWatch:
    """Follows one gateway's log."""

    def __init__(
        self,
        plan: AgentPlan,
        log_key: PublicKey,
        headend_key: PublicKey,
        meters: Mapping[str, Memory],
        trace: Trace,
        violated: Callable[[Violation], None],
    ) -> None:
        """Watch the gateway of ``plan``.

        Args:
            plan: What it runs.
            log_key: Verifies checkpoints.
            headend_key: Verifies receipts.
            meters: By name.
            trace: Gets every entry and receipt.
            violated: Called with whatever does not hold.
        """
        self.origin = plan.origin
        self.epochs: dict[bytes, Epoch] = {}
        self.readings = 0
        self.suspects = 0
        self.logged: set[str] = set()
        """Meters of which a reading with numbers was committed since this was cleared."""
        self.on_entry: Callable[[int, Entry], None] = lambda _sequence, _entry: None
        """Told of every entry that is durable."""
        self.hurt: Hurt | None = None
        """What befell the journal's file since it was made."""
        self.scarred = False
        """Its bytes were changed once."""
        self._plan = plan
        self._log_key = log_key
        self._headend_key = headend_key
        self._meters = meters
        self._trace = trace
        self._violated = violated
        self._requests = {
            meter.name: [
                [_Request((r.function, r.first, r.count), tuple(r.first + f.offset for f in r.fields)) for r in group]
                for group in meter.map.groups
            ]
            for bus in plan.buses
            for meter in bus.meters
            if isinstance(meter.map, ModbusMap)
        }
        self._cumulative = {
            meter.name: [[i for i, q in enumerate(group.quantities) if q.cumulative] for group in meter.groups]
            for bus in plan.buses
            for meter in bus.meters
        }
        self._last: dict[tuple[str, int], list[int | None]] = {}
        self._ended_ms: dict[tuple[str, int], int] = {}
        """When the newest reading of a meter's group ended."""
        self._offset_ms: int | None = None
        self._before: Entry | None = None
        self._ends: list[int] = []
        self._sent = -1

    def _wrong(self, invariant: str, text: str) -> None:
        self._violated(Violation(invariant, f"{self.origin}: {text}"))

    @property
    def newest(self) -> Epoch | None:
        """The epoch that is being written."""
        return next(reversed(self.epochs.values()), None)

    def harm(self, hurt: Hurt) -> None:
        """Something befalls the journal's file."""
        self.hurt = max(hurt, self.hurt or hurt)
        self.scarred = self.scarred or hurt is Hurt.DAMAGED

    # ------------------------------------------------------------ commits

    def committed(self, database: apsw.Connection, disk_bytes: int) -> None:
        """A transaction is durable: look at what is new in it."""
        try:
            self._committed(database)
        except (apsw.Error, EvidenceError):
            if self.hurt is not Hurt.DAMAGED:
                raise
        entries = sum(epoch.size for epoch in self.epochs.values())
        if disk_bytes > DISK_BASE + DISK_PER_ENTRY * entries:
            self._wrong("bounds", f"{disk_bytes} bytes on the disk for {entries} entries")

    def _committed(self, database: apsw.Connection) -> None:
        self._epochs(database)
        if self.newest:
            self._rows(database, self.newest)

    def _rows(self, database: apsw.Connection, epoch: Epoch) -> None:
        low = epoch.number << SEQUENCE_BITS
        for key, first, seal, method, packed in database.execute(SEGMENTS, (low | epoch.row, low | SEQUENCE_MAX)):
            row = _Row.of(key & SEQUENCE_MAX, first, seal)
            if row.end > epoch.size:
                self._segment(epoch, row, columns.unpack(method, packed, limit=1 << 30))

    def _epochs(self, database: apsw.Connection) -> None:
        for number, id_, secret in database.execute("SELECT number, id, secret FROM epoch ORDER BY number"):
            if id_ in self.epochs:
                continue
            if self.newest:
                self._rows(database, self.newest)  # a commit that was refused may have been saved all the same
                if self.hurt is None:
                    self._wrong("epoch", "a new epoch begins although nothing befell the disk")
            self.epochs[id_] = epoch = Epoch(number, id_, secret)
            epoch.follows, self.hurt = self.hurt, None
            self._last.clear()  # the new journal knows no numbers of the old one
            self._trace.event("epoch", self.origin, id_)

    def reopened(self, database: apsw.Connection, disk_bytes: int) -> None:
        """An agent opens the disk anew: everything that was committed must be there."""
        try:
            self._reopened(database, disk_bytes)
        except apsw.Error as error:
            if self.hurt is not Hurt.DAMAGED:
                self._wrong("lost", f"after a restart the journal can not be read: {error}")

    def _reopened(self, database: apsw.Connection, disk_bytes: int) -> None:
        ((tables,),) = database.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'segment'")
        if not tables:
            if self.epochs:
                self._wrong("lost", "the journal is empty after a restart")
            return
        self._epochs(database)
        for epoch in () if self.hurt is Hurt.DAMAGED else list(self.epochs.values())[-1:]:
            low = epoch.number << SEQUENCE_BITS
            held = 0
            for key, first, seal in database.execute(NEWEST, (low, low | SEQUENCE_MAX)):
                held = _Row.of(key & SEQUENCE_MAX, first, seal).end
            if held < epoch.size:
                self._wrong("lost", f"{epoch.size} entries were committed, {held} are there after a restart")
        self.committed(database, disk_bytes)

    def _segment(self, epoch: Epoch, row: "_Row", raw: bytes) -> None:
        """A row that is new, or has grown."""
        if not row.first <= row.previous == epoch.size:
            self._wrong("gap", f"a commit begins at {row.previous}, the log ended at {epoch.size}")
            return
        if row.first < row.previous and row.previous in epoch.shown:
            self._wrong("shown", f"the checkpoint at {row.previous} ended a batch, and a row has grown over it")
        before = epoch.frontier.root()
        entries = columns.decode(raw, limit=ENTRIES_MAX, trusted=True)
        known = row.previous - row.first
        same = known == len(epoch.newest) and entries[:known] == epoch.newest  # else it is told which is not
        epoch.newest = entries
        for sequence, entry in islice(enumerate(entries, row.first), known if same else 0, None):
            canonical = epoch.salts.canonical(sequence, entry)
            leaf = leaf_hash(canonical)
            if sequence < row.previous:
                if leaf != epoch.leaves[sequence]:
                    self._wrong("gap", f"entry {sequence} was rewritten")
                continue
            self._trace.event("entry", f"{self.origin} {sequence} {type(entry).__name__}", canonical)
            self._entry(epoch, sequence, entry)
            epoch.leaves.append(leaf)
            epoch.frontier.append(leaf)
        root, time_ms, clock, counter, algorithm, kid, signature = row.seal
        epoch.row = row.key
        epoch.roots[row.end] = epoch.frontier.root()
        if epoch.size != row.end:
            self._wrong("gap", f"a commit from {row.previous} to {row.end} holds {epoch.size - row.previous} entries")
        if root != epoch.frontier.root():
            self._wrong("root", f"the checkpoint at {row.end} has another root than its entries")
        checkpoint = Checkpoint(self.origin, epoch.id, row.end, root, row.previous, before, time_ms, clock, counter)
        try:
            SignedCheckpoint(checkpoint, algorithm, kid, signature).verify(self._log_key)
        except EvidenceError as error:
            self._wrong("signature", f"the checkpoint at {row.end}: {error}")

    # ------------------------------------------------------------ entries

    def _entry(self, epoch: Epoch, sequence: int, entry: Entry) -> None:
        if isinstance(entry, Reading):
            self.readings += 1
            meter = epoch.meters[entry.declaration]
            if any(value is not None for value in entry.values):
                self.logged.add(meter)
            self._values(meter, sequence, entry)
            self._decreases(meter, sequence, entry)
            self._steps(sequence, entry)
        elif isinstance(entry, Declaration):
            epoch.meters[sequence] = entry.meter
        elif isinstance(entry, EpochEntry):
            self._succeeds(epoch, entry.previous)
        elif isinstance(entry, Start):
            self._offset_ms = entry.time_ms - entry.mono_ms
        self._before = entry
        self.on_entry(sequence, entry)

    def _succeeds(self, epoch: Epoch, previous: tuple[bytes, int, bytes] | None) -> None:
        """A new epoch names how far the one before was saved."""
        before = [one for one in self.epochs.values() if one is not epoch and one.ended is None]
        for one in before:
            id_, size, root = previous or (one.id, 0, EMPTY_ROOT)
            one.ended = size if id_ == one.id else 0
            if one.ended < one.size and epoch.follows is not Hurt.DAMAGED:
                self._wrong("lost", f"{one.size} entries were committed, {one.ended} were saved from a whole disk")
            if id_ == one.id and one.roots.get(size) != root:
                self._wrong("epoch", f"a new epoch names another root of the last one at {size}")

    def _values(self, name: str, sequence: int, entry: Reading) -> None:
        """Each request's part of a reading is one answer that the meter gave within the reading's time."""
        begun_ms, before_ms = entry.mono_ms - entry.span_ms, self._ended_ms.get((name, entry.group), 0)
        if begun_ms < before_ms - ROUNDING_MS:
            self._wrong(
                "value", f"entry {sequence}: {name} was asked at {begun_ms} ms, before {before_ms} ms had ended"
            )
        self._ended_ms[name, entry.group] = entry.mono_ms
        meter = self._meters[name]
        answers = meter.answered((entry.mono_ms - entry.span_ms) / 1000 - 0.005, entry.mono_ms / 1000 + 0.002)
        at = 0
        for request in self._requests[name][entry.group]:
            fields = len(request.places)
            part = tuple(entry.values[at : at + fields])
            status = entry.status and tuple(entry.status[at : at + fields])
            at += fields
            if any(request.whole(answer, part) for answer in answers):
                continue
            missing = request.missing(answers, part, status)
            if missing:
                near = [answer.mantissas for answer in answers if answer.function == request.read[0]]
                self._wrong(
                    "value", f"entry {sequence}: {name}, {request.read}: nobody gave {missing} of {part}, but {near}"
                )

    def _decreases(self, name: str, sequence: int, entry: Reading) -> None:
        places = self._cumulative[name][entry.group]
        last = self._last.setdefault((name, entry.group), [None] * len(entry.values))
        for i in places:
            value, before = entry.values[i], last[i]
            if value is None:
                continue
            if before is not None and value < before:
                self.suspects += 1
                if entry.status is None or entry.status[i] < Status.SUSPECT:
                    self._wrong("decrease", f"entry {sequence}: {name} quantity {i} went from {before} to {value}")
            if entry.status is None or entry.status[i] != Status.SUSPECT:  # which is no basis for the next one
                last[i] = value

    def _steps(self, sequence: int, entry: Reading) -> None:
        offset_ms = entry.time_ms - entry.mono_ms
        jumped = self._offset_ms is not None and abs(offset_ms - self._offset_ms) >= STEP_MS
        if jumped and not (isinstance(self._before, Clock) and self._before.after_ms == entry.time_ms):
            self._wrong("clock", f"entry {sequence}: the clock jumped and no entry says so")
        self._offset_ms = offset_ms

    # ------------------------------------------------------------ the wire

    def sent(self, frame: bytes) -> None:
        """The broker took a batch."""
        id_, first, count = cbor.decode(frame[1:-DIGEST_SIZE])[:3]  # the head-end reads the rest
        end = first + count
        self._trace.event("batch", f"{self.origin} {first} {end}")
        epoch = self.epochs.get(id_)
        if epoch is None or end > epoch.size:
            held = epoch.size if epoch else 0
            self._wrong("unsent", f"entries up to {end} were sent, {held} are committed")
        if epoch is not None:
            epoch.shown.add(end)
        if first != self._sent:
            self._ends = []
        self._sent = end
        self._ends.append(end)
        window = self._plan.uplink.window if self._plan.uplink else 0
        if len(self._ends) > window:
            self._wrong("bounds", f"{len(self._ends)} batches under way; the window is {window}")

    def restarted(self) -> None:
        """A new agent, or a new connection: nothing is under way."""
        self._sent, self._ends = -1, []

    def receipt(self, message: bytes, durable: dict[bytes, int]) -> None:
        """The head-end published a receipt.

        Args:
            message: COSE_Sign1.
            durable: What the head-end's disk holds: epoch → entries.
        """
        try:
            receipt = verify_receipt(message, self._headend_key)
        except EvidenceError as error:
            self._wrong("signature", f"a receipt: {error}")
            return
        self._trace.event("receipt", f"{self.origin} {receipt.size}", message)
        if receipt.size > durable.get(receipt.epoch, 0):
            self._wrong(
                "premature", f"a receipt over {receipt.size}; the head-end holds {durable.get(receipt.epoch, 0)}"
            )
        epoch = self.epochs.get(receipt.epoch)
        if epoch is None or epoch.roots.get(receipt.size) != receipt.root:
            self._wrong("root", f"the receipt at {receipt.size} has another root than the gateway")
            return
        epoch.acknowledged = max(epoch.acknowledged, receipt.size)

    def received(self, message: bytes) -> None:
        """The gateway was given a receipt."""
        size = verify_receipt(message, self._headend_key).size
        self._ends = [end for end in self._ends if end > size]

    # ------------------------------------------------------------ the end

    def compare(self, epoch: Epoch, stored: list[tuple[int, bytes]], *, headend_lost: bool = False) -> None:
        """The head-end's entries of an epoch beside what the gateway committed.

        Args:
            epoch: The gateway's.
            stored: (sequence, canonical bytes) at the head-end.
            headend_lost: It lost its database, or was restored, at some time: what a damaged gateway then did not have
                any more is gone from both.
        """
        if [sequence for sequence, _ in stored] != list(range(len(stored))):
            self._wrong("gap", "the head-end's entries are not contiguous")
        gone = headend_lost and epoch.ended is not None
        if len(stored) < epoch.acknowledged and not gone:
            self._wrong("lost", f"{epoch.acknowledged} entries were acknowledged, the head-end holds {len(stored)}")
        for sequence, canonical in stored[: epoch.size]:
            if leaf_hash(canonical) != epoch.leaves[sequence]:
                self._wrong("lost", f"entry {sequence} is another one at the head-end")
                break
        if not (0 if gone else epoch.due) <= len(stored) <= epoch.size:
            self._wrong("delivered", f"{epoch.due} entries are in the log, {len(stored)} at the head-end")
