"""The control path in virtual time: who holds what, what is written, and what happens when somebody is gone."""

import asyncio
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from fractions import Fraction

import pytest
from energybid.agent.commands.status import _point
from energybid.agent.control import LEASE_MAX_S, STOP_S, Control, ControlError, Owner, Rank, at_exponent, decimal
from energybid.agent.plan import StatusPlan
from energybid.agent.polling import BusPoller
from energybid.agent.process import Agent, _open
from energybid.agent.system import RealDisk
from energybid.core.entries import Command, CommandCause, CommandOutcome
from energybid.core.errors import BusDownError, JournalDamagedError, JournalStalledError, NoReplyError, RefusedError
from energybid.drivers.modbus.map import ModbusMap, Writable
from energybid.simulator.virtual import VirtualClock, run
from gateways import ScriptedDriver, bus, entries_in, meter, recording, virtual_platform
from test_agent_process import plan as agent_plan

LIMIT = Writable(
    name="limit",
    first=300,
    count=1,
    type="uint16",
    little=False,
    swapped=False,
    scale=Fraction(1),
    unit="W",
    minimum=Fraction(0),
    maximum=Fraction(5000),
    safe=Fraction(1000),
)
OTHER = replace(LIMIT, name="mode", safe=None)
MARKET = Owner("market", Rank.MARKET)
SCHEDULE = Owner("plan", Rank.SCHEDULE)
INSTALLER = Owner("installer", Rank.OVERRIDE)
DONE, HELD = CommandOutcome.DONE, CommandCause.HELD


class Device(ScriptedDriver):
    """Holds a register; ``fault`` says what befalls a write."""

    def __init__(self, clock):
        super().__init__(clock, lambda *_: 1)
        self.register = (1000).to_bytes(2, "big")
        self.writes = []
        self.fault = None
        self.takes_s = 0.1

    async def write(self, meter, writable, raw):
        await asyncio.sleep(self.takes_s)
        self.writes.append((round(asyncio.get_running_loop().time(), 1), int.from_bytes(raw, "big")))
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault != "deaf":
            self.register = raw

    async def read_back(self, meter, writable):
        return self.register

    @property
    def numbers(self):
        return [number for _, number in self.writes]


def plan():
    wired = replace(meter("charger"), map=ModbusMap(groups=(), writables=(LIMIT, OTHER)))
    return bus(wired)


@asynccontextmanager
async def controlled(path, device=None, **platform_parts):
    clock = VirtualClock()
    platform = virtual_platform(clock, **platform_parts)
    device = device or Device(clock)
    async with recording(platform, path) as recorder:
        control = Control(platform, recorder, [BusPoller(platform, recorder, device, plan())])
        await control.recall()
        await control.make_safe()
        task = asyncio.create_task(control.run())
        try:
            yield control, device, recorder
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def play(path, scene, device=None):
    async def main():
        async with controlled(path, device) as (control, held, recorder):
            return await scene(control, held, recorder)

    return run(main)


def now():
    return asyncio.get_running_loop().time()


def commands(path):
    return [entry for entry in entries_in(path) if isinstance(entry, Command)]


def told(path):
    return [(c.owner, c.mantissa, c.cause, c.outcome) for c in commands(path)]


def test_what_is_held_is_written_read_back_logged_and_safe_again_when_its_time_is_over(tmp_path):
    async def scene(control, device, _recorder):
        assert control.points == ["charger/limit"]
        lease = await control.hold("charger/limit", Fraction(4200), MARKET, now() + 60)
        assert lease.active
        assert device.numbers == [4200]
        assert _point(control.status()[0])[0] == "  charger/limit: 4200 W"
        await asyncio.sleep(59)
        assert device.numbers == [4200]
        await asyncio.sleep(2)
        assert device.numbers == [4200, 1000]
        assert not lease.held
        with pytest.raises(ControlError, match="is over"):
            lease.renew(now() + 60)
        lease.release()
        assert _point(control.status()[0]) == []

    play(tmp_path / "j", scene)
    held, safe = commands(tmp_path / "j")
    assert held[:10] == ("charger", "limit", 4200, 0, "W", 4200, "market", 2, HELD, DONE)
    assert held.until_ms == pytest.approx(60_000, abs=300)
    assert safe[:10] == ("charger", "limit", 1000, 0, "W", 1000, "agent", 3, CommandCause.EXPIRED, DONE)
    assert safe.until_ms is None


