"""prove and verify on real journals and head-end databases: what is found, written, checked and said."""

import json
import random
from pathlib import Path

import apsw
import pytest
import stranger_proof
from energybid.agent import cli
from energybid.agent.commands import prove
from energybid.agent.explain import explain, words
from energybid.agent.growing import ANCHOR_EVERY, Commit, Newest
from energybid.agent.history import journal_histories
from energybid.agent.journal import Journal
from energybid.agent.moments import moment_ms, moment_text
from energybid.agent.rows import Acknowledged
from energybid.core.cose import EDDSA, ES256, PrivateKey
from energybid.core.disclosure import parse_proof, verify_reading
from energybid.core.entries import (
    Command,
    Declaration,
    Epoch,
    MarketKind,
    MarketMessage,
    MarketReason,
    Reading,
    Start,
)
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log
from energybid.core.ports import Message
from energybid.core.prover import LostError, prove_consistency, prove_reading
from energybid.core.quantities import Obis
from energybid.core.tree import Frontier, verify_consistency
from energybid.headend.history import histories
from energybid.headend.ledger import Ledger, Registration
from energybid.headend.store import Store
from energybid.sync.batch import encode_batch
from energybid.sync.topics import topics_for

LOG = PrivateKey.from_entropy(b"gateway." * 6)
HEADEND = PrivateKey.from_entropy(b"headend." * 6, ES256)
MONDAY = moment_ms("2026-11-23T00:00:00Z")
POWER, ENERGY = (Obis.parse(code).code for code in ("1-0:16.7.0", "1-0:1.8.0"))
DECLARATION = Declaration(
    "main", "acme", bytes(32), "SN 1", ((1_000, ((POWER, "W", -1, False),)), (60_000, ((ENERGY, "Wh", 1, True),)))
)
COMMITS = 2 * ANCHOR_EVERY + 9
"""Of three readings each, 10 s apart."""


