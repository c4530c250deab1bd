"""What the meters say now: last values with their age, and means over the last minutes.

Values are taken from what the pollers have read last; nothing is hooked into polling, so a gateway without a market
pays nothing for this. A value that is too old, or that the meter's status says nothing good of, is none.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.quantities import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from energybid.agent.market.plan import Sensor
    from energybid.agent.polling import BusPoller, Meter

KEEP_S = 1500.0
"""Means go back so far: a quarter of an hour that is over, and some time to ask for it."""
EVERY_S = 5.0
"""What lies closer together is one point of a trace."""
COVERED = 0.8
"""Of a time, at least so much must have been measured for its mean to be one."""


class Value(NamedTuple):
    """A number and when it was read."""

    at_s: float
    """Loop time."""
    number: float


class Live:
    """Last values of all meters of a gateway."""

    def __init__(self, pollers: Iterable[BusPoller], now: Callable[[], float]) -> None:
        """Look at what ``pollers`` have read.

        Args:
            pollers: All of the gateway's.
            now: Loop time.
        """
        self._meters: dict[str, Meter] = {meter.plan.name: meter for poller in pollers for meter in poller.meters}
        self._now = now

    def last(self, sensor: Sensor) -> Value | None:
        """The last number that was read, however old; None where the last reading had none."""
        meter = self._meters.get(sensor.meter)
        sample = meter.last.get(sensor.group) if meter else None
        if sample is None:
            return None
        number = sample.values[sensor.index]
        if number is None or (sample.status is not None and sample.status[sensor.index] == Status.SUSPECT):
            return None
        return Value(sample.mono_ms / 1000, number * sensor.factor)

    def number(self, sensor: Sensor | None) -> float | None:
        """The number now; None where it is not known."""
        found = sensor and self.last(sensor)
        return found.number if found and sensor and self._now() - found.at_s <= sensor.stale_s else None

    def total(self, sensors: Iterable[Sensor]) -> float | None:
        """The sum of some numbers; None where one is not known."""
        numbers = [self.number(sensor) for sensor in sensors]
        known = [number for number in numbers if number is not None]
        return sum(known) if numbers and len(known) == len(numbers) else None


class Trace:
    """The integral of a number over the last minutes."""

    def __init__(self, stale_s: float) -> None:
        """Begin with nothing.

        Args:
            stale_s: What is further apart is a gap.
        """
        self._stale_s = stale_s
        self._last: Value | None = None
        self._integral = self._covered_s = self._seen_s = 0.0
        self._points: deque[tuple[float, float, float, float]] = deque()
        """Loop time, integral, time covered by it, time of that in which no poll is missing."""

    def add(self, value: Value) -> float:
        """Take a number that was read, and give what it adds to the integral; one that is not newer changes nothing."""
        last, added = self._last, 0.0
        if last is not None:
            step_s = value.at_s - last.at_s
            if step_s <= 0:
                return 0.0
            if step_s <= self._stale_s:
                added = (value.number + last.number) / 2 * step_s
                self._integral += added
                self._covered_s += step_s
                self._seen_s += step_s if step_s <= self._stale_s / 2 else 0.0
        self._last = value
        if len(self._points) > 1 and value.at_s - self._points[-2][0] < EVERY_S:
            self._points.pop()
        self._points.append((value.at_s, self._integral, self._covered_s, self._seen_s))
        while self._points[0][0] < value.at_s - KEEP_S:
            self._points.popleft()
        return added

    def integral(self, begin_s: float, end_s: float) -> float | None:
        """Of the number over a time, in its unit times seconds; what was not measured counts as the mean of the rest.

        None where too little of the time was measured. The end may be later than the last value by as much as makes
        it stale.
        """
        if end_s <= begin_s or self._last is None:
            return None
        (first, covered_first, _), (second, covered_second, _) = self._at(begin_s), self._at(end_s)
        covered_s = covered_second - covered_first
        return (second - first) / covered_s * (end_s - begin_s) if covered_s >= COVERED * (end_s - begin_s) else None

    def seen(self, begin_s: float, end_s: float) -> float:
        """Share of a time in which no poll is missing."""
        if end_s <= begin_s or self._last is None:
            return 0.0
        return max(0.0, self._at(end_s)[2] - self._at(begin_s)[2]) / (end_s - begin_s)

    def mean(self, begin_s: float, end_s: float) -> float | None:
        """Of the number over a time; None where too little of it was measured."""
        found = self.integral(begin_s, end_s)
        return None if found is None else found / (end_s - begin_s)

    def _at(self, at_s: float) -> tuple[float, float, float]:
        """Integral, covered and seen time up to a moment."""
        assert self._last is not None  # noqa: S101  asked by ``integral``
        points = self._points
        if at_s >= points[-1][0]:
            more_s = at_s - points[-1][0]
            seen_s = self._seen_s + min(more_s, self._stale_s / 2)
            more_s = more_s if more_s <= self._stale_s else 0.0
            return self._integral + more_s * self._last.number, self._covered_s + more_s, seen_s
        right = bisect_right(points, at_s, key=lambda point: point[0])
        if right == 0:
            return points[0][1:]
        (t0, i0, c0, s0), (t1, i1, c1, s1) = points[right - 1], points[right]
        share = (at_s - t0) / (t1 - t0)
        return i0 + share * (i1 - i0), c0 + share * (c1 - c0), s0 + share * (s1 - s0)
