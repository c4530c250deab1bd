"""The simulator's operating system: ptys, TCP servers, signals and child processes. Nothing else here touches them."""

import asyncio
import contextlib
import os
import signal
import tty
from collections.abc import Callable
from pathlib import Path
from typing import Any

READ_SIZE = 4096


class PtyTransport(asyncio.Transport):
    """The far end of a pseudo-terminal, which programs open as a serial port.

    What is written while nobody reads is lost once the kernel's buffer is full, as on a line.
    """

    def __init__(self, protocol: asyncio.Protocol, link: Path) -> None:
        """Open a pty pair and make ``link`` point to its near end.

        Raises:
            OSError: No pty left, or the link can not be made.
        """
        super().__init__({"link": str(link)})
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._link = link
        # The near end stays open here too: else the far end reads an error whenever no program has it open.
        self._far, self._near = os.openpty()
        self.device = os.ttyname(self._near)
        self._closing = False
        try:
            tty.setraw(self._near)
            os.set_blocking(self._far, False)
            if link.is_symlink():
                link.unlink()
            link.symlink_to(self.device)
        except OSError:
            self._release()
            raise
        self._loop.add_reader(self._far, self._readable)
        protocol.connection_made(self)

    def _readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._protocol.data_received(os.read(self._far, READ_SIZE))

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        """Send; what does not fit, or comes after ``close``, is lost."""
        if self._closing:
            return
        with contextlib.suppress(BlockingIOError):
            os.write(self._far, data)

    def is_closing(self) -> bool:
        """Whether ``close`` was called."""
        return self._closing

    def close(self) -> None:
        """Take the link away and close both ends; idempotent."""
        if not self._closing:
            self._loop.remove_reader(self._far)
            if self._link.is_symlink() and str(self._link.readlink()) == self.device:
                self._link.unlink()
            self._release()
            self._protocol.connection_lost(None)

    def _release(self) -> None:
        self._closing = True
        os.close(self._far)
        os.close(self._near)


async def serve_tcp(protocol: Callable[[], asyncio.Protocol], host: str, port: int) -> tuple[asyncio.Server, int]:
    """Listen; returns the server and the port it really has (the system's choice where ``port`` is 0).

    Raises:
        OSError: The address can not be had.
    """
    server = await asyncio.get_running_loop().create_server(protocol, host, port)
    return server, int(server.sockets[0].getsockname()[1])


def stop_event() -> asyncio.Event:
    """Set by SIGTERM and SIGINT from now on."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
