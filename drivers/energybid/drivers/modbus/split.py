"""Requests that read around registers, and the search for those that a meter refuses. Pure.

A request is cut only between values. What the search finds: the registers of single values, registers in a gap that
were to be read over, or a border that no request may reach over (some meters have such, or take fewer registers at once
than their manual says).
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from energybid.drivers import planner
from energybid.drivers.modbus.learned import Span
from energybid.drivers.modbus.map import REGISTERS_MAX, TYPES, Factor, Field, Request

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from energybid.drivers.planner import Terms

Outcome = bytes | int
"""As in ``exchange``: the registers' bytes, or a number that says why there are none."""


class Cell(NamedTuple):
    """Registers that are read together or not at all: a value, or values that share registers."""

    first: int
    end: int
    fields: tuple[tuple[int, int, Field], ...]
    """Each with its place in the poll group and its first register."""
    factors: tuple[Factor, ...] = ()


class Part(NamedTuple):
    """A request, and where its values go."""

    request: Request
    places: tuple[int, ...]
    """Of its fields, in the poll group."""


def cells_of(part: Part) -> list[Cell]:
    """What a request can be cut into, in the order of the registers."""
    request = part.request
    whole = [
        Cell(at := request.first + field.offset, at + TYPES[field.type].registers, ((place, at, field),))
        for place, field in zip(part.places, request.fields, strict=True)
    ]
    whole += [Cell(factor.first, factor.end, (), (factor,)) for factor in request.factors]
    cells: list[Cell] = []
    for first, end, fields, factors in sorted(whole, key=lambda cell: cell[:2]):
        if cells and first < cells[-1].end:
            last = cells.pop()
            cells.append(Cell(last.first, max(last.end, end), last.fields + fields, last.factors + factors))
        else:
            cells.append(Cell(first, end, fields, factors))
    return cells


def part_of(function: int, cells: Sequence[Cell]) -> Part:
    """The smallest request that reads cells, which are in the order of their registers."""
    first = cells[0].first
    fields = sorted((field for cell in cells for field in cell.fields), key=lambda field: field[1])
    request = Request(
        function=function,
        first=first,
        count=max(cell.end for cell in cells) - first,
        fields=tuple(replace(field, offset=at - first) for _, at, field in fields),
        factors=tuple(factor for cell in cells for factor in cell.factors),
    )
    return Part(request, tuple(place for place, _, _ in fields))


def parts_of(requests: Iterable[Request]) -> list[Part]:
    """A poll group's requests with the places of their values: one after another."""
    parts, place = [], 0
    for request in requests:
        parts.append(Part(request, tuple(range(place, place + len(request.fields)))))
        place += len(request.fields)
    return parts


def around(parts: Sequence[Part], spans: Collection[Span], terms: Terms | None = None) -> list[Part]:
    """The cheapest requests for the same values that touch nothing of what is refused.

    Values whose registers are refused are left out.

    Args:
        parts: The requests of a poll group as compiled.
        spans: What is refused.
        terms: What requests are planned by; None only cuts the given ones.
    """
    pieces = [
        piece for part in parts for piece in _cut(part, [s for s in spans if s.function == part.request.function])
    ]
    if terms is None or pieces == list(parts):
        return pieces
    return planned(pieces, terms, spans)


def planned(pieces: Iterable[Part], terms: Terms, spans: Collection[Span] = ()) -> list[Part]:
    """The cheapest requests for the values of given ones; none touches a span."""
    cells = [(piece.request.function, cell) for piece in pieces for cell in cells_of(piece)]
    readable: list[planner.Span] = [part for span in terms.readable for part in _outside(span, spans)]
    wanted = [planner.Span(function, cell.first, cell.end) for function, cell in cells]
    plan = planner.plan(wanted, readable, terms.cost, registers_max=terms.registers_max)
    return [part_of(run.function, _cells_in(run, cells)) for run in plan]


def _cells_in(run: planner.Span, cells: Iterable[tuple[int, Cell]]) -> list[Cell]:
    own = (cell for f, cell in cells if f == run.function and run.first <= cell.first and cell.end <= run.end)
    return sorted(own, key=lambda cell: cell.first)


