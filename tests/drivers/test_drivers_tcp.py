"""The Modbus TCP exchange, byte by byte against a scripted peer, in virtual time."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from energybid.core.errors import BusDownError, GarbledError, NoReplyError, RefusedError
from energybid.core.ports import BusPlan, Driver, Sample
from energybid.core.quantities import Status
from energybid.drivers.modbus import mbap
from energybid.drivers.modbus.framing import Frame, mbap_frame
from energybid.simulator.virtual import EPOCH_NS
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import SILENT, Fate, Peer, Scene, bus_plan, framed, played, reply


def registers(frame: Frame) -> bytes:
    """Unit and address, so that a wrong answer shows."""
    return frame.unit.to_bytes(2, "big") + frame.pdu[1:3]


def prompt(frame: Frame) -> list[tuple[float, bytes]]:
    return [(0.01, reply(frame, registers(frame)))]


RIGHT = ((1 << 16) + 0, (1 << 16) + 100)


def play(fate: Fate, scene: Scene, **settings: Any) -> Any:
    return played(bus_plan(**settings), Peer(fate), scene)


async def poll_once(driver: Driver, _peer: Peer, plan: BusPlan) -> Sample:
    return await driver.poll(plan.meters[0], 0)


def test_a_prompt_answer() -> None:
    sample = play(prompt, poll_once)
    assert sample == Sample((EPOCH_NS + 20_000_000) // 10**6, 20, 20, RIGHT, None)


def test_with_two_in_flight_a_group_is_written_together() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> tuple[int, int]:
        assert (await driver.poll(plan.meters[0], 0)).span_ms == 10
        return peer.writes, driver.concurrency

    assert play(prompt, scene, in_flight=2) == (1, 2)


def test_no_more_requests_are_in_flight_than_stated() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        answered = 0

        def fate(frame: Frame) -> list[tuple[float, bytes]]:
            nonlocal answered
            asyncio.get_running_loop().call_later(0.01, count)
            return prompt(frame)

        def count() -> None:
            nonlocal answered
            answered += 1

        peer.fate = lambda frame: check(frame, fate)

        def check(frame: Frame, then: Fate) -> Any:
            assert len(peer.requests) - answered <= 3
            return then(frame)

        samples = await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
        assert [s.values for s in samples] == [((u << 16), (u << 16) + 100) for u in range(1, 9)]

    play(prompt, scene, in_flight=3, units=range(1, 9))


@pytest.mark.parametrize(
    "stray",
    [
        lambda f: reply(f, b"\xff" * 4, transaction=f.transaction ^ 0x100),  # another transaction
        lambda f: mbap_frame(f.transaction ^ 1, 9, b"\x84\x02"),
        lambda _: bytes.fromhex("0000 0001 0003 010402"),  # another protocol: that ADU is skipped
    ],
)
def test_strays_are_passed_over(stray: Callable[[Frame], bytes]) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> Sample:
        sample = await driver.poll(plan.meters[0], 0)
        assert len(peer.requests) == 2
        assert len(peer.wires) == 1
        return sample

    sample = play(lambda f: [(0.005, stray(f)), *prompt(f)], scene)
    assert (sample.values, sample.status) == (RIGHT, None)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f: reply(f, registers(f), unit=2),
        lambda f: reply(f, registers(f), function=3),
        lambda f: reply(f, registers(f) + b"\0\0"),
        lambda f: reply(f, registers(f)[:2]),
        lambda f: framed(f, b"\x04\x04\x00"),  # byte count does not fit the length
        lambda f: framed(f, b"\x83\x02"),  # an exception to another function
        lambda f: framed(f, b"\x84\x00"),  # no exception code of the specification
    ],
)
def test_a_wrong_answer_is_garbled_and_asked_again_once(wrong: Callable[[Frame], bytes]) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        with pytest.raises(GarbledError):
            await driver.poll(plan.meters[0], 0)
        assert len(peer.requests) == 4  # two, and each once again
        peer.fate = prompt
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT

    play(lambda f: [(0.01, wrong(f))], scene, retries=3, in_flight=2)


def test_a_garbled_answer_is_followed_by_a_right_one() -> None:
    seen = []

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        seen.append(frame)
        return [(0.01, reply(frame, registers(frame), unit=7))] if len(seen) == 1 else prompt(frame)

    assert play(fate, poll_once).values == RIGHT


@pytest.mark.parametrize("code", [1, 2, 3, 4])
def test_a_refusal_is_not_repeated(code: int) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        with pytest.raises(RefusedError) as caught:
            await driver.poll(plan.meters[0], 0)
        assert caught.value.code == code
        assert "bus/m1 (unit 1, function 4, registers 0 to 1)" in str(caught.value)
        assert len(peer.requests) == 2

    play(lambda f: [(0.01, framed(f, bytes((0x84, code))))], scene, retries=3)


def test_one_refused_request_leaves_a_partial_sample() -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        return [(0.01, framed(frame, b"\x84\x02"))] if frame.pdu[2] == 100 else prompt(frame)

    sample = play(fate, poll_once)
    assert (sample.values, sample.status) == ((RIGHT[0], None), (Status.OK, Status.REFUSED))


def test_one_lost_reply_leaves_a_partial_sample_with_the_time_of_the_last_reply() -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        return SILENT if frame.pdu[2] == 100 else prompt(frame)

    sample = play(fate, poll_once, retries=0)
    assert (sample.values, sample.status) == ((RIGHT[0], None), (Status.OK, Status.NO_REPLY))
    assert (sample.mono_ms, sample.span_ms) == (10, 10)


def test_the_time_of_a_poll_begins_with_its_first_request_also_where_another_took_the_connection_with_it() -> None:
    """The connection is given up while the second meter's poll waits: nothing of it was sent at that time."""

    async def scene(driver: Driver, _peer: Peer, plan: BusPlan) -> list[int]:
        await driver.poll(plan.meters[0], 0)
        await asyncio.sleep(1000)
        samples = await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
        return [sample.span_ms for sample in samples]

    seen: list[Frame] = []

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        seen.append(frame)
        return [(0.01, b"\0\0\0\0\xff\xff\1")] if len(seen) == 3 else prompt(frame)

    spans = play(fate, scene, units=range(1, 3))
    assert all(span_ms < 100 for span_ms in spans), spans


