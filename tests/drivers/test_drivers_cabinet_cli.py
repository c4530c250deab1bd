"""``energybid scan`` and ``energybid dump`` as people type them, against simulated buses in a process of their own."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from energybid.agent.cli import main, parser
from energybid.drivers.commands.progress import ProgressLine, left_text
from simulated import COMMAND, DEADLINE_S, simulated

BUSES = """
[[bus]]
name = "net"
kind = "modbus-tcp"
[[bus.meter]]
name = "house"
unit = 2
profile = "eastron-sdm630"
[[bus.meter]]
name = "roof"
unit = 9
profile = "carlo-gavazzi-em340"

[[bus]]
name = "line"
kind = "modbus-rtu"
device = "line.tty"
baudrate = 19200
[[bus.meter]]
name = "cellar"
unit = 3
profile = "eastron-sdm630"
reply_delay = "10 ms"
"""
GATEWAY = """
[gateway]
tenant = "t"
id = "g"
[keys]
log = "log.pem"
[journal]
path = "journal.db"
"""
BENCH_MODELS = ["--profile", "eastron-sdm630", "--profile", "carlo-gavazzi-em340"]


@pytest.fixture(scope="module")
def buses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Targets of two buses: net, line."""
    folder = tmp_path_factory.mktemp("buses")
    (folder / "bus.toml").write_text(BUSES)
    with simulated(folder, "-c", "bus.toml") as targets:
        yield targets


def scan(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["scan", *arguments, *BENCH_MODELS])
    out, err = capsys.readouterr()
    return code, out, err


# ---------------------------------------------------------------- scan


def test_a_scan_of_a_line_whose_rate_nobody_told(buses: dict[str, str]) -> None:
    command = [*COMMAND, "scan", buses["line"], "--units", "1-4", "--baudrates", "9600,19200", "--parities", "N"]
    command += BENCH_MODELS
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    facts = json.loads(done.stdout)
    (found,) = facts["meters"]
    assert (found["unit"], found["baudrate"], found["parity"]) == (3, 19200, "N")
    assert (found["profile"], found["certain"], facts["complete"]) == ("eastron-sdm630", True, True)
    assert re.fullmatch(r"2\d\d\.\d V", found["values"]["voltage-l1"])
    assert found["serial_number"].isdecimal()
    assert "unit 3 answers at 19200 8N1\n" in done.stderr
    assert "\r" not in done.stderr, "progress is for terminals"


def test_people_see_models_reasons_and_values(buses: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = scan(capsys, buses["net"], "--units", "1-10")
    assert code == 0
    assert f"{buses['net']}: 2 devices answer, units 2, 9\n" in out
    assert re.search(r"unit 2    Eastron SDM630-Modbus V2, serial number \d+\n          profile eastron-sdm630: ", out)
    assert re.search(r"\n          voltage-l1 2\d\d\.\d V   voltage-l2 2", out)
    assert re.search(r"   energy-import [\d.]+ kWh\n", out)
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "unit 9 answers at tcp://" in err
    assert "--write gateway.toml" in err


def test_what_is_written_passes_the_configuration_check(
    buses: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "new", str(tmp_path / "log")]) in {0, 2}
    capsys.readouterr()
    path = tmp_path / "gateway.toml"
    path.write_text(GATEWAY)
    code, _, err = scan(capsys, buses["net"], "--units", "2,9", "--write", str(path))
    assert code == 0
    assert f"energybid config check -c {path}" in err
    tables = tomllib.loads(path.read_text())
    assert tables["gateway"]["tenant"] == "t"
    assert [(m["unit"], m["profile"]) for m in tables["bus"][0]["meter"]] == [
        (2, "eastron-sdm630"),
        (9, "carlo-gavazzi-em340"),
    ]
    main(["config", "check", "-c", str(path)])
    faults = capsys.readouterr().err.splitlines()
    assert all("keys.log" in fault for fault in faults), "only the key is missing"
    # The same bus again would be polled twice.
    code, _, err = scan(capsys, buses["net"], "--units", "2", "--write", str(path))
    assert code == 2
    assert "there is a [[bus]]" in err
    assert tomllib.loads(path.read_text()) == tables


