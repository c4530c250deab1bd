"""Damaged journals: what is found, kept, salvaged, and how the log goes on."""

import asyncio
import contextlib
import random
import shutil
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from energybid.agent import quarantine
from energybid.agent.growing import Commit
from energybid.agent.journal import Journal
from energybid.agent.opening import open_journal, open_recorder
from energybid.agent.quarantine import QUARANTINES_MAX, quarantines, rescue
from energybid.agent.rows import MIGRATIONS, Acknowledged, Contradiction, Succession, walk
from energybid.agent.system import RealDisk
from energybid.core.entries import Epoch, Reading, Start
from energybid.core.errors import JournalDamagedError, JournalError, RollbackError
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log
from energybid.core.ports import Sample
from energybid.core.tree import EMPTY_ROOT, Frontier
from energybid.simulator.virtual import VirtualClock, run
from gateways import HEADEND, KEY, recording, virtual_platform

COMMITS, ACKNOWLEDGED = 200, 120


def write(path, *, commits=COMMITS, acknowledged=ACKNOWLEDGED):
    """A journal of some hundred small commits, closed."""

    async def main():
        clock = VirtualClock()
        rng = random.Random(4)
        async with recording(virtual_platform(clock), path, commit_interval_s=3600.0) as recorder:
            for n in range(commits):
                values = tuple(rng.getrandbits(60) for _ in range(30))
                recorder.reading(0, 0, Sample(clock.now_ns() // 1_000_000, 1, n, values, None))
                await recorder.commit()
                if n == acknowledged:
                    size = recorder.committed
                    root = recorder.journal.root_at(1, size)
                    receipt = Receipt("t/g", recorder.epoch.id, size, root, 1)
                    recorder.acknowledge(size, sign_receipt(receipt, HEADEND))
            return recorder.epoch.id, recorder.committed

    return run(main)


def start(path, *, seed=9, key=HEADEND.public):
    """Open as the agent does, begin, and stop."""

    async def main():
        platform = virtual_platform(VirtualClock(), disk=RealDisk(), seed=seed)
        recorder = await open_recorder(platform, str(path), "t/g", KEY, commit_interval_s=1, keep_s=1, headend_key=key)
        try:
            recorder.started("2", bytes(32))
            await recorder.close()
        except JournalDamagedError as error:  # found by the first commit: as energybid.agent.process does
            recorder.discard()
            await recorder.close()
            quarantine.replace(platform, str(path), "t/g", error, key)

    run(main)


def reopen(path, **options):
    """The journal after a start of the agent."""
    start(path, **options)
    return Journal(apsw.Connection(str(path)), str(path))


def readings_of(journal, number, first=0):
    segments = journal.segments(number, first)
    return [e for s in segments for e in s.entries() if isinstance(e, Reading)]


def page_of(path, sequence, column="columns"):
    """File offset of the page that holds the start of a segment's columns."""
    database = apsw.Connection(str(path))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ((blob,),) = database.execute(
        f"SELECT {column} FROM segment WHERE first <= ? ORDER BY key DESC LIMIT 1", (sequence,)
    )
    database.close()
    return Path(path).read_bytes().index(blob[:64])


def flip(path, offset, count=1):
    data = bytearray(Path(path).read_bytes())
    for n in range(count):
        data[offset + n] ^= 0x55
    Path(path).write_bytes(data)


def test_a_flip_in_the_tail_begins_a_new_epoch_and_salvages_what_verifies_before_it(tmp_path):
    path = tmp_path / "j"
    old, size = write(path)
    before = path.read_bytes()
    offset = page_of(path, 160)
    flip(path, offset)
    journal = reopen(path)
    first, new = journal.epochs()
    assert (first.id, new.number) == (old, first.number + 1)
    succession = journal.succession(new.number)
    assert succession.kind == "damaged"
    assert "quarantine-1" in succession.reason
    (undelivered,) = journal.undelivered()
    assert undelivered[1:] == (ACKNOWLEDGED + 3, 160), "from the mark to the damage"
    assert succession.previous == journal.last_of(first) == journal.previous_of(new)
    assert succession.previous[1] == 160
    (opening, start, *_) = [e for s in journal.segments(new.number, 0) for e in s.entries()]
    assert isinstance(opening, Epoch)
    assert opening.previous == succession.previous
    assert isinstance(start, Start)
    assert journal.head.counter > COMMITS, "counters go on"
    journal.close()
    kept = Path(f"{path}.quarantine-1")
    assert len(kept.read_bytes()) >= len(before)
    target = Journal(apsw.Connection(str(tmp_path / "out")), "out")
    source = Journal(apsw.Connection(str(kept)), "kept", check=False)
    found = rescue(source, target)
    assert found.unreadable <= 1
    assert found.entries >= size - 2
    assert len(readings_of(target, 1)) >= COMMITS - 1, "also what lies behind the damage"
    assert size == COMMITS + 2


def test_what_follows_the_mark_can_be_delivered_where_an_anchor_begins_there(tmp_path):
    write(tmp_path / "first")
    journal = Journal(apsw.Connection(str(tmp_path / "first")), "first")
    anchor = next(s.first for s in journal.segments(1, 80) if s.peaks)
    journal.close()
    path = tmp_path / "j"
    _, size = write(path, acknowledged=anchor - 3)
    flip(path, page_of(path, size - 20))
    journal = reopen(path)
    ((epoch, first, _),) = journal.undelivered()
    assert first == anchor
    assert journal.root_at(epoch.number, first), "the checkpoint of what follows names it"
    journal.close()


def test_damage_before_the_mark_names_the_receipt(tmp_path):
    path = tmp_path / "j"
    old, _ = write(path)
    flip(path, page_of(path, 110))
    journal = reopen(path)
    succession = journal.succession(2)
    assert succession.previous[:2] == (old, ACKNOWLEDGED + 3), "the last receipted root"
    assert journal.undelivered() == []


@pytest.mark.parametrize("how", ["header", "truncated", "text", "zeros"])
def test_what_is_no_database_any_more_is_kept_and_reading_goes_on(tmp_path, how):
    path = tmp_path / "j"
    write(path)
    data = path.read_bytes()
    broken = {
        "header": b"\xff" * 100 + data[100:],
        "truncated": data[: len(data) // 2 + 77],
        "text": b"this is no database, whatever it was before " * 40,
        "zeros": bytes(4096),
    }[how]
    path.write_bytes(broken)
    for left in ("-wal", "-shm"):
        Path(f"{path}{left}").unlink(missing_ok=True)
    journal = reopen(path)
    assert journal.succession(journal.head.epoch.number).kind == "damaged"
    assert journal.head.counter > COMMITS
    assert Path(f"{path}.quarantine-1").read_bytes()[: len(broken)] == broken or how == "truncated"
    assert journal.check() >= 1


def test_a_healthy_journal_and_a_locked_or_newer_one_are_never_set_aside(tmp_path):
    path = tmp_path / "j"
    write(path)
    journal = reopen(path)
    assert [e.number for e in journal.epochs()] == [1]
    journal._database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    journal.close()
    with pytest.raises(JournalError, match="upgrade"):
        reopen(path)
    assert quarantines(RealDisk(), str(path)) == []
    database = apsw.Connection(str(path))
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS)}; BEGIN EXCLUSIVE")
    database.close()


@pytest.mark.untraced
def test_flips_anywhere_are_survived(tmp_path):
    """Whatever byte is flipped: the agent starts, and what it cannot prove whole is kept."""
    path = tmp_path / "j"
    write(path, commits=60, acknowledged=20)
    database = apsw.Connection(str(path))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    data = path.read_bytes()
    rng = random.Random(11)
    replaced, told = 0, []
    for n in range(40):
        there = tmp_path / f"d{n}" / "j"
        there.parent.mkdir()
        flipped = bytearray(data)
        flipped[rng.randrange(100 if n % 4 == 0 else len(data)) if n % 4 else rng.randrange(100)] ^= 1 << rng.randrange(
            8
        )
        there.write_bytes(flipped)
        try:
            journal = reopen(there)
        except JournalError as error:  # a newer version, or a write version that says read-only: the operator is told
            told.append(error)
            continue
        if quarantines(RealDisk(), str(there)):
            replaced += 1
            assert Path(f"{there}.quarantine-1").stat().st_size
        journal.check()
        journal.close()
        shutil.rmtree(there.parent)
    assert replaced > 15
    assert not [error for error in told if isinstance(error, JournalDamagedError)]


def test_a_text_that_is_no_text_any_more_is_damage(tmp_path):
    """One bit of the origin's name in the epoch's row: SQLite hands it on, and it is no UTF-8."""
    path = tmp_path / "j"
    write(path, commits=3)
    database = apsw.Connection(str(path))
    database.execute("UPDATE epoch SET origin = CAST(? AS TEXT)", (b"demo/gw-\xb1",))
    database.close()
    journal = reopen(path)
    assert len(quarantines(RealDisk(), str(path))) == 1
    journal.check()
    journal.close()


@pytest.mark.parametrize("value", [None, "text", 7, b"\x80"])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        *(("segment", column) for column in ("first", "checkpoint", "method", "columns", "peaks")),
        *(("epoch", column) for column in ("id", "origin", "secret")),
        *(("acknowledged", column) for column in ("epoch", "size", "receipt")),
        *(("succession", column) for column in ("kind", "reason", "time_ms", "previous", "counter")),
        *(("memory", column) for column in ("key", "value")),
    ],
)
def test_a_row_that_damage_gave_other_types_is_damage_and_nothing_else(tmp_path, table, column, value):
    path = tmp_path / "j"
    database = apsw.Connection(str(path))
    with contextlib.closing(Journal(database, "j")) as journal:
        why = Succession("damaged", "test", 1, (bytes(16), 0, EMPTY_ROOT), 7)
        head = journal.begin_epoch(id_=bytes(16), origin="t/g", secret=bytes(32), succession=why)
        log = Log(origin="t/g", epoch=bytes(16), secret=bytes(32), signer=KEY, frontier=Frontier(), counter=7)
        log.append(Epoch("t/g", 1, why.previous))
        journal.commit(Commit([Epoch("t/g", 1, why.previous)], log.checkpoint(1, 1), (), log.peaks, None))
        journal.acknowledge(Acknowledged(head.epoch.number, 1, b"receipt"))
        journal.remember("name", b"value")
        database.execute("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '')")
    database = apsw.Connection(str(path))
    database.execute("PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '')")
    database.close()
    database = apsw.Connection(str(path))
    database.execute(f"UPDATE {table} SET {column} = ?", (value,))
    with contextlib.closing(database), contextlib.suppress(JournalDamagedError):
        journal = Journal(database, "j")
        journal.check()
        assert all(type(kept) is bytes for kept in journal.recall().values())
        journal.undelivered()
        journal.anchor_at(journal.epochs()[0], 1)
    start(path)  # what that reads is looked at while the journal can still be replaced


