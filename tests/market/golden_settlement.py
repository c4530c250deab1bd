"""The bundle behind tests/golden/settlement.json: a small round with a baseline from the hour before it.

``python tests/market/golden_settlement.py`` writes the file if it is not there; see tests/golden/README.md.
"""

import json
from hashlib import sha256
from pathlib import Path

from energybid.core.cose import PrivateKey
from energybid.core.disclosure import Disclosed
from energybid.core.entries import Declaration, Epoch, MarketKind, MarketMessage, Reading, Start
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log
from energybid.core.quantities import ClockState, Obis
from energybid.core.tree import Frontier, consistency_proof, inclusion_proof, leaf_hash
from energybid.sync import market
from energybid.sync.bundle import Bundle, Inputs, LogPart
from energybid.sync.market import Award, Bid, Conduct, Confirmation, Pricing, Round, Statement, Verdict

PATH = Path(__file__).parent.parent / "golden" / "settlement.json"
MARKET, ORIGIN = "acme/flex", "acme/gw-7"
MARKET_KEY = PrivateKey.from_entropy(bytes(range(100, 148)))
GATEWAY_KEY = PrivateKey.from_entropy(bytes(range(48)))
LOG_KEY = PrivateKey.from_entropy(bytes(range(10, 58)))
HEADEND_KEY = PrivateKey.from_entropy(bytes(range(60, 108)))
ROLES = {"market": MARKET_KEY, "gateway": GATEWAY_KEY, "log": LOG_KEY, "headend": HEADEND_KEY}
BEGINS_MS = 1_767_225_600_000
"""2026-01-01T00:00:00Z."""
QUARTER_MS = 900_000
IMPORT, EXPORT = Obis.parse("1-0:1.8.0").code, Obis.parse("1-0:2.8.0").code
PROGRAMME = b"""\
name = "quarter-before"
title = "The quarter of an hour before"
method = "same-day"
holidays = "none"
zone = { standard_min = 0, summer = false }
windows = { before_min = 15, before_gap_min = 0, after_min = 0, after_gap_min = 0 }
payment = { beyond = "paid", shortfall = "0" }
"""
DECLARATION = Declaration(
    "main", "acme", bytes(32), "SN 1", ((60_000, ((IMPORT, "Wh", 0, True), (EXPORT, "Wh", 0, True))),)
)
ENTRIES = [
    Epoch(ORIGIN, BEGINS_MS - 3_600_000, None),
    Start(bytes(16), BEGINS_MS - 3_600_000, 1_000, ClockState.SYNCHRONISED, "1", bytes(32)),
    DECLARATION,
    *(
        Reading(2, 0, BEGINS_MS + offset_ms, 200, ClockState.SYNCHRONISED, 1, 3_601_000 + offset_ms, values, None)
        for offset_ms, values in (
            (-QUARTER_MS, (10_000, 500)),
            (-10_000, (10_985, 500)),
            (20_000, (11_015, 500)),
            (QUARTER_MS, (11_200, 700)),
            (QUARTER_MS + 60_000, (11_210, 710)),
        )
    ),
]
"""At the round's beginning the register is 10,995 by a line between 10,985 and 11,015: 1/3 of 30 s and of 30 Wh."""


def log_parts(entries, cuts=(), *, epoch=b"e" * 16, receipt=True, origin=ORIGIN, counter=0):
    """The log in parts: one under a checkpoint at each of the cuts, and one under the last."""
    log = Log(origin=origin, epoch=epoch, secret=epoch * 2, signer=LOG_KEY, frontier=Frontier(), counter=counter)
    raw = [log.salts.canonical(at, entry) for at, entry in enumerate(entries)]
    leaves = list(map(leaf_hash, raw))
    parts, before = [], 0
    for size in (*cuts, len(entries)):
        for entry in entries[before:size]:
            log.append(entry)
        time_ms = TIMES_MS.get(size, BEGINS_MS + 1_000_000)
        signed = log.checkpoint(time_ms, ClockState.SYNCHRONISED)
        stored = sign_receipt(Receipt(*signed.checkpoint[:4], time_ms + 1_000), HEADEND_KEY)
        disclosed = tuple(
            Disclosed(at, raw[at], tuple(inclusion_proof(leaves[:size], at))) for at in range(max(before, 1), size)
        )
        path = tuple(consistency_proof(leaves[:size], before)) if before else ()
        parts.append(LogPart(signed.message(), stored if receipt else None, path, disclosed))
        before = size
    return tuple(parts)


