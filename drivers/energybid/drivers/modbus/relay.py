"""Requests on behalf of somebody else: any PDU whose reply's shape is known, its answer handed on as it is."""

from __future__ import annotations

from struct import pack

from energybid.drivers.modbus.exchange import Asked, Outcome
from energybid.drivers.modbus.framing import rtu_frame
from energybid.drivers.modbus.map import Request
from energybid.drivers.modbus.proxy.rules import reply_shape


class RelayAsked(Asked):
    """A request whose PDU came from a master; its outcome is the whole PDU of the reply."""

    __slots__ = ()

    def __init__(self, unit: int, pdu: bytes) -> None:
        """Take a request that ``rules.wanted`` has found whole."""
        # Deliberately not Asked.__init__, which encodes a read of registers and compiles what decodes its reply.
        first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        self.unit = unit
        self.request = Request(function=pdu[0], first=first, count=count, fields=())
        self.function = pdu[0]
        self.pdu = pdu
        self.rtu = rtu_frame(unit, pdu)
        self.tcp_tail = pack(">HHB", 0, len(pdu) + 1, unit) + pdu
        self.head, self.size = reply_shape(pdu)
        self.wider = None

    def outcome(self, unit: int, pdu: bytes) -> Outcome:
        """The reply's PDU, matched strictly, or its exception code."""
        found = super().outcome(unit, pdu)
        return pdu if isinstance(found, bytes) else found
