"""What a gateway has been told of prices, how old it is, what it has learned of them, and the outlook made of it.

Day-ahead and real-time curves come in; days that are over teach the price model. Four weeks of days are kept and the
model is made anew of all of them each day; after that its bins stay and each day is counted, old ones fading. Days are
days of UTC. Needs numpy (extra ``bidding``). Pure: times come in as milliseconds since 1970.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from energybid.bidding.horizon import Outlook
from energybid.bidding.packed import plain
from energybid.bidding.prices import Array, Place, PriceModel, Shape

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
HORIZON_MS = 36 * HOUR_MS
"""Value functions look so far ahead..."""
STAGES_MAX = 432
"""... but no more steps than this: 36 hours of five minutes, 7 of one minute."""
SLOW_H = 3.0
"""Time constant of the running mean of deviations."""
KEPT_DAYS = 28
"""Of prices as they were; the model's bins are made from so many."""
KEEP = 0.5 ** (1 / 365)
"""What counts are worth a day later: half after a year."""
HELD_MS = 2 * DAY_MS
"""Without a round of its length, before a model gives way to one of another length."""
SETTLE_MS = HOUR_MS
"""After midnight, until late real-time prices are in."""
RAW_DAYS = 3
"""Of single prices, before they are a day that is learned, and for prices of the same hour."""
CURVES_MAX = 32
"""Pieces of day-ahead curves of different steps, or with gaps between them."""
REPEATED_DAYS = 7
"""A day-ahead price stands in for the same time of up to so many later days."""


