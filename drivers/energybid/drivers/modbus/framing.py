"""Modbus framing, sans I/O: bytes in, frames out. For the client (replies) and for the server (requests).

Here live RTU framing (Modbus over Serial Line V1.02 §2.5.1) and the MBAP header (Modbus Messaging on TCP/IP V1.0b
§3.1.3). Nothing here knows a socket, a clock or what a PDU means beyond its length. Buffers are bounded.

RTU has no length field and its silent intervals do not survive USB adapters and operating systems. So a frame is found
by what it must look like (length by function, CRC), and where the CRC is wrong the search goes on at the *next byte*:
good bytes are never thrown away because bad ones came before them.
"""

from struct import Struct
from typing import NamedTuple

PDU_MAX = 253
"""Longest PDU, bytes (Modbus Application Protocol V1.1b3 §4.1)."""
RTU_MAX = 256
"""Longest RTU frame, bytes: unit, PDU, CRC (V1.02 §2.5.1)."""
MBAP_LENGTH_MIN, MBAP_LENGTH_MAX = 2, PDU_MAX + 1
"""The MBAP header's length field counts unit and PDU (V1.0b §3.1.3)."""
EXCEPTION_FLAG = 0x80
RTU_OVERHEAD = 3
"""Bytes of an RTU frame that are not PDU: unit and CRC."""

_RTU_MIN = 4
_EXCEPTION_SIZE = 5
_MBAP = Struct(">HHHB")
_MBAP_SIZE = 7


class Frame(NamedTuple):
    """One ADU without its framing."""

    unit: int
    transaction: int
    """0 on a serial line."""
    pdu: bytes
    """Function code and data, 1 to 253 bytes."""


class Garbled(NamedTuple):
    """Bytes on a TCP stream that are no ADU."""

    reason: str
    fatal: bool
    """The boundaries of the following ADUs are lost: drop the connection, then ``reset``."""


def _crc_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
        table.append(crc)
    return tuple(table)


_CRC = _crc_table()


def crc16(data: bytes, crc: int = 0xFFFF) -> int:
    """CRC-16/MODBUS (V1.02 §2.5.1.2 and appendix B); over a frame with its CRC it is 0.

    Args:
        data: Bytes to add.
        crc: The CRC of what came before them.
    """
    table = _CRC
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc


def rtu_frame(unit: int, pdu: bytes) -> bytes:
    """Unit, PDU, CRC (low byte first, V1.02 §2.5.1.2)."""
    body = bytes((unit,)) + pdu
    return body + crc16(body).to_bytes(2, "little")


def mbap_frame(transaction: int, unit: int, pdu: bytes) -> bytes:
    """MBAP header and PDU."""
    return _MBAP.pack(transaction, 0, len(pdu) + 1, unit) + pdu


