"""Settlement: registers at boundaries, money, the bundle, a stranger's recomputation, and every bit of a golden one."""

import itertools
import json
import subprocess
import sys
from datetime import date
from fractions import Fraction
from math import ceil, floor
from pathlib import Path

import apsw
import golden_settlement as golden
import pytest
import stranger
import stranger_settlement
from cddl_verifier import Validator
from energybid.agent import cli
from energybid.agent.commands import settle as command
from energybid.agent.growing import Commit
from energybid.agent.history import journal_histories
from energybid.agent.journal import Journal
from energybid.agent.rows import Acknowledged
from energybid.bidding.baseline_rules import Beyond, Payment, names, text_of
from energybid.bidding.curve import Curve, Step
from energybid.bidding.settlement import Point, Register, Terms, load, settle
from energybid.core import cbor, cose
from energybid.core.cose import ES256, PrivateKey
from energybid.core.entries import Clock, Epoch, Reading, Start
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log
from energybid.core.prover import LostError
from energybid.core.quantities import Status
from energybid.core.tree import Frontier
from energybid.sync import market
from energybid.sync.bundle import Inputs, is_bundle, parse_bundle, parse_inputs
from energybid.sync.gather import chosen
from energybid.sync.index import LogIndex
from energybid.sync.market import Award, Bid, Pricing
from energybid.sync.recompute import register_loads, verify
from energybid.sync.settling import Logs, Messages, Never, Ready, Waiting
from hypothesis import given, settings
from hypothesis import strategies as st

GOLDEN = json.loads(golden.PATH.read_text())
DATA = bytes.fromhex(GOLDEN["bundle"])


def trusted(role, kid):
    key = golden.ROLES[role].public
    return key if key.kid == kid else None


def differing(bundle):
    return [check.what for check in verify(bundle.encode(), trusted).checks if not check.agrees]


# ---------------------------------------------------------------- registers


def points(*readings, run=0, error=0):
    return Register(Point(at, at - error, at + error, run, Fraction(wh)) for at, wh in readings)


def test_a_register_is_a_line_between_readings_with_the_bounds_that_it_never_falls():
    register = points((0, 100), (40, 200), (100, 230), error=5)
    found = register.at(30, 100)
    assert found == (0, 175, 100, 200)
    assert register.at(38, 100).high == 230, "the reading at 40 may be from before 38"
    assert register.at(40, 100)[1:] == (200, 100, 230)
    assert register.at(40, 0).wh == 200
    for at, gap in ((-1, 100), (101, 100), (30, 39)):
        assert register.at(at, gap) is None
    assert Register([]).at(0, 1) is None


def test_a_register_grows_by_nothing_at_least():
    assert load(points((0, 0), (10, 4), (20, 8), error=8), None, 5, 10) == (4, 0, None)


def test_an_interval_across_a_reset_or_a_fall_is_missing():
    fallen = points((0, 100), (10, 90))
    assert fallen.at(5, 10) is None
    anew = Register(
        [Point(0, 0, 0, 0, Fraction(5)), Point(10, 10, 10, 1, Fraction(9)), Point(20, 20, 20, 1, Fraction(9))]
    )
    assert anew.at(5, 10) is None
    assert load(anew, None, 0, 10) is None
    assert load(anew, None, 10, 10).wh == 0
    assert load(points((0, 0), (10, 3)), points((0, 0), (10, 8)), 0, 10) == (-5, -5, -5)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), min_size=2, max_size=8), st.integers(0, 60))
def test_the_bounds_hold_the_line(steps, at):
    """Whatever a register that never falls did between readings."""
    time_ms = wh = 0
    readings = []
    for forward, grown in steps:
        time_ms, wh = time_ms + forward + 1, wh + grown
        readings.append((time_ms, wh))
    found = points(*readings, error=2).at(at, 100)
    if found is not None:
        assert found.low is None or found.low <= found.wh
        assert found.high is None or found.wh <= found.high


# ---------------------------------------------------------------- money

CURVE = Curve(0, (Step(300, 1000, divisible=True), Step(100, 1000, divisible=True)))


def terms(*, net_w=0, ticks=250, as_bid=False, beyond=Beyond.PAID, shortfall="0", schedule_w=2000):
    return Terms(
        CURVE, schedule_w, net_w, ticks, as_bid, 3_600_000, Payment(beyond=beyond, shortfall=Fraction(shortfall))
    )


