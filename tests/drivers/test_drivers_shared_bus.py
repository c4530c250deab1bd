"""Other masters on a bus: polls keep their interval, masters get answers, and nobody outside harms the bus."""

import asyncio
import random
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from statistics import mean

import pytest
from energybid.agent.commands.status import _proxy
from energybid.agent.polling import BusPoller
from energybid.agent.sharing import OPEN_AGAIN_S, make_proxies
from energybid.core.errors import BusDownError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.framing import mbap_frame, rtu_frame
from energybid.drivers.modbus.proxy.plan import Allowed, Listen, ProxyPlan
from energybid.drivers.modbus.proxy.rules import wanted
from energybid.simulator.virtual import VirtualClock, run
from gateways import recording, virtual_platform
from hypothesis import given, settings
from hypothesis import strategies as st
from lines import Line, line_plan, profile, words
from masters import Port

LINE = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)
PLAN = ProxyPlan(bus="line", listen=Listen(host="127.0.0.1", port=1502), units=None)
TEN = profile(10)
"""20 registers: 73 ms of a line of 9,600 baud."""


class Register(dict):
    """Meters that can be written; counts what reaches them."""

    def __init__(self, *units):
        super().__init__()
        self.units = units
        self.asked = defaultdict(int)

    def __call__(self, unit, pdu):
        if unit not in self.units:
            return b""
        self.asked[unit, pdu] += 1
        if pdu[0] in {6, 16}:
            wish = wanted(pdu)
            data = pdu[3:] if pdu[0] == 6 else pdu[6:]
            self.update({wish.first + i: data[2 * i : 2 * i + 2] for i in range(wish.size)})
            return pdu[:5]
        if pdu[0] == 4:
            return words(unit, pdu)
        first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        if first >= 5000:
            return bytes((pdu[0] | 0x80, 2))
        data = b"".join(self.get(first + i, b"\0\0") for i in range(count))
        return bytes((pdu[0], len(data))) + data


@asynccontextmanager
async def sharing(path, line, bus, *plans, port=None, lines=None):
    """A bus that is polled, and its proxies."""
    clock = VirtualClock()
    port = port or Port()

    async def open_bus(endpoint, factory):
        return await (lines or {}).get(endpoint.device, line).open_bus(endpoint, factory)

    platform = replace(virtual_platform(clock, open_bus=open_bus), serve_bus=port.serve)
    async with recording(platform, path) as recorder:
        driver = open_driver(platform, bus)
        poller = BusPoller(platform, recorder, driver, bus)
        poller.declare()
        proxies = make_proxies(platform, plans, [poller])
        tasks = [asyncio.create_task(one.run()) for one in (poller, *proxies)]
        await asyncio.sleep(4.3)  # a line that was opened rests first
        try:
            yield port, poller, proxies
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def scene(path, play, *plans, units=(1,), respond=None, interval_s=1.0, text=TEN, **more):
    line = Line(LINE, Register(*units) if respond is None else respond)
    bus = line_plan(LINE, units, text, interval_s=interval_s)

    async def main():
        async with sharing(path, line, bus, *(plans or (PLAN,)), **more) as (port, poller, proxies):
            return await play(port, line, proxies[0], poller)

    return run(main)


def starts(line, unit, since_s):
    """When a meter's poll began."""
    return [
        at
        for frame, at in zip(line.requests, line.asked_at, strict=True)
        if frame.unit == unit and frame.pdu[:3] == b"\4\0\0" and at >= since_s
    ]


async def hammer(master, unit, until_s, *, spread=400):
    """Ask for ever other registers as fast as answers come."""
    loop, rng, answered = asyncio.get_running_loop(), random.Random(unit), 0
    while loop.time() < until_s:
        reply = await master.read(unit, 1 + rng.randrange(spread), 1 + rng.randrange(20))
        answered += reply[0] == 4
        if reply[0] != 4:
            await asyncio.sleep(0.05)
    return answered


