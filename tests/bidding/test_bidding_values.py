"""Value functions against enumeration."""

from itertools import product
from random import Random

import numpy as np
import pytest
from energybid.bidding.assets import Now
from energybid.bidding.assets_stores import GRID, GRID_K, Battery, EvCharger, Thermal
from energybid.bidding.horizon import Outlook, Stage
from energybid.bidding.response import Response
from energybid.bidding.values import NEVER, Mode, _Way, liked_w, values
from hypothesis import given, settings
from hypothesis import strategies as st
from random_sites import draw_asset, draw_outlook

WIDE_W = 1_000_000
PRICES = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=6)


def plain_battery(battery: Battery, stages, step_h: float) -> dict[int, list[float]]:
    """State by state and power by power, in whole Wh; rows of the price states of the step before."""
    capacity = int(battery.capacity_wh)
    after = {e: [battery.final_price * max(0, e - battery.reserve_wh)] for e in range(capacity + 1)}
    for stage in reversed(stages):
        before = {}
        for e in after:
            best = []
            for state, price in enumerate(stage.prices):
                found = []
                for e2, worths in after.items():
                    if e2 >= e:
                        power = (e2 - e) / battery.charge_efficiency / step_h
                        cost = battery.charge_wear
                        allowed = power <= battery.charge_w
                    else:
                        power = (e2 - e) * battery.discharge_efficiency / step_h
                        cost = -battery.discharge_wear
                        allowed = -power <= battery.discharge_w and e2 >= battery.reserve_wh
                    if allowed:
                        found.append(worths[state % len(worths)] - (price + cost) * power * step_h)
                best.append(max(found))
            before[e] = [sum(w * b for w, b in zip(row, best, strict=True)) for row in stage.weights]
        after = before
    return after


BATTERIES = st.builds(
    Battery,
    stored_wh=st.just(0.0),
    capacity_wh=st.just(20.0),
    charge_w=st.sampled_from([4, 12]),
    discharge_w=st.sampled_from([3, 8]),
    charge_efficiency=st.sampled_from([1.0, 0.5]),
    discharge_efficiency=st.sampled_from([1.0, 0.5]),
    charge_wear=st.sampled_from([0.0, 1.0]),
    discharge_wear=st.sampled_from([0.0, 2.0]),
    reserve_wh=st.sampled_from([0.0, 5.0]),
    final_price=st.sampled_from([0.0, 3.0]),
)


