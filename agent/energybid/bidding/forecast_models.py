"""Models that forecast a site's load for a whole day, from the days before it.

Here lives what a candidate is and the candidates themselves. They learn once a day, a day being a row of even slots (48
half hours, 96 quarters) on the site's clock; how they are scored and which one is used is in ``forecast``. Needs numpy
(extra ``bidding``). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from energybid.bidding.packed import Fine, plain

Array = NDArray[np.float64]
DAYS_KEPT = 28
"""Of history that models look at."""
DAYS_NEEDED = 8
"""Before models that look at the week before say anything."""
WEEKEND = 5
"""The first of its days, counted from Monday = 0."""


@dataclass(frozen=True, slots=True)
class Day:
    """What is known of a day before it begins."""

    weekday: int
    """Monday 0 to Sunday 6; a holiday counts as a Sunday."""
    temperature_c: float | None = None
    """Mean outdoor temperature that is forecast; None: not known."""


@dataclass(frozen=True, slots=True)
class Past:
    """Days that are over, the latest last."""

    load: Array
    """Days x slots, gaps filled; any unit of power or energy."""
    days: tuple[Day, ...]


class Candidate(Protocol):
    """A model of the load."""

    name: str

    def predict(self, past: Past, day: Day) -> Array | None:
        """The load of each slot; None: not enough is known yet."""

    def learn(self, past: Past, day: Day, load: Array) -> None:
        """A day is over.

        Args:
            past: The days before it, as ``predict`` has seen them.
            day: What was known of it.
            load: What came; NaN where nothing was measured.
        """

    def state(self) -> dict[str, Any]:
        """What it has learned, for ``packed``."""

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what ``state`` gave."""


class _Plain:
    """A model that learns nothing."""

    def learn(self, past: Past, day: Day, load: Array) -> None:
        """Nothing."""

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


class Yesterday(_Plain):
    """The day before again."""

    name = "yesterday"

    def predict(self, past: Past, day: Day) -> Array | None:  # noqa: ARG002 (the protocol's)
        """The last day."""
        return past.load[-1] if len(past.load) else None


class LastWeek(_Plain):
    """The same day of the week before again."""

    name = "last-week"

    def predict(self, past: Past, day: Day) -> Array | None:  # noqa: ARG002 (the protocol's)
        """Seven days before."""
        return past.load[-7] if len(past.load) >= 7 else None  # noqa: PLR2004 (a week)


class Mean(_Plain):
    """The mean of the last seven days."""

    name = "mean-7"

    def predict(self, past: Past, day: Day) -> Array | None:  # noqa: ARG002 (the protocol's)
        """Mean of each slot."""
        return np.asarray(past.load[-7:].mean(axis=0)) if len(past.load) else None


class Regression:
    """Each slot a line of what the same slot, its neighbours and the whole day did lately.

    Least absolute deviations by weighted least squares (a day's weight is one over its residual when it is learned),
    with exponential forgetting. All slots together make the line towards which each slot's own is drawn: a new site
    has little data for each slot, but enough for all of them.
    """

    FORGET = 0.985
    """A day's weight a day later: half after 46 days."""
    RIDGE = 1.0
    POOL = 0.1
    """Weight of all slots' line against a slot's own."""
    NEAR = 0.25
    """Residuals below this part of the mean load weigh the same."""

    def __init__(self, slots: int, *, temperature: bool) -> None:
        """Start with "half of yesterday, half of the week's mean".

        Args:
            slots: Of a day.
            temperature: Whether to use the outdoor temperature; without it on a day, that part is silent.
        """
        self.name = "regression-temperature" if temperature else "regression"
        self._temperature = temperature
        size = 12 + 3 * temperature
        self._first = np.zeros(size)
        self._first[[1, 5]] = 0.5
        self._square, self._cross = np.zeros((slots, size, size)), np.zeros((slots, size))

    def predict(self, past: Past, day: Day) -> Array | None:
        """The line's value, not below 0 where the past is not."""
        if len(past.load) < DAYS_NEEDED:
            return None
        made: Array = np.einsum("sf,sf->s", self._features(past, day), self._weights())
        return np.maximum(made, min(0.0, float(past.load.min())))

    def learn(self, past: Past, day: Day, load: Array) -> None:
        """Add the day, forget a little of those before."""
        guess = self.predict(past, day)
        if guess is None:
            return
        seen = np.isfinite(load)
        scale = max(float(np.abs(past.load).mean()), 1e-9)
        target = np.where(seen, load, 0.0) / scale
        weight = np.where(seen, 1 / np.maximum(np.abs(target - guess / scale), self.NEAR), 0.0) * self.NEAR
        lines = self._features(past, day) / scale
        self._square = self._square * self.FORGET + (weight[:, None] * lines)[:, :, None] * lines[:, None, :]
        self._cross = self._cross * self.FORGET + (weight * target)[:, None] * lines

    def state(self) -> dict[str, Any]:
        """The sums."""
        rows, columns = np.triu_indices(self._square.shape[1])
        return {"square": Fine(self._square[:, rows, columns]), "cross": Fine(self._cross)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the sums.

        Raises:
            ValueError: Sums of another shape.
        """
        rows, columns = np.triu_indices(self._square.shape[1])
        half, cross = (plain(state[name]) for name in ("square", "cross"))
        if half.shape != (len(self._square), len(rows)) or cross.shape != self._cross.shape:
            raise ValueError("sums of a model with other slots or features")
        self._cross = cross.copy()
        self._square[:, rows, columns] = half
        self._square[:, columns, rows] = half

    def _weights(self) -> Array:
        square, cross = self._square.mean(axis=0), self._cross.mean(axis=0)
        ridge = self.RIDGE * self.NEAR * np.eye(len(cross))
        pooled = np.linalg.solve(square + ridge, cross + ridge @ self._first)
        prior = self.POOL * (square + ridge)
        made: Array = np.linalg.solve(self._square + prior, (self._cross + prior @ pooled)[:, :, None])[:, :, 0]
        return made

    def _features(self, past: Past, day: Day) -> Array:
        load = past.load
        last, week = load[-1], load[-7:].mean(axis=0)
        flat = np.ones_like(last)
        columns = [
            0.3 * flat * float(np.abs(load).mean()),
            last,
            load[-2],
            load[-7],
            load[-3:].mean(axis=0),
            week,
            np.median(load, axis=0),
            _beside(last),
            _beside(week),
            last.mean() * flat,
            week.mean() * flat,
            week * (float(day.weekday >= WEEKEND) - 2 / 7),
        ]
        if self._temperature:
            columns += _weather(week, past.days[-1].temperature_c, day.temperature_c)
        return np.stack(columns, axis=1)


def _beside(load: Array) -> Array:
    """Mean of the slot before and the one after."""
    return np.asarray((np.roll(load, 1) + np.roll(load, -1)) / 2)


HEATING_C = 15.0
"""Below this outdoor temperature a building is heated."""


def _weather(week: Array, before_c: float | None, now_c: float | None) -> list[Array]:
    """How much colder than the day before, in parts that are silent where it is not known."""
    if before_c is None or now_c is None:
        return [np.zeros_like(week)] * 3
    colder = (max(0.0, HEATING_C - now_c) - max(0.0, HEATING_C - before_c)) / 10
    return [week * (now_c - before_c) / 5, week * colder, np.full_like(week, week.mean() * colder)]


def candidates(slots: int) -> tuple[Candidate, ...]:
    """All of them, plainest first."""
    plain: tuple[Candidate, ...] = (Yesterday(), LastWeek(), Mean())
    return (*plain, Regression(slots, temperature=False), Regression(slots, temperature=True))
