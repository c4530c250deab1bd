"""What found meters measure just now, read by their drivers, to compare with what their displays say."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.errors import MeterError
from energybid.core.ports import BusPlan, MeterPlan
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.profile import compile_profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from energybid.core.ports import Platform, PollGroup, Sample
    from energybid.core.quantities import Quantity
    from energybid.drivers.profile import LoadedProfile
    from energybid.drivers.target import BusTarget

SHOWN = "voltage-l1", "voltage-l2", "voltage-l3", "power", "energy-import"
"""What every display has."""
SHOWN_ELSE = 4
"""So many quantities of a model that has none of them."""
LATENESS_S = 0.1
RETRIES = 1


class Wanted(NamedTuple):
    """A meter to read."""

    unit: int
    loaded: LoadedProfile


async def read_values(
    platform: Platform, target: BusTarget, wanted: Sequence[Wanted]
) -> list[list[tuple[str, str]] | str]:
    """Read what people look for on a display, once from each meter.

    Args:
        platform: The seams.
        target: The bus.
        wanted: Its meters.

    Returns:
        For each meter names and values, such as ("power", "1534 W"), or why there are none.
    """
    meters = tuple(_meter(unit, loaded) for unit, loaded in wanted)
    plan = BusPlan(name="bus", kind=target.kind, endpoint=target.endpoint, meters=tuple(meters), lateness_s=LATENESS_S)
    driver = open_driver(platform, plan)
    results: list[list[tuple[str, str]] | str] = []
    try:
        for meter, (_, loaded) in zip(meters, wanted, strict=True):
            try:
                samples = [await driver.poll(meter, group) for group in range(len(meter.groups))]
            except MeterError as error:
                results.append(str(error))
                continue
            results.append(_texts(loaded, zip(meter.groups, samples, strict=True)))
    finally:
        await driver.close()
    return results


def _meter(unit: int, loaded: LoadedProfile) -> MeterPlan:
    names = [register.name for register in loaded.registers]
    chosen = [name for name in SHOWN if name in names] or names[:SHOWN_ELSE]
    groups, compiled = compile_profile(loaded, interval_s=1, quantities=chosen)
    return MeterPlan(
        name=f"unit {unit}",
        unit=unit,
        timeout_s=loaded.profile.timeout_s,
        retries=RETRIES,
        profile=loaded.name,
        profile_hash=loaded.sha256,
        groups=groups,
        map=compiled,
    )


def _texts(loaded: LoadedProfile, polled: Iterable[tuple[PollGroup, Sample]]) -> list[tuple[str, str]]:
    names = {register.quantity.obis: register.name for register in loaded.registers}
    texts = {
        names[quantity.obis]: value_text(mantissa, quantity)
        for group, sample in polled
        for quantity, mantissa in zip(group.quantities, sample.values, strict=True)
    }
    return [(name, texts[name]) for name in dict.fromkeys((*SHOWN, *texts)) if name in texts]


def value_text(mantissa: int | None, quantity: Quantity) -> str:
    """A value as a display shows it, with its unit; energy in kWh, kvarh and kVAh."""
    if mantissa is None:
        return "not available"
    value, unit = Decimal(mantissa).scaleb(quantity.exponent), quantity.unit
    if unit.endswith("h"):
        value, unit = value.scaleb(-3), f"k{unit}"
    return f"{value:f}" if unit == "1" else f"{value:f} {unit}"
