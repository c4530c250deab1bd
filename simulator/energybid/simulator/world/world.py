"""One world: gateways, broker and head-end in virtual time, from one seed; what happened, and whether it was right."""

import asyncio
import gc
import logging
from collections import Counter
from dataclasses import dataclass, field
from random import Random

from energybid.headend.ledger import Registration
from energybid.simulator.decoding import remembered
from energybid.simulator.faults import Fault
from energybid.simulator.virtual import run
from energybid.simulator.world.broker import Broker
from energybid.simulator.world.disk import unheard
from energybid.simulator.world.gateway import TENANT, Gateway
from energybid.simulator.world.memory import Growth
from energybid.simulator.world.scenario import Faults, Scenario
from energybid.simulator.world.trace import Trace
from energybid.simulator.world.trouble import DAY_S, Trouble
from energybid.simulator.world.utility import Utility
from energybid.simulator.world.watch import Epoch, Violation

CALM_MAX_S = 4 * 3600.0
"""After the last fault everything must be delivered within this time."""
LOOK_S = 60.0
MEMORY_EVERY_S = 1800.0
GROWTH_MAX, GROWTH_PER_METER = 500, 500
"""So many references more than at its beginning a process may hold."""
SETTLED_S = 300.0
"""So long after a disk's fault a gateway may keep readings in memory."""
STOP_MAX_S = 60.0
GARBAGE = 20_000, 50, 1000
"""Thresholds of the collector of cycles: what a world keeps is looked at too often otherwise, and there are few."""


@dataclass
class Outcome:
    """What became of a world."""

    seed: int
    days: float
    violations: list[Violation] = field(default_factory=list)
    trace: str = ""
    """SHA-256 over all events."""
    counts: Counter[str] = field(default_factory=Counter)
    """Events by kind."""
    readings: int = 0
    entries: int = 0
    acknowledged: int = 0
    damaged: int = 0
    """Entries that nobody had acknowledged when a damaged disk took them."""
    suspects: int = 0
    gateway_hours: float = 0.0
    faults: list[str] = field(default_factory=list)
    shares: Counter[str] = field(default_factory=Counter)
    """How often befell what befalls a share of all answers and messages."""
    recent: list[str] = field(default_factory=list)
    """The end of the event log."""


