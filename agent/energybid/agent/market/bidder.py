"""The bidder: the agent's part in a market. One task; it takes messages, lets time pass, and answers.

Every message is an entry of the log: what the gateway sends is on the disk before it is sent, what it accepts at once,
what it refuses with the reason. What it knows is in the log too, so that after a kill -9 it is where it was: see
docs/market.md for the states and what ends them.

A session ends by a fault of this program only; the next one begins with what the log says. Metering goes on meanwhile:
only what makes the journal unusable leaves this module.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from energybid.agent.market.book import PriceBook
from energybid.agent.market.desk import Desk, PlannerError
from energybid.agent.market.floor import Floor, Site
from energybid.agent.market.messages import MessageLog
from energybid.agent.market.outbox import Letter, Outbox
from energybid.agent.market.session import RESTART_S, Session
from energybid.agent.overrides import RequestError, is_name
from energybid.agent.rounds import Rounds
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.entries import MarketKind
from energybid.core.errors import JournalError, JournalStalledError
from energybid.sync.connection import weightiest
from energybid.sync.topics import market_topics, topics_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from energybid.agent.market.plan import MarketPlan
    from energybid.agent.market.ports import Send
    from energybid.agent.recorder import Recorder
    from energybid.agent.upload import Uploader
    from energybid.core.ports import Message, Platform

logger = logging.getLogger("energybid.market")

QUEUE_MAX = 16
"""Messages that wait here; more wait in the uploader's mailbox, which drops and counts what is too much."""
CLOSE_S = 1.0
"""At a stop, how long keeping it may take."""
SHOWN = 3
"""Rounds in the status topic."""
STATUS_MS = 10_000


class Bidder:
    """A gateway's part in one market."""

    def __init__(
        self, platform: Platform, recorder: Recorder, plan: MarketPlan, origin: str, site: Site, send: Send
    ) -> None:
        """Take part as ``plan`` says.

        Args:
            platform: The machine.
            recorder: The log.
            plan: The market and the keys.
            origin: ``tenant/gateway``.
            site: Planner, assets, dispatcher.
            send: ``Uploader.publish``.
        """
        self._platform, self._recorder, self._plan, self._origin = platform, recorder, plan, origin
        self._site, self._send = site, send
        self._market_key = PublicKey.from_pem(plan.key)
        self._topics = topics_for(*origin.split("/"))
        every = market_topics(plan.name)
        self._kinds = {
            every.round: MarketKind.ROUND,
            every.day_ahead: MarketKind.PRICES,
            every.real_time: MarketKind.PRICES,
            self._topics.award: MarketKind.AWARD,
            self._topics.statement: MarketKind.STATEMENT,
        }
        self._queue: asyncio.Queue[Message] = asyncio.Queue(QUEUE_MAX)
        self._log = MessageLog(platform, recorder)
        self._desk = Desk(platform.think or platform.offload)
        self._session: Session | None = None
        self._last: dict[str, Any] = {"rounds": [], "prices": {}}
        """What the last session said of itself at its end."""
        self._running: asyncio.Task[None] | None = None
        self._dropped: Callable[[], int] = int
        self._status_payload: Callable[[], bytes] = bytes
        self.error = ""
        """Why the last session ended."""

    def attach(self, uploader: Uploader) -> None:
        """Share the agent's connection; call it before that runs."""
        uploader.also(list(self._kinds), self._queue.put)
        uploader.on_connect.append(self._connected)
        uploader.more_status = self.told
        self._dropped = lambda: uploader.dropped
        self._status_payload = lambda: uploader.status_payload("online")

    def _connected(self) -> None:
        """There is a connection again: what waits is sent."""
        if self._session is not None:
            self._session.connected()

    async def run(self) -> None:
        """Take part until cancelled.

        Raises:
            JournalError: The journal is damaged, or locked; the agent must stop.
        """
        self._running = asyncio.current_task()
        while True:
            try:
                self._session = Session(self._floor(), self._kinds, self._queue)
                await self._session.run()
            except Exception as group:
                error = weightiest(group) if isinstance(group, BaseExceptionGroup) else group
                if isinstance(error, JournalError) and not isinstance(error, JournalStalledError):
                    raise error from None
                self.error = f"{type(error).__name__}: {error}"
                logger.exception("the market is left alone for a while")
            finally:
                self._last = self._session.status() if self._session else self._last
                self._session = None
            await asyncio.sleep(RESTART_S)

    def _floor(self) -> Floor:
        return Floor(
            platform=self._platform,
            recorder=self._recorder,
            market=self._plan.name,
            origin=self._origin,
            topics=self._topics,
            key=PrivateKey.from_pem(self._plan.bids_key),
            rounds=Rounds(self._plan.name, self._origin, self._market_key),
            book=PriceBook(self._plan.name, self._market_key),
            log=self._log,
            outbox=Outbox(self._send, lambda: self._platform.now_ns() // 1_000_000),
            desk=self._desk,
            site=self._site,
            tell=self._tell,
        )

    def _tell(self) -> None:
        """Publish the status again. One that waits for a connection is soon old, and comes anew with that anyway."""
        if self._session is not None:
            until_ms = self._platform.now_ns() // 1_000_000 + STATUS_MS
            letter = Letter(self._topics.status, self._status_payload(), until_ms, retain=True)
            self._session.send("status", letter)

    async def close(self) -> None:
        """The agent stops: let go of the assets, keep what the planner has learned."""
        running, session = self._running, self._session
        if running is None:
            return
        running.cancel()
        await asyncio.wait({running})
        if session is not None:
            try:
                async with asyncio.timeout(CLOSE_S):
                    await session.tutor.keep()
            except TimeoutError:
                logger.warning("what the planner has learned was not kept: it takes too long")

    async def forecast_back(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A person wants the load forecast's version before: a request on the agent's socket.

        Raises:
            RequestError: It can not be: why.
        """
        model, who = asked.get("model"), asked.get("who")
        if not isinstance(model, str | None) or not is_name(who):
            raise RequestError("a request names its model, or none, and who asks")
        if self._session is None or not self._session.tutor.ready:
            raise RequestError("the market is left alone for a while: try again in a minute, and see energybid status")
        try:
            name, version, why = await self._session.tutor.roll_back(model)
        except PlannerError as error:
            raise RequestError(str(error)) from None
        logger.warning("load forecast: %s goes back to the version before of %s, which is %d now", who, name, version)
        return {"model": name, "version": version, "kept": not why, "why": why}

    def status(self) -> dict[str, Any]:
        """For the status file."""
        found = {
            "name": self._plan.name,
            "error": self.error,
            "planner_error": self._desk.error,
            "refused": dict(self._log.refused),
            "not_logged": self._log.not_logged,
            "dropped": self._dropped(),
            "assets": self._site.assets.status(),
        }
        return found | self._now()

    def _now(self) -> dict[str, Any]:
        return self._session.status() if self._session else self._last

    def told(self) -> dict[str, Any]:
        """For the status topic: the last rounds, small."""
        return {"market": {"name": self._plan.name, "rounds": self._now()["rounds"][-SHOWN:]}}
