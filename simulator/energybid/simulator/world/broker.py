"""An MQTT broker in memory, behind the Uplink port: sessions, QoS 1 queues, retained messages, wills, and their faults.

What the real one does at packet level is below the port and tested elsewhere; here is what its users can notice: lost
connections before or after a message was taken, queues that are lost, delivered twice, or out of order after a
reconnect (the MQTT specification promises order only within a session, and brokers differ after a restart).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from random import Random
from typing import NoReturn

from energybid.core.errors import UplinkDownError
from energybid.core.ports import Message, UplinkSettings, Will
from energybid.simulator.virtual import LIFE

QUEUE_MAX = 1000
"""Messages that wait for a client that is away; as mosquitto's max_queued_messages."""
DELAY_S = 0.002, 0.02
CONNECT_S = 0.01, 0.05

Seen = Callable[[str, str, bytes], None]
"""(client, topic, payload)."""


@dataclass
class _Session:
    """What the broker knows of a client."""

    topics: list[str] = field(default_factory=list)
    queue: deque[Message] = field(default_factory=deque)
    """For a client that is away."""
    link: "Link | None" = None
    keeps: bool = False
    will: Will | None = None


class Link:
    """One client's connection. Implements ``Uplink``."""

    def __init__(self, broker: "Broker", client: str) -> None:
        """Connect; the broker makes these."""
        self.client = client
        self.inbox: asyncio.Queue[Message | None] = asyncio.Queue()
        self.unacknowledged: deque[Message] = deque()
        """Arrived here, and nobody has taken them yet."""
        self.arrives_s = 0.0
        self.reason = ""
        self._broker = broker
        self._bytes = [0, 0]

    def _down(self) -> NoReturn:
        raise UplinkDownError(self.reason)

    async def subscribe(self, topics: list[str]) -> None:
        """Subscribe; retained messages follow."""
        await self._under_way()
        self._broker.subscribed(self, topics)
        await self._under_way()

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Publish; the broker may have it although this fails."""
        await self._under_way()
        self._bytes[0] += len(payload)
        self._broker.take(self.client, topic, payload, retain=retain)
        if qos:
            await self._under_way()

    async def _under_way(self) -> None:
        if self.reason:
            self._down()
        await asyncio.sleep(self._broker.delay_s())
        if self.reason:
            self._down()

    async def messages(self) -> AsyncIterator[Message]:
        """Messages as they come; those that came before the connection was lost are given out first."""
        while (message := await self.inbox.get()) is not None:
            self._bytes[1] += len(message.payload)
            if self.unacknowledged:
                self.unacknowledged.popleft()
            yield message
        self.inbox.put_nowait(None)
        self._down()

    def wire_bytes(self) -> tuple[int, int]:
        """(sent, received), payloads only."""
        return self._bytes[0], self._bytes[1]

    def lose(self, reason: str) -> None:
        """The connection is gone."""
        if not self.reason:
            self.reason = reason
            self._broker.on_lost(self.client)
            self.inbox.put_nowait(None)


class Broker:
    """The broker."""

    def __init__(self, chance: Random, published: Seen, delivered: Seen) -> None:
        """Begin empty.

        Args:
            chance: For delays and faults.
            published: Told of every message the broker takes.
            delivered: Told of every message that a client is given.
        """
        self.duplicate_rate = 0.0
        self.drop_rate = 0.0
        """Share of messages after which the sender's connection is lost."""
        self.down_until_s = 0.0
        self.connections = self.duplicated = self.dropped = 0
        self.on_lost: Callable[[str], None] = lambda _client: None
        """Told of every client whose connection is gone."""
        self.swallows: Callable[[str, str, bytes], bool] = lambda _client, _topic, _payload: False
        """Whether a message that was taken is given to nobody."""
        self._refused_until_s: dict[str, float] = {}
        self._chance = chance
        self._published = published
        self._delivered = delivered
        self._sessions: dict[str, _Session] = {}
        self._retained: dict[str, bytes] = {}
        self._outside = copy_context()
        self._loop = asyncio.get_running_loop()

    def delay_s(self) -> float:
        """How long the next packet is under way."""
        low, high = DELAY_S
        return low + (high - low) * self._chance.random()

    # ------------------------------------------------------------ connections

    @asynccontextmanager
    async def connect(self, settings: UplinkSettings) -> AsyncIterator[Link]:
        """Implements ``Platform.connect_uplink``.

        Raises:
            UplinkDownError: The broker is not there.
        """
        low, high = CONNECT_S
        await asyncio.sleep(low + (high - low) * self._chance.random())
        if self._loop.time() < max(self.down_until_s, self._refused_until_s.get(settings.client_id, 0.0)):
            raise UplinkDownError("connection refused")
        link = self._connected(settings)
        life = LIFE.get()
        if life is not None:
            life.ends[link] = lambda: self.cut(link, "the process is gone")
        try:
            yield link
        finally:
            if life is not None:
                life.ends.pop(link, None)
            self._disconnected(link)

    def _connected(self, settings: UplinkSettings) -> Link:
        self.connections += 1
        client = settings.client_id
        session = self._sessions.get(client)
        if session is not None and session.link is not None:
            session.link.lose("taken over by another connection")
        if session is None or not settings.session_s:
            session = self._sessions[client] = _Session()
        session.keeps, session.will = bool(settings.session_s), settings.will
        link = session.link = Link(self, client)
        while session.queue:
            self._give(link, session.queue.popleft())
        return link

    def _disconnected(self, link: Link) -> None:
        link.lose("closed")
        session = self._sessions.get(link.client)
        if session is not None and session.link is link:
            session.link = None
            if session.keeps:
                session.queue.extend(link.unacknowledged)
            else:
                del self._sessions[link.client]
        link.unacknowledged.clear()

    def cut(self, link: Link, reason: str) -> None:
        """Lose a connection without its goodbye: the will is published."""
        link.lose(reason)
        session = self._sessions.get(link.client)
        will = session.will if session is not None and session.link is link else None
        self._disconnected(link)
        if will is not None:
            self._outside.run(self.take, "broker", will.topic, will.payload, retain=True)

    def refuse(self, client: str, seconds: float) -> None:
        """One client loses its connection, and gets none for a time."""
        self._refused_until_s[client] = self._loop.time() + seconds
        session = self._sessions.get(client)
        if session is not None and session.link is not None:
            self.cut(session.link, "the network is gone")

    def refuse_nobody(self) -> None:
        """Every client may connect."""
        self._refused_until_s.clear()

    def cut_all(self, reason: str) -> None:
        """Lose every connection."""
        for link in [session.link for session in self._sessions.values() if session.link is not None]:
            self.cut(link, reason)

    def stop(self, seconds: float, *, forget: bool) -> None:
        """Go away for a time; ``forget``: without a memory of sessions, queues and retained messages."""
        self.down_until_s = max(self.down_until_s, self._loop.time() + seconds)
        self.cut_all("the broker went away")
        if forget:
            self._sessions.clear()
            self._retained.clear()

    def shuffle(self) -> None:
        """What waits for clients that are away will come in another order."""
        for session in self._sessions.values():
            waiting = sorted(session.queue, key=lambda _: self._chance.random())
            session.queue = deque(waiting)

    # ------------------------------------------------------------ messages

    def subscribed(self, link: Link, topics: list[str]) -> None:
        """A client subscribes."""
        session = self._sessions[link.client]
        session.topics = [*session.topics, *(topic for topic in topics if topic not in session.topics)]
        for topic, payload in self._retained.items():
            if any(matches(wanted, topic) for wanted in topics):
                self._give(link, Message(topic, payload, retained=True))

    def take(self, client: str, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """A message came in."""
        self._published(client, topic, payload)
        if self.swallows(client, topic, payload):
            return
        if retain:
            self._retained[topic] = payload
        for session in self._sessions.values():
            if any(matches(wanted, topic) for wanted in session.topics):
                self._hand(session, Message(topic, payload, retained=False))
        if self.drop_rate and self._chance.random() < self.drop_rate:
            self.dropped += 1
            session = self._sessions.get(client, _Session())
            if session.link is not None:
                self.cut(session.link, "reset by peer")

    def _hand(self, session: _Session, message: Message) -> None:
        times = 2 if self.duplicate_rate and self._chance.random() < self.duplicate_rate else 1
        self.duplicated += times - 1
        for _ in range(times):
            if session.link is not None:
                self._give(session.link, message)
            elif session.keeps and len(session.queue) < QUEUE_MAX:
                session.queue.append(message)

    def _give(self, link: Link, message: Message) -> None:
        link.arrives_s = max(link.arrives_s, self._loop.time() + self.delay_s())
        self._loop.call_at(link.arrives_s, self._arrive, link, message, context=self._outside)

    def _arrive(self, link: Link, message: Message) -> None:
        if not link.reason:
            self._delivered(link.client, message.topic, message.payload)
            link.unacknowledged.append(message)
            link.inbox.put_nowait(message)
            return
        session = self._sessions.get(link.client)  # lost on the way: it comes again
        if session is not None and session.keeps:
            self._hand(session, message)


def matches(wanted: str, topic: str) -> bool:
    """Whether a subscription covers a topic; ``+`` stands for one level (MQTT 5 §4.7)."""
    if "+" not in wanted:
        return wanted == topic
    ours, theirs = wanted.split("/"), topic.split("/")
    return len(ours) == len(theirs) and all(a in {"+", b} for a, b in zip(ours, theirs, strict=True))
