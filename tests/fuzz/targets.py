"""What is fuzzed: every parser that takes bytes from outside, each as a function of bytes.

A target passes over the exceptions that its parser declares; anything else that comes out of it is a finding, and so
are its own asserts: buffers stay bounded, and what is read can be written again where the format promises that.
Seeds are valid inputs, from which the search begins.
"""

import json
import math
import struct
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from energybid.agent.config import GatewayFile, _Planner
from energybid.agent.market.book import PriceBook
from energybid.agent.rounds import RefusedMessageError, Rounds
from energybid.bidding import baseline_rules
from energybid.core import cbor, cose, disclosure, entries, evidence
from energybid.core.errors import ConfigurationError, EvidenceError, GarbledError
from energybid.core.quantities import Obis
from energybid.core.settings import parse_duration, parse_toml
from energybid.drivers import dump_file, scan_report, scan_state
from energybid.drivers.dump import Dump, Run, Span
from energybid.drivers.modbus import objects
from energybid.drivers.modbus.ascii import ASCII_MAX, AsciiReplies, AsciiRequests, ascii_frame
from energybid.drivers.modbus.decode import group_decoder
from energybid.drivers.modbus.exchange import Asked
from energybid.drivers.modbus.framing import (
    RTU_MAX,
    MbapFramer,
    RtuReplies,
    RtuRequests,
    crc16,
    mbap_frame,
    rtu_frame,
)
from energybid.drivers.modbus.learned import Learned, Patience, Turnaround
from energybid.drivers.modbus.listen import HEARD_MAX, RtuListener
from energybid.drivers.modbus.proxy import rules
from energybid.drivers.modbus.proxy.plan import Allowed
from energybid.drivers.modbus.udp import whole
from energybid.drivers.profile import compile_profile, load_profile, parse_profile
from energybid.drivers.scan import Found, State
from energybid.drivers.sunspec.device import read_device
from energybid.drivers.sunspec.profile import profile_text
from energybid.drivers.target import parse_target
from energybid.headend.config import HeadendFile
from energybid.simulator.config import BusFile
from energybid.simulator.household import Household
from energybid.simulator.meters import Meter
from energybid.simulator.recorded import Recorded
from energybid.simulator.world.scenario import Scenario
from energybid.sync import batch, bundle, columns, logged, market, recompute, topics

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
PROFILES = ROOT / "drivers" / "energybid" / "drivers" / "profiles"

READ = struct.pack(">BHH", 4, 0, 6)
REPLY = b"\x04\x0c" + struct.pack(">3f", 230.1, 231.2, 229.9)
IDENTIFICATION = objects.reply({0: "Example", 1: "EX-3", 2: "1.0"})
FRAME_BUFFER_MAX = 600
"""Bytes that a framer may keep: its longest frame and what may come with it."""


