"""Following an award in virtual time: what devices are told, what the site's meter shows, and what is said of it."""

import asyncio
import json
from dataclasses import replace
from fractions import Fraction
from itertools import groupby
from math import sin

import pytest
from energybid.agent.cli import main
from energybid.agent.control import Owner, Rank
from energybid.agent.market import plan as plans
from energybid.core.entries import Command
from energybid.sync.market import Conduct
from floors import Floor, example_plan, play
from gateways import entries_in
from sites import site


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
        assert gateway.assets.base_w() == pytest.approx(gateway.floor.mean_w(now() - 15, now()), abs=80)
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
    ranks = [entry.rank for entry in entries_in(tmp_path / "j") if isinstance(entry, Command)]
    assert [rank for rank, _ in groupby(ranks)] == [Rank.MARKET, Rank.SCHEDULE, Rank.MARKET, Rank.SAFETY]


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
        assert gateway.assets.now(gateway.now_ms(), 0.25) == []
        assert gateway.assets.status()[0]["out"].startswith("takes -")

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
        done, *_ = await follow(gateway, -2000, {"battery": -2600}, seconds=120)
        assert done == (Conduct.OVERRIDDEN, "battery: is at its limit")
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


def with_assets(**left_out):
    """A plan in which some assets differ."""

    def changed(plan):
        assets = tuple(replace(asset, **left_out.get(asset.name, {})) for asset in plan.market.assets)
        return replace(plan, market=replace(plan.market, assets=assets))

    return changed


def test_who_follows_next_takes_over_at_once(tmp_path):
    async def scene(gateway):
        first = asyncio.create_task(follow(gateway, -2000, {"battery": -2600}))
        await asyncio.sleep(10)
        second = asyncio.create_task(follow(gateway, 1600, {"battery": 1000}, rank=Rank.SCHEDULE))
        await asyncio.sleep(2)
        assert first.done()
        assert gateway.writes("battery")[-1] == 1000
        await second
        assert 0 not in gateway.writes("battery")

    play(tmp_path / "j", scene, keep={"battery"}, changes=with_assets(battery={"ramp_w_per_s": 0.0}))


def test_it_may_be_called_before_the_interval_and_after_its_begin(tmp_path):
    async def scene(gateway):
        begins_ms = gateway.now_ms() + 20_000
        task = asyncio.create_task(
            gateway.dispatcher.follow(-2000, {"battery": -2600}, begins_ms, begins_ms + 60_000, Rank.MARKET)
        )
        await asyncio.sleep(19)
        assert gateway.writes("battery") == []
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(21)
        begin_s = now()
        late = await gateway.dispatcher.follow(-2000, {"battery": -2600}, begins_ms, begins_ms + 60_000, Rank.MARKET)
        assert late.conduct == Conduct.FOLLOWED
        # 20 s went by with 600 W: the rest makes them good, as far as the battery can
        assert gateway.floor.mean_w(begin_s - 20, now()) == pytest.approx(-2000, abs=60)

    play(tmp_path / "j", scene, keep={"battery"})


def test_who_joins_after_a_restart_begins_to_count_then(tmp_path):
    async def scene(gateway):
        begins_ms = gateway.now_ms() - 600_000
        begin_s = now()
        await gateway.dispatcher.follow(-2000, {"battery": -2600}, begins_ms, begins_ms + 660_000, Rank.MARKET)
        assert gateway.floor.mean_w(begin_s, now()) == pytest.approx(-2000, abs=60)

    play(tmp_path / "j", scene, keep={"battery"})


def test_without_the_sites_meter_the_split_is_followed(tmp_path):
    async def scene(gateway):
        gateway.floor.deaf.add("house")
        await asyncio.sleep(30)
        done, *_ = await follow(gateway, -2000, {"battery": -2600})
        assert done == (Conduct.FOLLOWED, "followed: not measured")
        assert gateway.writes("battery")[-1] == -2600

    play(tmp_path / "j", scene, keep={"battery"})


