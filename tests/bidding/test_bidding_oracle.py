"""Curves of random sites against a mixed-integer solver that is given the same value functions."""

import os
from random import Random

import pytest
from energybid.bidding.assets import Now
from energybid.bidding.assets_stores import choices
from random_sites import draw_outlook, draw_site
from round_oracle import RoundOracle

SITES = int(os.environ.get("ENERGYBID_ORACLE_SITES", "60"))
"""``make oracle`` takes 1,000."""
FIRST = int(os.environ.get("ENERGYBID_ORACLE_SEED", "0"))
TICK = 0.01
BATCH = 8
KNOTS = 8
TOLERANCE = 1e-6
PRICES = (-500, -1, 0, 1, 40, 1000)
"""Beside those at which something changes."""


@pytest.mark.parametrize("batch", range(-(-SITES // BATCH)))
def test_no_solver_does_better_at_any_price(batch):
    for number in range(batch * BATCH, min(SITES, (batch + 1) * BATCH)):
        check(Random(FIRST + number))


def check(random: Random) -> None:
    steps, step_h = random.randint(2, 16), random.choice([0.25, 1.0])
    outlook, site = draw_outlook(random, steps, step_h), draw_site(random, steps, step_h)
    ahead = [rows[0][:1] for rows in site.ahead(outlook)]
    base_w = random.randint(0, 4000)
    response = site.respond(ahead, step_h=step_h, base_w=base_w, knots=KNOTS)
    nows = [Now(0, step_h, rows[0], KNOTS) for rows in ahead]
    oracle = RoundOracle(site, nows, base_w)
    assert response.excess_w == pytest.approx(oracle.excess_w, abs=1e-3)
    curve = response.curve(tick=TICK)
    ticks = sorted({step.ticks + near for step in curve.steps for near in (0, 1)} | {round(p / TICK) for p in PRICES})
    nets = [curve.net_w(tick) for tick in ticks]
    assert nets == sorted(nets, reverse=True)
    for tick, net_w in zip(ticks, nets, strict=True):
        price = tick * TICK
        ours, best = response.value(net_w) - price * net_w, oracle.best(price)
        assert ours == pytest.approx(best, rel=TOLERANCE, abs=TOLERANCE), (price, net_w, site, outlook)
        split = response.split(net_w)
        assert base_w + sum(split) == net_w
        for asset, now, power_w in zip(site.assets, nows, split, strict=True):
            check_limits(asset, now, power_w)


def check_limits(asset, now, power_w):
    """A hard limit holds at every price: the power is one the asset may have."""
    if hasattr(asset, "grid"):
        reaches = choices(asset, now)
        assert any(reach.powers_w[0] <= power_w <= reach.powers_w[-1] for reach in reaches)
        state = asset.after(now, power_w).state
        within = [r for r in reaches if r.powers_w[0] <= power_w <= r.powers_w[-1]]
        assert any(r.mode.least - 1e-9 <= state <= r.mode.most + 1e-9 for r in within)
    else:
        offer = asset.offer(now)
        assert any(piece.start_w <= power_w <= piece.end_w for piece in offer)
