"""Disks in memory: what the databases write, what of it was synced, and what is left of it after a power cut.

Here live the files, as an SQLite VFS and as the agent's ``Disk``, and their faults; no tables, no clock. Only what was
synced survives for certain: at a cut, every later write is dropped, kept or torn at 512 bytes as chance has it. Names
of files (made, renamed, deleted) are durable at once. SQLite's shared memory for WAL is not offered: a connection locks
its files and keeps the index itself.
"""

import errno
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from operator import is_
from typing import Any

import apsw

from energybid.core.errors import JournalError
from energybid.simulator.virtual import PowerCut

SECTOR = 512
PLENTY = 8 << 30
"""Free bytes of a disk that is not full."""
_numbers = itertools.count()


class DiskState(StrEnum):
    """What is wrong with a disk."""

    FINE = "fine"
    FULL = "full"
    """Files can not grow; what is given back is taken by others at once."""
    FILLED = "filled"
    """Nothing is left but what is given back."""
    READ_ONLY = "read-only"


class _Content:
    """One file: what reads see, what is durable, and what lies between."""

    __slots__ = ("data", "durable", "unsynced")

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.durable = bytearray(data)
        self.unsynced: list[tuple[int, bytes | None]] = []
        """(offset, bytes written), or (size, None) for a truncation."""

    def write(self, at: int, data: bytes) -> None:
        _apply(self.data, at, data)
        self.unsynced.append((at, data))

    def truncate(self, size: int) -> None:
        _apply(self.data, size, None)
        self.unsynced.append((size, None))

    def sync(self) -> None:
        for at, data in self.unsynced:
            _apply(self.durable, at, data)
        self.unsynced.clear()

    def after_cut(self, chance: random.Random) -> "_Content":
        """What the next boot finds."""
        left = bytearray(self.durable)
        for at, data in self.unsynced:
            fate = chance.random()
            if fate < 1 / 3:
                _apply(left, at, data)
            elif fate < 1 / 2 and data is not None:
                boundary = SECTOR - at % SECTOR
                _apply(left, at, data[:boundary])
        return _Content(bytes(left))


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class Disk:
    """One machine's disk. The VFS of the same name stays registered until ``remove``."""

    def __init__(self, files: dict[str, _Content] | None = None, reserved: dict[str, int] | None = None) -> None:
        """Hold ``files``, and files of which only the size counts, or nothing."""
        self.name = f"world-{next(_numbers)}"
        self.files = files if files is not None else {}
        self.reserved = reserved if reserved is not None else {}
        self.state = DiskState.FINE
        self.room = PLENTY
        """Bytes that may still be written."""
        self.writes = self.syncs = self.written = 0
        """Calls, calls and bytes so far."""
        self.failing_reads = self.failing_syncs = 0
        """So many of the next reads, and syncs, end with an I/O error."""
        self.failed = 0
        """How many did."""
        self.cut_after = 0
        """The power is cut at this write from now; 0 for never."""
        self.image: Disk | None = None
        """What a power cut that has happened left behind."""
        self.chance = random.Random(0)  # noqa: S311  set anew by whoever orders a cut
        self._vfs = _Vfs(self)

    def open(self, path: str) -> apsw.Connection:
        """A connection to a database on this disk.

        Raises:
            JournalError: It can not be opened.
        """
        failing, self.failing_reads = self.failing_reads, 0  # the real one reads nothing yet
        try:
            connection = apsw.Connection(path, vfs=self.name)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        except apsw.Error as error:
            raise JournalError(f"{path}: {error}") from None
        finally:
            self.failing_reads = failing
        return connection

    def copy(self) -> "Disk":
        """The same synced content on another disk."""
        files = {name: _Content(bytes(content.durable)) for name, content in self.files.items()}
        return Disk(files, dict(self.reserved))

    def crashed(self) -> "Disk":
        """What is left when the power goes now; ``chance`` decides over what was not synced."""
        files = {name: content.after_cut(self.chance) for name, content in sorted(self.files.items())}
        return Disk(files, dict(self.reserved))

    def survived(self) -> "Disk":
        """What is left when only the process dies: all that it wrote."""
        disk = Disk({name: _Content(bytes(content.data)) for name, content in self.files.items()}, dict(self.reserved))
        for name, content in disk.files.items():
            content.durable = bytearray(self.files[name].durable)
            content.unsynced = list(self.files[name].unsynced)
        return disk

    def used(self, path: str) -> int:
        """Bytes of a database and of the files that SQLite keeps beside it."""
        return sum(
            len(self.files[name].data) for name in (path, f"{path}-wal", f"{path}-journal") if name in self.files
        )

    # ------------------------------------------------------------ faults

    def inherit(self, before: "Disk") -> None:
        """Whatever fills or locks the disk is still there after a restart; nobody uses the one before any more."""
        self.state, self.room = before.state, before.room
        self.failing_reads, before.failing_reads = before.failing_reads, 0
        self.failing_syncs, before.failing_syncs = before.failing_syncs, 0
        before.empty()

    def empty(self) -> None:
        """Give the memory back; whatever still has a file open finds nothing in it and can not write."""
        self.state = DiskState.READ_ONLY
        for content in self.files.values():
            content.data, content.durable = bytearray(), bytearray()
            content.unsynced.clear()

    def damage(self, path: str, chance: random.Random) -> str:
        """Change some bytes of a file, as a worn card does: a flipped bit, a few bytes, or a whole page.

        Returns:
            Where, in words; nothing if the file is empty.
        """
        content = self.files.get(path)
        size = len(content.durable) if content else 0
        if content is None or not size:
            return ""
        at = int(chance.random() * size)
        length = (1, 1 + int(chance.random() * 16), SECTOR)[int(chance.random() * 3)]
        at = at - at % SECTOR if length == SECTOR else at
        mask = 1 << int(chance.random() * 8) if length == 1 else 0xFF
        for kept in (content.durable, content.data):
            for place in range(at, min(at + length, len(kept))):
                kept[place] ^= mask
        return f"{length} at {at} of {size}"

    def before_write(self) -> None:
        """A write comes."""
        self.writes += 1
        if self.cut_after:
            self.cut_after -= 1
            if not self.cut_after:
                self.image = self.crashed()

    def grow(self, count: int) -> None:
        """A file grows by so many bytes, or shrinks.

        Raises:
            apsw.FullError: There is no room.
        """
        if self.state is DiskState.FULL and count > 0:
            raise apsw.FullError("no space left on device")
        if self.state is DiskState.FILLED:
            if count > self.room:
                raise apsw.FullError("no space left on device")
            self.room -= count

    def remove(self) -> None:
        """Unregister the VFS; open connections keep what they need."""
        self._vfs.unregister()


