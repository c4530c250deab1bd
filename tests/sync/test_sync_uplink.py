"""The uplink against a real broker: what the port promises, and what happens when the broker is not nice."""

import asyncio
import contextlib
import gc
import pathlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from energybid.core.errors import UplinkDownError, UplinkRefusedError
from energybid.core.ports import Message, UplinkSettings, Will
from energybid.sync.mqtt import system as mqtt
from energybid.sync.mqtt.system import MqttUplink, connect_uplink
from mosquitto import Authority, Mosquitto, free_port

DEADLINE_S = 10


@pytest.fixture
def broker(tmp_path: pathlib.Path) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


def settings(port: int, client_id: str = "one", **more: Any) -> UplinkSettings:
    return UplinkSettings(**({"host": "127.0.0.1", "port": port, "client_id": client_id} | more))


async def take(uplink: MqttUplink, count: int) -> list[Message]:
    found: list[Message] = []
    async with asyncio.timeout(DEADLINE_S):
        async for message in uplink.messages():
            found.append(message)
            if len(found) == count:
                break
    return found


async def test_what_is_published_arrives_and_counts(broker: Mosquitto) -> None:
    async with connect_uplink(settings(broker.port)) as one, connect_uplink(settings(broker.port, "two")) as two:
        await two.subscribe(["a/+"])
        before = one.wire_bytes()
        await one.publish("a/b", b"x" * 1000)
        await one.publish("a/c", b"")
        assert await take(two, 2) == [Message("a/b", b"x" * 1000, retained=False), Message("a/c", b"", retained=False)]
        sent, received = (b - a for a, b in zip(before, one.wire_bytes(), strict=True))
        assert 1000 < sent < 1030
        assert 4 <= received <= 12
    assert one.wire_bytes()[0] > before[0] + 1000, "still known after the end"


async def test_retained_messages_that_come_before_the_iteration_are_not_lost(broker: Mosquitto) -> None:
    async with connect_uplink(settings(broker.port)) as one:
        for i in range(100):
            await one.publish(f"r/{i}", b"%d" % i, retain=True)
        await one.subscribe(["r/+"])
        await one.publish("other", b"")
        found = await take(one, 100)
    assert sorted(int(m.payload) for m in found) == list(range(100))
    assert all(m.retained for m in found)


async def test_both_versions_of_mqtt_are_spoken(broker: Mosquitto) -> None:
    async with connect_uplink(settings(broker.port, mqtt5=False)) as one:
        await one.subscribe(["a"])
        await one.publish("a", b"old")
        assert (await take(one, 1))[0].payload == b"old"
    assert "as one (p2" in (broker.folder / "mosquitto.log").read_text()


async def test_concurrent_publishes_are_all_acknowledged(broker: Mosquitto) -> None:
    async with connect_uplink(settings(broker.port)) as one:
        await one.subscribe(["a"])
        await asyncio.gather(*(one.publish("a", b"%d" % i) for i in range(300)))
        assert [int(m.payload) for m in await take(one, 300)] == list(range(300))


# ---------------------------------------------------------------- brokers that refuse, vanish or break the rules


@contextlib.asynccontextmanager
async def peer(*replies: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """A TCP server that answers each connection's first packet with the next of ``replies``, then closes on b""."""
    left = list(replies)
    got: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        got.append(await reader.read(4096))
        reply = left.pop(0) if left else b""
        if reply:
            writer.write(reply)
            await writer.drain()
        else:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], got
    finally:
        server.close()
        for writer in writers:
            writer.close()


def level(connect: bytes) -> int:
    """Protocol level of a CONNECT packet."""
    return connect[connect.index(b"MQTT") + 4]


async def test_falls_back_to_3_1_1_and_remembers() -> None:
    accepted = b"\x20\x02\x00\x00"
    async with peer(b"\x20\x02\x00\x01", accepted, accepted) as (port, got):
        for _ in range(2):
            async with connect_uplink(settings(port)):
                pass
    assert [level(packet) for packet in got if b"MQTT" in packet] == [5, 4, 4]


