"""Settling rounds from a gateway's stored logs, for a market or for whoever makes evidence bundles; docs/settlement.md.

``Logs`` holds an index of every epoch and grows with them. What it settles is what ``recompute`` finds from the bundle
that it makes: both take the same entries. Pure: histories are ports, given anew each time.
"""

from __future__ import annotations

from contextlib import suppress
from math import gcd
from typing import TYPE_CHECKING, NamedTuple

from energybid.bidding.baseline import HOUR_MS, Baseline, needed
from energybid.bidding.baseline_rules import parse as parse_programme
from energybid.core.entries import MarketKind, MarketReason
from energybid.core.errors import EvidenceError
from energybid.core.quantities import Obis
from energybid.sync import market
from energybid.sync.bundle import Bundle, Inputs, LogPart
from energybid.sync.gather import chosen, prove
from energybid.sync.index import LogIndex
from energybid.sync.market import Award, Bid, Confirmation, Round, Statement, Verdict
from energybid.sync.recompute import event_of, is_newer, register_loads, settle_round

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import date

    from energybid.bidding.settlement import Settled
    from energybid.core.entries import Entry
    from energybid.core.prover import History, Span


HASHES_MAX = 100_000
"""Most hashes of subtrees that are kept of an epoch."""
IMPORT, EXPORT = Obis.parse("1-0:1.8.0").code, Obis.parse("1-0:2.8.0").code


class Ready(NamedTuple):
    """A round that can be settled."""

    inputs: Inputs
    """With every interval that the programme may ask for and whose energy is known."""
    baseline: Baseline
    settled: Settled

    def statement(self, award: bytes, *, counter: int, time_ms: int) -> Statement:
        """What the market is to sign.

        Args:
            award: The award's message, as it was sent.
            counter: Above that of every statement before it to this gateway.
            time_ms: Now.
        """
        answered = market.told(Award, award)
        return Statement(
            *answered[:3],
            market.digest(award),
            counter,
            time_ms,
            self.settled.baseline_wh,
            self.settled.actual_wh,
            self.settled.amount,
            market.digest(self.inputs.encode()),
        )


class Waiting(NamedTuple):
    """Readings are still to come."""

    why: str
    until_ms: int
    """A reading at or after this is wanted."""


class Never(NamedTuple):
    """The rules give nothing for what is known: no baseline, or an interval of the round is missing."""

    why: str


def usual_inputs(made: Round, meter: str, *, programme: bytes, events: tuple[date, ...] = ()) -> Inputs:
    """Inputs without loads as a market has them that says nothing else: docs/settlement.md §7.

    Args:
        made: The round.
        meter: The gateway's name for the meter.
        programme: The programme's file.
        events: Other event days.
    """
    return Inputs(programme, meter, IMPORT, EXPORT, usual_interval_ms(made.duration_ms), events, ())


def usual_interval_ms(duration_ms: int) -> int:
    """The longest interval that divides the hour and fills a round."""
    return gcd(duration_ms, HOUR_MS)


class Messages(NamedTuple):
    """A round's, as they travelled."""

    round: bytes
    bid: bytes
    award: bytes
    confirmation: bytes | None
    statement: bytes


RoundName = tuple[str, int]
"""(Market, number)."""


