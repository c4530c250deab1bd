"""A configured site's devices as the days of a back-test go by: what they can do before a round, and what follows.

What a device is offered as comes from ``forming``, as in the agent; here its state is moved by what was done instead of
read from a meter, and said what it would take if nobody steered it. A car comes and goes by its times of day, a run is
due in every window. Times of day are those of the prices' clock. Pure; needs numpy (extra ``bidding``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar
from zoneinfo import ZoneInfo

import numpy as np

from energybid.agent.market import plan as plans
from energybid.agent.market.forming import State, bidding_asset
from energybid.agent.market.times import window
from energybid.agent.market.turns import Turns
from energybid.bidding.assets import MILLION, Deferrable, Now
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.backtest import Sky
from energybid.bidding.horizon import Outlook
from energybid.bidding.planning_weather import SITE
from energybid.bidding.values import NOTHING
from energybid.core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.bidding.assets import Asset
    from energybid.bidding.backtest import Device
    from energybid.bidding.values import Array

UTC = ZoneInfo("UTC")
_NO_PRICES = Outlook(1.0, ())
P = TypeVar("P", bound=plans.AnyAssetPlan)
A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class World:
    """What the devices stand in."""

    begins_ms: int
    step_ms: int
    outside_c: Array
    """Outdoor temperature of every step."""
    sun: Array
    """What a roof gives of its rated power, of every step."""

    @property
    def step_h(self) -> float:
        """Length of a step."""
        return self.step_ms / 3_600_000

    def at_ms(self, step: int) -> int:
        """Begin of a step."""
        return self.begins_ms + step * self.step_ms


class _Device(Generic[P]):
    """One device; its state is ``_state``."""

    def __init__(self, plan: P, world: World) -> None:
        self._plan, self._world = plan, world
        self._value = 0.0
        """Of the state, as ``forming.State`` has it."""

    def _state(self, step: int) -> State:  # noqa: ARG002 (of some kinds)
        return State(self._value)

    def asset(self, step: int) -> Asset | None:
        return bidding_asset(self._plan, self._state(step), self._world.at_ms(step), self._world.step_h, UTC)

    def move(self, step: int, power_w: int) -> float:  # noqa: ARG002
        return 0.0

    def plain_w(self, step: int) -> int:  # noqa: ARG002
        return 0

    def left(self, price: float) -> float:  # noqa: ARG002
        return 0.0

    def stored_wh(self) -> float:
        return 0.0

    def _money(self, price: float, power_w: float) -> float:
        """Of a power over a step, at money per MWh."""
        return price * power_w * self._world.step_h / MILLION

    def _now(self) -> Now:
        return Now(0, self._world.step_h, NOTHING)


class _BatteryDevice(_Device[plans.BatteryPlan]):
    def __init__(self, plan: plans.BatteryPlan, world: World) -> None:
        super().__init__(plan, world)
        self._value = float(plan.reserve_wh)

    def move(self, step: int, power_w: int) -> float:
        self._value = _known(Battery, self.asset(step)).after(self._now(), power_w).state
        plan = self._plan
        return self._money(plan.charge_wear, max(power_w, 0)) + self._money(plan.discharge_wear, max(-power_w, 0))

    def left(self, price: float) -> float:
        battery = _known(Battery, self.asset(0))
        return float(battery.final(0, Outlook(self._world.step_h, (), price), np.array([self._value]))[0]) / MILLION

    def stored_wh(self) -> float:
        return self._value


class _CarDevice(_Device[plans.EvPlan]):
    """Comes with the same energy missing every day."""

    def __init__(self, plan: plans.EvPlan, world: World) -> None:
        super().__init__(plan, world)
        if plan.arrival_min is None:
            raise ConfigurationError([f"{plan.name}: arrival: without it nobody knows when the car is there"])
        self._arrival_min = plan.arrival_min

    def _leaves_ms(self, at_ms: int) -> int | None:
        """End of the stay that it is in, if it is there."""
        stay = window(self._arrival_min, self._plan.departure_min, at_ms, UTC)
        return stay.ends_ms if stay.begins_ms <= at_ms else None

    def _state(self, step: int) -> State:
        here = self._leaves_ms(self._world.at_ms(step)) is not None
        return State(self._value, here=True if here else None)

    def move(self, step: int, power_w: int) -> float:
        at_ms = self._world.at_ms(step)
        leaves_ms = self._leaves_ms(at_ms)
        if leaves_ms is None:
            return 0.0
        if power_w:
            self._value = _known(EvCharger, self.asset(step)).after(self._now(), power_w).state
        if leaves_ms > at_ms + self._world.step_ms:
            return 0.0
        missing_wh = max(0.0, self._plan.wanted_wh - self._value)
        self._value = 0.0
        return missing_wh * self._plan.shortage_price / MILLION

    def plain_w(self, step: int) -> int:
        car = _known(EvCharger, self.asset(step))
        missing_w = int((car.wanted_wh - car.state) / self._world.step_h)
        if not car.arrival <= 0 < car.departure or missing_w < car.least_w:
            return 0
        return min(car.most_w, missing_w)

    def left(self, price: float) -> float:
        return min(self._value, self._plan.wanted_wh) * price / MILLION

    def stored_wh(self) -> float:
        return self._value


class _HeatDevice(_Device[plans.ThermalPlan]):
    """Begins in the middle of its band."""

    def __init__(self, plan: plans.ThermalPlan, world: World) -> None:
        super().__init__(plan, world)
        if plan.model is None:
            raise ConfigurationError([f"{plan.name}: model is missing: there are no measurements to find it from"])
        self._model = plan.model
        self._value = (plan.low_c + plan.high_c) / 2
        self._turns = Turns(plan.least_run_s, plan.least_pause_s, 0.0)

    def _state(self, step: int) -> State:
        own = self._plan.outside_c
        outside_c = float(self._world.outside_c[step]) if own is None else own
        return State(self._value, outside_c=outside_c, has_to=self._turns.has_to(self._world.at_ms(step) / 1000))

    def move(self, step: int, power_w: int) -> float:
        self._value = _known(Thermal, self.asset(step)).after(self._now(), power_w).state
        self._turns.told(self._world.at_ms(step) / 1000, runs=power_w > 0)
        outside_k = max(self._plan.low_c - self._value, self._value - self._plan.high_c, 0.0)
        return outside_k * self._plan.discomfort_price * self._world.step_h

    def plain_w(self, step: int) -> int:
        """A thermostat on the band's middle."""
        heat, step_h = _known(Thermal, self.asset(step)), self._world.step_h
        keep, shift = heat.drift(0, step_h)
        *_, on = heat.modes(1, step_h)
        wanted_w = ((heat.low_c + heat.high_c) / 2 - keep * heat.state - shift) / on.gain
        runs = wanted_w >= max(heat.least_w / 2, 1) if heat.has_to is None else heat.has_to
        return round(min(max(wanted_w, heat.least_w), heat.most_w)) if runs else 0

    def left(self, price: float) -> float:
        """Its warmth, at the electricity that this takes."""
        wh_per_k = self._model.time_constant_h / self._model.kelvin_per_w
        return min(self._value, self._plan.high_c) * wh_per_k * price / MILLION


