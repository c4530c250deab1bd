"""How a serial line's time is used, in virtual time, exact to the character."""

import asyncio
from collections import defaultdict
from itertools import pairwise
from statistics import mean

import pytest
from energybid.agent.memory import Memory
from energybid.agent.polling import BusPoller
from energybid.agent.status import meter_status
from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.driver import ModbusDriver, open_driver
from energybid.simulator.virtual import VirtualClock, run
from gateways import recording, virtual_platform
from lines import Line, line_plan, profile, words


def polled(path, line, plan, seconds, *, during=None):
    """Poll a line with the agent's poller for some virtual time; returns the poller and its driver."""

    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock, open_bus=line.open_bus)
        async with recording(platform, path) as recorder:
            driver = open_driver(platform, plan)
            poller = BusPoller(platform, recorder, driver, plan)
            poller.declare()
            task = asyncio.create_task(poller.run())
            if during:
                await during(poller)
            await asyncio.sleep(seconds)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return poller, driver

    return run(main)


def intervals(line, *, since_s):
    """Unit → times between its polls: between requests for the same registers."""
    asked = defaultdict(list)
    for frame, at in zip(line.requests, line.asked_at, strict=True):
        if at >= since_s:
            asked[frame.unit, frame.pdu].append(at)
    found = defaultdict(list)
    for (unit, pdu), times in asked.items():
        if pdu[1:3] == b"\0\0":
            found[unit] += [b - a for a, b in pairwise(times)]
    return found


def use_of(line):
    """Part of the time that frames, the meters' delays and the silence of the standard take."""
    took_s = line.asked_at[-1] - line.asked_at[0]
    needed_s = line.frames_s / line.exchanges + line.silence_s
    return needed_s * (len(line.asked_at) - 1) / took_s


@pytest.mark.parametrize("baudrate", [9600, 19_200, 115_200])
@pytest.mark.parametrize("meters", [1, 2, 32])
def test_the_line_is_used_to_95_percent(tmp_path, baudrate, meters):
    endpoint = SerialEndpoint(device="/dev/ttyUSB0", baudrate=baudrate)
    line = Line(endpoint, delay_s=0.02)
    polled(tmp_path / "j", line, line_plan(endpoint, range(1, meters + 1), profile(40)), 30)
    assert use_of(line) >= 0.95
    assert line.collisions == 0


def healthy_intervals(path, dead, *, interval_s=0.0, seconds=600.0):
    """Intervals of the first 27 of 32 meters at 9,600 baud, of which some are dead, once it is known which."""
    endpoint = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)
    line = Line(endpoint, lambda unit, pdu: b"" if unit in dead else words(unit, pdu))
    units = range(1, 33) if dead is not ABSENT else range(1, 28)
    plan = line_plan(endpoint, units, profile(40), interval_s=interval_s)
    poller, _ = polled(path, line, plan, seconds + 60)
    assert line.collisions == 0
    found = intervals(line, since_s=60)
    return poller, line, [found[unit] for unit in range(1, 28)]


ABSENT = frozenset()
"""The dead meters are not there at all."""


@pytest.mark.parametrize("interval_s", [0.0, 10.0])
def test_five_dead_meters_of_32_change_the_interval_of_the_others_by_less_than_5_percent(tmp_path, interval_s):
    _, _, alone = healthy_intervals(tmp_path / "a", ABSENT, interval_s=interval_s)
    poller, line, found = healthy_intervals(tmp_path / "b", {28, 29, 30, 31, 32}, interval_s=interval_s)
    wanted_s = mean(mean(times) for times in alone)
    change = [mean(times) / wanted_s - 1 for times in found]
    worst = max(abs(time_s / wanted_s - 1) for times in found for time_s in times)
    probes = sum(frame.unit > 27 for frame in line.requests)
    assert all(abs(part) < 0.05 for part in change)
    assert worst < 0.05
    assert probes > 5 * 4
    assert [meter.state.value for meter in poller.meters[27:]] == ["dead"] * 5


@pytest.mark.parametrize("interval_s", [0.0, 1.0])
def test_an_unplugged_adapter_is_looked_for_every_few_seconds(tmp_path, interval_s, monkeypatch):
    """32 meters wake the agent some six times a second, and one in thirty of these tries to open the port."""
    endpoint = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)
    line = Line(endpoint)
    line.refuse = "no such port"
    calls = []
    real = ModbusDriver.poll

    async def counted(self, *arguments, **options):
        calls.append(asyncio.get_running_loop().time())
        return await real(self, *arguments, **options)

    monkeypatch.setattr(ModbusDriver, "poll", counted)

    async def during(_poller):
        await asyncio.sleep(600)
        assert 115 <= len(line.attempts) <= 125
        assert len(calls) <= 32 * 122
        line.refuse = None
        await asyncio.sleep(12)
        assert len({frame.unit for frame in line.requests}) == 32

    polled(
        tmp_path / "j", line, line_plan(endpoint, range(1, 33), profile(10), interval_s=interval_s), 1, during=during
    )


def test_what_was_learned_outlives_the_agent(tmp_path):
    """A second run of the agent asks for nothing that the first one was refused, and is as patient as it was."""
    endpoint = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)
    plan = line_plan(endpoint, range(1, 3), profile(20), interval_s=1.0)
    refused = []

    def respond(unit, pdu):
        first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        if first <= 7 < first + count:
            refused.append(unit)
            return bytes((pdu[0] | 0x80, 2))
        return words(unit, pdu)

    async def run_once():
        line = Line(endpoint, respond)
        clock = VirtualClock()
        platform = virtual_platform(clock, open_bus=line.open_bus)
        async with recording(platform, tmp_path / "j") as recorder:
            poller = BusPoller(platform, recorder, open_driver(platform, plan), plan)
            memory = Memory(platform, recorder.journal, [poller])
            await memory.recall()
            poller.declare()
            task = asyncio.create_task(poller.run())
            await asyncio.sleep(50)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await memory.close()
            return [meter_status(meter, poller.driver.shown(meter.plan)) for meter in poller.meters]

    before = run(run_once)
    assert len(refused) == 2 * 6  # the whole, then one half of it, and so on
    assert {meter["state"] for meter in before} == {"partial"}
    assert before[0]["learned"]["unreadable"][0]["registers"] == "input 6-7"
    refused.clear()
    after = run(run_once)
    assert len(refused) <= 2  # a try each, a minute after they were found
    assert after[0]["learned"]["unreadable"][0]["registers"] == "input 6-7"
    assert after[0]["learned"]["timeout_ms"] < 500
