"""The market's messages at their bytes."""

import json
from pathlib import Path

import golden_market
import pytest
from cddl_verifier import Validator
from energybid.agent.rounds import table as rounds_table
from energybid.bidding.curve import POWER_MAX_W, STEPS_MAX, TICKS_MAX
from energybid.core import cbor, cose
from energybid.core.errors import EvidenceError
from energybid.sync import market
from energybid.sync.market import (
    Award,
    Bid,
    Conduct,
    Confirmation,
    PriceCurve,
    Prices,
    Pricing,
    Round,
    Statement,
    Verdict,
)
from golden_market import GATEWAY_KEY, MARKET_KEY, PRICES, ROUND, chain
from hypothesis import assume, given, settings
from hypothesis import strategies as st

DOCS = Path(__file__).parents[2] / "docs"
KINDS = {
    "round": Round,
    "bid": Bid,
    "award": Award,
    "confirmation": Confirmation,
    "statement": Statement,
    "prices": Prices,
}
KEYS = {"bid": GATEWAY_KEY, "confirmation": GATEWAY_KEY}

UINT = st.integers(0, 2**63 - 1)
POSITIVE = st.integers(1, 2**63 - 1)
INT = st.integers(-(2**63), 2**63 - 1)
HASH = st.binary(min_size=32, max_size=32)
ORIGIN = st.from_regex(r"\A[a-z0-9]{1,5}/[a-z0-9]{1,5}\Z")
TICKS = st.integers(-TICKS_MAX, TICKS_MAX)
POWER = st.integers(-POWER_MAX_W, POWER_MAX_W)


@st.composite
def bids(draw):
    limits = sorted(draw(st.lists(TICKS, max_size=6)), reverse=True)
    steps = tuple((ticks, draw(st.integers(1, 10**9)), draw(st.booleans())) for ticks in limits)
    floor_w = draw(st.integers(-(10**9), 10**9))
    schedule_w = floor_w + sum(step[1] for step in steps[: draw(st.integers(0, len(steps)))])
    head = draw(st.tuples(ORIGIN, UINT, ORIGIN, HASH, POSITIVE, UINT, UINT))
    return Bid(*head, schedule_w, floor_w, steps)


@st.composite
def rounds(draw):
    times = sorted(draw(st.lists(UINT, min_size=3, max_size=3)))
    bounds = sorted(draw(st.lists(TICKS, min_size=2, max_size=2)))
    duration_ms, decimals = draw(st.integers(1, 86_400_000)), draw(st.integers(0, 9))
    currency = draw(st.from_regex(r"\A[A-Z]{3}\Z"))
    pricing, programme = draw(st.sampled_from(Pricing)), draw(st.from_regex(r"\A[a-z0-9-]{1,20}\Z"))
    head = draw(ORIGIN), draw(UINT), *times, duration_ms
    return Round(*head, currency, decimals, *bounds, pricing, programme)


@st.composite
def prices(draw):
    market_name, curve, counter = draw(ORIGIN), draw(st.sampled_from(PriceCurve)), draw(POSITIVE)
    step_ms, ticks = draw(st.integers(1, 86_400_000)), draw(st.lists(TICKS, min_size=1, max_size=9))
    begins_ms = draw(st.integers(0, 2**62))
    time_ms = draw(st.integers(begins_ms + (len(ticks) - 1) * step_ms, 2**63 - 1))
    currency = draw(st.from_regex(r"\A[A-Z]{3}\Z"))
    return Prices(
        market_name, curve, counter, time_ms, currency, draw(st.integers(0, 9)), begins_ms, step_ms, (*ticks,)
    )


MESSAGES = (
    rounds()
    | prices()
    | bids()
    | st.builds(Award, ORIGIN, UINT, ORIGIN, HASH, POSITIVE, UINT, st.sampled_from(Verdict), TICKS, POWER)
    | st.builds(Confirmation, ORIGIN, UINT, ORIGIN, HASH, UINT, st.sampled_from(Conduct), st.just("by hand"))
    | st.builds(Statement, ORIGIN, UINT, ORIGIN, HASH, POSITIVE, UINT, INT, INT, INT, HASH)
)


@given(MESSAGES)
@settings(max_examples=150)
def test_every_message_comes_back(message):
    kind = type(message)
    data = market.sign(message, MARKET_KEY)
    assert market.read(kind, data, MARKET_KEY.public) == message
    assert market.kind_of(cose.peek(data)[1]) is kind
    for other in KINDS.values():
        if other is not kind:
            with pytest.raises(EvidenceError, match="payload is no"):
                market.read(other, data, MARKET_KEY.public)
    with pytest.raises(EvidenceError, match="signed by key"):
        market.read(kind, data, GATEWAY_KEY.public)


@given(st.sampled_from(sorted(KINDS)), st.data())
@settings(max_examples=300)
def test_a_payload_with_anything_else_in_it_is_refused_or_the_same_bytes(name, data):
    """Whatever parses says the same bytes again: no second spelling of a message."""
    item = cbor.decode(market.payload(chain()[name][0]))
    index = data.draw(st.integers(0, len(item) - 1))
    item[index] = data.draw(
        st.none() | st.booleans() | INT | st.text(max_size=5) | st.binary(max_size=33) | st.lists(st.lists(INT))
    )
    spelled = cbor.encode(item)
    try:
        message = market.parse(KINDS[name], spelled)
    except EvidenceError:
        return
    assert market.payload(message) == spelled


