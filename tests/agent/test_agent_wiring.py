"""The wiring checks: each finding fires on its fault and on no other; faults come from the simulated site."""

from dataclasses import replace
from itertools import permutations

import pytest
from energybid.agent.cabinet.findings import Finding, Severity, counts, lines
from energybid.agent.cabinet.sight import Energy, Sight
from energybid.agent.cabinet.wiring_checks import check_wiring
from energybid.simulator.household import Household, Site, State
from energybid.simulator.wiring import RIGHT, Wiring, seen
from hypothesis import given, settings
from hypothesis import strategies as st

EVENING = 19 * 3_600_000
LOAD = 30_000
"""Per mille of the household: each phase has more than enough to tell."""
QUIET = Sight(
    name="m",
    voltage=(230.0, 231.0, 229.0),
    current=(5.0, 4.0, 6.0),
    power=(1100.0, 900.0, 1330.0),
    reactive=(200.0, 150.0, 300.0),
    apparent=(1150.0, 924.0, 1374.0),
    factor=(0.957, 0.974, 0.968),
    total_power=3330.0,
    total_factor=0.96,
    frequency=50.01,
)


def sight(state: State, name: str = "m") -> Sight:
    def of(values: tuple[int, int, int]) -> tuple[float, float, float]:
        a, b, c = (value / 1000 for value in values)
        return a, b, c

    a, b, c = (state.current_ma(n) / 1000 for n in range(3))
    return Sight(
        name=name,
        voltage=of(state.voltage_mv),
        current=(a, b, c),
        power=of(state.power_mw),
        reactive=of(state.reactive_mvar),
        apparent=of(state.apparent_mva),
        total_power=sum(state.power_mw) / 1000,
        frequency=state.frequency_mhz / 1000,
    )


def house(wiring: Wiring, at_ms: int = EVENING, **site: int) -> Sight:
    return sight(seen(Household("doctor", Site(load_permille=LOAD, **site)).state(at_ms), wiring))


def found(view: Sight, *, plant: bool = True) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_wiring(view, plant=plant)}


def serious(view: Sight, *, plant: bool = True) -> set[str]:
    return {check for check, finding in found(view, plant=plant).items() if counts([finding])}


# ---------------------------------------------------------------- nothing is wrong


def test_a_right_installation_has_only_what_can_not_be_told() -> None:
    assert set(found(QUIET, plant=False)) == {"phase-order"}


@given(st.integers(0, 3 * 86_400_000), st.sampled_from([1000, 4000, LOAD]))
@settings(max_examples=60, deadline=None)
def test_no_moment_of_a_right_house_is_found_wrong(at_ms: int, load: int) -> None:
    state = Household("doctor", Site(load_permille=load)).state(at_ms)
    assert serious(sight(seen(state, RIGHT)), plant=False) == set()


def test_a_plant_that_exports_is_remarked_and_no_fault_unless_there_is_none() -> None:
    view = house(RIGHT, at_ms=12 * 3_600_000, pv_peak_w=400_000)
    assert max(power or 0 for power in view.power) < 0
    assert found(view)["export"].severity is Severity.NOTE
    assert serious(view) == set()
    assert serious(view, plant=False) == {"reversed"}


# ---------------------------------------------------------------- transformers


@pytest.mark.parametrize("phase", [0, 1, 2])
def test_a_reversed_transformer_is_named(phase: int) -> None:
    view = house(Wiring(reversed_ct=(phase,)))
    assert serious(view) == {"reversed"}
    finding = found(view)["reversed"]
    assert f"The current of L{phase + 1} is reversed" in finding.means
    assert finding.severity is Severity.WARNING, "something may generate on that phase"
    assert "generates" in finding.means
    assert found(view, plant=False)["reversed"].severity is Severity.ERROR


def test_two_reversed_transformers_are_named() -> None:
    finding = found(house(Wiring(reversed_ct=(0, 2))))["reversed"]
    assert finding.measured.startswith("L1 and L3 the other way")


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 0)])
def test_swapped_transformers_are_named(pair: tuple[int, int]) -> None:
    view = house(Wiring(swapped_ct=pair))
    assert serious(view) == {"swapped"}
    finding = found(view)["swapped"]
    first, second = sorted(pair)
    assert f"the transformers of L{first + 1} and L{second + 1} are in each other's place" in finding.means
    assert finding.severity is Severity.ERROR


def test_a_rotation_of_all_three_is_told_from_a_swap_and_a_reversal() -> None:
    # U L1 with I L2, U L2 with I L3, U L3 with I L1: each lags 120° more
    view = replace(QUIET, power=(-723.0, -580.0, -925.0), reactive=(852.0, 704.0, 1001.0), total_power=-2228.0)
    means = found(view)["swapped"].means
    assert "L1 has the current of L2, L2 has the current of L3, L3 has the current of L1" in means


def test_without_reactive_power_a_reversal_is_still_seen() -> None:
    view = replace(QUIET, power=(1100.0, -900.0, 1330.0), reactive=(None, None, None), total_power=1530.0)
    assert serious(view) == {"reversed"}


def test_what_no_mounting_explains_is_said_so() -> None:
    view = replace(
        QUIET, power=(486.0, 390.0, 580.0), reactive=(-1042.0, -837.0, -1245.0), total_power=1456.0, factor=(None,) * 3
    )
    assert serious(view) == {"power-angle"}


