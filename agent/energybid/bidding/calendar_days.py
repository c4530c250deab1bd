"""Local days of a baseline programme: where they begin, what the clock on the wall shows, and which are holidays.

A settlement must come out the same in ten years and on any machine: so summer time is a rule here, not a time zone
database, and holidays are computed from ``calendars.toml``. Pure: dates and milliseconds since 1970 in and out.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

DAY_MS = 86_400_000
MINUTE_MS = 60_000
_EPOCH = date(1970, 1, 1).toordinal()
_FIRST_YEAR = 2007
"""Since then the United States change their clocks as below (Energy Policy Act of 2005, section 110)."""
_SHIFT_AT_MIN = 120
"""Clocks change at 02:00 of the time that ends then (15 U.S.C. 260a)."""
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_SATURDAY, _SUNDAY = 5, 6
_FIXED = re.compile(r"(\d\d)-(\d\d)")
_FLOATING = re.compile(r"(first|second|third|fourth|last) (\w+day) of (\d\d)")
_ORDER = ("first", "second", "third", "fourth")


def day_number(day: date) -> int:
    """Days since 1970-01-01."""
    return day.toordinal() - _EPOCH


def day_of(number: int) -> date:
    """The inverse of ``day_number``.

    Raises:
        ValueError: No calendar goes there.
    """
    try:
        return date.fromordinal(number + _EPOCH)
    except (OverflowError, ValueError):
        raise ValueError(f"day {number} is outside the calendar") from None


def nth(year: int, month: int, weekday: int, which: int) -> date:
    """The ``which``-th weekday (0 is Monday) of a month, counted from 0; -1 is the last."""
    if which < 0:
        end = date(year + month // 12, month % 12 + 1, 1) - timedelta(1)
        return end - timedelta((end.weekday() - weekday) % 7)
    first = date(year, month, 1)
    return first + timedelta((weekday - first.weekday()) % 7 + 7 * which)


class Moment(NamedTuple):
    """What the clock on the wall shows."""

    day: date
    minute: int
    """Of the day, 0 to 1439; on the day when summer time ends, 60 of them come twice."""


@dataclass(frozen=True, slots=True)
class Zone:
    """Local time by rule."""

    standard_min: int
    """Minutes by which standard time is ahead of UTC; negative in America."""
    summer: bool
    """Whether clocks change as in the United States: from 02:00 of the second Sunday of March to 02:00 of the first
    Sunday of November one hour is added."""

    def begins_ms(self, day: date) -> int:
        """Local midnight, as milliseconds since 1970.

        Raises:
            ValueError: Before 2007 in a zone with summer time.
        """
        on, off = _changes(day.year) if self.summer else (date.max, date.min)
        summer = on < day <= off
        return day_number(day) * DAY_MS - (self.standard_min + 60 * summer) * MINUTE_MS

    def local(self, time_ms: int) -> Moment:
        """The local day and minute of a moment."""
        minutes = time_ms // MINUTE_MS + self.standard_min
        if self.summer:
            minutes += 60 * self._is_summer(minutes)
        number, minute = divmod(minutes, 1440)
        return Moment(day_of(number), minute)

    def _is_summer(self, standard_minutes: int) -> bool:
        """Whether summer time holds at a moment, counted in minutes of standard time since 1970."""
        on, off = _changes(day_of(standard_minutes // 1440).year)
        # it ends at 02:00 summer time, which is 01:00 standard time
        return day_number(on) * 1440 + _SHIFT_AT_MIN <= standard_minutes < day_number(off) * 1440 + _SHIFT_AT_MIN - 60

    def intervals(self, day: date, interval_ms: int) -> dict[int, tuple[int, ...]]:
        """Beginnings of a day's intervals by the minute that the clock shows.

        Returns:
            Minute of the day → one beginning; two of them for the hour that comes twice; none for the hour that is left
            out.
        """
        found: dict[int, tuple[int, ...]] = {}
        for begins_ms in range(self.begins_ms(day), self.begins_ms(day + timedelta(1)), interval_ms):
            minute = self.local(begins_ms).minute
            found[minute] = (*found.get(minute, ()), begins_ms)
        return found


@lru_cache(maxsize=64)
def _changes(year: int) -> tuple[date, date]:
    if year < _FIRST_YEAR:
        raise ValueError(f"summer time is known from {_FIRST_YEAR} on, not in {year}")
    return nth(year, 3, _SUNDAY, 1), nth(year, 11, _SUNDAY, 0)


# ---------------------------------------------------------------- holidays


class Calendar(NamedTuple):
    """Rules for the holidays of a year."""

    rules: tuple[tuple[str, int], ...]
    """(When, first year)."""
    saturday: int
    """Days by which a holiday on a fixed date is moved when it falls on a Saturday."""
    sunday: int
    """The same for a Sunday."""

    def holidays(self, year: int) -> frozenset[date]:
        """Days of ``year`` that are kept as holidays."""
        kept = {
            self._kept(rule, each) for each in (year, year + 1) for rule, first_year in self.rules if each >= first_year
        }
        return frozenset(day for day in kept if day.year == year)

    def _kept(self, rule: str, year: int) -> date:
        if fixed := _FIXED.fullmatch(rule):
            day = date(year, int(fixed[1]), int(fixed[2]))
            return day + timedelta({_SATURDAY: self.saturday, _SUNDAY: self.sunday}.get(day.weekday(), 0))
        floating = _FLOATING.fullmatch(rule)
        if not floating or floating[2] not in _WEEKDAYS:
            raise ValueError(f"holiday {rule!r}: write MM-DD, or such as 'last monday of 05'")
        which = _ORDER.index(floating[1]) if floating[1] in _ORDER else -1
        return nth(year, int(floating[3]), _WEEKDAYS.index(floating[2]), which)


@lru_cache(maxsize=1)
def calendars() -> dict[str, Calendar]:
    """Every calendar of ``calendars.toml`` by its name."""
    text = files("energybid.bidding").joinpath("calendars.toml").read_text(encoding="utf-8")
    return {
        name: Calendar(
            tuple((rule["on"], rule.get("since", 1)) for rule in table["holiday"]), table["saturday"], table["sunday"]
        )
        for name, table in tomllib.loads(text).items()
    }


@lru_cache(maxsize=256)
def is_holiday(calendar: str, day: date) -> bool:
    """Whether a calendar keeps a day as holiday; ``none`` keeps no day.

    Raises:
        ValueError: No such calendar.
    """
    if calendar != "none" and calendar not in calendars():
        raise ValueError(f"calendar {calendar!r} is not one of none, {', '.join(sorted(calendars()))}")
    return calendar != "none" and day in calendars()[calendar].holidays(day.year)
