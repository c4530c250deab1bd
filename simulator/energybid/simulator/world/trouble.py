"""Trouble: what befalls the world, drawn from the seed. One function for each happening of the scenario."""

import asyncio
from collections.abc import Awaitable, Callable
from math import log
from random import Random

from energybid.core.quantities import ClockState
from energybid.simulator.virtual import VirtualLoop
from energybid.simulator.world.broker import Broker
from energybid.simulator.world.disk import Disk, DiskState
from energybid.simulator.world.gateway import Gateway, Meter
from energybid.simulator.world.power import PowerMarket
from energybid.simulator.world.scenario import Faults, Happening
from energybid.simulator.world.site import BATTERY, HOUSE
from energybid.simulator.world.trace import Trace
from energybid.simulator.world.utility import Utility

DAY_S = 86_400.0
STEPS_MAX = 400
"""An agent is killed at most so many steps after the moment that was drawn."""
WRITES_MAX = 40
"""The power goes at most so many writes after it."""
STEP_MAX_S = 12 * 3600.0
DRIFT_MAX_PPM = 2000
BACKUP_EVERY_S = 4 * 3600.0
BEFORE_ROLLOVER = 300
CUT_OFF_MAX_S = 1200.0
ROUND_STEP_MAX_S = 1800.0
PHASES = "to-gate", "to-begin", "to-end", "to-statement"
"""Of a round."""
FAILURES_MAX = 3
"""At most so many syncs in a row fail."""

Do = Callable[[float], Awaitable[None]]
"""Does harm for so many seconds; the second half of it may be to make good again."""