def _outside(span: planner.Span, refused: Collection[Span]) -> Iterator[planner.Span]:
    """What is left of a readable span."""
    first = span.first
    for hole in sorted(refused):
        if hole.function == span.function and first <= hole.first and hole.first <= span.end:
            yield from [span._replace(first=first, end=hole.first)] if hole.first > first else []
            first = max(first, hole.end)
        elif hole.function == span.function and hole.first < first < hole.end:
            first = hole.end
    if first < span.end:
        yield span._replace(first=first)


def _cut(part: Part, spans: Sequence[Span]) -> Iterator[Part]:
    inside = [span for span in spans if span.first < part.request.first + part.request.count]
    if not any(span.end > part.request.first for span in inside):
        yield part
        return
    run: list[Cell] = []
    for cell in cells_of(part):
        refused = any(span.first < cell.end and cell.first < span.end for span in spans if span.size)
        if run and (refused or any(_between(run[-1].end, cell.first, span) for span in spans)):
            yield part_of(part.request.function, run)
            run = []
        if not refused:
            run.append(cell)
    if run:
        yield part_of(part.request.function, run)


def _between(end: int, first: int, span: Span) -> bool:
    """Whether a span lies between two values, at ``end`` of the one and ``first`` of the other."""
    if span.size:
        return span.first < first and end < span.end
    return end <= span.first <= first


def widened(request: Request, spans: Collection[Span], terms: Terms) -> tuple[Request, int] | None:
    """The request with one register more, behind or in front; and how many stand before its own.

    None where there is none that may be read.
    """
    most = min(terms.registers_max, terms.cost.registers_max, REGISTERS_MAX)
    end = request.first + request.count
    for first, skip in ((request.first, 0), (request.first - 1, 1)):
        run = planner.Span(request.function, first, end + 1 - skip)
        if run.length <= most and any(part.holds(run) for span in terms.readable for part in _outside(span, spans)):
            return Request(function=request.function, first=first, count=run.length, fields=()), skip
    return None


def trial(parts: Iterable[Part], span: Span) -> Part | None:
    """The smallest request that shows whether a span may be read by now; None where no part touches it.

    Args:
        parts: The poll group as compiled.
        span: Refused registers, or a border.
    """
    for part in parts:
        if part.request.function != span.function:
            continue
        cells = cells_of(part)
        for cell in cells:
            if span.size and cell.first < span.end and span.first < cell.end:
                return part_of(span.function, [cell])
        for before, after in itertools.pairwise(cells):
            if _between(before.end, after.first, span):
                return part_of(span.function, [before, after])
    return None


class Search:
    """The search for what makes a meter refuse one request: halves, and halves of those that are refused again."""

    __slots__ = ("halves", "outcome", "part")

    def __init__(self, part: Part, outcome: Outcome = 0) -> None:
        """Begin with a request that was refused, or is to be asked."""
        self.part = part
        self.outcome = outcome
        self.halves: tuple[Search, ...] = ()

    def split(self) -> tuple[Search, ...]:
        """The two requests to ask next; none where a single value is refused."""
        cells = cells_of(self.part)
        if len(cells) > 1:
            function, middle = self.part.request.function, len(cells) // 2
            self.halves = (Search(part_of(function, cells[:middle])), Search(part_of(function, cells[middle:])))
        return self.halves

    def leaves(self) -> Iterator[Search]:
        """The requests that were not split further, in the order of their registers."""
        if not self.halves:
            yield self
        for half in self.halves:
            yield from half.leaves()

    def verdict(self, refusals: Collection[int], values: Collection[Span] = ()) -> list[Span]:
        """What is to blame. Where not all was answered, only what is certain.

        Args:
            refusals: The exception codes that say so.
            values: Registers of all values of the meter, other poll groups' too.
        """
        request = self.part.request
        if not self.halves:
            refused = isinstance(self.outcome, int) and self.outcome in refusals
            return [Span(request.function, request.first, request.count)] if refused else []
        left, right = self.halves
        found = left.verdict(refusals, values) + right.verdict(refusals, values)
        if found or not all(isinstance(leaf.outcome, bytes) for leaf in self.leaves()):
            return found
        # Both halves can be read, but not at once.
        end = left.part.request.first + left.part.request.count
        return _gap(planner.Span(request.function, end, right.part.request.first), values)


def _gap(span: planner.Span, values: Collection[Span]) -> list[Span]:
    """What to leave out of a gap that can not be read over: of values of other groups in it nothing is known.

    A border behind it where nothing else is in it.
    """
    rest = [Span(part.function, part.first, part.length) for part in _outside(span, values)]
    return rest or [Span(span.function, span.end, 0)]
