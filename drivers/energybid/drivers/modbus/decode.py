"""Register bytes of a reply → mantissas, exactly; and back, for simulated meters and writes. Pure.

A mantissa is raw × factor rounded half-even, factor = scale / resolution × the factors that the meter itself holds. The
usual reply costs one ``struct`` unpack and one pass; markers, NaN, infinities and overflow take the slow way, field by
field. Factors of the meter are folded into the fields once, and again only when their registers change.

Why ``round(raw * n)`` is exact on floats: a float32 has 24 significant bits; where n has at most 29 that are not
trailing zeros (10^k = 5^k × 2^k has 28 for k = 12), the product's 53 bits fit a double, so it is exact, and ``round``
of a double to an integer is exact and half-even. For all other factors, and float64, integers compute the exact ratio.
"""

import math
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from operator import mul
from struct import Struct, pack, unpack
from struct import error as StructError  # noqa: N812  the struct module's only exception

from energybid.core.quantities import MANTISSA_MAX, MANTISSA_MIN, Status
from energybid.drivers.modbus.map import FLOATS, TYPES, Factor, Field, Request, Writable

Decoded = tuple[Sequence[int | None], Sequence[int] | None]
"""One mantissa for each field, or None; and one Status for each, or None where all are OK."""
Decoder = Callable[[bytes], Decoded]
"""Takes the register bytes of a reply: 2 × count bytes."""
FactorData = Mapping[str, bytes | int]
"""Factor's name → its registers' bytes, or the Status that says why there are none."""
ScaledDecoder = Callable[[bytes, FactorData], Decoded]
"""A decoder that needs the factors that the poll brought."""

FACTOR_DIGITS = 10
"""A factor is at least 10^-10 and at most 10^10; what is outside is no factor, but a marker or a fault."""

_EXACT_BITS = 29
_DOUBLE_BITS = 53


def decoder(request: Request) -> Decoder:
    """What decodes the replies to ``request``; its fields' factors are left out (see ``scaled_decoder``)."""
    if not request.fields:
        return lambda _data: ((), None)

    def slow(data: bytes) -> Decoded:
        values, status = zip(*(_decode_field(field, data) for field in request.fields), strict=True)
        return values, status if any(status) else None

    words = {field.little for field in request.fields if TYPES[field.type].registers > 1}
    octets = {field.swapped for field in request.fields}
    if len(words) > 1 or len(octets) > 1:
        return slow
    little = True in words
    return _fast(request, slow, little=little, swap=little != (True in octets))


def _fast(request: Request, slow: Decoder, *, little: bool, swap: bool) -> Decoder:
    """Most significant register first and bytes as Modbus has them, or both the other way, is one run of bytes."""
    unpack_reply = Struct(("<" if little else ">") + _layout(request)).unpack
    factors = tuple(_plain_factor(field) for field in request.fields)
    hard = tuple((i, _exactly(f)) for i, f in enumerate(request.fields) if not factors[i])
    may_be_absent = frozenset(_marker_values(request)).isdisjoint

    def fast(data: bytes) -> Decoded:
        raw = unpack_reply(swapped(data) if swap else data)
        try:
            values = list(map(round, map(mul, raw, factors)))
        except (ValueError, OverflowError):  # NaN, infinity
            return slow(data)
        for i, exactly in hard:
            values[i] = exactly(raw[i])
        if max(values) > MANTISSA_MAX or min(values) < MANTISSA_MIN or not may_be_absent(raw):
            return slow(data)
        return values, None

    return fast


def _plain_factor(field: Field) -> int | float:
    """What ``round(raw * factor)`` is exact with; 0 where there is no such factor."""
    if field.denominator != 1:
        return 0
    if field.type == "float32":
        odd = field.numerator // (field.numerator & -field.numerator)
        return float(field.numerator) if abs(odd).bit_length() <= _EXACT_BITS else 0.0
    if field.type == "float64":
        return 1.0 if field.numerator == 1 else 0.0
    return field.numerator


def _exactly(field: Field) -> Callable[[int | float], int]:
    numerator, denominator = field.numerator, field.denominator

    def exactly(raw: float) -> int:
        n, d = raw.as_integer_ratio()
        return _half_even(n * numerator, d * denominator)

    return exactly


def _half_even(numerator: int, denominator: int) -> int:
    """The quotient, rounded to the nearest integer, half to even; denominator > 0."""
    quotient, rest = divmod(numerator, denominator)
    rest += rest
    return quotient + (rest > denominator or (rest == denominator and quotient & 1))


