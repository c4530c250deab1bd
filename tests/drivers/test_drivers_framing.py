import itertools
from random import Random
from typing import Any

import pytest
from energybid.drivers.modbus.framing import (
    MBAP_LENGTH_MAX,
    RTU_MAX,
    Frame,
    Garbled,
    MbapFramer,
    RtuReplies,
    RtuRequests,
    crc16,
    mbap_frame,
    rtu_frame,
)
from hypothesis import given
from hypothesis import strategies as st

units = st.integers(0, 255)
pdus = st.binary(min_size=1, max_size=253)


@st.composite
def chunked(draw: st.DrawFn, data: bytes) -> list[bytes]:
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=8)))
    return [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]


def reply_pdu(registers: bytes) -> bytes:
    return bytes((4, len(registers))) + registers


def feed_all(framer: Any, chunks: list[bytes]) -> list[Any]:
    return [event for chunk in chunks for event in framer.feed(chunk)]


# ---------------------------------------------------------------- CRC


@pytest.mark.parametrize(
    ("frame", "source"),
    [
        ("0207 4112", "Modbus over Serial Line V1.02, appendix B: 02 07 has CRC 0x1241, sent 41 12"),
        ("01 04 0000 0001 31CA", "read input register 0 of unit 1"),
        ("11 03 006B 0003 7687", "Application Protocol V1.1b3 §6.3's request, framed for unit 17"),
    ],
)
def test_crc_of_published_frames(frame: str, source: str) -> None:
    assert crc16(bytes.fromhex(frame)) == 0, source


def test_crc_of_the_check_string() -> None:
    assert crc16(b"123456789") == 0x4B37  # CRC-16/MODBUS in the CRC catalogues


@given(st.binary(max_size=300))
def test_crc_equals_the_bitwise_definition(data: bytes) -> None:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    assert crc16(data) == crc


# ---------------------------------------------------------------- RTU, client


def expecting(unit: int = 1, count: int = 3) -> RtuReplies:
    framer = RtuReplies()
    framer.expect(unit, bytes((4, count * 2)), 2 + count * 2)
    return framer


@given(st.data(), st.binary(min_size=6, max_size=6), st.binary(max_size=600), st.binary(max_size=20))
def test_a_reply_is_found_behind_any_garbage(
    data: st.DataObject, registers: bytes, before: bytes, after: bytes
) -> None:
    frame = rtu_frame(1, reply_pdu(registers))
    chunks = data.draw(chunked(before + frame + after))
    found = feed_all(expecting(), chunks)
    assert len(found) == 1
    # Garbage may hold a right frame by chance; only then may it be another one.
    assert found[0].pdu == frame[1:-2] or rtu_frame(1, found[0].pdu) in before + frame