async def test_amqtt_does_not_answer_version_5(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_S", 0.5)
    from amqtt.broker import Broker

    port = free_port()
    plugins: dict[str, Any] = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
    server = Broker({"listeners": listeners, "plugins": plugins})
    await server.start()
    try:
        async with connect_uplink(settings(port)) as one:
            await one.subscribe(["a"])
            await one.publish("a", b"hello", retain=True)
            assert (await take(one, 1))[0].payload == b"hello"
    finally:
        await server.shutdown()


@pytest.mark.parametrize(("code", "refused"), [(1, False), (2, True), (3, False), (4, True), (5, True)])
async def test_a_refusal_is_told_from_an_outage(code: int, *, refused: bool) -> None:
    async with peer(b"\x20\x02\x00" + bytes([code])) as (port, _):
        with pytest.raises(UplinkDownError) as caught:
            await connect_uplink(settings(port, mqtt5=False)).__aenter__()
    assert isinstance(caught.value, UplinkRefusedError) == refused


async def test_server_unavailable_is_an_outage() -> None:
    async with peer(b"\x20\x03\x00\x88\x00") as (port, _):
        with pytest.raises(UplinkDownError, match="unavailable") as caught:
            await connect_uplink(settings(port)).__aenter__()
    assert not isinstance(caught.value, UplinkRefusedError)


@pytest.mark.parametrize("reply", [b"", b"\xff\xff\xff\xff\xff\xff", b"HTTP/1.1 400 Bad\r\n\r\n"])
async def test_a_peer_that_speaks_no_mqtt_is_down(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_S", 0.2)
    async with asyncio.timeout(DEADLINE_S), peer(reply) as (port, _):
        with pytest.raises(UplinkDownError):
            await connect_uplink(settings(port)).__aenter__()


async def test_a_peer_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "CONNECT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UplinkDownError):
            await connect_uplink(settings(silent.getsockname()[1])).__aenter__()
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(DEADLINE_S)
            while await asyncio.to_thread(connection.recv, 4096):
                pass  # until the client has closed it


async def test_nobody_listens() -> None:
    port = free_port()
    with pytest.raises(UplinkDownError, match=f"mqtt://127.0.0.1:{port}: .*refused"):
        await connect_uplink(settings(port)).__aenter__()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_name_that_can_be_no_hosts_is_told(*, tls: bool) -> None:
    with pytest.raises(UplinkDownError, match=r"broker\.\.example"):
        async with asyncio.timeout(DEADLINE_S), connect_uplink(settings(1, host="broker..example", tls=tls)):
            pytest.fail("connected")


async def test_a_cancelled_connection_is_not_left_behind() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        opening = asyncio.ensure_future(connect_uplink(settings(silent.getsockname()[1])).__aenter__())
        connection, _ = await asyncio.to_thread(silent.accept)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        with connection:
            connection.settimeout(DEADLINE_S)
            while await asyncio.to_thread(connection.recv, 4096):
                pass
    while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  whose end nobody tells
        await asyncio.sleep(0)
    gc.collect()
    assert not complaints, "the error of an attempt that nobody waits for is not logged as forgotten"


def dialling() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "mqtt-connect"]


def test_a_program_may_end_while_it_connects(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    begun = threading.Event()
    made = mqtt._Dial._made

    def slowly(dial: mqtt._Dial) -> socket.socket:
        begun.set()
        time.sleep(0.3)  # the network's time: the program has ended before
        return made(dial)

    async def program(port: int) -> None:
        opening = asyncio.ensure_future(connect_uplink(settings(port)).__aenter__())
        await asyncio.to_thread(begun.wait)
        opening.cancel()

    monkeypatch.setattr(mqtt._Dial, "_made", slowly)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        asyncio.run(program(silent.getsockname()[1]))
        for thread in dialling():
            thread.join(DEADLINE_S)
    gc.collect()  # what complains in a destructor would fail the test
    assert not caplog.records


@pytest.mark.parametrize(("backlog", "tls"), [(8, False), (8, True), (0, False)])
def test_a_program_ends_at_once_though_nobody_answers(backlog: int, *, tls: bool) -> None:
    """Some take the connection and say nothing, not even in TLS; one never takes it, for its backlog is full."""

    async def program(port: int) -> float:
        opening = asyncio.ensure_future(connect_uplink(settings(port, tls=tls)).__aenter__())
        if backlog:
            connection, _ = await asyncio.to_thread(silent.accept)
            others.append(connection)
        while not opening.done() and not (backlog or dialling()):  # noqa: ASYNC110  a thread tells nobody
            await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        return time.monotonic()

    others: list[socket.socket] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(backlog)
        for _ in range(0 if backlog else 3):
            others.append(socket.socket())
            others[-1].setblocking(False)  # noqa: FBT003
            others[-1].connect_ex(silent.getsockname())
        cancelled_s = asyncio.run(program(silent.getsockname()[1]))
        assert time.monotonic() - cancelled_s < mqtt.CONNECT_S / 4
    for connection in others:
        connection.close()
    for thread in dialling():
        thread.join(2 * mqtt.CONNECT_S)
    gc.collect()  # what complains in a destructor would fail the test


async def test_wrong_password_is_refused(tmp_path: pathlib.Path) -> None:
    with Mosquitto(tmp_path, password=("me", "secret")) as broker:
        async with connect_uplink(settings(broker.port, username="me", password="secret")):
            pass
        for wrong in ({}, {"username": "me", "password": "other"}):
            with pytest.raises(UplinkRefusedError, match="uthori"):
                await connect_uplink(settings(broker.port, **wrong)).__aenter__()


async def test_a_publish_that_is_not_allowed_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "acl").write_text("topic write good\n")
    with Mosquitto(tmp_path, extra=f"acl_file {tmp_path}/acl") as broker:
        async with connect_uplink(settings(broker.port)) as one:
            await one.publish("good", b"")
            with pytest.raises(UplinkRefusedError, match="publish on bad"):
                await one.publish("bad", b"")


async def test_a_killed_broker_wakes_every_waiter_and_a_new_connection_works(broker: Mosquitto) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(connect_uplink(settings(broker.port)))
        await one.subscribe(["a"])
        receiving = asyncio.ensure_future(anext(aiter(one.messages())))
        broker.kill()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(UplinkDownError, match="closed"):
                await receiving
        for call in (one.publish("a", b""), one.publish("a", b"", qos=0), one.subscribe(["b"]), take(one, 1)):
            with pytest.raises(UplinkDownError):
                await call
    broker.start()
    async with connect_uplink(settings(broker.port)) as one:
        await one.publish("a", b"")


async def test_a_publish_under_way_fails_at_once_when_the_connection_is_lost() -> None:
    async with peer(b"\x20\x03\x00\x00\x00") as (port, _), connect_uplink(settings(port)) as one:
        publishing = asyncio.ensure_future(one.publish("a", b""))
        await asyncio.sleep(0)
        one._client.drop("cut")
        async with asyncio.timeout(1):
            with pytest.raises(UplinkDownError, match="cut"):
                await publishing


async def test_a_broker_that_never_acknowledges_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "ACK_S", 0.1)
    async with peer(b"\x20\x03\x00\x00\x00") as (port, _), connect_uplink(settings(port)) as one:
        with pytest.raises(UplinkDownError, match="no acknowledgement"):
            await one.publish("a", b"")


