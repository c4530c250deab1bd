"""The demo's cast: a scratch folder with keys and configuration, and the product's own processes running on it.

Here live the files' contents and the order of start and stop; what is shown of it lives in ``view.py``.
"""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

from energybid.core.errors import EnergybidError
from energybid.simulator.compare import compare
from energybid.simulator.system import Child

CLI = "energybid.agent.cli"
READY_S = 30.0
"""How long a part may take until it is ready; a Raspberry Pi needs some seconds."""
LOOK_S = 0.05
STOP_S = 10.0
TENANT, GATEWAY = "demo", "gateway-1"

BUS = """\
# Meters that replay a recorded household, an hour a minute.
seed = 7
speed = 60

[[bus]]
name = "main-panel"
kind = "modbus-tcp"
meter = [
  { name = "house", unit = 1, profile = "eastron-sdm630", begin = "6 h" },
  { name = "roof", unit = 2, profile = "abb-b23", pv_peak_w = 6000, begin = "10 h" },
  { name = "workshop", unit = 3, profile = "schneider-iem3155", load = 3.0, begin = "17 h" },
]

[[bus]]
name = "basement"
kind = "modbus-rtu"
device = "basement.tty"
baudrate = 19200
meter = [
  { name = "heat-pump", unit = 11, profile = "carlo-gavazzi-em340", reply_delay = "20 ms", begin = "7 h" },
  { name = "flat-2", unit = 12, profile = "eastron-sdm630", reply_delay = "20 ms", begin = "18 h" },
]
faults = { crc_error = 0.02 } # noise on the line: the agent asks again
"""

METER = """
[[bus.meter]]
name = "{name}"
profile = "{profile}"
unit = {unit}
interval = "1 s"
"""

GATEWAY_FILE = """\
[gateway]
tenant = "{tenant}"
id = "{gateway}"

[keys]
log = "keys/log.pem"
headend = "keys/headend.pub.pem"

[journal]
path = "journal.db"
commit_interval = "1 s"

[uplink]
url = "mqtt://127.0.0.1:{broker}"
mqtt = "3.1.1"

[status]
path = "status.json"
interval = "500 ms"

[[bus]]
name = "main-panel"
kind = "modbus-tcp"
host = "127.0.0.1"
port = {port}
{panel}
[[bus]]
name = "basement"
kind = "modbus-rtu"
device = "basement.tty"
baudrate = 19200
{basement}"""

HEADEND_FILE = """\
[headend]
database = "headend.db"
key = "keys/headend.pem"

[uplink]
url = "mqtt://127.0.0.1:{broker}"
mqtt = "3.1.1"

[[gateway]]
tenant = "{tenant}"
id = "{gateway}"
keys = ["keys/log.pub.pem"]
"""

PANEL = (("house", "eastron-sdm630", 1), ("roof", "abb-b23", 2), ("workshop", "schneider-iem3155", 3))
BASEMENT = (("heat-pump", "carlo-gavazzi-em340", 11), ("flat-2", "eastron-sdm630", 12))


def gateway_file(broker_port: int, bus_port: int) -> str:
    """gateway.toml of the demo."""
    panel, basement = (
        "".join(METER.format(name=name, profile=profile, unit=unit) for name, profile, unit in meters)
        for meters in (PANEL, BASEMENT)
    )
    return GATEWAY_FILE.format(
        tenant=TENANT, gateway=GATEWAY, broker=broker_port, port=bus_port, panel=panel, basement=basement
    )


