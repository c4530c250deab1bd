"""``energybid simulate world``: virtual days of the whole system, each on a seed of its own."""

import argparse
import json
import sys

from energybid.core import exit_codes
from energybid.simulator.system import cpu_seconds, describe_commit, in_processes
from energybid.simulator.world.report import event_log, facts, render, replay_command, slim
from energybid.simulator.world.scenario import Faults, Scenario, bidding, large, load_scenario, small
from energybid.simulator.world.world import Outcome, simulate


def run(arguments: argparse.Namespace) -> int:
    """Simulate."""
    scenario = _scenario(arguments)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    cpu_s, outcomes = cpu_seconds(), list[Outcome]()
    for outcome in in_processes(_world, [(seed, arguments.days, scenario) for seed in seeds], arguments.jobs):
        outcomes.append(outcome)
        if outcome.violations:
            _failed(outcome, arguments)
    found = facts(outcomes, cpu_seconds() - cpu_s)
    sys.stdout.write(json.dumps(found) + "\n" if arguments.json else render(found))
    return exit_codes.NOT_VERIFIED if found["failed"] else exit_codes.OK


def _scenario(arguments: argparse.Namespace) -> Scenario:
    if arguments.scenario:
        scenario = load_scenario(arguments.scenario)
        if arguments.faults is None:
            return scenario
        return scenario.model_copy(update={"faults": Faults.chosen(arguments.faults)})
    made = large if arguments.large else bidding if arguments.market else small
    return made(Faults.chosen(arguments.faults or "all"))


def _world(task: tuple[int, float, Scenario]) -> Outcome:
    return slim(simulate(*task))


def _failed(outcome: Outcome, arguments: argparse.Namespace) -> None:
    """Say how to see it again, and write the event log."""
    options = [f"--faults {arguments.faults}"] if arguments.faults else []
    options += ["--large"] if arguments.large else ["--market"] if arguments.market else []
    options += [f"--scenario {arguments.scenario}"] if arguments.scenario else []
    command, commit = replay_command(outcome, " ".join(options)), describe_commit()
    path = arguments.log / f"world-{outcome.seed}.log"
    path.write_text(event_log(outcome, command, commit), encoding="utf-8")
    first = outcome.violations[0]
    sys.stderr.write(
        f"seed {outcome.seed}, commit {commit}: {first.invariant}: {first.text}\n"
        f"  again: {command}\n  event log: {path}\n"
    )
    sys.stderr.flush()