@pytest.mark.parametrize("interval_s", [1.0, 0.0])
def test_three_masters_that_hammer_change_the_polls_interval_by_less_than_a_twentieth(tmp_path, interval_s):
    """On a bus that polls fill, masters get the time that is owed to them; nobody starves."""
    units = range(1, 5)

    async def play(port, line, proxy, _poller):
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.sleep(60)
        busy = loop.time()
        masters = [port.connect() for _ in range(3)]
        answered = await asyncio.gather(*(hammer(master, 1 + n, busy + 120) for n, master in enumerate(masters)))
        return begin, busy, answered, proxy.status(), line

    plan = replace(PLAN, max_age_s=0.0, rate=1000)
    begin, busy, answered, status, line = scene(tmp_path / "j", play, plan, units=units, interval_s=interval_s)
    assert line.collisions == 0
    for unit in units:
        quiet = [b - a for a, b in pairwise([t for t in starts(line, unit, begin) if t < busy])]
        loud = [b - a for a, b in pairwise([t for t in starts(line, unit, busy) if t < busy + 120])]
        assert mean(loud) < 1.05 * mean(quiet)
        if interval_s:  # not only on average
            assert max(loud) < 1.05
    assert min(answered) > (250 if interval_s else 8)
    assert max(answered) < 1.3 * min(answered)
    assert status["asked"] >= sum(answered)


def test_what_polls_and_masters_have_read_is_answered_without_asking(tmp_path):
    async def play(port, line, proxy, _poller):
        first, second = port.connect(), port.connect()
        await asyncio.sleep(0.2)
        before = len(line.requests)
        assert await first.read(1, 4, 6) == bytes((4, 12)) + words(1, bytes.fromhex("04 0004 0006"))[2:]
        assert len(line.requests) == before  # the poll has brought it
        await first.read(1, 300, 2)
        await second.read(1, 301, 1)
        assert sum(frame.pdu[1:3] == (300).to_bytes(2, "big") for frame in line.requests) == 1
        await asyncio.sleep(1.1)
        await second.read(1, 301, 1)
        status = proxy.status()
        assert (status["requests"], status["cached"], status["asked"]) == (4, 2, 2)
        assert [client["requests"] for client in status["clients"]] == [2, 2]
        return "\n".join(_proxy(status))

    text = scene(tmp_path / "j", play)
    assert "proxy 127.0.0.1:1502 for line: 4 requests: 2 from what was read, 2 asked" in text
    assert "master 127.0.0.1: 2 requests" in text


def test_requests_for_the_same_at_once_are_asked_once(tmp_path):
    async def play(port, line, proxy, _poller):
        masters = [port.connect() for _ in range(3)]
        replies = await asyncio.gather(*(master.read(1, 300, 2) for master in masters))
        assert len(set(replies)) == 1
        assert sum(frame.pdu[1:3] == (300).to_bytes(2, "big") for frame in line.requests) == 1

    scene(tmp_path / "j", play)


def test_nothing_is_written_but_what_is_listed_and_what_was_read_before_is_forgotten(tmp_path):
    plan = replace(PLAN, allow=(Allowed(unit=1, table="holding", first=100, count=2),), max_age_s=60.0)
    meters = Register(1, 2)

    async def play(port, _line, proxy, _poller):
        master = port.connect()
        assert await master.read(1, 100, 1, function=3) == b"\3\2\0\0"
        assert await master.ask(1, bytes.fromhex("06 0064 1234")) == bytes.fromhex("06 0064 1234")
        assert await master.read(1, 100, 1, function=3) == b"\3\2\x12\x34"
        assert await master.ask(1, bytes.fromhex("10 0064 0002 04 00010002")) == bytes.fromhex("10 0064 0002")
        assert meters == {100: b"\0\1", 101: b"\0\2"}
        assert await master.ask(1, bytes.fromhex("06 0066 1234")) == b"\x86\2"
        assert await master.ask(1, bytes.fromhex("10 0065 0002 04 00010002")) == b"\x90\2"
        assert await master.ask(2, bytes.fromhex("06 0064 1234")) == b"\x86\1"
        assert await master.ask(1, bytes.fromhex("05 0000 ff00")) == b"\x85\1"
        assert meters == {100: b"\0\1", 101: b"\0\2"}
        assert proxy.status()["refused"] == {"write_not_allowed": 4}

    scene(tmp_path / "j", play, plan, units=(1, 2), respond=meters)


def test_exceptions_are_those_of_a_gateway(tmp_path):
    plan = replace(PLAN, units=frozenset({1, 9}), renamed=((101, 1),), wait_s=2.0, timeout_s=0.4)

    async def play(port, line, proxy, _poller):
        master = port.connect()
        assert (await master.read(101, 300, 1))[0] == 4  # as masters call unit 1
        assert line.requests[-1].unit == 1
        assert await master.read(1, 5000, 1, function=3) == b"\x83\2"  # the meter's own
        assert await master.read(2, 0, 1) == b"\x84\x0a"  # not served
        assert await master.read(9, 0, 1) == b"\x84\x0b"  # silent
        assert await master.ask(1, b"\x2b\x0e\1\0") == b"\xab\1"
        line.refuse = "unplugged"
        line.wires[-1].lose()
        assert await master.read(1, 300, 2) == b"\x84\x0a"
        assert proxy.status()["refused"] == {"bus_down": 1, "no_reply": 1, "no_such_unit": 1, "not_understood": 1}

    scene(tmp_path / "j", play, plan)


