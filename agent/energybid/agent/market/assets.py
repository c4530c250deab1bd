"""The site's assets as the meters see them now, and as they will bid: what can not be read is left out, and said so.

Here live the states that no meter tells: how long a car has been there and what it has got since, when a run began, the
model of a building. They are kept in the journal (``Journal.remember``), so that a restart costs nothing; none of it is
evidence. Needs numpy (extra ``bidding``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import asdict, dataclass
from math import inf, nan
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from energybid.agent.control import Rank
from energybid.agent.market import plan as plans
from energybid.agent.market.forming import HOUR_MS, State, bidding_asset, run_ms
from energybid.agent.market.learning import FIT_EVERY, KEEP_EVERY, SLOT_MS, Learner, Sight
from energybid.agent.market.live import Live, Trace, Value
from energybid.agent.market.ports import Slot, Weather
from energybid.agent.market.times import window
from energybid.agent.market.turns import Turns
from energybid.bidding.planning_weather import SITE
from energybid.core.errors import JournalStalledError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from energybid.agent.control import Control
    from energybid.agent.journal import Journal
    from energybid.agent.polling import BusPoller
    from energybid.bidding.assets import Asset
    from energybid.core.ports import Platform

logger = logging.getLogger("energybid.agent")

PREFIX = "market/asset/"
SLOTS_PREFIX = "market/slots/"
LOOK_S = 1.0
"""How often what was polled is looked at."""
WRITE_S = 900.0
"""How often energies that were added up are kept."""
KEEP_S = 1.0
"""At a stop, how long keeping may take."""
BASE_S = (300.0, 60.0, 15.0)
"""The base load is a mean over the longest of these for which there are values."""
AT_LIMIT_W = 50.0
"""A roof that gives so much less than its limit is not held by it."""
FULL, FULL_S = 0.25, 180.0
"""A car that takes less than this share of its least power for so long, though it may have more, is full."""
RUNS = 0.5
"""A pump that takes more than this share of its least power runs."""
START_MS = 120_000
"""A machine runs at the latest after this."""
AHEAD_MS = HOUR_MS
"""States are carried forward by what an asset does now for so long at most."""


class OutError(Exception):
    """An asset does not bid now."""


@dataclass(slots=True)
class Stay:
    """A car's stay."""

    since_ms: int
    base_wh: float = 0.0
    """What the register showed at its begin."""
    added_wh: float = 0.0
    """Added up, where nobody counts."""
    full: bool = False


@dataclass(slots=True)
class Unit:
    """One asset while the agent runs."""

    plan: plans.AnyAssetPlan
    trace: Trace
    """Of its power."""
    told_w: float = 0.0
    """What it was last told."""
    told_until_s: float = 0.0
    """Loop time until which that holds."""
    told_at_s: float = 0.0
    """Loop time at which it was told something else than before."""
    parts: int = 0
    """Of a curtailable load: how many are off."""
    stay: Stay | None = None
    started_ms: int | None = None
    model: plans.ThermalModelPlan | None = None
    learner: Learner | None = None
    turns: Turns | None = None
    """Of a device that may not be switched at any time."""
    kept_slot: int = -1
    """The learner's slot that the journal has."""
    most_w: float = 0.0
    """What a roof gave last when it was not limited; what a load takes with nothing off."""
    sun: Trace | None = None
    """Of what a roof gives, or could give, where no limit holds it."""
    limited_s: float = -inf
    """Loop time at which a limit held a roof last."""
    idle_s: float | None = None
    """Loop time since which a car takes nothing though it may."""
    trouble: tuple[str, float] = ("", 0.0)
    """Why it can not be moved, and until when (loop time) it is left out for that."""
    all_w: tuple[int, int] | None = None
    """Begin of an interval, and what a load or a roof was thought to take in it without a limit, W of import."""
    out: str = ""
    """Why it does not bid."""
    kept: bytes = b""
    """What the journal has of it."""
    kept_s: float = 0.0


