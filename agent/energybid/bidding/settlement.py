"""Settlement: energy of intervals from register readings, and the money of a round. Exact; docs/settlement.md.

Registers are read when they are read, settlement asks at interval boundaries: between two readings the register is
taken as linear, with the bounds that a register which never falls allows. What is not known is missing, never zero.
Money is a fraction until the end and is rounded once, half to even. Pure; no clock, no float.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from energybid.bidding.baseline_rules import Beyond, Payment

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from energybid.bidding.curve import Curve

HOUR_MS = 3_600_000
WH_PER_MWH = 1_000_000


class Point(NamedTuple):
    """A register at a moment; sorts by it."""

    time_ms: int
    """When the reply came, by the corrected clock."""
    early_ms: int
    """Before this the register was not yet what was read; the time of the poll and the clock's error taken off."""
    late_ms: int
    """After this it was not any more; the clock's error added."""
    run: int
    """Readings can be compared within a run: it ends where the register was reset or rolled over."""
    wh: Fraction


class Boundary(NamedTuple):
    """A register at an interval's boundary."""

    run: int
    wh: Fraction
    low: Fraction | None
    """Bounds, where a reading that is certainly before or after gives them."""
    high: Fraction | None


class Load(NamedTuple):
    """Net import of an interval, Wh."""

    wh: int
    low: Fraction | None
    high: Fraction | None


class Register:
    """All readings of one register."""

    def __init__(self, points: Iterable[Point]) -> None:
        """Keep them by time."""
        self._points = sorted(points)
        self._times = [point.time_ms for point in self._points]

    def at(self, time_ms: int, gap_ms: int) -> Boundary | None:
        """The register at a moment.

        Args:
            time_ms: The moment.
            gap_ms: How far apart the readings before and after it may be.

        Returns:
            None where it is not known: no reading on a side, too far apart, of two runs, or falling between them.
        """
        before_at, after_at = bisect_right(self._times, time_ms) - 1, bisect_left(self._times, time_ms)
        if before_at < 0 or after_at == len(self._points):
            return None
        before, after = self._points[before_at], self._points[after_at]
        if after.time_ms - before.time_ms > gap_ms or before.run != after.run or after.wh < before.wh:
            return None
        wh = before.wh
        if after.time_ms > before.time_ms:
            share = Fraction(time_ms - before.time_ms, after.time_ms - before.time_ms)
            wh += (after.wh - before.wh) * share
        run = [point for point in self._points[max(before_at - 8, 0) : after_at + 9] if point.run == before.run]
        low = max((point.wh for point in run if point.late_ms <= time_ms), default=None)
        high = min((point.wh for point in run if point.early_ms >= time_ms), default=None)
        return Boundary(before.run, wh, low, high)


def load(imports: Register, exports: Register | None, begins_ms: int, interval_ms: int) -> Load | None:
    """Net import of an interval; None where a register is not known at one of its boundaries."""
    taken = _grown(imports, begins_ms, interval_ms)
    given = (Fraction(0),) * 3 if exports is None else _grown(exports, begins_ms, interval_ms)
    if taken is None or given is None:
        return None
    low = None if taken[1] is None or given[2] is None else taken[1] - given[2]
    high = None if taken[2] is None or given[1] is None else taken[2] - given[1]
    return Load(round((taken[0] or 0) - (given[0] or 0)), low, high)


def _grown(
    register: Register, begins_ms: int, interval_ms: int
) -> tuple[Fraction, Fraction | None, Fraction | None] | None:
    """(By how much it grew, at least, at most)."""
    begin, end = register.at(begins_ms, interval_ms), register.at(begins_ms + interval_ms, interval_ms)
    if begin is None or end is None or begin.run != end.run or end.wh < begin.wh:
        return None
    low = None if end.low is None or begin.high is None else max(end.low - begin.high, Fraction(0))
    high = None if end.high is None or begin.low is None else end.high - begin.low
    return end.wh - begin.wh, low, high


# ---------------------------------------------------------------- money


class Terms(NamedTuple):
    """What an award says about money."""

    curve: Curve
    schedule_w: int
    net_w: int
    ticks: int
    as_bid: bool
    interval_ms: int
    payment: Payment

    @property
    def awarded(self) -> Fraction:
        """Wh of an interval by which the award is below the schedule."""
        return Fraction((self.schedule_w - self.net_w) * self.interval_ms, HOUR_MS)

    def worth(self, wh: Fraction) -> Fraction:
        """Ticks times Wh that are earned by importing ``wh`` less than the schedule in an interval."""
        if not self.as_bid:
            return wh * self.ticks
        power_w = wh * HOUR_MS / self.interval_ms
        hours = Fraction(self.interval_ms, HOUR_MS)
        return (self.curve.area(Fraction(self.schedule_w)) - self.curve.area(self.schedule_w - power_w)) * hours


class Line(NamedTuple):
    """One interval's settlement; energy in Wh, money in ticks times Wh."""

    baseline_wh: int
    actual_wh: int
    delivered_wh: int
    paid: Fraction
    charged: Fraction


class Settled(NamedTuple):
    """A round's."""

    lines: tuple[Line, ...]
    amount: int
    """In units of the round's decimals of its currency; positive: the site is paid."""

    @property
    def baseline_wh(self) -> int:
        """Over all intervals."""
        return sum(line.baseline_wh for line in self.lines)

    @property
    def actual_wh(self) -> int:
        """Over all intervals."""
        return sum(line.actual_wh for line in self.lines)


def settle(baseline_wh: Sequence[int], actual_wh: Sequence[int], terms: Terms) -> Settled:
    """The money of a round: delivered × price, less what the programme charges for what is short of the award."""
    lines = tuple(_line(*pair, terms) for pair in zip(baseline_wh, actual_wh, strict=True))
    total = sum((line.paid - line.charged for line in lines), Fraction(0))
    return Settled(lines, round(total / WH_PER_MWH))


def _line(baseline_wh: int, actual_wh: int, terms: Terms) -> Line:
    delivered = baseline_wh - actual_wh
    awarded = terms.awarded
    way = 1 if awarded >= 0 else -1
    paid_for = Fraction(delivered)
    if terms.payment.beyond is Beyond.UNPAID:
        paid_for = way * min(way * paid_for, way * awarded)
    short = way * awarded > way * delivered
    lost = abs(terms.worth(awarded) - terms.worth(Fraction(delivered))) if short else Fraction(0)
    return Line(baseline_wh, actual_wh, delivered, terms.worth(paid_for), lost * terms.payment.shortfall)
