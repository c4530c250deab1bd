"""``energybid forecast``: what the gateway expects of its next day, and by which model; and back to the one before."""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from energybid.agent.commands.override import ask, socket_of, who
from energybid.agent.config import load_plan
from energybid.agent.databases import opened
from energybid.agent.journal import Journal
from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, EnergybidError
from energybid.sync.system import now_ns

HELP = "show the load, sun and temperature that are expected, and how the models do"
EXAMPLES = """\
examples:
  energybid forecast -c gateway.toml
  energybid forecast --json | jq '.models[] | select(.used)'
  sudo energybid forecast back                the model in use goes back to its version before
  sudo energybid forecast back regression     the same of another model

Read from the journal, where the agent keeps what it has learned every hour and at a stop. "back" is for a model that
has learned something wrong (a broken sensor, a week of guests): the running agent does it, says so in its log and keeps
it over restarts. A version before, up to a week old, is kept of models that learn. Who may: root, and the group of the
agent's socket (energybid).
"""
PREFIX = "planner/"
"""Of what the journal remembers (``market.tutor``)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``forecast``."""
    parser.add_argument("do", nargs="?", choices=("back",), help="have a model go back to its version before")
    parser.add_argument("model", nargs="?", metavar="MODEL", help="which; the one in use where it is not given")
    parser.add_argument("-c", "--config", type=Path, default=Path("/etc/energybid/gateway.toml"), help="gateway.toml")
    parser.add_argument("--json", action="store_true", help="print one JSON object; power in W, temperatures in °C")


def run(arguments: argparse.Namespace) -> int:
    """Show, or go back."""
    text = _back(arguments) if arguments.do else _show(arguments)
    sys.stdout.write(text)
    return exit_codes.OK


def _back(arguments: argparse.Namespace) -> str:
    answer = ask(socket_of(arguments.config), {"do": "forecast back", "model": arguments.model, "who": who()})
    if not answer["kept"]:
        sys.stderr.write(f"it does not survive a restart, until the agent can keep it: {answer['why']}\n")
    if arguments.json:
        return json.dumps(answer) + "\n"
    return f"{answer['model']} is back at its version before, which is version {answer['version']} now\n"


def _show(arguments: argparse.Namespace) -> str:
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    plan = load_plan(arguments.config)
    if plan.market is None:
        raise ConfigurationError([f"{arguments.config} has no [market]: nothing is forecast without one"])
    from energybid.agent.market.foretold import foretold, shown  # noqa: PLC0415 (numpy: only who asks for this loads it)
    from energybid.agent.market.planner import SitePlanner  # noqa: PLC0415

    path = Path(plan.journal.path)
    with opened(path) as database:
        kept = Journal(database, str(path), check=False).recall(PREFIX)
    if not kept:
        raise EnergybidError(
            f"{path}: nothing is learned yet: a running agent that takes part in its market keeps it every hour and at"
            " a stop; energybid status says whether it does"
        )
    market = plan.market
    planner = SitePlanner(market.name, market.import_limit_w, market.export_limit_w, market.timezone)
    planner.restore({key.removeprefix(PREFIX): piece for key, piece in kept.items()})
    told = foretold(planner.planning, market.timezone, now_ns() // 1_000_000)
    if arguments.json:
        return json.dumps(told) + "\n"
    return "".join(f"{line}\n" for line in shown(told, shutil.get_terminal_size().columns))
