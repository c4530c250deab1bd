"""``energybid settle``: recompute a round's money from its evidence bundle, offline; make such bundles."""

import argparse
import json
import sys
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import Any

from energybid.agent.commands import settle_bundle
from energybid.agent.commands.keys import read_public
from energybid.agent.moments import moment_text
from energybid.bidding import baseline_rules
from energybid.core import cose, exit_codes
from energybid.core.errors import ConfigurationError, EnergybidError, EvidenceError
from energybid.sync import market
from energybid.sync.bundle import FILE_MAX, Bundle, parse_bundle, parse_inputs
from energybid.sync.logged import REASONS
from energybid.sync.market import Award, Bid, Conduct, Confirmation, Round, Statement, Verdict
from energybid.sync.recompute import Logged, Outcome, verify

HELP = "recompute what a market round is worth from its evidence bundle"
EXAMPLES = """\
examples:
  energybid settle verify round-42.bundle --key market=market.pub.pem --key gateway=bids.pub.pem \\
      --key log=log.pub.pem --key headend=headend.pub.pem
  energybid settle verify round-42.bundle --key market.pub.pem --key bids.pub.pem --key log.pub.pem --json
  energybid settle show round-42.bundle
  energybid settle bundle --round 42 -c gateway.toml -o round-42.bundle
  energybid settle bundle --all --database headend.db --gateway demo/gw-1 -o bundles/

A key is trusted in the role that is named before it; without one in any role.
Exit code 0: everything checks and agrees. 3: the bundle is not what it claims, or the money is another; it is written
all the same: it shows what the market stated. 1: a bundle could not be made.
"""
ROLES = ("market", "gateway", "log", "headend")
_SIDES = {"market": "the market", "gateway": "the gateway, for its bids", "log": "the gateway's log", "headend": "the head-end"}  # fmt: skip  # noqa: E501
_NOT_PROVEN = (
    "that the meter measured rightly, or that the gateway's clock was right: the log holds what the gateway received",
    "that no reading nearer to an interval's boundary was left out of the bundle",
    "that the other event days, which the market signed as inputs, are the right ones",
    "that the keys are whose you think: get them from their owners, not with this file",
)
Keys = Mapping[bytes, list[tuple[str | None, cose.PublicKey, str]]]
"""kid → (role or None, key, file) as given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``settle``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="verify|show|bundle")
    verifying = commands.add_parser("verify", help="check every signature and proof, and recompute the money")
    showing = commands.add_parser("show", help="what a bundle says, without checking any of it")
    text = (
        "gather a settled round's evidence from a journal or a head-end's database; it is verified before it is written"
    )
    making = commands.add_parser("bundle", help="gather a settled round's evidence into a bundle", description=text)
    settle_bundle.add_arguments(making)
    for each in (verifying, showing):
        each.add_argument("bundle", type=Path, help="the bundle's file")
    for each in (verifying, showing, making):
        each.add_argument("--json", action="store_true", help="print one JSON object")
    for each in (verifying, making):
        each.add_argument(
            "--key",
            action="append",
            default=[],
            metavar="[ROLE=]FILE",
            help=f"public key, PEM; roles: {', '.join(ROLES)}",
        )


def run(arguments: argparse.Namespace) -> int:
    """Verify, show or make."""
    if arguments.what == "bundle":
        return _make(arguments)
    data = _read(arguments.bundle)
    if arguments.what == "show":
        facts = shown(parse_bundle(data))
        sys.stdout.write((json.dumps(facts) if arguments.json else _show_text(str(arguments.bundle), facts)) + "\n")
        return exit_codes.OK
    report = explain(data, _keys(arguments.key))
    sys.stdout.write((json.dumps(report) if arguments.json else words(str(arguments.bundle), report)) + "\n")
    return exit_codes.OK if report["verified"] else exit_codes.NOT_VERIFIED


def _make(arguments: argparse.Namespace) -> int:
    given = _keys(arguments.key).values()
    keys = {role: [key for found in given for named, key, _ in found if named in {None, role}] for role in ROLES}
    done = settle_bundle.make(arguments, keys)
    sys.stdout.write((json.dumps(done) if arguments.json else settle_bundle.words(done)) + "\n")
    if done["failed"]:
        return exit_codes.FAILED
    return exit_codes.OK if all(each["agrees"] for each in done["bundles"]) else exit_codes.NOT_VERIFIED


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_MAX + 1)
    except OSError as error:
        raise EnergybidError(f"{path}: {error.strerror}") from None


def _keys(given: list[str]) -> Keys:
    """Keys by their id.

    Raises:
        ConfigurationError: A role that is none, or a file without a key.
    """
    keys: dict[bytes, list[tuple[str | None, cose.PublicKey, str]]] = {}
    for text in given:
        role, _, path = text.rpartition("=") if text.partition("=")[0] in ROLES else ("", "", text)
        if not role and "=" in text and not Path(text).exists():
            raise ConfigurationError([f"--key {text}: {text.partition('=')[0]!r} is not one of {', '.join(ROLES)}"])
        key = read_public(Path(path))
        keys.setdefault(key.kid, []).append((role or None, key, path))
    return keys


def _trusted(keys: Keys) -> Callable[[str, bytes], cose.PublicKey | None]:
    def key_for(role: str, kid: bytes) -> cose.PublicKey | None:
        return next((key for given, key, _ in keys.get(kid, []) if given in {None, role}), None)

    return key_for


# ---------------------------------------------------------------- verify


def explain(data: bytes, keys: Keys) -> dict[str, Any]:
    """Verify a bundle; the report says ``verified``, and if not, which ``faults``."""
    try:
        outcome = verify(data, _trusted(keys))
    except EvidenceError as error:
        return {"kind": "settlement", "verified": False, "authentic": False, "faults": [str(error)]}
    checks = [{"what": each.what, "agrees": each.agrees, "said": each.said} for each in outcome.checks]
    faults = [f"{each.what}: {each.said}" for each in outcome.checks if not each.agrees]
    facts = {"kind": "settlement", "verified": outcome.agrees, "authentic": True, "faults": faults, "checks": checks}
    return (
        facts
        | _round_facts(outcome)
        | _energy_facts(outcome)
        | {"logged": _logged_facts(outcome), "signed": _signed(outcome, keys)}
    )


def _round_facts(outcome: Outcome) -> dict[str, Any]:
    made, statement = outcome.proven.round, outcome.proven.statement
    confirmation = outcome.proven.confirmation
    return {
        "market": made.market,
        "round": made.number,
        "gateway": outcome.proven.bid.origin,
        "begins": moment_text(made.begins_ms),
        "ends": moment_text(made.begins_ms + made.duration_ms),
        "programme": made.programme,
        "price": f"{market.price(outcome.proven.award.ticks, made.decimals):f} {made.currency}/MWh",
        "conduct": None if confirmation is None else Conduct(confirmation.conduct).name.lower(),
        "amount_stated": f"{market.price(statement.amount, made.decimals):f} {made.currency}",
        "money": settle_bundle.money_words(statement, made),
    }


def _energy_facts(outcome: Outcome) -> dict[str, Any]:
    proven, baseline, settled = outcome.proven, outcome.baseline, outcome.settled
    facts: dict[str, Any] = {
        "meter": proven.inputs.meter,
        "readings_give_intervals": len(proven.loads),
        "unconfirmed": _unconfirmed(proven.inputs.programme),
        "receipts": sum(receipt is not None for receipt in proven.receipts),
        "logs": len(proven.checkpoints),
        "not_shown": _not_shown(outcome),
    }
    if baseline is not None:
        facts["days"] = [
            {"day": day.isoformat(), "mean_wh": str(usage), "weight": weight} for day, usage, weight in baseline.days
        ]
        facts["passed_over"] = [{"day": day.isoformat(), "why": str(why)} for day, why in baseline.passed]
        facts["adjustment"] = _adjustment(outcome)
    if settled is not None:
        facts["amount"] = f"{market.price(settled.amount, proven.round.decimals):f} {proven.round.currency}"
        facts["intervals"] = [_interval(outcome, at, line) for at, line in enumerate(settled.lines)]
    return facts


def _adjustment(outcome: Outcome) -> dict[str, str | None] | None:
    """What the event day did to the average, with the programme's bounds."""
    adjusted = outcome.baseline and outcome.baseline.adjusted
    rules = baseline_rules.parse(outcome.proven.inputs.programme).adjustment
    if not adjusted or not rules:
        return None
    numbers = {"found": adjusted.found, "applied": adjusted.applied, "least": rules.least, "most": rules.most}
    return {"kind": str(rules.kind)} | {name: None if each is None else str(each) for name, each in numbers.items()}


