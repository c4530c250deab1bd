"""The curve against enumeration of everything a small site can do."""

from itertools import pairwise, product

import pytest
from energybid.bidding.curve import POWER_MAX_W, STEPS_MAX, TICKS_MAX, Curve, Step
from energybid.bidding.response import COMBINATIONS_MAX, Offer, Piece, Response, Segment
from hypothesis import given, settings
from hypothesis import strategies as st

TICK = 0.25
SLOPES = st.integers(-8, 8).map(lambda n: n * TICK)
"""Few and on the grid of ticks, so that ties are common."""


@st.composite
def pieces(draw, slopes=SLOPES):
    falling = sorted(draw(st.lists(slopes, max_size=3)), reverse=True)
    segments = tuple(Segment(draw(st.integers(1, 3)), slope) for slope in falling)
    return Piece(draw(st.integers(-4, 4)), draw(slopes) * 2, segments)


OFFERS = st.lists(pieces(), min_size=1, max_size=3).map(tuple)


def powers(piece: Piece):
    """Every (power, value) of a piece, watt by watt."""
    power_w, value = piece.start_w, piece.value
    yield power_w, value
    for segment in piece.segments:
        for _ in range(segment.power_w):
            power_w, value = power_w + 1, value + segment.slope
            yield power_w, value


def enumerated(offers: list[Offer], base_w: int) -> dict[int, float]:
    """The most that every whole watt of net import is worth."""
    best = {base_w: 0.0}
    for offer in offers:
        options = [option for piece in offer for option in powers(piece)]
        sums: dict[int, float] = {}
        for (a, u), (b, v) in product(best.items(), options):
            sums[a + b] = max(sums.get(a + b, u + v), u + v)
        best = sums
    return best


@given(st.lists(OFFERS, max_size=3), st.integers(-5, 5), st.integers(-12, 12), st.integers(0, 12))
@settings(max_examples=300, deadline=None)
def test_the_curve_is_the_best_response_at_every_price(offers, base_w, least_w, room_w):
    most_w = least_w + room_w
    worth = enumerated(offers, base_w)
    excess_w = min(max(0, least_w - q, q - most_w) for q in worth)
    worth = {q: u for q, u in worth.items() if least_w - excess_w <= q <= most_w + excess_w}

    response = Response(offers, base_w=base_w, least_w=least_w, most_w=most_w)
    curve = response.curve(tick=TICK)

    assert response.excess_w == excess_w
    for ticks in range(-20, 21):
        gain = {q: u - ticks * TICK * q for q, u in worth.items()}
        best = {q for q, g in gain.items() if g == max(gain.values())}
        assert curve.net_w(ticks) == max(best)
        allowed = {q for q in worth if curve.allows(q, ticks)}
        assert best <= allowed
        # A limit between two ticks is bid as the lower: a market that shares out at that price costs less than a tick.
        assert all(gain[q] > max(gain.values()) - TICK * (max(allowed) - min(allowed)) or q in best for q in allowed)
        assert not any(curve.allows(q, ticks) for q in range(-40, 40) if q not in worth)
    for q, u in worth.items():
        assert response.value(q) == pytest.approx(u)
        split = response.split(q)
        assert base_w + sum(split) == q
        values = [max(v for p, v in options(offer) if p == w) for offer, w in zip(offers, split, strict=True)]
        assert sum(values) == pytest.approx(u)


def options(offer: Offer):
    return [option for piece in offer for option in powers(piece)]


@given(st.lists(st.lists(pieces(st.floats(-500, 500)), min_size=1, max_size=2).map(tuple), max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_prices_give_a_falling_staircase(offers):
    response = Response(offers, base_w=100, least_w=-1000, most_w=1000)
    curve = response.curve(tick=0.01)
    assert all(a.ticks >= b.ticks for a, b in pairwise(curve.steps))
    assert curve.ceiling_w == response.corners[-1].net_w
    for ticks in {step.ticks + delta for step in curve.steps for delta in (-1, 0, 1)}:
        best = max(u.value - ticks * 0.01 * u.net_w for u in response.corners)
        net_w = curve.net_w(ticks)
        assert response.value(net_w) - ticks * 0.01 * net_w == pytest.approx(best, abs=1e-6)


def test_a_load_that_is_on_or_off_is_bid_whole():
    pump = (Piece(0, 0.0), Piece(2000, 2000 * 80.0))
    battery = (Piece(-1000, -1000 * 90.0, (Segment(1000, 90.0), Segment(1000, 40.0))),)
    curve = Response([pump, battery], base_w=500, least_w=-5000, most_w=5000).curve(tick=0.01)
    assert curve == Curve(
        -500, (Step(9000, 1000, divisible=True), Step(8000, 2000, divisible=False), Step(4000, 1000, divisible=True))
    )


def test_under_a_limit_the_loads_compete():
    """Two pumps of which only one fits: the dearer goes first, and the cheaper never joins it."""
    pumps = [(Piece(0, 0.0), Piece(2000, 2000 * 80.0)), (Piece(0, 0.0), Piece(1500, 1500 * 90.0))]
    response = Response(pumps, base_w=0, least_w=0, most_w=2000)
    # 1,500 W are worth 135,000, 2,000 W 160,000: the step between pays 50 a watt.
    assert response.curve(tick=1.0) == Curve(0, (Step(90, 1500, divisible=False), Step(50, 500, divisible=False)))
    assert response.split(1500) == (0, 1500)
    assert response.split(2000) == (2000, 0)
    with pytest.raises(ValueError, match="can not make a net import of 700 W"):
        response.split(700)


def test_a_site_that_can_not_keep_its_limit_comes_as_close_as_it_can():
    battery = (Piece(-1000, 0.0, (Segment(2000, 10.0),)),)
    response = Response([battery], base_w=5000, least_w=0, most_w=3000)
    assert response.excess_w == 1000
    assert response.curve(tick=1.0) == Curve(4000, ())
    assert response.split(4000) == (-1000,)


@pytest.mark.parametrize(
    ("floor_w", "steps", "message"),
    [
        (0, (Step(1, 0, divisible=True),), "adds power"),
        (0, (Step(1, 5, divisible=True), Step(2, 5, divisible=True)), "by falling price"),
        (0, (Step(1, 1, divisible=True),) * (STEPS_MAX + 1), "at most 192 steps"),
        (0, (Step(TICKS_MAX + 1, 1, divisible=True),), "ticks"),
        (POWER_MAX_W, (Step(1, 1, divisible=True),), "power is at most"),
    ],
)
def test_what_is_no_curve_is_refused(floor_w, steps, message):
    with pytest.raises(ValueError, match=message):
        Curve(floor_w, steps)


@pytest.mark.parametrize(
    ("offers", "least_w", "most_w", "message"),
    [
        ([()], 0, 1, "at least one power"),
        ([], 2, 1, "exclude each other"),
        ([(Piece(0, 0.0), Piece(1, 0.0))] * 13, 0, 1, f"{2 * COMBINATIONS_MAX} combinations"),
    ],
)
def test_what_is_no_site_is_refused(offers, least_w, most_w, message):
    with pytest.raises(ValueError, match=message):
        Response(offers, base_w=0, least_w=least_w, most_w=most_w)


def test_what_is_no_piece_is_refused():
    with pytest.raises(ValueError, match="has power"):
        Piece(0, 0.0, (Segment(0, 1.0),))
    with pytest.raises(ValueError, match="may not rise"):
        Piece(0, 0.0, (Segment(1, 1.0), Segment(1, 2.0)))
