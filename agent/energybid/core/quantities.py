"""Quantities: OBIS-coded values with unit and resolution, and the status that stands beside a value.

A value is an integer count of 10^exponent units: 59.9 A at exponent -1 is 599. There are no floats here.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from fractions import Fraction

_OBIS = re.compile(r"(\d{1,3})-(\d{1,3}):(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?:\*(\d{1,3}))?", re.ASCII)

OBIS_SIZE = 6

UNITS = frozenset({"Wh", "varh", "VAh", "W", "var", "VA", "V", "A", "Hz", "1", "deg", "Cel", "s", "m3"})
"""Units a quantity may have (IEC 62056-6-2 table 4 names; "1" is a bare number such as a power factor)."""

MANTISSA_MIN, MANTISSA_MAX = -(2**63), 2**63 - 1
DIGITS_MAX = 18
"""Most digits behind the point of a number in a profile or an entry."""


@dataclass(frozen=True, slots=True)
class Obis:
    """An OBIS code A-B:C.D.E*F (IEC 62056-6-1)."""

    code: bytes
    """Six bytes A, B, C, D, E, F; F is 255 where it is not used."""

    def __post_init__(self) -> None:
        """Refuse another length."""
        if len(self.code) != OBIS_SIZE:
            raise ValueError(f"an OBIS code has {OBIS_SIZE} bytes, not {len(self.code)}")

    @classmethod
    def parse(cls, text: str) -> "Obis":
        """Read ``1-0:1.8.0`` or ``1-0:1.8.0*255``.

        Raises:
            ValueError: Not an OBIS code, or a group above 255.
        """
        match = _OBIS.fullmatch(text)
        groups = [int(g) for g in match.groups("255")] if match else [256]
        if max(groups) > 255:  # noqa: PLR2004  one byte a group
            raise ValueError(f"{text!r} is not an OBIS code: write A-B:C.D.E with 0 to 255 each, such as 1-0:1.8.0")
        return cls(bytes(groups))

    def __str__(self) -> str:
        """The short form, without *255."""
        a, b, c, d, e, f = self.code
        return f"{a}-{b}:{c}.{d}.{e}" + ("" if f == 255 else f"*{f}")  # noqa: PLR2004


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What one number of a reading is."""

    obis: Obis
    unit: str
    """One of UNITS."""
    exponent: int
    """The number counts 10^exponent units; -18 to 18."""
    cumulative: bool = False
    """A register that only grows, such as energy, but for its roll-over."""

    def __post_init__(self) -> None:
        """Refuse what the declaration could not carry."""
        if self.unit not in UNITS:
            raise ValueError(f"unit {self.unit!r} is not one of {', '.join(sorted(UNITS))}")
        if not -DIGITS_MAX <= self.exponent <= DIGITS_MAX:
            raise ValueError(f"exponent {self.exponent} is not within -{DIGITS_MAX} to {DIGITS_MAX}")


class Status(IntEnum):
    """What stands beside a value. Below 16 there is no number; from 16 on the number is there and in doubt."""

    OK = 0
    NO_REPLY = 1
    """The meter did not answer this part of the poll."""
    REFUSED = 2
    """The meter refused this register."""
    NOT_AVAILABLE = 3
    """The meter said "not available" with its own marker value, or NaN."""
    OVERFLOW = 4
    """Infinite, or outside 64 bits at the declared resolution."""
    NOT_LOGGED = 5
    """Read, but left out for lack of space: only energy was logged."""
    SUSPECT = 16
    """The number contradicts the one before it or its own bounds; the next one is not to be compared with it."""
    ROLLED_OVER = 17
    """A cumulative register went through its roll-over since the number before."""
    RESTARTED = 18
    """A cumulative register counts from another number since the one before: reset, preset, or another meter."""


class ClockState(IntEnum):
    """What is known of the wall clock when a time was taken."""

    UNSYNCHRONISED = 0
    HOLDOVER = 1
    SYNCHRONISED = 2


def decimal_text(mantissa: int, exponent: int) -> str:
    """Exact decimal text of ``mantissa`` × 10^``exponent``: 599, -1 → "59.9"; 12, 1 → "120"."""
    if exponent >= 0:
        return str(mantissa * 10**exponent)
    digits = str(abs(mantissa)).rjust(1 - exponent, "0")
    return ("-" if mantissa < 0 else "") + digits[:exponent] + "." + digits[exponent:]


def exact_decimal(value: Fraction, digits: int = DIGITS_MAX) -> tuple[int, int] | None:
    """Mantissa and exponent of a number, with as few digits behind the point as it takes; None where more are needed.

    Args:
        value: The number.
        digits: Most digits behind the point.
    """
    for exponent in range(0, -digits - 1, -1):
        scaled = value * 10**-exponent
        if scaled.denominator == 1:
            return scaled.numerator, exponent
    return None


def fraction_text(value: Fraction) -> str:
    """Exact decimal text of a number: 5/2 → "2.5".

    Raises:
        ValueError: It has none of ``DIGITS_MAX`` digits behind the point.
    """
    found = exact_decimal(value)
    if found is None:
        raise ValueError(f"{value} is no decimal number of {DIGITS_MAX} digits behind the point")
    return decimal_text(*found)
