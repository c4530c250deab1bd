"""A programme's rules, read from its TOML file (``programmes/``): what it takes as baseline, and how it pays.

Here live the shape of the rules, their bounds, and the file's reading; what they mean is computed in ``baseline`` and
``settlement`` and written down in docs/settlement.md. Numbers are integers and exact fractions. A file is evidence:
settlement names it by the SHA-256 of its bytes. Pure but for reading the files that come with the program.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from importlib.resources import files
from typing import Any, TypeVar

from energybid.bidding.calendar_days import Zone, calendars

FILE_MAX = 16_384
"""Longest programme file, bytes."""
POOL_MAX = 60
LOOK_BACK_MAX = 120
WINDOW_MAX_MIN = 1_440
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_NUMBER = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,6}|/[0-9]{1,6})?")


class Kind(StrEnum):
    """What a day is to a programme."""

    WEEKDAY = "weekday"
    SATURDAY = "saturday"
    SUNDAY = "sunday"
    HOLIDAY = "holiday"
    """A holiday that is kept on a weekday; on a Saturday or Sunday it is those."""


class Method(StrEnum):
    """Where a baseline comes from."""

    DAYS = "days"
    """The same hours of earlier days."""
    SAME_DAY = "same-day"
    """Hours around the event; one power for the whole event."""
    SCHEDULE = "schedule"
    """What the bid said that the site would do."""


class Take(StrEnum):
    """Which days of a pool make the baseline."""

    ALL = "all"
    HIGHEST = "highest"
    MIDDLE = "middle"
    """Without the highest and the lowest."""


class Rank(StrEnum):
    """By what days are compared: the mean over these intervals."""

    EVENT = "event"
    DAY = "day"


class Of(StrEnum):
    """What a low-usage threshold is a share of."""

    POOL = "pool"
    """The mean of the days in the pool; those below are left out and replaced, until none is."""
    PEAK = "peak"
    """The highest interval in the event's hours among all days that could be taken."""


class Adjusting(StrEnum):
    """How the event day corrects the average."""

    RATIO = "ratio"
    DIFFERENCE = "difference"


