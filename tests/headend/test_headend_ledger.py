"""What the head-end does with every kind of batch: stores it once, answers, refuses, or keeps it as evidence."""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import apsw
import pytest
from energybid.core.cose import ES256
from energybid.core.entries import Epoch, Gap, MarketMessage
from energybid.core.errors import EvidenceError, JournalError
from energybid.core.evidence import Receipt, verify_receipt
from energybid.core.ports import Message
from energybid.core.tree import EMPTY_ROOT, Frontier
from energybid.headend import ledger as ledger_module
from energybid.headend import store as store_module
from energybid.headend.ledger import Ledger, Outgoing
from energybid.headend.status import facts
from energybid.headend.store import Store
from energybid.headend.verify import verify
from energybid.sync import market
from energybid.sync.batch import encode_batch
from energybid.sync.topics import topics_for
from headend_gateway import Gateway, key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HEADEND = key(9)


class Headend:
    """A head-end without a broker, on a database that can be closed and opened again."""

    def __init__(self, path: pathlib.Path, *gateways: Gateway) -> None:
        self.path = str(path)
        self.gateways = gateways
        self.now_ns = 2_000_000_000_000_000_000
        self.open()

    def open(self) -> None:
        self.store = Store.open(apsw.Connection(self.path), self.path)
        self.ledger = Ledger(self.store, HEADEND, HEADEND.public, self.clock)
        self.ledger.register(g.registration for g in self.gateways)

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def clock(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def take(self, *messages: Message) -> list[Receipt]:
        """Process, and read the receipts under the head-end's public key."""
        return [receipt(out) for out in self.ledger.process(messages)]

    def facts(self) -> dict[str, Any]:
        return facts(self.store)

    def conflicts(self) -> list[tuple[str, str]]:
        return [(c["kind"], c["detail"]) for g in self.facts()["gateways"] for c in g["conflicts"]]

    def verified(self) -> dict[str, Any]:
        report = verify(self.path, [])
        assert report is not None
        assert report["faults"] == []
        assert report["verified"]
        return report


def receipt(out: Outgoing) -> Receipt:
    return verify_receipt(out.payload, HEADEND.public)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def headend(tmp_path: pathlib.Path, gateway: Gateway) -> Iterator[Headend]:
    headend = Headend(tmp_path / "headend.db", gateway)
    yield headend
    headend.store.close()


# ---------------------------------------------------------------- batches as they should be


def test_batches_in_order(headend: Headend, gateway: Gateway) -> None:
    for first in (0, 3, 13):
        [answer] = headend.take(gateway.message(first))
        assert (answer.origin, answer.epoch, answer.size) == ("demo/gw-1", b"e" * 16, gateway.size)
        assert answer.root == gateway.root()
        gateway.read()
    report = headend.verified()
    [epoch] = report["gateways"][0]["epochs"]
    assert epoch["root"] == gateway.root(23).hex()
    assert (report["entries"], report["readings"], epoch["checkpoints"], epoch["receipts"]) == (23, 20, 3, 3)


def test_receipts_are_retained_and_kept_before_they_go_out(headend: Headend, gateway: Gateway) -> None:
    [out] = headend.ledger.process([gateway.message(0)])
    assert (out.topic, out.retain) == (topics_for("demo", "gw-1").receipt, True)
    [row] = headend.store.epochs(1)
    assert [r.message for r in headend.store.receipts(row)] == [out.payload]


def test_batches_that_queued_up_share_one_transaction_and_one_receipt(headend: Headend, gateway: Gateway) -> None:
    messages = [gateway.message(0)]
    for _ in range(5):
        gateway.read()
        messages.append(gateway.message(gateway.size - 10))
    [answer] = headend.take(*messages)
    assert answer.size == 53
    assert headend.verified()["gateways"][0]["epochs"][0]["receipts"] == 1


def test_a_duplicate_is_answered_by_the_same_receipt_and_changes_nothing(headend: Headend, gateway: Gateway) -> None:
    gateway.read()
    first = headend.ledger.process([gateway.message(0)])
    before = list(headend.store._database.execute("SELECT * FROM entry"))
    for repeat in ([gateway.message(0)], [gateway.message(0, 3)], [gateway.message(3)], [gateway.message(0)] * 3):
        assert headend.ledger.process(repeat) == first
    assert list(headend.store._database.execute("SELECT * FROM entry")) == before
    assert headend.verified()["conflicts"] == 0


def test_an_overlap_adds_only_what_is_new(headend: Headend, gateway: Gateway) -> None:
    gateway.read()
    headend.take(gateway.message(0))
    gateway.read()
    [answer] = headend.take(gateway.message(3))  # 3 to 23, where 3 to 13 are stored
    assert (answer.size, answer.root) == (23, gateway.root())
    assert headend.verified()["readings"] == 20


def test_an_overlap_from_the_middle_of_a_stored_batch(headend: Headend, gateway: Gateway) -> None:
    for _ in range(4):
        gateway.read()
    headend.take(gateway.message(0, 33))
    [answer] = headend.take(gateway.message(23))
    assert (answer.size, answer.root) == (43, gateway.root())
    headend.verified()


def test_es256_and_a_second_registered_key(tmp_path: pathlib.Path) -> None:
    gateway = Gateway(signer=key(4, ES256))
    headend = Headend(tmp_path / "h.db", gateway)
    assert headend.take(gateway.message(0))[0].size == 3
    headend.verified()
    headend.store.close()


def test_two_gateways_do_not_touch_each_other(tmp_path: pathlib.Path) -> None:
    one, two = Gateway("one", epoch=b"x" * 16), Gateway("two", epoch=b"x" * 16, signer=key(2))
    headend = Headend(tmp_path / "h.db", one, two)
    two.read()
    answers = headend.take(one.message(0), two.message(0))
    assert {(a.origin, a.size, a.root) for a in answers} == {
        ("demo/one", 3, one.root()),
        ("demo/two", 13, two.root()),
    }
    stolen = Message(topics_for("demo", "one").log, two.frame(0), retained=False)
    assert headend.take(stolen) == [], "another gateway's batch on this one's topic"
    headend.verified()
    headend.store.close()


# ---------------------------------------------------------------- gaps


def test_a_gap_is_answered_by_where_to_go_on(headend: Headend, gateway: Gateway) -> None:
    [before] = headend.take(gateway.message(0))
    gateway.read()
    gateway.read()
    [answer] = headend.take(gateway.message(13))
    assert answer == before
    assert headend.facts()["gateways"][0]["pending"] == 0


def test_a_gap_in_an_unknown_epoch_is_answered_by_nothing_stored(headend: Headend, gateway: Gateway) -> None:
    gateway.read()
    [out] = headend.ledger.process([gateway.message(3)])
    assert (receipt(out).size, receipt(out).root, out.retain) == (0, EMPTY_ROOT, False)
    assert headend.facts()["entries"] == 0


def test_with_its_frontier_a_later_batch_waits_and_is_joined(headend: Headend, gateway: Gateway) -> None:
    for _ in range(3):
        gateway.read()
    assert headend.take(gateway.message(23, peaks=True))[0].size == 0
    assert headend.take(gateway.message(13, 23, peaks=True))[0].size == 0
    assert headend.facts()["gateways"][0]["pending"] == 2
    headend.reopen()
    assert headend.take(gateway.message(0, 3))[0].size == 3
    assert headend.take(gateway.message(3, 13))[0].size == 33
    assert headend.facts()["gateways"][0]["pending"] == 0
    assert headend.verified()["readings"] == 30


def test_what_waits_is_bounded(
    headend: Headend, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_module, "PENDING_MAX", 2)
    for _ in range(4):
        gateway.read()
    headend.take(*(gateway.message(at, at + 10, peaks=True) for at in (13, 23, 33)))
    assert headend.facts()["gateways"][0]["pending"] == 2
    assert "too many batches wait" in caplog.text


def test_a_later_batch_that_does_not_verify_does_not_wait(headend: Headend, gateway: Gateway) -> None:
    gateway.read()
    other = Gateway(signer=gateway.key)
    other.read(offset=1)
    gateway.read()
    frame = encode_batch(
        first=13,
        entries=list(gateway.entries[13:]),
        checkpoint=gateway.checkpoints[23],
        salts=gateway.log.salts,
        frontier=Frontier(13, other.log.peaks),
    )
    assert headend.take(Message(topics_for("demo", "gw-1").log, frame, retained=False)) == []
    assert headend.facts()["gateways"][0]["pending"] == 0
    assert headend.ledger.refused == {"garbage": 1}


# ---------------------------------------------------------------- evidence


def forked(**more: Any) -> tuple[Gateway, Gateway]:
    """Two logs of one gateway that agree on the first 13 entries."""
    one, two = Gateway(**more), Gateway(**more)
    one.read()
    two.read()
    one.read()
    two.read(offset=1)
    return one, two


def test_two_entries_at_one_sequence_are_kept_as_evidence(
    headend: Headend, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = forked()
    headend.take(one.message(0, 13), one.message(13))
    entries = list(headend.store._database.execute("SELECT * FROM entry"))
    [answer] = headend.take(two.message(13))
    assert (answer.size, answer.root) == (23, one.root()), "receipts go on for the good prefix"
    assert headend.conflicts() == [("entries", "two different entries 13 are signed")]
    assert list(headend.store._database.execute("SELECT * FROM entry")) == entries
    assert list(headend.store._database.execute("SELECT frame FROM conflict")) == [(two.frame(13),)]
    assert [r.levelno for r in caplog.records if "CONFLICT" in r.getMessage()] == [logging.ERROR]
    headend.take(two.message(13))
    assert len(headend.conflicts()) == 1, "once"
    one.read()
    assert headend.take(one.message(23))[0].size == 33, "and the good one goes on"
    assert headend.verified()["conflicts"] == 1
    assert gateway.size == 3


@pytest.mark.parametrize(("peaks", "kind"), [(True, "fork"), (False, "unverified")])
def test_a_root_that_disagrees_is_kept_as_evidence(headend: Headend, *, peaks: bool, kind: str) -> None:
    one, two = forked()
    two.read()
    headend.take(one.message(0, 13), one.message(13))
    [answer] = headend.take(two.message(23, peaks=peaks))
    assert (answer.size, answer.root) == (23, one.root())
    assert [found for found, _ in headend.conflicts()] == [kind]
    headend.verified()


def test_a_waiting_batch_of_another_log_becomes_evidence(headend: Headend) -> None:
    one, two = forked()
    two.read()
    headend.take(two.message(23, peaks=True))
    assert headend.take(one.message(0, 13), one.message(13))[0].size == 23
    assert [kind for kind, _ in headend.conflicts()] == ["fork"]
    assert headend.facts()["gateways"][0]["pending"] == 0


def test_evidence_is_bounded(headend: Headend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "CONFLICTS_MAX", 2)
    one, _ = forked()
    headend.take(one.message(0, 13), one.message(13))
    for offset in range(1, 5):
        other = Gateway()
        other.read()
        other.read(offset=offset)
        headend.take(other.message(13))
    assert len(headend.conflicts()) == 2


# ---------------------------------------------------------------- epochs


def test_a_new_epoch_that_names_the_old_one(headend: Headend, gateway: Gateway) -> None:
    headend.take(gateway.message(0))
    new = Gateway(epoch=b"n" * 16, previous=(b"e" * 16, 3, gateway.root()))
    [out] = headend.ledger.process([new.message(0)])
    assert (receipt(out).epoch, out.retain) == (b"n" * 16, True)
    gateway.read()
    [late] = headend.ledger.process([gateway.message(3)])
    assert (receipt(late).epoch, receipt(late).size, late.retain) == (b"e" * 16, 13, False), "the old one stays"
    assert headend.conflicts() == []
    assert [receipt(out).epoch for out in headend.ledger.greetings()] == [b"n" * 16]
    assert len(headend.verified()["gateways"][0]["epochs"]) == 2


@pytest.mark.parametrize(
    ("previous", "detail"),
    [
        (None, "names none before it"),
        ((b"e" * 16, 2, b"r" * 32), "names 2 entries"),
        ((b"e" * 16, 3, b"r" * 32), "names another root"),
    ],
)
def test_a_new_epoch_that_contradicts_the_old_one_alarms(
    headend: Headend, gateway: Gateway, previous: tuple[bytes, int, bytes] | None, detail: str
) -> None:
    headend.take(gateway.message(0))
    new = Gateway(epoch=b"n" * 16, previous=previous)
    assert headend.take(new.message(0))[0].size == 3
    [(kind, found)] = headend.conflicts()
    assert (kind, detail in found) == ("epoch", True)


@pytest.mark.parametrize(
    "start",
    [[Gap(None, 0, 1, 1, 1)], [Epoch("demo/other", 0, None)], [Gap(None, 0, 1, 1, 1), Epoch("demo/gw-1", 0, None)]],
)
def test_an_epoch_begins_with_its_entry(headend: Headend, start: list[Any]) -> None:
    assert headend.take(Gateway(start=start).message(0)) == []
    assert headend.facts()["gateways"][0]["epochs"] == []
    assert headend.ledger.refused == {"refused": 1}


# ---------------------------------------------------------------- strangers and garbage


def test_an_epoch_must_begin_with_its_epoch_entry_and_hold_no_other(
    headend: Headend, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    for start, why in (
        ([Gap(None, 0, 1, 1, 1)], "does not begin with an epoch entry"),
        ([Epoch("demo/gw-2", 0, None)], "does not begin with an epoch entry"),
        ([Epoch("demo/gw-1", 0, None), Epoch("demo/gw-1", 0, None)], "entry 1 of epoch"),
    ):
        caplog.clear()
        headend.ledger._complaints.clear()
        assert headend.take(Gateway(start=start).message(0)) == []
        assert why in caplog.text
    headend.take(gateway.message(0))
    gateway.append([Epoch("demo/gw-1", 0, None)])
    assert headend.take(gateway.message(3)) == []
    assert headend.take(gateway.message(3, peaks=True)) == []
    assert headend.facts()["entries"] == 3


@pytest.mark.parametrize("counter", [0, 1])
def test_a_checkpoint_whose_counter_does_not_grow_is_kept_as_evidence(
    headend: Headend, gateway: Gateway, counter: int
) -> None:
    headend.take(gateway.message(0))
    gateway.read()
    headend.take(gateway.message(3))
    gateway.log._counter = counter
    gateway.read()
    [answer] = headend.take(gateway.message(13))
    assert answer.size == 13, "not stored"
    [(kind, detail)] = headend.conflicts()
    assert (kind, detail) == ("counter", f"checkpoint {counter + 1} comes after checkpoint 2: the counter must grow")
    gateway.read()
    gateway.read()
    assert headend.take(gateway.message(13))[0].size == 43, "a later checkpoint of the same log is good"
    headend.verified()


def test_strangers_are_refused_with_one_line(headend: Headend, caplog: pytest.LogCaptureFixture) -> None:
    for stranger, why in (
        (Gateway("gw-2"), "no such gateway"),
        (Gateway(tenant="other"), "no such gateway"),
        (Gateway(signer=key(7)), "not registered for it"),
    ):
        caplog.clear()
        assert headend.take(stranger.message(0)) == []
        headend.take(stranger.message(0))
        [line] = [r.getMessage() for r in caplog.records]
        assert why in line
        assert stranger.origin in line
    assert headend.facts()["entries"] == 0


def test_a_flood_is_counted_and_logged_little(
    headend: Headend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ledger_module, "COMPLAINTS_MAX", 5)
    for i in range(100):
        headend.take(Message(f"energybid/1/demo/x{i}/log", b"", retained=False))
    assert len(caplog.records) == 5
    assert headend.ledger.refused == {"refused": 100}
    headend.now_ns += 61 * 10**9
    headend.take(Message("energybid/1/demo/y/log", b"", retained=False))
    assert "95 more messages" in caplog.text


@pytest.mark.parametrize("topic", ["", "energybid/1/demo/gw-1/status", "energybid/2/demo/gw-1/log", "x" * 300])
def test_foreign_topics_are_refused(headend: Headend, gateway: Gateway, topic: str) -> None:
    assert headend.take(Message(topic, gateway.frame(0), retained=False)) == []


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=2000))
def test_garbage_is_refused(headend: Headend, payload: bytes) -> None:
    assert headend.take(Message(topics_for("demo", "gw-1").log, payload, retained=False)) == []
    assert headend.facts()["entries"] == 0


def test_any_flipped_bit_is_refused(headend: Headend, gateway: Gateway) -> None:
    frame = gateway.frame(0)
    topic = topics_for("demo", "gw-1").log
    for bit in range(0, len(frame) * 8, 7):
        damaged = bytearray(frame)
        damaged[bit // 8] ^= 1 << bit % 8
        assert headend.take(Message(topic, bytes(damaged), retained=False)) == []
    assert headend.facts()["entries"] == 0
    assert headend.conflicts() == []


def test_garbage_beside_a_good_batch_does_not_hold_it_back(headend: Headend, gateway: Gateway) -> None:
    garbage = Message(topics_for("demo", "gw-1").log, b"garbage", retained=False)
    assert [a.size for a in headend.take(garbage, gateway.message(0), garbage)] == [3]


# ---------------------------------------------------------------- crashes and restarts


def test_killed_between_commit_and_receipt(headend: Headend, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object) -> bytes:
        raise KilledError

    monkeypatch.setattr(ledger_module, "sign_receipt", killed)
    with pytest.raises(KilledError):
        headend.take(gateway.message(0))
    monkeypatch.undo()
    headend.reopen()
    assert [receipt(out).size for out in headend.ledger.greetings()] == [3]
    assert [a.size for a in headend.take(gateway.message(0))] == [3]
    assert headend.verified()["entries"] == 3


def test_killed_before_the_commit_stores_nothing(headend: Headend, gateway: Gateway) -> None:
    headend.store._database.execute(
        "CREATE TRIGGER full BEFORE INSERT ON checkpoint BEGIN SELECT raise(ABORT, 'disk full'); END"
    )
    with pytest.raises(JournalError, match="disk full"):
        headend.take(gateway.message(0))
    headend.store._database.execute("DROP TRIGGER full")
    headend.reopen()
    assert headend.facts()["entries"] == 0
    assert headend.ledger.greetings() == []
    assert headend.take(gateway.message(0))[0].size == 3


def test_a_restart_goes_on_and_greets_with_the_receipt_signed_anew(headend: Headend, gateway: Gateway) -> None:
    [first] = headend.take(gateway.message(0))
    headend.reopen()
    headend.now_ns += 10**9
    [greeting] = [receipt(out) for out in headend.ledger.greetings()]
    # A gateway takes a smaller size for a restored head-end only if it is not older than what it saw before.
    assert greeting.time_ms >= first.time_ms + 1000
    assert greeting == first._replace(time_ms=greeting.time_ms)
    gateway.read()
    assert headend.take(gateway.message(3))[0].size == 13


def test_the_receipts_time_never_goes_back(headend: Headend, gateway: Gateway) -> None:
    [before] = headend.take(gateway.message(0))
    headend.now_ns -= 3600 * 10**9
    gateway.read()
    [after] = headend.take(gateway.message(3))
    assert after.time_ms == before.time_ms


def test_other_databases_are_refused(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "other.db")
    connection = apsw.Connection(path)
    connection.execute("CREATE TABLE t (x)")
    with pytest.raises(JournalError, match="something else"):
        Store.open(connection, path)
    assert verify(path, []) is None
    connection.close()


def test_newer_databases_are_refused(headend: Headend) -> None:
    headend.store._database.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="newer version"):
        headend.reopen()
    with pytest.raises(JournalError, match="unable to open"):
        verify(headend.path + ".none", [])


# ---------------------------------------------------------------- verification


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("UPDATE entry SET canonical = CAST(canonical || x'00' AS BLOB) WHERE sequence = 5", "entry 5"),
        ("DELETE FROM entry WHERE sequence = 5", "entries 5 to 6 are missing"),
        ("DELETE FROM entry WHERE sequence = 12", "13 entries are claimed"),
        ("UPDATE checkpoint SET message = (SELECT message FROM receipt)", "checkpoint at 13"),
        ("INSERT INTO checkpoint SELECT epoch, 14, message, peaks, 0 FROM checkpoint", "counter 2 comes after 2"),
        ("UPDATE entry SET canonical = (SELECT canonical FROM entry LIMIT 1) WHERE sequence = 5", "one epoch entry"),
        ("DELETE FROM checkpoint", "no checkpoint covers"),
        ("UPDATE receipt SET message = zeroblob(10)", "receipt for 13"),
        ("UPDATE receipt SET size = 12", "receipt for 12"),
        ("DELETE FROM key WHERE gateway IS NOT NULL", "not among the 0 known"),
        ("UPDATE epoch SET epoch = zeroblob(16)", "does not sign the stored entries"),
    ],
)
def test_damage_is_found(headend: Headend, gateway: Gateway, damage: str, fault: str) -> None:
    gateway.read()
    headend.take(gateway.message(0))
    headend.verified()
    headend.store._database.execute(damage)
    report = verify(headend.path, [])
    assert report is not None
    assert not report["verified"]
    assert any(fault in found for found in report["faults"]), report["faults"]


