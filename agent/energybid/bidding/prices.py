"""A model of the real-time price around the day-ahead price, learned from what was seen.

The deviation of real time from day ahead, scaled by the level of the day-ahead price, moves through learned bins; so
does its running mean over some hours, which tells a spike from a tight afternoon. Bin and running-mean bin together are
the state of a Markov chain with a transition matrix for each block of hours. Matrices are counts, shrunk towards the
whole day's, and these towards a chain in which the running mean follows from the deviation. Needs numpy (extra
``bidding``). Pure. Prices are money per MWh; day-ahead prices are known ahead, real-time ones afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from energybid.bidding.horizon import Outlook, Stage
from energybid.bidding.packed import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = NDArray[np.float64]
FORMAT = 2
"""Of the state; another one is not taken up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How fine the chain is; chosen on 2018, see ``docs/forecasting.md``."""

    bins: int = 16
    """Of the deviation."""
    slow_bins: int = 8
    """Of its running mean."""
    slow_steps: float = 36.0
    """Time constant of the running mean, steps."""
    blocks: int = 12
    """Of hours, each with its own matrix; divides the day."""
    power: float = 0.5
    """Deviations grow with this power of the day-ahead price..."""
    least_price: float = 10.0
    """... above this one."""
    spread: float = 5.0
    """Bins end at quantiles that are even in log odds up to this: fine in the tails, where money is made."""
    slow_spread: float = 4.0
    block_weight: float = 20.0
    """Transitions of the whole day that count as much as those of a block."""
    prior_weight: float = 2.0
    """The same of the prior chain against the whole day's counts."""


class Place(NamedTuple):
    """Where the price is."""

    deviation: float
    """Scaled, of the last step."""
    slow: float
    """Its running mean."""


class Corner(NamedTuple):
    """A state and its weight in an interpolation."""

    state: int
    weight: float


