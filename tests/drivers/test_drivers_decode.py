import math
import struct
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction

import pytest
from energybid.core.quantities import MANTISSA_MAX, Status
from energybid.drivers.modbus.decode import decoder, encode
from energybid.drivers.modbus.map import FLOATS, TYPES, Field, Request
from hypothesis import example, given
from hypothesis import strategies as st


def field(
    kind: str, *, factor: Fraction | int = 1, offset: int = 0, little: bool = False, markers: tuple = ()
) -> Field:
    factor = Fraction(factor)
    return Field(
        offset=offset,
        type=kind,
        little=little,
        numerator=factor.numerator,
        denominator=factor.denominator,
        markers=markers,
    )


def request(*fields: Field, count: int | None = None) -> Request:
    last = fields[-1]
    return Request(function=4, first=0, count=count or last.offset + TYPES[last.type].registers, fields=fields)


def half_even(value: Fraction) -> int:
    return int((Decimal(value.numerator) / Decimal(value.denominator)).quantize(Decimal(1), ROUND_HALF_EVEN))


floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(floats, st.integers(0, 12))
@example(0.125, 2)  # 12.5 → 12: half-even
@example(0.375, 2)  # 37.5 → 38
@example(59.9, 1)
@example(-0.0, 0)
@example(3.4e38, 12)
def test_floats_are_rounded_exactly_half_even(value: float, power: int) -> None:
    exact = Fraction(struct.unpack(">f", struct.pack(">f", value))[0]) * 10**power
    values, status = decoder(request(field("float32", factor=10**power)))(struct.pack(">f", value))
    if abs(exact) > MANTISSA_MAX:
        assert (list(values), list(status or ())) == ([None], [Status.OVERFLOW])
    else:
        assert (list(values), status) == ([round(exact)], None)  # Fraction's round is exact and half-even


@given(floats.filter(lambda x: abs(x) < 1e15), st.sampled_from(["0.1", "0.01", "0.3", "2.5", "1000000000000000"]))
def test_floats_with_odd_factors(value: float, factor: str) -> None:
    exact = Fraction(struct.unpack(">f", struct.pack(">f", value))[0]) * Fraction(factor)
    values, _ = decoder(request(field("float32", factor=Fraction(factor))))(struct.pack(">f", value))
    assert values[0] == (round(exact) if abs(exact) <= MANTISSA_MAX else None)


@given(
    st.data(),
    st.sampled_from([k for k in TYPES if k not in FLOATS]),
    st.sampled_from(["1", "100", "0.1", "2.5", "0.3"]),
)
def test_integers_of_every_type_and_word_order(data: st.DataObject, kind: str, factor: str) -> None:
    bits = 16 * TYPES[kind].registers
    low, high = (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    raw = data.draw(st.integers(low, high))
    mantissa = round(raw * Fraction(factor))
    big = raw.to_bytes(bits // 8, "big", signed=low < 0)
    words = [big[i : i + 2] for i in range(0, len(big), 2)]
    for little, wire in ((False, big), (True, b"".join(reversed(words)))):
        values, status = decoder(request(field(kind, factor=Fraction(factor), little=little)))(wire)
        if -(2**63) <= mantissa < 2**63:
            assert (list(values), status) == ([mantissa], None)
        else:
            assert (list(values), list(status or ())) == ([None], [Status.OVERFLOW])


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("7FC00000", Status.NOT_AVAILABLE),
        ("FFFFFFFF", Status.NOT_AVAILABLE),
        ("7F800000", Status.OVERFLOW),
        ("FF800000", Status.OVERFLOW),
    ],
)
def test_one_float_that_is_no_number_leaves_the_others(pattern: str, expected: Status) -> None:
    decode = decoder(request(field("float32"), field("float32", offset=2), field("float32", offset=6)))
    data = struct.pack(">f", 1) + bytes.fromhex(pattern) + bytes(4) + struct.pack(">f", 3)
    values, status = decode(data)
    assert (list(values), list(status or ())) == ([1, None, 3], [Status.OK, expected, Status.OK])


@pytest.mark.parametrize("little", [False, True])
def test_markers_count_only_where_they_are_declared(little: bool) -> None:  # noqa: FBT001
    marked = field("int32", markers=(0x7FFFFFFF,), little=little)
    decode = decoder(request(marked, field("int32", offset=2, little=little)))
    wire = bytes.fromhex("FFFF7FFF" if little else "7FFFFFFF")
    values, status = decode(wire * 2)
    assert (list(values), list(status or ())) == ([None, 2**31 - 1], [Status.NOT_AVAILABLE, Status.OK])


def test_both_word_orders_in_one_reply() -> None:
    decode = decoder(
        request(field("uint32"), field("uint32", offset=2, little=True), field("int16", offset=5), count=7)
    )
    values, status = decode(bytes.fromhex("0001 0002 0002 0001 FFFF FFFE FFFF"))
    assert (list(values), status) == ([65538, 65538, -2], None)


@given(
    st.sampled_from(sorted(TYPES)), st.booleans(), st.integers(-(2**15), 2**15 - 1), st.sampled_from(["1", "0.1", "10"])
)
def test_encode_is_the_inverse(kind: str, little: bool, number: int, factor: str) -> None:  # noqa: FBT001
    one = field(kind, factor=Fraction(factor), little=little)
    mantissa = half_even(Fraction(abs(number) if kind.startswith("u") else number) * Fraction(factor))
    try:
        wire = encode(one, mantissa)
    except OverflowError:
        assert kind.endswith("16")
        return
    values, status = decoder(request(one))(wire)
    assert status is None
    # A raw count finer than the resolution comes back exactly; a coarser one within half a count.
    assert abs((values[0] or 0) - mantissa) <= max(Fraction(1, 2), Fraction(factor) / 2)


def test_encode_refuses_what_does_not_fit() -> None:
    for kind, mantissa in (("uint16", -1), ("int16", 2**15), ("uint64", 2**64), ("float32", 10**60)):
        with pytest.raises(OverflowError, match=kind):
            encode(field(kind), mantissa)
    assert math.isfinite(struct.unpack(">f", encode(field("float32"), 10**38))[0])
