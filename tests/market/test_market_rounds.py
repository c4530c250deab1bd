"""A gateway's rounds: every cell of the table, every reason to refuse, every moment of an outage."""

import pytest
from energybid.agent.rounds import (
    KEPT,
    OPEN_MAX_MS,
    TABLE,
    VERSIONS_KEPT,
    Event,
    Reason,
    RefusedMessageError,
    Rounds,
    State,
)
from energybid.core.errors import EvidenceError
from energybid.sync import market
from energybid.sync.market import Award, Bid, Statement, Verdict
from golden_market import BEGINS_MS, GATEWAY_KEY, MARKET, MARKET_KEY, MINUTE_MS, ORIGIN, ROUND

NOW_MS = ROUND.time_ms
ENDS_MS = BEGINS_MS + ROUND.duration_ms


class Site:
    """A gateway in a market whose messages a test makes at will."""

    def __init__(self, round_=ROUND):
        self.rounds = Rounds(MARKET, ORIGIN, MARKET_KEY.public)
        self.round = round_
        self.log = []
        self.announcement = market.sign(round_, MARKET_KEY)

    @property
    def known(self):
        return self.rounds.known[self.round.number]

    @property
    def state(self):
        return self.known.state

    def announce(self, now_ms=NOW_MS):
        self.rounds.announced(self.announcement, now_ms)
        self.log.append((now_ms, self.announcement))

    def bid(self, version=1, expires_ms=BEGINS_MS, **fields):
        steps = ((9_000, 4_000, True), (8_000, 2_000, False))
        head = MARKET, self.round.number, ORIGIN, market.digest(self.announcement), version
        bid = Bid(*head, NOW_MS, expires_ms, 1_500, -2_500, steps)._replace(**fields)
        self.message = market.sign(bid, GATEWAY_KEY)
        self.rounds.bid_made(bid, self.message)
        self.log.append((NOW_MS, self.message))

    def award(self, **fields):
        award = Award(MARKET, self.round.number, ORIGIN, market.digest(self.message), 1, NOW_MS, 0, 8_750, 1_500)
        return market.sign(award._replace(**fields), MARKET_KEY)

    def take(self, message, now_ms=BEGINS_MS - MINUTE_MS, *, retained=False):
        self.rounds.awarded(message, now_ms, retained=retained)
        self.log.append((now_ms, message))

    def statement(self, **fields):
        head = MARKET, self.round.number, ORIGIN, self.known.award_hash or bytes(32)
        statement = Statement(*head, 1, ENDS_MS + MINUTE_MS, 1_000, 375, 5_469, bytes(32))
        return market.sign(statement._replace(**fields), MARKET_KEY)

    def refused(self, take, *arguments, **keywords):
        before = self.state
        with pytest.raises(RefusedMessageError) as refusal:
            take(*arguments, **keywords)
        assert self.state is before
        return refusal.value.reason


@pytest.fixture
def site():
    made = Site()
    made.announce()
    made.bid()
    return made


def reach(state: State) -> Site:
    """A round in a state, by the shortest way."""
    site = Site()
    site.announce()
    if state is State.ANNOUNCED:
        return site
    if state in {State.SCHEDULED, State.CLOSED}:
        site.rounds.advance(ROUND.gate_ms)
    else:
        site.bid()
    if state in {State.AWARDED, State.DELIVERING, State.OVERRIDDEN, State.DELIVERED, State.SETTLED}:
        site.take(site.award())
    if state is State.OVERRIDDEN:
        site.rounds.give_up(42)
    if state is State.DELIVERING:
        site.rounds.advance(BEGINS_MS)
    if state in {State.CLOSED, State.DELIVERED, State.SETTLED}:
        site.rounds.advance(ENDS_MS)
    if state is State.SETTLED:
        site.rounds.stated(site.statement())
    assert site.state is state
    return site


TIMES = {Event.GATE: ROUND.gate_ms, Event.BEGIN: BEGINS_MS, Event.END: ENDS_MS}


