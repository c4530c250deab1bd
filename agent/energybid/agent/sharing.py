"""Sharing buses: when others than polls may have a bus, and the proxies through which other masters do.

Polls go first. A request of another master gets the time that they leave, if it fits in; one that does not is made all
the same after ``PATIENCE_S``, but such requests get no more than the proxy's share of the bus's time.
"""

from __future__ import annotations

import asyncio
import logging
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

PATIENCE_S = 0.3
"""How long a request waits for time that polls leave."""
OPEN_AGAIN_S = 5.0
"""A port that can not be had is tried again after so long."""


class Slack:
    """The time that the polls of a bus leave. Implements ``Turns``."""

    def __init__(self, poller: BusPoller, share: float) -> None:
        """Give what ``poller`` leaves, and ``share`` of the time beside."""
        self._poller = poller
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._owed_at = 0.0
        """When a request may be made that does not fit."""
        self._squeezed = False

    async def turn(self, takes_s: float) -> None:
        """Wait until ``takes_s`` seconds are left before the next poll, or are owed."""
        patient_until = self._loop.time() + PATIENCE_S
        while True:
            self._squeezed = self._poller.slack_s() < takes_s
            left_s = max(self._owed_at, patient_until) - self._loop.time()
            if not self._squeezed or left_s <= 0:
                return
            await self._poller.poll_ended(left_s)

    def took(self, took_s: float) -> None:
        """It was used for so many; where polls had to wait for it, the next such request waits in its turn."""
        if self._squeezed:
            self._owed_at = self._loop.time() + took_s / self._share


class Proxy:
    """One ``[[proxy]]`` while the agent runs."""

    def __init__(self, platform: Platform, plan: ProxyPlan, poller: BusPoller) -> None:
        """Share ``poller``'s bus; its driver speaks Modbus."""
        self.plan = plan
        self.error = "not open yet"
        """Why no master can come; empty where they can."""
        self.desk = Desk(plan, cast("ModbusDriver", poller.driver), Slack(poller, plan.share))
        self._platform = platform

    async def run(self) -> None:
        """Let masters in until cancelled."""
        asking = asyncio.create_task(self.desk.run())
        try:
            at = self.plan.listen
            await (self._line(at) if isinstance(at, SerialEndpoint) else self._listen(at.host, at.port))
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _listen(self, host: str, port: int) -> None:
        door = TcpDoor(self.desk)
        listener: Listener | None = None
        try:
            while listener is None:
                listener = await self._try_to_listen(host, port, door)
            self.error = ""
            self.port = listener.port
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
                self.error = ""
                logger.info("proxy for %s: a master may be at %s", self.plan.bus, endpoint.device)
                await master.gone.wait()
                why = master.why
            except BusDownError as error:
                why = str(error)
            finally:
                master.close()
            await self._failed(why)

    async def _failed(self, why: str) -> None:
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
        cast("ModbusDriver", by_name[name].driver).overhear(_to_all(desks))
    return proxies


def _to_all(desks: list[Desk]) -> Any:  # noqa: ANN401
    def tell(exchange: Exchange) -> None:
        for desk in desks:
            desk.overheard(exchange)

    return tell
