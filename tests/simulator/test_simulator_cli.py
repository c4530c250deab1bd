import json
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from energybid.agent.cli import main
from pymodbus.client import ModbusSerialClient, ModbusTcpClient

README = Path(__file__).parents[2] / "simulator" / "README.md"
COMMAND = [sys.executable, "-m", "energybid.agent.cli", "simulate", "bus"]
DEADLINE_S = 30


def example(text: str) -> str:
    """The bus.toml that the README shows."""
    blocks: list[str] = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    return next(block for block in blocks if "[[bus]]" in block)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "bus.toml"
    path.write_text(example(README.read_text()).replace("port = 5020", "port = 0"))
    return path


def start(config: Path, *options: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    process = subprocess.Popen([*COMMAND, "-c", str(config), "--json", *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    ready = json.loads(process.stdout.readline())
    assert ready["event"] == "ready"
    return process, {bus["name"]: bus for bus in ready["buses"]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_readme_example_serves_both_buses_and_stops_cleanly(config: Path, number: signal.Signals) -> None:
    process, buses = start(config)
    panel, basement = buses["main-panel"], buses["basement"]
    with ModbusTcpClient("127.0.0.1", port=panel["port"]) as client:
        words = client.read_input_registers(0, count=2, device_id=panel["units"][0]).registers
    assert 210 < struct.unpack(">f", struct.pack(">2H", *words))[0] < 250
    line = ModbusSerialClient(basement["device"], baudrate=basement["baudrate"], timeout=3)
    assert line.connect()
    answer = line.read_input_registers(0, count=2, device_id=basement["units"][0])
    line.close()  # type: ignore[no-untyped-call]
    assert 2100 < answer.registers[0] < 2500
    process.send_signal(number)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    stopped = json.loads(out.splitlines()[-1])
    assert stopped["event"] == "stopped"
    assert stopped["buses"][0]["requests"] == 1
    assert not os.path.lexists(basement["device"])


def test_it_ends_by_itself_after_the_stated_time(config: Path) -> None:
    process, _ = start(config, "--for", "100ms")
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert json.loads(out)["event"] == "stopped"


def test_people_see_plain_lines(config: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run([*COMMAND, "-c", str(config), "--for", "50ms"], check=True, timeout=DEADLINE_S)
    out = capfd.readouterr().out
    assert "main-panel  kind modbus-tcp  host 127.0.0.1" in out
    assert "stopped" in out


def faults(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> str:
    path = tmp_path / "bus.toml"
    path.write_text(text)
    assert main(["simulate", "bus", "-c", str(path)]) == 2
    return capsys.readouterr().err


def test_every_fault_of_the_file_is_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
speed = 0
colour = "red"
[[bus]]
name = "a b"
kind = "modbus-tcp"
port = 70000
[[bus.meter]]
name = "m"
unit = 248
profile = "no-such-meter"
reply_delay = 20
faults = { late = 0.7, no_reply = 0.7, smoke = 0.1 }
[[bus.meter]]
name = "n"
unit = 1
profile = "abb-b23"
faults = { late = 0.7, no_reply = 0.7 }
[[bus]]
name = "b"
kind = "modbus-rtu"
parity = "X"
meter = []
[[bus]]
name = "c"
kind = "profibus"
meter = []
"""
    err = faults(tmp_path, text, capsys)
    for part in (
        "speed: Input should be greater than 0",
        "colour: no such key",
        "name: String should match pattern",
        "port: Input should be less than or equal to 65535",
        "unit: Input should be less than or equal to 247",
        "no profile 'no-such-meter'; there are abb-",
        'reply_delay: write a number and a unit (ms, s, min, h, d) in quotes, such as "5 s"',
        "faults.smoke: no such key",
        "meter[1].faults: the rates together are above 1",
        "device: is missing",
        "parity: Input should be 'N', 'E' or 'O'",
        "meter: List should have at least 1 item",
        "expected tags: 'modbus-tcp', 'modbus-udp', 'modbus-rtu-tcp', 'modbus-rtu', 'modbus-ascii'",
    ):
        assert part in err, part


def test_faults_between_the_tables_are_named_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
[[bus]]
name = "a"
kind = "modbus-tcp"
meter = [
  { name = "m", unit = 1, profile = "abb-b23", faults = { crc_error = 0.1 } },
  { name = "m", unit = 1, profile = "abb-b23" },
]
[[bus]]
name = "a"
kind = "modbus-rtu"
device = "x.tty"
faults = { wrong_transaction = 0.1 }
meter = [{ name = "o", unit = 1, profile = "abb-b23" }]
"""
    err = faults(tmp_path, text, capsys)
    for part in (
        "bus names must be unique: a stands more than once",
        "meter names must be unique: m",
        "units on bus a must be unique: 1",
        "bus[0].meter[0].faults.crc_error: there is no such fault on modbus-tcp",
        "bus[1].faults.wrong_transaction: there is no such fault on modbus-rtu",
    ):
        assert part in err, part


def test_faults_of_the_further_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
[[bus]]
name = "a"
kind = "modbus-ascii"
device = "x.tty"
faults = { wrong_transaction = 0.1 }
meter = [{ name = "m", unit = 1, profile = "abb-b23" }]
[[bus]]
name = "b"
kind = "modbus-rtu-tcp"
meter = [{ name = "n", unit = 1, profile = "abb-b23", faults = { wrong_transaction = 0.1 } }]
[[bus]]
name = "c"
kind = "modbus-udp"
faults = { crc_error = 0.1 }
meter = [{ name = "o", unit = 1, profile = "abb-b23" }]
[[bus]]
name = "d"
kind = "modbus-rtu"
device = "x.tty"
meter = [{ name = "p", unit = 1, profile = "abb-b23" }]
"""
    err = faults(tmp_path, text, capsys)
    for part in (
        "bus[0].faults.wrong_transaction: there is no such fault on modbus-ascii",
        "bus[1].meter[0].faults.wrong_transaction: there is no such fault on modbus-rtu-tcp",
        "bus[2].faults.crc_error: there is no such fault on modbus-udp",
        "devices must be unique: x.tty",
    ):
        assert part in err, part


def test_certificates_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = """
[[bus]]
name = "a"
kind = "modbus-tcp"
tls = { certificate = "none.pem" }
meter = [{ name = "m", unit = 1, profile = "abb-b23" }]
"""
    assert f"bus a: tls: [Errno 2] No such file or directory ({tmp_path}/none.pem)" in faults(tmp_path, text, capsys)


def test_missing_file_wrong_duration_and_wrong_port(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "bus", "-c", str(tmp_path / "none.toml")]) == 2
    assert "No such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["simulate", "bus", "-c", str(config), "--for", "long"])
    assert 'such as "5 s"' in capsys.readouterr().err
    config.write_text(config.read_text().replace('host = "127.0.0.1"', 'host = "192.0.2.1"'))
    assert main(["simulate", "bus", "-c", str(config)]) == 1
    assert "192.0.2.1" in capsys.readouterr().err


def test_a_profile_that_can_not_be_simulated_is_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "odd.toml"
    profile.write_text(
        """
manufacturer = "T"
model = "T"
max_registers = 10
baudrates = [9600]
parities = ["N"]
timeout = "1 s"
source = [{ title = "made for tests" }]
block = [{ table = "input", first = 0, count = 2 }]
quantity = [
  { name = "gas", obis = "7-0:3.0.0", table = "input", register = 0, type = "uint32", unit = "m3", resolution = "1" },
]
"""
    )
    meter = f'{{ name = "m", unit = 1, profile = "{profile}" }}'
    err = faults(tmp_path, f'[[bus]]\nname = "a"\nkind = "modbus-tcp"\nmeter = [{meter}]\n', capsys)
    assert "meter m:" in err
    assert "the simulated site has no quantity 7-0:3.0.0" in err
