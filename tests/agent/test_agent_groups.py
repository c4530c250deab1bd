"""Poll groups: intervals of their own, and what falls due at once is read at once."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from energybid.agent.config import load_plan
from energybid.agent.polling import BusPoller
from energybid.core.entries import Gap, Reading
from energybid.core.errors import ConfigurationError, NoReplyError
from energybid.core.ports import MeterPlan, PollGroup
from energybid.core.quantities import Obis, Quantity
from energybid.simulator.virtual import VirtualClock, run
from gateways import KEY, ScriptedDriver, bus, entries_in, recording, virtual_platform

GATEWAY = """
gateway = { tenant = "t", id = "g" }
keys = { log = "log.pem" }
journal = { path = "j.db" }
[[bus]]
name = "line"
kind = "modbus-rtu"
device = "/dev/null"
[[bus.meter]]
name = "m"
profile = "eastron-sdm630"
unit = 1
interval = "10 s"
"""


class Grouped(ScriptedDriver):
    """Knows groups; a poll of several counts as one."""

    def __init__(self, *arguments, **keys):
        super().__init__(*arguments, **keys)
        self.groups: list[tuple[int, ...]] = []

    async def poll(self, meter: MeterPlan, group: int, **_):
        return (await self.poll_together(meter, (group,)))[0]

    async def poll_together(self, meter: MeterPlan, groups: tuple[int, ...]):
        self.groups.append(groups)
        sample = await super().poll(meter, groups[0])
        return [sample._replace(values=(group,)) for group in groups]


def meter(*intervals: float) -> MeterPlan:
    energy = Quantity(obis=Obis.parse("1-0:1.8.0"), unit="Wh", exponent=0)
    return MeterPlan(
        name="m",
        unit=1,
        timeout_s=1.0,
        retries=2,
        profile="test",
        profile_hash=bytes(32),
        groups=tuple(PollGroup(interval_s=interval, quantities=(energy,)) for interval in intervals),
        map=None,
    )


def poll(path: Path, plan: MeterPlan, seconds: float, answer=lambda *_: 1, **driver):
    async def main():
        clock = VirtualClock()
        scripted = Grouped(clock, answer, **driver)
        platform = virtual_platform(clock)
        async with recording(platform, path) as recorder:
            poller = BusPoller(platform, recorder, scripted, bus(plan))
            poller.declare()
            task = asyncio.create_task(poller.run())
            await asyncio.sleep(seconds)
            assert not task.done(), task.result()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return scripted, poller

    scripted, poller = run(main)
    return scripted, poller, entries_in(path)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_groups_that_coincide_are_read_at_once_and_logged_apart(tmp_path: Path, concurrency: int) -> None:
    scripted, poller, entries = poll(tmp_path / "j", meter(10, 60, 30), 600.5, concurrency=concurrency)
    assert Counter(scripted.groups) == {(0,): 40, (0, 2): 10, (0, 1, 2): 10}
    readings = [entry for entry in entries if isinstance(entry, Reading)]
    assert Counter(reading.group for reading in readings) == {0: 60, 1: 10, 2: 20}
    assert all(reading.values == (reading.group,) for reading in readings)
    assert poller.overruns == 0
    assert poller.meters[0].polls == 90


def test_groups_that_waited_for_a_slow_bus_are_read_at_once(tmp_path: Path) -> None:
    scripted, _, _ = poll(tmp_path / "j", meter(2, 3), 60, takes_s=1.4)
    assert set(scripted.groups) == {(0,), (1,), (0, 1)}


def test_a_poll_of_several_groups_that_fails_misses_them_all(tmp_path: Path) -> None:
    failing = [True]

    def answer(*_):
        if failing[0]:
            raise NoReplyError("nothing")
        return 1

    scripted, poller, entries = poll(tmp_path / "j", meter(10, 10), 35, answer)
    (gap,) = [entry for entry in entries if isinstance(entry, Gap)]
    assert scripted.groups[0] == (0, 1)
    assert gap.missed == poller.meters[0].failed_polls
    assert gap.missed >= 2
    failing[0] = False


def write(folder: Path, text: str) -> Path:
    (folder / "log.pem").write_bytes(KEY.pem())
    path = folder / "gateway.toml"
    path.write_text(GATEWAY + text)
    return path


def test_groups_in_the_file(tmp_path: Path) -> None:
    slow = '[[bus.meter.group]]\ninterval = "15 min"\nquantities = ["energy-import", "energy-export"]\n'
    plan = load_plan(write(tmp_path, slow)).buses[0].meters[0]
    assert [(group.interval_s, len(group.quantities)) for group in plan.groups][1] == (900, 2)
    assert plan.groups[0].interval_s == 10
    few = 'quantities = ["voltage-l1"]\n' + slow
    plan = load_plan(write(tmp_path, few)).buses[0].meters[0]
    assert [[str(q.obis) for q in group.quantities] for group in plan.groups] == [
        ["1-0:32.7.0"],
        ["1-0:1.8.0", "1-0:2.8.0"],
    ]
    # On this line the registers between are dearer than a second request.
    assert [(r.first, r.count) for r in plan.map.together[0].requests] == [(0, 2), (72, 4)]


def test_a_gateway_with_a_small_buffer(tmp_path: Path) -> None:
    few = 'quantities = ["voltage-l1", "voltage-l2", "voltage-l3"]\nmax_registers = 5\n'
    plan = load_plan(write(tmp_path, few)).buses[0].meters[0]
    assert [(r.first, r.count) for r in plan.map.groups[0]] == [(0, 4), (4, 2)]
    with pytest.raises(ConfigurationError) as caught:
        load_plan(write(tmp_path, few.replace("= 5", "= 1")))
    assert [fault.split("gateway.toml: ")[1] for fault in caught.value.faults] == [
        f"bus[0].meter[0].max_registers: voltage-l{phase} takes 2" for phase in (1, 2, 3)
    ]


def test_faults_of_groups_name_their_keys(tmp_path: Path) -> None:
    wrong = """
quantities = ["voltage-l1"]
[[bus.meter.group]]
interval = "15 min"
quantities = ["energie", "voltage-l1"]
[[bus.meter.group]]
interval = "15"
quantities = []
"""
    with pytest.raises(ConfigurationError) as caught:
        load_plan(write(tmp_path, wrong))
    assert [fault.split("gateway.toml: ")[1][:42] for fault in caught.value.faults] == [
        "bus[0].modbus-rtu.meter[0].group[1].interval: "[:42],
    ]
    with pytest.raises(ConfigurationError) as caught:
        load_plan(write(tmp_path, wrong.replace('"15"', '"15 s"')))
    faults = [fault.split("gateway.toml: ")[1] for fault in caught.value.faults]
    assert faults[0].startswith("bus[0].meter[0].group[0].quantities: no quantity 'energie'; eastron-sdm630 has ")
    assert faults[1] == "bus[0].meter[0].group[0].quantities: 'voltage-l1' stands in quantities too"
    assert faults[2].startswith("bus[0].meter[0].group[1].quantities: choose at least one of ")
    assert len(faults) == 3
