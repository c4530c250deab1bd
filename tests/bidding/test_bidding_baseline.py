"""Baselines: hand-worked vectors, a second implementation, the rules' files, days and clocks."""

import json
import tomllib
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

import plain_baseline
import pytest
from energybid.bidding import baseline_rules
from energybid.bidding.baseline import BaselineError, Event, compute, needed
from energybid.bidding.baseline_rules import Kind, parse, text_of
from energybid.bidding.calendar_days import Calendar, Zone, calendars, day_number, day_of, is_holiday
from hypothesis import given, settings
from hypothesis import strategies as st

VECTORS = sorted((Path(__file__).parents[1] / "vectors" / "baselines").glob("*.json"))
NAMES = baseline_rules.names()
HOUR_MS = 3_600_000


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * 1000


def of_vector(path):
    vector = json.loads(path.read_text())
    interval_ms = vector["event"]["interval_min"] * 60_000
    loads = {
        ms(run["from"]) + n * interval_ms: wh
        for run in vector["loads"]
        for n, wh in enumerate(run["wh"])
        if wh is not None
    }
    event = Event(ms(vector["event"]["begins"]), interval_ms, vector["event"]["number"])
    return vector, event, loads, frozenset(map(date.fromisoformat, vector["events"]))


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_hand_worked_vectors(path):
    vector, event, loads, events = of_vector(path)
    expected = vector["expected"]
    programme = parse(text_of(vector["programme"]))
    if "error" in expected:
        with pytest.raises(BaselineError, match=expected["error"]):
            compute(programme, event, loads, events)
        return
    found = compute(programme, event, loads, events, vector["schedule_w"])
    assert list(found.wh) == expected["wh"]
    assert [[day.isoformat(), str(usage), weight] for day, usage, weight in found.days] == expected["days"]
    if expected["passed"] is not None:
        assert [[day.isoformat(), str(why)] for day, why in found.passed] == expected["passed"]
    assert [str(each) for each in found.average] == expected["average"]
    assert (None if found.adjusted is None else str(found.adjusted.found)) == expected["found"]
    assert (None if found.adjusted is None else str(found.adjusted.applied)) == expected["applied"]


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_the_second_implementation_finds_the_vectors_too(path):
    vector, event, loads, events = of_vector(path)
    outcome = plain(vector["programme"], event, loads, events, vector["schedule_w"])
    assert outcome == (None if "error" in vector["expected"] else vector["expected"]["wh"])


def test_every_programme_has_a_vector():
    assert {json.loads(path.read_text())["programme"] for path in VECTORS} == set(NAMES)


