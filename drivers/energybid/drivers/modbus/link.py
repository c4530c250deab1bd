"""The connection under a driver: opens the bus when it is needed, and again, with back-off, after a loss.

Here live connecting and queueing; how requests and replies are matched is in ``mbap`` and ``rtu``. Bytes go through
callbacks (``asyncio.Protocol``): at thousands of replies a second, streams would cost more than decoding does.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from energybid.core.errors import BusDownError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.exchange import Exchange, Failure, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from energybid.core.ports import BusPlan, Platform
    from energybid.drivers.modbus.exchange import Asked

BACK_OFF_MIN_S, BACK_OFF_MAX_S = 0.5, 30.0
SERIAL_BACK_OFF_MAX_S = 3.0
"""Looking for a port costs no peer anything, and who plugs an adapter in again stands beside it."""
NEVER = float("inf")
CLOSED = "closed by the other side"


class Link(asyncio.Protocol, ABC):
    """Carries exchanges over one bus; one per driver."""

    def __init__(self, platform: Platform, plan: BusPlan) -> None:
        """Prepare a link; it connects when it is first needed.

        Args:
            platform: The seams.
            plan: The bus.
        """
        self._platform = platform
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._gone = asyncio.Event()
        """The last connection's end was told."""
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self._why = f"{plan.name}: not opened yet"
        """Why the bus is down; every failure gets an exception of its own."""
        self._retry_at = -NEVER
        self._back_off_s = BACK_OFF_MIN_S
        self._back_off_max_s = SERIAL_BACK_OFF_MAX_S if isinstance(plan.endpoint, SerialEndpoint) else BACK_OFF_MAX_S
        self._proven = False
        """Something was answered on this connection."""
        self._loss = Failure.BUS_DOWN
        """What becomes of the exchanges under way when the connection is lost."""
        self._reason = CLOSED
        self._pending: list[Exchange] = []
        self._timer: asyncio.TimerHandle | None = None
        self._pump_due = False
        self.tap: Callable[[Exchange], None] | None = None
        """Told of every exchange when it is over, also when its owner has given it up."""
        self.ignored = 0
        """Frames (TCP) or bytes (serial) that answered nothing: late, duplicate or foreign."""

    # ------------------------------------------------------------ exchanges

    async def run(
        self,
        asked: Sequence[Asked],
        timeout_s: float,
        *,
        late_s: float = 0.0,
        gap_s: float = 0.0,
        urgent: bool = False,
    ) -> Exchange:
        """Send requests and wait until each is settled.

        Args:
            asked: At least one request.
            timeout_s: How long each may take to be answered.
            late_s: How much longer the meter may take at most, beside the line's lateness.
            gap_s: Rest that a line gets before each request, beyond its silence.
            urgent: It goes before all that is not, also before the rest of an exchange that has begun.

        Raises:
            BusDownError: The bus can not be opened, or was lost.
        """
        if self._transport is None:
            await self._connect()
        exchange = Exchange(asked, timeout_s, self._loop.create_future(), late_s, gap_s)
        exchange.urgent = urgent
        place = sum(waiting.urgent for waiting in self._pending) if urgent else len(self._pending)
        self._pending.insert(place, exchange)
        self._pump_soon()
        try:
            await exchange.done
        except asyncio.CancelledError:
            if exchange in self._pending:
                self._pending.remove(exchange)
            raise
        finally:
            if self.tap is not None:
                self.tap(exchange)
        if Failure.BUS_DOWN in exchange.outcomes:
            raise BusDownError(self._why)
        return exchange

    def _pump_soon(self) -> None:
        """Send after all that is ready to run now has run: requests of several polls then leave in one write."""
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._pump_due = False
        if self._transport is not None:
            self._pump(self._transport)

    def on_line_s(self, _asked: Asked) -> float:
        """Seconds that a request, its reply and the rest around them take by themselves; 0 on a network."""
        return 0.0

    @abstractmethod
    def _pump(self, transport: asyncio.Transport) -> None:
        """Send what may be sent now."""

    @abstractmethod
    def _reset(self) -> None:
        """Begin anew on a fresh connection."""

    @abstractmethod
    def _under_way(self) -> list[tuple[Exchange, int]]:
        """Take all requests that were sent and not settled."""

    @abstractmethod
    def _on_timer(self) -> None:
        """The time asked of ``_wake_at`` has come."""

    def _wake_at(self, when: float) -> None:
        """Have ``_on_timer`` called at a loop time, or earlier."""
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._on_timer()

    # ------------------------------------------------------------ connection

    async def _connect(self) -> None:
        while self._transport is None:
            if self._closed or self._loop.time() < self._retry_at:
                raise BusDownError(self._why)
            if self._opening is None:
                self._opening = self._loop.create_task(self._open())
            # Shielded: a poll that is cancelled must not take the connection from the others that wait for it.
            await asyncio.shield(self._opening)

    async def _open(self) -> None:
        try:
            await self._platform.open_bus(self._plan.endpoint, lambda: self)
        except BusDownError as error:
            self._back_off(f"{self._plan.name}: {error}")
        except asyncio.CancelledError:
            # Only ``close`` cancels this; who waits for the connection is told that the bus is closed.
            if not self._closed:
                raise
        finally:
            self._opening = None

    def _back_off(self, why: str) -> None:
        self._why = why
        self._retry_at = self._loop.time() + self._back_off_s * self._platform.random.uniform(0.75, 1.25)
        self._back_off_s = min(2 * self._back_off_s, self._back_off_max_s)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Use a fresh connection."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a bus needs a transport for both directions")
        self._transport = transport
        self._gone.clear()
        self._proven = False
        self._loss, self._reason = Failure.BUS_DOWN, CLOSED
        self._reset()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is under way; allow the next attempt at once if this connection had worked."""
        self._transport = None
        self._gone.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        why = f"{self._plan.name}: connection lost: {exc or self._reason}"
        if self._proven and not self._closed:
            self._why = why
            self._back_off_s = BACK_OFF_MIN_S
            self._retry_at = -NEVER
        elif not self._closed:
            self._back_off(why)
        self._fail_all(self._loss)

    def _skip_rest(self, exchange: Exchange) -> None:
        """A meter that did not answer at all is not asked the rest: a dead meter costs one time-out."""
        if exchange.silent and exchange in self._pending:
            self._pending.remove(exchange)
            exchange.settle_unsent(Failure.NO_REPLY)

    def _fail_all(self, outcome: Outcome) -> None:
        for exchange, index in self._under_way():
            exchange.settle(index, outcome)
        pending, self._pending = self._pending, []
        for exchange in pending:
            exchange.settle_unsent(outcome)

    def _drop(self, outcome: Failure, reason: str) -> None:
        """Give the connection up: what is under way fails with ``outcome``, the next try connects again."""
        self._loss, self._reason = outcome, reason
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Release the bus; idempotent."""
        self._closed = True
        self._why = f"{self._plan.name}: closed"
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._transport is not None:
            self._loss = Failure.BUS_DOWN
            self._transport.abort()
            await self._gone.wait()
        self._fail_all(Failure.BUS_DOWN)
