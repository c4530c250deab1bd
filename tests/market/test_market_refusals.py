"""Of all kinds nothing counts but what the market signed, for this gateway, once: everything else is refused.

Rounds and prices are what stands behind a gateway's subscriptions, ``market.read`` what stands behind the market's.
"""

import asyncio
import copy
from itertools import product

import bidding_site
import pytest
from bidding_site import EVERY, TOPICS
from energybid.agent.market.book import PriceBook
from energybid.agent.rounds import Reason, RefusedMessageError, Rounds, State
from energybid.core import cose
from energybid.core.cose import ES256, PrivateKey
from energybid.core.entries import MarketKind, MarketReason
from energybid.core.errors import EvidenceError
from energybid.sync import market
from energybid.sync.market import Award, Bid, Confirmation, PriceCurve, Prices, Round, Statement
from golden_market import BEGINS_MS, GATEWAY_KEY, MARKET, MARKET_KEY, MINUTE_MS, ORIGIN, PRICES, ROUND, chain
from hypothesis import given, settings
from hypothesis import strategies as st

STRANGER = PrivateKey.from_entropy(bytes(range(7, 55)))
ENDS_MS = BEGINS_MS + ROUND.duration_ms
NOW_MS = {Round: ROUND.time_ms, Award: BEGINS_MS - MINUTE_MS, Statement: ENDS_MS + 5, Prices: BEGINS_MS}


class Gateway:
    """What a gateway keeps of a market."""

    def __init__(self, key=MARKET_KEY):
        announced = market.sign(ROUND, key)
        self.bid = chain()["bid"][0]._replace(round_hash=market.digest(announced))
        self.bidden = market.sign(self.bid, GATEWAY_KEY)
        awarded = market.sign(chain()["award"][0]._replace(bid_hash=market.digest(self.bidden)), key)
        stated = market.sign(chain()["statement"][0]._replace(award_hash=market.digest(awarded)), key)
        self.genuine = {Round: announced, Award: awarded, Statement: stated, Prices: market.sign(PRICES, key)}
        self.rounds = Rounds(MARKET, ORIGIN, key.public)
        self.book = PriceBook(MARKET, key.public)

    def take(self, kind, message, *, retained=False):
        """A message on the topic of a kind, when it would be in time."""
        now_ms = NOW_MS[kind]
        if kind is Prices:
            return self.book.take(message, now_ms)
        self.rounds.advance(now_ms)
        if kind is Round:
            return self.rounds.announced(message, now_ms)
        if kind is Award:
            return self.rounds.awarded(message, now_ms, retained=retained)
        return self.rounds.stated(message, retained=retained)

    def up_to(self, kind):
        """Everything that comes before a message of a kind, which is returned, not taken."""
        if kind in {Award, Statement}:
            self.take(Round, self.genuine[Round])
            self.rounds.bid_made(self.bid, self.bidden)
        if kind is Statement:
            self.take(Award, self.genuine[Award])
        return self.genuine[kind]

    def state(self):
        return copy.deepcopy((self.rounds.known, self.rounds._counters, self.rounds._last_number, self.book.held))

    def refusal(self, kind, message, **how):
        """Why it is refused; nothing may change by it."""
        self.rounds.advance(NOW_MS[kind])
        before = self.state()
        with pytest.raises(RefusedMessageError) as refusal:
            self.take(kind, message, **how)
        assert self.state() == before
        return refusal.value.reason


@pytest.mark.untraced
@pytest.mark.parametrize("kind", NOW_MS)
def test_a_flipped_bit_of_any_message_is_refused_and_then_the_message_is_taken(kind):
    gateway = Gateway()
    message = gateway.up_to(kind)
    gateway.rounds.advance(NOW_MS[kind])
    before = gateway.state()
    for bit in range(8 * len(message)):
        wrong = bytearray(message)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RefusedMessageError) as refusal:
            gateway.take(kind, bytes(wrong))
        assert refusal.value.reason is Reason.UNVERIFIED
    assert gateway.state() == before
    gateway.take(kind, message)


@pytest.mark.parametrize("kind", NOW_MS)
def test_what_is_cut_off_longer_or_empty_is_refused(kind):
    gateway = Gateway()
    message = gateway.up_to(kind)
    cut = [message[:size] for size in range(len(message))]
    for wrong in (*cut, message + b"\0", b"\0" + message, message * 2, bytes(4096), bytes(70_000)):
        with pytest.raises(RefusedMessageError) as refusal:
            gateway.take(kind, wrong)
        assert refusal.value.reason is Reason.UNVERIFIED
    gateway.take(kind, message)


@pytest.mark.parametrize("kind", NOW_MS)
def test_another_key_signs_in_vain(kind):
    gateway = Gateway()
    message = gateway.up_to(kind)
    genuine = market.read(kind, message, MARKET_KEY.public)
    kid, payload = cose.peek(message)
    forged = [market.sign(genuine, key) for key in (STRANGER, GATEWAY_KEY)]
    forged.append(cose.message(cose.EDDSA, kid, payload, cose.sign(STRANGER, payload)))
    for wrong in forged:
        assert gateway.refusal(kind, wrong) is Reason.UNVERIFIED
    gateway.take(kind, message)


