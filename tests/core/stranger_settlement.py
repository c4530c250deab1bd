"""Recomputing a bundle from docs/settlement.md, docs/formats.md and docs/market.md alone: nothing of energybid."""

import hashlib
import tomllib
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any

import plain_baseline
from stranger import cbor, checkpoint, is_int, is_uint, need, receipt, signed
from stranger_proof import continues, disclosed, path

PPM = 100


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def message(name: str, fields: int, data: Any, pem: str) -> list[Any]:
    need(isinstance(data, bytes), "message")
    payload = cbor(signed(data, pem))
    need(isinstance(payload, list) and len(payload) == 1 + fields and payload[0] == f"energybid {name} 1", name)
    return payload[1:]


def settlement(file: bytes, pems: dict[str, str]) -> tuple[list[int], list[int], int]:
    """(Baseline and actual Wh per interval, amount), or Refused; ValueError where the market stated something else."""
    need(len(file) <= 16 << 20, "too long")
    top = cbor(file)
    need(isinstance(top, list) and len(top) == 8 and top[0] == "energybid settlement 1", "no bundle")
    _, raw_round, raw_bid, raw_award, raw_done, raw_statement, raw_inputs, logs = top
    made = message("round", 12, raw_round, pems["market"])
    bid = message("bid", 10, raw_bid, pems["gateway"])
    award = message("award", 9, raw_award, pems["market"])
    statement = message("statement", 10, raw_statement, pems["market"])
    answers = [bid, award, statement]
    if raw_done is not None:
        done = message("dispatch", 7, raw_done, pems["gateway"])
        need(done[3] == sha(raw_award), "confirmation")
        answers.append(done)
    need(all(each[:2] == made[:2] and each[2] == bid[2] for each in answers), "one round, one gateway")
    need(bid[3] == sha(raw_round) and award[3] == sha(raw_bid) and statement[3] == sha(raw_award), "chain")
    need(isinstance(raw_inputs, bytes) and statement[9] == sha(raw_inputs), "inputs")
    need(award[6] == 0, "not awarded")

    inputs = cbor(raw_inputs)
    need(isinstance(inputs, list) and len(inputs) == 8 and inputs[0] == "energybid settlement inputs 1", "inputs")
    _, programme, meter, imports, exports, interval_ms, days, listed = inputs
    need(is_uint(interval_ms) and interval_ms and made[5] % interval_ms == 0, "interval")
    need(days == sorted(set(days)) and [at for at, _ in listed] == sorted({at for at, _ in listed}), "order")
    points: dict[bytes, list[Any]] = {imports: [], exports: []}
    for found, _ in read_logs(logs, bid[2], pems).values():
        read(found, meter, points)
    loads = {at: wh for at, wh in listed if is_int(wh)}
    known = {at: net(points, imports, exports, at, interval_ms) for at in loads}
    need(known == loads, "the loads are not those of the readings")

    at = lambda time_ms: datetime.fromtimestamp(time_ms // 1000, UTC)  # noqa: E731
    number = made[5] // interval_ms
    rules = tomllib.loads(programme.decode())
    baseline, _ = plain_baseline.baseline(
        rules, at(made[4]), interval_ms // 1000, number, {at(time_ms): wh for time_ms, wh in loads.items()},
        {date(1970, 1, 1) + timedelta(day) for day in days}, bid[7],
    )  # fmt: skip
    actual = [loads[made[4] + n * interval_ms] for n in range(number)]
    amount = money(rules["payment"], made, bid, award, interval_ms, zip(baseline, actual, strict=True))
    if (sum(baseline), sum(actual), amount) != tuple(statement[6:9]):
        raise ArithmeticError(f"the market stated {statement[6:9]}, not {sum(baseline), sum(actual), amount}")
    return baseline, actual, amount


Found = dict[int, list[Any]]


def read_logs(logs: Any, origin: str, pems: dict[str, str]) -> dict[bytes, tuple[Found, list[tuple[int, int]]]]:
    """For each epoch its entries by sequence, and (size, time) of the receipts."""
    need(isinstance(logs, list) and 0 < len(logs) <= 64, "logs")
    epochs: dict[bytes, tuple[Found, list[tuple[int, int]]]] = {}
    before: list[Any] = [None, None]
    for log in logs:
        need(isinstance(log, list) and len(log) == 4 and isinstance(log[0], bytes), "log")
        head = checkpoint(signed(log[0], pems["log"]))
        need(head[0] == origin, "another gateway")
        if head[1] == before[1]:
            need(before[2] < head[2] and before[8] < head[8], "order of the parts")
            need(continues(before[2], head[2], path(log[2]), before[3], head[3]), "another history")
        else:
            need(log[2] == b"" and head[1] not in epochs, "parts apart")
        found, receipts = epochs.setdefault(head[1], ({}, []))
        if log[1] is not None:
            stored = receipt(signed(log[1], pems["headend"]))
            need(stored[:4] == head[:4], "receipt")
            receipts.append((head[2], stored[4]))
        need(isinstance(log[3], list) and log[3], "entries")
        last = -1
        for each in log[3]:
            sequence, array = disclosed(each, head[2], head[3])
            need(sequence > last and sequence not in found, "order")
            found[sequence], last = array, sequence
        before = head
    return epochs


def logged(file: bytes, pems: dict[str, str]) -> dict[str, tuple[int, int | None]]:
    """(Sequence, time of the first receipt) of the round's messages that the gateway's log holds."""
    _, raw_round, raw_bid, raw_award, raw_done, raw_statement, _, logs = cbor(file)
    names = {raw_round: "round", raw_bid: "bid", raw_award: "award", raw_statement: "statement"}
    names |= {} if raw_done is None else {raw_done: "confirmation"}
    kinds = ["round", "bid", "award", "confirmation", "statement"]
    told = {}
    for found, receipts in read_logs(logs, cbor(signed(raw_bid, pems["gateway"]))[3], pems).values():
        for sequence, array in sorted(found.items()):
            if array[:2] == [1, 7] and array[4] == 0:
                what = names.get(array[5])
                if what is not None and kinds.index(what) == array[3]:
                    times = [time_ms for size, time_ms in receipts if size > sequence]
                    told.setdefault(what, (sequence, min(times) if times else None))
    return told


def read(found: Found, meter: str, points: dict[bytes, list[Any]]) -> None:
    """Registers of the meter in one log: (time, register, serial, status)."""
    boots = {at: array[3] for at, array in found.items() if array[1] == 1}
    anchors = [(array[3], array[5], array[4]) for array in found.values() if array[1] == 1 and array[6] == 2]
    anchors += [
        (boots.get(array[3]), array[4], array[6]) for array in found.values() if array[1] == 4 and array[7] == 2
    ]
    for array in found.values():
        if array[1] != 3 or found[array[3]][3] != meter:
            continue
        declared = found[array[3]]
        time_ms, mono_ms = array[5], array[9]
        if array[7] != 2:
            mine = [
                (abs(mono_ms - mono), wall + mono_ms - mono) for boot, mono, wall in anchors if boot == boots[array[8]]
            ]
            if not mine:
                continue
            time_ms = min(mine)[1]
        quantities, values = declared[7][array[4]][1], array[10]
        for (obis, unit, exponent, grows), value, mark in zip(
            quantities, values, array[11] or [0] * len(values), strict=True
        ):
            if obis in points and unit == "Wh" and grows and value is not None and mark != 16:
                points[obis].append((time_ms, value * Fraction(10) ** exponent, declared[6], mark))


def register(points: list[Any], at: int, gap_ms: int) -> tuple[int, Fraction] | None:
    """(How many times it began anew before, its value) by a line between the readings around a moment."""
    points = sorted(points, key=lambda point: point[0])
    anew = [n > 0 and (each[3] != 0 or each[2] != points[n - 1][2]) for n, each in enumerate(points)]
    before = [n for n, each in enumerate(points) if each[0] <= at]
    after = [n for n, each in enumerate(points) if each[0] >= at]
    if not before or not after:
        return None
    low, high = points[before[-1]], points[after[0]]
    if high[0] - low[0] > gap_ms or sum(anew[: before[-1] + 1]) != sum(anew[: after[0] + 1]) or high[1] < low[1]:
        return None
    share = Fraction(at - low[0], high[0] - low[0]) if high[0] > low[0] else Fraction(0)
    return sum(anew[: before[-1] + 1]), low[1] * (1 - share) + high[1] * share


def net(points: dict[bytes, list[Any]], imports: bytes, exports: bytes, at: int, interval_ms: int) -> int | None:
    total = Fraction(0)
    for obis, sign in ((imports, 1), (exports, -1)):
        if obis is None:
            continue
        ends = [register(points[obis], moment, interval_ms) for moment in (at, at + interval_ms)]
        if None in ends or ends[0][0] != ends[1][0] or ends[1][1] < ends[0][1]:  # type: ignore[index]
            return None
        total += sign * (ends[1][1] - ends[0][1])  # type: ignore[index]
    return plain_baseline.half_even(total)


def money(terms: Any, made: list[Any], bid: list[Any], award: list[Any], interval_ms: int, pairs: Any) -> int:
    hours = Fraction(interval_ms, 3_600_000)
    awarded = (bid[7] - award[8]) * hours

    def limit(power: Fraction, *, up: bool) -> tuple[Fraction, Fraction]:
        """(Limit, where the step ends) of the step that is left when going up or down from a power."""
        edge = Fraction(bid[8])
        for ticks, power_w, _ in bid[9]:
            if (edge <= power < edge + power_w) if up else (edge < power <= edge + power_w):
                return Fraction(ticks), edge + power_w if up else edge
            edge += power_w
        steps = bid[9]
        if not steps:
            return Fraction(0), power
        return (
            (Fraction(steps[-1][0]), power)
            if power >= edge and (up or power > edge)
            else (Fraction(steps[0][0]), power)
        )

    def worth(wh: Fraction) -> Fraction:
        if made[10] == 0:
            return wh * award[7]
        power, target, total = Fraction(bid[7]), bid[7] - wh / hours, Fraction(0)
        while power != target:
            up = target > power
            ticks, ends = limit(power, up=up)
            ends = target if ends == power else (min(ends, target) if up else max(ends, target))
            total += (power - ends) * ticks
            power = ends
        return total * hours

    total = Fraction(0)
    for baseline, actual in pairs:
        delivered = Fraction(baseline - actual)
        way = 1 if awarded >= 0 else -1
        paid_for = way * min(way * delivered, way * awarded) if terms["beyond"] == "unpaid" else delivered
        total += worth(paid_for)
        if way * delivered < way * awarded:
            total -= abs(worth(awarded) - worth(delivered)) * Fraction(terms["shortfall"])
    return plain_baseline.half_even(total / 1_000_000)
