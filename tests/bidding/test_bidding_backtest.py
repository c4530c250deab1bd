"""The back-test: its figures, what it may know, its devices, and its command."""

import argparse
import csv
import datetime as dt
import gzip
import json
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from energybid.agent.commands import backtest as command
from energybid.agent.market.devices import World, devices, sky
from energybid.agent.market.wiring import site_plan
from energybid.bidding.backtest import Scene, Sky, _Foresight, _Gateway, as_gateway, backtest
from energybid.bidding.prices_trading import Market
from energybid.core.errors import ConfigurationError, EnergybidError
from PIL import Image

STEPS = 12
BEGINS = dt.date(2018, 1, 1)
HOUR_MS = 3_600_000
SITE = '[market]\nimport_limit = "20 kW"\nexport_limit = "20 kW"\n'
BATTERY = """
[[market.asset]]
name = "battery"
kind = "battery"
capacity = "10 kWh"
charge = "4 kW"
discharge = "4 kW"
charge_efficiency = 0.95
discharge_efficiency = 0.95
discharge_wear = 2.0
"""
CAR = """
[[market.asset]]
name = "car"
kind = "ev"
least = "1 kW"
most = "7 kW"
wanted = "12 kWh"
shortage_price = 400.0
arrival = "18:00"
departure = "06:00"
"""
HEAT = """
[[market.asset]]
name = "heat"
kind = "thermal"
low = 20.0
high = 22.0
discomfort_price = 0.5
most = "3 kW"
outside = 5.0
model = { time_constant = "40 h", kelvin_per_kw = 12.0 }
"""
RUN = """
[[market.asset]]
name = "run"
kind = "deferrable"
profile = ["2 kW", "1 kW"]
profile_step = "2 h"
worth = 1.0
earliest = "08:00"
latest = "20:00"
"""
LOAD = """
[[market.asset]]
name = "load"
kind = "curtailable"
load = "3 kW"
step = [{ power = "1 kW", cost = 50.0, value = "1" }, { power = "1 kW", cost = 90.0, value = "2" }]
"""
SUN = """
[[market.asset]]
name = "roof"
kind = "pv"
rated = "5 kW"
support = 30.0
"""
ALL = SITE + BATTERY + CAR + HEAT + RUN + LOAD + SUN


def prices(days: int) -> Market:
    chance = np.random.default_rng(5)
    hour = np.arange(days * STEPS) % STEPS * 2
    day_ahead = 40 + 20 * np.sin((hour - 9) / 24 * 4 * np.pi)
    return Market(day_ahead + 6 * chance.normal(size=len(hour)), day_ahead, STEPS)


def world(steps: int) -> World:
    noon = np.maximum(0.0, np.sin((np.arange(steps) % STEPS - 3) / 6 * np.pi))
    return World((BEGINS - dt.date(1970, 1, 1)).days * 24 * HOUR_MS, 2 * HOUR_MS, np.full(steps, 8.0), noon)


def scene(text: str = SITE + BATTERY, days: int = 17, walked: int = 2) -> Scene:
    chance = np.random.default_rng(6)
    load_w = 500 + 400 * chance.random(days * STEPS)
    site = site_plan("assets.toml", tomllib.loads(text))
    around = world(days * STEPS)
    return Scene(
        devices(site, around),
        site.import_limit_w,
        site.export_limit_w,
        prices(days),
        load_w,
        days - walked,
        BEGINS,
        tuple(asset.name for asset in site.assets),
        sky(site, around),
    )


@pytest.fixture(scope="module")
def report():
    return backtest(scene())


@pytest.fixture(scope="module")
def whole():
    return backtest(scene(ALL))


def test_foresight_is_best_and_bidding_saves(report, whole):
    for made in (report, whole):
        assert made.foresight.total <= made.bid.total < made.idle.total
        assert 0.5 < made.share <= 1
        assert made.bid.total - made.foresight.total == pytest.approx(sum(made.regret.values()))


