"""A site's exact best response to the price of one round.

What a site wants at price p is the net import q that maximises U(q) - p*q, where U(q) is the most that its assets
together make of q. The maximisers over all p are the corners of U's upper concave hull, so the curve to bid is that
hull: its corners are the powers, its slopes the prices. Where U itself runs along an edge of the hull, every power on
it is as good: a divisible step. Where it stays below (a load that is on or off), only the edge's ends are: all or
nothing.

Here live the pieces an asset offers, their sum under the site's limits, the hull, and the split of an awarded power
among the assets. Pure. Powers are whole watts, prices and slopes floats in money per MWh; values in (money per MWh) * W
are millionths of money per hour.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from math import floor, inf, isclose, prod
from typing import TYPE_CHECKING, NamedTuple

from energybid.bidding.curve import Curve, Step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

COMBINATIONS_MAX = 4096
"""Of pieces, one of each asset; beyond, a site needs a solver."""
TOLERANCE = 1e-9
"""Relative: values closer than this are the same."""


class Segment(NamedTuple):
    """A stretch of power with one marginal value."""

    power_w: int
    """Greater than 0."""
    slope: float
    """What each further watt is worth, money per MWh."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of powers without a gap, over which an asset's value is concave."""

    start_w: int
    """Least net import."""
    value: float
    """At ``start_w``: the value of what follows from it, less its cost; what the energy costs now is not in it. All
    pieces of an asset count from the same zero, best from "does nothing", so that differences keep their digits."""
    segments: tuple[Segment, ...] = ()
    """From ``start_w`` upwards, slopes falling; none: just this one power."""

    def __post_init__(self) -> None:
        """Refuse what is not concave.

        Raises:
            ValueError: A segment without power, or a slope that rises.
        """
        if any(segment.power_w <= 0 for segment in self.segments):
            raise ValueError("every segment has power")
        if any(a.slope < b.slope for a, b in pairwise(self.segments)):
            raise ValueError("slopes of a piece may not rise")

    @property
    def end_w(self) -> int:
        """Most net import."""
        return self.start_w + sum(segment.power_w for segment in self.segments)

    def best_w(self, price: float) -> int:
        """Net import that is best at a price; where several are, the least."""
        return self.start_w + sum(segment.power_w for segment in self.segments if segment.slope > price)

    def gain(self, price: float) -> float:
        """What it comes to at a price, at its best power."""
        more = sum(segment.power_w * max(0.0, segment.slope - price) for segment in self.segments)
        return self.value - price * self.start_w + more


Offer = tuple[Piece, ...]
"""All that an asset can do in the round: one piece, or several with gaps or dents between them."""


class Point(NamedTuple):
    """A net import and what it is worth."""

    net_w: int
    value: float


class Response:
    """What a site does in a round, at any price."""

    def __init__(self, offers: Sequence[Offer], *, base_w: int, least_w: int, most_w: int) -> None:
        """Add up what the assets offer.

        Args:
            offers: One of each asset.
            base_w: Net import of what is not controlled.
            least_w: Least net import of the site; negative where it may export.
            most_w: Most net import.

        Raises:
            ValueError: An asset that offers nothing, limits that exclude each other, too many combinations of pieces.
        """
        if least_w > most_w:
            raise ValueError(f"the site's limits exclude each other: least {least_w} W, most {most_w} W")
        if not all(offers):
            raise ValueError("an asset offers at least one power")
        count = prod(map(len, offers))
        if count > COMBINATIONS_MAX:
            raise ValueError(f"{count} combinations of assets are too many for one site; at most {COMBINATIONS_MAX}")
        sums = [_Sum(pieces, base_w) for pieces in product(*offers)]
        # A limit that can not be kept is not a reason to do nothing: come as close to it as can be.
        self.excess_w = _excess(sums, least_w, most_w)
        """How far outside its limits the site is, whatever it does; 0 if it can keep them."""
        self._sums = [s for s in (part.within(least_w, most_w, self.excess_w) for part in sums) if s]
        self.corners = _corners(self._sums)
        """Net imports that some price makes best, rising, with their value; on an edge also those between."""

    def curve(self, *, tick: float) -> Curve:
        """The curve to bid; exact at every price that is a multiple of the tick.

        Args:
            tick: Smallest difference of prices, money per MWh.
        """
        steps: list[Step] = []
        for low, high in pairwise(self.corners):
            slope = (high.value - low.value) / (high.net_w - low.net_w)
            # At a price of whole ticks, "not above the slope" is "not above its whole ticks".
            ticks = floor(slope / tick * (1 + TOLERANCE if slope > 0 else 1 - TOLERANCE))
            ticks = min([ticks, *(step.ticks for step in steps[-1:])])  # rounding may not turn the order
            step = Step(ticks, high.net_w - low.net_w, any(part.runs_along(low, high) for part in self._sums))
            if steps and steps[-1].ticks == ticks and steps[-1].divisible and step.divisible:
                step = Step(ticks, steps.pop().power_w + step.power_w, divisible=True)
            steps.append(step)
        return Curve(self.corners[0].net_w, tuple(steps))

    def value(self, net_w: int) -> float:
        """What a net import is worth at its best split; minus infinity where the site can not have it."""
        return max(part.value(net_w) for part in self._sums)

    def split(self, net_w: int) -> tuple[int, ...]:
        """The best power of each asset, in the order of the offers, W of import.

        Raises:
            ValueError: The site can not have this net import.
        """
        best = max(self._sums, key=lambda part: part.value(net_w))
        if best.value(net_w) == -inf:
            raise ValueError(f"the assets can not make a net import of {net_w} W")
        return best.split(net_w)


