"""The rounds of a market as a gateway sees them: messages and moments in, states and refusals out. Sans I/O, no clock.

A round has one state at any time, and one table says what each event makes of it; docs/market.md shows the same table.
Whatever fails before the interval begins, and in whatever phase, ends in SCHEDULED: the site follows its own schedule,
as if there were no market.
What must survive a restart (announcements, awards and statements that were accepted, bids and confirmations that were
made) is in the log, and ``Rounds.restore`` takes it back from there. ``energybid.agent.market.bidder`` holds the rounds
of the running agent.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from energybid.core import cose
from energybid.core.errors import EvidenceError
from energybid.sync import market
from energybid.sync.market import Award, Bid, Confirmation, Round, Statement, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from energybid.core.cose import PublicKey

Answer = Award | Statement
A = TypeVar("A", Award, Statement)

KEPT = 1024
"""Rounds that are remembered, for statements that come late; older ones are in the log."""
VERSIONS_KEPT = 8
"""Of a round's bid, so many versions may be awarded, the newest: a market may not have got what replaced one."""
OPEN_MAX_MS = 2 * 86_400_000
"""A round that begins later than this from now is not taken up: a market's clock or ours is wrong."""


class State(StrEnum):
    """Where a round stands."""

    ANNOUNCED = "announced"
    """A bid is to be made."""
    BID = "bid"
    """A bid is made, and sent or on its way."""
    AWARDED = "awarded"
    """The award holds and its interval is to come."""
    DELIVERING = "delivering"
    OVERRIDDEN = "overridden"
    """An award holds and is not followed: the schedule is. The statement will say what that costs."""
    SCHEDULED = "scheduled"
    """No award: the schedule is followed."""
    DELIVERED = "delivered"
    """The interval of an award is over; a statement is to come."""
    SETTLED = "settled"
    CLOSED = "closed"
    """The interval is over, without an award."""


class Event(StrEnum):
    """What can happen to a round."""

    BID_MADE = "bid made"
    GATE = "gate closes"
    AWARD = "award"
    NO_TRADE = "no trade"
    """An award that awards nothing: the round did not clear, or the bid was refused."""
    BEGIN = "interval begins"
    GIVEN_UP = "given up"
    """A person on site, a safety limit, or assets that can not be reached."""
    END = "interval ends"
    STATEMENT = "statement"


_S, _E = State, Event
TABLE: dict[State, dict[Event, State]] = {
    _S.ANNOUNCED: {
        _E.BID_MADE: _S.BID,
        _E.GATE: _S.SCHEDULED,
        _E.BEGIN: _S.SCHEDULED,
        _E.GIVEN_UP: _S.SCHEDULED,
        _E.END: _S.CLOSED,
    },
    _S.BID: {
        _E.BID_MADE: _S.BID,
        _E.GATE: _S.BID,
        _E.AWARD: _S.AWARDED,
        _E.NO_TRADE: _S.SCHEDULED,
        _E.BEGIN: _S.SCHEDULED,
        _E.GIVEN_UP: _S.BID,
        _E.END: _S.CLOSED,
    },
    _S.AWARDED: {
        _E.GATE: _S.AWARDED,
        _E.BEGIN: _S.DELIVERING,
        _E.GIVEN_UP: _S.OVERRIDDEN,
        _E.END: _S.DELIVERED,
    },
    _S.DELIVERING: {_E.GIVEN_UP: _S.OVERRIDDEN, _E.END: _S.DELIVERED},
    _S.OVERRIDDEN: {_E.BEGIN: _S.OVERRIDDEN, _E.GIVEN_UP: _S.OVERRIDDEN, _E.END: _S.DELIVERED},
    _S.SCHEDULED: {_E.GATE: _S.SCHEDULED, _E.BEGIN: _S.SCHEDULED, _E.GIVEN_UP: _S.SCHEDULED, _E.END: _S.CLOSED},
    _S.DELIVERED: {_E.STATEMENT: _S.SETTLED},
    _S.SETTLED: {_E.STATEMENT: _S.SETTLED},
    _S.CLOSED: {},
}
"""State → what each event makes of it; an event that does not stand there is refused."""


