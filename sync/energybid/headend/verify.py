"""Verify a head-end's database without trusting who wrote it: for ``energybid verify`` (group energybid.verifiers).

Every epoch's tree is rebuilt from its entries; every checkpoint and every receipt must be signed and hold the root of
the tree at its size. Reads only, also while the head-end runs: all of it in one snapshot.
"""

from typing import Any

import apsw

from energybid.core import cose
from energybid.core.cose import PublicKey
from energybid.core.entries import Entry, Epoch, MarketMessage, Reading
from energybid.core.errors import EvidenceError, JournalError
from energybid.core.evidence import parse_checkpoint, verify_receipt
from energybid.core.log import parse_entry
from energybid.core.tree import Frontier, leaf_hash
from energybid.headend.store import EpochRow, Store, known
from energybid.sync import logged

FAULTS_MAX = 100
"""A report stops listing after so many."""


def verify(path: str, public_keys: list[PublicKey]) -> dict[str, Any] | None:
    """Verify a database.

    Args:
        path: The SQLite file.
        public_keys: Gateways' log keys and the head-end's; when empty, those the database itself has registered.

    Returns:
        The report, or None when the file is not a head-end's database.

    Raises:
        JournalError: It can not be read.
    """
    try:
        database = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            if known(database) is None:
                return None
            database.execute("BEGIN")
            return _Verification(Store(database, path), public_keys).report()
        finally:
            database.close()
    except apsw.Error as error:
        raise JournalError(f"{path}: {error}") from None


class _Verification:
    def __init__(self, store: Store, keys: list[PublicKey]) -> None:
        self._store = store
        self._given = {key.kid: key for key in keys}
        self._own: dict[str | None, dict[bytes, PublicKey]] = {}
        self.faults: list[str] = []
        self._broken = 0
        self._market = self._market_signed = 0
        for origin, pem in store.registered():
            try:
                key = PublicKey.from_pem(pem.encode())
            except ValueError as error:
                self._fault(f"a registered key of {origin or 'the head-end'} can not be read: {error}")
            else:
                self._own.setdefault(origin, {})[key.kid] = key

    def report(self) -> dict[str, Any]:
        gateways: list[dict[str, Any]] = [
            {"origin": origin, "epochs": [self._epoch(origin, row) for row in self._store.epochs(number)]}
            for number, origin in self._store.origins()
        ]
        epochs = [epoch for gateway in gateways for epoch in gateway["epochs"]]
        if self._broken > len(self.faults):
            self.faults.append(f"and {self._broken - len(self.faults)} more")
        return {
            "kind": "headend",
            "gateways": gateways,
            "entries": sum(epoch["size"] for epoch in epochs),
            "readings": sum(epoch["readings"] for epoch in epochs),
            "market_messages": self._market,
            "market_signatures": self._market_signed,
            "checkpoints": sum(epoch["checkpoints"] for epoch in epochs),
            "conflicts": sum(len(self._store.conflicts(number)) for number, _ in self._store.origins()),
            "signatures": "checked under the given keys" if self._given else "checked under the keys registered in it",
            "verified": not self.faults,
            "faults": self.faults,
        }

    def _fault(self, text: str) -> None:
        self._broken += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(text)

    def _key(self, owner: str | None, message: bytes) -> PublicKey:
        kid, _ = cose.peek(message)
        keys = self._given or self._own.get(owner, {})
        if kid not in keys:
            raise EvidenceError(f"signed by key {kid.hex()}, which is not among the {len(keys)} known ones")
        return keys[kid]

    def _epoch(self, origin: str, row: EpochRow) -> dict[str, Any]:
        name = f"{origin} epoch {row.epoch.hex()}"
        signed = dict(self._store.checkpoints(row))
        receipts = {receipt.size: receipt.message for receipt in self._store.receipts(row)}
        roots, readings, frontier = self._rebuild(name, origin, row, signed.keys() | receipts.keys())
        for size, message in signed.items():
            self._checked(f"{name}: checkpoint at {size}", self._checkpoint, origin, row, message, roots.get(size))
        for size, message in receipts.items():
            self._checked(f"{name}: receipt for {size}", self._receipt, origin, row, message, roots.get(size))
        self._checked(name, _counters_grow, signed)
        if (row.size, row.peaks) != (frontier.size, frontier.peaks):
            self._fault(f"{name}: {row.size} entries are claimed; {frontier.size} lead to another tree")
        if row.size and row.size not in signed:
            self._fault(f"{name}: no checkpoint covers the last entries")
        return {
            "epoch": row.epoch.hex(),
            "size": frontier.size,
            "readings": readings,
            "checkpoints": len(signed),
            "receipts": len(receipts),
            "root": frontier.root().hex(),
        }

    def _rebuild(
        self, name: str, origin: str, row: EpochRow, sizes: set[int]
    ) -> tuple[dict[int, bytes], int, Frontier]:
        """(root at each of ``sizes``, number of readings, the whole tree), up to the first gap."""
        roots: dict[int, bytes] = {}
        frontier, readings = Frontier(), 0
        for sequence, raw in self._store.entries(row, 0, 2**63 - 1):
            if sequence != frontier.size:
                self._fault(f"{name}: entries {frontier.size} to {sequence} are missing")
                break
            try:
                entry = parse_entry(raw)
                readings += isinstance(entry, Reading)
                _check_opening(entry, sequence, origin)
                if isinstance(entry, MarketMessage):
                    self._market += 1
                    self._market_signed += logged.checked(entry, self._given)
            except EvidenceError as error:
                self._fault(f"{name}: entry {sequence}: {error}")
            frontier.append(leaf_hash(raw))
            if frontier.size in sizes:
                roots[frontier.size] = frontier.root()
        return roots, readings, frontier

    def _checked(self, what: str, check: Any, *arguments: Any) -> None:  # noqa: ANN401
        try:
            check(*arguments)
        except EvidenceError as error:
            self._fault(f"{what}: {error}")

    def _checkpoint(self, origin: str, row: EpochRow, message: bytes, root: bytes | None) -> None:
        checkpoint = parse_checkpoint(cose.verify(message, self._key(origin, message)))
        if (checkpoint.origin, checkpoint.epoch, checkpoint.root) != (origin, row.epoch, root):
            raise EvidenceError("does not sign the stored entries")

    def _receipt(self, origin: str, row: EpochRow, message: bytes, root: bytes | None) -> None:
        receipt = verify_receipt(message, self._key(None, message))
        if (receipt.origin, receipt.epoch, receipt.root) != (origin, row.epoch, root):
            raise EvidenceError("does not sign the stored entries")


def _check_opening(entry: Entry, sequence: int, origin: str) -> None:
    """Entry 0, and no other, is an Epoch entry, with the gateway's origin (docs/formats.md §3.0, §3.9)."""
    if isinstance(entry, Epoch) != (sequence == 0):
        raise EvidenceError("an epoch has one epoch entry, its first")
    if isinstance(entry, Epoch) and entry.origin != origin:
        raise EvidenceError(f"begins an epoch of {entry.origin}")


def _counters_grow(signed: dict[int, bytes]) -> None:
    """The checkpoints' counters grow with their sizes (docs/formats.md §5.3)."""
    before = 0
    for size, message in signed.items():
        counter = parse_checkpoint(cose.peek(message)[1]).counter
        if counter <= before:
            raise EvidenceError(f"checkpoint at {size}: counter {counter} comes after {before}")
        before = counter