@pytest.mark.parametrize(
    ("pair", "given", "money"),
    [
        ((2000, 0), {}, 2000 * 250),
        ((2000, -500), {}, 2500 * 250),
        ((2000, -500), {"beyond": Beyond.UNPAID}, 2000 * 250),
        ((2000, 2100), {}, -100 * 250),
        ((2000, 500), {"shortfall": "1/2"}, 1500 * 250 - 500 * 125),
        ((2000, -500), {"shortfall": "1/2"}, 2500 * 250),
        # as bid: the first kilowatt given up was worth 100, the second 300
        ((2000, 0), {"as_bid": True}, 1000 * 100 + 1000 * 300),
        ((2000, 500), {"as_bid": True}, 1000 * 100 + 500 * 300),
        ((2000, 500), {"as_bid": True, "shortfall": "1"}, 1000 * 100 + 500 * 300 - 500 * 300),
        ((2000, -500), {"as_bid": True}, 1000 * 100 + 1500 * 300),
        ((2000, 2100), {"as_bid": True}, -100 * 100),
        # taking more at a negative price: delivered is negative, and so is the price
        ((0, 1000), {"schedule_w": 0, "net_w": 1000, "ticks": -50}, 1000 * 50),
        ((0, 2000), {"schedule_w": 0, "net_w": 1000, "ticks": -50, "beyond": Beyond.UNPAID}, 1000 * 50),
        ((0, 400), {"schedule_w": 0, "net_w": 1000, "ticks": -50, "shortfall": "1"}, 400 * 50 - 600 * 50),
    ],
)
def test_money(pair, given, money):
    settled = settle([pair[0]], [pair[1]], terms(**given))
    (line,) = settled.lines
    assert line.paid - line.charged == money
    assert settled.amount == round(Fraction(money, 1_000_000))


@pytest.mark.parametrize(
    ("actual", "given", "cents"),
    [
        (125, {}, 8),
        (200, {}, 6),
        (200, {"shortfall": "1/2"}, 5),
        (50, {}, 9),
        (50, {"beyond": Beyond.UNPAID}, 8),
    ],
)
def test_the_example_of_the_page(actual, given, cents):
    quarter = terms(net_w=500, ticks=20_000, **given)._replace(interval_ms=900_000)
    assert settle([500], [actual], quarter).amount == cents


def test_money_is_rounded_once():
    settled = settle([2, 2, 2], [0, 0, 0], terms(ticks=250_000))
    assert (settled.amount, settled.baseline_wh, settled.actual_wh) == (2, 6, 0), "3 × 0.5 = 1.5, half to even"


def test_a_bid_without_steps_has_no_limits():
    flat = terms(as_bid=True)._replace(curve=Curve(2000, ()))
    assert settle([2000], [0], flat).amount == 0


@settings(max_examples=100)
@given(
    pairs=st.lists(st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)), min_size=1, max_size=3),
    schedule_w=st.integers(0, 2000), net_w=st.integers(0, 2000), ticks=st.integers(-10**6, 10**6),
    pricing=st.booleans(), beyond=st.sampled_from(Beyond), shortfall=st.sampled_from(["0", "1/2", "1.25"]),
)  # fmt: skip
def test_a_stranger_comes_to_the_same_money(pairs, schedule_w, net_w, ticks, pricing, beyond, shortfall):  # noqa: PLR0913, PLR0917
    given = terms(
        net_w=net_w, ticks=ticks, as_bid=pricing, beyond=beyond, shortfall=shortfall, schedule_w=schedule_w
    )  # fmt: skip
    made = [None] * 10 + [int(pricing)]
    bid = [None] * 7 + [schedule_w, CURVE.floor_w, [list(step) for step in CURVE.steps]]
    award = [None] * 7 + [ticks, net_w]
    payment = {"beyond": beyond.value, "shortfall": shortfall}
    theirs = stranger_settlement.money(payment, made, bid, award, 3_600_000, pairs)
    assert settle([b for b, _ in pairs], [a for _, a in pairs], given).amount == theirs


# ---------------------------------------------------------------- the bundle


def test_the_golden_bundle_is_what_the_code_makes():
    assert golden.document() == GOLDEN
    assert parse_bundle(DATA).encode() == DATA
    assert is_bundle(DATA)
    inputs = parse_inputs(parse_bundle(DATA).inputs)
    assert inputs.encode() == parse_bundle(DATA).inputs


def test_the_golden_bundle_agrees():
    outcome = verify(DATA, trusted)
    assert outcome.agrees
    assert outcome.settled.amount == 2_475
    assert [str(each) for each in outcome.proven.loads[golden.BEGINS_MS][1:]] == ["-25", "25"]


