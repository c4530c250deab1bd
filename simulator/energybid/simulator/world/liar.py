"""Who stands between a market and its gateways and does not tell the truth: what comes beside the market's messages.

Each lie is made of a true message, by chance. Whether it is taken for one is for the oracle (``bids.py``) to see.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from random import Random

from energybid.core import cose
from energybid.core.cose import PrivateKey
from energybid.core.errors import EvidenceError
from energybid.simulator.world.broker import Broker
from energybid.simulator.world.scenario import Lies
from energybid.sync import market
from energybid.sync.market import Award, Message, Statement, Verdict

CLIENT = "liar"
OTHERS = "world/gw-x", "world/other"
"""A gateway, and a market, that are not there."""
KEPT = 32
LONG = 10_000
MORE_W = 50_000
"""What a generous award gives beside what was offered."""
LATER_S = 4 * 3600.0
SOON_S = 2.0
INSTEAD = 0.5
"""So many lies come instead of the truth, the others after it."""


class Liar:
    """Hears what the market publishes, and publishes more."""

    def __init__(
        self, lies: Lies, key: PrivateKey, broker: Broker, now_ms: Callable[[], int], period_s: float, chance: Random
    ) -> None:
        """Lie as often as ``lies`` says.

        Args:
            lies: Shares of the market's messages.
            key: The market's own: it has been stolen where a lie needs it.
            broker: Where to publish.
            now_ms: The market's clock.
            period_s: Of its rounds.
            chance: Decides.
        """
        self.told: Counter[str] = Counter()
        """How often, by kind."""
        self._lies, self._key, self._broker, self._now_ms, self._chance = lies, key, broker, now_ms, chance
        self._false_key = PrivateKey.from_entropy(chance.randbytes(48))
        self._period_s = period_s
        self._kept: deque[tuple[str, bytes]] = deque(maxlen=KEPT)
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Lie no more."""
        self._lies = Lies()

    def hears(self, topic: str, payload: bytes) -> bool:
        """The market publishes; whether that is swallowed, for it comes late."""
        drawn = self._chance.random()
        for kind, rate in self._lies.rates().items():
            drawn -= rate
            if drawn < 0:
                return self._lie(kind, topic, payload)
        self._kept.append((topic, payload))
        return False

    def _lie(self, kind: str, topic: str, payload: bytes) -> bool:
        made = _told(payload)
        if kind == "late":
            return isinstance(made, Award) and self._late(topic, payload)
        if kind == "replayed":
            if not self._kept:
                return False
            topic, payload = self._kept[int(self._chance.random() * len(self._kept))]
            self._later(kind, topic, payload, self._chance.random() * LATER_S)
            return False
        lie = self._made(kind, made, payload)
        if lie is None:
            return False
        self._later(kind, topic, lie, self._chance.random() * SOON_S)
        return kind not in {"duplicate", "retained"} and self._chance.random() < INSTEAD

    def _made(self, kind: str, made: Message | None, payload: bytes) -> bytes | None:
        match kind:
            case "duplicate" | "retained":
                return payload
            case "flipped":
                at = int(self._chance.random() * 8 * len(payload))
                return bytes(b ^ (1 << at % 8) if n == at // 8 else b for n, b in enumerate(payload))
            case "forged":
                return made and market.sign(made, self._false_key)
            case "long":
                return self._chance.randbytes(LONG)
            case "foreign":
                return self._foreign(made)
            case _:
                return self._generous(made)

    def _foreign(self, made: Message | None) -> bytes | None:
        gateway, other = OTHERS
        if isinstance(made, Award | Statement) and self._chance.random() < 1 / 2:
            return market.sign(made._replace(origin=gateway), self._key)
        return made and market.sign(made._replace(market=other), self._key)

    def _generous(self, made: Message | None) -> bytes | None:
        if not isinstance(made, Award) or made.verdict != Verdict.AWARDED:
            return None
        more = made._replace(net_w=made.net_w + (MORE_W if self._chance.random() < 1 / 2 else -MORE_W))
        return market.sign(more, self._key)

    def _late(self, topic: str, payload: bytes) -> bool:
        """With the begin of the next interval, or a little later."""
        wait_s = self._period_s - self._now_ms() / 1000 % self._period_s + 1 + self._chance.random() * 60
        self._later("late", topic, payload, wait_s)
        return True

    def _later(self, kind: str, topic: str, payload: bytes, wait_s: float) -> None:
        def lie() -> None:
            if self._lies.rates():
                self.told[kind] += 1
                self._broker.take(CLIENT, topic, payload, retain=kind == "retained")

        self._loop.call_later(wait_s, lie)


def _told(payload: bytes) -> Message | None:
    """What a message says, if it is one."""
    try:
        content = cose.peek(payload)[1]
        return market.parse(market.kind_of(content), content)  # type: ignore[type-var]
    except EvidenceError:
        return None
