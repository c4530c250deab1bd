"""The market's messages: a round, a bid, an award, a confirmation, a statement and prices (docs/market.md).

Each is a COSE_Sign1 message over a deterministic CBOR array that begins with its own name, so that none can pass for
another, and names the market and, where they have one, the round and the gateway it is for. Prices are whole ticks,
power whole watts, money a whole number of a stated decimal: no floats. Each answer names the hash of the message it
answers, so a bid holds for one announcement, an award for one bid.

Here live the fields, their bounds, signing and reading. Whether a message comes in time, or again,
is for ``energybid.agent.rounds``, and for prices whoever keeps them.
"""

from __future__ import annotations

import re
from decimal import Decimal
from enum import IntEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from energybid.bidding.curve import POWER_MAX_W, TICKS_MAX, Curve, Step
from energybid.core import cbor, cose
from energybid.core.entries import is_bytes, is_int, is_origin, is_uint
from energybid.core.errors import EvidenceError
from energybid.core.tree import HASH_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

DECIMALS_MAX = 9
DURATION_MAX_MS = 86_400_000
PRICES_MAX = 400
"""Most steps of one message of prices: more than a day of 5 minutes and 25 hours, and it always fits."""
_CURRENCY = re.compile(r"[A-Z]{3}")
_TEXT = re.compile(r"[A-Za-z0-9._:/ -]{1,64}")


class Pricing(IntEnum):
    """What an award costs."""

    UNIFORM = 0
    """Every trade at the round's price."""
    AS_BID = 1
    """Every step at its own limit."""


class Verdict(IntEnum):
    """How a round ended for a gateway."""

    AWARDED = 0
    NO_TRADE = 1
    """The round did not clear: the schedule holds."""
    REFUSED = 2
    """The bid was late, out of bounds or of another round."""


class Conduct(IntEnum):
    """What a gateway did about an award."""

    FOLLOWED = 0
    OVERRIDDEN = 1
    """A person on site, or a safety limit, came first."""
    FAILED = 2
    """The assets could not be reached."""


class PriceCurve(IntEnum):
    """Which prices."""

    DAY_AHEAD = 0
    """Of steps to come, as the market before the rounds has made them."""
    REAL_TIME = 1
    """Of the last steps: what the rounds cleared at."""


class Round(NamedTuple):
    """Announces a round; from the market to every gateway."""

    market: str
    """``tenant/market``."""
    number: int
    """Grows by at least one from round to round of a market."""
    time_ms: int
    gate_ms: int
    """Bids that arrive later do not count."""
    begins_ms: int
    duration_ms: int
    """The delivery interval."""
    currency: str
    """ISO 4217."""
    decimals: int
    """A tick is 10^-decimals money per MWh."""
    least_ticks: int
    most_ticks: int
    pricing: int
    programme: str
    """The baseline that settlement uses, by the name of its file; ``none`` settles against the schedule."""


class Bid(NamedTuple):
    """What a gateway offers in a round."""

    market: str
    number: int
    origin: str
    """``tenant/gateway``."""
    round_hash: bytes
    """SHA-256 of the announcement's message."""
    version: int
    """The highest that came before the gate counts; from 1."""
    time_ms: int
    expires_ms: int
    """After this the market may not use it."""
    schedule_w: int
    """Net import without an award."""
    floor_w: int
    steps: tuple[tuple[int, int, bool], ...]
    """(Limit in ticks, watts, divisible) by falling limit."""

    @property
    def curve(self) -> Curve:
        """The steps as a curve."""
        return Curve(self.floor_w, tuple(Step(*step) for step in self.steps))


class Award(NamedTuple):
    """What a gateway got."""

    market: str
    number: int
    origin: str
    bid_hash: bytes
    """SHA-256 of the bid's message."""
    counter: int
    """Grows with every award of this market to this gateway, over all rounds; from 1."""
    time_ms: int
    verdict: int
    ticks: int
    """The round's price; 0 unless awarded."""
    net_w: int
    """Net import to keep over the interval; the bid's schedule unless awarded."""


class Confirmation(NamedTuple):
    """What a gateway did about an award."""

    market: str
    number: int
    origin: str
    award_hash: bytes
    time_ms: int
    conduct: int
    reason: str


