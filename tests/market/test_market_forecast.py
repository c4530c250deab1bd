"""``energybid forecast``: what the journal says of the next day, and a running agent that goes back to what it was."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from bidding_site import Weather, play
from energybid.agent.cli import main
from energybid.agent.commands.completion import run as completed
from energybid.agent.commands.forecast import PREFIX
from energybid.agent.config import load_plan
from energybid.agent.market.foretold import LIKELY, MIDDLE, foretold, shown
from energybid.agent.market.planner import SitePlanner
from energybid.agent.overrides import RequestError
from energybid.agent.process import Agent, _open
from energybid.bidding.planning_weather import SITE
from energybid.core.errors import JournalStalledError, UplinkDownError
from energybid.simulator.virtual import EPOCH_NS, VirtualClock, run
from floors import Floor, FloorDriver
from gateways import recording, virtual_platform
from sites import example, site

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
MARKET, ZONE = "demo/power", "Europe/Berlin"
NOW_MS = EPOCH_NS // 1_000_000 // HOUR_MS * HOUR_MS + 10 * 60_000


def sun_w(at_ms: int) -> float:
    return 4_000 * max(0.0, float(np.sin((at_ms % DAY_MS / HOUR_MS - 6) / 12 * np.pi)))


def learned(days: int = 11) -> SitePlanner:
    """A planner that has seen some days until now."""
    planner, chance = SitePlanner(MARKET, 17_000, 10_000, ZONE), np.random.default_rng(5)
    for at_ms in range(NOW_MS - days * DAY_MS, NOW_MS, 1_800_000):
        outside_c = 6.0 + 4 * float(np.sin(at_ms % DAY_MS / DAY_MS * 2 * np.pi))
        planner.weather(at_ms, Weather({SITE: outside_c, "heating": outside_c}, {"roof": sun_w(at_ms)}))
        load_w = 600 + 400 * (at_ms % DAY_MS > 16 * HOUR_MS) + 40 * float(chance.normal())
        planner.load(at_ms, round(load_w), 0)
    return planner


@pytest.fixture(scope="module")
def planner():
    return learned()


@pytest.fixture
def gateway(tmp_path_factory):
    """A configured gateway without an agent; a short path: a socket's may have 107 bytes."""
    return site(tmp_path_factory.mktemp("f"))


