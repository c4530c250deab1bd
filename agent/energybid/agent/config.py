"""gateway.toml: the model of the file, and the plan made of it.

Imported by commands only, never by the running agent. Everything is checked here, profiles and keys included, and every
fault is reported at once.
"""

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, model_validator

from energybid.agent.budget import DEFAULT, LEAST
from energybid.agent.buses import AnyBusModel, AsciiBusModel, BusModel, MeterModel, Name, RtuBusModel
from energybid.agent.market.config import MarketModel
from energybid.agent.market.plan import MarketPlan
from energybid.agent.market.wiring import Known, market_plan
from energybid.agent.plan import AgentPlan, JournalPlan, StatusPlan, UplinkPlan
from energybid.agent.proxies import ProxyModel, control_faults
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.errors import ConfigurationError
from energybid.core.ports import BusPlan, Endpoint, MeterPlan, TcpEndpoint, Will
from energybid.core.settings import Duration, Settings, Size, file_bytes, parse_toml
from energybid.drivers.planner import Cost, bus_cost, tcp_cost
from energybid.drivers.profile import Group, LoadedProfile, compile_profile, load_profile
from energybid.drivers.tls import client_context
from energybid.sync.settings import UplinkModel
from energybid.sync.topics import topics_for

T = TypeVar("T")

SOCKET = "control.sock"
QUANTITIES_MAX = 1024
"""So many fit a reading, and their declaration an entry."""
MARKET_SESSION_S = 7 * 86_400
"""So long a broker keeps what a market says to a gateway that is away: statements come days later, and once."""


class GatewayModel(Settings):
    """``[gateway]``: who this gateway is."""

    tenant: Name
    """The utility's name for the customer or area."""
    id: Name
    """The gateway's name, unique in the tenant."""
    trust_clock: bool = False
    """The clock counts as synchronised, whatever the kernel says: something keeps it right that the kernel does not
    know of, such as the host of a virtual machine. Every time in the log then stands on your word."""


class KeysModel(Settings):
    """``[keys]``: PEM files, made by ``energybid keys new``; relative to the configuration file."""

    log: str
    """The gateway's private log key."""
    headend: str | None = None
    """The head-end's public key; needed with ``[uplink]``."""


class JournalModel(Settings):
    """``[journal]``: the log on disk."""

    path: str
    """The SQLite file; relative to the configuration file."""
    commit_interval: Duration = Field(5.0, ge=0, le=3600)
    """Readings are committed so often; a power cut costs at most what was read since. "0 s" commits every cycle."""
    keep: Duration = Field(7 * 86400.0, ge=0)
    """Acknowledged history that stays on the gateway at least. More stays while the budget allows."""
    keep_least: Duration = Field(86400.0, ge=0)
    """When the budget runs low, acknowledged history shrinks down to this (or to `keep`, if that is less)."""
    budget: Size = Field(DEFAULT, ge=LEAST)
    """Most that the journal takes on the disk, write-ahead log and ballast included. What is given up when it runs
    low, and in which order: docs/recovery.md."""


class AgentUplinkModel(UplinkModel):
    """``[uplink]``: the broker."""

    batch_interval: Duration = Field(10.0, ge=0, le=86400)
    """A batch is sent so often, earlier when much is waiting."""
    window: int = Field(8, ge=1, le=64)
    """Most batches under way without a receipt."""
    receipt_timeout: Duration = Field(60.0, ge=1, le=3600)
    """Without a receipt for so long, batches are sent again."""


class StatusModel(Settings):
    """``[status]``: the status file."""

    path: str | None = None
    """A JSON file on a RAM disk, such as /run/energybid/status.json; relative to the configuration file."""
    interval: Duration = Field(5.0, ge=0.1, le=3600)


class ControlModel(Settings):
    """``[control]``: who may override what the agent sets (docs/control.md)."""

    socket: str | None = None
    """A UNIX socket for `energybid override`, for the agent's user and group alone; relative to the configuration file.
    Where it is not given, `control.sock` beside the status file."""


class LogsModel(Settings):
    """``[logs]``: what goes to standard error."""

    format: Literal["human", "json"] = "human"


