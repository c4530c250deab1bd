"""Who is on a bus: units are called one by one, whoever answers is identified.

Here live the order of the search, what was found and what is left to do; asking is ``probe``'s business, judging the
answers is ``identify``'s. A line's rate and parity are not known: the usual ones are tried, the likeliest first. A unit
gets little time at first; those that were silent get more once somebody has answered at that setting. The whole state
is plain data, so a search can be stopped at any moment and resumed.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from energybid.core.errors import BusDownError
from energybid.core.ports import SerialEndpoint
from energybid.drivers.identify import ENOUGH, Examiner, Identity, identify, rivals
from energybid.drivers.modbus import objects
from energybid.drivers.modbus.exchange import READ_OVERHEAD
from energybid.drivers.modbus.framing import EXCEPTION_FLAG, RTU_OVERHEAD
from energybid.drivers.modbus.map import HOLDING, INPUT
from energybid.drivers.modbus.timing import character_s
from energybid.drivers.probe import Prober
from energybid.drivers.target import TCP, UDP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from energybid.core.ports import OpenBus
    from energybid.drivers.probe import Heard
    from energybid.drivers.profile import LoadedProfile
    from energybid.drivers.target import BusTarget

UNITS = range(1, 248)
"""Addresses on a serial line (Modbus over Serial Line V1.02 §2.2)."""
DIRECT_UNITS = [255, 0]
"""What a Modbus TCP device itself answers to (Modbus Messaging on TCP/IP V1.0b §4.4.2)."""
SPREAD = 1, 2, 247, 171, 93, 255, 0
"""Units asked first over TCP: whoever answers for all of them answers for every unit."""
ADDRESSED = frozenset({TCP, UDP})
"""Kinds of bus on which a device may answer for every unit: framing does without the address."""
LIKELY = 16
"""At several settings the first units of each are asked before the rest of any."""
USUAL = (9600, "N"), (19200, "E"), (9600, "E"), (19200, "N")
"""Settings that come first: what most meters are shipped with, and the standard's own default (V1.02 §2.5.1)."""
GATEWAY_ABSENT = frozenset({10, 11})
"""Exceptions by which a gateway says that nobody is there (Modbus Application Protocol V1.1b3 §7)."""
GARBLED_MAX = 4
"""So many requests in a row that bring noise end a setting: something else speaks there."""
REPLY_MAX_S = 3.0
"""Most that a slow gateway is waited for, for each request."""
SLOWER = 1.5
"""A unit is given so many times the delay that it, or its gateway, has shown."""
IDENTIFY_S = 0.3
"""Least that a unit is waited for while it is identified."""
IDENTIFYING_S = 0.8
"""About how long it takes to identify one; it always gets that long."""
POOL_S, SHARE, POOL_REST_S = 6.5, 0.8, 0.1
"""All units at a setting have so long to be identified, unless thorough; each at most so many times its even share."""
NEVER = float("inf")
SETTINGS_MAX = 8
"""So many settings are tried unless thorough."""
PAGE = 2


class Pass(NamedTuple):
    """One way to call a unit."""

    name: str
    pdu: bytes
    line_s: float
    """How long a unit may take to begin its reply, on a serial line."""
    network_s: float
    """The same behind a network."""


FAST = Pass("fast", struct.pack(">BHH", HOLDING, 0, PAGE), 0.08, 0.5)
SLOW = Pass("slow", struct.pack(">BHH", INPUT, 0, PAGE), 0.2, 1.0)
THOROUGH = Pass("thorough", objects.request(), 1.2, REPLY_MAX_S)
"""The three calls differ: what a meter does not know it should refuse, which is a sign of life too; some are silent."""
PASSES = {call.name: call for call in (FAST, SLOW, THOROUGH)}


class Setting(NamedTuple):
    """How to speak: a line's rate and parity, or a network target as it is."""

    label: str
    target: BusTarget
    serial: bool

    @property
    def network(self) -> bool:
        """Timed for a network rather than a line."""
        return not self.serial


@dataclass(kw_only=True)
class Found:
    """A unit that answers."""

    setting: str
    """Label of the setting at which it does."""
    unit: int
    delay_s: float
    """How long it took to reply."""
    every_unit: bool = False
    """It answers whatever unit is asked: a device, no gateway."""
    identity: Identity | None = None
    values: list[tuple[str, str]] = field(default_factory=list)
    """Name and value with unit, to compare with its display."""
    fault: str = ""
    """Why there are no values."""


