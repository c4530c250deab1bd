"""The soak's plan: the same for the same seed, fair to every kind of fault."""

from collections import Counter
from itertools import islice

from soak.trouble import KINDS, LONG_CUT_EVERY, LONG_CUT_S, troubles


def plan(seed, target, count=600):
    return list(islice(troubles(seed, target), count))


def test_a_seed_repeats_itself_and_another_differs():
    assert plan(7, "agent") == plan(7, "agent")
    assert plan(7, "agent") != plan(8, "agent")
    assert plan(7, "agent") != plan(7, "headend")


def test_every_kind_comes_equally_often():
    for target, kinds in KINDS.items():
        assert Counter(t.kind for t in plan(7, target)) == dict.fromkeys(kinds, 200)


def test_one_cut_in_so_many_lasts_for_minutes():
    long = [t for t in plan(7, "network") if t.lasts_s >= LONG_CUT_S[0]]
    assert [t.kind for t in long] == ["cut"] * (200 // LONG_CUT_EVERY)
    assert all(t.lasts_s <= LONG_CUT_S[1] for t in long)
