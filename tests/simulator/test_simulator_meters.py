import math
import struct
from fractions import Fraction

import pytest
from energybid.core.quantities import Obis
from energybid.drivers.modbus.decode import group_decoder
from energybid.drivers.profile import (
    LoadedProfile,
    Register,
    compile_profile,
    list_profiles,
    load_profile,
    parse_profile,
)
from energybid.simulator.household import UJ_PER_WH, Household, Site, State
from energybid.simulator.instrument import probe
from energybid.simulator.meters import Meter
from energybid.simulator.wiring import Wiring, seen
from hypothesis import given, settings
from hypothesis import strategies as st

PROFILES = {name: load_profile(name) for name in list_profiles()}
SITE = Site(pv_peak_w=6000, import_wh=3_456_789)
MOMENTS = st.integers(0, 2 * 86_400_000)
EXAMPLES = settings(deadline=None, max_examples=50)
"""No deadline: a jump of days takes its time on a busy machine."""
OF_EACH_MODEL = settings(deadline=None, max_examples=4)
"""There are many models."""

SCALED = b"""
manufacturer = "Test"
model = "M1"
max_registers = 10
baudrates = [9600]
parities = ["N"]
timeout = "1 s"
source = [{ title = "made for tests" }]
defaults = { table = "holding" }
block = [{ table = "holding", first = 100, count = 20 }, { table = "holding", first = 130, count = 2 }]
quantity = [
  { name = "small", obis = "1-0:1.8.0", register = 100, type = "uint16", unit = "Wh", resolution = "1", cumulative = true, rollover = "10000" },
  { name = "narrow", obis = "1-0:32.7.0", register = 104, type = "int16", scale = "0.001", unit = "V", resolution = "0.001", not_available = ["8000"] },
  { name = "clamped", obis = "1-0:52.7.0", register = 105, type = "int16", scale = "0.001", unit = "V", resolution = "0.001" },
  { name = "far", obis = "1-0:14.7.0", register = 130, type = "uint32", scale = "0.001", word_order = "little", unit = "Hz", resolution = "0.001" },
]
[identification]
serial_number = { table = "input", register = 9, type = "text", count = 6 }
"""  # noqa: E501


@pytest.fixture(scope="module")
def scaled() -> LoadedProfile:
    return parse_profile("scaled", SCALED, source="scaled.toml")


def read(meter: Meter, function: int, first: int, count: int, at_ms: int = 0) -> bytes:
    return meter.respond(struct.pack(">BHH", function, first, count), at_ms)


def poll(loaded: LoadedProfile, meter: Meter, at_ms: int) -> dict[str, int | None]:
    """What the driver's own compilation and decoding make of the meter's answers."""
    (group,), compiled = compile_profile(loaded, interval_s=1)
    answers = [read(meter, request.function, request.first, request.count, at_ms) for request in compiled.groups[0]]
    assert [a[:2] for a in answers] == [bytes((r.function, 2 * r.count)) for r in compiled.groups[0]]
    values, _ = group_decoder(compiled.groups[0])([answer[2:] for answer in answers])
    assert len(values) == len(group.quantities)
    return {str(quantity.obis): value for quantity, value in zip(group.quantities, values, strict=True)}


def counted(register: Register, exact: Fraction) -> int:
    """What is logged of a counter: whole steps of the resolution, or whole counts where these are no part of one."""
    steps = exact.__floor__()
    if register.type.startswith("float") or register.factors or (1 / register.factor).denominator == 1:
        return steps
    return round((steps / register.factor).__floor__() * register.factor)


