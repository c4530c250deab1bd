"""Which model a unit is, by what it says of itself and by what its registers hold.

Here live the questions put to one unit and the judgement of the answers; nothing is asked that could change a meter.
Three kinds of evidence: device identification (0x2B/0x0E), the SunSpec marker with its common model, and the profiles'
fingerprints. Where these say nothing, quantities that every mains meter has must at least be plausible: voltage and
frequency, read where a profile has them. Every read is remembered: profiles share registers.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from energybid.core.errors import GarbledError
from energybid.drivers.modbus import objects
from energybid.drivers.modbus.decode import in_order
from energybid.drivers.modbus.exchange import READ_OVERHEAD
from energybid.drivers.modbus.map import HOLDING, TABLES, TYPES
from energybid.drivers.profile import FUNCTION_OF, compile_profile
from energybid.drivers.sunspec.device import walk
from energybid.drivers.sunspec.models import COMMON, COMMON_TEXTS, HEADER

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from energybid.drivers.probe import Prober
    from energybid.drivers.profile import Fingerprint, LoadedProfile, Register, SerialNumber

SUNSPEC_COMMON_REGISTERS = 66
"""Of the common model, up to its serial number."""

ILLEGAL_FUNCTION = 1
SILENT_MAX = 3
"""Reads in a row that a unit may leave unanswered; then it is not asked any more."""
EQUAL, TEXT, RANGE, PLAUSIBLE, READABLE, MODEL, VENDOR = 60, 60, 15, 10, 5, 50, 20
"""Points for a candidate: a fingerprint's code, its text, its range; a plausible quantity; that its registers can be
read at all; what the device says."""
ENOUGH = 2 * PLAUSIBLE
"""A candidate with fewer points is not named the best."""
TIED_MAX = 6
"""Of so many candidates that are only plausible all registers are read."""
PLAUSIBLE_VALUES = {"voltage-l1": (50, 500), "frequency": (45, 66)}
"""What a mains meter may measure, by quantity, V and Hz."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A profile that may be this unit's, and why."""

    profile: str
    manufacturer: str
    model: str
    points: int
    certain: bool
    """Recognised by a code, a text or its own word, not only plausible."""
    reasons: tuple[str, ...]


NOBODY = Candidate(profile="", manufacturer="", model="", points=0, certain=False, reasons=())


@dataclass(kw_only=True)
class Identity:
    """What is known of one unit."""

    objects: dict[str, str] = field(default_factory=dict)
    """Device identification, by name of the object."""
    sunspec: dict[str, str] = field(default_factory=dict)
    """The common model's texts, and ``base`` and ``models``; empty without the marker."""
    candidates: list[Candidate] = field(default_factory=list)
    """Best first."""
    serial_number: str | None = None
    complete: bool = False
    """Everything was asked."""

    @property
    def best(self) -> Candidate | None:
        """The most likely profile; None where two are equally likely, or nothing says enough."""
        first, *others = self.candidates or [NOBODY]
        if first.points < ENOUGH or any(other.points == first.points for other in others):
            return None
        # What was not asked may fit as well, unless this one was recognised.
        return first if first.certain or self.complete else None

    @property
    def likely(self) -> Candidate | None:
        """The best one, or the first of those that might be, to compare its values; None where there is none."""
        first = (self.candidates or [NOBODY])[0]
        return first if first.points >= PLAUSIBLE else None


class Unanswered(Exception):  # noqa: N818  not an error: the unit has said enough
    """The unit answers no more, or its time is over."""


