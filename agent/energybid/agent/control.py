"""The control path: numbers that are written to devices for a time, and go back to safe ones by themselves.

A *point* is a ``[[writable]]`` of a meter's profile that has a safe number; ``METER/NAME`` names it. Owners hold points
by leases. Of several leases on a point the one of the highest rank is written; when it ends, the next, or else the safe
number. What is written is within the profile's bounds or not written at all, goes before polls, and is read back.

Nothing is written before the journal holds durably that the point is held. So after a crash, however sudden, the next
run of the agent knows what to make safe, and does so before anything else. Every attempt's outcome is an entry of the
log; attempts that fail in the same way one after another are one entry.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from enum import IntEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.core.entries import Command, CommandCause, CommandOutcome
from energybid.core.errors import (
    BusDownError,
    EnergybidError,
    JournalError,
    JournalStalledError,
    MeterError,
    RefusedError,
)
from energybid.core.quantities import DIGITS_MAX, decimal_text, exact_decimal
from energybid.drivers.modbus.decode import decode_writable, encode_writable
from energybid.drivers.modbus.map import ModbusMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from energybid.agent.polling import BusPoller
    from energybid.agent.recorder import Recorder
    from energybid.core.ports import Driver, MeterPlan, Platform
    from energybid.drivers.modbus.map import Writable

logger = logging.getLogger("energybid.agent")

PREFIX = "control/"
LEASE_MAX_S = 86_400.0
"""No lease is longer; its owner renews it."""
OWNERS_MAX = 8
"""Most leases on one point."""
RETRY_MIN_S, RETRY_MAX_S = 1.0, 60.0
"""Between attempts to write, while nobody waits for the outcome."""
STOP_S = 2.0
"""At a stop, how long making everything safe may take; what is left over is done at the next start."""
MANTISSA_BITS = 63


class Rank(IntEnum):
    """Priorities of owners; a greater one goes first."""

    SCHEDULE = 1
    """The local plan."""
    MARKET = 2
    """An award's dispatch."""
    SAFETY = 3
    """A limit that protects an asset or the site."""
    OVERRIDE = 4
    """A person who is there: installer or occupant."""


class Owner(NamedTuple):
    """Who wants a number."""

    name: str
    rank: Rank


class ControlError(EnergybidError):
    """A number can not be held: what to do instead is in the message."""


class Lease:
    """An owner's hold on a point, until a loop time; made by ``Control.hold``."""

    def __init__(self, point: _Point, owner: Owner, value: Fraction, until_s: float) -> None:
        """Hold ``point``."""
        self.owner = owner
        self.value = value
        self.until_s = until_s
        """Loop time at which it ends unless it is renewed."""
        self._point = point

    @property
    def point(self) -> str:
        """``METER/NAME``."""
        return self._point.name

    @property
    def held(self) -> bool:
        """Not over."""
        return self._point.leases.get(self.owner.name) is self

    @property
    def active(self) -> bool:
        """Its number was written, and read back the same, and nothing else since."""
        return self.held and self._point.top() is self and self._point.written == self.value

    def renew(self, until_s: float) -> None:
        """Go on until another loop time.

        Raises:
            ControlError: It is over already: hold anew.
        """
        if not self.held:
            raise ControlError(f"{self.point}: the lease of {self.owner.name} is over")
        self.until_s = self._point.bounded(until_s)
        self._point.changed.set()

    def release(self) -> None:
        """End it now; idempotent."""
        if self.held:
            self._point.end(self, CommandCause.RELEASED)


