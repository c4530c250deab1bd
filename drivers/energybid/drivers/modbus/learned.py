"""What is learned of one meter while it is polled: how fast it answers, how much rest it needs, what it refuses.

Pure: no I/O and no clock, times come in as loop seconds. It can be put away as plain data and taken up by a later run
of the agent. What was learned is never evidence: where it is lost it is learned again.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

FORMAT = 1
NEVER = float("inf")

# ---------------------------------------------------------------- reply delays

SAMPLES_MIN = 50
"""Replies after which their delays say something."""
SAMPLES_MAX = 1000
"""Beyond that older ones count half, and half again."""
QUANTILE = 0.999
SPREAD, MARGIN_S = 3.0, 0.02
"""A time-out is so many times the quantile, and so much more."""
_STEPS = 4
_FASTEST_S = 1e-6
_BUCKETS = 128
_SHIFT = 80


class Delays:
    """How long a meter takes to reply, as counts in buckets that are a quarter of an octave wide."""

    __slots__ = ("_counts", "_fresh", "_total")

    TOGETHER = 32
    """Replies that are sorted in at once: it costs half as much, and most polls nothing but to note the delay."""

    def __init__(self, counts: Iterable[tuple[int, int]] = ()) -> None:
        """Begin.

        Args:
            counts: (bucket, count) pairs of an earlier run.
        """
        self._counts = [0] * _BUCKETS
        for bucket, count in counts:
            self._counts[bucket] += count
        self._total = sum(self._counts)
        self._fresh: list[float] = []

    def add(self, delay_s: float) -> bool:
        """One more reply; whether it was time to sort them in."""
        self._fresh.append(delay_s)
        if len(self._fresh) < self.TOGETHER:
            return False
        self._sort_in()
        return True

    def _sort_in(self) -> None:
        counts, fresh = self._counts, self._fresh
        for delay_s in fresh:
            mantissa, exponent = frexp(delay_s if delay_s > _FASTEST_S else _FASTEST_S)  # noqa: FURB136  max() is slow
            counts[min(_STEPS * exponent + int(2 * _STEPS * mantissa) - _STEPS + _SHIFT, _BUCKETS - 1)] += 1
        self._total += len(fresh)
        fresh.clear()
        if self._total >= SAMPLES_MAX:
            self._counts = [count >> 1 for count in counts]
            self._total = sum(self._counts)

    @property
    def counts(self) -> list[int]:
        """By bucket."""
        self._sort_in()
        return self._counts

    @property
    def total(self) -> int:
        """How many replies they are about."""
        return self._total + len(self._fresh)

    def quantile(self, share: float) -> float:
        """Seconds within which so many of the replies began, as the upper edge of a bucket; 0 where there are none."""
        counts = self.counts  # first: it may halve the total
        wanted, seen = share * self._total, 0
        for bucket, count in enumerate(counts):
            seen += count
            if count and seen >= wanted:
                return _upper_edge(bucket)
        return 0.0

    def plain(self) -> list[tuple[int, int]]:
        """What the constructor takes."""
        return [(bucket, count) for bucket, count in enumerate(self.counts) if count]


def _upper_edge(bucket: int) -> float:
    exponent, step = divmod(bucket - _SHIFT, _STEPS)
    return float((step + 1 + _STEPS) / (2 * _STEPS) * 2.0**exponent)


class Patience:
    """How long to wait for a meter's reply: by its own delays, between a floor and the time-out that is configured.

    A time-out that was learned may be wrong. After a request that was not answered within it the configured one holds
    until the meter answers again; its delay then counts as every other.
    """

    __slots__ = ("_doubt", "_learned_s", "_probes", "ceiling_s", "delays", "floor_s")

    PATIENT_PROBE = 12
    """On a bus without slack, one in so many probes of a meter whose delays are not known waits as long as is
    configured: once an hour, when it is probed every five minutes."""
    SLACK = 1.5

    def __init__(self, ceiling_s: float, floor_s: float) -> None:
        """Wait ``ceiling_s`` at first; a floor that is not below it says that nothing is to be learned."""
        self.ceiling_s = ceiling_s
        self.floor_s = min(floor_s, ceiling_s)
        self.delays = Delays()
        self._learned_s = ceiling_s
        self._doubt = False
        self._probes = 0

    @property
    def timeout_s(self) -> float:
        """For the next request."""
        return self.ceiling_s if self._doubt else self._learned_s

    def probe_s(self, slack_s: float) -> float:
        """For a probe of a meter that is thought dead.

        Args:
            slack_s: How long nothing else needs the bus.
        """
        if slack_s >= self.SLACK * self.ceiling_s:
            return self.ceiling_s
        self._probes += 1
        if self.delays.total >= SAMPLES_MIN:
            return self._learned_s
        return self.ceiling_s if self._probes % self.PATIENT_PROBE == 0 else self.floor_s

    def answered(self, delay_s: float) -> None:
        """The meter replied."""
        self._doubt = False
        if self.delays.add(delay_s):
            self.learn()

    def missed(self) -> None:
        """The meter did not reply within ``timeout_s``."""
        self._doubt = True

    def learn(self) -> None:
        """Compute the time-out from the delays."""
        if self.delays.total >= SAMPLES_MIN:
            wanted_s = SPREAD * self.delays.quantile(QUANTILE) + MARGIN_S
            self._learned_s = min(max(wanted_s, self.floor_s), self.ceiling_s)


# ---------------------------------------------------------------- turnaround


class Turnaround:
    """Rest that a meter needs before a request, beyond the silence of the standard.

    It doubles when a request that came right after other traffic was lost and then answered, and shrinks slowly while
    all goes well.
    """

    __slots__ = ("_good", "extra_s", "pinned_s")

    FIRST_S, MAX_S = 0.001, 0.05
    GOOD_POLLS, SHRINK = 256, 0.75

    def __init__(self, pinned_s: float = 0.0) -> None:
        """Begin with what the profile states, seconds beyond the standard's silence."""
        self.pinned_s = self.extra_s = pinned_s
        self._good = 0

    def went_wrong(self) -> None:
        """A request right after other traffic was not answered, the same one later was."""
        self._good = 0
        self.extra_s = max(self.pinned_s, min(max(2 * self.extra_s, self.FIRST_S), self.MAX_S))

    def went_well(self) -> None:
        """A poll without a fault."""
        if self.extra_s <= self.pinned_s:
            return
        self._good += 1
        if self._good >= self.GOOD_POLLS:
            self._good = 0
            shrunk_s = self.extra_s * self.SHRINK
            self.extra_s = max(self.pinned_s, shrunk_s if shrunk_s >= self.FIRST_S / 2 else 0.0)


