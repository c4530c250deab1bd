"""The price book: the prices that the market has signed, with their age.

Of each curve the last message counts; its counter is against replay. A message that comes again because the broker has
kept it is no news and no fault. Sans I/O, no clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.agent.rounds import Reason, RefusedMessageError, logged
from energybid.core.errors import EvidenceError
from energybid.sync import market
from energybid.sync.market import PriceCurve, Prices

if TYPE_CHECKING:
    from energybid.core.cose import PublicKey

AHEAD_MAX_MS = 8 * 86_400_000
"""Prices that begin later than this from now are not taken: a market's clock or ours is wrong."""
MADE_AHEAD_MS = 600_000
"""The same of the time at which they were made."""
STALE_MS = 3_600_000
"""Prices that ended longer ago say nothing about now."""


class Held(NamedTuple):
    """Prices in force."""

    prices: Prices
    digest: bytes
    """SHA-256 of the message."""
    at_ms: int
    """When it came."""


class PriceBook:
    """The last prices of each curve of one market."""

    def __init__(self, market_name: str, key: PublicKey) -> None:
        """Begin without any.

        Args:
            market_name: ``tenant/market``.
            key: The market's.
        """
        self._market, self._key = market_name, key
        self.held: dict[PriceCurve, Held] = {}

    def take(self, message: bytes, now_ms: int, *, from_log: bool = False) -> Prices | None:
        """Prices came; None where they are those that are held.

        Args:
            message: As it was signed.
            now_ms: Wall clock.
            from_log: It was verified before it was logged.

        Raises:
            RefusedMessageError: They count for nothing.
        """
        read = logged if from_log else market.read
        try:
            made = read(Prices, message, self._key)
        except EvidenceError as error:
            raise RefusedMessageError(Reason.UNVERIFIED, f"prices ({error})") from None
        curve = PriceCurve(made.curve)
        what = f"{curve.name.lower()} prices {made.counter}"
        if made.market != self._market:
            raise RefusedMessageError(Reason.FOREIGN, f"prices of {made.market}")
        held, digest = self.held.get(curve), market.digest(message)
        if held and held.digest == digest:
            return None
        if held and made.counter <= held.prices.counter:
            raise RefusedMessageError(Reason.REPLAYED, what)
        if made.begins_ms - now_ms > AHEAD_MAX_MS or made.time_ms - now_ms > MADE_AHEAD_MS:
            raise RefusedMessageError(Reason.TOO_FAR, what)
        self.held[curve] = Held(made, digest, now_ms)
        return made

    def current(self, now_ms: int) -> Prices | None:
        """Prices that say something about now: the day ahead's, else real-time ones of the last hour."""
        ahead, lately = self.held.get(PriceCurve.DAY_AHEAD), self.held.get(PriceCurve.REAL_TIME)
        if ahead and ahead.prices.begins_ms <= now_ms < ahead.prices.ends_ms:
            return ahead.prices
        return lately.prices if lately and now_ms - lately.prices.ends_ms < STALE_MS else None

    def status(self, now_ms: int) -> dict[str, Any]:
        """What the operator is told."""
        return {
            curve.name.lower(): {
                "counter": held.prices.counter,
                "age_s": max(0, now_ms - held.prices.time_ms) // 1000,
                "begins_ms": held.prices.begins_ms,
                "ends_ms": held.prices.ends_ms,
            }
            for curve, held in sorted(self.held.items())
        }
