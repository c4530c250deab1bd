"""``energybid backtest``: what a site would have paid, on prices and loads that were."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energybid.core import exit_codes
from energybid.core.errors import EnergybidError

if TYPE_CHECKING:
    from energybid.bidding.backtest import Report, Scene
    from energybid.bidding.prices import Array

HELP = "what a site would have paid, on prices and loads that were"
EXAMPLES = """\
examples:
  energybid backtest --prices nyc.csv.gz --load household.csv.gz --assets gateway.toml --learn 365 --days 7
  energybid backtest --prices nyc.csv.gz --assets assets.toml --minutes 30 --days 90 --json
  energybid backtest --prices nyc.csv.gz --assets assets.toml --minutes 15 --plot nyc.png

PRICES has a column whose name begins with real_time and one with day_ahead (money per MWh), even steps, whole days.
LOAD has the columns start and value: kWh per even interval. TEMPERATURE: start and value, degrees Celsius (a fixed 10
where there is none). SUN: start and value, parts of the rated power (a clear day's half sine where there is none). They
are laid on the prices from their first step, and again where they end.
ASSETS is [market] and [[market.asset]] as in gateway.toml (docs/assets.md); meters, registers and keys may be left out:
  [market]
  import_limit = "17 kW"
  export_limit = "10 kW"
  [[market.asset]]
  name = "battery"
  kind = "battery"
  capacity = "10 kWh"
  charge = "5 kW"
  discharge = "5 kW"
  charge_efficiency = 0.95
  discharge_efficiency = 0.95
  discharge_wear = 10.0
"""
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 96


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``backtest``."""
    parser.add_argument("--prices", type=Path, required=True, help="CSV, also .gz")
    parser.add_argument("--load", type=Path, help="CSV, also .gz; none: the assets alone")
    parser.add_argument("--temperature", type=Path, help="CSV, also .gz: outdoors, for heat pumps")
    parser.add_argument("--sun", type=Path, help="CSV, also .gz: what a solar roof gives")
    parser.add_argument("--assets", type=Path, required=True, help="TOML")
    parser.add_argument("--learn", type=int, default=28, metavar="DAYS", help="first days, to learn from (default 28)")
    parser.add_argument("--days", type=int, default=7, help="to walk after them (default 7)")
    parser.add_argument("--minutes", type=int, help="longer rounds than the prices': their means")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw prices, position and a curve (extra plot)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Walk and report."""
    # Matrices are small: a second thread would only wait for the first. Read when numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from energybid.agent.market.scenes import scene_of  # noqa: PLC0415 (numpy: only who asks for this loads it)
    from energybid.bidding.backtest import backtest  # noqa: PLC0415

    draw = _drawer(arguments.plot)
    scene = scene_of(arguments)
    try:
        report = backtest(scene, _progress)
    except ValueError as error:
        raise EnergybidError(str(error)) from None
    sys.stderr.write("\n")
    if draw:
        draw(report, scene)
    sys.stdout.write((json.dumps(_facts(report)) if arguments.json else _text(report, scene)) + "\n")
    return exit_codes.OK


def _drawer(path: Path | None) -> Any:  # noqa: ANN401
    """What draws the picture, before the long walk: a missing library is told at once."""
    if path is None:
        return None
    try:
        from energybid.agent.market.picture import save  # noqa: PLC0415 (Pillow: only who asks for a picture loads it)
    except ImportError:
        raise EnergybidError('a picture needs Pillow: pip install "energybid-edge[plot]"') from None
    return lambda report, scene: save(path, report, scene)


def _progress(done: int, of: int) -> None:
    filled = 40 * done // of
    sys.stderr.write(f"\r[{'#' * filled}{'.' * (40 - filled)}] {done} of {of} days")
    sys.stderr.flush()


def _facts(report: "Report") -> dict[str, Any]:
    return {
        "cost": {
            "unsteered": report.idle.total,
            "bid": report.bid.total,
            "loads_known": report.loads_known.total,
            "foresight": report.foresight.total,
        },
        "share_of_foresight": None if report.share != report.share else report.share,
        "regret": report.regret,
        "outside_limits_wh": report.bid.outside_wh,
    }


def _text(report: "Report", scene: "Scene") -> str:
    import numpy as np  # noqa: PLC0415 (see above)

    lines = [
        f"cost unsteered           {report.idle.total:12.4f}",
        f"cost as bid              {report.bid.total:12.4f}",
        f"cost with foresight      {report.foresight.total:12.4f}",
        f"share of foresight       {report.share:12.1%}",
        *(f"regret, {name:17}{value:12.4f}" for name, value in report.regret.items()),
        f"outside limits           {report.bid.outside_wh:12.1f} Wh",
        "",
    ]
    prices = scene.market.real_time[scene.first_day * scene.market.steps_per_day :]
    shown = (("price", prices), ("net W", np.array(report.bid.net_w)), ("Wh", np.array(report.bid.stored_wh)))
    for name, series in shown:
        lines.append(f"{name:6}{_bars(series)}  {series.min():.0f} to {series.max():.0f}")
    return "\n".join([*lines, *_curve_lines(report, scene)])


def _curve_lines(report: "Report", scene: "Scene") -> list[str]:
    """The curve with the most steps: at which price which net import."""
    if report.bid.shown is None or not report.bid.shown[1].steps:
        return []
    at, curve = report.bid.shown
    day, step = divmod(at, scene.market.steps_per_day)
    least, most = curve.floor_w, curve.ceiling_w
    lines = [
        "",
        f"curve of day {day - scene.first_day + 1}, {step * scene.step_h:05.2f} h: net import up to each price",
    ]
    power_w = curve.floor_w
    rows = [("above", power_w)]
    for made in curve.steps:
        power_w += made.power_w
        rows.append((f"{made.ticks / 100:.2f}", power_w))
    for price, net_w in reversed(rows):
        lines.append(f"{price:>10}  {'█' * round(60 * (net_w - least) / (most - least)):60}  {net_w} W")
    return lines


def _bars(series: "Array") -> str:
    """Means of equal parts, as bars."""
    import numpy as np  # noqa: PLC0415 (see above)

    means = np.array([part.mean() for part in np.array_split(series, min(_WIDTH, len(series)))])
    low, high = float(means.min()), float(means.max())
    parts = (means - low) / (high - low) if high > low else means * 0
    return "".join(_BARS[1 + round(float(x) * (len(_BARS) - 2))] for x in parts)
