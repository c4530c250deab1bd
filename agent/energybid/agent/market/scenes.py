"""A back-test's scene from files: prices, loads and weather as CSV, the site as TOML. Needs numpy (``bidding``)."""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import tomllib
from typing import TYPE_CHECKING

import numpy as np

from energybid.agent.market.devices import World, devices, sky
from energybid.agent.market.wiring import site_plan
from energybid.bidding.backtest import Scene
from energybid.bidding.prices_trading import Market
from energybid.core.errors import ConfigurationError, EnergybidError

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from energybid.agent.market.plan import MarketPlan
    from energybid.bidding.prices import Array

DAY_MIN = 24 * 60
OUTSIDE_C = 10.0
"""Where no temperature is given."""
_EPOCH = dt.date(1970, 1, 1)


def scene_of(arguments: argparse.Namespace) -> Scene:
    """What the options of ``energybid backtest`` name.

    Raises:
        EnergybidError: A file that can not be read, or does not hold enough.
        ConfigurationError: Every fault in the site.
    """
    site = _site(arguments.assets)
    rows = _rows(arguments.prices)
    size, begins = _days(arguments.prices, rows)
    real_time, day_ahead = (np.array(_column(arguments.prices, rows, name)) for name in ("real_time", "day_ahead"))
    market = _longer(Market(real_time, day_ahead, size), arguments.minutes)
    size, steps = market.steps_per_day, (arguments.learn + arguments.days) * market.steps_per_day
    if steps > len(market.real_time):
        raise EnergybidError(f"{arguments.prices} has {len(market.real_time) // size} days, not {steps // size}")
    load_w = np.zeros(steps)
    if arguments.load:
        energy_kwh, hours = _series(arguments.load)
        load_w = _spread(energy_kwh * 1000 / hours, hours, size, steps)
    outside_c = np.full(steps, OUTSIDE_C) if not arguments.temperature else _on(arguments.temperature, size, steps)
    sun = _clear_sky(size, steps) if not arguments.sun else _on(arguments.sun, size, steps)
    begins_ms = (begins - _EPOCH).days * 86_400_000
    world = World(begins_ms, 86_400_000 // size, outside_c, sun)
    market = Market(market.real_time[:steps], market.day_ahead[:steps], size)
    return Scene(
        devices(site, world),
        site.import_limit_w,
        site.export_limit_w,
        market,
        load_w,
        arguments.learn,
        begins,
        tuple(asset.name for asset in site.assets),
        sky(site, world),
    )


def _longer(market: Market, minutes: int | None) -> Market:
    """Rounds that are longer than the steps of the prices."""
    size = market.steps_per_day
    if not minutes:
        return market
    each = minutes * size // DAY_MIN
    if not each or size % each or each * DAY_MIN != minutes * size:
        raise EnergybidError(f"rounds of {minutes} minutes are no multiple of the prices' steps")
    columns = (market.real_time, market.day_ahead)
    real_time, day_ahead = (x[: len(x) // size * size].reshape(-1, each).mean(axis=1) for x in columns)
    return Market(real_time, day_ahead, size // each)


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


def _days(path: Path, rows: list[dict[str, str]]) -> tuple[int, dt.date]:
    """Steps of a day, from the rows of the first date; and that date."""
    first = next(iter(rows[0].values()))[:10]
    size = sum(1 for row in rows[:DAY_MIN] if next(iter(row.values()))[:10] == first)
    if DAY_MIN % size or size % 12:
        raise EnergybidError(f"{path}: the first day has {size} steps, not whole minutes and a multiple of 12")
    try:
        return size, dt.date.fromisoformat(first)
    except ValueError:
        raise EnergybidError(f"{path}: the first column is the date, ISO 8601 (found {first!r})") from None


def _series(path: Path) -> tuple[Array, float]:
    """Values and the hours of each."""
    rows = _rows(path)
    values = np.array(_column(path, rows, "value"))
    try:
        first, second = (dt.datetime.fromisoformat(row["start"]) for row in rows[:2])
    except (KeyError, ValueError) as error:
        raise EnergybidError(f"{path}: column start, ISO 8601, two rows at least ({error})") from None
    return values, (second - first).total_seconds() / 3600


def _on(path: Path, size: int, steps: int) -> Array:
    values, hours = _series(path)
    return _spread(values, hours, size, steps)


def _spread(values: Array, hours: float, size: int, steps: int) -> Array:
    """Laid on steps, from the first one, and again."""
    each = hours * size / 24
    if each >= 1:
        values = np.repeat(values, round(each))
    else:
        many = round(1 / each)
        values = values[: len(values) // many * many].reshape(-1, many).mean(axis=1)
    return np.resize(values, steps)


def _clear_sky(size: int, steps: int) -> Array:
    """From six to six, 70 % at noon."""
    hour = np.arange(steps) % size / size * 24
    return np.asarray(0.7 * np.maximum(0.0, np.sin((hour - 6) / 12 * np.pi)))


def _site(path: Path) -> MarketPlan:
    try:
        found = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError([f"{path}: {error}"]) from None
    return site_plan(str(path), found)
