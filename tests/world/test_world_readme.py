"""What the documents say of the world is so."""

import re
from pathlib import Path

from energybid.core.settings import parse_toml
from energybid.simulator.world import bids, watch
from energybid.simulator.world.scenario import Faults, Happening, Scenario

ROOT = Path(__file__).parents[2]
README = ROOT / "simulator" / "README.md"
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_the_scenario_of_the_readme():
    text = README.read_text(encoding="utf-8")
    [toml] = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "agent_killed" in block]
    scenario = parse_toml("README.md", toml.encode(), Scenario)
    assert scenario.faults.broker_away.most == 7200
    assert scenario.faults.headend_killed == Faults().headend_killed, "what is not said keeps its usual rate"


def lasting(seconds):
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"


def rows(faults):
    """How each fault of the usual preset stands in the table: name, rate and shape."""
    for name in Faults.model_fields:
        fault = getattr(faults, name)
        if isinstance(fault, Happening):
            shape = f"{lasting(fault.least)} to {lasting(fault.most)}" if fault.most > 1 else "at once"
            yield f"| `{name}` | {fault.per_day:g} a day | {shape} |"
        elif isinstance(fault, float):
            share = "of phases of rounds" if name.startswith("round") else "of answers or messages"
            yield f"| `{name}` | {100 * fault:g} % | {share} |"
        else:
            share = "of the market's messages" if name == "market_lies" else "of answers"
            for kind, rate in fault.rates().items():
                yield f"| `{name}.{kind}` | {100 * rate:g} % | {share} |"


def test_every_fault_stands_in_the_table_as_it_is():
    assert [row for row in rows(Faults()) if row not in RELIABILITY] == []


def test_every_invariant_stands_in_the_table_and_has_a_mutation():
    named = re.findall(r"^\| ``(\w+)``", watch.__doc__ + bids.__doc__, re.MULTILINE)
    assert len(named) > 24
    files = ("test_world_mutations.py", "test_world_bids.py")
    mutations = "".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in files)
    for name in named:
        assert f"| `{name}` |" in RELIABILITY, name
        assert f"def test_{name}_" in mutations, name
