"""What was read from a meter, as lines for a terminal and as plain data for programs. Pure."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from struct import unpack
from typing import TYPE_CHECKING, Any

from energybid.agent.cabinet.reading import FAILURES, SILENCE, span_text
from energybid.core.quantities import Status, decimal_text
from energybid.drivers.live import value_text
from energybid.drivers.modbus.decode import in_order
from energybid.drivers.modbus.exchange import Failure
from energybid.drivers.modbus.map import TABLES, TYPES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from energybid.agent.cabinet.places import Place
    from energybid.agent.cabinet.reading import Asked, Look, RawRun, Value
    from energybid.drivers.profile import Register

EXCEPTIONS = {
    1: "illegal function",
    2: "illegal address",
    3: "illegal value",
    4: "device failure",
    5: "needs longer",
    6: "busy",
    10: "gateway has no path",
    11: "gateway's target did not respond",
}
"""Modbus Application Protocol V1.1b3 §7."""
GAP = "  "


def clock_text(time_ms: int) -> str:
    """A wall clock time, UTC."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def words(raw: bytes) -> str:
    """Registers in hexadecimal, a group for each."""
    return raw.hex(" ", 2).upper()


def shown(value: Value) -> str:
    """A value with its unit, or why there is none."""
    if value.exception is not None:
        return f"refused ({value.exception})"
    if value.mantissa is None:
        return Status(value.status).name.lower().replace("_", " ")
    return value_text(value.mantissa, value.register.quantity)


def delays_text(asked: Sequence[Asked]) -> str:
    """How many requests, and how long the replies took to begin."""
    delays = [one.delay_s for one in asked if one.outcome not in SILENCE and one.outcome != Failure.GARBLED]
    text = f"{len(asked)} request{'s' * (len(asked) != 1)}"
    if not delays:
        return f"{text}, no reply"
    low, high = round(min(delays) * 1000), round(max(delays) * 1000)
    return f"{text}, replies began after {low} ms" if low == high else f"{text}, replies began after {low} to {high} ms"


def look_lines(place: Place, look: Look) -> list[str]:
    """A reading of a meter."""
    rows = [("quantity", "value", "registers", "raw")]
    rows += [(v.register.name, shown(v), place_text(v.register), words(v.raw) if v.raw else "-") for v in look.values]
    refused = sorted({v.exception for v in look.values if v.exception is not None})
    return [
        place.title,
        f"at {place.where}",
        f"{clock_text(look.time_ms)}; {delays_text(look.asked)}",
        "",
        *columns(rows, right=1),
        *[f"({code}) {EXCEPTIONS.get(code, 'exception')}" for code in refused],
    ]


def place_text(register: Register) -> str:
    """Where a quantity lies."""
    return span_text(register.function, register.first, register.count)


def columns(rows: Sequence[Sequence[str]], *, right: int | None = None) -> list[str]:
    """Rows as lines, one column below another; ``right`` is the column that is set to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        GAP.join(
            cell.rjust(width) if i == right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def value_facts(value: Value) -> dict[str, Any]:
    """A value for programs: exact, in the profile's unit."""
    quantity = value.register.quantity
    return {
        "name": value.register.name,
        "obis": str(quantity.obis),
        "value": None if value.mantissa is None else decimal_text(value.mantissa, quantity.exponent),
        "unit": quantity.unit,
        "status": Status(value.status).name.lower(),
        "exception": value.exception,
        "table": TABLES[value.register.function],
        "register": value.register.first,
        "type": value.register.type,
        "raw": None if value.raw is None else value.raw.hex(" ", 2).split(),
    }


def asked_facts(asked: Asked) -> dict[str, Any]:
    """A request for programs."""
    return {"registers": str(asked), "delay_ms": round(asked.delay_s * 1000, 1), "error": asked.error}


def look_facts(place: Place, look: Look) -> dict[str, Any]:
    """A reading for programs."""
    return {
        "meter": place.name,
        "bus": place.bus.name,
        "unit": place.unit,
        "profile": place.loaded.name if place.loaded else None,
        "time_ms": look.time_ms,
        "values": [value_facts(value) for value in look.values],
        "requests": [asked_facts(asked) for asked in look.asked],
    }


# ---------------------------------------------------------------- raw registers


def number(kind: str, raw: bytes, *, little: bool, swap: bool) -> int | float:
    """What registers hold, taken for a number of a type."""
    value: int | float = unpack(">" + TYPES[kind].code, in_order(raw, little=little, swap=swap))[0]
    return value


def number_text(value: float) -> str:
    """Shortest text that is this number: seven digits are enough for any that came from a float32."""
    return str(value) if isinstance(value, int) else f"{value:.7g}"


def run_rows(run: RawRun, kind: str | None, *, little: bool, swap: bool) -> list[dict[str, Any]]:
    """A run's registers one by one, or number by number where a type is given."""
    if not isinstance(run.outcome, bytes):
        return [{"table": TABLES[run.function], "register": run.first, "count": run.length, "error": _why(run)}]
    size = TYPES[kind].registers if kind else 1
    rows = []
    for at in range(0, run.length, size):
        raw = run.outcome[2 * at : 2 * (at + size)]
        row: dict[str, Any] = {"table": TABLES[run.function], "register": run.first + at, "count": size}
        row["raw"] = raw.hex(" ", 2).split()
        if len(raw) < 2 * size:
            row |= {"count": len(raw) // 2, "error": "cut off"}
        elif kind:
            value = number(kind, raw, little=little, swap=swap)
            row["value"] = value if isinstance(value, int) or math.isfinite(value) else str(value)
        else:
            row |= {"unsigned": number("uint16", raw, little=False, swap=swap)}
            row |= {"signed": number("int16", raw, little=False, swap=swap), "text": _printable(raw)}
        rows.append(row)
    return rows


def _why(run: RawRun) -> str:
    code = int(run.outcome) if isinstance(run.outcome, int) else 0
    return FAILURES.get(code, f"exception {code}, {EXCEPTIONS.get(code, 'unknown')}")


def _printable(raw: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in raw)  # noqa: PLR2004  ASCII


def run_lines(rows: Sequence[dict[str, Any]], kind: str | None) -> list[str]:
    """Raw registers for people."""
    heads = ("registers", "raw", kind) if kind else ("register", "raw", "unsigned", "signed", "text")
    cells: list[tuple[str, ...]] = [heads]
    for row in rows:
        first, last = row["register"], row["register"] + row["count"] - 1
        place = f"{row['table']} {first}" + (f"-{last}" if last > first else "")
        raw = " ".join(row.get("raw", ())).upper() or "-"
        if "error" in row:
            cells.append((place, raw, *[""] * (len(heads) - 3), row["error"]))
        elif kind:
            value = row["value"]
            cells.append((place, raw, value if isinstance(value, str) else number_text(value)))
        else:
            cells.append((place, raw, str(row["unsigned"]), str(row["signed"]), row["text"]))
    return columns(cells)


def marked(name: str, text: str, *, changed: bool, names: Collection[str], width: int) -> str:
    """A value in a table of several columns: name, value, and a mark where it has changed."""
    longest = max(map(len, names))
    return f"{name:{longest}} {text:>{max(0, width - longest - 4)}} {'*' if changed else ' '}"
