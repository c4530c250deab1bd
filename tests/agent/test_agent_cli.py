"""The command line as a person or a script sees it: real processes, exit codes, messages."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from energybid.agent.cli import commands, main

ENERGYBID = Path(sys.executable).with_name("energybid")
GOOD = """
[gateway]
tenant = "demo"
id = "gw-1"
[keys]
log = "log.pem"
headend = "headend.pub.pem"
[journal]
path = "journal.db"
[uplink]
url = "mqtt://127.0.0.1:1"
[[bus]]
name = "cabinet"
kind = "modbus-tcp"
host = "127.0.0.1"
port = 1
[[bus.meter]]
name = "main"
profile = "eastron-sdm630"
unit = 1
"""


def energybid(*arguments, cwd=None, code=0):
    command = [ENERGYBID, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("gateway")
    energybid("keys", "new", path / "log.pem")
    energybid("keys", "new", path / "headend.pem", "--es256")
    (path / "gateway.toml").write_text(GOOD)
    return path


def test_help_lists_every_command_and_needs_none_of_the_extras():
    shown = energybid("--help").stdout
    for name in commands():
        assert f"\n    {name}" in shown
    assert "exit codes" in shown
    assert energybid("--version").stdout.startswith("energybid 0.")


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_with_examples(name, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    assert "examples:" in capsys.readouterr().out


def test_no_command_is_a_usage_error():
    assert "COMMAND" in energybid(code=2).stderr
    assert "invalid choice" in energybid("nonsense", code=2).stderr


def test_keys_are_private_never_overwritten_and_shown(folder):
    assert stat.S_IMODE((folder / "log.pem").stat().st_mode) == 0o600
    assert "never overwritten" in energybid("keys", "new", folder / "log.pem", code=1).stderr
    both = [json.loads(energybid("keys", "show", folder / f"log{s}.pem", "--json").stdout) for s in ("", ".pub")]
    assert both[0]["kid"] == both[1]["kid"]
    assert both[0]["algorithm"] == "Ed25519"
    assert "ES256" in energybid("keys", "show", folder / "headend.pub.pem").stdout
    (folder / "junk.pem").write_text("junk")
    for name in ("junk.pem", "missing.pem"):
        assert name in energybid("keys", "show", folder / name, code=2).stderr


def test_config_check_shows_what_will_be_polled(folder):
    assert "no fault" in energybid("config", "check", "-c", "gateway.toml", cwd=folder).stdout
    facts = json.loads(energybid("config", "check", "-c", folder / "gateway.toml", "--json").stdout)
    assert facts["gateway"] == "demo/gw-1"
    (group,) = facts["buses"][0]["meters"][0]["groups"]
    assert group["interval_s"] == 60
    assert "1-0:1.8.0 Wh 1e1" in group["quantities"]
    assert "eastron-sdm630" in energybid("profile", "list").stdout
    assert len(json.loads(energybid("profile", "list", "--json").stdout)) >= 4


def test_every_fault_is_reported_at_once(folder):
    bad = (
        GOOD.replace('id = "gw-1"', 'id = "gw/1"\ncolour = "red"')
        .replace('path = "journal.db"', 'path = "journal.db"\ncommit_interval = "5"')
        .replace('kind = "modbus-tcp"', 'kind = "modbus-rtu"')
        .replace("unit = 1", 'unit = 300\ninterval = "1 fortnight"')
    )
    (folder / "bad.toml").write_text(bad)
    said = energybid("config", "check", "-c", "bad.toml", cwd=folder, code=2).stderr
    for part in (
        "bad.toml: gateway.id:",
        "bad.toml: gateway.colour: no such key",
        'journal.commit_interval: write a number and a unit (ms, s, min, h, d) in quotes, such as "5 s"',
        "bus[0].modbus-rtu.device: is missing",
        "bus[0].modbus-rtu.host: no such key",
        "unit: Input should be less than or equal to 255 (found 300)",
        "1 fortnight",
    ):
        assert part in said, said
    assert energybid("run", "-c", folder / "bad.toml", code=2).stderr == said.replace("bad.toml", f"{folder}/bad.toml")


def test_faults_behind_the_file_are_collected_too(folder):
    bad = (
        GOOD.replace("log.pem", "nowhere.pem").replace("headend.pub.pem", "log.pem").replace("eastron-sdm630", "acme-1")
    )
    (folder / "bad2.toml").write_text(bad)
    said = energybid("config", "check", "-c", "bad2.toml", cwd=folder, code=2).stderr
    for part in ("keys.log", "nowhere.pem", "keys.headend", "bus[0].meter[0].profile", "acme-1"):
        assert part in said, said


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[uplink]", "[keys2]\n[uplink]"), "keys2: no such key"),
        (("[[bus.meter]]", "[[bus.meter]"), "not TOML"),
        (('headend = "headend.pub.pem"', ""), "keys.headend is missing"),
        (("unit = 1", 'unit = 1\nquantities = ["V1", "nonsense"]'), "nonsense"),
        (
            ("unit = 1", 'unit = 1\n[[bus.meter]]\nname = "main"\nprofile = "eastron-sdm630"\nunit = 1'),
            "meter names must be unique: main stands more than once; units on bus cabinet must be unique: 1",
        ),
    ],
)
def test_single_faults(folder, change, says):
    (folder / "one.toml").write_text(GOOD.replace(*change))
    assert says in energybid("config", "check", "-c", folder / "one.toml", code=2).stderr


def test_a_file_that_is_not_there(folder):
    assert "nothing.toml" in energybid("run", "-c", folder / "nothing.toml", code=2).stderr
    assert "is the agent running" in energybid("status", "-f", folder / "none.json", code=1).stderr
    assert "names no status file" in energybid("status", "-c", folder / "gateway.toml", code=1).stderr
    assert "no such file" in energybid("export", folder / "none.db", folder / "out.db", code=1).stderr
    assert "none.db" in energybid("verify", folder / "none.db", code=1).stderr


def test_verify_refuses_what_is_nothing_of_ours(folder):
    (folder / "noise").write_bytes(os.urandom(100))
    energybid("verify", folder / "noise", code=3)
    import sqlite3

    other = sqlite3.connect(folder / "other.db")
    other.execute("CREATE TABLE x (y)")
    other.close()
    assert "neither a journal nor" in energybid("verify", folder / "other.db", code=1).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_the_commands(shell):
    script = energybid("completion", shell).stdout
    assert "headend" in script
    assert "--commit" not in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_agents_process_loads_only_what_metering_needs():
    """Measured: what `energybid run` becomes after the check holds none of the heavy parts."""
    probe = (
        "import sys; import energybid.agent.process, energybid.drivers.modbus.driver\n"
        "heavy = {'pydantic', 'pydantic_core', 'sqlite_utils', 'rich', 'amqtt', 'pymodbus.client', 'numpy', 'sqlite3',"
        " 'importlib.metadata', 'energybid.headend', 'energybid.simulator', 'energybid.bidding', 'shtab'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    done = subprocess.run([sys.executable, "-c", probe], env=bare, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
