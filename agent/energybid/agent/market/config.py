"""gateway.toml's ``[market]`` and ``[[market.asset]]``: the models. Imported where a file is checked only.

What of it names meters, quantities and registers is looked up in ``wiring.py`` beside this.
"""

from pathlib import PurePosixPath
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, model_validator

from energybid.agent.buses import Name
from energybid.core.settings import Duration, Energy, Power, Settings, TimeOfDay

COUNTS = Literal["import", "export"]
PART = r"^[^/]{1,64}/[^/]{1,64}$"
Reference = Annotated[str, Field(pattern=PART)]
Decimal = Annotated[str, Field(pattern=r"^-?[0-9]{1,9}(\.[0-9]{1,9})?$")]
Money = Annotated[float, Field(ge=0, le=1e9)]
Efficiency = Annotated[float, Field(gt=0, le=1)]
DAY_S = 86_400


def _timezone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError('no time zone of the IANA database, such as "Europe/Berlin"') from None
    return str(PurePosixPath(value))


class EnableModel(Settings):
    """``enable``: a further number that is held as long as the asset is: what makes its device obey ``set``."""

    set: Reference
    """METER/WRITABLE; it has a safe number too."""
    value: Decimal
    """What is held in it, in its unit."""


class AssetModel(Settings):
    """What every ``[[market.asset]]`` has."""

    name: Name
    """Unique on the gateway."""
    set: Reference
    """METER/WRITABLE by which it is controlled. Its profile gives it a `safe` number: what it goes back to."""
    power: Reference | None = None
    """METER/QUANTITY: the power it takes, W. Without it nobody notices whether it obeys."""
    power_counts: COUNTS = "import"
    """What `power` counts as positive: what the asset takes, or what it gives."""
    ramp: Power | None = Field(None, ge=1)
    """Fastest change that is commanded, per minute; as fast as the device where it is not given."""
    settle: Duration = Field(5.0, ge=0, le=3600)
    """How long the device takes to do what it is told; a compressor takes minutes. Later it counts as disobedient."""
    enable: list[EnableModel] = Field(default_factory=list, max_length=4)


class BatteryModel(AssetModel):
    """``[[market.asset]]`` with ``kind = "battery"``; `set` is its power, in W or as a share of ``rated``."""

    kind: Literal["battery"]
    set_counts: COUNTS = "import"
    """What `set` counts as positive: `"import"` charges, `"export"` discharges."""
    mirror: Reference | None = None
    """METER/WRITABLE that is held at the negative of `set`, for devices with a limit of charging and one of discharging
    that are a power when both say the same: SunSpec model 124."""
    rated: Power | None = Field(None, ge=1)
    """Power of which `set` is a share, where it has no unit."""
    state: Reference
    """METER/QUANTITY: its energy in Wh, or its state of charge without a unit."""
    full: float | None = Field(None, gt=0)
    """What `state` shows when it is full, where it has no unit; 1 where it is not given."""
    capacity: Energy = Field(ge=1)
    charge: Power
    """Most that it takes."""
    discharge: Power
    """Most that it gives."""
    charge_efficiency: Efficiency = 1.0
    """What is stored of what it takes."""
    discharge_efficiency: Efficiency = 1.0
    """What it gives of what is taken out."""
    charge_wear: Money = 0.0
    """Cost of charging beside the energy's, money per MWh that it takes."""
    discharge_wear: Money = 0.0
    """The same of discharging, per MWh that it gives."""
    reserve: Energy = 0
    """Never discharged below this."""
    final_price: Annotated[float, Field(ge=-1e9, le=1e9)] | None = None
    """What is stored above the reserve at the end of the plan counts so much, money per MWh; where it is not given, the
    price expected then."""

    @model_validator(mode="after")
    def _orders(self) -> Self:
        if self.reserve > self.capacity:
            raise ValueError("reserve: more than the capacity")
        return self