def _logged_facts(outcome: Outcome) -> list[dict[str, Any]]:
    """When the round's messages were in the gateway's log, and by when the head-end had them."""
    deadlines = _deadlines(outcome)
    return [
        {
            "message": each.what,
            "entry": each.sequence,
            "refused": REASONS.get(each.reason, str(each.reason)) if each.reason else None,
            "time": moment_text(each.time.time_ms),
            "uncertain_ms": each.time.uncertainty_ms,
            "stored_by": None if each.receipt_ms is None else moment_text(each.receipt_ms),
            "in_time": None if each.what not in deadlines or each.receipt_ms is None else
            each.receipt_ms <= deadlines[each.what][1],
        }
        for each in outcome.proven.logged
    ]  # fmt: skip


def _deadlines(outcome: Outcome) -> dict[str, tuple[str, int]]:
    made = outcome.proven.round
    return {"bid": ("the gate closed", made.gate_ms), "award": ("the interval began", made.begins_ms)}


def _not_shown(outcome: Outcome) -> list[str]:
    """What the log does not show of when the bid and the award were there."""
    logged = {each.what: each for each in outcome.proven.logged if not each.reason}
    said = []
    for what, (moment, deadline_ms) in _deadlines(outcome).items():
        entry = logged.get(what)
        if entry is None:
            why = "the bundle has no entry of the gateway's log by which it was taken"
        elif entry.receipt_ms is None:
            why = "the bundle has no receipt over its entry"
        elif entry.receipt_ms > deadline_ms:
            late_s = (entry.receipt_ms - deadline_ms) / 1000
            why = f"the first receipt over its entry that is in the bundle came {late_s:.1f} s later"
        else:
            continue
        said.append(f"that the {what} was there before {moment}: {why}")
    return said + [_newer(each, outcome) for each in outcome.proven.newer]


