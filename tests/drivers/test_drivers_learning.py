"""What the driver learns of a meter: registers that it refuses, how long it takes, how much rest it needs."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from energybid.core.errors import NoReplyError, RefusedError
from energybid.core.ports import SerialEndpoint
from energybid.core.quantities import Status
from energybid.drivers.modbus.driver import open_driver
from energybid.drivers.modbus.learned import Delays, Learned, Patience, Refusal, Span, Turnaround
from energybid.drivers.modbus.map import Request
from energybid.drivers.modbus.split import Part, cells_of, widened
from energybid.drivers.planner import Span as Run
from energybid.drivers.planner import Terms, plan, tcp_cost
from energybid.simulator import virtual
from hypothesis import given, settings
from hypothesis import strategies as st
from lines import Line, line_plan, profile, words
from modbus_peers import SILENT, Peer, bus_plan, framed, played, reply

HEAD = """
manufacturer = "Test"
model = "Learning"
source = [{{ title = "this test" }}]
max_registers = {most}
baudrates = [9600]
parities = ["N"]
timeout = "200 ms"
defaults = {{ table = "input" }}
block = [{{ table = "input", first = 0, count = 200 }}]
quantity = [
{rows}]
"""
ROW = """
  {{ name = "q{at}", obis = "1-0:{number}.7.0", register = {at}, type = "{kind}", unit = "W", resolution = "1" }},
