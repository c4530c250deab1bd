"""The invariants of bidding: what must be true of a gateway in a market, whatever befalls it.

An oracle like ``watch.py``, beside the same running code: it sees the entries that become durable, the messages at the
broker, what is written to the site's battery, and what the site truly takes.

| invariant | checked |
|---|---|
| ``unlogged``: no bid or confirmation is sent that is not in the log before | at every message that the broker takes |
| ``twofold``: a version of a bid, a counter of an award or statement is signed once | at every message |
| ``award``: only an award counts that the market made, to this gateway, in time, once, as offered | at commits |
| ``heard``: what comes for one gateway is in the log, with the reason where it does not count | at the end |
| ``target``: the market's numbers are written for an award that counts, within its interval | at commits |
| ``followed``: what a confirmation says that the site took it took, where its meter answered | at confirmations |
| ``safe``: after a death the safe number is written before any other; at a stop it is there | at writes, at stops |
| ``settled``: every round that was awarded is settled, or given up for a reason | at the end |
| ``recompute``: from its bundle every settlement recomputes | at the end |
"""

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from typing import NamedTuple

from energybid.agent.control import Rank
from energybid.core.cose import PublicKey
from energybid.core.entries import Command, CommandCause, Entry, MarketKind, MarketMessage
from energybid.core.errors import EvidenceError
from energybid.simulator.virtual import VirtualClock
from energybid.simulator.world.watch import Violation
from energybid.sync import market, recompute
from energybid.sync.market import Award, Bid, Conduct, Confirmation, Round, Statement, Verdict
from energybid.sync.topics import Topics

REFUSED_AN_HOUR, HOUR_S = 60, 3600.0
SHOWN = 64
"""Bytes that the log keeps of a message that is too long."""
HEARD_S = 180.0
"""So long after it came a message is in the log; a commit may wait for a disk."""
SEAM_MS = 20_000
"""A number may be held so long before and after the interval that it is for."""
FALSE_W, FALSE_SHARE = 300.0, 0.05
"""What a confirmation says may be so far from the truth: meters are read every some seconds."""
CLOCK_S = 0.5
RIGHT_S = 3600.0
"""The clock was right for so long before what depends on it is looked at."""
RECOVERED_S = 900.0
"""So long after it answers again a meter that was thought dead is polled as usual."""
BUNDLES_MAX = 8
"""So many of a world's bundles are recomputed: it takes long."""
_SAID = re.compile(r"followed: (-?[0-9]+) W of (-?[0-9]+) W")


class Keys(NamedTuple):
    """Whom the oracle trusts."""

    market: PublicKey
    gateway: PublicKey
    """For bids."""
    log: PublicKey
    headend: PublicKey

    def of(self, role: str, kid: bytes) -> PublicKey | None:
        """As ``recompute`` asks for them."""
        key: PublicKey = getattr(self, role)
        return key if key.kid == kid else None


class _Coming(NamedTuple):
    """A message on its way into the log."""

    at_s: float
    payload: bytes
    what: str