def happen(site: Site, event: Event) -> bool:
    """Make an event happen; False where it was refused."""
    if event in TIMES:
        return (site.known, event) in site.rounds.advance(TIMES[event])
    if event is Event.GIVEN_UP:
        return site.rounds.give_up(42)
    try:
        if event is Event.BID_MADE:
            site.bid(version=2)
        elif event is Event.STATEMENT:
            site.rounds.stated(site.statement(counter=9))
        else:
            verdict = {} if event is Event.AWARD else {"verdict": Verdict.NO_TRADE, "ticks": 0}
            site.take(site.award(counter=9, **verdict))
    except (RefusedMessageError, ValueError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_cell_of_the_table(state, event):
    site = reach(state)
    # Time passes once: what it brought on the way to a state does not come again.
    again = event in site.known.passed
    expected = TABLE[state].get(event)
    if event is Event.BEGIN and event not in site.known.passed and state in {State.ANNOUNCED, State.SCHEDULED}:
        site.rounds.advance(ROUND.gate_ms)
    happened = happen(site, event)
    assert happened == (expected is not None and not again)
    assert site.state is (expected if happened else state)


@pytest.mark.parametrize("state", State)
def test_a_gateway_that_restarts_in_any_state_is_in_it_again(state):
    site = reach(state)
    if state is State.SETTLED:
        site.log.append((ENDS_MS + MINUTE_MS, site.statement()))
    again = Site()
    again.rounds.restore(site.log)
    last_ms = max((TIMES[event] for event in site.known.passed), default=NOW_MS)
    again.rounds.advance(last_ms)
    # That a person overrode an award is not remembered: whoever wants that says so again.
    expected = State.AWARDED if state is State.OVERRIDDEN else state
    assert again.state is expected
    assert again.known.target_w == site.known.target_w


@pytest.mark.parametrize(
    ("until", "expected"),
    [
        (None, State.CLOSED),  # the uplink is gone before a bid was made
        ("bid", State.CLOSED),  # after it: no award comes
        ("award", State.DELIVERED),  # after the award: it holds, and is followed
    ],
)
def test_an_outage_in_any_phase_ends_in_one_defined_state(until, expected):
    site = Site()
    site.announce()
    if until:
        site.bid()
    if until == "award":
        site.take(site.award())
    seen = []
    for moment in (ROUND.gate_ms, BEGINS_MS, ENDS_MS):
        site.rounds.advance(moment)
        seen.append(site.known.target_w)
    assert site.state is expected
    assert seen == ([None, 1_500, None] if until == "award" else [None] * 3)
    assert site.rounds.next_ms() is None


def test_the_whole_way(site):
    assert site.rounds.next_ms() == ROUND.gate_ms
    site.take(site.award())
    assert site.known.target_w is None
    assert [event for _, event in site.rounds.advance(BEGINS_MS + 1)] == [Event.GATE, Event.BEGIN]
    assert site.known.target_w == 1_500
    site.rounds.advance(ENDS_MS)
    assert site.known.target_w is None
    site.rounds.stated(site.statement())
    site.rounds.stated(site.statement(counter=2, amount=5_000))
    assert site.state is State.SETTLED
    assert site.known.statement.amount == 5_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"bid_hash": bytes(32)}, Reason.OTHER_BID),
        ({"origin": "acme/gw-8"}, Reason.FOREIGN),
        ({"market": "acme/other"}, Reason.FOREIGN),
        ({"number": 41}, Reason.UNKNOWN),
        ({"net_w": 1_501}, Reason.NOT_OFFERED),
        ({"net_w": 3_500}, Reason.NOT_OFFERED),
        ({"ticks": 9_001, "net_w": 1_600}, Reason.NOT_OFFERED),
        ({"ticks": 100_001, "net_w": -2_500}, Reason.NOT_OFFERED),
        ({"verdict": Verdict.NO_TRADE}, Reason.NOT_OFFERED),
    ],
)
def test_an_award_that_is_not_ours_is_refused(site, change, reason):
    assert site.refused(site.take, site.award(**change)) is reason


@pytest.mark.parametrize(
    ("ticks", "net_w"),
    [
        (8_750, 1_500),
        (9_000, 0),  # a part of a divisible step at its limit
        (9_001, -2_500),
        (8_000, 3_500),
        (7_000, 3_500),
        (7_000, 1_500),  # the pump did not fit and stays off
        (9_500, 1_500),  # less trade than wanted: the schedule
        (9_500, 0),  # less trade than wanted: on the way to the schedule
    ],
)
def test_an_award_that_the_bid_offered_is_taken(site, ticks, net_w):
    site.take(site.award(ticks=ticks, net_w=net_w))
    assert site.state is State.AWARDED


def test_late_retained_replayed_and_forged_awards_are_refused(site):
    award = site.award()
    assert site.refused(site.take, award, retained=True) is Reason.RETAINED
    assert site.refused(site.take, award, now_ms=BEGINS_MS) is Reason.LATE
    forged = market.sign(market.read(Award, award, MARKET_KEY.public), GATEWAY_KEY)
    assert site.refused(site.take, forged) is Reason.UNVERIFIED
    assert site.refused(site.take, site.announcement) is Reason.UNVERIFIED
    site.take(award)
    assert site.refused(site.take, award) is Reason.REPLAYED
    assert site.refused(site.take, site.award(counter=2)) is Reason.NOT_NOW