def test_a_stranger_recomputes_the_golden_bundle():
    assert stranger_settlement.settlement(DATA, GOLDEN["keys"]) == ([995], [5], 2_475)
    told = {each.what: (each.sequence, each.receipt_ms) for each in verify(DATA, trusted).proven.logged}
    assert stranger_settlement.logged(DATA, GOLDEN["keys"]) == told
    begins_ms = golden.BEGINS_MS
    assert told["bid"] == (4, begins_ms - 399_000), "before the gate"
    assert told["award"] == (7, begins_ms - 49_000), "before the interval"
    assert told.keys() == {"round", "bid", "award", "confirmation"}


def refused(data):
    with pytest.raises(EvidenceError):
        verify(data, trusted)


def small():
    """As little as settles: no confirmation, no entries of messages, four readings."""
    part = golden.log_part(golden.ENTRIES[:7])
    return golden.bundle()._replace(confirmation=None, logs=(part._replace(entries=part.entries[1:]),)).encode()


@pytest.mark.untraced
def test_any_changed_bit_is_found():
    """Every bit of a small file."""
    data = small()
    assert verify(data, trusted).agrees
    number = int.from_bytes(data, "big")
    for bit in range(8 * len(data)):
        refused((number ^ 1 << bit).to_bytes(len(data), "big"))


@pytest.mark.untraced
def test_any_changed_byte_is_found():
    """A bit of each byte of the golden file; a stranger, who is slower, looks at a few of them."""
    for at in range(len(DATA)):
        changed = DATA[:at] + bytes([DATA[at] ^ 1 << at % 8]) + DATA[at + 1 :]
        refused(changed)
        if at % 17 == 0:
            with pytest.raises((stranger.Refused, KeyError, TypeError, IndexError, ValueError)):
                stranger_settlement.settlement(changed, GOLDEN["keys"])


def test_any_cut_or_longer_file_is_refused():
    for data in (b"", DATA[:-1], DATA + b"\0", cbor.encode([golden.ORIGIN]), b"\x00" * (17 << 20)):
        with pytest.raises(EvidenceError):
            verify(data, trusted)


@pytest.mark.parametrize(
    ("given", "differs"),
    [
        ({"stated": (995, 5, 2_476)}, ["amount"]),
        ({"stated": (996, 5, 2_475)}, ["baseline"]),
        ({"stated": (995, 6, 2_475)}, ["actual"]),
        ({"net_w": 3}, []),
        ({"steps": ((2_000_000, 4_000, False),), "net_w": 3}, ["award"]),
        ({"steps": ((2_600_000, 4_000, True),), "net_w": 3_999}, ["award"]),
        ({"steps": ((2_600_000, 4_000, True),), "net_w": 4_000}, []),
        ({"made": golden.ROUND._replace(most_ticks=2_000_000)}, ["price"]),
        ({"made": golden.ROUND._replace(time_ms=0, gate_ms=golden.BEGINS_MS - 550_000)}, ["in time"]),
        ({"made": golden.ROUND._replace(programme="other")}, ["programme"]),
        ({"made": golden.ROUND._replace(programme="none")}, ["programme"]),
    ],
)
def test_what_the_market_got_wrong_is_named(given, differs):
    bundle = golden.bundle(**given)
    assert differing(bundle) == differs
    if "stated" in given:
        with pytest.raises(ArithmeticError):
            stranger_settlement.settlement(bundle.encode(), GOLDEN["keys"])


INPUTS = parse_inputs(parse_bundle(DATA).inputs)


@pytest.mark.parametrize(
    ("loads", "differs"),
    [
        (((INPUTS.loads[0][0], 994), INPUTS.loads[1]), {"energy", "baseline", "amount"}),
        ((INPUTS.loads[1],), {"energy", "baseline"}),
        ((INPUTS.loads[0],), {"energy", "baseline"}),
        ((*INPUTS.loads, (golden.BEGINS_MS + 900_000, 0)), {"energy"}),
    ],
)
def test_inputs_that_are_not_what_was_read(loads, differs):
    assert set(differing(golden.bundle(inputs=INPUTS._replace(loads=loads)))) == differs


def test_energy_is_the_same_from_two_epochs_and_without_receipt():
    first, second = golden.ENTRIES[:5], [*golden.ENTRIES[:3], *golden.ENTRIES[5:]]
    parts = (golden.log_part(first, receipt=False), golden.log_part(second, epoch=b"f" * 16))
    data = golden.bundle(parts=parts).encode()
    assert verify(data, trusted).agrees
    assert stranger_settlement.settlement(data, GOLDEN["keys"])[2] == 2_475
    report = command.explain(data, {key.public.kid: [(None, key.public, role)] for role, key in golden.ROLES.items()})
    assert "1 of 2 parts of logs without receipt" in command.words("x", report)
    assert "that it is, is not said: give market=market" in command.words("x", report)