def plain(name, event, loads, events, schedule_w=0):
    at = lambda time_ms: datetime.fromtimestamp(time_ms // 1000, UTC)  # noqa: E731
    try:
        wh, _ = plain_baseline.baseline(
            tomllib.loads(text_of(name).decode()), at(event.begins_ms), event.interval_ms // 1000, event.number,
            {at(time_ms): wh for time_ms, wh in loads.items()}, events, schedule_w,
        )  # fmt: skip
    except plain_baseline.NoBaseline:
        return None
    return wh


def ours(name, event, loads, events, schedule_w=0):
    try:
        return list(compute(parse(text_of(name)), event, loads, events, schedule_w).wh)
    except BaselineError:
        return None


DATES = st.one_of(
    st.dates(date(2025, 1, 1), date(2027, 12, 31)),
    st.sampled_from([date(2026, 3, 8), date(2026, 3, 9), date(2026, 11, 1), date(2026, 11, 2), date(2026, 9, 8)]),
)


@pytest.mark.untraced
@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(NAMES), day=DATES, hour=st.integers(0, 23), number=st.integers(1, 4),
    salt=st.integers(0, 2**32), holes=st.integers(0, 12), held=st.sets(st.integers(1, 40), max_size=8),
    shift=st.sampled_from([0, 0, 0, -60]),
)  # fmt: skip
def test_both_implementations_agree(name, day, hour, number, salt, holes, held, shift):  # noqa: PLR0913, PLR0917  what is drawn
    """Loads of few different values, so that ties are common; some missing; some of them exports."""
    event = Event(day_number(day) * 24 * HOUR_MS + (hour + 5) * HOUR_MS, HOUR_MS, number)
    events = frozenset(day - timedelta(back) for back in held)
    loads = {}
    for at in needed(parse(text_of(name)), event):
        noise = (at // HOUR_MS * 2_654_435_761 + salt) >> 7
        if noise % 997 >= holes:
            loads[at] = noise % 7 * 20 + shift + at // (24 * HOUR_MS) % 3
    assert ours(name, event, loads, events, 777) == plain(name, event, loads, events, 777)


def test_quarters_of_an_hour_agree_too():
    event = Event(ms("2026-11-03T17:15-08:00"), 900_000, 3)
    for name in ("caiso-5-in-10", "pjm-high-4-of-5", "ercot-middle-8-of-10"):
        loads = {at: at // 900_000 * 7919 % 101 for at in needed(parse(text_of(name)), event)}
        found = ours(name, event, loads, frozenset())
        assert found is not None
        assert found == plain(name, event, loads, frozenset())


def test_nothing_but_what_is_needed_is_looked_at():
    event = Event(ms("2026-08-12T15:00-04:00"), HOUR_MS, 2)
    for name in NAMES:
        programme = parse(text_of(name))
        loads = {at: at // HOUR_MS % 13 + 1 for at in needed(programme, event)}
        more = dict.fromkeys(range(event.begins_ms - 3000 * HOUR_MS, event.ends_ms + 100 * HOUR_MS, HOUR_MS), 10**6)
        assert compute(programme, event, loads).wh == compute(programme, event, more | loads).wh


# ---------------------------------------------------------------- edges


def flat(name, event, value):
    return dict.fromkeys(needed(parse(text_of(name)), event), value)


def test_a_site_that_exports_has_no_ratio_and_no_threshold():
    event = Event(ms("2026-08-12T15:00-04:00"), HOUR_MS, 1)
    found = compute(parse(text_of("nyiso-high-5-of-10")), event, flat("nyiso-high-5-of-10", event, -500))
    assert (found.wh, found.adjusted.found, found.adjusted.applied) == ((-500,), None, 1)
    assert not found.passed
    found = compute(parse(text_of("nyiso-high-5-of-10")), event, flat("nyiso-high-5-of-10", event, 0))
    assert (found.wh, found.adjusted.found, found.adjusted.applied) == ((0,), None, 1)
    loads = flat("pjm-high-4-of-5", event, -500)
    assert compute(parse(text_of("pjm-high-4-of-5")), event, loads).wh == (-500,)


def test_the_look_back_ends_with_its_last_day():
    """Thursday; the programme wants five weekdays of the 45 days before, and the 45th is a Monday."""
    event, first = Event(ms("2026-08-13T15:00-07:00"), HOUR_MS, 1), ms("2026-08-13T00:00-07:00")
    programme = parse(text_of("caiso-10-in-10"))
    for days, found in (((45, 44, 43, 42, 41), (100,)), ((48, 44, 43, 42, 41), None)):
        loads = {first - (back * 24 - hour) * HOUR_MS: 100 for back in (0, *days) for hour in range(24)}
        assert set(needed(programme, event)) & loads.keys() >= {event.begins_ms - 41 * 24 * HOUR_MS}
        if found:
            assert compute(programme, event, loads).wh == found
        else:
            with pytest.raises(BaselineError, match="4 days of the 45"):
                compute(programme, event, loads)


def test_a_ratio_without_bounds_is_not_below_zero():
    event = Event(ms("2026-08-12T15:00-05:00"), HOUR_MS, 1)
    loads = flat("ercot-middle-8-of-10", event, 100)
    for back in (2, 3, 4):
        loads[event.begins_ms - back * HOUR_MS] = -100
    found = compute(parse(text_of("ercot-middle-8-of-10")), event, loads)
    assert (found.wh, found.adjusted.found, found.adjusted.applied) == ((0,), -1, 0)


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (Event(ms("2026-08-12T15:00Z"), 420_000, 1), "divide the hour"),
        (Event(ms("2026-08-12T15:00Z"), 30_000, 1), "divide the hour"),
        (Event(ms("2026-08-12T15:00Z") + 60_000, HOUR_MS, 1), "begin and end with intervals"),
        (Event(ms("2026-08-12T15:00Z"), HOUR_MS, 0), "begin and end with intervals"),
        (Event(ms("2026-08-12T15:00Z"), HOUR_MS, 1), "0 days of the 45"),
        (Event(ms("2006-08-12T15:00Z"), HOUR_MS, 1), "summer time is known from 2007 on"),
    ],
)
def test_what_gives_no_baseline(event, says):
    with pytest.raises(ValueError, match=says):
        compute(parse(text_of("pjm-high-4-of-5")), event, {})


def test_a_schedule_is_compared_with_no_other_time_and_may_have_intervals_of_seconds():
    rules, begins_ms = parse(text_of("none")), ms("2026-08-12T15:00Z")
    assert compute(rules, Event(begins_ms, 20_000, 2), {}, schedule_w=1_800).wh == (10, 10)
    for odd_ms in (20_500, 7_000, 0, 500):
        with pytest.raises(BaselineError, match="whole seconds that divide the hour"):
            compute(rules, Event(begins_ms, odd_ms, 1), {})


def test_windows_are_filled_by_whole_intervals():
    text = text_of("meter-before-meter-after").replace(b"before_min = 60", b"before_min = 20")
    with pytest.raises(BaselineError, match="15 min do not fill"):
        compute(parse(text), Event(0, 900_000, 1), {})


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", NAMES)
def test_every_programme_says_where_its_numbers_are_from(name):
    table = tomllib.loads(text_of(name).decode())
    assert table["name"] == name
    for source in table["source"]:
        assert source["what"]
        assert source["document"]
        assert isinstance(source["confirmed"], bool)
        assert source["confirmed"] or source["reason"], "what could not be confirmed says why"


GOOD = text_of("caiso-5-in-10").decode()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('method = "days"', 'method = "guess"', "one of days, same-day, schedule"),
        ('name = "caiso', 'name = "CAISO', "name: a text like"),
        ("days = 10", "days = 0", "days: a whole number from 1 to 60"),
        ("days = 10", "days = true", "days: a whole number"),
        ("days = 10", "days = 10\ndogs = 1", "unknown key dogs"),
        ("count = 5", "count = 11", "takes no more days than it has"),
        ("weights = [50, 30, 20]", "weights = [50, 30]", "one each"),
        ("weights = [50, 30, 20]", "weights = [50, 30, 0]", "from 1 to 999"),
        ('on = ["weekday"]', 'on = ["weekday", "holiday"]', "cover each kind of day once"),
        ('on = ["weekday"]', 'on = ["weekday", "weekday"]', "a list of"),
        ('on = ["weekday"]', 'on = [["weekday"]]', "a list of"),
        ('on = ["weekday"]', "on = [{}]", "a list of"),
        ('least = "5/7"', 'least = "1.5"', "out of order"),
        ('least = "5/7"', 'least = "5/0"', "denominator"),
        ('least = "5/7"', 'least = "1e9"', "a number as text"),
        ('least = "5/7"', 'least = "\u0665/7"', "a number as text"),  # a digit, and none of ours
        ('kind = "ratio"', 'kind = "difference"', "only a ratio has bounds"),
        ('holidays = "nerc"', 'holidays = "moon"', "no calendar 'moon'"),
        ("summer = true", 'summer = "yes"', "true or false is wanted"),
        ("[payment]", "[paiment]", "payment: a table is wanted"),
        ("after_min = 120", "after_min = -1", "after_min: a whole number"),
        ("before_min = 120, before_gap_min = 120, after_min = 120", "before_min = 0, before_gap_min = 0, after_min = 0",
         "time"),
    ],
)  # fmt: skip
def test_wrong_files_are_refused(old, new, says):
    assert old in GOOD
    with pytest.raises(ValueError, match=says):
        parse(GOOD.replace(old, new, 1).encode())


