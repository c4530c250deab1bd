"""The demo's cast on paper: bus.toml, and the files of three gateways, the head-end and the market. Pure.

Gateway 1 reads a panel of meters at sixty times the pace of the clock, and bids with a battery and a photovoltaic
plant; gateway 2 bids with a car and a heat pump, gateway 3 with loads to shed and a machine to start. What bids lives
at the pace of the clock: a minute of delivery is a minute.
"""

from dataclasses import asdict, dataclass

TENANT, MARKET = "demo", "power"
GATEWAYS = ("gateway-1", "gateway-2", "gateway-3")
DAY_MIN = 1440

BUS = """\
# Meters that replay a recorded household, an hour a minute.
seed = 7
speed = 60

[[bus]]
name = "main-panel"
kind = "modbus-tcp"
meter = [
  { name = "house-1", unit = 1, profile = "eastron-sdm630", begin = "6 h" },
  { name = "roof", unit = 2, profile = "abb-b23", pv_peak_w = 6000, begin = "10 h" },
  { name = "workshop", unit = 3, profile = "schneider-iem3155", load = 3.0, begin = "17 h" },
]

[[bus]]
name = "basement"
kind = "modbus-rtu"
device = "basement.tty"
baudrate = 19200
meter = [
  { name = "boiler-room", unit = 11, profile = "carlo-gavazzi-em340", reply_delay = "20 ms", begin = "7 h" },
  { name = "flat-2", unit = 12, profile = "eastron-sdm630", reply_delay = "20 ms", begin = "18 h" },
]
faults = { crc_error = 0.02 } # noise on the line: the agent asks again
"""

SITES = """
# Sites that bid: what their devices are told moves their power, and their meters see it. At the pace of the clock.
[[bus]]
name = "gateway-1"
kind = "modbus-tcp"
speed = 1
meter = [
  { name = "site-1", unit = 1, profile = "kostal-ksem", begin = "12 h", assets = ["battery", "sun"] },
  { name = "battery", unit = 2, asset = { kind = "battery", capacity_wh = 2000, charge_w = 4000, discharge_w = 4000 } },
  { name = "sun", unit = 3, begin = "11 h", asset = { kind = "pv", peak_w = 5000 } },
]

[[bus]]
name = "gateway-2"
kind = "modbus-tcp"
speed = 1
meter = [
  { name = "site-2", unit = 1, profile = "kostal-ksem", begin = "18 h", assets = ["wallbox", "heat-pump"] },
  { name = "wallbox", unit = 2, asset = { kind = "wallbox", capacity_wh = 40000 } },
  { name = "heat-pump", unit = 3, begin = "18 h", asset = { kind = "heat-pump", least_w = 800, most_w = 2500 } },
]

[[bus]]
name = "gateway-3"
kind = "modbus-tcp"
speed = 1

[[bus.meter]]
name = "site-3"
unit = 1
profile = "kostal-ksem"
begin = "9 h"
assets = ["cold-store", "press"]

[[bus.meter]]
name = "cold-store"
unit = 2
asset = { kind = "load", power_w = 6000, parts_w = [1500, 1500, 1000] }

[[bus.meter]]
name = "press"
unit = 3
asset = { kind = "machine", profile_w = [3000, 1000], step = "1 min", every = "4 min" }
"""

GATEWAY = """\
[gateway]
tenant = "{tenant}"
id = "{id}"
trust_clock = true # one machine: the market, the head-end and the agents have the same clock, whoever sets it

[keys]
log = "../keys/log-{number}.pem"
headend = "../keys/headend.pub.pem"

[journal]
path = "journal.db"
commit_interval = "1 s"

[uplink]
url = "mqtt://127.0.0.1:{broker}"
mqtt = "3.1.1"
batch_interval = "10 s"

[status]
path = "status.json"
interval = "500 ms"
"""

METER = """
[[bus.meter]]
name = "{name}"
profile = "{profile}"
unit = {unit}
interval = "{interval}"
"""