def log_part(entries, **given):
    return log_parts(entries, **given)[0]


TIMES_MS = {5: BEGINS_MS - 400_000, 8: BEGINS_MS - 50_000}
"""When the log was that long."""


def told(kind, message, offset_ms):
    return MarketMessage(
        kind, 0, message, 0, BEGINS_MS + offset_ms, ClockState.SYNCHRONISED, 1, 3_601_000 + offset_ms
    )  # fmt: skip


def logged(announced, bidden, awarded, done):
    """The log's entries with the market's messages among them."""
    return [
        *ENTRIES[:3],
        told(MarketKind.ROUND, announced, -590_000),
        told(MarketKind.BID, bidden, -500_000),
        *ENTRIES[3:5],
        told(MarketKind.AWARD, awarded, -58_000),
        *ENTRIES[5:7],
        told(MarketKind.CONFIRMATION, done, 900_010),
        *ENTRIES[7:],
    ]


ROUND = Round(
    MARKET, 7, BEGINS_MS - 600_000, BEGINS_MS - 120_000, BEGINS_MS, QUARTER_MS, "USD", 4, -10_000_000, 50_000_000,
    Pricing.UNIFORM, "quarter-before",
)  # fmt: skip
STEPS = ((2_000_000, 2_000, True), (1_000_000, 2_000, True))


def bundle(  # noqa: PLR0913  its parts
    *, made=ROUND, steps=STEPS, net_w=0, ticks=2_500_000, inputs=None, parts=None, stated=None, keys=ROLES,
    begins_ms=BEGINS_MS,
):  # fmt: skip
    """A bundle of signed messages; what is not given is right."""
    announced = market.sign(made, keys["market"])
    bid = Bid(
        MARKET, 7, ORIGIN, market.digest(announced), 1, begins_ms - 500_000, begins_ms, 4_000, 0, tuple(steps)
    )  # fmt: skip
    bidden = market.sign(bid, keys["gateway"])
    award = Award(
        MARKET, 7, ORIGIN, market.digest(bidden), 1, begins_ms - 60_000, Verdict.AWARDED, ticks, net_w
    )  # fmt: skip
    awarded = market.sign(award, keys["market"])
    done = Confirmation(MARKET, 7, ORIGIN, market.digest(awarded), begins_ms + 5, Conduct.FOLLOWED, "-")
    confirmed = market.sign(done, keys["gateway"])
    inputs = inputs or Inputs(
        PROGRAMME, "main", IMPORT, EXPORT, QUARTER_MS, (), ((BEGINS_MS - QUARTER_MS, 995), (BEGINS_MS, 5))
    )
    # 995 Wh in the quarter before; 205 Wh imported and 200 exported: 5 Wh; 990 Wh delivered at 250 USD/MWh: 0.2475 USD
    baseline_wh, actual_wh, amount = stated or (995, 5, 2_475)
    statement = Statement(
        MARKET, 7, ORIGIN, market.digest(awarded), 1, begins_ms + 86_400_000, baseline_wh, actual_wh, amount,
        sha256(inputs.encode()).digest(),
    )  # fmt: skip
    return Bundle(
        announced, bidden, awarded, confirmed, market.sign(statement, keys["market"]), inputs.encode(),
        parts or log_parts(logged(announced, bidden, awarded, confirmed), (5, 8)),
    )  # fmt: skip


def document():
    keys = {role: key.public.pem().decode() for role, key in ROLES.items()}
    return {"amount": "0.2475 USD", "bundle": bundle().encode().hex(), "keys": keys}


if __name__ == "__main__" and not PATH.exists():
    PATH.write_text(json.dumps(document(), indent=1) + "\n")