# ---------------------------------------------------------------- registers that are refused

RETRY_MIN_S, RETRY_MAX_S, RETRY_FACTOR = 60.0, 86_400.0, 4.0
"""Refused registers are tried again after a minute, then ever more rarely, at last daily: a meter that was out of order
for a moment soon has them back, one whose firmware was changed within a day."""
RETRY_STEPS = 6
"""Tries until the longest wait; the power of hundreds is no number any longer."""
SPANS_MAX = 100
"""Most spans that are remembered of a meter; what they take must fit the journal's memory."""


class Span(NamedTuple):
    """Registers that no request may touch."""

    function: int
    first: int
    """Address on the wire."""
    size: int
    """0: no request may reach from the register before ``first`` to ``first``."""

    @property
    def end(self) -> int:
        """Address behind its last register."""
        return self.first + self.size

    def touches(self, after: Span) -> bool:
        """Whether nothing lies between its registers and those of a span behind it."""
        return self.function == after.function and bool(self.size and after.size) and self.end >= after.first

    def __str__(self) -> str:
        """For people: table and registers."""
        table = {3: "holding", 4: "input"}.get(self.function, f"function {self.function}")
        if not self.size:
            return f"{table} {self.first - 1}|{self.first}"
        return f"{table} {self.first}" + (f"-{self.end - 1}" if self.size > 1 else "")


