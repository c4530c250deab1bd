"""``energybid journal``: look at a journal, check it, salvage a damaged one, begin a new epoch."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw

from energybid.agent import system
from energybid.agent.config import load_plan
from energybid.agent.journal import Journal
from energybid.agent.plan import AgentPlan
from energybid.agent.quarantine import quarantines, rescue
from energybid.agent.rows import ROLLED_BACK, EpochRow, Succession
from energybid.core import cose, exit_codes
from energybid.core.errors import EnergybidError, JournalError
from energybid.core.evidence import Receipt, parse_receipt
from energybid.core.salt import SECRET_SIZE

HELP = "look at a journal, check it, salvage a damaged one, begin a new epoch"
EXAMPLES = """\
examples:
  energybid journal status -c /etc/energybid/gateway.toml
  energybid journal check -c gateway.toml
  energybid journal salvage journal.db.quarantine-1 salvaged.db
  energybid journal new-epoch -c gateway.toml --reason "card restored from the backup of May 3rd"

What each is for, and when: docs/recovery.md. 'status', 'check' and 'salvage' may run beside the agent; 'new-epoch'
refuses to.
"""
OPERATOR = "operator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``journal``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (
        ("status", "what the journal holds: epochs, receipts, quarantined files"),
        ("check", "rebuild the tree over all that the newest epoch holds and compare every root"),
        ("new-epoch", "begin a new epoch, after a rollback; nothing of the old one is changed"),
    ):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("-c", "--config", type=Path, default=Path("/etc/energybid/gateway.toml"))
        action.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "new-epoch":
            action.add_argument("--reason", required=True, help="why, in your words; kept in the journal")
    text = "copy every segment that can be read out of a damaged journal, for 'energybid export' and 'verify'"
    action = actions.add_parser("salvage", help=text, description=text)
    action.add_argument("source", type=Path, help="a quarantined journal; it is not changed")
    action.add_argument("target", type=Path, help="the journal to write; must not exist")
    action.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Do what was asked, and print what was found."""
    if arguments.action == "salvage":
        facts = _salvage(arguments.source, arguments.target)
    else:
        plan = load_plan(arguments.config)
        match arguments.action:
            case "status":
                facts = _status(plan)
            case "check":
                facts = _check(plan)
            case _:
                facts = _new_epoch(plan, arguments.reason)
    sys.stdout.write(json.dumps(facts) + "\n" if arguments.json else _text(facts))
    return exit_codes.OK


def _text(facts: dict[str, Any]) -> str:
    lines = []
    for name, value in facts.items():
        if isinstance(value, list):
            lines += [f"{name}:"] + [
                "  " + (", ".join(f"{k} {v}" for k, v in item.items()) if isinstance(item, dict) else str(item))
                for item in value
            ]
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines) + "\n"


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")


def _reading(path: Path) -> Journal:
    if not path.exists():
        raise EnergybidError(f"{path}: no such file")
    try:
        database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        database.set_busy_timeout(5000)
    except apsw.Error as error:
        raise JournalError(f"{path}: {error}") from None
    return Journal(database, str(path), check=False)


def _receipt(message: bytes) -> Receipt:
    return parse_receipt(cose.peek(message)[1])


def _status(plan: AgentPlan) -> dict[str, Any]:
    path = plan.journal.path
    journal = _reading(Path(path))
    try:
        mark, contradiction = journal.acknowledged(), journal.contradiction()
        usage = journal.usage(system.RealDisk().size(f"{path}-wal") or 0)
        epochs = [_epoch(journal, row) for row in journal.epochs()]
        return {
            "journal": path,
            "bytes": usage.file + usage.wal,
            "used": usage.used,
            "budget": plan.journal.budget,
            "epochs": epochs,
            "acknowledged": {"epoch": _receipt(mark.receipt).epoch.hex(), "size": mark.size} if mark else None,
            "undelivered": [{"epoch": e.id.hex(), "first": a, "end": b} for e, a, b in journal.undelivered()],
            "contradicted": contradiction.detail if contradiction else None,
            "quarantined": quarantines(system.RealDisk(), path),
        }
    finally:
        journal.close()


def _epoch(journal: Journal, row: EpochRow) -> dict[str, Any]:
    _, size, root = journal.last_of(row)
    succession = journal.succession(row.number)
    facts: dict[str, Any] = {"epoch": row.id.hex(), "origin": row.origin, "size": size, "root": root.hex()}
    if succession:
        facts["why"] = f"{succession.kind} at {_time(succession.time_ms)}: {succession.reason}"
        facts["names"] = _named(succession.previous)
    return facts


def _named(previous: tuple[bytes, int, bytes] | None) -> str:
    return f"{previous[1]} entries of {previous[0].hex()} with root {previous[2].hex()}" if previous else "nothing"


def _check(plan: AgentPlan) -> dict[str, Any]:
    journal = _reading(Path(plan.journal.path))
    try:
        epochs = journal.epochs()
        checked = {epoch.id.hex(): journal.check_all(epoch) for epoch in epochs}
    finally:
        journal.close()
    return {
        "journal": plan.journal.path,
        "checked": [{"epoch": epoch, "first": first, "end": end} for epoch, (first, end) in checked.items()],
    }


def _salvage(source: Path, target: Path) -> dict[str, Any]:
    if target.exists():
        raise EnergybidError(f"{target} exists; name a new file")
    if not source.exists():
        raise EnergybidError(f"{source}: no such file")
    damaged = _reading(source)
    new = Journal(apsw.Connection(str(target)), str(target))
    try:
        found = rescue(damaged, new)
    finally:
        damaged.close()
        new.close()
    return {"source": str(source), "target": str(target), **found._asdict()}


def _new_epoch(plan: AgentPlan, reason: str) -> dict[str, Any]:
    path = plan.journal.path
    platform = system.platform()
    if not Path(path).exists():
        raise EnergybidError(f"{path}: no such file; the agent makes a journal by itself")
    with system.locked(path, system.HELD):
        journal = Journal(platform.open_database(path), path)
        try:
            head = journal.head
            if head is None:
                raise EnergybidError(f"{path} has no epoch yet; the agent begins the first one by itself")
            journal.check()
            contradiction = journal.contradiction()
            previous = journal.last_of(head.epoch)
            if contradiction:
                receipt = _receipt(contradiction.receipt)
                previous = receipt.epoch, receipt.size, receipt.root
            kind = ROLLED_BACK if contradiction else OPERATOR
            now_ms = platform.now_ns() // 1_000_000
            new = journal.begin_epoch(
                id_=platform.entropy(16),
                origin=plan.origin,
                secret=platform.entropy(SECRET_SIZE),
                succession=Succession(kind, reason, now_ms, previous, head.counter),
            )
        finally:
            journal.close()
    return {"journal": path, "epoch": new.epoch.id.hex(), "why": kind, "reason": reason, "names": _named(previous)}
