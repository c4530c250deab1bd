"""Upload: batches of committed entries to the head-end, until its receipts cover them.

The journal is the only queue: this task keeps a position and a window, never entries. Batches go in order, end on
checkpoints, and at most ``window`` of them are without a receipt. A receipt is the only acknowledgement; the broker's
PUBACK is not. After a lost connection, or when no receipt comes in time, sending starts again at the acknowledged mark:
the head-end stores every entry once, however often it comes.

What an older epoch still holds without a receipt goes first, one batch at a time; then the newest epoch. An epoch that
an operator has declared rolled back is left where it is.

Other parts of the agent share the connection (``also``, ``publish``): there is one client id, and one last will.
Neither they nor the batches wait for each other, and nothing that is theirs ends a connection.
"""

import asyncio
import contextlib
import json
import logging
import math
from typing import TYPE_CHECKING, TypeVar

from energybid.agent.journal import Journal
from energybid.agent.mailbox import PAYLOAD_MAX, Mailbox
from energybid.agent.plan import UplinkPlan
from energybid.agent.recorder import Recorder
from energybid.agent.rows import EpochRow, Segment
from energybid.core.cose import PublicKey
from energybid.core.entries import Entry
from energybid.core.errors import (
    EvidenceError,
    JournalDamagedError,
    JournalStalledError,
    RollbackError,
    UplinkDownError,
    UplinkRefusedError,
)
from energybid.core.evidence import Receipt, verify_receipt
from energybid.core.log import Salts
from energybid.core.ports import Message, Platform, Uplink
from energybid.sync.batch import BatchTooLargeError, encode_batch
from energybid.sync.columns import Memory
from energybid.sync.connection import weightiest
from energybid.sync.topics import Topics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

T = TypeVar("T")
logger = logging.getLogger("energybid.uplink")

BATCH_ENTRIES = 2048
"""A batch is sent at once when so many entries wait for it, and holds hardly more."""
OLDER_TRIES = 3
"""So many receipts without progress, and an older epoch's tail is given up: the head-end does not want it."""
RECEIPTS_MAX = 64
"""Receipts that wait to be compared with the journal; then everything waits."""
RECONNECT_MIN_S, RECONNECT_MAX_S = 1.0, 120.0
PATIENCE_MAX_S = 900.0


class Built:
    """A batch ready to be sent."""

    __slots__ = ("end", "first", "frame")

    def __init__(self, first: int, end: int, frame: bytes) -> None:
        """Entries [first, end) as a frame."""
        self.first, self.end, self.frame = first, end, frame


