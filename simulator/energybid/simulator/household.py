"""A site's electricity as physics: recorded energy per half hour turned into power, voltage and current at any moment.

Here live the recorded series and the arithmetic that spreads it over time; no registers, no clock, no I/O. A state is
a function of replay time and seed alone.

All of it is integer arithmetic. A half hour's energy is divided among six blocks, a block's among the phases and a
phase's among 300 seconds, each time so that the parts add up to the whole (``divide``). Within a second power is
constant. So energy is the exact integral of power: power in mW over milliseconds gives µJ, nothing is rounded twice.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from csv import DictReader
from fractions import Fraction
from functools import lru_cache
from importlib.resources import files
from itertools import accumulate, pairwise
from math import cos, isqrt, pi
from typing import NamedTuple

ROW_MS = 1_800_000
"""A row of the recorded series: half an hour."""
BLOCK_MS = 300_000
BLOCKS = ROW_MS // BLOCK_MS
BLOCKS_PER_DAY = 288
SECONDS = BLOCK_MS // 1000
MJ_PER_WH = 3_600_000
"""Millijoules in a watt-hour."""
UJ_PER_WH = 1000 * MJ_PER_WH
PHASES = 3
NOMINAL_MV = 230_000
NOMINAL_MHZ = 50_000

Three = tuple[int, int, int]


class State(NamedTuple):
    """What a perfect instrument would see at one moment; every tuple holds phases 1, 2, 3."""

    power_mw: Three
    """Active power, positive when the site imports."""
    reactive_mvar: Three
    """Reactive power, positive when inductive."""
    apparent_mva: Three
    voltage_mv: Three
    """Phase to neutral."""
    frequency_mhz: int
    import_uj: Three
    """Active energy imported since the replay began, µJ, with what was there."""
    export_uj: Three
    reactive_uj: Three
    """Reactive energy since the replay began, µvar·s; never negative here."""
    apparent_uj: Three
    """Apparent energy since the replay began, µVA·s."""
    currents_ma: Three | None = None
    """Magnitudes of the currents, where they do not follow from the others: to a meter that is wired wrongly."""
    told: Mapping[bytes, Fraction] = {}
    """What a device says of itself beside electricity, by OBIS code, in plain units."""

    def current_ma(self, phase: int) -> int:
        """Magnitude of the current in one phase (0 to 2)."""
        if self.currents_ma is not None:
            return self.currents_ma[phase]
        return self.apparent_mva[phase] * 1000 // self.voltage_mv[phase]


class Phase(NamedTuple):
    """One phase over one block."""

    sign: int
    """1 while importing, -1 while exporting."""
    energy_mj: int
    """Magnitude of the active energy of the block, mJ."""
    reactive: int
    """Reactive power per 1,000 of active power."""
    apparent: int
    """Apparent power per 1,000 of active power."""

    def of(self, energy_mj: int) -> tuple[int, int, int, int]:
        """Import, export, reactive and apparent energy that belong to so much active energy, mJ each."""
        return (
            energy_mj if self.sign > 0 else 0,
            energy_mj if self.sign < 0 else 0,
            energy_mj * self.reactive // 1000,
            energy_mj * self.apparent // 1000,
        )

    def signed(self, marks_mj: Sequence[int]) -> list[int]:
        """Energies that belong to it, negative while it exports."""
        return [self.sign * mark for mark in marks_mj]


class Net(NamedTuple):
    """What a household takes in one block, all phases together."""

    marks_mj: tuple[int, ...]
    """Energy from the block's beginning to each of its seconds, mJ; falling while it exports."""
    least_mw: int
    most_mw: int
    within_ms: int
    """The moment that was asked for, from the block's beginning."""

    def _since_uj(self, ms: int) -> int:
        second, part = divmod(ms, 1000)
        mark = self.marks_mj[second]
        return mark * 1000 + ((self.marks_mj[second + 1] - mark) * part if part else 0)

    def energy_uj(self, from_ms: int, to_ms: int) -> int:
        """Energy between two moments of the block, µJ, exact."""
        return self._since_uj(to_ms) - self._since_uj(from_ms)

    @property
    def power_mw(self) -> int:
        """At the moment that was asked for."""
        second = self.within_ms // 1000
        return self.marks_mj[second + 1] - self.marks_mj[second]


CHANNELS = 4
"""Energies that ``Phase.of`` names."""

Ledger = tuple[tuple[int, ...], ...]
"""Energy before a block by phase and channel, mJ."""


@lru_cache(maxsize=1)
def recorded_wh() -> tuple[int, ...]:
    """The household carried in ``data/`` (its README names the source): watt-hours per half hour, 14 days."""
    path = files("energybid.simulator") / "data" / "uk_household_2014-02-13_14_days.csv"
    with path.open(encoding="ascii") as stream:
        return tuple(round(float(row["value"]) * 1000) for row in DictReader(stream))


