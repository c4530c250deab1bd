"""Assets as the meters see them: states, what is left out and why, what is carried over a restart."""

import asyncio
import json
from dataclasses import replace
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from energybid.agent.control import Owner, Rank
from energybid.agent.market import assets as module
from energybid.agent.market import learning
from energybid.agent.market import plan as plans
from energybid.agent.market.forming import State, bidding_asset, resampled
from energybid.agent.market.learning import SLOT_MS, SLOTS_MAX, Learner, Sight
from energybid.agent.market.live import Trace, Value
from energybid.agent.market.setpoints import number_for, power_for, sheds_for
from energybid.agent.market.times import moment, next_moment, window
from energybid.bidding.assets import Curtailable, Deferrable, Pv
from energybid.bidding.assets_identify import STEPS_MIN
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.planning_weather import SITE
from energybid.core.errors import JournalStalledError
from energybid.simulator.virtual import EPOCH_NS, run
from floors import Floor, example_plan, play, running
from hypothesis import given, settings
from hypothesis import strategies as st

BERLIN = ZoneInfo("Europe/Berlin")
HOUR_MS = 3_600_000
BEGIN_MS = EPOCH_NS // 1_000_000
"""14:13:20 UTC, 16:13:20 in Berlin."""
BATTERY, CAR, HEATING, WASHING, VENTILATION, ROOF = example_plan().market.assets


def now():
    return asyncio.get_running_loop().time()


# ---------------------------------------------------------------- times


def test_times_of_day_go_with_the_sun_and_the_law():
    noon_before = 1_774_695_600_000  # 2026-03-28 12:00 in Berlin; clocks go forward at night
    assert next_moment(7 * 60, noon_before, BERLIN) - noon_before == 18 * HOUR_MS
    assert moment(1, 150, noon_before, BERLIN) == moment(1, 210, noon_before, BERLIN)  # 02:30 is 03:30 that day
    night = window(22 * 60, 6 * 60, noon_before, BERLIN)
    assert night.ends_ms - night.begins_ms == 7 * HOUR_MS
    assert window(22 * 60, 6 * 60, night.begins_ms + 1, BERLIN) == night
    assert window(22 * 60, 6 * 60, night.ends_ms, BERLIN).begins_ms == night.begins_ms + 23 * HOUR_MS
    whole = window(0, 0, noon_before, BERLIN)
    assert whole.ends_ms - whole.begins_ms == 24 * HOUR_MS


# ---------------------------------------------------------------- from plan and state to what bids


def formed(plan, state, at_ms=BEGIN_MS, step_h=0.25):
    return bidding_asset(plan, state, at_ms, step_h, BERLIN)


def test_every_kind_is_formed():
    assert isinstance(formed(BATTERY, State(4000.0)), Battery)
    model = plans.ThermalModelPlan(time_constant_h=30, kelvin_per_w=0.006, free_k=1.0)
    pump = formed(HEATING, State(21.0, outside_c=5.0, model=model))
    assert isinstance(pump, Thermal)
    assert pump.rest_c == (6.0,)
    assert formed(HEATING, State(21.0)) is None
    load = formed(VENTILATION, State(2500.0))
    assert isinstance(load, Curtailable)
    assert [shed.power_w for shed in load.sheds] == [2000]
    assert formed(ROOF, State(9999.0)) == Pv(forecast_w=(8000,))
    with pytest.raises(NotImplementedError):
        formed(plans.AssetPlan(name="x", control=BATTERY.control), State())


def test_a_car_that_is_there_leaves_at_its_time():
    car = formed(CAR, State(5000.0, here=True))
    assert isinstance(car, EvCharger)
    assert (car.arrival, car.departure, car.stored_wh) == (0, 59, 5000.0)  # 07:00 is 14:46:40 away
    assert (car.wanted_wh, car.capacity_wh) == (20_000, 20_000)
    full = formed(CAR, State(5000.0, here=True, full=True))
    assert (full.capacity_wh, full.wanted_wh) == (5000, 5000)
    assert formed(CAR, State(here=False)) is None
    assert formed(CAR, State(here=None)) is None


