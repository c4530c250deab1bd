"""A site in virtual time whose devices obey their registers: the real pollers, control path, journal and dispatcher
over a driver in memory. The plan is the one that docs/assets.md makes."""

import asyncio
import random
import tempfile
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from math import exp
from pathlib import Path

from energybid.agent.config import load_plan
from energybid.agent.control import Control
from energybid.agent.market.dispatch import make
from energybid.agent.polling import BusPoller
from energybid.core.errors import NoReplyError
from energybid.core.ports import Sample
from energybid.core.quantities import Status
from energybid.drivers.modbus.decode import decode_writable, encode_writable
from energybid.drivers.profile import load_profile
from energybid.simulator.virtual import VirtualClock, run
from gateways import recording, virtual_platform
from sites import PROFILES, site

LAG_S = 0.5
"""From a write to the moment that the device does it."""


@cache
def example_plan():
    with tempfile.TemporaryDirectory() as folder:
        return load_plan(site(Path(folder)))


@cache
def names_of(profile):
    path = PROFILES / f"{profile}.toml"
    loaded = load_profile(str(path) if path.exists() else profile)
    return {str(register.quantity.obis): register.name for register in loaded.registers}


class Floor:
    """Household and devices; powers in W of import, energies in Wh."""

    def __init__(self, *, base=lambda _t: 600.0, stored_wh=5000.0, sun_w=0.0, seed=1):
        self.base, self.sun_w = base, sun_w
        self.random = random.Random(seed)
        self.stored_wh, self.capacity_wh = stored_wh, 10_000.0
        self.obeys = {"battery": 1.0, "wallbox": 1.0}
        """Share of what it is told that a device does."""
        self.plugged, self.session_wh, self.car_room_wh = True, 0.0, 20_000.0
        self.temperature_c, self.outside_c, self.time_constant_h = 21.0, 5.0, 30.0
        self.machine, self.machine_end_s = 1, 0.0
        self.load_w, self.parts_w = 3000.0, (2000.0, 1000.0)
        self.registers = {}
        self.due = []
        """Writes that were not done yet: (when, meter, name, value)."""
        self.energy = {"in": 1_000_000.0, "out": 500_000.0}
        self.at_s = None
        self.deaf = set()
        """Meters that do not answer."""
        self.unread = set()
        """Quantities that are not available."""
        self.silent = set()
        """Meters that take no writes."""
        self.log = []
        """(when, meter, name, value) of writes."""
        self.trace = []
        """(when, net Ws)."""
        self.there = {"battery", "wallbox", "heat-pump", "machine", "load", "roof"}
        """Devices of which the site's meter sees anything."""

    def powers(self, at_s):
        told = self.registers.get
        battery = told(("battery", "power"), 0.0) * self.obeys["battery"]
        battery = min(battery, 0.0) if self.stored_wh >= self.capacity_wh else battery
        battery = max(battery, 0.0) if self.stored_wh <= 0 else battery
        amperes = told(("wallbox", "current-limit"), 6.0)
        charges = self.plugged and amperes >= 6 and self.session_wh < self.car_room_wh
        pump = told(("heat-pump", "power"), -1.0)
        pump = (2000.0 if self.temperature_c < 20.5 else 0.0) if pump < 0 else pump
        shed = int(told(("load", "shed"), 0))
        powers = {
            "battery": battery,
            "wallbox": 690.0 * amperes * self.obeys["wallbox"] if charges else 0.0,
            "heat-pump": pump if pump >= 1000 else 0.0,
            "machine": 2000.0 if self.machine == 2 else 0.0,
            "load": self.load_w - sum(self.parts_w[:shed]),
            "roof": -min(self.sun_w, told(("roof", "limit"), 1e6)),
        }
        return {name: power_w if name in self.there else 0.0 for name, power_w in powers.items()}

    def advance(self, to_s):
        at_s = to_s if self.at_s is None else self.at_s
        while at_s < to_s:
            step_s = min(0.5, to_s - at_s)
            for _, meter, name, value in [write for write in self.due if write[0] <= at_s]:
                self.registers[meter, name] = value
                if (meter, name, value) == ("machine", "start", 1) and self.machine == 1:
                    self.machine, self.machine_end_s = 2, at_s + 2700
            self.due = [write for write in self.due if write[0] > at_s]
            self._step(at_s, step_s)
            at_s += step_s
        self.at_s = to_s

    def _step(self, at_s, step_s):
        powers, h = self.powers(at_s), step_s / 3600
        net_w = self.base(at_s) + sum(powers.values())
        self.energy["in" if net_w > 0 else "out"] += abs(net_w) * h
        self.trace.append((at_s, net_w * step_s))
        battery_w = powers["battery"]
        self.stored_wh += battery_w * h * (0.95 if battery_w > 0 else 1 / 0.95)
        self.session_wh += powers["wallbox"] * h
        rest_c = self.outside_c + 1 + 0.006 * powers["heat-pump"]
        self.temperature_c = rest_c + (self.temperature_c - rest_c) * exp(-h / self.time_constant_h)
        if self.machine == 2 and at_s >= self.machine_end_s:
            self.machine = 3

    def values(self, meter, at_s):
        powers = self.powers(at_s)
        net_w = self.base(at_s) + sum(powers.values())
        found = {
            "power": powers.get(meter, 0.0),
            "power-import": max(net_w, 0.0),
            "power-export": max(-net_w, 0.0),
            "energy-import": self.energy["in"],
            "energy-export": self.energy["out"],
            "state-of-charge": self.stored_wh / self.capacity_wh,
            "plugged": float(self.plugged),
            "session-energy": self.session_wh,
            "temperature": self.temperature_c,
            "outdoor-temperature": self.outside_c,
            "state": float(self.machine),
            "available-power": self.sun_w,
        }
        return lambda name: found.get(name, 0.0)

    def mean_w(self, begin_s, end_s):
        self.advance(max(end_s, self.at_s))
        return sum(net_ws for at_s, net_ws in self.trace if begin_s <= at_s < end_s) / (end_s - begin_s)


