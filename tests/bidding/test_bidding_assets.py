"""What single assets offer, and what a site makes of it."""

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from energybid.bidding.assets import Curtailable, Deferrable, Now, Pv, Shed
from energybid.bidding.assets_identify import identify
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.curve import STEPS_MAX, Step
from energybid.bidding.horizon import Outlook, Stage
from energybid.bidding.response import Piece, Segment
from energybid.bidding.site import Site
from energybid.bidding.site_shadow import shadows
from random_sites import draw_asset, draw_outlook, draw_site

NONE = np.zeros(1)
BATTERY = Battery(stored_wh=500, capacity_wh=1000, charge_w=1000, discharge_w=1000)
CAR = EvCharger(
    stored_wh=0, capacity_wh=50_000, least_w=1000, most_w=4000, departure=3, wanted_wh=50_000, shortage_price=300.0
)
HEAT = Thermal(
    temperature_c=23.9, low_c=20, high_c=22, discomfort_price=0.5, time_constant_h=20, kelvin_per_w=0.02,
    rest_c=(10.0,), least_w=500, most_w=2000, most_c=24.0,
)  # fmt: skip
RUN = Deferrable(profile_w=(2000, 500), worth=0.5, deadline=4)


def offer(asset, prices=(50.0,), step_h=1.0, step=0):
    ahead = asset.ahead(Outlook.certain(step_h, prices))[step][0]
    return asset.offer(Now(step, step_h, ahead))


def test_a_battery_buys_low_and_sells_high():
    first = offer(replace(BATTERY, charge_efficiency=0.5), [60.0, 60.0])[0]
    assert (first.start_w, first.end_w) == (-500, 1000)
    assert first.segments == (Segment(500, 60.0), Segment(1000, 30.0))


def test_a_battery_that_loses_nothing_is_one_piece_across_zero():
    """Two would bid the same curve, from twice as many combinations."""
    [piece] = offer(BATTERY, [60.0, 60.0])
    assert (piece.start_w, piece.end_w) == (-500, 500)
    assert {segment.slope for segment in piece.segments} == {60.0}


def test_at_a_negative_price_a_full_battery_does_not_burn_energy_by_doing_both():
    """It may empty itself now to be paid for charging later: one or the other in each round, with a dent at 0."""
    battery = replace(BATTERY, stored_wh=500, charge_efficiency=0.5, discharge_efficiency=0.5)
    low, high = offer(battery, [-100.0, -100.0])
    assert (low.end_w, high.start_w) == (0, 0)
    site = Site((battery,), 5000, 5000)
    response = site.bid(Outlook.certain(1.0, [-100.0]), base_w=0, tick=0.01).response
    assert {point.net_w for point in response.corners} <= {-250, 0, 1000}
    assert response.split(1000) == (1000,)


def test_a_battery_below_its_reserve_may_only_charge():
    [piece] = offer(replace(BATTERY, stored_wh=50, reserve_wh=100), [1000.0])
    assert (piece.start_w, piece.end_w) == (0, 950)


def test_a_reading_outside_the_battery_is_its_end():
    [piece] = offer(replace(BATTERY, stored_wh=1200.0), [1000.0])
    assert (piece.start_w, piece.end_w) == (-1000, 0)


def test_a_car_is_off_or_above_its_least_current():
    off, on = offer(CAR, [100.0, 100.0, 100.0])
    assert (off, on.start_w, on.end_w) == (Piece(0, 0.0), 1000, 4000)
    assert on.value == 300_000
    assert on.segments == (Segment(3000, 300.0),)
    assert offer(replace(CAR, arrival=1), [100.0] * 3) == (Piece(0, 0.0),)
    assert offer(replace(CAR, departure=0), [100.0] * 3) == (Piece(0, 0.0),)


def test_a_tank_is_not_heated_beyond_its_hard_limit_however_low_the_price():
    keep, shift = HEAT.drift(0, 0.25)
    [_, on] = offer(HEAT, [-1000.0] * 4, 0.25)
    after = HEAT.after(Now(0, 0.25, NONE), on.end_w)
    assert after.temperature_c <= 24.0 < keep * 23.9 + shift + HEAT.modes(0, 0.25)[1].gain * (on.end_w + 1)
    hot = replace(HEAT, temperature_c=26.0)
    assert offer(hot, [-1000.0] * 4, 0.25) == (Piece(0, 0.0),)