class _Point:
    """One number of one device."""

    def __init__(self, control: Control, driver: Driver, meter: MeterPlan, writable: Writable) -> None:
        self.name = f"{meter.name}/{writable.name}"
        self.control, self.driver, self.meter, self.writable = control, driver, meter, writable
        self.leases: dict[str, Lease] = {}
        """By the owner's name."""
        self.open = False
        """The journal says that something else than the safe number may be in it."""
        self.written: Fraction | None = None
        """What was read back last after writing; None where nobody knows."""
        self.cause = CommandCause.HELD
        """Why the next number is to be written."""
        self.changed = asyncio.Event()
        self.lock = asyncio.Lock()
        self.last: tuple[object, ...] = ()
        """What was logged last."""

    def bounded(self, until_s: float) -> float:
        return min(until_s, self.control.now() + LEASE_MAX_S)

    def top(self) -> Lease | None:
        return max(self.leases.values(), key=lambda lease: lease.owner.rank, default=None)

    def end(self, lease: Lease, cause: int) -> None:
        was_top = self.top() is lease
        del self.leases[lease.owner.name]
        if was_top:
            self.cause = CommandCause.RETURNED if self.leases else cause
        self.changed.set()

    def expire(self) -> None:
        """End what is over."""
        now = self.control.now()
        for lease in sorted(self.leases.values(), key=lambda lease: -lease.owner.rank):
            if lease.until_s <= now:
                logger.info("%s: the lease of %s is over", self.name, lease.owner.name)
                self.end(lease, CommandCause.EXPIRED)

    def wanted(self) -> tuple[Fraction | None, Owner, int | None]:
        """The number that is to be in it, who wants it, until when (ms); None: nothing needs to be written."""
        top = self.top()
        if top is not None:
            number, owner, until_ms = top.value, top.owner, round(top.until_s * 1000)
        else:
            number, owner, until_ms = self.safe, Owner("agent", Rank.SAFETY), None
            if not self.open:
                return None, owner, None
        return (None if top is not None and number == self.written else number), owner, until_ms

    @property
    def safe(self) -> Fraction:
        assert self.writable.safe is not None  # noqa: S101  only such writables become points
        return self.writable.safe


