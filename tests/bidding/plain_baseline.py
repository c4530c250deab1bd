"""Baselines a second time, from docs/settlement.md: dictionaries, local datetimes and the time zone database.

It shares nothing with ``energybid.bidding`` but the programmes' files.
"""

import calendar
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

ZONES = {-480: "America/Los_Angeles", -360: "America/Chicago", -300: "America/New_York"}
MONDAYS_AND_THURSDAYS = {
    "nerc": [(5, 0, -1), (9, 0, 0), (11, 3, 3)],
    "pge": [(2, 0, 2), (5, 0, -1), (9, 0, 0), (11, 3, 3)],
}
FIXED = {"nerc": [(1, 1), (7, 4), (12, 25)], "pge": [(1, 1), (7, 4), (11, 11), (12, 25)]}


class NoBaseline(Exception):  # noqa: N818
    pass


def holiday(name, day):
    for month, weekday, which in MONDAYS_AND_THURSDAYS[name]:
        days = [week[weekday] for week in calendar.monthcalendar(day.year, month) if week[weekday]]
        if day == date(day.year, month, days[which]):
            return True
    kept = [date(day.year, *each) for each in FIXED[name]]
    return day in kept or (day.weekday() == 0 and day - timedelta(1) in kept)


def kind(rules, day):
    if day.weekday() > 4:
        return ("saturday", "sunday")[day.weekday() - 5]
    return "holiday" if rules["holidays"] != "none" and holiday(rules["holidays"], day) else "weekday"


def half_even(number):
    low = number.numerator // number.denominator
    rest = number - low
    return low + (rest > Fraction(1, 2) or (rest == Fraction(1, 2) and low % 2 == 1))


def mean(numbers):
    return sum(map(Fraction, numbers)) / len(numbers)


def around(windows, begins, ends, step):
    times = []
    at = begins - timedelta(minutes=windows["before_gap_min"] + windows["before_min"])
    for _ in range(windows["before_min"] * 60 // step):
        times.append(at)
        at += timedelta(seconds=step)
    at = ends + timedelta(minutes=windows["after_gap_min"])
    for _ in range(windows["after_min"] * 60 // step):
        times.append(at)
        at += timedelta(seconds=step)
    return times


def baseline(rules, begins, step, number, loads, events=(), schedule_w=0):  # noqa: C901, PLR0912, PLR0913, PLR0915, PLR0917  plain
    """Wh per interval and [(day, usage, weight)].

    begins: an aware datetime in UTC; step: seconds; loads: {UTC datetime: Wh}.
    """
    times = [begins + timedelta(seconds=step * n) for n in range(number)]
    ends = begins + timedelta(seconds=step * number)
    if rules["method"] == "schedule":
        return [half_even(Fraction(schedule_w * step, 3600))] * number, []
    if rules["method"] == "same-day":
        window = around(rules["windows"], begins, ends, step)
        if not all(at in loads for at in window):
            raise NoBaseline
        return [half_even(mean([loads[at] for at in window]))] * number, []

    zone = ZoneInfo(ZONES[rules["zone"]["standard_min"]])
    local = lambda at: at.astimezone(zone).replace(tzinfo=None)  # noqa: E731
    first = local(begins).date()

    # every interval known or not, by local time: fold 0 and fold 1 are two entries of one list
    by_clock = {}
    at = datetime.combine(first - timedelta(130), datetime.min.time(), UTC)
    while at < ends + timedelta(days=3):
        by_clock.setdefault(local(at), []).append(at)
        at += timedelta(seconds=step)

    def wh(day, moment):
        shifted = datetime.combine(day + (moment.date() - first), moment.time())
        found = by_clock.get(shifted, [])
        if not found or not all(each in loads for each in found):
            return None
        return mean([loads[each] for each in found])

    (pool,) = [each for each in rules["pool"] if kind(rules, first) in each["on"]]
    window = around(rules["adjustment"]["windows"], begins, ends, step) if "adjustment" in rules else []
    event_moments, window_moments = list(map(local, times)), list(map(local, window))

    usages, held = {}, {}
    for back in range(pool["look_back_days"], pool["gap_days"], -1):
        day = first - timedelta(back)
        if kind(rules, day) not in pool.get("among", pool["on"]):
            continue
        values = [wh(day, moment) for moment in event_moments + window_moments]
        if pool["rank"] == "day":
            whole = [at for clock, each in by_clock.items() if clock.date() == day for at in each]
            usage = mean([loads[at] for at in whole]) if all(at in loads for at in whole) else None
        else:
            usage = mean(values[: len(times)]) if None not in values[: len(times)] else None
        if None in values or usage is None:
            continue
        (held if day in events and not pool["events"] else usages)[day] = usage

    latest = sorted(usages, reverse=True)
    if "threshold" in pool:
        share = Fraction(pool["threshold"])
        peak = max((wh(day, moment) for day in latest for moment in event_moments), default=0)
        while True:
            now = latest[: pool["days"]]
            if not now:
                break
            reference = peak if pool["threshold_of"] == "peak" else mean([usages[day] for day in now])
            low = [day for day in now if usages[day] < share * reference]
            if reference <= 0 or not low:
                break
            latest = [day for day in latest if day not in low]
    chosen = {day: usages[day] for day in latest[: pool["days"]]}
    if pool["fill"]:
        for usage, day in sorted(((usage, day) for day, usage in held.items()), reverse=True):
            if len(chosen) < pool["least"]:
                chosen[day] = usage
    if len(chosen) < pool["least"]:
        raise NoBaseline

    ranked = [day for _, day in sorted(((usage, day) for day, usage in chosen.items()), reverse=True)]
    if pool["take"] == "highest":
        ranked = ranked[: pool["count"]]
    elif pool["take"] == "middle":
        del ranked[-1], ranked[0]
    weights = {day: pool["weights"][n] if "weights" in pool else 1 for n, day in enumerate(ranked)}

    def average(moment):
        return sum(weight * wh(day, moment) for day, weight in weights.items()) / sum(weights.values())

    result = list(map(average, event_moments))
    if "adjustment" in rules:
        if not all(at in loads for at in window):
            raise NoBaseline
        ours, theirs = mean([loads[at] for at in window]), mean(list(map(average, window_moments)))
        if rules["adjustment"]["kind"] == "difference":
            result = [each + ours - theirs for each in result]
        elif theirs > 0:
            bounds = [Fraction(rules["adjustment"].get(key, other)) for key, other in (("least", 0), ("most", 10**12))]
            ratio = sorted([bounds[0], ours / theirs, bounds[1]])[1]
            result = [each * ratio for each in result]
    return list(map(half_even, result)), [(day, chosen[day], weights.get(day, 0)) for day in sorted(chosen)[::-1]]
