"""The uplink over MQTT: aiomqtt couples paho to the event loop, this module makes it keep the port's promises.

What aiomqtt and paho leave open, and what is done about it here:

* A lost connection wakes nobody who waits for an acknowledgement: every waiter is a future that the loss fails.
* A broker's refusal in PUBACK is dropped: it is raised.
* Incoming messages are acknowledged as they arrive, into a queue without end: here when the consumer takes them, so
  that the broker's own flow control (Receive Maximum, MQTT 5.0 §3.3.4) bounds the queue and nothing is thrown away.
* Every packet costs a wake-up of the loop and two changes to its selector: packets are written once per loop turn, and
  the socket is watched for writing only while the kernel's buffer is full.
* paho's clock is looked at every second: here eight times in one keep-alive interval.
* A connection is made in a thread of the loop's executor, whose end the program's end waits for: here in a thread that
  can be left alone, so that a stop takes no longer because a broker does not answer.
* A connection that is closed before it is accepted is waited for until the time-out: it fails at once.
* paho sends its whole queue again at reconnect: one client object serves one connection; the window is the caller's.

Sessions: a gateway begins clean (``session_s`` = 0), since its journal is the queue and a receipt is retained: nothing
that waits in the broker could be newer. The head-end asks for a session, so that batches sent while it is away wait.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import aiomqtt
from aiomqtt.exceptions import MqttConnectError
from paho.mqtt import client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from energybid.core.errors import UplinkDownError, UplinkRefusedError
from energybid.core.ports import Message, UplinkSettings

CONNECT_S = 4.0
"""For the TCP connection, for the TLS handshake, and again for the broker's CONNACK."""
ACK_S = 30.0
"""A broker that has not acknowledged by then is taken for gone."""
CLOSE_S = 1.0
PACKET_MAX = 512 * 1024
"""Largest MQTT packet accepted or sent, bytes. MQTT 3.1.1 can not tell the broker: its own limit holds there."""
TOPIC_MAX = 256
RECEIVE_MAX = 64
"""Messages the broker may have under way to us (MQTT 5.0 §3.1.2.11.3)."""
INBOX_MAX, INBOX_BYTES_MAX = 4096, 32 << 20
"""Bounds of the queue where the broker knows no Receive Maximum (3.1.1); beyond them the connection is given up, and
the broker sends again what was not acknowledged."""
UNSUPPORTED_VERSION = 132
REFUSALS = frozenset({UNSUPPORTED_VERSION, 133, 134, 135, 138, 140})
"""Reason codes (MQTT 5.0 §3.2.2.2) that the operator must settle: client id, credentials, authorisation, ban."""
_OLD: set[tuple[str, int]] = set()
"""Brokers that refused version 5 in this process."""
_quiet = logging.getLogger("energybid.sync.paho")
_quiet.setLevel(logging.CRITICAL)  # paho logs what is raised here as well


def _properties(settings: UplinkSettings) -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = PACKET_MAX
    properties.ReceiveMaximum = RECEIVE_MAX
    properties.SessionExpiryInterval = settings.session_s
    return properties


class _UnansweredError(aiomqtt.MqttError):
    """The connection was made, and the broker did not answer CONNECT."""


