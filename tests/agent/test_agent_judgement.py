"""A cumulative register that goes back is marked, once, whatever is missing around it, and across a restart."""

import dataclasses

from energybid.agent.judgement import Judge, last_counters
from energybid.agent.polling import declare
from energybid.core.ports import Counter, PollGroup, Sample
from energybid.core.quantities import Obis, Quantity, Status
from energybid.simulator.virtual import VirtualClock, run
from gateways import VOLTAGE, meter, recording, virtual_platform

ENERGY = Quantity(obis=Obis.parse("1-0:1.8.0"), unit="Wh", exponent=1, cumulative=True)
GROUP = PollGroup(interval_s=60.0, quantities=(VOLTAGE, ENERGY, ENERGY))


def judged(*readings):
    judge = Judge(GROUP)
    return [judge(Sample(0, 0, 0, values, status)).status for values, status in readings]


def test_what_grows_or_stays_is_left_alone_and_other_quantities_may_fall():
    assert judged(((9, 5, 5), None), ((1, 5, 6), None), ((0, 7, 7), None)) == [None] * 3


def test_a_fall_is_marked_and_then_that_the_counter_goes_on_from_there():
    found = judged(((9, 5, 5), None), ((9, 4, 6), None), ((9, 4, 7), None), ((9, 4, 8), None))
    assert found == [None, (Status.OK, Status.SUSPECT, Status.OK), (Status.OK, Status.RESTARTED, Status.OK), None]


def test_a_fall_in_a_reading_that_was_not_logged_is_marked_in_the_next_one():
    judge = Judge(GROUP)
    for values in ((9, 5, 5), (9, 4, 5), (9, 4, 6)):
        judge(Sample(0, 0, 0, values, None))
        if values != (9, 5, 5):
            judge.left_out()
    assert judge(Sample(0, 0, 0, (9, 4, 7), None)).status == (Status.OK, Status.SUSPECT, Status.OK)


S, R, O = Status.SUSPECT, Status.RESTARTED, Status.ROLLED_OVER  # noqa: E741
MINUTE = 60_000


def marks(*numbers, counter=Counter(rollover=1_000_000, word=65_536), every_ms=MINUTE):  # noqa: B008  a frozen value
    """The mark beside each number of one counter that is read so often."""
    judge = Judge(PollGroup(interval_s=60.0, quantities=(ENERGY,), counters=(counter,)))
    found = []
    for at, number in enumerate(numbers):
        status = None if number is not None else (Status.NO_REPLY,)
        sample = judge(Sample(0, 0, at * every_ms, (number,), status))
        assert sample.values == (number,), "the number itself is never touched"
        found.append(sample.status[0] if sample.status else 0)
    return found


def test_a_zero_that_passes_is_marked_alone():
    assert marks(500, 0, 501) == [0, S, 0]
    assert marks(500, 0, 0, None, 0, 503, 504) == [0, S, S, Status.NO_REPLY, S, 0, 0]


def test_a_counter_that_was_reset_counts_on_from_there():
    assert marks(500, 0, 0, 1, 2) == [0, S, S, R, 0]
    assert marks(500, 3, 4, 5) == [0, S, R, 0]
    assert marks(500, 300, 3, 4, 5) == [0, S, S, R, 0]
    zeros = marks(500, *[0] * 20, 1)
    assert zeros == [0, *[S] * 15, R, 0, 0, 0, 0, 0], "after a quarter of an hour a zero is no slip"


def test_a_counter_that_rolls_over():
    assert marks(999_990, 5, 15) == [0, O, 0]
    assert marks(999_990, 0, 5, 15) == [0, S, O, 0]
    assert marks(999_990, 0, 999_999, 5) == [0, S, 0, O]
    assert marks(900_000, 5, 15) == [0, S, R], "too far from the end"
    assert marks(999_990, 70_000, 70_001) == [0, S, R], "too far behind the beginning"
    assert marks(999_990, 5, 6, counter=None) == [0, S, R]
    assert marks(999_990, 5, 6, counter=Counter(rollover=None, word=None)) == [0, S, R]


def test_half_of_the_registers_from_another_moment():
    assert marks(100, 101, 102, 102 + 65_536, 104) == [0, 0, 0, S, 0]
    assert marks(100_000, 100_001, 100_002 - 65_536, 100_003) == [0, 0, S, 0]
    assert marks(100, 101, 102, 102 + 65_536, None, 104) == [0, 0, 0, S, Status.NO_REPLY, 0]


