"""What the head-end does with a batch: verify, store, refuse or keep as evidence, and sign receipts for what is stored.

No I/O but the store, no clock but the one it is given. ``process`` runs in the worker thread:

1. In one transaction, every batch of the list is decoded, rebuilt and verified under the gateway's registered keys.
   What continues the stored prefix is appended. What is stored already changes nothing. What begins beyond the prefix
   waits, if it verifies by itself. What contradicts the prefix is kept whole as evidence and never replaces anything.
2. After the commit, one receipt is signed for each epoch that was heard of, stored, and handed back to be published.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from energybid.core import cose
from energybid.core.cose import PublicKey, Signer
from energybid.core.entries import Entry, Epoch, Reading
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Receipt, parse_checkpoint, sign_receipt
from energybid.core.ports import Message
from energybid.core.tree import EMPTY_ROOT, Frontier
from energybid.headend.store import EpochRow, ReceiptRow, Store
from energybid.sync.batch import Batch, Replayed, decode_batch, replay
from energybid.sync.topics import parse, topics_for

logger = logging.getLogger("energybid.headend")

REPEAT_S = 60.0
"""The same complaint is logged once in this time."""
COMPLAINTS_MAX = 50
"""Most complaints logged in that time."""
NS_PER_MS = 1_000_000


class Outgoing(NamedTuple):
    """A receipt to be published."""

    topic: str
    payload: bytes
    retain: bool
    """False for an older epoch's, or one that is not known here: they must not hide the newest."""


class Gateway(NamedTuple):
    """A registered gateway."""

    number: int
    origin: str
    keys: dict[bytes, PublicKey]
    """Its log keys by kid."""
    topic: str
    """Where its receipts go."""


class Registration(NamedTuple):
    """A gateway as the configuration has it."""

    tenant: str
    id: str
    keys: tuple[PublicKey, ...]


class RefusedBatchError(EvidenceError):
    """Nothing of it is stored, and the sender gets no answer."""


