"""Reading, watching and writing without a terminal: against a scripted meter in virtual time, and as pure functions."""

import os
from collections.abc import Awaitable, Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from energybid.agent.cabinet.places import Place, mindful_of_the_agent
from energybid.agent.cabinet.reading import Asked, Look, Reader, Value
from energybid.agent.cabinet.sight import Energy, sight_of, steps
from energybid.agent.cabinet.table import look_lines
from energybid.agent.cabinet.watching import LATEST, Statistics, changed, plain_line, screen
from energybid.agent.cabinet.writing import bounds_text, plain, value_text
from energybid.core.errors import BusDownError, GarbledError, NoReplyError, RefusedError
from energybid.core.ports import BusPlan, Endpoint, MeterPlan, SerialEndpoint
from energybid.core.quantities import Status
from energybid.drivers.modbus.exchange import Failure
from energybid.drivers.modbus.framing import Frame
from energybid.drivers.modbus.map import HOLDING, INPUT, Writable
from energybid.drivers.probe import Prober
from energybid.drivers.profile import compile_profile, parse_profile
from energybid.simulator import virtual
from modbus_peers import LINE, SILENT, TCP, Fate, Peer, framed, reply

METER = b"""
manufacturer = "Test"
model = "T1"
source = [{ title = "this test" }]
max_registers = 20
baudrates = [19200]
parities = ["E"]
timeout = "200 ms"
defaults = { table = "input", type = "uint16" }
block = [{ table = "input", first = 0, count = 20 }, { table = "holding", first = 0, count = 1 }]
quantity = [
  { name = "power", obis = "1-0:1.7.0", register = 0, unit = "W", resolution = "1", scale_by = ["ratio"] },
  { name = "back", obis = "1-0:2.7.0", register = 1, unit = "W", resolution = "1" },
  { name = "voltage-l1", obis = "1-0:32.7.0", register = 2, scale = "0.1", unit = "V", resolution = "0.1" },
  { name = "voltage-l2", obis = "1-0:52.7.0", register = 3, scale = "0.1", unit = "V", resolution = "0.1" },
]
[[factor]]
name = "ratio"
table = "holding"
register = 0
"""
LOADED = parse_profile("t1", METER, source="t1.toml")


def place(endpoint: Endpoint = TCP, *, retries: int = 1, pause_s: float = 0.0, status: Path | None = None) -> Place:
    groups, compiled = compile_profile(LOADED, interval_s=1)
    meter = MeterPlan(
        name="m",
        unit=1,
        timeout_s=0.2,
        retries=retries,
        profile="t1",
        profile_hash=LOADED.sha256,
        groups=groups,
        map=compiled,
    )
    kind = "modbus-rtu" if isinstance(endpoint, SerialEndpoint) else "modbus-tcp"
    bus = BusPlan(name="b", kind=kind, endpoint=endpoint, meters=(meter,), pause_s=pause_s)
    return Place(name="m", where="b", bus=bus, unit=1, loaded=LOADED, meter=meter, status=status)


