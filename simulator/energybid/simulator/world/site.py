"""A site that bids: a house behind its meter, and a battery that does what is written to it.

The devices are those of ``simulate bus`` (physics, registers, energies exact); here they get what the oracle needs: a
memory of every answer, as the log must hold it. Also here: a device that takes numbers and does not follow them.
"""

from collections.abc import Callable
from fractions import Fraction
from struct import Struct

from energybid.core.quantities import Obis
from energybid.drivers.modbus.map import TYPES
from energybid.drivers.profile import LoadedProfile, Register
from energybid.simulator.asset_stores import Battery, BatteryType
from energybid.simulator.connection import Connection, Device
from energybid.simulator.household import Household
from energybid.simulator.household import Site as Household_
from energybid.simulator.meters import Meter, device_profile, load_model
from energybid.simulator.world.meters import Answer, Memory

HOUSE, BATTERY = "house", "battery"
PROFILES = {HOUSE: "kostal-ksem", BATTERY: device_profile("simulated-battery")}
QUANTITIES = {
    HOUSE: ["power-import", "power-export", "energy-import", "energy-export"],
    BATTERY: ["power", "energy-import", "energy-export", "state-of-charge"],
}
IMPORTS, EXPORTS = (Obis.parse(code).code for code in ("1-0:1.8.0", "1-0:2.8.0"))
BATTERY_TYPE = BatteryType(capacity_wh=5000, charge_w=2500, discharge_w=2500)
ASSET = {
    "kind": "battery",
    "name": BATTERY,
    "set": "battery/power",
    "power": "battery/power",
    "state": "battery/state-of-charge",
    "capacity": "5 kWh",
    "charge": "2500 W",
    "discharge": "2500 W",
    "charge_efficiency": 0.95,
    "discharge_efficiency": 0.95,
    "charge_wear": 2,
    "discharge_wear": 2,
}
"""As gateway.toml has it."""
_READ = Struct(">BHH")
EXCEPTION_FLAG = 0x80


class Follower:
    """What a battery does with the numbers that are written to it. Implements ``Controlled``."""

    def __init__(self, device: Device, now_s: Callable[[], float]) -> None:
        """Stand between the registers and the battery."""
        self.told = device.told
        self.on_write: Callable[[Fraction], None] = lambda _: None
        """Told of every number that is written."""
        self.deaf_until_s = 0.0
        """Until then numbers are taken and not followed."""
        self._device, self._now_s = device, now_s
        self.state = device.state
        self._missed: tuple[str, Fraction] | None = None

    def written(self, name: str, value: Fraction, at_ms: int) -> None:
        """Something was written."""
        self.on_write(value)
        if self._now_s() < self.deaf_until_s:
            self._missed = name, value
        else:
            self._missed = None
            self._device.written(name, value, at_ms)

    def hear(self, at_ms: int) -> None:
        """It follows again what was written last."""
        if self._missed is not None and self._now_s() >= self.deaf_until_s:
            name, value = self._missed
            self._missed = None
            self._device.written(name, value, at_ms)


class SiteMeter(Memory):
    """A device's registers, with a memory of what they said. Implements ``Device`` of a bus."""

    def __init__(self, loaded: LoadedProfile, meter: Meter, now_s: Callable[[], float]) -> None:
        """Remember what ``meter`` answers."""
        super().__init__()
        self._loaded, self._meter, self._now_s = loaded, meter, now_s
        self._found: dict[bytes, tuple[tuple[int, Register], ...]] = {}

    def respond(self, pdu: bytes, at_ms: int) -> bytes:
        """Answer a request."""
        answer = self._meter.respond(pdu, at_ms)
        if len(pdu) == _READ.size and not answer[0] & EXCEPTION_FLAG and pdu[0] == answer[0]:
            function, first, count = _READ.unpack(pdu)
            found = self._registers(pdu, function, first, count)
            if found:
                mantissas = tuple(
                    _mantissa(register, answer[2 + 2 * (register.first - first) :]) for _, register in found
                )
                places = tuple(register.first for _, register in found)
                self.remember(self._now_s(), Answer(function, first, count, places, mantissas))
        return answer

    def _registers(self, pdu: bytes, function: int, first: int, count: int) -> tuple[tuple[int, Register], ...]:
        found = self._found.get(pdu)
        if found is None:
            found = self._found[pdu] = tuple(
                (number, register)
                for number, register in enumerate(self._loaded.registers)
                if register.function == function and first <= register.first and register.end <= first + count
            )
        return found


def _mantissa(register: Register, data: bytes) -> int:
    raw: int = Struct(">" + TYPES[register.type].code).unpack_from(data)[0]
    return round(raw * register.factor)


class Site:
    """A house with a battery behind one connection."""

    def __init__(self, seed: str, begin_ms: int, now_s: Callable[[], float]) -> None:
        """Build it.

        Args:
            seed: Of the house's texture.
            begin_ms: Time of day at which it begins.
            now_s: Virtual time.
        """
        self._now_s = now_s
        battery = Battery(BATTERY_TYPE, begin_ms)
        self.connection = Connection(Household(seed, Household_(begin_ms=begin_ms, pv_peak_w=3000)), [battery])
        device = self.connection.device(battery)
        self.follower = Follower(device, now_s)
        self.loaded = {name: load_model(profile) for name, profile in PROFILES.items()}
        meters = {
            HOUSE: Meter(self.loaded[HOUSE], self.connection),
            BATTERY: Meter(self.loaded[BATTERY], self.follower, device=self.follower),
        }
        self.devices = {name: SiteMeter(self.loaded[name], meter, now_s) for name, meter in meters.items()}

    def replay_ms(self) -> int:
        """Moment of the site's own time."""
        at_ms = int(self._now_s() * 1000)
        self.follower.hear(at_ms)
        return at_ms

    def net_wh(self) -> float:
        """Imported less exported so far, as it truly is."""
        state = self.connection.state(self.replay_ms())
        return (sum(state.import_uj) - sum(state.export_uj)) / 3.6e9
