"""The real journal at work on a recorded disk: what was asked of the disk, and every state that the journal was in.

One history is one life of the program between two power cuts; the next begins with what the cut left.
"""

import contextlib
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import NamedTuple

from energybid.agent.growing import Commit
from energybid.agent.journal import Journal
from energybid.agent.rows import Acknowledged
from energybid.core.cose import PrivateKey
from energybid.core.entries import Epoch, Reading
from energybid.core.errors import JournalStalledError
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log
from powercut_disk import Image
from powercut_recorder import Mark, Operation, Recorder, seed_sqlite

KEY = PrivateKey.from_entropy(b"gateway." * 6)
HEADEND = PrivateKey.from_entropy(b"headend." * 6)
ORIGIN = "tenant/gateway"
LATER_MS = 1 << 50


class State(NamedTuple):
    """What the journal holds after one of its methods returned."""

    digest: bytes
    counter: int
    entries: int
    """Committed so far, over the whole history."""


class Spoilt(NamedTuple):
    """What is wrong with the journal's world, on purpose."""

    deaf: bool = False
    """The disk lies about syncs: committed entries must be lost."""
    synchronous: str | None = None
    """Spoils the journal's own setting: committed entries must be lost."""
    failing: bool = False
    """Some syncs fail, and what they were to cover is forgotten: nothing may be lost."""


GOOD = Spoilt()


class History(NamedTuple):
    """One life."""

    image: Image
    operations: list[Operation]
    states: list[State]


def rows(journal):
    """Everything that is stored, as one digest."""
    run = journal._database.execute
    digest = blake2b(digest_size=16)
    for (table,) in run("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1").fetchall():
        for row in run(f"SELECT * FROM {table} ORDER BY 1"):
            digest.update(repr((table, row)).encode())
    return digest.digest()


def reading(random):
    """A plausible one."""
    values = tuple(random.randint(2290, 2310) for _ in range(random.choice((1, 1, 3))))
    return Reading(1, 0, 1_790_000_000_000 + random.randint(0, 9), 3, 2, 0, 100, values, None)


class Life:
    """The program: a journal with the log that it stores."""

    def __init__(self, open_database, path, random):
        self.open_database, self.path, self.random = open_database, str(path), random
        self.refused = 0
        """Times that the disk refused and the same was tried again."""
        self.wal_pages = random.choice((4, 10, 30))
        self.fold = random.random() < 0.7
        self.open()

    def open(self):
        self.journal = Journal(self.open_database(self.path), self.path, wal_pages=self.wal_pages, fold=self.fold)
        self._continue(self.journal.head)

    def _continue(self, head):
        self.log = head and Log(
            origin=head.epoch.origin,
            epoch=head.epoch.id,
            secret=head.epoch.secret,
            signer=KEY,
            frontier=head.frontier.copy(),
            counter=head.counter,
        )

    def state(self, entries):
        """What is stored."""
        head = self.journal.head
        return State(rows(self.journal), head.counter if head else 0, entries)

    def stored(self, method, *arguments, **named):
        """What a method of the journal returns, as soon as the disk lets it."""
        for _ in range(20):
            try:
                return method(*arguments, **named)
            except JournalStalledError:
                self.refused += 1
        return method(*arguments, **named)

    def begin_epoch(self):
        random = self.random
        named = {"id_": random.randbytes(16), "origin": ORIGIN, "secret": random.randbytes(32)}
        self._continue(self.stored(self.journal.begin_epoch, **named))

    def seal(self, entries, acknowledged=None):
        """Append and sign; what ``Journal.commit`` is to store."""
        if self.log.size == 0:
            entries = [Epoch(ORIGIN, 0, None), *entries]
        before = self.log.peaks
        for entry in entries:
            self.log.append(entry)
        checkpoint = self.log.checkpoint(self.log.size, 2)
        return Commit(entries, checkpoint, before, self.log.peaks, acknowledged)

    def commit(self, count=None, acknowledged=None):
        count = count or self.random.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 4, 4, 60))
        entries = [reading(self.random) for _ in range(count)]
        commit = self.seal(entries, acknowledged)
        self.stored(self.journal.commit, commit)
        return len(commit.entries)

    def receipt(self):
        """The head-end's for one of the newest checkpoints."""
        epoch = self.journal.head.epoch
        ends = [segment.end for segment in self.journal.segments(epoch.number, 0)]
        if not ends:
            return None
        size = self.random.choice(ends[-4:])
        receipt = Receipt(ORIGIN, epoch.id, size, self.journal.root_at(epoch.number, size), 5)
        return Acknowledged(epoch.number, size, sign_receipt(receipt, HEADEND))

    def step(self):
        """Do something of what the agent does; returns how many entries were committed."""
        kind = self.random.random()
        if self.log is None or kind < 0.04:
            self.begin_epoch()
        elif kind < 0.14 and (mark := self.receipt()):
            self.stored(self.journal.acknowledge, mark)
        elif kind < 0.24:
            self.stored(self.journal.prune, LATER_MS)
        elif kind < 0.28:
            self.journal.close()
            self.open()
        elif kind < 0.32:
            key, value = f"meter/{self.random.randrange(4)}", self.random.randbytes(self.random.choice((1, 40, 900)))
            self.stored(self.journal.remember, key, value)
        else:
            return self.commit(acknowledged=self.receipt() if kind > 0.9 else None)
        return 0


@contextlib.contextmanager
def files(folder, image):
    """The image as files; yields the database's path."""
    path = Path(folder) / "journal.db"
    for left in Path(folder).glob("journal.db*"):
        left.unlink()
    for name, data in image.items():
        path.with_name(path.name + name).write_bytes(data)
    yield path


def record(folder, image, seed, steps, spoilt=GOOD):
    """Live on from an image.

    Args:
        folder: In memory, best.
        image: What the disk holds at the start.
        seed: Of what happens, text.
        steps: How many things happen.
        spoilt: What is wrong.
    """
    random = Random(f"{seed} life")
    seed_sqlite(f"{seed} sqlite")
    with files(folder, image) as path:
        recorder = Recorder(path, deaf=spoilt.deaf)
        life = Life(recorder.open_database, path, random)
        recorder.failing = Random(f"{seed} failing") if spoilt.failing else None
        states: list[State] = []
        entries = 0
        for _ in range(steps):
            states.append(life.state(entries))
            recorder.operations.append(Mark(len(states) - 1))
            if spoilt.synchronous:
                life.journal._database.execute(f"PRAGMA synchronous = {spoilt.synchronous}")
            entries += life.step()
        states.append(life.state(entries))
        operations = [*recorder.operations, Mark(len(states) - 1)]
        life.journal.close()
        recorder.unregister()
    return History(image, operations, states)
