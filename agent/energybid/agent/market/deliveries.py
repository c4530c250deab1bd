"""Intervals: what the site does while one lasts, and how it ended.

An award is followed from the begin of its interval to its end. Where there is none, or it was given up, the schedule of
the round's plan is; where no round's interval is now, the local plan of a virtual round. Nothing that an asset or the
planner does ends the agent: what can not be followed is left alone, and the control path writes safe numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from energybid.agent.control import Rank
from energybid.agent.market.desk import PlannerError
from energybid.agent.market.ports import Followed
from energybid.agent.rounds import State
from energybid.bidding.curve import TICKS_MAX
from energybid.core.errors import JournalError, JournalStalledError
from energybid.sync.market import Conduct, Pricing, Round

if TYPE_CHECKING:
    from energybid.agent.market.floor import Floor
    from energybid.agent.market.splits import Splits
    from energybid.agent.rounds import Known

logger = logging.getLogger("energybid.market")

SEAM_S = 5.0
"""How long following may outlast its interval, to read the meter a last time."""
SLOT_MS = 900_000
"""Virtual rounds, and what the planner is told of the load."""
AGAIN_S = 30.0
"""Between attempts at a local plan."""
NOT_RUNNING = Followed(Conduct.FAILED, "the interval passed while nobody followed")


class Deliveries:
    """Follows awards and schedules."""

    def __init__(self, floor: Floor, tasks: asyncio.TaskGroup) -> None:
        """Follow for the rounds of ``floor``, in tasks of a group."""
        self._floor = floor
        self._tasks = tasks
        self._running: dict[int, asyncio.Task[None]] = {}
        """By the round's number."""
        self._ended: dict[int, Followed] = {}
        """How following an award went."""
        self._targets: list[int] = []
        """What is followed now, the newest last: at the seam of two intervals both may be."""
        self.failed = ""
        """Why an asset could not be moved last."""

    @property
    def target_w(self) -> int | None:
        """Net import that the site is to have now; None: it is left alone."""
        return self._targets[-1] if self._targets else None

    def begin(self, known: Known) -> None:
        """The interval of a round has begun, or the agent has come back within it."""
        self._floor.news.set()
        number = known.round.number
        self._running[number] = self._tasks.create_task(self._deliver(known))

    async def end(self, known: Known) -> Followed:
        """The interval is over: how following its award went."""
        self._floor.news.set()
        number = known.round.number
        running = self._running.pop(number, None)
        if running is not None:
            await asyncio.wait({running}, timeout=SEAM_S)
            running.cancel()
        return self._ended.pop(number, NOT_RUNNING)

    # ------------------------------------------------------------ a round's interval

    async def _deliver(self, known: Known) -> None:
        splits = await self._floor.splits_of(known)
        award = known.award
        if award is not None and known.state is State.DELIVERING:
            if splits is None:
                followed = Followed(Conduct.FAILED, "no plan for the assets")
            else:
                followed = await self._follow(known, award.net_w, splits, Rank.MARKET)
            self._ended[known.round.number] = followed
            if followed.conduct == Conduct.FOLLOWED:
                return
            self._give_up(known, followed)
        if splits is not None and self._floor.now_ms() < known.ends_ms:
            await self._follow(known, splits.schedule_w, splits, Rank.SCHEDULE)

    def _give_up(self, known: Known, followed: Followed) -> None:
        if self._floor.rounds.give_up(known.round.number):
            logger.warning(
                "round %d: the award is given up (%s): the schedule is followed", known.round.number, followed.reason
            )

    async def _follow(self, known: Known, target_w: int, splits: Splits, rank: Rank) -> Followed:
        return await self._move(target_w, splits, known.round.begins_ms, known.ends_ms, rank)

    async def _move(self, target_w: int, splits: Splits, begins_ms: int, ends_ms: int, rank: Rank) -> Followed:
        """Follow a power; a clock that steps back does not make it longer, whatever the interval's end says then."""
        left_s = max(0, min(ends_ms - begins_ms, ends_ms - self._floor.now_ms())) / 1000
        self._targets.append(target_w)
        self._floor.site.assets.foreseen(begins_ms, splits.all_w)
        try:
            async with asyncio.timeout(left_s + SEAM_S):
                followed = await self._floor.site.dispatcher.follow(
                    target_w, splits.at(target_w), begins_ms, ends_ms, rank
                )
        except TimeoutError:
            followed = Followed(Conduct.FAILED, "did not end in time")
        except JournalStalledError as error:
            followed = Followed(Conduct.FAILED, "the disk refuses")
            self._tell(str(error))
        except JournalError:
            raise
        except Exception as error:  # noqa: BLE001  of whatever device
            followed = Followed(Conduct.FAILED, "the assets can not be moved")
            self._tell(f"{type(error).__name__}: {error}", error)
        else:
            self.failed = ""
        finally:
            self._targets.remove(target_w)
        return followed

    def _tell(self, why: str, error: Exception | None = None) -> None:
        if why != self.failed:
            logger.error("assets: %s; they are left alone", why, exc_info=error)
        self.failed = why

    # ------------------------------------------------------------ without a round

    async def local(self) -> None:
        """Follow the local plan where no round's interval is now, until cancelled."""
        while True:
            self._floor.news.clear()
            pause_s = await self._slot(self._floor.now_ms())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._floor.news.wait()

    async def _slot(self, now_ms: int) -> float:
        """Plan the rest of a slot, and follow it until a round begins; returns how long to rest, seconds."""
        made = self._virtual(now_ms)
        if made is None:
            return AGAIN_S
        try:
            planned, splits = await self._floor.plan(made)
        except PlannerError:
            return AGAIN_S
        moving = asyncio.ensure_future(
            self._move(planned.schedule_w, splits, made.begins_ms, made.begins_ms + made.duration_ms, Rank.SCHEDULE)
        )
        try:
            await self._until_a_round_begins(moving)
        finally:
            moving.cancel()
            await asyncio.wait({moving})
        followed = moving.cancelled() or moving.result().conduct == Conduct.FOLLOWED
        return 0.0 if followed else AGAIN_S

    async def _until_a_round_begins(self, moving: asyncio.Future[Followed]) -> None:
        moving.add_done_callback(lambda _: self._floor.news.set())
        while not moving.done() and self._floor.rounds.at(self._floor.now_ms()) is None:
            await self._floor.news.wait()
            self._floor.news.clear()

    def _virtual(self, now_ms: int) -> Round | None:
        """What is left of the slot before the next round; None without prices, within a round, or just before it."""
        prices = self._floor.book.current(now_ms)
        ends_ms = min(
            [now_ms - now_ms % SLOT_MS + SLOT_MS, *(known.round.begins_ms for known in self._floor.rounds.upcoming)]
        )
        if prices is None or ends_ms - now_ms < 1000:  # noqa: PLR2004  a second
            return None
        return Round(
            market=self._floor.market,
            number=0,
            time_ms=now_ms,
            gate_ms=now_ms,
            begins_ms=now_ms,
            duration_ms=ends_ms - now_ms,
            currency=prices.currency,
            decimals=prices.decimals,
            least_ticks=-TICKS_MAX,
            most_ticks=TICKS_MAX,
            pricing=Pricing.UNIFORM,
            programme="none",
        )