class Examiner:
    """Puts the questions to one unit, each once."""

    def __init__(self, prober: Prober, unit: int, timeout_s: float, *, until: float = float("inf")) -> None:
        """Prepare.

        Args:
            prober: The bus.
            unit: Whom to ask.
            timeout_s: How long it may take to reply.
            until: Loop time from which on nothing more is asked.
        """
        self._prober = prober
        self._unit = unit
        self._timeout_s = timeout_s
        self.until = until
        self._silent = 0
        self._known: dict[tuple[int, int, int], bytes | None] = {}
        self._objects: dict[int, bytes] | None = None
        self._refuses: set[int] = set()
        """Functions that the unit does not know."""

    @property
    def silent(self) -> bool:
        """It answers no more."""
        return self._silent >= SILENT_MAX

    async def read(self, function: int, first: int, count: int) -> bytes | None:
        """Registers' bytes; None where the unit refuses.

        Raises:
            Unanswered: It is silent, or its time is over.
            BusDownError: The bus is lost.
        """
        if function in self._refuses:
            return None
        place = function, first, count
        if place not in self._known:
            self._known[place] = await self._read(function, first, count)
        return self._known[place]

    async def _read(self, function: int, first: int, count: int) -> bytes | None:
        if asyncio.get_running_loop().time() >= self.until:
            raise Unanswered
        pdu = await self._ask(struct.pack(">BHH", function, first, count), READ_OVERHEAD + 2 * count)
        if pdu is not None and pdu[0] == function:
            return pdu[READ_OVERHEAD:]
        if pdu is not None and pdu[1] == ILLEGAL_FUNCTION:
            self._refuses.add(function)
        return None

    async def _ask(self, pdu: bytes, reply: int) -> bytes | None:
        heard = await self._prober.ask(self._unit, pdu, self._timeout_s, reply=reply)
        self._silent = self._silent + 1 if heard.pdu is None else 0
        if self.silent:
            raise Unanswered
        return heard.pdu

    async def objects(self) -> dict[int, bytes]:
        """The basic stream of device identification; empty where the unit has none."""
        if self._objects is None:
            self._objects = await self._walk()
        return self._objects

    async def _walk(self) -> dict[int, bytes]:
        walk = objects.Walk()
        while walk.next_request is not None:
            pdu = await self._ask(walk.next_request, reply=64)
            if pdu is None or pdu[0] != objects.FUNCTION:
                break
            try:
                walk.feed(pdu)
            except GarbledError:
                break
        return walk.objects

    async def sunspec(self) -> dict[str, str]:
        """The SunSpec common model and the chain of models behind it; empty where there is none."""
        chain = await walk(lambda first, count: self.read(HOLDING, first, count))
        if chain is None:
            return {}
        facts = {"base": str(chain.base), "models": " ".join(str(found.number) for found in chain.models)}
        for found in chain.models:
            if found.number == COMMON and found.length >= SUNSPEC_COMMON_REGISTERS - HEADER:
                data = await self.read(HOLDING, found.first, SUNSPEC_COMMON_REGISTERS) or b""
                texts = {name: objects.text(data[2 * a : 2 * (a + n)]) for name, (a, n) in COMMON_TEXTS.items()}
                return facts | texts
        return facts


async def identify(examiner: Examiner, profiles: Sequence[LoadedProfile], *, thorough: bool = False) -> Identity:
    """Find out what a unit is.

    Args:
        examiner: The unit.
        profiles: Candidates, the likeliest first.
        thorough: Look for every kind of evidence, even where the model is known by the first.

    Raises:
        BusDownError: The bus is lost.
    """
    identity = Identity()
    try:
        identity.objects = objects.names(await examiner.objects())
        likely = _likeliest(profiles, identity)
        for loaded in likely:
            candidate = await _by_fingerprints(examiner, loaded, identity.objects)
            if candidate is None:
                continue
            identity.candidates.append(candidate)
            if candidate.certain and not thorough:
                break
        if thorough or not any(c.certain for c in identity.candidates):
            identity.sunspec = await examiner.sunspec()
            await _by_plausibility(examiner, likely, identity)
            await _by_reading(examiner, {loaded.name: loaded for loaded in profiles}, identity)
        identity.complete = True
    except Unanswered:
        pass
    identity.candidates.sort(key=_rank)
    if identity.best is not None:
        identity.serial_number = await _serial_number(examiner, identity, profiles)
    return identity


def _rank(candidate: Candidate) -> tuple[int, str]:
    return -candidate.points, candidate.profile


def _likeliest(profiles: Sequence[LoadedProfile], identity: Identity) -> list[LoadedProfile]:
    """What it says of itself first; then those of which one read decides about many."""
    places = {loaded.name: _first_read(loaded) for loaded in profiles}
    shared = Counter(places.values())
    return sorted(profiles, key=lambda loaded: (-_said(loaded, identity.objects)[0], -shared[places[loaded.name]]))


def _first_read(loaded: LoadedProfile) -> tuple[int, int, int]:
    marks: list[Fingerprint | Register] = [*loaded.fingerprints, *_judged(loaded), *loaded.registers]
    return marks[0].function, marks[0].first, marks[0].count


def rivals(profiles: Iterable[LoadedProfile], names: Collection[str]) -> set[str]:
    """The named profiles, and those that are plausible wherever one of them is: they judge by the same registers."""
    places = {loaded.name: {(r.function, r.first, r.type) for r in _judged(loaded)} for loaded in profiles}
    known = set().union(*(places[name] for name in names if name in places))
    return {name for name, own in places.items() if name in names or own & known}


# ---------------------------------------------------------------- evidence


def _said(loaded: LoadedProfile, said: dict[str, str]) -> tuple[int, tuple[str, ...]]:
    """Points and reasons from what the device says of itself."""
    words = " ".join(said.values()).casefold()
    vendor = loaded.profile.manufacturer.casefold().split()[0]
    points, reasons = 0, []
    if words and vendor in words:
        points += VENDOR
        reasons.append(f"says that it is by {said.get('vendor') or said.get('manufacturer') or vendor}")
    model = next(
        (m for m in (loaded.profile.model, *loaded.profile.also) if words and _plain(m) in _plain(words)), None
    )
    if model is not None:
        points += MODEL
        reasons.append(f"says that it is a {model}")
    return points, tuple(reasons)


def _plain(text: str) -> str:
    return "".join(c for c in text.casefold() if c.isalnum())


