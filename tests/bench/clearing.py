"""How long a round of 100,000 bids takes to clear: `python tests/bench/clearing.py`."""

import random
import sys
import time

from energybid.bidding.curve import Curve, Step
from energybid.simulator.market.clearing import Bid, clear

BIDS = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000


def bid(chance: random.Random) -> Bid:
    """A site with some load, a battery and a pump: five steps, one of them all or nothing."""
    prices = sorted((chance.randint(-2_000, 30_000) for _ in range(5)), reverse=True)
    steps = tuple(Step(ticks, chance.randint(100, 4_000), n != chance.randrange(5)) for n, ticks in enumerate(prices))
    return Bid(Curve(chance.randint(-12_000, 2_000), steps), chance.randint(0, 0))


def book(seed: int) -> dict[str, Bid]:
    """Bids whose schedule is what they would do without a market: the floor."""
    chance = random.Random(seed)
    made = (bid(chance) for _ in range(BIDS))
    return {f"gateway-{n}": Bid(b.curve, b.curve.floor_w) for n, b in enumerate(made)}


for seed in range(3):
    bids = book(seed)
    began = time.perf_counter()
    result = clear(bids, least_ticks=-50_000, most_ticks=100_000)
    took_s = time.perf_counter() - began
    figures = f"{took_s:.2f} s, {result.outcome}, price {result.ticks}, {len(result.declined)} steps declined"
    sys.stdout.write(f"{BIDS} bids: {figures}\n")
