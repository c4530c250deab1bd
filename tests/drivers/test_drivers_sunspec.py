"""SunSpec: chains of models, and profiles made of them; golden devices, hostile ones, and a stranger's reader."""

import asyncio
import json
import struct
import tomllib
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import sunspec2.modbus.client as peer
from energybid.agent.cli import main
from energybid.core.errors import ConfigurationError, NoReplyError
from energybid.core.ports import Counter
from energybid.core.quantities import Status, decimal_text, fraction_text
from energybid.drivers.identify import Identity
from energybid.drivers.modbus.decode import group_decoder
from energybid.drivers.probe import Prober
from energybid.drivers.profile import LoadedProfile, compile_profile, load_profile, parse_profile
from energybid.drivers.scan import Found as FoundUnit
from energybid.drivers.scan import Setting, State
from energybid.drivers.sunspec.chain import BASES, MODELS_MAX, Chain, Found, Walk
from energybid.drivers.sunspec.device import Device, read_device, walk
from energybid.drivers.sunspec.found import make_profiles
from energybid.drivers.sunspec.models import ABSENT, COMMON, COMMON_TEXTS, HEADER, METER, MODELS, TYPES, size
from energybid.drivers.sunspec.profile import Choice, profile_text
from energybid.drivers.sunspec.reader import TRIES, Reader
from energybid.drivers.sunspec.standard import load_standard, standard_device
from energybid.drivers.target import parse_target
from energybid.simulator.config import BusFile
from energybid.simulator.serve import serve
from energybid.simulator.virtual import run
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_bench import HOST, bench, scripted

GOLDEN = Path(__file__).parent / "golden" / "sunspec"
MEASURING = sorted(number for number, model in MODELS.items() if model.points)
EVERYTHING = Choice(everything=True)


def common(maker: str = "ACME", model: str = "M 1", serial: str = "4711", length: int = 66) -> list[int]:
    data = bytearray(2 * (length + HEADER))
    struct.pack_into(">HH", data, 0, COMMON, length)
    for name, text in (("manufacturer", maker), ("model", model), ("serial-number", serial)):
        at, count = COMMON_TEXTS[name]
        data[2 * at : 2 * (at + count)] = text.encode()[: 2 * count].ljust(2 * count, b"\x00")
    return [word for (word,) in struct.iter_unpack(">H", data[: 2 * (length + HEADER)])]


def golden(number: int) -> list[int]:
    return [int(word, 16) for word in json.loads((GOLDEN / f"{number}.json").read_text())["registers"].split()]


def memory(*models: list[int], base: int = 40_000, end: bool = True) -> dict[int, int]:
    words = [0x5375, 0x6E53, *(word for model in models for word in model), *([0xFFFF, 0] if end else [])]
    return {base + offset: word for offset, word in enumerate(words)}


class Registers:
    """A device that holds registers, and refuses what it has not, or too many at once."""

    def __init__(self, words: dict[int, int], most: int = 125) -> None:
        self.words, self.most = words, most
        self.reads: list[tuple[int, int]] = []

    async def read(self, first: int, count: int) -> bytes | None:
        self.reads.append((first, count))
        words = [self.words.get(at) for at in range(first, first + count)]
        if count > self.most or None in words:
            return None
        return struct.pack(f">{count}H", *words)


def device_of(words: dict[int, int], most: int = 125) -> Device:
    device = asyncio.run(read_device(Registers(words, most).read))
    assert device is not None
    return device


PLAIN = Choice()


def profile_of(words: dict[int, int], choice: Choice = PLAIN) -> LoadedProfile:
    return parse_profile("made", profile_text(device_of(words), choice).encode(), source="made.toml")


def readings(loaded: LoadedProfile, words: dict[int, int]) -> dict[str, str | int]:
    """Name → value and unit, or the status of what has none."""
    (group,), compiled = compile_profile(loaded, interval_s=1)
    data = [
        struct.pack(f">{r.count}H", *(words[at] for at in range(r.first, r.first + r.count)))
        for r in compiled.groups[0]
    ]
    values, states = group_decoder(compiled.groups[0])(data)
    status = states or [0] * len(values)
    return {
        register.name: state if value is None else f"{decimal_text(value, quantity.exponent)} {quantity.unit}"
        for register, quantity, value, state in zip(loaded.registers, group.quantities, values, status, strict=True)
    }


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("number", MEASURING)
def test_golden_models_give_the_golden_readings(number: int) -> None:
    """What another implementation has put into the registers is read out of them."""
    words = memory(common(), golden(number))
    loaded = profile_of(words)
    found = readings(loaded, words)
    expected = json.loads((GOLDEN / f"{number}.json").read_text())["readings"]
    assert found.keys() == expected.keys()
    for register in loaded.registers:
        value, unit = expected[register.name].split()
        counts = round(Fraction(Decimal(value)) / Fraction(10) ** register.quantity.exponent)  # half to even, as logged
        assert found[register.name] == f"{decimal_text(counts, register.quantity.exponent)} {unit}"


