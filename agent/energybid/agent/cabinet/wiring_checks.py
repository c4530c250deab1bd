"""What is wrong between an installation and its meter, judged by what it measures. Pure: values in, findings out.

How directions are judged: the angle between a phase's voltage and its current follows from active and reactive power.
A usual load lies within ±50° (a power factor of 0.64 or better). A transformer the wrong way round turns the angle by
180°, a current against another phase's voltage by 120° or 240°. Of all ways to mount three transformers those are
looked for that make every phase a usual load; the one with the fewest faults is what is told.
"""

from __future__ import annotations

from itertools import permutations, product
from math import atan2, degrees, hypot, sqrt
from typing import TYPE_CHECKING, NamedTuple

from energybid.agent.cabinet.findings import error, note, warning
from energybid.agent.cabinet.sight import PHASES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from energybid.agent.cabinet.findings import Finding
    from energybid.agent.cabinet.sight import Sight

USUAL_DEG = 50.0
SOME_VA, ENOUGH_VA = 30.0, 200.0
"""Below the first nothing is said of a phase's direction; below the second nothing is sure."""
MISSING, LOW = 0.2, 0.8
"""Of the highest voltage: below the first a phase is missing, below the second something is loose."""
UNEVEN = 0.08
SUPPLIES_V = (90, 132), (207, 253), (340, 440)
"""Usual voltages: 100 to 120 V; 230 V ± 10 % (EN 50160 §4.2.2); phase to phase in place of phase to neutral."""
FREQUENCIES_HZ = (49.0, 51.0), (59.0, 61.0)
CURRENT_A = 0.1
FAULTS_MAX = 3.0
"""Of a mounting (``Mounting.faults``): who makes more of them at once is less likely than an odd load."""
TURN_DEG = 120.0

AGAIN = "Look again while more is switched on."


def check_wiring(sight: Sight, *, plant: bool = True) -> list[Finding]:
    """Everything that can be told of a meter's wiring.

    Args:
        sight: What it measured.
        plant: There may be generation at the site; without any, export is a fault by itself.
    """
    return [
        *voltages(sight),
        *current_without_voltage(sight),
        *directions(sight, plant=plant),
        *factors(sight),
        *too_much_power(sight),
        *sums(sight),
        *frequency(sight),
        *no_current(sight),
        *energy(sight),
    ]


def _label(phase: int) -> str:
    return f"L{phase + 1}"


def _labels(phases: list[int] | tuple[int, ...]) -> str:
    return " and ".join(", ".join(map(_label, phases)).rsplit(", ", 1))


# ---------------------------------------------------------------- voltage


def voltages(sight: Sight) -> Iterator[Finding]:
    """Missing, halved, uneven and unusual voltages."""
    phases, reference = sight.phases, sight.reference_v
    measured = ", ".join(f"{_label(n)} {sight.voltage[n]:.1f} V" for n in phases)
    if not phases:
        return
    if reference < SUPPLIES_V[0][0] * MISSING:
        yield error(
            "no-voltage",
            sight.name,
            f"No voltage on any phase: {measured}.",
            "The meter lives but its measuring inputs are not connected.",
            "Check fuses and voltage taps.",
        )
        return
    share = {n: (sight.voltage[n] or 0.0) / reference for n in phases}
    missing = [n for n in phases if share[n] < MISSING]
    low = [n for n in phases if MISSING <= share[n] < LOW]
    if missing:
        yield _missing(sight, missing, measured)
    if low:
        yield error(
            "low-voltage",
            sight.name,
            f"{_labels(low)} far below the others: {measured}.",
            "A phase is fed back through a load behind a blown fuse, or a tap or the neutral has a bad contact.",
            "Check fuse, tap and neutral. Do not leave it: a loose neutral destroys appliances.",
        )
    rest = [n for n in phases if share[n] >= LOW]
    if 1 - min(share[n] for n in rest) > UNEVEN:
        yield warning(
            "uneven-voltage",
            sight.name,
            f"The voltages differ by {(1 - min(share[n] for n in rest)) * 100:.0f} %: {measured}.",
            "A heavy load on one phase, or a neutral with a bad contact.",
            "Measure by hand at the meter's terminals; check the neutral.",
        )
    if not any(least <= reference <= most for least, most in SUPPLIES_V):
        yield warning(
            "unusual-voltage",
            sight.name,
            f"{measured}.",
            "No usual supply: another voltage transformer ratio than is set, or another profile than the meter's.",
            "Compare with the display and with a voltmeter.",
        )