def test_the_first_request_failing_leaves_the_second() -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        return [(0.01, framed(frame, b"\x84\x02"))] if frame.pdu[2] == 0 else prompt(frame)

    sample = play(fate, poll_once)
    assert (sample.values, sample.status) == ((None, RIGHT[1]), (Status.REFUSED, Status.OK))


def test_a_busy_meter_is_asked_again() -> None:
    seen = []

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        seen.append(frame)
        return [(0.01, framed(frame, b"\x84\x06"))] if len(seen) == 1 else prompt(frame)

    assert play(fate, poll_once).values == RIGHT


@pytest.mark.parametrize("code", [10, 11])
def test_a_gateway_that_reaches_no_meter_is_no_reply(code: int) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        with pytest.raises(NoReplyError):
            await driver.poll(plan.meters[0], 0)
        assert len(peer.requests) == 2 * 3

    play(lambda f: [(0.01, framed(f, bytes((0x84, code))))], scene, retries=2)


def test_a_dead_meter_costs_one_time_out_for_each_try() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        with pytest.raises(NoReplyError):
            await driver.poll(plan.meters[0], 0)
        assert [round(at, 6) for at in peer.asked_at] == [0, 0.2]  # the group's second request is never sent
        with pytest.raises(NoReplyError):
            await driver.poll(plan.meters[0], 0, probe=True)
        assert len(peer.requests) == 3

    play(lambda _: SILENT, scene)


