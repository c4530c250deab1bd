"""A whole site as real processes on loopback: simulated buses, mosquitto, head-end, agent."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import apsw
from energybid.agent.journal import Journal
from energybid.core.log import Salts
from mosquitto import Mosquitto, free_port

ENERGYBID = Path(sys.executable).with_name("energybid")
DEADLINE_S = 40.0


class Process:
    """A command that runs until it is told to stop; what it says is kept in a file."""

    def __init__(self, folder: Path, name: str, *arguments: object, env=None):
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [ENERGYBID, *map(str, arguments)],
                cwd=folder,
                stdout=out,
                stderr=out,
                env=dict(os.environ, **(env or {})),
            )

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number=signal.SIGTERM, timeout_s=10.0) -> int:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.process.wait(timeout_s)


class Site:
    """Folders, keys and configuration; processes are started one by one."""

    def __init__(self, folder: Path, buses: str, meters: str, *, password=None, journal="", uplink=""):
        """``buses`` is bus.toml; ``meters`` the [[bus]] tables of gateway.toml with {port} of the first TCP bus."""
        self.folder = folder
        self.broker = Mosquitto(folder / "broker", password=password)
        self.bus_port = free_port()
        self.running: list[Process] = []
        for key in ("log", "headend"):
            subprocess.run([ENERGYBID, "keys", "new", f"{key}.pem"], cwd=folder, check=True, capture_output=True)
        credentials = 'username = "user"\npassword_file = "password"\n' if password else ""
        if password:
            (folder / "password").write_text(password[1])
        (folder / "bus.toml").write_text(buses.format(port=self.bus_port))
        (folder / "gateway.toml").write_text(
            f"""
[gateway]
tenant = "demo"
id = "gw-1"
trust_clock = true
[keys]
log = "log.pem"
headend = "headend.pub.pem"
[journal]
path = "journal.db"
{journal or 'commit_interval = "200 ms"'}
[uplink]
url = "mqtt://127.0.0.1:{self.broker.port}"
batch_interval = "300 ms"
receipt_timeout = "5 s"
{credentials}{uplink}
[status]
path = "status.json"
interval = "100 ms"
{meters.format(port=self.bus_port)}
"""
        )
        (folder / "headend.toml").write_text(
            f"""
[headend]
database = "headend.db"
key = "headend.pem"
[uplink]
url = "mqtt://127.0.0.1:{self.broker.port}"
{credentials}
[[gateway]]
tenant = "demo"
id = "gw-1"
keys = ["log.pub.pem"]
"""
        )

    def start(self, name: str, *arguments: object, env=None) -> Process:
        process = Process(self.folder, name, *arguments, env=env)
        self.running.append(process)
        return process

    def agent(self, env=None) -> Process:
        return self.start("agent", "run", "-c", "gateway.toml", env=env)

    def headend(self) -> Process:
        return self.start("headend", "headend", "run", "-c", "headend.toml")

    def bus(self) -> Process:
        process = self.start("bus", "simulate", "bus", "-c", "bus.toml", "--json")
        wait_for(lambda: "{" in process.said(), "the bus is ready", process)
        return process

    def status(self) -> dict:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads((self.folder / "status.json").read_text())
        return {}

    def acknowledged(self) -> int:
        return self.status().get("log", {}).get("acknowledged", 0)

    def wait_acknowledged(self, at_least: int) -> None:
        wait_for(lambda: self.acknowledged() >= at_least, f"{at_least} entries acknowledged", *self.running)

    def close(self) -> None:
        for process in self.running:
            if process.process.poll() is None:
                process.process.kill()
                process.process.wait()
        with suppress(Exception):
            self.broker.kill()

    def verify(self, database: str) -> dict:
        done = subprocess.run(
            [ENERGYBID, "verify", database, "--json", "--key", "log.pub.pem", "--key", "headend.pub.pem"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        return {"exit": done.returncode, "stderr": done.stderr, **(json.loads(done.stdout) if done.stdout else {})}

    def journal_entries(self) -> list[bytes]:
        """Canonical bytes of every entry in the journal's newest epoch."""
        path = str(self.folder / "journal.db")
        journal = Journal(apsw.Connection(path), path)
        epoch = journal.epochs()[-1]
        salts = Salts(epoch.secret)
        found: list[bytes] = []
        for segment in journal.segments(epoch.number, 0):
            assert segment.first == len(found)
            found += [salts.canonical(n, entry) for n, entry in enumerate(segment.entries(), segment.first)]
        journal.close()
        return found

    def headend_entries(self) -> list[bytes]:
        """Canonical bytes of every entry of the newest epoch at the head-end; sequences must be gapless."""
        database = apsw.Connection(str(self.folder / "headend.db"))
        rows = database.execute(
            "SELECT sequence, canonical FROM entry WHERE epoch = (SELECT max(id) FROM epoch) ORDER BY sequence"
        ).fetchall()
        database.close()
        assert [sequence for sequence, _ in rows] == list(range(len(rows)))
        return [canonical for _, canonical in rows]


def wait_for(condition, what: str, *processes: Process, deadline_s: float = DEADLINE_S) -> None:
    """Wait until ``condition()``; at the deadline say what everybody said."""
    end = time.monotonic() + deadline_s
    while not condition():
        said = "\n".join(f"--- {p.log.name} ({p.process.poll()})\n{p.said()[-2000:]}" for p in processes)
        assert time.monotonic() < end, f"not in {deadline_s} s: {what}\n{said}"
        time.sleep(0.02)
