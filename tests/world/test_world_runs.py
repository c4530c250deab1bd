"""Whole worlds: they end well, the same seed repeats itself under any hash seed, a failure can be shown again."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from energybid.agent.cli import main
from energybid.agent.judgement import Judge
from energybid.core import exit_codes
from energybid.simulator.world.scenario import Faults, Scenario, bidding, small
from energybid.simulator.world.world import simulate

ENERGYBID = Path(sys.executable).with_name("energybid")


def world(*arguments, **environment):
    command = [ENERGYBID, "simulate", "world", "--json", *map(str, arguments)]
    untraced = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, capture_output=True, text=True, env=untraced | environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_same_seed_has_the_same_trace_whatever_the_hash_seed():
    runs = [world("--seed", 3, "--days", 0.4, PYTHONHASHSEED=str(seed)) for seed in (1, 2)]
    assert runs[0]["traces"] == runs[1]["traces"]
    assert runs[0]["events"] == runs[1]["events"]
    assert runs[0]["faults"]


def test_a_site_that_bids_has_the_same_trace_whatever_the_hash_seed():
    runs = [world("--market", "--seed", 4, "--days", 0.03, PYTHONHASHSEED=str(seed)) for seed in (1, 2)]
    assert runs[0]["traces"] == runs[1]["traces"]
    assert runs[0]["bids"]["awards"] > 2


def test_several_worlds_in_several_processes_are_the_same_as_one_by_one():
    together = world("--seed", 5, "--seeds", 2, "--jobs", 2, "--days", 0.05)
    assert together["traces"].keys() == {"5", "6"}
    assert simulate(6, 0.05, small(Faults())).trace == together["traces"]["6"]
    assert together["traces"]["5"] != together["traces"]["6"]


def test_ctrl_c_says_what_was_done_until_then():
    """On a terminal, where a line tells how far it is."""
    master, terminal = pty.openpty()
    arguments = ["simulate", "world", "--seeds", "90", "--days", "0.02", "--jobs", "2", "--json"]
    with subprocess.Popen(
        [ENERGYBID, *arguments], stdout=subprocess.PIPE, stderr=terminal, start_new_session=True
    ) as process:
        os.close(terminal)
        shown = b""
        while b"of 90 worlds, 0 failed, " not in shown:
            shown += os.read(master, 4096)
        os.killpg(process.pid, signal.SIGINT)
        found = json.loads(process.stdout.read())
    os.close(master)
    assert process.returncode == exit_codes.INTERRUPTED
    assert 0 < found["seeds"] < 90


def test_nothing_happens_where_nothing_may():
    outcome = simulate(1, 0.1, small(Faults.none()))
    assert (outcome.violations, outcome.faults, outcome.suspects) == ([], [], 0)
    assert outcome.entries == outcome.acknowledged > outcome.readings > 3 * 0.1 * 24 * 60


@pytest.mark.untraced
def test_two_gateways_share_a_headend():
    outcome = simulate(2, 0.2, Scenario(gateways=2, tcp_meters=1, serial_meters=1))
    assert outcome.violations == []
    assert outcome.gateway_hours > 2 * 0.2 * 24


def test_half_a_day_of_everything():
    outcome = simulate(201, 0.5, small(Faults()))  # ``make worlds`` runs 1 to 200, of a day each
    assert outcome.violations == []
    assert len(outcome.faults) > 15
    assert outcome.entries == outcome.acknowledged


@pytest.mark.untraced
def test_some_hours_of_bidding_with_everything():
    outcome = simulate(201, 0.1, bidding(Faults()))
    assert outcome.violations == []
    assert outcome.bids["awards"] > 5
    assert outcome.bids["statements"] > 1
    assert outcome.bids["refused"] > 0


def test_a_failure_prints_how_to_see_it_again_and_leaves_an_event_log(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(Judge, "__call__", lambda _, sample: sample)
    arguments = ["--seed", "1", "--days", "0.5", "--faults", "meter"]
    assert main(["simulate", "world", *arguments, "--log", str(tmp_path)]) == exit_codes.NOT_VERIFIED
    out, err = capsys.readouterr()
    again = "energybid simulate world --seed 1 --days 0.5 --faults meter"
    assert "FAILED   1 worlds" in out
    assert "decrease" in err
    assert again in err
    assert "commit" in err
    log = (tmp_path / "world-1.log").read_text()
    assert again in log
    assert "violated decrease" in log
    assert "meter_" in log
    assert main(["simulate", "world", *arguments, "--log", str(tmp_path), "--json"]) == exit_codes.NOT_VERIFIED
    assert json.loads(capsys.readouterr().out)["failed"][0]["violations"][0]["invariant"] == "decrease"
