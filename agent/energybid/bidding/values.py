"""What a store of energy is worth, step by step back from the end of the horizon.

A store has one number for its state (energy in Wh, temperature in degrees) and modes in which it takes or gives power.
Its value is kept on an even grid of states and is linear between the points; each step back is then exact: over the
powers of a mode the best is at an end or where the state afterwards is a point of the grid, and the best of the latter
is a maximum over a sliding window. Nothing has to be concave: a charger that is off or above its least current, a
battery that must not charge and discharge at once when prices are negative, all modes compete as they are.

Values are millionths of money, i.e. (money per MWh) * Wh. Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, inf
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from energybid.bidding.horizon import Outlook, Stage

Array = NDArray[np.float64]
NOTHING: Array = np.zeros(0)
"""What follows, where nobody asks."""
NEVER = -1e15
"""Value of what can not be; finite, so that 0 times it is 0."""
WAYS_KEPT = 16
"""Modes and drifts of which the part of the work that knows no prices is kept for other steps."""
KNOTS_FLOOR = 1e-7
"""Relative: a corner of a value function that matters less than this is none."""


class Mode(NamedTuple):
    """A way to run: a range of powers that move the state in proportion."""

    low_w: int
    high_w: int
    gain: float = 1.0
    """What a watt of import over the step adds to the state."""
    cost: float = 0.0
    """What the import costs besides its price, money per MWh; negative for a cost of export."""
    least: float = -inf
    """Hard limit: this mode never ends below this state..."""
    most: float = inf
    """... nor above this one."""


OFF = Mode(0, 0)


class Store(Protocol):
    """What the recursion asks of an asset. Steps count from 0, the round itself."""

    def grid(self) -> Array:
        """States, evenly spaced, rising; at least 2. A state beyond the ends counts as the end."""

    def drift(self, step: int, step_h: float) -> tuple[float, float]:
        """Keep and shift: without power, state x ends the step at keep * x + shift."""

    def modes(self, step: int, step_h: float) -> tuple[Mode, ...]:
        """What it may do; from every state at least one of them is open."""

    def reward(self, step: int, step_h: float, states: Array) -> Array | None:
        """What it is worth to end the step in these states, millionths of money; None: nothing."""

    def final(self, steps: int, outlook: Outlook, states: Array) -> Array:
        """What the states are worth after the last step; concave."""


class _Spots(NamedTuple):
    """Where on the grid some states are: between two points, and how far."""

    left: NDArray[np.intp]
    share: Array

    @classmethod
    def of(cls, states: Array, grid: Array) -> _Spots:
        """Beyond the ends is at the ends."""
        place = (states - grid[0]) / (grid[1] - grid[0])
        place = np.minimum(np.maximum(place, 0.0), len(grid) - 1.0)  # np.clip takes thrice as long
        index = np.minimum(place.astype(np.intp), len(grid) - 2)
        return cls(index, place - index)

    def read(self, worth: Array) -> Array:
        low: Array = worth.take(self.left, 1)
        high: Array = worth.take(self.left + 1, 1)
        high -= low
        high *= self.share
        high += low
        return high


class _Way:
    """All that one mode reaches from every state of the grid; the part of the work that knows no prices."""

    def __init__(self, grid: Array, mode: Mode, keep: float, shift: float) -> None:
        rest = keep * grid + shift
        self.still = (mode.low_w, mode.high_w, mode.least, mode.most, keep, shift) == (0, 0, -inf, inf, 1.0, 0.0)
        self._mode, self._rest, self._grid = mode, rest, grid
        if self.still:
            return
        self._low_w, self._high_w = _powers(mode, rest)
        shut = self._low_w > self._high_w
        self._shut = np.where(shut, NEVER, 0.0) if shut.any() else None
        self._low = _Spots.of(rest + mode.gain * self._low_w, grid)
        if mode.low_w < mode.high_w:
            self._high = _Spots.of(rest + mode.gain * self._high_w, grid)
            self._window()

    def _window(self) -> None:
        mode, grid = self._mode, self._grid
        spacing = grid[1] - grid[0]
        width = abs(mode.gain) * (mode.high_w - mode.low_w) / spacing
        start = self._rest + min(mode.gain * mode.low_w, mode.gain * mode.high_w)
        first = (start - grid[0]) / spacing
        self._size = 1 << max(0, int(width).bit_length() - 1)
        """Of the blocks of which two cover a window: a power of two."""
        self._pad = int(width) + 2
        begin, end = np.ceil(first).astype(np.intp), np.floor(first + width).astype(np.intp)
        # A window holds as many points as its width has whole spacings or one more: never fewer than a block, but where
        # it is narrower than a spacing and may be empty.
        empty = end < begin
        self._empty = np.where(empty, NEVER, 0.0) if empty.any() else None
        bound = len(grid) + 2 * self._pad - self._size
        self._begin = np.minimum(np.maximum(begin + self._pad, 0), bound)
        self._end = np.minimum(np.maximum(end - self._size + 1 + self._pad, 0), bound)
        barred = (grid < mode.least) | (grid > mode.most)
        self._barred = np.where(barred, NEVER, 0.0) if barred.any() else None

    def best(self, worth: Array, unit: Array) -> Array:
        """The most that each state (column) makes of what follows, at each price (row).

        Args:
            worth: Of the state after the step.
            unit: What a watt costs over the step, a column.
        """
        if self.still:
            return np.broadcast_to(worth, (max(len(unit), len(worth)), worth.shape[1]))
        result = self._low.read(worth) - unit * self._low_w
        if self._mode.low_w < self._mode.high_w:
            np.maximum(result, self._high.read(worth) - unit * self._high_w, out=result)
            np.maximum(result, self._between(worth, unit / self._mode.gain), out=result)
        if self._shut is not None:
            result += self._shut
        return result

    def _between(self, worth: Array, unit: Array) -> Array:
        """The same where the state afterwards is a point of the grid."""
        block = np.full((max(len(worth), len(unit)), len(self._grid) + 2 * self._pad), NEVER)
        net = block[:, self._pad : -self._pad]
        np.subtract(worth, unit * self._grid, out=net)
        if self._barred is not None:
            net += self._barred
        size = 1
        while size < self._size:
            block = np.maximum(block[:, :-size], block[:, size:])
            size *= 2
        most: Array = np.maximum(block.take(self._begin, 1), block.take(self._end, 1))
        most += unit * self._rest
        if self._empty is not None:
            most += self._empty
        return most


def _powers(mode: Mode, rest: Array) -> tuple[Array, Array]:
    """The powers that keep the mode's hard limits, from each resting state; low above high where there are none."""
    if mode.least == -inf and mode.most == inf:
        return np.full(len(rest), float(mode.low_w)), np.full(len(rest), float(mode.high_w))
    ends = ((mode.least - rest) / mode.gain, (mode.most - rest) / mode.gain)
    low_w = np.maximum(mode.low_w, np.minimum(*ends))
    high_w = np.minimum(mode.high_w, np.maximum(*ends))
    near = (low_w > high_w) & (low_w - high_w < 1e-6)  # noqa: PLR2004 (a millionth of a watt is rounding)
    return np.where(near, high_w, low_w), high_w


