"""Entries for tests of columns and batches: hypothesis strategies, and the recorded meters."""

import csv
import gzip
from itertools import islice
from pathlib import Path
from typing import Any

from energybid.core import cbor
from energybid.core.entries import (
    Clock,
    Command,
    Declaration,
    Entry,
    Epoch,
    Gap,
    MarketMessage,
    Reading,
    Start,
    Unknown,
)
from hypothesis import strategies as st

RECORDED = Path(__file__).parent / "data" / "sdm630_32_meters_60_polls.csv.gz"
METERS = 32
UINT = st.integers(0, 2**63 - 1) | st.just(2**63 - 1)
INT = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 0])
SMALL = st.integers(-40, 40) | st.integers(2300, 2340)
CLOCK = st.integers(0, 2)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
ID, HASH = st.binary(min_size=16, max_size=16), st.binary(min_size=32, max_size=32)
MARKS = st.lists(st.sampled_from([0, 0, 0, 1, 4, 15, 16, 255]), min_size=1, max_size=9).map(tuple)
QUANTITY = st.tuples(st.binary(min_size=6, max_size=6), st.sampled_from(["V", "W", "Wh"]), st.just(-1), st.booleans())


@st.composite
def readings(draw: st.DrawFn) -> list[Entry]:
    """Readings of a few meters, smooth or wild, with and without statuses."""
    shapes = draw(st.lists(st.tuples(UINT | SMALL.map(abs), st.integers(0, 2), MARKS), min_size=1, max_size=3))
    value = draw(st.sampled_from([INT, SMALL, st.integers(-5000, 5000), st.just(7)]))
    time = draw(INT.filter(lambda t: abs(t) < 2**62) | st.just(1_790_000_000_000))
    mono = draw(st.integers(0, 2**60))
    out: list[Entry] = []
    for number in range(draw(st.integers(1, 40))):
        declaration, group, marks = shapes[draw(st.integers(0, len(shapes) - 1)) if number % 3 else 0]
        if draw(st.booleans()):
            marks = (0,) * len(marks)
        values = tuple(None if 0 < mark < 16 else draw(value) for mark in marks)
        at = 1000 * number + draw(st.integers(0, 9))
        numbers = (time + at, draw(st.integers(0, 90)), draw(CLOCK), draw(st.integers(0, 1)), mono + at)
        out.append(Reading(declaration, group, *numbers, values, marks if any(marks) else None))
    return out


UNKNOWN = st.builds(
    lambda version, kind, rest: Unknown(cbor.encode([version, kind, *rest])),
    st.integers(2, 9),
    st.integers(0, 300),
    st.lists(st.integers(0, 2**60) | st.binary(max_size=30), max_size=4),
) | st.builds(lambda rest: Unknown(cbor.encode([1, 99, rest])), st.binary(max_size=30))
OTHERS: st.SearchStrategy[Entry] = (
    st.builds(Epoch, st.just("acme/gw-7"), INT, st.none() | st.tuples(ID, UINT, HASH))
    | st.builds(Start, ID, INT, UINT, CLOCK, TEXT, HASH)
    | st.builds(
        Declaration,
        TEXT,
        TEXT,
        HASH,
        st.none() | TEXT,
        st.lists(st.tuples(UINT, st.lists(QUANTITY, min_size=1, max_size=3).map(tuple)), min_size=1, max_size=2).map(
            tuple
        ),
    )
    | st.builds(Clock, UINT, UINT, INT, INT, CLOCK)
    | st.builds(Gap, st.none() | UINT, INT, INT, UINT, UINT)
    | st.builds(
        Command,
        *(TEXT, TEXT, INT, st.integers(-18, 18), TEXT, st.none() | INT, TEXT, UINT, UINT, UINT),
        *(INT, CLOCK, UINT, UINT, st.none() | UINT),
    )
    | st.builds(MarketMessage, UINT, UINT, st.binary(max_size=99), UINT, INT, CLOCK, UINT, UINT)
    | UNKNOWN
)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Readings with other entries between them."""
    out = draw(readings() | st.just([]))
    for other in draw(st.lists(OTHERS, max_size=5)):
        out.insert(draw(st.integers(0, len(out))), other)
    return out


def recorded(polls: int) -> list[Reading]:
    """The first polls of every recorded meter, round robin."""
    with gzip.open(RECORDED, "rt", newline="") as file:
        rows: Any = islice(csv.reader(line for line in file if not line.startswith("#")), 1, 1 + METERS * polls)
        return [
            Reading(2 + meter, 0, time_ms, span_ms, 2, 1, mono_ms, tuple(values), None)
            for meter, time_ms, span_ms, mono_ms, *values in (map(int, row) for row in rows)
        ]
