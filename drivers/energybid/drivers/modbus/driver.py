"""The Modbus driver: polls meters over a link, retries what is worth it, learns, makes samples of replies.

Here live the reactions to failures (DESIGN: errors): garbled and unanswered requests are asked again, refused ones are
not but looked into, a group of which a part was read gives a partial sample.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from energybid.core.errors import GarbledError, MeterError, NoReplyError, RefusedError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.ascii import AsciiLink
from energybid.drivers.modbus.decode import factor_value
from energybid.drivers.modbus.exchange import Asked, Exchange, Failure, Outcome, WriteAsked
from energybid.drivers.modbus.framing import EXCEPTION_FLAG
from energybid.drivers.modbus.learned import QUANTILE, Patience
from energybid.drivers.modbus.map import HOLDING, Factor, Request, Writable
from energybid.drivers.modbus.mbap import MbapLink
from energybid.drivers.modbus.relay import RelayAsked
from energybid.drivers.modbus.rtu import RtuLink
from energybid.drivers.modbus.rtu_tcp import RtuTcpLink
from energybid.drivers.modbus.split import Part, Search, trial
from energybid.drivers.modbus.udp import UdpLink
from energybid.drivers.modbus.unit import REFUSED, SPLIT, Poll, Unit, heard, plain_sample, shared_out
from energybid.drivers.target import ASCII, RTU, RTU_TCP, TCP, UDP

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from energybid.core.ports import BusPlan, Driver, MeterPlan, Platform, Sample
    from energybid.drivers.modbus.link import Link

# Exception codes, Modbus Application Protocol V1.1b3 §7; those that refuse are in ``unit``.
ILLEGAL_ADDRESS = 2
BUSY = frozenset({5, 6})
"""Acknowledge ("I need longer"), server device busy."""
UNREACHED = frozenset({10, 11})
"""A gateway has no path, or its target did not respond: the meter itself has not answered."""
BUSY_PAUSE_S = 0.1
READS = frozenset({1, 2, 3, 4})
RELAY_FADES = 0.9
"""So much of a unit's longest delay counts at its next answer."""
SERIAL_CONCURRENCY = 4
"""Polls at once on a line: one speaks, the others wait for their turn, or for a late reply to pass."""
SEARCH_AT_ONCE = 2
"""Requests of a search that go out together; between them other meters have their turn."""
SERIAL_FLOOR_S, TCP_FLOOR_S = 0.1, 0.2
"""No time-out that is learned is shorter: adapters, networks and busy gateways hold replies back."""

LINKS: dict[str, type[Link]] = {TCP: MbapLink, UDP: UdpLink, RTU: RtuLink, ASCII: AsciiLink, RTU_TCP: RtuTcpLink}
"""What speaks each kind of bus."""
MATCHED = frozenset({TCP, UDP})
"""Kinds that match replies to requests by transaction, and so may have several under way."""


def open_driver(platform: Platform, plan: BusPlan) -> Driver:
    """Driver of a Modbus bus; call it in the running loop. It connects when it is first polled.

    Args:
        platform: The seams.
        plan: A bus of a kind in ``LINKS``; its meters' maps come from ``compile_profile``.

    Raises:
        ValueError: Another kind of bus.
    """
    if plan.kind not in LINKS:
        raise ValueError(f"bus {plan.name}: the Modbus driver does not speak {plan.kind}")
    return ModbusDriver(platform, LINKS[plan.kind](platform, plan), plan)


