"""bus.toml: the model of the file that ``energybid simulate bus`` reads. Imported by commands only."""

import argparse
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from energybid.core.errors import ConfigurationError
from energybid.core.settings import Duration, Settings, read_toml
from energybid.simulator.config_assets import AssetModel
from energybid.simulator.faults import UNIT_MAX, Fault, FaultSource
from energybid.simulator.meters import load_model
from energybid.simulator.recorded import load_dump
from energybid.simulator.wiring import RIGHT, Wiring

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_DURATION = TypeAdapter[float](Duration)
Rate = Annotated[float, Field(ge=0, le=1)]
SERIAL_ONLY, TCP_ONLY = ("crc_error",), ("wrong_transaction", "overtaken")


def duration(text: str) -> float:
    """A duration on the command line, such as 30s or 3m, in seconds; a type for argparse."""
    minutes = re.sub(r"(\d) *m$", r"\1 min", text)
    try:
        return _DURATION.validate_python(minutes)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def _known_profile(name: str) -> str:
    try:
        load_model(name)
    except ConfigurationError as error:
        raise ValueError("; ".join(error.faults)) from None
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from None
    return name


def _known_dump(path: str) -> str:
    try:
        load_dump(path)
    except ConfigurationError as error:
        raise ValueError("; ".join(error.faults)) from None
    return path


class FaultsModel(Settings):
    """``faults``: share of exchanges that each fault befalls, 0 to 1."""

    no_reply: Rate = 0.0
    """1.0 is a dead meter."""
    exception: Rate = 0.0
    """Exception 4 in place of the answer."""
    wrong_unit: Rate = 0.0
    wrong_transaction: Rate = 0.0
    """Modbus TCP and UDP only."""
    wrong_length: Rate = 0.0
    """One register less than was asked for."""
    crc_error: Rate = 0.0
    """Serial lines only, behind gateways too."""
    half_frame: Rate = 0.0
    late: Rate = 0.0
    duplicate: Rate = 0.0
    garbage: Rate = 0.0
    """Some random bytes before the answer."""
    overtaken: Rate = 0.0
    """TCP only: held back for up to 0.3 s, so that answers to later requests come before it."""
    late_by: Duration = Field(1.5, ge=0, le=60)
    """How late a late answer is."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if sum(self.rates().values()) > 1:
            raise ValueError("the rates together are above 1")
        return self

    def rates(self) -> dict[Fault, float]:
        """Rate of each fault that can happen."""
        return {fault: rate for fault in Fault if (rate := getattr(self, fault.value)) > 0}

    def source(self, seed: str) -> FaultSource:
        """Where the faults come from."""
        return FaultSource(seed, self.rates(), self.late_by)


Phase = Annotated[int, Field(ge=1, le=3)]


class WiringModel(Settings):
    """``wiring``: what is wrong between the site and the meter; phases are 1 to 3."""

    reversed_ct: list[Phase] = Field(default_factory=list, max_length=3)
    """Current transformers that were put on the wrong way round."""
    swapped_ct: Annotated[list[Phase], Field(min_length=2, max_length=2)] | None = None
    """Two phases whose current transformers stand in each other's place; not with ``pv_peak_w``."""
    missing_voltage: list[Phase] = Field(default_factory=list, max_length=3)
    """Voltage inputs that are not connected."""
    missing_ct: list[Phase] = Field(default_factory=list, max_length=3)
    """Current transformers that are not connected."""

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.swapped_ct is not None and len(set(self.swapped_ct)) == 1:
            raise ValueError("swapped_ct: name two phases")
        return self

    def wiring(self) -> Wiring:
        """With phases from 0."""
        swapped = self.swapped_ct
        return Wiring(
            reversed_ct=tuple(phase - 1 for phase in self.reversed_ct),
            swapped_ct=None if swapped is None else (swapped[0] - 1, swapped[1] - 1),
            missing_voltage=tuple(phase - 1 for phase in self.missing_voltage),
            missing_ct=tuple(phase - 1 for phase in self.missing_ct),
        )


class MeterModel(Settings):
    """``[[bus.meter]]``: one meter and the site behind it."""

    name: Name
    """Unique in the file; texture and phases of its site follow from it and the seed."""
    unit: int = Field(ge=1, le=UNIT_MAX)
    profile: Annotated[str, AfterValidator(_known_profile)] | None = None
    """A profile's name (``energybid profile list``), the path of a TOML file, or models of a SunSpec device, such as
    ``sunspec:103+203``."""
    dump: Annotated[str, AfterValidator(_known_dump)] | None = None
    """In place of a profile: the path of a recorded meter (``energybid dump``); what it measures does not change."""
    asset: AssetModel | None = None
    """In place of a profile: a device whose power follows what is written to it, with registers of its own."""
    assets: list[Name] = Field(default_factory=list, max_length=64)
    """Names of devices of this file whose power this meter measures besides its household's."""
    reply_delay: Duration = Field(0.0, ge=0, le=10)
    """From the end of the request to the start of the answer."""
    load: float = Field(1.0, ge=0.001, le=10_000)
    """The household's consumption is multiplied by it; taken to the nearest thousandth."""
    pv_peak_w: int = Field(0, ge=0, le=10_000_000)
    """Peak of a photovoltaic plant behind the meter, W; at noon the site may export."""
    phases: Literal[1, 3] = 3
    begin: Duration = Field(0.0, ge=0)
    """Where in the recorded fortnight the replay begins."""
    serial_number: int | None = Field(None, ge=1, le=999_999_999)
    """What the meter says of itself; made up where it is not given."""
    wiring: WiringModel = WiringModel()
    faults: FaultsModel = FaultsModel()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.profile, self.dump, self.asset].count(None) != 2:  # noqa: PLR2004  one of the three
            raise ValueError("write one of profile, dump and asset")
        if self.assets and self.profile is None:
            raise ValueError("assets: only a meter with a profile measures devices")
        if self.assets and (self.wiring.wiring() != RIGHT or self.pv_peak_w):
            raise ValueError("assets: not simulated together with wiring or pv_peak_w; write an asset of kind pv")
        if self.wiring.swapped_ct and self.pv_peak_w:
            raise ValueError("wiring.swapped_ct: is not simulated together with pv_peak_w")
        return self


