"""Strangers' Modbus servers, each with the registers of ``peers_image``: the ones that the driver is tested against."""

import asyncio
import ctypes
import ctypes.util
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from socketserver import TCPServer
from typing import Any, NamedTuple, Protocol

import serial
from energybid.simulator.bus import AsciiLine, Bus, LineTiming, RtuLine, Station, TcpConnection, UdpSocket
from energybid.simulator.household import Household
from energybid.simulator.meters import Meter
from energybid.simulator.recorded import Recorded
from energybid.simulator.system import serve_tcp, serve_udp
from peers_image import RECORDING, SIZE, UNIT, WORDS, WRITABLES, WRITE_UNIT
from peers_wires import Mangle, Wire, line, tap, untouched
from pymodbus.framer import FramerType
from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusUdpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from pyModbusTCP.server import DataBank, ModbusServer
from umodbus.server import tcp as umodbus_tcp
from umodbus.server.serial import get_server
from umodbus.server.serial.rtu import RTUServer

BAUDRATE = 115_200
LIBMODBUS = ctypes.util.find_library("modbus")


class Served(NamedTuple):
    """A server that runs."""

    target: str
    """For ``parse_target``."""
    wire: Wire | None
    """None over UDP."""


class _Closable(Protocol):
    def close(self) -> None: ...


Start = Callable[[Mangle], AbstractAsyncContextManager[Served]]


@asynccontextmanager
async def _network(kind: str, port: int, mangle: Mangle) -> AsyncIterator[Served]:
    with ExitStack() as stack:
        wire = stack.enter_context(tap(port, mangle)) if kind != "udp" else None
        yield Served(f"{kind}://127.0.0.1:{wire.near if wire else port}", wire)


# ---------------------------------------------------------------- ours


def our_bus() -> Bus:
    """A recording of the image, and a meter with the writable numbers."""
    stations = [
        Station(name="image", unit=UNIT, device=Recorded(RECORDING)),
        Station(name="writables", unit=WRITE_UNIT, device=Meter(WRITABLES, Household("peers"))),
    ]
    return Bus(stations=stations, replay_ms=lambda: 0)


def timing() -> LineTiming:
    return LineTiming.of(BAUDRATE)


def ours_network(serve: Callable[[Bus], Coroutine[Any, Any, tuple[_Closable, int]]], kind: str) -> Start:
    @asynccontextmanager
    async def start(mangle: Mangle) -> AsyncIterator[Served]:
        server, port = await serve(our_bus())
        try:
            async with _network(kind, port, mangle) as served:
                yield served
        finally:
            server.close()

    return start


def ours_serial(protocol: type[RtuLine], prefix: str) -> Start:
    @asynccontextmanager
    async def start(mangle: Mangle) -> AsyncIterator[Served]:
        loop, bus = asyncio.get_running_loop(), our_bus()
        with line(mangle) as (wire, device), serial.Serial(device, BAUDRATE, timeout=0) as port:
            meters = protocol(bus, timing())

            class Transport(asyncio.Transport):
                def write(self, data: Any) -> None:
                    port.write(data)

                def is_closing(self) -> bool:
                    return not port.is_open

            meters.connection_made(Transport())
            loop.add_reader(port.fileno(), lambda: meters.data_received(port.read(4096)))
            try:
                yield Served(prefix + wire.near, wire)
            finally:
                loop.remove_reader(port.fileno())

    return start


# ---------------------------------------------------------------- pymodbus


def _device() -> SimDevice:
    return SimDevice(id=UNIT, simdata=[SimData(address=0, values=WORDS, datatype=DataType.REGISTERS)])


def pymodbus_network(server_type: Any, framer: FramerType, kind: str) -> Start:
    @asynccontextmanager
    async def start(mangle: Mangle) -> AsyncIterator[Served]:
        server = server_type([_device()], framer=framer, address=("127.0.0.1", 0))
        await server.serve_forever(background=True)
        transport: Any = server.transport
        address = transport.get_extra_info("sockname") if kind == "udp" else transport.sockets[0].getsockname()
        try:
            async with _network(kind, address[1], mangle) as served:
                yield served
        finally:
            await server.shutdown()

    return start


def pymodbus_serial(framer: FramerType, prefix: str) -> Start:
    @asynccontextmanager
    async def start(mangle: Mangle) -> AsyncIterator[Served]:
        with line(mangle) as (wire, device):
            server = ModbusSerialServer([_device()], framer=framer, port=device, baudrate=BAUDRATE)
            await server.serve_forever(background=True)
            try:
                yield Served(prefix + wire.near, wire)
            finally:
                await server.shutdown()

    return start


# ---------------------------------------------------------------- libmodbus: Debian's libmodbus5, LGPL, loaded as it is

RTU_LENGTH, TCP_LENGTH = 256, 260
LIBMODBUS_WAIT_US = 20_000