def test_as_bid_pricing_and_a_schedule():
    made = golden.ROUND._replace(pricing=Pricing.AS_BID)
    data = golden.bundle(made=made, stated=(995, 5, 990 * 4)).encode()
    outcome = verify(data, trusted)
    theirs = [check.said for check in outcome.checks if check.what == "amount"]
    # 990 Wh in a quarter of an hour are 3960 W: 2000 at 1.0 and 1960 at 2.0 M ticks
    assert outcome.settled.amount == round(Fraction(2000 * 1_000_000 + 1960 * 2_000_000, 4 * 1_000_000)) == 1480
    assert theirs == ["0.3960 USD stated, 0.1480 USD recomputed"]


# ---------------------------------------------------------------- who signed


SHORT = golden.log_part(golden.ENTRIES[:5])
FOREIGN = golden.log_part(golden.ENTRIES, epoch=b"f" * 16)
OTHER = PrivateKey.from_entropy(b"other..." * 6)


def test_the_other_form_of_the_markets_signature_is_refused():
    """No hash in the file covers the statement: without this two files would say the same."""
    key = PrivateKey.from_entropy(b"other..." * 6, ES256)
    keys = golden.ROLES | {"market": key}
    bundle = golden.bundle(keys=keys)

    def trust(role, kid):
        return {known.public.kid: known.public for known in keys.values()}.get(kid)

    assert verify(bundle.encode(), trust).agrees
    s = int.from_bytes(bundle.statement[-32:], "big")
    mirrored = bundle.statement[:-32] + (cose._P256_ORDER - s).to_bytes(32, "big")
    cose.verify(mirrored, key.public)
    with pytest.raises(EvidenceError, match="statement: signature is not in its one form"):
        verify(bundle._replace(statement=mirrored).encode(), trust)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: b._replace(round=golden.bundle(made=golden.ROUND._replace(number=8)).round), "another announcement"),
        (lambda b: b._replace(bid=golden.bundle(steps=((0, 4_000, False),)).bid), "another bid"),
        (lambda b: b._replace(award=golden.bundle(net_w=1).award), "confirmation is for another award"),
        (lambda b: b._replace(award=golden.bundle(net_w=1).award, confirmation=None), "statement is for another award"),
        (lambda b: b._replace(inputs=INPUTS._replace(meter="x").encode()), "names other inputs"),
        (lambda b: b._replace(logs=()), "1 to 64 logs"),
        (lambda b: b._replace(logs=(b.logs[0]._replace(receipt=b.statement),)), "receipt: signed by key"),
        (lambda b: b._replace(logs=(b.logs[0]._replace(receipt=SHORT.receipt),)), "another log"),
        (lambda b: b._replace(logs=(b.logs[0]._replace(entries=b.logs[0].entries[::-1]),)), "out of order"),
        (lambda b: b._replace(logs=(b.logs[0]._replace(entries=()),)), "entries are wanted"),
        (lambda b: b._replace(logs=(SHORT._replace(entries=SHORT.entries[2:]),)), "not a declaration"),
        (lambda b: b._replace(logs=(b.logs[0], b.logs[2])), "consistency"),
        (lambda b: b._replace(logs=(b.logs[1], b.logs[0])), "a path|inclusion|stand apart"),
        (lambda b: b._replace(logs=(b.logs[0], SHORT, b.logs[1])), "out of order"),
        (lambda b: b._replace(logs=(b.logs[0], FOREIGN, *b.logs[1:])), "stand apart"),
        (lambda b: b._replace(logs=(b.logs[0], b.logs[1]._replace(path=b.logs[2].path))), "consistency"),
        (lambda b: b._replace(logs=(b.logs[0]._replace(path=(bytes(32),)),)), "stand apart"),
        (lambda b: b._replace(logs=(golden.log_part(golden.ENTRIES, origin="acme/gw-8"),)), "of another gateway"),
        (lambda b: b._replace(bid=bytes(5_000)), "too long"),
    ],
)  # fmt: skip
def test_parts_of_other_bundles_are_refused(change, says):
    with pytest.raises(EvidenceError, match=says):
        verify(change(golden.bundle()).encode(), trusted)


def test_counters_of_one_log_grow():
    """The same beginning, signed with a counter that was used later: two were signed apart."""
    whole = golden.bundle()
    entries = golden.logged(*whole[:4])
    early, late = golden.log_parts(entries, (5,), counter=9)[0], golden.log_parts(entries, (5,))[1]
    with pytest.raises(EvidenceError, match="parts are out of order"):
        verify(whole._replace(logs=(early, late)).encode(), trusted)


