"""Real transports: a pty pair as a serial line, loopback TCP, and an independent Modbus server."""

import asyncio
import os
import subprocess
import sys
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest
from energybid.core.errors import BusDownError, MeterError
from energybid.core.ports import BusPlan, Driver, SerialEndpoint, TcpEndpoint
from energybid.core.quantities import Status
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.framing import Frame, MbapFramer, RtuRequests
from energybid.drivers.system import open_bus
from modbus_peers import Peer, bus_plan, reply
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

RIGHT = ((1 << 16) + 0, (1 << 16) + 100)


def registers(frame: Frame) -> bytes:
    return frame.unit.to_bytes(2, "big") + frame.pdu[1:3]


class Line:
    """A pty whose master end is a meter in a thread; the slave end is the port to open."""

    def __init__(self, answer: Callable[[Frame], bytes]) -> None:
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.device = os.ttyname(slave)
        self.slave: int | None = slave
        self.answer = answer
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self) -> None:
        framer = RtuRequests()
        with suppress(OSError):
            while data := os.read(self.master, 256):
                for frame in framer.feed(data):
                    os.write(self.master, self.answer(frame))

    def vanish(self) -> None:
        if self.slave is not None:
            os.close(self.slave)
            self.slave = None
            os.close(self.master)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line(lambda frame: reply(frame, registers(frame), rtu=True))
    yield line
    line.vanish()


def rtu_plan(line: Line) -> BusPlan:
    endpoint = SerialEndpoint(device=line.device, baudrate=115_200)
    return replace(bus_plan("modbus-rtu", lateness_s=0.05), endpoint=endpoint)


def real(plan: BusPlan) -> Driver:
    return open_driver(replace(Peer(lambda _: ()).platform(), open_bus=open_bus, now_ns=time.time_ns), plan)


async def test_rtu_over_a_pty(line: Line) -> None:
    plan = rtu_plan(line)
    driver = real(plan)
    before_ms = time.time_ns() // 10**6
    for _ in range(5):
        sample = await driver.poll(plan.meters[0], 0)
        assert (sample.values, sample.status) == (RIGHT, None)
        assert before_ms <= sample.time_ms <= time.time_ns() // 10**6
    await driver.close()


async def test_a_port_that_vanishes_is_a_lost_bus(line: Line) -> None:
    plan = rtu_plan(line)
    driver = real(plan)
    await driver.poll(plan.meters[0], 0)
    line.answer = lambda _: [line.vanish(), b""][1]
    with pytest.raises(BusDownError, match="connection lost"):
        await driver.poll(plan.meters[0], 0)
    with pytest.raises(BusDownError, match="can not open /dev/pts/"):
        await driver.poll(plan.meters[0], 0)
    await driver.close()


async def test_a_port_in_use_names_its_holder(line: Line) -> None:
    plan = rtu_plan(line)
    first, second = real(plan), real(plan)
    await first.poll(plan.meters[0], 0)
    with pytest.raises(BusDownError, match=rf"in use by this program, process {os.getpid()}: "):
        await second.poll(plan.meters[0], 0)
    await first.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    third = real(plan)
    assert (await third.poll(plan.meters[0], 0)).values == RIGHT
    await third.close()
    await second.close()


async def test_a_port_that_does_not_exist() -> None:
    with pytest.raises(BusDownError, match="can not open /dev/ttyNONE: no such port; "):
        await open_bus(SerialEndpoint(device="/dev/ttyNONE", baudrate=9600), asyncio.Protocol)


async def test_a_serial_port_that_takes_no_bytes_is_given_up(line: Line) -> None:
    lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    class Watch(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set_result(exc)

    line.answer = lambda _: b""
    transport = await open_bus(SerialEndpoint(device=line.device, baudrate=9600), Watch)
    for _ in range(20):
        transport.write(bytes(65_536))
    assert "takes no more" in str(await asyncio.wait_for(lost, 5))
    assert transport.is_closing()


async def test_tcp_over_loopback() -> None:
    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport, self.framer = transport, MbapFramer()

        def data_received(self, data: bytes) -> None:
            for frame in self.framer.feed(data):
                assert isinstance(frame, Frame)
                self.transport.write(reply(frame, registers(frame)))  # type: ignore[attr-defined]

    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    plan = replace(bus_plan(units=range(1, 33), in_flight=16), endpoint=TcpEndpoint(host="127.0.0.1", port=port))
    driver = real(plan)
    samples = await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
    assert [s.values for s in samples] == [(u << 16, (u << 16) + 100) for u in range(1, 33)]
    await driver.close()
    server.close()
    await server.wait_closed()


async def test_against_the_server_of_pymodbus() -> None:
    """An implementation that is not ours: the same registers, an illegal address, a unit that is not there."""

    def counter(address: int, value: int) -> SimData:
        return SimData(address=address, values=[value], datatype=DataType.UINT32)

    whole = SimDevice(id=1, simdata=[counter(0, RIGHT[0]), counter(100, RIGHT[1])])
    half = SimDevice(id=2, simdata=[counter(0, 7)])
    server = ModbusTcpServer([whole, half], address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    port = server.transport.sockets[0].getsockname()[1]
    # One request at a time: this server drops what stands behind the first request in a segment.
    plan = replace(bus_plan(units=(1, 2, 3)), endpoint=TcpEndpoint(host="127.0.0.1", port=port))
    driver = real(plan)
    samples = await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters), return_exceptions=True)
    await driver.close()
    await server.shutdown()
    whole_sample, half_sample, missing = samples
    assert not isinstance(whole_sample, BaseException)
    assert (whole_sample.values, whole_sample.status) == (RIGHT, None)
    assert not isinstance(half_sample, BaseException)
    assert (half_sample.values, half_sample.status) == ((7, None), (Status.OK, Status.REFUSED))
    assert isinstance(missing, MeterError)


async def test_no_server_listens() -> None:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    with pytest.raises(BusDownError, match=f"no connection to 127.0.0.1 port {port}"):
        await open_bus(TcpEndpoint(host="127.0.0.1", port=port), asyncio.Protocol)


def test_the_running_driver_does_not_import_pydantic() -> None:
    """The agent unpickles a plan and opens a driver: neither may load what only checks configurations.

    Nor what only gateways with serial lines need.
    """
    program = (
        "import sys, energybid.drivers.modbus.driver, energybid.drivers.system;"
        "print(*sorted({'pydantic', 'pymodbus.client', 'pymodbus.server', 'serial'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
