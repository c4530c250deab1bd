"""Rows that grow: the newest row of a journal takes the next small commits, and whatever was shown of it stays."""

import contextlib
from random import Random

import apsw
import pytest
from energybid.agent.growing import ANCHOR_EVERY, GROW_BYTES, GROW_ENTRIES, Newest
from energybid.agent.history import journal_histories
from energybid.agent.journal import Journal
from energybid.agent.quarantine import rescue
from energybid.agent.rows import Acknowledged, Segment, row_of
from energybid.agent.upload import build_batch
from energybid.agent.verify import verify_journal
from energybid.core import cbor
from energybid.core.cose import verify
from energybid.core.entries import Clock, Epoch
from energybid.core.errors import EvidenceError, JournalDamagedError, JournalError, JournalStalledError
from energybid.core.log import Salts
from energybid.core.prover import inclusion, prove_consistency
from energybid.core.tree import Frontier, leaf_hash, verify_inclusion
from energybid.sync.batch import decode_batch, replay
from hypothesis import given, settings
from hypothesis import strategies as st
from test_agent_journal import HEADEND, KEY, Writer, reading

LOCAL_MAX = 477
"""Bytes of a row that SQLite keeps within a leaf of 512: U − 35 (Database File Format, §1.6)."""


class Growing(Writer):
    """As the agent opens it."""

    def open(self):
        super().open()
        self.journal._newest = Newest(fold=True)


@pytest.fixture
def writer(tmp_path):
    made = Growing(tmp_path / "journal.db")
    made.commit(Epoch("t/g", 1, None))
    yield made
    made.journal.close()


def rows(writer):
    """(first, end) of all rows, without anybody being shown them."""
    return [(s.first, s.end) for s in stranger(writer).segments(1, 0)]


def stranger(writer):
    """Another process that looks at the file."""
    return Journal(apsw.Connection(writer.path, flags=apsw.SQLITE_OPEN_READONLY), writer.path, check=False)


def fill(writer, count, each=1, begin=0):
    for n in range(begin, begin + count):
        writer.commit(*(reading(1000 * n + i) for i in range(each)))


def test_small_commits_of_readings_share_a_row_and_stay_what_they_are(writer):
    fill(writer, 5, each=2)
    assert rows(writer) == [(0, 1), (1, 11)]
    (_, grown) = stranger(writer).segments(1, 0)
    assert grown.previous == (9, Frontier(9, stranger_peaks(writer, 9)).root())
    assert [e.mono_ms for e in grown.entries()] == [1000 * n + i for n in range(5) for i in range(2)]
    signed = stranger(writer).checkpoint(writer.journal.head.epoch, grown)
    assert (signed.checkpoint.previous_size, signed.checkpoint.counter) == (9, 6)
    signed.verify(KEY.public)
    report = verify_journal(apsw.Connection(writer.path), "x", [KEY.public])
    assert (report["verified"], report["entries"], report["checkpoints"]) == (True, 11, 2)
    assert writer.journal.check() == 11
    writer.reopen()
    assert (writer.journal.head.counter, writer.journal.head.frontier.size) == (6, 11)
    fill(writer, 2, begin=5)
    assert rows(writer) == [(0, 1), (1, 11), (11, 13)], "what an earlier run has stored is left as it is"


def stranger_peaks(writer, size):
    frontier, salts = Frontier(), Salts(writer.journal.head.epoch.secret)
    for segment in stranger(writer).segments(1, 0):
        for sequence, entry in enumerate(segment.entries(), segment.first):
            if sequence < size:
                frontier.append(leaf_hash(salts.canonical(sequence, entry)))
    return frontier.peaks


SHOWING = {
    "segments": lambda journal: list(journal.segments(1, 0)),
    "the segment that holds a sequence": lambda journal: next(journal.segments(1, 2)),
    "a batch": lambda journal: build_batch(journal, journal.head.epoch, Salts(journal.head.epoch.secret), 1),
    "last_of": lambda journal: journal.last_of(journal.head.epoch),
    "root_at": lambda journal: journal.root_at(1, 3),
    "check": lambda journal: journal.check(),
    "check_from": lambda journal: journal.check_from(journal.head.epoch, 1, most=1),
    "readable": lambda journal: list(journal.readable(1)),
}


@pytest.mark.parametrize("show", SHOWING.values(), ids=SHOWING)
def test_who_is_given_the_newest_row_keeps_it(writer, show):
    fill(writer, 2)
    show(writer.journal)
    fill(writer, 2, begin=2)
    assert rows(writer) == [(0, 1), (1, 3), (3, 5)]
    assert writer.journal.root_at(1, 3)