def test_old_tails_verify_in_the_new_journal(tmp_path):
    path = tmp_path / "j"
    write(path)
    flip(path, page_of(path, 160))
    journal = reopen(path)
    epoch = journal.epochs()[0]
    ends = [segment.end for segment, _ in walk(epoch, journal.segments(1, 0))]
    assert ends[-1] == 160
    assert journal.checkpoint(epoch, next(journal.segments(1, 130))).verify(KEY.public) is None


def test_damage_found_while_the_agent_reads_is_a_damaged_journal(tmp_path):
    path = tmp_path / "j"
    write(path)
    offset = page_of(path, 20)
    flip(path, offset)
    journal = Journal(apsw.Connection(str(path)), str(path))
    journal.check(most=10)
    with pytest.raises(JournalDamagedError):
        journal.check_from(journal.head.epoch, 20, most=100)
    with pytest.raises(JournalDamagedError):
        journal.check_all(journal.head.epoch)


def test_too_many_quarantines_stop_the_agent(tmp_path):
    path = tmp_path / "j"
    for n in range(QUARANTINES_MAX):
        path.write_bytes(b"damaged %d" % n * 200)
        reopen(path, seed=n).close()
    assert len(quarantines(RealDisk(), str(path))) == QUARANTINES_MAX
    path.write_bytes(b"once more" * 200)
    for left in ("-wal", "-shm"):
        Path(f"{path}{left}").unlink(missing_ok=True)
    with pytest.raises(JournalError, match="replace the disk"):
        reopen(path)


