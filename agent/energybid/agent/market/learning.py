"""A building's model, learned from quarters of an hour that were measured. Needs numpy. Sans I/O."""

from __future__ import annotations

import logging
from typing import NamedTuple

from energybid.agent.market.plan import ThermalModelPlan
from energybid.bidding.assets_identify import STEPS_MIN, identify

logger = logging.getLogger("energybid.agent")

SLOT_MS = 900_000
SLOTS_MAX = 7 * 96
"""A week."""
FIT_EVERY = 24
"""Slots between two fits: six hours."""
ERROR_MAX_K = 1.0
"""A model that is wrong by more in a quarter of an hour tells nothing."""


class Sight(NamedTuple):
    """What is measured at a moment."""

    inside_c: float
    outside_c: float
    power_w: float
    """Mean of the slot that ends now."""


class Learner:
    """Collects slots without a gap between them, and fits."""

    def __init__(self) -> None:
        """Begin with none."""
        self._slot = -1
        """The last one whose begin was seen."""
        self._inside: list[float] = []
        self._outside: list[float] = []
        self._powers: list[float] = []
        """One less than temperatures."""

    @property
    def slots(self) -> int:
        """How many are there."""
        return len(self._powers)

    def look(self, now_ms: int, sight: Sight | None) -> bool:
        """Take what is measured; call it often.

        Args:
            now_ms: Wall clock.
            sight: None where something is not known.

        Returns:
            Whether it is time to fit anew.
        """
        slot = now_ms // SLOT_MS
        if slot == self._slot or self._slot < 0:  # in the middle of one; the first is not whole
            self._slot = slot
            return False
        follows, self._slot = slot == self._slot + 1, slot
        if sight is None or not follows:
            self._inside, self._outside, self._powers = [], [], []
        if sight is None:
            return False
        if self._inside:
            self._powers.append(sight.power_w)
            self._outside.append(sight.outside_c)
        self._inside.append(sight.inside_c)
        for numbers, most in ((self._inside, SLOTS_MAX + 1), (self._outside, SLOTS_MAX), (self._powers, SLOTS_MAX)):
            del numbers[:-most]
        return self.slots >= STEPS_MIN and slot % FIT_EVERY == 0

    def model(self) -> ThermalModelPlan | None:
        """What fits what was seen; None where nothing does."""
        try:
            found = identify(self._inside, self._powers, self._outside, SLOT_MS / 3_600_000)
        except ValueError as error:
            logger.info("no thermal model: %s", error)
            return None
        if found.error_k > ERROR_MAX_K:
            logger.info("no thermal model: it would be wrong by %.1f K", found.error_k)
            return None
        return ThermalModelPlan(
            time_constant_h=found.time_constant_h, kelvin_per_w=found.kelvin_per_w, free_k=found.free_k
        )
