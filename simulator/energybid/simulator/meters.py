"""A meter: a profile turned round. It puts what it measures into registers and refuses what the model refuses.

Here live the encoding of registers and the meter's side of reading them; what is measured comes from
``instrument.py``. Sans I/O: a request's PDU and a moment of the replay go in, a PDU comes out.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from math import ceil, floor, prod
from struct import Struct
from typing import Protocol

from energybid.drivers.modbus.decode import (
    FACTOR_DIGITS,
    decode_writable,
    encode_writable,
    in_order,
    pack_raw,
    swapped,
)
from energybid.drivers.modbus.exchange import WRITE_SEVERAL, WRITE_SINGLE
from energybid.drivers.modbus.map import FLOATS, HOLDING, TYPES, Factor, Writable
from energybid.drivers.profile import FUNCTION_OF, Fingerprint, LoadedProfile, Register, SerialNumber, load_profile
from energybid.drivers.sunspec.standard import is_standard, load_standard
from energybid.simulator.faults import EXCEPTION_FLAG
from energybid.simulator.household import State
from energybid.simulator.instrument import probe
from energybid.simulator.wiring import RIGHT, Wiring, seen

ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3
"""Modbus Application Protocol V1.1b3 §7."""
REGISTER_SIZE = 2

_READ = Struct(">BHH")

Raw = Callable[[State], int]
"""The bit pattern of a register at a state, as an unsigned integer."""


class Measured(Protocol):
    """What a meter measures."""

    def state(self, at_ms: int) -> State:
        """At a moment of the replay, ms; moments only grow."""


class Controlled(Measured, Protocol):
    """A device that does what is written to it."""

    @property
    def told(self) -> Collection[bytes]:
        """OBIS codes of what it says of itself."""

    def written(self, name: str, value: Fraction, at_ms: int) -> None:
        """A number of the profile was written, in its unit, at a moment of the replay."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One number where it lies."""

    first: int
    count: int
    words: Callable[[State], bytes]
    """Its registers as they are sent."""

    @property
    def end(self) -> int:
        """Address behind its last register."""
        return self.first + self.count


@dataclass(frozen=True, slots=True)
class Area:
    """Registers that may be read at once; where no cell lies they read 0."""

    function: int
    first: int
    end: int
    cells: tuple[Cell, ...]


def load_model(name: str) -> LoadedProfile:
    """A profile by name or path, or that of a SunSpec device by its models, such as ``sunspec:103+203``.

    Raises:
        ConfigurationError: There is no such model.
    """
    return load_standard(name) if is_standard(name) else load_profile(name)


def device_profile(name: str) -> str:
    """The file of a profile that only simulated devices have."""
    return str(files("energybid.simulator") / "data" / "profiles" / f"{name}.toml")


def device_profiles() -> list[tuple[str, bytes]]:
    """(File name, contents) of all of them."""
    folder = files("energybid.simulator") / "data" / "profiles"
    return sorted((entry.name, entry.read_bytes()) for entry in folder.iterdir())


Factors = dict[str, Fraction]
"""Raw values of the factors that a meter holds, by name."""


def factor_settings(loaded: LoadedProfile) -> Factors:
    """How a meter is set: ratios of 1, powers of ten that let its registers count what is logged, or finer."""
    return {factor.name: _setting(factor, loaded) for factor in loaded.factors}


def _setting(factor: Factor, loaded: LoadedProfile) -> Fraction:
    if factor.equals:
        return Fraction(factor.equals[0])
    if not factor.power_of_ten:
        return Fraction(ceil(1 / factor.scale))
    digits = FACTOR_DIGITS
    for register in loaded.registers:
        while (
            factor in register.factors and digits > -FACTOR_DIGITS and abs(register.factor) * 10 ** Fraction(digits) > 1
        ):
            digits -= 1
    return Fraction(floor(digits / factor.scale))


def product(register: Register, settings: Factors) -> Fraction:
    """What a quantity is multiplied by besides its scale."""
    return prod((_value(factor, settings[factor.name]) for factor in register.factors), start=Fraction(1))


def _value(factor: Factor, raw: Fraction) -> Fraction:
    if factor.equals:
        return Fraction(1)
    return Fraction(10) ** int(raw * factor.scale) if factor.power_of_ten else raw * factor.scale


