"""Sun and temperature ahead: learned, dark at night, kept small, and forgotten where it is damaged."""

import datetime as dt

import numpy as np
import pytest
from energybid.bidding.assets import Curtailable, Pv
from energybid.bidding.assets_stores import Thermal
from energybid.bidding.forecast_weather import DAY_MS, HOUR_MS, SLOT_MS, SLOTS, Outdoors, Roof, middles
from energybid.bidding.packed import pack, unpack
from energybid.bidding.planning_load import LoadBook
from energybid.bidding.planning_weather import KEPT_MS, SITE, WeatherBook
from hypothesis import given, settings
from hypothesis import strategies as st

T0 = 19_000 * DAY_MS
NOON = 12 * HOUR_MS
QUARTER_MS = 900_000


def sky_w(at_ms: int) -> float:
    """A clear day's 4 kW, from six to six."""
    return 4_000 * max(0.0, float(np.sin((at_ms % DAY_MS / HOUR_MS - 6) / 12 * np.pi)))


def roof(days: float, clearness=lambda _day: 1.0, begins_ms: int = T0) -> Roof:
    made = Roof()
    for at_ms in range(begins_ms, begins_ms + round(days * DAY_MS), QUARTER_MS):
        made.seen(at_ms, sky_w(at_ms + QUARTER_MS // 2) * clearness((at_ms - T0) // DAY_MS))
    return made


def hours(one: Roof, at_ms: int, measured_w: float | None, count: int = 36) -> np.ndarray:
    return one.expected(at_ms, HOUR_MS, count, at_ms, measured_w)


# ------------------------------------------------------------ roofs


def test_noons_sun_is_gone_at_midnight_and_comes_again():
    at_ms = T0 + 5 * DAY_MS + NOON
    made = hours(roof(5.5), at_ms, sky_w(at_ms))
    assert made[0] == pytest.approx(3_950, abs=80)
    assert (made[7:17] == 0).all(), "from seven in the evening to five in the morning"
    assert made[24] == pytest.approx(3_950, abs=80)


def test_a_dull_day_is_dull_for_hours_and_tomorrow_is_as_typical():
    at_ms = T0 + 8 * DAY_MS + 10 * HOUR_MS
    one = roof(8 + 10 / 24, lambda day: 0.3 if day == 8 else 1.0)
    made = hours(one, at_ms, 0.3 * sky_w(at_ms))
    clear = hours(roof(8 + 10 / 24), at_ms, sky_w(at_ms))
    assert made[1] < 0.5 * clear[1]
    assert made[1] / clear[1] < made[5] / clear[5] < made[26] / clear[26]
    assert made[26] > 0.8 * clear[26]


def test_the_first_sun_in_weeks_is_believed_for_an_hour():
    one = roof(15.5, lambda day: float(day >= 15 and 0.0))  # snow
    at_ms = T0 + 15 * DAY_MS + NOON
    made = hours(one, at_ms, 3_000.0)
    assert made[0] > 1_500
    assert made[6] < 50


def test_what_was_never_seen_is_as_now_for_six_hours_and_then_nothing():
    for one in (Roof(), roof(1 / 48)):
        made = hours(one, T0 + NOON, 2_000.0)
        assert made[:6].tolist() == [2_000] * 6
        assert (made[6:11] == 0).all()
    assert hours(Roof(), T0, None).max() == 0


def test_while_a_limit_holds_it_nothing_is_learned_and_what_it_gives_is_not_believed():
    one = roof(6 + 10 / 24)
    before = one.state() | {"last_ms": 0, "held": 0}
    for n in range(8):  # two hours at a limit: nobody knows
        one.seen(T0 + 6 * DAY_MS + 10 * HOUR_MS + n * QUARTER_MS, None)
    after = one.state() | {"last_ms": 0, "held": 0}
    assert np.array_equal(before.pop("days"), after.pop("days"))
    assert before == after
    made = hours(one, T0 + 6 * DAY_MS + NOON, 500.0)
    assert made[0] == pytest.approx(3_950, abs=80), "500 W is what its limit leaves"
    one.seen(T0 + 6 * DAY_MS + NOON, 500.0)
    assert hours(one, T0 + 6 * DAY_MS + NOON + QUARTER_MS, 500.0)[0] < 1_000, "without a limit it is"


def test_days_without_the_agent_go_and_old_days_are_forgotten():
    one = roof(4)
    one.seen(T0 + 10 * DAY_MS + NOON, 100.0)
    one.seen(T0 + 10 * DAY_MS + NOON + SLOT_MS, 100.0)
    assert np.isfinite(one._days).sum(axis=1).tolist() == [0] * 4 + [48] * 4 + [0] * 6 + [1]
    one.seen(T0 + 99 * DAY_MS, 1.0)
    one.seen(T0 + 99 * DAY_MS + SLOT_MS, 1.0)
    assert np.isfinite(one._days).sum() == 1


def test_a_clock_that_was_wrong_does_not_stop_the_learning():
    one, place = roof(3), Outdoors()
    one.seen(T0 + 9_000 * DAY_MS, 5.0)
    place.seen(T0 + 9_000 * DAY_MS, 5.0)
    one.seen(T0 + 3 * DAY_MS, 7.0)
    place.seen(T0 + 3 * DAY_MS, 7.0)
    assert (one.last_ms, place.last_ms) == (T0 + 3 * DAY_MS,) * 2
    one.seen(T0 + 3 * DAY_MS - SLOT_MS, 99.0)
    place.seen(T0 + 3 * DAY_MS - SLOT_MS, 99.0)
    assert (one.last_ms, place.last_c) == (T0 + 3 * DAY_MS, 7.0), "a little too late is too late"


@given(
    days=st.lists(st.lists(st.one_of(st.none(), st.floats(0, 1e5)), min_size=8, max_size=8), max_size=18),
    measured_w=st.floats(0, 1e5),
    minutes=st.sampled_from([5, 15, 60, 120]),
    ahead=st.integers(0, 40),
)
@settings(max_examples=60, deadline=None)
def test_whatever_it_saw_it_gives_what_it_could_and_its_state_comes_back(days, measured_w, minutes, ahead):
    one = Roof()
    for day, numbers in enumerate(days):
        for part, power_w in enumerate(numbers):
            one.seen(T0 + day * DAY_MS + part * 3 * HOUR_MS, power_w)
    most_w = max([measured_w, *(w for numbers in days for w in numbers if w)])
    now_ms = T0 + len(days) * DAY_MS
    asked = now_ms + ahead * HOUR_MS, minutes * 60_000, 40, now_ms, measured_w
    made = one.expected(*asked)
    assert made.shape == (40,)
    assert (made >= 0).all()
    assert (made <= most_w + 1e-6).all()
    packed = pack({"x": one.state()})
    assert len(packed) < 1_200
    again = Roof.restored(unpack(packed)["x"])
    assert np.allclose(again.expected(*asked), made, atol=0.02 * most_w + 1e-6)
    assert pack({"x": again.state()}) == pack({"x": Roof.restored(unpack(pack({"x": again.state()}))["x"]).state()})


DAMAGE = st.sampled_from(
    [None, "x", -1, 1e400, float("nan"), [], {}, np.zeros(3), np.full((15, 48), -1.0), np.zeros(48)]
)


@given(st.sampled_from(sorted(roof(0.5).state())), DAMAGE)
@settings(max_examples=80, deadline=None)
def test_a_damaged_roof_is_refused_or_harmless(name, found):
    try:
        one = Roof.restored(roof(0.5).state() | {name: found})
    except ValueError:
        return
    one.seen(T0 + DAY_MS, 100.0)
    assert np.isfinite(hours(one, T0 + DAY_MS, 100.0)).all()


# ------------------------------------------------------------ temperatures


def air_c(at_ms: int) -> float:
    return 8 + 5 * float(np.sin((at_ms % DAY_MS / HOUR_MS - 9) / 12 * np.pi))


def place(days: float, warmer=lambda _day: 0.0) -> Outdoors:
    made = Outdoors()
    for at_ms in range(T0, T0 + round(days * DAY_MS), QUARTER_MS):
        made.seen(at_ms, air_c(at_ms) + warmer((at_ms - T0) // DAY_MS))
    return made


def test_a_warm_day_cools_down_at_night_and_is_less_warm_tomorrow():
    one = place(10.5, lambda day: 6.0 * (day == 10))
    at_ms = T0 + 10 * DAY_MS + NOON
    made = one.expected(at_ms + HOUR_MS * np.arange(60.0))
    assert made[0] == pytest.approx(air_c(at_ms) + 6, abs=0.5)
    assert made[14] == pytest.approx(air_c(at_ms + 14 * HOUR_MS) + 6 * np.exp(-14 / 48), abs=0.7)
    assert made[0] - made[14] > 8
    assert air_c(at_ms) + 2 < made[24] < air_c(at_ms) + 5


def test_before_a_day_is_known_it_is_as_now():
    one = Outdoors()
    assert np.isnan(one.expected(np.array([float(T0)]))).all()
    one.seen(T0, 4.0)
    assert one.expected(T0 + HOUR_MS * np.arange(30.0)).tolist() == [4.0] * 30


@given(st.lists(st.floats(-60, 60), max_size=30), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_the_state_of_a_temperature_comes_back(numbers, every):
    one = Outdoors()
    for n, number in enumerate(numbers):
        one.seen(T0 + n * every * QUARTER_MS, number)
    packed = pack({"x": one.state()})
    assert len(packed) < 500
    again = Outdoors.restored(unpack(packed)["x"])
    at_ms = T0 + HOUR_MS * np.arange(48.0)
    assert np.allclose(again.expected(at_ms), one.expected(at_ms), atol=0.1, equal_nan=True)


@given(st.sampled_from(sorted(place(0.5).state())), DAMAGE)
@settings(max_examples=80, deadline=None)
def test_a_damaged_temperature_is_refused_or_harmless(name, found):
    try:
        one = Outdoors.restored(place(0.5).state() | {name: found})
    except ValueError:
        return
    one.seen(T0 + DAY_MS, 5.0)
    assert np.isfinite(one.expected(np.array([T0 + DAY_MS + 5.0]))).all()


# ------------------------------------------------------------ a site's


ROOM = Thermal(
    temperature_c=20.5, low_c=20.0, high_c=22.0, discomfort_price=0.5, time_constant_h=40.0, kelvin_per_w=0.012,
    rest_c=(11.0,), least_w=900, most_w=3_000, final_price=None,
)  # fmt: skip
LOAD = Curtailable(load_w=2_000, sheds=())


def book(days: float = 6.5) -> WeatherBook:
    made = WeatherBook()
    for at_ms in range(T0, T0 + round(days * DAY_MS), QUARTER_MS):
        made.seen(at_ms, {"room": air_c(at_ms), SITE: air_c(at_ms) + 1}, {"roof": sky_w(at_ms)})
    return made


def test_assets_get_what_lies_ahead_and_others_stay_as_they_are():
    now_ms = T0 + 6 * DAY_MS + NOON
    assets = [Pv(forecast_w=(4_000,)), ROOM, ROOM, LOAD]
    sun, room, tank, load = book().ahead(assets, ["roof", "room", "tank", "load"], (now_ms, HOUR_MS, 36), now_ms)
    assert len(sun.forecast_w) == 36
    assert sun.forecast_w[0] == pytest.approx(3_950, abs=80)
    assert set(sun.forecast_w[7:17]) == {0}
    assert room.rest_c[0] == pytest.approx(11.0, abs=0.5)
    assert min(room.rest_c) < 11 - 7, "at night"
    assert all((rest - 11.0) % 0.25 == 0 for rest in room.rest_c)
    assert tank is ROOM or tank == ROOM, "around it nothing is measured"
    assert load == LOAD


def test_a_round_that_begins_later_is_planned_under_its_own_weather():
    now_ms = T0 + 6 * DAY_MS + NOON
    sun, room = book().ahead([Pv(forecast_w=(4_000,)), ROOM], ["roof", "room"], (now_ms + NOON, HOUR_MS, 3), now_ms)
    assert set(sun.forecast_w) == {0}
    assert room.rest_c[0] < 6


def test_the_sites_weather_comes_back_without_what_is_gone():
    weather = book()
    weather.seen(T0 + 6 * DAY_MS + NOON + KEPT_MS, {SITE: 3.0}, {"new": None})
    again = WeatherBook()
    again.restore(unpack(pack(weather.state())))
    assert set(again.roofs) == {"new"}
    assert set(again.places) == {SITE}
    for damaged in ({}, {"roofs": {}, "places": 3}, {"roofs": [], "places": {}}, {"roofs": {"a": {}}, "places": {}}):
        with pytest.raises(ValueError, match="damaged"):
            again.restore(damaged)
    assert set(again.roofs) == {"new"}


def test_the_load_models_know_a_days_temperature_as_it_was_expected_and_look_back_on_what_came():
    weather = WeatherBook()
    loads = LoadBook("Europe/Berlin", weather.mean_c)
    begin = dt.datetime(2024, 1, 10, tzinfo=dt.timezone(dt.timedelta(hours=1)))
    begin_ms = int(begin.timestamp() * 1000)
    assert weather.mean_c(begin_ms, begin_ms + DAY_MS) is None
    assert weather.now_c(begin_ms) is None

    def live(day: int, outside_c: float, slots: int = 96) -> None:
        for slot in range(slots):
            at_ms = begin_ms + day * DAY_MS + slot * QUARTER_MS
            weather.seen(at_ms, {SITE: outside_c}, {})
            loads.seen(at_ms, 500.0, weather.now_c(at_ms))

    for day in range(6):
        live(day, 10.0)
    live(6, 2.0)
    live(7, 2.0, 1)
    days = [warmth for _, warmth in loads.forecaster.state()["days"]]
    assert days == [10.0] * 6 + [2.0]
    assert 2.5 < loads._ahead_c < 7, "after a cold day it is expected to become warmer"
    asked = weather.mean_c(begin_ms + 7 * DAY_MS, begin_ms + 8 * DAY_MS)
    live(7, 30.0, 40)
    assert loads._ahead_c == pytest.approx(asked, abs=0.2), "what was expected stays"
    again = LoadBook("Europe/Berlin", weather.mean_c)
    again.restore(unpack(pack({"x": loads.state()}))["x"])
    again.restore_day(unpack(pack({"x": loads.day_state()}))["x"])
    assert (again._ahead_c, again.seen_ms) == (loads._ahead_c, loads.seen_ms)
    loads.seen(begin_ms + 8 * DAY_MS, 1.0)
    assert loads.forecaster.state()["days"][-1][1] == pytest.approx(asked, abs=0.2), "half a day says nothing of it"
    assert weather.now_c(begin_ms + 8 * DAY_MS) is None, "too old"


def test_a_broken_thermometer_teaches_nothing():
    weather = WeatherBook()
    for wrong in (850.0, -273.15, float("nan"), float("inf")):
        weather.seen(T0, {SITE: wrong}, {})
    assert weather.places == {}


def test_a_day_state_of_before_is_read():
    loads = LoadBook()
    loads.seen(T0, 100.0)
    old = {name: loads.day_state()[name] for name in ("today", "means", "counts")}
    again = LoadBook()
    again.restore_day(old)
    assert again.today == loads.today
    with pytest.raises(ValueError, match="slots"):
        again.restore_day(old | {"warmths": np.zeros(3)})


def test_moments_within_steps():
    assert middles(T0, HOUR_MS, 2).tolist() == [
        [T0 + SLOT_MS / 2, T0 + 1.5 * SLOT_MS],
        [T0 + 2.5 * SLOT_MS, T0 + 3.5 * SLOT_MS],
    ]
    assert middles(T0, 300_000, 1).tolist() == [[T0 + 150_000]]
    assert SLOTS * SLOT_MS == DAY_MS
