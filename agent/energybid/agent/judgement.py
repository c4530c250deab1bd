"""Judgements that stand beside the numbers of a reading. The numbers themselves are never touched.

A cumulative register only grows. Where it is smaller than the one before (the meter was reset, swapped, or rolled
over), the number is marked SUSPECT, once: the next one is compared with it. After a start the newest numbers of the
journal are the ones before, as far as ``LOOK_BACK`` entries hold them.
"""

from __future__ import annotations

from operator import lt
from typing import TYPE_CHECKING

from energybid.core.entries import Declaration, Reading
from energybid.core.quantities import MANTISSA_MIN, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.agent.journal import EpochRow, Journal
    from energybid.core.ports import PollGroup, Sample

LOOK_BACK = 16_384
"""Entries of the journal that are looked at after a start."""

Counters = dict[tuple[str, bytes], tuple[int, int]]
"""(meter, OBIS code) → (exponent, newest number)."""


class Judge:
    """Compares the samples of one poll group of one meter, each with the one before."""

    __slots__ = ("_before", "_last", "_places")

    def __init__(self, group: PollGroup) -> None:
        """Know which quantities are cumulative."""
        self._places = [place for place, quantity in enumerate(group.quantities) if quantity.cumulative]
        self._last = self._before = [MANTISSA_MIN] * len(self._places)

    def remember(self, meter: str, group: PollGroup, counters: Counters) -> None:
        """Compare the first sample with what an earlier run of the agent has logged."""
        for index, place in enumerate(self._places):
            quantity = group.quantities[place]
            exponent, number = counters.get((meter, quantity.obis.code), (quantity.exponent, MANTISSA_MIN))
            if exponent == quantity.exponent:
                self._last[index] = number

    def __call__(self, sample: Sample) -> Sample:
        """The sample, with SUSPECT beside every cumulative number that is smaller than the one before."""
        values = sample.values
        self._before = self._last
        if sample.status is None:  # then no number is missing
            now: list[int] = [values[place] for place in self._places]  # type: ignore[misc]
            if not any(map(lt, now, self._last)):
                self._last = now
                return sample
        return self._compare(sample, values)

    def left_out(self) -> None:
        """The newest sample was not logged: its mark is seen by nobody, and belongs to the next one that is."""
        self._last = self._before

    def _compare(self, sample: Sample, values: Sequence[int | None]) -> Sample:
        """Number by number: some may be missing."""
        self._last = self._last.copy()
        fallen = []
        for index, place in enumerate(self._places):
            value = values[place]
            if value is None:
                continue
            if value < self._last[index]:
                fallen.append(place)
            self._last[index] = value
        if not fallen:
            return sample
        status = [int(mark) for mark in sample.status or (Status.OK,) * len(values)]
        for place in fallen:
            status[place] = int(Status.SUSPECT)
        return sample._replace(status=tuple(status))


def last_counters(journal: Journal, epoch: EpochRow) -> Counters:
    """The newest cumulative numbers of every meter.

    Raises:
        EvidenceError: Entries are damaged.
    """
    found: Counters = {}
    declarations: dict[int, Declaration | None] = {}
    size = journal.head.frontier.size if journal.head else 0
    for segment in journal.segments(epoch.number, max(0, size - LOOK_BACK)):
        for sequence, entry in enumerate(segment.entries(), segment.first):
            if isinstance(entry, Declaration):
                declarations[sequence] = entry
            elif isinstance(entry, Reading):
                if entry.declaration not in declarations:
                    declarations[entry.declaration] = _declaration(journal, epoch, entry.declaration)
                _take(found, declarations[entry.declaration], entry)
    return found


def _declaration(journal: Journal, epoch: EpochRow, sequence: int) -> Declaration | None:
    """The declaration at a sequence, if it is still kept."""
    for segment in journal.segments(epoch.number, sequence):
        entry = segment.entries()[sequence - segment.first] if segment.first <= sequence else None
        return entry if isinstance(entry, Declaration) else None
    return None


def _take(found: Counters, declaration: Declaration | None, reading: Reading) -> None:
    if declaration is None:
        return
    quantities = declaration.groups[reading.group][1]
    for (obis, _unit, exponent, cumulative), value in zip(quantities, reading.values, strict=True):
        if cumulative and value is not None:
            found[declaration.meter, obis] = exponent, value
