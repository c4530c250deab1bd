"""A battery against the price model, five-minute steps: fast enough to trade a year in a minute or two.

The same value function as ``values`` gives for a ``Battery`` with a price model's outlook (a test holds them together),
kept as marginal values of stored energy: for a battery alone these only fall with the energy, so that a step back is
clipping (Zheng, Jaworski and Xu, "Energy storage arbitrage in real-time markets", arXiv 2204.03770). And the battery's
bid: the price of the round is itself news of prices to come, so each price on the curve is met by the value function of
the state that it leads to. Where news outweighs the price itself (a rise that promises more), the wish would fall with
a falling price; a bid can not. Then the curve is the best among all monotone ones, given how likely the prices are.
Needs numpy (extra ``bidding``). Pure. Energy is in parts of the capacity, prices are money per MWh.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from energybid.bidding.prices import Array, Place, PriceModel

Single = NDArray[np.float32]
"""Value functions of a year: half the memory and time, and seven digits of a price."""
Values = NDArray[np.floating[Any]]
CELLS = 100
"""Of the capacity, each with one marginal value."""
WALL = 1e9
"""Marginal value beyond full (negative) and empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A battery in parts of its capacity."""

    power: float
    """Charge and discharge at the meter, in capacities per hour: 0.5 empties in two hours."""
    efficiency: float = 0.95
    """Each way."""
    wear: float = 10.0
    """Money per MWh discharged, at the meter."""

    def up(self, step_h: float) -> float:
        """Most stored in a step."""
        return self.power * self.efficiency * step_h

    def down(self, step_h: float) -> float:
        """Most taken out in a step."""
        return self.power / self.efficiency * step_h

    def shifts(self, step_h: float, cells: int) -> Shifts:
        """Of a full step."""
        return Shifts(self.up(step_h) * cells, self.down(step_h) * cells)

    def limits(self, price: Array) -> tuple[Array, Array]:
        """Marginal values above which to charge and below which to discharge, at these prices.

        The second is never above the first: at prices so negative that to turn energy in a circle pays, charging wins.
        """
        charge = price / self.efficiency
        return charge, np.minimum((price - self.wear) * self.efficiency, charge)

    def cash(self, change: Array | float, price: Array | float) -> Array | float:
        """Money of a change of what is stored, per MWh of capacity."""
        bought = np.maximum(change, 0.0) / self.efficiency
        sold = np.maximum(-change, 0.0) * self.efficiency
        return -price * bought + (price - self.wear) * sold


class Shifts:
    """Marginal values as seen after a full step up or down."""

    def __init__(self, up: float, down: float, floor: int = 0) -> None:
        """A step.

        Args:
            up: Cells that a full step fills.
            down: Cells that it empties.
            floor: Cells at the bottom that are never emptied.
        """
        self._up, self._down, self._floor = divmod(up, 1.0), divmod(down, 1.0), floor

    def up(self, worth: Single) -> Single:
        """Of a step fuller; beyond full it is worth nothing at all."""
        cells = worth.shape[1]
        whole, part = min(int(self._up[0]), cells - 1), self._up[1]
        made = np.full_like(worth, -WALL)
        made[:, : cells - whole] = worth[:, whole:]
        made[:, : cells - whole - 1] += part * (worth[:, whole + 1 :] - made[:, : cells - whole - 1])
        return made

    def down(self, worth: Single) -> Single:
        """Of a step emptier; beyond empty there is nothing to have."""
        cells = worth.shape[1]
        floor = self._floor
        whole, part = min(int(self._down[0]), cells - floor - 1), self._down[1]
        made = np.full_like(worth, WALL)
        made[:, floor + whole :] = worth[:, floor : cells - whole]
        made[:, floor + whole + 1 :] += part * (worth[:, floor : cells - whole - 1] - made[:, floor + whole + 1 :])
        return made

    def back(self, worth: Single, charge: Single, discharge: Single) -> Single:
        """Before a step whose limits (columns) are these."""
        filled = np.minimum(worth, np.maximum(charge, self.up(worth)))
        drained = np.minimum(discharge, self.down(worth))
        if self._floor:
            drained[:, : self._floor] = -WALL
        return np.maximum(filled, drained)


def marginal_values(model: PriceModel, cell: Cell, day_ahead: Array, *, step: int, keep: int, final: Array) -> Single:
    """What stored energy is worth at the end of each step, by the price state of the step.

    Args:
        model: Of prices.
        cell: The battery.
        day_ahead: Known or expected, from this step to the horizon.
        step: The first one's place in the day.
        keep: Steps of which the values are wanted, from the first.
        final: Marginal value of each cell at the horizon, falling.

    Returns:
        Steps x states x cells.
    """
    shifts = cell.shifts(24 / model.steps_per_day, len(final))
    matrices = [matrix.astype(np.float32) for matrix in model.matrices]
    blocks, day = model.shape.blocks, model.steps_per_day
    kept = np.empty((keep, model.states, len(final)), dtype=np.float32)
    before = np.tile(final.astype(np.float32), (model.states, 1))
    for number in range(len(day_ahead) - 1, -1, -1):
        worth = matrices[(step + number + 1) % day * blocks // day] @ before
        if number < keep:
            kept[number] = worth
        limits = cell.limits(model.prices(float(day_ahead[number])))
        charge, discharge = (limit.astype(np.float32)[:, None] for limit in limits)
        before = shifts.back(worth, charge, discharge)
    return kept


def targets(cell: Cell, worth: Values, stored: float, prices: Array, step_h: float) -> Array:
    """What is best stored after the step at each price.

    Args:
        cell: The battery.
        worth: Prices x cells: marginal values that hold at each price; falling along the cells.
        stored: Before the step.
        prices: Of the step.
        step_h: Its length, hours.
    """
    charge, discharge = cell.limits(prices)
    fill = np.minimum(crossing(worth, charge), min(stored + cell.up(step_h), 1.0))
    drain = np.maximum(crossing(worth, discharge), max(stored - cell.down(step_h), 0.0))
    return np.where(fill > stored, fill, np.where(drain < stored, drain, stored))


def crossing(worth: Values, limit: Values) -> Array:
    """Where a falling row of cells passes a limit; between the middles of cells it is linear."""
    cells = worth.shape[1]
    count = (worth > limit[:, None]).sum(axis=1)
    rows = np.arange(len(worth))
    high, low = worth[rows, np.maximum(count - 1, 0)], worth[rows, np.minimum(count, cells - 1)]
    share = np.clip((high - limit) / np.maximum(high - low, 1e-9), 0.0, 1.0)
    inner = (count - 0.5 + share) / cells
    return np.where(count == 0, 0.0, np.where(count == cells, 1.0, inner))


class Wish(NamedTuple):
    """What a battery does at any price of a round: a falling staircase."""

    prices: Array
    """Rising: up to and including each of them, what is stored after the round is the target beside it."""
    targets: Array
    """Falling; one more than prices: the last holds above all of them."""
    moved: bool
    """Whether the wish was not monotone by itself."""

    def at(self, price: float) -> float:
        """What is stored after the round, at its price."""
        return float(self.targets[np.searchsorted(self.prices, price)])


class Trader:
    """Makes the bids of one battery between two solutions of its value function."""

    def __init__(self, model: PriceModel, cell: Cell) -> None:
        """Prepare what does not change between rounds.

        Args:
            model: Of prices.
            cell: The battery.
        """
        self._model, self._cell = model, cell
        self._step_h = 24 / model.steps_per_day
        levels = model.levels
        middles = (levels[1:] + levels[:-1]) / 2
        beyond = (levels[:1] * 2 - 1.0, levels[-1:] * 2 + 1.0)
        self._deviations = np.sort(np.concatenate((levels, middles, *beyond)))

    def wish(self, worth: Single, stored: float, day_ahead: float, before: Place, step: int) -> Wish:
        """The curve of a round, from what is known before it: the price of the step before.

        Args:
            worth: States x cells, at the end of the round.
            stored: Now.
            day_ahead: Of the round.
            before: Place of the price in the step before.
            step: The round's place in the day.
        """
        coarse = self._deviations
        wanted = self._wanted(worth, stored, day_ahead, before, coarse)
        jumps = np.flatnonzero(np.abs(np.diff(wanted)) > 1e-9)  # noqa: PLR2004 (less is nothing)
        if len(jumps) == 0:
            return Wish(np.empty(0), wanted[:1], moved=False)
        low, high = coarse[jumps], coarse[jumps + 1]
        inner = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, 10)[None, 1:-1]
        fine = np.sort(np.concatenate((coarse, inner.ravel())))
        wanted = self._wanted(worth, stored, day_ahead, before, fine)
        moved = bool((np.diff(wanted) > 1e-9).any())  # noqa: PLR2004
        if moved:
            wanted = self._monotone(worth, stored, day_ahead, before, step, fine, wanted)
        return self._stairs(fine, wanted, day_ahead, moved=moved)

    def _stairs(self, deviations: Array, wanted: Array, day_ahead: float, *, moved: bool) -> Wish:
        prices = self._prices(deviations, day_ahead)
        changes = np.flatnonzero(np.diff(wanted) < 0)
        # Between two prices that want different things the limit stands in the middle.
        limits = (prices[changes] + prices[changes + 1]) / 2
        return Wish(limits, np.concatenate((wanted[changes], wanted[-1:])), moved)

    def _prices(self, deviations: Array, day_ahead: float) -> Array:
        unit = max(abs(day_ahead), self._model.shape.least_price) ** self._model.shape.power
        return np.asarray(day_ahead + deviations * unit)

    def _wanted(self, worth: Single, stored: float, day_ahead: float, before: Place, deviations: Array) -> Array:
        rows = self._rows(worth, before, deviations)
        return targets(self._cell, rows, stored, self._prices(deviations, day_ahead), self._step_h)

    def _rows(self, worth: Single, before: Place, deviations: Array) -> Array:
        """The value function that holds where each deviation leads."""
        model = self._model
        bins = model.shape.bins
        slow = before.slow + (deviations - before.slow) / model.shape.slow_steps
        low, share = _spots(model.levels, deviations)
        slow_low, slow_share = _spots(model.slow_levels, slow)
        high, slow_high = np.minimum(low + 1, bins - 1), np.minimum(slow_low + 1, model.shape.slow_bins - 1)
        share, slow_share = share[:, None], slow_share[:, None]
        calm = worth[slow_low * bins + low] * (1 - share) + worth[slow_low * bins + high] * share
        tight = worth[slow_high * bins + low] * (1 - share) + worth[slow_high * bins + high] * share
        return np.asarray(calm * (1 - slow_share) + tight * slow_share)

    def _monotone(  # noqa: PLR0913, PLR0917 (one round's facts)
        self,
        worth: Single,
        stored: float,
        day_ahead: float,
        before: Place,
        step: int,
        deviations: Array,
        wanted: Array,
    ) -> Array:
        """The best falling targets, exact among the levels that are wanted at some price."""
        levels = np.unique(wanted)
        rows = self._rows(worth, before, deviations)
        prices = self._prices(deviations, day_ahead)
        cells = rows.shape[1]
        integral = np.concatenate((np.zeros((len(rows), 1)), np.cumsum(rows, axis=1) / cells), axis=1)
        place = levels * cells
        whole = np.minimum(place.astype(np.intp), cells - 1)
        value = integral[:, whole] + (place - whole)[None, :] * rows[:, whole] / cells
        gain = value + self._cell.cash(levels[None, :] - stored, prices[:, None])
        return levels[best_falling(gain * self._model.likely(before, step, deviations)[:, None])]


def best_falling(gain: Array) -> NDArray[np.intp]:
    """Of all choices that never rise from one row to the next, the one with the most gain in total.

    Args:
        gain: Rows x levels.

    Returns:
        The level of each row. Time: rows x levels.
    """
    rows, levels = gain.shape
    best = np.full(levels, -inf)
    choice = np.empty((rows, levels), dtype=np.intp)
    total = np.zeros(levels)
    for number in range(rows - 1, -1, -1):
        # Row by row from the last: the rest may use this level or a lower one.
        best = gain[number] + total
        total = np.maximum.accumulate(best)
        fresh = best >= total
        choice[number] = np.maximum.accumulate(np.where(fresh, np.arange(levels), 0))
    made = np.empty(rows, dtype=np.intp)
    bound = levels - 1
    for number in range(rows):
        bound = choice[number, bound]
        made[number] = bound
    return made


def _spots(levels: Array, values: Array) -> tuple[NDArray[np.intp], Array]:
    """The level below each value and how far towards the next; beyond the ends, the end."""
    if len(levels) == 1:
        return np.zeros(len(values), dtype=np.intp), np.zeros(len(values))
    low = np.clip(np.searchsorted(levels, values) - 1, 0, len(levels) - 2)
    share = np.clip((values - levels[low]) / (levels[low + 1] - levels[low]), 0.0, 1.0)
    return low, share
