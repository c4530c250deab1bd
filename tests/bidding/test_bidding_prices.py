"""The price model, the battery's bids on it, and what they earn."""

from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from energybid.bidding.assets_stores import Battery
from energybid.bidding.packed import pack, unpack
from energybid.bidding.prices import Place, PriceModel, Shape, running_mean
from energybid.bidding.prices_battery import CELLS, Cell, Trader, best_falling, marginal_values
from energybid.bidding.prices_bids import best_at, cases, news_bid
from energybid.bidding.prices_trading import Market, expected, foresight, trade
from energybid.bidding.site import Site
from energybid.bidding.values import values
from energybid.bidding.values_battery import marginal_worths
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

STEPS = 48
SMALL = Shape(bins=5, slow_bins=2, slow_steps=6.0, blocks=4, spread=3.0)


def market(seed: int, days: int) -> Market:
    """Two peaks a day ahead of time; real time strays from it and comes back, with a few spikes."""
    chance = np.random.default_rng(seed)
    hour = np.arange(days * STEPS) % STEPS / STEPS * 24
    day_ahead = 30 + 12 * np.sin((hour - 9) / 24 * 4 * np.pi) + 5 * np.repeat(chance.normal(size=days), STEPS)
    deviation = np.zeros(days * STEPS)
    for step in range(1, len(deviation)):
        deviation[step] = 0.8 * deviation[step - 1] + chance.normal() * 4
    spikes = (chance.random(len(deviation)) < 0.01) * 80.0
    return Market(day_ahead + deviation + spikes, day_ahead, STEPS)


@pytest.fixture(scope="module")
def model():
    past = market(1, 60)
    return PriceModel.learned(past.real_time, past.day_ahead, steps_per_day=STEPS, shape=SMALL)


def test_rows_are_probabilities_of_every_state(model):
    assert model.matrices.shape == (4, 10, 10)
    assert np.allclose(model.matrices.sum(axis=2), 1.0)
    assert (model.matrices >= 0).all()


def test_transitions_are_what_was_seen():
    flips = np.tile([10.0, 30.0], 2_000)
    day_ahead = np.full(4_000, 20.0)
    shape = Shape(bins=2, slow_bins=1, blocks=1, block_weight=1.0, prior_weight=1.0, spread=1.0)
    made = PriceModel.learned(flips, day_ahead, steps_per_day=40, shape=shape)
    assert made.matrix(0)[0, 1] > 0.99
    assert made.matrix(0)[1, 0] > 0.99
    assert made.prices(20.0) == pytest.approx([10.0, 30.0])


def test_a_gap_is_no_transition():
    past = market(2, 10)
    holes = past.real_time.copy()
    holes[::7] = np.nan
    whole = PriceModel.learned(past.real_time, past.day_ahead, steps_per_day=STEPS, shape=SMALL)
    gaps = PriceModel.learned(holes, past.day_ahead, steps_per_day=STEPS, shape=SMALL)
    assert whole.counts.sum() == len(holes) - 1
    assert gaps.counts.sum() == (np.isfinite(holes)[1:] & np.isfinite(holes)[:-1]).sum()
    assert np.isfinite(gaps.matrices).all()


def test_learning_day_by_day_is_learning_at_once():
    past = market(3, 12)
    first = past.days(0, 10)
    made = PriceModel.learned(first.real_time, first.day_ahead, steps_per_day=STEPS, shape=SMALL)
    counts = made.counts.copy()
    deviation = (first.real_time - first.day_ahead) / np.maximum(np.abs(first.day_ahead), 10) ** 0.5
    place = made.ending(first.real_time, first.day_ahead)
    assert place == pytest.approx((deviation[-1], running_mean(deviation, 6.0)[-1]))
    unseen = np.append(first.real_time, np.nan)
    assert made.ending(unseen, np.append(first.day_ahead, 20.0)) == place, "a price that was not seen changes nothing"
    for day in (10, 11):
        one = past.days(day, day + 1)
        place = made.learn(one.real_time, one.day_ahead, place)
    assert made.counts.sum() - counts.sum() == 2 * STEPS
    whole = (past.real_time - past.day_ahead) / np.maximum(np.abs(past.day_ahead), 10) ** 0.5
    once = replace(made, counts=np.zeros_like(counts))
    once._count(whole, running_mean(whole, 6.0))
    assert np.array_equal(once.counts, made.counts)
    along = Place(deviation[-1], running_mean(deviation, 6.0)[-1])
    for price, day_ahead in zip(past.real_time[480:], past.day_ahead[480:], strict=True):
        along = made.place(price, day_ahead, along)
    assert place == pytest.approx(along)