def test_what_the_sites_meter_did_not_see_is_said(tmp_path):
    async def scene(gateway):
        task = asyncio.create_task(follow(gateway, -2000, {"battery": -2600}))
        for silent in (8, 8, 8):
            await asyncio.sleep(10)
            gateway.floor.deaf.add("house")
            await asyncio.sleep(silent)
            gateway.floor.deaf.clear()
        done, *_ = await task
        assert done.conduct == Conduct.FOLLOWED
        assert done.reason.endswith(" percent measured")

    play(tmp_path / "j", scene, keep={"battery"})


def test_a_meter_without_energy_registers_is_enough(tmp_path):
    def changes(plan):
        return replace(plan, market=replace(plan.market, imported=None))

    async def scene(gateway):
        _, begin_s, end_s = await follow(gateway, -2000, {"battery": -2600})
        assert gateway.floor.mean_w(begin_s, end_s) == pytest.approx(-2000, abs=60)

    play(tmp_path / "j", scene, keep={"battery"}, changes=changes)


def test_what_makes_a_device_obey_is_held_as_long_as_the_device_is(tmp_path):
    control = replace(example_plan().market.assets[0].control, enable=(("load/shed", Fraction(3)),))

    async def scene(gateway):
        await follow(gateway, -2000, {"battery": -2600})
        assert gateway.writes("load") == [3]
        await asyncio.sleep(5)
        assert gateway.writes("load") == [3, 0]
        assert gateway.writes("battery")[-1] == 0

    floor = Floor()
    floor.there = {"battery", "load"}
    play(
        tmp_path / "j", scene, floor, keep={"battery", "ventilation"}, changes=with_assets(battery={"control": control})
    )


def test_two_limits_that_are_a_power_when_both_say_the_same(tmp_path):
    """As SunSpec's model 124 has it; the limit of the roof stands in for the second."""
    control = replace(example_plan().market.assets[0].control, mirror="roof/limit")
    changes = with_assets(battery={"control": control, "ramp_w_per_s": 0.0})
    floor = Floor()
    floor.there = {"battery", "roof"}

    async def scene(gateway):
        await follow(gateway, -2000, {"battery": -2600}, rank=Rank.SCHEDULE)
        assert gateway.writes("battery") == [-2600]
        assert gateway.writes("roof") == [2600]
        await asyncio.sleep(5)
        assert gateway.writes("roof") == [2600, 1_000_000]
        await gateway.control.hold("roof/limit", Fraction(7), Owner("anna", Rank.OVERRIDE), now() + 300)
        gateway.floor.obeys["battery"] = 0.0
        done, *_ = await follow(gateway, -2000, {"battery": -2600}, seconds=120)
        assert done == (Conduct.OVERRIDDEN, "battery: held by anna")

    play(tmp_path / "j", scene, floor, keep={"battery", "roof"}, changes=changes)


def test_an_asset_that_is_gone_from_the_configuration_is_not_moved(tmp_path):
    async def scene(gateway):
        done, *_ = await follow(gateway, 600, {"battery": 0, "gone": 500})
        assert done.conduct == Conduct.FOLLOWED

    play(tmp_path / "j", scene, keep={"battery"})


def test_a_room_that_is_too_warm_is_not_heated(tmp_path):
    floor = Floor()
    floor.temperature_c, floor.outside_c = 24.99, 15.0
    model = plans.ThermalModelPlan(time_constant_h=30.0, kelvin_per_w=0.006, free_k=1.0)
    switch = {"on": Fraction(3000), "least_w": 3000, "model": model}

    async def scene(gateway):
        await follow(gateway, 3600, {"heating": 3000}, seconds=240)
        numbers = gateway.writes("heat-pump")
        assert numbers[:2] == [3000, 0]
        assert gateway.floor.temperature_c < 25.1

    play(tmp_path / "j", scene, floor, keep={"heating"}, changes=with_assets(heating=switch))


