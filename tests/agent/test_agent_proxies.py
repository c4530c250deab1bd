"""[[proxy]] in gateway.toml, and in the agent that runs."""

import asyncio
from dataclasses import replace
from importlib.resources import files

import pytest
from energybid.agent.config import GatewayFile, load_plan
from energybid.agent.plan import StatusPlan
from energybid.agent.process import run_agent
from energybid.core.cose import PrivateKey
from energybid.core.errors import ConfigurationError
from energybid.core.ports import BusPlan, SerialEndpoint, TcpEndpoint
from energybid.core.settings import parse_toml
from energybid.drivers.modbus.proxy.plan import Allowed, Listen, ProxyPlan
from energybid.simulator.virtual import VirtualClock, run
from gateways import virtual_platform
from test_agent_buses import HEAD, METER
from test_agent_process import plan

BUS = '[[bus]]\nname = "b"\nkind = "modbus-rtu"\ndevice = "/dev/ttyUSB0"\n' + METER.format("m", 1)


def parse(*proxies):
    tables = [f"[[proxy]]\n{proxy}" for proxy in proxies]
    return parse_toml("gateway.toml", (HEAD + BUS + "\n".join(tables)).encode(), GatewayFile).proxy


def test_what_is_not_given_is_safe():
    (proxy,) = parse('bus = "b"\nport = 1502')
    assert proxy.plan() == ProxyPlan(bus="b", listen=Listen(host="127.0.0.1", port=1502), units=None)


def test_everything_can_be_given():
    (proxy,) = parse(
        """
bus = "b"
port = 1502
bind = "0.0.0.0"
clients = ["192.168.1.0/24", "fd00::/8"]
units = [1, 3]
rename = [{ unit = 101, to = 1 }]
allow = [{ unit = 3, table = "holding", first = 100, count = 2 }]
max_age = "5 s"
connections = 2
queue = 3
rate = 4
wait = "2 s"
timeout = "500 ms"
idle = "10 s"
share = 10
"""
    )
    assert proxy.plan() == ProxyPlan(
        bus="b",
        listen=Listen(host="0.0.0.0", port=1502),
        units=frozenset({1, 3}),
        renamed=((101, 1),),
        allow=(Allowed(unit=3, table="holding", first=100, count=2),),
        max_age_s=5.0,
        clients=("192.168.1.0/24", "fd00::/8"),
        connections=2,
        queue=3,
        rate=4,
        wait_s=2.0,
        timeout_s=0.5,
        idle_s=10.0,
        share=0.1,
    )


def test_a_master_may_be_on_a_further_line():
    (proxy,) = parse('bus = "b"\ndevice = "/dev/ttyUSB1"\nbaudrate = 19200\nparity = "E"')
    assert proxy.plan().listen == SerialEndpoint(device="/dev/ttyUSB1", baudrate=19_200, parity="E")
    assert proxy.plan().place == "/dev/ttyUSB1"


@pytest.mark.parametrize(
    ("proxies", "fault"),
    [
        (['bus = "b"'], "proxy[0]: a proxy has either a port or a device"),
        (['bus = "b"\nport = 1502\ndevice = "/dev/ttyUSB1"'], "either a port or a device"),
        (['bus = "other"\nport = 1502'], "proxy[0].bus: 'other' is no Modbus bus of this file"),
        (['bus = "b"\nport = 1502\nclients = ["192.168.1.1/24"]'], "proxy[0].clients[0]: 192.168.1.1/24 has host bits"),
        (['bus = "b"\nport = 1502'] * 2, "ports of proxies must be unique: 127.0.0.1:1502"),
        (['bus = "b"\ndevice = "/dev/ttyUSB0"'], "devices must be unique: /dev/ttyUSB0"),
        (['bus = "b"\nport = 1502\nrename = [{ unit = 1, to = 2 }, { unit = 1, to = 3 }]'], "a unit stands more than"),
        (
            ['bus = "b"\nport = 1\nallow = [{ unit = 1, table = "holding", first = 65535, count = 2 }]'],
            "proxy[0].allow[0]: ends behind address 65535",
        ),
    ],
)
def test_faults_are_named(proxies, fault):
    with pytest.raises(ConfigurationError) as caught:
        parse(*proxies)
    assert fault in str(caught.value)


WRITABLE = """
[[writable]]
name = "{}"
register = {}
type = "uint32"
scale = "1"
unit = "W"
minimum = "0"
maximum = "5000"
{}
"""


def test_masters_may_not_write_what_the_control_path_holds(tmp_path):
    (tmp_path / "log.pem").write_bytes(PrivateKey.from_entropy(bytes(48)).pem())
    profile = (files("energybid.drivers") / "profiles" / "abb-b23.toml").read_text()
    profile += WRITABLE.format("limit", 300, 'safe = "0"') + WRITABLE.format("period", 400, "")
    (tmp_path / "charger.toml").write_text(profile)
    path = tmp_path / "gateway.toml"
    head = HEAD + BUS.replace("abb-b23", "charger.toml") + '[[proxy]]\nbus = "b"\nport = 1502\nallow = [{}]\n'
    allow = '{{ unit = {}, table = "{}", first = {}, count = {} }}'.format
    apart = allow(1, "holding", 298, 2), allow(1, "holding", 302, 1), allow(2, "holding", 300, 2)
    others = allow(1, "coil", 300, 2), allow(1, "holding", 400, 2)
    path.write_text(head.format(", ".join((*apart, *others))))
    assert len(load_plan(path).proxies[0].allow) == 5
    path.write_text(head.format(", ".join((allow(2, "holding", 0, 1), allow(1, "holding", 301, 9)))))
    with pytest.raises(ConfigurationError) as caught:
        load_plan(path)
    (fault,) = caught.value.faults
    assert fault == (
        f"{path}: proxy[0].allow[1]: holds register 300 of unit 1, which is m/limit: "
        "the agent itself holds that; leave it out"
    )


def test_the_agent_lets_masters_in_and_says_so_and_closes_at_its_end(tmp_path):
    listening = []

    class Listener:
        port = 1502

        def close(self):
            listening.clear()

    async def serve(host, port, factory):
        listening.append((host, port))
        return Listener()

    async def main():
        stop = asyncio.Event()
        found = []
        bus = BusPlan(name="b", kind="modbus-tcp", endpoint=TcpEndpoint(host="x", port=1), meters=())
        proxy = ProxyPlan(bus="b", listen=Listen(host="127.0.0.1", port=1502), units=None)
        whole = replace(
            plan(tmp_path / "j"),
            buses=(bus,),
            proxies=(proxy,),
            drivers={"modbus-tcp": "energybid.drivers.modbus.driver:open_driver"},
            status=StatusPlan(path=str(tmp_path / "status.json"), interval_s=1.0),
        )
        asyncio.get_running_loop().call_later(3, lambda: found.extend(listening))
        asyncio.get_running_loop().call_later(4, stop.set)
        await run_agent(replace(virtual_platform(VirtualClock()), serve_bus=serve), whole, stop)
        return found

    assert run(main) == [("127.0.0.1", 1502)]
    assert listening == []
    assert '"proxies": [{"bus": "b", "place": "127.0.0.1:1502", "error": ""' in (tmp_path / "status.json").read_text()
