"""The bidder: a gateway in a market, through every phase of a round and every outage, in virtual time.

In every scene the agent is up at second 1. A round that is announced then closes its gate at 61; its interval is from
121 to 181.
"""

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from bidding_site import (
    BIDS_KEY,
    CURVE,
    EVERY,
    MARKET_KEY,
    MINUTE,
    OTHER_KEY,
    PLAN,
    T0,
    TOPICS,
    S,
    play,
    second,
)
from energybid.agent.market import views
from energybid.agent.market.messages import REFUSED_AN_HOUR
from energybid.agent.market.ports import Followed
from energybid.agent.market.session import RESTART_S
from energybid.agent.market.splits import Splits
from energybid.agent.market.views import Story
from energybid.agent.rounds import State
from energybid.bidding.curve import Curve, Step
from energybid.core.entries import MarketKind, MarketReason
from energybid.core.errors import JournalDamagedError, JournalStalledError
from energybid.core.quantities import ClockState
from energybid.sync import market
from energybid.sync.market import Conduct, Verdict

GATE, BEGIN, END = 61, 121, 181
SPLIT = {"battery": -500, "pump": 0}
SCHEDULE = (121.0, 1_000, "SCHEDULE")
AWARDED = (121.0, 0, "MARKET")


async def bidden(site, number=1, **changes):
    site.round(number, **changes)
    await asyncio.sleep(3)
    assert site.state(number) == "bid"


async def reach(site, state):
    """A round in a state, on the shortest way."""
    site.round()
    if state is State.ANNOUNCED:
        site.planner.fault = ValueError("not yet")
    await asyncio.sleep(3)
    if state in {State.AWARDED, State.DELIVERING, State.OVERRIDDEN, State.DELIVERED, State.SETTLED}:
        if state is State.OVERRIDDEN:
            site.dispatcher.outcome, site.dispatcher.after_s = Followed(Conduct.OVERRIDDEN, "occupant"), 1.0
        site.award()
        await asyncio.sleep(1)
    if state in {State.SCHEDULED, State.CLOSED}:
        await site.until(BEGIN + 5 if state is State.SCHEDULED else END + 5)
    if state in {State.DELIVERING, State.OVERRIDDEN}:
        await site.until(BEGIN + 5)
    if state in {State.DELIVERED, State.SETTLED}:
        await site.until(END + 5)
    if state is State.SETTLED:
        site.state_money()
        await asyncio.sleep(1)
    assert site.state() == state.value


# ---------------------------------------------------------------- the way of a round


def test_the_whole_way(tmp_path):
    async def scene(site):
        await bidden(site)
        site.award()
        await site.until(GATE + 1)
        assert site.state() == "awarded"
        await site.until(BEGIN + 1)
        assert site.state() == "delivering"
        assert site.bidder.status()["target_w"] == 0
        await site.until(END + 1)
        assert site.state() == "delivered"
        assert site.bidder.status()["target_w"] is None
        assert b'"state": "delivered"' in site.statuses[-1], "told when the interval is over"
        known = site.known()
        assert (known.bid.steps, known.bid_message) == ((), b""), "many rounds are kept for their statements"
        site.state_money()
        await asyncio.sleep(1)
        assert site.state() == "settled"
        return site

    site = play(tmp_path / "j", scene)
    kinds = [MarketKind.ROUND, MarketKind.BID, MarketKind.AWARD, MarketKind.CONFIRMATION, MarketKind.STATEMENT]
    assert site.kept == [(kind, 0) for kind in kinds]
    assert [topic for _, topic, _ in site.sent] == [TOPICS.bid, TOPICS.dispatch]
    assert site.uncommitted == []
    # Followed from the begin of the interval to its end, exactly.
    assert site.dispatcher.moves == [(121.0, 0, SPLIT, "MARKET")]
    assert site.dispatcher.over == [(181.0, 0, "MARKET")]
    (confirmation,) = site.confirmations
    assert (confirmation.conduct, confirmation.reason) == (Conduct.FOLLOWED, "followed")
    bid, _ = site.bids()[0]
    assert (bid.version, bid.curve, bid.schedule_w) == (1, CURVE, 1_000)


def test_without_an_award_the_schedule_is_followed(tmp_path):
    async def scene(site):
        await bidden(site)
        await site.until(END + 10)
        assert site.state() == "closed"
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.moves == [(121.0, 1_000, {"battery": 500, "pump": 0}, "SCHEDULE")]
    assert site.confirmations == []


def test_an_award_of_nothing_ends_in_the_schedule(tmp_path):
    async def scene(site):
        await bidden(site)
        site.award(verdict=Verdict.NO_TRADE, ticks=0, net_w=1_000)
        await site.until(END + 10)
        (told,) = site.bidder.status()["rounds"]
        assert told["verdict"] == "no_trade"
        assert "price" not in told
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.brief == [SCHEDULE]
    assert site.confirmations == []


def test_an_award_may_be_a_part_of_a_divisible_step(tmp_path):
    async def scene(site):
        await bidden(site)
        site.award(net_w=-333)
        await site.until(BEGIN + 1)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.moves == [(121.0, -333, {"battery": -833, "pump": 0}, "MARKET")]


def test_a_statement_with_a_higher_counter_corrects(tmp_path):
    async def scene(site):
        await reach(site, State.SETTLED)
        assert site.known().statement.amount == 153
        first = site.state_money(amount=140)
        await asyncio.sleep(1)
        assert site.known().statement.amount == 140
        site.publish(TOPICS.statement, first)
        await asyncio.sleep(1)
        assert site.known().statement.amount == 140
        return site

    assert play(tmp_path / "j", scene).refused == [MarketReason.REPLAYED]


# ---------------------------------------------------------------- what is refused

