"""What the price model earns: `python tests/bench/price_model.py PRICES [--learn DAYS] [--trade DAYS] [--each-day]`.

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
import sys
import time
from pathlib import Path

import numpy as np
from energybid.bidding.prices import Shape
from energybid.bidding.prices_battery import Cell
from energybid.bidding.prices_trading import Market, foresight, trade


def read(path: Path) -> Market:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = list(csv.DictReader(io.StringIO(data.decode())))
    columns = (np.array([float(row[name]) for row in rows]) for name in ("real_time_usd_mwh", "day_ahead_usd_mwh"))
    return Market(*columns, steps_per_day=288)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prices", type=Path)
    parser.add_argument("--learn", type=int, default=365, help="days")
    parser.add_argument("--trade", type=int, default=365, help="days")
    parser.add_argument("--each-day", action="store_true")
    parser.add_argument("--power", type=float, action="append", help="in capacities per hour; default 0.5 and 0.25")
    parser.add_argument("--shape", type=json.loads, default={}, help="JSON: other numbers of the model")
    arguments = parser.parse_args()
    market = read(arguments.prices)
    for power in arguments.power or (0.5, 0.25):
        cell = Cell(power=power)
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