def test_an_entry_stands_in_one_part():
    whole = golden.bundle()
    entries = golden.logged(*whole[:4])
    early, late = golden.log_parts(entries, (5,))
    again = golden.log_part(entries).entries[:4]
    assert [each.sequence for each in again] == [each.sequence for each in early.entries]
    with pytest.raises(EvidenceError, match="an entry stands in two parts of a log"):
        verify(whole._replace(logs=(early, late._replace(entries=(*again, *late.entries)))).encode(), trusted)


def test_no_key_stands_on_both_sides():
    same = dict(golden.ROLES, market=golden.LOG_KEY)
    with pytest.raises(EvidenceError, match="one key signed for both sides"):
        verify(golden.bundle(keys=same).encode(), lambda role, kid: same[role].public)
    foreign = golden.bundle(keys=dict(golden.ROLES, market=OTHER))
    with pytest.raises(EvidenceError, match="not given as market"):
        verify(foreign.encode(), trusted)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (INPUTS._replace(programme=b"x"), "bundle: "),
        (INPUTS._replace(programme=b"a = " + b"[" * 5_000), "bundle: "),
        (INPUTS._replace(programme=b"\xff"), "bundle: "),
        (INPUTS._replace(interval_ms=0), "do not fill the round"),
        (INPUTS._replace(interval_ms=420_000), "do not fill the round"),
        (INPUTS._replace(interval_ms=1_000), "divide the hour"),
        (INPUTS._replace(meter=""), "meter's name"),
        (INPUTS._replace(imports=b"x"), "registers"),
        (INPUTS._replace(loads=INPUTS.loads[::-1]), "loads are out of order"),
        (INPUTS._replace(loads=((0, None),)), "loads"),
    ],
)
def test_wrong_inputs_are_refused(inputs, says):
    with pytest.raises(EvidenceError, match=says):
        verify(golden.bundle(inputs=inputs).encode(), trusted)


def test_inputs_with_days_that_are_none():
    for days, says in (([2, 1], "out of order"), ([10**9], "calendar"), (["x"], "event days")):
        item = cbor.decode(INPUTS.encode())
        with pytest.raises(EvidenceError, match=says):
            parse_inputs(cbor.encode([*item[:6], days, item[7]]))


# ---------------------------------------------------------------- readings and clocks


def loads_of(entries, wanted=(golden.BEGINS_MS,)):
    return {at: each.wh for at, each in register_loads([list(enumerate(entries))], INPUTS, wanted).items()}


def test_a_clock_that_was_set_later_is_corrected_from_the_log():
    """The whole log as if the clock had been an hour slow until it was set after the round."""
    slow = [
        each._replace(time_ms=each.time_ms - 3_600_000, clock=0) if isinstance(each, Reading | Start) else each
        for each in golden.ENTRIES
    ]
    assert not loads_of(slow), "never set: nobody knows when that was"
    mono_ms = slow[-1].mono_ms + 60_000
    set_at = golden.BEGINS_MS + mono_ms - 3_601_000
    assert loads_of([*slow, Clock(1, mono_ms, set_at - 3_600_000, set_at, 2)]) == {golden.BEGINS_MS: 5}


def test_values_in_doubt_are_not_used_and_a_reset_ends_a_run():
    """A second reading near the boundary takes the place of one in doubt; nothing is compared across a reset."""
    near = golden.ENTRIES[5]._replace(time_ms=golden.ENTRIES[5].time_ms + 10_000, values=(11_025, 500))
    for mark, found in ((Status.SUSPECT, {golden.BEGINS_MS: 5}), (Status.RESTARTED, {}), (Status.ROLLED_OVER, {})):
        doubtful = golden.ENTRIES[5]._replace(status=(mark, 0))
        assert loads_of([*golden.ENTRIES[:5], doubtful, near, *golden.ENTRIES[6:]]) == found


def test_another_meter_in_its_place_begins_a_new_run():
    """The new one counts on from where the old one stood, and still nothing is compared between them."""
    anew = golden.DECLARATION._replace(serial="SN 2")
    for serial, found in (("SN 1", {golden.BEGINS_MS: 5}), ("SN 2", {})):
        later = [each._replace(declaration=6) for each in golden.ENTRIES[6:]]
        assert loads_of([*golden.ENTRIES[:6], anew._replace(serial=serial), *later]) == found


def test_a_reading_of_another_meter_is_left_aside():
    inputs = INPUTS._replace(meter="cellar")
    assert not register_loads([list(enumerate(golden.ENTRIES))], inputs, [golden.BEGINS_MS])