class ModbusDriver:
    """Polls the meters of one bus. Implements ``Driver``."""

    def __init__(self, platform: Platform, link: Link, plan: BusPlan) -> None:
        """Know the meters. Each request is encoded once, when it is first needed.

        Args:
            platform: The seams.
            link: Carries the exchanges.
            plan: The bus.
        """
        self._platform = platform
        self._link = link
        self._bus = plan.name
        self._loop = asyncio.get_running_loop()
        alone = plan.kind not in MATCHED and len(plan.meters) == 1
        self._units = {meter.name: Unit(meter, _patience(plan, meter), alone=alone) for meter in plan.meters}
        self._by_address = {unit.plan.unit: unit for unit in self._units.values()}
        self._relay_delays: dict[int, float] = {}
        """Unit → the longest that it took to answer other masters lately, or was waited for in vain."""
        self.concurrency = max(1, plan.in_flight) if plan.kind in MATCHED else SERIAL_CONCURRENCY
        """How many polls may be under way at once."""

    async def poll(self, meter: MeterPlan, group: int, *, probe: bool = False, slack_s: float = 0.0) -> Sample:
        """Read one group of one meter; see ``Driver.poll``."""
        unit = self._units[meter.name]
        if probe:
            await self._probe(unit, group, slack_s)
        return await self._read(unit, group)

    async def poll_together(self, meter: MeterPlan, groups: tuple[int, ...]) -> list[Sample]:
        """Read several groups with shared requests; see ``Driver.poll_together``."""
        unit = self._units[meter.name]
        sample = await self._read(unit, unit.together[groups])
        return shared_out(sample, (len(meter.groups[group].quantities) for group in groups))

    async def _read(self, unit: Unit, group: int) -> Sample:
        """Read a group, or one of ``Unit.together``."""
        reading, patience = unit.readings[group], unit.patience
        exchange = await self._run(unit, reading.asked, patience.timeout_s)
        for outcome in exchange.outcomes:
            if type(outcome) is not bytes:
                break
        else:
            unit.turnaround.went_well()
            if reading.plain:
                patience.answered(exchange.delay_s)
                return plain_sample(exchange, reading.order)
        return await self._make_the_best(unit, group, exchange, reading.places)

    async def write(self, meter: MeterPlan, writable: object, raw: bytes) -> None:
        """Write a number of a meter, before any poll; see ``Driver.write``."""
        place = _place_of(writable)
        if len(raw) != 2 * place.count:
            raise ValueError(f"{place.name} has {place.count} registers, not {len(raw)} bytes")
        for guard in place.guards:
            await self._see_to(meter, place, guard)
        await self._at_once(meter, WriteAsked(meter.unit, place.first, raw))

    async def read_back(self, meter: MeterPlan, writable: object) -> bytes:
        """What stands in the registers of a number, before any poll; see ``Driver.read_back``."""
        place = _place_of(writable)
        request = Request(function=HOLDING, first=place.first, count=place.count, fields=())
        return await self._at_once(meter, Asked(meter.unit, request))

    async def _see_to(self, meter: MeterPlan, place: Writable, guard: Factor) -> None:
        """Read what must hold its value for a write to be right.

        Raises:
            RefusedError: It holds another.
        """
        request = Request(function=guard.function, first=guard.first, count=guard.end - guard.first, fields=())
        if factor_value(guard, await self._at_once(meter, Asked(meter.unit, request))) is None:
            where = f"{self._bus}/{meter.name}: {place.name} is not written"
            raise RefusedError(f"{where}: {guard.name} at {guard.first} is not what the profile says", ILLEGAL_ADDRESS)

    async def _at_once(self, meter: MeterPlan, asked: Asked) -> bytes:
        """Ask before anything that waits. Writes are slow in some meters: the configured time-out holds, unlearned."""
        unit = self._units[meter.name]
        garbled = 0
        for _ in range(1 + unit.plan.retries):
            gap_s = unit.turnaround.extra_s
            exchange = await self._link.run([asked], unit.patience.ceiling_s, gap_s=gap_s, urgent=True)
            outcome = exchange.outcomes[0]
            if not _again(outcome, garbled):
                break
            garbled += outcome == Failure.GARBLED
            if outcome in BUSY:
                await asyncio.sleep(BUSY_PAUSE_S)
        if isinstance(outcome, bytes):
            return outcome
        raise self._error(unit, [(asked, outcome)])

    # ------------------------------------------------------------ on behalf of other masters

    async def relay(self, unit: int, pdu: bytes, timeout_s: float) -> bytes:
        """Ask any unit once, for somebody else, who has been given the bus; nothing is learned of it for the polls.

        Args:
            unit: Address on the bus.
            pdu: A request that ``proxy.rules.wanted`` has found whole.
            timeout_s: How long a unit may take that is none of the plan's meters.

        Returns:
            The PDU of the answer or exception.

        Raises:
            BusDownError: The bus can not be opened or was lost.
            NoReplyError: Nothing came.
            GarbledError: What came was not the answer.
        """
        asked, meter = RelayAsked(unit, pdu), self._by_address.get(unit)
        late_s = gap_s = 0.0
        if meter is not None:
            ceiling_s = meter.patience.ceiling_s
            timeout_s = meter.patience.timeout_s if pdu[0] in READS else ceiling_s
            late_s, gap_s = ceiling_s - timeout_s, meter.turnaround.extra_s
        exchange = await self._link.run([asked], timeout_s, late_s=late_s, gap_s=gap_s, urgent=True)
        outcome = exchange.outcomes[0]
        if isinstance(outcome, bytes):
            self._relay_delays[unit] = max(exchange.delay_s, RELAY_FADES * self._relay_delays.get(unit, 0.0))
            return outcome
        if outcome > 0:
            return bytes((pdu[0] | EXCEPTION_FLAG, outcome))
        self._relay_delays[unit] = timeout_s
        place = f"{self._bus} ({asked})"
        if outcome == Failure.GARBLED:
            raise GarbledError(f"{place}: what came was not the answer")
        raise NoReplyError(f"{place}: nothing came")

    def relay_s(self, unit: int, pdu: bytes, timeout_s: float) -> float:
        """How long ``relay`` will need the bus: as the unit has answered so far, or until it is given up."""
        delay_s = self._relay_delays.get(unit, 0.0)
        meter = self._by_address.get(unit)
        if meter is not None and pdu[0] in READS:
            delay_s = max(delay_s, meter.patience.delays.quantile(QUANTILE))
        delay_s = delay_s or timeout_s
        return delay_s + self._link.on_line_s(RelayAsked(unit, pdu))

    def overhear(self, tap: Callable[[Exchange], None] | None) -> None:
        """Have every exchange on the bus told to ``tap`` when it is over."""
        self._link.tap = tap

    def learned(self, meter: MeterPlan) -> dict[str, Any]:
        """What was learned of a meter; see ``Driver.learned``."""
        return self._units[meter.name].learned.plain(self._loop.time(), self._wall_ms())

    def learn(self, meter: MeterPlan, plain: Mapping[str, Any]) -> None:
        """Take up what an earlier run has learned; see ``Driver.learn``."""
        self._units[meter.name].take(plain, self._loop.time(), self._wall_ms())

    def shown(self, meter: MeterPlan) -> dict[str, Any]:
        """What the operator is told; see ``Driver.shown``."""
        return self._units[meter.name].learned.shown(self._loop.time())

    async def close(self) -> None:
        """Release the bus; idempotent."""
        await self._link.close()

    def _wall_ms(self) -> int:
        return self._platform.now_ns() // 1_000_000

    # ------------------------------------------------------------ asking

    async def _probe(self, unit: Unit, group: int, slack_s: float) -> None:
        """See whether a meter that is thought dead answers anything: its smallest request, once, without patience.

        Raises:
            NoReplyError: It does not.
            GarbledError: Something came, but not its answer.
        """
        asked = unit.readings[group].smallest
        exchange = await self._run(unit, [asked], unit.patience.probe_s(slack_s))
        outcome = exchange.outcomes[0]
        if not isinstance(outcome, bytes) and outcome not in REFUSED:
            raise self._error(unit, [(asked, outcome)])

    def _run(self, unit: Unit, asked: Sequence[Asked], timeout_s: float) -> Awaitable[Exchange]:
        late_s = unit.patience.ceiling_s - timeout_s
        return self._link.run(asked, timeout_s, late_s=late_s, gap_s=unit.turnaround.extra_s)

    async def _ask(self, unit: Unit, asked: Sequence[Asked]) -> Exchange:
        """Ask once, and again what failed."""
        exchange = await self._run(unit, asked, unit.patience.timeout_s)
        await self._ask_again(unit, exchange)
        return exchange

    async def _ask_again(self, unit: Unit, exchange: Exchange) -> None:
        """Ask again what failed."""
        self._note(unit, exchange)
        failed = [i for i, outcome in enumerate(exchange.outcomes) if outcome in {Failure.NO_REPLY, Failure.GARBLED}]
        garbled = 0
        for _ in range(unit.plan.retries):
            indexes = [i for i, outcome in enumerate(exchange.outcomes) if _again(outcome, garbled)]
            if not indexes:
                break
            garbled += Failure.GARBLED in exchange.outcomes
            if BUSY.intersection(o for o in exchange.outcomes if isinstance(o, int)):
                await asyncio.sleep(BUSY_PAUSE_S)
            asked = [exchange.asked[i] for i in indexes]
            further = await self._run(unit, asked, unit.patience.timeout_s)
            self._note(unit, further)
            for index, outcome in zip(indexes, further.outcomes, strict=True):
                exchange.outcomes[index] = outcome
            heard(exchange, further)
        if exchange.hurried and any(isinstance(exchange.outcomes[i], bytes) for i in failed):
            unit.turnaround.went_wrong()

    @staticmethod
    def _note(unit: Unit, exchange: Exchange) -> None:
        if not exchange.silent:
            unit.patience.answered(exchange.delay_s)
        if Failure.NO_REPLY in exchange.outcomes:
            unit.patience.missed()

    # ------------------------------------------------------------ what is not answered at once

    async def _make_the_best(
        self, unit: Unit, group: int, exchange: Exchange, places: Sequence[tuple[int, ...]]
    ) -> Sample:
        """Ask again, look into refusals, try what was refused once; make of it what there is.

        ``places`` are those of the requests that were asked: a poll of another group may have had all planned anew.
        """
        await self._ask_again(unit, exchange)
        poll = Poll(exchange, places)
        await self._search(unit, group, poll)
        if self._loop.time() >= unit.retry_at:
            await self._retry(unit, group, poll)
        if not poll.brought:
            raise self._error(unit, [(asked, outcome) for asked, _, outcome in poll.answers])
        return poll.sample(sum(len(part.places) for part in unit.compiled[group]))

    async def _search(self, unit: Unit, group: int, poll: Poll) -> None:
        """Find out which registers are to blame for a refusal, and read the others in the same poll."""
        searches = [
            Search(Part(asked.request, places), outcome)
            for asked, places, outcome in poll.answers
            if outcome in REFUSED
        ]
        if not searches or self._loop.time() < unit.search_at[group]:
            return
        level = [search for search in searches if search.outcome in SPLIT]
        while level:
            halves = [half for search in level for half in search.split()]
            for at in range(0, len(halves), SEARCH_AT_ONCE):
                batch = halves[at : at + SEARCH_AT_ONCE]
                await self._ask_parts(unit, [half.part for half in batch], poll)
                for half, (_, _, outcome) in zip(batch, poll.answers[-len(batch) :], strict=True):
                    half.outcome = outcome
            level = [half for half in halves if half.outcome in SPLIT]
        if not poll.brought:
            unit.search_later(group, self._loop.time())
            return
        # What could not be split was refused once only: it is asked again before it is believed.
        for search in searches:
            if not search.halves:
                await self._ask_parts(unit, [search.part], poll)
                search.outcome = poll.answers[-1][2]
        unit.refuse([span for search in searches for span in search.verdict(REFUSED, unit.values())], self._loop.time())

    async def _retry(self, unit: Unit, group: int, poll: Poll) -> None:
        """Try once more what was refused long ago: at most one request in a poll."""
        now = self._loop.time()
        due = (span for span, refusal in unit.learned.refused.items() if refusal.retry_at <= now)
        for span in due:
            part = trial(unit.compiled[group], span)
            if part is not None:
                await self._ask_parts(unit, [part], poll)
                if isinstance(poll.answers[-1][2], bytes):
                    unit.allow(span)
                else:
                    unit.put_off(span, now)
                return

    async def _ask_parts(self, unit: Unit, parts: Sequence[Part], poll: Poll) -> None:
        poll.add(await self._ask(unit, [Asked(unit.plan.unit, part.request) for part in parts]), parts)

    def _error(self, unit: Unit, answers: Sequence[tuple[Asked, Outcome]]) -> MeterError:
        """Why nothing at all was read."""
        asked, outcome = answers[0]
        place = f"{self._bus}/{unit.plan.name} ({asked})"
        outcomes = [outcome for _, outcome in answers]
        if all(outcome in REFUSED for outcome in outcomes):
            return RefusedError(f"{place}: refused with exception {outcome!r}", cast("int", outcome))
        if Failure.GARBLED in outcomes:
            return GarbledError(f"{place}: what came was not the answer")
        why = f"exception {int(outcome)}" if isinstance(outcome, int) and outcome > 0 else "nothing came"
        return NoReplyError(f"{place}: no answer: {why}")


def _place_of(writable: object) -> Writable:
    if not isinstance(writable, Writable):
        raise TypeError(f"{writable!r} is no Writable")
    return writable


def _patience(plan: BusPlan, meter: MeterPlan) -> Patience:
    """A meter behind a gateway may have to wait for others there: its delays say nothing of it alone."""
    if isinstance(plan.endpoint, SerialEndpoint):
        return Patience(meter.timeout_s, SERIAL_FLOOR_S)
    shared = plan.kind in MATCHED and len(plan.meters) > 1
    return Patience(meter.timeout_s, meter.timeout_s if shared else TCP_FLOOR_S)


def _again(outcome: Outcome, garbled: int) -> bool:
    """Whether to ask again: garbled only once, refused never."""
    if isinstance(outcome, bytes) or outcome in REFUSED:
        return False
    return not (outcome == Failure.GARBLED and garbled)
