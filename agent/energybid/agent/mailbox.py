"""Messages of other parts that share the uplink's connection: what waits for a handler, and who hands it over.

The uplink's own reader never waits for a handler, and a handler's fault never reaches it: a market that is slow, or
floods a topic, costs messages of that topic and nothing else.
"""

import asyncio
import logging
from collections import Counter, deque
from typing import TYPE_CHECKING

from energybid.core.ports import Message

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

logger = logging.getLogger("energybid.uplink")

WAITING_MAX = 64
"""Messages of one topic that may wait; what comes beyond is dropped."""
PAYLOAD_MAX = 4097
"""Bytes of a payload that are kept: one more than a COSE message may have, so that what was longer is known as such."""


class Mailbox:
    """Takes the messages of some topics, and hands them to one handler, one after another, in their order."""

    def __init__(self, topics: "Sequence[str]", on_message: "Callable[[Message], Awaitable[None]]") -> None:
        """Begin empty.

        Args:
            topics: Whole topics, without wildcards.
            on_message: Is given every message; what it raises is logged, and forgotten.
        """
        self.topics = tuple(topics)
        self.dropped = 0
        """Messages that came while too many of their topic waited."""
        self._on_message = on_message
        self._waiting: deque[Message] = deque()
        self._of_topic: Counter[str] = Counter()
        self._came = asyncio.Event()

    def take(self, message: Message) -> None:
        """A message came in; returns at once."""
        if self._of_topic[message.topic] >= WAITING_MAX:
            if not self.dropped:
                logger.warning("%s: more messages come than are taken; some are dropped", message.topic)
            self.dropped += 1
            return
        self._of_topic[message.topic] += 1
        self._waiting.append(message._replace(payload=message.payload[:PAYLOAD_MAX]))
        self._came.set()

    async def run(self) -> None:
        """Hand over until cancelled."""
        while True:
            while self._waiting:
                message = self._waiting.popleft()
                self._of_topic[message.topic] -= 1
                await self._hand(message)
            self._came.clear()
            await self._came.wait()

    async def _hand(self, message: Message) -> None:
        try:
            await self._on_message(message)
        except Exception:
            logger.exception("a message on %s could not be handled", message.topic)
