"""Polling: when each poll group of each meter is due, and what a failure means for it.

Polls are aligned to multiples of their interval in UTC; groups of a meter that are due at once are read at once. One
scheduler per bus; a bus polls as many meters at once as its driver allows. A meter that does not answer is backed off
alone: after ``DEAD_AFTER`` failures it gets single probes, later and later, one at a time and in the slack between the
polls of the healthy ones. A bus without slack gives probes no more than one part in ``PROBE_SHARE`` of its time. So a
dead meter costs its bus almost nothing.
"""

import asyncio
import heapq
import itertools
import logging
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from energybid.agent.judgement import Counters, Judge
from energybid.agent.recorder import Recorder
from energybid.core.entries import Declaration, Gap, GapReason
from energybid.core.errors import BusDownError, GarbledError, MeterError, NoReplyError, RefusedError
from energybid.core.ports import BusPlan, Driver, MeterPlan, Platform, Sample

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

logger = logging.getLogger("energybid.agent")

NS = 1_000_000_000
DEAD_AFTER = 2
"""Failed polls in a row, all tries used, after which a meter counts as dead; one that never answered is after one."""
BACKOFF_MAX_S = 300.0
PROBE_SHARE = 40
"""After a probe the next one that there is no slack for waits so many times as long as that took."""
PROBE_OWED_S = 5.0
"""A probe that waited so long for slack in vain is made before the next poll."""
DOWN_LOOK_S = 5.0
"""While a bus is down, each meter is polled no more often than this, just to see whether it is back."""
DECLARE_EVERY_MS = 86_400_000
"""A meter is declared anew so often: history that is pruned must not take the meaning of what stays along."""
LOOK_AGAIN_S = 5.0
"""Longest sleep before the wall clock is looked at again: it may have stepped."""

_REASONS: dict[type[MeterError], int] = {
    NoReplyError: GapReason.NO_REPLY,
    GarbledError: GapReason.NO_REPLY,
    BusDownError: GapReason.BUS_DOWN,
    RefusedError: GapReason.REFUSED,
}


class MeterState(StrEnum):
    """What the operator is told."""

    NEW = "new"
    OK = "ok"
    PARTIAL = "partial"
    FAILING = "failing"
    DEAD = "dead"


@dataclass(slots=True)
class Meter:
    """A meter while the agent runs."""

    plan: MeterPlan
    bus: str
    declaration: int = -1
    """Sequence of its declaration."""
    declared_ms: int = 0
    """Loop time of it."""
    state: MeterState = MeterState.NEW
    error: str = ""
    last: dict[int, Sample] = field(default_factory=dict)
    """Newest sample by group."""
    judges: list[Judge] = field(default_factory=list)
    """One for each group."""
    polls: int = 0
    failures: int = 0
    """In a row."""
    failed_polls: int = 0
    """Since the start."""
    prober: int = 0
    """The group that is polled to see whether the meter is back, while it is dead."""
    parked: list["_Job"] = field(default_factory=list)
    """Its other groups, meanwhile."""
    probe_ns: int = 0
    """How long a probe takes, at most."""
    missed: int = 0
    """Polls that failed since the last good one; a Gap entry will say so."""
    gap_from_ms: int = 0
    gap_reason: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    meter: Meter
    group: int
    turn: int
    """Smaller: polled longer ago."""
    interval_ns: int
    wait_ns: int = 0
    """From the last poll to ``due_ns`` at most; longer than the interval while the meter is backed off."""
    due_ns: int = 0

    def __lt__(self, other: "_Job") -> bool:
        """Earlier first; at the same time who waits longest."""
        return (self.due_ns, self.turn) < (other.due_ns, other.turn)

    @property
    def probes(self) -> bool:
        return self.meter.state is MeterState.DEAD


