"""A profile made of one SunSpec device: TOML text with that device's absolute addresses, for its owner to keep. Pure.

Each model is a block of its own. Scale factors become factors that are read with every poll, for there are devices that
change them. So do the models' headers: where another header stands after an update, there are no numbers any more. The
profile knows its device again by marker, headers, maker and model.

Channels: the OBIS group B tells apart models that measure the same. Meters come first: channel 0 is the grid meter
where there is one, otherwise the inverter.

Signs: powers in readings are positive when the site imports. Meters (20x, 21x) have that in the standard too: what is
imported are quadrants 1 and 2 of reactive energy. SolarEdge has it the other way round in the meters behind its
inverters, in powers only. Inverters are described in the producer's frame (SunSpec Inverter Models V1.5, figure 4;
"active power is positive for DER generation", model 701): what they deliver is negative here, and counted as export.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.quantities import fraction_text
from energybid.drivers.sunspec.chain import MARKER
from energybid.drivers.sunspec.models import (
    ABSENT,
    COMMON,
    COMMON_TEXTS,
    CONTROL,
    END,
    HEADER,
    INVERTER,
    METER,
    MODELS,
    RATINGS,
    STORAGE,
    TYPES,
    Control,
    Model,
    Point,
    ScaleFactor,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from energybid.drivers.sunspec.chain import Found
    from energybid.drivers.sunspec.device import Device

REVERSED_MAKERS = ("solaredge",)
"""Whose meters count power that is exported as positive: evcc and OpenEMS both turn it round."""
ORDER = {METER: 0, INVERTER: 1, STORAGE: 2, CONTROL: 3}
EXPONENTS = {"A": -2, "V": -1, "Hz": -2, "1": -3}
"""What is logged at least, by unit; 0 for others. A device with finer scale factors is logged as fine as it is."""
FINEST = -6
FINGERPRINTS_MAX = 16
GUARD = "header"
ROLLOVER_DIGITS = 18
ACCUMULATOR = 1 << 32
"""Where one of 32 bits begins again."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What to make a profile of."""

    models: Collection[int] | None = None
    """Numbers of the models; None for all that are understood."""
    everything: bool = False
    """Points that are not implemented just now, too."""
    whole: bool = False
    """From marker to end model, as one block and with every header: for a device that is simulated."""
    reverse: bool | None = None
    """Meters count power that is exported as positive; None: as the maker is known to do."""


class _Instance(NamedTuple):
    """One model of the chain, as it goes into the profile."""

    found: Found
    model: Model
    channel: int
    prefix: str
    """Of its quantities' names."""
    stem: str
    """Of its factors' names."""
    points: list[Point]
    missing: list[str]
    """Names of points that are not implemented."""


def profile_text(device: Device, choice: Choice = Choice()) -> str:
    """The profile's file.

    Raises:
        ValueError: Nothing in the device can be read as a quantity.
    """
    instances = _instances(device, choice)
    if not any(instance.points for instance in instances):
        numbers = " ".join(str(found.number) for found in device.chain.models)
        raise ValueError(f"none of its models has a quantity that is implemented: {numbers or 'there are none'}")
    reverse = choice.reverse
    if reverse is None:
        reverse = device.text("manufacturer").casefold().startswith(REVERSED_MAKERS)
    written = _written(device)
    lines = [
        *_head(device, instances, reverse=reverse),
        "",
        *(
            _whole(device)
            if choice.whole
            else _blocks(device, [*(i.found for i in instances), *(w.found for w in written)])
        ),
        "",
        "quantity = [",
        *(line for instance in instances for line in _quantities(device, instance, reverse=reverse)),
        "]",
        "",
        "[not_available]",
        *(f'{TYPES[kind]} = ["{ABSENT[kind]:0{4 * size(kind)}X}"]' for kind in ("int16", "uint16", "uint32", "uint64")),
        *_factors(device, instances),
        *_guards(device, written, {instance.found for instance in instances}),
        *_identification(device, device.chain.models if choice.whole else [i.found for i in instances]),
        *(_fingerprint(device.chain.models[-1].end, None, f"equals = [{END << 16}]", "end") if choice.whole else ()),
        *(line for w in written for line in _writable(device, w)),
        *SOURCES,
    ]
    return "\n".join(lines) + "\n"