def test_a_second_bus_gets_names_of_its_own(
    buses: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[[bus]]\nname = "network"\nmeter = [{ name = "eastron-sdm630-2" }]\n')
    assert scan(capsys, buses["net"], "--units", "2", "--write", str(path))[0] == 0
    bus = tomllib.loads(path.read_text())["bus"][1]
    assert (bus["name"], bus["meter"][0]["name"]) == ("network-2", "eastron-sdm630-2-2")


def test_configuration_on_stdout_is_all_that_is_there(
    buses: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = scan(capsys, buses["net"], "--units", "2", "--write", "-")
    assert code == 0
    assert tomllib.loads(out)["bus"][0]["kind"] == "modbus-tcp"


def test_a_state_file_is_kept_and_a_finished_search_is_not_made_again(
    buses: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scan.json"
    first = scan(capsys, buses["net"], "--units", "2", "--resume", str(path), "--json")
    state = path.read_text()
    second = scan(capsys, buses["net"], "--units", "2", "--resume", str(path), "--json")
    assert (first[0], second[0]) == (0, 0)
    assert json.loads(first[1]) == json.loads(second[1])
    assert path.read_text() == state
    code, _, err = scan(capsys, "tcp://127.0.0.1:1", "--resume", str(path))
    assert (code, "is the state of a scan of" in err) == (2, True)


def test_ctrl_c_prints_what_was_found_and_how_to_go_on(buses: dict[str, str]) -> None:
    command = [*COMMAND, "scan", buses["line"], "--baudrates", "19200", "--parities", "N", *BENCH_MODELS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    assert process.stderr.readline() == "unit 3 answers at 19200 8N1\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "unit 3    answers; not identified yet" in out
    going_on = re.search(r"go on with: energybid scan \S+ --baudrates 19200 --parities N --units (\d+)-247 ", err)
    assert going_on
    assert 4 <= int(going_on[1]) < 60
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["tcp://h", "--units", "5-1"], "the lower first"),
        (["tcp://h", "--units", "x"], "write units as"),
        (["/dev/ttyS0", "--units", "0-3"], "1 to 247"),
        (["/dev/ttyS0", "--baudrates", "9600,fast"], "write baud rates as"),
        (["/dev/ttyS0", "--parities", "N,X"], "parities are"),
        (["nowhere"], "is no serial port"),
        (["tcp://h", "--json", "--write", "-"], "choose one"),
        (["tcp://h", "--profile", "no-such"], "no profile 'no-such'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: Any = main(["scan", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert fault in capsys.readouterr().err


def test_a_bus_that_is_not_there_is_a_failure_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = scan(capsys, "/dev/no-such-port", "--units", "1-3")
    assert code == 1
    assert "no-such-port" in err
    assert "go on with: energybid scan /dev/no-such-port --units 1-3 " in err


def test_how_to_go_on_holds_every_option_that_was_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*BENCH_MODELS, "--ca", "my meters.pem", "--server-name", "meter", "--thorough"]
    code, _, err = scan(capsys, "tls://127.0.0.1:1", "--units", "1-3,7", *options[4:])
    assert code == 1
    told = re.search(r"go on with: (.*) \(--resume FILE would remember all\)\n", err)
    assert told
    assert shlex.split(told[1]) == [
        "energybid",
        "scan",
        "tls://127.0.0.1:1",
        "--units",
        "1-3,7",
        "--thorough",
        *options[:-1],
    ]
    state = str(tmp_path / "s.json")
    code, _, err = scan(capsys, "/dev/no-such-port", "--stop-bits", "2", "--parities", "E", "--resume", state)
    told = re.search("go on with: (.*)\n", err)
    assert told
    given = ["--parities", "E", "--stop-bits", "2", *BENCH_MODELS, "--resume", state]
    assert shlex.split(told[1]) == ["energybid", "scan", "/dev/no-such-port", *given]
    parser("scan").parse_args(shlex.split(told[1])[1:])


# ---------------------------------------------------------------- dump


def dump(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["dump", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_recorded_meter_is_served_and_recorded_again(
    buses: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = ["--profile", "eastron-sdm630", "--range", "holding:0-9"]
    code, out, err = dump(capsys, buses["net"], "--unit", "2", *known, "-o", str(tmp_path), "--firmware", "1.02")
    path = Path(out.strip())
    assert (code, path.name) == (0, "eastron-sdm630-modbus-v2_unknown_1.02.toml")
    assert "Replaced by zeros: serial number in holding:64512-64513." in err
    with simulated(tmp_path, "--dump", path.name) as served:
        code, again, _ = dump(capsys, served["recorded"], "--unit", "1", *known, "-o", "-", "--firmware", "1.02")
        # What was recorded is recognised as what it was.
        code, out, _ = scan(capsys, served["recorded"], "--units", "1", "--json")
    assert again == path.read_text()
    assert json.loads(out)["meters"][0]["profile"] == "eastron-sdm630"
    with simulated(tmp_path, "--dump", path.name, "--device", "again.tty", "--unit", "7") as served:
        code, out, _ = dump(capsys, served["recorded"], "--unit", "7", "-o", str(tmp_path / "found.toml"), "--json")
    facts = json.loads(out)
    assert (code, facts["profile"], facts["file"]) == (0, "eastron-sdm630", str(tmp_path / "found.toml"))
    assert facts["masked"] == [{"range": "holding:64512-64513", "what": "serial number"}]


def test_a_model_that_nobody_knows_needs_a_range(
    buses: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = tmp_path / "odd.toml"
    recording.write_text(
        'format = 1\nmanufacturer = "A"\nmodel = "B"\nhardware = "1"\nfirmware = "2"\nmax_registers = 9\n'
        'run = [{ table = "input", first = 7000, words = ["07000: 0001 0002"] }]\n[objects]\n0 = "Odd"\n1 = "One"\n'
    )
    with simulated(tmp_path, "--dump", "odd.toml") as served:
        code, _, err = dump(capsys, served["recorded"], "--unit", "1")
        assert (code, "add --profile or --range" in err) == (2, True)
        code, out, err = dump(
            capsys, served["recorded"], "--unit", "1", "--range", "input:6998-7003", "-o", str(tmp_path), "--most", "4"
        )
    assert (code, Path(out.strip()).name) == (0, "odd-one_unknown_unknown.toml")
    assert "2 registers recorded, 4 refused. No serial number was blanked" in err
    assert main(["simulate", "bus", "--dump", str(tmp_path / "none.toml"), "--for", "10ms"]) == 2
    assert "make one with" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["tcp://h", "--unit", "256"], "--unit: is 0 to 255"),
        (["tcp://h", "--unit", "1", "--most", "126"], "--most: is 1 to 125"),
        (["tcp://h", "--unit", "1", "--json", "-o", "-"], "choose one"),
        (["tcp://h", "--unit", "1", "--range", "coil:1"], "write holding:0-999"),
        (["tcp://h", "--unit", "1", "--range", "input:9-1"], "the lower first"),
        (["tcp://h", "--unit", "1", "--range", "input:0-65536"], "0 to 65535"),
    ],
)
def test_wrong_arguments_of_a_dump_are_named(
    arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: Any = main(["dump", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    assert fault in capsys.readouterr().err


def test_a_meter_that_is_not_there_is_told(buses: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = dump(capsys, buses["net"], "--unit", "77", "--range", "input:0-3", "--profile", "eastron-sdm630")
    assert code == 1
    assert "does not answer" in err


# ---------------------------------------------------------------- the guide

GUIDE = Path(__file__).parents[2] / "docs" / "cabinet.md"
LINES = [
    line.partition(" #")[0]
    for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for line in block.splitlines()
]


@pytest.mark.parametrize("line", LINES)
def test_every_command_in_the_guide_is_one(line: str) -> None:
    words = shlex.split(line)
    assert words[0] == "energybid"
    options = parser(words[1]).parse_args(words[1:])
    assert callable(options.run)


# ---------------------------------------------------------------- progress


def test_a_terminal_sees_one_line_that_is_taken_away(buses: dict[str, str]) -> None:
    reader, writer = pty.openpty()
    command = [*COMMAND, "scan", buses["line"], "--units", "2-3", "--baudrates", "19200", "--parities", "N"]
    command += BENCH_MODELS
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=writer, timeout=DEADLINE_S, check=True)
    os.close(writer)
    shown = b""
    while True:
        try:
            shown += os.read(reader, 65536)
        except OSError:
            break
    os.close(reader)
    text = shown.decode()
    assert re.search(r"\r\x1b\[K19200 8N1  unit   2  \[\.{20}\]  \d+ s left", text)
    assert "\r\x1b[Kunit 3 answers at 19200 8N1\r\n" in text
    assert text.rsplit("\n", 1)[-1] in {"", "\r\x1b[K"} or text.endswith("\r\x1b[K")


def test_a_line_fits_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(30)
    line.show("9600 8N1  unit 200", 0.5, 61)
    line.show("9600 8N1  unit 200", 0.5, 61)
    line.clear()
    line.clear()
    shown = capsys.readouterr().err
    assert shown == "\r\x1b[K9600 8N1  unit 200  [########\r\x1b[K"
    assert [left_text(s) for s in (0.4, 61, 99.4, 100, 3600)] == ["0 s", "61 s", "99 s", "2 min", "60 min"]