def _missing(sight: Sight, missing: list[int], measured: str) -> Finding:
    if len(missing) == PHASES - 1 and all((sight.current[n] or 0.0) < CURRENT_A for n in missing):
        return note(
            "one-phase",
            sight.name,
            f"Voltage on one phase only: {measured}; no current in the others.",
            "A meter for three phases at a supply of one.",
            "Nothing, if that is how it is meant.",
        )
    return error(
        "missing-phase",
        sight.name,
        f"No voltage on {_labels(missing)}: {measured}.",
        "What flows in that phase is not metered.",
        "Check the phase's fuse and voltage tap.",
    )


def current_without_voltage(sight: Sight) -> Iterator[Finding]:
    """A phase that carries current, of which the voltage is not seen."""
    limit = sight.reference_v * MISSING
    for n in sight.phases:
        current = sight.current[n]
        if (sight.voltage[n] or 0.0) < limit and current is not None and current >= CURRENT_A:
            yield error(
                "current-without-voltage",
                sight.name,
                f"{current:.2f} A in {_label(n)}, but {sight.voltage[n]:.1f} V.",
                "Energy is used that is not metered: the phase is there, its voltage tap is not.",
                f"Connect the voltage input of {_label(n)}; check its fuse.",
            )


# ---------------------------------------------------------------- directions


class Mounting(NamedTuple):
    """How the transformers may be mounted."""

    places: tuple[int, ...]
    """For each phase: whose current it has."""
    turned: tuple[bool, ...]
    """For each phase: the wrong way round."""

    @property
    def faults(self) -> float:
        """What has to be done to put it right; a pair that was swapped is one mistake, as a rule."""
        moved = sum(n != place for n, place in enumerate(self.places))
        return sum(self.turned) + 0.75 * moved


def directions(sight: Sight, *, plant: bool = True) -> Iterator[Finding]:
    """Transformers that are reversed or at another phase's place; export where none can be."""
    known = [n for n in sight.phases if sight.apparent_va(n) >= SOME_VA and sight.power[n] is not None]
    if not known:
        if any(power is not None for power in sight.power):
            yield note(
                "direction-unknown",
                sight.name,
                "Hardly any power flows.",
                "Whether the transformers are mounted right can not be told.",
                AGAIN,
            )
        return
    right = Mounting(tuple(range(PHASES)), (False,) * PHASES)
    if _explains(sight, known, right):
        if len(known) == PHASES:
            yield _order_unknown(sight)
        return
    if all((sight.power[n] or 0.0) < 0 for n in known) and _explains(sight, known, Mounting(right.places, (True,) * 3)):
        yield _export(sight, known, plant=plant)
        return
    mountings = [
        Mounting(places, turned)
        for places in permutations(range(PHASES))
        for turned in product((False, True), repeat=PHASES)
        if all(n in known for n in range(PHASES) if turned[n] or places[n] != n)
    ]
    possible = [m for m in mountings if m.faults <= FAULTS_MAX and _explains(sight, known, m)]
    possible.sort(key=lambda m: m.faults)
    best = [m for m in possible if m.faults == possible[0].faults]
    yield _mounted_wrong(sight, known, best, plant=plant)


def _angles(sight: Sight, phase: int) -> list[float]:
    """Degrees by which the current lags; two where the meter does not say the sign of reactive power."""
    power, reactive = sight.power[phase] or 0.0, sight.reactive[phase]
    if reactive is not None:
        return [degrees(atan2(reactive, power))]
    hidden = sqrt(max(0.0, sight.apparent_va(phase) ** 2 - power**2))
    return [degrees(atan2(sign * hidden, power)) for sign in (1, -1)]


def _explains(sight: Sight, known: list[int], mounting: Mounting) -> bool:
    """Whether every phase would be a usual load, were it mounted so."""
    for n in known:
        turn = TURN_DEG * ((mounting.places[n] - n) % PHASES) + 180.0 * mounting.turned[n]
        if not any(abs((angle - turn + 180.0) % 360.0 - 180.0) <= USUAL_DEG for angle in _angles(sight, n)):
            return False
    return True


def _powers(sight: Sight, known: list[int]) -> str:
    parts = []
    for n in known:
        reactive = sight.reactive[n]
        parts.append(f"{_label(n)} {sight.power[n]:.0f} W" + ("" if reactive is None else f" {reactive:+.0f} var"))
    return ", ".join(parts)


