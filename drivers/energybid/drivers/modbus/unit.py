"""A meter as the driver knows it: what is asked for each poll group, what was learned, and what a poll has brought.

No I/O and no waiting here: ``driver`` decides what to ask when.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from energybid.core.ports import Sample
from energybid.core.quantities import Status
from energybid.drivers.modbus.decode import factor_data
from energybid.drivers.modbus.exchange import Asked, Exchange, Outcome
from energybid.drivers.modbus.learned import NEVER, Learned, Patience, Span, Turnaround
from energybid.drivers.modbus.map import ModbusMap
from energybid.drivers.modbus.split import Part, around, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from energybid.core.ports import MeterPlan

# Exception codes, Modbus Application Protocol V1.1b3 §7.
REFUSED = frozenset({1, 2, 3, 4})
"""Illegal function, address or value; device failure."""
SPLIT = frozenset({2, 3, 4})
"""What a smaller request may help against."""
SEARCH_AGAIN_S, SEARCH_RARELY_S = 3600.0, 86_400.0
"""After a search that found nothing that can be read: a meter may refuse everything for a while."""


class Reading:
    """What is asked for one poll group."""

    __slots__ = ("asked", "places", "plain", "smallest")

    def __init__(self, unit: int, parts: Sequence[Part], *, plain: bool) -> None:
        """Encode the requests.

        Args:
            unit: Address of the meter.
            parts: The requests.
            plain: They are all that the profile has: the values come in the group's order.
        """
        self.asked = tuple(Asked(unit, part.request) for part in parts)
        self.places = tuple(part.places for part in parts)
        self.plain = plain
        self.smallest = min(self.asked, key=lambda asked: asked.size)


class Unit:
    """One meter."""

    def __init__(self, meter: MeterPlan, patience: Patience) -> None:
        """Know nothing of it but its plan.

        Raises:
            TypeError: Its map is not for this driver.
        """
        if not isinstance(meter.map, ModbusMap):
            raise TypeError(f"meter {meter.name}: its map is no ModbusMap")
        self.plan = meter
        self.patience = patience
        self.turnaround = Turnaround(meter.map.turnaround_s)
        self.learned = Learned(patience, self.turnaround)
        self.compiled = [parts_of(requests) for requests in meter.map.groups]
        self._pinned = tuple(Span(*span) for span in meter.map.unreadable)
        self.search_at = [-NEVER] * len(self.compiled)
        """Loop time from which on a refusal is looked into, by group."""
        self._fruitless = [0] * len(self.compiled)
        self.retry_at = NEVER
        """Loop time at which refused registers are to be tried again."""
        self.readings: list[Reading] = []
        self._plan_requests()

    def _plan_requests(self) -> None:
        spans = (*self._pinned, *self.learned.refused)
        self.retry_at = min((refusal.retry_at for refusal in self.learned.refused.values()), default=NEVER)
        readings = []
        for parts in self.compiled:
            # A group that is refused as a whole is asked for as a whole: the answer says so each time.
            pieces = around(parts, spans) or parts
            readings.append(Reading(self.plan.unit, pieces, plain=not spans))
        self.readings = readings

    def refuse(self, spans: Iterable[Span], now: float) -> None:
        """Read around these registers from now on."""
        self.learned.refuse(spans, now)
        self._plan_requests()

    def allow(self, span: Span) -> None:
        """Read these registers again."""
        del self.learned.refused[span]
        self._plan_requests()

    def put_off(self, span: Span, now: float) -> None:
        """They are still refused."""
        self.learned.refused[span].put_off(now)
        self.retry_at = min(refusal.retry_at for refusal in self.learned.refused.values())

    def search_later(self, group: int, now: float) -> None:
        """Nothing of a group can be read."""
        self.search_at[group] = now + min(SEARCH_AGAIN_S * 2 ** self._fruitless[group], SEARCH_RARELY_S)
        self._fruitless[group] = min(self._fruitless[group] + 1, 10)

    def take(self, plain: Mapping[str, Any], now: float, wall_ms: int) -> None:
        """Know what an earlier run has learned.

        Raises:
            ValueError: It is damaged.
        """
        self.learned.take(plain, now, wall_ms)
        self._plan_requests()


class Poll:
    """What one poll of a group has brought so far."""

    __slots__ = ("answers", "exchange")

    def __init__(self, exchange: Exchange, places: Sequence[tuple[int, ...]]) -> None:
        """Begin with the group's requests; ``exchange`` keeps the times of the whole poll."""
        self.exchange = exchange
        self.answers: list[tuple[Asked, tuple[int, ...], Outcome]] = list(
            zip(exchange.asked, places, exchange.outcomes, strict=True)
        )

    def add(self, exchange: Exchange, parts: Iterable[Part]) -> None:
        """Further requests were asked."""
        for asked, part, outcome in zip(exchange.asked, parts, exchange.outcomes, strict=True):
            self.answers.append((asked, part.places, outcome))
        heard(self.exchange, exchange)

    @property
    def brought(self) -> bool:
        """Whether any number was read."""
        return any(places and isinstance(outcome, bytes) for _, places, outcome in self.answers)

    def sample(self, count: int) -> Sample:
        """The group's ``count`` values: what has no answer is refused, what was answered twice counts as read."""
        values: list[int | None] = [None] * count
        status: list[int] = [Status.REFUSED] * count
        factors = self._factors()
        for asked, places, outcome in self.answers:
            if not isinstance(outcome, bytes):
                for place in places:
                    if values[place] is None:
                        status[place] = _state(outcome)
                continue
            numbers, states = asked.scaled(outcome, factors) if asked.scaled else asked.decode(outcome)
            for i, place in enumerate(places):
                values[place], status[place] = numbers[i], states[i] if states else Status.OK
        return sampled(self.exchange, values, status if any(status) else None)

    def _factors(self) -> dict[str, bytes | int]:
        """What was read wins over why something was not."""
        found: dict[str, bytes | int] = {}
        for asked, _, outcome in sorted(self.answers, key=lambda answer: isinstance(answer[2], bytes)):
            if asked.request.factors:
                found |= factor_data(asked.request, outcome if isinstance(outcome, bytes) else _state(outcome))
        return found


