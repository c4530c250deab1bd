"""Strangers' clients against the simulated buses: one suite for every client and transport."""

import pytest
from energybid.drivers.modbus.exchange import Asked
from energybid.drivers.modbus.map import Request
from peers_clients import PAIRS, SHORT_S, SILENCE, Call, ask, missing
from peers_image import NOBODY, SEVERAL, SINGLE, UNIT, WORDS, WRITE_UNIT
from peers_servers import SERVERS
from peers_wires import untouched


@pytest.fixture(params=PAIRS, ids=" ".join)
async def peer(request):
    client, kind = request.param
    if reason := missing(client):
        pytest.skip(reason)
    async with SERVERS[f"ours {kind}"](untouched) as served:

        async def say(*calls, **wait):
            return await ask(client, served.target, list(calls), **wait)

        yield client, kind, say, served


async def test_registers_are_read(peer):
    _, _, say, _ = peer
    said = await say(
        Call(4, UNIT, 0, 6), Call(3, UNIT, 7, 1), Call(3, UNIT, 10, 125), Call(4, UNIT, 199), Call(4, UNIT, 77, 2)
    )
    assert said == [WORDS[:6], WORDS[7:8], WORDS[10:135], WORDS[199:], WORDS[77:79]]


async def test_what_is_not_there_is_refused(peer):
    _, _, say, _ = peer
    said = await say(Call(4, UNIT, 200), Call(3, UNIT, 199, 2), Call(4, WRITE_UNIT, 0, 3), Call(4, UNIT, 0))
    assert said == [("exception", 2)] * 3 + [WORDS[:1]]


async def test_numbers_are_written(peer):
    client, _, say, _ = peer
    # mbpoll writes one value with function 6 and several with function 16, as the others are told to.
    said = await say(
        Call(6, WRITE_UNIT, SINGLE, values=(0xBEEF,)),
        Call(3, WRITE_UNIT, SINGLE, 1),
        Call(16, WRITE_UNIT, SEVERAL, values=(0xDEAD, 0xBEEF)),
        Call(3, WRITE_UNIT, SEVERAL, 2),
        Call(6, WRITE_UNIT, 7, values=(1,)),
    )
    assert said == [[0xBEEF], [0xBEEF], [0xDEAD, 0xBEEF], [0xDEAD, 0xBEEF], ("exception", 2)], client


async def test_a_unit_that_is_not_there(peer):
    _, kind, say, _ = peer
    if kind in {"tcp", "udp"}:  # a gateway says that nobody answered (V1.1b3 §7, exception 11); a line is silent
        assert await say(Call(4, NOBODY, 0)) == [("exception", 11)]
    else:
        assert await say(Call(4, NOBODY, 0), wait_s=SHORT_S) == [SILENCE]
    assert await say(Call(4, UNIT, 0)) == [WORDS[:1]]


async def test_its_requests_are_ours_to_the_byte(peer):
    _, kind, say, served = peer
    if served.wire is None or kind == "ascii":
        return
    await say(Call(4, UNIT, 5, 80))
    asked = Asked(UNIT, Request(function=4, first=5, count=80, fields=()))
    sent = b"".join(served.wire.asked)
    assert sent[2:] == asked.tcp_tail if kind == "tcp" else sent == asked.rtu