class BidWatch:
    """Follows one gateway's part in a market."""

    def __init__(
        self,
        origin: str,
        topics: Topics,
        keys: Keys,
        clock: VirtualClock,
        now_s: Callable[[], float],
        violated: Callable[[Violation], None],
    ) -> None:
        """Watch a gateway.

        Args:
            origin: ``tenant/gateway``.
            topics: Its own.
            keys: All of them.
            clock: The gateway's.
            now_s: Virtual time.
            violated: Called with whatever does not hold.
        """
        self.counts: Counter[str] = Counter()
        """Bids, awards, those of older versions of a bid, statements that count, conducts, refused messages."""
        self.scarred: Callable[[], bool] = lambda: False
        """Its journal was damaged: what it knew may be gone."""
        self._origin, self._topics, self._keys, self._clock = origin, topics, keys, clock
        self._now_s, self._violated = now_s, violated
        self._ours: set[bytes] = set()
        """Bids and confirmations in the log."""
        self._theirs: set[bytes] = set()
        """Awards and statements that the market has sent."""
        self._signed: dict[tuple[str, int, int], bytes] = {}
        self._rounds: dict[bytes, Round] = {}
        self._bids: dict[bytes, Bid] = {}
        """Hash → every version."""
        self._awards: dict[int, tuple[bytes, Award]] = {}
        self._coming: list[_Coming] = []
        self._disturbed_s: list[float] = []
        self._unmeasured_s: list[float] = []
        self._refused_s: deque[float] = deque(maxlen=REFUSED_AN_HOUR)
        self._flooded_s: list[float] = []
        self._wrong_clock_s = -RIGHT_S
        self._energy_wh: dict[int, float] = {}
        self._held = Fraction(0)
        self._died = False

    def _wrong(self, invariant: str, text: str) -> None:
        if not self.scarred():
            self._violated(Violation(invariant, f"{self._origin}: {text}"))

    # ------------------------------------------------------------ the log

    def entry(self, sequence: int, entry: Entry) -> None:
        """An entry is durable."""
        if isinstance(entry, Command):
            self._command(sequence, entry)
        elif isinstance(entry, MarketMessage):
            self._arrived(entry)
            if entry.reason:
                self.counts["refused"] += 1 + entry.missed
            elif entry.kind == MarketKind.BID:
                self._bid(entry.message)
            elif entry.kind == MarketKind.CONFIRMATION:
                self._confirmed(entry.message)
            elif entry.kind == MarketKind.ROUND:
                self._rounds[market.digest(entry.message)] = market.read(Round, entry.message, self._keys.market)
            elif entry.kind in {MarketKind.AWARD, MarketKind.STATEMENT}:
                self._counts(sequence, entry)

    def _bid(self, message: bytes) -> None:
        self._ours.add(message)
        bid = market.read(Bid, message, self._keys.gateway)
        self._once("bid", bid.number, bid.version, message)
        self._bids[market.digest(message)] = bid
        self.counts["bids"] += 1

    def _once(self, what: str, number: int, counter: int, message: bytes) -> None:
        if self._signed.setdefault((what, number, counter), message) != message:
            self._wrong("twofold", f"two of {what} {number} have the number {counter}")

    def _counts(self, sequence: int, entry: MarketMessage) -> None:
        if entry.message not in self._theirs:
            self._wrong("award", f"entry {sequence}: a message counts that the market never sent")
        elif entry.kind == MarketKind.STATEMENT:
            self.counts["statements"] += 1
        else:
            self._award(sequence, entry)

    def _award(self, sequence: int, entry: MarketMessage) -> None:
        """An award that counts: all about it is looked at again, and otherwise than the product does."""
        award = market.read(Award, entry.message, self._keys.market)
        bid = self._bids.get(award.bid_hash)
        made = bid and self._rounds.get(bid.round_hash)
        if award.number in self._awards:
            self._wrong("award", f"entry {sequence}: an award of round {award.number} counts, and is not the first")
        elif bid is None or made is None or bid.number != award.number:
            self._wrong("award", f"entry {sequence}: an award of round {award.number} answers no bid for it")
        elif not offered(bid, award):
            self._wrong("award", f"entry {sequence}: {award.net_w} W at {award.ticks} ticks were not offered: {bid}")
        elif entry.time_ms >= min(made.begins_ms, bid.expires_ms):
            self._wrong("award", f"entry {sequence}: the award of round {award.number} came too late")
        self._awards[award.number] = entry.message, award
        versions = [other.version for other in self._bids.values() if other.number == award.number]
        self.counts["older"] += bid is not None and bid.version < max(versions)
        self.counts["awards"] += award.verdict == Verdict.AWARDED

    # ------------------------------------------------------------ what comes

    def comes(self, topic: str, payload: bytes, what: str) -> None:
        """The gateway is given a message that is for it alone."""
        if topic in {self._topics.award, self._topics.statement}:
            self._coming.append(_Coming(self._now_s(), payload, what))

    def _arrived(self, entry: MarketMessage) -> None:
        now_s = self._now_s()
        if entry.reason:
            self._refused_s.append(now_s)
            if entry.missed or (len(self._refused_s) == REFUSED_AN_HOUR and now_s - self._refused_s[0] < HOUR_S):
                self._flooded_s.append(now_s)
        for coming in self._coming:
            if coming.payload == entry.message or (entry.reason and coming.payload[:SHOWN] == entry.message):
                self._coming.remove(coming)
                return

    def disturbed(self) -> None:
        """The agent, its connection or its disk is not well: what is on its way may be lost."""
        self._disturbed_s.append(self._now_s())

    def listened(self) -> None:
        """At the end: every message that came to an agent that lived on is in the log."""
        for at_s, _, what in self._coming:
            lost = any(at_s - 60 <= moment_s <= at_s + HEARD_S for moment_s in self._disturbed_s)
            flooded = any(at_s - HOUR_S <= moment_s <= at_s + HOUR_S for moment_s in self._flooded_s)
            if not lost and not flooded and self._now_s() - at_s > HEARD_S:
                self._wrong("heard", f"{what} came at {at_s:.0f} s and is not in the log")

    # ------------------------------------------------------------ what is sent

    def sent(self, topic: str, payload: bytes) -> None:
        """The broker took a message of the gateway."""
        if topic in {self._topics.bid, self._topics.dispatch} and payload not in self._ours:
            self._wrong("unlogged", f"a message was sent on {topic} that is not in the log")

    def answered(self, topic: str, payload: bytes) -> None:
        """The broker took a message of the market to this gateway."""
        self._theirs.add(payload)
        if topic == self._topics.award:
            award = market.read(Award, payload, self._keys.market)
            self._once("award", 0, award.counter, payload)
        elif topic == self._topics.statement:
            statement = market.read(Statement, payload, self._keys.market)
            self._once("statement", 0, statement.counter, payload)

    # ------------------------------------------------------------ the site

    def look(self, at_ms: int | None, net_wh: float) -> None:
        """Every minute: whether the clock is right; at the seams of intervals, what the site has taken so far."""
        if abs(self._clock.now_ns() - self._clock.true_ns()) > CLOCK_S * 1e9:
            self._wrong_clock_s = self._now_s()
        if at_ms is not None:
            self._energy_wh[at_ms] = net_wh

    def _clock_is_right(self) -> bool:
        self.look(None, 0.0)
        return self._now_s() - self._wrong_clock_s > RIGHT_S

    def _command(self, sequence: int, entry: Command) -> None:
        """The market's numbers belong to an award that counts, and end with its interval."""
        if entry.rank != Rank.MARKET or entry.cause != CommandCause.HELD or not self._clock_is_right():
            return
        for _, award in self._awards.values():
            made = self._made(award)
            if made is None or award.verdict != Verdict.AWARDED:
                continue
            ends_ms = made.begins_ms + made.duration_ms
            if made.begins_ms - SEAM_MS <= entry.time_ms < ends_ms + SEAM_MS:
                until_ms = entry.time_ms + (entry.until_ms or 0) - entry.mono_ms
                if entry.until_ms is not None and until_ms <= ends_ms + SEAM_MS:
                    return
        self._wrong("target", f"entry {sequence}: a number of the market's, and no award that counts is for now")

    def _made(self, award: Award) -> Round | None:
        bid = self._bids.get(award.bid_hash)
        return bid and self._rounds.get(bid.round_hash)

    def _confirmed(self, message: bytes) -> None:
        self._ours.add(message)
        done = market.read(Confirmation, message, self._keys.gateway)
        self.counts[Conduct(done.conduct).name.lower()] += 1
        known, award = self._awards.get(done.number, (b"", None))
        if award is None or market.digest(known) != done.award_hash:
            self._wrong("award", f"a confirmation of round {done.number}, of which no such award counts")
            return
        made, said = self._made(award), _SAID.fullmatch(done.reason)
        if said and made and self._clock_is_right():
            self._truly(made, int(said[1]), int(said[2]) - award.net_w)

    def _truly(self, made: Round, said_w: int, off_w: int) -> None:
        begins_ms, ends_ms = made.begins_ms, made.begins_ms + made.duration_ms
        if off_w:
            self._wrong("followed", f"round {made.number}: what was followed is {off_w} W off the award")
        begins_s = self._now_s() - (self._clock.true_ns() // 1_000_000 - begins_ms) / 1000
        unmeasured = any(at_s >= begins_s - RECOVERED_S for at_s in self._unmeasured_s)
        if unmeasured or any(at_s >= begins_s - 60 for at_s in self._disturbed_s):
            return
        if not {begins_ms, ends_ms} <= self._energy_wh.keys():
            return
        mean_w = (self._energy_wh[ends_ms] - self._energy_wh[begins_ms]) * 3_600_000 / made.duration_ms
        if abs(mean_w - said_w) > FALSE_W + FALSE_SHARE * abs(mean_w):
            self._wrong("followed", f"round {made.number}: {said_w} W were confirmed, the site took {mean_w:.0f} W")

    def unmeasured(self) -> None:
        """The site's meter, or the battery, begins or ceases to be silent."""
        self._unmeasured_s.append(self._now_s())

    def died(self) -> None:
        """The agent is gone without a word."""
        self._died = True

    def wrote(self, value: Fraction) -> None:
        """Something was written to the battery."""
        if self._died and self._held and value:
            self._wrong("safe", f"after a death {value} W were written, before the {self._held} W were made safe")
        self._died, self._held = False, value

    def stopped(self) -> None:
        """The agent was told to stop, and has."""
        if self._held:
            self._wrong("safe", f"the agent has stopped, and the battery still has {self._held} W to follow")

    # ------------------------------------------------------------ the end

    def recomputed(self, bundles: Mapping[str, bytes]) -> None:
        """Some bundles, from the first to the last, from their bytes alone."""
        names = sorted(bundles)
        for name in names[:: len(names) // BUNDLES_MAX + 1]:
            try:
                outcome = recompute.verify(bundles[name], self._keys.of)
            except EvidenceError as error:
                self._wrong("recompute", f"{name}: {error}")
                continue
            taken = int(name.split("-")[0]) in self._awards  # else the log rightly says that the gateway refused it
            for check in outcome.checks:
                if not check.agrees and (taken or "the gateway refused award" not in check.said):
                    self._wrong("recompute", f"{name}: {check.what}: {check.said}")

    def settled(self, open_rounds: Iterable[int]) -> None:
        """What the market has not done with, although the time for it is over."""
        for number in open_rounds:
            self._wrong("settled", f"round {number} was awarded, and is neither settled nor given up")


def offered(bid: Bid, award: Award) -> bool:
    """Whether an award lies on the bid's curve, between the schedule and what the bid wants at its price."""
    if award.verdict != Verdict.AWARDED:
        return (award.net_w, award.ticks) == (bid.schedule_w, 0)
    low_w = bid.floor_w + sum(power_w for limit, power_w, _ in bid.steps if limit > award.ticks)
    high_w = bid.floor_w + sum(power_w for limit, power_w, _ in bid.steps if limit >= award.ticks)
    if not min(low_w, bid.schedule_w) <= award.net_w <= max(high_w, bid.schedule_w):
        return False
    at_w = bid.floor_w
    for _, power_w, divisible in bid.steps:
        if award.net_w == at_w or (divisible and at_w < award.net_w < at_w + power_w):
            return True
        at_w += power_w
    return award.net_w == at_w
