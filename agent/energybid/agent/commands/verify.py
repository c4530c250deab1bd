"""``energybid verify``: check a proof, a journal, a head-end's database or a batch, without trusting who wrote it."""

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from energybid.agent.commands.keys import read_public
from energybid.agent.explain import explain, words
from energybid.agent.verify import verify_batch, verify_journal
from energybid.core import exit_codes
from energybid.core.cose import PublicKey
from energybid.core.disclosure import FILE_MAX, is_proof
from energybid.core.errors import EnergybidError, JournalError

if TYPE_CHECKING:
    from collections.abc import Callable

HELP = "check a proof, a journal, a head-end's database or a batch file"
EXAMPLES = """\
examples:
  energybid verify reading.proof --key log.pub.pem --key headend.pub.pem
  energybid verify journal.db --key keys/log.pub.pem --key keys/headend.pub.pem
  energybid verify headend.db --json
  energybid verify batch.bin --key keys/log.pub.pem --origin demo/gw-1

Exit code 0: everything checks. 3: something does not; each fault is listed.
"""
_SQLITE = b"SQLite format 3\0"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``verify``."""
    parser.add_argument("file", type=Path, help="a proof, a journal, a head-end's database, or a batch")
    parser.add_argument("--key", type=Path, action="append", default=[], help="public key, PEM; may be given again")
    parser.add_argument("--ignore-receipt", action="store_true", help="check a proof without the head-end's key")
    parser.add_argument("--origin", help="TENANT/GATEWAY of a batch, from its topic")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Verify and report."""
    keys = [read_public(path) for path in arguments.key]
    try:
        with arguments.file.open("rb") as file:
            head = file.read(FILE_MAX + 1)
    except OSError as error:
        raise EnergybidError(f"{arguments.file}: {error.strerror}") from None
    if is_proof(head):
        return _proof(arguments, head, keys)
    if head.startswith(_SQLITE):
        report = _database(arguments.file, keys)
    else:
        report = verify_batch(arguments.file.read_bytes(), arguments.origin, keys)
    sys.stdout.write((json.dumps(report) if arguments.json else _text(arguments.file, report)) + "\n")
    return exit_codes.OK if report["verified"] else exit_codes.NOT_VERIFIED


def _proof(arguments: argparse.Namespace, data: bytes, keys: list[PublicKey]) -> int:
    named = {key.kid: (key, str(path)) for key, path in zip(keys, arguments.key, strict=True)}
    report = explain(data, named, ignore_receipt=arguments.ignore_receipt)
    text = json.dumps(report) if arguments.json else words(str(arguments.file), report)
    sys.stdout.write(text + "\n")
    return exit_codes.OK if report["verified"] else exit_codes.NOT_VERIFIED


def _database(path: Path, keys: list[PublicKey]) -> dict[str, Any]:
    try:
        database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        report = verify_journal(database, str(path), keys)
        database.close()
    except apsw.Error as error:
        raise JournalError(f"{path}: {error}") from None
    others = importlib.metadata.entry_points(group="energybid.verifiers")
    for entry in others if report is None else ():
        verifier: Callable[[str, list[PublicKey]], dict[str, Any] | None] = entry.load()
        report = report or verifier(str(path), keys)
    if report is None:
        raise EnergybidError(f"{path} is neither a journal nor a head-end's database")
    return report


def _text(path: Path, report: dict[str, Any]) -> str:
    verdict = "verified" if report["verified"] else "NOT VERIFIED"
    lines = [f"{path}: {report['kind']}, {report['entries']} entries, {report['readings']} readings: {verdict}"]
    if "signatures" in report:
        lines.append(f"signatures: {report['signatures']}")
    if report.get("market_messages"):
        signed = report["market_signatures"]
        lines.append(f"a market's messages: {report['market_messages']}, {signed} of them signed by the given keys")
    return "\n".join(lines + [f"fault: {fault}" for fault in report["faults"]])
