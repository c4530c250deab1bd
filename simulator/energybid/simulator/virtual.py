"""Virtual time: an event loop whose clock jumps to the next timer as soon as nothing is left to do now.

An hour of waiting costs nothing and the order of events is the same in every run, on every Python and hash seed. The
loop has no file descriptor at all: what runs on it gets its bytes, threads and clocks from a ``Platform`` made here,
never from the machine (docs/decisions/008).

A ``Life`` is one run of one process inside the simulation: everything that its tasks schedule carries it in its
context. ``VirtualLoop.end`` ends a life between two steps as a kill -9 does: nothing of it runs again, no ``finally``
and no ``except``.
"""

import asyncio
import contextlib
import gc
import random
import sys
import warnings
from asyncio.events import Handle, TimerHandle
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from heapq import heapify, heappop, heappush
from typing import Any, ParamSpec, TypeVar

from energybid.core.quantities import ClockState

P = ParamSpec("P")
T = TypeVar("T")

EPOCH_NS = 1_790_000_000_000_000_000
"""Wall clock at virtual time 0: 2026-09-21T14:13:20Z."""


CANCELLED_MAX = 100
"""So many cancelled timers may stay in the queue."""


class PowerCut(BaseException):
    """The life whose blocking work this comes out of ends here and now."""


class Life:
    """One run of one simulated process, from its start to its end or its kill."""

    __slots__ = ("alive", "context", "ends", "fuse", "on_cut", "steps")

    def __init__(self, on_cut: Callable[[], None] = lambda: None) -> None:
        """Begin a life.

        Args:
            on_cut: Called when blocking work raises ``PowerCut`` or the fuse has burnt down; must end the life.
        """
        self.alive = True
        self.steps = 0
        """Callbacks scheduled so far."""
        self.fuse = 0
        """Callbacks until it is cut; 0 for never."""
        self.on_cut = on_cut
        self.ends: dict[object, Callable[[], None]] = {}
        """Called when it is ended from outside: connections that the other side must see closed."""
        self.context = Context()
        self.context.run(LIFE.set, self)


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)
"""Whose code is running; None for the world around."""


