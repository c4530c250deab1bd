"""``energybid profile``: the meter models, their registers, and the requests that read them."""

import argparse
import json
import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import groupby

from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError
from energybid.core.quantities import fraction_text
from energybid.core.settings import parse_duration
from energybid.drivers.commands import profile_sunspec
from energybid.drivers.modbus.map import REGISTERS_MAX, TABLES
from energybid.drivers.plan_picture import legend, picture, style
from energybid.drivers.planner import REPLY_DELAY_S, ROUND_TRIP_S, Cost, Span, serial_cost, tcp_cost
from energybid.drivers.profile import (
    LoadedProfile,
    Register,
    list_profiles,
    load_profile,
    plan_requests,
    readable,
    wanted_spans,
)
from energybid.drivers.sunspec.standard import is_standard, load_standard

HELP = "list the meter models, show their registers and requests, check a profile, make one of a SunSpec device"
EXAMPLES = """\
examples:
  energybid profile list                               names to write behind `profile =`
  energybid profile show eastron-sdm630                quantities, registers, sources
  energybid profile plan eastron-sdm630                the requests of a poll as a picture, and what it costs
  energybid profile plan eastron-sdm630 --baudrate 9600 --quantities energy-import voltage-l1
  energybid profile plan my-meter.toml --baudrate 19200 --parity E --reply-delay 50ms
  energybid profile check my-meter.toml                every fault at once, with its key; exit 2
  energybid profile sunspec tcp://192.168.1.60 -o inverter.toml    a profile made of a SunSpec device
  energybid profile show sunspec:203                   what is read of a SunSpec model
"""

WIDTH = 80


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``profile``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="the meter models that come with this program")
    show = actions.add_parser("show", help="a model's quantities and where they are known from")
    plan = actions.add_parser("plan", help="the requests of a poll, as a picture, and what they cost")
    check = actions.add_parser("check", help="check profiles; every fault is said at once")
    for action in (show, plan):
        action.add_argument("profile", metavar="NAME|FILE", help="a name from `list`, or the path of a .toml file")
    check.add_argument("profile", metavar="FILE", nargs="+", help="paths of .toml files, or names")
    bus = plan.add_mutually_exclusive_group()
    bus.add_argument("--tcp", action="store_true", help="over a network (default)")
    bus.add_argument("--baudrate", type=_baudrate, metavar="BAUD", help="on a serial line of this rate")
    plan.add_argument("--parity", choices=("N", "E", "O"), default="N", help="(default: N)")
    plan.add_argument("--stop-bits", type=int, choices=(1, 2), default=1, help="(default: 1)")
    plan.add_argument("--quantities", nargs="+", metavar="NAME", help="only these (default: all)")
    plan.add_argument("--reply-delay", type=_duration, metavar="TIME", help="the meter's, such as 20ms")
    plan.add_argument("--max-registers", type=_registers, metavar="N", help="most in a request (default: the model's)")
    for action in (listing, show, plan, check):
        action.add_argument("--json", action="store_true", help="print JSON")
    profile_sunspec.add_action(actions)


def _baudrate(text: str) -> int:
    if not text.isdecimal() or not 300 <= int(text) <= 1_000_000:  # noqa: PLR2004  as in profiles and gateway.toml
        raise argparse.ArgumentTypeError("write a rate from 300 to 1000000")
    return int(text)