class Showcase:
    """All processes of the demo."""

    def __init__(self, folder: Path) -> None:
        """Use an empty folder."""
        self.folder = folder
        self._children: dict[str, Child] = {}

    @classmethod
    async def start(cls, folder: Path, stack: AsyncExitStack) -> Self:
        """Make keys and files, start everything; ``stack`` stops what is still running.

        Raises:
            EnergybidError: A part did not start; its last words are in the message.
        """
        self = cls(folder)
        stack.push_async_callback(self._stop_all)
        (folder / "bus.toml").write_text(BUS, encoding="utf-8")
        await asyncio.gather(
            *(self._run("keys", CLI, "keys", "new", f"keys/{name}.pem") for name in ("log", "headend"))
        )
        broker, buses = await asyncio.gather(
            self._start_ready("broker", "energybid.simulator.broker"),
            self._start_ready("meters", CLI, "simulate", "bus", "-c", "bus.toml", "--json"),
        )
        port = int(broker["port"])
        headend = HEADEND_FILE.format(tenant=TENANT, gateway=GATEWAY, broker=port)
        (folder / "headend.toml").write_text(headend, encoding="utf-8")
        (folder / "gateway.toml").write_text(gateway_file(port, buses["buses"][0]["port"]), encoding="utf-8")
        await self._start("headend", CLI, "headend", "run", "-c", "headend.toml")
        await self._start("agent", CLI, "run", "-c", "gateway.toml")
        await self._running()
        return self

    async def _running(self) -> None:
        """Returns when the agent runs: it has written its status."""
        ended = asyncio.ensure_future(self.ended())
        try:
            async with asyncio.timeout(READY_S):
                while self.status() is None and not ended.done():  # noqa: ASYNC110  it is another process's file
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            raise EnergybidError("the demo's agent writes no status") from None
        finally:
            ended.cancel()
        if ended.done():
            ended.result()

    async def _start(self, name: str, *command: str) -> Child:
        child = self._children[name] = await Child.start(name, self.folder, *command)
        return child

    async def _start_ready(self, name: str, *command: str) -> dict[str, Any]:
        child = await self._start(name, *command)
        line = await child.line(READY_S)
        if not line:
            raise EnergybidError(f"the demo's {name} did not start: {child.last_words()}")
        facts: dict[str, Any] = json.loads(line)
        return facts

    async def _run(self, name: str, *command: str) -> str:
        """Run a command to its end; returns what it printed."""
        child = await Child.start(name, self.folder, *command)
        out = await child.rest()
        await child.wait()
        return out

    async def ended(self) -> None:
        """Returns never; raises when a part ends that should not.

        Raises:
            EnergybidError: It ended; its last words are in the message.
        """
        waits = {asyncio.ensure_future(child.wait()): child for child in self._children.values()}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        child = waits[next(iter(done))]
        raise EnergybidError(f"the demo's {child.name} ended: {child.last_words()}")

    def status(self) -> dict[str, Any] | None:
        """The agent's status file; None before there is one."""
        try:
            status: dict[str, Any] = json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return status

    async def finish(self) -> dict[str, Any]:
        """Stop the agent, then the rest; returns what the simulator counted for each bus.

        Raises:
            EnergybidError: The agent did not stop well.
        """
        agent, meters = self._children["agent"], self._children["meters"]
        code = await agent.stop(STOP_S)
        if code:
            raise EnergybidError(f"the demo's agent ended with exit code {code}: {agent.last_words()}")
        await asyncio.gather(meters.stop(STOP_S), self._children["headend"].stop(STOP_S))
        facts = json.loads((await meters.rest()).splitlines()[-1])
        await self._stop_all()
        return {bus.pop("name"): bus for bus in facts["buses"]}

    async def _stop_all(self) -> None:
        await asyncio.gather(*(child.stop(STOP_S) for child in self._children.values()))

    # ------------------------------------------------------------ afterwards

    async def result(self) -> dict[str, Any]:
        """What became of every reading; after ``finish``.

        Raises:
            EnergybidError: The agent left no status.
        """
        keys = [f"--key=keys/{name}.pub.pem" for name in ("log", "headend")]
        journal, headend = await asyncio.gather(self._verify("journal.db", *keys), self._verify("headend.db", *keys))
        status = self.status()
        if status is None:
            raise EnergybidError("the demo's agent left no status")
        compared = compare(self.folder / "journal.db", self.folder / "headend.db")
        uplink, read = status["uplink"], int(status["readings"])
        wire = int(uplink["sent_bytes"]) + int(uplink["received_bytes"])
        faults = [*journal["faults"], *headend["faults"]]
        return {
            "read": read,
            "logged": compared.readings,
            "acknowledged": compared.acknowledged,
            "lost": max(0, read - compared.readings) + compared.missing,
            "duplicated": compared.duplicated,
            "verified": bool(
                journal["verified"] and headend["verified"] and not compared.foreign and not headend["conflicts"]
            ),
            "values": status["values"],
            "entries": {"logged": compared.entries, "stored": compared.stored},
            "mqtt_bytes": wire,
            "mqtt_bytes_per_value": round(wire / status["values"], 2) if status["values"] else None,
            "receipt": status["receipt"],
            "faults": faults,
        }

    async def _verify(self, database: str, *options: str) -> dict[str, Any]:
        report = await self._run("verify", CLI, "verify", database, "--json", *options)
        if not report:
            return {"verified": False, "faults": [f"{database} could not be verified"], "conflicts": 0}
        facts: dict[str, Any] = json.loads(report)
        return facts
