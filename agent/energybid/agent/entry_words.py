"""One entry that a proof discloses, as facts and in plain words. Pure: an entry and keys in, text out."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from energybid.agent.moments import moment_text
from energybid.core import cose
from energybid.core.cose import PublicKey
from energybid.core.entries import Command, CommandCause, CommandOutcome, Entry, MarketMessage, MarketReason, Unknown
from energybid.core.quantities import decimal_text
from energybid.sync import logged
from energybid.sync.market import Conduct, PriceCurve, Pricing, Verdict

Keys = Mapping[bytes, tuple[PublicKey, str]]
"""kid → key, and the name by which the user knows it."""
_ENUMERATIONS: Mapping[str, type[IntEnum]] = {
    "pricing": Pricing,
    "verdict": Verdict,
    "conduct": Conduct,
    "curve": PriceCurve,
}
_MOMENTS = frozenset({"time_ms", "gate_ms", "begins_ms", "expires_ms"})
_MADE = frozenset({"bid", "confirmation"})
"""Messages of the gateway's own."""


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, bytes):
        return value.hex()
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def entry_facts(entry: Entry, keys: Keys) -> dict[str, Any]:
    """What an entry says, as plain data.

    Raises:
        EvidenceError: It holds a market's message as one that counts, and its maker did not sign it.
    """
    facts: dict[str, Any] = {"type": type_name(entry), "fields": _plain_fields(entry)}
    if isinstance(entry, MarketMessage):
        facts["message"] = _message(entry, keys)
    return facts


def type_name(entry: Entry) -> str:
    """What people call the type of an entry."""
    return "market message" if isinstance(entry, MarketMessage) else type(entry).__name__.lower()


def _plain_fields(entry: Entry) -> dict[str, Any]:
    return {name: _plain(value) for name, value in zip(entry._fields, entry, strict=True)}


def _message(entry: MarketMessage, keys: Keys) -> dict[str, Any]:
    message = logged.told(entry)
    found: dict[str, Any] = {
        "kind": logged.KINDS.get(entry.kind, str(entry.kind)),
        "reason": logged.REASONS.get(entry.reason, str(entry.reason)),
        "says": {} if message is None else {name: _plain(value) for name, value in message._asdict().items()},
        "key": None,
        "signature": "not checked",
    }
    if message is not None:
        kid = cose.peek(entry.message)[0]
        found["key"] = {"kid": kid.hex(), "file": keys[kid][1] if kid in keys else None}
    if logged.checked(entry, {kid: key for kid, (key, _) in keys.items()}):
        found["signature"] = "verified"
    return found


# ---------------------------------------------------------------- plain words


def entry_claims(facts: dict[str, Any], clocks: Mapping[int, str]) -> tuple[list[str], list[str]]:
    """(what is proven, what is not) of an entry beyond what any entry's proof says.

    Args:
        facts: From ``entry_facts``, and of the proof: ``origin``, ``sequence``, ``epoch``.
        clocks: What to say of each state of the gateway's clock.
    """
    where = f"gateway {facts['origin']} logged, as entry {facts['sequence']} of epoch {facts['epoch']}, "
    fields = facts["fields"]
    dated = [_dated(fields, clocks)] if "time_ms" in fields and "clock" in fields else []
    if facts["type"] == "market message":
        return _message_claims(where, facts, dated)
    if facts["type"] == Command.__name__.lower():
        return [where + _command(fields), *dated], ["that the device did as it said: the log holds what it answered"]
    if facts["type"] == Unknown.__name__.lower():
        return [f"{where}an entry of a type that this program does not know: {fields['raw']}"], []
    said = "".join(f"\n{name}  {value}" for name, value in fields.items())
    return [f"{where}an entry of type {facts['type']}:{said}", *dated], []


def _dated(fields: dict[str, Any], clocks: Mapping[int, str]) -> str:
    return f"it is dated {moment_text(fields['time_ms'])} by the gateway's clock ({clocks[fields['clock']]})"


def _message_claims(where: str, facts: dict[str, Any], dated: list[str]) -> tuple[list[str], list[str]]:
    message = facts["message"]
    kind, says = message["kind"], message["says"]
    said = "".join(f"\n{name}  {_said(name, value)}" for name, value in says.items() if name != "steps")
    said += "".join(f"\nstep  {step}" for step in says.get("steps", []))
    if message["reason"] != logged.REASONS[MarketReason.NONE]:
        what = f"that it refused a message on the topic of {kind}, for this reason: {message['reason']}"
    elif kind in _MADE:
        what = f"before it was sent, its {kind}"
    else:
        what = f"that it accepted a market's message: {kind}"
    proven, unproven = [f"{where}{what}{':' if said else ''}{said}", *dated], []
    key = message["key"]
    if message["signature"] == "verified":
        proven.append(f"key {key['kid']} ({key['file']}) signed that message itself")
    elif key is not None:
        unproven.append(f"who made that message: it names key {key['kid']}, under which nothing was checked (--key)")
    else:
        unproven.append("who made that message, or what it is: it is none that can be read")
    if kind in _MADE:
        unproven.append("that the message was sent, or arrived")
    return proven, unproven


def _said(name: str, value: Any) -> str:  # noqa: ANN401
    if name in _ENUMERATIONS:
        return f"{value} ({_ENUMERATIONS[name](value).name.lower().replace('_', ' ')})"
    return f"{value} ({moment_text(value)})" if name in _MOMENTS else str(value)


def _command(fields: dict[str, Any]) -> str:
    names = {kind: {n: name.lower() for name, n in vars(kind).items() if name.isupper()} for kind in _NAMED}
    outcome, cause = (names[kind].get(fields[field], str(fields[field])) for kind, field in _NAMED.items())
    value = f"{decimal_text(fields['mantissa'], fields['exponent'])} {fields['unit']}"
    found = "" if fields["found"] is None else f", read back {decimal_text(fields['found'], fields['exponent'])}"
    return (
        f"that {fields['meter']}/{fields['writable']} was to be {value}, for {fields['owner']!r} ({cause}):"
        f" {outcome}{found}"
    )


_NAMED: dict[type, str] = {CommandOutcome: "outcome", CommandCause: "cause"}
