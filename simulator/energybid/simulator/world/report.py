"""What a run of worlds says: to people, to programs, and into the event log of one that failed."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from energybid.simulator.world.world import Outcome


def replay_command(outcome: Outcome, arguments: str) -> str:
    """What shows this very world again."""
    return f"energybid simulate world --seed {outcome.seed} --days {outcome.days:g} {arguments}".rstrip()


def facts(outcomes: Sequence[Outcome], cpu_s: float) -> dict[str, Any]:
    """Everything, for ``--json``."""
    counts: Counter[str] = sum((outcome.counts for outcome in outcomes), Counter())
    hours = sum(outcome.gateway_hours for outcome in outcomes)
    failed = [outcome for outcome in outcomes if outcome.violations]
    return {
        "seeds": len(outcomes),
        "failed": [{"seed": o.seed, "violations": [violation._asdict() for violation in o.violations]} for o in failed],
        "gateway_hours": round(hours, 1),
        "cpu_s": round(cpu_s, 1),
        "gateway_hours_per_cpu_hour": round(hours / cpu_s * 3600) if cpu_s else 0,
        "readings": sum(outcome.readings for outcome in outcomes),
        "entries": sum(outcome.entries for outcome in outcomes),
        "acknowledged": sum(outcome.acknowledged for outcome in outcomes),
        "damaged": sum(outcome.damaged for outcome in outcomes),
        "suspect": sum(outcome.suspects for outcome in outcomes),
        "bids": dict(sorted(sum((outcome.bids for outcome in outcomes), Counter()).items())),
        "events": dict(sorted(counts.items())),
        "faults": dict(sorted(Counter(f.split()[2] for o in outcomes for f in o.faults).items())),
        "shares": dict(sorted(sum((outcome.shares for outcome in outcomes), Counter()).items())),
        "traces": {str(outcome.seed): outcome.trace for outcome in outcomes},
    }


def render(found: dict[str, Any]) -> str:
    """The facts for people."""
    worlds = f"{found['seeds']} world{'s' if found['seeds'] > 1 else ''}"
    speed = f"{found['gateway_hours_per_cpu_hour']} gateway-hours per CPU-hour"
    logged = f"{found['readings']} readings, {found['entries']} entries in the logs"
    damaged = f", {found['damaged']} lost with damaged disks before that" if found["damaged"] else ""
    lines = [
        f"{worlds}, {found['gateway_hours']:g} gateway-hours in {found['cpu_s']:g} s of CPU ({speed})",
        f"{logged}, {found['acknowledged']} acknowledged{damaged}, {found['suspect']} numbers marked suspect",
        "events   " + ", ".join(f"{kind} {count}" for kind, count in found["events"].items()),
        "faults   " + (", ".join(f"{name} {count}" for name, count in found["faults"].items()) or "none"),
    ]
    lines.append("shares   " + (", ".join(f"{name} {count}" for name, count in found["shares"].items()) or "none"))
    if found["bids"]:
        lines.append("market   " + ", ".join(f"{name} {count}" for name, count in found["bids"].items()))
    if found["seeds"] == 1:
        lines += [f"trace    {trace}" for trace in found["traces"].values()]
    lines.append(f"FAILED   {len(found['failed'])} worlds" if found["failed"] else "every invariant held")
    return "\n".join(lines) + "\n"


def event_log(outcome: Outcome, command: str, commit: str) -> str:
    """The minimal event log of a world that failed: every fault, and what happened last."""
    return "\n".join(
        [
            f"seed {outcome.seed}, {outcome.days:g} days, commit {commit}",
            f"replay: {command}",
            *(f"violated {violation.invariant}: {violation.text}" for violation in outcome.violations),
            "",
            "faults",
            *(f"  {line}" for line in outcome.faults),
            "",
            "last events",
            *(f"  {line}" for line in outcome.recent),
            "",
        ]
    )


def slim(outcome: Outcome) -> Outcome:
    """Without the events of a world that was right: they need not travel between processes."""
    return outcome if outcome.violations else dataclasses.replace(outcome, recent=[])
