"""The agent's planner: messages in, curves and splits out, and what it has learned over restarts."""

import logging

import numpy as np
import pytest
from energybid.agent.market.planner import PIECE_BYTES, SitePlanner
from energybid.agent.market.ports import Weather
from energybid.bidding.assets import Pv
from energybid.bidding.assets_stores import Battery
from energybid.bidding.planning_weather import SITE
from energybid.core.cose import PrivateKey
from energybid.sync.market import Bid, PriceCurve, Prices, Round, digest, sign

STEP_MS = 3_600_000
DAY_MS = 24 * STEP_MS
T0 = 19_000 * DAY_MS
BATTERY = Battery(stored_wh=5_000, capacity_wh=10_000, charge_w=4_000, discharge_w=4_000, final_price=None)


def prices(planner: SitePlanner, which: PriceCurve, begins_ms: int, values, now_ms: int) -> None:
    ticks = tuple(round(value * 100) for value in values)
    planner.prices(Prices("demo/power", which, 1, now_ms, "EUR", 2, begins_ms, STEP_MS, ticks))


def made(begins_ms: int) -> Round:
    return Round(
        "demo/power", 1, begins_ms - 9, begins_ms - 5, begins_ms, STEP_MS, "EUR", 2, -50_000, 400_000, 0, "none"
    )


def teach(planner: SitePlanner, days: int) -> None:
    chance = np.random.default_rng(3)
    for day in range(days):
        begins_ms = T0 + day * DAY_MS
        day_ahead = 50 + 20 * np.sin(np.arange(24) / 12 * np.pi)
        prices(planner, PriceCurve.DAY_AHEAD, begins_ms, day_ahead, begins_ms)
        prices(planner, PriceCurve.REAL_TIME, begins_ms, day_ahead + 5 * chance.normal(size=24), begins_ms + DAY_MS)
        for slot in range(96):
            planner.load(begins_ms + slot * 900_000, 1_500 + slot, 1_000)
        planner.plan(made(begins_ms + DAY_MS), [], 500, begins_ms + DAY_MS)


@pytest.fixture(scope="module")
def taught() -> SitePlanner:
    planner = SitePlanner("demo/power", 10_000, 10_000, "Europe/Berlin")
    teach(planner, 4)
    return planner


def plan(planner: SitePlanner, at_ms: int = T0 + 4 * DAY_MS + STEP_MS, base_w: int | None = None):
    return planner.plan(made(at_ms), [("battery", BATTERY)], base_w, at_ms - 60_000)


def test_a_round_is_planned_from_what_is_known(taught):
    planned = plan(taught)
    facts = planned.facts
    assert facts["prices_from"] == "model"
    assert facts["load_model"] == "yesterday"
    assert 20 < facts["expected_price"] < 90
    assert facts["day_ahead_age_s"] == pytest.approx(DAY_MS / 1000 + 3_600 - 60)
    assert facts["real_time_age_s"] == 3_600 - 60
    assert facts["base_low_w"] <= facts["base_w"] <= facts["base_high_w"]
    assert planned.curve.offers(planned.schedule_w)
    for net_w in (planned.curve.floor_w, planned.curve.ceiling_w, planned.schedule_w):
        assert planned.split(net_w) == {"battery": net_w - facts["base_w"]}
    with pytest.raises(ValueError, match="can not make"):
        planned.split(99_999)


def test_the_curve_is_one_that_can_be_signed(taught):
    planned = plan(taught, base_w=700)
    steps = tuple(tuple(step) for step in planned.curve.steps)
    bid = Bid(
        "demo/power", 1, "demo/site", digest(b""), 1, T0, T0 + 9, planned.schedule_w, planned.curve.floor_w, steps
    )
    assert len(sign(bid, PrivateKey.from_entropy(bytes(48)))) <= 4_096


def test_without_prices_there_is_one_power():
    planned = plan(SitePlanner("demo/power", 10_000, 10_000), base_w=300)
    assert planned.curve.steps == ()
    assert planned.facts["prices_from"] == "none"
    assert "day_ahead_age_s" not in planned.facts


