"""Judgements that stand beside the numbers of a reading. The numbers themselves are never touched.

A cumulative register only grows. Where it is smaller than the one before in this run of the agent (the meter was
reset, swapped, or rolled over), the number is marked SUSPECT, once: the next one is compared with it. After a start
there is nothing to compare with; the Start entry between the two says that somebody has to look.
"""

from __future__ import annotations

from operator import lt
from typing import TYPE_CHECKING

from energybid.core.quantities import Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.core.ports import PollGroup, Sample


class Judge:
    """Compares the samples of one poll group of one meter, each with the one before."""

    __slots__ = ("_last", "_places")

    def __init__(self, group: PollGroup) -> None:
        """Know which quantities are cumulative."""
        self._places = [place for place, quantity in enumerate(group.quantities) if quantity.cumulative]
        self._last: list[int] = []

    def __call__(self, sample: Sample) -> Sample:
        """The sample, with SUSPECT beside every cumulative number that is smaller than the one before."""
        values = sample.values
        if self._last and sample.status is None:
            now = [values[place] for place in self._places]
            if not any(map(lt, now, self._last)):  # type: ignore[arg-type]  # a status of None means that no number is missing
                self._last = now  # type: ignore[assignment]
                return sample
        return self._compare(sample, values)

    def _compare(self, sample: Sample, values: Sequence[int | None]) -> Sample:
        """Number by number: some may be missing."""
        last = self._last or [value if (value := values[place]) is not None else -(2**63) for place in self._places]
        fallen = []
        for index, place in enumerate(self._places):
            value = values[place]
            if value is None:
                continue
            if value < last[index]:
                fallen.append(place)
            last[index] = value
        self._last = last
        if not fallen:
            return sample
        status = list(sample.status or (Status.OK,) * len(values))
        for place in fallen:
            status[place] = Status.SUSPECT
        return sample._replace(status=tuple(map(int, status)))
