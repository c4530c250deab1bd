"""The values behind tests/golden/{entry-*,log,tree,checkpoint-*,receipt-*,proof-*}.json.

``python tests/core/golden_core.py`` writes the files that are not there. They are what other implementations test
against: a change of a file is a change of a format and needs a new version in docs/formats.md. The private keys here
are for tests alone.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from energybid.core import cbor
from energybid.core.cose import EDDSA, ES256, PrivateKey
from energybid.core.disclosure import ConsistencyProof, Disclosed, EntryProof, ReadingProof
from energybid.core.entries import (
    TYPE_OF,
    Clock,
    Command,
    Declaration,
    Entry,
    Epoch,
    Gap,
    GapReason,
    Known,
    MarketKind,
    MarketMessage,
    MarketReason,
    Reading,
    Start,
    Unknown,
    canonical,
)
from energybid.core.evidence import Checkpoint, Receipt, sign_checkpoint, sign_receipt
from energybid.core.log import Salts
from energybid.core.quantities import Obis
from energybid.core.tree import EMPTY_ROOT, Frontier, consistency_proof, inclusion_proof, leaf_hash, root_of

FOLDER = Path(__file__).parent.parent / "golden"
ORIGIN = "acme/gw-7"
EPOCH = bytes(range(16))
SECRET = bytes(range(32, 64))
SALTS = Salts(SECRET)
KEYS = {
    "ed25519": PrivateKey.from_entropy(bytes(range(48)), EDDSA),
    "es256": PrivateKey.from_entropy(bytes(range(48)), ES256),
}
_QUANTITIES = (
    (Obis.parse("1-0:32.7.0").code, "V", -1, False),
    (Obis.parse("1-0:14.7.0").code, "Hz", -2, False),
    (Obis.parse("1-0:1.8.0").code, "Wh", 1, True),
)

ENTRIES: dict[str, Entry] = {
    "epoch": Epoch(ORIGIN, 1_767_225_600_000, (bytes(range(16, 32)), 70_000, sha256(b"the epoch before").digest())),
    "start": Start(sha256(b"boot").digest()[:16], 1_767_225_600_001, 4_294_967_296, 2, "0.1.0", sha256(b"c").digest()),
    "declaration": Declaration(
        "zähler-1",
        "acme-em3",
        sha256(b"profile").digest(),
        "SN 0042",
        ((1_000, _QUANTITIES[:2]), (60_000, _QUANTITIES[2:])),
    ),
    "reading": Reading(2, 0, 1_767_225_601_020, 38, 2, 1, 4_294_968_315, (2_301, 5_001), None),
    "reading-partial": Reading(2, 0, 1_767_225_602_024, 61, 1, 1, 4_294_969_319, (None, 24), (1, 16)),
    "reading-bounds": Reading(2, 1, -1, 0, 0, 1, 2**63 - 1, (-(2**63),), None),
    "clock": Clock(1, 4_294_969_400, 1_767_225_602_105, 1_767_229_202_105, 2),
    "gap": Gap(2, 1_767_229_203_000, 1_767_229_209_000, GapReason.NO_REPLY, 7),
    "gap-all": Gap(None, 1_767_229_210_000, 1_767_229_211_000, GapReason.NO_SPACE, 300),
}
ENTRIES["unknown-type"] = Unknown(cbor.encode((1, 4_000, SALTS.salt(len(ENTRIES)), "an entry of a later release", [7])))
ENTRIES["unknown-version"] = Unknown(cbor.encode((2, 3, SALTS.salt(len(ENTRIES)), [[False]])))


def market_message(name: str) -> bytes:
    """A golden message of the market (tests/market/golden_market.py)."""
    return bytes.fromhex(json.loads((FOLDER / f"market-{name}.json").read_text(encoding="utf-8"))["message"][2:-1])


LATER: dict[str, Entry] = {
    "command": Command(
        *("zähler-1", "export-limit", 42, 2, "W", 42, "market/bidder", 2, 1, 1),
        *(1_767_229_212_000, 2, 1, 4_294_979_295, 4_295_279_295),
    ),
    "command-refused": Command(
        *("zähler-1", "export-limit", -5, -1, "W", None, "schedule", 1, 3, 7),
        *(-1, 0, 1, 0, None),
    ),
    "market": MarketMessage(
        MarketKind.AWARD, MarketReason.NONE, market_message("award"), 0, 1_767_226_440_125, 2, 1, 4_295_807_421
    ),
    "market-refused": MarketMessage(
        MarketKind.PRICES, MarketReason.TOO_LONG, bytes(range(64)), 17, 1_767_226_441_000, 1, 1, 4_295_808_296
    ),
}
"""Entries of types that came later: in no log, each with the salt of the sequence behind the golden log."""

CANONICAL = [SALTS.canonical(sequence, entry) for sequence, entry in enumerate(ENTRIES.values())]
LEAVES = [leaf_hash(raw) for raw in CANONICAL]
CHECKPOINT = Checkpoint(
    ORIGIN, EPOCH, len(LEAVES), root_of(LEAVES), 4, root_of(LEAVES[:4]), 1_767_229_215_000, 2, 1_234_567
)
FIRST_CHECKPOINT = Checkpoint(ORIGIN, EPOCH, 4, root_of(LEAVES[:4]), 0, EMPTY_ROOT, 1_767_225_605_000, 1, 1_234_566)
RECEIPT = Receipt(ORIGIN, EPOCH, len(LEAVES), root_of(LEAVES), 1_767_229_216_789)


def plain(value: Any) -> Any:
    """As JSON: byte strings in CBOR's diagnostic notation h'…' (RFC 8949 §8), tuples as lists."""
    if isinstance(value, bytes):
        return f"h'{value.hex()}'"
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def unplain(value: Any) -> Any:
    """Undo ``plain``; lists become tuples."""
    if isinstance(value, str) and value.startswith("h'"):
        return bytes.fromhex(value[2:-1])
    if isinstance(value, dict):
        return {key: unplain(item) for key, item in value.items()}
    return tuple(map(unplain, value)) if isinstance(value, list) else value


