"""Where a log keeps what settlement asks for: read once, grown with the log.

A market settles round after round from the same logs: to read them anew would cost more each time. Kept are sequences
and times of one meter's readings, not values, and the market's messages. Pure: the history is a port. What is chosen is
proven in ``gather``.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.entries import Clock, Declaration, MarketMessage, Reading, Start
from energybid.core.prover import LostError
from energybid.core.quantities import ClockState, Status
from energybid.core.timeline import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from energybid.core.entries import Entry
    from energybid.core.prover import History

Told = Start | Clock | Declaration
Group = tuple[int, int]
"""(Sequence of a declaration, index of one of its groups)."""


class Track(NamedTuple):
    """Readings by time."""

    times: array[int]
    sequences: array[int]

    def add(self, time_ms: int, sequence: int) -> None:
        """Nearly always at the end: times go back only where a clock was set."""
        at = bisect_right(self.times, time_ms) if self.times and self.times[-1] > time_ms else len(self.times)
        self.times.insert(at, time_ms)
        self.sequences.insert(at, sequence)

    def around(self, moment_ms: int, gap_ms: int) -> Iterator[int]:
        """Sequences of the last one before a moment and the first one at or after it, if they are near enough."""
        at = bisect_left(self.times, moment_ms)
        for place in (at - 1, at):
            if 0 <= place < len(self.times) and abs(self.times[place] - moment_ms) <= gap_ms:
                yield self.sequences[place]


def _track() -> Track:
    return Track(array("q"), array("q"))


class LogIndex:
    """One epoch of a log, for one meter."""

    def __init__(self, meter: str) -> None:
        """Know nothing of it yet.

        Args:
            meter: Its name in declarations.
        """
        self.messages: dict[int, MarketMessage] = {}
        """What came from the market or went to it, by sequence."""
        self._meter = meter
        self._told: dict[int, Told] = {}
        self._timeline = Timeline()
        self._tracks: dict[Group, Track] = {}
        self._others: dict[int, Reading] = {}
        """Readings whose time is to be corrected, or of which a value has a status; all others are in tracks."""
        self._first = self._end = 0

    def grow(self, history: History) -> bool:
        """Read what was logged since.

        Args:
            history: The same epoch each time, as it is now.

        Returns:
            False where it is shorter than it was; then nothing is read.
        """
        newest = next(history.commits(), None)
        end = 0 if newest is None else newest.end
        if end < self._end:
            return False
        self._first = history.first
        for sequence, entry in history.entries(max(self._end, history.first), end):
            self._take(sequence, entry)
        self._end = end
        return True

    def _take(self, sequence: int, entry: Entry) -> None:
        if isinstance(entry, Start | Clock | Declaration):
            self._told[sequence] = entry
            self._timeline.add(sequence, entry)
        elif isinstance(entry, MarketMessage):
            self.messages[sequence] = entry
        elif isinstance(entry, Reading) and self._is_ours(entry.declaration):
            if entry.clock != ClockState.SYNCHRONISED or entry.status is not None:
                self._others[sequence] = entry
            else:
                self._tracks.setdefault((entry.declaration, entry.group), _track()).add(entry.time_ms, sequence)

    def _is_ours(self, declaration: int) -> bool:
        """Whether a declaration is of the meter; of one that was pruned nobody knows."""
        told = self._told.get(declaration)
        return told.meter == self._meter if isinstance(told, Declaration) else declaration < self._first

    # ------------------------------------------------------------ asking

    @property
    def clocks(self) -> set[int]:
        """Sequences of all Start and Clock entries."""
        return {sequence for sequence, told in self._told.items() if not isinstance(told, Declaration)}

    def newest_ms(self, obis: bytes) -> int | None:
        """Time of the newest number of a register."""
        return max((track.times[-1] for track in self._of(obis) if track.times), default=None)

    def around(self, registers: Sequence[bytes], moments: Sequence[int], gap_ms: int) -> set[int]:
        """Sequences of what says the most about registers at moments.

        Args:
            registers: OBIS codes.
            moments: Ascending.
            gap_ms: How far from them readings are looked for.

        Returns:
            For each register, moment and declaration the last number before and the first at or after it; all numbers
            of that time with which a register began anew; their declarations.

        Raises:
            LostError: The declaration of a reading of that time was pruned.
        """
        if not moments:
            return set()
        self._check_kept(moments[0] - gap_ms, moments[-1] + gap_ms)
        chosen = {
            sequence
            for obis in registers
            for track in self._of(obis)
            for moment_ms in moments
            for sequence in track.around(moment_ms, gap_ms)
        }
        chosen |= {
            sequence
            for sequence, reading in self._others.items()
            if any(self._mark(reading, obis) in {Status.ROLLED_OVER, Status.RESTARTED} for obis in registers)
            and self._within(reading, moments[0] - gap_ms, moments[-1] + gap_ms)
        }
        return chosen

    def _of(self, obis: bytes) -> Iterator[Track]:
        """Every usable number of a register: one track for each declaration, and one of those that need correction."""
        for (declaration, group), track in self._tracks.items():
            if self._place(declaration, group, obis) is not None:
                yield track
        odd = _track()
        for sequence, reading in self._others.items():
            time_ms = self._time_ms(reading)
            if time_ms is not None and self._mark(reading, obis) not in {None, Status.SUSPECT}:
                odd.add(time_ms, sequence)
        yield odd

    def _place(self, declaration: int, group: int, obis: bytes) -> int | None:
        """Which of a group's values is a register's."""
        told = self._told.get(declaration)
        if not isinstance(told, Declaration) or group >= len(told.groups):
            return None
        return next((at for at, quantity in enumerate(told.groups[group][1]) if quantity[0] == obis), None)

    def _mark(self, reading: Reading, obis: bytes) -> int | None:
        """Status of a register's number; None where there is none."""
        at = self._place(reading.declaration, reading.group, obis)
        if at is None or at >= len(reading.values) or reading.values[at] is None:
            return None
        return Status.OK if reading.status is None else reading.status[at]

    def _time_ms(self, reading: Reading) -> int | None:
        corrected = self._timeline.correct(reading)
        return None if corrected.uncertainty_ms is None else corrected.time_ms

    def _within(self, reading: Reading, from_ms: int, to_ms: int) -> bool:
        time_ms = self._time_ms(reading)
        return time_ms is not None and from_ms <= time_ms <= to_ms

    def _check_kept(self, from_ms: int, to_ms: int) -> None:
        lost = [reading.declaration for reading in self._others.values() if self._within(reading, from_ms, to_ms)]
        for (declaration, _), track in self._tracks.items():
            at = bisect_left(track.times, from_ms)
            lost += [declaration] if at < len(track.times) and track.times[at] <= to_ms else []
        gone = sorted(declaration for declaration in lost if declaration < self._first)
        if gone:
            raise LostError(f"declaration {gone[0]} is not kept here any more: ask the head-end")
