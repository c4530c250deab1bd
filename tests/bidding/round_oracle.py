"""The best of a round by HiGHS: each asset from its own equations, with binaries for every mode and step.

Shares with the product only the assets' parameters and, for stores, the knots of the value function after the round.
"""

from itertools import pairwise

import highspy
from energybid.bidding.assets import Curtailable, Deferrable, Now, Pv
from energybid.bidding.assets_stores import choices
from energybid.bidding.site import Site

KILO = 1e3
"""Powers in kW and values in thousands keep the solver's tolerances small."""


def quiet_solver() -> highspy.Highs:
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)  # noqa: FBT003 (the solver has no other way)
    solver.setOptionValue("threads", 1)
    return solver


class RoundOracle:
    def __init__(self, site: Site, nows: list[Now], base_w: int) -> None:
        solver = self._solver = quiet_solver()
        for option in ("mip_feasibility_tolerance", "primal_feasibility_tolerance", "dual_feasibility_tolerance"):
            solver.setOptionValue(option, 1e-10)
        for option in ("mip_rel_gap", "mip_abs_gap"):
            solver.setOptionValue(option, 0.0)
        powers, worths = zip(*map(self._asset, site.assets, nows), strict=True)
        self._net = solver.addVariable(-highspy.kHighsInf, highspy.kHighsInf)
        self._worth = solver.addVariable(-highspy.kHighsInf, highspy.kHighsInf)
        self._out = solver.addVariable(0, highspy.kHighsInf)
        solver.addConstr(self._net == base_w / KILO + sum(powers))
        solver.addConstr(self._worth == sum(worths))
        solver.addConstr(self._net - self._out <= site.import_limit_w / KILO)
        solver.addConstr(self._net + self._out >= -site.export_limit_w / KILO)
        self.excess_w = -self._solve((0, 0, -1)) * KILO
        solver.changeColBounds(self._out.index, 0, round(self.excess_w) / KILO)

    def best(self, price: float) -> float:
        """The most that worth less price * net comes to."""
        return self._solve((-price, 1, 0)) * KILO

    def _solve(self, costs) -> float:
        for variable, cost in zip((self._net, self._worth, self._out), costs, strict=True):
            self._solver.changeColCost(variable.index, cost)
        self._solver.changeObjectiveSense(highspy.ObjSense.kMaximize)
        self._solver.run()
        assert self._solver.getModelStatus() == highspy.HighsModelStatus.kOptimal
        return self._solver.getInfo().objective_function_value

    def _asset(self, asset, now):
        if isinstance(asset, Pv):
            return self._sun(asset)
        if isinstance(asset, Curtailable):
            return self._load(asset)
        if isinstance(asset, Deferrable):
            return self._run(asset, now)
        return self._store(asset, now)

    def _sun(self, sun):
        power = self._solver.addVariable(-sun.forecast_w[0] / KILO, 0 if sun.curtailable else -sun.forecast_w[0] / KILO)
        return power, -sun.support * (power + sun.forecast_w[0] / KILO)

    def _load(self, load):
        off = [self._solver.addBinary() for _ in load.sheds]
        for first, second in pairwise(off):
            self._solver.addConstr(first >= second)
        shed = sum(b * (s.power_w / KILO) for b, s in zip(off, load.sheds, strict=True))
        return load.load_w / KILO - shed, -sum(
            b * (s.power_w * s.cost / KILO) for b, s in zip(off, load.sheds, strict=True)
        )

    def _run(self, run, now):
        begins = self._solver.addBinary()
        if run.done:
            self._solver.addConstr(begins <= 0)
            going = run.profile_w[run.done] if run.done < len(run.profile_w) else 0
            return going / KILO + 0 * begins, 0 * begins
        if not run.earliest <= now.step <= run.deadline - len(run.profile_w):
            self._solver.addConstr(begins <= 0)
        gain = (run.worth * 1e6 + now.ahead[1] - now.ahead[0]) / now.step_h
        return begins * (run.profile_w[0] / KILO), begins * _large(gain / KILO)

    def _store(self, store, now):
        solver = self._solver
        keep, shift = store.drift(now.step, now.step_h)
        rest = keep * store.state + shift
        powers, worths, chosen = [], [], []
        for reach in choices(store, now):
            on, power = solver.addBinary(), solver.addVariable(-highspy.kHighsInf, highspy.kHighsInf)
            shares = [solver.addVariable(0, 1) for _ in reach.states]
            solver.addConstr(sum(shares) == on)
            solver.addConstr(power >= on * (reach.mode.low_w / KILO))
            solver.addConstr(power <= on * (reach.mode.high_w / KILO))
            # In units of the power that leads there: states may be Wh or degrees.
            after = [(state - rest) / reach.mode.gain / KILO for state in reach.states]
            assert all(reach.mode.least - 1e-9 <= s <= reach.mode.most + 1e-9 for s in reach.states)
            solver.addConstr(sum(s * x for s, x in zip(shares, after, strict=True)) == power)
            value = sum(s * _large(w / now.step_h / KILO) for s, w in zip(shares, reach.worths, strict=True))
            powers.append(power)
            worths.append(value - reach.mode.cost * power)
            chosen.append(on)
        solver.addConstr(sum(chosen) == 1)
        return sum(powers), sum(worths)


def _large(number: float) -> float:
    """The solver refuses coefficients that are next to nothing."""
    return number if abs(number) > 1e-8 else 0.0
