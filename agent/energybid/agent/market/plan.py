"""What the agent does in a market, checked and ready: plain frozen values that need no pydantic and can be pickled."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketPlan:
    """A market and the site that takes part in it."""

    name: str
    """``tenant/market``."""
    key: bytes
    """PEM of the market's public key."""
    bids_key: bytes
    """PEM of the gateway's private key for bids and confirmations."""
