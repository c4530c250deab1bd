"""gateway.toml's ``[[bus]]``: the model of each kind of bus, and of the meters on it.

Imported where a file is checked only. What a bus is to the driver is an Endpoint (energybid.core.ports).
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from energybid.core.ports import Endpoint, Rs485, SerialEndpoint, TcpEndpoint, TlsSettings, UdpEndpoint
from energybid.core.settings import Duration, Settings
from energybid.drivers.target import MODBUS_PORT, SECURE_PORT, device_fault

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$", description="letters, digits, . _ -; at most 64")]
SERIAL_UNITS = range(1, 248)
"""Modbus over Serial Line V1.02 §2.2."""


class GroupModel(Settings):
    """``[[bus.meter.group]]``: quantities of a meter with an interval of their own.

    The meter's own ``interval`` is for its other quantities. Groups that fall due at the same moment are read with
    shared requests; each is a reading of its own.
    """

    interval: Duration = Field(ge=0, le=86400)
    """Polls are aligned to multiples of it in UTC."""
    quantities: list[str]
    """Names of the profile's quantities; none of them stands in another group."""


class MeterModel(Settings):
    """``[[bus.meter]]``: one meter."""

    name: Name
    """Unique on the gateway."""
    profile: str
    """A profile's name (``energybid profile list``) or the path of a TOML file; ``energybid profile sunspec`` makes one
    of a SunSpec device."""
    unit: int = Field(ge=0, le=255)
    """Its Modbus address: 1 to 247 on a serial line."""
    interval: Duration = Field(60.0, ge=0, le=86400)
    """Polls are aligned to multiples of it in UTC; "0 s" polls as fast as the bus goes."""
    timeout: Duration | None = Field(None, ge=0.01, le=60)
    """How long to wait for a reply; the profile's where it is not given."""
    retries: int = Field(2, ge=0, le=10)
    """Further tries after a lost or garbled reply."""
    max_registers: int | None = Field(None, ge=1, le=125)
    """Most registers in a request, where the way to the meter takes fewer than the profile says, such as a gateway with
    a small buffer."""
    quantities: list[str] | None = None
    """Names of the profile's quantities to read; where it is not given, all that are in no group."""
    group: list[GroupModel] = Field(default_factory=list, max_length=4)


class _BusModel(Settings):
    serial: ClassVar[bool] = False
    """Units stand on a serial line."""

    name: Name
    meter: list[MeterModel] = Field(min_length=1, max_length=255)
    lateness: Duration = Field(1.0, ge=0, le=60)
    """A reply that misses its time-out comes at most this much later."""

    @model_validator(mode="after")
    def _units(self) -> Self:
        wrong = [
            (n, meter.unit) for n, meter in enumerate(self.meter) if self.serial and meter.unit not in SERIAL_UNITS
        ]
        if wrong:
            faults = (f"meter[{n}].unit: units on a serial line are 1 to 247 (found {unit})" for n, unit in wrong)
            raise ValueError("; ".join(faults))
        return self


class _NetworkBusModel(_BusModel):
    host: str = Field(min_length=1, max_length=255)
    """Name or address of the meter or gateway."""
    pause: Duration = Field(0.0, ge=0, le=10)
    """Rest before each request, for gateways that lose what comes too soon."""