class _Dial:
    """A connection in the making, in a thread that nobody has to wait for."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._host, self._port, self._context = host, port, context
        self._lock = threading.Lock()
        self._given_up = False
        self._socket: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def connection(self) -> socket.socket:
        """The connection.

        Raises:
            aiomqtt.MqttError: It can not be made.
        """
        threading.Thread(target=self._run, daemon=True, name="mqtt-connect").start()
        try:
            await self._ended
        except (OSError, ValueError) as error:  # a name that can be no host's is a ValueError
            raise aiomqtt.MqttError(str(error)) from None
        except asyncio.CancelledError:
            with self._lock:
                self._given_up = True
                if self._socket is not None:
                    self._socket.close()
            raise
        assert self._socket is not None  # noqa: S101  for mypy
        return self._socket

    def _run(self) -> None:
        made: socket.socket | None = None
        failed: Exception | None = None
        try:
            made = self._made()
        except Exception as error:  # noqa: BLE001  whatever it is, who waits must hear of it
            failed = error
        with self._lock:
            self._socket = made
            if self._given_up and made is not None:
                made.close()
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program has ended
            self._loop.call_soon_threadsafe(self._tell, failed)

    def _made(self) -> socket.socket:
        plain = socket.create_connection((self._host, self._port), CONNECT_S)
        try:
            return self._context.wrap_socket(plain, server_hostname=self._host) if self._context else plain
        except BaseException:
            plain.close()
            raise

    def _tell(self, failed: Exception | None) -> None:
        if self._ended.done():
            return
        if failed is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failed)


def _tls_context(settings: UplinkSettings) -> ssl.SSLContext:
    """Read the files anew at every connection, so that a renewed certificate needs no restart."""
    context = ssl.create_default_context(cafile=settings.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.certificate is not None:
        context.load_cert_chain(settings.certificate, settings.key)
    return context


class _Client(aiomqtt.Client):
    """aiomqtt's connection, with its callbacks replaced where the module's docstring says so."""

    def __init__(self, settings: UplinkSettings, *, version5: bool, context: ssl.SSLContext | None) -> None:
        will = settings.will
        super().__init__(
            settings.host,
            settings.port,
            username=settings.username,
            password=settings.password,
            identifier=settings.client_id,
            logger=_quiet,
            protocol=aiomqtt.ProtocolVersion.V5 if version5 else aiomqtt.ProtocolVersion.V311,
            will=aiomqtt.Will(will.topic, will.payload, qos=1, retain=True) if will else None,
            clean_session=None if version5 else settings.session_s == 0,
            clean_start=settings.session_s == 0 if version5 else paho.MQTT_CLEAN_START_FIRST_ONLY,
            properties=_properties(settings) if version5 else None,
            keepalive=settings.keep_alive_s,
            timeout=CONNECT_S,
            tls_context=context,
            socket_options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),),
        )
        self.paho = self._client
        self.paho.connect_timeout = CONNECT_S
        self.paho.manual_ack_set(True)  # noqa: FBT003  as paho has it
        self.inbox: asyncio.Queue[paho.MQTTMessage | None] = asyncio.Queue()
        self._inbox_bytes = 0
        self.waiters: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self.reason: str | None = None
        """Why the connection is gone."""
        self.reached = False
        """There was a connection."""
        self._watched = False
        self.wire = (0, 0)
        self._disconnected.add_done_callback(self._failed)

    # -------------------------------------------------- callbacks, named by aiomqtt

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:  # noqa: ANN401, ARG002
        self._inbox_bytes += len(message.payload)
        if self.inbox.qsize() >= INBOX_MAX or self._inbox_bytes > INBOX_BYTES_MAX:
            self.drop("more messages came than were taken")
        elif self.reason is None:
            self.inbox.put_nowait(message)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:  # noqa: ANN401, ARG002
        self._answer(mid, [reason_code])

    def _on_subscribe(
        self,
        client: Any,  # noqa: ANN401, ARG002
        userdata: Any,  # noqa: ANN401, ARG002
        mid: int,
        reason_codes: list[ReasonCode],
        properties: Any = None,  # noqa: ANN401, ARG002
    ) -> None:
        self._answer(mid, reason_codes)

    def _on_disconnect(
        self,
        client: Any,  # noqa: ANN401
        userdata: Any,  # noqa: ANN401
        flags: Any,  # noqa: ANN401
        reason_code: ReasonCode,
        properties: Any = None,  # noqa: ANN401
    ) -> None:
        self._gone(f"the connection was closed ({reason_code})")
        super()._on_disconnect(client, userdata, flags, reason_code, properties)

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401
        self.reached = True
        if self.reason is None:  # else nobody wants it any more, and the loop may be about to close
            super()._on_socket_open(client, userdata, sock)

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401
        self.wire = _count(sock) or self.wire
        if not self._loop.is_closed():
            super()._on_socket_close(client, userdata, sock)

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401, ARG002
        self._loop.call_soon(self._flush)

    def _on_socket_unregister_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ANN401, ARG002
        if self._watched:
            self._watched = False
            self._loop.remove_writer(sock.fileno())

    async def _misc_loop(self) -> None:
        """Keep alive: eight looks in one interval are enough, where aiomqtt wakes an idle gateway every second."""
        while self.paho.loop_misc() == MQTTErrorCode.MQTT_ERR_SUCCESS:  # noqa: ASYNC110  paho has no event for it
            await asyncio.sleep(self._keepalive / 8)

    # -------------------------------------------------- ours

    async def enter(self, dial: _Dial) -> None:
        """Speak MQTT on a connection as soon as it is made.

        Raises:
            aiomqtt.MqttError: It can not be made, or the broker does not want it.
        """
        made = await dial.connection()
        self.paho._create_socket = lambda: made  # type: ignore[method-assign]  # noqa: SLF001
        try:
            super()._client_connect()  # here, and not in a thread: nothing in it has to wait any more
        except OSError as error:
            made.close()
            raise aiomqtt.MqttError(str(error)) from None
        await self.__aenter__()

    def _client_connect(self) -> None:
        """What aiomqtt asks a thread for: it is done."""

    def abandon(self) -> None:
        """Nobody wants the connection any more: close it now, the loop may have no turn left."""
        self.drop("the connection is not wanted any more")
        if self.paho.socket() is not None:
            self.paho.loop_read()

    def _flush(self) -> None:
        self.paho.loop_write()
        sock = self.paho.socket()
        if self.paho.want_write() and sock is not None and not self._watched:
            self._watched = True
            self._loop.add_writer(sock.fileno(), self._flush)

    def _answer(self, mid: int, codes: list[ReasonCode]) -> None:
        waiter = self.waiters.pop(mid, None)
        if waiter is not None and not waiter.done():
            waiter.set_result(codes)

    def _gone(self, reason: str) -> None:
        if self.reason is not None:
            return
        self.reason = reason
        self.inbox.put_nowait(None)
        if not self._connected.done():
            self._connected.set_exception(aiomqtt.MqttError(reason))
            self._connected.exception()  # nobody is left to look at it when the opening was cancelled
        for waiter in self.waiters.values():
            if not waiter.done():
                waiter.set_exception(UplinkDownError(reason))
        self.waiters.clear()

    def _failed(self, disconnected: asyncio.Future[None]) -> None:
        """Bytes that are no MQTT end here: aiomqtt catches what paho raises and closes nothing."""
        error = None if disconnected.cancelled() else disconnected.exception()
        if error is not None:
            self.drop(f"the connection failed: {error}")

    def taken(self, message: paho.MQTTMessage) -> None:
        """The consumer has it: tell the broker."""
        self._inbox_bytes -= len(message.payload)
        if message.qos and self.reason is None:
            self.paho.ack(message.mid, message.qos)

    def drop(self, reason: str) -> None:
        """Cut the connection without ceremony; paho sees its end at the loop's next turn and cleans up."""
        self._gone(reason)
        sock = self.paho.socket()
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _count(sock: object) -> tuple[int, int] | None:
    """(sent, received) bytes by the kernel's own count (struct tcp_info in linux/tcp.h, since Linux 4.19)."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)  # type: ignore[attr-defined]
        (received,), (sent, again) = struct.unpack_from("=Q", info, 128), struct.unpack_from("=QQ", info, 200)
    except (OSError, AttributeError, struct.error):
        return None
    return sent - again, received


class MqttUplink:
    """Implements the Uplink port on one connection."""

    def __init__(self, client: _Client, where: str) -> None:
        """Wrap a client that is connected."""
        self._client = client
        self._where = where

    def _down(self, why: str) -> NoReturn:
        raise UplinkDownError(f"{self._where}: {why}")

    def _alive(self) -> None:
        if self._client.reason is not None:
            self._down(self._client.reason)

    async def _acknowledged(self, mid: int | None, what: str) -> list[ReasonCode]:
        if mid is None:
            self._down(f"{what} could not be sent")
        waiter: asyncio.Future[list[ReasonCode]] = asyncio.get_running_loop().create_future()
        self._client.waiters[mid] = waiter
        timer = asyncio.get_running_loop().call_later(ACK_S, self._client.drop, f"no acknowledgement in {ACK_S:g} s")
        try:
            codes = await waiter
        except UplinkDownError as error:
            self._down(str(error))
        finally:
            timer.cancel()
            self._client.waiters.pop(mid, None)
        for code in codes:
            if code.is_failure:
                raise UplinkRefusedError(f"{self._where}: the broker refused {what}: {code}")
        return codes

    async def subscribe(self, topics: list[str]) -> None:
        """Subscribe at QoS 1; returns when the broker has granted it."""
        self._alive()
        _, mid = self._client.paho.subscribe([(topic, 1) for topic in topics])
        codes = await self._acknowledged(mid, f"to subscribe to {', '.join(topics)}")
        if any(code.value != 1 for code in codes):
            raise UplinkRefusedError(f"{self._where}: the broker grants no QoS 1 on {', '.join(topics)}")

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish; at QoS 1 returns when the broker has acknowledged."""
        if len(payload) > PACKET_MAX - TOPIC_MAX - 16 or len(topic) > TOPIC_MAX:
            raise ValueError(f"an MQTT packet has at most {PACKET_MAX} bytes")
        self._alive()
        info = self._client.paho.publish(topic, payload, qos, retain)
        if qos:
            sent = info.rc is MQTTErrorCode.MQTT_ERR_SUCCESS
            await self._acknowledged(info.mid if sent else None, f"to publish on {topic}")

    async def messages(self) -> AsyncIterator[Message]:
        """Messages as they come. Those that came before the connection was lost are given out first."""
        inbox = self._client.inbox
        while True:
            message = await inbox.get()
            if message is None:
                inbox.put_nowait(None)  # for whoever asks next
                self._down(self._client.reason or "")
            self._client.taken(message)
            yield Message(message.topic, bytes(message.payload), bool(message.retain))

    def wire_bytes(self) -> tuple[int, int]:
        """(sent, received) bytes on this connection, TLS records included, TCP/IP headers not."""
        self._client.wire = _count(self._client.paho.socket()) or self._client.wire
        return self._client.wire


