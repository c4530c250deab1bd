"""What a gateway expects of its next day, for people: models and how they do, load, sun and temperature ahead.

Everything comes from what the planner has learned. Needs numpy (extra ``bidding``). Pure.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from energybid.agent.moments import moment_text
from energybid.bidding.forecast_spread import LEVELS
from energybid.bidding.forecast_weather import middles
from energybid.bidding.planning_load import SLOT_MS, SLOTS
from energybid.bidding.planning_weather import SITE

if TYPE_CHECKING:
    from energybid.bidding.planning import Planning

LIKELY, MIDDLING, MIDDLE = "░", "▓", "█"
"""10 to 90 %, 25 to 75 %, the forecast itself."""
OUTDOORS = "outdoors"
"""Around the site; the other temperatures are those around assets."""
BAR_MIN = 12
_HEADS = ("", "model", "version", "loss", "version before")


def foretold(planning: Planning, timezone: str, now_ms: int) -> dict[str, Any]:
    """The next day as JSON, from the half hour that has begun.

    Args:
        planning: What the agent has learned.
        timezone: IANA name, of the site.
        now_ms: Wall clock.
    """
    loads, weather = planning.loads, planning.weather
    seen_ms = max(
        [loads.seen_ms or 0, *(roof.last_ms for roof in weather.roofs.values())]
        + [place.last_ms for place in weather.places.values()]
    )
    at = now_ms // SLOT_MS * SLOT_MS, SLOT_MS, SLOTS
    sun_w = {name: roof.expected(*at, now_ms, None).round().tolist() for name, roof in weather.roofs.items()}
    places = {OUTDOORS if name == SITE else name: place for name, place in weather.places.items()}
    outside = {name: place.expected(middles(*at)).mean(axis=1) for name, place in places.items()}
    outside_c = {name: found.round(1).tolist() for name, found in outside.items()}
    return {
        "time": moment_text(now_ms),
        "timezone": timezone,
        "seen": moment_text(seen_ms) if seen_ms > 0 else None,
        "age_s": (now_ms - seen_ms) // 1000 if seen_ms > 0 else None,
        "learned": loads.learned.isoformat() if loads.learned else None,
        "models": [standing._asdict() for standing in loads.forecaster.standings()],
        "levels": list(LEVELS),
        "next_day": [
            {
                "begins": moment_text(at[0] + n * SLOT_MS),
                "load_w": _quantiles(planning, at[0] + n * SLOT_MS),
                "sun_w": {name: course[n] for name, course in sun_w.items()},
                "outside_c": {name: course[n] for name, course in outside_c.items()},
            }
            for n in range(SLOTS)
        ],
    }


def _quantiles(planning: Planning, at_ms: int) -> list[int] | None:
    found = planning.loads.quantiles(at_ms)
    return None if found is None else [round(power_w) for power_w in found.tolist()]


def shown(told: dict[str, Any], width: int) -> list[str]:
    """The same for a person's eyes.

    Args:
        told: Of ``foretold``.
        width: Columns of the terminal.
    """
    used = next(model for model in told["models"] if model["used"])
    known = told["next_day"][0]["load_w"] is not None
    seen = f"{told['seen'][:16].replace('T', ' ')} UTC, {_span(told['age_s'])} ago" if told["seen"] else "nothing yet"
    lines = [
        f"load     {used['model']}, version {used['version']}" if known else "load     no day is over yet: as now",
        f"learned  days until {told['learned'] or '-'}; seen last: {seen}",
        "",
        *_models(told["models"]),
        "",
    ]
    return lines + (_drawn(told, width) if known or told["next_day"][0]["sun_w"] else [])


def _models(models: list[dict[str, Any]]) -> list[str]:
    rows = [_HEADS]
    for model in models:
        loss = "-" if model["loss"] is None else f"{model['loss']:.3f}"
        older = "-" if model["older_days"] is None else f"{model['older_days']} days older"
        rows.append(("*" if model["used"] else "", model["model"], str(model["version"]), loss, older))
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _drawn(told: dict[str, Any], width: int) -> list[str]:
    """Two half hours a line."""
    zone, day = ZoneInfo(told["timezone"]), told["next_day"]
    pairs = [day[n : n + 2] for n in range(0, len(day), 2)]
    places = [name for name in day[0]["outside_c"] if name == OUTDOORS or not _same(day, name)]
    texts = [_text(pair, places) for pair in pairs]
    bar = max(BAR_MIN, width - max(map(len, texts)) - 11)
    known = [power_w for slot in day for power_w in slot["load_w"] or ()]
    least, most = min([0, *known]), max([1, *known])
    lines = [f"the next day ({told['timezone']}): net import without the assets"]
    for pair, text in zip(pairs, texts, strict=True):
        begins = datetime.fromisoformat(pair[0]["begins"]).astimezone(zone)
        lines.append(f"{begins:%H:%M}  |{_bar(pair, least, most, bar)}|  {text}")
    legend = f"{LIKELY} 10 to 90 %, {MIDDLING} 25 to 75 %, {MIDDLE} middle; from {least:,} to {most:,} W"
    return [*lines, f"{'':7}{legend}"] if known else lines


def _bar(pair: list[dict[str, Any]], least: int, most: int, width: int) -> str:
    if any(slot["load_w"] is None for slot in pair):
        return " " * width
    means = [sum(numbers) / len(numbers) for numbers in zip(*(slot["load_w"] for slot in pair), strict=True)]
    low, quarter, middle, three, high = (round((mean - least) * (width - 1) / (most - least)) for mean in means)
    cells = [" "] * width
    cells[low : high + 1] = LIKELY * (high + 1 - low)
    cells[quarter : three + 1] = MIDDLING * (three + 1 - quarter)
    cells[middle] = MIDDLE
    return "".join(cells)


def _same(day: list[dict[str, Any]], name: str) -> bool:
    """Whether it is as warm around an asset as around the site."""
    return all(slot["outside_c"][name] == slot["outside_c"].get(OUTDOORS) for slot in day)


def _text(pair: list[dict[str, Any]], places: list[str]) -> str:
    loads = [slot["load_w"][len(LEVELS) // 2] for slot in pair if slot["load_w"]]
    parts = [f"{sum(loads) / len(loads):7,.0f} W"] if loads else []
    parts += [f"{name} {_mean(pair, 'sun_w', name):7,.0f} W" for name in pair[0]["sun_w"]]
    parts += [f"{name} {_mean(pair, 'outside_c', name):5.1f} °C" for name in places]
    return "  ".join(parts)


def _mean(pair: list[dict[str, Any]], what: str, name: str) -> float:
    return float(sum(slot[what][name] for slot in pair) / len(pair))


def _span(seconds: int) -> str:
    return f"{seconds / 3600:.0f} h" if seconds >= 2 * 3600 else f"{seconds / 60:.0f} min"