def test_a_lease_that_is_renewed_goes_on_and_one_that_is_let_go_ends(tmp_path):
    async def scene(control, device, _recorder):
        lease = await control.hold("charger/limit", Fraction(4200), MARKET, now() + 10)
        for _ in range(10):
            await asyncio.sleep(5)
            lease.renew(now() + 10)
        assert device.numbers == [4200]
        again = await control.hold("charger/limit", Fraction(4200), MARKET, now() + 10)
        assert device.numbers == [4200]  # only its time is new
        assert not lease.held
        lease.release()
        assert again.active
        again.release()
        await asyncio.sleep(1)
        assert device.numbers == [4200, 1000]

    play(tmp_path / "j", scene)
    assert told(tmp_path / "j")[-1] == ("agent", 1000, CommandCause.RELEASED, DONE)


def test_the_higher_rank_wins_and_when_it_is_gone_the_lower_one_is_back(tmp_path):
    async def scene(control, device, _recorder):
        market = await control.hold("charger/limit", Fraction(2000), MARKET, now() + 100)
        installer = await control.hold("charger/limit", Fraction(0), INSTALLER, now() + 50)
        assert installer.active
        assert market.held
        assert not market.active
        schedule = await control.hold("charger/limit", Fraction(3000), SCHEDULE, now() + 200)
        assert not schedule.active
        assert _point(control.status()[0])[1:] == [
            "    market (market): 2000 W for 100 s more, waits",
            "    installer (override): 0 W for 50 s more",
            "    plan (schedule): 3000 W for 200 s more, waits",
        ]
        await asyncio.sleep(51)
        assert market.active
        await asyncio.sleep(50)
        assert schedule.active
        await asyncio.sleep(100)
        assert device.numbers == [2000, 0, 2000, 3000, 1000]

    play(tmp_path / "j", scene)
    assert told(tmp_path / "j") == [
        ("market", 2000, HELD, DONE),
        ("installer", 0, HELD, DONE),
        ("plan", 3000, HELD, CommandOutcome.OVERRULED),
        ("market", 2000, CommandCause.RETURNED, DONE),
        ("plan", 3000, CommandCause.RETURNED, DONE),
        ("agent", 1000, CommandCause.EXPIRED, DONE),
    ]


def test_what_the_profile_does_not_allow_is_refused_never_clamped(tmp_path):
    async def scene(control, device, _recorder):
        for value, why in ((Fraction(5001), "may be 0 to 5000 W"), (Fraction(1, 2), "steps of 1 W")):
            with pytest.raises(ControlError, match=why):
                await control.hold("charger/limit", value, MARKET, now() + 60)
        with pytest.raises(ControlError, match="no such point with a safe number; charger/limit"):
            await control.hold("charger/mode", Fraction(1), MARKET, now() + 60)
        assert device.writes == []

    play(tmp_path / "j", scene)
    assert [(c.mantissa, c.exponent, c.outcome) for c in commands(tmp_path / "j")] == [
        (5001, 0, CommandOutcome.NOT_ALLOWED),
        (5, -1, CommandOutcome.NOT_ALLOWED),
    ]


def test_two_owners_of_one_rank_do_not_share_a_point(tmp_path):
    async def scene(control, _device, _recorder):
        await control.hold("charger/limit", Fraction(1), MARKET, now() + 60)
        with pytest.raises(ControlError, match="another owner of rank market"):
            await control.hold("charger/limit", Fraction(2), Owner("other", Rank.MARKET), now() + 60)
        await asyncio.sleep(61)
        await control.hold("charger/limit", Fraction(2), Owner("other", Rank.MARKET), now() + 60)

    play(tmp_path / "j", scene)


def test_an_owner_that_holds_the_same_number_for_a_shorter_time_is_taken_at_its_word(tmp_path):
    async def scene(control, device, _recorder):
        await control.hold("charger/limit", Fraction(4200), MARKET, now() + 600)
        await asyncio.sleep(1)
        lease = await control.hold("charger/limit", Fraction(4200), MARKET, now() + 10)
        await asyncio.sleep(12)
        assert not lease.held
        assert device.numbers == [4200, 1000]

    play(tmp_path / "j", scene)


def test_who_waits_while_the_agent_stops_holds_nothing(tmp_path):
    async def scene(control, device, _recorder):
        first = asyncio.create_task(control.hold("charger/limit", Fraction(4200), SCHEDULE, now() + 60))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(control.hold("charger/limit", Fraction(3000), MARKET, now() + 60))
        await asyncio.sleep(0.01)
        await control.close()
        with pytest.raises(ControlError, match="the agent stops"):
            await second
        assert not (await first).held
        assert device.numbers == [4200, 1000]

    play(tmp_path / "j", scene)
    assert told(tmp_path / "j")[-1][0] == "agent"