def test_verified_under_given_keys(headend: Headend, gateway: Gateway) -> None:
    headend.take(gateway.message(0))
    report = verify(headend.path, [gateway.key.public, HEADEND.public])
    assert report is not None
    assert report["verified"]
    report = verify(headend.path, [key(5).public])
    assert report is not None
    assert not report["verified"]


def test_a_markets_messages_are_verified_under_given_keys(headend: Headend, gateway: Gateway) -> None:
    made = market.Prices("demo/flex", 0, 1, 5, "USD", 2, 5, 1000, (7,))
    prices = market.sign(made, key(7))
    broken = prices[:-1] + bytes([prices[-1] ^ 1])
    gateway.append([MarketMessage(5, reason, data, 0, 1, 2, 1, 1) for reason, data in ((0, prices), (1, broken))])
    headend.take(gateway.message(0))
    counts = []
    for keys in ([], [key(7).public]):
        report = verify(headend.path, [*keys, gateway.key.public, HEADEND.public])
        assert report is not None
        assert report["verified"]
        counts.append((report["market_messages"], report["market_signatures"]))
    assert counts == [(2, 0), (2, 1)]
    gateway.append([MarketMessage(5, 0, broken, 0, 1, 2, 1, 1)])
    headend.take(gateway.message(5))
    report = verify(headend.path, [key(7).public, gateway.key.public, HEADEND.public])
    assert report is not None
    assert ["entry 5" in fault for fault in report["faults"]] == [True]


def test_receipts_do_not_verify_under_another_key(headend: Headend, gateway: Gateway) -> None:
    [out] = headend.ledger.process([gateway.message(0)])
    with pytest.raises(EvidenceError):
        verify_receipt(out.payload, gateway.key.public)
