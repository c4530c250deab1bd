"""A market's rounds for people: what the log says of each, and its curve drawn with characters.

Everything here comes from the log's entries alone, in their order, without a key: they were judged when they came.
Pure.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from energybid.agent.moments import moment_text
from energybid.agent.rounds import Event, Known, State
from energybid.core.entries import MarketKind, MarketReason
from energybid.core.errors import EvidenceError
from energybid.sync import market
from energybid.sync.market import Award, Bid, Conduct, Confirmation, Prices, Round, Statement, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from energybid.core.entries import MarketMessage

ROWS_MAX = 24
"""Steps of a curve that are drawn one by one."""
FULL, WHOLE, BEFORE = "█", "▓", "░"
"""A step; one that is all or nothing; what was taken before it."""
DIGITS = {"BHD": 3, "CLP": 0, "ISK": 0, "JOD": 3, "JPY": 0, "KRW": 0, "KWD": 3, "OMR": 3, "TND": 3, "VND": 0}
"""Behind the point of amounts; 2 in all other currencies (ISO 4217, minor units)."""
REASONS = {
    number: name.lower().replace("_", " ") for name, number in vars(MarketReason).items() if name.isupper() and number
}
KINDS = {number: name.lower() for name, number in vars(MarketKind).items() if name.isupper()}
_HEADS = ("round", "interval (UTC)", "state", "bid", "award", "delivered", "money")


@dataclass(slots=True)
class RoundView:
    """What the log says of one round."""

    known: Known
    versions: int = 0
    """Of the last bid that was made."""
    confirmation: Confirmation | None = None
    statements: int = 0
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    """(When, which message, why) of messages about it that counted for nothing."""
    bid: Bid | None = None
    """The one that the award answers; without one the last."""
    bids: dict[bytes, Bid] = field(default_factory=dict)
    """All, by their hash, until one is answered."""

    @property
    def made(self) -> Round:
        """Its announcement."""
        return self.known.round


class Story:
    """All rounds of a log, told entry after entry."""

    def __init__(self) -> None:
        """Nothing is told yet."""
        self.rounds: dict[tuple[str, int], RoundView] = {}
        """By market and number, in the order of their announcement."""
        self.prices: dict[int, Prices] = {}
        """The last ones of each curve."""
        self.refused: Counter[str] = Counter()
        """Messages that counted for nothing, by the reason; those that were not logged are ``not logged``."""

    def tell(self, entries: Iterable[MarketMessage]) -> None:
        """More entries, in the log's order.

        Raises:
            EvidenceError: A message that counted is none.
        """
        for entry in entries:
            if entry.missed:
                self.refused["not logged"] += entry.missed
            if entry.reason:
                self._refused(entry)
            else:
                self.advance(entry.time_ms)
                self._counted(entry)

    def advance(self, now_ms: int) -> None:
        """Let time pass for the rounds."""
        for view in self.rounds.values():
            for moment in [moment for moment in view.known.moments() if moment.at_ms <= now_ms]:
                view.known.passed.add(moment.event)
                view.known.become(moment.event)

    def _refused(self, entry: MarketMessage) -> None:
        self.refused[REASONS.get(entry.reason, str(entry.reason))] += 1
        kind = {MarketKind.AWARD: Award, MarketKind.STATEMENT: Statement, MarketKind.ROUND: Round}.get(entry.kind)
        try:
            said: Any = kind and market.told(kind, entry.message)
        except EvidenceError:
            return
        view = self.rounds.get((said.market, said.number)) if said else None
        if view is not None:
            why = REASONS.get(entry.reason, str(entry.reason))
            view.refused.append((entry.time_ms, KINDS.get(entry.kind, "message"), why))

    def _counted(self, entry: MarketMessage) -> None:
        message = entry.message
        match entry.kind:
            case MarketKind.ROUND:
                made = market.told(Round, message)
                known = Known(made, market.digest(message), entry.time_ms)
                self.rounds[made.market, made.number] = RoundView(known)
            case MarketKind.PRICES:
                prices = market.told(Prices, message)
                self.prices[prices.curve] = prices
            case MarketKind.BID:
                self._bid(market.told(Bid, message), message)
            case MarketKind.AWARD:
                self._award(market.told(Award, message), message)
            case MarketKind.CONFIRMATION:
                confirmation = market.told(Confirmation, message)
                view = self.rounds.get((confirmation.market, confirmation.number))
                if view is not None:
                    view.confirmation = confirmation
            case MarketKind.STATEMENT:
                self._statement(market.told(Statement, message))

    def _bid(self, bid: Bid, message: bytes) -> None:
        view = self.rounds.get((bid.market, bid.number))
        if view is not None:
            view.known.become(Event.BID_MADE)
            view.bid, view.versions = bid, bid.version
            view.bids[market.digest(message)] = bid

    def _award(self, award: Award, message: bytes) -> None:
        view = self.rounds.get((award.market, award.number))
        if view is not None:
            view.known.become(Event.AWARD if award.verdict == Verdict.AWARDED else Event.NO_TRADE)
            view.known.award, view.known.award_hash = award, market.digest(message)
            view.bid = view.bids.get(award.bid_hash, view.bid)
            view.bids.clear()

    def _statement(self, statement: Statement) -> None:
        view = self.rounds.get((statement.market, statement.number))
        if view is not None:
            view.known.become(Event.STATEMENT)
            view.known.statement, view.statements = statement, view.statements + 1


def money(views: Iterable[RoundView]) -> dict[str, Decimal]:
    """What the statements of rounds come to, by currency: exact decimals."""
    found: dict[str, Decimal] = {}
    for view in views:
        if view.known.statement:
            amount = market.price(view.known.statement.amount, view.made.decimals)
            found[view.made.currency] = found.get(view.made.currency, Decimal(0)) + amount
    return found


# ---------------------------------------------------------------- for machines


def plain(view: RoundView) -> dict[str, Any]:
    """A round as JSON: prices and money as exact decimals in text, power in W, energy in Wh."""
    made, known = view.made, view.known
    found: dict[str, Any] = {
        "market": made.market,
        "round": made.number,
        "state": known.state.value,
        "gate": moment_text(made.gate_ms),
        "begins": moment_text(made.begins_ms),
        "ends": moment_text(known.ends_ms),
        "currency": made.currency,
        "bid": None,
        "award": None,
        "confirmation": None,
        "statement": None,
        "refused": [{"time": moment_text(at), "message": kind, "why": why} for at, kind, why in view.refused],
    }
    if view.bid:
        steps = [
            {"price": _price(view, ticks), "power_w": power_w, "divisible": divisible}
            for ticks, power_w, divisible in view.bid.steps
        ]
        bid = {"version": view.bid.version, "versions": view.versions, "schedule_w": view.bid.schedule_w}
        found["bid"] = bid | {"floor_w": view.bid.floor_w, "steps": steps}
    if known.award:
        verdict = Verdict(known.award.verdict).name.lower()
        found["award"] = {"verdict": verdict, "net_w": known.award.net_w, "price": _price(view, known.award.ticks)}
    if view.confirmation:
        conduct = Conduct(view.confirmation.conduct).name.lower()
        found["confirmation"] = {"conduct": conduct, "reason": view.confirmation.reason}
    if known.statement:
        found["statement"] = {
            "baseline_wh": known.statement.baseline_wh,
            "actual_wh": known.statement.actual_wh,
            "delivered_wh": known.statement.delivered_wh,
            "amount": _price(view, known.statement.amount),
            "corrections": view.statements - 1,
        }
    return found


def _price(view: RoundView, ticks: int) -> str:
    """Exact."""
    return f"{market.price(ticks, view.made.decimals):f}"


def coins(amount: Decimal, currency: str) -> str:
    """An amount with the digits that its currency usually has; exact where that would leave nothing of it."""
    digits = Decimal(1).scaleb(-DIGITS.get(currency, 2))
    rounded = amount.quantize(digits, ROUND_HALF_EVEN)
    return f"{rounded if rounded or not amount else amount:f} {currency}"


# ---------------------------------------------------------------- for people


def table(views: Iterable[RoundView]) -> list[str]:
    """A line for each round, under their heads."""
    rows = [_HEADS, *map(row, views)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(_HEADS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows]


def row(view: RoundView) -> tuple[str, ...]:
    """The cells of a round's line."""
    known, made = view.known, view.made
    begins, ends = moment_text(made.begins_ms), moment_text(known.ends_ms)
    interval = f"{begins[:10]} {begins[11:19]} to {ends[11:19]}"
    statement = known.statement
    return (
        str(made.number),
        interval,
        known.state.value,
        f"{view.bid.floor_w:,} to {view.bid.curve.ceiling_w:,} W" if view.bid else "-",
        _award_text(view),
        f"{statement.delivered_wh:,} Wh" if statement else "-",
        coins(market.price(statement.amount, made.decimals), made.currency) if statement else "-",
    )


