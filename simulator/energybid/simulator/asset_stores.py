"""Devices that store: battery, wallbox with its car, heat pump with the house that it warms.

Here lives their physics in integers; how time passes is in ``assets``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from energybid.simulator.assets import (
    DAY_MS,
    FOREVER_MS,
    OPERATING_STATE,
    OUTDOORS,
    SESSION_ENERGY,
    STATE_OF_CHARGE,
    TEMPERATURE,
    Asset,
    Flow,
)
from energybid.simulator.household import MJ_PER_WH, UJ_PER_WH

PERMILLE = 1000


# ---------------------------------------------------------------- battery


@dataclass(frozen=True, slots=True, kw_only=True)
class BatteryType:
    """A battery with its inverter."""

    capacity_wh: int
    charge_w: int
    discharge_w: int
    begin_permille: int = 500
    """State of charge when the replay begins."""
    charge_permille: int = 950
    """Of what is taken, so much is stored."""
    discharge_permille: int = 950
    """Of what leaves the store, so much is given."""


class Store:
    """Energy behind two efficiencies, exact: it counts µJ × permille of charging × permille of discharging."""

    def __init__(self, capacity_wh: int, begin_permille: int, charge_permille: int, discharge_permille: int) -> None:
        """Fill it to its beginning."""
        self._charge, self._discharge = charge_permille, discharge_permille
        self.capacity = capacity_wh * UJ_PER_WH * PERMILLE * discharge_permille
        self.level = self.capacity * begin_permille // PERMILLE

    def rate(self, power_mw: int) -> int:
        """By how much the level changes in a millisecond."""
        return power_mw * (self._charge * self._discharge if power_mw > 0 else PERMILLE * PERMILLE)

    def lasts_ms(self, power_mw: int) -> int:
        """How many whole milliseconds such a power is possible."""
        room = self.capacity - self.level if power_mw > 0 else self.level
        return room // abs(self.rate(power_mw)) if power_mw else FOREVER_MS

    def change(self, power_mw: int, ms: int) -> None:
        """Take or give for a time."""
        self.level += self.rate(power_mw) * ms

    @property
    def share(self) -> Fraction:
        """State of charge, 0 to 1."""
        return Fraction(self.level, self.capacity)


class Battery(Asset):
    """Takes and gives what is written, as far as it can."""

    profile, writable, safe = "simulated-battery", "power", Fraction(0)
    told = frozenset({STATE_OF_CHARGE})

    def __init__(self, kind: BatteryType, begin_ms: int = 0) -> None:
        """Begin as the type says."""
        super().__init__(begin_ms)
        self._kind = kind
        self.store = Store(kind.capacity_wh, kind.begin_permille, kind.charge_permille, kind.discharge_permille)

    @property
    def says(self) -> Mapping[bytes, Fraction]:
        """State of charge."""
        return {STATE_OF_CHARGE: self.store.share}

    def _flow(self) -> Flow:
        wanted_w = min(max(int(self.setting), -self._kind.discharge_w), self._kind.charge_w)
        lasts_ms = self.store.lasts_ms(1000 * wanted_w)
        return Flow(1000 * wanted_w, lasts_ms) if lasts_ms else Flow(0, FOREVER_MS)

    def _took(self, power_mw: int, ms: int) -> None:
        self.store.change(power_mw, ms)


# ---------------------------------------------------------------- wallbox


@dataclass(frozen=True, slots=True, kw_only=True)
class WallboxType:
    """A wallbox, and the car that comes and goes."""

    capacity_wh: int
    phases: int = 3
    begin_permille: int = 300
    """State of charge of the car at every arrival."""
    charge_permille: int = 920
    every_ms: int = DAY_MS
    """A car comes once in this time."""
    arrives_ms: int = 0
    """After the beginning of each such time."""
    stays_ms: int = DAY_MS
    """From its arrival; the whole time at most."""


LEAST_CURRENT_A, GRID_V = 6, 230
"""IEC 61851-1: below it a car pauses."""


class Wallbox(Asset):
    """Charges the car that is there with the current that is written."""

    profile, writable, safe = "simulated-wallbox", "current-limit", Fraction(LEAST_CURRENT_A)
    told = frozenset({STATE_OF_CHARGE, OPERATING_STATE, SESSION_ENERGY})

    def __init__(self, kind: WallboxType, begin_ms: int = 0) -> None:
        """Begin with the car that is there then."""
        super().__init__(begin_ms)
        self._kind = kind
        self.phases = kind.phases
        self._session_uj = 0
        self._plugged = False
        self._store = self._car()
        self._arrive_or_leave()

    def _car(self) -> Store:
        kind = self._kind
        return Store(kind.capacity_wh, kind.begin_permille, kind.charge_permille, PERMILLE)

    @property
    def says(self) -> Mapping[bytes, Fraction]:
        """Whether a car is there, how full it is, what it has taken."""
        return {
            STATE_OF_CHARGE: self._store.share if self._plugged else Fraction(0),
            OPERATING_STATE: Fraction(self._plugged),
            SESSION_ENERGY: Fraction(self._session_uj, UJ_PER_WH),
        }

    def _next(self) -> tuple[bool, int]:
        """Whether a car is there, and how long that stays so."""
        kind = self._kind
        since_ms = (self.at_ms - kind.arrives_ms) % kind.every_ms
        stays_ms = min(kind.stays_ms, kind.every_ms)
        return (True, stays_ms - since_ms) if since_ms < stays_ms else (False, kind.every_ms - since_ms)

    def _flow(self) -> Flow:
        plugged, hold_ms = self._next()
        if not plugged or self.setting < LEAST_CURRENT_A:
            return Flow(0, hold_ms)
        power_mw = int(self.setting * 1000) * GRID_V * self.phases
        lasts_ms = self._store.lasts_ms(power_mw)
        return Flow(power_mw, min(hold_ms, lasts_ms)) if lasts_ms else Flow(0, hold_ms)

    def _took(self, power_mw: int, ms: int) -> None:
        self._store.change(power_mw, ms)
        self._session_uj += power_mw * ms

    def pass_time(self, power_mw: int, ms: int) -> None:
        """Go on; at the end of a stay the car leaves, and the next is another one."""
        super().pass_time(power_mw, ms)
        self._arrive_or_leave()

    def _arrive_or_leave(self) -> None:
        comes = (self.at_ms - self._kind.arrives_ms) % self._kind.every_ms == 0
        plugged = self._next()[0]
        if plugged and (comes or not self._plugged):
            self._store, self._session_uj = self._car(), 0
        self._plugged = plugged


# ---------------------------------------------------------------- heat pump


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatPumpType:
    """A heat pump and the house that it keeps warm: one store of heat, losing to the air outside."""

    least_w: int
    most_w: int
    cop_permille: int = 3000
    heat_wh_per_k: int = 4000
    """Heat that warms the house by 1 K."""
    loss_w_per_k: int = 160
    begin_mc: int = 20_500
    """Temperatures in thousandths of a degree Celsius: when the replay begins, and where the thermostat switches."""
    low_mc: int = 20_000
    high_mc: int = 21_500
    hard_low_mc: int = 17_000
    """The device runs below it and stops above ``hard_high_mc``, whatever is written."""
    hard_high_mc: int = 24_000
    outdoor_mc: int = 4_000
    outdoor_swing_mc: int = 3_000
    """Warmest at 14:00 by so much above the mean; a straight line to 02:00 and back."""


TICK_MS = 10_000
"""The house's temperature moves in steps of it."""
THERMOSTAT = -1
WARMEST_MS, HALF_DAY_MS = 14 * 3_600_000, 12 * 3_600_000


