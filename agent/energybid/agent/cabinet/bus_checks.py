"""How well a bus does, judged by the requests made on it, and who is on it twice. Pure: facts in, findings out."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from energybid.agent.cabinet.findings import error, note, warning
from energybid.agent.cabinet.reading import FAILURES
from energybid.drivers.modbus.exchange import Failure
from energybid.drivers.modbus.map import ModbusMap
from energybid.drivers.modbus.unit import REFUSED
from energybid.drivers.planner import Span, bus_cost
from energybid.drivers.target import ASCII

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from energybid.agent.cabinet.findings import Finding
    from energybid.agent.cabinet.reading import Asked
    from energybid.core.ports import BusPlan, MeterPlan

ERRORS, MANY_ERRORS = 0.01, 0.05
"""Share of requests that were not answered as they should be."""
SLOW = 0.5
"""Of the time-out."""
FULL, NEARLY_FULL = 1.0, 0.8
"""Share of the bus's time that polling takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """How a meter answered."""

    name: str
    unit: int
    timeout_s: float
    asked: tuple[Asked, ...]
    serial_number: str | None = None

    @property
    def delays_s(self) -> list[float]:
        """Of its replies."""
        return [a.delay_s for a in self.asked if isinstance(a.outcome, bytes) or a.outcome in REFUSED]

    @property
    def alive(self) -> bool:
        """It answered at all."""
        return bool(self.delays_s)


def check_bus(bus: BusPlan, services: Sequence[Service]) -> list[Finding]:
    """Everything that the requests of a watch tell of their bus."""
    return [
        *(finding for service in services for finding in health(service)),
        *twins(bus.name, services),
        *share(bus, services),
    ]


def health(service: Service) -> Iterator[Finding]:
    """Silence, errors and slowness of one meter."""
    asked, where = service.asked, service.name
    if not service.alive:
        garbled = any(a.outcome == Failure.GARBLED for a in asked)
        yield error(
            "silent",
            where,
            f"No answer to {len(asked)} requests" + (", but bytes that are no Modbus." if garbled else "."),
            "Another rate or parity, or two meters with one address."
            if garbled
            else "No supply, wires A and B changed over, or another unit number or rate than is configured.",
            f"energybid scan says who is there; it is configured as unit {service.unit}.",
        )
        return
    failed = Counter(FAILURES.get(int(a.outcome), "busy") for a in asked if _failed(a))
    count = sum(failed.values())
    if count > 1 and count / len(asked) >= ERRORS:
        tell = error if count / len(asked) >= MANY_ERRORS else warning
        kinds = ", ".join(f"{number}x {kind}" for kind, number in sorted(failed.items()))
        yield tell(
            "errors",
            where,
            f"{count} of {len(asked)} requests failed: {kinds}.",
            "Noise, reflections or two devices that speak at once."
            if failed["garbled"]
            else "The meter is overloaded, its timeout too short, or the line is disturbed.",
            "Terminate both ends with 120 ohm, check shield and A/B, look for a second master or a second device with "
            "this address; try a lower rate."
            if failed["garbled"]
            else "Try a longer timeout for the meter; check the line as well.",
        )
    middle = median(service.delays_s)
    if middle > SLOW * service.timeout_s:
        yield warning(
            "slow",
            where,
            f"Replies begin after {middle * 1000:.0f} ms; the timeout is {service.timeout_s * 1000:.0f} ms.",
            "Little is left until good replies count as lost.",
            f'Set timeout = "{3 * middle * 1000:.0f} ms" for this meter.',
        )
    refused = sorted({str(a) for a in asked if a.outcome in REFUSED})
    if refused:
        yield note(
            "refused",
            where,
            f"Refused: {', '.join(refused)}.",
            "This meter does not have all registers of its profile: another firmware, or another model.",
            "Leave those quantities out, or find the right profile (energybid scan).",
        )


def _failed(asked: Asked) -> bool:
    return not isinstance(asked.outcome, bytes) and asked.outcome not in REFUSED


def twins(bus: str, services: Sequence[Service]) -> Iterator[Finding]:
    """Meters on one bus with the same serial number."""
    owners = defaultdict(list)
    for service in services:
        if service.serial_number and service.serial_number.strip("0"):
            owners[service.serial_number].append(service)
    for serial, several in sorted(owners.items()):
        if len(several) > 1:
            names = ", ".join(f"{service.name} (unit {service.unit})" for service in several)
            yield error(
                "same-meter",
                bus,
                f"The same serial number {serial}: {names}.",
                "One meter answers for several units, and is counted more than once.",
                "Compare the serial numbers with the name plates; remove what is not there.",
            )


def stray(bus: str, unit: int, like: str, configured: int, *, same: bool) -> Finding:
    """A unit answers that is not configured.

    Args:
        bus: Its name.
        unit: The unit.
        like: The meter whose request it was.
        configured: How many meters the bus has.
        same: The answer was that meter's own identity or values.
    """
    measured = f"Unit {unit}, which is not configured, answers as {like} does."
    if same and configured > 1:
        return error(
            "any-unit",
            bus,
            measured,
            "The device does not look at the unit number: the meters of this bus may all be one and the same.",
            "Compare values and serial numbers with the displays; one bus for each such device.",
        )
    return note(
        "any-unit",
        bus,
        measured,
        "The device does not look at the unit number, or there is one more meter.",
        "Nothing, for a single meter behind its own address; else energybid scan says who is there.",
    )


def share(bus: BusPlan, services: Sequence[Service]) -> Iterator[Finding]:
    """How much of the bus's time the configured polls take, at the delays that were measured."""
    delays = {service.name: median(service.delays_s) for service in services if service.alive}
    used = [(busy_share(bus, meter, delays[meter.name]), meter) for meter in bus.meters if meter.name in delays]
    total = sum(part for part, _ in used)
    if total <= NEARLY_FULL:
        return
    most, meter = max(used, key=lambda pair: pair[0])
    tell = error if total > FULL else warning
    yield tell(
        "share",
        bus.name,
        f"The configured polls take {total * 100:.0f} % of the bus's time; {meter.name} alone {most * 100:.0f} %.",
        "They can not be kept: readings will be late." if total > FULL else "Nothing is left for retries.",
        f"Lengthen the intervals {total / NEARLY_FULL:.1f} times, read fewer quantities, or raise the rate.",
    )


def busy_share(bus: BusPlan, meter: MeterPlan, delay_s: float) -> float:
    """Share of the bus's time that a meter's polls take.

    Args:
        bus: The bus.
        meter: As configured; groups that are polled as fast as the bus goes take no share.
        delay_s: How long its replies take to begin.
    """
    if not isinstance(meter.map, ModbusMap):
        return 0.0
    cost = bus_cost(bus.endpoint, is_ascii=bus.kind == ASCII, reply_delay_s=delay_s)
    total = 0.0
    for group, requests in zip(meter.groups, meter.map.groups, strict=True):
        if group.interval_s:
            spans = [Span(r.function, r.first, r.first + r.count) for r in requests]
            total += (cost.of(spans) / 1e9 + len(spans) * bus.pause_s) / group.interval_s
    return total / max(1, bus.in_flight)
