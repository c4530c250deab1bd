"""Recovery on real processes: every case of docs/recovery.md, with what the operator sees and does."""

import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
from contextlib import suppress

import apsw
import pytest
from gateway_site import ENERGYBID, Site, wait_for
from test_system_faults import TCP, TCP_METERS, agree


@pytest.fixture
def site(tmp_path):
    made = Site(tmp_path, TCP, TCP_METERS)
    yield made
    made.close()


def energybid(site, *arguments, code=0):
    done = subprocess.run(
        [ENERGYBID, *map(str, arguments)], cwd=site.folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def journal(site, action, *arguments, code=0):
    done = energybid(site, "journal", action, "-c", "gateway.toml", "--json", *arguments, code=code)
    return json.loads(done.stdout) if done.stdout else done.stderr


def stop_cleanly(site, agent):
    assert agent.stop() == 0
    (site.folder / "status.json").unlink(missing_ok=True)


def flip(site, sequence):
    """Flip bytes in the page that holds the columns of the segment with that entry."""
    path = site.folder / "journal.db"
    database = apsw.Connection(str(path))
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ((blob,),) = database.execute("SELECT columns FROM segment WHERE first <= ? ORDER BY key DESC LIMIT 1", (sequence,))
    database.close()
    data = bytearray(path.read_bytes())
    at = data.index(blob[:40])
    data[at : at + 20] = bytes(byte ^ 0xFF for byte in data[at : at + 20])
    path.write_bytes(data)


def epochs_at_headend(site):
    """(epoch, entries) of the head-end, oldest first."""
    database = apsw.Connection(str(site.folder / "headend.db"))
    rows = [(epoch.hex(), size) for epoch, size in database.execute("SELECT epoch, size FROM epoch ORDER BY id")]
    database.close()
    return rows


def conflicts(site):
    database = apsw.Connection(str(site.folder / "headend.db"))
    rows = [kind for (kind,) in database.execute("SELECT kind FROM conflict")]
    database.close()
    return rows


def test_flipped_pages_quarantine_salvage_a_new_epoch_and_the_old_tail_is_delivered(site):
    site.broker.start()
    site.bus()
    site.headend()
    agent = site.agent()
    site.wait_acknowledged(30)
    site.broker.kill()
    before = site.status()["log"]["committed"]
    wait_for(lambda: site.status()["log"]["committed"] > before + 120, "reads on", agent)
    size = site.status()["log"]["committed"]
    stop_cleanly(site, agent)
    flip(site, size - 30)
    agent = site.agent()
    site.broker.start()
    site.wait_acknowledged(20)
    assert "the journal is damaged" in agent.said()
    assert "journal.db.quarantine-1" in agent.said()
    quarantined = site.status()["journal"]["quarantined"]
    assert len(quarantined) == 1
    assert "QUARANTINED" in energybid(site, "status", "-c", "gateway.toml").stdout
    facts = journal(site, "status")
    old, new = facts["epochs"]
    assert old["size"] > before + 60, "the tail up to the damage"
    assert new["why"].startswith("damaged")
    assert f"{old['size']} entries of {old['epoch']} with root {old['root']}" == new["names"]
    stop_cleanly(site, agent)
    (first, first_size), (second, _) = epochs_at_headend(site)
    assert (first, first_size, second) == (old["epoch"], old["size"], new["epoch"]), "delivered to the last good entry"
    assert conflicts(site) == []
    agree(site)
    assert journal(site, "check")["checked"][1]["end"] > 20
    salvaged = energybid(site, "journal", "salvage", quarantined[0], "saved.db", "--json")
    found = json.loads(salvaged.stdout)
    assert found["entries"] > old["size"], "more than what was before the damage"
    assert found["unreadable"] <= 1
    energybid(site, "export", "saved.db", "saved-readings.db")
    assert (site.folder / quarantined[0]).exists()


@pytest.mark.parametrize("readable", [False, True])
def test_damage_that_is_found_while_the_agent_runs(site, readable):
    """Entries that can not be read any more, and entries that can, but are not those that were signed."""
    site.bus()
    agent = site.agent()
    wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 120, "reads without a broker", agent)
    database = apsw.Connection(str(site.folder / "journal.db"))
    database.set_busy_timeout(5000)
    rows = database.execute("SELECT key & 0xffffffff, first, key FROM segment WHERE first > 20 ORDER BY key").fetchall()
    first, key, other = next(
        (first, key, other)
        for (end, first, key), (end2, first2, other) in itertools.pairwise(rows)
        if end - first == end2 - first2
    )
    columns = "(SELECT columns FROM segment WHERE key = ?1)" if readable else "zeroblob(length(columns))"
    method = "(SELECT method FROM segment WHERE key = ?1)" if readable else "method"
    database.execute(f"UPDATE segment SET columns = {columns}, method = {method} WHERE key = ?2", (other, key))
    database.close()
    site.headend()
    site.broker.start()
    wait_for(lambda: site.status()["journal"]["quarantined"], "set aside", *site.running)
    site.wait_acknowledged(20)
    old, new = journal(site, "status")["epochs"]
    assert (old["size"], new["why"][:7]) == (first, "damaged")
    assert agent.process.poll() is None, "it never stopped"
    stop_cleanly(site, agent)
    assert epochs_at_headend(site)[0] == (old["epoch"], first)
    agree(site)


