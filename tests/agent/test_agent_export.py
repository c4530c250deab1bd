"""Export: rows for people, their times corrected where the gateway's clock was wrong."""

import asyncio
import itertools
import json
from pathlib import Path

import apsw
from energybid.agent import cli
from energybid.agent.commands.export import Aside, rows
from energybid.agent.polling import BusPoller
from energybid.core.entries import Command, Declaration, MarketKind, MarketMessage, MarketReason, Reading
from energybid.core.quantities import ClockState
from energybid.simulator.virtual import EPOCH_NS, VirtualClock, run
from gateways import KEY, ScriptedDriver, bus, meter, recording, virtual_platform


def test_readings_from_before_the_first_synchronisation_get_their_true_time(tmp_path):
    async def main():
        clock = VirtualClock(state=ClockState.UNSYNCHRONISED)
        clock.step(-EPOCH_NS / 1e9)
        async with recording(virtual_platform(clock), tmp_path / "j") as recorder:
            poller = BusPoller(
                virtual_platform(clock), recorder, ScriptedDriver(clock, lambda *_: 2301), bus(meter("m"))
            )
            poller.declare()
            task = asyncio.create_task(poller.run())
            await asyncio.sleep(605)
            clock.step(EPOCH_NS / 1e9)
            clock.state = ClockState.SYNCHRONISED
            await asyncio.sleep(600)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run(main)
    database = apsw.Connection(str(tmp_path / "j"))
    found = list(rows(database, "j", Aside()))
    assert len(found) > 110
    early = [row for row in found if row["clock"] == "unsynchronised"]
    assert 55 < len(early) < 65
    assert all(row["time_ms"] < 10**9 for row in early), "what the clock showed stays"
    times = [row["corrected_ms"] for row in found]
    assert all(0 < b - a <= 20_000 for a, b in itertools.pairwise(times)), "one even row of readings"
    assert abs(times[0] - EPOCH_NS // 10**6) < 20_000
    assert all(0 <= row["uncertainty_ms"] <= 62 for row in early)
    assert {row["uncertainty_ms"] for row in found if row["clock"] == "synchronised"} == {0}


def test_commands_are_a_table_of_their_own_in_words(tmp_path, capsys):
    def command(**parts):
        plain = {"mantissa": 42, "exponent": -1, "unit": "A", "found": 42, "owner": "market", "rank": 2, "cause": 1}
        plain |= {"outcome": 1, "time_ms": 7000, "clock": 1, "start": 0, "mono_ms": 5000, "until_ms": 65_000}
        return Command(meter="charger", writable="limit", **(plain | parts))

    async def main():
        async with recording(virtual_platform(VirtualClock()), tmp_path / "j") as recorder:
            recorder.append(command())
            recorder.append(command(owner="agent", rank=3, cause=6, outcome=99, found=None, until_ms=None))

    run(main)
    code = cli.main(["export", str(tmp_path / "j"), str(tmp_path / "rows.db")])
    assert (code, capsys.readouterr().err) == (0, f"0 values and 2 commands written to {tmp_path / 'rows.db'}\n")
    keys = "meter, writable, value, found, unit, owner, rank, cause, outcome, for_ms, time_ms"
    found = apsw.Connection(str(tmp_path / "rows.db")).execute(f"SELECT {keys} FROM commands ORDER BY sequence")
    assert found.fetchall() == [
        ("charger", "limit", "4.2", "4.2", "A", "market", 2, "held", "done", 60_000, 7000),
        ("charger", "limit", "4.2", None, "A", "agent", 3, "restarted", "99", None, 7000),
    ]


GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("prices", "round", "bid", "award", "confirmation", "statement")


def golden(name):
    return bytes.fromhex(json.loads((GOLDEN / f"market-{name}.json").read_text())["message"][2:-1])


def message(kind, data, **parts):
    plain = {"reason": MarketReason.NONE, "missed": 0, "time_ms": 7000, "clock": 2, "start": 1, "mono_ms": 5000}
    return MarketMessage(kind=kind, message=data, **(plain | parts))


def logged(tmp_path, *entries):
    async def main():
        async with recording(virtual_platform(VirtualClock()), tmp_path / "j") as recorder:
            for entry in entries:
                recorder.append(entry)

    run(main)


def table(tmp_path, keys):
    database = apsw.Connection(str(tmp_path / "rows.db"))
    return list(database.execute(f"SELECT {keys} FROM market ORDER BY sequence"))


def test_a_markets_messages_are_a_table_of_their_own_in_words(tmp_path, capsys):
    entries = [message(getattr(MarketKind, name.upper()), golden(name)) for name in NAMES]
    refused = message(MarketKind.AWARD, golden("award"), reason=MarketReason.REPLAYED, missed=5, clock=0, start=99)
    garbage = message(99, b"x" * 64, reason=77)
    logged(tmp_path, *entries, refused, garbage)
    assert cli.main(["export", str(tmp_path / "j"), str(tmp_path / "rows.db")]) == 0
    assert capsys.readouterr().err.startswith("0 values and 8 messages of a market written")
    found = table(tmp_path, "kind, reason, missed, market, round, origin, counter, price, net_w, amount, comment")
    flex = "acme/flex"
    assert found == [
        ("prices", "none", 0, flex, None, None, 365, None, None, None, "day_ahead"),
        ("round", "none", 0, flex, 42, None, None, None, None, None, None),
        ("bid", "none", 0, flex, 42, "acme/gw-7", 1, None, None, None, None),
        ("award", "none", 0, flex, 42, "acme/gw-7", 7, "87.50", 1500, None, None),
        ("confirmation", "none", 0, flex, 42, "acme/gw-7", None, None, None, None, "-"),
        ("statement", "none", 0, flex, 42, "acme/gw-7", 3, None, None, "72.19", None),
        ("award", "replayed", 5, flex, 42, "acme/gw-7", 7, "87.50", 1500, None, None),
        ("99", "77", 0, None, None, None, None, None, None, None, None),
    ]
    said = table(tmp_path, "prices, curve, sha256, answers, bytes, uncertainty_ms")
    assert json.loads(said[0][0]) == ["42.50", "0.00", "-13.00", "999.99"]
    assert json.loads(said[2][1]) == [-2500, ["90.00", 4000, True], ["80.00", 2000, False], ["-5.00", 3000, True]]
    answers = [row[3] for row in said[2:7]]
    assert answers == [said[1][2], said[2][2], said[3][2], said[3][2], said[2][2]], "each names what it answers"
    assert said[7] == (None, None, None, None, 64, 0)
    assert (said[0][5], said[6][5]) == (0, None), "a clock that was never synchronised"


def test_what_a_price_means_is_not_guessed_without_the_announcement(tmp_path):
    unsaid = message(MarketKind.ROUND, golden("round"), reason=MarketReason.UNVERIFIED)
    logged(
        tmp_path, unsaid, *(message(getattr(MarketKind, n.upper()), golden(n)) for n in ("bid", "award", "statement"))
    )
    assert cli.main(["export", str(tmp_path / "j"), str(tmp_path / "rows.db")]) == 0
    assert table(tmp_path, "curve, price, amount, currency")[1:] == [(None, None, None, None)] * 3


def test_many_messages_and_readings_go_through_a_few_at_a_time(tmp_path, capsys):
    async def main():
        async with recording(virtual_platform(VirtualClock()), tmp_path / "j") as recorder:
            quantities = ((bytes(6), "W", 0, False),)
            declared = recorder.declare(Declaration("m", "p", bytes(32), None, ((1000, quantities),)))
            for number in range(1200):
                recorder.append(message(MarketKind.PRICES, golden("prices"), missed=number))
                for _ in range(6):
                    recorder.append(Reading(declared, 0, number, 1, 2, 0, 5, (number,), None))

    run(main)
    assert cli.main(["export", str(tmp_path / "j"), str(tmp_path / "rows.db")]) == 0
    assert "7200 values and 1200 messages of a market" in capsys.readouterr().err
    assert [row[0] for row in table(tmp_path, "missed")] == list(range(1200))


def test_a_markets_messages_are_verified_where_their_keys_are_given(tmp_path, capsys):
    def verify(*keys):
        arguments = [part for key in keys for part in ("--key", str(tmp_path / key))]
        code = cli.main(["verify", str(tmp_path / "j"), "--json", *arguments])
        return code, json.loads(capsys.readouterr().out)

    for name, of in (("market.pem", "round"), ("bids.pem", "bid")):
        text = bytes.fromhex(json.loads((GOLDEN / f"market-{of}.json").read_text())["key"][2:-1])
        (tmp_path / name).write_bytes(text)
    (tmp_path / "log.pem").write_bytes(KEY.public.pem())
    broken = bytearray(golden("award"))
    broken[-1] ^= 1
    refused = message(MarketKind.AWARD, bytes(broken), reason=MarketReason.UNVERIFIED)
    logged(tmp_path, *(message(getattr(MarketKind, n.upper()), golden(n)) for n in NAMES), refused)
    assert [verify(*keys)[1]["market_signatures"] for keys in ((), ("log.pem",), ("log.pem", "market.pem"))] == [
        0,
        0,
        4,
    ]
    code, report = verify("log.pem", "market.pem", "bids.pem")
    assert (code, report["verified"], report["market_messages"], report["market_signatures"]) == (0, True, 7, 6)
    assert cli.main(["verify", str(tmp_path / "j")]) == 0
    assert "a market's messages: 7, 0 of them signed by the given keys" in capsys.readouterr().out


def test_an_accepted_message_that_nobody_signed_is_a_fault(tmp_path, capsys):
    broken = bytearray(golden("award"))
    broken[-1] ^= 1
    logged(
        tmp_path, message(MarketKind.AWARD, bytes(broken)), message(MarketKind.BID, golden("award")), message(9, b"")
    )
    key = tmp_path / "market.pem"
    key.write_bytes(bytes.fromhex(json.loads((GOLDEN / "market-round.json").read_text())["key"][2:-1]))
    (tmp_path / "log.pem").write_bytes(KEY.public.pem())
    assert (
        cli.main(["verify", str(tmp_path / "j"), "--json", "--key", str(key), "--key", str(tmp_path / "log.pem")]) == 3
    )
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert [fault.split(":")[0] for fault in faults] == ["entry 2, a market's message", "entry 3, a market's message"]
    assert "signature" in faults[0]
    assert "energybid bid 1" in faults[1]