def test_a_silent_unit_gets_a_share_of_the_time_and_is_refused_beyond_that(tmp_path):
    async def play(port, line, proxy, _poller):
        master, loop = port.connect(), asyncio.get_running_loop()
        begin = loop.time()
        while loop.time() < begin + 300:
            assert await master.read(9, 0, 1) in {b"\x84\x0b", b"\x84\x06"}
            assert (await master.read(1, 300, 1))[0] == 4
            await asyncio.sleep(0.05)
        wasted = [frame for frame in line.requests if frame.unit == 9]
        # of 0.45 s each: 3 s at once, and a twenty-fifth of the time
        assert 20 <= len(wasted) <= (3 + 300 / 25) / 0.45 + 1
        assert proxy.status()["refused"]["silent_unit"] > 1000
        assert max(b - a for a, b in pairwise(starts(line, 1, 2.0))) < 2.1

    scene(tmp_path / "j", play, replace(PLAN, max_age_s=0.0, timeout_s=0.4), interval_s=1.0)


def test_who_waits_too_long_or_in_too_long_a_queue_is_told_so(tmp_path):
    """A bus that polls fill: one request fits, then the queue fills up and waits in vain."""
    plan = replace(PLAN, queue=4, wait_s=0.5, max_age_s=0.0)

    async def play(port, _line, proxy, _poller):
        masters = [port.connect() for _ in range(3)]
        asked = [master.read(1, 300 + n, 1) for n in range(3) for master in masters]
        codes = [reply[1] if reply[0] & 0x80 else 0 for reply in await asyncio.gather(*asked)]
        assert set(codes) <= {0, 6, 0x0B}
        refused = proxy.status()["refused"]
        assert refused["queue_full"] >= 4
        assert refused["too_late"] >= 1

    scene(tmp_path / "j", play, plan, units=range(1, 5), interval_s=0.0)


def test_who_asks_too_much_is_slowed_down_alone(tmp_path):
    async def play(port, _line, proxy, _poller):
        loud, quiet = port.connect(), port.connect()
        for number in range(300):
            loud.send(mbap_frame(number, 1, bytes.fromhex("04 0000 0001")))
        assert not loud.connection.reading
        assert len(loud.connection.held) > 200
        await asyncio.sleep(0.2)
        assert (await quiet.read(1, 0, 1))[0] == 4
        assert proxy.status()["refused"]["too_many"] <= 2
        await asyncio.sleep(10)
        assert proxy.status()["refused"]["too_many"] <= 20

    scene(tmp_path / "j", play)


def test_connections_are_bounded_and_who_asked_nothing_for_longest_makes_room(tmp_path):
    async def play(port, _line, proxy, poller):
        masters = [port.connect() for _ in range(8)]
        strangers = [port.connect() for _ in range(2000)]
        await asyncio.sleep(0)
        assert [master.open for master in masters] == [True] * 8
        assert not any(stranger.open for stranger in strangers)
        assert proxy.status()["refused"] == {"no_room": 2000}
        for _ in range(6):
            await asyncio.sleep(2)
            for master in masters[1:]:
                await master.read(1, 0, 1)
        newcomer = port.connect()
        assert newcomer.open
        assert [master.open for master in masters] == [False] + [True] * 7
        assert len(proxy.status()["clients"]) == 8
        assert poller.meters[0].failed_polls == 0

    scene(tmp_path / "j", play)


@pytest.mark.parametrize(
    ("clients", "peer", "admitted"),
    [
        (("127.0.0.0/8",), "127.0.0.1", True),
        (("127.0.0.0/8",), "192.168.1.7", False),
        (("192.168.1.0/24",), "192.168.1.7", True),
        (("192.168.1.0/24",), "::ffff:192.168.1.7", True),
        (("fd00::/8",), "fd00::1%eth0", True),
        (("0.0.0.0/0", "::/0"), "nobody", False),
    ],
)
def test_only_masters_in_the_listed_networks_come_in(tmp_path, clients, peer, admitted):
    async def play(port, _line, proxy, _poller):
        master = port.connect(peer)
        await asyncio.sleep(0)
        assert master.open is admitted
        assert proxy.status()["refused"] == ({} if admitted else {"not_admitted": 1})

    scene(tmp_path / "j", play, replace(PLAN, clients=clients))