class Target(NamedTuple):
    """One parser."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


# ---------------------------------------------------------------- Modbus


def _pieces(data: bytes) -> list[bytes]:
    """The stream in the pieces that its first byte says: framers must not care."""
    size = data[0] % 40 + 1 if data else 1
    return [data[at : at + size] for at in range(1, len(data), size)]


def _fed(framer, data: bytes, limit: int = FRAME_BUFFER_MAX) -> list:
    events = []
    for piece in _pieces(data):
        events += framer.feed(piece)
        assert len(framer._buffer) <= limit, f"{len(framer._buffer)} bytes are kept"
    return events


def rtu_replies(data: bytes) -> None:
    framer = RtuReplies()
    framer.expect(1, b"\x04\x0c", len(REPLY))
    for frame in _fed(framer, data):
        assert frame.unit == 1
        assert frame.pdu[0] & 0x7F == 4


def rtu_requests(data: bytes) -> None:
    for frame in _fed(RtuRequests(), data, RTU_MAX):
        assert crc16(rtu_frame(frame.unit, frame.pdu)) == 0


def rtu_listener(data: bytes) -> None:
    listener = RtuListener()
    listener.expect(1, READ)
    _fed(listener, data, HEARD_MAX)
    assert listener.noise >= 0


def ascii_replies(data: bytes) -> None:
    framer = AsciiReplies()
    framer.expect(1, b"\x04\x0c", len(REPLY))
    _fed(framer, data, ASCII_MAX)


def ascii_requests(data: bytes) -> None:
    for frame in _fed(AsciiRequests(), data, ASCII_MAX):
        assert AsciiRequests().feed(ascii_frame(frame.unit, frame.pdu)) == [frame]


def mbap(data: bytes) -> None:
    framer = MbapFramer()
    _fed(framer, data)


def udp(data: bytes) -> None:
    if whole(data):
        framer = MbapFramer()
        framer.feed(data)
        assert not framer._buffer


_MODELS = [load_profile(name) for name in ("eastron-sdm630", "abb-b23", "carlo-gavazzi-em340")]
_GROUPS = [groups for loaded in _MODELS for groups in (compile_profile(loaded, interval_s=1)[1].groups,)]
_REQUESTS = [requests for groups in _GROUPS for requests in groups]
_ASKED = [[Asked(1, request) for request in requests] for requests in _REQUESTS]
_DECODERS = [group_decoder(requests) for requests in _REQUESTS]


def pdu(data: bytes) -> None:
    """The replies to a whole group: which model, then for each request a length and so many bytes.

    As many as the registers have are taken for these; else they are the whole reply.
    """
    at, which = 1, (data[0] if data else 0) % len(_ASKED)
    outcomes: list[bytes | int] = []
    for asked in _ASKED[which]:
        size = data[at] if at < len(data) else 0
        reply = data[at + 1 : at + 1 + size]
        at += 1 + size
        outcome = asked.outcome(1, asked.head + reply if len(reply) == 2 * asked.request.count else reply or b"\0")
        outcomes.append(outcome if isinstance(outcome, bytes) else 1)
    values, status = _DECODERS[which](outcomes)
    assert all(value is None or -(1 << 63) <= value < 1 << 63 for value in values)
    assert status is None or all((value is None) == (0 < mark < 16) for value, mark in zip(values, status, strict=True))


def _group_seed(which: int) -> bytes:
    return bytes((which,)) + b"".join(bytes((2 * a.request.count,)) + bytes(2 * a.request.count) for a in _ASKED[which])


def device_identification(data: bytes) -> None:
    walk = objects.Walk()
    for at in range(0, len(data), 64):
        if walk.next_request is None:
            break
        with suppress(GarbledError):
            walk.feed(data[at : at + 64] if len(data) > 64 else data)
    objects.names(walk.objects)
    objects.reply_size(data)


_METER = Meter(_MODELS[0], Household("fuzz"))
_DUMP = Dump(
    manufacturer="Example",
    model="EX-3",
    hardware="1",
    firmware="2",
    max_registers=20,
    runs=[Run(Span(4, 0, 4), bytes(range(8)))],
)


def request_pdu(data: bytes) -> None:
    """What a master may send to a simulated meter."""
    if data:
        for device in (_METER, Recorded(_DUMP)):
            assert len(device.respond(data[:253], 0)) <= 253


_ALLOWED = (Allowed(unit=1, table="holding", first=10, count=10), Allowed(unit=1, table="coil", first=0, count=4))


def proxy_request(data: bytes) -> None:
    """What a master may send to the proxy."""
    if not data:
        return
    wish = rules.wanted(data[:253])
    if isinstance(wish, int):
        assert rules.refusal(data, wish) == bytes((data[0] | 0x80, wish))
        return
    assert wish.first + wish.size <= 65_536
    if wish.function in rules.TABLES:
        rules.may_write(_ALLOWED, 1, wish)
    head, size = rules.reply_shape(data[:253])
    assert len(head) <= size <= 253


SUNSPEC_AT = 40_000


def sunspec_chain(data: bytes) -> None:
    """Whatever a device holds behind the marker: it is read, and what is understood of it makes a valid profile."""
    image = b"SunS" + data
    reads = 0

    async def read(first: int, count: int) -> bytes | None:
        nonlocal reads
        reads += 1
        assert reads < 1000, "a walk without end"
        assert 1 <= count <= 125
        at = 2 * (first - SUNSPEC_AT)
        registers = image[at : at + 2 * count] if at >= 0 else b""
        return registers if len(registers) == 2 * count else None

    try:
        read_device(read).send(None)
    except StopIteration as done:
        device = done.value
    if device is not None:
        with suppress(ValueError):  # nothing in it that could be polled
            text = profile_text(device)
            compile_profile(parse_profile("fuzz", text.encode(), source="fuzz.toml"), interval_s=1)


def _model(number: int, *words: int) -> bytes:
    return struct.pack(f">{len(words) + 2}H", number, len(words), *words)


_METER_203 = _model(203, *range(105))
_END = b"\xff\xff\x00\x00"
_SUNSPEC = (_model(1, *[0x4142] * 66) + _METER_203 + _END, _model(1, *[0] * 65) + _model(160, *range(48)) + _END)


# ---------------------------------------------------------------- files


def profile(data: bytes) -> None:
    with suppress(ConfigurationError):
        loaded = parse_profile("fuzz", data, source="fuzz.toml")
        compile_profile(loaded, interval_s=1)


def gateway(data: bytes) -> None:
    with suppress(ConfigurationError):
        path = Path("/nonexistent/gateway.toml")
        _Planner(path, data, parse_toml("gateway.toml", data, GatewayFile)).plan()


def bus(data: bytes) -> None:
    with suppress(ConfigurationError):
        parse_toml("bus.toml", data, BusFile)


def headend(data: bytes) -> None:
    with suppress(ConfigurationError):
        parse_toml("headend.toml", data, HeadendFile)


def scenario(data: bytes) -> None:
    with suppress(ConfigurationError):
        parse_toml("scenario.toml", data, Scenario)


def programme(data: bytes) -> None:
    """A demand-response programme's rules, which travel in the bundles that anybody settles again."""
    with suppress(ValueError):
        baseline_rules.parse(data)


