"""Clearing against enumeration of every price, and against its own rules."""

from itertools import product
from random import Random

import pytest
from energybid.bidding.curve import Curve, Step
from energybid.simulator.market.clearing import SINGLY, Bid, Outcome, _Book, clear, pay_as_bid
from hypothesis import given, settings
from hypothesis import strategies as st

LEAST, MOST = -6, 6


@st.composite
def bids(draw):
    prices = sorted(draw(st.lists(st.integers(-8, 8), max_size=4)), reverse=True)
    steps = tuple(Step(ticks, draw(st.integers(1, 6)), draw(st.booleans())) for ticks in prices)
    curve = Curve(draw(st.integers(-10, 5)), steps)
    return Bid(curve, draw(st.sampled_from(sorted(offered(curve)))))


BOOKS = st.lists(bids(), min_size=1, max_size=4).map(lambda made: {f"site-{i}": bid for i, bid in enumerate(made)})


def offered(curve: Curve) -> set[int]:
    """Every net import that the curve offers at some price."""
    prices = {step.ticks for step in curve.steps} or {0}
    return {q for q in range(curve.floor_w, curve.ceiling_w + 1) for ticks in prices if curve.allows(q, ticks)}


def wanted(bid: Bid, ticks: int) -> set[int]:
    return {q for q in offered(bid.curve) if bid.curve.allows(q, ticks)}


def balances(book: dict[str, Bid], ticks: int) -> bool:
    """Whether some choice among what all want at a price balances."""
    sums = {0}
    for bid in book.values():
        sums = {a + b for a, b in product(sums, wanted(bid, ticks))}
    return 0 in sums


@given(bids())
@settings(max_examples=100, deadline=None)
def test_a_curve_offers_what_it_allows_at_some_price(bid):
    curve = bid.curve
    around = range(curve.floor_w - 3, curve.ceiling_w + 4)
    assert {q for q in around if curve.offers(q)} == offered(curve)


@given(BOOKS)
@settings(max_examples=150, deadline=None)
def test_what_is_cleared_balances_and_nobody_trades_at_a_loss(book):
    cleared = clear(book, least_ticks=LEAST, most_ticks=MOST)
    if cleared.outcome is not Outcome.CLEARED:
        assert cleared.net_w == {}
        assert cleared.ticks is None
        return
    assert LEAST <= cleared.ticks <= MOST
    assert sum(cleared.net_w.values()) == 0
    declined = {name for name, _ in cleared.declined}
    for name, bid in book.items():
        net_w = cleared.net_w[name]
        best = wanted(bid, cleared.ticks)
        if name not in declined:
            assert net_w in best
        # Less trade than wanted may happen to an all-or-nothing step; more, or the other direction, never.
        assert min(*best, bid.schedule_w) <= net_w <= max(*best, bid.schedule_w)
        assert net_w in offered(bid.curve)


@given(BOOKS)
@settings(max_examples=150, deadline=None)
def test_divisible_bids_clear_whenever_any_price_does(book):
    book = {
        name: Bid(Curve(bid.curve.floor_w, tuple(s._replace(divisible=True) for s in bid.curve.steps)), bid.schedule_w)
        for name, bid in book.items()
    }
    prices = {ticks for ticks in range(LEAST, MOST + 1) if balances(book, ticks)}
    cleared = clear(book, least_ticks=LEAST, most_ticks=MOST)
    assert cleared.declined == frozenset()
    if cleared.outcome is Outcome.CLEARED:
        assert cleared.ticks in prices
        # Where a span of prices balances it is the middle.
        assert abs(2 * cleared.ticks - min(prices) - max(prices)) <= 1
    else:
        assert not prices
        net_w = sum(bid.curve.net_w(MOST + 1) for bid in book.values())
        assert (cleared.outcome is Outcome.SHORTAGE) == (net_w > 0)


def site(floor_w: int, *steps: Step, schedule_w: int = 0) -> Bid:
    return Bid(Curve(floor_w, steps), schedule_w)


def part(ticks: int, power_w: int) -> Step:
    return Step(ticks, power_w, divisible=True)


def whole(ticks: int, power_w: int) -> Step:
    return Step(ticks, power_w, divisible=False)


PLANT = site(-10, part(3, 10))
"""Sells 10 W at prices above 3."""


def cleared(**book: Bid):
    result = clear(book, least_ticks=-100, most_ticks=100)
    return result.ticks, result.net_w


def test_two_that_agree_meet_in_the_middle():
    assert cleared(plant=PLANT, load=site(0, part(8, 10))) == (5, {"plant": -10, "load": 10})


