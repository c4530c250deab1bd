"""Who does what of a net import: the power of each asset at the corners of a bid's curve, and between them.

A planner splits any power of its curve, but only while it lives. What is kept for an award, also over a restart, is
its split at the end of each step. Between the ends of a divisible step every asset moves in a straight line: a power
between two that an asset offers on one stretch is one it offers too, and worth the same as the best. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from energybid.core import cbor
from energybid.core.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from energybid.agent.market.ports import Planned


@dataclass(frozen=True, slots=True)
class Splits:
    """The split of every power that a curve offers."""

    schedule_w: int
    names: tuple[str, ...]
    """Assets."""
    corners: tuple[tuple[int, tuple[int, ...]], ...]
    """(Net import, import of each asset), rising."""
    all_w: Mapping[str, int] = field(default_factory=dict)
    """See ``ports.Planned``."""

    @classmethod
    def of(cls, planned: Planned) -> Splits:
        """Ask for every corner.

        Raises:
            ValueError: The planner can not split what it offers, or names other assets at another power.
        """
        curve = planned.curve
        powers = accumulate((step.power_w for step in curve.steps), initial=curve.floor_w)
        nets = sorted({*powers, planned.schedule_w})
        found = [(net_w, planned.split(net_w)) for net_w in nets]
        names = tuple(found[0][1])
        if any(set(split) != set(names) for _, split in found):
            raise ValueError("the split does not name the same assets at every power")
        corners = tuple((net_w, tuple(split[n] for n in names)) for net_w, split in found)
        return cls(planned.schedule_w, names, corners, planned.all_w)

    def at(self, net_w: int) -> dict[str, int]:
        """The power of each asset, W of import."""
        lower = [corner for corner in self.corners if corner[0] <= net_w] or [self.corners[0]]
        upper = [corner for corner in self.corners if corner[0] >= net_w] or [self.corners[-1]]
        (low_w, low), (high_w, high) = lower[-1], upper[0]
        if high_w <= low_w:
            return dict(zip(self.names, low, strict=True))
        # Watts of rounding go to the last assets, so that the sum is whole.
        share = [(b - a) * (net_w - low_w) for a, b in zip(low, high, strict=True)]
        ends = [0, *(total // (high_w - low_w) for total in accumulate(share))]
        moved = (after - before for before, after in pairwise(ends))
        return {name: a + more for name, a, more in zip(self.names, low, moved, strict=True)}

    def encode(self) -> bytes:
        """For ``Journal.remember``."""
        return cbor.encode((self.schedule_w, self.names, self.corners, tuple(self.all_w.items())))

    @classmethod
    def decode(cls, data: bytes) -> Splits:
        """Read what ``encode`` gave.

        Raises:
            EvidenceError: It is damaged.
        """
        try:
            schedule_w, names, corners, *rest = cbor.decode(data)
            all_w = dict(*rest)  # older ones have none
            made = cls(schedule_w, tuple(names), tuple((net_w, tuple(powers)) for net_w, powers in corners), all_w)
            made.at(made.schedule_w)
        except (TypeError, ValueError, IndexError) as error:
            raise EvidenceError(f"a split of a bid: {error}") from None
        return made