class Logs:
    """All epochs of one gateway's log."""

    def __init__(self, meter: str) -> None:
        """Know nothing yet.

        Args:
            meter: Whose registers the market settles by.
        """
        self._meter = meter
        self._indices: dict[bytes, LogIndex] = {}
        self._histories: dict[bytes, History] = {}
        self._hashes: dict[bytes, dict[Span, bytes]] = {}
        """Of subtrees, by epoch: bundles of several rounds need many of the same."""

    def read(self, histories: Iterable[History]) -> None:
        """Take in what was logged since the last time.

        An epoch that is gone is forgotten, one that is shorter than it was read anew: the database was lost, or is
        restored from an older copy.

        Args:
            histories: The gateway's epochs, oldest first, as they are now; asked by the calls that follow.
        """
        self._histories = {history.epoch: history for history in histories}
        self._indices = {epoch: self._grown(epoch, history) for epoch, history in self._histories.items()}

    def _grown(self, epoch: bytes, history: History) -> LogIndex:
        index = self._indices.get(epoch)
        if index is None or not index.grow(history):
            index = LogIndex(self._meter)
            index.grow(history)
        return index

    # ------------------------------------------------------------ money

    def settle(self, made: Round, bid: Bid, award: Award, asked: Inputs) -> Ready | Waiting | Never:
        """What a round is worth by what is known now.

        Args:
            made: The round.
            bid: That the award answers.
            award: It.
            asked: The inputs, all but the loads.

        Raises:
            ValueError: The programme's file is none, or does not fit the round.
            EvidenceError: The intervals do not fill the round.
            LostError: What is needed was pruned here: ask the head-end.
        """
        if award.verdict != Verdict.AWARDED:
            return Never("nothing was awarded")
        wanted = needed(parse_programme(asked.programme), event_of(made, asked.interval_ms), asked.events)
        found = [sorted(entries.items()) for entries in self._chosen(asked, wanted).values()]
        loads = register_loads(found, asked, wanted)
        inputs = asked._replace(loads=tuple((at, loads[at].wh) for at in sorted(loads)))
        try:
            return Ready(inputs, *settle_round(made, bid, award, inputs))
        except ValueError as error:
            until_ms = wanted[-1] + asked.interval_ms
            newest_ms = self.newest_ms(asked)
            if newest_ms is None or newest_ms < until_ms:
                return Waiting(str(error), until_ms)
            return Never(str(error))

    def newest_ms(self, asked: Inputs) -> int | None:
        """Up to when all the registers that settlement asks for are known; None: one of them never was."""
        registers = [obis for obis in (asked.imports, asked.exports) if obis is not None]
        newest = [self._newest_ms(obis) for obis in registers]
        known = [time_ms for time_ms in newest if time_ms is not None]
        return min(known) if len(known) == len(newest) else None

    # ------------------------------------------------------------ evidence

    def said(self, kind: int) -> list[bytes]:
        """Messages of a kind (``MarketKind``) that count, oldest first."""
        found = (entry for index in self._indices.values() for _, entry in sorted(index.messages.items()))
        return [entry.message for entry in found if entry.kind == kind and entry.reason == MarketReason.NONE]

    def refused(self, kind: int) -> list[tuple[int, bytes]]:
        """(``MarketReason``, message) of a kind that the gateway refused, oldest first."""
        found = (entry for index in self._indices.values() for _, entry in sorted(index.messages.items()))
        return [(e.reason, e.message) for e in found if e.kind == kind and e.reason != MarketReason.NONE]

    def settled(self) -> dict[RoundName, Messages]:
        """Every round of which the log holds the statement and all that it answers; the last statement counts."""
        rounds = {market.digest(message): message for _, message in self._read(MarketKind.ROUND, Round)}
        bids = {market.digest(message): (bid, message) for bid, message in self._read(MarketKind.BID, Bid)}
        awards = {market.digest(message): (award, message) for award, message in self._read(MarketKind.AWARD, Award)}
        done = {each.award_hash: message for each, message in self._read(MarketKind.CONFIRMATION, Confirmation)}
        found: dict[RoundName, Messages] = {}
        for statement, message in sorted(self._read(MarketKind.STATEMENT, Statement), key=lambda pair: pair[0].counter):
            award, awarded = awards.get(statement.award_hash, (None, b""))
            bid, bidden = bids.get(award.bid_hash, (None, b"")) if award else (None, b"")
            made = bid and rounds.get(bid.round_hash)
            if made:
                confirmed = done.get(statement.award_hash)
                found[statement.market, statement.number] = Messages(made, bidden, awarded, confirmed, message)
        return found

    def _read(self, kind: int, read: type[market.M]) -> list[tuple[market.M, bytes]]:
        """What messages of a kind say; what says nothing, whatever the log says of it, is left out."""
        found = []
        for message in self.said(kind):
            with suppress(EvidenceError):
                found.append((market.told(read, message), message))
        return found

    def bundle(self, messages: Messages, inputs: Inputs) -> Bundle:
        """The evidence of a round, not verified.

        Args:
            messages: The round's.
            inputs: As ``Ready`` has them.

        Raises:
            LostError: A proof needs what is not kept here: ask the head-end.
        """
        made = market.told(Round, messages.round)
        wanted = needed(parse_programme(inputs.programme), event_of(made, inputs.interval_ms), inputs.events)
        readings = self._chosen(inputs, wanted)
        parts: list[LogPart] = []
        for epoch, history in self._histories.items():
            told = self._told(epoch, messages)
            known = self._hashes.setdefault(epoch, {})
            if len(known) > HASHES_MAX:
                known.clear()
            parts += prove(history, readings.get(epoch, ()), told - readings.get(epoch, {}).keys(), known)
        return Bundle(*messages, inputs.encode(), tuple(parts))

    def _told(self, epoch: bytes, messages: Messages) -> set[int]:
        """Sequences of the round's messages up to the confirmation, even if refused: the statement tells by itself.

        With them the version that replaced the bid which the award answers, where there is one.
        """
        entries = sorted(self._indices[epoch].messages.items(), reverse=True)
        refused = {entry.message: sequence for sequence, entry in entries}
        taken = {entry.message: sequence for sequence, entry in entries if entry.reason == MarketReason.NONE}
        found = refused | taken
        bid = market.told(Bid, messages.bid)
        newer = [sequence for sequence, entry in reversed(entries) if is_newer(bid, entry)][:1]
        return {found[message] for message in messages[:4] if message in found} | set(newer)

    def _newest_ms(self, obis: bytes) -> int | None:
        newest = (index.newest_ms(obis) for index in self._indices.values())
        return max((time_ms for time_ms in newest if time_ms is not None), default=None)

    def _chosen(self, inputs: Inputs, wanted: list[int]) -> dict[bytes, dict[int, Entry]]:
        found = {
            epoch: chosen(self._indices[epoch], history, inputs, wanted) for epoch, history in self._histories.items()
        }
        return {epoch: entries for epoch, entries in found.items() if entries}