def stage_value(
    ways: list[tuple[_Way, float]], worth: Array, stage: Stage, step_h: float, weights: Array | None = None
) -> Array:
    """One step back.

    Args:
        ways: Of each mode, with its own cost in money per MWh.
        worth: Of the state after the step: a row for each price of the step, or one row.
        stage: Prices and how likely they are.
        step_h: Length of the step, hours.
        weights: The stage's, as an array where there is one already.

    Returns:
        What each state is worth before the step's price is known: a row for each state of the step before.
    """
    prices = np.array(stage.prices)[:, None]
    best = ways[0][0].best(worth, (prices + ways[0][1]) * step_h)
    for way, cost in ways[1:]:
        best = np.maximum(best, way.best(worth, (prices + cost) * step_h))
    weights = np.array(stage.weights) if weights is None else weights
    return best if weights.shape == (1, 1) else weights @ best


def values(store: Store, outlook: Outlook, keep: int | None = None) -> list[Array]:
    """What each state of the grid is worth at the end of every step.

    Args:
        store: The asset.
        outlook: Prices.
        keep: Steps whose values are wanted, from the round on; the others are dropped on the way. None: all.

    Returns:
        For the round and each stage after it: rows for the price states of that step (one where they do not matter),
        columns for the states of the grid. What it is worth to end there (``reward``) is in it.
    """
    grid, step_h = store.grid(), outlook.step_h
    known: dict[tuple[Mode, tuple[float, float]], _Way] = {}
    last = len(outlook.stages)
    worth = _ended(store.reward(last, step_h, grid), store.final(last, outlook, grid)[None, :])
    result = deque([worth], maxlen=keep)
    matrices = Matrices()
    for step in range(last, 0, -1):
        drift = store.drift(step, step_h)
        if len(known) > WAYS_KEPT:
            known.clear()  # a drift of its own in every step, as with the weather
        ways = []
        for mode in store.modes(step, step_h):
            if (mode, drift) not in known:
                known[mode, drift] = _Way(grid, mode, *drift)
            ways.append((known[mode, drift], mode.cost))
        stage = outlook.stages[step - 1]
        worth = stage_value(ways, worth, stage, step_h, matrices.of(stage))
        worth = _ended(store.reward(step - 1, step_h, grid), worth)
        result.append(worth)
    return list(result)[::-1]


