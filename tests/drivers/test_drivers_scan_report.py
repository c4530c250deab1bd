"""What a scan says: to people, to programs, and in gateway.toml."""

import tomllib
from collections import Counter
from typing import Any

import pytest
from energybid.core.errors import ConfigurationError
from energybid.core.ports import TlsSettings
from energybid.drivers.identify import Candidate, Identity
from energybid.drivers.live import Wanted, read_values, value_text
from energybid.drivers.profile import load_profile
from energybid.drivers.scan import Found, Setting, State, line_setting
from energybid.drivers.scan_report import Report, configuration, facts, render
from energybid.drivers.target import parse_target
from energybid.simulator.virtual import run
from scan_bench import bench, meter

LINE = line_setting(parse_target("/dev/ttyUSB0", baudrate=19200, parity="E", stop_bits=2))


def candidate(name: str, points: int = 60, **more: Any) -> Candidate:
    return Candidate(
        profile=name,
        manufacturer="Maker",
        model=name.upper(),
        points=points,
        certain=points > 50,
        reasons=("why",),
        **more,
    )


def found(unit: int, *candidates: Candidate, **more: Any) -> Found:
    identity = Identity(candidates=list(candidates), complete=more.pop("complete", True), **more.pop("identity", {}))
    return Found(setting=LINE.label, unit=unit, delay_s=0.03, identity=identity, **more)


def report(*units: Found, **state: Any) -> Report:
    return Report("/dev/ttyUSB0", [LINE], State(found=list(units), **state))


def test_each_case_has_its_words() -> None:
    text = render(
        report(
            found(1, candidate("a"), values=[("power", "12 W")], identity={"serial_number": "77"}),
            found(2, candidate("b", 20), candidate("c", 20), values=[("power", "13 W")]),
            found(3, candidate("d", 20), candidate("e", 10), complete=False),
            found(
                4, identity={"objects": {"vendor": "ACME"}, "sunspec": {"base": "0", "model": "M", "models": "1 203"}}
            ),
            found(7, candidate("g", 10), values=[("power", "14 W")]),
            found(5, candidate("f", 20), fault="no answer", every_unit=True),
            Found(setting=LINE.label, unit=6, delay_s=0.1),
        )
    )
    assert text.startswith("/dev/ttyUSB0 at 19200 8E2: 7 devices answer, units 1, 2, 3, 4, 7, 5, 6\n")
    for words in (
        "unit 1    Maker A, serial number 77\n          profile a: why\n          power 12 W\n",
        "unit 2    answers; which of these profiles is its own can not be told\n          read as b:\n          power",
        "          perhaps b: why\n          perhaps c: why\n",
        "          not everything was asked: --thorough --units 3 takes its time\n",
        (
            "unit 4    answers; no profile is known to fit\n          says: vendor 'ACME'\n"
            "          SunSpec at 0: M, models 1 203\n"
        ),
        (
            "unit 5    Maker F (likely)\n          profile f: why\n          not read: no answer\n"
            "          answers for every unit: a device by itself, no gateway\n"
        ),
        "unit 6    answers; not identified yet\n",
        "unit 7    answers; one profile may fit, but little speaks for it\n          read as g:\n          power 14 W",
    ):
        assert words in text


def test_nothing_found_is_told_with_what_to_look_at() -> None:
    text = render(report(complete=True, noise=Counter({LINE.label: 12})))
    assert text.startswith("At 19200 8E2 12 bytes came that are no Modbus")
    assert "Nobody answered. Look at the wires" in text


def test_programs_get_everything() -> None:
    told = facts(report(found(2, candidate("b", 20), candidate("c", 20)), complete=True))
    (one,) = told["meters"]
    assert (one["unit"], one["baudrate"], one["profile"], one["certain"]) == (2, 19200, None, False)
    assert [c["profile"] for c in one["candidates"]] == ["b", "c"]


# ---------------------------------------------------------------- configuration


def test_tables_for_what_is_known_and_comments_for_what_is_not() -> None:
    unknown = Found(setting=LINE.label, unit=9, delay_s=0.1)
    text = configuration(
        report(found(1, candidate("a")), found(2, candidate("b", 20), candidate("c", 20)), found(3), unknown),
        device="/dev/serial/by-id/x",
    )
    (bus,) = tomllib.loads(text)["bus"]
    assert bus == {
        "name": "bus",
        "kind": "modbus-rtu",
        "device": "/dev/serial/by-id/x",
        "baudrate": 19200,
        "parity": "E",
        "stop_bits": 2,
        "meter": [{"name": "a-1", "profile": "a", "unit": 1, "interval": "60 s"}],
    }
    assert '# unit 2 may be b or c: look at its name plate\n# [[bus.meter]]\n# name = "b-2"\n# profile = "b"\n' in text
    assert "# unit 3 answers and was not identified\n" in text
    assert "# unit 9 answers and was not identified\n" in text


def test_a_bus_without_a_known_meter_is_a_comment() -> None:
    text = configuration(report(found(2, candidate("c", 5))))
    assert tomllib.loads(text) == {}
    assert '# [[bus]]\n# name = "bus"\n' in text
    assert "# unit 2 answers and was not identified; perhaps c\n" in text
    assert configuration(report()) == ""


def test_a_secured_target_keeps_its_files() -> None:
    target = parse_target("tls://meter", tls=TlsSettings(ca="ca.pem", server_name='a"b'))
    setting = Setting("tls://meter", target, serial=False)
    one = Found(setting=setting.label, unit=1, delay_s=0.1, identity=Identity(candidates=[candidate("a")]))
    (bus,) = tomllib.loads(configuration(Report("tls://meter", [setting], State(found=[one]))))["bus"]
    assert (bus["kind"], bus["port"], bus["tls"]) == ("modbus-tcp", 802, {"ca": "ca.pem", "server_name": 'a"b'})


def test_what_a_meter_says_can_not_leave_its_comment() -> None:
    evil = Candidate(
        profile="a", manufacturer="M\n[gateway]", model="X", points=60, certain=True, reasons=("\r\nx = 1",)
    )
    (bus,) = tomllib.loads(configuration(report(found(1, evil))))["bus"]
    assert set(bus["meter"][0]) == {"name", "profile", "unit", "interval"}


def test_a_file_that_is_no_toml_is_not_appended_to() -> None:
    with pytest.raises(ConfigurationError, match="no TOML"):
        configuration(report(), "[[[")
    assert configuration(report(), 'bus = "odd"') == ""


# ---------------------------------------------------------------- live values


def test_values_are_those_of_displays() -> None:
    loaded = load_profile("eastron-sdm630")
    quantities = {register.name: register.quantity for register in loaded.registers}
    assert value_text(123_456, quantities["energy-import"]) == "1234.56 kWh"
    assert value_text(2301, quantities["voltage-l1"]) == "230.1 V"
    assert value_text(None, quantities["power"]) == "not available"


def test_a_meter_that_does_not_answer_has_a_reason_and_the_others_have_values() -> None:
    loaded = load_profile("eastron-sdm630")
    rig = bench(meter(1), baudrate=9600)
    target = parse_target("/dev/ttyUSB0")
    first, second = run(lambda: read_values(rig.platform(), target, [Wanted(1, loaded), Wanted(2, loaded)]))
    assert [name for name, _ in first][:2] == ["voltage-l1", "voltage-l2"]
    assert "no answer" in str(second)