class Trouble:
    """Lets things happen until it is told to stop."""

    def __init__(
        self,
        seed: str,
        gateways: list[Gateway],
        utility: Utility,
        broker: Broker,
        trace: Trace,
        power: PowerMarket | None = None,
    ) -> None:
        """Get to know who may suffer."""
        self._seed = seed
        self._gateways = gateways
        self._utility = utility
        self._broker = broker
        self._power = power
        self._trace = trace
        self._chance = Random(f"{seed}/trouble")  # noqa: S311  seeded
        self._backup: Disk | None = None
        self._over = False
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)  # noqa: S101  the world runs on no other
        self._loop = loop
        self._tasks: list[asyncio.Task[None]] = []

    # ------------------------------------------------------------ when

    def start(self, happenings: dict[str, Happening]) -> None:
        """Let ``happenings`` happen."""
        self._tasks = [self._loop.create_task(self._backups())] if "headend_restored" in happenings else []
        for name, happening in happenings.items():
            for victim, do in self._victims(name):
                chance = Random(f"{self._seed}/{name}/{victim}")  # noqa: S311  seeded
                self._tasks.append(self._loop.create_task(self._again(name, victim, do, happening, chance)))

    async def _again(self, name: str, victim: str, do: Do, happening: Happening, chance: Random) -> None:
        while True:
            await asyncio.sleep(-log(1 - chance.random()) * DAY_S / happening.per_day)
            lasts_s = happening.least + (happening.most - happening.least) * chance.random()
            self._trace.fault(f"{name} {victim} {lasts_s:.0f} s")
            await do(lasts_s)

    def start_rounds(self, faults: Faults) -> None:
        """Let things happen in the phases of rounds too."""
        for name in ("round_cut_off", "round_killed", "round_clock_steps"):
            rate = getattr(faults, name)
            for gateway in self._gateways if rate and self._power else ():
                chance = Random(f"{self._seed}/{name}/{gateway.name}")  # noqa: S311  seeded
                task = self._in_rounds(name, gateway, rate, chance)
                self._tasks.append(self._loop.create_task(task))

    async def _in_rounds(self, name: str, gateway: Gateway, rate: float, chance: Random) -> None:
        """In each round, draw for each of its phases whether, and when, it happens."""
        assert self._power  # noqa: S101  who starts this has looked
        terms = self._power.terms
        before_s, gate_s, period_s = terms.announce_ms / 1000, terms.gate_ms / 1000, terms.period_ms / 1000
        phases = ((-before_s, -gate_s), (-gate_s, 0.0), (0.0, period_s), (period_s, 1.2 * period_s))
        while True:
            begins_s = self._power.next_begins_s() + period_s
            for (from_s, to_s), phase in zip(phases, PHASES, strict=True):
                drawn, at, how = (chance.random() for _ in range(3))
                if drawn < rate:
                    moment_s = begins_s + from_s + (to_s - from_s) * at
                    self._tasks.append(self._loop.create_task(self._in_round(name, gateway, phase, moment_s, how)))
            await asyncio.sleep(max(1.0, begins_s - period_s - self._loop.time()))

    async def _in_round(self, name: str, gateway: Gateway, phase: str, moment_s: float, how: float) -> None:
        await asyncio.sleep(max(0.0, moment_s - self._loop.time()))
        self._trace.fault(f"{name} {gateway.name} {phase}")
        if name == "round_cut_off":
            self._broker.refuse(gateway.client, how * CUT_OFF_MAX_S)
        elif name == "round_killed":
            gateway.service.burn(1 + int(how * STEPS_MAX))
        else:
            gateway.clock.step((2 * how - 1) * ROUND_STEP_MAX_S)
            await asyncio.sleep(how * CUT_OFF_MAX_S)
            gateway.synchronise()

    async def stop(self) -> None:
        """Nothing more happens, and everything that can be repaired is."""
        self._over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        now_s = self._loop.time()
        self._broker.down_until_s = now_s
        self._broker.duplicate_rate = self._broker.drop_rate = 0.0
        self._broker.refuse_nobody()
        if self._power:
            self._power.crash = None
            self._power.disk.cut_after = 0
        self._utility.crash = None
        self._utility.disk.cut_after = 0
        self._utility.break_disk(DiskState.FINE)
        self._utility.slow_disk(slow=False)
        self._utility.fail_syncs(0)
        for gateway in self._gateways:
            gateway.disk.cut_after = 0
            gateway.service.burn(0)  # a kill that has not come yet would come in the calm, or at the stop
            gateway.fail_reads(0)
            gateway.fail_syncs(0)
            gateway.break_disk(DiskState.FINE)
            gateway.slow_disk(slow=False)
            gateway.synchronise()
            for socket in gateway.sockets.values():
                socket.refused_until_s = now_s
            for meter in gateway.meters.values():
                meter.faults.dead_until_s = now_s
            if gateway.site:
                gateway.site.follower.deaf_until_s = now_s
        self._trace.event("calm", "")

    # ------------------------------------------------------------ whom

    def _victims(self, name: str) -> list[tuple[str, Do]]:
        do = getattr(self, f"_{name}")
        kind = name.split("_", 1)[0]
        if kind == "meter":
            plain = [(g, m) for g in self._gateways for m in g.meters.values() if m.plain]
            return [(f"{g.name} {m.plan.name}", _bound(do, m)) for g, m in plain]
        if kind == "market":
            return [("", do)] if self._power else []
        has = {"connection": "tcp", "host": "tcp", "adapter": "line", "asset": "site"}.get(kind)
        if has or kind in {"clock", "agent", "gateway", "disk", "journal"}:
            return [(g.name, _bound(do, g)) for g in self._gateways if has is None or has in g.sockets]
        return [("", do)]

    # ------------------------------------------------------------ meters and buses

    async def _meter_dead(self, meter: Meter, seconds: float) -> None:
        meter.faults.die(seconds)

    async def _meter_reset(self, meter: Meter, seconds: float) -> None:
        meter.faults.die(seconds)
        if meter.plain:
            meter.plain.reset()

    async def _meter_rollover(self, meter: Meter, _seconds: float) -> None:
        counts = int(self._chance.random() * BEFORE_ROLLOVER)
        if meter.plain:
            meter.plain.near_rollover(counts)

    async def _meter_swap(self, meter: Meter, seconds: float) -> None:
        meter.faults.die(seconds)
        if meter.plain:
            meter.plain.swap()

    async def _asset_silent(self, gateway: Gateway, seconds: float) -> None:
        if gateway.bids:
            gateway.meters[BATTERY if self._chance.random() < 1 / 2 else HOUSE].faults.die(seconds)
            gateway.bids.unmeasured()
            await asyncio.sleep(seconds)
            gateway.bids.unmeasured()

    async def _asset_disobeys(self, gateway: Gateway, seconds: float) -> None:
        if gateway.site:
            gateway.site.follower.deaf_until_s = self._loop.time() + seconds

    async def _connection_reset(self, gateway: Gateway, _seconds: float) -> None:
        gateway.sockets["tcp"].drop(ConnectionResetError("reset by peer"))

    async def _host_away(self, gateway: Gateway, seconds: float) -> None:
        gateway.sockets["tcp"].refuse(seconds)

    async def _host_silent(self, gateway: Gateway, seconds: float) -> None:
        gateway.sockets["tcp"].refuse(seconds, silent=True)

    async def _adapter_unplugged(self, gateway: Gateway, seconds: float) -> None:
        gateway.unplug(seconds)

    # ------------------------------------------------------------ broker and head-end

    async def _broker_cuts(self, _seconds: float) -> None:
        self._broker.cut_all("reset by peer")

    async def _broker_away(self, seconds: float) -> None:
        self._broker.stop(seconds, forget=False)

    async def _broker_forgets(self, seconds: float) -> None:
        self._broker.stop(seconds, forget=True)

    async def _broker_shuffles(self, seconds: float) -> None:
        self._utility.kill("kill -9", down_s=seconds)
        await asyncio.sleep(seconds)
        self._broker.shuffle()

    async def _headend_killed(self, seconds: float) -> None:
        self._utility.kill("kill -9", down_s=seconds)

    async def _headend_crash_before_commit(self, _seconds: float) -> None:
        self._utility.crash = "before"

    async def _headend_crash_after_commit(self, _seconds: float) -> None:
        self._utility.crash = "after"

    async def _headend_power_cut(self, _seconds: float) -> None:
        self._arm(self._utility.disk)

    async def _headend_lost(self, seconds: float) -> None:
        self._backup = None
        self._utility.kill("its disk is lost", disk=Disk(), down_s=seconds)

    async def _headend_restored(self, seconds: float) -> None:
        if self._backup is not None:
            self._utility.kill("it is restored from a backup", disk=self._backup.survived(), down_s=seconds)

    async def _headend_disk_full(self, seconds: float) -> None:
        await self._broken(self._utility, DiskState.FULL, seconds)

    async def _headend_disk_fails(self, seconds: float) -> None:
        self._utility.fail_syncs(1 + int(self._chance.random() * FAILURES_MAX))
        await asyncio.sleep(seconds)
        self._utility.fail_syncs(0)

    async def _headend_disk_slow(self, seconds: float) -> None:
        self._utility.slow_disk(slow=True)
        await asyncio.sleep(seconds)
        self._utility.slow_disk(slow=False)

    # ------------------------------------------------------------ the market

    async def _market_killed(self, seconds: float) -> None:
        if self._power:
            self._power.kill("kill -9", down_s=seconds)

    async def _market_crash_before_commit(self, _seconds: float) -> None:
        if self._power:
            self._power.crash = "before"

    async def _market_crash_after_commit(self, _seconds: float) -> None:
        if self._power:
            self._power.crash = "after"

    async def _market_power_cut(self, _seconds: float) -> None:
        if self._power:
            self._arm(self._power.disk)

    # ------------------------------------------------------------ backups

    async def _backups(self) -> None:
        while True:
            await asyncio.sleep(BACKUP_EVERY_S)
            self._backup = self._utility.disk.copy()

    def _arm(self, disk: Disk) -> None:
        disk.chance = Random(self._chance.random())  # noqa: S311  seeded
        disk.cut_after = 1 + int(self._chance.random() * WRITES_MAX)

    # ------------------------------------------------------------ the gateway

    async def _clock_steps(self, gateway: Gateway, _seconds: float) -> None:
        gateway.clock.step((2 * self._chance.random() - 1) * STEP_MAX_S)

    async def _clock_drifts(self, gateway: Gateway, seconds: float) -> None:
        gateway.clock.drift(round((2 * self._chance.random() - 1) * DRIFT_MAX_PPM))
        await asyncio.sleep(seconds)
        gateway.synchronise()

    async def _clock_unsynchronised(self, gateway: Gateway, seconds: float) -> None:
        gateway.clock.state = ClockState.HOLDOVER
        await asyncio.sleep(seconds / 2)
        gateway.clock.state = ClockState.UNSYNCHRONISED
        await asyncio.sleep(seconds / 2)
        gateway.synchronise()

    async def _agent_killed(self, gateway: Gateway, _seconds: float) -> None:
        gateway.service.burn(1 + int(self._chance.random() * STEPS_MAX))

    async def _gateway_power_cut(self, gateway: Gateway, seconds: float) -> None:
        if self._chance.random() < 1 / 2:
            gateway.disk.chance = Random(self._chance.random())  # noqa: S311  seeded
            gateway.power_cut("power cut")
        else:
            self._arm(gateway.disk)
        await asyncio.sleep(seconds)
        gateway.synchronise()

    async def _disk_slow(self, gateway: Gateway, seconds: float) -> None:
        gateway.slow_disk(slow=True)
        await asyncio.sleep(seconds)
        gateway.slow_disk(slow=False)

    async def _disk_full(self, gateway: Gateway, seconds: float) -> None:
        helps = self._chance.random() < 1 / 2
        await self._broken(gateway, DiskState.FILLED if helps else DiskState.FULL, seconds)

    async def _disk_sync_fails(self, gateway: Gateway, seconds: float) -> None:
        gateway.fail_syncs(1 + int(self._chance.random() * FAILURES_MAX))
        await asyncio.sleep(seconds)
        gateway.fail_syncs(0)

    async def _disk_read_fails(self, gateway: Gateway, seconds: float) -> None:
        gateway.fail_reads(1)
        await asyncio.sleep(seconds)
        gateway.fail_reads(0)

    async def _journal_damaged(self, gateway: Gateway, _seconds: float) -> None:
        if self._chance.random() < 1 / 2:
            gateway.kill("kill -9 before its journal is damaged")
        gateway.damage()

    async def _disk_read_only(self, gateway: Gateway, seconds: float) -> None:
        await self._broken(gateway, DiskState.READ_ONLY, seconds)

    @staticmethod
    async def _broken(gateway: Gateway | Utility, state: DiskState, seconds: float) -> None:
        gateway.break_disk(state)
        await asyncio.sleep(seconds)
        gateway.break_disk(DiskState.FINE)


def _bound(do: Callable[..., Awaitable[None]], victim: object) -> Do:
    return lambda seconds: do(victim, seconds)
