"""What the market is to get: sent when there is a connection, again after each failure, until its time is over.

What lies here was committed in the log before. Of each kind of message for a round only the newest is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, NamedTuple

from energybid.core.errors import UplinkDownError, UplinkRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.agent.market.ports import Send

logger = logging.getLogger("energybid.market")

RETRY_S = 2.0
"""Between attempts while there is no connection."""
KEPT = 256
"""Messages that wait at most; the oldest goes first."""


class Letter(NamedTuple):
    """A message that is to be sent."""

    topic: str
    payload: bytes
    until_ms: int
    """Wall clock from which nobody wants it any more."""
    retain: bool = False


class Outbox:
    """Letters by what they are about."""

    def __init__(self, send: Send, now_ms: Callable[[], int]) -> None:
        """Send through ``send``."""
        self._send = send
        self._now_ms = now_ms
        self._letters: dict[object, Letter] = {}
        self._wake = asyncio.Event()
        self._hurry = asyncio.Event()
        self._refused: dict[str, str] = {}
        """What the broker did not allow last, by topic."""

    @property
    def refused(self) -> str:
        """What the broker does not allow; empty where it took the last of each topic."""
        return next(iter(self._refused.values()), "")

    def __len__(self) -> int:
        """How many wait."""
        return len(self._letters)

    def __contains__(self, about: object) -> bool:
        """Whether a letter about this still waits."""
        return about in self._letters

    def put(self, about: object, letter: Letter) -> None:
        """Have a letter sent; it replaces one about the same."""
        self._letters.pop(about, None)
        self._letters[about] = letter
        while len(self._letters) > KEPT:
            del self._letters[next(iter(self._letters))]
        self._wake.set()

    def hurry(self) -> None:
        """There is a connection: try at once."""
        self._hurry.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._wake.clear()
            about = next(iter(self._letters), None)
            if about is None:
                await self._wake.wait()
            elif not await self._try(about, self._letters[about]):
                await self._pause()

    async def _pause(self) -> None:
        self._hurry.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RETRY_S):
                await self._hurry.wait()

    async def _try(self, about: object, letter: Letter) -> bool:
        """Send a letter, or drop it when its time is over; False while there is no connection."""
        if self._now_ms() < letter.until_ms:
            try:
                await self._send(letter.topic, letter.payload, retain=letter.retain)
            except UplinkRefusedError as error:
                if letter.topic not in self._refused:
                    logger.error("%s is not sent: %s", letter.topic, error)  # noqa: TRY400  no bug
                self._refused[letter.topic] = str(error)
            except UplinkDownError:
                return False
            else:
                self._refused.pop(letter.topic, None)
        else:
            logger.info("not sent in time: %s", letter.topic)
        if self._letters.get(about) is letter:
            del self._letters[about]
        return True
