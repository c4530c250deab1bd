"""Profiles: one TOML file per meter model, checked here and compiled to what the running driver needs.

A profile is data: adding a meter touches no code. Here live the loading of a file and the compilation of its quantities
to requests; its shape is in ``profile_file``, its checks in ``profile_checks``. Imports pydantic, so only commands and
tests import this, never the running agent.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

from energybid.core.errors import ConfigurationError
from energybid.core.ports import PollGroup
from energybid.core.settings import parse_toml
from energybid.drivers.modbus import map as compiled
from energybid.drivers.modbus.map import TYPES, Factor, ModbusMap, Request, Together, Writable
from energybid.drivers.planner import Cost, Span, Terms, choices, plan, tcp_cost
from energybid.drivers.profile_checks import faults as faults_of
from energybid.drivers.profile_file import Profile, SerialNumber
from energybid.drivers.profile_registers import (
    FUNCTION_OF,
    Fingerprint,
    Register,
    fingerprints,
    readable,
    registers,
    resolved_factors,
    writables,
)

__all__ = [
    "FUNCTION_OF",
    "Fingerprint",
    "Group",
    "LoadedProfile",
    "Profile",
    "Register",
    "SerialNumber",
    "compile_profile",
    "list_profiles",
    "load_profile",
    "parse_profile",
    "plan_requests",
    "readable",
    "wanted_spans",
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
    if name_or_path.partition(":")[0] == "sunspec":
        raise ConfigurationError(
            ["a SunSpec device's profile is made of the device: energybid profile sunspec TARGET -o FILE.toml"]
        )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Quantities that are polled at an interval of their own."""

    interval_s: float
    quantities: Sequence[str]


def compile_profile(
    loaded: LoadedProfile,
    *,
    interval_s: float,
    quantities: Sequence[str] | None = None,
    groups: Sequence[Group] = (),
    cost: Cost | None = None,
) -> tuple[tuple[PollGroup, ...], ModbusMap]:
    """The poll groups of a meter and the cheapest requests that read them, alone and together.

    Args:
        loaded: The profile.
        interval_s: Seconds between two polls of the first group.
        quantities: Names of the quantities in it; None for all that no other group has. Their order does not matter: a
            reading has them by table and address.
        groups: Further groups.
        cost: Of requests on the meter's bus; None for a network.

    Raises:
        ConfigurationError: Names that the profile does not have, names that stand twice, groups without any, numbers
            that do not fit a request. The faults begin with ``quantities``, ``group[0].quantities`` or
            ``max_registers``.
    """
    parts = _divided(loaded, quantities, groups)
    cost = cost or tcp_cost(reply_delay_s=loaded.profile.timing.reply_delay_s)
    _check_sizes(parts, cost)
    intervals = [interval_s, *(group.interval_s for group in groups)]
    polled = tuple(
        PollGroup(
            interval_s=interval,
            quantities=tuple(register.quantity for register in part),
            counters=tuple(register.counter for register in part),
        )
        for interval, part in zip(intervals, parts, strict=True)
    )
    return polled, ModbusMap(
        groups=tuple(_requests(loaded, part, cost) for part in parts),
        together=tuple(_together(loaded, parts, chosen, cost) for chosen in choices(len(parts))),
        terms=Terms(readable=tuple(readable(loaded.profile)), cost=cost, registers_max=loaded.profile.max_registers),
        writables=loaded.writables,
        turnaround_s=loaded.profile.timing.turnaround_s,
    )


def _divided(
    loaded: LoadedProfile, quantities: Sequence[str] | None, groups: Sequence[Group]
) -> list[tuple[Register, ...]]:
    """The registers of each group, by table and address."""
    wanted = [("quantities", quantities), *((f"group[{i}].quantities", g.quantities) for i, g in enumerate(groups))]
    known = [register.name for register in loaded.registers]
    owner: dict[str, str] = {}
    faults: list[str] = []
    for key, names in wanted:
        for name in names or ():
            if name not in known:
                faults.append(f"{key}: no quantity {name!r}; {loaded.name} has {', '.join(known)}")
            elif name in owner:
                twice = "twice" if owner[name] == key else f"in {owner[name]} too"
                faults.append(f"{key}: {name!r} stands {twice}")
            owner.setdefault(name, key)
        if names is not None and not names:
            faults.append(f"{key}: choose at least one of {', '.join(known)}")
    if quantities is None and owner.keys() >= set(known):
        faults.append("group: nothing is left for the meter's own interval; write one group's interval there instead")
    if faults:
        raise ConfigurationError(faults)
    return [
        tuple(r for r in loaded.registers if (r.name in names if names is not None else r.name not in owner))
        for _, names in wanted
    ]


def _check_sizes(parts: Sequence[Sequence[Register]], cost: Cost) -> None:
    """What the meter itself takes was checked with the file."""
    sizes = {r.name: max([r.count, *(f.end - f.first for f in r.factors)]) for part in parts for r in part}
    large = [f"max_registers: {name} takes {size}" for name, size in sizes.items() if size > cost.registers_max]
    if large:
        raise ConfigurationError(large)


def plan_requests(loaded: LoadedProfile, chosen: Iterable[Register], cost: Cost) -> list[Span]:
    """The cheapest requests for quantities and the factors they need.

    Raises:
        ConfigurationError: A number is larger than a request may be.
    """
    chosen = list(chosen)
    _check_sizes([chosen], cost)
    return plan(
        wanted_spans(chosen),
        readable(loaded.profile),
        cost,
        registers_max=loaded.profile.max_registers,
    )


def wanted_spans(chosen: Iterable[Register]) -> list[Span]:
    """The registers of each quantity, and of each factor that they need."""
    return [_span(number) for number in _numbers(chosen)]


def _numbers(chosen: Iterable[Register]) -> list[Register | Factor]:
    """Quantities and their factors, by table and address."""
    registers = list(chosen)
    factors = dict.fromkeys(factor for register in registers for factor in register.factors)
    return sorted([*registers, *factors], key=_place)


def _span(number: Register | Factor) -> Span:
    return Span(number.function, number.first, number.end)


def _requests(loaded: LoadedProfile, chosen: Sequence[Register], cost: Cost) -> tuple[Request, ...]:
    numbers = _numbers(chosen)
    return tuple(
        Request(
            function=span.function,
            first=span.first,
            count=span.length,
            fields=tuple(_field(n, span.first) for n in numbers if isinstance(n, Register) and span.holds(_span(n))),
            factors=tuple(n for n in numbers if isinstance(n, Factor) and span.holds(_span(n))),
        )
        for span in plan_requests(loaded, chosen, cost)
    )


def _together(
    loaded: LoadedProfile, parts: Sequence[tuple[Register, ...]], chosen: tuple[int, ...], cost: Cost
) -> Together:
    registers = [register for group in chosen for register in parts[group]]
    place = {_span(register): at for at, register in enumerate(registers)}
    requests = _requests(loaded, registers, cost)
    return Together(groups=chosen, requests=requests, places=tuple(tuple(_places(r, place)) for r in requests))


def _places(request: Request, place: Mapping[Span, int]) -> Iterator[int]:
    for field in request.fields:
        first = request.first + field.offset
        yield place[Span(request.function, first, first + TYPES[field.type].registers)]


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
