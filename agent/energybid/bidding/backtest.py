"""What a site would have paid, round by round on prices and loads that were, by the way in which a gateway bids.

The same days are walked three times, each with ``planning.Planning``: with all prices, loads and weather known; with
loads and weather known and prices as the price model and the day-ahead market tell them; with loads and weather
forecast as well. What each step of knowledge is worth is the regret by cause. A fourth time nobody steers. The site is
a price taker: its bid is cleared at the price that was, the energy that its meter would have shown is paid at that
price. Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from energybid.bidding.assets import MILLION
from energybid.bidding.planning import Planning, Slot
from energybid.bidding.planning_load import SLOT_MS, SLOTS, Expected, LoadBook
from energybid.bidding.planning_prices import DAY_MS, HORIZON_MS, STAGES_MAX, PriceBook, PriceCurve, View
from energybid.bidding.planning_weather import SITE, WeatherBook
from energybid.bidding.prices_trading import PUBLISHED_H

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from energybid.bidding.assets import Asset
    from energybid.bidding.curve import Curve
    from energybid.bidding.prices import Array
    from energybid.bidding.prices_trading import Market

TICK = 0.01
TICKS_MAX = 10**9
LOAD_DAYS = 56
"""Of load before the first day that are learned."""


class Device(Protocol):
    """One of a site's devices as the days go by; changed by ``move`` alone."""

    def asset(self, step: int) -> Asset | None:
        """What it is before a step (of the market's prices); None: nothing can be done with it, it takes nothing."""

    def move(self, step: int, power_w: int) -> float:
        """A step is over in which it had this power, W of import.

        Returns:
            What that costs beside the energy, money.
        """

    def plain_w(self, step: int) -> int:
        """What it would take if nobody steered it."""

    def left(self, price: float) -> float:
        """What is in it now is worth at a price (money per MWh), money."""

    def stored_wh(self) -> float:
        """Energy in it, where it stores any."""


class Sky(NamedTuple):
    """The weather of every step of the market, by the names of devices."""

    outside_c: Mapping[str, Array]
    """Around rooms, and around the site (``planning_weather.SITE``)."""
    sun_w: Mapping[str, Array]
    """What roofs could give."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What is walked."""

    devices: tuple[Device, ...]
    """As they are when the first day begins."""
    import_limit_w: int
    export_limit_w: int
    market: Market
    """The days to learn from, then the days to walk."""
    load_w: Array
    """Of what is not controlled, for every step of the market."""
    first_day: int
    """To be walked; those before it are learned from."""
    begins: date = date(2018, 1, 1)
    """The market's first day."""
    names: tuple[str, ...] = ()
    """Of the devices, for ``sky``; without, the weather stays as it is."""
    sky: Sky = field(default_factory=lambda: Sky({}, {}))

    @property
    def step_h(self) -> float:
        """Length of a round."""
        return 24 / self.market.steps_per_day

    @property
    def final_price(self) -> float:
        """What is left at the end is worth: the last day's median, money per MWh."""
        return max(0.0, float(np.median(self.market.real_time[-self.market.steps_per_day :])))

    @property
    def days(self) -> int:
        """To be walked."""
        return len(self.load_w) // self.market.steps_per_day - self.first_day


@dataclass(slots=True)
class Walk:
    """What came of one walk, by step."""

    cost: list[float] = field(default_factory=list)
    """Money: energy at its price, wear, and what was wanted and not done."""
    net_w: list[float] = field(default_factory=list)
    stored_wh: list[float] = field(default_factory=list)
    """At the end of the step, in all batteries and cars."""
    outside_wh: float = 0.0
    """Energy beyond the site's limits."""
    left: float = 0.0
    """What is stored at the end is worth, at the last day's median price; money."""
    shown: tuple[int, Curve] | None = None
    """The curve with the most steps, and its step."""

    @property
    def total(self) -> float:
        """Money, less what is left."""
        return sum(self.cost) - self.left


