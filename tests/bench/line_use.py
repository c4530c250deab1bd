"""How much of a serial line's time is used: 8 meters on a pty that passes bytes at the line's pace.

``python tests/bench/line_use.py [seconds]`` polls 80 registers of each meter as fast as the line goes, at 9,600, 19,200
and 115,200 baud, and prints the share of the time that the frames, the meters' delays (20 ms) and the silence of the
standard take. The far end is another process, which hands the request over when its last bit would have arrived and the
reply in pieces of 16 characters. Its timers are late too, by up to 1 ms each: so the second figure takes what passed
between request and reply as it was, and shows what this end alone loses. Exact figures in virtual time are in
``tests/drivers/test_drivers_line.py``. Not a test: it asserts nothing.
"""

import asyncio
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from driver_cost import meter_plans, platform
from energybid.core.ports import BusPlan, SerialEndpoint
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.timing import character_s, silence_s
from energybid.simulator.bus import Bus, LineTiming, RtuLine, Station
from energybid.simulator.system import PtyTransport

METERS, DELAY_S = 8, 0.02
REGISTERS = 76
"""Of one request for the quantities below."""
WANTED = [*range(0, 36, 2), 52, 70, 72, 74]


class Zeroes:
    """A meter that has nothing to say but 0."""

    def respond(self, pdu: bytes, at_ms: int) -> bytes:
        """The PDU of the reply."""
        del at_ms
        return bytes((pdu[0], 2 * pdu[4])) + bytes(2 * pdu[4])


def serve(pipe: Connection, folder: str, baudrate: int) -> None:
    """Run the meters' end."""

    async def run() -> None:
        stations = [Station(name=f"m{n}", unit=n, device=Zeroes(), reply_delay_s=DELAY_S) for n in range(1, METERS + 1)]
        bus = Bus(stations=stations, replay_ms=lambda: 0)
        link = Path(folder) / f"tty{baudrate}"
        PtyTransport(RtuLine(bus, LineTiming.of(baudrate)), link, baudrate=baudrate)
        pipe.send(str(link))
        await asyncio.Event().wait()

    asyncio.run(run())


def bus_plan(device: str, baudrate: int) -> BusPlan:
    """8 SDM630 on one line."""
    meters = meter_plans(METERS, WANTED, interval_s=0, timeout_s=0.5)
    endpoint = SerialEndpoint(device=device, baudrate=baudrate)
    return BusPlan(name="bench", kind="modbus-rtu", endpoint=endpoint, meters=meters, lateness_s=0.1)


async def measure(device: str, baudrate: int, seconds: float) -> str:
    """Poll for a while."""
    plan = bus_plan(device, baudrate)
    driver = open_driver(platform(), plan)
    await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))
    end, polls, spans_s = time.perf_counter() + seconds, 0, 0.0

    async def worker(share: int) -> None:
        nonlocal polls, spans_s
        while time.perf_counter() < end:
            for meter in plan.meters[share :: driver.concurrency]:
                sample = await driver.poll(meter, 0)
                assert sample.status is None
                polls += 1
                spans_s += sample.span_ms / 1000

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker(share) for share in range(driver.concurrency)))
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    await driver.close()
    characters = 8 + 5 + 2 * REGISTERS
    needed_s = characters * character_s(plan.endpoint) + DELAY_S + silence_s(plan.endpoint)
    nominal, real = polls * needed_s / took_s, (spans_s + polls * silence_s(plan.endpoint)) / took_s
    return (
        f"{baudrate:7} baud: {nominal:.1%} of the line used, {real:.1%} with the far end as late as it was; "
        f"{polls / took_s:.1f} exchanges a second, {cpu_s / polls * 1e6:.0f} µs CPU each\n"
    )


def main() -> None:
    """Measure at three rates."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with tempfile.TemporaryDirectory() as folder:
        for baudrate in (9600, 19_200, 115_200):
            ours, theirs = multiprocessing.Pipe()
            far = multiprocessing.Process(target=serve, args=(theirs, folder, baudrate), daemon=True)
            far.start()
            sys.stdout.write(asyncio.run(measure(ours.recv(), baudrate, seconds)))
            far.terminate()


if __name__ == "__main__":
    main()