def _order_unknown(sight: Sight) -> Finding:
    return note(
        "phase-order",
        sight.name,
        "Each current fits its voltage.",
        "Whether L1, L2, L3 are in the right order can not be told from these registers. Energy is counted right in "
        "either order.",
        "A phase sequence tester tells; motors need it.",
    )


def _export(sight: Sight, known: list[int], *, plant: bool) -> Finding:
    who = "All phases export" if known == [*sight.phases] else f"{_labels(known)}, the only with much power, exports"
    measured = f"{who}: {_powers(sight, known)}."
    if plant:
        return note(
            "export",
            sight.name,
            measured,
            "Right if the site generates just now; else every transformer is the wrong way round, or the supply comes "
            "from the load's side.",
            "Look which it is. --no-plant says that nothing generates here.",
        )
    return error(
        "reversed",
        sight.name,
        measured,
        "Nothing generates here: every transformer is the wrong way round, or the supply comes from the load's side.",
        "Turn the transformers, or change the meter's direction where it has such a setting.",
    )


def _mounted_wrong(sight: Sight, known: list[int], best: list[Mounting], *, plant: bool) -> Finding:
    measured = f"{_powers(sight, known)}."
    if not best:
        return warning(
            "power-angle",
            sight.name,
            measured,
            "No usual load, and no single way to mount the transformers explains it.",
            f"Compare each phase with a clamp meter. {AGAIN}",
        )
    swapped = any(n != place for n, place in enumerate(best[0].places))
    sure = all(sight.apparent_va(n) >= ENOUGH_VA for n in known) and (swapped or not plant)
    tell = error if sure else warning
    means = "; or ".join(_mounting_text(mounting) for mounting in best)
    doubt = "" if sure else f" Sure only with more load. {AGAIN}"
    if swapped:
        return tell(
            "swapped",
            sight.name,
            measured,
            f"Currents and voltages do not belong together: {means}.",
            f"Put each transformer on the phase of its voltage input (or change the voltage taps).{doubt}",
        )
    back = [n for n in known if best[0].turned[n]]
    other = " Right only if something generates on that phase just now." if plant else ""
    return tell(
        "reversed",
        sight.name,
        f"{_labels(back)} the other way than the rest: {measured}",
        f"{means[0].upper()}{means[1:]}.{other}",
        f"Turn the transformer of {_labels(back)}, or change over its two wires.{doubt}",
    )


def _mounting_text(mounting: Mounting) -> str:
    moved = [n for n, place in enumerate(mounting.places) if n != place]
    back = [n for n in range(PHASES) if mounting.turned[n]]
    parts = []
    if len(moved) == 2:  # noqa: PLR2004  a pair
        parts.append(f"the transformers of {_labels(moved)} are in each other's place")
    elif moved:
        whose = ", ".join(f"{_label(n)} has the current of {_label(mounting.places[n])}" for n in moved)
        parts.append(f"all three are at another's place ({whose})")
    if back:
        verb = "is" if len(back) == 1 else "are"
        parts.append(f"the current of {_labels(back)} {verb} reversed (transformer or its wires the wrong way round)")
    return ", and ".join(parts)


# ---------------------------------------------------------------- what does not fit together


def factors(sight: Sight) -> Iterator[Finding]:
    """Power factors that there can not be, or that contradict the powers."""
    for n in sight.phases:
        said, power = sight.factor[n], sight.power[n]
        if said is not None and abs(said) > 1.02:  # noqa: PLR2004  rounding
            yield error(
                "power-factor",
                sight.name,
                f"{_label(n)} says a power factor of {said:.3f}.",
                "There is none above 1: the profile's scale is not this meter's.",
                "Check model and firmware against the profile (energybid scan).",
            )
            continue
        apparent = sight.apparent_va(n)
        if said is None or power is None or apparent < ENOUGH_VA:
            continue
        if abs(abs(said) - min(1.0, abs(power) / apparent)) > 0.1:  # noqa: PLR2004  harmonics and other definitions
            yield warning(
                "power-factor",
                sight.name,
                f"{_label(n)} says a power factor of {said:.3f}, but {power:.0f} W of {apparent:.0f} VA are "
                f"{abs(power) / apparent:.3f}.",
                "Voltage, current and power do not belong to the same phase, or are read with a wrong scale.",
                "Compare the three with the display.",
            )


