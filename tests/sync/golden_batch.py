"""The values behind tests/golden/batch-*.json.

``python tests/sync/golden_batch.py`` writes the files. They are what other implementations test against: a change of a
file is a change of a format and needs a new version in docs/formats.md. The private keys here are for tests alone.

``batch-whole`` is all of the log of ``log.json`` under ``checkpoint-ed25519.json``; ``batch-later`` is its entries from
4 on under ``checkpoint-es256.json``, with the frontier at 4; ``batch-readings`` is 24 readings of two made-up
three-phase meters, whose columns hang together by formulas, under a checkpoint of its own.
"""

import json
from pathlib import Path
from typing import Any

from energybid.core.cose import EDDSA, ES256, PrivateKey, PublicKey
from energybid.core.entries import Entry, Reading, parse
from energybid.core.evidence import Checkpoint, SignedCheckpoint, read_checkpoint, sign_checkpoint
from energybid.core.log import Salts, seeds_for
from energybid.core.tree import Frontier, leaf_hash
from energybid.sync import columns
from energybid.sync.batch import encode_batch

FOLDER = Path(__file__).parent.parent / "golden"
NAMES = ("batch-whole", "batch-later", "batch-readings")
ENTROPY = bytes(range(48))
KEYS = {"ed25519": PrivateKey.from_entropy(ENTROPY, EDDSA), "es256": PrivateKey.from_entropy(ENTROPY, ES256)}


def unhex(text: str) -> bytes:
    """Bytes of ``h'…'``."""
    return bytes.fromhex(text[2:-1])


def read(name: str) -> Any:
    """A golden file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


LOG = read("log")
ORIGIN: str = LOG["origin"]
EPOCH = unhex(LOG["epoch"])
SALTS = Salts(unhex(LOG["secret"]))


def key_for(kid: bytes) -> PublicKey | None:
    """The golden log key with this kid."""
    return {key.kid: key.public for key in KEYS.values()}.get(kid)


def tree(raws: list[bytes], frontier: Frontier | None = None) -> Frontier:
    """The tree of these canonical bytes, behind what ``frontier`` has."""
    grown = frontier.copy() if frontier else Frontier()
    for raw in raws:
        grown.append(leaf_hash(raw))
    return grown


def log_entries() -> list[bytes]:
    """Canonical bytes of the golden log."""
    return [unhex(read(name.removesuffix(".json"))["canonical"]) for name in LOG["entries"]]


def readings() -> list[Entry]:
    """24 readings of two meters: V, I, P, S, Q, power factor, all of P twice over, and a register."""
    out: list[Entry] = []
    for number in range(24):
        meter, row = number % 2, number // 2
        volts, tenths_ma = 2300 + (row * 7 + meter) % 5, 41_000 + 613 * row * (meter + 1) % 977
        factor = 930 - row % 4
        va = round(volts * tenths_ma / 100_000)
        watts = round(va * factor / 1000)
        var = round((va * va - watts * watts) ** 0.5)
        values = (volts, tenths_ma // 100, watts, va, -var, factor, 120_000 + row // 3)
        status = None if number != 13 else (0, 0, 0, 0, 0, 0, 16)
        out.append(
            Reading(
                2 + meter,
                0,
                1_767_225_600_000 + 1000 * row + 3 * meter,
                2,
                2,
                1,
                70_000 + 1000 * row + 3 * meter,
                values,
                status,
            )
        )
    return out


def _golden(raws: list[bytes], first: int, checkpoint: SignedCheckpoint, before: Frontier) -> dict[str, Any]:
    entries = [parse(raw)[1] for raw in raws]
    stream = columns.encode(entries)
    frontier = before if first else None
    frame = encode_batch(first=first, entries=entries, checkpoint=checkpoint, salts=SALTS, frontier=frontier)
    head = checkpoint.checkpoint
    return {
        "origin": ORIGIN,
        "epoch": LOG["epoch"],
        "first": first,
        "end": head.size,
        "seeds": [[span, f"h'{seed.hex()}'"] for span, seed in seeds_for(SALTS, first, head.size)],
        "peaks": [f"h'{peak.hex()}'" for peak in before.peaks] if first else None,
        "canonical": [f"h'{raw.hex()}'" for raw in raws],
        "checkpoint": f"h'{checkpoint.message().hex()}'",
        "columns": f"h'{stream.hex()}'",
        "method": columns.pack(stream)[0],
        "frame": f"h'{frame.hex()}'",
    }


def make() -> dict[str, dict[str, Any]]:
    """What the files hold, made anew."""
    log = log_entries()
    signed = {name: unhex(read(f"checkpoint-{name}")["message"]) for name in KEYS}
    whole = read_checkpoint(signed["ed25519"], KEYS["ed25519"].public)
    later = read_checkpoint(signed["es256"], KEYS["es256"].public)
    before = tree(log)
    raws = [SALTS.canonical(before.size + place, entry) for place, entry in enumerate(readings())]
    after = tree(raws[:10], before), tree(raws, before)
    head = Checkpoint(
        ORIGIN, EPOCH, after[1].size, after[1].root(), after[0].size, after[0].root(), 1_767_229_300_000, 2, 1_234_569
    )
    since = later.checkpoint.previous_size
    return {
        "batch-whole": _golden(log, 0, whole, Frontier()),
        "batch-later": _golden(log[since:], since, later, tree(log[:since])),
        "batch-readings": _golden(raws, before.size, sign_checkpoint(head, KEYS["ed25519"]), before),
    }


if __name__ == "__main__":
    for file, golden in make().items():
        (FOLDER / f"{file}.json").write_text(json.dumps(golden, indent=1) + "\n")
