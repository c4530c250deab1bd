"""The market itself: moments and messages in, announcements, prices, awards and statements out. Sans I/O, no clock.

It announces rounds, takes bids until their gates, clears, awards, takes confirmations, and settles from what the
gateways logged. Whatever is signed is in the store, with what is to be sent, before it is sent: a market that starts
again goes on from there, and a round whose interval began meanwhile lapses. Everything here runs in one thread.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from energybid.core.cose import Signer
from energybid.core.errors import EvidenceError
from energybid.core.ports import Message
from energybid.core.prover import History, LostError
from energybid.simulator.market import clearing
from energybid.simulator.market.clearing import Outcome
from energybid.simulator.market.store import AwardRow, BidRow, RoundRow, Store
from energybid.simulator.market.terms import Member, Terms
from energybid.sync import market
from energybid.sync.market import Award, Bid, Conduct, Confirmation, PriceCurve, Prices, Round, Verdict
from energybid.sync.settling import Logs, Messages, Never, Ready
from energybid.sync.topics import market_topics, parse

OpenLogs = Callable[[], AbstractContextManager[Sequence[History]]]
"""Every epoch of every gateway that the head-end holds, oldest first; good until the context ends."""
KeepBundle = Callable[[str, bytes], None]
"""Writes an evidence bundle: its name without a folder, its bytes."""

REST = ""
"""Bidder of the rest of the market; no gateway is called so."""
LAPSED = "lapsed"
"""Outcome of a round that could not be cleared before its interval began."""
REAL_TIME_STEPS = 24
DAY_AHEAD_HOURS, DAY_AHEAD_LEFT = 48, 24
"""So many are published, anew when no more than ``DAY_AHEAD_LEFT`` are left."""
WH_PER_W_MS = 3_600_000


class Event(NamedTuple):
    """Something that happened: one JSON line."""

    kind: str
    """announced, prices, bid, refused, cleared, confirmed, settled, unsettled."""
    facts: Mapping[str, Any]


class RefusedError(EvidenceError):
    """A message of a gateway that counts for nothing."""


def _need(holds: object, why: str) -> None:
    if not holds:
        raise RefusedError(why)


class Operator:
    """One market."""

    def __init__(
        self,
        store: Store,
        terms: Terms,
        members: Iterable[Member],
        signer: Signer,
        *,
        open_logs: OpenLogs | None = None,
        keep_bundle: KeepBundle | None = None,
    ) -> None:
        """Go on from the store.

        Args:
            store: An open database.
            terms: The rules.
            members: Gateways that may bid.
            signer: The market's key.
            open_logs: Where readings are; None: nothing is settled.
            keep_bundle: Where evidence goes; None: nowhere.
        """
        self._store, self._terms, self._signer = store, terms, signer
        self.members = {member.origin: member for member in members}
        self._topics = market_topics(terms.name)
        self._open_logs, self._keep_bundle = open_logs, keep_bundle
        self._logs: dict[str, Logs] = {}
        self._tried_ms: dict[tuple[int, str], int] = {}

    @property
    def terms(self) -> Terms:
        """The rules."""
        return self._terms

    # ------------------------------------------------------------ time

    def advance(self, now_ms: int) -> list[Event]:
        """Do what is due.

        Raises:
            JournalError: The database failed: what is done is stored or not begun.
        """
        events: list[Event] = []
        with self._store.transaction():
            events += self._publish_prices(now_ms)
            events += self._announce(now_ms)
            self._store.forget(now_ms - self._terms.keep_ms)
        for row in self._store.open_rounds():
            made = market.told(Round, row.message)
            if row.outcome is None and now_ms > made.gate_ms:
                with self._store.transaction():
                    events.append(self._clear(row, made, now_ms))
        return [*events, *self._settle_all(now_ms)]

    def next_ms(self, now_ms: int) -> int:
        """When something is due next, as far as is known now."""
        terms = self._terms
        period = terms.period_ms
        moments = [now_ms // period * period + period, self._next_begins(now_ms) - terms.announce_ms]
        for row in self._store.open_rounds():
            made = market.told(Round, row.message)
            if row.outcome is None:
                moments.append(made.gate_ms + 1)
            else:
                moments += [
                    self._due_ms(row, made, award) for award in self._store.awards(row.number) if not award.done
                ]
        return max(now_ms, min(moments))

    # ------------------------------------------------------------ prices

    def _publish_prices(self, now_ms: int) -> Iterator[Event]:
        terms = self._terms
        hour_ms = terms.prices.hour_ms
        if self._store.number("day-ahead ends") - now_ms <= DAY_AHEAD_LEFT * hour_ms:
            begins_ms = now_ms // hour_ms * hour_ms
            ends_ms = begins_ms + DAY_AHEAD_HOURS * hour_ms
            prices = [terms.prices.day_ahead(at_ms) for at_ms in range(begins_ms, ends_ms, hour_ms)]
            self._store.set_number("day-ahead ends", ends_ms)
            yield self._prices(PriceCurve.DAY_AHEAD, (begins_ms, hour_ms), map(terms.ticks, prices), now_ms)
        last_ms = now_ms // terms.period_ms * terms.period_ms
        if self._store.number("real-time begins") < last_ms:
            self._store.set_number("real-time begins", last_ms)
            first_ms = last_ms - (REAL_TIME_STEPS - 1) * terms.period_ms
            cleared = {row.begins_ms: row.ticks for row in self._store.last_rounds(2 * REAL_TIME_STEPS)}
            ticks = [self._real_time(cleared, at_ms) for at_ms in range(first_ms, last_ms + 1, terms.period_ms)]
            yield self._prices(PriceCurve.REAL_TIME, (first_ms, terms.period_ms), ticks, now_ms)

    def _real_time(self, cleared: Mapping[int, int | None], at_ms: int) -> int:
        """The price at which a round was cleared; without one that of the rest of the market."""
        ticks = cleared.get(at_ms)
        return self._terms.ticks(self._terms.prices.real_time(at_ms)) if ticks is None else ticks

    def _prices(self, curve: PriceCurve, steps: tuple[int, int], ticks: Iterable[int], now_ms: int) -> Event:
        name = curve.name.lower().replace("_", "-")
        counter = self._store.next_number(name)
        message = Prices(
            self._terms.name,
            curve,
            counter,
            now_ms,
            self._terms.currency,
            self._terms.decimals,
            *steps,
            tuple(ticks),
        )
        topic = self._topics.day_ahead if curve == PriceCurve.DAY_AHEAD else self._topics.real_time
        self._store.retain(topic, market.sign(message, self._signer))
        facts = {"curve": name, "counter": counter, "begins_ms": steps[0], "step_ms": steps[1]}
        return Event("prices", {**facts, "prices": [str(self._price(each)) for each in message.ticks]})

    # ------------------------------------------------------------ announcing

    def _next_begins(self, now_ms: int) -> int:
        """Begin of the next round that can be announced: a fair part of the time to bid is left."""
        terms = self._terms
        fair_ms = (terms.announce_ms - terms.gate_ms) // 4
        least_ms = max(now_ms + terms.gate_ms + fair_ms, self._store.last_begins_ms() + 1)
        return -(-least_ms // terms.period_ms) * terms.period_ms

    def _announce(self, now_ms: int) -> Iterator[Event]:
        terms = self._terms
        while (begins_ms := self._next_begins(now_ms)) - terms.announce_ms <= now_ms:
            number = self._store.next_number("round")
            made = Round(
                market=terms.name,
                number=number,
                time_ms=now_ms,
                gate_ms=begins_ms - terms.gate_ms,
                begins_ms=begins_ms,
                duration_ms=terms.period_ms,
                currency=terms.currency,
                decimals=terms.decimals,
                least_ticks=terms.least_ticks,
                most_ticks=terms.most_ticks,
                pricing=terms.pricing,
                programme=terms.programme,
            )
            message = market.sign(made, self._signer)
            self._store.add_round(number, begins_ms, message)
            self._store.retain(self._topics.round, message)
            yield Event("announced", {"round": number, "gate_ms": made.gate_ms, "begins_ms": begins_ms})

    # ------------------------------------------------------------ messages

    def take(self, messages: Iterable[tuple[Message, int]]) -> list[Event]:
        """Messages came; all that they change is stored at once, or nothing.

        Args:
            messages: Each of any topic, with the moment when it came: what counts for the gate.

        Raises:
            JournalError: The database failed; nothing is stored.
        """
        with self._store.transaction():
            return [self._judge(message, at_ms) for message, at_ms in messages]

    def _judge(self, message: Message, now_ms: int) -> Event:
        """Nothing is stored of what is refused."""
        named = parse(message.topic)
        origin = "/".join(named[:2]) if named else message.topic[:100]
        try:
            return self._message(named[2] if named else "", origin, message, now_ms)
        except EvidenceError as error:
            return Event("refused", {"gateway": origin, "why": str(error)})

    def _message(self, kind: str, origin: str, message: Message, now_ms: int) -> Event:
        member = self.members.get(origin)
        if member is None or kind not in {"bid", "dispatch"}:
            raise RefusedError("no gateway of this market")
        _need(not message.retained, "retained by the broker: it may be from any time")
        if kind == "dispatch":
            return self._confirmation(member, message.payload)
        bid = self._read(Bid, message.payload, member)
        row = self._store.round(bid.number)
        if row is None:
            raise RefusedError(f"bid of round {bid.number}, which is not known")
        made = market.told(Round, row.message)
        try:
            self._check_bid(bid, made, row, now_ms)
        except RefusedError as error:
            self._decline(member, bid, row, message.payload, now_ms)
            return Event("refused", {"gateway": origin, "why": str(error)})
        self._store.put_bid(bid.number, BidRow(origin, bid.version, now_ms, message.payload))
        facts = {"round": bid.number, "gateway": origin, "version": bid.version, "schedule_w": bid.schedule_w}
        return Event("bid", {**facts, "floor_w": bid.floor_w, "steps": len(bid.steps)})

    def _read(self, kind: type[market.M], message: bytes, member: Member) -> market.M:
        read = market.read(kind, message, member.key)
        _need(read.market == self._terms.name, f"for market {read.market}")
        _need(getattr(read, "origin", None) == member.origin, "of another gateway")
        return read

    def _check_bid(self, bid: Bid, made: Round, row: RoundRow, now_ms: int) -> None:
        what = f"bid {bid.version} of round {bid.number}"
        _need(bid.round_hash == market.digest(row.message), f"{what} answers another announcement")
        before = self._store.bid(bid.number, bid.origin)
        _need(before is None or bid.version > before.version, f"{what} was there before, or a later one")
        _need(now_ms <= made.gate_ms and row.outcome is None, f"{what} came after the gate had closed")
        _need(bid.time_ms <= made.gate_ms, f"{what} was made after the gate closes, by its own time")
        _need(bid.expires_ms > made.gate_ms, f"{what} expires before the gate closes")

    def _decline(self, member: Member, bid: Bid, row: RoundRow, message: bytes, now_ms: int) -> None:
        """Tell a gateway that its only bid does not count, as long as that is news."""
        made = market.told(Round, row.message)
        answers = bid.round_hash == market.digest(row.message) and now_ms < made.begins_ms
        told = self._store.bid(bid.number, bid.origin) or any(
            award.origin == bid.origin for award in self._store.awards(row.number)
        )
        if answers and not told:
            award = self._award(member, bid, message, now_ms, verdict=Verdict.REFUSED)
            self._send_award(member, made, award)
            self._store.add_awards(row.number, [(member.origin, award, True)])

    def _confirmation(self, member: Member, message: bytes) -> Event:
        done = self._read(Confirmation, message, member)
        award = next((each for each in self._store.awards(done.number) if each.origin == member.origin), None)
        what = f"confirmation of round {done.number}"
        _need(award and market.digest(award.message) == done.award_hash, f"{what} is for no award of it")
        self._store.confirm(done.number, member.origin, message)
        self._tried_ms.pop((done.number, member.origin), None)
        facts = {"round": done.number, "gateway": member.origin, "conduct": Conduct(done.conduct).name.lower()}
        return Event("confirmed", {**facts, "reason": done.reason})

    # ------------------------------------------------------------ clearing

    def _clear(self, row: RoundRow, made: Round, now_ms: int) -> Event:
        if now_ms >= made.begins_ms:
            self._store.clear_round(row.number, LAPSED, None, 0, done=True)
            return Event("cleared", {"round": row.number, "outcome": LAPSED, "price": None, "awards": []})
        offers = {bid.origin: bid for bid in self._store.bids(row.number)}
        bids = {origin: market.told(Bid, offer.message) for origin, offer in offers.items()}
        live = {origin: bid for origin, bid in bids.items() if bid.expires_ms > now_ms and origin in self.members}
        reference = self._terms.ticks(self._terms.prices.real_time(made.begins_ms))
        book = {REST: self._terms.rest.bid(reference)} if self._terms.rest.power_w else {}
        book |= {origin: clearing.Bid(bid.curve, bid.schedule_w) for origin, bid in live.items()}
        found = clearing.clear(book, least_ticks=made.least_ticks, most_ticks=made.most_ticks)
        awards = []
        for origin, bid in bids.items():
            if member := self.members.get(origin):
                verdict = _verdict(found, expired=origin not in live)
                message = self._award(member, bid, offers[origin].message, now_ms, verdict=verdict, found=found)
                self._send_award(member, made, message)
                awards.append((origin, message, verdict != Verdict.AWARDED or self._open_logs is None))
        self._store.add_awards(row.number, awards)
        done = all(settled for _, _, settled in awards)
        self._store.clear_round(row.number, found.outcome.value, found.ticks, len(found.declined), done=done)
        facts = {"begins_ms": made.begins_ms, "ends_ms": made.begins_ms + made.duration_ms}
        return Event("cleared", {**self._cleared(row.number, found, bids, awards), **facts})

    def _award(
        self,
        member: Member,
        bid: Bid,
        message: bytes,
        now_ms: int,
        *,
        verdict: Verdict,
        found: clearing.Clearing | None = None,
    ) -> bytes:
        awarded = verdict == Verdict.AWARDED and found is not None
        award = Award(
            *bid[:3],
            bid_hash=market.digest(message),
            counter=self._store.next_number(f"award/{member.origin}"),
            time_ms=now_ms,
            verdict=verdict,
            ticks=(found.ticks or 0) if awarded and found else 0,
            net_w=found.net_w[member.origin] if awarded and found else bid.schedule_w,
        )
        return market.sign(award, self._signer)

    def _send_award(self, member: Member, made: Round, message: bytes) -> None:
        self._store.post(member.topics.award, message, made.begins_ms)

    def _cleared(
        self,
        number: int,
        found: clearing.Clearing,
        bids: Mapping[str, Bid],
        awards: Sequence[tuple[str, bytes, bool]],
    ) -> dict[str, Any]:
        told = [(origin, bids[origin], market.told(Award, message)) for origin, message, _ in awards]
        return {
            "round": number,
            "outcome": found.outcome.value,
            "price": None if found.ticks is None else str(self._price(found.ticks)),
            "currency": self._terms.currency,
            "declined": len(found.declined),
            "rest_w": found.net_w.get(REST, 0),
            "awards": [
                {
                    "gateway": origin,
                    "verdict": Verdict(award.verdict).name.lower(),
                    "schedule_w": bid.schedule_w,
                    "net_w": award.net_w,
                }
                for origin, bid, award in told
            ],
        }

    def _price(self, ticks: int) -> Any:  # noqa: ANN401  Decimal
        return market.price(ticks, self._terms.decimals)

    # ------------------------------------------------------------ settling

    def _due_ms(self, row: RoundRow, made: Round, award: AwardRow) -> int:
        """When an award is to be settled, or tried again."""
        terms, ends_ms = self._terms, made.begins_ms + made.duration_ms
        wait_ms = terms.settle_after_ms if award.confirmation else max(terms.confirm_within_ms, terms.settle_after_ms)
        tried_ms = self._tried_ms.get((row.number, award.origin))
        return ends_ms + wait_ms if tried_ms is None else tried_ms + terms.settle_every_ms

    def _settle_all(self, now_ms: int) -> list[Event]:
        if self._open_logs is None:
            return []
        due = [
            (row, made, award)
            for row in self._store.open_rounds()
            if row.outcome is not None
            for made in [market.told(Round, row.message)]
            for award in self._store.awards(row.number)
            if not award.done and self._due_ms(row, made, award) <= now_ms
        ]
        if not due:
            return []
        events: list[Event] = []
        with self._open_logs() as histories:
            self._read_logs({award.origin for _, _, award in due}, histories)
            for row, made, award in due:
                self._tried_ms[row.number, award.origin] = now_ms
                with self._store.transaction():
                    events += self._settle(row, made, award, now_ms)
                    if all(each.done for each in self._store.awards(row.number)):
                        self._store.finish_round(row.number)
        return events

    def _read_logs(self, origins: set[str], histories: Sequence[History]) -> None:
        for origin in origins & self.members.keys():
            logs = self._logs.setdefault(origin, Logs(self.members[origin].meter))
            logs.read([history for history in histories if history.origin == origin])

    def _settle(self, row: RoundRow, made: Round, award: AwardRow, now_ms: int) -> Iterator[Event]:
        offer, member = self._store.bid(row.number, award.origin), self.members.get(award.origin)
        if offer is None or member is None:
            yield self._never(row, award, "the gateway is no member any more")
            return
        bid, awarded = market.told(Bid, offer.message), market.told(Award, award.message)
        try:
            found = self._logs[award.origin].settle(made, bid, awarded, self._terms.inputs(member))
        except (ValueError, LostError, EvidenceError) as error:
            found = Never(str(error))
        late = now_ms > made.begins_ms + made.duration_ms + self._terms.settle_within_ms
        if isinstance(found, Ready):
            yield self._state(row, bid, award, found, now_ms)
        elif isinstance(found, Never) or late:
            yield self._never(row, award, found.why)

    def _never(self, row: RoundRow, award: AwardRow, why: str) -> Event:
        self._store.settle(row.number, award.origin, None, None)
        self._tried_ms.pop((row.number, award.origin), None)
        return Event("unsettled", {"round": row.number, "gateway": award.origin, "why": why})

    def _state(self, row: RoundRow, bid: Bid, award: AwardRow, ready: Ready, now_ms: int) -> Event:
        """Sign what an award is worth, and keep the evidence."""
        member, store = self.members[award.origin], self._store
        counter = store.next_number(f"statement/{award.origin}")
        statement = ready.statement(award.message, counter=counter, time_ms=now_ms)
        message = market.sign(statement, self._signer)
        store.settle(row.number, award.origin, message, ready.inputs.encode())
        store.post(member.topics.statement, message, now_ms + self._terms.settle_within_ms)
        self._tried_ms.pop((row.number, award.origin), None)
        offer = store.bid(row.number, award.origin)
        if self._keep_bundle is not None and offer is not None:
            messages = Messages(row.message, offer.message, award.message, award.confirmation, message)
            data = self._logs[award.origin].bundle(messages, ready.inputs).encode()
            self._keep_bundle(f"{row.number}-{award.origin.replace('/', '-')}.bundle", data)
        awarded = market.told(Award, award.message)
        return Event(
            "settled",
            {
                "round": row.number,
                "gateway": award.origin,
                "awarded_wh": round((bid.schedule_w - awarded.net_w) * self._terms.period_ms / WH_PER_W_MS),
                "baseline_wh": statement.baseline_wh,
                "actual_wh": statement.actual_wh,
                "delivered_wh": statement.delivered_wh,
                "amount": str(self._price(statement.amount)),
                "currency": self._terms.currency,
                "confirmed": award.confirmation is not None,
            },
        )


def _verdict(found: clearing.Clearing, *, expired: bool) -> Verdict:
    if expired:
        return Verdict.REFUSED
    return Verdict.AWARDED if found.outcome is Outcome.CLEARED else Verdict.NO_TRADE
