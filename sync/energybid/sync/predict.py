"""Prediction of a column from itself, in exact integers (docs/formats.md §6).

Nothing here reads or writes bytes. Each way of predicting has its inverse; which way is taken is the encoder's choice.

A column is cut into *runs* (one a table). The first number of each run is predicted by the first number of
the run before (0 before the first run); then

* PLAIN: nothing is predicted, firsts neither; all numbers are written as they are.
* DELTA: each number by the one before it.
* PACED: each number by the one before it plus a constant of the column.
* SMOOTH: each number by m >> 2 rounded, (m + 2) >> 2, where m is 4 x at the first number x of the run, and grows by
  each difference between a number and its prediction: an exponential mean, against noise.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, chain
from operator import itemgetter, sub

PLAIN, DELTA, PACED, SMOOTH = range(4)

Runs = Sequence[tuple[int, int]]
"""(start, end) of each run in a column; none is empty."""


def firsts(column: Sequence[int], runs: Runs) -> list[int]:
    """What is left of the first number of each run."""
    heads = column if len(runs) == len(column) else [column[start] for start, _ in runs]
    return [*heads[:1], *map(sub, heads[1:], heads)]


def rests(column: Sequence[int], runs: Runs, mode: int, pace: int) -> list[int]:
    """What is left of the other numbers."""
    if mode == SMOOTH:
        return _smooth_rests(column, runs)
    steps = list(map(sub, column[1:], column))
    rest = list(chain.from_iterable([steps[start : end - 1] for start, end in runs])) if len(runs) > 1 else steps
    return [x - pace for x in rest] if pace else rest


def _smooth_rests(column: Sequence[int], runs: Runs) -> list[int]:
    rest: list[int] = []
    put = rest.append
    for start, end in runs:
        mean = column[start] << 2
        for x in column[start + 1 : end]:
            left = x - (mean + 2 >> 2)
            mean += left
            put(left)
    return rest


def undo(heads: Sequence[int], rest: Sequence[int], runs: Runs, mode: int, pace: int) -> list[int]:
    """The column again, from ``firsts`` and ``rests``."""
    starts = accumulate(heads)
    if not rest:
        return list(starts)
    if pace:
        rest = [x + pace for x in rest]
    join = _unsmooth if mode == SMOOTH else accumulate
    # A run of n numbers has n - 1 in ``rest``.
    return list(
        chain.from_iterable(
            [
                join([head, *rest[start - number : end - number - 1]])
                for number, (head, (start, end)) in enumerate(zip(starts, runs, strict=True))
            ]
        )
    )


def _unsmooth(run: list[int]) -> list[int]:
    mean = run[0] << 2
    out = run[:1]
    put = out.append
    for left in run[1:]:
        put((mean + 2 >> 2) + left)
        mean += left
    return out


def _bits(values: Iterable[int]) -> int:
    """About how many bits these take; large outliers count little."""
    return sum(map(int.bit_length, values))


def choose(column: Sequence[int], runs: Runs, heads: Sequence[int], *, plain: bool) -> tuple[int, int, list[int], int]:
    """(mode, pace, rests, about how many bits all takes), a good choice.

    Args:
        column: At least one number.
        runs: Its runs.
        heads: Its ``firsts``.
        plain: PLAIN may be taken.
    """
    mode, pace, rest, bits = _choose_rests(column, runs) if len(runs) < len(column) else (DELTA, 0, [], 0)
    bits += _bits(heads)
    if plain:
        as_it_is = _bits(column)
        if as_it_is <= bits:
            return PLAIN, 0, [], as_it_is
    return mode, pace, rest, bits


def _choose_rests(column: Sequence[int], runs: Runs) -> tuple[int, int, list[int], int]:
    """(mode, pace, rests, their bits)."""
    steps = rests(column, runs, DELTA, 0)
    size = len(steps)
    best = (DELTA, 0, steps, _bits(steps))
    if best[3] * 2 <= size:
        return best
    pace = _pace(steps)
    if pace.bit_length() * 2 * size > best[3]:
        rest = [x - pace for x in steps]
        best = min(best, (PACED, pace, rest, _bits(rest)), key=itemgetter(3))
    if best[3] > size:
        rest = _smooth_rests(column, runs)
        best = min(best, (SMOOTH, 0, rest, _bits(rest)), key=itemgetter(3))
    return best


def _pace(steps: Sequence[int]) -> int:
    """The middle of some steps: what a clock or a steady counter goes on by."""
    some = sorted(steps[:: len(steps) // 16 + 1])
    return some[len(some) // 2]
