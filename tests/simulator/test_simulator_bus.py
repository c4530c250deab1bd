"""The simulated buses over real sockets and ptys, asked by a stranger's client (pymodbus) and by bare bytes."""

import asyncio
import os
import struct
import termios
import tty
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from energybid.drivers.modbus.framing import crc16, mbap_frame, rtu_frame
from energybid.drivers.profile import load_profile
from energybid.simulator.bus import Bus, LineTiming, RtuLine, Station, TcpConnection
from energybid.simulator.faults import Fault, FaultSource
from energybid.simulator.household import Household
from energybid.simulator.meters import Meter
from energybid.simulator.system import PtyTransport, serve_tcp
from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException

SDM, EM, IEM = (load_profile(n) for n in ("eastron-sdm630", "carlo-gavazzi-em340", "schneider-iem3155"))
SITE = Household("bus test")
VOLTAGES = struct.pack(">BHH", 4, 0, 6)
ANSWER = Meter(SDM, SITE).respond(VOLTAGES, 0)
QUIET_S = 0.05
"""How long silence is listened to; on loopback an answer takes well under a millisecond."""


def make_bus(**settings: object) -> Bus:
    stations = [
        Station(name="a", unit=1, device=Meter(SDM, SITE)),
        Station(name="b", unit=2, device=Meter(EM, SITE)),
        Station(name="c", unit=247, device=Meter(IEM, SITE), reply_delay_s=0.03),
    ]
    return Bus(stations=stations, replay_ms=lambda: 0, **settings)  # type: ignore[arg-type]


def faults_of(bus: Bus, unit: int) -> FaultSource:
    station = bus.station(unit)
    assert station
    return station.faults


@asynccontextmanager
async def tcp(bus: Bus) -> AsyncIterator[int]:
    server, port = await serve_tcp(lambda: TcpConnection(bus), "127.0.0.1", 0)
    try:
        yield port
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def tcp_bytes(bus: Bus) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with tcp(bus) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