class Beside:
    """The files beside the databases. Implements the agent's ``Disk``; what a call did is durable when it returns."""

    def __init__(self, disk: Disk) -> None:
        """Of one disk."""
        self._disk = disk

    def _changes(self) -> None:
        self._disk.before_write()
        if self._disk.image is not None:
            raise PowerCut
        if self._disk.state is DiskState.READ_ONLY:
            raise OSError(errno.EROFS, "read-only file system")

    def reserve(self, path: str, size: int) -> None:
        """Make a file of which only the size counts, or delete a file."""
        disk = self._disk
        before = self.size(path)
        if before is None and not size:
            return
        self._changes()
        try:
            disk.grow(size - (before or 0))
        except apsw.FullError as error:
            raise OSError(errno.ENOSPC, str(error)) from None
        disk.files.pop(path, None)
        disk.reserved.pop(path, None)
        if size:
            disk.reserved[path] = size

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        content = self._disk.files.get(path)
        return len(content.data) if content is not None else self._disk.reserved.get(path)

    def free(self, _path: str) -> int:
        """Bytes that may still be written."""
        disk = self._disk
        return {DiskState.FULL: 0, DiskState.FILLED: disk.room}.get(disk.state, PLENTY)

    def rename(self, path: str, to: str) -> None:
        """Rename a file."""
        self._changes()
        if self.size(to) is not None:
            raise FileExistsError(errno.EEXIST, "is there already", to)
        self._disk.files[to] = self._disk.files.pop(path)


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.name, "")
        self._disk = disk

    def xOpen(self, name: Any, flags: list[int]) -> "_File":  # type: ignore[override]  # noqa: ANN401, N802  apsw asks for the methods only
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name or "temporary")
        disk = self._disk
        flags[1] = flags[0]
        if path not in disk.files:
            full = disk.state is DiskState.FULL or (disk.state is DiskState.FILLED and not disk.room)
            if full or disk.state is DiskState.READ_ONLY or not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(f"{path}: {disk.state}")
            disk.files[path] = _Content()
        return _File(disk, disk.files[path])

    def xAccess(self, path: str, _flags: int) -> bool:  # noqa: N802
        return path in self._disk.files

    def xDelete(self, path: str, _sync: bool) -> None:  # noqa: FBT001, N802
        if self._disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        content = self._disk.files.pop(path, None)
        self._disk.grow(-len(content.data) if content else 0)

    def xFullPathname(self, path: str) -> str:  # noqa: N802
        return path

    def xRandomness(self, count: int) -> bytes:  # noqa: N802
        return bytes(count)

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        return microseconds

    def xCurrentTime(self) -> float:  # noqa: N802
        return 2_461_000.5

    def xCurrentTimeInt64(self) -> int:  # noqa: N802
        return 2_461_000 * 86_400_000

    def xGetLastError(self) -> tuple[int, str]:  # noqa: N802
        return 0, ""


