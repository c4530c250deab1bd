"""Recordings of meters: explored, written, read, served again, and explored again with the same result."""

import struct
from collections.abc import Callable
from typing import Any

import pytest
from energybid.core.errors import ConfigurationError, NoReplyError
from energybid.drivers.dump import (
    Dump,
    Explorer,
    Refused,
    Run,
    Span,
    answer,
    mask,
    merge,
    parse_span,
    profile_spans,
    serial_spans,
    sunspec_serial,
)
from energybid.drivers.dump_file import DumpFile, encode, file_name, parse
from energybid.drivers.modbus import objects
from energybid.drivers.probe import Prober
from energybid.drivers.profile import load_profile
from energybid.drivers.target import parse_target
from energybid.simulator.bus import Station
from energybid.simulator.recorded import Recorded
from energybid.simulator.virtual import run
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_bench import HOST, bench, meter, scripted

HOLDING, INPUT = 3, 4
TARGET = parse_target(HOST)


class Watch:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[tuple[Span, float, float]] = []

    def progress(self, span: Span, done: float, left_s: float) -> None:
        self.steps.append((span, done, left_s))


async def explored(station: Station, spans: tuple[Span, ...], most: int, watch: Watch | None = None) -> Dump:
    prober = Prober(bench(station).open, TARGET)
    explorer = Explorer(prober, station.unit, 0.3, watch or Watch())
    try:
        await explorer.identification()
        await explorer.explore(spans, most)
        return explorer.finish()
    finally:
        await prober.close()


def record(station: Station, *spans: Span, most: int = 20, watch: Watch | None = None) -> Dump:
    return run(lambda: explored(station, spans, most, watch))


def device(
    readable: set[int], cuts: set[int], *, most: int = 125, only: int = INPUT, code: int = 2, pairs: bool = False
) -> Callable[[bytes], bytes]:
    """Readable registers of one table, addresses at which a read must begin anew, a limit."""

    def respond(pdu: bytes) -> bytes:
        if pdu[0] != only:
            return bytes((pdu[0] | 0x80, 1))
        _, first, count = struct.unpack(">BHH", pdu)
        wanted = range(first, first + count)
        if count > most or not readable.issuperset(wanted) or cuts.intersection(wanted[1:]) or (pairs and count % 2):
            return bytes((pdu[0] | 0x80, code)) if code else b""
        return bytes((pdu[0], 2 * count)) + b"".join(struct.pack(">H", 7 * address & 0xFFFF) for address in wanted)

    return respond


# ---------------------------------------------------------------- exploring


def test_what_can_be_read_and_what_is_refused_is_found_exactly() -> None:
    station = scripted(3, device(set(range(10, 17)) | {30}, set()))
    dump = record(station, Span(INPUT, 0, 40), Span(HOLDING, 0, 9))
    assert [run.span for run in dump.runs] == [Span(INPUT, 10, 17), Span(INPUT, 30, 31)]
    assert dump.runs[1].data == struct.pack(">H", 210)
    assert dump.refused == [
        Refused(Span(HOLDING, 0, 9), 1),
        Refused(Span(INPUT, 0, 10), 2),
        Refused(Span(INPUT, 17, 30), 2),
        Refused(Span(INPUT, 31, 40), 2),
    ]
    assert (dump.objects, dump.objects_refused) == ({}, 1)


def test_an_identification_that_is_none_costs_nothing_else() -> None:
    registers = device({1, 2}, set())

    def respond(pdu: bytes) -> bytes:  # more is said to follow: the same again
        return bytes((0x2B, 0x0E, 1, 1, 0xFF, 0, 1, 0, 2)) + b"Hi" if pdu[0] == 0x2B else registers(pdu)

    dump = record(scripted(3, respond), Span(INPUT, 1, 3))
    assert [run.span for run in dump.runs] == [Span(INPUT, 1, 3)]
    assert (dump.objects, dump.objects_refused) == ({0: "Hi"}, None)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("holding:0-999", Span(HOLDING, 0, 1000)),
        ("input:00342", Span(INPUT, 342, 343)),
        ("holding:0x5000-0X5007", Span(HOLDING, 0x5000, 0x5008)),
        ("input:65535", Span(INPUT, 65535, 65536)),
    ],
)
def test_registers_as_people_write_them(text: str, span: Span) -> None:
    assert parse_span(text) == span
    assert parse_span(str(span)) == span