def test_a_car_that_comes_every_day_is_expected():
    daily = replace(CAR, arrival_min=18 * 60)
    later = formed(daily, State(5000.0, here=False))
    assert (later.arrival, later.departure, later.stored_wh) == (8, 59, 0.0)
    assert formed(daily, State(here=False), BEGIN_MS + 4 * HOUR_MS) is None  # it should be there
    alone = formed(replace(daily, plugged=None), State(700.0), BEGIN_MS + 4 * HOUR_MS)
    assert (alone.arrival, alone.stored_wh) == (0, 700.0)


def test_a_run_waits_for_its_window_begins_and_goes_on():
    early = BEGIN_MS - 10 * HOUR_MS  # 06:13:20
    run = formed(WASHING, State(ready=True), early)
    assert isinstance(run, Deferrable)
    assert (run.earliest, run.deadline, run.done, run.profile_w) == (8, 55, 0, (2000, 500, 500))
    assert formed(WASHING, State(ready=False), early) is None
    begun = formed(WASHING, State(ready=False, started_ms=BEGIN_MS - 1_000_000))
    assert begun.done == 1
    assert formed(WASHING, State(ready=False, started_ms=BEGIN_MS - HOUR_MS)) is None
    timed = replace(WASHING, state=None)
    assert formed(timed, State()).done == 0
    assert formed(timed, State(started_ms=BEGIN_MS - HOUR_MS)) is None  # done in this window
    assert formed(timed, State(started_ms=BEGIN_MS - 24 * HOUR_MS)).done == 0


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.sampled_from([60, 300, 900, 1200, 3600]))
@settings(max_examples=60)
def test_a_run_in_other_steps_takes_the_same_energy(profile_w, to_s):
    found = resampled(tuple(profile_w), 900_000, to_s * 1000)
    assert sum(found) * to_s == pytest.approx(sum(profile_w) * 900, abs=len(found) * to_s)


# ---------------------------------------------------------------- numbers that are written


SET = plans.SetPoint(
    point="m/n",
    w_per_unit=Fraction(690),
    step=Fraction(1, 10),
    minimum=Fraction(0),
    maximum=Fraction(16),
    safe=Fraction(6),
)


@given(st.integers(-20_000, 20_000))
@settings(max_examples=60)
def test_a_number_never_sets_more_than_was_asked(power_w):
    for control in (SET, replace(SET, w_per_unit=Fraction(-1), minimum=Fraction(-9000), maximum=Fraction(9000))):
        number = number_for(control, power_w)
        assert control.minimum <= number <= control.maximum
        assert number % control.step == 0
        assert abs(power_for(control, number)) <= abs(power_w)


def test_a_number_that_has_but_some_values_has_the_next_lower_one():
    some = replace(SET, values=tuple(map(Fraction, ("0", "6", "6.5", "16"))))
    assert [number_for(some, 690 * a) for a in (0, 5, 6.2, 15, 99)] == [0, 0, 6, Fraction("6.5"), 16]
    free = replace(SET, step=Fraction(0))
    assert number_for(free, 1000) == Fraction(1449, 1000)
    assert number_for(replace(SET, values=(Fraction(3),)), 0) == 6  # nothing fits: the safe one


def test_parts_are_shed_as_nearly_as_can_be():
    assert [sheds_for(VENTILATION, 3000, w) for w in (3000, 2100, 1900, 1000, 0)] == [0, 0, 1, 1, 2]


# ---------------------------------------------------------------- means


