"""Profiles: one TOML file per meter model, checked here and compiled to what the running driver needs.

A profile is data: adding a meter touches no code. Here live the file's shape, its checks and the compilation of
quantities to the fewest requests. Imports pydantic, so only commands and tests import this, never the running agent.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from hashlib import sha256
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from energybid.core.entries import VALUES_MAX
from energybid.core.errors import ConfigurationError
from energybid.core.ports import PollGroup
from energybid.core.quantities import UNITS, Obis, Quantity
from energybid.core.settings import Duration, Settings, parse_toml
from energybid.drivers.modbus import map as compiled
from energybid.drivers.modbus.map import HOLDING, INPUT, REGISTERS_MAX, TYPES, ModbusMap, Request

ADDRESSES = 65_536
FUNCTION_OF = {"holding": HOLDING, "input": INPUT}
DIGITS_MAX = 18
SUFFIX = ".toml"

_DECIMAL = re.compile(r"-?\d{1,18}(\.\d{1,18})?")


def _decimal(text: str) -> str:
    if not _DECIMAL.fullmatch(text):
        raise ValueError('write a decimal number in quotes, such as "0.1" or "1000", with at most 18 digits')
    return text


def _positive(text: str) -> str:
    if Decimal(_decimal(text)) <= 0:
        raise ValueError("must be greater than 0")
    return text


def _power_of_ten(text: str) -> str:
    digits = Decimal(_positive(text)).normalize().as_tuple().digits
    if digits != (1,):
        raise ValueError('must be a power of ten, such as "0.01", "1" or "10"')
    return text


def _obis(text: str) -> str:
    Obis.parse(text)
    return text


def _unit(text: str) -> str:
    if text not in UNITS:
        raise ValueError(f"is not one of {', '.join(sorted(UNITS))}")
    return text


def _pattern(text: str) -> str:
    if not re.fullmatch(r"([0-9A-F]{4}){1,4}", text):
        raise ValueError('write the value in hexadecimal, four digits a register, such as "7FFFFFFF"')
    return text


Scale = Annotated[str, AfterValidator(_positive)]
Table = Literal["holding", "input"]
Type = Literal["int16", "uint16", "int32", "uint32", "float32", "int64", "uint64"]
WordOrder = Literal["big", "little"]
Patterns = Annotated[list[Annotated[str, AfterValidator(_pattern)]], Field(max_length=8)]
Address = Annotated[int, Field(ge=0, lt=ADDRESSES)]
Text = Annotated[str, Field(min_length=1, max_length=255)]


class Source(Settings):
    """Where the registers are known from."""

    title: Text
    edition: Text | None = None
    url: Text | None = None


class Block(Settings):
    """Registers that the meter lets one read at once, gaps included."""

    table: Table
    first: Address
    """Address on the wire, 0-based."""
    count: Annotated[int, Field(ge=1, le=ADDRESSES)]


class Defaults(Settings):
    """What quantities have that do not say otherwise."""

    table: Table | None = None
    type: Type | None = None
    word_order: WordOrder = "big"


class QuantitySettings(Settings):
    """One quantity of a meter and the register it is read from."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    obis: Annotated[str, AfterValidator(_obis)]
    register_: Address = Field(alias="register")
    """Address of the first register on the wire, 0-based."""
    table: Table | None = None
    type: Type | None = None
    word_order: WordOrder | None = None
    scale: Scale = "1"
    """Units per raw count, exact."""
    unit: Annotated[str, AfterValidator(_unit)]
    resolution: Annotated[str, AfterValidator(_power_of_ten)]
    """What the logged integer counts, in the unit; a power of ten."""
    not_available: Patterns | None = None
    cumulative: bool = False
    rollover: Scale | None = None
    """A cumulative register starts again at 0 when it would reach this, in the unit."""


class SerialNumber(Settings):
    """Where the meter keeps its serial number."""

    table: Table
    register_: Address = Field(alias="register")
    type: Literal["uint32", "uint64", "text"]
    count: Annotated[int, Field(ge=1, le=REGISTERS_MAX)]
    """Registers."""


class Identification(Settings):
    """How a meter of this model says who it is."""

    serial_number: SerialNumber | None = None


