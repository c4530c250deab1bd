"""A site's connection to the grid: what a household takes and what its devices take, as one meter there sees it.

Here lives the sum, exact: import and export are the integrals of the sum's positive and negative part, in µJ, split
wherever the power changes (each second of the household, each event of a device). A state is a function of replay time
and of what was written when. No registers, no clock, no I/O.
"""

from collections.abc import Sequence
from fractions import Fraction

from energybid.simulator.assets import Asset
from energybid.simulator.household import (
    NOMINAL_MHZ,
    NOMINAL_MV,
    PHASES,
    UJ_PER_WH,
    Household,
    State,
    Three,
    divide,
)

REACTIVE, APPARENT = 32, 105
"""Percent of the active power, where devices are seen together with the rest: a power factor of 0.95."""
SECOND_MS = 1000


class Connection:
    """A household with devices behind it; all of their time passes together."""

    def __init__(self, household: Household | None, assets: Sequence[Asset] = (), *, import_wh: int = 0) -> None:
        """Couple them.

        Args:
            household: What is there besides the devices, if anything is.
            assets: The devices.
            import_wh: What the connection's meter had counted before the replay, Wh.
        """
        self._household = household
        self._assets = list(assets)
        self._begins = [asset.at_ms for asset in assets]
        self._at_ms = 0
        self._import_uj = import_wh * UJ_PER_WH
        self._export_uj = 0

    def run_to(self, at_ms: int) -> None:
        """Let time pass, to a moment of the replay in ms; one that is over already changes nothing."""
        while self._at_ms < at_ms:
            flows = [asset.flow() for asset in self._assets]
            ms = min([at_ms - self._at_ms, *(flow.hold_ms for flow in flows)])
            if self._household is not None:
                ms = min(ms, self._household.left_in_block_ms(self._at_ms))
            self._count(sum(flow.power_mw for flow in flows), ms)
            for asset, flow in zip(self._assets, flows, strict=True):
                asset.pass_time(flow.power_mw, ms)
            self._at_ms += ms

    def _count(self, devices_mw: int, ms: int) -> None:
        """Add the energy of a time in which the devices' power does not change."""
        if self._household is None:
            self._add(devices_mw * ms)
            return
        block = self._household.net(self._at_ms)
        begins = block.within_ms
        if block.least_mw + devices_mw >= 0 or block.most_mw + devices_mw <= 0:
            self._add(block.energy_uj(begins, begins + ms) + devices_mw * ms)
            return
        end = begins + ms
        while begins < end:
            until = min(end, begins - begins % SECOND_MS + SECOND_MS)
            self._add(block.energy_uj(begins, until) + devices_mw * (until - begins))
            begins = until

    def _add(self, energy_uj: int) -> None:
        self._import_uj += max(0, energy_uj)
        self._export_uj += max(0, -energy_uj)

    # ------------------------------------------------------------ what is seen

    def state(self, at_ms: int) -> State:
        """What the meter at the connection sees."""
        self.run_to(at_ms)
        devices_mw = sum(asset.flow().power_mw for asset in self._assets)
        household = self._household
        net_mw = devices_mw + (household.net(self._at_ms).power_mw if household else 0)
        shares = household.shares if household else [1] * PHASES
        power = _signed(net_mw, shares)
        moved = self._import_uj + self._export_uj
        return State(
            power_mw=power,
            reactive_mvar=_each(power, REACTIVE),
            apparent_mva=_each(power, APPARENT),
            voltage_mv=self._voltage(power),
            frequency_mhz=household.frequency_mhz(self._at_ms) if household else NOMINAL_MHZ,
            import_uj=_shared(self._import_uj, shares),
            export_uj=_shared(self._export_uj, shares),
            reactive_uj=_shared(moved * REACTIVE // 100, shares),
            apparent_uj=_shared(moved * APPARENT // 100, shares),
        )

    def _voltage(self, power: Three) -> Three:
        if self._household is None:
            return NOMINAL_MV, NOMINAL_MV, NOMINAL_MV
        return self._household.voltage_mv(self._at_ms, power)

    def device(self, asset: Asset) -> "Device":
        """One of its devices, as its own meter sees it."""
        return Device(self, asset, self._begins[self._assets.index(asset)])

    def device_state(self, asset: Asset, at_ms: int) -> State:
        """What a device's own meter sees."""
        self.run_to(at_ms)
        shares = [1] * PHASES if asset.phases == PHASES else [1, 0, 0]
        power = _signed(asset.flow().power_mw, shares)
        taken, given = (_shared(energy, shares) for energy in (asset.taken_uj, asset.given_uj))
        return State(
            power_mw=power,
            reactive_mvar=(0, 0, 0),
            apparent_mva=_each(power, 100),
            voltage_mv=self._voltage((0, 0, 0)),
            frequency_mhz=NOMINAL_MHZ,
            import_uj=taken,
            export_uj=given,
            reactive_uj=(0, 0, 0),
            apparent_uj=_shared(asset.taken_uj + asset.given_uj, shares),
            told=asset.says,
        )


class Device:
    """A device at its connection: what a meter measures, and what can be written to it."""

    def __init__(self, connection: Connection, asset: Asset, begin_ms: int) -> None:
        """Keep them together."""
        self._connection = connection
        self._asset = asset
        self._begin_ms = begin_ms
        self.told = asset.told
        self.profile = asset.profile

    def state(self, at_ms: int) -> State:
        """What its own meter sees at a moment of the replay."""
        return self._connection.device_state(self._asset, at_ms)

    def written(self, name: str, value: Fraction, at_ms: int) -> None:
        """Something was written to it."""
        if name == self._asset.writable:
            self._connection.run_to(at_ms)
            self._asset.write(value, self._begin_ms + at_ms)


def _signed(power_mw: int, shares: Sequence[int]) -> Three:
    """Power by phase; every phase has the sign of the whole."""
    a, b, c = divide(abs(power_mw), shares)
    return (a, b, c) if power_mw >= 0 else (-a, -b, -c)


def _shared(energy_uj: int, shares: Sequence[int]) -> Three:
    """Energy by phase."""
    a, b, c = divide(energy_uj, shares)
    return a, b, c


def _each(power: Three, percent: int) -> Three:
    a, b, c = (abs(phase) * percent // 100 for phase in power)
    return a, b, c