class _Sum:
    """One piece of each asset together: concave as well."""

    def __init__(self, pieces: tuple[Piece, ...], base_w: int) -> None:
        self._pieces = pieces
        self._start_w = base_w + sum(piece.start_w for piece in pieces)
        owned = [(segment, owner) for owner, piece in enumerate(pieces) for segment in piece.segments]
        self._owned = sorted(owned, key=lambda pair: -pair[0].slope)
        """Best first; of the same slope in the order of the assets: a sort keeps it."""
        points = [Point(self._start_w, sum(piece.value for piece in pieces))]
        for segment, _ in self._owned:
            net_w, value = points[-1]
            points.append(Point(net_w + segment.power_w, value + segment.power_w * segment.slope))
        self.points = points

    def outside_w(self, least_w: int, most_w: int) -> int:
        """How far outside these limits it is at best."""
        return max(0, least_w - self.points[-1].net_w, self.points[0].net_w - most_w)

    def within(self, least_w: int, most_w: int, excess_w: int) -> _Sum | None:
        """The same, of its powers only those within the limits, or ``excess_w`` outside; None if there are none."""
        if self.outside_w(least_w, most_w) > excess_w:
            return None
        if excess_w:
            # None is inside: what is left is the one power that is closest.
            keep = self.points[0] if self.points[0].net_w > most_w else self.points[-1]
            self.points = [keep]
            return self
        low, high = max(least_w, self.points[0].net_w), min(most_w, self.points[-1].net_w)
        inner = [point for point in self.points if low < point.net_w < high]
        ends = [Point(low, self.value(low))] + ([Point(high, self.value(high))] if high > low else [])
        self.points = [ends[0], *inner, *ends[1:]]
        return self

    def value(self, net_w: int) -> float:
        points = self.points
        if not points[0].net_w <= net_w <= points[-1].net_w:
            return -inf
        for low, high in pairwise(points):
            if net_w <= high.net_w:
                return low.value + (high.value - low.value) * (net_w - low.net_w) / (high.net_w - low.net_w)
        return points[-1].value

    def runs_along(self, low: Point, high: Point) -> bool:
        """Whether its value is that of the straight line between two points."""
        return all(_same(self.value(point.net_w), point.value) for point in (low, high))

    def split(self, net_w: int) -> tuple[int, ...]:
        powers = [piece.start_w for piece in self._pieces]
        left_w = net_w - self._start_w
        for segment, owner in self._owned:
            taken_w = min(left_w, segment.power_w)
            powers[owner] += taken_w
            left_w -= taken_w
        return tuple(powers)


def _same(a: float, b: float) -> bool:
    return isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _excess(sums: Iterable[_Sum], least_w: int, most_w: int) -> int:
    return min(part.outside_w(least_w, most_w) for part in sums)


def _corners(sums: Iterable[_Sum]) -> list[Point]:
    """The upper concave hull of all points, with the points that lie on its edges."""
    best: dict[int, float] = {}
    for point in (point for part in sums for point in part.points):
        best[point.net_w] = max(best.get(point.net_w, -inf), point.value)
    hull: list[Point] = []
    for point in (Point(net_w, best[net_w]) for net_w in sorted(best)):
        while len(hull) > 1 and _below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _below(left: Point, middle: Point, right: Point) -> bool:
    """Whether ``middle`` is under the line between its neighbours, by more than rounding."""
    share = (middle.net_w - left.net_w) / (right.net_w - left.net_w)
    line = left.value + (right.value - left.value) * share
    return middle.value < line and not _same(middle.value, line)