def test_files_of_other_shapes_are_refused():
    for text, says in (
        (b"method = 1", "method"),
        (b"#" * 20_000, "at most"),
        (text_of("none").replace(b"[payment]", b"[adjustment]\n[payment]"), "kind"),
        (text_of("ercot-middle-8-of-10").replace(b"least = 10", b"least = 2"), "without two at least one"),
        (text_of("caiso-5-in-10").replace(b"[[pool]]", b"[[pond]]"), "one or more tables"),
    ):
        with pytest.raises(ValueError, match=says):
            parse(text)
    with pytest.raises(ValueError, match="'moon' is not one of caiso-10-in-10"):
        text_of("moon")
    adjustment = text_of("pjm-high-4-of-5").partition(b"[adjustment]")[2].partition(b"# What")[0]
    with pytest.raises(ValueError, match="only an average of days is adjusted"):
        parse(text_of("none").replace(b"[payment]", b"[adjustment]" + adjustment + b"[payment]"))


# ---------------------------------------------------------------- days


@settings(max_examples=200)
@given(at=st.integers(ms("2007-01-02T00:00Z") // 60_000, ms("2060-01-01T00:00Z") // 60_000), near=st.booleans())
def test_the_zone_rule_is_that_of_the_time_zone_database(at, near):
    for minutes, name in plain_baseline.ZONES.items():
        zone = Zone(minutes, summer=True)
        moment = datetime.fromtimestamp(at * 60, ZoneInfo(name))
        if near:  # the day of a change
            day = zone.local(at * 60_000).day
            for change in (date(day.year, 3, 8), date(day.year, 11, 1)):
                sunday = change + timedelta((6 - change.weekday()) % 7)
                assert len(zone.intervals(sunday, HOUR_MS)) == (23 if change.month == 3 else 24)
                assert sum(map(len, zone.intervals(sunday, HOUR_MS).values())) == (23 if change.month == 3 else 25)
        assert zone.local(at * 60_000) == (moment.date(), moment.hour * 60 + moment.minute)
        midnight = datetime.combine(moment.date(), datetime.min.time(), ZoneInfo(name))
        assert zone.begins_ms(moment.date()) == int(midnight.timestamp()) * 1000


def test_holidays_as_published():
    """NERC's list for 2010 to 2012; 5 U.S.C. 6103 as kept in 2021 and 2022; PG&E's rule for a Saturday and a Sunday."""
    kept = lambda name, *years: sorted(day for year in years for day in calendars()[name].holidays(year))  # noqa: E731
    assert kept("nerc", 2010) == [
        date(2010, 1, 1), date(2010, 5, 31), date(2010, 7, 5), date(2010, 9, 6), date(2010, 11, 25), date(2010, 12, 25)
    ]  # fmt: skip
    assert date(2011, 1, 1) in kept("nerc", 2011)
    assert date(2012, 1, 2) in kept("nerc", 2012)
    federal = kept("us-federal", 2021)
    assert [date(2021, 6, 18), date(2021, 12, 24), date(2021, 12, 31)] == [
        day for day in federal if day.month in {6, 12}
    ]
    assert date(2022, 6, 20) in kept("us-federal", 2022)
    assert date(2020, 6, 19) not in kept("us-federal", 2020)
    assert len(kept("us-federal", 2019)) == 10
    assert is_holiday("pge", date(2026, 2, 16))
    assert not is_holiday("pge", date(2026, 7, 3))
    assert not is_holiday("none", date(2026, 1, 1))
    with pytest.raises(ValueError, match="not one of none, nerc, pge, us-federal"):
        is_holiday("moon", date(2026, 1, 1))


def test_a_holiday_on_a_saturday_is_a_saturday():
    from energybid.bidding.baseline import kind_of

    caiso = parse(text_of("caiso-10-in-10"))
    assert kind_of(caiso, date(2026, 7, 4)) is Kind.SATURDAY
    assert kind_of(caiso, date(2026, 9, 7)) is Kind.HOLIDAY
    assert kind_of(caiso, date(2026, 9, 6)) is Kind.SUNDAY


def test_days_outside_the_calendar():
    assert day_of(day_number(date(2026, 2, 3))) == date(2026, 2, 3)
    for number in (10**7, -(10**7), 10**30):
        with pytest.raises(ValueError, match="outside the calendar"):
            day_of(number)
    assert Zone(60, summer=False).local(0) == (date(1970, 1, 1), 60)
    assert Fraction(Zone(60, summer=False).begins_ms(date(1970, 1, 1)), 60_000) == -60


@pytest.mark.parametrize("rule", ["always", "fifth monday of 01", "last noonday of 05"])
def test_a_holiday_has_a_rule(rule):
    with pytest.raises(ValueError, match="write MM-DD"):
        Calendar(((rule, 1),), 0, 1).holidays(2026)


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, len(GOOD) - 1))
def test_whatever_a_file_holds_is_rules_or_a_fault(noise, at):
    data = GOOD.encode()
    for text in (noise, data[:at] + noise + data[at + len(noise) :]):
        try:
            parse(text)
        except ValueError:
            continue