class Beyond(StrEnum):
    """What is paid for energy delivered beyond the award."""

    PAID = "paid"
    UNPAID = "unpaid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """How days are chosen for an event on days of some kinds."""

    on: frozenset[Kind]
    """Kinds of days that the event may be on."""
    among: frozenset[Kind]
    """Kinds of days that are taken; without the key, the same."""
    days: int
    """How many are looked for, the latest first."""
    least: int
    """With fewer there is no baseline."""
    look_back_days: int
    """How many calendar days before the event are looked at."""
    gap_days: int
    """Days directly before the event that are passed over."""
    take: Take
    count: int
    """Of the highest; for ``all`` and ``middle`` it says nothing and is 0."""
    weights: tuple[int, ...]
    """By rank, the highest first; empty: all alike."""
    rank: Rank
    events: bool
    """Whether earlier events may be among them."""
    fill: bool
    """Whether, with fewer than ``least``, earlier events are taken after all, the highest first."""
    threshold: Fraction | None
    threshold_of: Of


@dataclass(frozen=True, slots=True, kw_only=True)
class Windows:
    """Time around the event, in minutes; those of 0 length are not there."""

    before_min: int
    before_gap_min: int
    """Between the window and the event's beginning."""
    after_min: int
    after_gap_min: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """Correction of the average by what the site did around the event."""

    kind: Adjusting
    windows: Windows
    least: Fraction | None
    """Bounds of the ratio."""
    most: Fraction | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """What the market pays beside price × delivered."""

    beyond: Beyond
    shortfall: Fraction
    """Share of the price's magnitude that is charged for each unit awarded and not delivered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """All rules of one programme."""

    name: str
    title: str
    method: Method
    zone: Zone
    calendar: str
    pools: tuple[Pool, ...]
    windows: Windows | None
    """Of a same-day baseline."""
    adjustment: Adjustment | None
    payment: Payment


def names() -> list[str]:
    """Programmes that come with the program."""
    folder = files("energybid.bidding").joinpath("programmes")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def text_of(name: str) -> bytes:
    """A programme's file.

    Raises:
        ValueError: No such programme.
    """
    if name not in names():
        raise ValueError(f"programme {name!r} is not one of {', '.join(names())}")
    return files("energybid.bidding").joinpath("programmes").joinpath(f"{name}.toml").read_bytes()


def parse(data: bytes) -> Programme:
    """Read a programme's file.

    Raises:
        ValueError: No TOML, a key that is unknown or missing, or a value out of its bounds.
    """
    if len(data) > FILE_MAX:
        raise ValueError(f"a programme's file has at most {FILE_MAX} bytes")
    try:
        table = _Table(tomllib.loads(data.decode()), "programme")
    except RecursionError:
        raise ValueError("programme: too many tables in one another") from None
    table.ignore("source", "about", "operator")
    method = table.choice("method", Method)
    zone = table.table("zone")
    programme = Programme(
        name=table.text("name", _NAME),
        title=table.text("title"),
        method=method,
        zone=Zone(zone.integer("standard_min", -720, 840), zone.flag("summer")),
        calendar=table.text("holidays"),
        pools=tuple(map(_pool, table.tables("pool"))) if method is Method.DAYS else (),
        windows=_windows(table.table("windows")) if method is Method.SAME_DAY else None,
        adjustment=_adjustment(table.table("adjustment")) if table.has("adjustment") else None,
        payment=_payment(table.table("payment")),
    )
    zone.done()
    table.done()
    _check(programme)
    return programme


def _check(programme: Programme) -> None:
    if programme.calendar != "none" and programme.calendar not in calendars():
        raise ValueError(f"programme: no calendar {programme.calendar!r}")
    covered = [kind for pool in programme.pools for kind in pool.on]
    if programme.method is Method.DAYS and sorted(covered) != sorted(Kind):
        raise ValueError("programme: its pools cover each kind of day once")
    if programme.adjustment and programme.method is not Method.DAYS:
        raise ValueError("programme: only an average of days is adjusted")
    for pool in programme.pools:
        taken = pool.count if pool.take is Take.HIGHEST else pool.least
        if not taken <= pool.days or not pool.least <= pool.days or (pool.take is Take.MIDDLE and pool.least <= 2):  # noqa: PLR2004
            raise ValueError("programme: a pool takes no more days than it has, and without two at least one")
        if pool.weights and (pool.take is not Take.HIGHEST or len(pool.weights) != pool.count):
            raise ValueError("programme: weights are those of the highest days, one each")


def _pool(table: _Table) -> Pool:
    take = table.choice("take", Take)
    on = frozenset(map(Kind, table.texts("on", list(Kind))))
    pool = Pool(
        on=on,
        among=frozenset(map(Kind, table.texts("among", list(Kind)))) if table.has("among") else on,
        days=table.integer("days", 1, POOL_MAX),
        least=table.integer("least", 1, POOL_MAX),
        look_back_days=table.integer("look_back_days", 1, LOOK_BACK_MAX),
        gap_days=table.integer("gap_days", 0, LOOK_BACK_MAX),
        take=take,
        count=table.integer("count", 1, POOL_MAX) if take is Take.HIGHEST else 0,
        weights=table.integers("weights"),
        rank=table.choice("rank", Rank),
        events=table.flag("events"),
        fill=table.flag("fill"),
        threshold=table.number("threshold"),
        threshold_of=table.choice("threshold_of", Of) if table.has("threshold") else Of.POOL,
    )
    table.done()
    return pool


def _windows(table: _Table) -> Windows:
    windows = Windows(
        before_min=table.integer("before_min", 0, WINDOW_MAX_MIN),
        before_gap_min=table.integer("before_gap_min", 0, WINDOW_MAX_MIN),
        after_min=table.integer("after_min", 0, WINDOW_MAX_MIN),
        after_gap_min=table.integer("after_gap_min", 0, WINDOW_MAX_MIN),
    )
    if not windows.before_min + windows.after_min:
        raise ValueError("programme: windows need some time before or after the event")
    table.done()
    return windows


def _adjustment(table: _Table) -> Adjustment:
    adjustment = Adjustment(
        kind=table.choice("kind", Adjusting),
        windows=_windows(table.table("windows")),
        least=table.number("least"),
        most=table.number("most"),
    )
    least, most = adjustment.least, adjustment.most
    if adjustment.kind is Adjusting.DIFFERENCE and (least is not None or most is not None):
        raise ValueError("programme: only a ratio has bounds")
    if least is not None and most is not None and least > most:
        raise ValueError("programme: the bounds of its ratio are out of order")
    table.done()
    return adjustment


def _payment(table: _Table) -> Payment:
    payment = Payment(beyond=table.choice("beyond", Beyond), shortfall=table.number("shortfall") or Fraction(0))
    table.done()
    return payment


# ---------------------------------------------------------------- reading

E = TypeVar("E", bound=StrEnum)


class _Table:
    """A TOML table of which every key must be asked for."""

    def __init__(self, item: Any, where: str) -> None:  # noqa: ANN401  TOML is untyped
        if not isinstance(item, dict):
            raise ValueError(f"{where}: a table is wanted")  # noqa: TRY004  of the file, not of a caller
        self._item, self._where, self._asked = item, where, set[str]()

    def _get(self, key: str) -> Any:  # noqa: ANN401
        self._asked.add(key)
        return self._item.get(key)

    def _fault(self, key: str, wanted: str) -> ValueError:
        return ValueError(f"{self._where}: {key}: {wanted} is wanted")

    def has(self, key: str) -> bool:
        """Whether it holds a key."""
        return key in self._item

    def ignore(self, *keys: str) -> None:
        """Keys that tell people something."""
        self._asked |= set(keys)

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        if unknown := sorted(set(self._item) - self._asked):
            raise ValueError(f"{self._where}: unknown key {', '.join(unknown)}")

    def text(self, key: str, form: re.Pattern[str] | None = None) -> str:
        """A text, of a form."""
        value = self._get(key)
        if not isinstance(value, str) or not value or (form and not form.fullmatch(value)):
            raise self._fault(key, f"a text{f' like {form.pattern}' if form else ''}")
        return value

    def texts(self, key: str, allowed: list[Kind]) -> list[str]:
        """One or more different ones of some texts."""
        value = self._get(key)
        if not isinstance(value, list) or not value or [x for x in value if x not in allowed or value.count(x) > 1]:
            raise self._fault(key, f"a list of {', '.join(sorted(allowed))}")
        return value

    def choice(self, key: str, kind: type[E]) -> E:
        """One of a kind's values."""
        value = self._get(key)
        if value not in list(kind):
            raise self._fault(key, f"one of {', '.join(kind)}")
        return kind(value)

    def integer(self, key: str, least: int, most: int) -> int:
        """A whole number within bounds."""
        value = self._get(key)
        if type(value) is not int or not least <= value <= most:
            raise self._fault(key, f"a whole number from {least} to {most}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """Whole numbers above 0; none without the key."""
        value = self._get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not value or [x for x in value if type(x) is not int or not 0 < x < 1000]:  # noqa: PLR2004
            raise self._fault(key, "a list of whole numbers from 1 to 999")
        return tuple(value)

    def number(self, key: str) -> Fraction | None:
        """An exact number, written as text: "0.8", "5/7"."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not _NUMBER.fullmatch(value):
            raise self._fault(key, 'a number as text, such as "0.8" or "5/7",')
        try:
            return Fraction(value)
        except ZeroDivisionError:
            raise self._fault(key, "a number with a denominator above 0") from None

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self._get(key)
        if not isinstance(value, bool):
            raise self._fault(key, "true or false")
        return value

    def table(self, key: str) -> _Table:
        """A table within."""
        return _Table(self._get(key), f"{self._where}.{key}")

    def tables(self, key: str) -> list[_Table]:
        """Tables within, one or more."""
        value = self._get(key)
        if not isinstance(value, list) or not value:
            raise self._fault(key, "one or more tables")
        return [_Table(each, f"{self._where}.{key}") for each in value]
