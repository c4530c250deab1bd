"""Upload in virtual time: a broker and a head-end joined in memory, both with faults."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from energybid.agent.plan import UplinkPlan
from energybid.agent.upload import BATCH_ENTRIES, PATIENCE_MAX_S, Uploader, build_batch
from energybid.core.cose import PrivateKey
from energybid.core.errors import EvidenceError, RollbackError, UplinkDownError
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
            link.queue.put_nowait(payload)


class Link:
    def __init__(self, world):
        self.world = world
        self.queue = asyncio.Queue()

    async def subscribe(self, topics):
        assert topics == [TOPICS.receipt]
        if self.world.retained:
            self.queue.put_nowait(self.world.retained)

    async def publish(self, topic, payload, *, qos=1, retain=False):
        await asyncio.sleep(0.01)
        if not self.world.broker_up:
            raise UplinkDownError("gone")
        if topic == TOPICS.status:
            assert retain
            self.world.statuses.append(payload)
        else:
            assert (topic, qos, retain) == (TOPICS.log, 1, False)
            self.world.log(payload)

    async def messages(self):
        while (payload := await self.queue.get()) is not None:
            yield Message(TOPICS.receipt, payload, retained=False)
        raise UplinkDownError("the connection was lost")

    def wire_bytes(self):
        return 100, 10


def world(path, script, *, rate_s=1.0, **plan):
    """A gateway that logs a reading every ``rate_s``, an uploader, and a script; returns what the script does."""

    async def main():
        clock = VirtualClock()
        there = World(clock)
        platform = virtual_platform(clock, connect=there.connect)
        settings = {"batch_interval_s": 10.0, "window": 4, "receipt_timeout_s": 60.0} | plan
        async with recording(platform, path, commit_interval_s=1.0) as recorder:
            there.epoch = recorder.epoch.id
            uploader = Uploader(platform, recorder, UplinkPlan(settings=SETTINGS, **settings), TOPICS, HEADEND.public)

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
