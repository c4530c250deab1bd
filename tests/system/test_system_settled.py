"""A round from its announcement to its settlement, with every process real, and a kill -9 while it is delivered."""

import json
import signal
import subprocess

import pytest
from energybid.agent.commands.keys import write_pair
from energybid.core.cose import PrivateKey
from energybid.simulator.meters import device_profiles
from gateway_site import ENERGYBID, Site, wait_for

BUSES = """
[[bus]]
name = "site"
kind = "modbus-tcp"
port = {port}
speed = 1

[[bus.meter]]
name = "house"
unit = 1
profile = "kostal-ksem"
begin = "12 h"
assets = ["battery"]

[[bus.meter]]
name = "battery"
unit = 2
asset = {{ kind = "battery", capacity_wh = 2000, charge_w = 4000, discharge_w = 4000 }}
"""
GATEWAY = """
[[bus]]
name = "site"
kind = "modbus-tcp"
host = "127.0.0.1"
port = {port}

[[bus.meter]]
name = "house"
profile = "kostal-ksem"
unit = 1
interval = "1 s"
quantities = ["power-import", "power-export", "energy-import", "energy-export"]

[[bus.meter]]
name = "battery"
profile = "simulated-battery.toml"
unit = 2
interval = "1 s"

[market]
name = "demo/power"
key = "market.pub.pem"
bids = "bids.pem"
meter = "house"
import_limit = "17 kW"
export_limit = "10 kW"

[[market.asset]]
kind = "battery"
name = "battery"
set = "battery/power"
power = "battery/power"
state = "battery/state-of-charge"
capacity = "2 kWh"
charge = "4 kW"
discharge = "4 kW"
discharge_wear = 20
"""
MARKET = """
[market]
name = "demo/power"
key = "market.pem"
database = "market.db"
headend = "headend.db"

[uplink]
url = "mqtt://127.0.0.1:{port}"

[round]
every = "24 s"
announce = "22 s"
gate = "3 s"
decimals = 4
settle_every = "500 ms"

[prices]
file = "prices.csv"

[rest]
power = "60 kW"

[[gateway]]
tenant = "demo"
id = "gw-1"
key = "bids.pub.pem"
"""
PRICES = "day_ahead,real_time\n" + 24 * 12 * "100,400\n"
"""Nobody expected the price of the rounds: the battery gives then, and would not have."""
KEYS = [f"--key={role}={name}.pub.pem" for role, name in
        (("market", "market"), ("gateway", "bids"), ("log", "log"), ("headend", "headend"))]  # fmt: skip


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path, BUSES, GATEWAY)
    for name in ("market", "bids"):
        write_pair(tmp_path / f"{name}.pem", PrivateKey.from_entropy(48 * name[:1].encode()))
    for name, data in device_profiles():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "prices.csv").write_text(PRICES)
    (tmp_path / "market.toml").write_text(MARKET.format(port=made.broker.port))
    yield made
    made.close()


def told(market, kind):
    """What the market said of one kind, oldest first."""
    lines = (json.loads(line) for line in market.said().splitlines() if line.startswith("{"))
    return [event for event in lines if event["event"] == kind]


def delivered(site):
    """Number of the round whose award is followed now, and is seen to be; None without one."""
    market = site.status().get("market", {})
    battery_w = sum(each.get("power_w") or 0 for each in market.get("assets", []))
    if market.get("target_w") is None or battery_w > -1000:
        return None
    return next((each["number"] for each in market["rounds"] if each["state"] == "delivering"), None)


def settle(site, *arguments):
    done = subprocess.run(
        [ENERGYBID, "settle", *map(str, arguments)], cwd=site.folder, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_a_round_is_bid_awarded_delivered_over_a_kill_and_settled_from_the_gateways_own_log(site):
    site.broker.start()
    site.bus()
    site.headend()
    market = site.start("market", "simulate", "market", "-c", "market.toml", "--json")
    agent = site.agent()
    wait_for(lambda: delivered(site) is not None, "an award is followed", agent, market, deadline_s=80)
    number = delivered(site)
    agent.stop(signal.SIGKILL)
    (site.folder / "status.json").unlink()
    agent = site.agent()
    wait_for(lambda: delivered(site) == number, "the award is followed again", agent, market)

    def settled():
        return [event for event in told(market, "settled") if event["round"] == number]

    wait_for(settled, "the round is settled", agent, market, site.running[1])
    (event,) = settled()
    assert event["awarded_wh"] > 10, "the battery is wanted at a price that nobody expected"
    assert 0.4 < event["delivered_wh"] / event["awarded_wh"] < 1.2, "less what the restart took"
    assert float(event["amount"]) > 0
    stated = {"state": "settled", "number": number}
    wait_for(lambda: any(stated.items() <= each.items() for each in site.status()["market"]["rounds"]), "told", agent)
    assert agent.stop() == 0

    code, _, said = settle(site, "bundle", "--round", number, "-c", "gateway.toml", "-o", "round.bundle")
    assert code == 0, said
    data = bytearray((site.folder / "round.bundle").read_bytes())
    data[len(data) // 2] ^= 1
    (site.folder / "flipped.bundle").write_bytes(data)
    code, out, said = settle(site, "verify", "round.bundle", *KEYS)
    assert code == 0, out + said
    code, out, _ = settle(site, "verify", "flipped.bundle", *KEYS)
    assert code == 3, out