def swapped(data: bytes) -> bytes:
    """Each register's two bytes in the opposite order."""
    words = array("H", data)
    words.byteswap()
    return words.tobytes()


def _layout(request: Request) -> str:
    """Format of the struct module, gaps as pad bytes."""
    layout, at = "", 0
    for field in request.fields:
        layout += "x" * 2 * (field.offset - at) + TYPES[field.type].code
        at = field.offset + TYPES[field.type].registers
    return layout + "x" * 2 * (request.count - at)


def _marker_values(request: Request) -> list[int | float]:
    return [
        _value(field.type, pattern.to_bytes(2 * TYPES[field.type].registers, "big"))
        for field in request.fields
        for pattern in field.markers
    ]


def _value(kind: str, data: bytes) -> int | float:
    """Most significant register first."""
    number: int | float = unpack(">" + TYPES[kind].code, data)[0]
    return number


def _decode_field(field: Field, data: bytes) -> tuple[int | None, int]:
    at = 2 * field.offset
    own = in_order(data[at : at + 2 * TYPES[field.type].registers], little=field.little, swap=field.swapped)
    if int.from_bytes(own, "big") in field.markers:
        return None, Status.NOT_AVAILABLE
    value = _value(field.type, own)
    if isinstance(value, float) and not math.isfinite(value):
        return None, Status.NOT_AVAILABLE if math.isnan(value) else Status.OVERFLOW
    mantissa = _exactly(field)(value)
    if not MANTISSA_MIN <= mantissa <= MANTISSA_MAX:
        return None, Status.OVERFLOW
    return mantissa, Status.OK


def in_order(data: bytes, *, little: bool, swap: bool) -> bytes:
    """Most significant byte first, from the wire's order, or the other way round: it is its own inverse.

    Args:
        data: The registers of one number.
        little: The least significant register stands first.
        swap: The bytes of each register are little-endian.
    """
    if little and swap:
        return data[::-1]
    if little:
        return b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2))
    return swapped(data) if swap else data


# ---------------------------------------------------------------- factors that the meter holds


def factor_data(request: Request, outcome: bytes | int) -> dict[str, bytes | int]:
    """What a request brought of the factors in it.

    Args:
        request: Asked.
        outcome: The register bytes of the reply, or a Status that says why there is none.
    """
    if isinstance(outcome, int):
        return {factor.name: outcome for factor in request.factors}
    return {f.name: outcome[2 * (f.first - request.first) : 2 * (f.end - request.first)] for f in request.factors}


def factor_value(factor: Factor, data: bytes) -> Fraction | None:
    """The factor in its registers; None where what stands there is none: 0, negative, not a number, out of bounds."""
    own = in_order(data, little=factor.little, swap=factor.swapped)
    raw = _value(factor.type, own)
    if int.from_bytes(own, "big") in factor.markers or not math.isfinite(raw):
        return None
    if factor.equals:
        return Fraction(1) if raw in factor.equals else None
    value = Fraction(raw) * factor.scale
    if factor.power_of_ten:
        if value.denominator != 1 or abs(value) > FACTOR_DIGITS:
            return None
        return Fraction(10) ** int(value)
    limit = 10**FACTOR_DIGITS
    return value if Fraction(1, limit) <= value <= limit else None


def scaled_decoder(request: Request) -> ScaledDecoder | None:
    """What decodes the replies to a request with the factors its fields need; None where they need none."""
    needed = {factor.name: factor for field in request.fields for factor in field.factors}
    if not needed:
        return None
    known: list[bytes | int] = []
    decode: Decoder = decoder(request)

    def scaled(data: bytes, factors: FactorData) -> Decoded:
        nonlocal known, decode
        found = [factors.get(name, Status.NOT_AVAILABLE) for name in needed]
        if found != known:
            known = found
            decode = _resolved(request, {n: _resolve(needed[n], d) for n, d in zip(needed, found, strict=True)})
        return decode(data)

    return scaled


def _resolve(factor: Factor, data: bytes | int) -> Fraction | Status:
    if isinstance(data, int):
        return Status(data)
    value = factor_value(factor, data)
    return Status.NOT_AVAILABLE if value is None else value