def _newer(newer: Logged, outcome: Outcome) -> str:
    """A bid that replaced the awarded one, if it reached the market in time: the award tells that it did not."""
    by_ms, gate_ms = newer.receipt_ms, outcome.proven.round.gate_ms
    when = "the bundle has no receipt over its entry"
    if by_ms is not None:
        way = "before" if by_ms <= gate_ms else "after"
        when = f"the head-end had its entry {abs(gate_ms - by_ms) / 1000:.1f} s {way} the gate closed"
    return (
        f"that {newer.what} of the bid had not reached the market when the gate closed: the award answers version"
        f" {outcome.proven.bid.version}; {when}"
    )


def _unconfirmed(programme: bytes) -> int:
    """How many of the sources of the programme's constants are marked as not confirmed."""
    sources = tomllib.loads(programme.decode()).get("source", [])
    listed = sources if isinstance(sources, list) else []
    return sum(isinstance(each, dict) and each.get("confirmed") is not True for each in listed)


def _interval(outcome: Outcome, at: int, line: Any) -> dict[str, Any]:  # noqa: ANN401  a Line
    begins_ms = outcome.proven.round.begins_ms + at * outcome.proven.inputs.interval_ms
    load = outcome.proven.loads.get(begins_ms)
    return {
        "begins": moment_text(begins_ms),
        "baseline_wh": line.baseline_wh,
        "actual_wh": line.actual_wh,
        "delivered_wh": line.delivered_wh,
        "actual_at_least_wh": None if load is None or load.low is None else str(load.low),
        "actual_at_most_wh": None if load is None or load.high is None else str(load.high),
    }


def _signed(outcome: Outcome, keys: Keys) -> list[dict[str, Any]]:
    signed = []
    for role, kid in outcome.proven.signers:
        named = any(given == role for given, _, _ in keys[kid])
        signed.append({"role": role, "kid": kid.hex(), "file": keys[kid][0][2], "named": named})
    return signed


def words(name: str, report: dict[str, Any]) -> str:
    """The report for people."""
    if not report["authentic"]:
        return f"{name}: settlement: NOT VERIFIED\nfault: {report['faults'][0]}"
    verdict = "verified" if report["verified"] else "NOT VERIFIED"
    lines = [
        f"{name}: settlement: {verdict}",
        "",
        _headline(report),
        "",
        *map(_check, report["checks"]),
        "",
        *_energy_words(report),
        *_logged_words(report["logged"]),
        "Signed by:",
        *(_signer(each) for each in report["signed"]),
        "",
        "NOT proven:",
        *(f"  * {each}" for each in _unproven(report)),
    ]
    return "\n".join(lines)


def _headline(report: dict[str, Any]) -> str:
    return (
        f"Round {report['round']} of {report['market']} for gateway {report['gateway']},"
        f" {report['begins']} to {report['ends']}, at {report['price']}, baseline {report['programme']}.\n"
        f"{report['money']}"
    )


def _check(each: dict[str, Any]) -> str:
    return f"  {'agrees ' if each['agrees'] else 'DIFFERS'}  {each['what']}: {each['said']}"


