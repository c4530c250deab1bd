"""The journal's budget: how full it is, and what is given up at which mark. Pure: no disk, no clock, no log.

Sacrifices come in an order, each at a mark of its own, the fill being what the journal uses of its room:

1. acknowledged history beyond ``keep`` goes (oldest first), and, if that is not enough, down to ``keep_least``;
2. new readings are thinned before they are appended: every 2nd, 4th, 8th, 16th of each poll group stays;
3. only cumulative quantities (energy) are logged, every quarter of an hour;
4. nothing is logged but gaps.

A level is entered at its mark and left ``HYSTERESIS`` below it, so that it does not flicker.
"""

from collections import deque
from enum import StrEnum
from typing import NamedTuple

KIB = 1024
DEFAULT = 2 << 30
LEAST = 1 << 20
"""Smallest budget."""
SHM = 32 * KIB
"""SQLite's shared-memory file."""
FRAME = 536
"""Bytes of a page of 512 in SQLite's write-ahead log."""
HYSTERESIS = 0.05
ENERGY_EVERY_S = 900.0
"""While only energy is logged: a reading of each poll group so often, at most."""
FORECAST_EVERY_S, FORECAST_SAMPLES = 300.0, 72
"""The growth is measured over the last 72 × 5 min = 6 h."""


class Stage(StrEnum):
    """What is given up now, as the status names it."""

    ALL = "all"
    """Nothing."""
    PRUNING = "pruning"
    THINNING = "thinning"
    ENERGY = "energy-only"
    NOTHING = "refusing"


class Level(NamedTuple):
    """A mark and what is done above it."""

    fill: float
    """Of the room, 0 to 1."""
    stage: Stage
    every: int
    """Every so-manieth reading of a group is logged."""


LEVELS = (
    Level(0.0, Stage.ALL, 1),
    Level(0.70, Stage.PRUNING, 1),
    Level(0.80, Stage.THINNING, 2),
    Level(0.825, Stage.THINNING, 4),
    Level(0.85, Stage.THINNING, 8),
    Level(0.875, Stage.THINNING, 16),
    Level(0.90, Stage.ENERGY, 1),
    Level(0.97, Stage.NOTHING, 0),
)
LOW, HIGH, FULL = LEVELS[1].fill, LEVELS[2].fill, LEVELS[-1].fill
"""The low-water mark, the high-water mark, and where nothing more is logged."""


class Usage(NamedTuple):
    """What the journal takes on the disk, bytes."""

    live: int
    """Pages in use."""
    file: int
    """Pages in use and free ones: the database file once all is checkpointed."""
    wal: int
    """The write-ahead log."""

    @property
    def used(self) -> int:
        """What counts against the budget."""
        return self.live + self.wal


class Budget:
    """Level of sacrifice from usage."""

    def __init__(self, size: int) -> None:
        """Keep within ``size`` bytes, ballast and write-ahead log included.

        Raises:
            ValueError: Less than ``LEAST``.
        """
        if size < LEAST:
            raise ValueError(f"a journal's budget is at least {LEAST} bytes")
        self.size = size
        self.ballast = min(max(size // 32, 32 * KIB), 4 << 20)
        """Size of the file that is given up when the disk itself is full."""
        self.wal_pages = min(max(size // 16 // FRAME, 64), 1000)
        """The write-ahead log is folded into the file at about so many pages."""
        self.level = 0

    @property
    def stage(self) -> Stage:
        """What is given up."""
        return LEVELS[self.level].stage

    @property
    def every(self) -> int:
        """Every so-manieth reading of a poll group is logged; 0 for none."""
        return LEVELS[self.level].every

    def room(self, usage: Usage, free: int | None) -> int:
        """Bytes that the journal may use: the budget's, or what the disk leaves where that is less.

        Args:
            usage: As measured.
            free: Bytes free on the file system; None where that is not known.
        """
        room = self.size - self.ballast - SHM
        return room if free is None else min(room, usage.file + usage.wal + free)

    def judge(self, fill: float) -> bool:
        """Choose the level for a fill; whether it changed."""
        before = self.level
        up = max(n for n, level in enumerate(LEVELS) if level.fill <= fill or not n)
        stay = max(n for n, level in enumerate(LEVELS) if level.fill - HYSTERESIS <= fill or not n)
        self.level = max(up, min(before, stay))
        return self.level != before


class Forecast:
    """When the journal will be full, if it goes on as in the last hours."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._samples: deque[tuple[float, int]] = deque(maxlen=FORECAST_SAMPLES + 1)

    def sample(self, now_s: float, used: int) -> None:
        """Note the usage, now and then.

        Args:
            now_s: Monotonic time.
            used: Bytes.
        """
        if not self._samples or now_s - self._samples[-1][0] >= FORECAST_EVERY_S:
            self._samples.append((now_s, used))

    def growth(self, now_s: float, used: int) -> float:
        """Bytes per hour; 0 until something is known, negative while it shrinks."""
        if not self._samples or now_s - self._samples[0][0] < FORECAST_EVERY_S:
            return 0.0
        then_s, then = self._samples[0]
        return (used - then) / (now_s - then_s) * 3600

    def full_in_s(self, now_s: float, used: int, room: int) -> float | None:
        """Seconds until nothing more is logged; None while the journal does not grow."""
        growth = self.growth(now_s, used)
        return max(0.0, (FULL * room - used) / growth * 3600) if growth > 0 else None
