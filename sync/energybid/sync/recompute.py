"""Verifying an evidence bundle, and settling its round once more from the readings alone (docs/settlement.md).

Two kinds of answers: ``EvidenceError`` when the file can not be relied on at all (a signature, hash or proof is wrong);
otherwise a list of comparisons between what the market stated and what comes out here. Pure: bytes and public keys in.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from energybid.bidding import baseline_rules
from energybid.bidding.baseline import Baseline, Event, compute, needed
from energybid.bidding.settlement import Load, Point, Register, Settled, Terms, load, settle
from energybid.core import cose
from energybid.core.disclosure import explained, same_tree
from energybid.core.entries import (
    Declaration,
    Entry,
    MarketKind,
    MarketMessage,
    MarketReason,
    Reading,
    parse,
)
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, Receipt, parse_checkpoint, parse_receipt
from energybid.core.quantities import Status
from energybid.core.timeline import Corrected, Timeline
from energybid.core.tree import leaf_hash, verify_consistency, verify_inclusion
from energybid.sync import market
from energybid.sync.bundle import Bundle, Inputs, LogPart, need, parse_bundle, parse_inputs
from energybid.sync.logged import REASONS
from energybid.sync.market import Award, Bid, Confirmation, Pricing, Round, Statement, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

KeyFor = Callable[[str, bytes], cose.PublicKey | None]
"""(Role, kid) → the key that the verifier trusts in that role: market, gateway (bids), log, headend; or None."""


class Signer(NamedTuple):
    """Who signed something."""

    role: str
    """market, gateway, log or headend."""
    kid: bytes


class Logged(NamedTuple):
    """A message that is an entry of the gateway's log."""

    what: str
    """round, bid, award, confirmation or statement."""
    epoch: bytes
    sequence: int
    time: Corrected
    """When it was about to be sent, or had come, by the gateway's clock."""
    receipt_ms: int | None
    """When the head-end had stored it at the latest, by its own clock; None: without a receipt nobody knows."""
    reason: int
    """MarketReason: 0 the gateway took it, or made it; else why it refused it."""


class Proven(NamedTuple):
    """What a bundle says whose every signature, hash and proof holds."""

    round: Round
    bid: Bid
    award: Award
    confirmation: Confirmation | None
    statement: Statement
    inputs: Inputs
    checkpoints: tuple[Checkpoint, ...]
    receipts: tuple[Receipt | None, ...]
    signers: tuple[Signer, ...]
    loads: Mapping[int, Load]
    """From the readings, for every interval that the programme may ask for."""
    logged: tuple[Logged, ...]
    """The messages of which the bundle has the log's entries, in the order of the round."""
    newer: tuple[Logged, ...]
    """Bids of the round that the gateway made after the one that the award answers, ``what`` being ``version N``."""


class Check(NamedTuple):
    """One comparison of what the bundle says with what comes out of it."""

    what: str
    agrees: bool
    said: str


class Outcome(NamedTuple):
    """The recomputation."""

    proven: Proven
    baseline: Baseline | None
    settled: Settled | None
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool:
        """Whether everything does."""
        return all(check.agrees for check in self.checks)


# ---------------------------------------------------------------- readings


def register_loads(
    entries: Iterable[Sequence[tuple[int, Entry]]], inputs: Inputs, wanted: Iterable[int]
) -> dict[int, Load]:
    """Net import of intervals from the entries of logs.

    Args:
        entries: For each log, entries with their sequence: readings, their declarations, and Start and Clock entries.
        inputs: Names the meter, its registers and the interval's length.
        wanted: Beginnings of intervals.

    Returns:
        Those that are known.

    Raises:
        EvidenceError: A reading does not fit its declaration.
    """
    logs = [_Readings(log, inputs.meter) for log in entries]
    imports = Register(_runs(logs, inputs.imports))
    exports = None if inputs.exports is None else Register(_runs(logs, inputs.exports))
    loads = {begins_ms: load(imports, exports, begins_ms, inputs.interval_ms) for begins_ms in wanted}
    return {begins_ms: each for begins_ms, each in loads.items() if each is not None}


