"""The real buses: TCP, TLS and UDP, as asyncio transports. Only this module and ``serialport`` open any.

``serialport`` and pyserial are loaded when the first serial line is opened: many gateways have none.

What Modbus is, nobody here knows. Names are looked up at every opening, certificates are read at every opening.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from energybid.core.errors import BusDownError
from energybid.core.ports import Endpoint, TcpEndpoint, TlsSettings, UdpEndpoint
from energybid.drivers.tls import CLOSED_UNHEARD, client_context, explain

if TYPE_CHECKING:
    from energybid.drivers.serialport.system import SerialPorts

CONNECT_TIMEOUT_S = 5.0
HANDSHAKE_TIMEOUT_S = 15.0
"""To connect with TLS: small devices reckon for seconds."""
UNACKNOWLEDGED_MAX_MS = 20_000
"""A TCP connection whose data stays unacknowledged this long is lost."""
KEEP_ALIVE_S = 30

ProtocolFactory = Callable[[], asyncio.Protocol]


async def open_bus(endpoint: Endpoint, protocol: ProtocolFactory, /) -> asyncio.Transport:
    """Connect ``protocol()`` to a bus. Implements ``OpenBus``.

    A UDP endpoint's transport sends one datagram for each ``write``, and hands over one at a time.

    Raises:
        BusDownError: It can not be opened; the message says why, and who holds a port that is in use.
    """
    if isinstance(endpoint, TcpEndpoint):
        return await _open_tcp(endpoint, protocol)
    if isinstance(endpoint, UdpEndpoint):
        return await _open_udp(endpoint, protocol)
    return _serial_ports().open(endpoint, protocol)


@cache
def _serial_ports() -> "SerialPorts":
    """They remember adapters for as long as the process lives."""
    from energybid.drivers.serialport.system import SerialPorts  # noqa: PLC0415  0.4 MB: only who has a line loads it

    return SerialPorts()


# ---------------------------------------------------------------- TCP, TLS


async def _open_tcp(endpoint: TcpEndpoint, protocol: ProtocolFactory) -> asyncio.Transport:
    tls, where = endpoint.tls, f"{endpoint.host} port {endpoint.port}"
    name = (tls and tls.server_name) or endpoint.host
    secured: dict[str, Any] = {} if tls is None else {"ssl": _context(where, tls), "server_hostname": name}
    made = protocol if tls is None else lambda: _Plain(protocol(), name)
    loop = asyncio.get_running_loop()
    patience_s = CONNECT_TIMEOUT_S if tls is None else HANDSHAKE_TIMEOUT_S
    try:
        async with asyncio.timeout(patience_s):
            transport, _ = await loop.create_connection(made, endpoint.host, endpoint.port, **secured)
    except TimeoutError:
        raise BusDownError(f"no connection to {where} within {patience_s:g} s") from None
    except OSError as error:
        raise BusDownError(f"no connection to {where}: {explain(error, name)}") from None
    _tune(transport.get_extra_info("socket"))
    return transport


def _context(where: str, tls: TlsSettings) -> ssl.SSLContext:
    try:
        return client_context(tls)
    except ValueError as error:
        raise BusDownError(f"no connection to {where}: {error}") from None


class _Plain(asyncio.Protocol):
    """Tells its owner in plain words why a secured connection was lost: TLS 1.3 refuses after connecting."""

    def __init__(self, owner: asyncio.Protocol, name: str) -> None:
        self._owner, self._name = owner, name
        self._heard = self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._owner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._owner.data_received(data)

    def eof_received(self) -> None:
        self._ended = True

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._heard and (self._ended or isinstance(exc, ConnectionResetError)):
            exc = ConnectionError(CLOSED_UNHEARD)
        elif exc is not None:
            exc = ConnectionError(explain(exc, self._name))
        self._owner.connection_lost(exc)


def _tune(connection: socket.socket) -> None:
    """No waiting for more to send; notice a peer that went away without a word."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEP_ALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MAX_MS)


# ---------------------------------------------------------------- listening

LISTEN_BACKLOG = 16
"""Connections that wait to be taken; also how many are taken before anything else has its turn again."""


class Listening:
    """A port that is listened on. Implements ``Listener``."""

    def __init__(self, server: asyncio.Server) -> None:
        """Of a server that listens."""
        self._server = server

    @property
    def port(self) -> int:
        """Its number."""
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """Take no further connections."""
        self._server.close()


async def serve_bus(host: str, port: int, protocol: ProtocolFactory, /) -> Listening:
    """Listen for masters. Implements ``ServeBus``.

    Raises:
        BusDownError: The port can not be had.
    """
    loop = asyncio.get_running_loop()
    try:
        return Listening(await loop.create_server(protocol, host, port, backlog=LISTEN_BACKLOG))
    except OSError as error:
        raise BusDownError(f"can not listen on {host} port {port}: {error.strerror or error}") from None


# ---------------------------------------------------------------- UDP


async def _open_udp(endpoint: UdpEndpoint, protocol: ProtocolFactory) -> asyncio.Transport:
    loop, where = asyncio.get_running_loop(), f"{endpoint.host} port {endpoint.port}"
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, datagrams = await loop.create_datagram_endpoint(
                lambda: Datagrams(protocol()), remote_addr=(endpoint.host, endpoint.port)
            )
    except TimeoutError:
        raise BusDownError(f"no address for {where} within {CONNECT_TIMEOUT_S:g} s") from None
    except OSError as error:
        raise BusDownError(f"no way to {where}: {error.strerror or error}") from None
    return datagrams


class Datagrams(asyncio.DatagramProtocol, asyncio.Transport):
    """A connected UDP socket behind the face of a stream: a datagram is one ``write``, or one ``data_received``."""

    def __init__(self, owner: asyncio.Protocol) -> None:
        """Speak for ``owner``.

        Args:
            owner: Gets each datagram whole; the kernel has checked that it came from the endpoint.
        """
        super().__init__()
        self._owner: asyncio.BaseProtocol = owner
        self._refused: Exception | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        """Begin."""
        self._socket = transport
        self._owner.connection_made(self)

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002
        """Hand one over."""
        if isinstance(self._owner, asyncio.Protocol):
            self._owner.data_received(data)

    def error_received(self, exc: Exception) -> None:
        """Give up: nobody listens there (the other side said so by ICMP), or there is no way there any more."""
        self._refused = exc
        self._socket.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._owner.connection_lost(exc or self._refused)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send one datagram."""
        if not self._socket.is_closing():
            self._socket.sendto(data)

    def close(self) -> None:
        """Close at once."""
        self._socket.abort()

    abort = close

    def is_closing(self) -> bool:
        """Whether it is closed or closing."""
        return self._socket.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """What the socket knows."""
        return self._socket.get_extra_info(name, default)