class Matrices:
    """The weights of stages as arrays: one array for the many stages that share their weights."""

    def __init__(self, kind: type[np.floating[Any]] = np.float64) -> None:
        """None yet."""
        self._known: dict[int, NDArray[Any]] = {}
        self._kind = kind

    def of(self, stage: Stage) -> NDArray[Any]:
        """A stage's; the outlook must live on meanwhile."""
        made = self._known.get(id(stage.weights))
        if made is None:
            made = self._known[id(stage.weights)] = np.array(stage.weights, dtype=self._kind)
        return made


def _ended(reward: Array | None, worth: Array) -> Array:
    return worth if reward is None else worth + reward


@lru_cache(maxsize=64)
def even(low: float, high: float, count: int) -> Array:
    """Evenly spaced states; the same array to all who ask, not to be written."""
    made = np.linspace(low, high, count)
    made.flags.writeable = False
    return made


@dataclass(frozen=True, slots=True)
class Reach:
    """What one mode can reach in the round, and what that is worth: concave and linear between its knots."""

    mode: Mode
    powers_w: tuple[int, ...]
    """Whole watts, rising."""
    states: tuple[float, ...]
    """After the round, at these powers."""
    worths: tuple[float, ...]
    """Of these states, above that of doing nothing, millionths of money."""


def reaches(modes: tuple[Mode, ...], grid: Array, worth: Array, rest: float, knots: int) -> list[Reach]:
    """The round's choices from one state.

    Between its knots a reach runs along the concave hull of the value function: what the site bids is a hull in any
    case, so that this moves no price and no power of the curve unless the site's limits bind inside it.

    Args:
        modes: Of the round.
        grid: The store's states.
        worth: Of each at the end of the round; one row.
        rest: The state at the end of the round if nothing is done.
        knots: At most so many; the ones that matter most are kept.
    """
    idle = float(np.interp(rest, grid, worth))
    result = []
    for mode in modes:
        low_w, high_w = _whole_powers(mode, rest)
        if low_w > high_w:
            continue
        inner = (grid - rest) / mode.gain
        inner = np.rint(inner[(inner > low_w) & (inner < high_w)])
        powers = np.unique(np.concatenate(([low_w], inner, [high_w])))
        states = rest + mode.gain * powers
        worths = np.interp(states, grid, worth) - idle
        kept = _hull(powers, worths, knots)
        columns = (tuple(float(v) for v in column[kept]) for column in (states, worths))
        result.append(Reach(mode, tuple(int(power) for power in powers[kept]), *columns))
    return result


