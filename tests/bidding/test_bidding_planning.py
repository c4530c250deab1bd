"""From prices, loads and assets to a bid: what is known when, what is learned, and what the bid keeps to."""

import datetime as dt
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from energybid.bidding.assets import Curtailable, Deferrable, Pv, Shed
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.horizon import Outlook
from energybid.bidding.planning import Planning, Slot
from energybid.bidding.planning_load import SLOT_MS, SLOTS, LoadBook
from energybid.bidding.planning_prices import DAY_MS, HOUR_MS, KEPT_DAYS, PriceBook, PriceCurve
from energybid.bidding.prices_bids import Case, middle
from energybid.bidding.site import Site
from energybid.bidding.site_shadow import shadows

STEP_MS = 2 * HOUR_MS
SIZE = DAY_MS // STEP_MS
T0 = 19_000 * DAY_MS
BATTERY = Battery(
    stored_wh=4_000, capacity_wh=10_000, charge_w=3_000, discharge_w=3_000, charge_efficiency=0.9, final_price=None
)
CAR = EvCharger(
    stored_wh=0, capacity_wh=30_000, least_w=1_400, most_w=7_000, departure=8, wanted_wh=20_000, shortage_price=300.0
)
HEAT = Thermal(
    temperature_c=20.5, low_c=20.0, high_c=22.0, discomfort_price=0.5, time_constant_h=40.0, kelvin_per_w=0.012,
    rest_c=(5.0,), least_w=900, most_w=3_000, final_price=None,
)  # fmt: skip
RUN = Deferrable(profile_w=(2_000, 500), worth=1.0, deadline=7)
LOAD = Curtailable(load_w=2_000, sheds=(Shed(1_000, 60.0),))
SUN = Pv(forecast_w=(2_500,))
ALL = (BATTERY, CAR, HEAT, RUN, LOAD, SUN)


def curve(begins_ms: int, prices, step_ms: int = STEP_MS, made_ms: int | None = None) -> PriceCurve:
    return PriceCurve(begins_ms, step_ms, tuple(float(p) for p in prices), begins_ms if made_ms is None else made_ms)


def day_of_prices(day: int, spread: float = 6.0):
    chance = np.random.default_rng(day)
    day_ahead = 40 + 20 * np.sin((np.arange(SIZE) * 2 - 9) / 24 * 4 * np.pi)
    return day_ahead + spread * chance.normal(size=SIZE), day_ahead


def slot(at_ms: int, step_ms: int = STEP_MS) -> Slot:
    return Slot(at_ms, step_ms, 0.01, -50_000, 400_000)


def taught(days: int) -> PriceBook:
    book = PriceBook()
    for day in range(days):
        real_time, day_ahead = day_of_prices(day)
        book.day_ahead(curve(T0 + day * DAY_MS, day_ahead))
        book.real_time(curve(T0 + day * DAY_MS, real_time))
        book.learn(STEP_MS, T0 + (day + 1) * DAY_MS + 2 * HOUR_MS)
    return book


# ------------------------------------------------------------ prices


def test_of_two_day_ahead_curves_the_later_one_counts():
    book = PriceBook()
    book.day_ahead(curve(T0, [10] * SIZE))
    book.day_ahead(curve(T0 + 2 * STEP_MS, [30] * 2, made_ms=T0 + 1))
    book.day_ahead(curve(T0 + 2 * STEP_MS, [30] * 2, made_ms=T0 + 1))
    view = book.view(T0, STEP_MS, T0 + 60_000)
    assert view.expected[:6].tolist() == [10, 10, 30, 30, 10, 10]
    assert view.source == "day-ahead"
    assert view.day_ahead_age_s == pytest.approx(59.999)
    assert view.real_time_age_s is None
    assert len(view.expected) == 19, "36 hours and the round"