class TlsModel(Settings):
    """``[bus.tls]``, or ``tls = {}``: Modbus/TCP Security. Files are PEM, relative to the configuration file."""

    ca: str | None = None
    """Certificates to trust: the authority's, or the server's own; the system's authorities where it is not given."""
    certificate: str | None = None
    """The gateway's; the role in it says what the server lets it do."""
    key: str | None = None
    """The certificate's key, not encrypted; in the certificate's file where it is not given."""
    server_name: str | None = Field(None, min_length=1, max_length=255)
    """The name that the server's certificate bears, where that is not `host`."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.key and not self.certificate:
            raise ValueError("key: there is no certificate to which it belongs")
        return self

    def settings(self, base: Path) -> TlsSettings:
        """With paths that begin at ``base``."""
        ca, certificate, key = (name and str(base / name) for name in (self.ca, self.certificate, self.key))
        return TlsSettings(ca=ca, certificate=certificate, key=key, server_name=self.server_name)


class TcpBusModel(_NetworkBusModel):
    """``[[bus]]`` with ``kind = "modbus-tcp"``: a meter or gateway with Modbus TCP."""

    kind: Literal["modbus-tcp"]
    port: int = Field(MODBUS_PORT, ge=1, le=65535)
    """With `tls` 802 where it is not given."""
    in_flight: int = Field(1, ge=1, le=64)
    """Most requests under way at once; more than 1 only where the device is known to allow it."""
    tls: TlsModel | None = None

    def endpoint(self, base: Path = Path()) -> Endpoint:
        """Where the bus is; paths begin at ``base``."""
        port = SECURE_PORT if self.tls and "port" not in self.model_fields_set else self.port
        return TcpEndpoint(host=self.host, port=port, tls=self.tls.settings(base) if self.tls else None)


class UdpBusModel(_NetworkBusModel):
    """``[[bus]]`` with ``kind = "modbus-udp"``: a meter or gateway with Modbus over UDP."""

    kind: Literal["modbus-udp"]
    port: int = Field(MODBUS_PORT, ge=1, le=65535)
    in_flight: int = Field(1, ge=1, le=64)
    """Most requests under way at once; more than 1 only where the device is known to allow it."""

    def endpoint(self, base: Path = Path()) -> Endpoint:  # noqa: ARG002  as every bus has it
        """Where the bus is."""
        return UdpEndpoint(host=self.host, port=self.port)


class RtuTcpBusModel(_NetworkBusModel):
    """``[[bus]]`` with ``kind = "modbus-rtu-tcp"``: a serial line behind a gateway that hands its bytes on."""

    serial: ClassVar[bool] = True
    kind: Literal["modbus-rtu-tcp"]
    port: int = Field(ge=1, le=65535)
    baudrate: int = Field(9600, ge=300, le=1_000_000)
    """Of the line behind the gateway, as it is set there: frames take their time on it."""

    def endpoint(self, base: Path = Path()) -> Endpoint:  # noqa: ARG002  as every bus has it
        """Where the bus is."""
        return TcpEndpoint(host=self.host, port=self.port, baudrate=self.baudrate)


class Rs485Model(Settings):
    """``[bus.rs485]``, or ``rs485 = true``: the kernel switches the direction of a two-wire line by the RTS signal.

    For ports whose driver can do it, such as those on the board. Most USB adapters switch by themselves and need none.
    """

    rts_on_send: bool = True
    """RTS is on while sending and off else; false: the other way round."""
    delay_before_send: Duration = Field(0.0, ge=0, le=1)
    """In whole milliseconds."""
    delay_after_send: Duration = Field(0.0, ge=0, le=1)
    """In whole milliseconds."""
    receive_while_sending: bool = False

    def settings(self) -> Rs485:
        """For the endpoint."""
        return Rs485(
            rts_on_send=self.rts_on_send,
            delay_before_send_ms=round(self.delay_before_send * 1000),
            delay_after_send_ms=round(self.delay_after_send * 1000),
            receive_while_sending=self.receive_while_sending,
        )


def _switch(value: Any) -> Any:  # noqa: ANN401  what stands in a file
    return {True: {}, False: None}[value] if isinstance(value, bool) else value


def device_name(value: str) -> str:
    """The name of a serial port, as it is.

    Raises:
        ValueError: It can be none.
    """
    fault = device_fault(value)
    if fault:
        raise ValueError(fault)
    return value


class _SerialBusModel(_BusModel):
    serial: ClassVar[bool] = True
    device: Annotated[str, AfterValidator(device_name)] = Field(min_length=1, max_length=4096)
    """The serial port: best its name under /dev/serial/by-id/, or `usb:` and the adapter's USB serial number."""
    baudrate: int = Field(9600, ge=300, le=1_000_000)
    stop_bits: Literal[1, 2] = 1
    rs485: Annotated[Rs485Model | None, BeforeValidator(_switch)] = None

    def _line(self, parity: str, data_bits: int) -> SerialEndpoint:
        return SerialEndpoint(
            device=self.device,
            baudrate=self.baudrate,
            parity=parity,
            stop_bits=self.stop_bits,
            data_bits=data_bits,
            rs485=self.rs485.settings() if self.rs485 else None,
        )


class RtuBusModel(_SerialBusModel):
    """``[[bus]]`` with ``kind = "modbus-rtu"``: a serial line with Modbus RTU."""

    kind: Literal["modbus-rtu"]
    parity: Literal["N", "E", "O"] = "N"

    def endpoint(self, base: Path = Path()) -> Endpoint:  # noqa: ARG002  as every bus has it
        """Where the bus is."""
        return self._line(self.parity, 8)


class AsciiBusModel(_SerialBusModel):
    """``[[bus]]`` with ``kind = "modbus-ascii"``: a serial line with Modbus ASCII."""

    kind: Literal["modbus-ascii"]
    parity: Literal["N", "E", "O"] = "E"
    data_bits: Literal[7, 8] = 7

    def endpoint(self, base: Path = Path()) -> Endpoint:  # noqa: ARG002  as every bus has it
        """Where the bus is."""
        return self._line(self.parity, self.data_bits)


AnyBusModel = TcpBusModel | UdpBusModel | RtuTcpBusModel | RtuBusModel | AsciiBusModel
BusModel = Annotated[AnyBusModel, Field(discriminator="kind")]
