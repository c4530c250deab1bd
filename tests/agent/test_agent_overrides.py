"""Overrides: what a person on site asks for, through the agent's socket and over its restart."""

import asyncio
import json
import socket
import stat
from contextlib import asynccontextmanager
from dataclasses import replace
from fractions import Fraction

import pytest
from energybid.agent import overrides as module
from energybid.agent import system
from energybid.agent.cli import main
from energybid.agent.control import Control, Rank
from energybid.agent.overrides import Overrides
from energybid.agent.polling import BusPoller
from energybid.agent.process import Agent, _open
from energybid.core.entries import CommandCause, CommandOutcome
from energybid.core.errors import JournalStalledError, NoReplyError
from energybid.simulator.virtual import VirtualClock, run
from gateways import recording, virtual_platform
from test_agent_control import MARKET, Device, commands, now, plan, told
from test_agent_process import plan as agent_plan


@asynccontextmanager
async def overriding(path, device, *, passed_s=0.0):
    clock = VirtualClock()
    platform = virtual_platform(clock, now_ns=lambda: clock.now_ns() + round(passed_s * 1e9))
    async with recording(platform, path) as recorder:
        control = Control(platform, recorder, [BusPoller(platform, recorder, device, plan())])
        overrides = Overrides(platform, control, recorder.journal)
        await control.recall()
        await overrides.recall()
        await control.make_safe()
        tasks = [asyncio.create_task(control.run()), asyncio.create_task(overrides.run())]
        try:
            yield control, overrides
        finally:
            await control.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def play(path, scene, device=None, **how):
    async def main():
        async with overriding(path, device or Device(VirtualClock()), **how) as (control, overrides):
            return await scene(control, overrides)

    return run(main)


async def ask(overrides, **asked):
    return json.loads(await overrides.answer(json.dumps(asked).encode() + b"\n"))


HOLD = {"do": "hold", "point": "charger/limit", "value": "0", "for_s": 3600, "who": "anna"}


def test_a_person_comes_before_the_market_until_the_time_is_over(tmp_path):
    device = Device(VirtualClock())

    async def scene(control, overrides):
        market = await control.hold("charger/limit", Fraction(2000), MARKET, now() + 7200)
        answer = await ask(overrides, **HOLD)
        (held,) = answer["overrides"]
        assert held == {"point": "charger/limit", "value": "0", "who": "anna", "left_s": 3600, "active": True}
        assert not market.active
        assert control.held_above("charger/limit", Rank.MARKET).name == "anna"
        await asyncio.sleep(3601)
        assert market.active
        assert control.held_above("charger/limit", Rank.MARKET) is None
        assert (await ask(overrides, do="list"))["overrides"] == []
        assert device.numbers == [2000, 0, 2000]

    play(tmp_path / "j", scene, device)
    owners = [(c.owner, c.mantissa, c.cause, c.outcome) for c in commands(tmp_path / "j")]
    assert owners[1] == ("anna", 0, CommandCause.HELD, CommandOutcome.DONE)


def test_who_comes_last_wins_and_may_end_it(tmp_path):
    device = Device(VirtualClock())

    async def scene(control, overrides):
        await ask(overrides, **HOLD)
        answer = await ask(overrides, **HOLD | {"who": "bob", "value": "500"})
        assert [(o["who"], o["value"]) for o in answer["overrides"]] == [("bob", "500")]
        answer = await ask(overrides, **HOLD | {"who": "bob", "value": "9999"})  # not allowed: the last one stays
        assert "may be 0 to 5000 W" in answer["error"]
        assert [o["value"] for o in (await ask(overrides, do="list"))["overrides"]] == ["500"]
        assert (await ask(overrides, do="release", point="charger/limit", who="anna"))["overrides"] == []
        await asyncio.sleep(1)
        assert device.numbers == [0, 500, 1000]
        assert "nobody overrides it" in (await ask(overrides, do="release", point="charger/limit", who="x"))["error"]
        await ask(overrides, **HOLD)
        assert (await ask(overrides, do="release", point=None, who="bob"))["overrides"] == []

    play(tmp_path / "j", scene, device)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"do": "dance"}, "no such request"),
        (HOLD | {"point": "charger/nothing"}, "no such point with a safe number; charger/limit"),
        (HOLD | {"point": 7}, "names its point and who asks"),
        (HOLD | {"who": "a b"}, "names its point and who asks"),
        (HOLD | {"value": 0}, "a value is a decimal number"),
        (HOLD | {"value": "1e3"}, "a value is a decimal number"),
        (HOLD | {"for_s": 0}, "at most a day"),
        (HOLD | {"for_s": True}, "at most a day"),
        (HOLD | {"for_s": float("nan")}, "at most a day"),
        (HOLD | {"for_s": 90_000}, "at most a day"),
        (HOLD | {"value": "0.5"}, "steps of 1 W"),
    ],
)
def test_what_can_not_be_is_refused(tmp_path, asked, error):
    async def scene(_control, overrides):
        assert error in (await ask(overrides, **asked))["error"]
        assert "one JSON object" in json.loads(await overrides.answer(b"nonsense\n"))["error"]
        assert "one JSON object" in json.loads(await overrides.answer(b"[]\n"))["error"]
        assert "one JSON object" in json.loads(await overrides.answer(b"[" * 4000))["error"]

    play(tmp_path / "j", scene)


