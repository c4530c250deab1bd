"""``energybid profile sunspec``: a profile made of one SunSpec device, by reading its chain of models."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, NoReplyError
from energybid.drivers.commands.system import platform, replace_file
from energybid.drivers.probe import WIRES, Prober
from energybid.drivers.profile import LoadedProfile, parse_profile
from energybid.drivers.sunspec.device import Device, read_device
from energybid.drivers.sunspec.models import MODELS
from energybid.drivers.sunspec.profile import Choice, profile_text
from energybid.drivers.sunspec.reader import Reader
from energybid.drivers.target import FORMS, add_tls_arguments, parse_target, tls_of

if TYPE_CHECKING:
    from energybid.drivers.target import BusTarget

HELP = "read a SunSpec device's models and write a profile for it"
EXAMPLES = f"""\
examples:
  energybid profile sunspec tcp://192.168.1.60 -o inverter.toml
  energybid profile sunspec /dev/ttyUSB0 --unit 3 --baudrate 19200 --models 203 -o meter.toml
  energybid profile sunspec tcp://192.168.1.60:1502 --json      what is in it, nothing is written

Only reads are sent. The profile has the addresses of this very device: keep it, and name it in gateway.toml. Make it
while the device is at work: what it does not measure just now is left out (--all keeps it).

targets: {FORMS}
"""
STDOUT = "-"
TIMEOUT_S = 1.0


def add_action(actions: Any) -> None:  # noqa: ANN401  argparse does not name this type
    """The action ``sunspec`` of ``energybid profile``."""
    parser = actions.add_parser(
        "sunspec", help=HELP, description=HELP, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", metavar="TARGET", help="where it is: /dev/ttyUSB0, tcp://192.168.1.60")
    parser.add_argument("--unit", type=int, default=1, help="(default: 1)")
    parser.add_argument("--baudrate", type=int, default=9600, help="of a serial line (default: 9600)")
    parser.add_argument("--parity", choices=("N", "E", "O"), default="N", help="(default: N)")
    parser.add_argument("--stop-bits", type=int, choices=(1, 2), default=1, help="(default: 1)")
    parser.add_argument("--models", type=_numbers, metavar="LIST", help="only these, such as 203,124 (default: all)")
    parser.add_argument("--all", action="store_true", help="also what the device does not measure just now")
    parser.add_argument(
        "--sign",
        choices=("import", "export"),
        help="which direction of power the device's meters show as positive (default: import; SolarEdge: export)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", default=STDOUT, help="(default: - for stdout)")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object about the device; write only with -o"
    )
    add_tls_arguments(parser)


def _numbers(text: str) -> list[int]:
    numbers = text.split(",")
    known = [number for number, model in MODELS.items() if model.points]
    if not {number.strip() for number in numbers} <= set(map(str, known)):
        raise argparse.ArgumentTypeError(f"models with quantities are {', '.join(map(str, known))} (found {text!r})")
    return [int(number) for number in numbers]


def run(arguments: argparse.Namespace) -> int:
    """Read, and write."""
    target = _target(arguments)
    device = asyncio.run(_read(target, arguments.unit))
    text, loaded = _profile(arguments, device)
    output: str = arguments.output
    if output != STDOUT:
        replace_file(Path(output), text)
    if arguments.json:
        sys.stdout.write(json.dumps(_facts(device, loaded)) + "\n")
    elif output == STDOUT:
        sys.stdout.write(text)
    what = f"{loaded.profile.manufacturer} {loaded.profile.model}: {len(loaded.registers)} quantities"
    sys.stderr.write(f"{what}\n" if output == STDOUT else f'{what}; in gateway.toml: profile = "{output}"\n')
    if device.chain.fault:
        sys.stderr.write(f"energybid: its chain of models is broken: {device.chain.fault}; what was found is used\n")
    return exit_codes.OK


def _target(arguments: argparse.Namespace) -> BusTarget:
    if not 0 <= arguments.unit <= 255:  # noqa: PLR2004  one byte
        raise ConfigurationError([f"--unit: is 0 to 255 (found {arguments.unit})"])
    if arguments.output != STDOUT and not arguments.output.endswith(".toml"):
        raise ConfigurationError([f"--output: a profile's name ends in .toml (found {arguments.output})"])
    line = {"baudrate": arguments.baudrate, "parity": arguments.parity, "stop_bits": arguments.stop_bits}
    target = parse_target(arguments.target, tls=tls_of(arguments), **line)
    if target.kind not in WIRES:
        raise ConfigurationError([f"{arguments.target}: a bus of kind {target.kind} can not be read so"])
    return target


async def _read(target: BusTarget, unit: int) -> Device:
    prober = Prober(platform().open_bus, target)
    try:
        device = await read_device(Reader(prober, unit, TIMEOUT_S).read)
    finally:
        await prober.close()
    if device is None:
        raise NoReplyError(f"unit {unit} has no SunSpec marker at 40000, 50000 or 0; is SunSpec switched on in it?")
    return device


def _profile(arguments: argparse.Namespace, device: Device) -> tuple[str, LoadedProfile]:
    reverse = None if arguments.sign is None else arguments.sign == "export"
    try:
        text = profile_text(device, Choice(models=arguments.models, everything=arguments.all, reverse=reverse))
    except ValueError as error:
        raise ConfigurationError([f"{arguments.target}: {error}"]) from None
    name = "sunspec" if arguments.output == STDOUT else Path(arguments.output).stem
    return text, parse_profile(name, text.encode(), source=arguments.output)


def _facts(device: Device, loaded: LoadedProfile) -> dict[str, object]:
    return {
        "base": device.chain.base,
        "models": [model._asdict() | {"understood": model.number in MODELS} for model in device.chain.models],
        "fault": device.chain.fault or None,
        "manufacturer": device.text("manufacturer"),
        "model": device.text("model"),
        "version": device.text("version"),
        "serial_number": device.text("serial-number"),
        "quantities": {register.name: str(register.quantity.obis) for register in loaded.registers},
        "writables": [writable.name for writable in loaded.writables],
    }
