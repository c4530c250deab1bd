"""Several poll groups of a meter read at once: shared requests, a sample for each."""

import asyncio
import struct
from typing import Any

import pytest
from energybid.core.errors import NoReplyError
from energybid.core.ports import BusPlan, Driver, MeterPlan, Sample
from energybid.core.quantities import Status
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.learned import Learned, Patience, Turnaround
from energybid.drivers.modbus.learned import Span as Refused
from energybid.drivers.modbus.map import HOLDING
from energybid.drivers.modbus.unit import Unit
from energybid.drivers.planner import Cost, serial_cost
from energybid.drivers.profile import Group, compile_profile, parse_profile
from energybid.simulator.virtual import run
from modbus_peers import TCP, Peer, framed, played, reply

PROFILE = b"""
manufacturer = "Test"
model = "Six registers and a factor"
source = [{ title = "this test" }]
max_registers = 40
baudrates = [9600]
parities = ["N"]
timeout = "1 s"
defaults = { table = "holding", type = "uint16" }
block = [{ table = "holding", first = 0, count = 20 }, { table = "holding", first = 30, count = 10 }]
quantity = [
  { name = "a", obis = "1-0:1.7.0", register = 0, unit = "W", resolution = "1" },
  { name = "b", obis = "1-0:2.7.0", register = 2, unit = "W", resolution = "1", scale_by = ["ratio"] },
  { name = "c", obis = "1-0:3.7.0", register = 4, unit = "var", resolution = "1" },
  { name = "d", obis = "1-0:4.7.0", register = 6, unit = "var", resolution = "1", scale_by = ["ratio"] },
  { name = "e", obis = "1-0:9.7.0", register = 30, unit = "VA", resolution = "1" },
]
[[factor]]
name = "ratio"
register = 10
"""
REGISTERS = {0: 100, 2: 102, 4: 104, 6: 106, 10: 3, 30: 130}


def bus_plan(profile: bytes = PROFILE, cost: Cost | None = None) -> BusPlan:
    loaded = parse_profile("test", profile, source="test.toml")
    slow = [Group(interval_s=60, quantities=["e", "b"]), Group(interval_s=900, quantities=["d"])]
    if cost:
        slow = [Group(interval_s=60, quantities=["b", "d"])]
    groups, compiled = compile_profile(loaded, interval_s=1, groups=slow, cost=cost)
    meter = MeterPlan(
        name="m",
        unit=1,
        timeout_s=0.2,
        retries=0,
        profile="test",
        profile_hash=bytes(32),
        groups=groups,
        map=compiled,
    )
    return BusPlan(name="bus", kind="modbus-tcp", endpoint=TCP, meters=(meter,))


def answering(refused: set[int], silent: set[int]) -> Peer:
    def answer(frame: Any) -> list[tuple[float, bytes]]:
        first, count = struct.unpack(">HH", frame.pdu[1:5])
        if silent.intersection(range(first, first + count)):
            return []
        if refused.intersection(range(first, first + count)):
            return [(0, framed(frame, b"\x83\x02"))]
        words = [REGISTERS.get(at, 0) for at in range(first, first + count)]
        return [(0, reply(frame, struct.pack(f">{count}H", *words)))]

    return Peer(answer)


FAR = PROFILE.replace(b"max_registers = 40", b"max_registers = 125").replace(
    b'first = 0, count = 20 }, { table = "holding", first = 30, count = 10', b"first = 0, count = 60"
)


def test_requests_are_planned_anew_with_the_reply_delay_that_was_measured() -> None:
    def requests(unit: Unit) -> list[list[tuple[int, int]]]:
        readings = [unit.readings[group] for group in range(len(unit.compiled))]
        return [[(a.request.first, a.request.count) for a in reading.asked] for reading in readings]

    plan = bus_plan(FAR, serial_cost(9600)).meters[0]
    unit = Unit(plan, Patience(1.0, 0.1))
    apart = [[(0, 5), (30, 1)], [(2, 9)], [(0, 11), (30, 1)]]
    assert requests(unit) == apart, "19 registers more take 40 ms, a request 37 ms"
    at_once = [[(0, 31)], [(2, 9)], [(0, 31)]]
    for delay_s, replies, expected in ((0.005, 60, apart), (0.08, 40, apart), (0.08, 60, at_once)):
        unit = Unit(plan, Patience(1.0, 0.1))
        unit.take(delays(delay_s, replies), 0.0, 0)
        assert requests(unit) == expected, (delay_s, replies)
    unit.refuse([Refused(HOLDING, 15, 1)], 0.0)
    assert requests(unit)[0] == [(0, 5), (30, 1)]
    pinned = serial_cost(9600, reply_delay_s=0.02)
    assert pinned.with_delay(1.0) == pinned

    async def main() -> None:
        peer, bus = answering(set(), set()), bus_plan(FAR, serial_cost(9600))
        driver, meter = open_driver(peer.platform(), bus), bus.meters[0]
        driver.learn(meter, delays(0.08, 60))
        assert [sample.values for sample in await driver.poll_together(meter, (0, 1))] == [(100, 104, 130), (306, 318)]
        assert (await driver.poll(meter, 1)).values == (306, 318)
        assert asked(peer) == [(0, 31), (2, 9)]
        await driver.close()

    run(main)


