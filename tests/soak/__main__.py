"""Soak: the real programs under random kills, pauses, restarts and network cuts; at the end nothing may be lost.

``make soak`` (10 minutes) or ``make soak SOAK="--for 60m --seed 3"``. It needs Linux, root (network namespaces),
mosquitto and iproute2.
"""

import argparse
import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from mosquitto import BINARY
from soak.network import Network
from soak.stage import Stage
from soak.tally import sabotage, tally
from soak.trouble import Chaos
from soak.watch import Watch

UNITS = {"s": 1, "m": 60, "h": 3600}
CATCH_UP_S = 300.0
"""How long the backlog may take once the faults have ended; the slowest reconnection waits 120 s."""
LAST_WORDS = 3
"""A stop waits 2 s for the last receipt; on a busy machine it may need another start and stop."""

FAILURES_SHOWN = 20


def duration(text):
    """10m → 600.0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError("a number and s, m or h, such as 10m")
    return float(match[1]) * UNITS[match[2]]


def arguments():
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__.splitlines()[0])
    parser.add_argument("--for", dest="for_s", type=duration, default=600.0, metavar="DURATION", help="10m")
    parser.add_argument("--seed", type=int, help="kinds, times and lengths of all faults follow from it; else random")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output at the end")
    parser.add_argument("--keep", action="store_true", help="keep the folder also when all is well")
    parser.add_argument("--sabotage", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def missing():
    """What this machine lacks."""
    lacks = [tool for tool in ("ip", "tc", "setpriv") if not shutil.which(tool)]
    lacks += [] if BINARY else ["mosquitto"]
    if os.geteuid() or not sys.platform.startswith("linux"):
        return "the soak needs Linux and root: it makes network namespaces. sudo make soak"
    return f"the soak needs {', '.join(lacks)} (Debian: apt install mosquitto iproute2)" if lacks else ""


def tell(text):
    """To people; standard output is the result's."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Soak:
    """One run."""

    def __init__(self, options, folder, network):
        self.options = options
        self.stage = Stage(folder, network, options.seed)
        self.watch = Watch(self.stage)
        self.chaos = Chaos(self.stage, options.seed, self.say)
        self._begun_s = time.monotonic()
        self._faults_s = 0.0
        self._caught_up_s = None
        self._last_words = 0

    def say(self, text):
        left_s = max(0, round(self.options.for_s - (time.monotonic() - self._begun_s)))
        tell(f"{left_s // 60:3}:{left_s % 60:02} left  {text}")

    async def run(self):
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        try:
            await self.stage.start()
            watch = asyncio.create_task(self.watch.run())
            await self._faults(stop)
            await self.stage.all_up()
            self.say("faults have ended; waiting until all that is committed is acknowledged")
            self._caught_up_s = await self._catch_up()
            await _ended(watch)
            await self._end()
        finally:
            self.stage.close()
        return self._result(time.monotonic() - self._begun_s)

    async def _faults(self, stop):
        """The time of the faults: until it is over, somebody stops it, or something has failed."""
        chaos = asyncio.create_task(self.chaos.run())
        ends = [chaos, *(asyncio.create_task(event.wait()) for event in (stop, self.stage.failed))]
        begun_s = time.monotonic()
        await asyncio.wait(ends, timeout=self.options.for_s, return_when=asyncio.FIRST_COMPLETED)
        self._faults_s = time.monotonic() - begun_s
        for task in ends:
            await _ended(task)

    async def _catch_up(self):
        """Until all that was committed at the end of the faults, or at the last start, has a receipt."""
        begun_ns, begun_s, target = time.time_ns(), time.monotonic(), None
        while time.monotonic() < begun_s + CATCH_UP_S and self.stage.actors["agent"].running:
            status = self.watch.status()
            if status.get("time_ms", 0) > begun_ns / 1e6:
                target = target or status["log"]["committed"]
                if status["log"]["acknowledged"] >= target:
                    return round(time.monotonic() - begun_s, 1)
            await asyncio.sleep(0.1)
        self.stage.fail(f"not everything was acknowledged within {CATCH_UP_S:.0f} s")
        return None

    async def _end(self):
        actors = self.stage.actors
        for last in range(LAST_WORDS):
            await self._stopped("agent")
            log = self.watch.status().get("log", {})
            if self.stage.failures or log.get("acknowledged") == log.get("committed"):
                break
            self._last_words = last + 1
            await actors["agent"].start()
            await self._catch_up()
        for name in ("bus", "headend", "broker"):
            await self._stopped(name)

    async def _stopped(self, name):
        if self.stage.actors[name].running:
            await self.stage.actors[name].stop()

    def _result(self, took_s):
        if self.options.sabotage:
            sabotage(self.stage.folder)
        facts, failures = tally(self.stage)
        failures = self.stage.failures + failures
        actors, watch = self.stage.actors, self.watch
        return {
            "ok": not failures,
            "failures": failures,
            "seed": self.options.seed,
            "for_s": self.options.for_s,
            "faults_s": round(self._faults_s, 1),
            "took_s": round(took_s, 1),
            "netem": self.stage.network.netem,
            "events": {target: dict(counts) for target, counts in self.chaos.counts.items()},
            "lives": {name: actor.lives for name, actor in actors.items()},
            **facts,
            "caught_up_s": self._caught_up_s,
            "last_words": self._last_words,
            "backlog_max": watch.backlog_max,
            "longest_stop_s": {name: round(actor.stop_s, 2) for name, actor in actors.items()},
            "peak_rss_kib": watch.peak_rss_kib,
            "peak_fds": watch.peak_fds,
            "resent_batches": watch.resent.total(),
            "long_lives": watch.long_lives,
            "peak_bytes": watch.peak_bytes,
            "bytes": {n: (self.stage.folder / n).stat().st_size for n in ("journal.db", "headend.db")},
        }


async def _ended(task):
    """Cancel and see to its end; a failure of its own is raised."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def table(result):
    """For people."""
    lines = [f"seed {result['seed']}, {result['faults_s']:.0f} s of faults, {result['took_s']:.0f} s in all", ""]
    for target, counts in result["events"].items():
        lines.append(f"  {target:8} " + "  ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
    skipped = ("ok", "failures", "seed", "for_s", "faults_s", "took_s", "events")
    lines += ["", *(f"  {key:15} {_text(value)}" for key, value in result.items() if key not in skipped), ""]
    lines += [f"FAILED: {failure}" for failure in result["failures"][:FAILURES_SHOWN]] or ["all agree"]
    if result["failures"]:
        lines.append(f'the same faults again: make soak SOAK="--for {result["for_s"]:.0f}s --seed {result["seed"]}"')
    return "\n".join(lines)


def _text(value):
    return "  ".join(f"{k} {_text(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def main():
    options = arguments()
    if lacks := missing():
        sys.exit(lacks)
    options.seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="energybid-soak-"))
    tell(f"seed {options.seed}, {options.for_s:.0f} s, in {folder}")
    with Network() as network:
        if not network.netem:
            tell("this kernel has no netem: loss is that of a line without a queue")
        try:
            result = asyncio.run(Soak(options, folder, network).run())
        except BaseException:
            tell(f"everything is kept in {folder}")
            raise
    if result["ok"] and not options.keep:
        shutil.rmtree(folder)
    else:
        result["folder"] = str(folder)
    sys.stdout.write((json.dumps(result) if options.json else table(result)) + "\n")
    sys.exit(0 if result["ok"] else 1)


main()