def test_a_file_that_is_no_database_any_more(site):
    site.bus()
    agent = site.agent()
    wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 30, "reads", agent)
    agent.stop(signal.SIGKILL)
    (site.folder / "journal.db").write_bytes(b"\0\xff" * 5000)
    for left in ("journal.db-wal", "journal.db-shm", "status.json"):
        (site.folder / left).unlink(missing_ok=True)
    agent = site.agent()
    wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 30, "reads again", agent)
    stop_cleanly(site, agent)
    assert site.verify("journal.db")["verified"] is True
    assert (site.folder / "journal.db.quarantine-1").read_bytes() == b"\0\xff" * 5000


def test_a_restored_older_journal_waits_for_the_operator_and_goes_on_in_a_new_epoch(site):
    site.broker.start()
    site.bus()
    site.headend()
    agent = site.agent()
    site.wait_acknowledged(20)
    stop_cleanly(site, agent)
    shutil.copy(site.folder / "journal.db", site.folder / "old.db")
    agent = site.agent()
    site.wait_acknowledged(len(site.headend_entries()) + 20)
    stop_cleanly(site, agent)
    size = len(site.headend_entries())
    shutil.copy(site.folder / "old.db", site.folder / "journal.db")
    assert site.agent().process.wait(20) == 3
    signed = journal(site, "status")["epochs"][0]["size"]
    again = site.agent()
    assert again.process.wait(20) == 3
    assert "energybid journal new-epoch" in again.said(), "says what to do"
    facts = journal(site, "status")
    assert facts["epochs"][0]["size"] == signed, "and signs nothing meanwhile"
    assert "restored or copied" in facts["contradicted"]
    made = journal(site, "new-epoch", "--reason", "card restored from the backup of May 3rd")
    assert made["why"] == "rolled back"
    assert made["names"].startswith(f"{size} entries of "), "the last receipted root, not its own"
    (site.folder / "status.json").unlink(missing_ok=True)
    agent = site.agent()
    site.wait_acknowledged(30)
    stop_cleanly(site, agent)
    assert epochs_at_headend(site)[0][1] == size, "nothing of the fork was taken"
    assert "epoch" not in conflicts(site), "the new epoch fits what the head-end knows"
    agree(site)


def test_new_epoch_refuses_while_the_agent_runs_and_asks_for_a_reason(site):
    site.bus()
    agent = site.agent()
    wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 10, "reads", agent)
    assert "another agent is running" in journal(site, "new-epoch", "--reason", "x", code=4)
    energybid(site, "journal", "new-epoch", "-c", "gateway.toml", code=2)
    journal(site, "check")
    assert len(journal(site, "status")["epochs"]) == 1
    stop_cleanly(site, agent)
    made = journal(site, "new-epoch", "--reason", "asked for")
    assert made["why"] == "operator"
    agent = site.agent()
    site.broker.start()
    site.headend()
    site.wait_acknowledged(20)
    stop_cleanly(site, agent)
    assert epochs_at_headend(site)[0][1] == journal(site, "status")["epochs"][0]["size"], "delivered whole"
    assert conflicts(site) == []


def test_a_cloned_card_one_of_the_two_stops_and_gets_a_name_of_its_own(site, tmp_path):
    site.broker.start()
    site.bus()
    site.headend()
    agent = site.agent()
    site.wait_acknowledged(20)
    stop_cleanly(site, agent)
    clone = tmp_path / "clone"
    clone.mkdir()
    for name in ("journal.db", "gateway.toml", "log.pem", "log.pub.pem", "headend.pub.pem"):
        shutil.copy(site.folder / name, clone / name)
    first = site.agent()
    second = site.start("clone", "run", "-c", clone / "gateway.toml")
    wait_for(lambda: 3 in {first.process.poll(), second.process.poll()}, "one is contradicted", first, second)
    loser = first if first.process.poll() == 3 else second
    assert "another gateway writes under the same name and key" in loser.said() or "restored or copied" in loser.said()
    for process in (first, second):
        with suppress(subprocess.TimeoutExpired):
            process.stop()
    config = clone / "gateway.toml"
    config.write_text(config.read_text().replace('"gw-1"', '"gw-2"'))
    energybid(site, "keys", "new", clone / "log2.pem")
    config.write_text(config.read_text().replace('"log.pem"', '"log2.pem"'))
    if loser is second:
        done = energybid(site, "journal", "new-epoch", "-c", config, "--reason", "clone of gw-1", "--json")
        assert json.loads(done.stdout)["why"] == "rolled back"
    renamed = site.start("renamed", "run", "-c", config)
    wait_for(lambda: "demo/gw-2: journal" in renamed.said(), "runs under its own name", renamed)
    assert renamed.stop() == 0
    done = energybid(site, "journal", "status", "-c", config, "--json")
    assert json.loads(done.stdout)["epochs"][-1]["origin"] == "demo/gw-2"


