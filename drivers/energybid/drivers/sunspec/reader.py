"""Reads registers of one unit for whoever must have them all: a lost reply must not look like the end of a chain."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from energybid.core.errors import NoReplyError
from energybid.drivers.modbus.exchange import READ_OVERHEAD
from energybid.drivers.modbus.map import HOLDING

if TYPE_CHECKING:
    from energybid.drivers.probe import Prober

TRIES = 3
REFUSALS = frozenset({1, 2, 3, 4})
"""Exceptions by which a device says that it has no such registers; after others it is asked again."""


class Reader:
    """Holding registers of one unit."""

    def __init__(self, prober: Prober, unit: int, timeout_s: float) -> None:
        """Prepare.

        Args:
            prober: The bus.
            unit: Whom to ask.
            timeout_s: How long it may take to reply.
        """
        self._prober = prober
        self._unit = unit
        self._timeout_s = timeout_s

    async def read(self, first: int, count: int) -> bytes | None:
        """Registers' bytes; None where the unit refuses.

        Raises:
            NoReplyError: It does not answer.
            BusDownError: The bus is lost.
        """
        why = "nothing came"
        for _ in range(TRIES):
            pdu = struct.pack(">BHH", HOLDING, first, count)
            heard = await self._prober.ask(self._unit, pdu, self._timeout_s, reply=READ_OVERHEAD + 2 * count)
            if heard.exception in REFUSALS:
                return None
            if heard.pdu is not None and heard.exception is None:
                return heard.pdu[READ_OVERHEAD:]
            why = "nothing came" if heard.pdu is None else f"exception {heard.exception}"
        raise NoReplyError(f"unit {self._unit}, holding {first} to {first + count - 1}: {why}")
