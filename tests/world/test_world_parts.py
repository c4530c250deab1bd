"""The parts of the world, one by one: they must be as unkind as the real ones, and no unkinder."""

import asyncio
import random
import struct

import apsw
import pytest
from energybid.core.cose import PrivateKey
from energybid.core.entries import Gap
from energybid.core.errors import BusDownError, ConfigurationError, EvidenceError, JournalError, UplinkDownError
from energybid.core.ports import SerialEndpoint, TcpEndpoint, UplinkSettings, Will
from energybid.drivers.modbus.decode import group_decoder
from energybid.drivers.profile import compile_profile, list_profiles, load_profile
from energybid.simulator.decoding import remembered
from energybid.simulator.virtual import LIFE, Life, PowerCut, VirtualClock, VirtualOffload, run
from energybid.simulator.world.broker import Broker
from energybid.simulator.world.disk import Beside, Disk, DiskState, WatchedDatabase
from energybid.simulator.world.liar import Liar
from energybid.simulator.world.meters import COUNTER_MAX, WorldMeter
from energybid.simulator.world.scenario import Faults, Lies, Market, Scenario, large, load_scenario
from energybid.simulator.world.site import BATTERY, QUANTITIES, Site
from energybid.simulator.world.wire import Socket, Wiring
from energybid.sync import columns, market
from energybid.sync.market import Award, Verdict

# ---------------------------------------------------------------- virtual time


def test_an_ended_life_runs_nothing_any_more_not_even_its_finally():
    said = []

    async def process():
        asyncio.get_running_loop().call_later(3, said.append, "timer")
        try:
            await asyncio.sleep(2)
            said.append("went on")
        except BaseException:
            said.append("except")
            raise
        finally:
            said.append("finally")

    async def main():
        loop = asyncio.get_running_loop()
        life = Life()
        life.ends["connection"] = lambda: said.append("connection lost")
        task = loop.create_task(process(), context=life.context)
        await asyncio.sleep(1)
        loop.end(life)
        loop.end(life)
        await asyncio.sleep(10)
        assert not task.done()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return list(said)

    assert run(main) == ["connection lost"]


def test_a_fuse_cuts_a_life_after_so_many_steps():
    async def main():
        loop = asyncio.get_running_loop()
        steps = []

        async def process():
            for step in range(100):
                steps.append(step)
                await asyncio.sleep(0)

        life = Life(lambda: loop.end(life))
        life.fuse = 10
        task = loop.create_task(process(), context=life.context)
        await asyncio.sleep(1)
        assert not task.done()
        return len(steps)

    assert run(main) == 9  # to make the task was a step too


def test_blocking_work_that_dies_ends_its_life():
    async def main():
        cut = []
        life = Life(lambda: cut.append(LIFE.get()))

        def dies():
            raise PowerCut

        async def process():
            await VirtualOffload(random.Random(1))(dies)

        asyncio.get_running_loop().create_task(process(), context=life.context)
        await asyncio.sleep(1)
        return cut == [life]

    assert run(main)


def test_timers_of_one_moment_fire_in_order_and_cancelled_ones_are_forgotten():
    async def main():
        loop, fired = asyncio.get_running_loop(), []
        for number in range(5):
            loop.call_at(1.0, fired.append, number)
        for handle in [loop.call_later(1000, fired.append, "never") for _ in range(1000)]:
            handle.cancel()
        await asyncio.sleep(2)
        assert len(loop._timers) < 300
        return fired

    assert run(main) == [0, 1, 2, 3, 4]


def test_a_deadlock_is_told():
    with pytest.raises(RuntimeError, match="deadlock in virtual time"):
        run(asyncio.Event().wait)


def test_a_clock_drifts_steps_and_is_set():
    async def main():
        clock = VirtualClock()
        begin = clock.now_ns()
        clock.drift(1000)
        await asyncio.sleep(100)
        drifted = clock.now_ns() - begin
        clock.drift(0)
        clock.step(-3600)
        await asyncio.sleep(100)
        stepped = clock.now_ns() - begin
        clock.set(0)
        return drifted, stepped, clock.now_ns(), clock.true_ns() - begin

    assert run(main) == (100_100_000_000, 200_100_000_000 - 3600 * 10**9, 0, 200 * 10**9)


# ---------------------------------------------------------------- disk


@pytest.fixture
def disk():
    disks = [Disk()]
    yield disks[0]
    disks[0].remove()


