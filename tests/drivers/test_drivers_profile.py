import json
import pickle
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from energybid.core.errors import ConfigurationError
from energybid.core.ports import Counter
from energybid.core.quantities import Obis, Quantity, decimal_text
from energybid.drivers.modbus.decode import group_decoder
from energybid.drivers.modbus.map import TYPES, Request
from energybid.drivers.planner import serial_cost
from energybid.drivers.profile import Group, compile_profile, list_profiles, load_profile, parse_profile
from hypothesis import given
from hypothesis import strategies as st

GOLDEN = Path(__file__).parent / "golden"
HEAD = """
manufacturer = "Test"
model = "Test"
source = [{ title = "this test" }]
max_registers = 10
baudrates = [9600]
parities = ["N"]
timeout = "1 s"
"""
BENCH = [*range(0, 36, 2), 52, 70, 72, 74, 342, 344]


def parse(body: str, head: str = HEAD) -> Any:
    return parse_profile("test", (head + body).encode(), source="test.toml")


def faults(body: str, head: str = HEAD) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        parse(body, head)
    return caught.value.faults


def quantity(number: int, register: int, **more: str) -> str:
    keys = {"type": '"uint32"', "table": '"input"', "unit": '"Wh"', "resolution": '"1"'} | more
    rest = ", ".join(f"{key} = {value}" for key, value in keys.items() if value)
    return f'{{ name = "q{number}", obis = "1-0:{number}.8.0", register = {register}, {rest} }},'


def body(*quantities: str, blocks: str = '{ table = "input", first = 0, count = 50 },') -> str:
    return f"block = [{blocks}]\nquantity = [\n" + "\n".join(quantities) + "\n]\n"


# ---------------------------------------------------------------- the profiles that come with the package


def test_the_first_meters_are_there() -> None:
    assert {"abb-b23", "carlo-gavazzi-em340", "eastron-sdm630", "schneider-iem3155"} <= set(list_profiles())


@pytest.mark.parametrize("name", list_profiles())
def test_every_profile_loads_names_its_sources_and_compiles(name: str) -> None:
    loaded = load_profile(name)
    assert loaded.name == name
    assert len(loaded.profile.source) >= 2
    (group,), compiled = compile_profile(loaded, interval_s=5)
    assert group.interval_s == 5
    assert sum(len(request.fields) for request in compiled.groups[0]) == len(group.quantities)
    assert pickle.loads(pickle.dumps((group, compiled))) == (group, compiled)


def test_the_bench_selection_of_the_sdm630_takes_two_requests() -> None:
    loaded = load_profile("eastron-sdm630")
    names = [register.name for register in loaded.registers if register.first in BENCH]
    (group,), compiled = compile_profile(loaded, interval_s=1, quantities=list(reversed(names)))
    assert [(r.function, r.first, r.count) for r in compiled.groups[0]] == [(4, 0, 76), (4, 342, 4)]
    assert len(group.quantities) == 24
    assert group.quantities[0] == Quantity(obis=Obis.parse("1-0:32.7.0"), unit="V", exponent=-1)
    assert group.quantities[-2] == Quantity(obis=Obis.parse("1-0:15.8.0"), unit="Wh", exponent=1, cumulative=True)


def registers_of(memory: dict[tuple[int, int], str], request: Request) -> bytes:
    """What a golden meter answers; registers in gaps that nobody recorded read 0."""
    words = [memory.get((request.function, request.first + offset), "0000") for offset in range(request.count)]
    for field in request.fields:
        for offset in range(field.offset, field.offset + TYPES[field.type].registers):
            assert (request.function, request.first + offset) in memory, f"no golden register {request.first + offset}"
    return bytes.fromhex("".join(words))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_golden_registers_give_the_golden_readings(path: Path) -> None:
    golden = json.loads(path.read_text())
    loaded = load_profile(golden["profile"])
    (group,), compiled = compile_profile(loaded, interval_s=1)
    memory = {
        (reply["function"], address): word
        for reply in golden["replies"]
        for address, word in enumerate(reply["registers"].split(), reply["first"])
    }
    values, _ = group_decoder(compiled.groups[0])([registers_of(memory, request) for request in compiled.groups[0]])
    readings = {
        register.name: None if value is None else f"{decimal_text(value, q.exponent)} {q.unit}"
        for register, q, value in zip(loaded.registers, group.quantities, values, strict=True)
    }
    assert readings == golden["readings"]


