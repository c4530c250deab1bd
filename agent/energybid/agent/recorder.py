"""Recorder: the one owner of log and journal in the running agent.

Everything that is to be evidence is appended here, on the loop, and committed together every commit interval. What is
appended is bounded: who appends readings awaits ``room``, so a slow disk slows the polling down instead of filling the
memory. A disk that refuses (full, read-only, failing) does not: what is sealed is kept and tried again, readings are
kept up to ``STALL_MAX`` and counted beyond, and polling goes on, so that all is well again by itself.
"""

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING

from energybid.agent.budget import Stage
from energybid.agent.growing import Commit
from energybid.agent.journal import Journal
from energybid.agent.rows import Acknowledged, Contradiction, EpochRow
from energybid.agent.space import Limits, Space
from energybid.core.cose import Signer
from energybid.core.entries import (
    Clock,
    Declaration,
    Entry,
    Epoch,
    Gap,
    GapReason,
    Known,
    MarketMessage,
    Reading,
    Start,
)
from energybid.core.errors import JournalStalledError
from energybid.core.log import Log
from energybid.core.ports import Platform, Sample

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("energybid.agent")

SEGMENT_WEIGHT = 20_000
"""Numbers in one segment; then it is sealed and committed before the interval is over. Ten bytes are the most that a
number takes, so that a segment always fits one frame of 256 KiB."""
PENDING_MAX = 16 * SEGMENT_WEIGHT
"""Numbers that may wait for the disk; then appending readings waits."""
STALL_MAX = PENDING_MAX // 2
"""Numbers kept in memory while the disk refuses; then readings are left out and counted."""
CYCLE_MAX_S = 60.0
"""With commit interval 0 the budget is looked after at least so often."""
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0
STEP_MS = 1000
"""The wall clock stepped when it moved so much against the monotonic clock between two readings."""


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def weight(entry: Entry) -> int:
    """How many numbers an entry takes in a segment, about."""
    if isinstance(entry, Reading):
        return len(entry.values) + 2
    if isinstance(entry, MarketMessage):
        return 30 + len(entry.message) // 10
    return 30 + (sum(3 * len(quantities) for _, quantities in entry.groups) if isinstance(entry, Declaration) else 0)


