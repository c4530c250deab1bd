"""The tutor: what the planner learns from, and what is kept of it for the next run of the agent.

After a restart the planner gets its own state back, then the prices that the log holds; after each slot it is told what
the site took. What it has learned is kept in the journal every hour and at a stop: no evidence, and learned anew where
it is lost.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from energybid.agent.market.desk import PlannerError
from energybid.core.errors import JournalStalledError

if TYPE_CHECKING:
    from energybid.agent.market.floor import Floor
    from energybid.agent.market.ports import Planner
    from energybid.sync.market import Prices

logger = logging.getLogger("energybid.market")

PREFIX = "planner/"
"""Of its keys in the journal."""
KEEP_EVERY_S = 3600.0
SLOT_MS = 900_000
"""Of which it is told the load."""
LOOK_S = 30.0
"""So often at least the wall clock is looked at: it may step."""


class Tutor:
    """Teaches the planner of one session."""

    def __init__(self, floor: Floor) -> None:
        """Teach ``floor``'s planner."""
        self._floor = floor
        self._kept: dict[str, bytes] = {}
        """What the journal holds of its state."""
        self._prices: list[Prices] = []
        """What the log holds of prices, until it knows them."""
        self.ready = False
        """The planner knows what an earlier run has kept, as far as it can be read: only then is it kept anew."""

    async def recall(self, prices: list[Prices]) -> None:
        """Find what an earlier run has kept.

        Args:
            prices: What the log holds, oldest first.
        """
        journal = self._floor.recorder.journal
        self._kept = await self._floor.platform.offload(journal.recall, PREFIX)
        self._prices = prices

    async def restore(self) -> None:
        """Have the planner know what it knew; whatever it is asked meanwhile comes after."""
        floor = self._floor
        state = {key.removeprefix(PREFIX): piece for key, piece in self._kept.items()}
        prices, self._prices = self._prices, []
        try:
            await floor.desk.ask(restored, floor.site.planner, state, prices)
        except PlannerError:
            logger.warning("the planner begins anew")
        self.ready = True

    async def observe(self) -> None:
        """Tell the planner what the site took, each slot that is over."""
        floor = self._floor
        begins_ms = floor.now_ms() // SLOT_MS * SLOT_MS
        while True:
            await asyncio.sleep(min(LOOK_S, max(1.0, (begins_ms + SLOT_MS - floor.now_ms()) / 1000)))
            now_ms = floor.now_ms()
            if begins_ms <= now_ms < begins_ms + SLOT_MS:
                continue
            if begins_ms + SLOT_MS <= now_ms < begins_ms + 2 * SLOT_MS:  # else the clock has stepped
                await self._tell(begins_ms)
            begins_ms = now_ms // SLOT_MS * SLOT_MS

    async def _tell(self, begins_ms: int) -> None:
        floor = self._floor
        slot = floor.site.assets.slot(begins_ms, begins_ms + SLOT_MS)
        weather = floor.site.assets.weather(begins_ms, begins_ms + SLOT_MS)
        try:
            if weather.outside_c or weather.sun_w:
                await floor.desk.ask(floor.site.planner.weather, begins_ms, weather)
            if slot is not None:
                await floor.desk.ask(floor.site.planner.load, begins_ms, slot.net_w, slot.controlled_w)
        except PlannerError:
            return

    async def roll_back(self, model: str | None) -> tuple[str, int, str]:
        """A person wants the load forecast's version before; kept at once.

        Returns:
            The model, its version now, and why it does not survive a restart (empty where it does).

        Raises:
            PlannerError: There is none, or no answer.
        """
        floor = self._floor
        found = await floor.desk.ask(rolled_back, floor.site.planner, model)
        if isinstance(found, str):
            raise PlannerError(found)
        name, version = found
        return name, version, await self.keep()

    async def keep_on(self) -> None:
        """Keep it every hour, until cancelled."""
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            await self.keep()

    async def keep(self) -> str:
        """Keep what the planner has learned, where that is new; says why it was not kept, or nothing."""
        floor = self._floor
        if not self.ready:
            return "the planner does not know yet what an earlier run has kept"
        try:
            pieces = await floor.desk.ask(floor.site.planner.state)
            state = {PREFIX + name: piece for name, piece in pieces.items()}
            if state != self._kept:
                await floor.platform.offload(floor.recorder.journal.remember_all, state)
                self._kept = state
        except PlannerError as error:
            return str(error)
        except (JournalStalledError, ValueError) as error:
            logger.warning("what the planner has learned is not kept: %s", error)
            return str(error)
        return ""


def restored(planner: Planner, state: dict[str, bytes], learned: list[Prices]) -> None:
    """Give a planner back what it knew, in its own thread."""
    planner.restore(state)
    for made in learned:
        planner.prices(made)


def rolled_back(planner: Planner, model: str | None) -> tuple[str, int] | str:
    """Go back, in the planner's thread; or why not, which is no fault of it."""
    try:
        return planner.roll_back(model)
    except ValueError as error:
        return str(error)
