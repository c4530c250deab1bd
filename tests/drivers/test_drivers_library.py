"""What all profiles of the library have in common: one name for one thing, honest numbers, sources of their own."""

from collections import defaultdict
from fractions import Fraction
from urllib.parse import urlsplit

import pytest
from energybid.drivers.modbus.map import FLOATS
from energybid.drivers.profile import LoadedProfile, Register, list_profiles, load_profile, readable, wanted_spans
from energybid.drivers.profile_file import Source
from energybid.drivers.sunspec.models import MODELS
from energybid.drivers.sunspec.standard import load_standard

LIBRARY = {name: load_profile(name) for name in list_profiles()}
SUNSPEC = [load_standard(f"sunspec:{number}") for number, model in MODELS.items() if model.points]
ENERGY_UNITS = {"Wh", "varh", "VAh"}
BALANCES = {"energy-net", "reactive-energy-net"}
"""Import less export: they count both ways."""
APPARENT = {"heidelberg-energy-control"}
"""A wallbox that counts VAh only."""
CHOSEN = {"eastron-sdm120", "eastron-sdm220", "eastron-sdm230", "eastron-sdm320"}
"""What their totals hold is a setting of the meter; one of the choices is import less export."""
BINARY = {"wirenboard-wb-map3e"}
"""Counts fractions that are not decimal."""
TWINS = {
    "abb-b21": "abb-b23",
    "bgetech-drt428m-2": "orno-or-we-516",
    "bgetech-ws100": "orno-or-we-525",
    "carlo-gavazzi-em24-e1": "carlo-gavazzi-em340",
    "carlo-gavazzi-em511": "carlo-gavazzi-em112",
    "carlo-gavazzi-et340": "carlo-gavazzi-em340",
    "eastron-sdm220": "eastron-sdm120",
    "eastron-sdm230": "eastron-sdm120",
    "eastron-sdm320": "eastron-sdm120",
    "eastron-sdm54": "eastron-sdm630",
    "fif-le-03mw": "orno-or-we-516",
    "finder-7e23": "sbc-ald1b5",
    "finder-7m24": "finder-7m38",
    "garo-gnm3d": "carlo-gavazzi-em340",
    "inepro-pro1-mod": "inepro-pro380-mod",
    "janitza-umg511": "janitza-umg96rm",
    "klefr-6934": "inepro-pro380-mod",
    "lovato-dmed341": "siemens-pac1600",
    "phoenix-contact-eem-em357": "finder-7e78",
    "schneider-iem3150": "schneider-iem3255",
    "schneider-iem3155": "schneider-iem3255",
    "schneider-iem3250": "schneider-iem3255",
    "schneider-iem3350": "schneider-iem3255",
    "schneider-iem3355": "schneider-iem3255",
    "socomec-countis-e44": "socomec-countis-e34",
    "socomec-diris-a14": "socomec-countis-e34",
    "solaredge-se-mtr-3y": "ccs-wattnode-wnc",
    "wago-879-3000": "inepro-pro380-mod",
    "weidmueller-em525": "janitza-umg96rm",
}
"""The same map in another model, or under another maker's name: what both read they must read alike."""


def test_a_name_is_one_quantity_in_one_unit_everywhere() -> None:
    meanings, names = defaultdict(set), defaultdict(set)
    for loaded in [*LIBRARY.values(), *SUNSPEC]:
        for register in loaded.registers:
            obis = str(register.quantity.obis)
            meanings[register.name].add((obis, register.quantity.unit))
            names[obis].add(register.name)
    assert {name: found for name, found in meanings.items() if len(found) > 1} == {}
    assert {obis: found for obis, found in names.items() if len(found) > 1} == {}


@pytest.mark.parametrize("name", LIBRARY)
def test_energies_are_there_and_only_they_count_up(name: str) -> None:
    registers = {register.name: register.quantity for register in LIBRARY[name].registers}
    known = {"energy-import", "energy-total", "energy-import-t1", "energy-import-l1"}
    assert registers.keys() & (known | ({"apparent-energy"} if name in APPARENT else set()))
    counters = {key for key, quantity in registers.items() if quantity.cumulative}
    energies = {key for key, quantity in registers.items() if quantity.unit in ENERGY_UNITS} - BALANCES
    if name in CHOSEN:
        energies -= {"energy-total", "reactive-energy-total"}
    assert counters == energies


def is_exact(register: Register) -> bool:
    """Whether what is logged is a whole number for each count of the register: nothing is rounded away."""
    return register.type in FLOATS or bool(register.factors) or register.factor.denominator == 1


@pytest.mark.parametrize("name", LIBRARY)
def test_integer_registers_are_logged_as_they_count(name: str) -> None:
    assert name in BINARY or [r.name for r in LIBRARY[name].registers if not is_exact(r)] == []


FLOAT_BITS = 24
LEAST_RANGE = {"Wh": 10_000_000, "varh": 10_000_000, "VAh": 10_000_000}


@pytest.mark.parametrize("name", LIBRARY)
def test_float_energies_hold_their_resolution_for_long(name: str) -> None:
    """A float32 has 24 bits: what is logged is no finer than its steps, up to 10 MWh at least."""
    for register in LIBRARY[name].registers:
        if register.type == "float32" and register.quantity.unit in ENERGY_UNITS:
            holds = Fraction(10) ** register.quantity.exponent * 2**FLOAT_BITS
            assert holds > LEAST_RANGE[register.quantity.unit], register.name


@pytest.mark.parametrize("name", LIBRARY)
def test_every_block_is_read(name: str) -> None:
    loaded = LIBRARY[name]
    wanted = wanted_spans(loaded.registers)
    assert [block for block in readable(loaded.profile) if not any(map(block.holds, wanted))] == []


def publisher(source: Source) -> str:
    """Who says so: the repository, the site, or the work where it has no address."""
    parts = urlsplit(source.url or "")
    if parts.netloc == "github.com":
        return "/".join(parts.path.split("/")[1:3])
    return parts.netloc.removeprefix("www.") or source.title


@pytest.mark.parametrize("name", LIBRARY)
def test_sources_are_of_two_publishers(name: str) -> None:
    assert len({publisher(source) for source in LIBRARY[name].profile.source}) >= 2


def facts(loaded: LoadedProfile) -> dict[int, tuple[object, ...]]:
    """All about the quantity at an address; the table may differ: many meters answer to both functions."""
    return {r.first: (r.name, r.type, r.little, r.factor, r.quantity, r.markers, r.rollover) for r in loaded.registers}


@pytest.mark.parametrize("name", TWINS)
def test_the_same_map_is_read_alike(name: str) -> None:
    mine, other = facts(LIBRARY[name]), facts(LIBRARY[TWINS[name]])
    both = mine.keys() & other.keys()
    assert len(both) > len(mine) / 2
    assert {at: mine[at] for at in both} == {at: other[at] for at in both}


def test_no_model_stands_twice() -> None:
    models = [model for loaded in LIBRARY.values() for model in _models(loaded)]
    assert sorted({model for model in models if models.count(model) > 1}) == []


def _models(loaded: LoadedProfile) -> list[str]:
    profile = loaded.profile
    return [f"{profile.manufacturer} {model}" for model in [profile.model, *profile.also]]