def _energy_words(report: dict[str, Any]) -> list[str]:
    lines = [
        f"  {each['begins']}  baseline {each['baseline_wh']} Wh, imported {each['actual_wh']} Wh"
        f" (at least {_tenths(each['actual_at_least_wh'], floor)}, at most {_tenths(each['actual_at_most_wh'], ceil)}),"
        f" delivered {each['delivered_wh']} Wh"
        for each in report.get("intervals", [])
    ]
    taken = [f"{each['day']} ({each['weight']})" for each in report.get("days", []) if each["weight"]]
    passed = [f"{each['day']}: {each['why']}" for each in report.get("passed_over", [])]
    lines += [f"  days (weight): {', '.join(taken)}"] if taken else []
    lines += [f"  passed over: {', '.join(passed)}"] if passed else []
    if report.get("adjustment"):
        lines.append(_adjustment_words(report["adjustment"]))
    return [*lines, ""] if lines else []


def _tenths(number: str | None, rounded: Callable[[Fraction], int]) -> str:
    """A bound in tenths, not narrower than it is."""
    return "?" if number is None else str(Decimal(rounded(Fraction(number) * 10)).scaleb(-1))


def _adjustment_words(adjustment: dict[str, Any]) -> str:
    bounds = f"{adjustment['least'] or 'none'} to {adjustment['most'] or 'none'}"
    return f"  {adjustment['kind']} {adjustment['applied']} (found {adjustment['found'] or 'none'}, bounds {bounds})"


def _logged_words(logged: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"  * {each['message']}{' REFUSED (' + each['refused'] + ')' if each['refused'] else ''}:"
        f" entry {each['entry']}, {each['time']} by the gateway's clock; "
        + (f"the head-end had it by {each['stored_by']}" if each["stored_by"] else "without receipt")
        for each in logged
    ]
    return ["In the gateway's log:", *lines, ""] if lines else []


def _signer(each: dict[str, Any]) -> str:
    doubt = "" if each["named"] else f"; that it is, is not said: give {each['role']}={each['file']}"
    return f"  * {_SIDES[each['role']]}: key {each['kid']} ({each['file']}{doubt})"


def _unproven(report: dict[str, Any]) -> list[str]:
    missing, doubts = report["logs"] - report["receipts"], report["unconfirmed"]
    logs = f"{missing} of {report['logs']} parts of logs without receipt"
    late = f"that anybody but the gateway had the readings at any time: {logs}"
    unsure = f"the programme says itself that the constants of {doubts} sources are not confirmed"
    rules = f"that the rules are the manual's: {unsure}"
    return [*_NOT_PROVEN, *report["not_shown"], *([late] if missing else []), *([rules] if doubts else [])]


# ---------------------------------------------------------------- show


def shown(bundle: Bundle) -> dict[str, Any]:
    """What a bundle says; nothing is verified.

    Raises:
        EvidenceError: A message in it can not be read.
    """
    kinds = {"round": Round, "bid": Bid, "award": Award, "confirmation": Confirmation, "statement": Statement}
    messages = {name: _fields(kind, getattr(bundle, name)) for name, kind in kinds.items()}
    inputs = parse_inputs(bundle.inputs)
    return {
        "kind": "settlement",
        "verified": None,
        **messages,
        "verdict": Verdict(messages["award"]["verdict"]).name.lower(),
        "meter": inputs.meter,
        "interval_ms": inputs.interval_ms,
        "other_event_days": [day.isoformat() for day in inputs.events],
        "intervals": len(inputs.loads),
        "logs": [{"entries": len(part.entries), "receipt": part.receipt is not None} for part in bundle.logs],
    }


def _fields(kind: Any, data: bytes | None) -> dict[str, Any]:  # noqa: ANN401  one of the kinds of messages
    if data is None:
        return {}
    return {key: _plain(value) for key, value in market.told(kind, data)._asdict().items()}


def _plain(value: Any) -> Any:  # noqa: ANN401
    return value.hex() if isinstance(value, bytes) else value


def _show_text(name: str, facts: dict[str, Any]) -> str:
    lines = [f"{name}: settlement, NOT CHECKED (energybid settle verify checks it)"]
    for key in ("round", "bid", "award", "confirmation", "statement"):
        fields = facts[key] or {"none": "not in the bundle"}
        lines += ["", key, *(f"  {field}: {value}" for field, value in fields.items())]
    entries = sum(part["entries"] for part in facts["logs"])
    receipts = sum(part["receipt"] for part in facts["logs"])
    meter = (
        f"meter {facts['meter']!r}: {facts['intervals']} intervals of {facts['interval_ms'] // 60_000} min"
        f" from {entries} entries of {len(facts['logs'])} parts of logs, {receipts} with receipt"
    )
    return "\n".join([*lines, "", meter])