@pytest.mark.parametrize("number", [n for n in MEASURING if MODELS[n].points[0].type != "float32"])
def test_integers_are_logged_as_fine_as_they_are(number: int) -> None:
    words = memory(common(), golden(number))
    expected = json.loads((GOLDEN / f"{number}.json").read_text())["readings"]
    for name, text in readings(profile_of(words), words).items():
        assert Decimal(str(text).split()[0]) == Decimal(expected[name].split()[0])


@pytest.mark.parametrize("number", MEASURING)
def test_what_is_not_implemented_has_a_status(number: int) -> None:
    words = memory(common(), golden(number))
    loaded = profile_of(words)
    first = next(at for at, word in words.items() if word == number and at >= 40_070)
    for point in MODELS[number].points:
        bits = ABSENT[point.type].to_bytes(2 * size(point.type), "big")
        words |= {first + point.offset + n: w for n, (w,) in enumerate(struct.iter_unpack(">H", bits))}
    found = readings(loaded, words)
    for point in MODELS[number].points:
        zero = point.type == "acc32" and point.core
        assert found[point.quantity] == ("0 " + point.unit if zero else Status.NOT_AVAILABLE)


def test_a_scale_factor_that_is_none_leaves_no_number() -> None:
    words = memory(common(), golden(203))
    loaded = profile_of(words)
    words[40_070 + 22] = 0x8000
    words[40_070 + 15] = 11
    words[40_070 + 6] = 0xFFFD
    found = readings(loaded, words)
    assert found["power"] == found["power-l1"] == found["voltage-l1"] == Status.NOT_AVAILABLE
    assert found["current-l1"] == "-1.11 A"  # -1.111 A: what is logged was settled when the profile was made
    assert found["frequency"] == "15.92 Hz"


def test_a_model_that_has_moved_gives_no_numbers() -> None:
    """As after an update of its firmware: another model of the same length, or none, stands at the place."""
    words = memory(common(), golden(103), golden(203))
    loaded = profile_of(words)
    assert isinstance(readings(loaded, words)["power"], str)
    for offset, word in ((0, 204), (1, 104), (0, 0x8000)):
        found = readings(loaded, words | {40_122 + offset: word})
        for name, reading in found.items():
            assert isinstance(reading, str) == name.startswith("inverter-1-")
            assert isinstance(reading, str) or reading == Status.NOT_AVAILABLE


def test_points_of_models_lie_within_them_and_apart() -> None:
    for model in MODELS.values():
        taken: dict[int, str] = {}
        for point in model.points:
            for at in range(point.offset, point.offset + size(point.type)):
                assert HEADER <= at < HEADER + model.length
                assert taken.setdefault(at, point.name) == point.name
        factors = {point.factor for point in model.points if point.factor}
        assert not {factor.offset for factor in factors} & taken.keys()
        for control in model.controls:
            assert HEADER <= control.offset < HEADER + model.length


# ---------------------------------------------------------------- chains


def test_unknown_models_are_passed_over_wherever_the_chain_is() -> None:
    for base in BASES:
        words = memory(common(length=65), [64_999, 3, 1, 2, 3], golden(203), [160, 0], golden(124), base=base)
        device = device_of(words)
        assert [model.number for model in device.chain.models] == [COMMON, 64_999, 203, 160, 124]
        assert (device.chain.base, device.chain.fault) == (base, "")
        assert (device.text("manufacturer"), device.text("serial-number")) == ("ACME", "4711")
        assert not {at for at in device.registers if device.chain.models[1].first <= at < device.chain.models[1].end}


def test_a_model_that_is_longer_or_shorter_than_the_standard() -> None:
    long = [*golden(103), 1, 2, 3]
    long[1] = 53
    short = golden(103)[:24]
    short[1] = 22
    names = set(readings(profile_of(memory(common(), golden(103))), memory(common(), golden(103))))
    for model, missing in ((long, set()), (short, {"energy-export"})):
        words = memory(common(), model, golden(124))
        loaded = profile_of(words)
        assert set(readings(loaded, words)) == names - missing | {"state-of-charge", "battery-voltage"}


