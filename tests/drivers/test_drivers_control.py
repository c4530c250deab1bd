"""The control path over a real driver and a simulated meter, on a line with polls and masters."""

import asyncio
from fractions import Fraction

from energybid.agent.control import Control, Owner, Rank
from energybid.agent.polling import BusPoller
from energybid.agent.sharing import make_proxies
from energybid.core.ports import Platform, SerialEndpoint
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.proxy.plan import Listen, ProxyPlan
from energybid.drivers.profile import parse_profile
from energybid.simulator.household import Household, Site
from energybid.simulator.meters import Meter
from energybid.simulator.virtual import VirtualClock, run
from gateways import recording, virtual_platform
from lines import Line, line_plan
from masters import Port

LINE = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)
CHARGER = b"""
manufacturer = "Test"
model = "Charger"
max_registers = 100
source = [{ title = "this test" }]
baudrates = [9600]
parities = ["N"]
timeout = "300 ms"
defaults = { table = "input", type = "uint16" }
block = [{ table = "input", first = 0, count = 10 }]
quantity = [{ name = "v", obis = "1-0:32.7.0", register = 0, scale = "0.1", unit = "V", resolution = "0.1" }]
[[writable]]
name = "limit"
register = 300
type = "int32"
word_order = "little"
scale = "0.1"
unit = "A"
minimum = "-16"
maximum = "32"
safe = "6"
"""


def test_a_set_point_goes_before_polls_and_masters_and_is_safe_again_after_its_lease(tmp_path):
    loaded = parse_profile("charger", CHARGER, source="charger.toml")
    meters = {unit: Meter(loaded, Household(str(unit), Site())) for unit in range(1, 9)}
    line = Line(LINE, lambda unit, pdu: meters[unit].respond(pdu, 0))
    bus = line_plan(LINE, range(1, 9), CHARGER, interval_s=0.0)

    async def hammer(port):
        master = port.connect()
        while True:
            await master.read(1, 0, 1)
            await asyncio.sleep(0.05)

    def limit(unit):
        return meters[unit].respond(bytes.fromhex("03 012c 0002"), 0)[2:]

    async def main():
        loop, port = asyncio.get_running_loop(), Port()
        platform: Platform = virtual_platform(VirtualClock(), open_bus=line.open_bus, serve_bus=port.serve)
        async with recording(platform, tmp_path / "j") as recorder:
            driver = open_driver(platform, bus)
            poller = BusPoller(platform, recorder, driver, bus)
            poller.declare()
            control = Control(platform, recorder, [poller])
            shared = ProxyPlan(bus="line", listen=Listen(host="127.0.0.1", port=1502), units=None, max_age_s=0.0)
            (proxy,) = make_proxies(platform, [shared], [poller])
            tasks = [asyncio.create_task(one.run()) for one in (poller, control, proxy)]
            await proxy.is_open.wait()
            tasks += [asyncio.create_task(hammer(port)) for _ in range(3)]
            await asyncio.sleep(10)
            began = loop.time()
            leases = [
                await control.hold(f"m{unit}/limit", Fraction(-5 * unit, 10), Owner("market", Rank.MARKET), began + 30)
                for unit in range(1, 9)
            ]
            took_s = loop.time() - began
            assert all(lease.active for lease in leases)
            assert limit(3) == (-15).to_bytes(4, "big", signed=True)[2:] + b"\xff\xff"
            await asyncio.sleep(32)
            assert {limit(unit) for unit in meters} == {b"\x00\x3c\x00\x00"}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        # A write and its reading back each wait for the one exchange that is under way, and for the disk.
        assert took_s / 8 < 0.35
        assert all(m.failed_polls == 0 for m in poller.meters)

    run(main)
