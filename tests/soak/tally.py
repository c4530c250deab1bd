"""What became of everything: both databases verified by the product's own command, and compared entry by entry."""

import dataclasses
import json
from collections import Counter

import apsw
from energybid.core.entries import Declaration, Reading
from energybid.core.log import parse_entry
from energybid.simulator.compare import compare
from soak.stage import KEYS

DATABASES = ("journal.db", "headend.db")


def sabotage(folder):
    """Take one entry out of the head-end's database: the soak must see it."""
    database = apsw.Connection(str(folder / "headend.db"))
    database.execute("DELETE FROM entry WHERE sequence = (SELECT max(sequence) / 2 FROM entry)")
    database.close()


def tally(stage):
    """(facts, failures); all processes have ended."""
    compared = dataclasses.asdict(compare(*(stage.folder / name for name in DATABASES)))
    order = _order(stage.folder / "headend.db")
    verified = {name: _verify(stage, name) for name in DATABASES}
    logs = {name: _log(stage.folder / f"{name}.log") for name in stage.actors}
    failures = [f"{name}: {fault}" for name, report in verified.items() for fault in report["faults"]]
    failures += [f"{name} does not verify" for name, report in verified.items() if not report["verified"]]
    failures += [f"{compared[what]} {what}" for what in ("missing", "foreign", "duplicated") if compared[what]]
    failures += [f"{count} {what} at the head-end" for what, count in order.items() if count]
    failures += [f"{log['tracebacks']} tracebacks in {name}.log" for name, log in logs.items() if log["tracebacks"]]
    if not compared["entries"] == compared["stored"] > 0:
        failures.append(f"{compared['entries']} entries in the journal, {compared['stored']} at the head-end")
    if compared["acknowledged"] != compared["readings"]:
        failures.append(f"{compared['readings']} readings, receipts for {compared['acknowledged']}")
    facts = {**compared, **order, "verified": {name: report["verified"] for name, report in verified.items()}}
    return {**facts, "conflicts": verified["headend.db"].get("conflicts"), "logs": logs}, failures


def _verify(stage, name):
    done = stage.energybid("verify", name, "--json", *KEYS)
    report = json.loads(done.stdout) if done.stdout else {"verified": False, "faults": [done.stderr.strip()]}
    if report.get("conflicts"):
        report["faults"] = [*report["faults"], f"{report['conflicts']} conflicts"]
    return {**report, "verified": report["verified"] and done.returncode == 0}


def _order(path):
    """Holes, doubles and wrong order at the head-end, by its database alone.

    ``mono_ms`` counts from the machine's boot, so it rises over all lives of the agent.
    """
    database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    rows = database.execute("SELECT epoch, sequence, canonical FROM entry ORDER BY epoch, sequence")
    found = Counter(holes=0, doubles=0, reordered=0)
    expected, names, last, seen = Counter(), {}, {}, set()
    for epoch, sequence, canonical in rows:
        found["holes"] += sequence - expected[epoch]
        expected[epoch] = sequence + 1
        found["doubles"] += canonical in seen
        seen.add(canonical)
        entry = parse_entry(canonical)
        if isinstance(entry, Declaration):
            names[epoch, sequence] = entry.meter
        elif isinstance(entry, Reading):
            meter = names.get((epoch, entry.declaration)), entry.group
            found["doubles"] += entry.mono_ms == last.get(meter)
            found["reordered"] += entry.mono_ms < last.get(meter, 0)
            last[meter] = entry.mono_ms
    database.close()
    return dict(found)


def _log(path):
    text = path.read_text(errors="replace")
    return {"warnings": text.count(" WARNING "), "tracebacks": text.count("Traceback (most recent call last)")}
