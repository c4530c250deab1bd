"""``energybid read``, ``watch``, ``write`` and ``doctor`` as people type them, against simulated meters elsewhere."""

import json
import os
import pty
import re
import shlex
import signal
import socketserver
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from energybid.agent.cli import main, parser
from energybid.drivers.modbus.framing import Frame, MbapFramer, mbap_frame
from energybid.drivers.serialport.holders import Holder, in_use
from simulated import COMMAND, DEADLINE_S, simulated

BUSES = """
[[bus]]
name = "net"
kind = "modbus-tcp"
[[bus.meter]]
name = "main"
unit = 1
profile = "eastron-sdm630"
load = 30
serial_number = 4711
[[bus.meter]]
name = "wrong"
unit = 2
profile = "eastron-sdm630"
load = 30
serial_number = 4711
wiring = { reversed_ct = [2] }
[[bus]]
name = "line"
kind = "modbus-rtu"
device = "line.tty"
baudrate = 19200
[[bus.meter]]
name = "heatpump"
unit = 3
profile = "carlo-gavazzi-em340"
load = 30
reply_delay = "10 ms"
"""
GATEWAY = """
[gateway]
tenant = "t"
id = "g"
[keys]
log = "no-such-key.pem"
[journal]
path = "journal.db"
"""


class Place(dict[str, str]):
    """Bus → target; and the gateway.toml for them."""

    config: str


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("cabinet")
    (folder / "bus.toml").write_text(BUSES)
    with simulated(folder, "-c", "bus.toml") as targets:
        place = Place(targets)
        place.config = str(folder / "gateway.toml")
        Path(place.config).write_text(gateway(place["net"].rpartition(":")[2], place["line"]))
        yield place


def gateway(port: str, device: str) -> str:
    meter = '[[bus.meter]]\nname = "{}"\nunit = {}\nprofile = "{}"\ninterval = "{}"\n'.format
    return (
        f'{GATEWAY}[[bus]]\nname = "net"\nkind = "modbus-tcp"\nhost = "127.0.0.1"\nport = {port}\n'
        + meter("main", 1, "eastron-sdm630", "1 s")
        + meter("wrong", 2, "eastron-sdm630", "1 s")
        + f'[[bus]]\nname = "line"\nkind = "modbus-rtu"\ndevice = "{device}"\nbaudrate = 19200\n'
        + meter("heatpump", 3, "carlo-gavazzi-em340", "50 ms")
    )


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    def type_(*arguments: str) -> tuple[int, str, str]:
        code = main([*arguments])
        out, err = capsys.readouterr()
        assert all(len(line) < 100 for line in out.splitlines() if not line.startswith(("{", "20")))
        return code, out, err

    return type_