class Profile(Settings):
    """A meter model, as its TOML file says it."""

    manufacturer: Text
    model: Text
    source: Annotated[list[Source], Field(min_length=1)]
    max_registers: Annotated[int, Field(ge=1, le=REGISTERS_MAX)]
    """Most registers the meter answers in one request."""
    baudrates: Annotated[list[Annotated[int, Field(ge=300, le=1_000_000)]], Field(min_length=1)]
    parities: Annotated[list[Literal["N", "E", "O"]], Field(min_length=1)]
    timeout_s: Duration = Field(alias="timeout")
    """How long the meter may take to begin its reply."""
    defaults: Defaults = Defaults()
    not_available: dict[Type, Patterns] = Field(default_factory=dict)
    """Values of each type that mean "not available"."""
    identification: Identification = Identification()
    block: Annotated[list[Block], Field(min_length=1)]
    quantity: Annotated[list[QuantitySettings], Field(min_length=1, max_length=VALUES_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """One quantity with everything about its register resolved."""

    name: str
    quantity: Quantity
    function: int
    """HOLDING or INPUT."""
    first: int
    count: int
    type: str
    """Key of TYPES."""
    little: bool
    scale: Fraction
    """Units per raw count."""
    markers: tuple[int, ...]
    """Bit patterns that mean "not available"."""
    rollover: Fraction | None

    @property
    def end(self) -> int:
        """Address behind its last register."""
        return self.first + self.count

    @property
    def factor(self) -> Fraction:
        """Mantissa per raw count."""
        exponent = self.quantity.exponent
        return self.scale * Fraction(10) ** -exponent


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProfile:
    """A checked profile."""

    name: str
    profile: Profile
    sha256: bytes
    """Of the file."""
    registers: tuple[Register, ...]
    """Its quantities by table and address."""


def list_profiles() -> list[str]:
    """Names of the profiles that come with this package, sorted."""
    names = [entry.name for entry in files("energybid.drivers").joinpath("profiles").iterdir()]
    return sorted(name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))


def load_profile(name_or_path: str) -> LoadedProfile:
    """Read and check a profile.

    Args:
        name_or_path: One of ``list_profiles()``, or the path of a TOML file.

    Raises:
        ConfigurationError: Every fault in it, or that there is no such file.
    """
    if name_or_path.endswith(SUFFIX):
        path = Path(name_or_path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigurationError([f"{name_or_path}: {error.strerror or error}"]) from None
        return parse_profile(path.name.removesuffix(SUFFIX), data, source=name_or_path)
    if name_or_path not in list_profiles():
        raise ConfigurationError(
            [f"no profile {name_or_path!r}; there are {', '.join(list_profiles())}, or write the path of a .toml file"]
        )
    entry = files("energybid.drivers").joinpath("profiles").joinpath(name_or_path + SUFFIX)
    return parse_profile(name_or_path, entry.read_bytes(), source=name_or_path + SUFFIX)


def parse_profile(name: str, data: bytes, *, source: str) -> LoadedProfile:
    """Check a profile's bytes.

    Args:
        name: What readings call it.
        data: The TOML file.
        source: The file's name for messages.

    Raises:
        ConfigurationError: Every fault in it.
    """
    profile = parse_toml(source, data, Profile)
    faults = [f"{source}: {fault}" for fault in _faults(profile)]
    if faults:
        raise ConfigurationError(faults)
    registers = sorted(_registers(profile), key=_place)
    return LoadedProfile(name=name, profile=profile, sha256=sha256(data).digest(), registers=tuple(registers))


def _place(register: Register) -> tuple[int, int]:
    return register.function, register.first


# ---------------------------------------------------------------- what only shows in the whole file


def _faults(profile: Profile) -> list[str]:
    """What is wrong between the parts of a file whose parts are right."""
    faults = [*_block_faults(profile), *_type_faults(profile)]
    if faults:
        return faults  # the registers can not be resolved
    return [
        *_duplicates(profile),
        *(f"quantity[{i}].{fault}" for i, r in enumerate(_registers(profile)) for fault in _one(profile, r, i)),
        *_overlaps(profile),
    ]


def _block_faults(profile: Profile) -> Iterator[str]:
    for index, block in enumerate(profile.block):
        if block.first + block.count > ADDRESSES:
            yield f"block[{index}].count: ends behind register {ADDRESSES - 1}"
    order = sorted(range(len(profile.block)), key=lambda i: (profile.block[i].table, profile.block[i].first))
    for a, b in pairwise(order):
        before, after = profile.block[a], profile.block[b]
        if before.table == after.table and before.first + before.count > after.first:
            yield f"block[{b}].first: {after.table} register {after.first} is in block[{a}] as well"


def _type_faults(profile: Profile) -> Iterator[str]:
    for index, quantity in enumerate(profile.quantity):
        for key in ("table", "type"):
            if getattr(quantity, key) is None and getattr(profile.defaults, key) is None:
                yield f"quantity[{index}].{key}: is missing; write it here or in [defaults]"
        kind = quantity.type or profile.defaults.type
        patterns = quantity.not_available or ()
        if kind and any(len(pattern) != 4 * TYPES[kind].registers for pattern in patterns):
            yield f"quantity[{index}].not_available: {kind} has {4 * TYPES[kind].registers} hexadecimal digits"
    for name, patterns in profile.not_available.items():
        if any(len(pattern) != 4 * TYPES[name].registers for pattern in patterns):
            yield f"not_available.{name}: {name} has {4 * TYPES[name].registers} hexadecimal digits"


def _duplicates(profile: Profile) -> Iterator[str]:
    for key in ("name", "obis"):
        seen: dict[object, int] = {}
        for index, quantity in enumerate(profile.quantity):
            value = Obis.parse(quantity.obis) if key == "obis" else quantity.name
            if value in seen:
                yield f"quantity[{index}].{key}: {value!s} is also that of quantity[{seen[value]}]"
            seen.setdefault(value, index)


def _one(profile: Profile, register: Register, index: int) -> Iterator[str]:
    """Faults of one quantity, each beginning with its key."""
    if register.end > ADDRESSES:
        yield f"register: {register.type} at {register.first} ends behind register {ADDRESSES - 1}"
    elif not any(_holds(block, register) for block in profile.block):
        yield f"register: {_where(register)} is in no block that may be read"
    if register.count > profile.max_registers:
        yield f"type: {register.type} has {register.count} registers; max_registers is {profile.max_registers}"
    if register.rollover is not None:
        step = Fraction(10) ** register.quantity.exponent
        if not register.quantity.cumulative:
            yield "rollover: only a cumulative quantity rolls over; add cumulative = true"
        if register.rollover % step:
            yield f"rollover: is not a multiple of the resolution {profile.quantity[index].resolution}"


def _where(register: Register) -> str:
    table = next(name for name, function in FUNCTION_OF.items() if function == register.function)
    last = register.end - 1
    return f"{table} register {register.first}" + (f" to {last}" if last > register.first else "")


def _holds(block: Block, register: Register) -> bool:
    return (
        FUNCTION_OF[block.table] == register.function
        and block.first <= register.first
        and register.end <= block.first + block.count
    )


def _overlaps(profile: Profile) -> Iterator[str]:
    order = sorted(enumerate(_registers(profile)), key=lambda pair: _place(pair[1]))
    for (a, before), (b, after) in pairwise(order):
        if before.function == after.function and before.end > after.first:
            yield f"quantity[{b}].register: {_where(after)} overlaps quantity[{a}] ({before.name})"


def _registers(profile: Profile) -> list[Register]:
    """Quantities in the file's order, defaults filled in."""
    return [_register(profile, quantity) for quantity in profile.quantity]


def _register(profile: Profile, settings: QuantitySettings) -> Register:
    kind, table = settings.type or profile.defaults.type, settings.table or profile.defaults.table
    if kind is None or table is None:
        raise ValueError("check the types first")
    patterns = profile.not_available.get(kind, []) if settings.not_available is None else settings.not_available
    return Register(
        name=settings.name,
        quantity=Quantity(
            obis=Obis.parse(settings.obis),
            unit=settings.unit,
            exponent=Decimal(settings.resolution).adjusted(),
            cumulative=settings.cumulative,
        ),
        function=FUNCTION_OF[table],
        first=settings.register_,
        count=TYPES[kind].registers,
        type=kind,
        little=(settings.word_order or profile.defaults.word_order) == "little",
        scale=Fraction(settings.scale),
        markers=tuple(int(pattern, 16) for pattern in patterns),
        rollover=None if settings.rollover is None else Fraction(settings.rollover),
    )


# ---------------------------------------------------------------- compilation


def compile_profile(
    loaded: LoadedProfile, *, interval_s: float, quantities: Sequence[str] | None = None
) -> tuple[tuple[PollGroup, ...], ModbusMap]:
    """One poll group and the fewest requests that read it.

    Args:
        loaded: The profile.
        interval_s: Seconds between two polls.
        quantities: Names of the quantities wanted; None for all. Their order does not matter: a reading has them by
            table and address, as the requests bring them.

    Raises:
        ConfigurationError: Names that the profile does not have, twice the same name, or no name at all.
    """
    registers = loaded.registers if quantities is None else _chosen(loaded, quantities)
    group = PollGroup(interval_s=interval_s, quantities=tuple(register.quantity for register in registers))
    requests = tuple(_request(part) for part in _parts(loaded.profile, registers))
    return (group,), ModbusMap(groups=(requests,))


def _chosen(loaded: LoadedProfile, names: Sequence[str]) -> tuple[Register, ...]:
    known = [register.name for register in loaded.registers]
    faults = [f"profile {loaded.name}: no quantity {n!r}; it has {', '.join(known)}" for n in names if n not in known]
    faults += [f"profile {loaded.name}: quantity {n!r} twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    if not names:
        faults.append(f"profile {loaded.name}: choose at least one quantity of {', '.join(known)}")
    if faults:
        raise ConfigurationError(faults)
    return tuple(register for register in loaded.registers if register.name in names)


def _parts(profile: Profile, registers: Iterable[Register]) -> list[list[Register]]:
    """Fewest runs of registers that one request each can read.

    Taking as much as fits, from the left, is optimal: no run that begins at or behind the same register can end later.
    """
    parts: list[list[Register]] = []
    for register in registers:
        part = parts[-1] if parts else []
        if part and register.end - part[0].first <= profile.max_registers and _together(profile, part[0], register):
            part.append(register)
        else:
            parts.append([register])
    return parts


def _together(profile: Profile, first: Register, last: Register) -> bool:
    return any(_holds(block, first) and _holds(block, last) for block in profile.block)


def _request(registers: list[Register]) -> Request:
    first = registers[0].first
    return Request(
        function=registers[0].function,
        first=first,
        count=registers[-1].end - first,
        fields=tuple(
            compiled.Field(
                offset=register.first - first,
                type=register.type,
                little=register.little,
                numerator=register.factor.numerator,
                denominator=register.factor.denominator,
                markers=register.markers,
            )
            for register in registers
        ),
    )