def test_a_charger_without_a_car_and_a_run_that_waits_are_left_alone(tmp_path):
    floor = Floor()
    floor.plugged = False

    async def scene(gateway):
        done, *_ = await follow(gateway, 600, {"car": 0, "washing": 0}, rank=Rank.SCHEDULE)
        assert done.conduct == Conduct.FOLLOWED
        assert gateway.writes("wallbox") == gateway.writes("machine") == []
        floor.plugged = True
        await gateway.settle(5)
        await follow(gateway, 600, {"car": 0, "washing": 0}, rank=Rank.SCHEDULE)
        assert gateway.writes("wallbox") == [0]

    play(tmp_path / "j", scene, floor, keep={"car", "washing"})


def test_a_car_that_leaves_ends_the_award(tmp_path):
    async def scene(gateway):
        task = asyncio.create_task(follow(gateway, 4740, {"car": 4140}))
        await asyncio.sleep(20)
        gateway.floor.plugged = False
        done, *_ = await task
        assert done == (Conduct.OVERRIDDEN, "car: no car is there")

    play(tmp_path / "j", scene, keep={"car"})


def test_a_roof_is_limited_and_a_roof_that_may_not_be_is_let_be(tmp_path):
    async def scene(gateway):
        await follow(gateway, -1400, {"roof": -2000}, rank=Rank.SCHEDULE)
        assert gateway.writes("roof") == [2000]
        await asyncio.sleep(5)
        assert gateway.writes("roof")[-1] == 1_000_000

    for curtailable, numbers in ((True, scene), (False, None)):

        async def free(gateway):
            await follow(gateway, -2400, {"roof": -3000}, rank=Rank.SCHEDULE)
            assert gateway.writes("roof") == [1_000_000]

        changes = with_assets(roof={"curtailable": curtailable})
        play(tmp_path / f"{curtailable}", numbers or free, Floor(sun_w=3000.0), keep={"roof"}, changes=changes)


def test_a_device_that_moves_slowly_is_given_its_time(tmp_path):
    async def scene(gateway):
        gateway.floor.obeys["battery"] = 0.5
        done, *_ = await follow(gateway, -2000, {"battery": -2600})
        return done

    slow = with_assets(battery={"settle_s": 300.0})
    assert play(tmp_path / "a", scene, keep={"battery"}, changes=slow).conduct == Conduct.FOLLOWED


def test_a_battery_of_which_nobody_knows_the_charge_rests(tmp_path):
    async def scene(gateway):
        gateway.floor.deaf.add("battery")
        done, *_ = await follow(gateway, -2000, {"battery": -2600}, seconds=120)
        assert done == (Conduct.FAILED, "battery: no reply")
        gateway.floor.deaf.clear()
        await asyncio.sleep(310)
        gateway.floor.unread.add("state-of-charge")
        done, *_ = await follow(gateway, -2000, {"battery": -2600}, seconds=120)
        assert done == (Conduct.FAILED, "battery: battery/state-of-charge is not known")

    play(tmp_path / "j", scene, keep={"battery"})


def test_the_check_names_the_assets(tmp_path, capsys):
    path = site(tmp_path)
    assert main(["config", "check", "-c", str(path)]) == 0
    assert "asset  car  ev  set by wallbox/current-limit\n" in capsys.readouterr().out
    assert main(["config", "check", "-c", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["market"]["assets"][0] == {
        "name": "battery",
        "kind": "battery",
        "set": "battery/power",
    }


def test_a_roof_that_is_to_give_all_gives_all_be_it_more_or_less_than_was_foreseen(tmp_path):
    async def scene(gateway):
        at_ms = gateway.now_ms()
        gateway.assets.foreseen(at_ms, {"roof": -2500, "nobody": 7})
        following = asyncio.create_task(
            gateway.dispatcher.follow(-1900, {"roof": -2500}, at_ms, at_ms + 60_000, Rank.SCHEDULE)
        )
        await asyncio.sleep(30)
        assert gateway.floor.powers(now())["roof"] == -3000
        await following
        at_ms = gateway.now_ms()  # foreseen for another interval
        await gateway.dispatcher.follow(-1900, {"roof": -2500}, at_ms, at_ms + 60_000, Rank.SCHEDULE)
        assert gateway.writes("roof")[-1] == 2500

    play(tmp_path / "j", scene, Floor(sun_w=3000.0), keep={"roof"})
