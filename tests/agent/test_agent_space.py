"""The journal's budget and a disk that refuses, in virtual time over real files; and the marks by themselves."""

import asyncio
import itertools
import random
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import apsw
import pytest
from energybid.agent import recorder as recorder_module
from energybid.agent.budget import DEFAULT, FULL, HIGH, LEAST, LEVELS, LOW, Budget, Forecast, Stage, Usage
from energybid.agent.opening import open_recorder
from energybid.agent.polling import BusPoller
from energybid.agent.space import Limits, Space, energy_only
from energybid.agent.system import RealDisk
from energybid.core.entries import Declaration, Gap, GapReason, Reading, Start
from energybid.core.errors import JournalStalledError
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.ports import MeterPlan, PollGroup, Sample
from energybid.core.quantities import Obis, Quantity, Status
from energybid.simulator.virtual import VirtualClock, run
from gateways import HEADEND, KEY, VOLTAGE, bus, entries_in, meter, recording, virtual_platform
from hypothesis import given
from hypothesis import strategies as st

ENERGY = Quantity(obis=Obis.parse("1-0:1.8.0"), unit="Wh", exponent=0, cumulative=True)
DAY_S = 86400


# ---------------------------------------------------------------- the marks


def test_levels_are_entered_at_their_marks_and_left_below_them():
    budget = Budget(LEAST)
    fills = [*range(1001), *range(1000, -1, -1)]
    seen = [(fill / 1000, budget.stage, budget.every) for fill in fills if budget.judge(fill / 1000)]
    up, down = seen[: len(LEVELS) - 1], seen[len(LEVELS) - 1 :]
    assert up == [(level.fill, level.stage, level.every) for level in LEVELS[1:]]
    assert [stage for _, stage, _ in down] == [level.stage for level in reversed(LEVELS[:-1])]
    assert all(a[0] - b[0] >= 0.049 for a, b in zip(reversed(up), down, strict=True)), "hysteresis"
    assert (LOW, HIGH, FULL) == (0.70, 0.80, 0.97)


@given(st.lists(st.floats(0, 1.2), max_size=50))
def test_the_level_always_fits_the_fill(fills):
    budget = Budget(DEFAULT)
    for fill in fills:
        budget.judge(fill)
        assert fill >= LEVELS[budget.level].fill - 0.0501 or budget.level == 0
        assert all(fill < level.fill for level in LEVELS[budget.level + 1 :])


def test_room_is_the_budgets_or_what_the_disk_leaves():
    budget = Budget(100 << 20)
    usage = Usage(10 << 20, 12 << 20, 1 << 20)
    assert budget.room(usage, None) == budget.room(usage, 1 << 40) < budget.size - budget.ballast
    assert budget.room(usage, 5 << 20) == 18 << 20
    with pytest.raises(ValueError, match="at least"):
        Budget(LEAST - 1)


def test_the_forecast_follows_the_growth_of_the_last_hours():
    forecast = Forecast()
    assert forecast.full_in_s(0, 0, 1000) is None
    for hour in range(48):
        forecast.sample(hour * 3600, 0 if hour < 24 else (hour - 24) * 100)
    assert forecast.growth(47 * 3600, 2300) == pytest.approx(100 * 23 / 47, rel=0.01)
    fast = Forecast()
    for n in range(200):
        fast.sample(n * 300.0, n * 1000)
    assert fast.growth(200 * 300, 200_000) == pytest.approx(12_000, rel=0.02)
    assert fast.full_in_s(200 * 300, 200_000, 1_000_000) == pytest.approx((970_000 - 200_000) / 12_000 * 3600, rel=0.02)
    assert fast.full_in_s(200 * 300, 0, 1_000_000) is None, "it shrinks"


def test_energy_only_keeps_what_is_cumulative_and_marks_the_rest():
    sample = Sample(1, 2, 3, (10, None, 30), (0, 3, 16))
    assert energy_only(sample, (True, False, False)) == Sample(1, 2, 3, (10, None, None), (0, 5, 5))
    assert energy_only(Sample(1, 2, 3, (1, 2), None), (True, True)).status is None


