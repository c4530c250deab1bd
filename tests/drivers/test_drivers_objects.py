"""Device identification (0x2B/0x0E) and the listener that finds replies of unknown length."""

import pytest
from energybid.core.errors import GarbledError
from energybid.drivers.modbus import objects
from energybid.drivers.modbus.framing import RtuRequests, rtu_frame
from energybid.drivers.modbus.listen import HEARD_MAX, RtuListener
from hypothesis import given, settings
from hypothesis import strategies as st

# Modbus Application Protocol V1.1b3 §6.21, "example of a read device identification request for basic device
# identification": the answer with all objects in one PDU.
EXAMPLE = b"".join(
    (
        bytes.fromhex("2B 0E 01 01 00 00 03"),
        b"\x00\x16Company identification",
        b"\x01\x0dProduct code ",
        b"\x02\x05V2.11",
    )
)
CHUNKS = st.lists(st.binary(max_size=60), max_size=6)
OBJECTS = st.dictionaries(st.integers(0, 255), st.binary(max_size=40), max_size=5)


def page(found: dict[int, bytes], following: int | None = None) -> bytes:
    head = bytes((0x2B, 0x0E, 1, 1, 0 if following is None else 0xFF, following or 0, len(found)))
    return head + b"".join(bytes((number, len(value))) + value for number, value in found.items())


def test_the_standards_example() -> None:
    assert objects.request() == bytes.fromhex("2B 0E 01 00")
    walk = objects.Walk()
    walk.feed(EXAMPLE)
    assert walk.next_request is None
    assert objects.names(walk.objects) == {
        "vendor": "Company identification",
        "product-code": "Product code",
        "revision": "V2.11",
    }


def test_more_follows_is_followed() -> None:
    """The standard's second example: the same in two PDUs."""
    walk = objects.Walk()
    walk.feed(page({0: b"Company", 1: b"Product"}, following=2))
    assert walk.next_request == bytes.fromhex("2B 0E 01 02")
    walk.feed(page({2: b"V2.11"}))
    assert (walk.next_request, walk.objects) == (None, {0: b"Company", 1: b"Product", 2: b"V2.11"})


@pytest.mark.parametrize("following", [0, 1])
def test_a_walk_in_circles_ends_and_keeps_what_it_has(following: int) -> None:
    walk = objects.Walk()
    walk.feed(page({0: b"A"}, following=1))
    with pytest.raises(GarbledError, match="back"):
        walk.feed(page({1: b"B"}, following=following))
    assert walk.next_request is None
    assert walk.objects == {0: b"A", 1: b"B"}


def test_a_walk_without_end_is_ended() -> None:
    walk = objects.Walk()
    for number in range(1, objects.PAGES_MAX):
        walk.feed(page({number: b"x"}, following=number))
    with pytest.raises(GarbledError):
        walk.feed(page({99: b"x"}, following=99))
    assert len(walk.objects) == objects.PAGES_MAX


@given(found=OBJECTS, following=st.none() | st.integers(0, 255))
@settings(max_examples=100)
def test_a_page_is_read_as_it_was_written_and_no_shorter(found: dict[int, bytes], following: int | None) -> None:
    pdu = page(found, following)
    assert objects.parse(pdu) == (tuple(found.items()), following)
    assert objects.reply_size(pdu) == objects.reply_size(pdu + b"\x00\x01") == len(pdu)
    for cut in range(len(pdu)):
        assert objects.reply_size(pdu[:cut]) in {None, len(pdu)}
        with pytest.raises(GarbledError):
            objects.parse(pdu[:cut])


@given(st.binary(max_size=80))
@settings(max_examples=200)
def test_hostile_bytes_are_refused_or_read(data: bytes) -> None:
    for pdu in (data, b"\x2b\x0e" + data):
        try:
            read = objects.parse(pdu)
        except GarbledError:
            continue
        assert sum(2 + len(value) for _, value in read.objects) + 7 == len(pdu)
        assert all(objects.text(value).isprintable() for _, value in read.objects)


def test_a_strange_more_follows_is_refused() -> None:
    with pytest.raises(GarbledError, match="more follows"):
        objects.parse(bytes.fromhex("2B 0E 01 01 7F 00 00"))


def test_texts_lose_their_padding() -> None:
    assert objects.text(b"SDM630\x00\x00\x00\x00\xff\xff") == "SDM630"
    assert objects.text(b"  A\x00B  ") == "A B"
    assert objects.text(b"\xe9\x07x") == "??x"


def test_a_reply_for_a_simulated_device_fits_a_pdu() -> None:
    found = dict.fromkeys(range(4), "x" * 100)
    pdu = objects.reply(found)
    assert len(pdu) <= 253
    assert len(objects.parse(pdu).objects) == 2


# ---------------------------------------------------------------- listening

REPLY = rtu_frame(5, b"\x03\x04\x01\x02\x03\x04")
REFUSAL = rtu_frame(7, b"\x83\x02")
TOLD = rtu_frame(9, EXAMPLE)


@given(cuts=st.lists(st.integers(1, 40), max_size=12), noise=st.binary(max_size=6))
@settings(max_examples=150)
def test_replies_are_heard_in_any_pieces_between_noise(cuts: list[int], noise: bytes) -> None:
    stream = noise + REPLY + noise + REFUSAL + TOLD
    listener, heard = RtuListener(), []
    listener.expect(1, b"\x03\x00\x00\x00\x02")
    for cut in [*cuts, len(stream)]:
        heard += listener.feed(stream[:cut])
        stream = stream[cut:]
    found = {(frame.unit, frame.pdu) for frame in heard}
    assert {(5, b"\x03\x04\x01\x02\x03\x04"), (7, b"\x83\x02"), (9, EXAMPLE)} <= found
    if len(heard) == 3:  # noise may form a frame by chance
        assert listener.noise == 2 * len(noise)


def test_the_echo_of_the_request_is_no_reply_and_no_noise() -> None:
    listener = RtuListener()
    request = objects.request()
    listener.expect(3, request)
    echo = rtu_frame(3, request)
    assert listener.feed(echo) == []
    assert listener.noise == 0
    assert [frame.unit for frame in listener.feed(REPLY)] == [5]


def test_what_is_kept_of_noise_is_bounded() -> None:
    listener = RtuListener()
    for _ in range(40):
        assert listener.feed(bytes(100)) == []
    assert len(listener._buffer) <= HEARD_MAX
    assert listener.noise == 4000


def test_requests_of_another_master_are_not_taken_for_replies() -> None:
    listener = RtuListener()
    listener.expect(1, b"\x03\x00\x00\x00\x02")
    frame = rtu_frame(4, b"\x03\x00\x10\x00\x02")
    assert RtuRequests().feed(frame)
    assert listener.feed(frame) == []
    assert listener.noise == len(frame)
