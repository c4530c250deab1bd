"""What a power cut can leave of the files: everything that was synced, and any of it that was not.

The model, for each 512-byte sector by itself: it holds one of the states that it had since the last sync of its file.
So un-synced writes are dropped, kept, torn at sectors and reordered in every combination. The size of a file, its
creation and its removal are pending too until a sync covers them.

What SQLite relies on and the model grants: a sector is old or new, never a mixture or garbage; writing a sector does
not harm its neighbours (SQLITE_IOCAP_POWERSAFE_OVERWRITE, which SQLite assumes on Linux); a sync keeps its word.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from powercut_recorder import Forget, Link, Mark, Operation, Sync, Truncate, Unlink, Write

SECTOR = 512

Image = dict[str, bytes]
"""Ending of the file's name ("" is the database, "-wal", "-journal") → content."""


class Choice(NamedTuple):
    """One way to lose what is pending. Each function is given how many states there are and returns which one to take:
    0 is the synced one, the last has everything."""

    sector: Callable[[int, int, int], int]
    """(file, sector, newest state) → state."""
    size: Callable[[int], int]
    folder: Callable[[int], int]


def nothing(*_: int) -> int:
    """All that was not synced is gone."""
    return 0


def everything(*numbers: int) -> int:
    """All that was written is there."""
    return numbers[-1]


class Disk:
    """Durable and pending state of the files of one database."""

    def __init__(self, image: Image) -> None:
        """Begin with durable files; they are numbered as Recorder does."""
        endings = ("", "-wal", "-journal")
        self._names = {name: endings.index(name) for name in image}
        self._durable = {endings.index(name): data for name, data in image.items()}
        self._pending: dict[int, list[Write | Truncate]] = {}
        self._folder: list[Link | Unlink] = []

    def apply(self, operation: Operation) -> None:
        """Do what the program asked."""
        match operation:
            case Write() | Truncate():
                self._pending.setdefault(operation.file, []).append(operation)
            case Link() | Unlink():
                self._folder.append(operation)
            case Sync(file, folder):
                self._durable[file] = self._content(file, Choice(everything, everything, everything))
                self._pending.pop(file, None)
                if folder:
                    self._names = self._entries(len(self._folder))
                    self._folder.clear()
            case Forget(file):
                self._pending.pop(file, None)
            case Mark():
                pass

    @property
    def pending(self) -> bool:
        """Something could be lost."""
        return bool(self._pending or self._folder)

    def image(self, choice: Choice) -> Image:
        """What is found at the next start."""
        names = self._entries(choice.folder(len(self._folder)))
        return {name: self._content(file, choice) for name, file in names.items()}

    def _entries(self, count: int) -> dict[str, int]:
        names = dict(self._names)
        for operation in self._folder[:count]:
            if isinstance(operation, Link):
                names[operation.name] = operation.file
            else:
                names.pop(operation.name, None)
        return names

    def _content(self, file: int, choice: Choice) -> bytes:
        durable = self._durable.get(file, b"")
        pending = self._pending.get(file)
        if not pending:
            return durable
        newest = len(pending)
        states: dict[int, int] = {}
        data = bytearray(durable)
        sizes = [len(durable)]
        for number, operation in enumerate(pending, 1):
            if isinstance(operation, Truncate):
                at, new = operation.size, bytes(max(0, len(data) - operation.size))
                sizes.append(at)
            else:
                at, new = operation.at, operation.data
                sizes.append(max(sizes[-1], at + len(new)))
            end = at + len(new)
            data.extend(bytes(max(0, end - len(data))))
            for sector in range(at // SECTOR, -(-end // SECTOR)):
                if sector not in states:
                    states[sector] = choice.sector(file, sector, newest)
                if number <= states[sector]:
                    low, high = max(at, sector * SECTOR), min(end, (sector + 1) * SECTOR)
                    data[low:high] = new[low - at : high - at]
        size = sizes[choice.size(newest)]
        return bytes(data[:size]).ljust(size, b"\0")


def ways(random: Random) -> list[Choice]:
    """Ways to lose what is pending, the plain ones first. ``random`` makes the rest."""

    def either(*numbers: int) -> int:
        return random.choice((0, numbers[-1]))

    def any_(*numbers: int) -> int:
        return random.randint(0, numbers[-1])

    return [
        Choice(everything, everything, everything),
        Choice(nothing, nothing, nothing),
        Choice(lambda _, sector, newest: newest - (sector & 1), everything, everything),  # the last write is torn
        Choice(lambda _, sector, newest: newest - (~sector & 1), everything, everything),  # torn the other way
        Choice(nothing, everything, everything),  # the file has grown, its new blocks are zeros
        Choice(lambda file, _, newest: newest if file == 0 else 0, any_, everything),  # only the database was written
        Choice(lambda file, _, newest: 0 if file == 0 else newest, everything, any_),  # only the WAL
        Choice(either, everything, everything),
        Choice(any_, everything, any_),
        Choice(any_, any_, any_),
    ]