class Site:
    """A gateway's journal and its utility's database, grown together."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.path, self.stored = folder / "journal.db", folder / "headend.db"
        (folder / "log.pub.pem").write_bytes(LOG.public.pem())
        (folder / "headend.pub.pem").write_bytes(HEADEND.public.pem())
        self.journal = Journal(apsw.Connection(str(self.path)), str(self.path))
        self.store = Store.open(apsw.Connection(str(self.stored)), str(self.stored))
        self.ledger = Ledger(self.store, HEADEND, HEADEND.public, lambda: (self.log_time + 500) * 1_000_000)
        self.ledger.register([Registration("t", "g", (LOG.public,))])
        self.log_time = MONDAY
        self.begin(b"e" * 16)

    def begin(self, epoch: bytes) -> None:
        head = self.journal.begin_epoch(id_=epoch, origin="t/g", secret=epoch * 2)
        counter = head.counter
        self.log = Log(origin="t/g", epoch=epoch, secret=epoch * 2, signer=LOG, frontier=Frontier(), counter=counter)
        self.start([Epoch("t/g", self.log_time, None), Start(bytes(16), self.log_time, 0, 2, "v", bytes(32))])

    def start(self, entries: list) -> None:
        self.declared = self.log.size + len(entries)
        self.commit([*entries, DECLARATION])

    def commit(self, entries: list) -> None:
        before, first = self.log.peaks, self.log.size
        for entry in entries:
            self.log.append(entry)
        checkpoint = self.log.checkpoint(self.log_time, 2)
        self.journal.commit(Commit(entries, checkpoint, before, self.log.peaks, None))
        frame = encode_batch(first=first, entries=entries, checkpoint=checkpoint, salts=self.log.salts)
        self.sent = Message(topics_for("t", "g").log, frame, retained=False)

    def read(self, commits: int, *, sent: bool = True) -> None:
        for _ in range(commits):
            at = self.log_time
            self.log_time += 10_000
            values = [(0, 1_000), (0, 2_000), (1, 3_000)]
            self.commit([Reading(self.declared, g, at + n, 7, 2, 1, at, ((at + n) % 99_999,), None) for g, n in values])
            if sent:
                self.send()

    def send(self) -> None:
        (out,) = self.ledger.process([self.sent])
        self.receipt = out.payload

    def acknowledged(self, size: int) -> None:
        root = self.journal.root_at(self.journal.head.epoch.number, size)
        receipt = sign_receipt(Receipt("t/g", self.log.epoch, size, root, self.log_time + 500), HEADEND)
        self.journal.acknowledge(Acknowledged(self.journal.head.epoch.number, size, receipt))

    def close(self) -> None:
        self.journal.close()
        self.store.close()


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = Site(tmp_path)
    site.send()
    site.read(COMMITS)
    site.acknowledged(3 + 3 * (COMMITS - 4))
    yield site
    site.close()


def energybid(capsys, *arguments, code=0):
    """The command line, in this process: (output, errors)."""
    assert cli.main(list(map(str, arguments))) == code
    captured = capsys.readouterr()
    return captured.out, captured.err


def proven(capsys, *arguments):
    """(facts of prove, facts of verify) of one reading, both keys given."""
    out, _ = energybid(capsys, "prove", *arguments, "-o", "r.proof", "--json")
    checked, _ = energybid(capsys, "verify", "r.proof", "--key", "log.pub.pem", "--key", "headend.pub.pem", "--json")
    return json.loads(out), json.loads(checked)


# ---------------------------------------------------------------- readings


@pytest.mark.parametrize("database", ["journal.db", "headend.db"])
def test_a_reading_goes_from_the_database_to_the_stranger(site, capsys, database):
    at = moment_text(MONDAY + 32_500)
    made, checked = proven(capsys, database, "--meter", "main", "--at", at)
    assert (made["sequence"], made["time"], made["before_asked_ms"]) == (13, "2026-11-23T00:00:32.000Z", 500)
    assert (made["origin"], made["epoch"], made["receipt"]) == ("t/g", (b"e" * 16).hex(), True)
    assert checked["verified"]
    assert checked["values"] == [
        {
            "obis": "1-0:16.7.0",
            "value": f"{(MONDAY + 32_000) % 99_999 / 10:.1f}",
            "unit": "W",
            "status": 0,
            "mantissa": (MONDAY + 32_000) % 99_999,
            "exponent": -1,
            "cumulative": False,
        }
    ]
    assert (checked["meter"], checked["serial"], checked["clock"]) == ("main", "SN 1", "synchronised")
    assert checked["checkpoint"]["key"] == {"kid": LOG.kid.hex(), "file": "log.pub.pem"}
    assert checked["receipt"]["key"] == {"kid": HEADEND.kid.hex(), "file": "headend.pub.pem"}
    # the head-end knows the first receipt that covers it, the journal only the last one it got
    assert checked["receipt"]["size"] == (15 if database == "headend.db" else 3 + 3 * (COMMITS - 4))
    assert (site.folder / "r.proof").stat().st_size == made["bytes"] < 2_000


def test_the_quantity_and_the_newest(site, capsys):
    made, checked = proven(capsys, "--meter", "main", "--quantity", "1-0:1.8.0", "--at", "2026-11-23T01:00:52+01:00")
    assert (made["time"], made["before_asked_ms"]) == ("2026-11-23T00:00:43.000Z", 9_000)
    assert checked["values"][0]["unit"] == "Wh"
    (site.folder / "r.proof").unlink()
    made, checked = proven(capsys, "journal.db", "--meter", "main")
    assert (made["sequence"], made["before_asked_ms"]) == (2 + 3 * COMMITS, None)
    assert checked["receipt"] is None, "the journal has no receipt for it yet"
    assert any("no receipt" in claim for claim in checked["not_proven"])


@pytest.mark.untraced
def test_every_reading_of_both_databases_can_be_proven(site):
    for database, load in ((site.path, journal_histories), (site.stored, histories)):
        connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
        (history,) = load(connection, str(database))
        for sequence in range(3, 3 + 3 * COMMITS):
            proof = parse_proof(prove_reading(history, sequence).encode())
            found = verify_reading(proof, {LOG.kid: LOG.public, HEADEND.kid: HEADEND.public}.get)
            assert found.sequence == sequence
        connection.close()


def test_both_databases_say_the_same_of_the_log(site):
    journal = apsw.Connection(str(site.path), flags=apsw.SQLITE_OPEN_READONLY)
    (ours,) = journal_histories(journal, str(site.path))
    (theirs,) = histories(site.store._database, str(site.stored))
    assert list(ours.commits()) == list(theirs.commits())
    size = site.log.size
    assert list(ours.entries(0, size)) == list(theirs.entries(0, size))
    assert ours.leaves(5, size - 1) == theirs.leaves(5, size - 1)
    sizes = [3 + 3 * n for n in range(COMMITS + 1)]
    assert [ours.checkpoint(n) for n in sizes] == [theirs.checkpoint(n) for n in sizes]
    assert ours.checkpoint(4) is theirs.checkpoint(4) is ours.checkpoint(0) is None
    for least, below in ((1, 10), (100, 140), (5, size + 1)):
        for history in (ours, theirs):
            frontier = history.frontier(least, below)
            assert frontier is None or least <= frontier.size < below
    assert theirs.frontier(4, 7).size == 6
    journal.close()


def test_a_copy_of_a_journal_that_is_in_no_wal_mode(site, capsys):
    apsw.Connection(str(site.path)).execute("VACUUM INTO 'copy.db'")
    made, checked = proven(capsys, "copy.db", "--meter", "main")
    assert (made["meter"], checked["verified"]) == ("main", True)
    energybid(capsys, "verify", "copy.db", "--key", "log.pub.pem", "--key", "headend.pub.pem")


# ---------------------------------------------------------------- consistency


def test_two_checkpoints(site, capsys):
    for database in ("journal.db", "headend.db"):
        energybid(capsys, "prove", database, "--consistency", 60, 12, "-o", database + ".proof")
        assert (site.folder / f"{database}.proof").read_bytes() == (site.folder / "journal.db.proof").read_bytes()
    out, _ = energybid(capsys, "verify", "journal.db.proof", "--key", "log.pub.pem")
    assert "at 60 entries begins with exactly the 12 entries" in out
    facts = json.loads(energybid(capsys, "verify", "journal.db.proof", "--key", "log.pub.pem", "--json")[0])
    assert (facts["first"]["size"], facts["second"]["size"], facts["verified"]) == (12, 60, True)
    _, said = energybid(capsys, "prove", "--consistency", 12, 61, "-o", "x.proof", code=1)
    assert "no checkpoint at 61 entries is kept here" in said


def test_a_checkpoint_that_a_stranger_was_shown_counts_though_the_row_has_grown_over_it(site, capsys):
    """The agent can not know what another process has shown; the shown file itself holds what is signed."""
    site.begin(b"n" * 16)
    site.journal._newest = Newest(fold=True)
    site.read(3, sent=False)
    made, checked = proven(capsys, "--meter", "main")
    assert (made["receipt"], checked["verified"]) == (False, True)
    site.read(3, sent=False)
    end = site.log.size
    _, said = energybid(capsys, "prove", "--consistency", made["size"], end, "-o", "log.proof", code=1)
    assert f"no checkpoint at {made['size']} entries is kept here" in said
    energybid(capsys, "prove", "--consistency", "r.proof", end, "-o", "log.proof")
    out, _ = energybid(capsys, "verify", "log.proof", "--key", "log.pub.pem")
    assert f"at {end} entries begins with exactly the {made['size']} entries" in out
    energybid(capsys, "prove", "--consistency", 3, "log.proof", "-o", "from-the-start.proof")
    energybid(capsys, "prove", "--consistency", 12, 60, "--epoch", "6565", "-o", "old.proof")
    for named, says, code in (
        ("old.proof", "is of epoch 6565", 1),
        ("log.pub.pem", "", 3),
        ("none", "neither a number nor a file", 1),
    ):
        _, said = energybid(capsys, "prove", "--consistency", named, end, "-o", "x.proof", code=code)
        assert says in said


# ---------------------------------------------------------------- a pruned journal


def test_a_pruned_journal_proves_what_it_kept_and_names_the_head_end_for_the_rest(site, capsys):
    again = site.log.size
    site.log_time += 10_000
    site.start([])  # the agent started anew, and declares the meter again
    site.send()
    site.read(COMMITS)
    site.acknowledged(site.log.size)
    while site.journal.prune(MONDAY + (COMMITS - 2) * 10_000):
        pass
    (history,) = journal_histories(apsw.Connection(str(site.path)), "")
    assert history.first > 3
    with pytest.raises(LostError, match=r"declaration 2 of reading .* ask the head-end"):
        prove_reading(history, history.first)
    made, checked = proven(capsys, "--meter", "main")
    assert made["sequence"] > again
    assert checked["verified"]
    _, said = energybid(capsys, "prove", "--meter", "main", "--at", moment_text(MONDAY + 5_000), "-o", "x", code=1)
    assert "older history was pruned: ask the head-end" in said
    (site.folder / "r.proof").unlink()
    made, checked = proven(capsys, "headend.db", "--meter", "main", "--at", moment_text(MONDAY + 5_000))
    assert checked["verified"]
    first = history.first
    assert first < again
    larger = prove_consistency(history, first + 3, site.log.size)
    roots = [site.journal.root_at(1, size) for size in (first + 3, site.log.size)]
    verify_consistency(first + 3, site.log.size, larger.path, *roots)


# ---------------------------------------------------------------- epochs, gateways


def test_the_nearest_reading_over_all_epochs(site, capsys):
    old = MONDAY + 25_000
    site.log_time = MONDAY + 3_600_000
    site.begin(b"n" * 16)
    site.read(COMMITS, sent=False)
    made, checked = proven(capsys, "--meter", "main", "--at", moment_text(old))
    assert made["epoch"] == (b"e" * 16).hex()
    assert checked["receipt"], "the acknowledged mark is of that epoch"
    (site.folder / "r.proof").unlink()
    made, checked = proven(capsys, "--meter", "main")
    assert made["epoch"] == (b"n" * 16).hex()
    (site.folder / "r.proof").unlink()
    made, checked = proven(capsys, "--meter", "main", "--at", moment_text(MONDAY + 3_615_000))
    assert (made["epoch"], made["sequence"]) == ((b"n" * 16).hex(), 8)
    assert checked["receipt"] is None, "a receipt of another epoch says nothing"
    _, said = energybid(
        capsys, "prove", "--meter", "main", "--epoch", "6e6e", "--at", moment_text(old), "-o", "x", code=1
    )
    assert "no reading of meter main at or before" in said
    _, said = energybid(capsys, "prove", "--meter", "main", "--epoch", "ff", "-o", "x", code=1)
    assert "names 0 of the epochs" in said
    energybid(capsys, "prove", "--consistency", 3, 9, "-o", "new.proof")
    facts = json.loads(energybid(capsys, "verify", "new.proof", "--key", "log.pub.pem", "--json")[0])
    assert facts["epoch"] == (b"n" * 16).hex(), "the newest"


def test_a_head_end_of_several_gateways_wants_to_know_which(site, capsys):
    other = PrivateKey.from_entropy(b"x" * 48)
    site.ledger.register([Registration("t", "h", (other.public,))])
    log = Log(origin="t/h", epoch=b"h" * 16, secret=bytes(32), signer=other, frontier=Frontier(), counter=0)
    log.append(Epoch("t/h", 0, None))
    frame = encode_batch(first=0, entries=[Epoch("t/h", 0, None)], checkpoint=log.checkpoint(0, 2), salts=log.salts)
    site.ledger.process([Message(topics_for("t", "h").log, frame, retained=False)])
    _, said = energybid(capsys, "prove", "headend.db", "--meter", "main", "-o", "x", code=2)
    assert "holds t/g, t/h: choose one with --origin" in said
    made, _ = proven(capsys, "headend.db", "--meter", "main", "--origin", "t/g")
    assert made["origin"] == "t/g"
    _, said = energybid(capsys, "prove", "headend.db", "--meter", "main", "--origin", "t/h", "-o", "x", code=1)
    assert "no reading of meter main" in said
    _, said = energybid(capsys, "prove", "headend.db", "--meter", "main", "--origin", "t/i", "-o", "x", code=1)
    assert "no log of t/i" in said


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["none.db", "--meter", "main"], 1, "no such file"),
        (["--meter", "cellar"], 1, "no reading of meter cellar is kept here; meters seen: main"),
        (["--meter", "main", "--at", "2026-11-22T23:00:00Z"], 1, "at or before 2026-11-22T23:00:00.000Z"),
        (["--meter", "main", "--quantity", "1-0:32.7.0"], 1, "with that quantity"),
        (["--meter", "main", "--at", "yesterday"], 2, "write 2026-11-22T12:00:00Z"),
        (["--meter", "main", "--at", "2026-11-23T00:00:00"], 2, "names no zone"),
        (["--meter", "main", "--quantity", "kWh"], 2, "is not an OBIS code"),
        (["--consistency", "3", "6", "--at", "2026-11-23T00:00:00Z"], 2, "go with --meter alone"),
        (["log.pub.pem", "--meter", "main"], 4, "not a database"),
        (["other.db", "--meter", "main"], 1, "neither a journal nor"),
    ],
)
def test_what_can_not_be_proven_is_said(site, capsys, arguments, code, says):
    other = apsw.Connection("other.db")
    other.execute("CREATE TABLE x (y)")
    other.close()
    _, said = energybid(capsys, "prove", *arguments, "-o", "x.proof", code=code)
    assert says in said
    assert not (site.folder / "x.proof").exists()


def test_no_file_is_overwritten(site, capsys):
    assert "name a new file" in energybid(capsys, "prove", "--meter", "main", "-o", "log.pub.pem", code=1)[1]


def test_damage_in_the_database_is_no_proof(site, capsys):
    site.store._database.execute("UPDATE entry SET canonical = CAST(canonical || x'00' AS BLOB) WHERE sequence = 5")
    _, said = energybid(capsys, "prove", "headend.db", "--meter", "main", "--epoch", "6565", "-o", "x.proof",
                        "--at", moment_text(MONDAY + 3_000), code=3)  # fmt: skip
    assert "bytes follow the CBOR item" in said


def test_a_stranger_is_told_why_a_file_does_not_verify(site, capsys):
    energybid(capsys, "prove", "--meter", "main", "--at", moment_text(MONDAY + 60_000), "-o", "r.proof")
    both = ["--key", "log.pub.pem", "--key", "headend.pub.pem"]
    out, _ = energybid(capsys, "verify", "r.proof", "--key", "headend.pub.pem", code=3)
    assert f"checkpoint: signed by key {LOG.kid.hex()}, which was not given" in out
    out, _ = energybid(capsys, "verify", "r.proof", "--key", "log.pub.pem", code=3)
    assert f"receipt: signed by key {HEADEND.kid.hex()}, which was not given" in out
    assert "NOT VERIFIED" in energybid(capsys, "verify", "r.proof", code=3)[0]
    out, _ = energybid(capsys, "verify", "r.proof", "--key", "log.pub.pem", "--ignore-receipt")
    assert "which was not looked at" in out
    file = (site.folder / "r.proof").read_bytes()
    chance = random.Random(1)
    for _ in range(60):
        bit = chance.randrange(8 * len(file))
        flipped = (int.from_bytes(file, "big") ^ 1 << bit).to_bytes(len(file), "big")
        (site.folder / "flipped").write_bytes(flipped)
        energybid(capsys, "verify", "flipped", *both, code=3)
        facts = explain(flipped, {LOG.kid: (LOG.public, "l"), HEADEND.kid: (HEADEND.public, "h")})
        assert (facts["verified"], len(facts["faults"])) == (False, 1)
    (site.folder / "long").write_bytes(file + bytes(200_000))
    assert "at most" in energybid(capsys, "verify", "long", *both, code=3)[0]


# ---------------------------------------------------------------- words

KEYS = {LOG.kid: (LOG.public, "log.pub.pem"), HEADEND.kid: (HEADEND.public, "headend.pub.pem")}


def test_plain_words(site, capsys):
    energybid(capsys, "prove", "--meter", "main", "--at", moment_text(MONDAY + 61_500), "-o", "r.proof")
    out, _ = energybid(capsys, "verify", "r.proof", "--key", "log.pub.pem", "--key", "headend.pub.pem")
    for words_ in (
        "r.proof: reading-proof: verified",
        "gateway t/g logged, as entry 21 of epoch",
        "meter 'main', serial number 'SN 1' by its own word answered:",
        "1-0:16.7.0  ",
        "complete at 2026-11-23T00:01:01.000Z by the gateway's clock (synchronised), 7 ms after the first question",
        f"key {LOG.kid.hex()} (log.pub.pem) signed it at",
        f"key {HEADEND.kid.hex()} (headend.pub.pem) signed as the head-end that it had stored this",
        "NOT proven:\n  * that the meter measured rightly",
    ):
        assert words_ in out, out


def test_words_for_clocks_and_values_in_doubt(site):
    at = MONDAY + COMMITS * 10_000 + 3_600_000  # an hour ahead of the receipt's time
    quantities = tuple((bytes((1, 0, n, 7, 0, 255)), "1", 0, False) for n in range(7))
    site.declared = site.log.size
    declaration = Declaration("x\x1b[31m", "p\n", bytes(32), None, ((1, quantities),))
    values = ((None, None, None, None, -5, 6, 7), (1, 2, 3, 4, 16, 200, 0))
    entries = [
        declaration,
        Reading(site.declared, 0, at, 7, 1, 1, 0, *values),
        Reading(site.declared, 0, 2**63 - 1, 7, 0, 1, 0, *values),
    ]
    site.commit(entries)
    site.send()
    (history,) = histories(site.store._database, "")
    holdover, never = (words("f", explain(prove_reading(history, site.log.size - n).encode(), KEYS)) for n in (2, 1))
    for text in (holdover, never):
        assert "\x1b" not in text, "a name can not speak to the terminal"
        for phrase in ("no number  (the meter did not answer)", "-5  (in doubt", "6  (status 200)", "7\n", "too large"):
            assert phrase in text, text
        assert "which of the two clocks was wrong" in text
    assert "not synchronised then, but earlier" in holdover
    assert "never synchronised since its start: the time may be wrong by any amount" in never
    assert f"complete at {2**63 - 1} ms after 1970-01-01T00:00:00Z" in never


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T01:00:00.0019+01:00", 1),
        ("1969-12-31 23:59:59.999Z", -1),
        ("2026-11-22T12:00Z", 1_795_348_800_000),
    ],
)
def test_moments(text, ms):
    assert moment_ms(text) == ms
    assert moment_ms(moment_text(ms)) == ms


def test_help_says_how_and_what_for():
    assert "--meter main --at" in prove.EXAMPLES


# ---------------------------------------------------------------- other entries


GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_KEYS = [PrivateKey.from_entropy(bytes(range(48)), algorithm).public for algorithm in (EDDSA, ES256)]


def golden(name, key="message"):
    return bytes.fromhex(json.loads((GOLDEN / f"market-{name}.json").read_text())[key][2:-1])


def logged(site, name, data=None, **fields):
    """Commit and send an entry of the market; its sequence."""
    entry = MarketMessage(getattr(MarketKind, name.upper()), 0, data or golden(name), 0, site.log_time, 2, 1, 5)
    site.commit([entry._replace(**fields)])
    site.send()
    return site.log.size - 1


def verified(capsys, *keys, code=0):
    given = [part for key in ("log.pub.pem", "headend.pub.pem", *keys) for part in ("--key", key)]
    facts, _ = energybid(capsys, "verify", "e.proof", *given, "--json", code=code)
    text, _ = energybid(capsys, "verify", "e.proof", *given, code=code)
    return json.loads(facts), " ".join(text.split())


@pytest.fixture
def in_market(site):
    """A round in the log, and the public keys of market and bids beside it."""
    for file, name in (("market.pem", "award"), ("bids.pem", "bid")):
        (site.folder / file).write_bytes(golden(name, "key"))
    site.placed = {name: logged(site, name) for name in ("round", "bid", "award", "confirmation", "statement")}
    site.placed["again"] = logged(site, "award", reason=MarketReason.REPLAYED)
    return site


@pytest.mark.parametrize("database", ["journal.db", "headend.db"])
def test_a_markets_messages_go_to_the_stranger(in_market, capsys, database):
    made, _ = energybid(capsys, "prove", database, "--round", 42, "-o", "e.proof", "--json")
    assert json.loads(made)["sequence"] == in_market.placed["award"], "the one that counts, not the one refused"
    facts, text = verified(capsys, "market.pem")
    message = facts["entry"]["message"]
    assert (message["kind"], message["reason"], message["signature"]) == ("award", "none", "verified")
    assert (message["says"]["net_w"], message["key"]["file"]) == (1500, "market.pem")
    assert "that it accepted a market's message: award: market acme/flex number 42" in text
    assert "verdict 0 (awarded)" in text
    assert "time_ms 1767226440000 (2026-01-01T00:14:00.000Z)" in text
    assert "(market.pem) signed that message itself" in text
    assert ("signed as the head-end" in text) == (facts["receipt"] is not None) == (database == "headend.db")
    head, array = stranger_proof.entry_proof(
        (in_market.folder / "e.proof").read_bytes(), LOG.public.pem().decode(), HEADEND.public.pem().decode()
    )
    assert array[5] == golden("award")
    assert head[0] == "t/g"


def test_a_message_of_the_gateways_own_is_proven_to_be_logged_not_sent(in_market, capsys):
    energybid(capsys, "prove", "headend.db", "--round", 42, "--message", "bid", "-o", "e.proof")
    facts, text = verified(capsys, "market.pem")
    assert facts["entry"]["message"]["signature"] == "not checked"
    assert "logged, as entry" in text
    assert "before it was sent, its bid:" in text
    assert "step [9000, 4000, True]" in text
    assert "that the message was sent, or arrived" in text
    assert "who made that message: it names key" in text
    facts, text = verified(capsys, "bids.pem")
    assert "(bids.pem) signed that message itself" in text


def test_what_was_refused_is_proven_with_the_reason(in_market, capsys):
    energybid(capsys, "prove", "headend.db", "--entry", in_market.placed["again"], "-o", "e.proof")
    facts, text = verified(capsys, "market.pem")
    assert "refused a message on the topic of award, for this reason: replayed" in text
    assert facts["entry"]["message"]["signature"] == "not checked", "it counted for nothing, whoever signed it"
    (in_market.folder / "e.proof").unlink()
    garbage = logged(in_market, "statement", b"garbage", reason=MarketReason.UNVERIFIED)
    energybid(capsys, "prove", "headend.db", "--entry", garbage, "-o", "e.proof")
    assert "it is none that can be read" in verified(capsys)[1]


def test_an_accepted_message_with_a_broken_signature_is_not_verified(in_market, capsys):
    broken = golden("award")[:-1] + bytes([golden("award")[-1] ^ 1])
    energybid(capsys, "prove", "headend.db", "--entry", logged(in_market, "award", broken), "-o", "e.proof")
    assert verified(capsys)[0]["verified"], "under the keys given nothing is wrong"
    facts, _ = verified(capsys, "market.pem", code=3)
    assert "signature does not verify" in facts["faults"][0]


def test_commands_and_entries_of_any_other_type(site, capsys):
    command = Command("charger", "limit", 42, -1, "A", 42, "market", 2, 1, 1, site.log_time, 2, 1, 5, None)
    site.commit([command, command._replace(found=None, outcome=99)])
    site.send()
    first = site.log.size - 2
    for sequence, words_ in (
        (first, "that charger/limit was to be 4.2 A, for 'market' (held): done, read back 4.2"),
        (first + 1, "for 'market' (held): 99 *"),
        (0, "an entry of type epoch: origin t/g"),
        (2, "an entry of type declaration: meter main"),
    ):
        (site.folder / "e.proof").unlink(missing_ok=True)
        said, _ = energybid(capsys, "prove", "headend.db", "--entry", sequence, "-o", "e.proof")
        assert f"entry {sequence} of t/g" in said
        assert words_ in verified(capsys)[1]
    facts, _ = energybid(capsys, "verify", "e.proof", "--key", "log.pub.pem", "--ignore-receipt")
    assert "it has a receipt, which was not looked at" in " ".join(facts.split())
    energybid(capsys, "prove", "headend.db", "--consistency", "e.proof", site.log.size, "-o", "c.proof")


def test_an_entry_of_a_later_type_is_said_to_be_unknown():
    golden = json.loads((GOLDEN / "proof-entry-es256.json").read_text())
    report = explain(bytes.fromhex(golden["file"][2:-1]), {key.kid: (key, "file") for key in GOLDEN_KEYS})
    assert report["verified"]
    assert "of a type that this program does not know: 8501190fa050" in words("e.proof", report)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--entry", 10**6), 1, "has no entry 1000000"),
        (("--entry", -1), 1, "has no entry -1"),
        (("--round", 43), 1, "no award of round 43 that counts"),
        (("--round", 42, "--message", "statement"), 1, "no statement of round 42"),
        (("--entry", 1, "--message", "bid"), 2, "--message goes with --round alone"),
        (("--entry", 1, "--at", "2026-11-22T12:00:00Z"), 2, "they go with --meter alone"),
    ],
)
def test_what_can_not_be_proven_of_other_entries_is_said(site, capsys, arguments, code, says):
    logged(site, "award")
    _, error = energybid(capsys, "prove", "journal.db", *arguments, "-o", "e.proof", code=code)
    assert says in error
    assert not (site.folder / "e.proof").exists()


def test_what_was_pruned_is_asked_of_the_head_end(site, capsys):
    site.journal.prune(MONDAY + 10 * 60_000)
    for arguments in (("--entry", 1), ("--round", 42)):
        _, error = energybid(capsys, "prove", "journal.db", *arguments, "-o", "e.proof", code=1)
        assert "ask the head-end" in error
