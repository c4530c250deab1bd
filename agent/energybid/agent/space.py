"""Space: keeps the journal within its budget and on its disk; says which readings may be logged, counts the others.

The one place that knows budget, ballast, pruning and what was left out. It never touches the log: the recorder asks
``spare`` about each reading while ``tight``, and appends the gaps that ``omitted`` hands out. The ballast is a file of
the budget's size that is given up when the disk itself is full, so that what is signed can still be stored; until it
is back, as much of the disk is left alone.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

from energybid.agent.budget import ENERGY_EVERY_S, FULL, HIGH, HYSTERESIS, LOW, Budget, Forecast, Stage, Usage
from energybid.agent.journal import Journal
from energybid.core.entries import Gap, GapReason
from energybid.core.errors import JournalStalledError
from energybid.core.ports import Disk, Sample
from energybid.core.quantities import Status

logger = logging.getLogger("energybid.agent")

MEASURES = 256
"""The usage is measured anew when a 256th of the budget was written."""
CHECK_EVERY_S = 15.0
"""And so often, for the disk may be filled by others."""
PRUNE_ROUNDS = 64
"""Most transactions of pruning in one go; the next measure goes on."""
TELL_EVERY_S = {GapReason.THINNED: 3600.0, GapReason.NO_SPACE: 86400.0}
"""What is left out is logged so often, and when it is over. A kill costs the count since then."""


class Limits(NamedTuple):
    """The journal's bounds."""

    budget: int
    """Bytes, for database, write-ahead log and ballast."""
    keep_s: float
    """Acknowledged history that stays, unless nothing else is left to give up."""
    keep_least_s: float
    """Acknowledged history that stays in any case."""


class _Omitted:
    """Readings that were not logged for one reason."""

    __slots__ = ("count", "first_ms", "last_ms", "since_s")

    def __init__(self, time_ms: int, now_s: float) -> None:
        self.count = 0
        self.first_ms = self.last_ms = time_ms
        self.since_s = now_s