def liked_w(modes: tuple[Mode, ...], grid: Array, worth: Array, rest: float, price: float, step_h: float) -> int:
    """The whole watts that are best at one price, without the curve.

    Args:
        modes: Of the step.
        grid: The store's states.
        worth: Of each at the end of the step.
        rest: The state at the end of the step if nothing is done.
        price: Money per MWh.
        step_h: Length of the step, hours.
    """
    best, best_w = -inf, 0
    first, spacing = float(grid[0]), float(grid[1] - grid[0])
    for mode in modes:
        low_w, high_w = _whole_powers(mode, rest)
        if low_w > high_w:
            continue
        unit = (price + mode.cost) * step_h
        for power_w in {low_w, high_w, *_inner_w(mode, (low_w, high_w), grid, worth, rest, unit)}:
            place = min(max((rest + mode.gain * power_w - first) / spacing, 0.0), len(grid) - 1.0)
            left = min(int(place), len(grid) - 2)
            low, high = float(worth[left]), float(worth[left + 1])
            gain = low + (high - low) * (place - left) - unit * power_w
            if gain > best or (gain == best and power_w > best_w):
                best, best_w = gain, power_w
    return best_w


def _inner_w(mode: Mode, ends_w: tuple[int, int], grid: Array, worth: Array, rest: float, unit: float) -> set[int]:
    """The best of the powers that lead to a point of the grid, and its neighbours: rounding may favour them."""
    low_w, high_w = ends_w
    first, spacing = float(grid[0]), float(grid[1] - grid[0])
    ends = sorted((rest + mode.gain * low_w, rest + mode.gain * high_w))
    begin, end = max(0, ceil((ends[0] - first) / spacing)), min(len(grid) - 1, floor((ends[1] - first) / spacing))
    if begin > end:
        return set()
    points = slice(begin, end + 1)
    best = begin + int((worth[points] - unit / mode.gain * grid[points]).argmax())
    places = range(max(best - 1, begin), min(best + 1, end) + 1)
    return {min(max(round((float(grid[place]) - rest) / mode.gain), low_w), high_w) for place in places}


def _whole_powers(mode: Mode, rest: float) -> tuple[int, int]:
    """Rounded inwards: a hard limit is not broken by a part of a watt."""
    ends = ((mode.least - rest) / mode.gain, (mode.most - rest) / mode.gain)
    low, high = max(float(mode.low_w), min(ends)), min(float(mode.high_w), max(ends))
    return ceil(low), floor(high)


def _hull(xs: Array, ys: Array, knots: int) -> list[int]:
    """Places of the corners of the upper concave hull, those that matter most.

    After the ends always the point farthest above the line of those chosen so far: it is a corner (quickhull).
    """
    last = len(xs) - 1
    least = KNOTS_FLOOR * max(1.0, float(np.abs(ys).max()))
    chosen = [0, last] if last else [0]
    spans = [_farthest(xs, ys, 0, last)]
    while len(chosen) < knots and (span := max(spans, default=(0.0, 0, 0, 0)))[0] > least:
        spans.remove(span)
        _, low, middle, high = span
        chosen.append(middle)
        spans += [_farthest(xs, ys, low, middle), _farthest(xs, ys, middle, high)]
    return sorted(chosen)


def _farthest(xs: Array, ys: Array, low: int, high: int) -> tuple[float, int, int, int]:
    if high - low < 2:  # noqa: PLR2004 (nothing is between)
        return (0.0, low, low, high)
    slope = (ys[high] - ys[low]) / (xs[high] - xs[low])
    above = ys[low:high] - ys[low] - slope * (xs[low:high] - xs[low])
    k = int(above.argmax())
    return (float(above[k]), low, low + k, high)
