"""Verifying a journal or a batch file: rebuilds the tree from the entries and checks every root and signature.

Used by ``energybid verify``; reads only, also while the agent runs.
"""

from collections import Counter
from typing import Any

from energybid.agent.journal import Journal
from energybid.agent.rows import Acknowledged, EpochRow, Segment, same_root, split_hashes
from energybid.core import cose
from energybid.core.cose import PublicKey
from energybid.core.entries import Entry, Epoch, MarketMessage, Reading
from energybid.core.errors import EvidenceError, JournalDamagedError
from energybid.core.evidence import verify_receipt
from energybid.core.log import Salts
from energybid.core.ports import Database
from energybid.core.tree import Frontier, leaf_hash
from energybid.sync import logged
from energybid.sync.batch import decode_batch, replay

FAULTS_MAX = 100
"""A report stops listing after so many."""


class Report:
    """Counts and faults on the way."""

    def __init__(self, keys: list[PublicKey]) -> None:
        """Check signatures under ``keys``; with none, hashes and order alone."""
        self.keys = {key.kid: key for key in keys}
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()

    def fault(self, text: str) -> None:
        """Note a fault."""
        self.counts["faults"] += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)

    def entry(self, sequence: int, entry: Entry) -> None:
        """Count an entry; check a market's message where its key was given."""
        self.counts["entries"] += 1
        self.counts["readings"] += isinstance(entry, Reading)
        if isinstance(entry, MarketMessage):
            self.counts["market"] += 1
            try:
                self.counts["market signed"] += logged.checked(entry, self.keys)
            except EvidenceError as error:
                self.fault(f"entry {sequence}, a market's message: {error}")

    def key(self, kid: bytes) -> PublicKey:
        """The key of a kid.

        Raises:
            EvidenceError: It was not given.
        """
        try:
            return self.keys[kid]
        except KeyError:
            raise EvidenceError(f"signed by key {kid.hex()}, which was not given (--key)") from None

    def result(self, kind: str, **facts: object) -> dict[str, Any]:
        """The report as one JSON object."""
        return {
            "kind": kind,
            **facts,
            "entries": self.counts["entries"],
            "readings": self.counts["readings"],
            "market_messages": self.counts["market"],
            "market_signatures": self.counts["market signed"],
            "checkpoints": self.counts["checkpoints"],
            "signatures": "checked" if self.keys else "not checked: no --key",
            "verified": not self.faults,
            "faults": self.faults,
        }


def verify_journal(database: Database, path: str, keys: list[PublicKey]) -> dict[str, Any] | None:
    """Verify all of a journal; None when the database is none.

    Args:
        database: Opened for reading.
        path: Its name.
        keys: The gateway's public log keys, the head-end's for the stored receipt, and, for the market's messages, the
            market's and the gateway's for bids.
    """
    tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if not {"epoch", "segment", "acknowledged"} <= tables:
        return None
    report = Report(keys)
    journal = Journal(database, path, check=False)
    epochs = [_epoch(report, journal, epoch) for epoch in journal.epochs()]
    return report.result(
        "journal",
        epochs=epochs,
        acknowledged=_acknowledged(report, journal),
        gateway=epochs[-1]["origin"] if epochs else None,
    )


def _acknowledged(report: Report, journal: Journal) -> int:
    mark = journal.acknowledged()
    if mark is None:
        return 0
    if report.keys:
        try:
            _check_receipt(report, journal, mark)
        except EvidenceError as error:
            report.fault(f"stored receipt: {error}")
    return mark.size


def _check_receipt(report: Report, journal: Journal, mark: Acknowledged) -> None:
    receipt = verify_receipt(mark.receipt, report.key(cose.peek(mark.receipt)[0]))
    root = journal.root_at(mark.epoch, receipt.size)
    if receipt.size != mark.size or root not in {None, receipt.root}:
        raise EvidenceError(f"what it signs, {receipt.size} entries, does not fit the log")


def _epoch(report: Report, journal: Journal, epoch: EpochRow) -> dict[str, Any]:
    walk = _Walk(report, epoch)
    try:
        for segment in journal.segments(epoch.number, 0):
            walk.step(segment)
    except (EvidenceError, JournalDamagedError) as error:
        report.fault(f"epoch {epoch.id.hex()}: {error}")
    return {
        "epoch": epoch.id.hex(),
        "origin": epoch.origin,
        "first": walk.first,
        "size": walk.frontier.size,
        "readings": walk.readings,
        "root": walk.frontier.root().hex(),
    }


class _Walk:
    """From segment to segment through one epoch."""

    def __init__(self, report: Report, epoch: EpochRow) -> None:
        self.first = 0
        self.readings = 0
        self.frontier = Frontier()
        self._report = report
        self._epoch = epoch
        self._salts = Salts(epoch.secret)
        self._begun = False
        self._counter = 0

    def step(self, segment: Segment) -> None:
        if not self._begun:  # the beginning may have been pruned; then the first segment carries the frontier
            self._begun = True
            self.first = segment.first
            self.frontier = Frontier(segment.first, split_hashes(segment.peaks or b""))
        if segment.first != self.frontier.size:
            raise EvidenceError(f"entries {self.frontier.size} to {segment.first} are missing")
        if segment.counter <= self._counter:
            raise EvidenceError(f"checkpoint at {segment.end}: counter {segment.counter} comes after {self._counter}")
        self._counter = segment.counter
        previous_root = self.frontier.root()
        for entry in segment.entries():
            if isinstance(entry, Epoch) != (self.frontier.size == 0):
                raise EvidenceError(f"entry {self.frontier.size}: an epoch has one epoch entry, its first")
            self.frontier.append(leaf_hash(self._salts.canonical(self.frontier.size, entry)))
            if segment.previous and segment.previous[0] == self.frontier.size:
                same_root(segment, self.frontier)
            self.readings += isinstance(entry, Reading)
            self._report.entry(self.frontier.size - 1, entry)
        if self.frontier.root() != segment.root:
            raise EvidenceError(f"entries {segment.first} to {segment.end} do not lead to the root signed for them")
        if self._report.keys:
            signed = Journal.checkpoint_after(self._epoch, segment, previous_root)
            signed.verify(self._report.key(segment.kid))
        self._report.counts["checkpoints"] += 1


def verify_batch(frame: bytes, origin: str | None, keys: list[PublicKey]) -> dict[str, Any]:
    """Verify a batch frame on its own.

    Args:
        frame: The MQTT payload.
        origin: ``tenant/gateway`` of the topic it came on; without it the signature can not be checked.
        keys: The gateway's public log keys.
    """
    report = Report(keys)
    batch = decode_batch(frame)
    for sequence, entry in enumerate(batch.entries, batch.first):
        report.entry(sequence, entry)
    if keys and origin:
        start = Frontier() if batch.first == 0 else None
        if start is None and batch.peaks is None:
            raise EvidenceError(f"the batch begins at {batch.first}: its root needs the entries before it")
        replay(batch, origin=origin, frontier=start, key_for=report.keys.get)
        report.counts["checkpoints"] = 1
    else:
        report.keys = {}
    return report.result("batch", epoch=batch.epoch.hex(), first=batch.first, end=batch.end)
