"""``energybid profile``: what people and programs are told of the meter models."""

import io
import json
from fractions import Fraction
from pathlib import Path

import pytest
from energybid.agent.cli import main
from energybid.core.quantities import fraction_text
from energybid.drivers.modbus.map import HOLDING
from energybid.drivers.plan_picture import picture, style
from energybid.drivers.planner import Span
from energybid.drivers.profile import list_profiles

PROFILE = """
manufacturer = "Test"
model = "T1"
also = ["T2", "T3"]
source = [{ title = "this test", edition = "1", url = "https://example.com" }]
max_registers = 50
baudrates = [9600]
parities = ["N"]
timeout = "500 ms"
defaults = { table = "holding", type = "uint16" }
block = [{ table = "holding", first = 10, count = 20 }, { table = "input", first = 200, count = 70 }]
quantity = [
  { name = "energy", obis = "1-0:1.8.0", register = 10, type = "uint32", scale = "10", scale_by = ["ct"], unit = "Wh", resolution = "10", cumulative = true },
  { name = "power", obis = "1-0:16.7.0", register = 14, type = "int16", scale = "-0.1", unit = "W", resolution = "0.1" },
  { name = "voltage", obis = "1-0:32.7.0", table = "input", register = 254, type = "float32", word_order = "little", byte_order = "little", unit = "V", resolution = "0.1" },
  { name = "frequency", obis = "1-0:14.7.0", table = "input", register = 257, unit = "Hz", resolution = "0.01", scale = "0.01" },
]
[[factor]]
name = "ct"
register = 29
[[writable]]
name = "limit"
register = 500
unit = "W"
minimum = "0"
maximum = "5000"
"""  # noqa: E501


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "t1.toml"
    file.write_text(PROFILE)
    return str(file)


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["profile", *arguments]) == code
    return capsys.readouterr().out


def test_list_names_every_model(capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines] == list_profiles()
    facts = json.loads(said(capsys, "list", "--json"))
    (b23,) = [fact for fact in facts if fact["name"] == "abb-b23"]
    assert b23["manufacturer"] == "ABB"
    assert len(facts) == len(lines)


def test_show_says_what_is_in_the_file(capsys: pytest.CaptureFixture[str], path: str) -> None:
    text = said(capsys, "show", path)
    assert text.startswith("Test T1, T2, T3\n")
    for line in [
        "energy                    1-0:1.8.0     10 Wh      holding 10    uint32  10 × ct",
        "power                     1-0:16.7.0    0.1 W      holding 14    int16   -0.1",
        "ct                        factor                   holding 29    uint16  1",
        "limit                     may be written           holding 500   uint16  0 to 5000 W",
        "  this test, 1, https://example.com",
    ]:
        assert line in text.splitlines()
    assert all(len(line) <= 85 for line in text.splitlines())
    facts = json.loads(said(capsys, "show", path, "--json"))
    energy, power, *_ = facts["quantities"]
    assert (energy["scale_by"], power["scale"], power["resolution"]) == (["ct"], "-0.1", "0.1")
    assert facts["quantities"][2]["order"] == ["words little-endian", "bytes little-endian"]
    assert facts["sources"] == [{"title": "this test", "edition": "1", "url": "https://example.com"}]


def test_the_plan_as_a_picture(capsys: pytest.CaptureFixture[str], path: str) -> None:
    assert said(capsys, "plan", path) == PICTURE


PICTURE = """\
t1: 4 quantities; network, 10 ms from request to reply

holding registers
      0            ██░░█░░░░░░░░░░░░░░█
                   ╰1─────────────────╯

input registers
    192          ······················································██
                                                                       ╰2
    256  ░█············
         ─╯

█ wanted   ░ read over   · not read   × forbidden   ╰╯ one request

request  table    registers        wanted  read over       time
      1  holding  10 to 29              4         16    10.0 ms
      2  input    254 to 257            3          1    10.0 ms
A poll takes 2 requests for 24 registers: 20.0 ms.
One request for each number would take 50.0 ms.
"""


