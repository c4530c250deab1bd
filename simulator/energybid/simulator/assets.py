"""What a device of a site is that does what is written to it; the devices are in ``asset_stores`` and ``asset_loads``.

Here lives their time, as a function of what was written when; no registers, no clock, no I/O. Power is constant from
one event to the next (a number written, full, empty, a step of a run), and every event falls on a whole millisecond. So
all of it is integer arithmetic, and nothing depends on how often somebody looks: power in mW over milliseconds gives
µJ. Power is positive when the device takes it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from fractions import Fraction
from typing import ClassVar, NamedTuple

from energybid.core.quantities import Obis

FOREVER_MS = 1 << 62
RESPONSE_MS = 500
"""From a number that is written to the power that follows it."""
DAY_MS = 86_400_000

STATE_OF_CHARGE, SESSION_ENERGY = Obis.parse("1-0:135.7.0").code, Obis.parse("1-0:1.9.0").code
OPERATING_STATE, REMAINING = Obis.parse("0-0:96.5.0").code, Obis.parse("0-0:96.8.0").code
TEMPERATURE, OUTDOORS = Obis.parse("0-0:96.9.0").code, Obis.parse("0-0:96.9.1").code
AVAILABLE_POWER = Obis.parse("1-0:2.7.128").code


class Flow(NamedTuple):
    """Constant power for some time."""

    power_mw: int
    hold_ms: int
    """At least 1: so long at most, until the device is to be asked again."""


class Asset(ABC):
    """A device; its time only goes on."""

    profile: ClassVar[str]
    """The registers it shows itself in: a file of ``data/profiles``."""
    writable: ClassVar[str]
    """What may be written to it."""
    safe: ClassVar[Fraction]
    """What it holds before anything is written."""
    phases: int = 3
    told: ClassVar[frozenset[bytes]] = frozenset()
    """OBIS codes of what it says of itself beside electricity."""

    def __init__(self, begin_ms: int = 0) -> None:
        """Nothing was taken yet, nothing is written.

        Args:
            begin_ms: Where its time begins; 0 is midnight.
        """
        self.at_ms = begin_ms
        self.taken_uj = 0
        """Energy taken since the replay began, µJ."""
        self.given_uj = 0
        """Energy given, µJ."""
        self.setting = self.safe
        """What is followed now."""
        self._coming: list[tuple[int, Fraction]] = []

    # ------------------------------------------------------------ from outside

    def write(self, value: Fraction, at_ms: int) -> None:
        """A number was written; it is followed ``RESPONSE_MS`` later."""
        self._coming.append((max(at_ms, self.at_ms) + RESPONSE_MS, value))

    def flow(self) -> Flow:
        """The power now, and how long it stays so."""
        power_mw, hold_ms = self._flow()
        if self._coming:
            hold_ms = min(hold_ms, self._coming[0][0] - self.at_ms)
        return Flow(power_mw, hold_ms)

    def pass_time(self, power_mw: int, ms: int) -> None:
        """Go on at the power that ``flow`` gave, for at most as long as it said."""
        energy_uj = power_mw * ms
        self.taken_uj += max(0, energy_uj)
        self.given_uj += max(0, -energy_uj)
        self._took(power_mw, ms)
        self.at_ms += ms
        while self._coming and self._coming[0][0] <= self.at_ms:
            self.setting = self._coming.pop(0)[1]
            self._followed()

    def run_to(self, at_ms: int) -> None:
        """Go on alone."""
        while self.at_ms < at_ms:
            power_mw, hold_ms = self.flow()
            self.pass_time(power_mw, min(hold_ms, at_ms - self.at_ms))

    @property
    def says(self) -> Mapping[bytes, Fraction]:
        """What it says of itself now, by OBIS code."""
        return {}

    # ------------------------------------------------------------ what a device is

    @abstractmethod
    def _flow(self) -> Flow:
        """Power now, as if nothing more were written."""

    def _took(self, power_mw: int, ms: int) -> None:  # noqa: B027  most devices keep no account
        """What follows from so much power."""

    def _followed(self) -> None:  # noqa: B027  most devices just follow
        """Another number is followed from now on."""
