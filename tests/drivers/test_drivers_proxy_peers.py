"""Masters that others wrote, over real sockets: pymodbus and mbpoll (libmodbus) at the proxy."""

import asyncio
import shutil
from contextlib import asynccontextmanager

import pytest
from energybid.agent import system
from energybid.agent.polling import BusPoller
from energybid.agent.sharing import make_proxies
from energybid.core.errors import BusDownError
from energybid.core.ports import TcpEndpoint
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.proxy.plan import Allowed, Listen, ProxyPlan
from energybid.drivers.system import serve_bus
from energybid.simulator.bus import Bus, Station, TcpConnection
from energybid.simulator.system import serve_tcp
from gateways import recording
from modbus_peers import bus_plan
from pymodbus.client import AsyncModbusTcpClient


class Registers:
    """A device in whose registers stands their address, until something is written."""

    def __init__(self):
        self.written = {}

    def respond(self, pdu, _at_ms):
        first, number = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        if pdu[0] == 6:
            self.written[first] = number
            return pdu
        if first >= 5000:
            return bytes((pdu[0] | 0x80, 2))
        data = b"".join(self.written.get(first + n, first + n).to_bytes(2, "big") for n in range(number))
        return bytes((pdu[0], len(data))) + data


@asynccontextmanager
async def proxied(path):
    """A simulated meter that is polled, and a proxy; yields the proxy's port, the proxy and the device."""
    device = Registers()
    bus = Bus(stations=[Station(name="m", unit=1, device=device)], replay_ms=int)
    server, port = await serve_tcp(lambda: TcpConnection(bus), "127.0.0.1", 0)
    plan = bus_plan()
    plan = type(plan)(
        name="bus", kind="modbus-tcp", endpoint=TcpEndpoint(host="127.0.0.1", port=port), meters=plan.meters
    )
    allow = (Allowed(unit=1, table="holding", first=100, count=1),)
    shared = ProxyPlan(bus="bus", listen=Listen(host="127.0.0.1", port=0), units=None, allow=allow, max_age_s=0.5)
    platform = system.platform()
    async with recording(platform, path) as recorder:
        poller = BusPoller(platform, recorder, open_driver(platform, plan), plan)
        poller.declare()
        (proxy,) = make_proxies(platform, [shared], [poller])
        tasks = [asyncio.create_task(one.run()) for one in (poller, proxy)]
        try:
            async with asyncio.timeout(10):
                await proxy.is_open.wait()
            yield proxy.port, proxy, device
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            server.close()


async def test_pymodbus_reads_writes_what_is_listed_and_hears_exceptions(tmp_path):
    async with proxied(tmp_path / "j") as (port, proxy, device):
        client = AsyncModbusTcpClient("127.0.0.1", port=port)
        assert await client.connect()
        try:
            assert (await client.read_holding_registers(100, count=3, device_id=1)).registers == [100, 101, 102]
            assert not (await client.write_register(100, 7, device_id=1)).isError()
            assert (await client.read_holding_registers(100, count=3, device_id=1)).registers == [7, 101, 102]
            assert (await client.write_register(101, 7, device_id=1)).exception_code == 2
            assert (await client.read_input_registers(5000, count=1, device_id=1)).exception_code == 2
            assert (await client.read_input_registers(0, count=1, device_id=9)).exception_code == 0x0B
            assert (await client.read_device_information(device_id=1)).exception_code == 1
            assert device.written == {100: 7}
            assert proxy.status()["clients"][0]["requests"] == 7
        finally:
            client.close()


async def mbpoll(port, *options):
    tool = shutil.which("mbpoll")
    assert tool is not None, "mbpoll is not installed: make venv installs it"
    process = await asyncio.create_subprocess_exec(
        tool,
        *("-m", "tcp", "-0", "-1", "-a", "1", "-p", str(port), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_mbpoll_reads_and_writes(tmp_path):
    async with proxied(tmp_path / "j") as (port, _proxy, device):
        code, text = await mbpoll(port, "-t", "4", "-r", "98", "-c", "3", "127.0.0.1")
        assert code == 0
        assert [line.split() for line in text.splitlines() if line.startswith("[")] == [
            ["[98]:", "98"],
            ["[99]:", "99"],
            ["[100]:", "100"],
        ]
        code, text = await mbpoll(port, "-t", "4", "-r", "100", "127.0.0.1", "1234")
        assert (code, device.written) == (0, {100: 1234})
        code, text = await mbpoll(port, "-t", "4", "-r", "101", "127.0.0.1", "1234")
        assert (code != 0, device.written) == (True, {100: 1234})
        assert "Illegal data address" in text


async def test_a_port_that_is_taken_is_said_so(tmp_path):
    async with proxied(tmp_path / "j") as (port, _proxy, _device):
        with pytest.raises(BusDownError, match=f"can not listen on 127.0.0.1 port {port}: .*in use"):
            await serve_bus("127.0.0.1", port, asyncio.Protocol)
