"""Watts → the number that is written, in the unit and the steps of the register. Pure.

Rounding goes towards no power: never more is asked of a device, or of the site's connection, than was planned.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energybid.agent.market.plan import CurtailablePlan, SetPoint

FINE = Fraction(1, 1000)
"""Step of numbers that have none."""


def number_for(control: SetPoint, power_w: float) -> Fraction:
    """The number that sets a power, or the nearest one towards no power that may be written.

    Args:
        control: A set point that is a power.
        power_w: Import; beyond what it takes, the most that it takes.
    """
    number = Fraction(power_w) / control.w_per_unit
    step = control.step or FINE
    number = step * floor(abs(number) / step) * (1 if number >= 0 else -1)
    number = min(max(number, control.minimum), control.maximum)
    if not control.values:
        return number
    low, high = sorted((Fraction(0), number))
    return min((v for v in control.values if low <= v <= high), key=lambda v: abs(v - number), default=control.safe)


def power_for(control: SetPoint, number: Fraction) -> float:
    """The power that a number sets, W of import."""
    return float(number * control.w_per_unit)


def sheds_for(plan: CurtailablePlan, load_w: float, power_w: float) -> int:
    """How many parts of a load are to be off so that it takes as nearly as can be a power.

    Args:
        plan: The load.
        load_w: What it takes with nothing off.
        power_w: What it is to take.
    """
    left_w, best, parts = load_w, 0, 0
    gap = abs(load_w - power_w)
    for parts, shed in enumerate(plan.sheds, 1):
        left_w -= shed.power_w
        if abs(left_w - power_w) < gap:
            best, gap = parts, abs(left_w - power_w)
    return best
