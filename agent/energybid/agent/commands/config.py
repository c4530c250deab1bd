"""``energybid config``: check gateway.toml."""

import argparse
import json
import sys
from pathlib import Path

from energybid.agent.config import load_plan
from energybid.agent.market.plan import AssetPlan
from energybid.agent.plan import AgentPlan
from energybid.core import exit_codes

HELP = "check a configuration"
EXAMPLES = """\
examples:
  energybid config check -c gateway.toml         every fault: file, key, what is allowed; exit 2
  energybid config check -c gateway.toml --json  the meters as they will be polled
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``config``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="check gateway.toml and all it names")
    check.add_argument("-c", "--config", type=Path, default=Path("/etc/energybid/gateway.toml"), help="gateway.toml")
    check.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Check."""
    plan = load_plan(arguments.config)
    if arguments.json:
        sys.stdout.write(json.dumps(describe(plan)) + "\n")
    else:
        for bus in plan.buses:
            for meter in bus.meters:
                count = sum(len(group.quantities) for group in meter.groups)
                sys.stdout.write(
                    f"{bus.name}  unit {meter.unit:3}  {meter.name}  {meter.profile}  {count} quantities\n"
                )
        for asset in plan.market.assets if plan.market else ():
            sys.stdout.write(f"asset  {asset.name}  {asset_kind(asset)}  set by {asset.control.point}\n")
        sys.stdout.write(f"{arguments.config}: no fault\n")
    return exit_codes.OK


def asset_kind(asset: AssetPlan) -> str:
    """As ``[[market.asset]]`` calls it."""
    return type(asset).__name__.removesuffix("Plan").lower()


def describe(plan: AgentPlan) -> dict[str, object]:
    """What will be polled, without keys and passwords."""
    return {
        "gateway": plan.origin,
        "journal": plan.journal.path,
        "broker": f"{plan.uplink.settings.host}:{plan.uplink.settings.port}" if plan.uplink else None,
        "buses": [
            {
                "name": bus.name,
                "kind": bus.kind,
                "meters": [
                    {
                        "name": meter.name,
                        "unit": meter.unit,
                        "profile": meter.profile,
                        "groups": [
                            {
                                "interval_s": group.interval_s,
                                "quantities": [f"{q.obis} {q.unit} 1e{q.exponent}" for q in group.quantities],
                            }
                            for group in meter.groups
                        ],
                    }
                    for meter in bus.meters
                ],
            }
            for bus in plan.buses
        ],
        "market": plan.market
        and {
            "name": plan.market.name,
            "meter": plan.market.meter,
            "import_limit_w": plan.market.import_limit_w,
            "export_limit_w": plan.market.export_limit_w,
            "assets": [
                {"name": asset.name, "kind": asset_kind(asset), "set": asset.control.point}
                for asset in plan.market.assets
            ],
        },
    }