def test_a_jump_that_stays_is_a_new_beginning():
    assert marks(100, 101, 102, 65_640, 65_641, 65_642) == [0, 0, 0, S, R, 0]
    assert marks(100, 101, 102, 65_640, 7, 8) == [0, 0, 0, S, S, R]


def test_growth_that_is_usual_is_no_jump():
    assert marks(*range(0, 1_000_000, 70_000)) == [0] * 15
    assert marks(0, 10_000, 80_000) == [0, 0, 0], "a counter that grows that much on average"
    assert marks(0, 1, 90_000, 90_001) == [0, 0, 0, 0], "not by 65,536 counts"
    assert marks(0, 65_540, 65_541) == [0, 0, 0], "nobody knows yet how much is usual"
    assert marks(0, 1, 65_540, 65_541, counter=Counter(rollover=None, word=None)) == [0] * 4


def test_every_counter_is_judged_by_itself():
    counter = Counter(rollover=None, word=65_536)
    judge = Judge(PollGroup(interval_s=1.0, quantities=(ENERGY, VOLTAGE, ENERGY), counters=(counter, None, counter)))
    found = [
        judge(Sample(0, 0, at * 1000, values, None)).status
        for at, values in enumerate([(10, 9, 20), (11, 8, 21), (65_600, 7, 5), (12, 6, 6), (13, 5, 65_600)])
    ]
    assert found == [None, None, (S, 0, S), (0, 0, R), None]


def test_what_was_not_logged_is_judged_again():
    judge = Judge(PollGroup(interval_s=60.0, quantities=(ENERGY,), counters=(Counter(rollover=None, word=65_536),)))
    found = []
    for at, (number, logged) in enumerate([(1, 1), (2, 1), (3, 0), (65_540, 0), (65_541, 1), (65_542, 0), (65_543, 1)]):
        status = judge(Sample(0, 0, at * MINUTE, (number,), None)).status
        found.append(status and status[0])
        if not logged:
            judge.left_out()
    assert found == [None, None, None, S, S, R, R]


def test_a_missing_number_does_not_hide_the_fall_behind_it():
    missing = (Status.OK, Status.NO_REPLY, Status.OK)
    found = judged(((9, 5, 5), None), ((9, None, 5), missing), ((9, 4, 3), None))
    assert found == [None, missing, (Status.OK, Status.SUSPECT, Status.SUSPECT)]


def test_the_first_number_may_be_missing():
    missing = (Status.OK, Status.NO_REPLY, Status.OK)
    assert judged(((9, None, 5), missing), ((9, 4, 5), None), ((9, 3, 5), None)) == [
        missing,
        None,
        (Status.OK, Status.SUSPECT, Status.OK),
    ]


def test_a_meter_without_counters_is_never_marked():
    judge = Judge(PollGroup(interval_s=1.0, quantities=(VOLTAGE,)))
    assert [judge(Sample(0, 0, 0, (value,), None)).status for value in (3, 2, 1)] == [None] * 3


def test_a_fall_across_a_restart_is_marked(tmp_path):
    plan = dataclasses.replace(meter("m"), groups=(GROUP,))

    async def first_run():
        async with recording(virtual_platform(VirtualClock()), tmp_path / "j") as recorder:
            declaration = recorder.append(declare(plan))
            for values, status in (((9, 50, 70), None), ((9, None, 80), (0, Status.NO_REPLY, 0))):
                recorder.reading(declaration, 0, Sample(0, 0, 0, values, status))
                await recorder.commit()

    async def second_run():
        async with recording(virtual_platform(VirtualClock()), tmp_path / "j") as recorder:
            return last_counters(recorder.journal, recorder.epoch)

    run(first_run)
    counters = run(second_run)
    assert counters == {("m", ENERGY.obis.code): (1, 80)}, "of two quantities with one code the last one counts"
    judge = Judge(GROUP)
    judge.remember("m", GROUP, counters)
    assert judge(Sample(0, 0, 0, (9, 85, 79), None)).status == (Status.OK, Status.OK, Status.SUSPECT)
    judge = Judge(GROUP)
    judge.remember("other", GROUP, counters)
    assert judge(Sample(0, 0, 0, (9, 5, 5), None)).status is None