async def test_the_will_is_published_when_the_connection_dies(broker: Mosquitto) -> None:
    will = Will("status", b"offline")
    async with connect_uplink(settings(broker.port, "watcher")) as watcher:
        await watcher.subscribe(["status"])
        async with connect_uplink(settings(broker.port, will=will)) as one:
            await one.publish("status", b"online", retain=True)
            assert (await take(watcher, 1))[0].payload == b"online"
        async with connect_uplink(settings(broker.port, will=will)) as one:
            one._client.drop("pulled")
            assert (await take(watcher, 1))[0].payload == b"offline", "and none when it left in order"
        async with connect_uplink(settings(broker.port, "late")) as late:
            await late.subscribe(["status"])
            assert await take(late, 1) == [Message("status", b"offline", retained=True)]


@pytest.mark.parametrize("version5", [True, False])
async def test_a_session_keeps_messages_that_came_meanwhile(broker: Mosquitto, *, version5: bool) -> None:
    async with connect_uplink(settings(broker.port, session_s=3600, mqtt5=version5)) as one:
        await one.subscribe(["a"])
    async with connect_uplink(settings(broker.port, "two")) as two:
        await two.publish("a", b"meanwhile")
    async with connect_uplink(settings(broker.port, session_s=3600, mqtt5=version5)) as one:
        assert (await take(one, 1))[0].payload == b"meanwhile"
    async with connect_uplink(settings(broker.port, mqtt5=version5)) as one:
        await one.subscribe(["b"])
        await one.publish("b", b"clean")
        assert (await take(one, 1))[0].payload == b"clean"


