"""A back-test as a picture: prices, net power, what is stored, and one curve. Needs Pillow (extra ``plot``).

Drawn at twice the size and made smaller, which smooths the lines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from energybid.core.errors import EnergybidError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from energybid.bidding.backtest import Report, Scene
    from energybid.bidding.prices import Array

SCALE = 2
WIDTH, PANEL, GAP, LEFT, RIGHT, TOP = 1200, 190, 64, 72, 24, 56
"""Of the finished picture, pixels."""
INK, GRID_INK, PAPER = "#222222", "#dddddd", "#ffffff"
BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#999999"
TICKS = 4
"""Lines across a panel, about."""


class Line(NamedTuple):
    """A series in a panel."""

    name: str
    colour: str
    xs: Array
    ys: Array


def save(path: Path, report: Report, scene: Scene) -> None:
    """Draw and write the picture.

    Raises:
        EnergybidError: It can not be written.
    """
    size = scene.market.steps_per_day
    days = np.arange(len(report.bid.net_w)) / size
    walked = slice(scene.first_day * size, None)
    panels = [
        ("money per MWh", [
            Line("day-ahead price", GREY, days, scene.market.day_ahead[walked]),
            Line("real-time price", BLUE, days, scene.market.real_time[walked]),
        ], "days"),
        ("net import, kW", [
            Line("unsteered", GREY, days, np.array(report.idle.net_w) / 1000),
            Line("as bid", ORANGE, days, np.array(report.bid.net_w) / 1000),
        ], "days"),
        ("stored, kWh", [
            Line("with foresight", GREY, days, np.array(report.foresight.stored_wh) / 1000),
            Line("as bid", ORANGE, days, np.array(report.bid.stored_wh) / 1000),
        ], "days"),
    ]  # fmt: skip
    if report.bid.shown and report.bid.shown[1].steps:
        at, curve = report.bid.shown
        prices, powers = _stairs(curve.floor_w, [(step.ticks / 100, step.power_w) for step in curve.steps])
        title = f"curve bid on day {at / size - scene.first_day:.2f}"
        panels.append(("net import, kW", [Line(title, ORANGE, prices, powers)], "money per MWh"))
    saved = f"{report.share:.0%} of what foresight saves" if report.share == report.share else ""
    title = (
        f"cost {report.bid.total:.2f} as bid, {report.idle.total:.2f} unsteered,"
        f" {report.foresight.total:.2f} with foresight    {saved}"
    )
    try:
        _drawn(title, panels).save(path, "PNG", optimize=True)
    except OSError as error:
        raise EnergybidError(f"{path}: {error}") from None


def _stairs(floor_w: int, steps: Sequence[tuple[float, int]]) -> tuple[Array, Array]:
    """Corners of a curve, a little beyond its first and last price."""
    prices, powers = [steps[0][0] * 1.1 + 5.0], [floor_w]
    for price, power_w in steps:
        prices += [price, price]
        powers += [powers[-1], powers[-1] + power_w]
    prices.append(prices[-1] - 0.1 * abs(prices[-1]) - 5.0)
    return np.array(prices), np.array([*powers, powers[-1]]) / 1000


def _drawn(title: str, panels: Sequence[tuple[str, list[Line], str]]) -> Image.Image:
    height = TOP + len(panels) * (PANEL + GAP)
    image = Image.new("RGB", (WIDTH * SCALE, height * SCALE), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((LEFT * SCALE, 14 * SCALE), title, INK, _font(15))
    for number, (unit, lines, along) in enumerate(panels):
        _Panel(draw, TOP + number * (PANEL + GAP), lines).draw(unit, along)
    return image.resize((WIDTH, height), Image.Resampling.LANCZOS)


class _Panel:
    """One diagram."""

    def __init__(self, draw: ImageDraw.ImageDraw, top: int, lines: list[Line]) -> None:
        self._draw, self._top, self._lines = draw, top, lines
        self._x = _range([line.xs for line in lines])
        self._y = _range([line.ys for line in lines])

    def draw(self, unit: str, along: str) -> None:
        for value in _round_values(*self._y):
            y = self._at(self._x[0], value)[1]
            self._draw.line([(LEFT * SCALE, y), ((WIDTH - RIGHT) * SCALE, y)], GRID_INK, SCALE)
            self._text(LEFT - 8, y / SCALE, f"{value:g}", "rm")
        for value in _round_values(*self._x, 2 * TICKS):
            x = self._at(value, self._y[0])[0]
            self._text(x / SCALE, self._top + PANEL + 5, f"{value:g}", "ma")
        self._text(WIDTH - RIGHT, self._top + PANEL + 20, along, "ra")
        left = LEFT
        for line in self._lines:
            points = [self._at(x, y) for x, y in zip(line.xs.tolist(), line.ys.tolist(), strict=True)]
            self._draw.line(points, line.colour, 3, joint="curve")
            left = self._text(left, self._top - 12, line.name, "lm", line.colour) + 18
        self._text(WIDTH - RIGHT, self._top - 12, unit, "rm")

    def _at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self._x[0]) / (self._x[1] - self._x[0]) * (WIDTH - LEFT - RIGHT)
        down = (self._y[1] - y) / (self._y[1] - self._y[0]) * PANEL
        return (LEFT + across) * SCALE, (self._top + down) * SCALE

    def _text(self, x: float, y: float, text: str, anchor: str, colour: str = INK) -> int:
        """Where it ends."""
        self._draw.text((x * SCALE, y * SCALE), text, colour, _font(12), anchor)
        return round(x + self._draw.textlength(text, _font(12)) / SCALE)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size * SCALE)


def _range(series: list[Array]) -> tuple[float, float]:
    low, high = min(float(s.min()) for s in series), max(float(s.max()) for s in series)
    return (low, high) if high > low else (low - 1.0, high + 1.0)


def _round_values(low: float, high: float, about: int = TICKS) -> list[float]:
    """Round numbers between two, about so many."""
    raw = (high - low) / about
    unit = 10.0 ** np.floor(np.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first = int(np.ceil(low / step))
    return [n * step for n in range(first, int(np.floor(high / step)) + 1)]
