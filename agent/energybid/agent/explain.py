"""What a proof file proves and what it does not, as facts and in plain words. Pure: bytes and keys in, text out."""

from typing import Any

from energybid.agent.entry_words import Keys, entry_claims, entry_facts
from energybid.agent.moments import moment_text
from energybid.core.cose import PublicKey
from energybid.core.disclosure import (
    ConsistencyProof,
    EntryProof,
    ProvenConsistency,
    ProvenEntry,
    ProvenReading,
    ReadingProof,
    parse_proof,
    verify_continuation,
    verify_entry,
    verify_reading,
)
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint
from energybid.core.quantities import ClockState, Obis, Status, decimal_text

_CLOCKS = {
    ClockState.SYNCHRONISED: "synchronised",
    ClockState.HOLDOVER: "not synchronised then, but earlier since its start",
    ClockState.UNSYNCHRONISED: "never synchronised since its start: the time may be wrong by any amount",
}
_STATUSES = {
    Status.OK: "",
    Status.NO_REPLY: "the meter did not answer",
    Status.REFUSED: "the meter refused",
    Status.NOT_AVAILABLE: "the meter said: not available",
    Status.OVERFLOW: "too large to be written",
    Status.SUSPECT: "in doubt: contradicts the value before it, or its own bounds",
    Status.ROLLED_OVER: "the register rolled over since the value before",
    Status.RESTARTED: "the register counts from another number since the value before: reset, or another meter",
}


def explain(data: bytes, keys: Keys, *, ignore_receipt: bool = False) -> dict[str, Any]:
    """Verify a proof file; the report says ``verified`` and, if not, which ``faults``.

    Args:
        data: The file.
        keys: What the verifier trusts.
        ignore_receipt: Do not look at the receipt.
    """
    kind = "proof"
    try:
        proof = parse_proof(data)

        def key_for(kid: bytes) -> PublicKey | None:
            return keys[kid][0] if kid in keys else None

        if isinstance(proof, ReadingProof):
            kind = "reading-proof"
            facts = _reading(verify_reading(proof, key_for, ignore_receipt=ignore_receipt), keys)
        elif isinstance(proof, EntryProof):
            kind = "entry-proof"
            facts = _entry(verify_entry(proof, key_for, ignore_receipt=ignore_receipt), keys)
        else:
            kind = "consistency-proof"
            facts = _consistency(verify_continuation(proof, key_for), keys)
    except EvidenceError as error:
        return {"kind": kind, "verified": False, "faults": [str(error)]}
    if isinstance(proof, ConsistencyProof):
        proven, unproven = _consistency_claims(facts)
    else:
        claims = _reading_claims if isinstance(proof, ReadingProof) else _entry_claims
        proven, unproven = claims(facts, ignored=ignore_receipt and proof.receipt is not None)
    return {"kind": kind, "verified": True, "faults": [], **facts, "proven": proven, "not_proven": unproven}


def words(name: str, report: dict[str, Any]) -> str:
    """The report for people.

    Args:
        name: The file's.
        report: From ``explain``.
    """
    if not report["verified"]:
        return "\n".join([f"{name}: {report['kind']}: NOT VERIFIED", *(f"fault: {f}" for f in report["faults"])])
    return "\n".join(
        [
            f"{name}: {report['kind']}: verified",
            "",
            "Proven:",
            *(f"  * {_hanging(claim)}" for claim in report["proven"]),
            "",
            "NOT proven:",
            *(f"  * {_hanging(claim)}" for claim in report["not_proven"]),
        ]
    )


def _hanging(claim: str) -> str:
    return claim.replace("\n", "\n      ")


# ---------------------------------------------------------------- facts


def _key(kid: bytes, keys: Keys) -> dict[str, str]:
    return {"kid": kid.hex(), "file": keys[kid][1]}


def _moment(time_ms: int, clock: int) -> dict[str, Any]:
    return {"time": moment_text(time_ms), "time_ms": time_ms, "clock": ClockState(clock).name.lower()}


def _checkpoint(checkpoint: Checkpoint, kid: bytes, keys: Keys) -> dict[str, Any]:
    return {
        "size": checkpoint.size,
        "root": checkpoint.root.hex(),
        "counter": checkpoint.counter,
        **_moment(checkpoint.time_ms, checkpoint.clock),
        "key": _key(kid, keys),
    }


def _reading(proven: ProvenReading, keys: Keys) -> dict[str, Any]:
    reading, declaration = proven.reading, proven.declaration
    return {
        "origin": proven.checkpoint.origin,
        "epoch": proven.checkpoint.epoch.hex(),
        "sequence": proven.sequence,
        "meter": declaration.meter,
        "serial": declaration.serial,
        "profile": declaration.profile,
        "profile_sha256": declaration.profile_hash.hex(),
        **_moment(reading.time_ms, reading.clock),
        "span_ms": reading.span_ms,
        "values": _values(proven),
        **_signed(proven, keys),
    }


def _signed(proven: ProvenReading | ProvenEntry, keys: Keys) -> dict[str, Any]:
    receipt = proven.receipt
    return {
        "checkpoint": _checkpoint(proven.checkpoint, proven.kid, keys),
        "receipt": None
        if receipt is None or proven.receipt_kid is None
        else {
            "size": receipt.size,
            "time": moment_text(receipt.time_ms),
            "time_ms": receipt.time_ms,
            "key": _key(proven.receipt_kid, keys),
        },
    }


def _entry(proven: ProvenEntry, keys: Keys) -> dict[str, Any]:
    return {
        "origin": proven.checkpoint.origin,
        "epoch": proven.checkpoint.epoch.hex(),
        "sequence": proven.sequence,
        "entry": entry_facts(proven.entry, keys),
        **_signed(proven, keys),
    }