def test_slow_and_deaf_and_wild_connections_are_closed(tmp_path):
    async def play(port, _line, proxy, _poller):
        half, deaf, wild, flood = port.connect(), port.connect(deaf=True), port.connect(), port.connect()
        half.send(mbap_frame(1, 1, bytes.fromhex("04 0000 0001"))[:9])
        wild.send(b"GET / HTTP/1.1\r\n\r\n")
        flood.send(bytes(5000))
        assert not wild.open
        assert not flood.open
        for _ in range(20):
            for number in range(40):
                deaf.send(mbap_frame(number, 1, bytes.fromhex("04 0000 0014")))
            await asyncio.sleep(1)
        assert not deaf.open
        assert half.open
        await asyncio.sleep(41)
        assert not half.open
        refused = proxy.status()["refused"]
        assert {why: refused[why] for why in ("no_modbus", "flood", "unread", "idle")} == {
            "no_modbus": 1,
            "flood": 1,
            "unread": 1,
            "idle": 1,
        }
        assert proxy.status()["clients"] == []

    scene(tmp_path / "j", play)


def test_what_came_together_with_what_closed_a_connection_is_not_asked(tmp_path):
    meter = Register(1)
    allow = (Allowed(unit=1, table="holding", first=100, count=1),)
    write = bytes.fromhex("06 0064 0007")

    async def play(port, _line, proxy, _poller):
        await asyncio.sleep(11)  # polled once: that is known, and there is time for more
        deaf = port.connect(deaf=True)
        known, unknown = (mbap_frame(1, 1, bytes.fromhex(text)) for text in ("04 0000 0014", "04 0200 0001"))
        deaf.send(unknown + 338 * known + mbap_frame(2, 1, write))
        assert proxy.status()["refused"] == {"unread": 1}
        await asyncio.sleep(3)
        assert not meter.asked[1, write]

    plan = replace(PLAN, allow=allow, rate=1000, max_age_s=60.0)
    scene(tmp_path / "j", play, plan, respond=meter, interval_s=10.0)


def test_a_mistake_behind_the_doors_is_not_passed_over_in_silence(tmp_path):
    class Mistaken:
        def overhear(self, _listener):
            pass

        def relay_s(self, *_):
            raise ZeroDivisionError

    async def main():
        clock, port = VirtualClock(), Port()
        platform = replace(virtual_platform(clock), serve_bus=port.serve)
        async with recording(platform, tmp_path / "j") as recorder:
            (proxy,) = make_proxies(
                platform, [PLAN], [BusPoller(platform, recorder, Mistaken(), line_plan(LINE, (1,), TEN))]
            )
            running = asyncio.create_task(proxy.run())
            await proxy.is_open.wait()
            port.connect().send(mbap_frame(1, 1, bytes.fromhex("04 0000 0001")))
            with pytest.raises(ExceptionGroup) as caught:
                await running
            assert caught.group_contains(ZeroDivisionError)
            assert port.factory is None, "nobody is let in any more"

    run(main)


def test_what_a_master_asked_that_is_gone_is_not_asked(tmp_path):
    async def play(port, line, _proxy, _poller):
        gone = port.connect()
        for number in range(4):
            gone.send(mbap_frame(number, 1, bytes((4, 1, number, 0, 1))))
        await asyncio.sleep(0)
        gone.connection.abort()
        await asyncio.sleep(2)
        assert sum(frame.pdu[1] == 1 for frame in line.requests) <= 1

    scene(tmp_path / "j", play, replace(PLAN, max_age_s=0.0), units=range(1, 5), interval_s=0.0)


@pytest.mark.untraced
@given(st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=40), st.booleans()), max_size=30), st.integers())
@settings(max_examples=15, deadline=None)
def test_garbage_costs_no_poll_and_never_reaches_a_meter(tmp_path_factory, chunks, seed):
    """Random bytes and cut-up requests over four connections; the polls go on at their second."""
    rng = random.Random(seed)
    meters = Register(1)

    async def play(port, line, _proxy, poller):
        masters = [port.connect() for _ in range(4)]
        for number, data, whole in chunks:
            if not masters[number].open:
                masters[number] = port.connect()
            sent = mbap_frame(rng.randrange(65_536), rng.choice([0, 1, 2, 255]), data or b"\x06") if whole else data
            at = rng.randrange(len(sent) + 1)
            masters[number].send(sent[:at])
            masters[number].send(sent[at:])
            await asyncio.sleep(rng.random() / 10)
        await asyncio.sleep(3)
        assert meters == {}  # nothing was written
        assert all(not isinstance(wanted(frame.pdu), int) and frame.pdu[0] <= 4 for frame in line.requests)
        assert poller.meters[0].failed_polls == 0
        assert max(b - a for a, b in pairwise(starts(line, 1, 2.0))) < 2.2

    scene(tmp_path_factory.mktemp("j") / "j", play, respond=meters)


