"""What the extended profile says: factors that the meter holds, byte order, fingerprints, registers to write."""

import itertools
import pickle
import re
import struct
from fractions import Fraction
from random import Random
from typing import Any

import pytest
from energybid.core.errors import ConfigurationError, NoReplyError
from energybid.core.ports import Counter
from energybid.core.quantities import MANTISSA_MAX, Status
from energybid.drivers.modbus.decode import (
    decode_writable,
    decoder,
    encode,
    encode_writable,
    factor_value,
    group_decoder,
    in_order,
    scaled_decoder,
)
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.map import TYPES, Field, ModbusMap, Request
from energybid.drivers.profile import LoadedProfile, compile_profile, parse_profile
from energybid.simulator.household import Household
from energybid.simulator.meters import Meter
from energybid.simulator.virtual import run
from energybid.simulator.world.meters import WorldMeter
from hypothesis import given, settings
from hypothesis import strategies as st
from modbus_peers import Peer, bus_plan, framed, reply

HEAD = """
manufacturer = "Test"
model = "Test"
source = [{ title = "this test" }]
max_registers = 20
baudrates = [9600]
parities = ["N"]
timeout = "1 s"
defaults = { table = "holding", type = "uint16" }
block = [{ table = "holding", first = 0, count = 10 }, { table = "holding", first = 100, count = 30 }]
not_available = { uint16 = ["FFFF"] }
"""
FACTORS = """
quantity = [
  { name = "power", obis = "1-0:16.7.0", register = 100, type = "int16", scale = "-0.5", unit = "W", resolution = "1", scale_by = ["ct", "exponent"] },
  { name = "voltage", obis = "1-0:32.7.0", register = 101, unit = "V", resolution = "0.1", scale = "0.1" },
  { name = "energy", obis = "1-0:1.8.0", register = 102, type = "uint32", unit = "Wh", resolution = "10", cumulative = true, scale_by = ["ct"] },
]
[[factor]]
name = "ct"
register = 3
scale = "0.1"
[[factor]]
name = "exponent"
register = 110
type = "int16"
kind = "power-of-ten"
"""  # noqa: E501


def parse(body: str, head: str = HEAD) -> LoadedProfile:
    return parse_profile("test", (head + body).encode(), source="test.toml")


def faults(body: str, head: str = HEAD) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(body, head)
    return [fault.removeprefix("test.toml: ") for fault in caught.value.faults]


def compile_(loaded: LoadedProfile, *names: str) -> ModbusMap:
    return compile_profile(loaded, interval_s=1, quantities=list(names) or None)[1]


# ---------------------------------------------------------------- factors


def replies(ct: int, exponent: int, power: int = 7, energy: int = 333) -> list[bytes | int]:
    values = struct.pack(">hHI", power, 2301, energy)
    return [struct.pack(">H", ct), values.ljust(20, b"\0") + struct.pack(">h", exponent)]


def test_factors_are_read_with_the_group_that_needs_them_and_only_then() -> None:
    loaded = parse(FACTORS)
    whole = compile_(loaded)
    assert [(r.first, r.count, len(r.fields), [f.name for f in r.factors]) for r in whole.groups[0]] == [
        (3, 1, 0, ["ct"]),
        (100, 11, 3, ["exponent"]),
    ]
    assert pickle.loads(pickle.dumps(whole)) == whole
    assert [(r.first, r.count) for r in compile_(loaded, "voltage").groups[0]] == [(101, 1)]
    assert [(r.first, r.count) for r in compile_(loaded, "energy").groups[0]] == [(3, 1), (102, 2)]


def test_values_are_raw_times_scale_times_factors() -> None:
    decode = group_decoder(compile_(parse(FACTORS)).groups[0])
    assert decode(replies(ct=300, exponent=1)) == ([-1050, 2301, 999], None)  # 7 × -0.5 × 30 × 10; 333 × 30 / 10
    assert decode(replies(ct=10, exponent=0)) == ([-4, 2301, 33], None)  # -3.5 → -4 is even
    assert decode(replies(ct=5, exponent=0)) == ([-2, 2301, 17], None)  # -1.75; 16.65
    assert decode(replies(ct=300, exponent=-2, power=-200)) == ([30, 2301, 999], None)


@settings(max_examples=100)
@given(st.integers(1, 0xFFFE), st.integers(-10, 10), st.integers(-(2**15), 2**15 - 1), st.integers(0, 2**32 - 1))
def test_scaled_values_are_exact_half_even(ct: int, exponent: int, power: int, energy: int) -> None:
    decode = group_decoder(compile_(parse(FACTORS)).groups[0])
    ratio = Fraction(ct, 10)
    expected = [round(power * Fraction(-1, 2) * ratio * Fraction(10) ** exponent), 2301, round(energy * ratio / 10)]
    assert decode(replies(ct, exponent, power, energy)) == (expected, None)


