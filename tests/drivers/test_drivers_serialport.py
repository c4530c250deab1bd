"""Serial ports: found again under another name, locked, set up. A false /dev and /sys, with ptys for adapters."""

import asyncio
import errno
import logging
import os
import struct
import subprocess
import sys
import termios
import tty
from dataclasses import replace
from pathlib import Path

import pytest
from energybid.core.errors import BusDownError
from energybid.core.ports import Rs485, SerialEndpoint
from energybid.drivers.serialport.find import Finder, usb_ports
from energybid.drivers.serialport.holders import Holder, holders, in_use
from energybid.drivers.serialport.settings import (
    LOW_LATENCY,
    TIOCGRS485,
    TIOCSRS485,
    claim,
    is_pty,
    prefer_low_latency,
    switch_direction,
)
from energybid.drivers.serialport.system import SerialPorts
from energybid.drivers.serialport.system import _why as why


class Machine:
    """A machine's /dev and /sys: adapters are plugged in and pulled out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.far: dict[str, int] = {}
        self.near: dict[str, int] = {}
        for folder in ("dev/serial/by-id", "sys/class/tty"):
            (root / folder).mkdir(parents=True)

    def plug(self, name: str, serial: str | None = "FT1234", *, socket: str = "1-1", interface: int = 0) -> int:
        """Plug an adapter in; returns the far end of its line."""
        far, near = os.openpty()
        tty.setraw(near)
        self.far[name], self.near[name] = far, near
        device = self.root / "sys/devices/usb1" / socket
        port = device / f"{socket}:1.{interface}"
        folder = port / name if name.startswith("ttyUSB") else port
        (folder / "tty" / name).mkdir(parents=True)
        (port / "bInterfaceNumber").write_text(f"{interface:02x}\n")
        facts = {"idVendor": "0403", "idProduct": "6001"} | ({"serial": serial} if serial else {})
        for fact, value in facts.items():
            (device / fact).write_text(value + "\n")
        (self.root / "sys/class/tty" / name).symlink_to(folder / "tty" / name)
        (self.root / "dev" / name).symlink_to(os.ttyname(near))
        by_id = self.by_id(serial, interface)
        by_id.unlink(missing_ok=True)
        by_id.symlink_to(f"../../{name}")
        return far

    def by_id(self, serial: str | None, interface: int = 0) -> Path:
        which = f"_{serial}" if serial else ""
        return self.root / f"dev/serial/by-id/usb-FTDI{which}-if{interface:02x}-port0"

    def pull(self, name: str) -> None:
        for link in (self.root / "dev/serial/by-id").iterdir():
            if link.readlink().name == name:
                link.unlink()
        (self.root / "dev" / name).unlink()
        (self.root / "sys/class/tty" / name).unlink()
        os.close(self.near.pop(name))
        os.close(self.far.pop(name))

    def close(self) -> None:
        for fd in (*self.far.values(), *self.near.values()):
            os.close(fd)


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.close()


def real(machine: Machine, name: str) -> str:
    return str(machine.root / "dev" / name)


class Heard(asyncio.Protocol):
    """Collects what comes over a line."""

    def __init__(self) -> None:
        self.data = asyncio.Queue()
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data):
        self.data.put_nowait(data)

    def connection_lost(self, exc):
        self.lost.set_result(exc)


# ---------------------------------------------------------------- finding


def test_every_port_is_listed_with_what_identifies_it(machine):
    machine.plug("ttyUSB0", "FT1", socket="1-1.2")
    machine.plug("ttyUSB1", "FT1", socket="1-1.2", interface=1)
    machine.plug("ttyACM0", None, socket="2-1")
    assert [(p.name, p.adapter) for p in usb_ports(machine.root)] == [
        ("ttyACM0", ("0403:6001", "", 0, "2-1")),
        ("ttyUSB0", ("0403:6001", "FT1", 0, "1-1.2")),
        ("ttyUSB1", ("0403:6001", "FT1", 1, "1-1.2")),
    ]
    assert str(usb_ports(machine.root)[1]) == "/dev/serial/by-id/usb-FTDI_FT1-if00-port0 (now /dev/ttyUSB0)"


def test_a_port_is_named_by_serial_number_where_udev_gives_no_name(machine):
    machine.plug("ttyUSB0", "FT1", interface=1)
    machine.by_id("FT1", 1).unlink()
    assert [str(port) for port in usb_ports(machine.root)] == ["usb:FT1#1 (now /dev/ttyUSB0)"]
    assert usb_ports(machine.root / "nowhere") == []


def test_by_usb_serial_number(machine):
    machine.plug("ttyUSB0", "FT1", socket="1-1")
    machine.plug("ttyUSB3", "FT2", socket="1-2")
    finder = Finder(machine.root)
    assert finder.find("usb:FT2") == real(machine, "ttyUSB3")
    with pytest.raises(
        BusDownError, match=r"can not open usb:FT9: no such port; plugged in: .*FT1.* \(now /dev/ttyUSB0\)"
    ):
        finder.find("usb:FT9")


def test_an_adapter_with_several_ports_needs_the_ports_number(machine):
    machine.plug("ttyUSB0", "FT1")
    machine.plug("ttyUSB1", "FT1", interface=1)
    finder = Finder(machine.root)
    assert finder.find("usb:FT1#1") == real(machine, "ttyUSB1")
    with pytest.raises(BusDownError, match=r"usb:FT1: it is more than one port: name one of .*ttyUSB0.*ttyUSB1"):
        finder.find("usb:FT1")


def test_a_port_that_is_not_there_says_what_is(machine):
    finder = Finder(machine.root)
    with pytest.raises(BusDownError, match="can not open /dev/ttyUSB0: no such port; no USB adapter is plugged in"):
        finder.find("/dev/ttyUSB0")
    machine.plug("ttyUSB1", None)
    with pytest.raises(BusDownError, match=r"plugged in: /dev/serial/by-id/usb-FTDI-if00-port0 \(now /dev/ttyUSB1\)"):
        finder.find("/dev/ttyUSB0")


def test_a_kernel_name_means_the_adapter_that_it_meant_first(machine, caplog):
    caplog.set_level(logging.INFO)
    machine.plug("ttyUSB0", "FT1", socket="1-1")
    finder = Finder(machine.root)
    finder.find("/dev/ttyUSB0")
    finder.remember("/dev/ttyUSB0")
    assert "better write device = /dev/serial/by-id/usb-FTDI_FT1-if00-port0" in caplog.text
    machine.pull("ttyUSB0")
    machine.plug("ttyUSB0", "FT2", socket="1-3")  # another one took the name
    with pytest.raises(BusDownError, match=r"the adapter that it was \(0403:6001, serial number FT1\) is not there"):
        finder.find("/dev/ttyUSB0")
    machine.plug("ttyUSB1", "FT1", socket="1-4")
    assert finder.find("/dev/ttyUSB0") == real(machine, "ttyUSB1")
    assert "the adapter that was /dev/ttyUSB0 is /dev/ttyUSB1 now" in caplog.text
    finder.remember("/dev/ttyUSB0")  # opened again: the meaning stays
    assert finder.find("/dev/ttyUSB0") == real(machine, "ttyUSB1")


@pytest.mark.parametrize("serial", [None, "0001"])
def test_adapters_that_do_not_differ_are_told_apart_by_their_sockets(machine, serial):
    machine.plug("ttyUSB0", serial, socket="1-1")
    machine.plug("ttyUSB1", serial, socket="1-2")
    finder = Finder(machine.root)
    finder.remember("/dev/ttyUSB0")
    machine.pull("ttyUSB0")
    with pytest.raises(BusDownError, match="in USB socket 1-1"):  # never its twin
        finder.find("/dev/ttyUSB0")
    machine.plug("ttyUSB2", serial, socket="1-1")
    assert finder.find("/dev/ttyUSB0") == real(machine, "ttyUSB2")


def test_names_that_keep_their_meaning_are_not_remembered(machine):
    machine.plug("ttyUSB0", "FT1")
    finder = Finder(machine.root)
    by_id = "/dev/serial/by-id/usb-FTDI_FT1-if00-port0"
    finder.remember(by_id)
    finder.remember("/dev/ttyS0")
    assert finder.find(by_id) == str(machine.by_id("FT1"))


@pytest.mark.parametrize("device", ["usb:FT1234", "/dev/ttyUSB0", "/dev/serial/by-id/usb-FTDI_FT1234-if00-port0"])
async def test_a_port_that_vanishes_and_returns_under_another_name_is_opened_again(machine, device):
    ports = SerialPorts(machine.root)
    endpoint = SerialEndpoint(device=device, baudrate=115_200)
    machine.plug("ttyUSB0")
    transport = ports.open(endpoint, Heard)
    lost = transport.get_protocol().lost
    machine.pull("ttyUSB0")
    async with asyncio.timeout(5):
        assert await lost is not None
    with pytest.raises(BusDownError, match=f"can not open {device}: "):
        ports.open(endpoint, Heard)
    far = machine.plug("ttyUSB7", socket="2-2")
    transport = ports.open(endpoint, Heard)
    os.write(far, b"here")
    async with asyncio.timeout(5):
        assert await transport.get_protocol().data.get() == b"here"
    transport.close()
    await transport.get_protocol().lost


# ---------------------------------------------------------------- locking

HOLDER = """
import sys, serial
port = serial.Serial(sys.argv[1], 9600, exclusive=True)
print("held", flush=True)
sys.stdin.read()
"""


async def test_a_port_that_another_process_holds_says_which(machine):
    machine.plug("ttyUSB0")
    command = [sys.executable, "-c", HOLDER, real(machine, "ttyUSB0"), "meter-tool"]
    endpoint, ports = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600), SerialPorts(machine.root)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220  of its own
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusDownError) as caught:
            ports.open(endpoint, Heard)
        holder.stdin.close()
    assert "can not open /dev/ttyUSB0: in use by " in str(caught.value)
    assert f"process {holder.pid} ({sys.executable} -c" in str(caught.value)
    transport = ports.open(endpoint, Heard)
    assert {h.pid for h in holders(real(machine, "ttyUSB0"))} == {os.getpid()}
    transport.close()
    await transport.get_protocol().lost


def test_the_holder_of_a_lock_is_known_where_its_files_are_not_shown(tmp_path):
    device = tmp_path / "ttyUSB0"
    device.touch()
    node = device.stat()
    inode = f"{os.major(node.st_dev):02x}:{os.minor(node.st_dev):02x}:{node.st_ino}"
    process = tmp_path / "proc/77"
    process.mkdir(parents=True)
    (process / "comm").write_text("ModemManager\n")
    (process / "cmdline").write_bytes(b"")
    (tmp_path / "proc/locks").write_text(
        f"1: FLOCK  ADVISORY  WRITE 77 {inode} 0 EOF\n2: POSIX  ADVISORY  READ 78 00:01:1 0 EOF\n"
    )
    found = holders(str(device), tmp_path / "proc")
    assert found == [Holder(77, "ModemManager", "ModemManager", locks=True)]
    assert in_use(str(device), found, 1).endswith("(systemctl disable --now ModemManager)")


def test_what_is_said_of_holders(tmp_path):
    assert "sudo fuser -v /dev/ttyS0" in in_use("/dev/ttyS0", [], 1)
    login = Holder(9, "agetty", "/sbin/agetty ttyAMA0")
    assert "serial-getty@ttyAMA0" in in_use("/dev/ttyAMA0", [login], 1)
    assert "process 9 (mbpoll -a 1)" in in_use("/dev/x", [Holder(9, "mbpoll", "mbpoll -a 1")], 1)
    assert "two buses" in in_use("/dev/x", [Holder(9, "energybid", "energybid run")], 9)
    (tmp_path / "locks").write_text("1: FLOCK ADVISORY WRITE 5 ff:ff:0 0 EOF\n")
    assert holders("/nowhere", tmp_path) == []


def test_a_holder_that_ends_meanwhile_or_has_a_long_command(tmp_path):
    device = tmp_path / "ttyUSB0"
    device.touch()
    for pid, command in (("5", b"x" * 500), ("6", b"")):
        (tmp_path / "proc" / pid / "fd").mkdir(parents=True)
        (tmp_path / "proc" / pid / "fd" / "3").symlink_to(device)
        if command:
            (tmp_path / "proc" / pid / "comm").write_text("long\n")
            (tmp_path / "proc" / pid / "cmdline").write_bytes(command)
    first, second = holders(str(device), tmp_path / "proc")
    assert (len(first.command), first.command[-1]) == (80, "…")
    assert second == Holder(6, "?", "?")


# ---------------------------------------------------------------- settings


class Kernel:
    """Stands for ioctl(2) on a driver; ``flags`` is what the driver keeps of serial_rs485.flags."""

    def __init__(self, mask: int = 0xFFFF_FFFF, error: int = 0) -> None:
        self.mask, self.error = mask, error
        self.calls: list[tuple[int, bytes]] = []
        self.rs485 = bytes(32)

    def __call__(self, fd: int, request: int, argument) -> int:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        self.calls.append((request, bytes(argument) if isinstance(argument, bytearray) else b""))
        if request == TIOCSRS485:
            self.rs485 = (int.from_bytes(argument[:4], sys.byteorder) & self.mask).to_bytes(4, sys.byteorder) + bytes(
                28
            )
        if request == TIOCGRS485:
            argument[:] = self.rs485
        return 0


@pytest.mark.parametrize(
    ("settings", "flags", "delays"),
    [
        # include/uapi/linux/serial.h: ENABLED 1, RTS_ON_SEND 2, RTS_AFTER_SEND 4, RX_DURING_TX 16; delays in ms.
        (Rs485(), 1 | 2, (0, 0)),
        (Rs485(rts_on_send=False, delay_before_send_ms=1, delay_after_send_ms=2), 1 | 4, (1, 2)),
        (Rs485(receive_while_sending=True), 1 | 2 | 16, (0, 0)),
    ],
)
def test_the_kernel_is_asked_to_switch_direction(settings, flags, delays):
    kernel = Kernel()
    switch_direction(3, "/dev/ttyS1", settings, kernel)
    assert kernel.calls[0] == (0x542F, struct.pack("=8I", flags, *delays, 0, 0, 0, 0, 0))
    assert kernel.calls[1][0] == 0x542E


@pytest.mark.parametrize("kernel", [Kernel(error=errno.ENOTTY), Kernel(error=errno.EINVAL), Kernel(mask=0)])
def test_a_driver_without_rs485_mode_is_named_with_the_way_out(kernel):
    with pytest.raises(BusDownError, match=r"/dev/ttyS1: the port's driver has no RS-485 mode: leave rs485 away"):
        switch_direction(3, "/dev/ttyS1", Rs485(), kernel)


def test_another_fault_of_the_rs485_mode_is_told():
    with pytest.raises(BusDownError, match="/dev/ttyS1: RS-485 mode: Operation not permitted"):
        switch_direction(3, "/dev/ttyS1", Rs485(), Kernel(error=errno.EPERM))


async def test_a_port_whose_direction_can_not_be_switched_is_let_go(machine):
    machine.plug("ttyUSB0")
    endpoint = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600)
    with pytest.raises(BusDownError, match="can not use /dev/ttyUSB0: the port's driver has no RS-485 mode"):
        SerialPorts(machine.root).open(replace(endpoint, rs485=Rs485()), Heard)
    transport = SerialPorts(machine.root).open(endpoint, Heard)  # not locked
    transport.close()
    await transport.get_protocol().lost


def test_low_latency_is_asked_for_and_does_without():
    kernel = Kernel()
    assert prefer_low_latency(3, kernel)
    (got, _), (put, structure) = kernel.calls
    assert (got, put) == (termios.TIOCGSERIAL, termios.TIOCSSERIAL)
    assert struct.unpack_from("=5i", structure) == (0, 0, 0, 0, 0x2000)
    assert LOW_LATENCY == 0x2000
    assert not prefer_low_latency(3, Kernel(error=errno.EPERM))


def test_a_port_is_claimed_but_no_pty():
    kernel = Kernel()
    claim(3, kernel)
    assert kernel.calls == [(termios.TIOCEXCL, b"")]
    far, near = os.openpty()
    assert is_pty(os.ttyname(near))
    os.close(far)
    os.close(near)
    assert not is_pty("/dev/null")
    assert not is_pty("/nowhere")


async def test_a_pty_is_opened_again_with_any_settings(machine):
    machine.plug("ttyUSB0")
    for settings in ({"data_bits": 7, "parity": "E"}, {"data_bits": 7, "parity": "N"}, {"parity": "E"}):
        endpoint = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600, **settings)
        transport = SerialPorts(machine.root).open(endpoint, Heard)
        transport.close()
        await transport.get_protocol().lost


async def test_a_port_that_others_read_without_a_lock_is_told(machine, caplog, monkeypatch):
    monkeypatch.setattr("energybid.drivers.serialport.settings.PTY_MAJORS", range(0))  # a pty counts as a port
    machine.plug("ttyUSB0")
    command = [sys.executable, "-c", HOLDER.replace("exclusive=True", ""), real(machine, "ttyUSB0")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:  # noqa: ASYNC220  of its own
        assert other.stdout.readline() == b"held\n"
        transport = SerialPorts(machine.root).open(SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600), Heard)
        other.stdin.close()
    assert "/dev/ttyUSB0 is open elsewhere too: in use by " in caplog.text
    assert f"process {other.pid} (" in caplog.text
    transport.close()
    await transport.get_protocol().lost


def test_why_a_port_does_not_open():
    assert "usermod -aG dialout" in why("/dev/x", PermissionError(errno.EACCES, "Permission denied"))
    assert why("/dev/x", ValueError("Not a valid baudrate")) == "Not a valid baudrate"
    assert why("/dev/x", OSError(errno.EIO, "Could not configure port")) == "Input/output error"


def test_an_adapter_that_goes_away_while_it_is_looked_at_is_none(machine):
    machine.plug("ttyUSB0")
    (machine.root / "sys/devices/usb1/1-1/1-1:1.0/bInterfaceNumber").write_text("odd")
    assert usb_ports(machine.root) == []