def test_what_was_learned_comes_back(taught):
    state = taught.state()
    assert max(map(len, state.values())) <= PIECE_BYTES + 10
    again = SitePlanner("demo/power", 10_000, 10_000, "Europe/Berlin")
    again.restore(state)
    prices(again, PriceCurve.DAY_AHEAD, T0 + 3 * DAY_MS, 50 + 20 * np.sin(np.arange(24) / 12 * np.pi), T0 + 3 * DAY_MS)
    prices(again, PriceCurve.REAL_TIME, T0 + 4 * DAY_MS - STEP_MS, [45.0], T0 + 4 * DAY_MS)
    planned = plan(again)
    assert planned.facts["prices_from"] == "model"
    assert planned.facts["load_model"] == "yesterday"
    assert planned.facts["base_w"] == plan(taught).facts["base_w"]
    kept = again.state()
    assert {name for name in kept if kept[name] != state[name]} == set(), "writing it again writes nothing"


def test_only_the_day_so_far_is_written_during_a_day(taught):
    state = taught.state()
    taught.load(T0 + 4 * DAY_MS + 900_000, 2_000, 100)
    changed = {name for name, piece in taught.state().items() if state.get(name) != piece}
    assert changed == {"today/00"}


# ------------------------------------------------------------ the weather


ROOF = Pv(forecast_w=(3_000,))
NOON = T0 + 4 * DAY_MS + 12 * STEP_MS


def sky_w(at_ms: int) -> float:
    return 3_000 * max(0.0, float(np.sin((at_ms % DAY_MS / STEP_MS - 6) / 12 * np.pi)))


def under_a_sky(held=range(0)) -> SitePlanner:
    """Half a week of sun; in the hours of ``held`` (UTC) a limit held the roof at 500 W."""
    planner = SitePlanner("demo/power", 10_000, 10_000)
    for at_ms in range(T0, NOON, 900_000):
        limited = at_ms % DAY_MS // STEP_MS in held
        power_w = None if limited else sky_w(at_ms + 450_000)
        planner.weather(at_ms, Weather({SITE: 5.0, "room": 5.0 + sky_w(at_ms) / 300}, {"roof": power_w}))
        planner.load(at_ms, 500, 0)
    return planner


def sun_w(planner: SitePlanner, begins_ms: int, now_ms: int = NOON, roof: Pv = ROOF) -> int:
    """What a planned round counts on."""
    planned = planner.plan(made(begins_ms), [("roof", roof)], 0, now_ms)
    assert planned.all_w == planned.split(planned.curve.floor_w)
    return -planned.all_w["roof"]


def test_a_round_at_night_that_is_planned_at_noon_has_no_sun():
    planner = under_a_sky()
    assert sun_w(planner, NOON) == pytest.approx(3_000, abs=100)
    assert sun_w(planner, NOON + 10 * STEP_MS) == 0
    assert sun_w(planner, NOON + 22 * STEP_MS) == pytest.approx(sky_w(NOON - 1.5 * STEP_MS), rel=0.1)
    nobody_knows = SitePlanner("demo/power", 10_000, 10_000)
    assert sun_w(nobody_knows, NOON) == 3_000
    assert sun_w(nobody_knows, NOON + 10 * STEP_MS) == 0