def test_quarantines_are_numbered_on_from_the_newest(tmp_path):
    path, disk = tmp_path / "j", RealDisk()

    def damaged(text):
        path.write_bytes(text)
        return Path(quarantine.set_aside(disk, str(path))).name

    assert [damaged(b"x") for _ in range(QUARANTINES_MAX)] == [f"j.quarantine-{n}" for n in range(1, 9)]
    for n in range(1, 8):
        Path(f"{path}.quarantine-{n}").unlink()
    assert damaged(b"newest") == "j.quarantine-9"
    assert Path(quarantines(disk, str(path))[-1]).read_bytes() == b"newest"
    Path(f"{path}.quarantine-9").rename(f"{path}.quarantine-99")
    with pytest.raises(JournalError, match="move the quarantined files away"):
        damaged(b"x")
    for kept in quarantines(disk, str(path)):
        Path(kept).unlink()
    assert damaged(b"x") == "j.quarantine-1"


def test_a_quarantine_that_a_power_cut_interrupted_is_completed(tmp_path):
    path, disk = tmp_path / "j", RealDisk()
    write(path)
    Path(f"{path}-wal").write_bytes(b"the old log")
    path.rename(f"{path}.quarantine-1")
    quarantine.complete(disk, str(path))
    assert Path(f"{path}.quarantine-1-wal").read_bytes() == b"the old log"
    Path(f"{path}-wal").write_bytes(b"whose?")
    with pytest.raises(JournalError, match="put the journal back"):
        quarantine.complete(disk, str(path))


