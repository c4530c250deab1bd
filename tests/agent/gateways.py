"""A gateway in virtual time for tests: the real recorder, journal and pollers over scripted drivers."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import apsw
from energybid.agent.opening import open_recorder
from energybid.agent.recorder import Recorder
from energybid.core.cose import PrivateKey
from energybid.core.ports import BusPlan, MeterPlan, Platform, PollGroup, Sample, TcpEndpoint
from energybid.core.quantities import Obis, Quantity
from energybid.simulator.virtual import VirtualClock, VirtualOffload

KEY = PrivateKey.from_entropy(b"gateway." * 6)
HEADEND = PrivateKey.from_entropy(b"headend." * 6)
VOLTAGE = Quantity(obis=Obis.parse("1-0:32.7.0"), unit="V", exponent=-1)


async def nowhere(*_):
    raise AssertionError("this test opens no bus")


def virtual_platform(clock: VirtualClock, *, connect=None, seed: int = 7, **changes) -> Platform:
    rng = random.Random(seed)
    parts = {
        "now_ns": clock.now_ns,
        "clock_state": clock.clock_state,
        "boot_id": bytes(16),
        "entropy": rng.randbytes,
        "random": rng,
        "offload": VirtualOffload(rng),
        "open_bus": nowhere,
        "connect_uplink": connect,
        "open_database": apsw.Connection,
        "notify": lambda _: None,
    }
    return Platform(**(parts | changes))


def meter(name: str, unit: int = 1, interval_s: float = 10.0) -> MeterPlan:
    return MeterPlan(
        name=name,
        unit=unit,
        timeout_s=1.0,
        retries=2,
        profile="test",
        profile_hash=bytes(32),
        groups=(PollGroup(interval_s=interval_s, quantities=(VOLTAGE,)),),
        map=None,
    )


def bus(*meters: MeterPlan, name: str = "bus") -> BusPlan:
    return BusPlan(name=name, kind="test", endpoint=TcpEndpoint(host="x", port=1), meters=meters)


class ScriptedDriver:
    """Answers as ``answer(meter, probe)`` says: raises, or returns the value; each poll takes ``takes_s``."""

    def __init__(self, clock: VirtualClock, answer: Callable[[str, bool], int], *, takes_s=0.1, concurrency=1):
        self.concurrency = concurrency
        self.calls: list[tuple[float, str]] = []
        self.knowledge: dict[str, dict] = {}
        self.closed = False
        self._clock, self._answer, self._takes_s = clock, answer, takes_s

    async def poll(self, meter: MeterPlan, group: int, *, probe: bool = False, slack_s: float = 0.0) -> Sample:
        loop = asyncio.get_running_loop()
        self.calls.append((loop.time(), meter.name))
        await asyncio.sleep(self._takes_s)
        value = self._answer(meter.name, probe)
        mono_ms = int(loop.time() * 1000)
        return Sample(self._clock.now_ns() // 1_000_000, int(self._takes_s * 1000), mono_ms, (value,), None)

    async def poll_together(self, meter: MeterPlan, groups: tuple[int, ...]) -> list[Sample]:
        return [await self.poll(meter, group) for group in groups]

    async def write(self, meter: MeterPlan, writable: object, raw: bytes) -> None:
        raise AssertionError("nobody writes here")

    async def read_back(self, meter: MeterPlan, writable: object) -> bytes:
        raise AssertionError("nobody writes here")

    def learned(self, meter: MeterPlan) -> dict:
        return self.knowledge.get(meter.name, {})

    def learn(self, meter: MeterPlan, plain: dict) -> None:
        if "damaged" in plain:
            raise ValueError("damaged")
        self.knowledge[meter.name] = dict(plain)

    def shown(self, meter: MeterPlan) -> dict:
        return self.learned(meter)

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def recording(platform: Platform, path, *, commit_interval_s=5.0, keep_s=3600.0) -> AsyncIterator[Recorder]:
    """An open recorder whose commits run; closed at the end."""
    recorder = await open_recorder(platform, str(path), "t/g", KEY, commit_interval_s=commit_interval_s, keep_s=keep_s)
    recorder.started("1.0", bytes(32))
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await recorder.close()


def entries_in(path) -> list:
    """All entries of the newest epoch of a closed journal."""
    from energybid.agent.journal import Journal

    journal = Journal(apsw.Connection(str(path)), str(path))
    epoch = journal.head.epoch.number
    found = [entry for segment in journal.segments(epoch, 0) for entry in segment.entries()]
    journal.close()
    return found
