"""What the demo shows while it runs: the agent's status as a live table, or as one line for a log. Pure."""

from decimal import Decimal
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.panel import Panel
from rich.table import Table

COLUMNS = (("voltage L1", "1-0:32.7.0"), ("current L1", "1-0:31.7.0"), ("power", "1-0:16.7.0"), ("import", "1-0:1.8.0"))
"""Heading and OBIS code of the values shown of each meter."""
ROOT_DIGITS = 16
WIDE = 120


def bytes_per_value(status: dict[str, Any]) -> str:
    """MQTT bytes, both directions, over values read so far."""
    uplink, values = status["uplink"], status["values"]
    return f"{(uplink['sent_bytes'] + uplink['received_bytes']) / values:.2f}" if values else "–"


def _age(time_ms: int | None, now_ms: int) -> str:
    return "–" if time_ms is None else f"{max(0, now_ms - time_ms) / 1000:.1f} s"


def _text(value: str) -> str:
    """Energy in kWh, as people read it."""
    number, _, unit = value.partition(" ")
    return f"{Decimal(number).scaleb(-3)} kWh" if unit == "Wh" else value


def _receipt(status: dict[str, Any], now_ms: int) -> str:
    receipt = status["receipt"]
    if receipt is None:
        return "none yet"
    root = receipt["root"][:ROOT_DIGITS]
    return f"{receipt['size']} entries, root {root}…, {_age(receipt['time_ms'], now_ms)} ago"


def meters_table(status: dict[str, Any], now_ms: int, *, wide: bool) -> Table:
    """One row a meter; a narrow terminal does without bus and model."""
    table = Table(expand=True, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("meter", *(("bus", "model") if wide else ()), "state"):
        table.add_column(heading, no_wrap=True)
    for heading in (*(name for name, _ in COLUMNS), "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for meter in status["meters"]:
        place = (f"{meter['bus']} {meter['unit']}", meter["profile"]) if wide else ()
        values = (_text(meter["values"].get(code, "–")) for _, code in COLUMNS)
        table.add_row(meter["name"], *place, meter["state"], *values, _age(meter["time_ms"], now_ms))
    return table


def log_facts(status: dict[str, Any], now_ms: int) -> Table:
    """The log, the uplink and the receipt."""
    log, uplink = status["log"], status["uplink"]
    table = Table.grid(padding=(0, 2))
    link = "connected" if uplink["connected"] else uplink["error"] or "not connected"
    mqtt = uplink["sent_bytes"] + uplink["received_bytes"]
    for name, text in (
        ("log", f"{log['size']} entries, {log['committed']} committed and signed, epoch {log['epoch'][:8]}…"),
        ("acknowledged", f"{log['acknowledged']} entries"),
        ("last receipt", _receipt(status, now_ms)),
        ("uplink", f"{link}, {uplink['batches']} batches, {mqtt} bytes of MQTT"),
        ("on the wire", f"{bytes_per_value(status)} bytes per value, {status['values']} values so far"),
    ):
        table.add_row(f"[bold]{name}[/bold]", text)
    return table


def screen(status: dict[str, Any] | None, now_ms: int, width: int) -> Group | Panel:
    """All of it, on a terminal of so many columns."""
    if status is None:
        return Panel("starting…", title="energybid demo")
    return Group(
        meters_table(status, now_ms, wide=width >= WIDE), Panel(log_facts(status, now_ms), title=status["gateway"])
    )


def line(status: dict[str, Any] | None, now_ms: int) -> str:
    """The same in one line."""
    if status is None:
        return "starting"
    log = status["log"]
    online = sum(meter["time_ms"] is not None for meter in status["meters"])
    return (
        f"{online} of {len(status['meters'])} meters, {status['values']} values, log {log['size']}, "
        f"acknowledged {log['acknowledged']}, {bytes_per_value(status)} bytes per value, "
        f"receipt {_receipt(status, now_ms)}"
    )
