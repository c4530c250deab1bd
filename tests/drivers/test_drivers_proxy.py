"""What other masters may ask, and what is answered without asking; pure."""

import pytest
from energybid.drivers.modbus.exchange import Failure
from energybid.drivers.modbus.proxy.cache import REPLIES_MAX, Cache
from energybid.drivers.modbus.proxy.plan import Allowed
from energybid.drivers.modbus.proxy.rules import Wanted, may_write, refusal, reply_shape, wanted
from energybid.drivers.modbus.relay import RelayAsked
from hypothesis import given, settings
from hypothesis import strategies as st


def test_what_is_asked_is_understood():
    # Modbus Application Protocol V1.1b3 §6: the examples of the functions
    assert wanted(bytes.fromhex("01 0013 0013")) == Wanted(1, 0x13, 19)
    assert wanted(bytes.fromhex("03 006b 0003")) == Wanted(3, 0x6B, 3)
    assert wanted(bytes.fromhex("04 0008 0001")) == Wanted(4, 8, 1)
    assert wanted(bytes.fromhex("05 00ac ff00")) == Wanted(5, 0xAC, 1)
    assert wanted(bytes.fromhex("06 0001 0003")) == Wanted(6, 1, 1)
    assert wanted(bytes.fromhex("0f 0013 000a 02 cd01")) == Wanted(15, 0x13, 10)
    assert wanted(bytes.fromhex("10 0001 0002 04 000a0102")) == Wanted(16, 1, 2)


@pytest.mark.parametrize(
    ("pdu", "code"),
    [
        ("07", 1),
        ("17 0003 0006 000e 0003 06 00ff00ff00ff", 1),
        ("2b 0e 01 00", 1),
        ("83 0000 0001", 1),
        ("03", 3),
        ("03 0000 0000", 3),
        ("03 0000 007e", 3),
        ("03 0000 0001 00", 3),
        ("01 0000 07d1", 3),
        ("05 0000 0001", 3),
        ("10 0000 0002 04 0000", 3),
        ("10 0000 0002 05 00000000", 3),
        ("10 0000 0002", 3),
        ("0f 0000 000a 01 00", 3),
        ("03 ffff 0002", 2),
        ("10 ffff 0002 04 00000000", 2),
    ],
)
def test_what_no_meter_should_see_is_refused(pdu, code):
    assert wanted(bytes.fromhex(pdu)) == code


@given(st.binary(min_size=1, max_size=253))
@settings(max_examples=200)
def test_whatever_passes_is_within_the_standard_and_has_a_reply_of_known_length(pdu):
    wish = wanted(pdu)
    if isinstance(wish, int):
        assert wish in {1, 2, 3}
        assert refusal(pdu, wish) == bytes((pdu[0] | 0x80, wish))
        return
    head, size = reply_shape(pdu)
    assert wish.first + wish.size <= 65_536
    assert len(head) <= size <= 253
    asked = RelayAsked(7, pdu)
    whole = head + bytes(size - len(head))
    assert asked.outcome(7, whole) == whole
    assert asked.outcome(7, bytes((pdu[0] | 0x80, 2))) == 2
    assert {asked.outcome(8, whole), asked.outcome(7, whole + b"\0"), asked.outcome(7, whole[:-1])} == {Failure.GARBLED}


ALLOW = (
    Allowed(unit=3, table="holding", first=100, count=2),
    Allowed(unit=3, table="coil", first=5, count=1),
)


@pytest.mark.parametrize(
    ("unit", "wish", "code"),
    [
        (3, Wanted(6, 100, 1), 0),
        (3, Wanted(16, 100, 2), 0),
        (3, Wanted(16, 101, 2), 2),
        (3, Wanted(6, 99, 1), 2),
        (3, Wanted(5, 5, 1), 0),
        (3, Wanted(15, 5, 2), 2),
        (4, Wanted(6, 100, 1), 1),
        (4, Wanted(5, 5, 1), 1),
    ],
)
def test_only_what_is_listed_may_be_written(unit, wish, code):
    assert may_write(ALLOW, unit, wish) == code


# ---------------------------------------------------------------- cache


def words(first, count):
    return b"".join((first + i).to_bytes(2, "big") for i in range(count))


def test_a_part_of_one_reply_answers_but_never_two_replies_together():
    cache = Cache(1.0)
    cache.put(1, Wanted(3, 10, 10), words(10, 10), 5.0)
    cache.put(1, Wanted(3, 20, 10), words(20, 10), 5.0)
    assert cache.get(1, Wanted(3, 12, 3), 5.5) == words(12, 3)
    assert cache.get(1, Wanted(3, 10, 10), 5.5) == words(10, 10)
    assert cache.get(1, Wanted(3, 19, 2), 5.5) is None
    assert cache.get(1, Wanted(4, 12, 3), 5.5) is None
    assert cache.get(2, Wanted(3, 12, 3), 5.5) is None


def test_what_is_too_old_does_not_answer_and_of_two_the_newer_does():
    cache = Cache(1.0)
    cache.put(1, Wanted(3, 0, 4), bytes(8), 5.0)
    assert cache.get(1, Wanted(3, 0, 4), 5.99) is not None
    assert cache.get(1, Wanted(3, 0, 4), 6.0) is None
    cache.put(1, Wanted(3, 0, 2), b"new!", 5.5)
    assert cache.get(1, Wanted(3, 0, 1), 5.9) == b"ne"


def test_coils_answer_only_the_same_request():
    cache = Cache(1.0)
    cache.put(1, Wanted(1, 0, 16), b"\xff\x01", 5.0)
    assert cache.get(1, Wanted(1, 0, 16), 5.5) == b"\xff\x01"
    assert cache.get(1, Wanted(1, 0, 8), 5.5) is None


def test_after_a_write_nothing_that_was_asked_before_it_answers():
    cache = Cache(10.0)
    cache.put(1, Wanted(3, 0, 1), b"ol", 5.0)
    cache.put(2, Wanted(3, 0, 1), b"2.", 5.0)
    cache.written(1, 6.0)
    cache.put(1, Wanted(3, 0, 1), b"ol", 5.9)  # was under way meanwhile
    assert cache.get(1, Wanted(3, 0, 1), 6.1) is None
    assert cache.get(2, Wanted(3, 0, 1), 6.1) == b"2."
    cache.put(1, Wanted(3, 0, 1), b"ne", 6.0)
    assert cache.get(1, Wanted(3, 0, 1), 6.1) == b"ne"


def test_with_no_age_nothing_is_kept():
    cache = Cache(0.0)
    cache.put(1, Wanted(3, 0, 1), b"ab", 5.0)
    assert cache.get(1, Wanted(3, 0, 1), 5.0) is None


def test_the_cache_is_bounded_and_forgets_the_oldest():
    cache = Cache(1e9)
    for number in range(REPLIES_MAX + 5):
        cache.put(1, Wanted(3, number, 1), b"ab", float(number))
    found = [number for number in range(REPLIES_MAX + 5) if cache.get(1, Wanted(3, number, 1), REPLIES_MAX + 9.0)]
    assert found == list(range(5, REPLIES_MAX + 5))
