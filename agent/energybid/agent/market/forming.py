"""From what is configured and measured to the assets that bid. Pure; needs numpy (extra ``bidding``).

A bidding asset counts steps from the round it bids for; here times of day become steps, and states become the ones that
the asset will be in when the round begins.
"""

from __future__ import annotations

from functools import singledispatch
from itertools import accumulate
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

from energybid.agent.market import plan as plans
from energybid.agent.market.times import next_moment, window
from energybid.bidding.assets import Curtailable, Deferrable, Pv, Shed
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from energybid.bidding.assets import Asset

HOUR_MS = 3_600_000


class State(NamedTuple):
    """What is known of an asset; what its kind does not need stays as it is."""

    value: float = 0.0
    """Battery: energy, Wh. EV: energy charged in this stay, Wh. Thermal: temperature, °C. Curtailable: power with
    nothing off, W. PV: what it could give, W."""
    here: bool | None = None
    """EV: whether a car is there; None: only its times of day tell."""
    full: bool = False
    """EV: the car takes nothing more."""
    outside_c: float = 0.0
    """Thermal: around it."""
    model: plans.ThermalModelPlan | None = None
    """Thermal."""
    has_to: bool | None = None
    """Thermal: it has to run on, or to rest, for it was switched too short a time before; None: as is best."""
    ready: bool | None = None
    """Deferrable: whether it is loaded and waits; None: the window tells."""
    started_ms: int | None = None
    """Deferrable: when the last run began that may still run, or that was this window's."""


