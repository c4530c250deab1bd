"""Polling in virtual time: alignment, dead meters, clock steps, gaps."""

import asyncio
from collections import Counter
from itertools import pairwise

import pytest
from energybid.agent.polling import BusPoller, MeterState, next_boundary
from energybid.core.entries import Clock, Declaration, Gap, GapReason, Reading
from energybid.core.errors import BusDownError, GarbledError, NoReplyError, RefusedError
from energybid.core.quantities import ClockState
from energybid.simulator.virtual import VirtualClock, run
from gateways import ScriptedDriver, bus, entries_in, meter, recording, virtual_platform


def poll(path, plan, answer, seconds, *, during=None, **driver):
    """Poll a bus for some virtual time; returns poller, driver and what is in the log."""

    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock)
        scripted = ScriptedDriver(clock, answer, **driver)
        async with recording(platform, path) as recorder:
            poller = BusPoller(platform, recorder, scripted, plan)
            poller.declare()
            task = asyncio.create_task(poller.run())
            if during:
                await during(clock, poller)
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return poller, scripted

    poller, scripted = run(main)
    return poller, scripted, entries_in(path)


def of(kind, entries):
    return [entry for entry in entries if isinstance(entry, kind)]


def test_boundaries_are_multiples_of_the_interval():
    assert next_boundary(0, 10) == 10
    assert next_boundary(9, 10) == 10
    assert next_boundary(10, 10) == 20


def test_polls_are_aligned_to_utc_and_every_meter_keeps_its_interval(tmp_path):
    plan = bus(meter("fast", interval_s=10), meter("slow", interval_s=60))
    _, driver, entries = poll(tmp_path / "j", plan, lambda *_: 2301, 600)
    assert Counter(name for _, name in driver.calls) == {"fast": 60, "slow": 10}
    readings = of(Reading, entries)
    fast = [r.time_ms for r in readings if r.declaration == 2]
    assert {b - a for a, b in pairwise(fast)} <= {9_900, 10_000, 10_100}
    assert all((r.time_ms - r.span_ms) % 10_000 <= 100 for r in readings)
    assert [d.meter for d in of(Declaration, entries)] == ["fast", "slow"]
    assert driver.closed


def test_one_dead_meter_among_eight_leaves_the_others_their_rate(tmp_path):
    def answer(name, probe):
        if name == "m3":
            raise NoReplyError(f"{name}: no reply")
        return 1

    plan = bus(*(meter(f"m{n}", n, interval_s=10) for n in range(1, 9)))
    poller, driver, entries = poll(tmp_path / "j", plan, answer, 3600)
    polls = Counter(name for _, name in driver.calls)
    assert all(polls[f"m{n}"] in {359, 360} for n in range(1, 9) if n != 3)
    assert polls["m3"] < 25, "probes back off to one in five minutes"
    dead = next(m for m in poller.meters if m.plan.name == "m3")
    assert dead.state is MeterState.DEAD
    assert "no reply" in dead.error
    (gap,) = of(Gap, entries)
    assert (gap.reason, gap.missed) == (GapReason.NO_REPLY, polls["m3"])
    order = [name for when, name in driver.calls if when > 600]
    probes = [i for i, name in enumerate(order) if name == "m3"]
    assert all(order[i - 1] == "m8" for i in probes), "a probe comes after the healthy meters of its cycle"


def test_a_meter_that_returns_is_polled_at_its_interval_again(tmp_path):
    failures = iter([True] * 6)

    def answer(name, probe):
        if next(failures, False):
            raise GarbledError("noise")
        return 5

    poller, driver, entries = poll(tmp_path / "j", bus(meter("m", interval_s=10)), answer, 3600)
    (gap,) = of(Gap, entries)
    assert gap.missed == 6
    assert gap.from_ms < gap.to_ms
    assert poller.meters[0].state is MeterState.OK
    assert poller.meters[0].failed_polls == 6
    times = [when for when, _ in driver.calls]
    assert {round(b - a) for a, b in pairwise(times[8:])} == {10}


