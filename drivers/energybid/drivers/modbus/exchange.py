"""One poll's exchange with one meter: what is asked, and what became of each request. No I/O.

pymodbus' PDUs are the codec of requests (encoded once, when they are first needed) and of exceptions. The reply to a
register read is checked and sliced as bytes instead: pymodbus' decoding costs 11 µs for 76 registers and makes 76
integers that nobody needs.
"""

from __future__ import annotations

from enum import IntEnum
from math import inf
from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from pymodbus.pdu import ExceptionResponse
from pymodbus.pdu.register_message import ReadHoldingRegistersRequest, ReadInputRegistersRequest

from energybid.drivers.modbus.decode import decoder, scaled_decoder
from energybid.drivers.modbus.framing import EXCEPTION_FLAG, PDU_MAX, RTU_OVERHEAD, rtu_frame
from energybid.drivers.modbus.map import HOLDING, INPUT, Request

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

_REQUESTS = {HOLDING: ReadHoldingRegistersRequest, INPUT: ReadInputRegistersRequest}
WRITE_SINGLE, WRITE_SEVERAL = 6, 16
_EXCEPTION_SIZE = 2
READ_OVERHEAD = 2
"""Function code and byte count before the registers of a read reply's PDU (V1.1b3 §6.3)."""


class Failure(IntEnum):
    """Why a request has no registers; positive outcomes are the meter's own exception codes."""

    NO_REPLY = -1
    GARBLED = -2
    BUS_DOWN = -3


Outcome = bytes | int
"""The registers' bytes, a Failure, or an exception code (V1.1b3 §7)."""


class Asked:
    """A request to one unit, encoded, with what its reply must look like."""

    __slots__ = ("decode", "function", "head", "pdu", "request", "rtu", "scaled", "size", "tcp_tail", "unit", "wider")

    def __init__(self, unit: int, request: Request) -> None:
        """Encode a request.

        Args:
            unit: Address of the meter.
            request: From the compiled map.
        """
        pdu_type = _REQUESTS[request.function]
        body = pdu_type(address=request.first, count=request.count, dev_id=unit).encode()
        pdu = bytes((request.function,)) + body
        self.unit = unit
        self.request = request
        self.function = request.function
        self.pdu = pdu
        self.rtu = rtu_frame(unit, pdu)
        self.tcp_tail = pack(">HHB", 0, len(pdu) + 1, unit) + pdu
        """MBAP frame behind its transaction identifier."""
        self.head = bytes((request.function, 2 * request.count))
        """How the reply's PDU begins: function, byte count."""
        self.size = READ_OVERHEAD + 2 * request.count
        """Length of the reply's PDU."""
        self.decode = decoder(request)
        self.scaled = scaled_decoder(request)
        """Decodes in its place where numbers are multiplied by factors that the meter holds."""
        self.wider: Wider | None = None
        """The same with one register more, where there is use for it."""
        if self.size > PDU_MAX:
            raise ValueError(f"{request.count} registers do not fit a reply")

    def outcome(self, unit: int, pdu: bytes) -> Outcome:
        """What a reply that claims to answer this request is, matched strictly."""
        if unit == self.unit and len(pdu) == self.size and pdu.startswith(self.head):
            return pdu[READ_OVERHEAD:]
        if unit == self.unit and len(pdu) == _EXCEPTION_SIZE and pdu[0] == self.function | EXCEPTION_FLAG:
            exception = ExceptionResponse(self.function)
            exception.decode(pdu[1:])
            return exception.exception_code or Failure.GARBLED
        return Failure.GARBLED

    @property
    def rtu_reply_size(self) -> int:
        """Bytes of the whole reply on a serial line."""
        return self.size + RTU_OVERHEAD

    def __str__(self) -> str:
        """What is asked of whom, for messages."""
        last = self.request.first + self.request.count - 1
        return f"unit {self.unit}, function {self.function}, registers {self.request.first} to {last}"


