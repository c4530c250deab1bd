"""What a site would have paid, round by round on prices and loads that were, with the code that bids on a gateway.

The same days are walked three times: with all prices and loads known; with loads known and prices as the price model
and the day-ahead market tell them; with loads forecast as well. What each step of knowledge is worth is the regret by
cause. The site is a price taker. Needs numpy (extra ``bidding``). Pure; batteries only so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from energybid.bidding.assets_stores import Battery
from energybid.bidding.forecast import Forecaster
from energybid.bidding.forecast_models import Day
from energybid.bidding.horizon import Outlook
from energybid.bidding.prices import PriceModel, Shape
from energybid.bidding.prices_bids import best_at, cases, news_bid
from energybid.bidding.prices_trading import PUBLISHED_H, Market, expected
from energybid.bidding.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.bidding.prices import Array, Place
    from energybid.bidding.response import Response

TICK = 0.01
SHAPE = Shape(bins=12, slow_bins=4)
"""Coarser than the default: the value functions of all steps of half a day are held at once."""
MILLION = 1e6
WEEK = 7


@dataclass(frozen=True, slots=True)
class Scene:
    """What is walked."""

    site: Site
    market: Market
    """The days to learn from, then the days to walk."""
    load_w: Array
    """Of what is not controlled, for every step of the market."""
    first_day: int
    """To be walked; those before it are learned from."""
    weekday: int = 0
    """Of the market's first day; Monday 0."""


class Walk(NamedTuple):
    """What came of one walk, by step."""

    cost: Array
    """Money: energy at its price, and wear."""
    net_w: Array
    stored_wh: Array
    """At the end of the step, all batteries together."""
    outside_wh: float
    """Energy beyond the site's limits."""
    left: float
    """What is stored at the end is worth, at the assets' final price; money."""

    @property
    def total(self) -> float:
        """Money, less what is left."""
        return float(self.cost.sum()) - self.left


class Report(NamedTuple):
    """Costs of the same days, money."""

    idle: float
    """Without the assets."""
    foresight: Walk
    """With prices and loads known."""
    loads_known: Walk
    bid: Walk
    """As a gateway bids."""

    @property
    def share(self) -> float:
        """Of what foresight saves; not a number where that is nothing."""
        most = self.idle - self.foresight.total
        return (self.idle - self.bid.total) / most if most > 0 else float("nan")

    @property
    def regret(self) -> dict[str, float]:
        """What each thing that was not known cost."""
        return {
            "prices not known": self.loads_known.total - self.foresight.total,
            "load not known": self.bid.total - self.loads_known.total,
        }


def backtest(scene: Scene, progress: Callable[[int, int], None] | None = None) -> Report:
    """Walk the days.

    Args:
        scene: What is walked.
        progress: Called with days done and days in all, of all walks.

    Raises:
        ValueError: An asset that can not be walked yet, or too little to learn from.
    """
    if not all(isinstance(asset, Battery) for asset in scene.site.assets):
        raise ValueError("only batteries can be walked so far")
    walks = [_Walker(scene, known=known) for known in (True, False)]
    days = len(scene.load_w) // scene.market.steps_per_day - scene.first_day
    done = 0
    for day in range(days):
        for walker in walks:
            walker.walk_day(scene.first_day + day)
            done += 1
            if progress:
                progress(done, 2 * days)
    part = scene.market.days(scene.first_day, scene.first_day + days)
    step_h = 24 / part.steps_per_day
    load_w = scene.load_w[scene.first_day * part.steps_per_day :]
    idle = float((part.real_time * load_w).sum() * step_h / MILLION)
    return Report(idle, _foresight(scene, part.real_time, load_w), *(walker.made() for walker in walks))


class _Meter:
    """The site as it moves, and what that costs."""

    def __init__(self, site: Site, step_h: float) -> None:
        self.site, self.step_h = site, step_h
        self._cost: list[float] = []
        self._net_w: list[float] = []
        self._stored_wh: list[float] = []
        self._outside_wh = 0.0

    def move(self, split: tuple[int, ...], price: float, load_w: float) -> None:
        """A round is over."""
        net_w = load_w + sum(split)
        wear = sum(_wear(asset, power_w) for asset, power_w in zip(self.site.assets, split, strict=True))
        self._cost.append((price * net_w + wear) * self.step_h / MILLION)
        self._net_w.append(net_w)
        beyond_w = max(0.0, net_w - self.site.import_limit_w, -net_w - self.site.export_limit_w)
        self._outside_wh += beyond_w * self.step_h
        self.site = self.site.after(split, step_h=self.step_h)
        self._stored_wh.append(sum(asset.state for asset in _batteries(self.site)))

    def made(self) -> Walk:
        left = sum((b.final_price or 0.0) * max(0.0, b.state - b.reserve_wh) for b in _batteries(self.site)) / MILLION
        cost, net_w, stored_wh = (np.array(values) for values in (self._cost, self._net_w, self._stored_wh))
        return Walk(cost, net_w, stored_wh, self._outside_wh, left)