class Recorder:
    """Appends, commits, and tells who waits for commits."""

    def __init__(
        self, platform: Platform, journal: Journal, signer: Signer, *, commit_interval_s: float, limits: Limits
    ) -> None:
        """Take over an open journal that has an epoch (see ``opening.open_recorder``)."""
        head = journal.head
        if head is None:
            raise ValueError("the journal has no epoch")
        self.epoch: EpochRow = head.epoch
        self.journal = journal
        self.readings = 0
        self.values = 0
        self.version = ""
        self.space = Space(journal, platform.disk, limits)
        self.stalled = ""
        """Why the disk takes no commits now; empty while it does."""
        self._previous = journal.previous_of(head.epoch)
        self._platform = platform
        self._interval_s = commit_interval_s
        self._log = Log(
            origin=head.epoch.origin,
            epoch=head.epoch.id,
            secret=head.epoch.secret,
            signer=signer,
            frontier=head.frontier.copy(),
            counter=head.counter,
        )
        self._pending: list[Known] = []
        self._sealed: deque[Commit] = deque()
        self._writing = asyncio.Lock()
        self._under_way: Awaitable[None] | None = None
        """The commit of ``_sealed[0]``, begun and not known to have ended."""
        self._retry_s = RETRY_MIN_S
        self._weight = 0
        """Of ``_pending``."""
        self._waiting = 0
        """Weight of everything that is sealed and not on the disk."""
        self._sparing = False
        """Readings are logged in part: the budget is tight, or the disk refuses and the memory is full."""
        self._before = self._log.peaks
        self.on_commit: list[Callable[[], None]] = []
        """Called after every commit."""
        self._receipted = asyncio.Event()
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._offset_ms: int | None = None
        self._clock = -1
        self._start = 0
        self.acknowledged: Acknowledged | None = journal.acknowledged()
        self._acknowledge: Acknowledged | None = None

    # ------------------------------------------------------------ appending

    @property
    def size(self) -> int:
        """Entries appended."""
        return self._log.size

    @property
    def committed(self) -> int:
        """Entries committed: only these may be sent."""
        head = self.journal.head
        return head.frontier.size if head and head.epoch.number == self.epoch.number else 0

    def append(self, entry: Known) -> int:
        """Append any entry; returns its sequence."""
        sequence = self._log.append(entry)
        self._pending.append(entry)
        self._weight += weight(entry)
        if self._weight >= SEGMENT_WEIGHT:
            self._seal()
            self._wake.set()
        return sequence

    @property
    def start(self) -> int:
        """Sequence of this run's Start entry."""
        return self._start

    @property
    def full(self) -> bool:
        """Nothing more can be kept: the disk refuses and the memory is full, or the budget is used up."""
        return self._overfull() or self.space.sealed

    def append_at_once(self, entry: Known) -> int | None:
        """Append an entry that is committed now, not with the interval; left out where there is no room for it.

        Returns:
            Its sequence, or None.
        """
        if self._overfull():
            logger.error("not logged, for the disk refuses: %s", entry)
            return None
        self._wake.set()
        return self.append(entry)

    def declare(self, declaration: Declaration, replaces: int = -1) -> int:
        """Append a meter's declaration, in place of the one at sequence ``replaces``; returns its sequence."""
        sequence = self.append(declaration)
        self.space.declare(
            sequence, (tuple(q[3] for q in quantities) for _, quantities in declaration.groups), replaces
        )
        return sequence

    def gap(self, gap: Gap) -> None:
        """Append a gap, or add it to what is left out where there is no room for it either."""
        if self.full:
            self.space.omit(GapReason.NO_SPACE, gap.to_ms, asyncio.get_running_loop().time(), gap.missed)
        else:
            self.append(gap)

    def started(self, version: str, configuration: bytes) -> None:
        """Append what opens a run: the epoch's own entry where it is new, and the start."""
        self.version = version
        now_ms = self._platform.now_ns() // 1_000_000
        mono_ms = _milliseconds(asyncio.get_running_loop().time())
        if self._log.size == 0:
            self.append(Epoch(self.epoch.origin, now_ms, self._previous))
        self._clock = int(self._platform.clock_state())
        self._offset_ms = now_ms - mono_ms
        self._start = self.append(Start(self._platform.boot_id, now_ms, mono_ms, self._clock, version, configuration))

    def reading(self, declaration: int, group: int, sample: Sample) -> bool:
        """Append a reading, or what of it there is room for, and whether there was any; await ``room`` before."""
        if self._sparing:
            spared = self._spare(declaration, group, sample)
            if spared is None:
                return False
            sample = spared
        clock = int(self._platform.clock_state())
        offset_ms = sample.time_ms - sample.mono_ms
        if self._offset_ms is None or abs(offset_ms - self._offset_ms) >= STEP_MS or clock != self._clock:
            self._clock_changed(sample, clock)
        self._offset_ms = offset_ms
        self.append(
            Reading(
                declaration,
                group,
                sample.time_ms,
                sample.span_ms,
                clock,
                self._start,
                sample.mono_ms,
                sample.values,
                sample.status,
            )
        )
        self.readings += 1
        self.values += len(sample.values)
        return True

    def _spare(self, declaration: int, group: int, sample: Sample) -> Sample | None:
        now_s = asyncio.get_running_loop().time()
        if self._overfull():
            self.space.omit(GapReason.NO_SPACE, sample.time_ms, now_s)
            return None
        return self.space.spare(declaration, group, sample, now_s) if self.space.tight else sample

    def _overfull(self) -> bool:
        """The disk refuses, and as much as may be is kept in memory."""
        return bool(self.stalled) and self._waiting + self._weight >= STALL_MAX

    def _clock_changed(self, sample: Sample, clock: int) -> None:
        before_ms = sample.time_ms if self._offset_ms is None else sample.mono_ms + self._offset_ms
        if abs(sample.time_ms - before_ms) >= STEP_MS:
            logger.warning("the clock stepped by %d ms; logged, nothing is re-written", sample.time_ms - before_ms)
        self._clock = clock
        self.append(Clock(self._start, sample.mono_ms, before_ms, sample.time_ms, clock))

    async def room(self) -> None:
        """Wait until another reading may be appended."""
        await self._room.wait()

    # ------------------------------------------------------------ committing

    def cycle_done(self) -> None:
        """A poll cycle ended: with commit interval 0 it is committed now."""
        if self._interval_s == 0 and self._pending:
            self._wake.set()

    async def commit(self) -> None:
        """Commit all that is pending; when the disk refuses, it is kept for later (see ``stalled``).

        Raises:
            JournalError: The journal is damaged, or locked; the agent must stop.
        """
        self._wake.clear()
        if not self.stalled or self._weight >= SEGMENT_WEIGHT:
            self._seal()  # while the disk refuses, few large segments
        async with self._writing:
            while self._sealed and await self._write(self._sealed[0]):
                pass
        if self._waiting < PENDING_MAX:
            self._room.set()

    async def _write(self, commit: Commit) -> bool:
        """Store the oldest sealed commit; False when the disk refuses."""
        # Shielded: a commit that has begun ends, also when the agent is told to stop meanwhile; the next call finds it.
        if self._under_way is None:
            self._under_way = asyncio.ensure_future(self._platform.offload(self.journal.commit, commit))
        try:
            await asyncio.shield(self._under_way)
        except JournalStalledError as error:
            self._under_way = None
            return await self._refused(error)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._under_way = None
            raise
        self._under_way = None
        self._sealed.popleft()
        self._waiting -= sum(map(weight, commit.entries))
        self._accepted()
        for listener in self.on_commit:
            listener()
        return True

    def _accepted(self) -> None:
        """The disk did what it was asked for."""
        if self.stalled:
            logger.warning("the disk takes commits again")
            self.stalled, self._retry_s = "", RETRY_MIN_S

    async def _refused(self, error: JournalStalledError) -> bool:
        """The disk refuses a commit; True when giving up the ballast may have helped."""
        if not self.stalled:
            logger.error("%s: readings are kept in memory, then counted, until the disk takes them", error)
        self.stalled = str(error)
        self._sparing = True
        self._room.set()
        return await self._platform.offload(self.space.drop_ballast)

    def _seal(self) -> None:
        """Sign what is pending: from here on it is one segment."""
        if not self._pending:
            return
        acknowledge, self._acknowledge = self._acknowledge, None
        checkpoint = self._log.checkpoint(self._platform.now_ns() // 1_000_000, int(self._platform.clock_state()))
        peaks = self._log.peaks
        self._sealed.append(Commit(self._pending, checkpoint, self._before, peaks, acknowledge))
        self._before = peaks
        self._waiting += self._weight
        self._pending, self._weight = [], 0
        if self._waiting >= PENDING_MAX:
            self._room.clear()

    def abandon(self) -> None:
        """Sign nothing more: what is pending is dropped."""
        self._pending, self._weight = [], 0
        self.space.forget()

    async def contradicted(self, detail: str, receipt: bytes) -> None:
        """Keep the receipt that shows this journal to be rolled back or copied: no later run signs in this epoch."""
        await self._platform.offload(self.journal.contradict, Contradiction(detail, receipt))

    async def close(self) -> None:
        """Commit what is left, with the acknowledged mark, and close the journal.

        Raises:
            JournalStalledError: The disk refuses to the end; what was not stored is lost, and was never sent.
        """
        try:
            if self._under_way and not self._sealed:  # discarded, but a commit may be on its way
                await asyncio.gather(self._under_way, return_exceptions=True)
            self._tell_omitted(everything=True)
            await self.commit()
            if self._acknowledge and not self.stalled:
                await self._platform.offload(self.journal.acknowledge, self._acknowledge)
            if self._sealed:
                raise JournalStalledError(
                    f"{self.stalled}: {self.size - self.committed} entries that were not stored are lost"
                )
        finally:
            await self._platform.offload(self.journal.close)

    def discard(self) -> Gap | None:
        """Store nothing more, for the journal is damaged; returns the gap that this leaves for the next one."""
        entries = [entry for commit in self._sealed for entry in commit.entries] + self._pending
        lost = [entry.time_ms for entry in entries if isinstance(entry, Reading)]
        self.abandon()
        self._sealed.clear()
        self._acknowledge = None
        return Gap(None, lost[0], lost[-1], GapReason.DAMAGED, len(lost)) if lost else None

    async def run(self) -> None:
        """Commit every interval, or earlier when much is pending; keep to the budget. Ends by cancellation.

        Raises:
            JournalError: The journal is damaged, or locked; the agent must stop.
        """
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause_s()):
                    await self._wake.wait()
            await self.commit()
            await self._keep_room()

    def _pause_s(self) -> float | None:
        if not self.stalled:
            return self._interval_s or CYCLE_MAX_S
        pause_s, self._retry_s = self._retry_s, min(2 * self._retry_s, RETRY_MAX_S)
        self._wake.clear()
        return pause_s

    async def _keep_room(self) -> None:
        """Measure when it is time; append the gaps that are due."""
        now_s = asyncio.get_running_loop().time()
        space = self.space
        waits = bool(self.stalled) and bool(self._sealed or self._pending)  # the next commit tells how the disk is
        if not waits and space.due(now_s):
            try:
                if self._sparing and self._acknowledge:  # no commit may carry it, and what it covers may go
                    mark = self._acknowledge
                    await self._platform.offload(self.journal.acknowledge, mark)
                    self._acknowledge = self._acknowledge if self._acknowledge is not mark else None
                before = await self._platform.offload(space.measure, now_s, self._platform.now_ns() // 1_000_000)
            except JournalStalledError as error:
                await self._refused(error)
                return
            self._accepted()
            if before is not None:
                level = logging.INFO if {before, space.budget.stage} <= {Stage.ALL, Stage.PRUNING} else logging.WARNING
                logger.log(
                    level, "journal: %s instead of %s, %.0f%% full", space.budget.stage, before, 100 * space.fill
                )
        self._sparing = space.tight or bool(self.stalled)
        self._tell_omitted(everything=not self._sparing)

    def _tell_omitted(self, *, everything: bool) -> None:
        """Log what was left out."""
        if self.full:
            return
        for gap in self.space.omitted(asyncio.get_running_loop().time(), everything=everything):
            self.append(gap)

    # ------------------------------------------------------------ acknowledging

    @property
    def acknowledged_size(self) -> int:
        """Entries of this epoch that the head-end has signed for."""
        mark = self.acknowledged
        return mark.size if mark and mark.epoch == self.epoch.number else 0

    def acknowledge(self, size: int, receipt: bytes) -> None:
        """Move the acknowledged mark; it reaches the disk with the next commit.

        A mark lost in a power cut costs nothing: the broker keeps the receipt retained and gives it again.
        """
        self.acknowledged = self._acknowledge = Acknowledged(self.epoch.number, size, receipt)
        self._receipted.set()

    async def acknowledge_older(self, epoch: EpochRow, size: int, receipt: bytes) -> None:
        """Move the mark within an older epoch, whose tail is being delivered."""
        self.acknowledged = Acknowledged(epoch.number, size, receipt)
        with contextlib.suppress(JournalStalledError):  # the receipt comes again
            await self._platform.offload(self.journal.acknowledge, self.acknowledged)

    async def acknowledged_up_to(self, size: int) -> None:
        """Wait for a receipt over ``size`` entries."""
        while self.acknowledged_size < size:
            self._receipted.clear()
            await self._receipted.wait()
