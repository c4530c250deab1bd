"""Bids: which round gets one, when it is made anew, and its way through the log to the market.

A round is bid for as soon as it is announced, so that an outage later costs nothing. It is planned again when prices
change and once more shortly before the gate; a new version is bid where the curve has changed much, and where it is
sure to arrive: after the last one was sent, and some time before the gate.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from itertools import pairwise
from typing import TYPE_CHECKING

from energybid.agent.market.desk import PlannerError
from energybid.agent.market.outbox import Letter
from energybid.agent.rounds import Event, State
from energybid.core.entries import MarketKind
from energybid.core.errors import EvidenceError
from energybid.core.quantities import ClockState
from energybid.sync import market
from energybid.sync.market import Bid

if TYPE_CHECKING:
    from energybid.agent.market.floor import Floor
    from energybid.agent.market.ports import Planned
    from energybid.agent.market.splits import Splits
    from energybid.agent.rounds import Known

logger = logging.getLogger("energybid.market")

MUCH = 0.05
"""A curve has changed much where the area between the old and the new one is more than this share of both."""
LAST_LOOK, LAST_LOOK_MAX_MS = 0.3, 60_000
"""A round is planned once more when this share of the time from its announcement to its gate is left, or so much."""
LOOK_S = 1.0
"""So often at least it is looked whether a last look is due: the wall clock may step."""
MARGIN, MARGIN_MIN_MS = 0.1, 2_000
"""In the last tenth of that time, and in the last 2 s, no bid is replaced: the new one might come too late."""
_TAKEN = (State.BID, State.AWARDED, State.DELIVERING, State.OVERRIDDEN)


class Offers:
    """Makes the bids of one gateway."""

    def __init__(self, floor: Floor) -> None:
        """Bid for the rounds of ``floor``."""
        self._floor = floor
        self._wanted: dict[int, None] = {}
        """Rounds that are to be planned, in order."""
        self._looked: set[int] = set()
        """Rounds that had their last look."""
        self._wake = asyncio.Event()
        self._timely = True
        """The clock is set, as far as was told."""

    def want(self, number: int) -> None:
        """Plan a round, and bid for it if that makes a difference."""
        self._wanted[number] = None
        self._wake.set()

    def want_all(self) -> None:
        """Prices have changed: plan every round that can still be bid for, the next gate first."""
        for known in sorted(self._floor.rounds.upcoming, key=lambda known: known.round.gate_ms):
            if self._may_bid(known):
                self.want(known.round.number)

    async def run(self) -> None:
        """Bid until cancelled."""
        while True:
            self._wake.clear()
            self._last_looks()
            if not self._wanted:
                await self._wait()
                continue
            number = next(iter(self._wanted))
            del self._wanted[number]
            known = self._floor.rounds.known.get(number)
            if known is not None and self._may_bid(known):
                await self._offer(known)

    async def _wait(self) -> None:
        """Until something is wanted, or a round is due for its last look."""
        now_ms = self._floor.now_ms()
        due_s = [
            (last_look_ms(known) - now_ms) / 1000
            for known in self._floor.rounds.upcoming
            if Event.GATE not in known.passed and known.round.number not in self._looked
        ]
        # One that is due and can not be bid for now may be a second later.
        pause_s = min([LOOK_S, *(due for due in due_s if due > 0)]) if due_s else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()

    def _last_looks(self) -> None:
        now_ms = self._floor.now_ms()
        upcoming = self._floor.rounds.upcoming
        self._looked &= {known.round.number for known in upcoming}
        for known in upcoming:
            number = known.round.number
            if number not in self._looked and last_look_ms(known) <= now_ms and self._may_bid(known):
                self._looked.add(number)
                self.want(number)

    # ------------------------------------------------------------ one bid

    def _may_bid(self, known: Known) -> bool:
        """Whether a bid could still be made, or replaced."""
        made, now_ms = known.round, self._floor.now_ms()
        if not self._knows_time():
            return False
        if Event.GATE in known.passed or now_ms >= made.gate_ms or not self._alone(known):
            return False
        if known.state is State.ANNOUNCED:
            return True
        sent = ("bid", made.number) not in self._floor.outbox
        return known.state is State.BID and sent and now_ms < made.gate_ms - margin_ms(known)

    def _knows_time(self) -> bool:
        """A bid is a promise about a time: who does not know what time it is makes none."""
        known = self._floor.platform.clock_state() != ClockState.UNSYNCHRONISED
        if known != self._timely:
            self._timely = known
            logger.warning("the clock is %s", "set: rounds are bid for" if known else "not set: nothing is bid")
        return known

    def _alone(self, known: Known) -> bool:
        """No round with a bid has an interval that overlaps this one's: a site does one thing at a time."""
        begins_ms, ends_ms = known.round.begins_ms, known.ends_ms
        return not any(
            other is not known
            and other.state in _TAKEN
            and other.round.begins_ms < ends_ms
            and begins_ms < other.ends_ms
            for other in self._floor.rounds.upcoming
        )

    async def _offer(self, known: Known) -> None:
        try:
            planned, splits = await self._floor.plan(known.round)
        except PlannerError:
            return
        if not self._may_bid(known):
            logger.info("round %d: the bid was not ready when the gate closed", known.round.number)
            return
        if known.bid is None or changed_much(known.bid, planned):
            await self._bid(known, planned, splits)

    async def _bid(self, known: Known, planned: Planned, splits: Splits) -> None:
        floor, made, at_ms = self._floor, known.round, self._floor.now_ms()
        bid = Bid(
            market=floor.market,
            number=made.number,
            origin=floor.origin,
            round_hash=known.round_hash,
            version=known.versions + 1,
            time_ms=at_ms,
            expires_ms=made.begins_ms,
            schedule_w=planned.schedule_w,
            floor_w=planned.curve.floor_w,
            steps=tuple(map(tuple, planned.curve.steps)),  # type: ignore[arg-type]  # of steps
        )
        try:
            message = market.sign(bid, floor.key)
        except EvidenceError as error:
            logger.error("round %d: no bid: %s", made.number, error)  # noqa: TRY400  no bug of this module
            return
        floor.keep(made.number, bid.version, splits)
        sequence = floor.log.taken(MarketKind.BID, message, at_ms)
        if sequence is None:
            return
        floor.rounds.bid_made(bid, message)
        if not await floor.log.secured(sequence):
            logger.error("round %d: the bid is not sent, for the disk does not take it", made.number)
            return
        floor.outbox.put(("bid", made.number), Letter(floor.topics.bid, message, made.gate_ms))
        await floor.remember(made.number, bid.version)


def last_look_ms(known: Known) -> int:
    """Wall clock from which a round is planned for the last time."""
    span_ms = known.round.gate_ms - known.at_ms
    return known.round.gate_ms - min(int(LAST_LOOK * span_ms), LAST_LOOK_MAX_MS)


def margin_ms(known: Known) -> int:
    """How long before the gate a bid is not replaced any more."""
    return max(int(MARGIN * (known.round.gate_ms - known.at_ms)), MARGIN_MIN_MS)


def changed_much(bid: Bid, planned: Planned) -> bool:
    """Whether what would be bid now differs from what was bid by more than is worth a message."""
    old, new = bid.curve, planned.curve
    span_w = max(old.ceiling_w, new.ceiling_w) - min(old.floor_w, new.floor_w)
    ends = (bid.schedule_w, planned.schedule_w), (old.floor_w, new.floor_w), (old.ceiling_w, new.ceiling_w)
    if any(abs(before - now) > MUCH * span_w for before, now in ends):
        return True
    limits = sorted({step.ticks for curve in (old, new) for step in curve.steps})
    area = sum(abs(old.net_w(high) - new.net_w(high)) * (high - low) for low, high in pairwise(limits))
    return bool(limits) and area > MUCH * span_w * (limits[-1] - limits[0])
