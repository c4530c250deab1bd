"""What a market is: its rounds, its prices, its gateways. Plain values, checked; ``config.py`` makes them of a file."""

from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_EVEN, Decimal

from energybid.bidding.curve import TICKS_MAX, Curve, Step
from energybid.core.cose import PublicKey
from energybid.simulator.market.clearing import Bid
from energybid.simulator.market.series import Scaled
from energybid.sync.bundle import Inputs
from energybid.sync.topics import Topics


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """All who are in the market besides the gateways: they buy below a reference price and sell above it."""

    power_w: int
    """What they buy, and sell, at most."""
    spread_ticks: int
    """From the reference to the price at which they do so."""
    steps: int
    """Of their curve."""

    def bid(self, reference_ticks: int) -> Bid:
        """Their bid around a price."""
        low = max(reference_ticks - self.spread_ticks, -TICKS_MAX)
        high = min(reference_ticks + self.spread_ticks, TICKS_MAX)
        marks = [2 * self.power_w * n // self.steps for n in range(self.steps + 1)]
        prices = [high - (high - low) * (2 * n + 1) // (2 * self.steps) for n in range(self.steps)]
        steps = zip(prices, marks, marks[1:], strict=False)
        curve = Curve(-self.power_w, tuple(Step(t, b - a, divisible=True) for t, a, b in steps if b > a))
        return Bid(curve, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A gateway that may bid."""

    origin: str
    """``tenant/gateway``."""
    key: PublicKey
    """Of its bids."""
    topics: Topics
    meter: str
    """At the site's connection, as the gateway's log names it."""
    imports: bytes
    """OBIS code of the register of imported energy."""
    exports: bytes | None
    events: tuple[date, ...] = ()
    """Other event days, for programmes that leave them out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """A market's rules."""

    name: str
    """``tenant/market``."""
    period_ms: int
    """Rounds follow each other; each delivers for so long."""
    announce_ms: int
    """A round is announced so long before it begins,"""
    gate_ms: int
    """and takes bids until so long before it begins."""
    currency: str
    decimals: int
    least_ticks: int
    most_ticks: int
    pricing: int
    programme: str
    programme_file: bytes
    interval_ms: int
    """Of settlement."""
    prices: Scaled
    rest: Rest
    settle_after_ms: int = 2_000
    """A round is not settled earlier than so long after its end,"""
    settle_every_ms: int = 5_000
    """tried again so often,"""
    settle_within_ms: int = 86_400_000
    """and given up then."""
    confirm_within_ms: int = 15_000
    """So long after the end a confirmation is waited for."""
    keep_ms: int = 30 * 86_400_000
    """Finished rounds are kept for so long."""

    def ticks(self, price: Decimal) -> int:
        """Money per MWh as whole ticks within the bounds."""
        ticks = int(price.scaleb(self.decimals).to_integral_value(ROUND_HALF_EVEN))
        return min(max(ticks, self.least_ticks), self.most_ticks)

    def inputs(self, member: Member) -> Inputs:
        """What the baseline of a gateway is computed from, all but the loads."""
        return Inputs(
            self.programme_file,
            member.meter,
            member.imports,
            member.exports,
            self.interval_ms,
            member.events,
            (),
        )
