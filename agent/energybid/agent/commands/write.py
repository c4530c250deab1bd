"""``energybid write``: one register that the profile names. Thin: the checks are in ``cabinet/writing``."""

import argparse
import asyncio
import json
import sys

from energybid.agent.cabinet.places import (
    TARGETS,
    Place,
    add_place_arguments,
    mindful_of_the_agent,
    place_of,
    refuse_what_is_held,
)
from energybid.agent.cabinet.writing import (
    Change,
    Written,
    alone,
    bounds_text,
    change_of,
    facts,
    plain,
    read_old,
    value_text,
    write,
)
from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, EnergybidError, MeterError, RefusedError
from energybid.core.ports import Driver
from energybid.drivers.commands.system import platform
from energybid.drivers.modbus.driver import open_driver

HELP = "write one of the registers that the meter's profile lets one write"
EXAMPLES = f"""\
examples:
  energybid write /dev/ttyUSB0 --unit 2 --profile eastron-sdm630 demand-period 900
  energybid write -c gateway.toml main demand-period 900 --yes --json
  energybid profile show eastron-sdm630                    what may be written, and within which bounds

The old value is shown, you are asked, it is written, read back and compared. Nothing is undone: where the meter holds
another value afterwards, exit code 1 and the message say so. With -c, what the running agent holds is not written.
{TARGETS}"""
YES = {"y", "yes"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``write``."""
    add_place_arguments(parser)
    parser.add_argument("name", metavar="NAME", help="one of the profile's [[writable]]")
    parser.add_argument("value", metavar="VALUE", help="a decimal number in its unit")
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")
    parser.add_argument("--json", action="store_true", help="print one JSON object; needs --yes")


def run(arguments: argparse.Namespace) -> int:
    """Write."""
    place = alone(place_of(arguments))
    change = change_of(place, arguments.name, arguments.value)
    if not arguments.yes and (arguments.json or not sys.stdin.isatty()):
        raise ConfigurationError(["--yes is missing: there is nobody here to be asked"])
    written = asyncio.run(_change(arguments, place, change))
    if written is None:
        sys.stderr.write("not written\n")
        return exit_codes.FAILED
    ok = written.after == change.raw
    if arguments.json:
        sys.stdout.write(json.dumps(facts(place, change, written)) + "\n")
    else:
        before, after = value_text(change.writable, written.before), value_text(change.writable, written.after)
        fault = "" if ok else f"; that is NOT what was written ({value_text(change.writable, change.raw)})"
        sys.stdout.write(f"{change.writable.name}: was {before}, is {after}{fault}\n")
    return exit_codes.OK if ok else exit_codes.FAILED


async def _change(arguments: argparse.Namespace, place: Place, change: Change) -> Written | None:
    real = platform()
    refuse_what_is_held(place, change.writable.name, real.now_ns())
    driver = open_driver(real, place.bus)
    try:
        with mindful_of_the_agent(place, real.now_ns):
            before = await read_old(driver, place, change)
        if not arguments.yes and not _confirmed(place, change, before):
            return None
        refuse_what_is_held(place, change.writable.name, real.now_ns())  # a person takes time to answer
        return Written(before, await _written(driver, place, change))
    finally:
        await driver.close()


async def _written(driver: Driver, place: Place, change: Change) -> bytes:
    try:
        return await write(driver, place, change)
    except RefusedError:
        raise
    except MeterError as error:
        raise EnergybidError(f"{error}; it may have been written nevertheless: look with energybid read") from None


def _confirmed(place: Place, change: Change, before: bytes) -> bool:
    """Ask, on the terminal. The meter is not waiting for anything meanwhile."""
    writable = change.writable
    unit = "" if writable.unit == "1" else f" {writable.unit}"
    sys.stderr.write(f"{place.title}\nat {place.where}\n{bounds_text(writable)}; now {value_text(writable, before)}\n")
    sys.stderr.write(f"write {plain(change.value)}{unit}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in YES
