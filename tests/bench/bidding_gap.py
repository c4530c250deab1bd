"""What the round-by-round bids of random sites lose against a plan of all steps at once that knows every price.

The plan (HiGHS) has each asset's exact equations and the site's limits in every step; the bids are the product's own,
one round after the other, each with the prices of the rest known. What they lose is the price of value functions that
look at one asset at a time, of their grids and of their hulls.

    PYTHONPATH=tests/bidding .venv/bin/python tests/bench/bidding_gap.py [--sites 100] [--steps 32] [--seed 0] [--wide]
"""

import argparse
import sys
from dataclasses import dataclass, replace
from random import Random
from statistics import median, quantiles

import highspy
from energybid.bidding.assets import Curtailable, Deferrable, Pv
from energybid.bidding.assets_stores import Battery, EvCharger, Thermal
from energybid.bidding.horizon import Outlook
from energybid.bidding.site import Site
from energybid.bidding.site_shadow import shadows
from random_sites import KINDS, draw_asset
from round_oracle import quiet_solver

KILO, MILLION = 1e3, 1e6
EXCESS_PRICE = 3000.0
"""Of power outside the site's limits, money per MWh, in both plans."""
SECONDS = 30.0
WIDE_W = 1_000_000


@dataclass
class Case:
    site: Site
    prices: list[float]
    base_w: list[int]
    step_h: float


def draw(random: Random, steps: int) -> Case:
    step_h = 24 / steps
    assets = [_ends_within(draw_asset(kind, random, steps, step_h), steps) for kind in random.sample(KINDS, 5)]
    base_w = [random.randint(200, 2500) for _ in range(steps)]
    sun = random.randint(2000, 8000)
    sun_w = tuple(max(0, round(sun * (1 - ((t + 0.5) / steps * 4 - 2) ** 2))) for t in range(steps))
    assets = [replace(asset, forecast_w=sun_w) if isinstance(asset, Pv) else asset for asset in assets]
    site = Site(tuple(assets), random.choice([5000, 10000, 17000, 40000]), random.choice([0, 3000, 6000, 40000]))
    prices = [random.choice([0, 60]) + random.gauss(50, 40) for _ in range(steps)]
    return Case(site, prices, base_w, step_h)


def _ends_within(asset, steps):
    if isinstance(asset, EvCharger):
        return replace(asset, departure=min(asset.departure, steps))
    if isinstance(asset, Deferrable):
        return replace(asset, deadline=min(asset.deadline, steps), done=0)
    return asset


def rounds(case: Case, *, acts: bool) -> tuple[float, float]:
    """Total worth, and turnover, of bidding round by round; or of doing nothing."""
    site, total, turnover = case.site, 0.0, 0.0
    outlook = Outlook.certain(case.step_h, case.prices[1:])
    if acts:
        outlook = outlook.raised(shadows(site, case.prices, outlook, case.base_w)[1:])
    ahead = site.ahead(outlook)
    for t, price in enumerate(case.prices):
        response = site.respond([rows[t] for rows in ahead], step_h=case.step_h, base_w=case.base_w[t], step=t)
        if acts:
            net_w = max(response.corners, key=lambda point: point.value - price * point.net_w).net_w
            split = response.split(net_w)
        else:
            split = tuple(_idle_w(asset, t) for asset in site.assets)
        net_w = case.base_w[t] + sum(split)
        after = site.after(split, step_h=case.step_h, step=t)
        over_w = max(0, net_w - site.import_limit_w, -site.export_limit_w - net_w)
        total -= (price * net_w + EXCESS_PRICE * over_w) * case.step_h
        total += sum(
            _worth(a, b, power_w, t, case.step_h)
            for a, b, power_w in zip(site.assets, after.assets, split, strict=True)
        )
        turnover += abs(price * net_w) * case.step_h
        site = after
    return total + sum(_final(asset, case) for asset in site.assets), turnover


def _idle_w(asset, step: int) -> int:
    if isinstance(asset, Pv):
        return -asset.forecast_w[step]
    return asset.load_w if isinstance(asset, Curtailable) else 0