@pytest.mark.parametrize(
    ("ct", "exponent", "status"),
    [
        (0, 0, [3, 0, 3]),
        (0xFFFF, 0, [3, 0, 3]),
        (10, 11, [3, 0, 0]),
        (10, -11, [3, 0, 0]),
        (10, -0x8000, [3, 0, 0]),
        (0, 11, [3, 0, 3]),
    ],
)
def test_what_is_no_factor_gives_a_status_and_never_a_number(ct: int, exponent: int, status: list[int]) -> None:
    decode = group_decoder(compile_(parse(FACTORS)).groups[0])
    values, states = decode(replies(ct, exponent))
    assert list(states or ()) == status
    assert [value is None for value in values] == [state > 0 for state in status]


def test_a_factor_that_was_not_read_passes_its_status_on() -> None:
    decode = group_decoder(compile_(parse(FACTORS)).groups[0])
    good = replies(ct=300, exponent=1)
    assert decode([Status.REFUSED, good[1]]) == ([None, 2301, None], [Status.REFUSED, 0, Status.REFUSED])
    assert decode([good[0], Status.NO_REPLY]) == ([None] * 3, [Status.NO_REPLY] * 3)
    assert decode(good) == ([-1050, 2301, 999], None)


def test_a_factor_that_changes_is_used_at_once() -> None:
    request = compile_(parse(FACTORS), "energy").groups[0][1]
    scaled = scaled_decoder(request)
    assert scaled is not None
    data = struct.pack(">I", 500)
    assert scaled(data, {"ct": struct.pack(">H", 10)}) == ([50], None)
    assert scaled(data, {"ct": struct.pack(">H", 20)}) == ([100], None)
    assert scaled(data, {}) == ((None,), (Status.NOT_AVAILABLE,))
    assert scaled(data, {"ct": struct.pack(">H", 20)}) == ([100], None)
    assert scaled_decoder(compile_(parse(FACTORS), "voltage").groups[0][0]) is None


def test_floats_may_be_factors() -> None:
    body = (
        FACTORS.replace('register = 3\nscale = "0.1"', 'register = 3\ntype = "float32"')
        .replace('type = "int16"\nkind', 'type = "float32"\nkind')
        .replace("register = 110", "register = 106")
    )
    decode = group_decoder(compile_(parse(body), "power").groups[0])
    for ct, exponent in [(40.0, 0.5), (float("nan"), 0.0), (float("inf"), 0.0), (-2.0, 0.0), (40.0, 1.0)]:
        data = struct.pack(">h10x", 7) + struct.pack(">f", exponent)
        good = (ct, exponent) == (40.0, 1.0)
        assert decode([struct.pack(">f", ct), data]) == (([-1400], None) if good else ([None], [Status.NOT_AVAILABLE]))


def test_the_driver_multiplies_and_passes_on_what_happened_to_the_factor() -> None:
    async def main() -> None:
        registers = {3: 300, 100: 7, 101: 2301, 102: 0, 103: 333, 110: 1}
        fate = {"refused": False, "silent": False}

        def answer(frame: Any) -> list[tuple[float, bytes]]:
            first, count = struct.unpack(">HH", frame.pdu[1:5])
            if first == 3 and fate["refused"]:
                return [(0, framed(frame, bytes((0x83, 2))))]
            if first == 100 and fate["silent"]:
                return []
            words = [registers.get(a, 0) for a in range(first, first + count)]
            return [(0, reply(frame, struct.pack(f">{count}H", *words)))]

        peer = Peer(answer)
        plan = bus_plan(profile=(HEAD + FACTORS).encode())
        driver = open_driver(peer.platform(), plan)
        meter = plan.meters[0]
        sample = await driver.poll(meter, 0)
        assert (sample.values, sample.status) == ((-1050, 2301, 999), None)
        fate["refused"] = True
        sample = await driver.poll(meter, 0)
        assert (sample.values, sample.status) == ((None, 2301, None), (2, 0, 2))
        fate.update(refused=False, silent=True)
        with pytest.raises(NoReplyError):
            await driver.poll(meter, 0)
        await driver.close()

    run(main)


