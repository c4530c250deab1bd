"""``energybid doctor``: is the installation wired right, is the bus well. Thin: the checks are in ``cabinet``."""

import argparse
import asyncio
import json
import sys
from itertools import groupby
from typing import Any

from energybid.agent.cabinet.examination import Patient, Round, measured
from energybid.agent.cabinet.findings import Finding, Severity, counts, facts, lines
from energybid.agent.cabinet.places import TARGETS, Place, add_place_arguments, duration, places_of
from energybid.core import exit_codes
from energybid.drivers.commands.progress import ProgressLine
from energybid.drivers.commands.system import platform, terminal_width

HELP = "check how meters are wired and how well their buses do"
EXAMPLES = f"""\
examples:
  energybid doctor -c gateway.toml                   all meters, 10 s of watching at each bus
  energybid doctor -c gateway.toml heatpump --for 5min
  energybid doctor /dev/ttyUSB0 --unit 2 --profile abb-b23 --no-plant
  energybid doctor -c gateway.toml --json

Reads only. Wiring shows under load: switch something on in each phase first. --for 60s and more compares counted energy
with power. Exit codes: 0 nothing to do, 1 something is wrong or probably so, 2 arguments or configuration.
{TARGETS}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``doctor``."""
    add_place_arguments(parser, several=True)
    parser.add_argument(
        "--for", type=duration, dest="period", default=10.0, metavar="TIME", help="watch so long (default: 10s)"
    )
    parser.add_argument("--no-plant", action="store_true", help="nothing generates at this site: export is a fault")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Examine."""
    places = places_of(arguments)
    line = ProgressLine(terminal_width())
    try:
        rounds = asyncio.run(_examine(arguments, places, line))
    finally:
        line.clear()
    found = [finding for round_ in rounds for finding in round_.all_findings()]
    if arguments.json:
        sys.stdout.write(json.dumps(_facts(rounds, found)) + "\n")
    else:
        sys.stdout.write("\n".join(_report(rounds, found)) + "\n")
    return exit_codes.FAILED if counts(found) else exit_codes.OK


async def _examine(arguments: argparse.Namespace, places: list[Place], line: ProgressLine) -> list[Round]:
    real = platform()
    rounds = [
        Round(real, list(meters), plant=not arguments.no_plant)
        for _, meters in groupby(places, key=lambda place: place.bus.name)
    ]
    shares = dict.fromkeys(range(len(rounds)), 0.0)

    def tell(number: int, share: float) -> None:
        shares[number] = share
        least = min(shares.values())
        line.show("watching the meters", least, arguments.period * (1 - least))

    await asyncio.gather(
        *(r.examine(arguments.period, lambda share, n=n: tell(n, share)) for n, r in enumerate(rounds))  # type: ignore[misc]
    )
    return rounds


def _report(rounds: list[Round], found: list[Finding]) -> list[str]:
    """For people: each bus and meter, what was found of it."""
    text: list[str] = []
    for round_ in rounds:
        own = [finding for finding in found if finding.where == round_.bus.name]
        if own:
            text += [f"bus {round_.where}", *(line for finding in own for line in lines(finding)), ""]
        for patient in round_.patients:
            text += [*_patient(patient, [f for f in found if f.where == patient.place.name]), ""]
    number = sum(finding.severity != Severity.NOTE for finding in found)
    return [*text, f"{number} to look into" if number else "Nothing to look into."]


def _patient(patient: Patient, own: list[Finding]) -> list[str]:
    text = [patient.place.title, f"  {'at':8}{patient.place.where}"]
    sight = patient.sight
    if sight is not None:
        for name, values, unit, digits in (
            ("voltage", sight.voltage, "V", 1),
            ("current", sight.current, "A", 2),
            ("power", sight.power, "W", 0),
        ):
            shown = [f"L{n + 1} {value:.{digits}f} {unit}" for n, value in enumerate(values) if value is not None]
            if shown:
                text.append(f"  {name:8}{'   '.join(f'{part:12}' for part in shown).rstrip()}")
        text.append(f"  {'bus':8}{patient.statistics.text()}")
    text += [line for finding in own for line in lines(finding)]
    if not own and sight is not None:
        text.append("  fine")
    return text


def _facts(rounds: list[Round], found: list[Finding]) -> dict[str, Any]:
    """For programs."""
    meters = []
    for round_ in rounds:
        for patient in round_.patients:
            sight = patient.sight
            meters.append(
                {
                    "name": patient.place.name,
                    "bus": round_.bus.name,
                    "unit": patient.place.unit,
                    "profile": patient.place.loaded.name if patient.place.loaded else None,
                    "serial_number": patient.serial_number,
                    "measured": measured(sight) if sight else None,
                    "service": patient.statistics.facts(),
                }
            )
    return {"ok": not counts(found), "meters": meters, "findings": [facts(finding) for finding in found]}
