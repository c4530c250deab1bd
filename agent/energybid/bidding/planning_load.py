"""What a site takes beside its assets: observed, learned a day at a time, and expected for the steps to come.

Days are days of the site's clock, in 48 half hours: in the hour that comes twice both are one, the hour that is left
out is not measured. Needs numpy (extra ``bidding``). Pure: times come in as milliseconds since 1970.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from energybid.bidding.forecast import Forecast, Forecaster
from energybid.bidding.forecast_models import Array, Day
from energybid.bidding.packed import plain

if TYPE_CHECKING:
    from collections.abc import Callable

SLOTS = 48
SLOT_MS = 86_400_000 // SLOTS
WARMTHS_MIN = 40
"""Half hours of which a day's temperature is known: the mean of fewer is that of a part of the day."""
STAYS = 0.6
"""Of how far off the forecast is now, this much is left half an hour later; measured residuals say it better once there
are some (``forecast_spread``), but not within the slot."""


class Expected(NamedTuple):
    """The base load of the round and the steps after it."""

    power_w: Array
    model: str
    """In use: a candidate's name, ``now`` (only what is measured) or ``none``."""
    version: int
    low_w: float
    """Of the round: 10 % quantile..."""
    high_w: float
    """... and 90 %."""


class LoadBook:
    """Base load of a site, W of net import."""

    def __init__(self, timezone: str = "UTC", temperature: Callable[[int, int], float | None] | None = None) -> None:
        """Know nothing.

        Args:
            timezone: IANA name, of the site.
            temperature: Mean outdoor temperature that is expected of a time, from its begin to its end (ms); asked when
                a day begins, of it and of the next one.
        """
        self._zone = ZoneInfo(timezone)
        self._temperature = temperature
        self._ahead_c: float | None = None
        """Of today, as it was expected when the day began."""
        self._warmths = np.full(SLOTS, np.nan)
        """Of today, as they came."""
        self.forecaster = Forecaster(SLOTS)
        self.seen_ms: int | None = None
        """When it was told something last."""
        self.today: date | None = None
        self._learned: date | None = None
        """Last day that was."""
        self._sums, self._counts = np.zeros(SLOTS), np.zeros(SLOTS)
        self._made: tuple[date, tuple[Forecast | None, Forecast | None]] | None = None

    def seen(self, at_ms: int, power_w: float, outside_c: float | None = None) -> bool:
        """An observation; those of a slot are averaged.

        Args:
            at_ms: When.
            power_w: The load.
            outside_c: Outdoor temperature where it is known.

        Returns:
            Whether a day is over by it, and learned.
        """
        day, slot = self._local(at_ms)
        if self.today is not None and day < self.today:
            return False  # too late
        over = self.today is not None and day > self.today
        if over:
            self._turn(day)
        self.today, self.seen_ms = day, at_ms
        self._sums[slot] += power_w
        self._counts[slot] += 1
        if outside_c is not None:
            self._warmths[slot] = outside_c
        return over

    @property
    def learned(self) -> date | None:
        """The last day that is over, and learned."""
        return self._learned

    def learn(self, day: date, power_w: Array, outside_c: float | None = None) -> None:
        """A whole day at once.

        Args:
            day: Which.
            power_w: Of each slot; NaN where nothing was measured.
            outside_c: Its mean outdoor temperature where it is known.
        """
        self.forecaster.learn(self._facts(day), power_w, _was(day, outside_c))
        self._learned = day
        self._begin(day + timedelta(1))

    def roll_back(self, model: str | None = None) -> tuple[str, int]:
        """Go back to the version before of a model, or of the one in use.

        Returns:
            The model and the number of the version that this makes.

        Raises:
            ValueError: There is none: what to do instead.
        """
        name = model or self.forecaster.model
        version = self.forecaster.roll_back(name)
        self._made = None
        return name, version

    def quantiles(self, at_ms: int) -> Array | None:
        """What the load will be at a moment of the next day, by level (``forecast_spread.LEVELS``); None: not known."""
        made, slot = self._slot(at_ms)
        return made.quantiles[:, slot] if made else None

    def expected(self, begins_ms: int, step_ms: int, count: int, now: tuple[int, float] | None) -> Expected:
        """The base load of consecutive steps.

        Args:
            begins_ms: Of the first.
            step_ms: Of each.
            count: How many.
            now: When the load was measured last, and what it was; it draws the forecast to it, less and less.
        """
        power_w = np.array([self._at(begins_ms + n * step_ms) for n in range(count)])
        low_w, high_w = self._band(begins_ms)
        known = np.isfinite(power_w).all()
        if now is None:
            return Expected(np.nan_to_num(power_w), *self._name(known=known), low_w, high_w)
        at_ms, measured_w = now
        if not known:
            return Expected(np.full(count, measured_w), "now", 0, measured_w, measured_w)
        ahead = np.maximum(0.0, (begins_ms - at_ms + step_ms * np.arange(count)) / SLOT_MS)
        off = (measured_w - self._at(at_ms)) * STAYS**ahead
        off = np.where(np.isfinite(off), off, 0.0)
        return Expected(power_w + off, *self._name(known=True), low_w + float(off[0]), high_w + float(off[0]))

    def state(self) -> dict[str, Any]:
        """What was learned, for ``packed``; changes once a day."""
        return {"forecaster": self.forecaster.state(), "learned": self._learned.isoformat() if self._learned else None}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up.

        Raises:
            ValueError: It is damaged, or of another format; nothing is changed.
        """
        try:
            forecaster = Forecaster.restored(state["forecaster"])
            learned = date.fromisoformat(state["learned"]) if state["learned"] else None
        except (KeyError, TypeError) as error:
            raise ValueError(f"the loads' state is damaged: {error!r}") from None
        self.forecaster, self._learned = forecaster, learned
        self.today = learned + timedelta(1) if learned else None
        self._made = None

    def day_state(self) -> dict[str, Any]:
        """The day so far, for ``packed``."""
        today = self.today.isoformat() if self.today else None
        return {
            "today": today,
            "seen_ms": self.seen_ms,
            "means": self._means(),
            "counts": self._counts.astype(np.uint32),
            "ahead_c": self._ahead_c,
            "warmths": self._warmths,
        }

    def restore_day(self, state: dict[str, Any]) -> None:
        """Take up the day so far, after ``restore``; a day that is learned already is left.

        Raises:
            ValueError: It is damaged; nothing is changed.
        """
        try:
            today = date.fromisoformat(state["today"]) if state["today"] else None
            means, counts = plain(state["means"]), plain(state["counts"]).astype(float)
            warmths = plain(state.get("warmths", np.full(SLOTS, np.nan))).astype(float)
            ahead_c = None if state.get("ahead_c") is None else float(state["ahead_c"])
            seen_ms = None if state.get("seen_ms") is None else int(state["seen_ms"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"the day's loads are damaged: {error!r}") from None
        if {means.shape, counts.shape, warmths.shape} != {(SLOTS,)}:
            raise ValueError("the day's loads are of another number of slots")
        if today and (self.today is None or today >= self.today):
            self.today, self._counts = today, counts
            self._sums = np.where(counts > 0, means * counts, 0.0)
            self._warmths, self._ahead_c, self.seen_ms = warmths, ahead_c, seen_ms
            self._made = None

    # ------------------------------------------------------------ parts

    def _local(self, at_ms: int) -> tuple[date, int]:
        local = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(self._zone)
        return local.date(), (local.hour * 60 + local.minute) * SLOTS // (24 * 60)

    def _facts(self, day: date) -> Day:
        """What was known of a day when it began."""
        return Day(day.weekday(), self._ahead_c if day == self.today else self._expected_c(day))

    def _expected_c(self, day: date) -> float | None:
        if self._temperature is None:
            return None
        begins, ends = (datetime.combine(day + timedelta(n), time(), self._zone).timestamp() for n in range(2))
        return self._temperature(round(begins * 1000), round(ends * 1000))

    def _turn(self, day: date) -> None:
        """Learn the day that is over; days of which nothing was seen are gaps."""
        assert self.today is not None  # noqa: S101 (asked by ``seen``)
        seen = np.isfinite(self._warmths)
        outside_c = round(float(self._warmths[seen].mean()), 2) if seen.sum() >= WARMTHS_MIN else None
        self.forecaster.learn(self._facts(self.today), self._means(), _was(self.today, outside_c))
        gap = min((day - self.today).days - 1, SLOTS)
        for back in range(gap, 0, -1):
            missed = day - timedelta(back)
            self.forecaster.learn(Day(missed.weekday()), np.full(SLOTS, np.nan))
        self._learned = day - timedelta(1)
        self._begin(day)

    def _begin(self, day: date) -> None:
        """A day begins: what is expected of it stays, so that it is scored by that."""
        self._sums, self._counts, self._warmths = np.zeros(SLOTS), np.zeros(SLOTS), np.full(SLOTS, np.nan)
        self.today, self._ahead_c = day, self._expected_c(day)
        self._made = None

    def _means(self) -> Array:
        return np.where(self._counts > 0, self._sums / np.maximum(self._counts, 1), np.nan)

    def _name(self, *, known: bool) -> tuple[str, int]:
        made = self._forecasts(self.today)[0] if self.today else None
        return (made.model, made.version) if known and made else ("none", 0)

    def _forecasts(self, today: date) -> tuple[Forecast | None, Forecast | None]:
        """Of today and, with the same past, of tomorrow."""
        if self._made is None or self._made[0] != today:
            first, second = (self.forecaster.forecast(self._facts(today + timedelta(n))) for n in range(2))
            self._made = today, (first, second)
        return self._made[1]

    def _at(self, at_ms: int) -> float:
        made, slot = self._slot(at_ms)
        return float(made.middle[slot]) if made else float("nan")

    def _band(self, at_ms: int) -> tuple[float, float]:
        made, slot = self._slot(at_ms)
        return (float(made.quantiles[0][slot]), float(made.quantiles[-1][slot])) if made else (0.0, 0.0)

    def _slot(self, at_ms: int) -> tuple[Forecast | None, int]:
        day, slot = self._local(at_ms)
        if self.today is None:
            return None, slot
        today, tomorrow = self._forecasts(self.today)
        return (today if day <= self.today else tomorrow), slot


def _was(day: date, outside_c: float | None) -> Day | None:
    """The day as it turned out; None: as it was expected, for all that anybody knows."""
    return None if outside_c is None else Day(day.weekday(), outside_c)
