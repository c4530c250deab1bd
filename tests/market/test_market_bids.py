"""``energybid bids``: what the journal says of the rounds, for people and for machines, also while the agent writes."""

import asyncio
import json
from decimal import Decimal

import pytest
from bidding_site import EVERY, TOPICS, play
from energybid.agent.cli import main
from energybid.agent.commands import bids
from energybid.agent.market.ports import Followed
from energybid.agent.market.views import ROWS_MAX, RoundView, Story, coins, drawn, table
from energybid.agent.rounds import Known
from energybid.bidding.curve import Curve, Step
from energybid.core.entries import MarketKind, MarketMessage, MarketReason
from energybid.sync.market import Bid, Conduct, Verdict
from golden_market import ROUND


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """Four rounds: settled, without an award, overridden, and no trade; then a flood of nonsense."""
    path = tmp_path_factory.mktemp("bids") / "journal.db"

    async def scene(site):
        site.round(1)
        await asyncio.sleep(3)
        site.award(1)
        await asyncio.sleep(190)
        site.state_money(1, amount=200)
        site.state_money(1)
        site.round(2)
        await asyncio.sleep(190)
        site.dispatcher.outcome, site.dispatcher.after_s = Followed(Conduct.OVERRIDDEN, "occupant"), 5.0
        site.round(3)
        await asyncio.sleep(3)
        late = site.award(3)
        site.publish(TOPICS.award, late)
        await asyncio.sleep(187)
        site.state_money(3, amount=-20, baseline_wh=0, actual_wh=3)
        site.round(4)
        await asyncio.sleep(3)
        site.award(4, verdict=Verdict.NO_TRADE, ticks=0, net_w=1_000)
        await asyncio.sleep(1)
        for number in range(62):
            site.publish(TOPICS.award, b"%d" % number)
            await asyncio.sleep(0.1)
        site.publish(EVERY.round, b"nonsense")
        site.prices()
        await asyncio.sleep(1)
        await site.stop()

    play(path, scene)
    return str(path)


def told(capsys, *words):
    assert main(["bids", *words]) == 0
    return capsys.readouterr().out


def test_a_line_for_each_round_and_the_last_curve(journal, capsys):
    lines = told(capsys, "-j", journal).splitlines()
    heads, *rows = lines[:5]
    assert heads.split() == ["round", "interval", "(UTC)", "state", "bid", "award", "delivered", "money"]
    cells = [[cell for cell in line.split("  ") if cell] for line in rows]
    assert [[cell.strip() for cell in line][2:] for line in cells] == [
        ["settled", "-2,000 to 4,000 W", "0 W at 90.00", "17 Wh", "1.53 USD"],
        ["closed", "-2,000 to 4,000 W", "-", "-", "-"],
        ["settled", "-2,000 to 4,000 W", "0 W at 90.00", "-3 Wh", "-0.20 USD"],
        ["closed", "-2,000 to 4,000 W", "no trade", "-", "-"],
    ]
    assert cells[0][1] == "2026-09-21 14:15:21 to 14:16:21"
    assert "USD/MWh: net import that round 4 is bid for" in lines
    assert lines[-2] == "settled in these rounds: 1.33 USD"
    assert lines[-1] == "refused messages: 4 not logged, 1 replayed, 59 unverified"


def test_only_the_last_ones(journal, capsys):
    lines = told(capsys, "-j", journal, "--last", "2").splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["round", "3", "4"]
    assert "settled in these rounds: -0.20 USD" in lines


def test_all_of_one_round(journal, capsys):
    text = told(capsys, "-j", journal, "--round", "3")
    assert "t/power, round 3: settled" in text
    assert "bid       version 1, schedule 1,000 W" in text
    assert "award     0 W at 90.00 USD/MWh" in text
    assert "done      overridden: occupant" in text
    assert "statement -3 Wh delivered: 3 instead of 0 Wh; -0.20 USD" in text
    assert "award: replayed" in text
    assert "A award 0 W at 90.00" in text
    first = told(capsys, "-j", journal, "--round", "1")
    assert "1.53 USD (corrected 1 times)" in first
    assert "done      followed: followed" in first


def test_the_curve_is_a_staircase(journal, capsys):
    lines = told(capsys, "-j", journal, "--round", "1").splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("USD/MWh"))
    above, first, second, marks, legend = lines[begin + 1 : begin + 6]
    assert above.split() == ["above", "|", "-2,000", "W"]
    assert first.split()[0] == "90.00"
    assert first.endswith("2,000 W")
    assert second.endswith("4,000 W whole")
    width = first.count("█") + second.count("▓")
    assert first.count("█") == pytest.approx(width * 2 / 3, abs=1)
    assert second.index("▓") == first.rindex("█") + 1
    # -2,000 .. 4,000 W: the schedule of 1,000 W is in the middle, the award of 0 W at a third.
    assert marks.index("S") - marks.index("+") - 1 == pytest.approx(width / 2, abs=1)
    assert marks.index("A") - marks.index("+") - 1 == pytest.approx(width / 3, abs=1)
    assert legend.strip() == "S schedule 1,000 W, A award 0 W at 90.00"