def test_energy_is_accounted_for(report):
    made, load_w = report.bid, scene().load_w[-2 * STEPS :]
    power_w = np.array(made.net_w) - load_w
    stored_wh = np.cumsum(2 * np.where(power_w > 0, power_w * 0.95, power_w / 0.95))
    assert np.allclose(made.stored_wh, stored_wh, atol=2.0)
    money = prices(17).real_time[-2 * STEPS :] * np.array(made.net_w) + 2.0 * np.maximum(-power_w, 0)
    assert sum(made.cost) == pytest.approx(2 * money.sum() / 1e6)


def test_a_battery_with_foresight_is_as_good_as_its_own_dynamic_programme(report):
    whole_day = scene()
    market = whole_day.market.days(whole_day.first_day, whole_day.first_day + 2)
    gained = report.idle.total - report.foresight.total
    best = _best(market.real_time, max(0.0, float(np.median(market.real_time[-STEPS:]))))
    assert gained == pytest.approx(best, rel=0.005)


def _best(found, final) -> float:
    """On a fine grid; the first energy left at the end is worth 1.3 of the median price, the last 0.7."""
    grid = np.linspace(0, 10_000, 501)
    worth = final * grid * (1.3 - 0.3 * grid / 10_000)
    for price in found[::-1]:
        change = grid[None, :] - grid[:, None]
        bought = np.where(change > 0, change / 0.95, 0.0)
        sold = np.where(change < 0, -change * 0.95, 0.0)
        cash = np.where((bought <= 8_000) & (sold <= 8_000), -price * bought + (price - 2.0) * sold, -np.inf)
        worth = (cash + worth[None, :]).max(axis=1)
    return worth[0] / 1e6


def test_no_export_where_none_is_allowed():
    made = backtest(scene(SITE.replace('export_limit = "20 kW"', 'export_limit = "0 W"') + BATTERY, days=10))
    assert made.loads_known.outside_wh == pytest.approx(0, abs=20)
    assert min(made.loads_known.net_w) > -1
    assert made.regret["load and weather not known"] != 0


def test_nothing_is_known_of_what_is_to_come():
    one = scene(ALL, days=9)
    late = one.market.real_time.copy()
    late[-6:] += 40.0
    two = scene(ALL, days=9)
    two = replace(two, market=Market(late, two.market.day_ahead, STEPS))
    first, second = backtest(one), backtest(two)
    assert first.bid.net_w[:-6] == second.bid.net_w[:-6]
    assert first.foresight.net_w != second.foresight.net_w


def test_the_weather_to_come_is_known_to_foresight_alone():
    text = SITE + BATTERY + SUN + HEAT.replace("outside = 5.0\n", "")
    one = scene(text, days=9, walked=1)
    roof, heat = one.devices[1:]
    late = replace(one, sky=Sky(*({name: _late(course) for name, course in table.items()} for table in one.sky)))
    at = one.first_day * STEPS
    found = {}
    for name, knows in (("foresight", _Foresight(late)), ("gateway", _Gateway(late))):
        slot = knows.slot(at)
        when = slot.begins_ms, slot.step_ms, STEPS
        found[name] = knows.planning.weather.ahead(
            [roof.asset(at), heat.asset(at)], ["roof", "heat"], when, slot.begins_ms
        )
    assert found["foresight"][0].forecast_w == tuple(late.sky.sun_w["roof"][at:].round().astype(int).tolist())
    assert found["foresight"][1].rest_c[-1] - found["foresight"][1].rest_c[0] == 10.0
    assert max(found["gateway"][0].forecast_w) > 3_500, "it has seen days with sun"
    assert found["gateway"][1].rest_c == found["foresight"][1].rest_c[:1]
    assert found["gateway"][0].forecast_w[0] == 0, "at midnight"


def _late(course):
    """Otherwise from the second step of the last day on: no sun, and ten degrees warmer."""
    made = course.copy()
    made[-STEPS + 1 :] = 0.0 if course.max() > 100 else course[-STEPS + 1 :] + 10.0
    return made


def test_tomorrows_day_ahead_prices_are_known_from_eleven():
    one = replace(scene(days=9), names=())
    day_ahead = one.market.day_ahead.copy()
    day_ahead[-STEPS:] = 777.0
    gateway = _Gateway(
        Scene(one.devices, 20_000, 20_000, Market(one.market.real_time, day_ahead, STEPS), one.load_w, 7, BEGINS)
    )
    seen = []
    for at in range(7 * STEPS, 8 * STEPS):
        gateway.told(at)
        slot = gateway.slot(at)
        expected = gateway.planning.prices.view(slot.begins_ms, slot.step_ms, slot.begins_ms).expected
        assert expected[0] == day_ahead[at]
        seen.append((expected[8 * STEPS - at :] == 777).all())
    assert seen == [False] * 5 + [True] * 7


