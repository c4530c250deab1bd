"""Meters of the world: a profile turned round, quick to ask, and with a memory of everything they ever answered.

The registers are the profile's, encoded as on the wire; what they hold is simple on purpose: counters that grow with
time and numbers that never come twice in a row, so that an old answer can not pass for a new one. (The household of
``simulate bus`` is physics; here only the bytes matter.) Every answer is remembered with its mantissas: the log must
hold exactly these. Also here: what becomes of a meter, from a reset of its counters to a swap.
"""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from random import Random
from struct import Struct
from typing import NamedTuple

from energybid.drivers.modbus.decode import in_order
from energybid.drivers.modbus.map import FLOATS, TYPES
from energybid.drivers.profile import FUNCTION_OF, LoadedProfile, Register
from energybid.simulator.faults import Fault, FaultSource
from energybid.simulator.meters import (
    ILLEGAL_ADDRESS,
    ILLEGAL_FUNCTION,
    ILLEGAL_VALUE,
    factor_bytes,
    factor_settings,
    product,
)

_READ = Struct(">BHH")
EXCEPTION_FLAG = 0x80
MEMORY = 4096
"""Answers that are remembered at least: hours of them, for a commit may wait for a disk."""
FLOAT_MAX = 1 << 23
"""Mantissas below it survive the way through a float32, whatever the scale: 24 significant bits, half a unit off."""
COUNTER_MAX = 8_000_000
"""Counters roll over here at the latest: seven digits, as on many displays."""
NOISE_MAX = 30_000
"""Other numbers are below: they fit 16 bits."""
NOISE_FACTOR, NOISE_STEP, NOISE_MASK = 6_364_136_223_846_793_005, 1_442_695_040_888_963_407, 2**64 - 1
"""Of the generator that makes them."""


class Answer(NamedTuple):
    """What one request was answered with."""

    function: int
    first: int
    length: int
    """Registers."""
    places: tuple[int, ...]
    """Addresses of the quantities in it."""
    mantissas: tuple[int, ...]
    """As the log must hold them."""


@dataclass(frozen=True, slots=True)
class _Read:
    """How one request is answered."""

    function: int
    first: int
    length: int
    pack: Callable[..., bytes]
    little: bool
    registers: tuple[tuple[int, bool], ...]
    """(number in the profile, cumulative)."""
    mantissa_of: tuple[Callable[[int], int], ...]
    """Raw count → mantissa, for integer registers; mantissa → mantissa for floats. Empty: all are what they were."""
    raw_of: tuple[Callable[[int], int | float], ...]
    """Count → what is packed. Empty: all are what they were."""
    places: tuple[int, ...]


