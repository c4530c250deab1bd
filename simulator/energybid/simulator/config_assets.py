"""bus.toml: ``asset``, devices whose power follows what is written to them. Imported by commands only."""

from typing import Annotated, Literal

from pydantic import Field

from energybid.core.settings import Duration, Settings
from energybid.simulator.asset_loads import Load, LoadType, Machine, MachineType, Pv, PvType
from energybid.simulator.asset_stores import Battery, BatteryType, HeatPump, HeatPumpType, Wallbox, WallboxType
from energybid.simulator.assets import Asset

Watts = Annotated[int, Field(ge=0, le=100_000)]
WattHours = Annotated[int, Field(ge=1, le=10_000_000)]
Share = Annotated[float, Field(ge=0, le=1)]
Efficiency = Annotated[float, Field(ge=0.1, le=1)]
Celsius = Annotated[float, Field(ge=-50, le=100)]


def _permille(share: float) -> int:
    return round(1000 * share)


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


class BatteryModel(Settings):
    """``asset = { kind = "battery", ... }``: takes and gives what is written to ``power``, as far as it can."""

    kind: Literal["battery"]
    capacity_wh: WattHours
    charge_w: Watts
    discharge_w: Watts
    begin: Share = 0.5
    """State of charge when the replay begins; taken to the nearest thousandth, as all shares."""
    charge_efficiency: Efficiency = 0.95
    discharge_efficiency: Efficiency = 0.95

    def make(self, begin_ms: int, seed: str) -> Asset:  # noqa: ARG002  the devices' common shape
        """The device at the beginning of the replay."""
        kind = BatteryType(
            capacity_wh=self.capacity_wh,
            charge_w=self.charge_w,
            discharge_w=self.discharge_w,
            begin_permille=_permille(self.begin),
            charge_permille=_permille(self.charge_efficiency),
            discharge_permille=_permille(self.discharge_efficiency),
        )
        return Battery(kind, begin_ms)


class WallboxModel(Settings):
    """``asset = { kind = "wallbox", ... }``: charges the car that is there with the current written."""

    kind: Literal["wallbox"]
    capacity_wh: WattHours = 50_000
    """The car's."""
    phases: Literal[1, 3] = 3
    begin: Share = 0.3
    """State of charge of the car at each arrival."""
    charge_efficiency: Efficiency = 0.92
    every: Duration = Field(86_400.0, ge=60)
    """A car comes once in this time,"""
    arrives: Duration = Field(0.0, ge=0)
    """so long after its beginning,"""
    stays: Duration = Field(86_400.0, ge=1)
    """and goes after so long."""

    def make(self, begin_ms: int, seed: str) -> Asset:  # noqa: ARG002
        """The device at the beginning of the replay."""
        kind = WallboxType(
            capacity_wh=self.capacity_wh,
            phases=self.phases,
            begin_permille=_permille(self.begin),
            charge_permille=_permille(self.charge_efficiency),
            every_ms=_ms(self.every),
            arrives_ms=_ms(self.arrives),
            stays_ms=_ms(self.stays),
        )
        return Wallbox(kind, begin_ms)


class HeatPumpModel(Settings):
    """``asset = { kind = "heat-pump", ... }``: heats with the power written, or as its thermostat wants."""

    kind: Literal["heat-pump"]
    least_w: Watts
    """Below it the compressor is off."""
    most_w: Watts
    cop: float = Field(3.0, ge=1, le=10)
    """Heat for each unit of electricity."""
    heat_wh_per_k: int = Field(4_000, ge=1, le=10_000_000)
    """Heat that warms the house by 1 K."""
    loss_w_per_k: int = Field(160, ge=0, le=100_000)
    begin_c: Celsius = 20.5
    """Temperature in the house when the replay begins."""
    low_c: Celsius = 20.0
    """The thermostat turns it on below and off above ``high_c``."""
    high_c: Celsius = 21.5
    hard_low_c: Celsius = 17.0
    """Below it heats whatever is written, and above ``hard_high_c`` it does not."""
    hard_high_c: Celsius = 24.0
    outdoor_c: Celsius = 4.0
    """The day's mean."""
    outdoor_swing_c: float = Field(3.0, ge=0, le=50)
    """By so much warmer at 14:00 and colder at 02:00."""

    def make(self, begin_ms: int, seed: str) -> Asset:  # noqa: ARG002
        """The device at the beginning of the replay."""
        kind = HeatPumpType(
            least_w=self.least_w,
            most_w=self.most_w,
            cop_permille=_permille(self.cop),
            heat_wh_per_k=self.heat_wh_per_k,
            loss_w_per_k=self.loss_w_per_k,
            begin_mc=_permille(self.begin_c),
            low_mc=_permille(self.low_c),
            high_mc=_permille(self.high_c),
            hard_low_mc=_permille(self.hard_low_c),
            hard_high_mc=_permille(self.hard_high_c),
            outdoor_mc=_permille(self.outdoor_c),
            outdoor_swing_mc=_permille(self.outdoor_swing_c),
        )
        return HeatPump(kind, begin_ms)


class MachineModel(Settings):
    """``asset = { kind = "machine", ... }``: filled now and then, it waits for its start and runs to its end."""

    kind: Literal["machine"]
    profile_w: list[Watts] = Field(min_length=1, max_length=1_000)
    """Power in each step of its run."""
    step: Duration = Field(900.0, ge=1)
    every: Duration = Field(86_400.0, ge=60)
    """It is filled once in this time,"""
    filled: Duration = Field(0.0, ge=0)
    """so long after its beginning."""

    def make(self, begin_ms: int, seed: str) -> Asset:  # noqa: ARG002
        """The device at the beginning of the replay."""
        kind = MachineType(
            profile_w=tuple(self.profile_w),
            step_ms=_ms(self.step),
            every_ms=_ms(self.every),
            filled_ms=_ms(self.filled),
        )
        return Machine(kind, begin_ms)


class LoadModel(Settings):
    """``asset = { kind = "load", ... }``: a load that is always there, of which parts can be shed."""

    kind: Literal["load"]
    power_w: Watts
    parts_w: list[Watts] = Field(max_length=15)
    """What is shed first, second, and so on."""

    def make(self, begin_ms: int, seed: str) -> Asset:  # noqa: ARG002
        """The device at the beginning of the replay."""
        return Load(LoadType(power_w=self.power_w, parts_w=tuple(self.parts_w)), begin_ms)


class PvModel(Settings):
    """``asset = { kind = "pv", ... }``: a photovoltaic plant under clouds, which gives no more than its limit."""

    kind: Literal["pv"]
    peak_w: Watts
    phases: Literal[1, 3] = 3

    def make(self, begin_ms: int, seed: str) -> Asset:
        """The device at the beginning of the replay."""
        return Pv(PvType(peak_w=self.peak_w, seed=seed, phases=self.phases), begin_ms)


AssetModel = Annotated[
    BatteryModel | WallboxModel | HeatPumpModel | MachineModel | LoadModel | PvModel, Field(discriminator="kind")
]
