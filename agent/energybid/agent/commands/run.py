"""``energybid run``: check the configuration, then become the agent."""

import argparse
import dataclasses
from pathlib import Path

from energybid.agent.config import load_plan
from energybid.agent.system import execute_plan

HELP = "run the agent: read the meters, sign, store, upload"
EXAMPLES = """\
examples:
  energybid run -c /etc/energybid/gateway.toml
  energybid run -c gateway.toml --json-logs

SIGTERM or Ctrl-C stops it within 5 s; what was read is committed and, if the broker is there, sent.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``run``."""
    parser.add_argument("-c", "--config", type=Path, default=Path("/etc/energybid/gateway.toml"), help="gateway.toml")
    parser.add_argument("--json-logs", action="store_true", help="logs as JSON lines, whatever the file says")


def run(arguments: argparse.Namespace) -> int:
    """Never returns when the configuration is right."""
    plan = load_plan(arguments.config)
    if arguments.json_logs:
        plan = dataclasses.replace(plan, json_logs=True)
    execute_plan(plan)
