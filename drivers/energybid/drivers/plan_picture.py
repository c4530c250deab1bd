"""A plan of requests as a picture for terminals: which registers are wanted, read over, left alone, forbidden. Pure.

row of 64 registers:      0  ██████░░██················×××××
╰1───────╯
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from energybid.drivers.planner import Span

ROW = 64
"""Registers in a row: with their address they fit 80 columns."""
_LABEL = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """With which characters to draw."""

    wanted: str
    over: str
    """Read because it lies between what is wanted."""
    left: str
    """May be read, but is not."""
    forbidden: str
    """Behind a border that no request may cross."""
    corners: tuple[str, str]
    """Where a request begins and ends."""
    line: str
    colours: bool


def style(*, unicode: bool, colours: bool) -> Style:
    """Characters for a terminal.

    Args:
        unicode: It can show more than ASCII.
        colours: It is a terminal that shows colours.
    """
    if unicode:
        return Style(wanted="█", over="░", left="·", forbidden="×", corners=("╰", "╯"), line="─", colours=colours)
    return Style(wanted="#", over="-", left=".", forbidden="x", corners=("\\", "/"), line="_", colours=colours)


_COLOURS = {"wanted": "\x1b[32m", "over": "\x1b[33m", "left": "\x1b[2m", "forbidden": "\x1b[31m"}
_PLAIN = "\x1b[0m"


def legend(look: Style) -> str:
    """What the characters mean."""
    words = {"wanted": "wanted", "over": "read over", "left": "not read", "forbidden": "forbidden"}
    marks = {kind: _coloured(look, kind, getattr(look, kind)) for kind in words}
    ends = "".join(look.corners)
    return "   ".join(f"{marks[kind]} {word}" for kind, word in words.items()) + f"   {ends} one request"


def picture(
    wanted: Sequence[Span], readable: Sequence[Span], requests: Sequence[Span], look: Style, *, first: int = 1
) -> list[str]:
    """The registers around the requests of one table, a row of 64 above a row with the requests' extents.

    Args:
        wanted: Registers of numbers.
        readable: Registers that may be read, where each span ends at a border.
        requests: The plan, in order; at least one.
        look: With which characters.
        first: The number of the first request.
    """
    numbered = list(enumerate(requests, first))
    rows = sorted({at // ROW * ROW for span in requests for at in range(span.first, span.end)})
    lines: list[str] = []
    for before, row in zip([None, *rows], rows, strict=False):
        if before is not None and row != before + ROW:
            lines.append(f"{'...':>{_LABEL - 2}}")
        here = Span(requests[0].function, row, row + ROW)
        kinds = _kinds(here, wanted, readable, requests)
        cells = "".join(_coloured(look, kind, _mark(look, kind) * len(list(run))) for kind, run in groupby(kinds))
        lines.append(f"{row:>{_LABEL - 2}}  {cells}".rstrip())
        lines.append(" " * _LABEL + "".join(_extents(here, numbered, look)).rstrip())
    return lines


def _kinds(here: Span, wanted: Sequence[Span], readable: Sequence[Span], requests: Sequence[Span]) -> list[str]:
    """What each register of a row is; "" outside everything that is known."""
    ends = (min(span.first for span in readable), max(span.end for span in readable))
    kinds = ["forbidden" if ends[0] <= at < ends[1] else "" for at in range(here.first, here.end)]
    for spans, kind in ((readable, "left"), (requests, "over"), (wanted, "wanted")):
        for span in spans:
            for at in range(max(span.first, here.first), min(span.end, here.end)):
                kinds[at - here.first] = kind
    return kinds


def _mark(look: Style, kind: str) -> str:
    mark: str = getattr(look, kind) if kind else " "
    return mark


def _coloured(look: Style, kind: str, text: str) -> str:
    return f"{_COLOURS[kind]}{text}{_PLAIN}" if look.colours and kind else text


def _extents(here: Span, requests: Sequence[tuple[int, Span]], look: Style) -> Iterator[str]:
    at = here.first
    for number, request in requests:
        if request.end <= here.first or request.first >= here.end:
            continue
        yield " " * (request.first - at)
        at = max(request.first, here.first)
        yield from _extent(number, request, here, look)
        at = min(request.end, here.end)


def _extent(number: int, request: Span, here: Span, look: Style) -> Iterator[str]:
    """The part of a request's extent that lies in a row; its number where there is room."""
    begins, ends = request.first >= here.first, request.end <= here.end
    length = min(request.end, here.end) - max(request.first, here.first)
    left, right = look.corners[0] if begins else "", look.corners[1] if ends else ""
    room = length - len(left) - len(right)
    if room < 0:
        yield look.corners[0]
        return
    name = str(number) if begins and len(str(number)) <= room else ""
    yield left + name + look.line * (room - len(name)) + right
