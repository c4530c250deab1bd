"""Baselines: what a site would have used in an event's intervals, by a programme's rules. Exact, and told day by day.

Input are whole Wh for each interval that is known (an interval that is missing is missing: it is never zero) and the
days of earlier events; out comes the baseline and everything that led to it: the days looked at and why one was passed
over, what each weighs, the adjustment before and after its bounds. Numbers are fractions until the end, where each
interval is rounded once, half to even, to whole Wh. Rules between days, clocks and gaps: docs/settlement.md. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from energybid.bidding.baseline_rules import (
    Adjusting,
    Kind,
    Method,
    Of,
    Programme,
    Rank,
    Take,
    Windows,
)
from energybid.bidding.calendar_days import MINUTE_MS, is_holiday

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

SECOND_MS, HOUR_MS = 1_000, 3_600_000
INTERVALS_MAX = 1_440
"""Most intervals of an event."""


class BaselineError(ValueError):
    """The rules give no baseline for what is known. Nothing is settled on a guess."""


class Passed(StrEnum):
    """Why a day of the right kind was not looked at further."""

    EVENT = "event"
    MISSING = "missing data"
    """An interval that the rules need is not known, or does not exist on that day."""
    LOW = "low usage"


class Event(NamedTuple):
    """Consecutive intervals, from a round's announcement."""

    begins_ms: int
    interval_ms: int
    """A whole number of minutes that divides the hour; of seconds for a programme that asks for no other time."""
    number: int

    @property
    def ends_ms(self) -> int:
        """Where the last interval ends."""
        return self.begins_ms + self.interval_ms * self.number

    @property
    def intervals(self) -> tuple[int, ...]:
        """Beginnings."""
        return tuple(range(self.begins_ms, self.ends_ms, self.interval_ms))


class Used(NamedTuple):
    """A day in the pool."""

    day: date
    usage: Fraction
    """Mean Wh per interval by which it was ranked."""
    weight: int
    """0: in the pool and not taken."""


class Adjusted(NamedTuple):
    """What the event day did to the average."""

    actual: Fraction
    """Mean Wh per interval in the windows on the event day."""
    average: Fraction
    """The same for the days taken."""
    found: Fraction | None
    """Ratio or difference; None: the average is not above zero, so there is no ratio and nothing is adjusted."""
    applied: Fraction
    """Within the programme's bounds."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the rules give, and how."""

    days: tuple[Used, ...]
    """The pool, latest day first."""
    passed: tuple[tuple[date, Passed], ...]
    """Latest first."""
    average: tuple[Fraction, ...]
    """For each interval, before adjustment."""
    adjusted: Adjusted | None
    wh: tuple[int, ...]
    """The baseline of each interval."""


Slot = tuple[int, int]
"""(Days from the event's first day, minute of the day by the clock on the wall)."""


def compute(
    programme: Programme, event: Event, loads: Mapping[int, int], events: Iterable[date] = (), schedule_w: int = 0
) -> Baseline:
    """The baseline of an event.

    Args:
        programme: Its rules.
        event: The intervals.
        loads: Wh of each interval that is known, by its beginning.
        events: Local days of other events, and of outages, which the programme does not take as ordinary days.
        schedule_w: For programmes that settle against the bid's schedule.

    Raises:
        BaselineError: Too few days, data missing on the event day, or intervals that do not fit the programme.
    """
    _check(programme, event)
    if programme.method is Method.SCHEDULE:
        each = Fraction(schedule_w * event.interval_ms, HOUR_MS)
        return Baseline((), (), (each,) * event.number, None, (round(each),) * event.number)
    if programme.windows is not None:
        each = _mean(_known(loads, _around(event, programme.windows)))
        return Baseline((), (), (each,) * event.number, None, (round(each),) * event.number)
    return _Days(programme, event, loads, frozenset(events)).baseline()


def needed(programme: Programme, event: Event, events: Iterable[date] = ()) -> list[int]:
    """Beginnings of all intervals that ``compute`` may look at, in order: those of the event, and the baseline's."""
    _check(programme, event)
    wanted = set(event.intervals)
    if programme.windows is not None:
        wanted |= set(_around(event, programme.windows))
    if programme.method is Method.DAYS:
        wanted |= _Days(programme, event, {}, frozenset(events)).needed()
    return sorted(wanted)


def kind_of(programme: Programme, day: date) -> Kind:
    """What a day is to a programme."""
    if day.weekday() >= 5:  # noqa: PLR2004  Saturday
        return Kind.SATURDAY if day.weekday() == 5 else Kind.SUNDAY  # noqa: PLR2004
    return Kind.HOLIDAY if is_holiday(programme.calendar, day) else Kind.WEEKDAY


