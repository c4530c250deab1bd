"""``energybid simulate world``: virtual days of the whole system, each on a seed of its own."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from energybid.core import exit_codes
from energybid.simulator.system import cpu_seconds, describe_commit, in_processes, now_ms
from energybid.simulator.world.report import event_log, facts, render, replay_command, slim
from energybid.simulator.world.scenario import Faults, Scenario, bidding, large, load_scenario, small
from energybid.simulator.world.world import Outcome, simulate

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

LINE_EVERY = 100


def run(arguments: argparse.Namespace) -> int:
    """Simulate."""
    scenario = _scenario(arguments)
    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    cpu_s, outcomes, interrupted = cpu_seconds(), list[Outcome](), False
    progress = _Progress(len(seeds))
    try:
        for outcome in in_processes(_world, [(seed, arguments.days, scenario) for seed in seeds], arguments.jobs):
            outcomes.append(outcome)
            if outcome.violations:
                progress.clear()
                _failed(outcome, arguments)
            progress.done(outcomes)
    except KeyboardInterrupt:
        if not outcomes:
            raise
        interrupted = True
    progress.clear()
    found = facts(outcomes, cpu_seconds() - cpu_s)
    sys.stdout.write(json.dumps(found) + "\n" if arguments.json else render(found))
    if found["failed"]:
        return exit_codes.NOT_VERIFIED
    return exit_codes.INTERRUPTED if interrupted else exit_codes.OK


class _Progress:
    """On standard error: a line that stays in place, or without a terminal one for every hundred worlds."""

    def __init__(self, worlds: int) -> None:
        self._worlds, self._began_ms, self._live = worlds, now_ms(), sys.stderr.isatty()

    def done(self, outcomes: Sequence[Outcome]) -> None:
        count = len(outcomes)
        if self._worlds == 1 or (not self._live and count % LINE_EVERY):
            return
        failed = sum(bool(outcome.violations) for outcome in outcomes)
        left_s = (now_ms() - self._began_ms) / 1000 * (self._worlds / count - 1)
        text = f"{count} of {self._worlds} worlds, {failed} failed, {left_s / 60:.0f} min left"
        sys.stderr.write(f"\r{text}\x1b[K" if self._live else f"{text}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")


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