def test_an_override_holds_again_after_a_restart_for_what_is_left(tmp_path):
    async def first(_control, overrides):
        await ask(overrides, **HOLD)

    async def second(_control, overrides):
        (held,) = (await ask(overrides, do="list"))["overrides"]
        assert (held["value"], held["active"], held["left_s"]) == ("0", True, 2600)

    async def third(_control, overrides):
        assert (await ask(overrides, do="list"))["overrides"] == []

    device = Device(VirtualClock())
    play(tmp_path / "j", first, device)
    assert device.numbers == [0, 1000]  # a stop makes safe
    play(tmp_path / "j", second, device, passed_s=1000)
    assert device.numbers == [0, 1000, 0, 1000]
    play(tmp_path / "j", third, device, passed_s=3601)
    assert device.numbers == [0, 1000, 0, 1000]


def test_a_clock_that_steps_back_makes_no_override_longer(tmp_path):
    async def first(_control, overrides):
        await ask(overrides, **HOLD)

    async def second(_control, overrides):
        (held,) = (await ask(overrides, do="list"))["overrides"]
        assert held["left_s"] == 3600

    play(tmp_path / "j", first)
    play(tmp_path / "j", second, passed_s=-1_000_000)


def test_what_was_let_go_stays_so_after_a_restart(tmp_path):
    async def first(_control, overrides):
        await ask(overrides, **HOLD)
        await ask(overrides, do="release", who="anna")

    async def second(_control, overrides):
        assert (await ask(overrides, do="list"))["overrides"] == []

    play(tmp_path / "j", first)
    play(tmp_path / "j", second)


def test_a_device_that_is_away_at_the_start_is_tried_again(tmp_path):
    async def first(_control, overrides):
        await ask(overrides, **HOLD)

    device = Device(VirtualClock())

    async def second(_control, overrides):
        await asyncio.sleep(5)
        assert (await ask(overrides, do="list"))["overrides"] == []
        device.fault = None
        await asyncio.sleep(11)
        (held,) = (await ask(overrides, do="list"))["overrides"]
        assert held["active"]

    play(tmp_path / "j", first)
    device.fault = NoReplyError("away")
    play(tmp_path / "j", second, device)
    device.fault, device.takes_s = None, 60.0
    play(tmp_path / "j", lambda *_: asyncio.sleep(0), device)  # slow: the start goes on without it


def test_damage_is_forgotten_and_a_full_disk_costs_the_restart_only(tmp_path, monkeypatch):
    async def first(_control, overrides):
        overrides._journal.remember(module.PREFIX + "charger/limit", b"{")

        def full(*_):
            raise JournalStalledError("full")

        await ask(overrides, **HOLD)
        monkeypatch.setattr(overrides._journal, "remember", full)
        assert (await ask(overrides, **HOLD | {"value": "1"}))["overrides"]
        monkeypatch.undo()
        overrides._journal.remember(module.PREFIX + "charger/limit", b"{")

    async def second(_control, overrides):
        assert (await ask(overrides, do="list"))["overrides"] == []

    play(tmp_path / "j", first)
    play(tmp_path / "j", second)
    assert told(tmp_path / "j")


# ---------------------------------------------------------------- the command, and the socket

GATEWAY = """
[gateway]
tenant = "t"
id = "g"
[keys]
log = "no"
[journal]
path = "j"
[status]
path = "{status}"
[[bus]]
name = "b"
kind = "modbus-tcp"
host = "127.0.0.1"
meter = [{{ name = "main", profile = "eastron-sdm630", unit = 1 }}]
"""


