"""The units, users and rules as files: well formed, tight, and in step with the program they start."""

import argparse
import importlib
import importlib.metadata
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.glob("*.service"))
EXPOSURE_MAX = 1.5
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_EMOJI": "0"}


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False)


def settings(unit: str, key: str) -> list[str]:
    """All values of a key, in the order of the file."""
    lines = (SYSTEMD / unit).read_text().splitlines()
    return [line.partition("=")[2] for line in lines if line.startswith(f"{key}=")]


def exposure(unit: Path) -> float:
    """What ``systemd-analyze security`` says of a unit: 0 is nothing, 10 is everything."""
    report = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", report.stdout)
    assert found, report.stdout + report.stderr
    return float(found[1])


def test_the_units_are_those_that_the_installer_knows() -> None:
    named = set(re.findall(r"energybid-[a-z-]+\.service", (SYSTEMD / "install").read_text()))
    assert named == set(UNITS)


@pytest.mark.parametrize("unit", UNITS)
def test_the_sandbox_leaves_little_exposed(unit: str) -> None:
    assert exposure(SYSTEMD / unit) <= EXPOSURE_MAX


def test_the_measure_sees_a_hole(tmp_path: Path) -> None:
    """The score is no constant: a unit that keeps all capabilities is over the limit."""
    text = (SYSTEMD / "energybid-agent.service").read_text()
    holed = text.replace("CapabilityBoundingSet=\n", "").replace("PrivateUsers=yes\n", "")
    (tmp_path / "holed.service").write_text(holed)
    assert exposure(tmp_path / "holed.service") > EXPOSURE_MAX


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the system's own units, ours, and something to execute."""
    root = tmp_path_factory.mktemp("machine")
    shutil.copytree(
        "/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True, ignore_dangling_symlinks=True
    )
    ours = root / "usr/local/lib/systemd/system"
    ours.mkdir(parents=True)
    for unit in UNITS:
        shutil.copy(SYSTEMD / unit, ours)
    program = root / "opt/energybid/bin/energybid"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return root


def verify(root: Path, unit: str) -> str:
    """What ``systemd-analyze verify`` has to say of our units (the system's own are not our business)."""
    report = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", f"--root={root}", unit)
    return "".join(line + "\n" for line in report.stderr.splitlines() if "energybid" in line)


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_understands_every_line(machine: Path, unit: str) -> None:
    assert verify(machine, unit) == ""


def test_the_verifier_sees_a_typing_error(machine: Path) -> None:
    text = (SYSTEMD / "energybid-agent.service").read_text()
    wrong = machine / "usr/local/lib/systemd/system/energybid-wrong.service"
    wrong.write_text(text.replace("ProtectHome=yes", "ProtectHoem=yes"))
    assert "ProtectHoem" in verify(machine, wrong.name)


@pytest.mark.parametrize("unit", UNITS)
def test_the_program_takes_the_arguments_that_the_unit_gives(unit: str) -> None:
    (command,) = settings(unit, "ExecStart")
    program, name, *arguments = shlex.split(command)
    assert program == "/opt/energybid/bin/energybid"
    (entry,) = importlib.metadata.entry_points(group="energybid.commands", name=name)
    parser = argparse.ArgumentParser(exit_on_error=False)
    importlib.import_module(entry.module).add_arguments(parser)
    parser.parse_args(arguments)


@pytest.mark.parametrize("unit", UNITS)
def test_the_user_is_one_that_sysusers_makes(unit: str) -> None:
    (user,) = settings(unit, "User")
    declared = (SYSTEMD / f"{user}.sysusers").read_text()
    assert re.search(rf"^u {re.escape(user)} ", declared, re.MULTILINE)


@pytest.mark.parametrize("unit", ["energybid-agent.service", "energybid-headend.service"])
def test_a_configuration_fault_is_not_retried_and_all_else_is(unit: str) -> None:
    assert settings(unit, "Restart") == ["on-failure"]
    kept_down = {"energybid-agent.service": "2 3", "energybid-headend.service": "2"}
    assert settings(unit, "RestartPreventExitStatus") == [kept_down[unit]]
    assert settings(unit, "StartLimitIntervalSec") == ["0"]


# ---------------------------------------------------------------- the rules for serial adapters

RULES = SYSTEMD / "60-energybid-serial.rules"
MATCHES = "ACTION|SUBSYSTEM|KERNEL|DRIVER|SUBSYSTEMS|ENV{[^}]+}|ATTRS?{[^}]+}"
ASSIGNMENTS = "GROUP|MODE|SYMLINK|GOTO|LABEL|ENV{[^}]+}|ATTR{[^}]+}|IMPORT{builtin}"
TOKEN = re.compile(rf'(?:(?:{MATCHES})(?:==|!=)|(?:{ASSIGNMENTS})(?:=|\+=|:=))"[^"]*"')


