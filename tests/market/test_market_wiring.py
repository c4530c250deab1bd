"""``[market]`` in gateway.toml: what becomes of it, and what is said of every fault."""

from fractions import Fraction

import pytest
from energybid.agent.config import load_plan
from energybid.agent.market import plan
from energybid.agent.market.wiring import site_plan
from energybid.core.errors import ConfigurationError
from sites import DOCS, example, site


def faults(folder, *changes):
    text = example()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(ConfigurationError) as caught:
        load_plan(site(folder, text))
    return [line.partition("gateway.toml: ")[2] for line in caught.value.faults]


def test_the_example_of_the_docs_is_a_site_with_one_asset_of_every_kind(tmp_path):
    market = load_plan(site(tmp_path)).market
    assert market.name == "demo/power"
    assert (market.import_limit_w, market.export_limit_w, market.timezone) == (17_000, 10_000, "Europe/Berlin")
    assert [sensor.name for sensor in market.net] == ["power-import", "power-export"]
    assert [sensor.factor for sensor in market.net] == [pytest.approx(0.1), pytest.approx(-0.1)]
    assert (market.imported.name, market.exported.name) == ("energy-import", "energy-export")
    kinds = [type(asset) for asset in market.assets]
    assert kinds == [
        plan.BatteryPlan,
        plan.EvPlan,
        plan.ThermalPlan,
        plan.DeferrablePlan,
        plan.CurtailablePlan,
        plan.PvPlan,
    ]
    battery, ev, thermal, run, load, roof = market.assets
    assert (battery.control.point, battery.control.w_per_unit, battery.control.safe) == ("battery/power", 1, 0)
    assert (battery.wh_per_unit, battery.ramp_w_per_s) == (10_000.0, 1000.0)
    assert battery.state.factor == pytest.approx(1e-4)
    assert (ev.control.w_per_unit, ev.control.step, ev.departure_min) == (690, Fraction(1, 10), 420)
    assert (ev.capacity_wh, ev.charged.cumulative) == (20_000, False)
    assert (thermal.least_w, thermal.most_w, thermal.outside.name) == (1000, 3000, "outdoor-temperature")
    assert (run.profile_w, run.ready_values, run.on) == ((2000, 500, 500), (1.0,), 1)
    assert (load.load_w, [shed.value for shed in load.sheds]) == (3000, [1, 2])
    assert (roof.control.w_per_unit, roof.rated_w, roof.available.name) == (-1, 8000, "available-power")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (('meter = "house"', 'meter = "hose"'), "market.meter: 'hose' is no meter of this file: house, battery"),
        (('import_limit = "17 kW"\n', ""), "market.import_limit: is missing"),
        (('"battery/state-of-charge"', '"battery/soc"'), "market.asset[0].state: simulated-battery has no quantity"),
        (('"battery/state-of-charge"', '"nobody/soc"'), "market.asset[0].state: 'nobody' is no meter"),
        (
            ('"battery/state-of-charge"', '"heat-pump/temperature"'),
            "state: heat-pump/temperature is in Cel; wanted: no",
        ),
        (('set = "battery/power"', 'set = "battery/pwr"'), "asset[0].set: simulated-battery has no [[writable]] 'pwr'"),
        (('set = "battery/power"', 'set = "nobody/pwr"'), "asset[0].set: 'nobody' is no meter of this file"),
        (('set = "battery/power"', 'set = "machine/start"'), "asset: points must be unique: machine/start"),
        (('set = "battery/power"', 'set = "battery"'), "market.asset[0].battery.set: "),
        (('charge = "5 kW"', 'charge = "200 kW"'), "asset[0].charge: 200000 W is 200000 of power, which takes -100000"),
        (("phases = 3\n", ""), "asset[1].set: wallbox/current-limit is in A: say phases"),
        (('most = "11040 W"', 'most = "12 kW"'), "asset[1].most: 12000 W is 17.3913 of current-limit, which takes 0"),
        (('plugged = "wallbox/plugged"\n', ""), "arrival is missing: without plugged"),
        (("most_temperature = 25.0", 'on = "1"'), "least: with on it runs at most or not at all"),
        (('most = "3 kW"', 'most = "3 kWh"'), 'most: write a number and a unit (W, kW, MW) in quotes, such as "5 kW"'),
        (('power = "heat-pump/power"\n', ""), "power is missing: without it, or a [market.asset.model]"),
        (('power = "heat-pump/power"\n', 'least_run = "10 min"\n'), "nobody knows when it was switched last"),
        (("high = 22.5", 'high = 22.5\nleast_pause = "2 days"'), "asset[2].thermal.least_pause: "),
        (
            ('outside = "heat-pump/outdoor-temperature"', 'outside = "load/power"'),
            "asset[2].outside: load/power is in W",
        ),
        (('earliest = "08:00"', 'earliest = "8:00"'), 'earliest: write hours and minutes in quotes, such as "07:30"'),
        (('latest = "20:00"', 'latest = "08:30"'), "profile: longer than the time from earliest to latest"),
        (('value = "2" }', 'value = "16" }'), "asset[4].step[1].value: shed may be 0 to 15 1, not 16"),
        (('value = "2" }', 'value = "1" }'), "step: a value stands more than once"),
        (('timezone = "Europe/Berlin"', 'timezone = "Berlin"'), "market.timezone: no time zone of the IANA database"),
        (('key = "keys/market.pub.pem"', 'key = "keys/no.pem"'), "market.key: "),
        (('bids = "keys/bids.pem"', 'bids = "keys/bids.pub.pem"'), "market.bids: "),
        (('[uplink]\nurl = "mqtt://127.0.0.1:1883"\n', ""), "uplink is missing: the [market] is reached through"),
        (('name = "demo/power"', 'name = "power"'), "market.name: "),
        (('name = "car"', 'name = "battery"'), "asset: names must be unique: battery"),
        (('reserve = "1 kWh"', 'reserve = "11 kWh"'), "reserve: more than the capacity"),
        (("low = 20.0", "low = 24.0"), "low: not below high"),
        (('least = "4140 W"', 'least = "14 kW"'), "least: more than most"),
        (('wanted = "20 kWh"', 'wanted = "20 kWh"\ncapacity = "1 kWh"'), "capacity: less than is wanted"),
        (('departure = "07:00"', 'departure = "07:00"\narrival = "07:00"'), "departure: the time of the arrival"),
        (('profile = ["2 kW"', 'profile = ["0 W"'), "profile: the first step takes power"),
        (("worth = 1.50", 'worth = 1.50\non = "0"'), "on: the same as off"),
        (('set = "load/shed"\npower = "load/power"', 'set = "load/shed"'), "load is missing: without it and power"),
        (('set = "load/shed"', 'set = "load/shed"\nload = "1 kW"'), "step: they shed more than load"),
        (
            ('reserve = "1 kWh"', 'enable = [{ set = "house/x", value = "1" }]'),
            "asset[0].enable[0].set: kostal-ksem has no",
        ),
        (
            (
                'name = "house", profile = "kostal-ksem", unit = 1',
                'name = "house", profile = "kostal-ksem", unit = 1, quantities = ["energy-import"]',
            ),
            "market.meter: house does not poll its power (1-0:16.7.0, or 1-0:1.7.0 and 1-0:2.7.0)",
        ),
        (
            ('unit = 2, interval = "1 s"', 'unit = 2, quantities = ["power"]'),
            "asset[0].state: battery/state-of-charge is not polled: name it in the meter's quantities",
        ),
    ],
)
def test_a_fault_is_told_with_its_key(tmp_path, change, fault):
    found = faults(tmp_path, change)
    assert any(fault in line for line in found), found