def dump(data: bytes) -> None:
    with suppress(ConfigurationError):
        read = dump_file.parse("dump.toml", data)
        assert dump_file.parse("dump.toml", dump_file.encode(read).encode()) == read
        Recorded(read).respond(READ, 0)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def scan_file(data: bytes) -> None:
    with suppress(ConfigurationError):
        state = scan_state.decode("scan.json", "tcp://meter", _text(data))
        again = scan_state.encode("tcp://meter", state)
        scan_state.decode("scan.json", "tcp://meter", again)


def existing_configuration(data: bytes) -> None:
    """The file that ``energybid scan --write`` adds to."""
    with suppress(ConfigurationError):
        scan_report._taken(_text(data))


def learned(data: bytes) -> None:
    """What the journal keeps of a meter for the next start."""
    known = Learned(Patience(1.0, 0.1), Turnaround())
    try:
        known.take(json.loads(data), 10.0, 1_767_225_600_000)
    except ValueError:
        return
    json.dumps(known.shown(10.0), allow_nan=False)
    for refusal in known.refused.values():
        refusal.put_off(10.0)
    known.take(known.plain(10.0, 1_767_225_600_000) or {}, 10.0, 1_767_225_600_000)
    assert math.isfinite(known.patience.timeout_s)


def words(data: bytes) -> None:
    """What people write on a command line or in a key."""
    for parse in (parse_target, parse_duration, Obis.parse, scan_state.parse_units):
        with suppress(ValueError, ConfigurationError):
            parse(_text(data))


def pem(data: bytes) -> None:
    for kind in (cose.PublicKey, cose.PrivateKey):
        with suppress(ValueError, ConfigurationError):
            kind.from_pem(data)


# ---------------------------------------------------------------- evidence


def cbor_item(data: bytes) -> None:
    with suppress(EvidenceError):
        assert cbor.encode(cbor.decode(data)) == data


