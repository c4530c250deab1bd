"""The bidder: a gateway in a market, through every phase of a round and every outage, in virtual time."""

import asyncio

from bidding_site import TOPICS, play
from energybid.core.entries import MarketKind


def test_the_whole_way(tmp_path):
    async def scene(site):
        site.round()  # at 1 s: the gate at 61, the interval from 121 to 181
        await asyncio.sleep(5)
        assert site.state() == "bid"
        site.award()
        await asyncio.sleep(5)
        assert site.state() == "awarded"
        await asyncio.sleep(120)
        assert site.state() == "delivering"
        await asyncio.sleep(60)
        assert site.state() == "delivered"
        site.state_money()
        await asyncio.sleep(5)
        assert site.state() == "settled"
        return site

    site = play(tmp_path / "j", scene)
    kinds = [MarketKind.ROUND, MarketKind.BID, MarketKind.AWARD, MarketKind.CONFIRMATION, MarketKind.STATEMENT]
    assert site.kept == [(kind, 0) for kind in kinds]
    assert [topic for _, topic, _ in site.sent] == [TOPICS.bid, TOPICS.dispatch]
    assert site.dispatcher.moves == [(121.0, 0, {"battery": -500, "pump": 0}, "MARKET")]
