"""The market as a process runs it, at the bytes on a real broker: rounds, bids, awards, kills and lost connections."""

import asyncio
import os
import random
import sys
from collections import defaultdict
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import apsw
import pytest
from energybid.core.errors import JournalError, UplinkDownError
from energybid.core.ports import UplinkSettings
from energybid.simulator.market.operator import Operator
from energybid.simulator.market.service import Service
from energybid.simulator.market.store import Store
from energybid.simulator.market.system import RealWorld
from energybid.sync import market
from energybid.sync.market import Award, Prices, Round, Verdict
from energybid.sync.system import Worker, connect_uplink
from energybid.sync.topics import market_topics
from hand_made import MARKET, MARKET_KEY, Gateway
from mosquitto import Mosquitto
from test_market_operator import TERMS

DEADLINE_S = 60
PLACES = os.pathsep.join(str(Path(__file__).parent.parent / name) for name in ("market", "."))
QUICK = replace(TERMS, period_ms=1_000, announce_ms=900, gate_ms=300)
EVERY = market_topics(MARKET)


@asynccontextmanager
async def running(path, broker, *gateways, world=None):
    """A market as a task, with its events; killed at the end."""
    store = Store.open(apsw.Connection(path), path)
    worker = Worker("market")
    operator = Operator(store, QUICK, [gateway.member for gateway in gateways], MARKET_KEY)
    settings = UplinkSettings(host="127.0.0.1", port=broker.port, client_id="market", session_s=60)
    service = Service(world or RealWorld(random=random.Random(1), offload=worker), settings, operator, store)
    service.events = []
    service.on_event = service.events.append
    task = asyncio.ensure_future(service.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await service.connected.wait()
            yield service
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        worker.close()
        store.close()


@asynccontextmanager
async def at(broker, gateway):
    """A gateway's connection."""
    settings = UplinkSettings(host="127.0.0.1", port=broker.port, client_id=gateway.name)
    async with asyncio.timeout(DEADLINE_S), connect_uplink(settings) as uplink:
        await uplink.subscribe([*EVERY, gateway.topics.award, gateway.topics.statement])
        yield uplink, uplink.messages()


async def bid_until_awarded(gateway, uplink, messages):
    """Bids in every round that is announced, until an award comes that is not known; (announcements, award)."""
    announced = []
    async for message in messages:
        if message.topic == EVERY.round:
            announced.append(message)
            bid = gateway.bid(message.payload)
            await uplink.publish(bid.topic, bid.payload)
        elif message.topic == gateway.topics.award and message.payload not in gateway.awards:
            gateway.awards.append(message.payload)
            return announced, message
    raise AssertionError


async def test_a_round_over_a_real_broker_and_another_after_a_kill(tmp_path):
    gateway, path = Gateway(1), str(tmp_path / "market.db")
    with Mosquitto(tmp_path / "broker") as broker:
        counters = []
        async with at(broker, gateway) as (uplink, messages):
            for _ in range(2):
                async with running(path, broker, gateway):
                    announced, message = await bid_until_awarded(gateway, uplink, messages)
                    award = market.read(Award, message.payload, MARKET_KEY.public)
                    rounds = [market.read(Round, each.payload, MARKET_KEY.public) for each in announced]
                    assert (award.origin, award.verdict, message.retained) == (gateway.origin, Verdict.AWARDED, False)
                    assert award.number in {made.number for made in rounds}
                    counters.append((award.counter, award.number))
        (first, number), (second, later) = counters
        assert second > first
        assert later > number
        async with at(broker, Gateway(2)) as (_, messages):
            kept = {}
            async for message in messages:
                kept[message.topic] = message
                if kept.keys() == set(EVERY):
                    break
        assert all(message.retained for message in kept.values())
        assert market.read(Prices, kept[EVERY.day_ahead].payload, MARKET_KEY.public).ticks


async def test_killed_at_any_moment_it_signs_nothing_twice_and_goes_on(tmp_path):
    gateway, path, kills = Gateway(1), str(tmp_path / "market.db"), random.Random(5)
    said = defaultdict(set)

    async def bid(uplink, messages):
        async for message in messages:
            if message.topic == EVERY.round:
                made = market.read(Round, message.payload, MARKET_KEY.public)
                said["round", made.number].add(message.payload)
                answer = gateway.bid(message.payload)
                await uplink.publish(answer.topic, answer.payload)
            elif message.topic == gateway.topics.award:
                award = market.read(Award, message.payload, MARKET_KEY.public)
                said["award", award.counter].add(message.payload)
            else:
                prices = market.read(Prices, message.payload, MARKET_KEY.public)
                said[prices.curve, prices.counter].add(message.payload)

    def awards():
        return [counter for what, counter in said if what == "award"]

    with Mosquitto(tmp_path / "broker") as broker:
        async with at(broker, gateway) as (uplink, messages):
            bidding = asyncio.ensure_future(bid(uplink, messages))
            for number in range(4):
                before = len(awards())
                command = [sys.executable, str(Path(__file__).with_name("killed_market.py")), path, str(broker.port)]
                process = await asyncio.create_subprocess_exec(*command, env={**os.environ, "PYTHONPATH": PLACES})
                while len(awards()) == before:
                    assert process.returncode is None
                    await asyncio.sleep(0.005)
                await asyncio.sleep(kills.uniform(0, 1.2) if number < 3 else 0)
                process.kill()
                await process.wait()
            bidding.cancel()
    assert all(len(payloads) == 1 for payloads in said.values())
    rounds = [number for what, number in said if what == "round"]
    assert len(rounds) >= len(awards()) >= 4


async def test_it_comes_back_when_the_broker_does(tmp_path):
    gateway = Gateway(1)
    with Mosquitto(tmp_path / "broker") as broker:
        async with running(str(tmp_path / "market.db"), broker, gateway) as service:
            broker.kill()
            while service.connected.is_set():  # noqa: ASYNC110  no event says so
                await asyncio.sleep(0.01)
            broker.start()
            await service.connected.wait()
            async with at(broker, gateway) as (uplink, messages):
                _, message = await bid_until_awarded(gateway, uplink, messages)
                assert market.read(Award, message.payload, MARKET_KEY.public).verdict == Verdict.AWARDED
            assert {"announced", "bid", "cleared"} <= {event.kind for event in service.events}


class Broken(RealWorld):
    """A broker that nobody can reach, or that has a fault of our own."""

    error = UplinkDownError("nobody is there")

    def connect_uplink(self, settings):  # type: ignore[override]
        raise self.error


async def test_rounds_go_on_without_a_broker(tmp_path):
    path = str(tmp_path / "market.db")
    store = Store.open(apsw.Connection(path), path)
    worker = Worker("market")
    operator = Operator(store, QUICK, [], MARKET_KEY)
    settings = UplinkSettings(host="127.0.0.1", port=1, client_id="market")
    service = Service(Broken(random=random.Random(1), offload=worker), settings, operator, store)
    cleared = asyncio.Event()
    service.on_event = lambda event: cleared.set() if event.kind == "cleared" else None
    task = asyncio.ensure_future(service.run())
    async with asyncio.timeout(DEADLINE_S):
        await cleared.wait()
    assert not service.connected.is_set()
    store.close()
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(JournalError):
            await task
    worker.close()
