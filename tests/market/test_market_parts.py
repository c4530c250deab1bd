"""The bidder's parts on their own: price book, splits, outbox, the planner's desk, what the journal holds."""

import asyncio
import os
import random
import subprocess
import sys
from dataclasses import replace

import apsw
import pytest
from bidding_site import CURVE, MARKET, MARKET_KEY, OTHER_KEY, play, split
from energybid.agent.journal import Journal
from energybid.agent.market.book import PriceBook
from energybid.agent.market.desk import Desk, PlannerError
from energybid.agent.market.messages import MessageLog
from energybid.agent.market.outbox import KEPT, Letter, Outbox
from energybid.agent.market.past import AT_ONCE, Past
from energybid.agent.market.ports import Planned
from energybid.agent.market.splits import Splits
from energybid.agent.rounds import Reason, RefusedMessageError
from energybid.agent.system import Thinker
from energybid.bidding.curve import Curve, Step
from energybid.core import cbor
from energybid.core.entries import MarketKind, MarketMessage, MarketReason
from energybid.core.errors import EvidenceError, UplinkDownError, UplinkRefusedError
from energybid.core.ports import Sample
from energybid.simulator.virtual import VirtualClock, VirtualOffload, run
from energybid.sync import columns, market
from energybid.sync.market import PriceCurve, Prices
from gateways import recording, virtual_platform
from hypothesis import given, settings
from hypothesis import strategies as st

HOUR = 3_600_000
NOW = 1_790_000_000_000


# ---------------------------------------------------------------- prices


def prices(counter=1, curve=PriceCurve.DAY_AHEAD, begins_ms=NOW - HOUR, key=MARKET_KEY, **changes):
    made = Prices(MARKET, curve, counter, NOW - HOUR, "USD", 2, begins_ms, HOUR, (4_000, 5_000, 6_000))
    return market.sign(made._replace(**changes), key)


def book():
    return PriceBook(MARKET, MARKET_KEY.public)


def test_of_each_curve_the_last_prices_count():
    held = book()
    first = held.take(prices(), NOW)
    assert held.take(prices(), NOW) is None  # the same again
    held.take(prices(curve=PriceCurve.REAL_TIME, begins_ms=NOW - 4 * HOUR, time_ms=NOW - HOUR), NOW)
    assert held.current(NOW) == held.current(NOW + 2 * HOUR - 1) == first
    assert held.current(NOW + 2 * HOUR) is None
    assert held.status(NOW)["day_ahead"] == {
        "counter": 1,
        "age_s": 3_600,
        "begins_ms": NOW - HOUR,
        "ends_ms": NOW + 2 * HOUR,
    }


def test_real_time_prices_stand_in_for_an_hour():
    held = book()
    made = held.take(prices(curve=PriceCurve.REAL_TIME, begins_ms=NOW - 3 * HOUR), NOW)
    assert held.current(NOW + HOUR - 1) == made
    assert held.current(NOW + HOUR) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (prices(counter=1, decimals=3), Reason.REPLAYED),
        (prices(counter=2, key=OTHER_KEY), Reason.UNVERIFIED),
        (prices(counter=2, market="t/other"), Reason.FOREIGN),
        (prices(counter=2, begins_ms=NOW + 9 * 24 * HOUR), Reason.TOO_FAR),
        (prices(counter=2, time_ms=NOW + HOUR), Reason.TOO_FAR),
    ],
)
def test_prices_that_count_for_nothing(message, reason):
    held = book()
    first = held.take(prices(), NOW)
    with pytest.raises(RefusedMessageError) as refusal:
        held.take(message, NOW)
    assert refusal.value.reason is reason
    assert held.current(NOW) == first


# ---------------------------------------------------------------- splits


def planned(curve=CURVE, schedule_w=1_000, split=split):
    return Planned(curve=curve, schedule_w=schedule_w, split=split)