def test_old_counts_fade(model):
    past = market(4, 1)
    made = PriceModel.restored(model.state())
    before = made.counts.sum()
    made.learn(past.real_time, past.day_ahead, Place(0.0, 0.0), keep=0.5)
    assert made.counts.sum() == pytest.approx(before / 2 + STEPS)


def test_state_is_packed_and_comes_back(model):
    again = PriceModel.restored(unpack(pack(model.state())))
    assert np.allclose(again.matrices, model.matrices, atol=1e-3)
    assert np.array_equal(again.prices(25.0), model.prices(25.0))


def test_state_of_another_kind_is_refused(model):
    with pytest.raises(ValueError, match="format 7"):
        PriceModel.restored(model.state() | {"format": 7})
    few = model.state()
    few["shape"] = few["shape"] | {"blocks": 1}
    with pytest.raises(ValueError, match="that it has not"):
        PriceModel.restored(few)


def test_a_damaged_state_is_refused(model):
    state = model.state()
    damaged = [{key: value for key, value in state.items() if key != name} for name in state]
    damaged += [state | {name: None} for name in state]
    damaged += [state | {"shape": shape} for shape in ({"bins": 0}, {"beans": 1})]
    damaged += [state | {"levels": state["levels"][1:]}]
    for each in damaged:
        with pytest.raises(ValueError, match=r"format|damaged"):
            PriceModel.restored(each)


def test_too_little_history_is_refused():
    with pytest.raises(ValueError, match="a day of prices"):
        PriceModel.learned(np.zeros(10), np.zeros(10), steps_per_day=STEPS, shape=SMALL)
    with pytest.raises(ValueError, match="no multiple"):
        PriceModel.learned(np.zeros(500), np.zeros(500), steps_per_day=50, shape=SMALL)


@given(st.floats(-100, 100), st.floats(-100, 100))
@settings(max_examples=100)
def test_a_place_lies_between_states(deviation, slow):
    past = market(1, 5)
    made = PriceModel.learned(past.real_time, past.day_ahead, steps_per_day=STEPS, shape=SMALL)
    row = made.weights(Place(deviation, slow))
    assert row.sum() == pytest.approx(1.0)
    levels = np.tile(made.levels, 2)
    assert row @ levels == pytest.approx(np.clip(deviation, made.levels[0], made.levels[-1]))


