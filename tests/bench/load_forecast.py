"""How well the load forecast does, day by day: `python tests/bench/load_forecast.py LOAD [TEMPERATURE]`.

LOAD is a CSV (gzip if it ends in .gz) of UTC start and value per half hour; TEMPERATURE one whose last two columns are
UTC time and degrees Celsius per hour. At every midnight the next day is forecast from the days before alone, but for
the day's temperature, which is the one that came. Compared are the model in use, each candidate, and the naive ones of
the comparison, over the same half hours. At last the days are walked as a gateway does, half hour by half hour, without
a thermometer and with one, where the temperature of the day to come is forecast as well.

The household sample of eemeter 4.1.1 has day and month exchanged where the day is at most 12 (read so, it is without a
gap from 2012-02-20 to 2014-02-28; taken as it is, a third is missing and days follow each other that did not). `--raw`
takes the dates as they are.
"""

import argparse
import csv
import datetime as dt
import gzip
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
from energybid.bidding.forecast import Forecaster
from energybid.bidding.forecast_models import Day, candidates
from energybid.bidding.packed import pack
from energybid.bidding.planning_load import SLOT_MS, LoadBook
from energybid.bidding.planning_weather import SITE, WeatherBook

SLOTS = 48
DAY_MS = SLOTS * SLOT_MS
WARM_DAYS = 28


def rows(path: Path) -> list[list[str]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.reader(io.StringIO(data.decode())))[1:]


def moment(text: str, *, exchanged: bool) -> dt.datetime:
    made = dt.datetime.fromisoformat(text)
    return made.replace(month=made.day, day=made.month) if exchanged and made.day <= 12 else made


def days_of(path: Path, *, raw: bool) -> tuple[dt.date, np.ndarray]:
    """First day, and days x slots; doubled entries are averaged, missing ones NaN."""
    found = {}
    for text, value in rows(path):
        at = moment(text, exchanged=not raw)
        found.setdefault((at.date(), at.hour * 2 + at.minute // 30), []).append(float(value))
    first = min(day for day, _ in found)
    load = np.full(((max(day for day, _ in found) - first).days + 1, SLOTS), np.nan)
    for (day, slot), values in found.items():
        load[(day - first).days, slot] = np.mean(values)
    return first, load


def temperatures(path: Path | None) -> dict[dt.date, float]:
    found = {}
    for *_, text, value in rows(path) if path else []:
        found.setdefault(dt.datetime.fromisoformat(text).date(), []).append(float(value))
    return {day: float(np.mean(values)) for day, values in found.items() if len(values) == 24}


def air(path: Path | None) -> dict[int, float]:
    """Degrees by hour since 1970."""
    moments = ((text, value) for *_, text, value in (rows(path) if path else []))
    return {int(dt.datetime.fromisoformat(f"{text}+00:00").timestamp()) // 3600: float(v) for text, v in moments}


def gateway(first: dt.date, load: np.ndarray, degrees: dict[int, float]) -> np.ndarray:
    """Forecasts of each day, made when it begins, by what a gateway knows then; days x slots."""
    weather = WeatherBook()
    loads = LoadBook(temperature=weather.mean_c)
    made = np.full_like(load, np.nan)
    begins_ms = (first - dt.date(1970, 1, 1)).days * DAY_MS
    for number, row in enumerate(load):
        for slot, value in enumerate(row):
            at_ms = begins_ms + number * DAY_MS + slot * SLOT_MS
            warmth = degrees.get(at_ms // 3_600_000)
            weather.seen(at_ms, {} if warmth is None else {SITE: warmth}, {})
            if np.isfinite(value):
                loads.seen(at_ms, float(value), weather.now_c(at_ms))
            if slot == 0 and loads.today == first + dt.timedelta(number):
                expected = loads.expected(at_ms, SLOT_MS, SLOTS, None)
                made[number] = expected.power_w if expected.model != "none" else np.nan
    return made


def walk(first: dt.date, load: np.ndarray, warmth: dict[dt.date, float]) -> dict[str, np.ndarray]:
    """Forecasts by model, days x levels x slots, and the share of time each was in use."""
    forecaster = Forecaster(SLOTS)
    names = [candidate.name for candidate in candidates(SLOTS)]
    made = {name: np.full((len(load), 5, SLOTS), np.nan) for name in [*names, "in use"]}
    made["next"] = np.full_like(load, np.nan)
    used = []
    for number, row in enumerate(load):
        date = first + dt.timedelta(number)
        day = Day(date.weekday(), warmth.get(date))
        for name in names:
            if (one := forecaster.forecast(day, name)) is not None:
                made[name][number] = one.quantiles
        made["in use"][number] = made[forecaster.model][number]
        for slot in range(1, SLOTS):
            if number >= WARM_DAYS:
                made["next"][number, slot] = forecaster.forecast(day, seen=row[:slot]).middle[slot]
        used.append(forecaster.model)
        for change in forecaster.learn(day, row):
            sys.stderr.write(f"{date}: {change.model} version {change.version}: {change.why}\n")
    sys.stderr.write(json.dumps({name: used.count(name) for name in names}) + "\n")
    sys.stderr.write(f"state: {len(pack(forecaster.state())) // 1000} kB\n")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("load", type=Path)
    parser.add_argument("temperature", type=Path, nargs="?")
    parser.add_argument("--raw", action="store_true", help="dates as they are in the file")
    arguments = parser.parse_args()
    first, load = days_of(arguments.load, raw=arguments.raw)
    began = time.perf_counter()
    made = walk(first, load, temperatures(arguments.temperature))
    took_s = time.perf_counter() - began
    fair = np.isfinite(load) & np.isfinite(made["in use"][:, 2])
    for name in ("yesterday", "last-week", "mean-7"):
        fair &= np.isfinite(made[name][:, 2])
    fair[:WARM_DAYS] = False
    wape = {n: float(np.abs(load - q[:, 2])[fair].sum() / load[fair].sum()) for n, q in made.items() if n != "next"}
    best = min(wape[name] for name in ("yesterday", "last-week", "mean-7"))
    quantiles = made["in use"]
    inside = ((load >= quantiles[:, 0]) & (load <= quantiles[:, 4]))[fair].mean()
    middle = ((load >= quantiles[:, 1]) & (load <= quantiles[:, 3]))[fair].mean()
    later = fair & np.isfinite(made["next"])
    ahead = float(np.abs(load - made["next"])[later].sum() / load[later].sum())
    below = [float((load < quantiles[:, k])[fair].mean()) for k in range(5)]
    for name, value in wape.items():
        sys.stdout.write(f"{name:24} WAPE {value:.4f}  {(1 - value / best) * 100:+.1f} % against the best naive one\n")
    sys.stdout.write(f"next half hour           WAPE {ahead:.4f}\n")
    sys.stdout.write(
        f"80 % interval covers {inside:.1%}, 50 % interval {middle:.1%}; below quantiles {np.round(below, 3)}\n"
    )
    without, known = (gateway(first, load, degrees) for degrees in ({}, air(arguments.temperature)))
    fair &= np.isfinite(without) & np.isfinite(known)
    for name, guess in (("without", without), ("with", known)):
        error = float(np.abs(load - guess)[fair].sum() / load[fair].sum())
        sys.stdout.write(f"gateway {name + ' temperature':20} WAPE {error:.4f}\n")
    sys.stdout.write(f"{fair.sum()} half hours of {len(load)} days, {took_s:.1f} s\n")


if __name__ == "__main__":
    main()
