"""The agent's planner: the market's messages and the site's assets in, ``energybid.bidding.planning`` in between.

Here live the change from messages to plain numbers, and how what was learned is cut into pieces that the journal
remembers. Blocks for up to some seconds; called in a thread, never two calls at a time. Imports numpy: only an agent
with a ``[market]`` imports this.
"""

from __future__ import annotations

import logging
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from energybid.agent.market.ports import Planned
from energybid.bidding.assets import Curtailable, Pv
from energybid.bidding.packed import pack, unpack
from energybid.bidding.planning import Planning, Slot
from energybid.bidding.planning_load import LoadBook
from energybid.bidding.planning_prices import PriceCurve
from energybid.bidding.planning_weather import WeatherBook
from energybid.sync.market import PriceCurve as Which

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from energybid.agent.market.ports import Weather
    from energybid.bidding.assets import Asset
    from energybid.bidding.planning import Offered
    from energybid.sync.market import Prices, Round

PIECE_BYTES = 4000
"""Of what was learned; ``Journal.remember`` takes 4,096."""
_log = logging.getLogger("energybid.market")


class SitePlanner:
    """Plans one site's bids in one market."""

    def __init__(self, name: str, import_limit_w: int, export_limit_w: int, timezone: str = "UTC") -> None:
        """Know nothing.

        Args:
            name: The market's, ``tenant/market``: what was learned in another one is not taken up.
            import_limit_w: Most net import.
            export_limit_w: Most net export.
            timezone: IANA name; the load's days are those of the site's clock.
        """
        self._name = name
        self._timezone = timezone
        weather = WeatherBook()
        loads = LoadBook(timezone, weather.mean_c)
        self.planning = Planning(import_limit_w, export_limit_w, loads=loads, weather=weather)

    def prices(self, made: Prices) -> None:
        """An accepted price curve; one that comes again changes nothing."""
        prices = tuple(ticks / 10**made.decimals for ticks in made.ticks)
        curve = PriceCurve(made.begins_ms, made.step_ms, prices, made.time_ms)
        if made.curve == Which.DAY_AHEAD:
            self.planning.prices.day_ahead(curve)
        else:
            self.planning.prices.real_time(curve)

    def weather(self, at_ms: int, made: Weather) -> None:
        """The weather of a time that is over; see ``ports.Planner``."""
        self.planning.weather.seen(at_ms, made.outside_c, made.sun_w)

    def load(self, at_ms: int, net_w: int, controlled_w: int) -> None:
        """What the site took in a time that is over; see ``ports.Planner``."""
        self.planning.loads.seen(at_ms, net_w - controlled_w, self.planning.weather.now_c(at_ms))

    def roll_back(self, model: str | None) -> tuple[str, int]:
        """Go back to the version before; see ``ports.Planner``."""
        return self.planning.loads.roll_back(model)

    def plan(self, made: Round, assets: Sequence[tuple[str, Asset]], base_w: int | None, now_ms: int) -> Planned:
        """The site's best response to a round; see ``ports.Planner``."""
        self.planning.prices.learn(made.duration_ms, now_ms, lasting=made.number > 0)
        slot = Slot(made.begins_ms, made.duration_ms, 1 / 10**made.decimals, made.least_ticks, made.most_ticks)
        names = [name for name, _ in assets]
        now_w = None if base_w is None else (now_ms, float(base_w))
        offered = self.planning.plan(slot, [asset for _, asset in assets], now_w, now_ms, names)

        def split(net_w: int) -> dict[str, int]:
            return dict(zip(names, offered.split(net_w), strict=True))

        return Planned(
            curve=offered.curve,
            schedule_w=offered.schedule_w,
            split=split,
            all_w=_all_w(names, offered),
            facts=_facts(offered),
        )

    def state(self) -> dict[str, bytes]:
        """What was learned, in pieces of at most ``PIECE_BYTES``; some 50 kB after months of 5-minute prices.

        To be kept all at once or not at all. All but two pieces or three change once a day.
        """
        prices, loads, weather = self.planning.prices, self.planning.loads, self.planning.weather
        made = {
            "prices": prices.state(),
            "loads": loads.state(),
            "today": loads.day_state(),
            "weather": weather.state(),
        }
        return {name: piece for kind, state in made.items() for name, piece in self._pieces(kind, state).items()}

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take up what an earlier run has learned; what is damaged or of another market is learned anew, and logged."""
        prices, loads, weather = self.planning.prices, self.planning.loads, self.planning.weather
        takers = {
            "prices": prices.restore,
            "loads": loads.restore,
            "today": loads.restore_day,
            "weather": weather.restore,
        }
        for kind, take in takers.items():
            try:
                found = _joined(kind, state)
                if found is None:
                    continue
                if found.get("of") != self._owner(kind):
                    raise ValueError(f"it is of {found.get('of')}, not of {self._owner(kind)}")  # noqa: TRY301
                take(found["state"])
            except (KeyError, ValueError) as error:
                _log.warning("%s: what was learned is not taken up, and learned anew: %s", kind, error)

    def _owner(self, kind: str) -> str:
        return {"prices": self._name, "weather": "UTC"}.get(kind, self._timezone)

    def _pieces(self, kind: str, state: dict[str, Any]) -> dict[str, bytes]:
        """Each begins with the hash of the whole and its count: pieces of two states do not mix."""
        block = pack({"of": self._owner(kind), "state": state})
        count = -(-len(block) // PIECE_BYTES)
        mark = sha256(block).digest()[:8] + count.to_bytes(2, "big")
        return {f"{kind}/{n:02d}": mark + block[n * PIECE_BYTES : (n + 1) * PIECE_BYTES] for n in range(count)}


def _all_w(names: Sequence[str], offered: Offered) -> dict[str, int]:
    pairs = list(zip(names, offered.assets, strict=True))
    loads = {name: asset.load_w for name, asset in pairs if isinstance(asset, Curtailable)}
    return loads | {name: -asset.forecast_w[0] for name, asset in pairs if isinstance(asset, Pv)}


def _facts(offered: Offered) -> dict[str, str | int | float]:
    view, base = offered.view, offered.base
    facts: dict[str, str | int | float | None] = {
        "expected_price": round(offered.price, 4),
        "prices_from": view.source,
        "day_ahead_age_s": view.day_ahead_age_s,
        "real_time_age_s": view.real_time_age_s,
        "base_w": round(float(base.power_w[0])),
        "base_low_w": round(base.low_w),
        "base_high_w": round(base.high_w),
        "load_model": base.model,
        "load_model_version": base.version,
        "limit_price": round(offered.shadow, 4),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _joined(kind: str, state: Mapping[str, bytes]) -> dict[str, Any] | None:
    first = state.get(f"{kind}/00")
    if first is None:
        return None
    mark = first[:10]
    parts = [state.get(f"{kind}/{n:02d}", b"") for n in range(int.from_bytes(mark[8:], "big"))]
    if any(part[:10] != mark for part in parts):
        raise ValueError("pieces are missing, or of another state")
    return unpack(b"".join(part[10:] for part in parts))
