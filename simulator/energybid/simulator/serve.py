"""Puts the buses of a bus.toml on the wire: sites, meters, stations, listeners."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from energybid.core.errors import ConfigurationError
from energybid.drivers.profile import load_profile
from energybid.simulator.assets import Asset
from energybid.simulator.bus import AsciiLine, Bus, LineTiming, RtuLine, Station, TcpConnection, UdpSocket
from energybid.simulator.config import (
    AnyBusModel,
    AsciiBusModel,
    BusFile,
    MeterModel,
    RtuBusModel,
    RtuTcpBusModel,
    TcpBusModel,
    UdpBusModel,
)
from energybid.simulator.connection import Connection, Device
from energybid.simulator.household import Household, Site, chance_between
from energybid.simulator.meters import Measured, Meter, device_profile, load_model
from energybid.simulator.recorded import Recorded, load_dump
from energybid.simulator.system import PtyTransport, serve_tcp, serve_udp, tls_context

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


class _Closable(Protocol):
    def close(self) -> None: ...


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
    sites = Sites(file)
    buses = [make_bus(bus, file.seed, _clock(bus.speed or file.speed), sites) for bus in file.bus]
    closers: list[Callable[[], None]] = []
    try:
        places = []
        for model, bus in zip(file.bus, buses, strict=True):
            opened, address = await _open(model, bus, base)
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


class Sites:
    """What the meters of a file measure; a device hangs behind one meter at most."""

    def __init__(self, file: BusFile) -> None:
        """Couple the devices of a file to the meters that measure them."""
        meters = {meter.name: meter for bus in file.bus for meter in bus.meter}
        self._seed = file.seed
        self._devices: dict[str, Device] = {}
        self._connections: dict[str, Connection] = {}
        for meter in meters.values():
            if meter.assets:
                self._couple(meter, [meters[name] for name in meter.assets])
        for meter in meters.values():
            if meter.asset and meter.name not in self._devices:
                self._couple(meter, [meter])

    def _couple(self, meter: MeterModel, devices: list[MeterModel]) -> None:
        assets = [self._asset(device) for device in devices]
        seed = self._seed_of(meter)
        site = _site(meter, seed)
        household = Household(seed, site) if meter.asset is None else None
        connection = self._connections[meter.name] = Connection(household, assets, import_wh=site.import_wh)
        self._devices |= {d.name: connection.device(asset) for d, asset in zip(devices, assets, strict=True)}

    def _asset(self, meter: MeterModel) -> Asset:
        assert meter.asset is not None  # noqa: S101  the file was checked
        return meter.asset.make(round(meter.begin * 1000), self._seed_of(meter))

    def _seed_of(self, meter: MeterModel) -> str:
        return f"{self._seed}/{meter.name}"

    def measured(self, meter: MeterModel) -> Measured:
        """What a meter with a profile measures."""
        seed = self._seed_of(meter)
        return self._connections.get(meter.name) or Household(seed, _site(meter, seed))

    def device(self, meter: MeterModel) -> Device | None:
        """The device that a meter is, if it is one."""
        return self._devices.get(meter.name)


def make_bus(model: AnyBusModel, seed: int, replay_ms: Callable[[], int], sites: Sites | None = None) -> Bus:
    """The bus that a ``[[bus]]`` table describes.

    Args:
        model: The table.
        seed: The file's seed.
        replay_ms: Where the replay stands.
        sites: What the meters of its file measure; made of this bus alone where it is not given.

    Raises:
        ConfigurationError: A profile has quantities that can not be simulated.
    """
    sites = sites or Sites(BusFile(seed=seed, bus=[model]))
    return Bus(
        stations=[_station(meter, f"{seed}/{meter.name}", sites) for meter in model.meter],
        replay_ms=replay_ms,
        faults=model.faults.source(f"{seed}/bus {model.name}"),
        answer_unknown=isinstance(model, TcpBusModel | UdpBusModel) and model.unknown_unit == "exception",
    )


def _station(model: MeterModel, seed: str, sites: Sites) -> Station:
    return Station(
        name=model.name,
        unit=model.unit,
        device=Recorded(load_dump(model.dump)) if model.dump else _meter(model, seed, sites),
        reply_delay_s=model.reply_delay,
        faults=model.faults.source(seed),
    )


def _site(model: MeterModel, seed: str) -> Site:
    return Site(
        load_permille=round(model.load * 1000),
        pv_peak_w=model.pv_peak_w,
        phases=model.phases,
        import_wh=chance_between(seed, "initial", INITIAL_WH_MIN, INITIAL_WH_MAX) if model.asset is None else 0,
        begin_ms=round(model.begin * 1000),
    )


def _meter(model: MeterModel, seed: str, sites: Sites) -> Meter:
    number = model.serial_number or chance_between(seed, "serial number", SERIAL_NUMBERS // 9, SERIAL_NUMBERS)
    if device := sites.device(model):
        return Meter(load_profile(device_profile(device.profile)), device, serial_number=number, device=device)
    loaded, wiring = load_model(model.profile or ""), model.wiring.wiring()
    try:
        return Meter(loaded, sites.measured(model), serial_number=number, wiring=wiring)
    except ValueError as error:
        raise ConfigurationError([f"meter {model.name}: {model.profile}: {error}"]) from None


async def _open(model: AnyBusModel, bus: Bus, base: Path) -> tuple[_Closable, dict[str, Any]]:
    """Put a bus on its wire; what closes it, and where it is."""
    if isinstance(model, RtuBusModel | AsciiBusModel):
        link = base / model.device
        pty = PtyTransport(_line(model, bus), link, baudrate=model.baudrate)
        return pty, {"device": str(link), "baudrate": model.baudrate}
    opened: _Closable
    if isinstance(model, UdpBusModel):
        opened, port = await serve_udp(lambda: UdpSocket(bus), model.host, model.port)
    elif isinstance(model, RtuTcpBusModel):
        opened, port = await serve_tcp(lambda: _line(model, bus), model.host, model.port)
    else:
        opened, port = await serve_tcp(lambda: TcpConnection(bus), model.host, model.port, _tls(model, base))
    return opened, {"host": model.host, "port": port}


def _line(model: RtuBusModel | AsciiBusModel | RtuTcpBusModel, bus: Bus) -> RtuLine:
    if isinstance(model, AsciiBusModel):
        return AsciiLine(bus, LineTiming.of(model.baudrate, model.parity, model.stop_bits, model.data_bits))
    return RtuLine(bus, LineTiming.of(model.baudrate, model.parity, model.stop_bits))


def _tls(model: TcpBusModel, base: Path) -> ssl.SSLContext | None:
    if model.tls is None:
        return None
    files = [name and str(base / name) for name in (model.tls.certificate, model.tls.key, model.tls.ca)]
    try:
        return tls_context(files[0] or "", files[1], files[2])
    except OSError as error:
        raise ConfigurationError([f"bus {model.name}: tls: {error} ({', '.join(filter(None, files))})"]) from None
