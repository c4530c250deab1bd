"""The real world of the sync components: clock, entropy, threads, the disk, the service manager, the broker.

Only modules named system.py touch these; everything else is handed a ``Platform`` (energybid.core.ports).
"""

import asyncio
import ctypes
import fcntl
import functools
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import apsw

from energybid.core.errors import JournalError
from energybid.core.quantities import ClockState
from energybid.sync.mqtt.system import MqttUplink, connect_uplink

P = ParamSpec("P")
T = TypeVar("T")

BUSY_MS = 5000
"""How long a database waits for another process's lock (an export, an inspection)."""
CLOCK_CACHE_S = 10.0
HOLDOVER_US = 2_000_000
"""The kernel's bound of the clock's error, µs, from which the clock counts as holding over. It grows by 500 µs a second
without synchronisation (adjtimex(2)); systemd-timesyncd asks at most 2,048 s apart, where it reaches 1.02 s."""
STA_UNSYNC = 0x0040
TIMESYNC_MARK = Path("/run/systemd/timesync/synchronized")
"""Touched at every synchronisation (systemd-timesyncd.service(8)). Asked where a sandbox forbids adjtimex, as systemd's
ProtectClock= does, reading included."""
DRIFT_US_PER_S = 500
"""By which the kernel lets its error bound grow."""

now_ns = time.time_ns
entropy = secrets.token_bytes
_log = logging.getLogger("energybid.sync")


class Worker:
    """One thread that runs functions one after another, in the order they came. Implements the Offload port.

    Everything that touches one SQLite connection goes through one Worker.
    """

    def __init__(self, name: str = "worker") -> None:
        """Make a worker; its thread starts with the first function."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Run ``function`` in the thread. When the caller is cancelled it still runs to its end."""
        return asyncio.get_running_loop().run_in_executor(self._pool, functools.partial(function, *args, **kwargs))

    def close(self) -> None:
        """Wait for what is under way; idempotent."""
        self._pool.shutdown()


offload = Worker("offload")
"""The process's own worker."""


def open_database(path: str) -> apsw.Connection:
    """Open or create a database; pragmas are the business of its owner.

    Raises:
        JournalError: It can not be opened.
    """
    try:
        connection = apsw.Connection(path)
        connection.set_busy_timeout(BUSY_MS)
    except apsw.Error as error:
        raise JournalError(f"{path}: {error}") from None
    return connection


@contextmanager
def locked(path: str, held: str) -> Iterator[None]:
    """Hold ``path``.lock: two processes on one log would sign against each other.

    Args:
        path: The database.
        held: What to tell when another process holds it.

    Raises:
        JournalError: Another process holds it, or the folder can not be written.
    """
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalError(f"{path}.lock: {error.strerror}: the folder must exist and be writable") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"{path}: {held}") from None
        yield
    finally:
        os.close(descriptor)


def boot_id() -> bytes:
    """16 bytes that change at every boot (random(4), /proc/sys/kernel/random/boot_id)."""
    return bytes.fromhex(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").replace("-", "").strip())


class _Timex(ctypes.Structure):
    """The head of struct timex (adjtimex(2)); the tail is room for what the kernel writes behind it."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("tail", ctypes.c_byte * 256),
    )


class Clock:
    """What is known of the wall clock, from the kernel's NTP state, whoever disciplines it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, mark: Path = TIMESYNC_MARK) -> None:
        """Ask nothing yet."""
        self._monotonic = monotonic
        self._mark = mark
        self._until = float("-inf")
        self._state = ClockState.UNSYNCHRONISED
        self._adjtimex = getattr(ctypes.CDLL(None, use_errno=True), "adjtimex", None)

    def __call__(self) -> ClockState:
        """The state, at most 10 s old."""
        now = self._monotonic()
        if now >= self._until:
            self._until = now + CLOCK_CACHE_S
            self._state = self._ask()
        return self._state

    def _ask(self) -> ClockState:
        timex = _Timex()
        if self._adjtimex is None or self._adjtimex(ctypes.byref(timex)) < 0:
            return self._ask_timesyncd()
        return judge(timex.status, timex.maxerror, self._state)

    def _ask_timesyncd(self) -> ClockState:
        try:
            age_s = abs(time.time() - self._mark.stat().st_mtime)
        except OSError:
            return ClockState.UNSYNCHRONISED
        return judge(0, int(age_s * DRIFT_US_PER_S), self._state)


def judge(status: int, max_error_us: int, before: ClockState) -> ClockState:
    """Kernel's status bits and error bound → state; a clock that was right once holds over."""
    if not status & STA_UNSYNC:
        return ClockState.SYNCHRONISED if max_error_us < HOLDOVER_US else ClockState.HOLDOVER
    return ClockState.HOLDOVER if before else ClockState.UNSYNCHRONISED


clock_state = Clock()


def notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)), such as ``READY=1``; does nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.settimeout(0)
            sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            _log.warning("could not tell the service manager %s: %s", state.partition("=")[0], error)


__all__ = [
    "Clock",
    "MqttUplink",
    "Worker",
    "boot_id",
    "clock_state",
    "connect_uplink",
    "entropy",
    "judge",
    "locked",
    "notify",
    "now_ns",
    "offload",
    "open_database",
]