@pytest.mark.parametrize(("kind", "other"), [pair for pair in product(NOW_MS, NOW_MS) if pair[0] is not pair[1]])
def test_a_message_on_the_topic_of_another_kind_is_refused(kind, other):
    message = Gateway().up_to(other)
    gateway = Gateway()
    gateway.up_to(kind)
    assert gateway.refusal(kind, message) is Reason.UNVERIFIED


@pytest.mark.parametrize(
    ("kind", "fields", "reason"),
    [
        (Round, {"market": "acme/other"}, Reason.FOREIGN),
        (Award, {"market": "other/flex"}, Reason.FOREIGN),
        (Award, {"origin": "acme/gw-8"}, Reason.FOREIGN),
        (Award, {"number": 41}, Reason.UNKNOWN),
        (Award, {"bid_hash": bytes(32)}, Reason.OTHER_BID),
        (Award, {"net_w": 1_501}, Reason.NOT_OFFERED),
        (Award, {"ticks": 100_001}, Reason.NOT_OFFERED),
        (Award, {"verdict": 1}, Reason.NOT_OFFERED),
        (Statement, {"market": "other/flex"}, Reason.FOREIGN),
        (Statement, {"origin": "acme/gw-8"}, Reason.FOREIGN),
        (Statement, {"number": 43}, Reason.UNKNOWN),
        (Statement, {"award_hash": bytes(32)}, Reason.OTHER_AWARD),
        (Prices, {"market": "acme/other"}, Reason.FOREIGN),
    ],
)
def test_what_the_market_signed_for_somebody_or_something_else_is_refused(kind, fields, reason):
    gateway = Gateway()
    message = gateway.up_to(kind)
    foreign = market.sign(market.read(kind, message, MARKET_KEY.public)._replace(**fields), MARKET_KEY)
    assert gateway.refusal(kind, foreign) is reason
    gateway.take(kind, message)


@pytest.mark.parametrize("kind", [Award, Statement])
def test_what_the_broker_retained_is_refused(kind):
    gateway = Gateway()
    message = gateway.up_to(kind)
    assert gateway.refusal(kind, message, retained=True) is Reason.RETAINED
    gateway.take(kind, message)


@pytest.mark.parametrize("kind", [Round, Award, Statement])
def test_what_comes_again_is_refused_also_after_a_restart(kind):
    gateway = Gateway()
    message = gateway.up_to(kind)
    gateway.take(kind, message)
    again = gateway.refusal(kind, message)
    assert again is (Reason.OLD_ROUND if kind is Round else Reason.REPLAYED)
    genuine = market.read(kind, message, MARKET_KEY.public)
    changed = genuine._replace(time_ms=genuine.time_ms - 1)  # signed anew, with the old number or counter
    assert gateway.refusal(kind, market.sign(changed, MARKET_KEY)) is again
    restarted = Gateway()
    restarted.rounds.restore(logged(kind))
    assert restarted.refusal(kind, message) is again


def logged(last):
    """What the log holds up to a message of a kind."""
    names = ("round", "bid", "award", "statement")[: 1 + [Round, Bid, Award, Statement].index(last)]
    times = {"round": NOW_MS[Round], "bid": NOW_MS[Round], "award": NOW_MS[Award], "statement": NOW_MS[Statement]}
    return [(times[name], chain()[name][1]) for name in names]


def test_prices_that_come_again_are_no_news_and_older_ones_are_refused():
    gateway = Gateway()
    message = gateway.up_to(Prices)
    gateway.take(Prices, message)
    before = gateway.state()
    assert gateway.take(Prices, message) is None
    assert gateway.state() == before
    for fields in ({"counter": 364}, {"ticks": (1,)}, {"counter": 1, "time_ms": BEGINS_MS + 1}):
        assert gateway.refusal(Prices, market.sign(PRICES._replace(**fields), MARKET_KEY)) is Reason.REPLAYED
    lately = PRICES._replace(curve=PriceCurve.REAL_TIME, counter=1, time_ms=PRICES.ends_ms)
    far = lately._replace(time_ms=BEGINS_MS + 86_400_000)
    assert gateway.refusal(Prices, market.sign(far, MARKET_KEY)) is Reason.TOO_FAR
    lately = lately._replace(begins_ms=BEGINS_MS - 4 * PRICES.step_ms, time_ms=BEGINS_MS)
    assert gateway.take(Prices, market.sign(lately, MARKET_KEY)) == lately, "each curve has a counter of its own"


