"""RTU frames in a TCP stream, as serial gateways ("transparent" or "raw" servers) carry them.

The rules are those of a serial line, with one more way out: a connection on which nothing comes any more is opened
again. Nothing but a new connection helps against a gateway that lost its own state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energybid.drivers.modbus.exchange import Failure
from energybid.drivers.modbus.link import NEVER
from energybid.drivers.modbus.rtu import RtuLink

if TYPE_CHECKING:
    from energybid.core.ports import BusPlan, Platform
    from energybid.drivers.modbus.exchange import Asked, Exchange

SILENT_WAITS, SILENT_S = 3, 5.0
"""So many waits, and so many seconds of them, that ended without a single byte make a connection dead. A dead meter
alone does not: others answer meanwhile."""


class RtuTcpLink(RtuLink):
    """A TCP connection to a serial gateway."""

    def __init__(self, platform: Platform, plan: BusPlan) -> None:
        """Prepare a link."""
        super().__init__(platform, plan)
        self._forget_silence()

    def _reset(self) -> None:
        super()._reset()
        self._forget_silence()

    def _forget_silence(self) -> None:
        self._waits = 0
        self._silent_since = NEVER

    def data_received(self, data: bytes) -> None:
        """Look for the reply; any byte shows that the connection lives."""
        self._forget_silence()
        super().data_received(data)

    def _give_up(self, exchange: Exchange, index: int, asked: Asked, now: float) -> None:
        super()._give_up(exchange, index, asked, now)
        if self._finder.seen:
            return
        self._waits += 1
        self._silent_since = min(self._silent_since, now)
        if self._waits >= SILENT_WAITS and now - self._silent_since >= SILENT_S:
            self._drop(Failure.NO_REPLY, "nothing came any more")
