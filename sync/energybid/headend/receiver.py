"""The head-end's task: takes batches from the broker, has them stored, publishes the receipts.

Everything of the outside world comes in through ``World``; the simulator's twin drives this very code in virtual time.
Decoding, verifying and storing run through ``offload``, so that the connection stays alive meanwhile.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from energybid.core.errors import UplinkDownError
from energybid.core.ports import Message, Offload, Uplink, UplinkSettings
from energybid.headend.ledger import Ledger, Outgoing
from energybid.sync.connection import keep_connected
from energybid.sync.topics import every

logger = logging.getLogger("energybid.headend")

RECONNECT_MAX_S = 60.0
TRANSACTION_MAX, TRANSACTION_BYTES_MAX = 64, 1 << 20
"""Most batches, and about the most bytes, that share one transaction."""
PUBLISH_MAX = 32
"""Receipts under way at once."""


class World(Protocol):
    """The part of ``Platform`` that is used here."""

    @property
    def random(self) -> random.Random:
        """For jitter only."""

    @property
    def offload(self) -> Offload:
        """Runs blocking work off the loop, one piece after another."""

    @property
    def connect_uplink(self) -> Callable[[UplinkSettings], AbstractAsyncContextManager[Uplink]]:
        """Connects to a broker."""

    @property
    def notify(self) -> Callable[[str], None]:
        """Tells the service manager."""


class Receiver:
    """Keeps one connection to the broker and serves it."""

    def __init__(self, world: World, settings: UplinkSettings, ledger: Ledger) -> None:
        """Serve ``ledger`` from the broker of ``settings``, whose ``session_s`` keeps batches while we are away."""
        self.connected = asyncio.Event()
        """Set while batches can come in."""
        self.batches = 0
        self._world = world
        self._settings = settings
        self._ledger = ledger
        self._queue: asyncio.Queue[Message] = asyncio.Queue(TRANSACTION_MAX)
        self._said: str | None = None

    async def run(self) -> None:
        """Serve until cancelled, over all connections.

        Raises:
            JournalError: The database failed: stop, and let the service manager start anew.
        """
        await keep_connected(
            lambda: self._world.connect_uplink(self._settings),
            self._connection,
            lambda error: self._say(f"{error}; trying again"),
            random=self._world.random,
            wait_max_s=RECONNECT_MAX_S,
        )

    async def _connection(self, uplink: Uplink) -> None:
        self._queue = asyncio.Queue(TRANSACTION_MAX)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._take(uplink))
                tasks.create_task(self._serve(uplink))
        finally:
            self.connected.clear()

    async def _take(self, uplink: Uplink) -> None:
        await uplink.subscribe([every("log")])
        self._say("")
        logger.info("connected to %s:%d", self._settings.host, self._settings.port)
        self.connected.set()
        async for message in uplink.messages():
            await self._queue.put(message)
        raise UplinkDownError("the broker closed the connection")

    async def _serve(self, uplink: Uplink) -> None:
        await self._publish(uplink, await self._world.offload(self._ledger.greetings))
        while True:
            messages = await self._next()
            self.batches += len(messages)
            await self._publish(uplink, await self._world.offload(self._ledger.process, messages))

    async def _next(self) -> list[Message]:
        """The next message, and those that came with it."""
        messages = [await self._queue.get()]
        size = len(messages[0].payload)
        while len(messages) < TRANSACTION_MAX and size < TRANSACTION_BYTES_MAX and not self._queue.empty():
            messages.append(self._queue.get_nowait())
            size += len(messages[-1].payload)
        return messages

    @staticmethod
    async def _publish(uplink: Uplink, receipts: list[Outgoing]) -> None:
        for at in range(0, len(receipts), PUBLISH_MAX):
            some = receipts[at : at + PUBLISH_MAX]
            await asyncio.gather(*(uplink.publish(r.topic, r.payload, retain=r.retain) for r in some))

    def _say(self, text: str) -> None:
        """Tell operator and service manager, each thing once."""
        if text != self._said:
            self._said = text
            self._world.notify(f"STATUS={text or 'connected'}")
            if text:
                logger.warning("%s", text)
