"""Export: rows for people, their times corrected where the gateway's clock was wrong."""

import asyncio
import itertools

import apsw
from energybid.agent.commands.export import rows
from energybid.agent.polling import BusPoller
from energybid.core.quantities import ClockState
from energybid.simulator.virtual import EPOCH_NS, VirtualClock, run
from gateways import ScriptedDriver, bus, meter, recording, virtual_platform


def test_readings_from_before_the_first_synchronisation_get_their_true_time(tmp_path):
    async def main():
        clock = VirtualClock(state=ClockState.UNSYNCHRONISED)
        clock.step(-EPOCH_NS / 1e9)
        async with recording(virtual_platform(clock), tmp_path / "j") as recorder:
            poller = BusPoller(
                virtual_platform(clock), recorder, ScriptedDriver(clock, lambda *_: 2301), bus(meter("m"))
            )
            poller.declare()
            task = asyncio.create_task(poller.run())
            await asyncio.sleep(605)
            clock.step(EPOCH_NS / 1e9)
            clock.state = ClockState.SYNCHRONISED
            await asyncio.sleep(600)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main)
    database = apsw.Connection(str(tmp_path / "j"))
    found = list(rows(database, "j"))
    assert len(found) > 110
    early = [row for row in found if row["clock"] == "unsynchronised"]
    assert 55 < len(early) < 65
    assert all(row["time_ms"] < 10**9 for row in early), "what the clock showed stays"
    times = [row["corrected_ms"] for row in found]
    assert all(0 < b - a <= 20_000 for a, b in itertools.pairwise(times)), "one even row of readings"
    assert abs(times[0] - EPOCH_NS // 10**6) < 20_000
    assert all(0 <= row["uncertainty_ms"] <= 62 for row in early)
    assert {row["uncertainty_ms"] for row in found if row["clock"] == "synchronised"} == {0}
