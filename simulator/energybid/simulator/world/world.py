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
from energybid.simulator.world.gateway import TENANT, Gateway, Seat
from energybid.simulator.world.liar import Liar
from energybid.simulator.world.memory import Growth
from energybid.simulator.world.power import CLIENT as MARKET
from energybid.simulator.world.power import PowerMarket
from energybid.simulator.world.scenario import Faults, Market, Scenario
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
GROWTH_OF_BIDS, GROWTH_PER_ROUND = 5_000, 150
SETTLED_S = 300.0
"""So long after a disk's fault a gateway may keep readings in memory."""
STOP_MAX_S = 60.0
CLOCK_LOOK_S = 30.0
SETTLING_S = 3600.0
"""After an interval its award is settled within this time, when nothing is wrong."""
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
    bids: Counter[str] = field(default_factory=Counter)
    """Of the market: bids, awards, conducts, statements, refused messages."""
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
        self.power = self._power(scenario.market) if scenario.market else None
        self.gateways = [
            Gateway(
                f"gw-{number}", scenario, self.broker, self.utility.key.public, self.trace, self._violated,
                self._chance(f"gateway {number}"), self._seat(number),
            )
            for number in range(scenario.gateways)
        ]  # fmt: skip
        if self.power:
            self.power.members += [gateway.member for gateway in self.gateways]
            self.broker.on_lost = self._lost
            self.broker.swallows = self._swallows
            ms, period_ms = self.power.clock, self.power.terms.period_ms
            self.liar = Liar(
                scenario.faults.market_lies, self.power.key, self.broker, lambda: ms.now_ns() // 1_000_000,
                period_ms / 1000, self._chance("liar"),
            )  # fmt: skip
        self.utility.gateways = [Registration(TENANT, gateway.name, (gateway.key,)) for gateway in self.gateways]
        self._by_log = {gateway.topics.log: gateway for gateway in self.gateways}
        self._by_receipt = {gateway.topics.receipt: gateway for gateway in self.gateways}

    def _power(self, settings: Market) -> PowerMarket:
        chance = self._chance("market")
        return PowerMarket(settings, self.broker, self.utility, self.trace, self._violated, chance)

    def _seat(self, number: int) -> Seat | None:
        if self.power is None or self._scenario.market is None:
            return None
        chance = self._chance(f"site {number}")
        return Seat(self.power.terms.name, self.power.key.public, self._scenario.market, chance)

    def _chance(self, what: str) -> Random:
        return Random(f"{self._seed}/{what}")  # noqa: S311  a run must repeat itself

    def _violated(self, violation: Violation) -> None:
        self.trace.event("violation", f"{violation.invariant}: {violation.text}")
        self.violations.append(violation)
        self._failed.set()

    # ------------------------------------------------------------ what the broker sees

    def _published(self, client: str, topic: str, payload: bytes) -> None:
        for gateway in self.gateways if self.power else ():
            if gateway.bids and client == gateway.client:
                gateway.bids.sent(topic, payload)
            elif gateway.bids and client == MARKET and topic in {gateway.topics.award, gateway.topics.statement}:
                gateway.bids.answered(topic, payload)
        if topic in self._by_log:
            self._by_log[topic].watch.sent(payload)
        elif topic in self._by_receipt:
            self._by_receipt[topic].watch.receipt(payload, self.utility.durable)

    def _delivered(self, client: str, topic: str, payload: bytes) -> None:
        if topic in self._by_receipt:
            self._by_receipt[topic].watch.received(payload)
        for gateway in self.gateways if self.power else ():
            if gateway.bids and client == gateway.client and gateway.settled_s >= SETTLED_S:
                gateway.bids.comes(topic, payload, f"a message of {len(payload)} bytes")

    def _lost(self, client: str) -> None:
        for gateway in self.gateways:
            if gateway.bids and client == gateway.client:
                gateway.bids.disturbed()

    def _swallows(self, client: str, topic: str, payload: bytes) -> bool:
        """Whether a message of the market's does not reach anybody as it is."""
        ours = {topic for gateway in self.gateways for topic in (gateway.topics.award, gateway.topics.statement)}
        return client == MARKET and topic in ours and self.liar.hears(topic, payload)

    # ------------------------------------------------------------ a run

    async def live(self, days: float) -> None:
        """Let it run: so many days with trouble, then calm, until everything is delivered; then stop and compare."""
        services = [self.utility.service, *(gateway.service for gateway in self.gateways)]
        if self.power:
            services.append(self.power.service)
        memory = asyncio.get_running_loop().create_task(self._memory())
        running = [asyncio.get_running_loop().create_task(service.run()) for service in services]
        trouble = Trouble(str(self._seed), self.gateways, self.utility, self.broker, self.trace, self.power)
        trouble.start(self._scenario.faults.happenings())
        if self.power:
            running.append(asyncio.get_running_loop().create_task(self._seams(self.power)))
            trouble.start_rounds(self._scenario.faults)
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
                    if gateway.bids:  # rounds are kept for statements, prices for the planner
                        most += GROWTH_OF_BIDS + GROWTH_PER_ROUND * gateway.bids.counts["bids"]
                    found.append(growth.look(gateway.name, gateway.service.starts, gateway.service.life, most))
            for text in filter(None, found):
                self._violated(Violation("bounds", text))

    async def _seams(self, power: PowerMarket) -> None:
        """Look at the sites every half minute, and at the seams of intervals."""
        while True:
            seam_s = power.next_begins_s()
            now_s = asyncio.get_running_loop().time()
            await asyncio.sleep(min(CLOCK_LOOK_S, seam_s - now_s))
            is_seam = asyncio.get_running_loop().time() >= seam_s - 1e-6
            at_ms = power.clock.true_ns() // 1_000_000 if is_seam else None
            for gateway in self.gateways:
                if gateway.bids and gateway.site:
                    gateway.bids.look(at_ms, gateway.site.net_wh() if is_seam else 0.0)

    async def _until(self, seconds: float) -> bool:
        """Let time pass, or less if an invariant is violated; whether one is."""
        try:
            async with asyncio.timeout(seconds):
                await self._failed.wait()
        except TimeoutError:
            pass
        return bool(self.violations)

    def _calm(self) -> None:
        quiet = self._scenario.model_copy(update={"faults": Faults.none()})
        for gateway in self.gateways:
            gateway.set_rates(quiet)
        if self.power:
            self.liar.stop()

    async def _deliver(self) -> None:
        """Wait until all meters are logged again, and the head-end holds that: so it is up, and reached."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + CALM_MAX_S
        for gateway in self.gateways:
            gateway.watch.logged.clear()
        while silent := self._silent():
            if loop.time() > until_s:
                self._violated(Violation("resumed", f"not logged within {CALM_MAX_S:.0f} s of calm: {silent}"))
            if await self._until(LOOK_S):
                return
        wanted = [(epoch, epoch.size) for gateway in self.gateways for epoch in gateway.watch.epochs.values()]
        ends_s = loop.time() + self._settling_s()
        while (missing := self._missing(wanted)) or loop.time() < ends_s:
            if missing and loop.time() > until_s:
                self._violated(Violation("delivered", f"not delivered after {CALM_MAX_S:.0f} s of calm: {missing}"))
            if await self._until(LOOK_S):
                return

    def _settling_s(self) -> float:
        """How long the market has to settle what is under way."""
        return SETTLING_S + 2 * self._scenario.market.every if self._scenario.market else 0.0

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
                    if gateway.bids:
                        gateway.bids.stopped()
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
        if self.power:
            self._judge_bids(self.power)

    def _judge_bids(self, power: PowerMarket) -> None:
        """What can only be said at the end of bidding."""
        before_ms = power.clock.true_ns() // 1_000_000 - round(1000 * (SETTLING_S + power.terms.period_ms / 1000))
        for gateway in self.gateways:
            if gateway.bids:
                origin = gateway.plan.origin
                late = [
                    row.number for row, awards in power.rounds() for award in awards
                    if award.origin == origin and not award.done and row.begins_ms < before_ms
                ]  # fmt: skip
                gateway.bids.listened()
                gateway.bids.settled(late)
                gateway.bids.recomputed({n: data for n, data in power.bundles.items() if origin.replace("/", "-") in n})

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
            bids=sum((gateway.bids.counts for gateway in self.gateways if gateway.bids), Counter()),
            recent=list(self.trace.recent),
        )

    def _shares(self) -> Counter[str]:
        """How often befell what befalls a share of all answers and messages."""
        found = Counter({"broker_duplicates": self.broker.duplicated, "broker_drops": self.broker.dropped})
        if self.power:
            found.update({f"market_lies.{kind}": count for kind, count in self.liar.told.items()})
        for gateway in self.gateways:
            for name, bus in gateway.buses.items():
                kind = "serial" if name == "line" else "tcp"
                found.update({f"{kind}.{fault}": bus.counts[fault] for fault in Fault if bus.counts[fault]})
                found["cut"] += gateway.sockets[name].cuts
        return found

    def remove(self) -> None:
        """Take the disks away."""
        disks = self.power.disks if self.power else []
        for disk in [*disks, *self.utility.disks, *(disk for gateway in self.gateways for disk in gateway.disks)]:
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