class EvModel(AssetModel):
    """``[[market.asset]]`` with ``kind = "ev"``: a charger; `set` is its limit, in A per phase or in W."""

    kind: Literal["ev"]
    phases: Literal[1, 2, 3] | None = None
    """On which it charges; needed where `set` is in A."""
    voltage: int = Field(230, ge=90, le=300)
    """Of a phase, V."""
    least: Power
    """Below this it does not charge: 6 A on each phase (IEC 61851-1)."""
    most: Power = Field(ge=1)
    wanted: Energy = Field(ge=1)
    """To be charged from arrival to departure, as the charger counts it: what the car loses is in it."""
    capacity: Energy | None = Field(None, ge=1)
    """Most that is charged in one stay; as much as is wanted where it is not given."""
    shortage_price: Money
    """What a car is charged with too little costs, money per MWh that is missing."""
    plugged: Reference | None = None
    """METER/QUANTITY that tells whether a car is there."""
    plugged_values: list[float] | None = Field(None, min_length=1, max_length=16)
    """Its values when one is; all but 0 where it is not given."""
    charged: Reference | None = None
    """METER/QUANTITY: energy charged in this stay, or since ever; Wh or VAh. Where it is not given, `power` is added
    up."""
    arrival: TimeOfDay | None = None
    """When the car comes every day; needed without `plugged`."""
    departure: TimeOfDay
    """When it leaves, or is to be charged."""

    @model_validator(mode="after")
    def _orders(self) -> Self:
        faults = []
        if self.least > self.most:
            faults.append("least: more than most")
        if self.capacity is not None and self.capacity < self.wanted:
            faults.append("capacity: less than is wanted")
        if self.plugged is None and self.arrival is None:
            faults.append("arrival is missing: without plugged nobody knows when the car is there")
        if self.arrival == self.departure:
            faults.append("departure: the time of the arrival")
        if self.charged is None and self.power is None:
            faults.append("charged is missing: without it and power nobody knows what the car has got")
        if self.plugged_values is not None and self.plugged is None:
            faults.append("plugged is missing: plugged_values are its values")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class ThermalModelModel(Settings):
    """``[market.asset.model]``: its first-order model, where it is not to be found from what is measured."""

    time_constant: Duration = Field(gt=0, le=1000 * DAY_S)
    """In which 63 % of a difference to the outside is gone."""
    kelvin_per_kw: float = Field(ge=-1e3, le=1e3)
    """How much warmer a kilowatt keeps it in the end; negative for a cooler."""
    free: float = Field(0.0, ge=-50, le=50)
    """By how many kelvin it settles above the outside without power."""

    @model_validator(mode="after")
    def _works(self) -> Self:
        if not self.kelvin_per_kw:
            raise ValueError("kelvin_per_kw: 0 warms and cools nothing")
        return self