def test_machines_get_exact_decimals(journal, capsys):
    first, second, third, fourth = map(json.loads, told(capsys, "-j", journal, "--json").splitlines())
    assert first["statement"] == {
        "baseline_wh": 17,
        "actual_wh": 0,
        "delivered_wh": 17,
        "amount": "1.53",
        "corrections": 1,
    }
    assert first["award"] == {"verdict": "awarded", "net_w": 0, "price": "90.00"}
    assert first["bid"]["steps"][1] == {"price": "80.00", "power_w": 2000, "divisible": False}
    assert second["award"] is second["statement"] is second["confirmation"] is None
    assert third["confirmation"] == {"conduct": "overridden", "reason": "occupant"}
    assert third["refused"][0]["why"] == "replayed"
    assert fourth["award"]["verdict"] == "no_trade"


def test_a_round_that_is_not_there(journal, capsys):
    assert main(["bids", "-j", journal, "--round", "99"]) == 1
    assert "no round 99" in capsys.readouterr().err


def test_a_journal_that_is_not_there(tmp_path, capsys):
    assert main(["bids", "-j", str(tmp_path / "none")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_journal_without_a_market(tmp_path, capsys):
    async def scene(site):
        await site.stop()

    play(tmp_path / "j", scene)
    assert told(capsys, "-j", str(tmp_path / "j")) == "no rounds: the journal holds none yet\n"


def test_what_changes_is_shown_as_it_comes(tmp_path, capsys, monkeypatch):
    """The agent writes while the command reads: both on one virtual clock here."""

    async def scene(site):
        monkeypatch.setattr(bids, "now_ns", site.clock.now_ns)
        site.round(1)
        await asyncio.sleep(3)
        reader, story = bids._Reader(tmp_path / "j"), Story()
        story.tell(kept.entry for kept in reader.last(20, None))
        for as_json in (False, True):
            arguments = bids.argparse.Namespace(json=as_json, round=None, last=20)
            following = asyncio.ensure_future(bids._follow(reader, story, arguments))
            await asyncio.sleep(2)
            if not as_json:
                site.award(1)
                await asyncio.sleep(200)
            else:
                site.state_money(1)
                await asyncio.sleep(2)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    play(tmp_path / "j", scene)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[2] for line in lines[:3]] == ["awarded", "delivering", "delivered"]
    assert [json.loads(line)["state"] for line in lines[3:]] == ["settled"]


def view(curve, schedule_w=0):
    bid = Bid(ROUND.market, ROUND.number, "t/g", bytes(32), 1, 0, 1, schedule_w, curve.floor_w, curve.steps)
    return RoundView(Known(ROUND, bytes(32)), bid=bid)


def test_a_long_curve_shares_lines():
    steps = tuple(Step(1_000 - n, 10, divisible=n != 50) for n in range(192))
    lines = drawn(view(Curve(0, steps)), 100)
    assert len(lines) <= ROWS_MAX + 4
    assert max(map(len, lines)) <= 100
    assert "10.00 to 9.93" in lines[2]
    assert sum("whole" in line for line in lines) == 1


def test_a_curve_without_steps_and_a_round_without_a_bid():
    assert drawn(view(Curve(500, ()), 500), 80)[1].split()[-2:] == ["500", "W"]
    assert drawn(RoundView(Known(ROUND, bytes(32))), 80) == []
    assert "  -  " in table([RoundView(Known(ROUND, bytes(32)))])[1]


def test_entries_of_rounds_that_were_pruned_are_passed_over():
    from golden_market import chain

    kinds = {"bid": 1, "award": 2, "confirmation": 3, "statement": 4}
    story = Story()
    story.tell(MarketMessage(kind, MarketReason.NONE, chain()[name][1], 0, 5, 0, 0, 0) for name, kind in kinds.items())
    story.tell([MarketMessage(MarketKind.AWARD, MarketReason.LATE, chain()["award"][1], 0, 5, 0, 0, 0)])
    story.tell([MarketMessage(99, 99, b"", 0, 5, 0, 0, 0)])
    assert story.rounds == {}
    assert story.refused == {"late": 1, "99": 1}


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        ("1.5349", "EUR", "1.53 EUR"),
        ("-0.0014", "EUR", "-0.0014 EUR"),
        ("0.00000000", "EUR", "0.00 EUR"),
        ("1234.5", "JPY", "1234 JPY"),
        ("0.0005", "KWD", "0.0005 KWD"),
    ],
)
def test_amounts_have_the_digits_of_their_currency_if_that_leaves_any(amount, currency, text):
    assert coins(Decimal(amount), currency) == text
