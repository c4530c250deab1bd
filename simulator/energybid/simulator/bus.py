"""Simulated buses: requests of a master come in as bytes, what the meters on the bus answer goes out, in its own time.

Here live the far ends of the wire, as asyncio protocols over any transport: Modbus TCP and UDP with their gateway's
manners, Modbus RTU and ASCII with the pace of a serial line. Framing is the drivers' own, from its server side. No
sockets and no ptys here (``system.py``), no registers (``meters.py``).
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Protocol

from energybid.drivers.modbus.ascii import CHARACTER_GAP_MAX_S, AsciiRequests, ascii_frame
from energybid.drivers.modbus.framing import Frame, Garbled, MbapFramer, RtuRequests, mbap_frame, rtu_frame
from energybid.simulator.faults import EXCEPTION_FLAG, Answer, Encode, Fault, FaultSource, spoil

GATEWAY_TARGET_FAILED = 0x0B
"""GATEWAY TARGET DEVICE FAILED TO RESPOND (Modbus Application Protocol V1.1b3 §7)."""
BROADCAST = 0
CHUNK = 16
"""Bytes that a serial line hands over at once: the receive buffer of a 16550 UART."""
SILENCE_CHARS = 3.5
FAST_SILENCE_S = 0.00175
"""Silence between frames above 19,200 baud (Modbus over Serial Line V1.02 §2.5.1.1)."""
FAST_BAUD = 19_200


class Device(Protocol):
    """What answers requests: a meter."""

    def respond(self, pdu: bytes, at_ms: int) -> bytes:
        """The PDU of the answer or exception, at a moment of the replay in ms; empty for none."""


@dataclass(kw_only=True)
class Station:
    """A device at its place on a bus."""

    name: str
    unit: int
    """1 to 247."""
    device: Device
    reply_delay_s: float = 0.0
    """From the end of the request to the start of the answer."""
    faults: FaultSource = field(default_factory=lambda: FaultSource(""))


@dataclass(kw_only=True)
class Bus:
    """The stations of one bus and what the whole bus has in common."""

    stations: Sequence[Station]
    replay_ms: Callable[[], int]
    """Where the replay stands."""
    faults: FaultSource = field(default_factory=lambda: FaultSource(""))
    """Befall every station of the bus, where its own faults do not."""
    answer_unknown: bool = True
    """A TCP gateway answers for units that are not there with exception 11; else it is silent."""
    counts: Counter[str] = field(default_factory=Counter)
    """``requests``, ``replies``, ``refused``, ``unknown_unit``, ``garbled``, ``collisions`` and each fault by name."""

    def __post_init__(self) -> None:
        """Index the stations."""
        self._by_unit = {station.unit: station for station in self.stations}

    def station(self, unit: int) -> Station | None:
        """Who listens to this address."""
        return self._by_unit.get(unit)

    def answer(self, station: Station, pdu: bytes) -> tuple[bytes, Fault | None, FaultSource]:
        """A station's answer, the fault it suffers, and where that came from."""
        self.counts["requests"] += 1
        answer = station.device.respond(pdu, self.replay_ms())
        source, fault = station.faults, station.faults.draw()
        if fault is None:
            source, fault = self.faults, self.faults.draw()
        if not answer:
            fault = Fault.NO_REPLY
        if fault is not None:
            self.counts[fault.value] += 1
        else:
            self.counts["refused" if answer[0] & EXCEPTION_FLAG else "replies"] += 1
        return answer, fault, source


def _wire(transport: asyncio.BaseTransport) -> asyncio.WriteTransport:
    assert isinstance(transport, asyncio.WriteTransport)  # noqa: S101  the loop's promise
    return transport


Write = Callable[[bytes], None]
"""Sends a frame back to who asked."""


def _respond(bus: Bus, frame: Frame, write: Write) -> None:
    """Answer one MBAP request, in its own time."""
    transaction, unit, pdu = frame.transaction, frame.unit, frame.pdu
    station = bus.station(unit)
    if station is None:
        bus.counts["unknown_unit"] += 1
        if bus.answer_unknown and unit != BROADCAST:
            write(mbap_frame(transaction, unit, bytes((pdu[0] | EXCEPTION_FLAG, GATEWAY_TARGET_FAILED))))
        return
    answer, fault, source = bus.answer(station, pdu)
    for send in spoil(Answer(transaction, unit, answer), fault, mbap_frame, source):
        _after(station.reply_delay_s + send.delay_s, write, send.data)


def _after(delay_s: float, write: Write, data: bytes) -> None:
    if delay_s:
        asyncio.get_running_loop().call_later(delay_s, write, data)
    else:
        write(data)