def test_numbers_with_a_fraction_are_shown_as_decimals(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "LIMIT", replace(LIMIT, scale=Fraction(1, 2)))

    async def scene(control, _device, _recorder):
        await control.hold("charger/limit", Fraction(9, 2), MARKET, now() + 60)
        (point,) = control.status()
        assert (point["written"], point["leases"][0]["value"]) == ("4.5", "4.5")

    play(tmp_path / "j", scene)


def test_no_lease_is_longer_than_a_day(tmp_path):
    async def scene(control, device, _recorder):
        await control.hold("charger/limit", Fraction(1), MARKET, now() + 10 * LEASE_MAX_S)
        await asyncio.sleep(LEASE_MAX_S + 1)
        assert device.numbers == [1, 1000]

    play(tmp_path / "j", scene)


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        (RefusedError("no", 3), CommandOutcome.REFUSED),
        (NoReplyError("silence"), CommandOutcome.NO_REPLY),
        (BusDownError("unplugged"), CommandOutcome.BUS_DOWN),
        ("deaf", CommandOutcome.DIFFERENT),
    ],
)
def test_what_can_not_be_written_is_told_and_the_safe_number_is_written_until_it_is_there(tmp_path, fault, outcome):
    async def scene(control, device, recorder):
        device.fault = fault
        device.register = (7).to_bytes(2, "big")
        expected = ControlError if fault == "deaf" else type(fault)
        with pytest.raises(expected):
            await control.hold("charger/limit", Fraction(4200), MARKET, now() + 600)
        await asyncio.sleep(300)
        assert 8 < len(device.writes) < 15  # later and later
        assert set(device.numbers[1:]) == {1000}
        assert recorder.journal.recall("control/") == {"control/charger/limit": b"held"}
        assert ", to be made safe" in _point(control.status()[0])[0]
        device.fault = None
        await asyncio.sleep(61)
        assert device.register == (1000).to_bytes(2, "big")
        count = len(device.writes)
        assert recorder.journal.recall("control/") == {"control/charger/limit": b""}
        await asyncio.sleep(1000)
        assert len(device.writes) == count

    play(tmp_path / "j", scene)
    assert told(tmp_path / "j") == [
        ("market", 4200, HELD, outcome),
        ("agent", 1000, CommandCause.FAILED, outcome),  # once, however often it is tried
        ("agent", 1000, CommandCause.FAILED, DONE),
    ]


def test_when_a_higher_owners_number_can_not_be_written_the_one_before_is_written_again(tmp_path):
    async def scene(control, device, _recorder):
        market = await control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)
        device.fault = NoReplyError("silence")
        with pytest.raises(NoReplyError):
            await control.hold("charger/limit", Fraction(0), INSTALLER, now() + 600)
        device.fault = None
        await asyncio.sleep(5)
        assert market.active
        assert device.numbers[0] == device.numbers[-1] == 2000

    play(tmp_path / "j", scene)


def test_nothing_is_written_where_the_disk_does_not_take_that_it_is_held(tmp_path, monkeypatch):
    async def scene(control, device, recorder):
        def refuse(*_):
            raise JournalStalledError("full")

        monkeypatch.setattr(recorder.journal, "remember", refuse)
        with pytest.raises(ControlError, match="the disk does not take"):
            await control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)
        monkeypatch.undo()
        await asyncio.sleep(100)
        assert device.writes == []

    play(tmp_path / "j", scene)


def test_a_stop_makes_everything_safe(tmp_path):
    async def scene(control, device, recorder):
        lease = await control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)
        began = now()
        await control.close()
        assert now() - began < STOP_S
        assert not lease.held
        assert device.numbers == [2000, 1000]
        assert recorder.journal.recall("control/") == {"control/charger/limit": b""}
        with pytest.raises(ControlError, match="the agent stops"):
            await control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)

    play(tmp_path / "j", scene)
    assert told(tmp_path / "j")[-1] == ("agent", 1000, CommandCause.STOPPED, DONE)


def test_what_a_stop_has_no_time_for_and_what_a_kill_left_is_made_safe_first_by_the_next_run(tmp_path, caplog):
    device = []

    async def first(control, held, _recorder):
        device.append(held)
        await control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)
        held.takes_s = 60
        began = now()
        await control.close()
        assert now() - began == pytest.approx(STOP_S, abs=0.1)
        held.takes_s = 0.1

    async def second(control, held, recorder):
        assert held.numbers == [2000, 1000]
        assert recorder.journal.recall("control/") == {"control/charger/limit": b""}
        await control.hold("charger/limit", Fraction(3000), MARKET, now() + 600)
        # and here the process ends without a word

    async def third(_control, held, _recorder):
        assert held.numbers == [2000, 1000, 3000, 1000]

    play(tmp_path / "j", first)
    for scene in (second, third):
        play(tmp_path / "j", scene, device[0])
    assert [entry[2:] for entry in told(tmp_path / "j") if entry[2] == CommandCause.RESTARTED] == [
        (CommandCause.RESTARTED, DONE)
    ] * 2
    assert "not known to be safe; the next start makes it so" in caplog.text


