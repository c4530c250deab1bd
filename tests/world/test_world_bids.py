"""Each invariant of bidding catches the code that breaks it: the product, or the market, is changed while it runs."""

from fractions import Fraction

from energybid.agent import control, rounds
from energybid.agent.control import Rank
from energybid.agent.market import dispatch
from energybid.agent.market.deliveries import Deliveries
from energybid.agent.market.messages import MessageLog
from energybid.simulator.market.operator import Operator
from energybid.simulator.world import world as worlds
from energybid.simulator.world.bids import offered
from energybid.simulator.world.scenario import Faults, Scenario
from energybid.simulator.world.world import simulate
from energybid.sync.market import Award, Bid, Verdict
from energybid.sync.settling import Ready

ROUNDS = {"every": "5 min", "announce": "3 min", "gate": "1 min"}


def scenario(happenings=(), lies=None) -> Scenario:
    """A site that bids, in which only these happen; "name per_day least most" each."""
    quiet = Faults.none().model_dump(mode="python")
    chosen = {"market_lies": lies or {}}
    for line in happenings:
        name, per_day, least, most = line.split(",")
        chosen[name] = {"per_day": float(per_day), "least": least, "most": most}
    silent = {name: {"per_day": 0.0} for name in Faults.kinds() if name not in {"tcp", "serial", "market_lies"}}
    rates = {name: value for name, value in quiet.items() if isinstance(value, float)}
    sizes = {"tcp_meters": 1, "serial_meters": 0, "interval": "5 min", "batch_interval": "1 min"}
    table = {**rates, **silent, **chosen, "tcp": {}, "serial": {}}
    return Scenario.model_validate({**sizes, "market": ROUNDS, "faults": table})


def violated(minutes: float, world: Scenario) -> set[str]:
    return {violation.invariant for violation in simulate(1, minutes / 1440, world).violations}


def test_without_a_change_nothing_is_violated(monkeypatch):
    monkeypatch.setattr(worlds, "SETTLING_S", 900.0)
    lies = dict.fromkeys(("flipped", "forged", "foreign", "generous", "duplicate", "late"), 0.1)
    outcome = simulate(1, 60 / 1440, scenario(["agent_killed,100,1 s,1 s"], lies))
    assert outcome.violations == []
    assert outcome.bids["awards"] > 3
    assert outcome.bids["refused"] > 0
    assert outcome.bids["followed"] > 1
    assert outcome.bids["statements"] > 1


def test_unlogged_a_bid_that_is_sent_before_the_disk_has_it(monkeypatch):
    async def lazy(*_):
        return True

    monkeypatch.setattr(MessageLog, "secured", lazy)
    assert "unlogged" in violated(30, scenario())


def test_twofold_a_version_that_does_not_grow(monkeypatch):
    monkeypatch.setattr(rounds.Rounds, "bid_made", lambda *_: None)
    assert "twofold" in violated(60, scenario())


def test_award_of_more_than_was_offered(monkeypatch):
    monkeypatch.setattr(rounds, "fits", lambda *_: True)
    assert "award" in violated(60, scenario(lies={"generous": 1.0}))


def test_heard_a_refusal_that_nobody_writes_down(monkeypatch):
    monkeypatch.setattr(worlds, "SETTLING_S", 600.0)
    monkeypatch.setattr(MessageLog, "refuse", lambda *_: None)
    assert "heard" in violated(30, scenario(lies={"flipped": 1.0}))


def test_target_the_schedule_in_the_markets_name(monkeypatch):
    follow = Deliveries._follow
    monkeypatch.setattr(Deliveries, "_follow", lambda self, *parts: follow(self, *parts[:-1], Rank.MARKET))
    assert "target" in violated(60, scenario(lies={"late": 1.0}))


def test_followed_what_was_not(monkeypatch):
    honest = dispatch._followed
    monkeypatch.setattr(
        dispatch, "_followed", lambda conduct, reason: honest(conduct, reason.replace("followed: ", "followed: 9"))
    )
    assert "followed" in violated(60, scenario())


def test_safe_another_number_after_a_death(monkeypatch):
    monkeypatch.setattr(control._Point, "safe", property(lambda _: Fraction(1000)))
    assert "safe" in violated(120, scenario(["agent_killed,500,1 s,1 s"]))


def test_safe_another_number_when_the_agent_stops(monkeypatch):
    monkeypatch.setattr(worlds, "SETTLING_S", 600.0)
    monkeypatch.setattr(control._Point, "safe", property(lambda _: Fraction(1000)))
    assert "safe" in violated(20, scenario())


def test_settled_a_market_that_forgets_its_awards(monkeypatch):
    monkeypatch.setattr(worlds, "SETTLING_S", 600.0)
    monkeypatch.setattr(Operator, "_settle", lambda *_: [])
    assert "settled" in violated(30, scenario())


def test_recompute_a_statement_over_more_money(monkeypatch):
    monkeypatch.setattr(worlds, "SETTLING_S", 600.0)
    honest = Ready.statement
    monkeypatch.setattr(
        Ready, "statement", lambda *parts, **rest: (s := honest(*parts, **rest))._replace(amount=s.amount + 1)
    )
    assert "recompute" in violated(70, scenario())


def test_what_is_offered_is_what_the_curve_says():
    bid = Bid("m", 1, "o", b"", 1, 0, 0, 500, 0, ((90, 1000, False), (50, 2000, True), (10, 700, False)))
    assert all(offered(bid, Award("m", 1, "o", b"", 1, 0, Verdict.AWARDED, 50, w)) for w in (1000, 1500, 3000))
    assert not offered(bid, Award("m", 1, "o", b"", 1, 0, Verdict.AWARDED, 50, 700))
    assert not offered(bid, Award("m", 1, "o", b"", 1, 0, Verdict.AWARDED, 50, 3700))
    assert not offered(bid, Award("m", 1, "o", b"", 1, 0, Verdict.AWARDED, 95, 1000))
    assert offered(bid, Award("m", 1, "o", b"", 1, 0, Verdict.NO_TRADE, 0, 500))
    assert not offered(bid, Award("m", 1, "o", b"", 1, 0, Verdict.NO_TRADE, 0, 0))
