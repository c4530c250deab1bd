"""Writing one register that the profile names: what is asked for, what was there, and whether it is there now."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.core.errors import ConfigurationError
from energybid.core.quantities import decimal_text, exact_decimal
from energybid.drivers.modbus.decode import decode_writable, encode_writable

if TYPE_CHECKING:
    from energybid.agent.cabinet.places import Place
    from energybid.core.ports import Driver
    from energybid.drivers.modbus.map import Writable

_DECIMAL = re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?", re.ASCII)
FLOAT_DIGITS = 15
"""A number with more behind the point is a float that is no short decimal number, or has no end."""


class Change(NamedTuple):
    """A register to write."""

    writable: Writable
    value: Fraction
    """In the writable's unit."""
    raw: bytes
    """What goes into the registers, as on the wire."""


def change_of(place: Place, name: str, text: str) -> Change:
    """What to write.

    Args:
        place: The meter.
        name: One of the profile's ``[[writable]]``.
        text: The value, a decimal number in the writable's unit.

    Raises:
        ConfigurationError: There is no such name; it is no number; the register may not have it.
    """
    assert place.loaded is not None  # noqa: S101  a profile is needed
    known = {writable.name: writable for writable in place.loaded.writables}
    if name not in known:
        lines = [f"{place.loaded.name} names no register {name!r} that may be written"]
        lines += [f"it has: {bounds_text(writable)}" for writable in known.values()] or ["it names none at all"]
        raise ConfigurationError(lines)
    writable = known[name]
    if not _DECIMAL.fullmatch(text):
        raise ConfigurationError([f"{name}: write a decimal number in {writable.unit}, such as 12.5 (found {text!r})"])
    value = Fraction(text)
    try:
        return Change(writable, value, encode_writable(writable, value))
    except ValueError as error:
        raise ConfigurationError([f"{error}"]) from None


def bounds_text(writable: Writable) -> str:
    """A writable and what it may be."""
    unit = "" if writable.unit == "1" else f" {writable.unit}"
    if writable.values:
        return f"{writable.name}, one of {', '.join(map(plain, writable.values))}{unit}"
    safe = "" if writable.safe is None else f" (safe: {plain(writable.safe)})"
    return f"{writable.name}, {plain(writable.minimum)} to {plain(writable.maximum)}{unit}{safe}"


def plain(value: Fraction) -> str:
    """A number as people write it; exact where it has an end."""
    found = exact_decimal(value, FLOAT_DIGITS)
    return decimal_text(*found) if found else f"{float(value):.7g}"


def value_text(writable: Writable, raw: bytes) -> str:
    """What registers hold, with the unit."""
    value = decode_writable(writable, raw)
    if value is None:
        return f"no number ({raw.hex(' ', 2).upper()})"
    return plain(value) if writable.unit == "1" else f"{plain(value)} {writable.unit}"


class Written(NamedTuple):
    """What became of it."""

    before: bytes
    after: bytes
    """What was read back."""


async def read_old(driver: Driver, place: Place, change: Change) -> bytes:
    """What is there now.

    Raises:
        MeterError: It can not be read.
    """
    assert place.meter is not None  # noqa: S101  a profile is needed
    return await driver.read_back(place.meter, change.writable)


async def write(driver: Driver, place: Place, change: Change) -> bytes:
    """Write, and read back what is there then.

    Raises:
        MeterError: The meter refused it, or did not answer: then it may have taken it nevertheless.
    """
    assert place.meter is not None  # noqa: S101  a profile is needed
    await driver.write(place.meter, change.writable, change.raw)
    return await driver.read_back(place.meter, change.writable)


def alone(place: Place) -> Place:
    """The place with a bus that has no other meters, for a driver of its own."""
    meters = (place.meter,) if place.meter else ()
    return replace(place, bus=replace(place.bus, meters=meters))


def facts(place: Place, change: Change, written: Written) -> dict[str, Any]:
    """For programs: values in the unit, as exact text; registers in hexadecimal."""
    writable = change.writable
    before, after = (decode_writable(writable, raw) for raw in written)
    return {
        "meter": place.name,
        "unit": place.unit,
        "name": writable.name,
        "register": writable.first,
        "before": None if before is None else plain(before),
        "written": plain(change.value),
        "after": None if after is None else plain(after),
        "of": writable.unit,
        "raw": {"before": written.before.hex(), "written": change.raw.hex(), "after": written.after.hex()},
        "ok": written.after == change.raw,
    }
