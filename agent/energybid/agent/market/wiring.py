"""From ``[market]`` to its plan: the meters, quantities and registers that it names, found and checked.

Imported where a file is checked only. Every fault is collected, with the key that it is in.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.agent.market import config, plan
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.errors import ConfigurationError
from energybid.core.quantities import Obis, decimal_text, exact_decimal
from energybid.core.settings import Settings, check
from energybid.drivers.modbus.decode import encode_writable
from energybid.drivers.modbus.map import FLOATS, ModbusMap, Writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from energybid.core.ports import MeterPlan
    from energybid.core.quantities import Quantity
    from energybid.drivers.profile import LoadedProfile

POWER, IMPORT_POWER, EXPORT_POWER = (Obis.parse(f"1-0:{code}.7.0") for code in (16, 1, 2))
IMPORT_ENERGY, EXPORT_ENERGY = (Obis.parse(f"1-0:{code}.8.0") for code in (1, 2))
STALE_MIN_S = 10.0
STALE_POLLS = 3
"""A value is none any more when so many polls did not come."""
SHARE = "1"
"""Unit of numbers that have none."""


class Known(NamedTuple):
    """A meter of this gateway."""

    plan: MeterPlan
    loaded: LoadedProfile


def market_plan(
    model: config.MarketModel,
    meters: Mapping[str, Known | None],
    pem: Callable[[str, Callable[[bytes], object]], bytes],
) -> plan.MarketPlan:
    """``[market]``, ready to run.

    Args:
        model: As in the file.
        meters: By name; None for one that has faults of its own.
        pem: Reads a key file and checks it.

    Raises:
        ConfigurationError: Every fault, each with its key.
    """
    wiring = _Wiring(meters)
    made: plan.MarketPlan = wiring.market(model, pem)
    if wiring.faults:
        raise ConfigurationError(wiring.faults)
    return made


class _Wiring:
    """Looks up what is named; what is not found is a fault, and something else in its place until the end."""

    def __init__(self, meters: Mapping[str, Known | None]) -> None:
        self.meters = meters
        self.faults: list[str] = []

    def market(self, model: config.MarketModel, pem: Callable[[str, Callable[[bytes], object]], bytes]) -> Any:  # noqa: ANN401  a plan, or something in its place while there are faults
        if importlib.util.find_spec("numpy") is None:
            self.faults.append('numpy is not installed, which bidding needs: pip install "energybid-edge[bidding]"')
        key = self._pem("key", lambda: pem(model.key, PublicKey.from_pem))
        bids_key = self._pem("bids", lambda: pem(model.bids, PrivateKey.from_pem))
        net, imported, exported = self._site(model.meter)
        outside = self.optional("outside", model.outside, ("Cel",))
        assets = [_ASSETS[type(asset)](self, f"asset[{n}]", asset) for n, asset in enumerate(model.asset)]
        if self.faults:
            return None
        return plan.MarketPlan(
            name=model.name,
            key=key,
            bids_key=bids_key,
            meter=model.meter,
            net=net,
            imported=imported,
            exported=exported,
            import_limit_w=model.import_limit,
            export_limit_w=model.export_limit,
            timezone=model.timezone,
            outside=outside,
            assets=tuple(assets),
        )

    def _pem(self, key: str, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except OSError as error:
            self.faults.append(f"{key}: {error.filename}: {error.strerror}")
        except ValueError as error:
            self.faults.append(f"{key}: {error}")
        return b""

    def _meter(self, key: str, name: str) -> Known | None:
        if name not in self.meters:
            self.faults.append(f"{key}: {name!r} is no meter of this file: {_list(self.meters)}")
        return self.meters.get(name)

    # ------------------------------------------------------------ what is polled

    def _site(self, name: str) -> tuple[tuple[plan.Sensor, ...], plan.Sensor | None, plan.Sensor | None]:
        known = self._meter("meter", name)
        if known is None:
            return (), None, None
        net = self._polled(known, POWER)
        both = self._polled(known, IMPORT_POWER), self._polled(known, EXPORT_POWER, sign=-1)
        powers = (net,) if net else tuple(sensor for sensor in both if sensor)
        if not powers:
            self.faults.append(f"meter: {name} does not poll its power ({POWER}, or {IMPORT_POWER} and {EXPORT_POWER})")
        return powers, self._polled(known, IMPORT_ENERGY), self._polled(known, EXPORT_ENERGY)

    def _polled(self, known: Known, obis: Obis, *, sign: int = 1) -> plan.Sensor | None:
        for number, group in enumerate(known.plan.groups):
            for index, quantity in enumerate(group.quantities):
                if quantity.obis == obis:
                    return _sensor(known, (number, index), quantity, sign)
        return None

    def sensor(self, key: str, reference: str, units: Iterable[str], counts: str = "import") -> Any:  # noqa: ANN401  as ``market``
        """A quantity that is polled, by METER/QUANTITY."""
        meter, _, name = reference.partition("/")
        known = self._meter(key, meter)
        if known is None:
            return None
        register = next((register for register in known.loaded.registers if register.name == name), None)
        if register is None:
            names = _list(register.name for register in known.loaded.registers)
            self.faults.append(f"{key}: {known.loaded.name} has no quantity {name!r}; it has {names}")
            return None
        if register.quantity.unit not in units:
            wanted = " or ".join("no unit" if unit == SHARE else unit for unit in units)
            self.faults.append(f"{key}: {reference} is in {register.quantity.unit}; wanted: {wanted}")
            return None
        found = self._polled(known, register.quantity.obis, sign=-1 if counts == "export" else 1)
        if found is None:
            self.faults.append(f"{key}: {reference} is not polled: name it in the meter's quantities")
        return found

    def optional(self, key: str, reference: str | None, units: Iterable[str], counts: str = "import") -> Any:  # noqa: ANN401  as ``market``
        """The same, or None where none is named."""
        return None if reference is None else self.sensor(key, reference, units, counts)

    # ------------------------------------------------------------ what is written

    def writable(self, key: str, reference: str) -> Writable | None:
        """A number that may be written and has a safe one, by METER/WRITABLE."""
        meter, _, name = reference.partition("/")
        known = self._meter(key, meter)
        if known is None:
            return None
        assert isinstance(known.plan.map, ModbusMap)  # noqa: S101  there are no others
        found = next((writable for writable in known.plan.map.writables if writable.name == name), None)
        if found is None:
            names = _list(writable.name for writable in known.plan.map.writables)
            self.faults.append(f"{key}: {known.loaded.name} has no [[writable]] {name!r}; it has {names}")
        elif found.safe is None:
            self.faults.append(f"{key}: {reference} has no safe number in its profile: nobody could let go of it")
            return None
        return found

    def takes(self, key: str, writable: Writable | None, value: Fraction, *, what: str = "") -> None:
        """A fault where a number may not be written."""
        if writable is None:
            return
        try:
            encode_writable(writable, value)
        except ValueError as error:
            self.faults.append(f"{key}: {what}{error}")

    def power_set(self, key: str, asset: config.AssetModel, **how: Any) -> Any:  # noqa: ANN401  as ``market``
        """A set point that is a power.

        Args:
            key: Of the asset.
            asset: It.
            how: ``counts``: its sign; ``mirror``: a point that is held at the negative; ``rated``: W of a share;
                ``a_w``: W of an ampere; ``powers``: key → W of import that it must take.
        """
        writable = self.writable(f"{key}.set", asset.set)
        if writable is None:
            return None
        units = {"W": Fraction(1), SHARE: how.get("rated"), "A": how.get("a_w")}
        size = units.get(writable.unit)
        if size is None:
            missing = {SHARE: "rated", "A": "phases"}.get(writable.unit)
            hint = f"say {missing}" if missing and missing in type(asset).model_fields else "that is no power"
            unit = "without a unit" if writable.unit == SHARE else f"in {writable.unit}"
            self.faults.append(f"{key}.set: {asset.set} is {unit}: {hint}")
            return None
        w_per_unit = -Fraction(size) if how["counts"] == "export" else Fraction(size)
        mirror = how.get("mirror")
        other = self.writable(f"{key}.mirror", mirror) if mirror else None
        for name, power_w in how["powers"].items():
            self._within(f"{key}.{name}", writable, power_w / w_per_unit, power_w)
            if other is not None:
                self._within(f"{key}.{name}", other, -power_w / w_per_unit, power_w)
        if other is not None and (other.unit, other.scale) != (writable.unit, writable.scale):
            self.faults.append(f"{key}.mirror: {mirror} has other units or steps than {asset.set}")
        return replace(self._set_point(key, asset, writable, w_per_unit), mirror=mirror)

    def _within(self, key: str, writable: Writable, value: Fraction, power_w: int) -> None:
        if not writable.minimum <= value <= writable.maximum:
            bounds = f"{_text(writable.minimum)} to {_text(writable.maximum)} {writable.unit}".removesuffix(" 1")
            self.faults.append(f"{key}: {abs(power_w)} W is {_text(value)} of {writable.name}, which takes {bounds}")

    def switch_set(self, key: str, asset: config.AssetModel, numbers: Mapping[str, str]) -> Any:  # noqa: ANN401  as ``market``
        """A set point that has certain numbers: key → number."""
        writable = self.writable(f"{key}.set", asset.set)
        for name, number in numbers.items():
            self.takes(f"{key}.{name}", writable, Fraction(number))
        return writable and self._set_point(key, asset, writable, Fraction(0))

    def _set_point(self, key: str, asset: config.AssetModel, writable: Writable, w_per_unit: Fraction) -> plan.SetPoint:
        for number, enable in enumerate(asset.enable):
            at = f"{key}.enable[{number}]"
            self.takes(f"{at}.value", self.writable(f"{at}.set", enable.set), Fraction(enable.value))
        return plan.SetPoint(
            point=asset.set,
            w_per_unit=w_per_unit,
            step=Fraction(0) if writable.type in FLOATS else abs(writable.scale),
            minimum=writable.minimum,
            maximum=writable.maximum,
            values=writable.values,
            safe=writable.safe or Fraction(0),
            enable=tuple((enable.set, Fraction(enable.value)) for enable in asset.enable),
        )

    # ------------------------------------------------------------ kinds

    def common(self, key: str, asset: config.AssetModel, units: tuple[str, ...] = ("W",)) -> dict[str, Any]:
        """What every kind has."""
        return {
            "name": asset.name,
            "power": self.optional(f"{key}.power", asset.power, units, asset.power_counts),
            "ramp_w_per_s": (asset.ramp or 0) / 60,
            "settle_s": asset.settle,
        }

    def battery(self, key: str, asset: config.BatteryModel) -> plan.BatteryPlan | None:
        powers = {"charge": asset.charge, "discharge": -asset.discharge}
        how = {"counts": asset.set_counts, "rated": asset.rated, "mirror": asset.mirror}
        control = self.power_set(key, asset, powers=powers, **how)
        state = self.sensor(f"{key}.state", asset.state, (SHARE, "Wh"))
        if state and state.unit == "Wh" and asset.full is not None:
            self.faults.append(f"{key}.full: {asset.state} is in Wh: leave it out")
        common = self.common(key, asset)
        if not (control and state):
            return None
        share = state.unit == SHARE
        return plan.BatteryPlan(
            **common,
            control=control,
            state=state,
            wh_per_unit=asset.capacity / (asset.full or 1.0) if share else 1.0,
            capacity_wh=asset.capacity,
            charge_w=asset.charge,
            discharge_w=asset.discharge,
            charge_efficiency=asset.charge_efficiency,
            discharge_efficiency=asset.discharge_efficiency,
            charge_wear=asset.charge_wear,
            discharge_wear=asset.discharge_wear,
            reserve_wh=asset.reserve,
            final_price=asset.final_price,
        )

    def ev(self, key: str, asset: config.EvModel) -> plan.EvPlan:
        a_w = asset.phases and Fraction(asset.phases * asset.voltage)
        powers = {"set": 0, "least": asset.least, "most": asset.most}
        return plan.EvPlan(
            control=self.power_set(key, asset, counts="import", a_w=a_w, powers=powers),
            **self.common(key, asset, ("W", "VA")),  # a car's charger has a power factor of nearly 1
            least_w=asset.least,
            most_w=asset.most,
            wanted_wh=asset.wanted,
            capacity_wh=asset.capacity or asset.wanted,
            shortage_price=asset.shortage_price,
            plugged=self.optional(f"{key}.plugged", asset.plugged, (SHARE,)),
            plugged_values=tuple(asset.plugged_values or ()),
            charged=self.optional(f"{key}.charged", asset.charged, ("Wh", "VAh")),
            arrival_min=asset.arrival,
            departure_min=asset.departure,
        )

    def thermal(self, key: str, asset: config.ThermalAssetModel) -> plan.ThermalPlan:
        least = asset.most if asset.least is None else asset.least
        if asset.on is not None:
            control = self.switch_set(key, asset, {"on": asset.on, "off": asset.off})
        else:
            powers = {"least": least, "most": asset.most}
            control = self.power_set(key, asset, counts="import", powers=powers)
            self.takes(f"{key}.off", self.writable(f"{key}.set", asset.set) if control else None, Fraction(asset.off))
        named = isinstance(asset.outside, str)
        return plan.ThermalPlan(
            control=control,
            **self.common(key, asset),
            state=self.sensor(f"{key}.state", asset.state, ("Cel",)),
            outside=self.sensor(f"{key}.outside", str(asset.outside), ("Cel",)) if named else None,
            outside_c=None if isinstance(asset.outside, str) else asset.outside,
            low_c=asset.low,
            high_c=asset.high,
            discomfort_price=asset.discomfort_price,
            least_w=least,
            most_w=asset.most,
            least_c=float("-inf") if asset.least_temperature is None else asset.least_temperature,
            most_c=float("inf") if asset.most_temperature is None else asset.most_temperature,
            least_run_s=asset.least_run,
            least_pause_s=asset.least_pause,
            final_price=asset.final_price,
            on=None if asset.on is None else Fraction(asset.on),
            off=Fraction(asset.off),
            model=None if asset.model is None else _thermal_model(asset.model),
        )

    def deferrable(self, key: str, asset: config.DeferrableModel) -> plan.DeferrablePlan:
        return plan.DeferrablePlan(
            control=self.switch_set(key, asset, {"on": asset.on, "off": asset.off}),
            **self.common(key, asset),
            on=Fraction(asset.on),
            off=Fraction(asset.off),
            profile_w=tuple(asset.profile),
            profile_step_s=asset.profile_step,
            worth=asset.worth,
            earliest_min=asset.earliest,
            latest_min=asset.latest,
            state=self.optional(f"{key}.state", asset.state, (SHARE,)),
            ready_values=tuple(asset.ready_values),
            running_values=tuple(asset.running_values),
        )

    def curtailable(self, key: str, asset: config.CurtailableModel) -> plan.CurtailablePlan:
        numbers = {"normal": asset.normal} | {f"step[{n}].value": step.value for n, step in enumerate(asset.step)}
        return plan.CurtailablePlan(
            control=self.switch_set(key, asset, numbers),
            **self.common(key, asset),
            normal=Fraction(asset.normal),
            load_w=asset.load or sum(step.power for step in asset.step),
            sheds=tuple(
                plan.ShedPlan(power_w=step.power, cost=step.cost, value=Fraction(step.value)) for step in asset.step
            ),
        )

    def pv(self, key: str, asset: config.PvModel) -> plan.PvPlan:
        powers = {"rated": -asset.rated, "set": 0}
        return plan.PvPlan(
            control=self.power_set(key, asset, counts="export", rated=asset.rated, powers=powers),
            **self.common(key, asset),
            rated_w=asset.rated,
            available=self.optional(f"{key}.available", asset.available, ("W",)),
            support=asset.support,
            curtailable=asset.curtailable,
        )


_ASSETS: dict[type[config.AssetModel], Any] = {
    config.BatteryModel: _Wiring.battery,
    config.EvModel: _Wiring.ev,
    config.ThermalAssetModel: _Wiring.thermal,
    config.DeferrableModel: _Wiring.deferrable,
    config.CurtailableModel: _Wiring.curtailable,
    config.PvModel: _Wiring.pv,
}


def _thermal_model(model: config.ThermalModelModel) -> plan.ThermalModelPlan:
    return plan.ThermalModelPlan(
        time_constant_h=model.time_constant / 3600, kelvin_per_w=model.kelvin_per_kw / 1000, free_k=model.free
    )


def _sensor(known: Known, at: tuple[int, int], quantity: Quantity, sign: int) -> plan.Sensor:
    group, index = at
    name = next(register.name for register in known.loaded.registers if register.quantity.obis == quantity.obis)
    return plan.Sensor(
        meter=known.plan.name,
        name=name,
        group=group,
        index=index,
        unit=quantity.unit,
        factor=sign * 10.0**quantity.exponent,
        stale_s=max(STALE_MIN_S, STALE_POLLS * known.plan.groups[group].interval_s),
        cumulative=quantity.cumulative,
    )


def _list(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _text(value: Fraction) -> str:
    found = exact_decimal(value, 6)
    return decimal_text(*found) if found else f"{float(value):.6g}"


# ---------------------------------------------------------------- without a gateway


_NOWHERE = "-/-"
_SENSOR = plan.Sensor(meter="-", name="-", group=0, index=0, unit=SHARE)
_SET = plan.SetPoint(point=_NOWHERE, minimum=Fraction(0), maximum=Fraction(0), safe=Fraction(0))
_LEFT_OUT: Mapping[str, Mapping[str, Any]] = {
    "battery": {"state": _NOWHERE},
    "ev": {"charged": _NOWHERE, "phases": 3},
    "thermal": {"state": _NOWHERE, "power": _NOWHERE, "outside": _NOWHERE},
    "deferrable": {},
    "curtailable": {"power": _NOWHERE},
    "pv": {"power": _NOWHERE},
}
"""What only a gateway needs to know of each kind."""


class SiteFile(Settings):
    """A file of which only ``[market]`` counts."""

    market: config.MarketModel


def site_plan(source: str, content: Mapping[str, Any]) -> plan.MarketPlan:
    """A site for computing: ``[market]`` and its assets, of which registers, meters and keys may be left out.

    Args:
        source: Name of the file, for messages.
        content: What stands in it; other tables do not count.

    Raises:
        ConfigurationError: Every fault in it.
    """
    market = dict(content.get("market", {}))
    assets = market.get("asset")
    if isinstance(assets, list):
        market["asset"] = [_completed(asset) if isinstance(asset, dict) else asset for asset in assets]
    given = {"name": "site/site", "key": "-", "bids": "-", "meter": "-"}
    model = check(source, {"market": given | market}, SiteFile).market
    assets = tuple(_ASSETS[type(asset)](_Computing({}), "", asset) for asset in model.asset)
    return plan.MarketPlan(
        name=model.name,
        key=b"",
        bids_key=b"",
        meter=model.meter,
        net=(),
        imported=None,
        exported=None,
        import_limit_w=model.import_limit,
        export_limit_w=model.export_limit,
        timezone=model.timezone,
        assets=assets,
    )


def _completed(asset: Mapping[str, Any]) -> dict[str, Any]:
    set_ = f"-/{asset.get('name', '-')}"
    return {"set": set_} | dict(_LEFT_OUT.get(str(asset.get("kind")), {})) | dict(asset)


class _Computing(_Wiring):
    """Where nothing is polled or written."""

    def sensor(self, key: str, reference: str, units: Iterable[str], counts: str = "import") -> plan.Sensor:  # noqa: ARG002
        return _SENSOR

    def power_set(self, key: str, asset: config.AssetModel, **how: Any) -> plan.SetPoint:  # noqa: ANN401, ARG002
        return _SET

    def switch_set(self, key: str, asset: config.AssetModel, numbers: Mapping[str, str]) -> plan.SetPoint:  # noqa: ARG002
        return _SET

    def takes(self, key: str, writable: Writable | None, value: Fraction, *, what: str = "") -> None:
        pass

    def writable(self, key: str, reference: str) -> Writable | None:  # noqa: ARG002
        return None
