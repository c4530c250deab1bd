"""The Modbus RTU exchange, byte by byte against a scripted line, in virtual time."""

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from energybid.core.errors import BusDownError, GarbledError, NoReplyError, RefusedError
from energybid.core.ports import BusPlan, Driver, Sample, SerialEndpoint, TcpEndpoint
from energybid.core.quantities import Status
from energybid.drivers.modbus.framing import Frame, rtu_frame
from energybid.drivers.modbus.timing import character_s, silence_s
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import COUNTER, LINE, SILENT, Fate, Peer, Scene, bus_plan, framed, played, reply

RIGHT = ((1 << 16) + 0, (1 << 16) + 100)
CHARACTER_S = 11 / 19_200


def answer(frame: Frame) -> bytes:
    more = bytes(2 * (frame.pdu[4] - 2))
    return reply(frame, frame.unit.to_bytes(2, "big") + frame.pdu[1:3] + more, rtu=True)


def prompt(frame: Frame) -> list[tuple[float, bytes]]:
    return [(0.02, answer(frame))]


def play(fate: Fate, scene: Scene, **settings: Any) -> Any:
    return played(bus_plan("modbus-rtu", **settings), Peer(fate, rtu=True), scene)


async def poll_once(driver: Driver, _peer: Peer, plan: BusPlan) -> Sample:
    return await driver.poll(plan.meters[0], 0)


def test_a_prompt_answer() -> None:
    sample = play(prompt, poll_once)
    assert (sample.values, sample.status) == (RIGHT, None)


@pytest.mark.parametrize(
    ("baudrate", "parity", "silence_ms"),
    [(9600, "E", 3.5 * 11 / 9.6), (9600, "N", 3.5 * 10 / 9.6), (19_200, "E", 3.5 * 11 / 19.2), (38_400, "E", 1.75)],
)
def test_silence_by_rate(baudrate: int, parity: str, silence_ms: float) -> None:
    # Modbus over Serial Line V1.02 §2.5.1.1: 3.5 characters; fixed 1.750 ms above 19,200 baud.
    endpoint = SerialEndpoint(device="x", baudrate=baudrate, parity=parity)
    assert silence_s(endpoint) == pytest.approx(silence_ms / 1000)


def test_rtu_frames_over_tcp_take_no_time_on_a_line() -> None:
    assert character_s(TcpEndpoint(host="x", port=1)) == 0
    assert silence_s(TcpEndpoint(host="x", port=1)) == 0.00175


def test_a_request_follows_a_reply_after_three_and_a_half_characters() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
        gaps = [b - a - 0.02 for a, b in itertools.pairwise(peer.asked_at)]
        assert gaps == [pytest.approx(3.5 * CHARACTER_S)] * 7
        assert peer.asked_at[0] == pytest.approx(plan.lateness_s)  # an earlier life's reply may still come

    play(prompt, scene, units=range(1, 5))


def test_only_one_request_is_on_the_line() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        replied = 0

        def fate(frame: Frame) -> list[tuple[float, bytes]]:
            nonlocal replied
            assert len(peer.requests) == replied + 1
            replied += 1
            return prompt(frame)

        peer.fate = fate
        for _ in range(3):
            await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))

    play(prompt, scene, units=range(1, 6))


def test_the_time_out_begins_after_the_frames_time_on_the_line() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        with pytest.raises(NoReplyError, match="unit 1, function 4, registers 0 to 1"):
            await driver.poll(plan.meters[0], 0)
        took = asyncio.get_running_loop().time() - peer.asked_at[0]
        assert took == pytest.approx(0.2 + (8 + 9) * CHARACTER_S)

    play(lambda _: SILENT, scene, retries=0)


def test_a_reply_in_pieces_behind_noise() -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        pieces = b"\x00\xff\x01\x04" + answer(frame)
        return [(0.01 + 0.001 * i, bytes((byte,))) for i, byte in enumerate(pieces)]

    assert play(fate, poll_once).values == RIGHT


def test_the_adapter_echoes_the_request() -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        return [(0.001, rtu_frame(frame.unit, frame.pdu)), *prompt(frame)]

    assert play(fate, poll_once).values == RIGHT