def entry(data: bytes) -> None:
    with suppress(EvidenceError):
        entries.parse(data)


def cose_message(data: bytes) -> None:
    with suppress(EvidenceError):
        kid, payload = cose.peek(data)
        assert kid in data
        assert payload in data


def payloads(data: bytes) -> None:
    """Receipts and checkpoints, as if their signatures held."""
    for parse in (evidence.parse_receipt, evidence.parse_checkpoint):
        with suppress(EvidenceError):
            assert parse(data).payload() == data


def proof(data: bytes) -> None:
    with suppress(EvidenceError):
        read = disclosure.parse_proof(data)
        if isinstance(read, disclosure.ReadingProof):
            disclosure.verify_reading(read, _key_for)
        elif isinstance(read, disclosure.EntryProof):
            disclosure.verify_entry(read, _key_for)
        else:
            disclosure.verify_continuation(read, _key_for)


def settlement(data: bytes) -> None:
    """An evidence bundle, or the inputs in it; whoever signed it."""
    with suppress(EvidenceError):
        assert bundle.parse_bundle(data).encode() == data
        recompute.rehearse(data)
    with suppress(EvidenceError):
        assert bundle.parse_inputs(data).encode() == data


def _settlement_seeds() -> tuple[bytes, ...]:
    data = bytes.fromhex(json.loads((GOLDEN / "settlement.json").read_text())["bundle"])
    return data, bundle.parse_bundle(data).inputs


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text[2:-1])


def _golden(pattern: str, key: str) -> tuple[bytes, ...]:
    found = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob(pattern))]
    return tuple(_unhex(golden[key]) for golden in found if key in golden)


_KEYS = {
    key.kid: key.public
    for algorithm in (cose.EDDSA, cose.ES256)
    for key in (cose.PrivateKey.from_entropy(bytes(range(48)), algorithm),)
}
"""The golden files' log keys."""


def _key_for(kid: bytes) -> cose.PublicKey | None:
    return _KEYS.get(kid)


def columns_bytes(data: bytes) -> None:
    with suppress(EvidenceError):
        columns.decode(data, limit=4096)


def deflate(data: bytes) -> None:
    with suppress(EvidenceError):
        raw = columns.unpack(data[0] if data else 0, data[1:], limit=1 << 16)
        assert len(raw) <= 1 << 16


def frame(data: bytes) -> None:
    """A batch; the digest at its end is put right, for else nothing behind it would ever be reached."""
    body = b"\x01" + data
    with suppress(EvidenceError):
        read = batch.decode_batch(body + batch._digest(body))
        batch.replay(read, origin="acme/gw-7", frontier=None, key_for=_key_for)


def _frame_seeds() -> tuple[bytes, ...]:
    return tuple(frame[1 : -batch.DIGEST_SIZE] for frame in _golden("batch-*.json", "frame"))


def topic(data: bytes) -> None:
    found = topics.parse(_text(data))
    if found:
        tenant, name, kind = found
        known = topics.topics_for(tenant, name) + topics.market_topics(f"{tenant}/{name}")
        assert _text(data) in known
        assert _text(data).endswith(f"/{kind}")


def market_message(data: bytes) -> None:
    with suppress(EvidenceError):
        kind = market.kind_of(data)
        message = market.parse(kind, data)
        assert market.payload(message) == data
        if isinstance(message, market.Bid):
            assert message.curve.floor_w == message.floor_w


_MARKET_KEY = cose.PublicKey.from_pem(_golden("market-round.json", "key")[0])
_ANNOUNCED = _golden("market-round.json", "message")[0]
_MADE_MS = market.told(market.Round, _ANNOUNCED).time_ms


def market_signed(data: bytes) -> None:
    """On every topic of a market's at once: only what the market signed may count."""
    rounds, book = Rounds("acme/flex", "acme/gw-7", _MARKET_KEY), PriceBook("acme/flex", _MARKET_KEY)
    for take in (
        lambda: rounds.announced(data, _MADE_MS),
        lambda: rounds.awarded(data, _MADE_MS),
        lambda: rounds.stated(data),
        lambda: book.take(data, _MADE_MS),
    ):
        with suppress(RefusedMessageError):
            take()
            assert data in _golden("market-*.json", "message")


