"""TOML files checked by pydantic models, every fault reported at once: file, key, what is wrong, what is allowed.

Imported only where a file is checked (commands, profiles), never in the running agent: pydantic costs 5 MB there.
"""

import re
import reprlib
import tomllib
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from energybid.core.errors import ConfigurationError


class Settings(BaseModel):
    """Base of every model of a configuration file: no unknown keys, no coercion of types, never changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


S = TypeVar("S", bound=BaseModel)

_DURATION = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)\s*(ms|s|min|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86400}
_SIZE = re.compile(r"(\d{1,12})\s*(B|KiB|MiB|GiB)", re.ASCII)
_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_AMOUNT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(k|M|)(Wh|W)", re.ASCII)
_PREFIXES = {"": 0, "k": 3, "M": 6}
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


def _duration(value: Any) -> float:  # noqa: ANN401
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        raise ValueError('write a number and a unit (ms, s, min, h, d) in quotes, such as "5 s"')
    return float(match[1]) * _SECONDS[match[2]]


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "5 s" or "250 ms".

    Raises:
        ValueError: It is none.
    """
    return _duration(text)


def _size(value: Any) -> int:  # noqa: ANN401
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match:
        raise ValueError('write a number and a unit (B, KiB, MiB, GiB) in quotes, such as "2 GiB"')
    return int(match[1]) * _BYTES[match[2]]


def _amount(value: Any, unit: str) -> int:  # noqa: ANN401
    match = _AMOUNT.fullmatch(value.strip()) if isinstance(value, str) else None
    number = Decimal(match[1]).scaleb(_PREFIXES[match[2]]) if match and match[3] == unit else Decimal("0.1")
    if number != int(number):
        raise ValueError(f'write a number and a unit ({unit}, k{unit}, M{unit}) in quotes, such as "5 k{unit}"')
    return int(number)


def _time_of_day(value: Any) -> int:  # noqa: ANN401
    match = _TIME.fullmatch(value) if isinstance(value, str) else None
    if not match:
        raise ValueError('write hours and minutes in quotes, such as "07:30"')
    return 60 * int(match[1]) + int(match[2])


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds; written "250 ms", "5 s", "1 min", "2 h", "1 d"."""
Size = Annotated[int, BeforeValidator(_size)]
"""Bytes; written "512 KiB", "2 GiB"."""
Power = Annotated[int, BeforeValidator(partial(_amount, unit="W"))]
"""Watts, whole; written "500 W", "4.2 kW"."""
Energy = Annotated[int, BeforeValidator(partial(_amount, unit="Wh"))]
"""Watt-hours, whole; written "500 Wh", "13.5 kWh"."""
TimeOfDay = Annotated[int, BeforeValidator(_time_of_day)]
"""Minutes after midnight; written "07:30"."""


def read_toml(path: Path, model: type[S], advice: str = "") -> S:
    """Read and check a TOML file from the disk.

    Args:
        path: Where it is.
        model: What it must be.
        advice: What to do where it can not be read.

    Raises:
        ConfigurationError: Every fault in it, or that it can not be read.
    """
    return parse_toml(str(path), file_bytes(path, advice), model)


def file_bytes(path: Path, advice: str = "") -> bytes:
    """What a configuration file holds.

    Raises:
        ConfigurationError: It can not be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError([": ".join(filter(None, (str(path), error.strerror, advice)))]) from None


def parse_toml(source: str, data: bytes, model: type[S]) -> S:
    """Read and check a TOML file.

    Args:
        source: The file's name as the user knows it, for the messages.
        data: Its bytes.
        model: What it must be.

    Raises:
        ConfigurationError: Every fault in it.
    """
    try:
        content = tomllib.loads(data.decode())
    except UnicodeDecodeError as error:
        raise ConfigurationError([f"{source}: not UTF-8 at byte {error.start}"]) from None
    except (ValueError, RecursionError) as error:  # ValueError is also what an integer of 5,000 digits raises
        raise ConfigurationError([f"{source}: not TOML: {error}"]) from None
    return check(source, content, model)


def check(source: str, content: dict[str, Any], model: type[S]) -> S:
    """Check a table that was read from ``source``.

    Raises:
        ConfigurationError: Every fault in it.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(
            [_fault(source, e["loc"], e["msg"], e["type"], e.get("input")) for e in error.errors()]
        ) from None


def _fault(source: str, loc: tuple[int | str, ...], message: str, kind: str, given: object) -> str:
    key = ""
    for part in loc:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "extra_forbidden":
        message = "no such key"
    elif kind == "missing":
        message = "is missing"
    elif not isinstance(given, dict | list):
        message += f" (found {reprlib.repr(given)})"
    return f"{source}: {key or 'file'}: {message}"
