"""``energybid prove``: write one small file that lets a stranger check a reading, another entry, or two checkpoints."""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from energybid.agent.databases import histories, opened
from energybid.agent.entry_words import type_name
from energybid.agent.moments import moment_ms, moment_text
from energybid.core import cose, exit_codes
from energybid.core.disclosure import ConsistencyProof, parse_proof
from energybid.core.entries import Entry, MarketKind, MarketMessage, MarketReason, parse
from energybid.core.errors import ConfigurationError, EnergybidError
from energybid.core.evidence import parse_checkpoint
from energybid.core.prover import Finder, Found, History, LostError, prove_consistency, prove_entry, prove_reading
from energybid.core.quantities import ClockState, Obis
from energybid.sync import logged

HELP = "write a small file that proves one reading, another entry, or that one checkpoint continues another"
EXAMPLES = """\
examples:
  energybid prove journal.db --meter main --at 2026-11-22T12:00:00Z -o reading.proof
  energybid prove headend.db --origin demo/gw-1 --meter main --quantity 1-0:1.8.0 -o reading.proof
  energybid prove journal.db --round 42 --message bid -o bid.proof
  energybid prove journal.db --entry 1203 -o entry.proof
  energybid prove journal.db --consistency 1200 3400 -o log.proof
  energybid prove journal.db --consistency reading.proof 3400 -o log.proof
  energybid verify reading.proof --key keys/log.pub.pem --key keys/headend.pub.pem

Works on the gateway's journal, also while the agent runs, and on a head-end's database, which holds all history.
The reading is the last one of the meter at or before --at by the gateway's own clock; without --at, the newest. Of a
market's round, the last message of its kind that counts; others by their place in the log, which 'energybid export'
shows.
"""
_KINDS = {logged.KINDS[kind]: kind for kind in logged.MESSAGES if kind != MarketKind.PRICES}
"""Messages that are of a round."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``prove``."""
    parser.add_argument("database", type=Path, nargs="?", default=Path("journal.db"), help="default: journal.db")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--meter", help="prove a reading of this meter")
    what.add_argument(
        "--consistency",
        nargs=2,
        metavar=("SIZE1", "SIZE2"),
        help="prove that the checkpoint at SIZE2 entries continues the one at SIZE1; instead of a size, a proof file"
        " stands for the checkpoint in it",
    )
    what.add_argument("--round", type=int, metavar="NUMBER", help="prove a message of this round of a market")
    what.add_argument(
        "--entry", type=int, metavar="SEQUENCE", help="prove an entry of any type by its place in the log"
    )
    kinds = [kind for kind, _ in sorted(_KINDS.items(), key=lambda pair: pair[1])]
    parser.add_argument("--message", choices=kinds, help="which message of the round; default: award")
    parser.add_argument("--at", help="time with zone, such as 2026-11-22T12:00:00Z")
    parser.add_argument("--quantity", metavar="OBIS", help="only readings that have it, such as 1-0:1.8.0")
    parser.add_argument("--epoch", help="id of the epoch, or how it begins; default: all, for --consistency the newest")
    parser.add_argument("--origin", help="TENANT/GATEWAY, where the database holds several")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write; must not exist")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Find, prove, write."""
    at_ms, quantity = _checked(arguments)
    if arguments.output.exists():
        raise EnergybidError(f"{arguments.output} exists; name a new file")
    with opened(arguments.database) as database:
        found = _chosen(histories(database, arguments.database), arguments)
        if arguments.consistency:
            facts, data = _consistency(found[-1], arguments.consistency)
        elif arguments.entry is not None:
            facts, data = _entry(found[-1], arguments.entry)
        elif arguments.round is not None:
            facts, data = _entry(*_find_message(found, arguments.round, arguments.message or "award"))
        else:
            facts, data = _reading(*_find(found, arguments.meter, at_ms, quantity), at_ms)
    arguments.output.write_bytes(data)
    facts |= {"file": str(arguments.output), "bytes": len(data)}
    sys.stdout.write((json.dumps(facts) if arguments.json else _text(facts)) + "\n")
    return exit_codes.OK


def _checked(arguments: argparse.Namespace) -> tuple[int | None, bytes | None]:
    """(--at in ms, --quantity as OBIS bytes)."""
    faults = []
    at_ms = quantity = None
    if not arguments.meter and (arguments.at or arguments.quantity):
        faults.append("--at and --quantity choose a reading; they go with --meter alone")
    if arguments.message and arguments.round is None:
        faults.append("--message goes with --round alone")
    try:
        at_ms = moment_ms(arguments.at) if arguments.at else None
    except ValueError as error:
        faults.append(f"--at: {error}")
    try:
        quantity = Obis.parse(arguments.quantity).code if arguments.quantity else None
    except ValueError as error:
        faults.append(f"--quantity: {error}")
    if faults:
        raise ConfigurationError(faults)
    return at_ms, quantity


# ---------------------------------------------------------------- databases


def _chosen(histories: list[History], arguments: argparse.Namespace) -> list[History]:
    """Those of one gateway, and of the epoch if one is named."""
    origins = sorted({history.origin for history in histories})
    if arguments.origin is None and len(origins) > 1:
        raise ConfigurationError([f"the database holds {', '.join(origins)}: choose one with --origin"])
    wanted = [history for history in histories if arguments.origin in {None, history.origin}]
    if not wanted:
        raise EnergybidError(f"the database holds no log of {arguments.origin or 'any gateway'}")
    named = [history for history in wanted if history.epoch.hex().startswith((arguments.epoch or "").lower())]
    if not named or (arguments.epoch and len(named) > 1):
        epochs = ", ".join(history.epoch.hex() for history in wanted)
        raise EnergybidError(f"--epoch {arguments.epoch} names {len(named)} of the epochs {epochs}")
    return named


