"""``energybid scan``: who is on a bus, which model, what it measures now.

Thin: searching is in ``scan``, judging in ``identify``, wording in ``scan_report``.
"""

import argparse
import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from energybid.core import exit_codes
from energybid.core.errors import BusDownError, ConfigurationError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.commands.progress import ProgressLine
from energybid.drivers.commands.system import platform, replace_file, terminal_width
from energybid.drivers.live import Wanted, read_values
from energybid.drivers.probe import WIRES
from energybid.drivers.profile import LoadedProfile, list_profiles, load_profile
from energybid.drivers.scan import (
    ADDRESSED,
    DIRECT_UNITS,
    SETTINGS_MAX,
    UNITS,
    Found,
    Scanner,
    Search,
    Setting,
    State,
    settings_of,
)
from energybid.drivers.scan_report import PREAMBLE, Report, configuration, facts, render
from energybid.drivers.scan_state import decode, encode, parse_units, units_text
from energybid.drivers.serialport.find import USB, usb_ports
from energybid.drivers.sunspec.found import Made, make_profiles
from energybid.drivers.target import FORMS, BusTarget, add_tls_arguments, parse_target, tls_of

HELP = "find the meters on a bus, say which models they are, show what they measure"
EXAMPLES = f"""\
examples:
  energybid scan /dev/ttyUSB0                          usual rates and parities, units 1 to 247
  energybid scan /dev/ttyUSB0 --units 1-32 --baudrates 9600 --parities N
  energybid scan tcp://192.168.1.50                    a meter, or every unit behind a gateway
  energybid scan /dev/ttyUSB0 --resume scan.json       stop with Ctrl-C, go on with the same command
  energybid scan /dev/ttyUSB0 --write gateway.toml     and write [[bus]] and [[bus.meter]] tables

Only reads are sent, one at a time. Once a meter answers, the search stays at its rate and parity; --thorough tries all
of them, and waits 1.2 s for each unit. Compare the values shown with the meter's display.

targets: {FORMS}
"""
STDOUT = "-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``scan``."""
    parser.add_argument("target", metavar="TARGET", help="serial port or address: /dev/ttyUSB0, tcp://192.168.1.50")
    parser.add_argument("--units", type=_units, metavar="LIST", help="such as 1-32 or 1,5,7-9 (default: 1-247)")
    parser.add_argument("--baudrates", type=_rates, metavar="LIST", help="such as 9600,19200 (default: the usual)")
    parser.add_argument(
        "--parities", type=_parities, metavar="LIST", help="of N, E, O, such as N,E (default: the usual)"
    )
    parser.add_argument("--stop-bits", type=int, choices=(1, 2), default=1, help="(default: 1)")
    parser.add_argument("--thorough", action="store_true", help="all settings, slow meters (up to 1.2 s), all evidence")
    parser.add_argument("--profile", action="append", metavar="NAME", help="only these models; may be a .toml file")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write or append configuration; - for stdout")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="keep the state of the search here, and go on from it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_tls_arguments(parser)


