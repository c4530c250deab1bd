"""The load forecast in use: candidates that compete every day, their spread, versions and the way back.

Every candidate forecasts every day. When the day is over each is scored by what its quantiles missed; the best of late
is in use. Each learning model also keeps a frozen version of itself from about a week before, which competes with it:
where it is better by a margin, the model goes back to it (a week of a broken sensor is unlearned in this way). The
state is all there is: a gateway that starts again goes on where it was. Needs numpy (extra
``bidding``). Pure.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from energybid.bidding.forecast_models import DAYS_KEPT, Array, Candidate, Day, Past, candidates
from energybid.bidding.forecast_spread import LEVELS, Spread
from energybid.bidding.packed import Fine, plain

FORMAT = 2
"""Of the state; another one is not taken up."""
FADE = 0.95
"""A score's weight a day later: half after 14 days."""
MARGIN = 0.02
"""A model must be better by this to take over, so that equals do not take turns."""
FREEZE_DAYS = 7
BACK_MARGIN = 0.1
"""A frozen version must be better by this for the model to go back to it."""
BACK_DAYS = 5
"""Of comparison before that."""


class Forecast(NamedTuple):
    """A day's load."""

    model: str
    version: int
    levels: tuple[float, ...]
    """Of the quantiles, rising; the one in the middle is the forecast itself."""
    quantiles: Array
    """Levels x slots."""

    @property
    def middle(self) -> Array:
        """The forecast: half of what comes is above, half below."""
        return np.asarray(self.quantiles[len(self.levels) // 2])


class Change(NamedTuple):
    """What a day's scores brought."""

    model: str
    version: int
    why: str


class Standing(NamedTuple):
    """How a candidate does."""

    model: str
    used: bool
    version: int
    loss: float | None
    """Mean of a day of late, of all quantiles, as a part of the mean load; None before the first day."""
    older_days: int | None
    """Age of the version before, to which it can go back; None: it learns nothing, or has none yet."""


class _Entrant:
    """A candidate with its spread, score, version and frozen self."""

    def __init__(self, model: Candidate, twin: Candidate, slots: int) -> None:
        self.model, self.twin = model, twin
        self.spread = Spread(slots)
        self.loss = 0.0
        self.days = 0
        self.version = 1
        self.frozen: dict[str, Any] = model.state()
        self.frozen_age = 0
        self.race = [0.0, 0.0]
        """Losses of the model and of its frozen version since it was frozen."""

    def score(self, guess: Array | None, twin_guess: Array | None, load: Array) -> None:
        if guess is None:
            return
        scale = max(float(np.nanmean(np.abs(load))), 1e-9)
        self.loss = FADE * self.loss + (1 - FADE) * self.spread.loss(guess, load) / scale
        self.days += 1
        self.spread.learn(guess, load)
        if twin_guess is not None:
            self.race[0] += float(np.nanmean(np.abs(load - guess))) / scale
            self.race[1] += float(np.nanmean(np.abs(load - twin_guess))) / scale

    @property
    def mean_loss(self) -> float:
        """Of a day of late; infinite before the first one."""
        return self.loss / (1 - FADE**self.days) if self.days else np.inf

    @property
    def learns(self) -> bool:
        """Whether there is anything to go back to."""
        return bool(self.frozen)

    def age(self) -> bool:
        """A day more; True where the model went back to its frozen version."""
        self.frozen_age += 1
        back = self.frozen_age >= BACK_DAYS and self.race[1] < self.race[0] * (1 - BACK_MARGIN)
        if back:
            self.go_back()
        elif self.frozen_age >= FREEZE_DAYS:
            self.freeze(self.model.state())
        return back

    def go_back(self) -> None:
        self.model.restore(self.frozen)
        self.version += 1
        self.freeze(self.frozen)

    def freeze(self, state: dict[str, Any]) -> None:
        self.twin.restore(state)
        self.frozen, self.frozen_age, self.race = self.twin.state(), 0, [0.0, 0.0]

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state(),
            "spread": self.spread.state(),
            "loss": self.loss,
            "days": self.days,
            "version": self.version,
            "frozen": self.frozen,
            "frozen_age": self.frozen_age,
            "race": self.race,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.restore(state["model"])
        self.spread.restore(state["spread"])
        self.loss, self.days, self.version = float(state["loss"]), int(state["days"]), int(state["version"])
        self.freeze(state["frozen"])
        self.frozen_age, self.race = int(state["frozen_age"]), [float(x) for x in state["race"]]


class Forecaster:
    """Forecasts a site's load a day at a time."""

    def __init__(self, slots: int) -> None:
        """Start without history.

        Args:
            slots: Of a day, all of one length.
        """
        self._slots = slots
        pairs = zip(candidates(slots), candidates(slots), strict=True)
        self._entrants = {model.name: _Entrant(model, twin, slots) for model, twin in pairs}
        self._used = next(iter(self._entrants))
        self._past = Past(np.empty((0, slots)), ())

    @property
    def model(self) -> str:
        """The one in use."""
        return self._used

    def standings(self) -> list[Standing]:
        """All candidates, plainest first."""
        return [
            Standing(
                name,
                name == self._used,
                entrant.version,
                entrant.mean_loss if entrant.days else None,
                entrant.frozen_age or None if entrant.learns else None,
            )
            for name, entrant in self._entrants.items()
        ]

    def forecast(self, day: Day, model: str | None = None, *, seen: Array | None = None) -> Forecast | None:
        """The load of the day after the last one learned.

        Args:
            day: What is known of it.
            model: Another one than the one in use.
            seen: What came so far of the day, from its first slot; the rest is corrected by how far off that is.

        Returns:
            None before the first day is learned, or where the model does not know enough yet.
        """
        entrant = self._entrants[model or self._used]
        guess = entrant.model.predict(self._past, day)
        if guess is None:
            return None
        if seen is not None and len(seen):
            guess = entrant.spread.corrected(guess, seen)
        return Forecast(entrant.model.name, entrant.version, LEVELS, entrant.spread.quantiles(guess))

    def learn(self, day: Day, load: Array, was: Day | None = None) -> list[Change]:
        """A day is over: score what was forecast, learn, choose.

        Args:
            day: What was known of it before.
            load: Of each slot; NaN where nothing was measured.
            was: The day as it turned out, where that differs: what later days look back on.

        Returns:
            Models that took over or went back.

        Raises:
            ValueError: A load of another number of slots.
        """
        if load.shape != (self._slots,):
            raise ValueError(f"a day has {self._slots} slots (found {load.shape})")
        if not np.isfinite(load).any():
            self._remember(was or day, load)
            return []
        changes = []
        for entrant in self._entrants.values():
            guess, twin = (model.predict(self._past, day) for model in (entrant.model, entrant.twin))
            entrant.score(guess, twin, load)
            entrant.model.learn(self._past, day, load)
            if entrant.age():
                changes.append(Change(entrant.model.name, entrant.version, "its version of a week before was better"))
        self._remember(was or day, load)
        return changes + self._choose()

    def roll_back(self, model: str) -> int:
        """Go back to a model's frozen version, by hand.

        Returns:
            The number of the version that this makes.

        Raises:
            ValueError: There is no such model, or no version before: what to do instead.
        """
        entrant = self._entrants.get(model)
        learning = ", ".join(name for name, entrant in self._entrants.items() if entrant.learns)
        if entrant is None:
            raise ValueError(f"there is no model {model!r}; those that have versions: {learning}")
        if not entrant.learns:
            raise ValueError(f"{model} learns nothing, so that it has no versions; those that have: {learning}")
        if not entrant.frozen_age:
            raise ValueError(
                f"{model}: version {entrant.version} is of today, and no other one is kept: it can go back when it has"
                " learned a day"
            )
        entrant.go_back()
        return entrant.version

    def state(self) -> dict[str, Any]:
        """All of it, for ``packed``."""
        return {
            "format": FORMAT,
            "slots": self._slots,
            "used": self._used,
            "load": Fine(self._past.load),
            "days": [[day.weekday, day.temperature_c] for day in self._past.days],
            "models": {name: entrant.state() for name, entrant in self._entrants.items()},
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Forecaster:
        """Go on where ``state`` was taken; models that are new since begin anew.

        Raises:
            ValueError: Of another format, or damaged.
        """
        if state.get("format") != FORMAT:
            raise ValueError(f"the forecast's state has format {state.get('format')}, not {FORMAT}")
        try:
            return cls._restored(state)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the forecast's state is damaged: {error!r}") from None

    @classmethod
    def _restored(cls, state: dict[str, Any]) -> Forecaster:
        made = cls(state["slots"])
        days = tuple(Day(weekday, temperature_c) for weekday, temperature_c in state["days"])
        made._past = Past(plain(state["load"]).reshape(len(days), made._slots), days)
        for name in made._entrants.keys() & state["models"].keys():
            made._entrants[name].restore(state["models"][name])
        if state["used"] in made._entrants:
            made._used = state["used"]
        return made

    def _remember(self, day: Day, load: Array) -> None:
        """Gaps are filled with the day before; before there is one, with the day's mean."""
        if not len(self._past.load):
            if not np.isfinite(load).any():
                return
            fill = np.full(self._slots, np.nanmean(load))
        else:
            fill = self._past.load[-1]
        row = np.where(np.isfinite(load), load, fill)
        kept = np.vstack((self._past.load, row))[-DAYS_KEPT:]
        self._past = Past(kept, (*self._past.days, day)[-DAYS_KEPT:])

    def _choose(self) -> list[Change]:
        best = min(self._entrants.values(), key=lambda entrant: entrant.mean_loss)
        used = self._entrants[self._used]
        if best is used or best.mean_loss > used.mean_loss * (1 - MARGIN):
            return []
        self._used = best.model.name
        return [Change(best.model.name, best.version, "the best of late")]
