"""The market's topics on a real broker: on a gateway's one connection, under the access control that the docs show."""

import asyncio
import json
import pathlib
import re
import subprocess
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest
from energybid.agent import system
from energybid.agent.config import MARKET_SESSION_S, load_plan
from energybid.agent.plan import UplinkPlan
from energybid.agent.upload import Uploader
from energybid.core.errors import UplinkDownError, UplinkRefusedError
from energybid.core.ports import Message, UplinkSettings
from energybid.sync.mqtt.system import connect_uplink
from energybid.sync.topics import every, market_topics, topics_for
from gateways import HEADEND, recording
from mosquitto import Mosquitto
from sites import example, site

DEADLINE_S = 20
DOCS = pathlib.Path(__file__).parents[2] / "docs"
OURS, OTHERS, MARKET = topics_for("demo", "gw-1"), topics_for("demo", "gw-2"), market_topics("demo/power")
USERS = ("demo/gw-1", "demo/gw-2", "headend", "market")


def broker(folder, *, acl):
    """A broker with access control: the users of the docs, their names as passwords."""
    folder.mkdir()
    (folder / "users").write_text("".join(f"{user}:{user}\n" for user in USERS))
    subprocess.run(["mosquitto_passwd", "-U", str(folder / "users")], check=True, capture_output=True)
    (folder / "acl").write_text(acl)
    return Mosquitto(folder, extra=f"password_file {folder}/users\nacl_file {folder}/acl")


def documented():
    (rules,) = re.findall(r"```\n(pattern write.*?)```", (DOCS / "topics.md").read_text(), re.DOTALL)
    return rules


def settings(there, user, session_s=0):
    client = "energybid-" + user.replace("/", "-")
    return UplinkSettings(
        host="127.0.0.1", port=there.port, client_id=client, username=user, password=user, session_s=session_s
    )


async def first(uplink, count=1):
    found = []
    async with asyncio.timeout(DEADLINE_S):
        async for message in uplink.messages():
            found.append(message)
            if len(found) == count:
                return found
    return found


async def test_the_access_control_of_the_docs_lets_each_do_its_part_and_no_more(tmp_path):
    with broker(tmp_path / "broker", acl=documented()) as there:
        async with AsyncExitStack() as stack:
            gateway, other, headend, market = [
                await stack.enter_async_context(connect_uplink(settings(there, user))) for user in USERS
            ]
            await gateway.subscribe([OURS.receipt, OURS.award, OURS.statement, *MARKET])
            await market.subscribe([every("bid", "demo"), every("dispatch", "demo")])
            await headend.subscribe([every("log")])
            for topic in (*MARKET, OURS.award, OURS.statement):
                await market.publish(topic, topic.encode())
            await headend.publish(OURS.receipt, OURS.receipt.encode(), retain=True)
            assert {message.topic for message in await first(gateway, 6)} == {
                OURS.receipt, OURS.award, OURS.statement, *MARKET,
            }  # fmt: skip
            for topic in (OURS.bid, OURS.dispatch, OURS.log, OURS.status):
                await gateway.publish(topic, b"mine")
            assert [message.topic for message in await first(market, 2)] == [OURS.bid, OURS.dispatch]
            assert [message.topic for message in await first(headend)] == [OURS.log]
            for who, topic in (
                *((gateway, topic) for topic in (OURS.award, OURS.statement, OURS.receipt, *MARKET, OTHERS.bid)),
                *((market, topic) for topic in (OURS.bid, OURS.log, OURS.receipt, "energybid/1/other/gw-1/award")),
                *((headend, topic) for topic in (OURS.award, MARKET.round)),
            ):
                with pytest.raises(UplinkRefusedError):
                    await who.publish(topic, b"not mine")
            with suppress(UplinkRefusedError):  # some brokers grant what they then do not deliver
                await other.subscribe([OURS.award, OURS.bid])
            await market.publish(OURS.award, b"for one")
            await market.publish(OTHERS.award, b"for two")
            await other.subscribe([OTHERS.award, MARKET.round])
            await market.publish(MARKET.round, b"for all")
            assert [message.topic for message in await first(other)] == [MARKET.round]


