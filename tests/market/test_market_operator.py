"""The market itself: what it says when, what it takes, what it refuses, and that it goes on after it was killed."""

import json
from dataclasses import replace
from decimal import Decimal

import apsw
import pytest
from energybid.bidding import baseline_rules
from energybid.bidding.curve import TICKS_MAX, Step
from energybid.core.errors import ConfigurationError, JournalError
from energybid.core.ports import Message
from energybid.simulator.market.operator import DAY_AHEAD_HOURS, LAPSED, REAL_TIME_STEPS, Event, Operator
from energybid.simulator.market.series import DAY_MS, HOUR_MS, MadeUp, Recorded, Scaled, parse_csv
from energybid.simulator.market.store import Store
from energybid.simulator.market.system import headend_logs, keep_bundle
from energybid.simulator.market.terms import Rest, Terms
from energybid.simulator.market.view import Rounds
from energybid.sync import market
from energybid.sync.market import Award, Conduct, Prices, Pricing, Round, Statement, Verdict
from energybid.sync.recompute import verify
from energybid.sync.topics import market_topics
from hand_made import EXPORT, HEADEND_KEY, IMPORT, MARKET, MARKET_KEY, STEPS, Gateway

T0 = 1_767_225_600_000
MINUTE = 60_000
FLAT = Recorded([(Decimal(60), Decimal("60.5"))] * 288)
TERMS = Terms(
    name=MARKET,
    period_ms=MINUTE,
    announce_ms=50_000,
    gate_ms=15_000,
    currency="EUR",
    decimals=2,
    least_ticks=-50_000,
    most_ticks=400_000,
    pricing=Pricing.UNIFORM,
    programme="none",
    programme_file=baseline_rules.text_of("none"),
    interval_ms=MINUTE,
    prices=Scaled(FLAT),
    rest=Rest(power_w=100_000, spread_ticks=2_000, steps=40),
    settle_every_ms=1_000,
)
EVERY = market_topics(MARKET)


class Market:
    """An operator over a database that outlives it."""

    def __init__(self, folder, *gateways, terms=TERMS, headend=False):
        self.path, self.folder = str(folder / "market.db"), folder
        self.terms, self.gateways, self.headend = terms, gateways, headend
        self.begin()

    def begin(self):
        """Start, or start again after a kill."""
        self.store = Store.open(apsw.Connection(self.path), self.path)
        bundles, logs = self.folder / "bundles", str(self.folder / "headend.db")
        self.operator = Operator(
            self.store,
            self.terms,
            [gateway.member for gateway in self.gateways],
            MARKET_KEY,
            open_logs=(lambda: headend_logs(logs)) if self.headend else None,
            keep_bundle=(lambda name, data: keep_bundle(bundles, name, data)) if self.headend else None,
        )

    def advance(self, now_ms):
        return self.operator.advance(now_ms)

    def take(self, message, now_ms):
        (event,) = self.operator.take([(message, now_ms)])
        return event

    def sent(self, now_ms):
        """What it has to say, by topic; the broker takes it."""
        letters = self.store.letters(now_ms)
        self.store.sent(letters, now_ms)
        return {letter.topic: letter.payload for letter in letters}

    def announced(self, now_ms):
        self.advance(now_ms)
        return self.sent(now_ms)[EVERY.round]


@pytest.fixture
def gateways():
    return [Gateway(1), Gateway(2)]


@pytest.fixture
def place(tmp_path, gateways):
    return Market(tmp_path, *gateways)


def read(kind, message):
    return market.read(kind, message, MARKET_KEY.public)


def kinds(events):
    return [event.kind for event in events]


# ---------------------------------------------------------------- what it says


def test_it_announces_each_round_once_and_keeps_its_prices_at_the_broker(place):
    assert kinds(place.advance(T0)) == ["prices", "prices"]
    assert place.operator.next_ms(T0) == T0 + 10_000
    assert kinds(place.advance(T0 + 10_000)) == ["announced"]
    letters = place.store.letters(T0 + 10_000)
    assert all(letter.retain for letter in letters)
    made = read(Round, place.sent(T0 + 10_000)[EVERY.round])
    assert made == Round(
        MARKET, 1, T0 + 10_000, T0 + 45_000, T0 + MINUTE, MINUTE, "EUR", 2, -50_000, 400_000, 0, "none"
    )  # fmt: skip
    assert place.advance(T0 + 11_000) == []
    assert place.sent(T0 + 11_000) == {}
    assert kinds(place.advance(T0 + 70_000)) == ["prices", "announced", "cleared"]
    assert read(Round, place.sent(T0 + 70_000)[EVERY.round]).number == 2