def test_reasons_of_a_gap(tmp_path):
    for error, reason in ((BusDownError, GapReason.BUS_DOWN), (RefusedError, GapReason.REFUSED)):

        def answer(*_, error=error):
            raise error("x", 2) if error is RefusedError else error("x")

        poller, _, entries = poll(tmp_path / error.__name__, bus(meter("m", interval_s=10)), answer, 95)
        (gap,) = of(Gap, entries)
        assert gap.reason == reason
        if error is BusDownError:
            assert gap.missed == 9, "a bus that is down does not make its meters dead"
            assert poller.meters[0].state is MeterState.FAILING


def test_a_clock_step_is_logged_and_loses_no_poll(tmp_path):
    async def during(clock, _):
        await asyncio.sleep(101)
        clock.step(-7200)
        await asyncio.sleep(100)
        clock.step(86_400)
        clock.state = ClockState.HOLDOVER
        await asyncio.sleep(100)

    _, driver, entries = poll(tmp_path / "j", bus(meter("m", interval_s=10)), lambda *_: 1, 1, during=during)
    assert 29 <= len(driver.calls) <= 32
    steps = of(Clock, entries)
    assert [round((c.after_ms - c.before_ms) / 1000) for c in steps] == [-7200, 86_400]
    assert steps[1].clock == ClockState.HOLDOVER
    monos = [r.mono_ms for r in of(Reading, entries)]
    assert monos == sorted(monos)
    assert all(b - a <= 11_000 for a, b in pairwise(monos))


def test_a_bus_that_can_not_keep_up_skips_whole_intervals_and_counts_them(tmp_path):
    plan = bus(*(meter(f"m{n}", n, interval_s=1) for n in range(1, 4)))
    poller, driver, _ = poll(tmp_path / "j", plan, lambda *_: 1, 60, takes_s=0.5)
    polls = Counter(name for _, name in driver.calls)
    assert max(polls.values()) - min(polls.values()) <= 1, "none starves"
    assert poller.overruns > 50


def test_several_polls_under_way_where_the_driver_allows(tmp_path):
    plan = bus(*(meter(f"m{n}", n, interval_s=1) for n in range(1, 33)))
    poller, _, entries = poll(tmp_path / "j", plan, lambda *_: 1, 60, takes_s=0.5, concurrency=16)
    assert poller.overruns == 0
    assert len(of(Reading, entries)) >= 32 * 59


def test_interval_zero_polls_as_fast_as_the_bus_goes(tmp_path):
    _, driver, _ = poll(tmp_path / "j", bus(meter("m", interval_s=0)), lambda *_: 1, 10, takes_s=0.1)
    assert 95 <= len(driver.calls) <= 101


@pytest.mark.untraced
def test_meters_are_declared_anew_every_day(tmp_path):
    _, _, entries = poll(tmp_path / "j", bus(meter("m", interval_s=600)), lambda *_: 1, 3 * 86_400)
    declared = [n for n, entry in enumerate(entries) if isinstance(entry, Declaration)]
    assert len(declared) == 3
    readings = [(n, e) for n, e in enumerate(entries) if isinstance(e, Reading)]
    assert all(e.declaration == max(d for d in declared if d < n) for n, e in readings)


@pytest.mark.untraced
def test_a_stalled_disk_slows_polling_instead_of_filling_memory(tmp_path):
    from energybid.agent import recorder as module

    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock)
        async with recording(platform, tmp_path / "j") as recorder:
            release = asyncio.Event()

            async def stalled(function, *args):
                await release.wait()
                return function(*args)

            object.__setattr__(platform, "offload", stalled)
            driver = ScriptedDriver(clock, lambda *_: 1, takes_s=0.001)
            poller = BusPoller(platform, recorder, driver, bus(meter("m", interval_s=0)))
            poller.declare()
            task = asyncio.create_task(poller.run())
            await asyncio.sleep(200)
            pending = recorder._waiting
            release.set()
            await asyncio.sleep(1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return pending, len(driver.calls)

    pending, calls = run(main)
    assert module.PENDING_MAX <= pending < module.PENDING_MAX + 2 * module.SEGMENT_WEIGHT
    assert calls > pending / 3
