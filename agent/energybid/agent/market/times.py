"""Times of day of a site → moments, daylight saving included. Pure; all moments are wall clock, ms."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

DAY_MIN = 24 * 60


class Window(NamedTuple):
    """From one time of day to another."""

    begins_ms: int
    ends_ms: int


def moment(day: int, minute: int, at_ms: int, zone: ZoneInfo) -> int:
    """When a time of day is, so many days from the day of ``at_ms``; one that DST leaves out is an hour later."""
    date = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone).date() + timedelta(days=day)
    return round(datetime.combine(date, time(minute // 60, minute % 60), zone).timestamp() * 1000)


def next_moment(minute: int, at_ms: int, zone: ZoneInfo) -> int:
    """The first such time of day after a moment."""
    return next(found for day in range(-1, 3) if (found := moment(day, minute, at_ms, zone)) > at_ms)


def window(begin: int, end: int, at_ms: int, zone: ZoneInfo) -> Window:
    """The daily window that a moment is in, or else the next one.

    Args:
        begin: Time of day, minutes.
        end: The same; not after ``begin``: of the next day. Equal: the whole day.
        at_ms: The moment.
        zone: Of the times.
    """
    over = int(end <= begin)
    windows = (Window(moment(day, begin, at_ms, zone), moment(day + over, end, at_ms, zone)) for day in range(-2, 3))
    return next(found for found in windows if found.ends_ms > at_ms)
