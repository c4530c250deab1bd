"""The market's tasks: one does what is due and judges what comes, the other keeps the connection to the broker.

Everything of the outside world comes in through ``World``; in virtual time the simulator drives this very code. Without
the broker rounds go on: bids that do not come in time do not count, awards that can not be sent in time are dropped.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Protocol

from energybid.core.errors import UplinkDownError
from energybid.core.ports import Message, Offload, Uplink, UplinkSettings
from energybid.simulator.market.operator import Event, Operator
from energybid.simulator.market.store import Letter, Store
from energybid.sync.connection import keep_connected
from energybid.sync.topics import every

logger = logging.getLogger("energybid.market")

RECONNECT_MAX_S = 30.0
LOOK_S = 5.0
"""A wall clock that may be set is looked at so often."""
QUEUE_MAX, AT_ONCE = 32_768, 256
"""Messages that wait; messages judged in one go, so that a gate is not missed for them."""
PUBLISH_MAX = 64
"""Messages under way at once."""


class World(Protocol):
    """The part of ``Platform`` that is used here."""

    @property
    def now_ns(self) -> Callable[[], int]:
        """Wall clock, nanoseconds since the Unix epoch."""

    @property
    def random(self) -> random.Random:
        """For jitter only."""

    @property
    def offload(self) -> Offload:
        """Runs blocking work off the loop, one piece after another."""

    @property
    def connect_uplink(self) -> Callable[[UplinkSettings], AbstractAsyncContextManager[Uplink]]:
        """Connects to a broker."""


class Service:
    """Runs a market until it is cancelled."""

    def __init__(
        self, world: World, settings: UplinkSettings, operator: Operator, store: Store, *, look_s: float = LOOK_S
    ) -> None:
        """Serve ``operator``, whose store is ``store``, from the broker of ``settings``.

        Args:
            world: Clock, chance, thread and broker.
            settings: Of the connection.
            operator: The market.
            store: Its database.
            look_s: The wall clock is looked at so often at least.
        """
        self.on_event: Callable[[Event], None] = lambda _: None
        """Told of everything that happens."""
        self.connected = asyncio.Event()
        """Set while messages can come in."""
        self._world, self._settings, self._operator, self._store = world, settings, operator, store
        self._queue: asyncio.Queue[tuple[Message, int]] = asyncio.Queue(QUEUE_MAX)
        self._came = asyncio.Event()
        self._letters = asyncio.Event()
        self._said = ""
        self._look_s = look_s

    def _now_ms(self) -> int:
        return self._world.now_ns() // 1_000_000

    async def run(self) -> None:
        """Serve until cancelled, over all connections.

        Raises:
            JournalError: The database failed: stop, and start anew.
        """
        operating, connecting = asyncio.ensure_future(self._operate()), asyncio.ensure_future(self._connect())
        try:
            await asyncio.wait({operating, connecting}, return_when=asyncio.FIRST_COMPLETED)
            for task in (operating, connecting):
                if task.done():
                    task.result()
        finally:
            for task in (operating, connecting):
                task.cancel()
            await asyncio.gather(operating, connecting, return_exceptions=True)

    # ------------------------------------------------------------ the market

    async def _operate(self) -> None:
        while True:
            messages = self._waiting()
            events = await self._world.offload(self._work, messages)
            if events:
                self._letters.set()
            for event in events:
                self.on_event(event)
            await self._pause()

    def _waiting(self) -> list[tuple[Message, int]]:
        messages: list[tuple[Message, int]] = []
        while len(messages) < AT_ONCE and not self._queue.empty():
            messages.append(self._queue.get_nowait())
        return messages

    def _work(self, messages: Sequence[tuple[Message, int]]) -> list[Event]:
        events = self._operator.take(messages) if messages else []
        return events if len(messages) == AT_ONCE else events + self._operator.advance(self._now_ms())

    async def _pause(self) -> None:
        """Until a message comes or something is due."""
        now_ms = self._now_ms()
        due_ms = await self._world.offload(self._operator.next_ms, now_ms)
        self._came.clear()
        if not self._queue.empty():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(min(self._look_s, max(0.001, (due_ms - now_ms) / 1000))):
                await self._came.wait()

    # ------------------------------------------------------------ the connection

    async def _connect(self) -> None:
        await keep_connected(
            lambda: self._world.connect_uplink(self._settings),
            self._connection,
            lambda error: self._say(f"{error}; trying again"),
            random=self._world.random,
            wait_max_s=RECONNECT_MAX_S,
        )

    async def _connection(self, uplink: Uplink) -> None:
        await self._world.offload(self._store.resend)
        self._letters.set()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._take(uplink))
                tasks.create_task(self._send(uplink))
        finally:
            self.connected.clear()

    async def _take(self, uplink: Uplink) -> None:
        tenants = sorted({origin.partition("/")[0] for origin in self._operator.members})
        await uplink.subscribe([every(kind, tenant) for tenant in tenants for kind in ("bid", "dispatch")])
        self._say(f"connected to {self._settings.host}:{self._settings.port}")
        self.connected.set()
        async for message in uplink.messages():
            await self._queue.put((message, self._now_ms()))
            self._came.set()
        raise UplinkDownError("the broker closed the connection")

    async def _send(self, uplink: Uplink) -> None:
        while True:
            self._letters.clear()
            letters = await self._world.offload(self._store.letters, self._now_ms())
            for at in range(0, len(letters), PUBLISH_MAX):
                await self._publish(uplink, letters[at : at + PUBLISH_MAX])
            if not letters:
                await self._letters.wait()

    async def _publish(self, uplink: Uplink, letters: list[Letter]) -> None:
        await asyncio.gather(*(uplink.publish(each.topic, each.payload, retain=each.retain) for each in letters))
        await self._world.offload(self._store.sent, letters, self._now_ms())

    def _say(self, text: str) -> None:
        """Tell the operator, each thing once."""
        if text != self._said:
            self._said = text
            logger.info("%s", text)
