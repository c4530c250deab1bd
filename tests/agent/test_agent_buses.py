"""Every kind of bus in gateway.toml: what the driver gets, and what is said of faults."""

import pytest
from energybid.agent.buses import NAME
from energybid.agent.config import GatewayFile, load_plan
from energybid.core.cose import EDDSA, PrivateKey
from energybid.core.errors import ConfigurationError
from energybid.core.ports import Rs485, SerialEndpoint, TcpEndpoint, TlsSettings, UdpEndpoint
from energybid.core.settings import parse_toml

HEAD = """
[gateway]
tenant = "demo"
id = "gw-1"
[keys]
log = "log.pem"
[journal]
path = "journal.db"
"""
METER = """
[[bus.meter]]
name = "{}"
profile = "abb-b23"
unit = {}
"""


def parse(*buses: str, unit: int = 1) -> GatewayFile:
    tables = [f'[[bus]]\nname = "b{n}"\n{bus}\n{METER.format(f"m{n}", unit)}' for n, bus in enumerate(buses)]
    return parse_toml("gateway.toml", (HEAD + "\n".join(tables)).encode(), GatewayFile)


def faults(*buses: str, unit: int = 1) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse(*buses, unit=unit)
    return str(caught.value)


@pytest.mark.parametrize(
    ("bus", "endpoint"),
    [
        ('kind = "modbus-tcp"\nhost = "h"', TcpEndpoint(host="h", port=502)),
        ('kind = "modbus-tcp"\nhost = "h"\nport = 5020\ntls = {}', TcpEndpoint(host="h", port=5020, tls=TlsSettings())),
        (
            'kind = "modbus-tcp"\nhost = "h"\ntls = { ca = "ca.pem", certificate = "/c.pem", server_name = "n" }',
            TcpEndpoint(host="h", port=802, tls=TlsSettings(ca="base/ca.pem", certificate="/c.pem", server_name="n")),
        ),
        ('kind = "modbus-udp"\nhost = "h"', UdpEndpoint(host="h", port=502)),
        ('kind = "modbus-rtu-tcp"\nhost = "h"\nport = 4001', TcpEndpoint(host="h", port=4001, baudrate=9600)),
        ('kind = "modbus-rtu"\ndevice = "line.tty"', SerialEndpoint(device="line.tty", baudrate=9600)),
        (
            'kind = "modbus-rtu"\ndevice = "usb:FT1"\nbaudrate = 19200\nparity = "E"\nrs485 = true',
            SerialEndpoint(device="usb:FT1", baudrate=19_200, parity="E", rs485=Rs485()),
        ),
        (
            'kind = "modbus-rtu"\ndevice = "/dev/ttyS0"\nrs485 = { rts_on_send = false, delay_after_send = "2 ms" }',
            SerialEndpoint(device="/dev/ttyS0", baudrate=9600, rs485=Rs485(rts_on_send=False, delay_after_send_ms=2)),
        ),
        (
            'kind = "modbus-ascii"\ndevice = "/dev/ttyS0"\nrs485 = false',
            SerialEndpoint(device="/dev/ttyS0", baudrate=9600, parity="E", data_bits=7),
        ),
    ],
)
def test_the_endpoint_of_every_kind(bus, endpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tmp_path.relative_to(tmp_path) / "base"
    assert parse(bus).bus[0].endpoint(base) == endpoint


@pytest.mark.parametrize(
    ("bus", "says"),
    [
        ('kind = "modbus-smoke"\nhost = "h"', "does not match any of the expected tags"),
        ('kind = "modbus-tcp"\nhost = "h"\nbaudrate = 9600', "bus[0].modbus-tcp.baudrate: no such key"),
        ('kind = "modbus-tcp"\nhost = "h"\npause = "11 s"', "bus[0].modbus-tcp.pause: "),
        ('kind = "modbus-tcp"\nhost = "h"\ntls = { key = "k" }', "key: there is no certificate to which it belongs"),
        ('kind = "modbus-tcp"\nhost = "h"\ntls = { cipher = "k" }', "tls.cipher: no such key"),
        ('kind = "modbus-udp"\nhost = ""', "bus[0].modbus-udp.host: "),
        ('kind = "modbus-rtu-tcp"\nhost = "h"', "bus[0].modbus-rtu-tcp.port: is missing"),
        ('kind = "modbus-rtu-tcp"\nhost = "h"\nport = 1\nin_flight = 2', "in_flight: no such key"),
        ('kind = "modbus-rtu"\ndevice = "usb:"', "device: write usb: and the adapter's USB serial number"),
        ('kind = "modbus-rtu"\ndevice = "/dev/"', "device: is a folder"),
        ('kind = "modbus-rtu"\ndevice = "/dev/x"\nrs485 = { rts = true }', "rs485.rts: no such key"),
        ('kind = "modbus-rtu"\ndevice = "/dev/x"\nrs485 = { delay_before_send = 2 }', "rs485.delay_before_send: write"),
        ('kind = "modbus-ascii"\ndevice = "/dev/x"\ndata_bits = 6', "data_bits: "),
    ],
)
def test_faults_are_named(bus, says):
    assert says in faults(bus)


@pytest.mark.parametrize(
    "bus",
    [
        'kind = "modbus-rtu"\ndevice = "/dev/x"',
        'kind = "modbus-ascii"\ndevice = "/dev/x"',
        'kind = "modbus-rtu-tcp"\nhost = "h"\nport = 1',
    ],
)
def test_units_on_serial_lines(bus):
    assert "meter[0].unit: units on a serial line are 1 to 247 (found 0)" in faults(bus, unit=0)


def test_two_buses_do_not_share_a_port():
    rtu, ascii_ = (f'kind = "modbus-{kind}"\ndevice = "/dev/x"' for kind in ("rtu", "ascii"))
    assert "devices must be unique: /dev/x stands more than once" in faults(rtu, ascii_)


def test_limits_reach_the_plan_and_certificates_are_checked(tmp_path):
    (tmp_path / "log.pem").write_bytes(PrivateKey.from_entropy(bytes(48), EDDSA).pem())
    bus = '[[bus]]\nname = "{}"\nkind = "{}"\nhost = "h"\nport = 1\npause = "20 ms"\n{}\n' + METER
    good = HEAD + bus.format("a", "modbus-udp", "in_flight = 4", "m", 3) + bus.format("b", "modbus-rtu-tcp", "", "n", 1)
    path = tmp_path / "gateway.toml"
    path.write_text(good)
    first, second = load_plan(path).buses
    assert (first.kind, first.in_flight, first.pause_s) == ("modbus-udp", 4, 0.02)
    assert (second.kind, second.in_flight, second.pause_s) == ("modbus-rtu-tcp", 1, 0.02)
    path.write_text(HEAD + bus.format("a", "modbus-tcp", 'tls = { ca = "none.pem" }', "m", 3))
    with pytest.raises(ConfigurationError) as caught:
        load_plan(path)
    assert f"gateway.toml: bus[0].tls: {tmp_path}/none.pem: No such file or directory" in str(caught.value)


def test_names():
    assert NAME.fullmatch("main-panel_1.2")
    assert not NAME.fullmatch("a/b")