def too_much_power(sight: Sight) -> Iterator[Finding]:
    """More power than voltage times current."""
    for n in sight.phases:
        power, volts, amperes = sight.power[n], sight.voltage[n], sight.current[n]
        if power is None or volts is None or amperes is None:
            continue
        apparent = abs(volts * amperes)
        magnitude = hypot(power, sight.reactive[n] or 0.0)
        if magnitude > apparent * 1.1 + SOME_VA:
            yield error(
                "too-much-power",
                sight.name,
                f"{_label(n)}: {magnitude:.0f} VA of power, but {volts:.1f} V x {amperes:.2f} A = {apparent:.0f} VA.",
                "The transformer ratio holds for one of them and not for the other, or the profile is another model's.",
                "Compare current and power with the display and a clamp meter; check the ratio that is set.",
            )


def sums(sight: Sight) -> Iterator[Finding]:
    """The phases' powers, and the power of all."""
    powers = [power for power in sight.power if power is not None]
    if sight.total_power is None or len(powers) != len(sight.phases) or len(powers) < 2:  # noqa: PLR2004  a sum
        return
    total, magnitudes = sum(powers), sum(map(abs, powers))
    room = 0.05 * magnitudes + SOME_VA
    if abs(total - sight.total_power) <= room:
        return
    ignores_signs = abs(magnitudes - abs(sight.total_power)) <= room
    yield warning(
        "sum",
        sight.name,
        f"The phases are {total:.0f} W together, the meter says {sight.total_power:.0f} W.",
        "The meter adds the phases without their signs."
        if ignores_signs
        else "The load changed between two requests, or one of the registers is read wrongly.",
        "Find the phase that is reversed."
        if ignores_signs
        else "Look again at a steady load; compare with the display.",
    )


def frequency(sight: Sight) -> Iterator[Finding]:
    """No frequency of any grid."""
    found = sight.frequency
    if found is None or not sight.phases or sight.reference_v < SUPPLIES_V[0][0]:
        return
    if not any(least <= found <= most for least, most in FREQUENCIES_HZ):
        yield warning(
            "frequency",
            sight.name,
            f"{found:.2f} Hz.",
            "No grid has that: an island or generator, or a register that is read wrongly.",
            "Compare with the display.",
        )


def no_current(sight: Sight) -> Iterator[Finding]:
    """A phase without any current while others have much."""
    known = [n for n in sight.phases if sight.current[n] is not None]
    if len(known) < 2 or max(sight.current[n] or 0.0 for n in known) < 10 * CURRENT_A:  # noqa: PLR2004  several
        return
    none = [n for n in known if (sight.current[n] or 0.0) < CURRENT_A / 10 and (sight.voltage[n] or 0.0) > 0]
    if none and len(none) < len(known):
        yield note(
            "no-current",
            sight.name,
            f"No current in {_labels(none)}, {max(sight.current[n] or 0.0 for n in known):.1f} A in another phase.",
            "Nothing is switched on there, or the transformer is not connected. The registers look the same.",
            f"Switch something on at {_labels(none)} and look again.",
        )


def energy(sight: Sight) -> Iterator[Finding]:
    """What was counted, and power over the same time."""
    found = sight.energy
    if found is None:
        return
    room = 2 * found.step_wh + 0.1 * abs(found.integrated_wh) + found.doubt_wh
    difference = abs(found.counted_wh - found.integrated_wh)
    if difference > room:
        yield error(
            "energy",
            sight.name,
            f"Counted {found.counted_wh:.1f} Wh in {found.period_s:.0f} s; power over that time is "
            f"{found.integrated_wh:.1f} Wh.",
            "Energy and power disagree: a wrong scale in the profile, a wrong ratio in the meter, or counting that "
            "ignores a direction.",
            "Compare both with the display over some minutes.",
        )
    elif abs(found.integrated_wh) < 8 * found.step_wh:
        share = abs(found.integrated_wh) / found.period_s if found.period_s else 0.0
        needed = f"about {8 * found.step_wh / share:.0f} s at this load" if share > 0 else "longer, and with a load"
        yield note(
            "energy-unknown",
            sight.name,
            f"Power over {found.period_s:.0f} s is {found.integrated_wh:.2f} Wh; the counter shows steps of "
            f"{found.step_wh:g} Wh.",
            "Too little to compare energy with power.",
            f"Watch {needed} (--for).",
        )