def _worth(before, after, power_w: int, step: int, step_h: float) -> float:
    """Of one asset's step beside its energy, millionths of money."""
    if isinstance(before, Battery):
        return -(before.charge_wear * max(power_w, 0) + before.discharge_wear * max(-power_w, 0)) * step_h
    if isinstance(before, EvCharger):
        missing = max(0.0, before.wanted_wh - after.state) if step == before.departure - 1 else 0.0
        return -before.shortage_price * missing
    if isinstance(before, Thermal):
        outside = max(0.0, before.low_c - after.state, after.state - before.high_c)
        return -before.discomfort_price * MILLION * step_h * outside
    if isinstance(before, Deferrable):
        return before.worth * MILLION if after.done == 1 and not before.done else 0.0
    if isinstance(before, Pv):
        return -before.support * (power_w + before.forecast_w[step]) * step_h
    left_w, cost = before.load_w - power_w, 0.0
    for shed in before.sheds:
        if left_w > 0:
            cost += shed.power_w * shed.cost
            left_w -= shed.power_w
    return -cost * step_h


def _final(asset, case: Case) -> float:
    if isinstance(asset, Battery):
        return asset.final_price * max(0.0, asset.state - asset.reserve_wh)
    if isinstance(asset, Thermal):
        return asset.final_price * _wh_per_k(asset, case.step_h) * min(asset.state, asset.high_c)
    return 0.0


def _wh_per_k(heat: Thermal, step_h: float) -> float:
    return step_h / heat.modes(0, step_h)[1].gain


