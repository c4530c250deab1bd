"""``energybid read``: one meter once, values and raw registers. Thin: reading and wording are in ``cabinet``."""

import argparse
import asyncio
import json
import sys
from typing import Any

from energybid.agent.cabinet.places import TARGETS, Place, add_place_arguments, mindful_of_the_agent, place_of
from energybid.agent.cabinet.reading import Asked, Look, Reader
from energybid.agent.cabinet.table import asked_facts, delays_text, look_facts, look_lines, run_lines, run_rows
from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, MeterError
from energybid.drivers.commands.system import platform
from energybid.drivers.dump import CAUTIOUS, Span, parse_span
from energybid.drivers.modbus.map import REGISTERS_MAX, TYPES
from energybid.drivers.modbus.unit import REFUSED
from energybid.drivers.probe import Prober

HELP = "read one meter once: all quantities, raw registers beside the values"
EXAMPLES = f"""\
examples:
  energybid read -c gateway.toml heatpump
  energybid read /dev/ttyUSB0 --unit 2 --profile abb-b23
  energybid read tcp://192.168.1.50 --unit 1 --profile eastron-sdm630 --json
  energybid read /dev/ttyUSB0 --unit 2 --registers holding:0-9
  energybid read /dev/ttyUSB0 --unit 2 --registers input:0-9 --type float32
  energybid read -c gateway.toml heatpump --registers holding:0x5000-0x5007 --type uint32 --word-order little

A serial port has room for one program: stop the agent first, or see what it reads with energybid status.
Exit code 1: the meter did not answer, or not all of it.
{TARGETS}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``read``."""
    add_place_arguments(parser)
    group = parser.add_argument_group("raw registers in place of quantities")
    group.add_argument(
        "--registers", type=_span, action="append", metavar="TABLE:A-B", help="such as holding:0-9; repeatable"
    )
    group.add_argument("--type", choices=sorted(TYPES), help="take them for numbers of this type")
    group.add_argument("--word-order", choices=("big", "little"), default="big", help="little: least register first")
    group.add_argument("--byte-order", choices=("big", "little"), default="big", help="within each register")
    group.add_argument("--most", type=int, metavar="N", help="registers in one request (default: the profile's, or 40)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _span(text: str) -> Span:
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Read."""
    if arguments.most is not None and not 1 <= arguments.most <= REGISTERS_MAX:
        raise ConfigurationError([f"--most: is 1 to {REGISTERS_MAX} (found {arguments.most})"])
    if arguments.type and not arguments.registers:
        raise ConfigurationError(["--type: is for --registers; quantities have the types of their profile"])
    place = place_of(arguments, needs_profile=not arguments.registers)
    if arguments.registers:
        return asyncio.run(_registers(arguments, place))
    look = asyncio.run(_look(place))
    if arguments.json:
        sys.stdout.write(json.dumps(look_facts(place, look)) + "\n")
    else:
        sys.stdout.write("\n".join(look_lines(place, look)) + "\n")
    return exit_codes.OK if look.whole else exit_codes.FAILED


async def _look(place: Place) -> Look:
    real = platform()
    prober = Prober(real.open_bus, place.target)
    try:
        with mindful_of_the_agent(place, real.now_ns):
            reader = Reader(prober, place, real.now_ns)
            look = await reader.look()
            if not look.read:
                raise reader.error(look.outcome)
            return look
    finally:
        await prober.close()


async def _registers(arguments: argparse.Namespace, place: Place) -> int:
    real = platform()
    prober = Prober(real.open_bus, place.target)
    size = TYPES[arguments.type].registers if arguments.type else 1
    most = arguments.most or (place.loaded.profile.max_registers if place.loaded else CAUTIOUS)
    most = max(size, most - most % size)
    orders = {"little": arguments.word_order == "little", "swap": arguments.byte_order == "little"}
    rows: list[dict[str, Any]] = []
    asked: list[Asked] = []
    fault: MeterError | None = None
    reader = Reader(prober, place, real.now_ns)
    try:
        for function, first, end in arguments.registers:
            with mindful_of_the_agent(place, real.now_ns):
                runs = await reader.registers(function, first, end, most)
            asked += reader.asked
            for run_ in runs:
                rows += run_rows(run_, arguments.type, **orders)
                if not isinstance(run_.outcome, bytes) and run_.outcome not in REFUSED:
                    fault = reader.error(run_.outcome)
    finally:
        await prober.close()
    if arguments.json:
        facts = {"unit": place.unit, "registers": rows, "requests": [asked_facts(one) for one in asked]}
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        lines = [f"{place.title} at {place.where}", delays_text(asked), "", *run_lines(rows, arguments.type)]
        sys.stdout.write("\n".join(lines) + "\n")
    if fault is not None:
        with mindful_of_the_agent(place, real.now_ns):
            raise fault
    return exit_codes.OK
