"""Devices that do what is written to them: energy is conserved to the microjoule, whoever looks how often."""

import struct
from fractions import Fraction
from random import Random

import pytest
from energybid.agent.cli import main
from energybid.core.errors import ConfigurationError
from energybid.core.settings import check
from energybid.drivers.profile import load_profile
from energybid.simulator.asset_loads import DONE, READY, RUNNING, Load, LoadType, Machine, MachineType, Pv, PvType
from energybid.simulator.asset_stores import (
    PERMILLE,
    Battery,
    BatteryType,
    HeatPump,
    HeatPumpType,
    Wallbox,
    WallboxType,
)
from energybid.simulator.assets import (
    AVAILABLE_POWER,
    DAY_MS,
    OPERATING_STATE,
    OUTDOORS,
    REMAINING,
    RESPONSE_MS,
    SESSION_ENERGY,
    STATE_OF_CHARGE,
    TEMPERATURE,
    Asset,
)
from energybid.simulator.config import BusFile
from energybid.simulator.connection import Connection
from energybid.simulator.household import UJ_PER_WH, Household, Site
from energybid.simulator.meters import device_profile
from energybid.simulator.serve import Sites, make_bus
from hypothesis import given, settings
from hypothesis import strategies as st

MINUTE, HOUR = 60_000, 3_600_000
BATTERY = BatteryType(capacity_wh=10_000, charge_w=5_000, discharge_w=4_000)
CAR = WallboxType(capacity_wh=2_000, arrives_ms=2 * MINUTE, stays_ms=30 * MINUTE, every_ms=HOUR)
PUMP = HeatPumpType(least_w=800, most_w=2_500)
MACHINE = MachineType(profile_w=(2_000, 100, 1_500), every_ms=20 * MINUTE, filled_ms=MINUTE)


def devices() -> list[Asset]:
    return [
        Battery(BATTERY),
        Wallbox(CAR),
        HeatPump(PUMP),
        Machine(MACHINE),
        Load(LoadType(power_w=3_000, parts_w=(1_000, 500))),
        Pv(PvType(peak_w=6_000, seed="7"), 9 * HOUR),
    ]


NUMBERS = (
    [-9_000, -4_000, -1, 0, 1, 3_333, 5_000],
    [0, 6, Fraction(13, 2), 16],
    [-1, 0, 500, 800, 1_700, 9_000],
    [0, 1],
    [0, 1, 2, 15],
    [0, 700, 1_000_000],
)
EVENTS = st.lists(
    st.tuples(st.integers(1, 9 * MINUTE), st.integers(0, 5), st.integers(0, 6), st.lists(st.integers(1, 90_000))),
    max_size=12,
)


def played(events, *, looks: bool):
    """A site after what was written, looked at now and then or only at the end."""
    assets = devices()
    household = Household("7", Site(pv_peak_w=3_000, begin_ms=10 * HOUR))
    connection = Connection(household, assets, import_wh=5)
    meters = [connection.device(asset) for asset in assets]
    at_ms = 0
    for wait_ms, which, number, at in events:
        for look in sorted(at) if looks else []:
            connection.state(min(at_ms + look, at_ms + wait_ms))
        at_ms += wait_ms
        numbers = NUMBERS[which]
        meters[which].written(assets[which].writable, Fraction(numbers[number % len(numbers)]), at_ms)
        meters[which].written("something else", Fraction(0), at_ms)
    at_ms += 7 * MINUTE
    return connection, assets, at_ms


@given(EVENTS)
@settings(max_examples=40, deadline=None)
def test_the_house_sees_exactly_the_household_and_its_devices(events):
    connection, assets, at_ms = played(events, looks=True)
    house = connection.state(at_ms)
    alone = Household("7", Site(pv_peak_w=3_000, begin_ms=10 * HOUR)).state(at_ms)
    net_uj = sum(house.import_uj) - sum(house.export_uj) - 5 * UJ_PER_WH
    theirs_uj = sum(asset.taken_uj - asset.given_uj for asset in assets)
    assert net_uj == sum(alone.import_uj) - sum(alone.export_uj) + theirs_uj
    assert sum(house.power_mw) == sum(alone.power_mw) + sum(asset.flow().power_mw for asset in assets)
    assert len({power > 0 for power in house.power_mw if power}) <= 1


@given(EVENTS)
@settings(max_examples=30, deadline=None)
def test_nothing_depends_on_who_looks_when(events):
    seen, seen_assets, at_ms = played(events, looks=True)
    unseen, unseen_assets, _ = played(events, looks=False)
    assert seen.state(at_ms) == unseen.state(at_ms)
    for one, other in zip(seen_assets, unseen_assets, strict=True):
        assert (one.taken_uj, one.given_uj, one.says) == (other.taken_uj, other.given_uj, other.says)