@pytest.mark.parametrize("other", [Clock(0, 1, 2, 3, 2), Epoch("t/g", 1, None)])
def test_only_readings_share_a_row(writer, other):
    fill(writer, 1)
    writer.commit(other)
    fill(writer, 2, begin=1)
    assert rows(writer) == [(0, 1), (1, 2), (2, 3), (3, 5)]


def test_rows_fit_their_page_and_end_at_anchors_and_bounds(writer):
    chance = Random(1)
    for n in range(3 * ANCHOR_EVERY):
        writer.commit(*(reading(10 * n + i, (chance.getrandbits(12), chance.getrandbits(9))) for i in range(4)))
    fill(writer, 4, each=GROW_ENTRIES // 2, begin=1000)
    fill(writer, 20, each=2, begin=2000)
    lengths = writer.journal._database.execute(
        "SELECT first, length(checkpoint) + length(columns) + coalesce(length(peaks), 0) FROM segment"
    ).fetchall()
    ends = dict(rows(writer))
    shared = [size for first, size in lengths if len(cbor.decode(seal_at(writer, first))) > 7]
    assert len(shared) > 8
    assert max(shared) <= GROW_BYTES
    assert GROW_BYTES + 3 * 7 + 16 <= LOCAL_MAX, "with the record's header and the integers"
    assert max(end - first for first, end in ends.items()) == GROW_ENTRIES
    anchors = writer.journal._database.execute("SELECT count(*) FROM segment WHERE peaks IS NOT NULL").fetchall()
    assert anchors[0][0] == 1 + writer.journal.head.counter // ANCHOR_EVERY


def seal_at(writer, first):
    return writer.journal._database.execute("SELECT checkpoint FROM segment WHERE first = ?", (first,)).fetchall()[0][0]


def test_batches_begin_and_end_where_rows_do_whatever_has_grown_since(writer):
    epoch, salts = writer.journal.head.epoch, Salts(writer.journal.head.epoch.secret)
    frontier, first = Frontier(), 0
    for n in range(12):
        fill(writer, 3, begin=3 * n)
        batch = build_batch(writer.journal, epoch, salts, first)
        done = replay(decode_batch(batch.frame), origin="t/g", frontier=frontier, key_for=lambda _: KEY.public)
        assert writer.journal.root_at(1, batch.end) == done.checkpoint.checkpoint.root
        frontier, first = done.frontier, batch.end
    assert first == writer.journal.head.frontier.size
    again = build_batch(writer.journal, epoch, salts, 4)
    assert again.first == 4
    with pytest.raises(EvidenceError, match="does not hold entry 5"):
        build_batch(writer.journal, epoch, salts, 5)


def test_every_reading_of_a_grown_row_can_be_proven(writer):
    fill(writer, 6, each=2)
    earlier = writer.journal.last_of(writer.journal.head.epoch)[1]
    fill(writer, 6, each=2, begin=6)
    (history,) = journal_histories(apsw.Connection(writer.path), "x")
    assert [(c.first, c.end) for c in history.commits()] == [(13, 25), (1, 13), (0, 1)]
    for sequence in range(25):
        message, receipt = history.signed(sequence)
        size, root = cbor.decode(verify(message, KEY.public))[3:5]
        assert receipt is None
        leaf = leaf_hash(history.canonical(sequence))
        verify_inclusion(leaf, sequence, size, inclusion(history, sequence, size), root)
    assert history.checkpoint(7) is None
    assert prove_consistency(history, earlier, 25).path


def test_pruning_keeps_the_row_under_the_mark(writer):
    for n in range(4 * ANCHOR_EVERY):
        fill(writer, 1, begin=n)
        if n == 3 * ANCHOR_EVERY + 5:
            size = writer.journal.last_of(writer.journal.head.epoch)[1]
            writer.journal.acknowledge(writer.receipt(size))
    assert len(rows(writer)) < 2 * ANCHOR_EVERY
    while writer.journal.prune(10**9):
        pass
    first, end = rows(writer)[0]
    assert first < end <= size
    assert writer.journal.root_at(1, size)
    assert writer.journal.check() == writer.journal.head.frontier.size - first
    report = verify_journal(apsw.Connection(writer.path), "x", [KEY.public, HEADEND.public])
    assert report["verified"] is True


def changed(seal, place, value):
    fields = cbor.decode(seal)
    fields[place] = value
    return cbor.encode(fields)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (7, 5),
        (7, 6),
        (7, 2),
        (7, 8),
        (7, 2**50),
        (8, 0),
        (8, 1),
        (8, 3),
        (8, 6),
        (8, 7),
        (9, bytes(32)),
        (9, b""),
        (0, bytes(32)),
    ],
)
def test_a_damaged_seal_of_a_grown_row_is_found(writer, place, value):
    fill(writer, 3, each=2)
    database = writer.journal._database
    ((key, seal),) = database.execute("SELECT key, checkpoint FROM segment WHERE first = 1")
    database.execute("UPDATE segment SET checkpoint = ? WHERE key = ?", (changed(seal, place, value), key))
    report = verify_journal(apsw.Connection(writer.path), writer.path, [KEY.public])
    assert report["verified"] is False
    with pytest.raises(JournalError):
        writer.reopen()


