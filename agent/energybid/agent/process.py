"""The running agent: one event loop, one TaskGroup, one stop.

``python -m energybid.agent.process FD`` reads a pickled AgentPlan from a file descriptor that ``energybid run`` made;
nothing here, or imported from here, loads pydantic (a test guards that).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import math
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from energybid.agent import quarantine, system
from energybid.agent.judgement import last_counters
from energybid.agent.logs import configure_logs
from energybid.agent.memory import Memory
from energybid.agent.opening import open_recorder
from energybid.agent.polling import BusPoller
from energybid.agent.status import agent_status, write_status
from energybid.agent.upload import Uploader
from energybid.core import exit_codes
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.errors import EnergybidError, EvidenceError, JournalDamagedError, JournalError, RollbackError
from energybid.core.quantities import ClockState
from energybid.sync.connection import weightiest
from energybid.sync.topics import topics_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.agent.control import Control
    from energybid.agent.market.bidder import Bidder
    from energybid.agent.overrides import Overrides
    from energybid.agent.plan import AgentPlan
    from energybid.agent.recorder import Recorder
    from energybid.agent.sharing import Proxy
    from energybid.core.entries import Gap
    from energybid.core.ports import BusPlan, Driver, Platform

logger = logging.getLogger("energybid.agent")

DOUBT_S = 3600.0
"""A journal in which the running agent finds damage is opened and checked anew, and kept if that finds none; found
damaged again within this time, it is set aside all the same: the check at the opening does not see all of it."""

REQUEST_MAX = 4096
"""Bytes of a request on the agent's socket."""
FLUSH_S = 2.0
"""At a stop, how long the last batch may wait for its receipt (the stop is over within 5 s)."""


def open_driver(platform: Platform, plan: AgentPlan, bus: BusPlan) -> Driver:
    """The driver of a bus, imported only now."""
    module, _, function = plan.drivers[bus.kind].partition(":")
    opener: Callable[[Platform, BusPlan], Driver] = getattr(importlib.import_module(module), function)
    return opener(platform, bus)


def make_proxies(platform: Platform, plan: AgentPlan, pollers: list[BusPoller]) -> list[Proxy]:
    """The proxies of a plan; what makes them is imported only where there are any."""
    if not plan.proxies:
        return []
    sharing = importlib.import_module("energybid.agent.sharing")
    proxies: list[Proxy] = sharing.make_proxies(platform, plan.proxies, pollers)
    return proxies


def make_control(platform: Platform, recorder: Recorder, pollers: list[BusPoller]) -> Control | None:
    """The control path, imported only where a meter has something to write."""
    if not any(getattr(meter.plan.map, "writables", ()) for poller in pollers for meter in poller.meters):
        return None
    made: Control = importlib.import_module("energybid.agent.control").Control(platform, recorder, pollers)
    return made


def make_overrides(platform: Platform, recorder: Recorder, control: Control | None) -> Overrides | None:
    """What people on site want, where there is anything to control."""
    if control is None:
        return None
    overrides = importlib.import_module("energybid.agent.overrides")
    made: Overrides = overrides.Overrides(platform, control, recorder.journal)
    return made


def make_bidder(
    platform: Platform,
    plan: AgentPlan,
    recorder: Recorder,
    parts: tuple[Control | None, list[BusPoller], Uploader | None],
) -> Bidder | None:
    """The part in a market, imported only where there is one: it loads numpy."""
    control, pollers, uploader = parts
    if plan.market is None or uploader is None or control is None:
        return None
    start = importlib.import_module("energybid.agent.market.start")
    made: Bidder = start.make_bidder(platform, plan.market, recorder, control, pollers, uploader)
    return made


