"""A site's bid when the round's price itself is news of the prices to come.

At each price the site would do what is best given the state that this price leads to. A bid can only fall with the
price: where the wish does not, the curve is the best among those that do, given how likely the prices are (exact among
the powers that are best at some price). Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from itertools import pairwise
from math import floor, inf, isclose
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from energybid.bidding.curve import Curve, Step
from energybid.bidding.prices_battery import best_falling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from energybid.bidding.prices import Place, PriceModel
    from energybid.bidding.response import Response

REFINED = 4
"""Parts into which a gap between prices is cut where the wish changes."""


class Answer(Protocol):
    """What the site does at one price, where that price leads."""

    def response(self) -> Response:
        """Best response."""

    def wish_w(self, price: float) -> int:
        """Net import that is best at the price."""


class Case(NamedTuple):
    """The round at one price."""

    price: float
    """Money per MWh."""
    weight: float
    """How likely it is to be near this price; greater than 0."""
    answer: Answer
    """Of the site in the state that this price leads to."""
    wish_w: int
    """Net import that is best then."""


def best_at(response: Response, price: float) -> int:
    """Net import that is best at a price; where several are, the most."""
    return max(response.corners, key=lambda point: (point.value - price * point.net_w, point.net_w)).net_w


class NewsBid(NamedTuple):
    """A curve, and how the site keeps its word."""

    curve: Curve
    split: Callable[[int], tuple[int, ...]]
    """The power of each asset for a net import that the curve offers."""


def cases(
    model: PriceModel, before: Place, day_ahead: float, step: int, answer: Callable[[Place], Answer]
) -> list[Case]:
    """The round at prices that cover what may come, finer where the wish changes.

    Args:
        model: Of prices.
        before: Place of the price in the step before.
        day_ahead: Price of the round.
        step: The round's place in the day.
        answer: Of the site, given where the round's price leads.
    """
    levels = model.levels
    coarse = np.unique(levels)
    unit = (float(model.prices(day_ahead)[-1]) - day_ahead) / levels[-1] if levels[-1] else 1.0

    def wished(deviation: float) -> tuple[float, Answer, int]:
        price = float(day_ahead + deviation * unit)
        given = answer(model.place(price, day_ahead, before))
        return price, given, given.wish_w(price)

    made = {float(deviation): wished(float(deviation)) for deviation in coarse}
    for low, high in pairwise(coarse.tolist()):
        if made[low][2] != made[high][2]:
            for part in range(1, REFINED):
                middle = low + (high - low) * part / REFINED
                made[middle] = wished(middle)
    deviations = np.array(sorted(made))
    weights = model.likely(before, step, deviations)
    return [
        Case(price, float(weight), given, wish_w)
        for (price, given, wish_w), weight in zip((made[float(x)] for x in deviations), weights, strict=True)
    ]


def middle(found: Sequence[Case]) -> float:
    """The price that is as likely to be above as below; means are of spikes."""
    half, below = sum(case.weight for case in found) / 2, 0.0
    for case in found:
        below += case.weight
        if below >= half:
            break
    return case.price


def news_bid(found: Sequence[Case], *, tick: float) -> NewsBid:
    """The curve to bid, and its splits.

    Args:
        found: By rising price.
        tick: Smallest difference of prices, money per MWh.
    """
    wishes = _falling(found)
    steps: list[Step] = []
    for k in range(len(found) - 1, 0, -1):
        high_w, low_w = wishes[k - 1], wishes[k]
        if high_w > low_w:
            ticks = floor((found[k - 1].price + found[k].price) / 2 / tick)
            straight = all(_straight(case.answer.response(), low_w, high_w) for case in found[k - 1 : k + 1])
            steps.append(Step(ticks, high_w - low_w, straight))

    def split(net_w: int) -> tuple[int, ...]:
        return _at(found, wishes, net_w).split(net_w)

    return NewsBid(Curve(wishes[-1], tuple(steps)), split)


def _falling(found: Sequence[Case]) -> list[int]:
    """What to bid at each price: what is wished, or the best that falls."""
    wishes = [case.wish_w for case in found]
    if all(a >= b for a, b in pairwise(wishes)):
        return wishes
    levels = sorted(set(wishes))
    gain = [[(c.answer.response().value(w) - c.price * w) * c.weight for w in levels] for c in found]
    return [levels[k] for k in best_falling(np.array(gain))]


def _at(found: Sequence[Case], wishes: Sequence[int], net_w: int) -> Response:
    """The response at a price at which a power is bid, or next to it."""
    for k in sorted(range(len(found)), key=lambda k: abs(wishes[k] - net_w)):
        response = found[k].answer.response()
        if response.value(net_w) > -inf:
            return response
    raise ValueError(f"the assets can not make a net import of {net_w} W")


def _straight(response: Response, low_w: int, high_w: int) -> bool:
    """Whether what is between two powers can be had, and is worth no less than mixing them."""
    middle_w = (low_w + high_w) // 2
    low, middle, high = (response.value(w) for w in (low_w, middle_w, high_w))
    line = low + (high - low) * (middle_w - low_w) / (high_w - low_w)
    return middle >= line or isclose(middle, line, rel_tol=1e-6, abs_tol=1e-6)
