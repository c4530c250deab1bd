"""Gathering a bundle's readings from stored logs, with their proofs. The other direction is ``recompute``.

For every boundary of an interval: the last reading before it and the first one after it; their declarations; and the
Start and Clock entries of the log, from which the readings' times are corrected. Pure: the history is a port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from energybid.bidding.baseline import needed
from energybid.bidding.baseline_rules import parse as parse_programme
from energybid.core import cose
from energybid.core.disclosure import Disclosed
from energybid.core.entries import Clock, Declaration, Reading, Start
from energybid.core.evidence import parse_checkpoint
from energybid.core.prover import LostError, Span, inclusion_spans, subtree
from energybid.core.timeline import Timeline
from energybid.sync.bundle import LogPart
from energybid.sync.recompute import entries_of, event_of, register_loads

if TYPE_CHECKING:
    from collections.abc import Iterable

    from energybid.core.prover import History
    from energybid.sync.bundle import Inputs
    from energybid.sync.market import Round

Told = Start | Clock | Declaration
"""What is kept in memory of a log; readings are many."""


def prepare(histories: Iterable[History], made: Round, inputs: Inputs) -> tuple[Inputs, tuple[LogPart, ...]]:
    """The inputs of a round's baseline from stored logs, and the logs' part of the bundle.

    Args:
        histories: Every epoch that may hold readings of the round or of the days before it.
        made: The round.
        inputs: All but the loads.

    Returns:
        The inputs with every interval that the programme may ask for and whose energy is known; then ``settle_round``
        says what the round is worth.

    Raises:
        LostError: A proof needs what is not kept here: ask the head-end.
        ValueError: The programme's file is none, or does not fit the round.
    """
    wanted = needed(parse_programme(inputs.programme), event_of(made, inputs.interval_ms), inputs.events)
    parts = tuple(part for part in (gather(history, inputs, wanted) for history in histories) if part is not None)
    loads = register_loads(map(entries_of, parts), inputs, wanted)
    return inputs._replace(loads=tuple((at, loads[at].wh) for at in sorted(loads))), parts


def gather(history: History, inputs: Inputs, intervals: Iterable[int]) -> LogPart | None:
    """What one log says about a meter's registers at the boundaries of intervals.

    Args:
        history: One epoch of a log; read from its beginning to its last checkpoint.
        inputs: Names the meter, its registers and the intervals' length.
        intervals: Their beginnings.

    Returns:
        None when it has no reading of the meter.

    Raises:
        LostError: A proof needs what is not kept here: ask the head-end.
    """
    size = max((commit.end for commit in history.commits()), default=0)
    told = {
        sequence: entry
        for sequence, entry in history.entries(history.first, size)
        if isinstance(entry, Start | Clock | Declaration)
    }
    chosen = _nearest(history, told, inputs, intervals)
    if not chosen:
        return None
    chosen |= {sequence for sequence, entry in told.items() if isinstance(entry, Start | Clock)}
    message, receipt = history.signed(max(chosen))
    covered = parse_checkpoint(cose.peek(message)[1]).size
    known: dict[Span, bytes] = {}
    disclosed = (
        Disclosed(sequence, history.canonical(sequence), _path(history, sequence, covered, known))
        for sequence in sorted(chosen)
        if sequence < covered
    )
    return LogPart(message, receipt, tuple(disclosed))


def _path(history: History, sequence: int, size: int, known: dict[Span, bytes]) -> tuple[bytes, ...]:
    """Inclusion proof of an entry; subtrees that another proof needed are not made again."""
    spans = inclusion_spans(sequence, size)
    for span in spans:
        if span not in known:
            known[span] = subtree(history, *span)
    return tuple(known[span] for span in spans)


def _nearest(history: History, told: dict[int, Told], inputs: Inputs, intervals: Iterable[int]) -> set[int]:
    """Sequences of the readings around every boundary, for each register, and of their declarations."""
    boundaries = sorted({at for begins_ms in intervals for at in (begins_ms, begins_ms + inputs.interval_ms)})
    if not boundaries:
        return set()
    registers = [obis for obis in (inputs.imports, inputs.exports) if obis is not None]
    timed = _timed(history, told, inputs, boundaries[0] - inputs.interval_ms, boundaries[-1] + inputs.interval_ms)
    chosen = set()
    for obis in registers:
        held = [(time_ms, sequence, at) for time_ms, sequence, at, group in timed if _holds(told[at], group, obis)]
        place = 0
        for boundary in boundaries:
            while place < len(held) and held[place][0] < boundary:
                place += 1
            for _, sequence, at in held[max(place - 1, 0) : place + 1]:
                chosen |= {sequence, at}
    return chosen


def _timed(
    history: History, told: dict[int, Told], inputs: Inputs, from_ms: int, to_ms: int
) -> list[tuple[int, int, int, int]]:
    """(Best time, sequence, declaration's sequence, group) of the meter's readings within two moments, by time."""
    timeline = Timeline()
    for sequence, each in told.items():
        timeline.add(sequence, each)
    found: list[tuple[int, int, int, int]] = []
    end = max((commit.end for commit in history.commits()), default=0)
    for sequence, entry in history.entries(history.first, end):
        if not isinstance(entry, Reading):
            continue
        time_ms = timeline.correct(entry).time_ms
        if from_ms <= time_ms <= to_ms:
            if entry.declaration < history.first:
                raise LostError(f"declaration {entry.declaration} is not kept here any more: ask the head-end")
            declaration = told.get(entry.declaration)
            if isinstance(declaration, Declaration) and declaration.meter == inputs.meter:
                found.append((time_ms, sequence, entry.declaration, entry.group))
    return sorted(found)


def _holds(declaration: Told, group: int, obis: bytes) -> bool:
    return (
        isinstance(declaration, Declaration)
        and group < len(declaration.groups)
        and any(quantity[0] == obis for quantity in declaration.groups[group][1])
    )