def test_prices_say_the_day_ahead_and_what_was_cleared(place):
    place.advance(T0)
    sent = place.sent(T0)
    ahead, lately = read(Prices, sent[EVERY.day_ahead]), read(Prices, sent[EVERY.real_time])
    assert (ahead.begins_ms, ahead.step_ms, ahead.ticks) == (T0, HOUR_MS, (6_000,) * DAY_AHEAD_HOURS)
    assert (lately.ends_ms, lately.ticks) == (T0 + MINUTE, (6_050,) * REAL_TIME_STEPS)
    announced = place.announced(T0 + 10_000)
    place.take(place.gateways[0].bid(announced), T0 + 20_000)
    cleared = place.advance(T0 + 45_001)[-1].facts["price"]
    place.advance(T0 + MINUTE)
    lately = read(Prices, place.sent(T0 + MINUTE)[EVERY.real_time])
    assert lately.counter == 2
    assert str(market.price(lately.ticks[-1], 2)) == cleared != "60.50"
    assert EVERY.day_ahead not in place.sent(T0 + 20 * HOUR_MS)
    place.advance(T0 + 25 * HOUR_MS)
    assert read(Prices, place.sent(T0 + 25 * HOUR_MS)[EVERY.day_ahead]).counter == 2


def test_a_round_is_not_announced_when_little_of_its_time_to_bid_is_left(place):
    place.advance(T0 + 38_000)
    assert EVERY.round not in place.sent(T0 + 38_000)
    assert read(Round, place.announced(T0 + 70_000)).begins_ms == T0 + 2 * MINUTE


# ---------------------------------------------------------------- bids


def test_the_highest_version_before_the_gate_counts(place):
    first, second = place.gateways
    announced = place.announced(T0 + 10_000)
    assert place.take(first.bid(announced, version=3), T0 + 20_000).kind == "bid"
    later = first.bid(announced, version=4, schedule_w=0)
    assert place.take(later, T0 + 45_000).facts["version"] == 4
    assert place.take(second.bid(announced, schedule_w=-1_000), T0 + 30_000).kind == "bid"
    (cleared,) = place.advance(T0 + 45_001)
    assert [award["gateway"] for award in cleared.facts["awards"]] == [second.origin, first.origin], "as they came"
    sent = place.sent(T0 + 45_001)
    award = read(Award, sent[first.topics.award])
    assert award.bid_hash == market.digest(later.payload)
    assert (award.verdict, award.counter, award.origin) == (Verdict.AWARDED, 1, first.origin)
    assert market.told(market.Bid, later.payload).curve.fits(award.net_w, award.ticks, 0)
    nets = [each["net_w"] for each in cleared.facts["awards"]]
    assert cleared.facts["rest_w"] + sum(nets) == 0
    assert kinds(place.advance(T0 + 46_000)) == [], "a round is cleared once"


