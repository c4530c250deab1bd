"""Recorded meters in a bus.toml, and lines that are heard at their own rate only."""

import asyncio
import os
import termios
from pathlib import Path

import pytest
from energybid.core.errors import ConfigurationError
from energybid.drivers.dump import Dump, Refused, Run, Span
from energybid.drivers.dump_file import encode
from energybid.drivers.modbus.framing import RtuRequests, mbap_frame, rtu_frame
from energybid.simulator.config import BusFile, load_bus_file
from energybid.simulator.serve import serve
from energybid.simulator.system import PtyTransport

DUMP = Dump(
    runs=[Run(Span(4, 10, 12), b"\x01\x02\x03\x04")],
    refused=[Refused(Span(4, 20, 21), 0)],
)
READ = b"\x04\x00\x0a\x00\x02"
ANSWER = b"\x04\x04\x01\x02\x03\x04"


def bus_file(tmp_path: Path, meter: str) -> BusFile:
    path = tmp_path / "bus.toml"
    path.write_text(f'[[bus]]\nname = "b"\nkind = "modbus-tcp"\n[[bus.meter]]\nname = "m"\nunit = 1\n{meter}')
    return load_bus_file(path)


async def test_a_recorded_meter_in_a_bus_toml_answers_and_is_silent_as_it_was(tmp_path: Path) -> None:
    recording = tmp_path / "recorded.toml"
    recording.write_text(encode(DUMP))
    async with serve(bus_file(tmp_path, f'dump = "{recording}"'), tmp_path) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.places[0].address["port"])
        async with asyncio.timeout(5):
            writer.write(mbap_frame(1, 1, b"\x04\x00\x14\x00\x01"))
            writer.write(mbap_frame(2, 1, READ))
            expected = mbap_frame(2, 1, ANSWER)
            assert await reader.readexactly(len(expected)) == expected
        writer.close()
        await writer.wait_closed()
        assert served.places[0].bus.counts == {"requests": 2, "no_reply": 1, "replies": 1}


@pytest.mark.parametrize(
    ("meter", "fault"),
    [
        ("", "write one of profile, dump and asset"),
        ('profile = "abb-b23"\ndump = "x.toml"', "x.toml"),
        ('dump = "none.toml"', "none.toml: No such file"),
    ],
)
def test_a_meter_has_one_source(tmp_path: Path, meter: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        bus_file(tmp_path, meter)


class Ear(asyncio.Protocol):
    """Keeps what is heard."""

    def __init__(self) -> None:
        self.heard = asyncio.Queue[bytes]()

    def data_received(self, data: bytes) -> None:
        self.heard.put_nowait(data)


async def test_a_line_is_heard_at_its_own_rate_only(tmp_path: Path) -> None:
    ear = Ear()
    line = PtyTransport(ear, tmp_path / "line.tty", baudrate=9600)
    port = os.open(tmp_path / "line.tty", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    request = rtu_frame(1, READ)
    try:
        for rate, clear in ((termios.B19200, False), (termios.B9600, True)):
            settings = termios.tcgetattr(port)
            settings[4:6] = rate, rate
            termios.tcsetattr(port, termios.TCSANOW, settings)
            os.write(port, request)
            async with asyncio.timeout(5):
                heard = await ear.heard.get()
            assert (heard == request) == clear
            assert bool(RtuRequests().feed(heard)) == clear
    finally:
        os.close(port)
        line.close()
