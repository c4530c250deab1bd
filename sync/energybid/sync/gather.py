"""Choosing from a log what a round is settled by, and proving it. The other direction is ``recompute``.

For every boundary of an interval: the last number before it and the first one after it; what begins a register anew;
the declarations; and the Start and Clock entries of the log, from which the readings' times are corrected. Pure: the
history is a port.
"""

from __future__ import annotations

from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from energybid.core import cose
from energybid.core.disclosure import Disclosed
from energybid.core.entries import Reading
from energybid.core.evidence import parse_checkpoint
from energybid.core.prover import Span, consistency, inclusion_spans, subtree
from energybid.sync.bundle import LogPart

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from energybid.core.entries import Entry
    from energybid.core.prover import History
    from energybid.sync.bundle import Inputs
    from energybid.sync.index import LogIndex

_STRETCH = 256
"""Entries that lie nearer to one another than this are read together."""


def chosen(index: LogIndex, history: History, inputs: Inputs, intervals: Iterable[int]) -> dict[int, Entry]:
    """What one log says about a meter's registers at the boundaries of intervals, by sequence.

    Args:
        index: Of the log.
        history: The log.
        inputs: Names the registers and the intervals' length.
        intervals: Their beginnings.

    Returns:
        Nothing when it has no reading of the meter there.

    Raises:
        LostError: A declaration is not kept here: ask the head-end.
    """
    boundaries = sorted({at for begins_ms in intervals for at in (begins_ms, begins_ms + inputs.interval_ms)})
    registers = [obis for obis in (inputs.imports, inputs.exports) if obis is not None]
    found = index.around(registers, boundaries, inputs.interval_ms)
    if not found:
        return {}
    entries = dict(_read(history, found))
    declarations = {entry.declaration for entry in entries.values() if isinstance(entry, Reading)}
    covered = _size(history.signed(max(found))[0])
    clocks = {sequence for sequence in index.clocks if sequence < covered}
    return entries | dict(_read(history, declarations | clocks))


def _read(history: History, sequences: Iterable[int]) -> Iterator[tuple[int, Entry]]:
    """Entries that are wanted, without reading all between them."""
    wanted = sorted(sequences)
    breaks = [0, *(at for at in range(1, len(wanted)) if wanted[at] - wanted[at - 1] > _STRETCH), len(wanted)]
    for low, high in pairwise(breaks):
        stretch = set(wanted[low:high])
        if stretch:
            yield from (pair for pair in history.entries(min(stretch), max(stretch) + 1) if pair[0] in stretch)


def prove(
    history: History, readings: Iterable[int], others: Iterable[int], known: dict[Span, bytes]
) -> tuple[LogPart, ...]:
    """Entries of one log with their inclusion proofs, each under the first receipt that covers it.

    Args:
        history: The log.
        readings: Sequences that are proven together, under the first receipt that covers all of them.
        others: Sequences that are proven each for itself: by when it was in the log.
        known: Hashes of the log's subtrees that were made before; grows.

    Returns:
        By the size of their checkpoints; each continues the one before.

    Raises:
        LostError: A proof needs what is not kept here: ask the head-end.
    """
    together = sorted(readings)
    under = dict.fromkeys(together, history.signed(together[-1])) if together else {}
    alone = {sequence: history.signed(sequence) for sequence in sorted(others)}
    placed = sorted((under | alone).items(), key=lambda pair: (_size(pair[1][0]), pair[0]))
    parts: list[LogPart] = []
    before = 0
    for (message, receipt), group in groupby(placed, key=lambda pair: pair[1]):
        size = _size(message)
        entries = tuple(
            Disclosed(sequence, history.canonical(sequence), _path(history, sequence, size, known))
            for sequence, _ in group
        )
        parts.append(LogPart(message, receipt, consistency(history, before, size) if before else (), entries))
        before = size
    return tuple(parts)


def _size(checkpoint: bytes) -> int:
    return parse_checkpoint(cose.peek(checkpoint)[1]).size


def _path(history: History, sequence: int, size: int, known: dict[Span, bytes]) -> tuple[bytes, ...]:
    """Inclusion proof of an entry; subtrees that another proof needed are not made again."""
    spans = inclusion_spans(sequence, size)
    for span in spans:
        if span not in known:
            known[span] = subtree(history, *span)
    return tuple(known[span] for span in spans)