@pytest.mark.parametrize("name", list_profiles())
@OF_EACH_MODEL
@given(at_ms=MOMENTS)
def test_every_quantity_reads_back_as_the_physical_state(name: str, at_ms: int) -> None:
    loaded = PROFILES[name]
    read_back = poll(loaded, Meter(loaded, Household("x", SITE)), at_ms)
    state = Household("x", SITE).state(at_ms)
    for register in loaded.registers:
        quantity = register.quantity
        step = Fraction(10) ** quantity.exponent
        exact = probe(quantity.obis)(state) / step
        if register.type.startswith("uint"):
            exact = max(exact, Fraction(0))  # nothing below is sent
        finer = abs(register.scale) / step if abs(register.scale) < step else 0  # rounded to what is sent, then again
        mantissa = read_back[str(quantity.obis)]
        assert mantissa is not None
        if quantity.cumulative:
            assert mantissa == counted(register, exact), register.name
        else:
            assert abs(mantissa - exact) <= Fraction(1 + finer, 2) + abs(exact) / 2**23, register.name


@pytest.mark.untraced
@pytest.mark.parametrize("name", list_profiles())
@OF_EACH_MODEL
@given(begin=MOMENTS, steps=st.lists(st.integers(1, 4_000_000), min_size=1, max_size=10))
def test_energy_registers_never_decrease_and_follow_the_recording(name: str, begin: int, steps: list[int]) -> None:
    loaded = PROFILES[name]
    meter, at_ms = Meter(loaded, Household("x", SITE)), begin
    counters = [str(r.quantity.obis) for r in loaded.registers if r.quantity.cumulative]
    last = poll(loaded, meter, at_ms)
    for step in steps:
        at_ms += step
        now = poll(loaded, meter, at_ms)
        assert all((now[obis] or 0) >= (last[obis] or 0) for obis in counters)
        last = now


def total(loaded: LoadedProfile) -> str | None:
    """The register of all import; models without it count the first tariff, or import and export in one."""
    codes = {str(register.quantity.obis) for register in loaded.registers}
    return next((code for code in ("1-0:1.8.0", "1-0:1.8.1", "1-0:15.8.0") if code in codes), None)


@pytest.mark.parametrize("name", [name for name, loaded in PROFILES.items() if total(loaded)])
def test_import_register_is_the_exact_integral_at_its_resolution(name: str) -> None:
    loaded = PROFILES[name]
    obis = total(loaded) or ""
    registers = {str(r.quantity.obis): r for r in loaded.registers}
    meter, wh = Meter(loaded, Household("x", wh_per_row=[1000, 337, 2891])), [0, 1000, 1337, 4228]
    step = Fraction(10) ** registers[obis].quantity.exponent
    assert [poll(loaded, meter, row * 1_800_000)[obis] for row in range(4)] == [
        counted(registers[obis], w / step) for w in wh
    ]


def test_a_cumulative_register_rolls_over(scaled: LoadedProfile) -> None:
    meter = Meter(scaled, Household("x", Site(import_wh=9_990), wh_per_row=[1003]))
    assert read(meter, 3, 100, 1, 0) == struct.pack(">BBH", 3, 2, 9_990)
    assert read(meter, 3, 100, 1, 1_800_000) == struct.pack(">BBH", 3, 2, 993)


def test_what_does_not_fit_is_marked_or_held_at_the_limit(scaled: LoadedProfile) -> None:
    meter = Meter(scaled, Household("x"))
    assert read(meter, 3, 104, 2) == struct.pack(">BBHH", 3, 4, 0x8000, 0x7FFF)


def test_little_word_order_and_gaps_that_read_zero(scaled: LoadedProfile) -> None:
    meter, state = Meter(scaled, Household("x")), Household("x").state(777)
    low, high = state.frequency_mhz & 0xFFFF, state.frequency_mhz >> 16
    assert read(meter, 3, 130, 2, 777) == struct.pack(">BBHH", 3, 4, low, high)
    assert read(meter, 3, 110, 10) == bytes((3, 20)) + bytes(20)


