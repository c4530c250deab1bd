"""The planner's desk: one question at a time, each with its time, and no fault of it reaches anybody else.

The planner thinks in a thread of its own. One that takes too long is left to it: what it says then is not heard, and
nothing is asked until it is done.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from energybid.core.errors import EnergybidError

if TYPE_CHECKING:
    from collections.abc import Callable

    from energybid.core.ports import Offload

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger("energybid.market")

PATIENCE_S = 10.0
"""How long an answer may take."""


class PlannerError(EnergybidError):
    """The planner gave no answer; what it was asked for is left out."""


class Desk:
    """Asks the planner."""

    def __init__(self, think: Offload, patience_s: float = PATIENCE_S) -> None:
        """Ask in the thread of ``think``."""
        self._faults: dict[str, str] = {}
        """Question → why it got no answer last."""
        self._think = think
        self._patience_s = patience_s
        self._turn = asyncio.Lock()
        self._under_way: asyncio.Future[object] | None = None

    @property
    def error(self) -> str:
        """Why it gave no answer last; empty where it did."""
        return next(iter(self._faults.values()), "")

    async def ask(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """What ``function`` returns.

        Raises:
            PlannerError: It raised, or took too long; told once, until it answers again.
        """
        name = getattr(function, "__name__", "")
        try:
            async with asyncio.timeout(self._patience_s), self._turn:
                if self._under_way is not None:
                    await asyncio.wait({self._under_way})
                answer = asyncio.ensure_future(self._think(function, *args, **kwargs))
                answer.add_done_callback(_heard)
                self._under_way = answer  # type: ignore[assignment]  # of any type
                await asyncio.wait({answer})
                self._under_way = None
                result = answer.result()
        except TimeoutError:
            raise self._failed(name, f"no answer within {self._patience_s:g} s", None) from None
        except Exception as error:
            raise self._failed(name, f"{type(error).__name__}: {error}", error) from error
        if self._faults.pop(name, ""):
            logger.info("the planner answers again")
        return result

    def _failed(self, name: str, why: str, error: Exception | None) -> PlannerError:
        if name not in self._faults:
            logger.error("the planner gives no answer (%s): nothing is bid until it does", why, exc_info=error)
        self._faults[name] = why
        return PlannerError(why)


def _heard(answer: asyncio.Future[T]) -> None:
    """Look at what came, also where nobody waits for it any more: the loop complains of faults that nobody saw."""
    if not answer.cancelled():
        answer.exception()
