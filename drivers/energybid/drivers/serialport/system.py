"""Serial ports as asyncio transports, on the event loop itself (no threads). The only module that opens one.

pyserial sets the line up, then only its file descriptor is used. A port that vanishes is a lost connection with an
error; the next opening finds it again, whatever it is called by then.
"""

import asyncio
import errno
import fcntl
import logging
import os
import termios
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import serial  # type: ignore[import-untyped]  # pyserial ships no types

from energybid.core.errors import BusDownError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.serialport.find import Finder
from energybid.drivers.serialport.holders import holders, in_use
from energybid.drivers.serialport.settings import claim, is_pty, prefer_low_latency, switch_direction

READ_SIZE = 4096
WRITE_BUFFER_MAX = 65_536
"""Bytes that may wait for a serial port that takes none; then the port is given up."""
_TAKEN = {errno.EAGAIN, errno.EBUSY}
"""Another process holds the lock; another process has claimed the port."""

log = logging.getLogger("energybid.drivers")


class SerialPorts:
    """Opens serial ports by the names that a configuration gives them."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Start without memory of any adapter.

        Args:
            root: Where ``sys`` and ``dev`` are.
        """
        self._finder = Finder(root)

    def open(self, endpoint: SerialEndpoint, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """Connect ``protocol()`` to a port, which nobody else can open meanwhile.

        Raises:
            BusDownError: It can not be opened; the message says why, and who holds a port that is in use.
        """
        path = self._finder.find(endpoint.device)
        port = _opened(path, endpoint)
        self._finder.remember(endpoint.device)
        return SerialTransport(asyncio.get_running_loop(), port, protocol())


def _opened(path: str, endpoint: SerialEndpoint) -> serial.Serial:
    # A pseudo-terminal has neither parity nor 7 bits: asked for them, the C library fails (tcsetattr(3), EINVAL).
    data_bits, parity = (8, "N") if is_pty(path) else (endpoint.data_bits, endpoint.parity)
    try:
        port = serial.Serial(
            path,
            endpoint.baudrate,
            bytesize=data_bits,
            parity=parity,
            stopbits=endpoint.stop_bits,
            timeout=0,
            exclusive=True,
        )
    except (OSError, ValueError, termios.error) as error:  # SerialException is an OSError
        raise BusDownError(f"can not open {endpoint.device}: {_why(path, error)}") from None
    try:
        _set_up(port.fileno(), path, endpoint)
    except (BusDownError, OSError) as error:
        port.close()
        raise BusDownError(f"can not use {error}") from None
    return port


def _set_up(fd: int, path: str, endpoint: SerialEndpoint) -> None:
    if endpoint.rs485 is not None:
        switch_direction(fd, endpoint.device, endpoint.rs485)
    prefer_low_latency(fd)
    if is_pty(path):
        return
    others = [holder for holder in holders(path) if holder.pid != os.getpid()]
    if others:
        log.warning("%s is open elsewhere too: %s", endpoint.device, in_use(path, others, os.getpid()))
    claim(fd)


def _why(path: str, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in _TAKEN:
        return in_use(path, holders(path), os.getpid())
    if number == errno.EACCES:
        return "no permission: add this user to the group of the port (usermod -aG dialout USER), and log in again"
    return os.strerror(number) if number else str(error)


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