def in_a_terminal(*arguments: str, type_: str, when: str) -> tuple[int, str]:
    """Run in a pseudo-terminal of 80 × 24; once a text has appeared, type something, or press Ctrl-C for "^C"."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    process = subprocess.Popen([*COMMAND, *arguments], stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown, told = b"", False
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # Linux says so at the end
            break
        shown += data
        if not told and when.encode() in shown:
            told = True
            if type_ == "^C":
                process.send_signal(signal.SIGINT)
            else:
                os.write(master, type_.encode())
    os.close(master)
    return process.wait(DEADLINE_S), shown.decode()


# ---------------------------------------------------------------- read


def test_one_reading_with_registers_beside_values(site: Place, typed: Typed) -> None:
    code, out, err = typed(
        "read", site["line"], "--unit", "3", "--baudrate", "19200", "--profile", "carlo-gavazzi-em340"
    )
    assert (code, err) == (0, "")
    assert out.startswith(f"unit 3: Carlo Gavazzi EM340 (carlo-gavazzi-em340)\nat {site['line']}\n20")
    assert re.search(r"requests, replies began after \d+", out)
    assert re.search(r"\nvoltage-l1 +2\d\d\.\d V  input 0-1 +[0-9A-F]{4} 0000\n", out)
    assert re.search(r"\nenergy-import +\d+\.\d kWh  input 52-53 ", out)


def test_a_reading_for_programs_is_exact(site: Place, typed: Typed) -> None:
    code, out, _ = typed("read", "-c", site.config, "main", "--json")
    facts = json.loads(out)
    assert (code, facts["meter"], facts["bus"], facts["unit"]) == (0, "main", "net", 1)
    frequency = next(value for value in facts["values"] if value["name"] == "frequency")
    assert re.fullmatch(r"(49|50)\.\d\d", frequency.pop("value"))
    assert len(frequency.pop("raw")) == 2
    assert frequency == {
        "name": "frequency",
        "obis": "1-0:14.7.0",
        "unit": "Hz",
        "status": "ok",
        "exception": None,
        "table": "input",
        "register": 70,
        "type": "float32",
    }
    assert [request["error"] for request in facts["requests"]] == [None, None]


def test_raw_registers(site: Place, typed: Typed) -> None:
    code, out, _ = typed("read", site["net"], "--unit", "1", "--registers", "holding:0-5", "--registers", "input:0x0-1")
    assert code == 0
    assert re.search(r"\nholding 0-1 +- +exception 2, illegal address\n", out)
    assert re.search(r"\nholding 2 +[0-9A-F]{4} +\d+ +-?\d+ +..\n", out)
    assert re.search(r"\ninput 1 ", out)
    code, out, _ = typed("read", "-c", site.config, "main", "--registers", "input:0-2", "--type", "float32", "--json")
    rows = json.loads(out)["registers"]
    assert 200 < rows[0]["value"] < 250
    assert rows[1] == {"table": "input", "register": 2, "count": 1, "raw": rows[1]["raw"], "error": "cut off"}
    _, out, _ = typed("read", "-c", site.config, "main", "--registers", "input:0-3", "--type", "float32")
    assert re.search(r"\ninput 0-1  [0-9A-F ]{9}  2\d\d\.\d+", out)


def test_registers_that_a_meter_does_not_have_do_not_spoil_the_others(
    site: Place, typed: Typed, tmp_path: Path
) -> None:
    profile = tmp_path / "more.toml"
    row = '{{ name = "{}", obis = "1-0:{}.7.0", register = {}, unit = "V", resolution = "0.1" }},\n'.format
    profile.write_text(
        'manufacturer = "Test"\nmodel = "More"\nsource = [{ title = "this test" }]\nmax_registers = 100\n'
        'baudrates = [9600]\nparities = ["N"]\ntimeout = "1 s"\ndefaults = { table = "input", type = "float32" }\n'
        'block = [{ table = "input", first = 0, count = 90 }]\nquantity = [\n'
        + row("voltage-l1", 32, 0)
        + row("voltage-l2", 52, 2)
        + row("beyond", 72, 84)
        + "]\n"
    )
    code, out, _ = typed("read", site["net"], "--unit", "1", "--profile", str(profile))
    assert code == 0
    assert re.search(r"\nvoltage-l2 +2\d\d\.\d V ", out)
    assert re.search(r"\nbeyond +refused \(2\)  input 84-85  -\n", out)
    assert out.endswith("(2) illegal address\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--unit", "9", "--profile", "abb-b23"], 1, "unit 9: the gateway does not reach it (exception 11)"),
        (["--unit", "1", "--profile", "abb-b23"], 1, "refuses all that is asked (exception 2): is it that model?"),
        (["--unit", "9", "--registers", "input:0-9"], 1, "the gateway does not reach it"),
        (["--profile", "abb-b23"], 2, "--unit is missing"),
        (["--unit", "1"], 2, "--profile is missing"),
        (["--unit", "256", "--profile", "abb-b23"], 2, "--unit: is 0 to 255"),
        (["--unit", "1", "--profile", "abb-b23", "--type", "int16"], 2, "--type: is for --registers"),
        (["--unit", "1", "--registers", "input:0", "--most", "0"], 2, "--most: is 1 to 125"),
        (["-c", "CONFIG", "--unit", "1"], 2, "--unit: is for a TARGET"),
        (["-c", "CONFIG", "--baudrate", "9600"], 2, "--baudrate: is for a TARGET"),
        (["-c", "CONFIG", "--stop-bits", "1"], 2, "--stop-bits: is for a TARGET"),
        (["-c", "CONFIG", "--server-name", "x"], 2, "--server-name: is for a TARGET"),
        (["-c", "CONFIG"], 2, "no meter 'TARGET'; there are main, wrong, heatpump"),
        (["-c", "/nowhere.toml"], 2, "/nowhere.toml: No such file"),
    ],
)
def test_what_can_not_be_read_says_why(
    site: Place, typed: Typed, arguments: list[str], code: int, message: str
) -> None:
    place = "TARGET" if "CONFIG" in arguments and "--unit" not in arguments else site["net"]
    given, _, err = typed("read", place, *[site.config if a == "CONFIG" else a for a in arguments])
    assert given == code
    assert message in err


@pytest.mark.parametrize("text", ["coil:1", "holding:9-1", "input:65536", "holding:"])
def test_ranges_that_are_none(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["read", "tcp://x", "--unit", "1", "--registers", text])
    assert "found" in capsys.readouterr().err


def test_the_agent_is_named_where_it_has_the_port() -> None:
    agent = Holder(99, "python3", "/usr/bin/python3 -m energybid.agent.process 7", locks=True)
    text = in_use("/dev/ttyUSB0", [agent], own_pid=1)
    assert text.startswith("in use by the agent, process 99 (")
    assert "energybid status" in text
    assert "systemctl stop energybid" in text


def test_a_port_that_is_not_there(typed: Typed, tmp_path: Path) -> None:
    code, _, err = typed("read", str(tmp_path / "no.tty"), "--unit", "1", "--profile", "abb-b23")
    assert code == 1
    assert "no.tty" in err


# ---------------------------------------------------------------- watch


def test_a_watch_in_a_pipe_is_a_line_for_each_poll_and_statistics_at_the_end(site: Place, typed: Typed) -> None:
    code, out, err = typed(
        "watch", "-c", site.config, "main", "--interval", "100ms", "--for", "450ms", "--quantity", "power"
    )
    assert code == 0
    assert 2 <= len(out.splitlines()) <= 6
    assert all(re.fullmatch(r"20\d\d-\S+Z power=\d+W", line) for line in out.splitlines())
    assert re.match(r"\d polls, replies after \d+/\d+/\d+ ms \(min/median/max\)\n", err)


def test_a_watch_for_programs(site: Place, typed: Typed) -> None:
    arguments = ["--interval", "300ms", "--for", "400ms", "--json", "--quantity", "energy-import"]
    _, out, _ = typed("watch", "-c", site.config, "main", *arguments)
    polls = [json.loads(line) for line in out.splitlines()]
    assert [value["name"] for poll in polls for value in poll["values"]] == ["energy-import"] * len(polls)
    assert polls[0]["changed"] == []


def test_a_watch_in_a_terminal_is_one_table_until_ctrl_c(site: Place) -> None:
    shown = in_a_terminal("watch", "-c", site.config, "main", "--interval", "200ms", type_="^C", when="2 polls")
    code, text = shown
    assert code == 130
    assert "main, unit 1: Eastron SDM630" in text
    assert re.search(r"\x1b\[\d+A", text), "the table stays in place"
    assert re.search(r" \*", text)
    assert re.search(r"\d+ polls, replies after [\d/]+ ms \(min/median/max\)\r\n$", text)
    lines = [re.sub(r"\x1b\[\d*[A-Z]", "", line) for line in text.split("\r\n")]
    assert all(len(line.strip("\r")) <= 80 for line in lines)


def test_a_watch_of_nobody_fails(site: Place, typed: Typed) -> None:
    code, out, err = typed("watch", site["net"], "--unit", "9", "--profile", "abb-b23", "--for", "100ms")
    assert (code, out) == (1, "")
    assert "unit 9: exception 11\n" in err
    assert "1 poll, 1 failed, 2x exception 11\n" in err


def test_a_watch_of_quantities_that_there_are_not(site: Place, typed: Typed) -> None:
    code, _, err = typed("watch", "-c", site.config, "main", "--quantity", "colour")
    assert code == 2
    assert "no quantity 'colour'; there are voltage-l1, " in err
    with pytest.raises(SystemExit):
        main(["watch", "-c", site.config, "main", "--for", "soon"])


def test_a_status_file_that_is_none_is_told(typed: Typed, tmp_path: Path) -> None:
    for text in ("", "[1]", "{}", '{"log": 3}'):
        (tmp_path / "status.json").write_text(text)
        code, out, err = typed("status", "-f", str(tmp_path / "status.json"))
        assert (code, out) == (1, "")
        assert "is no status file of an agent" in err


# ---------------------------------------------------------------- write


def test_a_register_is_written_and_read_back(site: Place, typed: Typed) -> None:
    code, out, _ = typed("write", "-c", site.config, "main", "demand-period", "900", "--yes")
    assert (code, out) == (0, "demand-period: was 3600 s, is 900 s\n")
    code, out, _ = typed("write", "-c", site.config, "main", "demand-period", "3600", "--yes", "--json")
    assert code == 0
    assert json.loads(out) == {
        "meter": "main",
        "unit": 1,
        "name": "demand-period",
        "register": 2,
        "before": "900",
        "written": "3600",
        "after": "3600",
        "of": "s",
        "raw": {"before": "41700000", "written": "42700000", "after": "42700000"},
        "ok": True,
    }


@pytest.mark.parametrize(("answer", "code", "last"), [("y\n", 0, "was 3600 s, is 3600 s"), ("\n", 1, "not written")])
def test_a_person_is_asked(site: Place, answer: str, code: int, last: str) -> None:
    command = ["write", "-c", site.config, "wrong", "demand-period", "3600"]
    given, text = in_a_terminal(*command, type_=answer, when="[y/N]")
    assert given == code
    assert "demand-period, one of 0, 300, 480, 600, 900, 1200, 1800, 3600 s; now 3600 s\r\n" in text
    assert text.rstrip().endswith(last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wrong", "demand-period", "901"], "demand-period may be one of 0, 300, "),
        (["wrong", "demand-period", "-1"], "demand-period may be 0 to 3600 s, not -1"),
        (["wrong", "demand-period", "15min"], "write a decimal number in s"),
        (["wrong", "limit", "1"], "it has: demand-period, one of 0, 300, "),
        (["heatpump", "limit", "1"], "it names none at all"),
        (["wrong", "demand-period", "900"], "--yes is missing"),
    ],
)
def test_what_may_not_be_written(site: Place, typed: Typed, arguments: list[str], message: str) -> None:
    place, name, value = arguments
    code, out, err = typed("write", "-c", site.config, "--", place, name, value)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize(
    ("point", "age_s", "said"),
    [
        ({"leases": [{"owner": "market", "rank": "market"}], "open": True}, 0, "is held by market (market): "),
        ({"leases": [], "open": True}, 0, "is held by the agent, which makes it safe"),
        ({"leases": [], "open": False}, 0, ""),
        ({"leases": [], "open": True}, 3600, ""),
        ({"no": "status"}, 0, ""),
    ],
)
def test_what_the_running_agent_holds_is_not_written(
    site: Place, typed: Typed, tmp_path: Path, point: dict[str, Any], age_s: int, said: str
) -> None:
    status, config = tmp_path / "status.json", tmp_path / "gateway.toml"
    config.write_text(f'{Path(site.config).read_text()}[status]\npath = "status.json"\n')
    others = [{"point": "main/other", "leases": [], "open": True}]
    status.write_text(json.dumps({"control": [*others, {"point": "main/demand-period", **point}]}))
    os.utime(status, (time.time() - age_s,) * 2)
    code, out, err = typed("write", "-c", str(config), "main", "demand-period", "3600", "--yes")
    assert (code, bool(out)) == ((1, False) if said else (0, True))
    assert said in err


class Stubborn(socketserver.BaseRequestHandler):
    """Says yes to every write and keeps what it has; or says nothing."""

    says_yes = True

    def handle(self) -> None:
        framer = MbapFramer()
        while data := self.request.recv(4096):
            for frame in framer.feed(data):
                assert isinstance(frame, Frame)
                if frame.pdu[0] == 3:
                    pdu = bytes((3, 2 * frame.pdu[4])) + bytes(2 * frame.pdu[4])
                elif self.says_yes:
                    pdu = frame.pdu[:5]
                else:
                    continue
                self.request.sendall(mbap_frame(frame.transaction, frame.unit, pdu))


class Silent(Stubborn):
    says_yes = False


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


@pytest.fixture
def peer(request: Any) -> Iterator[str]:
    with Server(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"tcp://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


WRITE = ["--unit", "1", "--profile", "eastron-sdm630", "demand-period", "900", "--yes"]


@pytest.mark.parametrize("peer", [Stubborn], indirect=True)
def test_a_meter_that_says_yes_and_does_not_is_found_out(peer: str, typed: Typed) -> None:
    code, out, _ = typed("write", peer, *WRITE)
    assert code == 1
    assert out == "demand-period: was 0 s, is 0 s; that is NOT what was written (900 s)\n"


@pytest.mark.parametrize("peer", [Silent], indirect=True)
def test_a_write_without_an_answer_may_have_been_taken(peer: str, typed: Typed) -> None:
    code, out, err = typed("write", peer, *WRITE)
    assert (code, out) == (1, "")
    assert "function 16, registers 2 to 3" in err
    assert "it may have been written nevertheless" in err


# ---------------------------------------------------------------- doctor


def test_the_doctor_finds_wrong_wiring_twins_and_a_full_bus(site: Place, typed: Typed) -> None:
    code, out, _ = typed("doctor", "-c", site.config, "--for", "1s", "--json")
    facts = json.loads(out)
    assert (code, facts["ok"]) == (1, False)
    serious = {(f["where"], f["check"]) for f in facts["findings"] if f["severity"] != "note"}
    assert serious == {("wrong", "reversed"), ("net", "same-meter"), ("line", "share")}
    first, wrong, heatpump = facts["meters"]
    assert first["serial_number"] == wrong["serial_number"] == "4711"
    assert wrong["measured"]["power_w"][1] < 0 < wrong["measured"]["power_w"][0]
    assert heatpump["service"]["failed"] == 0


def test_the_doctor_in_words(site: Place, typed: Typed) -> None:
    code, out, err = typed("doctor", "-c", site.config, "wrong", "--for", "300ms", "--no-plant")
    assert (code, err) == (1, "")
    assert all(len(line) < 80 for line in out.splitlines())
    assert re.search(r"\n  power   L1 \d+ W +L2 -\d+ W +L3 \d+ W\n", out)
    assert "\n  ERROR   L2 the other way than the rest: L1 " in out
    assert out.endswith("\n1 to look into\n")


def test_the_doctor_at_a_right_meter(site: Place, typed: Typed) -> None:
    code, out, _ = typed(
        "doctor",
        site["line"],
        "--unit",
        "3",
        "--baudrate",
        "19200",
        "--profile",
        "carlo-gavazzi-em340",
        "--for",
        "200ms",
    )
    assert code == 0
    assert "phase sequence tester" in out
    assert out.endswith("\nNothing to look into.\n")


def test_the_doctor_at_nobody_and_at_no_bus(site: Place, typed: Typed, tmp_path: Path) -> None:
    code, out, _ = typed("doctor", site["net"], "--unit", "9", "--profile", "abb-b23", "--for", "100ms")
    assert code == 1
    assert "No answer to 2 requests." in out
    code, out, _ = typed("doctor", str(tmp_path / "no.tty"), "--unit", "9", "--profile", "abb-b23")
    assert code == 1
    assert "See to that first." in out


def test_the_doctor_needs_somebody(typed: Typed) -> None:
    code, _, err = typed("doctor")
    assert code == 2
    assert "-c gateway.toml" in err


@pytest.mark.parametrize("name", ["read", "watch", "write", "doctor"])
def test_help_has_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser(name).parse_args([name, "--help"])
    text = capsys.readouterr().out
    assert f"energybid {name} -c gateway.toml" in text
    assert all(len(line) <= 120 for line in text.splitlines())


# ---------------------------------------------------------------- the guide

GUIDE = Path(__file__).parents[2] / "docs" / "cabinet.md"
EXAMPLES = [
    line.partition(" #")[0]
    for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for line in block.splitlines()
    if re.match(r"energybid (read|watch|write|doctor) -c", line)
]


@pytest.mark.parametrize("line", EXAMPLES)
def test_the_guides_examples_run(site: Place, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(site.config).parent)
    words = shlex.split(re.sub(r"--for \S+", "", line))[1:]
    if words[0] in {"watch", "doctor"}:
        words += ["--for", "200ms"]
    code = main(words)
    # The doctor finds what is wrong with the simulated site.
    assert code == (1 if words[0] == "doctor" and "main" not in words else 0)


def test_the_guide_names_every_check() -> None:
    folder = Path(__file__).parents[2] / "agent" / "energybid" / "agent" / "cabinet"
    code = "".join((folder / name).read_text() for name in ("wiring_checks.py", "bus_checks.py"))
    checks = set(re.findall(r'(?:error|warning|note|tell)\(\n\s+"([a-z-]+)"', code))
    assert len(checks) > 20
    text = GUIDE.read_text()
    known = {check for check in checks if f"`{check}`" in text}
    assert checks - known <= {"one-phase", "direction-unknown", "phase-order", "energy-unknown"}
