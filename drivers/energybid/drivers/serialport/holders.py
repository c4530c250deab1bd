"""Who has a serial port open, as far as this user may know, and what to do about the usual ones.

Here lives the reading of /proc (Linux, proc(5)): open files of every process, and /proc/locks, which names the
holders of locks whoever they are.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_CURES = {
    "ModemManager": "it probes every new port: stop it (systemctl disable --now ModemManager)",
    "agetty": "a login console runs on this port: stop it (systemctl disable --now serial-getty@{name})",
    "gpsd": "gpsd takes serial adapters for receivers: stop it (systemctl disable --now gpsd.socket gpsd)",
    "brltty": "it takes some adapters for Braille displays: remove it (apt remove brltty)",
}
"""Programs that take ports of themselves → what to do."""
_AGENT = "energybid.agent.process"
_AGENT_CURE = (
    "energybid status shows what it reads; to use the port yourself stop it (systemctl stop energybid) and start it "
    "again afterwards"
)
_COMMAND_MAX = 80


class Holder(NamedTuple):
    """A process that has the port open."""

    pid: int
    program: str
    command: str
    """Its command line, cut to a readable length."""
    locks: bool = False
    """It holds the lock of flock(2)."""

    def __str__(self) -> str:
        """For messages."""
        return f"process {self.pid} ({self.command})"


def holders(path: str, proc: Path = Path("/proc")) -> list[Holder]:
    """Processes that have a device node open or locked, by process number.

    Args:
        path: The device node, or a link to it.
        proc: Where the kernel's process folders are.
    """
    target = os.path.realpath(path)
    lockers = _lockers(target, proc)
    pids = set(lockers)
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):
            if any(os.path.realpath(fd) == target for fd in (process / "fd").iterdir()):
                pids.add(int(process.name))
    return [_holder(proc / str(pid), locks=pid in lockers) for pid in sorted(pids)]


def _lockers(target: str, proc: Path) -> set[int]:
    """Process numbers in /proc/locks for a file: "1: FLOCK ADVISORY WRITE 1234 00:05:678 0 EOF"."""
    pids = set()
    with suppress(OSError):
        node = Path(target).stat()
        inode = f"{os.major(node.st_dev):02x}:{os.minor(node.st_dev):02x}:{node.st_ino}"
        for line in (proc / "locks").read_text().splitlines():
            words = line.split()
            if inode in words:
                pids.add(int(words[words.index(inode) - 1]))
    return pids


def _holder(process: Path, *, locks: bool) -> Holder:
    program = command = "?"
    with suppress(OSError):
        program = command = (process / "comm").read_text().strip()
        command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip() or program
    short = command if len(command) <= _COMMAND_MAX else command[: _COMMAND_MAX - 1] + "…"
    return Holder(int(process.name), program, short, locks)


def in_use(path: str, found: list[Holder], own_pid: int) -> str:
    """What to say about a port that others hold: who, and the way out.

    Args:
        path: The device node.
        found: From ``holders``.
        own_pid: This process.
    """
    found = [holder for holder in found if holder.locks] or found
    if not found:
        return "in use by a process of another user: look with sudo fuser -v " + path
    if any(holder.pid == own_pid for holder in found):
        return f"in use by this program, process {own_pid}: do two buses name the same port?"
    if any(_AGENT in holder.command for holder in found):
        return f"in use by the agent, {', '.join(map(str, found))}: {_AGENT_CURE}"
    cure = next((_CURES[h.program] for h in found if h.program in _CURES), "stop it, or give it another port")
    return f"in use by {', '.join(map(str, found))}: {cure.format(name=Path(path).name)}"
