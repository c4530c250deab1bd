"""The real buses: TCP connections and serial ports, as asyncio transports. Only this module of the drivers opens one.

A serial port is read and written by the event loop itself (no threads): pyserial sets the line up, then only its file
descriptor is used. A port that vanishes is a lost connection with an error.
"""

import asyncio
import fcntl
import os
import socket
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import serial  # type: ignore[import-untyped]  # pyserial ships no types

from energybid.core.errors import BusDownError
from energybid.core.ports import Endpoint, SerialEndpoint, TcpEndpoint

CONNECT_TIMEOUT_S = 5.0
UNACKNOWLEDGED_MAX_MS = 20_000
"""A TCP connection whose data stays unacknowledged this long is lost."""
KEEP_ALIVE_S = 30
READ_SIZE = 4096
WRITE_BUFFER_MAX = 65_536
"""Bytes that may wait for a serial port that takes none; then the port is given up."""

ProtocolFactory = Callable[[], asyncio.Protocol]


async def open_bus(endpoint: Endpoint, protocol: ProtocolFactory, /) -> asyncio.Transport:
    """Connect ``protocol()`` to a bus. Implements ``OpenBus``.

    Raises:
        BusDownError: It can not be opened; the message says why, and who holds a port that is in use.
    """
    if isinstance(endpoint, TcpEndpoint):
        return await _open_tcp(endpoint, protocol)
    return _open_serial(endpoint, protocol)


async def _open_tcp(endpoint: TcpEndpoint, protocol: ProtocolFactory) -> asyncio.Transport:
    where = f"{endpoint.host} port {endpoint.port}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            transport, _ = await asyncio.get_running_loop().create_connection(protocol, endpoint.host, endpoint.port)
    except TimeoutError:
        raise BusDownError(f"no connection to {where} within {CONNECT_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise BusDownError(f"no connection to {where}: {error.strerror or error}") from None
    _tune(transport.get_extra_info("socket"))
    return transport


def _tune(connection: socket.socket) -> None:
    """No waiting for more to send; notice a peer that went away without a word."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MAX_MS)


def _open_serial(endpoint: SerialEndpoint, protocol: ProtocolFactory) -> asyncio.Transport:
    try:
        port = serial.Serial(
            endpoint.device,
            endpoint.baudrate,
            bytesize=endpoint.data_bits,
            parity=endpoint.parity,
            stopbits=endpoint.stop_bits,
            timeout=0,
            exclusive=True,
        )
    except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
        raise BusDownError(f"can not open {endpoint.device}: {_why(endpoint.device, error)}") from None
    return SerialTransport(asyncio.get_running_loop(), port, protocol())


def _why(device: str, error: Exception) -> str:
    holders = _holders(device)
    if holders and isinstance(error, OSError) and "lock" in str(error).lower():
        return f"in use by {', '.join(holders)}"
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return f"{text}; held by {', '.join(holders)}" if holders and "busy" in text.lower() else text


def _holders(device: str) -> list[str]:
    """Programs that have a device open, as far as this user may know; "name (pid)"."""
    target = os.path.realpath(device)
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(os.path.realpath(fd) == target for fd in (process / "fd").iterdir()):
                holders.append(f"{(process / 'comm').read_text().strip()} ({process.name})")
    return holders


class SerialTransport(asyncio.Transport):
    """A serial port on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, port: serial.Serial, protocol: asyncio.Protocol) -> None:
        """Start reading; tells the protocol that the connection is made.

        Args:
            loop: The running loop.
            port: Open, exclusive, with a time-out of 0.
            protocol: Gets the bytes.
        """
        super().__init__({"serial": port})
        self._loop = loop
        self._port = port
        self._fd: int = port.fileno()
        self._protocol: asyncio.BaseProtocol = protocol
        self._waiting: deque[bytes] = deque()
        self._closing = False
        os.set_blocking(self._fd, False)
        port.reset_input_buffer()
        protocol.connection_made(self)
        loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        if data and isinstance(self._protocol, asyncio.Protocol):
            self._protocol.data_received(data)
        elif not data:
            self._lose(OSError("the port was closed or unplugged"))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, now or when the port takes them."""
        if self._closing or not data:
            return
        self._waiting.append(bytes(data))
        if len(self._waiting) == 1:
            self._writable()

    def _writable(self) -> None:
        try:
            while self._waiting:
                sent = os.write(self._fd, self._waiting[0])
                rest = self._waiting.popleft()[sent:]
                if rest:
                    self._waiting.appendleft(rest)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(error)
            return
        if sum(map(len, self._waiting)) > WRITE_BUFFER_MAX:
            self._lose(OSError("the port takes no more bytes"))
        elif self._waiting:
            self._loop.add_writer(self._fd, self._writable)
        else:
            self._loop.remove_writer(self._fd)

    def _lose(self, error: Exception | None) -> None:
        if self._closing:
            return
        self._closing = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._waiting.clear()
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        # Closing a port waits until its output is sent, up to 30 s; discard that first.
        with suppress(OSError, termios.error):
            termios.tcflush(self._fd, termios.TCIOFLUSH)
        with suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        with suppress(OSError):
            self._port.close()
        self._protocol.connection_lost(error)

    def close(self) -> None:
        """Close at once: what was not sent is of no use to anybody later."""
        self._lose(None)

    def abort(self) -> None:
        """Close at once."""
        self._lose(None)

    def is_closing(self) -> bool:
        """Whether it is closed or closing."""
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who gets the bytes."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Change who gets the bytes."""
        self._protocol = protocol

    def get_write_buffer_size(self) -> int:
        """Bytes that wait to be sent."""
        return sum(map(len, self._waiting))
