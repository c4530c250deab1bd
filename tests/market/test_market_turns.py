"""Compressors run and rest as long as their makers ask: what is known of them, what is written to them, what is bid."""

import asyncio
import tempfile
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from energybid.agent.control import Rank
from energybid.agent.market import plan as plans
from energybid.agent.market.turns import UNSEEN_S, Turns
from energybid.sync.market import Conduct
from floors import Floor, play
from hypothesis import given, settings
from hypothesis import strategies as st

RUN_S, PAUSE_S = 600, 300
MODEL = plans.ThermalModelPlan(time_constant_h=30.0, kelvin_per_w=0.006, free_k=1.0)


def pump(**fields):
    """A change of the example: the heat pump has a compressor."""
    given = {"least_run_s": float(RUN_S), "least_pause_s": float(PAUSE_S), "model": MODEL} | fields

    def change(plan):
        assets = [replace(a, **given) if a.name == "heating" else a for a in plan.market.assets]
        return replace(plan, market=replace(plan.market, assets=tuple(assets)))

    return change


def now():
    return asyncio.get_running_loop().time()


def scheduled(gateway, power_w, seconds, *, rank=Rank.SCHEDULE, target_w=0, **others):
    begins_ms = gateway.now_ms()
    split = {"heating": power_w} | others
    return gateway.dispatcher.follow(target_w, split, begins_ms, begins_ms + 1000 * seconds, rank)


def running(gateway):
    gateway.floor.advance(now())
    return gateway.floor.powers(now())["heat-pump"] > 0


async def switched(gateway, *, within_s):
    """When it is on where it was off, or off where it was on; None where it stays so."""
    before, until_s = running(gateway), now() + within_s
    while now() < until_s:
        await asyncio.sleep(1)
        if running(gateway) != before:
            return now()
    return None


# ---------------------------------------------------------------- what is known


def test_what_nobody_has_seen_may_have_been_switched_a_moment_ago():
    turns = Turns(600, 300, 20)
    assert turns.has_to(1000) is None
    turns.look(1000, runs=False)
    assert [turns.has_to(at_s) for at_s in (1000, 1299, 1300)] == [False, False, None]
    for at_s in range(1010, 1400, 10):
        turns.look(at_s, runs=False)
    assert turns.has_to(1390) is None
    turns.look(1390 + 600, runs=False)  # it may have run meanwhile, but not for less than 600 s
    assert turns.has_to(1990) is None
    turns.look(1990 + 601, runs=False)
    assert turns.has_to(2591) is False
    free = Turns(0, 300, 0)
    free.look(0, runs=False)
    free.look(UNSEEN_S, runs=False)
    assert free.has_to(299) is False
    assert free.has_to(301) is None
    free.look(2 * UNSEEN_S + 1, runs=False)
    assert free.has_to(301) is False


def test_it_is_switched_when_it_is_told_and_when_it_does_otherwise():
    turns = Turns(600, 300, 20)
    turns.look(0, runs=False)
    for at_s in range(0, 400, 10):
        turns.look(at_s, runs=False)
    turns.told(400, runs=True)
    turns.look(410, runs=False)  # on its way
    assert [turns.has_to(at_s) for at_s in (400, 999, 1000)] == [True, True, None]
    turns.told(415, runs=True)
    assert turns.has_to(1000) is None
    turns.look(421, runs=False)  # it does not obey, or its own control has switched it off
    assert [turns.has_to(at_s) for at_s in (421, 720, 721)] == [False, False, None]
    turns.look(700, runs=True)
    assert turns.has_to(1299) is True


# ---------------------------------------------------------------- what is written