def test_what_a_limit_left_of_the_sun_is_not_learned():
    planner = under_a_sky(held=range(9, 12))
    assert sun_w(planner, NOON + 22 * STEP_MS) == 0, "of a time of day that nobody saw nothing is promised"
    planner.weather(NOON, Weather({}, {"roof": None}))
    morning = planner.planning.weather.roofs["roof"].expected(NOON + 18 * STEP_MS, STEP_MS, 3, NOON, None)
    assert morning == pytest.approx([sky_w(NOON + n * STEP_MS + STEP_MS // 2) for n in (18, 19, 20)], rel=0.1, abs=40)


def test_what_was_learned_of_the_weather_comes_back_and_is_small():
    planner = under_a_sky()
    state = planner.state()
    assert sum(len(piece) for name, piece in state.items() if name.startswith("weather/")) < 1_200
    again = SitePlanner("demo/power", 10_000, 10_000)
    again.restore(state)
    for hours in (0, 10, 22):
        assert sun_w(again, NOON + hours * STEP_MS) == pytest.approx(sun_w(planner, NOON + hours * STEP_MS), abs=60)
    assert again.planning.weather.places.keys() == {SITE, "room"}


def test_a_state_of_before_is_read_and_a_damaged_sky_is_forgotten(caplog):
    planner = under_a_sky()
    state = planner.state()
    old = {name: piece for name, piece in state.items() if not name.startswith("weather/")}
    again = SitePlanner("demo/power", 10_000, 10_000)
    with caplog.at_level(logging.WARNING, "energybid.market"):
        again.restore(old)
        assert caplog.text == ""
        assert again.planning.loads.today is not None
        for piece in (b"", state["weather/00"][:-1] + b"?", state["loads/00"]):
            again.restore({**state, "weather/00": piece})
            assert "weather: what was learned is not taken up" in caplog.text
            caplog.clear()
    assert again.planning.weather.roofs == {}
    assert sun_w(again, NOON) == 3_000


def test_the_load_models_get_the_temperature():
    planner = under_a_sky()
    days = planner.planning.loads.forecaster.state()["days"]
    assert [warmth for _, warmth in days] == [5.0] * 4
    assert planner.planning.loads._facts(planner.planning.loads.today).temperature_c == 5.0


def test_a_person_has_a_model_go_back(taught):
    planner = SitePlanner("demo/power", 10_000, 10_000, "Europe/Berlin")
    planner.restore(taught.state())
    with pytest.raises(ValueError, match="yesterday learns nothing"):
        planner.roll_back(None)
    with pytest.raises(ValueError, match="those that have versions: regression, regression-temperature"):
        planner.roll_back("mean")
    assert planner.roll_back("regression") == ("regression", 2)
    with pytest.raises(ValueError, match="version 2 is of today"):
        planner.roll_back("regression")
    again = SitePlanner("demo/power", 10_000, 10_000, "Europe/Berlin")
    again.restore(planner.state())
    versions = {standing.model: standing.version for standing in again.planning.loads.forecaster.standings()}
    assert versions["regression"] == 2


@pytest.mark.parametrize("kind", ["prices", "loads"])
def test_what_is_damaged_is_learned_anew(taught, kind, caplog):
    state = taught.state()
    piece = state[f"{kind}/00"]
    wrong = [
        state | {f"{kind}/00": piece[:-1] + bytes([piece[-1] ^ 1])},
        state | {f"{kind}/00": piece[:200]},
        {**state, f"{kind}/00": piece[:9] + b"\x09" + piece[10:]},
        state | {f"{kind}/00": b""},
    ]
    for each in wrong:
        caplog.clear()
        again = SitePlanner("demo/power", 10_000, 10_000, "Europe/Berlin")
        with caplog.at_level(logging.WARNING, "energybid.market"):
            again.restore(each)
        assert f"{kind}: what was learned is not taken up" in caplog.text
        other = {"prices": again.planning.loads.today, "loads": again.planning.prices.model}[kind]
        assert other is not None, "the rest is taken up"
        plan(again, base_w=100)


def test_what_was_learned_elsewhere_is_learned_anew(taught, caplog):
    again = SitePlanner("demo/other", 10_000, 10_000, "Asia/Tokyo")
    with caplog.at_level(logging.WARNING, "energybid.market"):
        again.restore(taught.state())
    assert "it is of demo/power, not of demo/other" in caplog.text
    assert "it is of Europe/Berlin" in caplog.text
    assert again.planning.prices.model is None
    SitePlanner("demo/power", 1, 1).restore({})
