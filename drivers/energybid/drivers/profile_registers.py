"""A profile's registers with everything about them resolved: defaults filled in, decimal texts made exact numbers.

Here lives the way from the file's tables to plain values, for a file whose types are known to be right.
"""

import struct
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import isfinite

from energybid.core.ports import Counter
from energybid.core.quantities import MANTISSA_MAX, Obis, Quantity
from energybid.drivers.modbus.decode import in_order, swapped
from energybid.drivers.modbus.map import FLOATS, TABLES, TYPES, Factor, Writable
from energybid.drivers.planner import Span
from energybid.drivers.profile_file import (
    Block,
    FactorSettings,
    FingerprintSettings,
    Number,
    Profile,
    QuantitySettings,
)

FUNCTION_OF = {table: function for function, table in TABLES.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One quantity with everything about its register resolved."""

    name: str
    quantity: Quantity
    function: int
    """HOLDING or INPUT."""
    first: int
    count: int
    type: str
    """Key of TYPES."""
    little: bool
    """The first register is the least significant one."""
    swapped: bool
    """The bytes within each register are little-endian."""
    scale: Fraction
    """Units per raw count, before the factors that the meter holds."""
    factors: tuple[Factor, ...]
    """What the meter holds and the value is multiplied by besides."""
    markers: tuple[int, ...]
    """Bit patterns that mean "not available"."""
    rollover: Fraction | None

    @property
    def end(self) -> int:
        """Address behind its last register."""
        return self.first + self.count

    @property
    def factor(self) -> Fraction:
        """Mantissa per raw count, before the factors that the meter holds."""
        exponent = self.quantity.exponent
        return self.scale * Fraction(10) ** -exponent

    @property
    def counter(self) -> Counter | None:
        """How it counts, where the file says it; an unsigned register rolls over at its end.

        With factors of the meter only the file can say it, for a meter whose settings stay as they are.
        """
        if not self.quantity.cumulative or (self.factors and self.rollover is None):
            return None
        rollover: Fraction | None = None
        if self.rollover is not None:
            rollover = self.rollover / Fraction(10) ** self.quantity.exponent
        elif self.type.startswith("u"):
            rollover = 2 ** (16 * self.count) * self.factor
        return Counter(
            rollover=round(rollover) if rollover is not None and rollover <= MANTISSA_MAX else None,
            word=round(2**16 * self.factor)
            if self.count > 1 and self.type not in FLOATS and not self.factors
            else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Registers by which a model is known."""

    function: int
    first: int
    count: int
    type: str
    """Key of TYPES, or "text"."""
    little: bool
    swapped: bool
    equals: tuple[int, ...] | None
    between: tuple[int, int] | None
    text: str | None
    about: str

    def matches(self, data: bytes) -> bool:
        """Whether register bytes, as on the wire, are those of this model.

        Args:
            data: 2 × count bytes.
        """
        if self.type == "text":
            return (self.text or "").encode() in (swapped(data) if self.swapped else data)
        own = in_order(data, little=self.little, swap=self.swapped)
        value = struct.unpack(">" + TYPES[self.type].code, own)[0]
        if self.equals is not None:
            return value in self.equals
        low, high = self.between or (1, 0)
        return isfinite(value) and low <= value <= high


def registers(profile: Profile) -> list[Register]:
    """Quantities in the file's order."""
    factors = {factor.name: factor for factor in resolved_factors(profile)}
    return [_register(profile, quantity, factors) for quantity in profile.quantity]


def _register(profile: Profile, settings: QuantitySettings, factors: dict[str, Factor]) -> Register:
    kind = type_of(profile, settings)
    return Register(
        name=settings.name,
        quantity=Quantity(
            obis=Obis.parse(settings.obis),
            unit=settings.unit,
            exponent=Decimal(settings.resolution).adjusted(),
            cumulative=settings.cumulative,
        ),
        function=_function(profile, settings),
        first=settings.register_,
        count=TYPES[kind].registers,
        type=kind,
        little=_is_little(profile, settings),
        swapped=_is_swapped(profile, settings),
        scale=Fraction(settings.scale),
        factors=tuple(factors[name] for name in settings.scale_by),
        markers=_markers(profile, kind, settings.not_available),
        rollover=None if settings.rollover is None else Fraction(settings.rollover),
    )


def resolved_factors(profile: Profile) -> list[Factor]:
    """Factors in the file's order."""
    return [
        Factor(
            name=settings.name,
            function=_function(profile, settings),
            first=settings.register_,
            type=type_of(profile, settings),
            little=_is_little(profile, settings),
            swapped=_is_swapped(profile, settings),
            scale=Fraction(settings.scale),
            power_of_ten=settings.kind == "power-of-ten",
            markers=() if settings.equals else _markers(profile, type_of(profile, settings), None),
            equals=tuple(settings.equals or ()),
        )
        for settings in profile.factor
    ]


def writables(profile: Profile) -> list[Writable]:
    """What may be written, in the file's order."""
    factors = {factor.name: factor for factor in resolved_factors(profile)}
    return [
        Writable(
            name=settings.name,
            first=settings.register_,
            count=TYPES[type_of(profile, settings)].registers,
            type=type_of(profile, settings),
            little=_is_little(profile, settings),
            swapped=_is_swapped(profile, settings),
            scale=Fraction(settings.scale),
            unit=settings.unit,
            minimum=Fraction(settings.minimum),
            maximum=Fraction(settings.maximum),
            safe=None if settings.safe is None else Fraction(settings.safe),
            values=tuple(map(Fraction, settings.values or ())),
            guards=tuple(factors[name] for name in settings.guarded_by),
        )
        for settings in profile.writable
    ]


def fingerprints(profile: Profile) -> list[Fingerprint]:
    """How the model is known, in the file's order."""
    return [
        Fingerprint(
            function=FUNCTION_OF[settings.table],
            first=settings.register_,
            count=length(settings),
            type=settings.type,
            little=_is_little(profile, settings),
            swapped=_is_swapped(profile, settings),
            equals=None if settings.equals is None else tuple(settings.equals),
            between=None if settings.between is None else (settings.between[0], settings.between[1]),
            text=settings.text,
            about=settings.about,
        )
        for settings in profile.identification.fingerprint
    ]


def readable(profile: Profile) -> list[Span]:
    """Registers that may be read at once: the blocks, without what is known to be unreadable."""
    spans = [block_span(block) for block in profile.block]
    for hole in map(block_span, profile.timing.unreadable):
        spans = [part for span in spans for part in _without(span, hole)]
    return sorted(spans)


def block_span(block: Block) -> Span:
    """A block's registers."""
    return Span(FUNCTION_OF[block.table], block.first, block.first + block.count)


def _without(span: Span, hole: Span) -> list[Span]:
    if span.function != hole.function or hole.end <= span.first or span.end <= hole.first:
        return [span]
    parts = [Span(span.function, span.first, hole.first), Span(span.function, hole.end, span.end)]
    return [part for part in parts if part.length > 0]


def length(settings: FingerprintSettings) -> int:
    """How many registers a fingerprint has."""
    return settings.count or 1 if settings.type == "text" else TYPES[settings.type].registers


def type_of(profile: Profile, settings: Number) -> str:
    """A number's type.

    Raises:
        ValueError: It is nowhere.
    """
    kind = settings.type or profile.defaults.type
    if kind is None:
        raise ValueError("check the types first")
    return kind


def _function(profile: Profile, settings: QuantitySettings | FactorSettings) -> int:
    table = settings.table or profile.defaults.table
    if table is None:
        raise ValueError("check the types first")
    return FUNCTION_OF[table]


def _is_little(profile: Profile, settings: Number | FingerprintSettings) -> bool:
    return (settings.word_order or profile.defaults.word_order) == "little"


def _is_swapped(profile: Profile, settings: Number | FingerprintSettings) -> bool:
    return (settings.byte_order or profile.defaults.byte_order) == "little"


def _markers(profile: Profile, kind: str, own: list[str] | None) -> tuple[int, ...]:
    patterns = profile.not_available.get(kind, []) if own is None else own  # type: ignore[call-overload]
    return tuple(int(pattern, 16) for pattern in patterns)
