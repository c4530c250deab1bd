"""Profiles made of the SunSpec devices that a scan has found and no profile of the library fits."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.errors import MeterError
from energybid.drivers.identify import EQUAL, MODEL, Candidate
from energybid.drivers.probe import Prober
from energybid.drivers.profile import SUFFIX, LoadedProfile, parse_profile
from energybid.drivers.sunspec.device import Device, read_device
from energybid.drivers.sunspec.profile import profile_text
from energybid.drivers.sunspec.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.core.ports import OpenBus
    from energybid.drivers.scan import Found, Setting, State

PREFIX = "sunspec-"
NAME_MAX = 48
TIMEOUT_S = 1.0


class Made(NamedTuple):
    """A profile that is not in the library."""

    text: str
    """The file."""
    loaded: LoadedProfile


async def make_profiles(open_bus: OpenBus, settings: Sequence[Setting], state: State) -> dict[str, Made]:
    """Make them, and put them first among the candidates of their devices.

    Args:
        open_bus: The platform's.
        settings: Where was searched.
        state: What was found; why a device could not be read is said there.

    Returns:
        File name → profile.
    """
    made: dict[str, Made] = {}
    for setting in settings:
        devices = [found for found in state.at(setting) if _is_unknown(found)]
        if not devices:
            continue
        prober = Prober(open_bus, setting.target)
        try:
            for found in devices:
                try:
                    device = await read_device(Reader(prober, found.unit, TIMEOUT_S).read)
                    if device is not None:
                        made |= [_make(found, device)]
                except (MeterError, ValueError) as error:
                    found.fault = f"SunSpec: {error}"
        finally:
            await prober.close()
    return made


def _is_unknown(found: Found) -> bool:
    identity = found.identity
    if identity is None or not identity.sunspec:
        return False
    best = identity.best
    return best is None or not best.certain or best.profile.startswith(PREFIX)


def _make(found: Found, device: Device) -> tuple[str, Made]:
    text = profile_text(device)
    name = _name(device, found.unit)
    loaded = parse_profile(name.removesuffix(SUFFIX), text.encode(), source=name)
    models = " ".join(str(model.number) for model in device.chain.models)
    candidate = Candidate(
        profile=name,
        manufacturer=loaded.profile.manufacturer,
        model=loaded.profile.model,
        points=EQUAL + MODEL,
        certain=True,
        reasons=(f"made of its SunSpec models {models}; --write FILE writes it beside FILE",),
    )
    identity = found.identity
    assert identity is not None  # noqa: S101  it has SunSpec models
    identity.candidates = [candidate, *(c for c in identity.candidates if c.profile != name)]
    identity.serial_number = device.text("serial-number") or None
    return name, Made(text, loaded)


def _name(device: Device, unit: int) -> str:
    """The same for the same device."""
    words = f"{device.text('manufacturer')} {device.text('serial-number') or f'unit {unit}'}"
    return PREFIX + re.sub(r"[^a-z0-9]+", "-", words.casefold()).strip("-")[:NAME_MAX] + SUFFIX
