"""UDP, RTU over TCP, pacing: in virtual time against a scripted peer; then every transport over sockets and ptys."""

import asyncio
import itertools
import random
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from energybid.core.errors import BusDownError, NoReplyError
from energybid.core.ports import BusPlan, Driver, SerialEndpoint, TcpEndpoint, TlsSettings, UdpEndpoint
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.framing import mbap_frame
from energybid.drivers.modbus.udp import whole
from energybid.drivers.profile import compile_profile, load_profile
from energybid.drivers.system import open_bus
from energybid.drivers.target import parse_target
from energybid.simulator.config import BusFile
from energybid.simulator.serve import serve
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import Fate, Peer, Scene, bus_plan, framed, played, reply
from pymodbus.client import AsyncModbusSerialClient
from pymodbus.framer import FramerType
from pymodbus.server import ModbusTcpServer, ModbusUdpServer
from pymodbus.simulator import DataType, SimData, SimDevice

RIGHT = ((1 << 16) + 0, (1 << 16) + 100)
UDP = UdpEndpoint(host="meter", port=502)
GATEWAY = TcpEndpoint(host="moxa", port=4001, baudrate=9600)


def play(kind: str, fate: Fate, scene: Scene, **plan_settings: Any) -> Any:
    endpoint = {"modbus-udp": UDP, "modbus-rtu-tcp": GATEWAY}.get(kind)
    plan = bus_plan("modbus-tcp", **plan_settings)
    plan = replace(plan, kind=kind, endpoint=endpoint or plan.endpoint)
    return played(plan, Peer(fate, rtu=kind == "modbus-rtu-tcp"), scene)


def answer(frame, **other):
    return reply(frame, frame.unit.to_bytes(2, "big") + frame.pdu[1:3], **other)


async def poll_once(driver, _peer, plan):
    return await driver.poll(plan.meters[0], 0)


# ---------------------------------------------------------------- UDP


def test_every_request_is_a_datagram_of_its_own():
    async def scene(driver, peer, plan):
        samples = await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
        assert peer.writes == len(peer.requests) == 8
        return samples

    samples = play("modbus-udp", lambda f: [(0.01, answer(f))], scene, units=range(1, 5), in_flight=8)
    assert [s.values for s in samples] == [(u << 16, (u << 16) + 100) for u in range(1, 5)]


def test_replies_that_cross_are_told_apart():
    delays = iter((0.05, 0.01))
    sample = play("modbus-udp", lambda f: [(next(delays), answer(f))], poll_once, in_flight=2)
    assert (sample.values, sample.status) == (RIGHT, None)


def test_what_is_lost_is_asked_again_and_what_comes_twice_counts_once():
    asked = Counter()

    def fate(frame):
        asked[frame.pdu] += 1
        return [] if asked[frame.pdu] == 1 else [(0.01, answer(frame)), (0.02, answer(frame)), (0.3, answer(frame))]

    async def scene(driver, _peer, plan):
        return [(await driver.poll(plan.meters[0], 0)).values for _ in range(3)]

    assert play("modbus-udp", fate, scene, in_flight=2) == [RIGHT] * 3


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_datagrams_suffer_no_value_is_wrong(seed):
    chance = random.Random(seed)

    def fate(frame):
        sent = []
        for _ in range(chance.choice((0, 1, 1, 1, 2))):
            stranger = frame.transaction ^ 0x8000
            other = chance.choice(({}, {}, {}, {"unit": 9}, {"transaction": stranger}, {"function": 3}))
            data = reply(frame, bytes(4), **other) if other else answer(frame)
            data = chance.choice((data, data, data, data[:-1], data[:5], data + b"\0", data + data))
            sent.append((chance.choice((0.0, 0.05, 0.15, 0.6)), data))
        return sent

    async def scene(driver, _peer, plan):
        for _ in range(6):
            done = await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters), return_exceptions=True)
            for meter, sample in zip(plan.meters, done, strict=True):
                if isinstance(sample, BaseException):
                    continue
                right = (meter.unit << 16, (meter.unit << 16) + 100)
                assert all(value in (None, wanted) for value, wanted in zip(sample.values, right, strict=True))

    play("modbus-udp", fate, scene, units=(1, 2), in_flight=3)


def test_a_datagram_holds_whole_frames_or_is_passed_over():
    frame = mbap_frame(1, 1, b"\x03\x02\x00\x01")
    assert whole(frame)
    assert whole(frame + frame)
    assert not any(map(whole, (b"", frame[:-1], frame + b"\0", b"\0\1" + frame, b"\xff" * 20)))


def test_transactions_go_on_over_a_fresh_socket():
    async def scene(driver, peer, plan):
        await driver.poll(plan.meters[0], 0)
        peer.wires[-1].lose(ConnectionRefusedError(111, "Connection refused"))
        await driver.poll(plan.meters[0], 0)
        return [frame.transaction for frame in peer.requests], len(peer.wires)

    (first, *others), sockets = play("modbus-udp", lambda f: [(0.01, answer(f))], scene, quantities=["a"])
    assert first != 0  # begins anywhere
    assert (others, sockets) == ([(first + 1) % 65_536], 2)