def test_a_battery_is_worth_what_the_general_recursion_says(model):
    # Full steps are whole cells: then both are exact, and equal.
    cell = Cell(power=0.5, efficiency=1.0, wear=7.0)
    day_ahead = market(5, 1).day_ahead
    final = np.full(CELLS, 20.0)
    fast = marginal_values(model, cell, day_ahead, step=0, keep=STEPS, final=final)
    battery = Battery(
        stored_wh=0, capacity_wh=4e6, charge_w=2_000_000, discharge_w=2_000_000, discharge_wear=7.0, final_price=20.0
    )
    slow = values(battery, model.outlook(day_ahead[1:], step=0, later=20.0))
    for step in (0, 10, 40):
        points = slow[step][:, :: 400 // CELLS]
        marginal = np.diff(points, axis=1) / (4e6 / CELLS)
        rows = fast[step] if len(marginal) > 1 else fast[step][:1]
        assert np.allclose(rows, marginal, atol=1e-3)


@pytest.mark.parametrize("final_price", [20.0, None])
def test_marginal_values_are_those_of_the_general_recursion(model, final_price):
    # Full steps are whole cells, and so is the reserve: both are exact.
    battery = Battery(
        stored_wh=0, capacity_wh=4e6, charge_w=1_600_000, discharge_w=800_000, charge_wear=3.0, discharge_wear=7.0,
        reserve_wh=0.8e6, final_price=final_price,
    )  # fmt: skip
    outlook = model.outlook(market(6, 1).day_ahead, step=0, later=30.0)
    slow, fast = values(battery, outlook), marginal_worths(battery, outlook)
    assert len(marginal_worths(battery, outlook, 3)) == len(values(battery, outlook, 3)) == 3
    for step in (0, 1, 40, STEPS):
        one, two = slow[step], fast[step]
        points = one[:, :: 400 // CELLS]
        inner = slice(20, None)  # below the reserve the first cells are filled at any price
        assert np.allclose(np.diff(points)[:, inner], np.diff(two)[:, inner], atol=60.0), "0.0015 per MWh"


def test_merged_states_are_the_sums_of_theirs(model):
    shape = Shape(bins=4, slow_bins=2, slow_steps=6.0, blocks=4, spread=3.0)
    past = market(1, 60)
    fine = PriceModel.learned(past.real_time, past.day_ahead, steps_per_day=STEPS, shape=shape)
    made = fine.merged(2, 2)
    assert (made.states, made.counts.sum()) == (2, fine.counts.sum())
    halves = [0, 0, 1, 1] * 2
    for block in range(4):
        for a in range(2):
            for b in range(2):
                rows = [k for k in range(8) if halves[k] == a]
                columns = [k for k in range(8) if halves[k] == b]
                assert made.counts[block, a, b] == fine.counts[block][np.ix_(rows, columns)].sum()
    deviation = (past.real_time - past.day_ahead) / np.maximum(np.abs(past.day_ahead), 10) ** 0.5
    for low, level in ((True, made.levels[0]), (False, made.levels[1])):
        assert level == pytest.approx(deviation[(deviation <= fine.edges[1]) == low].mean(), rel=0.01)


@given(arrays.arrays(float, (4, 3), elements=st.integers(-5, 5).map(float)))
@settings(max_examples=200)
def test_best_falling_is_best(gain):
    found = best_falling(gain)
    assert all(a >= b for a, b in pairwise(found))
    rows = range(len(gain))
    best = max(
        sum(gain[row, level] for row, level in zip(rows, choice, strict=True))
        for choice in product(range(3), repeat=4)
        if all(a >= b for a, b in pairwise(choice))
    )
    assert sum(gain[row, level] for row, level in zip(rows, found, strict=True)) == best


def test_a_wish_falls_with_the_price(model):
    chance = np.random.default_rng(6)
    trader = Trader(model, Cell(power=0.5))
    day_ahead = market(7, 2).day_ahead
    worth = marginal_values(model, Cell(power=0.5), day_ahead, step=0, keep=STEPS, final=np.full(CELLS, 25.0))
    for step in range(0, STEPS, 5):
        wish = trader.wish(worth[step], chance.random(), day_ahead[step], Place(chance.normal(), 0.0), step)
        assert all(a < b for a, b in pairwise(wish.prices))
        assert all(a > b for a, b in pairwise(wish.targets))
        assert len(wish.targets) == len(wish.prices) + 1
        assert wish.at(-1e6) == wish.targets[0]
        assert wish.at(1e6) == wish.targets[-1]


def test_a_wish_that_rises_with_the_price_is_bid_as_the_best_that_falls(model):
    # Energy is a burden at all prices but the highest, and those are rare: to give it away is right nearly always.
    cell = Cell(power=0.5)
    worth = np.repeat(np.tile([-200.0, -150.0, -100.0, -50.0, 2_000.0], 2)[:, None], CELLS, axis=1).astype(np.float32)
    wish = Trader(model, cell).wish(worth, 0.5, 30.0, Place(0.0, 0.0), 10)
    assert wish.moved
    assert wish.targets == pytest.approx([0.5 - cell.down(24 / STEPS)])


def test_foresight_buys_low_and_sells_high():
    prices = np.array([10.0, 50.0] + [30.0] * 22)
    cell = Cell(power=0.5, efficiency=1.0, wear=10.0)
    # Half a capacity: bought at 10, sold at 50 with 10 of wear; nothing else pays.
    assert foresight(Market(prices, prices, 24), cell) == pytest.approx(15.0)
    # Paid to fill up, once: what is paid for room is what that room earns.
    assert foresight(Market(-prices, prices, 24), Cell(power=1.0, efficiency=1.0, wear=0.0)) == pytest.approx(50.0)


def test_trading_earns_a_part_of_what_foresight_earns():
    prices = market(8, 80)
    done = trade(prices, Cell(power=0.5, wear=2.0), first_day=60, days=20, shape=SMALL)
    share = done.cash.sum() / foresight(prices.days(60, 80), Cell(power=0.5, wear=2.0))
    assert 0.5 < share < 1.0
    assert done.stored.min() >= 0
    assert done.stored.max() <= 1


def test_trading_knows_nothing_of_what_is_to_come():
    prices = market(9, 34)
    later = prices.real_time.copy()
    cut = 31 * STEPS + 20
    later[cut:] += 100
    calls = []
    runs = [
        trade(
            Market(real_time, prices.day_ahead, STEPS),
            Cell(power=0.5),
            first_day=30,
            days=3,
            shape=SMALL,
            each_day=True,
            progress=lambda done, days: calls.append((done, days)),
        )
        for real_time in (prices.real_time, later)
    ]
    known = cut - 30 * STEPS
    assert np.array_equal(runs[0].cash[:known], runs[1].cash[:known])
    assert not np.array_equal(runs[0].cash, runs[1].cash)
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2


def test_tomorrow_is_known_from_its_publication():
    prices = market(10, 3)
    morning, noon = expected(prices, 0, 1, 0), expected(prices, 0, 2, 22)
    assert np.array_equal(morning, np.concatenate((prices.day_ahead[:48], prices.day_ahead[:24])))
    assert np.array_equal(noon[: 26 + 46], prices.day_ahead[22 : 22 + 72])


def test_a_site_bids_with_the_price_as_news(model):
    day_ahead = market(11, 2).day_ahead
    battery = Battery(
        stored_wh=5_000, capacity_wh=10_000, charge_w=5_000, discharge_w=5_000, discharge_wear=5.0, final_price=25.0
    )
    site = Site((battery,), import_limit_w=20_000, export_limit_w=20_000)
    ahead = [rows[0] for rows in site.ahead(model.outlook(day_ahead[11:40], step=10, later=25.0))]

    class Answer:
        def __init__(self, place):
            self.made = site.respond(ahead, step_h=0.5, base_w=1_000, states=model.weights(place).tolist())

        def response(self):
            return self.made

        def wish_w(self, price):
            return best_at(self.made, price)

    found = cases(model, Place(0.5, 0.2), float(day_ahead[10]), 10, Answer)
    curve = news_bid(found, tick=0.01).curve
    assert curve.floor_w == -4_000
    assert curve.ceiling_w == 6_000
    assert all(step.divisible for step in curve.steps)
    wishes = [case.wish_w for case in found]
    if all(a >= b for a, b in pairwise(wishes)):
        assert [curve.net_w(int(case.price / 0.01)) for case in found] == wishes
    # The same site where the news turns the wish round.
    turned = [case._replace(answer=other.answer) for case, other in zip(found, found[::-1], strict=True)]
    assert news_bid(turned, tick=0.01).curve.floor_w <= 6_000
    rising = [case._replace(wish_w=other.wish_w) for case, other in zip(found, found[::-1], strict=True)]
    levels = [step.power_w for step in news_bid(rising, tick=0.01).curve.steps]
    assert all(power_w > 0 for power_w in levels)
