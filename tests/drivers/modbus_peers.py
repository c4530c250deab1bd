"""Both ends joined in memory: a scripted Modbus peer behind a transport, and plans to poll it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from energybid.core.errors import BusDownError
from energybid.core.ports import BusPlan, Driver, Endpoint, MeterPlan, Platform, SerialEndpoint, TcpEndpoint
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.framing import Frame, MbapFramer, RtuRequests, mbap_frame, rtu_frame
from energybid.drivers.profile import compile_profile, parse_profile
from energybid.simulator.virtual import VirtualClock, run

TCP = TcpEndpoint(host="meter", port=502)
LINE = SerialEndpoint(device="/dev/ttyUSB0", baudrate=19_200, parity="E")
SILENT: list[tuple[float, bytes]] = []

COUNTER = b"""
manufacturer = "Test"
model = "Two counters"
source = [{ title = "this test" }]
max_registers = 4
baudrates = [19200]
parities = ["E"]
timeout = "200 ms"
defaults = { table = "input", type = "uint32" }
block = [{ table = "input", first = 0, count = 2 }, { table = "input", first = 100, count = 2 }]
quantity = [
  { name = "a", obis = "1-0:1.8.0", register = 0, unit = "Wh", resolution = "1" },
  { name = "b", obis = "1-0:2.8.0", register = 100, unit = "Wh", resolution = "1" },
]
"""
"""Two requests of the same shape: what can be mistaken for one another is not told apart by its length."""

Fate = Callable[[Frame], Iterable[tuple[float, bytes]]]
"""A request → what the peer sends, each after so many seconds."""


def bus_plan(
    kind: str = "modbus-tcp", *, units: Iterable[int] = (1,), quantities: list[str] | None = None, **settings: Any
) -> BusPlan:
    retries, profile = settings.pop("retries", 1), settings.pop("profile", COUNTER)
    loaded = parse_profile("counter", profile, source="counter.toml")
    groups, compiled = compile_profile(loaded, interval_s=1, quantities=quantities)
    meters = tuple(
        MeterPlan(
            name=f"m{unit}",
            unit=unit,
            timeout_s=0.2,
            retries=retries,
            profile="counter",
            profile_hash=loaded.sha256,
            groups=groups,
            map=compiled,
        )
        for unit in units
    )
    endpoint = TCP if kind == "modbus-tcp" else LINE
    return BusPlan(name="bus", kind=kind, endpoint=endpoint, meters=meters, **settings)


class Wire(asyncio.Transport):
    """A connection to the peer."""

    def __init__(self, bus: "Peer", protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.bus, self.protocol, self.open = bus, protocol, True

    def write(self, data: Any) -> None:
        if self.open:
            self.bus.receive(self, data)

    def deliver(self, data: bytes) -> None:
        if self.open:
            self.protocol.data_received(data)

    def lose(self, error: Exception | None = None) -> None:
        if self.open:
            self.open = False
            self.protocol.connection_lost(error)

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self.lose)

    close = abort


class Peer:
    """What is at the other end of the bus: ``fate`` says what becomes of each request."""

    def __init__(self, fate: Fate, *, rtu: bool = False) -> None:
        self.fate, self.rtu = fate, rtu
        self.requests: list[Frame] = []
        self.asked_at: list[float] = []
        self.writes = 0
        self.refuse: str | None = None
        self.attempts: list[float] = []
        self.wires: list[Wire] = []
        self.framer = RtuRequests()

    def receive(self, wire: Wire, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.writes += 1
        framer = self.framer if self.rtu else MbapFramer()
        for frame in framer.feed(data):
            assert isinstance(frame, Frame), frame
            self.requests.append(frame)
            self.asked_at.append(loop.time())
            for delay_s, answer in self.fate(frame):
                loop.call_later(delay_s, wire.deliver, answer)

    async def open_bus(self, _endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol], /) -> asyncio.Transport:
        self.attempts.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        if self.refuse:
            raise BusDownError(self.refuse)
        wire = Wire(self, protocol())
        self.wires.append(wire)
        wire.protocol.connection_made(wire)
        return wire

    def platform(self) -> Platform:
        def unused(*_: object) -> Any:
            raise AssertionError("a driver has no use for this")

        clock = VirtualClock()
        return Platform(
            now_ns=clock.now_ns,
            clock_state=clock.clock_state,
            boot_id=bytes(16),
            entropy=unused,
            random=random.Random(1),
            offload=unused,
            open_bus=self.open_bus,
            connect_uplink=unused,
            open_database=unused,
            notify=unused,
        )


Scene = Callable[[Driver, Peer, BusPlan], Awaitable[Any]]


def played(plan: BusPlan, peer: Peer, scene: Scene) -> Any:
    """Run ``scene(driver, peer, plan)`` in virtual time."""

    async def main() -> Any:
        driver = open_driver(peer.platform(), plan)
        try:
            return await scene(driver, peer, plan)
        finally:
            await driver.close()

    return run(main)


def reply(frame: Frame, registers: bytes, *, rtu: bool = False, **other: int) -> bytes:
    """A well-formed answer; ``unit``, ``transaction`` and ``function`` may be those of somebody else."""
    pdu = bytes((other.get("function", frame.pdu[0]), len(registers))) + registers
    return framed(frame, pdu, rtu=rtu, **other)


def framed(frame: Frame, pdu: bytes, *, rtu: bool = False, **other: int) -> bytes:
    unit = other.get("unit", frame.unit)
    return rtu_frame(unit, pdu) if rtu else mbap_frame(other.get("transaction", frame.transaction), unit, pdu)
