"""A gateway of the world: the real agent on a simulated machine, with its meters and its disk."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from energybid.agent.buses import GroupModel, MeterModel
from energybid.agent.config import meter_plan
from energybid.agent.market.config import MarketModel
from energybid.agent.market.plan import MarketPlan
from energybid.agent.market.wiring import Known, market_plan
from energybid.agent.plan import AgentPlan, JournalPlan, StatusPlan, UplinkPlan
from energybid.agent.process import run_agent
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.errors import JournalError
from energybid.core.ports import BusPlan, MeterPlan, Platform, SerialEndpoint, TcpEndpoint, UplinkSettings, Will
from energybid.core.quantities import ClockState
from energybid.drivers.profile import load_profile
from energybid.simulator.bus import Bus, LineTiming, RtuLine, Station, TcpConnection
from energybid.simulator.faults import Fault, FaultSource
from energybid.simulator.market.terms import Member
from energybid.simulator.virtual import VirtualClock, VirtualOffload
from energybid.simulator.world.bids import BidWatch, Keys
from energybid.simulator.world.broker import Broker
from energybid.simulator.world.disk import Beside, Disk, DiskState, WatchedDatabase
from energybid.simulator.world.meters import MeterFaults, WorldMeter
from energybid.simulator.world.scenario import PROFILES_SERIAL, PROFILES_TCP, Market, Scenario
from energybid.simulator.world.service import Service, is_journal_error
from energybid.simulator.world.site import ASSET, EXPORTS, HOUSE, IMPORTS, PROFILES, QUANTITIES, Site, SiteMeter
from energybid.simulator.world.trace import Trace
from energybid.simulator.world.watch import GatewayWatch, Hurt, Violation
from energybid.simulator.world.wire import Socket, Wiring
from energybid.sync.topics import Topics, topics_for

if TYPE_CHECKING:
    import apsw

TENANT = "world"
JOURNAL = "journal.db"
HOST, DEVICE, PORT = "meters.example", "/dev/serial/by-id/usb-adapter", "/dev/ttyUSB{}"
HOSTS = {"tcp": HOST, "site": "site.example"}
SITE_TIMEOUT = "1 s"
MARKET_SESSION_S = 7 * 86_400
DAY_MS = 86_400_000
PORTS = 4
BAUD = 19_200
SLOW_EVERY = 3
"""One in so many meters has a second poll group, five times slower: when both are due they are read at once."""
DRIVERS = dict.fromkeys(("modbus-tcp", "modbus-rtu"), "energybid.drivers.modbus.driver:open_driver")
QUICK_S, SLOW_S = (0.001, 0.02), (0.1, 10.0)
"""How long a call to the disk takes."""
THINK_S = (0.01, 2.0)
"""How long the planner takes for an answer."""
FORGIVEN_S = 30.0
"""So long after a disk's fault an agent may still end because of it."""


class Meter:
    """A meter at its place: what it is and what may befall it."""

    def __init__(self, plan: MeterPlan, device: WorldMeter | SiteMeter, faults: MeterFaults) -> None:
        """Keep them together."""
        self.plan, self.device, self.faults = plan, device, faults

    @property
    def plain(self) -> WorldMeter | None:
        """The device, where it only measures."""
        return self.device if isinstance(self.device, WorldMeter) else None

    @property
    def station(self) -> Station:
        """As the bus wants it."""
        return Station(
            name=self.plan.name, unit=self.plan.unit, device=self.device, reply_delay_s=0.02, faults=self.faults
        )


class Seat(NamedTuple):
    """A gateway's place in a market."""

    market: str
    """``tenant/market``."""
    key: PublicKey
    settings: Market
    chance: Random