def _library() -> Any:
    library = ctypes.CDLL(LIBMODBUS, use_errno=True)
    for name in ("modbus_new_tcp", "modbus_new_rtu", "modbus_mapping_new"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


def _mapping(library: Any) -> Any:
    class Mapping(ctypes.Structure):
        _fields_ = [(f"n{i}", ctypes.c_int) for i in range(8)] + [
            ("bits", ctypes.c_void_p),
            ("input_bits", ctypes.c_void_p),
            ("inputs", ctypes.POINTER(ctypes.c_uint16)),
            ("holding", ctypes.POINTER(ctypes.c_uint16)),
        ]

    address = library.modbus_mapping_new(0, 0, SIZE, SIZE)
    mapping = Mapping.from_address(address)
    for register, value in enumerate(WORDS):
        mapping.inputs[register] = mapping.holding[register] = value
    return ctypes.c_void_p(address)


def _set_waits(library: Any, context: Any) -> None:
    """Before it answers what it dislikes, it waits a response time-out for more of it (500 ms unless set)."""
    library.modbus_set_indication_timeout(context, 0, LIBMODBUS_WAIT_US)
    library.modbus_set_response_timeout(context, 0, LIBMODBUS_WAIT_US)


def _answer(library: Any, context: Any, mapping: Any, stop: threading.Event) -> None:
    buffer = (ctypes.c_uint8 * TCP_LENGTH)()
    while not stop.is_set():
        size = library.modbus_receive(context, buffer)
        if size > 0:
            library.modbus_reply(context, buffer, size, mapping)
        elif size < 0 and ctypes.get_errno() != 110:  # not the wait's end
            return


@asynccontextmanager
async def libmodbus_tcp(mangle: Mangle) -> AsyncIterator[Served]:
    library = _library()
    context = ctypes.c_void_p(library.modbus_new_tcp(b"127.0.0.1", 0))
    _set_waits(library, context)
    mapping, stop = _mapping(library), threading.Event()
    handle = library.modbus_tcp_listen(context, 4)
    with socket.socket(fileno=handle) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            accepted = ctypes.c_int(handle)
            while not stop.is_set():
                library.modbus_tcp_accept(context, ctypes.byref(accepted))
                _answer(library, context, mapping, stop)
                library.modbus_close(context)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            async with _network("tcp", port, mangle) as served:
                yield served
        finally:
            stop.set()
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                thread.join()
            library.modbus_mapping_free(mapping)
            library.modbus_free(context)


@asynccontextmanager
async def libmodbus_rtu(mangle: Mangle) -> AsyncIterator[Served]:
    library = _library()
    mapping, stop = _mapping(library), threading.Event()
    with line(mangle) as (wire, device):
        context = ctypes.c_void_p(library.modbus_new_rtu(device.encode(), BAUDRATE, ord("N"), 8, 1))
        library.modbus_set_slave(context, UNIT)
        _set_waits(library, context)
        assert library.modbus_connect(context) == 0
        thread = threading.Thread(target=_answer, args=(library, context, mapping, stop))
        thread.start()
        try:
            yield Served(wire.near, wire)
        finally:
            stop.set()
            thread.join()
            library.modbus_close(context)
            library.modbus_free(context)
            library.modbus_mapping_free(mapping)


# ---------------------------------------------------------------- uModbus, under the MPL 2.0


def _route(server: Any) -> None:
    tables = {3: list(WORDS), 4: list(WORDS)}

    @server.route(slave_ids=[UNIT], function_codes=[3, 4], addresses=list(range(SIZE)))
    def read(slave_id: int, function_code: int, address: int) -> int:
        return tables[function_code][address]

    @server.route(slave_ids=[UNIT], function_codes=[6, 16], addresses=list(range(SIZE)))
    def write(slave_id: int, function_code: int, address: int, value: int) -> None:
        tables[3][address] = value


@asynccontextmanager
async def umodbus_network(mangle: Mangle) -> AsyncIterator[Served]:
    server = umodbus_tcp.get_server(TCPServer, ("127.0.0.1", 0), umodbus_tcp.RequestHandler)
    _route(server)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        async with _network("tcp", server.server_address[1], mangle) as served:
            yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@asynccontextmanager
async def umodbus_rtu(mangle: Mangle) -> AsyncIterator[Served]:
    with line(mangle) as (wire, device), serial.Serial(device, BAUDRATE, timeout=0.05) as port:
        server = get_server(RTUServer, port)
        _route(server)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Served(wire.near, wire)
        finally:
            server.shutdown()
            thread.join()


# ---------------------------------------------------------------- pyModbusTCP, under the MIT licence


@asynccontextmanager
async def pymodbustcp(mangle: Mangle) -> AsyncIterator[Served]:
    bank = DataBank(h_regs_size=SIZE, i_regs_size=SIZE, coils_size=1, d_inputs_size=1)
    bank.set_holding_registers(0, WORDS)
    bank.set_input_registers(0, WORDS)
    server = ModbusServer(host="127.0.0.1", port=0, no_block=True, data_bank=bank)
    server.start()
    try:
        async with _network("tcp", server._service.server_address[1], mangle) as served:
            yield served
    finally:
        server.stop()


SERVERS: dict[str, Start] = {
    "ours tcp": ours_network(lambda bus: serve_tcp(lambda: TcpConnection(bus), "127.0.0.1", 0), "tcp"),
    "ours udp": ours_network(lambda bus: serve_udp(lambda: UdpSocket(bus), "127.0.0.1", 0), "udp"),
    "ours rtu-tcp": ours_network(lambda bus: serve_tcp(lambda: RtuLine(bus, timing()), "127.0.0.1", 0), "rtu-tcp"),
    "ours rtu": ours_serial(RtuLine, ""),
    "ours ascii": ours_serial(AsciiLine, "ascii:"),
    "libmodbus tcp": libmodbus_tcp,
    "libmodbus rtu": libmodbus_rtu,
    "pymodbus tcp": pymodbus_network(ModbusTcpServer, FramerType.SOCKET, "tcp"),
    "pymodbus udp": pymodbus_network(ModbusUdpServer, FramerType.SOCKET, "udp"),
    "pymodbus rtu-tcp": pymodbus_network(ModbusTcpServer, FramerType.RTU, "rtu-tcp"),
    "pymodbus rtu": pymodbus_serial(FramerType.RTU, ""),
    "pymodbus ascii": pymodbus_serial(FramerType.ASCII, "ascii:"),
    "umodbus tcp": umodbus_network,
    "umodbus rtu": umodbus_rtu,
    "pyModbusTCP tcp": pymodbustcp,
}
UNTOUCHED = untouched
