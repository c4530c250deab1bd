"""``energybid settle bundle``: a settled round's evidence, gathered from what a journal or a head-end's database holds.

What it writes is verified first, and again as it stands in the file. Nothing is written that could not be relied on.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from energybid.agent.config import load_plan
from energybid.agent.databases import histories, opened
from energybid.agent.moments import moment_text
from energybid.bidding import baseline_rules
from energybid.bidding.baseline import SECOND_MS
from energybid.bidding.calendar_days import MINUTE_MS
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.entries import Declaration, MarketKind
from energybid.core.errors import ConfigurationError, EnergybidError, EvidenceError
from energybid.sync import market
from energybid.sync.bundle import parse_inputs
from energybid.sync.logged import REASONS
from energybid.sync.market import Award, Bid, Round, Statement
from energybid.sync.recompute import rehearse, verify
from energybid.sync.settling import IMPORT, Logs, Messages, Ready, Waiting, usual_inputs, usual_interval_ms

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from energybid.agent.plan import AgentPlan
    from energybid.core.prover import History
    from energybid.sync.bundle import Inputs
    from energybid.sync.recompute import Outcome

_ROLES = ("market", "gateway", "log", "headend")


class Source(NamedTuple):
    """Where evidence is taken from."""

    path: Path
    origin: str | None
    """``tenant/gateway``; None: the only one in it."""
    meter: str | None
    """None: any that has the register."""
    own: dict[str, list[PublicKey]]
    """Role → keys that the configuration names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``settle bundle``."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--round", type=int, metavar="N", help="number of the round")
    which.add_argument("--all", action="store_true", help="every settled round, into a folder; those there are kept")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-c", "--config", type=Path, help="gateway.toml; default: /etc/energybid/gateway.toml")
    where.add_argument("--journal", type=Path, metavar="FILE", help="a journal")
    where.add_argument("--database", type=Path, metavar="FILE", help="a head-end's database, which holds all history")
    parser.add_argument("--gateway", metavar="TENANT/GATEWAY", help="whose, where a database holds several")
    parser.add_argument("--market", metavar="TENANT/MARKET", help="of which market, where there were several")
    parser.add_argument("--meter", help="the meter that the market settles by; default: [market], else any that fits")
    parser.add_argument("--inputs", type=Path, metavar="FILE", help="the inputs as the market keeps them; else found")
    parser.add_argument(
        "--programme", type=Path, metavar="FILE", help="the programme's file, where the market has its own"
    )
    parser.add_argument(
        "--event", action="append", default=[], metavar="DATE", help="another event day; may be repeated"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="the file to write; with --all the folder")


def source_of(arguments: argparse.Namespace) -> Source:
    """Where to look.

    Raises:
        ConfigurationError: gateway.toml is wrong, or says nothing of a market.
    """
    path = arguments.journal or arguments.database
    if path is not None:
        return Source(path, arguments.gateway, arguments.meter, {})
    plan = load_plan(arguments.config or Path("/etc/energybid/gateway.toml"))
    meter = arguments.meter or (plan.market.meter if plan.market else None)
    return Source(Path(plan.journal.path), plan.origin, meter, _own_keys(plan))


def _own_keys(plan: AgentPlan) -> dict[str, list[PublicKey]]:
    keys = {"log": [PrivateKey.from_pem(plan.log_key).public]}
    if plan.headend_key:
        keys["headend"] = [PublicKey.from_pem(plan.headend_key)]
    if plan.market:
        keys["market"] = [PublicKey.from_pem(plan.market.key)]
        keys["gateway"] = [PrivateKey.from_pem(plan.market.bids_key).public]
    return keys