def test_every_profile_has_a_golden_reading() -> None:
    assert {json.loads(path.read_text())["profile"] for path in GOLDEN.glob("*.json")} == set(list_profiles())


# ---------------------------------------------------------------- compilation


def test_a_range_larger_than_a_request_is_split_into_the_fewest() -> None:
    loaded = parse(body(*(quantity(n, 2 * n) for n in range(1, 13))))
    _, compiled = compile_profile(loaded, interval_s=1)
    assert [(r.first, r.count) for r in compiled.groups[0]] == [(2, 10), (12, 10), (22, 4)]


def test_no_request_reaches_over_the_end_of_a_block() -> None:
    blocks = '{ table = "input", first = 0, count = 4 }, { table = "input", first = 4, count = 4 },'
    loaded = parse(body(quantity(1, 2), quantity(2, 4), blocks=blocks))
    _, compiled = compile_profile(loaded, interval_s=1)
    assert [(r.first, r.count) for r in compiled.groups[0]] == [(2, 2), (4, 2)]


def test_tables_are_read_apart() -> None:
    blocks = '{ table = "input", first = 0, count = 9 }, { table = "holding", first = 0, count = 9 },'
    loaded = parse(body(quantity(1, 2), quantity(2, 2, table='"holding"'), blocks=blocks))
    _, compiled = compile_profile(loaded, interval_s=1)
    assert [(r.function, r.first, r.count) for r in compiled.groups[0]] == [(3, 2, 2), (4, 2, 2)]


@given(st.sets(st.integers(0, 24), min_size=1), st.integers(2, 10))
def test_no_smaller_number_of_requests_exists(places: set[int], most: int) -> None:
    head = HEAD.replace("max_registers = 10", f"max_registers = {most}")
    loaded = parse(body(*(quantity(n + 1, 2 * n) for n in sorted(places))), head)
    _, compiled = compile_profile(loaded, interval_s=1)
    fewest = {-1: 0}
    ordered = sorted(places)
    for i, last in enumerate(ordered):
        fewest[i] = min(fewest[j - 1] + 1 for j in range(i + 1) if 2 * last + 2 - 2 * ordered[j] <= most)
    assert len(compiled.groups[0]) == fewest[len(ordered) - 1]
    assert all(request.count <= most for request in compiled.groups[0])


def test_a_choice_of_quantities_is_checked() -> None:
    loaded = parse(body(quantity(1, 2), quantity(2, 4)))
    with pytest.raises(ConfigurationError) as caught:
        compile_profile(loaded, interval_s=1, quantities=["q9", "q1", "q1", "x"])
    assert caught.value.faults == [
        "quantities: no quantity 'q9'; test has q1, q2",
        "quantities: 'q1' stands twice",
        "quantities: no quantity 'x'; test has q1, q2",
    ]
    with pytest.raises(ConfigurationError, match="quantities: choose at least one of q1, q2"):
        compile_profile(loaded, interval_s=1, quantities=[])


