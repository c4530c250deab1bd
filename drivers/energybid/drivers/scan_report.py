"""What a scan found, for people, for programs, and as a piece of gateway.toml. Pure."""

from __future__ import annotations

import json
import tomllib
from dataclasses import asdict
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.core.errors import ConfigurationError
from energybid.core.ports import SerialEndpoint, TcpEndpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.drivers.identify import Candidate, Identity
    from energybid.drivers.scan import Found, Setting, State

WIDTH = 80
INDENT = " " * 10
GAP = "   "
INTERVAL = "60 s"
NAME_MAX = 64
SUFFIX = ".toml"
"""A profile that was made of a device is a file; its meter's name goes without."""


class Report(NamedTuple):
    """A scan and what it was of."""

    target: str
    settings: Sequence[Setting]
    state: State


def render(report: Report) -> str:
    """For people, 80 columns wide."""
    lines: list[str] = []
    for setting in report.settings:
        found = report.state.at(setting)
        if not found:
            continue
        where = f"{report.target} at {setting.label}" if setting.serial else report.target
        units = ", ".join(str(f.unit) for f in found)
        lines.append(f"{where}: {_count(found)}, unit{'s' if len(found) > 1 else ''} {units}")
        for one in found:
            lines += ["", *_unit(one)]
    lines += ["", *_notes(report)] if lines else _notes(report)
    return "\n".join(lines).rstrip() + "\n"


def _count(found: list[Found]) -> str:
    return "1 device answers" if len(found) == 1 else f"{len(found)} devices answer"


def _unit(found: Found) -> list[str]:
    identity = found.identity
    best = identity.best if identity else None
    title = f"unit {found.unit}".ljust(len(INDENT))
    if best is None:
        lines = [f"{title}{_unknown(identity)}"]
    else:
        sure = "" if best.certain else " (likely)"
        lines = [
            f"{title}{best.manufacturer} {best.model}{sure}",
            *_folded(f"profile {best.profile}: {_because(best)}"),
        ]
    if identity and identity.serial_number:
        lines[0] += f", serial number {identity.serial_number}"
    if found.values:
        lines += [] if best or not identity or not identity.likely else _folded(f"read as {identity.likely.profile}:")
        lines += _columns(found.values)
    if found.fault:
        lines += _folded(f"not read: {found.fault}")
    return [*lines, *_told(identity), *_others(identity), *_every(found), *_incomplete(found)]


def _because(candidate: Candidate) -> str:
    return "; ".join(candidate.reasons)


def _unknown(identity: Identity | None) -> str:
    if identity is None:
        return "answers; not identified yet"
    if len(identity.candidates) == 1:
        return "answers; one profile may fit, but little speaks for it"
    if identity.candidates:
        return "answers; which of these profiles is its own can not be told"
    return "answers; no profile is known to fit"


def _incomplete(found: Found) -> list[str]:
    if found.identity is None or found.identity.complete:
        return []
    return _folded(f"not everything was asked: --thorough --units {found.unit} takes its time")


def _told(identity: Identity | None) -> list[str]:
    """What it says of itself, where that is not the reason already."""
    if identity is None:
        return []
    lines = []
    if identity.objects:
        lines += _folded("says: " + ", ".join(f"{name} {value!r}" for name, value in identity.objects.items()))
    if identity.sunspec:
        said = [v for k, v in identity.sunspec.items() if k in {"manufacturer", "model", "version"} and v]
        models = identity.sunspec.get("models", "")
        lines += _folded(f"SunSpec at {identity.sunspec['base']}: {' '.join(said)}, models {models}")
    return lines


def _others(identity: Identity | None) -> list[str]:
    best = identity.best if identity else None
    others = [c for c in identity.candidates if c is not best] if identity else []
    word = "or" if best else "perhaps"
    return [line for c in others[:4] for line in _folded(f"{word} {c.profile}: {_because(c)}")]


def _every(found: Found) -> list[str]:
    return _folded("answers for every unit: a device by itself, no gateway") if found.every_unit else []


def _folded(text: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT + "  ", break_long_words=False)


def _columns(values: list[tuple[str, str]]) -> list[str]:
    """Names and values, as many on a line as fit."""
    lines = [INDENT]
    for name, value in values:
        pair = f"{name} {value}"
        if len(lines[-1]) > len(INDENT) and len(lines[-1]) + len(GAP) + len(pair) > WIDTH:
            lines.append(INDENT)
        lines[-1] += (GAP if len(lines[-1]) > len(INDENT) else "") + pair
    return lines


def _notes(report: Report) -> list[str]:
    state, lines = report.state, []
    for setting in report.settings:
        if not state.noise[setting.label]:
            continue
        lines += wrap(
            f"At {setting.label} {state.noise[setting.label]} bytes came that are no Modbus: something is there that "
            "speaks at another rate or parity, another master is on the line, or two units have the same address.",
            WIDTH,
        )
    if not state.found and state.complete:
        lines += wrap(
            "Nobody answered. Look at the wires (A and B changed over?), the supply, the unit numbers on the meters' "
            "displays, and their baud rate; --thorough waits longer and tries more settings.",
            WIDTH,
        )
    return lines


def facts(report: Report) -> dict[str, Any]:
    """For programs."""
    state = report.state
    return {
        "target": report.target,
        "complete": state.complete,
        "settings": [setting.label for setting in report.settings],
        "noise": dict(state.noise),
        "meters": [_facts(found, setting) for setting in report.settings for found in state.at(setting)],
    }