def untuple(value: Any) -> Any:
    """Tuples as lists."""
    return [untuple(item) for item in value] if isinstance(value, list | tuple) else value


def read(name: str) -> dict[str, Any]:
    """One golden file, byte strings as bytes and lists as tuples."""
    content: dict[str, Any] = unplain(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    return content


def _entry(sequence: int, entry: Entry) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if not isinstance(entry, Unknown):
        fields = {"type": TYPE_OF[type(entry)], "salt": SALTS.salt(sequence), "fields": entry._asdict()}
    return {"sequence": sequence, **fields, "canonical": CANONICAL[sequence], "leaf": LEAVES[sequence]}


def _later(entry: Entry) -> dict[str, Any]:
    assert not isinstance(entry, Unknown)
    salt = SALTS.salt(len(ENTRIES))
    raw = canonical(entry, salt)
    fields = {"type": TYPE_OF[type(entry)], "salt": salt, "fields": entry._asdict()}
    return {**fields, "canonical": raw, "leaf": leaf_hash(raw)}


def _log() -> dict[str, Any]:
    return {
        "origin": ORIGIN,
        "epoch": EPOCH,
        "secret": SECRET,
        "seeds": {0: SALTS.seed(0), 1: SALTS.seed(1), 2**40: SALTS.seed(2**40)},
        "salts": {n: SALTS.salt(n) for n in (0, 255, 256, 511, 2**48 + 3)},
        "entries": [f"entry-{name}.json" for name in ENTRIES],
        "keys": {
            name: {"pem": key.public.pem().decode(), "thumbprint": key.public.thumbprint(), "kid": key.kid}
            for name, key in KEYS.items()
        },
    }


def _tree() -> dict[str, Any]:
    frontier = Frontier()
    frontiers = [frontier.peaks]
    for leaf in LEAVES:
        frontier.append(leaf)
        frontiers.append(frontier.peaks)
    size = len(LEAVES)
    return {
        "leaves": LEAVES,
        "roots": [root_of(LEAVES[:n]) for n in range(size + 1)],
        "frontiers": frontiers,
        "inclusion": [{"index": i, "size": size, "proof": inclusion_proof(LEAVES, i)} for i in range(size)],
        "consistency": [{"first": n, "second": size, "proof": consistency_proof(LEAVES, n)} for n in range(size + 1)],
    }


def _signed() -> dict[str, dict[str, Any]]:
    files = {}
    for name, key in KEYS.items():
        for kind, checkpoint in (("checkpoint", CHECKPOINT), ("checkpoint-first", FIRST_CHECKPOINT)):
            files[f"{kind}-{name}"] = {
                "fields": checkpoint._asdict(),
                "payload": checkpoint.payload(),
                "message": sign_checkpoint(checkpoint, key).message(),
                "key": name,
            }
        files[f"receipt-{name}"] = {
            "fields": RECEIPT._asdict(),
            "payload": RECEIPT.payload(),
            "message": sign_receipt(RECEIPT, key),
            "key": name,
        }
    return files


def disclosed(sequence: int) -> Disclosed:
    """A golden entry with its way to the root of the golden log."""
    return Disclosed(sequence, CANONICAL[sequence], tuple(inclusion_proof(LEAVES, sequence)))


def _proofs() -> dict[str, dict[str, Any]]:
    """Proof files around the golden messages: gateway and head-end have keys of two kinds."""
    messages = {name: read(name)["message"] for name in _signed()}
    names = list(ENTRIES)
    files = {}
    for log, headend, reading in (("ed25519", "es256", "reading"), ("es256", "ed25519", "reading-partial")):
        proof = ReadingProof(
            messages[f"checkpoint-{log}"],
            messages[f"receipt-{headend}"],
            disclosed(names.index("declaration")),
            disclosed(names.index(reading)),
        )
        files[f"proof-reading-{log}"] = {"file": proof.encode(), "key": log, "headend_key": headend, "entry": reading}
        files[f"proof-reading-without-receipt-{log}"] = {
            "file": proof._replace(receipt=None).encode(),
            "key": log,
            "headend_key": None,
            "entry": reading,
        }
        other = {"reading": "gap", "reading-partial": "unknown-type"}[reading]
        whole = EntryProof(messages[f"checkpoint-{log}"], messages[f"receipt-{headend}"], disclosed(names.index(other)))
        files[f"proof-entry-{log}"] = {"file": whole.encode(), "key": log, "headend_key": headend, "entry": other}
        files[f"proof-entry-without-receipt-{log}"] = {
            "file": whole._replace(receipt=None).encode(),
            "key": log,
            "headend_key": None,
            "entry": other,
        }
        path = tuple(consistency_proof(LEAVES, FIRST_CHECKPOINT.size))
        consistency = ConsistencyProof(messages[f"checkpoint-first-{log}"], messages[f"checkpoint-{log}"], path)
        files[f"proof-consistency-{log}"] = {"file": consistency.encode(), "key": log}
    return files


def files() -> dict[str, Any]:
    """Name → content of every golden file kept here. ES256 signatures differ from call to call."""
    entries = {f"entry-{name}": _entry(n, entry) for n, (name, entry) in enumerate(ENTRIES.items())}
    entries |= {f"entry-{name}": _later(entry) for name, entry in LATER.items()}
    return {**entries, "log": _log(), "tree": _tree(), **_signed(), **_proofs()}


def known(name: str) -> Known:
    """A golden entry of a known type."""
    entry = (ENTRIES | LATER)[name]
    assert not isinstance(entry, Unknown)
    return entry


if __name__ == "__main__":
    for file, content in files().items():
        if (FOLDER / f"{file}.json").exists():
            continue
        text = json.dumps(plain(content), indent=1, ensure_ascii=False)
        (FOLDER / f"{file}.json").write_text(text + "\n", encoding="utf-8")