def fits(programme: Programme, interval_ms: int) -> str:
    """Why a programme knows no intervals of a length; empty where it does.

    Other days are compared by what the clock on the wall shows, in minutes. Who asks for none may settle by seconds.
    """
    unit_ms, unit = (SECOND_MS, "seconds") if programme.method is Method.SCHEDULE else (MINUTE_MS, "minutes")
    if interval_ms < unit_ms or interval_ms % unit_ms or HOUR_MS % interval_ms:
        return f"an interval of {interval_ms} ms: whole {unit} that divide the hour are wanted"
    return ""


def _check(programme: Programme, event: Event) -> None:
    if fault := fits(programme, event.interval_ms):
        raise BaselineError(fault)
    if event.begins_ms % event.interval_ms or not 0 < event.number <= INTERVALS_MAX:
        raise BaselineError("the event does not begin and end with intervals, or is too long")


def _around(event: Event, windows: Windows) -> tuple[int, ...]:
    """Beginnings of the intervals in windows around an event."""
    ends = event.begins_ms - windows.before_gap_min * MINUTE_MS
    begins = event.ends_ms + windows.after_gap_min * MINUTE_MS
    before = range(ends - windows.before_min * MINUTE_MS, ends, event.interval_ms)
    after = range(begins, begins + windows.after_min * MINUTE_MS, event.interval_ms)
    lengths = (windows.before_min, windows.before_gap_min, windows.after_min, windows.after_gap_min)
    if any(length * MINUTE_MS % event.interval_ms for length in lengths):
        raise BaselineError(f"intervals of {event.interval_ms // MINUTE_MS} min do not fill the programme's windows")
    return (*before, *after)


def _known(loads: Mapping[int, int], intervals: Sequence[int]) -> list[int]:
    missing = [begins_ms for begins_ms in intervals if begins_ms not in loads]
    if missing:
        raise BaselineError(f"{len(missing)} of {len(intervals)} intervals around the event are missing")
    return [loads[begins_ms] for begins_ms in intervals]


def _mean(values: Sequence[int | Fraction]) -> Fraction:
    return Fraction(sum(values)) / len(values)


def _order(used: tuple[date, Fraction]) -> tuple[Fraction, date]:
    """Sorts the highest last; of two alike the later day is the higher."""
    return used[1], used[0]


