"""Faults on real processes: kill -9, brokers that come and go, dead meters, a rolled back journal."""

import random
import shutil
import signal
import socket
import time

import pytest
from gateway_site import Site, wait_for

TCP = """
speed = 60
[[bus]]
name = "cabinet"
kind = "modbus-tcp"
port = {port}
""" + "".join(
    f"""
[[bus.meter]]
name = "m{unit}"
unit = {unit}
profile = "{profile}"
"""
    for unit, profile in enumerate(("eastron-sdm630", "schneider-iem3155", "abb-b23"), 1)
)
TCP_METERS = """
[[bus]]
name = "cabinet"
kind = "modbus-tcp"
host = "127.0.0.1"
port = {port}
""" + "".join(
    f"""
[[bus.meter]]
name = "m{unit}"
profile = "{profile}"
unit = {unit}
interval = "100 ms"
"""
    for unit, profile in enumerate(("eastron-sdm630", "schneider-iem3155", "abb-b23"), 1)
)


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path, TCP, TCP_METERS)
    yield made
    made.close()


def agree(site):
    """Both databases verify and hold the same entries in the same order; returns how many."""
    for name in ("journal.db", "headend.db"):
        report = site.verify(name)
        assert (report["exit"], report["verified"], report["faults"]) == (0, True, []), report
    ours, theirs = site.journal_entries(), site.headend_entries()
    assert theirs == ours[: len(theirs)]
    assert len(set(ours)) == len(ours)
    return len(ours), len(theirs)


def test_killed_twenty_times_nothing_committed_is_lost_or_doubled(site):
    rng = random.Random(20)
    site.broker.start()
    site.bus()
    site.headend()
    seen = 0
    for _ in range(20):
        agent = site.agent()
        wait_for(lambda n=seen: site.acknowledged() > n, "progress after a kill", *site.running)
        time.sleep(rng.uniform(0, 0.4))  # the fault itself: a kill at any moment
        seen = site.acknowledged()
        agent.stop(signal.SIGKILL)
        (site.folder / "status.json").unlink(missing_ok=True)
    agent = site.agent()
    site.wait_acknowledged(seen + 1)
    assert agent.stop() == 0
    ours, theirs = agree(site)
    assert theirs == ours, "a clean stop waits for the last receipt"
    assert ours > 20 * 5


def test_reading_needs_no_broker_and_survives_its_death(site):
    site.bus()
    agent = site.agent()
    site.headend()
    wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 30, "reads without a broker", agent)
    assert site.status()["uplink"]["connected"] is False
    assert site.status()["uplink"]["error"]
    site.broker.start()
    site.wait_acknowledged(30)
    for _ in range(3):
        site.broker.kill()
        before = site.status()["log"]["committed"]
        wait_for(lambda n=before: site.status()["log"]["committed"] > n + 10, "reads while the broker is dead", agent)
        site.broker.start()
        site.wait_acknowledged(before + 10)
    assert agent.stop() == 0
    ours, theirs = agree(site)
    assert theirs == ours


def test_refused_credentials_are_named_and_reading_goes_on(tmp_path):
    site = Site(tmp_path, TCP, TCP_METERS, password=("user", "right"))
    try:
        site.broker.start()
        site.bus()
        (tmp_path / "password").write_text("wrong")
        agent = site.agent()
        wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 10, "reads", agent)
        wait_for(lambda: "authori" in site.status()["uplink"]["error"].lower(), "the refusal is named", agent)
        assert agent.stop() == 0
        (tmp_path / "password").write_text("right")
        site.headend()
        agent = site.agent()
        site.wait_acknowledged(10)
        assert agent.stop() == 0
        agree(site)
    finally:
        site.close()


def test_a_headend_that_is_away_gets_everything_later(site):
    site.broker.start()
    site.bus()
    headend = site.headend()
    agent = site.agent()
    site.wait_acknowledged(20)
    headend.stop(signal.SIGKILL)
    before = site.status()["log"]["committed"]
    wait_for(lambda: site.status()["log"]["committed"] > before + 100, "reads on", agent)
    site.headend()
    site.wait_acknowledged(before + 100)
    assert agent.stop() == 0
    ours, theirs = agree(site)
    assert theirs == ours