SOURCES = """
[[source]]
title = "SunSpec Alliance, information model definitions"
url = "https://github.com/sunspec/models"

[[source]]
title = "SunSpec Information Model Reference, 28 September 2017; from model 701 on: OpenEMS, DefaultSunSpecModel"
url = "https://sunspec.org"
""".rstrip().split("\n")


# ---------------------------------------------------------------- what is in it


def _instances(device: Device, choice: Choice) -> list[_Instance]:
    """Models with quantities, meters first, each with a channel in which its quantities are free."""
    wanted = [
        (found, MODELS[found.number])
        for found in device.chain.models
        if found.number in MODELS and (choice.models is None or found.number in choice.models)
    ]
    wanted.sort(key=lambda pair: ORDER[pair[1].kind])
    instances: list[_Instance] = []
    for found, model in wanted:
        points, missing = _implemented(device, found, model, choice)
        if not points:
            continue
        codes = {point.obis for point in points}
        taken = [{p.obis for i in instances if i.channel == channel for p in i.points} for channel in range(64)]
        channel = next(channel for channel, others in enumerate(taken) if not codes & others)
        instances.append(
            _Instance(
                found,
                model,
                channel,
                f"{model.kind}-{channel}-" if channel else "",
                _stem(device, found),
                points,
                missing,
            )
        )
    return instances


def _implemented(device: Device, found: Found, model: Model, choice: Choice) -> tuple[list[Point], list[str]]:
    points, missing = [], []
    for point in model.points:
        value = device.value(found, point.offset, point.type)
        if value is None:
            missing.append(point.name)
        elif choice.everything or point.core or _has(device, found, point, absent=value.absent):
            points.append(point)
        else:
            missing.append(point.name)
    return points, missing


def _has(device: Device, found: Found, point: Point, *, absent: bool) -> bool:
    """An accumulator may stand at 0 since nothing flowed yet: then its scale factor tells."""
    if point.type == "acc32":
        return device.power(found, point.factor) is not None
    return not absent


def _scaled(device: Device, instance: _Instance, point: Point) -> bool:
    """Whether a point is scaled: a scale factor that is not implemented counts as none, as other readers have it."""
    value = point.factor and device.value(instance.found, point.factor.offset, "sunssf")
    return value is not None and not value.absent


# ---------------------------------------------------------------- the file's parts


def _head(device: Device, instances: list[_Instance], *, reverse: bool) -> Iterator[str]:
    chain = device.chain
    models = " ".join(str(found.number) for found in chain.models)
    yield f"# Made of a SunSpec device: marker at {chain.base}, models {models}."
    if chain.fault:
        yield f"# The chain of models is broken: {_plain(chain.fault)}."
    yield "# It fits this device, and others with the same models at the same places."
    for instance in instances:
        about = f"# Model {instance.found.number} ({instance.model.about}) at {instance.found.first}"
        yield f"{about}: channel {instance.channel}" + (", power is turned round" if _turned(instance, reverse) else "")
        if instance.missing:
            yield f"#   not implemented when it was read: {' '.join(instance.missing)}"
    yield f"manufacturer = {_quoted(device.text('manufacturer') or 'SunSpec')}"
    yield f"model = {_quoted(device.text('model') or 'device')}"
    yield f"max_registers = {device.registers_max}"
    yield "baudrates = [9600, 19200, 38400, 57600, 115200]"
    yield 'parities = ["N", "E"]'
    yield 'timeout = "1 s"'
    yield 'defaults = { table = "holding" }'


def _turned(instance: _Instance, reverse: bool) -> bool:  # noqa: FBT001  one fact
    return any(_sign(point, reverse=reverse) < 0 for point in instance.points)


def _sign(point: Point, *, reverse: bool) -> int:
    return -point.sign.scale if reverse and point.sign.by_maker else point.sign.scale


def _blocks(device: Device, models: Iterable[Found]) -> Iterator[str]:
    yield "block = ["
    for found in sorted(set(models), key=lambda found: found.first):
        for first, end in _runs(sorted(at for at in device.registers if found.first <= at < found.end)):
            yield f'  {{ table = "holding", first = {first}, count = {end - first} }},'
    yield "]"


