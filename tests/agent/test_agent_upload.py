"""Upload in virtual time: a broker and a head-end joined in memory, both with faults."""

import asyncio
import dataclasses
import json
import random
from contextlib import asynccontextmanager

import pytest
from energybid.agent.mailbox import PAYLOAD_MAX, WAITING_MAX
from energybid.agent.plan import UplinkPlan
from energybid.agent.upload import BATCH_ENTRIES, PATIENCE_MAX_S, Uploader, build_batch
from energybid.core.cose import PrivateKey
from energybid.core.entries import MESSAGE_MAX, MarketKind, MarketMessage
from energybid.core.errors import EvidenceError, RollbackError, UplinkDownError, UplinkRefusedError
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Salts
from energybid.core.ports import Message, Sample, UplinkSettings
from energybid.core.tree import Frontier
from energybid.simulator.virtual import VirtualClock, run
from energybid.sync.batch import decode_batch, replay
from energybid.sync.topics import topics_for
from gateways import HEADEND, KEY, recording, virtual_platform

TOPICS = topics_for("t", "g")
SETTINGS = UplinkSettings(host="broker", port=1883, client_id="g")


class World:
    """Broker and head-end in one: keeps what came, answers with receipts."""

    def __init__(self, clock):
        self.clock = clock
        self.broker_up = self.headend_up = True
        self.frontier = Frontier()
        self.frames = []
        self.statuses = []
        self.duplicates = 0
        self.connections = 0
        self.most_in_flight = 0
        self.retained = None
        self.epoch = None
        self._links = []
        self.others = {}
        """Topic → retained payload, or None, of the topics that are not the log's and may be subscribed."""
        self.sent = []
        """What else was published."""
        self.refuse = set()
        """Topics that may be neither subscribed nor published."""

    @asynccontextmanager
    async def connect(self, settings):
        await asyncio.sleep(0.05)
        if not self.broker_up:
            raise UplinkDownError("connection refused")
        link = Link(self)
        self._links.append(link)
        self.connections += 1
        try:
            yield link
        finally:
            self._links.remove(link)

    def cut(self):
        """The broker goes away."""
        self.broker_up = False
        for link in self._links:
            link.queue.put_nowait(None)

    def log(self, frame):
        self.frames.append(frame)
        if not self.headend_up:
            return None
        batch = decode_batch(frame)
        if batch.first != self.frontier.size:
            self.duplicates += batch.end <= self.frontier.size
            return self.answer()
        replayed = replay(batch, origin="t/g", frontier=self.frontier, key_for={KEY.kid: KEY.public}.get)
        self.frontier = replayed.frontier
        self.epoch = batch.epoch
        return self.answer()

    def answer(self, **changes):
        fields = {
            "origin": "t/g",
            "epoch": self.epoch,
            "size": self.frontier.size,
            "root": self.frontier.root(),
            "time_ms": self.clock.now_ns() // 1_000_000,
        }
        self.send(sign_receipt(Receipt(**(fields | changes)), HEADEND))

    def send(self, payload):
        self.retained = payload
        for link in self._links:
            link.queue.put_nowait(Message(TOPICS.receipt, payload, retained=False))

    def tell(self, topic, payload):
        """A message of another part, to who has subscribed."""
        for link in self._links:
            if topic in link.topics:
                link.queue.put_nowait(Message(topic, payload, retained=False))


