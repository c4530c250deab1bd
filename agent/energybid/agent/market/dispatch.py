"""Moves the assets: a net import to keep, and each asset's part of it → numbers in their registers, and back.

Every number is held by a lease of the control path, which goes back to the safe one by itself when nobody renews it. In
the interval of an award the assets that can be anything within a range take up what the rest of the site does otherwise
than was thought, so that the interval's energy meets the award; those that are on or off stay as they are. Limits of
the site and of an asset are kept whatever the award says. Which number sets which power is in ``setpoints``, what an
asset may be moved to in ``movers``.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING

from energybid.agent.control import Control, ControlError, Lease, Owner, Rank
from energybid.agent.market.assets import Assets
from energybid.agent.market.movers import Mover, movers_of
from energybid.agent.market.plan import DeferrablePlan
from energybid.agent.market.ports import Followed
from energybid.core.errors import MeterError
from energybid.sync.market import Conduct

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from fractions import Fraction

    from energybid.agent.journal import Journal
    from energybid.agent.market.plan import MarketPlan
    from energybid.agent.polling import BusPoller
    from energybid.core.ports import Platform

logger = logging.getLogger("energybid.agent")

OWNER = "dispatch"
TICK_MIN_S, TICK_MAX_S = 1.0, 10.0
"""Between two looks: a sixtieth of the interval, within these. Each number that is written is an entry of the log, and
a commit: faster costs the card."""
LEASE_S = 30.0
"""A lease is renewed at every look; an agent that hangs lets go after this."""
HANDOVER_S = 2.0
"""Leases outlast the interval by this, so that the next one takes over without a safe number in between."""
HORIZON_S = 5.0
"""What is missing in energy is made good within the rest of the interval, or this where less is left."""
BASES = 3
"""The base load is the median of so many looks: one at which meters were read while an asset moved does not count."""
TOLERANCE_W, TOLERANCE = 100.0, 0.05
"""An award is not followed where more than this is missing, the second as a share of what the assets were to do."""
GIVE_UP_S = 30.0
"""What is missing for so long, or a quarter of the interval, will not come."""
RETRY_S = 2.0
LEFT_OUT_S = 300.0
"""An asset that can not be moved does not bid for this time."""
SEEN = 0.9
"""Where the site's meter has seen less of the interval, the confirmation says so."""
OVER = 1.02
"""The site's limit is broken by a measurement above this share of it, twice."""

_REASON = re.compile(r"[^A-Za-z0-9._:/ -]")


def make(
    platform: Platform, plan: MarketPlan, control: Control, pollers: Iterable[BusPoller], journal: Journal
) -> tuple[Assets, Dispatcher]:
    """The assets of a gateway, and who moves them."""
    assets = Assets(platform, plan, control, pollers, journal)
    return assets, Dispatcher(plan, control, assets)


class Dispatcher:
    """Moves the assets of a site. Implements ``ports.Dispatcher``."""

    def __init__(self, plan: MarketPlan, control: Control, assets: Assets) -> None:
        """Move ``assets`` through ``control``."""
        self.plan, self.control, self.assets = plan, control, assets
        self.leases: dict[str, list[Lease]] = {}
        """Asset → what is held for it."""
        self._job: _Job | None = None

    async def follow(
        self, target_w: int, split: Mapping[str, int], begins_ms: int, ends_ms: int, rank: Rank
    ) -> Followed:
        """Have the site take a power, and its assets theirs, until the interval ends.

        Who follows next, before or at the end, takes over. Cancelled, all is let go.

        Args:
            target_w: Net import to keep, mean over the interval.
            split: Of it, the import of each asset by name.
            begins_ms: Wall clock.
            ends_ms: Wall clock.
            rank: MARKET: the interval's energy is kept; SCHEDULE: only the split and the limits are.

        Returns:
            At the end; or before where an award can not be followed any more.
        """
        job = _Job(self, target_w, split, (self.assets.loop_s(begins_ms), self.assets.loop_s(ends_ms)), rank)
        job.movers = movers_of(self.assets, split, begins_ms)
        before, self._job = self._job, job
        if before:
            before.superseded.set()
        try:
            return await job.run()
        except BaseException:
            if self._job is job:
                self._let_go()
            raise
        finally:
            job.end()
            if self._job is job:
                self._job = None

    def _let_go(self) -> None:
        """All but runs that have begun: those go to their end."""
        for name, leases in list(self.leases.items()):
            if not isinstance(self.assets.units[name].plan, DeferrablePlan):
                self.drop(name, leases)

    def drop(self, name: str, leases: list[Lease]) -> None:
        """Hold nothing for an asset any more."""
        for lease in reversed(leases):
            lease.release()
        self.leases.pop(name, None)
        self.assets.commanded(name, 0.0, 0.0)


