"""Clears one round: a uniform price at which what all take out of the market is what all put in.

A bid is a curve of net import against price (``energybid.bidding.curve``) and the schedule its site follows without an
award. Watts and ticks are integers, so everything here is exact.

At the price, steps above it are taken, steps below it are not. Of those at it, first the all-or-nothing steps that fit
are taken whole, in the order of the bids; then the divisible ones share the rest in proportion. Where no such choice
balances, an all-or-nothing step in the way is declined: its site stays on the side of it where its schedule is, so that
nobody is made to trade at a loss, and the round is cleared anew without that step. A declined step may lie on the good
side of the price (day-ahead markets call it paradoxically rejected); the opposite, a trade at a loss, never happens.
To find the fewest declined is a hard problem, and a round must end: after ``SINGLY`` steps, all those with a limit near
the price are declined together, from one attempt to the next in a span four times as wide.

Here lives the arithmetic only; no messages, no time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from energybid.bidding.curve import Curve, Step


SINGLY = 8
"""All-or-nothing steps that are declined one at a time."""


class Bid(NamedTuple):
    """What one site bids."""

    curve: Curve
    schedule_w: int
    """Net import without an award: a power that the curve offers."""


class Outcome(StrEnum):
    """How a round ended."""

    CLEARED = "cleared"
    SHORTAGE = "shortage"
    """At the highest price allowed more is still taken out than put in."""
    SURPLUS = "surplus"
    """At the lowest price allowed more is still put in than taken out."""
    EMPTY = "empty"
    """Nobody bid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clearing:
    """The result of a round."""

    outcome: Outcome
    ticks: int | None = None
    """The price; None if the round did not clear: then every site follows its schedule."""
    net_w: Mapping[str, int] = field(default_factory=dict)
    """Net import awarded, by bidder."""
    declined: frozenset[tuple[str, int]] = frozenset()
    """(bidder, index of the step) that were declined."""


class _Stuck(NamedTuple):
    """The all-or-nothing step that is in the way of a choice that balances."""

    bidder: str
    step: int


def clear(bids: Mapping[str, Bid], *, least_ticks: int, most_ticks: int) -> Clearing:
    """Find the price and what it gives to each bidder.

    Args:
        bids: By bidder; their order breaks ties between all-or-nothing steps.
        least_ticks: Lowest price allowed.
        most_ticks: Highest price allowed.

    Raises:
        ValueError: A schedule that its curve does not offer, or bounds that exclude each other.
    """
    if least_ticks > most_ticks:
        raise ValueError("the lowest price is above the highest")
    wrong = [name for name, bid in bids.items() if not bid.curve.offers(bid.schedule_w)]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: the schedule is no power that the curve offers")
    return _Book(bids, least_ticks, most_ticks).clear() if bids else Clearing(outcome=Outcome.EMPTY)


def pay_as_bid(bid: Bid, net_w: int) -> int:
    """What a site pays when every step is charged at its own limit, in ticks times watts; negative: it is paid.

    Charged is what differs from the schedule: steps taken beyond it are paid, steps given up below it are earned.
    """
    return int(bid.curve.area(Fraction(net_w)) - bid.curve.area(Fraction(bid.schedule_w)))


