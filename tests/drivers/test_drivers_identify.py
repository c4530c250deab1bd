"""Which model a unit is: evidence, its weight, and what is not claimed."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import pytest
from energybid.drivers.identify import Candidate, Examiner, Identity, identify, rivals
from energybid.drivers.modbus import objects
from energybid.drivers.probe import Prober
from energybid.drivers.profile import LoadedProfile, list_profiles, load_profile, parse_profile
from energybid.drivers.target import parse_target
from energybid.simulator.bus import Station
from energybid.simulator.virtual import run
from scan_bench import HOST, bench, meter, scripted

TARGET = parse_target(HOST)


def profile(name: str, fingerprint: str = "", **keys: Any) -> LoadedProfile:
    text = f"""
manufacturer = "{keys.get("maker", "Maker")}"
model = "{name}"
source = [{{ title = "this test" }}]
max_registers = 20
baudrates = [9600]
parities = ["N"]
timeout = "200 ms"
defaults = {{ table = "{keys.get("table", "input")}", type = "uint16" }}
block = [{{ table = "{keys.get("table", "input")}", first = {keys.get("first", 0)}, count = 4 }}]

[[quantity]]
name = "{keys.get("quantity", "voltage-l1")}"
obis = "1-0:32.7.0"
register = {keys.get("first", 0)}
scale = "0.1"
unit = "V"
resolution = "0.1"

[[quantity]]
name = "{keys.get("second", "frequency")}"
obis = "1-0:14.7.0"
register = {keys.get("first", 0) + 1}
scale = "0.1"
unit = "Hz"
resolution = "0.1"

[identification]
{keys.get("serial", "")}
{fingerprint}
"""
    return parse_profile(name.lower().replace(" ", "-"), text.encode(), source=name)


def code(register: int, value: int) -> str:
    return f"""[[identification.fingerprint]]
table = "input"
register = {register}
type = "uint16"
equals = [{value}]
about = "model code"
"""


def registers(table: dict[tuple[int, int], int], said: dict[int, str] | None = None) -> Callable[[bytes], bytes]:
    """A device with these registers: (function, address) → value."""

    def answer(pdu: bytes) -> bytes:
        if pdu[0] == objects.FUNCTION:
            return objects.reply(said) if said else b"\xab\x01"
        function, first, count = struct.unpack(">BHH", pdu)
        places = [(function, address) for address in range(first, first + count)]
        if not all(place in table for place in places):
            return bytes((function | 0x80, 2))
        return bytes((function, 2 * count)) + b"".join(struct.pack(">H", table[place]) for place in places)

    return answer


LIVE = {(4, 0): 2300, (4, 1): 500, (4, 2): 0, (4, 3): 0}


def examine(station: Station, *profiles: LoadedProfile, **options: Any) -> Identity:
    async def main() -> Identity:
        prober = Prober(bench(station).open, TARGET)
        examiner = Examiner(prober, station.unit, 0.3, until=options.pop("until", float("inf")))
        try:
            return await identify(examiner, profiles, **options)
        finally:
            await prober.close()

    return run(main)


def names(identity: Identity) -> list[str]:
    return [candidate.profile for candidate in identity.candidates]


def test_a_code_decides() -> None:
    device = scripted(3, registers({**LIVE, (4, 11): 112}))
    identity = examine(device, profile("A", code(11, 110)), profile("B", code(11, 112)), profile("C"))
    assert identity.best is not None
    assert (identity.best.profile, identity.best.certain) == ("b", True)
    assert identity.best.reasons == ("model code at input 11",)


def test_a_fingerprint_that_is_refused_or_differs_excludes() -> None:
    device = scripted(3, registers(LIVE))
    assert names(examine(device, profile("A", code(11, 110)))) == []
    device = scripted(3, registers({**LIVE, (4, 11): 5}))
    assert names(examine(device, profile("A", code(11, 110)), thorough=True)) == []


def test_plausible_values_make_it_likely_and_no_more() -> None:
    identity = examine(scripted(3, registers(LIVE)), profile("A"), profile("B", first=100))
    assert identity.best is not None
    assert (identity.best.profile, identity.best.certain) == ("a", False)
    assert identity.best.reasons == ("voltage-l1 would be 230.0 V", "frequency would be 50.0 Hz")


def test_a_function_that_the_unit_does_not_know_is_asked_for_once() -> None:
    known, asked = registers(LIVE), []

    def answer(pdu: bytes) -> bytes:
        asked.append(pdu[0])
        return b"\x83\x01" if pdu[0] == 3 else known(pdu)

    others = [profile(f"H{first}", table="holding", first=first) for first in (0, 10, 20)]
    assert names(examine(scripted(3, answer), *others, profile("A"))) == ["a"]
    assert asked.count(3) == 1


def test_implausible_values_exclude() -> None:
    assert names(examine(scripted(3, registers({**LIVE, (4, 1): 23})), profile("A"))) == []
    assert names(examine(scripted(3, registers({**LIVE, (4, 0): 65_000})), profile("A"))) == []


def test_two_that_fit_alike_are_both_named_and_neither_is_chosen() -> None:
    identity = examine(scripted(3, registers(LIVE)), profile("A"), profile("B"))
    assert (names(identity), identity.best) == (["a", "b"], None)
    assert identity.likely is not None


def test_of_plausible_ones_the_one_that_can_be_read_whole_is_chosen() -> None:
    wide = parse_profile(
        "wide",
        b"""
