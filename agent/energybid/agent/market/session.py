"""A session of the bidder: messages in, time passing, answers out, from what the log says to its end.

Here lives what happens to a round and in which order it is logged, followed, confirmed and told. What to bid is in
``offers``, what is followed in ``deliveries``, what the planner learns in ``tutor``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import TYPE_CHECKING, Any

from energybid.agent.market.deliveries import Deliveries
from energybid.agent.market.desk import PlannerError
from energybid.agent.market.messages import too_long
from energybid.agent.market.offers import Offers
from energybid.agent.market.outbox import Letter
from energybid.agent.market.past import Kept, Past
from energybid.agent.market.tutor import Tutor
from energybid.agent.rounds import KEPT, Event, Known, RefusedMessageError, State
from energybid.core.entries import MarketKind, MarketReason
from energybid.core.errors import EvidenceError, JournalError
from energybid.sync import market
from energybid.sync.market import Confirmation, Prices, Verdict

if TYPE_CHECKING:
    from energybid.agent.market.floor import Floor
    from energybid.agent.market.ports import Followed
    from energybid.core.ports import Message

logger = logging.getLogger("energybid.market")

RESTART_S = 60.0
"""After a fault of this program, or of the assets' meters, before it goes on."""
LOOK_BACK_MS = 8 * 86_400_000
"""So far back the log is read at the start: a round may begin in two days, and its statement come days later."""
ROWS_MAX = 200_000
"""Rows of the journal that are looked at for it, at most; see ``past``."""
BREATHE = 16
"""Messages taken back before others on the loop have their turn."""
TICK_S = 1.0
"""The wall clock is looked at so often at least: it may step."""
RESENT_MS, RESENT_MAX = 86_400_000, 32
"""Confirmations without a statement that are sent again after a restart: so old and so many at most."""
CURVE_MAX = 32
"""Steps of a bid in the status, at most; a longer one is in the log and in ``energybid bids``."""
_SAID = ("version", "versions", "net_w", "price", "verdict", "schedule_w", "delivered_wh", "amount")
_NO_TEXT = re.compile(r"[^A-Za-z0-9._:/ -]")


