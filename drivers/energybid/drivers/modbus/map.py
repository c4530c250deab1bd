"""The compiled register map: what a running driver needs of a profile, as plain frozen values.

Made by ``energybid.drivers.profile`` where a configuration is checked, pickled into the plan, used by the driver. No
pydantic here: the running agent never imports it.
"""

from dataclasses import dataclass
from typing import NamedTuple

HOLDING, INPUT = 3, 4
"""Function codes that read registers (Modbus Application Protocol V1.1b3 §6.3, §6.4)."""

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
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One number in a reply. Its mantissa is raw × numerator / denominator, rounded half-even."""

    offset: int
    """Registers from the beginning of the reply."""
    type: str
    """Key of TYPES."""
    little: bool
    """The first register is the least significant one; bytes within a register are always big-endian."""
    numerator: int
    denominator: int
    """Scale over resolution, in lowest terms, > 0."""
    markers: tuple[int, ...] = ()
    """Bit patterns, as unsigned integers of the type's size, that mean "not available"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One read of consecutive registers, and where the wanted numbers lie in it."""

    function: int
    """HOLDING or INPUT."""
    first: int
    """Address on the wire, 0-based."""
    count: int
    fields: tuple[Field, ...]
    """In the order of their registers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModbusMap:
    """What ``MeterPlan.map`` holds for a Modbus meter: the requests of each poll group.

    The fields of a group's requests, one after another, are the quantities of its PollGroup in their order.
    """

    groups: tuple[tuple[Request, ...], ...]
