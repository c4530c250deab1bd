"""The back-test: its figures, what it may know, and its command."""

import argparse
import csv
import datetime as dt
import gzip
import json

import numpy as np
import pytest
from energybid.agent.commands import backtest as command
from energybid.bidding.assets import Pv
from energybid.bidding.assets_stores import Battery
from energybid.bidding.backtest import Scene, backtest
from energybid.bidding.prices_trading import Market
from energybid.bidding.site import Site
from energybid.core.errors import ConfigurationError, EnergybidError

STEPS = 12
BATTERY = Battery(
    stored_wh=0,
    capacity_wh=10_000,
    charge_w=4_000,
    discharge_w=4_000,
    charge_efficiency=0.95,
    discharge_efficiency=0.95,
    discharge_wear=2.0,
)


def prices(days: int) -> Market:
    chance = np.random.default_rng(5)
    hour = np.arange(days * STEPS) % STEPS * 2
    day_ahead = 40 + 20 * np.sin((hour - 9) / 24 * 4 * np.pi)
    return Market(day_ahead + 6 * chance.normal(size=len(hour)), day_ahead, STEPS)


def scene(export_limit_w: int = 20_000, days: int = 17) -> Scene:
    chance = np.random.default_rng(6)
    load_w = 500 + 400 * chance.random(days * STEPS)
    return Scene(Site((BATTERY,), 20_000, export_limit_w), prices(days), load_w, days - 2)


@pytest.fixture(scope="module")
def report():
    return backtest(scene())


def test_foresight_is_best_and_bidding_saves(report):
    assert report.foresight.total <= report.bid.total < report.idle
    assert 0.5 < report.share <= 1
    assert report.bid.total - report.foresight.total == pytest.approx(sum(report.regret.values()))


def test_energy_is_accounted_for(report):
    made, load_w = report.bid, scene().load_w[-2 * STEPS :]
    power_w = made.net_w - load_w
    stored_wh = np.cumsum(2 * np.where(power_w > 0, power_w * 0.95, power_w / 0.95))
    assert np.allclose(made.stored_wh, stored_wh, atol=2.0)
    money = prices(17).real_time[-2 * STEPS :] * made.net_w + 2.0 * np.maximum(-power_w, 0)
    assert made.cost.sum() == pytest.approx(2 * money.sum() / 1e6)


def test_no_export_where_none_is_allowed():
    made = backtest(scene(export_limit_w=0, days=10))
    assert made.loads_known.outside_wh == pytest.approx(0, abs=20)
    assert made.loads_known.net_w.min() > -1
    assert made.regret["load not known"] != 0


def test_what_can_not_be_walked_is_refused():
    one = scene()
    sunny = Site((Pv(forecast_w=(1_000,)),), 1_000, 1_000)
    with pytest.raises(ValueError, match="only batteries"):
        backtest(Scene(sunny, one.market, one.load_w, one.first_day))


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
    (folder / "assets.toml").write_text(
        "[site]\nimport_limit_w = 9000\nexport_limit_w = 9000\n"
        "[[battery]]\nstored_wh = 0\ncapacity_wh = 8000\ncharge_w = 3000\ndischarge_w = 3000\n"
    )
    names = {"--prices": "prices.csv.gz", "--load": "load.csv", "--assets": "assets.toml"}
    made = [word for option, name in names.items() for word in (option, str(folder / name))]
    return [*made, "--learn", "10", "--days", "1"]


def run(words: list[str]) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(words))


def test_the_command_prints_facts(tmp_path, capsys):
    assert run([*files(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cost"]["foresight"] <= facts["cost"]["bid"]
    assert set(facts["regret"]) == {"prices not known", "load not known"}


def test_the_command_draws(tmp_path, capsys):
    assert run([*files(tmp_path), "--minutes", "120"]) == 0
    seen = capsys.readouterr()
    assert "share of foresight" in seen.out
    assert "█" in seen.out
    assert "2 of 2 days" in seen.err


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
        (["--load", "dateless.csv"], "ISO 8601"),
        (["--learn", "0"], "a day of prices"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, words, fault):
    given = files(tmp_path)
    (tmp_path / "empty.csv").write_text("date,real_time,day_ahead\n")
    (tmp_path / "words.csv").write_text("date,real_time,day_ahead\n2024-01-01,x,2\n")
    (tmp_path / "short.csv").write_text("date,real_time,day_ahead\n2024-01-01,1,2\n")
    (tmp_path / "dateless.csv").write_text("start,value\nx,1\ny,2\n")
    option, value = words
    with pytest.raises(EnergybidError, match=fault):
        run([*given, option, str(tmp_path / value) if value.endswith((".csv", ".gz")) else value])


@pytest.mark.parametrize("text", ["[site", "[site]\nimport_limit_w = 1\nexport_limit_w = 1", "[[battery]]\nwatts = 1"])
def test_assets_that_are_none_are_faults(tmp_path, text):
    given = files(tmp_path)
    (tmp_path / "assets.toml").write_text(text)
    with pytest.raises(ConfigurationError):
        run(given)