def test_ties_are_shared_in_proportion_to_the_last_watt():
    book = {"plant": PLANT, "a": site(0, part(8, 10)), "b": site(0, part(8, 5)), "c": site(0, part(8, 5))}
    assert cleared(**book) == (8, {"plant": -10, "a": 5, "b": 3, "c": 2})


def test_all_or_nothing_goes_first_and_whole():
    book = {"plant": PLANT, "part": site(0, part(8, 8)), "whole": site(0, whole(8, 6))}
    assert cleared(**book) == (8, {"plant": -10, "part": 4, "whole": 6})


def test_a_step_that_does_not_fit_stays_at_its_schedule():
    """Twelve do not fit into ten: the pump stays off, and the price falls to where the plant sells less."""
    ticks, net_w = cleared(plant=PLANT, pump=site(0, whole(8, 12)), load=site(0, part(6, 4)))
    assert (ticks, net_w) == (3, {"plant": -4, "pump": 0, "load": 4})


def test_a_pump_that_is_scheduled_keeps_running_when_its_absence_does_not_fit():
    """Above 2 the pump would stop; it can not run in part, and nobody takes what its stop would leave: it runs on."""
    book = {"pump": site(0, whole(2, 12), schedule_w=12), "plant": site(-15, part(1, 15)), "load": site(0, part(9, 4))}
    assert cleared(**book) == (9, {"pump": 12, "plant": -15, "load": 3})


def test_only_the_steps_in_the_way_are_declined():
    """Fifteen are sold, one pump of ten fits: the two others are in the way, and the first keeps its place."""
    pumps = {name: site(0, whole(8, 10)) for name in ("a", "b", "c")}
    book = {"plant": site(-15, part(3, 15)), **pumps, "load": site(0, part(8, 4)), "late": site(0, part(6, 4))}
    result = clear(book, least_ticks=-100, most_ticks=100)
    assert (result.ticks, result.declined) == (6, {("b", 0), ("c", 0)})
    assert result.net_w == {"plant": -15, "a": 10, "b": 0, "c": 0, "load": 4, "late": 1}


def test_a_round_ends_after_few_attempts():
    """Pumps far apart in price that never fit: beyond a few they are declined together."""
    chance = Random(1)
    book = {f"pump-{n}": site(0, whole(chance.randint(-(10**12), 10**12), 3_001 + n)) for n in range(200)}
    book |= {f"plant-{n}": site(-2_000, whole(chance.randint(-(10**12), 10**12), 2_000)) for n in range(200)}
    attempts = 0

    class Counted(_Book):
        def _attempt(self):
            nonlocal attempts
            attempts += 1
            return super()._attempt()

    Counted(book, -(10**12), 10**12).clear()
    assert SINGLY < attempts <= SINGLY + 2 + 21, "4 to the power of 21 spans all prices"


def test_negative_prices_clear_too():
    assert cleared(wind=site(-10, part(-40, 10)), battery=site(0, part(-5, 4))) == (-40, {"wind": -4, "battery": 4})


@pytest.mark.parametrize(
    ("book", "outcome"),
    [
        ({}, Outcome.EMPTY),
        ({"load": site(5, schedule_w=5)}, Outcome.SHORTAGE),
        ({"plant": site(-5, schedule_w=-5)}, Outcome.SURPLUS),
        ({"plant": site(-5, part(-200, 5), schedule_w=-5)}, Outcome.SURPLUS),
        ({"load": site(0, part(200, 5))}, Outcome.SHORTAGE),
    ],
)
def test_without_two_sides_there_is_no_trade(book, outcome):
    result = clear(book, least_ticks=-100, most_ticks=100)
    assert (result.outcome, result.ticks, result.net_w) == (outcome, None, {})


def test_pay_as_bid_charges_every_step_at_its_own_limit():
    bid = Bid(Curve(-10, (part(9, 10), part(7, 5), whole(2, 20))), 5)
    assert pay_as_bid(bid, 25) == 20 * 2
    assert pay_as_bid(bid, 5) == 0
    assert pay_as_bid(bid, -4) == -(5 * 7 + 4 * 9)


def test_what_can_not_be_cleared_is_refused():
    with pytest.raises(ValueError, match="lowest price is above"):
        clear({}, least_ticks=1, most_ticks=0)
    for schedule_w in (-1, 3, 6):
        with pytest.raises(ValueError, match="pump: the schedule is no power that the curve offers"):
            clear({"pump": site(0, whole(1, 5), schedule_w=schedule_w)}, least_ticks=0, most_ticks=1)
