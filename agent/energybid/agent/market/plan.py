"""What the agent does in a market, checked and ready: plain frozen values that need neither pydantic nor numpy.

``config.py`` beside this makes them of gateway.toml's ``[market]``. Powers are watts of import: what generates or feeds
in counts negative. Energy is Wh, prices are money per MWh.
"""

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensor:
    """A number that is polled."""

    meter: str
    name: str
    """The quantity's in the profile."""
    group: int
    """Index into the meter's poll groups."""
    index: int
    """Index into the group's values."""
    unit: str
    factor: float = 1.0
    """What the mantissa is multiplied by: the resolution, negative where the number counts export."""
    stale_s: float = 10.0
    """An older value is none."""
    cumulative: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPoint:
    """A number of the control path by which an asset's power is set."""

    point: str
    """``METER/NAME``."""
    w_per_unit: Fraction = Fraction(0)
    """Watts of import of one unit of the number; negative where it counts export; 0 where it has no power of its own
    (a switch, steps)."""
    step: Fraction = Fraction(0)
    """Least difference of two numbers; 0: any may be written."""
    minimum: Fraction
    maximum: Fraction
    values: tuple[Fraction, ...] = ()
    """The only ones it may have; empty where all between the bounds may be."""
    safe: Fraction
    mirror: str | None = None
    """A point that is held at the negative of the number."""
    enable: tuple[tuple[str, Fraction], ...] = ()
    """Points that are held too, at these numbers, after it was written: what makes the device obey."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetPlan:
    """What every kind of asset has."""

    name: str
    control: SetPoint
    power: Sensor | None = None
    """What it takes; None where nobody measures it."""
    ramp_w_per_s: float = 0.0
    """Fastest change that is commanded; 0: as fast as the device."""
    settle_s: float = 5.0
    """The device has done what it was told after this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatteryPlan(AssetPlan):
    """See ``energybid.bidding.assets_stores.Battery``."""

    state: Sensor
    wh_per_unit: float
    """Of ``state``: energy in the battery."""
    capacity_wh: int
    charge_w: int
    discharge_w: int
    charge_efficiency: float
    discharge_efficiency: float
    charge_wear: float
    discharge_wear: float
    reserve_wh: int
    final_price: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvPlan(AssetPlan):
    """See ``energybid.bidding.assets_stores.EvCharger``."""

    least_w: int
    most_w: int
    wanted_wh: int
    """To be charged between arrival and departure; energy as the charger counts it."""
    capacity_wh: int
    """Most that is charged in one stay."""
    shortage_price: float
    plugged: Sensor | None
    plugged_values: tuple[float, ...]
    """Empty: all but 0."""
    charged: Sensor | None
    """Energy of this stay, or a register that only grows; None: the power is added up."""
    arrival_min: int | None
    """Time of day, minutes; None where ``plugged`` tells."""
    departure_min: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalModelPlan:
    """A first-order model."""

    time_constant_h: float
    kelvin_per_w: float
    free_k: float
    """By how much it settles above the outside without power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThermalPlan(AssetPlan):
    """See ``energybid.bidding.assets_stores.Thermal``."""

    state: Sensor
    outside: Sensor | None
    outside_c: float | None
    low_c: float
    high_c: float
    discomfort_price: float
    least_w: int
    most_w: int
    least_c: float
    most_c: float
    least_run_s: float
    """Once switched on it runs so long at least; 0: it may be switched at any time."""
    least_pause_s: float
    final_price: float | None
    on: Fraction | None
    """Number that switches it on; None where the number is a power."""
    off: Fraction
    model: ThermalModelPlan | None
    """None: identified from what is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeferrablePlan(AssetPlan):
    """See ``energybid.bidding.assets.Deferrable``."""

    on: Fraction
    off: Fraction
    profile_w: tuple[int, ...]
    profile_step_s: float
    worth: float
    earliest_min: int
    """Time of day, minutes."""
    latest_min: int
    """It has ended by then."""
    state: Sensor | None
    """Says whether it is loaded and waits, or runs; None: it runs once in every window."""
    ready_values: tuple[float, ...]
    running_values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShedPlan:
    """A part of a load."""

    power_w: int
    cost: float
    value: Fraction
    """Number by which this part and those before it are off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CurtailablePlan(AssetPlan):
    """See ``energybid.bidding.assets.Curtailable``."""

    normal: Fraction
    """Number by which nothing is off."""
    load_w: int
    """With nothing shed, where nobody measures it."""
    sheds: tuple[ShedPlan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PvPlan(AssetPlan):
    """See ``energybid.bidding.assets.Pv``."""

    rated_w: int
    available: Sensor | None
    """What it could give, where the inverter tells."""
    support: float
    curtailable: bool


AnyAssetPlan = BatteryPlan | EvPlan | ThermalPlan | DeferrablePlan | CurtailablePlan | PvPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketPlan:
    """``[market]``."""

    name: str
    """``tenant/market``."""
    key: bytes
    """PEM of the market's public key."""
    bids_key: bytes
    """PEM of the gateway's private key for bids and confirmations."""
    meter: str
    """At the site's connection."""
    net: tuple[Sensor, ...]
    """Added up they are its net import, W."""
    imported: Sensor | None
    exported: Sensor | None
    """Its energy registers; None where it has none, or they are not polled."""
    import_limit_w: int
    export_limit_w: int
    timezone: str
    """Of the times of day, as the IANA database names it."""
    outside: Sensor | None = None
    """Outdoor temperature; None: that of the first thermal asset which measures it, for what needs one."""
    assets: tuple[AnyAssetPlan, ...]
