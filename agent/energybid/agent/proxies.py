"""gateway.toml's ``[[proxy]]``: the model, and the plan made of it. Imported where a file is checked only."""

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from energybid.agent.buses import device_name
from energybid.core.ports import BusPlan, SerialEndpoint
from energybid.core.settings import Duration, Settings
from energybid.drivers.modbus.map import ADDRESSES, ModbusMap
from energybid.drivers.modbus.proxy.plan import HERE, Allowed, Listen, ProxyPlan


def _network(value: str) -> str:
    ip_network(value)
    return value


class AllowedModel(Settings):
    """``allow``: registers or coils that masters may write; nothing else."""

    unit: int = Field(ge=1, le=255)
    """As the bus knows it."""
    table: Literal["holding", "coil"]
    first: int = Field(ge=0, lt=ADDRESSES)
    """Address on the wire, 0-based."""
    count: int = Field(1, ge=1, le=ADDRESSES)

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.first + self.count > ADDRESSES:
            raise ValueError(f"ends behind address {ADDRESSES - 1}")
        return self


class RenamedModel(Settings):
    """``rename``: a unit that masters call otherwise, so that several buses fit one numbering."""

    unit: int = Field(ge=0, le=255)
    """As masters call it."""
    to: int = Field(ge=0, le=255)
    """As the bus knows it."""


class ProxyModel(Settings):
    """``[[proxy]]``: other masters share a bus with the agent, whose polls go first (docs/proxy.md)."""

    bus: str
    """Name of a Modbus bus."""
    bind: str = Field("127.0.0.1", min_length=1, max_length=255)
    """Address to listen on; `"0.0.0.0"` for all of IPv4. Modbus has no passwords: `clients` is all that guards it."""
    port: int | None = Field(None, ge=0, le=65535)
    """TCP port for masters that speak Modbus TCP. This or `device`."""
    device: Annotated[str, AfterValidator(device_name)] | None = Field(None, min_length=1, max_length=4096)
    """A further serial port for a master that speaks Modbus RTU."""
    baudrate: int = Field(9600, ge=300, le=1_000_000)
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1
    clients: list[Annotated[str, AfterValidator(_network)]] = Field(default_factory=lambda: list(HERE), max_length=64)
    """Networks that masters may be in, such as `"192.168.1.0/24"`; this machine alone where it is not given."""
    units: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(None, min_length=1, max_length=256)
    """The bus's units that masters reach; all where it is not given."""
    rename: list[RenamedModel] = Field(default_factory=list, max_length=256)
    allow: list[AllowedModel] = Field(default_factory=list, max_length=256)
    max_age: Duration = Field(1.0, ge=0, le=3600)
    """Registers that were read no longer ago are answered without asking; "0 s" asks every time."""
    connections: int = Field(8, ge=1, le=256)
    """Most masters at once."""
    queue: int = Field(16, ge=1, le=256)
    """Most requests that wait for the bus; further ones are answered by exception 6 (busy)."""
    rate: int = Field(50, ge=1, le=1000)
    """Most requests of one master in a second."""
    wait: Duration = Field(1.0, ge=0.05, le=60)
    """Every request is answered within this time, if only by an exception: set masters to wait a little longer."""
    timeout: Duration = Field(1.0, ge=0.05, le=10)
    """How long a unit may take to reply that is none of the agent's meters."""
    idle: Duration = Field(60.0, ge=1, le=86400)
    """A connection on which no request comes for so long is closed."""
    share: int = Field(4, ge=1, le=50)
    """Percent of the bus's time that masters get while polls wait; all that polls leave is theirs anyway."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.port is None) == (self.device is None):
            raise ValueError("a proxy has either a port or a device")
        names = [renamed.unit for renamed in self.rename]
        if len(names) != len(set(names)):
            raise ValueError("rename: a unit stands more than once")
        return self

    def plan(self) -> ProxyPlan:
        """Ready to run."""
        at: Listen | SerialEndpoint
        if self.device is not None:
            at = SerialEndpoint(
                device=self.device, baudrate=self.baudrate, parity=self.parity, stop_bits=self.stop_bits
            )
        else:
            at = Listen(host=self.bind, port=self.port or 0)
        return ProxyPlan(
            bus=self.bus,
            listen=at,
            units=None if self.units is None else frozenset(self.units),
            renamed=tuple((renamed.unit, renamed.to) for renamed in self.rename),
            allow=tuple(Allowed(unit=a.unit, table=a.table, first=a.first, count=a.count) for a in self.allow),
            max_age_s=self.max_age,
            clients=tuple(self.clients),
            connections=self.connections,
            queue=self.queue,
            rate=self.rate,
            wait_s=self.wait,
            timeout_s=self.timeout,
            idle_s=self.idle,
            share=self.share / 100,
        )


def control_faults(plan: ProxyPlan, bus: BusPlan) -> Iterator[str]:
    """Where masters might write what the control path holds: it would not notice (docs/control.md).

    Args:
        plan: The proxy.
        bus: Its bus.
    """
    for meter in bus.meters:
        for writable in meter.map.writables if isinstance(meter.map, ModbusMap) else ():
            if writable.safe is None:
                continue  # no point of the control path
            end = writable.first + writable.count
            for number, allowed in enumerate(plan.allow):
                if (allowed.unit, allowed.table) == (meter.unit, "holding") and (
                    allowed.first < end and writable.first < allowed.first + allowed.count
                ):
                    yield (
                        f"allow[{number}]: holds register {writable.first} of unit {meter.unit}, which is "
                        f"{meter.name}/{writable.name}: the agent itself holds that; leave it out"
                    )