class Agent:
    """The parts of one agent and their order of start and stop."""

    def __init__(self, platform: Platform, plan: AgentPlan, recorder: Recorder) -> None:
        """Put the parts together; nothing runs yet."""
        self.lost: Gap | None = None
        """What was read and lost when the journal turned out to be damaged."""
        self._platform = platform
        self._plan = plan
        self._recorder = recorder
        self._pollers = [BusPoller(platform, recorder, open_driver(platform, plan, bus), bus) for bus in plan.buses]
        self._proxies = make_proxies(platform, plan, self._pollers)
        self.control = make_control(platform, recorder, self._pollers)
        """None where nothing can be written."""
        self.overrides = make_overrides(platform, recorder, self.control)
        self._memory = Memory(platform, recorder.journal, self._pollers)
        self._uploader: Uploader | None = None
        if plan.uplink:
            topics = topics_for(plan.tenant, plan.gateway)
            key = PublicKey.from_pem(plan.headend_key)
            self._uploader = Uploader(platform, recorder, plan.uplink, topics, key)
        self.bidder = make_bidder(platform, plan, recorder, (self.control, self._pollers, self._uploader))
        """None where there is no market."""
        if self.overrides and self.bidder:
            self.overrides.also["forecast back"] = self.bidder.forecast_back

    async def run(self, stop: asyncio.Event, lost: Gap | None = None) -> None:
        """Run until ``stop`` is set; then commit, send the last batch, and end.

        Args:
            stop: Set from outside.
            lost: What a damaged journal before this one has cost.

        Raises:
            JournalDamagedError: It is to be quarantined, and the agent run anew.
            JournalError: The journal is locked, or took nothing more before the end.
            RollbackError: The head-end holds another log.
        """
        recorder = self._recorder
        self.lost = lost
        try:
            await self._begin(lost)
            async with asyncio.TaskGroup() as tasks:
                polls, others = self._start(tasks)
                self._platform.notify("READY=1")
                await stop.wait()
                self._platform.notify("STOPPING=1")
                if self.bidder:
                    await self.bidder.close()
                if self.control:
                    await self.control.close()
                await _cancel(polls)
                await self._flush()
                await self._memory.close()
                await _cancel(others)
        except JournalDamagedError:
            self.lost = together(self.lost, recorder.discard())
            raise
        except BaseExceptionGroup as group:
            error = weightiest(group)
            if isinstance(error, RollbackError):
                recorder.abandon()
            elif isinstance(error, JournalDamagedError):
                self.lost = together(self.lost, recorder.discard())
            raise error from group
        finally:
            await recorder.close()

    def _start(self, tasks: asyncio.TaskGroup) -> tuple[list[asyncio.Task[None]], list[asyncio.Task[None]]]:
        """Start everything; returns what is at the buses, and the rest, which ends after it."""
        polls = [tasks.create_task(poller.run()) for poller in self._pollers]
        others = [tasks.create_task(self._recorder.run()), tasks.create_task(self._watchdog())]
        others.append(tasks.create_task(self._memory.run()))
        polls += [tasks.create_task(proxy.run()) for proxy in self._proxies]
        if self.control:
            polls.append(tasks.create_task(self.control.run()))
        if self.overrides:
            polls.append(tasks.create_task(self.overrides.run()))
            polls.append(tasks.create_task(self._serve_overrides(self.overrides)))
        if self._uploader:
            others.append(tasks.create_task(self._uploader.run()))
        if self.bidder:
            others.append(tasks.create_task(self.bidder.run()))
        if self._plan.status.path:
            others.append(tasks.create_task(self._write_status(self._plan.status.path)))
        return polls, others

    async def _begin(self, lost: Gap | None) -> None:
        """Know what earlier runs knew, open this run in the log, make safe what the last one has left held."""
        recorder = self._recorder
        counters = await self._platform.offload(last_counters, recorder.journal, recorder.epoch)
        await self._memory.recall()
        recorder.started(self._plan.version, self._plan.configuration_hash)
        for poller in self._pollers:
            poller.remember(counters)
            poller.declare()
        if lost:
            recorder.append(lost)
        await recorder.commit()
        self.lost = None
        if self.control:
            await self.control.recall()
            if self.overrides:
                await self.overrides.recall()
            await self.control.make_safe()

    async def _serve_overrides(self, overrides: Overrides) -> None:
        """Answer ``energybid override`` and ``forecast back``; where that can not be, metering goes on without."""
        path = self._plan.socket
        if path is None:
            return
        try:
            async with system.serve_requests(path, overrides.answer, REQUEST_MAX):
                await asyncio.Event().wait()
        except OSError as error:
            logger.warning("%s: %s: nobody can override what the agent sets", path, error.strerror or error)

    async def _flush(self) -> None:
        await self._recorder.commit()
        if self._uploader:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_S):
                    await self._uploader.flush()

    async def _watchdog(self) -> None:
        """Feed the service manager's watchdog while loop and disk are alive: both must turn to get here."""
        interval_s = system.watchdog_interval_s()
        while interval_s:
            await self._platform.offload(int)
            self._platform.notify("WATCHDOG=1")
            await asyncio.sleep(interval_s / 2)

    async def _write_status(self, path: str) -> None:
        def status() -> dict[str, object]:
            found = agent_status(self._platform, self._plan, self._recorder, self._pollers, self._uploader)
            found["control"] = self.control.status() if self.control else []
            found["market"] = self.bidder.status() if self.bidder else None
            return found | {"proxies": [proxy.status() for proxy in self._proxies]}

        await write_status(self._plan.status.interval_s, status, lambda data: system.replace_file(path, data))


