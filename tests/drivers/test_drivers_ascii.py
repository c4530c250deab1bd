"""Modbus ASCII: frames byte by byte, against the published examples and a stranger's framing; the exchange in time."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from energybid.core.errors import GarbledError, NoReplyError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.ascii import ASCII_MAX, AsciiReplies, AsciiRequests, ascii_frame, lrc, parse_line
from energybid.drivers.modbus.framing import Frame
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import SILENT, Fate, Peer, Scene, bus_plan, played
from pymodbus.framer import FramerAscii
from pymodbus.pdu import DecodePDU

# The query of the protocol's first guide (PI-MBUS-300 Rev. J, registers 40108 to 40110 of unit 17); as ASCII, with its
# LRC, in Simply Modbus' FAQ.
REQUEST = b":1103006B00037E\r\n"
PDU = bytes.fromhex("03006B0003")
LINE = SerialEndpoint(device="/dev/ttyS0", baudrate=9600, parity="E", data_bits=7)
RIGHT = ((1 << 16) + 0, (1 << 16) + 100)

units = st.integers(0, 255)
pdus = st.binary(min_size=1, max_size=253)
noise = st.binary(max_size=30) | st.sampled_from([b":", b"\r\n", b":01", b":0103", REQUEST[:9], b"::::", b"\r:\n"])


def test_the_published_example():
    assert ascii_frame(0x11, PDU) == REQUEST
    assert lrc(bytes.fromhex("1103006B0003")) == 0x7E
    assert AsciiRequests().feed(REQUEST) == [Frame(0x11, 0, PDU)]


@settings(max_examples=60)
@given(units, pdus)
def test_a_strangers_framing_is_the_same(unit, pdu):
    frame = ascii_frame(unit, pdu)
    assert frame == FramerAscii(DecodePDU(is_server=True)).encode(pdu, unit, 0)
    assert len(frame) <= ASCII_MAX == 513  # V1.02 §2.5.2.2
    assert AsciiRequests().feed(frame) == [Frame(unit, 0, pdu)]
    assert AsciiRequests().feed(frame.lower()) == [Frame(unit, 0, pdu)]


@settings(max_examples=80)
@given(st.lists(st.tuples(units, pdus, noise), max_size=4), st.integers(1, 40))
def test_frames_are_found_between_noise_however_they_are_cut(parts, size):
    stream = b"".join(ascii_frame(unit, pdu) + rubbish for unit, pdu, rubbish in parts)
    framer, found = AsciiRequests(), []
    for at in range(0, len(stream), size):
        found += framer.feed(stream[at : at + size])
    # A colon in noise is followed by the next frame's own colon, which begins anew.
    assert [(f.unit, f.pdu) for f in found] == [(unit, pdu) for unit, pdu, _ in parts]


@settings(max_examples=80)
@given(units, pdus, st.data())
def test_a_changed_bit_is_never_another_frame(unit, pdu, data):
    frame = ascii_frame(unit, pdu)
    bit = data.draw(st.integers(0, 8 * len(frame) - 1))
    broken = bytearray(frame)
    broken[bit // 8] ^= 1 << bit % 8
    assert AsciiRequests().feed(bytes(broken)) in ([], [Frame(unit, 0, pdu)])  # the same: a letter in the other case


@settings(max_examples=80)
@given(st.lists(st.binary(max_size=700), max_size=8))
def test_any_bytes_leave_a_bounded_buffer(pieces):
    requests, replies = AsciiRequests(), AsciiReplies()
    replies.expect(1, b"\x03\x04", 6)
    for piece in pieces:
        requests.feed(piece)
        replies.feed(piece)
        assert len(requests._buffer) <= ASCII_MAX
        assert len(replies._buffer) <= ASCII_MAX


@pytest.mark.parametrize(
    "line", [b"", b":", b":01", b":0103", b"0103FC", b":01 03FC", b":0103F", b":0103FD", b":010xFC"]
)
def test_what_is_no_frame(line):
    assert parse_line(line) is None


def test_a_server_forgets_what_silence_cut_off():
    framer = AsciiRequests()
    assert framer.feed(REQUEST[:8]) == []
    framer.reset()
    assert framer.feed(REQUEST[8:]) == []


# ---------------------------------------------------------------- the reply a client waits for


def replies(data: bytes, size: int = 2000) -> tuple[AsciiReplies, list[Frame]]:
    finder = AsciiReplies()
    finder.expect(0x11, b"\x03\x06", 8)
    found = [frame for at in range(0, len(data), size) for frame in finder.feed(data[at : at + size])]
    return finder, found


ANSWER = ascii_frame(0x11, bytes.fromhex("0306022B00000064"))


@settings(max_examples=60)
@given(noise, st.integers(1, 12))
def test_the_reply_is_found_behind_anything(before, size):
    _, found = replies(before + REQUEST + ascii_frame(0x12, bytes.fromhex("0306022B00000064")) + ANSWER, size)
    assert found == [Frame(0x11, 0, bytes.fromhex("0306022B00000064"))]


@pytest.mark.parametrize(
    "other",
    [
        ascii_frame(0x12, bytes.fromhex("0306022B00000064")),
        ascii_frame(0x11, bytes.fromhex("0406022B00000064")),
        ascii_frame(0x11, bytes.fromhex("0304022B0000")),
        ascii_frame(0x11, bytes.fromhex("0306022B0000006400")),
        ascii_frame(0x11, bytes.fromhex("8402")),
        ascii_frame(0x11, bytes.fromhex("830200")),
    ],
)
def test_what_answers_something_else_is_passed_over(other):
    finder, found = replies(other)
    assert (found, finder.corrupt, finder.seen) == ([], False, len(other))


def test_an_exception_is_a_reply():
    assert replies(b":118302" + b"6A\r\n")[1] == [Frame(0x11, 0, b"\x83\x02")]


def test_a_broken_reply_is_noticed_and_what_stands_behind_the_reply_is_counted():
    finder, found = replies(ANSWER[:-3] + b"0\r\n")
    assert (found, finder.corrupt) == ([], True)
    finder, found = replies(ANSWER + b"more\r\n")
    assert (len(found), finder.behind) == (1, 6)
    assert finder.feed(ANSWER) == []  # once


# ---------------------------------------------------------------- the exchange


def answer(frame: Frame, **other: int) -> bytes:
    registers = frame.unit.to_bytes(2, "big") + frame.pdu[1:3]
    return ascii_frame(other.get("unit", frame.unit), bytes((frame.pdu[0], len(registers))) + registers)


def play(fate: Fate, scene: Scene, **plan_settings: Any) -> Any:
    plan = replace(bus_plan("modbus-rtu", **plan_settings), kind="modbus-ascii", endpoint=LINE)
    peer = Peer(fate, rtu=True)
    peer.framer = AsciiRequests()
    return played(plan, peer, scene)


async def poll_once(driver, _peer, plan):
    return await driver.poll(plan.meters[0], 0)


def test_a_meter_is_read():
    sample = play(lambda frame: [(0.02, answer(frame))], poll_once)
    assert (sample.values, sample.status) == (RIGHT, None)


def test_a_reply_may_pause_for_a_second_between_characters():
    def dribble(frame):
        data, parts = answer(frame), 4
        return [(0.1 + 0.9 * n, data[n * 6 :][: 6 if n < parts - 1 else None]) for n in range(parts)]

    assert play(dribble, poll_once).values == RIGHT


def test_a_pause_of_more_than_a_second_ends_the_reply():
    def cut(frame):
        return [(0.1, answer(frame)[:8]), (1.3, answer(frame)[8:])]

    with pytest.raises(GarbledError):
        play(cut, poll_once, retries=0)


def test_a_line_that_never_ends_its_reply_is_given_up():
    async def scene(driver, _peer, plan):
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        with pytest.raises(GarbledError):
            await driver.poll(plan.meters[0], 0)
        return loop.time() - began

    def endless(_frame):
        return [(0.1 + 0.5 * n, b":" if n % 40 == 0 else b"0") for n in range(200)]

    took_s = play(endless, scene, retries=0, quantities=["a"])
    assert 5 < took_s < 15


def test_other_units_and_silence_are_no_answer():
    with pytest.raises(GarbledError):
        play(lambda frame: [(0.02, answer(frame, unit=9))], poll_once)
    with pytest.raises(NoReplyError):
        play(lambda _: SILENT, poll_once)
