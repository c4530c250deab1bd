"""The scenario in the README is one."""

import re
from pathlib import Path

from energybid.core.settings import parse_toml
from energybid.simulator.world.scenario import Faults, Scenario

README = Path(__file__).parents[2] / "simulator" / "README.md"


def test_the_scenario_of_the_readme():
    text = README.read_text(encoding="utf-8")
    [toml] = [block for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL) if "agent_killed" in block]
    scenario = parse_toml("README.md", toml.encode(), Scenario)
    assert scenario.faults.broker_away.most == 7200
    assert scenario.faults.headend_killed == Faults().headend_killed, "what is not said keeps its usual rate"