def test_however_polling_ends_everything_is_safe_before_the_bus_is_released(tmp_path):
    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock)
        device = Device(clock)
        async with recording(platform, tmp_path / "j") as recorder:
            poller = BusPoller(platform, recorder, device, plan())
            poller.declare()
            control = Control(platform, recorder, [poller])

            async def fail():
                await control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)
                await asyncio.sleep(1)
                raise JournalStalledError("whatever ends the agent")

            with suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as tasks:
                    for part in (poller.run(), control.run(), fail()):
                        tasks.create_task(part)
            assert device.numbers == [2000, 1000]
            assert device.closed

    run(main)
    assert told(tmp_path / "j")[-1] == ("agent", 1000, CommandCause.STOPPED, DONE)


def test_a_journal_that_fails_at_the_end_does_not_keep_the_safe_number_from_being_written(
    tmp_path, monkeypatch, caplog
):
    async def scene(control, device, recorder):
        def damaged(*_):
            raise JournalDamagedError("looks damaged")

        await control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)
        monkeypatch.setattr(recorder.journal, "remember", damaged)
        await control.close()
        assert set(device.numbers[1:]) == {1000}
        monkeypatch.undo()

    play(tmp_path / "j", scene)
    assert "looks damaged" in caplog.text


def test_what_was_held_and_is_no_point_any_more_is_told(tmp_path, caplog):
    async def first(_control, _device, recorder):
        recorder.journal.remember("control/gone/limit", b"held")

    async def second(_control, device, _recorder):
        assert device.writes == []

    play(tmp_path / "j", first)
    play(tmp_path / "j", second)
    assert "gone/limit: was held, and is no point any more: make it safe by hand" in caplog.text


def test_an_owner_that_is_gone_without_a_word_costs_no_more_than_its_lease(tmp_path):
    async def scene(control, device, _recorder):
        async def owner():
            lease = await control.hold("charger/limit", Fraction(2000), MARKET, now() + 30)
            while True:
                await asyncio.sleep(10)
                lease.renew(now() + 30)

        task = asyncio.create_task(owner())
        await asyncio.sleep(300)
        assert device.numbers == [2000]
        task.cancel()
        await asyncio.sleep(31)
        assert device.numbers == [2000, 1000]

    play(tmp_path / "j", scene)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (Fraction(4200), (4200, 0)),
        (Fraction(-1, 8), (-125, -3)),
        (Fraction(10**20), (10**18, 2)),
        (Fraction(1, 3), (333_333_333_333_333_333, -18)),
    ],
)
def test_numbers_are_logged_as_decimals(value, found):
    assert decimal(value) == found


def test_what_is_read_back_is_logged_where_it_is_exact():
    assert at_exponent(Fraction(42), -1) == 420
    assert at_exponent(Fraction(1, 8), -1) is None
    assert at_exponent(Fraction(2**70), 0) is None


DEVICES = []


def opened(_platform, _plan):
    """As a driver's entry point."""
    return DEVICES[-1]


def test_the_agent_makes_safe_what_was_held_before_it_polls_and_again_when_it_stops(tmp_path):
    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock, disk=RealDisk())
        device = Device(clock)
        DEVICES.append(device)
        whole = replace(
            agent_plan(tmp_path / "j"),
            buses=(plan(),),
            drivers={"test": "test_agent_control:opened"},
            status=StatusPlan(path=str(tmp_path / "status.json"), interval_s=1.0),
        )
        for _ in range(2):
            stop = asyncio.Event()
            recorder = await _open(platform, whole)
            recorder.journal.remember("control/charger/limit", b"held")
            agent = Agent(platform, whole, recorder)
            task = asyncio.create_task(agent.run(stop))
            await asyncio.sleep(15)
            assert min(when for when, _ in device.writes) < min(when for when, _ in device.calls)
            await agent.control.hold("charger/limit", Fraction(2000), MARKET, now() + 600)
            await asyncio.sleep(2)
            assert '"owner": "market"' in (tmp_path / "status.json").read_text()
            stop.set()
            await task
        return device.numbers

    assert run(main) == [1000, 2000, 1000] * 2
    assert [cause for _, _, cause, _ in told(tmp_path / "j")] == [
        CommandCause.RESTARTED,
        CommandCause.HELD,
        CommandCause.STOPPED,
    ] * 2