def _resolved(request: Request, factors: Mapping[str, Fraction | Status]) -> Decoder:
    """A decoder with the factors folded into the fields; what lacks one has no number, but a status."""
    fields = [_folded(field, factors) for field in request.fields]
    present = [field for field in fields if isinstance(field, Field)]
    decode = decoder(replace(request, fields=tuple(present)))
    if len(present) == len(fields):
        return decode

    def with_gaps(data: bytes) -> Decoded:
        numbers, states = decode(data)
        found = zip(numbers, states or (Status.OK,) * len(numbers), strict=True)
        values, status = zip(*(next(found) if isinstance(f, Field) else (None, f) for f in fields), strict=True)
        return values, status

    return with_gaps


def _folded(field: Field, factors: Mapping[str, Fraction | Status]) -> Field | Status:
    product = Fraction(field.numerator, field.denominator)
    for factor in field.factors:
        value = factors[factor.name]
        if isinstance(value, Status):
            return value
        product *= value
    return replace(field, numerator=product.numerator, denominator=product.denominator, factors=())


def group_decoder(requests: Sequence[Request]) -> Callable[[Sequence[bytes | int]], Decoded]:
    """What decodes all replies of a poll group, factors included: for tools and tests; the driver does it piecewise.

    The decoder takes what came of each request, in order: the register bytes, or a Status that says why there are none.
    """
    decoders = [scaled_decoder(request) or _without_factors(request) for request in requests]

    def decode(outcomes: Sequence[bytes | int]) -> Decoded:
        values: list[int | None] = []
        status: list[int] = []
        factors: dict[str, bytes | int] = {}
        for request, outcome in zip(requests, outcomes, strict=True):
            factors |= factor_data(request, outcome)
        for request, decode_one, outcome in zip(requests, decoders, outcomes, strict=True):
            numbers, states = decode_one(outcome, factors) if isinstance(outcome, bytes) else _absent(request, outcome)
            values += numbers
            status += states or (Status.OK,) * len(numbers)
        return values, status if any(status) else None

    return decode


def _absent(request: Request, status: int) -> Decoded:
    return (None,) * len(request.fields), (status,) * len(request.fields)


def _without_factors(request: Request) -> ScaledDecoder:
    decode = decoder(request)
    return lambda data, _factors: decode(data)


# ---------------------------------------------------------------- numbers → registers


def encode(field: Field, mantissa: int) -> bytes:
    """Registers in which a meter holds the value nearest to a mantissa; big-endian bytes, as on the wire.

    Raises:
        OverflowError: The register's type can not hold it.
    """
    return pack_raw(field.type, Fraction(mantissa * field.denominator, field.numerator), field.little, field.swapped)


def pack_raw(kind: str, raw: Fraction, little: bool, swap: bool) -> bytes:  # noqa: FBT001  the two orders of a number
    """Registers that hold a raw count, or the nearest that they can hold.

    Raises:
        OverflowError: The register's type can not hold it.
    """
    try:
        data = pack(">" + TYPES[kind].code, float(raw) if kind in FLOATS else round(raw))
    except (OverflowError, StructError) as error:
        raise OverflowError(f"{kind} can not hold {raw}: {error}") from None
    return in_order(data, little=little, swap=swap)


def encode_writable(writable: Writable, value: Fraction) -> bytes:
    """Registers to write so that ``writable`` is ``value``, in its unit.

    Raises:
        ValueError: Outside its bounds, none of its values, or between two counts of the register.
    """
    if not writable.minimum <= value <= writable.maximum:
        bounds = f"{_plain(writable.minimum)} to {_plain(writable.maximum)} {writable.unit}"
        raise ValueError(f"{writable.name} may be {bounds}, not {_plain(value)}")
    unit = "" if writable.unit == "1" else f" {writable.unit}"
    if writable.values and value not in writable.values:
        allowed = ", ".join(map(_plain, writable.values))
        raise ValueError(f"{writable.name} may be one of {allowed}{unit}, not {_plain(value)}")
    raw = value / writable.scale
    if writable.type not in FLOATS and raw.denominator != 1:
        raise ValueError(f"{writable.name} is written in steps of {_plain(writable.scale)} {writable.unit}")
    return pack_raw(writable.type, raw, writable.little, writable.swapped)


def decode_writable(writable: Writable, data: bytes) -> Fraction | None:
    """What the registers of ``writable`` hold, in its unit; None where that is no number."""
    raw = _value(writable.type, in_order(data, little=writable.little, swap=writable.swapped))
    return Fraction(raw) * writable.scale if math.isfinite(raw) else None


def _plain(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"
