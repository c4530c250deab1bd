"""``energybid backtest``: what a site would have paid, on prices and loads that were."""

import argparse
import csv
import datetime as dt
import gzip
import io
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, EnergybidError

if TYPE_CHECKING:
    from energybid.bidding.backtest import Report, Scene
    from energybid.bidding.prices import Array
    from energybid.bidding.site import Site

HELP = "what a site would have paid, on prices and loads that were"
EXAMPLES = """\
examples:
  energybid backtest --prices nyc.csv.gz --load household.csv.gz --assets assets.toml --learn 365 --days 7
  energybid backtest --prices nyc.csv.gz --assets assets.toml --minutes 30 --days 90 --json

PRICES has a column whose name begins with real_time and one with day_ahead (money per MWh), even steps, whole days.
LOAD has the columns start and value: kWh per even interval; it is laid on the prices from their first step, and again.
ASSETS:  [site] import_limit_w = 20000, export_limit_w = 20000
         [[battery]] stored_wh = 0, capacity_wh = 10000, charge_w = 5000, discharge_w = 5000,
                     charge_efficiency = 0.95, discharge_efficiency = 0.95, discharge_wear = 10.0
"""
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``backtest``."""
    parser.add_argument("--prices", type=Path, required=True, help="CSV, also .gz")
    parser.add_argument("--load", type=Path, help="CSV, also .gz; none: the assets alone")
    parser.add_argument("--assets", type=Path, required=True, help="TOML")
    parser.add_argument("--learn", type=int, default=28, metavar="DAYS", help="first days, to learn from (default 28)")
    parser.add_argument("--days", type=int, default=7, help="to walk after them (default 7)")
    parser.add_argument("--minutes", type=int, help="longer rounds than the prices': their means")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Walk and report."""
    # Matrices are small: a second thread would only wait for the first. Read when numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from energybid.bidding.backtest import backtest  # noqa: PLC0415 (numpy: only who asks for this loads it)

    scene = _scene(arguments)
    try:
        report = backtest(scene, _progress)
    except ValueError as error:
        raise EnergybidError(str(error)) from None
    sys.stderr.write("\n")
    sys.stdout.write((json.dumps(_facts(report)) if arguments.json else _text(report, scene)) + "\n")
    return exit_codes.OK


def _progress(done: int, of: int) -> None:
    filled = 40 * done // of
    sys.stderr.write(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done} of {of} days")
    sys.stderr.flush()