class _Job:
    """One interval."""

    def __init__(
        self, of: Dispatcher, target_w: int, split: Mapping[str, int], span_s: tuple[float, float], rank: Rank
    ) -> None:
        self.of, self.target_w, self.split, self.rank = of, target_w, split, rank
        self.begin_s, self.end_s = span_s
        self.movers: list[Mover] = []
        self.superseded = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tick_s = min(max((self.end_s - self.begin_s) / 60, TICK_MIN_S), TICK_MAX_S)
        self._bases: deque[float] = deque(maxlen=BASES)
        self._account: _Account | None = None
        self._net_at_s = 0.0
        self._over = 0
        """Looks in a row at which the site's limit was broken."""
        self._limited = ""
        """Which limit made it give up the award."""
        self._rest_w = 0.0
        """What no asset could take up at the last look."""
        self._missing_since_s: float | None = None
        self._writes: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ life

    async def run(self) -> Followed:
        await self._wait(self.begin_s)
        for name in self.of.leases.keys() - {mover.name for mover in self.movers}:
            if not isinstance(self.of.assets.units[name].plan, DeferrablePlan):
                self.of.drop(name, self.of.leases[name])
        self._account = _Account(self.of, self._since_s())
        while self._loop.time() < self.end_s and not self.superseded.is_set():
            self._look()
            if self._gives_up():
                return self._result()
            await self._wait(min(self._loop.time() + self._tick_s, self.end_s))
        return self._result()

    def _since_s(self) -> float:
        """Since when the energy is known: the begin, but where it joins late and nobody measured before."""
        now_s = self._loop.time()
        known = now_s - self.begin_s < TICK_MAX_S or self.of.assets.net.integral(self.begin_s, now_s) is not None
        return self.begin_s if known else now_s

    async def _wait(self, until_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, until_s - self._loop.time())):
                await self.superseded.wait()

    def end(self) -> None:
        """No more writes of this interval."""
        for task in self._writes:
            task.cancel()

    def _until_s(self) -> float:
        return min(self._loop.time() + LEASE_S, self.end_s + HANDOVER_S)

    # ------------------------------------------------------------ one look

    def _look(self) -> None:
        now_s, assets = self._loop.time(), self.of.assets
        assets.look()
        for mover in self.movers:
            mover.look(now_s, self._tick_s, self._overridden_by(mover))
        self._aim(self._base_w())
        for mover in self.movers:
            self._move(mover, now_s)

    def _overridden_by(self, mover: Mover) -> str:
        control = mover.plan.control
        points = [control.point, *(point for point, _ in control.enable)]
        points += [control.mirror] if control.mirror else []
        owners = (self.of.control.held_above(point, self.rank) for point in points)
        return next((owner.name for owner in owners if owner), "")

    def _base_w(self) -> float | None:
        """Net import of what is not moved."""
        assets = self.of.assets
        net_w, last = assets.live.total(self.of.plan.net), assets.live.last(self.of.plan.net[0])
        if net_w is None or last is None:
            return None
        if last.at_s > self._net_at_s:
            self._net_at_s = last.at_s
            self._bases.append(net_w - sum(mover.power_w for mover in self.movers))
            self._watch_limits(net_w)
        return median(self._bases)

    def _aim(self, base_w: float | None) -> None:
        """Give every asset its power."""
        free = [mover for mover in self.movers if mover.is_free]
        for mover in self.movers:
            mover.wanted_w = mover.start_w
        if base_w is None:
            return
        fixed_w = sum(mover.expected_w for mover in self.movers if not mover.is_free)
        thought_w = base_w + fixed_w + sum(mover.start_w for mover in free)
        left_w = self._wanted_w(thought_w) - thought_w
        for mover in free:
            left_w -= mover.take(left_w)
        self._rest_w = left_w

    def _wanted_w(self, thought_w: float) -> float:
        """The net import to aim at: what makes the interval's energy right, within the site's limits."""
        wanted_w, now_s = thought_w, self._loop.time()
        if self.rank == Rank.MARKET:
            wanted_w = float(self.target_w)
            found = self._account.energy_ws(now_s) if self._account else None
            if found is not None:
                energy_ws, since_s = found
                horizon_s = max(self.end_s - now_s, HORIZON_S, 2 * self._tick_s)
                wanted_w += (self.target_w * (now_s - since_s) - energy_ws) / horizon_s
        return min(max(wanted_w, -float(self.of.plan.export_limit_w)), float(self.of.plan.import_limit_w))

    def _watch_limits(self, net_w: float) -> None:
        """What is on or off is shed where nothing else keeps the connection's limit; it stays off then."""
        is_over = net_w > OVER * self.of.plan.import_limit_w and self._rest_w < 0
        self._over = self._over + 1 if is_over else 0
        if self._over < 2:  # noqa: PLR2004  twice, as OVER says
            return
        on = [mover for mover in self.movers if mover.can_shed]
        if on:
            largest = max(on, key=lambda mover: (not mover.has_to_run, mover.power_w))
            logger.warning("%s: off, for the site takes %.0f W, more than its limit", largest.name, net_w)
            largest.shed()
            self._limited, self._over = "import limit", 0

    # ------------------------------------------------------------ moving

    def _move(self, mover: Mover, now_s: float) -> None:
        """Bring one asset nearer to its power, and keep what is held."""
        if mover.task is not None or now_s < mover.retry_at_s or not mover.is_held:
            return
        held = self.of.leases.get(mover.name, ())
        number, power_w, parts = mover.next(now_s)
        if number == mover.told and held and all(lease.held for lease in held):
            until_s = max(self._until_s(), mover.hold_until_s(now_s))
            for lease in held:
                lease.renew(until_s)
            self.of.assets.commanded(mover.name, power_w, until_s, parts)
            return
        mover.told = None
        task = mover.task = asyncio.create_task(self._write(mover, number, power_w, parts))
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def _write(self, mover: Mover, number: Fraction, power_w: float, parts: int) -> None:
        owner, control = Owner(OWNER, self.rank), mover.plan.control
        until_s = max(self._until_s(), mover.hold_until_s(self._loop.time()))
        try:
            leases = [await self.of.control.hold(control.point, number, owner, until_s)]
            self.of.leases[mover.name] = leases + self.of.leases.get(mover.name, [])[1:]
            self.of.assets.commanded(mover.name, power_w, until_s, parts)
            others = ((control.mirror, -number),) if control.mirror else ()
            for point, value in (*others, *control.enable):
                leases.append(await self.of.control.hold(point, value, owner, until_s))
            self.of.leases[mover.name] = leases
            mover.told_now(self._loop.time(), number, power_w)
        except (ControlError, MeterError) as error:
            mover.failed(self._loop.time() + RETRY_S, str(error))
        finally:
            mover.task = None

    # ------------------------------------------------------------ judging

    def _short(self) -> list[Mover]:
        return [mover for mover in self.movers if mover.falls_short]

    def _tolerance_w(self) -> float:
        return max(TOLERANCE_W, TOLERANCE * sum(abs(mover.split_w) for mover in self.movers))

    def _missing(self) -> bool:
        """Assets do not do their part, and the others can not do it for them."""
        gone_w = sum(abs(mover.split_w - mover.power_w) for mover in self._short())
        return min(gone_w, abs(self._rest_w)) > self._tolerance_w()

    def _gives_up(self) -> bool:
        now_s = self._loop.time()
        if self.rank != Rank.MARKET or not self._missing():
            self._missing_since_s = None
            return False
        if self._missing_since_s is None:
            self._missing_since_s = now_s
        return now_s - self._missing_since_s >= min(GIVE_UP_S, (self.end_s - self.begin_s) / 4)

    def _result(self) -> Followed:
        for mover in self._short():
            if (mover.fault or mover.disobeys) and not mover.overridden_by:
                self.of.assets.failed(mover.name, mover.why, LEFT_OUT_S)
        self._release_late()
        if self._limited:
            return _followed(Conduct.OVERRIDDEN, self._limited)
        if self.rank == Rank.MARKET and self._missing():
            worst = max(self._short(), key=lambda mover: abs(mover.split_w - mover.power_w))
            conduct = Conduct.OVERRIDDEN if worst.overridden_by or worst.limited else Conduct.FAILED
            return _followed(conduct, f"{worst.name}: {worst.why}")
        found = self._account.energy_ws(self._loop.time()) if self._account else None
        if found is None:
            return _followed(Conduct.FOLLOWED, "followed: not measured")
        energy_ws, since_s = found
        mean_w = energy_ws / max(self._loop.time() - since_s, TICK_MIN_S)
        seen = self.of.assets.net.seen(since_s, self._loop.time())
        doubt = "" if seen >= SEEN else f" - {100 * seen:.0f} percent measured"
        return _followed(Conduct.FOLLOWED, f"followed: {mean_w:.0f} W of {self.target_w} W{doubt}")

    def _release_late(self) -> None:
        """Let go soon, also where it ends early."""
        if self.superseded.is_set():
            return
        soon_s = self._loop.time() + HANDOVER_S
        for mover in self.movers:
            for lease in self.of.leases.get(mover.name, ()):
                if lease.held and mover.hold_until_s(soon_s) <= soon_s:
                    lease.renew(soon_s)