def test_a_table_that_the_meter_does_not_have_costs_one_request() -> None:
    watch = Watch()
    record(scripted(3, device({1}, set())), Span(HOLDING, 0, 1000), most=50, watch=watch)
    assert len(watch.steps) == 1


def test_a_meter_that_answers_only_pairs_is_read_in_pairs() -> None:
    dump = record(scripted(3, device(set(range(100)), set(), pairs=True, most=8)), Span(INPUT, 0, 30), most=30)
    assert not dump.refused
    assert sum(run.span.end - run.span.first for run in dump.runs) == 30


def test_progress_grows_to_the_end() -> None:
    watch = Watch()
    record(scripted(3, device(set(range(60)), set())), Span(INPUT, 0, 80), most=20, watch=watch)
    shares = [done for _, done, _ in watch.steps]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert shares[-1] > 0.9
    assert str(watch.steps[0][0]) == "input:0-19"


@pytest.mark.parametrize("code", [5, 6, 11])
def test_a_meter_that_is_busy_is_asked_again(code: int) -> None:
    known = device(set(range(100)), set())
    turns = iter([bytes((0xAB, 1)), bytes((0x84, code))])
    dump = record(scripted(3, lambda pdu: next(turns, None) or known(pdu)), Span(INPUT, 0, 10))
    assert [run.span for run in dump.runs] == [Span(INPUT, 0, 10)]


def test_silence_is_recorded_as_such_and_a_meter_that_is_gone_ends_it() -> None:
    dump = record(scripted(3, device({0, 1, 2, 3}, set(), code=0)), Span(INPUT, 0, 8), most=4)
    assert dump.refused == [Refused(Span(INPUT, 4, 8), 0)]
    with pytest.raises(NoReplyError, match="does not answer"):
        record(scripted(3, lambda _: b""), Span(INPUT, 0, 400), most=4)


READABLE = st.sets(st.integers(0, 24), max_size=20)


@pytest.mark.untraced
@given(readable=READABLE, cuts=READABLE, limit=st.integers(1, 24), most=st.integers(1, 24), whole=st.booleans())
@settings(max_examples=40)
def test_a_dump_of_a_served_dump_is_the_same_dump(
    readable: set[int], cuts: set[int], limit: int, most: int, *, whole: bool
) -> None:
    spans = (Span(INPUT, 0, 25),) if whole else (Span(INPUT, 3, 12), Span(INPUT, 12, 21))
    original, watch = device(readable, cuts, most=limit), Watch()

    async def twice() -> tuple[Dump, Dump, Dump]:
        first = await explored(scripted(3, original), spans, most, watch)
        again = parse("dump.toml", encode(first).encode())
        return first, again, await explored(Station(name="r", unit=3, device=Recorded(again)), spans, most)

    first, again, second = run(twice)
    asked = {address for span in spans for address in range(span.first, span.end)}
    found = {address for one in first.runs for address in range(one.span.first, one.span.end)}
    assert found == readable & asked
    assert first == again == second
    for (function, begin, end), *_ in watch.steps:
        pdu = struct.pack(">BHH", function, begin, end - begin)
        assert answer(again, pdu)[0] == original(pdu)[0]


