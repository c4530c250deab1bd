"""Puts the buses of a bus.toml on the wire: sites, meters, stations, listeners."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energybid.core.errors import ConfigurationError
from energybid.drivers.profile import load_profile
from energybid.simulator.bus import Bus, LineTiming, RtuLine, Station, TcpConnection
from energybid.simulator.config import BusFile, MeterModel, RtuBusModel, TcpBusModel
from energybid.simulator.household import Household, Site, chance_between
from energybid.simulator.meters import Meter
from energybid.simulator.system import PtyTransport, serve_tcp

INITIAL_WH_MIN, INITIAL_WH_MAX = 1_000_000, 9_000_000
"""Between these lies what a meter had counted before the replay began."""
SERIAL_NUMBERS = 90_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A bus and where to find it."""

    name: str
    kind: str
    address: dict[str, Any]
    """``host`` and ``port``, or ``device`` and ``baudrate``."""
    units: list[int]
    bus: Bus


@dataclass(frozen=True, slots=True)
class Served:
    """Everything that is being served."""

    places: list[Place]


@asynccontextmanager
async def serve(file: BusFile, base: Path) -> AsyncIterator[Served]:
    """Serve all buses until the context ends.

    Args:
        file: The checked bus.toml.
        base: Where relative device links start.

    Raises:
        ConfigurationError: A profile has quantities that can not be simulated.
        OSError: A port or link can not be had.
    """
    replay_ms = _clock(file.speed)
    buses = [make_bus(bus, file.seed, replay_ms) for bus in file.bus]
    closers: list[Callable[[], None]] = []
    try:
        places = []
        for model, bus in zip(file.bus, buses, strict=True):
            opened, address = await (
                _open_rtu(model, bus, base) if model.kind == "modbus-rtu" else _open_tcp(model, bus)
            )
            closers.append(opened.close)
            units = [meter.unit for meter in model.meter]
            places.append(Place(name=model.name, kind=model.kind, address=address, units=units, bus=bus))
        yield Served(places)
    finally:
        for close in closers:
            close()


def _clock(speed: float) -> Callable[[], int]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    return lambda: int((loop.time() - began) * 1000 * speed)


def make_bus(model: TcpBusModel | RtuBusModel, seed: int, replay_ms: Callable[[], int]) -> Bus:
    """The bus that a ``[[bus]]`` table describes.

    Args:
        model: The table.
        seed: The file's seed.
        replay_ms: Where the replay stands.

    Raises:
        ConfigurationError: A profile has quantities that can not be simulated.
    """
    return Bus(
        stations=[_station(meter, f"{seed}/{meter.name}") for meter in model.meter],
        replay_ms=replay_ms,
        faults=model.faults.source(f"{seed}/bus {model.name}"),
        answer_unknown=isinstance(model, TcpBusModel) and model.unknown_unit == "exception",
    )


def _station(model: MeterModel, seed: str) -> Station:
    site = Site(
        load_permille=round(model.load * 1000),
        pv_peak_w=model.pv_peak_w,
        phases=model.phases,
        import_wh=chance_between(seed, "initial", INITIAL_WH_MIN, INITIAL_WH_MAX),
        begin_ms=round(model.begin * 1000),
    )
    number = chance_between(seed, "serial number", SERIAL_NUMBERS // 9, SERIAL_NUMBERS)
    try:
        meter = Meter(load_profile(model.profile), Household(seed, site), serial_number=number)
    except ValueError as error:
        raise ConfigurationError([f"meter {model.name}: {model.profile}: {error}"]) from None
    return Station(
        name=model.name,
        unit=model.unit,
        device=meter,
        reply_delay_s=model.reply_delay,
        faults=model.faults.source(seed),
    )


async def _open_tcp(model: TcpBusModel, bus: Bus) -> tuple[asyncio.Server, dict[str, Any]]:
    server, port = await serve_tcp(lambda: TcpConnection(bus), model.host, model.port)
    return server, {"host": model.host, "port": port}


async def _open_rtu(model: RtuBusModel, bus: Bus, base: Path) -> tuple[PtyTransport, dict[str, Any]]:
    line = RtuLine(bus, LineTiming.of(model.baudrate, model.parity, model.stop_bits))
    link = base / model.device
    return PtyTransport(line, link), {"device": str(link), "baudrate": model.baudrate}