class Reason(StrEnum):
    """Why a message counts for nothing; it is logged with this."""

    UNVERIFIED = "not what the market's key signed"
    RETAINED = "retained by the broker: it may be from any time"
    FOREIGN = "for another gateway or market"
    UNKNOWN = "of a round that is not known"
    OLD_ROUND = "announces a round again, or one before the last"
    TOO_FAR = "begins too far from now"
    LATE = "came after its time"
    REPLAYED = "its counter was there before"
    OTHER_BID = "answers no bid of this gateway for the round, or one that was replaced many times"
    OTHER_AWARD = "is about another award"
    NOT_OFFERED = "awards what the bid did not offer"
    NOT_NOW = "does not fit the state of the round"


class RefusedMessageError(EvidenceError):
    """A message of the market that counts for nothing."""

    def __init__(self, reason: Reason, what: str) -> None:
        """Keep the reason.

        Args:
            reason: Why.
            what: Which message.
        """
        super().__init__(f"{what}: {reason.value}")
        self.reason = reason


class Moment(NamedTuple):
    """Something that time brings to a round."""

    at_ms: int
    event: Event


@dataclass(slots=True)
class Known:
    """A round and what became of it."""

    round: Round
    round_hash: bytes
    at_ms: int = 0
    """When it was announced here."""
    state: State = State.ANNOUNCED
    bid: Bid | None = None
    """The last one made; where an award answers an earlier one, that."""
    bid_hash: bytes = b""
    bid_message: bytes = b""
    """As it was signed; forgotten when the interval is over."""
    versions: int = 0
    """Of the last bid that was made."""
    bids: dict[bytes, bytes] = field(default_factory=dict)
    """Hash → bid as it was signed, of the last versions; forgotten when the interval is over."""
    award: Award | None = None
    award_hash: bytes = b""
    confirmation: bytes = b""
    """As it was signed."""
    statement: Statement | None = None
    passed: set[Event] = field(default_factory=set)
    """What time has brought already."""

    @property
    def open(self) -> bool:
        """Time has still to bring something."""
        return Event.END not in self.passed

    @property
    def ends_ms(self) -> int:
        """End of the delivery interval."""
        return self.round.begins_ms + self.round.duration_ms

    @property
    def target_w(self) -> int | None:
        """Net import to keep now because of an award; None: none."""
        return self.award.net_w if self.award and self.state is State.DELIVERING else None

    def moments(self) -> Iterator[Moment]:
        """What time has still to bring."""
        moments = ((self.round.gate_ms, Event.GATE), (self.round.begins_ms, Event.BEGIN), (self.ends_ms, Event.END))
        return (Moment(at_ms, event) for at_ms, event in moments if event not in self.passed)

    def become(self, event: Event) -> bool:
        """Take an event; False where the state refuses it."""
        following = TABLE[self.state].get(event)
        self.state = following or self.state
        return following is not None

    def bidden(self, bid: Bid, message: bytes) -> None:
        """A bid was made; the ones before it may have been all that the market got in time."""
        self.bid, self.bid_hash, self.bid_message, self.versions = bid, market.digest(message), message, bid.version
        self.bids[self.bid_hash] = message
        if len(self.bids) > VERSIONS_KEPT:
            del self.bids[next(iter(self.bids))]

    def shrink(self) -> None:
        """Keep only what a statement may need: the interval is over, and many rounds are kept."""
        self.bid_message = b""
        self.bids.clear()
        self.bid = self.bid and self.bid._replace(steps=())