def logged_message(data: bytes) -> None:
    """What a log may hold as a market's message, in words: the first byte is its kind, the second the reason."""
    entry = entries.MarketMessage(data[0] if data else 0, data[1] if data[1:] else 0, data[2:4098], 0, 0, 0, 0, 0)
    teller = logged.Teller()
    teller.facts(entries.MarketMessage(entries.MarketKind.ROUND, 0, _ANNOUNCED, 0, 0, 0, 0, 0))
    facts = teller.facts(entry)
    assert list(facts) == ["kind", "reason", "missed", "bytes", *logged.COLUMNS]
    json.dumps(facts)
    with suppress(EvidenceError):
        logged.checked(entry, {_MARKET_KEY.kid: _MARKET_KEY})


def _toml(name: str) -> bytes:
    return (PROFILES / f"{name}.toml").read_bytes()


def _in_readme(path: str, number: int) -> bytes:
    return (ROOT / path).read_text().split("```toml\n")[number].split("```")[0].encode()


_GATEWAY = b"""
[gateway]
tenant = "demo"
id = "gw-7"
[keys]
log = "log.pem"
headend = "headend.pem"
[journal]
path = "journal.db"
commit_interval = "5 s"
[uplink]
url = "mqtts://broker.example:8883"
batch_interval = "10 s"
[[bus]]
name = "hall"
kind = "modbus-tcp"
host = "192.0.2.10"
[[bus.meter]]
name = "main"
profile = "abb-b23"
unit = 1
interval = "1 s"
[[bus]]
name = "cellar"
kind = "modbus-rtu"
device = "usb:FT1234"
baudrate = 9600
[[bus.meter]]
name = "pump"
profile = "eastron-sdm630"
unit = 2
interval = "5 s"
"""
_BIDDING = (
    _GATEWAY
    + b"""
[[bus.meter]]
name = "box"
profile = "heidelberg-energy-control"
unit = 3
[market]
name = "demo/power"
key = "market.pub.pem"
bids = "bids.pem"
meter = "main"
import_limit = "17 kW"
export_limit = "500 W"
timezone = "Europe/Berlin"
[[market.asset]]
name = "car"
kind = "ev"
set = "box/current-limit"
phases = 3
power = "box/apparent-power"
plugged = "box/charging-state"
plugged_values = [4, 5, 6, 7]
charged = "box/apparent-energy"
least = "4140 W"
most = "11.04 kW"
wanted = "20 kWh"
shortage_price = 400.0
departure = "07:00"
"""
)
_HEADEND = b"""
[headend]
database = "headend.db"
key = "headend.pem"
session = "7 d"
[uplink]
url = "mqtts://broker.example:8883"
[[gateway]]
tenant = "acme"
id = "gw-7"
keys = ["log.pub.pem"]
"""
_SCENARIO = b"""
interval = "10 s"
commit_interval = "10 s"
batch_interval = "60 s"
tcp_meters = 6
serial_meters = 4
quantities = 6
"""
_SCAN = scan_state.encode(
    "tcp://meter",
    State(asked={"9600 8N1": {"read": {1, 2, 3}}}, found=[Found(setting="9600 8N1", unit=3, delay_s=0.03)]),
)
_LEARNED = {
    "format": 1,
    "delays": [[40, 100], [60, 3]],
    "turnaround_us": 2000,
    "refused": [[4, 10, 2, 1, 1_767_225_700_000]],
}
_CODES = (REPLY, b"\x84\x02", IDENTIFICATION)