class World:
    """Everything that is simulated."""

    def __init__(self, seed: int, scenario: Scenario) -> None:
        """Build it; call in the running loop."""
        self.trace = Trace()
        self.violations: list[Violation] = []
        self._seed = seed
        self._scenario = scenario
        self._failed = asyncio.Event()
        self.broker = Broker(self._chance("broker"), self._published, self._delivered)
        self.broker.duplicate_rate = scenario.faults.broker_duplicates
        self.broker.drop_rate = scenario.faults.broker_drops
        self.utility = Utility(self.broker, self.trace, self._violated, self._chance("headend"))
        self.gateways = [
            Gateway(
                f"gw-{number}", scenario, self.broker, self.utility.key.public, self.trace, self._violated,
                self._chance(f"gateway {number}"),
            )
            for number in range(scenario.gateways)
        ]  # fmt: skip
        self.utility.gateways = [Registration(TENANT, gateway.name, (gateway.key,)) for gateway in self.gateways]
        self._by_log = {gateway.topics.log: gateway for gateway in self.gateways}
        self._by_receipt = {gateway.topics.receipt: gateway for gateway in self.gateways}

    def _chance(self, what: str) -> Random:
        return Random(f"{self._seed}/{what}")  # noqa: S311  a run must repeat itself

    def _violated(self, violation: Violation) -> None:
        self.trace.event("violation", f"{violation.invariant}: {violation.text}")
        self.violations.append(violation)
        self._failed.set()

    # ------------------------------------------------------------ what the broker sees

    def _published(self, _client: str, topic: str, payload: bytes) -> None:
        if topic in self._by_log:
            self._by_log[topic].watch.sent(payload)
        elif topic in self._by_receipt:
            self._by_receipt[topic].watch.receipt(payload, self.utility.durable)

    def _delivered(self, _client: str, topic: str, payload: bytes) -> None:
        if topic in self._by_receipt:
            self._by_receipt[topic].watch.received(payload)

    # ------------------------------------------------------------ a run

    async def live(self, days: float) -> None:
        """Let it run: so many days with trouble, then calm, until everything is delivered; then stop and compare."""
        services = [self.utility.service, *(gateway.service for gateway in self.gateways)]
        memory = asyncio.get_running_loop().create_task(self._memory())
        running = [asyncio.get_running_loop().create_task(service.run()) for service in services]
        trouble = Trouble(str(self._seed), self.gateways, self.utility, self.broker, self.trace)
        trouble.start(self._scenario.faults.happenings())
        await self._until(days * DAY_S)
        await trouble.stop()
        if not self.violations:
            self._calm()
            await self._deliver()
            await self._stop()
        if not self.violations:
            self._compare()
        memory.cancel()
        for task in running:
            task.cancel()
        for service in services:
            service.kill("the end")
        await asyncio.gather(memory, *running, return_exceptions=True)

    async def _memory(self) -> None:
        """Look now and then what the processes hold in memory."""
        growth, headend = Growth(), self.utility.service
        while True:
            await asyncio.sleep(MEMORY_EVERY_S)
            found = [growth.look(headend.name, headend.starts, headend.life, GROWTH_MAX * len(self.gateways))]
            for gateway in self.gateways:
                if gateway.settled_s >= SETTLED_S:
                    most = GROWTH_MAX + GROWTH_PER_METER * len(gateway.meters)
                    found.append(growth.look(gateway.name, gateway.service.starts, gateway.service.life, most))
            for text in filter(None, found):
                self._violated(Violation("bounds", text))

    async def _until(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._failed.wait()
        except TimeoutError:
            pass

    def _calm(self) -> None:
        quiet = self._scenario.model_copy(update={"faults": Faults.none()})
        for gateway in self.gateways:
            gateway.set_rates(quiet)

    async def _deliver(self) -> None:
        """Wait until the head-end holds what was in the logs when the trouble ended."""
        wanted = [(epoch, epoch.size) for gateway in self.gateways for epoch in gateway.watch.epochs.values()]
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CALM_MAX_S
        for gateway in self.gateways:
            gateway.watch.logged.clear()
        while (missing := self._missing(wanted)) or self._silent():
            if loop.time() > until_s and not missing:
                self._violated(Violation("resumed", f"not logged within {CALM_MAX_S:.0f} s of calm: {self._silent()}"))
            elif loop.time() > until_s:
                self._violated(Violation("delivered", f"not delivered after {CALM_MAX_S:.0f} s of calm: {missing}"))
            await self._until(LOOK_S)
            if self.violations:
                return

    def _missing(self, wanted: list[tuple[Epoch, int]]) -> dict[str, int]:
        """Entries that the head-end does not hold yet, by epoch."""
        missing: dict[str, int] = {}
        for epoch, size in wanted:
            count = min(size, epoch.due) - self.utility.durable.get(epoch.id, 0)
            if count > 0 and (epoch.ended is None or not self.utility.lost):
                missing[epoch.id.hex()[:8]] = count
        return missing

    def _silent(self) -> list[str]:
        """Meters of which nothing was logged since the trouble ended."""
        return [
            f"{gateway.name} {name}" for gateway in self.gateways for name in gateway.meters
            if name not in gateway.watch.logged
        ]  # fmt: skip

    async def _stop(self) -> None:
        for gateway in self.gateways:
            gateway.stop()
        try:
            async with asyncio.timeout(STOP_MAX_S):
                for gateway in self.gateways:
                    await gateway.service.idle()
        except TimeoutError:
            self._violated(Violation("stopped", "an agent that was told to stop does not"))

    def _compare(self) -> None:
        scarred = {gateway.watch.origin for gateway in self.gateways if gateway.watch.scarred}
        for origin, kind, detail in self.utility.conflicts():
            if kind != "epoch" or origin not in scarred:  # what a damaged journal has forgotten, the head-end has not
                self._violated(Violation("refused", f"the head-end has a conflict: {origin}, {kind}: {detail}"))
        for gateway in self.gateways:
            for epoch in gateway.watch.epochs.values():
                gateway.watch.compare(epoch, self.utility.stored(epoch.id), headend_lost=self.utility.lost)

    def outcome(self, days: float) -> Outcome:
        """What became of it."""
        epochs = [epoch for gateway in self.gateways for epoch in gateway.watch.epochs.values()]
        return Outcome(
            seed=self._seed,
            days=days,
            violations=self.violations,
            trace=self.trace.digest(),
            counts=self.trace.counts,
            readings=sum(gateway.watch.readings for gateway in self.gateways),
            entries=sum(epoch.kept for epoch in epochs),
            acknowledged=sum(min(epoch.acknowledged, epoch.kept) for epoch in epochs),
            damaged=sum(epoch.size - epoch.kept for epoch in epochs),
            suspects=sum(gateway.watch.suspects for gateway in self.gateways),
            gateway_hours=len(self.gateways) * asyncio.get_running_loop().time() / 3600,
            faults=self.trace.faults,
            shares=self._shares(),
            recent=list(self.trace.recent),
        )

    def _shares(self) -> Counter[str]:
        """How often befell what befalls a share of all answers and messages."""
        found = Counter({"broker_duplicates": self.broker.duplicated, "broker_drops": self.broker.dropped})
        for gateway in self.gateways:
            for name, bus in gateway.buses.items():
                kind = "tcp" if name == "tcp" else "serial"
                found.update({f"{kind}.{fault}": bus.counts[fault] for fault in Fault if bus.counts[fault]})
                found["cut"] += gateway.sockets[name].cuts
        return found

    def remove(self) -> None:
        """Take the disks away."""
        for disk in [*self.utility.disks, *(disk for gateway in self.gateways for disk in gateway.disks)]:
            disk.remove()


def simulate(seed: int, days: float, scenario: Scenario) -> Outcome:
    """Run one world from beginning to end.

    Args:
        seed: Everything that happens follows from it, and from the scenario.
        days: With trouble; some hours of calm follow.
        scenario: What there is and what may happen.
    """
    worlds: list[World] = []

    async def main() -> Outcome:
        world = World(seed, scenario)
        worlds.append(world)
        await world.live(days)
        return world.outcome(days)

    before, thresholds = logging.root.manager.disable, gc.get_threshold()
    logging.disable(logging.CRITICAL)  # faults are what the world is made of: the product's complaints are thousands
    gc.set_threshold(*GARBAGE)
    try:
        with remembered(), unheard():
            return run(main)
    except Exception as error:  # noqa: BLE001  whatever it is, it must name its seed
        trace = worlds[0].trace if worlds else Trace()
        violation = Violation("stopped", f"the world itself ended: {error!r}")
        return Outcome(seed, days, [violation], faults=trace.faults, recent=list(trace.recent))
    finally:
        logging.disable(before)
        gc.set_threshold(*thresholds)
        for world in worlds:
            world.remove()