class Space:
    """Budget, ballast and omissions of one journal."""

    def __init__(self, journal: Journal, disk: Disk | None, limits: Limits) -> None:
        """Keep ``journal`` within ``limits``; nothing is measured yet."""
        self.budget = Budget(limits.budget)
        self.usage = Usage(0, 0, 0)
        self.room = limits.budget
        self.not_logged = 0
        """Readings left out since the start."""
        self.ballast_there = False
        self.measured_s = float("-inf")
        self._journal = journal
        self._disk = disk
        self._limits = limits
        self._forecast = Forecast()
        self._omitted: dict[int, _Omitted] = {}
        self._turns: dict[tuple[int, int], int] = {}
        self._logged_ms: dict[tuple[int, int], int] = {}
        self._cumulative: dict[tuple[int, int], tuple[bool, ...]] = {}

    # ------------------------------------------------------------ measuring; called through offload

    @property
    def _ballast(self) -> str:
        return f"{self._journal.path}.ballast"

    def due(self, now_s: float) -> bool:
        """Whether it is time to measure."""
        return self._journal.grown >= self.budget.size // MEASURES or now_s - self.measured_s >= CHECK_EVERY_S

    def measure(self, now_s: float, now_ms: int) -> Stage | None:
        """Measure, prune as far as necessary, choose the level; the stage that was before, if it changed.

        Args:
            now_s: Monotonic time.
            now_ms: Wall clock.

        Raises:
            JournalStalledError: The disk refuses.
            JournalError: The journal can not be pruned.
        """
        before = self.budget.stage
        self.measured_s = now_s
        self._keep_ballast()
        self._look()
        if self.fill >= LOW:
            self._prune(now_ms - round(self._limits.keep_s * 1000), LOW - HYSTERESIS)
        if self.fill >= HIGH:
            self._prune(now_ms - round(self._limits.keep_least_s * 1000), HIGH - HYSTERESIS)
        self._forecast.sample(now_s, self.usage.used)
        self.budget.judge(self.fill)
        return before if before is not self.budget.stage else None

    @property
    def fill(self) -> float:
        """What the journal uses of its room."""
        return self.usage.used / self.room if self.room > 0 else 1.0

    def _look(self) -> None:
        disk, path = self._disk, self._journal.path
        try:
            self.usage = self._journal.usage((disk.size(f"{path}-wal") or 0) if disk else 0)
            self.room = self.budget.room(self.usage, self._free())
        except OSError as error:
            raise JournalStalledError(f"{path}: {error}") from error

    def _free(self) -> int | None:
        if self._disk is None:
            return None
        free = self._disk.free(self._journal.path)
        return free if self.ballast_there else max(0, free - self.budget.ballast)

    def _prune(self, before_ms: int, fill: float) -> None:
        for _ in range(PRUNE_ROUNDS):
            if self.fill < fill or not self._journal.prune(before_ms):
                return
            self._look()

    def _keep_ballast(self) -> None:
        """Have the ballast, made again once the disk has room for twice as much."""
        if self._disk is None or self.ballast_there:
            return
        try:
            if self._disk.size(self._ballast) is None:
                if self._disk.free(self._journal.path) < 2 * self.budget.ballast:
                    return
                self._disk.reserve(self._ballast, self.budget.ballast)
        except OSError as error:
            logger.debug("ballast: %s", error)
            return
        self.ballast_there = True

    def drop_ballast(self) -> bool:
        """The disk is full: give the ballast up; whether there was one."""
        dropped = self._disk is not None and self.ballast_there
        self.ballast_there = False
        self.measured_s = float("-inf")
        if dropped and self._disk:
            try:
                self._disk.reserve(self._ballast, 0)
            except OSError as error:  # a read-only disk
                logger.debug("ballast: %s", error)
                return False
        return dropped

    def full_in_s(self, now_s: float) -> float | None:
        """Seconds until nothing more is logged if the journal grows as in the last hours; None: it does not grow."""
        return self._forecast.full_in_s(now_s, self.usage.used, self.room)

    def growth(self, now_s: float) -> float:
        """Bytes per hour over the last hours."""
        return self._forecast.growth(now_s, self.usage.used)

    # ------------------------------------------------------------ readings

    @property
    def tight(self) -> bool:
        """Not every reading may be logged."""
        return self.budget.every != 1 or self.budget.stage is Stage.ENERGY

    @property
    def sealed(self) -> bool:
        """So full that not even a gap may be logged."""
        return self.usage.used >= (1 + FULL) / 2 * self.room

    def declare(self, declaration: int, groups: Iterator[tuple[bool, ...]], replaces: int) -> None:
        """Learn which quantities of a meter are cumulative.

        Args:
            declaration: Sequence of its declaration.
            replaces: Sequence of its declaration before, or -1.
            groups: For each poll group, a flag for each quantity.
        """
        for group, flags in enumerate(groups):
            self._cumulative.pop((replaces, group), None)
            self._cumulative[declaration, group] = flags
            for kept in (self._turns, self._logged_ms):  # thinning goes on where it was
                if (replaces, group) in kept:
                    kept[declaration, group] = kept.pop((replaces, group))

    def spare(self, declaration: int, group: int, sample: Sample, now_s: float) -> Sample | None:
        """What of a reading is to be logged, while ``tight``; None: nothing, and it is counted."""
        key = declaration, group
        if self.budget.stage is Stage.NOTHING:
            self.omit(GapReason.NO_SPACE, sample.time_ms, now_s)
            return None
        if self.budget.stage is Stage.ENERGY:
            flags = self._cumulative.get(key, ())
            wait_ms = ENERGY_EVERY_S * 1000
            if not any(flags) or sample.mono_ms - self._logged_ms.get(key, -(10**12)) < wait_ms - sample.span_ms:
                self.omit(GapReason.THINNED, sample.time_ms, now_s)
                return None
            self._logged_ms[key] = sample.mono_ms
            return energy_only(sample, flags)
        turn = self._turns.get(key, 0)
        self._turns[key] = turn + 1
        if turn % self.budget.every == 0:
            return sample
        self.omit(GapReason.THINNED, sample.time_ms, now_s)
        return None

    def omit(self, reason: int, time_ms: int, now_s: float, count: int = 1) -> None:
        """Count readings that are not logged."""
        omitted = self._omitted.setdefault(reason, _Omitted(time_ms, now_s))
        omitted.count += count
        omitted.last_ms = time_ms
        self.not_logged += count

    def forget(self) -> None:
        """Nothing more will be logged."""
        self._omitted.clear()

    def omitted(self, now_s: float, *, everything: bool) -> Iterator[Gap]:
        """The gaps that are to be logged now.

        Args:
            now_s: Monotonic time.
            everything: Also what is not due yet.
        """
        for reason, omitted in list(self._omitted.items()):
            if everything or now_s - omitted.since_s >= TELL_EVERY_S[reason]:
                del self._omitted[reason]
                yield Gap(None, omitted.first_ms, omitted.last_ms, reason, omitted.count)


def energy_only(sample: Sample, flags: tuple[bool, ...]) -> Sample:
    """A sample with its cumulative quantities alone; the others are marked as not logged."""
    marks = sample.status or (0,) * len(sample.values)
    values = tuple(value if keep else None for value, keep in zip(sample.values, flags, strict=True))
    status = tuple(int(mark) if keep else int(Status.NOT_LOGGED) for mark, keep in zip(marks, flags, strict=True))
    return sample._replace(values=values, status=status if any(status) else None)