@given(BATTERIES, PRICES)
@settings(max_examples=60, deadline=None)
def test_a_battery_is_worth_what_enumeration_finds(battery, prices):
    """All moves are whole Wh, so that the grid (a twentieth of one) and the whole numbers hold the same optimum."""
    outlook = Outlook.certain(1.0, prices)
    found = values(battery, outlook)[0][0, :: (GRID - 1) // 20]
    plain = plain_battery(battery, outlook.stages, 1.0)
    assert found == pytest.approx([plain[e][0] for e in range(21)], abs=1e-9)


@given(BATTERIES, st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_so_is_one_that_faces_a_chain_of_prices(battery, pairs):
    rows = ((0.75, 0.25), (0.5, 0.5))
    outlook = Outlook(1.0, tuple(Stage((float(a), float(b)), rows) for a, b in pairs))
    found = values(battery, outlook)[0][:, :: (GRID - 1) // 20]
    plain = plain_battery(battery, outlook.stages, 1.0)
    assert found == pytest.approx(np.array([plain[e] for e in range(21)]).T, abs=1e-9)


@given(
    st.lists(st.floats(-9, 9), min_size=11, max_size=11),
    st.floats(-20, 20),
    st.floats(-20, 20).map(lambda low: round(low, 1)),
    st.sampled_from([0, 1, 3, 17, 40]),
    st.sampled_from([-1.0, -0.13, 0.05, 0.31, 2.0]),
    st.tuples(
        st.sampled_from([(1.0, 0.0), (0.9, 0.4), (0.5, -3.0)]),
        st.sampled_from([(-np.inf, np.inf), (0.0, 10.0), (2.5, 7.25)]),
    ),
)
@settings(max_examples=300, deadline=None)
def test_a_window_finds_the_best_end_or_point(worth, price, low, wide, gain, bounds):
    drift, limits = bounds
    grid = np.linspace(0.0, 10.0, 11)
    mode = Mode(round(low), round(low) + wide, gain, 0.0, *limits)
    found = _Way(grid, mode, *drift).best(np.array([worth]), np.array([[price]]))[0]
    for state, best in zip(grid, found, strict=True):
        rest = drift[0] * state + drift[1]
        powers = [mode.low_w, mode.high_w, *((g - rest) / gain for g in (*grid, *limits) if np.isfinite(g))]
        powers = [u for u in powers if mode.low_w <= u <= mode.high_w]
        powers = [u for u in powers if limits[0] - 1e-9 <= rest + gain * u <= limits[1] + 1e-9]
        plain = [np.interp(rest + gain * u, grid, worth) - price * u for u in powers]
        assert best == pytest.approx(max(plain), abs=1e-6) if plain else best < NEVER / 2


def heated(heat: Thermal, prices, powers, step_h):
    """What follows if the pump has these powers."""
    total, temperature = 0.0, heat.temperature_c
    for step, (price, power_w) in enumerate(zip(prices, powers, strict=True), start=1):
        keep, shift = heat.drift(step, step_h)
        temperature = keep * temperature + shift + heat.modes(step, step_h)[1].gain * power_w
        outside = max(0.0, heat.low_c - temperature, temperature - heat.high_c)
        total -= (price * power_w + heat.discomfort_price * 1e6 * outside) * step_h
    return total


@pytest.mark.parametrize("kind", ["battery", "car", "heat"])
def test_the_hull_moves_no_price_and_no_power_while_no_limit_binds(kind):
    """What is best on the value function itself, of all whole watts at which something changes, is what is bid."""
    for seed in range(20):
        random = Random(seed)
        store, outlook = draw_asset(kind, random, 8, 0.5), draw_outlook(random, 8, 0.5)
        worth = values(store, outlook)[0][0]
        response = Response([store.offer(Now(0, 0.5, worth, knots=GRID_K))], base_w=0, least_w=-WIDE_W, most_w=WIDE_W)
        keep, shift = store.drift(0, 0.5)
        modes, grid, rest = store.modes(0, 0.5), store.grid(), keep * store.state + shift
        for price in (*range(-150, 400, 25), *(round(random.uniform(-50, 250), 2) for _ in range(10))):
            powers_w = (
                liked_w(modes, grid, worth, rest, price, 0.5),
                response.curve(tick=0.01).net_w(round(price * 100)),
            )
            best, bid = (
                max(
                    np.interp(rest + mode.gain * power_w, grid, worth) - (price + mode.cost) * power_w * 0.5
                    for mode in modes
                    if mode.low_w <= power_w <= mode.high_w
                )
                for power_w in powers_w
            )
            assert bid == pytest.approx(best, rel=1e-9, abs=1e-3), (seed, price)


@given(st.floats(19.0, 23.0), st.lists(st.integers(-50, 200), min_size=6, max_size=6))
@settings(max_examples=25, deadline=None)
def test_a_heat_pump_is_worth_its_best_run(temperature, prices):
    heat = Thermal(
        temperature_c=temperature, low_c=20.0, high_c=22.0, discomfort_price=0.3, time_constant_h=12.0,
        kelvin_per_w=0.012, rest_c=(3.0, 4.0, 2.0, 3.0), least_w=2000, most_w=2000,
    )  # fmt: skip
    best = max(heated(heat, prices, powers, 0.5) for powers in product((0, 2000), repeat=6))
    worth = values(heat, Outlook.certain(0.5, prices))[0][0] - heat.reward(0, 0.5, heat.grid())
    found = np.interp(temperature, heat.grid(), worth)
    assert found == pytest.approx(best, abs=5000.0)  # half a cent: temperatures between points


def test_a_car_that_can_not_be_full_in_time_charges_all_the_same():
    car = EvCharger(
        stored_wh=10_000, capacity_wh=50_000, least_w=1000, most_w=4000, departure=4, wanted_wh=50_000,
        shortage_price=300.0,
    )  # fmt: skip
    worth = values(car, Outlook.certain(1.0, [100.0, 400.0, 50.0, -30.0]))[0][0]
    # After the round 3 steps are left; in that at 400 it does not charge, after its departure it can not.
    assert np.interp(10_000, car.grid(), worth) == pytest.approx(-100 * 4000 - 50 * 4000 - 300 * 32_000)


def test_a_car_that_leaves_after_the_horizon_counts_on_what_comes_then():
    car = EvCharger(
        stored_wh=0, capacity_wh=10_000, least_w=1000, most_w=2000, efficiency=0.5, departure=4, wanted_wh=3500,
        shortage_price=300.0,
    )  # fmt: skip
    worth = values(car, Outlook(1.0, (Stage((500.0,), ((1.0,),)),), later=100.0))[0][0]
    # Two steps are left after the horizon: 2,000 Wh at 100 / 0.5, the rest is missing.
    assert np.interp(0, car.grid(), worth) == pytest.approx(-200 * 2000 - 300 * 1500)


@pytest.mark.parametrize(
    ("step_h", "stages", "message"),
    [
        (0.0, (), "a step has a length"),
        (1.0, (Stage((), ()),), "one weight for each price"),
        (1.0, (Stage((1.0, 2.0), ((1.0,),)),), "one weight for each price"),
        (1.0, (Stage((1.0, 2.0), ((0.5, 0.6),)),), "probabilities"),
        (1.0, (Stage((1.0, 2.0), ((-0.5, 1.5),)),), "probabilities"),
        (1.0, (Stage((1.0,), ((1.0,),)), Stage((1.0,), ((1.0,), (1.0,)))), "one row, or one for each"),
    ],
)
def test_what_is_no_chain_of_prices_is_refused(step_h, stages, message):
    with pytest.raises(ValueError, match=message):
        Outlook(step_h, stages)