@pytest.mark.parametrize(
    ("words", "fault", "models"),
    [
        (memory(common(), [7, 0] * 200), f"more than {MODELS_MAX} models", MODELS_MAX),
        (memory(common(), [203, 60_000, 1]), "model 203 at 40070 has 60000 registers", 1),
        (memory(common(), [203, 0xFFFF]), "model 203 at 40070 has 65535 registers", 1),
        (memory(common(), [203, 65_536 - 40_070 - 4]), "the header at 65534 can not be read", 2),
        (memory(common(), [203, 65_536 - 40_070 - 2]), "ends with the address space", 2),
        (memory(common(), [0, 0, 0, 0]), "no model 0", 1),
        (memory(common(), golden(203), end=False), "the header at 40177 can not be read", 2),
        (memory(end=False), "the header at 40002 can not be read", 0),
        (memory(), "", 0),
    ],
)
def test_hostile_chains_end_with_a_reason(words: dict[int, int], fault: str, models: int) -> None:
    chain = asyncio.run(walk(Registers(words).read))
    assert chain is not None
    assert fault in chain.fault
    assert bool(fault) == bool(chain.fault)
    assert len(chain.models) == models


def test_a_wrong_marker_is_none() -> None:
    device = Registers({**memory(common(), base=40_001), 50_000: 0x5375, 50_001: 0x6E54})
    assert asyncio.run(read_device(device.read)) is None
    assert device.reads == [(40_000, 2), (50_000, 2), (0, 2)]


@settings(max_examples=200)
@given(st.lists(st.one_of(st.none(), st.binary(min_size=4, max_size=4)), max_size=300), st.sampled_from([0, 1, 2, 3]))
def test_a_walk_through_anything_ends(answers: list[bytes | None], skipped: int) -> None:
    walked = Walk()
    steps = 0
    for answer in [*[None] * skipped, b"SunS", *answers, *[None] * 4]:
        if walked.next_request is None:
            break
        first, count = walked.next_request
        assert 0 <= first <= first + count <= 65_536
        walked.feed(answer)
        steps += 1
    assert walked.next_request is None
    assert steps <= len(BASES) + 1 + MODELS_MAX
    chain = walked.chain
    if chain is not None:
        for before, after in zip(chain.models, chain.models[1:], strict=False):
            assert before.end == after.first
        assert all(model.end <= 65_536 for model in chain.models)


def test_registers_that_are_refused_are_searched_out() -> None:
    words = memory(common(), golden(203))
    hole = 40_070 + 100
    del words[hole]
    device = device_of(words)
    assert hole not in device.registers
    assert len(device.registers) >= 68 + 107 - 4
    assert device.registers_max == 68
    loaded = parse_profile("made", profile_text(device).encode(), source="made.toml")
    assert "reactive-energy-q4" in [r.name for r in loaded.registers]
    assert all(not b.first <= hole < b.first + b.count for b in loaded.profile.block)
    small = device_of(memory(common(), golden(203)), most=20)
    assert small.registers_max <= 20
    assert len(small.registers) == 68 + 107


# ---------------------------------------------------------------- profiles


WORDS = st.one_of(st.integers(0, 0xFFFF), st.sampled_from([0, 1, 0x7FC0, 0x8000, 0xFFFE, 0xFFFF]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(MODELS)), max_size=4), st.data(), st.booleans(), st.text(max_size=8))
def test_whatever_a_device_holds_its_profile_has_no_fault(
    numbers: list[int],
    data: st.DataObject,
    everything: bool,  # noqa: FBT001
    maker: str,
) -> None:
    models = []
    for number in numbers:
        length = data.draw(st.integers(0, MODELS[number].length + 3))
        words = data.draw(st.lists(WORDS, min_size=8, max_size=8))
        models.append([number, length, *(words[n * 7 % 8] for n in range(length))])
    device = device_of(memory(common(maker), *models), most=data.draw(st.sampled_from([9, 40, 125])))
    try:
        text = profile_text(device, Choice(everything=everything))
    except ValueError as error:
        assert "none of its models" in str(error)  # noqa: PT017  either is right
        return
    loaded = parse_profile("made", text.encode(), source="made.toml")
    compile_profile(loaded, interval_s=1)


