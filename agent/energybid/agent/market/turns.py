"""When a compressor was switched on or off last, and what its maker lets it do next. Sans I/O, no clock.

What the meter shows counts, and what the device was told until it has had its time to do it. What nobody saw counts
against switching: after a start of the agent, or an outage in which the device could have been off and on again, it may
have been switched a moment ago.
"""

from __future__ import annotations

from math import inf

UNSEEN_S = 60.0
"""A device that nobody has seen for longer may have been switched off and on meanwhile, or for its own least times."""


class Turns:
    """The last switching of one device."""

    def __init__(self, least_run_s: float, least_pause_s: float, settle_s: float) -> None:
        """Nothing was seen yet.

        Args:
            least_run_s: Once on, so long at least; 0: it may be switched at any time.
            least_pause_s: Once off, so long at least.
            settle_s: What it is told shows in its power after so long.
        """
        self._least_s = {True: least_run_s, False: least_pause_s}
        self._settle_s = settle_s
        self._runs: bool | None = None
        self._since_s = self._seen_s = self._told_s = -inf

    def look(self, now_s: float, *, runs: bool) -> None:
        """Take up whether it is seen to run.

        Args:
            now_s: Loop time.
            runs: It takes power.
        """
        unseen = now_s - self._seen_s > max(UNSEEN_S, self._least_s[not runs])
        self._seen_s = now_s
        if unseen or (runs != self._runs and now_s - self._told_s > self._settle_s):
            self._runs, self._since_s = runs, now_s

    def told(self, now_s: float, *, runs: bool) -> None:
        """Take up what was written to it: that it is switched counts from now on, not from when it shows."""
        if runs != self._runs:
            self._runs, self._since_s, self._told_s = runs, now_s, now_s

    def has_to(self, at_s: float) -> bool | None:
        """What it has to do at a moment, by what is known now: run on, True; rest, False; None: as is best."""
        if self._runs is None:
            return None
        least_s = self._least_s[self._runs]
        return self._runs if least_s and at_s < self._since_s + least_s else None
