"""What ``energybid doctor`` does at a bus: look at every meter for a while, ask who else answers. Reads only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from energybid.agent.cabinet.bus_checks import Service, check_bus, stray
from energybid.agent.cabinet.findings import error
from energybid.agent.cabinet.reading import Reader
from energybid.agent.cabinet.sight import sight_of
from energybid.agent.cabinet.watching import Statistics
from energybid.agent.cabinet.wiring_checks import check_wiring
from energybid.core.errors import BusDownError
from energybid.drivers.identify import serial_text
from energybid.drivers.modbus.map import Request
from energybid.drivers.probe import Prober
from energybid.drivers.profile import FUNCTION_OF

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from energybid.agent.cabinet.findings import Finding
    from energybid.agent.cabinet.places import Place
    from energybid.agent.cabinet.reading import Asked, Look
    from energybid.agent.cabinet.sight import Sight
    from energybid.core.ports import Platform

REST_S = 0.2
"""Between two rounds over the meters of a bus."""
UNITS_MAX = 247
"""Modbus over Serial Line V1.02 §2.2."""


@dataclass(slots=True)
class Patient:
    """One meter and what was seen of it."""

    place: Place
    looks: list[Look] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    serial_number: str | None = None

    @property
    def silent(self) -> bool:
        """It has not answered so far."""
        return bool(self.looks) and not any(look.read for look in self.looks)

    @property
    def sight(self) -> Sight | None:
        """What it measured; None where nothing was read."""
        return sight_of(self.place.name, self.looks) if any(look.read for look in self.looks) else None

    @property
    def statistics(self) -> Statistics:
        """What the looks have cost."""
        statistics = Statistics()
        for look in self.looks:
            statistics.add(look)
        return statistics

    @property
    def service(self) -> Service:
        """How it answered."""
        place = self.place
        return Service(
            name=place.name,
            unit=place.unit,
            timeout_s=place.timeout_s,
            asked=tuple(self.asked),
            serial_number=self.serial_number,
        )


class Round:
    """The meters of one bus."""

    def __init__(self, platform: Platform, places: Sequence[Place], *, plant: bool) -> None:
        """Prepare.

        Args:
            platform: The seams.
            places: Meters of one bus, at least one.
            plant: There may be generation at the site.
        """
        self._platform = platform
        self._plant = plant
        self._prober = Prober(platform.open_bus, places[0].target)
        self._readers = [Reader(self._prober, place, platform.now_ns) for place in places]
        self.patients = [Patient(place) for place in places]
        self.bus = places[0].bus
        self.where = places[0].where
        self.findings: list[Finding] = []
        """Of the bus itself."""

    async def examine(self, period_s: float, progress: Callable[[float], None] = lambda _: None) -> None:
        """Look at the meters until the time is over, at least twice at each that answers.

        Args:
            period_s: How long to watch.
            progress: Told how much of the time is over, 0 to 1.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        rounds = 0
        try:
            while rounds < 2 or loop.time() < began + period_s:  # noqa: PLR2004  a course needs two
                for reader, patient in zip(self._readers, self.patients, strict=True):
                    if not patient.silent:
                        patient.looks.append(await reader.look())
                        patient.asked += patient.looks[-1].asked
                    progress(min(1.0, (loop.time() - began) / period_s if period_s else 1.0))
                rounds += 1
                if all(patient.silent for patient in self.patients):
                    break
                await asyncio.sleep(REST_S)
            await self._identities()
        except BusDownError as fault:
            self.findings.append(_down(self.bus.name, fault))
        finally:
            await self._prober.close()

    async def _identities(self) -> None:
        """Read the serial numbers, and ask a unit that is not configured."""
        answering = [p for p in zip(self._readers, self.patients, strict=True) if not p[1].silent]
        for reader, patient in answering:
            patient.serial_number = await _serial_number(reader, patient.place)
        if answering:
            await self._stray(answering[0][1])

    async def _stray(self, known: Patient) -> None:
        taken = {meter.unit for meter in self.bus.meters}
        unit = next(unit for unit in range(UNITS_MAX, 0, -1) if unit not in taken)
        place = known.place
        nobody = replace(place, unit=unit, meter=place.meter and replace(place.meter, retries=0))
        reader = Reader(self._prober, nobody, self._platform.now_ns)
        serial = await _serial_number(reader, nobody)
        if serial is None and known.serial_number is None:
            answers = await reader.answers()
        else:
            answers = serial is not None
        if answers:
            same = serial is not None and serial == known.serial_number
            self.findings.append(stray(self.bus.name, unit, place.name, len(taken), same=same))

    def all_findings(self) -> list[Finding]:
        """Of the bus, and of every meter that answered."""
        found = list(self.findings)
        if any(patient.asked for patient in self.patients):
            found += check_bus(self.bus, [patient.service for patient in self.patients if patient.asked])
        for patient in self.patients:
            if patient.sight is not None:
                found += check_wiring(patient.sight, plant=self._plant)
        return found


async def _serial_number(reader: Reader, place: Place) -> str | None:
    known = place.loaded.profile.identification.serial_number if place.loaded else None
    if known is None:
        return None
    request = Request(function=FUNCTION_OF[known.table], first=known.register_, count=known.count, fields=())
    outcome = await reader.fetch(request)
    return serial_text(known, outcome) if isinstance(outcome, bytes) else None


def _down(bus: str, fault: BusDownError) -> Finding:
    return error(
        "bus-down",
        bus,
        f"{fault}.",
        "No meter of this bus could be read to the end.",
        "See to that first.",
    )


def measured(sight: Sight) -> dict[str, Any]:
    """What a meter measured, for programs; W, var, V, A, Hz."""
    return {
        "voltage_v": sight.voltage,
        "current_a": sight.current,
        "power_w": sight.power,
        "reactive_var": sight.reactive,
        "factor": sight.factor,
        "total_power_w": sight.total_power,
        "frequency_hz": sight.frequency,
    }