class Report(NamedTuple):
    """Costs of the same days, money."""

    idle: Walk
    """If nobody steered."""
    foresight: Walk
    """With prices and loads known."""
    loads_known: Walk
    bid: Walk
    """As a gateway bids."""

    @property
    def share(self) -> float:
        """Of what foresight saves; not a number where that is nothing."""
        most = self.idle.total - self.foresight.total
        return (self.idle.total - self.bid.total) / most if most > 0 else float("nan")

    @property
    def regret(self) -> dict[str, float]:
        """What each thing that was not known cost."""
        return {
            "prices not known": self.loads_known.total - self.foresight.total,
            "load and weather not known": self.bid.total - self.loads_known.total,
        }


def backtest(scene: Scene, progress: Callable[[int, int], None] | None = None) -> Report:
    """Walk the days.

    Args:
        scene: What is walked.
        progress: Called with days done and days in all, of all walks.

    Raises:
        ValueError: Too little to learn from.
    """
    if scene.first_day < 1:
        raise ValueError("a price model needs a day of prices at least")
    seers: tuple[_Knows, ...] = (_Foresight(scene), _Gateway(scene, known=True), _Gateway(scene))
    walkers = [_Walker(scene, seer) for seer in seers]
    done = 0
    for day in range(scene.first_day, scene.first_day + scene.days):
        for walker in walkers:
            walker.walk_day(day)
            done += 1
            if progress:
                progress(done, len(walkers) * scene.days)
    return Report(_idle(scene), *(walker.made() for walker in walkers))


def as_gateway(scene: Scene, progress: Callable[[int, Walk], None] | None = None) -> Walk:
    """One walk: as a gateway bids that knows its loads and the weather.

    Args:
        scene: What is walked.
        progress: Called with days done and what came of them.
    """
    walker = _Walker(scene, _Gateway(scene, known=True))
    for day in range(scene.days):
        walker.walk_day(scene.first_day + day)
        if progress:
            progress(day + 1, walker.walk)
    return walker.made()