class HeatPump(Asset):
    """Heats with the power that is written; with -1, and at the hard limits, as its thermostat wants."""

    profile, writable, safe = "simulated-heat-pump", "power", Fraction(THERMOSTAT)
    told = frozenset({TEMPERATURE, OUTDOORS})

    def __init__(self, kind: HeatPumpType, begin_ms: int = 0) -> None:
        """Begin as the type says."""
        super().__init__(begin_ms)
        self._kind = kind
        self._mj_per_k = kind.heat_wh_per_k * MJ_PER_WH
        self._heat = kind.begin_mc * self._mj_per_k * 1000
        """Heat above 0 °C, µJ × 1,000."""
        self._on = False
        self._loss_mw = 0
        self._judged_mc = 0
        self._judge()

    @property
    def _inside_mc(self) -> int:
        return self._heat // (1000 * self._mj_per_k)

    @property
    def says(self) -> Mapping[bytes, Fraction]:
        """Temperatures inside and outside, °C."""
        return {TEMPERATURE: Fraction(self._inside_mc, 1000), OUTDOORS: Fraction(self._outside_mc(), 1000)}

    def _outside_mc(self) -> int:
        away_ms = abs((self.at_ms - WARMEST_MS + HALF_DAY_MS) % DAY_MS - HALF_DAY_MS)
        swing = self._kind.outdoor_swing_mc
        return self._kind.outdoor_mc + swing - 2 * swing * away_ms // HALF_DAY_MS

    def _judge(self) -> None:
        """At every tick: the loss until the next one, and what the thermostat wants."""
        inside_mc = self._judged_mc = self._inside_mc
        self._loss_mw = self._kind.loss_w_per_k * (inside_mc - self._outside_mc())
        low, high = self._kind.low_mc, self._kind.high_mc
        self._on = inside_mc < high if self._on else inside_mc < low

    def _flow(self) -> Flow:
        hold_ms = TICK_MS - self.at_ms % TICK_MS
        return Flow(1000 * self._wanted_w(), hold_ms)

    def _wanted_w(self) -> int:
        kind, inside_mc = self._kind, self._judged_mc
        if inside_mc <= kind.hard_low_mc:
            return kind.most_w
        if inside_mc >= kind.hard_high_mc:
            return 0
        if self.setting < 0:
            return kind.most_w if self._on else 0
        return min(int(self.setting), kind.most_w) if self.setting >= kind.least_w else 0

    def _took(self, power_mw: int, ms: int) -> None:
        self._heat += (power_mw * self._kind.cop_permille - 1000 * self._loss_mw) * ms

    def pass_time(self, power_mw: int, ms: int) -> None:
        """Go on; the thermostat looks at every tick."""
        super().pass_time(power_mw, ms)
        if self.at_ms % TICK_MS == 0:
            self._judge()
