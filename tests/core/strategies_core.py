"""Hypothesis strategies for every entry type, at and within its bounds."""

from typing import Any

from energybid.core.entries import Clock, Command, Declaration, Epoch, Gap, Known, MarketMessage, Reading, Start
from energybid.core.quantities import UNITS
from hypothesis import strategies as st

UINT = st.integers(0, 2**63 - 1) | st.just(2**63 - 1)
INT = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1])
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
ID, HASH = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
CLOCK = st.integers(0, 2)
ORIGIN = st.from_regex(r"\A[A-Za-z0-9._-]{1,64}/[A-Za-z0-9._-]{1,64}\Z")
NONE = st.none()
MARK = st.sampled_from([0, 0, 0, 1, 4, 15, 16, 255])


def tuples(each: st.SearchStrategy[Any], most: int) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(each, min_size=1, max_size=most).map(tuple)


QUANTITY = st.tuples(
    st.binary(min_size=6, max_size=6), st.sampled_from(sorted(UNITS)), st.integers(-18, 18), st.booleans()
)
GROUPS = tuples(st.tuples(UINT, tuples(QUANTITY, 5)), 3)


@st.composite
def readings(draw: st.DrawFn) -> Reading:
    marks = draw(tuples(MARK, 30))
    values = tuple(None if 0 < mark < 16 else draw(INT) for mark in marks)
    numbers = draw(st.tuples(UINT, UINT, INT, UINT, CLOCK, UINT, UINT))
    return Reading(*numbers, values, marks if any(marks) else None)


ENTRIES: st.SearchStrategy[Known] = (
    st.builds(Epoch, ORIGIN, INT, NONE | st.tuples(ID, UINT, HASH))
    | st.builds(Start, ID, INT, UINT, CLOCK, TEXT, HASH)
    | st.builds(Declaration, TEXT, TEXT, HASH, NONE | TEXT, GROUPS)
    | readings()
    | st.builds(Clock, UINT, UINT, INT, INT, CLOCK)
    | st.builds(Gap, NONE | UINT, INT, INT, UINT, UINT)
    | st.builds(
        Command,
        *(TEXT, TEXT, INT, st.integers(-18, 18), TEXT, NONE | INT, TEXT, UINT, UINT, UINT),
        *(INT, CLOCK, UINT, UINT, NONE | UINT),
    )
    | st.builds(MarketMessage, UINT, UINT, st.binary(max_size=400), UINT, INT, CLOCK, UINT, UINT)
)
