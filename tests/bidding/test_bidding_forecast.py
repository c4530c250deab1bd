"""The load forecast: better than naive, honest about its spread, and able to go back."""

import numpy as np
import pytest
from energybid.bidding.forecast import FREEZE_DAYS, Forecaster
from energybid.bidding.forecast_models import Day, Past, Regression, candidates
from energybid.bidding.forecast_spread import LEVELS, Spread
from energybid.bidding.packed import pack, unpack

SLOTS = 24
HOUR = np.arange(SLOTS)
SHAPE = 1.0 + 0.8 * np.exp(-((HOUR - 19) ** 2) / 6) + 0.5 * np.exp(-((HOUR - 7) ** 2) / 3)


def household(seed: int, days: int) -> tuple[list[Day], np.ndarray]:
    """Habits, weekends, cold days and chance."""
    chance = np.random.default_rng(seed)
    warmth = 10 + 6 * np.sin(np.arange(days) / 9) + 2 * chance.normal(size=days)
    known = [Day(n % 7, float(warmth[n])) for n in range(days)]
    level = [1 + 0.3 * (n % 7 >= 5) + 0.06 * max(0.0, 15 - warmth[n]) for n in range(days)]
    noise = np.exp(0.12 * chance.normal(size=(days, SLOTS)))
    return known, np.array(level)[:, None] * SHAPE * noise


def walk(forecaster: Forecaster, known: list[Day], load: np.ndarray, model: str | None = None) -> np.ndarray:
    """Quantiles of each day, days x levels x slots; NaN where there is no forecast."""
    made = np.full((len(load), len(LEVELS), SLOTS), np.nan)
    for number, (day, row) in enumerate(zip(known, load, strict=True)):
        if (one := forecaster.forecast(day, model)) is not None:
            made[number] = one.quantiles
        forecaster.learn(day, row)
    return made


def wape(load: np.ndarray, guess: np.ndarray) -> float:
    return float(np.abs(load - guess).sum() / load.sum())


@pytest.fixture(scope="module")
def run():
    known, load = household(1, 150)
    forecaster = Forecaster(SLOTS)
    return known, load, forecaster, walk(forecaster, known, load)


def test_better_than_the_naive_ones(run):
    _, load, _, made = run
    days = range(30, 150)
    naive = {
        "yesterday": [load[n - 1] for n in days],
        "last week": [load[n - 7] for n in days],
        "mean of seven days": [load[n - 7 : n].mean(axis=0) for n in days],
    }
    best = min(wape(load[30:], np.array(guess)) for guess in naive.values())
    assert wape(load[30:], made[30:, 2]) < 0.9 * best


def test_quantiles_hold_what_they_say(run):
    _, load, _, made = run
    for k, level in enumerate(LEVELS):
        assert (load[30:] < made[30:, k]).mean() == pytest.approx(level, abs=0.06)
    assert (np.diff(made[30:], axis=1) >= 0).all()


def test_temperature_is_used_where_it_tells_something(run):
    _, _, forecaster, _ = run
    scores = {standing.model: standing.loss for standing in forecaster.standings()}
    assert scores["regression-temperature"] < scores["regression"] < scores["yesterday"]
    assert forecaster.model == "regression-temperature"


def test_a_day_tells_nothing_of_itself_in_advance():
    known, load = household(2, 40)
    other = load.copy()
    other[35:] *= 3
    one, two = (walk(Forecaster(SLOTS), known, rows) for rows in (load, other))
    assert np.array_equal(one[:36], two[:36], equal_nan=True)
    assert not np.array_equal(one[36], two[36])


def test_state_is_packed_and_goes_on_where_it_was():
    known, load = household(3, 60)
    forecaster = Forecaster(SLOTS)
    walk(forecaster, known[:40], load[:40])
    again = Forecaster.restored(unpack(pack(forecaster.state())))
    assert again.model == forecaster.model
    one, two = (walk(f, known[40:], load[40:]) for f in (forecaster, again))
    assert np.allclose(one, two, rtol=2e-3, atol=1e-3)


def test_state_of_another_kind_is_refused():
    forecaster = Forecaster(SLOTS)
    walk(forecaster, *household(4, 12))
    state = forecaster.state()
    with pytest.raises(ValueError, match="format 9"):
        Forecaster.restored(state | {"format": 9})
    with pytest.raises(ValueError, match="reshape"):
        Forecaster.restored(state | {"slots": 30})
    unknown = state | {"used": "a model that is no more", "models": {}}
    assert Forecaster.restored(unknown).model == "yesterday"