@dataclass(kw_only=True)
class State:
    """Everything a search knows; see ``scan_state`` for its file."""

    asked: dict[str, dict[str, set[int]]] = field(default_factory=dict)
    """Setting → pass → units called so far."""
    absent: dict[str, set[int]] = field(default_factory=dict)
    """Setting → units that a gateway says are not there."""
    found: list[Found] = field(default_factory=list)
    noise: Counter[str] = field(default_factory=Counter)
    """Setting → bytes that belong to no frame."""
    given_up: set[str] = field(default_factory=set)
    """Settings at which something else speaks, or that the port does not have."""
    complete: bool = False

    def at(self, setting: Setting) -> list[Found]:
        """What was found at a setting."""
        return [found for found in self.found if found.setting == setting.label]


class Watcher(Protocol):
    """Is told how a search goes."""

    def progress(self, label: str, unit: int, done: float, left_s: float) -> None:
        """Before each request: where, the share that is done, seconds that are left."""

    def found(self, found: Found) -> None:
        """A unit answered, or was identified."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What to search."""

    settings: Sequence[Setting]
    """The likeliest first."""
    units: Sequence[int]
    profiles: Sequence[LoadedProfile]
    thorough: bool = False
    """Every setting, every pass, every kind of evidence."""


class Scanner:
    """One search, from its state to its end."""

    def __init__(self, open_bus: OpenBus, search: Search, state: State, watcher: Watcher) -> None:
        """Prepare; ``state`` is changed as the search goes, so that whoever stops it has all.

        Args:
            open_bus: The platform's.
            search: What to do.
            state: Empty, or that of a search which was stopped.
            watcher: Is told.
        """
        self._open_bus = open_bus
        self._search = search
        self._state = state
        self._watcher = watcher
        self._prober: Prober | None = None
        self._at: Setting | None = None
        self._slowest_s = 0.0
        self._refused = False
        self._examiners: dict[int, Examiner] = {}
        """Unit → who asks it at the present setting."""
        self._pools_s: dict[str, float] = {}
        """Setting → what is left of POOL_S."""
        self._opened: Setting | None = None
        """Where the last request was sent."""
        self._done_s = 0.0

    async def run(self) -> None:
        """Search to the end.

        Raises:
            BusDownError: The bus can not be opened, or was lost.
        """
        try:
            await self._run()
            self._state.complete = True
        finally:
            if self._prober is not None:
                await self._prober.close()

    async def _run(self) -> None:
        search = self._search
        some = search.units[:LIKELY]
        single = len(search.settings) == 1
        plan = [(FAST, search.units)] if single else [(FAST, some), (FAST, search.units)]
        plan.append((SLOW, search.units if single or search.thorough else some))
        if search.thorough:
            plan.append((THOROUGH, search.units))
        for call, units in plan:
            for setting in search.settings:
                if await self._sweep(setting, call, units):
                    await self._complete(setting)
                    if not search.thorough:
                        return

    async def _complete(self, setting: Setting) -> None:
        """Somebody answers at a setting: identify them, and call the others there, patiently."""
        await self._identify(setting)
        await self._sweep(setting, FAST, self._search.units)
        if setting.serial:
            await self._sweep(setting, SLOW, self._search.units)
        if self._search.thorough:
            await self._sweep(setting, THOROUGH, self._search.units)
        await self._identify(setting)

    # ------------------------------------------------------------ calling

    async def _sweep(self, setting: Setting, call: Pass, units: Iterable[int]) -> bool:
        """Call those that have not answered yet.

        Returns:
            Whether anybody is known at this setting.
        """
        state = self._state
        asked = state.asked.setdefault(setting.label, {}).setdefault(call.name, set())
        garbled = 0
        if setting.target.kind in ADDRESSED and not asked and len(self._search.units) > 1:
            await self._spread(setting, asked)
        for unit in units:
            if setting.label in state.given_up or any(f.every_unit for f in state.at(setting)):
                break
            if unit in asked or self._knows(setting, unit):
                continue
            heard = await self._try(setting, call, unit)
            if heard is None:
                break
            asked.add(unit)
            garbled = garbled + 1 if heard.noise and heard.pdu is None else 0
            if garbled >= GARBLED_MAX and not state.at(setting):
                state.given_up.add(setting.label)
        return bool(state.at(setting))

    def _knows(self, setting: Setting, unit: int) -> bool:
        absent = unit in self._state.absent.get(setting.label, ())
        return absent or any(found.unit == unit for found in self._state.at(setting))

    async def _try(self, setting: Setting, call: Pass, unit: int) -> Heard | None:
        """Call a unit; None where the port refuses the setting but has taken others."""
        try:
            heard = await self._call(setting, call, unit)
        except BusDownError:
            if self._opened == setting or self._refused or len(self._search.settings) == 1:
                raise
            self._refused = True  # twice in a row: the port is gone
            self._state.given_up.add(setting.label)
            return None
        self._refused = False
        return heard

    async def _call(self, setting: Setting, call: Pass, unit: int) -> Heard:
        prober = await self._tuned(setting)
        wait_s = self._wait_s(setting, call)
        left_s = self._left_s(setting)
        self._watcher.progress(setting.label, unit, self._done_s / (self._done_s + left_s), left_s)
        heard = await prober.ask(unit, call.pdu, wait_s, reply=READ_OVERHEAD + 2 * PAGE)
        self._opened = setting
        self._done_s += self._cost_s(setting, call)
        self._note(setting, unit, heard)
        return heard

    def _wait_s(self, setting: Setting, call: Pass) -> float:
        if setting.network:
            return max(call.network_s, min(REPLY_MAX_S, SLOWER * self._slowest_s))
        return call.line_s

    def _left_s(self, setting: Setting) -> float:
        """About how long it will still take, if whoever has not answered does not."""
        search, state = self._search, self._state
        here = state.at(setting)
        settings = [setting] if here and not search.thorough else search.settings
        patient = setting.serial and (here or len(settings) == 1)
        calls = PASSES.values() if search.thorough else (FAST, SLOW) if patient else (FAST,)
        left_s = sum(self._to_ask(at, call) * self._cost_s(at, call) for at in settings for call in calls)
        return left_s + IDENTIFYING_S * len(here)

    def _to_ask(self, setting: Setting, call: Pass) -> int:
        state, label = self._state, setting.label
        known = len(state.absent.get(label, ())) + len(state.at(setting))
        asked = state.asked.get(label, {}).get(call.name, ())
        return 0 if label in state.given_up else max(0, len(self._search.units) - max(known, len(asked)))

    def _cost_s(self, setting: Setting, call: Pass) -> float:
        on_line_s = character_s(setting.target.endpoint) * (len(call.pdu) + READ_OVERHEAD + 2 * PAGE + 2 * RTU_OVERHEAD)
        return on_line_s + self._wait_s(setting, call)

    def _note(self, setting: Setting, unit: int, heard: Heard) -> None:
        state = self._state
        if heard.noise:
            state.noise[setting.label] += heard.noise
        answers = list(heard.late)
        if heard.pdu is not None:
            answers.append((unit, heard.pdu, heard.delay_s))
        for who, pdu, delay_s in answers:
            self._slowest_s = max(self._slowest_s, delay_s)
            if pdu[0] & EXCEPTION_FLAG and pdu[1] in GATEWAY_ABSENT:
                state.absent.setdefault(setting.label, set()).add(who)
            elif not any(found.unit == who for found in state.at(setting)):
                found = Found(setting=setting.label, unit=who, delay_s=delay_s)
                state.found.append(found)
                self._watcher.found(found)

    async def _tuned(self, setting: Setting) -> Prober:
        """The prober at a setting: one port can have only one."""
        if self._prober is None or self._at != setting:
            if self._prober is not None:
                await self._prober.close()
            self._at, self._slowest_s, self._examiners = setting, 0.0, {}
            self._prober = Prober(self._open_bus, setting.target)
        return self._prober

    async def _spread(self, setting: Setting, asked: set[int]) -> None:
        """Recognise a device that answers for every unit, by asking some that are far apart."""
        for unit in SPREAD:
            await self._call(setting, FAST, unit)
            asked.add(unit)
            if not any(found.unit == unit for found in self._state.at(setting)):
                break
        else:
            first = next(found for found in self._state.at(setting) if found.unit == SPREAD[0])
            first.every_unit = True
            self._state.found = [f for f in self._state.found if f.setting != setting.label or f is first]
            return
        units = set(self._search.units)
        self._state.found = [f for f in self._state.found if f.setting != setting.label or f.unit in units]

    # ------------------------------------------------------------ identifying

    async def _identify(self, setting: Setting) -> None:
        """Identify all units at a setting; where time is short, each a little further, in turn."""
        state, loop = self._state, asyncio.get_running_loop()
        state.found.sort(key=lambda found: (found.setting, found.unit))
        groups = [self._group(f) for f in state.at(setting) if f.identity and f.identity.complete]
        waiting = [f for f in state.at(setting) if f.identity is None or not f.identity.complete]
        pool_s = NEVER if self._search.thorough else self._pools_s.get(setting.label, POOL_S)
        turn = [f for f in waiting if f.identity is None]
        while turn or (waiting and pool_s > POOL_REST_S):
            for number, found in enumerate(turn or list(waiting)):
                self._watcher.progress(setting.label, found.unit, number / len(waiting), len(waiting) * IDENTIFYING_S)
                examiner = await self._examiner(setting, found)
                began = loop.time()
                examiner.until = began + max(IDENTIFYING_S if found.identity is None else 0.0, SHARE * pool_s)
                found.identity = await self._examine(examiner, groups)
                pool_s -= loop.time() - began
                if found.identity.complete or examiner.silent:
                    groups.append(self._group(found))
                    waiting.remove(found)
            turn = []
        self._pools_s[setting.label] = pool_s
        for found in state.at(setting):
            self._watcher.found(found)

    async def _examiner(self, setting: Setting, found: Found) -> Examiner:
        """Whoever asks a unit; it remembers what it was told."""
        prober = await self._tuned(setting)
        if found.unit not in self._examiners:
            self._examiners[found.unit] = Examiner(prober, found.unit, max(IDENTIFY_S, 2 * found.delay_s + 0.1))
        return self._examiners[found.unit]

    async def _examine(self, examiner: Examiner, groups: Sequence[frozenset[str]]) -> Identity:
        """Identify a unit, which is likely to be what another one on this bus is."""
        thorough, profiles = self._search.thorough, self._search.profiles
        for group in [] if thorough else dict.fromkeys(groups):
            identity = await identify(examiner, [loaded for loaded in profiles if loaded.name in group])
            if identity.complete and identity.likely and identity.likely.points >= ENOUGH:
                return identity
        return await identify(examiner, profiles, thorough=thorough)

    def _group(self, found: Found) -> frozenset[str]:
        """The profiles that were in question for a unit, and those that would be for others like it."""
        names = {candidate.profile for candidate in found.identity.candidates} if found.identity else set()
        return frozenset(rivals(self._search.profiles, names))