def test_meters_come_first_and_others_have_channels_of_their_own() -> None:
    words = memory(common(), golden(103), golden(124), common("ACME", "Meter"), golden(203), golden(203), golden(713))
    names = {r.name: str(r.quantity.obis) for r in profile_of(words).registers}
    assert names["power"] == "1-0:16.7.0"
    assert names["meter-1-power"] == "1-1:16.7.0"
    assert names["inverter-2-power"] == "1-2:16.7.0"
    assert names["state-of-charge"] == "1-0:135.7.0"
    assert names["storage-1-state-of-charge"] == "1-1:135.7.0"
    assert len(set(names.values())) == len(names)
    chosen = profile_of(words, Choice(models=[103]))
    assert {register.name for register in chosen.registers} >= {"power", "energy-export"}
    assert all(register.first < 40_122 for register in chosen.registers)


@pytest.mark.parametrize(
    ("maker", "reverse", "power"),
    [("ACME", None, 18_080), ("SolarEdge ", None, -18_080), ("SolarEdge", False, 18_080), ("ACME", True, -18_080)],
)
def test_the_direction_of_power(maker: str, reverse: bool | None, power: int) -> None:  # noqa: FBT001
    """Readings are positive when the site imports; inverters count what they deliver."""
    words = memory(common(maker), golden(103), golden(203))
    words[40_122 + 18] = 1808
    found = readings(profile_of(words, Choice(reverse=reverse)), words)
    assert found["power"] == f"{power} W"
    assert found["inverter-1-power"] == "-15180 W"
    words[40_070 + 14] = 0xFFFF & -30
    assert readings(profile_of(words), words)["inverter-1-power"] == "300 W"
    assert found["energy-import"] == readings(profile_of(words), words)["energy-import"]


def test_points_without_a_value_are_left_out_unless_all_are_wanted() -> None:
    model = golden(103)
    model[12], model[18], model[21], model[14] = 0xFFFF, 0x8000, 0x8000, 0x8000
    words = memory(common(), model)
    names = {register.name for register in profile_of(words).registers}
    assert "power" in names  # it sleeps: the point is the model's core
    assert not {"voltage-l3", "apparent-power"} & names
    assert "# " in profile_text(device_of(words))
    assert "not implemented when it was read: PhVphC VA" in profile_text(device_of(words))
    assert {"voltage-l3", "apparent-power"} < {r.name for r in profile_of(words, EVERYTHING).registers}


def test_accumulators_at_zero_are_there_if_their_scale_factor_is() -> None:
    model = golden(203)
    for at in range(38, 104):
        model[at] = 0 if at not in {54, 71} else model[at]
    model[71], model[17] = 0x8000, 0x8000
    words = memory(common(), model)
    found = readings(profile_of(words), words)
    assert (found["energy-import"], found["energy-import-l1"]) == ("0 Wh", Status.NOT_AVAILABLE)
    assert "apparent-energy" not in found
    assert found["frequency"] == "1592.00 Hz"  # without a scale factor: as it stands there


def test_accumulators_roll_over_where_their_scale_factor_puts_it() -> None:
    counters = {r.name: r.counter for r in profile_of(memory(common(), golden(203))).registers}
    assert counters["energy-import"] == Counter(rollover=100 * 2**32, word=None)
    assert counters["power"] is None
    floats = {r.name: r.counter for r in profile_of(memory(common(), golden(213))).registers}
    assert floats["energy-import"] is None


def test_what_may_be_written_is_bounded_by_the_ratings() -> None:
    loaded = load_standard("sunspec:103+120+123+124")
    assert {w.name for w in loaded.writables} == {
        *("power-limit", "power-limit-enabled", "power-limit-reverts-after"),
        *("storage-control", "charge-rate", "discharge-rate", "rates-revert-after"),
    }
    ratings = [702, 50, *[0] * 50]
    ratings[2], ratings[45] = 805, 1
    control = [704, 65, *[0] * 65]
    control[54], control[55] = 0xFFFE, 2
    by_name = {w.name: w for w in profile_of(memory(common(), golden(701), ratings, control)).writables}
    assert (by_name["power-limit"].scale, by_name["power-limit"].maximum) == (Fraction(1, 10_000), 1)
    setting = by_name["power-set"]
    assert (setting.scale, setting.minimum, setting.maximum, setting.safe) == (-100, -8000, 8000, 0)
    assert {"power-set-in-watts", "power-set-enabled"} < by_name.keys()
    guards = {guard.name: guard.equals for guard in by_name["power-limit"].guards}
    assert guards == {"m704-header": (704 << 16 | 65,), "m704-wmaxlimpct-sf": (-2,)}
    unrated = profile_of(memory(common(), golden(701), control))
    assert "power-set" not in {w.name for w in unrated.writables}


