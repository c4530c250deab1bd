"""Runs in the agent's sandbox in the agent's place: tries what must work and what must not; exit 1 if one is wrong."""

import ctypes
import errno
import importlib
import mmap
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

STATE = Path("/var/lib/energybid")


def refused(attempt: Callable[[], object]) -> bool:
    """Whether the system says no (or: there is no such thing)."""
    try:
        attempt()
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return True
    except OSError as error:
        return error.errno in {errno.EROFS, errno.EAFNOSUPPORT, errno.EACCES, errno.EPERM}
    return False


def writes(path: Path) -> Callable[[], object]:
    """An attempt to make a file."""
    return lambda: path.write_text("x")


def executes(folder: str) -> Callable[[], object]:
    """An attempt to drop a program and run it."""

    def attempt() -> None:
        program = Path(folder) / "probe.sh"
        program.write_text("#!/bin/sh\n")
        program.chmod(0o700)
        try:
            subprocess.run([program], check=True)
        finally:
            program.unlink()

    return attempt


def writable_and_executable() -> None:
    """Memory that is both."""
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def adjtimex() -> None:
    """Reads the kernel's clock state."""
    if ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(512)) < 0:
        raise OSError(ctypes.get_errno(), "adjtimex")


def connects(family: int, kind: int, protocol: int = 0) -> Callable[[], object]:
    """An attempt to get a socket."""
    return lambda: socket.socket(family, kind, protocol).close()


def late(device: str) -> Callable[[], object]:
    """An attempt on an adapter whose driver is not there yet: no such device, but no refusal either."""

    def attempt() -> None:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno not in {errno.ENXIO, errno.ENODEV}:
                raise

    return attempt


def multicast() -> None:
    """A packet to a group."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
        sock.sendto(b"", ("224.0.0.251", 5353))


def multiply() -> object:
    """What bids are made of, in a library with threads of its own."""
    return importlib.import_module("numpy").ones((200, 200)) @ importlib.import_module("numpy").ones((200, 200))


def callback() -> int:
    """A C function made at run time, as ctypes and cffi do."""
    return int(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 7)())


MUST_FAIL: dict[str, Callable[[], object]] = {
    "write /etc/energybid": writes(Path("/etc/energybid/probe")),
    "write keys": writes(Path("/etc/energybid/keys/probe")),
    "write /opt": writes(Path("/opt/probe")),
    "write /usr": writes(Path("/usr/probe")),
    "read /etc/shadow": lambda: Path("/etc/shadow").read_text(),
    "read the head-end's keys": lambda: list(Path("/etc/energybid-headend/keys").iterdir()),
    "see home folders": lambda: list(Path("/root").iterdir()),
    "see other processes": lambda: Path("/proc/1/cmdline").read_text(),
    "open a foreign device": lambda: os.close(os.open("/dev/foreign", os.O_RDONLY)),
    "execute what it wrote": executes("/var/lib/energybid"),
    "execute from /run": executes("/run/energybid"),
    "execute from /tmp": executes("/tmp"),
    "execute from /var/tmp": executes("/var/tmp"),
    "execute from /dev/shm": executes("/dev/shm"),
    "writable executable memory": writable_and_executable,
    "raw sockets": connects(socket.AF_INET, socket.SOCK_RAW, 1),
    "packet sockets": connects(socket.AF_PACKET, socket.SOCK_RAW),
    "netlink sockets": connects(socket.AF_NETLINK, socket.SOCK_RAW),
    "multicast": multicast,
    "another user": lambda: os.setuid(0),
    "another group": lambda: os.setgroups([0]),
    "a name space": lambda: os.unshare(0x10000000) if hasattr(os, "unshare") else _unshare(),
    "signal process 1": lambda: os.kill(1, 0),
    "set the host's name": lambda: socket.sethostname("probe"),
    "change priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, -5),
    "chown": lambda: os.chown(STATE, 0, 0),
    "mark set-user-id": lambda: STATE.chmod(0o4700),
}
MUST_WORK: dict[str, Callable[[], object]] = {
    "read the configuration": lambda: Path("/etc/energybid/gateway.toml").read_text(),
    "read the key": lambda: Path("/etc/energybid/keys/log.pem").read_text(),
    "write the state folder": lambda: (writes(STATE / "probe")(), (STATE / "probe").unlink()),
    "write the run folder": lambda: (writes(Path("/run/energybid/probe"))(), Path("/run/energybid/probe").unlink()),
    "open the serial line": lambda: os.close(os.open("/run/bus-sim/rtu", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)),
    "open a ttyUSB that comes later": late("/dev/late-usb"),
    "open a ttyACM that comes later": late("/dev/late-acm"),
    "connect to the broker": lambda: socket.create_connection(("127.0.0.1", 1883), 5).close(),
    "resolve a name": lambda: socket.getaddrinfo("localhost", 1883),
    "read the boot's id": lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
    "use a C callback": callback,
    "multiply matrices": multiply,
    "hold a plan in memory": lambda: os.close(os.memfd_create("probe")),
}


def _unshare() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000) < 0:
        raise OSError(ctypes.get_errno(), "unshare")


def main() -> int:
    """Try everything; say all that is wrong."""
    wrong = [f"allowed: {name}" for name, attempt in MUST_FAIL.items() if not refused(attempt)]
    for name, attempt in MUST_WORK.items():
        try:
            attempt()
        except Exception as error:  # noqa: BLE001  all that fails is to be told
            wrong.append(f"does not work: {name}: {error}")
    clock = "refused" if refused(adjtimex) else "allowed"
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    sys.stdout.write(f"probe: {len(MUST_FAIL)} refused, {len(MUST_WORK)} work, adjtimex {clock}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