class _BusModel(Settings):
    name: Name
    speed: float | None = Field(None, gt=0, le=100_000)
    """In place of the file's."""
    meter: list[MeterModel] = Field(min_length=1, max_length=UNIT_MAX)
    faults: FaultsModel = FaultsModel()
    """Befall every meter of the bus, where its own faults do not."""


class _NetworkModel(_BusModel):
    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535)
    """0 lets the system choose; the readiness line tells."""


class _GatewayModel(_NetworkModel):
    unknown_unit: Literal["exception", "silence"] = "exception"
    """What the gateway does for units that are not there."""


class _LineModel(_BusModel):
    baudrate: int = Field(9600, ge=300, le=1_000_000)
    parity: Literal["N", "E", "O"] = "N"
    stop_bits: Literal[1, 2] = 1


class _PortModel(_LineModel):
    device: str = Field(min_length=1, max_length=4096)
    """Where the link to the pseudo-terminal is made; relative to the file. Replaced if it is there as a link."""


class TlsModel(Settings):
    """``tls``: files in PEM, relative to bus.toml."""

    certificate: str
    """The server's."""
    key: str | None = None
    """The certificate's; in the same file where it is not given."""
    ca: str | None = None
    """Who signs clients' certificates; without it clients need none."""


class TcpBusModel(_GatewayModel):
    """``[[bus]]`` with ``kind = "modbus-tcp"``."""

    kind: Literal["modbus-tcp"]
    tls: TlsModel | None = None
    """Modbus/TCP Security."""


class UdpBusModel(_GatewayModel):
    """``[[bus]]`` with ``kind = "modbus-udp"``."""

    kind: Literal["modbus-udp"]


class RtuTcpBusModel(_NetworkModel, _LineModel):
    """``[[bus]]`` with ``kind = "modbus-rtu-tcp"``: a serial line behind a gateway that hands its bytes on."""

    kind: Literal["modbus-rtu-tcp"]


class RtuBusModel(_PortModel):
    """``[[bus]]`` with ``kind = "modbus-rtu"``."""

    kind: Literal["modbus-rtu"]


class AsciiBusModel(_PortModel):
    """``[[bus]]`` with ``kind = "modbus-ascii"``."""

    kind: Literal["modbus-ascii"]
    parity: Literal["N", "E", "O"] = "E"
    data_bits: Literal[7, 8] = 7


AnyBusModel = TcpBusModel | UdpBusModel | RtuTcpBusModel | RtuBusModel | AsciiBusModel
BusModel = Annotated[AnyBusModel, Field(discriminator="kind")]


class BusFile(Settings):
    """All of bus.toml."""

    seed: int = 0
    """Everything that looks like chance follows from it."""
    speed: float = Field(1.0, gt=0, le=100_000)
    """Replayed seconds in a second; 60 replays an hour a minute."""
    bus: list[BusModel] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        faults = [
            f"{what} must be unique: {', '.join(twice)} stands more than once"
            for what, names in self._names()
            if (twice := sorted({name for name in names if names.count(name) > 1}))
        ]
        faults += [fault for number, bus in enumerate(self.bus) for fault in _misplaced(f"bus[{number}]", bus)]
        faults += self._asset_faults()
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _names(self) -> list[tuple[str, list[str]]]:
        return [
            ("bus names", [bus.name for bus in self.bus]),
            ("meter names", [meter.name for bus in self.bus for meter in bus.meter]),
            ("devices", [bus.device for bus in self.bus if isinstance(bus, _PortModel)]),
            *((f"units on bus {bus.name}", [str(meter.unit) for meter in bus.meter]) for bus in self.bus),
        ]

    def _asset_faults(self) -> list[str]:
        """Devices that are not there, or are measured by several meters, or by one of another speed."""
        speeds = {meter.name: bus.speed for bus in self.bus for meter in bus.meter if meter.asset}
        named = [(meter.name, name, bus.speed) for bus in self.bus for meter in bus.meter for name in meter.assets]
        names = [name for _, name, _ in named]
        return [
            *(f"meter {meter}.assets: {name} is no device here" for meter, name, _ in named if name not in speeds),
            *(f"{name}: several meters measure it" for name in sorted({n for n in names if names.count(n) > 1})),
            *(
                f"meter {meter}.assets: {name} is on a bus of another speed"
                for meter, name, speed in named
                if speeds.get(name, speed) != speed
            ),
        ]


def _misplaced(key: str, bus: AnyBusModel) -> list[str]:
    """Faults that can not happen on such a bus."""
    impossible = TCP_ONLY if isinstance(bus, _LineModel) else SERIAL_ONLY
    tables = {f"{key}.faults": bus.faults, **{f"{key}.meter[{n}].faults": m.faults for n, m in enumerate(bus.meter)}}
    return [
        f"{place}.{fault}: there is no such fault on {bus.kind}"
        for place, table in tables.items()
        for fault in impossible
        if getattr(table, fault) > 0
    ]


def load_bus_file(path: Path) -> BusFile:
    """Read bus.toml.

    Raises:
        ConfigurationError: Every fault in it.
    """
    return read_toml(path, BusFile, "write one as simulator/README.md shows")
