"""A bid curve: the net power a site imports in a round, as a falling staircase of the round's price.

Here lives the shape that is bid, awarded and settled: whole watts, prices in whole ticks of the market. How a site
comes to its curve is in ``response``. Pure; no clock, no float.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import NamedTuple

STEPS_MAX = 192
"""The longest bid fits a signed message of 4 KiB."""
POWER_MAX_W = 1 << 40
"""A terawatt: far above any site, far below where integers of other programs end."""
TICKS_MAX = 1 << 40


class Step(NamedTuple):
    """A part of a site's demand and the highest price at which the site wants it."""

    ticks: int
    """Price limit in ticks of the market; the step is wanted at this price and below."""
    power_w: int
    """Net import that the step adds; greater than 0."""
    divisible: bool
    """Whether a part of it may be awarded; otherwise all of it or nothing."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Net import against price; never rises with the price. Steps are taken in their order, none is passed over.

    Export is negative import: a battery that sells has a negative ``floor_w``.
    """

    floor_w: int
    """Net import at prices above every step."""
    steps: tuple[Step, ...]
    """By falling price."""

    def __post_init__(self) -> None:
        """Refuse what is no falling staircase.

        Raises:
            ValueError: Steps out of order, without power, too many, or numbers out of bounds.
        """
        if len(self.steps) > STEPS_MAX:
            raise ValueError(f"a curve has at most {STEPS_MAX} steps (found {len(self.steps)})")
        if any(step.power_w <= 0 for step in self.steps):
            raise ValueError("every step of a curve adds power")
        if any(a.ticks < b.ticks for a, b in pairwise(self.steps)):
            raise ValueError("the steps of a curve stand by falling price")
        if any(abs(step.ticks) > TICKS_MAX for step in self.steps):
            raise ValueError(f"a price is at most {TICKS_MAX} ticks")
        if max(abs(self.floor_w), abs(self.ceiling_w)) > POWER_MAX_W:
            raise ValueError(f"power is at most {POWER_MAX_W} W")

    @property
    def ceiling_w(self) -> int:
        """Net import at prices below every step."""
        return self.floor_w + sum(step.power_w for step in self.steps)

    def net_w(self, ticks: int) -> int:
        """Net import that the site wants at a price; where it is indifferent, the most."""
        return self.floor_w + sum(step.power_w for step in self.steps if step.ticks >= ticks)

    def within(self, least_ticks: int, most_ticks: int) -> Curve:
        """The same at prices between two bounds: steps that are wanted at none of them are left out."""
        steps = (step._replace(ticks=min(step.ticks, most_ticks)) for step in self.steps if step.ticks >= least_ticks)
        return Curve(self.floor_w, tuple(steps))

    def allows(self, net_w: int, ticks: int) -> bool:
        """Whether an award is one that the curve offered.

        Args:
            net_w: Net import awarded.
            ticks: Price of the round. Steps above it are taken whole, steps below it not at all, those at it in their
                order: whole, or a part of the last one if it is divisible.
        """
        least = self.floor_w + sum(step.power_w for step in self.steps if step.ticks > ticks)
        at = [step for step in self.steps if step.ticks == ticks]
        ends = list(accumulate((step.power_w for step in at), initial=least))
        return net_w in ends or any(
            step.divisible and low < net_w < high for step, (low, high) in zip(at, pairwise(ends), strict=True)
        )

    def offers(self, net_w: int) -> bool:
        """Whether some price makes a power one that the site wants: the end of a step, or inside a divisible one."""
        at_w = self.floor_w
        for step in self.steps:
            if net_w < at_w + step.power_w:
                return net_w == at_w or (step.divisible and net_w > at_w)
            at_w += step.power_w
        return net_w == at_w

    def fits(self, net_w: int, ticks: int, schedule_w: int) -> bool:
        """Whether a market may award a power at a price: what the curve offers there, or less trade than that.

        An all-or-nothing step that did not fit may be left on the side of the schedule, whatever the price: then the
        award lies between what is wanted at the price and the schedule. Trade at a loss never fits.
        """
        if net_w == schedule_w or self.allows(net_w, ticks):
            return True
        low_w, high_w = sorted((self.net_w(ticks), schedule_w))
        return low_w <= net_w <= high_w and self.offers(net_w)

    def area(self, net_w: Fraction) -> Fraction:
        """Ticks times watts under the limits from the floor to a power; beyond the curve its first or last limit."""
        left, area = net_w - self.floor_w, Fraction(0)
        for at, step in enumerate(self.steps):
            taken = left if at == len(self.steps) - 1 else min(left, Fraction(step.power_w))
            area += taken * step.ticks
            left -= taken
        return area