# ---------------------------------------------------------------- the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "round.bundle").write_bytes(DATA)
    for role, key in golden.ROLES.items():
        (tmp_path / f"{role}.pem").write_bytes(key.public.pem())
    return tmp_path


KEYS = [text for role in golden.ROLES for text in ("--key", f"{role}={role}.pem")]


def energybid(capsys, *arguments, code=0):
    assert cli.main(["settle", *arguments]) == code
    return capsys.readouterr()


def test_verify_says_what_agrees(folder, capsys):
    out = energybid(capsys, "verify", "round.bundle", *KEYS).out
    for text in (
        "round.bundle: settlement: verified",
        "Round 7 of acme/flex for gateway acme/gw-7, 2026-01-01T00:00:00.000Z to 2026-01-01T00:15:00.000Z, at 250.0000",
        "the site imported 990 Wh less than its baseline of 995 Wh; the market owes the site 0.2475 USD.",
        "agrees   amount: 0.2475 USD stated, 0.2475 USD recomputed",
        "  * bid: entry 4, 2025-12-31T23:51:40.000Z by the gateway's clock; the head-end had it by 2025-12-31T23:53:21",
        "baseline 995 Wh, imported 5 Wh (at least -25.0, at most 25.0), delivered 990 Wh",
        "the head-end: key",
        "NOT proven:",
    ):
        assert text in out, out
    facts = json.loads(energybid(capsys, "verify", "round.bundle", *KEYS, "--json").out)
    assert (facts["verified"], facts["amount"], facts["amount_stated"]) == (True, "0.2475 USD", "0.2475 USD")


def test_verify_says_what_does_not(folder, capsys):
    (folder / "wrong.bundle").write_bytes(golden.bundle(stated=(995, 5, 9_999)).encode())
    out = energybid(capsys, "verify", "wrong.bundle", *KEYS, code=3).out
    assert "DIFFERS  amount: 0.9999 USD stated, 0.2475 USD recomputed" in out
    out = energybid(capsys, "verify", "round.bundle", *KEYS[2:], code=3).out
    assert "NOT VERIFIED\nfault: statement: signed by key" in out
    (folder / "short.bundle").write_bytes(golden.bundle(inputs=INPUTS._replace(loads=INPUTS.loads[1:])).encode())
    out = energybid(capsys, "verify", "short.bundle", *KEYS, code=3).out
    assert "intervals around the event are missing" in out
    facts = json.loads(energybid(capsys, "verify", "short.bundle", *KEYS, "--json", code=3).out)
    assert (facts["authentic"], "amount" in facts) == (True, False)
    assert "not one of market, gateway" in energybid(capsys, "verify", "round.bundle", "--key", "mayor=x", code=2).err
    assert "No such file" in energybid(capsys, "verify", "none.bundle", code=1).err


def test_show(folder, capsys):
    out = energybid(capsys, "show", "round.bundle").out
    assert "NOT CHECKED" in out
    assert "amount: 2475" in out
    assert "2 intervals of 15 min from 11 entries of 3 parts of logs, 3 with receipt" in out
    facts = json.loads(energybid(capsys, "show", "round.bundle", "--json").out)
    assert (facts["verified"], facts["verdict"], facts["award"]["net_w"]) == (None, "awarded", 0)
    (folder / "bare.bundle").write_bytes(golden.bundle()._replace(confirmation=None).encode())
    assert "not in the bundle" in energybid(capsys, "show", "bare.bundle").out


@pytest.mark.parametrize(
    ("amount", "says"),
    [(-5, "the site owes the market 0.0005 USD"), (0, "nothing is owed"), (5, "the market owes the site 0.0005 USD")],
)
def test_money_in_words(amount, says):
    statement = market.told(market.Statement, golden.bundle(stated=(5, 7, amount)).statement)
    words = command.settle_bundle.money_words(statement, golden.ROUND)
    assert words == f"The market states: the site imported 2 Wh more than its baseline of 5 Wh; {says}."


def test_bounds_in_words_are_not_narrower_than_they_are():
    for number, low, high in (("-1379/10", "-137.9", "-137.9"), ("1/3", "0.3", "0.4"), ("-1/3", "-0.4", "-0.3")):
        assert (command._tenths(number, floor), command._tenths(number, ceil)) == (low, high)
    assert command._tenths(None, floor) == "?"


def test_a_baseline_from_days_is_told():
    report = {"days": [{"day": "2026-01-01", "weight": 1}], "passed_over": [{"day": "2026-01-02", "why": "event"}]}
    report["adjustment"] = {"kind": "ratio", "applied": "6/5", "found": "7/5", "least": "4/5", "most": "6/5"}
    lines = command._energy_words(report)
    assert lines[:2] == ["  days (weight): 2026-01-01 (1)", "  passed over: 2026-01-02: event"]
    assert lines[2] == "  ratio 6/5 (found 7/5, bounds 4/5 to 6/5)"


