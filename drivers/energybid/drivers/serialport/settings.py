"""What the kernel is asked for a serial port beyond its line settings: one user, no delay, RS-485 direction.

Here live the ioctls and their structures (Linux, include/uapi/linux/serial.h and tty_flags.h). No port is opened here.
"""

import errno
import fcntl
import os
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from struct import Struct

from energybid.core.errors import BusDownError
from energybid.core.ports import Rs485

TIOCGRS485, TIOCSRS485 = 0x542E, 0x542F
"""asm-generic/ioctls.h."""
_RS485 = Struct("=8I")
"""struct serial_rs485: flags, delay before and after sending in ms, padding."""
ENABLED, RTS_ON_SEND, RTS_AFTER_SEND, RX_DURING_TX = 1, 2, 4, 16

_SERIAL = Struct("=4i i 27i")
"""struct serial_struct begins type, line, port, irq, flags; the rest is handed back as it came."""
_FLAGS = 4
LOW_LATENCY = 1 << 13
"""ASYNC_LOW_LATENCY; makes FTDI adapters hand bytes over after 1 ms instead of 16."""

PTY_MAJORS = range(136, 144)
"""Unix98 pseudo-terminals (Documentation/admin-guide/devices.txt)."""

Ioctl = Callable[..., object]
"""fcntl.ioctl, or its stand-in."""


def is_pty(path: str) -> bool:
    """Whether a device is a pseudo-terminal."""
    with suppress(OSError):
        return os.major(Path(path).stat().st_rdev) in PTY_MAJORS
    return False


def claim(fd: int, ioctl: Ioctl = fcntl.ioctl) -> None:
    """Let nobody else open the port (TIOCEXCL, ioctl_tty(2)); the lock of flock(2) is only kept by who asks for it.

    Not for pseudo-terminals: whoever made one keeps it open, and the mark would outlive this process.
    """
    ioctl(fd, termios.TIOCEXCL, 0)


def prefer_low_latency(fd: int, ioctl: Ioctl = fcntl.ioctl) -> bool:
    """Ask for bytes without delay; False where the driver refuses, which does no harm."""
    buffer = bytearray(_SERIAL.size)
    with suppress(OSError):
        ioctl(fd, termios.TIOCGSERIAL, buffer)
        words = list(_SERIAL.unpack(buffer))
        words[_FLAGS] |= LOW_LATENCY
        ioctl(fd, termios.TIOCSSERIAL, bytearray(_SERIAL.pack(*words)))
        return True
    return False


def switch_direction(fd: int, device: str, settings: Rs485, ioctl: Ioctl = fcntl.ioctl) -> None:
    """Let the kernel switch a two-wire line between sending and receiving.

    Raises:
        BusDownError: The driver of the port can not; the message says what to do instead.
    """
    flags = ENABLED | (RTS_ON_SEND if settings.rts_on_send else RTS_AFTER_SEND)
    flags |= RX_DURING_TX if settings.receive_while_sending else 0
    buffer = bytearray(_RS485.pack(flags, settings.delay_before_send_ms, settings.delay_after_send_ms, *[0] * 5))
    try:
        ioctl(fd, TIOCSRS485, buffer)
        ioctl(fd, TIOCGRS485, buffer)  # what the driver made of it
    except OSError as error:
        if error.errno not in {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}:
            raise BusDownError(f"{device}: RS-485 mode: {error.strerror}") from None
        buffer = bytearray(_RS485.size)
    if not _RS485.unpack(buffer)[0] & ENABLED:
        raise BusDownError(
            f"{device}: the port's driver has no RS-485 mode: leave rs485 away if the adapter switches "
            "direction by itself, as most USB adapters do; else use one that does"
        )
