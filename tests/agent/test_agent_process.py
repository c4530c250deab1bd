"""The agent's life around its journal: what it does when a running journal turns out to be damaged."""

import asyncio

import apsw
import pytest
from energybid.agent import recorder as module
from energybid.agent.journal import Journal
from energybid.agent.plan import AgentPlan, JournalPlan, StatusPlan
from energybid.agent.process import DOUBT_S, run_agent, together
from energybid.agent.quarantine import quarantines
from energybid.agent.system import RealDisk
from energybid.core.cose import PrivateKey
from energybid.core.entries import Gap, GapReason
from energybid.core.errors import JournalDamagedError
from energybid.simulator.virtual import VirtualClock, run
from gateways import virtual_platform

LOG_KEY = PrivateKey.from_entropy(b"gateway." * 6)


def plan(path):
    return AgentPlan(
        version="1",
        tenant="t",
        gateway="g",
        log_key=LOG_KEY.pem(),
        headend_key=b"",
        configuration_hash=bytes(32),
        journal=JournalPlan(path=str(path), commit_interval_s=5.0, keep_s=1.0),
        uplink=None,
        status=StatusPlan(path=None, interval_s=5.0),
        buses=(),
        drivers={},
        json_logs=False,
    )


@pytest.mark.parametrize(
    ("times", "kept"), [([10], 0), ([10, 20], 1), ([10, DOUBT_S + 100], 0), ([10, DOUBT_S + 100, DOUBT_S + 200], 1)]
)
def test_damage_that_a_running_agent_finds_is_looked_at_again(tmp_path, monkeypatch, times, kept):
    """The journal is intact: only what is found damaged twice within the time is set aside."""
    path = tmp_path / "j"

    async def main():
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        begin_s, left = loop.time(), list(times)

        async def damaged(recorder):
            while True:
                await asyncio.sleep(1.0)
                if left and loop.time() - begin_s >= left[0]:
                    del left[0]
                    raise JournalDamagedError(f"{recorder.journal.path}: looks damaged")

        monkeypatch.setattr(module.Recorder, "run", damaged)
        loop.call_later(2 * DOUBT_S, stop.set)
        await run_agent(virtual_platform(VirtualClock(), disk=RealDisk()), plan(path), stop)
        assert not left

    run(main)
    assert len(quarantines(RealDisk(), str(path))) == kept
    journal = Journal(apsw.Connection(str(path)), str(path))
    assert len(journal.epochs()) == 1 + kept
    journal.check_all(journal.head.epoch)
    journal.close()


def test_what_two_journals_lost_is_one_gap():
    one, other = Gap(None, 5, 9, GapReason.DAMAGED, 2), Gap(None, 3, 7, GapReason.DAMAGED, 1)
    assert together(one, other) == Gap(None, 3, 9, GapReason.DAMAGED, 3)
    assert together(None, one) == together(one, None) == one
    assert together(None, None) is None
