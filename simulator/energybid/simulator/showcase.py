"""The demo's cast: a scratch folder with keys and configuration, and the product's own processes running on it.

Here lives the order of start and stop, and what became of everything. The files' contents are in ``showcase_files``,
the market's counts in ``showcase_tally``; what is shown of it lives in ``view.py``.
"""

import asyncio
import json
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from energybid.agent.commands.keys import write_pair
from energybid.core.cose import PrivateKey
from energybid.core.errors import EnergybidError
from energybid.simulator.compare import Comparison, compare
from energybid.simulator.meters import device_profiles
from energybid.simulator.showcase_files import (
    GATEWAYS,
    bus_file,
    gateway_file,
    headend_file,
    market_file,
    price_file,
)
from energybid.simulator.showcase_tally import Tally
from energybid.simulator.system import Child, entropy, now_ms

CLI = "energybid.agent.cli"
READY_S = 30.0
"""How long a part may take until it is ready; a Raspberry Pi needs some seconds."""
LOOK_S = 0.05
STOP_S = 10.0
HEADEND_DB = "headend.db"
AT_ONCE = 4
"""Bundles that are verified at the same time."""
MINUTE_MS = 60_000
READINGS_MS, SETTLED_S = 3_000, 15.0
"""So long after a delivery its readings are there; how long its settlement may take once they are."""


