"""Older epochs: what they hold without a receipt is delivered first, in virtual time."""

import asyncio

import apsw
import pytest
from energybid.agent.journal import Journal
from energybid.agent.plan import UplinkPlan
from energybid.agent.rows import Succession
from energybid.agent.upload import Uploader
from energybid.core.entries import Epoch
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.ports import Sample
from energybid.core.tree import EMPTY_ROOT, Frontier
from energybid.simulator.virtual import VirtualClock, run
from energybid.sync.batch import decode_batch, replay
from gateways import HEADEND, KEY, recording, virtual_platform
from test_agent_upload import SETTINGS, TOPICS, World


class ManyEpochs(World):
    """A head-end that knows several epochs, and may refuse some."""

    def __init__(self, clock):
        super().__init__(clock)
        self.frontiers = {}
        self.refused = set()
        self.openings = []

    def log(self, frame):
        self.frames.append(frame)
        if not self.headend_up:
            return
        batch = decode_batch(frame)
        frontier = self.frontiers.get(batch.epoch, Frontier())
        if batch.epoch not in self.refused and batch.first == frontier.size:
            after = replay(batch, origin="t/g", frontier=frontier, key_for={KEY.kid: KEY.public}.get).frontier
            self.openings += [(batch.epoch, e) for e in batch.entries if isinstance(e, Epoch)]
            self.frontiers[batch.epoch] = frontier = after
        root = frontier.root() if frontier.size else EMPTY_ROOT
        receipt = Receipt("t/g", batch.epoch, frontier.size, root, self.clock.now_ns() // 1_000_000)
        self.send(sign_receipt(receipt, HEADEND))


def site(path, script, *, kind="operator"):
    """A first epoch of 100 readings that nobody got, then a second one with an uploader."""

    async def log(recorder, clock, readings):
        for _ in range(readings):
            mono_ms = int(asyncio.get_running_loop().time() * 1000)
            recorder.reading(0, 0, Sample(clock.now_ns() // 1_000_000, 1, mono_ms, (2300,), None))
            await asyncio.sleep(1)

    async def main():
        clock = VirtualClock()
        there = ManyEpochs(clock)
        platform = virtual_platform(clock, connect=there.connect)
        async with recording(platform, path, commit_interval_s=1.0) as recorder:
            await log(recorder, clock, 100)
        journal = Journal(apsw.Connection(str(path)), str(path))
        old = journal.head
        previous = journal.last_of(old.epoch)
        why = Succession(kind, "a test", 0, previous)
        journal.begin_epoch(id_=b"n" * 16, origin="t/g", secret=b"s" * 32, succession=why)
        journal.close()
        async with recording(platform, path, commit_interval_s=1.0) as recorder:
            plan = UplinkPlan(settings=SETTINGS, batch_interval_s=10.0, window=4, receipt_timeout_s=60.0)
            uploader = Uploader(platform, recorder, plan, TOPICS, HEADEND.public)
            tasks = [asyncio.create_task(log(recorder, clock, 10**6)), asyncio.create_task(uploader.run())]
            try:
                return await script(there, recorder, uploader, old)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    return run(main)


def test_the_old_tail_goes_first_and_the_mark_follows_through_both_epochs(tmp_path):
    async def script(there, recorder, uploader, old):
        await asyncio.sleep(60)
        assert list(there.frontiers) == [old.epoch.id, b"n" * 16], "in this order"
        assert there.frontiers[old.epoch.id].size == old.frontier.size
        (_, opening) = there.openings[1]
        assert opening.previous == (old.epoch.id, old.frontier.size, there.frontiers[old.epoch.id].root())
        assert recorder.acknowledged.epoch == 2
        assert recorder.acknowledged_size > 30
        assert recorder.journal.undelivered() == []

    site(tmp_path / "j", script)


def test_a_silent_headend_is_waited_for_and_then_gets_both(tmp_path):
    async def script(there, recorder, uploader, old):
        there.headend_up = False
        await asyncio.sleep(1500)
        assert len(there.frames) < 15, "patiently"
        assert {decode_batch(frame).epoch for frame in there.frames} == {old.epoch.id}, "not past the old tail"
        there.headend_up = True
        await asyncio.sleep(1200)
        assert there.frontiers[old.epoch.id].size == old.frontier.size
        assert there.frontiers[b"n" * 16].size > recorder.committed - 20

    site(tmp_path / "j", script)


def test_a_headend_that_does_not_want_the_old_epoch_gets_the_newest(tmp_path, caplog):
    async def script(there, recorder, uploader, old):
        there.refused.add(old.epoch.id)
        await asyncio.sleep(120)
        assert there.frontiers[b"n" * 16].size > 80
        assert recorder.acknowledged_size > 80
        assert sum(decode_batch(frame).epoch == old.epoch.id for frame in there.frames) == 3

    site(tmp_path / "j", script)
    assert "stays at 0 of" in caplog.text


def test_what_was_rolled_back_is_never_sent(tmp_path):
    async def script(there, recorder, uploader, old):
        await asyncio.sleep(60)
        assert list(there.frontiers) == [b"n" * 16]
        assert recorder.acknowledged_size > 30

    site(tmp_path / "j", script, kind="rolled back")


@pytest.mark.parametrize("after", [0.0, 0.2, 1.0])
def test_a_connection_lost_on_the_way_changes_nothing(tmp_path, after):
    async def script(there, recorder, uploader, old):
        there.headend_up = False
        await asyncio.sleep(1 + after)
        there.cut()
        await asyncio.sleep(5)
        there.broker_up = there.headend_up = True
        await asyncio.sleep(60)
        assert there.frontiers[old.epoch.id].size == old.frontier.size
        assert recorder.acknowledged_size > 30

    site(tmp_path / "j", script)
