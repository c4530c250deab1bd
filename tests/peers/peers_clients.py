"""Strangers' Modbus clients behind one function each: the ones that the simulated buses are tested against.

A client gets a target and a list of calls and returns what it says of each: registers, ``("exception", code)``, or
``"silence"``. They block, so they run in threads or processes.
"""

import asyncio
import contextlib
import ctypes
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import serial
from energybid.core.ports import SerialEndpoint
from energybid.drivers.target import parse_target
from peers_servers import BAUDRATE, LIBMODBUS, _library
from pymodbus.client import ModbusSerialClient, ModbusTcpClient, ModbusUdpClient
from pymodbus.exceptions import ModbusException
from pymodbus.framer import FramerType
from pyModbusTCP.client import ModbusClient
from umodbus import exceptions as umodbus_exceptions
from umodbus.client import tcp as umodbus_tcp
from umodbus.client.serial import rtu as umodbus_rtu

MBPOLL = shutil.which("mbpoll")
WAIT_S, SHORT_S = 2.0, 0.1
"""For an answer; for silence."""
SILENCE = "silence"
ENOBASE = 112_345_678
"""libmodbus' own error numbers begin here; behind it are the exceptions' codes (modbus.h)."""


class Call(NamedTuple):
    """Function 3, 4, 6 or 16."""

    function: int
    unit: int
    first: int
    count: int = 1
    values: tuple[int, ...] = ()


Said = list[int] | tuple[str, int] | str
Client = Callable[[str, list[Call], float], list[Said]]


def _exception(code: int) -> tuple[str, int]:
    return ("exception", code)


# ---------------------------------------------------------------- mbpoll (Debian, GPL: a program that is run)

_EXCEPTIONS = {"Illegal function": 1, "Illegal data address": 2, "Illegal data value": 3, "Target device failed": 11}


def mbpoll(target: str, calls: list[Call], wait_s: float) -> list[Said]:
    return [_mbpoll(target, call, wait_s) for call in calls]


def _mbpoll(target: str, call: Call, wait_s: float) -> Said:
    assert MBPOLL
    _, endpoint = parse_target(target, baudrate=BAUDRATE)
    if isinstance(endpoint, SerialEndpoint):
        where = ["-m", "rtu", "-b", str(BAUDRATE), "-P", "none", endpoint.device]
    else:
        where = ["-m", "tcp", "-p", str(endpoint.port), endpoint.host]
    table = "3:hex" if call.function == 4 else "4:hex"
    arguments = [MBPOLL, "-0", "-1", "-q", "-o", str(wait_s), "-a", str(call.unit), "-r", str(call.first), "-t", table]
    if not call.values:
        arguments += ["-c", str(call.count)]
    written = [f"0x{value:04X}" for value in call.values]
    done = subprocess.run([*arguments, *where, *written], capture_output=True, text=True, check=False, timeout=20)
    said = done.stdout + done.stderr
    code = next((code for text, code in _EXCEPTIONS.items() if text in said), None)
    if code:
        return _exception(code)
    if done.returncode:
        assert "timed out" in said, said
        return SILENCE
    if call.values:
        return list(call.values)
    return [int(word, 16) for word in re.findall(r"^\[\d+\]:\s+0x([0-9A-F]{4})", said, re.MULTILINE)]


# ---------------------------------------------------------------- libmodbus (Debian libmodbus5)


def libmodbus(target: str, calls: list[Call], wait_s: float) -> list[Said]:
    library = _library()
    _, endpoint = parse_target(target, baudrate=BAUDRATE)
    if isinstance(endpoint, SerialEndpoint):
        context = ctypes.c_void_p(library.modbus_new_rtu(endpoint.device.encode(), BAUDRATE, ord("N"), 8, 1))
    else:
        context = ctypes.c_void_p(library.modbus_new_tcp(endpoint.host.encode(), endpoint.port))
    library.modbus_set_response_timeout(context, int(wait_s), round(wait_s % 1 * 1e6))
    assert library.modbus_connect(context) == 0
    try:
        return [_libmodbus(library, context, call) for call in calls]
    finally:
        library.modbus_close(context)
        library.modbus_free(context)


def _libmodbus(library: Any, context: Any, call: Call) -> Said:
    library.modbus_set_slave(context, call.unit)
    count = len(call.values) or call.count
    words = (ctypes.c_uint16 * max(count, 125))(*call.values)
    match call.function:
        case 3:
            done = library.modbus_read_registers(context, call.first, count, words)
        case 4:
            done = library.modbus_read_input_registers(context, call.first, count, words)
        case 6:
            done = library.modbus_write_register(context, call.first, call.values[0])
        case _:
            done = library.modbus_write_registers(context, call.first, count, words)
    if done >= 0:
        return list(words[:count])
    error = ctypes.get_errno() - ENOBASE
    return _exception(error) if error > 0 else SILENCE


# ---------------------------------------------------------------- pymodbus