class Part:
    """Another part of the agent: keeps what it is given."""

    def __init__(self):
        self.given = asyncio.Queue()

    async def take(self, message):
        self.given.put_nowait(message)

    async def next(self):
        async with asyncio.timeout(DEADLINE_S):
            return await self.given.get()


@asynccontextmanager
async def sharing(there, path):
    """A gateway's uploader on a real broker, with a part that shares its connection, and its journal."""
    platform = system.platform()
    part, connected = Part(), asyncio.Event()
    async with recording(platform, path, commit_interval_s=0.2) as recorder:
        uplink = settings(there, "demo/gw-1", MARKET_SESSION_S)
        plan = UplinkPlan(settings=uplink, batch_interval_s=0.1, window=4, receipt_timeout_s=60.0)
        uploader = Uploader(platform, recorder, plan, OURS, HEADEND.public)
        uploader.also([*MARKET, OURS.award, OURS.statement], part.take)
        uploader.on_connect.append(connected.set)
        task = asyncio.create_task(uploader.run())
        try:
            yield uploader, part, connected
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def waited(event):
    async with asyncio.timeout(DEADLINE_S):
        await event.wait()
    event.clear()


async def gone(uploader):
    with suppress(UplinkDownError):
        async with asyncio.timeout(DEADLINE_S):
            while True:
                await uploader.publish(OURS.bid, b"is anybody there")


async def test_a_part_gets_its_messages_and_is_heard_over_a_broker_that_is_killed(tmp_path):
    with broker(tmp_path / "broker", acl=documented()) as there:
        async with connect_uplink(settings(there, "market")) as market:
            await market.publish(MARKET.round, b"the round", retain=True)
            await market.subscribe([every("bid", "demo")])
            async with sharing(there, tmp_path / "j") as (uploader, part, connected):
                await waited(connected)
                assert await part.next() == Message(MARKET.round, b"the round", retained=True)
                await market.publish(OURS.award, b"the award")
                assert await part.next() == Message(OURS.award, b"the award", retained=False)
                await uploader.publish(OURS.bid, b"a bid")
                assert await first(market) == [Message(OURS.bid, b"a bid", retained=False)]
                with pytest.raises(UplinkRefusedError):
                    await uploader.publish(OURS.award, b"not mine to award")
                assert uploader.connected
                there.stop()
                await gone(uploader)
                with pytest.raises(UplinkDownError):
                    await uploader.publish(OURS.bid, b"nobody is there")
                there.start()
                await waited(connected)
                await uploader.publish(OURS.bid, b"another bid")
                assert await part.next() == Message(MARKET.round, b"the round", retained=True), "it was not lost"


def test_a_gateway_asks_for_a_session_only_where_it_is_in_a_market(tmp_path):
    sessions = []
    for text in (example(), example().partition("[market]")[0]):
        uplink = load_plan(site(tmp_path, text)).uplink
        assert uplink is not None
        sessions.append(uplink.settings.session_s)
    assert sessions == [MARKET_SESSION_S, 0]


async def test_what_the_market_says_while_the_gateway_is_away_waits_at_the_broker(tmp_path):
    with broker(tmp_path / "broker", acl=documented()) as there:
        async with connect_uplink(settings(there, "market")) as market:
            async with sharing(there, tmp_path / "j") as (_, _, connected):
                await waited(connected)
            await market.publish(OURS.statement, b"the statement")
            async with sharing(there, tmp_path / "j") as (_, part, _):
                assert await part.next() == Message(OURS.statement, b"the statement", retained=False)


async def test_a_broker_that_gives_the_market_nothing_still_takes_the_log(tmp_path):
    acl = "\n".join(line for line in documented().splitlines() if "award" not in line and "/round" not in line)
    with broker(tmp_path / "broker", acl=acl) as there:
        async with connect_uplink(settings(there, "headend")) as headend:
            await headend.subscribe([every("log"), every("status")])
            async with sharing(there, tmp_path / "j") as (uploader, part, connected):
                await waited(connected)
                assert [message.topic for message in await first(headend)] == [OURS.log]
                uploader.more_status = lambda: {"market": {"name": "demo/power"}}
                await uploader.publish(OURS.status, uploader.status_payload("online"), retain=True)
                assert uploader.connected
                assert part.given.empty()
                assert json.loads(uploader.status_payload("online"))["market"] == {"name": "demo/power"}
