"""What a process of the world holds in memory: everything that its tasks can reach, counted.

No list of known queues, which the next one would not be on: whoever keeps a thing for every reading, batch, connection
or fault shows. What is the world's own (wires, disks, the loop) and what is made once (code, classes) is left out.
"""

import asyncio
import gc
from collections import deque
from contextvars import Context
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import apsw

from energybid.core.ports import BusPlan, MeterPlan, Platform
from energybid.simulator.virtual import Life, VirtualTask

_OUTSIDE = (
    Platform, BusPlan, MeterPlan, apsw.Connection, asyncio.AbstractEventLoop, Context, Life,
    ModuleType, type, FunctionType, BuiltinFunctionType, CodeType,
)  # fmt: skip


class Growth:
    """Watches that processes hold no more and more."""

    def __init__(self) -> None:
        """Nothing was looked at."""
        self._first: dict[tuple[str, int], int] = {}

    def look(self, name: str, start: int, life: Life | None, most: int) -> str:
        """Compare with the first look at this life.

        Args:
            name: The process.
            start: Which of its lives.
            life: The life itself.
            most: How much it may have grown.

        Returns:
            What is wrong, or nothing.
        """
        now = held(life)
        if not now:
            return ""
        first = self._first.setdefault((name, start), now)
        return f"{name} holds {now} references, {first} at first; it may grow by {most}" if now - first > most else ""


def held(life: Life | None) -> int:
    """How much a life holds: references, from every object to every other, and 1 for every 64 bytes."""
    if life is None or not life.alive:
        return 0
    waiting: deque[Any] = deque(
        task.get_coro() for task in asyncio.all_tasks() if isinstance(task, VirtualTask) and task.life is life
    )
    seen = {id(one) for one in waiting}
    count = 0
    while waiting:
        referents = gc.get_referents(waiting.popleft())
        count += len(referents)
        for other in referents:
            if id(other) in seen or _outside(other):
                continue
            seen.add(id(other))
            if isinstance(other, (bytes, bytearray, str)):
                count += len(other) >> 6
            elif gc.is_tracked(other) or isinstance(other, (tuple, dict)):
                waiting.append(other)
    return count


def _outside(one: object) -> bool:
    return isinstance(one, _OUTSIDE) or type(one).__module__.startswith("energybid.simulator")
