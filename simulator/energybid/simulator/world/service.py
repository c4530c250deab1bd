"""A process under a service manager: started, killed between any two steps, started again."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context

from energybid.core.errors import JournalError
from energybid.simulator.virtual import Life, PowerCut, VirtualLoop
from energybid.simulator.world.trace import Trace

RESTART_S = 2.0
"""As in the systemd units."""


class Service:
    """Runs a process again and again until it is told to end."""

    def __init__(self, name: str, main: Callable[[], Awaitable[None]], trace: Trace) -> None:
        """Be ready to ``run``.

        Args:
            name: For the trace.
            main: The process; runs in a life of its own.
            trace: Told of starts and ends.
        """
        self.name = name
        self.starts = 0
        self.life: Life | None = None
        self.ended: Callable[[BaseException | None], None] = lambda _: None
        """Told when the process ends by itself, and why."""
        self.on_cut: Callable[[], None] = lambda: self.kill("cut off")
        self._main = main
        self._trace = trace
        self._down_s = RESTART_S
        self._over: asyncio.Future[None] | None = None
        self._last = False
        self._idle = asyncio.Event()

    async def run(self) -> None:
        """Keep it running; returns after ``retire`` when it has ended."""
        while not self._last:
            await self._live()
            down_s, self._down_s = self._down_s, RESTART_S
            if not self._last:
                await asyncio.sleep(down_s)
        self._idle.set()

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        self.starts += 1
        self._trace.event("start", self.name)
        life = self.life = Life(self.on_cut)
        over = self._over = loop.create_future()
        task = loop.create_task(self._protected(), context=life.context)
        task.add_done_callback(lambda done: self._done(done, over), context=Context())
        await over
        self._over = None

    async def _protected(self) -> None:
        await self._main()

    def _done(self, task: "asyncio.Task[None]", over: "asyncio.Future[None]") -> None:
        if over.done():
            return
        error = None if task.cancelled() else task.exception()
        if isinstance(error, PowerCut):
            self.on_cut()
            return
        if self.life is not None:
            self.life.alive = False
        self._trace.event("end", f"{self.name} {type(error).__name__ if error else 'stopped'}")
        self.ended(error)
        over.set_result(None)

    def kill(self, why: str, *, down_s: float = RESTART_S) -> None:
        """Kill it now; it starts again after ``down_s``."""
        self._down_s = max(down_s, RESTART_S)
        over, life = self._over, self.life
        if over is None or over.done() or life is None:
            return
        self._trace.event("kill", f"{self.name} {why}")
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)  # noqa: S101  the world runs on no other
        loop.end(life)
        over.set_result(None)

    def burn(self, steps: int) -> None:
        """Kill it so many steps from now; 0: not at all."""
        if self.life is not None and self.life.alive:
            self.life.fuse = steps

    def retire(self) -> None:
        """Do not start it again."""
        self._last = True

    async def idle(self) -> None:
        """Wait until it has ended for the last time."""
        await self._idle.wait()


def is_journal_error(error: BaseException | None) -> bool:
    """Whether a process ended because of its disk."""
    return isinstance(error, JournalError)
