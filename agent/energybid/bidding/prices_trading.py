"""A battery that trades day after day as price taker, from what it knows at each step alone.

Here lives what is known when: real-time prices up to the step before, day-ahead prices of today, and from the hour of
publication those of tomorrow; beyond these, yesterday's day-ahead prices again. Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from energybid.bidding.prices import PriceModel
from energybid.bidding.prices_battery import CELLS, Cell, Single, Trader, crossing, marginal_values

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.bidding.prices import Array, Place, Shape

PUBLISHED_H = 11
"""Hour of the day at which tomorrow's day-ahead prices are known (NYISO Day-Ahead Scheduling Manual: by 11:00)."""
HORIZON_H = 36
"""Value functions look so far ahead."""
FINAL_SPAN = 0.3
"""At the horizon energy is worth the median price, so much more when empty and less when full."""
KEEP = 0.5 ** (1 / 365)
"""What counts are worth a day later: half after a year."""
FORESIGHT_CELLS = 480


@dataclass(frozen=True, slots=True)
class Market:
    """Prices of consecutive steps, from the start of a day."""

    real_time: Array
    day_ahead: Array
    steps_per_day: int

    def days(self, first: int, end: int) -> Market:
        """Some of its days."""
        part = slice(first * self.steps_per_day, end * self.steps_per_day)
        return Market(self.real_time[part], self.day_ahead[part], self.steps_per_day)


class Traded(NamedTuple):
    """What came of it, by step."""

    cash: Array
    """Per MWh of capacity."""
    stored: Array
    """At the end of each step, in parts of the capacity."""
    moved: int
    """Curves whose wish was not monotone by itself."""


def trade(  # noqa: PLR0913 (a run's facts)
    market: Market,
    cell: Cell,
    *,
    first_day: int,
    days: int,
    shape: Shape | None = None,
    each_day: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Traded:
    """Learn from the days before the first, trade from it on.

    Args:
        market: Prices, those to learn from first.
        cell: The battery; it begins empty.
        first_day: To be traded.
        days: To be traded.
        shape: Of the model.
        each_day: Whether to count each day when it is over.
        progress: Called with days done and days in all.
    """
    size = market.steps_per_day
    past = market.days(0, first_day)
    model = PriceModel.learned(past.real_time, past.day_ahead, steps_per_day=size, shape=shape)
    book = _Book(model, cell, model.ending(past.real_time, past.day_ahead))
    for day in range(first_day, first_day + days):
        before = book.place
        book.trade_day(market, day)
        if each_day:
            today = market.days(day, day + 1)
            model.learn(today.real_time, today.day_ahead, before, keep=KEEP)
        if progress:
            progress(day - first_day + 1, days)
    return Traded(np.array(book.cash), np.array(book.levels), book.moved)


class _Book:
    """The battery between steps."""

    def __init__(self, model: PriceModel, cell: Cell, place: Place) -> None:
        self._model, self._cell, self.place = model, cell, place
        self._trader = Trader(model, cell)
        self._stored = 0.0
        self.cash: list[float] = []
        self.levels: list[float] = []
        self.moved = 0

    def trade_day(self, market: Market, day: int) -> None:
        """Before and after publication."""
        size = market.steps_per_day
        published = size * PUBLISHED_H // 24
        for first, end, known_days in ((0, published, 1), (published, size, 2)):
            ahead = expected(market, day, known_days, first)
            final = np.median(ahead[-size:]) * np.linspace(1 + FINAL_SPAN, 1 - FINAL_SPAN, CELLS)
            worth = marginal_values(self._model, self._cell, ahead, step=first, keep=end - first, final=final)
            for step in range(first, end):
                self._round(market, day * size + step, step, worth[step - first])

    def _round(self, market: Market, at: int, step: int, worth: Single) -> None:
        day_ahead, price = float(market.day_ahead[at]), float(market.real_time[at])
        wish = self._trader.wish(worth, self._stored, day_ahead, self.place, step)
        stored = wish.at(price)
        self.cash.append(float(self._cell.cash(stored - self._stored, price)))
        self.levels.append(stored)
        self.moved += wish.moved
        self._stored = stored
        self.place = self._model.place(price, day_ahead, self.place)


def expected(market: Market, day: int, known_days: int, first: int) -> Array:
    """Day-ahead prices from a step of a day to the horizon; the last known day again where they are not known."""
    size = market.steps_per_day
    end = min((day + known_days) * size, len(market.day_ahead))
    known = market.day_ahead[day * size + first : end]
    last = market.day_ahead[end - size : end]
    wanted = HORIZON_H * size // 24
    while len(known) < wanted:
        known = np.concatenate((known, last))
    return known[:wanted]


def foresight(market: Market, cell: Cell, cells: int = FORESIGHT_CELLS) -> float:
    """The most that could have been earned with all prices known."""
    step_h = 24 / market.steps_per_day
    shifts = cell.shifts(step_h, cells)
    charge, discharge = (limit.astype(np.float32) for limit in cell.limits(market.real_time))
    worth = np.empty((len(market.real_time) + 1, cells), dtype=np.float32)
    worth[-1] = 0.0
    for number in range(len(market.real_time) - 1, -1, -1):
        limits = (limit[number : number + 1, None] for limit in (charge, discharge))
        worth[number] = shifts.back(worth[number + 1 : number + 2], *limits)[0]
    stored, earned = 0.0, 0.0
    fills, drains = _crossings(worth[1:], charge), _crossings(worth[1:], discharge)
    for price, fill, drain in zip(market.real_time.tolist(), fills, drains, strict=True):
        most, least = min(stored + cell.up(step_h), 1.0), max(stored - cell.down(step_h), 0.0)
        target = min(fill, most) if fill > stored else max(drain, least) if drain < stored else stored
        earned += float(cell.cash(target - stored, price))
        stored = target
    return earned


def _crossings(worth: Single, limit: Single) -> list[float]:
    return [
        float(x)
        for part in range(0, len(worth), 4096)
        for x in crossing(worth[part : part + 4096], limit[part : part + 4096])
    ]