def next_boundary(now_ns: int, interval_ns: int) -> int:
    """The first multiple of the interval after ``now_ns``."""
    return (now_ns // interval_ns + 1) * interval_ns


def declare(meter: MeterPlan) -> Declaration:
    """The entry that says what a meter's readings mean."""
    groups = tuple(
        (
            round(group.interval_s * 1000),
            tuple((q.obis.code, q.unit, q.exponent, q.cumulative) for q in group.quantities),
        )
        for group in meter.groups
    )
    return Declaration(meter.name, meter.profile, meter.profile_hash, None, groups)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class BusPoller:
    """Polls one bus."""

    def __init__(self, platform: Platform, recorder: Recorder, driver: Driver, plan: BusPlan) -> None:
        """Poll ``plan`` through ``driver`` into ``recorder``."""
        self.name = plan.name
        self.meters = [
            Meter(plan=meter, bus=plan.name, judges=[Judge(group) for group in meter.groups]) for meter in plan.meters
        ]
        self.overruns = 0
        """Polls that fell out because the bus was still busy when they were due."""
        self._platform = platform
        self._recorder = recorder
        self.driver = driver
        groups = [(meter, number, group) for meter in self.meters for number, group in enumerate(meter.plan.groups)]
        self._heap = [
            _Job(meter, number, index, round(group.interval_s * NS))
            for index, (meter, number, group) in enumerate(groups)
        ]
        self._probes: list[_Job] = []
        """A heap too: the dead meters."""
        self._polling = 0
        """Polls of healthy meters under way."""
        self._probing = False
        self._probe_at_ns = 0
        """When a probe may be made without slack."""
        self._down = False
        """The bus was down when it was last asked."""
        self._newest_ns = 0
        """The wall clock when jobs were last scheduled or looked at."""
        self._turns = itertools.count(len(self._heap))
        self._idle = asyncio.Lock()
        """Held by the worker that waits for the next poll to come due."""
        self._waiter: asyncio.Future[None] | None = None
        """What that worker waits for: done when a job was pushed, or one may be due."""
        self.on_poll_end: Callable[[], None] = lambda: None
        """Called whenever a poll or probe is over."""
        self.before_close: Callable[[], Awaitable[None]] | None = None
        """Awaited before the bus is released, however polling ends."""

    def remember(self, counters: Counters) -> None:
        """Know what an earlier run of the agent has logged last."""
        for meter in self.meters:
            for judge, group in zip(meter.judges, meter.plan.groups, strict=True):
                judge.remember(meter.plan.name, group, counters)

    def declare(self) -> None:
        """Append the declarations of this bus's meters."""
        now_ms = int(asyncio.get_running_loop().time() * 1000)
        for meter in self.meters:
            self._declare(meter, now_ms)

    def _declare(self, meter: Meter, now_ms: int) -> None:
        meter.declaration = self._recorder.declare(declare(meter.plan), meter.declaration)
        meter.declared_ms = now_ms

    async def run(self) -> None:
        """Poll until cancelled."""
        now_ns = self._platform.now_ns()
        for job in self._heap:
            self._schedule(job, now_ns, job.interval_ns)
        heapq.heapify(self._heap)
        workers = min(self.driver.concurrency, len(self._heap))
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(workers):
                    tasks.create_task(self._work())
        finally:
            if self.before_close is not None:
                await self.before_close()
            await self.driver.close()
            self._close_gaps()

    async def _work(self) -> None:
        while True:
            async with self._idle:
                jobs = self._with_others(await self._next())
            probes = jobs[0].probes  # now: another poll may change what is thought of the meter while this one waits
            await self._recorder.room()
            if probes:
                await self._probe(jobs[0])
            else:
                self._polling += 1
                try:
                    await self._poll(*jobs)
                finally:
                    self._polling -= 1
            now_ns = self._newest_ns = self._platform.now_ns()
            for job in jobs:
                self._schedule_next(job, now_ns)
                self._push(job)
            self._recorder.cycle_done()
            self.on_poll_end()

    def slack_s(self) -> float:
        """How long no poll needs the bus from now on."""
        return 0.0 if self._probing else max(0.0, self._slack_ns(self._platform.now_ns()) / NS)

    def _push(self, job: _Job) -> None:
        if job.probes and job.group != job.meter.prober:
            job.meter.parked.append(job)
        else:
            heapq.heappush(self._probes if job.probes else self._heap, job)
        if self._waiter is not None:
            _wake(self._waiter)

    async def _next(self) -> _Job:
        """The next job, when it is due."""
        while True:
            now_ns = self._platform.now_ns()
            job = self._take(now_ns)
            if job is not None:
                return job
            self._pull_in(now_ns)
            await self._pushed(self._wait_s(now_ns))

    async def _pushed(self, wait_s: float) -> None:
        """Wait until a job is pushed, or for so long: what a timeout around an event does, at a third of the cost."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(wait_s, _wake, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            timer.cancel()

    def _take(self, now_ns: int) -> _Job | None:
        """A probe that may be made, or the poll that is due the longest."""
        if self._probes and self._may_probe(self._probes[0], now_ns):
            self._probing = True
            return heapq.heappop(self._probes)
        while self._heap and self._heap[0].due_ns <= now_ns:
            job = heapq.heappop(self._heap)
            if not job.probes:
                return job
            self._push(job)  # its meter died meanwhile
        return None

    def _with_others(self, job: _Job) -> list[_Job]:
        """The job, and with it the other groups of its meter that are due by now; in the order of the groups."""
        if len(job.meter.plan.groups) == 1 or job.probes:
            return [job]
        now_ns = self._platform.now_ns()
        others = [other for other in self._heap if other.meter is job.meter and other.due_ns <= now_ns]
        if others:
            self._heap = [left for left in self._heap if left not in others]
            heapq.heapify(self._heap)
        return sorted([job, *others], key=lambda job: job.group)

    def _may_probe(self, job: _Job, now_ns: int) -> bool:
        """Whether a probe fits before the next poll, or the bus owes it some time."""
        if self._probing or job.due_ns > now_ns:
            return False
        return self._slack_ns(now_ns) >= job.meter.probe_ns or now_ns >= self._owed_at_ns(job)

    def _owed_at_ns(self, job: _Job) -> int:
        return max(job.due_ns + round(PROBE_OWED_S * NS), self._probe_at_ns)

    def _slack_ns(self, now_ns: int) -> int:
        """How long nobody needs the bus but dead meters."""
        if self._polling:
            return 0
        return self._heap[0].due_ns - now_ns if self._heap else round(BACKOFF_MAX_S * NS)

    def _wait_s(self, now_ns: int) -> float:
        """Until something comes due, or a probe is owed its time."""
        times = [self._heap[0].due_ns] if self._heap else []
        if self._probes and not self._probing:
            times.append(self._owed_at_ns(self._probes[0]))
            if self._probes[0].due_ns > now_ns:
                times.append(self._probes[0].due_ns)
        return min([LOOK_AGAIN_S, *((due_ns - now_ns) / NS for due_ns in times)])

    def _pull_in(self, now_ns: int) -> None:
        """After the clock stepped back, jobs are due further away than they may be."""
        before_ns, self._newest_ns = self._newest_ns, now_ns
        if now_ns >= before_ns:
            return
        for heap in (self._heap, self._probes):
            late = [job for job in heap if job.due_ns - now_ns > job.wait_ns]
            for job in late:
                self._schedule(job, now_ns, job.wait_ns)
            if late:
                heapq.heapify(heap)
        if self._probe_at_ns - now_ns > round(BACKOFF_MAX_S * NS):
            self._probe_at_ns = now_ns

    @staticmethod
    def _schedule(job: _Job, now_ns: int, wait_ns: int) -> None:
        due_ns = now_ns + wait_ns
        job.wait_ns = wait_ns
        job.due_ns = next_boundary(due_ns - job.interval_ns, job.interval_ns) if job.interval_ns else due_ns

    def _schedule_next(self, job: _Job, now_ns: int) -> None:
        """The next boundary, or the newest one that passed meanwhile: a poll that is late is not left out."""
        wait_ns = self._wait_ns(job)
        if job.interval_ns == 0 or wait_ns > job.interval_ns:
            self._schedule(job, now_ns, wait_ns)
            return
        due_ns = max(job.due_ns + job.interval_ns, now_ns // job.interval_ns * job.interval_ns)
        self.overruns += (due_ns - job.due_ns) // job.interval_ns - 1
        job.wait_ns, job.due_ns = wait_ns, due_ns

    def _wait_ns(self, job: _Job) -> int:
        """The interval; or longer for a dead meter: doubled with every failure up to ``BACKOFF_MAX_S``."""
        if job.probes:
            base_ns = max(job.interval_ns, NS)
            doublings = min(max(job.meter.failures - DEAD_AFTER + 1, 1), 10)
            return max(job.interval_ns, min(base_ns << doublings, round(BACKOFF_MAX_S * NS)))
        return max(job.interval_ns, round(DOWN_LOOK_S * NS)) if self._down else job.interval_ns

    async def _probe(self, job: _Job) -> None:
        """Poll a dead meter; the longest that took is what a probe needs."""
        began_ns = self._platform.now_ns()
        try:
            await self._poll(job, slack_s=max(0, self._slack_ns(began_ns)) / NS)
        finally:
            self._probing = False
            now_ns = self._platform.now_ns()
            took_ns = min(max(now_ns - began_ns, 0), round(BACKOFF_MAX_S / PROBE_SHARE * NS))  # the clock may step
            self._probe_at_ns = now_ns + PROBE_SHARE * took_ns
            if job.probes:
                job.meter.probe_ns = took_ns

    # ------------------------------------------------------------ one poll

    async def _poll(self, *jobs: _Job, slack_s: float = 0.0) -> None:
        """Read one group of a meter, or several at once."""
        meter, groups = jobs[0].meter, tuple(job.group for job in jobs)
        for job in jobs:
            job.turn = next(self._turns)
        try:
            if len(jobs) > 1:
                samples = await self.driver.poll_together(meter.plan, groups)
            else:
                probe = meter.state is MeterState.DEAD
                samples = [await self.driver.poll(meter.plan, groups[0], probe=probe, slack_s=slack_s)]
        except MeterError as error:
            self._failed(meter, groups, error)
            return
        if meter.failures:
            self._recovered(meter, samples[0].time_ms)
        if self._down:
            self._is_back()
        meter.state = MeterState.OK if all(sample.status is None for sample in samples) else MeterState.PARTIAL
        for group, sample in zip(groups, samples, strict=True):
            self._log(meter, group, sample)

    def _log(self, meter: Meter, group: int, sample: Sample) -> None:
        meter.polls += 1
        sample = meter.judges[group](sample)
        meter.last[group] = sample
        if sample.mono_ms - meter.declared_ms >= DECLARE_EVERY_MS and not self._recorder.space.sealed:
            self._declare(meter, sample.mono_ms)
        if not self._recorder.reading(meter.declaration, group, sample):
            meter.judges[group].left_out()

    def _failed(self, meter: Meter, groups: tuple[int, ...], error: MeterError) -> None:
        if not meter.failures:
            meter.gap_from_ms = self._platform.now_ns() // 1_000_000
            meter.gap_reason = _REASONS.get(type(error), GapReason.NO_REPLY)
            logger.warning("%s: %s", meter.plan.name, error)
        meter.failures += 1
        meter.failed_polls += len(groups)
        meter.missed += len(groups)
        meter.error = str(error)
        # A bus that is down says nothing about its meters, and trying costs nothing: the driver backs off by itself.
        self._down = isinstance(error, BusDownError)
        dead = not self._down and (meter.failures >= DEAD_AFTER or not meter.polls)
        if dead and meter.state is not MeterState.DEAD:
            meter.prober = groups[0]
            meter.probe_ns = round(2 * meter.plan.timeout_s * NS)
        meter.state = MeterState.DEAD if dead else MeterState.FAILING

    def _recovered(self, meter: Meter, now_ms: int) -> None:
        logger.info("%s: answers again after %d failed polls", meter.plan.name, meter.failures)
        self._gap(meter, now_ms)
        meter.failures = 0
        meter.error = ""
        meter.state = MeterState.OK
        # Its probe still waits where another poll answers that began before the meter was thought dead.
        probes = [job for job in self._probes if job.meter is meter]
        self._probes = [job for job in self._probes if job.meter is not meter]
        heapq.heapify(self._probes)
        parked, meter.parked = meter.parked, []
        for job in (*probes, *parked):
            self._schedule(job, self._platform.now_ns(), job.interval_ns)
            self._push(job)

    def _is_back(self) -> None:
        """The bus answers again: its meters are polled at their intervals from now on."""
        self._down = False
        now_ns = self._platform.now_ns()
        for job in self._heap:
            if job.wait_ns > job.interval_ns:
                self._schedule(job, now_ns, job.interval_ns)
        heapq.heapify(self._heap)

    def _gap(self, meter: Meter, to_ms: int) -> None:
        self._recorder.gap(Gap(meter.declaration, meter.gap_from_ms, to_ms, meter.gap_reason, meter.missed))
        meter.missed = 0

    def _close_gaps(self) -> None:
        now_ms = self._platform.now_ns() // 1_000_000
        for meter in self.meters:
            if meter.missed:
                self._gap(meter, now_ms)