def factor_bytes(factor: Factor, raw: Fraction) -> bytes:
    """A factor's registers as they are sent."""
    return pack_raw(factor.type, raw, factor.little, factor.swapped)


def raw_value(register: Register, value: Fraction, factor: Fraction) -> int | float:
    """What a meter counts for a value in the register's unit.

    Cumulative registers count only what is complete and roll over; other integers are rounded half-even.
    """
    if register.quantity.cumulative:
        step = Fraction(10) ** register.quantity.exponent
        value = floor(value / step) * step
        if register.rollover is not None:
            value %= register.rollover
    counted = value / (register.scale * factor)
    if register.type in FLOATS:
        return float(counted)
    return floor(counted) if register.quantity.cumulative else round(counted)


def encode(register: Register, value: Fraction, factor: Fraction = Fraction(1)) -> bytes:
    """A value in the register's unit → its registers as they are sent.

    What an integer register can not hold is sent as the model's mark for "not available", or as the nearest it can.
    """
    kind = TYPES[register.type]
    raw = raw_value(register, value, factor)
    if isinstance(raw, int):
        raw = _fitted(register, raw)
    return in_order(Struct(f">{kind.code}").pack(raw), little=register.little, swap=register.swapped)


def _fitted(register: Register, raw: int) -> int:
    bits = 16 * register.count
    signed = register.type.startswith("int")
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    if low <= raw <= high:
        return raw
    if register.markers:
        mark = register.markers[0]
        return mark - (1 << bits) if mark > high else mark
    return min(max(raw, low), high)


