"""One SunSpec device as it was read: its chain of models, and the registers of those that are understood.

Here live the reading (through whatever reads registers) and plain questions to what was read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, NamedTuple

from energybid.drivers.modbus import objects
from energybid.drivers.modbus.map import REGISTERS_MAX
from energybid.drivers.sunspec.chain import Chain, Found, Walk
from energybid.drivers.sunspec.models import ABSENT, COMMON, COMMON_TEXTS, MODELS, ScaleFactor, size

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Read = Callable[[int, int], Awaitable[bytes | None]]
    """Holding registers from an address on, and how many → their bytes; None where the device refuses."""

LEAST = 4
"""Reads of so few registers that are refused are not halved any more."""
REFUSED_MAX = 200
"""After so many refused reads the rest is taken for refused: a header may say a length that the device has not."""
POWER_MAX = 10
"""A scale factor is -10 to 10 (Information Model Overview V1.8, p. 16)."""


class Value(NamedTuple):
    """What stands in a point."""

    raw: int
    absent: bool
    """Not implemented, or not accumulated."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What was read of a device."""

    chain: Chain
    registers: dict[int, int]
    """Address → register, of the models that are understood; those that are refused are missing."""
    registers_max: int = REGISTERS_MAX
    """Most registers that it answers in one request, as far as that was tried."""

    def value(self, found: Found, offset: int, kind: str) -> Value | None:
        """A point's raw value; None where the model is too short for it, or the register is refused.

        Args:
            found: The model.
            offset: Of the point, from the model's identifier.
            kind: SunSpec's type.
        """
        first = found.first + offset
        words = [self.registers.get(at) for at in range(first, first + size(kind))]
        if first + len(words) > found.end or None in words:
            return None
        data = struct.pack(f">{len(words)}H", *words)
        raw = int.from_bytes(data, "big")
        absent = isnan(*struct.unpack(">f", data)) if kind == "float32" else raw == ABSENT[kind]
        return Value(raw, absent)

    def power(self, found: Found, factor: ScaleFactor | None) -> int | None:
        """A scale factor, as a power of ten; None where there is none, or none that can be."""
        value = factor and self.value(found, factor.offset, "sunssf")
        if not value or value.absent:
            return None
        power = value.raw - (1 << 16) if value.raw & 0x8000 else value.raw
        return power if abs(power) <= POWER_MAX else None

    def text(self, name: str) -> str:
        """A text of the first common model, such as ``manufacturer``; empty where it is not there."""
        found = next((found for found in self.chain.models if found.number == COMMON), None)
        if found is None:
            return ""
        offset, count = COMMON_TEXTS[name]
        words = [self.registers.get(at, 0) for at in range(found.first + offset, found.first + offset + count)]
        return objects.text(struct.pack(f">{count}H", *words))


async def walk(read: Read) -> Chain | None:
    """The chain of a device; None where there is no SunSpec marker."""
    steps = Walk()
    while steps.next_request is not None:
        steps.feed(await read(*steps.next_request))
    return steps.chain


async def read_device(read: Read) -> Device | None:
    """Read the chain of a device, and all registers of the models in it that are understood, each once.

    Returns:
        None where there is no SunSpec marker.
    """
    chain = await walk(read)
    if chain is None:
        return None
    registers: dict[int, int] = {}
    longest, refused = 0, 0
    for found in chain.models:
        if found.number not in MODELS:
            continue
        parts = [(at, min(REGISTERS_MAX, found.end - at)) for at in range(found.first, found.end, REGISTERS_MAX)]
        parts.reverse()
        while parts and refused < REFUSED_MAX:
            first, count = parts.pop()
            data = await read(first, count)
            if data is not None:
                registers |= zip(range(first, first + count), struct.unpack(f">{count}H", data), strict=True)
                longest = max(longest, count)
                continue
            refused += 1
            half = count // 2
            parts += [(first + half, count - half), (first, half)] if count > LEAST else []
    return Device(chain=chain, registers=registers, registers_max=max(longest, LEAST) if refused else REGISTERS_MAX)
