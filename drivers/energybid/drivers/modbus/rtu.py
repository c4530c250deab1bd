"""Modbus RTU: one request at a time on a line, and silence where the line needs it (V1.02 §2.4.1, §2.5.1.1).

A reply counts only if unit, function, byte count and CRC are those asked for. What RTU can not tell apart is a late
reply of the same unit and function from the answer: after a time-out nothing is asked of that unit and function until
the line's lateness has passed. Other units go on meanwhile. A reply that comes twice would likewise pass for the answer
to the next request of the same shape: such a request waits until the line has been quiet for a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.exchange import Asked, Exchange, Failure
from energybid.drivers.modbus.framing import RtuReplies
from energybid.drivers.modbus.link import NEVER, Link

if TYPE_CHECKING:
    import asyncio

    from energybid.core.ports import BusPlan, Endpoint, Platform

SILENCE_CHARACTERS = 3.5
FAST_BAUD, FAST_SILENCE_S = 19_200, 0.00175
"""Above this rate the silence is fixed (V1.02 §2.5.1.1)."""
REPEAT_S, REPEAT_CHARACTERS = 0.02, 17
"""A reply that is sent twice shows its second life within the longer of these: what an adapter holds back (16 ms), what
a receive buffer collects (16 characters)."""
QUIET_S = 0.05
"""Silence that ends noise: longer than adapters and operating systems hold back a part of a frame (16 ms)."""


class RtuLink(Link):
    """A serial line, or a TCP stream that carries RTU frames."""

    def __init__(self, platform: Platform, plan: BusPlan) -> None:
        """Prepare a link.

        Args:
            platform: The seams.
            plan: The bus.
        """
        super().__init__(platform, plan)
        self._finder = RtuReplies()
        self._character_s = character_s(plan.endpoint)
        self._silence_s = silence_s(plan.endpoint)
        self._current: tuple[Exchange, int, Asked] | None = None
        self._deadline = self._hard_deadline = NEVER
        self._free_at = -NEVER
        """When the line has been silent long enough for the next request."""
        self._late: dict[tuple[int, int], float] = {}
        """(unit, function) that may still answer late → until when."""
        self._last: tuple[int, int, int] | None = None
        """Unit, function and size of the last reply; size 0 for an exception, which looks the same for every size."""
        self._repeated_at = -NEVER
        """When it would have shown again, had it been sent twice."""

    def _reset(self) -> None:
        # An earlier life of this process may have asked something that is answered only now.
        self._free_at = self._loop.time() + self._plan.lateness_s
        self._late.clear()
        self._last = None
        self._finder.forget()

    def _under_way(self) -> list[tuple[Exchange, int]]:
        current, self._current = self._current, None
        return [] if current is None else [current[:2]]

    def _pump(self, transport: asyncio.Transport) -> None:
        if self._current is not None or not self._pending:
            return
        now = self._loop.time()
        if now < self._free_at:
            self._wake_at(self._free_at)
            return
        earliest = NEVER
        for exchange in self._pending:
            asked = exchange.asked[exchange.sent]
            passed_at = self._late.get((asked.unit, asked.function), -NEVER)
            if self._looks_like_last(asked):
                passed_at = max(passed_at, self._repeated_at)
            if now >= passed_at:
                self._send(transport, exchange, asked, now)
                return
            earliest = min(earliest, passed_at)
        self._wake_at(earliest)

    def _looks_like_last(self, asked: Asked) -> bool:
        return self._last is not None and self._last in (
            (asked.unit, asked.function, asked.size),
            (asked.unit, asked.function, 0),
        )

    def _send(self, transport: asyncio.Transport, exchange: Exchange, asked: Asked, now: float) -> None:
        index = exchange.sent
        if not index:
            exchange.sent_at = now
        exchange.sent = index + 1
        if exchange.sent == len(exchange.asked):
            self._pending.remove(exchange)
        self._late.pop((asked.unit, asked.function), None)
        self._current = exchange, index, asked
        self._finder.expect(asked.unit, asked.head, asked.size)
        transport.write(asked.rtu)
        # The time-out is the meter's own; the time both frames take on the line comes on top.
        on_line_s = (len(asked.rtu) + asked.rtu_reply_size) * self._character_s
        self._deadline = self._hard_deadline = now + on_line_s + exchange.timeout_s
        self._wake_at(self._deadline)

    def data_received(self, data: bytes) -> None:
        """Look for the one reply that is awaited."""
        now = self._loop.time()
        if self._current is None:
            self.ignored += len(data)
            self._free_at = max(self._free_at, now + QUIET_S)
            return
        self._free_at = now + self._silence_s
        exchange, index, asked = self._current
        for frame in self._finder.feed(data):
            if self._finder.behind:
                self.ignored += self._finder.behind
                self._free_at = now + QUIET_S
            self._current = None
            self._proven = True
            outcome = asked.outcome(frame.unit, frame.pdu)
            self._last = asked.unit, asked.function, asked.size if isinstance(outcome, bytes) else 0
            self._repeated_at = now + max(REPEAT_S, REPEAT_CHARACTERS * self._character_s)
            exchange.answer(index, outcome, now, self._platform.now_ns())
            self._pump_now()
            return
        if self._finder.corrupt:
            # The reply was here and is broken: no need to wait longer than until the line is quiet.
            self._deadline = min(self._hard_deadline, now + QUIET_S)
            self._wake_at(self._deadline)

    def _on_timer(self) -> None:
        if self._current is not None:
            now = self._loop.time()
            if now < self._deadline:
                self._wake_at(self._deadline)
                return
            self._give_up(*self._current, now)
        self._pump_now()

    def _give_up(self, exchange: Exchange, index: int, asked: Asked, now: float) -> None:
        if not self._finder.corrupt:
            self._late[asked.unit, asked.function] = now + self._plan.lateness_s
        outcome = Failure.GARBLED if self._finder.seen else Failure.NO_REPLY
        self._finder.forget()
        self._current = None
        exchange.settle(index, outcome)
        if outcome == Failure.NO_REPLY:
            self._skip_rest(exchange)


def character_s(endpoint: Endpoint) -> float:
    """Seconds that one character takes on the line: start, data, parity and stop bits; 0 where there is no line."""
    if not isinstance(endpoint, SerialEndpoint):
        return 0.0
    bits = 1 + endpoint.data_bits + (endpoint.parity != "N") + endpoint.stop_bits
    return bits / endpoint.baudrate


def silence_s(endpoint: Endpoint) -> float:
    """Seconds of silence before a request (V1.02 §2.5.1.1)."""
    if not isinstance(endpoint, SerialEndpoint) or endpoint.baudrate > FAST_BAUD:
        return FAST_SILENCE_S
    return SILENCE_CHARACTERS * character_s(endpoint)
