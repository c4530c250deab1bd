"""The market's messages in the log: those that count are on the disk at once, of those refused only so many an hour.

Here lives how a message becomes an entry, and the count of what was refused; why it was refused is for ``rounds`` and
``book`` to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from typing import TYPE_CHECKING

from energybid.agent.rounds import Reason
from energybid.core.cose import MESSAGE_MAX
from energybid.core.entries import MarketMessage, MarketReason

if TYPE_CHECKING:
    from energybid.agent.recorder import Recorder
    from energybid.core.ports import Platform

logger = logging.getLogger("energybid.market")

REFUSED_AN_HOUR = 60
"""Refused messages that are logged; the rest of a flood is counted."""
HOUR_S = 3600.0
LOOK_S = 1.0
"""Between looks whether a disk that refused has taken an entry."""
SHOWN = 64
"""Of a message that is too long, so many bytes are logged."""

REASONS: dict[Reason, int] = {reason: getattr(MarketReason, reason.name) for reason in Reason}
"""Why a message was refused → its number in the log."""


class MessageLog:
    """Writes the entries."""

    def __init__(self, platform: Platform, recorder: Recorder) -> None:
        """Write through ``recorder``."""
        self.refused: Counter[str] = Counter()
        """How often, by the name of the reason."""
        self.not_logged = 0
        """Refused messages that are not in the log, in all."""
        self._missed = 0
        """Of these, those since the last entry."""
        self._platform = platform
        self._recorder = recorder
        self._times: deque[float] = deque(maxlen=REFUSED_AN_HOUR)
        """Loop times at which refused messages were logged."""

    def taken(self, kind: int, message: bytes, at_ms: int) -> int | None:
        """Append a message that counts.

        Args:
            kind: MarketKind.
            message: As it was signed.
            at_ms: The wall clock by which it was judged.

        Returns:
            The entry's sequence, for ``secured``; None where it is not logged, for there is no room for it.
        """
        if self._recorder.full:
            logger.error("the journal has no room for a message of the market")
            return None
        return self._recorder.append_at_once(self._entry(kind, MarketReason.NONE, message, at_ms))

    async def room(self) -> None:
        """Return when an entry can be logged: what can not be logged does not count, and waits."""
        if self._recorder.full:
            logger.error("messages of the market wait, for there is no room to log them")
        while self._recorder.full:  # noqa: ASYNC110  room has no event
            await asyncio.sleep(LOOK_S)

    async def secured(self, sequence: int) -> bool:
        """Have the log on the disk up to an entry; False where the disk does not take it now.

        Raises:
            JournalError: The journal is damaged, or locked; the agent must stop.
        """
        await self._recorder.commit()
        return self._recorder.committed > sequence

    async def kept(self, sequence: int) -> None:
        """Return when an entry is on the disk, however long that takes.

        Raises:
            JournalError: As ``secured``.
        """
        if await self.secured(sequence):
            return
        logger.error("what is to be sent to the market waits for the disk")
        while self._recorder.committed <= sequence:  # noqa: ASYNC110  the recorder's retries have no event
            await asyncio.sleep(LOOK_S)

    def refuse(self, kind: int, reason: int, message: bytes, at_ms: int, what: str) -> None:
        """Count a message that counts for nothing, and log it where few were.

        Args:
            kind: MarketKind.
            reason: MarketReason.
            message: What came.
            at_ms: Wall clock.
            what: For people.
        """
        self.refused[_NAMES.get(reason, str(reason))] += 1
        now_s = asyncio.get_running_loop().time()
        often = len(self._times) == REFUSED_AN_HOUR and now_s - self._times[0] < HOUR_S
        if often or self._recorder.full:
            self.not_logged += 1
            self._missed += 1
            return
        self._times.append(now_s)
        logger.warning("refused: %s", what)
        shown = message if reason != MarketReason.TOO_LONG else message[:SHOWN]
        self._recorder.append_at_once(self._entry(kind, reason, shown, at_ms))

    def _entry(self, kind: int, reason: int, message: bytes, at_ms: int) -> MarketMessage:
        missed, self._missed = self._missed, 0
        return MarketMessage(
            kind=kind,
            reason=reason,
            message=message,
            missed=missed,
            time_ms=at_ms,
            clock=int(self._platform.clock_state()),
            start=self._recorder.start,
            mono_ms=int(asyncio.get_running_loop().time() * 1000),
        )


def too_long(message: bytes) -> bool:
    """Whether no message of a market is as long."""
    return len(message) > MESSAGE_MAX


_NAMES = {number: name.lower() for name, number in vars(MarketReason).items() if name.isupper()}
