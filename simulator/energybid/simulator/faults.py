"""What goes wrong between a meter's answer and the wire, drawn from a seed or ordered one at a time.

Here live the kinds of faults, the draw and what each does to a reply. No meter, no socket, no clock: a reply goes in,
what is really sent comes out.
"""

import random
from collections import deque
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import NamedTuple

EXCEPTION_FLAG = 0x80
DEVICE_FAILURE = 4
"""SERVER DEVICE FAILURE (Modbus Application Protocol V1.1b3 §7)."""
GARBAGE_MAX = 8
HELD_BACK_MAX_S = 0.3
UNIT_MAX = 247


class Fault(StrEnum):
    """One way for an exchange to fail; the values are the keys of a ``faults`` table in bus.toml."""

    NO_REPLY = "no_reply"
    EXCEPTION = "exception"
    """Exception 4 in place of the answer."""
    WRONG_UNIT = "wrong_unit"
    WRONG_TRANSACTION = "wrong_transaction"
    """TCP only."""
    WRONG_LENGTH = "wrong_length"
    """One register less than was asked for; byte count and checksum fit what is sent."""
    CRC_ERROR = "crc_error"
    """Serial lines only: one bit of the frame changed on the way."""
    HALF_FRAME = "half_frame"
    LATE = "late"
    DUPLICATE = "duplicate"
    GARBAGE = "garbage"
    """One to eight random bytes, then the answer."""
    OVERTAKEN = "overtaken"
    """TCP only: held back for up to 0.3 s, so that answers to later requests come before it."""


READS_MAX = 4
"""Largest function code whose answer has a byte count and registers or coils."""


class Answer(NamedTuple):
    """What a meter wants to send."""

    transaction: int
    """0 on a serial line."""
    unit: int
    pdu: bytes


class Send(NamedTuple):
    """Bytes that really leave."""

    delay_s: float
    """How much later than the meter's own reply delay."""
    data: bytes


Encode = Callable[[int, int, bytes], bytes]
"""(transaction, unit, PDU) → ADU."""


class FaultSource:
    """Decides for each exchange which fault it suffers, if any."""

    def __init__(self, seed: str, rates: Mapping[Fault, float] | None = None, late_by_s: float = 1.5) -> None:
        """Set the rates.

        Args:
            seed: The sequence of draws follows from it.
            rates: Share of exchanges for each fault; their sum is at most 1. At most one fault befalls an exchange.
            late_by_s: How late ``Fault.LATE`` is.
        """
        self.chance = random.Random(seed)  # noqa: S311  a run must repeat itself
        self.late_by_s = late_by_s
        self.rates = {fault: rates[fault] for fault in Fault if fault in rates} if rates else {}
        self._ordered: deque[Fault] = deque()

    def order(self, *faults: Fault) -> None:
        """Let the next exchanges suffer these, one each, before chance decides again."""
        self._ordered.extend(faults)

    def draw(self) -> Fault | None:
        """The fault of the next exchange."""
        if self._ordered:
            return self._ordered.popleft()
        if not self.rates:
            return None
        drawn = self.chance.random()
        for fault, rate in self.rates.items():
            drawn -= rate
            if drawn < 0:
                return fault
        return None


def spoil(answer: Answer, fault: Fault | None, encode: Encode, source: FaultSource) -> list[Send]:
    """What leaves in place of ``answer``: nothing, one piece or several.

    Args:
        answer: The meter's answer.
        fault: What befalls it, or None.
        encode: The bus's framing.
        source: For chance and lateness.
    """
    if fault is None:
        return [Send(0, encode(*answer))]
    frame = _damaged(encode(*_altered(answer, fault)), fault, source.chance)
    match fault:
        case Fault.NO_REPLY:
            return []
        case Fault.LATE:
            return [Send(source.late_by_s, frame)]
        case Fault.OVERTAKEN:
            return [Send(source.chance.random() * HELD_BACK_MAX_S, frame)]
        case Fault.DUPLICATE:
            return [Send(0, frame), Send(0, frame)]
        case _:
            return [Send(0, frame)]


def _altered(answer: Answer, fault: Fault | None) -> Answer:
    """Faults of what is said: the frame around it is in order."""
    transaction, unit, pdu = answer
    match fault:
        case Fault.EXCEPTION:
            return Answer(transaction, unit, bytes((pdu[0] | EXCEPTION_FLAG, DEVICE_FAILURE)))
        case Fault.WRONG_UNIT:
            return Answer(transaction, unit % UNIT_MAX + 1, pdu)
        case Fault.WRONG_TRANSACTION:
            return Answer((transaction + 1) & 0xFFFF, unit, pdu)
        case Fault.WRONG_LENGTH:
            return Answer(transaction, unit, _shortened(pdu))
        case _:
            return answer


def _damaged(frame: bytes, fault: Fault | None, chance: random.Random) -> bytes:
    """Faults of the way."""
    match fault:
        case Fault.CRC_ERROR:
            bit = int(chance.random() * 8 * len(frame))
            return frame[: bit // 8] + bytes((frame[bit // 8] ^ 1 << bit % 8,)) + frame[bit // 8 + 1 :]
        case Fault.HALF_FRAME:
            return frame[: len(frame) // 2]
        case Fault.GARBAGE:
            return chance.randbytes(1 + int(chance.random() * GARBAGE_MAX)) + frame
        case _:
            return frame


def _shortened(pdu: bytes) -> bytes:
    """A read's answer without its last register; anything else without its last byte, or with one more."""
    if pdu[0] & EXCEPTION_FLAG or len(pdu) < 4:  # noqa: PLR2004  function, byte count, one register
        return pdu + b"\x00"
    if pdu[0] > READS_MAX:
        return pdu[:-1]
    return bytes((pdu[0], pdu[1] - 2)) + pdu[2:-2]