def test_a_headend_restored_from_a_backup_is_filled_again(site):
    site.broker.start()
    site.bus()
    headend = site.headend()
    agent = site.agent()
    site.wait_acknowledged(20)
    headend.stop()
    shutil.copy(site.folder / "headend.db", site.folder / "backup.db")
    headend = site.headend()
    site.wait_acknowledged(site.acknowledged() + 40)
    headend.stop()
    shutil.copy(site.folder / "backup.db", site.folder / "headend.db")
    site.headend()
    wait_for(lambda: "it was restored; sending again" in agent.said(), "the agent says so", *site.running)
    site.wait_acknowledged(site.status()["log"]["committed"])
    stop_cleanly(site, agent)
    ours, theirs = agree(site)
    assert theirs == ours


def test_a_headend_that_lost_its_database_is_filled_from_the_journal(site):
    site.broker.start()
    site.bus()
    headend = site.headend()
    agent = site.agent()
    site.wait_acknowledged(40)
    headend.stop()
    for left in site.folder.glob("headend.db*"):
        left.unlink()
    site.headend()
    wait_for(lambda: "it was restored; sending again" in agent.said(), "the agent says so", *site.running)
    site.wait_acknowledged(site.status()["log"]["committed"])
    stop_cleanly(site, agent)
    ours, theirs = agree(site)
    assert theirs == ours


def test_a_disk_that_takes_nothing_is_waited_for(site):
    """Files may grow no more (RLIMIT_FSIZE): every write of the journal fails, as on a full or read-only disk."""
    site.bus()
    site.broker.start()
    site.headend()
    agent = site.agent()
    site.wait_acknowledged(20)
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    wait_for(lambda: site.status()["journal"]["error"], "the refusal is named", agent)
    before = site.status()["readings"]
    wait_for(lambda: site.status()["readings"] > before + 60, "reads on, in memory", agent)
    assert site.status()["log"]["size"] > site.status()["log"]["committed"]
    assert "THE DISK REFUSES" in energybid(site, "status", "-c", "gateway.toml").stdout
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    wait_for(lambda: not site.status()["journal"]["error"], "goes on by itself", agent)
    site.wait_acknowledged(before + 60)
    stop_cleanly(site, agent)
    ours, theirs = agree(site)
    assert theirs == ours
    assert "the disk takes commits again" in agent.said()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_file_system_that_others_fill_costs_readings_but_nothing_signed(tmp_path):
    site = Site(tmp_path, TCP, TCP_METERS, journal='commit_interval = "200 ms"\nbudget = "1 MiB"')
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
    try:
        config = tmp_path / "gateway.toml"
        config.write_text(config.read_text().replace('"journal.db"', '"disk/journal.db"'))
        site.bus()
        agent = site.agent()
        wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 60, "reads", agent)
        assert (disk / "journal.db.ballast").stat().st_size == 32768
        with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(4096)):
                pass
        wait_for(lambda: not (disk / "journal.db.ballast").exists(), "the ballast is given up", agent)
        wait_for(lambda: site.status()["journal"]["stage"] == "refusing", "nothing more is logged", agent)
        wait_for(lambda: site.status()["journal"]["not_logged"] > 20, "and it is counted", agent)
        status = site.status()
        assert status["log"]["size"] - status["log"]["committed"] < 20, "what was signed is stored"
        (disk / "filler").unlink()
        wait_for(lambda: site.status()["journal"]["stage"] == "all", "reads again", agent, deadline_s=90)
        size = site.status()["readings"]
        wait_for(lambda: site.status()["readings"] > size + 20, "all readings", agent)
        stop_cleanly(site, agent)
        assert site.verify("disk/journal.db")["verified"] is True
        assert re.search(r"refusing instead of", agent.said())
    finally:
        site.close()
        subprocess.run(["umount", "-l", disk], check=True)
