"""The seams: everything through which the product touches the world, as one frozen ``Platform`` value.

``system.py`` modules build the real one, the simulator its twin on a virtual event loop. Monotonic time is the running
event loop's ``time()``; ``asyncio.sleep`` and ``asyncio.timeout`` are used as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeVar

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from energybid.core.quantities import ClockState, Quantity

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsSettings:
    """How both sides prove who they are (MODBUS/TCP Security Protocol Specification V21)."""

    ca: str | None = None
    """Path of PEM certificates to trust; None for the system's."""
    certificate: str | None = None
    """Path of the client's certificate, PEM; its role extension says what the server lets it do."""
    key: str | None = None
    """Path of the client's key, PEM, not encrypted; None where the certificate's file holds it too."""
    server_name: str | None = None
    """The name that the server's certificate must bear; None for the host that is connected to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpEndpoint:
    """A TCP server that speaks for the units behind it."""

    host: str
    port: int
    tls: TlsSettings | None = None
    baudrate: int = 0
    """Of the serial line behind a server that hands its bytes on; 0 where there is none or nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpEndpoint:
    """A UDP server that speaks for the units behind it."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rs485:
    """The kernel switches the direction of a two-wire line by the RTS signal (Linux, serial-rs485)."""

    rts_on_send: bool = True
    """RTS is on while sending, and off else; False: the other way round."""
    delay_before_send_ms: int = 0
    delay_after_send_ms: int = 0
    receive_while_sending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialEndpoint:
    """A serial line."""

    device: str
    """Path, such as /dev/serial/by-id/usb-FTDI_..., or ``usb:SERIAL`` for an adapter by its USB serial number
    (``usb:SERIAL#1`` for its second port)."""
    baudrate: int
    parity: str = "N"
    """N, E or O."""
    stop_bits: int = 1
    data_bits: int = 8
    rs485: Rs485 | None = None
    """None: the adapter switches by itself, or there are separate wires."""


Endpoint = TcpEndpoint | UdpEndpoint | SerialEndpoint


class Sample(NamedTuple):
    """What one poll of one group of one meter brought; the agent makes it a Reading entry."""

    time_ms: int
    """Wall clock when the last reply was received."""
    span_ms: int
    """From the first request sent to the last reply received."""
    mono_ms: int
    """Loop time when the last reply was received."""
    values: tuple[int | None, ...]
    status: tuple[int, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterPlan:
    """One meter on a bus, checked and ready to poll; can be pickled and needs no pydantic."""

    name: str
    """Unique on the gateway."""
    unit: int
    """Its address on the bus."""
    timeout_s: float
    """How long to wait for one reply."""
    retries: int
    """Further tries after a lost or garbled reply."""
    profile: str
    profile_hash: bytes
    """SHA-256 of the profile file."""
    groups: tuple[PollGroup, ...]
    map: object
    """The driver's own: how to read the groups."""


class Counter(NamedTuple):
    """What is known of a cumulative register's own counting, as numbers of the reading."""

    rollover: int | None
    """Where it starts again at 0."""
    word: int | None
    """65,536 of its counts: what it seems to jump by when its registers were read at two moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PollGroup:
    """Quantities that are read together."""

    interval_s: float
    quantities: tuple[Quantity, ...]
    """In the order of ``Sample.values``."""
    counters: tuple[Counter | None, ...] = ()
    """One for each quantity; empty where nothing is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusPlan:
    """One bus and its meters, checked and ready to poll; can be pickled and needs no pydantic."""

    name: str
    kind: str
    """Name of the driver's entry point, such as modbus-tcp."""
    endpoint: Endpoint
    meters: tuple[MeterPlan, ...]
    in_flight: int = 1
    """Most requests under way at once; more than 1 only where the endpoint matches replies to requests."""
    pause_s: float = 0.0
    """Least time from one request to the next, beyond what the protocol itself asks for; for slow gateways."""
    lateness_s: float = 1.0
    """A reply that is later than its time-out comes at most this much later (DESIGN: drained on serial lines)."""


class Driver(Protocol):
    """Speaks one protocol on one bus. Connects by itself when it is first needed, and again after a loss."""

    @property
    def concurrency(self) -> int:
        """How many ``poll`` may be under way at once."""

    async def poll_together(self, meter: MeterPlan, groups: tuple[int, ...]) -> list[Sample]:
        """Read several groups of one meter that fall due at once, with requests shared.

        Args:
            meter: One of the plan's meters.
            groups: Two or more indexes into ``meter.groups``, in order.

        Returns:
            A sample for each group, all of the same time; one of which nothing was read has a status for every number.

        Raises:
            MeterError: As ``poll``, where nothing was read at all.
        """

    async def poll(self, meter: MeterPlan, group: int, *, probe: bool = False, slack_s: float = 0.0) -> Sample:
        """Read one group of one meter; a partial reading has statuses.

        Args:
            meter: One of the plan's meters.
            group: Index into ``meter.groups``.
            probe: The meter is thought dead: begin with one short try of as little as possible.
            slack_s: How long the bus is not needed for anything else: a probe may take that long without harm.

        Raises:
            BusDownError: The bus can not be opened or was lost; fails at once while it backs off.
            NoReplyError: Nothing that belongs to the request came, after all tries.
            GarbledError: Only garbage came, after all tries.
            RefusedError: The meter refused every request of the group.
        """

    async def write(self, meter: MeterPlan, writable: object, raw: bytes) -> None:
        """Write a number of a meter, before any poll that waits. Returns when the meter says that it has done so.

        That is no proof: ``read_back`` tells what is in it now. What is not answered is written again: only numbers
        for which that makes no difference are writable.

        Args:
            meter: One of the plan's meters.
            writable: Of the meter's map; the driver's own.
            raw: The registers' bytes, as on the wire.

        Raises:
            MeterError: As ``poll``. Unless it is a RefusedError, the meter may have taken the number nevertheless.
        """

    async def read_back(self, meter: MeterPlan, writable: object) -> bytes:
        """The registers of a number that may be written, as on the wire, before any poll that waits.

        Raises:
            MeterError: As ``poll``.
        """

    def learned(self, meter: MeterPlan) -> Mapping[str, Any]:
        """What was learned of a meter, as plain data (JSON) for a later run; empty where nothing was."""

    def learn(self, meter: MeterPlan, plain: Mapping[str, Any]) -> None:
        """Take up what ``learned`` gave in an earlier run, with the same profile.

        Raises:
            ValueError: It is damaged; nothing is changed.
        """

    def shown(self, meter: MeterPlan) -> Mapping[str, Any]:
        """What was learned, for the operator: plain data with units in the names.

        ``timeout_ms``, ``delay_ms`` (median and 99.9 % of the replies, or None), ``turnaround_ms``, ``unreadable``
        (``registers`` as text and ``retry_s``); empty where a driver learns nothing.
        """

    async def close(self) -> None:
        """Release the bus; idempotent."""


class Message(NamedTuple):
    """An MQTT message that came in."""

    topic: str
    payload: bytes
    retained: bool


class Will(NamedTuple):
    """What the broker publishes when the connection dies."""

    topic: str
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UplinkSettings:
    """How to reach a broker."""

    host: str
    port: int
    client_id: str
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca: str | None = None
    """Path of PEM certificates to trust; None for the system's."""
    certificate: str | None = None
    """Path of the client's certificate, PEM."""
    key: str | None = None
    """Path of the client's key, PEM."""
    keep_alive_s: int = 60
    will: Will | None = None
    session_s: int = 0
    """How long the broker keeps subscriptions and queued messages after a disconnect; 0 begins clean every time."""
    mqtt5: bool = True
    """Try MQTT 5 first; False goes straight to 3.1.1, for a broker that does not answer MQTT 5 at all."""


class Uplink(Protocol):
    """One connection to a broker. Every method raises UplinkDownError once the connection is gone."""

    async def subscribe(self, topics: list[str]) -> None:
        """Subscribe at QoS 1; returns when the broker has granted it."""

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish; at QoS 1 returns when the broker has acknowledged."""

    def messages(self) -> AsyncIterator[Message]:
        """Messages as they come."""

    def wire_bytes(self) -> tuple[int, int]:
        """(sent, received) bytes on this connection: MQTT packets and TLS records, TCP/IP headers not included."""


class Database(Protocol):
    """The part of ``apsw.Connection`` that is used; kept small so that a test's VFS can stand beneath it."""

    def execute(self, statements: str, bindings: Any = None, /) -> Any:  # noqa: ANN401
        """Run statements; iterate the result for rows."""

    @property
    def in_transaction(self) -> bool:
        """A transaction is open."""

    def close(self, force: bool = False) -> None:  # noqa: FBT001, FBT002  as apsw has it
        """Close; idempotent."""


class Disk(Protocol):
    """Files beside the database. Every method blocks: call it through ``offload``. All raise OSError."""

    def reserve(self, path: str, size: int) -> None:
        """Make a file of ``size`` bytes whose blocks are taken; 0 deletes it. A failure leaves no file."""

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""

    def free(self, path: str) -> int:
        """Bytes that may still be written to the file system that ``path`` is, or would be, on."""

    def rename(self, path: str, to: str) -> None:
        """Rename a file, durably; ``to`` must not exist."""


class Offload(Protocol):
    """Runs blocking work off the loop."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Run ``function`` in a thread (or, in virtual time, inline with a seeded delay)."""


class OpenBus(Protocol):
    """Opens a byte transport to a bus."""

    def __call__(self, endpoint: Endpoint, protocol: Callable[[], asyncio.Protocol], /) -> Awaitable[asyncio.Transport]:
        """Connect ``protocol()`` to the endpoint, as ``loop.create_connection`` does.

        Raises:
            BusDownError: It can not be opened.
        """


class Listener(Protocol):
    """A port that is listened on."""

    @property
    def port(self) -> int:
        """Its number; where 0 was asked for the one that the system chose."""

    def close(self) -> None:
        """Take no further connections; those that are there stay. Idempotent."""


class ServeBus(Protocol):
    """Listens on a TCP port."""

    def __call__(self, host: str, port: int, protocol: Callable[[], asyncio.Protocol], /) -> Awaitable[Listener]:
        """Give each connection a ``protocol()``, as ``loop.create_server`` does.

        Raises:
            BusDownError: The port can not be had.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Clock, entropy, chance, threads, buses, uplinks and the disk."""

    now_ns: Callable[[], int]
    """Wall clock, nanoseconds since the Unix epoch."""
    clock_state: Callable[[], ClockState]
    """What is known of the wall clock; may be cached for some seconds."""
    boot_id: bytes
    """16 bytes; changes at every boot of the machine."""
    entropy: Callable[[int], bytes]
    """That many bytes from the system's generator; for keys, epochs and secrets."""
    random: random.Random
    """For jitter only."""
    offload: Offload
    open_bus: OpenBus
    connect_uplink: Callable[[UplinkSettings], AbstractAsyncContextManager[Uplink]]
    open_database: Callable[[str], Database]
    """Path → database, created if it is not there."""
    notify: Callable[[str], None]
    """Tell the service manager (sd_notify(3)); does nothing where there is none."""
    serve_bus: ServeBus | None = None
    """None: nothing is listened on."""
    think: Offload | None = None
    """Runs what takes long and touches no database, in a thread of its own that nothing waits for at the end; None:
    ``offload`` does it."""
    disk: Disk | None = None
    """Files beside the journal; None: there is no ballast, and a damaged journal stops the agent."""