def _whole(device: Device) -> list[str]:
    first, end = device.chain.base, device.chain.models[-1].end + HEADER
    return ["block = [", f'  {{ table = "holding", first = {first}, count = {end - first} }},', "]"]


def _runs(addresses: list[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for index, at in enumerate(addresses):
        if index + 1 == len(addresses) or addresses[index + 1] != at + 1:
            yield addresses[first], at + 1
            first = index + 1


def _quantities(device: Device, instance: _Instance, *, reverse: bool) -> Iterator[str]:
    for point in instance.points:
        scale = abs(point.scale) * _sign(point, reverse=reverse)
        scaled = _scaled(device, instance, point)
        power = (device.power(instance.found, point.factor) or 0) if scaled else 0
        exponent = max(FINEST, min(EXPONENTS.get(point.unit, 0), power - (point.unit == "1") * 2))
        parts = [
            f"name = {_quoted(instance.prefix + point.quantity)}",
            f'obis = "1-{instance.channel}:{point.obis}"',
            f"register = {instance.found.first + point.offset}",
            f'type = "{TYPES[point.type]}"',
        ]
        if scale != 1:
            parts.append(f'scale = "{fraction_text(scale)}"')
        factors = [instance.stem + GUARD, *([_factor_name(instance, point.factor)] if scaled and point.factor else [])]
        parts.append(f"scale_by = {json.dumps(factors)}")
        parts += [f'unit = "{point.unit}"', f'resolution = "{fraction_text(Fraction(10) ** exponent)}"']
        if point.obis.split(".")[1] == "8":
            parts.append("cumulative = true")
        if point.type == "acc32":
            rollover = fraction_text(ACCUMULATOR * Fraction(10) ** power)
            parts.append(f'rollover = "{rollover}"' if len(rollover) < ROLLOVER_DIGITS else "")
            parts.append("not_available = []" if point.core else 'not_available = ["00000000"]')
        yield f"  {{ {', '.join(filter(None, parts))} }},"


def _factor_name(instance: _Instance, factor: ScaleFactor) -> str:
    return instance.stem + factor.name.casefold().replace("_", "-")


def _factors(device: Device, instances: list[_Instance]) -> Iterator[str]:
    for instance in instances:
        yield from _header_guard(instance.stem, instance.found)
        scaled = (point.factor for point in instance.points if _scaled(device, instance, point))
        for factor in dict.fromkeys(scaled):
            if factor is not None:
                register = instance.found.first + factor.offset
                yield from _factor(_factor_name(instance, factor), register, "int16", 'kind = "power-of-ten"')


def _header_guard(stem: str, found: Found) -> list[str]:
    """The model's header, read with every poll: after an update of the device another model may stand there."""
    return _guard(stem + GUARD, found.first, "uint32", _header(found))


def _header(found: Found) -> int:
    return found.number << 16 | found.length


def _guard(name: str, register: int, kind: str, value: int) -> list[str]:
    return _factor(name, register, kind, 'kind = "guard"', f"equals = [{value}]")


def _factor(name: str, register: int, kind: str, *more: str) -> list[str]:
    return ["", "[[factor]]", f'name = "{name}"', f"register = {register}", f'type = "{kind}"', *more]


def _identification(device: Device, models: Sequence[Found]) -> Iterator[str]:
    """Marker, maker, model, and the headers of what is read, as far as fingerprints go."""
    base, common = device.chain.base, _common(device)
    yield from _fingerprint(base, 2, f"text = {_quoted(MARKER.decode())}", "SunSpec marker")
    places = [] if common is None else [("manufacturer", "maker"), ("model", "model")]
    for name, about in places:
        if common and device.text(name).isascii() and device.text(name):
            offset, count = COMMON_TEXTS[name]
            yield from _fingerprint(common.first + offset, count, f"text = {_quoted(device.text(name))}", about)
    headers = dict.fromkeys([*([common] if common else []), *models])
    for found in [*headers][: FINGERPRINTS_MAX - 4]:
        yield from _fingerprint(found.first, None, f"equals = [{_header(found)}]", f"header of model {found.number}")
    if common:
        offset, count = COMMON_TEXTS["serial-number"]
        place = f'table = "holding", register = {common.first + offset}, type = "text", count = {count}'
        yield from ("", "[identification.serial_number]", *place.split(", "))


def _fingerprint(first: int, count: int | None, holds: str, about: str) -> list[str]:
    kind = ['type = "uint32"'] if count is None else ['type = "text"', f"count = {count}"]
    return [
        "",
        "[[identification.fingerprint]]",
        'table = "holding"',
        f"register = {first}",
        *kind,
        holds,
        f"about = {_quoted(about)}",
    ]


def _common(device: Device) -> Found | None:
    found = next((found for found in device.chain.models if found.number == COMMON), None)
    reach = sum(COMMON_TEXTS["serial-number"])
    return found if found and HEADER + found.length >= reach else None


# ---------------------------------------------------------------- what may be written


class _Written(NamedTuple):
    """A control that may be written."""

    found: Found
    control: Control
    bounds: tuple[Fraction, Fraction]


def _written(device: Device) -> list[_Written]:
    """Controls of the chain's models, of the newest where two have one of the same name."""
    kept: dict[str, _Written] = {}
    for model in sorted(device.chain.models, key=lambda model: -model.number):
        for control in MODELS[model.number].controls if model.number in MODELS else ():
            value = device.value(model, control.offset, control.type)
            bounds = _bounds(device, control)
            if value is not None and not value.absent and bounds is not None:
                kept.setdefault(control.name, _Written(model, control, bounds))
    return list(kept.values())


def _stem(device: Device, found: Found) -> str:
    """What the names of a model's factors begin with."""
    same = [model for model in device.chain.models if model.number == found.number]
    return f"m{found.number}-" + (f"{same.index(found) + 1}-" if same[0] != found else "")


def _fixed(device: Device, found: Found, control: Control) -> tuple[str, int, int] | None:
    """The guard of a control's scale factor: name, register, value. The profile's steps and bounds are made with it."""
    power = device.power(found, control.factor)
    if control.factor is None or power is None:
        return None
    name = _stem(device, found) + control.factor.name.casefold().replace("_", "-")
    return name, found.first + control.factor.offset, power


def _guards(device: Device, written: list[_Written], guarded: Collection[Found]) -> Iterator[str]:
    """Headers of models with controls, and their scale factors."""
    for found in dict.fromkeys(w.found for w in written):
        if found not in guarded:
            yield from _header_guard(_stem(device, found), found)
    for fixed in dict.fromkeys(_fixed(device, w.found, w.control) for w in written):
        if fixed:
            name, register, power = fixed
            yield from _guard(name, register, "int16", power)


def _bounds(device: Device, control: Control) -> tuple[Fraction, Fraction] | None:
    if control.maximum is not None:
        return Fraction(control.minimum), Fraction(control.maximum)
    rating = _rating(device)
    return None if rating is None else (-rating, rating)


def _rating(device: Device) -> Fraction | None:
    """Greatest active power of the device, W."""
    for number, (offset, factor) in RATINGS.items():
        for found in device.chain.models:
            value = device.value(found, offset, "uint16") if found.number == number else None
            if value and value.raw and not value.absent:
                return value.raw * Fraction(10) ** (device.power(found, factor) or 0)
    return None


def _writable(device: Device, written: _Written) -> list[str]:
    """Bounds are taken inwards to whole counts of the register."""
    found, control, bounds = written
    scale = control.scale * Fraction(10) ** (device.power(found, control.factor) or 0)
    fixed = _fixed(device, found, control)
    guards = [_stem(device, found) + GUARD, *([fixed[0]] if fixed else [])]
    least, most = (int(bound / abs(scale)) * abs(scale) for bound in bounds)
    return [
        "",
        "[[writable]]",
        f"name = {_quoted(control.name)}",
        f"register = {found.first + control.offset}",
        f'type = "{TYPES[control.type]}"',
        f'scale = "{fraction_text(scale)}"',
        f'unit = "{control.unit}"',
        f'minimum = "{fraction_text(least)}"',
        f'maximum = "{fraction_text(most)}"',
        f"guarded_by = {json.dumps(guards)}",
        *([] if control.safe is None else [f'safe = "{fraction_text(Fraction(control.safe))}"']),
    ]


# ---------------------------------------------------------------- texts


def _quoted(text: str) -> str:
    return json.dumps(_plain(text), ensure_ascii=False)


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
