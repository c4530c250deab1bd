"""Following an award in virtual time: what the devices are told, what the site's meter shows, and what is said of it."""

import asyncio
from math import sin

import pytest
from energybid.agent.control import Owner, Rank
from energybid.sync.market import Conduct
from floors import Floor, play


def now():
    return asyncio.get_running_loop().time()


async def follow(gateway, target_w, split, *, seconds=60, rank=Rank.MARKET):
    begins_ms = gateway.now_ms()
    begin_s = now()
    done = await gateway.dispatcher.follow(target_w, split, begins_ms, begins_ms + 1000 * seconds, rank)
    return done, begin_s, now()


def test_a_battery_makes_the_intervals_energy_meet_the_award(tmp_path):
    """The household is far from what was thought, and moves; the battery makes up for it."""
    floor = Floor(base=lambda t: 900.0 + 400.0 * sin(t / 7))

    async def scene(gateway):
        assert gateway.assets.base_w() == pytest.approx(gateway.floor.mean_w(now() - 15, now()), abs=30)
        done, begin_s, end_s = await follow(gateway, -2000, {"battery": -2600})
        gateway.floor.advance(now())
        assert done.conduct == Conduct.FOLLOWED, done
        assert gateway.floor.mean_w(begin_s, end_s) == pytest.approx(-2000, abs=25)
        assert (begin_s, end_s) == pytest.approx((begin_s, begin_s + 60))
        return done

    done = play(tmp_path / "j", scene, floor, keep={"battery"})
    assert done.reason.startswith("followed: -")


def test_what_was_held_is_safe_again_when_nobody_follows(tmp_path):
    async def scene(gateway):
        await follow(gateway, -1000, {"battery": -1600})
        await asyncio.sleep(5)
        assert gateway.writes("battery")[-1] == 0
        assert gateway.assets.status()[0]["command_w"] is None

    play(tmp_path / "j", scene, keep={"battery"})


def test_the_next_interval_takes_over_without_a_safe_number_in_between(tmp_path):
    async def scene(gateway):
        await follow(gateway, -1000, {"battery": -1600})
        await follow(gateway, -1000, {"battery": -1600}, rank=Rank.SCHEDULE)
        await follow(gateway, -1000, {"battery": -1600})
        assert 0 not in gateway.writes("battery")

    play(tmp_path / "j", scene, keep={"battery"})


def test_a_schedule_is_a_split_and_no_more(tmp_path):
    floor = Floor(base=lambda t: 900.0 + 400.0 * sin(t / 7))

    async def scene(gateway):
        done, *_ = await follow(gateway, 0, {"battery": -600}, rank=Rank.SCHEDULE)
        assert done.conduct == Conduct.FOLLOWED
        assert gateway.writes("battery") == [-600]

    play(tmp_path / "j", scene, floor, keep={"battery"})


def test_an_override_that_others_can_not_make_good_ends_the_award(tmp_path):
    async def scene(gateway):
        task = asyncio.create_task(follow(gateway, -2000, {"battery": -2600}))
        await asyncio.sleep(20)
        person = Owner("anna", Rank.OVERRIDE)
        await gateway.control.hold("battery/power", 0, person, now() + 100)
        done, begin_s, end_s = await task
        assert done == (Conduct.OVERRIDDEN, "battery: held by anna")
        assert end_s - begin_s < 50
        await asyncio.sleep(5)
        assert gateway.writes("battery")[-1] == 0
        assert gateway.assets.now(gateway.now_ms(), 0.25) == []
        assert gateway.assets.status()[0]["out"] == "anna holds it"

    play(tmp_path / "j", scene, keep={"battery"})


def test_a_device_that_takes_no_writes_fails_the_award(tmp_path):
    async def scene(gateway):
        gateway.floor.silent.add("battery")
        done, begin_s, end_s = await follow(gateway, -2000, {"battery": -2600})
        assert done.conduct == Conduct.FAILED
        assert done.reason.startswith("battery: ")
        assert end_s - begin_s < 50
        assert gateway.assets.now(gateway.now_ms(), 0.25) == []
        gateway.floor.silent.clear()
        await asyncio.sleep(400)
        assert [name for name, _ in gateway.assets.now(gateway.now_ms(), 0.25)] == ["battery"]

    play(tmp_path / "j", scene, keep={"battery"})


def test_a_device_that_does_not_obey_fails_the_award(tmp_path):
    async def scene(gateway):
        gateway.floor.obeys["battery"] = 0.2
        done, *_ = await follow(gateway, -2000, {"battery": -2600}, seconds=120)
        assert done.conduct == Conduct.FAILED
        assert done.reason.startswith("battery: takes -")

    play(tmp_path / "j", scene, keep={"battery"})


def test_what_one_device_does_not_do_another_does_for_it(tmp_path):
    async def scene(gateway):
        gateway.floor.obeys["wallbox"] = 0.7
        done, begin_s, end_s = await follow(gateway, 6000, {"battery": -700, "car": 6100}, seconds=120)
        assert done.conduct == Conduct.FOLLOWED
        assert gateway.floor.mean_w(begin_s, end_s) == pytest.approx(6000, abs=40)

    play(tmp_path / "j", scene, keep={"battery", "car"})


def test_an_empty_battery_is_not_discharged_below_its_reserve(tmp_path):
    floor = Floor(stored_wh=1020.0)

    async def scene(gateway):
        await follow(gateway, -2000, {"battery": -2600}, seconds=120)
        assert gateway.floor.stored_wh > 999

    play(tmp_path / "j", scene, floor, keep={"battery"})


def test_the_connections_limit_comes_before_the_award(tmp_path):
    """The household takes more than anybody thought: what can only be off is off, and stays so."""
    floor = Floor(base=lambda t: 600.0 if t < 40 else 15_000.0)

    async def scene(gateway):
        done, *_ = await follow(gateway, 4740, {"car": 4140}, seconds=120)
        assert done == (Conduct.OVERRIDDEN, "import limit")
        assert gateway.floor.powers(now())["wallbox"] == 0
        assert gateway.writes("wallbox")[-1] == 0

    play(tmp_path / "j", scene, floor, keep={"car"})


def test_all_kinds_together(tmp_path):
    floor = Floor(base=lambda t: 700.0, sun_w=4000.0)
    split = {"battery": 1000, "car": 5520, "heating": 2000, "washing": 2000, "ventilation": 1000, "roof": -4000}

    async def scene(gateway):
        assert len(gateway.assets.now(gateway.now_ms(), 1 / 60)) == 5  # the pump's model is not known yet
        done, begin_s, end_s = await follow(gateway, 8220, split, seconds=120)
        assert done.conduct == Conduct.FOLLOWED
        assert gateway.floor.mean_w(begin_s, end_s) == pytest.approx(8220, abs=40)
        powers = gateway.floor.powers(now())
        assert (powers["machine"], powers["load"], powers["roof"]) == (2000, 1000, -4000)
        assert gateway.writes("roof") == [1_000_000]
        assert gateway.writes("load") == [1]
        await asyncio.sleep(10)
        powers = gateway.floor.powers(now())
        assert powers["machine"] == 2000
        assert powers["load"] == 3000
        assert gateway.control.held_above("machine/start", Rank.SCHEDULE).name == "dispatch"

    play(tmp_path / "j", scene, floor)


def test_an_agent_that_ends_lets_go(tmp_path):
    async def scene(gateway):
        task = asyncio.create_task(follow(gateway, -2000, {"battery": -2600}))
        await asyncio.sleep(20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(1)
        assert gateway.writes("battery")[-1] == 0

    play(tmp_path / "j", scene, keep={"battery"})
