"""Virtual time: an event loop whose clock jumps to the next timer as soon as nothing is left to do now.

An hour of waiting costs nothing and the order of events is the same in every run. The loop waits for no file
descriptor: what runs on it gets its bytes, threads and clocks from a ``Platform`` made here, never from the machine.
"""

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from energybid.core.quantities import ClockState

P = ParamSpec("P")
T = TypeVar("T")

EPOCH_NS = 1_790_000_000_000_000_000
"""Wall clock at virtual time 0: 2026-09-21T14:13:20Z."""


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everything waits and nothing will ever happen: a deadlock in virtual time")
        if not ready and timeout:
            self.now_s += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which begins at 0 s."""

    def __init__(self) -> None:
        """Begin at 0 s."""
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds."""
        return self._jumping.now_s


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main()`` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class VirtualClock:
    """A wall clock beside the virtual monotonic one; can be stepped."""

    def __init__(self, *, state: ClockState = ClockState.SYNCHRONISED) -> None:
        """Show EPOCH_NS at virtual time 0."""
        self.offset_ns = EPOCH_NS
        self.state = state

    def now_ns(self) -> int:
        """Wall clock, nanoseconds."""
        return self.offset_ns + round(asyncio.get_running_loop().time() * 1e9)

    def clock_state(self) -> ClockState:
        """What the gateway believes."""
        return self.state

    def step(self, seconds: float) -> None:
        """Move the wall clock, not the monotonic one."""
        self.offset_ns += round(seconds * 1e9)


class VirtualOffload:
    """Runs blocking work inline after a seeded delay, one after another as a single thread would."""

    def __init__(self, rng: random.Random, *, delay_s: tuple[float, float] = (0.001, 0.02)) -> None:
        """Delay each call by a time drawn from ``delay_s``, seconds."""
        self._rng = rng
        self._delay_s = delay_s
        self._turn = asyncio.Lock()

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Run ``function``; as in a thread, a cancelled caller does not stop it."""
        return asyncio.shield(asyncio.ensure_future(self._run(function, *args, **kwargs)))

    async def _run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        async with self._turn:
            await asyncio.sleep(self._rng.uniform(*self._delay_s))
            return function(*args, **kwargs)
