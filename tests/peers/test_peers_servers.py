"""The driver against strangers' servers, and every server (ours too) at the bytes: one suite for all of them."""

import asyncio
import socket
import struct
import time
from dataclasses import replace
from typing import Any

import pytest
import serial
from energybid.core.errors import MeterError
from energybid.core.ports import BusPlan, MeterPlan, SerialEndpoint, TcpEndpoint, UdpEndpoint
from energybid.core.quantities import Status
from energybid.drivers.modbus.ascii import ascii_frame, parse_line
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.framing import mbap_frame, rtu_frame
from energybid.drivers.profile import compile_profile
from energybid.drivers.system import open_bus
from energybid.drivers.target import parse_target
from modbus_peers import Peer
from peers_image import IMAGE, LOADED, MISSING, NOBODY, SEVERAL, SINGLE, UNIT, VALUES, WRITE_UNIT
from peers_servers import BAUDRATE, LIBMODBUS, SERVERS, Served
from peers_wires import Mangle, untouched

STRANGERS = [name for name in SERVERS if not name.startswith("ours")]
TIMEOUT_S, SHORT_S = 2.0, 0.1
PRESENT = {"quantities": [f"q{number}" for number, value in enumerate(VALUES) if value is not None]}
PRESENT_VALUES = tuple(value for value in VALUES if value is not None)
THREE = {"quantities": ["q0", "q2", "q60"]}
THREE_VALUES = tuple(VALUES[number] for number in (0, 2, 60))


def server(name: str, mangle: Mangle = untouched) -> Any:
    if name.startswith("libmodbus") and not LIBMODBUS:
        pytest.skip("libmodbus is not installed: apt-get install libmodbus5")
    return SERVERS[name](mangle)


def plan_for(served: Served, *, units: tuple[int, ...] = (UNIT,), **changes: Any) -> BusPlan:
    kind, endpoint = parse_target(served.target, baudrate=BAUDRATE)
    groups, compiled = compile_profile(LOADED, interval_s=1, **changes.pop("wanted", {}))
    meters = tuple(
        MeterPlan(
            name=f"m{unit}",
            unit=unit,
            timeout_s=SHORT_S if unit == NOBODY else changes.get("timeout_s", TIMEOUT_S),
            retries=changes.get("retries", 1),
            profile="image",
            profile_hash=LOADED.sha256,
            groups=groups,
            map=compiled,
        )
        for unit in units
    )
    return BusPlan(name="bus", kind=kind, endpoint=endpoint, meters=meters, lateness_s=0.05)


class Opened:
    """A driver on real ports, closed at the end."""

    def __init__(self, plan: BusPlan) -> None:
        self.driver = open_driver(replace(Peer(lambda _: ()).platform(), open_bus=open_bus), plan)

    async def __aenter__(self) -> Any:
        return self.driver

    async def __aexit__(self, *_: object) -> None:
        await self.driver.close()


# ---------------------------------------------------------------- the driver


@pytest.mark.parametrize("name", STRANGERS)
async def test_the_driver_reads_all_that_is_there(name):
    async with server(name) as served, Opened(plan := plan_for(served)) as driver:
        sample = await driver.poll(plan.meters[0], 0)
        assert sample.values == VALUES
        assert [n for n, status in enumerate(sample.status) if status != Status.OK] == [MISSING]
        assert sample.status[MISSING] == Status.REFUSED
        if served.wire:
            served.wire.asked.clear()
        assert (await driver.poll(plan.meters[0], 0)).values == VALUES
        if served.wire:
            # What is refused is not asked for again, and everything else with the fewest requests.
            assert len(served.wire.asked) == 3


@pytest.mark.parametrize("name", STRANGERS)
async def test_the_driver_writes_and_reads_back(name):
    async with server(name) as served, Opened(plan := plan_for(served)) as driver:
        for writable, raw in zip(LOADED.writables, (b"\xbe\xef", b"\xde\xad\xbe\xef"), strict=True):
            await driver.write(plan.meters[0], writable, raw)
            assert await driver.read_back(plan.meters[0], writable) == raw


ANSWERS_FOR_ALL = {"libmodbus tcp", "pyModbusTCP tcp", "pymodbus udp"}
"""Servers that do not look at the unit: they are no gateways, and their IP address says who is meant."""


@pytest.mark.parametrize("name", [name for name in STRANGERS if name not in ANSWERS_FOR_ALL])
async def test_a_unit_that_is_not_there_spoils_nothing(name):
    units = {"units": (UNIT, NOBODY), "retries": 0, "wanted": THREE}
    async with server(name) as served, Opened(plan := plan_for(served, **units)) as driver:
        there, nobody = plan.meters
        assert (await driver.poll(there, 0)).values == THREE_VALUES
        with pytest.raises(MeterError):
            await driver.poll(nobody, 0)
        assert (await driver.poll(there, 0)).values == THREE_VALUES


