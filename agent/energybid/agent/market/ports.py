"""The seams of the bidder: who plans, who knows the assets, who moves them, who sends.

Here live protocols and the values that pass through them, nothing that does anything. No numpy, no pydantic: the values
of ``energybid.bidding`` that need numpy pass through as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from energybid.agent.control import Rank
    from energybid.bidding.assets import Asset
    from energybid.bidding.curve import Curve
    from energybid.sync.market import Conduct, Prices, Round


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What the site would do in a round, at any price."""

    curve: Curve
    schedule_w: int
    """Net import without an award: a power that the curve offers."""
    split: Callable[[int], Mapping[str, int]]
    """Power of each asset, W of import, by its name, for a net import that the curve offers."""
    all_w: Mapping[str, int] = field(default_factory=dict)
    """What loads are thought to take with nothing off, and roofs without a limit, W of import, by asset: a part of the
    split that is this means "all of it", whatever it turns out to be."""
    facts: Mapping[str, str | int | float] = field(default_factory=dict)
    """For people: expected price, base load, forecast model. Small, JSON."""


class Planner(Protocol):
    """Makes curves. Blocks: called in a thread of its own, never two calls at a time, but for ``state``'s reader."""

    def prices(self, made: Prices) -> None:
        """An accepted price curve; after a restart those of the last days come again, oldest first."""

    def weather(self, at_ms: int, made: Weather) -> None:
        """A slot of 15 minutes is over; told before its ``load``.

        Args:
            at_ms: Its begin.
            made: What was measured.
        """

    def load(self, at_ms: int, net_w: int, controlled_w: int) -> None:
        """A slot of 15 minutes is over.

        Args:
            at_ms: Its begin.
            net_w: Mean net import of the site.
            controlled_w: Mean import of its assets.
        """

    def plan(self, made: Round, assets: Sequence[tuple[str, Asset]], base_w: int | None, now_ms: int) -> Planned:
        """The site's best response to a round.

        Args:
            made: The round; may be a virtual one of 15 minutes that no market announced, with number 0.
            assets: By name, in their present state; only those that can be reached.
            base_w: Net import of what is not controlled, now; None: not known.
            now_ms: Wall clock.

        Raises:
            ValueError: There is nothing to plan with.
        """

    def roll_back(self, model: str | None) -> tuple[str, int]:
        """A person wants the load forecast's version before.

        Args:
            model: Which; None: the one in use.

        Returns:
            The model and its version now.

        Raises:
            ValueError: There is none: what to do instead.
        """

    def state(self) -> Mapping[str, bytes]:
        """What it has learned, in pieces that ``Journal.remember`` takes."""

    def restore(self, state: Mapping[str, bytes]) -> None:
        """Take up what an earlier run has learned; what is damaged is learned again."""


class Slot(NamedTuple):
    """Means over a time that is over."""

    net_w: int
    controlled_w: int


class Weather(NamedTuple):
    """What was measured of the weather in a time that is over; by asset, where it is known."""

    outside_c: Mapping[str, float]
    """Temperature around each; around the site under the name ``planning_weather.SITE``."""
    sun_w: Mapping[str, float | None]
    """What roofs gave; None for one that was held by a limit, where nobody knows what the sun gave."""


class Assets(Protocol):
    """What the meters say of the site and of its assets."""

    async def recall(self) -> None:
        """Take up what earlier runs knew; called once before ``run``, and again after a fault."""

    async def run(self) -> None:
        """Look at the meters until cancelled."""

    def now(self, made_at_ms: int, step_h: float) -> list[tuple[str, Asset]]:
        """The assets that can be reached, in the state that they will be in.

        Args:
            made_at_ms: Wall clock when the round begins.
            step_h: Its length, hours.
        """

    def base_w(self) -> int | None:
        """Net import of the site less what its assets take, mean of the last minutes; None: not known."""

    def slot(self, begins_ms: int, ends_ms: int) -> Slot | None:
        """Means over an interval that has just ended; None where the meters did not tell enough."""

    def weather(self, begins_ms: int, ends_ms: int) -> Weather:
        """The weather of an interval that has just ended."""

    def foreseen(self, begins_ms: int, all_w: Mapping[str, int]) -> None:
        """What loads and roofs were thought to take and give in an interval that is followed next.

        Args:
            begins_ms: Of the interval.
            all_w: See ``Planned``.
        """

    def status(self) -> list[dict[str, Any]]:
        """What the operator is told of each asset.

        ``name``, ``power_w``, ``command_w``, ``out`` (why it can not be reached, or empty), and what is its own.
        """


class Followed(NamedTuple):
    """How following a power ended."""

    conduct: Conduct
    reason: str = "followed"
    """1 to 64 of letters, digits, space and ``. _ : / -``: it goes into the confirmation."""


class Dispatcher(Protocol):
    """Moves the assets."""

    async def follow(
        self, target_w: int, split: Mapping[str, int], begins_ms: int, ends_ms: int, rank: Rank
    ) -> Followed:
        """Have the site take a power, and its assets theirs, until the interval ends; then let go.

        Called when the interval begins, or later. Returns at its end, or at once when an owner of a higher rank takes
        a point (OVERRIDDEN) or an asset can not be reached (FAILED). May be cancelled at any time, and lets go then.
        What it holds may outlast its end by some seconds, so that the one who follows next takes over without a safe
        number in between.

        Args:
            target_w: Net import to keep on the mean over the interval.
            split: Of it, the import of each asset by name.
            begins_ms: Wall clock.
            ends_ms: Wall clock.
            rank: MARKET for an award, SCHEDULE for the site's own plan.
        """


class Send(Protocol):
    """Publishes; ``Uploader.publish``."""

    async def __call__(self, topic: str, payload: bytes, /, *, retain: bool = False) -> None:
        """Return when the broker has taken it.

        Raises:
            UplinkDownError: There is no connection.
        """
