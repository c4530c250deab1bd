"""Wear of the card: what the real journal writes and syncs for each reading, over enough commits to hold checkpoints.

Counted at SQLite's VFS: bytes that the program hands to the file system. What the card writes for them is more; the
blocks column says how much if every 4-KiB block that changed between two syncs is written once.
"""

import sys
from random import Random
from typing import NamedTuple

import pytest
from energybid.agent.journal import Journal
from energybid.core.entries import Reading
from log_entries import METERS, recorded
from powercut_history import Life
from powercut_judge import memory
from powercut_recorder import Link, Recorder, Sync, Write

pytestmark = pytest.mark.untraced

BLOCK = 4096
MINUTE_MS = 60_000


class Wear(NamedTuple):
    """Over a whole run."""

    bytes: float
    syncs: float
    blocks: float
    checkpoints: int
    """How often SQLite folded the WAL into the database."""

    def each(self, count):
        return Wear(self.bytes / count, self.syncs / count, self.blocks * BLOCK / count, self.checkpoints)


def measured(commits, shown_every=0):
    """What a journal in its usual settings writes for these commits; every so-manieth, somebody is given the newest."""
    with memory() as folder:
        path = str(folder / "journal.db")
        recorder = Recorder(path)
        life = Life(recorder.open_database, path, Random(1))
        life.journal.close()
        life.journal = Journal(recorder.open_database(path), path, fold=True)
        life.begin_epoch()
        begin = len(recorder.operations)
        for number, entries in enumerate(commits, 1):
            life.journal.commit(life.seal(entries))
            if shown_every and number % shown_every == 0:
                life.journal.last_of(life.journal.head.epoch)
        operations = recorder.operations
        life.journal.close()
        recorder.unregister()
    return counted(operations, begin)


def counted(operations, begin):
    database = next(operation.file for operation in operations if operation == Link("", operation.file))
    dirty, size, syncs, blocks, checkpoints = {}, 0, 0, 0, 0
    for operation in operations[begin:]:
        if isinstance(operation, Write):
            size += len(operation.data)
            last = operation.at + len(operation.data) - 1
            dirty.setdefault(operation.file, set()).update(range(operation.at // BLOCK, last // BLOCK + 1))
        elif isinstance(operation, Sync):
            syncs += 1
            blocks += len(dirty.pop(operation.file, ()))
            checkpoints += operation.file == database
    return Wear(size, syncs, blocks, checkpoints)


def single_register(count, each):
    """Commits of readings of one energy register, read every second by one meter."""
    random = Random(5)
    energy, time_ms = 100_000, 1_790_000_000_000
    for _ in range(count):
        entries = []
        for _ in range(each):
            energy += random.randint(0, 3)
            time_ms += 1000
            at_ms = time_ms + random.randint(-2, 2)
            entries.append(
                Reading(1, 0, at_ms, random.randint(8, 14), 2, 0, at_ms - 1_789_000_000_000, (energy,), None)
            )
        yield entries


def recorded_meters(count, polls):
    """Commits of so many polls of 32 recorded meters with 24 quantities, the recorded minute again and again."""
    minute = recorded(60)
    each = polls * METERS
    for number in range(count):
        again, at = divmod(number * each, len(minute))
        later_ms = again * MINUTE_MS
        yield [
            entry._replace(time_ms=entry.time_ms + later_ms, mono_ms=entry.mono_ms + later_ms)
            for entry in minute[at : at + each]
        ]


def told(capsys, what, unit, wear):
    with capsys.disabled():
        sys.stdout.write(
            f"\n{what}: {wear.bytes:.1f} bytes and {wear.syncs:.3f} fsync a {unit}"
            f" ({wear.blocks:.0f} bytes in blocks of 4 KiB; {wear.checkpoints} checkpoints of the WAL)\n"
        )
    assert wear.checkpoints >= 3, "too short to tell"


@pytest.mark.parametrize(
    ("each", "commits", "bytes_max", "syncs_max"),
    [(4, 4000, 200, 0.3), (60, 1500, 50, 0.3)],
)
def test_wear_of_single_register_readings(each, commits, bytes_max, syncs_max, capsys):
    wear = measured(single_register(commits, each)).each(commits * each)
    told(capsys, f"single-register readings, {each} a commit", "reading", wear)
    assert wear.bytes <= bytes_max
    assert wear.syncs <= syncs_max


@pytest.mark.parametrize(("polls", "commits", "bytes_max"), [(1, 1000, 12), (10, 300, 3)])
def test_wear_of_32_meters_with_24_quantities(polls, commits, bytes_max, capsys):
    wear = measured(recorded_meters(commits, polls)).each(commits * polls * METERS * 24)
    told(capsys, f"32 meters × 24 quantities every second, commits of {polls} s", "value", wear)
    assert wear.bytes <= bytes_max


@pytest.mark.parametrize(("every", "bytes_max"), [(2, 280), (12, 220)])
def test_wear_while_batches_are_sent(every, bytes_max, capsys):
    """A row ends where a batch ends: of commits of 5 s, two a batch of 10 s, twelve a batch of 60 s."""
    wear = measured(single_register(3000, 4), shown_every=every).each(3000 * 4)
    told(capsys, f"single-register readings, 4 a commit, a batch of every {every}", "reading", wear)
    assert wear.bytes <= bytes_max