class WriteAsked(Asked):
    """A write of holding registers to one unit: function 6 for one register, 16 for several (V1.1b3 §6.6, §6.12).

    The answer to function 6 is the request itself, so an adapter that echoes what it sends looks like a meter that
    agrees: only reading the registers tells what is in them.
    """

    __slots__ = ()

    def __init__(self, unit: int, first: int, data: bytes) -> None:
        """Encode a write.

        Args:
            unit: Address of the meter.
            first: Address of the first holding register.
            data: The registers' bytes as on the wire.
        """
        count = len(data) // 2
        super().__init__(unit, Request(function=HOLDING, first=first, count=count, fields=()))
        if count == 1:
            self.function, pdu = WRITE_SINGLE, pack(">BH", WRITE_SINGLE, first) + data
            self.head = pdu
        else:
            self.function = WRITE_SEVERAL
            self.head = pack(">BHH", WRITE_SEVERAL, first, count)
            pdu = self.head + bytes((len(data),)) + data
        self.size = len(self.head)
        self.pdu = pdu
        self.rtu = rtu_frame(unit, pdu)
        self.tcp_tail = pack(">HHB", 0, len(pdu) + 1, unit) + pdu


class Wider(NamedTuple):
    """A request that brings the same registers in a reply of another length, so that the two are told apart."""

    asked: Asked
    skip: int
    """Bytes before the wanted registers."""

    def cut(self, outcome: Outcome, asked: Asked) -> Outcome:
        """What the reply is for the request that this one stands for."""
        if isinstance(outcome, bytes):
            return outcome[self.skip : self.skip + 2 * asked.request.count]
        return outcome


class Exchange:
    """Requests of one poll on their way. A link sends them in order and settles each."""

    __slots__ = (
        "asked",
        "delay_s",
        "done",
        "gap_s",
        "hurried",
        "late_s",
        "left",
        "outcomes",
        "received_at",
        "received_ns",
        "sent",
        "sent_at",
        "silent",
        "timeout_s",
        "urgent",
    )

    def __init__(
        self, asked: Sequence[Asked], timeout_s: float, done: asyncio.Future[None], late_s: float, gap_s: float
    ) -> None:
        """Prepare an exchange.

        Args:
            asked: Its requests.
            timeout_s: How long each may take to be answered.
            done: Set when the last one is settled.
            late_s: How much longer the meter may take at most, beside the line's lateness.
            gap_s: Rest before each request, beyond the line's silence.
        """
        self.asked = asked
        self.timeout_s = timeout_s
        self.late_s = late_s
        self.gap_s = gap_s
        self.done = done
        self.sent = 0
        """How many requests were given to the bus; also the next one's index."""
        self.left = len(asked)
        self.outcomes: list[Outcome] = [Failure.NO_REPLY] * self.left
        self.sent_at = inf
        """Loop time of the first request; infinite while none was sent."""
        self.received_at = 0.0
        """Loop time of the last reply."""
        self.received_ns = 0
        """Wall clock at the last reply."""
        self.silent = True
        """Nothing was answered so far."""
        self.delay_s = 0.0
        """The longest that a reply took to begin."""
        self.urgent = False
        """It stands before those that are not."""
        self.hurried = False
        """A request that was lost had come right after other traffic."""

    def answer(self, index: int, outcome: Outcome, at: float, wall_ns: int) -> None:
        """Settle a request by a reply."""
        self.received_at = at
        self.received_ns = wall_ns
        self.silent = False
        self.settle(index, outcome)

    def settle(self, index: int, outcome: Outcome) -> None:
        """Settle a request."""
        self.outcomes[index] = outcome
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)

    def settle_unsent(self, outcome: Outcome) -> None:
        """Settle everything that was not sent yet."""
        while self.sent < len(self.asked):
            index, self.sent = self.sent, self.sent + 1
            self.settle(index, outcome)
