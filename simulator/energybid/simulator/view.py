"""What the demo shows while it runs: agents and market as live tables, or as one line for a log. Pure."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table

from energybid.simulator.showcase_tally import Shown, Tally

COLUMNS = (("voltage L1", "1-0:32.7.0"), ("current L1", "1-0:31.7.0"), ("power", "1-0:16.7.0"), ("import", "1-0:1.8.0"))
"""Heading and OBIS code of the values shown of each meter."""
POWER, IMPORTED, EXPORTED = "1-0:16.7.0", "1-0:1.7.0", "1-0:2.7.0"
CHARGE, TEMPERATURE = "1-0:135.7.0", "0-0:96.9.0"
ROOT_DIGITS = 16
WIDE = 120


def bytes_per_value(statuses: Sequence[dict[str, Any]]) -> str:
    """MQTT bytes, both directions, over values read so far."""
    wire = sum(each["uplink"]["sent_bytes"] + each["uplink"]["received_bytes"] for each in statuses)
    values = sum(each["values"] for each in statuses)
    return f"{wire / values:.2f}" if values else "–"


def _age(time_ms: int | None, now_ms: int) -> str:
    return "–" if time_ms is None else f"{max(0, now_ms - time_ms) / 1000:.1f} s"


def _number(value: str) -> Decimal:
    return Decimal(value.partition(" ")[0])


def _text(values: dict[str, str], code: str) -> str:
    """A value as people read it: energy in kWh, net power of a meter that counts each direction by itself."""
    if code == POWER and IMPORTED in values and EXPORTED in values:
        try:
            return f"{_number(values[IMPORTED]) - _number(values[EXPORTED])} W"
        except ArithmeticError:
            return "–"
    value = values.get(code, "–")
    number, _, unit = value.partition(" ")
    return f"{Decimal(number).scaleb(-3)} kWh" if unit == "Wh" else value


def _holds(values: dict[str, str]) -> str:
    """What a device stores."""
    if charge := values.get(CHARGE):
        return f"{float(_number(charge)):.1%}" if charge[:1].isdigit() else charge
    return values.get(TEMPERATURE, "").replace("Cel", "°C")


def _receipt(status: dict[str, Any], now_ms: int) -> str:
    receipt = status["receipt"]
    if receipt is None:
        return "none yet"
    root = receipt["root"][:ROOT_DIGITS]
    return f"{receipt['size']} entries, root {root}…, {_age(receipt['time_ms'], now_ms)} ago"


def meters_table(statuses: Sequence[dict[str, Any]], now_ms: int, *, wide: bool) -> Table:
    """One row a meter; a narrow terminal does without bus and model."""
    table = Table(expand=True, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("meter", *(("bus", "model") if wide else ()), "state"):
        table.add_column(heading, no_wrap=True)
    for heading in (*(name for name, _ in COLUMNS), "holds", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for status in statuses:
        for meter in status["meters"]:
            place = (f"{meter['bus']} {meter['unit']}", meter["profile"]) if wide else ()
            values = [_text(meter["values"], code) for _, code in COLUMNS]
            age = _age(meter["time_ms"], now_ms)
            table.add_row(meter["name"], *place, meter["state"], *values, _holds(meter["values"]), age)
        table.add_section()
    return table


def log_facts(statuses: Sequence[dict[str, Any]], now_ms: int) -> Table:
    """The logs, the uplinks and the receipts."""
    table = Table.grid(padding=(0, 2))
    for status in statuses:
        log, uplink = status["log"], status["uplink"]
        link = "connected" if uplink["connected"] else uplink["error"] or "not connected"
        entries = f"{log['size']} entries, {log['committed']} committed, {log['acknowledged']} acknowledged"
        table.add_row(f"[bold]{status['gateway']}[/bold]", entries, f"receipt: {_receipt(status, now_ms)}", link)
    values = sum(status["values"] for status in statuses)
    table.add_row("[bold]MQTT[/bold]", f"{bytes_per_value(statuses)} bytes per value, {values} values so far")
    return table


def _traded(award: dict[str, Any]) -> str:
    """What a gateway got in a round, and what became of it."""
    if award["verdict"] != "awarded":
        return str(award["verdict"])
    text = f"{award['net_w'] - award['schedule_w']:+d} W"
    if "amount" in award:
        return f"{text}: {award['delivered_wh']} of {award['awarded_wh']} Wh, {award['amount']}"
    return f"{text}: {award['why']}" if "why" in award else text


def rounds_table(tally: Tally) -> Table:
    """The last rounds: what each gateway trades against its schedule, what it delivered, what that is worth."""
    table = Table(expand=True, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    names = sorted({name for shown in tally.rounds for name in shown.awards})
    for heading in ("round", f"{tally.currency}/MWh", *names):
        table.add_column(heading, justify="right", no_wrap=True)
    for shown in tally.rounds:
        table.add_row(str(shown.number), shown.price, *(_cell(shown, name) for name in names))
    return table


def _cell(shown: Shown, name: str) -> str:
    award = shown.awards.get(name)
    return "no bid" if award is None else _traded(award)


def market_facts(tally: Tally) -> str:
    """The totals."""
    counts = tally.counts
    return (
        f"{counts['cleared']} rounds, {counts['bid']} bids, {counts['awarded']} awards, {counts['settled']} settled: "
        f"{tally.delivered_wh} Wh delivered, {tally.paid} {tally.currency} paid; {counts['refused']} messages refused"
    )


def screen(statuses: Sequence[dict[str, Any]], tally: Tally | None, now_ms: int, width: int) -> Group | Panel:
    """All of it, on a terminal of so many columns."""
    if not statuses:
        return Panel("starting…", title="energybid demo")
    parts: list[RenderableType] = []
    if tally is not None:  # first: a terminal of few lines shows no more than the beginning
        shown = Group(rounds_table(tally), market_facts(tally)) if tally.rounds else market_facts(tally)
        parts.append(Panel(shown, title="market: power against the schedule, energy delivered of awarded, money"))
    parts.append(meters_table(statuses, now_ms, wide=width >= WIDE))
    parts.append(Panel(log_facts(statuses, now_ms), title="signed logs"))
    return Group(*parts)


def line(statuses: Sequence[dict[str, Any]], tally: Tally | None, now_ms: int) -> str:
    """The same in one line."""
    if not statuses:
        return "starting"
    meters = [meter for status in statuses for meter in status["meters"]]
    online = sum(meter["time_ms"] is not None for meter in meters)
    values, size, acknowledged = (
        sum(numbers)
        for numbers in zip(*((s["values"], s["log"]["size"], s["log"]["acknowledged"]) for s in statuses), strict=True)
    )
    text = (
        f"{online} of {len(meters)} meters, {values} values, logs {size}, acknowledged {acknowledged}, "
        f"{bytes_per_value(statuses)} bytes per value, receipt {_receipt(statuses[0], now_ms)}"
    )
    return text if tally is None else f"{text}; {market_facts(tally)}"