def delays(delay_s: float, replies: int) -> dict[str, Any]:
    """What an earlier run has learned."""
    learned = Learned(Patience(1.0, 0.1), Turnaround())
    for _ in range(replies):
        learned.patience.delays.add(delay_s)
    return learned.plain(0.0, 0)


def asked(peer: Peer) -> list[tuple[int, int]]:
    found = [struct.unpack(">HH", frame.pdu[1:5]) for frame in peer.requests]
    peer.requests.clear()
    return found


def test_groups_that_are_due_at_once_share_requests() -> None:
    async def main() -> None:
        peer, plan = answering(set(), set()), bus_plan()
        driver, meter = open_driver(peer.platform(), plan), plan.meters[0]
        for groups, requests, values in [
            ((0, 1), [(0, 11), (30, 1)], [(100, 104), (306, 130)]),
            ((0, 2), [(0, 11)], [(100, 104), (318,)]),
            ((1, 2), [(2, 9), (30, 1)], [(306, 130), (318,)]),
            ((0, 1, 2), [(0, 11), (30, 1)], [(100, 104), (306, 130), (318,)]),
        ]:
            samples = await driver.poll_together(meter, groups)
            assert [sample.values for sample in samples] == values
            assert [sample.status for sample in samples] == [None] * len(groups)
            assert asked(peer) == requests
        assert (await driver.poll(meter, 1)).values == (306, 130)
        assert asked(peer) == [(2, 9), (30, 1)]
        await driver.close()

    run(main)


def slowly(peer: Peer) -> Peer:
    """The same answers, each after 10 ms."""
    at_once = peer.fate
    peer.fate = lambda frame: [(0.01, data) for _, data in at_once(frame)]
    return peer


def test_what_one_group_learns_while_another_is_polled_moves_no_value_of_that() -> None:
    async def scene(driver: Driver, _peer: Peer, plan: BusPlan) -> tuple[Sample, Sample]:
        first = asyncio.create_task(driver.poll(plan.meters[0], 0))
        await asyncio.sleep(0.025)  # its requests are planned anew while those of the other are under way
        other = await driver.poll(plan.meters[0], 1)
        return await first, other

    found = played(bus_plan(), slowly(answering({3}, set())), scene)
    assert [(sample.values, sample.status) for sample in found] == [((100, 104), None), ((306, 130), None)]


def test_registers_that_two_groups_read_over_may_be_tried_again_by_both_at_once() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> list[Sample]:
        meter = plan.meters[0]
        for still in (True, False):
            await driver.poll(meter, 0)
            await driver.poll(meter, 1)
            await asyncio.sleep(400)
            peer.fate = slowly(answering({3} if still else set(), set())).fate
            await asyncio.gather(driver.poll(meter, 0), driver.poll(meter, 1))
        return list(await asyncio.gather(driver.poll(meter, 0), driver.poll(meter, 1)))

    found = played(bus_plan(), slowly(answering({3}, set())), scene)
    assert [(sample.values, sample.status) for sample in found] == [((100, 104), None), ((306, 130), None)]


def test_a_gap_that_one_group_can_not_read_over_takes_no_value_from_another() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> list[Sample]:
        meter = plan.meters[0]
        for _ in range(3):
            samples = [await driver.poll(meter, 0), await driver.poll(meter, 1)]
            assert [(sample.values, sample.status) for sample in samples] == [((100, 104), None), ((306, 130), None)]
            await asyncio.sleep(61)
        assert [span["registers"] for span in driver.shown(meter)["unreadable"]] == ["holding 1"]

    played(bus_plan(), answering({1}, set()), scene)


def test_each_group_has_the_statuses_of_its_own_numbers() -> None:
    async def main() -> None:
        refused, silent = {4}, {30}
        peer, plan = answering(refused, silent), bus_plan()
        driver, meter = open_driver(peer.platform(), plan), plan.meters[0]
        for _ in range(2):  # the second time round the refused register
            a, b, c = await driver.poll_together(meter, (0, 1, 2))
            assert (a.values, a.status) == ((100, None), (0, Status.REFUSED))
            assert (b.values, b.status) == ((306, None), (0, Status.NO_REPLY))
            assert (c.values, c.status) == ((318,), None)
        assert asked(peer)[-3:] == [(0, 3), (6, 5), (30, 1)]
        refused.clear()
        silent.update(REGISTERS)
        with pytest.raises(NoReplyError):
            await driver.poll_together(meter, (0, 1))
        await driver.close()

    run(main)
