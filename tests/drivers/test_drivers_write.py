"""Writing registers: what goes over the wire, what counts as done, and that it goes before polls."""

import asyncio
from typing import Any

import pytest
from energybid.core.errors import BusDownError, GarbledError, NoReplyError, RefusedError
from energybid.core.ports import BusPlan, Driver
from energybid.drivers.modbus.framing import Frame
from modbus_peers import COUNTER, SILENT, Fate, Peer, Scene, bus_plan, framed, played, reply

LIMITS = (
    COUNTER
    + b"""
[[writable]]
name = "limit"
register = 300
type = "uint16"
unit = "W"
minimum = "0"
maximum = "5000"
[[writable]]
name = "target"
register = 302
type = "int32"
word_order = "little"
unit = "W"
minimum = "-5000"
maximum = "5000"
"""
)
KINDS = ["modbus-tcp", "modbus-rtu"]


def play(kind: str, fate: Fate, scene: Scene, **settings: Any) -> Any:
    return played(bus_plan(kind, **{"profile": LIMITS, **settings}), Peer(fate, rtu=kind != "modbus-tcp"), scene)


def limits(plan: BusPlan) -> Any:
    return plan.meters[0].map.writables  # type: ignore[attr-defined]


def confirming(kind: str) -> Fate:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        rtu = kind != "modbus-tcp"
        if frame.pdu[0] in {3, 4}:
            return [(0.01, reply(frame, bytes(2 * frame.pdu[4]), rtu=rtu))]
        return [(0.01, framed(frame, frame.pdu[:5], rtu=rtu))]

    return fate


@pytest.mark.parametrize("kind", KINDS)
def test_one_register_goes_by_function_6_and_several_by_16(kind: str) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> list[bytes]:
        limit, target = limits(plan)
        await driver.write(plan.meters[0], limit, bytes.fromhex("1388"))
        await driver.write(plan.meters[0], target, bytes.fromhex("ec78ffff"))
        return [frame.pdu for frame in peer.requests]

    # Modbus Application Protocol V1.1b3 §6.6 and §6.12: function, address, (count, bytes,) values
    assert play(kind, confirming(kind), scene) == [
        bytes.fromhex("06 012c 1388"),
        bytes.fromhex("10 012e 0002 04 ec78ffff"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_in_the_registers_is_read_as_it_is(kind: str) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> Any:
        back = await driver.read_back(plan.meters[0], limits(plan)[1])
        return back, peer.requests[0].pdu

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        return [(0.01, reply(frame, b"\x12\x34\x56\x78", rtu=kind != "modbus-tcp"))]

    assert play(kind, fate, scene) == (b"\x12\x34\x56\x78", bytes.fromhex("03 012e 0002"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_goes_before_polls_that_wait_and_before_the_rest_of_one_that_has_begun(kind: str) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> list[int]:
        first, second = plan.meters
        asked = asyncio.Event()

        def fate(frame: Frame) -> Any:
            asked.set()
            return confirming(kind)(frame)

        peer.fate = fate
        polls = [asyncio.create_task(driver.poll(meter, 0)) for meter in (first, second)]
        await asked.wait()
        limit = limits(plan)[0]
        await asyncio.gather(*(driver.write(first, limit, bytes((0, n))) for n in (1, 2)), *polls)
        return [frame.pdu[-1] if frame.pdu[0] == 6 else -frame.unit for frame in peer.requests]

    # The request under way, both writes in their order, then all that waited. On a line the answers to both look alike:
    # what waits may be asked while the first could still show twice.
    order = [-1, 1, 2, -1, -2, -2] if kind == "modbus-tcp" else [-1, 1, -1, 2, -2, -2]
    assert play(kind, confirming(kind), scene, units=(1, 2)) == order


def refusing(code: int, times: int = 99) -> Fate:
    left = [times]

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        left[0] -= 1
        if left[0] < 0:
            return confirming("modbus-tcp")(frame)
        return [(0.01, framed(frame, bytes((frame.pdu[0] | 0x80, code))))]

    return fate


async def write_limit(driver: Driver, peer: Peer, plan: BusPlan) -> int:
    await driver.write(plan.meters[0], limits(plan)[0], b"\x00\x07")
    return len(peer.requests)


def test_a_refusal_is_told_with_its_code_and_not_repeated() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> int:
        with pytest.raises(RefusedError, match=r"bus/m1 \(unit 1, function 6, registers 300 to 300\)") as caught:
            await write_limit(driver, peer, plan)
        assert caught.value.code == 3
        return len(peer.requests)

    assert play("modbus-tcp", refusing(3), scene) == 1


def test_a_busy_meter_is_asked_again() -> None:
    assert play("modbus-tcp", refusing(6, times=1), write_limit) == 2


def test_silence_is_an_error_after_all_tries() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> int:
        with pytest.raises(NoReplyError):
            await write_limit(driver, peer, plan)
        return len(peer.requests)

    assert play("modbus-tcp", lambda _: SILENT, scene, retries=2) == 3


@pytest.mark.parametrize("head", ["06 012c 0008", "06 012d 0007", "10 012c 0007", "03 02 0007"])
def test_an_answer_that_says_another_thing_is_none(head: str) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> int:
        with pytest.raises(GarbledError):
            await write_limit(driver, peer, plan)
        return len(peer.requests)

    assert play("modbus-tcp", lambda frame: [(0.01, framed(frame, bytes.fromhex(head)))], scene) == 2


def test_what_is_no_writable_or_has_another_length_is_the_callers_fault() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> int:
        with pytest.raises(ValueError, match="limit has 1 registers, not 4 bytes"):
            await driver.write(plan.meters[0], limits(plan)[0], bytes(4))
        with pytest.raises(TypeError):
            await driver.write(plan.meters[0], "limit", bytes(2))
        return len(peer.requests)

    assert play("modbus-tcp", lambda _: SILENT, scene) == 0


def test_a_bus_that_is_lost_is_told() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        peer.refuse = "gone"
        with pytest.raises(BusDownError, match="gone"):
            await write_limit(driver, peer, plan)

    play("modbus-tcp", lambda _: SILENT, scene)


GUARDED = (
    COUNTER.replace(b"block = [", b'block = [{ table = "holding", first = 0, count = 4 }, ')
    + b"""
[[factor]]
name = "header"
table = "holding"
register = 2
type = "uint16"
kind = "guard"
equals = [704]
[[writable]]
name = "limit"
register = 300
type = "uint16"
unit = "W"
minimum = "0"
maximum = "5000"
guarded_by = ["header"]
"""
)


@pytest.mark.parametrize(("stands", "written"), [("02c0", True), ("02c1", False)])
def test_nothing_is_written_where_a_guard_does_not_hold(stands: str, *, written: bool) -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        answer = bytes.fromhex(stands) if frame.pdu[0] == 3 else b""
        return [(0.01, reply(frame, answer) if answer else framed(frame, frame.pdu[:5]))]

    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> list[bytes]:
        (limit,) = limits(plan)
        if written:
            await driver.write(plan.meters[0], limit, bytes.fromhex("1388"))
        else:
            with pytest.raises(RefusedError, match="limit is not written: header at 2 is not what the profile says"):
                await driver.write(plan.meters[0], limit, bytes.fromhex("1388"))
        return [frame.pdu for frame in peer.requests]

    asked = [bytes.fromhex("03 0002 0001"), bytes.fromhex("06 012c 1388")]
    assert play("modbus-tcp", fate, scene, profile=GUARDED) == asked[: 1 + written]
