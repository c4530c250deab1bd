"""A real agent is killed while a number is held: the next one makes it safe before it polls."""

import json
import signal
import subprocess
import sys
from contextlib import ExitStack, suppress
from importlib.resources import files

from energybid.core.entries import Command, CommandCause, CommandOutcome
from gateway_site import ENERGYBID, Process, wait_for
from gateways import entries_in
from simulated import simulated

WRITABLE = """
[[writable]]
name = "limit"
register = 300
type = "uint32"
scale = "1"
unit = "W"
minimum = "0"
maximum = "5000"
safe = "1000"
"""
BUS = """
[[bus]]
name = "cabinet"
kind = "modbus-tcp"
port = 0
[[bus.meter]]
name = "charger"
unit = 1
profile = "charger.toml"
"""
GATEWAY = """
[gateway]
tenant = "demo"
id = "gw-1"
[keys]
log = "log.pem"
[journal]
path = "journal.db"
commit_interval = "200 ms"
[status]
path = "status.json"
interval = "100 ms"
[[bus]]
name = "cabinet"
kind = "modbus-tcp"
host = "127.0.0.1"
port = {port}
[[bus.meter]]
name = "charger"
unit = 1
profile = "charger.toml"
interval = "200 ms"
"""
HOLDER = """
import asyncio
from fractions import Fraction
from pathlib import Path
from energybid.agent import system
from energybid.agent.config import load_plan
from energybid.agent.control import Owner, Rank
from energybid.agent.process import Agent, _open

async def main(platform, stop):
    plan = load_plan(Path("gateway.toml"))
    recorder = await _open(platform, plan)
    agent = Agent(platform, plan, recorder)
    running = asyncio.create_task(agent.run(stop))
    until_s = asyncio.get_running_loop().time() + 3600
    await agent.control.hold("charger/limit", Fraction(4200), Owner("market", Rank.MARKET), until_s)
    committed = asyncio.Event()
    recorder.on_commit.append(committed.set)
    while recorder.committed < recorder.size:
        committed.clear()
        await committed.wait()
    print("held", flush=True)
    await running

asyncio.run(system.until_stopped(main))
"""


def limit(folder):
    done = subprocess.run(
        [
            ENERGYBID,
            "read",
            "-c",
            "gateway.toml",
            "charger",
            "--registers",
            "holding:300-301",
            "--type",
            "uint32",
            "--json",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["registers"][0]["value"]


def commands(folder):
    found = [entry for entry in entries_in(folder / "journal.db") if isinstance(entry, Command)]
    return [(command.owner, command.mantissa, command.cause, command.outcome) for command in found]


def test_what_a_killed_agent_held_is_made_safe_by_the_next(tmp_path):
    profile = (files("energybid.drivers") / "profiles" / "abb-b23.toml").read_text()
    (tmp_path / "charger.toml").write_text(profile + WRITABLE)
    (tmp_path / "bus.toml").write_text(BUS)
    subprocess.run([ENERGYBID, "keys", "new", "log.pem"], cwd=tmp_path, check=True, capture_output=True)
    with simulated(tmp_path, "-c", "bus.toml") as targets, ExitStack() as stack:
        (tmp_path / "gateway.toml").write_text(GATEWAY.format(port=targets["cabinet"].rpartition(":")[2]))
        holder = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        stack.callback(holder.kill)
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.communicate()
        assert holder.returncode == -signal.SIGKILL
        assert limit(tmp_path) == 4200, "what is in the device stays there while nobody is"
        agent = Process(tmp_path, "agent", "run", "-c", "gateway.toml")
        stack.callback(agent.stop, signal.SIGKILL)
        wait_for(lambda: _polls(tmp_path) > 0, "the agent polls", agent)
        assert limit(tmp_path) == 1000
        assert agent.stop() == 0, agent.said()
        assert "was held when the agent was gone" in agent.said()
    done = CommandOutcome.DONE
    assert commands(tmp_path) == [
        ("market", 4200, CommandCause.HELD, done),
        ("agent", 1000, CommandCause.RESTARTED, done),
    ]


def _polls(folder):
    """Of the agent that runs now; the one that was killed may have left its file."""
    with suppress(FileNotFoundError, json.JSONDecodeError):
        status = json.loads((folder / "status.json").read_text())
        return 0 if status["control"][0]["leases"] else status["meters"][0]["polls"]
    return 0
