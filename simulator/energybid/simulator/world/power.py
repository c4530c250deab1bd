"""The market's side of the world: the market simulator itself on a simulated machine, with a database of its own.

It settles from what the head-end's database holds, as ``simulate market`` does; its bundles are kept for the oracle.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING

import apsw

from energybid.bidding.baseline_rules import text_of
from energybid.core.cose import PrivateKey
from energybid.core.errors import JournalError
from energybid.core.ports import UplinkSettings
from energybid.core.prover import History
from energybid.headend.history import histories
from energybid.simulator.market.operator import Event, Operator
from energybid.simulator.market.series import MadeUp, Scaled
from energybid.simulator.market.service import Service as MarketService
from energybid.simulator.market.store import Store
from energybid.simulator.market.terms import Member, Rest, Terms
from energybid.simulator.virtual import PowerCut, VirtualClock, VirtualOffload
from energybid.simulator.world.broker import Broker
from energybid.simulator.world.disk import Disk, WatchedDatabase
from energybid.simulator.world.scenario import Market
from energybid.simulator.world.service import Service
from energybid.simulator.world.trace import Trace
from energybid.simulator.world.utility import PATH as HEADEND
from energybid.simulator.world.utility import Utility
from energybid.simulator.world.watch import Violation
from energybid.sync.market import Pricing

if TYPE_CHECKING:
    from energybid.simulator.market.store import AwardRow, RoundRow

NAME = "world/power"
CLIENT = "market"
PATH = "market.db"
SESSION_S = 7 * 86400
PROGRAMME = "meter-before-meter-after"
QUICK_S = (0.001, 0.02)
DECIMALS = 4
LOOK_S = 60.0
"""Its clock is never set."""


class _Machine:
    """Implements the market's ``World``."""

    def __init__(self, chance: Random, broker: Broker, clock: VirtualClock) -> None:
        self.random = chance
        self.offload = VirtualOffload(chance, delay_s=QUICK_S)
        self.connect_uplink = broker.connect
        self.now_ns = clock.now_ns


class PowerMarket:
    """The market and its database."""

    def __init__(
        self,
        settings: Market,
        broker: Broker,
        utility: Utility,
        trace: Trace,
        violated: Callable[[Violation], None],
        chance: Random,
    ) -> None:
        """Install it; ``service.run`` starts it."""
        self.key = PrivateKey.from_entropy(chance.randbytes(48))
        self.members: list[Member] = []
        self.disk = Disk()
        self.disks = [self.disk]
        self.crash: str | None = None
        """``before`` or ``after``: it crashes at its next commit."""
        self.bundles: dict[str, bytes] = {}
        """The evidence, by name."""
        self.clock = VirtualClock()
        self.chance = chance
        self._broker, self._utility, self._trace, self._violated = broker, utility, trace, violated
        self._settings = UplinkSettings(host="broker", port=1883, client_id=CLIENT, session_s=SESSION_S)
        ms = 1000
        self.terms = Terms(
            name=NAME,
            period_ms=round(settings.every * ms),
            announce_ms=round(settings.announce * ms),
            gate_ms=round(settings.gate * ms),
            currency="EUR",
            decimals=DECIMALS,
            least_ticks=-500 * 10**DECIMALS,
            most_ticks=4000 * 10**DECIMALS,
            pricing=Pricing.UNIFORM,
            programme=PROGRAMME,
            programme_file=text_of(PROGRAMME),
            interval_ms=round(settings.every * ms),
            prices=Scaled(MadeUp(int(chance.random() * 2**31), Decimal(60), Decimal(40))),
            rest=Rest(power_w=100_000, spread_ticks=50 * 10**DECIMALS, steps=40),
            settle_after_ms=180_000,
            settle_every_ms=300_000,
            confirm_within_ms=180_000,
        )
        self.service = Service(CLIENT, self._main, trace)
        self.service.ended = self._ended
        self.service.on_cut = self._cut

    async def _main(self) -> None:
        disk = self.disk
        database = WatchedDatabase(disk.open(PATH), disk, self._committed, self._before)
        store = Store.open(database, PATH)
        operator = Operator(
            store, self.terms, self.members, self.key, open_logs=self._logs, keep_bundle=self.bundles.__setitem__
        )
        machine = _Machine(Random(self.chance.random()), self._broker, self.clock)  # noqa: S311  seeded
        service = MarketService(machine, self._settings, operator, store, look_s=LOOK_S)
        service.on_event = self._happened
        await service.run()

    def _happened(self, event: Event) -> None:
        self._trace.event("market", f"{event.kind} {event.facts}")

    @contextmanager
    def _logs(self) -> Iterator[Sequence[History]]:
        """What the head-end's database holds now: a copy of it, for nobody shares a simulated disk."""
        copy = self._utility.disk.survived()
        try:
            if HEADEND not in copy.files:
                yield ()
                return
            connection = copy.open(HEADEND)
            try:
                yield histories(connection, HEADEND) or ()
            finally:
                connection.close()
        except apsw.Error as error:
            raise JournalError(str(error)) from None
        finally:
            copy.remove()

    # ------------------------------------------------------------ what befalls it

    def _before(self) -> None:
        if self.crash == "before":
            raise PowerCut

    def _committed(self, _connection: apsw.Connection) -> None:
        if self.crash == "after":
            raise PowerCut

    def _ended(self, error: BaseException | None) -> None:
        self._replace(self.disk.survived())
        self._violated(Violation("stopped", f"the market ended: {error!r}"))

    def _cut(self) -> None:
        if self.disk.image is not None:
            self._replace(self.disk.image)
            self.service.kill("power cut within a write")
        else:
            why, self.crash = self.crash, None
            self._replace(self.disk.survived())
            self.service.kill(f"crash {why} its commit")

    def kill(self, why: str, *, down_s: float = 0.0) -> None:
        """Kill it; it starts again after a time."""
        self._replace(self.disk.survived())
        self.service.kill(why, down_s=down_s)

    def _replace(self, disk: Disk) -> None:
        disk.inherit(self.disk)
        self.disk = disk
        self.disks.append(disk)

    # ------------------------------------------------------------ what it knows

    @contextmanager
    def _looking(self) -> Iterator[Store | None]:
        copy = self.disk.survived()
        try:
            if PATH not in copy.files:
                yield None
                return
            connection = copy.open(PATH)
            try:
                yield Store(connection, PATH)
            finally:
                connection.close()
        finally:
            copy.remove()

    def rounds(self) -> "list[tuple[RoundRow, list[AwardRow]]]":
        """Every round with its awards, as they stand on its disk."""
        with self._looking() as store:
            return [(row, store.awards(row.number)) for row in store.last_rounds(1 << 30)] if store else []

    def next_begins_s(self) -> float:
        """Virtual time at which the next interval begins."""
        period_ms = self.terms.period_ms
        wall_ms = self.clock.now_ns() // 1_000_000
        return asyncio.get_running_loop().time() + (period_ms - wall_ms % period_ms) / 1000