# ---------------------------------------------------------------- disturbed


def split(data: bytes) -> list[tuple[float, bytes]]:
    return [(0.0003, data[at : at + 7]) for at in range(0, len(data), 7)]


def echoed(data: bytes) -> list[tuple[float, bytes]]:
    """Noise before the reply, and half of an old one."""
    return [(0.0, b"\x00\xff\x01\x04\x10" + data[: len(data) // 2]), (0.0, data)]


class Late:
    """Every third reply comes when nobody waits for it any more, together with the next one."""

    def __init__(self) -> None:
        self.count, self.kept = 0, b""

    def __call__(self, data: bytes) -> list[tuple[float, bytes]]:
        self.count += 1
        if self.count % 3 == 0:
            self.kept = data
            return []
        kept, self.kept = self.kept, b""
        return [(0.0, kept + data)]


SERIAL = [name for name in STRANGERS if name.split()[1] in {"rtu", "ascii", "rtu-tcp"}]


@pytest.mark.parametrize("name", [name for name in STRANGERS if not name.endswith("udp")])
async def test_replies_in_pieces(name):
    async with server(name, split) as served, Opened(plan := plan_for(served, wanted=PRESENT)) as driver:
        assert (await driver.poll(plan.meters[0], 0)).values == PRESENT_VALUES


@pytest.mark.parametrize("name", SERIAL)
async def test_noise_before_each_reply(name):
    async with server(name, echoed) as served, Opened(plan := plan_for(served, wanted=PRESENT, retries=3)) as driver:
        assert (await driver.poll(plan.meters[0], 0)).values == PRESENT_VALUES


@pytest.mark.parametrize("name", [name for name in STRANGERS if not name.endswith("udp")])
async def test_late_replies_are_never_taken_for_answers(name):
    async with server(name, Late()) as served:
        plan = plan_for(served, wanted=THREE, timeout_s=SHORT_S)
        async with Opened(plan) as driver:
            done = [await asyncio.gather(driver.poll(plan.meters[0], 0), return_exceptions=True) for _ in range(3)]
    for (sample,) in done:
        if isinstance(sample, BaseException):
            assert isinstance(sample, MeterError)
        else:
            assert all(value in (None, known) for value, known in zip(sample.values, THREE_VALUES, strict=True))
    assert any(not isinstance(sample, BaseException) and sample.values == THREE_VALUES for (sample,) in done)


# ---------------------------------------------------------------- at the bytes


class Asker:
    """Sends bare frames and returns the PDU that comes back, b"" for silence; blocking, on a port of its own."""

    def __init__(self, served: Served) -> None:
        self.kind, endpoint = parse_target(served.target, baudrate=BAUDRATE)
        self.port: Any
        if isinstance(endpoint, SerialEndpoint):
            self.port = serial.Serial(endpoint.device, BAUDRATE, timeout=0.02)
        elif isinstance(endpoint, UdpEndpoint):
            self.port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.port.connect((endpoint.host, endpoint.port))
        else:
            assert isinstance(endpoint, TcpEndpoint)
            self.port = socket.create_connection((endpoint.host, endpoint.port))
        if not isinstance(endpoint, SerialEndpoint):
            self.port.settimeout(0.02)

    def _read(self) -> bytes:
        if isinstance(self.port, serial.Serial):
            return self.port.read(512)
        try:
            return self.port.recv(512)
        except TimeoutError:
            return b""

    def ask(self, unit: int, pdu: bytes, wait_s: float) -> bytes:
        mbap = self.kind in {"modbus-tcp", "modbus-udp"}
        frame = {"modbus-ascii": ascii_frame}.get(self.kind, rtu_frame)(unit, pdu)
        (getattr(self.port, "sendall", None) or self.port.write)(mbap_frame(0x1234, unit, pdu) if mbap else frame)
        found, until = b"", time.monotonic() + wait_s
        while time.monotonic() < until and not self._pdu(found, unit):
            found += self._read()
        return self._pdu(found, unit)

    def _pdu(self, found: bytes, unit: int) -> bytes:
        """The frame's PDU if it is whole and right to the last byte."""
        if self.kind == "modbus-ascii":
            frame = parse_line(found[:-2]) if found.endswith(b"\r\n") else None
            return frame.pdu if frame and frame.unit == unit and ascii_frame(unit, frame.pdu) == found else b""
        if self.kind in {"modbus-rtu", "modbus-rtu-tcp"}:
            return found[1:-2] if len(found) >= 5 and rtu_frame(unit, found[1:-2]) == found else b""
        return found[7:] if len(found) >= 9 and mbap_frame(0x1234, unit, found[7:]) == found else b""


def read(function: int, first: int, count: int) -> bytes:
    return struct.pack(">BHH", function, first, count)


def registers(function: int, first: int, count: int) -> bytes:
    return bytes((function, 2 * count)) + IMAGE[2 * first : 2 * (first + count)]


EXCHANGES: dict[str, tuple[bytes, bytes]] = {
    # Modbus Application Protocol V1.1b3. §6.3, §6.4: function, byte count, registers high byte first.
    "one holding register": (read(3, 0, 1), registers(3, 0, 1)),
    "one input register": (read(4, 7, 1), registers(4, 7, 1)),
    "the most registers": (read(3, 10, 125), registers(3, 10, 125)),
    "the last register": (read(4, 199, 1), registers(4, 199, 1)),
    # §6.3 figure 13: starting address and starting address + quantity must be there, else exception 2.
    "first missing register": (read(3, 200, 1), b"\x83\x02"),
    "over the end": (read(4, 199, 2), b"\x84\x02"),
    "over the end of all addresses": (read(3, 65_535, 2), b"\x83\x02"),
    # The same figure: 1 to 125 registers, else exception 3; this is looked at before the address.
    "no register": (read(3, 0, 0), b"\x83\x03"),
    "too many registers": (read(4, 0, 126), b"\x84\x03"),
    "too many, and not there": (read(3, 60_000, 2000), b"\x83\x03"),
    # §6.6: the answer is an echo. §6.12: function, address, quantity.
    "write one": (struct.pack(">BHH", 6, SINGLE, 0xBEEF), struct.pack(">BHH", 6, SINGLE, 0xBEEF)),
    "what was written": (read(3, SINGLE, 1), b"\x03\x02\xbe\xef"),
    "write two": (
        struct.pack(">BHHBHH", 16, SEVERAL, 2, 4, 0xDEAD, 0xBEEF),
        struct.pack(">BHH", 16, SEVERAL, 2),
    ),
    "what both hold": (read(3, SEVERAL, 2), b"\x03\x04\xde\xad\xbe\xef"),
    # §6.12 figure 22: the byte count is twice the quantity, else exception 3.
    "write with a wrong byte count": (struct.pack(">BHHBHH", 16, SEVERAL, 1, 4, 1, 2), b"\x90\x03"),
    "write where nothing is": (struct.pack(">BHH", 6, 300, 1), b"\x86\x02"),
    # §7: exception 1 to a function that the server has not (100: user-defined, §5).
    "another function": (b"\x64\x00\x00\x00\x01", b"\xe4\x01"),
}
WRITES = [name for name in EXCHANGES if "write" in name or name.startswith("what")]

_PYMODBUS = dict.fromkeys(("no register", "too many registers", "too many, and not there"), b"\x80\x01") | {
    "write with a wrong byte count": b"\x90\x03",
    "another function": b"\x80\x01",
}
"""An exception to function 0, that nobody asked for; §7 has the function's own code with the highest bit set."""
OTHERWISE: dict[str, dict[str, bytes]] = {
    "pymodbus tcp": _PYMODBUS,
    "pymodbus udp": _PYMODBUS,
    "pymodbus ascii": _PYMODBUS,
    "pymodbus rtu": _PYMODBUS | {"another function": b""},
    "pymodbus rtu-tcp": _PYMODBUS | {"another function": b""},
    # It takes what the byte count says and does not compare (§6.12 figure 22).
    "umodbus tcp": {"write with a wrong byte count": struct.pack(">BHH", 16, SEVERAL, 2)},
    "umodbus rtu": {"write with a wrong byte count": struct.pack(">BHH", 16, SEVERAL, 2)},
    # What has no length by the tables of the specification it does not find on a line.
    "libmodbus rtu": {"another function": b""},
}
"""Where a stranger does not do what the specification says: b"" for silence."""


@pytest.mark.parametrize("name", SERVERS)
async def test_every_exchange_as_the_specification_has_it(name):
    async with server(name) as served:
        asker = Asker(served)
        with asker.port:
            expected = {exchange: reply for exchange, (_, reply) in EXCHANGES.items()} | OTHERWISE.get(name, {})
            got = {}
            for exchange, (request, _) in EXCHANGES.items():
                unit = WRITE_UNIT if exchange in WRITES and name.startswith("ours") else UNIT
                wait_s = TIMEOUT_S if expected[exchange] else SHORT_S
                got[exchange] = await asyncio.to_thread(asker.ask, unit, request, wait_s)
        assert {e: g.hex() for e, g in got.items()} == {e: r.hex() for e, r in expected.items()}
