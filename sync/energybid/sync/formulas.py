"""Prediction of a column from others of the same row, in exact integers (docs/formats.md §6).

A meter's quantities hang together: apparent power is voltage by current, the total is the sum of the phases. Formulas
are found from the numbers alone, so no profile has to say them, and what a formula leaves over is small noise. They are
the encoder's choice: a wrong one costs bytes, never truth.

A column x is predicted by other columns a, b, c of the same row, which must be known before:

* SUM2: a + b; SUM3: a + b + c.
* PRODUCT: (|a b| + h) // 10^k with h = 10^k // 2, and k from 0 to 6, as apparent power is voltage by current.
* LEG: the integer square root of |a² - b²|, as reactive power is of apparent and active; HYPOTENUSE: of a² + b².

The last three take the sign of the number before in the column (+ at the very first; 0 counts as +). What a formula
leaves over is then predicted in time (``predict.py``) like any column.
"""

from bisect import bisect_left
from collections.abc import Sequence
from math import isqrt
from operator import add, sub
from typing import NamedTuple

SUM2, SUM3, PRODUCT, LEG, HYPOTENUSE = range(5)
OPERANDS = (2, 3, 2, 2, 2)
"""How many columns each formula takes."""
DECIMALS_MAX = 6
SEARCHED_MAX = 64
"""Formulas are looked for among the first so many columns."""
_SCALES = tuple(10**k for k in range(DECIMALS_MAX + 1))
_SMALL = 20
"""Numbers below are too coarse to find a formula by."""
_CHECKS = 4
"""Rows that a formula must fit before it is tried on all."""


class Formula(NamedTuple):
    """Predicts column ``target`` from ``operands``."""

    target: int
    kind: int
    operands: tuple[int, ...]
    decimals: int
    """k of PRODUCT; 0 otherwise."""


