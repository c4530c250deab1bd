"""Where masters' requests wait for the bus: answered from the cache, refused, or asked one at a time.

Whoever shares the bus says when: ``Turns`` gives the time that polls leave. No sockets here; ``doors`` has them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from energybid.core.errors import BusDownError, GarbledError, NoReplyError
from energybid.drivers.modbus.proxy.cache import Cache
from energybid.drivers.modbus.proxy.rules import (
    BUSY,
    NO_PATH,
    NO_REPLY,
    TABLES,
    Wanted,
    may_write,
    refusal,
    wanted,
)
from energybid.drivers.modbus.relay import RelayAsked

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.drivers.modbus.exchange import Exchange
    from energybid.drivers.modbus.proxy.plan import ProxyPlan

PER_CLIENT = 4
"""Most requests of one master that wait."""
PATIENCE = 0.6
"""Part of its time that a request waits for what polls leave, before it makes them wait."""
SILENCE_S = 3.0
"""Time that a unit may waste by silence at once; it comes back as the proxy's share of time passes."""


class Relay(Protocol):
    """What asks: a driver (``ModbusDriver`` has the words)."""

    async def relay(self, unit: int, pdu: bytes, timeout_s: float) -> bytes:
        """Ask once."""

    def relay_s(self, unit: int, pdu: bytes, timeout_s: float) -> float:
        """How long that will need the bus."""


class Turns(Protocol):
    """What gives the bus to others than polls; whoever it is calls ``Desk.look`` when there is more to give."""

    def slack_s(self) -> float:
        """How long nothing else needs the bus."""

    @property
    def owed_at(self) -> float:
        """Loop time from which on a request may be made that polls have to wait for."""

    def took(self, took_s: float) -> None:
        """Polls had to wait so long."""


@dataclass(eq=False, slots=True)
class Client:
    """A master."""

    name: str
    tokens: float
    """Requests that it may make now."""
    filled_at: float
    requests: int = 0
    waiting: deque[Waiting] = field(default_factory=deque)
    """Its requests that wait for the bus, in their order."""


@dataclass(eq=False, slots=True)
class Waiting:
    """A request that waits, or is being asked."""

    client: Client
    unit: int
    pdu: bytes
    wish: Wanted
    since_s: float
    """Loop time at which it came."""
    answer: Callable[[bytes], None] | None
    """Takes the reply's PDU; None once it is answered or nobody waits for it any more."""
    asked: bool = False
    timer: asyncio.TimerHandle | None = None

    def settle(self, pdu: bytes) -> bool:
        """Answer, if nothing has been answered yet."""
        answer = self.answer
        self.drop()
        if answer is not None:
            answer(pdu)
        return answer is not None

    def drop(self) -> None:
        """Nobody waits for it any more."""
        self.answer = None
        if self.timer is not None:
            self.timer.cancel()