REFUSALS = {
    "late": (MarketReason.LATE, BEGIN + 1, {}),
    "of another bid": (MarketReason.OTHER_BID, 10, {"bid_hash": bytes(32)}),
    "for another gateway": (MarketReason.FOREIGN, 10, {"origin": "t/other"}),
    "of another market": (MarketReason.FOREIGN, 10, {"market": "t/other"}),
    "signed by another key": (MarketReason.UNVERIFIED, 10, {"key": OTHER_KEY}),
    "signed by ourselves": (MarketReason.UNVERIFIED, 10, {"key": BIDS_KEY}),
    "retained": (MarketReason.NONE, 10, {"retain": True}),
    "of no round": (MarketReason.UNKNOWN, 10, {"number": 7}),
    "not offered": (MarketReason.NOT_OFFERED, 10, {"net_w": 2_500}),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_awards_that_count_for_nothing_are_refused_and_logged(tmp_path, name):
    reason, at, changes = REFUSALS[name]

    async def scene(site):
        await bidden(site)
        await site.until(at)
        number = {"number": changes["number"]} if "number" in changes else {}
        message = site.award(send=False, **{k: v for k, v in changes.items() if k not in {"retain", "number"}})
        if number:
            made = market.read(market.Award, message, MARKET_KEY.public)
            message = market.sign(made._replace(**number), MARKET_KEY)
        site.publish(TOPICS.award, message, retain="retain" in changes)
        await site.until(END + 5)
        return site

    site = play(tmp_path / "j", scene)
    if reason:
        assert site.kept[2:] == [(MarketKind.AWARD, reason)]
        assert site.dispatcher.brief == [SCHEDULE]
        assert site.bidder.status()["refused"] == {name.lower(): 1 for name in [_name(reason)]}
    else:  # the copy that comes at once is no retained one
        assert site.dispatcher.brief == [AWARDED]


def _name(reason):
    return next(name for name, number in vars(MarketReason).items() if number == reason)


def test_a_retained_award_is_refused(tmp_path):
    """A broker would send it again at every connection."""

    async def scene(site):
        await bidden(site)
        site.broker._retained[TOPICS.award] = site.award(send=False)
        site.broker.stop(1, forget=False)
        await site.until(END + 5)
        return site

    site = play(tmp_path / "j", scene)
    assert site.refused == [MarketReason.RETAINED]
    assert site.dispatcher.brief == [SCHEDULE]


def test_duplicates_of_what_was_taken(tmp_path):
    """A round or prices that come again are what the broker has kept; an award that comes again is refused."""

    async def scene(site):
        site.prices()
        made = site.round()
        await asyncio.sleep(3)
        site.publish(EVERY.round, market.sign(made, MARKET_KEY))
        site.broker.stop(1, forget=False)  # both are retained and come again
        await asyncio.sleep(10)
        assert site.kept == [(MarketKind.PRICES, 0), (MarketKind.ROUND, 0), (MarketKind.BID, 0)]
        site.publish(TOPICS.award, message := site.award())
        await asyncio.sleep(1)
        site.publish(TOPICS.award, message)
        await asyncio.sleep(1)
        return site

    assert play(tmp_path / "j", scene).refused == [MarketReason.REPLAYED, MarketReason.REPLAYED]


def test_rounds_and_prices_that_count_for_nothing(tmp_path):
    async def scene(site):
        await bidden(site, 5)
        site.round(4)
        site.publish(EVERY.round, b"x" * 5_000)
        site.publish(EVERY.round, site.bids(5)[0][1])
        site.prices(3)
        site.prices(2)
        site.prices(4, key=OTHER_KEY)
        site.prices(4, market="t/other")
        site.prices(4, time_ms=2**50)
        await asyncio.sleep(2)
        assert site.bidder.status()["prices"]["day_ahead"]["counter"] == 3
        assert site.bidder.status()["prices"]["day_ahead"]["age_s"] <= 2
        return site

    site = play(tmp_path / "j", scene)
    r = MarketReason
    assert site.refused == [r.OLD_ROUND, r.TOO_LONG, r.UNVERIFIED, r.REPLAYED, r.UNVERIFIED, r.FOREIGN, r.TOO_FAR]
    assert len(next(entry for entry in site.entries if entry.reason == r.TOO_LONG).message) == 64


def test_a_flood_is_counted_and_does_not_fill_the_disk(tmp_path):
    async def scene(site):
        for number in range(400):
            site.publish(TOPICS.award, b"%d" % number)
            await asyncio.sleep(0.2)
        assert len(site.refused) == REFUSED_AN_HOUR
        status = site.bidder.status()
        assert status["not_logged"] == 400 - REFUSED_AN_HOUR
        assert status["refused"] == {"unverified": 400}
        await bidden(site)
        return site

    site = play(tmp_path / "j", scene)
    logged = site.entries[REFUSED_AN_HOUR:]
    assert [(entry.kind, entry.missed) for entry in logged] == [(MarketKind.ROUND, 340), (MarketKind.BID, 0)]


# ---------------------------------------------------------------- kill -9

ENDS = {
    State.ANNOUNCED: ("closed", [SCHEDULE]),
    State.BID: ("closed", [SCHEDULE]),
    State.AWARDED: ("delivered", [AWARDED]),
    State.DELIVERING: ("delivered", [(126.5, 0, "MARKET")]),
    State.OVERRIDDEN: ("delivered", [(126.5, 0, "MARKET")]),
    State.SCHEDULED: ("closed", [(126.5, 1_000, "SCHEDULE")]),
    State.DELIVERED: ("delivered", []),
    State.SETTLED: ("settled", []),
    State.CLOSED: ("closed", []),
}


@pytest.mark.parametrize("state", State)
def test_killed_in_any_state_it_goes_on_where_it_was(tmp_path, state):
    """The overridden award is followed again: whoever overrides it says so again."""

    async def scene(site):
        await reach(site, state)
        await site.restart(down_s=0.5)
        expected = {State.ANNOUNCED: "bid", State.OVERRIDDEN: "delivering"}.get(state, state.value)
        assert site.state() == expected
        await site.until(END + 20)
        return site, site.state()

    site, ended = play(tmp_path / "j", scene)
    final, moves = ENDS[state]
    assert ended == final
    assert [(round(at * 2) / 2, *rest) for at, *rest in site.dispatcher.brief] == moves
    confirmed = [entry for entry in site.entries if entry.kind == MarketKind.CONFIRMATION]
    assert len(confirmed) == (1 if final in {"delivered", "settled"} else 0)
    assert len(site.bids()) >= 1
    assert site.uncommitted == []
    assert not site.refused


@pytest.mark.parametrize("state", [State.AWARDED, State.DELIVERING])
def test_counters_survive(tmp_path, state):
    async def scene(site):
        await reach(site, state)
        first = site.entries[2].message
        await site.restart()
        site.publish(TOPICS.award, first)
        await asyncio.sleep(1)
        return site

    assert play(tmp_path / "j", scene).refused == [MarketReason.REPLAYED]


def test_an_award_is_split_as_it_was_planned_after_a_restart(tmp_path):
    """Without asking the planner, who might see it otherwise now."""

    async def scene(site):
        await bidden(site)
        await site.restart()
        site.planner.fault = ValueError("it would be asked")
        site.award(net_w=-1_000)
        await site.until(BEGIN + 1)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.moves == [(121.0, -1_000, {"battery": -1_500, "pump": 0}, "MARKET")]


def test_a_bid_that_was_not_sent_is_sent_after_a_restart(tmp_path):
    async def scene(site):
        site.broker.stop(8, forget=False)
        site.planner_round = site.round()
        site.broker.down_until_s = 0  # it connects and gets the announcement
        await asyncio.sleep(3)
        assert len(site.bids()) == 1
        site.sent.clear()
        await site.restart()
        return site

    site = play(tmp_path / "j", scene)
    assert [bid.version for bid, _ in site.bids()] == [1]


def test_a_confirmation_is_made_once_and_sent_again_until_the_statement_answers(tmp_path):
    async def scene(site):
        await reach(site, State.DELIVERED)
        await site.restart()
        await asyncio.sleep(5)
        site.state_money()
        await asyncio.sleep(1)
        await site.restart()
        await asyncio.sleep(5)
        return site

    site = play(tmp_path / "j", scene)
    sent = [payload for _, topic, payload in site.sent if topic == TOPICS.dispatch]
    assert len(sent) == 2
    assert len(set(sent)) == 1
    assert [kind for kind, _ in site.kept].count(MarketKind.CONFIRMATION) == 1


def test_killed_over_the_end_of_an_interval_it_confirms_that_it_was_gone(tmp_path):
    async def scene(site):
        await reach(site, State.DELIVERING)
        await site.restart(down_s=70)
        await asyncio.sleep(10)
        return site

    (confirmation,) = play(tmp_path / "j", scene).confirmations
    assert (confirmation.conduct, confirmation.reason) == (Conduct.FAILED, "the interval passed while nobody followed")


def test_another_key_of_the_market_begins_without_rounds(tmp_path):
    async def scene(site):
        await reach(site, State.AWARDED)
        site.plan = replace(PLAN, key=OTHER_KEY.public.pem())
        await site.restart()
        assert site.rounds.known == {}
        site.publish(EVERY.round, market.sign(site.made, OTHER_KEY))
        await asyncio.sleep(2)
        assert site.state(9) == "bid"
        await site.until(END + 5)
        return site

    async def prepared(site):
        now_ms = site.clock.now_ns() // 1_000_000
        site.made = market.Round(
            "t/power", 9, now_ms, now_ms + 100 * S, now_ms + 600 * S, MINUTE, "USD", 2, -5_000, 5_000, 0, "none"
        )
        return await scene(site)

    site = play(tmp_path / "j", prepared)
    assert site.dispatcher.moves == []  # what the old key had awarded is not followed


@pytest.mark.parametrize(
    ("version", "kept"), [(7, Splits(0, ("battery",), ((0, (77,)),)).encode()), (1, b"damaged"), (1, b"")]
)
def test_a_split_of_another_bid_or_a_damaged_one_is_planned_anew(tmp_path, version, kept):
    async def scene(site):
        await reach(site, State.AWARDED)
        journal = site.recorder.journal
        (key,) = journal.recall("market/split/")
        journal.remember(key, version.to_bytes(4, "big") + (1).to_bytes(8, "big") + kept)
        await site.restart()
        await site.until(END + 5)
        return site

    site = play(tmp_path / "j", scene)
    assert [(target_w, split) for _, target_w, split, _ in site.dispatcher.moves] == [(0, SPLIT)]


# ---------------------------------------------------------------- the uplink


@pytest.mark.parametrize(
    ("lost_at", "final", "moves", "bids"),
    [
        (0, "closed", [SCHEDULE], 0),  # announced, and gone before the bid could be sent
        (5, "closed", [SCHEDULE], 1),  # bid: no award comes
        (20, "delivered", [AWARDED], 1),  # awarded: followed all the same
        (BEGIN + 5, "delivered", [AWARDED], 1),
        (END + 5, "delivered", [AWARDED], 1),
    ],
)
def test_the_uplink_is_lost_in_any_phase(tmp_path, lost_at, final, moves, bids):
    async def scene(site):
        if not lost_at:
            site.think.delay_s = (1.0, 1.0)
        site.round()
        await asyncio.sleep(0.3)
        if lost_at == 20 or lost_at > 20:
            await site.until(10)
            site.award()
        if lost_at:
            await site.until(lost_at)
        site.broker.stop(400, forget=False)
        await site.until(END + 5)
        assert site.state() == final
        await site.until(700)  # connected again, some time
        if final == "delivered":
            assert len(site.confirmations) == 1
            site.state_money()
            await asyncio.sleep(2)
            assert site.state() == "settled"
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.brief == moves
    assert len(site.bids()) == bids


def test_a_bid_waits_for_the_uplink_until_the_gate(tmp_path):
    async def scene(site):
        site.think.delay_s = (1.0, 1.0)
        site.round()
        await asyncio.sleep(0.3)
        site.broker.stop(20, forget=False)
        await site.until(GATE)
        return site

    site = play(tmp_path / "j", scene)
    assert len(site.bids()) == 1


# ---------------------------------------------------------------- planner and assets


def test_a_planner_that_raises_bids_nothing_and_is_told_once(tmp_path, caplog):
    async def scene(site):
        site.planner.fault = ZeroDivisionError("in the planner")
        site.round(1)
        site.round(2)
        await site.until(END + 5)
        assert site.bidder.status()["planner_error"] == "ZeroDivisionError: in the planner"
        site.planner.fault = None
        await bidden(site, 3)
        assert site.bidder.status()["planner_error"] == ""
        return site

    site = play(tmp_path / "j", scene)
    assert [record.message for record in caplog.records if "gives no answer" in record.message] == [
        "the planner gives no answer (ZeroDivisionError: in the planner): nothing is bid until it does"
    ]
    assert site.dispatcher.moves == []
    assert site.ended == []


def test_a_planner_that_takes_too_long_is_left_to_it(tmp_path):
    async def scene(site):
        site.think.delay_s = (200.0, 200.0)
        site.round(1)
        await site.until(GATE + 5)
        assert site.state() == "scheduled"
        assert "no answer within 10 s" in site.bidder.status()["planner_error"]
        site.think.delay_s = (0.1, 0.1)
        await site.until(GATE + 20)
        assert len(site.planner.calls) == 0  # never two calls at a time
        await site.until(402)
        await bidden(site, 2)
        return site

    site = play(tmp_path / "j", scene)
    assert site.bids(1) == []
    assert len(site.bids(2)) == 1


def test_no_asset_no_bid(tmp_path, caplog):
    async def scene(site):
        site.assets.fault = OSError("the bus is gone")
        site.round(1)
        await asyncio.sleep(3)
        assert site.state() == "announced"
        site.assets.fault, site.assets.names = None, []
        site.prices()
        await asyncio.sleep(3)
        assert site.state() == "announced"
        return site

    site = play(tmp_path / "j", scene)
    assert site.planner.calls == []
    assert "the state of the assets can not be told" in caplog.text


def test_a_curve_that_no_message_takes_is_not_bid(tmp_path, caplog):
    async def scene(site):
        site.planner.schedule_w = 2_500  # within the step that is all or nothing
        site.planner.split = lambda net_w: {"battery": net_w}
        site.round(1)
        await asyncio.sleep(3)
        assert site.state() == "announced"
        return site

    play(tmp_path / "j", scene)
    assert "no bid: bid: the schedule is not on its curve" in caplog.text


@pytest.mark.parametrize(
    ("outcome", "conduct", "reason"),
    [
        (Followed(Conduct.OVERRIDDEN, "occupant: boost!"), Conduct.OVERRIDDEN, "occupant: boost-"),
        (Followed(Conduct.FAILED, "battery does not answer"), Conduct.FAILED, "battery does not answer"),
    ],
)
def test_an_award_that_can_not_be_followed_is_given_up_and_the_schedule_followed(tmp_path, outcome, conduct, reason):
    async def scene(site):
        site.dispatcher.outcome, site.dispatcher.after_s = outcome, 10.0
        await bidden(site)
        site.award()
        await site.until(BEGIN + 15)
        assert site.state() == "overridden"
        await site.until(END + 5)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.brief == [AWARDED, (131.0, 1_000, "SCHEDULE")]
    (confirmation,) = site.confirmations
    assert (confirmation.conduct, confirmation.reason) == (conduct, reason)


def test_assets_that_fail_never_end_the_agent(tmp_path, caplog):
    async def scene(site):
        site.dispatcher.fault = OSError("no route to the battery")
        await bidden(site)
        site.award()
        await site.until(BEGIN + 5)
        assert site.state() == "overridden"
        assert site.bidder.status()["asset_error"] == "OSError: no route to the battery"
        await site.until(END + 5)
        site.dispatcher.fault = None
        await bidden(site, 2)
        site.award(2)
        await site.until(END + 5 + END + 5)
        assert site.bidder.status()["asset_error"] == ""
        return site

    site = play(tmp_path / "j", scene)
    assert [confirmation.reason for confirmation in site.confirmations] == [
        "the assets can not be moved",
        "followed",
    ]
    assert site.ended == []


def test_a_dispatcher_that_does_not_end_is_ended(tmp_path):
    async def scene(site):
        site.dispatcher.stuck = True
        await bidden(site)
        site.award()
        await site.until(END + 10)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.over[0] == (186.0, 0, "MARKET")
    assert site.confirmations[0].conduct == Conduct.FAILED


# ---------------------------------------------------------------- the clock


def test_a_clock_that_steps_over_the_interval(tmp_path):
    """What was awarded is over; nobody follows it afterwards, and it is confirmed as what it was."""

    async def scene(site):
        await bidden(site)
        site.award()
        await site.until(20)
        site.clock.step(600)
        await asyncio.sleep(10)
        assert site.state() == "delivered"
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.moves == []
    assert [c.conduct for c in site.confirmations] == [Conduct.FAILED]


@pytest.mark.parametrize("step_s", [80, 130, 600])
def test_a_clock_that_steps_over_the_gate_without_an_award(tmp_path, step_s):
    """Over the gate, into the interval, over all of it: the schedule is followed for what is left."""

    async def scene(site):
        await bidden(site)
        site.clock.step(step_s)
        await asyncio.sleep(5)
        states = {80: "bid", 130: "scheduled", 600: "closed"}
        assert site.state() == states[step_s]
        await asyncio.sleep(200)
        assert site.state() == "closed"
        return site

    site = play(tmp_path / "j", scene)
    assert [rank for _, _, rank in site.dispatcher.brief] == ([] if step_s == 600 else ["SCHEDULE"])
    assert all(at < 181 - step_s + 1 for at, _, _ in site.dispatcher.over)


def test_a_clock_that_steps_forward_within_the_interval_ends_it(tmp_path):
    async def scene(site):
        site.dispatcher.after_s = 60
        await bidden(site)
        site.award()
        await site.until(BEGIN + 10)
        site.clock.step(3_600)
        await asyncio.sleep(20)
        assert site.state() == "delivered"
        return site

    site = play(tmp_path / "j", scene)
    ((ended, _, _),) = site.dispatcher.over
    assert ended <= BEGIN + 10 + 1 + 5


def test_a_clock_that_steps_back_within_the_interval_does_not_make_it_longer(tmp_path):
    async def scene(site):
        site.dispatcher.stuck = True
        await bidden(site)
        site.award()
        await site.until(BEGIN + 10)
        site.clock.step(-3_600)
        await site.until(BEGIN + 3_600 + 90)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.over[0] == (186.0, 0, "MARKET")
    assert len(site.confirmations) == 1


def test_a_clock_that_steps_back_over_the_end_confirms_once(tmp_path):
    """The confirmation is logged with a time before the end, which comes again after the restart."""

    async def scene(site):
        site.dispatcher.stuck = True
        await bidden(site)
        site.award()
        await site.until(END + 2)
        site.clock.step(-40)
        await site.until(END + 10)
        assert len(site.confirmations) == 1
        await site.restart()
        assert site.state() == "delivering"
        await site.until(END + 60)
        assert site.state() == "delivered"
        return site

    site = play(tmp_path / "j", scene)
    assert [kind for kind, _ in site.kept].count(MarketKind.CONFIRMATION) == 1


def test_a_clock_that_steps_back_before_the_gate_undoes_nothing(tmp_path):
    async def scene(site):
        await reach(site, State.SCHEDULED)
        site.clock.step(-100)
        await asyncio.sleep(5)
        assert site.state() == "scheduled"
        return site

    site = play(tmp_path / "j", scene)
    assert len(site.bids()) == 1


def test_who_does_not_know_the_time_promises_nothing(tmp_path, caplog):
    async def scene(site):
        site.clock.state = ClockState.UNSYNCHRONISED
        site.round(1)
        await site.until(30)
        assert site.state() == "announced"
        site.clock.state = ClockState.HOLDOVER
        await site.until(GATE - 5)  # the last look
        assert site.state() == "bid"
        return site

    play(tmp_path / "j", scene)
    said = [record.message for record in caplog.records if "the clock is" in record.message]
    assert said == ["the clock is not set: nothing is bid", "the clock is set: rounds are bid for"]


# ---------------------------------------------------------------- bids


def test_a_bid_is_replaced_where_prices_change_much(tmp_path):
    async def scene(site):
        await bidden(site)
        site.prices(1)
        await asyncio.sleep(2)
        assert len(site.bids()) == 1  # planned again, and much the same
        site.planner.curve = Curve(-2_000, (Step(5_000, 4_000, divisible=True), Step(2_000, 2_000, divisible=False)))
        site.prices(2)
        await asyncio.sleep(2)
        assert [bid.version for bid, _ in site.bids()] == [1, 2]
        site.award(ticks=5_000)
        await asyncio.sleep(1)
        assert site.state() == "awarded"
        return site

    play(tmp_path / "j", scene)


@pytest.mark.parametrize("down_at", [None, 20, GATE + 5, BEGIN + 10])
def test_a_bid_whose_second_version_came_too_late_is_awarded_and_followed_as_it_was(tmp_path, down_at):
    async def scene(site):
        await bidden(site)
        first = market.digest(site.bids()[0][1])
        site.planner.curve, site.planner.schedule_w = Curve(-1_000, CURVE.steps), 3_000
        site.planner.split = lambda net_w: {"battery": 0, "pump": net_w}
        site.prices(1)
        await asyncio.sleep(2)
        assert [bid.version for bid, _ in site.bids()] == [1, 2]
        if down_at == 20:
            await site.restart()
        await site.until(GATE + 1)
        site.award(bid_hash=first, net_w=-333)  # not on the second curve's first step at 90.00: that begins at -1,000
        await asyncio.sleep(1)
        if down_at == GATE + 5:
            await site.restart()
        await site.until(BEGIN + 5)
        (told,) = site.bidder.status()["rounds"]
        assert (told["version"], told["schedule_w"]) == (1, 1_000)
        assert told["versions"] == (3 if down_at == 20 else 2), "a planner that begins anew bids anew"
        if down_at == BEGIN + 10:
            await site.restart()
            await asyncio.sleep(3)
        last = site.dispatcher.moves[-1]
        await site.until(END + 5)
        site.state_money()
        await asyncio.sleep(1)
        assert (site.state(), site.refused) == ("settled", [])
        assert last[1:] == (-333, {"battery": -833, "pump": 0}, "MARKET")
        return site

    site = play(tmp_path / "j", scene)
    assert site.confirmations[0].conduct == Conduct.FOLLOWED
    story = Story()
    story.tell(site.entries)
    (view,) = story.rounds.values()
    said = views.plain(view)["bid"]
    assert (said["version"], said["versions"], said["floor_w"]) == (1, 3 if down_at == 20 else 2, -2_000)
    assert any("version 1 (the award answers it, not version " in line for line in views.details(view, 80))


def test_the_schedule_of_the_bid_that_was_awarded_is_followed_where_its_award_is_given_up(tmp_path):
    async def scene(site):
        await bidden(site)
        first = market.digest(site.bids()[0][1])
        site.planner.curve, site.planner.schedule_w = Curve(-1_000, CURVE.steps), 3_000
        site.prices(1)
        await asyncio.sleep(2)
        site.award(bid_hash=first)
        site.dispatcher.outcome, site.dispatcher.after_s = Followed(Conduct.OVERRIDDEN, "occupant"), 5.0
        await site.until(BEGIN + 10)
        return site

    assert play(tmp_path / "j", scene).dispatcher.brief[-2:] == [AWARDED, (126.0, 1_000, "SCHEDULE")]


def test_many_versions_of_a_bid_leave_little(tmp_path):
    async def scene(site):
        site.round(1, gate_ms=T0 + 3_000 * S, begins_ms=T0 + 4_000 * S)
        await asyncio.sleep(3)
        for number in range(1, 13):
            site.planner.curve = Curve(-2_000 - 500 * number, CURVE.steps)
            site.planner.schedule_w = site.planner.curve.floor_w
            site.prices(number)
            await asyncio.sleep(2)
        assert [bid.version for bid, _ in site.bids()] == list(range(1, 14))
        floor = site.bidder._session._floor
        assert sorted(floor.splits[1]) == list(range(6, 14))
        assert len(site.known().bids) == 8
        assert len(site.recorder.journal.recall("market/split/")) == 2
        return site

    play(tmp_path / "j", scene)


def test_a_round_is_looked_at_once_more_before_its_gate_but_not_in_the_last_moment(tmp_path):
    async def scene(site):
        await bidden(site)
        calls = len(site.planner.calls)
        site.planner.curve = Curve(-1_000, CURVE.steps)
        site.planner.schedule_w = 0
        await site.until(GATE - 10)
        assert len(site.planner.calls) == calls + 1
        assert [bid.version for bid, _ in site.bids()] == [1, 2]
        site.planner.curve = CURVE
        await site.until(GATE - 5)
        site.prices()
        await site.until(GATE + 5)
        assert len(site.bids()) == 2
        return site

    play(tmp_path / "j", scene)


def test_two_rounds_at_one_time_get_one_bid(tmp_path):
    async def scene(site):
        await bidden(site, 1)
        made = site.round(2, at_s=31)  # its interval overlaps
        assert made.begins_ms < site.known(1).ends_ms
        site.round(3, at_s=62)  # its interval follows
        await asyncio.sleep(3)
        return [site.state(number) for number in (1, 2, 3)]

    assert play(tmp_path / "j", scene) == ["bid", "announced", "bid"]


# ---------------------------------------------------------------- without rounds


def test_with_prices_and_no_round_the_local_plan_is_followed(tmp_path):
    async def scene(site):
        site.prices()
        await asyncio.sleep(1)
        assert site.dispatcher.brief[0][1:] == (1_000, "SCHEDULE")
        await asyncio.sleep(3_600)
        return site

    site = play(tmp_path / "j", scene)
    numbers = {number for number, *_ in site.planner.calls}
    assert numbers == {0}
    # A slot of 15 minutes each by the wall clock, without a break between them.
    starts = [at for at, *_ in site.dispatcher.moves]
    assert [round(b - a) for a, b in pairwise(starts[1:])] == [900] * (len(starts) - 2)
    assert site.kept == [(MarketKind.PRICES, 0)]  # no message of it: nobody asked


def test_without_prices_and_rounds_nothing_is_done(tmp_path):
    async def scene(site):
        await asyncio.sleep(3_600)
        return site

    assert play(tmp_path / "j", scene).dispatcher.moves == []


def test_a_round_takes_over_from_the_local_plan_and_gives_back(tmp_path):
    async def scene(site):
        site.prices()
        await asyncio.sleep(1)
        await bidden(site)
        at = second()
        site.award()
        await asyncio.sleep(200)
        return site, at

    site, at = play(tmp_path / "j", scene)
    (_, _, first), (begun, _, rank), (after, _, last) = site.dispatcher.brief[-3:]
    assert (first, rank, last) == ("SCHEDULE", "MARKET", "SCHEDULE")
    assert begun - at == pytest.approx(117, abs=1)
    assert after - begun == pytest.approx(60, abs=1)


def test_a_round_that_was_announced_late_ends_the_local_plan(tmp_path):
    async def scene(site):
        site.prices()
        await asyncio.sleep(2)
        now_ms = site.clock.now_ns() // 1_000_000
        site.round(gate_ms=now_ms + 20_000, begins_ms=now_ms + 30_000)
        await asyncio.sleep(3)
        site.award()
        await site.until(60)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.brief == [(1.0, 1_000, "SCHEDULE"), (33.0, 0, "MARKET")]
    assert site.dispatcher.over[0] == (33.0, 1_000, "SCHEDULE")


# ---------------------------------------------------------------- the agent around it


def test_metering_goes_on_when_the_bidder_fails_and_it_comes_back(tmp_path, monkeypatch):
    from energybid.agent.market.offers import Offers

    right = Offers.run

    async def wrong(_):
        raise RuntimeError("a fault of ours")

    async def scene(site):
        await bidden(site)
        monkeypatch.setattr(Offers, "run", wrong)
        await site.restart()
        status = site.bidder.status()
        assert status["error"] == "RuntimeError: a fault of ours"
        assert [made["state"] for made in status["rounds"]] == ["bid"]
        assert len(site.bidder.told()["market"]["rounds"]) == 1
        monkeypatch.setattr(Offers, "run", right)
        await asyncio.sleep(RESTART_S + 1)
        assert site.state() == "bid"
        assert site.ended == []
        return site

    play(tmp_path / "j", scene)


def test_a_damaged_journal_is_the_agents_business(tmp_path):
    async def scene(site):
        site.dispatcher.fault = JournalDamagedError("j: damaged")
        await bidden(site)
        site.award()
        await site.until(BEGIN + 5)
        return site

    (error,) = play(tmp_path / "j", scene).ended
    assert isinstance(error.exceptions[0], JournalDamagedError)


def test_a_bid_that_the_disk_does_not_take_is_not_sent(tmp_path):
    async def scene(site):
        journal = site.recorder.journal
        right = journal.commit

        def refuse(_):
            raise JournalStalledError("the disk is full")

        journal.commit = refuse
        site.round()
        await site.until(GATE + 5)
        assert site.sent == []
        journal.commit = right
        await site.until(END + 65)
        assert site.state() == "closed"
        return site

    site = play(tmp_path / "j", scene)
    assert site.bids() == []
    assert [kind for kind, _ in site.kept][:2] == [MarketKind.ROUND, MarketKind.BID]


def test_an_award_that_comes_while_the_disk_refuses_is_followed_and_logged_later(tmp_path):
    async def scene(site):
        await bidden(site)
        journal = site.recorder.journal
        right = journal.commit

        def refuse(_):
            raise JournalStalledError("the disk is full")

        journal.commit = refuse
        site.award()
        await site.until(BEGIN + 5)
        assert site.state() == "delivering"
        assert len(site.kept) == 2
        await site.until(END + 5)
        assert site.confirmations == [], "not sent, for it is not on the disk"
        journal.commit = right
        await site.until(END + 200)
        assert len(site.confirmations) == 1
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.brief == [AWARDED]
    assert [kind for kind, _ in site.kept][2:] == [MarketKind.AWARD, MarketKind.CONFIRMATION]
    assert site.uncommitted == []


def test_what_the_planner_learns_is_kept(tmp_path):
    async def scene(site):
        site.prices()
        await asyncio.sleep(1)
        site.planner.memory = {"prices/00": b"learned"}
        await asyncio.sleep(3_700)
        assert len(site.planner.loads) == 5
        assert site.planner.loads[0][1:] == (700, 200)
        assert site.planner.loads[0][0] % (15 * MINUTE) == 0
        await site.restart()
        assert site.planner.memory == {"prices/00": b"learned"}
        assert [made.counter for made in site.planner.learned] == [1]
        site.planner.memory = {"prices/00": b"and more"}
        await site.stop()
        await site.start()
        assert site.planner.memory == {"prices/00": b"and more"}
        return site

    play(tmp_path / "j", scene)


def test_a_stop_lets_go_and_the_next_run_goes_on(tmp_path):
    async def scene(site):
        await reach(site, State.DELIVERING)
        await site.stop()
        assert site.dispatcher.over[0][0] == pytest.approx(second(), abs=1)
        await site.start()
        assert site.state() == "delivering"
        return site

    assert len(play(tmp_path / "j", scene).dispatcher.moves) == 2


def test_the_status_topic_says_what_became_of_the_last_rounds(tmp_path):
    import json

    async def scene(site):
        await reach(site, State.SETTLED)
        return site

    site = play(tmp_path / "j", scene)
    told = json.loads(site.statuses[-1])
    assert told["state"] == "online"
    (known,) = told["market"]["rounds"]
    assert known["state"] == "settled"
    assert (known["net_w"], known["price"]) == (0, "90.00 USD/MWh")
    assert (known["delivered_wh"], known["amount"]) == (17, "1.53 USD")
    assert len(site.statuses[-1]) < 1_000


def test_a_fault_at_the_meters_is_theirs_alone(tmp_path, caplog):
    async def scene(site):
        async def fail():
            raise OSError("no meter")

        site.assets.run = fail
        await site.restart()
        site.assets.run = fail
        await bidden(site)
        return site

    site = play(tmp_path / "j", scene)
    assert site.ended == []


def test_the_status_for_people(tmp_path):
    from energybid.agent.commands.status import _market

    async def scene(site):
        site.prices()
        await reach(site, State.SETTLED)
        site.publish(TOPICS.award, b"nonsense")
        await asyncio.sleep(1)
        settled = _market(site.bidder.status())
        await bidden(site, 2)
        site.award(2)
        await asyncio.sleep(130)
        site.planner.fault = ValueError("no forecast")
        site.round(3)
        await asyncio.sleep(2)
        return settled, _market(site.bidder.status())

    settled, delivering = play(tmp_path / "j", scene)
    assert settled[0] == "market   t/power: 1,000 W of net import are followed"
    assert settled[1] == "         prices: day ahead 3 min old"
    assert settled[2] == "         refused messages: 1 unverified; 0 of them are not in the log"
    assert settled[3] == "  asset battery: unknown, commanded -500 W"
    assert settled[5] == ("  round 1 2026-09-21 14:15:21 UTC settled, 0 W at 90.00 USD/MWh, 17 Wh delivered, 1.53 USD")
    assert delivering[0] == "market   t/power: 0 W of net import are followed"
    assert "         PLANNER: ValueError: no forecast" in delivering
    assert delivering[-2].startswith("  round 2 2026-09-21 14:18:28 UTC delivering, 0 W at 90.00 USD/MWh")


def test_a_slot_of_which_the_meters_did_not_tell_enough(tmp_path):
    async def scene(site):
        site.assets.told = None
        await asyncio.sleep(2_000)
        site.clock.step(10 * 3_600)
        await asyncio.sleep(100)
        site.assets.told = (1, 2)
        return site.planner.loads

    assert play(tmp_path / "j", scene) == []


def test_a_stop_before_the_first_session_and_one_that_takes_too_long(tmp_path, caplog):
    async def scene(site):
        await reach(site, State.AWARDED)
        site.think.delay_s = (30.0, 30.0)
        before = second()
        await site.stop()
        assert second() - before < 2
        site.bidder._running = None
        await site.bidder.close()

    play(tmp_path / "j", scene)
    assert "was not kept: it takes too long" in caplog.text


def test_what_can_not_be_kept_is_told(tmp_path, caplog):
    async def scene(site):
        site.planner.memory = {"prices/00": b"x" * 5_000}
        await asyncio.sleep(3_700)
        await site.stop()

    play(tmp_path / "j", scene)
    assert "what the planner has learned is not kept: planner/prices/00: 5000 bytes" in caplog.text


def test_a_disk_that_does_not_take_the_split_costs_a_plan_after_a_restart(tmp_path, caplog):
    async def scene(site):
        journal = site.recorder.journal

        def refuse(*_):
            raise JournalStalledError("the disk is full")

        journal.remember = refuse
        await bidden(site)
        assert len(site.bids()) == 1
        await site.restart()
        site.award()
        await site.until(BEGIN + 1)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.moves == [(121.0, 0, SPLIT, "MARKET")]
    assert "round 1: the split of its bid is not kept: the disk is full" in caplog.text


def test_a_long_split_is_planned_anew_after_a_restart(tmp_path):
    async def scene(site):
        site.planner.split = lambda net_w: {f"{name:0>400}": 0 for name in range(6)} | {"battery": net_w}
        await bidden(site)
        await site.restart()
        assert len(site.planner.calls) == 0
        site.award()
        await site.until(BEGIN + 1)
        return site

    assert play(tmp_path / "j", scene).dispatcher.moves == [(121.0, 0, SPLIT, "MARKET")]


def test_plans_of_rounds_that_are_over_are_forgotten(tmp_path):
    async def scene(site):
        for number in range(1, 80):
            site.round(number, duration_ms=1_000)
            await asyncio.sleep(125)
        return len(site.bidder._session._floor.splits)

    assert play(tmp_path / "j", scene) <= 66


def test_an_award_without_a_plan_is_given_up(tmp_path):
    async def scene(site):
        await reach(site, State.AWARDED)
        site.recorder.journal._database.execute("DELETE FROM memory")
        await site.restart()
        site.planner.fault = ValueError("nothing to plan with")
        await site.until(END + 5)
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.moves == []
    (confirmation,) = site.confirmations
    assert (confirmation.conduct, confirmation.reason) == (Conduct.FAILED, "no plan for the assets")


def test_what_can_not_be_logged_does_not_count_and_waits(tmp_path, caplog):
    async def scene(site):
        await bidden(site)
        space = site.recorder.space
        right = space.usage
        space.measure = lambda *_: None
        space.usage = right._replace(wal=2 * space.room)
        site.award()
        await site.until(GATE + 5)
        assert site.state() == "bid"
        space.usage = right
        await asyncio.sleep(2)
        assert site.state() == "awarded"
        space.usage = right._replace(wal=2 * space.room)
        await site.until(END + 5)
        assert site.confirmations == []
        site.round(2)
        await asyncio.sleep(5)
        assert 2 not in site.rounds.known
        space.usage = right
        await asyncio.sleep(5)
        assert site.state(2) == "bid"
        return site

    site = play(tmp_path / "j", scene)
    assert site.dispatcher.brief == [AWARDED]
    kinds = {kind for kind, _ in site.kept[2:]}
    assert kinds == {MarketKind.AWARD, MarketKind.CONFIRMATION, MarketKind.ROUND, MarketKind.BID}
    assert len(site.confirmations) == 1
    assert "messages of the market wait, for there is no room to log them" in caplog.text


def test_a_bid_for_which_there_is_no_room_is_not_made(tmp_path, caplog):
    async def scene(site):
        space = site.recorder.space
        site.think.delay_s = (1.0, 1.0)
        site.round(1)
        await asyncio.sleep(0.5)
        space.measure = lambda *_: None
        space.usage = space.usage._replace(wal=2 * space.room)
        await asyncio.sleep(5)
        assert site.state() == "announced"
        return site

    assert play(tmp_path / "j", scene).bids() == []
    assert "the journal has no room for a message of the market" in caplog.text


def test_only_so_many_rounds_are_read_back(tmp_path, monkeypatch):
    from energybid.agent.market import past, session

    async def scene(site):
        for number in range(1, 6):
            await bidden(site, number, duration_ms=1_000)
            await asyncio.sleep(130)
        monkeypatch.setattr(session, "KEPT", 2)
        monkeypatch.setattr(past, "AT_ONCE", 1)
        await site.restart()
        return sorted(site.rounds.known)

    assert play(tmp_path / "j", scene) == [4, 5]


def test_the_bid_of_an_open_round_is_in_the_status_with_its_curve(tmp_path):
    async def scene(site):
        await bidden(site)
        return site.bidder.told()["market"]["rounds"][0]

    told = play(tmp_path / "j", scene)
    assert (told["floor_w"], told["schedule_w"]) == (-2_000, 1_000)
    assert told["steps"] == [("90.00", 4_000, True), ("80.00", 2_000, False)]