class RtuReplies:
    """Finds the one reply a client waits for, whatever stands before or behind it.

    The reply is either ``size`` bytes of PDU that begin with ``head``, or the exception to the same function. All else
    (noise, an echo of the request, other units' frames) is passed over, byte by byte.
    """

    __slots__ = ("_buffer", "_exception", "_head", "_size", "behind", "corrupt", "seen")

    def __init__(self) -> None:
        """Start without an expectation: all bytes are passed over."""
        self.seen = 0
        """Bytes fed since the last ``expect``."""
        self.corrupt = False
        """Since the last ``expect`` something began as the reply does and had a wrong CRC."""
        self.behind = 0
        """Bytes that came together with the reply's end and do not belong to it."""
        self.forget()

    def forget(self) -> None:
        """Expect nothing; drop what is buffered."""
        self._buffer = b""
        self._head = self._exception = b""
        self._size = 0

    def expect(self, unit: int, head: bytes, size: int) -> None:
        """Wait for this reply; what came before does not belong to it.

        Args:
            unit: Address the reply must come from.
            head: First bytes of the reply's PDU: the function code, for reads also the byte count.
            size: Length of the reply's PDU, bytes; at most PDU_MAX.
        """
        self._buffer = b""
        self._head = bytes((unit,)) + head
        self._exception = bytes((unit, head[0] | EXCEPTION_FLAG))
        self._size = size + RTU_OVERHEAD
        self.seen = 0
        self.corrupt = False
        self.behind = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Add received bytes.

        Returns:
            The reply, once; the expectation is then fulfilled and later bytes are passed over.
        """
        self.seen += len(data)
        if not self._head:
            return []
        buffer = self._buffer + data
        head, size = self._head, self._size
        at = 0
        while (at := self._candidate(buffer, at)) >= 0:
            stop = at + (size if buffer.startswith(head, at) else _EXCEPTION_SIZE)
            if stop > len(buffer):
                break
            if crc16(buffer[at:stop]) == 0:
                self.forget()
                self.behind = len(buffer) - stop
                return [Frame(buffer[at], 0, buffer[at + 1 : stop - 2])]
            self.corrupt |= buffer.startswith(head, at)
            at += 1
        # What no reply can begin in is dropped; so at most one frame less a byte is kept.
        self._buffer = buffer[at:] if at >= 0 else buffer[len(buffer) - len(head) + 1 :]
        return []

    def _candidate(self, buffer: bytes, at: int) -> int:
        """First place from ``at`` where the reply or its exception may begin, or -1."""
        reply, exception = buffer.find(self._head, at), buffer.find(self._exception, at)
        return max(reply, exception) if min(reply, exception) < 0 else min(reply, exception)


# Length of a request's PDU by function code (Modbus Application Protocol V1.1b3 §6): fixed, or a constant plus the byte
# count found at an offset within the PDU. Diagnostics (8) has two data bytes in every sub-function but 0 (§6.8.1);
# encapsulated interface transport (43) is taken as device identification (§6.21).
_FIXED = {1: 5, 2: 5, 3: 5, 4: 5, 5: 5, 6: 5, 7: 1, 8: 5, 11: 1, 12: 1, 17: 1, 22: 7, 24: 3, 43: 4}
_COUNTED = {15: (6, 5), 16: (6, 5), 20: (2, 1), 21: (2, 1), 23: (10, 9)}


class RtuRequests:
    """Finds requests in what a server reads from a serial line, where other units' replies pass as well.

    A frame is the first run of bytes, from the left, that has its function's length and a right CRC. While a long
    candidate is still incomplete a complete one behind its beginning wins: noise that looks like the beginning of a
    long request must not swallow the next request.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        """Start at the beginning of a frame."""
        self._buffer = b""

    def reset(self) -> None:
        """Forget what is buffered, for instance after a long silence."""
        self._buffer = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Add received bytes; return the requests they complete."""
        checked, buffer = len(self._buffer), self._buffer + data
        frames: list[Frame] = []
        at = start = 0
        while len(buffer) - at >= _RTU_MIN:
            stop = self._stop(buffer, at, aligned=at == start)
            # What ended in the bytes of before was looked at then: noise byte by byte costs no more than at once.
            if checked < stop <= len(buffer) and crc16(buffer[at:stop]) == 0:
                frames.append(Frame(buffer[at], 0, buffer[at + 1 : stop - 2]))
                start = at = stop
            else:
                at += 1
        self._buffer = buffer[max(start, len(buffer) - RTU_MAX + 1) :]
        return frames

    @staticmethod
    def _stop(buffer: bytes, at: int, *, aligned: bool) -> int:
        """Where a request that begins at ``at`` ends; 0 where none can begin, or not yet."""
        function = buffer[at + 1]
        if function in _FIXED:
            return at + _FIXED[function] + RTU_OVERHEAD
        if function in _COUNTED:
            constant, offset = _COUNTED[function]
            if at + 1 + offset >= len(buffer):
                return 0
            return at + constant + buffer[at + 1 + offset] + RTU_OVERHEAD
        return _first_zero_crc(buffer, at) if aligned else 0


def _first_zero_crc(buffer: bytes, at: int) -> int:
    """End of a frame of unknown length: the first byte after which the running CRC is 0; 0 if there is none.

    Only for function codes that no table knows, so that a server can answer "illegal function".
    """
    crc = 0xFFFF
    for index in range(at, min(at + RTU_MAX, len(buffer))):
        crc = crc >> 8 ^ _CRC[(crc ^ buffer[index]) & 0xFF]
        if crc == 0 and index - at >= _RTU_MIN - 1:
            return index + 1
    return 0


class MbapFramer:
    """Splits a TCP stream, either direction, into ADUs.

    A wrong protocol identifier with a possible length loses that one ADU: it is skipped. After an impossible length, or
    two wrong headers in a row, nothing says where the next ADU begins; guessing would risk taking register values for
    headers. That is ``fatal``: everything is ignored until ``reset``, and the owner drops the connection.
    """

    __slots__ = ("_bad", "_buffer", "_skip", "broken")

    def __init__(self) -> None:
        """Start at the beginning of an ADU."""
        self.reset()

    def reset(self) -> None:
        """Start again, for a new connection."""
        self._buffer = b""
        self._skip = 0
        self._bad = False
        self.broken = False

    def feed(self, data: bytes) -> list[Frame | Garbled]:
        """Add received bytes; return what they complete."""
        if self._buffer:
            data = self._buffer + data
        events: list[Frame | Garbled] = []
        at, end = self._skip, len(data)
        while end - at >= _MBAP_SIZE and not self.broken:
            transaction, protocol, length, unit = _MBAP.unpack_from(data, at)
            stop = at + 6 + length
            if protocol or not MBAP_LENGTH_MIN <= length <= MBAP_LENGTH_MAX:
                events.append(self._garbled(protocol, length))
            elif stop > end:
                break
            else:
                events.append(Frame(unit, transaction, data[at + _MBAP_SIZE : stop]))
                self._bad = False
            at = stop
        self._skip = max(0, at - end)
        self._buffer = b"" if self.broken else data[at:]
        return events

    def _garbled(self, protocol: int, length: int) -> Garbled:
        possible = MBAP_LENGTH_MIN <= length <= MBAP_LENGTH_MAX
        reason = f"MBAP header with protocol {protocol}" if possible else f"MBAP header with length {length}"
        self.broken = not possible or self._bad
        self._bad = True
        return Garbled(reason, self.broken)
