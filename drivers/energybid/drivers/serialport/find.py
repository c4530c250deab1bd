"""Which device node a serial port is behind today: adapters keep their serial numbers, not their names.

Here lives the reading of /sys and /dev; nothing is opened. Linux names USB adapters in the order in which they appear,
so an adapter that was away for a moment may come back as ttyUSB1. The folders read are those of sysfs (Linux,
Documentation/ABI/stable/sysfs-bus-usb: idVendor, idProduct, serial, bInterfaceNumber) and udev's /dev/serial/by-id.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from energybid.core.errors import BusDownError

log = logging.getLogger("energybid.drivers")

USB = "usb:"
_ADAPTERS = ("ttyUSB*", "ttyACM*")


class Adapter(NamedTuple):
    """What stays the same while an adapter's name changes."""

    model: str
    """Vendor and product identifiers, such as 0403:6001."""
    serial: str
    """USB serial number; empty where it has none."""
    interface: int
    """Its number among the ports of one adapter, from 0."""
    socket: str
    """The USB socket it is plugged into, as the kernel names it, such as 1-1.2."""


class UsbPort(NamedTuple):
    """A serial port on USB that is there now."""

    name: str
    """The kernel's, such as ttyUSB0."""
    adapter: Adapter
    by_id: str | None
    """Its name under /dev/serial/by-id."""

    def __str__(self) -> str:
        """How to name it in a configuration, and what it is called now."""
        serial = self.adapter.serial and f"{USB}{self.adapter.serial}"
        suffix = f"#{self.adapter.interface}" if serial and self.adapter.interface else ""
        return f"{self.by_id or (serial and serial + suffix) or 'no serial number'} (now /dev/{self.name})"


def usb_ports(root: Path = Path("/")) -> list[UsbPort]:
    """Every serial port on USB, by name.

    Args:
        root: Where ``sys`` and ``dev`` are.
    """
    links = {}
    with suppress(OSError):
        links = {link.readlink().name: f"/dev/serial/by-id/{link.name}" for link in _by_id(root).iterdir()}
    entries = [entry for pattern in _ADAPTERS for entry in (root / "sys/class/tty").glob(pattern)]
    found = [(entry.name, _adapter(entry)) for entry in sorted(entries)]
    return [UsbPort(name, adapter, links.get(name)) for name, adapter in found if adapter]


def _by_id(root: Path) -> Path:
    return root / "dev/serial/by-id"


def _adapter(entry: Path) -> Adapter | None:
    """Climb from a tty's folder to its USB interface and device; None where it is not on USB, or just went away."""
    interface = 0
    with suppress(OSError, ValueError):
        for folder in entry.resolve().parents:
            if (folder / "bInterfaceNumber").exists():
                interface = int(_text(folder / "bInterfaceNumber"), 16)
            if (folder / "idVendor").exists():
                model = f"{_text(folder / 'idVendor')}:{_text(folder / 'idProduct')}"
                serial = _text(folder / "serial") if (folder / "serial").exists() else ""
                return Adapter(model, serial, interface, folder.name)
    return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip()


class Finder:
    """Finds ports by the names in a configuration, and remembers which adapter a name like /dev/ttyUSB0 meant."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Start without memory.

        Args:
            root: Where ``sys`` and ``dev`` are.
        """
        self._root = root
        self._known: dict[str, Adapter] = {}

    def find(self, device: str) -> str:
        """The path to open for a device now; look again at every opening.

        Args:
            device: A path, or ``usb:SERIAL``, or ``usb:SERIAL#PORT`` for an adapter with several ports.

        Raises:
            BusDownError: It is not there; the message says what is there instead.
        """
        if device.startswith(USB):
            return self._path(self._by_serial(device).name)
        path = self._root / device.removeprefix("/") if self._root != Path("/") else Path(device)
        known = self._known.get(device)
        if known is not None:
            return self._path(self._again(device, known).name)
        if not path.exists():
            raise self._missing(device, "no such port")
        return str(path)

    def remember(self, device: str) -> None:
        """Keep in mind which adapter a kernel's name means; call it when the port is open."""
        ports = usb_ports(self._root)
        port = next((port for port in ports if f"/dev/{port.name}" == device), None)
        if port is None or device in self._known:
            return
        twins = sum(port.adapter[:3] == other.adapter[:3] for other in ports)
        # Many cheap adapters share one serial number, such as 0001; then only the socket tells them apart.
        serial = port.adapter.serial if twins == 1 else ""
        self._known[device] = port.adapter._replace(serial=serial)
        if port.by_id:
            log.info("%s may get another name: better write device = %s", device, port.by_id)

    def _by_serial(self, device: str) -> UsbPort:
        serial, _, number = device.removeprefix(USB).partition("#")
        ports = [port for port in usb_ports(self._root) if port.adapter.serial == serial]
        if number:
            ports = [port for port in ports if port.adapter.interface == int(number)]
        if not ports:
            raise self._missing(device, "no such port")
        if len(ports) > 1:
            raise BusDownError(
                f"can not open {device}: it is more than one port: name one of {', '.join(map(str, ports))}"
            )
        return ports[0]

    def _again(self, device: str, known: Adapter) -> UsbPort:
        for port in usb_ports(self._root):
            if port.adapter == known or (known.serial and port.adapter[:3] == known[:3]):
                return self._renamed(device, port)
            if not known.serial and port.adapter._replace(serial="") == known:
                return self._renamed(device, port)
        which = f"serial number {known.serial}" if known.serial else f"in USB socket {known.socket}"
        raise self._missing(device, f"the adapter that it was ({known.model}, {which}) is not there")

    @staticmethod
    def _renamed(device: str, port: UsbPort) -> UsbPort:
        if f"/dev/{port.name}" != device:
            log.info("the adapter that was %s is /dev/%s now", device, port.name)
        return port

    def _missing(self, device: str, why: str) -> BusDownError:
        names = ", ".join(map(str, usb_ports(self._root)))
        return BusDownError(
            f"can not open {device}: {why}; {'plugged in: ' + names if names else 'no USB adapter is plugged in'}"
        )

    def _path(self, name: str) -> str:
        return str(self._root / "dev" / name)