class Plan:
    """All steps in one program; powers in kW, values in thousandths of money."""

    def __init__(self, case: Case) -> None:
        self.case, self.h = case, case.step_h
        solver = self.solver = quiet_solver()
        solver.setOptionValue("mip_rel_gap", 1e-4)
        solver.setOptionValue("time_limit", SECONDS)
        self.terms: list = []
        solver.addBinary()  # so that it always is an integer program, and has a bound
        columns = [self._asset(asset) for asset in case.site.assets]
        for t, price in enumerate(case.prices):
            net = self._free()
            over = solver.addVariable(0, highspy.kHighsInf)
            solver.addConstr(net == case.base_w[t] / KILO + sum(column[t] for column in columns))
            solver.addConstr(net - over <= case.site.import_limit_w / KILO)
            solver.addConstr(net + over >= -case.site.export_limit_w / KILO)
            self.terms += [(-price * self.h) * net, (-EXCESS_PRICE * self.h) * over]

    def bound(self) -> float:
        """An upper bound of what any plan comes to, millionths of money."""
        self.solver.maximize(sum(self.terms))
        return self.solver.getInfo().mip_dual_bound * KILO

    def _free(self):
        return self.solver.addVariable(-highspy.kHighsInf, highspy.kHighsInf)

    def _asset(self, asset):
        kinds = {
            Battery: self._battery,
            EvCharger: self._car,
            Thermal: self._heat,
            Deferrable: self._run,
            Curtailable: self._load,
            Pv: self._sun,
        }
        return kinds[type(asset)](asset)

    def _battery(self, b):
        solver, stored, powers = self.solver, b.state / KILO, []
        for _ in self.case.prices:
            into, out = solver.addVariable(0, b.charge_w / KILO), solver.addVariable(0, b.discharge_w / KILO)
            charges = solver.addBinary()
            after = solver.addVariable(0, b.capacity_wh / KILO)
            solver.addConstr(into <= charges * (b.charge_w / KILO))
            solver.addConstr(out <= (1 - charges) * (b.discharge_w / KILO))
            solver.addConstr(
                after == stored + into * (self.h * b.charge_efficiency) - out * (self.h / b.discharge_efficiency)
            )
            # Below the reserve it may charge, not discharge.
            solver.addConstr(after >= b.reserve_wh / KILO * (1 - charges))
            self.terms.append(into * (-b.charge_wear * self.h) - out * (b.discharge_wear * self.h))
            stored = after
            powers.append(into - out)
        above = solver.addVariable(0, highspy.kHighsInf)
        solver.addConstr(above <= stored - b.reserve_wh / KILO)
        self.terms.append(above * b.final_price)
        return powers

    def _car(self, car):
        solver, stored, powers = self.solver, car.state / KILO, []
        for t in range(car.departure):
            on, power = solver.addBinary(), solver.addVariable(0, car.most_w / KILO)
            solver.addConstr(power >= on * (car.least_w / KILO))
            solver.addConstr(power <= on * (car.most_w / KILO if t >= car.arrival else 0.0))
            after = solver.addVariable(0, car.capacity_wh / KILO)
            solver.addConstr(after == stored + power * (self.h * car.efficiency))
            stored = after
            powers.append(power)
        missing = solver.addVariable(0, highspy.kHighsInf)
        solver.addConstr(missing >= car.wanted_wh / KILO - stored)
        self.terms.append(missing * -car.shortage_price)
        return powers + [0.0] * (len(self.case.prices) - len(powers))

    def _heat(self, heat):
        solver, now, powers = self.solver, heat.state, []
        gain = heat.modes(0, self.h)[1].gain
        for t in range(len(self.case.prices)):
            keep, shift = heat.drift(t, self.h)
            on, power = solver.addBinary(), solver.addVariable(0, heat.most_w / KILO)
            solver.addConstr(power >= on * (heat.least_w / KILO))
            solver.addConstr(power <= on * (heat.most_w / KILO))
            after, outside = self._free(), solver.addVariable(0, highspy.kHighsInf)
            solver.addConstr(after == now * keep + shift + power * (gain * KILO))
            solver.addConstr(after <= heat.most_c + (1 - on) * 100.0)
            solver.addConstr(outside >= heat.low_c - after)
            solver.addConstr(outside >= after - heat.high_c)
            self.terms.append(outside * (-heat.discomfort_price * self.h * MILLION / KILO))
            now = after
            powers.append(power)
        held = solver.addVariable(-highspy.kHighsInf, heat.high_c)
        price = heat.final_price * _wh_per_k(heat, self.h) / KILO
        solver.addConstr(held <= now if price > 0 else held == heat.high_c)
        if price < 0:  # a cooler: warmth is worth less than nothing, up to the band's end
            held = self._cut(now, heat.high_c)
        self.terms.append(held * price)
        return powers

    def _cut(self, x, top: float):
        """Exactly the lower of x and top."""
        low, is_x = self._free(), self.solver.addBinary()
        for constraint in (low <= x, low >= x - (1 - is_x) * 100.0, low >= top - is_x * 100.0):
            self.solver.addConstr(constraint)
        self.solver.addConstr(low <= top + 0 * is_x)
        return low

    def _run(self, run):
        solver, steps, size = self.solver, len(self.case.prices), len(run.profile_w)
        begins = {t: solver.addBinary() for t in range(run.earliest, run.deadline - size + 1)}
        if begins:
            solver.addConstr(sum(begins.values()) <= 1)
            self.terms += [b * (run.worth * MILLION / KILO) for b in begins.values()]
        return [
            sum((begins[t - k] * (w / KILO) for k, w in enumerate(run.profile_w) if t - k in begins), 0.0)
            for t in range(steps)
        ]

    def _load(self, load):
        powers = []
        for _ in self.case.prices:
            off = [self.solver.addBinary() for _ in load.sheds]
            for k in range(len(off) - 1):
                self.solver.addConstr(off[k] >= off[k + 1])
            self.terms += [b * (-s.power_w * s.cost * self.h / KILO) for b, s in zip(off, load.sheds, strict=True)]
            powers.append(
                load.load_w / KILO - sum(b * (s.power_w / KILO) for b, s in zip(off, load.sheds, strict=True))
            )
        return powers

    def _sun(self, sun):
        powers = []
        for w in sun.forecast_w:
            power = self.solver.addVariable(-w / KILO, 0 if sun.curtailable else -w / KILO)
            self.terms.append((power + w / KILO) * (-sun.support * self.h))
            powers.append(power)
        return powers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=100)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wide", action="store_true", help="limits that never bind")
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    gaps, of_turnover = [], []
    for number in range(arguments.seed, arguments.seed + arguments.sites):
        case = draw(Random(number), arguments.steps)
        if arguments.wide:
            case.site = replace(case.site, import_limit_w=WIDE_W, export_limit_w=WIDE_W)
        (ours, turnover), (idle, _), best = rounds(case, acts=True), rounds(case, acts=False), Plan(case).bound()
        gaps.append((best - ours) / max(1.0, best - idle))
        of_turnover.append((best - ours) / turnover)
        if arguments.verbose:
            kinds = [type(asset).__name__ for asset in case.site.assets]
            sys.stdout.write(f"{number}: {100 * gaps[-1]:.3f} %, {ours:.0f} of {best:.0f}, {' '.join(kinds)}\n")
    for name, found in (("of what acting gains over doing nothing", gaps), ("of the turnover", of_turnover)):
        cuts = quantiles(found, n=20)
        sys.stdout.write(
            f"gap, share {name}: least {100 * min(found):.3f} %, median {100 * median(found):.3f} %,"
            f" 75 % {100 * cuts[14]:.3f} %, 95 % {100 * cuts[18]:.3f} %, most {100 * max(found):.3f} %\n"
        )


if __name__ == "__main__":
    main()