def build_batch(
    journal: Journal, epoch: EpochRow, salts: Salts, first: int, memory: Memory | None = None
) -> Built | None:
    """The next batch from ``first`` on: whole segments, at least one, about ``BATCH_ENTRIES`` at most.

    Returns:
        None when nothing beyond ``first`` is committed.

    Raises:
        EvidenceError: ``first`` is not where a segment begins, or was pruned.
        JournalDamagedError: What is stored can not be read.
    """
    segments: list[tuple[Segment, list[Entry]]] = []
    end = first
    for segment in journal.segments(epoch.number, first):
        if segments and segment.end - first > BATCH_ENTRIES:
            break
        if segment.first != end:
            raise EvidenceError(f"the journal does not hold entry {end} any more")
        segments.append((segment, _entries(journal, segment)))
        end = segment.end
    while segments:
        last = segments[-1][0]
        checkpoint = journal.checkpoint(epoch, last)
        entries = [entry for _, some in segments for entry in some]
        try:
            frame = encode_batch(first=first, entries=entries, checkpoint=checkpoint, salts=salts, memory=memory)
        except BatchTooLargeError:
            segments = segments[: len(segments) // 2]  # one segment always fits
        else:
            return Built(first, last.end, frame)
    return None


def _entries(journal: Journal, segment: Segment) -> list[Entry]:
    try:
        return segment.entries()
    except EvidenceError as error:
        raise JournalDamagedError(f"{journal.path}: {error}") from error


class Older:
    """The tail of an older epoch while it is being delivered."""

    def __init__(self, epoch: EpochRow, size: int, end: int) -> None:
        """Entries [size, end) are to be delivered."""
        self.epoch, self.size, self.end = epoch, size, end
        self.refused = 0
        """Receipts in a row that brought nothing new."""
        self.heard = asyncio.Event()


class Uploader:
    """Keeps one connection to the broker and the head-end up to date."""

    def __init__(
        self, platform: Platform, recorder: Recorder, plan: UplinkPlan, topics: Topics, headend_key: PublicKey
    ) -> None:
        """Upload what ``recorder`` commits."""
        self.connected = False
        self.error = ""
        self.receipt: Receipt | None = None
        self.batches = 0
        self.resent = 0
        """Batches sent more than once."""
        self.on_connect: list[Callable[[], None]] = []
        """Called whenever a connection is there, and the topics of ``also`` are subscribed or were refused."""
        self.more_status: Callable[[], Mapping[str, object]] = dict
        """What else the status topic says; must be quick."""
        self._platform = platform
        self._recorder = recorder
        self._plan = plan
        self._topics = topics
        self._headend_key = headend_key
        self._memory = Memory()
        self._salts = Salts(recorder.epoch.secret)
        self._window = Window(recorder.acknowledged_size, plan.receipt_timeout_s)
        self._furthest = self._window.sent
        self._changed = asyncio.Event()
        """A commit, a receipt, or the order to flush."""
        self._flush = False
        self._older: Older | None = None
        self._uplink: Uplink | None = None
        self._wire_before = (0, 0)
        self._mailboxes: dict[str, Mailbox] = {}
        """By topic."""
        recorder.on_commit.append(self._changed.set)

    def wire_bytes(self) -> tuple[int, int]:
        """(sent, received) bytes of MQTT over all connections so far."""
        sent, received = self._uplink.wire_bytes() if self._uplink else (0, 0)
        return self._wire_before[0] + sent, self._wire_before[1] + received

    @property
    def in_flight(self) -> int:
        """Batches without a receipt."""
        return len(self._window.ends)

    @property
    def dropped(self) -> int:
        """Messages of other parts that were dropped, for too many waited."""
        return sum(mailbox.dropped for mailbox in set(self._mailboxes.values()))

    # ------------------------------------------------------------ other parts

    def also(self, topics: "Sequence[str]", on_message: "Callable[[Message], Awaitable[None]]") -> None:
        """Subscribe more topics on the same connection; call it before ``run``.

        Args:
            topics: Whole topics, without wildcards. Where the broker refuses them, the log is uploaded all the same.
            on_message: Is given their messages one after another, also while there is no connection any more. What it
                raises is logged.
        """
        mailbox = Mailbox(topics, on_message)
        self._mailboxes |= dict.fromkeys(mailbox.topics, mailbox)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 1; returns when the broker has taken it.

        Raises:
            UplinkDownError: There is no connection, or it was lost: the broker may have it, or not.
            UplinkRefusedError: The broker does not allow it; the connection stays.
        """
        if self._uplink is None:
            raise UplinkDownError("there is no connection to the broker")
        await self._uplink.publish(topic, payload, retain=retain)

    # ------------------------------------------------------------ connections

    async def run(self) -> None:
        """Upload until cancelled.

        Raises:
            RollbackError: The head-end holds another or a longer log: the agent must stop signing.
        """
        handing = [asyncio.create_task(mailbox.run()) for mailbox in set(self._mailboxes.values())]
        try:
            await self._connect_again_and_again()
        finally:
            for task in handing:
                task.cancel()
            await asyncio.gather(*handing, return_exceptions=True)

    async def _connect_again_and_again(self) -> None:
        wait_s = RECONNECT_MIN_S
        while True:
            try:
                async with self._platform.connect_uplink(self._plan.settings) as uplink:
                    wait_s = RECONNECT_MIN_S
                    await self._connection(uplink)
            except (UplinkDownError, JournalStalledError) as error:  # a disk that can not be read now is waited for too
                if str(error) != self.error:
                    logger.warning("uplink: %s; trying again", error)
                self.error = str(error)
            await asyncio.sleep(self._platform.random.uniform(wait_s / 2, wait_s))
            wait_s = min(2 * wait_s, RECONNECT_MAX_S)

    async def _connection(self, uplink: Uplink) -> None:
        self._uplink, self.connected, self.error = uplink, True, ""
        settings = self._plan.settings
        logger.info("uplink: connected to %s:%d", settings.host, settings.port)
        try:
            async with asyncio.TaskGroup() as tasks:
                receipts: asyncio.Queue[bytes] = asyncio.Queue(RECEIPTS_MAX)
                tasks.create_task(self._receive(uplink, receipts))
                tasks.create_task(self._take_receipts(receipts))
                tasks.create_task(self._subscribe_others(uplink))
                tasks.create_task(self._send(uplink))
        except ExceptionGroup as group:
            raise weightiest(group) from group
        finally:
            self._wire_before = self.wire_bytes()
            self._uplink, self.connected = None, False

    async def _receive(self, uplink: Uplink, receipts: asyncio.Queue[bytes]) -> None:
        await uplink.subscribe([self._topics.receipt])
        async for message in uplink.messages():
            if message.topic == self._topics.receipt:
                await receipts.put(message.payload[:PAYLOAD_MAX])
            elif message.topic in self._mailboxes:
                self._mailboxes[message.topic].take(message)
        raise UplinkDownError("the broker closed the connection")

    @staticmethod
    def _asked(part: "Callable[[], T]", otherwise: T) -> T:
        """What another part says; a fault of it ends no connection."""
        try:
            return part()
        except Exception:
            logger.exception("another part of the agent failed")
            return otherwise

    async def _take_receipts(self, receipts: asyncio.Queue[bytes]) -> None:
        """Apart from the other parts' messages: what a receipt says is compared with the journal, on a slow disk."""
        while True:
            await self._receipt(await receipts.get())

    async def _subscribe_others(self, uplink: Uplink) -> None:
        """The other parts' topics, apart from the log's: a broker may refuse one and not the other."""
        if self._mailboxes:
            try:
                await uplink.subscribe(list(self._mailboxes))
            except UplinkRefusedError as error:
                logger.warning("uplink: %s; the log goes on without", error)
        for listener in self.on_connect:
            self._asked(listener, None)

    async def _send(self, uplink: Uplink) -> None:
        await uplink.publish(self._topics.status, self.status_payload("online"), retain=True)
        await self._send_older(uplink)
        self._window.rewind(self._recorder.acknowledged_size)
        next_s = 0.0
        while True:
            await self._due(next_s)
            built = await self._build()
            if built is None:
                continue
            now_s = asyncio.get_running_loop().time()
            next_s = now_s + self._plan.batch_interval_s
            self.batches += 1
            self.resent += built.end <= self._furthest
            self._furthest = max(self._furthest, built.end)
            self._window.add(built.end, now_s)
            await uplink.publish(self._topics.log, built.frame)

    async def _send_older(self, uplink: Uplink) -> None:
        """Deliver what epochs before the newest still hold without a receipt."""
        recorder = self._recorder
        for epoch, first, end in await self._platform.offload(recorder.journal.undelivered):
            logger.info("epoch %s: %d entries of before are still to be delivered", epoch.id.hex(), end - first)
            self._older = Older(epoch, first, end)
            try:
                await self._deliver(uplink, self._older)
            except EvidenceError as error:
                logger.error("epoch %s can not be delivered to its end: %s", epoch.id.hex(), error)  # noqa: TRY400
            finally:
                self._older = None

    async def _deliver(self, uplink: Uplink, older: Older) -> None:
        salts = Salts(older.epoch.secret)
        patience_s = self._plan.receipt_timeout_s
        while older.size < older.end and older.refused < OLDER_TRIES:
            built = await self._platform.offload(
                build_batch, self._recorder.journal, older.epoch, salts, older.size, self._memory
            )
            if built is None:
                return
            older.heard.clear()
            self.batches += 1
            await uplink.publish(self._topics.log, built.frame)
            try:
                async with asyncio.timeout(patience_s):
                    await older.heard.wait()
            except TimeoutError:
                patience_s = min(2 * patience_s, PATIENCE_MAX_S)
        if older.size < older.end:
            raise EvidenceError(f"the head-end stays at {older.size} of {older.end} entries; see its log")

    async def _receipt_of_older(self, older: Older, receipt: Receipt, payload: bytes) -> None:
        """A receipt of the older epoch that is being delivered."""
        root = await self._platform.offload(self._recorder.journal.root_at, older.epoch.number, receipt.size)
        if receipt.size > older.size and (root == receipt.root or receipt.size > older.end):
            older.size, older.refused = receipt.size, 0
            if receipt.size <= older.end:
                await self._recorder.acknowledge_older(older.epoch, receipt.size, payload)
        else:
            older.refused += 1
        older.heard.set()

    async def _build(self) -> Built | None:
        first = self._window.sent
        try:
            return await self._platform.offload(
                build_batch, self._recorder.journal, self._recorder.epoch, self._salts, first, self._memory
            )
        except EvidenceError as error:
            # The head-end was restored to before what the journal still keeps. Reading goes on; only people can help.
            if str(error) != self.error:
                logger.error("can not send from %d on: restore the head-end from a newer backup: %s", first, error)  # noqa: TRY400
            self.error = str(error)
            await asyncio.sleep(RECONNECT_MAX_S)
            return None

    async def _due(self, next_s: float) -> None:
        """Wait until a batch is to be sent."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            now_s = loop.time()
            if now_s >= self._window.deadline_s:
                logger.warning("no receipt for %.0f s: sending again", self._window.patience_s)
                await self._check()
                self._window.give_up(self._recorder.acknowledged_size)
            unsent = self._recorder.committed - self._window.sent
            wake_s = self._window.deadline_s
            if len(self._window.ends) < self._plan.window and unsent > 0:
                if unsent >= BATCH_ENTRIES or self._flush or now_s >= next_s:
                    return
                wake_s = min(wake_s, next_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wake_s == math.inf else wake_s - now_s):
                    await self._changed.wait()

    async def _check(self) -> None:
        """Batches that get no receipt although there is a connection may be damaged: check what they are made of."""
        recorder = self._recorder
        await self._platform.offload(
            recorder.journal.check_from, recorder.epoch, recorder.acknowledged_size, most=BATCH_ENTRIES
        )

    async def flush(self) -> None:
        """Send what is committed without waiting for the interval; returns when all of it has a receipt."""
        self._flush = True
        self._changed.set()
        if self.connected:
            await self._recorder.acknowledged_up_to(self._recorder.committed)

    def status_payload(self, state: str) -> bytes:
        """JSON for the status topic: small, for dashboards; never evidence."""
        return json.dumps(
            {
                "state": state,
                "version": self._recorder.version,
                "epoch": self._recorder.epoch.id.hex(),
                "size": self._recorder.committed,
                "acknowledged": self._recorder.acknowledged_size,
                **self._asked(self.more_status, {}),
            }
        ).encode()

    # ------------------------------------------------------------ receipts

    async def _receipt(self, payload: bytes) -> None:
        try:
            receipt = verify_receipt(payload, self._headend_key)
        except EvidenceError as error:
            logger.warning("a message on %s is no receipt of the configured head-end: %s", self._topics.receipt, error)
            return
        epoch = self._recorder.epoch
        if self._older and receipt.epoch == self._older.epoch.id:
            await self._receipt_of_older(self._older, receipt, payload)
            return
        if receipt.origin != epoch.origin or receipt.epoch != epoch.id:
            logger.info("a receipt of another epoch (%s) is left aside", receipt.epoch.hex())
            return
        try:
            await self._compare(receipt)
        except RollbackError as error:
            with contextlib.suppress(JournalStalledError):
                await self._recorder.contradicted(str(error), payload)
            raise
        old = self.receipt is not None and receipt.time_ms < self.receipt.time_ms
        if old and receipt.size <= self._recorder.acknowledged_size:
            return  # an old one, delivered late
        self.receipt = receipt
        if receipt.size > self._recorder.acknowledged_size:
            self._recorder.acknowledge(receipt.size, payload)
            self._window.receipted(receipt.size, asyncio.get_running_loop().time())
        elif receipt.size < self._recorder.acknowledged_size:
            logger.warning(
                "the head-end holds %d entries but had signed for %d: it was restored; sending again",
                receipt.size,
                self._recorder.acknowledged_size,
            )
            self._window.rewind(receipt.size)
        self._changed.set()

    async def _compare(self, receipt: Receipt) -> None:
        """The receipt is the witness: what it signs must be a prefix of what is here."""
        if receipt.size > self._recorder.committed:
            raise RollbackError(
                f"the head-end signed for {receipt.size} entries of epoch {receipt.epoch.hex()}, this journal has"
                f" {self._recorder.committed}: it was restored or copied from an older one"
            )
        root = await self._platform.offload(self._recorder.journal.root_at, self._recorder.epoch.number, receipt.size)
        if root is None and receipt.size < self._recorder.acknowledged_size:
            return  # pruned; it was compared when it was new
        if root != receipt.root:
            raise RollbackError(
                f"the head-end's root at {receipt.size} entries of epoch {receipt.epoch.hex()} is not this journal's:"
                " another gateway writes under the same name and key, or the journal was changed"
            )


class Window:
    """Which batches are under way: their ends, and when to give up waiting for a receipt."""

    def __init__(self, sent: int, patience_s: float) -> None:
        """Begin at the acknowledged mark."""
        self.sent = sent
        self.ends: list[int] = []
        self.deadline_s = math.inf
        self.patience_s = patience_s
        self._patience_min_s = patience_s

    def add(self, end: int, now_s: float) -> None:
        """A batch goes out."""
        self.sent = end
        self.ends.append(end)
        if self.deadline_s == math.inf:
            self.deadline_s = now_s + self.patience_s

    def receipted(self, size: int, now_s: float) -> None:
        """A receipt came."""
        self.ends = [end for end in self.ends if end > size]
        self.sent = max(self.sent, size)
        self.patience_s = self._patience_min_s
        self.deadline_s = now_s + self.patience_s if self.ends else math.inf

    def rewind(self, size: int) -> None:
        """Begin again at ``size``."""
        self.sent = size
        self.ends = []
        self.deadline_s = math.inf

    def give_up(self, size: int) -> None:
        """No receipt in time: begin again, more patiently, for the head-end may be away for long."""
        self.rewind(size)
        self.patience_s = min(2 * self.patience_s, PATIENCE_MAX_S)
