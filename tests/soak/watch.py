"""What the processes use while they suffer, and what their status promises."""

import asyncio
import json
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LOOK_S = 1.0
WATCHED = ("agent", "headend")
LONG_LIFE_S = 40.0
"""In a life of this length there were several reconnections: what leaks shows."""
LOOKS = 10
FDS_MOST = {"agent": 20, "headend": 14}
"""With every connection there, the agent's 3 buses included, 17 and 11 were seen. With none of them it is 10: what a
life begins with says nothing about what it may grow to."""
FILES = ("journal.db", "journal.db-wal", "headend.db", "headend.db-wal", "broker/mosquitto.db")


@dataclass(slots=True)
class _Life:
    born_s: float
    fds: deque[int] = field(default_factory=lambda: deque(maxlen=LOOKS))
    long: bool = False


class Watch:
    """Samples once a second, until cancelled."""

    def __init__(self, stage):
        self.peak_rss_kib = dict.fromkeys(WATCHED, 0)
        self.peak_fds = dict.fromkeys(WATCHED, 0)
        self.peak_bytes = dict.fromkeys(FILES, 0)
        self.backlog_max = 0
        self.long_lives = 0
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
            fds = sum(1 for _ in (process / "fd").iterdir())
            self.peak_rss_kib[actor.name] = max(self.peak_rss_kib[actor.name], int(peak.split()[1]))
            self.peak_fds[actor.name] = max(self.peak_fds[actor.name], fds)
            self._fds(actor, fds)

    def _fds(self, actor, fds):
        """In a long life: the median of the newest looks."""
        life = self._lives.get(actor.name)
        if life is None or life.born_s != actor.born_s:
            life = self._lives[actor.name] = _Life(actor.born_s)
        life.fds.append(fds)
        age_s = time.monotonic() - life.born_s
        if age_s < LONG_LIFE_S:
            return
        self.long_lives += not life.long
        life.long = True
        usual = sorted(life.fds)[len(life.fds) // 2]
        if usual > FDS_MOST[actor.name]:
            self._stage.fail(f"{actor.name} holds {usual} files open after {age_s:.0f} s")

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
