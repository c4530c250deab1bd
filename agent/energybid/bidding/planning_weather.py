"""The weather of a site: what its roofs give and how warm it is, observed, and laid ahead of the assets that need it.

An asset comes as it is measured now: a roof with what it gives, a room with the temperature that it tends to. Here they
get what is expected of the steps to come (``forecast_weather``). Needs numpy (extra ``bidding``). Pure: times come in
as milliseconds since 1970.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from energybid.bidding.assets import Asset, Pv
from energybid.bidding.assets_stores import Thermal
from energybid.bidding.forecast_weather import DAY_MS, SLOT_MS, Outdoors, Roof, middles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from energybid.bidding.forecast_models import Array

SITE = "/"
"""Name of the temperature that the load's models are given; the others have their assets' names (none is this)."""
KEPT_MS = 21 * DAY_MS
"""What was not seen for so long is forgotten: its asset is gone."""
LAST_MS = 2 * SLOT_MS
"""An older temperature is not that of now."""
COLDEST_C, WARMEST_C = -90.0, 90.0
"""What is beyond is no temperature of air, but a broken sensor."""
STEP_K = 0.25
"""Temperatures ahead are rounded to this: steps that are alike are worked out once (``values``)."""


class WeatherBook:
    """Roofs and thermometers of a site, by the names of their assets."""

    def __init__(self) -> None:
        """Know nothing."""
        self.roofs: dict[str, Roof] = {}
        self.places: dict[str, Outdoors] = {}

    def seen(self, at_ms: int, outside_c: Mapping[str, float], sun_w: Mapping[str, float | None]) -> None:
        """What was measured in a time of at most half an hour that is over.

        Args:
            at_ms: Its begin.
            outside_c: Temperatures around assets, and around the site (``SITE``).
            sun_w: What roofs gave, mean; None for one that was held by a limit.
        """
        for name, found_c in outside_c.items():
            if not COLDEST_C <= found_c <= WARMEST_C:
                continue
            self.places.setdefault(name, Outdoors()).seen(at_ms, found_c)
        for name, power_w in sun_w.items():
            self.roofs.setdefault(name, Roof()).seen(at_ms, power_w)

    def ahead(
        self, assets: Sequence[Asset], names: Sequence[str], at: tuple[int, int, int], now_ms: int
    ) -> list[Asset]:
        """Assets with what lies ahead of them; those of which nothing is known stay as they are.

        Args:
            assets: As they are now.
            names: Theirs.
            at: When the first step begins, how long each is (ms), how many there are.
            now_ms: When this is asked.
        """
        return [self._asset(asset, name, at, now_ms) for asset, name in zip(assets, names, strict=True)]

    def _asset(self, asset: Asset, name: str, at: tuple[int, int, int], now_ms: int) -> Asset:
        if isinstance(asset, Pv):
            power_w = self.sun_w(name, at, now_ms, float(asset.forecast_w[0]))
            return replace(asset, forecast_w=tuple(np.round(power_w).astype(int).tolist()))
        if isinstance(asset, Thermal):
            change_k = np.round(self.change_k(name, at, now_ms) / STEP_K) * STEP_K
            return replace(asset, rest_c=tuple((change_k + asset.rest_c[0]).tolist())) if change_k.any() else asset
        return asset

    def sun_w(self, name: str, at: tuple[int, int, int], now_ms: int, measured_w: float) -> Array:
        """What a roof would give in the steps of ``at`` (see ``ahead``), W."""
        return self.roofs.get(name, Roof()).expected(*at, now_ms, measured_w)

    def change_k(self, name: str, at: tuple[int, int, int], now_ms: int) -> Array:
        """By how much the temperature around an asset differs from that of now in the steps of ``at``."""
        if name not in self.places:
            return np.zeros(at[2])
        place = self.places[name]
        made: Array = place.expected(middles(*at)).mean(axis=1) - place.expected(np.array([float(now_ms)]))[0]
        return made if np.isfinite(made).all() else np.zeros(at[2])

    # ------------------------------------------------------------ for the load

    def now_c(self, at_ms: int) -> float | None:
        """The site's temperature at a moment that was just seen; None: not known."""
        place = self.places.get(SITE)
        if place is None or abs(at_ms - place.last_ms) > LAST_MS:
            return None
        return place.last_c

    def mean_c(self, begins_ms: int, ends_ms: int) -> float | None:
        """Mean temperature of the site that is expected of a time; None: nothing is known."""
        if SITE not in self.places:
            return None
        at_ms = np.arange(begins_ms + SLOT_MS / 2, ends_ms, SLOT_MS)
        mean = float(self.places[SITE].expected(at_ms).mean())
        return round(mean, 2) if np.isfinite(mean) else None

    # ------------------------------------------------------------ over restarts

    def state(self) -> dict[str, Any]:
        """What was learned, for ``packed``."""
        seen_ms = [roof.last_ms for roof in self.roofs.values()] + [place.last_ms for place in self.places.values()]
        since_ms = max(seen_ms, default=0) - KEPT_MS
        return {
            "roofs": {name: roof.state() for name, roof in self.roofs.items() if roof.last_ms >= since_ms},
            "places": {name: place.state() for name, place in self.places.items() if place.last_ms >= since_ms},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up.

        Raises:
            ValueError: It is damaged; nothing is changed.
        """
        try:
            roofs = {str(name): Roof.restored(one) for name, one in state["roofs"].items()}
            places = {str(name): Outdoors.restored(one) for name, one in state["places"].items()}
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"the weather's state is damaged: {error!r}") from None
        self.roofs, self.places = roofs, places
