"""``energybid dump``: record everything that a meter lets one read. Thin: exploring is in ``dump``."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, MeterError
from energybid.drivers.commands.progress import ProgressLine
from energybid.drivers.commands.system import platform, replace_file, terminal_width
from energybid.drivers.dump import (
    CAUTIOUS,
    Dump,
    Explorer,
    Span,
    mask,
    merge,
    parse_span,
    profile_spans,
    serial_spans,
    sunspec_serial,
)
from energybid.drivers.dump_file import encode, file_name
from energybid.drivers.identify import Examiner, identify
from energybid.drivers.modbus.map import REGISTERS_MAX
from energybid.drivers.modbus.objects import PRODUCT, REVISION, VENDOR
from energybid.drivers.probe import WIRES, Prober
from energybid.drivers.profile import LoadedProfile, list_profiles, load_profile
from energybid.drivers.target import FORMS, BusTarget, add_tls_arguments, parse_target, tls_of

HELP = "record all registers of a meter in a file that the simulator serves again"
EXAMPLES = f"""\
examples:
  energybid dump /dev/ttyUSB0 --unit 1                              model found out, registers of its profile
  energybid dump /dev/ttyUSB0 --unit 1 --profile eastron-sdm630
  energybid dump tcp://192.168.1.50 --unit 1 --range holding:0-999 --range input:0-999
  energybid dump tcp://192.168.1.50 --unit 1 -o - | less
  energybid simulate bus --dump eastron-sdm630-modbus-v2_unknown_unknown.toml    the recorded meter again

Only reads are sent, one at a time. The serial number's registers are replaced by zeros where the profile or SunSpec
says which they are. A range is explored by halving what is refused: 1,000 registers that are all refused take three
minutes at 9600 baud.

targets: {FORMS}
"""
STDOUT = "-"
TIMEOUT_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``dump``."""
    parser.add_argument("target", metavar="TARGET", help="serial port or address: /dev/ttyUSB0, tcp://192.168.1.50")
    parser.add_argument("--unit", type=int, required=True, metavar="N", help="the meter's address, 0 to 255")
    parser.add_argument("--baudrate", type=int, default=9600, metavar="RATE", help="of a serial line (default: 9600)")
    parser.add_argument("--parity", choices=("N", "E", "O"), default="N", help="(default: N)")
    parser.add_argument("--stop-bits", type=int, choices=(1, 2), default=1, help="(default: 1)")
    parser.add_argument("--profile", metavar="NAME", help="the model; else it is found out. May be a .toml file")
    parser.add_argument(
        "--range",
        type=_range,
        action="append",
        metavar="TABLE:A-B",
        help="registers, such as holding:0-999; repeatable",
    )
    parser.add_argument("--most", type=int, metavar="N", help="registers in one read (default: the profile's, or 40)")
    parser.add_argument("--hardware", metavar="TEXT", help="hardware version, from the name plate")
    parser.add_argument("--firmware", metavar="TEXT", help="firmware version, where the meter does not tell it")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="file or folder (default: a name by model); - for stdout"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object about what was recorded")
    add_tls_arguments(parser)