def test_a_walk_alone_is_that_of_the_gateway(report):
    told = []
    walk = as_gateway(scene(), lambda day, so_far: told.append((day, len(so_far.cost))))
    assert walk == report.loads_known
    assert told == [(1, STEPS), (2, 2 * STEPS)]


# ------------------------------------------------------------ devices


def device(text: str):
    (made,) = devices(site_plan("assets.toml", tomllib.loads(SITE + text)), world(5 * STEPS))
    return made


def test_a_car_comes_and_goes_and_what_is_missing_costs():
    car = device(CAR)
    assert car.asset(8).arrival == 1
    assert car.plain_w(8) == 0
    assert car.asset(9).arrival == 0
    assert car.asset(9).departure == 6
    assert car.plain_w(9) == 6_000
    assert car.move(9, 4_000) == 0
    assert (car.stored_wh(), car.left(50.0)) == (8_000, pytest.approx(0.4))
    assert car.plain_w(10) == 2_000
    assert car.move(12, 0) == 0
    assert car.move(14, 1_000) == pytest.approx(2_000 * 400 / 1e6)
    assert car.stored_wh() == 0
    assert car.move(15, 0) == 0


def test_a_run_is_due_in_every_window():
    run = device(RUN)
    assert run.asset(3).earliest == 1
    assert run.plain_w(3) == 0
    assert run.plain_w(4) == 2_000
    assert run.move(4, 2_000) == 0
    assert run.asset(5).done == 1
    assert run.plain_w(5) == 1_000
    assert run.move(5, 1_000) == 0
    assert run.asset(6) is None
    assert run.plain_w(6) == 0
    assert [run.move(step, 0) for step in range(6, 10)] == [0] * 4
    assert run.asset(10).earliest == 6
    assert [run.move(step, 0) for step in range(16, 22)] == [0.0] * 5 + [1.0]


def test_a_room_has_a_thermostat_and_discomfort_costs():
    heat = device(HEAT)
    for step in range(STEPS):
        assert heat.move(step, heat.plain_w(step)) == 0
    assert [heat.move(step, 0) for step in range(STEPS, 3 * STEPS)][-1] > 0
    assert heat.plain_w(0) == 3_000
    assert heat.left(40.0) > 0
    assert heat.stored_wh() == 0


def test_a_compressor_runs_and_rests_as_long_as_it_has_to():
    heat = device(HEAT.replace('most = "3 kW"', 'most = "3 kW"\nleast_run = "3 h"\nleast_pause = "5 h"'))
    heat.move(0, 3000)
    assert [heat.asset(step).has_to for step in (1, 2)] == [True, None]
    heat.move(1, heat.plain_w(1))
    assert heat.plain_w(1) == 3000, "whatever its thermostat would do"
    heat.move(2, 0)
    assert [heat.asset(step).has_to for step in (3, 4, 5)] == [False, False, None]
    assert heat.plain_w(3) == 0


def test_what_is_shed_and_curtailed_costs():
    load, roof = device(LOAD), device(SUN)
    assert load.plain_w(0) == 3_000
    assert load.move(0, 3_000) == 0
    assert load.move(0, 1_000) == pytest.approx(2 * (50 + 90) / 1e3)
    assert roof.plain_w(6) == -5_000
    assert roof.move(6, -5_000) == 0
    assert roof.move(6, 0) == pytest.approx(5 * 2 * 30 / 1e3)
    assert roof.plain_w(0) == 0


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (HEAT.replace("model =", 'power = "a/power"\n#'), "model is missing"),
        (CAR.replace("arrival =", 'plugged = "a/plugged"\n#'), "arrival"),
    ],
)
def test_a_device_that_only_a_meter_knows_is_refused(text, fault):
    with pytest.raises(ConfigurationError, match=fault):
        device(text)


# ------------------------------------------------------------ command


