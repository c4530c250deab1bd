"""A VFS that hands everything on to the real file system and writes down what SQLite asked of it, in order.

Only what changes files is recorded. Locks, shared memory and reads are the real VFS's own.
"""
# ruff: noqa: N802  methods are named as SQLite names them

from pathlib import Path
from random import Random
from typing import NamedTuple

import apsw


class Link(NamedTuple):
    """A file was created."""

    name: str
    file: int


class Unlink(NamedTuple):
    """A file was removed; nothing syncs the folder for it."""

    name: str


class Write(NamedTuple):
    """Bytes of a file."""

    file: int
    at: int
    data: bytes


class Truncate(NamedTuple):
    """A file's size was set."""

    file: int
    size: int


class Sync(NamedTuple):
    """What was written to the file before is durable."""

    file: int
    folder: bool
    """So are the folder's entries: SQLite's unix VFS syncs it at the first sync of a journal that it created."""


class Forget(NamedTuple):
    """A sync failed, and what it was to cover is gone although the program can still read it, as on file systems of
    Linux (a page that could not be written counts as clean)."""

    file: int


class Mark(NamedTuple):
    """The journal's method returned: what it stored must not be lost from here on."""

    state: int


Operation = Link | Unlink | Write | Truncate | Sync | Forget | Mark


class Recorder(apsw.VFS):
    """The real file system under one database, with a record."""

    def __init__(self, path, *, deaf=False):
        """Record the database at ``path``; a deaf one swallows syncs, as a card that lies does."""
        self.operations: list[Operation] = []
        self.deaf = deaf
        self.failing: Random | None = None
        """Some commits fail at their sync."""
        self.path = str(path)
        self.name = f"recorder-{id(self)}"
        endings = ("", "-wal", "-journal")
        self.files = {ending: number for number, ending in enumerate(endings) if Path(self.path + ending).exists()}
        self.made = len(endings)
        super().__init__(self.name, "unix")

    def fails(self, file):
        """Whether a sync is to fail. Only one of a commit: an exception in a checkpoint of the WAL would come out of
        the commit that led to it, which an error of SQLite's own VFS does not do."""
        return (
            self.failing is not None
            and file == self.files.get("-wal")
            and isinstance(self.operations[-1], Write)
            and self.failing.random() < 0.3
        )

    def open_database(self, path):
        """As ``Platform.open_database``."""
        return apsw.Connection(path, vfs=self.name)

    def xOpen(self, name, flags):
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        created = not Path(path).exists()
        file = RecordedFile(name, flags)
        ending = path.removeprefix(self.path)
        if created:
            self.files[ending] = self.made
            self.operations.append(Link(ending, self.made))
            self.made += 1
        file.begin(self, self.files[ending], folder=created and ending != "")
        return file

    def xDelete(self, filename, syncdir):
        assert not syncdir, "the model knows no removal that is synced"
        super().xDelete(filename, syncdir)
        self.operations.append(Unlink(filename.removeprefix(self.path)))


class RecordedFile(apsw.VFSFile):
    """One open file."""

    def __init__(self, name, flags):
        super().__init__("unix", name, flags)

    def begin(self, recorder, file, *, folder):
        self._recorder, self._file, self._folder = recorder, file, folder

    def xWrite(self, data, offset):
        super().xWrite(data, offset)
        self._recorder.operations.append(Write(self._file, offset, bytes(data)))

    def xTruncate(self, newsize):
        super().xTruncate(newsize)
        self._recorder.operations.append(Truncate(self._file, newsize))

    def xSync(self, flags):
        if self._recorder.fails(self._file):
            self._recorder.operations.append(Forget(self._file))
            error = apsw.IOError("the sync failed")
            error.extendedresult = apsw.SQLITE_IOERR_FSYNC
            raise error
        if not self._recorder.deaf:  # the record is all that counts: the recording itself needs no durable disk
            self._recorder.operations.append(Sync(self._file, self._folder))
            self._folder = False


class _Chance(apsw.VFS):
    """The system's VFS with seeded entropy."""

    def __init__(self, seed):
        self._random = Random(seed)
        super().__init__("seeded", "unix", makedefault=True)

    def xRandomness(self, numbytes):
        return self._random.randbytes(numbytes)


def seed_sqlite(seed):
    """Make SQLite's own random numbers (salts of the WAL) a function of the seed, so that a cut can be replayed."""
    apsw.randomness(0)
    chance = _Chance(seed)
    apsw.randomness(1)
    chance.unregister()