@given(st.lists(st.tuples(st.integers(-6_000, 6_000), st.integers(1, 2 * HOUR)), max_size=10))
@settings(max_examples=60, deadline=None)
def test_a_battery_stores_what_it_took_less_its_losses(orders):
    battery = Battery(BATTERY)
    began = battery.store.level
    for power_w, ms in orders:
        battery.write(Fraction(power_w), battery.at_ms)
        battery.run_to(battery.at_ms + ms)
        assert 0 <= battery.store.level <= battery.store.capacity
    stored = battery.taken_uj * 950 * 950 - battery.given_uj * PERMILLE * PERMILLE
    assert battery.store.level - began == stored
    assert battery.says == {STATE_OF_CHARGE: Fraction(battery.store.level, battery.store.capacity)}


def test_a_battery_follows_late_within_what_it_can_until_it_is_full():
    battery = Battery(BATTERY)
    battery.write(Fraction(9_000), 0)
    assert battery.flow() == (0, RESPONSE_MS)
    battery.run_to(RESPONSE_MS)
    assert battery.flow().power_mw == 5_000_000
    battery.run_to(4 * HOUR)
    assert battery.flow().power_mw == 0
    assert 5_263 * UJ_PER_WH < battery.taken_uj < 5_264 * UJ_PER_WH  # half of 10 kWh, at 95 %
    battery.write(Fraction(-9_000), 4 * HOUR)
    battery.run_to(5 * HOUR)
    assert battery.flow().power_mw == -4_000_000


def test_a_car_comes_pauses_below_six_amperes_is_full_and_goes():
    box = Wallbox(CAR)
    assert box.says == {STATE_OF_CHARGE: 0, OPERATING_STATE: 0, SESSION_ENERGY: 0}
    box.write(Fraction(16), 0)
    box.run_to(2 * MINUTE)
    assert box.flow().power_mw == 16 * 230 * 3 * 1000
    assert box.says[OPERATING_STATE] == 1
    assert box.says[STATE_OF_CHARGE] == Fraction(3, 10)
    box.write(Fraction(5), box.at_ms)
    box.run_to(4 * MINUTE)
    assert box.flow().power_mw == 0
    box.write(Fraction(16), box.at_ms)
    box.run_to(20 * MINUTE)
    assert box.flow().power_mw == 0
    assert Fraction(9999, 10_000) < box.says[STATE_OF_CHARGE] <= 1
    assert Fraction(1_400, Fraction("0.92")) - box.says[SESSION_ENERGY] < 1
    box.run_to(40 * MINUTE)
    assert box.says == {STATE_OF_CHARGE: 0, OPERATING_STATE: 0, SESSION_ENERGY: pytest.approx(1_400 / 0.92, abs=1)}
    box.run_to(HOUR + 3 * MINUTE)
    assert 0 < box.says[SESSION_ENERGY] < 200


def test_a_car_that_stays_leaves_for_the_next_one_at_once():
    box = Wallbox(WallboxType(capacity_wh=1_000, every_ms=HOUR, stays_ms=DAY_MS, phases=1))
    assert box.says[OPERATING_STATE] == 1
    box.run_to(HOUR - 1)
    assert box.says[STATE_OF_CHARGE] > Fraction(9, 10)
    box.run_to(HOUR)
    assert box.says[STATE_OF_CHARGE] == Fraction(3, 10)


