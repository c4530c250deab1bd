"""Where a simulated market's prices come from: a made-up series, or a file of recorded ones. Pure.

A series says, for a moment, the day-ahead and the real-time price in money per MWh. It may pass faster than the clock.
"""

import csv
import gzip
import io
import random
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from math import cos, pi
from typing import NamedTuple, Protocol

from energybid.core.errors import ConfigurationError

DAY_MS, HOUR_MS = 86_400_000, 3_600_000
STEP_MS = 300_000
"""Of a recorded series, and of the made-up real-time price."""
CENT = Decimal("0.01")
ROWS_MAX = 4_000_000
SUN_MEAN = 0.26
"""Of a made-up day's solar power."""


class Series(Protocol):
    """Prices, money per MWh, at moments of the series: ms since the Unix epoch, or later if time passes faster."""

    def day_ahead(self, at_ms: int) -> Decimal:
        """Constant over an hour."""

    def real_time(self, at_ms: int) -> Decimal:
        """Constant over five minutes."""


class MadeUp:
    """A day with two peaks, and solar power at noon that takes the price below zero on some days.

    Real time strays from day ahead slowly, and now and then it jumps. Everything follows from the seed.
    """

    def __init__(self, seed: int, mean: Decimal, swing: Decimal) -> None:
        """Choose its level.

        Args:
            seed: What looks like chance follows from it.
            mean: Day-ahead price in the mean of a day, about.
            swing: From the mean to a usual peak.
        """
        self._seed, self._mean, self._swing = seed, float(mean), float(swing)

    @lru_cache(maxsize=4096)  # noqa: B019  one series lives as long as its market
    def _chance(self, what: str, index: int) -> float:
        """From -1 to 1, mostly near 0."""
        chance = random.Random(f"{self._seed}/{what}/{index}")  # noqa: S311  a series must repeat itself
        return sum(chance.random() for _ in range(4)) / 2 - 1

    def day_ahead(self, at_ms: int) -> Decimal:
        """Of the hour."""
        hour = at_ms // HOUR_MS
        of_day, day = hour % 24, hour // 24
        shape = 0.35 * cos((of_day - 8) * pi / 4) + 0.65 * cos((of_day - 19) * pi / 6)
        sun = max(0.0, cos((of_day - 13) * pi / 9)) * (1.1 + 0.8 * self._chance("sun", day)) - SUN_MEAN
        level = 1 + 0.3 * self._chance("day", day)
        return _price(self._mean * level + self._swing * (shape - sun + 0.3 * self._chance("hour", hour)))

    def real_time(self, at_ms: int) -> Decimal:
        """Of five minutes."""
        step, part = divmod(at_ms // STEP_MS, 12)
        knots = self._chance("stray", step), self._chance("stray", step + 1)
        stray = knots[0] + (knots[1] - knots[0]) * part / 12
        index = at_ms // STEP_MS
        jump = self._chance("jump", index)
        spike = 4 * (abs(jump) - 0.7) * (1 if jump > 0 else -0.5) if abs(jump) > 0.7 else 0.0  # noqa: PLR2004
        noise = 0.15 * self._chance("noise", index)
        return _price(float(self.day_ahead(at_ms)) + self._swing * (stray + noise + spike))


def _price(value: float) -> Decimal:
    return Decimal(value).quantize(CENT)


class Recorded:
    """Five-minute rows, repeated for ever; the first row is a midnight."""

    def __init__(self, rows: Sequence[tuple[Decimal, Decimal]]) -> None:
        """Take rows of (day ahead, real time), money per MWh."""
        self._rows = rows

    def day_ahead(self, at_ms: int) -> Decimal:
        """Of the first row of the hour."""
        return self._rows[at_ms // HOUR_MS * (HOUR_MS // STEP_MS) % len(self._rows)][0]

    def real_time(self, at_ms: int) -> Decimal:
        """Of the row."""
        return self._rows[at_ms // STEP_MS % len(self._rows)][1]


class Scaled(NamedTuple):
    """A series that passes faster than the clock."""

    series: Series
    speed: int = 1
    """Seconds of the series in a second."""
    offset_ms: int = 0
    """Of the series, when the clock is at 0."""

    def _at(self, at_ms: int) -> int:
        return at_ms * self.speed + self.offset_ms

    def day_ahead(self, at_ms: int) -> Decimal:
        """At a moment of the clock."""
        return self.series.day_ahead(self._at(at_ms))

    def real_time(self, at_ms: int) -> Decimal:
        """At a moment of the clock."""
        return self.series.real_time(self._at(at_ms))

    @property
    def hour_ms(self) -> int:
        """An hour of the series, by the clock."""
        return HOUR_MS // self.speed


def parse_csv(name: str, data: bytes) -> Recorded:
    """A file of prices: a header that names columns ``...day_ahead...`` and ``...real_time...``, and a row each 5 min.

    Args:
        name: For messages.
        data: CSV, UTF-8; may be compressed by gzip.

    Raises:
        ConfigurationError: It is none.
    """
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        reader = csv.reader(io.StringIO(text))
        header = next(reader, [])
        columns = [_column(header, what) for what in ("day_ahead", "real_time")]
        rows = [tuple(Decimal(row[column]) for column in columns) for row in reader]
        finite = all(price.is_finite() for row in rows for price in row)
    except (OSError, EOFError, UnicodeDecodeError, ArithmeticError, IndexError, ValueError) as error:
        raise ConfigurationError([f"{name}: no table of prices: {error}"]) from None
    if not rows or len(rows) > ROWS_MAX or not finite:
        raise ConfigurationError([f"{name}: 1 to {ROWS_MAX} rows of numbers are wanted"])
    return Recorded([(row[0], row[1]) for row in rows])


def _column(header: Sequence[str], what: str) -> int:
    found = next((index for index, name in enumerate(header) if what in name), None)
    if found is None:
        raise ValueError(f"its header names no {what}")
    return found