def test_what_is_salvaged_of_grown_rows_is_as_it_was(writer, tmp_path):
    fill(writer, 40, each=2)
    with contextlib.closing(Journal(apsw.Connection(str(tmp_path / "new")), "new")) as target:
        source = stranger(writer)
        found = rescue(source, target)
        assert (found.entries, found.unreadable) == (81, 0)
        assert list(target.segments(1, 0)) == list(source.segments(1, 0))
        report = verify_journal(target._database, "new", [KEY.public])
        assert (report["verified"], report["entries"]) == (True, 81)
        segment = list(source.segments(1, 0))[1]
        assert row_of(source.epochs()[0], segment)[0] == 1 << 40 | segment.end


def test_a_commit_that_is_refused_can_be_made_again(writer):
    fill(writer, 3)
    before = rows(writer)
    ((pages,),) = writer.journal._database.execute("PRAGMA page_count")
    writer.journal._database.execute(f"PRAGMA max_page_count = {pages}")
    kept, commit = [], writer.journal.commit
    writer.journal.commit = kept.append
    writer.commit(*(reading(n, tuple(range(n, n + 900))) for n in range(50)))
    with pytest.raises(JournalStalledError):
        commit(kept[0])
    assert rows(writer) == before
    writer.journal._database.execute("PRAGMA max_page_count = 100000")
    commit(kept[0])
    assert rows(writer)[-1][1] == writer.journal.head.frontier.size == 54
    writer.journal.check()


def test_a_damaged_row_costs_only_who_needs_it(writer):
    fill(writer, 3, each=2)
    writer.journal.last_of(writer.journal.head.epoch)
    fill(writer, 3, each=2, begin=5)
    writer.journal._database.execute("UPDATE segment SET checkpoint = zeroblob(9) WHERE first = 1")
    assert [s.first for s in writer.journal.segments(1, 7)] == [7]
    for first in (1, 4, 6):
        with pytest.raises(JournalDamagedError):
            list(writer.journal.segments(1, first))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(1, 6)),
        st.tuples(st.just("large"), st.integers(50, 70)),
        st.sampled_from([("show", 0), ("other", 0), ("reopen", 0), ("epoch", 0), ("acknowledge", 0), ("prune", 0)]),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_whatever_happens_the_log_is_the_same_and_what_was_shown_stays(tmp_path_factory, happenings):
    writer = Growing(tmp_path_factory.mktemp("grown") / "journal.db")
    try:
        model = Model(writer)
        for name, count in happenings:
            getattr(model, name)(count)
        model.agrees()
    finally:
        writer.journal.close()


class Model:
    """What was committed, and what of it was shown."""

    def __init__(self, writer):
        self.writer = writer
        self.entries, self.shown, self.number = [], {}, 0
        writer.commit(Epoch("t/g", 1, None))
        self.entries.append(Epoch("t/g", 1, None))

    def commit(self, count):
        some = [reading(self.number + i) for i in range(count)]
        self.number += count
        self.writer.commit(*some)
        self.entries += some

    large = commit

    def other(self, _):
        self.writer.commit(Clock(0, 1, 2, 3, 2))
        self.entries.append(Clock(0, 1, 2, 3, 2))

    def show(self, _):
        _, size, root = self.writer.journal.last_of(self.writer.journal.head.epoch)
        self.shown[size] = root

    def reopen(self, _):
        self.writer.reopen()
        assert self.writer.journal.check() <= len(self.entries)

    epoch = reopen

    def acknowledge(self, _):
        self.show(0)
        self.writer.journal.acknowledge(self.writer.receipt(max(self.shown)))

    def prune(self, _):
        self.writer.journal.prune(10**9)

    def agrees(self):
        journal = stranger(self.writer)
        (epoch,) = journal.epochs()
        found = list(journal.segments(1, 0))
        first = found[0].first
        assert [e for s in found for e in s.entries()] == self.entries[first:]
        assert journal.check_all(epoch) == (first, len(self.entries))
        report = verify_journal(apsw.Connection(self.writer.path), "x", [KEY.public, HEADEND.public])
        assert report["verified"] is True, report["faults"]
        for size, root in self.shown.items():
            if size > first:
                assert journal.root_at(1, size) == root, "a checkpoint that was shown is gone"
        for sequence in range(first, len(self.entries), 7):
            holding = next(journal.segments(1, sequence))
            assert isinstance(holding, Segment)
            assert holding.first <= sequence < holding.end
        mark = journal.acknowledged()
        assert mark is None or isinstance(mark, Acknowledged)