def test_a_simulated_meter_of_every_kind_survives_the_round_trip() -> None:
    for name in ("eastron-sdm630", "carlo-gavazzi-em340"):
        loaded = load_profile(name)
        first = record(meter(5, name, delay_s=0.0), *profile_spans(loaded), most=loaded.profile.max_registers)
        mask(first, serial_spans(loaded))
        served = Station(name="r", unit=5, device=Recorded(first))
        again = record(served, *profile_spans(loaded), most=loaded.profile.max_registers)
        mask(again, serial_spans(loaded))
        assert again == first
        wanted = {(r.function, address) for r in loaded.registers for address in range(r.first, r.end)}
        assert wanted <= {(s.function, address) for s, _ in first.runs for address in range(s.first, s.end)}


def test_a_recorded_meter_says_what_it_said_of_itself() -> None:
    said = {0: "Maker", 1: "EX-3", 2: "V1"}
    original = scripted(3, lambda pdu: objects.reply(said) if pdu[0] == 0x2B else bytes((pdu[0] | 0x80, 2)))
    first = record(original, Span(INPUT, 0, 2))
    assert (first.objects, first.objects_refused) == (said, None)
    assert record(Station(name="r", unit=3, device=Recorded(first)), Span(INPUT, 0, 2)) == first


def test_spans_that_overlap_become_one_and_those_that_touch_do_not() -> None:
    spans = [Span(INPUT, 5, 9), Span(INPUT, 0, 5), Span(HOLDING, 0, 9), Span(INPUT, 7, 12), Span(INPUT, 8, 9)]
    assert merge(spans) == [Span(HOLDING, 0, 9), Span(INPUT, 0, 5), Span(INPUT, 5, 12)]


# ---------------------------------------------------------------- answering


DUMP = Dump(
    max_registers=4,
    runs=[Run(Span(INPUT, 10, 16), bytes(range(12)))],
    refused=[Refused(Span(INPUT, 16, 20), 4), Refused(Span(INPUT, 40, 44), 0), Refused(Span(HOLDING, 0, 9), 1)],
)


@pytest.mark.parametrize(
    ("pdu", "reply"),
    [
        ("04 000B 0002", "04 04 0203 0405"),
        ("04 000A 0005", "84 03"),
        ("04 000A 0000", "84 03"),
        ("04 000F 0002", "84 04"),
        ("04 0028 0001", ""),
        ("04 0100 0001", "84 02"),
        ("04 000A", "84 03"),
        ("03 0000 0001", "83 01"),
        ("06 0000 0001", "86 01"),
        ("2B 0E 01 00", "2B 0E 01 01 00 00 00"),
        ("2B 0D 01 00", "AB 03"),
    ],
)
def test_a_recording_answers_as_the_meter_did(pdu: str, reply: str) -> None:
    assert answer(DUMP, bytes.fromhex(pdu)) == bytes.fromhex(reply)


def test_a_recording_without_identification_refuses_it_or_is_silent() -> None:
    assert answer(Dump(objects_refused=1), objects.request()) == b"\xab\x01"
    assert answer(Dump(objects_refused=0), objects.request()) == b""


@given(st.binary(min_size=1, max_size=12))
@settings(max_examples=200)
def test_a_recording_answers_any_request_within_a_pdu(pdu: bytes) -> None:
    assert len(answer(DUMP, pdu)) <= 253


# ---------------------------------------------------------------- blanks


def test_serial_numbers_are_replaced_by_zeros_and_it_is_said() -> None:
    dump = Dump(runs=[Run(Span(INPUT, 10, 16), bytes(range(1, 13)))])
    mask(dump, [Span(INPUT, 12, 14), Span(HOLDING, 12, 14), Span(INPUT, 90, 92)])
    assert dump.runs[0].data == bytes((1, 2, 3, 4, 0, 0, 0, 0, 9, 10, 11, 12))
    assert dump.masked == [(Span(INPUT, 12, 14), "serial number")]


