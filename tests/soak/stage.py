"""The cast: folders, keys, configurations, and each process from its start to its end."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from mosquitto import BINARY, Mosquitto
from soak.network import UTILITY_ADDRESS

ENERGYBID = Path(sys.executable).with_name("energybid")
BROKER_PORT, BUS_PORT = 1883, 15020
STOP_S = 20.0
"""The agent and the head-end promise 5 s; a busy machine gets some more."""
KEYS = ("--key", "log.pub.pem", "--key", "headend.pub.pem")

PANEL = (("house", "eastron-sdm630"), ("roof", "abb-b23"), ("workshop", "schneider-iem3155"), ("shop", "abb-b23"))
LINE = (("heat-pump", "carlo-gavazzi-em340"), ("flat-1", "eastron-sdm630"), ("flat-2", "eastron-sdm630"))

BUS_FILE = """
seed = {seed}
speed = 60
[[bus]]
name = "panel"
kind = "modbus-tcp"
port = {port}
{panel}
[bus.faults]
no_reply = 0.01
exception = 0.01
wrong_unit = 0.005
wrong_transaction = 0.005
wrong_length = 0.005
half_frame = 0.005
late = 0.005
late_by = "700 ms"
duplicate = 0.01
[[bus]]
name = "line"
kind = "modbus-rtu"
device = "line.tty"
baudrate = 38400
{line}
[bus.faults]
no_reply = 0.01
crc_error = 0.02
wrong_unit = 0.005
half_frame = 0.005
late = 0.005
late_by = "400 ms"
garbage = 0.01
"""
GATEWAY_FILE = """
[gateway]
tenant = "soak"
id = "gw-1"
[keys]
log = "log.pem"
headend = "headend.pub.pem"
[journal]
path = "journal.db"
commit_interval = "500 ms"
[uplink]
url = "mqtt://{broker}"
batch_interval = "1 s"
receipt_timeout = "5 s"
keep_alive = "10 s"
[status]
path = "status.json"
interval = "200 ms"
[[bus]]
name = "panel"
kind = "modbus-tcp"
host = "127.0.0.1"
port = {port}
{panel}
[[bus]]
name = "line"
kind = "modbus-rtu"
device = "line.tty"
baudrate = 38400
lateness = "500 ms"
{line}
"""
HEADEND_FILE = """
[headend]
database = "headend.db"
key = "headend.pem"
[uplink]
url = "mqtt://127.0.0.1:{port}"
keep_alive = "10 s"
[[gateway]]
tenant = "soak"
id = "gw-1"
keys = ["log.pub.pem"]
"""


def meters(some, more=""):
    """[[bus.meter]] tables."""
    table = '[[bus.meter]]\nname = "{}"\nprofile = "{}"\nunit = {}\n' + more
    return "\n".join(table.format(*meter, unit) for unit, meter in enumerate(some, 1))


class Actor:
    """One program of the cast, in its network namespace, over all its lives."""

    def __init__(self, stage, name, command, good=(0,)):
        self.name = name
        self.lives = 0
        self.process = None
        self.born_s = 0.0
        self.stop_s = 0.0
        """Longest time from SIGTERM to the end."""
        self._stage, self._command, self._good = stage, command, good
        self._ending = False
        self._lock = asyncio.Lock()
        """Held while it starts or ends."""

    async def start(self):
        """Start it unless it runs; from now on it must not end by itself."""
        async with self._lock:
            if not self.running:
                await self._start()

    async def _start(self):
        with (self._stage.folder / f"{self.name}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, cwd=self._stage.folder, stdout=log, stderr=log, start_new_session=True
            )
        self.lives, self.born_s, self._ending = self.lives + 1, time.monotonic(), False
        self._watch = asyncio.create_task(self._watched(self.process))

    async def _watched(self, process):
        code = await process.wait()
        if not self._ending:
            self._stage.fail(f"{self.name} ended by itself with exit code {code}")

    async def kill(self):
        """kill -9."""
        async with self._lock:
            await self._kill()

    async def _kill(self):
        self._ending = True
        self._signal(signal.SIGKILL)
        await self._watch

    async def stop(self):
        """SIGTERM; it has to end by itself, in time and well."""
        async with self._lock:
            self._ending = True
            begun, good = time.monotonic(), self._good if self._listens() else (*self._good, -signal.SIGTERM)
            self._signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(STOP_S):
                    await asyncio.shield(self._watch)
            except TimeoutError:
                self._stage.fail(f"{self.name} did not stop within {STOP_S:.0f} s")
                await self._kill()
                return
            self.stop_s = max(self.stop_s, time.monotonic() - begun)
            if (code := self.process.returncode) not in good:
                self._stage.fail(f"{self.name} stopped with exit code {code}")

    def _listens(self):
        """Whether it handles SIGTERM already: before that, the signal just ends it."""
        with suppress(OSError):
            status = (Path("/proc") / str(self.process.pid) / "status").read_text()
            caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
            return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
        return True

    def pause(self):
        """SIGSTOP: there, and deaf."""
        self._signal(signal.SIGSTOP)

    def resume(self):
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number):
        if self.running:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    @property
    def running(self):
        """Whether there is a process, paused or not."""
        return self.process is not None and self.process.returncode is None


class Stage:
    """Everything that runs, and the folder that it runs in."""

    def __init__(self, folder, network, seed):
        self.folder = folder
        self.network = network
        self.failures = []
        self.failed = asyncio.Event()
        self._write(seed)
        energybid = (ENERGYBID,)
        here, there = network.gateway, network.utility
        broker = Mosquitto(folder / "broker", extra=f"listener {BROKER_PORT}\nlog_type error\nlog_type warning\n")
        self.actors = {
            "broker": Actor(self, "broker", network.inside(there, BINARY, "-c", broker.config)),
            "headend": Actor(
                self, "headend", network.inside(there, *energybid, "headend", "run", "-c", "headend.toml")
            ),
            "bus": Actor(self, "bus", network.inside(here, *energybid, "simulate", "bus", "-c", "bus.toml", "--json")),
            "agent": Actor(self, "agent", network.inside(here, *energybid, "run", "-c", "gateway.toml")),
        }

    def _write(self, seed):
        for key in ("log", "headend"):
            self.energybid("keys", "new", f"{key}.pem", check=True)
        panel, line = meters(PANEL), meters(LINE)
        (self.folder / "bus.toml").write_text(BUS_FILE.format(seed=seed, port=BUS_PORT, panel=panel, line=line))
        panel = meters(PANEL, 'interval = "500 ms"\ntimeout = "300 ms"\n')
        line = meters(LINE, 'interval = "1 s"\ntimeout = "200 ms"\n')
        broker = f"{UTILITY_ADDRESS}:{BROKER_PORT}"
        (self.folder / "gateway.toml").write_text(
            GATEWAY_FILE.format(broker=broker, port=BUS_PORT, panel=panel, line=line)
        )
        (self.folder / "headend.toml").write_text(HEADEND_FILE.format(port=BROKER_PORT))

    def energybid(self, *arguments, check=False):
        """Run a command to its end, in the folder."""
        command = [str(ENERGYBID), *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=check)

    def fail(self, what):
        """Note a failure: the faults end, the comparison still comes."""
        self.failures.append(what)
        self.failed.set()

    async def start(self):
        for actor in self.actors.values():
            await actor.start()

    async def all_up(self):
        """Everything runs again, whatever state it is in."""
        self.network.mend()
        for actor in self.actors.values():
            actor.resume()
            await actor.start()

    def close(self):
        for actor in self.actors.values():
            if actor.running:
                os.kill(actor.process.pid, signal.SIGKILL)