def play(fate: Fate, scene: Callable[[Reader, Peer], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        where = place(**settings)
        peer = Peer(fate, rtu=where.bus.kind == "modbus-rtu")
        prober = Prober(peer.open_bus, where.target)
        try:
            return await scene(Reader(prober, where, lambda: 1_000_000_000), peer)
        finally:
            await prober.close()

    return virtual.run(main)


async def look(reader: Reader, _peer: Peer) -> Look:
    return await reader.look()


def addresses(frame: Frame) -> bytes:
    """Each register holds 100 and its address; the ratio is 3."""
    first, count = int.from_bytes(frame.pdu[1:3], "big"), frame.pdu[4]
    if frame.pdu[0] == HOLDING:
        return b"\x00\x03"
    return b"".join((100 + first + i).to_bytes(2, "big") for i in range(count))


def answering(frame: Frame) -> list[tuple[float, bytes]]:
    return [(0.02, reply(frame, addresses(frame)))]


def without(*registers: int, code: int = 2) -> Fate:
    """A meter that refuses what touches these input registers."""

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        first, count = int.from_bytes(frame.pdu[1:3], "big"), frame.pdu[4]
        if frame.pdu[0] == INPUT and any(first <= r < first + count for r in registers):
            return [(0.02, framed(frame, bytes((frame.pdu[0] | 0x80, code))))]
        return answering(frame)

    return fate


# ---------------------------------------------------------------- reading


def test_values_factors_registers_and_delays() -> None:
    seen = play(answering, look)
    assert [value.mantissa for value in seen.values] == [300, 101, 102, 103]
    assert [value.raw and value.raw.hex() for value in seen.values] == ["0064", "0065", "0066", "0067"]
    assert [str(asked) for asked in seen.asked] == ["holding 0", "input 0-3"]
    assert [round(asked.delay_s, 3) for asked in seen.asked] == [0.02, 0.02]
    assert (seen.read, seen.whole, seen.time_ms) == (True, True, 1000)


def test_what_is_refused_is_found_and_read_by_itself_from_then_on() -> None:
    async def scene(reader: Reader, peer: Peer) -> tuple[Look, int]:
        seen = await reader.look()
        before = len(peer.requests)
        await reader.look()
        return seen, len(peer.requests) - before

    seen, requests = play(without(1), scene)
    assert [(v.mantissa, v.status, v.exception) for v in seen.values] == [
        (300, Status.OK, None),
        (None, Status.REFUSED, 2),
        (102, Status.OK, None),
        (103, Status.OK, None),
    ]
    assert requests == 4, "ratio, 0, 1, 2-3"
    assert seen.whole


def test_a_dead_meter_costs_its_tries_for_one_request() -> None:
    seen = play(lambda _: SILENT, look)
    assert [asked.error for asked in seen.asked] == ["no reply"] * 2
    assert {value.status for value in seen.values} == {Status.NO_REPLY}
    assert (seen.read, seen.whole, seen.outcome) == (False, False, Failure.NO_REPLY)


def test_a_part_that_is_not_answered_is_missing_and_says_so() -> None:
    seen = play(lambda frame: answering(frame) if frame.pdu[0] == HOLDING else SILENT, look)
    assert not seen.whole
    assert [asked.error for asked in seen.asked] == [None, "no reply", "no reply"]


def test_a_busy_meter_is_asked_again() -> None:
    asked: list[int] = []

    def fate(frame: Frame) -> list[tuple[float, bytes]]:
        asked.append(frame.pdu[0])
        return without(0, code=6)(frame) if asked.count(INPUT) == 1 else answering(frame)

    seen = play(fate, look)
    assert [one.error for one in seen.asked] == [None, "exception 6", None]
    assert seen.whole


def test_noise_is_told_from_silence() -> None:
    seen = play(lambda _: [(0.02, b"\x55\x66\x77")], look, endpoint=LINE)
    assert {asked.error for asked in seen.asked} == {"garbled"}


def test_a_gateways_pause_is_kept() -> None:
    async def scene(reader: Reader, peer: Peer) -> float:
        await reader.look()
        return peer.asked_at[1] - peer.asked_at[0]

    assert play(answering, scene, pause_s=0.5) >= 0.5


def test_raw_registers_are_halved_around_what_is_refused() -> None:
    async def scene(reader: Reader, _peer: Peer) -> list[tuple[int, int, Any]]:
        runs = await reader.registers(INPUT, 0, 8, 4)
        return [(run.first, run.length, run.outcome if isinstance(run.outcome, int) else "read") for run in runs]

    assert play(without(2, 3, 4), scene) == [(0, 2, "read"), (2, 3, 2), (5, 1, "read"), (6, 2, "read")]
    assert play(lambda _: SILENT, scene) == [(0, 4, Failure.NO_REPLY)]


@pytest.mark.parametrize(
    ("outcome", "kind", "text"),
    [
        (Failure.GARBLED, GarbledError, "another rate or parity"),
        (Failure.NO_REPLY, NoReplyError, "no answer within 0.2 s, asked 2 times"),
        (11, NoReplyError, "the gateway does not reach it"),
        (2, RefusedError, "energybid scan"),
    ],
)
def test_reasons(outcome: int, kind: type[Exception], text: str) -> None:
    async def scene(reader: Reader, _peer: Peer) -> Exception:
        return reader.error(outcome)

    error = play(answering, scene)
    assert isinstance(error, kind)
    assert text in str(error)


def test_a_running_agent_is_told_of_where_a_network_meter_is_not_reached(tmp_path: Path) -> None:
    status = tmp_path / "status.json"
    status.write_text("{}")
    now_ns = status.stat().st_mtime_ns + 10**9

    def failing(where: Place) -> str:
        with pytest.raises(BusDownError) as caught, mindful_of_the_agent(where, lambda: now_ns):
            raise BusDownError("refused")
        return str(caught.value)

    assert failing(place(status=status)).startswith("refused; the agent is running")
    assert failing(place(LINE, status=status)) == "refused", "who has a port is known by itself"
    assert failing(place()) == "refused"
    assert failing(place(status=tmp_path / "none.json")) == "refused"
    os.utime(status, (1, 1))
    assert failing(place(status=status)) == "refused"


# ---------------------------------------------------------------- watching


def seen_at(*powers: int | None, at_s: float = 0.0) -> Look:
    values = tuple(
        Value(register, None if power is None else bytes(2), power, Status.OK if power is not None else Status.NO_REPLY)
        for register, power in zip(LOADED.registers, powers, strict=False)
    )
    asked = Asked(INPUT, 0, 4, 0.01 + at_s / 1000, b"" if powers[0] is not None else Failure.NO_REPLY)
    return Look(0, at_s, values, (asked,))


def test_a_watch_of_days_keeps_the_latest_delays_for_its_median_and_the_least_and_greatest_of_all() -> None:
    statistics = Statistics()
    for delay_ms in (500, 1, *[20] * LATEST):
        statistics.add(seen_at(1, at_s=delay_ms - 10))
    assert statistics.facts()["delay_ms"] == [1.0, 20.0, 500.0]
    assert len(statistics._delays_s) == LATEST


def test_statistics() -> None:
    statistics = Statistics()
    for at_s in (0, 1, 9):
        statistics.add(seen_at(1, 2, 3, 4, at_s=at_s))
    statistics.add(seen_at(None, None))
    statistics.lost()
    assert (
        statistics.text() == "5 polls, 2 failed, replies after 10/11/19 ms (min/median/max), 1x bus down, 1x no reply"
    )
    assert statistics.facts() == {
        "polls": 5,
        "failed": 2,
        "requests": 4,
        "errors": {"no reply": 1, "bus down": 1},
        "delay_ms": [10.0, 11.0, 19.0],
    }
    assert Statistics().facts()["delay_ms"] == []


def test_what_has_changed_is_marked() -> None:
    before, now = seen_at(1, 2, 3, 4), seen_at(1, 9, 3, None)
    assert changed(now, before) == {"back", "voltage-l2"}
    assert changed(now, None) == set()
    lines = screen(place(), now, before, Statistics(), size=(80, 24), names=None)
    assert [line.split()[0] for line in lines if line.endswith(" *")] == ["back", "voltage-l2"]


def test_a_small_terminal_says_that_there_is_more() -> None:
    lines = screen(place(), seen_at(1, 2, 3, 4), None, Statistics(), size=(40, 8), names=None)
    assert len(lines) < 8
    assert "... 3 more: choose with --quantity" in lines
    assert all(len(line) < 40 for line in lines)


def test_a_poll_in_one_line() -> None:
    assert plain_line(seen_at(1, 2), None) == "1970-01-01T00:00:00Z power=1W back=2W"
    assert plain_line(seen_at(1, 2), ["back"]) == "1970-01-01T00:00:00Z back=2W"


def test_a_reading_of_which_nothing_was_answered_still_prints() -> None:
    assert "1 request, no reply" in look_lines(place(), seen_at(None))[2]


# ---------------------------------------------------------------- sight


def looks(*powers: tuple[int, int], seconds: float = 10.0) -> list[Look]:
    return [seen_at(*pair, 2300, 2310, at_s=n * seconds) for n, pair in enumerate(powers)]


def test_a_sight_is_the_median_and_knows_power_from_its_two_directions() -> None:
    view = sight_of("m", [*looks((100, 0), (500, 0), (0, 40)), seen_at(None, None)])
    assert view.total_power == 100
    assert sight_of("m", looks((0, 40))).total_power == -40
    assert view.voltage == (230.0, 231.0, None)
    assert view.phases == (0, 1)
    assert view.energy is None, "this meter counts none"
    assert view.apparent_va(0) == 0


COUNTING = METER.replace(b"1-0:1.7.0", b"1-0:16.7.0").replace(
    b'obis = "1-0:2.7.0", register = 1, unit = "W"', b'obis = "1-0:1.8.0", register = 1, unit = "Wh", cumulative = true'
)


def test_counted_and_integrated_energy() -> None:
    loaded = parse_profile("t2", COUNTING, source="t2.toml")

    def at(power: int, counted: int, at_s: float) -> Look:
        values = tuple(Value(r, bytes(2), m, 0) for r, m in zip(loaded.registers, (power, counted), strict=False))
        return Look(0, at_s, values, ())

    course = [at(3600, 10, 0.0), at(7200, 11, 1.0), at(-100, 15, 3.0)]
    # From 3600 to 7200 W in 1 s, from 7200 W to none in 2 s: this meter does not count export.
    assert sight_of("m", course).energy == Energy(
        period_s=3.0, counted_wh=5.0, integrated_wh=3.5, step_wh=1.0, doubt_wh=2.5
    )


def test_a_tariffs_counter_says_nothing_of_the_steps_of_the_whole() -> None:
    tariff = (
        b'{ name = "night", obis = "1-0:1.8.2", register = 5, unit = "Wh", cumulative = true, resolution = "1000" },'
    )
    assert COUNTING.count(b"quantity = [") == 1
    loaded = parse_profile("t3", COUNTING.replace(b"quantity = [", b"quantity = [" + tariff), source="t3.toml")
    values = tuple(Value(register, bytes(2), 1, 0) for register in reversed(loaded.registers))
    assert steps(Look(0, 0.0, values, ()))[1, 8] == 1.0


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("12.5", "12.5"),
        ("-0.001", "-0.001"),
        ("900", "900"),
        ("1/3", "0.3333333"),
        ("0", "0"),
        ("1/1024", "0.0009765625"),
        ("90071992547409931.25", "90071992547409931.25"),
    ],
)
def test_numbers_are_exact_where_they_end(value: str, text: str) -> None:
    assert plain(Fraction(value)) == text
    assert plain(Fraction(0.1)) == "0.1"


def test_bounds_and_values_of_what_may_be_written() -> None:
    share = Writable(
        name="share",
        first=0,
        count=1,
        type="int16",
        little=False,
        swapped=False,
        scale=Fraction(1, 10),
        unit="1",
        minimum=Fraction(-1),
        maximum=Fraction(5, 2),
        safe=Fraction(0),
    )
    assert bounds_text(share) == "share, -1 to 2.5 (safe: 0)"
    assert value_text(share, b"\xff\xf6") == "-1"