def test_the_sunspec_serial_number_is_where_the_common_model_has_it() -> None:
    data = b"SunS" + struct.pack(">HH", 1, 66) + b"m" * 32 + b"d" * 32 + b"o" * 16 + b"v" * 16 + b"S" * 32 + b"\x00\x01"
    dump = Dump(runs=[Run(Span(HOLDING, 39_998, 40_000 + len(data) // 2), bytes(4) + data)])
    mask(dump, sunspec_serial(dump))
    assert b"S" not in dump.runs[0].data[8:]
    assert dump.runs[0].data.count(b"v") == 16
    assert dump.runs[0].data.endswith(b"\x00\x01")


# ---------------------------------------------------------------- the file


def test_the_file_is_named_after_model_hardware_and_firmware() -> None:
    dump = Dump(manufacturer="Eastron", model="SDM630-Modbus V2", hardware="1.0", firmware="2.05 (b)")
    assert file_name(dump) == "eastron-sdm630-modbus-v2_1.0_2.05-b.toml"
    assert file_name(Dump(manufacturer="../..", model="/", hardware="", firmware="ü")) == "unknown_unknown_unknown.toml"


def test_the_file_has_eight_registers_on_a_line() -> None:
    text = encode(DUMP)
    assert '  "00010: 0001 0203 0405 0607 0809 0a0b",\n' in text
    assert text.count("[[refused]]") == 3


TEXT = st.text(min_size=1, max_size=12)


@given(maker=TEXT, firmware=TEXT, said=st.dictionaries(st.integers(0, 255), st.text(max_size=9), max_size=3))
@settings(max_examples=60)
def test_any_text_survives_the_file(maker: str, firmware: str, said: dict[int, str]) -> None:
    dump = Dump(manufacturer=maker, firmware=firmware, objects=said, masked=[(Span(INPUT, 1, 2), maker)])
    assert parse("dump.toml", encode(dump).encode()) == dump


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("format = 1", "format = 2", "format"),
        ('"00010: 0001', '"00011: 0001', "should begin with 00010"),
        ('"00010: 0001', '"10: 0001', "run[0].words[0]"),
        ("max_registers = 4", "max_registers = 0", "max_registers"),
        ("[objects]", "colour = 1\n[objects]", "colour: no such key"),
        ("[objects] # device identification", '[objects]\nabc = "x"', "objects: keys are numbers"),
        ("[objects] # device identification", '[objects]\n256 = "x"', "objects: keys are numbers"),
        ("first = 10", "first = 65531", "should begin with 65531"),
        ("code = 4", "code = 400", "refused[0].code"),
    ],
)
def test_faults_in_the_file_are_named(old: str, new: str, fault: str) -> None:
    text = encode(DUMP)
    assert old in text
    with pytest.raises(ConfigurationError) as caught:
        parse("dump.toml", text.replace(old, new, 1).encode())
    assert fault in str(caught.value)


def test_registers_that_are_there_twice_are_named() -> None:
    run = Run(Span(INPUT, 10, 12), bytes(4))
    with pytest.raises(ConfigurationError, match="input:10-11 is there twice"):
        parse("dump.toml", encode(Dump(runs=[run, run])).encode())
    with pytest.raises(ConfigurationError, match="longer than"):
        parse("dump.toml", b"#" * (5 << 20))
    end = Dump(runs=[Run(Span(INPUT, 65_535, 65_537), bytes(4))])
    with pytest.raises(ConfigurationError, match="behind register 65535"):
        parse("dump.toml", encode(end).encode())


@given(st.binary(max_size=60), st.integers(0, 200))
@settings(max_examples=150)
def test_a_hostile_file_is_refused_or_read(noise: bytes, at: int) -> None:
    data = encode(DUMP).encode()
    for hostile in (noise, data[:at] + noise + data[at:], data[: len(data) - at]):
        try:
            parse("dump.toml", hostile)
        except ConfigurationError as error:
            assert "dump.toml" in str(error)  # noqa: PT017  either it is read or it is refused


def test_the_models_fields_are_the_files_keys() -> None:
    written: dict[str, Any] = __import__("tomllib").loads(encode(DUMP))
    assert set(written) <= set(DumpFile.model_fields)
