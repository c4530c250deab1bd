"""``energybid simulate market``: a market's rounds until stopped."""

import argparse
import asyncio
import json
import sys

from energybid.core import exit_codes
from energybid.simulator.market.config import load_plan
from energybid.simulator.market.operator import Event
from energybid.simulator.market.system import serve
from energybid.simulator.market.view import Rounds
from energybid.simulator.system import stop_event


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    return asyncio.run(_market(arguments))


async def _market(arguments: argparse.Namespace) -> int:
    plan, rounds = load_plan(arguments.config), Rounds()
    stop = stop_event()

    def tell(event: Event) -> None:
        line = json.dumps({"event": event.kind, **event.facts}) + "\n" if arguments.json else rounds.take(event)
        sys.stdout.write(line)
        sys.stdout.flush()

    tell(Event("ready", {"market": plan.terms.name, "gateways": len(plan.members)}))
    if arguments.for_s:
        asyncio.get_running_loop().call_later(arguments.for_s, stop.set)
    await serve(plan, stop, tell)
    return exit_codes.OK