class _Meter:
    """The site as it moves, and what that costs."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.devices = deepcopy(scene.devices)
        self.walk = Walk()

    def move(self, at: int, split: Sequence[int]) -> None:
        """A round is over."""
        scene, walk = self._scene, self.walk
        net_w = float(scene.load_w[at]) + sum(split)
        cost = float(scene.market.real_time[at]) * net_w * scene.step_h / MILLION
        pairs = zip(self.devices, split, strict=True)
        walk.cost.append(cost + sum(device.move(at, power_w) for device, power_w in pairs))
        walk.net_w.append(net_w)
        beyond_w = max(0.0, net_w - scene.import_limit_w, -net_w - scene.export_limit_w)
        walk.outside_wh += beyond_w * scene.step_h
        walk.stored_wh.append(sum(device.stored_wh() for device in self.devices))

    def made(self) -> Walk:
        self.walk.left = sum(device.left(self._scene.final_price) for device in self.devices)
        return self.walk


def _idle(scene: Scene) -> Walk:
    meter = _Meter(scene)
    for at in range(scene.first_day * scene.market.steps_per_day, len(scene.load_w)):
        meter.move(at, [device.plain_w(at) for device in meter.devices])
    return meter.made()


class _Knows:
    """A way to know: the planning, fed as time goes on."""

    def __init__(self, scene: Scene, planning: Planning) -> None:
        self._scene, self.planning = scene, planning
        self._size = scene.market.steps_per_day
        self._step_ms = DAY_MS // self._size
        self._begins_ms = (scene.begins - date(1970, 1, 1)).days * DAY_MS

    def slot(self, at: int) -> Slot:
        return Slot(self._begins_ms + at * self._step_ms, self._step_ms, TICK, -TICKS_MAX, TICKS_MAX)

    def told(self, at: int) -> tuple[int, float] | None:
        """What comes before a round: nothing is news.

        Returns:
            When the load was measured last, and what it was.
        """


class _Foresight(_Knows):
    def __init__(self, scene: Scene) -> None:
        super().__init__(scene, _knowing(scene, _KnownPrices(scene)))


class _Gateway(_Knows):
    """Knows what is past, and day-ahead prices from their publication."""

    def __init__(self, scene: Scene, *, known: bool = False) -> None:
        super().__init__(scene, _knowing(scene) if known else _learning(scene))
        self._learn()

    def _learn(self) -> None:
        """The days before the first, one by one, as they would have come."""
        prices, loads, first = self.planning.prices, self.planning.loads, self._scene.first_day
        prices.begin(self._step_ms)
        for day in range(first):
            part = self._scene.market.days(day, day + 1)
            prices.count(self._begins_ms // DAY_MS + day, part.real_time, part.day_ahead)
        for day in range(max(0, first - LOAD_DAYS), first):
            steps = range(day * self._size, (day + 1) * self._size)
            for at in steps:
                self._look(at)
            site_c = self._scene.sky.outside_c.get(SITE)
            outside_c = None if site_c is None else float(site_c[steps].mean())
            loads.learn(self._scene.begins + timedelta(day), self._slots(day), outside_c)
        self._publish(first)
        before = slice(max(0, first - 1) * self._size, first * self._size)
        seen = tuple(self._scene.market.real_time[before].tolist())
        now_ms = self.slot(first * self._size).begins_ms
        prices.real_time(PriceCurve(self.slot(before.start).begins_ms, self._step_ms, seen, now_ms))

    def _look(self, at: int) -> None:
        """The weather of a step that is over."""
        sky, begins_ms = self._scene.sky, self.slot(at).begins_ms
        outside_c = {name: float(found_c[at]) for name, found_c in sky.outside_c.items()}
        sun_w = {name: float(power_w[at]) for name, power_w in sky.sun_w.items()}
        for part_ms in range(0, self._step_ms, SLOT_MS):
            self.planning.weather.seen(begins_ms + part_ms, outside_c, sun_w)

    def _slots(self, day: int) -> Array:
        load_w = self._scene.load_w[day * self._size : (day + 1) * self._size]
        if self._size >= SLOTS:
            return np.asarray(load_w.reshape(SLOTS, -1).mean(axis=1))
        return np.repeat(load_w, SLOTS // self._size)

    def _publish(self, day: int) -> None:
        part = self._scene.market.days(day, day + 1)
        if len(part.day_ahead):
            begins_ms = self.slot(day * self._size).begins_ms
            prices = tuple(part.day_ahead.tolist())
            self.planning.prices.day_ahead(PriceCurve(begins_ms, self._step_ms, prices, begins_ms - DAY_MS))

    def told(self, at: int) -> tuple[int, float] | None:
        day, step = divmod(at, self._size)
        planning, slot = self.planning, self.slot(at)
        if step == self._size * PUBLISHED_H // 24:
            self._publish(day + 1)
        if not at:
            return None
        price, load_w = float(self._scene.market.real_time[at - 1]), float(self._scene.load_w[at - 1])
        last_ms = slot.begins_ms - self._step_ms
        planning.prices.real_time(PriceCurve(last_ms, self._step_ms, (price,), slot.begins_ms))
        planning.prices.learn(self._step_ms, slot.begins_ms)
        if at > self._scene.first_day * self._size:
            self._look(at - 1)
            for part_ms in range(0, self._step_ms, SLOT_MS):
                planning.loads.seen(last_ms + part_ms, load_w, planning.weather.now_c(last_ms + part_ms))
        return slot.begins_ms, load_w


class _Walker:
    """Devices that do what was bid."""

    def __init__(self, scene: Scene, knows: _Knows) -> None:
        self._scene, self._knows, self._meter = scene, knows, _Meter(scene)

    @property
    def walk(self) -> Walk:
        """So far."""
        return self._meter.walk

    def walk_day(self, day: int) -> None:
        size = self._scene.market.steps_per_day
        for at in range(day * size, (day + 1) * size):
            now_w = self._knows.told(at)
            slot = self._knows.slot(at)
            assets = [device.asset(at) for device in self._meter.devices]
            names = [name for name, asset in zip(self._scene.names, assets, strict=False) if asset]
            offered = self._knows.planning.plan(slot, [a for a in assets if a], now_w, slot.begins_ms, names)
            ticks = round(float(self._scene.market.real_time[at]) / TICK)
            powers = iter(offered.split(offered.curve.net_w(ticks)))
            self._meter.move(at, [next(powers) if asset else 0 for asset in assets])
            shown = self._meter.walk.shown
            if shown is None or len(offered.curve.steps) > len(shown[1].steps):
                self._meter.walk.shown = at, offered.curve

    def made(self) -> Walk:
        return self._meter.made()


class _KnownPrices(PriceBook):
    """All prices of all days, and what is left at their end is worth."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._prices, self._later = scene.market.real_time, scene.final_price
        self._begins_ms = (scene.begins - date(1970, 1, 1)).days * DAY_MS

    def view(self, begins_ms: int, step_ms: int, now_ms: int) -> View:  # noqa: ARG002 (nothing ages)
        at = (begins_ms - self._begins_ms) // step_ms
        expected = self._prices[at : at + 1 + min(HORIZON_MS // step_ms, STAGES_MAX)]
        ends = at + len(expected) == len(self._prices)
        later = self._later if ends else float(np.median(expected[-DAY_MS // step_ms :]))
        return View("known", expected, later, begins_ms % DAY_MS // step_ms, None, None, ("known", ends), None, None)


def _knowing(scene: Scene, prices: PriceBook | None = None) -> Planning:
    """With loads and weather known."""
    limits = scene.import_limit_w, scene.export_limit_w
    return Planning(*limits, loads=_KnownLoads(scene), prices=prices, weather=_KnownWeather(scene))


def _learning(scene: Scene) -> Planning:
    weather = _SeenWeather()
    limits = scene.import_limit_w, scene.export_limit_w
    return Planning(*limits, loads=LoadBook(temperature=weather.mean_c), weather=weather)


class _SeenWeather(WeatherBook):
    """What a gateway sees; what a roof gives in the round itself is known, for nobody corrects it here."""

    def sun_w(self, name: str, at: tuple[int, int, int], now_ms: int, measured_w: float) -> Array:
        made = super().sun_w(name, at, now_ms, measured_w)
        made[0] = measured_w
        return made


class _KnownWeather(WeatherBook):
    """The weather of all days; after the last it stays as it is in the end."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._sky = scene.sky
        self._begins_ms = (scene.begins - date(1970, 1, 1)).days * DAY_MS

    def seen(self, at_ms: int, outside_c: Mapping[str, float], sun_w: Mapping[str, float | None]) -> None:
        pass

    def sun_w(self, name: str, at: tuple[int, int, int], now_ms: int, measured_w: float) -> Array:  # noqa: ARG002
        return self._of(self._sky.sun_w[name], at)

    def change_k(self, name: str, at: tuple[int, int, int], now_ms: int) -> Array:
        if name not in self._sky.outside_c:
            return super().change_k(name, at, now_ms)
        found_c = self._sky.outside_c[name]
        return self._of(found_c, at) - self._of(found_c, (now_ms, at[1], 1))

    def _of(self, course: Array, at: tuple[int, int, int]) -> Array:
        begins_ms, step_ms, count = at
        first = (begins_ms - self._begins_ms) // step_ms
        return np.asarray(course[np.minimum(first + np.arange(count), len(course) - 1)])


class _KnownLoads(LoadBook):
    """All loads of all days."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self._load_w = np.concatenate((scene.load_w, scene.load_w[-scene.market.steps_per_day :]))
        self._begins_ms = (scene.begins - date(1970, 1, 1)).days * DAY_MS

    def seen(self, at_ms: int, power_w: float, outside_c: float | None = None) -> bool:  # noqa: ARG002 (known)
        return False

    def learn(self, day: date, power_w: Array, outside_c: float | None = None) -> None:
        pass

    def expected(self, begins_ms: int, step_ms: int, count: int, now: tuple[int, float] | None) -> Expected:  # noqa: ARG002
        at = (begins_ms - self._begins_ms) // step_ms
        steps = np.minimum(at + np.arange(count), len(self._load_w) - 1)
        load_w = self._load_w[steps]
        return Expected(load_w, "known", 0, float(load_w[0]), float(load_w[0]))
