"""The shape of a profile's TOML file: one pydantic model for each table, each key checked alone.

What only shows between the parts of a file is in ``profile_checks``. Imports pydantic: only commands and tests import
this, never the running agent.
"""

import re
from decimal import Decimal
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from energybid.core.entries import VALUES_MAX
from energybid.core.quantities import UNITS, Obis
from energybid.core.settings import Duration, Settings
from energybid.drivers.modbus.map import ADDRESSES, REGISTERS_MAX

_DECIMAL = re.compile(r"-?\d{1,18}(\.\d{1,18})?")


def _decimal(text: str) -> str:
    if not _DECIMAL.fullmatch(text):
        raise ValueError('write a decimal number in quotes, such as "0.1" or "1000", with at most 18 digits')
    return text


def _positive(text: str) -> str:
    if Decimal(_decimal(text)) <= 0:
        raise ValueError("must be greater than 0")
    return text


def _not_zero(text: str) -> str:
    if Decimal(_decimal(text)) == 0:
        raise ValueError("must not be 0")
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


DecimalText = Annotated[str, AfterValidator(_decimal)]
Positive = Annotated[str, AfterValidator(_positive)]
Scale = Annotated[str, AfterValidator(_not_zero)]
Unit = Annotated[str, AfterValidator(_unit)]
Table = Literal["holding", "input"]
Type = Literal["int16", "uint16", "int32", "uint32", "float32", "int64", "uint64", "float64"]
Order = Literal["big", "little"]
Patterns = Annotated[list[Annotated[str, AfterValidator(_pattern)]], Field(max_length=8)]
Address = Annotated[int, Field(ge=0, lt=ADDRESSES)]
Text = Annotated[str, Field(min_length=1, max_length=255)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


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
    """What numbers have that do not say otherwise."""

    table: Table | None = None
    type: Type | None = None
    word_order: Order = "big"
    byte_order: Order = "big"


class Number(Settings):
    """Where a number lies and how it is written there."""

    register_: Address = Field(alias="register")
    """Address of the first register on the wire, 0-based."""
    type: Type | None = None
    word_order: Order | None = None
    """The first register is the most (big) or least (little) significant one."""
    byte_order: Order | None = None
    """Of the two bytes within each register; Modbus says big."""


class QuantitySettings(Number):
    """One quantity of a meter and the register it is read from."""

    name: Name
    obis: Annotated[str, AfterValidator(_obis)]
    table: Table | None = None
    scale: Scale = "1"
    """Units per raw count, exact; negative where the meter counts the other direction."""
    scale_by: Annotated[list[Name], Field(max_length=4)] = Field(default_factory=list)
    """Names of the factors that the value is multiplied by besides."""
    unit: Unit
    resolution: Annotated[str, AfterValidator(_power_of_ten)]
    """What the logged integer counts, in the unit; a power of ten."""
    not_available: Patterns | None = None
    cumulative: bool = False
    rollover: Positive | None = None
    """A cumulative register starts again at 0 when it would reach this, in the unit."""


class FactorSettings(Number):
    """``[[factor]]``: a number in the meter by which quantities are multiplied, read along with them."""

    name: Name
    table: Table | None = None
    scale: Positive = "1"
    kind: Literal["multiplier", "power-of-ten", "guard"] = "multiplier"
    """The factor is raw × scale, or 10 to the power of it, or 1 as long as the registers hold what they should."""
    equals: Annotated[list[int], Field(min_length=1, max_length=64)] | None = None
    """Of a guard: raw values that it may have."""


class WritableSettings(Number):
    """``[[writable]]``: a number in holding registers that may be written."""

    name: Name
    table: Literal["holding"] = "holding"
    scale: Scale = "1"
    unit: Unit
    minimum: DecimalText
    """Least that may be written, in the unit."""
    maximum: DecimalText
    safe: DecimalText | None = None
    """What the control path reverts to, in the unit."""
    values: Annotated[list[DecimalText], Field(min_length=1, max_length=64)] | None = None
    """The only values that it may have, in the unit; all between the bounds where it is not given."""
    guarded_by: Annotated[list[Name], Field(max_length=4)] = Field(default_factory=list)
    """Names of guards that are read right before a write; where one does not hold its value nothing is written."""


class FingerprintSettings(Settings):
    """``[[identification.fingerprint]]``: registers that are safe to read, and what they hold on this model."""

    table: Table
    register_: Address = Field(alias="register")
    type: Type | Literal["text"]
    count: Annotated[int, Field(ge=1, le=REGISTERS_MAX)] | None = None
    """Registers of a text."""
    word_order: Order | None = None
    byte_order: Order | None = None
    equals: Annotated[list[int], Field(min_length=1, max_length=64)] | None = None
    """Raw values that it may have."""
    between: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """Least and greatest raw value that it may have."""
    text: Text | None = None
    """What a text contains."""
    about: Text


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
    fingerprint: Annotated[list[FingerprintSettings], Field(max_length=16)] = Field(default_factory=list)


class Timing(Settings):
    """``[timing]``: what is known of meters of this model and would else be learned by each gateway anew."""

    turnaround_s: Annotated[Duration, Field(le=0.05)] = Field(alias="turnaround", default=0.0)
    """Rest that the meter needs before a request, beyond the silence of the standard."""
    reply_delay_s: Duration | None = Field(None, alias="reply_delay", ge=0, le=10)
    """How long the meter usually takes to begin its reply; the planner reckons with it."""
    unreadable: Annotated[list[Block], Field(max_length=64)] = Field(default_factory=list)
    """Registers that no request may touch, though they lie in a block; no quantity either."""


class Profile(Settings):
    """A meter model, as its TOML file says it."""

    manufacturer: Text
    model: Text
    also: list[Text] = Field(default_factory=list)
    """Further models with exactly this map."""
    source: Annotated[list[Source], Field(min_length=1)]
    max_registers: Annotated[int, Field(ge=1, le=REGISTERS_MAX)]
    """Most registers the meter answers in one request."""
    baudrates: Annotated[list[Annotated[int, Field(ge=300, le=1_000_000)]], Field(min_length=1)]
    parities: Annotated[list[Literal["N", "E", "O"]], Field(min_length=1)]
    timeout_s: Duration = Field(alias="timeout")
    """How long the meter may take to begin its reply."""
    timing: Timing = Timing()
    defaults: Defaults = Defaults()
    not_available: dict[Type, Patterns] = Field(default_factory=dict)
    """Values of each type that mean "not available"."""
    identification: Identification = Identification()
    block: Annotated[list[Block], Field(min_length=1)]
    factor: Annotated[list[FactorSettings], Field(max_length=64)] = Field(default_factory=list)
    quantity: Annotated[list[QuantitySettings], Field(min_length=1, max_length=VALUES_MAX)]
    writable: Annotated[list[WritableSettings], Field(max_length=64)] = Field(default_factory=list)
