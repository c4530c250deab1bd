"""Judgements that stand beside the numbers of a reading. The numbers themselves are never touched.

A cumulative register only grows. What contradicts that is marked, and what it becomes decides the numbers after it:

* It is smaller than the last number that was believed: SUSPECT. If the next one is not smaller any more, the smaller
  one was a slip (a zero while the meter starts, half of the registers of another moment) and nothing else is marked.
  If the next one goes on from the smaller one, that is RESTARTED: the meter was reset, or another one hangs there.
* It fell from near its roll-over to near 0: ROLLED_OVER.
* It grew by just 65,536 counts of the register and a little, far more than it used to: SUSPECT; its registers are of
  two moments. If the next one is as large, that is RESTARTED.

After a start the newest numbers of the journal that were believed are the ones before, as far as ``LOOK_BACK`` entries
hold them.
"""

from __future__ import annotations

from operator import ge, lt
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.entries import Declaration, Reading
from energybid.core.quantities import MANTISSA_MAX, MANTISSA_MIN, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.agent.journal import Journal
    from energybid.agent.rows import EpochRow
    from energybid.core.ports import Counter, PollGroup, Sample

LOOK_BACK = 16_384
"""Entries of the journal that are looked at after a start."""
ZERO_MS = 15 * 60_000
"""So long a zero is taken for a slip: a meter that starts may show it for a while."""
NEAR = 16
"""A sixteenth of the way to its roll-over is near, on both sides of it."""
SLACK = 8
"""A jump is one by an eighth of 65,536 counts more at most, and eight times what the counter grows on average."""
_NEVER = MANTISSA_MAX + 1

Counters = dict[tuple[str, bytes], tuple[int, int]]
"""(meter, OBIS code) → (exponent, newest number that was believed)."""


class _Doubt(NamedTuple):
    value: int
    """The newest number that was not believed."""
    since_ms: int
    """When it was first read."""


class _State(NamedTuple):
    """What a sample is compared with; never changed, but replaced."""

    last: list[int]
    """The newest number of each counter that was believed."""
    mono_ms: int | None
    """When; None before the first sample of this run."""
    doubts: dict[int, _Doubt]
    """By counter."""
    ceilings: list[int]
    """Below these no counter has jumped."""
    bases: list[tuple[int, int]]
    """A number of each counter, and when that was: how much it grows on average."""


class Judge:
    """Compares the samples of one poll group of one meter, each with the one before."""

    __slots__ = ("_before", "_counters", "_places", "_state")

    def __init__(self, group: PollGroup) -> None:
        """Know which quantities are cumulative."""
        self._places = [place for place, quantity in enumerate(group.quantities) if quantity.cumulative]
        self._counters: list[Counter | None] = [group.counters[p] if group.counters else None for p in self._places]
        ceilings = [MANTISSA_MIN if counter and counter.word else _NEVER for counter in self._counters]
        nothing = [MANTISSA_MIN] * len(self._places)
        self._state = self._before = _State(nothing, None, {}, ceilings, [(0, _NEVER)] * len(self._places))

    def remember(self, meter: str, group: PollGroup, counters: Counters) -> None:
        """Compare the first sample with what an earlier run of the agent has logged."""
        for index, place in enumerate(self._places):
            quantity = group.quantities[place]
            exponent, number = counters.get((meter, quantity.obis.code), (quantity.exponent, MANTISSA_MIN))
            if exponent == quantity.exponent:
                self._state.last[index] = number

    def __call__(self, sample: Sample) -> Sample:
        """The sample, with a mark beside every cumulative number that contradicts the ones before."""
        values = sample.values
        state = self._before = self._state
        if sample.status is None and not state.doubts:  # then no number is missing
            now: list[int] = [values[place] for place in self._places]  # type: ignore[misc]
            if not any(map(lt, now, state.last)) and not any(map(ge, now, state.ceilings)):
                self._state = _State(now, sample.mono_ms, state.doubts, state.ceilings, state.bases)
                return sample
        return self._compare(sample, values)

    def left_out(self) -> None:
        """The newest sample was not logged: its marks are seen by nobody, and belong to the next one that is."""
        self._state = self._before

    def _compare(self, sample: Sample, values: Sequence[int | None]) -> Sample:
        """Number by number: some may be missing."""
        before, now_ms = self._state, sample.mono_ms
        last, doubts = before.last.copy(), before.doubts.copy()
        ceilings, bases = before.ceilings.copy(), before.bases.copy()
        marks: dict[int, int] = {}
        for index, place in enumerate(self._places):
            value = values[place]
            if value is None:
                continue
            mark = self._mark(index, value, now_ms)
            if mark:
                marks[place] = int(mark)
            if mark is Status.SUSPECT:
                doubt = doubts.get(index)
                doubts[index] = doubt if doubt and doubt.value == value else _Doubt(value, now_ms)
                continue
            doubts.pop(index, None)
            last[index] = value
            counter = self._counters[index]
            if counter and counter.word:
                ceilings[index] = value + counter.word
                if mark or bases[index][1] == _NEVER:
                    bases[index] = value, now_ms
        self._state = _State(last, now_ms, doubts, ceilings, bases)
        if not marks:
            return sample
        status = sample.status or (Status.OK,) * len(values)
        return sample._replace(status=tuple(marks.get(place, int(mark)) for place, mark in enumerate(status)))

    def _mark(self, index: int, value: int, now_ms: int) -> Status:
        before, doubt = self._state.last[index], self._state.doubts.get(index)
        if value >= before:
            if not self._jumped(index, value, now_ms):
                return Status.OK
            return Status.RESTARTED if doubt and before < doubt.value <= value else Status.SUSPECT
        if self._rolled_over(index, value):
            return Status.ROLLED_OVER
        if doubt is None or not doubt.value <= value:
            return Status.SUSPECT
        stays = value > 0 or now_ms - doubt.since_ms >= ZERO_MS
        return Status.RESTARTED if stays else Status.SUSPECT

    def _rolled_over(self, index: int, value: int) -> bool:
        """Whether a counter went on behind its end; a zero may be a slip as well, the next number tells."""
        counter = self._counters[index]
        if counter is None or counter.rollover is None or value == 0:
            return False
        near = counter.rollover // NEAR
        return value < near and counter.rollover - near <= self._state.last[index] < counter.rollover

    def _jumped(self, index: int, value: int, now_ms: int) -> bool:
        """Whether a counter grew by 65,536 counts too much. At first nobody knows how much is much."""
        counter, state = self._counters[index], self._state
        number, since_ms = state.bases[index]
        if counter is None or counter.word is None or state.mono_ms is None or state.mono_ms <= since_ms:
            return False
        grown = state.last[index] - number
        usual = grown * (now_ms - state.mono_ms) // (state.mono_ms - since_ms) + 1
        more = value - state.last[index] - counter.word
        return 0 <= more <= max(SLACK * usual, counter.word // SLACK) and SLACK * usual < counter.word


def last_counters(journal: Journal, epoch: EpochRow) -> Counters:
    """The newest cumulative numbers of every meter that were believed.

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
    marks = reading.status or (Status.OK,) * len(quantities)
    for (obis, _unit, exponent, cumulative), value, mark in zip(quantities, reading.values, marks, strict=True):
        if cumulative and value is not None and mark != Status.SUSPECT:
            found[declaration.meter, obis] = exponent, value
