"""``energybid export``: readings, commands and a market's messages as rows for people, through sqlite-utils."""

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import sqlite_utils

from energybid.agent.journal import Journal
from energybid.agent.rows import EpochRow
from energybid.core import exit_codes
from energybid.core.entries import Command, CommandCause, CommandOutcome, Declaration, MarketMessage, Reading
from energybid.core.errors import EnergybidError
from energybid.core.quantities import ClockState, Obis, Status, decimal_text
from energybid.core.timeline import Corrected, Timeline
from energybid.sync.logged import Teller

if TYPE_CHECKING:
    from collections.abc import Callable

HELP = "write a journal's readings, commands and market messages into a plain SQLite database for people"
EXAMPLES = """\
examples:
  energybid export journal.db readings.db
  sqlite-utils rows readings.db readings --csv --limit 10
  sqlite-utils readings.db "select meter, obis, max(value), unit from readings group by 1, 2"
  sqlite-utils rows readings.db commands --table
  sqlite-utils readings.db "select round, price, net_w from market where kind = 'award' and reason = 'none'" --table

Table readings: a row for each value. Table commands, where there were any: what was to be written to devices, for whom,
why, and what became of it (docs/control.md). Table market, where there were any: what was sent to a market and came
from it, what it says, and why it was refused (docs/market.md).
"""
ROWS_AT_ONCE = 5000
ASIDE_AT_ONCE = 500
STATUSES = frozenset(Status)


def _names(kind: type) -> dict[int, str]:
    """The numbers of a class of constants, in words."""
    return {number: name.lower() for name, number in vars(kind).items() if name.isupper()}


CAUSES, OUTCOMES = _names(CommandCause), _names(CommandOutcome)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``export``."""
    parser.add_argument("journal", type=Path, help="the agent's journal; may be in use")
    parser.add_argument("target", type=Path, help="the database to make; must not exist")


def run(arguments: argparse.Namespace) -> int:
    """Export all readings, commands and messages of a market that the journal keeps."""
    if not arguments.journal.exists():
        raise EnergybidError(f"{arguments.journal}: no such file")
    if arguments.target.exists():
        raise EnergybidError(f"{arguments.target} exists; name a new file")
    source = apsw.Connection(str(arguments.journal), flags=apsw.SQLITE_OPEN_READONLY)
    target = sqlite_utils.Database(str(arguments.target))
    aside = Aside(commands=partial(_insert, target.table("commands")), market=partial(_insert, target.table("market")))
    readings = target.table("readings").insert_all(
        rows(source, str(arguments.journal), aside), pk=("epoch", "sequence", "obis"), batch_size=ROWS_AT_ONCE
    )
    aside.end()
    counted = [f"{readings.count if readings.exists() else 0} values"]
    counted += [f"{aside.counts['commands']} commands"] if aside.counts["commands"] else []
    counted += [f"{aside.counts['market']} messages of a market"] if aside.counts["market"] else []
    told = " and ".join(filter(None, [", ".join(counted[:-1]), counted[-1]]))
    sys.stderr.write(f"{told} written to {arguments.target}\n")
    target.close()
    source.close()
    return exit_codes.OK


def _insert(table: sqlite_utils.db.Table, some: list[dict[str, Any]]) -> None:
    table.insert_all(some, pk=("epoch", "sequence"), batch_size=ROWS_AT_ONCE)


class Aside:
    """Rows of other tables that are met on the way through the readings; a few at a time in memory."""

    def __init__(self, **takers: "Callable[[list[dict[str, Any]]], None]") -> None:
        """Table → who takes its rows."""
        self.counts = dict.fromkeys(takers, 0)
        self._takers = takers
        self._rows: dict[str, list[dict[str, Any]]] = {table: [] for table in takers}

    def put(self, table: str, row: dict[str, Any]) -> None:
        """Take a row."""
        self.counts[table] += 1
        waiting = self._rows[table]
        waiting.append(row)
        if len(waiting) >= ASIDE_AT_ONCE:
            self._takers[table](waiting)
            waiting.clear()

    def end(self) -> None:
        """Hand over what is left."""
        for table, waiting in self._rows.items():
            if waiting:
                self._takers[table](waiting)


def rows(source: apsw.Connection, path: str, aside: Aside) -> Iterator[dict[str, Any]]:
    """One row a value; ``value`` is exact decimal text, ``corrected_ms`` the best time (docs/formats.md §8).

    Args:
        source: The journal.
        path: Its name, for messages.
        aside: Takes the rows of the tables ``commands`` and ``market`` on the way.
    """
    journal = Journal(source, path, check=False)
    teller = Teller()
    for epoch in journal.epochs():
        declarations: dict[int, Declaration] = {}
        line = _timeline(journal, epoch)
        for segment in journal.segments(epoch.number, 0):
            for sequence, entry in enumerate(segment.entries(), segment.first):
                if isinstance(entry, Declaration):
                    declarations[sequence] = entry
                elif isinstance(entry, Reading):
                    declaration = declarations.get(entry.declaration)
                    if declaration:
                        yield from _values(epoch, sequence, declaration, entry, line.correct(entry))
                elif isinstance(entry, Command):
                    aside.put("commands", _command(epoch, sequence, entry, line.correct(entry)))
                elif isinstance(entry, MarketMessage):
                    aside.put("market", _dated(epoch, sequence, entry, line.correct(entry)) | teller.facts(entry))


def _timeline(journal: Journal, epoch: EpochRow) -> Timeline:
    """A first pass: a reading's time may be corrected by what comes after it."""
    line = Timeline()
    for segment in journal.segments(epoch.number, 0):
        for sequence, entry in enumerate(segment.entries(), segment.first):
            line.add(sequence, entry)
    return line


