"""The word that names a bus on a command line."""

import argparse
import contextlib

import pytest
from energybid.core.errors import ConfigurationError
from energybid.core.ports import SerialEndpoint, TcpEndpoint, TlsSettings, UdpEndpoint
from energybid.drivers.target import add_tls_arguments, parse_target, tls_of
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "kind", "endpoint"),
    [
        ("/dev/ttyUSB0", "modbus-rtu", SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)),
        ("./line", "modbus-rtu", SerialEndpoint(device="./line", baudrate=9600)),
        ("usb:FT1234", "modbus-rtu", SerialEndpoint(device="usb:FT1234", baudrate=9600)),
        ("usb:A1:B2#3", "modbus-rtu", SerialEndpoint(device="usb:A1:B2#3", baudrate=9600)),
        ("ascii:/dev/ttyS1", "modbus-ascii", SerialEndpoint(device="/dev/ttyS1", baudrate=9600, data_bits=7)),
        ("tcp://meter.local", "modbus-tcp", TcpEndpoint(host="meter.local", port=502)),
        ("tcp://10.0.0.5:5020/", "modbus-tcp", TcpEndpoint(host="10.0.0.5", port=5020)),
        ("tcp://[fe80::1]:503", "modbus-tcp", TcpEndpoint(host="fe80::1", port=503)),
        ("tls://meter", "modbus-tcp", TcpEndpoint(host="meter", port=802, tls=TlsSettings())),
        ("rtu-tcp://moxa:4001", "modbus-rtu-tcp", TcpEndpoint(host="moxa", port=4001, baudrate=9600)),
        ("udp://meter", "modbus-udp", UdpEndpoint(host="meter", port=502)),
    ],
)
def test_a_target_names_a_kind_and_an_endpoint(text, kind, endpoint):
    assert parse_target(text) == (kind, endpoint)


def test_the_lines_settings_and_the_certificates_are_taken_over():
    line = parse_target("/dev/ttyS0", baudrate=19200, parity="E", stop_bits=2).endpoint
    assert line == SerialEndpoint(device="/dev/ttyS0", baudrate=19200, parity="E", stop_bits=2)
    tls = TlsSettings(ca="ca.pem")
    assert parse_target("tls://meter", tls=tls).endpoint == TcpEndpoint(host="meter", port=802, tls=tls)
    assert parse_target("tcp://meter", tls=tls).endpoint == TcpEndpoint(host="meter", port=502)


def test_certificates_from_the_command_line():
    parser = argparse.ArgumentParser()
    add_tls_arguments(parser)
    assert tls_of(parser.parse_args([])) == TlsSettings()
    given = parser.parse_args(["--ca", "a", "--certificate", "b", "--key", "c", "--server-name", "d"])
    assert tls_of(given) == TlsSettings(ca="a", certificate="b", key="c", server_name="d")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10.0.0.5", "tcp://HOST"),
        ("", "write one of"),
        ("/dev/", "is a folder"),
        ("./a\0", "zero byte"),
        ("usb:", "serial number"),
        ("usb:A#x", "serial number"),
        ("http://meter", "write one of"),
        ("tcp://", "write one of"),
        ("tcp://meter/unit/3", "write one of"),
        ("tcp://user@meter", "write one of"),
        ("tcp://meter:99999", "Port"),
        ("tcp://meter:x", "Port"),
        ("tcp://[::1", "IPv6"),
        ("tcp://meter:0", "needs a port"),
        ("rtu-tcp://moxa", "needs a port, such as rtu-tcp://moxa:4001"),
    ],
)
def test_what_is_no_target_is_refused_with_the_way_out(text, says):
    with pytest.raises(ConfigurationError) as caught:
        parse_target(text)
    assert says in str(caught.value)


@settings(max_examples=100)
@given(st.text(max_size=30) | st.builds("{}://{}".format, st.sampled_from(["tcp", "udp"]), st.text(max_size=30)))
def test_any_text_is_a_target_or_a_configuration_error(text):
    with contextlib.suppress(ConfigurationError):
        parse_target(text)
