"""One asset in one interval: what it may be moved to, what it is told, and whether it obeys. No I/O, no clock."""

from __future__ import annotations

import logging
from fractions import Fraction
from typing import TYPE_CHECKING

from energybid.agent.market import plan as plans
from energybid.agent.market.assets import OutError
from energybid.agent.market.forming import run_ms
from energybid.agent.market.setpoints import FINE, number_for, power_for, sheds_for

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from energybid.agent.market.assets import Assets, Unit
    from energybid.agent.market.forming import State

logger = logging.getLogger("energybid.agent")

BAND_W, BAND = 10.0, 0.005
"""Corrections below this are not made; the second as a share of the asset's range."""
DISOBEYS_W, DISOBEYS = 100.0, 0.1
"""Further away from what it was told it does not obey; the second as a share of that."""
BLIND_S = 10.0
"""What is known of an asset holds so long after it is not read any more."""
TAPER_S = 10.0
"""A battery is led to its ends so that it does not pass them within this time, or two looks."""


def movers_of(assets: Assets, split: Mapping[str, int], begins_ms: int) -> list[Mover]:
    """The assets of a split; those first that take up deviations at the least cost."""
    for name in split.keys() - assets.units.keys():
        logger.warning("%s: is no asset any more; nothing moves it", name)
    movers = [Mover(assets, assets.units[name], w, begins_ms) for name, w in split.items() if name in assets.units]
    return sorted(movers, key=lambda mover: _ORDER.get(type(mover.plan), len(_ORDER)))


_GUARDED = plans.BatteryPlan | plans.ThermalPlan
"""They have limits that nobody keeps without knowing their state: then they rest."""
_ORDER: dict[type[plans.AssetPlan], int] = {
    plans.BatteryPlan: 0,
    plans.EvPlan: 1,
    plans.ThermalPlan: 2,
    plans.PvPlan: 3,
}