async def _by_fingerprints(examiner: Examiner, loaded: LoadedProfile, said: dict[str, str]) -> Candidate | None:
    """The profile as a candidate; None where a fingerprint contradicts it, or nothing speaks for it."""
    points, reasons = _said(loaded, said)
    found, certain = list(reasons), points >= MODEL
    for mark in loaded.fingerprints:
        data = await examiner.read(mark.function, mark.first, mark.count)
        if data is None or not mark.matches(data):
            return None
        certain |= mark.between is None
        points += RANGE if mark.between is not None else TEXT if mark.text is not None else EQUAL
        found.append(f"{mark.about} at {_place(mark.function, mark.first)}")
    return _candidate(loaded, points, found, certain=certain) if found else None


async def _by_plausibility(examiner: Examiner, profiles: Iterable[LoadedProfile], identity: Identity) -> None:
    """Add profiles without fingerprints whose voltage and frequency make sense; drop those where they do not."""
    known = {candidate.profile: candidate for candidate in identity.candidates}
    for loaded in profiles:
        if loaded.fingerprints and loaded.name not in known:
            continue  # contradicted
        before = known.get(loaded.name)
        said_points, said = _said(loaded, identity.objects | identity.sunspec)
        points, found = (before.points, before.reasons) if before else (said_points, said)
        plausible = await _plausible(examiner, loaded)
        if before:
            identity.candidates.remove(before)
        if plausible is not None:
            points += plausible[0]
            certain = before.certain if before else said_points >= MODEL
            identity.candidates.append(_candidate(loaded, points, [*found, *plausible[1]], certain=certain))


def _judged(loaded: LoadedProfile) -> list[Register]:
    """The quantities of a profile that must make sense on any mains meter."""
    return [r for name in PLAUSIBLE_VALUES for r in loaded.registers if r.name == name and not r.factors]


async def _plausible(examiner: Examiner, loaded: LoadedProfile) -> tuple[int, list[str]] | None:
    """Points and reasons if what stands at the places of voltage and frequency makes sense; None if it does not."""
    reasons = []
    for register in _judged(loaded):
        low, high = PLAUSIBLE_VALUES[register.name]
        data = await examiner.read(register.function, register.first, register.count)
        value = None if data is None else value_of(register, data)
        if value is None or not low <= value <= high:
            return None
        reasons.append(f"{register.name} would be {float(value):.1f} {register.quantity.unit}")
    if reasons:
        return PLAUSIBLE * len(reasons), reasons
    return (READABLE, ["its registers can be read"]) if await _readable(examiner, loaded) else None


async def _readable(examiner: Examiner, loaded: LoadedProfile) -> bool:
    """Whether the unit answers all requests of a profile."""
    _, compiled = compile_profile(loaded, interval_s=1)
    for request in (request for group in compiled.groups for request in group):
        if await examiner.read(request.function, request.first, request.count) is None:
            return False
    return True


async def _by_reading(examiner: Examiner, profiles: dict[str, LoadedProfile], identity: Identity) -> None:
    """Where the best are only plausible, they must at least be readable as a whole; those that are not fall behind."""
    read: set[str] = set()
    while identity.candidates and len(read) < TIED_MAX:
        identity.candidates.sort(key=_rank)
        first = identity.candidates[0]
        top = [c for c in identity.candidates if c.points == first.points and c.profile not in read]
        if first.certain or not top:
            return
        read.add(top[0].profile)
        if not await _readable(examiner, profiles[top[0].profile]):
            identity.candidates[identity.candidates.index(top[0])] = replace(
                top[0], points=top[0].points // 2, reasons=(*top[0].reasons, "some of its registers are refused")
            )


def value_of(register: Register, data: bytes) -> Fraction | None:
    """A quantity in its unit, before factors; None where the registers say "not available"."""
    own = in_order(data, little=register.little, swap=register.swapped)
    if int.from_bytes(own, "big") in register.markers:
        return None
    raw = struct.unpack(">" + TYPES[register.type].code, own)[0]
    try:
        return Fraction(raw) * register.scale
    except (ValueError, OverflowError):  # NaN, infinity
        return None


def _candidate(loaded: LoadedProfile, points: int, reasons: list[str], *, certain: bool) -> Candidate:
    return Candidate(
        profile=loaded.name,
        manufacturer=loaded.profile.manufacturer,
        model=loaded.profile.model,
        points=points,
        certain=certain,
        reasons=tuple(reasons),
    )


def _place(function: int, first: int) -> str:
    return f"{TABLES[function]} {first}"


async def _serial_number(examiner: Examiner, identity: Identity, profiles: Iterable[LoadedProfile]) -> str | None:
    """The serial number, where the best candidate's profile knows the place."""
    best = identity.best
    loaded = next((p for p in profiles if best and p.name == best.profile), None)
    place = loaded.profile.identification.serial_number if loaded else None
    if place is None:
        return identity.sunspec.get("serial-number")
    try:
        data = await examiner.read(FUNCTION_OF[place.table], place.register_, place.count)
    except Unanswered:
        return None
    return None if data is None else serial_text(place, data)


def serial_text(place: SerialNumber, data: bytes) -> str:
    """A serial number as people write it."""
    return objects.text(data) if place.type == "text" else str(int.from_bytes(data, "big"))