# ---------------------------------------------------------------- a further line

FURTHER = SerialEndpoint(device="/dev/ttyUSB1", baudrate=9600)


class Desk:
    """The master's end of a further line."""

    def __init__(self):
        self.heard = b""
        self.refuse = None
        self.wire = None
        self.attempts = 0

    async def open_bus(self, _endpoint, factory):
        self.attempts += 1
        if self.refuse:
            raise BusDownError(self.refuse)
        master = self

        class Wire(asyncio.Transport):
            def write(self, data):
                master.heard += bytes(data)

            def abort(self):
                asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

        self.wire = Wire()
        self.wire.protocol = factory()
        self.wire.protocol.connection_made(self.wire)
        return self.wire

    def send(self, data):
        self.wire.protocol.data_received(data)


def further(path, play, **changes):
    desk = Desk()
    plan = replace(PLAN, listen=FURTHER, **changes)

    async def whole(_port, line, proxy, _poller):
        return await play(desk, line, proxy)

    return scene(path, whole, plan, lines={FURTHER.device: desk})


def test_a_master_on_a_further_line_is_answered_in_rtu(tmp_path):
    async def play(desk, _line, _proxy):
        request = rtu_frame(1, bytes.fromhex("04 012c 0001"))
        desk.send(request[:3])
        await asyncio.sleep(0.01)
        desk.send(request[3:])
        await asyncio.sleep(0.5)
        assert desk.heard == rtu_frame(1, bytes.fromhex("04 02 012c"))
        desk.heard = b""
        desk.send(request[:4])  # and nothing more: noise
        await asyncio.sleep(0.2)
        desk.send(rtu_frame(7, bytes.fromhex("04 0000 0001")))  # somebody else's on that line
        await asyncio.sleep(1.2)
        assert desk.heard == b""
        desk.send(request)
        await asyncio.sleep(0.5)
        assert desk.heard == rtu_frame(1, bytes.fromhex("04 02 012c"))

    further(tmp_path / "j", play, units=frozenset({1}))


def test_what_a_master_on_a_line_has_given_up_is_not_answered_any_more(tmp_path):
    async def play(desk, _line, _proxy):
        desk.send(rtu_frame(1, bytes.fromhex("04 012c 0001")))
        await asyncio.sleep(0.01)
        desk.send(rtu_frame(1, bytes.fromhex("04 0140 0001")))
        await asyncio.sleep(1)
        assert desk.heard == rtu_frame(1, bytes.fromhex("04 02 0140"))

    further(tmp_path / "j", play, max_age_s=0.0)


def test_a_further_line_is_opened_again(tmp_path, caplog):
    async def play(desk, _line, proxy):
        assert proxy.status()["error"] == ""
        desk.refuse = "unplugged"
        desk.wire.abort()
        await asyncio.sleep(3 * OPEN_AGAIN_S + 1)
        assert proxy.status()["error"] == "unplugged"
        assert "unplugged" in "\n".join(_proxy(proxy.status()))
        desk.refuse = None
        await asyncio.sleep(OPEN_AGAIN_S)
        assert proxy.status()["error"] == ""
        desk.send(rtu_frame(1, bytes.fromhex("04 012c 0001")))
        await asyncio.sleep(0.5)
        assert desk.heard
        assert len(proxy.status()["clients"]) == 1

    further(tmp_path / "j", play)
    assert [r.message for r in caplog.records if "unplugged" in r.message] == ["proxy for line: unplugged"]


def test_a_port_that_is_in_use_is_tried_again(tmp_path):
    port = Port()
    port.refuse = 2

    async def play(_port, _line, proxy, _poller):
        assert proxy.status()["error"] == "in use"
        await asyncio.sleep(2 * OPEN_AGAIN_S)
        assert proxy.status()["error"] == ""
        assert port.attempts == 3

    scene(tmp_path / "j", play, port=port)