def plain_sample(exchange: Exchange) -> Sample:
    """The sample of a poll in which every request was answered, as most are."""
    values: list[int | None] = []
    status: list[int] | None = None
    factors: dict[str, bytes | int] | None = None
    for asked, outcome in zip(exchange.asked, exchange.outcomes, strict=True):
        if asked.scaled:
            factors = factors or _factors_of(exchange)
            numbers, states = asked.scaled(outcome, factors)  # type: ignore[arg-type]
        else:
            numbers, states = asked.decode(outcome)  # type: ignore[arg-type]
        if states is not None and status is None:
            status = [0] * len(values)
        values += numbers
        if status is not None:
            status += states or (0,) * len(numbers)
    return sampled(exchange, values, status)


def _factors_of(exchange: Exchange) -> dict[str, bytes | int]:
    """The factors that a poll brought, for the numbers that are multiplied by them."""
    found: dict[str, bytes | int] = {}
    for asked, outcome in zip(exchange.asked, exchange.outcomes, strict=True):
        if asked.request.factors:
            found |= factor_data(asked.request, outcome)
    return found


def sampled(exchange: Exchange, values: Sequence[int | None], status: Sequence[int] | None) -> Sample:
    """Values and statuses with the times of the exchange."""
    received_at = exchange.received_at
    return Sample(
        exchange.received_ns // 1_000_000,
        round((received_at - exchange.sent_at) * 1000),
        int(received_at * 1000),
        tuple(values),
        tuple(status) if status else None,
    )


def heard(exchange: Exchange, further: Exchange) -> None:
    """Requests were asked further for the same poll: its last reply is theirs, if they had one."""
    if not further.silent:
        exchange.received_at, exchange.received_ns = further.received_at, further.received_ns
        exchange.silent = False


def _state(outcome: int) -> Status:
    return Status.REFUSED if outcome in REFUSED else Status.NO_REPLY
