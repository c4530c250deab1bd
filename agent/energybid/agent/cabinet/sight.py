"""What a meter has seen of its installation while it was watched: medians by phase, and the course of power and energy.

Here live the places of electrical quantities (OBIS groups C and D, IEC 62056-6-1) and nothing about right and wrong.
Floats: this is for a diagnosis, never for the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from energybid.agent.cabinet.reading import Look, Value

PHASES = 3
PHASE_STEP = 20
"""Group C of phase n is that of the sum plus 20 n."""
NOW, TOTAL = 7, 8
"""Group D: the value now; the count since the meter was made."""
ELECTRICITY = 1

Three = tuple[float | None, float | None, float | None]
"""Phases 1, 2, 3; None where the meter does not say."""
NONE: Three = (None, None, None)
Numbers = dict[tuple[int, int], float]
"""(C, D) of tariff 0 → value in plain units."""


class Moment(NamedTuple):
    """One look."""

    at_s: float
    numbers: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class Energy:
    """What the meter counted while its power was watched."""

    period_s: float
    counted_wh: float
    """Imported less exported; only imported where it does not count export."""
    integrated_wh: float
    """Power over the same time, as far as it should be counted."""
    step_wh: float
    """The least that the counters show."""
    doubt_wh: float = 0.0
    """By so much the integral may be wrong: nobody looked between two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A meter's measurements; powers in W, var, VA, positive when the site imports."""

    name: str
    voltage: Three = NONE
    """Phase to neutral."""
    current: Three = NONE
    power: Three = NONE
    reactive: Three = NONE
    apparent: Three = NONE
    factor: Three = NONE
    total_power: float | None = None
    total_factor: float | None = None
    frequency: float | None = None
    energy: Energy | None = None

    @property
    def phases(self) -> tuple[int, ...]:
        """Those of which the meter says the voltage."""
        return tuple(n for n in range(PHASES) if self.voltage[n] is not None)

    @property
    def reference_v(self) -> float:
        """The highest of the voltages."""
        return max((v for v in self.voltage if v is not None), default=0.0)

    def apparent_va(self, phase: int) -> float:
        """What flows in a phase: U × I, or what the meter says; 0 where it says neither."""
        volts, amperes, said = self.voltage[phase], self.current[phase], self.apparent[phase]
        if volts is not None and amperes is not None:
            return abs(volts * amperes)
        return abs(said or 0.0)


def _electrical(look: Look) -> Iterator[tuple[tuple[int, int], Value]]:
    """The values of electricity that are of no tariff, by (C, D)."""
    for value in look.values:
        a, _, c, d, e, _ = value.register.quantity.obis.code
        if a == ELECTRICITY and e == 0:
            yield (c, d), value


def moment(look: Look) -> Moment:
    """A look's numbers in plain units."""
    return Moment(
        look.mono_s,
        {
            place: float(value.mantissa) * 10.0**value.register.quantity.exponent
            for place, value in _electrical(look)
            if value.mantissa is not None
        },
    )


def steps(look: Look) -> Numbers:
    """The least that each number changes by, in plain units."""
    return {place: 10.0**value.register.quantity.exponent for place, value in _electrical(look)}


def sight_of(name: str, looks: Sequence[Look]) -> Sight:
    """What a meter has seen in several looks, at least one of which brought values."""
    moments = [moment(look) for look in looks if look.read]
    return Sight(
        name=name,
        voltage=_three(moments, 12),
        current=_three(moments, 11),
        power=_signed(moments, 16, 1, 2),
        reactive=_signed(moments, 131, 3, 4),
        apparent=_three(moments, 9),
        factor=_three(moments, 13),
        total_power=_net(moments, 16, 1, 2, 0),
        total_factor=_median(moments, 13),
        frequency=_median(moments, 14),
        energy=_energy(moments, steps(looks[0])),
    )


def _median(moments: Iterable[Moment], group: int) -> float | None:
    known = [m.numbers[group, NOW] for m in moments if (group, NOW) in m.numbers]
    return median(known) if known else None


def _net(moments: Sequence[Moment], both: int, imported: int, exported: int, step: int) -> float | None:
    """A signed power, or the difference of two that are not."""
    signed = _median(moments, both + step)
    if signed is not None:
        return signed
    plus, minus = _median(moments, imported + step), _median(moments, exported + step)
    return None if plus is None else plus - (minus or 0.0)


def _three(moments: Sequence[Moment], group: int) -> Three:
    a, b, c = (_median(moments, group + PHASE_STEP * (n + 1)) for n in range(PHASES))
    return a, b, c


def _signed(moments: Sequence[Moment], both: int, imported: int, exported: int) -> Three:
    a, b, c = (_net(moments, both, imported, exported, PHASE_STEP * (n + 1)) for n in range(PHASES))
    return a, b, c


def _energy(moments: Sequence[Moment], step: Numbers) -> Energy | None:
    """Counted and integrated energy between the first and the last moment; None where the meter tells too little."""
    known = [m for m in moments if (1, TOTAL) in m.numbers and (16, NOW) in m.numbers]
    if len(known) < 2:  # noqa: PLR2004  a difference
        return None
    exports = all((2, TOTAL) in m.numbers for m in known)

    def counted(numbers: Numbers) -> float:
        return numbers[1, TOTAL] - (numbers[2, TOTAL] if exports else 0.0)

    joules = doubt = 0.0
    for before, after in pairwise(known):
        powers = [m.numbers[16, NOW] if exports else max(0.0, m.numbers[16, NOW]) for m in (before, after)]
        joules += sum(powers) / 2 * (after.at_s - before.at_s)
        doubt += abs(powers[1] - powers[0]) / 2 * (after.at_s - before.at_s)
    return Energy(
        period_s=known[-1].at_s - known[0].at_s,
        counted_wh=counted(known[-1].numbers) - counted(known[0].numbers),
        integrated_wh=joules / 3600,
        step_wh=step[1, TOTAL],
        doubt_wh=doubt / 3600,
    )