def test_a_profile_knows_its_device_again() -> None:
    words = memory(common(), golden(203))
    loaded = profile_of(words)
    for mark in loaded.fingerprints:
        data = struct.pack(f">{mark.count}H", *(words[at] for at in range(mark.first, mark.first + mark.count)))
        assert mark.matches(data)
    assert {mark.about for mark in loaded.fingerprints} >= {"SunSpec marker", "model", "header of model 203"}


def test_a_device_without_quantities() -> None:
    with pytest.raises(ValueError, match="none of its models has a quantity that is implemented: 1 64999"):
        profile_text(device_of(memory(common(), [64_999, 1, 5])))
    with pytest.raises(ValueError, match="there are none"):
        profile_text(Device(chain=Chain(0, (), ""), registers={}))
    with pytest.raises(ConfigurationError, match="no SunSpec model '5'"):
        load_standard("sunspec:5")
    with pytest.raises(ConfigurationError, match="none of its models"):
        load_standard("sunspec:123")
    with pytest.raises(ConfigurationError, match="energybid profile sunspec"):
        load_profile("sunspec:203")


def test_decimal_texts() -> None:
    assert [fraction_text(Fraction(text)) for text in ("0.001", "-100", "12.5")] == ["0.001", "-100", "12.5"]
    assert set(TYPES) == set(ABSENT)
    assert standard_device([203]).chain.models[1] == Found(203, 40_070, 105)
    assert MODELS[203].kind == METER


# ---------------------------------------------------------------- on a bus


class Sick:
    """Answers a read only at the n-th try."""

    def __init__(self, answers: list[bytes | None]) -> None:
        self.answers = answers

    def __call__(self, pdu: bytes) -> bytes:
        return (self.answers.pop(0) if self.answers else None) or b""


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([None, b"\x83\x06", b"\x03\x04SunS"], b"SunS"),
        ([b"\x83\x02"], None),
        ([None] * TRIES, "nothing came"),
        ([b"\x83\x0b"] * TRIES, "exception 11"),
    ],
)
def test_a_lost_reply_is_asked_for_again(answers: list[bytes | None], expected: bytes | str | None) -> None:
    station = scripted(3, Sick(answers))

    async def main() -> bytes | None:
        prober = Prober(bench(station).open, parse_target(HOST))
        try:
            return await Reader(prober, 3, 0.3).read(40_000, 2)
        finally:
            await prober.close()

    if isinstance(expected, str):
        with pytest.raises(NoReplyError, match=expected):
            run(main)
    else:
        assert run(main) == expected


BUSES: dict[str, Any] = {
    "bus": [
        {
            "name": "net",
            "kind": "modbus-tcp",
            "meter": [
                {"name": "a", "unit": 1, "profile": "sunspec:203+124", "pv_peak_w": 9000},
                {"name": "b", "unit": 2, "profile": "sunspec:113+704"},
                {"name": "c", "unit": 3, "profile": "eastron-sdm630"},
            ],
        }
    ]
}


async def served(work: Any, *arguments: Any) -> Any:
    """Do something in a thread while simulated devices are there; it is given their port."""
    async with serve(BusFile.model_validate(BUSES), Path()) as there:
        return await asyncio.to_thread(work, there.places[0].address["port"], *arguments)


def test_a_stranger_reads_the_simulated_device_as_we_do(tmp_path: Path) -> None:
    """pysunspec2 (SunSpec Alliance) walks the chain and scales the points by itself."""
    path = tmp_path / "a.toml"

    def both(port: int) -> tuple[dict[str, Any], int]:
        code = main(["profile", "sunspec", f"tcp://127.0.0.1:{port}", "--unit", "1", "-o", str(path)])
        device = peer.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=port)
        try:
            device.scan()
            points = {n: p.cvalue for n, p in device.models[203][0].points.items()}
            return points | {"SoC": device.models[124][0].points["ChaState"].cvalue}, code
        finally:
            device.close()

    theirs, code = asyncio.run(served(both))
    assert code == 0
    loaded = load_profile(str(path))
    names = {register.name for register in loaded.registers}
    assert {"power", "voltage-l1", "energy-import", "state-of-charge"} < names
    assert theirs["SoC"] == 57
    assert 200 < theirs["PhVphA"] < 260
    assert theirs["TotWhImp"] > 0
    assert theirs["L"] == 105