def test_a_trace_knows_its_gaps():
    trace = Trace(10.0)
    assert trace.mean(0.0, 10.0) is None
    for at_s in range(0, 100, 2):
        trace.add(Value(float(at_s), float(at_s)))
    assert trace.add(Value(98.0, 7.0)) == 0.0
    assert trace.mean(10.0, 50.0) == pytest.approx(30.0, abs=1e-6)
    assert trace.mean(11.5, 12.5) == pytest.approx(12.0, abs=1e-6)
    assert trace.mean(90.0, 100.0) == pytest.approx(94.6, abs=0.5)
    assert trace.mean(-100.0, 10.0) is None
    assert trace.mean(90.0, 200.0) is None
    assert trace.mean(50.0, 50.0) is None
    assert trace.seen(50.0, 50.0) == 0
    assert trace.seen(10.0, 90.0) == pytest.approx(1.0)
    assert trace.seen(90.0, 118.0) == pytest.approx(13 / 28)
    trace.add(Value(300.0, 5.0))
    assert trace.mean(100.0, 300.0) is None
    assert Trace(10.0).seen(0.0, 1.0) == 0
    for at_s in range(301, 3000):
        trace.add(Value(float(at_s), 5.0))
    assert trace.mean(2900.0, 2999.0) == pytest.approx(5.0)
    assert len(trace._points) < 400


# ---------------------------------------------------------------- a building's model


def learned(learner, *, slots, noise=lambda k: 0.0, power=lambda k: 2000.0 * (k % 5 == 0), gap=(), begin=0):
    temperature, ended = 20.0, []
    for k in range(slots):
        at_ms = (begin + k) * SLOT_MS
        if k not in gap:
            ended += [learner.look(at_ms + ms, Sight(temperature + noise(k), 5.0, power(k - 1))) for ms in (0, 1000)]
        rest = 6.0 + 0.006 * power(k)
        temperature = rest + (temperature - rest) * 0.99
    return ended.count(True)


def test_a_model_is_learned_from_whole_slots():
    learner = Learner()
    assert learned(learner, slots=STEPS_MIN + 1) == STEPS_MIN
    assert learner.model() is None  # the first one's begin was not seen
    learner = Learner()
    learned(learner, slots=120, gap=(40, 41, 80))
    model = learner.model()
    assert model.time_constant_h == pytest.approx(24.9, abs=0.5)
    assert model.kelvin_per_w == pytest.approx(0.006, rel=0.02)
    assert model.free_k == pytest.approx(1.0, abs=0.1)
    assert learner.slots == 119 - 3
    wild = Learner()
    learned(wild, slots=120, noise=lambda k: 5.0 * (k % 2))
    assert wild.model() is None
    learned(still := Learner(), slots=120, power=lambda k: 0.0)
    assert still.model() is None
    learned(long := Learner(), slots=800)
    assert long.slots == SLOTS_MAX
    assert len(long.packed()) <= 4096
    long.look(0, Sight(20.0, 5.0, 0.0))  # the clock stepped back by days
    assert long.slots == 0


def test_what_was_collected_goes_over_a_restart():
    learner = Learner()
    learned(learner, slots=60)
    again = Learner()
    again.restore(learner.packed())
    assert again.slots == learner.slots
    assert again.look(60 * SLOT_MS, Sight(float("nan"), 5.0, float("nan")))
    learned(again, slots=60, begin=62)
    assert again.model().kelvin_per_w == pytest.approx(0.006, rel=0.05)
    for damaged in (b"", learner.packed()[:-1], b"\xff" * 16, learner.packed() + bytes(6 * SLOTS_MAX)):
        with pytest.raises(ValueError, match="damaged"):
            Learner().restore(damaged)


# ---------------------------------------------------------------- a gateway


def names(gateway, step_h=0.25):
    return [name for name, _ in gateway.assets.now(gateway.now_ms(), step_h)]


def outs(gateway):
    return {told["name"]: told["out"] for told in gateway.assets.status()}


def test_what_can_not_be_read_or_reached_is_left_out_and_said_so(tmp_path):
    floor = Floor(sun_w=3000)

    async def scene(gateway):
        assert names(gateway) == ["battery", "car", "washing", "ventilation", "roof"]
        assert outs(gateway)["heating"] == "what a watt does to it is still being learned"
        floor.deaf.add("battery")
        floor.plugged, floor.machine = False, 0
        await gateway.control.hold("load/shed", Fraction(2), Owner("anna", Rank.OVERRIDE), now() + 600)
        await asyncio.sleep(5)
        assert names(gateway) == ["roof"]
        assert outs(gateway) | {"heating": ""} == {
            "battery": "its device does not answer",
            "car": "no car is there",
            "heating": "",
            "washing": "there is nothing to run",
            "ventilation": "anna holds it",
            "roof": "",
        }
        await asyncio.sleep(30)
        assert "battery" not in names(gateway)
        floor.deaf.clear()

    play(tmp_path / "j", scene, floor)