def test_without_a_disk_to_rename_on_damage_stops_the_agent(tmp_path):
    path = tmp_path / "j"
    path.write_bytes(b"no database" * 200)

    async def main():
        await open_recorder(virtual_platform(VirtualClock()), str(path), "t/g", KEY, commit_interval_s=1, keep_s=1)

    with pytest.raises(JournalDamagedError):
        run(main)


# ---------------------------------------------------------------- rollback


def test_a_contradicted_journal_signs_nothing_until_an_epoch_is_begun_by_hand(tmp_path):
    path = tmp_path / "j"
    old, size = write(path)
    journal = Journal(apsw.Connection(str(path)), str(path))
    receipt = sign_receipt(Receipt("t/g", old, size + 50, b"r" * 32, 1), HEADEND)
    journal.contradict(Contradiction("the head-end signed for more", receipt))
    journal.close()
    with pytest.raises(RollbackError, match=r"signed for more.*new-epoch"):
        reopen(path)
    journal = Journal(apsw.Connection(str(path)), str(path))
    assert journal.head.frontier.size == size, "nothing was signed"
    named = (old, size + 50, b"r" * 32)
    journal.begin_epoch(
        id_=b"n" * 16, origin="t/g", secret=b"s" * 32, succession=Succession("rolled back", "x", 5, named, 0)
    )
    assert journal.contradiction() is None
    assert journal.undelivered() == [], "what was rolled back is not sent"
    journal.close()
    journal = reopen(path)
    (opening, *_) = [e for s in journal.segments(2, 0) for e in s.entries()]
    assert opening.previous == named


