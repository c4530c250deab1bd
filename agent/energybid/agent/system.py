"""The real world of the agent's process: the Platform, signals, the plan's hand-over, files.

Only modules named system.py touch these; everything else is handed a ``Platform`` (energybid.core.ports).
"""

import asyncio
import contextlib
import os
import pickle
import queue
import random
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from energybid.agent.plan import AgentPlan
from energybid.core.ports import Platform
from energybid.drivers.system import open_bus, serve_bus
from energybid.sync import system as sync

P = ParamSpec("P")
T = TypeVar("T")
locked = sync.locked
HELD = "another agent is running on this journal"
"""Said when the journal's lock is held."""
REQUEST_S = 30.0
"""A request on the agent's socket is over after this: a device may take its time to answer."""
SOCKET_PATH_MAX = 107
"""Bytes of the path of a UNIX socket (unix(7))."""


def platform() -> Platform:
    """The real machine."""
    return Platform(
        now_ns=sync.now_ns,
        clock_state=sync.clock_state,
        boot_id=sync.boot_id(),
        entropy=sync.entropy,
        random=random.Random(sync.entropy(8)),  # noqa: S311  for jitter only
        offload=sync.offload,
        open_bus=open_bus,
        connect_uplink=sync.connect_uplink,
        open_database=sync.open_database,
        notify=sync.notify,
        serve_bus=serve_bus,
        think=Thinker(),
        disk=RealDisk(),
    )


class Thinker:
    """One thread that runs functions one after another. Implements the Offload port.

    Unlike a ``Worker``'s its thread is a daemon: the process ends while a function still runs.
    """

    def __init__(self) -> None:
        """Make a thinker; its thread starts with the first function."""
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Run ``function`` in the thread. When the caller is cancelled it still runs to its end."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def told(tell: Callable[[Any], None], what: Any) -> None:  # noqa: ANN401  a result or an exception
            if not future.done():
                tell(what)

        def work() -> None:
            try:
                result = function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  it belongs to whoever waits
                outcome: tuple[Callable[[Any], None], Any] = future.set_exception, error
            else:
                outcome = future.set_result, result
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(told, *outcome)

        self._work.put(work)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="think", daemon=True)
            self._thread.start()
        return future

    def _run(self) -> None:
        while True:
            self._work.get()()


class RealDisk:
    """Files beside the journal. Implements the Disk port."""

    def reserve(self, path: str, size: int) -> None:
        """Make a file of ``size`` bytes whose blocks are taken; 0 deletes it."""
        if not size:
            Path(path).unlink(missing_ok=True)
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
            os.fsync(descriptor)
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            return Path(path).stat().st_size
        except FileNotFoundError:
            return None

    def free(self, path: str) -> int:
        """Bytes that this process may still write to the file system of ``path``'s folder."""
        found = os.statvfs(Path(path).parent)
        return found.f_bavail * found.f_frsize

    def rename(self, path: str, to: str) -> None:
        """Rename a file, durably; ``to`` must not exist."""
        if Path(to).exists():
            raise FileExistsError(f"{to} is there already")
        Path(path).rename(to)
        folder = os.open(Path(path).parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.asynccontextmanager
async def serve_requests(path: str, answer: Callable[[bytes], Awaitable[bytes]], most: int) -> AsyncIterator[None]:
    """Answer requests on a UNIX socket that this process's user and group may use: a line each way.

    Args:
        path: Of the socket; one that an earlier run has left is replaced.
        answer: Request → answer, both with their line's end.
        most: Bytes of a request.

    Raises:
        OSError: There can be no socket there.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with asyncio.timeout(REQUEST_S):
                writer.write(await answer(await reader.readline()))
                await writer.drain()
        writer.close()

    _remove_socket(path)
    server = await asyncio.start_unix_server(serve, path, limit=most)
    os.chmod(path, 0o660)  # noqa: PTH101  no wait: it is on a RAM disk
    try:
        yield
    finally:
        server.close()
        _remove_socket(path)


def _remove_socket(path: str) -> None:
    if Path(path).is_socket():
        Path(path).unlink()


def request(path: str, line: bytes) -> bytes:
    """Ask the running agent on its socket; gives the line that it answers.

    Raises:
        OSError: Nobody answers there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(REQUEST_S)
        connection.connect(path)
        connection.sendall(line)
        with connection.makefile("rb") as answers:
            return answers.readline()


def execute_plan(plan: AgentPlan) -> NoReturn:
    """Become the agent: replace this process, pydantic and all, by one that only runs the plan.

    The process id stays, as the service manager wants it. The plan goes through memory, not a file: it holds the key.
    """
    descriptor = os.memfd_create("energybid-plan", 0)
    with open(descriptor, "wb", closefd=False) as file:
        pickle.dump(plan, file)
    os.lseek(descriptor, 0, os.SEEK_SET)
    # glibc gives every thread an arena of its own otherwise: megabytes, for one worker thread.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # where numpy is loaded: it would take a core's stack for each
    os.execv(sys.executable, [sys.executable, "-m", "energybid.agent.process", str(descriptor)])  # noqa: S606


def receive_plan(descriptor: int) -> AgentPlan:
    """The plan that ``execute_plan`` left in a file descriptor of this very process."""
    with open(descriptor, "rb") as file:
        plan: AgentPlan = pickle.load(file)  # noqa: S301  written by this process before it was replaced
    return plan


async def until_stopped(run: Callable[[Platform, asyncio.Event], Awaitable[None]]) -> None:
    """Run until it ends by itself or SIGTERM or SIGINT sets the event."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await run(platform(), stop)


def replace_file(path: str, data: bytes) -> None:
    """Replace a small file whole: readers see the old one or the new one."""
    target = Path(path)
    scratch = target.with_name(f".{target.name}.new")
    scratch.write_bytes(data)
    scratch.chmod(0o644)
    scratch.replace(target)


def watchdog_interval_s() -> float:
    """How often the service manager wants to hear of us (sd_watchdog_enabled(3)); 0 for never."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
