"""Disks in memory: what the databases write, what of it was synced, and what is left of it after a power cut.

Here live the files, as an SQLite VFS, and their faults; no tables, no clock. Only what was synced survives for certain:
at a cut, every later write is dropped, kept or torn at 512 bytes as chance has it. Names of files (made, deleted) are
durable at once. SQLite's shared memory for WAL is not offered: a connection locks its files and keeps the index itself.
"""

import itertools
import random
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import apsw

from energybid.core.errors import JournalError
from energybid.simulator.virtual import PowerCut

SECTOR = 512
_numbers = itertools.count()


class DiskState(StrEnum):
    """What is wrong with a disk."""

    FINE = "fine"
    FULL = "full"
    """Files can not grow."""
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

    def __init__(self, files: dict[str, _Content] | None = None) -> None:
        """Hold ``files``, or nothing."""
        self.name = f"world-{next(_numbers)}"
        self.files = files if files is not None else {}
        self.state = DiskState.FINE
        self.writes = self.syncs = self.written = 0
        """Calls, calls and bytes so far."""
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
        try:
            connection = apsw.Connection(path, vfs=self.name)
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        except apsw.Error as error:
            raise JournalError(f"{path}: {error}") from None
        return connection

    def copy(self) -> "Disk":
        """The same synced content on another disk."""
        return Disk({name: _Content(bytes(content.durable)) for name, content in self.files.items()})

    def crashed(self) -> "Disk":
        """What is left when the power goes now; ``chance`` decides over what was not synced."""
        return Disk({name: content.after_cut(self.chance) for name, content in sorted(self.files.items())})

    def survived(self) -> "Disk":
        """What is left when only the process dies: all that it wrote."""
        disk = Disk({name: _Content(bytes(content.data)) for name, content in self.files.items()})
        for name, content in disk.files.items():
            content.durable = bytearray(self.files[name].durable)
            content.unsynced = list(self.files[name].unsynced)
        return disk

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(len(content.data) for content in self.files.values())

    def before_write(self) -> None:
        """A write comes."""
        self.writes += 1
        if self.cut_after:
            self.cut_after -= 1
            if not self.cut_after:
                self.image = self.crashed()

    def remove(self) -> None:
        """Unregister the VFS; open connections keep what they need."""
        self._vfs.unregister()


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        super().__init__(disk.name, "")
        self._disk = disk

    def xOpen(self, name: Any, flags: list[int]) -> "_File":  # type: ignore[override]  # noqa: ANN401, N802  apsw asks for the methods only
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name or "temporary")
        disk = self._disk
        flags[1] = flags[0]
        if path not in disk.files:
            if disk.state is not DiskState.FINE or not flags[0] & apsw.SQLITE_OPEN_CREATE:
                raise apsw.CantOpenError(f"{path}: {disk.state}")
            disk.files[path] = _Content()
        return _File(disk, disk.files[path])

    def xAccess(self, path: str, _flags: int) -> bool:  # noqa: N802
        return path in self._disk.files

    def xDelete(self, path: str, _sync: bool) -> None:  # noqa: FBT001, N802
        if self._disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        self._disk.files.pop(path, None)

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
        return bytes(self._content.data[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        disk, content = self._disk, self._content
        disk.before_write()
        if disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        if disk.state is DiskState.FULL and offset + len(data) > len(content.data):
            raise apsw.FullError("no space left on device")
        disk.written += len(data)
        content.write(offset, bytes(data))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self._disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        self._content.truncate(size)

    def xSync(self, _flags: int) -> None:  # noqa: N802
        if self._disk.state is DiskState.READ_ONLY:
            raise apsw.IOError("read-only file system")
        self._disk.syncs += 1
        self._content.sync()

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._content.data)

    def xLock(self, _level: int) -> None:  # noqa: N802
        """There is one process."""

    def xUnlock(self, _level: int) -> None:  # noqa: N802
        """There is one process."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, _operation: int, _pointer: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return 0

    def xClose(self) -> None:  # noqa: N802
        """Nothing to release."""


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