def test_every_corner_is_split_as_the_planner_says():
    splits = Splits.of(planned())
    for net_w in (-2_000, 2_000, 4_000, 1_000):
        assert splits.at(net_w) == split(net_w)
    assert Splits.decode(splits.encode()) == splits
    whole = replace(splits, all_w={"roof": -3_000, "load": 2_000})
    assert Splits.decode(whole.encode()) == whole
    older = cbor.encode((splits.schedule_w, splits.names, splits.corners))
    assert Splits.decode(older) == splits


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=4), st.integers(-100, 100))
def test_between_corners_every_asset_moves_between_its_own_powers(rises, floor_w):
    rises = [(a, b) for a, b in rises if a + b]
    at = {floor_w: {"a": 0, "b": floor_w}}
    net_w = floor_w
    for a, b in rises:
        before = at[net_w]
        net_w += a + b
        at[net_w] = {"a": before["a"] + a, "b": before["b"] + b}
    steps = tuple(Step(1_000 - n, a + b, divisible=True) for n, (a, b) in enumerate(rises))
    splits = Splits.of(planned(Curve(floor_w, steps), floor_w, at.__getitem__))
    last = splits.at(floor_w)
    for power_w in range(floor_w, net_w + 1):
        found = splits.at(power_w)
        assert sum(found.values()) == power_w
        low = max(corner for corner in at if corner <= power_w)
        high = min(corner for corner in at if corner >= power_w)
        assert all(at[low][name] <= found[name] <= at[high][name] for name in "ab")
        assert all(abs(found[name] - last[name]) <= 2 for name in "ab")
        last = found


def test_a_power_that_nobody_offered_is_split_as_the_nearest():
    splits = Splits.of(planned())
    assert splits.at(9_999) == split(4_000)
    assert splits.at(-9_999) == split(-2_000)


def test_a_planner_that_names_other_assets_at_another_power_is_wrong():
    with pytest.raises(ValueError, match="same assets"):
        Splits.of(planned(split=lambda net_w: {str(net_w): 1}))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x83\x01\x80\x80", b"\x83\x01\x81\x61a\x81\x82\x01\x80", b"\x81\x01"])
def test_damaged_splits_are_told(data):
    with pytest.raises(EvidenceError):
        Splits.decode(data)


# ---------------------------------------------------------------- outbox


class Line:
    """Takes what it is given while it is up."""

    def __init__(self):
        self.up, self.refuses, self.taken = True, (), []

    async def __call__(self, topic, payload, *, retain=False):
        await asyncio.sleep(0.1)
        if topic in self.refuses:
            raise UplinkRefusedError(f"{topic}: not allowed")
        if not self.up:
            raise UplinkDownError("no connection")
        self.taken.append((topic, payload, retain))


