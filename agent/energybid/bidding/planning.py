"""From what a gateway knows to what it bids: prices, loads and assets in, a curve, a schedule and its splits out.

The one way from knowledge to a bid: the agent walks it with what comes over the wire, ``backtest`` with what was. What
follows is worth is found for some rounds at once and used until something that it depends on changes. Needs numpy
(extra ``bidding``). Pure: times come in as milliseconds since 1970.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from energybid.bidding.assets import Asset, Curtailable, Deferrable, Pv
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.curve import STEPS_MAX, Curve
from energybid.bidding.planning_load import Expected, LoadBook
from energybid.bidding.planning_prices import HOUR_MS, PriceBook, View
from energybid.bidding.planning_weather import WeatherBook
from energybid.bidding.prices_bids import NewsBid, best_at, cases, middle, news_bid
from energybid.bidding.site import KNOTS_TRIED, Site
from energybid.bidding.site_shadow import shadows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from energybid.bidding.horizon import Outlook
    from energybid.bidding.prices import Place, PriceModel
    from energybid.bidding.response import Response
    from energybid.bidding.values import Array

SHARED_MS = HOUR_MS
"""Values are found for the rounds of so long at once."""
SHADOW_STAGES = 144
"""Later limits are not looked at."""


class Slot(NamedTuple):
    """A round."""

    begins_ms: int
    step_ms: int
    tick: float
    """Smallest difference of prices, money per MWh."""
    least_ticks: int
    most_ticks: int


class Offered(NamedTuple):
    """What a site bids."""

    curve: Curve
    schedule_w: int
    """What it does without an award."""
    split: Callable[[int], tuple[int, ...]]
    """The power of each asset, in their order, for a net import that the curve offers."""
    price: float
    """As likely to be above as below, money per MWh."""
    view: View
    base: Expected
    shadow: float
    """Of the site's limits in the step after the round, money per MWh."""
    assets: tuple[Asset, ...]
    """As they were planned, with the weather that lies ahead."""


class _Valued(NamedTuple):
    """What follows is worth to each asset, for some rounds from the first."""

    slot: Slot
    version: tuple[object, ...]
    assets: tuple[Asset, ...]
    worths: list[list[Array]]
    models: list[PriceModel | None]
    shadow: Array

    def age(self, slot: Slot, version: tuple[object, ...], assets: Sequence[Asset]) -> int | None:
        """Rounds since; None where it no longer holds."""
        rounds, rest = divmod(slot.begins_ms - self.slot.begins_ms, slot.step_ms)
        fits = slot.step_ms == self.slot.step_ms and not rest and 0 <= rounds < min(map(len, self.worths), default=1)
        if not fits or version != self.version or len(assets) != len(self.assets):
            return None
        same = all(_aged(a, rounds) == _aged(b, 0) for a, b in zip(self.assets, assets, strict=True))
        return rounds if same else None