# ---------------------------------------------------------------- proofs


def _find(histories: list[History], meter: str, at_ms: int | None, quantity: bytes | None) -> tuple[History, Found]:
    """The reading nearest at or before the time over all the epochs; of several at one time the newest epoch's."""
    best: tuple[History, Found] | None = None
    finders = [Finder(history, meter, quantity) for history in histories]
    for history, finder in zip(histories, finders, strict=True):
        found = finder.find(at_ms)
        if found and (best is None or found.reading.time_ms >= best[1].reading.time_ms):
            best = history, found
    if best:
        return best
    when = "" if at_ms is None else f" at or before {moment_text(at_ms)}"
    what = f"no reading of meter {meter}{' with that quantity' if quantity else ''}{when} is kept here"
    if any(finder.lost or history.first for history, finder in zip(histories, finders, strict=True)):
        raise LostError(f"{what}; older history was pruned: ask the head-end")
    meters = sorted(set[str]().union(*(finder.meters for finder in finders)))
    raise EnergybidError(f"{what}; meters seen: {', '.join(meters) or 'none'}")


def _find_message(histories: list[History], number: int, kind: str) -> tuple[History, int]:
    """Where the last message of a round that counts stands."""
    for history in reversed(histories):
        for commit in history.commits():
            found = [n for n, entry in history.entries(commit.first, commit.end) if _is_of(entry, number, _KINDS[kind])]
            if found:
                return history, found[-1]
    what = f"no {kind} of round {number} that counts is kept here"
    if any(history.first for history in histories):
        raise LostError(f"{what}; older history was pruned: ask the head-end")
    raise EnergybidError(what)


def _is_of(entry: Entry, number: int, kind: int) -> bool:
    if not isinstance(entry, MarketMessage) or (entry.kind, entry.reason) != (kind, MarketReason.NONE):
        return False
    return getattr(logged.told(entry), "number", None) == number


def _entry(history: History, sequence: int) -> tuple[dict[str, Any], bytes]:
    if sequence < 0 or all(sequence >= commit.end for commit in history.commits()):
        raise EnergybidError(f"the log of {history.origin}, epoch {history.epoch.hex()}, has no entry {sequence}")
    proof = prove_entry(history, sequence)
    entry = parse(proof.entry.canonical)[1]
    facts = _facts("entry-proof", history, proof.checkpoint) | {
        "sequence": sequence,
        "type": type_name(entry),
        "receipt": proof.receipt is not None,
    }
    return facts, proof.encode()


def _reading(history: History, found: Found, at_ms: int | None) -> tuple[dict[str, Any], bytes]:
    proof = prove_reading(history, found.sequence)
    reading = found.reading
    facts = _facts("reading-proof", history, proof.checkpoint) | {
        "meter": found.declaration.meter,
        "sequence": found.sequence,
        "time": moment_text(reading.time_ms),
        "time_ms": reading.time_ms,
        "before_asked_ms": None if at_ms is None else at_ms - reading.time_ms,
        "clock": ClockState(reading.clock).name.lower(),
        "receipt": proof.receipt is not None,
    }
    return facts, proof.encode()


def _consistency(history: History, named: list[str]) -> tuple[dict[str, Any], bytes]:
    shown = {size: message for size, message in map(partial(_shown, history), named) if message}
    first, second = sorted(_shown(history, text)[0] for text in named)
    proof = prove_consistency(history, first, second, shown)
    return _facts("consistency-proof", history, proof.second) | {"first_size": first}, proof.encode()


def _shown(history: History, text: str) -> tuple[int, bytes | None]:
    """(size, checkpoint in the file if it is one) of what names a checkpoint."""
    if text.isascii() and text.isdigit():
        return int(text), None
    try:
        proof = parse_proof(Path(text).read_bytes())
    except OSError as error:
        raise EnergybidError(f"--consistency {text}: neither a number nor a file that can be read: {error}") from None
    message = proof.second if isinstance(proof, ConsistencyProof) else proof.checkpoint
    checkpoint = parse_checkpoint(cose.peek(message)[1])
    if (checkpoint.origin, checkpoint.epoch) != (history.origin, history.epoch):
        raise EnergybidError(f"{text} is of epoch {checkpoint.epoch.hex()} of {checkpoint.origin}")
    return checkpoint.size, message


def _facts(kind: str, history: History, message: bytes) -> dict[str, Any]:
    size = parse_checkpoint(cose.peek(message)[1]).size
    return {"kind": kind, "origin": history.origin, "epoch": history.epoch.hex(), "size": size}


def _text(facts: dict[str, Any]) -> str:
    head = f"{facts['file']}: {facts['bytes']} bytes: "
    if facts["kind"] == "consistency-proof":
        return (
            f"{head}the log of {facts['origin']} at {facts['size']} entries continues the one at {facts['first_size']}"
        )
    receipt = (
        f"with the head-end's receipt for the first {facts['size']} entries"
        if facts["receipt"]
        else "WITHOUT a receipt: none that covers it is kept here; the head-end keeps them all"
    )
    if facts["kind"] == "entry-proof":
        return f"{head}entry {facts['sequence']} of {facts['origin']}, of type {facts['type']}\n{receipt}"
    early = (
        "" if facts["before_asked_ms"] is None else f", {facts['before_asked_ms'] / 1000:.3f} s before the time asked"
    )
    return (
        f"{head}reading {facts['sequence']} of {facts['origin']}, meter {facts['meter']}, {facts['time']}"
        f" (clock {facts['clock']}){early}\n{receipt}"
    )