class _RunDevice(_Device[plans.DeferrablePlan]):
    """Loaded again in every window."""

    def __init__(self, plan: plans.DeferrablePlan, world: World) -> None:
        super().__init__(plan, world)
        self._started_ms: int | None = None

    def _state(self, step: int) -> State:  # noqa: ARG002
        return State(started_ms=self._started_ms)

    def move(self, step: int, power_w: int) -> float:
        at_ms, plan = self._world.at_ms(step), self._plan
        due = window(plan.earliest_min, plan.latest_min, at_ms, UTC)
        run = self.asset(step)
        if isinstance(run, Deferrable) and not run.done and power_w:
            self._started_ms = at_ms
        ends = at_ms < due.ends_ms <= at_ms + self._world.step_ms
        missed = ends and (self._started_ms is None or self._started_ms < due.begins_ms)
        return plan.worth if missed else 0.0

    def plain_w(self, step: int) -> int:
        """Begins at once."""
        run = self.asset(step)
        ahead = NOTHING if run is None else run.ahead(_NO_PRICES)[0][0]
        return max((p.start_w for p in run.offer(Now(0, self._world.step_h, ahead))), default=0) if run else 0


class _LoadDevice(_Device[plans.CurtailablePlan]):
    def __init__(self, plan: plans.CurtailablePlan, world: World) -> None:
        super().__init__(plan, world)
        self._value = float(plan.load_w or sum(shed.power_w for shed in plan.sheds))

    def move(self, step: int, power_w: int) -> float:  # noqa: ARG002
        shed_w, cost = round(self._value) - power_w, 0.0
        for shed in self._plan.sheds:
            cost += self._money(shed.cost, shed.power_w) if shed_w > 0 else 0.0
            shed_w -= shed.power_w
        return cost

    def plain_w(self, step: int) -> int:  # noqa: ARG002
        return round(self._value)


class _SunDevice(_Device[plans.PvPlan]):
    def _output_w(self, step: int) -> int:
        return round(self._plan.rated_w * float(self._world.sun[step]))

    def _state(self, step: int) -> State:
        return State(float(self._output_w(step)))

    def move(self, step: int, power_w: int) -> float:
        return self._money(self._plan.support, self._output_w(step) + power_w)

    def plain_w(self, step: int) -> int:
        return -self._output_w(step)


_KINDS: dict[type[plans.AssetPlan], Callable[..., Device]] = {
    plans.BatteryPlan: _BatteryDevice,
    plans.EvPlan: _CarDevice,
    plans.ThermalPlan: _HeatDevice,
    plans.DeferrablePlan: _RunDevice,
    plans.CurtailablePlan: _LoadDevice,
    plans.PvPlan: _SunDevice,
}


def devices(site: plans.MarketPlan, world: World) -> tuple[Device, ...]:
    """The site's devices as they begin: batteries at their reserve, rooms in the middle of their band.

    Raises:
        ConfigurationError: A device of which nothing says how it goes on without a meter.
    """
    return tuple(_KINDS[type(asset)](asset, world) for asset in site.assets)


def sky(site: plans.MarketPlan, world: World) -> Sky:
    """The weather that the site's devices have."""
    rooms = [asset for asset in site.assets if isinstance(asset, plans.ThermalPlan) and asset.outside_c is None]
    roofs = [asset for asset in site.assets if isinstance(asset, plans.PvPlan)]
    outside_c = dict.fromkeys([SITE, *(asset.name for asset in rooms)], world.outside_c)
    return Sky(outside_c, {asset.name: np.round(asset.rated_w * world.sun) for asset in roofs})


def _known(kind: type[A], asset: object) -> A:
    assert isinstance(asset, kind)  # noqa: S101 (its plan makes no other)
    return asset
