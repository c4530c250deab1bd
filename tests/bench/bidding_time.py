"""How long a bid takes: 96 steps of a quarter of an hour, five assets, from prices to the curve.

.venv/bin/python tests/bench/bidding_time.py [--bids 300]
"""

import argparse
import resource
import sys
from random import Random
from time import perf_counter, process_time

from energybid.bidding.assets import Curtailable, Deferrable, Shed
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.horizon import Outlook
from energybid.bidding.site import Site
from energybid.bidding.site_shadow import shadows

STEPS = 96


def draw(random: Random) -> Site:
    battery = Battery(
        stored_wh=random.uniform(0, 10_000), capacity_wh=10_000, charge_w=5000, discharge_w=5000,
        charge_efficiency=0.95, discharge_efficiency=0.95, discharge_wear=10.0, final_price=40.0,
    )  # fmt: skip
    car = EvCharger(
        stored_wh=random.uniform(10_000, 40_000), capacity_wh=60_000, least_w=4140, most_w=11_040, efficiency=0.9,
        departure=random.randint(20, 60), wanted_wh=50_000, shortage_price=400.0,
    )  # fmt: skip
    heat = Thermal(
        temperature_c=random.uniform(20, 22), low_c=20.0, high_c=22.0, discomfort_price=0.5, time_constant_h=40.0,
        kelvin_per_w=0.012, rest_c=tuple(random.uniform(0, 8) for _ in range(STEPS)), least_w=900, most_w=3000,
        final_price=40.0,
    )  # fmt: skip
    run = Deferrable(profile_w=(2000, 2000, 300, 1500), worth=1.0, deadline=random.randint(30, 90))
    load = Curtailable(load_w=3000, sheds=(Shed(1000, 120.0), Shed(1000, 250.0)))
    return Site((battery, car, heat, run, load), 17_000, 8000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bids", type=int, default=300)
    random, wall, cpu, planned = Random(1), [], [], []
    for number in range(parser.parse_args().bids):
        site = draw(random)
        prices = [random.gauss(50, 40) for _ in range(STEPS)]
        outlook = Outlook.certain(0.25, prices[1:])
        started, used = perf_counter(), process_time()
        site.bid(outlook, base_w=800, tick=0.01)
        wall.append(perf_counter() - started)
        cpu.append(process_time() - used)
        if number % 10 == 0:
            used = process_time()
            shadows(Site(site.assets, 9000, 4000), prices, outlook, [800] * STEPS)
            planned.append(process_time() - used)
    for name, found in (("bid, wall", wall), ("bid, processor", cpu), ("shadow prices, processor", planned)):
        found.sort()
        sys.stdout.write(
            f"{name}: median {1e3 * found[len(found) // 2]:.1f} ms, 99 % {1e3 * found[len(found) * 99 // 100]:.1f} ms,"
            f" most {1e3 * found[-1]:.1f} ms\n"
        )
    sys.stdout.write(f"resident: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB\n")


if __name__ == "__main__":
    main()
