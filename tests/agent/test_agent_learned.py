"""What drivers have learned: kept in the journal, given back, shown."""

import asyncio
from dataclasses import replace

from energybid.agent.commands.status import render
from energybid.agent.memory import Memory, key_of
from energybid.agent.polling import BusPoller
from energybid.agent.status import meter_status
from energybid.core.errors import JournalStalledError
from energybid.simulator.virtual import VirtualClock, run
from gateways import ScriptedDriver, bus, meter, recording, virtual_platform

REFUSED = {"unreadable": [{"registers": "input 7", "retry_s": 60}]}
PLAN = bus(meter("a", 1), meter("b", 2))


def remembering(path, scene, plan=PLAN):
    """Run ``scene(memory, driver, journal)``."""

    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock)
        async with recording(platform, path) as recorder:
            driver = ScriptedDriver(clock, lambda *_: 1)
            memory = Memory(platform, recorder.journal, [BusPoller(platform, recorder, driver, plan)])
            await memory.recall()
            task = asyncio.create_task(memory.run())
            try:
                return await scene(memory, driver, recorder.journal)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    return run(main)


def test_what_cost_readings_to_learn_is_kept_at_once_and_given_back(tmp_path):
    async def first(_memory, driver, journal):
        assert driver.knowledge == {}
        driver.knowledge["a"] = dict(REFUSED)
        await asyncio.sleep(61)
        assert set(journal.recall("meter/")) == {key_of(PLAN.meters[0])}

    async def second(_memory, driver, _journal):
        assert driver.knowledge == {"a": REFUSED}

    remembering(tmp_path / "j", first)
    remembering(tmp_path / "j", second)


def test_with_another_profile_it_is_learned_anew(tmp_path):
    async def first(memory, driver, _journal):
        driver.knowledge["a"] = dict(REFUSED)
        await memory.close()

    async def second(_memory, driver, _journal):
        assert driver.knowledge == {}

    remembering(tmp_path / "j", first)
    other = bus(*(replace(m, profile_hash=b"o" * 32) for m in PLAN.meters))
    remembering(tmp_path / "j", second, other)


def test_what_changes_all_the_time_is_written_once_a_day(tmp_path):
    async def scene(_memory, driver, journal):
        values = set()
        for hour in range(3 * 24):
            driver.knowledge["a"] = {"delays": hour}
            await asyncio.sleep(3600)
            values |= set(journal.recall("meter/").values())
        assert 3 <= len(values) <= 4

    remembering(tmp_path / "j", scene)


def test_what_changes_all_the_time_is_kept_at_the_end(tmp_path):
    async def first(memory, driver, _journal):
        driver.knowledge["a"] = {"delays": 1}
        await asyncio.sleep(61)
        driver.knowledge["a"] = {"delays": 2}
        await memory.close()

    async def second(memory, driver, _journal):
        assert driver.knowledge == {"a": {"delays": 2}}
        driver.knowledge["a"] = {"delays": 3}
        await memory.close()

    async def third(_memory, driver, _journal):
        assert driver.knowledge == {"a": {"delays": 3}}

    for scene in (first, second, third):
        remembering(tmp_path / "j", scene)


def test_what_is_damaged_is_left_alone(tmp_path, caplog):
    async def first(_memory, _driver, journal):
        journal.remember(key_of(PLAN.meters[0]), b'{"damaged":1}')
        journal.remember(key_of(PLAN.meters[1]), b"no JSON")

    async def second(_memory, driver, _journal):
        assert driver.knowledge == {}

    remembering(tmp_path / "j", first)
    remembering(tmp_path / "j", second)
    assert [record.args[0] for record in caplog.records if "learned again" in record.message] == ["a", "b"]


def test_a_disk_that_takes_nothing_costs_nothing_else(tmp_path, monkeypatch):
    async def scene(memory, driver, journal):
        def refuse(*_):
            raise JournalStalledError("full")

        driver.knowledge["a"] = dict(REFUSED)
        monkeypatch.setattr(journal, "remember", refuse)
        await asyncio.sleep(130)
        monkeypatch.undo()
        assert journal.recall("meter/") == {}
        await asyncio.sleep(61)
        assert len(journal.recall("meter/")) == 1
        await memory.close()

    remembering(tmp_path / "j", scene)


def test_a_slow_disk_does_not_hold_up_the_end(tmp_path, caplog):
    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock)
        async with recording(platform, tmp_path / "j") as recorder:
            driver = ScriptedDriver(clock, lambda *_: 1)
            memory = Memory(platform, recorder.journal, [BusPoller(platform, recorder, driver, PLAN)])
            driver.knowledge["a"] = dict(REFUSED)
            platform.offload.delay_s = (5.0, 5.0)
            began = asyncio.get_running_loop().time()
            await memory.close()
            assert asyncio.get_running_loop().time() - began <= 1.0

    run(main)
    assert "the disk is slow" in caplog.text


def test_status_shows_what_was_learned():
    learned = {
        "timeout_ms": 143,
        "delay_ms": [23.5, 41.0],
        "turnaround_ms": 2.0,
        "unreadable": [{"registers": "input 6-7", "retry_s": 86_000}, {"registers": "holding 3|4", "retry_s": 50}],
    }

    async def main():
        clock = VirtualClock()
        driver = ScriptedDriver(clock, lambda *_: 1)
        driver.knowledge["a"] = learned
        poller = BusPoller(virtual_platform(clock), None, driver, PLAN)
        return [meter_status(m, poller.driver.shown(m.plan)) for m in poller.meters]

    meters = run(main)
    assert meters[0]["learned"] == learned
    text = render(
        {
            "gateway": "t/g",
            "time_ms": 0,
            "clock": "synchronised",
            "version": "1",
            "log": {"size": 0, "committed": 0, "acknowledged": 0},
            "journal": {
                "full_in_s": None,
                "used": 0,
                "budget": 1,
                "stage": "all",
                "not_logged": 0,
                "error": "",
                "quarantined": [],
            },
            "uplink": {"configured": False, "connected": False, "error": ""},
            "receipt": None,
            "meters": meters,
        }
    )
    lines = text.splitlines()[-4:]
    assert (
        "answers after 23.5 ms, nearly always within 41 ms, time-out 143 ms, rest of 2 ms before a request" in lines[1]
    )
    assert "can not be read: input 6-7 (again in 24 h), holding 3|4 (again in 1 min)" in lines[2]
    assert lines[3].startswith("  b ")
