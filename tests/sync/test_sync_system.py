"""The real clock, worker, database and service manager."""

import asyncio
import contextlib
import os
import pathlib
import socket
import threading
import time

import pytest
from energybid.core.errors import JournalError
from energybid.core.quantities import ClockState
from energybid.sync import system


async def test_a_worker_runs_in_order_in_one_thread() -> None:
    worker = system.Worker()
    gate = threading.Event()
    order: list[int] = []

    def work(number: int, *, wait: bool = False) -> int:
        if wait:
            gate.wait(10)
        order.append(number)
        return threading.get_ident()

    calls = [
        asyncio.ensure_future(worker(work, 0, wait=True)),
        *(asyncio.ensure_future(worker(work, i)) for i in (1, 2)),
    ]
    gate.set()
    assert len({*(await asyncio.gather(*calls))} - {threading.get_ident()}) == 1
    assert order == [0, 1, 2]
    with pytest.raises(ZeroDivisionError):
        await worker(lambda: 1 // 0)
    worker.close()


def test_open_database(tmp_path: pathlib.Path) -> None:
    connection = system.open_database(str(tmp_path / "a.db"))
    assert list(connection.execute("PRAGMA busy_timeout")) == [(5000,)]
    connection.close()
    with pytest.raises(JournalError, match=r"b\.db"):
        system.open_database(str(tmp_path / "none" / "b.db"))


def test_boot_id_is_stable() -> None:
    assert len(system.boot_id()) == 16
    assert system.boot_id() == system.boot_id()


@pytest.mark.parametrize(
    ("status", "error_us", "before", "expected"),
    [
        (0x40, 0, ClockState.UNSYNCHRONISED, ClockState.UNSYNCHRONISED),
        (0x40, 0, ClockState.SYNCHRONISED, ClockState.HOLDOVER),
        (0x40, 0, ClockState.HOLDOVER, ClockState.HOLDOVER),
        (0x2001, 1_030_000, ClockState.UNSYNCHRONISED, ClockState.SYNCHRONISED),
        (0x2001, 2_000_000, ClockState.SYNCHRONISED, ClockState.HOLDOVER),
    ],
)
def test_clock_is_judged(status: int, error_us: int, before: ClockState, expected: ClockState) -> None:
    assert system.judge(status, error_us, before) is expected


def test_clock_is_cached() -> None:
    now = [0.0]
    clock = system.Clock(lambda: now[0])
    asked: list[float] = []
    real = clock._adjtimex
    clock._adjtimex = lambda timex: asked.append(now[0]) or real(timex)
    for now[0] in (0.0, 9.9, 10.0, 11.0):
        assert clock() in ClockState
    assert asked == [0.0, 10.0]


@pytest.mark.parametrize(
    ("age_s", "expected"),
    [
        (None, ClockState.UNSYNCHRONISED),
        (0, ClockState.SYNCHRONISED),
        (2048, ClockState.SYNCHRONISED),
        (4100, ClockState.HOLDOVER),
    ],
)
def test_clock_asks_timesyncd_where_adjtimex_is_refused(
    tmp_path: pathlib.Path, age_s: int | None, expected: ClockState
) -> None:
    mark = tmp_path / "synchronized"
    if age_s is not None:
        mark.touch()
        os.utime(mark, (time.time() - age_s,) * 2)
    clock = system.Clock(mark=mark)
    clock._adjtimex = lambda _: -1
    assert clock() is expected


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool) -> None:
    name = f"@{tmp_path}/manager" if abstract else str(tmp_path / "manager")
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        system.notify("READY=1\nSTATUS=on")
        assert manager.recv(100) == b"READY=1\nSTATUS=on"


def test_notify_without_a_manager(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    system.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    system.notify("READY=1")
    assert "could not tell the service manager READY" in caplog.text
