"""A bench for scans: simulated buses joined in memory, in virtual time; every request is counted."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from energybid.core.ports import Endpoint, Platform, SerialEndpoint, TcpEndpoint
from energybid.drivers.profile import LoadedProfile, load_profile
from energybid.drivers.scan import Found, Setting, settings_of
from energybid.drivers.target import BusTarget, parse_target
from energybid.simulator.bus import AsciiLine, Bus, LineTiming, RtuLine, Station, TcpConnection
from energybid.simulator.faults import FaultSource
from energybid.simulator.household import Household
from energybid.simulator.meters import Meter
from energybid.simulator.virtual import VirtualClock
from energybid.simulator.world.wire import Socket

DEVICE = "/dev/ttyUSB0"
HOST = "tcp://meters"
MODELS = ("eastron-sdm630", "abb-b23", "carlo-gavazzi-em340", "schneider-iem3155")


class Scripted:
    """A device that answers every request by a function."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer

    def respond(self, pdu: bytes, _at_ms: int) -> bytes:
        return self._answer(pdu)


def meter(unit: int, profile: str = MODELS[0], *, delay_s: float = 0.03, **rates: Any) -> Station:
    loaded = load_profile(profile)
    device = Meter(loaded, Household(f"meter {unit}"), serial_number=10_000_000 + unit)
    return Station(
        name=f"m{unit}", unit=unit, device=device, reply_delay_s=delay_s, faults=FaultSource(f"f{unit}", rates)
    )


def scripted(unit: int, answer: Callable[[bytes], bytes], *, delay_s: float = 0.03) -> Station:
    return Station(name=f"s{unit}", unit=unit, device=Scripted(answer), reply_delay_s=delay_s)


class Deaf(asyncio.Protocol):
    """A line heard at the wrong rate: what is sent is not understood, and what comes is noise."""

    def __init__(self, noise: bytes) -> None:
        self._noise = noise

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._noise:
            asyncio.get_running_loop().call_later(0.03, self._transport.write, self._noise)


class EveryUnit(Bus):
    """A meter with a network socket of its own: it answers whatever unit is asked."""

    def station(self, unit: int) -> Station | None:
        return self.stations[0]


@dataclass
class Bench:
    """One bus, and a platform that opens it."""

    bus: Bus
    baudrate: int = 9600
    parity: str = "N"
    noise: bytes = b""
    """What comes at other rates."""
    opened: list[Endpoint] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(7)

    async def open(self, endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol], /) -> asyncio.Transport:
        self.opened.append(endpoint)
        return await self._socket(endpoint).connect(protocol)

    def _socket(self, endpoint: Endpoint) -> Socket:
        if not isinstance(endpoint, SerialEndpoint):
            if isinstance(endpoint, TcpEndpoint) and endpoint.baudrate:
                return Socket("gateway", lambda: RtuLine(self.bus, LineTiming.of(9600)), self._chance, serial=False)
            return Socket("net", lambda: TcpConnection(self.bus), self._chance, serial=False)
        if (endpoint.baudrate, endpoint.parity) != (self.baudrate, self.parity):
            return Socket("line", lambda: Deaf(self.noise), self._chance, serial=True)
        timing = LineTiming.of(endpoint.baudrate, endpoint.parity, data_bits=endpoint.data_bits)
        speaks = RtuLine if endpoint.data_bits == 8 else AsciiLine
        return Socket("line", lambda: speaks(self.bus, timing), self._chance, serial=True)

    def platform(self) -> Platform:
        absent: Any = None
        clock = VirtualClock()
        return Platform(
            now_ns=clock.now_ns,
            clock_state=clock.clock_state,
            boot_id=bytes(16),
            entropy=absent,
            random=self._chance,
            offload=absent,
            open_bus=self.open,
            connect_uplink=absent,
            open_database=absent,
            notify=absent,
        )


def bench(*stations: Station, **settings: Any) -> Bench:
    kind = settings.pop("bus", Bus)
    answer_unknown = settings.pop("answer_unknown", False)
    return Bench(kind(stations=list(stations), replay_ms=lambda: 0, answer_unknown=answer_unknown), **settings)


def line(baudrates: list[int] | None = None, parities: list[str] | None = None) -> list[Setting]:
    def target(baudrate: int, parity: str) -> BusTarget:
        return parse_target(DEVICE, baudrate=baudrate, parity=parity)

    return settings_of(target, profiles(), baudrates, parities)


NETWORK = [Setting(HOST, parse_target(HOST), serial=False)]


def profiles() -> list[LoadedProfile]:
    return [load_profile(name) for name in MODELS]


class Notes:
    """Keeps what a watcher is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, int, float, float]] = []
        self.told: list[Found] = []

    def progress(self, label: str, unit: int, done: float, left_s: float) -> None:
        self.steps.append((label, unit, done, left_s))

    def found(self, found: Found) -> None:
        self.told.append(found)
