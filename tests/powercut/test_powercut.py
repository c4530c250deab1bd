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
from energybid.simulator.decoding import remembered
from hypothesis import given
from hypothesis import strategies as st
from powercut_disk import SECTOR, Disk, ways
from powercut_history import Spoilt
from powercut_judge import Campaign, Cut, Found, memory
from powercut_recorder import Forget, Link, Mark, Sync, Truncate, Unlink, Write

SEEDS = int(os.environ.get("ENERGYBID_POWER_SEEDS", "12"))
CUTS = 10_000
"""Different disks that must be judged at the least, over all seeds."""
SHARE = float(os.environ.get("ENERGYBID_POWER_SHARE", "0.07"))
"""Of all cuts of a seed's lives, how many are judged."""

totals = Found(0, 0, 0, [])


pytestmark = pytest.mark.untraced


@pytest.fixture(autouse=True)
def _quick():
    with remembered():
        yield


@pytest.mark.parametrize("failing", [False, True], ids=["good", "syncs-fail"])
@pytest.mark.parametrize("seed", range(SEEDS))
def test_no_power_cut_loses_what_was_committed(seed, failing):
    global totals  # noqa: PLW0603  the last test prints their sum
    with memory() as folder:
        found = Campaign(seed, folder, Spoilt(failing=failing)).run(SHARE)
    totals = Found(*(a + b for a, b in zip(totals, found, strict=True)))
    assert not found.faults, explained(found.faults[0], failing)
    assert found.lost == 0


def explained(fault, failing):
    cut, what = fault
    flag = " --failing" if failing else ""
    return f"cut {cut}: {what}\nreplay it: .venv/bin/python tests/powercut/replay.py {cut}{flag}"


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
    [(Spoilt(synchronous="NORMAL"), 0.1), (Spoilt(synchronous="OFF"), 0.3), (Spoilt(deaf=True), 0.3)],
    ids=["synchronous-normal", "synchronous-off", "a-disk-that-lies"],
)
def test_a_spoilt_journal_is_caught(spoilt, least, capsys):
    """The twins of the test above: without the syncs, much is lost, and the judge sees it."""
    with memory() as folder:
        campaign = Campaign(2, folder, spoilt)
        found = campaign.run(0.2)
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
        for seed in range(SEEDS):
            for _, history in Campaign(seed, folder, Spoilt(failing=True)).lives():
                seen.update(happenings(history))
    with capsys.disabled():
        sys.stdout.write("\n" + ", ".join(f"{number} × {what}" for what, number in sorted(seen.items())) + "\n")
    assert min(seen.values()) >= SEEDS // 2
    assert len(seen) == 9


def happenings(history):
    kinds = {"": "database", "-wal": "WAL", "-journal": "rollback journal"}
    names = dict(enumerate(kinds.values()))
    names |= {made.file: kinds[made.name] for made in history.operations if isinstance(made, Link)}
    for before, operation in pairwise([Mark(0), *history.operations]):
        match operation:
            case Link(_, file):
                yield f"{names[file]} created"
            case Unlink("-wal"):
                yield "WAL removed at close"
            case Write(file, 0) if names[file] == "WAL":
                yield "WAL begun again"
            case Truncate(file):
                yield f"size of the {names[file]} set"
            case Sync(file) if names[file] == "database" and isinstance(before, Write | Truncate):
                yield "checkpoint of the WAL into the database"
            case Forget():
                yield "failed sync"


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