@pytest.mark.parametrize("name", KINDS)
def test_golden_messages(name):
    assert json.loads(golden_market.path(name).read_text()) == json.loads(json.dumps(golden_market.document(name)))


@pytest.mark.untraced
@pytest.mark.parametrize("name", KINDS)
def test_every_flipped_bit_is_refused(name):
    data, key = chain()[name][1], KEYS.get(name, MARKET_KEY).public
    for bit in range(8 * len(data)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EvidenceError):
            market.read(KINDS[name], bytes(wrong), key)


CDDL = Validator(DOCS / "market.cddl")


@pytest.mark.parametrize("name", KINDS)
def test_messages_are_what_the_cddl_says(name):
    message, data = chain()[name]
    rule = "dispatch" if name == "confirmation" else name
    assert CDDL.validate(market.payload(message), root_type=f"{rule}-payload").valid
    assert CDDL.validate(data, root_type=f"{rule}-message").valid
    for index, _ in enumerate(message):
        item = cbor.decode(market.payload(message))
        item[1 + index] = None
        assert not CDDL.validate(cbor.encode(item), root_type=f"{rule}-payload").valid


def test_the_documents_table_is_that_of_the_code():
    assert rounds_table() in (DOCS / "market.md").read_text(), "python -m energybid.agent.rounds prints it"


BID = chain()["bid"][0]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (ROUND._replace(currency="usd"), "currency out of bounds"),
        (ROUND._replace(duration_ms=0, decimals=10), "duration_ms, decimals out of bounds"),
        (ROUND._replace(pricing=2), "pricing out of bounds"),
        (ROUND._replace(programme=""), "programme out of bounds"),
        (ROUND._replace(gate_ms=ROUND.begins_ms + 1), "out of order"),
        (ROUND._replace(least_ticks=1, most_ticks=0), "out of order"),
        (PRICES._replace(ticks=()), "ticks out of bounds"),
        (PRICES._replace(ticks=(0,) * 401), "ticks out of bounds"),
        (PRICES._replace(ticks=(1, TICKS_MAX + 1)), "ticks out of bounds"),
        (PRICES._replace(ticks=7), "ticks out of bounds"),
        (PRICES._replace(curve=2, step_ms=0), "curve, step_ms out of bounds"),
        (PRICES._replace(counter=0), "counter out of bounds"),
        (PRICES._replace(curve=1), "have not begun"),
        (BID._replace(version=0), "version out of bounds"),
        (BID._replace(steps=((1, 5, True), (2, 5, True))), "by falling price"),
        (BID._replace(steps=((1, 0, True),)), "steps out of bounds"),
        (BID._replace(steps=((1, 1, 1),)), "steps out of bounds"),
        (BID._replace(steps=((1, 1, True),) * (STEPS_MAX + 1)), "at most 192 steps"),
        (BID._replace(schedule_w=-2_501), "schedule is not on its curve"),
        (BID._replace(schedule_w=6_501), "schedule is not on its curve"),
        (BID._replace(schedule_w=2_500), "schedule is not on its curve"),  # a part of an all-or-nothing step
    ],
)
def test_what_is_out_of_bounds_is_neither_sent_nor_read(message, words):
    with pytest.raises(EvidenceError, match=words):
        market.sign(message, MARKET_KEY)
    with pytest.raises(EvidenceError, match=words):
        market.parse(type(message), market.payload(message))


def test_the_longest_bid_fits_a_message():
    steps = tuple((TICKS_MAX - n, 10**6, True) for n in range(STEPS_MAX))
    long = BID._replace(steps=steps, origin="a" * 64 + "/" + "b" * 64, market="c" * 64 + "/" + "d" * 64)
    assert market.read(Bid, market.sign(long, GATEWAY_KEY), GATEWAY_KEY.public) == long


def test_the_most_prices_fit_a_message():
    long = PRICES._replace(
        market="c" * 64 + "/" + "d" * 64, counter=2**63 - 1, time_ms=2**63 - 1, begins_ms=2**62, step_ms=86_400_000,
        ticks=(-TICKS_MAX,) * market.PRICES_MAX,
    )  # fmt: skip
    assert market.read(Prices, market.sign(long, MARKET_KEY), MARKET_KEY.public) == long


def test_real_time_prices_are_of_steps_that_have_begun():
    last_begins_ms = PRICES.ends_ms - PRICES.step_ms
    made = PRICES._replace(curve=PriceCurve.REAL_TIME, time_ms=last_begins_ms)
    assert market.parse(Prices, market.payload(made)) == made
    with pytest.raises(EvidenceError, match="have not begun"):
        market.parse(Prices, market.payload(made._replace(time_ms=last_begins_ms - 1)))


def test_a_step_of_another_shape_is_refused():
    item = cbor.decode(market.payload(BID))
    for steps in ("no", [1], [[1, 2]]):
        with pytest.raises(EvidenceError, match="steps are arrays"):
            market.parse(Bid, cbor.encode([*item[:-1], steps]))
    for payload in (cbor.encode([]), cbor.encode(1), cbor.encode(["energybid other 1"])):
        with pytest.raises(EvidenceError, match="no message of a market"):
            market.kind_of(payload)


@given(TICKS, st.integers(0, 9))
def test_prices_are_exact(ticks, decimals):
    assume(ticks)
    assert str(market.price(ticks, decimals).scaleb(decimals).to_integral_value()) == str(ticks)
    assert market.price(-1234, 2) == -market.price(1234, 2)
    assert str(market.price(1234, 2)) == "12.34"