def _facts(found: Found, setting: Setting) -> dict[str, Any]:
    endpoint, identity = setting.target.endpoint, found.identity
    line = {"baudrate": endpoint.baudrate, "parity": endpoint.parity} if isinstance(endpoint, SerialEndpoint) else {}
    best = identity.best if identity else None
    return {
        "unit": found.unit,
        **line,
        "reply_delay_s": round(found.delay_s, 4),
        "every_unit": found.every_unit,
        "profile": best.profile if best else None,
        "certain": bool(best and best.certain),
        "all_asked": bool(identity and identity.complete),
        "candidates": [asdict(candidate) for candidate in identity.candidates] if identity else [],
        "device_identification": identity.objects if identity else {},
        "sunspec": identity.sunspec if identity else {},
        "serial_number": identity.serial_number if identity else None,
        "values": dict(found.values),
        "fault": found.fault or None,
    }


# ---------------------------------------------------------------- configuration

PREAMBLE = """\
# The meters that "energybid scan" found. Above them belong [gateway], [keys] and [journal]: docs/configuration.md
"""


def configuration(report: Report, existing: str = "", *, device: str | None = None) -> str:
    """Tables ``[[bus]]`` and ``[[bus.meter]]`` for what was identified; comments for what was not.

    Args:
        report: The scan.
        existing: The gateway.toml that they are appended to: names in it are not used again.
        device: A better name for the serial port.

    Raises:
        ConfigurationError: The existing file is no TOML, or has this bus already.
    """
    taken = _taken(existing)
    pieces = []
    for setting in report.settings:
        found = report.state.at(setting)
        if not found:
            continue
        lines = _place(setting, device)
        if any(_same(lines, bus) for bus in taken.buses):
            raise ConfigurationError([f"there is a [[bus]] for {report.target} already; remove it or write elsewhere"])
        name = taken.free("bus" if setting.serial else "network")
        known = [one for one in found if one.identity and one.identity.best]
        table = ["[[bus]]", f"name = {_quoted(name)}", *(f"{key} = {_toml(value)}" for key, value in lines.items())]
        if not known:
            table = [f"# {line}" for line in table]
        for one in found:
            table += ["", *_meter(one, taken)]
        pieces.append("\n".join(table) + "\n")
    return "\n".join(pieces)


class _Taken:
    def __init__(self, buses: list[dict[str, Any]]) -> None:
        self.buses = buses
        meters = [meter for bus in buses for meter in _tables(bus.get("meter"))]
        self._names = {str(table.get("name")) for table in (*buses, *meters)}

    def free(self, name: str) -> str:
        """A name that nobody has, now taken."""
        stem = name[: NAME_MAX - 4]
        chosen = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 1000))) if n not in self._names)
        self._names.add(chosen)
        return chosen


def _taken(existing: str) -> _Taken:
    try:
        buses = tomllib.loads(existing).get("bus", [])
    except (ValueError, RecursionError) as error:  # ValueError is also what an integer of 5,000 digits raises
        raise ConfigurationError([f"the file that is there is no TOML: {error}"]) from None
    return _Taken(_tables(buses))


def _tables(value: object) -> list[dict[str, Any]]:
    return [table for table in value if isinstance(table, dict)] if isinstance(value, list) else []


def _place(setting: Setting, device: str | None) -> dict[str, Any]:
    """The keys that say where a bus is."""
    kind, endpoint = setting.target
    if isinstance(endpoint, SerialEndpoint):
        line: dict[str, Any] = {"baudrate": endpoint.baudrate, "parity": endpoint.parity}
        if endpoint.stop_bits != 1:
            line["stop_bits"] = endpoint.stop_bits
        return {"kind": kind, "device": device or endpoint.device, **line}
    place: dict[str, Any] = {"kind": kind, "host": endpoint.host, "port": endpoint.port}
    if isinstance(endpoint, TcpEndpoint) and endpoint.tls is not None:
        place["tls"] = {key: value for key, value in asdict(endpoint.tls).items() if value is not None}
    return place


def _same(place: dict[str, Any], bus: dict[str, Any]) -> bool:
    return all(bus.get(key) == place.get(key) for key in ("device", "host", "port"))


def _meter(found: Found, taken: _Taken) -> list[str]:
    identity = found.identity
    best = identity.best if identity else None
    likely = identity.likely if identity else None
    if identity is None or likely is None:
        names = ", ".join(c.profile for c in identity.candidates[:4]) if identity else ""
        return [f"# unit {found.unit} answers and was not identified{names and '; perhaps ' + names}"]
    number = f", serial number {identity.serial_number}" if identity.serial_number else ""
    table = [
        "[[bus.meter]]",
        f"name = {_quoted(taken.free(f'{likely.profile.removesuffix(SUFFIX)}-{found.unit}'))}",
        f"profile = {_quoted(likely.profile)}",
        f"unit = {found.unit}",
        f"interval = {_quoted(INTERVAL)}",
    ]
    if best is not None:
        return [f"# {_plain(f'{best.manufacturer} {best.model}{number}: {_because(best)}')}", *table]
    names = " or ".join(c.profile for c in identity.candidates if c.points == likely.points)
    return [f"# unit {found.unit} may be {names}: look at its name plate", *(f"# {line}" for line in table)]


def _plain(text: str) -> str:
    """For a comment: one line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in text)[: 2 * WIDTH]


def _toml(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return str(value) if isinstance(value, int) else _quoted(str(value))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