def test_the_command_says_what_it_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "b.toml"

    def calls(port: int) -> list[int]:
        target = f"tcp://127.0.0.1:{port}"
        return [
            main(["profile", "sunspec", target, "--unit", "2", "--json", "-o", str(path)]),
            main(["profile", "sunspec", target, "--models", "124", "--sign", "export"]),
            main(["profile", "sunspec", target, "--unit", "2", "--models", "203"]),
            main(["profile", "sunspec", target, "--unit", "3"]),
            main(["profile", "sunspec", target, "--unit", "9"]),
        ]

    codes = asyncio.run(served(calls))
    out, err = capsys.readouterr()
    facts, profile = json.loads(out.splitlines()[0]), "\n".join(out.splitlines()[1:])
    assert codes == [0, 0, 2, 1, 1]
    assert (facts["base"], facts["fault"], facts["manufacturer"]) == (40_000, None, "SunSpec")
    assert [model["number"] for model in facts["models"]] == [1, 113, 704]
    assert facts["quantities"]["power"] == "1-0:16.7.0"
    assert "power-limit" in facts["writables"]
    assert [r.name for r in parse_profile("b", profile.encode(), source="-").registers] == [
        "state-of-charge",
        "battery-voltage",
    ]
    assert load_profile(str(path)).profile.model == "Simulated"
    assert f'in gateway.toml: profile = "{path}"' in err
    assert "none of its models has a quantity that is implemented: 1 113 704" in err
    assert "unit 3 has no SunSpec marker" in err
    assert "unit 9, holding 40000 to 40001: exception 11" in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["tcp://x", "--unit", "256"], "--unit: is 0 to 255"),
        (["tcp://x", "-o", "x.json"], "a profile's name ends in .toml"),
        (["x"], "is no serial port"),
    ],
)
def test_wrong_arguments(arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "sunspec", *arguments]) == 2
    assert fault in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["profile", "sunspec", "tcp://x", "--models", "203,5"])
    assert "models with quantities are 101" in capsys.readouterr().err


def test_a_model_is_shown_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "sunspec:203"]) == 0
    assert "energy-import" in capsys.readouterr().out


def test_a_scan_makes_profiles_of_what_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gateway.toml"

    def scans(port: int) -> list[int]:
        target = f"tcp://127.0.0.1:{port}"
        return [
            main(["scan", target, "--units", "1-3", "--write", str(path), "--resume", str(tmp_path / "state")]),
            main(["scan", target, "--units", "1-3", "--write", "-", "--resume", str(tmp_path / "state")]),
        ]

    assert asyncio.run(served(scans)) == [0, 0]
    out, err = capsys.readouterr()
    meters = {meter["unit"]: meter for meter in tomllib.loads(path.read_text())["bus"][0]["meter"]}
    assert meters[3]["profile"] == "eastron-sdm630"
    made = [load_profile(str(tmp_path / meters[unit]["profile"])) for unit in (1, 2)]
    assert [loaded.profile.model for loaded in made] == ["Simulated", "Simulated"]
    assert "made of its SunSpec models 1 203 124" in out
    assert f"{meters[1]['profile']} is not written; make it with: energybid profile sunspec tcp://" in err
    assert ".toml" not in meters[1]["name"]
    assert "power " in out


def found_at(unit: int, **sunspec: str) -> FoundUnit:
    return FoundUnit(setting=HOST, unit=unit, delay_s=0.0, identity=Identity(sunspec=sunspec))


def test_devices_that_can_not_be_read_say_why() -> None:
    dead, empty = found_at(1, base="0"), found_at(2, base="0")
    words = memory(common(), [64_999, 0])

    def answer(pdu: bytes) -> bytes:
        _, first, count = struct.unpack(">BHH", pdu)
        data = [words.get(at) for at in range(first, first + count)]
        return b"\x83\x02" if None in data else struct.pack(f">BB{count}H", 3, 2 * count, *data)

    settings_ = [Setting(HOST, parse_target(HOST), serial=False)]
    state = State(found=[dead, empty, found_at(4), FoundUnit(setting=HOST, unit=5, delay_s=0.0)])
    platform = bench(scripted(1, Sick([])), scripted(2, answer))
    assert run(lambda: make_profiles(platform.open, settings_, state)) == {}
    assert dead.fault == "SunSpec: unit 1, holding 40000 to 40001: nothing came"
    assert empty.fault == "SunSpec: none of its models has a quantity that is implemented: 1 64999"