def make(arguments: argparse.Namespace, given: dict[str, list[PublicKey]]) -> dict[str, Any]:
    """Write what was asked for.

    Args:
        arguments: As given.
        given: Role → keys from ``--key``.

    Returns:
        ``bundles`` that were written, files that were there and are ``kept``, rounds that ``failed``, and whether
        older history was ``pruned``.

    Raises:
        EnergybidError: The round can not be had from here; it says what is missing.
    """
    if arguments.round is not None and arguments.output.exists():
        raise EnergybidError(f"{arguments.output} exists; name a new file")
    source = source_of(arguments)
    keys = {role: [*source.own.get(role, []), *given.get(role, [])] for role in _ROLES}
    with opened(source.path) as database:
        maker = _Maker(_chosen(histories(database, source.path), source.origin), source, arguments, keys)
        if arguments.round is not None:
            done = {"bundles": [maker.one(arguments.round, arguments.output)], "kept": [], "failed": []}
        else:
            done = maker.all(arguments.output)
        return done | {"pruned": maker.pruned}


def _chosen(found: list[History], origin: str | None) -> list[History]:
    origins = sorted({history.origin for history in found})
    if origin is None and len(origins) > 1:
        raise ConfigurationError([f"the database holds {', '.join(origins)}: choose one with --gateway"])
    wanted = [history for history in found if origin in {None, history.origin}]
    if not wanted:
        raise EnergybidError(f"the database holds no log of {origin or 'any gateway'}")
    return wanted


