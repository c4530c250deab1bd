"""Devices without a store: a machine's run, a load of which parts can be shed, a photovoltaic plant with its limit.

Here lives their physics in integers; how time passes is in ``assets``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import cos, pi

from energybid.simulator.assets import (
    AVAILABLE_POWER,
    DAY_MS,
    FOREVER_MS,
    OPERATING_STATE,
    REMAINING,
    Asset,
    Flow,
)
from energybid.simulator.household import BLOCK_MS, chance_between

# ---------------------------------------------------------------- machine

NOTHING, READY, RUNNING, DONE = range(4)
"""What a machine says of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineType:
    """A machine that is filled now and then, and runs when it is told to."""

    profile_w: tuple[int, ...]
    """Power in each step of the run."""
    step_ms: int = 60_000
    every_ms: int = DAY_MS
    """It is filled once in this time, unless it runs."""
    filled_ms: int = 0
    """After the beginning of each such time."""


class Machine(Asset):
    """Waits for its start; then runs to its end."""

    profile, writable, safe = "simulated-machine", "start", Fraction(0)
    told = frozenset({OPERATING_STATE, REMAINING})

    def __init__(self, kind: MachineType, begin_ms: int = 0) -> None:
        """Begin before the first filling, or with it."""
        super().__init__(begin_ms)
        self._kind = kind
        self._state = NOTHING
        self._run_ms = 0
        self._turn()

    @property
    def says(self) -> Mapping[bytes, Fraction]:
        """State, and the seconds left of its run."""
        left_ms = self._length_ms - self._run_ms if self._state == RUNNING else 0
        return {OPERATING_STATE: Fraction(self._state), REMAINING: Fraction(left_ms, 1000)}

    @property
    def _length_ms(self) -> int:
        return len(self._kind.profile_w) * self._kind.step_ms

    def _since_ms(self) -> int:
        return (self.at_ms - self._kind.filled_ms) % self._kind.every_ms

    def _flow(self) -> Flow:
        if self._state != RUNNING:
            return Flow(0, self._kind.every_ms - self._since_ms())
        step, within_ms = divmod(self._run_ms, self._kind.step_ms)
        return Flow(1000 * self._kind.profile_w[step], self._kind.step_ms - within_ms)

    def _took(self, power_mw: int, ms: int) -> None:  # noqa: ARG002  a run is a matter of time
        if self._state == RUNNING:
            self._run_ms += ms

    def pass_time(self, power_mw: int, ms: int) -> None:
        """Go on; a run ends, a machine is filled."""
        super().pass_time(power_mw, ms)
        self._turn()

    def _turn(self) -> None:
        if self._state == RUNNING and self._run_ms >= self._length_ms:
            self._state = DONE
        if self._state != RUNNING and self._since_ms() == 0:
            self._state = READY
        self._begin()

    def _followed(self) -> None:
        self._begin()

    def _begin(self) -> None:
        if self._state == READY and self.setting:
            self._state, self._run_ms = RUNNING, 0


# ---------------------------------------------------------------- load


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadType:
    """A load that is always there, but for the parts of it that are shed."""

    power_w: int
    """With nothing shed."""
    parts_w: tuple[int, ...]


class Load(Asset):
    """So many of its parts are off as is written, in their order."""

    profile, writable, safe = "simulated-load", "shed", Fraction(0)

    def __init__(self, kind: LoadType, begin_ms: int = 0) -> None:
        """Begin with nothing shed."""
        super().__init__(begin_ms)
        self._left_w = list(accumulate(kind.parts_w, lambda left, part: left - part, initial=kind.power_w))

    def _flow(self) -> Flow:
        return Flow(1000 * self._left_w[min(int(self.setting), len(self._left_w) - 1)], FOREVER_MS)


# ---------------------------------------------------------------- photovoltaic plant


@dataclass(frozen=True, slots=True, kw_only=True)
class PvType:
    """A photovoltaic plant under a sky with clouds."""

    peak_w: int
    seed: str = ""
    """Its clouds follow from it."""
    phases: int = 3


NO_LIMIT_W = 1_000_000
LOOK_MS = 10_000
"""Its power stays the same for so long."""
CLEAR, DULL = 1000, 600
"""Permille of its light that clouds let through."""


class Pv(Asset):
    """Gives what its light allows, up to the limit that is written."""

    profile, writable, safe = "simulated-pv", "limit", Fraction(NO_LIMIT_W)
    told = frozenset({AVAILABLE_POWER})

    def __init__(self, kind: PvType, begin_ms: int = 0) -> None:
        """Begin at a time of the day."""
        super().__init__(begin_ms)
        self._kind = kind
        self.phases = kind.phases

    @property
    def says(self) -> Mapping[bytes, Fraction]:
        """What it could give."""
        return {AVAILABLE_POWER: Fraction(self._available_w())}

    def _available_w(self) -> int:
        at_ms = self.at_ms - self.at_ms % LOOK_MS
        hours_from_noon = (at_ms % DAY_MS - DAY_MS // 2) * 24 / DAY_MS
        height = max(0, round(1000 * cos(hours_from_noon * pi / 12)))
        index, within_ms = divmod(at_ms, BLOCK_MS)
        clouds, next_clouds = self._clouds(index), self._clouds(index + 1)
        light = clouds + (next_clouds - clouds) * within_ms // BLOCK_MS
        return self._kind.peak_w * height * light // (1000 * CLEAR)

    def _clouds(self, index: int) -> int:
        return chance_between(self._kind.seed, f"clouds {index}", DULL, CLEAR)

    def _flow(self) -> Flow:
        given_w = min(self._available_w(), int(self.setting))
        return Flow(-1000 * given_w, LOOK_MS - self.at_ms % LOOK_MS)