def _award_text(view: RoundView) -> str:
    award = view.known.award
    if award is None:
        return "-"
    if award.verdict != Verdict.AWARDED:
        return "no trade" if award.verdict == Verdict.NO_TRADE else "bid refused"
    return f"{award.net_w:,} W at {_price(view, award.ticks)}"


def details(view: RoundView, width: int) -> list[str]:
    """All of a round, with its curve."""
    made, known = view.made, view.known
    lines = [
        f"{made.market}, round {made.number}: {known.state.value}",
        f"  gate      {moment_text(made.gate_ms)}",
        f"  interval  {moment_text(made.begins_ms)} to {moment_text(known.ends_ms)}",
        f"  baseline  {made.programme}",
    ]
    if view.bid:
        later = f" (the award answers it, not version {view.versions})" if view.bid.version < view.versions else ""
        lines.append(f"  bid       version {view.bid.version}{later}, schedule {view.bid.schedule_w:,} W")
    if known.award:
        lines.append(f"  award     {_award_text(view)}" + (f" {made.currency}/MWh" if _awarded(view) else ""))
    if view.confirmation:
        conduct = Conduct(view.confirmation.conduct).name.lower()
        lines.append(f"  done      {conduct}: {view.confirmation.reason}")
    if known.statement:
        said = known.statement
        corrected = f" (corrected {view.statements - 1} times)" if view.statements > 1 else ""
        energy = f"{said.delivered_wh:,} Wh delivered: {said.actual_wh:,} instead of {said.baseline_wh:,} Wh"
        lines.append(f"  statement {energy}; {_price(view, said.amount)} {made.currency}{corrected}")
    lines += [f"  refused   {moment_text(at)} {kind}: {why}" for at, kind, why in view.refused]
    return lines + (["", *drawn(view, width)] if view.bid else [])