class FloorDriver:
    """Reads and writes a Floor. Implements the Driver port."""

    concurrency = 4

    def __init__(self, clock, floor):
        self._clock, self._floor = clock, floor

    async def poll(self, meter, group, *, probe=False, slack_s=0.0):
        await asyncio.sleep(0.02)
        at_s = asyncio.get_running_loop().time()
        if meter.name in self._floor.deaf:
            raise NoReplyError("no reply")
        self._floor.advance(at_s)
        number, names = self._floor.values(meter.name, at_s), names_of(meter.profile.removesuffix(".toml"))
        values = [
            int(number(names[str(q.obis)]) // 10**q.exponent)
            if q.cumulative
            else round(number(names[str(q.obis)]) / 10**q.exponent)
            for q in meter.groups[group].quantities
        ]
        unread = [names[str(q.obis)] in self._floor.unread for q in meter.groups[group].quantities]
        values = tuple(None if gone else value for gone, value in zip(unread, values, strict=True))
        status = tuple(Status.NOT_AVAILABLE if gone else Status.OK for gone in unread) if any(unread) else None
        return Sample(self._clock.now_ns() // 1_000_000, 20, int(at_s * 1000), values, status)

    async def poll_together(self, meter, groups):
        return [await self.poll(meter, group) for group in groups]

    async def write(self, meter, writable, raw):
        await asyncio.sleep(0.02)
        if meter.name in self._floor.silent | self._floor.deaf:
            raise NoReplyError("no reply")
        at_s = asyncio.get_running_loop().time()
        value = float(decode_writable(writable, raw))
        self._floor.advance(at_s)
        self._floor.log.append((at_s, meter.name, writable.name, value))
        self._floor.due.append((at_s + LAG_S, meter.name, writable.name, value))
        self._floor.registers[meter.name, writable.name, "raw"] = raw

    async def read_back(self, meter, writable):
        await asyncio.sleep(0.02)
        return self._floor.registers.get(
            (meter.name, writable.name, "raw"), encode_writable(writable, writable.maximum)
        )

    def learned(self, meter):
        return {}

    def learn(self, meter, plain):
        pass

    def shown(self, meter):
        return {}

    async def close(self):
        pass


class Gateway:
    """What a scene gets."""

    def __init__(self, clock, floor, control, assets, dispatcher, recorder):
        self.clock, self.floor, self.control = clock, floor, control
        self.assets, self.dispatcher, self.recorder = assets, dispatcher, recorder

    def now_ms(self):
        return self.clock.now_ns() // 1_000_000

    async def settle(self, seconds=20.0):
        await asyncio.sleep(seconds)

    def writes(self, meter):
        return [value for _, name, _, value in self.floor.log if name == meter]


@asynccontextmanager
async def running(path, floor, *, keep=(), changes=lambda plan: plan, every_s=1.0):
    """A gateway whose assets are those named in ``keep``, or all; its meters are polled every so often."""
    clock = VirtualClock()
    platform = virtual_platform(clock)
    plan = changes(example_plan())
    market = plan.market
    if keep:
        market = replace(market, assets=tuple(asset for asset in market.assets if asset.name in keep))
    async with recording(platform, path, commit_interval_s=600.0) as recorder:
        driver = FloorDriver(clock, floor)
        (bus,) = plan.buses
        bus = replace(bus, meters=tuple(_slow(m, every_s) for m in bus.meters if m.name in floor.there | {"house"}))
        pollers = [BusPoller(platform, recorder, driver, bus)]
        control = Control(platform, recorder, pollers)
        assets, dispatcher = make(platform, market, control, pollers, recorder.journal)
        await control.recall()
        await control.make_safe()
        await assets.recall()
        for poller in pollers:
            poller.declare()
        tasks = [asyncio.create_task(poller.run()) for poller in pollers]
        tasks += [asyncio.create_task(control.run()), asyncio.create_task(assets.run())]
        try:
            yield Gateway(clock, floor, control, assets, dispatcher, recorder)
        finally:
            await control.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _slow(meter, every_s):
    return replace(meter, groups=tuple(replace(group, interval_s=every_s) for group in meter.groups))


def play(path, scene, floor=None, **options):
    floor = floor or Floor()
    if "keep" in options:
        floor.there = {
            asset.control.point.split("/")[0] for asset in example_plan().market.assets if asset.name in options["keep"]
        }

    async def main():
        async with running(path, floor, **options) as gateway:
            await gateway.settle()
            return await scene(gateway)

    return run(main)
