"""Modbus over UDP: MBAP frames in datagrams, one each. No standard has it; gateways and PLCs do.

Datagrams are lost, come twice and overtake one another: matching by transaction, unit, function and length (``mbap``)
holds for them as it is. A datagram that is no MBAP frame is passed over; it spoils nothing behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energybid.drivers.modbus.framing import Garbled, MbapFramer
from energybid.drivers.modbus.mbap import TRANSACTIONS, MbapLink

if TYPE_CHECKING:
    import asyncio

    from energybid.core.ports import BusPlan, Platform

_HEADER = 6
"""Bytes of an MBAP header that its length field does not count."""


class UdpLink(MbapLink):
    """A UDP socket to a Modbus server or gateway."""

    def __init__(self, platform: Platform, plan: BusPlan) -> None:
        """Prepare a link; transactions begin anywhere: an earlier process's replies are not meant for this one."""
        super().__init__(platform, plan)
        self._next = platform.random.randrange(TRANSACTIONS)

    def _reset(self) -> None:
        # A fresh socket may get the old one's port, and its late replies: transactions go on.
        following = getattr(self, "_next", 0)
        super()._reset()
        self._next = following

    def _write(self, transport: asyncio.Transport, frames: list[bytes]) -> None:
        for frame in frames:
            transport.write(frame)

    def data_received(self, data: bytes) -> None:
        """Match one datagram; it must hold whole frames."""
        if whole(data):
            super().data_received(data)
        else:
            self.ignored += 1


def whole(datagram: bytes) -> bool:
    """Whether a datagram holds MBAP frames, and nothing else."""
    framer = MbapFramer()
    events = framer.feed(datagram)
    size = sum(_HEADER + 1 + len(event.pdu) for event in events if not isinstance(event, Garbled))
    return bool(events) and size == len(datagram)