@given(st.binary(min_size=6, max_size=6), st.integers(0, 8 * 11 - 1), st.integers(0, 8 * 11 - 1))
def test_flipped_bits_never_yield_a_frame(registers: bytes, first: int, second: int) -> None:
    frame = bytearray(rtu_frame(1, reply_pdu(registers)))
    for bit in {first, second}:
        frame[bit // 8] ^= 1 << bit % 8
    assert expecting().feed(bytes(frame)) == []  # CRC-16 finds every one- and two-bit error of such a short frame


@given(st.data(), st.binary(max_size=2000))
def test_every_reply_has_a_right_crc_and_the_buffer_is_bounded(data: st.DataObject, noise: bytes) -> None:
    framer = expecting(unit=0, count=0)
    for chunk in data.draw(chunked(noise)):
        for frame in framer.feed(chunk):
            assert rtu_frame(frame.unit, frame.pdu) in noise
        assert len(framer._buffer) < RTU_MAX


def test_a_reply_behind_one_with_a_bad_crc_is_found() -> None:
    bad = bytearray(rtu_frame(1, reply_pdu(b"\x01\x02\x03\x04\x05\x06")))
    bad[-1] ^= 1
    good = rtu_frame(1, reply_pdu(b"\x0a\x0b\x0c\x0d\x0e\x0f"))
    assert feed_all(expecting(), [bytes(bad) + good]) == [Frame(1, 0, good[1:-2])]


def test_a_reply_behind_the_first_half_of_one_is_found() -> None:
    half = rtu_frame(1, reply_pdu(b"\x01\x02\x03\x04\x05\x06"))[:5]
    good = rtu_frame(1, reply_pdu(b"\x0a\x0b\x0c\x0d\x0e\x0f"))
    assert feed_all(expecting(), [half, good]) == [Frame(1, 0, good[1:-2])]


@pytest.mark.parametrize(
    "foreign",
    [
        rtu_frame(2, reply_pdu(b"\x01\x02\x03\x04\x05\x06")),  # another unit
        rtu_frame(1, b"\x03\x06\x01\x02\x03\x04\x05\x06"),  # another function
        rtu_frame(1, reply_pdu(b"\x01\x02\x03\x04")),  # another length
        rtu_frame(1, b"\x83\x02"),  # an exception to another function
        bytes.fromhex("01 04 0000 0003 B00B"),  # our own request echoed by the adapter
    ],
)
def test_a_foreign_reply_is_passed_over(foreign: bytes) -> None:
    framer = expecting()
    assert framer.feed(foreign) == []
    answer = rtu_frame(1, reply_pdu(b"\x0a\x0b\x0c\x0d\x0e\x0f"))
    assert framer.feed(answer) == [Frame(1, 0, answer[1:-2])]
    assert framer.seen == len(foreign) + len(answer)


def test_an_exception_is_an_answer() -> None:
    # Application Protocol V1.1b3 §7: function code with its highest bit set, then the exception code.
    assert expecting().feed(rtu_frame(1, b"\x84\x02")) == [Frame(1, 0, b"\x84\x02")]


def test_a_duplicate_is_not_a_second_answer() -> None:
    framer = expecting()
    frame = rtu_frame(1, reply_pdu(b"\x0a\x0b\x0c\x0d\x0e\x0f"))
    assert len(framer.feed(frame + frame)) == 1
    assert framer.feed(frame) == []


# ---------------------------------------------------------------- RTU, server

requests = st.one_of(
    st.builds(lambda f, d: bytes((f,)) + d, st.sampled_from([1, 2, 3, 4, 5, 6]), st.binary(min_size=4, max_size=4)),
    st.builds(
        lambda a, d: b"\x10" + a + (len(d) // 2).to_bytes(2, "big") + bytes((len(d),)) + d,
        st.binary(min_size=2, max_size=2),
        st.binary(min_size=2, max_size=246),
    ),
)


@given(st.data(), st.lists(st.tuples(units, requests), max_size=5))
def test_requests_are_split_in_any_chunking(data: st.DataObject, sent: Any) -> None:
    stream = b"".join(rtu_frame(unit, pdu) for unit, pdu in sent)
    assert feed_all(RtuRequests(), data.draw(chunked(stream))) == [Frame(unit, 0, pdu) for unit, pdu in sent]


@given(st.binary(max_size=400), units, requests)
def test_a_request_behind_noise_is_found(noise: bytes, unit: int, pdu: bytes) -> None:
    framer = RtuRequests()
    framer.feed(noise)
    assert len(framer._buffer) < RTU_MAX
    found = framer.feed(rtu_frame(unit, pdu))
    assert found[-1:] == [Frame(unit, 0, pdu)] or rtu_frame(found[-1].unit, found[-1].pdu) in noise + rtu_frame(
        unit, pdu
    )


def test_the_beginning_of_a_long_request_does_not_swallow_the_next() -> None:
    framer = RtuRequests()
    assert framer.feed(bytes.fromhex("01 10 0000 0064 C8 0102")) == []
    assert framer.feed(rtu_frame(1, b"\x04\x00\x00\x00\x02")) == [Frame(1, 0, b"\x04\x00\x00\x00\x02")]


def test_noise_that_comes_byte_by_byte_is_no_request() -> None:
    framer = RtuRequests()
    assert feed_all(framer, [bytes((byte,)) for byte in Random(1).randbytes(3000)]) == []
    assert framer.feed(rtu_frame(1, b"\x04\x00\x00\x00\x02")) == [Frame(1, 0, b"\x04\x00\x00\x00\x02")]


def test_a_request_with_an_unknown_function_is_found() -> None:
    assert RtuRequests().feed(rtu_frame(1, b"\x41\x01\x02")) == [Frame(1, 0, b"\x41\x01\x02")]


def test_replies_of_other_units_are_no_requests() -> None:
    framer = RtuRequests()
    assert framer.feed(rtu_frame(9, reply_pdu(bytes(range(6))))) == []
    assert framer.feed(rtu_frame(1, b"\x03\x00\x00\x00\x02")) == [Frame(1, 0, b"\x03\x00\x00\x00\x02")]


def test_reset_forgets_a_half_request() -> None:
    framer = RtuRequests()
    framer.feed(b"\x01\x04\x00")
    framer.reset()
    assert framer.feed(rtu_frame(1, b"\x04\x00\x00\x00\x02")[3:]) == []


# ---------------------------------------------------------------- MBAP


def test_the_example_of_the_specification() -> None:
    # Messaging on TCP/IP V1.0b, appendix A.5.1: transaction 15 01, length 6, unit FF, read 1 register at 4.
    assert MbapFramer().feed(bytes.fromhex("1501 0000 0006 FF 03 0004 0001")) == [
        Frame(0xFF, 0x1501, bytes.fromhex("03 0004 0001"))
    ]


@given(st.data(), st.lists(st.tuples(st.integers(0, 0xFFFF), units, pdus), max_size=5))
def test_adus_are_split_in_any_chunking(data: st.DataObject, sent: Any) -> None:
    stream = b"".join(mbap_frame(*adu) for adu in sent)
    framer = MbapFramer()
    expected = [Frame(unit, transaction, pdu) for transaction, unit, pdu in sent]
    assert feed_all(framer, data.draw(chunked(stream))) == expected
    assert framer._buffer == b""


@given(st.data(), st.tuples(st.integers(0, 0xFFFF), units, pdus))
def test_a_wrong_protocol_costs_one_adu(data: st.DataObject, adu: tuple[int, int, bytes]) -> None:
    bad, good = bytearray(mbap_frame(7, 1, b"\x04\x02\x00\x01")), mbap_frame(*adu)
    bad[3] = 1
    events = feed_all(framer := MbapFramer(), data.draw(chunked(bytes(bad) + good)))
    assert events == [Garbled("MBAP header with protocol 1", fatal=False), Frame(adu[1], adu[0], adu[2])]
    assert not framer.broken


@pytest.mark.parametrize("length", [0, 1, MBAP_LENGTH_MAX + 1, 0xFFFF])
def test_an_impossible_length_is_fatal_until_reset(length: int) -> None:
    framer = MbapFramer()
    header = bytes.fromhex("0001 0000") + length.to_bytes(2, "big") + b"\x01"
    assert framer.feed(header) == [Garbled(f"MBAP header with length {length}", fatal=True)]
    assert framer.feed(mbap_frame(1, 1, b"\x04\x00")) == []
    framer.reset()
    assert framer.feed(mbap_frame(1, 1, b"\x04\x00")) == [Frame(1, 1, b"\x04\x00")]


@pytest.mark.parametrize("size", [1, 253])
def test_the_shortest_and_the_longest_pdu(size: int) -> None:
    assert MbapFramer().feed(mbap_frame(1, 1, bytes(size))) == [Frame(1, 1, bytes(size))]


def test_two_wrong_headers_in_a_row_are_fatal() -> None:
    bad = bytes.fromhex("0001 0001 0002 01 04")
    assert [e.fatal for e in MbapFramer().feed(bad + bad + bad)] == [False, True]


@given(st.data(), st.binary(max_size=2000))
def test_noise_keeps_the_buffer_bounded(data: st.DataObject, noise: bytes) -> None:
    framer = MbapFramer()
    for chunk in data.draw(chunked(noise)):
        framer.feed(chunk)
        assert len(framer._buffer) < 6 + MBAP_LENGTH_MAX