def test_a_pump_that_has_to_run_or_to_rest_does_that_in_the_round_alone():
    heat = replace(HEAT, temperature_c=21.0)
    run, rest = replace(heat, has_to=True), replace(heat, has_to=False)
    assert [(piece.start_w, piece.end_w) for piece in offer(heat)] == [(0, 0), (500, 2000)]
    assert [(piece.start_w, piece.end_w) for piece in offer(run)] == [(500, 2000)]
    assert [(piece.start_w, piece.end_w) for piece in offer(rest)] == [(0, 0)]
    hot = replace(HEAT, has_to=True, temperature_c=26.0, rest_c=(25.0,))
    assert [(piece.start_w, piece.end_w) for piece in offer(hot)] == [(0, 0)], "a hard limit comes first"
    assert run.after(Now(0, 1.0, NONE), 500).has_to is None
    prices = [50.0, -100.0, 400.0, 50.0]
    for held in (run, rest):
        for ours, theirs in zip(*(each.ahead(Outlook.certain(1.0, prices)) for each in (held, heat)), strict=True):
            assert np.array_equal(ours, theirs), "what follows is worth the same"
    outlook, site = Outlook.certain(1.0, [500.0] * 4), Site((run, BATTERY), 5000, 5000)
    bid = site.bid(outlook, base_w=0, tick=0.01)
    powers = {bid.response.split(net_w)[0] for net_w in (bid.curve.floor_w, bid.curve.ceiling_w)}
    assert min(powers) >= 500


def test_a_run_waits_begins_and_goes_on():
    wait, start = offer(RUN, [10.0, 90.0, 90.0])
    # Now: 500 Wh later at 10; best otherwise: begin at 10, go on at 90.
    assert (wait, start.start_w) == (Piece(0, 0.0), 2000)
    assert start.value == pytest.approx(0.5e6 - 500 * 10 - (0.5e6 - 2000 * 10 - 500 * 90))
    begun = RUN.after(Now(0, 1.0, NONE), 2000)
    assert offer(begun) == (Piece(500, 0.0),)
    done = begun.after(Now(1, 1.0, NONE), 500)
    assert offer(done) == (Piece(0, 0.0),)
    assert done.after(Now(2, 1.0, NONE), 0) == done
    assert RUN.after(Now(0, 1.0, NONE), 0) == RUN


def test_a_run_that_can_no_longer_end_in_time_is_not_begun():
    late = replace(RUN, deadline=1)
    assert offer(late) == (Piece(0, 0.0),)
    assert offer(replace(RUN, earliest=1), [10.0] * 3) == (Piece(0, 0.0),)


def test_a_run_may_wait_for_what_comes_after_the_horizon():
    outlook = Outlook(1.0, (Stage((900.0,), ((1.0,),)),), later=100.0)
    ahead = replace(RUN, deadline=9).ahead(outlook)[0][0]
    assert ahead[0] == pytest.approx(0.5e6 - 2500 * 100)
    assert RUN.ahead(Outlook.certain(1.0, [10.0] * 9))[-1][0, 0] == 0


def test_parts_of_a_load_are_shed_whole_and_in_order():
    load = Curtailable(load_w=3000, sheds=(Shed(1000, 100.0), Shed(500, 80.0)))
    assert offer(load) == (Piece(3000, 0.0), Piece(2000, -100_000.0), Piece(1500, -140_000.0))
    assert load.after(Now(0, 1.0, NONE), 2000) == load


def test_the_sun_is_curtailed_when_the_price_is_below_minus_its_support():
    sun = Pv(forecast_w=(0, 4000), support=30.0)
    assert offer(sun) == (Piece(0, 0.0),)
    assert offer(sun, step=1) == (Piece(-4000, 0.0, (Segment(4000, -30.0),)),)
    assert offer(replace(sun, curtailable=False), [1.0] * 5, step=4) == (Piece(-4000, 0.0),)
    bid = Site((replace(sun, forecast_w=(4000,)),), 5000, 5000).bid(Outlook.certain(1.0, []), base_w=100, tick=1.0)
    assert (bid.curve.net_w(-29), bid.curve.net_w(-30)) == (-3900, 100)