def settings_of(
    make: Callable[[int, str], BusTarget],
    profiles: Iterable[LoadedProfile],
    baudrates: Sequence[int] | None = None,
    parities: Sequence[str] | None = None,
) -> list[Setting]:
    """Settings of a serial line to try, the likeliest first.

    Args:
        make: (baudrate, parity) → where the bus is, spoken to so.
        profiles: A setting is the likelier the more of them know it.
        baudrates: Only these; None for those of the profiles.
        parities: The same for parities.
    """
    known: Counter[tuple[int, str]] = Counter()
    for loaded in profiles:
        known.update((rate, parity) for rate in loaded.profile.baudrates for parity in loaded.profile.parities)
    pairs = [(rate, parity) for rate in baudrates or {rate for rate, _ in known} for parity in parities or "NEO"]
    pairs.sort(key=lambda pair: (USUAL.index(pair) if pair in USUAL else len(USUAL), -known[pair], pair))
    if not baudrates:
        pairs = [pair for pair in pairs if known[pair]]
    return [line_setting(make(rate, parity)) for rate, parity in pairs]


def line_setting(target: BusTarget) -> Setting:
    """A serial line as it is set, labelled as people write it, such as 9600 8N1."""
    line = target.endpoint
    if not isinstance(line, SerialEndpoint):
        raise TypeError(f"{line} is no serial line")
    return Setting(f"{line.baudrate} {line.data_bits}{line.parity}{line.stop_bits}", target, serial=True)