def test_states_are_those_at_the_begin_of_the_round(tmp_path):
    floor = Floor(sun_w=3000)
    floor.registers["battery", "power"] = 2000.0
    floor.session_wh = 1000.0

    async def scene(gateway):
        found = dict(gateway.assets.now(gateway.now_ms() + HOUR_MS // 2, 0.25))
        assert found["battery"].stored_wh == pytest.approx(floor.stored_wh + 950, abs=20)
        assert found["car"].stored_wh == pytest.approx(floor.session_wh + 2070, abs=20)
        assert found["car"].departure == 57
        assert found["ventilation"].load_w == 3000
        assert found["roof"].forecast_w == (3000,)
        shown = {told["name"]: told for told in gateway.assets.status()}
        assert shown["battery"]["stored_wh"] == pytest.approx(floor.stored_wh, abs=5)
        assert shown["battery"]["power_w"] == 2000
        assert (shown["car"]["here"], shown["washing"]["ready"]) == (True, True)
        assert shown["heating"]["temperature_c"] == 21.0
        assert shown["ventilation"]["load_w"] == 3000
        assert shown["roof"]["available_w"] == 3000

    play(tmp_path / "j", scene, floor)


def test_the_base_load_and_the_slots_that_are_over(tmp_path):
    async def scene(gateway):
        gateway.floor.registers["battery", "power"] = 2000.0
        await asyncio.sleep(400)
        assert gateway.assets.base_w() == pytest.approx(600, abs=10)
        at_ms = gateway.now_ms()
        slot = gateway.assets.slot(at_ms - 300_000, at_ms)
        assert (slot.net_w, slot.controlled_w) == (pytest.approx(2600, abs=2), pytest.approx(2000, abs=2))
        assert gateway.assets.slot(at_ms - 2_000_000, at_ms) is None
        gateway.floor.deaf.add("house")
        await asyncio.sleep(30)
        assert gateway.assets.base_w() is None

    play(tmp_path / "j", scene, keep={"battery"})


def test_what_no_meter_tells_is_known_after_a_restart(tmp_path, monkeypatch):
    """A car whose energy is added up, and a run."""

    def summed(plan):
        unmetered = {"car": {"charged": None}, "washing": {"state": None}}
        changed = tuple(replace(asset, **unmetered.get(asset.name, {})) for asset in plan.market.assets)
        return replace(plan, market=replace(plan.market, assets=changed))

    async def lives():
        floor = Floor()
        floor.there = {"wallbox", "machine"}
        async with running(tmp_path / "j", floor, keep={"car", "washing"}, changes=summed, every_s=5.0) as gateway:
            await gateway.settle()
            at_ms = gateway.now_ms()
            await gateway.dispatcher.follow(6000, {"car": 4140, "washing": 2000}, at_ms, at_ms + 60_000, Rank.SCHEDULE)
            await asyncio.sleep(module.WRITE_S + 10)
            before = {told["name"]: told for told in gateway.assets.status()}
            assert before["car"]["charged_wh"] == pytest.approx(floor.session_wh, abs=30)
        async with running(tmp_path / "j", floor, keep={"car", "washing"}, changes=summed, every_s=5.0) as gateway:
            await gateway.settle()
            after = {told["name"]: told for told in gateway.assets.status()}
            assert after["car"]["charged_wh"] == pytest.approx(floor.session_wh, abs=60)
            assert after["washing"]["started_ms"] == before["washing"]["started_ms"]
            assert dict(gateway.assets.now(gateway.now_ms(), 0.25))["washing"].done == 1
            floor.plugged = False
            await gateway.settle()
            floor.plugged = True
            await gateway.settle()
            assert {told["name"]: told for told in gateway.assets.status()}["car"]["charged_wh"] < 40
            gateway.recorder.journal.remember(module.PREFIX + "car", b"{")
            gateway.recorder.journal.remember(module.PREFIX + "washing", b"[]")
            await gateway.assets.recall()

            def full(*_):
                raise JournalStalledError("full")

            monkeypatch.setattr(gateway.recorder.journal, "remember", full)
            await gateway.settle()
            monkeypatch.undo()
            await gateway.settle()
            assert json.loads(gateway.recorder.journal.recall(module.PREFIX)[module.PREFIX + "car"])["stay"]

    run(lives)


def test_a_car_that_takes_nothing_is_full(tmp_path):
    floor = Floor()
    floor.car_room_wh = 0.0

    async def scene(gateway):
        at_ms = gateway.now_ms()
        await gateway.dispatcher.follow(6000, {"car": 4140}, at_ms, at_ms + 300_000, Rank.SCHEDULE)
        assert {told["name"]: told for told in gateway.assets.status()}["car"]["full"]
        floor.car_room_wh = 1e6
        at_ms = gateway.now_ms()
        await gateway.dispatcher.follow(6000, {"car": 4140}, at_ms, at_ms + 60_000, Rank.SCHEDULE)
        assert not {told["name"]: told for told in gateway.assets.status()}["car"]["full"]

    play(tmp_path / "j", scene, floor, keep={"car"}, every_s=5.0)


def test_a_person_may_begin_the_run(tmp_path):
    async def scene(gateway):
        gateway.floor.machine, gateway.floor.machine_end_s = 2, now() + 600
        await gateway.settle(10)
        (_, washing), *_ = gateway.assets.now(gateway.now_ms() + 900_000, 0.25)
        assert washing.done == 1
        await gateway.settle(700)
        assert names(gateway) == []

    play(tmp_path / "j", scene, keep={"washing"}, every_s=5.0)


def test_variants_of_what_is_measured(tmp_path):
    """A roof without its available power, a load and a battery that nobody measures, a daily car, registers."""

    def less(plan):
        left_out = {
            "roof": {"available": None},
            "ventilation": {"power": None},
            "battery": {"power": None},
            "car": {"plugged": None, "arrival_min": 15 * 60, "charged": replace(CAR.charged, cumulative=True)},
        }
        changed = tuple(replace(asset, **left_out.get(asset.name, {})) for asset in plan.market.assets)
        return replace(plan, market=replace(plan.market, assets=changed))

    floor = Floor(sun_w=3000)
    floor.session_wh = 5000.0

    async def scene(gateway):
        found = dict(gateway.assets.now(gateway.now_ms(), 0.25))
        assert found["roof"].forecast_w == (3000,)
        assert found["ventilation"].load_w == 3000
        assert found["car"].stored_wh == pytest.approx(floor.session_wh - 5000, abs=10)
        split = {"roof": -1000, "battery": 500, "car": 0, "ventilation": 1000}
        at_ms = gateway.now_ms()
        await gateway.dispatcher.follow(2000, split, at_ms, at_ms + 60_000, Rank.SCHEDULE)
        assert floor.powers(now())["roof"] == -1000
        assert floor.powers(now())["load"] == 1000
        found = dict(gateway.assets.now(gateway.now_ms(), 0.25))
        assert found["roof"].forecast_w == (3000,)  # what it gave before it was limited
        assert {told["name"]: told for told in gateway.assets.status()}["battery"]["power_w"] == 500

    play(tmp_path / "j", scene, floor, changes=less)


def test_a_pump_bids_once_its_model_is_learned_and_after_a_restart(tmp_path, monkeypatch):
    """With slots of a minute, and a shed that is warm and cold within hours."""
    for where in (module, learning):
        monkeypatch.setattr(where, "SLOT_MS", 60_000)
    floor = Floor()
    floor.there, floor.time_constant_h = {"heat-pump"}, 1.0

    async def lives():
        async with running(tmp_path / "j", floor, keep={"heating"}, every_s=5.0) as gateway:
            for k in range(16):
                floor.registers["heat-pump", "power"] = 2000.0 * (k % 2)
                await asyncio.sleep(300)
            (found,) = gateway.assets.now(gateway.now_ms(), 0.25)
            assert found[1].kelvin_per_w == pytest.approx(0.006, rel=0.1)
            assert found[1].time_constant_h == pytest.approx(1.0, rel=0.1)
            assert found[1].rest_c == pytest.approx((6.0,), abs=0.5)
            slots = gateway.assets.units["heating"].learner.slots
        async with running(tmp_path / "j", floor, keep={"heating"}, every_s=5.0) as gateway:
            await gateway.settle()
            assert names(gateway) == ["heating"]
            assert gateway.assets.units["heating"].learner.slots == slots

    run(lives)


# ---------------------------------------------------------------- the weather


def test_what_a_limit_leaves_of_the_sun_is_told_as_not_known(tmp_path):
    """A roof without its available power: free, at its limit, on its way back, overridden."""

    def blind(plan):
        return replace(plan, market=replace(plan.market, assets=(replace(ROOF, available=None, settle_s=30.0),)))

    floor = Floor(sun_w=3000)

    async def scene(gateway):
        def sun(seconds=100.0):
            now_ms = gateway.now_ms()
            return gateway.assets.weather(now_ms - round(1000 * seconds), now_ms).sun_w

        async def limited(for_s):
            at_ms = gateway.now_ms()
            split = {"roof": -1000}
            await gateway.dispatcher.follow(-400, split, at_ms, at_ms + for_s * 1000, Rank.SCHEDULE)

        assert sun(3600.0) == {}, "too little of the time was seen"
        await gateway.settle(200)
        assert sun() == {"roof": pytest.approx(3000)}
        await limited(300)
        assert sun() == {"roof": None}
        assert dict(gateway.assets.now(gateway.now_ms(), 0.25))["roof"].forecast_w == (3000,)
        await gateway.settle(20)
        assert sun(15.0) == {"roof": None}, "it is on its way back"
        await gateway.settle(200)
        assert sun() == {"roof": pytest.approx(3000)}
        await gateway.control.hold("roof/limit", Fraction(500), Owner("anna", Rank.OVERRIDE), now() + 300)
        await gateway.settle(120)
        assert sun(60.0) == {"roof": None}

    play(tmp_path / "j", scene, floor, keep={"roof"}, changes=blind)


def test_where_the_inverter_tells_what_it_could_give_a_limit_hides_nothing(tmp_path):
    floor = Floor(sun_w=3000)

    async def scene(gateway):
        at_ms = gateway.now_ms()
        await gateway.dispatcher.follow(-400, {"roof": -1000}, at_ms, at_ms + 200_000, Rank.SCHEDULE)
        assert gateway.assets.weather(at_ms + 100_000, at_ms + 200_000).sun_w == {"roof": pytest.approx(3000)}
        floor.deaf.add("roof")
        await gateway.settle(300)
        now_ms = gateway.now_ms()
        assert gateway.assets.weather(now_ms - 100_000, now_ms).sun_w == {}

    play(tmp_path / "j", scene, floor, keep={"roof"})


def test_the_sites_temperature_is_the_one_named_or_that_of_the_first_room(tmp_path):
    def other(plan):
        return replace(plan, market=replace(plan.market, outside=ROOF.power))

    floor = Floor(sun_w=30)

    async def scene(gateway):
        now_ms = gateway.now_ms()
        return gateway.assets.weather(now_ms - 60_000, now_ms).outside_c

    assert play(tmp_path / "j", scene, floor) == {SITE: 5.0, "heating": 5.0}
    assert play(tmp_path / "k", scene, floor, changes=other) == {SITE: -30.0, "heating": 5.0}
    floor.unread.add("outdoor-temperature")
    assert play(tmp_path / "l", scene, floor) == {}