class _Account:
    """The site's energy since a moment: power added up, kept within what the energy registers say."""

    def __init__(self, of: Dispatcher, since_s: float) -> None:
        self._of, self._since_s = of, since_s
        self._anchor = self._counted()
        self._before_ws = 0.0
        """From the anchor to ``since_s``. Reckoned now: what assets do after it must not count before."""
        if self._anchor is not None:
            t0, net = self._anchor[0], of.assets.net
            if t0 < since_s:
                self._before_ws = net.integral(t0, since_s) or 0.0
            else:
                self._before_ws = -(net.integral(since_s, t0) or 0.0)

    def energy_ws(self, now_s: float) -> tuple[float, float] | None:
        """Watt-seconds of net import, and since when (loop time); None where the meter does not tell."""
        added_ws = self._of.assets.net.integral(self._since_s, now_s)
        if added_ws is None:
            return None
        counted = self._counted()
        if self._anchor is None or counted is None or counted[0] <= self._anchor[0]:
            return added_ws, self._since_s
        (_, c0), (t1, c1) = self._anchor, counted
        after_ws = self._of.assets.net.integral(t1, now_s) or 0.0
        counted_ws = 3600 * (c1 - c0) - self._before_ws + after_ws
        wrong_ws = 3600 * self._resolution_wh()
        return min(max(added_ws, counted_ws - wrong_ws), counted_ws + wrong_ws), self._since_s

    def _counted(self) -> tuple[float, float] | None:
        """When the registers were read last, and import less export, Wh."""
        plan, live = self._of.plan, self._of.assets.live
        if plan.imported is None or plan.exported is None:
            return None
        one, other = live.last(plan.imported), live.last(plan.exported)
        if one is None or other is None or one.at_s != other.at_s:
            return None
        return one.at_s, one.number - other.number

    def _resolution_wh(self) -> float:
        plan = self._of.plan
        return sum(abs(sensor.factor) for sensor in (plan.imported, plan.exported) if sensor)


def _followed(conduct: Conduct, reason: str) -> Followed:
    return Followed(conduct, _REASON.sub("-", reason)[:64])
