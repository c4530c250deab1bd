"""The journal on real SQLite files."""

import apsw
import pytest
from energybid.agent.growing import ANCHOR_EVERY, Commit
from energybid.agent.journal import Journal
from energybid.agent.rows import MIGRATIONS, Acknowledged
from energybid.agent.verify import verify_journal
from energybid.core.cose import PrivateKey
from energybid.core.entries import Epoch, Known, Reading
from energybid.core.errors import EvidenceError, JournalDamagedError, JournalError
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log

KEY = PrivateKey.from_entropy(b"gateway." * 6)
HEADEND = PrivateKey.from_entropy(b"headend." * 6)
SECRET = b"s" * 32


class Writer:
    """A journal and the log that goes with it."""

    def __init__(self, path):
        self.path = str(path)
        self.open()

    def open(self):
        self.journal = Journal(apsw.Connection(self.path), self.path)
        head = self.journal.head or self.journal.begin_epoch(id_=b"e" * 16, origin="t/g", secret=SECRET)
        self.log = Log(
            origin="t/g",
            epoch=b"e" * 16,
            secret=SECRET,
            signer=KEY,
            frontier=head.frontier.copy(),
            counter=head.counter,
        )

    def commit(self, *entries: Known, acknowledged=None, time_ms=0):
        before = self.log.peaks
        for entry in entries:
            self.log.append(entry)
        checkpoint = self.log.checkpoint(time_ms, 2)
        self.journal.commit(Commit(entries, checkpoint, before, self.log.peaks, acknowledged))

    def receipt(self, size):
        root = self.journal.root_at(1, size)
        return Acknowledged(1, size, sign_receipt(Receipt("t/g", b"e" * 16, size, root, 5), HEADEND))

    def reopen(self):
        self.journal.close()
        self.open()


def reading(n, values=(230, 500)):
    return Reading(0, 0, 1_790_000_000_000 + n, 3, 2, 0, n, values, None)


@pytest.fixture
def writer(tmp_path):
    made = Writer(tmp_path / "journal.db")
    yield made
    made.journal.close()


def entries_of(journal):
    return [entry for segment in journal.segments(1, 0) for entry in segment.entries()]


def test_what_was_committed_is_there_after_reopening(writer):
    writer.commit(Epoch("t/g", 1, None), reading(1))
    writer.commit(reading(2), reading(3))
    writer.reopen()
    assert entries_of(writer.journal) == [Epoch("t/g", 1, None), reading(1), reading(2), reading(3)]
    assert writer.journal.check() == 4
    writer.commit(reading(4))
    assert writer.journal.check() == 5


def test_wal_full_and_small_pages(writer):
    run = writer.journal._database.execute
    assert [next(run(f"PRAGMA {p}"))[0] for p in ("journal_mode", "synchronous", "page_size")] == ["wal", 2, 512]


def test_segments_begin_at_the_one_that_holds_a_sequence(writer):
    for n in range(5):
        writer.commit(reading(2 * n), reading(2 * n + 1))
    assert [s.first for s in writer.journal.segments(1, 5)] == [4, 6, 8]
    assert [s.first for s in writer.journal.segments(1, 6)] == [6, 8]
    assert not list(writer.journal.segments(1, 10))
    assert not list(writer.journal.segments(2, 0))


def test_a_commit_that_does_not_continue_the_journal_is_the_callers_bug(writer):
    writer.commit(reading(1))
    checkpoint = writer.log.checkpoint(0, 2)
    with pytest.raises(ValueError, match="journal ends at 1"):
        writer.journal.commit(Commit([reading(1)], checkpoint, (), (), None))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE segment SET columns = substr(columns, 1, length(columns) - 1) WHERE first = 2",
        "UPDATE segment SET columns = zeroblob(length(columns)) WHERE first = 2",
        "UPDATE segment SET columns = (SELECT columns FROM segment WHERE first = 0) WHERE first = 2",
        "DELETE FROM segment WHERE first = 2",
        "UPDATE segment SET peaks = zeroblob(32) WHERE first = 0",
        "UPDATE segment SET checkpoint = zeroblob(length(checkpoint)) WHERE first = 4",
        "UPDATE segment SET first = 3 WHERE first = 2",
        "UPDATE epoch SET secret = zeroblob(32)",
    ],
)
def test_damage_is_found_when_opening_and_by_verify(writer, damage):
    for n in range(3):
        writer.commit(reading(2 * n), reading(2 * n + 1))
    writer.journal._database.execute(damage)
    with pytest.raises(JournalError, match=writer.path):
        writer.reopen()
    database = apsw.Connection(writer.path)
    report = verify_journal(database, writer.path, [KEY.public])
    assert report["verified"] is False
    assert report["faults"]