def test_an_award_that_comes_when_the_bid_has_expired_is_late(site):
    site.bid(version=2, expires_ms=NOW_MS + 5)
    assert site.refused(site.take, site.award(), now_ms=NOW_MS + 5) is Reason.LATE
    site.take(site.award(), now_ms=NOW_MS + 4)


def test_a_bid_answers_the_announcement_that_was_taken(site):
    site.announcement = market.sign(ROUND._replace(decimals=3), MARKET_KEY)
    with pytest.raises(ValueError, match="another announcement"):
        site.bid(version=2)


def test_a_bid_that_was_replaced_is_awarded_as_it_stood(site):
    first = site.award()
    site.bid(version=2, expires_ms=NOW_MS + 5, schedule_w=0, floor_w=0, steps=())
    second = site.award(counter=2)
    assert site.refused(site.take, second, NOW_MS) is Reason.NOT_OFFERED, "to the second bid what the first offered"
    assert site.refused(site.take, second) is Reason.LATE
    assert site.known.bid.version == 2
    site.take(first)
    assert (site.state, site.known.bid.version, site.known.versions) == (State.AWARDED, 1, 2)
    assert site.known.target_w is None
    site.rounds.advance(BEGINS_MS - MINUTE_MS)
    again = Site()
    again.rounds.restore(site.log)
    assert again.known == site.known
    site.rounds.advance(BEGINS_MS)
    assert site.known.target_w == 1_500
    site.rounds.advance(ENDS_MS)
    assert not site.known.bids
    site.rounds.stated(site.statement())
    assert site.state is State.SETTLED


def test_a_bid_that_was_replaced_many_times_is_over(site):
    first = site.award()
    for version in range(2, VERSIONS_KEPT + 1):
        site.bid(version=version)
    second = site.award(counter=2)
    site.bid(version=VERSIONS_KEPT + 1)
    assert site.refused(site.take, first) is Reason.OTHER_BID
    site.take(second)


def test_versions_of_a_bid_grow_until_the_gate(site):
    site.bid(version=2)
    with pytest.raises(ValueError, match="no newer version"):
        site.bid(version=2)
    site.rounds.advance(ROUND.gate_ms)
    with pytest.raises(ValueError, match="no bid can be made any more"):
        site.bid(version=3)


def test_statements_are_about_the_award_and_never_twice():
    site = reach(State.DELIVERED)
    stated = site.rounds.stated
    assert site.refused(stated, site.statement(award_hash=bytes(32))) is Reason.OTHER_AWARD
    assert site.refused(stated, site.statement(), retained=True) is Reason.RETAINED
    assert site.refused(stated, site.statement(origin="acme/gw-8")) is Reason.FOREIGN
    stated(site.statement())
    assert site.refused(stated, site.statement()) is Reason.REPLAYED
    early = reach(State.AWARDED)
    assert early.refused(early.rounds.stated, early.statement()) is Reason.NOT_NOW


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"market": "acme/other"}, Reason.FOREIGN),
        ({}, Reason.OLD_ROUND),
        ({"number": 41}, Reason.OLD_ROUND),
        ({"number": 43, "gate_ms": NOW_MS}, Reason.LATE),
        ({"number": 43, "begins_ms": NOW_MS + OPEN_MAX_MS + 1}, Reason.TOO_FAR),
    ],
)
def test_announcements_that_come_to_nothing(site, change, reason):
    announcement = market.sign(ROUND._replace(**change), MARKET_KEY)
    assert site.refused(site.rounds.announced, announcement, NOW_MS) is reason


def test_only_so_many_rounds_are_remembered(site):
    for number in range(43, 43 + KEPT):
        site.rounds.announced(market.sign(ROUND._replace(number=number), MARKET_KEY), NOW_MS)
    assert sorted(site.rounds.known) == list(range(43, 43 + KEPT))


def test_a_log_of_another_market_is_not_taken_back(site):
    with pytest.raises(EvidenceError):
        site.rounds.restore([(NOW_MS, site.announcement)])


def test_a_log_whose_bids_do_not_fit_is_not_taken_back(site):
    announced, bid = site.log
    for log in ([bid], [announced, bid, bid]):
        with pytest.raises(EvidenceError, match="bid of round 42: does not fit"):
            Site().rounds.restore(log)