def divide(total: int, weights: Sequence[int]) -> list[int]:
    """Parts of ``total`` in proportion to ``weights`` that add up to exactly ``total``."""
    whole = sum(weights)
    marks = [total * w // whole for w in accumulate(weights, initial=0)]
    return [b - a for a, b in pairwise(marks)]


def _chance(*parts: object) -> random.Random:
    """A generator that the parts alone determine; only its ``random()`` is used, which Python keeps stable."""
    return random.Random("/".join(map(str, parts)))  # noqa: S311  a replay must repeat itself


def _between(chance: random.Random, low: int, high: int) -> int:
    return low + int((high - low) * chance.random())


def chance_between(seed: str, what: str, low: int, high: int) -> int:
    """A number from ``low`` to below ``high`` that follows from the seed and what it is for."""
    return _between(_chance(seed, what), low, high)


def _texture(chance: random.Random) -> list[int]:
    """One weight for each second of a block: appliances that switch, and a little noise."""
    weights: list[int] = []
    while len(weights) < SECONDS:
        level = _between(chance, 500, 1500)
        weights += [level + _between(chance, -20, 20) for _ in range(_between(chance, 10, 90))]
    return weights[:SECONDS]


class Site(NamedTuple):
    """What may differ from the recorded household."""

    load_permille: int = 1000
    """The recorded energy is multiplied by this / 1,000; at least 1."""
    pv_peak_w: int = 0
    """Peak of a photovoltaic plant behind the meter, W."""
    phases: int = PHASES
    """1 puts everything on the first phase."""
    import_wh: int = 0
    """What had been imported when the replay begins, Wh; some reactive energy with it."""
    begin_ms: int = 0
    """Moment of the recording at which the replay begins, ms ≥ 0; taken down to whole blocks."""


RECORDED = Site()


class Household:
    """The replay of a recorded site, repeated for ever."""

    def __init__(self, seed: str, site: Site = RECORDED, *, wh_per_row: Sequence[int] | None = None) -> None:
        """Choose the site.

        Args:
            seed: Texture, voltages and power factors follow from it.
            site: What differs from the recorded household.
            wh_per_row: Energy of each half hour, Wh ≥ 0; the recorded household where it is None.
        """
        self._seed = seed
        self._rows = tuple(recorded_wh() if wh_per_row is None else wh_per_row)
        self._load = site.load_permille
        self._pv_peak_w = site.pv_peak_w
        chance = _chance(seed, "phases")
        self._shares = [_between(chance, 250, 450) for _ in range(PHASES)] if site.phases == PHASES else [1, 0, 0]
        self._initial: Ledger = tuple(
            (mj, 0, mj * 3 // 10, mj * 21 // 20) for mj in divide(site.import_wh * MJ_PER_WH, self._shares)
        )
        self._first = site.begin_ms // BLOCK_MS
        self._ledger = (self._first, self._initial)
        self._block = lru_cache(maxsize=4)(self._make_block)
        self._curves = lru_cache(maxsize=4)(self._make_curves)
        self._knots = lru_cache(maxsize=8)(self._make_knots)
        self._nets = lru_cache(maxsize=4)(self._make_net)

    # ------------------------------------------------------------ the whole of it, for what hangs beside it

    @property
    def shares(self) -> Sequence[int]:
        """How the phases share."""
        return self._shares

    def left_in_block_ms(self, at_ms: int) -> int:
        """From a moment of the replay to the end of its block."""
        return BLOCK_MS - at_ms % BLOCK_MS

    def net(self, at_ms: int) -> Net:
        """The block of a moment of the replay."""
        index, within = divmod(at_ms, BLOCK_MS)
        return self._nets(index + self._first)._replace(within_ms=within)

    def frequency_mhz(self, at_ms: int) -> int:
        """The grid's."""
        return self._between_knots(at_ms + self._first * BLOCK_MS)[PHASES]

    def voltage_mv(self, at_ms: int, power_mw: Three) -> Three:
        """Phase to neutral, while so much is taken."""
        return self._voltage(at_ms + self._first * BLOCK_MS, power_mw)

    def _make_net(self, index: int) -> Net:
        phases = zip(self._block(index), self._curves(index), strict=True)
        marks = tuple(map(sum, zip(*(phase.signed(curve) for phase, curve in phases), strict=True)))
        powers = [b - a for a, b in pairwise(marks)]
        return Net(marks, min(powers), max(powers), 0)

    # ------------------------------------------------------------ alone

    def state(self, at_ms: int) -> State:
        """The site at a moment of the replay.

        Args:
            at_ms: Milliseconds since the replay began, ≥ 0. Cheapest when it only grows.
        """
        at_ms += self._first * BLOCK_MS
        index, within = divmod(at_ms, BLOCK_MS)
        second, ms = divmod(within, 1000)
        before = self._before(index)
        power, energy = [], []
        for phase, curve, past in zip(self._block(index), self._curves(index), before, strict=True):
            start, end = phase.of(curve[second]), phase.of(curve[second + 1])
            slope = [b - a for a, b in zip(start, end, strict=True)]
            power.append((slope[0] - slope[1], slope[2], slope[3]))
            energy.append([(p + a) * 1000 + s * ms for p, a, s in zip(past, start, slope, strict=True)])
        active, reactive, apparent = _three(power)
        imported, exported, reactive_uj, apparent_uj = _three(energy)
        return State(
            power_mw=active,
            reactive_mvar=reactive,
            apparent_mva=apparent,
            voltage_mv=self._voltage(at_ms, active),
            frequency_mhz=self._between_knots(at_ms)[PHASES],
            import_uj=imported,
            export_uj=exported,
            reactive_uj=reactive_uj,
            apparent_uj=apparent_uj,
        )

    def _before(self, index: int) -> Ledger:
        """Energy before a block; goes on from the last answer."""
        known, ledger = self._ledger if self._ledger[0] <= index else (self._first, self._initial)
        for i in range(known, index):
            ledger = tuple(
                tuple(a + b for a, b in zip(past, phase.of(phase.energy_mj), strict=True))
                for past, phase in zip(ledger, self._block(i), strict=True)
            )
        self._ledger = (index, ledger)
        return ledger

    def _make_block(self, index: int) -> tuple[Phase, ...]:
        row, part = divmod(index, BLOCKS)
        weights = _chance(self._seed, "row", row)
        row_mj = self._rows[row % len(self._rows)] * self._load * (MJ_PER_WH // 1000)
        site_mj = divide(row_mj, [_between(weights, 600, 1400) for _ in range(BLOCKS)])[part]
        chance = _chance(self._seed, "block", index)
        net_mj = site_mj - self._pv_mj(index, chance)
        shares = [share * _between(chance, 900, 1100) for share in self._shares]
        return tuple(
            Phase(1 if net_mj >= 0 else -1, energy_mj, reactive, isqrt(1_000_000 + reactive * reactive) + 1)
            for energy_mj, reactive in zip(
                divide(abs(net_mj), shares), [_between(chance, 80, 420) for _ in range(PHASES)], strict=True
            )
        )

    def _pv_mj(self, index: int, chance: random.Random) -> int:
        """What the plant makes in a block: a cosine around noon, dimmed by clouds."""
        hours_from_noon = (index % BLOCKS_PER_DAY - BLOCKS_PER_DAY // 2) * 24 / BLOCKS_PER_DAY
        height = max(0, round(1000 * cos(hours_from_noon * pi / 12)))
        return self._pv_peak_w * SECONDS * height * _between(chance, 600, 1000) // 1000

    def _make_curves(self, index: int) -> tuple[list[int], ...]:
        """For each phase the magnitude of its energy at each second of the block, mJ: 301 marks."""
        chance = _chance(self._seed, "curve", index)
        return tuple(
            list(accumulate(divide(phase.energy_mj, _texture(chance)), initial=0)) for phase in self._block(index)
        )

    def _make_knots(self, index: int) -> tuple[int, ...]:
        """Open-circuit voltages and the frequency at the start of a block."""
        chance = _chance(self._seed, "grid", index)
        voltages = [NOMINAL_MV + 3000 + _between(chance, -3000, 3000) for _ in range(PHASES)]
        return (*voltages, NOMINAL_MHZ + _between(chance, -30, 30))

    def _between_knots(self, at_ms: int) -> list[int]:
        index, within = divmod(at_ms, BLOCK_MS)
        return [
            a + (b - a) * within // BLOCK_MS for a, b in zip(self._knots(index), self._knots(index + 1), strict=True)
        ]

    def _voltage(self, at_ms: int, power_mw: Three) -> Three:
        """Falls by 1 V for each 1.15 kW of the recorded household: a supply of about 0.2 Ω."""
        return _triple(
            open_mv - mw // (1150 * self._load // 1000 or 1)
            for open_mv, mw in zip(self._between_knots(at_ms), power_mw, strict=False)
        )


def _triple(values: Iterable[int]) -> Three:
    a, b, c = values
    return a, b, c


def _three(rows: Sequence[Sequence[int]]) -> list[Three]:
    """Rows by phase → columns by channel."""
    return [_triple(column) for column in zip(*rows, strict=True)]
