"""What the parts of the bidder share: the rounds, the prices, the log, the planner, and one idea of the time.

Here lives what more than one of them needs; what to do about it is theirs: ``bidder`` takes messages and lets time
pass, ``offers`` makes bids, ``deliveries`` follows awards and schedules.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from energybid.agent.market.desk import PlannerError
from energybid.agent.market.splits import Splits
from energybid.agent.rounds import VERSIONS_KEPT
from energybid.core.errors import EvidenceError, JournalStalledError

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.agent.market.book import PriceBook
    from energybid.agent.market.desk import Desk
    from energybid.agent.market.messages import MessageLog
    from energybid.agent.market.outbox import Outbox
    from energybid.agent.market.ports import Assets, Dispatcher, Planned, Planner
    from energybid.agent.recorder import Recorder
    from energybid.agent.rounds import Known, Rounds
    from energybid.core.cose import PrivateKey
    from energybid.core.ports import Platform
    from energybid.sync.market import Round
    from energybid.sync.topics import Topics

logger = logging.getLogger("energybid.market")

SPLITS = "market/split/"
"""Where the journal keeps the splits of the last two versions of each bid, in ``SPLITS_KEPT`` slots."""
SPLITS_KEPT = 64
SPLITS_MAX = 2048
"""Bytes; a longer one is not kept, and planned anew after a restart."""
HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Site:
    """Who plans, who knows the assets, who moves them."""

    planner: Planner
    assets: Assets
    dispatcher: Dispatcher


@dataclass(slots=True)
class Floor:
    """Shared by the parts of one session of the bidder."""

    platform: Platform
    recorder: Recorder
    market: str
    """``tenant/market``."""
    origin: str
    """``tenant/gateway``."""
    topics: Topics
    key: PrivateKey
    """For bids and confirmations."""
    rounds: Rounds
    book: PriceBook
    log: MessageLog
    outbox: Outbox
    desk: Desk
    site: Site
    splits: dict[int, dict[int, bytes]] = field(default_factory=dict)
    """Of the plans for each round, encoded, by its number and the bid's version; version 0 was not bid."""
    tell: Callable[[], None] = lambda: None
    """What became of a round is to be told on the status topic."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """A round was announced or has begun: whoever follows the local plan looks again."""

    def now_ms(self) -> int:
        """Wall clock."""
        return self.platform.now_ns() // 1_000_000

    def assets_of(self, made: Round) -> list[tuple[str, Any]]:
        """The assets that can be reached, for a round; a fault in telling them is none that is reached."""
        try:
            return self.site.assets.now(made.begins_ms, made.duration_ms / HOUR_MS)
        except Exception:
            logger.exception("the state of the assets can not be told")
            return []

    async def plan(self, made: Round) -> tuple[Planned, Splits]:
        """What the site would do in a round.

        Raises:
            PlannerError: There is no answer, or no asset that could do anything.
        """
        assets = self.assets_of(made)
        if not assets:
            raise PlannerError("no asset can be reached")
        base_w = self.site.assets.base_w()
        return await self.desk.ask(planned, self.site.planner, made, assets, base_w, self.now_ms())

    def keep(self, number: int, version: int, splits: Splits) -> None:
        """Hold the plan of a round; forget those that no award can be for."""
        found = self.splits.setdefault(number, {})
        found[version] = splits.encode()
        if len(found) > VERSIONS_KEPT:
            del found[min(found)]
        if len(self.splits) > SPLITS_KEPT:
            for old in [old for old in self.splits if not self._open(old)]:
                del self.splits[old]

    def _open(self, number: int) -> bool:
        known = self.rounds.known.get(number)
        return known is not None and known.open

    async def splits_of(self, known: Known) -> Splits | None:
        """The splits of a round's bid, planned now where there are none; None where nobody can say."""
        number, version = known.round.number, known.bid.version if known.bid else 0
        found = self.splits.get(number, {})
        if version not in found:
            try:
                _, splits = await self.plan(known.round)
            except PlannerError as error:
                logger.info("round %d: no plan (%s): the assets are left alone", number, error)
                return None
            self.keep(number, version, splits)
        return Splits.decode(self.splits[number][version])

    # ------------------------------------------------------------ over a restart

    async def remember(self, number: int, version: int) -> None:
        """Keep the splits of a bid that was made; what the disk does not take is planned anew after a restart."""
        data = version.to_bytes(4, "big") + number.to_bytes(8, "big") + self.splits[number][version]
        if len(data) > SPLITS_MAX:
            return
        try:
            key = f"{SPLITS}{(2 * number + version % 2) % SPLITS_KEPT}"
            await self.platform.offload(self.recorder.journal.remember, key, data)
        except JournalStalledError as error:
            logger.warning("round %d: the split of its bid is not kept: %s", number, error)

    async def recall(self) -> None:
        """Take back the splits of the bids that rounds hold."""
        for data in (await self.platform.offload(self.recorder.journal.recall, SPLITS)).values():
            version, number = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:12], "big")
            known = self.rounds.known.get(number)
            if known is None or not known.open or not 0 < version <= known.versions:
                continue
            try:
                self.keep(number, version, Splits.decode(data[12:]))
            except EvidenceError as error:
                logger.warning("round %d: %s; it is planned anew", number, error)


def planned(planner: Planner, made: Round, assets: list[tuple[str, Any]], base_w: int | None, now_ms: int) -> Any:  # noqa: ANN401
    """Plan, and split every corner: both in the planner's thread."""
    found = planner.plan(made, assets, base_w, now_ms)
    return found, Splits.of(found)