def _magnitude(kind: int, operands: Sequence[int], scale: int) -> int:
    """What a formula says of one row; without a sign, but for sums."""
    if kind <= SUM3:
        return sum(operands)
    a, b = operands
    if kind == PRODUCT:
        return (abs(a * b) + scale // 2) // scale
    return isqrt(a * a + b * b if kind == HYPOTENUSE else abs(a * a - b * b))


def _magnitudes(formula: Formula, columns: Sequence[Sequence[int]]) -> list[int]:
    """``_magnitude`` of each row, quicker."""
    operands = [columns[number] for number in formula.operands]
    a, b = operands[:2]
    kind = formula.kind
    if kind == SUM2:
        return list(map(add, a, b))
    if kind == SUM3:
        return list(map(sum, zip(*operands, strict=True)))
    if kind == PRODUCT:
        scale = _SCALES[formula.decimals]
        half = scale // 2
        if min(a) >= 0 and min(b) >= 0:
            return [(x * y + half) // scale for x, y in zip(a, b, strict=True)]
        return [(abs(x * y) + half) // scale for x, y in zip(a, b, strict=True)]
    if kind == LEG:
        return [isqrt(abs(x * x - y * y)) for x, y in zip(a, b, strict=True)]
    return [isqrt(x * x + y * y) for x, y in zip(a, b, strict=True)]


def subtract(formula: Formula, column: Sequence[int], columns: Sequence[Sequence[int]]) -> list[int]:
    """What the formula leaves of a column.

    Args:
        formula: Its operands are in ``columns``.
        column: The target's numbers.
        columns: All columns, by number.
    """
    said = _magnitudes(formula, columns)
    if formula.kind > SUM3 and min(column) < 0:
        return [x - (y if before >= 0 else -y) for x, y, before in zip(column, said, [0, *column], strict=False)]
    return list(map(sub, column, said))


def restore(formula: Formula, left: Sequence[int], columns: Sequence[Sequence[int]]) -> list[int]:
    """The column again, from what ``subtract`` left."""
    said = _magnitudes(formula, columns)
    column = list(map(add, left, said))
    if formula.kind <= SUM3 or min(column) >= 0:
        return column
    x, column = 0, []
    for rest, y in zip(left, said, strict=True):
        x = rest + (y if x >= 0 else -y)
        column.append(x)
    return column


# ---------------------------------------------------------------- looking for formulas


def search(columns: Sequence[Sequence[int]]) -> list[Formula]:
    """Formulas that hold about, in an order in which none needs a later one's target.

    Sums come first, then products, then squares: of the ways to tie the same columns together this order takes those
    that leave least. A formula is found on one row and must hold on some others.

    Args:
        columns: At least one; all of the same length.
    """
    last = len(columns[0]) - 1
    if last < _CHECKS or len(columns) <= min(OPERANDS):
        return []
    rows = [number * last // (_CHECKS - 1) for number in range(_CHECKS)]
    checks = [[column[row] for column in columns[:SEARCHED_MAX]] for row in rows]
    checks.sort(key=lambda row: (sum(abs(x) >= _SMALL for x in row), sum(map(int.bit_length, row))))
    finder = _Finder(checks)
    finder.sums()
    finder.pairs()
    return finder.settle()


class _Finder:
    """Candidates of formulas on the row that has most to tell."""

    def __init__(self, checks: list[list[int]]) -> None:
        """Take the rows, the most telling last."""
        self.rows = checks
        self.row = checks[-1]
        self.size = [abs(x) for x in self.row]
        self.telling = [number for number, x in enumerate(self.size) if x >= _SMALL]
        self.found: list[list[tuple[int, Formula]]] = [[], [], []]

    def sums(self) -> None:
        """Sums of any two, and of any three at equal distances."""
        near: dict[int, list[int]] = {}
        for number in self.telling:
            for x in range(self.row[number] - 2, self.row[number] + 3):
                near.setdefault(x, []).append(number)
        row, telling = self.row, self.telling
        for place, i in enumerate(telling):
            for j in telling[place + 1 :]:
                x = row[i] + row[j]
                if x in near:
                    self._sums_to(near[x], (i, j))
                k = j + j - i
                if k < len(row) and x + row[k] in near:
                    self._sums_to(near[x + row[k]], (i, j, k))

    def _sums_to(self, targets: list[int], operands: tuple[int, ...]) -> None:
        for target in targets:
            if target not in operands:
                self._keep(0, Formula(target, len(operands) - 2, operands, 0))

    def pairs(self) -> None:
        """Products and squares of any two."""
        size, telling = self.size, self.telling
        # One integer carries size × 10^k, column and k: sorts quickly.
        scaled = sorted(
            size[number] * scale << 10 | number << 3 | k for number in telling for k, scale in enumerate(_SCALES)
        )
        roots = sorted(size[number] << 10 | number for number in telling)
        for place, i in enumerate(telling):
            a = size[i]
            for j in telling[place + 1 :]:
                b = size[j]
                product = a * b
                slack = a + b + (product >> 8)
                at, end = bisect_left(scaled, product - slack << 10), product + slack << 10
                while at < len(scaled) and scaled[at] < end:
                    self._product(scaled[at], i, j)
                    at += 1
                if a < b << 3 and b < a << 3:
                    root = isqrt(a * a + b * b)
                    slack = 2 + (root >> 8)
                    at, end = bisect_left(roots, root - slack << 10), root + slack << 10
                    while at < len(roots) and roots[at] < end:
                        self._keep(2, Formula(roots[at] & 1023, HYPOTENUSE, (i, j), 0))
                        at += 1

    def _product(self, found: int, i: int, j: int) -> None:
        target = found >> 3 & 127
        if target not in (i, j):
            self._keep(1, Formula(target, PRODUCT, (i, j), found & 7))

    def _keep(self, rank: int, formula: Formula) -> None:
        """Keep a candidate if it holds on all rows, with how far off it is."""
        target, kind, operands, decimals = formula
        scale, off = _SCALES[decimals], 0
        for row in self.rows:
            x = row[target]
            said = _magnitude(kind, [row[number] for number in operands], scale)
            left = abs((x if kind <= SUM3 else abs(x)) - said)
            if left > 3 + (abs(x) >> 6):
                return
            off += left
        self.found[rank].append((off, formula))

    def settle(self) -> list[Formula]:
        """Choose among the candidates: one a target, no circles."""
        chosen: dict[int, Formula] = {}
        needs: dict[int, set[int]] = {}

        def take(formula: Formula) -> None:
            if formula.target in chosen:
                return
            below = set(formula.operands).union(*(needs.get(number, ()) for number in formula.operands))
            if formula.target in below:
                return
            chosen[formula.target] = formula
            needs[formula.target] = below
            for needed in needs.values():
                if formula.target in needed:
                    needed.update(below)

        for rank in (0, 1):
            for _, formula in sorted(self.found[rank]):
                take(formula)
        for _, formula in sorted(self.found[2]):
            a, b = formula.operands
            if formula.target not in chosen:
                take(formula)
            else:
                take(Formula(b, LEG, (formula.target, a), 0))
                take(Formula(a, LEG, (formula.target, b), 0))
        return sorted(chosen.values(), key=lambda formula: len(needs[formula.target]))