class GatewayFile(Settings):
    """All of gateway.toml."""

    gateway: GatewayModel
    keys: KeysModel
    journal: JournalModel
    uplink: AgentUplinkModel | None = None
    status: StatusModel = StatusModel()
    control: ControlModel = ControlModel()
    logs: LogsModel = LogsModel()
    bus: list[BusModel] = Field(min_length=1, max_length=64)
    proxy: list[ProxyModel] = Field(default_factory=list, max_length=16)
    market: MarketModel | None = None

    @model_validator(mode="after")
    def _unique(self) -> "GatewayFile":
        faults: list[str] = []
        for what, names in (
            ("bus names", [bus.name for bus in self.bus]),
            ("meter names", [meter.name for bus in self.bus for meter in bus.meter]),
            (
                "devices",
                [bus.device for bus in self.bus if isinstance(bus, RtuBusModel | AsciiBusModel)]
                + [proxy.device for proxy in self.proxy if proxy.device],
            ),
            ("ports of proxies", [f"{proxy.bind}:{proxy.port}" for proxy in self.proxy if proxy.port]),
            *((f"units on bus {bus.name}", [str(meter.unit) for meter in bus.meter]) for bus in self.bus),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                faults.append(f"{what} must be unique: {', '.join(twice)} stands more than once")
        faults += self._proxy_faults()
        if self.uplink and not self.keys.headend:
            faults.append("keys.headend is missing: the head-end's public key is needed with [uplink]")
        if self.market and not self.uplink:
            faults.append("uplink is missing: the [market] is reached through its broker")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _proxy_faults(self) -> list[str]:
        kinds = {bus.name: bus.kind for bus in self.bus}
        return [
            f"proxy[{number}].bus: {proxy.bus!r} is no Modbus bus of this file"
            for number, proxy in enumerate(self.proxy)
            if not kinds.get(proxy.bus, "").startswith("modbus-")
        ]


class _Faults:
    """Collects faults instead of stopping at the first."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.lines: list[str] = []

    def add(self, key: str, faults: Iterable[str]) -> None:
        """Faults that begin with a key in ``key``."""
        self.lines += [f"{self.source}: {key}.{fault}" for fault in faults]

    def attempt(self, key: str, make: Callable[[], T], *, between: str = ": ") -> T | None:
        """``make()``, or None and a line that names the key; ``between`` is "." where faults begin with a key in it."""
        try:
            return make()
        except ConfigurationError as error:
            self.lines += [f"{self.source}: {key}{between}{line}" for line in error.faults]
        except OSError as error:
            self.lines.append(f"{self.source}: {key}: {error.filename}: {error.strerror}")
        except ValueError as error:
            self.lines.append(f"{self.source}: {key}: {error}")
        return None


def load_plan(path: Path) -> AgentPlan:
    """Read gateway.toml and everything it names.

    Raises:
        ConfigurationError: Every fault in it.
    """
    return _planner(path).plan()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cabinet:
    """What gateway.toml says of the buses, for commands that talk to meters without being the agent."""

    buses: tuple[BusPlan, ...]
    profiles: dict[str, LoadedProfile]
    """By the meter's name."""
    status: Path | None
    """The agent's status file."""
    socket: Path | None = None
    """Its socket for overrides."""


def load_cabinet(path: Path) -> Cabinet:
    """Read the buses of gateway.toml; keys need not be there.

    Raises:
        ConfigurationError: Every fault in the file, its buses and their profiles.
    """
    return _planner(path).cabinet()


def _planner(path: Path) -> "_Planner":
    data = file_bytes(path, "write one as the README shows")
    return _Planner(path, data, parse_toml(str(path), data, GatewayFile))


class _Planner:
    def __init__(self, path: Path, data: bytes, file: GatewayFile) -> None:
        self._base = path.parent
        self._file = file
        self._faults = _Faults(str(path))
        self._digest = sha256(data)
        self._profiles: dict[str, LoadedProfile] = {}

    def cabinet(self) -> Cabinet:
        buses = tuple(self._bus(number, bus) for number, bus in enumerate(self._file.bus))
        if self._faults.lines:
            raise ConfigurationError(self._faults.lines)
        status = self._file.status.path
        place = self._base / status if status else None
        return Cabinet(buses=buses, profiles=self._profiles, status=place, socket=self._socket())

    def plan(self) -> AgentPlan:
        file = self._file
        buses = tuple(self._bus(number, bus) for number, bus in enumerate(file.bus))
        log_key = self._faults.attempt("keys.log", lambda: self._pem(file.keys.log, PrivateKey.from_pem))
        headend = file.keys.headend
        headend_key = headend and self._faults.attempt("keys.headend", lambda: self._pem(headend, PublicKey.from_pem))
        uplink = self._faults.attempt("uplink", self._uplink)
        drivers = {e.name: e.value for e in importlib.metadata.entry_points(group="energybid.drivers")}
        proxies = tuple(proxy.plan() for proxy in file.proxy)
        by_name = {bus.name: bus for bus in buses}
        for number, proxy in enumerate(proxies):
            self._faults.add(f"proxy[{number}]", control_faults(proxy, by_name[proxy.bus]))
        market = self._faults.attempt("market", lambda: self._market(buses), between=".")
        socket = self._socket()
        if self._faults.lines:
            raise ConfigurationError(self._faults.lines)
        return AgentPlan(
            version=importlib.metadata.version("energybid-edge"),
            tenant=file.gateway.tenant,
            gateway=file.gateway.id,
            trust_clock=file.gateway.trust_clock,
            log_key=log_key or b"",
            headend_key=headend_key or b"",
            configuration_hash=self._digest.digest(),
            journal=JournalPlan(
                path=str(self._base / file.journal.path),
                commit_interval_s=file.journal.commit_interval,
                keep_s=file.journal.keep,
                keep_least_s=file.journal.keep_least,
                budget=file.journal.budget,
            ),
            uplink=uplink,
            status=StatusPlan(
                path=str(self._base / file.status.path) if file.status.path else None, interval_s=file.status.interval
            ),
            buses=buses,
            drivers={bus.kind: drivers[bus.kind] for bus in buses},
            json_logs=file.logs.format == "json",
            proxies=proxies,
            socket=str(socket) if socket else None,
            market=market,
        )

    def _socket(self) -> Path | None:
        """Beside the status file, or where it is said to be."""
        file = self._file
        if file.control.socket is not None:
            return self._base / file.control.socket
        return (self._base / file.status.path).with_name(SOCKET) if file.status.path else None

    def _pem(self, name: str, check: Callable[[bytes], object]) -> bytes:
        pem = (self._base / name).read_bytes()
        try:
            check(pem)
        except ValueError as error:
            raise ValueError(f"{self._base / name}: {error}") from None
        return pem

    def _market(self, buses: tuple[BusPlan, ...]) -> MarketPlan | None:
        if self._file.market is None:
            return None
        meters: dict[str, Known | None] = {meter.name: None for bus in self._file.bus for meter in bus.meter}
        for bus in buses:
            meters |= {meter.name: Known(meter, self._profiles[meter.name]) for meter in bus.meters}
        return market_plan(self._file.market, meters, self._pem)

    def _uplink(self) -> UplinkPlan | None:
        model = self._file.uplink
        if model is None:
            return None
        gateway = self._file.gateway
        will = Will(topics_for(gateway.tenant, gateway.id).status, b'{"state": "offline"}')
        client_id = f"energybid-{gateway.tenant}-{gateway.id}"
        session_s = MARKET_SESSION_S if self._file.market else 0
        return UplinkPlan(
            settings=model.settings(client_id, will, session_s=session_s, base=self._base),
            batch_interval_s=model.batch_interval,
            window=model.window,
            receipt_timeout_s=model.receipt_timeout,
        )

    def _bus(self, number: int, bus: AnyBusModel) -> BusPlan:
        meters = [self._meter(f"bus[{number}].meter[{m}]", meter, bus) for m, meter in enumerate(bus.meter)]
        endpoint = bus.endpoint(self._base)
        if isinstance(endpoint, TcpEndpoint) and endpoint.tls:
            self._faults.attempt(f"bus[{number}].tls", partial(client_context, endpoint.tls))
        return BusPlan(
            name=bus.name,
            kind=bus.kind,
            endpoint=endpoint,
            meters=tuple(meter for meter in meters if meter),
            in_flight=getattr(bus, "in_flight", 1),
            pause_s=getattr(bus, "pause", 0.0),
            lateness_s=bus.lateness,
        )

    def _meter(self, key: str, meter: MeterModel, bus: AnyBusModel) -> MeterPlan | None:
        name = meter.profile
        if name.endswith(".toml"):
            name = str(self._base / name)
        loaded = self._faults.attempt(f"{key}.profile", lambda: load_profile(name))
        if loaded is None:
            return None
        self._digest.update(loaded.sha256)
        self._profiles[meter.name] = loaded
        cost = _cost(bus.kind, bus.endpoint(), loaded)
        return self._faults.attempt(key, lambda: meter_plan(meter, loaded, cost), between=".")


def _cost(kind: str, endpoint: Endpoint, loaded: LoadedProfile) -> Cost:
    return bus_cost(endpoint, is_ascii=kind == "modbus-ascii", reply_delay_s=loaded.profile.timing.reply_delay_s)


def meter_plan(meter: MeterModel, loaded: LoadedProfile, cost: Cost | None = None) -> MeterPlan:
    """A meter ready to poll.

    Args:
        meter: As in the file.
        loaded: Its profile.
        cost: Of requests on its bus; None for a network.

    Raises:
        ConfigurationError: A quantity that the profile does not have, or that stands twice; too many; numbers larger
            than ``max_registers``.
    """
    cost = cost or tcp_cost(reply_delay_s=loaded.profile.timing.reply_delay_s)
    if meter.max_registers is not None:
        cost = replace(cost, registers_max=meter.max_registers)
    groups, compiled = compile_profile(
        loaded,
        interval_s=meter.interval,
        quantities=meter.quantities,
        groups=[Group(interval_s=group.interval, quantities=group.quantities) for group in meter.group],
        cost=cost,
    )
    if sum(len(group.quantities) for group in groups) > QUANTITIES_MAX:
        raise ConfigurationError([f"quantities: a meter has {QUANTITIES_MAX} at most: choose some"])
    return MeterPlan(
        name=meter.name,
        unit=meter.unit,
        timeout_s=meter.timeout or loaded.profile.timeout_s,
        retries=meter.retries,
        profile=loaded.name,
        profile_hash=loaded.sha256,
        groups=groups,
        map=compiled,
    )