def forecast(capsys, gateway, *arguments):
    code = main(["forecast", *arguments, "-c", str(gateway)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# ------------------------------------------------------------ what is shown


def test_the_next_day_begins_now_and_has_what_was_learned(planner):
    told = foretold(planner.planning, ZONE, NOW_MS)
    day = told["next_day"]
    assert len(day) == 48
    assert (told["age_s"], told["timezone"]) == (1_800, ZONE)
    assert [model["model"] for model in told["models"] if model["used"]] == [planner.planning.loads.forecaster.model]
    assert all(slot["load_w"] == sorted(slot["load_w"]) for slot in day)
    assert {len(slot["load_w"]) for slot in day} == {len(told["levels"])}
    at_noon = next(slot for slot in day if "T12:00" in slot["begins"])
    at_midnight = next(slot for slot in day if "T00:00" in slot["begins"])
    assert at_noon["sun_w"]["roof"] > 3_500
    assert at_midnight["sun_w"] == {"roof": 0}
    assert set(at_noon["outside_c"]) == {"outdoors", "heating"}
    json.dumps(told)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_people_see_models_and_hours(planner, width):
    lines = shown(foretold(planner.planning, ZONE, NOW_MS), width)
    text = "\n".join(lines)
    used = next(one for one in planner.planning.loads.forecaster.standings() if one.used)
    assert f"load     {used.model}, version {used.version}\n" in text
    assert "30 min ago" in text
    assert any(line.startswith("*") for line in lines)
    assert "days older" in text
    hours = [line for line in lines if line[2:3] == ":" and "|" in line]
    assert len(hours) == 24
    assert all(MIDDLE in line and "roof" in line and "outdoors" in line for line in hours)
    assert "heating" not in text, "it is as warm there as outdoors"
    assert LIKELY in "".join(hours)
    if width == 200:
        assert max(map(len, lines)) <= width


def test_before_a_day_is_over_it_says_so():
    young = learned(days=0)
    told = foretold(young.planning, ZONE, NOW_MS)
    assert (told["seen"], told["learned"], told["next_day"][0]["load_w"]) == (None, None, None)
    assert "no day is over yet" in shown(told, 80)[0]
    young.weather(NOW_MS, Weather({}, {"roof": 100.0}))
    drawn = shown(foretold(young.planning, ZONE, NOW_MS), 80)
    assert any("roof" in line for line in drawn)
    assert "0 min ago" in drawn[1]


def test_a_gateway_that_has_learned_nothing_says_what_to_do(gateway, capsys):
    assert "no such file" in forecast(capsys, gateway)[2]

    async def metered():
        async with recording(virtual_platform(VirtualClock()), gateway.parent / "journal.db"):
            pass

    run(metered)
    code, _, said = forecast(capsys, gateway)
    assert (code, "nothing is learned yet" in said) == (1, True)
    gateway.write_text(example().split("[market]")[0])
    code, _, said = forecast(capsys, gateway)
    assert code == 2
    assert "has no [market]" in said


def test_without_an_agent_nothing_goes_back(gateway, capsys):
    code, _, said = forecast(capsys, gateway, "back")
    assert (code, "is the agent running" in said) == (1, True)
    gateway.write_text(gateway.read_text().replace('[status]\npath = "status.json"', ""))
    assert "names no socket" in forecast(capsys, gateway, "back")[2]


def test_completion_knows_it(capsys):
    from argparse import Namespace

    assert completed(Namespace(shell="bash")) == 0
    assert "_shtab_energybid_forecast_pos_0_choices=(back)" in capsys.readouterr().out


# ------------------------------------------------------------ a running agent


def opened(_platform, _plan):
    return FloorDriver(VirtualClock(), Floor(sun_w=2_000.0))


@asynccontextmanager
async def no_broker(_settings):
    raise UplinkDownError("there is none")
    yield


@asynccontextmanager
async def running(gateway, state=None):
    """A whole agent on a real loop, whose meters are in memory and whose broker is away."""
    platform = virtual_platform(VirtualClock(), offload=asyncio.to_thread, connect=no_broker)
    plan = replace(load_plan(gateway), drivers={"modbus-tcp": "test_market_forecast:opened"})
    recorder = await _open(platform, plan)
    if state:
        recorder.journal.remember_all({PREFIX + name: piece for name, piece in state.items()})
    agent, stop = Agent(platform, plan, recorder), asyncio.Event()
    task = asyncio.create_task(agent.run(stop))
    socket = gateway.parent / "control.sock"
    try:
        async with asyncio.timeout(30):
            while not (socket.exists() and _ready(agent)):  # noqa: ASYNC110  a file
                await asyncio.sleep(0.01)
        yield agent
    finally:
        stop.set()
        await task


def _ready(agent):
    return agent.bidder._session is not None and agent.bidder._session.tutor.ready


async def asked(capsys, gateway, *arguments):
    """Without standing in the running agent's way."""
    return await asyncio.to_thread(forecast, capsys, gateway, *arguments)


def test_a_running_agent_goes_back_and_its_next_run_knows_it(gateway, capsys, planner, caplog):
    async def first():
        async with running(gateway, planner.state()):
            back = await asked(capsys, gateway, "back", "regression")
            shown = await asked(capsys, gateway, "--json")
            other = await asked(capsys, gateway, "back", "regression-temperature", "--json")
            return back, shown, other, await asked(capsys, gateway, "back", "mean-7")

    async def second():
        async with running(gateway):
            return await asked(capsys, gateway, "back", "regression"), await asked(capsys, gateway)

    back, told, other, naive = asyncio.run(first())
    assert json.loads(other[1]) == {"model": "regression-temperature", "version": 2, "kept": True, "why": ""}
    assert back == (0, "regression is back at its version before, which is version 2 now\n", "")
    assert "goes back to the version before of regression, which is 2 now" in caplog.text
    versions = {model["model"]: model["version"] for model in json.loads(told[1])["models"]}
    assert versions == {"yesterday": 1, "last-week": 1, "mean-7": 1, "regression": 2, "regression-temperature": 1}
    assert (naive[0], "mean-7 learns nothing" in naive[2]) == (1, True)
    assert "planner gives no answer" not in caplog.text, "a person's wish is no fault of the planner"
    again, text = asyncio.run(second())
    assert (again[0], "version 2 is of today" in again[2]) == (1, True)
    assert "next day (Europe/Berlin)" in text[1]
    assert forecast(capsys, gateway)[0] == 0, "without an agent it is read all the same"


# ------------------------------------------------------------ the session, in virtual time


async def back(scene, **asked):
    return await scene.bidder.forecast_back({"who": "anna", "model": None} | asked)


def test_what_goes_back_is_kept_at_once_and_what_is_no_request_is_refused(tmp_path):
    async def scene(made):
        assert await back(made) == {"model": "regression", "version": 2, "kept": True, "why": ""}
        await made.restart()
        assert made.planner.memory == {"loads/00": b"rolled back"}
        for wrong in ({"model": 3}, {"who": "a b"}, {"who": None}):
            with pytest.raises(RequestError, match="a request names"):
                await back(made, **wrong)
        with pytest.raises(RequestError, match="no model"):
            await back(made, model="nothing")
        assert made.bidder.status()["planner_error"] == ""
        return made

    play(tmp_path / "j", scene)


def test_what_the_disk_does_not_take_is_said(tmp_path):
    async def scene(made):
        def refuse(_):
            raise JournalStalledError("the disk is full")

        made.recorder.journal.remember_all = refuse
        assert (await back(made))["why"] == "the disk is full"
        return made

    play(tmp_path / "j", scene)


def test_a_stop_before_the_planner_knows_anything_costs_nothing(tmp_path):
    async def scene(made):
        made.planner.memory = {"prices/00": b"learned"}
        await made.bidder._session.tutor.keep()
        made.bidder._session.tutor.ready = False
        made.planner.memory = {"prices/00": b"nothing yet"}
        with pytest.raises(RequestError, match="try again in a minute"):
            await back(made)
        await made.stop()
        await made.start()
        assert made.planner.memory == {"prices/00": b"learned"}
        return made

    play(tmp_path / "j", scene)


def test_while_the_market_is_left_alone_it_says_when_to_try(tmp_path):
    async def scene(made):
        made.bidder._session = None
        with pytest.raises(RequestError, match="try again in a minute"):
            await back(made)
        return made

    play(tmp_path / "j", scene)


def test_what_was_foreseen_of_a_round_is_known_when_it_is_followed_also_after_a_restart(tmp_path):
    async def scene(made):
        announced = made.round()
        await asyncio.sleep(3)
        await made.restart()
        made.award()
        await made.until(125)
        assert made.assets.expected == (announced.begins_ms, {"pump": 1_234})
        return made

    play(tmp_path / "j", scene)


def test_the_planner_is_told_the_weather_of_every_slot(tmp_path):
    async def scene(made):
        made.assets.sky, made.assets.told = Weather({SITE: 4.0}, {"roof": None}), None
        await asyncio.sleep(1_900)
        return made

    planner = play(tmp_path / "j", scene).planner
    assert {at_ms % 900_000 for at_ms, _ in planner.weathers} == {0}
    assert len(planner.weathers) >= 2
    assert planner.weathers[-1][1] == Weather({SITE: 4.0}, {"roof": None})
    assert planner.loads == []