@dataclass(slots=True)
class PriceModel:
    """What has been learned. Made by ``learned`` or ``restored``."""

    shape: Shape
    steps_per_day: int
    edges: Array
    """Between bins of the scaled deviation."""
    slow_edges: Array
    levels: Array
    """Mean scaled deviation of each bin, rising."""
    slow_levels: Array
    counts: Array
    """Blocks x states x states; a state is slow bin * bins + bin."""
    _matrices: Array | None = field(default=None, repr=False)

    @classmethod
    def learned(
        cls, real_time: Array, day_ahead: Array, *, steps_per_day: int, shape: Shape | None = None
    ) -> PriceModel:
        """Learn from history.

        Args:
            real_time: Of consecutive steps from the start of a day; NaN where not seen.
            day_ahead: Of the same steps.
            steps_per_day: A multiple of the shape's blocks.
            shape: How fine; None: as usual.

        Raises:
            ValueError: Too little history, or days that blocks do not divide.
        """
        shape = shape or Shape()
        if steps_per_day % shape.blocks:
            raise ValueError(f"{steps_per_day} steps of a day are no multiple of {shape.blocks} blocks")
        deviation = scaled(shape, real_time, day_ahead)
        slow = running_mean(deviation, shape.slow_steps)
        seen = deviation[np.isfinite(deviation)]
        if len(seen) < steps_per_day:
            raise ValueError("a price model needs a day of prices at least")
        edges, slow_edges = _edges(seen, shape.bins, shape.spread), _edges(slow, shape.slow_bins, shape.slow_spread)
        levels, slow_levels = _means(seen, edges), _means(slow, slow_edges)
        states = shape.bins * shape.slow_bins
        made = cls(
            shape, steps_per_day, edges, slow_edges, levels, slow_levels, np.zeros((shape.blocks, states, states))
        )
        made._count(deviation, slow)
        return made

    def learn(self, real_time: Array, day_ahead: Array, place: Place, *, keep: float = 1.0) -> Place:
        """A day is over: count its transitions; bins stay.

        Args:
            real_time: Of the day's steps; NaN where not seen.
            day_ahead: Of the same steps.
            place: At the end of the day before.
            keep: What the counts so far are worth beside the day's, at most 1.

        Returns:
            The place at the end of the day.
        """
        deviation = np.concatenate(([place.deviation], scaled(self.shape, real_time, day_ahead)))
        slow = np.concatenate(([place.slow], running_mean(deviation[1:], self.shape.slow_steps, place.slow)))
        self.counts *= keep
        self._count(deviation, slow, first=-1)
        last = deviation[np.isfinite(deviation)][-1]
        return Place(float(last), float(slow[-1]))

    def _count(self, deviation: Array, slow: Array, *, first: int = 0) -> None:
        states = self._states(deviation, slow)
        steps = np.arange(first, first + len(states)) % self.steps_per_day
        block = steps * self.shape.blocks // self.steps_per_day
        seen = np.isfinite(deviation)
        both = seen[1:] & seen[:-1]
        np.add.at(self.counts, (block[1:][both], states[:-1][both], states[1:][both]), 1.0)
        self._matrices = None

    def _states(self, deviation: Array, slow: Array) -> NDArray[np.intp]:
        return np.searchsorted(self.slow_edges, slow) * self.shape.bins + np.searchsorted(self.edges, deviation)

    @property
    def states(self) -> int:
        """How many."""
        return int(self.counts.shape[1])

    @property
    def matrices(self) -> Array:
        """Blocks x states x states: how likely each state (column) is after each (row), for steps in the block."""
        if self._matrices is None:
            shape = self.shape
            whole = self.counts.sum(axis=0)
            day = _shrunk(whole, self._prior(whole), shape.prior_weight)
            self._matrices = np.stack([_shrunk(counts, day, shape.block_weight) for counts in self.counts])
        return self._matrices

    def matrix(self, step: int) -> Array:
        """From the step before to this step of the day."""
        return np.asarray(self.matrices[step % self.steps_per_day * self.shape.blocks // self.steps_per_day])

    def _prior(self, whole: Array) -> Array:
        """Deviations as if the running mean told nothing; it moves as it must."""
        bins, slow_bins = self.shape.bins, self.shape.slow_bins
        fast = whole.reshape(slow_bins, bins, slow_bins, bins).sum(axis=(0, 2))
        fast = fast + 0.5 * np.eye(bins) + 0.5 * (fast.sum(axis=0) + 1e-9) / (fast.sum() + 1e-9 * bins)
        fast /= fast.sum(axis=1, keepdims=True)
        moved = self.slow_levels[:, None] + (self.levels[None, :] - self.slow_levels[:, None]) / self.shape.slow_steps
        into = np.searchsorted(self.slow_edges, moved)
        prior = np.zeros((slow_bins, bins, slow_bins, bins))
        for slow in range(slow_bins):
            for after in range(bins):
                prior[slow, :, into[slow, after], after] = fast[:, after]
        return prior.reshape(slow_bins * bins, slow_bins * bins)

    def prices(self, day_ahead: float) -> Array:
        """The price of each state."""
        made: Array = day_ahead + np.tile(self.levels, self.shape.slow_bins) * float(
            scale(self.shape, np.array(day_ahead))
        )
        return made

    def place(self, price: float, day_ahead: float, before: Place) -> Place:
        """Where a step's price leads."""
        deviation = float((price - day_ahead) / scale(self.shape, np.array(day_ahead)))
        return Place(deviation, before.slow + (deviation - before.slow) / self.shape.slow_steps)

    def ending(self, real_time: Array, day_ahead: Array) -> Place:
        """Where the prices of consecutive steps lead; steps that were not seen change nothing."""
        deviation = scaled(self.shape, real_time, day_ahead)
        slow = running_mean(deviation, self.shape.slow_steps)
        return Place(float(deviation[np.isfinite(deviation)][-1]), float(slow[-1]))

    def carried(self, place: Place, steps: Sequence[int]) -> Place:
        """Where the price is expected after steps of the day (their numbers) that were not seen."""
        if not len(steps):
            return place
        row = self.weights(place)
        for step in steps:
            row = row @ self.matrix(step)
        table = row.reshape(self.shape.slow_bins, -1)
        return Place(float(table.sum(axis=0) @ self.levels), float(table.sum(axis=1) @ self.slow_levels))

    def merged(self, fast: int, slow: int) -> PriceModel:
        """The same with fewer states: each so many bins, and running-mean bins, as one."""
        bins, slow_bins = self.shape.bins // fast, self.shape.slow_bins // slow
        shape = replace(self.shape, bins=bins, slow_bins=slow_bins)
        split = (len(self.counts), slow_bins, slow, bins, fast, slow_bins, slow, bins, fast)
        counts = self.counts.reshape(split).sum(axis=(2, 4, 6, 8)).reshape(len(self.counts), *[bins * slow_bins] * 2)
        seen = self.counts.sum(axis=(0, 1)).reshape(self.shape.slow_bins, self.shape.bins)
        levels = _grouped(self.levels, seen.sum(axis=0), fast)
        slow_levels = _grouped(self.slow_levels, seen.sum(axis=1), slow)
        edges, slow_edges = self.edges[fast - 1 :: fast], self.slow_edges[slow - 1 :: slow]
        return PriceModel(shape, self.steps_per_day, edges, slow_edges, levels, slow_levels, counts)

    def corners(self, place: Place) -> tuple[Corner, ...]:
        """The up to four states around a place, with weights of sum 1: linear between the bins' means."""
        bins = self.shape.bins
        made = [
            Corner(slow * bins + fast, slow_share * share)
            for slow, slow_share in _between(self.slow_levels, place.slow)
            for fast, share in _between(self.levels, place.deviation)
        ]
        return tuple(corner for corner in made if corner.weight > 0)

    def weights(self, place: Place) -> Array:
        """The same as a row: one weight for each state."""
        row = np.zeros(self.states)
        for corner in self.corners(place):
            row[corner.state] += corner.weight
        return row

    def likely(self, before: Place, step: int, deviations: Array) -> Array:
        """How likely a step's deviation is to be near each of some.

        Args:
            before: Place of the price in the step before.
            step: Of the day.
            deviations: Rising.
        """
        row = self.weights(before) @ self.matrix(step)
        below = np.cumsum(row.reshape(self.shape.slow_bins, -1).sum(axis=0))[:-1]
        middles = (deviations[1:] + deviations[:-1]) / 2
        cumulative = np.interp(middles, self.edges, below) if len(below) else np.zeros(len(middles))
        made: Array = np.diff(np.concatenate(([0.0], cumulative, [1.0]))) + 1e-6
        return made

    def outlook(self, day_ahead: Array, *, step: int, later: float) -> Outlook:
        """Prices to come, for any asset's value function.

        Args:
            day_ahead: Known prices, from the step after the round.
            step: The round's step of the day.
            later: Price after the last of them.
        """
        blocks, rows = self.shape.blocks, list(self.matrices)  # steps of a block share one object
        stages = [
            Stage(
                self.prices(float(price)),
                rows[(step + 1 + n) % self.steps_per_day * blocks // self.steps_per_day],
            )
            for n, price in enumerate(day_ahead)
        ]
        return Outlook(24 / self.steps_per_day, tuple(stages), later)

    def state(self) -> dict[str, Any]:
        """All of it, for ``packed``; counts that are 0 take no room."""
        places = np.flatnonzero(self.counts)
        shape = {name: getattr(self.shape, name) for name in Shape.__slots__}
        return {
            "format": FORMAT,
            "shape": shape,
            "steps_per_day": self.steps_per_day,
            "edges": self.edges.tolist(),
            "slow_edges": self.slow_edges.tolist(),
            "levels": self.levels.tolist(),
            "slow_levels": self.slow_levels.tolist(),
            "gaps": np.diff(places, prepend=0),
            "counts": self.counts.ravel()[places],
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> PriceModel:
        """Take up what ``state`` gave.

        Raises:
            ValueError: Of another format, or damaged.
        """
        if state.get("format") != FORMAT:
            raise ValueError(f"the price model's state has format {state.get('format')}, not {FORMAT}")
        try:
            return cls._restored(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the price model's state is damaged: {error!r}") from None

    @classmethod
    def _restored(cls, state: dict[str, Any]) -> PriceModel:
        shape = Shape(**state["shape"])
        states = shape.bins * shape.slow_bins
        counts = np.zeros(shape.blocks * states * states)
        places = np.cumsum(plain(state["gaps"]), dtype=np.int64)
        if len(places) and places.max() >= len(counts):
            raise ValueError("it counts transitions that it has not")
        counts[places] = plain(state["counts"])
        names = ("edges", "slow_edges", "levels", "slow_levels")
        edges, slow_edges, levels, slow_levels = (np.array(state[name], dtype=float) for name in names)
        sizes = (shape.bins - 1, shape.slow_bins - 1, shape.bins, shape.slow_bins)
        if tuple(map(len, (edges, slow_edges, levels, slow_levels))) != sizes or state["steps_per_day"] % shape.blocks:
            raise ValueError("its edges, levels or steps do not fit its shape")
        blocks = counts.reshape(shape.blocks, states, states)
        return cls(shape, state["steps_per_day"], edges, slow_edges, levels, slow_levels, blocks)


def scale(shape: Shape, day_ahead: Array) -> Array:
    """What deviations are counted in, at a day-ahead price."""
    return np.asarray(np.maximum(np.abs(day_ahead), shape.least_price) ** shape.power)


def scaled(shape: Shape, real_time: Array, day_ahead: Array) -> Array:
    """Deviations."""
    return np.asarray((real_time - day_ahead) / scale(shape, day_ahead))


def running_mean(deviation: Array, steps: float, start: float = 0.0) -> Array:
    """With exponential weights; what was not seen changes nothing."""
    mean, result = start, np.empty(len(deviation))
    for number, value in enumerate(deviation.tolist()):
        if value == value:  # noqa: PLR0124 (not NaN)
            mean += (value - mean) / steps
        result[number] = mean
    return result


def _edges(values: Array, bins: int, spread: float) -> Array:
    odds = np.linspace(-spread, spread, bins + 1)[1:-1]
    return np.asarray(np.quantile(values, 1 / (1 + np.exp(-odds))))


def _means(values: Array, edges: Array) -> Array:
    """Of each bin; an empty one (values that repeat) stands at its edge, a hair above the one before."""
    bins = np.searchsorted(edges, values)
    count = np.bincount(bins, minlength=len(edges) + 1)
    means = np.bincount(bins, weights=values, minlength=len(edges) + 1) / np.maximum(count, 1)
    means = np.where(count > 0, means, np.append(edges, edges[-1] if len(edges) else 0.0))
    return np.asarray(np.maximum.accumulate(means) + 1e-9 * np.arange(len(means)))


def _grouped(levels: Array, seen: Array, size: int) -> Array:
    weights = seen.reshape(-1, size) + 1e-9
    return np.asarray((levels.reshape(-1, size) * weights).sum(axis=1) / weights.sum(axis=1))


def _shrunk(counts: Array, towards: Array, weight: float) -> Array:
    return np.asarray((counts + weight * towards) / (counts.sum(axis=1, keepdims=True) + weight))


def _between(levels: Array, value: float) -> tuple[tuple[int, float], ...]:
    """The levels to either side and their weights; beyond the ends, the end."""
    if len(levels) == 1:
        return ((0, 1.0),)
    high = min(max(int(np.searchsorted(levels, value)), 1), len(levels) - 1)
    share = min(max((value - levels[high - 1]) / (levels[high] - levels[high - 1]), 0.0), 1.0)
    return ((high - 1, float(1 - share)), (high, float(share)))
