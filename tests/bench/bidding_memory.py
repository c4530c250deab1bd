"""What bidding adds to the agent: memory and time of whole rounds, with a price model of a year and five assets.

.venv/bin/python tests/bench/bidding_memory.py [--minutes 5 --minutes 15] [--rounds 60]

Loads what a running agent loads, then plans rounds as `SitePlanner` does in it: prices, loads and assets in, curve and
splits out; car and run come nearer to their times as in the field. Each length of rounds in a process of its own.
"""

import argparse
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random
from time import perf_counter, process_time

os.environ["OPENBLAS_NUM_THREADS"] = "1"

MINUTE_MS = 60_000
DAY_MS = 1440 * MINUTE_MS
BEGINS_MS = 20_000 * DAY_MS


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def prices(random: Random, count: int) -> tuple[list[int], list[int]]:
    """Real time and day ahead, ticks of 0.01, five minutes each."""
    deviation, real_time, day_ahead = 0.0, [], []
    for step in range(count):
        day_ahead.append(3000 + 1500 * (step % 288 // 72) + 10 * (step // 12 % 24))
        deviation = 0.85 * deviation + random.gauss(0, 300) + (random.random() < 0.005) * 20_000
        real_time.append(round(day_ahead[-1] + deviation))
    return real_time, day_ahead


def measure(minutes: int, rounds: int) -> str:
    from energybid.agent.market.planner import SitePlanner
    from energybid.sync.market import PriceCurve, Prices, Round

    before = resident_mb()
    from bidding_time import draw

    random, step_ms, days = Random(1), minutes * MINUTE_MS, 60
    planner = SitePlanner("tenant/market", 17_000, 8_000)
    real_time, day_ahead = prices(random, 288 * (days + 3))

    def told(curve: PriceCurve, counter: int, begins_ms: int, ticks: list[int], now_ms: int) -> None:
        made = Prices(
            "tenant/market", curve, counter, now_ms, "EUR", 2, begins_ms, 5 * MINUTE_MS, tuple(ticks)
        )  # fmt: skip
        planner.prices(made)

    def day(number: int) -> None:
        first = 288 * number
        told(
            PriceCurve.DAY_AHEAD,
            number + 1,
            BEGINS_MS + number * DAY_MS,
            day_ahead[first : first + 576],
            BEGINS_MS + number * DAY_MS,
        )

    def plan(begins_ms: int) -> None:
        made = Round(
            "tenant/market", 1, begins_ms, begins_ms, begins_ms, step_ms, "EUR", 2, -50_000, 400_000, 0, "none"
        )
        gone = (begins_ms - BEGINS_MS - days * DAY_MS) // step_ms
        battery, car, heat, run, load = draw(Random(1)).assets
        car, run = replace(car, departure=720 // minutes - gone), replace(run, deadline=600 // minutes - gone)
        assets = [battery, car, heat, run, load]
        planned = planner.plan(made, [(str(n), asset) for n, asset in enumerate(assets)], 800, begins_ms)
        planned.split(planned.schedule_w)

    learner = planner.planning.prices
    for number in range(days):
        first = 288 * number
        if number >= 2:
            day(number)
        told(
            PriceCurve.REAL_TIME,
            number + 1,
            BEGINS_MS + number * DAY_MS,
            real_time[first : first + 288],
            BEGINS_MS + number * DAY_MS,
        )
        for slot in range(96):
            at_ms = BEGINS_MS + number * DAY_MS + slot * 15 * MINUTE_MS
            planner.load(at_ms, round(random.uniform(200, 1500)), 0)
        learner.learn(step_ms, BEGINS_MS + (number + 1) * DAY_MS + 2 * 60 * MINUTE_MS)
    day(days)
    wall, cpu = [], []
    for number in range(rounds):
        begins_ms = BEGINS_MS + days * DAY_MS + number * step_ms
        at = 288 * days + number * minutes // 5
        told(
            PriceCurve.REAL_TIME,
            days + number + 1,
            begins_ms - 5 * MINUTE_MS,
            real_time[at - 1 : at],
            begins_ms,
        )
        started, used = perf_counter(), process_time()
        plan(begins_ms)
        wall.append(perf_counter() - started)
        cpu.append(process_time() - used)
    kept = sum(map(len, planner.state().values()))
    wall.sort()
    cpu.sort()
    return (
        f"{minutes} minutes: {before:.0f} MB without bidding, {resident_mb():.0f} MB after {rounds} rounds,"
        f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB at most; a round, processor: median"
        f" {1e3 * cpu[rounds // 2]:.0f} ms, most {1e3 * cpu[-1]:.0f} ms;"
        f" {kept / 1000:.0f} kB are kept over restarts"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, action="append")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    lengths = arguments.minutes or [5, 15]
    if arguments.one:
        sys.stdout.write(measure(lengths[0], arguments.rounds) + "\n")
        return
    for minutes in lengths:
        words = [sys.executable, __file__, "--one", "--minutes", str(minutes), "--rounds", str(arguments.rounds)]
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