def test_a_thermostat_keeps_the_house_between_its_limits():
    pump = HeatPump(PUMP)
    for _ in range(48):
        pump.run_to(pump.at_ms + HOUR // 2)
        assert Fraction(199, 10) < pump.says[TEMPERATURE] < Fraction(216, 10)
    assert Fraction(1) <= pump.says[OUTDOORS] <= Fraction(7)
    assert pump.taken_uj > 0


@pytest.mark.parametrize(
    ("written", "begin_mc", "power_w"),
    [
        (1_700, 20_500, 1_700),
        (9_000, 20_500, 2_500),
        (500, 20_500, 0),
        (0, 20_500, 0),
        (0, 16_000, 2_500),
        (2_000, 25_000, 0),
        (-1, 19_000, 2_500),
        (-1, 20_500, 0),
    ],
)
def test_a_heat_pump_does_what_is_written_within_its_own_limits(written, begin_mc, power_w):
    pump = HeatPump(HeatPumpType(least_w=800, most_w=2_500, begin_mc=begin_mc))
    pump.write(Fraction(written), 0)
    pump.run_to(RESPONSE_MS)
    assert pump.flow().power_mw == 1000 * power_w


def test_heat_follows_from_energy_and_loss():
    kind = HeatPumpType(least_w=800, most_w=2_500, outdoor_swing_mc=0)
    pump = HeatPump(kind)
    pump.write(Fraction(2_000), 0)
    pump.run_to(RESPONSE_MS)
    before = pump.says[TEMPERATURE]
    pump.run_to(RESPONSE_MS + HOUR)
    gained_wh = 2_000 * 3 - 160 * (float(before) - 4 + 0.4)
    assert float(pump.says[TEMPERATURE] - before) == pytest.approx(gained_wh / 4_000, abs=0.02)


def test_a_machine_runs_once_to_its_end_when_it_is_ready():
    machine = Machine(MACHINE)
    machine.write(Fraction(1), 0)
    machine.run_to(MINUTE)
    assert machine.says == {OPERATING_STATE: RUNNING, REMAINING: 180}
    machine.write(Fraction(0), machine.at_ms)
    machine.run_to(2 * MINUTE + 30_000)
    assert machine.flow().power_mw == 100_000
    assert machine.says[REMAINING] == 90
    machine.run_to(4 * MINUTE)
    assert machine.says == {OPERATING_STATE: DONE, REMAINING: 0}
    assert machine.taken_uj == 60 * UJ_PER_WH
    machine.run_to(21 * MINUTE)
    assert machine.says[OPERATING_STATE] == READY
    machine.run_to(40 * MINUTE)
    assert machine.taken_uj == 60 * UJ_PER_WH


def test_parts_of_a_load_are_shed_in_their_order():
    load = Load(LoadType(power_w=3_000, parts_w=(1_000, 500)))
    seen = []
    for shed in (0, 1, 2, 15):
        load.write(Fraction(shed), load.at_ms)
        load.run_to(load.at_ms + RESPONSE_MS)
        seen.append(load.flow().power_mw // 1000)
    assert seen == [3_000, 2_000, 1_500, 1_500]


def test_a_plant_gives_its_light_up_to_the_limit():
    chance = Random(1)
    plant = Pv(PvType(peak_w=6_000, seed="1"), 12 * HOUR)
    assert 3_600 <= plant.says[AVAILABLE_POWER] <= 6_000
    assert plant.flow().power_mw == -1000 * plant.says[AVAILABLE_POWER]
    plant.write(Fraction(700), plant.at_ms)
    plant.run_to(plant.at_ms + RESPONSE_MS)
    assert plant.flow().power_mw == -700_000
    plant.run_to(plant.at_ms + chance.randrange(HOUR) + 12 * HOUR)
    assert plant.flow().power_mw == 0


# ---------------------------------------------------------------- on a bus

ASSETS = {
    "battery": {"kind": "battery", "capacity_wh": 10_000, "charge_w": 5_000, "discharge_w": 5_000},
    "wallbox": {"kind": "wallbox"},
    "pump": {"kind": "heat-pump", "least_w": 800, "most_w": 3_000},
    "machine": {"kind": "machine", "profile_w": [2_000, 100], "step": "1 min"},
    "load": {"kind": "load", "power_w": 3_000, "parts_w": [1_000, 500]},
    "sun": {"kind": "pv", "peak_w": 6_000},
}
HOUSE = {"name": "house", "unit": 1, "profile": "kostal-ksem", "begin": "11 h", "assets": list(ASSETS)}
DEVICES = [{"name": name, "unit": n, "asset": asset} for n, (name, asset) in enumerate(ASSETS.items(), 2)]


def bus_file(*meters, **more):
    bus = {"name": "p", "kind": "modbus-tcp", "meter": list(meters), **more}
    return check("bus.toml", {"bus": [bus]}, BusFile)


class Line:
    """Requests to a bus, at moments of the replay."""

    def __init__(self, file):
        self.at_ms = 0
        sites = Sites(file)
        self.buses = [make_bus(bus, file.seed, lambda: self.at_ms, sites) for bus in file.bus]
        self.names = {s.name: s.device for bus in self.buses for s in bus.stations}

    def read(self, meter, quantity):
        """A number of a meter, in its unit."""
        device = self.names[meter]
        loaded = load_profile(device_profile(f"simulated-{quantity[0]}")) if isinstance(quantity, tuple) else KSEM
        name = quantity[1] if isinstance(quantity, tuple) else quantity
        register = next(register for register in loaded.registers if register.name == name)
        answer = device.respond(
            struct.pack(">BHH", register.function, register.first, register.end - register.first), self.at_ms
        )
        raw = int.from_bytes(answer[2:], "big", signed=register.type.startswith("int"))
        return raw * register.scale

    def write(self, meter, words):
        data = words.to_bytes(4 if meter in {"battery", "pump", "sun"} else 2, "big", signed=True)
        head = struct.pack(">BHHB", 16, 100, len(data) // 2, len(data))
        return self.names[meter].respond(head + data, self.at_ms)


KSEM = load_profile("kostal-ksem")


def test_what_is_written_to_a_device_is_seen_at_its_meter_and_at_the_house():
    line = Line(bus_file(HOUSE, *DEVICES))
    before = line.read("house", "power-import") - line.read("house", "power-export")
    assert line.write("battery", 2_000) == struct.pack(">BHH", 16, 100, 2)
    line.write("load", 2)
    line.write("sun", 0)
    line.at_ms = RESPONSE_MS
    assert line.read("battery", ("battery", "power")) == 2_000
    assert line.read("load", ("load", "power")) == 1_500
    assert line.read("sun", ("pv", "power")) == 0
    assert line.read("battery", ("battery", "state-of-charge")) == Fraction(1, 2)
    devices = sum(line.read(name, (kind, "power")) for name, kind in PROFILES.items())
    assert devices == 2_000 + 4_140 + 1_500
    line.at_ms = HOUR
    assert line.read("battery", ("battery", "energy-import")) == pytest.approx(2_000, abs=1)
    assert line.read("wallbox", ("wallbox", "plugged")) == 1
    assert line.read("machine", ("machine", "state")) == READY
    assert line.read("pump", ("heat-pump", "temperature")) > 19
    assert line.read("house", "power-import") != before
    assert line.write("load", 16)[0] == 16 | 0x80
    assert line.names["battery"].respond(struct.pack(">BHH", 3, 100, 2), HOUR)[2:] == (2_000).to_bytes(4, "big")


PROFILES = {"battery": "battery", "wallbox": "wallbox", "pump": "heat-pump", "machine": "machine", "load": "load",
            "sun": "pv"}  # fmt: skip


def test_a_device_that_no_meter_measures_stands_alone():
    line = Line(bus_file(DEVICES[4]))
    line.at_ms = HOUR
    assert line.read("load", ("load", "energy-import")) == 3_000


@pytest.mark.parametrize(
    ("meters", "says"),
    [
        ([{**HOUSE, "assets": ["nobody"]}], "nobody is no device here"),
        ([HOUSE, {**HOUSE, "name": "other", "unit": 9}, *DEVICES], "battery: several meters measure it"),
        ([{"name": "x", "unit": 1}], "one of profile, dump and asset"),
        ([{**DEVICES[0], "profile": "kostal-ksem"}], "one of profile, dump and asset"),
        ([{**DEVICES[0], "assets": ["sun"]}, DEVICES[5]], "only a meter with a profile"),
        ([{**HOUSE, "pv_peak_w": 100}, *DEVICES], "write an asset of kind pv"),
        ([{**HOUSE, "profile": "sunspec:203", "assets": []}, {**DEVICES[0], "asset": {"kind": "toaster"}}], "kind"),
    ],
)
def test_what_does_not_fit_is_named(meters, says):
    with pytest.raises(ConfigurationError, match=says):
        bus_file(*meters)


def test_a_meter_and_its_devices_live_at_one_pace():
    fast = {"name": "fast", "kind": "modbus-tcp", "speed": 60, "meter": [HOUSE]}
    slow = {"name": "slow", "kind": "modbus-tcp", "meter": DEVICES}
    with pytest.raises(ConfigurationError, match="battery is on a bus of another speed"):
        check("bus.toml", {"bus": [fast, slow]}, BusFile)


def test_the_profiles_are_written_for_gateways(tmp_path, capsys):
    assert main(["simulate", "profiles", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out.count(".toml") == 6
    for path in (tmp_path / "new").iterdir():
        assert load_profile(str(path)).writables


def test_devices_without_a_household_are_a_site_too():
    load = Load(LoadType(power_w=3_000, parts_w=()))
    connection = Connection(None, [load])
    state = connection.state(HOUR)
    assert sum(state.import_uj) == 3_000 * UJ_PER_WH
    assert state.voltage_mv == (230_000, 230_000, 230_000)
    assert state.power_mw == (1_000_000, 1_000_000, 1_000_000)