def _range(text: str) -> Span:
    try:
        return parse_span(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Record."""
    _check(arguments)
    target = parse_target(
        arguments.target,
        baudrate=arguments.baudrate,
        parity=arguments.parity,
        stop_bits=arguments.stop_bits,
        tls=tls_of(arguments),
    )
    if target.kind not in WIRES:
        raise ConfigurationError([f"{arguments.target}: a bus of kind {target.kind} can not be recorded"])
    loaded = load_profile(arguments.profile) if arguments.profile else None
    line = ProgressLine(terminal_width())
    try:
        dump = asyncio.run(_record(arguments, target, loaded, line))
    finally:
        line.clear()
    path = _write(arguments, dump)
    _report(arguments, dump, path)
    return exit_codes.OK


def _check(arguments: argparse.Namespace) -> None:
    faults = []
    if not 0 <= arguments.unit <= 255:  # noqa: PLR2004  one byte
        faults.append(f"--unit: is 0 to 255 (found {arguments.unit})")
    if arguments.most is not None and not 1 <= arguments.most <= REGISTERS_MAX:
        faults.append(f"--most: is 1 to {REGISTERS_MAX} (found {arguments.most})")
    if arguments.json and arguments.output == STDOUT:
        faults.append("--output - and --json both want standard output; choose one")
    if faults:
        raise ConfigurationError(faults)


async def _record(
    arguments: argparse.Namespace, target: BusTarget, loaded: LoadedProfile | None, line: ProgressLine
) -> Dump:
    prober = Prober(platform().open_bus, target)
    timeout_s = TIMEOUT_S if loaded is None else max(TIMEOUT_S, loaded.profile.timeout_s)
    try:
        if loaded is None:
            loaded = await _found_out(prober, arguments, line)
        explorer = Explorer(prober, arguments.unit, timeout_s, _Watcher(line))
        await explorer.identification()
        most = arguments.most or (loaded.profile.max_registers if loaded else CAUTIOUS)
        spans = merge([*(arguments.range or ()), *(profile_spans(loaded) if loaded else ())])
        try:
            await explorer.explore(spans, most)
        except MeterError as error:
            line.say(f"energybid: {error}; what was read until then is kept")
            if not explorer.pieces:
                raise
        return _named(explorer.finish(), loaded, arguments)
    finally:
        await prober.close()


async def _found_out(prober: Prober, arguments: argparse.Namespace, line: ProgressLine) -> LoadedProfile | None:
    """The model's profile.

    Raises:
        ConfigurationError: It is not known, and no range was asked for.
    """
    line.show("looking which model it is", 0.0, 5.0)
    profiles = [load_profile(name) for name in list_profiles()]
    identity = await identify(Examiner(prober, arguments.unit, TIMEOUT_S), profiles)
    best = identity.best
    if best is not None:
        line.say(f"unit {arguments.unit} is {best.manufacturer} {best.model} (profile {best.profile})")
        return next(loaded for loaded in profiles if loaded.name == best.profile)
    if not arguments.range:
        names = ", ".join(candidate.profile for candidate in identity.candidates[:4])
        perhaps = f" (perhaps {names})" if names else ""
        raise ConfigurationError(
            [f"which model unit {arguments.unit} is can not be told{perhaps}: add --profile or --range"]
        )
    return None


def _named(dump: Dump, loaded: LoadedProfile | None, arguments: argparse.Namespace) -> Dump:
    """Names and blanks."""
    dump.manufacturer = loaded.profile.manufacturer if loaded else dump.objects.get(VENDOR) or "unknown"
    dump.model = loaded.profile.model if loaded else dump.objects.get(PRODUCT) or "unknown"
    dump.profile = loaded.name if loaded else None
    dump.hardware = arguments.hardware or "unknown"
    dump.firmware = arguments.firmware or dump.objects.get(REVISION) or "unknown"
    mask(dump, [*(serial_spans(loaded) if loaded else ()), *sunspec_serial(dump)])
    return dump


class _Watcher:
    """Shows a dump on a terminal."""

    def __init__(self, line: ProgressLine) -> None:
        self._line = line

    def progress(self, span: Span, done: float, left_s: float) -> None:
        self._line.show(f"{span!s:20}", done, left_s)


def _write(arguments: argparse.Namespace, dump: Dump) -> Path | None:
    if arguments.output == STDOUT:
        sys.stdout.write(encode(dump))
        return None
    path = Path(arguments.output or ".")
    path = path / file_name(dump) if path.is_dir() else path
    replace_file(path, encode(dump))
    return path


def _report(arguments: argparse.Namespace, dump: Dump, path: Path | None) -> None:
    registers = sum(run.span.end - run.span.first for run in dump.runs)
    refused = sum(refused.span.end - refused.span.first for refused in dump.refused)
    if arguments.json:
        facts = {
            "file": str(path) if path else None,
            "manufacturer": dump.manufacturer,
            "model": dump.model,
            "profile": dump.profile,
            "registers": registers,
            "refused": refused,
            "masked": [{"range": str(span), "what": what} for span, what in dump.masked],
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    masked = ", ".join(f"{what} in {span}" for span, what in dump.masked)
    blank = f"Replaced by zeros: {masked}." if masked else "No serial number was blanked: look before you publish it."
    sys.stderr.write(f"{registers} registers recorded, {refused} refused. {blank}\n")
    if path is not None:
        sys.stdout.write(f"{path}\n")