def posting(scene):
    async def main():
        clock, line = VirtualClock(), Line()
        outbox = Outbox(line, lambda: clock.now_ns() // 1_000_000)
        task = asyncio.create_task(outbox.run())
        try:
            return await scene(outbox, line, clock.now_ns() // 1_000_000)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return run(main)


def test_what_waits_is_sent_in_order_when_there_is_a_connection():
    async def scene(outbox, line, now_ms):
        line.up = False
        outbox.put("a", Letter("a", b"1", now_ms + 60_000))
        outbox.put("b", Letter("b", b"1", now_ms + 60_000, retain=True))
        await asyncio.sleep(1)
        outbox.put("a", Letter("a", b"2", now_ms + 60_000))
        assert len(outbox) == 2
        assert "a" in outbox
        line.up = True
        outbox.hurry()
        await asyncio.sleep(0.5)
        assert line.taken == [("b", b"1", True), ("a", b"2", False)]
        assert "a" not in outbox

    posting(scene)


def test_what_nobody_wants_any_more_is_not_sent():
    async def scene(outbox, line, now_ms):
        line.up = False
        outbox.put("bid", Letter("bid", b"1", now_ms + 5_000))
        outbox.put("other", Letter("other", b"1", now_ms + 60_000))
        await asyncio.sleep(6)
        line.up = True
        await asyncio.sleep(5)
        assert [topic for topic, *_ in line.taken] == ["other"]

    posting(scene)


def test_what_the_broker_refuses_blocks_nothing(caplog):
    async def scene(outbox, line, now_ms):
        line.refuses = ("bid",)
        for number in range(3):
            outbox.put(number, Letter("bid", b"1", now_ms + 60_000))
        outbox.put("other", Letter("other", b"1", now_ms + 60_000))
        await asyncio.sleep(5)
        assert [topic for topic, *_ in line.taken] == ["other"]
        assert outbox.refused == "bid: not allowed"
        line.refuses = ()
        outbox.put("bid", Letter("bid", b"1", now_ms + 60_000))
        await asyncio.sleep(1)
        assert outbox.refused == ""

    posting(scene)
    assert len(caplog.records) == 1


def test_a_letter_that_was_replaced_on_its_way_is_sent_too():
    async def scene(outbox, line, now_ms):
        outbox.put("bid", Letter("bid", b"1", now_ms + 60_000))
        await asyncio.sleep(0.05)
        outbox.put("bid", Letter("bid", b"2", now_ms + 60_000))
        await asyncio.sleep(1)
        assert [payload for _, payload, _ in line.taken] == [b"1", b"2"]

    posting(scene)


def test_only_so_many_wait():
    async def scene(outbox, line, now_ms):
        line.up = False
        for number in range(KEPT + 5):
            outbox.put(number, Letter("bid", b"%d" % number, now_ms + 60_000))
        assert len(outbox) == KEPT
        assert 4 not in outbox

    posting(scene)


# ---------------------------------------------------------------- the planner's desk


def asking(scene, *, delay_s=(0.1, 0.1), patience_s=10.0):
    async def main():
        think = VirtualOffload(random.Random(1), delay_s=delay_s)
        return await scene(Desk(think, patience_s), think)

    return run(main)


def test_answers_come_one_at_a_time():
    async def scene(desk, _):
        running = []

        def work(name):
            running.append(name)
            return name

        assert await asyncio.gather(desk.ask(work, 1), desk.ask(work, 2)) == [1, 2]
        assert asyncio.get_running_loop().time() == pytest.approx(0.2)

    asking(scene)


def test_a_late_answer_is_not_heard_and_nothing_is_asked_before_it(caplog):
    async def scene(desk, think):
        calls = []
        think.delay_s = (25.0, 25.0)
        with pytest.raises(PlannerError, match="no answer within 10 s"):
            await desk.ask(calls.append, 1)
        think.delay_s = (0.1, 0.1)
        with pytest.raises(PlannerError):
            await desk.ask(calls.append, 2)
        assert calls == []
        await desk.ask(calls.append, 3)
        assert calls == [1, 3]
        assert desk.error == ""

    asking(scene)
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_late_fault_is_not_heard_either(caplog):
    async def scene(desk, think):
        think.delay_s = (25.0, 25.0)
        with pytest.raises(PlannerError):
            await desk.ask(int, "none")
        think.delay_s = (0.1, 0.1)
        await asyncio.sleep(30)
        assert await desk.ask(int, "1") == 1

    asking(scene)
    assert "never retrieved" not in caplog.text


async def test_the_real_thinker_runs_in_order_and_lets_faults_through():
    think = Thinker()
    done = []
    futures = [think(done.append, number) for number in range(5)]
    with pytest.raises(ValueError, match="invalid literal"):
        await think(int, "none")
    await asyncio.gather(*futures)
    assert done == [0, 1, 2, 3, 4]
    cancelled = think(done.append, 5)
    cancelled.cancel()
    assert await think(int, "7") == 7
    assert done[-1] == 5


def test_a_loop_that_is_closed_hears_nothing_of_a_late_answer():
    import threading

    go, over = threading.Event(), threading.Event()
    think = Thinker()

    def slow():
        go.wait(10)

    async def main():
        future = think(slow)
        think(over.set)
        future.cancel()

    asyncio.run(main())
    go.set()
    assert over.wait(10)


# ---------------------------------------------------------------- the log


def test_what_the_disk_refuses_for_too_long_is_left_out(tmp_path):
    async def main():
        platform = virtual_platform(VirtualClock())
        async with recording(platform, tmp_path / "j") as recorder:
            log = MessageLog(platform, recorder)
            recorder.stalled, recorder._waiting = "the disk is full", 10**9
            assert log.taken(MarketKind.AWARD, b"message", 1) is None
            recorder.stalled, recorder._waiting = "", 0
            sequence = log.taken(MarketKind.AWARD, b"message", 1)
            assert await log.secured(sequence)

    run(main)


def filled(path, rows, *, message_every):
    """A journal with a commit a second; some hold a message."""

    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock)
        async with recording(platform, path, commit_interval_s=10_000.0) as recorder:
            log = MessageLog(platform, recorder)
            for number in range(rows):
                await asyncio.sleep(1)
                now_ms = clock.now_ns() // 1_000_000
                recorder.reading(1, 0, Sample(now_ms, 1, number * 1_000, (number,), None))
                if number % message_every == 0:
                    log.taken(MarketKind.ROUND, b"%d" % number, now_ms)
                await recorder.commit()
                journal = recorder.journal
                journal.root_at(1, recorder.size)  # somebody was shown the row: it does not grow

    run(main)
    return Journal(apsw.Connection(str(path)), str(path), check=False)


def walked(past):
    parts = []
    while (part := past.look()) is not None:
        parts.append([kept.entry.message for kept in part])
    return [message for part in reversed(parts) for message in part], len(parts)


def test_the_journal_is_walked_from_its_end_back(tmp_path):
    rows = 2 * AT_ONCE + 10
    journal = filled(tmp_path / "j", rows, message_every=7)
    found, looks = walked(Past(journal, 0, 10**6))
    assert found == [b"%d" % number for number in range(0, rows, 7)]
    assert looks == 3
    half_ms = VirtualClock().offset_ns // 1_000_000 + rows // 2 * 1_000
    late, looks = walked(Past(journal, half_ms, 10**6))
    assert late == [message for message in found if int(message) >= rows // 2 - 2]
    bounded, looks = walked(Past(journal, 0, AT_ONCE))
    assert looks == 1
    assert bounded == [message for message in found if int(message) >= rows - AT_ONCE]
    journal.close()


def test_a_row_from_before_the_clock_was_set_does_not_end_the_walk(tmp_path):
    async def main():
        clock = VirtualClock()
        platform = virtual_platform(clock)
        async with recording(platform, tmp_path / "j") as recorder:
            log = MessageLog(platform, recorder)
            for offset_ns in (clock.offset_ns, 0, clock.offset_ns):
                clock.offset_ns = offset_ns
                log.taken(MarketKind.ROUND, b"%d" % offset_ns, 5)
                await recorder.commit()
                recorder.journal.root_at(1, recorder.size)

    run(main)
    journal = Journal(apsw.Connection(str(tmp_path / "j")), str(tmp_path / "j"), check=False)
    assert len(walked(Past(journal, 1_789_000_000_000, 100))[0]) == 3
    journal.close()


def test_rows_of_readings_are_not_decoded(tmp_path, monkeypatch):
    journal = filled(tmp_path / "j", 50, message_every=25)
    decoded = []
    right = columns.decode
    monkeypatch.setattr(columns, "decode", lambda *a, **k: decoded.append(1) or right(*a, **k))
    assert len(walked(Past(journal, 0, 100))[0]) == 2
    assert len(decoded) <= 3  # those two, and the one with the start
    journal.close()


def test_others_counts_what_are_no_readings():
    message = MarketMessage(0, MarketReason.NONE, b"", 0, 1, 0, 0, 0)
    assert columns.others(columns.encode([message, message])) == 2
    with pytest.raises(EvidenceError):
        columns.others(b"\x80")


def test_a_journal_of_several_epochs_is_walked_through(tmp_path):
    async def scene(site):
        site.round(1)
        await asyncio.sleep(3)
        await site.stop()
        journal = Journal(apsw.Connection(str(site.path)), str(site.path))
        journal.begin_epoch(id_=bytes(16), origin="t/g", secret=bytes(32))
        journal.close()
        await site.start()
        assert site.state(1) == "bid"
        site.round(2)
        await asyncio.sleep(3)
        await site.restart()
        assert [site.state(number) for number in (1, 2)] == ["bid", "announced"]

    play(tmp_path / "j", scene)


# ---------------------------------------------------------------- what is loaded


def test_a_market_loads_numpy_and_nothing_else_that_is_heavy():
    probe = (
        "import sys; import energybid.agent.process, energybid.agent.market.start, energybid.drivers.modbus.driver\n"
        "heavy = {'pydantic', 'pydantic_core', 'sqlite_utils', 'rich', 'amqtt', 'numpy', 'scipy', 'highspy',"
        " 'importlib.metadata', 'energybid.simulator', 'energybid.bidding.backtest', 'shtab'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", probe], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout == "['numpy']\n"
