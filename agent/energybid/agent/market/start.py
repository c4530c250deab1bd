"""Puts the bidder together with its planner and its assets; loads numpy: imported only where there is a market."""

from __future__ import annotations

from typing import TYPE_CHECKING

from energybid.agent.market.bidder import Bidder
from energybid.agent.market.dispatch import make as make_assets
from energybid.agent.market.floor import Site
from energybid.agent.market.planner import SitePlanner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.agent.control import Control
    from energybid.agent.market.plan import MarketPlan
    from energybid.agent.polling import BusPoller
    from energybid.agent.recorder import Recorder
    from energybid.agent.upload import Uploader
    from energybid.core.ports import Platform


def make_bidder(
    platform: Platform,
    plan: MarketPlan,
    recorder: Recorder,
    control: Control,
    pollers: Sequence[BusPoller],
    uploader: Uploader,
) -> Bidder:
    """The bidder of an agent, on its connection; nothing runs yet."""
    assets, dispatcher = make_assets(platform, plan, control, pollers, recorder.journal)
    planner = SitePlanner(plan.name, plan.import_limit_w, plan.export_limit_w, plan.timezone)
    bidder = Bidder(
        platform, recorder, plan, recorder.epoch.origin, Site(planner, assets, dispatcher), uploader.publish
    )
    bidder.attach(uploader)
    return bidder
