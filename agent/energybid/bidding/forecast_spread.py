"""How far off a load forecast is: quantiles around it, and what the day so far says of its rest.

Residuals of the last weeks, pooled over neighbouring slots, give quantiles; how often loads really came below each
quantile moves it until that fits (adaptive conformal inference, Gibbs and Candes, arXiv 2106.00170). Residuals are
taken as they are, not as parts of the forecast: that was measured and is worse. Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from energybid.bidding.packed import plain

if TYPE_CHECKING:
    from energybid.bidding.forecast_models import Array

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
DAYS_KEPT = 35
"""Of residuals."""
DAYS_NEEDED = 3
SIDE = 1
"""Slots to either side that are pooled."""
PACE = 0.05
"""How far a day's misses move a level, in parts of the miss."""
EDGE = 0.005
"""A level stays this far inside 0 and 1."""


class Spread:
    """The residuals of one model."""

    def __init__(self, slots: int) -> None:
        """Start without residuals."""
        self._slots = slots
        self._rests = np.empty((0, slots))
        """Days x slots; NaN where nothing was measured."""
        self._aims = np.array(LEVELS)
        """The level to look up for each level wanted."""
        self._product, self._square = 0.0, 0.0
        """Of neighbouring residuals, and of residuals with themselves."""

    def quantiles(self, guess: Array) -> Array:
        """Levels x slots around a forecast, rising; the middle one is the forecast."""
        if len(self._rests) < DAYS_NEEDED:
            return np.tile(guess, (len(LEVELS), 1))
        shifted = [np.roll(self._rests, shift, axis=1) for shift in range(-SIDE, SIDE + 1)]
        pool = np.vstack(shifted)
        empty = ~np.isfinite(pool).any(axis=0)
        pool[0, empty] = 0.0
        parts = quantiles(pool, self._aims)
        parts[len(LEVELS) // 2] = 0.0
        middle = len(LEVELS) // 2
        parts[:middle] = np.minimum(parts[:middle], 0.0)
        parts[middle:] = np.maximum(parts[middle:], 0.0)
        made: Array = guess + np.sort(parts, axis=0)
        return np.maximum(made, min(0.0, float(guess.min())))

    def loss(self, guess: Array, load: Array) -> float:
        """Mean over slots and levels of the pinball loss, in the load's unit."""
        seen = np.isfinite(load)
        levels = np.array(LEVELS)[:, None]
        miss = load[seen] - self.quantiles(guess)[:, seen]
        return float(np.maximum(levels * miss, (levels - 1) * miss).mean())

    def learn(self, guess: Array, load: Array) -> None:
        """A day is over."""
        seen = np.isfinite(load)
        if len(self._rests) >= DAYS_NEEDED:
            below = (load[seen] < self.quantiles(guess)[:, seen]).mean(axis=1)
            self._aims = np.clip(self._aims + PACE * (np.array(LEVELS) - below), EDGE, 1 - EDGE)
            self._aims[len(LEVELS) // 2] = 0.5
        rests = load - guess
        pairs = rests[1:] * rests[:-1]
        self._product = 0.97 * self._product + float(np.nansum(pairs))
        self._square = 0.97 * self._square + float(np.nansum(rests**2))
        self._rests = np.vstack((self._rests, rests))[-DAYS_KEPT:]

    def corrected(self, guess: Array, seen: Array) -> Array:
        """The forecast of a day that has begun: the last residual dies away over the slots to come.

        Args:
            guess: Of the whole day.
            seen: What came, from the first slot; NaN where nothing was measured.
        """
        made = guess.copy()
        finite = np.flatnonzero(np.isfinite(seen))
        if len(finite) and self._square > 0 and len(seen) < len(guess):
            last = finite[-1]
            part = seen[last] - guess[last]
            stays = min(max(self._product / self._square, 0.0), 0.99)
            ahead = np.arange(len(seen), len(guess))
            made[ahead] += part * stays ** (ahead - last)
        return np.maximum(made, min(0.0, float(guess.min())))

    def state(self) -> dict[str, Any]:
        """The residuals, for ``packed``."""
        return {
            "rests": self._rests,
            "aims": self._aims.tolist(),
            "product": self._product,
            "square": self._square,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up.

        Raises:
            ValueError: Another number of slots or levels.
        """
        aims = np.array(state["aims"], dtype=float)
        if aims.shape != (len(LEVELS),):
            raise ValueError(f"a spread has {len(LEVELS)} levels")
        self._rests = plain(state["rests"]).reshape(-1, self._slots)
        self._aims = aims
        self._product, self._square = float(state["product"]), float(state["square"])


def quantiles(pool: Array, aims: Array) -> Array:
    """Of each column, NaN left out: levels x columns; NaN of a column that has nothing else.

    ``numpy.nanquantile`` goes column by column in Python.
    """
    rising = np.sort(pool, axis=0)
    count = np.isfinite(pool).sum(axis=0)
    place = aims[:, None] * (count - 1)
    low = np.maximum(place, 0.0).astype(np.intp)
    high = np.minimum(low + 1, np.maximum(count - 1, 0))
    columns = np.arange(pool.shape[1])
    below, above = rising[low, columns], rising[high, columns]
    made: Array = below + (above - below) * (place - low)
    return made