class Ledger:
    """Judges batches and keeps the store."""

    def __init__(self, store: Store, signer: Signer, public: PublicKey, now_ns: Callable[[], int]) -> None:
        """Work on an open store.

        Args:
            store: The database.
            signer: The head-end's receipt key.
            public: Its public half.
            now_ns: Wall clock.
        """
        self.refused: Counter[str] = Counter()
        """Batches refused since the start, by kind."""
        self._store = store
        self._signer = signer
        self._now_ns = now_ns
        self._gateways: dict[str, Gateway] = {}
        self._complaints: set[str] = set()
        self._complaints_ms = 0
        self._unsaid = 0
        with store.transaction():
            store.register_self(signer.kid, public.pem())

    def register(self, gateways: Iterable[Registration]) -> None:
        """Accept batches of these gateways from now on."""
        with self._store.transaction():
            for g in gateways:
                origin = f"{g.tenant}/{g.id}"
                number = self._store.register(origin, {key.kid: key.pem() for key in g.keys})
                keys = {key.kid: key for key in g.keys}
                self._gateways[origin] = Gateway(number, origin, keys, topics_for(g.tenant, g.id).receipt)

    # ------------------------------------------------------------ from outside

    def process(self, messages: Iterable[Message]) -> list[Outgoing]:
        """Store what the messages bring, in one transaction; returns the receipts to publish.

        Raises:
            JournalError: The database failed; nothing is stored and no receipt is signed.
        """
        answers: dict[tuple[int, bytes], Gateway] = {}
        with self._store.transaction():
            for message in messages:
                try:
                    gateway, epoch = self._message(message)
                except EvidenceError as error:
                    self._refuse(message.topic, error)
                else:
                    answers[gateway.number, epoch] = gateway
        return self._receipts((gateway, epoch) for (_, epoch), gateway in answers.items())

    def greetings(self) -> list[Outgoing]:
        """The receipts of every registered gateway's newest epoch, for a broker that may have lost them.

        Signed anew: this database may have been restored from an older copy, and the gateways take a receipt for the
        head-end's present state only if it is not older than the last one they saw.
        """
        newest = ((g, self._store.epochs(g.number)[-1:]) for g in self._gateways.values())
        return self._receipts(((gateway, row.epoch) for gateway, rows in newest for row in rows), anew=True)

    # ------------------------------------------------------------ receipts

    def _receipts(self, wanted: Iterable[tuple[Gateway, bytes]], *, anew: bool = False) -> list[Outgoing]:
        """Sign for what is committed. A receipt that was signed before is given again as it was, or ``anew``."""
        found: list[Outgoing] = []
        new: list[tuple[EpochRow, ReceiptRow]] = []
        for gateway, epoch in wanted:
            row = self._store.epoch(gateway.number, epoch)
            if row is None:
                found.append(
                    Outgoing(gateway.topic, self._sign(gateway, epoch, 0, EMPTY_ROOT, 0).message, retain=False)
                )
                continue
            last = self._store.receipt(row)
            if anew or last is None or last.size != row.size:
                root = row.frontier().root()
                last = self._sign(gateway, epoch, row.size, root, last.time_ms if last else 0)
                new.append((row, last))
            retain = row.id == self._store.newest(gateway.number)
            found.append(Outgoing(gateway.topic, last.message, retain))
        if new:
            with self._store.transaction():
                for row, receipt in new:
                    self._store.add_receipt(row, receipt)
        return found

    def _sign(self, gateway: Gateway, epoch: bytes, size: int, root: bytes, after_ms: int) -> ReceiptRow:
        """A receipt; its time never goes back, whatever the clock does."""
        time_ms = max(self._now_ns() // NS_PER_MS, after_ms)
        receipt = Receipt(gateway.origin, epoch, size, root, time_ms)
        return ReceiptRow(size, sign_receipt(receipt, self._signer), time_ms)

    # ------------------------------------------------------------ one batch

    def _message(self, message: Message) -> tuple[Gateway, bytes]:
        match parse(message.topic):
            case (str() as tenant, str() as name, "log"):
                gateway = self._gateways.get(f"{tenant}/{name}")
            case _:
                raise RefusedBatchError("not a topic for batches")
        if gateway is None:
            raise RefusedBatchError("no such gateway is registered")
        batch = decode_batch(message.payload)
        if batch.kid not in gateway.keys:
            raise RefusedBatchError(f"signed by key {batch.kid.hex()}, which is not registered for it")
        _one_epoch_entry(gateway, batch)
        self._batch(gateway, batch, message.payload)
        return gateway, batch.epoch

    def _batch(self, gateway: Gateway, batch: Batch, frame: bytes) -> None:
        row = self._store.epoch(gateway.number, batch.epoch)
        if batch.first > (row.size if row else 0):
            self._beyond(gateway, batch, frame)
            return
        row = self._continue(gateway, row, batch, frame) if row else self._begin(gateway, batch, frame)
        self._join(gateway, row)

    def _begin(self, gateway: Gateway, batch: Batch, frame: bytes) -> EpochRow:
        """The first batch of an epoch."""
        replayed = self._replay(gateway, batch, Frontier())
        first = batch.entries[0]
        if isinstance(first, Epoch):  # _one_epoch_entry has seen to it
            self._succeeds(gateway, first, batch, frame)
        row = self._store.add_epoch(gateway.number, batch.epoch, self._now_ms())
        logger.info("%s: begins epoch %s", gateway.origin, batch.epoch.hex())
        return self._append(row, batch, replayed)

    def _continue(self, gateway: Gateway, row: EpochRow, batch: Batch, frame: bytes) -> EpochRow:
        """A batch that begins within the prefix, or at its end."""
        if batch.end <= row.size and self._same_checkpoint(row, batch):
            return row
        try:
            replayed = self._replay(gateway, batch, self._store.frontier_at(row, batch.first))
        except EvidenceError as error:
            self._disagrees(gateway, batch, frame, str(error))
            return row
        stored = self._store.entries(row, batch.first, min(batch.end, row.size))
        for (sequence, ours), theirs in zip(stored, replayed.canonical, strict=False):
            if ours != theirs:
                self._conflict(gateway, batch, frame, "entries", f"two different entries {sequence} are signed")
                return row
        if batch.end <= row.size:
            return row
        last = self._store.checkpoint(row, row.size)
        counter = parse_checkpoint(cose.peek(last)[1]).counter if last else 0
        if batch.counter <= counter:
            detail = f"checkpoint {batch.counter} comes after checkpoint {counter}: the counter must grow"
            self._conflict(gateway, batch, frame, "counter", detail)
            return row
        return self._append(row, batch, replayed)

    def _beyond(self, gateway: Gateway, batch: Batch, frame: bytes) -> None:
        """A batch that begins beyond the prefix waits, if it can be verified at all."""
        if batch.peaks is None:
            what = f"a batch begins at {batch.first}, beyond what is stored; the gateway is told to go back"
            self._complain(f"{gateway.origin} gap", f"{gateway.origin}: {what}")
            return
        replay(batch, origin=gateway.origin, frontier=None, key_for=gateway.keys.get)
        if not self._store.add_pending(gateway.number, batch.epoch, (batch.first, batch.end), frame):
            what = f"{gateway.origin}: too many batches wait for earlier ones; this one is not kept"
            self._complain(f"{gateway.origin} pending", what)

    def _join(self, gateway: Gateway, row: EpochRow) -> None:
        """Take in what waited for the prefix that is there now."""
        while (frame := self._store.take_pending(row)) is not None:
            row = self._continue(gateway, row, decode_batch(frame), frame)

    def _append(self, row: EpochRow, batch: Batch, replayed: Replayed) -> EpochRow:
        new = row.size - batch.first
        return self._store.append(
            row,
            replayed.canonical[new:],
            replayed.frontier,
            readings=count_readings(batch.entries[new:]),
            message=replayed.checkpoint.message(),
            now_ms=self._now_ms(),
        )

    @staticmethod
    def _replay(gateway: Gateway, batch: Batch, frontier: Frontier) -> Replayed:
        return replay(batch, origin=gateway.origin, frontier=frontier, key_for=gateway.keys.get)

    def _same_checkpoint(self, row: EpochRow, batch: Batch) -> bool:
        message = self._store.checkpoint(row, batch.end)
        return message is not None and message.endswith(batch.signature)

    # ------------------------------------------------------------ evidence

    def _disagrees(self, gateway: Gateway, batch: Batch, frame: bytes, why: str) -> None:
        """Its root does not follow from ours; with its own peaks it may verify all the same."""
        kind = "unverified"
        if batch.peaks is not None:
            try:
                replay(batch, origin=gateway.origin, frontier=None, key_for=gateway.keys.get)
            except EvidenceError as error:
                why = str(error)
            else:
                kind, why = "fork", f"signed over another tree of the first {batch.first} entries"
        self._conflict(gateway, batch, frame, kind, why)

    def _succeeds(self, gateway: Gateway, first: Epoch, batch: Batch, frame: bytes) -> None:
        """A new epoch must name the one before it as it is known here."""
        known = self._store.epochs(gateway.number)
        if first.previous is None:
            if known:
                self._conflict(
                    gateway, batch, frame, "epoch", f"names none before it; {known[-1].epoch.hex()} is known"
                )
            return
        epoch, size, root = first.previous
        row = next((row for row in known if row.epoch == epoch), None)
        if row is None:
            logger.warning("%s: its epoch before, %s, is not known here", gateway.origin, epoch.hex())
        elif size != row.size:
            self._conflict(
                gateway, batch, frame, "epoch", f"names {size} entries of {epoch.hex()}; {row.size} are here"
            )
        elif root != row.frontier().root():
            self._conflict(gateway, batch, frame, "epoch", f"names another root of {epoch.hex()} at {size} entries")

    def _conflict(self, gateway: Gateway, batch: Batch, frame: bytes, kind: str, detail: str) -> None:
        new = self._store.add_conflict(
            gateway.number,
            batch.epoch,
            (batch.first, batch.end),
            kind=kind,
            detail=detail,
            frame=frame,
            now_ms=self._now_ms(),
        )
        kept = "kept as evidence" if new else "kept before, or too many are"
        text = (
            f"{gateway.origin}: CONFLICT ({kind}) in epoch {batch.epoch.hex()}, {batch.first} to {batch.end}: {detail}"
        )
        if new:
            logger.error("%s; %s", text, kept)
        else:
            self._complain(f"{gateway.origin} conflict", f"{text}; {kept}")

    # ------------------------------------------------------------ complaints

    def _refuse(self, topic: str, error: EvidenceError) -> None:
        kind = "refused" if isinstance(error, RefusedBatchError) else "garbage"
        self.refused[kind] += 1
        self._complain(f"{topic} {kind}", f"refused a message on {topic[:200]!r}: {error}")

    def _complain(self, about: str, text: str) -> None:
        """Log a warning, but not about the same thing again and again, nor about everything that a flood brings."""
        now_ms = self._now_ms()
        if not 0 <= now_ms - self._complaints_ms < REPEAT_S * 1000:
            if self._unsaid:
                logger.warning("%d more messages like the last ones were refused or kept", self._unsaid)
            self._complaints, self._complaints_ms, self._unsaid = set(), now_ms, 0
        if about in self._complaints or len(self._complaints) >= COMPLAINTS_MAX:
            self._unsaid += 1
            return
        self._complaints.add(about)
        logger.warning("%s", text)

    def _now_ms(self) -> int:
        return self._now_ns() // NS_PER_MS


def _one_epoch_entry(gateway: Gateway, batch: Batch) -> None:
    """Entry 0 of an epoch is its Epoch entry, with the gateway's origin, and no other is one (docs/formats.md §3.0)."""
    for sequence, entry in enumerate(batch.entries, batch.first):
        if isinstance(entry, Epoch) and sequence:
            raise RefusedBatchError(f"entry {sequence} of epoch {batch.epoch.hex()} begins an epoch again")
    first = batch.entries[0]
    if batch.first == 0 and not (isinstance(first, Epoch) and first.origin == gateway.origin):
        raise RefusedBatchError(f"epoch {batch.epoch.hex()} does not begin with an epoch entry of this gateway")


def count_readings(entries: Iterable[Entry]) -> int:
    """How many of the entries are readings."""
    return sum(isinstance(entry, Reading) for entry in entries)