def test_a_broken_reply_is_asked_again_as_soon_as_the_line_is_quiet() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        def fate(frame: Frame) -> list[tuple[float, bytes]]:
            good = answer(frame)
            return [(0.02, good[:-1] + b"?")] if len(peer.requests) == 1 else [(0.02, good)]

        peer.fate = fate
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT
        # The group's other request first; both well before the time-out of 0.2 s.
        assert [f.pdu[2] for f in peer.requests] == [0, 100, 0]
        assert peer.asked_at[-1] - peer.asked_at[0] < 0.15

    play(prompt, scene)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda f: answer(f)[:-1] + b"\x00",  # CRC
        lambda f: answer(f)[:5],  # half a frame
        lambda f: reply(f, b"\0\0\0\0", rtu=True, unit=2),
        lambda f: reply(f, b"\0\0\0\0", rtu=True, function=3),
        lambda f: reply(f, b"\0\0", rtu=True),
        lambda f: framed(f, b"\x83\x02", rtu=True),
        lambda _: b"\xff" * 40,
    ],
)
def test_a_wrong_answer_is_garbled(wrong: Callable[[Frame], bytes]) -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        with pytest.raises(GarbledError):
            await driver.poll(plan.meters[0], 0)
        peer.fate = prompt
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT
        assert len(peer.wires) == 1  # without opening the port again

    play(lambda f: [(0.02, wrong(f))], scene)


def test_a_late_reply_is_not_taken_for_the_answer_to_the_next_request() -> None:
    """The first reply comes after its time-out, when the second request, of the same shape, would be on the line."""

    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        def fate(frame: Frame) -> list[tuple[float, bytes]]:
            return [(0.3, reply(frame, b"\xff" * 4, rtu=True))] if len(peer.requests) == 1 else prompt(frame)

        peer.fate = fate
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT
        gap = peer.asked_at[1] - peer.asked_at[0]
        assert gap == pytest.approx(0.2 + 17 * CHARACTER_S + plan.lateness_s)

    play(prompt, scene)


def test_other_units_go_on_while_a_late_reply_may_come() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        slow, *others = (asyncio.ensure_future(driver.poll(meter, 0)) for meter in plan.meters)
        await asyncio.gather(*others)
        assert peer.asked_at[-1] - peer.asked_at[0] < 0.5
        with pytest.raises(NoReplyError):
            await slow

    play(lambda f: SILENT if f.unit == 1 else prompt(f), scene, units=range(1, 5))