def test_a_spread_of_other_levels_is_refused():
    state = Spread(SLOTS).state()
    with pytest.raises(ValueError, match="levels"):
        Spread(SLOTS).restore(state | {"aims": [0.5]})


def test_gaps_are_bridged():
    known, load = household(5, 60)
    load[20:22] = np.nan
    load[40, :10] = np.nan
    forecaster = Forecaster(SLOTS)
    made = walk(forecaster, known, load)
    assert np.isfinite(made[1:]).all()
    assert np.isfinite(forecaster.forecast(Day(0)).quantiles).all()


def test_a_damaged_state_is_refused():
    forecaster = Forecaster(SLOTS)
    forecaster.learn(Day(1), SHAPE)
    state = unpack(pack(forecaster.state()))
    damaged = [{key: value for key, value in state.items() if key != name} for name in state]
    damaged += [state | {name: None} for name in state if name != "used"]  # a model that is no more may have been
    damaged += [state | {"models": {"yesterday": {}}}, state | {"days": [[1]]}, state | {"load": "\u00e9"}, {}]
    for each in damaged:
        with pytest.raises(ValueError, match=r"format|damaged"):
            Forecaster.restored(each)


def test_nothing_is_said_before_anything_is_known():
    forecaster = Forecaster(SLOTS)
    assert forecaster.forecast(Day(0)) is None
    assert forecaster.learn(Day(0), np.full(SLOTS, np.nan)) == []
    assert forecaster.forecast(Day(1)) is None
    assert {standing.loss for standing in forecaster.standings()} == {None}
    forecaster.learn(Day(1), SHAPE)
    first = forecaster.forecast(Day(2))
    assert first.model == "yesterday"
    assert np.array_equal(first.middle, SHAPE)
    assert forecaster.forecast(Day(2), "last-week") is None
    assert forecaster.forecast(Day(2), "regression") is None


def test_a_day_of_another_length_is_refused():
    with pytest.raises(ValueError, match="24 slots"):
        Forecaster(SLOTS).learn(Day(0), np.zeros(23))


def test_what_came_today_corrects_the_rest():
    forecaster = Forecaster(SLOTS)
    chance = np.random.default_rng(6)
    for number in range(40):  # whole days run high or low: what came tells of what comes
        forecaster.learn(Day(number % 7), SHAPE * np.exp(0.3 * chance.normal()))
    plain = forecaster.forecast(Day(5), "mean-7").middle
    high = forecaster.forecast(Day(5), "mean-7", seen=plain[:12] + 0.5).middle
    assert high[12] > plain[12] + 0.3
    assert high[23] > plain[23]
    assert high[12] - plain[12] > high[23] - plain[23]
    assert np.array_equal(high[:12], plain[:12])
    blind = forecaster.forecast(Day(5), "mean-7", seen=np.full(3, np.nan)).middle
    assert np.array_equal(blind, plain)
    assert np.array_equal(forecaster.forecast(Day(5), "mean-7", seen=np.empty(0)).middle, plain)


def test_a_model_goes_back_where_its_older_version_was_better():
    model = Regression(SLOTS, temperature=False)
    known, load = household(7, 60)
    forecaster = Forecaster(SLOTS)
    walk(forecaster, known, load)
    # A sensor that reads noise for some days; then it is well again.
    chance = np.random.default_rng(8)
    changes = []
    for number in range(5):
        forecaster.learn(Day(number % 7), chance.random(SLOTS) * 40)
    for number in range(3 * FREEZE_DAYS):
        changes += forecaster.learn(known[number], load[number])
    back = [change for change in changes if change.version > 1]
    assert model.name in {change.model for change in back}
    assert forecaster.forecast(known[0], model.name).version > 1


def test_going_back_by_hand():
    forecaster = Forecaster(SLOTS)
    known, load = household(9, 30)
    walk(forecaster, known, load)
    before = forecaster.forecast(known[0], "regression")
    assert forecaster.roll_back("regression") == before.version + 1
    after = forecaster.forecast(known[0], "regression")
    assert after.version == before.version + 1
    assert not np.array_equal(after.middle, before.middle)


def test_export_is_not_cut_at_zero():
    load = np.tile(-SHAPE, (20, 1))
    past = Past(load, tuple(Day(n % 7) for n in range(20)))
    guess = Regression(SLOTS, temperature=False).predict(past, Day(0))
    assert np.allclose(guess, -SHAPE, rtol=0.05)


def test_candidates_have_names_of_their_own():
    assert len({model.name for model in candidates(SLOTS)}) == 5
