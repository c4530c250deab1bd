"""The Modbus driver: polls meters over a link, retries what is worth it, makes samples of replies.

Here live the reactions to failures (DESIGN: errors): garbled and unanswered requests are asked again, refused ones are
not, a group of which a part was read gives a partial sample.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from energybid.core.errors import GarbledError, MeterError, NoReplyError, RefusedError
from energybid.core.ports import Sample
from energybid.core.quantities import Status
from energybid.drivers.modbus.decode import factor_data
from energybid.drivers.modbus.exchange import Asked, Exchange, Failure, Outcome
from energybid.drivers.modbus.map import ModbusMap
from energybid.drivers.modbus.mbap import MbapLink
from energybid.drivers.modbus.rtu import RtuLink

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.core.ports import BusPlan, Driver, MeterPlan, Platform
    from energybid.drivers.modbus.link import Link

# Exception codes, Modbus Application Protocol V1.1b3 §7.
REFUSED = frozenset({1, 2, 3, 4})
"""Illegal function, address or value; device failure."""
BUSY = frozenset({5, 6})
"""Acknowledge ("I need longer"), server device busy."""
UNREACHED = frozenset({10, 11})
"""A gateway has no path, or its target did not respond: the meter itself has not answered."""
BUSY_PAUSE_S = 0.1
SERIAL_CONCURRENCY = 4
"""Polls at once on a line: one speaks, the others wait for their turn, or for a late reply to pass."""

TCP, RTU = "modbus-tcp", "modbus-rtu"


def open_driver(platform: Platform, plan: BusPlan) -> Driver:
    """Driver of a Modbus bus; call it in the running loop. It connects when it is first polled.

    Args:
        platform: The seams.
        plan: A bus of kind ``modbus-tcp`` or ``modbus-rtu``; its meters' maps come from ``compile_profile``.

    Raises:
        ValueError: Another kind of bus.
    """
    if plan.kind not in {TCP, RTU}:
        raise ValueError(f"bus {plan.name}: the Modbus driver does not speak {plan.kind}")
    link = MbapLink(platform, plan) if plan.kind == TCP else RtuLink(platform, plan)
    return ModbusDriver(link, plan)


class ModbusDriver:
    """Polls the meters of one bus. Implements ``Driver``."""

    def __init__(self, link: Link, plan: BusPlan) -> None:
        """Encode every request of every meter once.

        Args:
            link: Carries the exchanges.
            plan: The bus.
        """
        self._link = link
        self._bus = plan.name
        self._asked = {meter.name: _asked(meter) for meter in plan.meters}
        self.concurrency = max(1, plan.in_flight) if plan.kind == TCP else SERIAL_CONCURRENCY
        """How many polls may be under way at once."""

    async def poll(self, meter: MeterPlan, group: int, *, probe: bool = False) -> Sample:
        """Read one group of one meter; see ``Driver.poll``."""
        exchange = await self._link.run(self._asked[meter.name][group], meter.timeout_s)
        outcomes = exchange.outcomes
        if not all(type(outcome) is bytes for outcome in outcomes):
            return await self._poll_again(meter, exchange, tries=0 if probe else meter.retries)
        return _sample(exchange, exchange.sent_at)

    async def close(self) -> None:
        """Release the bus; idempotent."""
        await self._link.close()

    async def _poll_again(self, meter: MeterPlan, exchange: Exchange, *, tries: int) -> Sample:
        """Ask again what failed; make of it what there is."""
        sent_at, garbled = exchange.sent_at, 0
        for _ in range(tries):
            indexes = [i for i, outcome in enumerate(exchange.outcomes) if _again(outcome, garbled)]
            if not indexes:
                break
            garbled += Failure.GARBLED in exchange.outcomes
            if BUSY.intersection(o for o in exchange.outcomes if isinstance(o, int)):
                await asyncio.sleep(BUSY_PAUSE_S)
            further = await self._link.run([exchange.asked[i] for i in indexes], meter.timeout_s)
            _merge(exchange, indexes, further)
        wanted = zip(exchange.asked, exchange.outcomes, strict=True)
        if not any(isinstance(outcome, bytes) and asked.request.fields for asked, outcome in wanted):
            raise self._error(meter, exchange)
        return _sample(exchange, sent_at)

    def _error(self, meter: MeterPlan, exchange: Exchange) -> MeterError:
        """Why nothing at all was read."""
        outcome, asked = next(zip(exchange.outcomes, exchange.asked, strict=True))
        codes = [o for o in exchange.outcomes if o in REFUSED]
        place = f"{self._bus}/{meter.name} ({asked})"
        if len(codes) == len(exchange.outcomes):
            return RefusedError(f"{place}: refused with exception {outcome!r}", cast("int", outcome))
        if Failure.GARBLED in exchange.outcomes:
            return GarbledError(f"{place}: what came was not the answer")
        why = f"exception {int(outcome)}" if isinstance(outcome, int) and outcome > 0 else f"within {meter.timeout_s} s"
        return NoReplyError(f"{place}: no answer: {why}")


def _asked(meter: MeterPlan) -> tuple[tuple[Asked, ...], ...]:
    if not isinstance(meter.map, ModbusMap):
        raise TypeError(f"meter {meter.name}: its map is no ModbusMap")
    return tuple(tuple(Asked(meter.unit, request) for request in requests) for requests in meter.map.groups)


def _again(outcome: Outcome, garbled: int) -> bool:
    """Whether to ask again: garbled only once, refused never."""
    if isinstance(outcome, bytes) or outcome in REFUSED:
        return False
    return not (outcome == Failure.GARBLED and garbled)


def _merge(exchange: Exchange, indexes: Sequence[int], further: Exchange) -> None:
    for index, outcome in zip(indexes, further.outcomes, strict=True):
        exchange.outcomes[index] = outcome
    if not further.silent:
        exchange.received_at, exchange.received_ns = further.received_at, further.received_ns


def _sample(exchange: Exchange, sent_at: float) -> Sample:
    values: list[int | None] = []
    status: list[int] = []
    doubtful = False
    numbers: Sequence[int | None]
    states: Sequence[int] | None
    for asked, outcome in zip(exchange.asked, exchange.outcomes, strict=True):
        if not isinstance(outcome, bytes):
            numbers, states = _NONE * len(asked.request.fields), (_state(outcome),) * len(asked.request.fields)
        elif asked.scaled:
            numbers, states = asked.scaled(outcome, _factors(exchange))
        else:
            numbers, states = asked.decode(outcome)
        values += numbers
        if states is not None and not doubtful:
            doubtful = True
            status = [0] * (len(values) - len(numbers))
        if doubtful:
            status += states or (0,) * len(numbers)
    received_at = exchange.received_at
    return Sample(
        exchange.received_ns // 1_000_000,
        round((received_at - sent_at) * 1000),
        int(received_at * 1000),
        tuple(values),
        tuple(status) if doubtful else None,
    )


def _state(outcome: int) -> Status:
    return Status.REFUSED if outcome in REFUSED else Status.NO_REPLY


def _factors(exchange: Exchange) -> dict[str, bytes | int]:
    """The factors that a poll brought, for the numbers that are multiplied by them."""
    found: dict[str, bytes | int] = {}
    for asked, outcome in zip(exchange.asked, exchange.outcomes, strict=True):
        if asked.request.factors:
            found |= factor_data(asked.request, outcome if isinstance(outcome, bytes) else _state(outcome))
    return found


_NONE: tuple[None] = (None,)
