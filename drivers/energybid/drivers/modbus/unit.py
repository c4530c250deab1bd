"""A meter as the driver knows it: what is asked for each poll group, what was learned, and what a poll has brought.

No I/O and no waiting here: ``driver`` decides what to ask when.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from energybid.core.ports import Sample
from energybid.core.quantities import Status
from energybid.drivers.modbus.decode import factor_data
from energybid.drivers.modbus.exchange import Asked, Exchange, Outcome, Wider
from energybid.drivers.modbus.learned import NEVER, SAMPLES_MIN, Learned, Patience, Span, Turnaround
from energybid.drivers.modbus.map import ModbusMap
from energybid.drivers.modbus.split import Cell, Part, around, cells_of, part_of, parts_of, planned, trial, widened

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from energybid.core.ports import MeterPlan
    from energybid.drivers.planner import Terms

# Exception codes, Modbus Application Protocol V1.1b3 §7.
REFUSED = frozenset({1, 2, 3, 4})
"""Illegal function, address or value; device failure."""
SPLIT = frozenset({2, 3, 4})
"""What a smaller request may help against."""
MEDIAN = 0.5
SEARCH_AGAIN_S, SEARCH_RARELY_S = 3600.0, 86_400.0
"""After a search that found nothing that can be read: a meter may refuse everything for a while."""


class Reading:
    """What is asked for one poll group, or for several at once."""

    __slots__ = ("asked", "order", "places", "plain", "smallest")

    def __init__(self, unit: int, parts: Sequence[Part], *, plain: bool) -> None:
        """Encode the requests.

        Args:
            unit: Address of the meter.
            parts: The requests.
            plain: They are all that the profile has.
        """
        self.asked = tuple(Asked(unit, part.request) for part in parts)
        self.places = tuple(part.places for part in parts)
        self.plain = plain
        least = min((cell for part in parts for cell in _values(part)), key=lambda value: value[1].end - value[1].first)
        self.smallest = Asked(unit, part_of(least[0], [least[1]]).request)
        """For a probe: a single value."""
        places = [place for part in parts for place in part.places]
        self.order = None if places == sorted(places) else sorted(range(len(places)), key=places.__getitem__)
        """Where the groups' values stand among those of the requests, one after another; None: in their order."""

    def widen(self, spans: Collection[Span], terms: Terms) -> None:
        """Have each request in two lengths, where that may be."""
        for asked in self.asked:
            found = widened(asked.request, spans, terms)
            if found is not None:
                asked.wider = Wider(Asked(asked.unit, found[0]), 2 * found[1])


def _values(part: Part) -> list[tuple[int, Cell]]:
    return [(part.request.function, cell) for cell in cells_of(part)]


class _Readings(dict[int, Reading]):
    """What is asked for each group, made when it is first needed: few sets of groups ever fall due together."""

    def __init__(self, make: Callable[[int], Reading]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, group: int) -> Reading:
        reading = self[group] = self._make(group)
        return reading