class TcpConnection(asyncio.Protocol):
    """One master's connection to a Modbus TCP gateway or meter."""

    def __init__(self, bus: Bus) -> None:
        """Speak for ``bus``."""
        self._bus = bus
        self._framer = MbapFramer()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = _wire(transport)

    def data_received(self, data: bytes) -> None:
        """Answer every request in it; a stream that is not Modbus is closed."""
        for event in self._framer.feed(data):
            if not isinstance(event, Garbled):
                _respond(self._bus, event, self._write)
                continue
            self._bus.counts["garbled"] += 1
            if event.fatal:
                self._transport.close()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


class UdpSocket(asyncio.DatagramProtocol):
    """A Modbus UDP gateway or meter: answers go to where the request came from."""

    def __init__(self, bus: Bus) -> None:
        """Speak for ``bus``."""
        self._bus = bus

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Begin."""
        self._transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer every request in it."""
        for event in MbapFramer().feed(data):
            if isinstance(event, Garbled):
                self._bus.counts["garbled"] += 1
            else:
                _respond(self._bus, event, partial(self._write, addr))

    def _write(self, addr: tuple[str, int], data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.sendto(data, addr)


def _encode_rtu(_transaction: int, unit: int, pdu: bytes) -> bytes:
    return rtu_frame(unit, pdu)


def _encode_ascii(_transaction: int, unit: int, pdu: bytes) -> bytes:
    return ascii_frame(unit, pdu)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineTiming:
    """How long bytes take on a serial line."""

    char_s: float
    """One character: start bit, data bits, parity, stop bits."""
    silence_s: float
    """Between frames (Modbus over Serial Line V1.02 §2.5.1.1)."""

    @classmethod
    def of(cls, baudrate: int, parity: str = "N", stop_bits: int = 1, data_bits: int = 8) -> "LineTiming":
        """Timing of a line."""
        char_s = (1 + data_bits + (parity != "N") + stop_bits) / baudrate
        return cls(char_s=char_s, silence_s=FAST_SILENCE_S if baudrate > FAST_BAUD else SILENCE_CHARS * char_s)


class RtuLine(asyncio.Protocol):
    """The meters' end of a serial line.

    A pty hands bytes over at once, a line does not: a request counts as heard when its bytes would have passed, and the
    answer leaves in pieces, each when its last bit would have. While a meter sends, nobody listens: bytes that arrive
    meanwhile are lost, as they would be garbled on a two-wire line.
    """

    framing: ClassVar[tuple[type[RtuRequests | AsciiRequests], Encode]] = RtuRequests, _encode_rtu

    def __init__(self, bus: Bus, timing: LineTiming) -> None:
        """Speak for ``bus`` at the line's pace."""
        self._bus = bus
        self._timing = timing
        framer, self._encode = self.framing
        self._framer = framer()
        self._heard_at = 0.0
        self._busy_until = 0.0
        self._pieces = 0
        """Begun and not yet sent."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = _wire(transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        """Hear a part of a request."""
        if self._pieces:
            self._bus.counts["collisions"] += 1
            self._framer.reset()
            return
        self._heard_at = max(self._heard_at, self._loop.time()) + len(data) * self._timing.char_s
        for frame in self._framer.feed(data):
            self._request(frame.unit, frame.pdu)

    def _request(self, unit: int, pdu: bytes) -> None:
        station = self._bus.station(unit)
        if station is None:
            self._bus.counts["unknown_unit"] += 1
            return
        ready_at = self._heard_at + max(self._timing.silence_s, station.reply_delay_s)
        answer, fault, source = self._bus.answer(station, pdu)
        for send in spoil(Answer(0, unit, answer), fault, self._encode, source):
            self._loop.call_at(ready_at + send.delay_s, self._transmit, send.data)

    def _transmit(self, data: bytes) -> None:
        """Put the pieces of a frame on the line, behind what is on it already."""
        start = max(self._loop.time(), self._busy_until)
        for at in range(0, len(data), CHUNK):
            piece = data[at : at + CHUNK]
            self._busy_until = start + (at + len(piece)) * self._timing.char_s
            self._loop.call_at(self._busy_until, self._write, piece)
            self._pieces += 1

    def _write(self, data: bytes) -> None:
        self._pieces -= 1
        if not self._transport.is_closing():
            self._transport.write(data)


class AsciiLine(RtuLine):
    """The meters' end of a serial line on which Modbus ASCII is spoken."""

    framing = AsciiRequests, _encode_ascii

    def data_received(self, data: bytes) -> None:
        """Hear a part of a request; silence in a frame ends it (V1.02 §2.5.2.1)."""
        if self._loop.time() - self._heard_at > CHARACTER_GAP_MAX_S:
            self._framer.reset()
        super().data_received(data)