class Link:
    def __init__(self, world):
        self.world = world
        self.queue = asyncio.Queue()
        self.topics = []

    async def subscribe(self, topics):
        await asyncio.sleep(0.01)
        self.topics += [topic for topic in topics if topic not in self.world.refuse]
        retained = {TOPICS.receipt: self.world.retained} | self.world.others
        for topic in topics:
            if retained.get(topic) and topic in self.topics:
                self.queue.put_nowait(Message(topic, retained[topic], retained=True))
        if self.world.refuse & set(topics):
            raise UplinkRefusedError("the broker refused to subscribe")

    async def publish(self, topic, payload, *, qos=1, retain=False):
        await asyncio.sleep(0.01)
        if not self.world.broker_up:
            raise UplinkDownError("gone")
        if topic == TOPICS.status:
            assert retain
            self.world.statuses.append(payload)
        elif topic in self.world.refuse:
            raise UplinkRefusedError("the broker refused to publish")
        elif topic in self.world.others:
            self.world.sent.append((topic, payload, qos, retain))
        else:
            assert (topic, qos, retain) == (TOPICS.log, 1, False)
            self.world.log(payload)

    async def messages(self):
        while (message := await self.queue.get()) is not None:
            yield message
        raise UplinkDownError("the connection was lost")

    def wire_bytes(self):
        return 100, 10


