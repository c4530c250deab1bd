"""Overrides: numbers that a person on site wants, by ``energybid override``, and their way over a restart.

An override is a lease of the highest rank on a point of the control path, for a time. The person who came last wins. It
is kept in the journal (``Journal.remember``), so that it holds again after a restart of the agent, for what is left of
its time. Here lives what is asked for and answered, as bytes; who may ask is the operating system's matter: the socket
is the group's (docs/control.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from energybid.agent.control import LEASE_MAX_S, ControlError, Lease, Owner, Rank, decimal
from energybid.core.errors import JournalStalledError, MeterError
from energybid.core.quantities import decimal_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from energybid.agent.control import Control
    from energybid.agent.journal import Journal
    from energybid.core.ports import Platform

logger = logging.getLogger("energybid.agent")

PREFIX = "override/"
RETRY_S = 10.0
"""An override of an earlier run that could not be written is tried again after this."""
RECALL_S = 2.0
"""How long the start waits for overrides of an earlier run; what takes longer goes on beside it."""

_DECIMAL = re.compile(r"[+-]?\d{1,18}(\.\d{1,18})?", re.ASCII)
_WHO = re.compile(r"[A-Za-z0-9._@-]{1,32}", re.ASCII)


class RequestError(Exception):
    """What is asked for can not be done: why."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a person wants."""

    value: str
    """Exact decimal text, in the point's unit."""
    who: str
    until_ms: int
    """Wall clock."""
    for_s: float
    """As it was asked for: it never holds longer than this from any start, whatever the clock says."""


