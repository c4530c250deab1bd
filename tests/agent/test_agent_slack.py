"""Dead meters and buses that are down cost almost nothing, in virtual time."""

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from energybid.agent.polling import BusPoller, MeterState
from energybid.core.errors import BusDownError, NoReplyError
from energybid.core.ports import PollGroup
from gateways import VOLTAGE, bus, meter
from test_agent_polling import poll


def test_at_interval_zero_a_bus_that_is_down_is_looked_at_every_few_seconds(tmp_path):
    def answer(*_):
        raise BusDownError("unplugged")

    plan = bus(*(meter(f"m{n}", n, interval_s=0) for n in range(1, 33)))
    poller, driver, _ = poll(tmp_path / "j", plan, answer, 600, takes_s=0.0)
    assert len(driver.calls) <= 32 * 121
    assert {m.state for m in poller.meters} == {MeterState.FAILING}


def test_a_bus_that_comes_back_is_polled_at_its_intervals_at_once(tmp_path):
    down = [True]

    def answer(*_):
        if down[0]:
            raise BusDownError("unplugged")
        return 1

    async def during(_clock, _poller):
        await asyncio.sleep(60)
        down[0] = False

    plan = bus(*(meter(f"m{n}", n, interval_s=1) for n in range(1, 5)))
    _, driver, _ = poll(tmp_path / "j", plan, answer, 60, takes_s=0.01, during=during)
    before = Counter(name for when, name in driver.calls if when < 60)
    after = Counter(name for when, name in driver.calls if when >= 66)
    assert all(count <= 14 for count in before.values())
    assert all(53 <= after[f"m{n}"] <= 55 for n in range(1, 5))


@pytest.mark.parametrize("interval_s", [0, 1])
def test_a_dead_meter_alone_on_its_bus_is_backed_off_from(tmp_path, interval_s):
    def answer(*_):
        raise NoReplyError("nothing")

    _, driver, _ = poll(tmp_path / "j", bus(meter("m", interval_s=interval_s)), answer, 3600)
    assert 12 <= len(driver.calls) < 25


def test_a_bus_without_slack_gives_probes_a_fortieth_of_its_time(tmp_path):
    def answer(name, probe):
        if name == "m8":
            assert probe or len(calls) < 8
            raise NoReplyError("nothing")
        calls.append(name)
        return 1

    calls = []
    plan = bus(*(meter(f"m{n}", n, interval_s=0) for n in range(1, 9)))
    _, driver, _ = poll(tmp_path / "j", plan, answer, 3600, takes_s=0.5)
    polls = Counter(name for _, name in driver.calls)
    assert 10 <= polls["m8"] <= 3600 / 0.5 / 40
    assert min(polls[f"m{n}"] for n in range(1, 8)) >= 0.97 * 3600 / 0.5 / 7


def test_a_probe_waits_for_slack_that_it_fits_into(tmp_path):
    """Healthy polls begin every second and take 0.2 s; the probe of 0.6 s never runs into the next one."""

    def answer(name, probe):
        if name == "dead":
            raise NoReplyError("nothing")
        return 1

    plan = bus(meter("dead", 1, interval_s=1), meter("live", 2, interval_s=1))
    _, driver, _ = poll(tmp_path / "j", plan, answer, 900, takes_s=0.3)
    live = [when for when, name in driver.calls if name == "live" and when > 10]
    assert all(when % 1 < 0.01 or when % 1 > 0.99 for when in live)
    assert sum(name == "dead" for _, name in driver.calls) > 8


@pytest.mark.parametrize("held_up", [False, True])
def test_a_meter_whose_other_group_answers_is_polled_again_and_probed_when_it_dies_again(tmp_path, held_up):
    """The poll that answers began before the meter was thought dead; its probe waits for its time, or for room."""
    alive, slow = [False], [True]
    asked = []

    def answer(_name, probe):
        asked.append((asyncio.get_running_loop().time(), probe))
        if not alive[0]:
            raise NoReplyError("nothing")
        return 1

    async def during(_clock, poller: BusPoller):
        quick, room = poller.driver.poll, asyncio.Event()
        room.set()

        async def poll_slowly(meter, group, **options):
            if group and slow:
                slow.clear()
                await asyncio.sleep(30)
                alive[0] = True
            return await quick(meter, group, **options)

        poller.driver.poll, poller._recorder.room = poll_slowly, room.wait
        await asyncio.sleep(20)
        if held_up:
            room.clear()
        await asyncio.sleep(25)
        assert poller.meters[0].state is MeterState.OK
        room.set()
        await asyncio.sleep(60)
        alive[0] = False

    groups = tuple(PollGroup(interval_s=interval_s, quantities=(VOLTAGE,)) for interval_s in (8, 5))
    plan = bus(replace(meter("m"), groups=groups))
    poller, _, _ = poll(tmp_path / "j", plan, answer, 900, during=during, concurrency=2)
    assert sum(46 < at < 104 for at, _ in asked) >= 58 // 8 + 58 // 5
    assert poller.meters[0].state is MeterState.DEAD
    assert sum(probe and at > 110 for at, probe in asked) > 3


def test_of_a_dead_meters_groups_one_is_probed_and_all_come_back(tmp_path):
    dead = [True]
    asked = Counter()

    def answer(name, probe):
        asked[dead[0], probe] += 1
        if dead[0]:
            raise NoReplyError("nothing")
        return 1

    async def during(_clock, _poller: BusPoller):
        await asyncio.sleep(600)
        dead[0] = False

    slow = PollGroup(interval_s=7, quantities=(VOLTAGE,))
    plan = bus(replace(meter("m", interval_s=5), groups=(PollGroup(interval_s=5, quantities=(VOLTAGE,)), slow)))
    poller, _, _ = poll(tmp_path / "j", plan, answer, 1200, during=during)
    assert asked[True, False] <= 2
    assert asked[True, True] < 10
    assert asked[False, False] > 900 / 5 + 900 / 7 - 40
    assert poller.meters[0].state is MeterState.OK
    assert poller.meters[0].parked == []