class Statement(NamedTuple):
    """What a round is worth to a gateway; from the market."""

    market: str
    number: int
    origin: str
    award_hash: bytes
    counter: int
    """Grows like the awards', apart from theirs; a higher one corrects an earlier statement of the round."""
    time_ms: int
    baseline_wh: int
    actual_wh: int
    """Net import over the interval."""
    amount: int
    """In the currency's 10^-decimals of the round; positive: the gateway is paid."""
    inputs_hash: bytes
    """SHA-256 of the baseline's inputs, as the evidence bundle holds them."""

    @property
    def delivered_wh(self) -> int:
        """Baseline less actual."""
        return self.baseline_wh - self.actual_wh


class Prices(NamedTuple):
    """Prices of steps that follow each other; from the market to every gateway."""

    market: str
    """``tenant/market``."""
    curve: int
    """PriceCurve."""
    counter: int
    """Grows with every message of this curve of this market; from 1."""
    time_ms: int
    """When the market made it."""
    currency: str
    """ISO 4217."""
    decimals: int
    """A tick is 10^-decimals money per MWh."""
    begins_ms: int
    """Begin of the first step."""
    step_ms: int
    ticks: tuple[int, ...]
    """One for each step, the newest last; 1 to PRICES_MAX. The last step of real-time prices has begun at
    ``time_ms``."""

    @property
    def ends_ms(self) -> int:
        """End of the last step."""
        return self.begins_ms + len(self.ticks) * self.step_ms


Message = Round | Bid | Award | Confirmation | Statement | Prices
M = TypeVar("M", Round, Bid, Award, Confirmation, Statement, Prices)

NAMES: Mapping[type[Message], str] = {
    Round: "energybid round 1",
    Bid: "energybid bid 1",
    Award: "energybid award 1",
    Confirmation: "energybid dispatch 1",
    Statement: "energybid statement 1",
    Prices: "energybid prices 1",
}


def payload(message: Message) -> bytes:
    """The bytes that are signed."""
    return cbor.encode((NAMES[type(message)], *message))


def sign(message: Message, signer: cose.Signer) -> bytes:
    """The message as COSE_Sign1.

    Raises:
        EvidenceError: A field is out of its bounds: nobody would accept it.
    """
    data = payload(message)
    _check(message)
    signature = cose.low(signer.algorithm, cose.sign(signer, data))
    signed = cose.message(signer.algorithm, signer.kid, data, signature)
    if len(signed) > cose.MESSAGE_MAX:
        raise EvidenceError(f"{NAMES[type(message)]}: {len(signed)} bytes; at most {cose.MESSAGE_MAX} are allowed")
    return signed


def read(kind: type[M], data: bytes, key: cose.PublicKey) -> M:
    """A message of a kind that ``key`` signed.

    Raises:
        EvidenceError: As ``verified`` and ``parse`` have it.
    """
    return parse(kind, verified(data, key))


def verified(data: bytes, key: cose.PublicKey) -> bytes:
    """The payload of a message that ``key`` signed.

    Raises:
        EvidenceError: It is none, another key signed it, or its signature is in another form (``cose.low``).
    """
    content, signature = cose.verify(data, key), data[-cose.SIGNATURE_SIZE :]
    if cose.low(key.algorithm, signature) != signature:
        raise EvidenceError("signature is not in its one form: somebody has changed it")
    return content


def parse(kind: type[M], data: bytes) -> M:
    """A payload of a kind, **not verified**.

    Raises:
        EvidenceError: Another shape, or a field out of its bounds.
    """
    item = cbor.decode(data)
    if not isinstance(item, list) or len(item) != 1 + len(kind._fields) or item[0] != NAMES[kind]:
        raise EvidenceError(f"payload is no {NAMES[kind]!r}")
    fields: list[Any] = item[1:]
    if kind is Bid:
        fields[-1] = _steps(fields[-1])
    elif kind is Prices and isinstance(fields[-1], list):
        fields[-1] = tuple(fields[-1])
    message = kind(*fields)
    _check(message)
    return message


def told(kind: type[M], message: bytes) -> M:
    """What a signed message says, **not verified**.

    Raises:
        EvidenceError: No signed message of this kind, or a field out of its bounds.
    """
    return parse(kind, cose.peek(message)[1])


def kind_of(data: bytes) -> type[Message]:
    """Which message a payload says it is.

    Raises:
        EvidenceError: None of them.
    """
    item = cbor.decode(data)
    name = item[0] if isinstance(item, list) and item else None
    kind = next((kind for kind, known in NAMES.items() if known == name), None)
    if kind is None:
        raise EvidenceError("payload is no message of a market")
    return kind


def digest(message: bytes) -> bytes:
    """SHA-256 by which the next message names this one."""
    return sha256(message).digest()