@dataclass(slots=True)
class Refusal:
    """When refused registers are tried again."""

    tries: int
    """How often they were tried since they were found."""
    retry_at: float
    """Loop time."""

    def put_off(self, now: float) -> None:
        """They were refused again."""
        self.tries += 1
        self.retry_at = now + min(RETRY_MIN_S * RETRY_FACTOR ** min(self.tries, RETRY_STEPS), RETRY_MAX_S)


class Learned:
    """All that is learned of one meter."""

    __slots__ = ("patience", "refused", "turnaround")

    def __init__(self, patience: Patience, turnaround: Turnaround) -> None:
        """Know nothing yet."""
        self.patience = patience
        self.turnaround = turnaround
        self.refused: dict[Span, Refusal] = {}

    def refuse(self, spans: Iterable[Span], now: float) -> None:
        """Registers were found to be refused; neighbours become one span. What is too much is not remembered."""
        for span in spans:
            self.refused.setdefault(span, Refusal(0, now + RETRY_MIN_S))
        joined: list[tuple[Span, Refusal]] = []
        for span, refusal in sorted(self.refused.items(), key=itemgetter(0)):
            if joined and joined[-1][0].touches(span):
                before, other = joined.pop()
                both = Refusal(min(other.tries, refusal.tries), min(other.retry_at, refusal.retry_at))
                joined.append((Span(span.function, before.first, max(before.end, span.end) - before.first), both))
            else:
                joined.append((span, refusal))
        self.refused = dict(joined[:SPANS_MAX])

    def plain(self, now: float, wall_ms: int) -> dict[str, Any]:
        """As plain data; empty where nothing was learned.

        Args:
            now: Loop time.
            wall_ms: Wall clock at the same moment: only that goes on in a later run.
        """
        found: dict[str, Any] = {}
        if self.patience.delays.total:
            found["delays"] = [list(pair) for pair in self.patience.delays.plain()]
        if self.turnaround.extra_s > self.turnaround.pinned_s:
            found["turnaround_us"] = round(self.turnaround.extra_s * 1e6)
        if self.refused:
            found["refused"] = [
                [*span, refusal.tries, wall_ms + round((refusal.retry_at - now) * 1000)]
                for span, refusal in sorted(self.refused.items(), key=itemgetter(0))
            ]
        return found and {"format": FORMAT, **found}

    def take(self, plain: Mapping[str, Any], now: float, wall_ms: int) -> None:
        """Know what an earlier run has put away; of another format nothing is taken.

        Raises:
            ValueError: It is damaged; nothing is changed.
        """
        try:
            if plain.get("format") != FORMAT:
                return
            pairs = ((int(bucket), min(int(count), SAMPLES_MAX)) for bucket, count in plain.get("delays", ()))
            delays = Delays((bucket, count) for bucket, count in pairs if bucket >= 0 and count > 0)
            extra_s = min(max(int(plain.get("turnaround_us", 0)) / 1e6, 0.0), Turnaround.MAX_S)
            refused = {}
            for function, first, size, tries, retry_ms in plain.get("refused", ())[:SPANS_MAX]:
                wait_s = min(max((retry_ms - wall_ms) / 1000, 0.0), RETRY_MAX_S)  # the clock may have been set since
                refused[Span(int(function), int(first), int(size))] = Refusal(max(0, int(tries)), now + wait_s)
        except (AttributeError, TypeError, ValueError, IndexError, KeyError, OverflowError) as error:
            raise ValueError(f"what was learned of a meter is damaged: {error}") from None
        self.patience.delays = delays
        self.patience.learn()
        self.turnaround.extra_s = max(self.turnaround.pinned_s, extra_s)
        self.refused = refused

    def shown(self, now: float) -> dict[str, Any]:
        """What the operator is told, in words and milliseconds."""
        delays = self.patience.delays
        return {
            "timeout_ms": round(self.patience.timeout_s * 1000),
            "delay_ms": [round(delays.quantile(q) * 1000, 1) for q in (0.5, QUANTILE)] if delays.total else None,
            "turnaround_ms": round(self.turnaround.extra_s * 1000, 1),
            "unreadable": [
                {"registers": str(span), "retry_s": max(0, round(refusal.retry_at - now))}
                for span, refusal in sorted(self.refused.items(), key=itemgetter(0))
            ],
        }