def _values(
    epoch: EpochRow, sequence: int, declaration: Declaration, reading: Reading, corrected: Corrected
) -> Iterator[dict[str, Any]]:
    quantities = declaration.groups[reading.group][1]
    marks = reading.status or (0,) * len(reading.values)
    for (obis, unit, exponent, _), value, mark in zip(quantities, reading.values, marks, strict=True):
        yield {
            "epoch": epoch.id.hex(),
            "sequence": sequence,
            "meter": declaration.meter,
            "time_ms": reading.time_ms,
            "clock": ClockState(reading.clock).name.lower(),
            "corrected_ms": corrected.time_ms,
            "uncertainty_ms": corrected.uncertainty_ms,
            "obis": str(Obis(obis)),
            "value": None if value is None else decimal_text(value, exponent),
            "unit": unit,
            "status": Status(mark).name.lower() if mark in STATUSES else str(mark),
        }


def _dated(epoch: EpochRow, sequence: int, entry: Command | MarketMessage, corrected: Corrected) -> dict[str, Any]:
    return {
        "epoch": epoch.id.hex(),
        "sequence": sequence,
        "time_ms": entry.time_ms,
        "clock": ClockState(entry.clock).name.lower(),
        "corrected_ms": corrected.time_ms,
        "uncertainty_ms": corrected.uncertainty_ms,
    }


def _command(epoch: EpochRow, sequence: int, command: Command, corrected: Corrected) -> dict[str, Any]:
    until_ms = command.until_ms
    return _dated(epoch, sequence, command, corrected) | {
        "meter": command.meter,
        "writable": command.writable,
        "value": decimal_text(command.mantissa, command.exponent),
        "found": None if command.found is None else decimal_text(command.found, command.exponent),
        "unit": command.unit,
        "owner": command.owner,
        "rank": command.rank,
        "cause": CAUSES.get(command.cause, str(command.cause)),
        "outcome": OUTCOMES.get(command.outcome, str(command.outcome)),
        "for_ms": None if until_ms is None else until_ms - command.mono_ms,
    }
