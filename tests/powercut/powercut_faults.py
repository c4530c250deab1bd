"""Faults of the disk under SQLite's own unix VFS: what the system calls return is changed, and nothing else.

Python's exceptions in a VFS would not do: they surface also from the checkpoints of the WAL, whose errors SQLite keeps
to itself.
"""

import ctypes
import errno
import os
from typing import NamedTuple

import apsw

FILE_POINTER, JOURNAL_POINTER = apsw.SQLITE_FCNTL_FILE_POINTER, apsw.SQLITE_FCNTL_JOURNAL_POINTER
SLOTS = 19
"""Words of sqlite3_io_methods, version 3 (sqlite3.h): iVersion and 18 functions."""
SYNC_SLOT = 5

_size, _int, _pointer = ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p
_signatures = {
    "pwrite64": ctypes.CFUNCTYPE(ctypes.c_ssize_t, _int, _pointer, _size, ctypes.c_int64, use_errno=True),
    "pread64": ctypes.CFUNCTYPE(ctypes.c_ssize_t, _int, _pointer, _size, ctypes.c_int64, use_errno=True),
    "ftruncate": ctypes.CFUNCTYPE(_int, _int, ctypes.c_int64, use_errno=True),
    "open": ctypes.CFUNCTYPE(_int, ctypes.c_char_p, _int, _int, use_errno=True),
    "unlink": ctypes.CFUNCTYPE(_int, ctypes.c_char_p, use_errno=True),
}
_sync_signature = ctypes.CFUNCTYPE(_int, _pointer, _int)


class Fault(NamedTuple):
    """What fails."""

    calls: tuple[str, ...]
    """Names of system calls; "sync" for fsync."""
    error: int
    """errno."""


FULL = Fault(("pwrite64", "ftruncate"), errno.ENOSPC)
READ_ONLY = Fault(("pwrite64", "ftruncate", "open", "unlink"), errno.EROFS)
WRITE = Fault(("pwrite64",), errno.EIO)
READ = Fault(("pread64",), errno.EIO)
SYNC = Fault(("sync",), errno.EIO)
GONE = Fault(("pwrite64", "pread64", "ftruncate", "open", "unlink", "sync"), errno.EIO)
"""A card that does not answer."""
FAULTS = {"full": FULL, "read-only": READ_ONLY, "write": WRITE, "read": READ, "sync": SYNC, "gone": GONE}


class FaultyDisk:
    """While entered, the process's unix VFS fails where and as long as it is told to."""

    def __init__(self):
        self._vfs = apsw.VFS("faulty", "unix")
        self._real, self._mine, self._methods = {}, {}, []
        self._fault, self._after, self._length = None, 0, 0
        self.hits = 0
        """Calls that failed."""
        self.on_sync = None
        """Called before every sync of a database that was given to ``watch``."""

    def __enter__(self):
        for name, signature in _signatures.items():
            address = self._vfs.xGetSystemCall(name)
            self._real[name] = signature(address)
            self._mine[name] = signature(self._made(name, self._real[name]))
            self._vfs.xSetSystemCall(name, ctypes.cast(self._mine[name], ctypes.c_void_p).value)
        return self

    def __exit__(self, *_):
        self._vfs.xSetSystemCall(None, 0)
        self._vfs.unregister()

    def fail(self, fault, *, after=0, length=1 << 30):
        """Let ``after`` calls of the fault's kinds pass, then fail ``length`` of them."""
        self._fault, self._after, self._length, self.hits = fault, after, length, 0

    def mend(self):
        """No fault any more."""
        self._fault = None

    def _due(self, name):
        if self._fault is None or name not in self._fault.calls:
            return False
        self._after -= 1
        if self._after >= 0 or self._length <= 0:
            return False
        self._length -= 1
        self.hits += 1
        return True

    def _made(self, name, real):
        def call(*arguments):
            if name == "open" and self._fault is READ_ONLY and not arguments[1] & os.O_ACCMODE:
                return real(*arguments)
            if not self._due(name):
                return real(*arguments)
            if name == "pwrite64" and arguments[2] > 1:  # half of it is written before the disk gives up
                real(*arguments[:2], arguments[2] // 2, arguments[3])
            ctypes.set_errno(self._fault.error)
            return -1

        return call

    def watch(self, database):
        """Faults reach the syncs of this open database: fsync is no system call that SQLite lets us change."""
        for pointer in (FILE_POINTER, JOURNAL_POINTER):
            file = ctypes.c_void_p()
            assert database.file_control("main", pointer, ctypes.addressof(file))
            slot = ctypes.cast(file, ctypes.POINTER(ctypes.c_void_p))
            methods = (ctypes.c_void_p * SLOTS).from_buffer_copy((ctypes.c_void_p * SLOTS).from_address(slot[0]))
            real = _sync_signature(methods[SYNC_SLOT])

            def sync(file, flags, real=real):
                if self.on_sync:
                    self.on_sync()
                return apsw.SQLITE_IOERR_FSYNC if self._due("sync") else real(file, flags)

            mine = _sync_signature(sync)
            methods[SYNC_SLOT] = ctypes.cast(mine, ctypes.c_void_p).value
            slot[0] = ctypes.addressof(methods)
            self._methods.append((mine, methods))  # SQLite holds only their addresses