class Unit:
    """One meter."""

    def __init__(self, meter: MeterPlan, patience: Patience, *, alone: bool = False) -> None:
        """Know nothing of it but its plan.

        Args:
            meter: The plan.
            patience: How long it is waited for.
            alone: No other meter's requests come between its own.

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
        """The requests of each poll group, and behind them those of groups that are read at once."""
        self.together: dict[tuple[int, ...], int] = {}
        """Groups that are read at once → where their requests stand in ``compiled``."""
        for several in meter.map.together:
            self.together[several.groups] = len(self.compiled)
            self.compiled.append([Part(*pair) for pair in zip(several.requests, several.places, strict=True)])
        self._terms = meter.map.terms
        self._alone = alone
        self.search_at = [-NEVER] * len(self.compiled)
        """Loop time from which on a refusal is looked into, by group."""
        self._fruitless = [0] * len(self.compiled)
        self.retry_at = NEVER
        """Loop time at which refused registers are to be tried again."""
        self.readings = _Readings(self._reading)

    def _reading(self, group: int) -> Reading:
        parts, spans = self.compiled[group], self.learned.refused
        # A group that is refused as a whole is asked for as a whole: the answer says so each time.
        pieces = around(parts, spans, self._terms) or parts
        reading = Reading(self.plan.unit, pieces, plain=not spans)
        if self._alone and self._terms is not None:
            reading.widen(spans, self._terms)
        return reading

    def _plan_anew(self) -> None:
        self.retry_at = min((refusal.retry_at for refusal in self.learned.refused.values()), default=NEVER)
        self.readings.clear()

    def values(self) -> set[Span]:
        """Registers of every value and factor of every group."""
        parts = (part for parts in self.compiled for part in parts)
        cells = ((part.request.function, cell) for part in parts for cell in cells_of(part))
        return {Span(function, cell.first, cell.end - cell.first) for function, cell in cells}

    def refuse(self, spans: Iterable[Span], now: float) -> None:
        """Read around these registers from now on."""
        self.learned.refuse(spans, now)
        self._plan_anew()

    def allow(self, span: Span) -> None:
        """Read these registers again. A poll of another group may have found that out meanwhile."""
        self.learned.refused.pop(span, None)
        self._plan_anew()

    def put_off(self, span: Span, now: float) -> None:
        """They are still refused, unless a poll of another group knows better by now."""
        if span in self.learned.refused:
            self.learned.refused[span].put_off(now)
            self.retry_at = min(refusal.retry_at for refusal in self.learned.refused.values())

    def search_later(self, group: int, now: float) -> None:
        """Nothing of a group can be read."""
        self.search_at[group] = now + min(SEARCH_AGAIN_S * 2 ** self._fruitless[group], SEARCH_RARELY_S)
        self._fruitless[group] = min(self._fruitless[group] + 1, 10)

    def take(self, plain: Mapping[str, Any], now: float, wall_ms: int) -> None:
        """Know what an earlier run has learned; requests are planned anew with the reply delay that it has measured.

        Raises:
            ValueError: It is damaged.
        """
        self.learned.take(plain, now, wall_ms)
        delays = self.patience.delays
        if self._terms is not None and delays.total >= SAMPLES_MIN:
            cost = self._terms.cost.with_delay(delays.quantile(MEDIAN))
            if cost != self._terms.cost:
                self._terms = terms = replace(self._terms, cost=cost)
                self.compiled = [planned(parts, terms) for parts in self.compiled]
        # What no request touches any more, as with other quantities, would never be tried again.
        asked = [part for parts in self.compiled for part in parts]
        self.learned.refused = {span: refusal for span, refusal in self.learned.refused.items() if trial(asked, span)}
        self._plan_anew()


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


def plain_sample(exchange: Exchange, order: Sequence[int] | None = None) -> Sample:
    """The sample of a poll in which every request was answered, as most are.

    Args:
        exchange: With replies only.
        order: As in ``Reading``.
    """
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
    if order:
        values = [values[at] for at in order]
        status = status and [status[at] for at in order]
    return sampled(exchange, values, status)


def shared_out(sample: Sample, sizes: Iterable[int]) -> list[Sample]:
    """One sample for each of several groups of so many values that were read at once."""
    samples, at = [], 0
    for size in sizes:
        status = sample.status and sample.status[at : at + size]
        values = sample.values[at : at + size]
        samples.append(sample._replace(values=values, status=status if status and any(status) else None))
        at += size
    return samples


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
    """Requests were asked further for the same poll: its last reply is theirs, if they had one.

    So is its first request, where the connection was given up before any of the poll's own was sent.
    """
    exchange.sent_at = min(exchange.sent_at, further.sent_at)
    if not further.silent:
        exchange.received_at, exchange.received_ns = further.received_at, further.received_ns
        exchange.silent = False


def _state(outcome: int) -> Status:
    return Status.REFUSED if outcome in REFUSED else Status.NO_REPLY
