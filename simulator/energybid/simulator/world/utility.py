"""The utility's side of the world: the real head-end on a simulated machine."""

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
from energybid.simulator.world.disk import Disk, WatchedDatabase
from energybid.simulator.world.service import Service
from energybid.simulator.world.trace import Trace
from energybid.simulator.world.watch import Violation

if TYPE_CHECKING:
    import apsw

PATH = "headend.db"
SESSION_S = 7 * 86400


class _Machine:
    """Implements the head-end's ``World``."""

    def __init__(self, chance: Random, broker: Broker) -> None:
        self.random = chance
        self.offload = VirtualOffload(chance)
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
        machine = _Machine(Random(self.chance.random()), self._broker)  # noqa: S311  seeded
        ledger = self._ledger = Ledger(store, self.key, self.key.public, self.clock.now_ns)
        ledger.register(self.gateways)
        await Receiver(machine, self._settings, ledger).run()

    def _look(self, connection: "apsw.Connection") -> None:
        self.durable = dict(connection.execute("SELECT epoch, size FROM epoch"))
        for kind, count in self._ledger.refused.items() if self._alive() else ():
            self._violated(Violation("refused", f"the head-end refused {count} batches: {kind}"))

    _ledger: Ledger

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
        self._replace(disk or self.disk.survived())
        self.service.kill(why, down_s=down_s)

    def _replace(self, disk: Disk) -> None:
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

    def conflicts(self) -> list[str]:
        """What the head-end keeps as evidence."""
        connection = self._copy().open(PATH)
        return [str(row[0]) for row in connection.execute("SELECT kind || ': ' || detail FROM conflict")]