class Assets:
    """All assets of a site. Implements ``ports.Assets``."""

    def __init__(
        self,
        platform: Platform,
        plan: plans.MarketPlan,
        control: Control,
        pollers: Iterable[BusPoller],
        journal: Journal,
    ) -> None:
        """Look at what ``pollers`` read."""
        self._platform, self._plan, self._control, self._journal = platform, plan, control, journal
        self._loop = asyncio.get_running_loop()
        self.zone = ZoneInfo(plan.timezone)
        pollers = tuple(pollers)
        self.live = Live(pollers, self._loop.time)
        self._meters = {meter.plan.name: meter for poller in pollers for meter in poller.meters}
        self.net = Trace(max(sensor.stale_s for sensor in plan.net))
        """Of the site's net import."""
        self.units = {asset.name: self._unit(asset) for asset in plan.assets}

    def _unit(self, plan: plans.AnyAssetPlan) -> Unit:
        unit = Unit(plan, Trace(plan.power.stale_s if plan.power else 10 * LOOK_S))
        if isinstance(plan, plans.ThermalPlan) and plan.model is None:
            unit.learner = Learner()
        if isinstance(plan, plans.ThermalPlan) and plan.power and (plan.least_run_s or plan.least_pause_s):
            unit.turns = Turns(plan.least_run_s, plan.least_pause_s, plan.settle_s + plan.power.stale_s)
        if isinstance(plan, plans.PvPlan):
            sensor = plan.available or plan.power
            unit.sun = Trace(sensor.stale_s if sensor else 10 * LOOK_S)
        return unit

    # ------------------------------------------------------------ what the bidder asks

    def now(self, made_at_ms: int, step_h: float) -> list[tuple[str, Asset]]:
        """The assets that can be reached, in the state that they will be in when a round begins."""
        found = []
        for unit in self.units.values():
            try:
                asset = self._bidding(unit, made_at_ms, step_h)
            except OutError as error:
                unit.out = str(error)
            else:
                unit.out = ""
                found.append((unit.plan.name, asset))
        return found

    def base_w(self) -> int | None:
        """Net import of the site less what its assets take, mean of the last minutes; None: not known."""
        now_s = self._loop.time()
        for span_s in BASE_S:
            net_w = self.net.mean(now_s - span_s, now_s)
            if net_w is not None and self.live.total(self._plan.net) is not None:
                return round(net_w - self._controlled_w(now_s - span_s, now_s))
        return None

    def slot(self, begins_ms: int, ends_ms: int) -> Slot | None:
        """Means over an interval that has just ended; None where the meters did not tell enough."""
        begin_s, end_s = self.loop_s(begins_ms), self.loop_s(ends_ms)
        net_w = self.net.mean(begin_s, end_s)
        return None if net_w is None else Slot(round(net_w), round(self._controlled_w(begin_s, end_s)))

    def weather(self, begins_ms: int, ends_ms: int) -> Weather:
        """The weather of an interval that has just ended."""
        begin_s, end_s = self.loop_s(begins_ms), self.loop_s(ends_ms)
        thermal = [unit.plan for unit in self.units.values() if isinstance(unit.plan, plans.ThermalPlan)]
        sensors = {plan.name: plan.outside for plan in thermal if plan.outside}
        site = self._plan.outside or next(iter(sensors.values()), None)
        found = {name: self.live.number(sensor) for name, sensor in {SITE: site, **sensors}.items()}
        sun_w: dict[str, float | None] = {}
        for name, unit in self.units.items():
            power_w = unit.sun.mean(begin_s, end_s) if unit.sun else None
            if power_w is not None or (unit.sun and begin_s <= unit.limited_s + unit.plan.settle_s):
                sun_w[name] = None if power_w is None else max(0.0, power_w)
        return Weather({name: number for name, number in found.items() if number is not None}, sun_w)

    def _controlled_w(self, begin_s: float, end_s: float) -> float:
        return sum(unit.trace.mean(begin_s, end_s) or 0.0 for unit in self.units.values())

    def loop_s(self, at_ms: int) -> float:
        """A moment of the wall clock as loop time, as the clock stands now."""
        return self._loop.time() + (at_ms - self.now_ms()) / 1000

    def now_ms(self) -> int:
        """The wall clock."""
        return self._platform.now_ns() // 1_000_000

    # ------------------------------------------------------------ states

    def power_w(self, unit: Unit) -> float | None:
        """What an asset takes now; where nobody measures it, what it was told; None: not known."""
        if unit.plan.power is not None:
            return self.live.number(unit.plan.power)
        return self.command_w(unit)

    def command_w(self, unit: Unit) -> float | None:
        """What an asset is told to take; None: it is left to itself."""
        return unit.told_w if self._loop.time() < unit.told_until_s else None

    def _bidding(self, unit: Unit, at_ms: int, step_h: float) -> Asset:
        plan = unit.plan
        meter = self._meters.get(plan.control.point.partition("/")[0])
        if meter is None or meter.failures:
            raise OutError("its device does not answer")
        why, until_s = unit.trouble
        if self._loop.time() < until_s:
            raise OutError(why)
        above = self._control.held_above(plan.control.point, Rank.MARKET)
        if above is not None:
            raise OutError(f"{above.name} holds it")
        state = self.state(unit, at_ms)
        asset = bidding_asset(plan, state, at_ms, step_h, self.zone)
        if asset is None:
            raise OutError(_NOTHING.get(type(plan), "there is nothing to do"))
        return asset

    def state(self, unit: Unit, at_ms: int) -> State:
        """What is known of an asset, carried forward to a moment by what it does now.

        Raises:
            OutError: Too little is known.
        """
        ahead_h = min(max(0, at_ms - self.now_ms()), AHEAD_MS) / HOUR_MS
        match unit.plan:
            case plans.BatteryPlan() as plan:
                power_w = self.power_w(unit) or 0.0
                kept = plan.charge_efficiency if power_w > 0 else 1 / plan.discharge_efficiency
                stored_wh = self._known(plan.state) * plan.wh_per_unit + power_w * kept * ahead_h
                return State(min(max(stored_wh, 0.0), float(plan.capacity_wh)))
            case plans.EvPlan():
                return self._car(unit, unit.plan, ahead_h)
            case plans.ThermalPlan() as plan:
                outside_c = self._known(plan.outside) if plan.outside else plan.outside_c or 0.0
                return State(
                    self._known(plan.state), outside_c=outside_c, model=unit.model, has_to=self.has_to(unit, at_ms)
                )
            case plans.DeferrablePlan() as plan:
                ready = None if plan.state is None else self._known(plan.state) in plan.ready_values
                return State(ready=ready, started_ms=unit.started_ms)
            case plans.CurtailablePlan() as plan:
                if plan.power:
                    self._known(plan.power)
                return State(unit.most_w if plan.power else float(plan.load_w))
            case plans.PvPlan() as plan:
                self._known(plan.power)
                return State(self._known(plan.available) if plan.available else unit.most_w)

    def has_to(self, unit: Unit, at_ms: int) -> bool | None:
        """Whether a device has to run on at a moment, or to rest; None: it may be switched then."""
        return unit.turns.has_to(self.loop_s(at_ms)) if unit.turns else None

    def _known(self, sensor: plans.Sensor | None) -> float:
        number = self.live.number(sensor)
        if number is None:
            raise OutError(f"{sensor.meter}/{sensor.name} is not known" if sensor else "its state is not known")
        return number

    def _car(self, unit: Unit, plan: plans.EvPlan, ahead_h: float) -> State:
        here = self.plugged(plan)
        if plan.plugged is not None and here is None:
            raise OutError(f"{plan.plugged.meter}/{plan.plugged.name} is not known")
        stay = unit.stay
        if stay is None:
            return State(here=here)
        charged_wh = self._charged_wh(plan, stay) + max(0.0, self.power_w(unit) or 0.0) * ahead_h
        return State(min(charged_wh, max(plan.capacity_wh, charged_wh)), here=here, full=stay.full)

    def _charged_wh(self, plan: plans.EvPlan, stay: Stay) -> float:
        if plan.charged is None:
            return stay.added_wh
        return max(0.0, self._known(plan.charged) - stay.base_wh)

    def plugged(self, plan: plans.EvPlan) -> bool | None:
        """Whether a car is there; None where nobody knows."""
        number = self.live.number(plan.plugged)
        if number is None:
            return None
        return number in plan.plugged_values if plan.plugged_values else number != 0

    def foreseen(self, begins_ms: int, all_w: Mapping[str, int]) -> None:
        """What loads and roofs were thought to take and give in an interval that is followed next."""
        for name in all_w.keys() & self.units.keys():
            self.units[name].all_w = begins_ms, all_w[name]

    # ------------------------------------------------------------ what the dispatcher tells

    def commanded(self, name: str, power_w: float, until_s: float, parts: int = 0) -> None:
        """An asset was told to take a power.

        Args:
            name: Of the asset.
            power_w: Import.
            until_s: Loop time until which it is; then it is left to itself.
            parts: Of a curtailable load: how many are off.
        """
        unit, now_s = self.units[name], self._loop.time()
        before_w = self.command_w(unit)
        if unit.turns and until_s > now_s and (before_w is None or (before_w > 0) != (power_w > 0)):
            unit.turns.told(now_s, runs=power_w > 0)
        if power_w != unit.told_w:
            unit.told_at_s = now_s
        unit.told_w, unit.told_until_s, unit.parts = power_w, until_s, parts
        if isinstance(unit.plan, plans.DeferrablePlan) and power_w and not self.runs(unit):
            unit.started_ms = self.now_ms()

    def failed(self, name: str, why: str, for_s: float) -> None:
        """An asset could not be moved: it is left out for a time."""
        self.units[name].trouble = why, self._loop.time() + for_s

    def runs(self, unit: Unit) -> bool:
        """Whether a run has begun and is not over."""
        plan, started_ms = unit.plan, unit.started_ms
        if started_ms is None or not isinstance(plan, plans.DeferrablePlan):
            return False
        return self.now_ms() < started_ms + run_ms(plan)

    # ------------------------------------------------------------ looking

    def look(self) -> None:
        """Take up what was polled since the last look."""
        value = self.live.last(self._plan.net[0])
        net_w = self.live.total(self._plan.net)
        if value is not None and net_w is not None:
            self.net.add(Value(value.at_s, net_w))
        for unit in self.units.values():
            self._look(unit)

    def _look(self, unit: Unit) -> None:
        plan = unit.plan
        value = self.live.last(plan.power) if plan.power else Value(self._loop.time(), self.command_w(unit) or 0.0)
        added_wh = unit.trace.add(value) / 3600 if value else 0.0
        if unit.turns and isinstance(plan, plans.ThermalPlan):
            power_w = self.live.number(plan.power)
            if power_w is not None:
                unit.turns.look(self._loop.time(), runs=power_w > RUNS * plan.least_w)
        match plan:
            case plans.EvPlan():
                self._look_at_car(unit, plan, added_wh)
            case plans.DeferrablePlan():
                self._look_at_run(unit, plan)
            case plans.ThermalPlan() if unit.learner is not None:
                self._look_at_warmth(unit, plan, unit.learner)
            case plans.PvPlan() if value is not None:
                self._look_at_roof(unit, plan, value)
            case plans.CurtailablePlan() if value is not None:
                self._look_at_load(unit, plan, value.number)

    def _look_at_roof(self, unit: Unit, plan: plans.PvPlan, value: Value) -> None:
        """What it gives, where it gives all that it can; just after a limit it is still on its way there."""
        command_w, now_s = self.command_w(unit), self._loop.time()
        if self._control.held_above(plan.control.point, Rank.MARKET) or (
            command_w is not None and value.number <= command_w + AT_LIMIT_W
        ):
            unit.limited_s = now_s
        free = now_s - unit.limited_s > plan.settle_s
        if free:
            unit.most_w = max(0.0, -value.number)
        could = self.live.last(plan.available) if plan.available else Value(value.at_s, -value.number) if free else None
        if unit.sun and could:
            unit.sun.add(could)

    def _look_at_load(self, unit: Unit, plan: plans.CurtailablePlan, power_w: float) -> None:
        now_s, is_told = self._loop.time(), self.command_w(unit) is not None
        if now_s - (unit.told_at_s if is_told else unit.told_until_s) > plan.settle_s:  # what is off is off
            shed_w = sum(shed.power_w for shed in plan.sheds[: unit.parts]) if is_told else 0.0
            unit.most_w = power_w + shed_w

    def _look_whether_full(self, unit: Unit, plan: plans.EvPlan, stay: Stay) -> None:
        """A car that takes nothing for minutes though it may is full, until it takes something."""
        power_w, command_w = self.power_w(unit), self.command_w(unit)
        if plan.power is None or power_w is None:
            return
        if power_w >= FULL * plan.least_w:
            stay.full = False
        if command_w is None or command_w < plan.least_w or power_w >= FULL * plan.least_w:
            unit.idle_s = None
        elif unit.idle_s is None:
            unit.idle_s = self._loop.time()
        elif self._loop.time() - unit.idle_s > FULL_S:
            stay.full = True

    def _look_at_car(self, unit: Unit, plan: plans.EvPlan, added_wh: float) -> None:
        begun_ms = self._stay_began(unit, plan)
        if begun_ms is None:
            unit.stay = None
        elif unit.stay is None or unit.stay.since_ms != begun_ms:
            cumulative = plan.charged is not None and plan.charged.cumulative
            base_wh = self.live.number(plan.charged) if cumulative else 0.0
            if base_wh is not None:
                unit.stay = Stay(begun_ms, base_wh)
        else:
            unit.stay.added_wh += max(0.0, added_wh)
            self._look_whether_full(unit, plan, unit.stay)

    def _stay_began(self, unit: Unit, plan: plans.EvPlan) -> int | None:
        """When the stay that is now began; None: there is none."""
        now_ms = self.now_ms()
        if plan.plugged is None and plan.arrival_min is not None:
            stay = window(plan.arrival_min, plan.departure_min, now_ms, self.zone)
            return stay.begins_ms if stay.begins_ms <= now_ms else None
        here, before = self.plugged(plan), unit.stay
        if here is None:  # nobody knows: as before
            return before.since_ms if before else None
        if not here:
            return None
        return before.since_ms if before else now_ms

    def _look_at_run(self, unit: Unit, plan: plans.DeferrablePlan) -> None:
        number = self.live.number(plan.state)
        if number is None:
            return
        if number in plan.running_values:
            unit.started_ms = unit.started_ms or self.now_ms()  # a person may have begun it
        elif unit.started_ms is not None:
            waits = number in plan.ready_values and self.now_ms() - unit.started_ms < START_MS
            unit.started_ms = unit.started_ms if waits else None  # it is over

    def _look_at_warmth(self, unit: Unit, plan: plans.ThermalPlan, learner: Learner) -> None:
        now_ms, now_s = self.now_ms(), self._loop.time()
        inside_c = self.live.number(plan.state)
        outside_c = self.live.number(plan.outside) if plan.outside else plan.outside_c
        power_w = unit.trace.mean(now_s - SLOT_MS / 1000, now_s)
        sight = Sight(*(nan if number is None else number for number in (inside_c, outside_c, power_w)))
        if learner.look(now_ms, sight) and learner.slot % FIT_EVERY == 0:
            unit.model = learner.model() or unit.model

    async def run(self) -> None:
        """Look every second, and keep what is dear, until cancelled; then all."""
        try:
            while True:
                self.look()
                await self._keep(WRITE_S)
                await asyncio.sleep(LOOK_S)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KEEP_S):
                    await self._keep(0.0)

    # ------------------------------------------------------------ what survives a restart

    async def recall(self) -> None:
        """Take up what an earlier run knew; what is damaged is learned again."""
        found = await self._platform.offload(self._journal.recall, PREFIX)
        slots = await self._platform.offload(self._journal.recall, SLOTS_PREFIX)
        for unit in self.units.values():
            data, unit.kept = found.get(PREFIX + unit.plan.name, b""), b""
            try:
                kept = json.loads(data or b"{}")
                unit.stay = Stay(**kept["stay"]) if kept.get("stay") else None
                unit.started_ms = kept.get("started_ms")
                unit.model = plans.ThermalModelPlan(**kept["model"]) if kept.get("model") else None
                unit.kept = data
                packed = slots.get(SLOTS_PREFIX + unit.plan.name)
                if unit.learner and packed:
                    unit.learner.restore(packed)
                    unit.kept_slot = unit.learner.slot
            except (ValueError, TypeError, AttributeError):
                logger.warning("%s: what was known of it is damaged; it is learned again", unit.plan.name)

    async def _keep(self, every_s: float) -> None:
        try:
            for unit in self.units.values():
                await self._keep_slots(unit, KEEP_EVERY if every_s else 1)
        except JournalStalledError:
            return  # the recorder tells; the next look tries again
        now_s = self._loop.time()
        for unit in self.units.values():
            data = _kept(unit)
            if data == unit.kept or (not _differs(data, unit.kept) and now_s - unit.kept_s < every_s):
                continue
            try:
                await self._platform.offload(self._journal.remember, PREFIX + unit.plan.name, data)
            except JournalStalledError:
                return  # the recorder tells; the next look tries again
            unit.kept, unit.kept_s = data, now_s

    async def _keep_slots(self, unit: Unit, every: int) -> None:
        learner = unit.learner
        if learner is not None and learner.slots and learner.slot - unit.kept_slot >= every:
            key = SLOTS_PREFIX + unit.plan.name
            await self._platform.offload(self._journal.remember, key, learner.packed())
            unit.kept_slot = learner.slot

    # ------------------------------------------------------------ for people

    def status(self) -> list[dict[str, Any]]:
        """What the operator is told of each asset."""
        return [self._told(unit) for unit in self.units.values()]

    def _told(self, unit: Unit) -> dict[str, Any]:
        power_w, command_w = self.power_w(unit), self.command_w(unit)
        told: dict[str, Any] = {
            "name": unit.plan.name,
            "kind": type(unit.plan).__name__.removesuffix("Plan").lower(),
            "power_w": None if power_w is None else round(power_w),
            "command_w": None if command_w is None else round(command_w),
            "out": unit.out,
        }
        try:
            state = self.state(unit, self.now_ms())
        except OutError as error:
            return told | {"out": unit.out or str(error)}
        return told | _shown(unit, state)