def test_with_hardly_any_load_nothing_is_said_of_directions_and_with_little_nothing_is_sure() -> None:
    idle = replace(QUIET, current=(0.02, 0.02, 0.02), power=(-3.0, 3.0, 3.0), reactive=(0.0,) * 3, total_power=3.0)
    idle = replace(idle, apparent=(4.0,) * 3, factor=(None,) * 3)
    assert set(found(idle)) == {"direction-unknown"}
    little = replace(QUIET, current=(0.5, 0.5, 0.5), power=(100.0, -100.0, 100.0), reactive=(20.0, -20.0, 20.0))
    little = replace(little, apparent=(115.0,) * 3, total_power=100.0)
    assert found(little, plant=False)["reversed"].severity is Severity.WARNING


def test_a_meter_that_says_no_power_is_not_asked_for_directions() -> None:
    assert found(replace(QUIET, power=(None,) * 3, total_power=None, factor=(None,) * 3)) == {}


# ---------------------------------------------------------------- voltages and currents


def test_a_missing_phase_and_the_current_in_it() -> None:
    view = house(Wiring(missing_voltage=(1,)))
    assert serious(view) == {"missing-phase", "current-without-voltage"}
    assert found(view)["missing-phase"].measured.startswith("No voltage on L2: ")
    assert "A in L2, but 0.0 V" in found(view)["current-without-voltage"].measured
    assert serious(replace(view, current=(view.current[0], 0.0, view.current[2]))) == {"missing-phase"}


def test_a_meter_for_three_phases_at_a_supply_of_one_is_no_fault() -> None:
    view = Sight(
        name="m", voltage=(230.0, 0.0, 0.0), current=(3.0, 0.0, 0.0), power=(690.0, 0.0, 0.0), total_power=690.0
    )
    assert serious(view) == set()
    assert "one-phase" in found(view)


@pytest.mark.parametrize(
    ("voltage", "check"),
    [
        ((0.0, 0.1, 0.0), "no-voltage"),
        ((230.0, 115.0, 231.0), "low-voltage"),
        ((236.0, 215.0, 240.0), "uneven-voltage"),
        ((60.0, 60.5, 61.0), "unusual-voltage"),
        ((2300.0, 2301.0, 2300.0), "unusual-voltage"),
    ],
)
def test_voltages_that_should_not_be(voltage: tuple[float, float, float], check: str) -> None:
    assert serious(Sight(name="m", voltage=voltage)) == {check}


@pytest.mark.parametrize("voltage", [(119.0, 120.0, 121.0), (400.0, 401.0, 399.0), (230.0, None, None)])
def test_usual_supplies_of_the_world(voltage: tuple[float, float | None, float | None]) -> None:
    assert found(Sight(name="m", voltage=voltage)) == {}


def test_a_transformer_that_may_be_missing_is_remarked() -> None:
    view = house(Wiring(missing_ct=(2,)))
    assert serious(view) == set()
    assert found(view)["no-current"].measured.startswith("No current in L3")


# ---------------------------------------------------------------- sums and factors


def test_more_power_than_voltage_times_current() -> None:
    assert "too-much-power" in serious(replace(QUIET, current=(5.0, 0.4, 6.0)))


@pytest.mark.parametrize(("total", "text"), [(2800.0, "read wrongly"), (3330.0, "without their signs")])
def test_a_sum_that_is_none(total: float, text: str) -> None:
    view = replace(QUIET, power=(1100.0, -900.0, 1330.0), reactive=(200.0, -150.0, 300.0), total_power=total)
    assert text in found(view)["sum"].means
    assert "sum" not in found(replace(view, total_power=1530.0))


def test_power_factors_that_can_not_be() -> None:
    assert "above 1" in found(replace(QUIET, factor=(9.57, 0.974, 0.968)))["power-factor"].means
    assert "0.500, but" in found(replace(QUIET, factor=(0.957, 0.5, 0.968)))["power-factor"].measured


@pytest.mark.parametrize(("hertz", "fine"), [(50.0, True), (60.02, True), (45.0, False), (500.0, False), (0.0, False)])
def test_frequencies(hertz: float, fine: bool) -> None:  # noqa: FBT001
    assert ("frequency" in serious(replace(QUIET, frequency=hertz))) is not fine


# ---------------------------------------------------------------- energy


def energy(counted_wh: float, integrated_wh: float, step_wh: float = 1.0, doubt_wh: float = 0.0) -> dict[str, Finding]:
    course = Energy(
        period_s=60.0, counted_wh=counted_wh, integrated_wh=integrated_wh, step_wh=step_wh, doubt_wh=doubt_wh
    )
    return found(replace(QUIET, energy=course))


def test_energy_is_compared_with_power_as_far_as_the_counter_allows() -> None:
    assert "energy" not in energy(56.0, 55.5)
    assert "energy-unknown" not in energy(56.0, 55.5)
    assert "energy" in energy(5.0, 55.5)
    assert "energy" in energy(-55.0, 55.5)
    assert "energy" in energy(555.0, 55.5)
    assert "energy" not in energy(50.0, 55.5, step_wh=10.0)
    assert "energy" not in energy(5.0, 55.5, doubt_wh=50.0), "a load that came and went between two looks"
    unknown = energy(0.0, 0.5)["energy-unknown"]
    assert unknown.cure == "Watch about 960 s at this load (--for)."
    assert "with a load" in energy(0.0, 0.0)["energy-unknown"].cure


# ---------------------------------------------------------------- words


@given(st.sampled_from([*permutations(range(3), 2)]), st.booleans())
@settings(max_examples=12, deadline=None)
def test_every_finding_fits_a_terminal(pair: tuple[int, int], plant: bool) -> None:  # noqa: FBT001
    for wiring in (Wiring(swapped_ct=pair), Wiring(reversed_ct=pair), Wiring(missing_voltage=pair[:1])):
        for finding in check_wiring(house(wiring), plant=plant):
            assert all(len(line) < 80 for line in lines(finding))