def test_a_dead_meter_does_not_delay_the_others() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        dead, *live = (asyncio.ensure_future(driver.poll(meter, 0)) for meter in plan.meters)
        await asyncio.gather(*live)
        assert asyncio.get_running_loop().time() < 0.1
        with pytest.raises(NoReplyError):
            await dead
        assert len(peer.wires) == 1

    play(lambda f: SILENT if f.unit == 1 else prompt(f), scene, units=range(1, 5), in_flight=4)


def test_a_connection_on_which_nothing_comes_any_more_is_replaced() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        await driver.poll(plan.meters[0], 0)
        peer.fate = lambda _: SILENT
        for _ in range(2):
            with pytest.raises(NoReplyError):
                await driver.poll(plan.meters[0], 0)
        peer.fate = prompt
        await driver.poll(plan.meters[0], 0)
        assert len(peer.wires) == 2

    play(prompt, scene)


def test_an_impossible_length_replaces_the_connection_and_the_request_is_repeated() -> None:
    seen = []

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        seen.append(frame)
        return [(0.0, b"\x00" * 8)] if len(seen) == 2 else prompt(frame)

    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> Sample:
        sample = await driver.poll(plan.meters[0], 0)
        assert len(peer.wires) == 2
        return sample

    assert play(fate, scene).values == RIGHT


def test_a_lost_connection_fails_what_is_under_way_and_comes_back_at_once() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        await driver.poll(plan.meters[0], 0)
        peer.fate = lambda _: SILENT
        asyncio.get_running_loop().call_later(0.05, lambda: peer.wires[0].lose(OSError("cable")))
        with pytest.raises(BusDownError, match="bus: connection lost: cable"):
            await driver.poll(plan.meters[0], 0)
        peer.fate = prompt
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT

    play(prompt, scene)


def test_a_bus_that_can_not_be_opened_fails_at_once_while_it_backs_off() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        loop, peer.refuse = asyncio.get_running_loop(), "refused"
        while loop.time() < 300:
            began = loop.time()
            with pytest.raises(BusDownError, match="bus: refused"):
                await driver.poll(plan.meters[0], 0)
            assert loop.time() - began < 0.001
            await asyncio.sleep(0.1)
        gaps = [b - a for a, b in zip(peer.attempts, peer.attempts[1:], strict=False)]
        assert 0.3 < gaps[0] < 0.8
        assert 20 < gaps[-1] < 38.1
        assert len(gaps) < 20
        peer.refuse = None
        await asyncio.sleep(40)
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT

    play(prompt, scene)


def test_a_server_that_accepts_and_closes_is_backed_off_from() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        peer.fate = lambda _: [asyncio.get_running_loop().call_soon(peer.wires[-1].lose), SILENT][1]
        for _ in range(50):
            with pytest.raises(BusDownError):
                await driver.poll(plan.meters[0], 0)
            await asyncio.sleep(0.1)
        assert len(peer.attempts) < 6

    play(prompt, scene)


