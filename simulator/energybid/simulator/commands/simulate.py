"""``energybid simulate``: serve simulated things. ``bus``: meters on Modbus TCP and RTU."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from energybid.core import exit_codes
from energybid.simulator.config import duration, load_bus_file
from energybid.simulator.serve import Place, Served, serve
from energybid.simulator.system import stop_event

HELP = "serve simulated meters that replay a recorded household"
EXAMPLES = """\
examples:
  energybid simulate bus -c bus.toml               until Ctrl-C or SIGTERM
  energybid simulate bus -c bus.toml --for 30s     then end by itself
  energybid simulate bus -c bus.toml --json        one JSON line when ready, one at the end
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``simulate``."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    bus = what.add_parser("bus", help="meters on Modbus TCP and Modbus RTU buses")
    bus.add_argument("-c", "--config", type=Path, required=True, help="bus.toml; simulator/README.md shows one")
    bus.add_argument("--for", dest="for_s", type=duration, metavar="DURATION", help="end after so long, such as 30s")
    bus.add_argument("--json", action="store_true", help="JSON lines on stdout: ready, stopped")


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped."""
    return asyncio.run(_serve(arguments))


async def _serve(arguments: argparse.Namespace) -> int:
    file = load_bus_file(arguments.config)
    stop = stop_event()
    async with serve(file, arguments.config.parent) as served:
        _tell(_ready(served), as_json=arguments.json)
        try:
            async with asyncio.timeout(arguments.for_s):
                await stop.wait()
        except TimeoutError:
            pass
        _tell(_stopped(served), as_json=arguments.json)
    return exit_codes.OK


def _place(place: Place) -> dict[str, Any]:
    return {"name": place.name, "kind": place.kind, **place.address, "units": place.units}


def _ready(served: Served) -> dict[str, Any]:
    return {"event": "ready", "buses": [_place(place) for place in served.places]}


def _stopped(served: Served) -> dict[str, Any]:
    return {"event": "stopped", "buses": [{"name": p.name, **p.bus.counts} for p in served.places]}


def _tell(facts: dict[str, Any], *, as_json: bool) -> None:
    lines = [json.dumps(facts)] if as_json else [facts["event"], *map(_line, facts["buses"])]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _line(bus: dict[str, Any]) -> str:
    return "  " + "  ".join(f"{key} {value}" if key != "name" else str(value) for key, value in bus.items())
