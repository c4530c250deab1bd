"""The real journal on a disk that is full, read-only, failing, gone or slow, and after it."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from random import Random

import apsw
import pytest
from energybid.agent import opening
from energybid.agent.system import RealDisk
from energybid.agent.verify import verify_journal
from energybid.core.errors import JournalError, JournalStalledError
from energybid.simulator.virtual import VirtualClock, run
from energybid.sync.system import open_database
from gateways import virtual_platform
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from powercut_faults import FAULTS, FULL, READ, READ_ONLY, SYNC, FaultyDisk
from powercut_history import HEADEND, KEY, ORIGIN, Life, reading, rows
from powercut_judge import memory

DEADLINE_S = 30
many = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
points = st.builds(
    dict,
    name=st.sampled_from(sorted(FAULTS)),
    after=st.integers(0, 40),
    length=st.sampled_from([1, 2, 5, 1 << 30]),
    seed=st.integers(0, 1000),
)


@contextlib.contextmanager
def living(seed):
    """A journal that has lived a little, on a disk that can fail."""
    with memory() as folder, FaultyDisk() as disk:
        life = Life(open_database, folder / "journal.db", Random(seed))
        try:
            life.begin_epoch()
            for _ in range(life.random.randrange(12)):
                life.step()
            if life.log is None:
                life.begin_epoch()
            disk.watch(life.journal._database)
            yield life, disk
        finally:
            disk.mend()
            life.journal.close()


def verified(life):
    with contextlib.closing(apsw.Connection(life.path)) as database:
        report = verify_journal(database, life.path, [KEY.public, HEADEND.public])
    return report["verified"] is True or not report["entries"]


def expected(error, point):
    """SQLite calls what can not be read damaged; of a disk that does not write the journal must say that it waits."""
    assert isinstance(error, JournalStalledError) or point["name"] in {"read", "gone"}, error


@pytest.mark.untraced
@many
@given(points)
def test_the_same_journal_takes_the_same_commit_when_the_disk_is_well_again(point):
    with living(point["seed"]) as (life, disk):
        disk.fail(FAULTS[point["name"]], after=point["after"], length=point["length"])
        refused = None
        for _ in range(5):
            before = rows_or_none(life)
            commit = life.seal([reading(life.random)] * life.random.choice((1, 60)))
            try:
                life.journal.commit(commit)
            except JournalError as error:
                expected(error, point)
                refused = commit
                break
        disk.mend()
        if refused:
            assert before in (None, rows(life.journal)), "a refused commit is stored, or damaged something"
            life.journal.commit(refused)
        assert life.journal.head.frontier.size == life.log.size
        life.journal.check()
        life.commit()
        assert verified(life)


def rows_or_none(life):
    """What is stored, if the disk can be read."""
    try:
        return rows(life.journal)
    except apsw.Error:
        return None


@pytest.mark.untraced
@many
@given(points)
def test_whatever_the_journal_does_a_new_one_finds_all_that_was_committed(point):
    with living(point["seed"]) as (life, disk):
        disk.fail(FAULTS[point["name"]], after=point["after"], length=point["length"])
        stored, refused = rows_or_none(life), False
        head = life.journal.head
        for _ in range(5):
            try:
                life.step()
            except JournalError as error:
                refused = True
                expected(error, point)
                break
            stored, head = rows_or_none(life), life.journal.head
        disk.mend()
        life.journal.close()
        life.open()
        assert refused or stored in (None, rows(life.journal))
        found = life.journal.head
        assert found.counter >= head.counter
        if found.epoch == head.epoch:  # what was refused at the sync may be found, as a whole
            assert life.journal.root_at(head.epoch.number, head.frontier.size) == head.frontier.root()
        life.journal.check()
        life.commit()
        assert verified(life)


@many
@given(points)
def test_opening_on_a_failing_disk_says_so_and_harms_nothing(point):
    with living(point["seed"]) as (life, disk):
        stored, head = rows(life.journal), life.journal.head
        life.journal.close()
        disk.fail(FAULTS[point["name"]], after=point["after"], length=point["length"])
        with contextlib.suppress(JournalError):
            life.open()
            life.journal.close()
        disk.mend()
        life.open()
        assert (rows(life.journal), life.journal.head.counter) == (stored, head.counter)
        life.commit()
        assert verified(life)


def reads_failing(disk, path, number):
    """What comes of an opening in which one read fails: what the agent's own code raises, and the times it looked."""
    looked = []

    def looking(path):
        looked.append(path)
        return open_database(path)

    async def main():
        platform = virtual_platform(VirtualClock(), disk=RealDisk(), open_database=looking)
        disk.fail(READ, after=number, length=1)
        settings = {"commit_interval_s": 1, "keep_s": 1, "headend_key": HEADEND.public}
        recorder = await opening.open_recorder(platform, path, ORIGIN, KEY, **settings)
        disk.mend()
        await recorder.close()

    try:
        run(main)
    except JournalError as error:  # the service manager starts the agent again
        return error, len(looked)
    return None, len(looked)


@pytest.mark.untraced
def test_an_intact_journal_is_kept_whichever_read_fails_once():
    with living(3) as (life, disk):
        for _ in range(20):
            life.commit()
        stored = rows(life.journal)
        life.journal.close()
        twice = hits = 0
        for number in range(30):
            error, looked = reads_failing(disk, life.path, number)
            hits += disk.hits
            twice += error is None and looked == 2
            disk.mend()
            assert RealDisk().size(f"{life.path}.quarantine-1") is None
        assert twice, "some of them look like damage"
        assert hits > 10
        life.open()
        assert rows(life.journal) == stored


@many
@given(points)
def test_a_journal_that_could_not_be_made_can_be_made_later(point):
    with memory() as folder, FaultyDisk() as disk:
        disk.fail(FAULTS[point["name"]], after=point["after"], length=point["length"])
        life = None
        with contextlib.suppress(JournalError):
            life = Life(open_database, folder / "journal.db", Random(1))
            life.begin_epoch()
        disk.mend()
        if life:
            life.journal.close()
        life = Life(open_database, folder / "journal.db", Random(2))
        life.begin_epoch()
        life.commit()
        assert verified(life)
        life.journal.close()


@pytest.mark.parametrize(("fault", "words"), [(FULL, "full"), (READ_ONLY, "I/O error"), (SYNC, "I/O error")])
def test_a_refusal_names_the_file_and_the_fault(fault, words):
    with living(1) as (life, disk):
        disk.fail(fault)
        with pytest.raises(JournalError, match=rf"journal\.db: .*{words}"):
            life.commit()
        assert disk.hits


def test_a_commit_returns_only_when_a_slow_sync_has_ended():
    with living(1) as (life, disk), ThreadPoolExecutor(1) as pool:
        begun, go_on = threading.Event(), threading.Event()

        def slow():
            begun.set()
            assert go_on.wait(DEADLINE_S)

        disk.on_sync = slow
        committed = pool.submit(life.journal.commit, life.seal([reading(life.random)]))
        assert begun.wait(DEADLINE_S)
        assert not committed.done()
        go_on.set()
        committed.result(DEADLINE_S)
        assert verified(life)