class Overrides:
    """All overrides of a gateway."""

    def __init__(self, platform: Platform, control: Control, journal: Journal) -> None:
        """Hold nothing yet."""
        self._platform, self._control, self._journal = platform, control, journal
        self._held: dict[str, tuple[Wish, Lease]] = {}
        self._waiting: dict[str, Wish] = {}
        """Of an earlier run, not written yet."""
        self._lock = asyncio.Lock()
        self.also: dict[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {}
        """Requests that other parts of the agent answer, by what they do; those raise ``RequestError``."""

    # ------------------------------------------------------------ restart

    async def recall(self) -> None:
        """Hold again what an earlier run of the agent held, for what is left of its time."""
        for key, data in (await self._platform.offload(self._journal.recall, PREFIX)).items():
            try:
                wish = Wish(**json.loads(data)) if data else None
            except (ValueError, TypeError):
                logger.warning("%s: damaged; the override is forgotten", key)
                continue
            if wish and wish.until_ms > self._now_ms():
                self._waiting[key.removeprefix(PREFIX)] = wish
        try:
            async with asyncio.timeout(RECALL_S):
                await self._hold_waiting()
        except TimeoutError:
            logger.warning("overrides of the last run are not all written yet: %s", ", ".join(self._waiting))

    async def run(self) -> None:
        """Try again what could not be written at the start, until it is over; ends when nothing is left."""
        while self._waiting:
            await asyncio.sleep(RETRY_S)
            await self._hold_waiting()

    async def _hold_waiting(self) -> None:
        for point, wish in list(self._waiting.items()):
            left_s = min((wish.until_ms - self._now_ms()) / 1000, wish.for_s)
            if left_s <= 0 or point in self._held:
                del self._waiting[point]
                continue
            try:
                lease = await self._take(point, wish, left_s)
            except (ControlError, MeterError) as error:
                logger.warning("%s: the override of %s is not written yet: %s", point, wish.who, error)
            else:
                logger.info("%s: the override of %s holds again", point, wish.who)
                self._held[point] = wish, lease
                self._waiting.pop(point, None)

    # ------------------------------------------------------------ requests

    async def answer(self, request: bytes) -> bytes:
        """The answer to one request, both one JSON object.

        A request has ``do``: ``list``; ``hold`` with ``point``, ``value`` (decimal text), ``for_s`` and ``who``; or
        ``release`` with ``who`` and, unless all are meant, ``point``. An answer has ``overrides`` and ``points``, or
        ``error``: why nothing was done.
        """
        try:
            answer = await self._answered(_parsed(request))
        except (RequestError, ControlError, MeterError) as error:
            answer = {"error": str(error)}
        return json.dumps(answer).encode() + b"\n"

    async def _answered(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        match asked.get("do"):
            case str(other) if other in self.also:
                return await self.also[other](asked)
            case "list":
                pass
            case "hold":
                async with self._lock:
                    await self._hold(asked)
            case "release":
                async with self._lock:
                    await self._release(asked)
            case _:
                raise RequestError("no such request: hold, release or list")
        return {"overrides": list(self.status()), "points": self._control.status()}

    async def _hold(self, asked: Mapping[str, Any]) -> None:
        point, who, text, for_s = (asked.get(key) for key in ("point", "who", "value", "for_s"))
        if not isinstance(point, str) or not is_name(who):
            raise RequestError("a request names its point and who asks")
        if not isinstance(text, str) or not _DECIMAL.fullmatch(text):
            raise RequestError(f"{point}: a value is a decimal number, such as 12.5 (found {text!r})")
        if not isinstance(for_s, int | float) or isinstance(for_s, bool) or not 0 < for_s <= LEASE_MAX_S:
            raise RequestError(f"{point}: an override holds for more than 0 s and at most a day")
        value = Fraction(text)
        wish = Wish(decimal_text(*decimal(value)), str(who), self._now_ms() + round(1000 * for_s), float(for_s))
        self._waiting.pop(point, None)
        lease = await self._take(point, wish, for_s)
        self._held[point] = wish, lease
        logger.warning("%s: %s overrides it with %s for %.0f s", point, who, wish.value, for_s)
        await self._keep(point, json.dumps(asdict(wish)).encode())

    async def _take(self, point: str, wish: Wish, for_s: float) -> Lease:
        """The lease; the last person's, if any, ends in the same moment."""
        self._control.check(point, Fraction(wish.value))
        before = self._held.pop(point, None)
        owner = Owner(wish.who, Rank.OVERRIDE)
        if before and before[1].held and before[0].who != wish.who:
            before[1].release()
        return await self._control.hold(point, Fraction(wish.value), owner, self._control.now() + for_s)

    async def _release(self, asked: Mapping[str, Any]) -> None:
        point = asked.get("point")
        points = [point] if isinstance(point, str) else [*self._held, *self._waiting]
        if isinstance(point, str) and point not in {*self._held, *self._waiting}:
            raise RequestError(f"{point}: nobody overrides it")
        for name in points:
            self._waiting.pop(name, None)
            held = self._held.pop(name, None)
            if held and held[1].held:
                held[1].release()
                logger.warning("%s: %s ends the override of %s", name, asked.get("who"), held[0].who)
            await self._keep(name, b"")

    async def _keep(self, point: str, data: bytes) -> None:
        try:
            await self._platform.offload(self._journal.remember, PREFIX + point, data)
        except JournalStalledError as error:
            logger.warning("%s: the override does not survive a restart: %s", point, error)

    # ------------------------------------------------------------ for people

    def status(self) -> Iterator[dict[str, Any]]:
        """What is overridden now."""
        for point, (wish, lease) in list(self._held.items()):
            if lease.held:
                left_s = round(lease.until_s - self._control.now())
                yield {"point": point, "value": wish.value, "who": wish.who, "left_s": left_s, "active": lease.active}
            else:
                del self._held[point]

    def _now_ms(self) -> int:
        return self._platform.now_ns() // 1_000_000


def is_name(who: object) -> bool:
    """Whether a request says who asks, in letters that may stand in a log."""
    return isinstance(who, str) and _WHO.fullmatch(who) is not None


def _parsed(request: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(request)
    except (ValueError, RecursionError):
        raise RequestError("a request is one JSON object") from None
    if not isinstance(asked, dict):
        raise RequestError("a request is one JSON object")
    return asked