TARGETS: dict[str, Target] = {
    "rtu-replies": Target(rtu_replies, tuple(b"\x05" + rtu_frame(1, code) for code in _CODES)),
    "rtu-requests": Target(rtu_requests, (b"\x05" + rtu_frame(1, READ), b"\x27" + rtu_frame(9, b"\x2b\x0e\x01\x00"))),
    "rtu-listener": Target(rtu_listener, tuple(b"\x05" + rtu_frame(1, code) for code in (READ, *_CODES))),
    "ascii-replies": Target(ascii_replies, tuple(b"\x05" + ascii_frame(1, code) for code in _CODES)),
    "ascii-requests": Target(ascii_requests, (b"\x05" + ascii_frame(1, READ),)),
    "mbap": Target(mbap, tuple(b"\x05" + mbap_frame(7, 1, code) for code in (READ, *_CODES))),
    "udp": Target(udp, (mbap_frame(7, 1, READ), 2 * mbap_frame(7, 1, REPLY))),
    "pdu": Target(pdu, tuple(map(_group_seed, range(len(_ASKED))))),
    "request-pdu": Target(request_pdu, (READ, b"\x2b\x0e\x01\x00", b"\x10\x00\x00\x00\x02\x04\x00\x00\x00\x00")),
    "device-identification": Target(device_identification, (IDENTIFICATION,)),
    "proxy-request": Target(proxy_request, (READ, b"\x06\x00\x0a\x00\x01", b"\x0f\x00\x00\x00\x0a\x02\xff\x03")),
    "sunspec-chain": Target(sunspec_chain, _SUNSPEC),
    "profile": Target(profile, tuple(map(_toml, ("eastron-sdm630", "abb-b23", "schneider-iem3155")))),
    "gateway": Target(gateway, (_GATEWAY, _BIDDING, _in_readme("docs/assets.md", 1))),
    "bus": Target(bus, (_in_readme("simulator/README.md", 1),)),
    "headend": Target(headend, (_HEADEND,)),
    "scenario": Target(scenario, (_SCENARIO,)),
    "programme": Target(programme, tuple(map(baseline_rules.text_of, baseline_rules.names()))),
    "dump": Target(dump, (dump_file.encode(_DUMP).encode(),)),
    "scan-state": Target(scan_file, (_SCAN.encode(),)),
    "scan-existing": Target(existing_configuration, (_GATEWAY,)),
    "learned": Target(learned, (json.dumps(_LEARNED).encode(),)),
    "words": Target(words, (b"tcp://host:502", b"/dev/ttyUSB0", b"usb:FT1#1", b"250 ms", b"1-0:1.8.0", b"1-32,247")),
    "pem": Target(pem, tuple(key.pem() for key in _KEYS.values())),
    "cbor": Target(cbor_item, _golden("entry-*.json", "canonical")),
    "entry": Target(entry, _golden("entry-*.json", "canonical")),
    "cose": Target(cose_message, _golden("receipt-*.json", "message") + _golden("checkpoint-*.json", "message")),
    "receipt": Target(payloads, _golden("receipt-*.json", "payload") + _golden("checkpoint-*.json", "payload")),
    "proof": Target(proof, _golden("proof-*.json", "file")),
    "settlement": Target(settlement, _settlement_seeds()),
    "columns": Target(columns_bytes, _golden("batch-*.json", "columns")),
    "deflate": Target(deflate, tuple(bytes((m,)) + d for m, d in (columns.pack(bytes(500)), columns.pack(READ)))),
    "batch": Target(frame, _frame_seeds()),
    "topic": Target(topic, (b"energybid/1/acme/gw-7/log", b"energybid/1/acme/gw-7/receipt")),
    "market": Target(market_message, _golden("market-*.json", "payload")),
    "market-signed": Target(market_signed, _golden("market-*.json", "message")),
    "market-logged": Target(
        logged_message,
        tuple(
            bytes((getattr(entries.MarketKind, name.upper()), 0)) + _golden(f"market-{name}.json", "message")[0]
            for name in ("round", "bid", "award", "confirmation", "statement", "prices")
        ),
    ),
}


def name_of(target: str, data: bytes) -> str:
    """The file's name under ``found/`` for an input."""
    return f"{target}.{sha256(data).hexdigest()[:12]}"