def test_verify_checks_signatures_and_the_receipt(writer, tmp_path):
    writer.commit(Epoch("t/g", 1, None), reading(1))
    writer.commit(reading(2))
    writer.commit(reading(3), acknowledged=writer.receipt(3))
    report = verify_journal(apsw.Connection(writer.path), "x", [KEY.public, HEADEND.public])
    assert report["verified"] is True
    assert (report["entries"], report["readings"], report["checkpoints"], report["acknowledged"]) == (4, 3, 3, 3)
    assert verify_journal(apsw.Connection(writer.path), "x", [])["signatures"].startswith("not checked")
    for keys, missing in (([KEY.public], "stored receipt"), ([HEADEND.public], "was not given")):
        report = verify_journal(apsw.Connection(writer.path), "x", keys)
        assert report["verified"] is False
        assert missing in report["faults"][0]
    writer.journal._database.execute("UPDATE acknowledged SET size = 2")
    report = verify_journal(apsw.Connection(writer.path), "x", [KEY.public, HEADEND.public])
    assert "does not fit the log" in report["faults"][0]
    other = apsw.Connection(str(tmp_path / "other.db"))
    other.execute("CREATE TABLE segment (x)")
    assert verify_journal(other, "x", []) is None


def test_only_acknowledged_history_is_pruned_and_what_stays_can_be_checked(writer):
    for n in range(3 * ANCHOR_EVERY):
        writer.commit(reading(n), time_ms=n)
    assert writer.journal.prune(10**9) == 0, "nothing is acknowledged"
    writer.commit(reading(0), acknowledged=writer.receipt(2 * ANCHOR_EVERY + 5), time_ms=10**6)
    assert writer.journal.prune(3) == 0, "too young, and the check needs an anchor"
    gone = writer.journal.prune(10**9)
    assert gone == 2 * ANCHOR_EVERY - 1, "up to the last anchor below the mark"
    assert writer.journal.prune(10**9) == 0
    first = next(writer.journal.segments(1, 0))
    assert first.first == gone
    assert writer.journal.check() == 3 * ANCHOR_EVERY + 1 - gone
    assert writer.journal.check(most=10) < 10 + ANCHOR_EVERY + 1
    report = verify_journal(apsw.Connection(writer.path), "x", [KEY.public, HEADEND.public])
    assert report["verified"] is True
    with pytest.raises(EvidenceError, match="not kept"):
        writer.journal.checkpoint(writer.journal.head.epoch, first)


@pytest.mark.parametrize("seal", [b"\x01", b"\xff", b"\x82\x40\x01"])
def test_a_damaged_seal_that_pruning_meets_is_damage(writer, seal):
    """It may lie before what is checked at a start: any other error would end the agent at each start anew."""
    for n in range(2 * ANCHOR_EVERY):
        writer.commit(reading(n), time_ms=n)
    writer.commit(reading(0), acknowledged=writer.receipt(2 * ANCHOR_EVERY), time_ms=10**6)
    writer.journal._database.execute("UPDATE segment SET checkpoint = ? WHERE first = 5", (seal,))
    with pytest.raises(JournalDamagedError, match="segment at 6"):
        writer.journal.prune(10**9)


def test_a_new_epoch_begins_at_zero_and_keeps_the_counter(writer):
    writer.commit(reading(1), acknowledged=None)
    counter = writer.journal.head.counter
    head = writer.journal.begin_epoch(id_=b"f" * 16, origin="t/g", secret=b"r" * 32)
    assert (head.epoch.number, head.frontier.size, head.counter) == (2, 0, counter)
    assert writer.journal.check() == 0
    assert [e.id for e in writer.journal.epochs()] == [b"e" * 16, b"f" * 16]


def test_a_newer_version_is_left_alone(writer):
    writer.journal._database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(JournalError, match="upgrade"):
        writer.reopen()


def test_a_full_disk_stores_nothing_of_the_commit_and_says_so(writer):
    writer.commit(reading(1))
    pages = next(writer.journal._database.execute("PRAGMA page_count"))[0]
    writer.journal._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(JournalError, match="full"):
        writer.commit(*(reading(n, tuple(range(n, n + 900))) for n in range(50)))
    assert writer.journal.head.frontier.size == 1
    writer.reopen()
    assert entries_of(writer.journal) == [reading(1)]
    writer.commit(reading(2))


def test_a_file_that_is_no_database_is_a_journal_error(tmp_path):
    path = tmp_path / "x.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalError, match=r"x\.db"):
        Journal(apsw.Connection(str(path)), str(path))