def test_a_curve_that_rolls_on_keeps_what_was():
    book = PriceBook()
    for step in range(40):
        book.day_ahead(curve(T0 + step * STEP_MS, range(step, step + SIZE)))
    assert len(book._day_ahead) == 1
    times = T0 + STEP_MS * np.arange(51.0)
    assert book._told(times).tolist() == list(range(51))
    book.day_ahead(curve(T0 + 3 * STEP_MS, [500.0, 600.0]))
    assert book._told(times[2:6]).tolist() == [2, 500, 600, 5]
    book.day_ahead(curve(T0 + 20 * STEP_MS + HOUR_MS, [700.0], step_ms=HOUR_MS))
    found = book._told(T0 + 20 * STEP_MS + HOUR_MS * np.arange(3.0))
    assert found.tolist() == [20, 700, 21], "a step of which a part is told anew"
    version = book.view(T0, STEP_MS, T0).version
    book.day_ahead(curve(T0 + 30 * STEP_MS, range(30, 40), made_ms=T0 + 9 * DAY_MS))
    view = book.view(T0, STEP_MS, T0 + 9 * DAY_MS + 1000)
    assert (view.version, view.day_ahead_age_s) == (version, 1.0), "the same again is no news, but fresh"
    book.day_ahead(curve(T0 + 40 * DAY_MS, [1.0] * SIZE))
    assert len(book._day_ahead) == 1, "what is weeks old goes"


def test_day_ahead_prices_stand_in_for_the_days_after_them():
    book = PriceBook()
    book.day_ahead(curve(T0, range(SIZE)))
    assert book.view(T0 + 3 * DAY_MS, STEP_MS, T0).expected[:SIZE].tolist() == list(range(SIZE))
    assert book.view(T0 + 9 * DAY_MS, STEP_MS, T0).source == "none"


def test_without_day_ahead_prices_the_hours_before_tell():
    book = PriceBook()
    book.real_time(curve(T0, [20, 40, 60]))
    view = book.view(T0 + DAY_MS, STEP_MS, T0)
    assert view.source == "real-time"
    assert view.expected[:4].tolist() == [20, 40, 60, 40]


