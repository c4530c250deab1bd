"""Opens what a power cut left with the real journal and says what is wrong with it; runs whole campaigns of cuts."""

import contextlib
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import NamedTuple

import apsw
from energybid.agent.verify import verify_journal
from energybid.core.errors import JournalError
from powercut_disk import Disk, Image, ways
from powercut_history import GOOD, HEADEND, KEY, History, Life, files, record
from powercut_recorder import Mark

LIVES = 3
STEPS = 40
REOPEN_EVERY = 8
"""One image in so many is also closed, opened and checked again after the append."""


class Cut(NamedTuple):
    """Where the power fails, and how the disk loses what was not synced."""

    seed: int
    life: int
    operation: int
    way: int

    def __str__(self) -> str:
        return ":".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> "Cut":
        return cls(*map(int, text.split(":")))


class Found(NamedTuple):
    """What a campaign found."""

    cuts: int
    """Different images judged."""
    operations: int
    """Writes, truncations, syncs, creations and removals after which the power failed."""
    lost: int
    """Entries whose commit had returned and that were not there, in all cuts together."""
    faults: list[tuple[Cut, str]]
    """Cuts after which the journal was not as it must be."""


@contextlib.contextmanager
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None) as folder:
        yield Path(folder)


class Campaign:
    """All lives of one seed, and a sample of their cuts."""

    def __init__(self, seed, folder, spoilt=GOOD, *, steps=STEPS):
        self.seed, self.folder = seed, folder
        self._spoilt = spoilt
        self._steps = steps
        self._verified: set[bytes] = set()

    def lives(self):
        """The histories, each beginning with what a cut near the end of the one before left."""
        image: Image = {}
        for number in range(LIVES):
            history = record(self.folder, image, f"{self.seed} {number}", self._steps, self._spoilt)
            yield number, history
            random = Random(f"{self.seed} {number} survives")
            operation = random.randint(len(history.operations) * 9 // 10, len(history.operations))
            image = random.choice([image for _, image, _ in self.cuts(number, history, operation)])
            if self._spoilt.deaf or self._spoilt.synchronous:
                return  # what follows from a spoilt journal tells nothing

    def cuts(self, life, history, only=None):
        """(cut, image, newest state that had returned) for every operation, or for one."""
        disk = Disk(history.image)
        returned = 0
        for number, operation in enumerate(history.operations, 1):
            disk.apply(operation)
            returned = operation.state if isinstance(operation, Mark) else returned
            if only not in (None, number):
                continue
            random = Random(f"{self.seed} {life} {number}")
            choices = ways(random) if disk.pending else ways(random)[:1]
            for way, choice in enumerate(choices):
                yield Cut(self.seed, life, number, way), disk.image(choice), returned

    def run(self, share=1.0) -> Found:
        """Judge ``share`` of all cuts."""
        chosen = Random(f"{self.seed} share")
        seen: set[bytes] = set()
        cuts = operations = lost = 0
        faults: list[tuple[Cut, str]] = []
        for life, history in self.lives():
            places = set()
            for cut, image, returned in self.cuts(life, history):
                if chosen.random() >= share:
                    continue
                name = _name(image, returned)
                if name in seen:
                    continue
                seen.add(name)
                cuts += 1
                places.add(cut.operation)
                gone, fault = self.judge(cut, image, history, returned)
                lost += gone
                if fault:
                    faults.append((cut, fault))
            operations += len(places)
        return Found(cuts, operations, lost, faults)

    def replay(self, cut):
        """(entries lost, fault) of one cut, and its image."""
        for life, history in self.lives():
            if life == cut.life:
                for found, image, returned in self.cuts(life, history, cut.operation):
                    if found == cut:
                        return *self.judge(cut, image, history, returned), image
        raise ValueError(f"there is no cut {cut}")

    def judge(self, cut, image, history: History, returned) -> tuple[int, str]:
        """(entries lost, what is wrong)."""
        random = Random(f"{cut} judge")
        if random.random() < 0.25:
            image = {**image, "-shm": random.randbytes(32768)}  # a file too, and never synced
        with files(self.folder, image) as path:
            try:
                return self._judge(str(path), history, returned, random)
            except (JournalError, apsw.Error) as error:
                return history.states[returned].entries, f"does not open or go on: {error}"

    def _judge(self, path, history, returned, random):
        life = Life(apsw.Connection, path, random)
        try:
            journal = life.journal
            journal.check()
            state = life.state(0)
            digests = [one.digest for one in history.states]
            allowed = history.states[returned : returned + 2]
            if state.digest not in digests[returned : returned + 2]:
                lost = digests.index(state.digest) if state.digest in digests else 0
                gone = history.states[returned].entries - history.states[lost].entries
                return gone, f"holds state {lost or 'unknown'}, {returned} had returned"
            if state.counter < allowed[0].counter:
                return 0, f"counter {state.counter}, {allowed[0].counter} had been signed and stored"
            return 0, self._verify(path, state.digest) or self._go_on(life, random)
        finally:
            life.journal.close()

    def _verify(self, path, digest):
        """Every stored root, signature and receipt; once for each state, as equal rows have equal signatures."""
        if digest in self._verified:
            return ""
        self._verified.add(digest)
        with contextlib.closing(apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)) as database:
            report = verify_journal(database, path, [KEY.public, HEADEND.public])
        return "" if report["verified"] or not report["entries"] else f"verify: {report['faults']}"

    def _go_on(self, life, random):
        if life.log is None:
            life.begin_epoch()
        life.commit(1)
        head = life.journal.head
        if random.randrange(REOPEN_EVERY) == 0:
            sound = ", ".join(text for (text,) in life.journal._database.execute("PRAGMA integrity_check"))
            if sound != "ok":
                return f"integrity_check: {sound}"
            life.journal.close()
            life.open()
            life.journal.check()
        stored = life.journal.last_of(head.epoch)[1:], life.journal.head.counter
        expected = (head.frontier.size, head.frontier.root()), head.counter
        return "" if stored == expected else f"holds {stored} after a commit up to {expected}"


def _name(image, returned):
    digest = blake2b(str(returned).encode(), digest_size=16)
    for name, data in sorted(image.items()):
        digest.update(f"{name} {len(data)} ".encode())
        digest.update(data)
    return digest.digest()