TCP_BUS = """
[[bus]]
name = "{name}"
kind = "modbus-tcp"
host = "127.0.0.1"
port = {port}
"""

RTU_BUS = """
[[bus]]
name = "basement"
kind = "modbus-rtu"
device = "{folder}/basement.tty"
baudrate = 19200
"""

BIDS = """
[market]
name = "{tenant}/{market}"
key = "../keys/market.pub.pem"
bids = "../keys/bids-{number}.pem"
meter = "house"
import_limit = "17 kW"
export_limit = "10 kW"
"""

ASSETS = (
    """
[[market.asset]]
kind = "battery"
name = "battery"
set = "battery/power"
power = "battery/power"
state = "battery/state-of-charge"
capacity = "2 kWh"
charge = "4 kW"
discharge = "4 kW"
charge_efficiency = 0.95
discharge_efficiency = 0.95
charge_wear = 2
discharge_wear = 2

[[market.asset]]
kind = "pv"
name = "sun"
set = "sun/limit"
power = "sun/power"
available = "sun/available-power"
rated = "5 kW"
""",
    """
[[market.asset]]
kind = "ev"
name = "wallbox"
set = "wallbox/current-limit"
power = "wallbox/power"
plugged = "wallbox/plugged"
charged = "wallbox/session-energy"
phases = 3
least = "4140 W"
most = "11040 W"
wanted = "20 kWh"
capacity = "28 kWh"
shortage_price = 300
departure = "{departure}"

[[market.asset]]
kind = "thermal"
name = "heat-pump"
set = "heat-pump/power"
power = "heat-pump/power"
state = "heat-pump/temperature"
outside = "heat-pump/outdoor-temperature"
low = 20
high = 22
discomfort_price = 1
least = "800 W"
most = "2500 W"
model = {{ time_constant = "25 h", kelvin_per_kw = 18.75 }}
""",
    """
[[market.asset]]
kind = "curtailable"
name = "cold-store"
set = "cold-store/shed"
power = "cold-store/power"
load = "6 kW"
step = [
  {{ power = "1500 W", cost = 150, value = "1" }},
  {{ power = "1500 W", cost = 220, value = "2" }},
  {{ power = "1000 W", cost = 350, value = "3" }},
]

[[market.asset]]
kind = "deferrable"
name = "press"
set = "press/start"
power = "press/power"
state = "press/state"
profile = ["3 kW", "1 kW"]
profile_step = "1 min"
worth = 0.015
earliest = "{earliest}"
latest = "{latest}"
""",
)

HEADEND = """\
[headend]
database = "headend.db"
key = "keys/headend.pem"

[uplink]
url = "mqtt://127.0.0.1:{broker}"
mqtt = "3.1.1"
"""

REGISTERED = """
[[gateway]]
tenant = "{tenant}"
id = "{id}"
keys = ["keys/log-{number}.pub.pem"]
"""

MARKET_FILE = """\
[market]
name = "{tenant}/{market}"
key = "keys/market.pem"
database = "market.db"
headend = "headend.db"
bundles = "bundles"

[uplink]
url = "mqtt://127.0.0.1:{broker}"
mqtt = "3.1.1"

[round]
every = "1 min"
announce = "50 s"
gate = "8 s"
decimals = 4 # a minute of a site is worth less than a cent
settle_every = "1 s"
confirm_within = "10 s"

[prices]
file = "prices.csv" # a day without wind: mostly the price is far above what the day before had expected
speed = 60 # an hour of it passes in a minute
begin = "{begin} min"

[rest]
power = "60 kW"
spread = "40"
"""

DAY_AHEAD = (
    80,
    75,
    72,
    70,
    72,
    85,
    110,
    140,
    150,
    130,
    110,
    95,
    90,
    92,
    100,
    115,
    140,
    170,
    180,
    160,
    135,
    115,
    100,
    90,
)
"""Money per MWh, by hour."""
SURPRISE = (90, -30, 180, 260, 340, 120)
"""What real time adds to it, hour by hour."""
ROWS_AN_HOUR = 12

