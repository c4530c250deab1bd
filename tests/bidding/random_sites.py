"""Sites with every kind of asset, from a seed: tight limits, negative prices, cars that can not be full in time."""

from random import Random

from energybid.bidding.assets import Asset, Curtailable, Deferrable, Pv, Shed
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.horizon import Outlook, Stage
from energybid.bidding.site import Site

KINDS = ("battery", "car", "heat", "run", "load", "sun")


def draw_asset(kind: str, random: Random, steps: int, step_h: float) -> Asset:
    return {"battery": _battery, "car": _car, "heat": _heat, "run": _run, "load": _load, "sun": _sun}[kind](
        random, steps, step_h
    )


def _battery(random, steps, step_h):
    capacity = random.randint(2000, 20000)
    return Battery(
        capacity_wh=capacity,
        stored_wh=random.choice([0.0, capacity, random.uniform(0, capacity)]),
        charge_w=random.randint(500, 10000),
        discharge_w=random.randint(500, 10000),
        charge_efficiency=random.choice([1.0, 0.95, 0.8]),
        discharge_efficiency=random.choice([1.0, 0.95, 0.8]),
        charge_wear=random.choice([0.0, 5.0]),
        discharge_wear=random.choice([0.0, 10.0]),
        reserve_wh=random.choice([0.0, 0.1 * capacity]),
        final_price=random.uniform(0, 80),
    )


def _car(random, steps, step_h):
    capacity = random.randint(20000, 80000)
    phases = random.choice([1, 3])
    return EvCharger(
        capacity_wh=capacity,
        stored_wh=random.uniform(0.1, 0.9) * capacity,
        least_w=1380 * phases,
        most_w=3680 * phases,
        efficiency=random.choice([1.0, 0.9]),
        arrival=random.choice([0, 0, steps // 4]),
        departure=random.randint(1, steps + steps // 4),
        wanted_wh=random.uniform(0.5, 1.0) * capacity,
        shortage_price=random.choice([150.0, 400.0]),
    )


def _heat(random, steps, step_h):
    cools = random.random() < 0.3
    outside = random.uniform(26, 34) if cools else random.uniform(-5, 15)
    most = random.randint(1000, 4000)
    return Thermal(
        temperature_c=random.uniform(19.5, 23.5),
        low_c=20.0,
        high_c=random.choice([21.0, 23.0]),
        discomfort_price=random.choice([0.1, 0.5]),
        time_constant_h=random.uniform(10, 60),
        kelvin_per_w=(-1 if cools else 1) * random.uniform(25, 40) / most,
        rest_c=tuple(outside + random.uniform(-3, 3) for _ in range(steps)),
        least_w=random.choice([0, most // 3, most]),
        most_w=most,
        most_c=random.choice([24.0, 30.0]),
        final_price=random.uniform(0, 80),
    )


def _run(random, steps, step_h):
    profile = (random.randint(500, 2500), *(random.randint(0, 2500) for _ in range(random.randint(0, 3))))
    earliest = random.choice([0, 0, 3])
    return Deferrable(
        profile_w=profile,
        worth=random.choice([0.2, 2.0]),
        earliest=earliest,
        deadline=earliest + len(profile) + random.randint(0, steps),
        done=random.choice([0, 0, 0, 1]),
    )


def _load(random, steps, step_h):
    sheds = tuple(Shed(random.randint(200, 1500), random.uniform(20, 250)) for _ in range(random.randint(1, 3)))
    return Curtailable(load_w=sum(shed.power_w for shed in sheds) + random.randint(0, 500), sheds=sheds)


def _sun(random, steps, step_h):
    return Pv(
        forecast_w=(random.randint(0, 8000),),
        support=random.choice([0.0, 40.0]),
        curtailable=random.random() < 0.8,
    )


def draw_outlook(random: Random, steps: int, step_h: float) -> Outlook:
    """Certain, or with two prices in each step, or a chain of two states."""
    prices = [random.uniform(-80, 200) for _ in range(steps)]
    kind = random.choice(["certain", "spread", "chain"])
    if kind == "certain":
        return Outlook.certain(step_h, prices)
    if kind == "spread":
        return Outlook.independent(step_h, [[(price - 40, 0.25), (price + 20, 0.75)] for price in prices])
    first = Stage((prices[0], prices[0] + 50), ((0.5, 0.5),))
    rest = [Stage((price - 20, price + 60), ((0.9, 0.1), (0.3, 0.7))) for price in prices[1:]]
    return Outlook(step_h, (first, *rest), 60.0)


def draw_site(random: Random, steps: int, step_h: float, *, most: int = 6) -> Site:
    kinds = random.sample(KINDS, random.randint(1, most)) + random.choices(KINDS, k=random.choice([0, 0, 1]))
    return Site(
        tuple(draw_asset(kind, random, steps, step_h) for kind in kinds),
        import_limit_w=random.choice([2000, 5000, 10000, 40000]),
        export_limit_w=random.choice([0, 2000, 5000, 40000]),
    )