def together(one: Gap | None, other: Gap | None) -> Gap | None:
    """Two gaps of all meters as one."""
    if one is None or other is None:
        return one or other
    begin, end = min(one.from_ms, other.from_ms), max(one.to_ms, other.to_ms)
    return one._replace(from_ms=begin, to_ms=end, missed=one.missed + other.missed)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run_agent(platform: Platform, plan: AgentPlan, stop: asyncio.Event) -> None:
    """Open the journal and run the agent until ``stop``; where the journal is damaged, quarantine it and begin anew."""
    lost: Gap | None = None
    doubted_s = -math.inf
    if plan.trust_clock:
        platform = replace(platform, clock_state=lambda: ClockState.SYNCHRONISED)
    while True:
        recorder = await _open(platform, plan)
        logger.info(
            "%s: journal %s holds %d entries, %d acknowledged",
            plan.origin,
            plan.journal.path,
            recorder.size,
            recorder.acknowledged_size,
        )
        agent = Agent(platform, plan, recorder)
        try:
            await agent.run(stop, lost)
        except JournalDamagedError as error:
            lost = agent.lost
            now_s = asyncio.get_running_loop().time()
            doubted_s, before_s = now_s, doubted_s
            if now_s - before_s > DOUBT_S:
                logger.error("%s; looking again", error)  # noqa: TRY400  no bug
                continue
            key = PublicKey.from_pem(plan.headend_key) if plan.headend_key else None
            await platform.offload(quarantine.replace, platform, plan.journal.path, plan.origin, error, key)
        else:
            return


async def _open(platform: Platform, plan: AgentPlan) -> Recorder:
    return await open_recorder(
        platform,
        plan.journal.path,
        plan.origin,
        PrivateKey.from_pem(plan.log_key),
        commit_interval_s=plan.journal.commit_interval_s,
        keep_s=plan.journal.keep_s,
        keep_least_s=plan.journal.keep_least_s,
        budget=plan.journal.budget,
        headend_key=PublicKey.from_pem(plan.headend_key) if plan.headend_key else None,
    )


def main() -> int:
    """Run the plan from the file descriptor in ``sys.argv[1]``; returns the exit code."""
    plan = system.receive_plan(int(sys.argv[1]))
    configure_logs(as_json=plan.json_logs)
    try:
        with system.locked(plan.journal.path, system.HELD):
            asyncio.run(system.until_stopped(lambda platform, stop: run_agent(platform, plan, stop)))
    except JournalError as error:
        logger.critical("%s", error)
        return exit_codes.JOURNAL
    except EvidenceError as error:
        logger.critical("%s", error)
        return exit_codes.NOT_VERIFIED
    except EnergybidError as error:
        logger.critical("%s", error)
        return exit_codes.FAILED
    return exit_codes.OK


if __name__ == "__main__":
    sys.exit(main())
