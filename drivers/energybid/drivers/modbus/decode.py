"""Register bytes of a reply → mantissas, exactly; and back, for simulated meters. Pure.

A mantissa is raw × factor rounded half-even, factor = scale / resolution. The usual reply costs one ``struct`` unpack
and one pass; markers, NaN, infinities, overflow and odd factors take the slow way, field by field.

Why ``round(raw * 10**k)`` is exact on floats: a float32 has 24 significant bits; 10^k = 5^k × 2^k has at most 28 that
are not trailing zeros for k ≤ 12; the product's 52 bits fit a double's 53, so it is exact, and ``round`` of a double to
an integer is exact and half-even. For all other factors the slow way computes with fractions.
"""

import math
from array import array
from collections.abc import Callable, Sequence
from fractions import Fraction
from operator import mul
from struct import Struct, pack, unpack
from struct import error as StructError  # noqa: N812  the struct module's only exception

from energybid.core.quantities import MANTISSA_MAX, MANTISSA_MIN, Status
from energybid.drivers.modbus.map import TYPES, Field, Request

Decoded = tuple[Sequence[int | None], Sequence[int] | None]
"""One mantissa for each field, or None; and one Status for each, or None where all are OK."""
Decoder = Callable[[bytes], Decoded]
"""Takes the register bytes of a reply: 2 × count bytes."""

_EXACT_POWERS = frozenset(10**k for k in range(13))


def decoder(request: Request) -> Decoder:
    """What decodes the replies to ``request``."""

    def slow(data: bytes) -> Decoded:
        values, status = zip(*(_decode_field(field, data) for field in request.fields), strict=True)
        return values, status if any(status) else None

    orders = {field.little for field in request.fields if TYPES[field.type].registers > 1}
    if len(orders) > 1 or not all(map(_is_plain, request.fields)):
        return slow
    return _fast(request, slow, little=True in orders)


def _is_plain(field: Field) -> bool:
    """A factor that the fast way multiplies with exactly."""
    return field.denominator == 1 and (field.type != "float32" or field.numerator in _EXACT_POWERS)


def _fast(request: Request, slow: Decoder, *, little: bool) -> Decoder:
    unpack_reply = Struct(("<" if little else ">") + _layout(request)).unpack
    factors = tuple(float(f.numerator) if f.type == "float32" else f.numerator for f in request.fields)
    may_be_absent = frozenset(_marker_values(request)).isdisjoint

    def fast(data: bytes) -> Decoded:
        raw = unpack_reply(_swapped(data) if little else data)
        try:
            values = list(map(round, map(mul, raw, factors)))
        except (ValueError, OverflowError):  # NaN, infinity
            return slow(data)
        if max(values) > MANTISSA_MAX or min(values) < MANTISSA_MIN or not may_be_absent(raw):
            return slow(data)
        return values, None

    return fast


def _swapped(data: bytes) -> bytes:
    """Each register's bytes swapped: big-endian registers, least significant first, become one little-endian run."""
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
    return [_value(field, _bytes_of(field, pattern)) for field in request.fields for pattern in field.markers]


def _bytes_of(field: Field, pattern: int) -> bytes:
    return pattern.to_bytes(2 * TYPES[field.type].registers, "big")


def _value(field: Field, data: bytes) -> int | float:
    """Most significant register first."""
    number: int | float = unpack(">" + TYPES[field.type].code, data)[0]
    return number


def _decode_field(field: Field, data: bytes) -> tuple[int | None, int]:
    at = 2 * field.offset
    own = data[at : at + 2 * TYPES[field.type].registers]
    if field.little:
        own = _reversed(own)
    if int.from_bytes(own, "big") in field.markers:
        return None, Status.NOT_AVAILABLE
    value = _value(field, own)
    if isinstance(value, float) and not math.isfinite(value):
        return None, Status.NOT_AVAILABLE if math.isnan(value) else Status.OVERFLOW
    mantissa = round(Fraction(value) * field.numerator / field.denominator)
    if not MANTISSA_MIN <= mantissa <= MANTISSA_MAX:
        return None, Status.OVERFLOW
    return mantissa, Status.OK


def _reversed(data: bytes) -> bytes:
    """The registers in the opposite order."""
    return b"".join(data[at : at + 2] for at in range(len(data) - 2, -1, -2))


def encode(field: Field, mantissa: int) -> bytes:
    """Registers in which a meter holds the value nearest to a mantissa; big-endian bytes, as on the wire.

    Raises:
        OverflowError: The register's type can not hold it.
    """
    code = TYPES[field.type].code
    raw = Fraction(mantissa * field.denominator, field.numerator)
    try:
        data = pack(">" + code, float(raw) if code == "f" else round(raw))
    except (OverflowError, StructError) as error:
        raise OverflowError(f"{field.type} can not hold {raw}: {error}") from None
    return _reversed(data) if field.little else data