def _values(proven: ProvenReading) -> list[dict[str, Any]]:
    quantities = proven.declaration.groups[proven.reading.group][1]
    values = proven.reading.values
    marks = proven.reading.status or (Status.OK,) * len(values)
    return [
        {
            "obis": str(Obis(obis)),
            "value": None if value is None else decimal_text(value, exponent),
            "unit": unit,
            "status": mark,
            "mantissa": value,
            "exponent": exponent,
            "cumulative": cumulative,
        }
        for (obis, unit, exponent, cumulative), value, mark in zip(quantities, values, marks, strict=True)
    ]


def _consistency(proven: ProvenConsistency, keys: Keys) -> dict[str, Any]:
    return {
        "origin": proven.first.origin,
        "epoch": proven.first.epoch.hex(),
        "first": _checkpoint(proven.first, proven.first_kid, keys),
        "second": _checkpoint(proven.second, proven.second_kid, keys),
    }


# ---------------------------------------------------------------- plain words


def _clock(facts: dict[str, Any]) -> str:
    return _CLOCKS[ClockState[facts["clock"].upper()]]


def _value(value: dict[str, Any]) -> str:
    mark = value["status"]
    judgement = _STATUSES[Status(mark)] if mark in set(Status) else f"status {mark}"
    unit = "" if value["unit"] == "1" else f" {value['unit']}"
    number = "no number" if value["value"] is None else f"{value['value']}{unit}"
    return f"{value['obis']}  {number}" + (f"  ({judgement})" if judgement else "")


def _signature(checkpoint: dict[str, Any]) -> str:
    return (
        f"key {checkpoint['key']['kid']} ({checkpoint['key']['file']}) signed it at {checkpoint['time']}"
        f" by the gateway's clock ({_clock(checkpoint)}), as checkpoint {checkpoint['counter']},"
        f" over the first {checkpoint['size']} entries of the log"
    )


def _reading_claims(facts: dict[str, Any], *, ignored: bool) -> tuple[list[str], list[str]]:
    values = "".join(f"\n{_value(value)}" for value in facts["values"])
    serial = f", serial number {facts['serial']!r} by its own word" if facts["serial"] else ""
    proven = [
        (
            f"gateway {facts['origin']} logged, as entry {facts['sequence']} of epoch {facts['epoch']}, that its meter"
            f" {facts['meter']!r}{serial} answered:{values}"
        ),
        (
            f"the answer was complete at {facts['time']} by the gateway's clock ({_clock(facts)}),"
            f" {facts['span_ms']} ms after the first question"
        ),
        (
            f"units and resolutions are those that the log declares for profile {facts['profile']!r}"
            f" (SHA-256 {facts['profile_sha256']})"
        ),
        _signature(facts["checkpoint"]),
    ]
    unproven = [
        (
            "that the meter measured rightly, is the one its name says, or was asked honestly: the log holds what the"
            " gateway received"
        ),
        "that the gateway's clock was right",
        "that the keys are whose you think: get them from the gateway's owner and the utility, not with this file",
        "anything about the other entries of the log, or about readings that were never logged",
    ]
    more, less = _receipt_claims(facts["receipt"], facts["time_ms"], "reading", ignored=ignored)
    return proven + more, unproven + less


def _entry_claims(facts: dict[str, Any], *, ignored: bool) -> tuple[list[str], list[str]]:
    entry = facts["entry"]
    clocks = {state.value: words for state, words in _CLOCKS.items()}
    proven, unproven = entry_claims(entry | {name: facts[name] for name in ("origin", "epoch", "sequence")}, clocks)
    more, less = _receipt_claims(facts["receipt"], entry["fields"].get("time_ms"), "entry", ignored=ignored)
    general = [
        "that what the gateway logged is true, or that its clock was right",
        "that the keys are whose you think: get them from their owners, not with this file",
        "anything about the other entries of the log, or about what was never logged",
    ]
    return [*proven, _signature(facts["checkpoint"]), *more], [*unproven, *general, *less]


def _receipt_claims(
    receipt: dict[str, Any] | None, time_ms: int | None, what: str, *, ignored: bool
) -> tuple[list[str], list[str]]:
    if receipt is None:
        left = "it has a receipt, which was not looked at" if ignored else "it has no receipt of a head-end"
        return [], [f"that anybody but the holder of the gateway's key had this {what} at any time: {left}"]
    doubt = f"which of the two clocks was wrong: the head-end's receipt is dated before the {what} that it covers"
    return [_receipt_claim(receipt)], [doubt] if time_ms is not None and receipt["time_ms"] < time_ms else []


def _receipt_claim(receipt: dict[str, Any]) -> str:
    return (
        f"key {receipt['key']['kid']} ({receipt['key']['file']}) signed as the head-end that it had stored this and all"
        f" entries before it at {receipt['time']} by its own clock: nobody made or changed them later without that key"
    )


def _consistency_claims(facts: dict[str, Any]) -> tuple[list[str], list[str]]:
    first, second = facts["first"], facts["second"]
    proven = [
        (
            f"the log of gateway {facts['origin']}, epoch {facts['epoch']}, at {second['size']} entries begins with"
            f" exactly the {first['size']} entries that it had before: nothing was changed, removed or put in between"
        ),
        f"of the smaller log, {_signature(first)}",
        f"of the larger log, {_signature(second)}",
    ]
    unproven = [
        "what any entry says",
        "that the gateway's clock was right",
        "that the keys are whose you think: get them from the gateway's owner, not with this file",
        "that no other log was signed with the same key: compare with the checkpoints that others hold",
    ]
    return proven, unproven
