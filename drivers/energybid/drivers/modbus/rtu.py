"""Modbus RTU: one request at a time on a line, and silence where the line needs it (V1.02 §2.4.1, §2.5.1.1).

A reply counts only if unit, function, byte count and CRC are those asked for. What RTU can not tell apart is a late
reply of the same unit and function from the answer: after a time-out nothing is asked of that unit and function until
the line's lateness has passed. Other units go on meanwhile. A reply that comes twice would likewise pass for the answer
to the next request of the same shape: such a request waits until the line has been quiet for a moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from energybid.drivers.modbus.exchange import Asked, Exchange, Failure, Outcome
from energybid.drivers.modbus.framing import RtuReplies
from energybid.drivers.modbus.link import NEVER, Link
from energybid.drivers.modbus.timing import character_s, silence_s

if TYPE_CHECKING:
    import asyncio

    from energybid.core.ports import BusPlan, Platform

REPEAT_S, REPEAT_CHARACTERS = 0.02, 17
"""A reply that is sent twice shows its second life within the longer of these: what an adapter holds back (16 ms), what
a receive buffer collects (16 characters)."""
QUIET_S = 0.05
"""Silence that ends noise: longer than adapters and operating systems hold back a part of a frame (16 ms)."""
HURRY_S = 0.1
"""A request after less rest than this may have been lost because the meter was not ready yet."""


class RtuLink(Link):
    """A serial line, or a TCP stream that carries RTU frames."""

    finder_type: ClassVar[type[RtuReplies]] = RtuReplies

    def __init__(self, platform: Platform, plan: BusPlan) -> None:
        """Prepare a link.

        Args:
            platform: The seams.
            plan: The bus.
        """
        super().__init__(platform, plan)
        self._finder = self.finder_type()
        self._character_s = character_s(plan.endpoint)
        self._silence_s = max(silence_s(plan.endpoint), plan.pause_s)
        self._current: tuple[Exchange, int, Asked] | None = None
        self._deadline = self._hard_deadline = NEVER
        self._free_at = -NEVER
        """When the line has been silent long enough for the next request."""
        self._heard_at = -NEVER
        """When bytes came last."""
        self._rest_s = NEVER
        """How long the line was at rest before the request under way."""
        self._late: dict[tuple[int, int], float] = {}
        """(unit, function) that may still answer late → until when."""
        self._last: tuple[int, int, int] | None = None
        """Unit, function and size of the last reply; size 0 for an exception, which looks the same for every size. What
        was sent twice before that has come twice by now: a line keeps the order."""
        self._last_again_at = -NEVER
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
        earliest = NEVER
        for exchange in self._pending:
            asked = exchange.asked[exchange.sent]
            passed_at = max(self._late.get((asked.unit, asked.function), -NEVER), self._free_at + exchange.gap_s)
            repeated_at = self._repeated_at(asked)
            if now < repeated_at and asked.wider and self._repeated_at(asked.wider.asked) < repeated_at:
                asked = asked.wider.asked
                repeated_at = self._repeated_at(asked)
            passed_at = max(passed_at, repeated_at)
            if now >= passed_at:
                self._send(transport, exchange, asked, now)
                return
            earliest = min(earliest, passed_at)
        self._wake_at(earliest)

    @staticmethod
    def encoded(asked: Asked) -> tuple[bytes, int]:
        """The request's bytes, and the length of its reply on the line."""
        return asked.rtu, asked.rtu_reply_size

    def on_line_s(self, asked: Asked) -> float:
        """See ``Link``; the rest after a reply that may come twice is counted in."""
        frame, reply_size = self.encoded(asked)
        return (len(frame) + reply_size) * self._character_s + 2 * self._silence_s + self._again_s()

    def _again_s(self) -> float:
        return max(REPEAT_S, REPEAT_CHARACTERS * self._character_s)

    def _repeated_at(self, asked: Asked) -> float:
        """When a reply that looks like this one's has shown again, had it been sent twice."""
        alike = (asked.unit, asked.function, asked.size), (asked.unit, asked.function, 0)
        return self._last_again_at if self._last in alike else -NEVER

    def _note(self, asked: Asked, outcome: Outcome, now: float) -> None:
        """Note what the reply looked like that has just come."""
        self._last = asked.unit, asked.function, asked.size if isinstance(outcome, bytes) else 0
        self._last_again_at = now + self._again_s()

    @staticmethod
    def _of_the_poll(asked: Asked, wanted: Asked, outcome: Outcome) -> Outcome:
        """What the outcome of a request is for the one of the poll, which may be a register shorter."""
        if asked is wanted or wanted.wider is None:
            return outcome
        if isinstance(outcome, int) and outcome > 0:  # refused or not, that register was not asked for
            wanted.wider = None
            return Failure.GARBLED
        return wanted.wider.cut(outcome, wanted)

    def _send(self, transport: asyncio.Transport, exchange: Exchange, asked: Asked, now: float) -> None:
        index = exchange.sent
        if not index:
            exchange.sent_at = now
        exchange.sent = index + 1
        if exchange.sent == len(exchange.asked):
            self._pending.remove(exchange)
        self._late.pop((asked.unit, asked.function), None)
        self._current = exchange, index, asked
        self._rest_s = now - self._heard_at
        self._finder.expect(asked.unit, asked.head, asked.size)
        frame, reply_size = self.encoded(asked)
        transport.write(frame)
        # The time-out is the meter's own; the time both frames take on the line comes on top.
        on_line_s = (len(frame) + reply_size) * self._character_s
        self._deadline = self._hard_deadline = now + on_line_s + exchange.timeout_s
        self._wake_at(self._deadline)

    def data_received(self, data: bytes) -> None:
        """Look for the one reply that is awaited."""
        now = self._heard_at = self._loop.time()
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
            self._note(asked, outcome, now)
            outcome = self._of_the_poll(asked, exchange.asked[index], outcome)
            exchange.delay_s = max(exchange.delay_s, now - self._hard_deadline + exchange.timeout_s)
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
            self._late[asked.unit, asked.function] = now + exchange.late_s + self._plan.lateness_s
        outcome = Failure.GARBLED if self._finder.seen else Failure.NO_REPLY
        self._finder.forget()
        self._current = None
        exchange.hurried |= self._rest_s < HURRY_S
        exchange.settle(index, outcome)
        if outcome == Failure.NO_REPLY:
            self._skip_rest(exchange)
