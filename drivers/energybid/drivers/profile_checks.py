"""What is wrong between the parts of a profile whose parts are right, every fault at once, each with its key."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

from energybid.core.quantities import Obis
from energybid.drivers.modbus.map import ADDRESSES, FLOATS, TABLES, TYPES, Writable
from energybid.drivers.planner import Span
from energybid.drivers.profile_file import FingerprintSettings, Number, Profile
from energybid.drivers.profile_registers import (
    Register,
    block_span,
    length,
    readable,
    registers,
    resolved_factors,
    writables,
)


def faults(profile: Profile) -> list[str]:
    """Every fault."""
    found = [*_block_faults(profile), *_type_faults(profile), *_factor_names(profile), *_fingerprint_faults(profile)]
    if found:
        return found  # the registers can not be resolved
    quantities, factors = registers(profile), resolved_factors(profile)
    places = [
        *(_Place(f"quantity[{i}]", r.name, r.function, r.first, r.end, r.type) for i, r in enumerate(quantities)),
        *(_Place(f"factor[{i}]", f.name, f.function, f.first, f.end, f.type) for i, f in enumerate(factors)),
    ]
    return [
        *_duplicates("quantity", "name", [q.name for q in profile.quantity]),
        *_duplicates("quantity", "obis", [str(Obis.parse(q.obis)) for q in profile.quantity]),
        *_duplicates("writable", "name", [w.name for w in profile.writable]),
        *(fault for place in places for fault in _place_faults(profile, place)),
        *(f"quantity[{i}].{fault}" for i, r in enumerate(quantities) for fault in _counter_faults(profile, r, i)),
        *_overlaps(places),
        *(f"writable[{i}].{fault}" for i, w in enumerate(writables(profile)) for fault in _writable_faults(w)),
    ]


class _Place(NamedTuple):
    """A number in registers that are polled."""

    key: str
    name: str
    function: int
    first: int
    end: int
    type: str

    def __str__(self) -> str:
        last = self.end - 1
        return f"{TABLES[self.function]} register {self.first}" + (f" to {last}" if last > self.first else "")


def _block_faults(profile: Profile) -> Iterator[str]:
    for index, block in enumerate(profile.block):
        if block.first + block.count > ADDRESSES:
            yield f"block[{index}].count: ends behind register {ADDRESSES - 1}"
    order = sorted(range(len(profile.block)), key=lambda i: (profile.block[i].table, profile.block[i].first))
    for a, b in pairwise(order):
        before, after = profile.block[a], profile.block[b]
        if before.table == after.table and before.first + before.count > after.first:
            yield f"block[{b}].first: {after.table} register {after.first} is in block[{a}] as well"


def _type_faults(profile: Profile) -> Iterator[str]:
    numbers: list[tuple[str, Number]] = [
        *((f"quantity[{i}]", quantity) for i, quantity in enumerate(profile.quantity)),
        *((f"factor[{i}]", factor) for i, factor in enumerate(profile.factor)),
        *((f"writable[{i}]", writable) for i, writable in enumerate(profile.writable)),
    ]
    for key, number in numbers:
        for what in ("table", "type"):
            if getattr(number, what) is None and getattr(profile.defaults, what) is None:
                yield f"{key}.{what}: is missing; write it here or in [defaults]"
    for index, quantity in enumerate(profile.quantity):
        kind = quantity.type or profile.defaults.type
        if kind:
            yield from _pattern_faults(f"quantity[{index}].not_available", kind, quantity.not_available or ())
    for name, patterns in profile.not_available.items():
        yield from _pattern_faults(f"not_available.{name}", name, patterns)


def _pattern_faults(key: str, kind: str, patterns: Iterable[str]) -> Iterator[str]:
    digits = 4 * TYPES[kind].registers
    if any(len(pattern) != digits for pattern in patterns):
        yield f"{key}: {kind} has {digits} hexadecimal digits"


def _factor_names(profile: Profile) -> Iterator[str]:
    """Factors and their uses must fit before anything is resolved."""
    names = [factor.name for factor in profile.factor]
    yield from _duplicates("factor", "name", names)
    yield from _guard_faults(profile)
    used = {name for quantity in profile.quantity for name in quantity.scale_by}
    used |= {name for writable in profile.writable for name in writable.guarded_by}
    for index, name in enumerate(names):
        if name not in used:
            yield f"factor[{index}].name: no quantity has {name} in its scale_by"
    for index, quantity in enumerate(profile.quantity):
        for name in quantity.scale_by:
            if name not in names:
                there = f"there are {', '.join(names)}" if names else "there is none"
                yield f"quantity[{index}].scale_by: no factor {name!r}; {there}"
        if len(set(quantity.scale_by)) < len(quantity.scale_by):
            yield f"quantity[{index}].scale_by: names a factor twice"


def _guard_faults(profile: Profile) -> Iterator[str]:
    for index, factor in enumerate(profile.factor):
        if (factor.kind == "guard") != (factor.equals is not None):
            yield f"factor[{index}].equals: belongs to a guard, and a guard needs it"
    guards = [factor.name for factor in profile.factor if factor.kind == "guard"]
    for index, writable in enumerate(profile.writable):
        for name in writable.guarded_by:
            if name not in guards:
                yield f"writable[{index}].guarded_by: no guard {name!r}"


def _duplicates(table: str, key: str, values: list[str]) -> Iterator[str]:
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        if value in seen:
            yield f"{table}[{index}].{key}: {value} is also that of {table}[{seen[value]}]"
        seen.setdefault(value, index)


def _place_faults(profile: Profile, place: _Place) -> Iterator[str]:
    span = Span(place.function, place.first, place.end)
    if place.end > ADDRESSES:
        yield f"{place.key}.register: {place.type} at {place.first} ends behind register {ADDRESSES - 1}"
    elif not any(block_span(block).holds(span) for block in profile.block):
        yield f"{place.key}.register: {place} is in no block that may be read"
    elif not any(part.holds(span) for part in readable(profile)):
        yield f"{place.key}.register: {place} is in timing.unreadable"
    count = place.end - place.first
    if count > profile.max_registers:
        yield f"{place.key}.type: {place.type} has {count} registers; max_registers is {profile.max_registers}"


def _counter_faults(profile: Profile, register: Register, index: int) -> Iterator[str]:
    """Faults of one quantity, each beginning with its key."""
    if register.quantity.cumulative and register.scale < 0:
        yield "scale: a cumulative quantity only grows; its scale can not be negative"
    if register.rollover is None:
        return
    if not register.quantity.cumulative:
        yield "rollover: only a cumulative quantity rolls over; add cumulative = true"
    if register.rollover % Fraction(10) ** register.quantity.exponent:
        yield f"rollover: is not a multiple of the resolution {profile.quantity[index].resolution}"


def _overlaps(places: list[_Place]) -> Iterator[str]:
    for before, after in pairwise(sorted(places, key=lambda place: (place.function, place.first))):
        if before.function == after.function and before.end > after.first:
            yield f"{after.key}.register: {after} overlaps {before.key} ({before.name})"


# ---------------------------------------------------------------- what is read once, or written


def _fingerprint_faults(profile: Profile) -> Iterator[str]:
    for index, fingerprint in enumerate(profile.identification.fingerprint):
        for fault in _one_fingerprint(fingerprint):
            yield f"identification.fingerprint[{index}].{fault}"


def _one_fingerprint(fingerprint: FingerprintSettings) -> Iterator[str]:
    is_text = fingerprint.type == "text"
    given = [key for key in ("equals", "between", "text") if getattr(fingerprint, key) is not None]
    allowed = ["text"] if is_text else ["equals", "between"]
    if len(given) != 1 or given[0] not in allowed:
        yield f"{given[0] if given else 'equals'}: a {fingerprint.type} has {' or '.join(allowed)}, one of them"
    if is_text and fingerprint.count is None:
        yield "count: is missing; a text says how many registers it has"
    if not is_text and fingerprint.count not in {None, length(fingerprint)}:
        yield f"count: {fingerprint.type} has {length(fingerprint)} registers; leave it out"
    if fingerprint.between and fingerprint.between[0] > fingerprint.between[1]:
        yield "between: write the lesser first"
    if fingerprint.register_ + length(fingerprint) > ADDRESSES:
        yield f"register: ends behind register {ADDRESSES - 1}"


def _writable_faults(writable: Writable) -> Iterator[str]:
    if writable.first + writable.count > ADDRESSES:
        yield f"register: {writable.type} at {writable.first} ends behind register {ADDRESSES - 1}"
    if writable.minimum > writable.maximum:
        yield "maximum: is less than minimum"
    for key, value in (("minimum", writable.minimum), ("maximum", writable.maximum), ("safe", writable.safe)):
        if value is not None and (fault := _not_held(writable, value)):
            yield f"{key}: {fault}"
    if writable.safe is not None and not writable.minimum <= writable.safe <= writable.maximum:
        yield "safe: is not between minimum and maximum"
    if writable.safe is not None and writable.values and writable.safe not in writable.values:
        yield "safe: is not among values"
    for value in writable.values:
        fault = _not_held(writable, value)
        if not writable.minimum <= value <= writable.maximum:
            fault = "is not between minimum and maximum"
        if fault:
            yield f"values: {float(value):g} {fault}"


def _not_held(writable: Writable, value: Fraction) -> str:
    """Why a register can not hold a value; empty where it can."""
    if writable.type in FLOATS:
        return ""
    raw = value / writable.scale
    bits = 16 * writable.count
    low, high = (0, 2**bits - 1) if writable.type.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    if raw.denominator != 1:
        return "is no multiple of scale"
    return "" if low <= raw <= high else f"{writable.type} can not hold it"