class Gateway:
    """One gateway and everything that is connected to it."""

    def __init__(  # noqa: PLR0913, PLR0917  the world hands these out
        self,
        name: str,
        scenario: Scenario,
        broker: Broker,
        headend_key: PublicKey,
        trace: Trace,
        violated: Callable[[Violation], None],
        chance: Random,
        seat: Seat | None = None,
    ) -> None:
        """Install it; ``service.run`` switches it on."""
        self.name = name
        self.clock = VirtualClock()
        self.disk = Disk()
        self.disks = [self.disk]
        self.chance = chance
        self._now_s = asyncio.get_running_loop().time
        self._scenario = scenario
        self._in_flight = scenario.in_flight if chance.random() < scenario.pipelined else 1
        self._broker = broker
        self._violated = violated
        self._trace = trace
        self._slow = False
        self._forgiven_s = self._broken_s = 0.0
        self._boot_id = chance.randbytes(16)
        self._unplugged = 0
        self._stop = asyncio.Event()
        key = PrivateKey.from_entropy(chance.randbytes(48))
        self.key = key.public
        self.meters: dict[str, Meter] = {}
        buses = tuple(
            bus
            for bus in (
                self._bus("tcp", "modbus-tcp", PROFILES_TCP, scenario.tcp_meters),
                self._bus("line", "modbus-rtu", PROFILES_SERIAL, scenario.serial_meters),
            )
            if bus.meters
        )
        self.site: Site | None = None
        self.bids: BidWatch | None = None
        if seat:
            midday_ms = int(seat.chance.random() * DAY_MS)
            self.site = Site(f"{name} {midday_ms}", midday_ms, self._now_s)
            buses = (*buses, self._site_bus(self.site, seat))
        self.buses = {bus.name: Bus(stations=self._stations(bus), replay_ms=self._replay_ms(bus)) for bus in buses}
        self.sockets = {bus.name: self._socket(bus) for bus in buses}
        self.wiring = Wiring(
            {HOSTS.get(name, PORT.format(0)): socket for name, socket in self.sockets.items()},
            {DEVICE: PORT.format(0)} if "line" in self.sockets else {},
            lambda text: trace.event("port", f"{name} {text}"),
        )
        self.topics: Topics = topics_for(TENANT, name)
        self.client = f"energybid-{TENANT}-{name}"
        bids_key = PrivateKey.from_entropy(seat.chance.randbytes(48)) if seat else None
        market = self._market(seat, bids_key, buses) if seat and bids_key else None
        self.plan = self._plan(key, headend_key, buses, market)
        devices = {meter.plan.name: meter.device for meter in self.meters.values()}
        self.watch = GatewayWatch(self.plan, key.public, headend_key, devices, trace, violated)
        if seat and bids_key and self.site:
            self.bids_key = bids_key.public
            keys = Keys(seat.key, bids_key.public, key.public, headend_key)
            self.bids = BidWatch(self.plan.origin, self.topics, keys, self.clock, self._now_s, violated)
            self.bids.scarred = lambda: self.watch.scarred
            self.watch.on_entry = self.bids.entry
            self.site.follower.on_write = self.bids.wrote
        self.service = Service(name, self._main, trace)
        self.service.ended = self._ended
        self.service.on_cut = self._cut
        self.set_rates(scenario)

    # ------------------------------------------------------------ installation

    def _bus(self, name: str, kind: str, profiles: list[str], count: int) -> BusPlan:
        meters = []
        for number in range(count):
            profile = profiles[number % len(profiles)]
            loaded = load_profile(profile)
            names = _spread([register.name for register in loaded.registers], self._scenario.quantities)
            slow = names[1::2] if number % SLOW_EVERY == 1 else []
            model = MeterModel(
                name=f"{name}-{number}",
                profile=profile,
                unit=number + 1,
                interval=f"{self._scenario.interval:g} s",  # type: ignore[arg-type]  # as in the file
                timeout=None,
                retries=2,
                quantities=[name for name in names if name not in slow],
                group=[GroupModel(interval=f"{5 * self._scenario.interval:g} s", quantities=slow)] if slow else [],  # type: ignore[arg-type]
            )
            plan = meter_plan(model, loaded)
            device = WorldMeter(loaded, Random(self.chance.random()), self._now_s)  # noqa: S311  seeded
            self.meters[plan.name] = Meter(plan, device, MeterFaults(self._now_s))
            meters.append(plan)
        endpoint = (
            TcpEndpoint(host=HOST, port=502)
            if kind == "modbus-tcp"
            else SerialEndpoint(device=DEVICE, baudrate=BAUD, parity="E")
        )
        return BusPlan(
            name=name,
            kind=kind,
            endpoint=endpoint,
            meters=tuple(meters),
            in_flight=self._in_flight if kind == "modbus-tcp" else 1,
            lateness_s=2.0,
        )

    def _site_bus(self, site: Site, seat: Seat) -> BusPlan:
        """House and battery, on a network of their own."""
        meters = []
        for unit, (name, device) in enumerate(site.devices.items(), 1):
            model = MeterModel(
                name=name,
                profile=PROFILES[name],
                unit=unit,
                interval=f"{seat.settings.interval:g} s",  # type: ignore[arg-type]  # as in the file
                timeout=SITE_TIMEOUT,  # type: ignore[arg-type]
                retries=2,
                quantities=QUANTITIES[name],
                group=[],
            )
            plan = meter_plan(model, site.loaded[name])
            self.meters[name] = Meter(plan, device, MeterFaults(self._now_s))
            meters.append(plan)
        endpoint = TcpEndpoint(host=HOSTS["site"], port=502)
        return BusPlan(name="site", kind="modbus-tcp", endpoint=endpoint, meters=tuple(meters), lateness_s=2.0)

    def _market(self, seat: Seat, bids_key: PrivateKey, buses: tuple[BusPlan, ...]) -> MarketPlan:
        """``[market]``, by the way of the product."""
        model = MarketModel.model_validate(
            {
                "name": seat.market,
                "key": "market",
                "bids": "bids",
                "meter": HOUSE,
                "import_limit": "17 kW",
                "export_limit": "10 kW",
                "asset": [ASSET],
            }
        )
        assert self.site  # noqa: S101  it is there where a seat is
        loaded = self.site.loaded
        known = {m.name: Known(m, loaded[m.name]) for bus in buses if bus.name == "site" for m in bus.meters}
        pems = {"market": seat.key.pem(), "bids": bids_key.pem()}
        return market_plan(model, dict(known), lambda name, _check: pems[name])

    def _replay_ms(self, bus: BusPlan) -> Callable[[], int]:
        return self.site.replay_ms if self.site and bus.name == "site" else int

    def _stations(self, bus: BusPlan) -> list[Station]:
        return [self.meters[meter.name].station for meter in bus.meters]

    def _socket(self, plan: BusPlan) -> Socket:
        bus = self.buses[plan.name]
        chance = Random(self.chance.random())  # noqa: S311  seeded
        if plan.kind == "modbus-tcp":
            return Socket(HOSTS[plan.name], lambda: TcpConnection(bus), chance, serial=False)
        line = RtuLine(bus, LineTiming.of(BAUD, "E"))
        return Socket(DEVICE, lambda: line, chance, serial=True)

    def _plan(
        self, key: PrivateKey, headend_key: PublicKey, buses: tuple[BusPlan, ...], market: MarketPlan | None
    ) -> AgentPlan:
        settings = UplinkSettings(
            host="broker",
            port=1883,
            client_id=self.client,
            will=Will(self.topics.status, b'{"state": "offline"}'),
            session_s=MARKET_SESSION_S if market else 0,
        )
        scenario = self._scenario
        journal = JournalPlan(
            path=JOURNAL,
            commit_interval_s=scenario.commit_interval,
            keep_s=scenario.keep,
            keep_least_s=scenario.keep,  # ages are told by a clock that steps ahead
        )
        return AgentPlan(
            version="simulated",
            tenant=TENANT,
            gateway=self.name,
            log_key=key.pem(),
            headend_key=headend_key.pem(),
            configuration_hash=bytes(32),
            journal=journal,
            uplink=UplinkPlan(
                settings=settings, batch_interval_s=scenario.batch_interval, window=8, receipt_timeout_s=60.0
            ),
            status=StatusPlan(path=None, interval_s=5.0),
            buses=buses,
            drivers=DRIVERS,
            json_logs=False,
            market=market,
        )

    def set_rates(self, scenario: Scenario) -> None:
        """Let the wires fail as often as a scenario says."""
        for name, bus in self.buses.items():
            tcp = name in HOSTS
            model = scenario.faults.tcp if tcp else scenario.faults.serial
            seed = str(self.chance.random())
            rates = model.rates()
            if tcp:  # the wrong number may be that of a request under way: nobody can tell it from the truth
                several = name == "tcp" and self._in_flight > 1
                rates.pop(Fault.WRONG_TRANSACTION if several else Fault.OVERTAKEN, None)
            bus.faults = FaultSource(seed, rates, model.late_by)
            self.sockets[name].cut_rate = scenario.faults.cut if tcp else 0.0

    @property
    def member(self) -> Member:
        """As the market knows it."""
        return Member(
            origin=self.plan.origin,
            key=self.bids_key,
            topics=self.topics,
            meter=HOUSE,
            imports=IMPORTS,
            exports=EXPORTS,
        )

    # ------------------------------------------------------------ the agent

    def platform(self) -> Platform:
        """The machine, as one run of the agent sees it."""
        chance = Random(self.chance.random())  # noqa: S311  seeded
        offload = VirtualOffload(chance, delay_s=SLOW_S if self._slow else QUICK_S)
        self._offload = offload
        return Platform(
            now_ns=self.clock.now_ns,
            clock_state=self.clock.clock_state,
            boot_id=self._boot_id,
            entropy=chance.randbytes,
            random=chance,
            offload=offload,
            open_bus=self.wiring.open,
            connect_uplink=self._broker.connect,
            open_database=self._open,
            notify=lambda _state: None,
            think=VirtualOffload(Random(chance.random()), delay_s=THINK_S) if self.plan.market else None,  # noqa: S311
            disk=Beside(self.disk),
        )

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self.watch.restarted()
        self._disturbed()
        await run_agent(self.platform(), self.plan, self._stop)

    def _open(self, path: str) -> WatchedDatabase:
        disk = self.disk
        if path != JOURNAL:  # of a damaged journal, or what is to take its place
            self._trace.event("salvage", f"{self.name} {path}")
            return WatchedDatabase(disk.open(path), disk, lambda _: None)
        copy = disk.survived()
        try:
            looking = copy.open(path)  # at a copy: looking changes nothing
        except JournalError:
            if self.watch.hurt is None:
                raise
        else:
            self.watch.reopened(looking, disk.used(path))
            looking.close()
        copy.remove()

        def committed(database: "apsw.Connection") -> None:
            failing, disk.failing_reads = disk.failing_reads, 0  # they are meant for the agent
            self.watch.committed(database, disk.used(path))
            disk.failing_reads = failing

        return WatchedDatabase(disk.open(path), disk, committed)

    def _disturbed(self, *, died: bool = False) -> None:
        if self.bids:
            self.bids.disturbed()
            if died:
                self.bids.died()

    def _ended(self, error: BaseException | None) -> None:
        self._disturbed(died=error is not None)
        self._replace(self.disk.survived())  # its connections are no more, and must not close themselves later
        broken = self.disk.state is not DiskState.FINE or self._now_s() < self._forgiven_s
        if error is not None and not (is_journal_error(error) and (broken or self.watch.hurt is not None)):
            self._violated(Violation("stopped", f"{TENANT}/{self.name}: the agent ended: {error!r}"))

    @property
    def settled_s(self) -> float:
        """For so long the disk has been well; 0 while it is not."""
        if self._slow or self.disk.state is not DiskState.FINE or self.disk.failing_syncs:
            return 0.0
        return self._now_s() - self._broken_s

    def stop(self) -> None:
        """Stop the agent as SIGTERM does, for good."""
        self.service.retire()
        self._stop.set()

    # ------------------------------------------------------------ what befalls it

    def unplug(self, seconds: float) -> None:
        """Pull the serial adapter out; when it is plugged in again, the kernel gives it another name."""
        self.sockets["line"].refuse(seconds)
        self._unplugged += 1
        self.wiring.rename(DEVICE, PORT.format(self._unplugged % PORTS))

    def kill(self, why: str = "kill -9") -> None:
        """Kill the agent; the machine lives on, and what it wrote is there."""
        self._disturbed(died=True)
        self._replace(self.disk.survived())
        self.service.kill(why)

    def power_cut(self, why: str) -> None:
        """The machine goes dark, and comes back without an idea of the time."""
        self._disturbed(died=True)
        self._replace(self.disk.image or self.disk.crashed())
        self.clock.set(round(self.chance.random() * 60e9))
        self.clock.state = ClockState.UNSYNCHRONISED
        self._boot_id = self.chance.randbytes(16)
        self.service.kill(why, down_s=20.0)

    def _cut(self) -> None:
        if self.disk.image is not None:
            self.power_cut("power cut within a write")
        else:
            self.kill("kill -9 between two steps")

    def _replace(self, disk: Disk) -> None:
        disk.inherit(self.disk)
        self.disk = disk
        self.disks.append(disk)

    def break_disk(self, state: DiskState) -> None:
        """The disk fails, or works again."""
        self._disturbed()
        self.disk.state, self.disk.room = state, 0
        self._broken_s = self._now_s()
        self._forgiven_s = self._now_s() + FORGIVEN_S

    def damage(self) -> None:
        """Some bytes of the journal are changed; somebody takes away what was damaged long ago."""
        for name in [name for name in self.disk.files if ".quarantine-" in name]:
            del self.disk.files[name]
        where = self.disk.damage(JOURNAL, Random(self.chance.random()))  # noqa: S311  seeded
        if where:
            self.watch.harm(Hurt.DAMAGED)
        self._trace.event("damage", f"{self.name} {where or 'nothing there yet'}")

    def fail_reads(self, count: int) -> None:
        """So many of the next reads fail."""
        self._disturbed()
        self.disk.failing_reads = count
        if count:
            self.watch.harm(Hurt.UNREADABLE)

    def fail_syncs(self, count: int) -> None:
        """So many of the next syncs fail."""
        self._disturbed()
        self._broken_s = self._now_s()
        self.disk.failing_syncs = count

    def slow_disk(self, *, slow: bool) -> None:
        """The disk takes its time, or does not."""
        self._disturbed()
        self._slow = slow
        self._broken_s = self._now_s()
        self._offload.delay_s = SLOW_S if slow else QUICK_S

    def synchronise(self) -> None:
        """The clock is right again."""
        self.clock.drift(0)
        self.clock.set(self.clock.true_ns())
        self.clock.state = ClockState.SYNCHRONISED


def _spread(names: list[str], count: int) -> list[str]:
    """So many of the names, first, last and evenly between."""
    if count >= len(names):
        return names
    return sorted({names[i * (len(names) - 1) // max(1, count - 1)] for i in range(count)})