def test_a_price_state_of_the_round_is_asked_for_where_it_matters():
    site = Site((BATTERY,), 5000, 5000)
    outlook = Outlook(1.0, (Stage((10.0, 90.0), ((1.0, 0.0), (0.0, 1.0))),))
    with pytest.raises(ValueError, match="2 price states"):
        site.bid(outlook, base_w=0, tick=1.0)
    high = site.bid(outlook, base_w=0, tick=1.0, states=(0.0, 1.0)).curve
    assert high.steps == (Step(90, 1000, divisible=True),)


def test_a_large_site_bids_coarser_rather_than_not_at_all():
    random = Random(5)
    batteries = tuple(
        replace(BATTERY, capacity_wh=4.0 * c, stored_wh=2.0 * c, charge_w=c, discharge_w=c - 77, charge_efficiency=0.9)
        for c in random.sample(range(1000, 9000), 12)
    )
    outlook = Outlook.independent(0.5, [[(random.uniform(0, 100), 1 / 8) for _ in range(8)] for _ in range(40)])
    ahead = [rows[0] for rows in Site(batteries, 90_000, 90_000).ahead(outlook)]
    assert len(Site(batteries, 90_000, 90_000).respond(ahead, step_h=0.5, base_w=0).corners) > STEPS_MAX
    bid = Site(batteries, 90_000, 90_000).bid(outlook, base_w=0, tick=0.0001)
    assert 10 < len(bid.curve.steps) <= STEPS_MAX


def test_of_very_many_switches_the_smallest_follow_the_expected_price():
    """14 loads have 16,384 combinations: two of them decide at the expected price, the rest at any."""
    loads = tuple(Curtailable(load_w=100 + k, sheds=(Shed(100 + k, 50.0 + k),)) for k in range(14))
    curve = Site(loads, 90_000, 0).bid(Outlook.certain(1.0, [50.5]), base_w=0, tick=0.5).curve
    assert curve.floor_w == 101
    assert [step.power_w for step in curve.steps] == [100 + k for k in range(13, 1, -1)]


def test_the_same_site_bids_the_same_curve():
    for seed in range(5):
        bids = []
        for _ in range(2):
            random = Random(seed)
            site, outlook = draw_site(random, 8, 0.5), draw_outlook(random, 8, 0.5)
            ahead = [rows[0][:1] for rows in site.ahead(outlook)]
            bids.append(site.respond(ahead, step_h=0.5, base_w=300).curve(tick=0.01))
        assert bids[0] == bids[1]


def test_shadow_prices_part_the_hours_of_a_small_connection():
    """Two cars and one cheap hour that only one of them fits in: the price rises until the next best is as good."""
    car = replace(CAR, wanted_wh=4000, least_w=0)
    site = Site((car, car), 4000, 4000)
    outlook = Outlook.certain(1.0, [10.0, 50.0])
    found = shadows(site, [200.0, 10.0, 50.0], outlook, [0, 0, 0])
    assert found[0] == 0
    assert found[1] - found[2] == pytest.approx(40.0, abs=12.0)
    wide = Site((car, car), 9000, 0)
    assert not shadows(wide, [200.0, 10.0, 50.0], outlook, [0, 0, 0]).any()
    assert outlook.raised(found[1:]).stages[0].prices == (10.0 + found[1],)


def test_shadow_prices_fall_where_too_much_is_exported():
    battery = replace(BATTERY, stored_wh=1000.0)
    sun = Pv(forecast_w=(500,), curtailable=False)
    site = Site((battery, sun, replace(RUN, profile_w=(100,), deadline=3)), 4000, 800)
    found = shadows(site, [20.0, 100.0, 60.0], Outlook.certain(1.0, [100.0, 60.0]), [0, 0, 0])
    assert found[0] == 0
    assert found[1] < -20


