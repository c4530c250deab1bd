"""What a meter measures at a site: a physical state → the exact value of any quantity, by its OBIS code.

Here live the rules of the OBIS groups C and D (IEC 62056-6-1, electricity) and nothing about registers. Values are
exact fractions in plain units (W, V, A, Hz, Wh, 1); a register's resolution is applied where the register is known.
"""

from collections.abc import Callable, Collection, Mapping
from fractions import Fraction
from math import acos, degrees, isqrt

from energybid.core.quantities import Obis
from energybid.simulator.household import PHASES, UJ_PER_WH, State

OPERATING_STATE = Obis.parse("0-0:96.5.0")
"""Of a device that rests, such as a charger without a car: 0."""
ELECTRICITY = 1
INSTANTANEOUS, ENERGY = 7, 8
"""Groups D: the value now; the time integral since the meter was made."""
PHASE_STEP = 20
"""C of phase n is C of the sum plus 20 n."""
SECOND_RANGE = 128
"""From here C counts sums again: 128 and 131 with 148 and 151 for phase 1, and so on."""
MILLI = 1000


def _milli(value: int) -> Fraction:
    return Fraction(value, MILLI)


def _over(phase: int | None, values: tuple[int, int, int]) -> int:
    return sum(values) if phase is None else values[phase]


def _power_factor(state: State, phase: int | None) -> Fraction:
    apparent = _over(phase, state.apparent_mva)
    return Fraction(_over(phase, state.power_mw), apparent) if apparent else Fraction(1)


def _current(state: State, phase: int | None) -> Fraction:
    return _milli(sum(map(state.current_ma, range(PHASES))) if phase is None else state.current_ma(phase))


def _voltage(state: State, phase: int | None) -> Fraction:
    return _milli(sum(state.voltage_mv) // PHASES if phase is None else state.voltage_mv[phase])


def _neutral(state: State) -> Fraction:
    """Length of the sum of three currents 120° apart."""
    a, b, c = map(state.current_ma, range(PHASES))
    return _milli(isqrt(max(0, a * a + b * b + c * c - a * b - b * c - c * a)))


def _line_voltage(state: State, first: int) -> Fraction:
    """Between a phase and the next one: two sides 120° apart."""
    a, b = state.voltage_mv[first], state.voltage_mv[(first + 1) % PHASES]
    return _milli(isqrt(a * a + b * b + a * b))


def _angle(state: State, phase: int | None) -> Fraction:
    """Between voltage and current, degrees."""
    factor = float(_power_factor(state, phase))
    return Fraction(round(degrees(acos(max(-1.0, min(1.0, factor)))) * MILLI), MILLI)


_NOW: Mapping[int, Callable[[State, int | None], Fraction]] = {
    1: lambda s, p: _milli(max(0, _over(p, s.power_mw))),
    2: lambda s, p: _milli(max(0, -_over(p, s.power_mw))),
    3: lambda s, p: _milli(_over(p, s.reactive_mvar)),
    4: lambda _s, _p: Fraction(0),
    9: lambda s, p: _milli(_over(p, s.apparent_mva)),
    10: lambda _s, _p: Fraction(0),
    11: _current,
    12: _voltage,
    13: _power_factor,
    14: lambda s, _p: _milli(s.frequency_mhz),
    15: lambda s, p: _milli(abs(_over(p, s.power_mw))),
    16: lambda s, p: _milli(_over(p, s.power_mw)),
    128: lambda s, p: _milli(abs(_over(p, s.reactive_mvar))),
    131: lambda s, p: _milli(_over(p, s.reactive_mvar)),
    132: lambda s, p: _line_voltage(s, 0 if p is None else p),
}
"""By group C of the sum. 15 and 128 are magnitudes, 16 and 131 signed sums, of active and reactive power; 132 is the
voltage between a line and the next one."""

_SINCE: Mapping[int, Callable[[State, int | None], int]] = {
    1: lambda s, p: _over(p, s.import_uj),
    2: lambda s, p: _over(p, s.export_uj),
    3: lambda s, p: _over(p, s.reactive_uj),
    4: lambda _s, _p: 0,
    5: lambda s, p: _over(p, s.reactive_uj),
    6: lambda _s, _p: 0,
    7: lambda _s, _p: 0,
    8: lambda _s, _p: 0,
    9: lambda s, p: _over(p, s.apparent_uj),
    10: lambda _s, _p: 0,
    15: lambda s, p: _over(p, s.import_uj) + _over(p, s.export_uj),
    16: lambda s, p: _over(p, s.import_uj) - _over(p, s.export_uj),
    128: lambda s, p: _over(p, s.reactive_uj),
    131: lambda s, p: _over(p, s.reactive_uj),
}


_SPECIAL: Mapping[int, Callable[[State], Fraction]] = {
    90: lambda s: _current(s, None),
    91: _neutral,
    135: lambda _s: Fraction(57, 100),
    136: lambda _s: Fraction(512, 10),
    137: lambda _s: Fraction(10_000),
    138: lambda _s: Fraction(5_700),
    139: lambda _s: Fraction(98, 100),
}
"""Instantaneous quantities that no single phase has, by group C. From 135 on: a battery that rests: its state of charge
and voltage, what it holds full and now, its health."""

Probe = Callable[[State], Fraction]


def probe(obis: Obis, told: Collection[bytes] = ()) -> Probe:
    """What measures a quantity, in its plain unit (W, var, VA, V, A, Hz, Wh, varh, VAh, deg, 1).

    Tariffs (group E): the first one runs all the time, so 0 and 1 are the same and the others stay at zero.

    Args:
        obis: The quantity.
        told: Codes of what the site says of itself.

    Raises:
        ValueError: The simulated site has no such quantity.
    """
    if obis.code in told:
        return lambda state: state.told[obis.code]
    if obis == OPERATING_STATE:
        return lambda _state: Fraction(0)
    medium, _channel, group, what, tariff, _ = obis.code
    kind, phase = _phase(group)
    if medium == ELECTRICITY and what == INSTANTANEOUS:
        if special := _SPECIAL.get(group):
            return special
        if now := _NOW.get(kind):
            return lambda state: now(state, phase)
    if medium == ELECTRICITY and what == ENERGY and (since := _SINCE.get(kind)):
        if tariff > 1:
            return lambda _state: Fraction(0)
        return lambda state: Fraction(since(state, phase), UJ_PER_WH)
    raise ValueError(f"the simulated site has no quantity {obis}")


def _phase(group: int) -> tuple[int, int | None]:
    """Group C → (C of the sum, phase 0 to 2 or None)."""
    base = SECOND_RANGE if group >= SECOND_RANGE else 0
    steps, kind = divmod(group - base, PHASE_STEP)
    return kind + base, steps - 1 if 1 <= steps <= PHASES else None
