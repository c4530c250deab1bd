"""A site: its assets behind one meter, and what it does in a round at any price.

Needs numpy (extra ``bidding``). Pure and deterministic: the same site and outlook give the same curve and split.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from energybid.bidding.assets import KNOTS, Asset, Now
from energybid.bidding.assets_stores import liked
from energybid.bidding.curve import STEPS_MAX, Curve
from energybid.bidding.response import COMBINATIONS_MAX, Offer, Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.bidding.horizon import Outlook
    from energybid.bidding.values import Array


KNOTS_TRIED = (KNOTS, KNOTS // 2, KNOTS // 4, 2)
"""Until the curve is not too long to be bid."""


class Bid(NamedTuple):
    """What a site offers for a round, and how it keeps its word."""

    curve: Curve
    response: Response
    """``response.split(net_w)`` gives the power of each asset for an award."""


@dataclass(frozen=True, slots=True)
class Site:
    """Assets and what couples them."""

    assets: tuple[Asset, ...]
    import_limit_w: int
    """Most net import; 0 or more."""
    export_limit_w: int
    """Most net export; 0 or more."""

    def __post_init__(self) -> None:
        """Refuse negative limits."""
        if min(self.import_limit_w, self.export_limit_w) < 0:
            raise ValueError("the limits of import and export are 0 or more")

    def ahead(self, outlook: Outlook, keep: int | None = None) -> list[list[Array]]:
        """What follows is worth to each asset: the part of the work that several rounds can share.

        Args:
            outlook: Prices after the first of them.
            keep: How many rounds; None: all steps of the outlook.
        """
        return [asset.ahead(outlook, keep) for asset in self.assets]

    def bid(self, outlook: Outlook, *, base_w: int, tick: float, states: Sequence[float] | None = None) -> Bid:
        """The curve for the round before the outlook's stages.

        Args:
            outlook: Prices after the round.
            base_w: Net import of what is not controlled.
            tick: Smallest difference of prices, money per MWh.
            states: How likely each price state of the round is; needed where the outlook's first stage has rows.

        Raises:
            ValueError: States that do not fit.
        """
        ahead = [steps[0] for steps in self.ahead(outlook, 1)]
        for knots in KNOTS_TRIED:
            response = self.respond(
                ahead, step_h=outlook.step_h, base_w=base_w, states=states, knots=knots, expected=outlook.later
            )
            if len(response.corners) <= STEPS_MAX:
                break
        return Bid(response.curve(tick=tick), response)

    def respond(  # noqa: PLR0913 (a round has so many sides)
        self,
        ahead: Sequence[Array],
        *,
        step_h: float,
        base_w: int,
        step: int = 0,
        states: Sequence[float] | None = None,
        knots: int = KNOTS,
        expected: float = 0.0,
    ) -> Response:
        """The exact best response, given what follows.

        Args:
            ahead: Of each asset, of this step.
            step_h: Length of the round, hours.
            base_w: Net import of what is not controlled.
            step: Counted from the outlook's round.
            states: How likely each price state of the round is.
            knots: Of each value function, the most.
            expected: Price at which the smallest assets decide where there are too many combinations to count, money
                per MWh.
        """
        offers = [
            asset.offer(Now(step, step_h, _row(rows, states), knots))
            for asset, rows in zip(self.assets, ahead, strict=True)
        ]
        offers = _countable(offers, expected)
        return Response(offers, base_w=base_w, least_w=-self.export_limit_w, most_w=self.import_limit_w)

    def liked_w(self, ahead: Sequence[Array], *, step_h: float, base_w: int, price: float) -> int | None:
        """Net import that is best at one price; None where a limit of the site is in the way.

        Args:
            ahead: As for ``respond``, one row each.
            step_h: Length of the round, hours.
            base_w: Net import of what is not controlled.
            price: Money per MWh.
        """
        pairs = zip(self.assets, ahead, strict=True)
        net_w = base_w + sum(liked(asset, Now(0, step_h, rows[0]), price) for asset, rows in pairs)
        return net_w if -self.export_limit_w <= net_w <= self.import_limit_w else None

    def after(self, split: Sequence[int], *, step_h: float, step: int = 0) -> Site:
        """The site at the end of a round in which its assets had these powers."""
        now = Now(step, step_h, np.zeros(0))
        assets = tuple(asset.after(now, power_w) for asset, power_w in zip(self.assets, split, strict=True))
        return Site(assets, self.import_limit_w, self.export_limit_w)


def _countable(offers: list[Offer], price: float) -> list[Offer]:
    """Exact for as many assets as can be combined; of the rest, the smallest, only what is best at one price."""
    result = list(offers)
    small_first = sorted(range(len(result)), key=lambda k: max(map(abs, _ends(result[k]))))
    for k in small_first:
        if prod(map(len, result)) <= COMBINATIONS_MAX:
            break
        result[k] = (max(result[k], key=lambda piece: piece.gain(price)),)
    return result


def _ends(offer: Offer) -> tuple[int, int]:
    return min(piece.start_w for piece in offer), max(piece.end_w for piece in offer)


def _row(rows: Array, states: Sequence[float] | None) -> Array:
    if len(rows) == 1:
        row: Array = rows[0]
        return row
    if states is None or len(states) != len(rows):
        raise ValueError(f"the round has {len(rows)} price states: say how likely each is")
    mixed: Array = np.array(states) @ rows
    return mixed