def test_the_plan_depends_on_bus_and_quantities(capsys: pytest.CaptureFixture[str], path: str) -> None:
    text = said(capsys, "plan", path, "--baudrate", "19200", "--parity", "E", "--reply-delay", "2ms")
    assert "19200 baud, 8E1, reply delay 2 ms" in text
    facts = json.loads(said(capsys, "plan", path, "--baudrate", "9600", "--quantities", "energy", "voltage", "--json"))
    assert [(r["table"], r["first"], r["count"]) for r in facts["requests"]] == [
        ("holding", 10, 20),
        ("input", 254, 2),
    ]
    assert facts["requests"][0]["quantities"] == ["energy"]
    assert facts["ms"] == pytest.approx(2 * 37.1875 + 22 * 2.083333, abs=0.001)
    facts = json.loads(said(capsys, "plan", path, "--max-registers", "5", "--json"))
    assert [(r["first"], r["count"]) for r in facts["requests"]] == [(10, 5), (29, 1), (254, 4)]
    facts = json.loads(said(capsys, "plan", path, "--baudrate", "1200", "--reply-delay", "1 ms", "--json"))
    assert len(facts["requests"]) == 3, "at this rate the gap before the factor is dearer than a request"


def test_a_terminal_without_unicode_gets_ascii(
    capsys: pytest.CaptureFixture[str], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert main(["profile", "plan", path, "--quantities", "energy"]) == 0
    out.flush()
    text = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert "##-----------------#" in text
    assert "\\1_________________/" in text


def test_colours_only_where_they_are_wanted() -> None:
    spans = [Span(HOLDING, 0, 2), Span(HOLDING, 3, 4)]
    blocks, requests = [Span(HOLDING, 0, 5), Span(HOLDING, 7, 9)], [Span(HOLDING, 0, 4)]
    coloured = picture(spans, blocks, requests, style(unicode=True, colours=True))[0]
    assert (
        coloured
        == (
            "      0  \x1b[32m██\x1b[0m\x1b[33m░\x1b[0m\x1b[32m█\x1b[0m\x1b[2m·\x1b[0m"
            "\x1b[31m××\x1b[0m\x1b[2m··\x1b[0m" + 55 * " "
        ).rstrip()
    )
    assert picture(spans, blocks, requests, style(unicode=True, colours=False))[0] == "      0  ██░█·××··"


def test_rows_without_requests_are_left_out() -> None:
    spans = [Span(HOLDING, 63, 66), Span(HOLDING, 300, 301)]
    lines = picture(spans, [Span(HOLDING, 0, 400)], spans, style(unicode=True, colours=False), first=9)
    assert [line[:9].strip() for line in lines] == ["0", "", "64", "", "...", "256", ""]
    assert lines[1] == " " * 72 + "╰"
    assert lines[3] == " " * 9 + "─╯"
    assert lines[6] == " " * (9 + 300 - 256) + "╰"


def test_check_reports_the_faults_of_every_file(capsys: pytest.CaptureFixture[str], path: str, tmp_path: Path) -> None:
    assert said(capsys, "check", path, "abb-b23") == f"{path}: no fault\nabb-b23: no fault\n"
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(PROFILE.replace('unit = "V"', 'unit = "kV"').replace('"0.01"', '"0.02"'))
    assert main(["profile", "check", path, str(wrong), str(tmp_path / "none.toml")]) == 2
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == 3
    assert "quantity[2].unit" in complaints[0]
    assert json.loads(said(capsys, "check", str(wrong), "--json", code=2))["faults"][0] in complaints[0]
    assert json.loads(said(capsys, "check", path, "--json")) == {"faults": []}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["plan", "abb-b23", "--quantities", "x"], "no quantity 'x'; abb-b23 has apparent-power, "),
        (["plan", "abb-b23", "--baudrate", "12"], "write a rate from 300 to 1000000"),
        (["plan", "abb-b23", "--reply-delay", "12"], "write a number and a unit"),
        (["plan", "abb-b23", "--max-registers", "126"], "write a number from 1 to 125"),
        (["plan", "abb-b23", "--max-registers", "1"], "max_registers: energy-import takes 4"),
        (["show", "nothing"], "no profile 'nothing'; there are "),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], complaint: str) -> None:
    try:
        code = main(["profile", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2
    assert complaint in capsys.readouterr().err


def test_decimals_are_exact() -> None:
    for text in ("0.1", "-0.000000000000000001", "1000", "-2.5", "0"):
        assert fraction_text(Fraction(text)) == text


def test_the_only_values_of_what_may_be_written_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "show", "eastron-sdm630"]) == 0
    assert "0, 300, 480, 600, 900, 1200, 1800, 3600 s\n" in capsys.readouterr().out