def _code(error: BaseException) -> int | None:
    return error.rc.value if isinstance(error, aiomqtt.MqttCodeError) and isinstance(error.rc, ReasonCode) else None


def _raise(error: aiomqtt.MqttError, where: str) -> NoReturn:
    refused = _code(error) in REFUSALS or isinstance(error.__context__, ssl.SSLCertVerificationError)
    raise (UplinkRefusedError if refused else UplinkDownError)(f"{where}: {error}") from None


async def _open(settings: UplinkSettings, *, version5: bool) -> _Client:
    """Connect, or leave nothing behind."""
    context = None
    if settings.tls:
        try:
            context = await asyncio.to_thread(_tls_context, settings)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(filter(None, (settings.ca, settings.certificate, settings.key)))
            raise UplinkRefusedError(f"can not read the certificates {files or 'of the system'}: {error}") from None
    client = _Client(settings, version5=version5, context=context)
    try:
        await client.enter(_Dial(settings.host, settings.port, context))
    except BaseException as error:
        client.abandon()
        if client.reached and isinstance(error, aiomqtt.MqttError) and not isinstance(error, MqttConnectError):
            raise _UnansweredError(f"the broker did not answer ({error})") from None
        raise
    return client


async def _connect(settings: UplinkSettings, where: str) -> _Client:
    """Connect by version 5, else 3.1.1: some brokers refuse version 5, some take its properties amiss and wait."""
    broker = settings.host, settings.port
    try:
        if not settings.mqtt5 or broker in _OLD:
            return await _open(settings, version5=False)
        try:
            return await _open(settings, version5=True)
        except aiomqtt.MqttError as error:
            if not isinstance(error, _UnansweredError) and _code(error) != UNSUPPORTED_VERSION:
                raise
        client = await _open(settings, version5=False)
    except aiomqtt.MqttError as error:
        _raise(error, where)
    _OLD.add(broker)
    return client


@contextlib.asynccontextmanager
async def connect_uplink(settings: UplinkSettings) -> AsyncIterator[MqttUplink]:
    """Connect to a broker; leaving the context disconnects, so that no last will is published.

    Raises:
        UplinkDownError: It can not be reached, or closed the connection.
        UplinkRefusedError: It refused the credentials, or its certificate is not trusted.
    """
    where = f"{'mqtts' if settings.tls else 'mqtt'}://{settings.host}:{settings.port}"
    client = await _connect(settings, where)
    try:
        yield MqttUplink(client, where)
    finally:
        await _close(client)


async def _close(client: _Client) -> None:
    if client.reason is not None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await client.__aexit__(None, None, None)
    except (TimeoutError, aiomqtt.MqttError):
        client.drop("it did not close in time")