def test_serial_number_stands_where_the_profile_says(scaled: LoadedProfile) -> None:
    assert read(Meter(scaled, Household("x"), serial_number=12345), 4, 9, 6) == b"\x04\x0c12345" + bytes(7)
    iem = Meter(PROFILES["schneider-iem3155"], Household("x"), serial_number=12345)
    assert read(iem, 3, 129, 2) == struct.pack(">BBI", 3, 4, 12345)


def test_any_part_of_a_block_reads_the_same_registers() -> None:
    loaded = PROFILES["eastron-sdm630"]
    meter = Meter(loaded, Household("x"))
    whole = read(meter, 4, 0, 80, 555)[2:]
    for first in (0, 1, 33, 79):
        assert read(meter, 4, first, 1, 555)[2:] == whole[2 * first : 2 * first + 2]


@pytest.mark.parametrize(
    ("pdu", "code"),
    [
        (struct.pack(">BHH", 4, 100, 1), 2),  # input registers hold the serial number only
        (struct.pack(">BHH", 1, 0, 1), 1),
        (struct.pack(">BHH", 6, 100, 1), 1),
        (b"\x2b\x0e\x01\x00", 1),
        (struct.pack(">BHH", 3, 99, 1), 2),
        (struct.pack(">BHH", 3, 118, 3), 2),
        (struct.pack(">BHH", 3, 120, 1), 2),
        (struct.pack(">BHH", 3, 65535, 2), 2),
        (struct.pack(">BHH", 3, 100, 0), 3),
        (struct.pack(">BHH", 3, 100, 11), 3),
        (struct.pack(">BHH", 3, 100, 65535), 3),
        (b"\x03\x00\x64\x00", 3),
        (b"\x03\x00\x64\x00\x01\x00", 3),
        (b"\x03", 3),
    ],
)
def test_refuses_what_the_model_refuses(scaled: LoadedProfile, pdu: bytes, code: int) -> None:
    assert Meter(scaled, Household("x")).respond(pdu, 0) == bytes((pdu[0] | 0x80, code))


@EXAMPLES
@given(pdu=st.binary(min_size=1, max_size=253))
def test_any_request_is_answered_or_refused(pdu: bytes) -> None:
    answer = METER.respond(pdu, 0)
    assert len(answer) <= 253
    assert answer[0] & 0x7F == pdu[0] & 0x7F


METER = Meter(PROFILES["abb-b23"], Household("x"))


@pytest.mark.parametrize("code", ["1-0:97.7.0", "6-0:1.8.0", "1-0:1.29.0", "1-0:17.8.0"])
def test_a_quantity_the_site_has_not_is_no_meter(code: str) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        probe(Obis.parse(code))


def test_the_instrument_knows_phases_sums_and_tariffs() -> None:
    state = Household("x", SITE).state(43_200_000)

    def value(code: str) -> Fraction:
        return probe(Obis.parse(code))(state)

    assert value("1-0:16.7.0") == sum(value(f"1-0:{c}.7.0") for c in (36, 56, 76)) == -value("1-0:2.7.0")
    assert value("1-0:1.7.0") == 0
    assert value("1-0:1.8.0") == value("1-0:1.8.1") == Fraction(sum(state.import_uj), UJ_PER_WH)
    assert value("1-0:1.8.2") == 0
    assert value("1-0:15.8.0") - value("1-0:16.8.0") == 2 * value("1-0:2.8.0")
    assert value("1-0:33.7.0") == Fraction(state.power_mw[0], state.apparent_mva[0])
    assert value("1-0:91.7.0") < max(value("1-0:31.7.0"), value("1-0:51.7.0"), value("1-0:71.7.0"))
    assert value("1-0:128.8.0") == sum(value(f"1-0:{c}.8.0") for c in (23, 43, 63))


# ---------------------------------------------------------------- what may be written

WRITABLE = (
    SCALED
    + b"""
[[writable]]
name = "limit"
register = 104
type = "int16"
unit = "W"
minimum = "-10"
maximum = "500"
[[writable]]
name = "period"
register = 300
type = "float32"
scale = "60"
unit = "s"
minimum = "0"
maximum = "3600"
values = ["0", "900", "3600"]
"""
)


