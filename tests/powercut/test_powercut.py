"""Power cuts under the real journal: nothing acknowledged is lost, no journal is corrupt; and these tests can fail.

One cut is replayed with ``tests/powercut/replay.py``; ``make test-power`` runs more seeds.
"""

import os
import sys
from collections import Counter
from itertools import pairwise
from random import Random

import pytest
from energybid.agent.journal import Journal
from hypothesis import given
from hypothesis import strategies as st
from powercut_disk import SECTOR, Disk, ways
from powercut_judge import Campaign, Cut, Found, memory
from powercut_recorder import Link, Mark, Sync, Truncate, Unlink, Write

SEEDS = int(os.environ.get("ENERGYBID_POWER_SEEDS", "12"))
CUTS = 10_000
"""Different disks that must be judged at the least, over all seeds."""
SHARE = float(os.environ.get("ENERGYBID_POWER_SHARE", "0.19"))
"""Of all cuts of a seed's lives, how many are judged."""

totals = Found(0, 0, 0, [])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_power_cut_loses_what_was_committed(seed):
    global totals  # noqa: PLW0603  the last test prints their sum
    with memory() as folder:
        found = Campaign(seed, folder).run(SHARE)
    totals = Found(*(a + b for a, b in zip(totals, found, strict=True)))
    assert not found.faults, explained(found.faults[0])
    assert found.lost == 0


def explained(fault):
    cut, what = fault
    return f"cut {cut}: {what}\nreplay it: .venv/bin/python tests/powercut/replay.py {cut}"


def test_the_cuts_were_many(record_property, capsys):
    if totals.operations == 0:
        pytest.skip("runs after the seeds, in the same process")
    record_property("power cuts", totals.cuts)
    with capsys.disabled():
        sys.stdout.write(
            f"\npower cuts: {totals.cuts} different disks after {totals.operations} operations,"
            f" {totals.lost} committed entries lost, {len(totals.faults)} journals damaged\n"
        )
    assert totals.cuts >= CUTS


@pytest.mark.parametrize(
    ("spoilt", "least"),
    [({"synchronous": "NORMAL"}, 0.1), ({"synchronous": "OFF"}, 0.3), ({"deaf": True}, 0.3)],
    ids=["synchronous-normal", "synchronous-off", "a-disk-that-lies"],
)
def test_a_spoilt_journal_is_caught(spoilt, least, capsys):
    """The twins of the test above: without the syncs, much is lost, and the judge sees it."""
    with memory() as folder:
        campaign = Campaign(2, folder, **spoilt)
        found = campaign.run(SHARE)
        with capsys.disabled():
            sys.stdout.write(
                f"\n{spoilt}: {len(found.faults)} of {found.cuts} cuts lose {found.lost} committed entries\n"
            )
        assert found.lost
        assert len(found.faults) > least * found.cuts
        cut, fault = found.faults[-1]
        assert campaign.replay(cut)[1].partition(":")[0] == fault.partition(":")[0], "a cut can be replayed"


def test_an_append_that_does_not_stick_is_caught(monkeypatch):
    """As if what follows a power cut went nowhere."""
    real = Journal.commit

    def hasty(journal, commit):
        real(journal, commit)
        journal._database.execute("DELETE FROM segment WHERE key = (SELECT max(key) FROM segment)")

    with memory() as folder:
        campaign = Campaign(3, folder, steps=12)
        history = next(campaign.lives())[1]
        cut, image, returned = next(found for found in campaign.cuts(0, history) if found[2] == 5)
        assert campaign.judge(cut, image, history, returned) == (0, "")
        monkeypatch.setattr(Journal, "commit", hasty)
        assert "after a commit" in campaign.judge(cut, image, history, returned)[1]


def test_the_lives_hold_what_a_journal_goes_through(capsys):
    """A campaign proves nothing about what never happens in it."""
    seen = Counter()
    with memory() as folder:
        for _, history in (life for seed in range(SEEDS) for life in Campaign(seed, folder).lives()):
            names = dict(enumerate(("database", "WAL", "rollback journal")))
            for before, operation in pairwise([Mark(0), *history.operations]):
                match operation:
                    case Link(name, file):
                        names[file] = {"": "database", "-wal": "WAL", "-journal": "rollback journal"}[name]
                        seen[f"{names[file]} created"] += 1
                    case Unlink("-wal"):
                        seen["WAL removed at close"] += 1
                    case Write(file, 0) if names[file] == "WAL":
                        seen["WAL begun again"] += 1
                    case Truncate(file) if names[file] == "WAL":
                        seen["WAL cut to its limit"] += 1
                    case Sync(file) if names[file] == "database" and isinstance(before, Write | Truncate):
                        seen["checkpoint of the WAL into the database"] += 1
                    case Truncate(file) if names[file] == "database":
                        seen["size of the database set"] += 1
                    case Mark():
                        seen["step"] += 1
    with capsys.disabled():
        sys.stdout.write("\n" + ", ".join(f"{number} × {what}" for what, number in sorted(seen.items())) + "\n")
    assert min(seen.values()) >= SEEDS // 2
    assert len(seen) == 9


def test_cuts_have_names():
    assert Cut.parse(str(Cut(1, 2, 3, 4))) == Cut(1, 2, 3, 4)


# ---------------------------------------------------------------- the disk itself

NEW, OLD = b"n" * 3 * SECTOR, b"o" * 3 * SECTOR
sectors = st.integers(0, 1000)


def images(disk, seed=0):
    return [disk.image(choice) for choice in ways(Random(seed))]


def test_what_was_synced_stays_and_what_was_not_may_be_anything_between():
    disk = Disk({"": OLD})
    disk.apply(Write(0, 0, NEW))
    assert {image[""][at] for image in images(disk) for at in range(0, len(NEW), SECTOR)} == {*b"no"}
    assert {len(set(image[""])) for image in images(disk)} == {1, 2}, "torn, and whole"
    disk.apply(Sync(0, folder=False))
    assert not disk.pending
    assert images(disk) == [{"": NEW}] * len(images(disk))


@given(sectors)
def test_a_sector_is_never_a_mixture(seed):
    disk = Disk({"": OLD})
    disk.apply(Write(0, 0, NEW))
    disk.apply(Write(0, SECTOR, b"p" * SECTOR))
    for image in images(disk, seed):
        for at in range(0, len(image[""]), SECTOR):
            assert len(set(image[""][at : at + SECTOR])) <= 1


@given(sectors)
def test_sizes_and_names_are_pending_too(seed):
    disk = Disk({"": OLD})
    disk.apply(Truncate(0, SECTOR))
    disk.apply(Link("-wal", 3))
    disk.apply(Write(3, 0, NEW))
    sizes = {len(image[""]) for image in images(disk, seed)}
    assert sizes <= {SECTOR, len(OLD)}
    assert {"-wal" in image for image in images(disk, seed)} == {True, False}
    disk.apply(Sync(3, folder=True))
    assert all(image["-wal"] == NEW for image in images(disk, seed))
    disk.apply(Unlink("-wal"))
    assert {"-wal" in image for image in images(disk, seed)} == {True, False}