class Grid(NamedTuple):
    """Steps of a round."""

    at_ms: int
    """When the round begins."""
    step_ms: int
    zone: ZoneInfo

    def before(self, moment_ms: int) -> int:
        """Whole steps until a moment."""
        return (moment_ms - self.at_ms) // self.step_ms

    def after(self, moment_ms: int) -> int:
        """Steps until a moment is over."""
        return -(-(moment_ms - self.at_ms) // self.step_ms)


def bidding_asset(plan: plans.AnyAssetPlan, state: State, at_ms: int, step_h: float, zone: ZoneInfo) -> Asset | None:
    """An asset in its state, or None where there is nothing to bid with (no car, nothing to run).

    Args:
        plan: What it is.
        state: What it will be like when the round begins.
        at_ms: When the round begins.
        step_h: Length of the round and of every step after it, hours.
        zone: Of the times of day.
    """
    return _form(plan, state, Grid(at_ms, round(step_h * HOUR_MS), zone))


@singledispatch
def _form(plan: plans.AssetPlan, state: State, grid: Grid) -> Asset | None:
    raise NotImplementedError(plan, state, grid)


@_form.register(plans.BatteryPlan)
def _battery(plan: plans.BatteryPlan, state: State, grid: Grid) -> Asset | None:  # noqa: ARG001  of all kinds
    return Battery(
        stored_wh=state.value,
        capacity_wh=plan.capacity_wh,
        charge_w=plan.charge_w,
        discharge_w=plan.discharge_w,
        charge_efficiency=plan.charge_efficiency,
        discharge_efficiency=plan.discharge_efficiency,
        charge_wear=plan.charge_wear,
        discharge_wear=plan.discharge_wear,
        reserve_wh=plan.reserve_wh,
        final_price=plan.final_price,
    )


@_form.register(plans.EvPlan)
def _ev(plan: plans.EvPlan, state: State, grid: Grid) -> Asset | None:
    here, arrival_ms = state.here, grid.at_ms
    if not here:
        if plan.arrival_min is None:
            return None
        stay = window(plan.arrival_min, plan.departure_min, grid.at_ms, grid.zone)
        if stay.begins_ms <= grid.at_ms and here is False:  # it should be there and is not: it may come any time
            return None
        arrival_ms = max(stay.begins_ms, grid.at_ms)
    charged_wh = state.value if arrival_ms == grid.at_ms else 0.0
    capacity_wh = charged_wh if state.full else max(float(plan.capacity_wh), charged_wh)
    return EvCharger(
        stored_wh=charged_wh,
        capacity_wh=max(capacity_wh, 1.0),
        least_w=plan.least_w,
        most_w=plan.most_w,
        arrival=grid.after(arrival_ms),
        departure=grid.before(next_moment(plan.departure_min, arrival_ms, grid.zone)),
        wanted_wh=min(plan.wanted_wh, max(capacity_wh, 1.0)),
        shortage_price=plan.shortage_price,
    )


@_form.register(plans.ThermalPlan)
def _thermal(plan: plans.ThermalPlan, state: State, grid: Grid) -> Asset | None:  # noqa: ARG001
    model = plan.model or state.model
    if model is None:
        return None
    return Thermal(
        temperature_c=state.value,
        low_c=plan.low_c,
        high_c=plan.high_c,
        discomfort_price=plan.discomfort_price,
        time_constant_h=model.time_constant_h,
        kelvin_per_w=model.kelvin_per_w,
        rest_c=(state.outside_c + model.free_k,),
        least_w=plan.least_w,
        most_w=plan.most_w,
        least_c=plan.least_c,
        most_c=plan.most_c,
        final_price=plan.final_price,
        has_to=state.has_to,
    )


@_form.register(plans.DeferrablePlan)
def _deferrable(plan: plans.DeferrablePlan, state: State, grid: Grid) -> Asset | None:
    profile_w = resampled(plan.profile_w, plan.profile_step_s * 1000, grid.step_ms)
    within = window(plan.earliest_min, plan.latest_min, grid.at_ms, grid.zone)
    if state.started_ms is not None:
        done = max(1, (grid.at_ms - state.started_ms) // grid.step_ms)
        if grid.at_ms < state.started_ms + run_ms(plan):
            return Deferrable(
                profile_w=profile_w, worth=plan.worth, deadline=len(profile_w), done=min(done, len(profile_w))
            )
        if state.ready is None and state.started_ms >= within.begins_ms:
            return None  # this window's run is done
    if state.ready is False:
        return None
    return Deferrable(
        profile_w=profile_w,
        worth=plan.worth,
        earliest=max(0, grid.after(within.begins_ms)),
        deadline=grid.before(within.ends_ms),
    )


@_form.register(plans.CurtailablePlan)
def _curtailable(plan: plans.CurtailablePlan, state: State, grid: Grid) -> Asset | None:  # noqa: ARG001
    load_w = max(0, round(state.value))
    fits = accumulate((shed.power_w for shed in plan.sheds), initial=0)
    sheds = tuple(
        Shed(s.power_w, s.cost) for s, before_w in zip(plan.sheds, fits, strict=False) if before_w + s.power_w <= load_w
    )
    return Curtailable(load_w=load_w, sheds=sheds)


@_form.register(plans.PvPlan)
def _pv(plan: plans.PvPlan, state: State, grid: Grid) -> Asset | None:  # noqa: ARG001
    power_w = min(max(0, round(state.value)), plan.rated_w)
    return Pv(forecast_w=(power_w,), support=plan.support, curtailable=plan.curtailable)


def run_ms(plan: plans.DeferrablePlan) -> int:
    """How long a run takes."""
    return round(len(plan.profile_w) * plan.profile_step_s * 1000)


def resampled(profile_w: tuple[int, ...], step_ms: float, to_ms: int) -> tuple[int, ...]:
    """A run in steps of another length, with the same energy; the first takes power."""
    ends = list(accumulate((power_w * step_ms for power_w in profile_w), initial=0.0))

    def energy(at_ms: float) -> float:
        step = min(int(at_ms // step_ms), len(profile_w))
        inside = (at_ms - step * step_ms) * profile_w[step] if step < len(profile_w) else 0.0
        return ends[step] + inside

    count = ceil(len(profile_w) * step_ms / to_ms)
    means = [round((energy((k + 1) * to_ms) - energy(k * to_ms)) / to_ms) for k in range(count)]
    return (max(1, means[0]), *means[1:])
