"""A market's messages as the log holds them (docs/formats.md §3.7): what they say in words, and who signed them.

For those who look at a log: an export, a verifier. Pure. Nothing here decides whether a message counts: the entry says
what the gateway decided, and a refused message may be anything.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from energybid.core import cose
from energybid.core.entries import MarketKind, MarketMessage, MarketReason
from energybid.core.errors import EvidenceError
from energybid.sync import market
from energybid.sync.market import Award, Bid, Conduct, Confirmation, Message, PriceCurve, Prices, Round, Statement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from energybid.core.cose import PublicKey


def _names(kind: type) -> dict[int, str]:
    return {number: name.lower() for name, number in vars(kind).items() if name.isupper()}


KINDS, REASONS = _names(MarketKind), _names(MarketReason)
"""Number → word."""
MESSAGES: Mapping[int, Any] = {
    MarketKind.ROUND: Round,
    MarketKind.BID: Bid,
    MarketKind.AWARD: Award,
    MarketKind.CONFIRMATION: Confirmation,
    MarketKind.STATEMENT: Statement,
    MarketKind.PRICES: Prices,
}
"""Kind → its type."""


def told(entry: MarketMessage) -> Message | None:
    """What the message says, **not verified**; None where it is none of its kind."""
    message: Message | None = None
    with suppress(EvidenceError, KeyError):
        message = market.told(MESSAGES[entry.kind], entry.message)
    return message


def checked(entry: MarketMessage, keys: Mapping[bytes, PublicKey]) -> bool:
    """Whether a message that counts is signed by one of the keys; False where nobody gave its key, or it was refused.

    Raises:
        EvidenceError: It is not of its kind, or the signature does not hold: no honest gateway logs that as accepted.
    """
    if entry.reason != MarketReason.NONE or entry.kind not in MESSAGES:
        return False
    kid, payload = cose.peek(entry.message)
    if kid not in keys:
        market.parse(MESSAGES[entry.kind], payload)
        return False
    market.read(MESSAGES[entry.kind], entry.message, keys[kid])
    return True


class Teller:
    """Puts entries into words, in log order: what a price means stands in the announcement before it."""

    def __init__(self) -> None:
        """Know no round."""
        self._rounds: dict[tuple[str, int], Round] = {}

    def facts(self, entry: MarketMessage) -> dict[str, Any]:
        """Plain data, the same keys for every message; None where a message does not say it.

        Prices are exact decimal text of money per MWh, ``amount`` of money; None too where the announcement of the
        round is not among the entries before. ``curve`` and ``prices`` are JSON.
        """
        message = told(entry)
        if isinstance(message, Round) and entry.reason == MarketReason.NONE:
            self._rounds[message.market, message.number] = message
        said: dict[str, Any] = {}
        if message is not None:
            said = _common(message, entry.message) | self._of(message)
        return {
            "kind": KINDS.get(entry.kind, str(entry.kind)),
            "reason": REASONS.get(entry.reason, str(entry.reason)),
            "missed": entry.missed,
            "bytes": len(entry.message),
            **dict.fromkeys(COLUMNS),
            **said,
        }

    def _of(self, message: Message) -> dict[str, Any]:
        match message:
            case Round():
                return _round(message)
            case Prices():
                return _prices(message)
            case Confirmation():
                return {"conduct": Conduct(message.conduct).name.lower(), "comment": message.reason}
        announced = self._rounds.get((message.market, message.number))
        match message:
            case Bid():
                return _bid(message, announced)
            case Award():
                return _award(message, announced)
            case Statement():
                return _statement(message, announced)


COLUMNS = (
    "market", "round", "origin", "kid", "sha256", "answers", "made_ms", "counter", "gate_ms", "begins_ms", "ends_ms",
    "currency", "pricing", "programme", "expires_ms", "schedule_w", "curve", "verdict", "price", "net_w", "conduct",
    "comment", "baseline_wh", "actual_wh", "amount", "inputs_sha256", "prices",
)  # fmt: skip
"""What ``Teller.facts`` says of messages."""


def _common(message: Message, signed: bytes) -> dict[str, Any]:
    fields = message._asdict()
    answers = next((fields[name] for name in ("round_hash", "bid_hash", "award_hash") if name in fields), b"")
    return {
        "market": message.market,
        "round": fields.get("number"),
        "origin": fields.get("origin"),
        "kid": cose.peek(signed)[0].hex(),
        "sha256": market.digest(signed).hex(),
        "answers": answers.hex() or None,
        "made_ms": message.time_ms,
        "counter": fields.get("counter", fields.get("version")),
    }


def _price(ticks: int, made: Round | Prices | None) -> str | None:
    return f"{market.price(ticks, made.decimals):f}" if made else None


def _round(message: Round) -> dict[str, Any]:
    return {
        "gate_ms": message.gate_ms,
        "begins_ms": message.begins_ms,
        "ends_ms": message.begins_ms + message.duration_ms,
        "currency": message.currency,
        "pricing": market.Pricing(message.pricing).name.lower(),
        "programme": message.programme,
        "prices": json.dumps([_price(message.least_ticks, message), _price(message.most_ticks, message)]),
    }


def _prices(message: Prices) -> dict[str, Any]:
    return {
        "begins_ms": message.begins_ms,
        "ends_ms": message.ends_ms,
        "currency": message.currency,
        "comment": PriceCurve(message.curve).name.lower(),
        "prices": json.dumps([_price(ticks, message) for ticks in message.ticks]),
    }


def _bid(message: Bid, announced: Round | None) -> dict[str, Any]:
    steps = [[_price(ticks, announced), power_w, divisible] for ticks, power_w, divisible in message.steps]
    return {
        "expires_ms": message.expires_ms,
        "schedule_w": message.schedule_w,
        "curve": json.dumps([message.floor_w, *steps]) if announced else None,
    }


def _award(message: Award, announced: Round | None) -> dict[str, Any]:
    awarded = message.verdict == market.Verdict.AWARDED
    return {
        "verdict": market.Verdict(message.verdict).name.lower(),
        "currency": announced.currency if announced else None,
        "price": _price(message.ticks, announced) if awarded else None,
        "net_w": message.net_w,
    }


def _statement(message: Statement, announced: Round | None) -> dict[str, Any]:
    return {
        "baseline_wh": message.baseline_wh,
        "actual_wh": message.actual_wh,
        "currency": announced.currency if announced else None,
        "amount": _price(message.amount, announced),
        "inputs_sha256": message.inputs_hash.hex(),
    }