BIDDER = """
[[gateway]]
tenant = "{tenant}"
id = "{id}"
key = "keys/bids-{number}.pub.pem"
"""


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter of a gateway."""

    name: str
    profile: str
    unit: int
    interval: str = "1 s"


PANEL = (
    Meter("house-1", "eastron-sdm630", 1),
    Meter("roof", "abb-b23", 2),
    Meter("workshop", "schneider-iem3155", 3),
)
BASEMENT = (Meter("boiler-room", "carlo-gavazzi-em340", 11), Meter("flat-2", "eastron-sdm630", 12))


def _device(name: str, kind: str, unit: int) -> Meter:
    return Meter(name, f"{{folder}}/profiles/simulated-{kind}.toml", unit, "2 s")


DEVICES = (
    (_device("battery", "battery", 2), _device("sun", "pv", 3)),
    (_device("wallbox", "wallbox", 2), _device("heat-pump", "heat-pump", 3)),
    (_device("cold-store", "load", 2), _device("press", "machine", 3)),
)
HOUSE = 'quantities = ["voltage-l1", "current-l1", "power-import", "power-export", "energy-import", "energy-export"]\n'


def _meters(meters: tuple[Meter, ...]) -> str:
    return "".join(METER.format(**asdict(meter)) for meter in meters)


def bus_file(*, market: bool) -> str:
    """bus.toml, with or without the sites that bid."""
    return BUS + (SITES if market else "")


def gateway_file(folder: str, number: int, broker: int, ports: dict[str, int], minute: int | None) -> str:
    """gateway.toml of one gateway, which stands in a folder of its own.

    Args:
        folder: The demo's.
        number: From 1.
        broker: Port of the broker.
        ports: Of the Modbus TCP buses, by name.
        minute: Of the day, UTC; None: it does not bid.
    """
    name = GATEWAYS[number - 1]
    parts = [GATEWAY.format(tenant=TENANT, id=name, number=number, broker=broker)]
    if number == 1:
        panel = TCP_BUS.format(name="main-panel", port=ports["main-panel"])
        parts += [panel, _meters(PANEL), RTU_BUS, _meters(BASEMENT)]
    if minute is not None:
        house = _meters((Meter("house", "kostal-ksem", 1),)) + HOUSE
        parts += [TCP_BUS.format(name="site", port=ports[name]), house, _meters(DEVICES[number - 1])]
        times = {"departure": minute + 180, "earliest": minute - 1, "latest": minute + 12}
        texts = {key: f"{at // 60 % 24:02}:{at % 60:02}" for key, at in times.items()}
        parts += [BIDS.format(tenant=TENANT, market=MARKET, number=number), ASSETS[number - 1].format(**texts)]
    return "".join(parts).replace("{folder}", folder)


def headend_file(broker: int, gateways: int) -> str:
    """headend.toml with the first so many gateways."""
    registered = (REGISTERED.format(tenant=TENANT, id=GATEWAYS[n - 1], number=n) for n in range(1, gateways + 1))
    return HEADEND.format(broker=broker) + "".join(registered)


def price_file() -> str:
    """prices.csv: a day."""
    prices = [(price, price + SURPRISE[hour % len(SURPRISE)]) for hour, price in enumerate(DAY_AHEAD)]
    rows = "".join(f"{ahead},{real}\n" * ROWS_AN_HOUR for ahead, real in prices)
    return f"day_ahead_eur_mwh,real_time_eur_mwh\n{rows}"


def market_file(broker: int, minute: int) -> str:
    """market.toml with all gateways.

    Args:
        broker: Port of the broker.
        minute: Of the day, UTC.
    """
    bidders = (BIDDER.format(tenant=TENANT, id=name, number=n) for n, name in enumerate(GATEWAYS, 1))
    # Whatever the time, the demo begins in a morning of prices: by the clock they pass sixty times as fast.
    begin = (7 * 60 - 60 * minute) % DAY_MIN
    return MARKET_FILE.format(tenant=TENANT, market=MARKET, broker=broker, begin=begin) + "".join(bidders)