def test_many_polls_share_one_attempt_to_connect_and_one_may_be_cancelled() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        polls = [asyncio.ensure_future(driver.poll(meter, 0)) for meter in plan.meters]
        await asyncio.sleep(0)
        polls[0].cancel()
        results = await asyncio.gather(*polls, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert all(isinstance(r, Sample) for r in results[1:])
        assert len(peer.attempts) == 1

    play(prompt, scene, units=range(1, 5), in_flight=4)


def test_a_cancelled_poll_leaves_the_bus_in_order() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        poll = asyncio.ensure_future(driver.poll(plan.meters[0], 0))
        await asyncio.sleep(0.005)
        poll.cancel()
        assert (await driver.poll(plan.meters[1], 0)).values == (2 << 16, (2 << 16) + 100)
        assert [f.unit for f in peer.requests] == [1, 2, 2]

    play(prompt, scene, units=(1, 2))


def test_closing_fails_what_is_under_way_and_is_idempotent() -> None:
    async def scene(driver: Driver, _peer: Peer, plan: BusPlan) -> None:
        poll = asyncio.ensure_future(driver.poll(plan.meters[0], 0))
        await asyncio.sleep(0.01)
        await driver.close()
        await driver.close()
        with pytest.raises(BusDownError, match="closed"):
            await poll
        with pytest.raises(BusDownError, match="closed"):
            await driver.poll(plan.meters[0], 0)

    play(lambda _: SILENT, scene)


def test_closing_while_the_bus_is_being_opened() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        poll = asyncio.ensure_future(driver.poll(plan.meters[0], 0))
        await asyncio.sleep(0)
        assert len(peer.attempts) == 0
        await asyncio.sleep(0)
        assert (len(peer.attempts), len(peer.wires)) == (1, 0)
        await driver.close()
        with pytest.raises(BusDownError, match="closed"):
            await poll

    play(prompt, scene)


@pytest.mark.untraced
def test_a_transaction_is_not_used_again_while_its_late_reply_may_come() -> None:
    used: dict[int, float] = {}

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        now = asyncio.get_running_loop().time()
        assert now - used.get(frame.transaction, -9.0) >= 1.2  # time-out and lateness
        used[frame.transaction] = now
        return [(0.0, reply(frame, registers(frame)))]

    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        for _ in range(300):  # in virtual time all of them at the same moment
            await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
        assert len(peer.requests) == 300 * 2 * 247 > 2 * mbap.TRANSACTIONS

    play(fate, scene, units=range(1, 248), in_flight=100)


# ---------------------------------------------------------------- no wrong value, whatever comes

FATES = ["prompt", "late", "never", "twice", "foreign unit", "foreign function", "short", "stray", "refused", "busy"]


@pytest.mark.untraced
@settings(max_examples=25)
@given(st.randoms(use_true_random=False), st.integers(1, 6), st.sampled_from([0, 1, 2]))
def test_late_duplicate_and_foreign_replies_never_become_values(chance: Any, in_flight: int, retries: int) -> None:
    served: dict[int, tuple[int, int]] = {}
    late: set[int] = set()

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        number = len(served) + 1
        served[number] = frame.unit, frame.pdu[2]
        right, foreign = number.to_bytes(4, "big"), b"\xff" * 4
        answers = {
            "prompt": [(chance.uniform(0, 0.19), reply(frame, right))],
            "late": [(chance.uniform(0.21, 1.1), reply(frame, right))],
            "never": SILENT,
            "twice": [(0.01, reply(frame, right)), (chance.uniform(0.01, 1.1), reply(frame, right))],
            "foreign unit": [(0.01, reply(frame, foreign, unit=frame.unit % 3 + 1))],
            "foreign function": [(0.01, reply(frame, foreign, function=3))],
            "short": [(0.01, reply(frame, foreign[:2]))],
            "stray": [(0.01, reply(frame, foreign, transaction=chance.randrange(0x8000, 0xFFFF))), *SILENT],
            "refused": [(0.01, framed(frame, b"\x84\x02"))],
            "busy": [(0.01, framed(frame, b"\x84\x06"))],
        }
        choice = chance.choice(FATES)
        if choice == "late":
            late.add(number)
        return answers[choice]

    async def scene(driver: Driver, _peer: Peer, plan: BusPlan) -> None:
        async def meter_task(meter: Any) -> None:
            for _ in range(12):
                before = len(served)
                try:
                    sample = await driver.poll(meter, 0, probe=chance.random() < 0.1)
                except (NoReplyError, GarbledError, RefusedError, BusDownError):
                    await asyncio.sleep(chance.uniform(0, 0.3))
                    continue
                for value, register in zip(sample.values, (0, 100), strict=True):
                    assert value is None or (value > before and value not in late)
                    assert value is None or served[value] == (meter.unit, register)

        await asyncio.gather(*map(meter_task, plan.meters))

    play(fate, scene, units=(1, 2, 3), in_flight=in_flight, retries=retries)
