"""What drivers have learned of their meters, kept in the journal for the next run of the agent.

It is kept for each meter and its profile together: with another profile it is learned anew. Writing costs the card, so
it is done at once only for what costs readings or errors to learn, and daily or at the end for the rest. Nothing of it
is evidence, and nothing is lost but time where the disk does not take it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING, Any

from energybid.core.errors import JournalStalledError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from energybid.agent.journal import Journal
    from energybid.agent.polling import BusPoller
    from energybid.core.ports import Driver, MeterPlan, Platform

logger = logging.getLogger("energybid.agent")

PREFIX = "meter/"
LOOK_EVERY_S = 60.0
WRITE_EVERY_S = 86_400.0
KEEP_S = 1.0
"""At a stop, how long writing may take."""


def key_of(meter: MeterPlan) -> str:
    """Where a meter's knowledge is kept: by its name and its profile."""
    return f"{PREFIX}{meter.name}/{meter.profile_hash.hex()[:16]}"


class Memory:
    """Knowledge of all meters of the gateway."""

    def __init__(self, platform: Platform, journal: Journal, pollers: Iterable[BusPoller]) -> None:
        """Keep for the meters of ``pollers``."""
        self._platform = platform
        self._journal = journal
        self._pollers = tuple(pollers)
        self._written: dict[str, tuple[float, object]] = {}
        """Key → when it was written, and what of it is dear."""

    def _meters(self) -> Iterator[tuple[Driver, MeterPlan]]:
        return ((poller.driver, meter.plan) for poller in self._pollers for meter in poller.meters)

    async def recall(self) -> None:
        """Tell the drivers what earlier runs have learned."""
        found = await self._platform.offload(self._journal.recall, PREFIX)
        now = asyncio.get_running_loop().time()
        for driver, meter in self._meters():
            data = found.get(key_of(meter))
            if data is None:
                continue
            try:
                driver.learn(meter, json.loads(data))
            except ValueError as error:
                logger.warning("%s: %s; it is learned again", meter.name, error)
            else:
                self._written[key_of(meter)] = now, _dear(driver.shown(meter))

    async def run(self) -> None:
        """Keep what is learned, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await self._keep(WRITE_EVERY_S)

    async def close(self) -> None:
        """Keep what is not kept yet; what takes too long is left."""
        try:
            async with asyncio.timeout(KEEP_S):
                await self._keep(WRITE_EVERY_S)  # first what was dear
                await self._keep(0.0)
        except TimeoutError:
            logger.warning("what was learned of the meters was not all kept: the disk is slow")

    async def _keep(self, every_s: float) -> None:
        """Write what has changed in what is dear, and what was not written for long."""
        now = asyncio.get_running_loop().time()
        for driver, meter in self._meters():
            key, dear = key_of(meter), _dear(driver.shown(meter))
            written_at, before = self._written.get(key, (now, None))
            if dear == before and now - written_at < every_s:
                continue
            plain = driver.learned(meter)
            if not plain:
                continue
            data = json.dumps(plain, separators=(",", ":")).encode()
            try:
                await self._platform.offload(self._journal.remember, key, data)
            except JournalStalledError:
                return  # the recorder tells; the next look tries again
            self._written[key] = now, dear


def _dear(shown: Mapping[str, Any]) -> object:
    """What it cost readings or errors to learn."""
    refused = tuple(span["registers"] for span in shown.get("unreadable", ()))
    return (refused, shown.get("turnaround_ms", 0) > 0) if shown else None
