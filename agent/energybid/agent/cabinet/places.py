"""Which meter a command at the cabinet means: one of gateway.toml, or one at a target with a unit and a profile.

Here live the options that say so, and the plan that follows from them. Imports pydantic; commands only.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from energybid.agent.config import Cabinet, load_cabinet
from energybid.core.errors import BusDownError, ConfigurationError, EnergybidError, NoReplyError
from energybid.core.ports import BusPlan, Endpoint, MeterPlan, SerialEndpoint
from energybid.core.settings import parse_duration
from energybid.drivers.modbus.map import ModbusMap
from energybid.drivers.planner import Cost, bus_cost
from energybid.drivers.probe import WIRES
from energybid.drivers.profile import LoadedProfile, compile_profile, load_profile
from energybid.drivers.target import ASCII, FORMS, BusTarget, add_tls_arguments, parse_target, tls_of

UNITS = range(256)
TIMEOUT_S = 1.0
"""Where no profile says how long a meter may take."""
RETRIES = 1
BAUDRATE = 9600
OF_A_TARGET = "unit", "profile", "baudrate", "parity", "stop_bits", "ca", "certificate", "key", "server_name"
"""Options that a meter of gateway.toml does not need: it says all that itself."""
FRESH_NS = 60 * 1_000_000_000
"""A status file that was written so lately is that of a running agent."""
SHORT = 0.1
"""Seconds that a late reply may come after its time-out, at a cabinet."""

TARGETS = """
METER is a name of gateway.toml (with -c FILE); TARGET is one of
  """ + FORMS.replace(", tcp", ",\n  tcp")
"""For the end of a help text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A meter and how to reach it."""

    name: str
    """The meter's in gateway.toml; else its unit."""
    where: str
    """The bus, as people know it."""
    bus: BusPlan
    unit: int
    loaded: LoadedProfile | None
    """None: only raw registers can be read."""
    meter: MeterPlan | None
    """All quantities of the profile, in one group; None without a profile."""
    status: Path | None = None
    """The agent's status file, where a configuration names one."""

    @property
    def timeout_s(self) -> float:
        """How long it may take to begin its reply."""
        return self.meter.timeout_s if self.meter else TIMEOUT_S

    @property
    def retries(self) -> int:
        """Further tries after a lost or garbled reply."""
        return self.meter.retries if self.meter else RETRIES

    @property
    def target(self) -> BusTarget:
        """What to open."""
        return BusTarget(self.bus.kind, self.bus.endpoint)

    @property
    def title(self) -> str:
        """The meter in a line, for people."""
        name = f"unit {self.unit}" if self.name == f"unit {self.unit}" else f"{self.name}, unit {self.unit}"
        if self.loaded is None:
            return name
        profile = self.loaded.profile
        return f"{name}: {profile.manufacturer} {profile.model} ({self.loaded.name})"

    @property
    def label(self) -> str:
        """The meter and its bus, for messages."""
        return f"{self.where}: {self.name}"