def write(meter: Meter, text: str) -> str:
    return meter.respond(bytes.fromhex(text), 0).hex(" ")


def test_what_is_written_stays_and_what_is_out_of_bounds_is_refused() -> None:
    text = WRITABLE.replace(b"register = 104, type", b"register = 106, type")
    meter = Meter(parse_profile("scaled", text, source="scaled.toml"), Household("w", SITE))
    assert read(meter, 3, 104, 1).hex() == "030201f4", "from the factory the most"
    assert write(meter, "06 0068 fff6") == "06 00 68 ff f6"
    assert read(meter, 3, 104, 1).hex() == "0302fff6"
    assert write(meter, "06 0068 fff5") == "86 03"
    assert write(meter, "06 0069 0000") == "86 02"
    assert write(meter, "06 0068") == "86 03"
    assert write(meter, "10 012c 0002 04 41700000") == "10 01 2c 00 02"
    assert read(meter, 3, 300, 2).hex() == "030441700000"
    assert write(meter, "10 012c 0002 04 41f00000") == "90 03", "30 minutes are none of its values"
    assert write(meter, "10 012c 0002 04 7fc00000") == "90 03"
    assert write(meter, "10 012c 0001 02 4170") == "90 02", "half a number"
    assert write(meter, "10 012c 0002 03 417000") == "90 03"
    assert read(meter, 3, 104, 1).hex() == "0302fff6"


def test_a_meter_of_which_nothing_may_be_written_knows_no_such_function(scaled: LoadedProfile) -> None:
    assert write(Meter(scaled, Household("w", SITE)), "06 0068 0000") == "86 01"


# ---------------------------------------------------------------- wrong wiring


def wired(at_ms: int, **wiring: object) -> tuple[State, State]:
    state = Household("wiring", Site(import_wh=1000)).state(at_ms)
    return state, seen(state, Wiring(**wiring))  # type: ignore[arg-type]


@given(MOMENTS)
@EXAMPLES
def test_a_reversed_transformer_turns_the_sign_of_its_phase_alone(at_ms: int) -> None:
    right, wrong = wired(at_ms, reversed_ct=(1,))
    assert wrong.power_mw == (right.power_mw[0], -right.power_mw[1], right.power_mw[2])
    assert wrong.reactive_mvar[1] == -right.reactive_mvar[1]
    assert wrong.apparent_mva == right.apparent_mva
    assert (wrong.import_uj[1], wrong.export_uj[1]) == (right.export_uj[1], right.import_uj[1])


@given(MOMENTS, st.permutations(range(3)))
@EXAMPLES
def test_swapped_transformers_keep_apparent_power_and_turn_it(at_ms: int, order: list[int]) -> None:
    own, other, third = order
    right, wrong = wired(at_ms, swapped_ct=(own, other))
    assert wrong.power_mw[third] == right.power_mw[third]
    assert wrong.current_ma(own) == right.current_ma(other)
    for phase in (own, other):
        turned = math.hypot(wrong.power_mw[phase], wrong.reactive_mvar[phase])
        assert turned == pytest.approx(wrong.apparent_mva[phase], rel=0.01)
        assert wrong.power_mw[phase] < 0, "a household's power factor is above a half"
    assert wrong.reactive_mvar[own] * wrong.reactive_mvar[other] < 0


def test_what_is_not_connected_is_not_there() -> None:
    right, wrong = wired(0, missing_voltage=(0,), missing_ct=(2,))
    assert (wrong.voltage_mv[0], wrong.power_mw[0], wrong.apparent_mva[0]) == (0, 0, 0)
    assert (wrong.current_ma(0), wrong.current_ma(1), wrong.current_ma(2)) == (
        right.current_ma(0),
        right.current_ma(1),
        0,
    )
    assert wrong.voltage_mv[1:] == right.voltage_mv[1:]
