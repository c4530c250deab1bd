"""CPU of a bus whose adapter is unplugged: 32 meters on a port that is not there.

``python tests/bench/unplugged.py [seconds]`` prints the share of one core, with all meters polled every second and with
all polled as fast as the bus goes. Real clock, real port, no journal. Not a test: it asserts nothing.
"""

import asyncio
import os
import sys
import time
from types import SimpleNamespace
from typing import Any

from driver_cost import METERS, bus_plan, platform
from energybid.agent.polling import BusPoller
from energybid.core.ports import SerialEndpoint
from energybid.drivers.modbus.driver import open_driver


class NoRecorder:
    """Takes everything and keeps nothing."""

    space = SimpleNamespace(sealed=False)

    async def room(self) -> None:
        """There is always room."""

    def cycle_done(self) -> None:
        """Nothing to commit."""

    def declare(self, *_: object) -> int:
        """A sequence number."""
        return 0

    def gap(self, *_: object) -> None:
        """Not kept."""


async def measure(interval_s: float, seconds: float) -> float:
    """Share of one core."""
    plan = bus_plan(1, interval_s)
    endpoint = SerialEndpoint(device="/dev/serial/by-id/usb-FTDI_unplugged-if00-port0", baudrate=9600)
    plan = type(plan)(name=plan.name, kind="modbus-rtu", endpoint=endpoint, meters=plan.meters)
    recorder: Any = NoRecorder()
    poller = BusPoller(platform(), recorder, open_driver(platform(), plan), plan)
    poller.declare()
    began, cpu = time.perf_counter(), time.process_time()
    task = asyncio.create_task(poller.run())
    await asyncio.sleep(seconds)
    used = (time.process_time() - cpu) / (time.perf_counter() - began)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return used


def main() -> None:
    """Measure."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    for interval_s in (1.0, 0.0):
        used = asyncio.run(measure(interval_s, seconds))
        name = f"every {interval_s:g} s" if interval_s else "as fast as it goes"
        sys.stdout.write(f"{METERS} meters {name}: {used:.2%} of a core ({os.uname().machine})\n")


if __name__ == "__main__":
    main()
