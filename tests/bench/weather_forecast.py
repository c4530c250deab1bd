"""How well sun and temperature ahead are known: `tests/bench/weather_forecast.py [--temperature CSV] [--sun CSV]`.

Hour by hour through a year, each hour what is expected 1, 6, 12 and 24 hours later is held against what came, beside
"as now". TEMPERATURE has UTC time and degrees Celsius in its last two columns (sample `uk-tempC-sample-1_2` of eemeter
4.1.1); SUN a column that begins with "Solar Generation" (a building of CityLearn 2.1.2, W per kW, hourly). Without SUN
the sky is that of the simulated plant (`energybid.simulator.asset_loads.Pv`): clouds of chance that know nothing of
each other, so that nothing of them can be foreseen.
"""

import argparse
import csv
import datetime as dt
import gzip
import io
import sys
import time
from pathlib import Path

import numpy as np
from energybid.bidding.forecast_weather import HOUR_MS, SLOT_MS, Outdoors, Roof
from energybid.simulator.asset_loads import Pv, PvType

LEADS_H = (1, 6, 12, 24)
WARM_H = 21 * 24
DAYS = 365


def rows(path: Path) -> list[list[str]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return list(csv.reader(io.StringIO(data.decode())))


def temperature(path: Path) -> np.ndarray:
    """Of each hour from a midnight; NaN where the file has none."""
    found = {}
    for *_, text, value in rows(path)[1:]:
        at = dt.datetime.fromisoformat(text).replace(tzinfo=dt.UTC)
        found[int(at.timestamp()) // 3600] = float(value)
    first = min(found) // 24 * 24
    made = np.full(max(found) - first + 1, np.nan)
    for hour, value in found.items():
        made[hour - first] = value
    return made


def solar(path: Path) -> np.ndarray:
    head, *body = rows(path)
    column = next(n for n, name in enumerate(head) if name.startswith("Solar Generation"))
    return np.array([float(row[column]) for row in body])


def simulated() -> np.ndarray:
    """Mean W of each hour of a 1 kW plant's year."""
    made = np.zeros(DAYS * 24)
    for hour in range(len(made)):
        for part in range(6):
            plant = Pv(PvType(peak_w=1000, seed="bench"), hour * HOUR_MS + part * HOUR_MS // 6)
            made[hour] += float(next(iter(plant.says.values()))) / 6
    return made


def outdoors(series: np.ndarray) -> np.ndarray:
    """What is expected, hours x leads."""
    place, made = Outdoors(), np.full((len(series), len(LEADS_H)), np.nan)
    for hour, value in enumerate(series):
        if not np.isfinite(value):
            continue
        for part in range(2):
            place.seen(hour * HOUR_MS + part * SLOT_MS, float(value))
        made[hour] = place.expected(np.array([(hour + lead) * HOUR_MS + SLOT_MS for lead in LEADS_H], float))
    return made


def roof(series: np.ndarray) -> np.ndarray:
    """The same; an hour is known when it is over, and what it gave is what the roof gives then."""
    one, made = Roof(), np.full((len(series), len(LEADS_H)), np.nan)
    for hour, value in enumerate(series):
        for part in range(2):
            one.seen(hour * HOUR_MS + part * SLOT_MS, float(value))
        ahead = one.expected(hour * HOUR_MS, HOUR_MS, max(LEADS_H) + 1, hour * HOUR_MS + SLOT_MS, float(value))
        made[hour] = ahead[list(LEADS_H)]
    return made


def told(name: str, unit: str, series: np.ndarray, made: np.ndarray) -> str:
    lines = [f"{name}: mean {np.nanmean(series):.1f} {unit}, {len(series) // 24} days"]
    for n, lead in enumerate(LEADS_H):
        came, expected, now = series[lead:], made[:-lead, n], series[:-lead]
        fair = np.isfinite(came) & np.isfinite(expected) & np.isfinite(now)
        fair[:WARM_H] = False
        errors = [float(np.abs(came - guess)[fair].mean()) for guess in (expected, now)]
        lines.append(f"  {lead:2} h  {errors[0]:7.2f} {unit}, as now {errors[1]:7.2f} {unit}")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--temperature", type=Path)
    parser.add_argument("--sun", type=Path)
    arguments = parser.parse_args()
    began = time.process_time()
    if arguments.temperature:
        series = temperature(arguments.temperature)
        sys.stdout.write(told("temperature", "K", series, outdoors(series)))
    series = solar(arguments.sun)[: DAYS * 24] if arguments.sun else simulated()
    sys.stdout.write(told("sun", "W", series, roof(series)))
    sys.stdout.write(f"{time.process_time() - began:.1f} s of processor time\n")


if __name__ == "__main__":
    main()