def world(path, script, *, rate_s=1.0, prepare=None, **plan):
    """A gateway that logs a reading every ``rate_s``, an uploader, and a script; returns what the script does.

    ``prepare`` is called with the world and the uploader before anything runs.
    """

    async def main():
        clock = VirtualClock()
        there = World(clock)
        platform = virtual_platform(clock, connect=there.connect)
        settings = {"batch_interval_s": 10.0, "window": 4, "receipt_timeout_s": 60.0} | plan
        async with recording(platform, path, commit_interval_s=1.0) as recorder:
            there.epoch = recorder.epoch.id
            uploader = Uploader(platform, recorder, UplinkPlan(settings=SETTINGS, **settings), TOPICS, HEADEND.public)
            if prepare:
                prepare(there, uploader)

            async def readings():
                while True:
                    mono_ms = int(asyncio.get_running_loop().time() * 1000)
                    recorder.reading(0, 0, Sample(clock.now_ns() // 1_000_000, 1, mono_ms, (2300,), None))
                    await asyncio.sleep(rate_s)

            tasks = [asyncio.create_task(readings()), asyncio.create_task(uploader.run())]
            try:
                return await script(there, recorder, uploader, tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return run(main)


def test_batches_go_every_interval_and_receipts_move_the_mark(tmp_path):
    async def script(there, recorder, uploader, _):
        await asyncio.sleep(605)
        assert 58 <= len(there.frames) <= 62
        assert recorder.acknowledged_size == there.frontier.size > 590
        assert uploader.receipt.size == recorder.acknowledged_size
        assert (uploader.resent, there.duplicates, uploader.in_flight) == (0, 0, 0)
        assert b'"online"' in there.statuses[0]
        assert uploader.wire_bytes() == (100, 10)

    world(tmp_path / "j", script)


@pytest.mark.untraced
def test_reading_goes_on_without_a_broker_and_the_backlog_follows(tmp_path):
    async def script(there, recorder, uploader, _):
        there.broker_up = False
        await asyncio.sleep(4 * 3600)
        assert recorder.committed > 4 * 3590
        assert "refused" in uploader.error
        there.broker_up = True
        await asyncio.sleep(300)
        assert there.frontier.size > recorder.committed - 20
        assert len(there.frames) < 4 * 3600 / BATCH_ENTRIES + 60, "the backlog goes in full batches"
        assert there.duplicates == 0

    world(tmp_path / "j", script)


def test_a_headend_that_is_down_for_an_hour_loses_nothing_and_is_not_flooded(tmp_path):
    async def script(there, recorder, uploader, _):
        await asyncio.sleep(100)
        there.headend_up = False
        await asyncio.sleep(3600)
        sent = len(there.frames)
        assert sent < 100, "waits longer and longer before it sends again"
        assert uploader.in_flight <= 4
        there.headend_up = True
        await asyncio.sleep(PATIENCE_MAX_S + 100)
        assert there.frontier.size > recorder.committed - 20
        assert uploader.resent > 0

    world(tmp_path / "j", script)


def test_a_broker_that_drops_the_connection_again_and_again(tmp_path):
    async def script(there, recorder, uploader, _):
        for _ in range(20):
            await asyncio.sleep(17)
            there.cut()
            await asyncio.sleep(3)
            there.broker_up = True
        await asyncio.sleep(60)
        assert there.connections > 15
        assert there.frontier.size > recorder.committed - 20
        assert uploader.wire_bytes()[0] == 100 * there.connections

    world(tmp_path / "j", script)


def test_a_restored_headend_is_refilled(tmp_path):
    async def script(there, recorder, uploader, _):
        await asyncio.sleep(100)
        backup = there.frontier.copy()
        await asyncio.sleep(300)
        there.frontier = backup
        there.answer()
        await asyncio.sleep(60)
        assert there.frontier.size > 400
        assert recorder.acknowledged_size == there.frontier.size

    world(tmp_path / "j", script)


def test_a_headend_that_lost_what_was_pruned_here_is_named_and_reading_goes_on(tmp_path, caplog):
    async def script(there, recorder, uploader, tasks):
        await asyncio.sleep(2000)
        assert recorder.journal.prune(10**15) > 0
        there.frontier = Frontier()
        there.answer()
        await asyncio.sleep(600)
        assert "does not hold entry 0" in uploader.error
        assert recorder.committed > 2500
        assert not tasks[1].done()

    world(tmp_path / "j", script)
    assert caplog.text.count("restore the head-end") == 1


@pytest.mark.parametrize(
    ("changes", "says"), [({"size": 10**6}, "restored or copied"), ({"root": bytes(32)}, "another gateway")]
)
def test_a_rollback_stops_the_agent(tmp_path, changes, says):
    async def script(there, recorder, uploader, tasks):
        await asyncio.sleep(100)
        there.answer(**changes)
        await asyncio.wait({tasks[1]}, timeout=10)
        with pytest.raises(RollbackError, match=says):
            tasks[1].result()

    world(tmp_path / "j", script)


def test_what_is_no_receipt_of_the_headend_changes_nothing(tmp_path, caplog):
    async def script(there, recorder, uploader, _):
        await asyncio.sleep(100)
        size = recorder.acknowledged_size
        stranger = PrivateKey.from_entropy(b"stranger" * 6)
        fields = Receipt("t/g", there.epoch, size + 1, bytes(32), 10**15)
        for payload in (b"", b"\xff" * 5000, sign_receipt(fields, stranger)):
            there.send(payload)
        there.answer(origin="t/other", size=10**6)
        there.answer(epoch=b"o" * 16, size=10**6)
        await asyncio.sleep(1)
        assert recorder.acknowledged_size == size
        there.answer(time_ms=5, size=0, root=Frontier().root())
        await asyncio.sleep(100)
        assert recorder.acknowledged_size > size
        assert there.duplicates == 0, "an old receipt that comes late does not rewind"

    world(tmp_path / "j", script)
    assert caplog.text.count("no receipt of the configured head-end") == 3


def test_a_headend_whose_clock_stepped_back_still_moves_the_mark(tmp_path):
    async def script(there, recorder, uploader, _):
        await asyncio.sleep(100)
        sign = there.answer
        there.answer = lambda: sign(time_ms=1000)
        size = recorder.acknowledged_size
        await asyncio.sleep(30)
        assert recorder.acknowledged_size > size
        assert uploader.resent == 0

    world(tmp_path / "j", script)


def test_flush_sends_at_once_and_waits_for_the_receipt(tmp_path):
    async def script(there, recorder, uploader, _):
        await asyncio.sleep(100)
        await recorder.commit()
        size = recorder.committed
        before = asyncio.get_running_loop().time()
        await uploader.flush()
        assert recorder.acknowledged_size >= size
        assert asyncio.get_running_loop().time() - before < 1

    world(tmp_path / "j", script, batch_interval_s=3600.0)


def test_a_batch_is_not_made_of_what_is_not_there(tmp_path):
    async def script(there, recorder, uploader, _):
        await asyncio.sleep(30)
        salts = Salts(recorder.epoch.secret)
        journal, epoch = recorder.journal, recorder.epoch
        assert build_batch(journal, epoch, salts, recorder.committed) is None
        with pytest.raises(EvidenceError, match="does not hold"):
            build_batch(journal, epoch, salts, 1)
        journal._database.execute("DELETE FROM segment WHERE key = (SELECT min(key) FROM segment)")
        with pytest.raises(EvidenceError, match="does not hold"):
            build_batch(journal, epoch, salts, 0)

    world(tmp_path / "j", script)


ROUND, AWARD = "energybid/1/t/power/round", TOPICS.award


class Other:
    """Another part of the agent: keeps what it is given; told to, it is slow or fails."""

    def __init__(self):
        self.given = []
        self.free = asyncio.Event()
        self.free.set()
        self.connections = 0

    def share(self, there, uploader):
        there.others = {ROUND: None, AWARD: None, TOPICS.bid: None}
        uploader.also([ROUND, AWARD], self.take)
        uploader.on_connect.append(self.connected)

    def connected(self):
        self.connections += 1
        raise RuntimeError("a listener's bug")

    async def take(self, message):
        await self.free.wait()
        self.given.append(message)
        if message.payload == b"bug":
            raise RuntimeError("a handler's bug")


def test_other_parts_share_the_connection_over_reconnects(tmp_path, caplog):
    other = Other()

    async def script(there, recorder, uploader, _):
        there.others[ROUND] = b"the round"
        await asyncio.sleep(10)
        there.tell(AWARD, b"bug")
        there.tell(AWARD, b"the award")
        await uploader.publish(TOPICS.bid, b"a bid")
        await uploader.publish(TOPICS.bid, b"kept", retain=True)
        there.cut()
        await asyncio.sleep(3)
        there.tell(AWARD, b"nobody is there")
        there.broker_up = True
        await asyncio.sleep(60)
        there.tell(AWARD, b"late")
        await asyncio.sleep(1)
        assert there.frontier.size > recorder.committed - 20
        assert not uploader.error

    world(tmp_path / "j", script, prepare=other.share)
    first = [Message(ROUND, b"the round", retained=True)]
    awards = [Message(AWARD, text, retained=False) for text in (b"bug", b"the award", b"late")]
    assert other.given == [*first, *awards[:2], *first, awards[2]]
    assert caplog.text.count("a message on energybid/1/t/g/award could not be handled") == 1
    assert other.connections == 2
    assert caplog.text.count("another part of the agent failed") == 2


def test_what_other_parts_publish_is_taken_by_the_broker_or_raises(tmp_path):
    other = Other()

    async def script(there, recorder, uploader, _):
        with pytest.raises(UplinkDownError, match="no connection"):
            await uploader.publish(TOPICS.bid, b"before")
        await asyncio.sleep(10)
        await uploader.publish(TOPICS.bid, b"a bid")
        assert there.sent == [(TOPICS.bid, b"a bid", 1, False)]
        there.refuse = {TOPICS.bid}
        with pytest.raises(UplinkRefusedError):
            await uploader.publish(TOPICS.bid, b"refused")
        await asyncio.sleep(100)
        assert there.connections == 1, "a refusal ends no connection"
        there.broker_up = False
        with pytest.raises(UplinkDownError, match="gone"):
            await uploader.publish(TOPICS.award, b"under way")
        there.cut()
        await asyncio.sleep(0.1)
        with pytest.raises(UplinkDownError, match="no connection"):
            await uploader.publish(TOPICS.bid, b"after")

    world(tmp_path / "j", script, prepare=other.share)


def test_a_broker_that_refuses_other_parts_topics_still_gets_the_log(tmp_path, caplog):
    other = Other()

    async def script(there, recorder, uploader, _):
        there.refuse = {ROUND}
        await asyncio.sleep(100)
        there.tell(AWARD, b"this one it granted")
        await asyncio.sleep(1)
        assert there.connections == 1
        assert there.frontier.size > 80

    world(tmp_path / "j", script, prepare=other.share)
    assert [message.payload for message in other.given] == [b"this one it granted"]
    assert caplog.text.count("the log goes on without") == 1


def test_a_handler_that_hangs_and_a_flood_hold_up_no_batch_and_no_other_topic(tmp_path, caplog):
    other = Other()

    async def script(there, recorder, uploader, _):
        other.free.clear()
        await asyncio.sleep(50)
        for number in range(1000):
            there.tell(ROUND, b"%d" % number + bytes(10_000))
        there.tell(AWARD, b"the award")
        await asyncio.sleep(500)
        assert there.frontier.size > recorder.committed - 20
        assert uploader.in_flight == 0
        assert uploader.dropped == 1000 - WAITING_MAX
        other.free.set()
        await asyncio.sleep(1)

    world(tmp_path / "j", script, prepare=other.share)
    assert [message.topic for message in other.given] == [ROUND] * WAITING_MAX + [AWARD]
    assert {len(message.payload) for message in other.given} == {PAYLOAD_MAX, len(b"the award")}
    assert caplog.text.count("some are dropped") == 1


def test_a_head_end_that_is_away_holds_up_no_other_part(tmp_path):
    other = Other()

    async def script(there, recorder, uploader, _):
        await asyncio.sleep(10)
        there.headend_up = False
        await asyncio.sleep(45)
        assert uploader.in_flight == 4, "the window is full"
        await uploader.publish(TOPICS.bid, b"a bid")
        there.tell(AWARD, b"the award")
        await asyncio.sleep(1)

    world(tmp_path / "j", script, prepare=other.share)
    assert [message.payload for message in other.given] == [b"the award"]


def test_the_status_says_what_other_parts_add(tmp_path):
    def prepare(there, uploader):
        there.others = {}
        uploader.more_status = lambda: {"market": {"rounds": 3}}

    async def script(there, recorder, uploader, _):
        await asyncio.sleep(10)
        assert json.loads(there.statuses[0])["market"] == {"rounds": 3}
        uploader.more_status = lambda: 1 / 0
        assert json.loads(uploader.status_payload("online"))["state"] == "online"

    world(tmp_path / "j", script, prepare=prepare)


def test_the_longest_messages_of_a_market_fit_the_frames(tmp_path):
    chance = random.Random(3)

    async def script(there, recorder, uploader, _):
        await asyncio.sleep(20)
        for number in range(300):
            longest = chance.randbytes(MESSAGE_MAX)
            recorder.append(MarketMessage(MarketKind.PRICES, 1, longest, number, 7, 2, recorder.start, 5))
        await asyncio.sleep(120)
        assert there.frontier.size > recorder.committed - 20
        assert max(map(len, there.frames)) > 100_000
        entries = [entry for frame in there.frames for entry in decode_batch(frame).entries]
        assert [e.missed for e in entries if isinstance(e, MarketMessage)] == list(range(300))

    world(tmp_path / "j", script)


def test_a_slow_disk_holds_up_receipts_and_no_other_part(tmp_path):
    other = Other()

    async def script(there, recorder, uploader, _):
        await asyncio.sleep(20)
        there.answer()
        for _ in range(5):
            there.send(b"no receipt")
        there.answer()
        there.tell(AWARD, b"the award")
        await asyncio.sleep(1)
        assert [message.payload for message in other.given] == [b"the award"], "while the journal is read"
        size = recorder.acknowledged_size
        await asyncio.sleep(200)
        assert recorder.acknowledged_size > size

    def prepare(there, uploader):
        other.share(there, uploader)
        journal, quick = uploader._recorder.journal, uploader._platform.offload

        async def slow(function, *arguments, **keywords):
            if function == journal.root_at:
                await asyncio.sleep(30)
            return await quick(function, *arguments, **keywords)

        uploader._platform = dataclasses.replace(uploader._platform, offload=slow)

    world(tmp_path / "j", script, prepare=prepare)
