"""Where a bus is, as one word on a command line: ``/dev/ttyUSB0``, ``tcp://10.0.0.5``, ``usb:FT1234``.

Here lives the reading of that word. It opens nothing, and does not look whether the place is there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, urlsplit

from energybid.core.errors import ConfigurationError
from energybid.core.ports import Endpoint, SerialEndpoint, TcpEndpoint, TlsSettings, UdpEndpoint

if TYPE_CHECKING:
    import argparse

TCP, RTU, ASCII, RTU_TCP, UDP = "modbus-tcp", "modbus-rtu", "modbus-ascii", "modbus-rtu-tcp", "modbus-udp"
"""The kinds of a Modbus bus."""

MODBUS_PORT, SECURE_PORT = 502, 802
"""Registered with IANA as mbap and mbap-s."""
ASCII_DATA_BITS = 7
"""MODBUS over Serial Line V1.02 §2.5.2."""

FORMS = (
    "/dev/ttyUSB0, usb:SERIALNUMBER, ascii:/dev/ttyUSB0, "
    "tcp://HOST[:502], tls://HOST[:802], rtu-tcp://HOST:PORT, udp://HOST[:502]"
)
"""What a target may look like, for help texts."""

_SCHEMES = {"tcp": (TCP, MODBUS_PORT), "tls": (TCP, SECURE_PORT), "rtu-tcp": (RTU_TCP, 0), "udp": (UDP, MODBUS_PORT)}
_USB = re.compile(r"usb:[^/#\s]+(#[0-9]{1,2})?")


class BusTarget(NamedTuple):
    """A bus to open: ``BusPlan(kind=target.kind, endpoint=target.endpoint, ...)``."""

    kind: str
    """Name of the driver's entry point."""
    endpoint: Endpoint


def parse_target(
    text: str, *, baudrate: int = 9600, parity: str = "N", stop_bits: int = 1, tls: TlsSettings | None = None
) -> BusTarget:
    """Read a target.

    Args:
        text: One of ``FORMS``; IPv6 addresses stand in brackets.
        baudrate: Of a serial line; for ``rtu-tcp`` of the line behind the gateway.
        parity: Of a serial line: N, E or O.
        stop_bits: Of a serial line.
        tls: Certificates for ``tls://``; the system's authorities and no client certificate where they are not given.

    Raises:
        ConfigurationError: It is none of these; the message says what it may be.
    """
    if "://" in text:
        return _network(text, baudrate, tls or TlsSettings())
    kind, device = (ASCII, text.removeprefix("ascii:")) if text.startswith("ascii:") else (RTU, text)
    fault = device_fault(device)
    if not fault and "/" not in device and not device.startswith("usb:"):
        fault = f"is no serial port and no address; write one of: {FORMS}; a file here as ./{device}"
    if fault:
        raise ConfigurationError([f"{text}: {fault}"])
    data_bits = ASCII_DATA_BITS if kind == ASCII else 8
    endpoint = SerialEndpoint(device=device, baudrate=baudrate, parity=parity, stop_bits=stop_bits, data_bits=data_bits)
    return BusTarget(kind, endpoint)


def add_tls_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a command that takes a target: certificates for ``tls://``; ``tls_of`` reads them."""
    group = parser.add_argument_group("tls://", "files in PEM, as for [bus.tls] in gateway.toml")
    group.add_argument("--ca", metavar="FILE", help="certificates to trust (default: the system's)")
    group.add_argument("--certificate", metavar="FILE", help="ours, where the server wants one")
    group.add_argument("--key", metavar="FILE", help="its key (default: in the same file)")
    group.add_argument("--server-name", metavar="NAME", help="the server's name in its certificate (default: HOST)")


def tls_of(arguments: argparse.Namespace) -> TlsSettings:
    """What was given of ``add_tls_arguments``."""
    return TlsSettings(
        ca=arguments.ca, certificate=arguments.certificate, key=arguments.key, server_name=arguments.server_name
    )


def device_fault(device: str) -> str | None:
    """What is wrong with the name of a serial port; None where it can be one."""
    if device.startswith("usb:"):
        if _USB.fullmatch(device):
            return None
        return "write usb: and the adapter's USB serial number, such as usb:FT1234 (usb:FT1234#1 for its second port)"
    return "is a folder" if device.endswith("/") else "holds a zero byte" if "\0" in device else None


def _network(text: str, baudrate: int, tls: TlsSettings) -> BusTarget:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ConfigurationError([f"{text}: {error}"]) from None
    if parts.scheme not in _SCHEMES or not _host_only(parts):
        raise ConfigurationError([f"{text}: write one of: {FORMS}"])
    kind, usual = _SCHEMES[parts.scheme]
    port = usual if port is None else port
    if not port:
        raise ConfigurationError([f"{text}: needs a port, such as {parts.scheme}://{parts.netloc.rstrip(':')}:4001"])
    host = parts.hostname or ""
    if kind == UDP:
        return BusTarget(kind, UdpEndpoint(host=host, port=port))
    secured, behind = tls if parts.scheme == "tls" else None, baudrate if kind == RTU_TCP else 0
    return BusTarget(kind, TcpEndpoint(host=host, port=port, tls=secured, baudrate=behind))


def _host_only(parts: SplitResult) -> bool:
    """Only host and port: a path would be passed over in silence."""
    rest = (parts.path.rstrip("/"), parts.query, parts.fragment, parts.username, parts.password)
    return bool(parts.hostname) and not any(rest)