class _Days:
    """One computation from earlier days."""

    def __init__(self, programme: Programme, event: Event, loads: Mapping[int, int], events: frozenset[date]) -> None:
        self._programme, self._event, self._loads, self._events = programme, event, loads, events
        self._first = programme.zone.local(event.begins_ms).day
        kind = kind_of(programme, self._first)
        self._pool = next(pool for pool in programme.pools if kind in pool.on)
        self._clocks: dict[date, dict[int, tuple[int, ...]]] = {}
        self._slots = [self._slot(begins_ms) for begins_ms in event.intervals]
        adjustment = programme.adjustment
        self._window = () if adjustment is None else _around(event, adjustment.windows)
        self._passed: list[tuple[date, Passed]] = []

    def baseline(self) -> Baseline:
        """Choose, average, adjust, round."""
        pool = self._chosen()
        days = self._weighed(pool)
        average = tuple(self._average(days, slot) for slot in self._slots)
        adjusted = self._adjusted(days)
        if adjusted is None:
            final = average
        elif self._programme.adjustment and self._programme.adjustment.kind is Adjusting.RATIO:
            final = tuple(each * adjusted.applied for each in average)
        else:
            final = tuple(each + adjusted.applied for each in average)
        passed = tuple(sorted(self._passed, reverse=True))
        return Baseline(tuple(days), passed, average, adjusted, tuple(map(round, final)))

    def needed(self) -> set[int]:
        """Intervals of every day that could be looked at, and of the windows."""
        wanted = set(self._window)
        for day in self._like():
            for slot in self._asked():
                wanted |= set(self._found(day, slot))
            if self._pool.rank is Rank.DAY:
                wanted |= {begins_ms for each in self._clock(day).values() for begins_ms in each}
        return wanted

    # -------------------------------------------- clocks

    def _slot(self, begins_ms: int) -> Slot:
        day, minute = self._programme.zone.local(begins_ms)
        return (day - self._first).days, minute

    def _clock(self, day: date) -> dict[int, tuple[int, ...]]:
        if day not in self._clocks:
            self._clocks[day] = self._programme.zone.intervals(day, self._event.interval_ms)
        return self._clocks[day]

    def _found(self, day: date, slot: Slot) -> tuple[int, ...]:
        """Intervals at the same time by the clock, seen from another day: none, one or two."""
        return self._clock(day + timedelta(slot[0])).get(slot[1], ())

    def _asked(self) -> list[Slot]:
        return self._slots + [self._slot(begins_ms) for begins_ms in self._window]

    def _load(self, day: date, slot: Slot) -> Fraction | None:
        """Wh at that time by the clock; the mean where it comes twice; None where one is missing or none exists."""
        found = self._found(day, slot)
        if not found or any(begins_ms not in self._loads for begins_ms in found):
            return None
        return _mean([self._loads[begins_ms] for begins_ms in found])

    # -------------------------------------------- days

    def _like(self) -> Iterator[date]:
        """Days of the pool's kinds within the look-back, latest first."""
        for back in range(1 + self._pool.gap_days, self._pool.look_back_days + 1):
            day = self._first - timedelta(back)
            if kind_of(self._programme, day) in self._pool.among:
                yield day

    def _usage(self, day: date) -> Fraction | None:
        """By what a day is ranked; None: something that is needed of it is missing."""
        values = [self._load(day, slot) for slot in self._asked()]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        if self._pool.rank is Rank.EVENT:
            return _mean(known[: len(self._slots)])
        whole = [begins_ms for each in self._clock(day).values() for begins_ms in each]
        if any(begins_ms not in self._loads for begins_ms in whole):
            return None
        return _mean([self._loads[begins_ms] for begins_ms in whole])

    def _chosen(self) -> list[tuple[date, Fraction]]:
        """The pool with its usages, latest first."""
        rules = self._pool
        ordinary, held = self._qualified()
        chosen = self._without_low(ordinary)
        if len(chosen) < rules.least and rules.fill:
            chosen += sorted(held, key=_order, reverse=True)[: rules.least - len(chosen)]
            taken = {day for day, _ in chosen}
            self._passed = [each for each in self._passed if each[0] not in taken]
        if len(chosen) < rules.least:
            raise BaselineError(
                f"{len(chosen)} days of the {rules.look_back_days} before {self._first} can be taken;"
                f" the programme wants {rules.least}"
            )
        return sorted(chosen, reverse=True)

    def _qualified(self) -> tuple[list[tuple[date, Fraction]], list[tuple[date, Fraction]]]:
        """(Ordinary days, days of events), with data, latest first."""
        ordinary, held = [], []
        for day in self._like():
            usage = self._usage(day)
            if not self._pool.events and day in self._events:
                self._passed.append((day, Passed.EVENT))
                held += [] if usage is None else [(day, usage)]
            elif usage is None:
                self._passed.append((day, Passed.MISSING))
            else:
                ordinary.append((day, usage))
        return ordinary, held

    def _without_low(self, ordinary: list[tuple[date, Fraction]]) -> list[tuple[date, Fraction]]:
        """The latest days whose usage is not below the programme's threshold."""
        rules, left = self._pool, ordinary
        peak = self._peak(ordinary) if rules.threshold_of is Of.PEAK and ordinary else Fraction(0)
        while left and rules.threshold is not None:
            pool = left[: rules.days]
            whole = _mean([usage for _, usage in pool]) if rules.threshold_of is Of.POOL else peak
            low = [day for day, usage in pool if usage < rules.threshold * whole]
            if whole <= 0 or not low:  # a share of an export is no threshold for usage
                break
            self._passed += [(day, Passed.LOW) for day in low]
            left = [each for each in left if each[0] not in low]
        chosen = left[: rules.days]
        last = chosen[-1][0] if chosen else self._first
        if len(chosen) == rules.days:  # the days before the last one that was needed were never looked at
            self._passed = [each for each in self._passed if each[0] > last]
        return chosen

    def _peak(self, ordinary: list[tuple[date, Fraction]]) -> Fraction:
        loads = [self._load(day, slot) for day, _ in ordinary for slot in self._slots]
        return max(load for load in loads if load is not None)

    def _weighed(self, pool: list[tuple[date, Fraction]]) -> list[Used]:
        """Every day of the pool with its weight."""
        rules = self._pool
        ranked = sorted(pool, key=_order, reverse=True)
        taken = {Take.ALL: ranked, Take.HIGHEST: ranked[: rules.count], Take.MIDDLE: ranked[1:-1]}[rules.take]
        weights = dict.fromkeys((day for day, _ in taken), 1)
        if rules.weights:
            weights = {day: weight for (day, _), weight in zip(taken, rules.weights, strict=False)}
        return [Used(day, usage, weights.get(day, 0)) for day, usage in pool]

    # -------------------------------------------- numbers

    def _average(self, days: list[Used], slot: Slot) -> Fraction:
        total = Fraction(0)
        for day, _, weight in days:
            if weight:
                total += weight * (self._load(day, slot) or Fraction(0))  # qualified days have it: no zero comes of it
        return total / sum(used.weight for used in days)

    def _adjusted(self, days: list[Used]) -> Adjusted | None:
        rules = self._programme.adjustment
        if rules is None:
            return None
        actual = _mean(_known(self._loads, self._window))
        average = _mean([self._average(days, self._slot(begins_ms)) for begins_ms in self._window])
        if rules.kind is Adjusting.DIFFERENCE:
            return Adjusted(actual, average, actual - average, actual - average)
        if average <= 0:
            return Adjusted(actual, average, None, Fraction(1))
        ratio = actual / average
        applied = max(ratio, rules.least or Fraction(0))
        return Adjusted(actual, average, ratio, applied if rules.most is None else min(applied, rules.most))