# ---------------------------------------------------------------- RTU over TCP


def rtu(frame):
    return answer(frame, rtu=True)


def test_a_meter_behind_a_serial_gateway():
    sample = play("modbus-rtu-tcp", lambda f: [(0.02, rtu(f)[:4]), (0.05, rtu(f)[4:])], poll_once)
    assert (sample.values, sample.status) == (RIGHT, None)


def test_the_time_that_frames_take_on_the_line_behind_the_gateway_is_allowed_for():
    # 8 + 9 characters of 11 bits at 9600 baud are 19.5 ms on top of the meter's 200 ms.
    assert play("modbus-rtu-tcp", lambda f: [(0.215, rtu(f))], poll_once, retries=0).values == RIGHT
    with pytest.raises(NoReplyError):
        play("modbus-rtu-tcp", lambda f: [(0.225, rtu(f))], poll_once, retries=0)


@pytest.mark.parametrize(("kind", "units"), [("modbus-tcp", (1,)), ("modbus-tcp", (1, 2)), ("modbus-rtu-tcp", (1,))])
def test_a_gateway_that_lost_its_state_gets_a_new_connection(kind, units):
    async def scene(driver, peer, plan):
        for _ in range(8):
            try:
                return (await driver.poll(plan.meters[0], 0)).values, len(peer.wires)
            except (NoReplyError, BusDownError):
                await asyncio.sleep(1)
        return None, len(peer.wires)

    sockets = []

    def fate(frame):
        return [(0.02, answer(frame, rtu=kind == "modbus-rtu-tcp"))] if len(sockets[-1].wires) > 1 else []

    async def keep(driver, peer, plan):
        sockets.append(peer)
        return await scene(driver, peer, plan)

    assert play(kind, fate, keep, retries=2, units=units) == (RIGHT, 2)


@pytest.mark.parametrize("kind", ["modbus-tcp", "modbus-rtu-tcp"])
def test_a_dead_meter_behind_a_silent_gateway_costs_no_connection(kind):
    async def scene(driver, peer, plan):
        good = 0
        for _ in range(12):
            with pytest.raises(NoReplyError):
                await driver.poll(plan.meters[0], 0)
            good += (await driver.poll(plan.meters[1], 0)).status is None
        return good, len(peer.wires)

    def fate(frame):
        return [(0.02, answer(frame, rtu=kind == "modbus-rtu-tcp"))] if frame.unit == 2 else []

    assert play(kind, fate, scene, units=(1, 2), retries=2) == (12, 1)


# ---------------------------------------------------------------- a gateway's own limits


def asked_at(kind: str, in_flight: int, pause_s: float) -> tuple[list[float], list[float]]:
    async def scene(driver, peer, plan):
        await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
        return peer.asked_at

    rtu_frames = kind == "modbus-rtu-tcp"
    plan = {"units": range(1, 5), "in_flight": in_flight, "quantities": ["a"], "pause_s": pause_s}
    times = play(kind, lambda f: [(0.01, answer(f, rtu=rtu_frames))], scene, **plan)
    return [round(after - before, 4) for before, after in itertools.pairwise(times)]


def test_a_pause_stands_between_reply_and_request():
    assert asked_at("modbus-tcp", 1, 0.05) == [0.06] * 3
    assert asked_at("modbus-rtu-tcp", 1, 0.05) == [0.06] * 3
    assert asked_at("modbus-tcp", 1, 0.0) == [0.01] * 3


def test_with_several_under_way_a_pause_stands_between_requests():
    gaps = asked_at("modbus-tcp", 4, 0.004)
    assert min(gaps) >= 0.004
    assert sum(gaps) < 0.03


@pytest.mark.parametrize("code", [10, 11])
def test_a_meter_that_its_gateway_does_not_reach_stops_nobody(code):
    async def scene(driver, _peer, plan):
        return await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters), return_exceptions=True)

    def fate(frame):
        dead = framed(frame, bytes((frame.pdu[0] | 0x80, code)))
        return [(0.01, dead if frame.unit == 2 else answer(frame))]

    done = play("modbus-tcp", fate, scene, units=(1, 2, 3))
    assert isinstance(done[1], NoReplyError)
    assert [done[0].values, done[2].values] == [RIGHT, ((3 << 16), (3 << 16) + 100)]


# ---------------------------------------------------------------- real sockets


def real(plan: BusPlan) -> Driver:
    return open_driver(replace(Peer(lambda _: ()).platform(), open_bus=open_bus), plan)


async def test_a_port_where_nobody_listens_for_datagrams_is_told():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    plan = replace(bus_plan(), kind="modbus-udp", endpoint=UdpEndpoint(host="127.0.0.1", port=port))
    driver = real(plan)
    with pytest.raises(BusDownError, match=r"connection lost: .*refused"):
        await driver.poll(plan.meters[0], 0)
    await driver.close()