# ---------------------------------------------------------------- a small budget, many days


def energy_meter(name, unit=1, interval_s=10.0):
    group = PollGroup(interval_s=interval_s, quantities=(ENERGY, VOLTAGE))
    return MeterPlan(
        name=name,
        unit=unit,
        timeout_s=1.0,
        retries=2,
        profile="test",
        profile_hash=bytes(32),
        groups=(group,),
        map=None,
    )


class NoisyDriver:
    """Values that no column can predict, so that the journal grows."""

    concurrency = 4

    def __init__(self, clock, seed=1):
        self.rng = random.Random(seed)
        self.clock = clock
        self.polls = 0
        self.energy = 0

    async def poll(self, meter, group, *, probe=False, slack_s=0.0):
        await asyncio.sleep(0.05)
        self.polls += 1
        self.energy += self.rng.getrandbits(40)
        values = tuple(
            self.energy if q.cumulative else self.rng.getrandbits(60) for q in meter.groups[group].quantities
        )
        return Sample(self.clock.now_ns() // 1_000_000, 50, int(asyncio.get_running_loop().time() * 1000), values, None)

    def learned(self, meter):
        return {}

    def learn(self, meter, plain):
        raise AssertionError("it has learned nothing")

    shown = learned

    async def close(self):
        pass


def bytes_of(path):
    return sum(p.stat().st_size for p in Path(path).parent.iterdir())


def small_gateway(path, script, *, budget=LEAST, meters=None, keep_s=3600.0, keep_least_s=600.0, **changes):
    """A polling gateway; returns what the script returns, and all entries."""

    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock, **({"disk": RealDisk()} | changes))
        recorder = await open_recorder(
            platform,
            str(path),
            "t/g",
            KEY,
            commit_interval_s=60.0,
            keep_s=keep_s,
            keep_least_s=keep_least_s,
            budget=budget,
        )
        recorder.started("1", bytes(32))
        driver = NoisyDriver(clock)
        poller = BusPoller(platform, recorder, driver, bus(*(meters or [energy_meter("m1"), meter("m2", 2)])))
        poller.declare()
        tasks = [asyncio.create_task(recorder.run()), asyncio.create_task(poller.run())]
        try:
            return await script(recorder, driver, clock)
        finally:
            tasks[1].cancel()
            await asyncio.gather(tasks[1], return_exceptions=True)
            tasks[0].cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await recorder.close()

    return run(main)


