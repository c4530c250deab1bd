"""What lies ahead of a roof and of a thermometer, from what they showed in the last weeks: few numbers, no service.

Times of day are UTC, in half hours: the sun knows no summer time. A roof has, for each half hour of the day, what it
gives under a clear sky (a high quantile of its days) and what it gives typically (their mean); how much clearer or
duller it is now than typically dies away over the hours. A thermometer has its typical course of the day; how much
warmer or colder it is now dies away over days. Needs numpy (extra ``bidding``). Pure: times come in as milliseconds
since 1970.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from energybid.bidding.forecast_spread import quantiles
from energybid.bidding.packed import plain

if TYPE_CHECKING:
    from energybid.bidding.forecast_models import Array

SLOTS = 48
DAY_MS = 86_400_000
SLOT_MS = DAY_MS // SLOTS
HOUR_MS = 3_600_000

ROOF_DAYS = 15
"""That a roof looks back. The sun climbs meanwhile: more is worse in spring and autumn, less is worse under clouds."""
CLEAR = 0.9
"""Quantile of the days that counts as a clear sky."""
SKY_H = 12.0
"""In which 63 % of what is clearer or duller than typically is gone."""
REST_H = 1.0
"""The same of what clearness does not explain: a roof that lay under snow, a new module."""
DIM = 0.1
"""Below this part of the clearest half hour the sun tells nothing of the clearness."""
BLIND_H = 6.0
"""A time of day that was never seen: as now for so long, then nothing."""
COUNT_MAX = 254
UNKNOWN = 255

COURSE_DAYS = 14
"""Of which a thermometer's course is a mean, the older ones less and less."""
AIR_H = 48.0
"""In which 63 % of what is warmer or colder than typically is gone."""


def middles(begins_ms: int, step_ms: int, count: int) -> Array:
    """Moments within consecutive steps, steps x moments: enough that their mean is the step's."""
    parts = max(1, round(step_ms / SLOT_MS))
    steps = begins_ms + step_ms * np.arange(count)[:, None]
    made: Array = steps + step_ms * (np.arange(parts) + 0.5) / parts
    return made


def _laid(course: Array, at_ms: Array) -> Array:
    """A course of the day at some moments: straight between the middles of the half hours that are known."""
    known = np.isfinite(course)
    if not known.any():
        return np.full(at_ms.shape, np.nan)
    middle = (np.arange(SLOTS)[known] + 0.5) * SLOT_MS
    return np.asarray(np.interp(at_ms % DAY_MS, middle, course[known], period=DAY_MS))


class _HalfHour:
    """The mean of the half hour that is not over."""

    def __init__(self) -> None:
        self.slot = -1
        """Counted since 1970."""
        self._sum, self._count = 0.0, 0

    def add(self, at_ms: int, number: float) -> tuple[int, float] | None:
        """A number of a moment; gives the half hour before and its mean, where that is over now."""
        slot, over = at_ms // SLOT_MS, None
        if slot != self.slot:
            over = (self.slot, self._sum / self._count) if self._count else None
            self.slot, self._sum, self._count = slot, 0.0, 0
        self._sum, self._count = self._sum + number, self._count + 1
        return over


