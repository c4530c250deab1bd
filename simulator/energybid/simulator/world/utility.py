"""The utility's side of the world: the real head-end on a simulated machine."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from energybid.core.cose import PrivateKey
from energybid.core.ports import UplinkSettings
from energybid.headend.ledger import Ledger, Registration
from energybid.headend.receiver import Receiver
from energybid.headend.store import Store
from energybid.simulator.virtual import PowerCut, VirtualClock, VirtualOffload
from energybid.simulator.world.broker import Broker
from energybid.simulator.world.disk import Disk, DiskState, WatchedDatabase
from energybid.simulator.world.service import Service, is_journal_error
from energybid.simulator.world.trace import Trace
from energybid.simulator.world.watch import Violation

if TYPE_CHECKING:
    import apsw

PATH = "headend.db"
SESSION_S = 7 * 86400


QUICK_S, SLOW_S = (0.001, 0.02), (0.1, 10.0)
"""How long a call to the disk takes."""
FORGIVEN_S = 30.0
"""So long after a disk's fault a process may still end because of it."""


class _Machine:
    """Implements the head-end's ``World``."""

    def __init__(self, chance: Random, broker: Broker, delay_s: tuple[float, float]) -> None:
        self.random = chance
        self.offload = VirtualOffload(chance, delay_s=delay_s)
        self.connect_uplink = broker.connect
        self.notify: Callable[[str], None] = lambda _state: None


class Utility:
    """The head-end and its database."""

    def __init__(self, broker: Broker, trace: Trace, violated: Callable[[Violation], None], chance: Random) -> None:
        """Install it; ``service.run`` starts it."""
        self.key = PrivateKey.from_entropy(chance.randbytes(48))
        self.clock = VirtualClock()
        self.disk = Disk()
        self.disks = [self.disk]
        self.gateways: list[Registration] = []
        self.durable: dict[bytes, int] = {}
        """What the disk holds: epoch → entries."""
        self.crash: str | None = None
        """``before`` or ``after``: it crashes at its next commit."""
        self.chance = chance
        self.lost = False
        """It lost its database, or some of it, at some time."""
        self._slow = self._failing = False
        self._forgiven_s = 0.0
        self._now_s = asyncio.get_running_loop().time
        self._broker = broker
        self._violated = violated
        self._refused = 0
        self._settings = UplinkSettings(host="broker", port=1883, client_id="headend", session_s=SESSION_S)
        self.service = Service("headend", self._main, trace)
        self.service.ended = self._ended
        self.service.on_cut = self._cut

    async def _main(self) -> None:
        disk = self.disk
        connection = disk.open(PATH)
        database = WatchedDatabase(connection, disk, self._committed, self._before)
        store = Store.open(database, PATH)
        self._look(connection)
        chance = Random(self.chance.random())  # noqa: S311  seeded
        machine = _Machine(chance, self._broker, SLOW_S if self._slow else QUICK_S)
        self._offload = machine.offload
        ledger = self._ledger = Ledger(store, self.key, self.key.public, self.clock.now_ns)
        ledger.register(self.gateways)
        await Receiver(machine, self._settings, ledger).run()

    def _look(self, connection: "apsw.Connection") -> None:
        self.durable = dict(connection.execute("SELECT epoch, size FROM epoch"))
        for kind, count in self._ledger.refused.items() if self._alive() else ():
            self._violated(Violation("refused", f"the head-end refused {count} batches: {kind}"))

    _ledger: Ledger
    _offload: VirtualOffload | None = None

    def _alive(self) -> bool:
        return hasattr(self, "_ledger")

    def _before(self) -> None:
        if self.crash == "before":
            raise PowerCut

    def _committed(self, connection: "apsw.Connection") -> None:
        if self._alive():
            self._look(connection)
        if self.crash == "after":
            raise PowerCut

    def _ended(self, error: BaseException | None) -> None:
        self._replace(self.disk.survived())  # its connection is no more, and must not close itself later
        blamed = self.disk.state is not DiskState.FINE or self._failing or self._now_s() < self._forgiven_s
        if is_journal_error(error) and blamed:
            return
        self._violated(Violation("stopped", f"the head-end ended: {error!r}"))

    def _cut(self) -> None:
        if self.disk.image is not None:
            self._replace(self.disk.image)
            self.service.kill("power cut within a write")
        else:
            why, self.crash = self.crash, None
            self._replace(self.disk.survived())
            self.service.kill(f"crash {why} its commit")

    def kill(self, why: str, *, disk: Disk | None = None, down_s: float = 0.0) -> None:
        """Kill it; it starts again after a time, on its own disk or on another one."""
        self.lost = self.lost or disk is not None
        self._replace(disk or self.disk.survived())
        self.service.kill(why, down_s=down_s)

    def break_disk(self, state: DiskState) -> None:
        """The disk fails, or works again."""
        self.disk.state = state
        self._forgiven_s = self._now_s() + FORGIVEN_S

    def fail_syncs(self, count: int) -> None:
        """So many of the next syncs fail."""
        self.disk.failing_syncs = count
        self._failing = count > 0
        self._forgiven_s = self._now_s() + FORGIVEN_S

    def slow_disk(self, *, slow: bool) -> None:
        """The disk takes its time, or does not."""
        self._slow = slow
        if self._offload:
            self._offload.delay_s = SLOW_S if slow else QUICK_S

    def _replace(self, disk: Disk) -> None:
        disk.inherit(self.disk)
        self.disk = disk
        self.disks.append(disk)

    # ------------------------------------------------------------ the end

    def _copy(self) -> Disk:
        copy = self.disk.survived()
        self.disks.append(copy)
        return copy

    def stored(self, epoch: bytes) -> list[tuple[int, bytes]]:
        """(sequence, canonical bytes) of an epoch, from the disk."""
        connection = self._copy().open(PATH)
        query = (
            "SELECT sequence, canonical FROM entry JOIN epoch ON epoch.id = entry.epoch"
            " WHERE epoch.epoch = ? ORDER BY sequence"
        )
        return list(connection.execute(query, (epoch,)))

    def conflicts(self) -> list[tuple[str, str, str]]:
        """(origin, kind, detail) of what the head-end keeps as evidence."""
        connection = self._copy().open(PATH)
        return list(
            connection.execute("SELECT origin, kind, detail FROM conflict JOIN gateway ON gateway = gateway.id")
        )