def acknowledge_all(recorder, clock):
    size = recorder.committed
    root = recorder.journal.root_at(recorder.epoch.number, size)
    receipt = Receipt("t/g", recorder.epoch.id, size, root, clock.now_ns() // 1_000_000)
    recorder.acknowledge(size, sign_receipt(receipt, HEADEND))


@pytest.mark.untraced
def test_a_week_without_the_uplink_in_one_mebibyte(tmp_path):
    stages = []

    async def script(recorder, driver, clock):
        for _ in range(7 * 24 * 4):
            await asyncio.sleep(900)
            space = recorder.space
            assert bytes_of(tmp_path / "j") <= LEAST, (space.usage, space.budget.stage)
            if not stages or stages[-1][0] is not space.budget.stage:
                stages.append((space.budget.stage, space.full_in_s(asyncio.get_running_loop().time())))
        assert space.not_logged > 0
        return driver.polls

    polls = small_gateway(tmp_path / "j", script)
    assert [stage for stage, _ in stages] == [Stage.ALL, Stage.PRUNING, Stage.THINNING, Stage.ENERGY, Stage.NOTHING]
    forecasts = [full_s for _, full_s in stages[1:4]]
    assert None not in forecasts
    entries = entries_in(tmp_path / "j")
    logged = [e for e in entries if isinstance(e, Reading)]
    gaps = [e for e in entries if isinstance(e, Gap)]
    assert {g.reason for g in gaps} == {GapReason.THINNED, GapReason.NO_SPACE}
    assert len(logged) + sum(g.missed for g in gaps) == pytest.approx(polls, abs=12), "all is logged or counted"
    partial = [e for e in logged if e.status]
    assert partial, "energy alone"
    assert all(e.status == (0, Status.NOT_LOGGED) and e.values[0] is not None for e in partial)
    assert all(b.time_ms - a.time_ms >= 890_000 for a, b in itertools.pairwise(partial))
    names = {n: e.meter for n, e in enumerate(entries) if isinstance(e, Declaration)}
    first = names[logged[0].declaration]
    times = [e.time_ms for e in logged if names[e.declaration] == first and not e.status]
    spaces = Counter(round((b - a) / 10_000) for a, b in itertools.pairwise(times))
    assert {1, 2, 4, 8, 16} <= set(spaces), "thinned by doubling"


@pytest.mark.untraced
def test_after_receipts_everything_is_logged_again(tmp_path):
    async def script(recorder, driver, clock):
        while recorder.space.budget.stage is not Stage.NOTHING:  # noqa: ASYNC110  virtual time
            await asyncio.sleep(600)
        readings = recorder.readings
        await asyncio.sleep(3600)
        assert recorder.readings == readings, "nothing is logged any more"
        acknowledge_all(recorder, clock)
        await asyncio.sleep(3600)
        assert recorder.space.budget.stage in {Stage.ALL, Stage.PRUNING}
        readings, polls = recorder.readings, driver.polls
        await asyncio.sleep(600)
        assert recorder.readings - readings == driver.polls - polls
        assert bytes_of(tmp_path / "j") <= LEAST

    small_gateway(tmp_path / "j", script)


def test_acknowledged_history_goes_first_and_keeps_its_minimum(tmp_path):
    async def script(recorder, driver, clock):
        for _ in range(2 * DAY_S // 600):
            await asyncio.sleep(600)
            acknowledge_all(recorder, clock)
            assert recorder.space.budget.stage in {Stage.ALL, Stage.PRUNING}
        assert recorder.space.not_logged == 0
        first = next(recorder.journal.segments(1, 0))
        age_s = clock.now_ns() / 1e9 - first.time_ms / 1000
        assert age_s > 3600, "the stated minimum stays, and more while there is room"
        assert first.first > 1000, "older history went"

    small_gateway(tmp_path / "j", script)


@pytest.mark.untraced
def test_beyond_the_high_mark_history_shrinks_to_the_smaller_minimum(tmp_path):
    async def script(recorder, driver, clock):
        for _ in range(2 * DAY_S // 600):
            await asyncio.sleep(600)
            acknowledge_all(recorder, clock)
        assert recorder.space.not_logged == 0, "a month of history does not fit, an hour does"
        first = next(recorder.journal.segments(1, 0))
        assert clock.now_ns() / 1e9 - first.time_ms / 1000 > 3600

    small_gateway(tmp_path / "j", script, keep_s=30 * DAY_S, keep_least_s=3600.0)


@pytest.mark.untraced
def test_a_minimum_that_does_not_fit_is_kept_and_new_readings_are_thinned(tmp_path):
    async def script(recorder, driver, clock):
        for _ in range(2 * DAY_S // 600):
            await asyncio.sleep(600)
            acknowledge_all(recorder, clock)
        assert recorder.space.not_logged > 0
        assert next(recorder.journal.segments(1, 0)).first == 0

    small_gateway(tmp_path / "j", script, keep_s=30 * DAY_S, keep_least_s=30 * DAY_S)


# ---------------------------------------------------------------- a disk that refuses


class Refusals(apsw.VFS):
    """A file system on which writes can be made to fail."""

    def __init__(self, name):
        self.error = None
        super().__init__(name, "")

    def xOpen(self, name, flags):  # noqa: N802  as apsw has it
        if (
            self.error
            and flags[0] & (apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_WAL)
            and not Path(name.filename() if hasattr(name, "filename") else name).exists()
        ):
            raise self.error()
        return RefusingFile(self, name, flags)


class RefusingFile(apsw.VFSFile):
    def __init__(self, vfs, name, flags):
        self.vfs = vfs
        super().__init__("", name, flags)

    def xWrite(self, data, offset):  # noqa: N802  as apsw has it
        if self.vfs.error:
            raise self.vfs.error()
        super().xWrite(data, offset)

    def xSync(self, flags):  # noqa: N802  as apsw has it
        if self.vfs.error:
            raise self.vfs.error()
        super().xSync(flags)


@contextmanager
def refusing_disk():
    vfs = Refusals("refusing")
    try:
        yield vfs, lambda path: apsw.Connection(path, vfs="refusing")
    finally:
        vfs.unregister()


@pytest.mark.parametrize("error", [apsw.FullError, apsw.ReadOnlyError, apsw.IOError])
def test_a_disk_that_refuses_for_an_hour_costs_no_reading_that_memory_holds(tmp_path, error):
    with refusing_disk() as (vfs, open_database):

        async def script(recorder, driver, clock):
            await asyncio.sleep(1000)
            vfs.error = error
            await asyncio.sleep(3600)
            assert recorder.stalled
            assert recorder.committed < recorder.size
            vfs.error = None
            await asyncio.sleep(120)
            assert recorder.stalled == ""
            await recorder.commit()
            assert recorder.committed == recorder.size
            return driver.polls

        polls = small_gateway(tmp_path / "j", script, open_database=open_database, budget=DEFAULT)
    entries = entries_in(tmp_path / "j")
    assert len([e for e in entries if isinstance(e, Reading)]) == pytest.approx(polls, abs=2)
    assert not [e for e in entries if isinstance(e, Gap)]
    assert len([e for e in entries if isinstance(e, Start)]) == 1, "it never stopped"


def test_a_disk_that_refuses_for_long_bounds_memory_and_leaves_a_signed_gap(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder_module, "STALL_MAX", 10_000)
    with refusing_disk() as (vfs, open_database):

        async def script(recorder, driver, clock):
            await asyncio.sleep(1000)
            vfs.error = apsw.FullError
            most = 0
            for _ in range(50):
                await asyncio.sleep(60)
                most = max(most, recorder._waiting + recorder._weight)
            assert 10_000 <= most < 10_010
            assert recorder.space.not_logged > 0
            vfs.error = None
            await asyncio.sleep(200)
            return driver.polls, recorder.space.not_logged

        polls, not_logged = small_gateway(
            tmp_path / "j",
            script,
            open_database=open_database,
            budget=DEFAULT,
            meters=[energy_meter("m1", interval_s=1), energy_meter("m2", interval_s=1)],
        )
    entries = entries_in(tmp_path / "j")
    (gap,) = [e for e in entries if isinstance(e, Gap)]
    assert (gap.reason, gap.missed, gap.declaration) == (GapReason.NO_SPACE, not_logged, None)
    readings = [e for e in entries if isinstance(e, Reading)]
    assert len(readings) + gap.missed == pytest.approx(polls, abs=2)
    assert not [r for r in readings if gap.from_ms < r.time_ms < gap.to_ms], "the gap says truly from when to when"


def test_a_stop_while_the_disk_refuses_says_what_is_lost_and_leaves_a_whole_journal(tmp_path):
    with refusing_disk() as (vfs, open_database):

        async def script(recorder, driver, clock):
            await asyncio.sleep(1000)
            vfs.error = apsw.FullError
            await asyncio.sleep(600)

        with pytest.raises(JournalStalledError, match="entries that were not stored are lost"):
            small_gateway(tmp_path / "j", script, open_database=open_database, budget=DEFAULT)
    assert len(entries_in(tmp_path / "j")) > 100, "opens, checks"


class SmallDisk(RealDisk):
    """A disk of so many bytes, filled by others with ``others``."""

    def __init__(self, folder, size):
        self.folder, self.total, self.others = folder, size, 0

    def free(self, path):
        return max(0, self.total - self.others - bytes_of(path))

    def reserve(self, path, size):
        if size > self.free(path):
            raise OSError(28, "No space left on device")
        super().reserve(path, size)


def test_a_disk_that_others_fill_is_given_the_ballast_and_read_on_when_there_is_room(tmp_path):
    """The disk itself is full long before the budget is used up."""
    path = tmp_path / "d" / "j"
    path.parent.mkdir()
    disk, ballast = SmallDisk(path.parent, 64 << 20), f"{path}.ballast"

    with refusing_disk() as (_, open_database):

        def write(self, data, offset):
            grows = offset + len(data) > self.xFileSize()
            if grows and disk.free(path) < len(data):
                raise apsw.FullError
            apsw.VFSFile.xWrite(self, data, offset)

        vfs_write, RefusingFile.xWrite = RefusingFile.xWrite, write
        try:

            async def script(recorder, driver, clock):
                await asyncio.sleep(2 * 3600)
                assert disk.size(ballast) == recorder.space.budget.ballast
                disk.others = disk.total - bytes_of(path)
                await asyncio.sleep(6 * 3600)
                assert disk.size(ballast) is None, "given up"
                assert recorder.space.budget.stage in {Stage.THINNING, Stage.ENERGY, Stage.NOTHING}
                assert recorder.committed == recorder.size, "the ballast's room took what was signed"
                disk.others = 0
                await asyncio.sleep(3600)
                assert disk.size(ballast)
                assert recorder.space.budget.stage is Stage.ALL
                readings, polls = recorder.readings, driver.polls
                await asyncio.sleep(600)
                assert recorder.readings - readings == driver.polls - polls
                return driver.polls

            polls = small_gateway(path, script, disk=disk, open_database=open_database, budget=48 << 20)
        finally:
            RefusingFile.xWrite = vfs_write
    entries = entries_in(path)
    gaps = [e for e in entries if isinstance(e, Gap)]
    assert gaps
    logged = len([e for e in entries if isinstance(e, Reading)])
    assert logged + sum(g.missed for g in gaps) == pytest.approx(polls, abs=2)


def test_a_gateway_that_starts_on_a_full_disk_takes_its_ballast(tmp_path):
    class Full(RealDisk):
        def size(self, path):
            return super().size(path)

    opened = []

    def open_database(path):
        if Path(f"{path}.ballast").exists():
            raise JournalStalledError("database or disk is full")
        opened.append(path)
        return apsw.Connection(path)

    async def main():
        platform = virtual_platform(VirtualClock(), disk=Full(), open_database=open_database)
        RealDisk().reserve(str(tmp_path / "j.ballast"), 65536)
        recorder = await open_recorder(platform, str(tmp_path / "j"), "t/g", KEY, commit_interval_s=1, keep_s=1)
        await recorder.close()

    run(main)
    assert opened


# ---------------------------------------------------------------- the hot path


def test_commits_that_are_cut_off_by_a_stop_are_stored_once(tmp_path):
    async def main():
        clock = VirtualClock()
        async with recording(virtual_platform(clock), tmp_path / "j", commit_interval_s=3600.0) as recorder:
            for n in range(50):
                recorder.reading(0, 0, Sample(clock.now_ns() // 1_000_000, 1, n, (n,), None))
                task = asyncio.create_task(recorder.commit())
                await asyncio.sleep(0.0005)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    run(main)
    assert [e.values for e in entries_in(tmp_path / "j") if isinstance(e, Reading)] == [(n,) for n in range(50)]


def test_space_counts_what_it_leaves_out_by_reason(tmp_path):
    space = Space.__new__(Space)
    space._omitted, space.not_logged = {}, 0
    space.omit(GapReason.THINNED, 5, 0.0)
    space.omit(GapReason.NO_SPACE, 7, 0.0, 3)
    space.omit(GapReason.THINNED, 9, 1.0)
    assert list(space.omitted(100.0, everything=False)) == []
    assert list(space.omitted(3600.0, everything=False)) == [Gap(None, 5, 9, GapReason.THINNED, 2)]
    assert list(space.omitted(0.0, everything=True)) == [Gap(None, 7, 7, GapReason.NO_SPACE, 3)]
    assert space.not_logged == 5
    assert Limits(1, 2, 3).keep_least_s == 3