class Desk:
    """The requests of all masters of one proxy."""

    def __init__(self, plan: ProxyPlan, relay: Relay, turns: Turns) -> None:
        """Ask through ``relay`` when ``turns`` allows it."""
        self.plan = plan
        self.counts: Counter[str] = Counter()
        """``requests``, ``cached``, ``asked``, and each kind of refusal by name."""
        self.clients: dict[Client, None] = {}
        self._cache = Cache(plan.max_age_s)
        self._relay = relay
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._units = dict(plan.renamed)
        self._queue: deque[Client] = deque()
        """Masters with requests that wait; the first is next."""
        self._length = 0
        self._current: Waiting | None = None
        """Waits for its turn, or is being asked."""
        self._some = asyncio.Event()
        self._silences: dict[int, float] = {}
        """Unit → when all time that it wasted will have come back."""

    def overheard(self, exchange: Exchange) -> None:
        """An exchange on the bus is over: what was read answers masters too."""
        for asked, outcome in zip(exchange.asked, exchange.outcomes, strict=True):
            if asked.function > 4:  # noqa: PLR2004  all but reads
                self._cache.written(asked.unit, self._loop.time())
            elif isinstance(outcome, bytes):
                wish = Wanted(asked.function, asked.request.first, asked.request.count)
                data = outcome[2:] if isinstance(asked, RelayAsked) else outcome
                self._cache.put(asked.unit, wish, data, exchange.sent_at)

    # ------------------------------------------------------------ masters

    def join(self, name: str) -> Client:
        """A master came."""
        client = Client(name, self.plan.rate, self._loop.time())
        self.clients[client] = None
        return client

    def leave(self, client: Client) -> None:
        """It is gone, and what it asked is not asked any more."""
        self.clients.pop(client, None)
        self.cancel(client)

    def cancel(self, client: Client) -> None:
        """It does not wait any longer for what it has asked."""
        for waiting in client.waiting:
            waiting.drop()
        if self._current is not None and self._current.client is client:
            self._current.drop()
        self._remove(client)

    def serves(self, unit: int) -> bool:
        """Whether masters reach anybody by this address."""
        unit = self._units.get(unit, unit)
        return self.plan.units is None or unit in self.plan.units

    def ask(self, client: Client, unit: int, pdu: bytes, answer: Callable[[bytes], None]) -> bool:
        """A master asks. Every request is answered: at once, later, or at the latest after ``plan.wait_s``.

        Args:
            client: Who.
            unit: As masters call it.
            pdu: Function code and data, at least a byte.
            answer: Takes the PDU of the answer or exception.

        Returns:
            False where the master asks too much.
        """
        client.requests += 1
        self.counts["requests"] += 1
        if not self._may_ask(client):
            self._refuse(pdu, BUSY, "too_many", answer)
            return False
        if not self.serves(unit):
            self._refuse(pdu, NO_PATH, "no_such_unit", answer)
            return True
        unit = self._units.get(unit, unit)
        wish = wanted(pdu)
        if isinstance(wish, int):
            self._refuse(pdu, wish, "not_understood", answer)
        elif wish.function in TABLES and (code := may_write(self.plan.allow, unit, wish)):
            self._refuse(pdu, code, "write_not_allowed", answer)
        elif (reply := self._known(unit, wish)) is not None:
            self.counts["cached"] += 1
            answer(reply)
        elif self._wasteful(unit):
            self._refuse(pdu, NO_REPLY, "silent_unit", answer)
        elif self._length >= self.plan.queue or len(client.waiting) >= PER_CLIENT:
            self._refuse(pdu, BUSY, "queue_full", answer)
        else:
            self._wait(Waiting(client, unit, pdu, wish, self._loop.time(), answer))
        return True

    def _may_ask(self, client: Client) -> bool:
        now = self._loop.time()
        client.tokens = min(self.plan.rate, client.tokens + (now - client.filled_at) * self.plan.rate)
        client.filled_at = now
        if client.tokens < 1:
            return False
        client.tokens -= 1
        return True

    def _refuse(self, pdu: bytes, code: int, why: str, answer: Callable[[bytes], None]) -> None:
        self.counts[why] += 1
        answer(refusal(pdu, code))

    def _known(self, unit: int, wish: Wanted) -> bytes | None:
        if wish.function in TABLES:
            return None
        data = self._cache.get(unit, wish, self._loop.time())
        return None if data is None else bytes((wish.function, len(data))) + data

    # ------------------------------------------------------------ waiting

    def _wait(self, waiting: Waiting) -> None:
        waiting.timer = self._loop.call_later(self.plan.wait_s, self._too_late, waiting)
        if not waiting.client.waiting:
            self._queue.append(waiting.client)
        waiting.client.waiting.append(waiting)
        self._length += 1
        self._some.set()

    def _too_late(self, waiting: Waiting) -> None:
        self.counts["too_late"] += 1
        waiting.settle(refusal(waiting.pdu, NO_REPLY if waiting.asked else BUSY))

    def _remove(self, client: Client) -> None:
        self._length -= len(client.waiting)
        client.waiting.clear()
        with suppress(ValueError):
            self._queue.remove(client)

    def _first(self, client: Client) -> Waiting | None:
        """A master's first request that must still be asked; others are answered or forgotten here."""
        while client.waiting:
            waiting = client.waiting[0]
            if waiting.answer is not None and not self._answered(waiting):
                return waiting
            self._pop(client)
        self._queue.remove(client)
        return None

    def _pop(self, client: Client) -> Waiting:
        self._length -= 1
        return client.waiting.popleft()

    def _answered(self, waiting: Waiting) -> bool:
        """Whether a request could be answered without asking."""
        if (reply := self._known(waiting.unit, waiting.wish)) is not None:
            self.counts["cached"] += 1
        elif self._wasteful(waiting.unit):
            self.counts["silent_unit"] += 1
            reply = refusal(waiting.pdu, NO_REPLY)
        else:
            return False
        waiting.settle(reply)
        return True

    # ------------------------------------------------------------ asking

    def look(self) -> None:
        """There may be something to ask, or time to ask it."""
        self._some.set()

    async def run(self) -> None:
        """Ask what waits, one after another, until cancelled."""
        while True:
            self._some.clear()
            waiting, squeezed, left_s = self._pick()
            if waiting is not None:
                self._current = waiting
                await self._ask(waiting, squeezed=squeezed)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._some.wait()

    def _pick(self) -> tuple[Waiting | None, bool, float | None]:
        """What is to be asked now, and whether polls have to wait for it; or when to look again, seconds.

        One request of each master in turn: the first that fits into what polls leave, or else the one that waits
        longest, if it has waited long enough and masters are owed time.
        """
        now, slack_s, owed_at = self._loop.time(), self._turns.slack_s(), self._turns.owed_at
        firsts = [waiting for client in list(self._queue) if (waiting := self._first(client)) is not None]
        for waiting in firsts:
            if self._needs_s(waiting) <= slack_s:
                return self._take(waiting), False, None
        if not firsts:
            return None, False, None
        oldest = min(firsts, key=lambda waiting: waiting.since_s)
        ready_at = max(owed_at, oldest.since_s + PATIENCE * self.plan.wait_s)
        if ready_at <= now:
            return self._take(oldest), True, None
        return None, False, ready_at - now

    def _take(self, waiting: Waiting) -> Waiting:
        """Take a master's first request; its next one waits behind those of others."""
        client = waiting.client
        self._pop(client)
        self._queue.remove(client)
        if client.waiting:
            self._queue.append(client)
        return waiting

    def _needs_s(self, waiting: Waiting) -> float:
        return self._relay.relay_s(waiting.unit, waiting.pdu, self.plan.timeout_s)

    async def _ask(self, waiting: Waiting, *, squeezed: bool) -> None:
        waiting.asked = True
        self.counts["asked"] += 1
        began = self._loop.time()
        try:
            reply = await self._relay.relay(waiting.unit, waiting.pdu, self.plan.timeout_s)
            # Not what it waited for what was before it on the bus.
            took_s = self._needs_s(waiting)
        except BusDownError:
            self.counts["bus_down"] += 1
            took_s = 0.0
            reply = refusal(waiting.pdu, NO_PATH)
        except (NoReplyError, GarbledError):
            self.counts["no_reply"] += 1
            took_s = self._loop.time() - began
            self._wasted(waiting.unit, took_s)
            reply = refusal(waiting.pdu, NO_REPLY)
        if squeezed:
            self._turns.took(took_s)
        waiting.settle(reply)

    def _wasteful(self, unit: int) -> bool:
        """Whether a unit has used up what it may waste."""
        return self._silences.get(unit, 0.0) > self._loop.time() + SILENCE_S / self.plan.share

    def _wasted(self, unit: int, took_s: float) -> None:
        now = self._loop.time()
        self._silences[unit] = max(self._silences.get(unit, now), now) + took_s / self.plan.share