class Showcase:
    """All processes of the demo."""

    def __init__(self, folder: Path, *, market: bool = True) -> None:
        """Use an empty folder.

        Args:
            folder: Where everything is.
            market: Three gateways bid; else one reads meters.
        """
        self.folder = folder
        self.tally = Tally()
        self._market = market
        self._numbers = range(1, len(GATEWAYS) + 1 if market else 2)
        self._children: dict[str, Child] = {}
        self._listening: asyncio.Task[None] | None = None

    @property
    def shown_market(self) -> Tally | None:
        """The market's counts, where there is one."""
        return self.tally if self._market else None

    @classmethod
    async def start(cls, folder: Path, stack: AsyncExitStack, *, market: bool = True) -> "Showcase":
        """Make keys and files, start everything; ``stack`` stops what is still running.

        Raises:
            EnergybidError: A part did not start; its last words are in the message.
        """
        self = cls(folder, market=market)
        stack.push_async_callback(self._stop_all)
        self._make_keys()
        self._write("bus.toml", bus_file(market=market))
        broker, buses = await asyncio.gather(
            self._start_ready("broker", "energybid.simulator.broker"),
            self._start_ready("meters", CLI, "simulate", "bus", "-c", "bus.toml", "--json"),
        )
        port, ports = int(broker["port"]), {bus["name"]: bus["port"] for bus in buses["buses"] if "port" in bus}
        minute = now_ms() // MINUTE_MS % 1440
        self._write("headend.toml", headend_file(port, len(self._numbers)))
        for number in self._numbers:
            self._folder(number).mkdir()
            text = gateway_file(str(folder), number, port, ports, minute if market else None)
            (self._folder(number) / "gateway.toml").write_text(text, encoding="utf-8")
        await self._start("headend", CLI, "headend", "run", "-c", "headend.toml")
        if market:
            self._write("prices.csv", price_file())
            self._write("market.toml", market_file(port, minute))
            child = await self._start("market", CLI, "simulate", "market", "-c", "market.toml", "--json")
            self._listening = asyncio.ensure_future(self._listen(child))
        for number in self._numbers:
            await self._start(f"agent-{number}", CLI, "run", "-c", f"{GATEWAYS[number - 1]}/gateway.toml")
        await self._running()
        return self

    def _make_keys(self) -> None:
        names = ["headend", *(f"log-{number}" for number in self._numbers)]
        if self._market:
            names += ["market", *(f"bids-{number}" for number in self._numbers)]
            (self.folder / "profiles").mkdir()
            for name, data in device_profiles():
                (self.folder / "profiles" / name).write_bytes(data)
        for name in names:
            write_pair(self.folder / "keys" / f"{name}.pem", PrivateKey.from_entropy(entropy(48)))

    def _folder(self, number: int) -> Path:
        return self.folder / GATEWAYS[number - 1]

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    async def _listen(self, market: Child) -> None:
        """Count what the market says, until it ends."""
        async for line in market.lines():
            self.tally.take(json.loads(line))

    async def _running(self) -> None:
        """Returns when the agents run: they have written their status."""
        ended = asyncio.ensure_future(self.ended())
        try:
            async with asyncio.timeout(READY_S):
                while len(self.statuses()) < len(self._numbers) and not ended.done():  # noqa: ASYNC110  others' files
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

    def statuses(self) -> list[dict[str, Any]]:
        """The agents' status files, as far as there are any."""
        found = []
        for number in self._numbers:
            try:
                found.append(json.loads((self._folder(number) / "status.json").read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue
        return found

    async def finish(self) -> dict[str, Any]:
        """Stop the agents, then the rest; returns what the simulator counted for each bus.

        Raises:
            EnergybidError: An agent did not stop well.
        """
        agents = [self._children[f"agent-{number}"] for number in self._numbers]
        for code, agent in zip(await asyncio.gather(*(agent.stop(STOP_S) for agent in agents)), agents, strict=True):
            if code:
                raise EnergybidError(f"the demo's {agent.name} ended with exit code {code}: {agent.last_words()}")
        await self._settled()
        meters = self._children["meters"]
        names = ["meters", "headend", *(["market"] if self._market else [])]
        await asyncio.gather(*(self._children[name].stop(STOP_S) for name in names))
        if self._listening is not None:
            await self._listening
        facts = json.loads((await meters.rest()).splitlines()[-1])
        await self._stop_all()
        return {bus.pop("name"): bus for bus in facts["buses"]}

    async def _settled(self) -> None:
        """Returns when every round is settled whose delivery was over before the agents ended, or it takes too long."""
        over_ms = now_ms() - READINGS_MS
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLED_S):
                while self.tally.is_open(over_ms):  # noqa: ASYNC110  another process settles
                    await asyncio.sleep(LOOK_S)

    async def _stop_all(self) -> None:
        await asyncio.gather(*(child.stop(STOP_S) for child in self._children.values()))

    # ------------------------------------------------------------ afterwards

    async def result(self) -> dict[str, Any]:
        """What became of every reading and of every round; after ``finish``.

        Raises:
            EnergybidError: An agent left no status.
        """
        statuses = self.statuses()
        if len(statuses) < len(self._numbers):
            raise EnergybidError("the demo's agent left no status")
        keys = [f"--key=keys/log-{number}.pub.pem" for number in self._numbers]
        databases = [*(f"{GATEWAYS[number - 1]}/journal.db" for number in self._numbers), HEADEND_DB]
        reports = await asyncio.gather(*(self._verify(name, "--key=keys/headend.pub.pem", *keys) for name in databases))
        compared = [compare(self._folder(n) / "journal.db", self.folder / HEADEND_DB) for n in self._numbers]
        result = _counted(statuses, compared)
        result["faults"] = [fault for report in reports for fault in report["faults"]]
        sound = all(report["verified"] for report in reports) and not reports[-1]["conflicts"]
        result["verified"] = sound and not any(each.foreign for each in compared)
        if self._market:
            result["market"] = await self._market_result()
            result["verified"] &= result["market"]["bundles"] == result["market"]["bundles_verified"]
        return result

    async def _market_result(self) -> dict[str, Any]:
        """The market's counts, with every bundle verified from its bytes and the public keys alone."""
        bundles = sorted(path.name for path in (self.folder / "bundles").glob("*.bundle"))
        roles = [("market", "market"), ("headend", "headend")]
        roles += [(role, f"{name}-{n}") for n in self._numbers for role, name in (("gateway", "bids"), ("log", "log"))]
        keys = [f"--key={role}=keys/{name}.pub.pem" for role, name in roles]
        free = asyncio.Semaphore(AT_ONCE)

        async def verify(name: str) -> bool:
            async with free:
                out = await self._run("settle", CLI, "settle", "verify", f"bundles/{name}", "--json", *keys)
            return bool(out) and bool(json.loads(out)["verified"])

        verified = await asyncio.gather(*map(verify, bundles))
        return self.tally.result(len(bundles), sum(verified))

    async def _verify(self, database: str, *options: str) -> dict[str, Any]:
        report = await self._run("verify", CLI, "verify", database, "--json", *options)
        if not report:
            return {"verified": False, "faults": [f"{database} could not be verified"], "conflicts": 0}
        facts: dict[str, Any] = json.loads(report)
        return facts


def _counted(statuses: list[dict[str, Any]], compared: list[Comparison]) -> dict[str, Any]:
    """The readings of all gateways."""
    read, values = (sum(int(status[key]) for status in statuses) for key in ("readings", "values"))
    wires = [sum(int(status["uplink"][key]) for key in ("sent_bytes", "received_bytes")) for status in statuses]
    market = sum(each.market_bytes for each in compared)
    metering = sum(wires) - market
    pairs = zip(statuses, compared, strict=True)
    return {
        "read": read,
        "logged": sum(each.readings for each in compared),
        "acknowledged": sum(each.acknowledged for each in compared),
        "lost": sum(max(0, int(status["readings"]) - each.readings) + each.missing for status, each in pairs),
        "duplicated": sum(each.duplicated for each in compared),
        "values": values,
        "entries": {"logged": sum(e.entries for e in compared), "stored": sum(e.stored for e in compared)},
        "mqtt_bytes": sum(wires),
        "market_bytes": market,
        "mqtt_bytes_per_value": round(metering / values, 2) if values else None,
        "receipts": [status["receipt"] for status in statuses],
    }
