"""market.toml: what it says becomes terms, what is wrong in it is named; and the command on it."""

import json
from decimal import Decimal
from pathlib import Path

import pytest
from energybid.agent.cli import main
from energybid.agent.commands.keys import write_pair
from energybid.bidding import baseline_rules
from energybid.core.cose import PrivateKey
from energybid.core.errors import ConfigurationError
from energybid.simulator.market.config import load_plan
from energybid.sync.market import Pricing

SMALL = """
[market]
name = "demo/power"
key = "keys/market.pem"
database = "market.db"

[uplink]
url = "mqtt://127.0.0.1:1"
"""
WHOLE = (
    SMALL.replace('database = "market.db"', 'database = "market.db"\nheadend = "headend.db"\nbundles = "b"')
    + """
[round]
every = "30 min"
announce = "20 min"
gate = "2 min"
currency = "USD"
decimals = 3
least_price = "-10.5"
most_price = 200
pricing = "as-bid"
programme = "rules.toml"

[prices]
file = "prices.csv"
speed = 60
begin = "1 h"

[rest]
power = "2 MW"
spread = "5.25"
steps = 10

[[gateway]]
tenant = "demo"
id = "gw-1"
key = "keys/market.pub.pem"
meter = "main"
exports = "1-0:2.8.1"
events = [2026-07-04, 2026-07-03, 2026-07-04]

[[gateway]]
tenant = "demo"
id = "gw-2"
key = "keys/market.pub.pem"
"""
)


@pytest.fixture
def folder(tmp_path):
    write_pair(tmp_path / "keys" / "market.pem", PrivateKey.from_entropy(bytes(48)))
    (tmp_path / "rules.toml").write_bytes(baseline_rules.text_of("none").replace(b'"none"\n', b'"mine"\n', 1))
    (tmp_path / "prices.csv").write_text("real_time,day_ahead\n1,2\n")
    return tmp_path


def load(folder: Path, text: str):
    (folder / "market.toml").write_text(text)
    return load_plan(folder / "market.toml")


def test_what_is_left_out_has_a_default(folder):
    plan = load(folder, SMALL)
    terms = plan.terms
    assert (terms.period_ms, terms.announce_ms, terms.gate_ms, terms.interval_ms) == (900_000, 600_000, 60_000, 900_000)
    assert (terms.least_ticks, terms.most_ticks, terms.decimals) == (-50_000, 400_000, 2)
    assert (terms.programme, terms.pricing, plan.headend, plan.bundles) == ("none", Pricing.UNIFORM, None, None)
    assert terms.rest.bid(6_000).curve.ceiling_w == 1_000_000
    assert plan.uplink.client_id == "energybid-market"


def test_all_that_it_says_is_taken(folder):
    plan = load(folder, WHOLE)
    terms, (first, second) = plan.terms, plan.members
    assert (terms.name, terms.currency, terms.programme) == ("demo/power", "USD", "mine")
    assert (terms.least_ticks, terms.most_ticks, terms.interval_ms) == (-10_500, 200_000, 900_000)
    assert terms.pricing == Pricing.AS_BID
    assert terms.prices.day_ahead(0) == Decimal(2)
    assert terms.prices.hour_ms == 60_000
    assert (terms.rest.power_w, terms.rest.spread_ticks) == (2_000_000, 5_250)
    assert (first.meter, first.exports[4], len(first.events)) == ("main", 1, 2)
    assert (second.origin, second.meter, second.exports[4]) == ("demo/gw-2", "house", 0)
    assert plan.headend == str(folder / "headend.db")


FAULTS = {
    "a price that is no decimal": ('least_price = "-10.5"', "least_price = -10.5", "write money per MWh in quotes"),
    "a price of letters": ('least_price = "-10.5"', 'least_price = "cheap"', "write money per MWh in quotes"),
    "bounds that exclude each other": ("most_price = 200", "most_price = -11", "least_price: is above most_price"),
    "no time to bid": ('gate = "2 min"', 'gate = "20 min"', "announce: must be more than gate"),
    "half a second": ('every = "30 min"', 'every = "1800500 ms"', "whole seconds"),
    "what can not be settled": ('every = "30 min"', 'every = "7000 s"\ninterval = "7 s"', "whole seconds that divide"),
    "a bad interval": ('gate = "2 min"', 'gate = "2 min"\ninterval = "7 min"', "interval: must divide the round"),
    "seconds of other days": ('programme = "rules.toml"', 'programme = "ercot-middle-8-of-10"\ninterval = "20 s"',
                              "round.interval: .* whole minutes that divide the hour are wanted, to settle by ercot"),
    "an odd speed": ("speed = 60", "speed = 7", "must divide the hour"),
    "a market without a tenant": ('name = "demo/power"', 'name = "power"', "write tenant/market"),
    "a register": ('exports = "1-0:2.8.1"', 'exports = "2.8.1"', "is not an OBIS code"),
    "a gateway twice": ('id = "gw-2"', 'id = "gw-1"', "listed more than once: demo/gw-1"),
    "no key": ('key = "keys/market.pem"', 'key = "keys/none.pem"', r"market.key: .*none\.pem"),
    "no key of a gateway": ('meter = "main"', 'meter = "main"\n[[gateway]]\ntenant = "a"\nid = "b"\nkey = "no.pem"',
                            r"gateway\[1\]\.key: .*no\.pem"),
    "no programme": ('programme = "rules.toml"', 'programme = "nowhere.toml"', "round.programme: .*No such file"),
    "an unknown programme": ('programme = "rules.toml"', 'programme = "best"', "round.programme: programme 'best'"),
    "no prices": ('file = "prices.csv"', 'file = "none.csv"', "prices.file: .*No such file"),
    "no table of prices": ('file = "prices.csv"', 'file = "rules.toml"', "no table of prices"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAULTS)
def test_what_is_wrong_is_named(folder, what):
    before, after, says = FAULTS[what]
    assert before in WHOLE
    with pytest.raises(ConfigurationError, match=says):
        load(folder, WHOLE.replace(before, after, 1))


def test_a_schedule_may_be_settled_by_seconds(folder):
    text = WHOLE.replace('every = "30 min"', 'every = "20 s"').replace('gate = "2 min"', 'gate = "5 s"')
    assert load(folder, text).terms.interval_ms == 20_000


def test_a_file_that_is_not_there(folder):
    with pytest.raises(ConfigurationError, match=r"none\.toml: .*README"):
        load_plan(folder / "none.toml")


def test_the_command_tells_what_happens_and_goes_on(folder, capsys):
    text = SMALL + '[round]\nevery = "10 s"\nannounce = "60 s"\ngate = "1 s"\n'
    load(folder, text)
    command = ["simulate", "market", "-c", str(folder / "market.toml"), "--for", "300ms"]
    assert main([*command, "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0] == {"event": "ready", "market": "demo/power", "gateways": 0}
    numbers = [event["round"] for event in events if event["event"] == "announced"]
    assert numbers[:2] == [1, 2]
    assert len(numbers) >= 4
    assert main([*command, "--json"]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not {event.get("round") for event in again if event["event"] == "announced"} & set(numbers)
    assert main(command) == 0
