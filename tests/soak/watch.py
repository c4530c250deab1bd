"""What the processes use while they suffer, and what their status promises."""

import asyncio
import json
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LOOK_S = 1.0
WATCHED = ("agent", "headend")
LONG_LIFE_S = 40.0
"""In a life of this length there were several reconnections: what leaks shows."""
SETTLED_S = 3.0
LOOKS_MIN = 20
FDS_MAY_GROW = 6
FILES = ("journal.db", "journal.db-wal", "headend.db", "headend.db-wal", "broker/mosquitto.db")


@dataclass(slots=True)
class _Life:
    born_s: float
    fds: list[int] = field(default_factory=list)
    long: bool = False


class Watch:
    """Samples once a second, until cancelled."""

    def __init__(self, stage):
        self.peak_rss_kib = dict.fromkeys(WATCHED, 0)
        self.peak_fds = dict.fromkeys(WATCHED, 0)
        self.peak_bytes = dict.fromkeys(FILES, 0)
        self.backlog_max = 0
        self.long_lives = 0
        self.fds_grew = 0
        """The worst of all long lives: open files at its end over those at its beginning."""
        self._stage = stage
        self.resent = Counter()
        """Batches sent again, for each life of the agent, as far as its status told in time."""
        self._lives = {}
        self._committed = ("", 0)

    async def run(self):
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def look(self):
        for name in FILES:
            with suppress(FileNotFoundError):
                self.peak_bytes[name] = max(self.peak_bytes[name], (self._stage.folder / name).stat().st_size)
        for name in WATCHED:
            actor = self._stage.actors[name]
            if actor.running:
                self._resources(actor)
        self._promises(self.status())

    def status(self):
        """The agent's status file, or {}."""
        with suppress(FileNotFoundError, json.JSONDecodeError):
            return json.loads((self._stage.folder / "status.json").read_text())
        return {}

    def _resources(self, actor):
        process = Path("/proc") / str(actor.process.pid)
        with suppress(OSError, StopIteration):  # it ends meanwhile
            lines = (process / "status").read_text().splitlines()
            peak = next(line for line in lines if line.startswith("VmHWM:"))
            files = [fd.readlink().name for fd in (process / "fd").iterdir()]
            fds = len(files)
            self.peak_rss_kib[actor.name] = max(self.peak_rss_kib[actor.name], int(peak.split()[1]))
            self.peak_fds[actor.name] = max(self.peak_fds[actor.name], fds)
            if any(name.endswith(".db") for name in files):  # a busy machine may take long to start it
                self._fds(actor, fds)

    def _fds(self, actor, fds):
        """In a long life: median of the newest ten looks over that of the first ten with its database open."""
        life = self._lives.get(actor.name)
        if life is None or life.born_s != actor.born_s:
            life = self._lives[actor.name] = _Life(actor.born_s)
        age_s = time.monotonic() - life.born_s
        if age_s > SETTLED_S:
            life.fds.append(fds)
        if age_s < LONG_LIFE_S or len(life.fds) < LOOKS_MIN:
            return
        self.long_lives += not life.long
        life.long = True
        grew = sorted(life.fds[-10:])[5] - sorted(life.fds[:10])[5]
        self.fds_grew = max(self.fds_grew, grew)
        if grew > FDS_MAY_GROW:
            self._stage.fail(f"{actor.name} holds {grew} more files open than {age_s:.0f} s ago")

    def _promises(self, status):
        """What was committed once stays so, over every kill."""
        if not (log := status.get("log")):
            return
        epoch, committed = self._committed
        if epoch and epoch != log["epoch"]:
            self._stage.fail(f"the agent began a new epoch, {log['epoch']}, after {epoch}")
        if epoch == log["epoch"] and log["committed"] < committed:
            self._stage.fail(f"{committed} entries were committed, now there are {log['committed']}")
        self._committed = (log["epoch"], log["committed"])
        life = self._stage.actors["agent"].lives
        self.resent[life] = max(self.resent[life], status["uplink"]["resent"])
        self.backlog_max = max(self.backlog_max, log["committed"] - log["acknowledged"])