@pytest.mark.parametrize("on", [None, Fraction(3000)])
@pytest.mark.parametrize("ramp", [None, 20.0])
def test_a_compressor_runs_and_rests_as_long_as_its_maker_asks(tmp_path, on, ramp):
    async def scene(gateway):
        at_s = []
        following = asyncio.ensure_future(scheduled(gateway, 3000, 60))
        assert await switched(gateway, within_s=50) is None, "at the start it may have been switched off just now"
        await following
        following = asyncio.ensure_future(scheduled(gateway, 3000, 600))
        at_s.append(await switched(gateway, within_s=500))
        following.cancel()
        for power_w in (0, 3000, 0):
            following = asyncio.ensure_future(scheduled(gateway, power_w, 1500))
            at_s.append(await switched(gateway, within_s=1000))
            following.cancel()
        started, stopped, again, last = at_s
        slow_s = 30 + (3000 / ramp if ramp else 0)
        assert PAUSE_S - 25 < started < PAUSE_S + slow_s
        assert RUN_S - 2 <= stopped - started <= RUN_S + slow_s
        assert PAUSE_S - 2 <= again - stopped <= PAUSE_S + slow_s
        assert RUN_S - 2 <= last - again <= RUN_S + slow_s

    least_w = {} if on is None else {"least_w": 3000}
    play(tmp_path / "j", scene, keep={"heating"}, changes=pump(on=on, ramp_w_per_s=ramp, **least_w))


INTERVALS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1000, 2345, 3000]),
        st.integers(20, 400),
        st.sampled_from(["", "temperature", "power", "deaf"]),
        st.integers(1, 30),
    ),
    min_size=4,
    max_size=14,
)


@pytest.mark.untraced
@settings(max_examples=6)
@given(INTERVALS, st.sampled_from([None, 15.0, 200.0]), st.sampled_from([None, Fraction(3000)]))
def test_whatever_is_wanted_and_not_read_wears_nothing_out(intervals, ramp, on):
    """Powers, how long they are wanted, what is not read in between and for how long."""
    floor, changes = Floor(), list[tuple[float, bool]]()

    async def watch(gateway):
        while True:
            if not changes or running(gateway) != changes[-1][1]:
                changes.append((now(), running(gateway)))
            await asyncio.sleep(1)

    async def scene(gateway):
        watching = asyncio.ensure_future(watch(gateway))
        for power_w, seconds, fault, long_s in intervals:
            wanted_w = 3000 if on and power_w else power_w
            following = asyncio.ensure_future(scheduled(gateway, wanted_w, seconds))
            await asyncio.sleep(5)
            floor.unread, floor.deaf = {fault} - {"deaf", ""}, {"heat-pump"} if fault == "deaf" else set()
            await asyncio.sleep(min(long_s, seconds - 6))
            floor.unread, floor.deaf = set(), set()
            await following
        watching.cancel()

    least_w = {} if on is None else {"least_w": 3000}
    with tempfile.TemporaryDirectory() as folder:
        change = pump(on=on, ramp_w_per_s=ramp, **least_w)
        play(Path(folder) / "j", scene, floor, keep={"heating"}, changes=change)
    for (begin_s, runs), (end_s, _) in pairwise(changes[1:]):
        assert end_s - begin_s >= (RUN_S if runs else PAUSE_S) - 2


def test_an_award_against_its_least_times_is_given_up_and_says_why(tmp_path):
    floor = Floor()

    async def scene(gateway):
        done = await scheduled(gateway, 3000, 60, rank=Rank.MARKET, target_w=3600)
        assert done == (Conduct.OVERRIDDEN, "heating: has to rest")
        await asyncio.sleep(PAUSE_S)
        await scheduled(gateway, 3000, 60)
        done = await scheduled(gateway, 0, 60, rank=Rank.MARKET, target_w=600)
        assert done == (Conduct.OVERRIDDEN, "heating: has to run on")
        assert running(gateway)

    play(tmp_path / "j", scene, floor, keep={"heating"}, changes=pump())


def test_what_it_does_too_much_others_make_good(tmp_path):
    async def scene(gateway):
        await asyncio.sleep(PAUSE_S)
        await scheduled(gateway, 1500, 60, battery=0)
        done = await scheduled(gateway, 0, 60, rank=Rank.MARKET, target_w=600, battery=0)
        assert done.conduct == Conduct.FOLLOWED
        assert running(gateway)

    play(tmp_path / "j", scene, keep={"heating", "battery"}, changes=pump())


