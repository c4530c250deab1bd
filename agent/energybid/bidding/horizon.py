"""What is known about the prices of the steps after a round.

Each step has one or several possible prices (its states), and each state of the step before tells how likely they are:
a Markov chain that may differ from step to step. One state everywhere is a list of certain prices. Pure; no numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import fsum, isclose
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Rows = tuple[tuple[float, ...], ...] | NDArray[np.float64]
    Row = tuple[float, ...] | NDArray[np.float64]


class Stage(NamedTuple):
    """One step's possible prices."""

    prices: Row
    """One of each state, money per MWh."""
    weights: Rows
    """How likely each is: one row for every state of the step before, or a single row where that does not matter. Steps
    that share a matrix share the object: it is checked and converted once."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The prices from the step after the round to the end of what is planned."""

    step_h: float
    """Length of every step and of the round, hours."""
    stages: tuple[Stage, ...]
    """The first is the step after the round; its rows are the states of the round itself."""
    later: float = 0.0
    """Price expected after the last stage, money per MWh; what goes on beyond it is counted at this price."""

    def __post_init__(self) -> None:
        """Refuse what is no chain.

        Raises:
            ValueError: A step without length or prices, rows that do not fit or are no probabilities.
        """
        if not self.step_h > 0:
            raise ValueError("a step has a length")
        checked: set[tuple[int, int]] = set()
        for number, stage in enumerate(self.stages):
            known = id(stage.weights), len(stage.prices)
            if known not in checked:
                _check(number, stage)
                checked.add(known)
        if any(len(after.weights) not in {1, len(before.prices)} for before, after in pairwise(self.stages)):
            raise ValueError("a stage has one row, or one for each price of the stage before")

    @classmethod
    def certain(cls, step_h: float, prices: Sequence[float]) -> Outlook:
        """Prices that are known; what comes later is counted at their mean."""
        return cls.independent(step_h, [[(price, 1.0)] for price in prices])

    @classmethod
    def independent(cls, step_h: float, distributions: Sequence[Sequence[tuple[float, float]]]) -> Outlook:
        """Prices of which each step's distribution is known and tells nothing about the next.

        Args:
            step_h: Length of a step, hours.
            distributions: Of each step, pairs of price and probability.
        """
        stages = tuple(Stage(tuple(p for p, _ in pairs), (tuple(w for _, w in pairs),)) for pairs in distributions)
        means = [fsum(price * weight for price, weight in pairs) for pairs in distributions]
        return cls(step_h, stages, fsum(means) / max(1, len(means)))

    def raised(self, shadows: Sequence[float]) -> Outlook:
        """With a shadow price (``site_shadow``) on all prices of each stage, money per MWh."""
        pairs = zip(self.stages, shadows, strict=True)
        return replace(
            self, stages=tuple(Stage(_raised(stage.prices, shadow), stage.weights) for stage, shadow in pairs)
        )


def _raised(prices: Row, shadow: float) -> Row:
    return tuple(price + shadow for price in prices) if isinstance(prices, tuple) else prices + shadow


def _check(number: int, stage: Stage) -> None:
    rows = stage.weights
    if not isinstance(rows, tuple):  # an array: looked at as a whole
        if rows.shape[1] != len(stage.prices) or rows.min() < 0 or abs(rows.sum(axis=1) - 1).max() > 1e-9:  # noqa: PLR2004
            raise ValueError(f"stage {number}: each row of weights is a probability of each price")
        return
    if not len(stage.prices) or not rows or any(len(row) != len(stage.prices) for row in rows):
        raise ValueError(f"stage {number}: every row has one weight for each price")
    if any(min(row) < 0 or not isclose(fsum(row), 1.0, rel_tol=1e-9) for row in rows):
        raise ValueError(f"stage {number}: the weights of a row are probabilities")
