"""Hears whatever replies pass on a serial line, sans I/O: for finding meters that nobody has described yet.

``RtuReplies`` (``framing``) looks for the one reply whose length is known. Here any unit may answer, with an exception,
with registers or with its identification, whose length only the reply itself tells. Buffers are bounded.
"""

from energybid.drivers.modbus import objects
from energybid.drivers.modbus.framing import EXCEPTION_FLAG, RTU_MAX, RTU_OVERHEAD, Frame, crc16, rtu_frame
from energybid.drivers.modbus.map import HOLDING, INPUT

_RTU_MIN = 5
_EXCEPTION_SIZE = 2
_READ_HEADER = 2
_READS = frozenset({HOLDING, INPUT})
_FUNCTIONS = _READS | {objects.FUNCTION}
HEARD_MAX = 4 * RTU_MAX
"""Bytes kept while nothing in them is a frame; older ones are dropped."""


class RtuListener:
    """Finds frames that can be replies, by function, length and CRC, whatever stands around them."""

    __slots__ = ("_buffer", "_echo", "noise")

    def __init__(self) -> None:
        """Hear nothing yet."""
        self._buffer = b""
        self._echo = b""
        self.noise = 0
        """Bytes since the last ``expect`` that belong to no frame."""

    def expect(self, unit: int, pdu: bytes) -> None:
        """A request goes out now; forget what came before. An adapter may echo the request: that is no reply."""
        self._buffer = b""
        self._echo = rtu_frame(unit, pdu)
        self.noise = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Add received bytes; return the replies that they complete."""
        checked, buffer = len(self._buffer), self._buffer + data
        self.noise += len(data)
        if self._echo and buffer.startswith(self._echo):
            checked, buffer = 0, buffer[len(self._echo) :]
            self.noise -= len(self._echo)
            self._echo = b""
        frames: list[Frame] = []
        at = start = 0
        while len(buffer) - at >= _RTU_MIN:
            stop = _stop(buffer, at)
            if checked < stop <= len(buffer) and crc16(buffer[at:stop]) == 0:  # the others were looked at before
                frames.append(Frame(buffer[at], 0, buffer[at + 1 : stop - 2]))
                self.noise -= stop - at
                at = start = stop
            else:
                at += 1
        self._buffer = buffer[max(start, len(buffer) - HEARD_MAX) :]
        return frames


def _stop(buffer: bytes, at: int) -> int:
    """Where a reply that begins at ``at`` ends; behind everything possible where none does, or not yet."""
    function = buffer[at + 1]
    if function in _READS:
        return at + _READ_HEADER + buffer[at + 2] + RTU_OVERHEAD
    if function & EXCEPTION_FLAG and function & ~EXCEPTION_FLAG in _FUNCTIONS:
        return at + _EXCEPTION_SIZE + RTU_OVERHEAD
    if function == objects.FUNCTION:
        size = objects.reply_size(buffer[at + 1 :])
        return at + size + RTU_OVERHEAD if size else len(buffer) + 1
    return len(buffer) + 1
