"""The checks of buses: errors, delays, twins, units that answer for others, and how full a bus is."""

import pytest
from energybid.agent.cabinet.bus_checks import Service, busy_share, check_bus, stray
from energybid.agent.cabinet.findings import Finding, Severity, counts, facts
from energybid.agent.cabinet.reading import Asked
from energybid.core.ports import BusPlan, Endpoint, MeterPlan, PollGroup, SerialEndpoint, TcpEndpoint
from energybid.drivers.modbus.exchange import Failure, Outcome
from energybid.drivers.modbus.map import INPUT, ModbusMap, Request

LINE = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)
TCP = TcpEndpoint(host="meter", port=502)
WHOLE = Request(function=INPUT, first=0, count=80, fields=())


def asked(outcome: Outcome = b"", delay_s: float = 0.02) -> Asked:
    return Asked(INPUT, 0, 80, delay_s, outcome)


def meter(name: str = "m1", unit: int = 1, interval_s: float = 1.0) -> MeterPlan:
    return MeterPlan(
        name=name,
        unit=unit,
        timeout_s=0.5,
        retries=1,
        profile="p",
        profile_hash=bytes(32),
        groups=(PollGroup(interval_s=interval_s, quantities=()),),
        map=ModbusMap(groups=((WHOLE,),)),
    )


def bus(*meters: MeterPlan, endpoint: Endpoint = LINE, **more: object) -> BusPlan:
    kind = "modbus-rtu" if endpoint is LINE else "modbus-tcp"
    return BusPlan(name="line", kind=kind, endpoint=endpoint, meters=meters or (meter(),), **more)  # type: ignore[arg-type]


def service(*requests: Asked, name: str = "m1", unit: int = 1, serial: str | None = None) -> Service:
    return Service(name=name, unit=unit, timeout_s=0.5, asked=requests or (asked(),) * 20, serial_number=serial)


def found(*services: Service, plan: BusPlan | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_bus(plan or bus(), services)}


def test_a_bus_that_is_well_has_no_findings() -> None:
    assert found(service()) == {}


def test_a_meter_that_never_answers() -> None:
    silent = found(service(*[asked(Failure.NO_REPLY)] * 3))["silent"]
    assert silent.measured == "No answer to 3 requests."
    assert "A and B" in silent.means
    assert "unit 1" in silent.cure
    garbled = found(service(*[asked(Failure.GARBLED)] * 3))["silent"]
    assert "rate or parity" in garbled.means
    assert "silent" in found(service(*[asked(11)] * 3)), "a gateway that says so for it"


@pytest.mark.parametrize(
    ("bad", "good", "severity"), [(2, 98, Severity.WARNING), (2, 18, Severity.ERROR), (1, 9, None), (2, 300, None)]
)
def test_errors_count_by_their_share_and_one_is_chance(bad: int, good: int, severity: Severity | None) -> None:
    finding = found(service(*[asked(Failure.GARBLED)] * bad, *[asked()] * good)).get("errors")
    assert (finding and finding.severity) == severity
    if finding:
        assert f"{bad} of {bad + good} requests failed: {bad}x garbled" in finding.measured
        assert "120 ohm" in finding.cure


def test_requests_that_are_lost_ask_for_another_cure_than_noise() -> None:
    finding = found(service(*[asked(Failure.NO_REPLY)] * 2, asked(6), *[asked()] * 10))["errors"]
    assert "1x busy, 2x no reply" in finding.measured
    assert "timeout" in finding.cure


def test_a_slow_meter() -> None:
    assert found(service(*[asked(delay_s=0.3)] * 5))["slow"].cure == 'Set timeout = "900 ms" for this meter.'
    assert "slow" not in found(service(*[asked(delay_s=0.2)] * 5))


def test_registers_that_a_meter_does_not_have_are_remarked() -> None:
    finding = found(service(asked(), asked(2)))["refused"]
    assert finding.measured == "Refused: input 0-79."
    assert not counts([finding])


def test_one_serial_number_on_two_units() -> None:
    twin = service(name="m2", unit=2, serial="123")
    finding = found(service(serial="123"), twin)["same-meter"]
    assert finding.measured == "The same serial number 123: m1 (unit 1), m2 (unit 2)."
    assert found(service(serial="124"), twin) == {}
    assert found(service(serial="000"), service(name="m2", unit=2, serial="000")) == {}, "blanked, not equal"


def test_a_unit_that_nobody_configured() -> None:
    assert stray("line", 247, "m1", 2, same=True).severity is Severity.ERROR
    assert stray("line", 247, "m1", 1, same=True).severity is Severity.NOTE
    assert stray("line", 247, "m1", 2, same=False).severity is Severity.NOTE


@pytest.mark.parametrize(("interval_s", "severity"), [(0.5, None), (0.24, Severity.WARNING), (0.2, Severity.ERROR)])
def test_a_bus_that_is_asked_for_too_much(interval_s: float, severity: Severity | None) -> None:
    plan = bus(meter(interval_s=interval_s))
    finding = found(service(), plan=plan).get("share")
    assert (finding and finding.severity) == severity


def test_the_share_of_a_meter_is_what_its_frames_and_delay_take() -> None:
    # 13 + 160 characters and 3.5 of silence at 960 a second, and 20 ms
    assert busy_share(bus(), meter(), 0.02) == pytest.approx(176.5 / 960 + 0.02, rel=1e-3)
    assert busy_share(bus(), meter(interval_s=2.0), 0.02) == pytest.approx(busy_share(bus(), meter(), 0.02) / 2)
    assert busy_share(bus(), meter(interval_s=0.0), 0.02) == 0, "as fast as it goes is never too much"
    network = bus(endpoint=TCP, in_flight=2, pause_s=0.1)
    assert busy_share(network, meter(), 0.02) == pytest.approx(0.06, rel=0.01)


def test_a_dead_meter_has_no_share() -> None:
    assert set(found(service(asked(Failure.NO_REPLY)), plan=bus(meter(interval_s=0.01)))) == {"silent"}


def test_findings_for_programs_have_every_part() -> None:
    plain = facts(found(service(asked(Failure.NO_REPLY)))["silent"])
    assert set(plain) == {"severity", "check", "where", "measured", "means", "do"}
    assert (plain["severity"], plain["where"]) == ("error", "m1")