class Roof:
    """What one photovoltaic plant gives."""

    def __init__(self) -> None:
        """Know nothing."""
        self._days = np.full((ROOF_DAYS, SLOTS), np.nan)
        """W of each half hour, the day that is not over last; NaN: nobody knows what the sun gave."""
        self._day = -1
        """That day, counted since 1970."""
        self._half_hour = _HalfHour()
        self._off = 0.0
        """How much clearer it was than typically, in parts of a clear sky."""
        self._off_ms = 0
        self._held = False
        """It was held by a limit last: what it gives tells nothing."""
        self.last_ms = -1
        """When it was seen last, or known to be held."""

    def seen(self, at_ms: int, power_w: float | None) -> None:
        """What it gave.

        Args:
            at_ms: Begin of a time of at most half an hour; older ones than before are not looked at.
            power_w: Mean of that time, 0 or more; None: it was held by a limit, and nobody knows what the sun gave.
        """
        if _late(at_ms, self.last_ms):
            return
        self.last_ms, self._held = at_ms, power_w is None
        if power_w is None:
            return
        over = self._half_hour.add(at_ms, power_w)
        if over is not None:
            self._keep(*over)
        self._look(at_ms, power_w)

    def _keep(self, slot: int, power_w: float) -> None:
        day = slot // SLOTS
        gone = min(day - self._day, ROOF_DAYS) if self._day >= 0 else 0
        if gone > 0:
            self._days = np.vstack((self._days[gone:], np.full((gone, SLOTS), np.nan)))
        self._day = day
        self._days[-1, slot % SLOTS] = power_w

    def _look(self, at_ms: int, power_w: float) -> None:
        """How clear it is."""
        clear, typical = self._courses()
        clear_w, typical_w = (float(_laid(course, np.array([at_ms + SLOT_MS / 4.0]))[0]) for course in (clear, typical))
        if clear_w > DIM * np.nanmax(clear, initial=0.0):
            self._off, self._off_ms = _bounded((power_w - typical_w) / clear_w), at_ms

    def _courses(self) -> tuple[Array, Array]:
        """Under a clear sky, and typically; NaN where nothing is known of a time of day."""
        clear = quantiles(self._days, np.array([CLEAR]))[0]
        known = np.isfinite(self._days)
        typical = np.where(known, self._days, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        return clear, np.minimum(typical, clear)

    def expected(self, begins_ms: int, step_ms: int, count: int, now_ms: int, measured_w: float | None) -> Array:
        """What it would give in consecutive steps, W, 0 or more.

        Args:
            begins_ms: Of the first.
            step_ms: Of each.
            count: How many.
            now_ms: When this is asked.
            measured_w: What it gives now, or gave before it was held by a limit; None: not known.
        """
        at_ms = middles(begins_ms, step_ms, count)
        told, measured_w = not self._held and measured_w is not None, measured_w or 0.0
        clear, typical = self._courses()
        known = np.isfinite(clear)[(at_ms % DAY_MS // SLOT_MS).astype(int)]
        blind = np.where(at_ms - now_ms < BLIND_H * HOUR_MS, measured_w, 0.0)
        if not known.any():
            return np.asarray(blind.mean(axis=1))
        now = np.array([float(now_ms)])
        clear_now, typical_now = float(_laid(clear, now)[0]), float(_laid(typical, now)[0])
        off, off_ms = self._off, self._off_ms
        if told and clear_now > DIM * np.nanmax(clear):
            off, off_ms = _bounded((measured_w - typical_now) / clear_now), now_ms
        made = _laid(typical, at_ms) + _laid(clear, at_ms) * off * _left(at_ms - off_ms, SKY_H)
        if told:
            rest_w = measured_w - (typical_now + clear_now * off * float(_left(now - off_ms, SKY_H)[0]))
            made += rest_w * _left(at_ms - now_ms, REST_H)
        most_w = max(float(np.nanmax(self._days)), measured_w)
        made = np.minimum(np.maximum(made, 0.0), most_w)
        return np.asarray(np.where(known, made, blind).mean(axis=1))

    def state(self) -> dict[str, Any]:
        """For ``packed``: a byte for each half hour."""
        most = float(np.nanmax(self._days, initial=0.0))
        shares = np.where(np.isfinite(self._days), np.round(self._days / (most or 1.0) * COUNT_MAX), UNKNOWN)
        return {
            "days": shares.astype(np.uint8),
            "most": most,
            "day": self._day,
            "off": self._off,
            "off_ms": self._off_ms,
            "held": self._held,
            "last_ms": self.last_ms,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Roof:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: It is damaged.
        """
        made = cls()
        try:
            shares, most = plain(state["days"]).astype(float), float(state["most"])
            made._day, made._off_ms, made.last_ms = (int(state[name]) for name in ("day", "off_ms", "last_ms"))
            made._off, made._held = _bounded(float(state["off"])), bool(state["held"])
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"what was learned of a roof is damaged: {error!r}") from None
        if shares.shape != (ROOF_DAYS, SLOTS) or not 0 <= most < np.inf or shares.min() < 0:
            raise ValueError("what was learned of a roof is damaged")
        made._days = np.where(shares < UNKNOWN, shares * most / COUNT_MAX, np.nan)
        return made


class Outdoors:
    """The temperature of one place."""

    def __init__(self) -> None:
        """Know nothing."""
        self._course = np.full(SLOTS, np.nan)
        self._counts = np.zeros(SLOTS)
        self._half_hour = _HalfHour()
        self._off_k = 0.0
        """How much warmer it was than typically."""
        self.last_c = np.nan
        self.last_ms = -1
        """When it was seen last."""

    def seen(self, at_ms: int, outside_c: float) -> None:
        """A temperature.

        Args:
            at_ms: When; older ones than before are not looked at.
            outside_c: It.
        """
        if _late(at_ms, self.last_ms):
            return
        over = self._half_hour.add(at_ms, outside_c)
        if over is not None:
            self._keep(over[0] % SLOTS, over[1])
        self.last_ms, self.last_c = at_ms, outside_c
        typical_c = float(_laid(self._course, np.array([float(at_ms)]))[0])
        self._off_k = outside_c - typical_c if np.isfinite(typical_c) else 0.0

    def _keep(self, slot: int, mean_c: float) -> None:
        count = self._counts[slot] = min(self._counts[slot] + 1, COURSE_DAYS)
        before_c = self._course[slot] if count > 1 else mean_c
        self._course[slot] = before_c + (mean_c - before_c) / count

    def expected(self, at_ms: Array) -> Array:
        """The temperatures of some moments; NaN where nothing is known."""
        typical = _laid(self._course, at_ms)
        if not np.isfinite(typical).all():
            return np.full(at_ms.shape, self.last_c)
        return np.asarray(typical + self._off_k * _left(at_ms - self.last_ms, AIR_H))

    def state(self) -> dict[str, Any]:
        """For ``packed``."""
        return {
            "course": self._course,
            "counts": self._counts.astype(np.uint8),
            "off_k": self._off_k,
            "last_c": self.last_c if np.isfinite(self.last_c) else None,
            "last_ms": self.last_ms,
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Outdoors:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: It is damaged.
        """
        made = cls()
        try:
            course, counts = plain(state["course"]).astype(float), plain(state["counts"]).astype(float)
            made._off_k, made.last_ms = float(state["off_k"]), int(state["last_ms"])
            made.last_c = np.nan if state["last_c"] is None else float(state["last_c"])
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"what was learned of a temperature is damaged: {error!r}") from None
        if course.shape != (SLOTS,) or counts.shape != (SLOTS,) or not np.isfinite(made._off_k):
            raise ValueError("what was learned of a temperature is damaged")
        made._counts = np.where(np.isfinite(course), np.clip(counts, 0, COURSE_DAYS), 0)
        made._course = course
        return made


def _late(at_ms: int, last_ms: int) -> bool:
    """Whether something older comes after something newer; a clock that was wrong by more is believed now."""
    return last_ms - DAY_MS <= at_ms < last_ms


def _bounded(off: float) -> float:
    """A clearness is between none and a clear sky, and a little more where clouds mirror."""
    return min(max(off, -1.0), 1.0) if np.isfinite(off) else 0.0


def _left(ms: Array, hours: float) -> Array:
    """What is left of a deviation after a time."""
    made: Array = np.exp(-np.maximum(ms, 0.0) / (hours * HOUR_MS))
    return made