def test_sigterm_commits_what_is_buffered_within_five_seconds(tmp_path):
    site = Site(tmp_path, TCP, TCP_METERS, journal='commit_interval = "1 h"')
    try:
        site.bus()
        agent = site.agent()
        wait_for(lambda: site.status().get("readings", 0) > 30, "reads", agent)
        begun = time.monotonic()
        assert agent.stop() == 0
        assert time.monotonic() - begun < 5
        assert site.status()["readings"] <= site.verify("journal.db")["readings"]
    finally:
        site.close()


def test_a_rolled_back_journal_is_found_by_the_receipt_and_nothing_more_is_signed(site):
    site.broker.start()
    site.bus()
    site.headend()
    agent = site.agent()
    site.wait_acknowledged(20)
    assert agent.stop() == 0
    shutil.copy(site.folder / "journal.db", site.folder / "old.db")
    agent = site.agent()
    site.wait_acknowledged(site.status()["log"]["acknowledged"] + 20)
    assert agent.stop() == 0
    size = len(site.headend_entries())
    shutil.copy(site.folder / "old.db", site.folder / "journal.db")
    agent = site.agent()
    assert agent.process.wait(20) == 3
    assert "restored or copied from an older one" in agent.said()
    assert len(site.headend_entries()) == size


def test_two_agents_on_one_journal_and_a_folder_that_is_not_there(site):
    site.bus()
    first = site.agent()
    wait_for(site.status, "runs", first)
    second = site.agent()
    assert second.process.wait(20) == 4
    assert "another agent is running" in second.said()
    config = site.folder / "gateway.toml"
    config.write_text(config.read_text().replace('"journal.db"', '"nowhere/journal.db"'))
    third = site.start("third", "run", "-c", "gateway.toml")
    assert third.process.wait(20) == 4
    assert "must exist" in third.said()


def test_the_service_manager_is_told(site):
    site.bus()
    path = str(site.folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(path)
        listener.settimeout(30)
        agent = site.agent(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "400000"})
        heard = [listener.recv(100) for _ in range(4)]
        assert b"READY=1" in heard
        assert heard.count(b"WATCHDOG=1") >= 2
        assert agent.stop() == 0
        listener.settimeout(0)
        rest = []
        try:
            while True:
                rest.append(listener.recv(100))
        except BlockingIOError:
            pass
        assert b"STOPPING=1" in rest


def test_logs_can_be_json(site):
    import json

    site.bus()
    agent = site.start("json", "run", "-c", "gateway.toml", "--json-logs")
    wait_for(lambda: "uplink" in agent.said(), "logs", agent)
    assert agent.stop() == 0
    lines = [json.loads(line) for line in agent.said().splitlines()]
    assert {"time", "level", "logger", "message"} <= set(lines[0])


RTU = """
speed = 60
[[bus]]
name = "line"
kind = "modbus-rtu"
device = "ttyLINE"
baudrate = 38400
""" + "".join(
    f"""
[[bus.meter]]
name = "m{unit}"
unit = {unit}
profile = "eastron-sdm630"
"""
    for unit in range(1, 9)
    if unit != 4
)
RTU_METERS = """
[[bus]]
name = "line"
kind = "modbus-rtu"
device = "ttyLINE"
baudrate = 38400
lateness = "100 ms"
""" + "".join(
    f"""
[[bus.meter]]
name = "m{unit}"
profile = "eastron-sdm630"
unit = {unit}
interval = "1 s"
timeout = "100 ms"
quantities = ["voltage-l1", "power", "energy-import"]
"""
    for unit in range(1, 9)
)


def test_one_dead_meter_of_eight_on_a_serial_line(tmp_path):
    site = Site(tmp_path, RTU, RTU_METERS)
    try:
        site.bus()
        agent = site.agent()
        wait_for(lambda: max((m["polls"] for m in site.status().get("meters", [])), default=0) >= 12, "12 polls", agent)
        meters = {m["name"]: m for m in site.status()["meters"]}
        assert meters["m4"]["state"] == "dead"
        assert meters["m4"]["polls"] == 0
        healthy = [m["polls"] for name, m in meters.items() if name != "m4"]
        assert min(healthy) >= 11, healthy
        assert all(m["state"] == "ok" for name, m in meters.items() if name != "m4")
        assert agent.stop() == 0
        assert site.verify("journal.db")["verified"] is True
    finally:
        site.close()