async def silence(reader: asyncio.StreamReader) -> None:
    """Passes when nothing comes. Fails on a byte."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(QUIET_S):
            await reader.read(1)


# ---------------------------------------------------------------- TCP


async def test_a_strangers_tcp_client_reads_all_units() -> None:
    async with tcp(make_bus()) as port, AsyncModbusTcpClient("127.0.0.1", port=port) as client:
        answer = await client.read_input_registers(0, count=6, device_id=1)
        assert struct.pack(">6H", *answer.registers) == ANSWER[2:]
        volts = struct.unpack(">3f", struct.pack(">6H", *answer.registers))
        assert all(210 < v < 250 for v in volts)
        em = await client.read_input_registers(0, count=2, device_id=2)
        assert em.registers[0] == pytest.approx(volts[0] * 10, abs=1)
        iem = await client.read_holding_registers(3203, count=4, device_id=247)
        assert iem.registers == [0, 0, 0, 0]


async def test_a_strangers_client_is_refused_as_by_the_meter() -> None:
    async with tcp(make_bus()) as port, AsyncModbusTcpClient("127.0.0.1", port=port) as client:
        assert (await client.read_coils(0, count=2, device_id=1)).exception_code == 1
        assert (await client.write_register(0, 1, device_id=1)).exception_code == 2
        assert (await client.read_input_registers(80, count=2, device_id=1)).exception_code == 2
        assert (await client.read_input_registers(0, count=81, device_id=1)).exception_code == 3
        assert (await client.read_input_registers(0, count=2, device_id=9)).exception_code == 11


async def test_a_gateway_may_be_silent_about_unknown_units() -> None:
    bus = make_bus(answer_unknown=False)
    async with tcp_bytes(bus) as (reader, writer):
        writer.write(mbap_frame(1, 9, VOLTAGES))
        await silence(reader)
    assert bus.counts == Counter(unknown_unit=1)


async def test_nobody_answers_a_broadcast() -> None:
    async with tcp_bytes(make_bus()) as (reader, writer):
        writer.write(mbap_frame(1, 0, VOLTAGES))
        await silence(reader)


async def test_pipelined_requests_in_odd_pieces_are_all_answered() -> None:
    async with tcp_bytes(make_bus()) as (reader, writer):
        stream = b"".join(mbap_frame(n, 1, VOLTAGES) for n in range(5))
        for at in range(0, len(stream), 7):
            writer.write(stream[at : at + 7])
            await writer.drain()
        expected = b"".join(mbap_frame(n, 1, ANSWER) for n in range(5))
        assert await reader.readexactly(len(expected)) == expected


async def test_a_stream_that_is_not_modbus_is_closed() -> None:
    bus = make_bus()
    async with tcp_bytes(bus) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
    assert bus.counts["garbled"] == 1


async def test_the_reply_delay_is_kept() -> None:
    loop = asyncio.get_running_loop()
    async with tcp_bytes(make_bus()) as (reader, writer):
        began = loop.time()
        writer.write(mbap_frame(1, 247, struct.pack(">BHH", 3, 3203, 4)))
        await reader.readexactly(17)
        assert loop.time() - began >= 0.03


TCP_FAULTS = {
    Fault.EXCEPTION: mbap_frame(7, 1, b"\x84\x04"),
    Fault.WRONG_UNIT: mbap_frame(7, 2, ANSWER),
    Fault.WRONG_TRANSACTION: mbap_frame(8, 1, ANSWER),
    Fault.WRONG_LENGTH: mbap_frame(7, 1, b"\x04\x0a" + ANSWER[2:-2]),
    Fault.HALF_FRAME: mbap_frame(7, 1, ANSWER)[:10],
    Fault.DUPLICATE: 2 * mbap_frame(7, 1, ANSWER),
    Fault.LATE: mbap_frame(7, 1, ANSWER),
}


@pytest.mark.parametrize(("fault", "expected"), TCP_FAULTS.items())
async def test_each_ordered_fault_shows_once_on_tcp(fault: Fault, expected: bytes) -> None:
    bus = make_bus()
    faults_of(bus, 1).late_by_s = 0.02
    faults_of(bus, 1).order(fault)
    async with tcp_bytes(bus) as (reader, writer), asyncio.timeout(5):
        writer.write(mbap_frame(7, 1, VOLTAGES))
        assert await reader.readexactly(len(expected)) == expected
        await silence(reader)
        writer.write(mbap_frame(9, 1, VOLTAGES))
        assert await reader.readexactly(21) == mbap_frame(9, 1, ANSWER)
    assert bus.counts == Counter({"requests": 2, "replies": 1, fault.value: 1})


async def test_a_dead_meter_says_nothing_and_the_others_answer() -> None:
    bus = make_bus()
    faults_of(bus, 1).rates[Fault.NO_REPLY] = 1.0
    async with tcp_bytes(bus) as (reader, writer):
        writer.write(mbap_frame(1, 1, VOLTAGES))
        await silence(reader)
        writer.write(mbap_frame(2, 2, VOLTAGES))
        assert (await reader.readexactly(7))[:2] == b"\x00\x02"


async def test_garbage_stands_before_the_answer() -> None:
    bus = make_bus()
    faults_of(bus, 1).order(Fault.GARBAGE)
    async with tcp_bytes(bus) as (reader, writer), asyncio.timeout(5):
        writer.write(mbap_frame(7, 1, VOLTAGES))
        data = await reader.readuntil(mbap_frame(7, 1, ANSWER))
    assert 1 <= len(data) - 21 <= 8


# ---------------------------------------------------------------- RTU


@contextmanager
def rtu(bus: Bus, link: Path, baudrate: int = 115_200) -> Iterator[PtyTransport]:
    line = PtyTransport(RtuLine(bus, LineTiming.of(baudrate)), link)
    try:
        yield line
    finally:
        line.close()


class Serial:
    """A program's side of the pty, as bare bytes with the time of each arrival."""

    def __init__(self, link: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.descriptor = os.open(link, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(self.descriptor, termios.TCSANOW)
        self.arrived: list[tuple[float, bytes]] = []
        self.news = asyncio.Event()
        self.loop.add_reader(self.descriptor, self._readable)

    def _readable(self) -> None:
        self.arrived.append((self.loop.time(), os.read(self.descriptor, 4096)))
        self.news.set()

    def write(self, data: bytes) -> None:
        assert os.write(self.descriptor, data) == len(data)

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.arrived)

    async def read(self, size: int) -> bytes:
        async with asyncio.timeout(5):
            while len(self.data) < size:
                self.news.clear()
                await self.news.wait()
        return self.data

    def close(self) -> None:
        self.loop.remove_reader(self.descriptor)
        os.close(self.descriptor)


@contextmanager
def rtu_bytes(bus: Bus, link: Path, baudrate: int = 115_200) -> "Iterator[Serial]":
    with rtu(bus, link, baudrate):
        serial = Serial(link)
        try:
            yield serial
        finally:
            serial.close()


async def test_a_strangers_serial_client_reads_and_is_refused(tmp_path: Path) -> None:
    with rtu(make_bus(), tmp_path / "tty"):
        client = AsyncModbusSerialClient(str(tmp_path / "tty"), baudrate=115_200, timeout=2, retries=0)
        assert await client.connect()
        try:
            answer = await client.read_input_registers(0, count=6, device_id=1)
            assert struct.pack(">6H", *answer.registers) == ANSWER[2:]
            assert (await client.read_holding_registers(0, count=2, device_id=2)).exception_code == 1
            assert (await client.read_holding_registers(0, count=2, device_id=247)).exception_code == 2
            assert (await client.read_input_registers(0, count=51, device_id=2)).exception_code == 3
        finally:
            client.close()


async def test_unknown_units_are_silent_on_a_serial_line(tmp_path: Path) -> None:
    with rtu(make_bus(), tmp_path / "tty"):
        client = AsyncModbusSerialClient(str(tmp_path / "tty"), baudrate=115_200, timeout=0.1, retries=0)
        assert await client.connect()
        with pytest.raises(ModbusException):
            await client.read_input_registers(0, count=6, device_id=9)
        client.close()


@pytest.mark.parametrize(("baudrate", "silence_s"), [(9600, 3.5 * 10 / 9600), (57_600, 0.00175)])
async def test_no_byte_comes_before_the_wire_could_have_carried_it(
    tmp_path: Path, baudrate: int, silence_s: float
) -> None:
    pdu = struct.pack(">BHH", 4, 0, 60)
    request, answer = rtu_frame(1, pdu), rtu_frame(1, Meter(SDM, SITE).respond(pdu, 0))
    with rtu_bytes(make_bus(), tmp_path / "tty", baudrate) as serial:
        began = serial.loop.time()
        serial.write(request)
        assert await serial.read(len(answer)) == answer
    char_s = 10 / baudrate
    count = 0
    for at, data in serial.arrived:
        count += len(data)
        assert at - began >= (len(request) + count) * char_s + silence_s - 1e-4
    assert len(serial.arrived) > 1


async def test_the_meters_own_delay_comes_on_top(tmp_path: Path) -> None:
    request = rtu_frame(247, struct.pack(">BHH", 3, 3203, 4))
    with rtu_bytes(make_bus(), tmp_path / "tty", 19_200) as serial:
        began = serial.loop.time()
        serial.write(request)
        await serial.read(13)
        assert serial.loop.time() - began >= 21 * 10 / 19_200 + 0.03 - 1e-4


def test_a_character_counts_parity_and_stop_bits() -> None:
    assert LineTiming.of(9600).char_s == 10 / 9600
    assert LineTiming.of(9600, "E").char_s == 11 / 9600
    assert LineTiming.of(9600, "N", 2).char_s == 11 / 9600
    assert LineTiming.of(9600, "O", 2).char_s == 12 / 9600


class Interrupting(asyncio.Transport):
    """A line in memory whose program speaks up as soon as it hears the first piece of an answer."""

    def __init__(self, line: RtuLine) -> None:
        super().__init__()
        self.line = line
        self.data = b""
        self.enough = asyncio.Event()

    def write(self, data: Any) -> None:
        if not self.data:
            self.line.data_received(rtu_frame(2, VOLTAGES))
        self.data += data
        if len(self.data) == 17:
            self.enough.set()

    def is_closing(self) -> bool:
        return False


async def test_what_arrives_while_a_meter_sends_is_lost() -> None:
    bus = make_bus()
    line = RtuLine(bus, LineTiming.of(9600))
    transport = Interrupting(line)
    line.connection_made(transport)
    line.data_received(rtu_frame(1, VOLTAGES))
    async with asyncio.timeout(5):
        await transport.enough.wait()
    assert transport.data == rtu_frame(1, ANSWER)
    assert bus.counts == Counter(requests=1, replies=1, collisions=1)


RTU_FAULTS = {
    Fault.EXCEPTION: rtu_frame(1, b"\x84\x04"),
    Fault.WRONG_UNIT: rtu_frame(2, ANSWER),
    Fault.WRONG_LENGTH: rtu_frame(1, b"\x04\x0a" + ANSWER[2:-2]),
    Fault.HALF_FRAME: rtu_frame(1, ANSWER)[:8],
    Fault.DUPLICATE: 2 * rtu_frame(1, ANSWER),
    Fault.LATE: rtu_frame(1, ANSWER),
    Fault.NO_REPLY: b"",
}


@pytest.mark.parametrize(("fault", "expected"), RTU_FAULTS.items())
async def test_each_ordered_fault_shows_once_on_rtu(tmp_path: Path, fault: Fault, expected: bytes) -> None:
    bus = make_bus()
    faults_of(bus, 1).late_by_s = 0.02
    faults_of(bus, 1).order(fault)
    good = rtu_frame(2, Meter(EM, SITE).respond(VOLTAGES, 0))
    with rtu_bytes(bus, tmp_path / "tty") as serial:
        serial.write(rtu_frame(1, VOLTAGES))
        assert await serial.read(len(expected)) == expected
        serial.write(rtu_frame(2, VOLTAGES))
        assert await serial.read(len(expected) + len(good)) == expected + good


async def test_a_crc_error_changes_one_bit(tmp_path: Path) -> None:
    bus = make_bus()
    faults_of(bus, 1).order(Fault.CRC_ERROR)
    answer = rtu_frame(1, ANSWER)
    with rtu_bytes(bus, tmp_path / "tty") as serial:
        serial.write(rtu_frame(1, VOLTAGES))
        data = await serial.read(len(answer))
    assert crc16(data) != 0
    assert sum((a ^ b).bit_count() for a, b in zip(data, answer, strict=True)) == 1


async def test_a_program_may_close_and_open_the_port_again(tmp_path: Path) -> None:
    with rtu(make_bus(), tmp_path / "tty"):
        for _ in range(2):
            serial = Serial(tmp_path / "tty")
            serial.write(rtu_frame(1, VOLTAGES))
            assert await serial.read(17) == rtu_frame(1, ANSWER)
            serial.close()


async def test_the_link_is_replaced_and_taken_away(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    link.symlink_to("/dev/null")
    with rtu(make_bus(), link) as line:
        assert str(link.readlink()) == line.device
    assert not link.is_symlink()
    line.close()
    line.write(b"nobody listens")


async def test_a_file_in_the_links_place_is_not_replaced(tmp_path: Path) -> None:
    link = tmp_path / "tty"
    link.write_text("mine")
    with pytest.raises(FileExistsError), rtu(make_bus(), link):
        pass
    assert link.read_text() == "mine"


# ---------------------------------------------------------------- chance


def test_faults_come_at_their_rates_and_repeat_from_the_seed() -> None:
    def draws(seed: str) -> list[Fault | None]:
        source = FaultSource(seed, {Fault.LATE: 0.1, Fault.NO_REPLY: 0.3})
        return [source.draw() for _ in range(5000)]

    counts = Counter(draws("a"))
    assert counts[Fault.NO_REPLY] == pytest.approx(1500, rel=0.15)
    assert counts[Fault.LATE] == pytest.approx(500, rel=0.25)
    assert counts[None] == 5000 - counts[Fault.NO_REPLY] - counts[Fault.LATE]
    assert draws("a") == draws("a") != draws("b")


async def test_faults_of_the_bus_befall_every_meter() -> None:
    bus = make_bus(faults=FaultSource("x", {Fault.EXCEPTION: 1.0}))
    async with tcp_bytes(bus) as (reader, writer), asyncio.timeout(5):
        for unit in (1, 2):
            writer.write(mbap_frame(1, unit, VOLTAGES))
            assert await reader.readexactly(9) == mbap_frame(1, unit, b"\x84\x04")
    assert bus.counts == Counter(requests=2, exception=2)
