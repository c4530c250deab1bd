"""The installer, into scratch roots: what it puts there, what a second run changes (nothing), what it never touches."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from energybid.agent.config import GatewayFile
from energybid.core.settings import parse_toml

SYSTEMD = Path(__file__).parents[2] / "systemd"
INSTALL = SYSTEMD / "install"
SCRIPTS = [
    path for path in sorted(SYSTEMD.iterdir()) if path.is_file() and path.read_bytes().startswith(b"#!/bin/sh\n")
]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to other users: needs root")


def install(*arguments: str | Path, script: Path = INSTALL) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    command = [script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def snapshot(root: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Mode, owner, group and content of everything below ``root``."""
    found = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        content = b""
        if path.is_symlink():
            content = str(path.readlink()).encode()
        elif path.is_file():
            content = path.read_bytes()
        # Backups and locks that systemd-sysusers leaves say nothing.
        if not re.search(r"/etc/(\.pwd\.lock|\w+-)$", str(path)):
            found[str(path.relative_to(root))] = (facts.st_mode, facts.st_uid, facts.st_gid, content)
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_every_posix_shell_understands_the_scripts(script: Path, shell: str) -> None:
    subprocess.run([shell, "-n", script], check=True)


def test_shellcheck_has_nothing_to_say() -> None:
    assert INSTALL in SCRIPTS
    checker = shutil.which("shellcheck")
    assert checker, "apt-get install shellcheck"
    checked = subprocess.run([checker, *SCRIPTS], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_help_names_every_option_with_examples() -> None:
    help_text = install("--help")
    assert help_text.returncode == 0
    assert "examples:" in help_text.stdout
    parsed = set(re.findall(r"^ +(--[a-z-]+)(?: \||\))", INSTALL.read_text(), re.MULTILINE)) | {
        option for line in re.findall(r"^ +(--[a-z-]+(?: \| --?[a-z-]+)+)\)", INSTALL.read_text(), re.MULTILINE)
        for option in line.split(" | ") if option.startswith("--")
    }  # fmt: skip
    described = set(re.findall(r"^  (--[a-z-]+)", help_text.stdout, re.MULTILINE))
    assert described == parsed


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["--root"], "--root"),
        (["--root", "/nowhere"], "/nowhere"),
        (["--wheel", "/nowhere.whl"], "/nowhere.whl"),
        (["--wheelhouse", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_arguments_exit_2_and_name_the_fault(arguments: list[str], names: str) -> None:
    result = install(*arguments)
    assert result.returncode == 2
    assert names in result.stderr
    assert "--help" in result.stderr


@as_root
def test_a_fresh_root_gets_everything_but_keys(tmp_path: Path) -> None:
    result = install("--root", tmp_path, "--files-only")
    assert result.returncode == 0, result.stderr
    found = snapshot(tmp_path)
    local = "usr/local/lib"
    for path in (
        f"{local}/systemd/system/energybid-agent.service",
        f"{local}/systemd/system/energybid-keys.service",
        f"{local}/udev/rules.d/60-energybid-serial.rules",
        "etc/systemd/system/multi-user.target.wants/energybid-agent.service",
        "etc/energybid/gateway.toml",
    ):
        assert path in found
    assert not list((tmp_path / "etc/energybid/keys").iterdir()), "a key in an image would be shared by its clones"
    assert not any("headend" in path for path in found)


@as_root
def test_rights_keep_others_out(tmp_path: Path) -> None:
    install("--root", tmp_path, "--files-only")
    user = re.search(r"^energybid:x:\d+:(\d+):", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert user
    gid = int(user[1])
    assert re.search(r"^dialout:.*:energybid$", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    found = snapshot(tmp_path)
    rights = {path: (stat.S_IMODE(mode), owner, group) for path, (mode, owner, group, _) in found.items()}
    assert rights["etc/energybid"] == (0o750, 0, gid)
    assert rights["etc/energybid/gateway.toml"] == (0o640, 0, gid)
    assert rights["etc/energybid/keys"] == (0o1770, 0, gid), (
        "the user may make a key there, and not take another's away"
    )


@as_root
@pytest.mark.parametrize("options", [[], ["--headend"]])
def test_a_second_run_changes_nothing(tmp_path: Path, options: list[str]) -> None:
    assert install("--root", tmp_path, "--files-only", *options).returncode == 0
    before = snapshot(tmp_path)
    assert install("--root", tmp_path, "--files-only", *options).returncode == 0
    assert snapshot(tmp_path) == before


@as_root
def test_an_upgrade_renews_the_units_and_keeps_what_is_the_sites(tmp_path: Path) -> None:
    install("--root", tmp_path, "--files-only")
    unit = tmp_path / "usr/local/lib/systemd/system/energybid-agent.service"
    unit.write_text("[Service]\nExecStart=/old\n")
    configuration = tmp_path / "etc/energybid/gateway.toml"
    configuration.write_text("# mine\n")
    key = tmp_path / "etc/energybid/keys/log.pem"
    key.write_text("mine")
    key.chmod(0o644)
    assert install("--root", tmp_path, "--files-only").returncode == 0
    assert unit.read_text() == (SYSTEMD / unit.name).read_text()
    assert configuration.read_text() == "# mine\n"
    assert key.read_text() == "mine"
    assert stat.S_IMODE(key.stat().st_mode) == 0o440, "a key copied by hand is closed to others"


@as_root
def test_uninstall_leaves_configuration_keys_and_journal(tmp_path: Path) -> None:
    install("--root", tmp_path, "--files-only", "--headend")
    (tmp_path / "etc/energybid/keys/log.pem").write_text("mine")
    journal = tmp_path / "var/lib/energybid/journal.db"
    journal.parent.mkdir(parents=True)
    journal.write_text("data")
    result = install("--root", tmp_path, "--uninstall")
    assert result.returncode == 0, result.stderr
    assert "/var/lib/energybid" in result.stdout
    left = [path for path, (mode, *_) in snapshot(tmp_path).items() if not stat.S_ISDIR(mode) and "energybid" in path]
    assert left == [
        "etc/energybid/gateway.toml",
        "etc/energybid/keys/log.pem",
        "etc/energybid-headend/headend.toml",
        "var/lib/energybid/journal.db",
    ]


@as_root
def test_a_failed_upgrade_leaves_the_running_release(tmp_path: Path) -> None:
    """A root with a Python that is too old: the message names it, and nothing that was there is touched."""
    (tmp_path / "opt/energybid-releases/old").mkdir(parents=True)
    (tmp_path / "opt/energybid").symlink_to("energybid-releases/old")
    wheel = tmp_path / "energybid_edge-9-py3-none-any.whl"
    wheel.write_bytes(b"")
    result = install("--root", tmp_path, "--wheel", wheel)
    assert result.returncode == 1
    assert "is not Python 3.11" in result.stderr
    assert (tmp_path / "opt/energybid-releases/old").is_dir()
    assert str((tmp_path / "opt/energybid").readlink()) == "energybid-releases/old"


def example(text: str) -> str:
    """The default configuration with its commented example made real."""
    head, _, tail = text.partition("# One [[bus]]")
    return head.replace("@ID@", "gw-1") + re.sub(
        r"^# ?(?=\[\[|\w+ = )", "", tail.partition("\n")[2], flags=re.MULTILINE
    )


def test_the_default_configuration_lacks_nothing_but_buses() -> None:
    file = parse_toml("gateway.toml", example((SYSTEMD / "gateway.toml").read_text()).encode(), GatewayFile)
    assert [bus.kind for bus in file.bus] == ["modbus-tcp", "modbus-rtu"]
    assert file.journal.path.startswith("/var/lib/energybid/")
    assert file.status.path
    assert file.status.path.startswith("/run/energybid/")
    assert file.keys.log.startswith("/etc/energybid/keys/")
