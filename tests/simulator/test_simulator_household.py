import csv
import itertools
from importlib.resources import files

import pytest
from energybid.simulator.household import (
    BLOCK_MS,
    NOMINAL_MV,
    ROW_MS,
    UJ_PER_WH,
    Household,
    Site,
    State,
    divide,
    recorded_wh,
)
from hypothesis import given, settings
from hypothesis import strategies as st

DAY_MS = 86_400_000
SEEDS = st.text(min_size=1, max_size=8)
EXAMPLES = settings(deadline=None, max_examples=60)
"""No deadline: a jump of days takes its time on a busy machine."""


@pytest.fixture(scope="module")
def house() -> Household:
    return Household("7/house")


def test_the_recorded_series_is_fourteen_whole_days_without_gaps() -> None:
    path = files("energybid.simulator") / "data" / "uk_household_2014-02-13_14_days.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert rows[0]["start"] == "2014-02-13 00:00:00"
    assert rows[-1]["start"] == "2014-02-26 23:30:00"
    assert len(recorded_wh()) == 14 * 48
    assert all(abs(float(row["value"]) * 1000 - wh) < 0.002 for row, wh in zip(rows, recorded_wh(), strict=True))


@EXAMPLES
@given(total=st.integers(0, 10**15), weights=st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_parts_add_up_to_the_whole(total: int, weights: list[int]) -> None:
    weights[0] += 1
    parts = divide(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 0


def test_every_half_hour_imports_exactly_what_was_recorded(house: Household) -> None:
    marks = [sum(house.state(row * ROW_MS).import_uj) for row in range(len(recorded_wh()) + 1)]
    assert [b - a for a, b in itertools.pairwise(marks)] == [wh * UJ_PER_WH for wh in recorded_wh()]


@EXAMPLES
@given(seed=SEEDS, load=st.integers(1, 50_000), wh=st.integers(0, 5000))
def test_load_and_seed_keep_the_energy_exact(seed: str, load: int, wh: int) -> None:
    house = Household(seed, Site(load_permille=load), wh_per_row=[wh])
    assert sum(house.state(3 * ROW_MS).import_uj) == 3 * wh * load * UJ_PER_WH // 1000


@EXAMPLES
@given(seed=SEEDS, start=st.integers(0, DAY_MS), steps=st.lists(st.integers(1, 400_000), min_size=1, max_size=20))
def test_energy_never_decreases_at_any_pace(seed: str, start: int, steps: list[int]) -> None:
    house = Household(seed, Site(pv_peak_w=4000, import_wh=1_234_567))
    states = [house.state(at) for at in itertools.accumulate(steps, initial=start)]
    for before, after in itertools.pairwise(states):
        for name in ("import_uj", "export_uj", "reactive_uj", "apparent_uj"):
            assert all(a <= b for a, b in zip(getattr(before, name), getattr(after, name), strict=True)), name


def power_uj(state: State, ms: int) -> int:
    return sum(state.power_mw) * ms


@EXAMPLES
@given(seed=SEEDS, second=st.integers(0, 86_400), pv=st.sampled_from([0, 5000]))
def test_energy_is_the_integral_of_power(seed: str, second: int, pv: int) -> None:
    house = Household(seed, Site(pv_peak_w=pv))
    start = second * 1000
    states = [house.state(start + s * 1000) for s in range(21)]
    net = [sum(s.import_uj) - sum(s.export_uj) for s in states]
    assert [b - a for a, b in itertools.pairwise(net)] == [power_uj(s, 1000) for s in states[:-1]]
    assert sum(s.apparent_uj[1] for s in (states[1],)) - states[0].apparent_uj[1] == states[0].apparent_mva[1] * 1000


def test_energy_within_a_second_grows_by_the_millisecond(house: Household) -> None:
    a, b = house.state(1_000_250), house.state(1_000_750)
    assert sum(b.import_uj) - sum(a.import_uj) == power_uj(a, 500)
    assert a.power_mw == b.power_mw


def test_states_do_not_depend_on_the_order_of_questions() -> None:
    forward, backward = Household("x"), Household("x")
    times = [0, 1, BLOCK_MS, 5 * BLOCK_MS + 123, DAY_MS, DAY_MS + 999]
    assert [forward.state(t) for t in times] == [backward.state(t) for t in reversed(times)][::-1]


def test_the_replay_goes_on_after_its_last_day(house: Household) -> None:
    total = sum(recorded_wh()) * UJ_PER_WH
    assert sum(house.state(14 * DAY_MS).import_uj) == total
    assert sum(house.state(28 * DAY_MS).import_uj) == 2 * total


def test_a_plant_exports_at_noon_and_nothing_at_night() -> None:
    house = Household("roof", Site(pv_peak_w=8000))
    assert sum(house.state(DAY_MS // 2).power_mw) < 0
    assert sum(house.state(DAY_MS // 24).export_uj) == 0
    assert sum(house.state(DAY_MS).export_uj) > 1000 * UJ_PER_WH


def test_begin_shifts_the_recording_and_counts_from_what_was_there() -> None:
    late = Household("x", Site(begin_ms=10 * ROW_MS, import_wh=5_000_000))
    assert sum(late.state(0).import_uj) == 5_000_000 * UJ_PER_WH
    assert sum(late.state(ROW_MS).import_uj) == (5_000_000 + recorded_wh()[10]) * UJ_PER_WH


def test_one_phase_has_all_of_a_single_phase_site() -> None:
    state = Household("x", Site(phases=1)).state(12_345_678)
    assert state.power_mw[0] > 0
    assert state.power_mw[1:] == (0, 0)


@EXAMPLES
@given(seed=SEEDS, at=st.integers(0, 14 * DAY_MS), load=st.sampled_from([100, 1000, 40_000]))
def test_electrical_values_are_plausible_and_agree(seed: str, at: int, load: int) -> None:
    state = Household(seed, Site(load_permille=load)).state(at)
    assert 49_900 <= state.frequency_mhz <= 50_100
    for phase in range(3):
        assert abs(state.voltage_mv[phase] - NOMINAL_MV) < NOMINAL_MV // 10
        p, q, s = (x[phase] for x in (state.power_mw, state.reactive_mvar, state.apparent_mva))
        assert s >= p >= 0
        assert s * s == pytest.approx(p * p + q * q, rel=0.01, abs=100)
        assert state.current_ma(phase) * state.voltage_mv[phase] <= s * 1000


def test_two_seeds_differ_and_one_seed_repeats() -> None:
    assert Household("a").state(999_999) == Household("a").state(999_999)
    assert Household("a").state(999_999) != Household("b").state(999_999)