@pytest.mark.parametrize(
    ("mirror", "fault"),
    [
        ("roof/limit", "asset[0].charge: 5000 W is -5000 of limit, which takes 0 to 1000000 W"),
        ("load/shed", "asset: points must be unique: load/shed"),
        ("load/none", "asset[0].mirror: simulated-load has no [[writable]] 'none'"),
        ("machine/start", "asset[0].mirror: machine/start has other units or steps than battery/power"),
        ("heat-pump/power", "asset[0].charge: 5000 W is -5000 of power, which takes -1 to 100000 W"),
    ],
)
def test_a_mirror_takes_the_negative(tmp_path, mirror, fault):
    head, tail = example().split('[[market.asset]]\nname = "roof"')[0], ""
    if mirror != "load/shed":
        head = head.replace('set = "machine/start"', 'set = "roof/limit"').replace(
            'set = "heat-pump/power"', 'set = "x/y"'
        )
    text = head.replace('reserve = "1 kWh"', f'reserve = "1 kWh"\nmirror = "{mirror}"') + tail
    if mirror == "roof/limit":
        text = text.replace('set = "roof/limit"', 'set = "machine/start"')
    with pytest.raises(ConfigurationError) as caught:
        load_plan(site(tmp_path, text))
    assert fault in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path):
    found = faults(
        tmp_path,
        ('meter = "house"', 'meter = "hose"'),
        ('"battery/state-of-charge"', '"battery/soc"'),
        ('most = "11040 W"', 'most = "12 kW"'),
        ('key = "keys/market.pub.pem"', 'key = "keys/no.pem"'),
    )
    assert len(found) == 4


