"""``energybid status``: what the running agent says of itself."""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from energybid.agent.config import load_plan
from energybid.core import exit_codes
from energybid.core.errors import EnergybidError

ROUNDS = 5
"""Of the market, the last ones are shown."""
_TROUBLES = {
    "error": "FAULT",
    "planner_error": "PLANNER",
    "asset_error": "ASSETS",
    "send_error": "BROKER",
    "waiting": "messages not sent yet",
}
HELP = "show what the running agent does: meters, log, uplink"
EXAMPLES = """\
examples:
  energybid status -c gateway.toml
  energybid status -f /run/energybid/status.json --json | jq .log
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``status``."""
    parser.add_argument("-c", "--config", type=Path, default=Path("/etc/energybid/gateway.toml"), help="gateway.toml")
    parser.add_argument("-f", "--file", type=Path, help="the status file itself, without a configuration")
    parser.add_argument("--json", action="store_true", help="print the status as it is")


def run(arguments: argparse.Namespace) -> int:
    """Print the status."""
    path = arguments.file or _path(arguments.config)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EnergybidError(f"{path}: {error.strerror}: is the agent running?") from None
    try:
        shown = text + "\n" if arguments.json else render(json.loads(text))
    except (ValueError, LookupError, TypeError):
        raise EnergybidError(f"{path}: is no status file of an agent of this version") from None
    sys.stdout.write(shown)
    return exit_codes.OK


def _path(config: Path) -> Path:
    path = load_plan(config).status.path
    if path is None:
        raise EnergybidError(f"{config} names no status file: add [status] path = ...")
    return Path(path)


def _time(time_ms: int | None) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if time_ms else "never"


def _journal(journal: dict[str, Any]) -> list[str]:
    full = journal["full_in_s"]
    when = f", full in {full / 86400:.1f} days at this rate" if full is not None else ""
    size = f"{journal['used'] / 1e6:.1f} of {journal['budget'] / 1e6:.0f} MB, {journal['stage']}{when}"
    lines = [f"journal  {size}"]
    if journal["not_logged"]:
        lines.append(f"         {journal['not_logged']} readings were not logged")
    if journal["error"]:
        lines.append(f"         THE DISK REFUSES: {journal['error']}")
    return lines + [f"         QUARANTINED: {path}" for path in journal["quarantined"]]


def _learned(learned: dict[str, Any]) -> list[str]:
    """What was learned of a meter, as one line, and one more for registers that it refuses."""
    facts = []
    if learned.get("delay_ms"):
        facts.append(f"answers after {learned['delay_ms'][0]:g} ms, nearly always within {learned['delay_ms'][1]:g} ms")
        facts.append(f"time-out {learned['timeout_ms']} ms")
    if learned.get("turnaround_ms"):
        facts.append(f"rest of {learned['turnaround_ms']:g} ms before a request")
    lines = [f"    {', '.join(facts)}"] if facts else []
    refused = [f"{span['registers']} (again in {_span(span['retry_s'])})" for span in learned.get("unreadable", ())]
    return lines + ([f"    can not be read: {', '.join(refused)}"] if refused else [])


def _point(point: dict[str, Any]) -> list[str]:
    """Who holds a number; nothing for one that nobody holds and that is safe."""
    if not point["open"] and not point["leases"]:
        return []
    written = "unknown" if point["written"] is None else f"{point['written']} {point['unit']}"
    lines = [f"  {point['point']}: {written}" + ("" if point["leases"] else ", to be made safe")]
    for lease in point["leases"]:
        state = "" if lease["active"] else ", waits"
        lines.append(
            f"    {lease['owner']} ({lease['rank']}): {lease['value']} {point['unit']}"
            f" for {lease['left_s']:.0f} s more{state}"
        )
    return lines


def _proxy(proxy: dict[str, Any]) -> list[str]:
    """Who shares a bus through a proxy, and what became of the requests."""
    refused = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in proxy["refused"].items())
    facts = f"{proxy['requests']} requests: {proxy['cached']} from what was read, {proxy['asked']} asked"
    lines = [f"  proxy {proxy['place']} for {proxy['bus']}: {proxy['error'] or facts}"]
    lines += [f"    {refused}"] if refused else []
    return lines + [f"    master {client['name']}: {client['requests']} requests" for client in proxy["clients"]]


def _market(told: dict[str, Any]) -> list[str]:
    """The part in a market: what is followed, prices and their age, what was refused, the last rounds."""
    target = told.get("target_w")
    now = "nothing is followed" if target is None else f"{target:,} W of net import are followed"
    lines = [f"market   {told['name']}: {now}"]
    prices = [f"{curve.replace('_', ' ')} {_span(held['age_s'])} old" for curve, held in told["prices"].items()]
    lines.append(f"         prices: {', '.join(prices) or 'none'}")
    lines += [f"         {what}: {told[key]}" for key, what in _TROUBLES.items() if told.get(key)]
    if told["refused"]:
        refused = ", ".join(f"{count} {why.replace('_', ' ')}" for why, count in told["refused"].items())
        lines.append(f"         refused messages: {refused}; {told['not_logged']} of them are not in the log")
    lines += [f"  {_asset(asset)}" for asset in told.get("assets", ())]
    return lines + [f"  {_round(made)}" for made in told["rounds"][-ROUNDS:]]


def _asset(asset: dict[str, Any]) -> str:
    """What it takes, and what it was told to take."""
    power = "unknown" if asset["power_w"] is None else f"{asset['power_w']:,} W"
    command = "left to itself" if asset["command_w"] is None else f"commanded {asset['command_w']:,} W"
    out = f"; does not bid: {asset['out']}" if asset["out"] else ""
    return f"asset {asset['name']}: {power}, {command}{out}"


def _round(made: dict[str, Any]) -> str:
    facts = [f"round {made['number']} {_time(made['begins_ms'])} {made['state']}"]
    if "net_w" in made:
        facts.append(f"{made['net_w']:,} W at {made['price']}")
    if "verdict" in made:
        facts.append(made["verdict"].replace("_", " "))
    if "amount" in made:
        facts.append(f"{made['delivered_wh']:,} Wh delivered, {made['amount']}")
    return ", ".join(facts)


def _span(seconds: int) -> str:
    return f"{seconds / 3600:.0f} h" if seconds >= 2 * 3600 else f"{seconds / 60:.0f} min"


def render(status: dict[str, Any]) -> str:
    """The status for a person's eyes."""
    log, uplink, receipt = status["log"], status["uplink"], status["receipt"]
    link = "connected" if uplink["connected"] else uplink["error"] or "not connected"
    lines = [
        f"{status['gateway']}  {_time(status['time_ms'])}  clock {status['clock']}  version {status['version']}",
        f"log      {log['size']} entries, {log['committed']} committed, {log['acknowledged']} acknowledged",
        *_journal(status["journal"]),
        f"uplink   {link if uplink['configured'] else 'not configured'}",
        f"receipt  {receipt['size']} entries at {_time(receipt['time_ms'])}" if receipt else "receipt  none yet",
    ]
    for m in status["meters"]:
        place = f"  {m['name']:20} {m['bus']:12} unit {m['unit']:3}"
        lines.append(f"{place}  {m['state']:8} {_time(m['time_ms'])}  {m['error']}".rstrip())
        lines += _learned(m.get("learned", {}))
    if status.get("market"):
        lines += _market(status["market"])
    for point in status.get("control", ()):
        lines += _point(point)
    for proxy in status.get("proxies", ()):
        lines += _proxy(proxy)
    return "\n".join(lines) + "\n"
