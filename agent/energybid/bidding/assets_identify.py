"""A room's or tank's first-order model from what was measured: temperatures, powers and the weather.

Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

STEPS_MIN = 48
"""Fewer steps tell too little."""


class ThermalModel(NamedTuple):
    """Parameters of ``Thermal``, and how well they fit."""

    time_constant_h: float
    kelvin_per_w: float
    """Negative for a cooler."""
    free_k: float
    """By how much it settles above the outside without power (sun, people): ``rest_c`` is the outside plus this."""
    error_k: float
    """Root mean square of what a step's forecast was wrong by."""


def identify(
    temperatures_c: Sequence[float], powers_w: Sequence[float], outside_c: Sequence[float], step_h: float
) -> ThermalModel:
    """Least squares of ``T' - outside = keep * (T - outside) + gain * power + free``.

    A number that is not known is NaN: the steps it belongs to do not count.

    Args:
        temperatures_c: At the begin of each step and at the end of the last: one more than steps.
        powers_w: Mean of each step.
        outside_c: Mean of each step; the cellar's for a tank.
        step_h: Length of a step, hours.

    Raises:
        ValueError: Too few steps, a power that never changes, or data no first-order store gives.
    """
    inside, power, outside = (np.array(column, float) for column in (temperatures_c, powers_w, outside_c))
    fits = len(power) == len(outside) == len(inside) - 1
    known = np.isfinite(power + outside + inside[:-1] + inside[1:]) if fits else np.zeros(1)
    if known.sum() < STEPS_MIN:
        raise ValueError(f"a model takes {STEPS_MIN} steps or more, with a temperature at the ends of each")
    begin, end, power, outside = inside[:-1][known], inside[1:][known], power[known], outside[known]
    if np.ptp(power) == 0:
        raise ValueError("the power never changes: what it does can not be told")
    scale = float(np.abs(power).max())
    inputs = np.column_stack((begin - outside, power / scale, np.ones(len(power))))
    found, *_ = np.linalg.lstsq(inputs, end - outside, rcond=None)
    keep, gain, free = (float(number) for number in found)
    if not 0 < keep < 1 or gain == 0:
        raise ValueError(f"no first-order store gives these data (it would keep {keep:.3f} of its warmth in each step)")
    wrong = end - outside - inputs @ found
    return ThermalModel(
        -step_h / log(keep), gain / scale / (1 - keep), free / (1 - keep), float(np.sqrt(np.mean(wrong**2)))
    )
