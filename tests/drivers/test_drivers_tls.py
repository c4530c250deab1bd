"""Modbus/TCP Security: mutual TLS with our server and a stranger's; a refusal says why and what to do."""

import asyncio
import re
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Authority, private_key
from cryptography.hazmat.primitives.asymmetric import ec
from energybid.core.errors import BusDownError
from energybid.core.ports import BusPlan, Driver, TcpEndpoint, TlsSettings
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.framing import MbapFramer
from energybid.drivers.system import open_bus
from energybid.drivers.tls import client_context, explain
from energybid.simulator.system import serve_tcp, tls_context
from modbus_peers import Peer, bus_plan, reply
from pymodbus.server import ModbusTlsServer
from pymodbus.simulator import DataType, SimData, SimDevice

RIGHT = ((1 << 16) + 0, (1 << 16) + 100)


class Meter(asyncio.Protocol):
    """Answers with unit and address, as the other tests' peers do."""

    def __init__(self) -> None:
        self.framer = MbapFramer()

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        for frame in self.framer.feed(data):
            self.transport.write(reply(frame, frame.unit.to_bytes(2, "big") + frame.pdu[1:3]))


@asynccontextmanager
async def served(certificate: str, key: str, ca: str | None = None) -> AsyncIterator[int]:
    # A refused handshake is the server's to tell as well; here the client's word counts.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    server, port = await serve_tcp(Meter, "127.0.0.1", 0, tls_context(certificate, key, ca))
    yield port
    server.close()
    await asyncio.sleep(0)


def secured(port: int, tls: TlsSettings, host: str = "127.0.0.1") -> tuple[Driver, BusPlan]:
    plan = replace(bus_plan(), endpoint=TcpEndpoint(host=host, port=port, tls=tls))
    return open_driver(replace(Peer(lambda _: ()).platform(), open_bus=open_bus), plan), plan


async def why(port: int, tls: TlsSettings, host: str = "127.0.0.1") -> str:
    """Why a poll does not succeed; with TLS 1.3 a server refuses only after the connection is made."""
    driver, plan = secured(port, tls, host)
    try:
        with pytest.raises(BusDownError) as caught:
            await driver.poll(plan.meters[0], 0)
    finally:
        await driver.close()
    return str(caught.value)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ca")


async def test_both_sides_show_their_certificates(authority):
    certificate, key = authority.sign("gateway", role="Operator")
    tls = TlsSettings(ca=authority.path, certificate=certificate, key=key)
    async with served(*authority.sign("meter", address="127.0.0.1"), authority.path) as port:
        driver, plan = secured(port, tls)
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT
        await driver.close()


async def test_a_devices_own_certificate_may_be_trusted_and_another_name_expected(authority):
    certificate, key = authority.sign("meter")
    async with served(certificate, key) as port:
        driver, plan = secured(port, TlsSettings(ca=certificate, server_name="meter"))
        assert (await driver.poll(plan.meters[0], 0)).values == RIGHT
        await driver.close()


async def test_a_server_that_ca_does_not_know(authority, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    async with served(*stranger.sign("meter", address="127.0.0.1")) as port:
        text = await why(port, TlsSettings(ca=authority.path))
        assert text.startswith(
            f"bus: no connection to 127.0.0.1 port {port}: the server's certificate is not trusted: "
        )
        assert "it is signed by nobody in ca" in text
        assert "not trusted" in await why(port, TlsSettings())  # the system's authorities


@pytest.mark.parametrize(("days", "says"), [(-1, "it has expired: renew it"), (2, "it is not valid yet: ")])
async def test_a_certificate_out_of_its_time(authority, days, says):
    async with served(*authority.sign("meter", address="127.0.0.1", days=days)) as port:
        text = await why(port, TlsSettings(ca=authority.path))
    assert says in text
    assert "this machine's clock" in text


async def test_a_certificate_for_another_host(authority):
    async with served(*authority.sign("meter", address="127.0.0.9")) as port:
        text = await why(port, TlsSettings(ca=authority.path))
        assert "it is not for 127.0.0.1: connect to the name that it bears, or set server_name in tls" in text
        assert "it is not for other: " in await why(port, TlsSettings(ca=authority.path, server_name="other"))


@contextmanager
def refusing(certificate: str, key: str, ca: str) -> Iterator[int]:
    """A server in a thread, that tells whom it refuses: asyncio's closes without a word."""
    context = tls_context(certificate, key, ca)

    def serve() -> None:
        connection, _ = listener.accept()
        with context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False) as secured:
            with suppress(ssl.SSLError):
                secured.do_handshake()
            with suppress(OSError):  # what was not read would make the system take back the server's last word
                while socket.socket.recv(secured, 4096):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


