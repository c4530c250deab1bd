"""A battery's value function where prices have many states: its marginal values, which a step back only clips.

The same values as ``values`` gives, ten times faster, for a battery whose value is concave: with prices at which it
would pay to charge and discharge at once that is not so, and charging is taken to win (``prices_battery``). A reserve
is rounded up to a whole cell, in what follows the round, not in the round itself. Needs numpy (extra ``bidding``).
Pure.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from energybid.bidding.prices_battery import CELLS, Shifts, Single
from energybid.bidding.values import Array, Matrices

if TYPE_CHECKING:
    from energybid.bidding.assets_stores import Battery
    from energybid.bidding.horizon import Outlook


def marginal_worths(battery: Battery, outlook: Outlook, keep: int | None = None) -> list[Array]:
    """What states of the battery, from empty to full, are worth at the end of every step, as ``values`` gives it.

    Args:
        battery: Whatever its state.
        outlook: Prices, the same number of states at each stage.
        keep: Steps whose values are wanted, from the round on; None: all.
    """
    cell_wh = battery.capacity_wh / CELLS
    edges = np.linspace(0.0, battery.capacity_wh, CELLS + 1)
    shifts = Shifts(
        battery.charge_w * battery.charge_efficiency * outlook.step_h / cell_wh,
        battery.discharge_w / battery.discharge_efficiency * outlook.step_h / cell_wh,
        min(ceil(battery.reserve_wh / cell_wh - 1e-9), CELLS - 1),
    )
    final = np.diff(battery.final(len(outlook.stages), outlook, edges)) / cell_wh
    worth = final.astype(np.float32)[None, :]
    kept: deque[Single] = deque([worth], maxlen=keep)
    matrices = Matrices(np.float32)
    for stage in reversed(outlook.stages):
        prices = np.array(stage.prices)
        charge = (prices + battery.charge_wear) / battery.charge_efficiency
        discharge = np.minimum((prices - battery.discharge_wear) * battery.discharge_efficiency, charge)
        limits = (limit.astype(np.float32)[:, None] for limit in (charge, discharge))
        worth = matrices.of(stage) @ shifts.back(np.broadcast_to(worth, (len(prices), CELLS)), *limits)
        kept.append(worth)
    return [_worths(marginal, cell_wh) for marginal in reversed(kept)]


def _worths(marginal: Single, cell_wh: float) -> Array:
    """Counted from empty."""
    made: Array = np.zeros((len(marginal), CELLS + 1))
    np.cumsum(marginal, axis=1, dtype=float, out=made[:, 1:])
    made *= cell_wh
    return made