def test_simulated_meters_hold_factors() -> None:
    loaded = parse(FACTORS)
    requests = compile_(loaded).groups[0]
    reads = [struct.pack(">BHH", r.function, r.first, r.count) for r in requests]
    now = [5000.0]
    world = WorldMeter(loaded, Random(1), lambda: now[0])
    values, status = group_decoder(requests)([world.respond(read, 0)[2:] for read in reads])
    assert status is None
    assert tuple(values) == world.answered(0, 9000)[-1].mantissas
    site = Household("x")
    values, status = group_decoder(requests)([Meter(loaded, site).respond(read, 7)[2:] for read in reads])
    state = site.state(7)
    assert status is None
    assert abs((values[0] or 0) - Fraction(sum(state.power_mw), 1000)) <= 1
    assert values[2] == sum(state.import_uj) // 3_600_000_000 // 10


# ---------------------------------------------------------------- faults


def test_faults_of_factors_are_reported_at_once() -> None:
    body = FACTORS.replace('scale_by = ["ct"]', 'scale_by = ["ct", "pt", "ct"]').replace(
        'name = "exponent"', 'name = "e"'
    )
    assert faults(body) == [
        "factor[1].name: no quantity has e in its scale_by",
        "quantity[0].scale_by: no factor 'exponent'; there are ct, e",
        "quantity[2].scale_by: no factor 'pt'; there are ct, e",
        "quantity[2].scale_by: names a factor twice",
    ]
    assert (
        faults(FACTORS.split("[[factor]]", maxsplit=1)[0])[0] == "quantity[0].scale_by: no factor 'ct'; there is none"
    )
    assert (
        faults(FACTORS.replace('name = "exponent"', 'name = "ct"'))[0] == "factor[1].name: ct is also that of factor[0]"
    )
    assert faults(FACTORS.replace("register = 3\n", "register = 50\n").replace("register = 110", "register = 103")) == [
        "factor[0].register: holding register 50 is in no block that may be read",
        "factor[1].register: holding register 103 overlaps quantity[2] (energy)",
    ]


def test_a_counter_with_factors_rolls_over_where_the_file_says() -> None:
    def counter(keys: str) -> Counter | None:
        loaded = parse_profile("test", (HEAD + FACTORS.replace("cumulative = true", keys)).encode(), source="test.toml")
        return next(register.counter for register in loaded.registers if register.quantity.cumulative)

    assert counter('cumulative = true, rollover = "100"') == Counter(rollover=10, word=None)
    assert counter("cumulative = true") is None


def test_a_guard_says_what_its_register_holds() -> None:
    guard = FACTORS.replace('kind = "power-of-ten"', 'kind = "guard"\nequals = [-1, 7]')
    loaded = parse_profile("test", (HEAD + guard).encode(), source="test.toml")
    factor = loaded.factors[-1]
    found = [factor_value(factor, bytes.fromhex(data)) for data in ("0007", "FFFF", "0000", "8000")]
    assert found == [1, 1, None, None]
    fault = "equals: belongs to a guard, and a guard needs it"
    assert faults(guard.replace("\nequals = [-1, 7]", "")) == [f"factor[1].{fault}"]
    assert faults(guard.replace('"guard"', '"multiplier"')) == [f"factor[1].{fault}"]
    limit = '[[writable]]\nname = "limit"\nregister = 9\nunit = "W"\nminimum = "0"\nmaximum = "1"\nguarded_by = ["ct"]'
    assert faults(guard + limit) == ["writable[0].guarded_by: no guard 'ct'"]


def test_scales_that_can_not_be() -> None:
    body = FACTORS.replace("cumulative = true", 'cumulative = true, scale = "-1", rollover = "100"')
    assert faults(body) == [
        "quantity[2].scale: a cumulative quantity only grows; its scale can not be negative",
    ]
    assert faults(FACTORS.replace('"-0.5"', '"0"')) == ["quantity[0].scale: must not be 0 (found '0')"]
    missing = HEAD.replace('table = "holding", type = "uint16"', "")
    assert "factor[0].type: is missing; write it here or in [defaults]" in faults(FACTORS, missing)


# ---------------------------------------------------------------- numbers in every order


