"""Recorder: the one owner of log and journal in the running agent.

Everything that is to be evidence is appended here, on the loop, and committed together every commit interval. What is
appended is bounded: who appends readings awaits ``room``, so a disk that stalls slows the polling down instead of
filling the memory.
"""

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from energybid.agent.journal import Acknowledged, Commit, EpochRow, Journal
from energybid.core.cose import Signer
from energybid.core.entries import Clock, Declaration, Entry, Epoch, Known, Reading, Start
from energybid.core.log import Log
from energybid.core.ports import Platform, Sample
from energybid.core.salt import SECRET_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("energybid.agent")

SEGMENT_WEIGHT = 20_000
"""Numbers in one segment; then it is sealed and committed before the interval is over. Ten bytes are the most that a
number takes, so that a segment always fits one frame of 256 KiB."""
PENDING_MAX = 16 * SEGMENT_WEIGHT
"""Numbers that may wait for the disk; then appending readings waits."""
STEP_MS = 1000
"""The wall clock stepped when it moved so much against the monotonic clock between two readings."""
PRUNE_EVERY_S = 600


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def weight(entry: Entry) -> int:
    """How many numbers an entry takes in a segment, about."""
    if isinstance(entry, Reading):
        return len(entry.values) + 2
    return 30 + (sum(3 * len(quantities) for _, quantities in entry.groups) if isinstance(entry, Declaration) else 0)


class Recorder:
    """Appends, commits, and tells who waits for commits."""

    def __init__(
        self, platform: Platform, journal: Journal, signer: Signer, *, commit_interval_s: float, keep_s: float
    ) -> None:
        """Take over an open journal that has an epoch (see ``open_recorder``)."""
        head = journal.head
        if head is None:
            raise ValueError("the journal has no epoch")
        self.epoch: EpochRow = head.epoch
        self.journal = journal
        self.readings = 0
        self.values = 0
        self.version = ""
        before = [epoch for epoch in journal.epochs() if epoch.number < head.epoch.number]
        self._previous = journal.last_of(before[-1]) if before else None
        self._platform = platform
        self._interval_s = commit_interval_s
        self._keep_s = keep_s
        self._log = Log(
            origin=head.epoch.origin,
            epoch=head.epoch.id,
            secret=head.epoch.secret,
            signer=signer,
            frontier=head.frontier.copy(),
            counter=head.counter,
        )
        self._pending: list[Known] = []
        self._sealed: list[Commit] = []
        self._weight = 0
        """Of ``_pending``."""
        self._waiting = 0
        """Weight of everything that is not on the disk."""
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

    def reading(self, declaration: int, group: int, sample: Sample) -> None:
        """Append a reading; await ``room`` before."""
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
        """Commit all that is pending.

        Raises:
            JournalError: The disk refused; the agent must stop.
        """
        self._wake.clear()
        self._seal()
        sealed, self._sealed = self._sealed, []
        for commit in sealed:
            # Shielded: a commit that has begun ends, also when the agent is told to stop meanwhile.
            await asyncio.shield(asyncio.ensure_future(self._platform.offload(self.journal.commit, commit)))
            self._waiting -= sum(map(weight, commit.entries))
            for listener in self.on_commit:
                listener()
        if self._waiting < PENDING_MAX:
            self._room.set()

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

    async def close(self) -> None:
        """Commit what is left, with the acknowledged mark, and close the journal."""
        await self.commit()
        if self._acknowledge:
            await self._platform.offload(self.journal.acknowledge, self._acknowledge)
        await self._platform.offload(self.journal.close)

    async def run(self) -> None:
        """Commit every interval, or earlier when much is pending; prune from time to time. Ends by cancellation."""
        loop = asyncio.get_running_loop()
        prune_at = loop.time()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s or None):
                    await self._wake.wait()
            await self.commit()
            if loop.time() >= prune_at:
                prune_at = loop.time() + PRUNE_EVERY_S
                await self._prune()

    async def _prune(self) -> None:
        before_ms = self._platform.now_ns() // 1_000_000 - _milliseconds(self._keep_s)
        while await self._platform.offload(self.journal.prune, before_ms):
            pass

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

    async def acknowledged_up_to(self, size: int) -> None:
        """Wait for a receipt over ``size`` entries."""
        while self.acknowledged_size < size:
            self._receipted.clear()
            await self._receipted.wait()


async def open_recorder(
    platform: Platform, path: str, origin: str, signer: Signer, *, commit_interval_s: float, keep_s: float
) -> Recorder:
    """Open or make the journal, check it, begin the first epoch where there is none.

    Raises:
        JournalError: It can not be used.
    """

    def prepare() -> Journal:
        journal = Journal(platform.open_database(path), path)
        journal.check()
        if journal.head is None or journal.head.epoch.origin != origin:
            journal.begin_epoch(id_=platform.entropy(16), origin=origin, secret=platform.entropy(SECRET_SIZE))
        return journal

    journal = await platform.offload(prepare)
    return Recorder(platform, journal, signer, commit_interval_s=commit_interval_s, keep_s=keep_s)
