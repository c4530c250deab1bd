"""Export: rows for people, their times corrected where the gateway's clock was wrong."""

import asyncio
import itertools

import apsw
from energybid.agent import cli
from energybid.agent.commands.export import rows
from energybid.agent.polling import BusPoller
from energybid.core.entries import Command
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
    found = list(rows(database, "j", []))
    assert len(found) > 110
    early = [row for row in found if row["clock"] == "unsynchronised"]
    assert 55 < len(early) < 65
    assert all(row["time_ms"] < 10**9 for row in early), "what the clock showed stays"
    times = [row["corrected_ms"] for row in found]
    assert all(0 < b - a <= 20_000 for a, b in itertools.pairwise(times)), "one even row of readings"
    assert abs(times[0] - EPOCH_NS // 10**6) < 20_000
    assert all(0 <= row["uncertainty_ms"] <= 62 for row in early)
    assert {row["uncertainty_ms"] for row in found if row["clock"] == "synchronised"} == {0}


def test_commands_are_a_table_of_their_own_in_words(tmp_path, capsys):
    def command(**parts):
        plain = {"mantissa": 42, "exponent": -1, "unit": "A", "found": 42, "owner": "market", "rank": 2, "cause": 1}
        plain |= {"outcome": 1, "time_ms": 7000, "clock": 1, "start": 0, "mono_ms": 5000, "until_ms": 65_000}
        return Command(meter="charger", writable="limit", **(plain | parts))

    async def main():
        async with recording(virtual_platform(VirtualClock()), tmp_path / "j") as recorder:
            recorder.append(command())
            recorder.append(command(owner="agent", rank=3, cause=6, outcome=99, found=None, until_ms=None))

    run(main)
    code = cli.main(["export", str(tmp_path / "j"), str(tmp_path / "rows.db")])
    assert (code, capsys.readouterr().err) == (0, f"0 values and 2 commands written to {tmp_path / 'rows.db'}\n")
    keys = "meter, writable, value, found, unit, owner, rank, cause, outcome, for_ms, time_ms"
    found = apsw.Connection(str(tmp_path / "rows.db")).execute(f"SELECT {keys} FROM commands ORDER BY sequence")
    assert found.fetchall() == [
        ("charger", "limit", "4.2", "4.2", "A", "market", 2, "held", "done", 60_000, 7000),
        ("charger", "limit", "4.2", None, "A", "agent", 3, "restarted", "99", None, 7000),
    ]
