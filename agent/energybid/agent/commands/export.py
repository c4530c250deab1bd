"""``energybid export``: readings and commands of a journal as rows for people, through sqlite-utils."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import sqlite_utils

from energybid.agent.journal import Journal
from energybid.agent.rows import EpochRow
from energybid.core import exit_codes
from energybid.core.entries import Command, CommandCause, CommandOutcome, Declaration, Reading
from energybid.core.errors import EnergybidError
from energybid.core.quantities import ClockState, Obis, Status, decimal_text
from energybid.core.timeline import Corrected, Timeline

HELP = "write a journal's readings and commands into a plain SQLite database for people"
EXAMPLES = """\
examples:
  energybid export journal.db readings.db
  sqlite-utils rows readings.db readings --csv --limit 10
  sqlite-utils readings.db "select meter, obis, max(value), unit from readings group by 1, 2"
  sqlite-utils rows readings.db commands --table

Table readings: a row for each value. Table commands, where there were any: what was to be written to devices, for whom,
why, and what became of it (docs/control.md).
"""
ROWS_AT_ONCE = 5000
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
    """Export all readings and commands that the journal keeps."""
    if not arguments.journal.exists():
        raise EnergybidError(f"{arguments.journal}: no such file")
    if arguments.target.exists():
        raise EnergybidError(f"{arguments.target} exists; name a new file")
    source = apsw.Connection(str(arguments.journal), flags=apsw.SQLITE_OPEN_READONLY)
    target = sqlite_utils.Database(str(arguments.target))
    commands: list[dict[str, Any]] = []
    readings = target.table("readings").insert_all(
        rows(source, str(arguments.journal), commands), pk=("epoch", "sequence", "obis"), batch_size=ROWS_AT_ONCE
    )
    target.table("commands").insert_all(commands, pk=("epoch", "sequence"), batch_size=ROWS_AT_ONCE)
    told = f"{readings.count if readings.exists() else 0} values" + (
        f" and {len(commands)} commands" if commands else ""
    )
    sys.stderr.write(f"{told} written to {arguments.target}\n")
    target.close()
    source.close()
    return exit_codes.OK


def rows(source: apsw.Connection, path: str, commands: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row a value; ``value`` is exact decimal text, ``corrected_ms`` the best time (docs/formats.md §8).

    Args:
        source: The journal.
        path: Its name, for messages.
        commands: Takes the rows of the other table on the way: a journal is long, and has few of them.
    """
    journal = Journal(source, path, check=False)
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
                    commands.append(_command(epoch, sequence, entry, line.correct(entry)))


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


def _command(epoch: EpochRow, sequence: int, command: Command, corrected: Corrected) -> dict[str, Any]:
    until_ms = command.until_ms
    return {
        "epoch": epoch.id.hex(),
        "sequence": sequence,
        "meter": command.meter,
        "writable": command.writable,
        "time_ms": command.time_ms,
        "clock": ClockState(command.clock).name.lower(),
        "corrected_ms": corrected.time_ms,
        "uncertainty_ms": corrected.uncertainty_ms,
        "value": decimal_text(command.mantissa, command.exponent),
        "found": None if command.found is None else decimal_text(command.found, command.exponent),
        "unit": command.unit,
        "owner": command.owner,
        "rank": command.rank,
        "cause": CAUSES.get(command.cause, str(command.cause)),
        "outcome": OUTCOMES.get(command.outcome, str(command.outcome)),
        "for_ms": None if until_ms is None else until_ms - command.mono_ms,
    }
