"""Profiles: one TOML file per meter model, checked here and compiled to what the running driver needs.

A profile is data: adding a meter touches no code. Here live the loading of a file and the compilation of its quantities
to requests; its shape is in ``profile_file``, its checks in ``profile_checks``. Imports pydantic, so only commands and
tests import this, never the running agent.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from energybid.core.errors import ConfigurationError
from energybid.core.ports import PollGroup
from energybid.core.settings import parse_toml
from energybid.drivers.modbus import map as compiled
from energybid.drivers.modbus.map import Factor, ModbusMap, Request, Writable
from energybid.drivers.profile_checks import faults as faults_of
from energybid.drivers.profile_file import Profile, SerialNumber
from energybid.drivers.profile_registers import (
    FUNCTION_OF,
    Fingerprint,
    Register,
    fingerprints,
    registers,
    resolved_factors,
    writables,
)

__all__ = [
    "FUNCTION_OF",
    "Fingerprint",
    "LoadedProfile",
    "Profile",
    "Register",
    "SerialNumber",
    "compile_profile",
    "list_profiles",
    "load_profile",
    "parse_profile",
]

SUFFIX = ".toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProfile:
    """A checked profile."""

    name: str
    profile: Profile
    sha256: bytes
    """Of the file."""
    registers: tuple[Register, ...]
    """Its quantities by table and address."""
    factors: tuple[Factor, ...] = ()
    """Numbers in the meter that quantities are multiplied by."""
    writables: tuple[Writable, ...] = ()
    """What may be written."""
    fingerprints: tuple[Fingerprint, ...] = ()
    """How the model is known."""


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
    faults = [f"{source}: {fault}" for fault in faults_of(profile)]
    if faults:
        raise ConfigurationError(faults)
    return LoadedProfile(
        name=name,
        profile=profile,
        sha256=sha256(data).digest(),
        registers=tuple(sorted(registers(profile), key=_place)),
        factors=tuple(resolved_factors(profile)),
        writables=tuple(writables(profile)),
        fingerprints=tuple(fingerprints(profile)),
    )


def _place(number: Register | Factor) -> tuple[int, int]:
    return number.function, number.first


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
    chosen = loaded.registers if quantities is None else _chosen(loaded, quantities)
    group = PollGroup(interval_s=interval_s, quantities=tuple(register.quantity for register in chosen))
    needed = dict.fromkeys(factor for register in chosen for factor in register.factors)
    requests = tuple(map(_request, _parts(loaded.profile, sorted([*chosen, *needed], key=_place))))
    return (group,), ModbusMap(groups=(requests,), writables=loaded.writables)


def _chosen(loaded: LoadedProfile, names: Sequence[str]) -> tuple[Register, ...]:
    known = [register.name for register in loaded.registers]
    faults = [f"profile {loaded.name}: no quantity {n!r}; it has {', '.join(known)}" for n in names if n not in known]
    faults += [f"profile {loaded.name}: quantity {n!r} twice" for n in dict.fromkeys(names) if names.count(n) > 1]
    if not names:
        faults.append(f"profile {loaded.name}: choose at least one quantity of {', '.join(known)}")
    if faults:
        raise ConfigurationError(faults)
    return tuple(register for register in loaded.registers if register.name in names)


def _parts(profile: Profile, numbers: Iterable[Register | Factor]) -> list[list[Register | Factor]]:
    """Fewest runs of registers that one request each can read.

    Taking as much as fits, from the left, is optimal: no run that begins at or behind the same register can end later.
    """
    parts: list[list[Register | Factor]] = []
    for number in numbers:
        part = parts[-1] if parts else []
        if part and number.end - part[0].first <= profile.max_registers and _together(profile, part[0], number):
            part.append(number)
        else:
            parts.append([number])
    return parts


def _together(profile: Profile, first: Register | Factor, last: Register | Factor) -> bool:
    return first.function == last.function and any(
        FUNCTION_OF[block.table] == first.function
        and block.first <= first.first
        and last.end <= block.first + block.count
        for block in profile.block
    )


def _request(numbers: Sequence[Register | Factor]) -> Request:
    first = numbers[0].first
    return Request(
        function=numbers[0].function,
        first=first,
        count=numbers[-1].end - first,
        fields=tuple(_field(number, first) for number in numbers if isinstance(number, Register)),
        factors=tuple(number for number in numbers if isinstance(number, Factor)),
    )


def _field(register: Register, first: int) -> compiled.Field:
    return compiled.Field(
        offset=register.first - first,
        type=register.type,
        little=register.little,
        numerator=register.factor.numerator,
        denominator=register.factor.denominator,
        markers=register.markers,
        swapped=register.swapped,
        factors=register.factors,
    )
