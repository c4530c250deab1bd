"""What a site can move, as the pieces that ``response`` adds up: loads that are shed, generation, runs.

Every asset is one frozen value: what it is and the state that it is in when the round begins. It offers, for each power
it can have in the round, what that power is worth: the value of what follows less the cost of now, counted from "does
nothing". Assets that store energy are in ``assets_stores``. Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from energybid.bidding.response import Offer, Piece, Segment
from energybid.bidding.values import Matrices

if TYPE_CHECKING:
    from energybid.bidding.horizon import Outlook
    from energybid.bidding.values import Array

MILLION = 1e6
KNOTS = 24
"""Of one mode of a store, at most: a site of five assets then bids within the longest curve."""


class Now(NamedTuple):
    """The round an asset offers for."""

    step: int
    """Counted from the outlook's round; greater than 0 where an outlook is used for several rounds."""
    step_h: float
    ahead: Array
    """Of what the asset told about what follows: the row of this step and of the round's price state."""
    knots: int = KNOTS


class Asset(Protocol):
    """One device of a site."""

    def ahead(self, outlook: Outlook, keep: int | None = None) -> list[Array]:
        """What follows each step is worth, whatever state the asset is in.

        Args:
            outlook: Prices.
            keep: Steps that are wanted, from the round on; None: all.

        Returns:
            For the round and each stage: a row for each price state of that step, or one row; the columns are the
            asset's own.
        """

    def offer(self, now: Now) -> Offer:
        """What each power in the round is worth; never empty."""

    def after(self, now: Now, power_w: int) -> Asset:
        """The asset at the end of a round in which it had this power (W of import, one it offered)."""


class _Stateless:
    """What the asset does now changes nothing later."""

    def ahead(self, outlook: Outlook, keep: int | None = None) -> list[Array]:
        return [np.zeros((1, 1))] * min(len(outlook.stages) + 1, keep or len(outlook.stages) + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pv(_Stateless):
    """Generation that may be curtailed by any part, or not at all."""

    forecast_w: tuple[int, ...]
    """What it would give in each step from the outlook's round, 0 or more; the last holds on."""
    support: float = 0.0
    """Paid for what it generates beside the market's price, money per MWh."""
    curtailable: bool = True

    def __post_init__(self) -> None:
        """Refuse negative generation."""
        if not self.forecast_w:
            raise ValueError("a forecast has at least one step")
        _positive(forecast_w=min(self.forecast_w))

    def offer(self, now: Now) -> Offer:
        """All of it, and with less generation less support."""
        power_w = self.forecast_w[min(now.step, len(self.forecast_w) - 1)]
        segments = (Segment(power_w, -self.support),) if self.curtailable and power_w else ()
        return (Piece(-power_w, 0.0, segments),)

    def after(self, now: Now, power_w: int) -> Pv:  # noqa: ARG002
        """Unchanged."""
        return self


class Shed(NamedTuple):
    """A part of a load that can be switched off."""

    power_w: int
    cost: float
    """Of being without it, money per MWh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curtailable(_Stateless):
    """A load of which parts can be shed: in their order, each whole."""

    load_w: int
    """With nothing shed."""
    sheds: tuple[Shed, ...]

    def __post_init__(self) -> None:
        """Refuse to shed more than there is."""
        _positive(load_w=self.load_w)
        if any(shed.power_w <= 0 for shed in self.sheds) or sum(shed.power_w for shed in self.sheds) > self.load_w:
            raise ValueError("a load sheds parts of itself, each with a power")

    def offer(self, now: Now) -> Offer:  # noqa: ARG002 (of the protocol)
        """One power for each number of parts that are off."""
        shed_w = accumulate((shed.power_w for shed in self.sheds), initial=0)
        costs = accumulate((shed.power_w * shed.cost for shed in self.sheds), initial=0.0)
        return tuple(Piece(self.load_w - w, -cost) for w, cost in zip(shed_w, costs, strict=True))

    def after(self, now: Now, power_w: int) -> Curtailable:  # noqa: ARG002
        """Unchanged."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Deferrable:
    """A run that may begin in a window; once begun it goes to its end."""

    profile_w: tuple[int, ...]
    """Power in each step of the run; more than 0 in the first, which tells a start from waiting."""
    worth: float
    """Of a run that ends in time, money: what is lost at most if it is not begun."""
    earliest: int = 0
    """First step it may begin in, counted from the outlook's round."""
    deadline: int
    """Step before which it has ended."""
    done: int = 0
    """Steps that have been run; 0 while it waits."""

    def __post_init__(self) -> None:
        """Refuse a run without power."""
        if not self.profile_w or self.profile_w[0] <= 0 or min(self.profile_w) < 0:
            raise ValueError("a run takes power in its first step and never gives any")
        if not 0 <= self.done <= len(self.profile_w):
            raise ValueError("a run is done up to one of its steps")

    def ahead(self, outlook: Outlook, keep: int | None = None) -> list[Array]:
        """First column: waiting; column k: having run k steps."""
        profile = np.array(self.profile_w, float) * outlook.step_h
        rest = np.append(-outlook.later * np.cumsum(profile[::-1])[::-1], 0.0)
        steps = len(outlook.stages)
        # What can still begin after the last stage is worth beginning at the price expected then.
        wait = max(0.0, self.worth * MILLION + rest[0]) if self._may_begin_after(steps) else 0.0
        after = np.concatenate(([wait], rest[1:]))[None, :]
        result = deque([after], maxlen=keep)
        matrices = Matrices()
        for step in range(steps, 0, -1):
            stage = outlook.stages[step - 1]
            prices = np.array(stage.prices)[:, None]
            runs = after[:, 1:] - prices * profile  # from having run 0, 1, .. steps
            waits = np.broadcast_to(after[:, 0], (len(prices),))
            if self._may_begin(step):
                waits = np.maximum(waits, runs[:, 0] + self.worth * MILLION)
            now = np.column_stack((waits, runs[:, 1:], np.zeros(len(prices))))
            after = matrices.of(stage) @ now
            result.append(after)
        return list(result)[::-1]

    def _may_begin(self, step: int) -> bool:
        return self.earliest <= step <= self.deadline - len(self.profile_w)

    def _may_begin_after(self, step: int) -> bool:
        return step < self.deadline - len(self.profile_w)

    def offer(self, now: Now) -> Offer:
        """Waits or begins; goes on; or is done."""
        if self.done:
            return (Piece(self._power_w(), 0.0),)
        if not self._may_begin(now.step):
            return (Piece(0, 0.0),)
        gain = (self.worth * MILLION + float(now.ahead[1] - now.ahead[0])) / now.step_h
        return Piece(0, 0.0), Piece(self.profile_w[0], gain)

    def _power_w(self) -> int:
        return self.profile_w[self.done] if self.done < len(self.profile_w) else 0

    def after(self, now: Now, power_w: int) -> Deferrable:  # noqa: ARG002
        """One step further if it runs."""
        runs = self.done < len(self.profile_w) and (self.done > 0 or power_w > 0)
        return replace(self, done=self.done + 1) if runs else self


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{name} is 0 or more (found {number})")