# ---------------------------------------------------------------- the page


DOCS = Path(__file__).parents[2] / "docs"
CDDL = Validator(DOCS / "settlement.cddl")


def test_the_bundle_is_what_the_cddl_says():
    assert CDDL.validate(DATA, root_type="bundle").valid
    assert CDDL.validate(parse_bundle(DATA).inputs, root_type="settlement-inputs").valid
    for at, other in ((0, "energybid settlement 2"), (1, None), (6, b""), (7, [])):
        item = cbor.decode(DATA)
        item[at] = other
        assert not CDDL.validate(cbor.encode(item), root_type="bundle").valid, at


def test_the_page_names_every_programme():
    assert all(f"| `{name}` |" in (DOCS / "settlement.md").read_text() for name in names())


# ---------------------------------------------------------------- from a journal

EVENT_MS = 1_789_603_200_000
"""2026-09-17T00:00:00Z: Wednesday, 17:00 in California."""
DAYS = 18
SLOPE = 5
"""Wh by which the first hour of a day is below the second, and so on: a load that differs by hour."""


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A real journal: readings every half hour, seven seconds late, for eighteen days; with a receipt."""
    path = str(tmp_path_factory.mktemp("settlement") / "journal.db")
    journal = Journal(apsw.Connection(path), path)
    counter = journal.begin_epoch(id_=b"e" * 16, origin=golden.ORIGIN, secret=b"e" * 32).counter
    log = Log(
        origin=golden.ORIGIN, epoch=b"e" * 16, secret=b"e" * 32, signer=golden.LOG_KEY, frontier=Frontier(),
        counter=counter,
    )  # fmt: skip
    begins_ms = EVENT_MS - DAYS * 86_400_000
    entries = [Epoch(golden.ORIGIN, begins_ms, None), Start(bytes(16), begins_ms, 0, 2, "1", bytes(32))]
    entries.append(golden.DECLARATION)
    register = 1_000_000
    for at in range(begins_ms, EVENT_MS + 8 * 3_600_000, 1_800_000):
        entries.append(Reading(2, 0, at + 7_000, 150, 2, 1, at + 7_000 - begins_ms, (register, 0), None))
        hour = at // 3_600_000 % 24
        register += 300 + SLOPE * hour - (200 if EVENT_MS <= at + 7_000 < EVENT_MS + 3_600_000 else 0)
    before = log.peaks
    for entry in entries:
        log.append(entry)
    checkpoint = log.checkpoint(EVENT_MS + 9 * 3_600_000, 2)
    journal.commit(Commit(entries, checkpoint, before, log.peaks, None))
    stored = Receipt(*checkpoint.checkpoint[:4], EVENT_MS + 10 * 3_600_000)
    number = journal.head.epoch.number
    journal.acknowledge(Acknowledged(number, log.size, sign_receipt(stored, golden.HEADEND_KEY)))
    yield journal_histories(apsw.Connection(path), path)[0]
    journal.close()


@pytest.mark.parametrize("name", ["caiso-5-in-10", "pjm-high-4-of-5", "pjm-same-day-3-2"])
def test_a_round_from_the_journal_to_a_strangers_money(history, name):
    made, offered, awarded = round_of(name)
    logs = Logs("main")
    logs.read([history])
    ready = logs.settle(made, offered, awarded, asked(name))
    assert isinstance(ready, Ready)
    _, baseline, settled = ready
    stated = (settled.baseline_wh, settled.actual_wh, settled.amount)
    messages = golden.bundle(made=made, inputs=ready.inputs, stated=stated, begins_ms=EVENT_MS)
    bundle = logs.bundle(Messages(*messages[:5]), ready.inputs)
    outcome = verify(bundle.encode(), trusted)
    assert outcome.agrees, outcome.checks
    assert outcome.settled.lines[0].delivered_wh > 150, "the site did use less"
    assert stranger_settlement.settlement(bundle.encode(), GOLDEN["keys"])[2] == stated[2]
    assert len(bundle.logs[0].entries) < len(list(history.entries(0, 10_000))) / 2, "only what is needed"
    report = command.explain(bundle.encode(), {k.public.kid: [(r, k.public, r)] for r, k in golden.ROLES.items()})
    assert report["receipts"] == 1
    assert "says itself that the constants of" in command.words("x", report)
    assert [day["day"] for day in report["days"]] == [day.isoformat() for day, _, _ in baseline.days]


def round_of(name, begins_ms=EVENT_MS):
    made = golden.ROUND._replace(
        programme=name, time_ms=begins_ms - 600_000, gate_ms=begins_ms - 120_000, begins_ms=begins_ms,
        duration_ms=3_600_000,
    )  # fmt: skip
    messages = golden.bundle(made=made, begins_ms=begins_ms)
    return made, market.told(Bid, messages.bid), market.told(Award, messages.award)


def asked(name, **given):
    return Inputs(text_of(name), "main", golden.IMPORT, None, 3_600_000, (), ())._replace(**given)


def test_what_can_not_be_settled_says_why(history):
    logs = Logs("main")
    made, offered, awarded = round_of("pjm-same-day-3-2")
    early = logs.settle(made, offered, awarded, asked("pjm-same-day-3-2"))
    assert isinstance(early, Waiting), "nothing was read yet"
    logs.read([history])
    late = EVENT_MS + 5 * 3_600_000
    waiting = logs.settle(*round_of("pjm-same-day-3-2", late), asked("pjm-same-day-3-2"))
    assert waiting == Waiting("2 of 5 intervals around the event are missing", late + 4 * 3_600_000)
    days = asked("ercot-middle-8-of-10")
    assert isinstance(logs.settle(*round_of("ercot-middle-8-of-10", EVENT_MS - 8 * 86_400_000), days), Never)
    nothing = awarded._replace(verdict=market.Verdict.NO_TRADE)
    assert logs.settle(made, offered, nothing, days) == Never("nothing was awarded")
    exports = asked("pjm-same-day-3-2", exports=b"export")
    assert isinstance(logs.settle(made, offered, awarded, exports), Waiting), "such a register never came"


def test_a_meter_that_is_not_in_the_log(history):
    index = LogIndex("cellar")
    index.grow(history)
    assert not chosen(index, history, asked("none"), [EVENT_MS])


class Pruned:
    """A history that has lost what came before an entry."""

    def __init__(self, whole, first):
        self._whole, self.first = whole, first

    def __getattr__(self, name):
        return getattr(self._whole, name)


class Older:
    """A history as it was one commit before."""

    def __init__(self, whole):
        self._whole = whole

    def __getattr__(self, name):
        return getattr(self._whole, name)

    def commits(self):
        return itertools.islice(self._whole.commits(), 1, None)


def test_a_database_that_was_lost_or_restored_is_read_anew(history):
    index = LogIndex("main")
    assert index.grow(history)
    assert not index.grow(Older(history)), "it is shorter than it was"
    logs = Logs("main")
    logs.read([history])
    whole = logs.newest_ms(asked("none"))
    logs.read([])
    assert logs.newest_ms(asked("none")) is None, "it is gone"
    logs.read([history])
    logs.read([Older(history)])
    logs.read([history])
    assert logs.newest_ms(asked("none")) == whole


def test_a_log_whose_declaration_was_pruned(history):
    pruned, index = Pruned(history, 10), LogIndex("main")
    index.grow(pruned)
    with pytest.raises(LostError, match="declaration 2 is not kept here any more: ask the head-end"):
        chosen(index, pruned, asked("none"), [EVENT_MS])
    assert not chosen(index, pruned, asked("none"), [])


# ---------------------------------------------------------------- whatever comes


@settings(max_examples=100)
@given(st.binary(max_size=200), st.integers(0, 7), st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=40) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3), max_leaves=6,
))  # fmt: skip
def test_whatever_comes_is_refused_as_evidence(noise, at, value):
    """Bytes, and well-formed arrays with one part that is something else."""
    for data in (noise, DATA[:40] + noise):
        with pytest.raises(EvidenceError):
            verify(data, trusted)
    for whole, read in ((DATA, lambda data: verify(data, trusted)), (INPUTS.encode(), parse_inputs)):
        item = cbor.decode(whole)
        if item[at] != value:
            item[at] = value
            try:
                read(cbor.encode(item))
            except EvidenceError:
                continue
            assert whole != DATA or (at, value) == (4, None), "other inputs, or no confirmation"


def test_inputs_survive_a_round_trip():
    inputs = INPUTS._replace(events=(date(2026, 1, 1), date(2026, 5, 1)), exports=None)
    assert parse_inputs(inputs.encode()) == inputs


def test_verifying_does_without_what_a_gateway_has_not_got():
    """A gateway that only meters has no numpy, and no process that runs loads pydantic."""
    script = (
        "import sys, energybid.sync.recompute, energybid.sync.gather; print({'pydantic', 'numpy'} & set(sys.modules))"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"
    )
