"""A meter that is wired wrongly: what it sees of a site whose electricity is as it should be.

Here live the faults that installers make, as a function from one state to another; no chance, no time. Voltages are
120° apart, L1 before L2 before L3 (IEC 60364), so a current that is measured against another phase's voltage is turned
by 120°: P' = −P/2 ∓ √3/2·Q, Q' = −Q/2 ± √3/2·P.
"""

from typing import NamedTuple

from energybid.simulator.household import PHASES, State, Three

TURN_PERMILLE = 866
"""√3/2: what 120° makes of the other component."""


class Wiring(NamedTuple):
    """What is wrong; phases are 0 to 2."""

    reversed_ct: tuple[int, ...] = ()
    """Current transformers that were put on the wrong way round."""
    swapped_ct: tuple[int, int] | None = None
    """Two phases whose current transformers stand in each other's place."""
    missing_voltage: tuple[int, ...] = ()
    """Voltage inputs that are not connected, or whose fuse has blown."""
    missing_ct: tuple[int, ...] = ()
    """Current transformers that are not connected."""


RIGHT = Wiring()


def seen(state: State, wiring: Wiring) -> State:
    """What the meter measures.

    Energies follow power exactly but for the differences between the phases' voltages, and only while the site imports
    where transformers are swapped.
    """
    if wiring.swapped_ct is not None:
        state = _swapped(state, *wiring.swapped_ct)
    for phase in wiring.reversed_ct:
        state = _reversed(state, phase)
    for phase in wiring.missing_voltage:
        state = _without(state, phase)._replace(voltage_mv=_with(state.voltage_mv, phase, 0))
    for phase in wiring.missing_ct:
        state = _without(state, phase, current=0)
    return state


def _with(values: Three, phase: int, value: int) -> Three:
    changed = [*values]
    changed[phase] = value
    a, b, c = changed
    return a, b, c


def _currents(state: State) -> Three:
    a, b, c = (state.current_ma(phase) for phase in range(PHASES))
    return a, b, c


def _reversed(state: State, phase: int) -> State:
    return state._replace(
        power_mw=_with(state.power_mw, phase, -state.power_mw[phase]),
        reactive_mvar=_with(state.reactive_mvar, phase, -state.reactive_mvar[phase]),
        import_uj=_with(state.import_uj, phase, state.export_uj[phase]),
        export_uj=_with(state.export_uj, phase, state.import_uj[phase]),
    )


def _without(state: State, phase: int, current: int | None = None) -> State:
    """No power in a phase; its energies stay what they were when the replay began: nothing."""
    currents = _currents(state)
    return state._replace(
        power_mw=_with(state.power_mw, phase, 0),
        reactive_mvar=_with(state.reactive_mvar, phase, 0),
        apparent_mva=_with(state.apparent_mva, phase, 0),
        import_uj=_with(state.import_uj, phase, 0),
        export_uj=_with(state.export_uj, phase, 0),
        reactive_uj=_with(state.reactive_uj, phase, 0),
        apparent_uj=_with(state.apparent_uj, phase, 0),
        currents_ma=currents if current is None else _with(currents, phase, current),
    )


def _swapped(state: State, first: int, second: int) -> State:
    ahead = 1 if (second - first) % PHASES == 1 else -1
    state = state._replace(currents_ma=_currents(state))
    seen_state = state
    for own, other, turn in ((first, second, ahead), (second, first, -ahead)):
        seen_state = _turned(seen_state, state, own, other, turn)
    return seen_state


def _turned(into: State, state: State, own: int, other: int, turn: int) -> State:
    """The current of ``other`` against the voltage of ``own``; ``turn`` is 1 where ``other`` comes after ``own``."""
    power, reactive = _turn(state.power_mw[other], state.reactive_mvar[other], turn)
    energy, reactive_uj = _turn(state.import_uj[other], state.reactive_uj[other], turn)
    volts, volts_of_other = state.voltage_mv[own], state.voltage_mv[other]
    currents = into.currents_ma or _currents(into)
    return into._replace(
        power_mw=_with(into.power_mw, own, power * volts // volts_of_other),
        reactive_mvar=_with(into.reactive_mvar, own, reactive * volts // volts_of_other),
        apparent_mva=_with(into.apparent_mva, own, state.apparent_mva[other] * volts // volts_of_other),
        import_uj=_with(into.import_uj, own, max(0, energy)),
        export_uj=_with(into.export_uj, own, max(0, -energy)),
        reactive_uj=_with(into.reactive_uj, own, max(0, reactive_uj)),
        apparent_uj=_with(into.apparent_uj, own, state.apparent_uj[other]),
        currents_ma=_with(currents, own, (state.currents_ma or _currents(state))[other]),
    )


def _turn(active: int, reactive: int, turn: int) -> tuple[int, int]:
    """Active and reactive part of what lags 120° more (``turn`` 1), or less (-1)."""
    turned = -active // 2 - turn * reactive * TURN_PERMILLE // 1000
    return turned, -reactive // 2 + turn * active * TURN_PERMILLE // 1000