@pytest.fixture
def folder(tmp_path_factory):
    """A short path: a socket's may have 107 bytes."""
    path = tmp_path_factory.mktemp("o")
    (path / "g.toml").write_text(GATEWAY.format(status=path / "s.json"))
    return path


def override(capsys, folder, *arguments):
    code = main(["override", "-c", str(folder / "g.toml"), *arguments])
    shown = capsys.readouterr()
    return code, shown.out + shown.err


def test_the_command_talks_to_the_agent(folder, capsys):
    """On a real loop and a real socket."""
    device = Device(VirtualClock())
    device.takes_s = 0.0

    async def scene():
        async with overriding(folder / "j", device) as (_control, overrides):
            path = folder / "control.sock"
            with socket.socket(socket.AF_UNIX) as killed:
                killed.bind(str(path))  # what an agent that was killed leaves
            async with system.serve_requests(str(path), overrides.answer, 4096):
                assert stat.S_IMODE(path.stat().st_mode) == 0o660
                results = [
                    await asyncio.to_thread(override, capsys, folder, *arguments)
                    for arguments in (
                        ["charger/limit", "0", "--for", "2h"],
                        [],
                        ["charger/limit", "6000"],
                        ["--release", "charger/limit", "--json"],
                        [],
                    )
                ]
            assert not path.exists()
            return results

    made, shown, refused, released, empty = asyncio.run(scene())
    assert made[0] == 0
    assert made[1].startswith("charger/limit: 0 W by ")
    assert made[1].endswith("for 120 min more\n")
    assert shown == made
    assert refused[0] == 1
    assert "limit may be 0 to 5000 W, not 6000" in refused[1]
    assert json.loads(released[1])["overrides"] == []
    assert empty == (0, "not overridden: charger/limit\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 1, "nobody answers: is the agent running"),
        (["main/limit"], 2, "VALUE is missing: what is main/limit to be?"),
        (["main/limit", "1", "--for", "ever"], 2, "--for: write a number and a unit"),
        (["main/limit", "1", "--release"], 2, "--release takes no VALUE"),
        (["--socket", "/"], 1, "/: "),
    ],
)
def test_what_the_command_says_when_it_can_not(folder, capsys, monkeypatch, arguments, code, words):
    monkeypatch.setenv("SUDO_USER", "anna maria")
    assert override(capsys, folder, *arguments)[0] == code
    assert words in override(capsys, folder, *arguments)[1]


def test_without_a_status_file_there_is_no_socket_unless_it_is_named(folder, capsys):
    text = GATEWAY.format(status="x").replace('[status]\npath = "x"\n', "")
    (folder / "g.toml").write_text(text)
    assert "names no socket" in override(capsys, folder)[1]
    (folder / "g.toml").write_text(text + '[control]\nsocket = "mine.sock"\n')
    assert "mine.sock: nobody answers" in override(capsys, folder)[1]


def opened(_platform, _plan):
    device = Device(VirtualClock())
    device.takes_s = 0.0
    return device


@pytest.mark.parametrize("name", ["c.sock", "c" * 120, None])
def test_the_agent_serves_its_socket_and_goes_on_where_it_can_not(folder, capsys, caplog, name):
    """A whole agent on a real loop."""
    whole = replace(
        agent_plan(folder / "j"),
        buses=(plan(),),
        drivers={"test": "test_agent_overrides:opened"},
        socket=name and str(folder / name),
    )

    async def scene():
        platform, stop = virtual_platform(VirtualClock(), offload=asyncio.to_thread), asyncio.Event()
        agent = Agent(platform, whole, await _open(platform, whole))
        task = asyncio.create_task(agent.run(stop))
        async with asyncio.timeout(30):
            while name == "c.sock" and not (folder / name).exists():  # noqa: ASYNC110  a file
                await asyncio.sleep(0.01)
        asked = ["charger/limit", "7", "--socket", str(folder / (name or "none"))]
        shown = await asyncio.to_thread(override, capsys, folder, *asked)
        stop.set()
        await task
        return shown

    code, words = asyncio.run(scene())
    if name == "c.sock":
        assert (code, words.split(" by ")[0]) == (0, "charger/limit: 7 W")
    else:
        assert code == 1
    assert ("nobody can override" in caplog.text) == (name is not None and len(name) > 100)
