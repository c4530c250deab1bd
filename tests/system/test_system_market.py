"""A market with real processes: three agents bid, the market awards, devices move, their meters show it, it settles."""

import asyncio
from contextlib import AsyncExitStack

from energybid.simulator import showcase, showcase_files

DEADLINE_S = 150
QUICK = {
    'every = "1 min"': 'every = "15 s"',
    'announce = "50 s"': 'announce = "14 s"',
    'gate = "8 s"': 'gate = "4 s"',
}


async def until(holds):
    while not holds():  # noqa: ASYNC110  another process's doing
        await asyncio.sleep(0.1)


async def test_three_gateways_bid_are_awarded_confirm_what_they_did_and_are_paid(tmp_path, monkeypatch):
    text = showcase_files.MARKET_FILE
    for before, after in QUICK.items():
        assert before in text
        text = text.replace(before, after)
    monkeypatch.setattr(showcase_files, "MARKET_FILE", text)
    async with asyncio.timeout(DEADLINE_S), AsyncExitStack() as stack:
        cast = await showcase.Showcase.start(tmp_path, stack)
        confirmed = dict[str, str]()
        cast.tally.on_event = lambda event: (
            confirmed.update({event["gateway"]: event["reason"]}) if event["event"] == "confirmed" else None
        )
        await until(lambda: len(confirmed) == 3 and cast.tally.counts["settled"] >= 2)
        await cast.finish()
        result = await cast.result()
    assert result["verified"], result
    assert (result["lost"], result["duplicated"]) == (0, 0)
    assert result["market"]["awarded"] >= result["market"]["confirmed"] >= 3
    assert result["market"]["bundles"] == result["market"]["bundles_verified"] >= 2
    assert all(reason.startswith("followed") for reason in confirmed.values()), confirmed
