"""What the journal remembers beside the log."""

import contextlib

import apsw
import pytest
from energybid.agent.journal import MEMORY_BYTES, MEMORY_KEYS, Journal
from energybid.agent.rows import MIGRATIONS
from energybid.core.errors import JournalStalledError

LONGEST = "k" * 200


def opened(path, **options):
    return contextlib.closing(Journal(apsw.Connection(str(path)), str(path), **options))


def test_what_is_remembered_is_there_in_later_runs_and_epochs(tmp_path):
    with opened(tmp_path / "j") as journal:
        assert journal.recall() == {}
        journal.begin_epoch(id_=b"e" * 16, origin="t/g", secret=b"s" * 32)
        journal.remember("meter/main/limit", b"125")
        journal.remember("meter/main/limit", b"60")
        journal.remember("meter%", b"")
        journal.remember("bus/", b"\0\xff")
        journal.begin_epoch(id_=b"f" * 16, origin="t/g", secret=b"s" * 32)
    with opened(tmp_path / "j") as journal:
        assert journal.recall("meter/") == {"meter/main/limit": b"60"}
        assert journal.recall("meter") == {"meter/main/limit": b"60", "meter%": b""}
        assert list(journal.recall()) == ["meter/main/limit", "meter%", "bus/"]
        assert journal.recall("b%") == {}


def test_the_same_again_is_not_written(tmp_path):
    with opened(tmp_path / "j") as journal:
        journal.remember("key", b"value")
        changes = journal._database.total_changes()
        journal.remember("key", b"value")
        assert journal._database.total_changes() == changes


@pytest.mark.parametrize(("key", "value"), [("", b""), (LONGEST + "k", b""), ("a\0b", b""), ("key", bytes(4097))])
def test_what_is_out_of_bounds_is_the_callers_bug(tmp_path, key, value):
    with opened(tmp_path / "j") as journal:
        with pytest.raises(ValueError, match=r"characters|can be remembered"):
            journal.remember(key, value)
        journal.remember(LONGEST, bytes(4096))
        assert journal.recall() == {LONGEST: bytes(4096)}


def test_what_was_remembered_the_longest_time_ago_is_forgotten_first(tmp_path):
    assert (MEMORY_KEYS, MEMORY_BYTES) == (1024, 1 << 18)
    with opened(tmp_path / "j") as journal:
        for number in range(MEMORY_KEYS):
            journal.remember(f"{number:04}", b"x")
        journal.remember("0000", b"again")
        journal.remember("new", b"x")
        kept = list(journal.recall())
        assert (kept[0], kept[-2:], len(kept)) == ("0002", ["0000", "new"], MEMORY_KEYS)
        for number in range(100):
            journal.remember(f"large-{number}", bytes(4096))
        kept = journal.recall()
        assert len(kept) == MEMORY_BYTES // (4096 + len("large-99"))
        assert next(reversed(kept)) == "large-99"
        assert sum(len(k) + len(v) for k, v in kept.items()) <= MEMORY_BYTES


def test_an_older_journal_remembers_nothing_until_it_is_brought_up_to_date(tmp_path):
    database = apsw.Connection(str(tmp_path / "j"))
    for number, migration in enumerate(MIGRATIONS[:2]):
        database.execute(f"BEGIN; {migration} PRAGMA user_version = {number + 1}; COMMIT")
    with opened(tmp_path / "j", check=False) as old:
        assert old.recall() == {}
    with opened(tmp_path / "j") as journal:
        journal.remember("key", b"value")
        assert journal.recall() == {"key": b"value"}
    database.close()


def test_a_full_disk_changes_nothing_and_says_so(tmp_path):
    with opened(tmp_path / "j") as journal:
        journal.remember("key", b"old")
        ((pages,),) = journal._database.execute("PRAGMA page_count")
        journal._database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(JournalStalledError, match="full"):
            journal.remember("key", bytes(4096))
        assert journal.recall() == {"key": b"old"}
