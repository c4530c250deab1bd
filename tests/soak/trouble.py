"""What goes wrong, when and for how long: drawn from the seed, the same for the same seed on every machine.

Each target has its own row of troubles, one after the other. A round lasts a minute; in every other round the agent or
the head-end is spared kills and stops, so that some of its lives are long enough to see what grows.
"""

import asyncio
import itertools
import random
from collections import Counter
from typing import NamedTuple

KINDS = dict.fromkeys(("agent", "headend", "broker", "bus"), ("kill", "stop", "pause"))
KINDS["network"] = ("cut", "slow", "lossy")
ROUND_S = 60.0
SPARED = (None, "agent", None, "headend")
CALM_S = 4.0
"""Mean time between two troubles of a target."""

LONG_CUT_EVERY, LONG_CUT_S = 20, (120.0, 240.0)
"""One cut in so many lasts for minutes: a backlog of several batches, and the longest waits before reconnecting."""


class Trouble(NamedTuple):
    """One event of the plan."""

    wait_s: float
    """After the one before has passed."""
    kind: str
    lasts_s: float


def troubles(seed, target):
    """The endless plan of a target: kinds in shuffled bags, so that all come equally often."""
    chance = random.Random(f"{seed}/{target}")
    for number in itertools.count(1):
        for kind in chance.sample(KINDS[target], k=len(KINDS[target])):
            lasts_s = _lasts(chance, kind)
            if kind == "cut" and number % LONG_CUT_EVERY == LONG_CUT_EVERY // 2:
                lasts_s = chance.uniform(*LONG_CUT_S)
            yield Trouble(chance.expovariate(1 / CALM_S), kind, lasts_s)


def _lasts(chance, kind):
    """Mostly under a second, sometimes longer than every time-out there is; a restart may come at once."""
    longest_s = 12.0 if kind in {"pause", "cut"} else 5.0 if kind in {"kill", "stop"} else 10.0
    return 0.0 if chance.random() < 0.1 else min(longest_s, chance.lognormvariate(-0.2, 1.3))


class Chaos:
    """Carries the plan out."""

    def __init__(self, stage, seed, say):
        self.counts = {target: Counter() for target in KINDS}
        self._stage, self._seed, self._say = stage, seed, say
        self._chance = random.Random(f"{seed}/details")
        self._begun_s = 0.0

    async def run(self):
        """Until cancelled; wherever it is then, ``Stage.all_up`` ends every trouble."""
        self._begun_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for target in KINDS:
                tasks.create_task(self._target(target))

    async def _target(self, target):
        for trouble in troubles(self._seed, target):
            await asyncio.sleep(trouble.wait_s)
            if trouble.kind in {"kill", "stop"} and self._spared() == target:
                continue
            self.counts[target][trouble.kind] += 1
            if target == "network":
                await self._cable(trouble)
            else:
                await self._process(self._stage.actors[target], trouble)

    def _spared(self):
        return SPARED[int((asyncio.get_running_loop().time() - self._begun_s) / ROUND_S) % len(SPARED)]

    async def _cable(self, trouble):
        network = self._stage.network
        how = getattr(network, trouble.kind)(self._chance)
        self._say(f"network  {trouble.kind:5} {trouble.lasts_s:5.2f} s  {how}")
        await asyncio.sleep(trouble.lasts_s)
        network.mend()

    async def _process(self, actor, trouble):
        self._say(f"{actor.name:8} {trouble.kind:5} {trouble.lasts_s:5.2f} s")
        if trouble.kind == "pause":
            actor.pause()
            await asyncio.sleep(trouble.lasts_s)
            actor.resume()
            return
        # Shielded: what has begun is seen to its end, also when the soak is over meanwhile.
        await asyncio.shield(actor.kill() if trouble.kind == "kill" else actor.stop())
        await asyncio.sleep(trouble.lasts_s)
        await asyncio.shield(actor.start())