def test_a_journal_of_the_first_version_is_brought_up_to_date(tmp_path):
    path = tmp_path / "j"
    database = apsw.Connection(str(path))
    database.execute(f"PRAGMA page_size = 512; BEGIN; {MIGRATIONS[0]} PRAGMA user_version = 1; COMMIT")
    database.execute("INSERT INTO epoch VALUES (1, ?, 't/g', ?)", (b"e" * 16, b"s" * 32))
    database.close()
    old = Journal(apsw.Connection(str(path)), str(path), check=False)
    assert (old.version, old.contradiction(), old.succession(1), old.undelivered()) == (1, None, None, [])
    old.close()
    journal = reopen(path)
    assert journal.version == len(MIGRATIONS) == 3
    assert [e.id for e in journal.epochs()] == [b"e" * 16]
    assert next(journal._database.execute("PRAGMA application_id"))[0] == int.from_bytes(b"EBJL", "big")


def test_marks_of_older_epochs_leave_what_follows_undelivered(tmp_path):
    path = tmp_path / "j"
    _, size = write(path)
    journal = Journal(apsw.Connection(str(path)), str(path))
    journal.begin_epoch(id_=b"n" * 16, origin="t/g", secret=b"s" * 32)
    assert [u[1:] for u in journal.undelivered()] == [(ACKNOWLEDGED + 3, size)]
    journal.acknowledge(Acknowledged(1, size, b"r"))
    assert journal.undelivered() == []
    journal.acknowledge(Acknowledged(2, 0, b"r"))
    assert journal.undelivered() == []
    assert asyncio.iscoroutinefunction(open_recorder)


class KilledError(Exception):
    """The process ends here."""


@pytest.mark.untraced
@pytest.mark.parametrize("steps", range(14))
def test_a_replacement_that_is_interrupted_is_made_again(tmp_path, monkeypatch, steps):
    """Wherever it stops: the damaged epoch is never signed in again, and the new one names its end."""
    path = tmp_path / "j"
    old, _ = write(path, commits=70, acknowledged=30)
    flip(path, page_of(path, 50))
    left = [steps]

    def counted(real):
        def call(*arguments):
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            return real(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_transaction", counted(Journal._transaction))
        patch.setattr(RealDisk, "reserve", counted(RealDisk.reserve))
        patch.setattr(RealDisk, "rename", counted(RealDisk.rename))
        with contextlib.suppress(KilledError):
            reopen(path).close()
    journal = reopen(path)
    first, new = journal.epochs()
    assert (first.id, journal.undelivered()[0][0].id) == (old, old)
    succession = journal.succession(new.number)
    assert (succession.kind, succession.previous) == ("damaged", journal.last_of(first))
    assert "quarantine-1" in succession.reason
    journal.close()
    assert {file.name for file in tmp_path.iterdir()} == {"j", "j.quarantine-1"}


class _FullAtClose:
    """A database on a disk that is full by the time it is closed: the write-ahead log can not be folded in."""

    def __init__(self, connection):
        self._connection = connection
        self.closed = False

    def __getattr__(self, name):
        return getattr(self._connection, name)

    def close(self, *, force=False):
        self._connection.close(force)
        self.closed = True
        raise apsw.FullError("no space left on device")


@pytest.mark.parametrize("damage", [b"not a database at all" * 500, None])
def test_a_disk_that_is_full_when_a_damaged_journal_is_closed_does_not_hide_the_damage(tmp_path, damage):
    """Found by a simulated world: the error of closing came in place of the one that says what to do."""
    path = tmp_path / "journal.db"
    write(path, commits=20, acknowledged=5)
    if damage:
        path.write_bytes(damage)
    else:
        flip(path, page_of(path, 20), 40)
    opened = []

    def open_database(name):
        opened.append(_FullAtClose(apsw.Connection(name)))
        return opened[-1]

    platform = replace(virtual_platform(VirtualClock()), open_database=open_database)
    with pytest.raises(JournalDamagedError):
        open_journal(platform, str(path), "t/g", 1 << 20, None, replace=False)
    assert [database.closed for database in opened] == [True]