def test_groups_share_out_the_quantities_and_are_read_together_when_they_coincide() -> None:
    loaded = parse(body(*(quantity(n, 2 * n) for n in range(1, 7)), quantity(7, 40)))
    fast, slow = [Group(interval_s=1, quantities=["q2", "q6"]), Group(interval_s=900, quantities=["q7", "q4"])]
    groups, compiled = compile_profile(loaded, interval_s=10, groups=[fast, slow])
    assert [group.interval_s for group in groups] == [10, 1, 900]
    assert [[q.obis.code[2] for q in group.quantities] for group in groups] == [[1, 3, 5], [2, 6], [4, 7]]
    assert [[(r.first, r.count) for r in requests] for requests in compiled.groups] == [
        [(2, 10)],
        [(4, 10)],
        [(8, 2), (40, 2)],
    ]
    assert [t.groups for t in compiled.together] == [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
    whole = compiled.together[-1]
    assert [(r.first, r.count) for r in whole.requests] == [(2, 10), (12, 2), (40, 2)]
    assert whole.places == ((0, 3, 1, 5, 2), (4,), (6,))
    assert pickle.loads(pickle.dumps(compiled)) == compiled


def test_faults_of_groups_are_reported_at_once() -> None:
    loaded = parse(body(quantity(1, 2), quantity(2, 4)))
    with pytest.raises(ConfigurationError) as caught:
        compile_profile(
            loaded, interval_s=1, groups=[Group(interval_s=2, quantities=n) for n in (["q1"], ["q1", "q2"], ["x"], [])]
        )
    assert caught.value.faults == [
        "group[1].quantities: 'q1' stands in group[0].quantities too",
        "group[2].quantities: no quantity 'x'; test has q1, q2",
        "group[3].quantities: choose at least one of q1, q2",
        "group: nothing is left for the meter's own interval; write one group's interval there instead",
    ]


def test_the_plan_depends_on_the_bus() -> None:
    loaded = parse(body(quantity(1, 2), quantity(2, 48)), HEAD.replace("max_registers = 10", "max_registers = 125"))
    assert [len(compile_profile(loaded, interval_s=1, cost=c)[1].groups[0]) for c in (None, serial_cost(9600))] == [
        1,
        2,
    ]


def test_what_is_known_of_a_models_timing_and_its_holes() -> None:
    hole = 'timing = { turnaround = "5 ms", reply_delay = "0 s", unreadable = [@] }\n'
    head = HEAD.replace("max_registers = 10", "max_registers = 125")
    blocks = '{ table = "input", first = 7, count = 1 }, { table = "holding", first = 2, count = 9 }'
    quantities = body(quantity(1, 2), quantity(2, 8), quantity(3, 40))
    loaded = parse(hole.replace("@", blocks) + quantities, head)
    _, compiled = compile_profile(loaded, interval_s=1)
    assert [(r.first, r.count) for r in compiled.groups[0]] == [(2, 2), (8, 34)]
    assert compiled.turnaround_s == 0.005
    blocks = '{ table = "input", first = 0, count = 3 }, { table = "input", first = 45, count = 50 }'
    assert faults(hole.replace("@", blocks) + quantities, head) == [
        "test.toml: quantity[0].register: input register 2 to 3 is in timing.unreadable"
    ]


def test_defaults_markers_and_scales_are_resolved() -> None:
    text = """
defaults = { table = "holding", type = "int32", word_order = "little" }
not_available = { int32 = ["7FFFFFFF"] }
block = [{ table = "holding", first = 0, count = 8 }]
quantity = [
  { name = "a", obis = "1-0:1.8.0", register = 0, scale = "100", unit = "Wh", resolution = "10" @A },
  { name = "b", obis = "1-0:32.7.0", register = 2, type = "uint16", scale = "0.1", unit = "V", resolution = "0.01" @B },
]
"""
    text = text.replace("@A", ', cumulative = true, rollover = "99999990"')
    a, b = parse(text.replace("@B", ', word_order = "big", not_available = ["8000"]')).registers
    assert (a.function, a.type, a.little, a.markers, a.factor) == (3, "int32", True, (0x7FFFFFFF,), 10)
    assert (a.rollover, a.quantity.exponent, a.quantity.cumulative) == (99_999_990, 1, True)
    assert (b.type, b.little, b.markers, b.factor, b.quantity.exponent) == (
        "uint16",
        False,
        (0x8000,),
        Fraction(10),
        -2,
    )


# ---------------------------------------------------------------- faults


def test_several_faults_are_reported_at_once_with_file_and_key() -> None:
    wrong = body(
        quantity(1, 2, unit='"kWh"', resolution='"0.3"'),
        quantity(2, 4, type='"float31"', scale="0.1"),
        quantity(3, 70_000, scale='"1/3"', bogus="1"),
        quantity(300, 6),
    )
    found = faults(wrong, HEAD.replace("max_registers = 10", "max_registers = 126").replace('timeout = "1 s"', ""))
    assert all(fault.startswith("test.toml: ") for fault in found)
    text = "\n".join(found)
    for part in [
        "max_registers: Input should be less than or equal to 125 (found 126)",
        "timeout: is missing",
        "quantity[0].unit: is not one of ",
        'quantity[0].resolution: must be a power of ten, such as "0.01", "1" or "10" (found \'0.3\')',
        "quantity[1].type: Input should be 'int16', ",
        "quantity[1].scale: Input should be a valid string (found 0.1)",
        "quantity[2].register: Input should be less than 65536 (found 70000)",
        'quantity[2].scale: write a decimal number in quotes, such as "0.1" or "1000"',
        "quantity[2].bogus: no such key",
        "quantity[3].obis: '1-0:300.8.0' is not an OBIS code",
    ]:
        assert part in text
    assert len(found) == 10


def test_registers_that_contradict_each_other_are_all_reported() -> None:
    wrong = body(
        quantity(1, 2),
        quantity(2, 3),
        quantity(3, 48, type='"uint64"'),
        quantity(1, 10, rollover='"10.5"', cumulative="true").replace("q1", "q1"),
        quantity(5, 12, rollover='"10"'),
        quantity(6, 65_535),
        quantity(7, 20, table='"holding"'),
    )
    assert faults(wrong) == [
        "test.toml: quantity[3].name: q1 is also that of quantity[0]",
        "test.toml: quantity[3].obis: 1-0:1.8.0 is also that of quantity[0]",
        "test.toml: quantity[2].register: input register 48 to 51 is in no block that may be read",
        "test.toml: quantity[5].register: uint32 at 65535 ends behind register 65535",
        "test.toml: quantity[6].register: holding register 20 to 21 is in no block that may be read",
        "test.toml: quantity[3].rollover: is not a multiple of the resolution 1",
        "test.toml: quantity[4].rollover: only a cumulative quantity rolls over; add cumulative = true",
        "test.toml: quantity[1].register: input register 3 to 4 overlaps quantity[0] (q1)",
    ]


def test_blocks_types_and_patterns_that_can_not_be() -> None:
    blocks = (
        '{ table = "input", first = 0, count = 10 }, { table = "input", first = 9, count = 2 },'
        '{ table = "holding", first = 65535, count = 2 },'
    )
    wrong = body(quantity(1, 2, type=""), quantity(2, 4, not_available='["FFFF"]'), blocks=blocks)
    assert faults('not_available = { int16 = ["7FFFFFFF"] }\n' + wrong) == [
        "test.toml: block[2].count: ends behind register 65535",
        "test.toml: block[1].first: input register 9 is in block[0] as well",
        "test.toml: quantity[0].type: is missing; write it here or in [defaults]",
        "test.toml: quantity[1].not_available: uint32 has 8 hexadecimal digits",
        "test.toml: not_available.int16: int16 has 4 hexadecimal digits",
    ]


def test_a_number_larger_than_a_request() -> None:
    found = faults(body(quantity(1, 2, type='"uint64"')), HEAD.replace("max_registers = 10", "max_registers = 2"))
    assert found == ["test.toml: quantity[0].type: uint64 has 4 registers; max_registers is 2"]


def test_names_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(HEAD + body(quantity(1, 2)))
    assert load_profile(str(path)).name == "mine"
    with pytest.raises(ConfigurationError, match="no profile 'sdm'; there are abb-"):
        load_profile("sdm")
    with pytest.raises(ConfigurationError, match=r"none.toml: No such file or directory"):
        load_profile(str(tmp_path / "none.toml"))
    with pytest.raises(ConfigurationError, match="not TOML"):
        parse("quantity = [")


def test_what_is_known_of_a_counter_is_compiled() -> None:
    resolution = {"resolution": '"10"', "cumulative": "true", "scale": '"100"'}
    loaded = parse(
        body(
            quantity(1, 2, **resolution),
            quantity(2, 4, **resolution, type='"uint64"'),
            quantity(3, 8, **resolution, type='"uint16"'),
            quantity(4, 10, **resolution, type='"float32"', rollover='"1000000"'),
            quantity(5, 12, **resolution, type='"int32"'),
            quantity(6, 14),
        )
    )
    (group,), _ = compile_profile(loaded, interval_s=1)
    assert group.counters == (
        Counter(rollover=10 * 2**32, word=655_360),
        Counter(rollover=None, word=655_360),
        Counter(rollover=655_360, word=None),
        Counter(rollover=100_000, word=None),
        Counter(rollover=None, word=655_360),
        None,
    )