def test_one_dead_meter_among_eight_costs_its_bus_one_time_out_a_try() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        dead, *live = plan.meters
        await driver.poll(live[0], 0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        probe = asyncio.ensure_future(driver.poll(dead, 0, probe=True))
        for meter in live:
            assert (await driver.poll(meter, 0)).status is None
        waits_s = 8 * 0.02  # before a request that looks like the one before it
        assert loop.time() - began < 0.2 + 17 * CHARACTER_S + 14 * (0.02 + 4 * CHARACTER_S) + waits_s
        with pytest.raises(NoReplyError):
            await probe
        assert [f.unit for f in peer.requests].count(1) == 1

    play(lambda f: SILENT if f.unit == 1 else prompt(f), scene, units=range(1, 9))


def test_a_duplicate_behind_the_reply_is_passed_over() -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        twice = answer(frame) * 2
        return [(0.02, twice[:12]), (0.04, twice[12:])]

    assert play(fate, poll_once).values == RIGHT


@pytest.mark.parametrize("after_s", [0.0, 0.003, 0.009, 0.018])
def test_a_reply_that_comes_twice_is_no_answer_to_the_next_request_of_its_shape(after_s: float) -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        return [(0.02, answer(frame)), (0.02 + after_s, answer(frame))]

    assert play(fate, poll_once).values == RIGHT


def test_noise_on_an_idle_line_is_let_pass() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        await driver.poll(plan.meters[0], 0)
        loop = asyncio.get_running_loop()
        peer.wires[0].deliver(b"\x01\x04\x04\x00")
        noise_at = loop.time()
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT
        assert peer.asked_at[2] - noise_at == pytest.approx(0.05)

    play(prompt, scene)


def test_a_refusal_and_a_partial_sample() -> None:
    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        return [(0.02, framed(frame, b"\x84\x02", rtu=True))] if frame.pdu[2] else prompt(frame)

    sample = play(fate, poll_once)
    assert (sample.values, sample.status) == ((RIGHT[0], None), (Status.OK, Status.REFUSED))
    with pytest.raises(RefusedError) as caught:
        play(lambda f: [(0.02, framed(f, b"\x84\x03", rtu=True))], poll_once)
    assert caught.value.code == 3


def test_a_port_that_vanishes_is_opened_again() -> None:
    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        await driver.poll(plan.meters[0], 0)
        asyncio.get_running_loop().call_later(0.01, lambda: peer.wires[0].lose(OSError("unplugged")))
        with pytest.raises(BusDownError, match="unplugged"):
            await driver.poll(plan.meters[0], 0)
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT
        assert len(peer.wires) == 2

    play(prompt, scene)


def test_the_line_is_used_to_95_percent() -> None:
    """With meters that answer at once, what is lost between frame times and silences is less than 5 %."""

    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        peer.fate = lambda f: [(17 * CHARACTER_S + silence_s(LINE), answer(f))]
        await driver.poll(plan.meters[0], 0)
        loop = asyncio.get_running_loop()
        began, asked = loop.time(), len(peer.requests)
        for _ in range(50):
            await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
        needed = (len(peer.requests) - asked) * (17 * CHARACTER_S + 2 * silence_s(LINE))
        assert needed / (loop.time() - began) > 0.95

    play(prompt, scene, units=range(1, 5))


FATES = [
    "prompt",
    "prompt",
    "late",
    "never",
    "twice",
    "foreign unit",
    "foreign function",
    "short",
    "half",
    "broken",
    "refused",
]


@pytest.mark.untraced
@settings(max_examples=25)
@given(
    st.randoms(use_true_random=False),
    st.integers(1, 3),
    st.sampled_from([0, 1, 2]),
    st.sampled_from(["new", "taught", "roomy"]),
)
def test_late_duplicate_and_foreign_replies_never_become_values(
    chance: Any, meters: int, retries: int, known: str
) -> None:
    served: dict[int, tuple[int, int]] = {}
    late: set[int] = set()

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        number = len(served) + 1
        served[number] = frame.unit, frame.pdu[2]
        more = bytes(2 * (frame.pdu[4] - 2))
        right, foreign = reply(frame, number.to_bytes(4, "big") + more, rtu=True), b"\xff" * 4 + more
        answers = {
            "prompt": [(chance.uniform(0, 0.19), right)],
            "late": [(chance.uniform(0.22, 1.19), right)],
            "never": SILENT,
            "twice": [(0.02, right), (0.021, right)],
            "foreign unit": [(0.02, reply(frame, foreign, rtu=True, unit=frame.unit % 3 + 1))],
            "foreign function": [(0.02, reply(frame, foreign, rtu=True, function=3))],
            "short": [(0.02, reply(frame, foreign[:2], rtu=True))],
            "half": [(0.02, right[: chance.randrange(1, len(right))])],
            "refused": [(0.02, framed(frame, b"\x84\x02", rtu=True))],
            "broken": [(0.02, right[:5] + b"\xaa" + right[6:])],
        }
        choice = chance.choice(FATES)
        if choice == "late":
            late.add(number)
        return answers[choice]

    async def scene(driver: Driver, peer: Peer, plan: BusPlan) -> None:
        async def meter_task(meter: Any) -> None:
            if known == "taught":  # then its time-out is shorter than the configured one, which says what is late
                driver.learn(meter, {"format": 1, "delays": [[60, 500]]})
                assert driver.shown(meter)["timeout_ms"] == 100
            for _ in range(12):
                before = len(served)
                try:
                    sample = await driver.poll(meter, 0, probe=chance.random() < 0.2, slack_s=chance.random())
                except (NoReplyError, GarbledError, RefusedError):
                    await asyncio.sleep(chance.uniform(0, 0.3))
                    continue
                for value, register in zip(sample.values, (0, 100), strict=True):
                    assert value is None or (value > before and value not in late)
                    assert value is None or served[value] == (meter.unit, register)

        await asyncio.gather(*map(meter_task, plan.meters))
        assert len(peer.wires) == 1, "the line is in order again without being opened anew"
        peer.fate = prompt
        await asyncio.sleep(86_500)  # what was refused is tried again
        for meter in plan.meters:
            await driver.poll(meter, 0)
            await driver.poll(meter, 0)
            assert (await driver.poll(meter, 0)).values == ((meter.unit << 16), (meter.unit << 16) + 100)

    # With room in the blocks a meter that is alone is asked in two lengths.
    profile = COUNTER.replace(b"count = 2", b"count = 3") if known == "roomy" else COUNTER
    play(fate, scene, units=range(1, meters + 1), retries=retries, profile=profile)
