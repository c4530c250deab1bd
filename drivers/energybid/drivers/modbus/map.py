"""The compiled register map: what a running driver needs of a profile, as plain frozen values.

Made by ``energybid.drivers.profile`` where a configuration is checked, pickled into the plan, used by the driver. No
pydantic here: the running agent never imports it.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from energybid.drivers.planner import Terms

HOLDING, INPUT = 3, 4
"""Function codes that read registers (Modbus Application Protocol V1.1b3 §6.3, §6.4)."""
TABLES = {HOLDING: "holding", INPUT: "input"}
"""What they read, as profiles and commands call it."""
ADDRESSES = 65_536
"""Registers of a table (§4.3)."""

REGISTERS_MAX = 125
"""Most registers in one read (§6.3)."""


class RegisterType(NamedTuple):
    """How a number lies in registers."""

    code: str
    """Format character of the struct module."""
    registers: int


TYPES = {
    "int16": RegisterType("h", 1),
    "uint16": RegisterType("H", 1),
    "int32": RegisterType("i", 2),
    "uint32": RegisterType("I", 2),
    "float32": RegisterType("f", 2),
    "int64": RegisterType("q", 4),
    "uint64": RegisterType("Q", 4),
    "float64": RegisterType("d", 4),
}
FLOATS = frozenset({"float32", "float64"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A number in the meter by which quantities are multiplied: a transformer ratio, a power of ten."""

    name: str
    function: int
    """HOLDING or INPUT."""
    first: int
    """Address on the wire, 0-based."""
    type: str
    """Key of TYPES."""
    little: bool
    swapped: bool
    scale: Fraction
    """The factor is raw × scale, or 10 to the power of that."""
    power_of_ten: bool
    markers: tuple[int, ...] = ()
    equals: tuple[int, ...] = ()
    """It is a guard: 1 where the registers hold one of these, else no factor, and the quantities have no number."""

    @property
    def end(self) -> int:
        """Address behind its last register."""
        return self.first + TYPES[self.type].registers


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One number in a reply. Its mantissa is raw × numerator / denominator × factors, rounded half-even."""

    offset: int
    """Registers from the beginning of the reply."""
    type: str
    """Key of TYPES."""
    little: bool
    """The first register is the least significant one."""
    numerator: int
    denominator: int
    """Scale over resolution, in lowest terms; the numerator is not 0, the denominator > 0."""
    markers: tuple[int, ...] = ()
    """Bit patterns, as unsigned integers of the type's size, that mean "not available"."""
    swapped: bool = False
    """The bytes within each register are little-endian too; Modbus says big-endian."""
    factors: tuple[Factor, ...] = ()
    """What the number is multiplied by besides; each is among the ``factors`` of one of the group's requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One read of consecutive registers, and where the wanted numbers lie in it."""

    function: int
    """HOLDING or INPUT."""
    first: int
    """Address on the wire, 0-based."""
    count: int
    fields: tuple[Field, ...]
    """In the order of their registers; empty where only factors are read."""
    factors: tuple[Factor, ...] = ()
    """What numbers of the group's requests are multiplied by, as far as it lies here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Writable:
    """A number that may be written, in one write of its registers (function 16, or 6 for a single one)."""

    name: str
    first: int
    """Address of the first holding register on the wire, 0-based."""
    count: int
    type: str
    """Key of TYPES."""
    little: bool
    swapped: bool
    scale: Fraction
    """Units per raw count."""
    unit: str
    minimum: Fraction
    """In the unit, as is everything below."""
    maximum: Fraction
    safe: Fraction | None
    """What the control path reverts to."""
    values: tuple[Fraction, ...] = ()
    """The only ones it may have; empty where all between the bounds may be."""
    guards: tuple[Factor, ...] = ()
    """What must hold its value right before a write, or nothing is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """The requests that read several poll groups which fall due at once."""

    groups: tuple[int, ...]
    """In order."""
    requests: tuple[Request, ...]
    places: tuple[tuple[int, ...], ...]
    """Of each request's fields: among the groups' quantities, one group after another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusMap:
    """What ``MeterPlan.map`` holds for a Modbus meter: the requests of each poll group.

    The fields of a group's requests, one after another, are the quantities of its PollGroup in their order.
    """

    groups: tuple[tuple[Request, ...], ...]
    writables: tuple[Writable, ...] = ()
    turnaround_s: float = 0.0
    """Rest that the meter needs before a request, beyond the silence of the standard."""
    together: tuple[Together, ...] = ()
    """Every two or more of the groups."""
    terms: "Terms | None" = None
    """What the requests were planned by."""