class Meter:
    """A meter of a profile's model at a site."""

    def __init__(
        self,
        loaded: LoadedProfile,
        site: Measured,
        *,
        serial_number: int = 10_000_001,
        wiring: Wiring = RIGHT,
        device: Controlled | None = None,
    ) -> None:
        """Wire it up.

        Args:
            loaded: The model.
            site: What it measures.
            serial_number: What it says of itself where the profile knows the place; at most 9 digits.
            wiring: What is wrong between the site and the meter.
            device: What follows the numbers that are written; it holds safe numbers until then.

        Raises:
            ValueError: The profile has a quantity that the simulated site has not.
        """
        profile = loaded.profile
        self._site = site
        self._wiring = wiring
        self._limit = profile.max_registers
        settings = factor_settings(loaded)
        told = device.told if device else ()
        cells = [
            *((register.function, _cell(register, product(register, settings), told)) for register in loaded.registers),
            *(
                (factor.function, _fixed(factor.first, factor_bytes(factor, settings[factor.name])))
                for factor in loaded.factors
            ),
        ]
        polled = len(cells)
        if identity := profile.identification.serial_number:
            cells.append((FUNCTION_OF[identity.table], _identity(identity, serial_number)))
        cells += [(print_.function, _fingerprint(print_)) for print_ in loaded.fingerprints]
        self._writables = {writable.first: writable for writable in loaded.writables}
        self._device = device
        self._held = {w.name: encode_writable(w, _first_number(w, device)) for w in loaded.writables}
        """What numbers that may be written hold, as they are sent."""
        cells += [(HOLDING, self._writable(writable)) for writable in loaded.writables]
        areas = [
            Area(
                function := FUNCTION_OF[block.table],
                block.first,
                end := block.first + block.count,
                tuple(c for f, c in reversed(cells) if f == function and block.first <= c.first and c.end <= end),
            )
            for block in profile.block
        ]
        areas += [
            Area(f, c.first, c.end, (c,))
            for f, c in cells[polled:]
            if not any(a.function == f and a.first <= c.first and c.end <= a.end for a in areas)
        ]
        self._areas = areas
        self._functions = {area.function for area in areas}
        if self._writables:
            self._functions |= {WRITE_SINGLE, WRITE_SEVERAL}

    def _writable(self, writable: Writable) -> Cell:
        return Cell(writable.first, writable.count, lambda _state: self._held[writable.name])

    def respond(self, pdu: bytes, at_ms: int) -> bytes:
        """Answer a request.

        Args:
            pdu: Function code and data.
            at_ms: Moment of the replay, ms.

        Returns:
            The PDU of the answer, or of exception 1 (function), 2 (address) or 3 (length, number of registers, or a
            value that may not be written).
        """
        function = pdu[0]
        if function not in self._functions:
            return _refusal(function, ILLEGAL_FUNCTION)
        if function in {WRITE_SINGLE, WRITE_SEVERAL}:
            return self._write(pdu, at_ms)
        if len(pdu) != _READ.size:
            return _refusal(function, ILLEGAL_VALUE)
        _, first, count = _READ.unpack(pdu)
        if not 1 <= count <= self._limit:
            return _refusal(function, ILLEGAL_VALUE)
        area = next((a for a in self._areas if a.function == function and a.first <= first < a.end), None)
        if area is None or first + count > area.end:
            return _refusal(function, ILLEGAL_ADDRESS)
        return bytes((function, REGISTER_SIZE * count)) + self._read(area, first, first + count, at_ms)

    def _write(self, pdu: bytes, at_ms: int) -> bytes:
        """Keep what is written, if it is one whole number within its bounds (V1.1b3 §6.6, §6.12)."""
        function, head = pdu[0], pdu[: _READ.size]
        data = pdu[3:] if function == WRITE_SINGLE else pdu[_READ.size + 1 :]
        if len(head) != _READ.size or not data:
            return _refusal(function, ILLEGAL_VALUE)
        counts = (len(data), len(data)) if function == WRITE_SINGLE else (2 * _READ.unpack(head)[2], pdu[_READ.size])
        if set(counts) != {len(data)}:
            return _refusal(function, ILLEGAL_VALUE)
        writable = self._writables.get(int.from_bytes(pdu[1:3], "big"))
        if writable is None or REGISTER_SIZE * writable.count != len(data):
            return _refusal(function, ILLEGAL_ADDRESS)
        value = decode_writable(writable, data)
        if value is None or not writable.minimum <= value <= writable.maximum:
            return _refusal(function, ILLEGAL_VALUE)
        if writable.values and value not in writable.values:
            return _refusal(function, ILLEGAL_VALUE)
        self._held[writable.name] = data
        if self._device is not None:
            self._device.written(writable.name, value, at_ms)
        return head

    def _read(self, area: Area, first: int, end: int, at_ms: int) -> bytes:
        state = self._site.state(at_ms)
        if self._wiring != RIGHT:
            state = seen(state, self._wiring)
        image = bytearray(REGISTER_SIZE * (area.end - area.first))
        for cell in area.cells:
            if cell.first < end and cell.end > first:
                at = REGISTER_SIZE * (cell.first - area.first)
                image[at : at + REGISTER_SIZE * cell.count] = cell.words(state)
        return bytes(image[REGISTER_SIZE * (first - area.first) : REGISTER_SIZE * (end - area.first)])


def _refusal(function: int, code: int) -> bytes:
    return bytes((function | EXCEPTION_FLAG, code))


def _first_number(writable: Writable, device: Controlled | None) -> Fraction:
    """From the factory the most that it may be; a device is safe."""
    return writable.maximum if device is None or writable.safe is None else writable.safe


def _cell(register: Register, factor: Fraction, told: Collection[bytes]) -> Cell:
    measure = probe(register.quantity.obis, told)
    return Cell(register.first, register.count, lambda state: encode(register, measure(state), factor))


def _fixed(first: int, words: bytes) -> Cell:
    return Cell(first, len(words) // REGISTER_SIZE, lambda _state: words)


def _identity(place: SerialNumber, number: int) -> Cell:
    size = REGISTER_SIZE * place.count
    text = str(number).encode("ascii").ljust(size, b"\x00") if place.type == "text" else number.to_bytes(size, "big")
    return _fixed(place.register_, text)


def _fingerprint(known: Fingerprint) -> Cell:
    """What the model is known by; where a quantity stands in the same registers, that is what is sent."""
    if known.text is not None:
        text = known.text.encode("ascii").ljust(REGISTER_SIZE * known.count, b"\x00")
        return _fixed(known.first, swapped(text) if known.swapped else text)
    raw = known.equals[0] if known.equals else sum(known.between or ()) // 2
    return _fixed(known.first, pack_raw(known.type, Fraction(raw), known.little, known.swapped))