class Memory:
    """Remembers what a meter answered."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.answers = 0
        self._times: list[float] = []
        self._memory: list[Answer] = []

    def remember(self, now_s: float, answer: Answer) -> None:
        """It has answered."""
        self.answers += 1
        self._times.append(now_s)
        self._memory.append(answer)
        if len(self._memory) > 2 * MEMORY:
            del self._memory[:MEMORY], self._times[:MEMORY]

    def answered(self, from_s: float, to_s: float) -> list[Answer]:
        """Every answer that was given within a time."""
        return self._memory[bisect_left(self._times, from_s) : bisect_left(self._times, to_s)]


class WorldMeter(Memory):
    """One meter on the wall. Implements ``Device``."""

    def __init__(self, loaded: LoadedProfile, chance: Random, now_s: Callable[[], float]) -> None:
        """Hang it up.

        Args:
            loaded: Its model.
            chance: Where its counters begin, and everything else about it that is not said.
            now_s: Virtual time.
        """
        super().__init__()
        self._loaded = loaded
        self._chance = chance
        self._now_s = now_s
        self._noise = int(chance.random() * 2**63)
        self._reads: dict[bytes, _Read | bytes] = {}
        self.modulus = COUNTER_MAX
        self._base: list[int] = []
        self._per_s: list[float] = []
        self._since_s = 0.0
        self.swap()

    # ------------------------------------------------------------ what becomes of it

    def swap(self) -> None:
        """Another meter of the same model hangs here: other counters."""
        self._begin([int(self._chance.random() * COUNTER_MAX / 2) for _ in self._loaded.registers])

    def reset(self) -> None:
        """It was without power and forgot its counters."""
        self._begin([0 for _ in self._loaded.registers])

    def near_rollover(self, counts: int) -> None:
        """Its counters will roll over soon: so many counts from now."""
        self._begin([max(0, self.modulus - counts) for _ in self._loaded.registers])

    def _begin(self, base: list[int]) -> None:
        self._base = base
        self._per_s = [0.01 + self._chance.random() / 5 for _ in base]
        self._since_s = self._now_s()

    # ------------------------------------------------------------ requests

    def respond(self, pdu: bytes, _at_ms: int) -> bytes:
        """Answer a request as the model does: its registers, or exception 1, 2 or 3."""
        read = self._reads.get(pdu)
        if read is None:
            read = self._reads[pdu] = self._prepare(pdu)
        if isinstance(read, bytes):
            return read
        now_s = self._now_s()
        counts = self._counts(read.registers, now_s - self._since_s)
        mantissas = tuple(
            [of(n) for of, n in zip(read.mantissa_of, counts, strict=True)] if read.mantissa_of else counts
        )
        raws = [of(n) for of, n in zip(read.raw_of, counts, strict=True)] if read.raw_of else counts
        data = read.pack(*raws)
        if read.little:  # the whole run was packed little-endian: swap the bytes of each register
            swapped = bytearray(data)
            swapped[::2], swapped[1::2] = data[1::2], data[::2]
            data = bytes(swapped)
        self.remember(now_s, Answer(read.function, read.first, read.length, read.places, mantissas))
        return pdu[:1] + bytes((len(data),)) + data

    def _counts(self, registers: tuple[tuple[int, bool], ...], elapsed_s: float) -> list[int]:
        counts = []
        for number, cumulative in registers:
            if cumulative:
                counts.append((self._base[number] + int(elapsed_s * self._per_s[number])) % self.modulus)
            else:
                self._noise = noise = (self._noise * NOISE_FACTOR + NOISE_STEP) & NOISE_MASK
                counts.append((noise >> 33) % NOISE_MAX)
        return counts

    def _prepare(self, pdu: bytes) -> _Read | bytes:
        profile = self._loaded.profile
        if not any(FUNCTION_OF[block.table] == pdu[0] for block in profile.block):
            return bytes((pdu[0] | EXCEPTION_FLAG, ILLEGAL_FUNCTION))
        if len(pdu) != _READ.size:
            return bytes((pdu[0] | EXCEPTION_FLAG, ILLEGAL_VALUE))
        function, first, count = _READ.unpack(pdu)
        if not 1 <= count <= profile.max_registers:
            return bytes((function | EXCEPTION_FLAG, ILLEGAL_VALUE))
        readable = any(
            FUNCTION_OF[b.table] == function and b.first <= first and first + count <= b.first + b.count
            for b in profile.block
        )
        if not readable:
            return bytes((function | EXCEPTION_FLAG, ILLEGAL_ADDRESS))
        found = tuple(
            (number, register)
            for number, register in enumerate(self._loaded.registers)
            if register.function == function and first <= register.first and register.end <= first + count
        )
        return _compile(self._loaded, found, function, first, count)


def _compile(
    loaded: LoadedProfile, found: tuple[tuple[int, Register], ...], function: int, first: int, count: int
) -> _Read:
    settings = factor_settings(loaded)
    factors = [r.factor * product(r, settings) for _, r in found]
    pack, little = _packer(loaded, found, first, count)
    scaled = [(register, factor) for (_, register), factor in zip(found, factors, strict=True)]
    same = all(register.type in FLOATS or factor == 1 for register, factor in scaled)
    whole = all(register.type not in FLOATS for register, _ in scaled)
    return _Read(
        function,
        first,
        count,
        pack,
        little,
        tuple((number, register.quantity.cumulative) for number, register in found),
        () if same else tuple(_mantissa_of(register, factor) for register, factor in scaled),
        () if whole else tuple(_raw_of(register, factor) for register, factor in scaled),
        tuple(register.first for _, register in found),
    )


def _packer(
    loaded: LoadedProfile, found: tuple[tuple[int, Register], ...], first: int, count: int
) -> tuple[Callable[..., bytes], bool]:
    """What packs raw counts, and whether the bytes of each register must be swapped then."""
    if loaded.factors or any(r.swapped for _, r in found) or len({r.little for _, r in found if r.count > 1}) > 1:
        return _one_by_one(loaded, found, first, count), False
    little = any(register.little for _, register in found if register.count > 1)
    layout, at = "", first
    for _, register in found:
        layout += "x" * 2 * (register.first - at) + TYPES[register.type].code
        at = register.end
    layout += "x" * 2 * (first + count - at)
    return Struct(("<" if little else ">") + layout).pack, little


def _one_by_one(
    loaded: LoadedProfile, found: tuple[tuple[int, Register], ...], first: int, count: int
) -> Callable[..., bytes]:
    settings = factor_settings(loaded)
    fixed = bytearray(2 * count)
    for factor in loaded.factors:
        if first <= factor.first and factor.end <= first + count:
            fixed[2 * (factor.first - first) : 2 * (factor.end - first)] = factor_bytes(factor, settings[factor.name])

    def pack(*raws: float) -> bytes:
        image = bytearray(fixed)
        for (_, register), raw in zip(found, raws, strict=True):
            data = Struct(">" + TYPES[register.type].code).pack(raw)
            at = 2 * (register.first - first)
            image[at : at + len(data)] = in_order(data, little=register.little, swap=register.swapped)
        return bytes(image)

    return pack


def _mantissa_of(register: Register, factor: Fraction) -> Callable[[int], int]:
    if register.type in FLOATS or factor == 1:
        return lambda count: count
    if factor.denominator == 1:
        return lambda count: count * factor.numerator
    return lambda count: round(count * factor)


def _raw_of(register: Register, factor: Fraction) -> Callable[[int], int | float]:
    if register.type not in FLOATS:
        return lambda count: count
    if factor.denominator == 1:
        return lambda count: count / factor.numerator
    return lambda count: float(Fraction(count) / factor)


class MeterFaults(FaultSource):
    """A station's faults: a meter that is dead says nothing; else chance decides."""

    dead_until_s = 0.0

    def __init__(self, now_s: Callable[[], float]) -> None:
        """Alive, and without faults of its own."""
        super().__init__("")
        self._now_s = now_s

    def die(self, seconds: float) -> None:
        """Say nothing for a time."""
        self.dead_until_s = max(self.dead_until_s, ceil(self._now_s() + seconds))

    def draw(self) -> Fault | None:
        """The fault of the next exchange."""
        return Fault.NO_REPLY if self._now_s() < self.dead_until_s else super().draw()
