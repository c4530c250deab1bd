"""What the price model earns: `python tests/bench/price_model.py PRICES [--learn DAYS] [--trade DAYS] [--each-day]`.

`--planner` trades the way a gateway bids (`energybid.bidding.planning`, whole watts, ticks of 0.01, learned day by day)
instead of by the battery's own fast code; it takes half an hour for a year.

PRICES is a CSV (gzip if it ends in .gz) with the columns real_time_usd_mwh and day_ahead_usd_mwh, 288 steps a day. The
first `--learn` days teach the model, the next `--trade` days are traded with it, a battery alone, as price taker:
before every step it submits its curve, made of what is known then (real-time prices up to the step before; today's
day-ahead prices, and from 11:00 those of tomorrow), and the step's price clears it. Perfect foresight is the same
battery with all prices known. `--each-day` counts each traded day once it is over.
"""

import argparse
import csv
import gzip
import io
import json
import os
import sys
import time
import tomllib
from datetime import date
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from energybid.agent.market.devices import World, devices
from energybid.agent.market.wiring import site_plan
from energybid.bidding.backtest import Scene, Walk, as_gateway
from energybid.bidding.prices import Shape
from energybid.bidding.prices_battery import Cell
from energybid.bidding.prices_trading import Market, foresight, trade

FIRST = date(2018, 1, 1)


def read(path: Path) -> Market:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    columns = (np.array([float(row[name]) for row in rows]) for name in ("real_time_usd_mwh", "day_ahead_usd_mwh"))
    return Market(*columns, steps_per_day=288)


def bid(market: Market, cell: Cell, learn: int, days: int) -> None:
    """As a gateway, with a battery of 1 MWh and nothing else."""
    found = (
        "[market]\nimport_limit = '9 MW'\nexport_limit = '9 MW'\n"
        "[[market.asset]]\nname = 'battery'\nkind = 'battery'\n"
        f"capacity = '1 MWh'\ncharge = '{cell.power:g} MW'\ndischarge = '{cell.power:g} MW'\n"
        f"charge_efficiency = {cell.efficiency}\ndischarge_efficiency = {cell.efficiency}\ndischarge_wear = {cell.wear}"
    )
    site, size = site_plan("battery", tomllib.loads(found)), market.steps_per_day
    steps = (learn + days) * size
    still = np.zeros(steps)
    world = World((FIRST - date(1970, 1, 1)).days * 86_400_000, 86_400_000 // size, still, still)
    scene = Scene(devices(site, world), 9_000_000, 9_000_000, market.days(0, learn + days), still, learn, FIRST)

    def told(day: int, walk: Walk) -> None:
        if day % 30 == 0 or day == days:
            best = foresight(market.days(learn, learn + day), cell)
            sys.stdout.write(f"power/energy {cell.power}, {day} days: {-sum(walk.cost):.0f} of {best:.0f} per MWh,")
            sys.stdout.write(f" {-sum(walk.cost) / best:.2%} of perfect foresight, {time.process_time():.0f} s\n")
            sys.stdout.flush()

    as_gateway(scene, told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prices", type=Path)
    parser.add_argument("--learn", type=int, default=365, help="days")
    parser.add_argument("--trade", type=int, default=365, help="days")
    parser.add_argument("--each-day", action="store_true")
    parser.add_argument("--planner", action="store_true")
    parser.add_argument("--power", type=float, action="append", help="in capacities per hour; default 0.5 and 0.25")
    parser.add_argument("--shape", type=json.loads, default={}, help="JSON: other numbers of the model")
    arguments = parser.parse_args()
    market = read(arguments.prices)
    for power in arguments.power or (0.5, 0.25):
        cell = Cell(power=power)
        if arguments.planner:
            bid(market, cell, arguments.learn, arguments.trade)
            continue
        began = time.perf_counter()
        result = trade(
            market,
            cell,
            first_day=arguments.learn,
            days=arguments.trade,
            shape=Shape(**arguments.shape),
            each_day=arguments.each_day,
        )
        took_s = time.perf_counter() - began
        traded = market.days(arguments.learn, arguments.learn + arguments.trade)
        best = foresight(traded, cell)
        earned = float(result.cash.sum())
        share = earned / best
        text = f"power/energy {power}: {earned:.0f} of {best:.0f} per MWh, {share:.2%} of perfect foresight"
        more = f"{result.moved / len(result.cash):.1%} of curves made monotone, {took_s:.0f} s"
        sys.stdout.write(f"{text}; {more}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