class _File:
    """An open file; the methods are those of apsw.VFSFile."""

    def __init__(self, disk: Disk, content: _Content) -> None:
        self._disk = disk
        self._content = content

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        disk = self._disk
        if disk.failing_reads:
            disk.failing_reads -= 1
            disk.failed += 1
            raise _io_error("read", apsw.SQLITE_IOERR_CORRUPTFS)  # what SQLite makes of EIO
        return bytes(self._content.data[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        disk, content = self._disk, self._content
        disk.before_write()
        if disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        disk.grow(max(0, offset + len(data) - len(content.data)))
        disk.written += len(data)
        content.write(offset, bytes(data))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self._disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        self._disk.grow(size - len(self._content.data))
        self._content.truncate(size)

    def xSync(self, _flags: int) -> None:  # noqa: N802
        if self._disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        disk = self._disk
        if disk.failing_syncs:
            disk.failing_syncs -= 1
            disk.failed += 1
            raise _io_error("sync", apsw.SQLITE_IOERR_FSYNC)
        disk.syncs += 1
        self._content.sync()

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._content.data)

    def xLock(self, _level: int) -> None:  # noqa: N802
        """There is one process."""

    def xUnlock(self, _level: int) -> None:  # noqa: N802
        """There is one process."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    xFileControl = staticmethod(is_)  # noqa: N815  never: asked at each statement, so it is none of Python's

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return 0

    def xClose(self) -> None:  # noqa: N802
        """Nothing to release."""


def _io_error(what: str, code: int) -> apsw.IOError:
    error = apsw.IOError(f"input/output error: {what}")
    error.extendedresult = code  # type: ignore[attr-defined]  # as apsw has it
    return error


@contextmanager
def unheard() -> Iterator[None]:
    """Errors of disks that SQLite takes no notice of are not printed, as no real one prints them."""
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook = lambda kind, error, trace: None if issubclass(kind, apsw.Error) else hooks[0](kind, error, trace)
    sys.unraisablehook = lambda told: None if issubclass(told.exc_type, apsw.Error) else hooks[1](told)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = hooks


class WatchedDatabase:
    """A connection that lets the world look when a transaction was committed. Implements ``Database``."""

    def __init__(
        self,
        connection: apsw.Connection,
        disk: Disk,
        committed: Callable[[apsw.Connection], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Watch a connection.

        Args:
            connection: The real one.
            disk: Where it lies.
            committed: Called after a COMMIT that is durable; may raise PowerCut.
            before: Called before a COMMIT; may raise PowerCut.
        """
        self._connection = connection
        self._disk = disk
        self._committed = committed
        self._before = before

    def execute(self, statements: str, bindings: Any = None, /) -> Any:  # noqa: ANN401
        """Run statements.

        Raises:
            PowerCut: The machine under the database is no more.
        """
        commits = "COMMIT" in statements
        if commits:
            self._before()
        try:
            cursor = self._connection.execute(statements, bindings)
        finally:
            if self._disk.image is not None:
                raise PowerCut
        if commits:
            self._committed(self._connection)
        return cursor

    @property
    def in_transaction(self) -> bool:
        """A transaction is open."""
        return self._connection.in_transaction

    def close(self, force: bool = False) -> None:  # noqa: FBT001, FBT002  as apsw has it
        """Close."""
        self._connection.close(force)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        """Whatever else of apsw's connection the product comes to use."""
        return getattr(self._connection, name)