def price(ticks: int, decimals: int) -> Decimal:
    """Ticks as money per MWh, exact."""
    return Decimal(ticks).scaleb(-decimals)


def _steps(item: Any) -> tuple[tuple[int, int, bool], ...]:  # noqa: ANN401
    if not isinstance(item, list) or not all(isinstance(step, list) and len(step) == 3 for step in item):  # noqa: PLR2004
        raise EvidenceError("bid: steps are arrays of limit, watts, divisible")
    return tuple(tuple(step) for step in item)


def _check(message: Message) -> None:
    bounds = _PRICES_BOUNDS if isinstance(message, Prices) else _BOUNDS
    wrong = [name for name, value in zip(message._fields, message, strict=True) if not bounds[name](value)]
    if wrong:
        raise EvidenceError(f"{NAMES[type(message)]}: {', '.join(wrong)} out of bounds")
    if isinstance(message, Round) and not (
        message.time_ms <= message.gate_ms <= message.begins_ms and message.least_ticks <= message.most_ticks
    ):
        raise EvidenceError("round: its times or price bounds are out of order")
    if isinstance(message, Bid):
        _check_curve(message)
    if isinstance(message, Prices) and message.curve == PriceCurve.REAL_TIME:
        _check_begun(message)


def _check_begun(prices: Prices) -> None:
    if prices.ends_ms - prices.step_ms > prices.time_ms:
        raise EvidenceError("prices: real-time prices of steps that have not begun")


def _check_curve(bid: Bid) -> None:
    try:
        curve = bid.curve
    except ValueError as error:
        raise EvidenceError(f"bid: {error}") from None
    if not curve.offers(bid.schedule_w):
        raise EvidenceError("bid: the schedule is not on its curve")


def _is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and _TEXT.fullmatch(value) is not None


def _is_power(value: Any) -> bool:  # noqa: ANN401
    return is_int(value) and -POWER_MAX_W <= value <= POWER_MAX_W


def _is_ticks(value: Any) -> bool:  # noqa: ANN401
    return is_int(value) and -TICKS_MAX <= value <= TICKS_MAX


def _is_positive(value: Any) -> bool:  # noqa: ANN401
    return is_uint(value) and bool(value)


def _is_hash(value: Any) -> bool:  # noqa: ANN401
    return is_bytes(value, HASH_SIZE)


def _is_step(value: Any) -> bool:  # noqa: ANN401
    return _is_ticks(value[0]) and _is_positive(value[1]) and isinstance(value[2], bool)


def _is_duration(value: Any) -> bool:  # noqa: ANN401
    return _is_positive(value) and value <= DURATION_MAX_MS


def _is_series(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, tuple) and 0 < len(value) <= PRICES_MAX and all(map(_is_ticks, value))


def _one_of(kind: type[IntEnum]) -> Any:  # noqa: ANN401
    return lambda value: is_uint(value) and value in kind.__members__.values()


_BOUNDS: Mapping[str, Any] = {
    "market": is_origin,
    "origin": is_origin,
    "number": is_uint,
    "version": _is_positive,
    "counter": _is_positive,
    "time_ms": is_uint,
    "gate_ms": is_uint,
    "begins_ms": is_uint,
    "expires_ms": is_uint,
    "duration_ms": _is_duration,
    "step_ms": _is_duration,
    "currency": lambda value: isinstance(value, str) and _CURRENCY.fullmatch(value) is not None,
    "decimals": lambda value: is_uint(value) and value <= DECIMALS_MAX,
    "least_ticks": _is_ticks,
    "most_ticks": _is_ticks,
    "ticks": _is_ticks,
    "pricing": _one_of(Pricing),
    "curve": _one_of(PriceCurve),
    "verdict": _one_of(Verdict),
    "conduct": _one_of(Conduct),
    "programme": _is_text,
    "reason": _is_text,
    "round_hash": _is_hash,
    "bid_hash": _is_hash,
    "award_hash": _is_hash,
    "inputs_hash": _is_hash,
    "schedule_w": _is_power,
    "floor_w": _is_power,
    "net_w": _is_power,
    "steps": lambda value: isinstance(value, tuple) and all(map(_is_step, value)),
    "baseline_wh": is_int,
    "actual_wh": is_int,
    "amount": is_int,
}
"""Field → whether a value is one; the same name means the same thing in every message, but for ``ticks`` of prices."""
_PRICES_BOUNDS: Mapping[str, Any] = {**_BOUNDS, "ticks": _is_series}