def _registers(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= REGISTERS_MAX:
        raise argparse.ArgumentTypeError(f"write a number from 1 to {REGISTERS_MAX}")
    return int(text)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked."""
    if arguments.action == "list":
        return _list(as_json=arguments.json)
    if arguments.action == "check":
        return _check(arguments.profile, as_json=arguments.json)
    if arguments.action == "sunspec":
        return profile_sunspec.run(arguments)
    name = arguments.profile
    loaded = load_standard(name) if is_standard(name) else load_profile(name)
    if arguments.action == "show":
        _print(_shown(loaded) if arguments.json else "\n".join(_sheet(loaded)))
        return exit_codes.OK
    return _plan(loaded, arguments)


def _print(what: object) -> None:
    sys.stdout.write((what if isinstance(what, str) else json.dumps(what, ensure_ascii=False)) + "\n")


# ---------------------------------------------------------------- list, check


def _list(*, as_json: bool) -> int:
    rows = [(name, load_profile(name).profile) for name in list_profiles()]
    if as_json:
        _print([{"name": n, "manufacturer": p.manufacturer, "model": p.model, "also": p.also} for n, p in rows])
        return exit_codes.OK
    width = max(len(name) for name, _ in rows)
    for name, profile in rows:
        _print(f"{name:{width}}  {profile.manufacturer} {', '.join([profile.model, *profile.also])}")
    return exit_codes.OK


def _check(names: Sequence[str], *, as_json: bool) -> int:
    faults: list[str] = []
    for name in names:
        try:
            load_profile(name)
        except ConfigurationError as error:
            faults += error.faults
    if as_json:
        _print({"faults": faults})
        return exit_codes.USAGE if faults else exit_codes.OK
    if faults:
        raise ConfigurationError(faults)
    for name in names:
        _print(f"{name}: no fault")
    return exit_codes.OK


# ---------------------------------------------------------------- show


def _row(register: Register) -> dict[str, object]:
    orders = ["words little-endian"] * register.little + ["bytes little-endian"] * register.swapped
    return {
        "name": register.name,
        "obis": str(register.quantity.obis),
        "unit": register.quantity.unit,
        "resolution": fraction_text(Fraction(10) ** register.quantity.exponent),
        "cumulative": register.quantity.cumulative,
        "table": TABLES[register.function],
        "register": register.first,
        "type": register.type,
        "order": orders,
        "scale": fraction_text(register.scale),
        "scale_by": [factor.name for factor in register.factors],
    }


def _shown(loaded: LoadedProfile) -> dict[str, object]:
    profile = loaded.profile
    return {
        "name": loaded.name,
        "sha256": loaded.sha256.hex(),
        "manufacturer": profile.manufacturer,
        "model": profile.model,
        "also": profile.also,
        "max_registers": profile.max_registers,
        "baudrates": profile.baudrates,
        "parities": profile.parities,
        "timeout_s": profile.timeout_s,
        "quantities": [_row(register) for register in loaded.registers],
        "factors": [{"name": f.name, "table": TABLES[f.function], "register": f.first} for f in loaded.factors],
        "writables": [{"name": w.name, "register": w.first, "unit": w.unit} for w in loaded.writables],
        "sources": [source.model_dump(exclude_none=True) for source in profile.source],
    }


def _sheet(loaded: LoadedProfile) -> list[str]:
    profile = loaded.profile
    lines = [f"{profile.manufacturer} {', '.join([profile.model, *profile.also])}", ""]
    rates = " ".join(map(str, profile.baudrates))
    lines += [
        f"{rates} baud, parity {' '.join(profile.parities)}",
        f"at most {profile.max_registers} registers a request; replies begin within {profile.timeout_s:g} s",
        "",
        "quantity                  OBIS          resolution register      type    scale",
    ]
    for register in loaded.registers:
        row, quantity = _row(register), register.quantity
        scale = " × ".join([fraction_text(register.scale), *(factor.name for factor in register.factors)])
        step = f"{row['resolution']} {quantity.unit}"
        place = f"{row['table']} {register.first}"
        lines.append(f"{register.name:25} {quantity.obis!s:13} {step:10} {place:13} {register.type:7} {scale}")
    for factor in loaded.factors:
        kind = "guard" if factor.equals else "factor, 10 to the power" if factor.power_of_ten else "factor"
        place = f"{TABLES[factor.function]} {factor.first}"
        lines.append(f"{factor.name:25} {kind:24} {place:13} {factor.type:7} {fraction_text(factor.scale)}")
    for writable in loaded.writables:
        bounds = f"{fraction_text(writable.minimum)} to {fraction_text(writable.maximum)} {writable.unit}"
        if writable.values:
            bounds = f"{', '.join(map(fraction_text, writable.values))} {writable.unit}"
        place = f"holding {writable.first}"
        lines.append(f"{writable.name:25} {'may be written':24} {place:13} {writable.type:7} {bounds}")
    lines += ["", "known from"]
    for source in profile.source:
        text = ", ".join(filter(None, (source.title, source.edition, source.url)))
        lines += textwrap.wrap(
            text, WIDTH, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
        )
    return lines


# ---------------------------------------------------------------- plan


def _plan(loaded: LoadedProfile, arguments: argparse.Namespace) -> int:
    names = arguments.quantities or [register.name for register in loaded.registers]
    known = {register.name for register in loaded.registers}
    faults = [f"no quantity {n!r}; {loaded.name} has {', '.join(sorted(known))}" for n in names if n not in known]
    if faults:
        raise ConfigurationError(faults)
    chosen = [register for register in loaded.registers if register.name in names]
    delay_s = loaded.profile.timing.reply_delay_s if arguments.reply_delay is None else arguments.reply_delay
    if arguments.baudrate:
        form = {"parity": arguments.parity, "stop_bits": arguments.stop_bits}
        cost = serial_cost(arguments.baudrate, reply_delay_s=delay_s, **form)
        assumed = REPLY_DELAY_S if delay_s is None else delay_s
        bus = f"{arguments.baudrate} baud, 8{arguments.parity}{arguments.stop_bits}, reply delay {assumed * 1000:g} ms"
    else:
        cost = tcp_cost(reply_delay_s=delay_s)
        bus = f"network, {(ROUND_TRIP_S if delay_s is None else delay_s) * 1000:g} ms from request to reply"
    if arguments.max_registers:
        cost = replace(cost, registers_max=arguments.max_registers)
    requests = plan_requests(loaded, chosen, cost)
    if arguments.json:
        _print(_facts(loaded, chosen, requests, cost) | {"bus": bus})
    else:
        _print("\n".join(_drawing(loaded, chosen, requests, cost, bus)))
    return exit_codes.OK


def _wanted(spans: Sequence[Span], request: Span) -> int:
    """Registers of a request that are wanted."""
    return len({at for span in spans if request.holds(span) for at in range(span.first, span.end)})


def _ms(cost: Cost, requests: Sequence[Span]) -> float:
    return cost.of(requests) / 1e6


def _facts(
    loaded: LoadedProfile, chosen: Sequence[Register], requests: Sequence[Span], cost: Cost
) -> dict[str, object]:
    spans = wanted_spans(chosen)
    return {
        "profile": loaded.name,
        "quantities": len(chosen),
        "requests": [
            {
                "table": TABLES[request.function],
                "first": request.first,
                "count": request.length,
                "wanted": _wanted(spans, request),
                "quantities": [r.name for r in chosen if request.holds(Span(r.function, r.first, r.end))],
                "ms": round(_ms(cost, [request]), 3),
            }
            for request in requests
        ],
        "ms": round(_ms(cost, requests), 3),
        "ms_one_by_one": round(_ms(cost, spans), 3),
    }


def _drawing(
    loaded: LoadedProfile, chosen: Sequence[Register], requests: Sequence[Span], cost: Cost, bus: str
) -> list[str]:
    terminal = sys.stdout.isatty()
    look = style(unicode=_is_unicode(), colours=terminal and "NO_COLOR" not in os.environ)
    spans, lines = wanted_spans(chosen), [f"{loaded.name}: {len(chosen)} quantities; {bus}"]
    number = 0
    for function, group in groupby(requests, key=lambda request: request.function):
        own = list(group)
        here = [span for span in readable(loaded.profile) if span.function == function]
        there = [span for span in spans if span.function == function]
        lines += ["", f"{TABLES[function]} registers", *picture(there, here, own, look, first=number + 1)]
        number += len(own)
    lines += ["", legend(look), "", "request  table    registers        wanted  read over       time"]
    for number, request in enumerate(requests, 1):
        extent = f"{request.first} to {request.end - 1}"
        wanted = _wanted(spans, request)
        time = f"{_ms(cost, [request]):.1f} ms"
        lines.append(
            f"{number:7}  {TABLES[request.function]:7}  {extent:15} {wanted:7} {request.length - wanted:10} {time:>10}"
        )
    registers = sum(request.length for request in requests)
    lines.append(
        f"A poll takes {_count(len(requests), 'request')} for {_count(registers, 'register')}: "
        f"{_ms(cost, requests):.1f} ms."
    )
    lines.append(f"One request for each number would take {_ms(cost, spans):.1f} ms.")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _is_unicode() -> bool:
    try:
        "█░·×╰╯─".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