def table(disk, *, synchronous="FULL"):
    database = disk.open("a.db")
    database.execute(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = {synchronous}")
    database.execute("CREATE TABLE IF NOT EXISTS t (x)")
    return database


def rows(disk):
    return [x for (x,) in disk.open("a.db").execute("SELECT x FROM t ORDER BY x")]


def test_what_was_committed_survives_a_power_cut_and_what_was_not_synced_may_not(disk):
    database = table(disk)
    database.execute("INSERT INTO t VALUES (1)")
    database.execute("PRAGMA synchronous = OFF; INSERT INTO t VALUES (2)")
    found = set()
    for seed in range(200):
        disk.chance = random.Random(seed)
        found.add(tuple(rows(disk.crashed())))
    assert found == {(1,), (1, 2)}
    assert rows(disk.copy()) == [1]
    assert rows(disk.survived()) == [1, 2]


def test_a_cut_within_a_write_ends_the_process_with_the_disk_as_it_was(disk):
    database = WatchedDatabase(table(disk), disk, lambda _: None)
    disk.cut_after = 3
    with pytest.raises(PowerCut):
        database.execute("INSERT INTO t SELECT value FROM json_each('[1, 2, 3]')")
    assert rows(disk.image) == []


@pytest.mark.parametrize("state", [DiskState.FULL, DiskState.READ_ONLY])
def test_a_disk_that_refuses_and_works_again(disk, state):
    database = table(disk)
    disk.state = state
    with pytest.raises(apsw.Error):
        database.execute("INSERT INTO t VALUES (zeroblob(300000))")
    with pytest.raises(JournalError):
        disk.open("other.db")
    disk.state = DiskState.FINE
    database.execute("INSERT INTO t VALUES (1)")


def test_the_files_beside_fill_a_disk_and_what_is_given_back_helps(disk):
    beside = Beside(disk)
    database = table(disk)
    beside.reserve("ballast", 20_000)
    assert (beside.size("ballast"), beside.size("a.db"), beside.size("other")) == (20_000, 4096, None)
    disk.state, disk.room = DiskState.FILLED, 0
    assert beside.free("a.db") == 0
    with pytest.raises(apsw.FullError):
        database.execute("INSERT INTO t VALUES (zeroblob(3000))")
    with pytest.raises(OSError, match="no space left"):
        beside.reserve("more", 1)
    beside.reserve("ballast", 0)
    assert beside.free("a.db") == 20_000
    database.execute("INSERT INTO t VALUES (zeroblob(3000))")
    assert 0 < beside.free("a.db") < 17_000
    disk.state = DiskState.FULL
    assert beside.free("a.db") == 0
    disk.state = DiskState.READ_ONLY
    with pytest.raises(OSError, match="read-only"):
        beside.rename("a.db-wal", "b")
    disk.state = DiskState.FINE
    database.close()


def test_the_files_beside_are_renamed_and_a_power_cut_leaves_them_before_or_after(disk):
    beside = Beside(disk)
    table(disk).close()
    beside.reserve("ballast", 1)
    with pytest.raises(FileExistsError):
        beside.rename("a.db", "ballast")
    disk.cut_after = 1
    with pytest.raises(PowerCut):
        beside.rename("a.db", "b.db")
    assert disk.image.used("a.db")
    disk.image = None
    beside.rename("a.db", "b.db")
    assert (disk.used("a.db"), disk.used("b.db") > 0) == (0, True)


def test_reads_and_syncs_fail_as_often_as_they_are_told(disk):
    database = table(disk)
    disk.failing_syncs = 1
    with pytest.raises(apsw.IOError, match="sync"):
        database.execute("INSERT INTO t VALUES (1)")
    database.execute("INSERT INTO t VALUES (2)")
    database.close()
    disk.failing_reads = 1
    again = disk.open("a.db")
    with pytest.raises(apsw.IOError, match="read") as told:
        list(again.execute("SELECT x FROM t"))
    assert told.value.extendedresult == apsw.SQLITE_IOERR_CORRUPTFS
    assert list(again.execute("SELECT x FROM t")) == [(2,)]
    assert disk.failed == 2


def test_damage_is_there_now_and_after_every_restart(disk):
    table(disk).close()
    before = bytes(disk.files["a.db"].data)
    found = set()
    for seed in range(30):
        hurt = disk.copy()
        where = hurt.damage("a.db", random.Random(seed))
        length = int(where.split()[0])
        now = bytes(hurt.files["a.db"].data)
        assert now == bytes(hurt.files["a.db"].durable)
        assert 0 < sum(a != b for a, b in zip(before, now, strict=True)) <= length
        found.add(length)
        hurt.remove()
    assert {1, 512} < found
    assert disk.damage("none.db", random.Random(1)) == ""


# ---------------------------------------------------------------- broker


def settings(client, session_s=0):
    return UplinkSettings(host="b", port=1, client_id=client, session_s=session_s, will=Will("gone", client.encode()))


async def collected(link, count):
    found = []
    async for message in link.messages():
        found.append((message.topic, message.payload))
        if len(found) == count:
            return found
    return found


def broker(**rates):
    made = Broker(random.Random(1), lambda *_: None, lambda *_: None)
    for name, rate in rates.items():
        setattr(made, name, rate)
    return made


def test_broker_retains_queues_for_sessions_and_publishes_wills():
    async def main():
        there = broker()
        async with there.connect(settings("a", 100)) as a:
            await a.subscribe(["t/+/log", "gone"])
        async with there.connect(settings("b")) as b:
            await b.publish("t/1/log", b"while a was away")
            await b.publish("kept", b"old", retain=True)
            await b.publish("kept", b"new", retain=True)
            there.cut_all("cut")
            with pytest.raises(UplinkDownError):
                await b.publish("t/1/log", b"")
        async with there.connect(settings("a", 100)) as a:
            first = await collected(a, 2)
            await a.subscribe(["kept"])
            return first + await collected(a, 1)

    assert run(main) == [("t/1/log", b"while a was away"), ("gone", b"b"), ("kept", b"new")]


def test_broker_forgets_refuses_and_delivers_twice():
    async def main():
        there = broker(duplicate_rate=1.0)
        async with there.connect(settings("a", 100)) as a:
            await a.subscribe(["t"])
            await a.publish("t", b"x")
            assert await collected(a, 2) == [("t", b"x")] * 2
            await a.publish("t", b"y", retain=True)
            there.stop(10, forget=True)
            with pytest.raises(UplinkDownError):
                await collected(a, 9)
        with pytest.raises(UplinkDownError):
            async with there.connect(settings("a", 100)):
                pass
        await asyncio.sleep(10)
        async with there.connect(settings("a", 100)) as a:
            await a.subscribe(["u"])
            await a.publish("u", b"only this")
            return await collected(a, 1)

    assert run(main) == [("u", b"only this")]


# ---------------------------------------------------------------- wire


class Ear(asyncio.Protocol):
    def __init__(self):
        self.heard, self.lost = [], None
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.heard.append(data)

    def connection_lost(self, error):
        self.lost = error or "closed"


def test_a_wire_carries_in_order_cuts_and_is_lost():
    async def main():
        far = Ear()
        socket = Socket("host", lambda: far, random.Random(1), serial=False)
        socket.cut_rate = 1.0
        wiring = Wiring({"host": socket})
        near = Ear()
        await wiring.open(TcpEndpoint(host="host", port=1), lambda: near)
        for number in range(10):
            near.transport.write(bytes([number]) * 4)
            far.transport.write(bytes([number]) * 4)
        await asyncio.sleep(1)
        assert b"".join(far.heard) == b"".join(near.heard) == bytes(n for n in range(10) for _ in range(4))
        assert len(near.heard) == 20
        socket.refuse(60, silent=True)
        await asyncio.sleep(0.1)
        assert near.lost
        assert far.lost
        begin = asyncio.get_running_loop().time()
        with pytest.raises(BusDownError):
            await wiring.open(TcpEndpoint(host="host", port=1), Ear)
        assert asyncio.get_running_loop().time() - begin > 4
        await asyncio.sleep(60)
        await wiring.open(TcpEndpoint(host="host", port=1), Ear)

    run(main)


def test_an_adapter_that_returns_under_another_name_is_found_by_the_name_that_stays():
    async def main():
        told = []
        sockets = {"/dev/ttyUSB0": Socket("line", Ear, random.Random(1), serial=True)}
        wiring = Wiring(sockets, {"by-id": "/dev/ttyUSB0"}, told.append)
        kept, raw = (SerialEndpoint(device=name, baudrate=9600) for name in ("by-id", "/dev/ttyUSB0"))
        await wiring.open(kept, Ear)
        wiring.rename("by-id", "/dev/ttyUSB1")
        await wiring.open(kept, Ear)
        with pytest.raises(BusDownError, match="no such device"):
            await wiring.open(raw, Ear)
        return told

    assert run(main) == ["by-id is /dev/ttyUSB1"]


# ---------------------------------------------------------------- meters


@pytest.mark.parametrize("name", list_profiles())
def test_a_meters_answer_is_what_it_remembers_as_decoded_by_the_driver(name):
    loaded = load_profile(name)
    now = [0.0]
    meter = WorldMeter(loaded, random.Random(name), lambda: now[0])
    _, compiled = compile_profile(loaded, interval_s=60)
    for now[0] in (1.0, 5000.0, 5_000_000.0):
        reads = [struct.pack(">BHH", r.function, r.first, r.count) for r in compiled.groups[0]]
        values, status = group_decoder(compiled.groups[0])([meter.respond(read, 0)[2:] for read in reads])
        answers = meter.answered(now[0], now[0] + 1)[-len(reads) :]
        assert status is None
        assert values == [mantissa for answer in answers for mantissa in answer.mantissas]
        assert [answer.places for answer in answers] == [
            tuple(request.first + field.offset for field in request.fields) for request in compiled.groups[0]
        ]


def test_a_meter_refuses_what_its_model_refuses():
    meter = WorldMeter(load_profile("eastron-sdm630"), random.Random(1), lambda: 0.0)
    assert meter.respond(b"\x03\x00\x00\x00\x02", 0) == b"\x83\x01"
    assert meter.respond(b"\x04\x00\x00\x00", 0) == b"\x84\x03"
    assert meter.respond(b"\x04\x00\x00\x00\xff", 0) == b"\x84\x03"
    assert meter.respond(b"\x04\xf0\x00\x00\x02", 0) == b"\x84\x02"


def test_counters_reset_roll_over_and_change_with_the_meter():
    now = [0.0]
    meter = WorldMeter(load_profile("schneider-iem3155"), random.Random(1), lambda: now[0])
    energy = b"\x03\x0c\x83\x00\x04"

    def count():
        return int.from_bytes(meter.respond(energy, 0)[2:], "big")

    first = count()
    now[0] = 10_000.0
    assert count() > first > 0
    meter.near_rollover(10)
    assert count() == COUNTER_MAX - 10
    now[0] += 100_000.0
    assert count() < COUNTER_MAX // 2
    meter.reset()
    assert count() == 0
    meter.swap()
    assert count() > 0


# ---------------------------------------------------------------- sites that bid


def test_what_a_sites_devices_answer_is_remembered_as_the_driver_decodes_it():
    now = [0.0]
    site = Site("a house", 43_200_000, lambda: now[0])
    for name, device in site.devices.items():
        _, compiled = compile_profile(site.loaded[name], interval_s=60, quantities=QUANTITIES[name])
        for now[0] in (100.0, 5000.0):
            requests = compiled.groups[0]
            reads = [struct.pack(">BHH", r.function, r.first, r.count) for r in requests]
            values, _ = group_decoder(requests)([device.respond(read, site.replay_ms())[2:] for read in reads])
            answers = device.answered(now[0], now[0] + 1)
            told = {place: n for answer in answers for place, n in zip(answer.places, answer.mantissas, strict=True)}
            assert values == [told[r.first + field.offset] for r in requests for field in r.fields]


def test_a_battery_that_disobeys_follows_when_it_hears_again():
    now = [0.0]
    site = Site("a house", 0, lambda: now[0])
    told = []
    site.follower.on_write = told.append
    battery = site.devices[BATTERY]
    power = struct.pack(">BHH", 4, 0, 2)

    def taken(at_s):
        now[0] = at_s
        return int.from_bytes(battery.respond(power, site.replay_ms())[2:], "big", signed=True)

    site.follower.deaf_until_s = 50.0
    assert battery.respond(struct.pack(">BHHBi", 16, 100, 2, 4, 1500), 0)[0] == 16
    assert taken(20.0) == 0
    assert taken(60.0) == 0
    assert taken(70.0) == 1500
    assert told == [1500]


def test_one_client_is_cut_off_and_a_message_is_swallowed():
    async def main():
        there = broker()
        there.swallows = lambda client, topic, _: (client, topic) == ("a", "t")
        lost = []
        there.on_lost = lost.append
        async with there.connect(settings("a", 100)) as a:
            await a.subscribe(["t", "u"])
            await a.publish("t", b"x")
            await a.publish("u", b"y")
            assert await collected(a, 1) == [("u", b"y")]
            there.refuse("a", 60)
            with pytest.raises(UplinkDownError):
                await collected(a, 1)
        with pytest.raises(UplinkDownError, match="refused"):
            async with there.connect(settings("a", 100)):
                pass
        async with there.connect(settings("b", 100)):
            there.refuse_nobody()
        async with there.connect(settings("a", 100)):
            return lost

    assert run(main)[0] == "a"


MARKET_KEY = PrivateKey.from_entropy(b"market.." * 6)
AWARD = market.sign(Award("world/power", 3, "world/gw-0", bytes(32), 1, 0, Verdict.AWARDED, 5, 700), MARKET_KEY)


async def lied(kind):
    """Whether each of ten true messages was hidden, and what was said beside them."""
    said, there = [], broker()
    there._published = lambda client, _, payload: said.append(payload) if client == "liar" else None
    liar = Liar(Lies(**{kind: 1.0}), MARKET_KEY, there, lambda: 60_000, 900.0, random.Random(1))
    liar._kept.append(("old", b"old"))
    hidden = {liar.hears("t", AWARD) for _ in range(10)}
    if kind not in {"flipped", "long", "duplicate", "retained", "replayed"}:
        assert not liar.hears("t", b"no message")
    await asyncio.sleep(5 * 3600)
    assert liar.told == {kind: len(said)}
    return hidden, said


def test_a_liar_tells_each_kind_of_lie_and_hides_some_truth():
    async def main():
        return {kind: await lied(kind) for kind in Lies.model_fields}

    lies = run(main)
    always = {"duplicate": False, "replayed": False, "retained": False, "late": True}
    for kind, (hidden, said) in lies.items():
        assert hidden == ({always[kind]} if kind in always else {False, True})
        assert len(said) == 10
        assert (AWARD in said) == (kind in {"duplicate", "retained", "late"})
    for kind in ("foreign", "generous"):
        assert all(market.read(Award, lie, MARKET_KEY.public) != market.told(Award, AWARD) for lie in lies[kind][1])
    assert all(market.told(Award, lie) == market.told(Award, AWARD) for lie in lies["forged"][1])


# ---------------------------------------------------------------- scenario


def test_faults_by_name():
    chosen = Faults.chosen("headend,agent_killed")
    assert {name.split("_")[0] for name in chosen.happenings()} == {"headend", "agent"}
    assert chosen.tcp.rates() == {}
    assert Faults.chosen("none").happenings() == {}
    assert Faults.chosen("all") == Faults()
    with pytest.raises(ConfigurationError, match="no fault 'nonsense'"):
        Faults.chosen("agent_killed,nonsense")


def test_a_scenario_file_is_checked(tmp_path):
    path = tmp_path / "scenario.toml"
    path.write_text('gateways = 2\ninterval = "10 s"\n[faults.agent_killed]\nper_day = 1.0\nmost = "1 s"\n')
    assert load_scenario(path).faults.agent_killed.per_day == 1.0
    path.write_text('tcp_meters = 0\nserial_meters = 0\n[faults.disk_full]\nleast = "2 min"\nmost = "1 s"\n')
    with pytest.raises(ConfigurationError, match="least is more than most"):
        load_scenario(path)
    path.write_text("tcp_meters = 0\nserial_meters = 0\n")
    with pytest.raises(ConfigurationError, match="needs a meter"):
        load_scenario(path)
    path.write_text('[market]\nevery = "5 min"\nannounce = "3 min"\ngate = "1 min"\n')
    assert load_scenario(path).market == Market(every="5 min", announce="3 min", gate="1 min")
    path.write_text('[market]\ngate = "20 min"\n')
    with pytest.raises(ConfigurationError, match="gate is before the announcement"):
        load_scenario(path)
    path.write_text("in_flight = 1\n")
    with pytest.raises(ConfigurationError, match="in_flight"):
        load_scenario(path)
    with pytest.raises(ConfigurationError, match="No such file"):
        load_scenario(tmp_path / "missing.toml")
    assert large(Faults()).tcp_meters + large(Faults()).serial_meters == 10
    assert Scenario().tcp_meters + Scenario().serial_meters == 3


# ---------------------------------------------------------------- decoding


def test_remembered_decoding_gives_what_decoding_gives_and_forgets_afterwards():
    real = columns.decode
    entries = [Gap(None, 1, time_ms, 1, 1) for time_ms in range(5)]
    data = columns.encode(entries)
    with remembered():
        first = columns.decode(data, limit=9)
        first.clear()
        assert columns.decode(data, limit=9) == entries == real(data, limit=9)
        for _ in range(2):
            with pytest.raises(EvidenceError):
                columns.decode(data, limit=4)
            with pytest.raises(EvidenceError):
                columns.decode(data[:-1], limit=9)
    assert columns.decode is real