def _batteries(site: Site) -> list[Battery]:
    return [asset for asset in site.assets if isinstance(asset, Battery)]


def _wear(asset: object, power_w: int) -> float:
    if not isinstance(asset, Battery):
        return 0.0
    return asset.charge_wear * max(power_w, 0) + asset.discharge_wear * max(-power_w, 0)


def _ending(site: Site, price: float) -> Site:
    """The site for which what is stored at the horizon is worth the price expected there."""
    return Site(
        tuple(replace(battery, final_price=max(price, 0.0)) for battery in _batteries(site)),
        site.import_limit_w,
        site.export_limit_w,
    )


def _foresight(scene: Scene, prices: Array, load_w: Array) -> Walk:
    step_h = 24 / scene.market.steps_per_day
    meter = _Meter(scene.site, step_h)
    ahead = scene.site.ahead(Outlook.certain(step_h, prices[1:].tolist()))
    for step, price in enumerate(prices.tolist()):
        now = [rows[step] for rows in ahead]
        base_w = round(float(load_w[step]))
        response = meter.site.respond(now, step_h=step_h, base_w=base_w)
        meter.move(response.split(best_at(response, price)), price, float(load_w[step]))
    return meter.made()


class _Walker:
    """A gateway: knows what is past, and day-ahead prices from their publication."""

    def __init__(self, scene: Scene, *, known: bool) -> None:
        self._scene, self._known = scene, known
        self._size = scene.market.steps_per_day
        past = scene.market.days(0, scene.first_day)
        self._model = PriceModel.learned(past.real_time, past.day_ahead, steps_per_day=self._size, shape=SHAPE)
        self._place = self._model.ending(past.real_time, past.day_ahead)
        self._meter = _Meter(scene.site, 24 / self._size)
        self._slots = min(self._size, 48)
        self._forecaster = Forecaster(self._slots)
        if not known:
            for day in range(max(0, scene.first_day - 8 * WEEK), scene.first_day):
                self._forecaster.learn(self._day(day), self._load(day))

    def _day(self, day: int) -> Day:
        return Day((self._scene.weekday + day) % WEEK)

    def _load(self, day: int) -> Array:
        load_w = self._scene.load_w[day * self._size : (day + 1) * self._size]
        return np.asarray(load_w.reshape(self._slots, -1).mean(axis=1))

    def _base_w(self, day: int) -> Array:
        """Load of each step, as known before the day."""
        if self._known:
            return self._scene.load_w[day * self._size : (day + 1) * self._size]
        made = self._forecaster.forecast(self._day(day))
        load_w = made.middle if made else np.zeros(self._slots)
        return np.repeat(load_w, self._size // self._slots)

    def walk_day(self, day: int) -> None:
        base_w = self._base_w(day)
        published = self._size * PUBLISHED_H // 24
        for first, end, days in ((0, published, 1), (published, self._size, 2)):
            prices = expected(self._scene.market, day, days, first)
            later = float(np.median(prices[-self._size :]))
            outlook = self._model.outlook(prices[1:], step=first, later=later)
            ahead = _ending(self._meter.site, later).ahead(outlook)
            for step in range(first, end):
                self._round(day, step, [rows[step - first] for rows in ahead], round(float(base_w[step])))
        self._forecaster.learn(self._day(day), self._load(day))

    def _round(self, day: int, step: int, ahead: list[Array], base_w: int) -> None:
        at = day * self._size + step
        day_ahead, price = float(self._scene.market.day_ahead[at]), float(self._scene.market.real_time[at])
        meter = self._meter

        def respond(place: Place) -> Response:
            states = self._model.weights(place).tolist()
            return meter.site.respond(ahead, step_h=meter.step_h, base_w=base_w, states=states)

        curve = news_bid(cases(self._model, self._place, day_ahead, step, respond), tick=TICK).curve
        self._place = self._model.place(price, day_ahead, self._place)
        response = respond(self._place)
        meter.move(response.split(curve.net_w(round(price / TICK))), price, float(self._scene.load_w[at]))

    def made(self) -> Walk:
        return self._meter.made()
