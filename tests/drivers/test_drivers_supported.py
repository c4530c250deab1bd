"""SUPPORTED.md's figures: every model is read with the optimum of requests."""

from functools import cache

import pytest
from energybid.drivers.planner import Cost, Span, serial_cost, tcp_cost
from energybid.drivers.profile import LoadedProfile, list_profiles, load_profile, plan_requests, readable, wanted_spans
from energybid.drivers.supported import supported


def optimum(loaded: LoadedProfile, cost: Cost) -> int:
    """Least cost, found by trying every length of every request from the first number that is still to be read."""
    cells = wanted_spans(loaded.registers)

    @cache
    def rest(index: int) -> int:
        if index == len(cells):
            return 0
        first = cells[index]
        (block,) = (span for span in readable(loaded.profile) if span.holds(first))
        ways = []
        for length in range(first.length, min(loaded.profile.max_registers, block.end - first.first) + 1):
            request = Span(first.function, first.first, first.first + length)
            behind = index
            while behind < len(cells) and request.holds(cells[behind]):
                behind += 1
            ways.append(cost.of([request]) + rest(behind))
        return min(ways)

    return rest(0)


@pytest.mark.parametrize("name", list_profiles())
def test_requests_per_poll_are_the_optimum(name: str) -> None:
    loaded = load_profile(name)
    for cost in (tcp_cost(), serial_cost(9600)):
        assert cost.of(plan_requests(loaded, loaded.registers, cost)) == optimum(loaded, cost)


def test_every_profile_and_further_model_is_in_the_list() -> None:
    text = supported()
    for name in list_profiles():
        profile = load_profile(name).profile
        assert f"| `{name}` |" in text
        assert all(model in text for model in [profile.model, *profile.also])
        assert all(source.title.rstrip(".") in text for source in profile.source)
