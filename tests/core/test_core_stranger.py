"""The stranger's verifier (written from docs/formats.md alone) accepts the golden files and refuses what is broken."""

import contextlib
import random

import golden_core
import pytest
import stranger
from energybid.core import entries
from energybid.core.errors import EvidenceError

ENTRY_FILES = [f"entry-{name}" for name in golden_core.ENTRIES]
SIGNED_FILES = [f"{kind}-{key}" for kind in ("checkpoint", "checkpoint-first", "receipt") for key in golden_core.KEYS]


def pem(key: str) -> str:
    return str(golden_core.read("log")["keys"][key]["pem"])


@pytest.mark.parametrize("name", ENTRY_FILES)
def test_reads_entries(name: str) -> None:
    golden = golden_core.read(name)
    array = stranger.entry(golden["canonical"])
    if "fields" in golden:
        assert array[2:] == [golden["salt"], *golden_core.untuple(list(golden["fields"].values()))]
    assert stranger.leaf(golden["canonical"]) == golden["leaf"]


def test_derives_seeds_and_salts() -> None:
    log = golden_core.read("log")
    for span, seed in log["seeds"].items():
        assert stranger.seed(log["secret"], int(span)) == seed
    for sequence, salt in log["salts"].items():
        assert stranger.salt(stranger.seed(log["secret"], int(sequence) // 256), int(sequence)) == salt
    reading = golden_core.read("entry-reading")
    assert stranger.salt(log["seeds"]["0"], reading["sequence"]) == reading["salt"]


@pytest.mark.parametrize("name", SIGNED_FILES)
def test_verifies_what_was_signed(name: str) -> None:
    golden = golden_core.read(name)
    payload = stranger.signed(golden["message"], pem(golden["key"]))
    read = stranger.receipt if name.startswith("receipt") else stranger.checkpoint
    assert read(payload) == list(golden["fields"].values())


def test_discloses_one_reading() -> None:
    reading, tree, receipt = (golden_core.read(name) for name in ("entry-reading", "tree", "receipt-ed25519"))
    size, root = stranger.receipt(stranger.signed(receipt["message"], pem("ed25519")))[2:4]
    proof = tree["inclusion"][reading["sequence"]]["proof"]
    assert stranger.included(stranger.leaf(reading["canonical"]), reading["sequence"], size, proof) == root
    assert stranger.root(tree["leaves"]) == root


def flips(data: bytes) -> list[bytes]:
    """Every copy of the data with one bit changed."""
    number = int.from_bytes(data, "big")
    return [(number ^ 1 << bit).to_bytes(len(data), "big") for bit in range(8 * len(data))]


@pytest.mark.parametrize("name", SIGNED_FILES)
def test_refuses_every_flipped_bit(name: str) -> None:
    golden = golden_core.read(name)
    for message in flips(golden["message"]):
        with pytest.raises(stranger.Refused):
            stranger.signed(message, pem(golden["key"]))


def test_agrees_with_us_on_hostile_entries() -> None:
    """Mutated entries: both readers accept the same ones."""
    chance = random.Random(9162)
    accepted = 0
    for name in ENTRY_FILES:
        canonical = golden_core.read(name)["canonical"]
        for mutant in flips(canonical) + [mutate(canonical, chance) for _ in range(300)]:
            ours = theirs = False
            with contextlib.suppress(EvidenceError):
                entries.parse(mutant)
                ours = True
            with contextlib.suppress(stranger.Refused):
                stranger.entry(mutant)
                theirs = True
            assert ours == theirs, mutant.hex()
            accepted += ours
    assert accepted


def mutate(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    at = chance.randrange(len(changed))
    changed[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(4))
    return bytes(changed)