def test_a_meter_with_a_fault_of_its_own_is_told_once(tmp_path):
    (line,) = faults(tmp_path, ('profile = "simulated-battery.toml"', 'profile = "no.toml"'))
    assert line.startswith("bus[0].meter[1].profile: ")


def test_a_number_without_a_safe_one_is_no_set_point(tmp_path):
    text = example()
    path = site(tmp_path, text)
    profile = tmp_path / "simulated-battery.toml"
    profile.write_text(profile.read_text(encoding="utf-8").replace('safe = "0"\n', ""), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_plan(path)
    assert "asset[0].set: battery/power has no safe number" in str(caught.value)


def test_masters_of_a_proxy_may_not_write_what_an_asset_is_set_by(tmp_path):
    allow = 'allow = [{ unit = 2, table = "holding", first = 100, count = 2 }]'
    proxy = f'\n[[proxy]]\nbus = "site"\nport = 0\n{allow}\n\n[market]'
    (line,) = faults(tmp_path, ("\n[market]", proxy))
    assert line.startswith("proxy[0].allow[0]: holds register 100 of unit 2, which is battery/power")


def test_variants(tmp_path):
    text = example()
    for old, new in (
        ('state = "battery/state-of-charge"', 'state = "battery/state-of-charge"\nfull = 100\nset_counts = "export"'),
        ("most_temperature = 25.0", 'model = { time_constant = "30 h", kelvin_per_kw = 4.0, free = 1.0 }'),
        ('outside = "heat-pump/outdoor-temperature"', "outside = 12.0"),
        ('least = "1 kW"\nmost = "3 kW"', 'most = "3 kW"\non = "3000"'),
        ('power = "roof/power"', 'power = "roof/power"\npower_counts = "export"'),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    battery, _, thermal, *_, roof = load_plan(site(tmp_path, text)).market.assets
    assert (battery.wh_per_unit, battery.control.w_per_unit) == (100.0, -1)
    assert (thermal.outside, thermal.outside_c, thermal.on, thermal.least_w) == (None, 12.0, 3000, 3000)
    assert thermal.model.kelvin_per_w == pytest.approx(0.004)
    assert thermal.model.time_constant_h == pytest.approx(30)
    assert roof.power.factor < 0


def test_the_wallbox_of_the_docs(tmp_path):
    blocks = (DOCS / "assets.md").read_text(encoding="utf-8").split("```toml\n")
    (wallbox,) = [block.split("```")[0] for block in blocks if "of the library" in block]
    head, tail = example().split('[[market.asset]]\nname = "car"')
    text = head + wallbox + "\n[[market.asset]]" + tail.split("[[market.asset]]", 1)[1]
    text = text.replace("simulated-wallbox.toml", "heidelberg-energy-control")
    car = load_plan(site(tmp_path, text)).market.assets[1]
    assert (car.control.point, car.control.safe, car.plugged_values) == ("wallbox/current-limit", 6, (4, 5, 6, 7))
    assert (car.charged.cumulative, car.power.unit, car.settle_s) == (True, "VA", 30.0)


COMPUTED = {
    "battery": {"capacity": "10 kWh", "charge": "5 kW", "discharge": "5 kW"},
    "ev": {
        "least": "4140 W",
        "most": "11 kW",
        "wanted": "20 kWh",
        "shortage_price": 400,
        "arrival": "18:00",
        "departure": "07:00",
    },
    "thermal": {
        "low": 20,
        "high": 22.5,
        "discomfort_price": 0.3,
        "most": "3 kW",
        "model": {"time_constant": "30 h", "kelvin_per_kw": 6.0},
    },
    "deferrable": {"profile": ["2 kW"], "worth": 1.5, "earliest": "08:00", "latest": "20:00"},
    "curtailable": {"load": "3 kW", "step": [{"power": "1 kW", "cost": 100, "value": "1"}]},
    "pv": {"rated": "8 kW"},
}


def test_for_computing_alone_what_only_a_gateway_needs_is_left_out():
    assets = [{"kind": kind, "name": kind} | facts for kind, facts in COMPUTED.items()]
    limits = {"import_limit": "17 kW", "export_limit": "10 kW"}
    found = site_plan("assets.toml", {"market": limits | {"asset": assets}, "gateway": {"id": "x"}})
    assert [asset.name for asset in found.assets] == list(COMPUTED)
    assert (found.import_limit_w, found.assets[0].capacity_wh) == (17_000, 10_000)
    assets[0]["capacity"] = "10"
    with pytest.raises(ConfigurationError, match=r"assets.toml: market.asset\[0\].battery.capacity: write a number"):
        site_plan("assets.toml", {"market": limits | {"asset": assets}})
    with pytest.raises(ConfigurationError, match="asset"):
        site_plan("assets.toml", {"market": limits | {"asset": ["x"]}})
