"""A cumulative register that goes back is marked, once, whatever is missing around it, and across a restart."""

import dataclasses

from energybid.agent.judgement import Judge, last_counters
from energybid.agent.polling import declare
from energybid.core.ports import PollGroup, Sample
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


def test_a_fall_is_marked_once():
    found = judged(((9, 5, 5), None), ((9, 4, 6), None), ((9, 4, 7), None))
    assert found == [None, (Status.OK, Status.SUSPECT, Status.OK), None]


def test_a_fall_in_a_reading_that_was_not_logged_is_marked_in_the_next_one():
    judge = Judge(GROUP)
    for values in ((9, 5, 5), (9, 4, 5), (9, 4, 6)):
        judge(Sample(0, 0, 0, values, None))
        if values != (9, 5, 5):
            judge.left_out()
    assert judge(Sample(0, 0, 0, (9, 4, 7), None)).status == (Status.OK, Status.SUSPECT, Status.OK)


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