def rules(text: str) -> list[list[str]]:
    """The tokens of every rule (udev(7), "Rules files").

    Raises:
        ValueError: Something that udev does not understand, or a GOTO to nowhere or back.
    """
    found = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            tokens = [token.strip() for token in line.split(",")]
            if wrong := [token for token in tokens if not TOKEN.fullmatch(token)]:
                raise ValueError(f"not a rule: {wrong}")
            found.append(tokens)
    labels = {token.split('"')[1]: n for n, tokens in enumerate(found) for token in tokens if token.startswith("LABEL")}
    for n, tokens in enumerate(found):
        for token in tokens:
            if token.startswith("GOTO") and labels.get(token.split('"')[1], -1) <= n:
                raise ValueError(f"{token} leads nowhere ahead")
    return found


def test_udev_understands_the_rules() -> None:
    assert rules(RULES.read_text())
    if "verify" in run("udevadm", "--help").stdout:
        checked = run("udevadm", "verify", "--no-style", RULES)
        assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "wrong", ['SUBSYSTEM="tty"', 'GROUP=="dialout"', "MODE=0660", 'GOTO="nowhere"', 'KERNEL=="a" GROUP="b"']
)
def test_the_check_of_rules_sees_mistakes(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"not a rule|leads nowhere"):
        rules(wrong)


def walk(device: dict[str, str]) -> dict[str, str]:
    """What the rules do to a device that is given as its match keys; builtins are left out."""
    done: dict[str, str] = {}
    target = None
    for tokens in rules(RULES.read_text()):
        if target and f'LABEL="{target}"' not in tokens:
            continue
        target = None
        for token in tokens:
            parsed = re.fullmatch(r'([^=!+:]+?)(==|!=|\+=|:=|=)"([^"]*)"', token)
            assert parsed
            key, operator, value = parsed.groups()
            if operator in {"==", "!="}:
                pattern = value.replace("?*", ".+").replace("[0-9]*", "[0-9].*")
                if bool(re.fullmatch(pattern, device.get(key, ""))) != (operator == "=="):
                    break
            elif key == "GOTO":
                target = value
            else:
                done[key] = value if operator != "+=" else f"{done.get(key, '')} {value}".strip()
    return done


FTDI = {"ATTRS{idVendor}": "0403", "ATTRS{idProduct}": "6001", "ENV{ID_USB_SERIAL_SHORT}": "A1"}
MODEM = {"ATTRS{idVendor}": "2c7c", "ATTRS{idProduct}": "0125"}
TTY = {"ACTION": "add", "SUBSYSTEM": "tty", "KERNEL": "ttyUSB0", "SUBSYSTEMS": "usb-serial", "ENV{ID_PATH_TAG}": "p"}


def test_an_adapter_gets_its_group_its_names_and_no_modem_manager() -> None:
    done = walk(TTY | FTDI)
    assert done["GROUP"] == "dialout"
    assert done["ENV{ID_MM_DEVICE_IGNORE}"] == done["ENV{ID_MM_PORT_IGNORE}"] == "1"
    adapter, socket = done["SYMLINK"].split()
    assert adapter.startswith("energybid/adapter-$env{ID_USB_SERIAL_SHORT}-")
    assert socket == "energybid/socket-$env{ID_PATH_TAG}"


def test_an_adapter_without_a_serial_number_is_named_by_its_socket_only() -> None:
    done = walk(TTY | {"ATTRS{idVendor}": "1a86", "ATTRS{idProduct}": "7523"})
    assert done["SYMLINK"] == "energybid/socket-$env{ID_PATH_TAG}"


def test_the_usb_device_itself_is_marked_for_modem_manager_and_not_renamed() -> None:
    done = walk({"ACTION": "add", "SUBSYSTEM": "usb", "ENV{DEVTYPE}": "usb_device"} | FTDI)
    assert done["ENV{ID_MM_DEVICE_IGNORE}"] == "1"
    assert "SYMLINK" not in done
    assert "GROUP" not in done


def test_a_cellular_modem_stays_a_modem() -> None:
    assert "ENV{ID_MM_DEVICE_IGNORE}" not in walk(TTY | MODEM)
    assert "ENV{ID_MM_DEVICE_IGNORE}" not in walk(
        {"ACTION": "add", "SUBSYSTEM": "usb", "ENV{DEVTYPE}": "usb_device"} | MODEM
    )


def test_a_uart_of_the_board_gets_its_group_only() -> None:
    done = walk({"ACTION": "add", "SUBSYSTEM": "tty", "KERNEL": "ttyAMA0"})
    assert {key for key in done if key != "LABEL"} == {"GROUP", "MODE"}


def test_nothing_is_done_to_other_devices_or_at_removal() -> None:
    assert set(walk({"ACTION": "add", "SUBSYSTEM": "block", "KERNEL": "sda"})) <= {"LABEL"}
    assert set(walk({"ACTION": "add", "SUBSYSTEM": "tty", "KERNEL": "tty1"})) <= {"LABEL"}
    assert set(walk(TTY | FTDI | {"ACTION": "remove"})) <= {"LABEL"}