class VirtualTask(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks (in ``TaskGroup``) are walked in the same order in every run."""

    def __init__(self, coro: Any, *, loop: "VirtualLoop", **rest: Any) -> None:  # noqa: ANN401  as asyncio has it
        """Number it and note whose it is."""
        self._number = loop.next_number()
        context = rest.get("context")
        life: Life | None = context.get(LIFE) if context is not None else LIFE.get()
        self.life = life
        super().__init__(coro, loop=loop, **rest)

    def __hash__(self) -> int:
        """Its number."""
        return self._number

    def __eq__(self, other: object) -> bool:
        """Only itself."""
        return self is other


def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **rest: Any) -> VirtualTask:  # noqa: ANN401
    assert isinstance(loop, VirtualLoop)  # noqa: S101  set by VirtualLoop itself
    return VirtualTask(coro, loop=loop, **rest)


class _Handle(Handle):
    """asyncio's, made in one step: a simulated day makes 200,000."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[object, ...], loop: "VirtualLoop", context: Context | None
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False


class _Timer(TimerHandle):
    """As ``_Handle``."""

    __slots__ = ()

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[object, ...],
        loop: "VirtualLoop",
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when
        self._scheduled = True

    def cancel(self) -> None:
        """Do not fire."""
        if not self._cancelled:
            self._cancelled = True
            self._callback = self._args = None  # type: ignore[assignment]  # as asyncio's own do
            if self._scheduled:
                self._loop._timer_handle_cancelled(self)  # noqa: SLF001  as asyncio's own timers do


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop in virtual time, which begins at 0 s. Callbacks of one moment run in the order of their making."""

    _ready: deque[Handle]

    def __init__(self) -> None:
        """Begin at 0 s."""
        super().__init__()
        self._now_s = 0.0
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._cancelled = 0
        self._numbers = 0
        self._dead: list[VirtualTask] = []
        self.set_task_factory(_make_task)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def next_number(self) -> int:
        """A number that no task has yet."""
        self._numbers += 1
        return self._numbers

    def _write_to_self(self) -> None:
        """Nothing to wake: the loop never waits."""

    def _run_once(self) -> None:
        """Run what is ready; when nothing is, the clock goes to the next timer. Again and again, until told to stop."""
        ready, timers = self._ready, self._timers
        while True:
            if not ready or (timers and timers[0][0] <= self._now_s):
                self._fire()
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle._cancelled:  # noqa: SLF001  as asyncio's own loop does
                    try:
                        handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]  # noqa: SLF001
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:  # noqa: BLE001  as asyncio's own handles do
                        text = f"exception in callback {handle._callback!r}"  # type: ignore[attr-defined]  # noqa: SLF001
                        self.call_exception_handler({"message": text, "exception": error})
            if self._stopping:  # type: ignore[attr-defined]
                return

    def _fire(self) -> None:
        """Let timers become ready: those that are due, or else the next ones."""
        ready, timers = self._ready, self._timers
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            while timers and timers[0][2]._cancelled:  # noqa: SLF001
                heappop(timers)
                self._cancelled -= 1
            if not timers:
                raise RuntimeError("everything waits and nothing will ever happen: a deadlock in virtual time")
            self._now_s = max(self._now_s, timers[0][0])
        now_s = self._now_s
        while timers and timers[0][0] <= now_s:
            timer = heappop(timers)[2]
            if timer._cancelled:  # noqa: SLF001
                self._cancelled -= 1
            else:
                timer._scheduled = False  # type: ignore[attr-defined]  # noqa: SLF001
                ready.append(timer)

    def call_at(self, when: float, callback: Any, *args: Any, context: Context | None = None) -> TimerHandle:  # type: ignore[override]  # noqa: ANN401
        """As every loop's, but timers of the same moment fire in order."""
        timer = _Timer(when, callback, args, self, context)
        self._numbers += 1
        heappush(self._timers, (when, self._numbers, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Context | None = None) -> TimerHandle:  # type: ignore[override]  # noqa: ANN401
        """As every loop's."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: TimerHandle) -> None:  # noqa: ARG002
        """Forget timers that will not fire, when they are many."""
        self._cancelled += 1
        if self._cancelled > CANCELLED_MAX and 2 * self._cancelled > len(self._timers):
            self._timers[:] = [entry for entry in self._timers if not entry[2].cancelled()]
            heapify(self._timers)
            self._cancelled = 0

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Handle:  # type: ignore[override]  # noqa: ANN401
        """As every loop's; what an ended life would run is dropped."""
        handle = _Handle(callback, args, self, context)
        life = handle._context.get(LIFE)  # noqa: SLF001  what asyncio runs it in
        if life is not None:
            if not life.alive:
                handle.cancel()
                return handle
            life.steps += 1
            if life.fuse:
                life.fuse -= 1
                if not life.fuse:
                    self._ready.append(Handle(life.on_cut, (), self, Context()))
        self._ready.append(handle)
        return handle

    def end(self, life: Life) -> None:
        """End a life: nothing of it runs any more."""
        if not life.alive:
            return
        life.alive = False
        for task in sorted(asyncio.all_tasks(self), key=hash):
            if isinstance(task, VirtualTask) and task.life is life:
                asyncio._unregister_task(task)  # noqa: SLF001  "Extending asyncio"
                self._dead.append(task)  # kept, for a coroutine that is collected runs its ``finally`` blocks
        for handle in (*self._ready, *(timer for _, _, timer in self._timers)):
            if handle._context.get(LIFE) is life:  # type: ignore[attr-defined]  # noqa: SLF001
                handle.cancel()
        ends, life.ends = list(life.ends.values()), {}
        for end in ends:
            end()

    def close(self) -> None:
        """Close; what ended lives left behind is taken apart, unheard: its clean-up has no loop to run on."""
        super().close()
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # coroutines that a clean-up made for nobody
                while self._dead:
                    _bury(self._dead.pop())
                gc.collect()
        finally:
            sys.unraisablehook = hook


def _bury(task: VirtualTask) -> None:
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001  it is meant to be pending
    coroutine = task.get_coro()
    with contextlib.suppress(BaseException):
        if coroutine is not None:
            coroutine.close()


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``main()`` to its end in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())


class VirtualClock:
    """A wall clock beside the virtual monotonic one; can be stepped, and drift."""

    def __init__(self, *, state: ClockState = ClockState.SYNCHRONISED) -> None:
        """Show EPOCH_NS at virtual time 0."""
        self.offset_ns = EPOCH_NS
        self.state = state
        self._drift_ppm = 0
        self._since_s = 0.0

    def now_ns(self) -> int:
        """Wall clock, nanoseconds."""
        now_s = asyncio.get_running_loop().time()
        now_ns = self.offset_ns + round(now_s * 1e9)
        return now_ns + self._drifted_ns(now_s) if self._drift_ppm else now_ns

    def _drifted_ns(self, now_s: float) -> int:
        return round((now_s - self._since_s) * 1000 * self._drift_ppm)

    def clock_state(self) -> ClockState:
        """What the gateway believes."""
        return self.state

    def step(self, seconds: float) -> None:
        """Move the wall clock, not the monotonic one."""
        self.offset_ns += round(seconds * 1e9)

    def drift(self, ppm: int) -> None:
        """Run too fast by so many parts per million from now on; negative is too slow."""
        now_s = asyncio.get_running_loop().time()
        self.offset_ns += self._drifted_ns(now_s)
        self._drift_ppm, self._since_s = ppm, now_s

    def set(self, wall_ns: int) -> None:
        """Step to a time."""
        self.offset_ns += wall_ns - self.now_ns()

    def true_ns(self) -> int:
        """What a perfect clock would show."""
        return EPOCH_NS + round(asyncio.get_running_loop().time() * 1e9)


class VirtualOffload:
    """Runs blocking work inline after a seeded delay, one after another as a single thread would."""

    def __init__(self, rng: random.Random, *, delay_s: tuple[float, float] = (0.001, 0.02)) -> None:
        """Delay each call by a time drawn from ``delay_s``, seconds, which may be changed."""
        self.delay_s = delay_s
        self._rng = rng
        self._queue: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._busy = False

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Run ``function``; as in a thread, a cancelled caller does not stop it."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((future, lambda: function(*args, **kwargs)))
        if not self._busy:
            self._busy = True
            self._later()
        return future

    def _later(self) -> None:
        low, high = self.delay_s
        asyncio.get_running_loop().call_later(low + (high - low) * self._rng.random(), self._work)

    def _work(self) -> None:
        future, function = self._queue.popleft()
        try:
            result = function()
        except PowerCut:
            life = LIFE.get()
            if life is not None:
                life.on_cut()
            return
        except Exception as error:  # noqa: BLE001  as an executor does: it belongs to whoever waits
            if not future.done():
                future.set_exception(error)
        else:
            if not future.done():
                future.set_result(result)
        if self._queue:
            self._later()
        else:
            self._busy = False


__all__ = ["EPOCH_NS", "LIFE", "Life", "PowerCut", "VirtualClock", "VirtualLoop", "VirtualOffload", "run"]
