"""The wires in memory: asyncio transports that carry bytes between the drivers and the simulated buses.

Here live delay, cuts in the stream, lost connections, refused ones and adapters that are unplugged. What the bytes say
is the business of the drivers and of ``bus.py``, whose protocols stand at the far end.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from random import Random
from typing import Any

from energybid.core.errors import BusDownError
from energybid.core.ports import Endpoint, SerialEndpoint
from energybid.simulator.virtual import LIFE

CONNECT_TIMEOUT_S = 5.0
"""As the real one (energybid.drivers.system)."""
TCP_DELAY_S = 0.0003, 0.003


class Wire(asyncio.Transport):
    """One end of a connection. What is written arrives at the other end's protocol, in order."""

    def __init__(
        self, protocol: asyncio.Protocol, context: Context, chance: Random, delay_s: tuple[float, float]
    ) -> None:
        """Make an end; ``join`` makes two of them a connection.

        Args:
            protocol: Gets what comes in.
            context: Whose callbacks these are.
            chance: For the delay.
            delay_s: Least and most time that bytes are under way.
        """
        super().__init__()
        self.protocol: asyncio.BaseProtocol = protocol
        self.cut_rate = 0.0
        """Share of writes that arrive in two pieces."""
        self.cuts = 0
        """How many did."""
        self.context = context
        """What its callbacks run in."""
        self._chance = chance
        self._delay_s = delay_s
        self._loop = asyncio.get_running_loop()
        self._arrives_s = 0.0
        self._peer: Wire | None = None
        self._closing = False

    def join(self, peer: "Wire") -> None:
        """Connect this end to another; both protocols are told by whoever made them."""
        self._peer, peer._peer = peer, self  # noqa: SLF001  the other end is one of us

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send."""
        if self._closing or self._peer is None or not data:
            return
        data = bytes(data)
        if self.cut_rate and len(data) > 1 and self._chance.random() < self.cut_rate:
            self.cuts += 1
            at = 1 + int(self._chance.random() * (len(data) - 1))
            self._send(self._peer, data[:at])
            self._arrives_s += self._chance.random() * 0.01
            data = data[at:]
        self._send(self._peer, data)

    def _send(self, peer: "Wire", data: bytes) -> None:
        low, high = self._delay_s
        if not high:
            self._loop.call_soon(peer.arrive, data, context=peer.context)
            return
        self._arrives_s = max(self._arrives_s, self._loop.time() + low + (high - low) * self._chance.random())
        self._loop.call_at(self._arrives_s, peer.arrive, data, context=peer.context)

    def arrive(self, data: bytes) -> None:
        """Bytes come out."""
        if not self._closing and isinstance(self.protocol, asyncio.Protocol):
            self.protocol.data_received(data)

    def lose(self, error: Exception | None = None) -> None:
        """The connection is gone; this end's protocol hears of it, and the other end's a moment later."""
        if self._closing:
            return
        self._closing = True
        self._loop.call_soon(self.protocol.connection_lost, error, context=self.context)
        peer, self._peer = self._peer, None
        if peer is not None:
            self._loop.call_later(0.001, peer.lose, None, context=peer.context)

    def close(self) -> None:
        """Close."""
        self.lose()

    def abort(self) -> None:
        """Close at once."""
        self.lose()

    def is_closing(self) -> bool:
        """Whether it is closed."""
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Who gets the bytes."""
        return self.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Change who gets the bytes."""
        self.protocol = protocol

    def get_extra_info(self, _name: str, default: Any = None) -> Any:  # noqa: ANN401
        """There is none."""
        return default


class Socket:
    """Where buses are plugged in: one gateway's port or serial adapter."""

    def __init__(self, what: str, far: Callable[[], asyncio.Protocol], chance: Random, *, serial: bool) -> None:
        """Offer ``far()`` to whoever connects.

        Args:
            what: Name, for messages.
            far: The protocol at the other end, for every connection anew or always the same.
            chance: For delays.
            serial: One connection at a time, no delay of its own: the line has its own pace.
        """
        self.what = what
        self.cut_rate = 0.0
        self.refused_until_s = 0.0
        """Nobody can connect before: no route, port closed, adapter unplugged."""
        self.silent = False
        """While nobody can connect: no answer at all, rather than a refusal."""
        self._far = far
        self._chance = chance
        self._serial = serial
        self._open: list[Wire] = []
        self._cuts = 0
        self._outside = copy_context()

    async def connect(self, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """Open a connection for the life that asks.

        Raises:
            BusDownError: Not now.
        """
        loop = asyncio.get_running_loop()
        if not self._serial:
            await asyncio.sleep(0.001 + 0.002 * self._chance.random())
        if loop.time() < self.refused_until_s:
            if self.silent:
                await asyncio.sleep(CONNECT_TIMEOUT_S)
            raise BusDownError(f"can not open {self.what}")
        delay_s = (0.0, 0.0) if self._serial else TCP_DELAY_S
        near = Wire(protocol(), copy_context(), self._chance, delay_s)
        far = Wire(self._far(), self._outside, self._chance, delay_s)
        near.join(far)
        far.cut_rate = self.cut_rate
        self._cuts += sum(wire.cuts for wire in self._open if wire.is_closing())
        self._open = [*(wire for wire in self._open if not wire.is_closing()), far]
        life = LIFE.get()
        if life is not None:
            life.ends[self] = near.lose
        self._outside.run(far.protocol.connection_made, far)
        near.protocol.connection_made(near)
        return near

    @property
    def cuts(self) -> int:
        """Answers that arrived in two pieces."""
        return self._cuts + sum(wire.cuts for wire in self._open)

    def drop(self, error: Exception | None = None) -> None:
        """Cut every connection."""
        for wire in self._open:
            peer = wire._peer  # noqa: SLF001  the other end of the same wire
            if peer is not None:
                peer.lose(error)
            wire.lose()
        self._cuts = self.cuts
        self._open = []

    def refuse(self, seconds: float, *, silent: bool = False) -> None:
        """Cut every connection and let nobody in for a time."""
        self.refused_until_s = max(self.refused_until_s, asyncio.get_running_loop().time() + seconds)
        self.silent = silent
        self.drop(OSError("gone"))


class Wiring:
    """All of one gateway's sockets. ``open`` implements ``OpenBus``."""

    def __init__(
        self,
        sockets: dict[str, Socket],
        links: dict[str, str] | None = None,
        opened: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Know the sockets.

        Args:
            sockets: By device or host.
            links: Names that stay → devices, which may change theirs.
            opened: Told when a name leads to another device than the last time.
        """
        self.sockets = sockets
        self.links = links or {}
        self._opened = opened
        self._last: dict[str, str] = {}

    def rename(self, link: str, device: str) -> None:
        """An adapter was plugged in again: its device has another name, and the old one is no more."""
        self.sockets[device] = self.sockets.pop(self.links[link])
        self.links[link] = device

    async def open(self, endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol], /) -> asyncio.Transport:
        """Connect ``protocol()`` to a bus.

        Raises:
            BusDownError: It can not be opened.
        """
        name = endpoint.device if isinstance(endpoint, SerialEndpoint) else endpoint.host
        device = self.links.get(name, name)
        socket = self.sockets.get(device)
        if socket is None:
            raise BusDownError(f"can not open {name}: no such device")
        transport = await socket.connect(protocol)
        if self._last.get(name, device) != device:
            self._opened(f"{name} is {device}")
        self._last[name] = device
        return transport
