"""``energybid headend``: run the utility's side, or look at what it stored."""

import argparse
import asyncio
import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw

from energybid.core import exit_codes
from energybid.core.errors import EnergybidError, JournalError
from energybid.headend.config import database_path, load_plan
from energybid.headend.status import facts
from energybid.headend.store import Store, known
from energybid.headend.system import serve

HELP = "the utility's side: receive, verify, store, sign receipts"
EXAMPLES = """\
examples:
  energybid keys new keys/headend.pem            the key that signs receipts
  energybid headend run -c headend.toml
  energybid headend status -c headend.toml --json

SIGTERM or Ctrl-C stops it within 5 s. Conflicts in "status" are evidence of two logs under one key: see sync/README.md.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``headend``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run_parser = actions.add_parser("run", help="receive batches until stopped")
    run_parser.add_argument("--json-logs", action="store_true", help="logs as JSON lines, whatever the file says")
    status = actions.add_parser("status", help="show gateways, receipts, conflicts; also while it runs")
    status.add_argument("--json", action="store_true", help="print one JSON object")
    for action in (run_parser, status):
        action.add_argument(
            "-c", "--config", type=Path, default=Path("/etc/energybid-headend/headend.toml"), help="headend.toml"
        )


def run(arguments: argparse.Namespace) -> int:
    """Run or show."""
    if arguments.action == "status":
        report = _facts(database_path(arguments.config))
        sys.stdout.write(json.dumps(report) + "\n" if arguments.json else render(report))
        return exit_codes.OK
    plan = load_plan(arguments.config)
    _configure_logs(as_json=plan.json_logs or arguments.json_logs)
    asyncio.run(serve(plan.database, plan.key, plan.uplink, plan.gateways))
    return exit_codes.OK


def _facts(path: Path) -> dict[str, Any]:
    try:
        database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            if known(database) is None:
                raise EnergybidError(f"{path} is not a head-end's database")
            return facts(Store(database, str(path)))
        finally:
            database.close()
    except apsw.Error as error:
        raise JournalError(f"{path}: {error}") from None


def render(report: dict[str, Any]) -> str:
    """The facts for a person's eyes."""
    lines = [f"{report['entries']} entries, {report['readings']} readings, {report['conflicts']} conflicts"]
    for gateway in report["gateways"]:
        waiting = f", {gateway['pending']} batches wait for earlier ones" if gateway["pending"] else ""
        lines.append(f"{gateway['origin']}{waiting}" + ("" if gateway["epochs"] else ": nothing yet"))
        for epoch in gateway["epochs"]:
            receipt = epoch["receipt"]
            last = f"receipt for {receipt['size']} at {_time(receipt['time_ms'])}" if receipt else "no receipt"
            lines.append(f"  epoch {epoch['epoch']}  {epoch['size']} entries  {last}")
        lines += [
            f"  CONFLICT {c['kind']} {_time(c['received_ms'])} {c['first']} to {c['end']}: {c['detail']}"
            for c in gateway["conflicts"]
        ]
    return "\n".join(lines) + "\n"


def _time(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": round(record.created, 3),
                "level": record.levelname.lower(),
                "logger": record.name,
                "message": record.getMessage(),
            }
        )


def _configure_logs(*, as_json: bool) -> None:
    handler = logging.StreamHandler()
    human = logging.Formatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    handler.setFormatter(_JsonFormatter() if as_json else human)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
