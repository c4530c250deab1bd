"""A serial line with meters in virtual time, exact to the character: what is on the wire when, and who listens."""

import asyncio
from collections.abc import Callable
from typing import Any

from energybid.core.ports import BusPlan, MeterPlan, SerialEndpoint
from energybid.drivers.modbus.framing import RtuRequests, rtu_frame
from energybid.drivers.modbus.timing import character_s, silence_s
from energybid.drivers.profile import compile_profile, parse_profile
from modbus_peers import Peer, Wire

Respond = Callable[[int, bytes], bytes]
"""Unit and PDU of a request → PDU of the reply; b"" for silence."""


def words(unit: int, pdu: bytes) -> bytes:
    """Each register holds its own address."""
    first, count = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
    registers = b"".join((first + i & 0xFFFF).to_bytes(2, "big") for i in range(count))
    return bytes((pdu[0], len(registers))) + registers


class Line(Peer):
    """Meters on a line. ``delay_s`` is from a request's last character to the reply's first."""

    def __init__(self, endpoint: SerialEndpoint, respond: Respond = words, delay_s: float = 0.02) -> None:
        super().__init__(lambda _: (), rtu=True)
        self.endpoint, self.respond, self.delay_s = endpoint, respond, delay_s
        self.rest_s: dict[int, float] = {}
        """Unit → silence that it needs before a request."""
        self.character_s, self.silence_s = character_s(endpoint), silence_s(endpoint)
        self.quiet_at = -1.0
        self.frames_s = 0.0
        """Time that frames and the meters' delays took."""
        self.exchanges = 0
        self.collisions = 0

    def receive(self, wire: Wire, data: Any) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.collisions += now < self.quiet_at - 1e-9
        rest_s = now - self.quiet_at
        self.quiet_at = now + len(data) * self.character_s
        (frame,) = RtuRequests().feed(data)
        self.requests.append(frame)
        self.asked_at.append(now)
        if rest_s < self.rest_s.get(frame.unit, self.silence_s) - 1e-9:
            return
        pdu = self.respond(frame.unit, frame.pdu)
        if not pdu:
            return
        reply = rtu_frame(frame.unit, pdu)
        self.quiet_at += self.delay_s + len(reply) * self.character_s
        self.frames_s += self.quiet_at - now
        self.exchanges += 1
        loop.call_at(self.quiet_at, wire.deliver, reply)


def profile(quantities: int, *, registers: int = 125, kind: str = "float32") -> bytes:
    """A meter with so many float32 quantities one behind the other."""
    rows = "".join(
        f'  {{ name = "q{i}", obis = "1-{i // 250}:{i % 250 + 1}.7.0", register = {2 * i}, unit = "W", '
        'resolution = "1" },\n'
        for i in range(quantities)
    )
    return f"""
manufacturer = "Test"
model = "Long"
source = [{{ title = "this test" }}]
max_registers = {registers}
baudrates = [9600]
parities = ["N"]
timeout = "500 ms"
defaults = {{ table = "input", type = "{kind}" }}
block = [{{ table = "input", first = 0, count = 1000 }}]
quantity = [
{rows}]
""".encode()


def line_plan(
    endpoint: SerialEndpoint, units: range, text: bytes, *, interval_s: float = 0.0, **changes: Any
) -> BusPlan:
    loaded = parse_profile("long", text, source="long.toml")
    groups, compiled = compile_profile(loaded, interval_s=interval_s)
    settings: dict[str, Any] = {
        "timeout_s": 0.5,
        "retries": 2,
        "profile": "long",
        "profile_hash": loaded.sha256,
    } | changes
    meters = tuple(MeterPlan(name=f"m{unit}", unit=unit, groups=groups, map=compiled, **settings) for unit in units)
    return BusPlan(name="line", kind="modbus-rtu", endpoint=endpoint, meters=meters)