@settings(max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(TYPES)), st.integers(-(2**15), 2**15 - 1)), min_size=1, max_size=5),
    st.booleans(),
    st.booleans(),
)
def test_words_and_bytes_in_any_order(numbers: list[tuple[str, int]], little: bool, swap: bool) -> None:  # noqa: FBT001
    fields, data, expected = [], b"", []
    for kind, number in numbers:
        value = abs(number) if kind.startswith("u") else number
        fields.append(Field(offset=len(data) // 2, type=kind, little=little, swapped=swap, numerator=10, denominator=1))
        data += in_order(struct.pack(">" + TYPES[kind].code, value), little=little, swap=swap)
        expected.append(10 * value)
        assert encode(fields[-1], 10 * value) == data[2 * fields[-1].offset :]
    assert decoder(Request(function=3, first=0, count=len(data) // 2, fields=tuple(fields)))(data) == (expected, None)


def test_bytes_in_both_orders_in_one_reply() -> None:
    fields = (
        Field(offset=0, type="uint32", little=False, swapped=True, numerator=1, denominator=1),
        Field(offset=2, type="uint32", little=False, numerator=1, denominator=1),
    )
    decode = decoder(Request(function=3, first=0, count=4, fields=fields))
    assert decode(bytes.fromhex("0100 0200 0001 0002")) == ((0x00010002, 0x00010002), None)


@settings(max_examples=200)
@given(st.floats(allow_nan=False, allow_infinity=False, width=64), st.sampled_from(["1", "1000", "0.1", "-10", "0.3"]))
def test_doubles_are_exact(value: float, factor: str) -> None:
    ratio = Fraction(factor)
    field = Field(offset=0, type="float64", little=False, numerator=ratio.numerator, denominator=ratio.denominator)
    exact = round(Fraction(value) * ratio)
    values, status = decoder(Request(function=3, first=0, count=4, fields=(field,)))(struct.pack(">d", value))
    if -(2**63) <= exact <= MANTISSA_MAX:
        assert (list(values), status) == ([exact], None)
    else:
        assert (list(values), list(status or ())) == ([None], [Status.OVERFLOW])


@settings(max_examples=100)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(1, 2**40), st.sampled_from([1, -1]))
def test_floats_times_any_integer_are_exact(value: float, number: int, sign: int) -> None:
    field = Field(offset=0, type="float32", little=False, numerator=sign * number, denominator=1)
    exact = round(Fraction(value) * sign * number)
    values, _ = decoder(Request(function=3, first=0, count=2, fields=(field,)))(struct.pack(">f", value))
    assert values[0] == (exact if -(2**63) <= exact <= MANTISSA_MAX else None)


# ---------------------------------------------------------------- fingerprints

FINGERPRINTS = (
    FACTORS
    + """
[identification]
serial_number = { table = "holding", register = 112, type = "text", count = 3 }
[[identification.fingerprint]]
table = "holding"
register = 500
type = "uint16"
equals = [112, 113]
about = "meter code"
[[identification.fingerprint]]
table = "input"
register = 70
type = "float32"
word_order = "little"
between = [45, 65]
about = "frequency"
[[identification.fingerprint]]
table = "holding"
register = 120
type = "text"
count = 4
byte_order = "little"
text = "SDM"
about = "model"
"""
)


def test_fingerprints_match_what_the_model_holds() -> None:
    loaded = parse(FINGERPRINTS)
    code, frequency, text = loaded.fingerprints
    assert [(f.function, f.first, f.count) for f in loaded.fingerprints] == [(3, 500, 1), (4, 70, 2), (3, 120, 4)]
    assert code.matches(b"\x00\x71")
    assert not code.matches(b"\x71\x00")
    assert frequency.matches(in_order(struct.pack(">f", 49.98), little=True, swap=False))
    for wrong in (44.9, 65.1, float("nan"), float("inf")):
        assert not frequency.matches(in_order(struct.pack(">f", wrong), little=True, swap=False))
    assert text.matches(b"DS6M03\0\0")
    assert not text.matches(b"SDM630\0\0")
    meter = Meter(loaded, Household("x"), serial_number=12345)
    for known in loaded.fingerprints:
        answer = meter.respond(struct.pack(">BHH", known.function, known.first, known.count), 0)
        assert known.matches(answer[2:]), known.about
    assert meter.respond(struct.pack(">BHH", 3, 112, 3), 0)[2:] == b"12345\0"


def test_faults_of_fingerprints() -> None:
    body = (
        FINGERPRINTS.replace("equals = [112, 113]", "equals = [112]\nbetween = [1, 2]\ncount = 2")
        .replace("between = [45, 65]", "between = [65, 45]")
        .replace("count = 4\n", "")
        .replace("register = 120", "register = 65535")
        .replace('text = "SDM"', "equals = [1]")
    )
    assert faults(body) == [
        "identification.fingerprint[0].equals: a uint16 has equals or between, one of them",
        "identification.fingerprint[0].count: uint16 has 1 registers; leave it out",
        "identification.fingerprint[1].between: write the lesser first",
        "identification.fingerprint[2].equals: a text has text, one of them",
        "identification.fingerprint[2].count: is missing; a text says how many registers it has",
    ]
    assert faults(
        FINGERPRINTS.replace("register = 500", "register = 65535").replace('"uint16"\nequals', '"int32"\nequals')
    ) == ["identification.fingerprint[0].register: ends behind register 65535"]


# ---------------------------------------------------------------- registers to write

WRITABLE = (
    FACTORS
    + """
[[writable]]
name = "limit"
register = 300
type = "int32"
word_order = "little"
scale = "-0.5"
unit = "W"
minimum = "-1000"
maximum = "2000.5"
safe = "0"
[[writable]]
name = "share"
register = 302
type = "float32"
unit = "1"
minimum = "0"
maximum = "1"
"""
)


def test_writables_are_encoded_within_their_bounds() -> None:
    limit, share = compile_(parse(WRITABLE)).writables
    assert (limit.first, limit.count, limit.safe, share.safe) == (300, 2, 0, None)
    assert encode_writable(limit, Fraction(-1000)) == bytes.fromhex("07D0 0000")
    assert decode_writable(limit, bytes.fromhex("07D0 0000")) == -1000
    assert encode_writable(share, Fraction(1, 4)) == struct.pack(">f", 0.25)
    assert decode_writable(share, struct.pack(">f", float("nan"))) is None
    with pytest.raises(ValueError, match=r"limit may be -1000 to 2000.5 W, not 2001"):
        encode_writable(limit, Fraction(2001))
    with pytest.raises(ValueError, match=r"limit is written in steps of -0.5 W"):
        encode_writable(limit, Fraction(1, 4))


def test_faults_of_writables() -> None:
    body = (
        WRITABLE.replace('"2000.5"', '"2000.2"')
        .replace('safe = "0"', 'safe = "-1001"')
        .replace('type = "float32"\nunit = "1"', 'unit = "W"')
        .replace('minimum = "0"', 'minimum = "-1"')
        .replace('maximum = "1"', 'maximum = "-2"')
        .replace('name = "share"', 'name = "limit"')
        .replace("register = 300", "register = 65535")
    )
    assert faults(body) == [
        "writable[1].name: limit is also that of writable[0]",
        "writable[0].register: int32 at 65535 ends behind register 65535",
        "writable[0].maximum: is no multiple of scale",
        "writable[0].safe: is not between minimum and maximum",
        "writable[1].maximum: is less than minimum",
        "writable[1].minimum: uint16 can not hold it",
        "writable[1].maximum: uint16 can not hold it",
    ]


WHOLE = HEAD + FINGERPRINTS + WRITABLE.replace(FACTORS, "")
VALUES = re.findall(r"= (\"[^\"]*\"|-?\d+|\[[^\]{}]*\])", WHOLE)


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(VALUES) - 1),
            st.sampled_from([*dict.fromkeys(VALUES), "0", "-1", "65535", "65536", '""', '"0"', '"-1"', "[]", "true"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_file_with_any_values_is_a_profile_or_has_faults(changes: list[tuple[int, str]]) -> None:
    values = dict(changes)
    count = itertools.count()
    text = re.sub(r"= (\"[^\"]*\"|-?\d+|\[[^\]{}]*\])", lambda match: "= " + values.get(next(count), match[1]), WHOLE)
    try:
        loaded = parse_profile("test", text.encode(), source="test.toml")
    except ConfigurationError as error:
        assert all(fault.startswith("test.toml: ") for fault in error.faults)  # noqa: PT017
        return
    compiled = compile_(loaded)
    data = [bytes(2 * request.count) for request in compiled.groups[0]]
    assert len(group_decoder(compiled.groups[0])(data)[0]) == len(loaded.registers)


STEPPED = WRITABLE + 'values = ["0", "0.5", "1"]\nsafe = "0.5"\n'


def test_a_writable_may_have_only_some_values() -> None:
    share = compile_(parse(STEPPED)).writables[1]
    assert encode_writable(share, Fraction(1, 2)) == struct.pack(">f", 0.5)
    with pytest.raises(ValueError, match=r"share may be one of 0, 0.5, 1, not 0.25"):
        encode_writable(share, Fraction(1, 4))


def test_faults_of_the_values_of_writables() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(STEPPED.replace('"0.5", "1"]', '"2"]'))
    assert [fault.split(": ", 1)[1] for fault in caught.value.faults] == [
        "writable[1].safe: is not among values",
        "writable[1].values: 2 is not between minimum and maximum",
    ]
    with pytest.raises(ConfigurationError, match=r"writable\[0\].values: 0.2 is no multiple of scale"):
        parse(WRITABLE.replace('safe = "0"\n', 'values = ["0.2"]\n'))