async def test_messages_not_taken_are_sent_again_and_bound_the_queue(broker: Mosquitto) -> None:
    async with connect_uplink(settings(broker.port, session_s=3600)) as one:
        await one.subscribe(["a"])
        async with connect_uplink(settings(broker.port, "two")) as two:
            for i in range(200):
                await two.publish("a", b"%d" % i)
        await one.publish("b", b"")  # a round trip behind everything that was under way
        assert one._client.inbox.qsize() == mqtt.RECEIVE_MAX
        assert [int(m.payload) for m in await take(one, 10)] == list(range(10))
        await one.publish("b", b"")
        one._client.drop("pulled")
    async with connect_uplink(settings(broker.port, session_s=3600)) as one:
        assert [int(m.payload) for m in await take(one, 190)] == list(range(10, 200))


async def test_beyond_the_queue_the_connection_is_given_up(broker: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "INBOX_MAX", 10)
    async with connect_uplink(settings(broker.port)) as one:
        await one.subscribe(["a"])
        with contextlib.suppress(UplinkDownError):
            for _ in range(12):
                await one.publish("a", b"")
        with pytest.raises(UplinkDownError, match="more messages came than were taken"):
            await take(one, 12)


async def test_payload_bound(broker: Mosquitto) -> None:
    async with connect_uplink(settings(broker.port)) as one:
        await one.subscribe(["a"])
        largest = bytes(mqtt.PACKET_MAX - mqtt.TOPIC_MAX - 16)
        await one.publish("a", largest)
        assert (await take(one, 1))[0].payload == largest
        with pytest.raises(ValueError, match="at most"):
            await one.publish("a", largest + b"x")


# ---------------------------------------------------------------- TLS


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path / "ca")


async def test_tls_with_client_certificates(tmp_path: pathlib.Path, authority: Authority) -> None:
    certificate, key = authority.issue("gateway", tmp_path)
    tls = {"tls": True, "ca": str(authority.path)}
    with Mosquitto(tmp_path / "broker", tls=authority, client_certificates=True) as broker:
        mine = {"certificate": str(certificate), "key": str(key)}
        async with connect_uplink(settings(broker.port, **tls, **mine)) as one:
            await one.subscribe(["a"])
            await one.publish("a", bytes(200_000))
            assert (await take(one, 1))[0].payload == bytes(200_000)
            assert one.wire_bytes()[0] > 200_000
        with pytest.raises(UplinkDownError):
            await connect_uplink(settings(broker.port, **tls)).__aenter__()


async def test_a_broker_whose_certificate_is_not_trusted_is_refused(
    tmp_path: pathlib.Path, authority: Authority
) -> None:
    stranger = Authority(tmp_path / "other")
    refused = pytest.raises(UplinkRefusedError, match="certificate verify failed")
    with Mosquitto(tmp_path / "broker", tls=authority) as broker, refused:
        await connect_uplink(settings(broker.port, tls=True, ca=str(stranger.path))).__aenter__()


async def test_missing_certificates_are_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UplinkRefusedError, match=r"nowhere\.pem"):
        await connect_uplink(settings(1, tls=True, ca=str(tmp_path / "nowhere.pem"))).__aenter__()
