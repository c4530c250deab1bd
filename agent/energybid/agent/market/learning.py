"""A building's model, learned from quarters of an hour that were measured. Needs numpy. Sans I/O."""

from __future__ import annotations

import logging
from math import isfinite, nan
from struct import Struct
from struct import error as StructError  # noqa: N812  the struct module's only exception
from typing import NamedTuple

from energybid.agent.market.plan import ThermalModelPlan
from energybid.bidding.assets_identify import STEPS_MIN, identify

logger = logging.getLogger("energybid.agent")

SLOT_MS = 900_000
SLOTS_MAX = 670
"""A week, less what does not fit what the journal remembers under one key."""
FIT_EVERY = 24
"""Slots between two fits: six hours."""
KEEP_EVERY = 4
"""Slots between two times of keeping."""
ERROR_MAX_K = 1.0
"""A model that is wrong by more in a quarter of an hour tells nothing."""

_HEAD, _SLOT = Struct(">qh"), Struct(">hhh")
_UNKNOWN = -32768
_KELVIN, _WATTS = 0.01, 10.0
"""Steps in which temperatures and powers are kept."""


class Sight(NamedTuple):
    """What is measured at a moment; NaN where it is not known."""

    inside_c: float
    outside_c: float
    power_w: float
    """Mean of the slot that ends now."""


class Learner:
    """Collects slots, and fits. Slots that nobody measured do not count."""

    def __init__(self) -> None:
        """Begin with none."""
        self.slot = -1
        """The one that has begun; the first after a start is not whole."""
        self._inside: list[float] = [nan]
        """At the begin of each slot, the present one included."""
        self._outside: list[float] = []
        self._powers: list[float] = []

    @property
    def slots(self) -> int:
        """How many are known."""
        return sum(map(isfinite, self._powers))

    def look(self, now_ms: int, sight: Sight) -> bool:
        """Take what is measured; call it often.

        Returns:
            Whether a slot has ended.
        """
        slot = now_ms // SLOT_MS
        missed = slot - self.slot - 1
        if self.slot < 0 or not -1 <= missed <= SLOTS_MAX:  # the first, or the clock has stepped
            self.slot, self._inside, self._outside, self._powers = slot, [nan], [], []
            return False
        if missed < 0:
            return False
        for _ in range(missed):
            self._add(Sight(nan, nan, nan))
        self._add(sight)
        self.slot = slot
        return True

    def _add(self, sight: Sight) -> None:
        self._powers.append(sight.power_w)
        self._outside.append(sight.outside_c)
        self._inside.append(sight.inside_c)
        for numbers, most in ((self._inside, SLOTS_MAX + 1), (self._outside, SLOTS_MAX), (self._powers, SLOTS_MAX)):
            del numbers[:-most]

    def model(self) -> ThermalModelPlan | None:
        """What fits what was seen; None where nothing does."""
        if self.slots < STEPS_MIN:
            return None
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

    def packed(self) -> bytes:
        """All slots that are over, for a later run."""
        columns = zip(self._inside[1:], self._outside, self._powers, strict=True)
        slots = b"".join(_SLOT.pack(_count(i, _KELVIN), _count(o, _KELVIN), _count(p, _WATTS)) for i, o, p in columns)
        return _HEAD.pack(self.slot, _count(self._inside[0], _KELVIN)) + slots

    def restore(self, packed: bytes) -> None:
        """Take up what an earlier run has collected; its last slot broke off.

        Raises:
            ValueError: It is damaged.
        """
        try:
            slot, first = _HEAD.unpack(packed[: _HEAD.size])
            rows = list(_SLOT.iter_unpack(packed[_HEAD.size :]))
        except StructError:
            raise ValueError("slots of a thermal model: damaged") from None
        if slot < 0 or len(rows) > SLOTS_MAX:
            raise ValueError("slots of a thermal model: damaged")
        self.slot = slot
        self._inside = [_number(first, _KELVIN), *(_number(row[0], _KELVIN) for row in rows)]
        self._outside = [_number(row[1], _KELVIN) for row in rows]
        self._powers = [_number(row[2], _WATTS) for row in rows]


def _count(number: float, step: float) -> int:
    return min(max(round(number / step), _UNKNOWN + 1), -_UNKNOWN - 1) if isfinite(number) else _UNKNOWN


def _number(count: int, step: float) -> float:
    return nan if count == _UNKNOWN else count * step