def pymodbus(target: str, calls: list[Call], wait_s: float) -> list[Said]:
    kind, endpoint = parse_target(target, baudrate=BAUDRATE)
    client: Any
    if isinstance(endpoint, SerialEndpoint):
        framer = FramerType.ASCII if kind == "modbus-ascii" else FramerType.RTU
        client = ModbusSerialClient(endpoint.device, framer=framer, baudrate=BAUDRATE, timeout=wait_s, retries=0)
    elif kind == "modbus-udp":
        client = ModbusUdpClient(endpoint.host, port=endpoint.port, timeout=wait_s, retries=0)
    else:
        framer = FramerType.RTU if kind == "modbus-rtu-tcp" else FramerType.SOCKET
        client = ModbusTcpClient(endpoint.host, port=endpoint.port, framer=framer, timeout=wait_s, retries=0)
    with client:
        return [_pymodbus(client, call) for call in calls]


def _pymodbus(client: Any, call: Call) -> Said:
    try:
        match call.function:
            case 3:
                answer = client.read_holding_registers(call.first, count=call.count, device_id=call.unit)
            case 4:
                answer = client.read_input_registers(call.first, count=call.count, device_id=call.unit)
            case 6:
                answer = client.write_register(call.first, call.values[0], device_id=call.unit)
            case _:
                answer = client.write_registers(call.first, list(call.values), device_id=call.unit)
    except ModbusException:
        return SILENCE
    if answer.isError():
        return _exception(answer.exception_code)
    return list(call.values) or answer.registers


# ---------------------------------------------------------------- uModbus


def umodbus(target: str, calls: list[Call], wait_s: float) -> list[Said]:
    _, endpoint = parse_target(target, baudrate=BAUDRATE)
    if isinstance(endpoint, SerialEndpoint):
        with serial.Serial(endpoint.device, BAUDRATE, timeout=wait_s) as port:
            return [_umodbus(umodbus_rtu, port, call) for call in calls]
    with socket.create_connection((endpoint.host, endpoint.port)) as connection:
        connection.settimeout(wait_s)
        return [_umodbus(umodbus_tcp, connection, call) for call in calls]


def _umodbus(flavour: Any, port: Any, call: Call) -> Said:
    match call.function:
        case 3:
            frame = flavour.read_holding_registers(call.unit, call.first, call.count)
        case 4:
            frame = flavour.read_input_registers(call.unit, call.first, call.count)
        case 6:
            frame = flavour.write_single_register(call.unit, call.first, call.values[0])
        case _:
            frame = flavour.write_multiple_registers(call.unit, call.first, list(call.values))
    try:
        said = flavour.send_message(frame, port)
    except umodbus_exceptions.ModbusError as error:
        return _exception(error.error_code)
    except (TimeoutError, ValueError):
        return SILENCE
    return list(said) if isinstance(said, list) else list(call.values)


# ---------------------------------------------------------------- pyModbusTCP


def pymodbustcp(target: str, calls: list[Call], wait_s: float) -> list[Said]:
    _, endpoint = parse_target(target)
    assert not isinstance(endpoint, SerialEndpoint)
    client = ModbusClient(endpoint.host, endpoint.port, timeout=wait_s, auto_open=True)
    with contextlib.closing(client):
        return [_pymodbustcp(client, call) for call in calls]


def _pymodbustcp(client: ModbusClient, call: Call) -> Said:
    client.unit_id = call.unit
    done: Any
    match call.function:
        case 3:
            done = client.read_holding_registers(call.first, call.count)
        case 4:
            done = client.read_input_registers(call.first, call.count)
        case 6:
            done = client.write_single_register(call.first, call.values[0])
        case _:
            done = client.write_multiple_registers(call.first, list(call.values))
    if done:
        return done if isinstance(done, list) else list(call.values)
    return _exception(client.last_except) if client.last_except else SILENCE


CLIENTS: dict[str, Client] = {
    "mbpoll": mbpoll,
    "libmodbus": libmodbus,
    "pymodbus": pymodbus,
    "umodbus": umodbus,
    "pyModbusTCP": pymodbustcp,
}
PAIRS = [
    *((name, kind) for name in ("mbpoll", "libmodbus", "pymodbus", "umodbus") for kind in ("tcp", "rtu")),
    *(("pymodbus", kind) for kind in ("udp", "rtu-tcp", "ascii")),
    ("pyModbusTCP", "tcp"),
]
"""Client and transport."""


def missing(client: str) -> str | None:
    """Why a client can not run here."""
    if client == "mbpoll" and not MBPOLL:
        return "mbpoll is not installed: apt-get install mbpoll"
    if client in {"libmodbus", "mbpoll"} and not LIBMODBUS:
        return "libmodbus is not installed: apt-get install libmodbus5"
    return None


async def ask(client: str, target: str, calls: list[Call], wait_s: float = WAIT_S) -> list[Said]:
    """Run a client's calls beside the loop."""
    return await asyncio.to_thread(CLIENTS[client], target, calls, wait_s)