class _Readings:
    """The readings of one meter in one log."""

    def __init__(self, entries: Sequence[tuple[int, Entry]], meter: str) -> None:
        self._by_sequence = dict(entries)
        self._meter = meter
        self._timeline = _timeline(entries)

    def of(self, obis: bytes) -> list[tuple[Point, str | None, int]]:
        """(Point, the meter's serial number, status) of a register, in the log's order."""
        found = []
        for sequence, entry in sorted(self._by_sequence.items()):
            if isinstance(entry, Reading):
                declared = self._by_sequence.get(entry.declaration)
                reading, declaration = explained(entry, sequence, declared, entry.declaration)
                if declaration.meter == self._meter:
                    found += self._points(reading, declaration, obis)
        return found

    def _points(self, reading: Reading, declaration: Declaration, obis: bytes) -> list[tuple[Point, str | None, int]]:
        corrected = self._timeline.correct(reading)
        if corrected.uncertainty_ms is None:
            return []
        time_ms, error_ms = corrected.time_ms, corrected.uncertainty_ms
        marks = reading.status or (Status.OK,) * len(reading.values)
        quantities = declaration.groups[reading.group][1]
        return [
            (
                Point(
                    time_ms,
                    time_ms - reading.span_ms - error_ms,
                    time_ms + error_ms,
                    0,
                    value * Fraction(10) ** exponent,
                ),
                declaration.serial,
                mark,
            )
            for (code, unit, exponent, cumulative), value, mark in zip(quantities, reading.values, marks, strict=True)
            if code == obis and unit == "Wh" and cumulative and value is not None and mark != Status.SUSPECT
        ]


def _runs(logs: Iterable[_Readings], obis: bytes) -> list[Point]:
    """All points of a register, numbered by runs: a roll-over, a restart or another serial number begins a new one."""
    marked = sorted((each for log in logs for each in log.of(obis)), key=lambda each: each[0].time_ms)
    points: list[Point] = []
    run, serial = 0, marked[0][1] if marked else None
    for point, its_serial, mark in marked:
        run += mark != Status.OK or its_serial != serial
        serial = its_serial
        points.append(point._replace(run=run))
    return points


# ---------------------------------------------------------------- verifying


def verify(data: bytes, key_for: KeyFor) -> Outcome:
    """Verify a bundle and recompute its settlement.

    Args:
        data: The file.
        key_for: Whom the verifier trusts.

    Returns:
        What was recomputed, and what of the statement agrees with it.

    Raises:
        EvidenceError: The file is damaged, altered, or not signed by trusted keys: nothing in it can be relied on.
    """
    return _recomputed(parse_bundle(data), key_for)


def rehearse(data: bytes) -> Outcome:
    """What ``verify`` finds where it trusts whoever signed: for those who made a bundle and have not got all the keys.

    Raises:
        EvidenceError: The file is damaged, or its parts do not belong together.
    """
    return _recomputed(parse_bundle(data), None)


def _recomputed(bundle: Bundle, key_for: KeyFor | None) -> Outcome:
    proven, programme = _proven(bundle, key_for)
    baseline, settled, fault = None, None, ""
    try:
        baseline, settled = settle_round(proven.round, proven.bid, proven.award, proven.inputs)
    except (ValueError, OverflowError) as error:
        fault = str(error)
    checks = (*_terms_checks(proven, programme), _loads_check(proven), *_money_checks(proven, settled, fault))
    return Outcome(proven, baseline, settled, checks)


def settle_round(made: Round, bid: Bid, award: Award, inputs: Inputs) -> tuple[Baseline, Settled]:
    """What a round is worth by its inputs: what a market states, and what everybody recomputes.

    Raises:
        ValueError: The rules give no baseline, or an interval of the round is not known.
        EvidenceError: The intervals do not fill the round.
    """
    programme, event = baseline_rules.parse(inputs.programme), event_of(made, inputs.interval_ms)
    listed = dict(inputs.loads)
    baseline = compute(programme, event, listed, inputs.events, bid.schedule_w)
    missing = [begins_ms for begins_ms in event.intervals if begins_ms not in listed]
    if missing:
        raise ValueError(f"{len(missing)} of the round's {event.number} intervals are not known")
    as_bid = made.pricing == Pricing.AS_BID
    terms = Terms(
        bid.curve, bid.schedule_w, award.net_w, award.ticks, as_bid, event.interval_ms, programme.payment
    )  # fmt: skip
    return baseline, settle(baseline.wh, [listed[begins_ms] for begins_ms in event.intervals], terms)


