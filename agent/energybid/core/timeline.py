"""Timeline: the best time of a reading, from the clock entries of its log (docs/formats.md §8). Pure.

A gateway without a battery for its clock starts in 1970, or wherever it stopped. Entries keep what the wall clock
showed; this says what it should have shown. Moments at which the wall clock was synchronised are *anchors*: pairs of
monotonic and wall time of one boot. A time that was taken while the clock was not synchronised is counted from the
nearest anchor of the same boot by the monotonic clock, which never steps; what that clock may have drifted meanwhile is
the uncertainty. A synchronised time stands as it is.
"""

from bisect import bisect_left
from typing import NamedTuple

from energybid.core.entries import Clock, Command, Entry, MarketMessage, Reading, Start
from energybid.core.quantities import ClockState

DRIFT_PPM = 100
"""By which a monotonic clock may run fast or slow, at most: a bare crystal from −20 to 70 °C."""


class Corrected(NamedTuple):
    """The best time of a reading."""

    time_ms: int
    """When the last reply was received, Unix milliseconds."""
    uncertainty_ms: int | None
    """By which it may be wrong for the clock's sake, beyond the error of the synchronisation itself; None: unknown, the
    clock was never synchronised in that boot."""


class Timeline:
    """Anchors of one epoch. Give it all Start and Clock entries first, in any order, then ask."""

    def __init__(self) -> None:
        """Know no boot."""
        self._boots: dict[int, bytes] = {}
        self._anchors: dict[bytes, list[tuple[int, int]]] = {}

    def add(self, sequence: int, entry: Entry) -> None:
        """Learn from an entry; those that say nothing about clocks are left aside.

        Args:
            sequence: Its place in the log.
            entry: It; a Start comes before the Clock entries that refer to it.
        """
        if isinstance(entry, Start):
            self._boots[sequence] = entry.boot_id
            if entry.clock == ClockState.SYNCHRONISED:
                self._anchor(entry.boot_id, entry.mono_ms, entry.time_ms)
        elif isinstance(entry, Clock) and entry.clock == ClockState.SYNCHRONISED and entry.start in self._boots:
            self._anchor(self._boots[entry.start], entry.mono_ms, entry.after_ms)

    def _anchor(self, boot: bytes, mono_ms: int, time_ms: int) -> None:
        anchors = self._anchors.setdefault(boot, [])
        pair = mono_ms, time_ms
        anchors.insert(bisect_left(anchors, pair), pair)

    def correct(self, reading: Reading | Command | MarketMessage) -> Corrected:
        """The best time of a reading of this epoch, of a command, or of a market's message."""
        if reading.clock == ClockState.SYNCHRONISED:
            return Corrected(reading.time_ms, 0)
        anchors = self._anchors.get(self._boots.get(reading.start, b""), [])
        if not anchors:
            return Corrected(reading.time_ms, None)
        at = bisect_left(anchors, (reading.mono_ms, 0))
        mono_ms, time_ms = min(anchors[max(at - 1, 0) : at + 1], key=lambda anchor: abs(anchor[0] - reading.mono_ms))
        away_ms = reading.mono_ms - mono_ms
        return Corrected(time_ms + away_ms, -(-abs(away_ms) * DRIFT_PPM // 1_000_000))
