"""Watching a meter: what the polls so far brought and cost, as numbers, lines, a table that stays in place. Pure."""

from __future__ import annotations

import math
from collections import Counter, deque
from statistics import median
from typing import TYPE_CHECKING, Any

from energybid.agent.cabinet.reading import SILENCE
from energybid.agent.cabinet.table import clock_text, marked, shown
from energybid.drivers.modbus.exchange import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.agent.cabinet.places import Place
    from energybid.agent.cabinet.reading import Look, Value

COLUMN_MIN = 34
"""Least width of a column of name and value."""
LATEST = 1000
"""The median is that of so many replies: a watch may go on for days."""
UNTOLD = SILENCE | {Failure.GARBLED}


class Statistics:
    """What polls have cost."""

    def __init__(self) -> None:
        """Begin."""
        self.polls = 0
        self.failed = 0
        """Polls that brought nothing."""
        self.requests = 0
        self.errors: Counter[str] = Counter()
        """Requests that were not answered as wanted, and losses of the bus, by kind."""
        self._delays_s: deque[float] = deque(maxlen=LATEST)
        """Of the latest replies, exceptions too."""
        self._least_s, self._greatest_s = math.inf, 0.0

    def add(self, look: Look) -> None:
        """A poll was made."""
        self.polls += 1
        self.failed += not look.read
        for asked in look.asked:
            self.requests += 1
            if asked.error is not None:
                self.errors[asked.error] += 1
            if asked.outcome not in UNTOLD:
                self._delays_s.append(asked.delay_s)
                self._least_s = min(self._least_s, asked.delay_s)
                self._greatest_s = max(self._greatest_s, asked.delay_s)

    def lost(self) -> None:
        """A poll found no bus."""
        self.polls += 1
        self.failed += 1
        self.errors["bus down"] += 1

    def facts(self) -> dict[str, Any]:
        """For programs."""
        return {
            "polls": self.polls,
            "failed": self.failed,
            "requests": self.requests,
            "errors": dict(self.errors),
            "delay_ms": [round(value * 1000, 1) for value in self._delays()],
        }

    def _delays(self) -> list[float]:
        """Least, median of the latest, greatest; empty before the first reply."""
        known = self._delays_s
        return [self._least_s, median(known), self._greatest_s] if known else []

    def text(self) -> str:
        """For people, in one line."""
        parts = [f"{self.polls} poll{'s' * (self.polls != 1)}"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if delays := self._delays():
            parts.append("replies after {:.0f}/{:.0f}/{:.0f} ms (min/median/max)".format(*(d * 1000 for d in delays)))
        parts += [f"{count}x {kind}" for kind, count in sorted(self.errors.items())]
        return ", ".join(parts)


def changed(now: Look, before: Look | None) -> set[str]:
    """Names of the quantities whose value is another than before."""
    if before is None:
        return set()
    old = {value.register.name: (value.mantissa, value.status) for value in before.values}
    return {v.register.name for v in now.values if old.get(v.register.name) != (v.mantissa, v.status)}


def plain_line(look: Look, names: Sequence[str] | None) -> str:
    """A poll in one line, for files and pipes."""
    values = [f"{v.register.name}={shown(v).replace(' ', '')}" for v in wanted(look, names)]
    return " ".join([clock_text(look.time_ms).removesuffix(" UTC").replace(" ", "T") + "Z", *values])


def wanted(look: Look, names: Sequence[str] | None) -> list[Value]:
    """The values that were asked for, in the profile's order."""
    return [value for value in look.values if names is None or value.register.name in names]


def screen(
    place: Place,
    look: Look,
    before: Look | None,
    statistics: Statistics,
    *,
    size: tuple[int, int],
    names: Sequence[str] | None,
) -> list[str]:
    """The table that stays in place.

    Args:
        place: The meter.
        look: The newest poll.
        before: The one before it.
        statistics: Of all.
        size: Columns and lines of the terminal.
        names: Quantities to show; None for all.
    """
    width, height = size
    values = wanted(look, names)
    known = [value.register.name for value in values]
    fresh = changed(look, before)
    longest = max((len(name) for name in known), default=0)
    per_line = max(1, (width + 1) // max(COLUMN_MIN, longest + 16))
    room = max(1, height - 6)
    across = min(per_line, -(-len(values) // room)) or 1
    rows = -(-len(values) // across)
    column = width // across - 1
    cells = [
        marked(v.register.name, shown(v), changed=v.register.name in fresh, names=known, width=column) for v in values
    ]
    lines = [" ".join(cells[row::rows]).rstrip() for row in range(rows)]
    if rows > room:
        lines = [*lines[: room - 1], f"... {len(values) - (room - 1) * across} more: choose with --quantity"]
    head = [place.title, f"{clock_text(look.time_ms)}; * has changed; Ctrl-C ends", ""]
    return [line[: width - 1] for line in [*head, *lines, "", statistics.text()]]