class ThermalAssetModel(AssetModel):
    """``[[market.asset]]`` with ``kind = "thermal"``: a heat pump, heater or cooler of a room or a tank.

    `set` is its power in W, or with ``on`` a switch.
    """

    kind: Literal["thermal"]
    on: Decimal | None = None
    """Number of `set` that lets it run at `most`; where it is not given, `set` is its power."""
    off: Decimal = "0"
    """Number of `set` at which it rests."""
    state: Reference
    """METER/QUANTITY: its temperature, °C."""
    low: float = Field(ge=-50, le=150)
    """Comfort band, °C."""
    high: float = Field(ge=-50, le=150)
    discomfort_price: Money
    """Money per kelvin and hour outside the band."""
    least: Power | None = None
    """Below this it rests; `most` where it is not given: it is on or off."""
    most: Power = Field(ge=1)
    """What it takes when it runs."""
    least_temperature: float | None = None
    """It is not run where it would get colder than this (coolers)."""
    most_temperature: float | None = None
    """It is not run where it would get warmer than this."""
    least_run: Duration = Field(0.0, ge=0, le=DAY_S)
    """Once on, it is left on so long at least: what the compressor's maker asks for."""
    least_pause: Duration = Field(0.0, ge=0, le=DAY_S)
    """Once off, it is left off so long at least."""
    outside: Reference | float
    """METER/QUANTITY of the temperature around it, or that temperature, °C."""
    final_price: Money | None = None
    """Warmth at the end of the plan counts so much, money per MWh of the electricity it took; where it is not given,
    the price expected then."""
    model: ThermalModelModel | None = None

    @model_validator(mode="after")
    def _orders(self) -> Self:
        faults = []
        if self.low >= self.high:
            faults.append("low: not below high")
        if self.least is not None and self.least > self.most:
            faults.append("least: more than most")
        if self.on is not None and self.least not in {None, self.most}:
            faults.append("least: with on it runs at most or not at all")
        if (self.least_run or self.least_pause) and self.power is None:
            faults.append(
                "power is missing: without it nobody knows when it was switched last (least_run, least_pause)"
            )
        if self.model is None and self.power is None:
            faults.append("power is missing: without it, or a [market.asset.model], nobody knows what a watt does")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class DeferrableModel(AssetModel):
    """``[[market.asset]]`` with ``kind = "deferrable"``: a run that is done once in a window; `set` begins it."""

    kind: Literal["deferrable"]
    on: Decimal = "1"
    """Number of `set` that begins it, and is held until it ends."""
    off: Decimal = "0"
    profile: list[Power] = Field(min_length=1, max_length=1440)
    """What it takes, step by step."""
    profile_step: Duration = Field(900.0, ge=60, le=DAY_S)
    """Length of a step."""
    worth: float = Field(gt=0, le=1e9)
    """Of a run that ends in time, money."""
    earliest: TimeOfDay
    """Begins at this time of day at the earliest."""
    latest: TimeOfDay
    """Has ended by this time of day."""
    state: Reference | None = None
    """METER/QUANTITY that tells whether somebody has made it ready; without it, it runs once in every window."""
    ready_values: list[float] = Field(default_factory=lambda: [1.0], min_length=1, max_length=16)
    """Its values when it is."""
    running_values: list[float] = Field(default_factory=lambda: [2.0], max_length=16)
    """Its values while it runs."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        faults = []
        window_s = 60 * (self.latest - self.earliest) % DAY_S or DAY_S
        if self.profile[0] == 0:
            faults.append("profile: the first step takes power: it tells a start from waiting")
        if len(self.profile) * self.profile_step > window_s:
            faults.append("profile: longer than the time from earliest to latest")
        if self.on == self.off:
            faults.append("on: the same as off")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class StepModel(Settings):
    """``[[market.asset.step]]``: a part of the load, off together with those before it."""

    power: Power = Field(ge=1)
    """What it takes."""
    cost: Money
    """Of being without it, money per MWh."""
    value: Decimal
    """Number of `set` by which it, and those before it, are off."""


class CurtailableModel(AssetModel):
    """``[[market.asset]]`` with ``kind = "curtailable"``: a load that is shed in steps."""

    kind: Literal["curtailable"]
    normal: Decimal = "0"
    """Number of `set` by which nothing is off."""
    load: Power | None = None
    """What it takes with nothing off, where `power` does not tell."""
    step: list[StepModel] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        faults = []
        if self.load is None and self.power is None:
            faults.append("load is missing: without it and power nobody knows what can be shed")
        if self.load is not None and sum(step.power for step in self.step) > self.load:
            faults.append("step: they shed more than load")
        values = [self.normal, *(step.value for step in self.step)]
        if len(set(values)) != len(values):
            faults.append("step: a value stands more than once")
        if faults:
            raise ValueError("; ".join(faults))
        return self


class PvModel(AssetModel):
    """``[[market.asset]]`` with ``kind = "pv"``; `set` is its limit, in W or as a share of ``rated``.

    Its `power` counts what it gives as negative unless ``power_counts = "export"``.
    """

    kind: Literal["pv"]
    power: Reference
    """METER/QUANTITY: its power, W."""
    rated: Power = Field(ge=1)
    """Most it gives."""
    available: Reference | None = None
    """METER/QUANTITY: what it could give, W, where the inverter tells."""
    support: float = Field(0.0, ge=-1e9, le=1e9)
    """Paid for what it generates beside the market's price, money per MWh."""
    curtailable: bool = True


AnyAssetModel = BatteryModel | EvModel | ThermalAssetModel | DeferrableModel | CurtailableModel | PvModel


class MarketModel(Settings):
    """``[market]``: the site takes part in a market's rounds (docs/market.md, docs/assets.md); needs ``[uplink]``."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}/[A-Za-z0-9._-]{1,64}$")
    """`tenant/market`."""
    key: str
    """The market's public key, PEM; relative to the configuration file."""
    bids: str
    """The gateway's private key for bids, PEM, made by `energybid keys new`: not the one of the log."""
    meter: str
    """The meter at the site's connection. Its power is polled, best its energy registers (1.8.0, 2.8.0) too."""
    import_limit: Power
    """Most that the connection takes."""
    export_limit: Power
    """Most that it may give."""
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    """Of the times of day in assets, such as `"Europe/Berlin"`."""
    outside: Reference | None = None
    """METER/QUANTITY of the outdoor temperature, °C, for the forecast of the load; where it is not given, `outside` of
    the first thermal asset that names a quantity."""
    asset: list[Annotated[AnyAssetModel, Field(discriminator="kind")]] = Field(min_length=1, max_length=32)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [asset.name for asset in self.asset]
        points = [asset.set for asset in self.asset] + [e.set for asset in self.asset for e in asset.enable]
        points += [asset.mirror for asset in self.asset if isinstance(asset, BatteryModel) and asset.mirror]
        twice = [(what, {n for n in of if of.count(n) > 1}) for what, of in (("names", names), ("points", points))]
        faults = [f"asset: {what} must be unique: {', '.join(sorted(same))}" for what, same in twice if same]
        if faults:
            raise ValueError("; ".join(faults))
        return self