manufacturer = "Maker"
model = "Wide"
source = [{ title = "this test" }]
max_registers = 20
baudrates = [9600]
parities = ["N"]
timeout = "200 ms"
defaults = { table = "input", type = "uint16" }
block = [{ table = "input", first = 0, count = 2 }, { table = "input", first = 50, count = 1 }]
quantity = [
  { name = "voltage-l1", obis = "1-0:32.7.0", register = 0, scale = "0.1", unit = "V", resolution = "0.1" },
  { name = "frequency", obis = "1-0:14.7.0", register = 1, scale = "0.1", unit = "Hz", resolution = "0.1" },
  { name = "power", obis = "1-0:16.7.0", register = 50, unit = "W", resolution = "1" },
]
""",
        source="wide",
    )
    device = scripted(3, registers(LIVE))
    identity = examine(device, wide, profile("A"))
    assert identity.best is not None
    assert identity.best.profile == "a"
    assert identity.candidates[1].reasons[-1] == "some of its registers are refused"


def test_a_model_without_voltage_is_only_perhaps_one() -> None:
    identity = examine(scripted(3, registers(LIVE)), profile("A", quantity="one", second="two"))
    assert (names(identity), identity.best, identity.likely) == (["a"], None, None)


def test_what_it_says_of_itself_counts() -> None:
    said = {0: "Maker GmbH", 1: "EX-3", 2: "V1.7"}
    device = scripted(3, registers({}, said))
    identity = examine(device, profile("EX 3"), profile("Other", maker="Else"))
    assert identity.objects["revision"] == "V1.7"
    assert identity.best is not None
    assert (identity.best.profile, identity.best.certain) == ("ex-3", True)
    assert identity.best.reasons == ("says that it is by Maker GmbH", "says that it is a EX 3")


def test_a_meter_whose_identification_is_garbled_is_identified_by_its_registers() -> None:
    known = registers(LIVE)
    device = scripted(3, lambda pdu: known(pdu) if pdu[0] != objects.FUNCTION else b"\x2b\x0e\x01\x01\x7f\x00\x00")
    identity = examine(device, profile("A"))
    assert identity.objects == {}
    assert names(identity) == ["a"]


def sunspec(base: int, *, length: int = 66) -> dict[tuple[int, int], int]:
    common = b"".join(
        text.encode().ljust(size, b"\x00")
        for text, size in (("Fronius", 32), ("Smart Meter", 32), ("", 16), ("1.3", 16), ("12345", 32), ("", 4))
    )
    data = b"SunS" + struct.pack(">HH", 1, length) + common[: 2 * length]
    data += struct.pack(">HH", 203, 2) + bytes(4) + struct.pack(">HH", 0xFFFF, 0)
    return {(3, base + n): word for n, (word,) in enumerate(struct.iter_unpack(">H", data))}


@pytest.mark.parametrize("base", [40_000, 50_000, 0])
def test_the_sunspec_marker_is_found_with_its_models(base: int) -> None:
    identity = examine(scripted(3, registers(sunspec(base))))
    assert identity.sunspec == {
        "base": str(base),
        "models": "1 203",
        "manufacturer": "Fronius",
        "model": "Smart Meter",
        "version": "1.3",
        "serial-number": "12345",
    }


def test_a_sunspec_chain_without_end_is_ended() -> None:
    chain = {(3, 40_000): 0x5375, (3, 40_001): 0x6E53}
    chain |= {(3, address): (7 if address % 2 == 0 else 0) for address in range(40_002, 40_400)}
    identity = examine(scripted(3, registers(chain)))
    assert identity.sunspec["models"] == " ".join(["7"] * 64)
    behind = {(3, 40_000): 0x5375, (3, 40_001): 0x6E53, (3, 40_002): 7, (3, 40_003): 60_000}
    assert examine(scripted(3, registers(behind))).sunspec == {"base": "40000", "models": ""}


def test_the_serial_number_is_read_where_the_profile_says() -> None:
    place = 'serial_number = { table = "holding", register = 9, type = "uint32", count = 2 }'
    device = scripted(3, registers({**LIVE, (4, 11): 112, (3, 9): 1, (3, 10): 2}))
    identity = examine(device, profile("A", code(11, 112), serial=place))
    assert identity.serial_number == "65538"
    text = 'serial_number = { table = "holding", register = 9, type = "text", count = 2 }'
    device = scripted(3, registers({**LIVE, (4, 11): 112, (3, 9): 0x4142, (3, 10): 0x4300}))
    assert examine(device, profile("A", code(11, 112), serial=text)).serial_number == "ABC"


def test_what_is_not_finished_claims_nothing_uncertain() -> None:
    device = scripted(3, registers(LIVE), delay_s=0.05)
    identity = examine(device, profile("A"), profile("B", first=90), until=0.4)
    assert not identity.complete
    assert identity.best is None


def test_no_model_of_the_library_is_mistaken_for_another() -> None:
    """A profile that makes this fail is plausible on another's meter: it needs a fingerprint, or the other one does."""
    library = [load_profile(name) for name in list_profiles()]

    async def main() -> dict[str, Identity]:
        found = {}
        for loaded in library:
            prober = Prober(bench(meter(3, loaded.name, delay_s=0.0)).open, TARGET)
            found[loaded.name] = await identify(Examiner(prober, 3, 0.3), library)
            await prober.close()
        return found

    identities = run(main)
    mistaken = {n: i.best.profile for n, i in identities.items() if i.best is not None and i.best.profile != n}
    unseen = [name for name, identity in identities.items() if name not in names(identity)]
    assert (mistaken, unseen) == ({}, [])


def test_rivals_judge_by_the_same_registers() -> None:
    library = [profile("A"), profile("B"), profile("C", first=100), profile("D", code(3, 1), quantity="x", second="y")]
    assert rivals(library, {"a"}) == {"a", "b"}
    assert rivals(library, {"d", "gone"}) == {"d"}


def test_the_best_needs_more_than_being_readable() -> None:
    def candidate(points: int, *, certain: bool = False) -> Candidate:
        return Candidate(profile=f"p{points}", manufacturer="", model="", points=points, certain=certain, reasons=())

    assert Identity(candidates=[candidate(5)], complete=True).best is None
    assert Identity(candidates=[candidate(60, certain=True)]).best is not None
    assert Identity(candidates=[candidate(20)]).best is None
    assert Identity(candidates=[candidate(20)], complete=True).best is not None
    assert Identity().likely is None


def test_a_unit_that_stops_answering_is_not_asked_for_ever() -> None:
    async def main() -> float:
        prober = Prober(bench(scripted(3, lambda _: b"")).open, TARGET)
        identity = await identify(Examiner(prober, 3, 0.3), [profile("A"), profile("B", first=9)])
        assert not identity.complete
        await prober.close()
        return asyncio.get_running_loop().time()

    assert run(main) < 2