def files(folder) -> list[str]:
    market, start = prices(12), dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    with gzip.open(folder / "prices.csv.gz", "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["date", "real_time_eur", "day_ahead_eur"])
        days = [(start + dt.timedelta(hours=2 * n)).date() for n in range(len(market.real_time))]
        writer.writerows(zip(days, market.real_time, market.day_ahead, strict=True))
    with (folder / "load.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "value"])
        writer.writerows((start + dt.timedelta(minutes=30 * n), 0.3) for n in range(500))
    (folder / "assets.toml").write_text(SITE + BATTERY)
    names = {"--prices": "prices.csv.gz", "--load": "load.csv", "--assets": "assets.toml"}
    made = [word for option, name in names.items() for word in (option, str(folder / name))]
    return [*made, "--learn", "10", "--days", "1"]


def run(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def test_the_command_prints_facts(tmp_path, capsys):
    given = files(tmp_path)
    assert given[2] == "--load"
    assert run([*given[:2], *given[4:], "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["outside_limits_wh"] == 0
    assert run([*given, "--json", "--temperature", given[3], "--sun", given[3]]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cost"]["foresight"] <= facts["cost"]["bid"] + 1e-4
    assert set(facts["regret"]) == {"prices not known", "load and weather not known"}
    assert facts["cost"]["bid"] > alone["cost"]["bid"], "the load costs"


def test_the_command_draws(tmp_path, capsys):
    assert run([*files(tmp_path), "--minutes", "120", "--plot", str(tmp_path / "made.png")]) == 0
    seen = capsys.readouterr()
    assert "share of foresight" in seen.out
    assert "curve of day 1" in seen.out
    assert "█" in seen.out
    assert "3 of 3 days" in seen.err
    with Image.open(tmp_path / "made.png") as image:
        assert (image.format, image.width) == ("PNG", 1200)
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 24)}
    assert {(31, 95, 168), (217, 115, 13), (153, 153, 153)} <= colours, "all lines are in it"


def test_a_picture_that_can_not_be_written_is_told(tmp_path):
    with pytest.raises(EnergybidError, match="No such file"):
        run([*files(tmp_path), "--plot", str(tmp_path / "nowhere" / "made.png")])


def test_without_its_library_a_picture_is_refused_before_the_walk(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "energybid.agent.market.picture", None)
    with pytest.raises(EnergybidError, match="plot"):
        run([*files(tmp_path), "--plot", str(tmp_path / "made.png")])


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["--days", "90"], "has 12 days, not 100"),
        (["--minutes", "45"], "no multiple"),
        (["--prices", "load.csv"], "no column real_time"),
        (["--prices", "nowhere.csv"], "No such file"),
        (["--load", "prices.csv.gz"], "no column value"),
        (["--prices", "empty.csv"], "no rows"),
        (["--prices", "words.csv"], "could not convert"),
        (["--prices", "short.csv"], "first day has 1 steps"),
        (["--prices", "undated.csv"], "first column is the date"),
        (["--load", "dateless.csv"], "ISO 8601"),
        (["--learn", "0"], "a day of prices"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, words, fault):
    given = files(tmp_path)
    (tmp_path / "empty.csv").write_text("date,real_time,day_ahead\n")
    (tmp_path / "words.csv").write_text("date,real_time,day_ahead\n" + "2024-01-01,x,2\n" * 12)
    (tmp_path / "short.csv").write_text("date,real_time,day_ahead\n2024-01-01,1,2\n")
    (tmp_path / "undated.csv").write_text("date,real_time,day_ahead\n" + "Monday,1,2\n" * 12)
    (tmp_path / "dateless.csv").write_text("start,value\nx,1\ny,2\n")
    option, value = words
    with pytest.raises(EnergybidError, match=fault):
        run([*given, option, str(tmp_path / value) if value.endswith((".csv", ".gz")) else value])


@pytest.mark.parametrize("text", ["[site", SITE, SITE + '[[market.asset]]\nkind = "windmill"\nname = "x"'])
def test_assets_that_are_none_are_faults(tmp_path, text):
    given = files(tmp_path)
    (tmp_path / "assets.toml").write_text(text)
    with pytest.raises(ConfigurationError):
        run(given)
