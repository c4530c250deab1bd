"""The demo as people run it, and its judgement of what became of every reading."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import apsw
import pytest
from energybid.agent.cli import main
from energybid.core.entries import Reading
from energybid.core.errors import EnergybidError
from energybid.core.log import parse_entry
from energybid.simulator.commands.demo import COUNTS, _table, exit_code
from energybid.simulator.compare import compare
from energybid.simulator.config import duration
from energybid.simulator.showcase import Showcase
from energybid.simulator.showcase_tally import Tally
from energybid.simulator.view import line, screen
from rich.console import Console

COMMAND = [sys.executable, "-m", "energybid.agent.cli", "demo"]
DEADLINE_S = 90


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One run of the demo: its JSON and the folder it leaves."""
    folder = tmp_path_factory.mktemp("demo") / "new"
    process = subprocess.run(
        [*COMMAND, "--for", "4s", "--json", "--directory", str(folder)],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "meters" in process.stderr
    result = json.loads(process.stdout)
    assert len(process.stdout.splitlines()) == 1
    return result, folder


def test_nothing_is_lost_from_meter_to_receipt(shown: tuple[dict[str, Any], Path]) -> None:
    result, _ = shown
    assert result["read"] >= 10
    assert result["read"] == result["logged"] == result["acknowledged"]
    assert (result["lost"], result["duplicated"], result["verified"]) == (0, 0, True)
    assert result["faults"] == []
    assert result["entries"]["logged"] == result["entries"]["stored"]
    assert result["entries"]["stored"] == sum(receipt["size"] for receipt in result["receipts"])
    assert len(result["receipts"]) == 3
    assert result["market"]["unsettled"] == 0
    assert 0 < result["market_bytes"] < result["mqtt_bytes"]
    assert all(bus["replies"] > 0 for bus in result["simulated"].values())


def test_the_folder_keeps_keys_files_and_databases_and_no_process(shown: tuple[dict[str, Any], Path]) -> None:
    _, folder = shown
    kept = {path.name for path in folder.iterdir()}
    files = {"bus.toml", "headend.toml", "market.toml", "headend.db", "market.db", "market.log", "agent-3.log"}
    assert files | {"keys", "profiles", "gateway-1", "gateway-2", "gateway-3"} <= kept
    assert {"gateway.toml", "journal.db", "status.json"} <= {path.name for path in (folder / "gateway-2").iterdir()}
    assert not os.path.lexists(folder / "basement.tty")
    assert running_in(folder) == []


def running_in(folder: Path) -> list[int]:
    """Processes whose working directory is the folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "cwd").readlink() == folder:
                    found.append(int(process.name))
            except OSError:
                continue
    return found


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").touch()
    assert main(["demo", "--for", "1s", "--directory", str(tmp_path)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_ctrl_c_ends_it_in_order_with_a_table(tmp_path: Path) -> None:
    command = [*COMMAND, "--no-market", "--directory", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    while "meters" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert "duplicated              0" in out
    assert "verified              yes" in out
    assert process.returncode in {0, 1}  # 1: stopped before the first reading
    assert running_in(tmp_path) == []


async def test_a_part_that_dies_ends_the_demo_with_its_last_words(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        showcase = await Showcase.start(tmp_path, stack, market=False)
        agent = showcase._children["agent-1"]
        agent._process.kill()
        with pytest.raises(EnergybidError, match=r"the demo's agent-1 ended: .*journal"):
            await showcase.ended()
    assert running_in(tmp_path) == []


async def test_a_part_that_does_not_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "basement.tty").write_text("in the way")
    with pytest.raises(EnergybidError, match=r"the demo's meters did not start: .*basement.tty"):
        async with AsyncExitStack() as stack:
            await Showcase.start(tmp_path, stack, market=False)
    assert running_in(tmp_path) == []


# ---------------------------------------------------------------- the judgement


@pytest.fixture
def copies(shown: tuple[dict[str, Any], Path], tmp_path: Path) -> tuple[Path, Path]:
    """Journal of a gateway and head-end database of the run, to be tampered with."""
    _, folder = shown
    paths = tmp_path / "journal.db", tmp_path / "headend.db"
    for path, source in zip(paths, (folder / "gateway-1", folder), strict=True):
        shutil.copy(source / path.name, path)
    return paths


OF_GATEWAY_1 = """SELECT entry.epoch, sequence, canonical FROM entry JOIN epoch ON epoch.id = entry.epoch
    JOIN gateway ON gateway.id = epoch.gateway WHERE origin = 'demo/gateway-1' ORDER BY 2"""


def tamper(path: Path, change: Callable[[apsw.Connection, list[tuple[int, int, bytes]]], object]) -> None:
    database = apsw.Connection(str(path))
    readings = [
        (epoch, sequence, raw)
        for epoch, sequence, raw in database.execute(OF_GATEWAY_1)
        if isinstance(parse_entry(raw), Reading)
    ]
    change(database, readings)
    database.close()


def test_an_untouched_pair_agrees(copies: tuple[Path, Path], shown: tuple[dict[str, Any], Path]) -> None:
    found = compare(*copies)
    assert (found.missing, found.foreign, found.duplicated) == (0, 0, 0)
    assert 0 < found.readings == found.acknowledged < shown[0]["read"], "two more gateways read as well"


def test_a_missing_entry_is_lost(copies: tuple[Path, Path]) -> None:
    tamper(copies[1], lambda db, rows: db.execute("DELETE FROM entry WHERE (epoch, sequence) = (?, ?)", rows[3][:2]))
    found = compare(*copies)
    assert (found.missing, found.foreign, found.duplicated) == (1, 0, 0)


def test_a_changed_entry_is_lost_and_foreign(copies: tuple[Path, Path]) -> None:
    tamper(
        copies[1],
        lambda db, rows: db.execute(
            "UPDATE entry SET canonical = ? WHERE (epoch, sequence) = (?, ?)", (rows[4][2], *rows[3][:2])
        ),
    )
    found = compare(*copies)
    assert (found.missing, found.foreign, found.duplicated) == (1, 1, 1)


def test_a_reading_stored_twice_is_duplicated(copies: tuple[Path, Path]) -> None:
    def change(database: apsw.Connection, rows: list[tuple[int, int, bytes]]) -> None:
        epoch, _, canonical = rows[0]
        end = database.execute("SELECT max(sequence) + 1 FROM entry WHERE epoch = ?", (epoch,)).get
        database.execute("INSERT INTO entry VALUES (?, ?, ?)", (epoch, end, canonical))

    tamper(copies[1], change)
    found = compare(*copies)
    assert (found.missing, found.foreign, found.duplicated) == (0, 1, 1)


GOOD = {"read": 5, "lost": 0, "duplicated": 0, "verified": True}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, 0),
        ({"read": 0}, 1),
        ({"lost": 1}, 1),
        ({"duplicated": 1}, 1),
        ({"verified": False}, 3),
        ({"market": {"unsettled": 0}}, 0),
        ({"market": {"unsettled": 1}}, 1),
    ],
)
def test_the_exit_code_is_0_only_where_all_is_well(change: dict[str, Any], code: int) -> None:
    assert exit_code({**GOOD, **change}) == code


# ---------------------------------------------------------------- the view

STATUS: dict[str, Any] = {
    "gateway": "demo/gateway-1",
    "values": 1000,
    "log": {"epoch": "00ff" * 8, "size": 52, "committed": 51, "acknowledged": 40},
    "uplink": {"connected": False, "error": "refused", "sent_bytes": 700, "received_bytes": 150, "batches": 3},
    "receipt": {"size": 40, "root": "ab" * 32, "time_ms": 8_500},
    "meters": [
        {
            "name": "house",
            "bus": "panel",
            "unit": 1,
            "profile": "abb-b23",
            "state": "ok",
            "time_ms": 9_000,
            "values": {
                "1-0:32.7.0": "231.5 V",
                "1-0:31.7.0": "(not_available)",
                "1-0:16.7.0": "-3 W",
                "1-0:1.8.0": "1234560 Wh",
            },
        },
        {
            "name": "dead",
            "bus": "panel",
            "unit": 2,
            "profile": "abb-b23",
            "state": "down",
            "time_ms": None,
            "values": {},
        },
    ],
}


CLEARED = {
    "event": "cleared",
    "round": 7,
    "outcome": "cleared",
    "price": "61.20",
    "currency": "EUR",
    "ends_ms": 9_000,
    "awards": [
        {"gateway": "demo/gateway-1", "verdict": "awarded", "schedule_w": 2_000, "net_w": -500},
        {"gateway": "demo/gateway-2", "verdict": "awarded", "schedule_w": 0, "net_w": 0},
        {"gateway": "demo/gateway-3", "verdict": "refused", "schedule_w": 0, "net_w": 0},
    ],
}
SETTLED = {"event": "settled", "round": 7, "gateway": "demo/gateway-1", "awarded_wh": 42, "delivered_wh": 41,
           "amount": "0.0025", "currency": "EUR"}  # fmt: skip


def tallied(*events: dict[str, Any]) -> Tally:
    tally = Tally()
    for event in events:
        tally.take(json.loads(json.dumps(event)))
    return tally


def rendered(statuses: list[dict[str, Any]], width: int, tally: Tally | None = None) -> str:
    console = Console(width=width, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    console.print(screen(statuses, tally, 10_000, width))
    console.file.close()
    return console.export_text()


@pytest.mark.parametrize("width", [80, 140])
def test_the_view_shows_meters_log_mark_wire_and_receipt(width: int) -> None:
    text = rendered([STATUS], width)
    for part in (
        "house",
        "231.5 V",
        "(not_available)",
        "-3 W",
        "1234.560 kWh",
        "1.0 s",
        "dead",
        "down",
        "52 entries, 51",
        "0.85 bytes per value",
    ):
        assert part in text, part
    assert ("abb-b23" in text) == (width == 140)
    assert ("root abababababababab…, 1.5 s ago" in text) == (width == 140)


def test_the_view_shows_what_devices_hold_and_the_power_of_a_meter_that_counts_both_ways() -> None:
    meters = [
        {"values": {"1-0:1.7.0": "0.0 W", "1-0:2.7.0": "812.5 W"}},
        {"values": {"1-0:1.7.0": "(no_reply)", "1-0:2.7.0": "0.0 W"}},
        {"values": {"1-0:135.7.0": "0.5312"}},
        {"values": {"1-0:135.7.0": "(no_reply)"}},
        {"values": {"0-0:96.9.0": "20.512 Cel"}},
    ]
    text = rendered([{**STATUS, "meters": [{**STATUS["meters"][0], **meter} for meter in meters]}], 140)
    for part in ("-812.5 W", "53.1%", "(no_reply)", "20.512 °C"):
        assert part in text, part


def test_the_view_shows_rounds_awards_and_money() -> None:
    assert "0 rounds, 0 bids" in rendered([STATUS], 140, tallied())
    unsettled = {"event": "unsettled", "round": 7, "gateway": "demo/gateway-2", "why": "no readings"}
    text = rendered([STATUS], 140, tallied(CLEARED, SETTLED, unsettled))
    for part in ("61.20", "-2500 W: 41 of 42 Wh, 0.0025", "+0 W: no readings", "refused", "41 Wh delivered", "EUR/MWh"):
        assert part in text, part
    other = {**CLEARED, "round": 8, "awards": CLEARED["awards"][:1]}
    assert "no bid" in rendered([STATUS], 140, tallied(CLEARED, other))
    nothing = {**CLEARED, "price": None, "awards": []}
    assert "1 rounds" in rendered([STATUS], 140, tallied(nothing))


def test_the_tally_counts_and_knows_what_is_open() -> None:
    refused = {"event": "refused", "gateway": "x", "why": "y"}
    tally = tallied({"event": "ready"}, {"event": "bid"}, CLEARED, refused)
    assert tally.is_open(9_000)
    assert not tally.is_open(8_999)
    tally.take(dict(SETTLED))
    assert tally.is_open(9_000)
    tally.take({"event": "unsettled", "round": 7, "gateway": "demo/gateway-2", "why": "-"})
    assert not tally.is_open(9_000)
    result = tally.result(2, 1)
    assert result["refusals"] == ["x: y"]
    counts = {"rounds": 1, "bids": 1, "awarded": 2, "refused": 1, "settled": 1, "delivered_wh": 41, "paid": "0.0025"}
    assert {key: result[key] for key in counts} == counts


def test_the_view_says_so_before_there_is_a_status() -> None:
    assert "starting" in rendered([], 80)
    assert line([], None, 0) == "starting"


def test_the_line_says_the_same_for_a_log() -> None:
    text = line([STATUS, STATUS], tallied(CLEARED), 10_000)
    assert "2 of 4 meters, 2000 values" in text
    assert "acknowledged 80" in text
    assert "2 awards" in text
    assert "none yet" in line([{**STATUS, "receipt": None, "values": 0}], None, 10_000)


def test_the_last_word_is_a_table_for_people() -> None:
    result = {**dict.fromkeys((name for name, _ in COUNTS), 0), "verified": True, "values": 5, "faults": ["a fault"]}
    market = tallied(CLEARED, SETTLED).result(1, 1)
    result |= {"mqtt_bytes_per_value": 2.5, "market_bytes": 700, "market": market, "directory": "/x"}
    text = _table(result)
    for part in (
        "verified              yes",
        "settled                 1",
        "demo/gateway-1          1   settled: 41 Wh delivered, 0.0025 EUR",
        "demo/gateway-2          0   settled: 0 Wh delivered, 0 EUR",
        "all                     1   settled: 41 Wh delivered, 0.0025 EUR",
        "for each of 5 values, and 700 bytes of messages with the market",
        "fault: a fault",
    ):
        assert part in text, text
    del result["market"]
    text = _table(result | {"market_bytes": 0})
    assert "rounds" not in text
    assert "messages with the market" not in text


def test_minutes_may_be_one_letter() -> None:
    assert duration("3m") == duration("3 min") == 180
    assert duration("30s") == 30
    with pytest.raises(argparse.ArgumentTypeError):
        duration("3x")


# ---------------------------------------------------------------- evidence


async def test_every_bundle_is_verified_by_the_products_own_command(tmp_path: Path) -> None:
    golden = json.loads((Path(__file__).parent.parent / "golden" / "settlement.json").read_text())
    bundle = bytes.fromhex(golden["bundle"])
    pems = {
        f"{name}-{n}": golden["keys"][role] for n in (1, 2, 3) for name, role in (("log", "log"), ("bids", "gateway"))
    }
    (tmp_path / "keys").mkdir()
    for name, pem in {**pems, "market": golden["keys"]["market"], "headend": golden["keys"]["headend"]}.items():
        (tmp_path / "keys" / f"{name}.pub.pem").write_text(pem)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "7-a.bundle").write_bytes(bundle)
    changed = bytearray(bundle)
    changed[len(bundle) // 2] ^= 1
    (tmp_path / "bundles" / "7-b.bundle").write_bytes(changed)
    result = await Showcase(tmp_path)._market_result()
    assert (result["bundles"], result["bundles_verified"]) == (2, 1)