class _Maker:
    """Makes bundles from one gateway's log."""

    def __init__(
        self, found: list[History], source: Source, arguments: argparse.Namespace, keys: dict[str, list[PublicKey]]
    ) -> None:
        self._histories = found
        self._arguments = arguments
        self._keys = keys
        meters = [source.meter] if source.meter else _meters(found)
        self._logs = {meter: Logs(meter) for meter in meters or [""]}
        for logs in self._logs.values():
            logs.read(found)
        self._any = next(iter(self._logs.values()))
        self._settled = {
            name: messages for name, messages in self._any.settled().items() if arguments.market in {None, name[0]}
        }

    def one(self, number: int, path: Path) -> dict[str, Any]:
        named = [name for name in self._settled if name[1] == number]
        if len(named) > 1:
            raise ConfigurationError([f"round {number} is in {', '.join(n for n, _ in named)}: choose with --market"])
        if not named:
            raise EnergybidError(f"round {number}: {self._missing(number)}")
        return self._write(self._settled[named[0]], path)

    def all(self, folder: Path) -> dict[str, Any]:
        """Every settled round."""
        folder.mkdir(parents=True, exist_ok=True)
        single = len({name for name, _ in self._settled}) == 1
        done: dict[str, Any] = {"bundles": [], "kept": [], "failed": []}
        for (name, number), messages in sorted(self._settled.items()):
            path = folder / (f"round-{number}.bundle" if single else f"{name.replace('/', '.')}-round-{number}.bundle")
            if path.exists():
                done["kept"].append(str(path))
                continue
            try:
                done["bundles"].append(self._write(messages, path))
            except EnergybidError as error:
                done["failed"].append({"market": name, "round": number, "why": str(error)})
        return done

    # ------------------------------------------------------------ one round

    def _write(self, messages: Messages, path: Path) -> dict[str, Any]:
        logs, inputs = self._inputs(messages)
        data = logs.bundle(messages, inputs).encode()
        outcome, unchecked = self._verified(data)
        try:
            with path.open("xb") as file:
                file.write(data)
            if path.read_bytes() != data:
                raise EnergybidError(f"{path}: does not hold what was written")
        except OSError as error:
            raise EnergybidError(f"{path}: {error.strerror}") from None
        return _facts(outcome, unchecked) | {"file": str(path), "bytes": len(data)}

    def _verified(self, data: bytes) -> tuple[Outcome, list[str]]:
        """(The recomputation, roles whose signatures could not be checked for lack of a key)."""
        outcome = rehearse(data)
        roles = {signer.role for signer in outcome.proven.signers}
        unchecked = sorted(role for role in roles if not self._keys[role])
        return (outcome if unchecked else verify(data, self._key_for)), unchecked

    def _key_for(self, role: str, kid: bytes) -> PublicKey | None:
        return next((key for key in self._keys[role] if key.kid == kid), None)

    # ------------------------------------------------------------ inputs

    def _inputs(self, messages: Messages) -> tuple[Logs, Inputs]:
        """The inputs whose hash the market signed, and the logs of their meter.

        Raises:
            EnergybidError: Those that fit what is known here are others.
        """
        stated = market.told(Statement, messages.statement)
        if self._arguments.inputs:
            return self._given_inputs(stated)
        made, bid = market.told(Round, messages.round), market.told(Bid, messages.bid)
        award = market.told(Award, messages.award)
        missing: list[str] = []
        others = False
        for meter, asked in self._candidates(made):
            found = self._logs[meter].settle(made, bid, award, asked)
            if isinstance(found, Ready) and market.digest(found.inputs.encode()) == stated.inputs_hash:
                return self._logs[meter], found.inputs
            others |= isinstance(found, Ready)
            missing += [] if isinstance(found, Ready) else [_why(found)]
        raise EnergybidError(f"round {made.number}: {self._no_inputs(None if others else missing[0])}")

    def _given_inputs(self, stated: Statement) -> tuple[Logs, Inputs]:
        try:
            data = self._arguments.inputs.read_bytes()
        except OSError as error:
            raise EnergybidError(f"{self._arguments.inputs}: {error.strerror}") from None
        inputs = parse_inputs(data)
        if market.digest(data) != stated.inputs_hash:
            raise EvidenceError(f"{self._arguments.inputs}: not the inputs of the statement of round {stated.number}")
        logs = self._logs.setdefault(inputs.meter, Logs(inputs.meter))
        logs.read(self._histories)
        return logs, inputs

    def _candidates(self, made: Round) -> Iterator[tuple[str, Inputs]]:
        """Inputs that a market may have used, the likeliest first."""
        programme = self._programme(made)
        usual = usual_interval_ms(made.duration_ms)
        unit_ms = SECOND_MS if usual % MINUTE_MS else MINUTE_MS
        shorter = [usual // part for part in range(1, 61) if usual % part == 0 and usual // part % unit_ms == 0]
        for meter in self._logs:
            asked = usual_inputs(made, meter, programme=programme, events=self._events())
            for interval_ms in shorter or [usual]:
                yield meter, asked._replace(interval_ms=interval_ms)
                yield meter, asked._replace(interval_ms=interval_ms, exports=None)

    def _programme(self, made: Round) -> bytes:
        if self._arguments.programme:
            try:
                return bytes(self._arguments.programme.read_bytes())
            except OSError as error:
                raise EnergybidError(f"{self._arguments.programme}: {error.strerror}") from None
        try:
            return baseline_rules.text_of(made.programme)
        except ValueError:
            raise EnergybidError(
                f"round {made.number} settles by programme {made.programme!r}, which does not come with this program:"
                " give its file with --programme"
            ) from None

    def _events(self) -> tuple[date, ...]:
        try:
            return tuple(sorted({date.fromisoformat(text) for text in self._arguments.event}))
        except ValueError as error:
            raise ConfigurationError([f"--event: {error}; a date such as 2026-11-22 is wanted"]) from None

    def _no_inputs(self, missing: str | None) -> str:
        pruned = "; older history was pruned here: ask the head-end" if self.pruned else ""
        if missing:
            return f"{missing}{pruned}"
        return (
            "the market's statement names other inputs than the readings here give: other event days (--event), another"
            f" programme, meter or registers (--inputs), or readings that came later{pruned}"
        )

    # ------------------------------------------------------------ what is missing

    @property
    def pruned(self) -> bool:
        """Whether older history is not here any more."""
        return any(history.first for history in self._histories)

    def _missing(self, number: int) -> str:
        """Why there is nothing to make a bundle of."""
        known = self._known(number)
        if MarketKind.STATEMENT in known:
            return f"what its statement answers is not in this log: {_older(pruned=self.pruned)}"
        if MarketKind.AWARD in known:
            award = market.told(Award, known[MarketKind.AWARD])
            return (
                "nothing was awarded" if award.verdict else "its statement has not come yet: the market has not settled"
            )
        if MarketKind.BID in known:
            return self._refused(number) or "no award came for its bid"
        if MarketKind.ROUND in known:
            return "announced, and no bid was made"
        numbers = sorted(number for _, number in self._settled)
        there = f"settled are {len(numbers)}, from {numbers[0]} to {numbers[-1]}" if numbers else "none is settled"
        return f"not in this log; of those in it {there}{'; ' + _older(pruned=True) if self.pruned else ''}"

    def _refused(self, number: int) -> str | None:
        """Why the gateway refused the first award that came for a round."""
        for reason, message in self._any.refused(MarketKind.AWARD):
            with suppress(EvidenceError):
                if market.told(Award, message).number == number:
                    return f"its award was refused: {REASONS.get(reason, reason)}"
        return None

    def _known(self, number: int) -> dict[int, bytes]:
        """The last message of each kind about a round."""
        kinds = {
            MarketKind.ROUND: Round, MarketKind.BID: Bid, MarketKind.AWARD: Award, MarketKind.STATEMENT: Statement,
        }  # fmt: skip
        found = {}
        for kind, read in kinds.items():
            for message in self._any.said(kind):
                with suppress(EvidenceError):
                    told = market.told(read, message)
                    if told.number == number and self._arguments.market in {None, told.market}:
                        found[kind] = message
        return found


def _older(*, pruned: bool) -> str:
    return "older history was pruned here: ask the head-end" if pruned else "it was lost before it was logged"


def _why(found: Any) -> str:  # noqa: ANN401  Waiting or Never
    return (
        f"{found.why}; readings up to {moment_text(found.until_ms)} are wanted"
        if isinstance(found, Waiting)
        else found.why
    )


def _meters(found: list[History]) -> list[str]:
    """Meters that count imported energy, by name."""
    names = set()
    for history in found:
        newest = next(history.commits(), None)
        for _, entry in history.entries(history.first, newest.end if newest else 0):
            if isinstance(entry, Declaration) and any(q[0] == IMPORT for _, group in entry.groups for q in group):
                names.add(entry.meter)
    return sorted(names)


def _facts(outcome: Outcome, unchecked: list[str]) -> dict[str, Any]:
    made, statement = outcome.proven.round, outcome.proven.statement
    return {
        "market": made.market,
        "round": made.number,
        "gateway": statement.origin,
        "amount": f"{market.price(statement.amount, made.decimals):f} {made.currency}",
        "money": money_words(statement, made),
        "agrees": outcome.agrees,
        "faults": [f"{each.what}: {each.said}" for each in outcome.checks if not each.agrees],
        "signatures_not_checked": unchecked,
        "receipts": sum(receipt is not None for receipt in outcome.proven.receipts),
    }


def money_words(statement: Statement, made: Round) -> str:
    """What a statement says, for people."""
    amount = f"{abs(market.price(statement.amount, made.decimals)):f} {made.currency}"
    way = "less" if statement.delivered_wh >= 0 else "more"
    less = f"{abs(statement.delivered_wh)} Wh {way} than its baseline of {statement.baseline_wh} Wh"
    owed = {1: f"the market owes the site {amount}", 0: "nothing is owed", -1: f"the site owes the market {amount}"}
    sign = (statement.amount > 0) - (statement.amount < 0)
    return f"The market states: the site imported {less}; {owed[sign]}."


def words(done: dict[str, Any]) -> str:
    """What was done, for people."""
    lines = [line for each in done["bundles"] for line in _bundle_words(each)]
    lines += [f"{path}: kept" for path in done["kept"]]
    lines += [f"round {each['round']} of {each['market']}: NOT WRITTEN: {each['why']}" for each in done["failed"]]
    more = f"; {_older(pruned=True)}" if done["pruned"] else ""
    return "\n".join(lines or [f"no round is settled in this log{more}"])


def _bundle_words(each: dict[str, Any]) -> list[str]:
    verdict = "recomputed, it agrees" if each["agrees"] else "recomputed, it does NOT AGREE"
    head = f"{each['file']}: {each['bytes']} bytes: round {each['round']} of {each['market']} for {each['gateway']}"
    lines = [f"{head}: {each['amount']}; {verdict}", f"  {each['money']}"]
    lines += [f"  {fault}" for fault in each["faults"]]
    if each["signatures_not_checked"]:
        missing = ", ".join(each["signatures_not_checked"])
        lines.append(f"  signatures NOT checked: no key of {missing} was given (--key ROLE=FILE)")
    return lines