def measured(heat: Thermal, steps: int, noise_k: float):
    """What thermometers would show of a room with a pump that runs by itself."""
    random, inside, powers, outside = Random(3), [heat.temperature_c], [], []
    for _ in range(steps):
        outside.append(random.uniform(-5, 10))
        powers.append(random.choice([0, 0, 800, 2000]))
        room = replace(heat, temperature_c=inside[-1], rest_c=(outside[-1] + 3.0,))
        inside.append(room.after(Now(0, 0.25, NONE), powers[-1]).temperature_c)
    return [t + random.gauss(0, noise_k) for t in inside], powers, outside


def test_a_room_is_identified_from_its_measurements():
    exact = identify(*measured(HEAT, 60, 0.0), 0.25)
    assert exact == pytest.approx((20.0, 0.02, 3.0, 0.0), abs=1e-6)
    noisy = identify(*measured(HEAT, 960, 0.02), 0.25)
    assert noisy == pytest.approx((20.0, 0.02, 3.0, 0.028), rel=0.2)


@pytest.mark.parametrize(
    ("inside", "powers", "message"),
    [
        ([20.0] * 48, [0.0, 1.0] * 24, "48 steps or more"),
        ([20.0] * 49, [500.0] * 48, "never changes"),
        ([1.5**k for k in range(49)], [0.0, 1.0] * 24, "no first-order store"),
    ],
)
def test_what_tells_nothing_is_no_model(inside, powers, message):
    with pytest.raises(ValueError, match=message):
        identify(inside, powers, [0.0] * 48, 0.25)


def test_the_example_of_the_documentation_runs():
    page = (Path(__file__).parents[2] / "docs" / "bidding.md").read_text()
    names = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], names)
    assert sum(names["bid"].response.split(names["bid"].curve.net_w(ticks=3000))) == 7000


def draw_day(seed):
    random = Random(seed)
    step_h = 1.0
    kinds = ("battery", "car", "heat", "run", "load", "sun")
    site = Site(tuple(draw_asset(kind, random, 8, step_h) for kind in kinds), 9000, 3000)
    return site, [random.uniform(-80, 200) for _ in range(8)]


@pytest.mark.parametrize("seed", range(6))
def test_a_site_lives_through_a_day_within_its_limits(seed):
    site, prices = draw_day(seed)
    outlook = Outlook.certain(1.0, prices[1:])
    ahead = site.ahead(outlook.raised(shadows(site, prices, outlook, [500] * 8)[1:]))
    for step, price in enumerate(prices):
        response = site.respond([rows[step] for rows in ahead], step_h=1.0, base_w=500, step=step)
        net_w = response.curve(tick=0.01).net_w(round(price * 100))
        assert -3000 - response.excess_w <= net_w <= 9000 + response.excess_w
        split = response.split(net_w)
        before, site = site, site.after(split, step_h=1.0, step=step)
        battery, car, heat, run = site.assets[:4]
        assert -1e-6 <= battery.stored_wh <= battery.capacity_wh + 1e-6
        assert battery.stored_wh >= min(battery.reserve_wh, before.assets[0].stored_wh) - 1e-6
        assert before.assets[1].stored_wh <= car.stored_wh <= car.capacity_wh + 1e-6
        assert heat.temperature_c <= heat.most_c + 1e-6 or split[2] == 0
        assert run.done in {before.assets[3].done, before.assets[3].done + 1}
        assert before.assets[3].done in {0, run.done - 1, len(run.profile_w)}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Pv(forecast_w=()), "at least one step"),
        (lambda: Pv(forecast_w=(-1,)), "0 or more"),
        (lambda: Curtailable(load_w=-1, sheds=()), "load_w is 0 or more"),
        (lambda: Curtailable(load_w=10, sheds=(Shed(11, 1.0),)), "parts of itself"),
        (lambda: replace(RUN, profile_w=(0, 1)), "takes power in its first step"),
        (lambda: replace(RUN, done=3), "done up to"),
        (lambda: replace(BATTERY, reserve_wh=2000), "limits in order"),
        (lambda: replace(BATTERY, charge_efficiency=1.1), "efficiencies"),
        (lambda: replace(CAR, least_w=5000), "limits in order"),
        (lambda: replace(HEAT, low_c=30), "limits in order"),
        (lambda: Site((), -1, 0), "0 or more"),
    ],
)
def test_what_is_no_asset_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
