"""The chain of models in a SunSpec device: where it begins, which models it has and where. Sans I/O.

A device is not trusted: headers may be nonsense, the chain may run out of the address space, or never end. Addresses
only grow, so there are no loops, and the number of models is bounded.
"""

import struct
from typing import NamedTuple

from energybid.drivers.modbus.map import ADDRESSES
from energybid.drivers.sunspec.models import END, HEADER

BASES = 40_000, 50_000, 0
"""Where the marker may stand (Information Model Overview V1.8, p. 17: 40001, 50001, 00001 counted from 1)."""
MARKER = b"SunS"
MARKER_REGISTERS = 2
MODELS_MAX = 64


class Found(NamedTuple):
    """A model where it lies."""

    number: int
    first: int
    """Address of its identifier, 0-based."""
    length: int
    """Registers behind its header, as the device says."""

    @property
    def end(self) -> int:
        """Address behind its last register."""
        return self.first + HEADER + self.length


class Chain(NamedTuple):
    """What a walk has found."""

    base: int
    """Address of the marker."""
    models: tuple[Found, ...]
    fault: str
    """Why the chain ends before its end model; empty where it does not."""


class Walk:
    """Walks a chain: ask for ``next_request``, feed the answer, until it is None."""

    def __init__(self) -> None:
        """Begin."""
        self._bases = list(BASES)
        self._base: int | None = None
        self._models: list[Found] = []
        self._fault = ""
        self.next_request: tuple[int, int] | None = (self._bases.pop(0), MARKER_REGISTERS)
        """First register and number of registers to read; holding registers. None at the end."""

    @property
    def chain(self) -> Chain | None:
        """What was found; None where no marker is."""
        return None if self._base is None else Chain(self._base, tuple(self._models), self._fault)

    def feed(self, data: bytes | None) -> None:
        """Go on.

        Args:
            data: The registers that were asked for; None where they can not be read.
        """
        assert self.next_request is not None  # noqa: S101  there was nothing to ask for
        at = self.next_request[0]
        if self._base is None:
            self._look(at, data)
        elif data is None:
            self._end(f"the header at {at} can not be read")
        else:
            self._step(at, *struct.unpack(">HH", data))

    def _look(self, at: int, data: bytes | None) -> None:
        if data == MARKER:
            self._base = at
            self.next_request = at + MARKER_REGISTERS, HEADER
        else:
            self.next_request = (self._bases.pop(0), MARKER_REGISTERS) if self._bases else None

    def _step(self, at: int, number: int, length: int) -> None:
        found = Found(number, at, length)
        if number == END:
            self._end("")
        elif not number:
            self._end(f"there is no model 0 (at {at})")
        elif found.end > ADDRESSES:
            self._end(f"model {number} at {at} has {length} registers: more than there are")
        else:
            self._models.append(found)
            if len(self._models) == MODELS_MAX:
                self._end(f"there are more than {MODELS_MAX} models")
            elif found.end + HEADER > ADDRESSES:
                self._end("it ends with the address space")
            else:
                self.next_request = found.end, HEADER

    def _end(self, fault: str) -> None:
        self.next_request = None
        self._fault = fault