@pytest.mark.parametrize("kind", [Round, Bid, Award, Confirmation, Statement, Prices])
def test_the_other_form_of_a_signature_is_refused(kind):
    """Without the key, an ES256 signature can be turned into another that holds: the message's name would change."""
    key = PrivateKey.from_entropy(bytes(range(48)), ES256)
    message = next(message for message, _ in chain().values() if isinstance(message, kind))
    for _ in range(8):  # the signer makes one form or the other
        signed = market.sign(message, key)
        assert market.read(kind, signed, key.public) == message
    s = int.from_bytes(signed[-32:], "big")
    mirrored = signed[:-32] + (cose._P256_ORDER - s).to_bytes(32, "big")
    cose.verify(mirrored, key.public)
    with pytest.raises(EvidenceError, match="one form"):
        market.read(kind, mirrored, key.public)


@pytest.mark.parametrize("key", [MARKET_KEY, PrivateKey.from_entropy(bytes(range(100, 148)), ES256)])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_comes_in_whatever_order_only_the_genuine_messages_count_and_once(key, data):
    """A day on an open broker: the genuine messages in their order, anything between them."""
    gateway, taken = Gateway(key), []
    gateway.up_to(Award)
    genuine = list(gateway.genuine.items())
    noise = st.one_of(
        st.tuples(st.sampled_from(list(NOW_MS)), st.binary(max_size=300)),
        st.builds(lambda kind, pair: (kind, pair[1]), st.sampled_from(list(NOW_MS)), st.sampled_from(genuine)),
        st.builds(
            lambda pair, at, x: (pair[0], pair[1][: at % len(pair[1])] + bytes([x]) + pair[1][at % len(pair[1]) + 1 :]),
            st.sampled_from(genuine),
            st.integers(0, 4095),
            st.integers(0, 255),
        ),
    )
    sent = [*data.draw(st.lists(noise, max_size=12)), *genuine[1:], *data.draw(st.lists(noise, max_size=12))]
    for kind, message in sent:
        try:
            if gateway.take(kind, message) is not None:
                taken.append((kind, message))
        except RefusedMessageError:
            continue
    assert set(taken) <= set(genuine)
    assert len(taken) == len(set(taken))
    assert gateway.rounds.known[42].state in {State.SETTLED, State.CLOSED}


@pytest.mark.untraced
def test_an_agent_refuses_them_all_and_its_log_accounts_for_each(tmp_path):
    """Over a broker, into the real agent: altered, forged, foreign and replayed messages among the genuine ones."""

    async def scene(site):
        sent = 0

        async def hostile(topic, genuine, kind):
            """Everything that a message may be turned into; paced, for more than a few that wait are dropped."""
            nonlocal sent
            flips = [bytearray(genuine) for _ in range(0, 8 * len(genuine), 11)]
            for number, wrong in enumerate(flips):
                wrong[number * 11 // 8] ^= 1 << number * 11 % 8
            read = market.read(kind, genuine, MARKET_KEY.public)
            forged = [market.sign(read, STRANGER), market.sign(read._replace(market="t/other"), MARKET_KEY), b""]
            if kind in {Award, Statement}:
                forged.append(market.sign(read._replace(origin="t/other"), MARKET_KEY))
            for wrong in (*flips, *forged, genuine[:-1], genuine + b"\0"):
                site.publish(topic, bytes(wrong))
                await asyncio.sleep(0.02)
                sent += 1

        at_ms = site.clock.now_ns() // 1_000_000 + 30_000
        made = ROUND._replace(market=bidding_site.MARKET, number=1, time_ms=at_ms, gate_ms=at_ms + MINUTE_MS)
        made = made._replace(begins_ms=at_ms + 2 * MINUTE_MS, duration_ms=MINUTE_MS)
        announced = market.sign(made, MARKET_KEY)
        await hostile(EVERY.round, announced, Round)
        site.publish(EVERY.round, announced)
        await asyncio.sleep(1)
        awarded = site.award(send=False)
        await hostile(TOPICS.award, awarded, Award)
        assert site.state() == "bid"
        site.publish(TOPICS.award, awarded)
        await asyncio.sleep(1)
        assert site.state() == "awarded"
        await hostile(TOPICS.award, awarded, Award)
        site.publish(TOPICS.award, awarded)
        sent += 1
        await site.until(220)
        stated = site.state_money(send=False)
        await hostile(TOPICS.statement, stated, Statement)
        assert site.state() == "delivered"
        site.publish(TOPICS.statement, stated)
        site.publish(TOPICS.statement, stated)
        sent += 1
        await asyncio.sleep(1)
        status = site.bidder.status()
        assert site.state() == "settled"
        assert (sum(status["refused"].values()), status["dropped"]) == (sent, 0)
        assert status["refused"]["replayed"] == 2
        return sent, site.entries

    sent, logged = bidding_site.play(tmp_path / "j", scene)
    assert sent > 500
    taken = [entry.kind for entry in logged if entry.reason == MarketReason.NONE]
    names = MarketKind.ROUND, MarketKind.BID, MarketKind.AWARD, MarketKind.CONFIRMATION, MarketKind.STATEMENT
    assert taken == list(names)
    assert sum(entry.missed + (entry.reason != MarketReason.NONE) for entry in logged) == sent - 1, (
        "of all but the last one"
    )