class _Book:
    """All bids of a round by price level."""

    def __init__(self, bids: Mapping[str, Bid], least_ticks: int, most_ticks: int) -> None:
        self._bids = bids
        self._least, self._most = least_ticks, most_ticks
        self._levels: defaultdict[int, int] = defaultdict(int)
        """Limit → watts of all steps that have it. Limits above the highest price are one: there all is taken."""
        self._declined: dict[tuple[str, int], bool] = {}
        """Steps settled by the schedule → whether they are taken."""
        for bid in bids.values():
            for ticks, power_w, _ in bid.curve.steps:
                self._levels[ticks if ticks <= most_ticks else most_ticks + 1] += power_w
        self._prices = sorted(self._levels, reverse=True)
        self._at, self._above_w = 0, sum(bid.curve.floor_w for bid in bids.values())
        """A place among the prices, and what is taken of all before it."""
        self._asked = False
        self._by_limit: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
        self._limits: list[int] = []
        """Those of steps that are not declined together yet, ascending."""

    def clear(self) -> Clearing:
        attempts = 0
        while isinstance(found := self._attempt(), _Stuck):
            self._decline(found)
            if attempts >= SINGLY:
                self._decline_near(found, 4 ** (attempts - SINGLY))
            attempts += 1
        return found

    def _attempt(self) -> Clearing | _Stuck:
        self._seek()
        price = self._prices[self._at] if self._at < len(self._prices) else None
        if self._above_w < 0 and price is not None and self._least <= price <= self._most:
            return self._share(price, -self._above_w)
        if self._above_w:
            return Clearing(outcome=Outcome.SHORTAGE if self._above_w > 0 else Outcome.SURPLUS)
        return self._between(next((t for t in reversed(self._prices[: self._at]) if self._levels[t]), inf))

    def _seek(self) -> None:
        """Find the first price at which not all that is wanted there can be taken, from where it was last."""
        prices, levels = self._prices, self._levels
        while self._at and self._above_w > 0 and prices[self._at - 1] <= self._most:
            self._at -= 1
            self._above_w -= levels[prices[self._at]]
        while self._at < len(prices):
            ticks = prices[self._at]
            level_w = levels[ticks]
            enough = self._above_w >= 0 or ticks < self._least or self._above_w + level_w > 0
            if level_w and ticks <= self._most and enough:
                break
            self._above_w += level_w
            self._at += 1

    def _between(self, last: float) -> Clearing:
        """Every price from the last step taken down to the first not taken balances: the middle one."""
        below = max((t for t in self._prices if t < last and self._levels[t]), default=self._least)
        ticks = int(min(last, self._most) + max(below, self._least)) // 2
        return self._result(ticks, last, {})

    def _share(self, ticks: int, need_w: int) -> Clearing | _Stuck:
        """Give ``need_w`` to the steps at a price."""
        chains: dict[str, list[int]] = {}
        for name, index in self._steps_at(ticks):
            if (name, index) not in self._declined:
                chains.setdefault(name, []).append(index)
        taken: dict[tuple[str, int], int] = {}
        for name, chain in chains.items():
            need_w -= self._take_whole(name, chain, need_w, taken)
        open_: dict[tuple[str, int], int] = {}
        for name, chain in chains.items():
            for index in chain:
                step = self._step(name, index)
                if not step.divisible:
                    break
                open_[name, index] = step.power_w
        if need_w > sum(open_.values()):
            name, chain = next((n, c) for n, c in reversed(chains.items()) if c and not self._all_divisible(n, c))
            return _Stuck(name, next(index for index in chain if not self._step(name, index).divisible))
        taken.update(_proportional(open_, need_w))
        return self._result(ticks, ticks + 1, taken)

    def _steps_at(self, ticks: int) -> Sequence[tuple[str, int]]:
        """(Bidder, index) of the steps with a limit. Most rounds ask once; for others an index is made."""
        if not self._by_limit and not self._asked:
            self._asked = True
            return [
                (name, index)
                for name, bid in self._bids.items()
                for index, step in enumerate(bid.curve.steps)
                if step.ticks == ticks
            ]
        if not self._by_limit:
            for name, bid in self._bids.items():
                for index, step in enumerate(bid.curve.steps):
                    self._by_limit[step.ticks].append((name, index))
            self._limits = sorted(self._by_limit)
        return self._by_limit.get(ticks, ())

    def _take_whole(self, name: str, chain: list[int], need_w: int, taken: dict[tuple[str, int], int]) -> int:
        """Take from the front of a chain as long as it ends with an all-or-nothing step and fits; returns W taken."""
        total_w = 0
        while (end := next((i for i, x in enumerate(chain) if not self._step(name, x).divisible), None)) is not None:
            front = {(name, index): self._step(name, index).power_w for index in chain[: end + 1]}
            if total_w + sum(front.values()) > need_w:
                break
            taken.update(front)
            total_w += sum(front.values())
            del chain[: end + 1]
        return total_w

    def _all_divisible(self, name: str, chain: Sequence[int]) -> bool:
        return all(self._step(name, index).divisible for index in chain)

    def _step(self, name: str, index: int) -> Step:
        return self._bids[name].curve.steps[index]

    def _decline(self, stuck: _Stuck) -> None:
        """Settle a step by its site's schedule, whatever the price; the steps behind it follow the side it stays on."""
        curve, schedule_w = self._bids[stuck.bidder].curve, self._bids[stuck.bidder].schedule_w
        start_w = curve.floor_w + sum(step.power_w for step in curve.steps[: stuck.step])
        wanted = schedule_w > start_w
        # Not wanted: none of the steps behind it can be had. Wanted: all before it are taken too.
        span = range(stuck.step + 1) if wanted else range(stuck.step, len(curve.steps))
        for index in span:
            key = stuck.bidder, index
            if key in self._declined:
                continue
            step = curve.steps[index]
            self._declined[key] = wanted
            ticks = min(step.ticks, self._most + 1)
            self._levels[ticks] -= step.power_w
            before = self._at > 0 and ticks >= self._prices[self._at - 1]
            self._above_w += step.power_w * (wanted - before)

    def _decline_near(self, stuck: _Stuck, span: int) -> None:
        """Settle every all-or-nothing step with a limit within ``span`` ticks of a step's."""
        ticks = self._step(*stuck).ticks
        limits = self._limits
        near = slice(bisect_left(limits, ticks - span), bisect_right(limits, ticks + span))
        for limit in limits[near]:
            for name, index in self._by_limit[limit]:
                if not self._step(name, index).divisible and (name, index) not in self._declined:
                    self._decline(_Stuck(name, index))
        del limits[near]

    def _result(self, ticks: int, taken_from: float, shared: Mapping[tuple[str, int], int]) -> Clearing:
        """Everybody's power: steps limited at ``taken_from`` or higher are taken, those at the price got a share."""
        net_w: dict[str, int] = {}
        for name, bid in self._bids.items():
            taken_w = bid.curve.floor_w
            for limit, power_w, _ in bid.curve.steps:
                if limit < taken_from:
                    break
                taken_w += power_w
            net_w[name] = taken_w
        for (name, _), power_w in shared.items():
            net_w[name] += power_w
        for (name, index), taken in self._declined.items():
            step = self._step(name, index)
            net_w[name] += step.power_w * (taken - (step.ticks >= taken_from))
        return Clearing(outcome=Outcome.CLEARED, ticks=ticks, net_w=net_w, declined=frozenset(self._declined))


def _proportional(powers: Mapping[tuple[str, int], int], need_w: int) -> dict[tuple[str, int], int]:
    """Share ``need_w`` in proportion, in whole watts: largest remainders first, of the same the earlier."""
    total = sum(powers.values())
    if not total:
        return {}
    shares = {key: divmod(power_w * need_w, total) for key, power_w in powers.items()}
    left = need_w - sum(whole for whole, _ in shares.values())
    extra = set(sorted(shares, key=lambda key: -shares[key][1])[:left])
    return {key: whole + (key in extra) for key, (whole, _) in shares.items()}
