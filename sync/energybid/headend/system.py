"""The real world of the head-end's process: signals, the lock on its database, logs.

Only modules named system.py touch these.
"""

import asyncio
import logging
import random
import signal
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from energybid.core.cose import PrivateKey
from energybid.core.ports import UplinkSettings
from energybid.headend.ledger import Ledger, Registration
from energybid.headend.receiver import Receiver
from energybid.headend.store import Store
from energybid.sync import system as sync
from energybid.sync.system import MqttUplink

logger = logging.getLogger("energybid.headend")

STOP_S = 4.0
"""How long a batch that is being stored may take when the process is told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RealWorld:
    """Implements ``World``."""

    random: random.Random
    offload: sync.Worker

    @staticmethod
    def connect_uplink(settings: UplinkSettings) -> AbstractAsyncContextManager[MqttUplink]:
        """Over MQTT."""
        return sync.connect_uplink(settings)

    @staticmethod
    def notify(state: str) -> None:
        """sd_notify(3)."""
        sync.notify(state)


async def serve(database: str, key: PrivateKey, uplink: UplinkSettings, gateways: tuple[Registration, ...]) -> None:
    """Run the head-end until SIGTERM or SIGINT.

    Raises:
        JournalError: The database can not be opened, or failed.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with sync.locked(database, "another head-end is running on this database"):
        store = Store.open(sync.open_database(database), database)
        world = RealWorld(random=random.Random(sync.entropy(8)), offload=sync.Worker("headend"))  # noqa: S311  jitter
        try:
            ledger = Ledger(store, key, key.public, sync.now_ns)
            ledger.register(gateways)
            world.notify("READY=1")
            logger.info("ready: %d gateways registered, receipts signed by %s", len(gateways), key.kid.hex())
            await _until(stop, Receiver(world, uplink, ledger))
        finally:
            world.notify("STOPPING=1")
            world.offload.close()
            store.close()
    logger.info("stopped")


async def _until(stop: asyncio.Event, receiver: Receiver) -> None:
    """Run until ``stop``; what is being stored is finished, for its thread is waited for."""
    running, stopping = asyncio.ensure_future(receiver.run()), asyncio.ensure_future(stop.wait())
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    running.cancel()
    await asyncio.wait({running}, timeout=STOP_S)
    if running.done() and not running.cancelled():
        running.result()