REFUSED = {
    "unverified": (lambda g, a: g.bid(a, key=MARKET_KEY), "key"),
    "of another gateway": (lambda g, a: g.bid(a, origin="demo/gw-2"), "another gateway"),
    "of another market": (lambda g, a: g.bid(a, market="demo/other"), "for market demo/other"),
    "of no round": (lambda g, a: g.bid(a, number=9), "not known"),
    "of another announcement": (lambda g, a: g.bid(a, round_hash=bytes(32)), "another announcement"),
    "already expired": (lambda g, a: g.bid(a, expires_ms=T0 + 45_000), "expires before"),
    "of the future": (lambda g, a: g.bid(a, time_ms=T0 + 45_001), "by its own time"),
    "retained": (lambda g, a: g.bid(a)._replace(retained=True), "retained"),
    "not signed": (lambda g, a: g.sent("bid", b"\xd2\x84"), ""),
    "elsewhere": (lambda g, a: g.sent("award", g.bid(a).payload), "no gateway of this market"),
    "unknown": (lambda g, a: Gateway(7).bid(a), "no gateway of this market"),
    "on no topic": (lambda g, a: Message("somewhere/else", g.bid(a).payload, retained=False), "no gateway"),
    "a confirmation": (lambda g, a: g.sent("bid", b""), ""),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_count_is_refused_and_changes_nothing(place, what):
    make, says = REFUSED[what]
    announced = place.announced(T0 + 10_000)
    event = place.take(make(place.gateways[0], announced), T0 + 20_000)
    assert event.kind == "refused"
    assert says in event.facts["why"]
    assert place.store.bids(1) == []


def test_what_was_there_before_is_refused_whatever_its_version(place):
    gateway = place.gateways[0]
    announced = place.announced(T0 + 10_000)
    bid = gateway.bid(announced, version=2)
    assert place.take(bid, T0 + 20_000).kind == "bid"
    for again in (bid, gateway.bid(announced, version=1, floor_w=-500)):
        assert "was there before" in place.take(again, T0 + 21_000).facts["why"]
    assert place.store.bid(1, gateway.origin).message == bid.payload


def test_a_late_bid_is_answered_once_that_it_does_not_count(place):
    gateway = place.gateways[0]
    announced = place.announced(T0 + 10_000)
    late = gateway.bid(announced)
    assert "after the gate" in place.take(late, T0 + 45_001).facts["why"]
    award = read(Award, place.sent(T0 + 45_001)[gateway.topics.award])
    assert (award.verdict, award.net_w, award.ticks) == (Verdict.REFUSED, 1_000, 0)
    assert place.take(late, T0 + 45_002).kind == "refused"
    assert place.sent(T0 + 45_002) == {}
    place.advance(T0 + 46_000)
    assert gateway.topics.award not in place.sent(T0 + 46_000)
    assert place.take(late, T0 + MINUTE).kind == "refused"


def test_a_later_bid_after_the_gate_leaves_the_one_that_counts(place):
    gateway = place.gateways[0]
    announced = place.announced(T0 + 10_000)
    counted = gateway.bid(announced)
    place.take(counted, T0 + 20_000)
    assert place.take(gateway.bid(announced, version=2), T0 + 45_001).kind == "refused"
    place.advance(T0 + 45_001)
    award = read(Award, place.sent(T0 + 45_001)[gateway.topics.award])
    assert award.bid_hash == market.digest(counted.payload)


# ---------------------------------------------------------------- clearing


def test_a_bid_that_expired_before_it_was_cleared_is_refused(place):
    gateway = place.gateways[0]
    announced = place.announced(T0 + 10_000)
    place.take(gateway.bid(announced, expires_ms=T0 + 45_500), T0 + 20_000)
    place.advance(T0 + 46_000)
    assert read(Award, place.sent(T0 + 46_000)[gateway.topics.award]).verdict == Verdict.REFUSED


def test_without_anybody_to_trade_with_the_schedule_holds(tmp_path, gateways):
    place = Market(tmp_path, *gateways, terms=replace(TERMS, rest=Rest(power_w=0, spread_ticks=1, steps=2)))
    gateway = gateways[0]
    announced = place.announced(T0 + 10_000)
    place.take(gateway.bid(announced, floor_w=500, steps=(), schedule_w=500), T0 + 20_000)
    (cleared,) = place.advance(T0 + 45_001)
    assert cleared.facts["outcome"] == "shortage"
    award = read(Award, place.sent(T0 + 45_001)[gateway.topics.award])
    assert (award.verdict, award.net_w, award.ticks) == (Verdict.NO_TRADE, 500, 0)
    assert place.store.open_rounds() == []


def test_an_award_that_could_not_be_sent_before_the_interval_is_dropped(place):
    gateway = place.gateways[0]
    place.take(gateway.bid(place.announced(T0 + 10_000)), T0 + 20_000)
    place.advance(T0 + 45_001)
    assert gateway.topics.award not in place.sent(T0 + MINUTE)
    assert gateway.topics.award not in place.sent(T0 + 45_002), "it is gone, whatever the clock says"


def test_the_rest_of_the_market_is_a_curve_around_its_price():
    bid = Rest(power_w=100, spread_ticks=10, steps=4).bid(500)
    assert bid.curve.floor_w == -100
    assert [step.ticks for step in bid.curve.steps] == [508, 503, 498, 493]
    assert bid.curve.ceiling_w == 100
    assert bid.curve.offers(bid.schedule_w)
    edge = Rest(power_w=3, spread_ticks=10, steps=40).bid(TICKS_MAX)
    assert edge.curve.ceiling_w == 3
    assert len(edge.curve.steps) == 6


# ---------------------------------------------------------------- killed


def test_it_goes_on_where_it_was_after_a_kill_at_any_time(place):
    gateway = place.gateways[0]
    announced = place.announced(T0 + 10_000)
    place.begin()
    place.take(gateway.bid(announced), T0 + 20_000)
    place.begin()
    assert kinds(place.advance(T0 + 45_001)) == ["cleared"]
    place.begin()
    assert place.advance(T0 + 45_002) == []
    award = read(Award, place.sent(T0 + 45_002)[gateway.topics.award])
    assert award.counter == 1
    place.begin()
    place.take(gateway.bid(place.announced(T0 + 70_000)), T0 + 80_000)
    place.begin()
    place.advance(T0 + 105_001)
    sent = place.sent(T0 + 105_001)
    assert read(Award, sent[gateway.topics.award]).counter == 2
    assert place.store.round(2).outcome == "cleared"


def test_a_round_that_was_slept_through_lapses(place):
    gateway = place.gateways[0]
    place.take(gateway.bid(place.announced(T0 + 10_000)), T0 + 20_000)
    place.begin()
    events = place.advance(T0 + 2 * MINUTE)
    assert Event("cleared", {"round": 1, "outcome": LAPSED, "price": None, "awards": []}) in events
    assert gateway.topics.award not in place.sent(T0 + 2 * MINUTE)
    assert place.store.open_rounds() == []


def test_a_broker_that_lost_what_it_kept_gets_it_again(place):
    before = place.announced(T0 + 10_000)
    assert place.sent(T0 + 10_000) == {}
    place.store.resend()
    again = place.sent(T0 + 10_001)
    assert again[EVERY.round] == before
    assert set(again) == {EVERY.round, EVERY.day_ahead, EVERY.real_time}


def test_old_rounds_are_forgotten(place):
    place.take(place.gateways[0].bid(place.announced(T0 + 10_000)), T0 + 20_000)
    place.advance(T0 + 45_001)
    assert place.store.awards(1)
    place.advance(T0 + 31 * DAY_MS)
    assert place.store.round(1) is None
    assert place.store.awards(1) == place.store.bids(1) == []


def test_another_programs_database_is_refused(tmp_path):
    path = str(tmp_path / "other.db")
    database = apsw.Connection(path)
    database.execute("CREATE TABLE t (x)")
    with pytest.raises(JournalError, match="no database of a market"):
        Store.open(database, path)
    with pytest.raises(JournalError, match="no such table"):
        Store(apsw.Connection(":memory:"), "empty").bids(1)


# ---------------------------------------------------------------- settling

BEGINS = T0 + MINUTE


@pytest.fixture
def delivered(tmp_path, gateways):
    """A market with a round that two gateways were awarded, and nobody settled yet."""
    place = Market(tmp_path, *gateways, headend=True)
    announced = place.announced(T0 + 10_000)
    for gateway in gateways:
        assert place.take(gateway.bid(announced), T0 + 20_000).kind == "bid"
    place.advance(T0 + 45_001)
    sent = place.sent(T0 + 45_001)
    for gateway in gateways:
        gateway.awards.append(sent[gateway.topics.award])
    return place


def keys(role, _kid):
    gateway = Gateway(1)
    return {
        "market": MARKET_KEY.public, "gateway": gateway.key.public, "log": gateway.log_key.public,
        "headend": HEADEND_KEY.public,
    }[role]  # fmt: skip


def test_an_award_is_settled_from_the_readings_and_anybody_recomputes_it(delivered, gateways):
    first = gateways[0]
    end_ms = BEGINS + MINUTE
    assert delivered.take(first.confirmation(first.awards[0], end_ms), end_ms).facts["conduct"] == "followed"
    assert kinds(delivered.advance(end_ms + 2_000)) == ["prices"], "there are no readings yet"
    first.log(delivered.folder / "headend.db", T0, [(1_000 + 2 * n, n) for n in range(14)])
    assert delivered.advance(end_ms + 2_500) == [], "it is not tried again at once"
    (event,) = delivered.advance(end_ms + 3_000)
    schedule_w, net_w = 1_000, read(Award, first.awards[0]).net_w
    assert event.facts["awarded_wh"] == round((schedule_w - net_w) / 60)
    assert event.facts["baseline_wh"] == round(schedule_w / 60)
    assert event.facts["actual_wh"] == 6, "12 Wh of import and 6 Wh of export"
    statement = read(Statement, delivered.sent(end_ms + 3_000)[first.topics.statement])
    assert (statement.counter, statement.delivered_wh) == (1, 11)
    assert str(market.price(statement.amount, 2)) == event.facts["amount"]
    outcome = verify((delivered.folder / "bundles" / "1-demo-gw-1.bundle").read_bytes(), keys)
    assert outcome.agrees, outcome.checks
    assert outcome.proven.confirmation.conduct == Conduct.FOLLOWED
    assert [award.done for award in delivered.store.awards(1)] == [True, False]
    assert delivered.operator.next_ms(end_ms + 3_000) == end_ms + 10_000, "of the second the confirmation is waited for"


def test_a_round_that_nobody_can_settle_is_given_up(delivered, gateways):
    end_ms = BEGINS + MINUTE
    late_ms = end_ms + TERMS.settle_within_ms + 1
    assert kinds(delivered.advance(end_ms + 15_000)) == ["prices", "announced"]
    events = [event for event in delivered.advance(late_ms) if event.kind == "unsettled"]
    assert [event.facts["gateway"] for event in events] == [gateway.origin for gateway in gateways]
    assert delivered.store.round(1).done
    assert delivered.store.awards(1)[0].statement is None


def test_a_hole_in_the_readings_can_not_be_settled(delivered, gateways):
    first = gateways[0]
    first.log(delivered.folder / "headend.db", T0, [(1_000, 0), (1_300, 0)], every_ms=300_000)
    events = delivered.advance(BEGINS + MINUTE + 15_000)
    (event,) = [event for event in events if event.kind == "unsettled"]
    assert event.facts["gateway"] == first.origin
    assert "not known" in event.facts["why"]


def test_a_gateway_that_left_the_market_is_not_settled(delivered, gateways):
    delivered.gateways = gateways[1:]
    delivered.begin()
    events = delivered.advance(BEGINS + MINUTE + 15_000)
    (event,) = [event for event in events if event.kind == "unsettled"]
    assert event.facts["why"] == "the gateway is no member any more"


def test_confirmations_are_of_awards_that_were_sent(delivered, gateways):
    first, second = gateways
    end_ms = BEGINS + MINUTE
    for message, says in (
        (first.confirmation(second.awards[0], end_ms, origin=first.origin), "no award of it"),
        (first.confirmation(first.awards[0], end_ms, number=7), "no award of it"),
        (first.confirmation(first.awards[0], end_ms, origin=second.origin), "another gateway"),
    ):
        event = delivered.take(message, end_ms)
        assert event.kind == "refused"
        assert says in event.facts["why"]
    delivered.take(first.confirmation(first.awards[0], end_ms), end_ms)
    again = first.confirmation(first.awards[0], end_ms + 1, conduct=Conduct.FAILED, reason="bus down")
    assert delivered.take(again, end_ms + 1).facts == {
        "round": 1, "gateway": first.origin, "conduct": "failed", "reason": "bus down",
    }  # fmt: skip
    assert delivered.store.awards(1)[0].confirmation == again.payload


# ---------------------------------------------------------------- prices


def test_made_up_prices_repeat_themselves_and_fall_below_zero_at_times():
    series, again = (MadeUp(7, Decimal(60), Decimal(40)) for _ in range(2))
    hours = [series.day_ahead(T0 + n * HOUR_MS) for n in range(24 * 60)]
    steps = [series.real_time(T0 + n * 300_000) for n in range(2_000)]
    assert hours[:48] == [again.day_ahead(T0 + n * HOUR_MS) for n in range(48)]
    assert steps[-1] == again.real_time(T0 + 1_999 * 300_000)
    assert min(hours) < 0 < Decimal(55) < sum(hours) / len(hours) < Decimal(65) < Decimal(100) < max(hours)
    assert max(steps) > Decimal(120)
    assert hours != [MadeUp(8, Decimal(60), Decimal(40)).day_ahead(T0 + n * HOUR_MS) for n in range(24 * 60)]
    fast = Scaled(series, 60, 3_000)
    assert fast.day_ahead(T0) == series.day_ahead(60 * T0 + 3_000)
    assert fast.real_time(T0) == series.real_time(60 * T0 + 3_000)
    assert fast.hour_ms == MINUTE


def test_recorded_prices_come_from_a_table():
    table = "date,interval,real_time_usd_mwh,day_ahead_usd_mwh\n"
    table += "".join(f"2018-01-01,{n},{n}.50,{n // 12}\n" for n in range(24))
    series = parse_csv("prices.csv", table.encode())
    assert series.real_time(T0 + 301_000) == Decimal("1.50")
    assert series.day_ahead(T0 + HOUR_MS + 5) == Decimal(1)
    assert series.real_time(T0 + 2 * HOUR_MS) == Decimal("0.50")


@pytest.mark.parametrize(
    "text",
    ["", "real_time,day_ahead\n", "real_time,other\n1,2\n", "real_time,day_ahead\n1\n", "real_time,day_ahead\nNaN,1\n",
     "real_time,day_ahead\nx,1\n", "\x1f\x8b"],
)  # fmt: skip
def test_what_is_no_table_of_prices_is_refused(text):
    with pytest.raises(ConfigurationError, match=r"prices\.csv"):
        parse_csv("prices.csv", text.encode("latin-1"))


# ---------------------------------------------------------------- the view


def test_a_table_comes_when_the_last_of_a_round_is_settled(place):
    rounds = Rounds()
    awards = [
        {"gateway": f"demo/gw-{n}", "verdict": verdict, "schedule_w": 1_000, "net_w": 200}
        for n, verdict in ((1, "awarded"), (2, "awarded"), (3, "refused"))
    ]
    cleared = {"round": 7, "outcome": "cleared", "price": "60.50", "currency": "EUR", "awards": awards}
    assert rounds.take(Event("cleared", cleared)) == "round 7: cleared at 60.50 EUR/MWh, 3 bids\n"
    money = {"awarded_wh": 13, "delivered_wh": 12, "amount": "0.73", "currency": "EUR"}
    assert rounds.take(Event("settled", {"round": 7, "gateway": "demo/gw-1", **money})) == ""
    text = rounds.take(Event("unsettled", {"round": 7, "gateway": "demo/gw-2", "why": "no readings"}))
    assert [line.split() for line in text.splitlines()[2:]] == [
        ["demo/gw-1", "1000", "200", "13", "12", "Wh", "delivered,", "0.73", "EUR"],
        ["demo/gw-2", "1000", "200", "–", "no", "readings"],
        ["demo/gw-3", "1000", "200", "–", "nothing", "awarded"],
    ]
    late = rounds.take(Event("settled", {"round": 6, "gateway": "demo/gw-1", **money}))
    assert late == "round 6, demo/gw-1: 12 Wh delivered, 0.73 EUR\n"
    assert rounds.take(Event("cleared", {**cleared, "price": None, "awards": []})).endswith("cleared, 0 bids\n")
    assert rounds.take(Event("refused", {"gateway": "x", "why": "y"})) == "refused: x: y\n"
    assert rounds.take(Event("bid", {})) == ""
    assert all(json.dumps(event.facts) for event in place.advance(T0))


def test_registers_are_named_as_the_log_does():
    member = Gateway(1).member
    asked = TERMS.inputs(member)
    assert (asked.imports, asked.exports, asked.interval_ms, asked.loads) == (IMPORT, EXPORT, MINUTE, ())
    assert isinstance(STEPS[0], Step)
