"""``energybid simulate``: serve simulated things. ``bus`` and ``profiles`` live here: meters on Modbus buses.

``world`` and ``market`` are modules beside this, imported where they are asked for: on a small machine that counts.
"""

import argparse
import asyncio
import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from energybid.core import exit_codes
from energybid.core.settings import check
from energybid.simulator.config import BusFile, duration, load_bus_file
from energybid.simulator.meters import device_profiles
from energybid.simulator.serve import Place, Served, serve
from energybid.simulator.system import stop_event

HELP = "serve simulated meters, or run the whole system in virtual time"
EXAMPLES = """\
examples:
  energybid simulate bus -c bus.toml               until Ctrl-C or SIGTERM
  energybid simulate bus -c bus.toml --for 30s     then end by itself
  energybid simulate bus -c bus.toml --json        one JSON line when ready, one at the end
  energybid simulate bus --dump recorded.toml      a meter recorded by `energybid dump`, on TCP
  energybid simulate bus --dump recorded.toml --device line.tty --unit 7

  energybid simulate profiles FOLDER               the profiles of its devices (batteries, wallboxes ...) as files

  energybid simulate market -c market.toml         rounds, prices, awards and statements, until Ctrl-C or SIGTERM
  energybid simulate market -c market.toml --json  one JSON line for each event

  energybid simulate world --seed 7 --days 3 --faults all
  energybid simulate world --seed 1 --seeds 200 --jobs 2             200 worlds of one day, on two cores
  energybid simulate world --seed 7 --large                          ten meters, polled every 10 s
  energybid simulate world --seed 7 --market --days 0.25             a site that bids in rounds of 15 minutes
  energybid simulate world --seed 7 --faults headend,agent_killed    only these
  energybid simulate world --seed 7 --scenario scenario.toml         simulator/README.md shows one

A world is one process: gateways, meters, broker and head-end on a clock of their own. The same seed gives the same
trace hash. Where an invariant does not hold, the exit code is 3, the command that shows it again is printed, and an
event log is written.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``simulate``."""
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    bus = what.add_parser("bus", help="meters on Modbus buses: TCP, TLS, UDP, RTU, ASCII, RTU over TCP")
    source = bus.add_mutually_exclusive_group(required=True)
    source.add_argument("-c", "--config", type=Path, help="bus.toml; simulator/README.md shows one")
    source.add_argument("--dump", metavar="FILE", help="one recorded meter (see `energybid dump`) instead")
    bus.add_argument("--unit", type=int, default=1, metavar="N", help="with --dump: its address (default: 1)")
    bus.add_argument("--port", type=int, default=0, metavar="N", help="with --dump: TCP port (default: a free one)")
    bus.add_argument("--device", metavar="LINK", help="with --dump: on a pty at 9600 baud that this link points to")
    bus.add_argument("--for", dest="for_s", type=duration, metavar="DURATION", help="end after so long, such as 30s")
    bus.add_argument("--json", action="store_true", help="JSON lines on stdout: ready, stopped")
    profiles = what.add_parser("profiles", help="write the profiles of simulated devices, for gateway.toml")
    profiles.add_argument("folder", type=Path, help="where to; made if it is not there")
    market = what.add_parser("market", help="a market: announces rounds, clears bids, awards, settles")
    market.add_argument("-c", "--config", type=Path, required=True, help="market.toml; simulator/README.md shows one")
    market.add_argument("--for", dest="for_s", type=duration, metavar="DURATION", help="end after so long")
    market.add_argument("--json", action="store_true", help="JSON lines on stdout, one for each event")
    world = what.add_parser("world", help="the whole system in virtual time, with faults, and its invariants checked")
    world.add_argument("--seed", type=int, default=1, help="everything that happens follows from it (default: 1)")
    world.add_argument("--seeds", type=int, default=1, metavar="N", help="so many worlds, from --seed on")
    world.add_argument("--jobs", type=int, default=1, metavar="N", help="worlds at the same time, each on a core")
    world.add_argument("--days", type=float, default=1.0, help="of trouble; calm follows, until all is delivered")
    world.add_argument("--faults", help="all (the default), none, or names with commas between")
    size = world.add_mutually_exclusive_group()
    size.add_argument("--large", action="store_true", help="ten meters, polled every 10 s; else three, every 60 s")
    size.add_argument("--market", action="store_true", help="two meters, and a house with a battery that bids")
    size.add_argument("--scenario", type=Path, help="scenario.toml instead")
    world.add_argument("--log", type=Path, default=Path(), metavar="FOLDER", help="where event logs of failures go")
    world.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Serve until stopped, or simulate."""
    if arguments.what in {"world", "market"}:
        return int(import_module(f"{__name__}_{arguments.what}").run(arguments))
    if arguments.what == "profiles":
        return _profiles(arguments.folder)
    return asyncio.run(_serve(arguments))


def _profiles(folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in device_profiles():
        (folder / name).write_bytes(data)
        sys.stdout.write(f"{folder / name}\n")
    return exit_codes.OK


# ---------------------------------------------------------------- bus


async def _serve(arguments: argparse.Namespace) -> int:
    file = _one_recorded(arguments) if arguments.dump else load_bus_file(arguments.config)
    stop = stop_event()
    async with serve(file, Path() if arguments.dump else arguments.config.parent) as served:
        _tell(_ready(served), as_json=arguments.json)
        try:
            async with asyncio.timeout(arguments.for_s):
                await stop.wait()
        except TimeoutError:
            pass
        _tell(_stopped(served), as_json=arguments.json)
    return exit_codes.OK


def _one_recorded(arguments: argparse.Namespace) -> BusFile:
    """A bus.toml with one recorded meter."""
    where = {"kind": "modbus-tcp", "port": arguments.port, "unknown_unit": "silence"}
    if arguments.device:
        where = {"kind": "modbus-rtu", "device": arguments.device}
    meter = {"name": "recorded", "unit": arguments.unit, "dump": arguments.dump}
    return check("command line", {"bus": [{"name": "recorded", **where, "meter": [meter]}]}, BusFile)


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