class Rounds:
    """All rounds of one market that a gateway still has to do with."""

    def __init__(self, market_name: str, origin: str, key: PublicKey) -> None:
        """Begin without any round.

        Args:
            market_name: ``tenant/market``.
            origin: ``tenant/gateway``.
            key: The market's.
        """
        self._market, self._origin, self._key = market_name, origin, key
        self.known: dict[int, Known] = {}
        self._open: dict[int, Known] = {}
        """Those to which time has still to bring something."""
        self._trusting = False
        """Messages come from our own log."""
        self._last_number = -1
        self._counters: dict[type[Answer], int] = {Award: 0, Statement: 0}
        """The last one of each kind that was taken."""

    # ------------------------------------------------------------ messages

    def announced(self, message: bytes, now_ms: int) -> Known:
        """A round was announced; announcements may be retained, for a gateway that connects late.

        Raises:
            RefusedMessageError: It counts for nothing.
        """
        made = self._read(Round, message, "announcement")
        if made.number <= self._last_number:
            raise RefusedMessageError(Reason.OLD_ROUND, f"round {made.number}")
        if made.gate_ms <= now_ms:
            raise RefusedMessageError(Reason.LATE, f"round {made.number}")
        if made.begins_ms - now_ms > OPEN_MAX_MS:
            raise RefusedMessageError(Reason.TOO_FAR, f"round {made.number}")
        return self._remember(Known(made, market.digest(message), now_ms))

    def bid_made(self, bid: Bid, message: bytes) -> None:
        """A bid of ours was logged, before it was sent.

        Raises:
            ValueError: It does not fit the round: our own bug.
        """
        known = self.known[bid.number]
        if bid.round_hash != known.round_hash or bid.version <= known.versions:
            raise ValueError(f"round {bid.number}: the bid is for another announcement, or no newer version")
        if Event.GATE in known.passed or not known.become(Event.BID_MADE):
            raise ValueError(f"round {bid.number}: no bid can be made any more")
        known.bidden(bid, message)

    def awarded(self, message: bytes, now_ms: int, *, retained: bool = False) -> Known:
        """An award came. What it answers is the round's bid from then on, also where that was replaced since.

        Raises:
            RefusedMessageError: It counts for nothing.
        """
        award, known, what = self._answer(Award, message, retained=retained)
        bid_message = known.bids.get(award.bid_hash)
        if bid_message is None:
            raise RefusedMessageError(Reason.OTHER_BID, what)
        bid = market.told(Bid, bid_message)
        if now_ms >= min(known.round.begins_ms, bid.expires_ms):
            raise RefusedMessageError(Reason.LATE, what)
        if not fits(known.round, bid, award):
            raise RefusedMessageError(Reason.NOT_OFFERED, what)
        if not known.become(Event.AWARD if award.verdict == Verdict.AWARDED else Event.NO_TRADE):
            raise RefusedMessageError(Reason.NOT_NOW, what)
        known.bid, known.bid_hash, known.bid_message = bid, award.bid_hash, bid_message
        known.award, known.award_hash = award, market.digest(message)
        self._counters[Award] = award.counter
        return known

    def stated(self, message: bytes, *, retained: bool = False) -> Known:
        """A statement came.

        Raises:
            RefusedMessageError: It counts for nothing.
        """
        statement, known, what = self._answer(Statement, message, retained=retained)
        if statement.award_hash != known.award_hash:
            raise RefusedMessageError(Reason.OTHER_AWARD, what)
        if not known.become(Event.STATEMENT):
            raise RefusedMessageError(Reason.NOT_NOW, what)
        known.statement = statement
        self._counters[Statement] = statement.counter
        return known

    def confirmed(self, confirmation: Confirmation, message: bytes) -> None:
        """A confirmation of ours was logged, before it was sent; of a round that is not known any more it is over."""
        known = self.known.get(confirmation.number)
        if known is not None:
            known.confirmation = message

    # ------------------------------------------------------------ time and people

    def advance(self, now_ms: int) -> list[tuple[Known, Event]]:
        """Let time pass: what it brought, in its order. A clock that steps back undoes nothing."""
        due = [(moment, known) for known in self._open.values() for moment in known.moments() if moment.at_ms <= now_ms]
        brought: list[tuple[Known, Event]] = []
        for moment, known in sorted(due, key=lambda pair: pair[0].at_ms):
            known.passed.add(moment.event)
            if known.become(moment.event):
                brought.append((known, moment.event))
            if moment.event is Event.END:
                known.shrink()
                self._open.pop(known.round.number, None)
        return brought

    def at(self, now_ms: int) -> Known | None:
        """The open round whose interval is now; of several the last one announced."""
        return next((known for known in reversed(self._open.values()) if known.round.begins_ms <= now_ms), None)

    @property
    def upcoming(self) -> list[Known]:
        """Rounds whose interval is not over, in the order of their announcement."""
        return list(self._open.values())

    def next_ms(self) -> int | None:
        """When time brings something next."""
        return min((moment.at_ms for known in self._open.values() for moment in known.moments()), default=None)

    def give_up(self, number: int) -> bool:
        """Follow the schedule instead; False where there is nothing to give up."""
        return self.known[number].become(Event.GIVEN_UP)

    # ------------------------------------------------------------ restart

    def restore(self, messages: Iterable[tuple[int, bytes]]) -> None:
        """Take back what the log holds, oldest first.

        Signatures were verified when the messages came, and the log that holds them is signed: that their key is the
        market's is looked at, and no more, for a log may hold thousands.

        Args:
            messages: When each was logged, and the message: announcements, awards and statements that were accepted,
                bids and confirmations that were made.

        Raises:
            EvidenceError: One of them does not fit those before it: the log holds what this market never was.
        """
        self._trusting = True
        try:
            self._restore(messages)
        finally:
            self._trusting = False

    def _restore(self, messages: Iterable[tuple[int, bytes]]) -> None:
        for at_ms, message in messages:
            self.advance(at_ms)
            _, payload = cose.peek(message)
            match market.kind_of(payload):
                case market.Round:
                    self.announced(message, at_ms)
                case market.Bid:
                    self._restore_bid(market.parse(Bid, payload), message)
                case market.Award:
                    self.awarded(message, at_ms)
                case market.Confirmation:
                    self.confirmed(market.parse(Confirmation, payload), message)
                case market.Statement:
                    self.stated(message)

    def _restore_bid(self, bid: Bid, message: bytes) -> None:
        try:
            self.bid_made(bid, message)
        except (KeyError, ValueError):
            raise EvidenceError(f"bid of round {bid.number}: does not fit what the log holds before it") from None

    # ------------------------------------------------------------ parts

    def _read(self, kind: type[market.M], message: bytes, what: str) -> market.M:
        try:
            read = logged(kind, message, self._key) if self._trusting else market.read(kind, message, self._key)
        except EvidenceError as error:
            raise RefusedMessageError(Reason.UNVERIFIED, f"{what} ({error})") from None
        if read.market != self._market:
            raise RefusedMessageError(Reason.FOREIGN, f"{what} of {read.market}")
        return read

    def _answer(self, kind: type[A], message: bytes, *, retained: bool) -> tuple[A, Known, str]:
        """What the market answered to this gateway, its round, and what to call it."""
        name = kind.__name__.lower()
        read = self._read(kind, message, name)
        what = f"{name} of round {read.number}"
        if retained:
            raise RefusedMessageError(Reason.RETAINED, what)
        if read.origin != self._origin:
            raise RefusedMessageError(Reason.FOREIGN, f"{name} for {read.origin}")
        if read.number not in self.known:
            raise RefusedMessageError(Reason.UNKNOWN, what)
        if read.counter <= self._counters[kind]:
            raise RefusedMessageError(Reason.REPLAYED, what)
        return read, self.known[read.number], what

    def _remember(self, known: Known) -> Known:
        self._last_number = known.round.number
        self.known[known.round.number] = self._open[known.round.number] = known
        while len(self.known) > KEPT:
            oldest = next(iter(self.known))
            del self.known[oldest]
            self._open.pop(oldest, None)
        return known


def logged(kind: type[market.M], message: bytes, key: PublicKey) -> market.M:
    """A message that was verified under a key before it was logged.

    Raises:
        EvidenceError: Another key signed it, or it is no such message.
    """
    kid, payload = cose.peek(message)
    if kid != key.kid:
        raise EvidenceError(f"signed by key {kid.hex()}, not by {key.kid.hex()}")
    return market.parse(kind, payload)


def fits(made: Round, bid: Bid, award: Award) -> bool:
    """Whether an award gives what its bid offered, or less trade than that; without one, the schedule."""
    if award.verdict != Verdict.AWARDED:
        return award.net_w == bid.schedule_w and award.ticks == 0
    bounded = made.least_ticks <= award.ticks <= made.most_ticks
    return bounded and bid.curve.fits(award.net_w, award.ticks, bid.schedule_w)


def table() -> str:
    """The table of states and events as docs/market.md shows it."""
    rows = [
        f"| {state.value} | {event.value} | {following.value} |"
        for state, events in TABLE.items()
        for event, following in events.items()
        if following is not state
    ]
    return "\n".join(["| state | what happens | then |", "|---|---|---|", *rows])


if __name__ == "__main__":
    sys.stdout.write(table() + "\n")
