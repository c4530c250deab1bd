"""Assets that store energy: a battery, a car that charges, a building or tank that a heat pump keeps warm.

Each says how its state moves, what it may do and what its states are worth to its owner; ``values`` does the rest.
What is wanted (a full car, a warm room) is priced, never demanded; what must not be (an empty or overfull battery, a
boiling tank) is not among the powers that are offered, whatever the price. Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, inf
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from energybid.bidding.assets import MILLION, Asset, Now
from energybid.bidding.response import Offer, Piece, Segment
from energybid.bidding.values import OFF, Array, Mode, Reach, even, liked_w, reaches, values
from energybid.bidding.values_battery import marginal_worths

if TYPE_CHECKING:
    from energybid.bidding.horizon import Outlook

GRID = 401
"""States of a store of energy."""
GRID_K = 801
"""Temperatures: a step moves them little, so they stand closer."""
MARGIN_K = 4.0
"""How far outside the comfort band temperatures are told apart."""
FINAL_SPAN = 0.3
MANY = 8
"""Price states from which on a battery's values are found as marginal values: faster, and as exact but at prices so
negative that it would pay to waste energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """Stationary battery; charges or discharges, never both."""

    stored_wh: float
    capacity_wh: float
    charge_w: int
    """Most import."""
    discharge_w: int
    """Most export."""
    charge_efficiency: float = 1.0
    """What is stored of what is imported; above 0, at most 1."""
    discharge_efficiency: float = 1.0
    """What is exported of what is taken out."""
    charge_wear: float = 0.0
    """Cost of charging beside the energy's price, money per MWh imported; 0 or more."""
    discharge_wear: float = 0.0
    """The same of discharging, money per MWh exported."""
    reserve_wh: float = 0.0
    """Never discharged below this."""
    final_price: float | None = 0.0
    """What is stored above the reserve at the end of the horizon counts so much, money per MWh; None: what the outlook
    expects later, ``FINAL_SPAN`` more for the first of it and less for the last."""

    def __post_init__(self) -> None:
        """Refuse what is no battery."""
        _check(
            0 <= self.reserve_wh <= self.capacity_wh and self.capacity_wh > 0,
            min(self.charge_w, self.discharge_w) >= 0,
            0 < self.charge_efficiency <= 1 and 0 < self.discharge_efficiency <= 1,
            min(self.charge_wear, self.discharge_wear) >= 0,
        )

    @property
    def state(self) -> float:
        """Energy, Wh; a measured value outside the battery is taken as its end."""
        return min(max(self.stored_wh, 0.0), self.capacity_wh)

    def at(self, state: float) -> Battery:
        """The same with other energy in it."""
        return replace(self, stored_wh=state)

    def grid(self, count: int = GRID) -> Array:
        """Empty to full."""
        return even(0.0, self.capacity_wh, count)

    def drift(self, step: int, step_h: float) -> tuple[float, float]:  # noqa: ARG002 (of the protocol)
        """Keeps what it has."""
        return 1.0, 0.0

    def modes(self, step: int, step_h: float) -> tuple[Mode, ...]:  # noqa: ARG002
        """Discharging and charging; both reach 0."""
        out = Mode(-self.discharge_w, 0, step_h / self.discharge_efficiency, -self.discharge_wear, self.reserve_wh)
        into = Mode(0, self.charge_w, step_h * self.charge_efficiency, self.charge_wear, most=self.capacity_wh)
        return out, into

    def reward(self, step: int, step_h: float, states: Array) -> None:
        """None: energy is worth what it is used for."""

    def final(self, steps: int, outlook: Outlook, states: Array) -> Array:  # noqa: ARG002
        """At the final price."""
        above = np.maximum(states - self.reserve_wh, 0.0)
        if self.final_price is not None:
            return self.final_price * above
        return max(outlook.later, 0.0) * above * (1 + FINAL_SPAN - FINAL_SPAN * above / self.capacity_wh)

    def ahead(self, outlook: Outlook, keep: int | None = None) -> list[Array]:
        """What each state is worth after each step."""
        many = any(len(stage.prices) >= MANY for stage in outlook.stages[:1])
        return marginal_worths(self, outlook, keep) if many else values(self, outlook, keep)

    def offer(self, now: Now) -> Offer:
        """What each power is worth."""
        return _offer(choices(self, now), now.step_h)

    def after(self, now: Now, power_w: int) -> Battery:
        """With the energy it then has."""
        return _moved(self, now, power_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvCharger:
    """A car that charges with at least a least power, or not at all."""

    stored_wh: float
    capacity_wh: float
    least_w: int
    """Of the least current the standard allows (IEC 61851-1: 6 A), on all its phases."""
    most_w: int
    efficiency: float = 1.0
    arrival: int = 0
    """First step it is there in, counted from the outlook's round; 0 or less: it is there."""
    departure: int
    """First step it is no longer there in."""
    wanted_wh: float
    """Energy wanted in it by then."""
    shortage_price: float
    """What it costs to leave with less, money per MWh missing; 0 or more."""

    def __post_init__(self) -> None:
        """Refuse what is no charger."""
        _check(
            self.capacity_wh > 0,
            0 <= self.least_w <= self.most_w,
            0 < self.efficiency <= 1,
            self.shortage_price >= 0,
        )

    @property
    def state(self) -> float:
        """Energy, Wh."""
        return min(max(self.stored_wh, 0.0), self.capacity_wh)

    def at(self, state: float) -> EvCharger:
        """The same with other energy in it."""
        return replace(self, stored_wh=state)

    def grid(self, count: int = GRID) -> Array:
        """Empty to full."""
        return even(0.0, self.capacity_wh, count)

    def drift(self, step: int, step_h: float) -> tuple[float, float]:  # noqa: ARG002
        """Keeps what it has."""
        return 1.0, 0.0

    def modes(self, step: int, step_h: float) -> tuple[Mode, ...]:
        """Off; and while it is there, on."""
        if not self.arrival <= step < self.departure:
            return (OFF,)
        return OFF, Mode(self.least_w, self.most_w, step_h * self.efficiency, most=self.capacity_wh)

    def reward(self, step: int, step_h: float, states: Array) -> Array | None:  # noqa: ARG002
        """At departure: the price of what is missing."""
        if step != self.departure - 1:
            return None
        return -self.shortage_price * np.maximum(self.wanted_wh - states, 0.0)

    def final(self, steps: int, outlook: Outlook, states: Array) -> Array:
        """Beyond the horizon it charges at the price expected then, as far as there is time."""
        left = self.departure - 1 - steps
        if left <= 0:
            return np.zeros_like(states)
        missing = np.maximum(self.wanted_wh - states, 0.0)
        later = np.minimum(missing, left * self.most_w * outlook.step_h * self.efficiency)
        price = min(outlook.later / self.efficiency, self.shortage_price)
        return -price * later - self.shortage_price * (missing - later)

    def ahead(self, outlook: Outlook, keep: int | None = None) -> list[Array]:
        """What each state is worth after each step."""
        return values(self, outlook, keep)

    def offer(self, now: Now) -> Offer:
        """What each power is worth."""
        return _offer(choices(self, now), now.step_h)

    def after(self, now: Now, power_w: int) -> EvCharger:
        """With the energy it then has."""
        return _moved(self, now, power_w)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermal:
    """A room or a tank with one temperature, and a heat pump, heater or cooler that is off or within its powers.

    The temperature nears its resting point with one time constant: after a step of h hours it is
    ``rest + (T - rest) * exp(-h / time_constant_h)``, the rest being what it would settle at without power plus
    ``kelvin_per_w`` for each watt.
    """

    temperature_c: float
    low_c: float
    """Comfort band: outside it every kelvin costs."""
    high_c: float
    discomfort_price: float
    """Money per kelvin and hour outside the band."""
    time_constant_h: float
    kelvin_per_w: float
    """How much warmer a watt keeps it in the end; negative for a cooler."""
    rest_c: tuple[float, ...]
    """What it would settle at without power, of each step from the outlook's round; the last holds on."""
    least_w: int
    """Equal to ``most_w`` for a pump that is on or off."""
    most_w: int
    least_c: float = -inf
    """Hard limits: the device does not run where it would end a step beyond them."""
    most_c: float = inf
    final_price: float | None = 0.0
    """What is stored at the end of the horizon, up to the band's end: at the electricity it takes, money per MWh; None:
    what the outlook expects later."""
    has_to: bool | None = None
    """In the round it has to run on, True, or to rest, False, for it was switched just before. None: as is best."""

    def __post_init__(self) -> None:
        """Refuse what is no thermal store."""
        _check(
            self.low_c < self.high_c,
            min(self.discomfort_price, self.final_price or 0.0) >= 0,
            self.time_constant_h > 0 and self.kelvin_per_w != 0,
            bool(self.rest_c),
            0 <= self.least_w <= self.most_w,
        )

    @property
    def state(self) -> float:
        """Temperature."""
        return self.temperature_c

    def at(self, state: float) -> Thermal:
        """The same at another temperature, later."""
        return replace(self, temperature_c=state, has_to=None)

    def grid(self, count: int = GRID_K) -> Array:
        """The band and some kelvin around it."""
        return even(self.low_c - MARGIN_K, self.high_c + MARGIN_K, count)

    def drift(self, step: int, step_h: float) -> tuple[float, float]:
        """Nears its resting point."""
        keep = exp(-step_h / self.time_constant_h)
        return keep, (1 - keep) * self.rest_c[min(step, len(self.rest_c) - 1)]

    def modes(self, step: int, step_h: float) -> tuple[Mode, ...]:
        """Off, or on; in the round one of them where it has to be, unless a hard limit forbids it."""
        on = Mode(self.least_w, self.most_w, self._gain(step_h), least=self.least_c, most=self.most_c)
        if step or self.has_to is None:
            return OFF, on
        keep, shift = self.drift(step, step_h)
        open_ = self.least_c <= keep * self.temperature_c + shift + on.gain * self.least_w <= self.most_c
        return (on,) if self.has_to and open_ else (OFF,)

    def _gain(self, step_h: float) -> float:
        return self.kelvin_per_w * (1 - exp(-step_h / self.time_constant_h))

    def reward(self, step: int, step_h: float, states: Array) -> Array:  # noqa: ARG002
        """The price of discomfort."""
        outside_k = np.maximum(np.maximum(self.low_c - states, states - self.high_c), 0.0)
        return -self.discomfort_price * MILLION * step_h * outside_k

    def final(self, steps: int, outlook: Outlook, states: Array) -> Array:  # noqa: ARG002
        """At the final price."""
        wh_per_k = outlook.step_h / self._gain(outlook.step_h)
        price = max(outlook.later, 0.0) if self.final_price is None else self.final_price
        return price * wh_per_k * np.minimum(states, self.high_c)

    def ahead(self, outlook: Outlook, keep: int | None = None) -> list[Array]:
        """What each state is worth after each step."""
        return values(self, outlook, keep)

    def offer(self, now: Now) -> Offer:
        """What each power is worth."""
        return _offer(choices(self, now), now.step_h)

    def after(self, now: Now, power_w: int) -> Thermal:
        """At the temperature it then has."""
        return _moved(self, now, power_w)


StoreAsset = Battery | EvCharger | Thermal
Same = TypeVar("Same", Battery, EvCharger, Thermal)


def choices(store: StoreAsset, now: Now) -> list[Reach]:
    """What each mode can reach in the round."""
    keep, shift = store.drift(now.step, now.step_h)
    modes = store.modes(now.step, now.step_h)
    return reaches(modes, store.grid(len(now.ahead)), now.ahead, keep * store.state + shift, now.knots)


def liked(asset: Asset, now: Now, price: float) -> int:
    """The power that is best for an asset alone at one price."""
    if not isinstance(asset, Battery | EvCharger | Thermal):
        return max(asset.offer(now), key=lambda piece: piece.gain(price)).best_w(price)
    keep, shift = asset.drift(now.step, now.step_h)
    modes = asset.modes(now.step, now.step_h)
    return liked_w(modes, asset.grid(len(now.ahead)), now.ahead, keep * asset.state + shift, price, now.step_h)


def _offer(found: list[Reach], step_h: float) -> Offer:
    pieces: list[Piece] = []
    for reach in sorted(found, key=lambda reach: reach.powers_w):
        piece = _piece(reach, step_h)
        before = pieces[-1] if pieces else None
        if before and before.end_w == piece.start_w and _joins(before, piece):
            piece = Piece(before.start_w, before.value, before.segments + piece.segments)
            pieces.pop()
        pieces.append(piece)
    return tuple(pieces)


def _piece(reach: Reach, step_h: float) -> Piece:
    powers, worths = reach.powers_w, [worth / step_h for worth in reach.worths]
    segments: list[Segment] = []
    for (low_w, high_w), (low, high) in zip(pairwise(powers), pairwise(worths), strict=True):
        slope = (high - low) / (high_w - low_w) - reach.mode.cost
        segments.append(Segment(high_w - low_w, min([slope, *(segment.slope for segment in segments[-1:])])))
    return Piece(powers[0], worths[0] - reach.mode.cost * powers[0], tuple(segments))


def _joins(low: Piece, high: Piece) -> bool:
    """Whether two pieces that meet in a point are one: its value is the same, and it is concave there."""
    return not low.segments or not high.segments or low.segments[-1].slope >= high.segments[0].slope


def _moved(store: Same, now: Now, power_w: int) -> Same:
    keep, shift = store.drift(now.step, now.step_h)
    mode = next(mode for mode in store.modes(now.step, now.step_h) if mode.low_w <= power_w <= mode.high_w)
    return store.at(keep * store.state + shift + mode.gain * power_w)


def _check(*facts: bool) -> None:
    if not all(facts):
        raise ValueError("limits in order, efficiencies above 0 and at most 1, prices and wear 0 or more")
