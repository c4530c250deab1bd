"""The messages behind tests/golden/market-*.json: one round from its announcement to its statement, and prices.

``python tests/market/golden_market.py`` writes the files that are not there; see tests/golden/README.md.
"""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from energybid.core.cose import PrivateKey
from energybid.sync import market
from energybid.sync.market import (
    Award,
    Bid,
    Conduct,
    Confirmation,
    Message,
    PriceCurve,
    Prices,
    Pricing,
    Round,
    Statement,
    Verdict,
)

FOLDER = Path(__file__).parent.parent / "golden"
MARKET, ORIGIN = "acme/flex", "acme/gw-7"
MARKET_KEY = PrivateKey.from_entropy(bytes(range(100, 148)))
GATEWAY_KEY = PrivateKey.from_entropy(bytes(range(48)))
BEGINS_MS = 1_767_226_500_000
MINUTE_MS = 60_000

ROUND = Round(
    MARKET, 42, BEGINS_MS - 10 * MINUTE_MS, BEGINS_MS - 2 * MINUTE_MS, BEGINS_MS, 15 * MINUTE_MS,
    "USD", 2, -50_000, 100_000, Pricing.UNIFORM, "caiso-10-in-10",
)  # fmt: skip


PRICES = Prices(
    MARKET, PriceCurve.DAY_AHEAD, 365, BEGINS_MS - 3_600_000, "USD", 2, BEGINS_MS, 3_600_000, (4_250, 0, -1_300, 99_999)
)


def chain() -> dict[str, tuple[Message, bytes]]:
    """Each message and its signed bytes; each names the one before."""
    announced = market.sign(ROUND, MARKET_KEY)
    bid = Bid(
        MARKET, 42, ORIGIN, market.digest(announced), 1, BEGINS_MS - 9 * MINUTE_MS, BEGINS_MS, 1_500, -2_500,
        ((9_000, 4_000, True), (8_000, 2_000, False), (-500, 3_000, True)),
    )  # fmt: skip
    bidden = market.sign(bid, GATEWAY_KEY)
    award = Award(MARKET, 42, ORIGIN, market.digest(bidden), 7, BEGINS_MS - MINUTE_MS, Verdict.AWARDED, 8_750, 1_500)
    awarded = market.sign(award, MARKET_KEY)
    confirmation = Confirmation(MARKET, 42, ORIGIN, market.digest(awarded), BEGINS_MS + 5, Conduct.FOLLOWED, "-")
    statement = Statement(
        MARKET, 42, ORIGIN, market.digest(awarded), 3, BEGINS_MS + 86_400_000, 1_200, 375, 7_219, sha256(b"i").digest()
    )
    return {
        "round": (ROUND, announced),
        "bid": (bid, bidden),
        "award": (award, awarded),
        "confirmation": (confirmation, market.sign(confirmation, GATEWAY_KEY)),
        "statement": (statement, market.sign(statement, MARKET_KEY)),
        "prices": (PRICES, market.sign(PRICES, MARKET_KEY)),
    }


def plain(item: Any) -> Any:
    if isinstance(item, bytes):
        return f"h'{item.hex()}'"
    return [plain(x) for x in item] if isinstance(item, tuple | list) else item


def document(name: str) -> dict[str, Any]:
    message, signed = chain()[name]
    fields = {key: plain(value) for key, value in message._asdict().items()}
    signer = "market" if name in {"round", "award", "statement", "prices"} else "gateway"
    return {
        "fields": fields,
        "payload": plain(market.payload(message)),
        "message": plain(signed),
        "key": plain((MARKET_KEY if signer == "market" else GATEWAY_KEY).public.pem()),
    }


def path(name: str) -> Path:
    return FOLDER / f"market-{name}.json"


if __name__ == "__main__":
    for each in chain():
        if not path(each).exists():
            path(each).write_text(json.dumps(document(each), indent=1) + "\n")