def _units(text: str) -> list[int]:
    try:
        return sorted(parse_units(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rates(text: str) -> list[int]:
    rates = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(rates) != len(text.split(",")) or not all(300 <= rate <= 1_000_000 for rate in rates):  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"write baud rates as 9600,19200 (found {text!r})")
    return rates


def _parities(text: str) -> list[str]:
    parities = [part.strip().upper() for part in text.split(",")]
    if not set(parities) <= {"N", "E", "O"}:
        raise argparse.ArgumentTypeError(f"parities are N, E and O, such as N,E (found {text!r})")
    return parities


def run(arguments: argparse.Namespace) -> int:
    """Scan."""
    if arguments.write == Path(STDOUT) and arguments.json:
        raise ConfigurationError(["--write - and --json both want standard output; choose one"])
    profiles = [load_profile(name) for name in arguments.profile or list_profiles()]
    search = _search(arguments, profiles)
    state = _resumed(arguments)
    existing = _existing(arguments)
    line = ProgressLine(terminal_width())
    made: dict[str, Made] = {}
    fault, code = "", exit_codes.OK
    try:
        made = asyncio.run(_scan(arguments, search, state, _Watcher(line, lambda: _save(arguments, state))))
    except KeyboardInterrupt:
        fault, code = "stopped", exit_codes.INTERRUPTED
    except BusDownError as error:
        fault, code = str(error), exit_codes.FAILED
    line.clear()
    report = Report(arguments.target, search.settings, state)
    _save(arguments, state)
    _print(arguments, report, existing)
    _keep(arguments, made)
    if state.found and not fault and arguments.write is None and not arguments.json:
        _say("Compare these with the displays. --write gateway.toml makes configuration of them.")
    if fault:
        _say(f"energybid: {fault}; {_go_on(arguments, search, state)}")
    return code


def _search(arguments: argparse.Namespace, profiles: list[LoadedProfile]) -> Search:
    def target(baudrate: int, parity: str) -> BusTarget:
        return parse_target(
            arguments.target, baudrate=baudrate, parity=parity, stop_bits=arguments.stop_bits, tls=tls_of(arguments)
        )

    first = target(9600, "N")
    if first.kind not in WIRES:
        raise ConfigurationError([f"{arguments.target}: a bus of kind {first.kind} can not be scanned"])
    units = list(UNITS) if arguments.units is None else arguments.units
    if isinstance(first.endpoint, SerialEndpoint):
        if not set(units) <= set(UNITS):
            raise ConfigurationError([f"--units: units on a serial line are 1 to 247 (found {units_text(set(units))})"])
        settings = settings_of(target, profiles, arguments.baudrates, arguments.parities)
        if not (arguments.thorough or arguments.baudrates):
            settings = settings[:SETTINGS_MAX]
    else:
        settings = [Setting(arguments.target, first, serial=False)]
        units += DIRECT_UNITS if first.kind in ADDRESSED and not arguments.units else []
    return Search(settings=settings, units=units, profiles=profiles, thorough=arguments.thorough)


async def _scan(arguments: argparse.Namespace, search: Search, state: State, watcher: "_Watcher") -> dict[str, Made]:
    """Search and read values; the profiles that were made, by file name."""
    machine = platform()
    if not state.complete:
        await Scanner(machine.open_bus, search, state, watcher).run()
    made = {} if arguments.profile else await make_profiles(machine.open_bus, search.settings, state)
    loaded = {profile.name: profile for profile in search.profiles} | {name: m.loaded for name, m in made.items()}
    for setting in search.settings:
        known = [f for f in state.at(setting) if f.identity and f.identity.likely and not f.values]
        known = [f for f in known if f.identity and f.identity.likely and f.identity.likely.profile in loaded]
        if not known:
            continue
        watcher.line.show("reading values", 1.0, 0.5 * len(known))
        wanted = [Wanted(f.unit, loaded[f.identity.likely.profile]) for f in known if f.identity and f.identity.likely]
        for found, read in zip(known, await read_values(machine, setting.target, wanted), strict=True):
            found.values, found.fault = ([], read) if isinstance(read, str) else (read, "")
    return made


class _Watcher:
    """Shows a search on a terminal, and has it saved when it has come further."""

    def __init__(self, line: ProgressLine, save: Callable[[], None]) -> None:
        self.line = line
        self._save = save

    def progress(self, label: str, unit: int, done: float, left_s: float) -> None:
        self.line.show(f"{label}  unit {unit:3}", done, left_s)

    def found(self, found: Found) -> None:
        if found.identity is None:
            self.line.say(f"unit {found.unit} answers at {found.setting}")
        self._save()


# ---------------------------------------------------------------- files


def _resumed(arguments: argparse.Namespace) -> State:
    path: Path | None = arguments.resume
    if path is None or not path.exists():
        return State()
    return decode(str(path), arguments.target, path.read_text(encoding="utf-8"))


def _save(arguments: argparse.Namespace, state: State) -> None:
    if arguments.resume is not None:
        replace_file(arguments.resume, encode(arguments.target, state))


def _existing(arguments: argparse.Namespace) -> str:
    """The file to append to; read before the search, so that its faults do not cost one."""
    path: Path | None = arguments.write
    if path is None or path == Path(STDOUT) or not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    configuration(Report(arguments.target, [], State()), text)
    return text


def _print(arguments: argparse.Namespace, report: Report, existing: str) -> None:
    path: Path | None = arguments.write
    if arguments.json:
        sys.stdout.write(json.dumps(facts(report)) + "\n")
    elif path != Path(STDOUT):
        sys.stdout.write(render(report))
    if path is None:
        return
    tables = configuration(report, existing, device=_stable_name(report))
    if path == Path(STDOUT):
        sys.stdout.write(tables)
    elif tables:
        replace_file(path, f"{existing.rstrip()}\n\n{tables}" if existing.strip() else f"{PREAMBLE}\n{tables}")
        _say(f"wrote {path}; check it with: energybid config check -c {path}")


def _keep(arguments: argparse.Namespace, made: dict[str, Made]) -> None:
    """Write the profiles that were made beside the configuration that names them."""
    path: Path | None = arguments.write
    for name, profile in made.items() if path is not None else ():
        if path is not None and path != Path(STDOUT):
            replace_file(path.parent / name, profile.text)
            _say(f"wrote {path.parent / name}")
        else:
            _say(f"{name} is not written; make it with: energybid profile sunspec {arguments.target} -o {name}")


def _stable_name(report: Report) -> str | None:
    """A name of the serial port that stays the same when adapters are plugged anew."""
    endpoint = report.settings[0].target.endpoint
    if not isinstance(endpoint, SerialEndpoint):
        return None
    if endpoint.device.startswith(USB):
        return None
    name = Path(endpoint.device).resolve().name
    by_id = next((port.by_id for port in usb_ports() if port.name == name), None)
    return by_id or str(Path(endpoint.device).absolute())


def _go_on(arguments: argparse.Namespace, search: Search, state: State) -> str:
    """How to go on after an interruption: the command as it was given, and with a state file just that."""
    given = dict(vars(arguments))
    if arguments.resume is None:
        setting = next((s for s in search.settings if state.at(s)), search.settings[0])
        fast = state.asked.get(setting.label, {}).get("fast", set())
        given["units"] = (set(search.units) - fast) or set(search.units)
        endpoint = setting.target.endpoint
        if isinstance(endpoint, SerialEndpoint) and state.at(setting):
            given |= {"baudrates": [endpoint.baudrate], "parities": [endpoint.parity]}
    words = shlex.join(["energybid", "scan", arguments.target, *_options(given)])
    return f"go on with: {words}" + ("" if arguments.resume else " (--resume FILE would remember all)")


def _options(given: Mapping[str, Any]) -> Iterator[str]:
    """Options of ``scan``, as they are typed."""
    for name in ("baudrates", "parities"):
        if given[name]:
            yield from (f"--{name}", ",".join(map(str, given[name])))
    if given["units"]:
        yield from ("--units", units_text(set(given["units"])))
    if given["stop_bits"] != 1:
        yield from ("--stop-bits", str(given["stop_bits"]))
    if given["thorough"]:
        yield "--thorough"
    for name in given["profile"] or ():
        yield from ("--profile", name)
    for name in ("ca", "certificate", "key", "server_name", "resume"):
        if given[name] is not None:
            yield from (f"--{name.replace('_', '-')}", str(given[name]))


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
