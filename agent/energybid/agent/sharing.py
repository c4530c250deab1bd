"""Sharing buses: when others than polls may have a bus, and the proxies through which other masters do.

Polls go first. A request of another master gets the time that they leave, if it fits in; one that waits in vain is made
all the same after a while, but such requests get no more than the proxy's share of the bus's time.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import TYPE_CHECKING, Any, cast

from energybid.core.errors import BusDownError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.proxy.desk import Desk
from energybid.drivers.modbus.proxy.doors import RtuMaster, TcpDoor

if TYPE_CHECKING:
    from collections.abc import Iterable

    from energybid.agent.polling import BusPoller
    from energybid.core.ports import Listener, Platform
    from energybid.drivers.modbus.driver import ModbusDriver
    from energybid.drivers.modbus.exchange import Exchange
    from energybid.drivers.modbus.proxy.plan import ProxyPlan

logger = logging.getLogger("energybid.agent")

OPEN_AGAIN_S = 5.0
"""A port that can not be had is tried again after so long."""


class Slack:
    """The time that the polls of a bus leave. Implements ``Turns``."""

    def __init__(self, poller: BusPoller, share: float) -> None:
        """Give what ``poller`` leaves, and ``share`` of the time beside."""
        self.slack_s = poller.slack_s
        self.owed_at = -math.inf
        self._share = share
        self._loop = asyncio.get_running_loop()

    def took(self, took_s: float) -> None:
        """Polls had to wait so long: they do not again before that is no more than the share."""
        self.owed_at = self._loop.time() + took_s / self._share


class Proxy:
    """One ``[[proxy]]`` while the agent runs."""

    def __init__(self, platform: Platform, plan: ProxyPlan, poller: BusPoller) -> None:
        """Share ``poller``'s bus; its driver speaks Modbus."""
        self.plan = plan
        self.error = "not open yet"
        """Why no master can come; empty where they can."""
        self.is_open = asyncio.Event()
        """Masters can come."""
        self.desk = Desk(plan, cast("ModbusDriver", poller.driver), Slack(poller, plan.share))
        self._platform = platform

    async def run(self) -> None:
        """Let masters in until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.desk.run())
            at = self.plan.listen
            await (self._line(at) if isinstance(at, SerialEndpoint) else self._listen(at.host, at.port))

    async def _listen(self, host: str, port: int) -> None:
        door = TcpDoor(self.desk)
        listener: Listener | None = None
        try:
            while listener is None:
                listener = await self._try_to_listen(host, port, door)
            self.port = listener.port
            self._opened()
            logger.info("proxy for %s: masters come in at %s port %d", self.plan.bus, host, listener.port)
            await asyncio.Event().wait()
        finally:
            if listener is not None:
                listener.close()
            door.close()

    async def _try_to_listen(self, host: str, port: int, door: TcpDoor) -> Listener | None:
        if self._platform.serve_bus is None:
            raise TypeError("this platform listens on nothing")
        try:
            return await self._platform.serve_bus(host, port, door.master)
        except BusDownError as error:
            await self._failed(str(error))
            return None

    async def _line(self, endpoint: SerialEndpoint) -> None:
        while True:
            master = RtuMaster(self.desk, endpoint)
            try:
                await self._platform.open_bus(endpoint, lambda master=master: master)  # type: ignore[misc]
                self._opened()
                logger.info("proxy for %s: a master may be at %s", self.plan.bus, endpoint.device)
                await master.gone.wait()
                why = master.why
            except BusDownError as error:
                why = str(error)
            finally:
                master.close()
            await self._failed(why)

    def _opened(self) -> None:
        self.error = ""
        self.is_open.set()

    async def _failed(self, why: str) -> None:
        self.is_open.clear()
        if why != self.error:
            logger.warning("proxy for %s: %s", self.plan.bus, why)
        self.error = why
        await asyncio.sleep(OPEN_AGAIN_S)

    def status(self) -> dict[str, Any]:
        """What the operator is told."""
        counts = dict(self.desk.counts)
        return {
            "bus": self.plan.bus,
            "place": self.plan.place,
            "error": self.error,
            "clients": [{"name": client.name, "requests": client.requests} for client in self.desk.clients],
            "requests": counts.pop("requests", 0),
            "cached": counts.pop("cached", 0),
            "asked": counts.pop("asked", 0),
            "refused": dict(sorted(counts.items())),
        }


def make_proxies(platform: Platform, plans: Iterable[ProxyPlan], pollers: Iterable[BusPoller]) -> list[Proxy]:
    """The proxies of a gateway; their desks hear what is read on their buses."""
    by_name = {poller.name: poller for poller in pollers}
    proxies = [Proxy(platform, plan, by_name[plan.bus]) for plan in plans]
    for name in {proxy.plan.bus for proxy in proxies}:
        desks = [proxy.desk for proxy in proxies if proxy.plan.bus == name]
        _connect(by_name[name], desks)
    return proxies


def _connect(poller: BusPoller, desks: list[Desk]) -> None:
    def overheard(exchange: Exchange) -> None:
        for desk in desks:
            desk.overheard(exchange)

    def look() -> None:
        for desk in desks:
            desk.look()

    cast("ModbusDriver", poller.driver).overhear(overheard)
    poller.on_poll_end = look
