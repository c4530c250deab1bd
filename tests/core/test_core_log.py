"""The log: what is appended, signed and resumed is one and the same tree."""

from itertools import pairwise

import golden_core
import pytest
from energybid.core.cose import EDDSA
from energybid.core.entries import Declaration, Known, parse
from energybid.core.errors import EvidenceError
from energybid.core.evidence import SignedCheckpoint, parse_checkpoint, read_checkpoint
from energybid.core.log import Log, Salts, parse_entry
from energybid.core.tree import EMPTY_ROOT, Frontier, leaf_hash, root_of
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies_core import ENTRIES

KEY = golden_core.KEYS["ed25519"]
READING = golden_core.known("reading")


def new_log(frontier: Frontier | None = None, counter: int = 0) -> Log:
    return Log(
        origin="acme/gw-7",
        epoch=golden_core.EPOCH,
        secret=golden_core.SECRET,
        signer=KEY,
        frontier=frontier or Frontier(),
        counter=counter,
    )


@given(st.lists(ENTRIES, max_size=40), st.lists(st.integers(0, 40), max_size=6))
@settings(max_examples=60)
def test_resuming_equals_one_run(entries: list[Known], stops: list[int]) -> None:
    """Stopping after any commit and going on from its frontier signs what an unbroken run signs."""
    bounds = sorted({0, len(entries), *(stop for stop in stops if stop <= len(entries))})
    whole, resumed = new_log(), new_log()
    for first, end in pairwise(bounds):
        for sequence in range(first, end):
            assert whole.append(entries[sequence]) == resumed.append(entries[sequence]) == sequence
        assert whole.size == resumed.size == end
        signed = whole.checkpoint(1000 + end, 2)
        assert resumed.checkpoint(1000 + end, 2) == signed
        assert whole.peaks == resumed.peaks
        resumed = new_log(Frontier(resumed.size, resumed.peaks), signed.checkpoint.counter)
    salts = Salts(golden_core.SECRET)
    leaves = [leaf_hash(salts.canonical(sequence, entry)) for sequence, entry in enumerate(entries)]
    assert whole.checkpoint(0, 0).checkpoint.root == root_of(leaves)


def test_checkpoints_chain() -> None:
    log = new_log(counter=41)
    signed: list[SignedCheckpoint] = [log.checkpoint(0, 0)]
    for size in (1, 1, 4):
        while log.size < size:
            log.append(READING)
        signed.append(log.checkpoint(size, 2))
        assert log.signed_size == size
    checkpoints = [one.checkpoint for one in signed]
    assert [c.counter for c in checkpoints] == [42, 43, 44, 45]
    assert checkpoints[0][2:6] == (0, EMPTY_ROOT, 0, EMPTY_ROOT)
    for before, after in pairwise(checkpoints):
        assert (after.previous_size, after.previous_root) == (before.size, before.root)
    for one in signed:
        assert parse_checkpoint(one.checkpoint.payload()) == one.checkpoint
        assert read_checkpoint(one.message(), KEY.public) == one


def test_nothing_is_appended_that_a_receiver_must_refuse() -> None:
    log = new_log()
    log.append(READING)
    before = log.peaks
    with pytest.raises(ValueError, match="reading entry: values"):
        log.append(READING._replace(values=(2**63, 0)))  # type: ignore[call-arg]
    group = (1, ((bytes(6), "W", 0, False),) * 1024)
    too_long = Declaration("m", "p", bytes(32), None, (group,) * 8)
    with pytest.raises(ValueError, match="at most 65536"):
        log.append(too_long)
    assert (log.size, log.peaks) == (1, before)
    log.append(too_long._replace(groups=(group,) * 3))
    assert log.size == 2


class OutOfOrderSigner:
    """A secure element that fails once."""

    algorithm = EDDSA
    kid = KEY.kid

    def __init__(self) -> None:
        self.failures = 1

    def sign(self, data: bytes) -> bytes:
        if self.failures:
            self.failures -= 1
            raise OSError("no answer")
        return KEY.sign(data)


def test_a_failed_signature_leaves_no_trace_in_the_chain() -> None:
    log = Log(
        origin="acme/gw-7",
        epoch=golden_core.EPOCH,
        secret=golden_core.SECRET,
        signer=OutOfOrderSigner(),
        frontier=Frontier(),
        counter=0,
    )
    log.append(READING)
    with pytest.raises(OSError, match="no answer"):
        log.checkpoint(0, 0)
    assert log.signed_size == 0
    checkpoint = log.checkpoint(0, 0).checkpoint
    assert (checkpoint.previous_size, checkpoint.previous_root, checkpoint.counter) == (0, EMPTY_ROOT, 2)


@pytest.mark.parametrize(("origin", "epoch"), [("acme", bytes(16)), ("a/b/c", bytes(16)), ("a/b", bytes(15))])
def test_refuses_other_origins_and_epochs(origin: str, epoch: bytes) -> None:
    with pytest.raises(ValueError, match="origin"):
        Log(origin=origin, epoch=epoch, secret=bytes(32), signer=KEY, frontier=Frontier(), counter=0)


def test_refuses_another_secret() -> None:
    with pytest.raises(EvidenceError, match="32 bytes"):
        Log(origin="a/b", epoch=bytes(16), secret=bytes(31), signer=KEY, frontier=Frontier(), counter=0)


def test_unknown_entries_keep_their_bytes() -> None:
    raw = golden_core.CANONICAL[list(golden_core.ENTRIES).index("unknown-type")]
    assert Salts(seeds=[]).canonical(9, parse_entry(raw)) == raw
    assert parse(raw)[0] is None


def test_golden_log() -> None:
    """The golden entries, salted by the golden secret, are the golden tree."""
    log, tree = golden_core.read("log"), golden_core.read("tree")
    salts = Salts(log["secret"])
    canonical = [
        salts.canonical(sequence, parse_entry(golden_core.read(name.removesuffix(".json"))["canonical"]))
        for sequence, name in enumerate(log["entries"])
    ]
    assert [leaf_hash(raw) for raw in canonical] == list(tree["leaves"])
    assert golden_core.read("checkpoint-ed25519")["fields"]["root"] == tree["roots"][-1]