def event_of(made: Round, interval_ms: int) -> Event:
    """The intervals of a round.

    Raises:
        EvidenceError: They do not fill it.
    """
    need(interval_ms > 0 and made.duration_ms % interval_ms == 0, "the intervals do not fill the round")
    return Event(made.begins_ms, interval_ms, made.duration_ms // interval_ms)


def _proven(bundle: Bundle, key_for: KeyFor | None) -> tuple[Proven, baseline_rules.Programme]:
    """Hashes first, they are quick; then signatures; then what the readings say."""
    checkpoints = tuple(map(_included, bundle.logs))
    _continued(bundle.logs, checkpoints)
    made, offered = market.told(Round, bundle.round), market.told(Bid, bundle.bid)
    awarded, stated = market.told(Award, bundle.award), market.told(Statement, bundle.statement)
    done = None if bundle.confirmation is None else market.told(Confirmation, bundle.confirmation)
    _chained(bundle, offered, awarded, done, stated)
    _same_round(made, offered, awarded, done, stated)
    receipts, signers = _signatures(bundle, checkpoints, key_for)
    inputs = parse_inputs(bundle.inputs)
    try:
        programme = baseline_rules.parse(inputs.programme)
        event = event_of(made, inputs.interval_ms)
        wanted = needed(programme, event, inputs.events)
    except (ValueError, OverflowError) as error:
        raise EvidenceError(f"bundle: {error}") from None
    need(all(checkpoint.origin == offered.origin for checkpoint in checkpoints), "a checkpoint is of another gateway")
    entries = _by_epoch(bundle.logs, checkpoints)
    loads = register_loads((sorted(each.items()) for each in entries.values()), inputs, wanted)
    messages = {(kind, message): what for what, kind in _KINDS if (message := getattr(bundle, what)) is not None}
    places = list(_places(entries, checkpoints, receipts))
    logged = _logged(messages, places)
    newer = tuple(
        each._replace(what=f"version {market.told(Bid, entry.message).version}")
        for each, entry in places
        if is_newer(offered, entry)
    )
    said = made, offered, awarded, done, stated, inputs
    return Proven(*said, checkpoints, receipts, signers, loads, logged, newer), programme


def _by_epoch(logs: Sequence[LogPart], checkpoints: Sequence[Checkpoint]) -> dict[bytes, dict[int, Entry]]:
    """Entries by epoch and sequence."""
    entries: dict[bytes, dict[int, Entry]] = {}
    for part, checkpoint in zip(logs, checkpoints, strict=True):
        known = entries.setdefault(checkpoint.epoch, {})
        need(not any(each.sequence in known for each in part.entries), "an entry stands in two parts of a log")
        known |= {each.sequence: parse(each.canonical)[1] for each in part.entries}
    return entries


def _continued(logs: Sequence[LogPart], checkpoints: Sequence[Checkpoint]) -> None:
    """Parts of one epoch stand together, and each is the beginning of the next: there is one log, not two."""
    seen: set[bytes] = set()
    before: Checkpoint | None = None
    for part, checkpoint in zip(logs, checkpoints, strict=True):
        if before is not None and before.epoch == checkpoint.epoch:
            need(before.size < checkpoint.size and before.counter < checkpoint.counter, "parts are out of order")
            verify_consistency(before.size, checkpoint.size, part.path, before.root, checkpoint.root)
        else:
            need(not part.path and checkpoint.epoch not in seen, "parts of an epoch stand apart")
        seen.add(checkpoint.epoch)
        before = checkpoint


_KINDS = (
    ("round", MarketKind.ROUND),
    ("bid", MarketKind.BID),
    ("award", MarketKind.AWARD),
    ("confirmation", MarketKind.CONFIRMATION),
    ("statement", MarketKind.STATEMENT),
)


def _places(
    entries: Mapping[bytes, Mapping[int, Entry]],
    checkpoints: Sequence[Checkpoint],
    receipts: Sequence[Receipt | None],
) -> Iterator[tuple[Logged, MarketMessage]]:
    """The market's messages among the log's entries, in their order."""
    for epoch, log in entries.items():
        timeline = _timeline(log.items())
        bounds = [(c.size, r.time_ms) for c, r in zip(checkpoints, receipts, strict=True) if r and c.epoch == epoch]
        for sequence, entry in sorted(log.items()):
            if isinstance(entry, MarketMessage):
                by_ms = min((time_ms for size, time_ms in bounds if size > sequence), default=None)
                yield Logged("", epoch, sequence, timeline.correct(entry), by_ms, entry.reason), entry


def _logged(
    wanted: Mapping[tuple[int, bytes], str], places: Iterable[tuple[Logged, MarketMessage]]
) -> tuple[Logged, ...]:
    """The bundle's messages in the log: where one was taken, that entry; else where it was refused first."""
    found: dict[str, Logged] = {}
    for place, entry in places:
        what = wanted.get((entry.kind, entry.message))
        if what is not None:
            found[what] = min(found.get(what, place), place, key=_is_refused)._replace(what=what)
    return tuple(found[what] for what, _ in _KINDS if what in found)


def is_newer(bid: Bid, entry: Entry) -> bool:
    """Whether an entry is a bid that the gateway made for the same round after another."""
    if not isinstance(entry, MarketMessage) or (entry.kind, entry.reason) != (MarketKind.BID, MarketReason.NONE):
        return False
    try:
        other = market.told(Bid, entry.message)
    except EvidenceError:
        return False
    return other[:3] == bid[:3] and other.version > bid.version


def _is_refused(logged: Logged) -> bool:
    return logged.reason != MarketReason.NONE


def _timeline(entries: Iterable[tuple[int, Entry]]) -> Timeline:
    timeline = Timeline()
    for sequence, entry in sorted(entries):
        timeline.add(sequence, entry)
    return timeline


def _included(part: LogPart) -> Checkpoint:
    """The log's checkpoint, to whose root every entry leads."""
    checkpoint = parse_checkpoint(cose.peek(part.checkpoint)[1])
    for entry in part.entries:
        verify_inclusion(leaf_hash(entry.canonical), entry.sequence, checkpoint.size, entry.path, checkpoint.root)
    return checkpoint


def _chained(bundle: Bundle, bid: Bid, award: Award, confirmation: Confirmation | None, statement: Statement) -> None:
    """Every message names the one before by its hash."""
    need(bid.round_hash == market.digest(bundle.round), "the bid answers another announcement")
    need(award.bid_hash == market.digest(bundle.bid), "the award answers another bid")
    awarded = market.digest(bundle.award)
    need(confirmation is None or confirmation.award_hash == awarded, "the confirmation is for another award")
    need(statement.award_hash == awarded, "the statement is for another award")
    need(statement.inputs_hash == market.digest(bundle.inputs), "the statement names other inputs")


def _same_round(made: Round, bid: Bid, award: Award, confirmation: Confirmation | None, statement: Statement) -> None:
    answers = [each for each in (bid, award, confirmation, statement) if each is not None]
    need(all(each[:2] == made[:2] for each in answers), "the messages are of several markets or rounds")
    need(all(each.origin == bid.origin for each in answers), "the messages are for several gateways")
    need(award.verdict == Verdict.AWARDED, "nothing was awarded: there is nothing to settle")


def _signatures(
    bundle: Bundle, checkpoints: Sequence[Checkpoint], key_for: KeyFor | None
) -> tuple[tuple[Receipt | None, ...], tuple[Signer, ...]]:
    """Every signature, each under a key of its role; the two sides do not share keys."""
    parts = [("market", "statement", bundle.statement)]  # first those that no hash in the file covers
    parts += [("gateway", "confirmation", bundle.confirmation)] if bundle.confirmation is not None else []
    parts += [("log", "checkpoint", part.checkpoint) for part in bundle.logs]
    parts += [("market", "round", bundle.round), ("gateway", "bid", bundle.bid), ("market", "award", bundle.award)]
    signers = [_signed(role, what, message, key_for)[0] for role, what, message in parts]
    receipts: list[Receipt | None] = []
    for part, checkpoint in zip(bundle.logs, checkpoints, strict=True):
        receipts.append(None)
        if part.receipt is not None:
            signer, payload = _signed("headend", "receipt", part.receipt, key_for)
            receipts[-1] = parse_receipt(payload)
            same_tree(parse_receipt(payload), checkpoint)
            signers.append(signer)
    kids = {role: {signer.kid for signer in signers if signer.role == role} for role, _ in signers}
    theirs = kids["market"] | kids.get("headend", set())
    need(not theirs & (kids["gateway"] | kids["log"]), "one key signed for both sides")
    need(all(len(kids[role]) == 1 for role in ("market", "gateway")), "several keys signed for one side")
    return tuple(receipts), tuple(dict.fromkeys(signers))


def _signed(role: str, what: str, message: bytes, key_for: KeyFor | None) -> tuple[Signer, bytes]:
    kid, payload = cose.peek(message)
    if key_for is None:
        return Signer(role, kid), payload
    key = key_for(role, kid)
    if key is None:
        raise EvidenceError(f"{what}: signed by key {kid.hex()}, which was not given as {role} (--key)")
    check = market.verified if role in {"market", "gateway"} else cose.verify
    try:
        return Signer(role, kid), check(message, key)
    except EvidenceError as error:
        raise EvidenceError(f"{what}: {error}") from None


# ---------------------------------------------------------------- comparing


def _terms_checks(proven: Proven, programme: baseline_rules.Programme) -> list[Check]:
    made, bid, award = proven.round, proven.bid, proven.award
    known = made.programme in baseline_rules.names()
    same = known and baseline_rules.text_of(made.programme) == proven.inputs.programme
    file = "as it comes with this program" if same else "NOT the file of that name that comes with this program"
    if not known:
        file = "no file of that name comes with this program: its rules are those that the market signed"
    offered = bid.curve.fits(award.net_w, award.ticks, bid.schedule_w)
    timely = award.time_ms < made.begins_ms and bid.time_ms <= made.gate_ms
    return [
        Check("award", offered, f"{award.net_w} W at {award.ticks} ticks, from the bid's curve"),
        Check("price", made.least_ticks <= award.ticks <= made.most_ticks, "within the round's bounds"),
        Check("in time", timely, "bid before the gate, award before the interval, by their own times"),
        *_order_check(proven.logged),
        Check("programme", programme.name == made.programme, f"{programme.name!r}, round: {made.programme!r}; {file}"),
    ]


def _order_check(logged: Sequence[Logged]) -> list[Check]:
    """The gateway refused none of the messages, and a log that holds several of them holds them in their order."""
    refused = list(filter(_is_refused, logged))
    if refused:
        why = ", ".join(f"{each.what} at {each.sequence}: {REASONS.get(each.reason, each.reason)}" for each in refused)
        return [Check("in the log", agrees=False, said=f"the gateway refused {why}")]
    order = [what for what, _ in _KINDS]
    places = [(order.index(each.what), each.epoch, each.sequence) for each in logged]
    pairs = [(a, b) for a in places for b in places if a[0] < b[0] and a[1] == b[1]]
    said = "in their order: " + ", ".join(f"{each.what} at {each.sequence}" for each in logged)
    return [Check("in the log", all(a[2] < b[2] for a, b in pairs), said)] if pairs else []


def _loads_check(proven: Proven) -> Check:
    """The inputs list exactly what the readings give."""
    listed, read = dict(proven.inputs.loads), {at: each.wh for at, each in proven.loads.items()}
    wrong = sorted(at for at in listed if listed[at] != read.get(at))
    left_out = sorted(read.keys() - listed.keys())
    said = f"{len(listed)} intervals from the readings"
    if wrong:
        at = wrong[0]
        said = f"{len(wrong)} intervals differ from the readings, first {at}: {listed[at]} Wh said, {read.get(at)} read"
    elif left_out:
        said = f"{len(left_out)} intervals that the readings give are not used, the first at {left_out[0]}"
    return Check("energy", not wrong and not left_out, said)


def _money_checks(proven: Proven, settled: Settled | None, fault: str) -> list[Check]:
    stated, decimals, currency = proven.statement, proven.round.decimals, proven.round.currency
    if settled is None:
        return [Check("baseline", agrees=False, said=fault)]
    pairs = (
        ("baseline", stated.baseline_wh, settled.baseline_wh),
        ("actual", stated.actual_wh, settled.actual_wh),
        ("amount", stated.amount, settled.amount),
    )

    def text(what: str, number: int) -> str:
        return f"{market.price(number, decimals)} {currency}" if what == "amount" else f"{number} Wh"

    return [
        Check(what, theirs == ours, f"{text(what, theirs)} stated, {text(what, ours)} recomputed")
        for what, theirs, ours in pairs
    ]
