"""Modbus ASCII (Modbus over Serial Line V1.02 §2.5.2): frames as lines of hexadecimal digits, and their link.

Here live the framing of both sides, sans I/O, and the one thing in which the exchange differs from RTU: characters of a
frame may come up to a second apart, so a reply that has begun is waited for. All else is the RTU link's.

A colon begins a frame wherever it stands, so nothing has to be guessed after noise.
"""

from __future__ import annotations

from binascii import unhexlify
from typing import TYPE_CHECKING

from energybid.drivers.modbus.framing import PDU_MAX, Frame, RtuReplies
from energybid.drivers.modbus.rtu import RtuLink

if TYPE_CHECKING:
    from energybid.drivers.modbus.exchange import Asked

COLON, END = b":", b"\r\n"
ASCII_MAX = 2 * (PDU_MAX + 2) + 3
"""Longest frame, characters: colon, two for each byte of unit, PDU and LRC, CR LF (§2.5.2.2)."""
CHARACTER_GAP_MAX_S = 1.0
"""Longest silence within a frame (§2.5.2.1)."""
STRETCH_MAX_S = 10.0
"""So much longer than its due a reply may take in all, with silences."""

_BODY_MIN = 3


def lrc(data: bytes) -> int:
    """Longitudinal redundancy check (§2.5.2.2 and appendix B): what makes the sum of all bytes 0 modulo 256."""
    return -sum(data) & 0xFF


def ascii_frame(unit: int, pdu: bytes) -> bytes:
    """Colon, unit, PDU and LRC in upper-case hexadecimal, CR LF."""
    body = bytes((unit,)) + pdu
    return COLON + (body + bytes((lrc(body),))).hex().upper().encode() + END


def parse_line(line: bytes) -> Frame | None:
    """The frame in what stands before CR LF, behind its last colon; None where there is none.

    Digits may be of either case; anything else between them makes it no frame.
    """
    _, colon, digits = line.rpartition(COLON)
    if not colon or len(digits) > ASCII_MAX:
        return None
    try:
        body = unhexlify(digits)
    except ValueError:
        return None
    return Frame(body[0], 0, body[1:-1]) if len(body) >= _BODY_MIN and lrc(body) == 0 else None


def _rest(buffer: bytes) -> bytes:
    """What of an incomplete line may still become a frame."""
    start = buffer.rfind(COLON)
    return buffer[start:] if start >= 0 and len(buffer) - start < ASCII_MAX else b""


class AsciiReplies(RtuReplies):
    """Finds the one reply that a client waits for; see ``RtuReplies``."""

    __slots__ = ()

    @property
    def begun(self) -> bool:
        """A frame has begun and is not complete."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """Add received bytes; return the reply, once."""
        self.seen += len(data)
        if not self._head:
            return []
        *lines, rest = (self._buffer + data).split(END)
        for number, line in enumerate(lines):
            frame = parse_line(line)
            if frame is not None and self._answers(frame):
                behind = len(END.join((*lines[number + 1 :], rest)))
                self.forget()
                self.behind = behind
                return [frame]
            self.corrupt |= frame is None and self._begins(line)
        self._buffer = _rest(rest)
        return []

    def _answers(self, frame: Frame) -> bool:
        body = bytes((frame.unit,)) + frame.pdu
        if body.startswith(self._head):
            return len(body) + 2 == self._size  # the size counts a CRC
        return body.startswith(self._exception) and len(body) == len(self._exception) + 1

    def _begins(self, line: bytes) -> bool:
        """Whether a broken line began as the reply does."""
        return line.rpartition(COLON)[2].upper().startswith(self._head.hex().upper().encode())


class AsciiRequests:
    """Finds requests in what a server reads; the owner calls ``reset`` after CHARACTER_GAP_MAX_S of silence."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        """Start at the beginning of a frame."""
        self._buffer = b""

    def reset(self) -> None:
        """Forget what is buffered."""
        self._buffer = b""

    def feed(self, data: bytes) -> list[Frame]:
        """Add received bytes; return the frames that they complete."""
        *lines, rest = (self._buffer + data).split(END)
        self._buffer = _rest(rest)
        return [frame for line in lines if (frame := parse_line(line)) is not None]


class AsciiLink(RtuLink):
    """A serial line on which Modbus ASCII is spoken."""

    finder_type = AsciiReplies

    @staticmethod
    def encoded(asked: Asked) -> tuple[bytes, int]:
        """The request's bytes, and the length of its reply on the line."""
        return ascii_frame(asked.unit, asked.pdu), 2 * (asked.size + 2) + 3

    def data_received(self, data: bytes) -> None:
        """Look for the reply; wait for the rest of one that has begun."""
        super().data_received(data)
        finder = self._finder
        if self._current is not None and isinstance(finder, AsciiReplies) and finder.begun:
            due = self._loop.time() + CHARACTER_GAP_MAX_S
            self._deadline = max(self._deadline, min(due, self._hard_deadline + STRETCH_MAX_S))
