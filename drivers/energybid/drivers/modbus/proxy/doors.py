"""How masters come in: Modbus TCP connections, or a further serial line with Modbus RTU. No socket is opened here.

Whatever comes in is hostile until it has turned out to be a request. A connection that sends what is no Modbus, sends
more than any master does, does not read its answers or asks nothing for long is closed; each costs a bounded amount.
"""

from __future__ import annotations

import asyncio
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING

from energybid.drivers.modbus.framing import Frame, Garbled, MbapFramer, RtuRequests, mbap_frame, rtu_frame
from energybid.drivers.modbus.rtu import QUIET_S
from energybid.drivers.modbus.timing import silence_s

if TYPE_CHECKING:
    from energybid.core.ports import SerialEndpoint
    from energybid.drivers.modbus.proxy.desk import Client, Desk

CHUNK_MAX = 4096
"""Most bytes that a master may send at once: 16 of the longest requests, 341 of the usual ones."""
UNREAD_MAX = 16_384
"""Most bytes of answers that a master may leave unread."""
REST_S = 0.5
"""A master that asks too much is not listened to for so long."""
MAKE_ROOM_S = 10.0
"""Where all places are taken, who asked nothing for so long makes room."""


class TcpDoor:
    """All connections of one proxy."""

    def __init__(self, desk: Desk) -> None:
        """Bring in requests to ``desk``."""
        self.desk = desk
        self.open: dict[TcpMaster, None] = {}
        """In the order of their last requests."""
        self._networks = [ip_network(network) for network in desk.plan.clients]

    def master(self) -> TcpMaster:
        """For a connection that comes."""
        return TcpMaster(self)

    def admits(self, host: object) -> bool:
        """Whether a master may be at this address."""
        try:
            address: IPv4Address | IPv6Address = ip_address(str(host))
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def has_room(self, now: float) -> bool:
        """Whether one more may come; who asked nothing for longest makes room."""
        if len(self.open) < self.desk.plan.connections:
            return True
        oldest = next(iter(self.open))
        if now - oldest.heard_at < MAKE_ROOM_S:
            return False
        oldest.hang_up("made_room")
        return True

    def close(self) -> None:
        """Close all connections."""
        for master in list(self.open):
            master.hang_up("closed")


class TcpMaster(asyncio.Protocol):
    """One master's connection."""

    def __init__(self, door: TcpDoor) -> None:
        """Of ``door``."""
        self._door, self._desk = door, door.desk
        self._loop = asyncio.get_running_loop()
        self._framer = MbapFramer()
        self._transport: asyncio.Transport | None = None
        self._client: Client | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self.heard_at = self._loop.time()
        """When its last request came."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Let it in, or not."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a master needs a transport for both directions")
        peer = transport.get_extra_info("peername") or ("",)
        door, counts = self._door, self._desk.counts
        if not door.admits(peer[0]):
            counts["not_admitted"] += 1
            transport.abort()
        elif not door.has_room(self._loop.time()):
            counts["no_room"] += 1
            transport.abort()
        else:
            self._transport = transport
            transport.set_write_buffer_limits(high=UNREAD_MAX)
            self._client = self._desk.join(str(peer[0]))
            door.open[self] = None
            self._look_again()

    def data_received(self, data: bytes) -> None:
        """Take in requests."""
        if self._transport is None or self._client is None:
            return
        if len(data) > CHUNK_MAX:
            self.hang_up("flood")
            return
        for event in self._framer.feed(data):
            if self._transport is None:
                return  # hung up meanwhile: it does not read its answers
            if isinstance(event, Garbled):
                self._desk.counts["garbled"] += 1
                if event.fatal:
                    self.hang_up("no_modbus")
                    return
            elif not self._desk.ask(self._client, event.unit, event.pdu, partial(self._answer, event)):
                self._rest()
            self._heard()

    def _heard(self) -> None:
        self.heard_at = self._loop.time()
        if self in self._door.open:
            del self._door.open[self]
            self._door.open[self] = None

    def _answer(self, request: Frame, pdu: bytes) -> None:
        if self._transport is not None:
            self._transport.write(mbap_frame(request.transaction, request.unit, pdu))

    def _rest(self) -> None:
        """Do not listen for a while: what it sends stays with it."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()
            self._timers.append(self._loop.call_later(REST_S, self._listen_again))

    def _listen_again(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()
        self._timers = [timer for timer in self._timers if timer.when() > self._loop.time()]

    def _look_again(self) -> None:
        """Close it when nothing has come for long; half a request is nothing."""
        left_s = self.heard_at + self._desk.plan.idle_s - self._loop.time()
        if left_s <= 0:
            self.hang_up("idle")
        else:
            self._timers = [self._loop.call_later(left_s, self._look_again), *self._timers[1:]]

    def pause_writing(self) -> None:
        """It does not read its answers."""
        self.hang_up("unread")

    def hang_up(self, why: str) -> None:
        """Close the connection."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._desk.counts[why] += 1
            transport.abort()
        self._forget()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  it is gone either way
        """It is gone, and with it what it asked."""
        self._transport = None
        self._forget()

    def _forget(self) -> None:
        self._door.open.pop(self, None)
        for timer in self._timers:
            timer.cancel()
        self._timers = []
        if self._client is not None:
            self._desk.leave(self._client)


class RtuMaster(asyncio.Protocol):
    """The line of one master that speaks Modbus RTU. Others may be on it: for units not served it is silent.

    A master asks one thing at a time. When it asks the next it has given up the last, whose answer must not come any
    more: nothing tells it from the answer to the next.
    """

    def __init__(self, desk: Desk, endpoint: SerialEndpoint) -> None:
        """Bring in requests to ``desk``."""
        self.gone = asyncio.Event()
        """The line was lost."""
        self.why = ""
        self._desk = desk
        self._loop = asyncio.get_running_loop()
        self._framer = RtuRequests()
        self._silence_s = silence_s(endpoint)
        self._heard_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._device = endpoint.device
        self._client: Client | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a master needs a transport for both directions")
        self._transport = transport
        self._client = self._desk.join(self._device)

    def data_received(self, data: bytes) -> None:
        """Take in a request; silence ends what was no whole one."""
        client, now = self._client, self._loop.time()
        if client is None:
            return
        if now - self._heard_at > QUIET_S:
            self._framer.reset()
        self._heard_at = now
        for frame in self._framer.feed(data):
            self._desk.cancel(client)
            if frame.unit and self._desk.serves(frame.unit):
                self._desk.ask(client, frame.unit, frame.pdu, partial(self._answer, frame.unit, now))

    def _answer(self, unit: int, asked_at: float, pdu: bytes) -> None:
        """Answer after the silence that a line needs."""
        self._loop.call_later(self._silence_s, self._send, asked_at, rtu_frame(unit, pdu))

    def _send(self, asked_at: float, frame: bytes) -> None:
        if self._transport is not None and self._heard_at == asked_at:
            self._transport.write(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """The line is gone."""
        self._transport = None
        self.why = str(exc or "closed")
        if self._client is not None:
            self._desk.leave(self._client)
        self.gone.set()

    def close(self) -> None:
        """Release the line."""
        if self._transport is not None:
            self._transport.abort()