def add_place_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Options that name a meter; ``place_of`` and ``places_of`` read them.

    Args:
        parser: Of the command.
        several: No meter need be named: then all of gateway.toml are meant.
    """
    what = "a meter of gateway.toml (with -c), or a port or address"
    if several:
        parser.add_argument("place", nargs="?", metavar="METER|TARGET", help=f"{what}; default: all meters")
    else:
        parser.add_argument("place", metavar="METER|TARGET", help=what)
    parser.add_argument("-c", "--config", type=Path, metavar="FILE", help="gateway.toml")
    group = parser.add_argument_group("for a TARGET")
    group.add_argument("--unit", type=int, metavar="N", help="the meter's address, 0 to 255")
    group.add_argument("--profile", metavar="NAME", help="its model; may be a .toml file")
    group.add_argument("--baudrate", type=int, metavar="RATE", help="of a serial line (default: 9600)")
    group.add_argument("--parity", choices=("N", "E", "O"), help="(default: N; E for ascii:)")
    group.add_argument("--stop-bits", type=int, choices=(1, 2), help="(default: 1)")
    add_tls_arguments(parser)


def duration(text: str) -> float:
    """A duration on the command line, such as 30s; a type for argparse."""
    try:
        return parse_duration(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"write a number and a unit, such as 500ms, 30s or 5min (found {text!r})"
        ) from None


def place_of(arguments: argparse.Namespace, *, needs_profile: bool = True) -> Place:
    """The meter that the options name.

    Raises:
        ConfigurationError: They name none, or contradict one another; every fault in a configuration or profile.
    """
    if arguments.config is None:
        return _at_target(arguments, needs_profile=needs_profile)
    places = _configured(arguments)
    found = [place for place in places if place.name == arguments.place]
    if not found:
        names = ", ".join(place.name for place in places)
        raise ConfigurationError([f"{arguments.config}: no meter {arguments.place!r}; there are {names}"])
    return found[0]


def places_of(arguments: argparse.Namespace) -> list[Place]:
    """The meters that the options name: one, or all of gateway.toml.

    Raises:
        ConfigurationError: As ``place_of``.
    """
    if arguments.place is not None:
        return [place_of(arguments)]
    if arguments.config is None:
        raise ConfigurationError(["name the configuration (-c gateway.toml), or a TARGET with --unit and --profile"])
    return _configured(arguments)


def _configured(arguments: argparse.Namespace) -> list[Place]:
    given = [name for name in OF_A_TARGET if getattr(arguments, name) is not None]
    if given:
        option = given[0].replace("_", "-")
        raise ConfigurationError([f"--{option}: is for a TARGET; with -c the meter's name says it all"])
    cabinet = load_cabinet(arguments.config)
    return [_place(cabinet, bus, meter) for bus in cabinet.buses for meter in bus.meters]


def _place(cabinet: Cabinet, bus: BusPlan, meter: MeterPlan) -> Place:
    loaded = cabinet.profiles[meter.name]
    assert isinstance(meter.map, ModbusMap)  # noqa: S101  there is no other kind
    cost = meter.map.terms.cost if meter.map.terms else _cost(BusTarget(bus.kind, bus.endpoint), loaded)
    whole = _meter(meter.name, meter.unit, loaded, cost, timeout_s=meter.timeout_s, retries=meter.retries)
    where = f"{bus.name} ({endpoint_text(bus.endpoint)})"
    return Place(
        name=meter.name, where=where, bus=bus, unit=meter.unit, loaded=loaded, meter=whole, status=cabinet.status
    )


@contextmanager
def mindful_of_the_agent(place: Place, now_ns: Callable[[], int]) -> Iterator[None]:
    """Where a meter on the network is not reached while the agent runs, say so: many take one connection only."""
    try:
        yield
    except (NoReplyError, BusDownError) as error:
        if isinstance(place.bus.endpoint, SerialEndpoint) or not _fresh(place.status, now_ns()):
            raise
        raise type(error)(
            f"{error}; the agent is running and may have its only connection: energybid status -f {place.status} shows "
            "what it reads"
        ) from None


def refuse_what_is_held(place: Place, writable: str, now_ns: int) -> None:
    """Where the running agent holds a number, nobody else is to write it: the agent would not notice.

    Args:
        place: The meter.
        writable: The number's name in the profile.
        now_ns: Wall clock.

    Raises:
        EnergybidError: It is held, or being made safe.
    """
    if place.status is None or not _fresh(place.status, now_ns):
        return
    try:
        points = json.loads(place.status.read_text(encoding="utf-8"))["control"]
        point = next((p for p in points if p["point"] == f"{place.name}/{writable}"), None)
        owners = [f"{lease['owner']} ({lease['rank']})" for lease in point["leases"]] if point else []
        is_open = bool(point and point["open"])
    except (OSError, ValueError, LookupError, TypeError):
        return  # no status of an agent that holds anything
    if owners or is_open:
        who = ", ".join(owners) or "the agent, which makes it safe"
        raise EnergybidError(
            f"{place.name}/{writable} is held by {who}: energybid status -f {place.status} says until when. "
            "Wait for that, or stop the agent, which makes it safe first"
        )


def _fresh(status: Path | None, now_ns: int) -> bool:
    with suppress(OSError):
        return status is not None and abs(now_ns - status.stat().st_mtime_ns) < FRESH_NS
    return False


def endpoint_text(endpoint: Endpoint) -> str:
    """Where a bus is, for people."""
    if isinstance(endpoint, SerialEndpoint):
        frame = f"{endpoint.data_bits}{endpoint.parity}{endpoint.stop_bits}"
        return f"{endpoint.device}, {endpoint.baudrate} {frame}"
    return f"{endpoint.host}:{endpoint.port}"


def _at_target(arguments: argparse.Namespace, *, needs_profile: bool) -> Place:
    faults = []
    if arguments.unit is None:
        faults.append("--unit is missing: the meter's address (energybid scan TARGET finds it); or -c gateway.toml")
    elif arguments.unit not in UNITS:
        faults.append(f"--unit: is 0 to 255 (found {arguments.unit})")
    if arguments.profile is None and needs_profile:
        faults.append("--profile is missing: the meter's model (energybid profile list; energybid scan TARGET tells)")
    if faults:
        raise ConfigurationError(faults)
    parity = arguments.parity or ("E" if arguments.place.startswith("ascii:") else "N")
    target = parse_target(
        arguments.place,
        baudrate=BAUDRATE if arguments.baudrate is None else arguments.baudrate,
        parity=parity,
        stop_bits=arguments.stop_bits or 1,
        tls=tls_of(arguments),
    )
    if target.kind not in WIRES:
        raise ConfigurationError([f"{arguments.place}: a bus of kind {target.kind} can not be read so"])
    loaded = load_profile(arguments.profile) if arguments.profile else None
    name = f"unit {arguments.unit}"
    meter = None
    if loaded is not None:
        timeout_s = loaded.profile.timeout_s
        meter = _meter(name, arguments.unit, loaded, _cost(target, loaded), timeout_s=timeout_s)
    bus = BusPlan(
        name=arguments.place,
        kind=target.kind,
        endpoint=target.endpoint,
        meters=(meter,) if meter else (),
        lateness_s=SHORT,
    )
    return Place(name=name, where=arguments.place, bus=bus, unit=arguments.unit, loaded=loaded, meter=meter)


def _cost(target: BusTarget, loaded: LoadedProfile) -> Cost:
    delay_s = loaded.profile.timing.reply_delay_s
    return bus_cost(target.endpoint, is_ascii=target.kind == ASCII, reply_delay_s=delay_s)


def _meter(
    name: str, unit: int, loaded: LoadedProfile, cost: Cost, *, timeout_s: float, retries: int = RETRIES
) -> MeterPlan:
    groups, compiled = compile_profile(loaded, interval_s=1, cost=cost)
    return MeterPlan(
        name=name,
        unit=unit,
        timeout_s=timeout_s,
        retries=retries,
        profile=loaded.name,
        profile_hash=loaded.sha256,
        groups=groups,
        map=compiled,
    )