class Control:
    """All points of a gateway."""

    def __init__(self, platform: Platform, recorder: Recorder, pollers: Iterable[BusPoller]) -> None:
        """Hold the writables of the pollers' meters."""
        self._platform = platform
        self._recorder = recorder
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time
        self.on_event: Callable[[Command], None] = lambda _: None
        """Told of every entry that is logged."""
        self._closing: asyncio.Future[None] | None = None
        self._points: dict[str, _Point] = {}
        for poller in pollers:
            points = list(self._points_of(poller))
            self._points |= {point.name: point for point in points}
            if points:
                poller.before_close = self.close

    def _points_of(self, poller: BusPoller) -> Iterator[_Point]:
        for meter in poller.meters:
            for writable in meter.plan.map.writables if isinstance(meter.plan.map, ModbusMap) else ():
                if writable.safe is not None:
                    yield _Point(self, poller.driver, meter.plan, writable)

    @property
    def points(self) -> list[str]:
        """Their names."""
        return sorted(self._points)

    def held_above(self, point: str, rank: Rank) -> Owner | None:
        """Who holds a point with a higher rank; None: nobody, or there is no such point."""
        found = self._points.get(point)
        top = found.top() if found else None
        return top.owner if top and top.owner.rank > rank and top.until_s > self.now() else None

    # ------------------------------------------------------------ owners

    async def hold(self, point: str, value: Fraction, owner: Owner, until_s: float) -> Lease:
        """Have a number written, and kept until ``until_s`` (loop time) unless the lease is renewed.

        An owner has one lease on a point: holding it again replaces that. Where an owner of a higher rank holds the
        point, the lease is made and waits: see ``Lease.active``.

        Args:
            point: ``METER/NAME``.
            value: In the writable's unit.
            owner: Who; of two owners of one rank the one who came first keeps the point.
            until_s: Loop time; a day from now at the latest.

        Returns:
            When the number was written and read back, or could not be because of a higher owner.

        Raises:
            ControlError: No such point; not allowed by the profile; another owner of that rank holds it; it was
                written and read back as another number; the disk does not take that it is held; or the agent stops.
            MeterError: It could not be written: nothing is held, and the number before it, or the safe one, is written.
        """
        found = self._found(point)
        self._check(found, value, owner, until_s)
        lease = Lease(found, owner, value, found.bounded(until_s))
        before = found.leases.get(owner.name)
        async with found.lock:
            found.expire()
            self._check(found, value, owner, until_s)  # while it waited, another may have come, or the stop
            same = before is not None and (before.owner, before.value) == (owner, value)  # of another rank: logged
            only_its_time_is_new = before is not None and same and before.active
            found.leases[owner.name] = lease
            found.changed.set()
            if only_its_time_is_new:
                return lease
            if found.top() is not lease:
                self._log(
                    found, value, owner, cause=CommandCause.HELD, outcome=CommandOutcome.OVERRULED, until_s=until_s
                )
                return lease
            found.cause = CommandCause.HELD
            await self._first_attempt(found, lease)
        return lease

    def check(self, point: str, value: Fraction) -> None:
        """Whether a number may be written.

        Raises:
            ControlError: No such point, or not allowed by the profile.
        """
        try:
            encode_writable(self._found(point).writable, value)
        except ValueError as error:
            raise ControlError(f"{point}: {error}") from None

    def _found(self, point: str) -> _Point:
        found = self._points.get(point)
        if found is None:
            known = ", ".join(self.points) or "there are none"
            raise ControlError(f"{point}: no such point with a safe number; {known}")
        return found

    def _check(self, point: _Point, value: Fraction, owner: Owner, until_s: float) -> None:
        if self._closing is not None:
            raise ControlError(f"{point.name}: the agent stops")
        try:
            encode_writable(point.writable, value)
        except ValueError as error:
            self._log(point, value, owner, cause=CommandCause.HELD, outcome=CommandOutcome.NOT_ALLOWED, until_s=until_s)
            raise ControlError(f"{point.name}: {error}") from None
        others = [lease for name, lease in point.leases.items() if name != owner.name]
        if any(lease.owner.rank == owner.rank for lease in others if lease.until_s > self.now()):
            raise ControlError(f"{point.name}: another owner of rank {owner.rank.name.lower()} holds it")
        if len(others) >= OWNERS_MAX:
            raise ControlError(f"{point.name}: {OWNERS_MAX} owners hold it already")

    async def _first_attempt(self, point: _Point, lease: Lease) -> None:
        try:
            await self._remember(point, is_open=True)
            outcome = await self._write(point, lease.value, lease.owner, round(lease.until_s * 1000))
        except JournalStalledError as error:
            self._fail(point, lease)
            raise ControlError(
                f"{point.name}: not written, for the disk does not take that it is held: {error}"
            ) from None
        except BaseException:
            self._fail(point, lease)
            raise
        if outcome != CommandOutcome.DONE:
            self._fail(point, lease)
            raise ControlError(f"{point.name}: another number was read back than was written")

    @staticmethod
    def _fail(point: _Point, lease: Lease) -> None:
        if lease.held:
            point.end(lease, CommandCause.FAILED)

    # ------------------------------------------------------------ life

    async def recall(self) -> None:
        """Find out which points an earlier run has left held."""
        found = await self._platform.offload(self._recorder.journal.recall, PREFIX)
        for key, value in found.items():
            point = self._points.get(key.removeprefix(PREFIX))
            if value and point is not None:
                point.open, point.cause = True, CommandCause.RESTARTED
                logger.warning("%s: was held when the agent was gone; the safe number is written", point.name)
            elif value:
                logger.error("%s: was held, and is no point any more: make it safe by hand", key.removeprefix(PREFIX))

    async def make_safe(self, timeout_s: float = STOP_S) -> None:
        """Write the safe number wherever something else may be, once, for so long at most."""
        points = [point for point in self._points.values() if point.open]
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(self._settle(point) for point in points))

    async def run(self) -> None:
        """Keep what is held, and make safe what is not any more, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for point in self._points.values():
                tasks.create_task(self._keep(point))

    async def close(self) -> None:
        """The agent ends: all leases do, and the safe numbers are written within ``STOP_S``. Once; then idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for point in self._points.values():
            for lease in list(point.leases.values()):
                point.end(lease, CommandCause.STOPPED)
            if point.open:
                point.cause = CommandCause.STOPPED
        try:
            await self.make_safe()
        except JournalError as error:  # whoever else writes to it says so as well
            logger.warning("%s", error)
        for point in self._points.values():
            if point.open:
                logger.error("%s: not known to be safe; the next start makes it so", point.name)

    async def _keep(self, point: _Point) -> None:
        retry_s = RETRY_MIN_S
        while True:
            point.changed.clear()
            settled = await self._settle(point)
            retry_s = RETRY_MIN_S if settled else min(2 * retry_s, RETRY_MAX_S)
            times = [lease.until_s - self.now() for lease in point.leases.values()] + ([] if settled else [retry_s])
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(times)) if times else None):
                    await point.changed.wait()

    async def _settle(self, point: _Point) -> bool:
        """Write what is to be there, if it is not yet; whether it is there now."""
        async with point.lock:
            point.expire()
            number, owner, until_ms = point.wanted()
            if number is None:
                return True
            try:
                outcome = await self._write(point, number, owner, until_ms)
                if outcome == CommandOutcome.DONE and point.top() is None:
                    await self._remember(point, is_open=False)
            except (MeterError, JournalStalledError):
                return False  # logged; tried again
            return outcome == CommandOutcome.DONE

    async def _remember(self, point: _Point, *, is_open: bool) -> None:
        if point.open != is_open:
            value = b"held" if is_open else b""
            await self._platform.offload(self._recorder.journal.remember, PREFIX + point.name, value)
            point.open = is_open

    # ------------------------------------------------------------ writing

    async def _write(self, point: _Point, value: Fraction, owner: Owner, until_ms: int | None) -> int:
        """Write and read back; log what became of it.

        Raises:
            MeterError: It could not be written or read back.
        """
        raw = encode_writable(point.writable, value)
        point.written = None
        found: Fraction | None = None
        outcome = CommandOutcome.NO_REPLY
        cause = point.cause
        try:
            await point.driver.write(point.meter, point.writable, raw)
            back = await point.driver.read_back(point.meter, point.writable)
            found = decode_writable(point.writable, back)
            outcome = CommandOutcome.DONE if back == raw else CommandOutcome.DIFFERENT
            if outcome == CommandOutcome.DONE:
                point.written = value
        except MeterError as error:
            outcome = _outcome_of(error)
            raise
        finally:
            until_s = None if until_ms is None else until_ms / 1000
            self._log(point, value, owner, cause=cause, outcome=outcome, until_s=until_s, found=found)
        return outcome

    def _log(  # noqa: PLR0913  what an entry says
        self,
        point: _Point,
        value: Fraction,
        owner: Owner,
        *,
        cause: int,
        outcome: int,
        until_s: float | None,
        found: Fraction | None = None,
    ) -> None:
        said = value, owner, cause, outcome, found
        if outcome != CommandOutcome.DONE and said == point.last:
            return
        point.last = said
        mantissa, exponent = decimal(value)
        entry = Command(
            meter=point.meter.name,
            writable=point.writable.name,
            mantissa=mantissa,
            exponent=exponent,
            unit=point.writable.unit,
            found=None if found is None else at_exponent(found, exponent),
            owner=owner.name,
            rank=int(owner.rank),
            cause=cause,
            outcome=outcome,
            time_ms=self._platform.now_ns() // 1_000_000,
            clock=int(self._platform.clock_state()),
            start=self._recorder.start,
            mono_ms=int(self.now() * 1000),
            until_ms=None if until_s is None else max(0, round(until_s * 1000)),
        )
        self._recorder.append_at_once(entry)
        self.on_event(entry)

    def status(self) -> list[dict[str, Any]]:
        """What the operator is told."""
        return [
            {
                "point": point.name,
                "unit": point.writable.unit,
                "written": None if point.written is None else decimal_text(*decimal(point.written)),
                "open": point.open,
                "leases": [
                    {
                        "owner": lease.owner.name,
                        "rank": lease.owner.rank.name.lower(),
                        "value": decimal_text(*decimal(lease.value)),
                        "left_s": round(lease.until_s - self.now(), 1),
                        "active": lease.active,
                    }
                    for lease in point.leases.values()
                ],
            }
            for point in self._points.values()
        ]


def _outcome_of(error: MeterError) -> int:
    if isinstance(error, RefusedError):
        return CommandOutcome.REFUSED
    return CommandOutcome.BUS_DOWN if isinstance(error, BusDownError) else CommandOutcome.NO_REPLY


def decimal(value: Fraction) -> tuple[int, int]:
    """Mantissa and exponent of a number: exact with the fewest digits behind the point, or rounded to what fits."""
    found = exact_decimal(value)
    exponent = -DIGITS_MAX if found is None else found[1]
    scaled = value * 10**-exponent
    while abs(round(scaled)) >> MANTISSA_BITS:
        exponent += 1
        scaled /= 10
    return round(scaled), exponent


def at_exponent(value: Fraction, exponent: int) -> int | None:
    """The mantissa of a number at an exponent, or None where that is not exact or does not fit."""
    scaled = value / Fraction(10) ** exponent
    if scaled.denominator != 1 or abs(scaled.numerator) >> MANTISSA_BITS:
        return None
    return scaled.numerator
