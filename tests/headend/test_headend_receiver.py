"""The head-end at a real broker, as a task and as a process."""

import asyncio
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, UplinkDownError
from energybid.core.evidence import Receipt, verify_receipt
from energybid.core.ports import UplinkSettings
from energybid.core.settings import parse_toml
from energybid.headend.config import HeadendFile, load_plan
from energybid.headend.ledger import Ledger
from energybid.headend.receiver import Receiver
from energybid.headend.store import Store
from energybid.headend.system import RealWorld
from energybid.headend.verify import verify
from energybid.sync import system as sync
from energybid.sync.mqtt.system import MqttUplink, connect_uplink
from energybid.sync.topics import topics_for
from headend_gateway import Gateway, key
from mosquitto import Mosquitto

DEADLINE_S = 15
HEADEND = key(9)


@pytest.fixture
def broker(tmp_path: pathlib.Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@asynccontextmanager
async def running(path: pathlib.Path, broker: Mosquitto, *gateways: Gateway) -> AsyncIterator[Receiver]:
    """A head-end in this process."""
    world = RealWorld(random=random.Random(1), offload=sync.Worker("headend"))
    store = Store.open(sync.open_database(str(path)), str(path))
    ledger = Ledger(store, HEADEND, HEADEND.public, sync.now_ns)
    ledger.register(g.registration for g in gateways)
    settings = UplinkSettings(host="127.0.0.1", port=broker.port, client_id="headend", session_s=3600)
    receiver = Receiver(world, settings, ledger)
    task = asyncio.ensure_future(receiver.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await receiver.connected.wait()
        yield receiver
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        world.offload.close()
        store.close()


@asynccontextmanager
async def connected(broker: Mosquitto, gateway: Gateway) -> AsyncIterator[MqttUplink]:
    """A gateway's connection, subscribed to its receipts."""
    settings = UplinkSettings(host="127.0.0.1", port=broker.port, client_id=gateway.name)
    async with connect_uplink(settings) as uplink:
        await uplink.subscribe([topics_for(gateway.tenant, gateway.name).receipt])
        yield uplink


async def receipts_until(uplink: MqttUplink, size: int) -> list[Receipt]:
    found: list[Receipt] = []
    async with asyncio.timeout(DEADLINE_S):
        async for message in uplink.messages():
            found.append(verify_receipt(message.payload, HEADEND.public))
            if found[-1].size >= size:
                break
    return found


async def send(uplink: MqttUplink, gateway: Gateway, first: int, end: int | None = None) -> None:
    message = gateway.message(first, end)
    await uplink.publish(message.topic, message.payload)


async def test_batches_of_two_gateways_are_receipted(tmp_path: pathlib.Path, broker: Mosquitto) -> None:
    one, two = Gateway("one"), Gateway("two", signer=key(2))
    async with running(tmp_path / "h.db", broker, one, two):
        async with connected(broker, one) as first, connected(broker, two) as second:
            for _ in range(5):
                await asyncio.gather(send(first, one, 0), send(second, two, 0))
                one.read()
                two.read(20)
            await asyncio.gather(send(first, one, one.size - 10), send(second, two, 3))
            assert (await receipts_until(first, 53))[-1].root == one.root()
            assert (await receipts_until(second, 103))[-1].root == two.root()
        async with connected(broker, one) as again:
            assert [r.size for r in await receipts_until(again, 53)] == [53], "retained: no batch was needed"
    report = verify(str(tmp_path / "h.db"), [])
    assert report is not None
    assert (report["verified"], report["readings"]) == (True, 150)


async def test_the_broker_keeps_batches_while_the_head_end_is_away(tmp_path: pathlib.Path, broker: Mosquitto) -> None:
    gateway = Gateway()
    async with running(tmp_path / "h.db", broker, gateway):
        pass
    async with connected(broker, gateway) as uplink:
        for _ in range(30):
            await send(uplink, gateway, max(0, gateway.size - 10))
            gateway.read()
        await send(uplink, gateway, gateway.size - 10)
        async with running(tmp_path / "h.db", broker, gateway) as receiver:
            found = await receipts_until(uplink, 303)
            assert found[-1].root == gateway.root()
            assert len(found) < receiver.batches, "several batches share a transaction and its receipt"


async def test_a_broker_that_lost_everything_gets_the_receipts_again(tmp_path: pathlib.Path, broker: Mosquitto) -> None:
    gateway = Gateway()
    async with running(tmp_path / "h.db", broker, gateway) as receiver:
        async with connected(broker, gateway) as uplink:
            await send(uplink, gateway, 0)
            await receipts_until(uplink, 3)
        broker.kill()
        while receiver.connected.is_set():  # noqa: ASYNC110  an event has no way to wait for its end
            await asyncio.sleep(0.01)
        (broker.folder / "mosquitto.db").unlink(missing_ok=True)
        broker.start()
        async with connected(broker, gateway) as uplink:
            assert [r.size for r in await receipts_until(uplink, 3)] == [3]
            gateway.read()
            await send(uplink, gateway, 3)
            await receipts_until(uplink, 13)


async def test_garbage_does_not_stop_it(tmp_path: pathlib.Path, broker: Mosquitto) -> None:
    gateway = Gateway()
    topic = topics_for(gateway.tenant, gateway.name).log
    async with running(tmp_path / "h.db", broker, gateway), connected(broker, gateway) as uplink:
        for payload in (b"", b"\x00" * 1000, bytes(300_000), gateway.frame(0)[:-1], b"\x01" + b"\x9f" * 5000):
            await uplink.publish(topic, payload)
        await send(uplink, gateway, 0)
        assert [r.size for r in await receipts_until(uplink, 3)] == [3]


# ---------------------------------------------------------------- the process


def write_config(tmp_path: pathlib.Path, port: int, gateway: Gateway) -> pathlib.Path:
    (tmp_path / "headend.pem").write_bytes(HEADEND.pem())
    (tmp_path / "gateway.pem").write_bytes(gateway.key.public.pem())
    path = tmp_path / "headend.toml"
    path.write_text(
        f"""
        [headend]
        database = "headend.db"
        key = "headend.pem"

        [uplink]
        url = "mqtt://127.0.0.1:{port}"

        [[gateway]]
        tenant = "{gateway.tenant}"
        id = "{gateway.name}"
        keys = ["gateway.pem"]
        """
    )
    return path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "energybid.agent.cli", "headend", *arguments]


class Process:
    """``energybid headend run`` in a process of its own."""

    def __init__(self, config: pathlib.Path) -> None:
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        name = str(config.parent / f"notify{os.urandom(4).hex()}")
        self._manager.bind(name)
        self._manager.settimeout(DEADLINE_S)
        environment = {**os.environ, "NOTIFY_SOCKET": name}
        self.process = subprocess.Popen(
            command("run", "-c", str(config), "--json-logs"), env=environment, stderr=subprocess.PIPE
        )

    async def until(self, state: bytes) -> None:
        """Wait until it has told the service manager so."""
        while (await asyncio.to_thread(self._manager.recv, 1000)) != state:
            pass

    def end(self, number: signal.Signals) -> list[dict[str, object]]:
        """Send a signal; what it had logged."""
        self.process.send_signal(number)
        _, logs = self.process.communicate(timeout=5)
        return [json.loads(line) for line in logs.splitlines()]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self._manager.close()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.close()


async def start(processes: list[Process], config: pathlib.Path, state: bytes = b"STATUS=connected") -> Process:
    processes.append(Process(config))
    await processes[-1].until(state)
    return processes[-1]


async def energybid(*arguments: str) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(subprocess.run, command(*arguments), capture_output=True, text=True, check=False)


async def test_the_process_survives_kills_and_stops_in_time(
    tmp_path: pathlib.Path, broker: Mosquitto, processes: list[Process]
) -> None:
    gateway = Gateway()
    config = write_config(tmp_path, broker.port, gateway)
    async with connected(broker, gateway) as uplink:
        for round_ in range(3):
            process = await start(processes, config)
            await send(uplink, gateway, max(0, gateway.size - 10))
            await receipts_until(uplink, gateway.size)
            gateway.read()
            await send(uplink, gateway, gateway.size - 10)
            process.end(signal.SIGKILL)
            assert process.process.returncode == -signal.SIGKILL, round_
        process = await start(processes, config)
        await send(uplink, gateway, gateway.size - 10)
        await receipts_until(uplink, 33)
    second = await energybid("run", "-c", str(config))
    assert second.returncode == exit_codes.JOURNAL
    assert "another head-end" in second.stderr
    facts = json.loads((await energybid("status", "-c", str(config), "--json")).stdout)
    assert (facts["entries"], facts["gateways"][0]["epochs"][0]["receipt"]["size"]) == (33, 33)
    logs = process.end(signal.SIGTERM)
    assert process.process.returncode == exit_codes.OK
    assert logs[-1]["message"] == "stopped"
    report = verify(str(tmp_path / "headend.db"), [])
    assert report is not None
    assert (report["verified"], report["readings"], report["conflicts"]) == (True, 30, 0)
    assert "33 entries, 30 readings, 0 conflicts" in (await energybid("status", "-c", str(config))).stdout


async def test_it_starts_without_a_broker_and_connects_later(
    tmp_path: pathlib.Path, broker: Mosquitto, processes: list[Process]
) -> None:
    gateway = Gateway()
    config = write_config(tmp_path, broker.port, gateway)
    broker.kill()
    process = await start(processes, config, b"READY=1")
    broker.start()
    async with asyncio.timeout(DEADLINE_S), connected(broker, gateway) as uplink:
        while True:
            await send(uplink, gateway, 0)  # until its session is there, the broker keeps nothing for it
            with suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await receipts_until(uplink, 3)
                    break
    process.end(signal.SIGTERM)


def test_every_fault_of_the_configuration_is_told(tmp_path: pathlib.Path) -> None:
    gateway = Gateway()
    path = write_config(tmp_path, 1883, gateway)
    plan = load_plan(path)
    assert plan.gateways == (gateway.registration,)
    assert (plan.uplink.client_id, plan.uplink.session_s) == ("energybid-headend", 7 * 86400)
    (tmp_path / "gateway.pem").write_bytes(b"nothing")
    (tmp_path / "headend.pem").unlink()
    with pytest.raises(ConfigurationError) as caught:
        load_plan(path)
    assert [fault.split(": ")[1] for fault in caught.value.faults] == ["headend.key", "gateway[0].keys"]
    path.write_text('[headend]\ndatabase = ""\nclient_id = "a b"\n[uplink]\nurl = "x"\n[[gateway]]\ntenant = "#"\n')
    with pytest.raises(ConfigurationError) as caught:
        load_plan(path)
    keys = {fault.split(": ")[1] for fault in caught.value.faults}
    assert keys == {"headend.database", "headend.key", "headend.client_id", "uplink.url"} | {
        f"gateway[0].{name}" for name in ("tenant", "id", "keys")
    }


def test_a_gateway_twice_is_a_fault(tmp_path: pathlib.Path) -> None:
    path = write_config(tmp_path, 1883, Gateway())
    text = path.read_text()
    path.write_text(text + text[text.index("[[gateway]]") :])
    with pytest.raises(ConfigurationError, match="more than once: demo/gw-1"):
        load_plan(path)


def test_the_example_of_the_readme_is_a_configuration() -> None:
    readme = (pathlib.Path(__file__).parents[2] / "sync/README.md").read_text()
    toml = readme.split("```toml\n")[1].split("```")[0]
    plain = parse_toml("README.md", toml.encode(), HeadendFile)
    optional = parse_toml("README.md", re.sub(r"(?m)^# ", "", toml).encode(), HeadendFile)
    assert [g.id for g in plain.gateway] == ["gw-1"]
    assert plain.headend == optional.headend, "what is commented out are the defaults"


async def test_a_wrong_port_is_said_once(caplog: pytest.LogCaptureFixture, tmp_path: pathlib.Path) -> None:
    class Refusing(RealWorld):
        tries = 0

        @asynccontextmanager
        async def _refuse(self) -> AsyncIterator[MqttUplink]:
            type(self).tries += 1
            if type(self).tries == 4:
                raise ZeroDivisionError
            raise UplinkDownError("nobody there")
            yield

        def connect_uplink(self, settings: UplinkSettings) -> object:  # type: ignore[override]
            del settings
            return self._refuse()

    class Hurry(random.Random):
        def uniform(self, a: float, b: float) -> float:
            del b
            return a

    path = str(tmp_path / "h.db")
    store = Store.open(sync.open_database(path), path)
    ledger = Ledger(store, HEADEND, HEADEND.public, sync.now_ns)
    world = Refusing(random=Hurry(), offload=sync.Worker())
    with pytest.raises(ZeroDivisionError):
        await Receiver(world, UplinkSettings(host="h", port=1, client_id="c"), ledger).run()  # type: ignore[arg-type]
    assert caplog.text.count("nobody there") == 1
    store.close()