def _scene(arguments: argparse.Namespace) -> "Scene":
    import numpy as np  # noqa: PLC0415 (see above)

    from energybid.bidding.backtest import Scene  # noqa: PLC0415
    from energybid.bidding.prices_trading import Market  # noqa: PLC0415

    rows = _rows(arguments.prices)
    real_time, day_ahead = (np.array(_column(arguments.prices, rows, name)) for name in ("real_time", "day_ahead"))
    size = _steps_per_day(arguments.prices, rows)
    if arguments.minutes:
        each = arguments.minutes * size // (24 * 60)
        if not each or size % each or each * 24 * 60 != arguments.minutes * size:
            raise EnergybidError(f"rounds of {arguments.minutes} minutes are no multiple of the prices' steps")
        real_time, day_ahead = (
            x[: len(x) // size * size].reshape(-1, each).mean(axis=1) for x in (real_time, day_ahead)
        )
        size //= each
    steps = (arguments.learn + arguments.days) * size
    if steps > len(real_time):
        raise EnergybidError(f"{arguments.prices} has {len(real_time) // size} days, not {steps // size}")
    load_w = np.zeros(steps)
    if arguments.load:
        load_w = _spread(arguments.load, size, steps)
    market = Market(real_time[:steps], day_ahead[:steps], size)
    return Scene(_site(arguments.assets), market, load_w, arguments.learn)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise EnergybidError(f"{path}: {error}") from None
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise EnergybidError(f"{path} has no rows")
    return rows


def _column(path: Path, rows: list[dict[str, str]], name: str) -> list[float]:
    found = next((column for column in rows[0] if column and column.startswith(name)), None)
    if found is None:
        raise EnergybidError(f"{path} has no column {name}")
    try:
        return [float(row[found]) for row in rows]
    except (TypeError, ValueError) as error:
        raise EnergybidError(f"{path}: {error}") from None


def _steps_per_day(path: Path, rows: list[dict[str, str]]) -> int:
    """From the rows of the first date."""
    first = next(iter(rows[0].values()))[:10]
    size = sum(1 for row in rows[: 24 * 60] if next(iter(row.values()))[:10] == first)
    if 24 * 60 % size or size % 12:
        raise EnergybidError(f"{path}: the first day has {size} steps, not whole minutes and a multiple of 12")
    return size


def _spread(path: Path, size: int, steps: int) -> "Array":
    """The load of every step, W."""
    import numpy as np  # noqa: PLC0415 (see above)

    rows = _rows(path)
    energy_kwh = np.array(_column(path, rows, "value"))
    try:
        first, second = (dt.datetime.fromisoformat(row["start"]) for row in rows[:2])
    except (KeyError, ValueError) as error:
        raise EnergybidError(f"{path}: column start, ISO 8601, two rows at least ({error})") from None
    hours = (second - first).total_seconds() / 3600
    each = hours * size / 24
    power_w = energy_kwh * 1000 / hours
    if each >= 1:
        power_w = np.repeat(power_w, round(each))
    else:
        many = round(1 / each)
        power_w = power_w[: len(power_w) // many * many].reshape(-1, many).mean(axis=1)
    return np.resize(power_w, steps)


def _site(path: Path) -> "Site":
    from energybid.bidding.assets_stores import Battery  # noqa: PLC0415 (see above)
    from energybid.bidding.site import Site  # noqa: PLC0415

    try:
        found = tomllib.loads(path.read_text())
        batteries = tuple(Battery(**table) for table in found.pop("battery", []))
        made = Site(batteries, **found.pop("site"))
    except (OSError, tomllib.TOMLDecodeError, TypeError, ValueError, KeyError) as error:
        raise ConfigurationError([f"{path}: {error}"]) from None
    if found or not batteries:
        raise ConfigurationError([f"{path}: [site] and [[battery]] tables, nothing else so far"])
    return made


def _facts(report: "Report") -> dict[str, Any]:
    return {
        "cost": {
            "without_assets": report.idle,
            "bid": report.bid.total,
            "loads_known": report.loads_known.total,
            "foresight": report.foresight.total,
        },
        "share_of_foresight": None if report.share != report.share else report.share,
        "regret": report.regret,
        "outside_limits_wh": report.bid.outside_wh,
    }


def _text(report: "Report", scene: "Scene") -> str:
    lines = [
        f"cost without assets      {report.idle:12.4f}",
        f"cost as bid              {report.bid.total:12.4f}",
        f"cost with foresight      {report.foresight.total:12.4f}",
        f"share of foresight       {report.share:12.1%}",
        *(f"regret, {name:17}{value:12.4f}" for name, value in report.regret.items()),
        f"outside limits           {report.bid.outside_wh:12.1f} Wh",
        "",
    ]
    prices = scene.market.real_time[scene.first_day * scene.market.steps_per_day :]
    for name, series in (("price", prices), ("net W", report.bid.net_w), ("Wh", report.bid.stored_wh)):
        lines.append(f"{name:6}{_bars(series)}  {series.min():.0f} to {series.max():.0f}")
    return "\n".join(lines)


def _bars(series: "Array") -> str:
    """Means of equal parts, as bars."""
    import numpy as np  # noqa: PLC0415 (see above)

    means = np.array([part.mean() for part in np.array_split(series, min(_WIDTH, len(series)))])
    low, high = float(means.min()), float(means.max())
    parts = (means - low) / (high - low) if high > low else means * 0
    return "".join(_BARS[1 + round(float(x) * (len(_BARS) - 2))] for x in parts)