_NOTHING: dict[type[plans.AssetPlan], str] = {
    plans.EvPlan: "no car is there",
    plans.DeferrablePlan: "there is nothing to run",
    plans.ThermalPlan: "what a watt does to it is still being learned",
}


_HAS_TO = {True: "run on", False: "rest", None: ""}


def _shown(unit: Unit, state: State) -> dict[str, Any]:
    match unit.plan:
        case plans.BatteryPlan():
            return {"stored_wh": round(state.value)}
        case plans.EvPlan():
            return {"here": unit.stay is not None, "charged_wh": round(state.value), "full": state.full}
        case plans.ThermalPlan():
            model = unit.plan.model or unit.model
            told = {"temperature_c": round(state.value, 2), "model": asdict(model) if model else None}
            return told if unit.turns is None else told | {"has_to": _HAS_TO[state.has_to]}
        case plans.DeferrablePlan():
            return {"ready": state.ready, "started_ms": state.started_ms}
        case plans.CurtailablePlan():
            return {"load_w": round(state.value), "parts_off": unit.parts}
        case _:
            return {"available_w": round(state.value)}


def _kept(unit: Unit) -> bytes:
    plain: dict[str, Any] = {}
    if unit.stay is not None:
        plain["stay"] = asdict(unit.stay)
    if unit.started_ms is not None:
        plain["started_ms"] = unit.started_ms
    if unit.model is not None:
        plain["model"] = asdict(unit.model)
    return json.dumps(plain, separators=(",", ":")).encode() if plain else b""


def _differs(one: bytes, other: bytes) -> bool:
    """In more than energies that were added up."""
    first, second = (json.loads(data or b"{}") for data in (one, other))
    for plain in (first, second):
        plain.get("stay", {}).pop("added_wh", None)
    return bool(first != second)
