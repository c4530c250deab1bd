"""The simulator's operating system: ptys, TCP servers, signals, processes, CPU time. Nothing else touches them."""

import asyncio
import contextlib
import multiprocessing
import os
import secrets
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from energybid.core.errors import EnergybidError

T = TypeVar("T")
R = TypeVar("R")

READ_SIZE = 4096
OUTPUT_SPEED = 5
"""Place of the rate in what tcgetattr returns."""
SPOILT = bytes(byte >> 1 | 0x80 for byte in range(256))
"""What a byte becomes at the wrong rate; which one does not matter, only that it is no frame any more."""


class PtyTransport(asyncio.Transport):
    """The far end of a pseudo-terminal, which programs open as a serial port.

    What is written while nobody reads is lost once the kernel's buffer is full, as on a line.
    """

    def __init__(self, protocol: asyncio.Protocol, link: Path, *, baudrate: int | None = None) -> None:
        """Open a pty pair and make ``link`` point to its near end.

        Args:
            protocol: The meters' end of the line.
            link: The port's name.
            baudrate: What is sent at another rate arrives spoilt, as on a line; None takes everything. A pty has no
                parity: the kernel drops it.

        Raises:
            OSError: No pty left, or the link can not be made.
        """
        super().__init__({"link": str(link)})
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._link = link
        self._speed = getattr(termios, f"B{baudrate}", None)
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
            data = os.read(self._far, READ_SIZE)
            self._protocol.data_received(data if self._is_in_tune() else data.translate(SPOILT))

    def _is_in_tune(self) -> bool:
        return self._speed is None or termios.tcgetattr(self._near)[OUTPUT_SPEED] == self._speed

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


async def serve_tcp(
    protocol: Callable[[], asyncio.Protocol], host: str, port: int, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.Server, int]:
    """Listen; returns the server and the port it really has (the system's choice where ``port`` is 0).

    Raises:
        OSError: The address can not be had.
    """
    server = await asyncio.get_running_loop().create_server(protocol, host, port, ssl=tls)
    return server, int(server.sockets[0].getsockname()[1])


async def serve_udp(
    protocol: Callable[[], asyncio.DatagramProtocol], host: str, port: int
) -> tuple[asyncio.DatagramTransport, int]:
    """Listen for datagrams; returns the socket and the port it really has.

    Raises:
        OSError: The address can not be had.
    """
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(protocol, local_addr=(host, port))
    return transport, int(transport.get_extra_info("sockname")[1])


def tls_context(certificate: str, key: str | None, ca: str | None) -> ssl.SSLContext:
    """A TLS server's side (MODBUS/TCP Security Protocol Specification V21); with ``ca`` clients must show certificates.

    Raises:
        OSError: A file can not be read or used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    if ca is not None:
        context.load_verify_locations(ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def stop_event(*, hangup: bool = False) -> asyncio.Event:
    """Set by SIGTERM and SIGINT from now on; with ``hangup`` also when the terminal goes away."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hangup else [])):
        loop.add_signal_handler(number, event.set)
    return event


class Child:
    """A process of the demo, in a session of its own: Ctrl-C reaches the demo alone, which stops all in order."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        """Take over a started process; ``start`` makes one."""
        self.name = name
        self._process = process
        self._log = log

    @classmethod
    async def start(cls, name: str, folder: Path, *module_and_arguments: str) -> "Child":
        """Run ``python -m MODULE ARGUMENTS`` in ``folder``; what it says goes to NAME.log there."""
        log = folder / f"{name}.log"
        with log.open("ab") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                *module_and_arguments,
                cwd=folder,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        return cls(name, process, log)

    async def line(self, deadline_s: float) -> str:
        """The next line of its standard output; empty when it ended or says nothing in time."""
        assert self._process.stdout  # noqa: S101  it was started with a pipe
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                return (await self._process.stdout.readline()).decode()
        return ""

    async def lines(self) -> AsyncIterator[str]:
        """The lines of its standard output, until it ends."""
        assert self._process.stdout  # noqa: S101  it was started with a pipe
        while line := await self._process.stdout.readline():
            yield line.decode()

    async def rest(self) -> str:
        """What is left of its standard output, until it ends."""
        assert self._process.stdout  # noqa: S101  it was started with a pipe
        return (await self._process.stdout.read()).decode()

    async def wait(self) -> int:
        """Its exit code, when it has ended."""
        return await self._process.wait()

    async def stop(self, deadline_s: float) -> int:
        """SIGTERM, and SIGKILL when it is not gone in time; idempotent.

        Returns:
            The exit code; negative for a signal.
        """
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                return await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()

    def last_words(self, lines: int = 5) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


entropy = secrets.token_bytes


def now_ms() -> int:
    """Wall clock, milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


def scratch_folder(wanted: Path | None) -> Path:
    """A folder to work in: ``wanted``, or a temporary one.

    Raises:
        EnergybidError: ``wanted`` has something in it.
    """
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="energybid-demo-"))
    wanted.mkdir(parents=True, exist_ok=True)
    if any(wanted.iterdir()):
        raise EnergybidError(f"{wanted} is not empty; name a new folder")
    return wanted.resolve()


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it."""
    shutil.rmtree(folder)


# ---------------------------------------------------------------- computing


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


TASKS_EACH = 50
"""About so many tasks are done by one process: what they leave behind in it must not add up."""


def in_processes(function: Callable[[T], R], tasks: Sequence[T], jobs: int) -> Iterator[R]:
    """``function`` of every task, in their order, so many at the same time; with one job in this very process."""
    if jobs == 1:
        yield from map(function, tasks)
        return
    at_once, spawned = TASKS_EACH * jobs, multiprocessing.get_context("spawn")
    ignore = signal.SIGINT, signal.SIG_IGN  # Ctrl-C reaches all of a terminal's processes; this one ends the others
    for at in range(0, len(tasks), at_once):
        with ProcessPoolExecutor(jobs, spawned, initializer=signal.signal, initargs=ignore) as pool:
            yield from pool.map(function, tasks[at : at + at_once])


def describe_commit() -> str:
    """The commit that this runs from, as git describes it; "unknown" outside of a checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    command = [git, "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  fixed words
    return done.stdout.strip() or "unknown"
