"""The real world of a market's process: clock, thread, broker, databases. Only modules named system.py touch these."""

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import apsw

from energybid.core.errors import JournalError
from energybid.core.ports import UplinkSettings
from energybid.core.prover import History
from energybid.headend.history import histories
from energybid.simulator.market.config import MarketPlan
from energybid.simulator.market.operator import Event, Operator
from energybid.simulator.market.service import Service
from energybid.simulator.market.store import Store
from energybid.sync import system as sync
from energybid.sync.system import MqttUplink

BUSY_MS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RealWorld:
    """Implements ``World``."""

    random: random.Random
    offload: sync.Worker
    now_ns: Callable[[], int] = sync.now_ns

    @staticmethod
    def connect_uplink(settings: UplinkSettings) -> AbstractAsyncContextManager[MqttUplink]:
        """Over MQTT."""
        return sync.connect_uplink(settings)


@contextmanager
def headend_logs(path: str) -> Iterator[Sequence[History]]:
    """What a head-end's database holds now; nothing while there is none.

    Raises:
        JournalError: It can not be read.
    """
    if not Path(path).exists():
        yield ()
        return
    try:
        database = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READONLY)
        try:
            database.set_busy_timeout(BUSY_MS)
            with database:
                yield histories(database, path) or ()
        finally:
            database.close()
    except apsw.Error as error:
        raise JournalError(f"{path}: {error}") from None


def keep_bundle(folder: Path, name: str, data: bytes) -> None:
    """Write a file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    new = folder / f".{name}.new"
    new.write_bytes(data)
    new.replace(folder / name)


async def serve(plan: MarketPlan, stop: asyncio.Event, on_event: Callable[[Event], None]) -> None:
    """Run a market until ``stop``.

    Raises:
        JournalError: The database can not be opened, or failed.
    """
    with sync.locked(plan.database, "another market is running on this database"):
        store = Store.open(sync.open_database(plan.database), plan.database)
        world = RealWorld(random=random.Random(sync.entropy(8)), offload=sync.Worker("market"))  # noqa: S311  jitter
        headend, bundles = plan.headend, plan.bundles
        operator = Operator(
            store,
            plan.terms,
            plan.members,
            plan.key,
            open_logs=None if headend is None else lambda: headend_logs(headend),
            keep_bundle=None if bundles is None else lambda name, data: keep_bundle(bundles, name, data),
        )
        service = Service(world, plan.uplink, operator, store)
        service.on_event = on_event
        running, stopping = asyncio.ensure_future(service.run()), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
        finally:
            for task in (running, stopping):
                task.cancel()
            await asyncio.gather(running, stopping, return_exceptions=True)
            world.offload.close()
            store.close()
