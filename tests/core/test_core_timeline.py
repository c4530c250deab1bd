"""Times taken before the clock was right, re-based: whatever the wall clock did, the corrected time is the true one."""

from energybid.core.entries import Clock, Reading, Start
from energybid.core.quantities import ClockState
from energybid.core.timeline import DRIFT_PPM, Corrected, Timeline
from hypothesis import given
from hypothesis import strategies as st

T = 1_790_000_000_000
UNSYNCHRONISED, HOLDOVER, SYNCHRONISED = ClockState


def start(boot, time_ms, mono_ms, clock):
    return Start(boot * 16, time_ms, mono_ms, clock, "1", bytes(32))


def reading(begun, time_ms, mono_ms, clock):
    return Reading(9, 0, time_ms, 5, clock, begun, mono_ms, (1,), None)


def test_a_gateway_that_starts_in_1970():
    line = Timeline()
    line.add(1, start(b"a", 3_000, 10_000, UNSYNCHRONISED))
    line.add(50, Clock(1, 70_000, 63_000, T + 70_000, SYNCHRONISED))
    assert line.correct(reading(1, 13_000, 20_000, UNSYNCHRONISED)) == Corrected(T + 20_000, 5)
    assert line.correct(reading(1, T + 80_001, 80_000, SYNCHRONISED)) == Corrected(T + 80_001, 0)


def test_another_boot_says_nothing_and_the_same_boot_says_all():
    line = Timeline()
    line.add(0, start(b"a", 0, 5_000, UNSYNCHRONISED))
    line.add(10, start(b"a", T, 60_000, SYNCHRONISED))
    line.add(20, start(b"b", 0, 60_000, UNSYNCHRONISED))
    assert line.correct(reading(0, 1, 6_000, UNSYNCHRONISED)).time_ms == T - 54_000, "the agent was started again"
    assert line.correct(reading(20, 77, 61_000, UNSYNCHRONISED)) == Corrected(77, None), "the machine was"
    assert line.correct(reading(999, 77, 61_000, UNSYNCHRONISED)) == Corrected(77, None)


def test_holdover_is_counted_from_the_nearest_synchronisation():
    line = Timeline()
    line.add(0, start(b"a", T, 0, SYNCHRONISED))
    line.add(9, Clock(0, 10_000_000, T + 10_003_000, T + 10_000_100, SYNCHRONISED))
    assert line.correct(reading(0, T + 1, 1_000_000, HOLDOVER)).time_ms == T + 1_000_000
    assert line.correct(reading(0, T + 1, 9_000_000, HOLDOVER)) == Corrected(T + 9_000_100, 100)


@given(
    drift_ppm=st.integers(-DRIFT_PPM, DRIFT_PPM),
    syncs=st.lists(st.integers(0, 10**9), min_size=1, max_size=8),
    steps=st.lists(st.integers(-(10**12), 10**12), min_size=1, max_size=8),
    moments=st.lists(st.integers(0, 10**9), min_size=1, max_size=20),
    restart=st.integers(0, 10**9),
)
def test_the_true_time_lies_within_the_uncertainty(drift_ppm, syncs, steps, moments, restart):
    """One boot, a crystal that is off, a wall clock that shows anything while it is not synchronised."""

    def mono(true_ms):
        return 1_000 + true_ms + true_ms * drift_ppm // 1_000_000

    line = Timeline()
    line.add(0, start(b"a", 0, mono(0), UNSYNCHRONISED))
    line.add(1, start(b"a", 0, mono(restart), UNSYNCHRONISED))
    for n, (true_ms, step) in enumerate(zip(syncs, steps * 8, strict=False), 2):
        line.add(n, Clock(n % 2, mono(true_ms), T + step, T + true_ms, SYNCHRONISED))
    for n, true_ms in enumerate(moments):
        shown = T + steps[n % len(steps)]
        found = line.correct(reading(n % 2, shown, mono(true_ms), UNSYNCHRONISED))
        assert abs(found.time_ms - (T + true_ms)) <= found.uncertainty_ms + 2, "and rounding"
        nearest = min(abs(mono(sync) - mono(true_ms)) for sync in syncs)
        assert found.uncertainty_ms <= nearest * DRIFT_PPM // 1_000_000 + 1