class PriceCurve(NamedTuple):
    """Prices of steps that follow each other, money per MWh."""

    begins_ms: int
    step_ms: int
    prices: tuple[float, ...]
    made_ms: int
    """When the market made it."""

    @property
    def ends_ms(self) -> int:
        """End of the last step."""
        return self.begins_ms + len(self.prices) * self.step_ms

    def beside(self, later: PriceCurve) -> list[PriceCurve]:
        """What is left of it beside a later curve: its steps that begin before that one, and that end after it."""
        before = -(-(later.begins_ms - self.begins_ms) // self.step_ms)
        after = max(0, (later.ends_ms - self.begins_ms) // self.step_ms)
        first = self._replace(prices=self.prices[: max(0, before)])
        last = self._replace(begins_ms=self.begins_ms + after * self.step_ms, prices=self.prices[after:])
        if not last.prices or not first.prices or after <= before:
            return [self] if last.prices and first.prices else [part for part in (first, last) if part.prices]
        return [first, last]

    def since(self, moment_ms: int) -> PriceCurve:
        """Without the steps that are over by a moment."""
        over = max(0, (moment_ms - self.begins_ms) // self.step_ms)
        return self._replace(begins_ms=self.begins_ms + over * self.step_ms, prices=self.prices[over:])

    def at(self, times: Array) -> Array:
        """Of these moments; NaN outside."""
        place = np.floor((times - self.begins_ms) / self.step_ms).astype(np.intp)
        inside = (place >= 0) & (place < len(self.prices))
        return np.where(inside, np.array(self.prices)[np.where(inside, place, 0)], np.nan)


class View(NamedTuple):
    """What is known of prices when a round is planned."""

    source: str
    """``model``, ``day-ahead``, ``real-time`` (what was at the same hour) or ``none``."""
    expected: Array
    """Of the round and of each step after it, without news; money per MWh."""
    later: float
    """After the last of them."""
    step: int
    """The round's place in the day."""
    model: PriceModel | None
    place: Place | None
    """Of the price in the step before the round."""
    version: tuple[Any, ...]
    """Another one wherever values found before no longer hold."""
    day_ahead_age_s: float | None
    real_time_age_s: float | None

    def outlook(self, model: PriceModel | None, step_h: float) -> Outlook:
        """After the round: by this model, or as expected."""
        if model is not None:
            return model.outlook(self.expected[1:], step=self.step, later=self.later)
        certain = Outlook.certain(step_h, self.expected[1:].tolist())
        return Outlook(step_h, certain.stages, self.later)


class PriceBook:
    """Prices told and learned, for rounds of one length."""

    def __init__(self) -> None:
        """Know nothing."""
        self._day_ahead: list[PriceCurve] = []
        self._seen: dict[int, tuple[int, float]] = {}
        """Real-time prices: begin -> length, price."""
        self._day_ahead_ms: int | None = None
        self._real_time_ms: int | None = None
        """When the newest of them was made."""
        self.step_ms = 0
        """Of the days below and the model; 0: none yet."""
        self.days: dict[int, tuple[Array, Array]] = {}
        """UTC day -> real-time and day-ahead prices of its steps; none once the model's bins stay."""
        self.learned: int | None = None
        """Last UTC day that was."""
        self.model: PriceModel | None = None
        self._merged: PriceModel | None = None
        self._generation = 0
        self._asked_ms: int | None = None
        """When a round of a market of this length was planned last."""

    # ------------------------------------------------------------ told

    def day_ahead(self, curve: PriceCurve) -> None:
        """Take a day-ahead curve; where curves overlap, the later one counts."""
        self._day_ahead_ms = max(self._day_ahead_ms or 0, curve.made_ms)
        times = curve.begins_ms + curve.step_ms * np.arange(len(curve.prices), dtype=float)
        if np.array_equal(self._told(times), curve.prices):
            return
        parts = [part for old in self._day_ahead for part in old.beside(curve)]
        before = [part for part in parts if part.step_ms == curve.step_ms and part.ends_ms == curve.begins_ms]
        for part in before:
            curve = curve._replace(begins_ms=part.begins_ms, prices=part.prices + curve.prices)
        kept = [part for part in parts if part not in before]
        old_ms = curve.ends_ms - (REPEATED_DAYS + 3) * DAY_MS
        self._day_ahead = [part for part in (*kept, curve.since(old_ms)) if part.ends_ms > old_ms][-CURVES_MAX:]
        self._generation += 1

    def real_time(self, curve: PriceCurve) -> None:
        """Take the prices of steps that are over."""
        for number, price in enumerate(curve.prices):
            self._seen[curve.begins_ms + number * curve.step_ms] = curve.step_ms, price
        self._real_time_ms = max(self._real_time_ms or 0, curve.made_ms)
        newest = max(self._seen)
        for begin in [begin for begin in self._seen if begin < newest - RAW_DAYS * DAY_MS]:
            del self._seen[begin]

    # ------------------------------------------------------------ asked

    def view(self, begins_ms: int, step_ms: int, now_ms: int) -> View:
        """What is known of a round's price and of those after it."""
        count = max(2, min(HORIZON_MS // step_ms, STAGES_MAX) + 1)
        times = begins_ms + step_ms * np.arange(count, dtype=float)
        expected = self._expected(times)
        source = "day-ahead" if self._covers(begins_ms) else "real-time"
        if expected is None:
            source, expected = "none", np.ones(count)
        model = self.model if self.step_ms == step_ms and source != "none" else None
        place = self._place(model, begins_ms, step_ms) if model else None
        day = max(1, min(count, DAY_MS // step_ms))
        return View(
            "model" if place is not None else source,
            expected,
            float(np.median(expected[-day:])),
            begins_ms % DAY_MS // step_ms,
            model if place is not None else None,
            place,
            (self._generation, step_ms, source, place is None),
            self._age_s(now_ms, self._day_ahead_ms),
            self._age_s(now_ms, self._real_time_ms),
        )

    @property
    def merged(self) -> PriceModel | None:
        """The model with fewer states, for assets that do not live on spikes."""
        if self._merged is None and self.model is not None:
            self._merged = self.model.merged(2, 4)
        return self._merged

    def _age_s(self, now_ms: int, made_ms: int | None) -> float | None:
        return None if made_ms is None else (now_ms - made_ms) / 1000

    def _covers(self, at_ms: int) -> bool:
        return bool(np.isfinite(self._known(np.array([float(at_ms)]))[0]))

    def _known(self, times: Array) -> Array:
        """Day-ahead prices as told, those of the same time of the days before where they are not; or NaN."""
        result = np.full(len(times), np.nan)
        for back in range(REPEATED_DAYS + 1):
            if np.isnan(result).any():
                result = np.where(np.isnan(result), self._told(times - back * DAY_MS), result)
        return result

    def _told(self, times: Array) -> Array:
        """Day-ahead prices as told; NaN where there are none."""
        result = np.full(len(times), np.nan)
        for curve in reversed(self._day_ahead):
            result = np.where(np.isnan(result), curve.at(times), result)
        return result

    def _expected(self, times: Array) -> Array | None:
        """Day-ahead prices; where there are none what real time was at the same hour, or on the mean."""
        result = self._known(times)
        if np.isnan(result).any() and self._seen:
            result = np.where(np.isnan(result), self._of_the_hour(times), result)
        if np.isnan(result).all():
            return None
        return np.where(np.isnan(result), np.nanmean(result), result)

    def _of_the_hour(self, times: Array) -> Array:
        begins = np.array(list(self._seen), dtype=float)
        prices = np.array([price for _, price in self._seen.values()])
        hours = (begins % DAY_MS // HOUR_MS).astype(np.intp)
        count = np.bincount(hours, minlength=24)
        means = np.bincount(hours, prices, minlength=24) / np.maximum(count, 1)
        means = np.where(count > 0, means, prices.mean())
        return np.asarray(means[(times % DAY_MS // HOUR_MS).astype(np.intp)])

    def _place(self, model: PriceModel, begins_ms: int, step_ms: int) -> Place | None:
        """Where the price stands in the step before the round: seen, or expected from what was seen last."""
        times = begins_ms - step_ms * np.arange(DAY_MS // step_ms, 0, -1, dtype=float)
        real_time = self._real_time(times, step_ms)
        seen = np.flatnonzero(np.isfinite(real_time))
        if not len(seen):
            return None
        end = int(seen[-1]) + 1
        day_ahead = self._expected(times[:end])
        if day_ahead is None:
            return None
        place = model.ending(real_time[:end], day_ahead)
        steps = (times[end:] % DAY_MS // step_ms).astype(int).tolist()
        return model.carried(place, steps)

    def _real_time(self, times: Array, step_ms: int) -> Array:
        """Means over steps of what was seen; NaN where nothing was."""
        sums, counts = np.zeros(len(times)), np.zeros(len(times))
        first = float(times[0])
        for begin, (length_ms, price) in self._seen.items():
            low = max(0, int((begin - first) // step_ms))
            high = min(len(times) - 1, int((begin + length_ms - 1 - first) // step_ms))
            if begin + length_ms > first:
                sums[low : high + 1] += price
                counts[low : high + 1] += 1
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    # ------------------------------------------------------------ learning

    def learn(self, step_ms: int, now_ms: int, *, lasting: bool = True) -> bool:
        """Learn the days that are over, for rounds of a length.

        There is a model of one length: of another one only when there was no round of the first for two days.

        Args:
            step_ms: Length of a round that is planned.
            now_ms: When this is asked.
            lasting: Whether it is of a market, and may come again.

        Returns:
            Whether something was learned.
        """
        held = self._asked_ms is not None and now_ms - self._asked_ms <= HELD_MS
        if step_ms != self.step_ms and (not self.step_ms or (lasting and not held)) and not self.begin(step_ms):
            return False
        if lasting and step_ms == self.step_ms:
            self._asked_ms = now_ms
        over = (now_ms - SETTLE_MS) // DAY_MS
        due = [day for day in sorted({begin // DAY_MS for begin in self._seen}) if day < over]
        fresh = [day for day in due if self.learned is None or day > self.learned]
        for day in fresh:
            self._learn_day(day)
        return bool(fresh)

    def begin(self, step_ms: int) -> bool:
        """Another length of rounds: learn anew, from what is still there; False where no model fits it."""
        if DAY_MS % step_ms or DAY_MS // step_ms % Shape().blocks:
            return False
        self.step_ms, self.days, self.learned, self.model, self._merged = step_ms, {}, None, None, None
        self._generation += 1
        return True

    def _learn_day(self, day: int) -> None:
        times = day * DAY_MS + self.step_ms * np.arange(DAY_MS // self.step_ms, dtype=float)
        real_time, day_ahead = self._real_time(times, self.step_ms), self._expected(times)
        self.learned = day
        if day_ahead is not None:
            self.count(day, real_time, day_ahead)

    def count(self, day: int, real_time: Array, day_ahead: Array) -> None:
        """A day is over.

        Args:
            day: Its number since 1970 (UTC).
            real_time: Of its steps; NaN where not seen.
            day_ahead: Of the same steps.
        """
        if self.model is not None and not self.days:
            before = self._place(self.model, day * DAY_MS, self.step_ms)
            self.model.learn(real_time, day_ahead, before or Place(0.0, 0.0), keep=KEEP)
        else:
            self.days[day] = real_time, day_ahead
            self._make()
        self.learned = day
        self._merged = None
        self._generation += 1

    def _make(self) -> None:
        """The model of all the days that are kept."""
        size = DAY_MS // self.step_ms
        first, last = min(self.days), max(self.days)
        gap = np.full(size, np.nan), np.zeros(size)
        rows = [self.days.get(day, gap) for day in range(first, last + 1)]
        real_time, day_ahead = (np.concatenate(column) for column in zip(*rows, strict=True))
        if np.isfinite(real_time).sum() >= size:
            self.model = PriceModel.learned(
                real_time, day_ahead, steps_per_day=size, shape=shape_for(self.step_ms / HOUR_MS)
            )
        if len(self.days) >= KEPT_DAYS:
            self.days = {}

    # ------------------------------------------------------------ restart

    def state(self) -> dict[str, Any]:
        """What was learned, for ``packed``; not what was told, which comes again."""
        return {
            "step_ms": self.step_ms,
            "learned": self.learned,
            "days": {str(day): list(rows) for day, rows in self.days.items()},
            "model": self.model.state() if self.model else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up.

        Raises:
            ValueError: It is damaged, or of another format; nothing is changed.
        """
        try:
            step_ms, learned = int(state["step_ms"]), state["learned"]
            size = DAY_MS // step_ms if step_ms else 0
            days = {int(day): (plain(rows[0]), plain(rows[1])) for day, rows in state["days"].items()}
            model = PriceModel.restored(state["model"]) if state["model"] else None
        except (AttributeError, IndexError, KeyError, TypeError) as error:
            raise ValueError(f"the prices' state is damaged: {error!r}") from None
        if any(len(row) != size for rows in days.values() for row in rows) or (model and model.steps_per_day != size):
            raise ValueError("the prices' state is of days of another length")
        self.step_ms, self.days, self.model = step_ms, days, model
        self.learned = None if learned is None else int(learned)
        self._asked_ms = None if learned is None else (int(learned) + 1) * DAY_MS
        self._merged = None
        self._generation += 1


def shape_for(step_h: float) -> Shape:
    """The model's shape for rounds of a length: its running mean takes the same time."""
    return Shape(slow_steps=max(1.0, SLOW_H / step_h))