class Mover:
    """See the module."""

    def __init__(self, assets: Assets, unit: Unit, split_w: int, begins_ms: int) -> None:
        """Move an asset.

        Args:
            assets: All.
            unit: The one.
            split_w: Its part, W of import.
            begins_ms: Of the interval: names what it was thought to take or give in it.
        """
        self.plan, self.name, self.split_w = unit.plan, unit.plan.name, float(split_w)
        self.overridden_by = ""
        self.fault = ""
        """Why it can not be written."""
        self.disobeys = False
        self.blind = ""
        """What is not known of it, though it must be for it to be moved."""
        self.limited = ""
        """Which limit of its own keeps it from its part."""
        self.power_w = 0.0
        """What it takes."""
        self.start_w = self.wanted_w = self.split_w
        """Without a correction, and with."""
        self.told: Fraction | None = None
        """The number that was written."""
        self.retry_at_s = 0.0
        self.task: asyncio.Task[None] | None = None
        self._assets, self._unit = assets, unit
        self._all_w = unit.all_w[1] if unit.all_w and unit.all_w[0] == begins_ms else None
        """What it was thought to take with nothing off, or without a limit."""
        self._low_w = self._high_w = self.split_w
        self._ramped: tuple[float, float] | None = None
        """When it was moved last (loop time), and where to, W."""
        self._told_w = assets.command_w(unit)
        self._told_at_s = unit.told_at_s
        self._tick_s = 0.0
        self._is_settled = False
        """It has had the time to do what it was told."""
        self._is_shed = False
        self._is_beyond = False
        """A hard limit of its own keeps it from running."""
        self._has_to: bool | None = None
        """It was switched too short a time ago: it has to run on, True, or to rest, False."""
        self._seen_s: float | None = None
        """When its state was last known."""

    # ------------------------------------------------------------ what is so

    def look(self, now_s: float, tick_s: float, overridden_by: str) -> None:
        """Take up what was measured."""
        self.overridden_by, self._tick_s = overridden_by, tick_s
        measured_w = self._assets.power_w(self._unit)
        if measured_w is not None:
            self.power_w = measured_w
        elif self._told_w is not None:
            self.power_w = self._told_w
        self._look_at_state(now_s, max(TAPER_S, 2 * tick_s) / 3600)
        if isinstance(self.plan, plans.ThermalPlan):
            self._keep_turn(self.plan)
        self.start_w = min(max(self._split_now_w(), self._low_w), self._high_w)
        if self._is_shed:
            self.start_w = self._low_w = self._high_w = 0.0
        self._look_whether_it_obeys(now_s, measured_w)

    def _look_at_state(self, now_s: float, horizon_h: float) -> None:
        try:
            state = self._assets.state(self._unit, self._assets.now_ms())
        except OutError as error:
            if self._seen_s is None or now_s - self._seen_s > BLIND_S:
                self.blind = str(error)
                self._low_w = self._high_w = 0.0 if isinstance(self.plan, _GUARDED) else self.split_w
        else:
            self._seen_s, self.blind = now_s, ""
            self._is_beyond = isinstance(self.plan, plans.ThermalPlan) and _beyond(self.plan, state)
            self._low_w, self._high_w = self._range(state, horizon_h)
            self.limited = self._limit_of(state)

    def _keep_turn(self, plan: plans.ThermalPlan) -> None:
        """It runs on, or rests, as long as its maker asks, whatever it is to do; a hard limit alone ends a run.

        Nor does a run end because its temperature is not read any more: that would be a pause for each lost answer.
        """
        self._has_to = self._assets.has_to(self._unit, self._assets.now_ms())
        if self._has_to and self._is_beyond:
            self._has_to = None
        if self._has_to:
            self._low_w, self._high_w = float(plan.least_w if plan.on is None else plan.most_w), float(plan.most_w)
            self.limited = "has to run on" if self.split_w < plan.least_w else self.limited
        elif self._has_to is False:
            self._low_w = self._high_w = 0.0
            self.limited = "has to rest" if self.split_w >= plan.least_w else self.limited

    def _limit_of(self, state: State) -> str:
        if self._low_w - BAND_W <= self.split_w <= self._high_w + BAND_W or isinstance(self.plan, plans.PvPlan):
            return ""
        return "no car is there" if state.here is False else "is at its limit"

    def _split_now_w(self) -> float:
        """The split; a roof that was to give all gives all, be it more or less than was thought."""
        if isinstance(self.plan, plans.PvPlan) and self._all_w is not None and self.split_w <= self._all_w:
            return self._low_w
        return self.split_w

    def _range(self, state: State, horizon_h: float) -> tuple[float, float]:
        """What it may take: least and most; the same where it is on or off."""
        match self.plan:
            case plans.BatteryPlan() as plan:
                room_w = (plan.capacity_wh - state.value) / plan.charge_efficiency / horizon_h
                left_w = (state.value - plan.reserve_wh) * plan.discharge_efficiency / horizon_h
                return -min(max(left_w, 0.0), plan.discharge_w), min(max(room_w, 0.0), plan.charge_w)
            case plans.EvPlan() as plan if self.split_w >= plan.least_w:
                return (0.0, 0.0) if state.here is False else (float(plan.least_w), float(plan.most_w))
            case plans.ThermalPlan() as plan if self.split_w >= plan.least_w:
                if self._is_beyond:
                    return 0.0, 0.0
                return (plan.least_w, plan.most_w) if plan.on is None else (self.split_w, self.split_w)
            case plans.PvPlan() as plan if plan.curtailable:
                return -min(state.value, float(plan.rated_w)), 0.0
            case _:
                return self.split_w, self.split_w

    def _look_whether_it_obeys(self, now_s: float, measured_w: float | None) -> None:
        told_w = self._told_w
        settle_s = self.plan.settle_s + (self.plan.power.stale_s if self.plan.power else 0.0)
        self._is_settled = self.told is not None and now_s - self._told_at_s > settle_s
        if self.plan.power is None or measured_w is None or told_w is None:
            self.disobeys = False
            return
        gives_what_it_can = isinstance(self.plan, plans.PvPlan) and measured_w > told_w
        varies = isinstance(self.plan, plans.CurtailablePlan | plans.DeferrablePlan)
        if gives_what_it_can or varies or abs(measured_w - told_w) <= max(DISOBEYS_W, DISOBEYS * abs(told_w)):
            self.disobeys = False
        elif self._is_settled:  # and stays so while it is told something else, until it does what it is told
            self.disobeys = True

    @property
    def is_lost(self) -> bool:
        """It does not do what it is to."""
        return bool(self.overridden_by or self.fault or self.disobeys or self.blind)

    @property
    def falls_short(self) -> bool:
        """It does not do its part, or can not."""
        return self.is_lost or bool(self.limited)

    @property
    def expected_w(self) -> float:
        """What it takes soon, where it takes up nothing: what is measured once it has had its time."""
        return self.power_w if self.is_lost or self._is_settled else self.start_w

    @property
    def is_free(self) -> bool:
        """It may take up what others leave."""
        return not self.is_lost and self._low_w < self._high_w

    @property
    def is_held(self) -> bool:
        """There is something to hold: a charger without a car and a run that waits are left to themselves."""
        if isinstance(self.plan, plans.EvPlan):
            return self.wanted_w > 0 or self._assets.plugged(self.plan) is not False
        if isinstance(self.plan, plans.DeferrablePlan):
            return self.split_w > 0 or self.plan.off != self.plan.control.safe
        return True

    @property
    def can_shed(self) -> bool:
        """It takes power, and may be switched off: not a battery, which is moved, nor a run, which goes to its end."""
        kinds = plans.EvPlan | plans.ThermalPlan
        return isinstance(self.plan, kinds) and not self._is_shed and not self.is_lost and self.start_w > 0

    @property
    def has_to_run(self) -> bool:
        """It was switched on too short a time ago to be switched off."""
        return bool(self._has_to)

    @property
    def why(self) -> str:
        """Why it does not do its part."""
        if self.overridden_by:
            return f"held by {self.overridden_by}"
        return self.fault or self.blind or self.limited or f"takes {self.power_w:.0f} W of {self.split_w:.0f} W"

    # ------------------------------------------------------------ what it is to do

    def take(self, more_w: float) -> float:
        """Take up as much of a deviation as may be; gives how much that is."""
        self.wanted_w = min(max(self.start_w + more_w, self._low_w), self._high_w)
        return self.wanted_w - self.start_w

    def shed(self) -> None:
        """Be off until the end of the interval."""
        self._is_shed = True

    def next(self, now_s: float) -> tuple[Fraction, float, int]:
        """The number to write now, the power that it sets, and how many parts of a load are off by it."""
        wanted_w = self._ramp(now_s)
        told_w = self._told_w
        if self.told is not None and told_w is not None and self._is_near(wanted_w, told_w):
            wanted_w = told_w
        if self._has_to is not None:  # whatever ramps and corrections make of it
            wanted_w = min(max(wanted_w, self._low_w), self._high_w)
        return self._number(wanted_w)

    def _is_near(self, wanted_w: float, told_w: float) -> bool:
        band_w = max(BAND_W, BAND * (self._high_w - self._low_w), float(abs(self._step_w())))
        at_end = wanted_w in {self._low_w, self._high_w, self.start_w}
        return abs(wanted_w - told_w) < band_w and not (at_end and self._outside(told_w))

    def _outside(self, power_w: float) -> bool:
        return not self._low_w <= power_w <= self._high_w

    def _step_w(self) -> Fraction:
        return (self.plan.control.step or FINE) * self.plan.control.w_per_unit

    def _ramp(self, now_s: float) -> float:
        per_s = self.plan.ramp_w_per_s
        if not per_s:
            return self.wanted_w
        at_s, from_w = self._ramped or (
            now_s - self._tick_s,
            self._told_w if self._told_w is not None else self.power_w,
        )
        reach_w = per_s * (now_s - at_s)
        ramped_w = min(max(self.wanted_w, from_w - reach_w), from_w + reach_w)
        self._ramped = now_s, ramped_w
        return ramped_w

    def _number(self, power_w: float) -> tuple[Fraction, float, int]:
        plan = self.plan
        if isinstance(plan, plans.CurtailablePlan):
            load_w = plan.load_w if self._all_w is None else self._all_w
            parts = sheds_for(plan, load_w, power_w)
            return (plan.sheds[parts - 1].value if parts else plan.normal), power_w, parts
        if isinstance(plan, plans.DeferrablePlan):
            return (plan.on if power_w > 0 or self._assets.runs(self._unit) else plan.off), power_w, 0
        if isinstance(plan, plans.PvPlan):
            return self._limit(plan, power_w)
        return self._switched(power_w)

    def _switched(self, power_w: float) -> tuple[Fraction, float, int]:
        """What is off, or from a least power on."""
        plan = self.plan
        if isinstance(plan, plans.ThermalPlan | plans.EvPlan) and power_w < plan.least_w:
            return (plan.off if isinstance(plan, plans.ThermalPlan) else Fraction(0)), 0.0, 0
        if isinstance(plan, plans.ThermalPlan) and plan.on is not None:
            return plan.on, float(plan.most_w), 0
        number = number_for(plan.control, power_w)
        return number, power_for(plan.control, number), 0

    def _limit(self, plan: plans.PvPlan, power_w: float) -> tuple[Fraction, float, int]:
        """A roof's limit: none where it is to give all that it can."""
        control = plan.control
        if power_w > self._low_w:
            number = number_for(control, power_w)
            return number, power_for(control, number), 0
        most = control.minimum if control.w_per_unit > 0 else control.maximum
        free = power_for(control, control.safe) <= -plan.rated_w or not plan.curtailable
        return (control.safe if free else most), -float(plan.rated_w), 0

    def hold_until_s(self, now_s: float) -> float:
        """A run, once begun, is held to its end; 0 for all else."""
        if not isinstance(self.plan, plans.DeferrablePlan) or self.split_w <= 0:
            return 0.0
        started_ms = self._unit.started_ms
        run_s = run_ms(self.plan) / 1000
        return now_s + run_s - (0.0 if started_ms is None else (self._assets.now_ms() - started_ms) / 1000)

    # ------------------------------------------------------------ what became of it

    def told_now(self, now_s: float, number: Fraction, power_w: float) -> None:
        """A number was written, and read back."""
        if self._told_w is None or abs(power_w - self._told_w) > max(DISOBEYS_W, DISOBEYS * abs(power_w)):
            self._told_at_s = now_s
        self.told, self._told_w, self.fault = number, power_w, ""

    def failed(self, retry_at_s: float, why: str) -> None:
        """It could not be written."""
        self.told, self.fault, self.retry_at_s = None, why, retry_at_s


def _beyond(plan: plans.ThermalPlan, state: State) -> bool:
    """Whether running would bring it further beyond a hard limit."""
    model = plan.model or state.model
    warms = model is None or model.kelvin_per_w > 0
    return state.value >= plan.most_c if warms else state.value <= plan.least_c