class Session:
    """One run of the bidder, from what the log says to its end."""

    def __init__(self, floor: Floor, kinds: dict[str, int], queue: asyncio.Queue[Message]) -> None:
        """Begin without any round.

        Args:
            floor: What is shared.
            kinds: Topic → MarketKind.
            queue: Messages as they come.
        """
        self._floor, self._kinds, self._queue = floor, kinds, queue
        self._offers = Offers(floor)
        self._deliveries: Deliveries | None = None
        self._moved = asyncio.Event()
        """A round is new, or ends otherwise than time had it: look when to wake again."""
        self.tutor = Tutor(floor)

    async def run(self) -> None:
        """Take part until cancelled."""
        await self._recall()
        floor = self._floor
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._deliveries = Deliveries(floor, tasks)
            tasks.create_task(self.tutor.restore())
            self._resume()
            tasks.create_task(self._take_messages())
            tasks.create_task(self._let_time_pass())
            tasks.create_task(self._offers.run())
            tasks.create_task(self._deliveries.local())
            tasks.create_task(floor.outbox.run())
            tasks.create_task(self._sample())
            tasks.create_task(self.tutor.observe())
            tasks.create_task(self.tutor.keep_on())

    def connected(self) -> None:
        """There is a connection again: what waits is sent."""
        self._floor.outbox.hurry()

    def send(self, about: object, letter: Letter) -> None:
        """Have something sent that is not evidence."""
        self._floor.outbox.put(about, letter)

    # ------------------------------------------------------------ messages

    async def _take_messages(self) -> None:
        while True:
            message = await self._queue.get()
            await self._floor.log.room()
            kind = self._kinds.get(message.topic, MarketKind.UNKNOWN)
            now_ms = self._pass_time()
            if too_long(message.payload):
                self._refuse(kind, MarketReason.TOO_LONG, message, now_ms, "a message that is too long")
                continue
            try:
                sequence = self._take(kind, message, now_ms)
            except RefusedMessageError as error:
                reason: int = getattr(MarketReason, error.reason.name)
                self._refuse(kind, reason, message, now_ms, str(error))
            else:
                if sequence is not None:
                    await self._floor.log.secured(sequence)

    def _refuse(self, kind: int, reason: int, message: Message, now_ms: int, what: str) -> None:
        self._floor.log.refuse(kind, reason, message.payload, now_ms, what)

    def _take(self, kind: int, message: Message, now_ms: int) -> int | None:
        """Judge a message, and do what it asks for; the sequence of its entry, None where it is no news."""
        payload, floor = message.payload, self._floor
        rounds = floor.rounds
        match kind:
            case MarketKind.ROUND:
                if any(known.round_hash == market.digest(payload) for known in rounds.known.values()):
                    return None  # kept by the broker, and sent at every connection
                known = rounds.announced(payload, now_ms)
                sequence = floor.log.taken(kind, payload, now_ms)
                self._offers.want(known.round.number)
            case MarketKind.PRICES:
                made = floor.book.take(payload, now_ms)
                if made is None:
                    return None
                sequence = floor.log.taken(kind, payload, now_ms)
                self._tasks.create_task(self._tell_prices(made))
            case MarketKind.AWARD:
                known = rounds.awarded(payload, now_ms, retained=message.retained)
                self._say(known, "awarded")
                sequence = floor.log.taken(kind, payload, now_ms)
            case _:
                known = rounds.stated(payload, retained=message.retained)
                sequence = floor.log.taken(kind, payload, now_ms)
                self._say(known, "stated")
                floor.tell()
        self._moved.set()
        return sequence

    @staticmethod
    def _say(known: Known, what: str) -> None:
        facts = {key: value for key, value in round_status(known).items() if key in _SAID}
        logger.info("round %d %s: %s", known.round.number, what, facts)

    async def _tell_prices(self, made: Prices) -> None:
        try:
            await self._floor.desk.ask(self._floor.site.planner.prices, made)
        except PlannerError:
            return
        self._offers.want_all()
        self._floor.news.set()

    # ------------------------------------------------------------ time

    async def _let_time_pass(self) -> None:
        while True:
            self._moved.clear()
            now_ms = self._pass_time()
            next_ms = self._floor.rounds.next_ms()
            pause_s = TICK_S if next_ms is None else min(TICK_S, max(0.0, (next_ms - now_ms) / 1000))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._moved.wait()

    def _pass_time(self) -> int:
        """Have the rounds know what time it is, and act on what it brought; returns it."""
        now_ms = self._floor.now_ms()
        for known, event in self._floor.rounds.advance(now_ms):
            if event is Event.BEGIN and now_ms < known.ends_ms:
                self._begin(known)
            elif event is Event.END:
                self._tasks.create_task(self._end(known))
        return now_ms

    def _begin(self, known: Known) -> None:
        if self._deliveries is not None:
            self._deliveries.begin(known)

    async def _end(self, known: Known) -> None:
        """The interval is over: confirm what was awarded."""
        if self._deliveries is None:
            return
        followed = await self._deliveries.end(known)
        self._floor.tell()
        if known.state in {State.DELIVERED, State.SETTLED} and not known.confirmation:
            await self._confirm(known, followed)

    async def _confirm(self, known: Known, followed: Followed) -> None:
        floor = self._floor
        await floor.log.room()
        now_ms = floor.now_ms()
        confirmation = Confirmation(
            market=floor.market,
            number=known.round.number,
            origin=floor.origin,
            award_hash=known.award_hash,
            time_ms=now_ms,
            conduct=followed.conduct,
            reason=_NO_TEXT.sub("-", followed.reason)[:64] or "-",
        )
        message = market.sign(confirmation, floor.key)
        sequence = floor.log.taken(MarketKind.CONFIRMATION, message, now_ms)
        if sequence is None:
            return
        floor.rounds.confirmed(confirmation, message)
        await floor.log.kept(sequence)
        self._send_confirmation(known)

    def _send_confirmation(self, known: Known) -> None:
        floor, number = self._floor, known.round.number
        until_ms = known.ends_ms + LOOK_BACK_MS
        floor.outbox.put(("confirmation", number), Letter(floor.topics.dispatch, known.confirmation, until_ms))

    # ------------------------------------------------------------ over a restart

    async def _recall(self) -> None:
        """Take back from the journal what earlier runs knew."""
        await self._floor.site.assets.recall()
        made: list[Prices] = []
        strange = 0
        for number, kept in enumerate(await self._read_back()):
            strange += not self._restore(kept, made)
            if not number % BREATHE:
                await asyncio.sleep(0)
        if strange:
            logger.warning("%d messages in the log are of another market, or another key of it", strange)
        await self._floor.recall()
        await self.tutor.recall(made)

    async def _read_back(self) -> list[Kept]:
        """The messages of the last days that count, oldest first."""
        floor = self._floor
        past = Past(floor.recorder.journal, floor.now_ms() - LOOK_BACK_MS, ROWS_MAX)
        parts: list[list[Kept]] = []
        rounds = 0
        while rounds < KEPT and (part := await floor.platform.offload(past.look)) is not None:
            parts.append([kept for kept in part if kept.entry.reason == MarketReason.NONE])
            rounds += sum(kept.entry.kind == MarketKind.ROUND for kept in parts[-1])
        return [kept for part in reversed(parts) for kept in part]

    def _restore(self, kept: Kept, made: list[Prices]) -> bool:
        """Take back one message; False where it is not of this market and key, or does not fit those before it."""
        entry = kept.entry
        try:
            if entry.kind == MarketKind.PRICES:
                prices = self._floor.book.take(entry.message, entry.time_ms, from_log=True)
                made += [prices] if prices else []
            else:
                self._floor.rounds.restore([(entry.time_ms, entry.message)])
        except EvidenceError:
            return False
        return True

    def _resume(self) -> None:
        """Go on where the rounds are."""
        floor = self._floor
        now_ms = floor.now_ms()
        floor.rounds.advance(now_ms)
        for known in floor.rounds.upcoming:
            number = known.round.number
            if Event.BEGIN in known.passed:
                self._begin(known)
            elif known.state is State.ANNOUNCED:
                self._offers.want(number)
            elif known.state is State.BID and Event.GATE not in known.passed:
                floor.outbox.put(("bid", number), Letter(floor.topics.bid, known.bid_message, known.round.gate_ms))
        ended = [known for known in floor.rounds.known.values() if known.state is State.DELIVERED]
        for known in [known for known in ended if now_ms - known.ends_ms < RESENT_MS][-RESENT_MAX:]:
            if known.confirmation:
                self._send_confirmation(known)
            else:
                self._tasks.create_task(self._end(known))

    async def _sample(self) -> None:
        """Let the assets look at their meters; a fault of theirs is theirs alone."""
        while True:
            try:
                await self._floor.site.assets.run()
            except JournalError:
                raise
            except Exception:
                logger.exception("the state of the assets is not known for a while")
            await asyncio.sleep(RESTART_S)

    # ------------------------------------------------------------ status

    def status(self) -> dict[str, Any]:
        """For the status file."""
        floor = self._floor
        now_ms = floor.now_ms()
        return {
            "target_w": self._deliveries.target_w if self._deliveries else None,
            "asset_error": self._deliveries.failed if self._deliveries else "",
            "prices": floor.book.status(now_ms),
            "waiting": len(floor.outbox),
            "send_error": floor.outbox.refused,
            "rounds": [round_status(known) for known in list(floor.rounds.known.values())[-12:]],
        }


def round_status(known: Known) -> dict[str, Any]:
    """A round in the status: small."""
    made, award, statement = known.round, known.award, known.statement
    found: dict[str, Any] = {
        "number": made.number,
        "state": known.state.value,
        "begins_ms": made.begins_ms,
        "ends_ms": known.ends_ms,
    }
    if known.bid:
        found |= {"version": known.bid.version, "schedule_w": known.bid.schedule_w}
        if known.versions > known.bid.version:
            found["versions"] = known.versions
        if known.bid.steps and len(known.bid.steps) <= CURVE_MAX:
            found["floor_w"] = known.bid.floor_w
            found["steps"] = [
                (f"{market.price(ticks, made.decimals):f}", power_w, divisible)
                for ticks, power_w, divisible in known.bid.steps
            ]
    if award and award.verdict == Verdict.AWARDED:
        found |= {"net_w": award.net_w, "price": f"{market.price(award.ticks, made.decimals):f} {made.currency}/MWh"}
    elif award:
        found["verdict"] = Verdict(award.verdict).name.lower()
    if statement:
        found["delivered_wh"] = statement.delivered_wh
        found["amount"] = f"{market.price(statement.amount, made.decimals):f} {made.currency}"
    return found
