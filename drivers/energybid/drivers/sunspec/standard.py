"""A device that does not exist: the common model and chosen models one behind the other, everything implemented.

What the simulator serves, and what ``energybid profile show sunspec:203`` shows. A real device's models lie elsewhere.
"""

from energybid.core.errors import ConfigurationError
from energybid.drivers.profile import LoadedProfile, parse_profile
from energybid.drivers.sunspec.chain import BASES, MARKER_REGISTERS, Chain, Found
from energybid.drivers.sunspec.device import Device
from energybid.drivers.sunspec.models import COMMON, COMMON_TEXTS, MODELS
from energybid.drivers.sunspec.profile import EXPONENTS, Choice, profile_text

PREFIX = "sunspec:"
"""``sunspec:203``, ``sunspec:103+124``: the models, in order."""
TEXTS = {"manufacturer": "SunSpec", "model": "Simulated"}


def is_standard(name: str) -> bool:
    """Whether a profile's name means such a device."""
    return name.startswith(PREFIX)


def load_standard(name: str) -> LoadedProfile:
    """The profile of such a device.

    Args:
        name: ``sunspec:`` and numbers of models, with + between.

    Raises:
        ConfigurationError: A model that is not known, or none with a quantity.
    """
    numbers = name.removeprefix(PREFIX).split("+")
    known = [number for number, model in MODELS.items() if model.points or model.controls]
    wrong = [number for number in numbers if number not in map(str, MODELS)]
    if wrong:
        raise ConfigurationError([f"no SunSpec model {wrong[0]!r}; there are {', '.join(map(str, known))}"])
    try:
        text = profile_text(standard_device([int(number) for number in numbers]), Choice(everything=True, whole=True))
    except ValueError as error:
        raise ConfigurationError([f"{name}: {error}"]) from None
    return parse_profile(name, text.encode(), source=name)


def standard_device(numbers: list[int]) -> Device:
    """A device with these models, at the first base."""
    at, found = BASES[0] + MARKER_REGISTERS, []
    for number in [COMMON, *numbers]:
        found.append(Found(number, at, MODELS[number].length))
        at = found[-1].end
    registers = {at: 0 for model in found for at in range(model.first, model.end)}
    for name, text in TEXTS.items():
        offset, _ = COMMON_TEXTS[name]
        data = text.encode() + bytes(len(text) % 2)
        for index in range(0, len(data), 2):
            registers[found[0].first + offset + index // 2] = int.from_bytes(data[index : index + 2], "big")
    for model in found[1:]:
        for point in MODELS[model.number].points:
            if point.factor is not None:
                power = EXPONENTS.get(point.unit, 0) + 2 * (point.unit == "1")
                registers[model.first + point.factor.offset] = power & 0xFFFF
    return Device(chain=Chain(BASES[0], tuple(found), ""), registers=registers)