"""


def meter(quantities, most=125):
    """A profile with (register, type) quantities."""
    rows = "".join(ROW.format(at=at, kind=kind, number=n + 1) for n, (at, kind) in enumerate(quantities))
    return HEAD.format(rows=rows, most=most).encode()


def asked(frame):
    """The registers that a request is about."""
    first, count = int.from_bytes(frame.pdu[1:3], "big"), int.from_bytes(frame.pdu[3:5], "big")
    return range(first, first + count)


class Refusing:
    """A meter whose registers hold their own addresses, and that refuses some: a fate for ``Peer``."""

    def __init__(self, forbidden=(), *, most=125, borders=(), code=2):
        self.forbidden, self.most, self.borders, self.code = set(forbidden), most, borders, code
        self.refused = []

    def __call__(self, frame):
        registers = asked(frame)
        crosses = any(registers[0] < border <= registers[-1] for border in self.borders)
        if self.forbidden.intersection(registers) or len(registers) > self.most or crosses:
            self.refused.append(registers)
            return [(0.01, framed(frame, bytes((0x84, self.code))))]
        return [(0.01, reply(frame, b"".join(at.to_bytes(2, "big") for at in registers)))]


def value(at, kind):
    return at if kind == "uint16" else (at << 16) + at + 1


def play(fate, scene, **changes):
    """Run ``scene(driver, meter, peer)`` against a meter."""
    return played(bus_plan(**changes), Peer(fate), lambda driver, peer, bus: scene(driver, bus.meters[0], peer))


@st.composite
def maps(draw):
    """Quantities, most registers in a request, registers that are refused."""
    quantities, at = [], 0
    for _ in range(draw(st.integers(1, 12))):
        at += draw(st.integers(0, 5))
        kind = draw(st.sampled_from(["uint16", "uint32"]))
        quantities.append((at, kind))
        at += 1 + (kind == "uint32")
    forbidden = draw(st.sets(st.integers(0, at - 1), max_size=6))
    return quantities, draw(st.integers(2, 40)), forbidden


@pytest.mark.untraced
@settings(max_examples=30, deadline=None)
@given(maps())
def test_good_values_are_kept_and_later_polls_read_around_with_the_fewest_requests(case):
    quantities, most, forbidden = case
    fate = Refusing(forbidden)
    spans = {at: Run(4, at, at + 1 + (kind == "uint32")) for at, kind in quantities}
    good = {at for at, span in spans.items() if not forbidden.intersection(range(span.first, span.end))}
    wanted = tuple(value(at, kind) if at in good else None for at, kind in quantities)

    async def scene(driver, meter, peer):
        if not good:
            with pytest.raises(RefusedError):
                await driver.poll(meter, 0)
            return
        for _ in range(6):
            sample = await driver.poll(meter, 0)
            assert sample.values == wanted
            states = tuple(Status.OK if number is not None else Status.REFUSED for number in wanted)
            assert sample.status == (states if any(states) else None)
        fate.refused.clear()
        before = len(peer.requests)
        await driver.poll(meter, 0)
        assert not fate.refused
        edges = sorted({-1, 200, *forbidden})
        readable = [Run(4, a + 1, b) for a, b in pairwise(edges) if b - a > 1]
        best = plan([spans[at] for at in good], readable, tcp_cost(), registers_max=most)
        assert len(peer.requests) - before == len(best)

    play(fate, scene, profile=meter(quantities, most))


TEN = [(2 * n, "uint32") for n in range(10)]


def test_one_refused_register_costs_one_poll_a_few_requests():
    fate = Refusing({7})

    async def scene(driver, meter, peer):
        sample = await driver.poll(meter, 0)
        assert [i for i, v in enumerate(sample.values) if v is None] == [3]
        searched = len(peer.requests)
        assert searched <= 1 + 2 * 4  # the whole, and two halves for each of log2(10) levels
        await driver.poll(meter, 0)
        assert [asked(f) for f in peer.requests[searched:]] == [range(6), range(8, 20)]
        (fact,) = driver.shown(meter)["unreadable"]
        assert fact["registers"] == "input 6-7"
        assert 0 < fact["retry_s"] <= 60

    play(fate, scene, profile=meter(TEN))


@pytest.mark.parametrize("changes", [{"most": 7, "code": 3}, {"borders": (8,), "code": 2}, {"most": 19, "code": 4}])
def test_a_meter_that_takes_fewer_registers_or_has_borders_loses_no_value(changes):
    fate = Refusing(**changes)

    async def scene(driver, meter, peer):
        for _ in range(4):
            assert (await driver.poll(meter, 0)).status is None
        fate.refused.clear()
        await driver.poll(meter, 0)
        assert not fate.refused

    play(fate, scene, profile=meter(TEN))


def test_a_meter_that_refuses_for_a_moment_has_its_registers_back_after_a_minute():
    fate = Refusing({7, 12})

    async def scene(driver, meter, peer):
        await driver.poll(meter, 0)
        fate.forbidden = set()
        before = len(peer.requests)
        assert (await driver.poll(meter, 0)).values.count(None) == 2
        assert not any(7 in asked(f) for f in peer.requests[before:])
        await asyncio.sleep(61)
        assert (await driver.poll(meter, 0)).values.count(None) == 1  # one try in a poll; its value is used
        assert (await driver.poll(meter, 0)).status is None
        before = len(peer.requests)
        assert (await driver.poll(meter, 0)).status is None
        assert [asked(f) for f in peer.requests[before:]] == [range(20)]
        assert driver.shown(meter)["unreadable"] == []

    play(fate, scene, profile=meter(TEN))


def test_what_is_refused_for_good_is_tried_rarely():
    fate = Refusing({7})

    async def scene(driver, meter, peer):
        for _ in range(10 * 24 * 6):
            await driver.poll(meter, 0)
            await asyncio.sleep(600)
        tries = [registers for registers in fate.refused if registers == range(6, 8)]
        assert 10 <= len(tries) <= 18
        assert len(fate.refused) < 18 + 8

    play(fate, scene, profile=meter(TEN))


def test_a_border_is_tried_again_too():
    fate = Refusing(borders=(8,))

    async def scene(driver, meter, peer):
        await driver.poll(meter, 0)
        assert driver.shown(meter)["unreadable"][0]["registers"] == "input 7|8"
        await asyncio.sleep(61)
        await driver.poll(meter, 0)  # still there
        fate.borders = ()
        await asyncio.sleep(300)
        await driver.poll(meter, 0)
        before = len(peer.requests)
        await driver.poll(meter, 0)
        assert [asked(f) for f in peer.requests[before:]] == [range(20)]

    play(fate, scene, profile=meter(TEN))


def test_a_meter_that_refuses_everything_is_not_searched_at_every_poll():
    fate = Refusing(range(200))

    async def scene(driver, meter, peer):
        for _ in range(10):
            with pytest.raises(RefusedError):
                await driver.poll(meter, 0)
        assert len(peer.requests) == 19 + 9
        assert driver.shown(meter)["unreadable"] == []
        assert driver.learned(meter).get("refused") is None
        fate.forbidden = {7}
        await asyncio.sleep(3601)
        assert (await driver.poll(meter, 0)).values.count(None) == 1

    play(fate, scene, profile=meter(TEN))


def test_an_illegal_function_is_not_split():
    fate = Refusing({7}, code=1)

    async def scene(driver, meter, peer):
        with pytest.raises(RefusedError) as caught:
            await driver.poll(meter, 0)
        assert caught.value.code == 1
        assert len(peer.requests) == 1

    play(fate, scene, profile=meter(TEN))


def test_a_search_that_meets_silence_keeps_what_is_certain():
    fate = Refusing({7})

    def silent_at_8(frame):
        return SILENT if asked(frame)[0] == 10 else fate(frame)

    async def scene(driver, meter, peer):
        sample = await driver.poll(meter, 0)
        assert sample.status[:5] == (0, 0, 0, Status.REFUSED, 0)
        assert sample.status[5:] == (Status.NO_REPLY,) * 5
        assert [fact["registers"] for fact in driver.shown(meter)["unreadable"]] == ["input 6-7"]

    play(silent_at_8, scene, profile=meter(TEN))


def test_what_was_learned_is_taken_up_by_the_next_run():
    fate = Refusing({7, 12})

    async def first(driver, meter, peer):
        for _ in range(100):
            await driver.poll(meter, 0)
        return driver.learned(meter)

    plain = play(fate, first, profile=meter(TEN))

    async def second(driver, meter, peer):
        assert driver.learned(meter) == {}
        driver.learn(meter, plain)
        fate.refused.clear()
        assert (await driver.poll(meter, 0)).values.count(None) == 2
        assert not fate.refused
        for damaged in (
            {"format": 1, "refused": 5},
            {"format": 1, "delays": [[1]]},
            {"format": 1, "delays": [[999, 1]]},
        ):
            with pytest.raises(ValueError, match="damaged"):
                driver.learn(meter, damaged)
        driver.learn(meter, {"format": 2, "refused": "another format is not for us"})
        assert len(driver.shown(meter)["unreadable"]) == 2

    play(fate, second, profile=meter(TEN))


def test_what_no_request_touches_any_more_is_forgotten():
    fate = Refusing({7})

    async def first(driver, meter, peer):
        await driver.poll(meter, 0)
        return driver.learned(meter)

    plain = play(fate, first, profile=meter(TEN))

    async def second(driver, meter, peer):
        driver.learn(meter, plain)
        assert driver.shown(meter)["unreadable"] == []
        await driver.poll(meter, 0)
        assert [asked(frame) for frame in peer.requests] == [range(4)]

    play(fate, second, profile=meter(TEN), quantities=["q0", "q2"])


# ---------------------------------------------------------------- time-outs

LINE = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)


def on_line(line, scene, **changes):
    bus = line_plan(LINE, range(1, 3), profile(4), **changes)
    return played(bus, line, lambda driver, _, bus: scene(driver, bus.meters[0]))


def test_the_time_out_follows_the_meters_own_delays():
    line = Line(LINE, delay_s=0.08)

    async def scene(driver, meter):
        assert driver.shown(meter)["timeout_ms"] == 500
        for _ in range(64):
            await driver.poll(meter, 0)
        shown = driver.shown(meter)
        assert 80 <= shown["delay_ms"][0] <= shown["delay_ms"][1] < 100
        assert 3 * 80 + 20 <= shown["timeout_ms"] < 3 * 100 + 20
        line.respond = lambda *_: b""
        loop = asyncio.get_running_loop()
        began, asked = loop.time(), len(line.asked_at)
        with pytest.raises(NoReplyError):
            await driver.poll(meter, 0)
        times = [at - began for at in line.asked_at[asked:]]
        frames_s = (8 + 5 + 16) * line.character_s
        assert times[0] < 0.1
        # The second try is patient, and comes when the first one's answer can not come any more.
        assert times[1] - times[0] == pytest.approx(0.5 + frames_s + 1.0, abs=0.01)
        assert loop.time() - began - times[1] == pytest.approx(0.5 + frames_s, abs=0.01)

    on_line(line, scene, retries=1)


def test_a_meter_that_becomes_slow_is_given_time_again():
    line = Line(LINE, delay_s=0.01)

    async def scene(driver, meter):
        for _ in range(64):
            await driver.poll(meter, 0)
        assert driver.shown(meter)["timeout_ms"] == 100  # the floor
        line.delay_s = 0.3
        for _ in range(33):
            assert (await driver.poll(meter, 0)).status is None
        assert driver.shown(meter)["timeout_ms"] == 500  # never more than is configured
        asked = len(line.requests)
        await driver.poll(meter, 0)
        assert len(line.requests) == asked + 1

    on_line(line, scene, retries=1)


def test_meters_that_share_a_tcp_connection_keep_their_time_outs():
    async def scene(driver, meter, peer):
        for _ in range(100):
            await driver.poll(meter, 0)
        assert driver.shown(meter)["timeout_ms"] == 200

    play(Refusing(), scene, profile=meter(TEN), units=(1, 2))


@given(st.lists(st.floats(0.0001, 2.0), min_size=1, max_size=300))
def test_a_quantile_is_right_to_a_quarter_octave(delays):
    seen = Delays()
    for delay_s in delays:
        seen.add(delay_s)
    for share in (0.5, 0.999, 1.0):
        exact = sorted(delays)[max(0, -(-int(share * len(delays) * 1000) // 1000) - 1)]
        assert exact <= seen.quantile(share) * (1 + 1e-9)
    assert max(delays) <= seen.quantile(1.0) <= max(delays) * 1.26
    assert Delays(seen.plain()).counts == seen.counts


def test_old_delays_fade():
    seen = Delays()
    seen.add(1.0)
    for _ in range(1100):
        seen.add(0.01)
    assert seen.total < 1000
    assert seen.quantile(1.0) < 0.0126


def test_a_quantile_is_there_when_old_delays_are_just_about_to_fade():
    seen = Delays([(60, 990)])
    for _ in range(20):
        seen.add(0.01)
    assert seen.quantile(0.999) > 0


# ---------------------------------------------------------------- turnaround


def test_a_meter_that_needs_rest_gets_it_and_gives_it_back():
    line = Line(LINE)
    line.rest_s[1] = 0.009

    async def scene(driver, meter):
        other = meter_2(driver)
        lost = 0
        for _ in range(40):
            asked = len(line.requests)
            await asyncio.gather(driver.poll(other, 0), driver.poll(meter, 0))
            lost += len(line.requests) - asked - 2
        shown = driver.shown(meter)
        assert 0.009 - line.silence_s <= shown["turnaround_ms"] / 1000 < 2 * 0.009
        assert lost == 4  # 1, 2, 4, 8 ms
        assert driver.shown(other)["turnaround_ms"] == 0
        assert driver.learned(meter)["turnaround_us"] == 8000
        line.rest_s.clear()
        for _ in range(256 * 11):
            await driver.poll(meter, 0)
        assert driver.shown(meter)["turnaround_ms"] == 0

    on_line(line, scene)


def test_a_meter_that_refuses_registers_gives_its_rest_back_too():
    fate = Refusing({7})

    async def scene(driver, meter, peer):
        await driver.poll(meter, 0)
        driver.learn(meter, {**driver.learned(meter), "turnaround_us": 8000})
        for _ in range(256 * 11):
            await driver.poll(meter, 0)
        assert driver.shown(meter)["turnaround_ms"] == 0

    play(fate, scene, profile=meter(TEN))


def meter_2(driver: Any):
    return driver._units["m2"].plan


def test_a_pinned_turnaround_is_kept():
    text = profile(4).replace(b"defaults =", b'timing = { turnaround = "12 ms" }\ndefaults =')
    line = Line(LINE)
    line.rest_s[1] = 0.012

    async def main():
        bus = line_plan(LINE, range(1, 3), text)
        driver = open_driver(line.platform(), bus)
        await asyncio.gather(*(driver.poll(meter, 0) for meter in reversed(bus.meters)))
        assert len(line.requests) == 2
        assert driver.shown(bus.meters[0])["turnaround_ms"] == 12
        assert "turnaround_us" not in driver.learned(bus.meters[0])
        await driver.close()

    virtual.run(main)


def test_turnaround_is_bounded():
    turnaround = Turnaround()
    for _ in range(20):
        turnaround.went_wrong()
    assert turnaround.extra_s == Turnaround.MAX_S


# ---------------------------------------------------------------- spans


def test_refused_neighbours_become_one_span_and_too_many_are_not_remembered():
    learned = Learned(Patience(1.0, 0.1), Turnaround())
    learned.refuse([Span(4, 2, 2), Span(4, 0, 2), Span(3, 4, 1), Span(4, 8, 0)], 5.0)
    assert list(learned.refused) == [Span(3, 4, 1), Span(4, 0, 4), Span(4, 8, 0)]
    assert str(Span(9, 0, 1)) == "function 9 0"
    learned.refused[Span(4, 0, 4)] = Refusal(7, 9000.0)
    learned.refuse([Span(4, 4, 1)], 10.0)
    assert learned.refused[Span(4, 0, 5)] == Refusal(0, 70.0)
    learned.refuse([Span(4, 100 + 2 * n, 1) for n in range(300)], 10.0)
    assert len(learned.refused) == 100


def test_values_that_share_registers_are_never_split():
    requests = bus_plan(profile=meter(TEN)).meters[0].map.groups[0]
    part = Part(requests[0], tuple(range(10)))
    shared = part.request.fields[0]
    both = Part(
        type(part.request)(function=4, first=0, count=20, fields=(shared, *part.request.fields)), tuple(range(11))
    )
    assert [len(cell.fields) for cell in cells_of(both)] == [2] + [1] * 9


# ---------------------------------------------------------------- a meter alone on its line


def test_a_meter_alone_on_its_line_is_asked_in_two_lengths():
    line = Line(LINE)

    async def main():
        bus = line_plan(LINE, range(1, 2), profile(4))
        driver = open_driver(line.platform(), bus)
        samples = [await driver.poll(bus.meters[0], 0) for _ in range(4)]
        assert len({sample.values for sample in samples}) == 1
        await driver.close()

    virtual.run(main)
    assert [list(asked(frame)) for frame in line.requests] == [list(range(8)), list(range(9))] * 2


@pytest.mark.parametrize(("block", "spans", "wanted"), [
    ((10, 20), [], (10, 9)), ((9, 18), [], (9, 9)), ((10, 18), [], None),
    ((10, 20), [Span(4, 18, 1)], None), ((9, 20), [Span(4, 18, 1)], (9, 9)), ((10, 20), [Span(4, 18, 0)], None),
    ((9, 20), [Span(4, 18, 0)], (9, 9)),
])  # fmt: skip
def test_the_other_length_is_one_that_may_be_read(block, spans, wanted):
    request = Request(function=4, first=10, count=8, fields=())
    terms = Terms(readable=(Run(4, *block),), cost=tcp_cost(), registers_max=9)
    found = widened(request, spans, terms)
    assert (found and (found[0].first, found[0].count)) == wanted
    assert found is None or found[1] == 10 - wanted[0]
    assert widened(request, spans, replace(terms, registers_max=8)) is None


def test_a_register_more_that_is_refused_is_not_asked_for_again():
    def respond(unit, pdu):
        first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        return words(unit, pdu) if first + count <= 8 else bytes((pdu[0] | 0x80, 2))

    line = Line(LINE, respond)

    async def main():
        bus = line_plan(LINE, range(1, 2), profile(4))
        driver = open_driver(line.platform(), bus)
        for _ in range(10):
            assert (await driver.poll(bus.meters[0], 0)).status is None
        assert driver.shown(bus.meters[0])["unreadable"] == []
        await driver.close()

    virtual.run(main)
    assert sum(len(asked(frame)) == 9 for frame in line.requests) == 1


def test_the_register_more_may_stand_in_front():
    quantities = [(at, "uint32") for at in (2, 4, 6)]
    text = meter(quantities).replace(b"count = 200", b"count = 8")
    line = Line(LINE)

    async def main():
        bus = line_plan(LINE, range(1, 2), text)
        driver = open_driver(line.platform(), bus)
        for _ in range(4):
            assert (await driver.poll(bus.meters[0], 0)).values == tuple(value(*quantity) for quantity in quantities)
        await driver.close()

    virtual.run(main)
    assert [asked(frame)[0] for frame in line.requests] == [2, 1, 2, 1]


def test_with_a_short_time_out_a_late_reply_is_waited_for_as_long_as_with_the_configured_one():
    line = Line(LINE, delay_s=0.01)

    async def scene(driver, meter):
        for _ in range(64):
            await driver.poll(meter, 0)
        assert driver.shown(meter)["timeout_ms"] == 100
        sent = len(line.requests)
        line.respond, line.delay_s = lambda *_: bytes((4, 16)) + b"\xff" * 16, 1.45  # within 0.5 s and lateness
        poll = asyncio.ensure_future(driver.poll(meter, 0))
        await asyncio.sleep(0.05)
        assert len(line.requests) == sent + 1
        line.respond, line.delay_s = words, 0.01
        assert max(v or 0 for v in (await poll).values) < 100

    on_line(line, scene)


@pytest.mark.untraced
@settings(max_examples=40, deadline=None)
@given(maps(), st.integers(0, 3))
def test_alone_on_its_line_every_value_is_right_too(case, rest):
    quantities, most, forbidden = case
    last = max(at + 1 + (kind == "uint32") for at, kind in quantities)
    text = meter(quantities, most).replace(b"count = 200", b"count = %d" % (last + rest))
    wanted = tuple(
        None if forbidden.intersection(range(at, at + 1 + (kind == "uint32"))) else value(at, kind)
        for at, kind in quantities
    )

    def respond(unit, pdu):
        first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
        within = first + count <= last + rest and not forbidden.intersection(range(first, first + count))
        return words(unit, pdu) if within else bytes((pdu[0] | 0x80, 2))

    line = Line(LINE, respond)

    async def main():
        bus = line_plan(LINE, range(1, 2), text, timeout_s=0.2)
        driver = open_driver(line.platform(), bus)
        for _ in range(6 if any(number is not None for number in wanted) else 0):
            assert (await driver.poll(bus.meters[0], 0)).values == wanted
        await driver.close()

    virtual.run(main)


def test_a_single_value_that_is_refused_once_is_asked_again_before_that_is_believed():
    fate = Refusing()
    glitches = [1]

    def once(frame):
        if asked(frame)[0] == 100 and glitches:
            glitches.pop()
            return [(0.01, framed(frame, b"\x84\x04"))]
        return fate(frame)

    async def scene(driver, meter, peer):
        assert (await driver.poll(meter, 0)).status is None
        assert driver.shown(meter)["unreadable"] == []
        assert [asked(frame)[0] for frame in peer.requests] == [0, 100, 100]

    play(once, scene)


def test_what_is_refused_for_years_is_still_tried_daily():
    refusal = Refusal(0, 0.0)
    for _ in range(2000):
        refusal.put_off(5.0)
    assert refusal.retry_at == 5.0 + 86_400
