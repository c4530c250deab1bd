"""CPU of the Modbus driver alone: 32 meters on one TCP connection against a trivial server in another process.

``python tests/bench/driver_cost.py [--profile]`` prints the client's CPU time for each poll of a meter (2 requests, 76
and 4 registers, 24 values), decoding included, with many requests under way and with one at a time. Not a test: it
asserts nothing.
"""

import asyncio
import cProfile
import multiprocessing
import pstats
import random
import resource
import struct
import sys
import time
from collections.abc import Collection
from multiprocessing.connection import Connection

from energybid.core.ports import BusPlan, MeterPlan, Platform, TcpEndpoint
from energybid.core.quantities import ClockState
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.profile import compile_profile, load_profile
from energybid.drivers.system import open_bus

METERS, ROUNDS, IN_FLIGHT = 32, 300, 32
WANTED = [*range(0, 36, 2), 52, 70, 72, 74, 342, 344]


class Server(asyncio.Protocol):
    """Answers every read with the same registers; each chunk of requests with one write."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer."""
        out = []
        for at in range(0, len(data) - 11, 12):
            count = data[at + 11]
            body = struct.pack(">f", 230.1) * (count // 2)
            out.append(data[at : at + 4] + struct.pack(">HBBB", 3 + 2 * count, data[at + 6], 4, 2 * count) + body)
        self.transport.write(b"".join(out))


def serve(pipe: Connection) -> None:
    """Run the server; tells its port."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def meter_plans(
    count: int, wanted: Collection[int], *, interval_s: float = 1, timeout_s: float = 1
) -> tuple[MeterPlan, ...]:
    """SDM630 at the units from 1 on, with the quantities at these registers."""
    loaded = load_profile("eastron-sdm630")
    names = [register.name for register in loaded.registers if register.first in wanted]
    groups, compiled = compile_profile(loaded, interval_s=interval_s, quantities=names)
    return tuple(
        MeterPlan(
            name=f"m{unit}",
            unit=unit,
            timeout_s=timeout_s,
            retries=1,
            profile=loaded.name,
            profile_hash=loaded.sha256,
            groups=groups,
            map=compiled,
        )
        for unit in range(1, count + 1)
    )


def bus_plan(port: int, interval_s: float = 1, in_flight: int = IN_FLIGHT) -> BusPlan:
    """32 SDM630 on one connection."""
    meters = meter_plans(METERS, WANTED, interval_s=interval_s)
    endpoint = TcpEndpoint(host="127.0.0.1", port=port)
    return BusPlan(name="bench", kind="modbus-tcp", endpoint=endpoint, meters=meters, in_flight=in_flight)


def platform() -> Platform:
    """The real bus and clock; nothing else is used."""

    def unused(*_: object) -> None:
        raise NotImplementedError

    return Platform(
        now_ns=time.time_ns,
        clock_state=lambda: ClockState.SYNCHRONISED,
        boot_id=bytes(16),
        entropy=random.randbytes,
        random=random.Random(1),
        offload=unused,
        open_bus=open_bus,
        connect_uplink=unused,
        open_database=unused,
        notify=unused,
    )


async def measure(port: int, in_flight: int, *, profile: bool) -> None:
    """Poll all meters again and again."""
    plan = bus_plan(port, in_flight=in_flight)
    driver = open_driver(platform(), plan)
    await asyncio.gather(*(driver.poll(meter, 0) for meter in plan.meters))

    async def worker(share: int) -> None:
        for _ in range(ROUNDS):
            for meter in plan.meters[share::in_flight]:
                sample = await driver.poll(meter, 0)
                assert len(sample.values) == len(WANTED)

    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    await asyncio.gather(*(worker(share) for share in range(in_flight)))
    after, ended = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    profiler.disable()
    polls = ROUNDS * METERS
    user, kernel = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    sys.stdout.write(
        f"{in_flight:2} under way: {(user + kernel) / polls * 1e6:.1f} µs CPU a poll ({user / polls * 1e6:.1f} user, "
        f"{kernel / polls * 1e6:.1f} kernel), {polls * len(WANTED) / (ended - began):.0f} values/s\n"
    )
    await driver.close()
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)


def main() -> None:
    """Measure."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    for in_flight in (IN_FLIGHT, 1):
        asyncio.run(measure(port, in_flight, profile="--profile" in sys.argv))
    server.terminate()


if __name__ == "__main__":
    main()