def _awarded(view: RoundView) -> bool:
    return view.known.award is not None and view.known.award.verdict == Verdict.AWARDED


def drawn(view: RoundView, width: int) -> list[str]:
    """The curve of a round's bid: from the highest limit down, what each step adds to the net import.

    Args:
        view: A round with a bid.
        width: Columns of the terminal.
    """
    bid = view.bid
    if bid is None:
        return []
    groups = _groups(bid)
    labels = [_label(view, group) for group in groups]
    ends = list(accumulate((sum(power_w for _, power_w, _ in group) for group in groups), initial=bid.floor_w))
    texts = [
        f"{end:,} W" + ("" if _divisible(group) else " whole") for end, group in zip(ends[1:], groups, strict=True)
    ]
    margin = max(map(len, [*labels, "above"]))
    bar = max(10, width - margin - max(map(len, [*texts, f"{bid.floor_w:,} W"])) - 5)

    def column(net_w: int) -> int:
        return round((net_w - ends[0]) * bar / max(1, ends[-1] - ends[0]))

    lines = [f"{view.made.currency}/MWh: net import that round {view.made.number} is bid for"]
    lines.append(f"{'above':>{margin}} |{'':{bar}}  {bid.floor_w:,} W")
    for label, group, low, high, text in zip(labels, groups, ends, ends[1:], texts, strict=False):
        fill = FULL if _divisible(group) else WHOLE
        taken = BEFORE * column(low) + fill * max(1, column(high) - column(low))
        lines.append(f"{label:>{margin}} |{taken:{bar}.{bar}}  {text}")
    marks = [" "] * (bar + 1)
    marks[column(bid.schedule_w)] = "S"
    if _awarded(view) and view.known.award:
        marks[column(view.known.award.net_w)] = "A"
    legend = f"S schedule {bid.schedule_w:,} W" + (f", A award {_award_text(view)}" if _awarded(view) else "")
    return [*lines, f"{'':{margin}} +{''.join(marks)}".rstrip(), f"{'':{margin}}  {legend}"]


def _groups(bid: Bid) -> list[tuple[tuple[int, int, bool], ...]]:
    """Steps that share a line."""
    size = -(-len(bid.steps) // ROWS_MAX) or 1
    return [bid.steps[at : at + size] for at in range(0, len(bid.steps), size)]


def _label(view: RoundView, group: tuple[tuple[int, int, bool], ...]) -> str:
    high, low = group[0][0], group[-1][0]
    return _price(view, high) if high == low else f"{_price(view, high)} to {_price(view, low)}"


def _divisible(group: tuple[tuple[int, int, bool], ...]) -> bool:
    return all(divisible for _, _, divisible in group)


__all__ = ["RoundView", "State", "Story", "details", "drawn", "plain", "row", "table"]