def test_a_hard_temperature_ends_a_run(tmp_path):
    async def scene(gateway):
        await asyncio.sleep(PAUSE_S)
        following = asyncio.ensure_future(scheduled(gateway, 3000, 600))
        await asyncio.sleep(30)
        assert running(gateway)
        gateway.floor.temperature_c = 25.5
        await asyncio.sleep(15)
        assert not running(gateway)
        gateway.floor.temperature_c = 24.0
        off_s = now()
        assert await switched(gateway, within_s=500) > off_s + PAUSE_S - 20, "and it does not begin again at once"
        following.cancel()

    play(tmp_path / "j", scene, keep={"heating"}, changes=pump())


def test_a_temperature_that_is_not_read_ends_no_run_but_begins_none(tmp_path):
    async def scene(gateway):
        await asyncio.sleep(PAUSE_S)
        following = asyncio.ensure_future(scheduled(gateway, 3000, 2000))
        begun_s = await switched(gateway, within_s=30)
        gateway.floor.unread = {"temperature"}
        assert await switched(gateway, within_s=1000) - begun_s == pytest.approx(RUN_S, abs=10)
        assert await switched(gateway, within_s=500) is None
        following.cancel()

    play(tmp_path / "j", scene, keep={"heating"}, changes=pump())


@pytest.mark.parametrize("alone", [False, True])
def test_the_connections_limit_ends_a_run_last(tmp_path, alone):
    floor = Floor(base=lambda t: 600.0 if t < 480 else 16_000.0 if alone else 12_000.0)
    floor.plugged = not alone

    async def scene(gateway):
        await asyncio.sleep(PAUSE_S)
        await scheduled(gateway, 3000, 150, car=0)
        following = asyncio.ensure_future(scheduled(gateway, 3000, 120, car=0 if alone else 4140))
        await asyncio.sleep(60)
        assert running(gateway) != alone
        following.cancel()

    limited = pump(least_w=3000)
    play(tmp_path / "j", scene, floor, keep={"heating", "car"}, changes=limited)


@pytest.mark.parametrize("fields", [{}, {"least_w": 3000, "ramp_w_per_s": 20.0}])
def test_a_restart_counts_as_switching(tmp_path, fields):
    """Also where its own control has it run at less than the least that it may be told."""
    floor = Floor()
    floor.temperature_c = 20.0  # its own thermostat has it run

    async def scene(gateway):
        following = asyncio.ensure_future(scheduled(gateway, 0, 1500))
        await asyncio.sleep(30)
        assert gateway.assets.status()[0]["has_to"] == "run on"
        ended_s = await switched(gateway, within_s=1000)
        assert RUN_S - 25 < ended_s < RUN_S + 200
        following.cancel()

    play(tmp_path / "j", scene, floor, keep={"heating"}, changes=pump(**fields))


# ---------------------------------------------------------------- what is bid


def test_what_has_to_run_or_to_rest_into_the_interval_is_no_flexibility(tmp_path):
    async def scene(gateway):
        def bidding(ahead_s):
            ((_, asset),) = gateway.assets.now(gateway.now_ms() + 1000 * ahead_s, 0.25)
            return asset.has_to

        assert (bidding(60), bidding(PAUSE_S)) == (False, None)
        assert gateway.assets.status()[0]["has_to"] == "rest"
        await asyncio.sleep(PAUSE_S)
        assert gateway.assets.status()[0]["has_to"] == ""
        following = asyncio.ensure_future(scheduled(gateway, 3000, 600))
        await asyncio.sleep(60)
        assert (bidding(60), bidding(RUN_S)) == (True, None)
        following.cancel()

    play(tmp_path / "j", scene, keep={"heating"}, changes=pump())
