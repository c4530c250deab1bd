"""From a journal and a head-end's database, both grown by the product, to bundles that a stranger recomputes."""

import json
import random

import pytest
import sites
import stranger_settlement
from energybid.agent import cli
from energybid.agent.growing import ANCHOR_EVERY
from energybid.core.entries import MarketKind, MarketReason
from energybid.core.errors import EvidenceError
from energybid.core.quantities import Status
from energybid.sync.bundle import parse_bundle
from energybid.sync.market import Verdict
from energybid.sync.recompute import verify
from energybid.sync.settling import Messages, Never, Ready, Waiting, usual_interval_ms
from settled_site import KEYS, MIDNIGHT_MS, ORIGIN, QUARTER_MS, STEP_MS, Site

FIRST_MS = MIDNIGHT_MS + 5 * QUARTER_MS
"""When the first round begins: the hour before it is its baseline."""
PEMS = {role: key.public.pem().decode() for role, key in KEYS.items()}
KEY_OPTIONS = [text for role in KEYS for text in ("--key", f"{role}={role}.pub.pem")]


def trusted(role, kid):
    return next((key.public for name, key in KEYS.items() if (name, key.public.kid) == (role, kid)), None)


def energybid(capsys, *arguments, code=0):
    assert cli.main(["settle", *map(str, arguments)]) == code
    return capsys.readouterr()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three rounds: two settled, of the third no statement has come; and one for which nothing was awarded."""
    site = Site(tmp_path_factory.mktemp("settled"))
    site.round(1, FIRST_MS, net_w=500)
    site.run(FIRST_MS + 2 * QUARTER_MS)
    site.round(2, FIRST_MS + 6 * QUARTER_MS, net_w=-400)
    begins_ms = site.now_ms // QUARTER_MS * QUARTER_MS + 2 * QUARTER_MS
    bidden = site.bidden(site.announced(3, begins_ms))
    site.run(begins_ms)
    site.awarded(bidden, 1_000)
    site.awarded(site.bidden(site.announced(4, begins_ms + QUARTER_MS)), 2_000, verdict=Verdict.NO_TRADE)
    site.announced(5, begins_ms + 2 * QUARTER_MS)
    site.told(MarketKind.UNKNOWN, b"noise", MarketReason.UNVERIFIED)
    for kind in (MarketKind.ROUND, MarketKind.BID, MarketKind.AWARD, MarketKind.CONFIRMATION, MarketKind.STATEMENT):
        site.told(kind, b"noise that a gateway says it took")
    site.acknowledge()
    sites.site(site.folder)
    for name, role in (("log", "log"), ("bids", "gateway")):
        (site.folder / "keys" / f"{name}.pem").write_bytes(KEYS[role].pem())
    for role in ("market", "headend"):
        (site.folder / "keys" / f"{role}.pub.pem").write_bytes(KEYS[role].public.pem())
    yield site
    site.close()


@pytest.fixture
def folder(whole, monkeypatch):
    monkeypatch.chdir(whole.folder)
    return whole.folder


# ---------------------------------------------------------------- the market settles


def test_a_market_settles_as_soon_as_the_readings_are_there(tmp_path):
    site = Site(tmp_path)
    site.run(FIRST_MS - 2 * STEP_MS)
    bidden = site.bidden(site.announced(1, FIRST_MS))
    site.awarded(bidden, 500)
    assert isinstance(site.settled(), Waiting)
    site.run(FIRST_MS)
    site.run(FIRST_MS + QUARTER_MS - STEP_MS, net_w=500)
    waiting = site.settled()
    assert isinstance(waiting, Waiting)
    assert waiting.until_ms == FIRST_MS + QUARTER_MS
    site.online = False
    site.run(FIRST_MS + 2 * QUARTER_MS)
    assert site.settled() == waiting, "the gateway is cut off"
    site.online = True
    site.run(FIRST_MS + 2 * QUARTER_MS + STEP_MS)
    ready = site.settled()
    assert isinstance(ready, Ready)
    # the hour before at 2 kW: 500 Wh a quarter; half a kilowatt in the round: 125 Wh; 375 Wh at 200 EUR/MWh
    assert (ready.settled.baseline_wh, ready.settled.actual_wh, ready.settled.amount) == (500, 125, 8)
    site.close()


def test_what_is_missing_for_good_is_never_settled(tmp_path):
    site = Site(tmp_path)
    site.run(FIRST_MS - 2 * QUARTER_MS)
    site.now_ms += 2 * QUARTER_MS - STEP_MS  # nothing is read
    bidden = site.bidden(site.announced(1, FIRST_MS))
    site.awarded(bidden, 500)
    site.run(FIRST_MS + QUARTER_MS + STEP_MS, net_w=500)
    assert site.settled() == Never("3 of 4 intervals around the event are missing")
    site.close()


def test_a_round_over_two_epochs_is_settled_from_both(tmp_path):
    """The journal was lost in the middle of the hour before, and the meter read on."""
    site = Site(tmp_path)
    site.run(FIRST_MS - 2 * QUARTER_MS)
    site.begin(b"f" * 16)
    messages = site.round(1, FIRST_MS, net_w=500)
    assert site.counter == 1
    outcome = verify(site.logs.bundle(messages, site.settled().inputs).encode(), trusted)
    assert outcome.agrees, outcome.checks
    assert {checkpoint.epoch for checkpoint in outcome.proven.checkpoints} == {b"e" * 16, b"f" * 16}
    assert stranger_settlement.settlement(site.logs.bundle(messages, site.settled().inputs).encode(), PEMS)[2] == 8
    site.close()


def test_readings_of_a_clock_that_was_set_later_count_where_they_belong(tmp_path):
    site = Site(tmp_path)
    site.slow_ms = 3_600_000
    site.run(FIRST_MS - 2 * STEP_MS)
    site.awarded(site.bidden(site.announced(1, FIRST_MS)), 500)
    site.run(FIRST_MS)
    site.run(FIRST_MS + QUARTER_MS, net_w=500)
    site.run(FIRST_MS + QUARTER_MS + STEP_MS)
    assert isinstance(site.settled(), Waiting), "nobody knows when that was"
    site.set_clock()
    site.run(site.now_ms + STEP_MS)
    assert site.settled().settled.amount == 8
    site.close()


@pytest.mark.parametrize(
    ("mark", "at_ms", "why"),
    [
        (Status.SUSPECT, FIRST_MS, None),
        (Status.RESTARTED, FIRST_MS + 2 * STEP_MS, "1 of the round's 1 intervals are not known"),
        (Status.RESTARTED, FIRST_MS - QUARTER_MS - 2 * STEP_MS, "1 of 4 intervals around the event are missing"),
        (Status.ROLLED_OVER, FIRST_MS - 2 * STEP_MS, "1 of 4 intervals around the event are missing"),
    ],
)
@pytest.mark.parametrize("slow_ms", [0, 1_000])
def test_what_is_marked_is_not_lost_between_the_boundaries(tmp_path, mark, at_ms, why, slow_ms):
    """A register that began anew, and counts from a higher number, is nowhere near a boundary."""
    site = Site(tmp_path)
    site.slow_ms = slow_ms
    site.marks[at_ms] = mark
    site.run(FIRST_MS - 2 * STEP_MS)
    site.awarded(site.bidden(site.announced(1, FIRST_MS)), 500)
    site.run(FIRST_MS)
    site.run(FIRST_MS + QUARTER_MS, net_w=500)
    site.set_clock()
    site.run(FIRST_MS + QUARTER_MS + STEP_MS)
    found = site.settled()
    assert isinstance(found, Ready) if why is None else found == Never(why)
    site.close()


@pytest.mark.parametrize(
    ("minutes", "interval"),
    [
        (1, 1),
        (5, 5),
        (7, 1),
        (15, 15),
        (30, 30),
        (45, 15),
        (60, 60),
        (240, 60),
        (1 / 3, 1 / 3),
        (1.5, 1.5),
        (7 / 6, 1 / 6),
    ],
)
def test_the_usual_interval(minutes, interval):
    assert usual_interval_ms(round(minutes * 60_000)) == round(interval * 60_000)


# ---------------------------------------------------------------- bundles


@pytest.mark.parametrize(
    "source",
    [("-c", "gateway.toml"), ("--journal", "journal.db"), ("--database", "headend.db", "--gateway", ORIGIN)],
)  # fmt: skip
@pytest.mark.parametrize(("number", "money"), [(1, ("0.08 EUR", 8)), (2, ("0.12 EUR", 12))])
def test_a_bundle_is_made_verified_and_recomputed_by_a_stranger(folder, tmp_path, capsys, source, number, money):
    amount, cents = money
    path = tmp_path / "round.bundle"
    keys = [] if source[0] == "-c" else KEY_OPTIONS
    out = energybid(capsys, "bundle", "--round", number, *source, *keys, "-o", path).out
    assert f"round {number} of demo/power for {ORIGIN}: {amount}; recomputed, it agrees" in out
    assert "NOT checked" not in out
    assert stranger_settlement.settlement(path.read_bytes(), PEMS)[2] == cents
    out = energybid(capsys, "verify", path, *KEY_OPTIONS).out
    assert f"agrees   amount: {amount} stated, {amount} recomputed" in out
    facts = json.loads(energybid(capsys, "verify", path, *KEY_OPTIONS, "--json").out)
    assert [each["message"] for each in facts["logged"]] == ["round", "bid", "award", "confirmation"]
    told = stranger_settlement.logged(path.read_bytes(), PEMS)
    assert [told[each["message"]][0] for each in facts["logged"]] == [each["entry"] for each in facts["logged"]]
    if source[0] == "--database":
        assert facts["not_shown"] == []
        assert [each["in_time"] for each in facts["logged"]] == [None, True, True, None]
    else:  # a gateway keeps its last receipt alone
        assert len(facts["not_shown"]) == 2
        assert "that the bid was there before the gate closed: the first receipt over its entry" in out
    assert energybid(capsys, "show", path).out


def test_a_bundle_without_keys_says_that_signatures_were_not_checked(folder, tmp_path, capsys):
    out = energybid(capsys, "bundle", "--round", 1, "--journal", "journal.db", "-o", tmp_path / "x").out
    assert "signatures NOT checked: no key of gateway, headend, log, market was given (--key ROLE=FILE)" in out
    wrong = [text.replace("market=market", "market=headend") for text in KEY_OPTIONS]
    err = energybid(capsys, "bundle", "--round", 1, "--journal", "journal.db", *wrong, "-o", tmp_path / "y", code=3).err
    assert "statement: signed by key" in err
    assert not (tmp_path / "y").exists()


def test_every_settled_round_into_a_folder(folder, tmp_path, capsys):
    made = json.loads(energybid(capsys, "bundle", "--all", "-c", "gateway.toml", "-o", tmp_path / "all", "--json").out)
    assert [each["round"] for each in made["bundles"]] == [1, 2]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["round-1.bundle", "round-2.bundle"]
    (tmp_path / "all" / "round-1.bundle").unlink()
    out = energybid(capsys, "bundle", "--all", "-c", "gateway.toml", "-o", tmp_path / "all").out
    assert "round-2.bundle: kept" in out
    assert "round 1 of demo/power" in out


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--round", 3), 1, "round 3: its statement has not come yet"),
        (("--round", 4), 1, "round 4: nothing was awarded"),
        (("--round", 5), 1, "round 5: announced, and no bid was made"),
        (("--round", 6), 1, "round 6: not in this log; of those in it settled are 2, from 1 to 2"),
        (("--round", 1, "--market", "demo/other"), 1, "not in this log; of those in it none is settled"),
        (("--round", 1, "--event", "2026-09-20"), 1, "names other inputs than the readings here give"),
        (("--round", 1, "--event", "yesterday"), 2, "a date such as 2026-11-22 is wanted"),
        (("--round", 1, "--meter", "attic"), 1, "intervals around the event are missing"),
        (("--round", 1, "--programme", "nowhere"), 1, "nowhere: No such file"),
        (("--round", 1, "--inputs", "nowhere"), 1, "nowhere: No such file"),
        (("--round", 1, "--inputs", "gateway.toml"), 3, ""),
        (("--round", 1, "-o", "gateway.toml"), 1, "gateway.toml exists"),
        (("--round", 1, "-o", "no/such/folder"), 1, "No such file"),
        (("--round", 1, "--gateway", "demo/gw-2"), 1, "holds no log of demo/gw-2"),
    ],
)
def test_what_can_not_be_made_is_said(folder, tmp_path, capsys, options, code, says):
    output = () if "-o" in options else ("-o", tmp_path / "x")
    assert says in energybid(capsys, "bundle", "--journal", "journal.db", *options, *output, code=code).err
    assert not (tmp_path / "x").exists()


def test_inputs_may_be_given_as_the_market_keeps_them(folder, tmp_path, capsys):
    energybid(capsys, "bundle", "--round", 1, "--journal", "journal.db", "-o", tmp_path / "x")
    (tmp_path / "inputs").write_bytes(parse_bundle((tmp_path / "x").read_bytes()).inputs)
    given = ("--inputs", tmp_path / "inputs", "--database", "headend.db")
    energybid(capsys, "bundle", "--round", 1, *given, "-o", tmp_path / "y")
    err = energybid(capsys, "bundle", "--round", 2, *given, "-o", tmp_path / "z", code=3).err
    assert "not the inputs of the statement of round 2" in err


def test_a_wrong_statement_is_evidence_too(tmp_path, monkeypatch, capsys):
    site = Site(tmp_path)
    awarded = site.round(1, FIRST_MS, net_w=500).award
    site.stated(awarded, site.settled(), more=1)
    monkeypatch.chdir(tmp_path)
    out = energybid(capsys, "bundle", "--round", 1, "--database", "headend.db", *KEY_OPTIONS, "-o", "x", code=3).out
    assert "the market owes the site 0.09 EUR.\n  amount: 0.09 EUR stated, 0.08 EUR recomputed" in out
    assert "DIFFERS  amount" in energybid(capsys, "verify", "x", *KEY_OPTIONS, code=3).out
    site.close()


@pytest.mark.parametrize("again", [False, True])
def test_an_award_that_the_gateway_refused_is_told(tmp_path, monkeypatch, capsys, again):
    """The market settles it all the same; a copy that came again is refused and means nothing."""
    site = Site(tmp_path)
    site.run(FIRST_MS - 2 * STEP_MS)
    announced = site.announced(1, FIRST_MS)
    bidden = site.bidden(announced)
    site.run(FIRST_MS - STEP_MS)
    awarded = site.awarded(bidden, 500, log=again)
    site.run(FIRST_MS)
    site.told(MarketKind.AWARD, awarded, MarketReason.REPLAYED if again else MarketReason.LATE)
    site.run(FIRST_MS + QUARTER_MS + STEP_MS)
    ready = site.settled()
    messages = Messages(announced, bidden, awarded, None, site.stated(awarded, ready, log=again))
    (tmp_path / "x").write_bytes(site.logs.bundle(messages, ready.inputs).encode())
    monkeypatch.chdir(tmp_path)
    out = energybid(capsys, "verify", "x", *KEY_OPTIONS, code=0 if again else 3).out
    assert ("in the log: the gateway refused award at" in out) == (not again)
    assert ("award REFUSED (late): entry" in out) == (not again)
    if not again:
        err = energybid(capsys, "bundle", "--round", 1, "--journal", "journal.db", "-o", "y", code=1).err
        assert "round 1: its award was refused: late" in err
    assert ("award was there before the interval began: the bundle has no entry of the" in out) == (not again)
    site.close()


@pytest.mark.parametrize(("online", "says"), [(True, "149.5 s before"), (False, "300.5 s after")])
def test_an_award_of_a_bid_that_was_replaced_is_settled_and_its_successor_shown(tmp_path, capsys, online, says):
    """What the market must have ignored, or may not have got: by when the successor was at the head-end."""
    site = Site(tmp_path)
    site.run(FIRST_MS - 3 * STEP_MS)
    announced = site.announced(1, FIRST_MS)
    bidden = site.bidden(announced)
    site.run(FIRST_MS - 2 * STEP_MS)
    first, site.online = site.bid, online
    site.bidden(announced, version=2)
    site.bidden(announced, version=3)
    site.bid = first
    site.run(FIRST_MS - STEP_MS)
    awarded = site.awarded(bidden, 500)
    site.run(FIRST_MS)
    site.online = True
    site.run(FIRST_MS + QUARTER_MS + STEP_MS, net_w=500)
    ready = site.settled()
    messages = Messages(announced, bidden, awarded, None, site.stated(awarded, ready))
    data = site.logs.bundle(messages, ready.inputs).encode()
    (tmp_path / "x").write_bytes(data)
    assert stranger_settlement.settlement(data, PEMS)[2] == ready.settled.amount
    options = [f"--key={role}={tmp_path / role}.pub.pem" for role in PEMS]
    out = energybid(capsys, "verify", tmp_path / "x", *options).out
    shown = "that version 2 of the bid had not reached the market when the gate closed: the award answers version 1"
    assert f"{shown}; the head-end had its entry {says} the gate closed" in out
    assert "version 3" not in out
    site.close()


def test_a_pruned_journal_sends_to_the_head_end(tmp_path, monkeypatch, capsys):
    site = Site(tmp_path)
    site.round(1, FIRST_MS, net_w=500)
    site.run(site.now_ms + 2 * ANCHOR_EVERY * STEP_MS)
    site.acknowledge()
    while site.journal.prune(site.now_ms):
        pass
    monkeypatch.chdir(tmp_path)
    asked = ("bundle", "--round", 1, *KEY_OPTIONS, "-o", "x")
    err = energybid(capsys, *asked, "--journal", "journal.db", code=1).err
    assert "round 1: not in this log; of those in it none is settled; older history was pruned here: ask the" in err
    assert "recomputed, it agrees" in energybid(capsys, *asked, "--database", "headend.db").out
    assert energybid(capsys, "bundle", "--all", "--journal", "journal.db", "-o", "all").out == (
        "no round is settled in this log; older history was pruned here: ask the head-end\n"
    )
    site.close()


def test_any_changed_bit_of_a_bundle_of_real_stores_is_found(whole, tmp_path, capsys, monkeypatch):
    """Some hundred of them; every bit of a smaller one is changed elsewhere."""
    monkeypatch.chdir(whole.folder)
    energybid(capsys, "bundle", "--round", 1, "--database", "headend.db", "-o", tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for bit in random.Random(5).sample(range(8 * len(data)), 300):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EvidenceError):
            verify(bytes(changed), trusted)