async def test_a_host_without_an_address_is_told():
    with pytest.raises(BusDownError, match=r"no way to meter\.invalid port 502: "):
        await open_bus(UdpEndpoint(host="meter.invalid", port=502), asyncio.Protocol)


async def test_a_datagram_transport_is_like_any_other():
    heard = asyncio.Queue()

    class Owner(asyncio.Protocol):
        def data_received(self, data):
            heard.put_nowait(data)

        def connection_lost(self, exc):
            heard.put_nowait(exc)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        host, port = peer.getsockname()
        transport = await open_bus(UdpEndpoint(host=host, port=port), Owner)
        peer.sendto(b"here", transport.get_extra_info("sockname"))
        assert await heard.get() == b"here"
        transport.close()
        assert await heard.get() is None
        assert transport.is_closing()
        transport.write(b"late")


@pytest.mark.parametrize(
    ("server_type", "framer", "target"),
    [
        (ModbusUdpServer, FramerType.SOCKET, "udp://127.0.0.1:{}"),
        (ModbusTcpServer, FramerType.RTU, "rtu-tcp://127.0.0.1:{}"),
    ],
)
async def test_a_strangers_servers(server_type, framer, target):
    device = SimDevice(1, [SimData(0, count=200, values=7, datatype=DataType.REGISTERS)])
    server = server_type(device, framer=framer, address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    sockets = getattr(server.transport, "sockets", None) or [server.transport.get_extra_info("socket")]
    place = parse_target(target.format(sockets[0].getsockname()[1]))
    plan = replace(bus_plan(lateness_s=0.05), kind=place.kind, endpoint=place.endpoint)
    driver = real(plan)
    assert (await driver.poll(plan.meters[0], 0)).values == ((7 << 16) + 7,) * 2
    await driver.close()
    await server.shutdown()


BUSES = [
    {"kind": "modbus-tcp"},
    {"kind": "modbus-tcp", "tls": {}},
    {"kind": "modbus-udp"},
    {"kind": "modbus-rtu-tcp", "baudrate": 115_200},
    {"kind": "modbus-rtu", "device": "rtu.tty", "baudrate": 115_200},
    {"kind": "modbus-ascii", "device": "ascii.tty", "baudrate": 115_200},
]


def simulated(folder: Path) -> tuple[BusFile, TlsSettings]:
    """A bus of every kind, each with one meter."""
    authority = Authority(folder, "ca")
    certificate, key = authority.sign("meter", address="127.0.0.1")
    mine = authority.sign("gateway", role="Operator")
    tls = {"certificate": certificate, "key": key, "ca": authority.path}
    buses = [bus | ({"tls": tls} if "tls" in bus else {}) for bus in BUSES]
    meters = [[{"name": f"m{n}", "unit": 1, "profile": "abb-b23"}] for n in range(len(buses))]
    tables = [bus | {"name": f"b{n}", "meter": meters[n]} for n, bus in enumerate(buses)]
    file = BusFile.model_validate({"seed": 7, "bus": tables})
    return file, TlsSettings(ca=authority.path, certificate=mine[0], key=mine[1])


async def test_the_simulator_serves_what_the_driver_reads_on_every_transport(tmp_path):
    file, tls = simulated(tmp_path)
    loaded = load_profile("abb-b23")
    groups, compiled = compile_profile(loaded, interval_s=1, quantities=["voltage-l1", "energy-import"])
    meter = replace(bus_plan().meters[0], groups=groups, map=compiled, timeout_s=1.0)
    async with serve(file, tmp_path) as served:
        for bus, place in zip(BUSES, served.places, strict=True):
            where = place.address
            endpoint = {
                "modbus-tcp": lambda at: TcpEndpoint(host=at["host"], port=at["port"]),
                "modbus-udp": lambda at: UdpEndpoint(host=at["host"], port=at["port"]),
                "modbus-rtu-tcp": lambda at: TcpEndpoint(host=at["host"], port=at["port"]),
                "modbus-rtu": lambda at: SerialEndpoint(device=at["device"], baudrate=115_200),
                "modbus-ascii": lambda at: SerialEndpoint(device=at["device"], baudrate=115_200),
            }[place.kind](where)
            if "tls" in bus:
                endpoint = replace(endpoint, tls=tls)
            plan = BusPlan(name="b", kind=place.kind, endpoint=endpoint, meters=(meter,), lateness_s=0.05)
            driver = real(plan)
            sample = await driver.poll(meter, 0)
            await driver.close()
            assert sample.status is None, place
            assert 2000 < sample.values[1] < 2600, place
            assert place.bus.counts["replies"] >= 1


async def test_a_strangers_client_reads_the_simulated_ascii_line(tmp_path):
    file, _ = simulated(tmp_path)
    async with serve(file, tmp_path):
        client = AsyncModbusSerialClient(
            str(tmp_path / "ascii.tty"), framer=FramerType.ASCII, baudrate=115_200, bytesize=8, timeout=2, retries=0
        )
        assert await client.connect()
        answer = await client.read_holding_registers(0x5B00, count=2, device_id=1)
        assert 2000 < answer.registers[1] < 2600
        client.close()