def test_prices_of_other_steps_are_laid_on_the_rounds():
    book = PriceBook()
    book.real_time(curve(T0, np.arange(48), step_ms=HOUR_MS // 2))
    times = np.array([float(T0), T0 + STEP_MS])
    assert book._real_time(times, STEP_MS).tolist() == [1.5, 5.5]
    book.real_time(curve(T0 + DAY_MS, [7.0], step_ms=4 * HOUR_MS))
    assert book._real_time(times + DAY_MS, STEP_MS).tolist() == [7.0, 7.0]
    assert np.isnan(book._real_time(times + 5 * DAY_MS, STEP_MS)).all()


def test_a_model_is_learned_when_a_day_is_over():
    book = PriceBook()
    real_time, day_ahead = day_of_prices(0)
    book.day_ahead(curve(T0, day_ahead))
    book.real_time(curve(T0, real_time))
    assert not book.learn(STEP_MS, T0 + DAY_MS), "late prices may still come"
    assert book.model is None
    assert book.learn(STEP_MS, T0 + DAY_MS + HOUR_MS)
    assert book.model is not None
    assert not book.learn(STEP_MS, T0 + DAY_MS + HOUR_MS)
    view = book.view(T0 + DAY_MS, STEP_MS, T0 + DAY_MS)
    assert (view.source, view.step) == ("model", 0)
    assert book.view(T0 + DAY_MS, 2 * STEP_MS, T0 + DAY_MS).model is None, "of rounds of another length"


def test_what_was_not_seen_before_the_round_is_expected():
    book = taught(20)
    spike = curve(T0 + 20 * DAY_MS, [400.0])
    book.day_ahead(curve(T0 + 20 * DAY_MS, [40.0] * SIZE))
    book.real_time(spike)
    near = book.view(T0 + 20 * DAY_MS + STEP_MS, STEP_MS, T0).place
    far = book.view(T0 + 20 * DAY_MS + 5 * STEP_MS, STEP_MS, T0).place
    assert near.deviation > 30 * abs(far.deviation)
    assert abs(far.slow) < near.slow


def test_bins_stay_after_four_weeks_and_days_are_counted():
    book = taught(KEPT_DAYS - 1)
    assert len(book.days) == KEPT_DAYS - 1
    taught_on = taught(KEPT_DAYS + 2)
    assert not taught_on.days
    last = taught_on.model.edges
    assert not np.array_equal(book.model.edges, last)
    real_time, day_ahead = day_of_prices(99, spread=50.0)
    before = taught_on.model.counts.sum()
    taught_on.count(19_000 + 40, real_time, day_ahead)
    assert np.array_equal(taught_on.model.edges, last)
    assert taught_on.model.counts.sum() == pytest.approx(before + SIZE, abs=2)


def test_a_day_that_is_missing_is_a_gap():
    book = PriceBook()
    book.begin(STEP_MS)
    found = []
    for day in (0, 3, 1):
        book.count(19_000 + day, *day_of_prices(day))
        found.append(book.model.counts.sum())
    assert found == [SIZE - 1, 2 * (SIZE - 1), 3 * SIZE - 2]


def test_rounds_that_do_not_fit_the_day_have_no_model():
    book = PriceBook()
    book.real_time(curve(T0, [1.0] * SIZE))
    assert not book.learn(7 * 60_000, T0 + 9 * DAY_MS)
    assert not book.learn(6 * HOUR_MS, T0 + 9 * DAY_MS)
    assert book.learn(STEP_MS, T0 + 9 * DAY_MS)


def test_a_round_of_another_length_now_and_then_does_not_cost_the_model():
    book = PriceBook()
    book.restore(taught(3).state())
    model, now_ms = book.model, T0 + 3 * DAY_MS
    for hour in range(2, 60):
        book.learn(HOUR_MS, now_ms + hour * HOUR_MS, lasting=False)
        if hour % 20 == 0:
            book.learn(HOUR_MS, now_ms + hour * HOUR_MS)
            book.learn(STEP_MS, now_ms + hour * HOUR_MS)
    assert (book.model, book.step_ms) == (model, STEP_MS)
    book.real_time(curve(now_ms, [30.0] * SIZE))
    assert book.learn(HOUR_MS, now_ms + 80 * HOUR_MS), "this length's day is learned meanwhile"
    assert book.step_ms == STEP_MS
    assert book.learn(HOUR_MS, now_ms + 110 * HOUR_MS), "two days without any: learned anew from what is there"
    assert (book.step_ms, book.model.steps_per_day) == (HOUR_MS, 24)


def test_a_length_that_no_market_asked_for_gives_way_at_once():
    book = PriceBook()
    book.real_time(curve(T0, [30.0] * SIZE))
    assert book.learn(HOUR_MS, T0 + 30 * HOUR_MS, lasting=False)
    assert book.learn(STEP_MS, T0 + 30 * HOUR_MS)
    assert book.step_ms == STEP_MS


def test_the_state_of_prices_comes_back_and_damage_is_refused():
    for book in (taught(3), taught(KEPT_DAYS)):
        again = PriceBook()
        again.restore(book.state())
        assert again.learned == book.learned
        assert again.days.keys() == book.days.keys()
        assert np.allclose(again.model.matrices, book.model.matrices)
        assert not again.learn(STEP_MS, T0 + HOUR_MS)
    state = taught(3).state()
    damaged = [{key: value for key, value in state.items() if key != name} for name in state]
    damaged += [
        state | {"days": 3},
        state | {"days": {"1": [1, 2]}},
        state | {"step_ms": HOUR_MS},
        state | {"days": {"1": []}},
    ]
    for each in damaged:
        again = PriceBook()
        with pytest.raises(ValueError, match=r"damaged|missing|length"):
            again.restore(each)
        assert again.model is None


# ------------------------------------------------------------ loads


def test_slots_are_averaged_and_days_learned():
    loads = LoadBook()
    assert not loads.seen(T0, 100.0)
    assert not loads.seen(T0 + 60_000, 300.0)
    for n in range(2, SLOTS):
        loads.seen(T0 + n * SLOT_MS, 50.0)
    assert loads.seen(T0 + DAY_MS, 80.0)
    assert not loads.seen(T0 + 60_000, 1e6), "too late to count"
    made = loads.expected(T0 + DAY_MS, SLOT_MS, 3, None)
    mean_w = (200 + 46 * 50) / 47
    assert made.power_w.tolist() == pytest.approx([200.0, mean_w, 50.0]), "a slot without a measurement is the mean"
    assert made.model == "yesterday"


def test_what_is_measured_now_draws_the_forecast_less_and_less():
    loads = LoadBook()
    loads.learn(dt.date(2022, 1, 7), np.full(SLOTS, 100.0))
    begins_ms = int(dt.datetime(2022, 1, 8, 6, tzinfo=dt.UTC).timestamp() * 1000)
    made = loads.expected(begins_ms, SLOT_MS, 30, (begins_ms, 300.0)).power_w
    assert made[0] == 300
    assert all(100 < b < a for a, b in pairwise(made.tolist()))
    assert made[-1] == pytest.approx(100, abs=1)


def test_without_a_forecast_the_load_of_now_goes_on():
    loads = LoadBook()
    assert loads.expected(T0, SLOT_MS, 2, (T0, 250.0)).power_w.tolist() == [250, 250]
    assert loads.expected(T0, SLOT_MS, 2, None).power_w.tolist() == [0, 0]
    assert loads.expected(T0, SLOT_MS, 2, None).model == "none"


def test_days_are_those_of_the_sites_clock():
    loads = LoadBook("Europe/Berlin", temperature=lambda begins_ms, ends_ms: (ends_ms - begins_ms) / HOUR_MS)
    begin = dt.datetime(2024, 3, 30, 23, tzinfo=dt.UTC)  # the day that has no hour from two to three
    for n in range(46):
        loads.seen(int((begin + dt.timedelta(minutes=30 * n)).timestamp() * 1000), float(n))
    assert loads.today == dt.date(2024, 3, 31)
    assert loads._counts.tolist() == [1] * 4 + [0] * 2 + [1] * 42
    assert loads.seen(int((begin + dt.timedelta(hours=23)).timestamp() * 1000), 1.0)


def test_days_without_a_measurement_are_gaps():
    loads = LoadBook()
    loads.seen(T0, 100.0)
    assert loads.seen(T0 + 3 * DAY_MS, 120.0)
    assert len(loads.forecaster.state()["days"]) == 3


def test_the_state_of_loads_comes_back_and_damage_is_refused():
    loads = LoadBook()
    for n in range(3 * SLOTS + 5):
        loads.seen(T0 + n * SLOT_MS, 100.0 + n % SLOTS)
    again = LoadBook()
    again.restore(loads.state())
    again.restore_day(loads.day_state())
    assert again.today == loads.today
    for n in range(5, SLOTS + 1):
        assert again.seen(T0 + (3 * SLOTS + n) * SLOT_MS, 90.0) == loads.seen(T0 + (3 * SLOTS + n) * SLOT_MS, 90.0)
    asked = T0 + 4 * DAY_MS, SLOT_MS, SLOTS, None
    assert np.allclose(again.expected(*asked).power_w, loads.expected(*asked).power_w)
    for state in ({}, {"forecaster": {}}, loads.state() | {"learned": 5}):
        with pytest.raises(ValueError, match=r"damaged|format"):
            LoadBook().restore(state)
    for state in ({}, loads.day_state() | {"means": np.zeros(3)}, loads.day_state() | {"today": "x"}):
        with pytest.raises(ValueError, match=r"damaged|slots|isoformat"):
            LoadBook().restore_day(state)
    old = loads.day_state() | {"today": "2001-01-01"}
    again.restore_day(old)
    assert again.today != dt.date(2001, 1, 1), "that day is learned already"


# ------------------------------------------------------------ bids


def planned(prices: PriceBook, assets=ALL, at_ms: int = T0, limits=(17_000, 10_000)):
    planning = Planning(*limits, prices=prices)
    return planning, planning.plan(slot(at_ms), assets, (at_ms, 700.0), at_ms)


def check(offered, assets=ALL) -> None:
    """The schedule and all ends of steps are on the curve, and can be made."""
    net_w = offered.curve.floor_w
    for power_w in [net_w, *(net_w := net_w + step.power_w for step in offered.curve.steps)]:
        split = offered.split(power_w)
        assert len(split) == len(assets)
        assert round(offered.base.power_w[0]) + sum(split) == power_w
    assert offered.curve.offers(offered.schedule_w)


def test_with_day_ahead_prices_alone_the_bid_is_the_best_response():
    book = PriceBook()
    prices = day_of_prices(1)[0].tolist() * 2
    book.day_ahead(curve(T0, prices))
    _, offered = planned(book, assets=(BATTERY, RUN, LOAD))
    later = float(np.median(offered.view.expected[-SIZE:]))
    outlook = replace(Outlook.certain(2.0, prices[1:19]), later=later)
    best = Site((BATTERY, RUN, LOAD), 17_000, 10_000).bid(outlook, base_w=700, tick=0.01)
    assert offered.curve == best.curve.within(-50_000, 400_000)
    assert offered.schedule_w == best.curve.net_w(round(prices[0] * 100))
    check(offered, (BATTERY, RUN, LOAD))


def test_with_a_model_curves_fall_and_can_be_kept():
    book = taught(10)
    book.day_ahead(curve(T0 + 10 * DAY_MS, day_of_prices(0)[1].tolist() * 2))
    for hour in range(0, 24, 6):
        _, offered = planned(book, at_ms=T0 + 10 * DAY_MS + hour * HOUR_MS)
        assert offered.view.source == "model"
        check(offered)
        assert len(offered.curve.steps) > 3


def test_without_prices_one_power_serves_the_owner():
    _, offered = planned(PriceBook())
    assert offered.view.source == "none"
    assert not offered.curve.steps
    split = dict(zip(("battery", "car", "heat", "run", "load", "sun"), offered.split(offered.schedule_w), strict=True))
    assert split["car"] == 7_000
    assert split["load"] == 2_000
    assert split["sun"] == -2_500
    assert split["battery"] in range(-100, 3_001)


def test_a_site_without_assets_bids_its_load():
    _, offered = planned(taught(3), assets=())
    assert offered.curve.steps == ()
    assert offered.curve.floor_w == offered.schedule_w == 700


def test_limits_hold_and_cost_what_they_cost():
    book = PriceBook()
    book.day_ahead(curve(T0, [10, 10, 90, 90, 10, 10, 90, 90, 10, 10, 90, 90]))
    planning, offered = planned(book, limits=(6_000, 1_000))
    assert offered.curve.ceiling_w <= 6_000
    assert offered.curve.floor_w >= -1_000
    assert offered.shadow != 0
    shadow = planning._shadow
    planning.plan(slot(T0 + STEP_MS), ALL, (T0, 700.0), T0)
    assert planning._shadow is not shadow


def test_values_are_shared_between_rounds_until_something_changes():
    quarter = HOUR_MS // 4
    book = PriceBook()
    book.day_ahead(curve(T0, range(20, 44), step_ms=HOUR_MS))
    planning = Planning(17_000, 10_000, prices=book)

    def plan(number: int, assets):
        planning.plan(slot(T0 + number * quarter, quarter), assets, None, T0)
        return planning._valued

    found = plan(0, ALL)
    later = (
        replace(BATTERY, stored_wh=100.0), replace(CAR, departure=7, stored_wh=500),
        replace(HEAT, temperature_c=21.0, has_to=True),
        replace(RUN, deadline=6), LOAD, replace(SUN, forecast_w=(900,)),
    )  # fmt: skip
    assert plan(1, later) is found
    fresh = plan(2, later)
    assert fresh is not found, "the car leaves later than it did"
    assert plan(2, later[:-1]) is not fresh
    fresh = plan(2, later)
    book.day_ahead(curve(T0 + 4 * HOUR_MS, [300.0]))
    assert plan(2, later) is not fresh, "a price has come"
    fresh = planning._valued
    after = [replace(CAR, departure=3), replace(RUN, deadline=2)]
    assert plan(6, (later[0], after[0], later[2], after[1], *later[4:])) is not fresh, "an hour is over"


def test_times_that_come_nearer_change_no_values():
    quarter = HOUR_MS // 4
    book = PriceBook()
    book.day_ahead(curve(T0, range(20, 44), step_ms=HOUR_MS))
    planning = Planning(17_000, 10_000, prices=book)
    run, car = replace(RUN, earliest=2, deadline=20), replace(CAR, arrival=2, departure=20)
    planning.plan(slot(T0, quarter), (run, car), None, T0)
    found = planning._valued
    for number in range(1, 4):
        nearer = max(0, 2 - number)
        assets = (
            replace(run, earliest=nearer, deadline=20 - number), replace(car, arrival=nearer, departure=20 - number)
        )  # fmt: skip
        planning.plan(slot(T0 + number * quarter, quarter), assets, None, T0)
        assert planning._valued is found


def test_steps_that_no_price_of_the_round_reaches_are_left_out():
    book = PriceBook()
    book.day_ahead(curve(T0, range(20, 44), step_ms=HOUR_MS))
    planning = Planning(17_000, 10_000, prices=book)
    whole = planning.plan(slot(T0), ALL, None, T0).curve
    least, most = whole.steps[-1].ticks + 1, whole.steps[0].ticks - 1
    cut = planning.plan(slot(T0)._replace(least_ticks=least, most_ticks=most), ALL, None, T0).curve
    assert cut.ceiling_w < whole.ceiling_w
    assert cut.steps[0].ticks == most
    assert all(cut.net_w(ticks) == whole.net_w(ticks) for ticks in range(least, most + 1))


def test_the_schedule_is_that_of_the_middle_price():
    answers = [None] * 4
    found = [
        Case(price, weight, a, 0)
        for price, weight, a in zip((1.0, 2.0, 3.0, 900.0), (1, 2, 2, 1), answers, strict=True)
    ]
    assert middle(found) == 2.0
    assert middle(found[1:]) == 3.0


def test_later_limits_are_priced():
    prices = [50, 10, 10, 50, 10, 90, 90, 90, 50, 50, 50, 50]
    book = PriceBook()
    book.day_ahead(curve(T0, prices))
    assets = (BATTERY, replace(CAR, departure=5))
    _, offered = planned(book, assets=assets, limits=(7_000, 7_000))
    expected = offered.view.expected
    outlook = replace(Outlook.certain(2.0, expected[1:].tolist()), later=offered.view.later)
    site, base_w = Site(assets, 7_000, 7_000), [700] * len(expected)
    priced = site.bid(
        outlook.raised(shadows(site, expected.tolist(), outlook, base_w)[1:].tolist()), base_w=700, tick=0.01
    )
    assert offered.curve == priced.curve.within(-50_000, 400_000)
    assert offered.curve != site.bid(outlook, base_w=700, tick=0.01).curve.within(-50_000, 400_000)