class Planning:
    """A site's knowledge, and its bids."""

    def __init__(
        self,
        import_limit_w: int,
        export_limit_w: int,
        *,
        loads: LoadBook | None = None,
        prices: PriceBook | None = None,
        weather: WeatherBook | None = None,
    ) -> None:
        """Know nothing but what is given.

        Args:
            import_limit_w: Most net import.
            export_limit_w: Most net export.
            loads: What is known of the base load.
            prices: What is known of prices.
            weather: What is known of the weather.
        """
        self._limits = import_limit_w, export_limit_w
        self.weather = weather or WeatherBook()
        self.prices = prices or PriceBook()
        self.loads = loads or LoadBook()
        self._valued: _Valued | None = None
        self._shadow: tuple[Slot, Array] | None = None

    def plan(
        self,
        slot: Slot,
        assets: Sequence[Asset],
        now_w: tuple[int, float] | None,
        now_ms: int,
        names: Sequence[str] = (),
    ) -> Offered:
        """The bid for a round.

        Args:
            slot: The round.
            assets: As they are when it begins, under the weather of now; times counted in its steps.
            now_w: When the base load was measured last and what it was, W.
            now_ms: When this is asked.
            names: Of the assets, by which ``weather`` knows them; without, the weather stays as it is.
        """
        view = self.prices.view(slot.begins_ms, slot.step_ms, now_ms)
        if names:
            assets = self.weather.ahead(assets, names, (slot.begins_ms, slot.step_ms, len(view.expected)), now_ms)
        base = self.loads.expected(slot.begins_ms, slot.step_ms, 1, now_w)
        site = Site(tuple(assets), *self._limits)
        valued, age = self._values(slot, view, site, now_w)

        def answer(place: Place | None) -> _Answer:
            pairs = zip(valued.worths, valued.models, strict=True)
            rows = [_row(worths[age], model, place) for worths, model in pairs]
            return _Answer(site, rows, slot.step_ms / HOUR_MS, round(base.power_w[0]), view.later)

        expected = float(view.expected[0])
        if view.source == "none":
            bid = _one_power(answer(None), expected)
        elif view.model is None or view.place is None:
            bid = _plain_bid(answer(None), slot.tick)
        else:
            found = cases(view.model, view.place, expected, view.step, answer)
            bid = news_bid(found, tick=slot.tick)
            expected = middle(found)
        curve = bid.curve.within(slot.least_ticks, slot.most_ticks)
        ticks = min(max(round(expected / slot.tick), slot.least_ticks), slot.most_ticks)
        shadow = float(valued.shadow[min(age + 1, len(valued.shadow) - 1)])
        return Offered(curve, curve.net_w(ticks), bid.split, expected, view, base, shadow, tuple(assets))

    def _values(self, slot: Slot, view: View, site: Site, now_w: tuple[int, float] | None) -> tuple[_Valued, int]:
        """Those found before where they hold, or new ones; and how many rounds old they are."""
        valued = self._valued
        age = valued.age(slot, view.version, site.assets) if valued else None
        if valued is not None and age is not None:
            return valued, age
        self._valued = valued = None  # its memory first
        self._valued = valued = self._solve(slot, view, site, now_w)
        self._shadow = slot, valued.shadow
        return valued, 0

    def _earlier(self, slot: Slot, count: int) -> Array | None:
        """The shadow prices found last, of the steps from a round on."""
        if self._shadow is None or self._shadow[0].step_ms != slot.step_ms:
            return None
        rounds = (slot.begins_ms - self._shadow[0].begins_ms) // slot.step_ms
        made = np.zeros(count)
        if 0 <= rounds < count:
            made[: count - rounds] = self._shadow[1][rounds:count]
        return made

    def _solve(self, slot: Slot, view: View, site: Site, now_w: tuple[int, float] | None) -> _Valued:
        step_h = slot.step_ms / HOUR_MS
        count = min(len(view.expected), SHADOW_STAGES)
        base_w = self.loads.expected(slot.begins_ms, slot.step_ms, count, now_w).power_w
        plain = view.outlook(None, step_h)
        near = replace(plain, stages=plain.stages[: count - 1])
        loads_w = [round(w) for w in base_w.tolist()]
        shadow = np.zeros(len(view.expected))
        shadow[:count] = shadows(site, view.expected[:count].tolist(), near, loads_w, self._earlier(slot, count))
        models = [self._model_for(asset, view) for asset in site.assets]
        outlooks: dict[int, Outlook] = {}
        for model in models:
            if id(model) not in outlooks:
                outlooks[id(model)] = view.outlook(model, step_h).raised(shadow[1:].tolist())
        keep = max(1, SHARED_MS // slot.step_ms)
        worths = [asset.ahead(outlooks[id(model)], keep) for asset, model in zip(site.assets, models, strict=True)]
        return _Valued(slot, view.version, site.assets, worths, models, shadow)

    def _model_for(self, asset: Asset, view: View) -> PriceModel | None:
        if view.model is None or isinstance(asset, Pv | Curtailable):
            return None
        return view.model if isinstance(asset, Battery) else self.prices.merged


def _aged(asset: Asset, rounds: int) -> Asset:
    """What its values depend on, seen from a round some rounds later."""
    match asset:
        case Battery():
            return replace(asset, stored_wh=0.0)
        case EvCharger():
            arrival = max(asset.arrival - rounds, 0)
            return replace(asset, stored_wh=0.0, arrival=arrival, departure=asset.departure - rounds)
        case Thermal():
            return replace(asset, temperature_c=0.0, rest_c=(0.0,), has_to=None)
        case Deferrable():
            earliest = max(asset.earliest - rounds, 0)
            return replace(asset, done=0, earliest=earliest, deadline=asset.deadline - rounds)
        case Pv():
            return replace(asset, forecast_w=(0,))
    return asset


def _row(worths: Array, model: PriceModel | None, place: Place | None) -> Array:
    """One row: where the price leads."""
    if model is None or place is None or len(worths) == 1:
        return worths[:1]
    row: Array = np.zeros((1, worths.shape[1]))
    for corner in model.corners(place):
        row += corner.weight * worths[corner.state]
    return row


class _Answer:
    """What the site does where a price leads; the response is made when it is asked for."""

    def __init__(self, site: Site, rows: list[Array], step_h: float, base_w: int, later: float) -> None:
        self._site, self._rows, self._step_h, self._base_w, self._later = site, rows, step_h, base_w, later
        self._response: Response | None = None

    def response(self, knots: int | None = None) -> Response:
        """The best response; in other detail where it is given."""
        if self._response is None or knots:
            self._response = self._site.respond(
                self._rows,
                step_h=self._step_h,
                base_w=self._base_w,
                knots=knots or KNOTS_TRIED[0],
                expected=self._later,
            )
        return self._response

    def wish_w(self, price: float) -> int:
        """Each asset's own wish where the site's limits allow them all."""
        net_w = self._site.liked_w(self._rows, step_h=self._step_h, base_w=self._base_w, price=price)
        return best_at(self.response(), price) if net_w is None else net_w


def _plain_bid(answer: _Answer, tick: float) -> NewsBid:
    """Prices are no news: the best response itself."""
    for knots in KNOTS_TRIED:
        response = answer.response(knots)
        if len(response.corners) <= STEPS_MAX:
            break
    return NewsBid(response.curve(tick=tick), response.split)


def _one_power(answer: _Answer, price: float) -> NewsBid:
    """Nothing is known of prices: the same at any price."""
    response = answer.response()
    return NewsBid(Curve(best_at(response, price), ()), response.split)
