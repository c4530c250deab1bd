"""Modbus TCP: several requests under way on one connection, matched by transaction identifier (V1.0b §3.1.3, §4.4.1.3).

A reply counts only if transaction, unit, function, length and byte count are those asked for. Others are passed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energybid.drivers.modbus.exchange import Exchange, Failure
from energybid.drivers.modbus.framing import Garbled, MbapFramer
from energybid.drivers.modbus.link import NEVER, Link

if TYPE_CHECKING:
    import asyncio

    from energybid.core.ports import BusPlan, Platform

TRANSACTIONS = 65_536
_SEGMENT = 4096
"""Transaction identifiers are released for use again in spans of this many."""
SILENCE_MAX, SILENCE_S = 3, 5.0
"""Waits in a row that ended with nothing at all received, after which the connection is thought dead; where several
units share it, for so long at least. One dead unit must not cost a gateway's only connection."""


class MbapLink(Link):
    """A connection to a Modbus TCP server or gateway."""

    def __init__(self, platform: Platform, plan: BusPlan) -> None:
        """Prepare a link.

        Args:
            platform: The seams.
            plan: The bus.
        """
        super().__init__(platform, plan)
        self._framer = MbapFramer()
        self._in_flight = max(1, plan.in_flight)
        self._silence_s = SILENCE_S if len(plan.meters) > 1 else 0.0
        self._free_at = -NEVER
        """When the plan's pause ends."""
        self._reserve_s = plan.lateness_s + max((meter.timeout_s for meter in plan.meters), default=0.0)
        self._reset()

    def _reset(self) -> None:
        self._framer.reset()
        self._sent: dict[int, tuple[Exchange, int, float]] = {}
        """Transaction → exchange, index, deadline."""
        self._next = 0
        self._left_at = [-NEVER] * (TRANSACTIONS // _SEGMENT)
        """When the last identifier of each segment was used."""
        self._heard_at = -NEVER
        self._silences = 0
        self._silent_since = -NEVER

    def _under_way(self) -> list[tuple[Exchange, int]]:
        entries, self._sent = self._sent, {}
        return [(exchange, index) for exchange, index, _ in entries.values()]

    def _pump(self, transport: asyncio.Transport) -> None:
        if not self._pending:
            return
        now = self._loop.time()
        out: list[bytes] = []
        earliest = NEVER
        while self._pending and len(self._sent) < self._in_flight and self._may_send(now):
            exchange = self._pending[0]
            index = exchange.sent
            if not index:
                exchange.sent_at = now
            transaction, self._next = self._next, (self._next + 1) % TRANSACTIONS
            deadline = now + exchange.timeout_s
            self._sent[transaction] = exchange, index, deadline
            earliest = min(earliest, deadline)
            self._free_at = now + self._plan.pause_s
            out.append(transaction.to_bytes(2, "big") + exchange.asked[index].tcp_tail)
            exchange.sent = index + 1
            if exchange.sent == len(exchange.asked):
                del self._pending[0]
        if out:
            self._write(transport, out)
            self._wake_at(earliest)

    def _write(self, transport: asyncio.Transport, frames: list[bytes]) -> None:
        """Send frames together: one system call, and one segment."""
        transport.write(b"".join(frames))

    def _may_send(self, now: float) -> bool:
        if now < self._free_at:
            self._wake_at(self._free_at)
            return False
        return self._may_use(self._next, now)

    def _may_use(self, transaction: int, now: float) -> bool:
        """A late reply must never meet its identifier in use again."""
        segment, place = divmod(transaction, _SEGMENT)
        if place:
            return True
        self._left_at[segment - 1] = now
        free_at = self._left_at[segment] + self._reserve_s
        if now < free_at:
            self._wake_at(free_at)
        return now >= free_at

    def data_received(self, data: bytes) -> None:
        """Match replies to requests."""
        now, wall_ns = self._loop.time(), self._platform.now_ns()
        self._heard_at = now
        self._silences = 0
        self._free_at = now + self._plan.pause_s
        for frame in self._framer.feed(data):
            if isinstance(frame, Garbled):
                if frame.fatal:
                    self._drop(Failure.GARBLED, frame.reason)
                    return
                continue
            unit, transaction, pdu = frame
            entry = self._sent.pop(transaction, None)
            if entry is None:
                self.ignored += 1
                continue
            exchange, index, deadline = entry
            delay_s = now - deadline + exchange.timeout_s
            exchange.delay_s = max(exchange.delay_s, delay_s)
            exchange.answer(index, exchange.asked[index].outcome(unit, pdu), now, wall_ns)
            self._proven = True
        self._pump_now()

    def _on_timer(self) -> None:
        now = self._loop.time()
        late = [transaction for transaction, (_, _, deadline) in self._sent.items() if deadline <= now]
        silent = False
        for transaction in late:
            exchange, index, deadline = self._sent.pop(transaction)
            silent |= self._heard_at < deadline - exchange.timeout_s
            exchange.settle(index, Failure.NO_REPLY)
            self._skip_rest(exchange)
        if late:
            self._silences = self._silences + 1 if silent else 0
            self._silent_since = now if self._silences <= 1 else self._silent_since
        if self._silences >= SILENCE_MAX and now - self._silent_since >= self._silence_s:
            self._drop(Failure.NO_REPLY, "nothing came any more")
            return
        if self._sent:
            self._wake_at(min(deadline for _, _, deadline in self._sent.values()))
        self._pump_now()