async def test_a_server_that_wants_a_clients_certificate(authority):
    with refusing(*authority.sign("meter", address="127.0.0.1"), authority.path) as port:
        text = await why(port, TlsSettings(ca=authority.path))
    assert text.endswith("the server wants a certificate of the client: set certificate and key in tls")


async def test_a_server_that_does_not_know_who_signed_the_clients_certificate(authority, tmp_path):
    certificate, key = Authority(tmp_path, "stranger").sign("gateway")
    with refusing(*authority.sign("meter", address="127.0.0.1"), authority.path) as port:
        text = await why(port, TlsSettings(ca=authority.path, certificate=certificate, key=key))
    assert "the server does not know who signed our certificate: enter that authority in the server" in text


async def test_a_server_that_refuses_us_without_a_word(authority):
    async with served(*authority.sign("meter", address="127.0.0.1"), authority.path) as port:
        text = await why(port, TlsSettings(ca=authority.path))
    assert text.endswith("closed the connection before it said anything: does it want a certificate of the client?")


async def test_a_server_that_speaks_no_tls():
    async def plain(reader, writer):
        with suppress(OSError):
            await reader.read(100)
            writer.write(b"\x00\x01\x00\x00\x00\x03\x01\x83\x01")
            await reader.read(100)
            writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        text = await why(server.sockets[0].getsockname()[1], TlsSettings())
    assert "the server does not speak TLS on this port: is it plain Modbus TCP" in text


async def test_a_strangers_server(authority):
    certificate, key = authority.sign("meter", address="127.0.0.1")
    context = tls_context(certificate, key, authority.path)
    device = SimDevice(1, [SimData(0, count=200, values=7, datatype=DataType.REGISTERS)])
    server = ModbusTlsServer(device, address=("127.0.0.1", 0), sslctx=context)
    await server.serve_forever(background=True)
    port = server.transport.sockets[0].getsockname()[1]
    mine = authority.sign("gateway")
    driver, plan = secured(port, TlsSettings(ca=authority.path, certificate=mine[0], key=mine[1]))
    assert (await driver.poll(plan.meters[0], 0)).values == ((7 << 16) + 7,) * 2
    await driver.close()
    await server.shutdown()


# ---------------------------------------------------------------- files


def faulty(tmp_path: Path, authority: Authority, what: str) -> tuple[TlsSettings, str]:
    certificate, key = authority.sign("gateway")
    _, other = authority.sign("other")
    missing, text = str(tmp_path / "missing.pem"), tmp_path / "text.pem"
    text.write_text("no certificate")
    locked = private_key(tmp_path / "locked.key", ec.generate_private_key(ec.SECP256R1()), b"secret")
    return {
        "no ca": (TlsSettings(ca=missing), f"{missing}: No such file or directory"),
        "ca is none": (TlsSettings(ca=str(text)), f"{text}: holds no PEM certificate"),
        "no certificate": (TlsSettings(certificate=missing), f"{missing}: No such file or directory"),
        "no key": (TlsSettings(certificate=certificate, key=missing), f"{missing}: No such file or directory"),
        "other key": (TlsSettings(certificate=certificate, key=other), f"{other}: is not the key of {certificate}"),
        "locked key": (TlsSettings(certificate=certificate, key=locked), f"{locked}: the key is encrypted"),
        "no PEM": (TlsSettings(certificate=str(text), key=key), f"{key}: no PEM certificate and key that fit"),
    }[what]


@pytest.mark.parametrize(
    "what", ["no ca", "ca is none", "no certificate", "no key", "other key", "locked key", "no PEM"]
)
async def test_a_file_that_can_not_be_used_is_named(tmp_path, authority, what):
    settings, says = faulty(tmp_path, authority, what)
    with pytest.raises(ValueError, match=re.escape(says)):
        client_context(settings)
    with pytest.raises(BusDownError, match=re.escape(f"no connection to h port 802: {says}")):
        await open_bus(TcpEndpoint(host="h", port=802, tls=settings), asyncio.Protocol)


def test_key_and_certificate_may_share_a_file(authority):
    certificate, key = authority.sign("gateway")
    Path(certificate).write_text(Path(certificate).read_text() + Path(key).read_text())
    context = client_context(TlsSettings(certificate=certificate))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_what_is_not_known_is_told_as_it_is():
    assert explain(ssl.SSLError(1, "odd"), "x") == "TLS failed: odd"
    assert explain(ConnectionResetError(104, "Connection reset by peer"), "x") == "Connection reset by peer"
