"""Scans of simulated buses in virtual time: who is found, how fast, with how many requests."""

import asyncio
import json
import struct
from collections import Counter
from typing import Any

import pytest
from energybid.core.errors import BusDownError, ConfigurationError
from energybid.drivers.identify import Candidate, Identity
from energybid.drivers.live import Wanted, read_values
from energybid.drivers.modbus import objects
from energybid.drivers.probe import Prober
from energybid.drivers.scan import UNITS, Found, Scanner, Search, Setting, State, line_setting
from energybid.drivers.scan_state import decode, encode, parse_units, units_text
from energybid.drivers.target import parse_target
from energybid.simulator.bus import Bus
from energybid.simulator.virtual import run
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_bench import DEVICE, MODELS, NETWORK, Bench, EveryUnit, Notes, bench, line, meter, profiles, scripted

LINE_9600 = line([9600], ["N"])


def scan(
    rig: Bench, where: list[Setting] = LINE_9600, units: Any = range(1, 33), *, thorough: bool = False, **more: Any
) -> State:
    """The state after a scan that came to its end."""
    state = more.get("state", State())
    search = Search(settings=where, units=list(units), profiles=profiles(), thorough=thorough)
    run(lambda: Scanner(rig.open, search, state, more.get("watcher", Notes())).run())
    assert state.complete
    return state


def units(state: State) -> list[int]:
    return [found.unit for found in state.found]


def models(state: State) -> list[str | None]:
    bests = [found.identity.best if found.identity else None for found in state.found]
    return [best.profile if best else None for best in bests]


def refuse(code: int) -> Any:
    return lambda pdu: bytes((pdu[0] | 0x80, code))


# ---------------------------------------------------------------- speed


def test_eight_meters_among_32_units_at_9600_baud_take_less_than_20_s() -> None:
    places = {1: 0, 2: 1, 5: 2, 9: 3, 14: 0, 20: 1, 26: 2, 32: 3}
    rig = bench(*(meter(unit, MODELS[model], delay_s=0.05) for unit, model in places.items()))

    async def all_of_it() -> tuple[State, float, Any]:
        state = State()
        search = Search(settings=LINE_9600, units=range(1, 33), profiles=profiles())
        await Scanner(rig.open, search, state, Notes()).run()
        loaded = {profile.name: profile for profile in search.profiles}
        wanted = [Wanted(f.unit, loaded[name]) for f, name in zip(state.found, models(state), strict=True) if name]
        values = await read_values(rig.platform(), LINE_9600[0].target, wanted)
        return state, asyncio.get_running_loop().time(), values

    state, seconds, values = run(all_of_it)
    assert units(state) == list(places)
    assert models(state) == [MODELS[model] for model in places.values()]
    assert seconds < 20
    # Every unit is called once, the 24 that are silent twice.
    calls = [len(call) for call in state.asked["9600 8N1"].values()]
    assert calls == [32, 24]
    assert rig.bus.counts["unknown_unit"] == 48
    assert all(dict(one)["voltage-l1"].endswith(" V") and "energy-import" in dict(one) for one in values)


def test_a_whole_line_of_silence_takes_what_the_time_outs_add_up_to() -> None:
    rig = bench(meter(247))

    async def main() -> float:
        await Scanner(rig.open, Search(settings=LINE_9600, units=UNITS, profiles=profiles()), State(), Notes()).run()
        return asyncio.get_running_loop().time()

    # 8 + 9 characters of 10 bits, 3.5 of silence (at least 5 ms), 80 and 200 ms of waiting; then one meter.
    call_s = 17 * 10 / 9600 + 0.005
    assert run(main) == pytest.approx(246 * (2 * call_s + 0.08 + 0.2), rel=0.02)


def test_progress_goes_from_nothing_to_all_and_the_time_left_shrinks() -> None:
    notes = Notes()
    scan(bench(meter(3)), watcher=notes)
    shares = [done for _, _, done, _ in notes.steps[:-1]]
    left = [seconds for *_, seconds in notes.steps[:-1]]
    assert shares[0] == 0
    assert max(shares) > 0.85
    assert left[0] < 20
    assert left[-1] < 2
    assert {label for label, *_ in notes.steps} == {"9600 8N1"}


# ---------------------------------------------------------------- rates and noise


@pytest.mark.parametrize("noise", [b"", b"\x80\x00\xf8\xf8\x13"])
def test_the_lines_rate_is_found_and_noise_at_others_is_told(noise: bytes) -> None:
    rig = bench(meter(2), meter(4, MODELS[1]), baudrate=19_200, parity="E", noise=noise)
    state = scan(rig, line(), range(1, 9))
    assert [(f.setting, f.unit) for f in state.found] == [("19200 8E1", 2), ("19200 8E1", 4)]
    assert models(state) == list(MODELS[:2])
    assert (state.noise["9600 8N1"] > 0) == bool(noise)
    # Four garbled requests are enough to leave a rate, and after the meters were found no other one is tried.
    assert state.given_up == ({"9600 8N1"} if noise else set())
    assert set(state.asked) == {"9600 8N1", "19200 8E1"}


def test_at_several_rates_the_first_units_of_each_come_first() -> None:
    notes = Notes()
    scan(bench(meter(40), baudrate=9600, parity="E"), line([9600], ["N", "E"]), UNITS, watcher=notes)
    visits = [label for label, unit, *_ in notes.steps if unit in {1, 17}]
    assert visits[:3] == ["9600 8N1", "9600 8E1", "9600 8N1"]


def test_thorough_goes_on_at_other_rates() -> None:
    rig = bench(meter(2))
    state = scan(rig, line([9600, 19_200], ["N"]), range(1, 4), thorough=True)
    assert set(state.asked) == {"9600 8N1", "19200 8N1"}
    assert units(state) == [2]


def test_settings_come_in_order_of_likelihood() -> None:
    labels = [setting.label for setting in line()]
    assert labels[:4] == ["9600 8N1", "19200 8E1", "9600 8E1", "19200 8N1"]
    assert len(labels) == len(set(labels))
    assert "300 8N1" not in labels
    assert [s.label for s in line([4800], ["O"])] == ["4800 8O1"]


@pytest.mark.parametrize("fault", ["garbage", "crc_error", "half_frame", "duplicate", "late"])
def test_noise_on_the_line_hides_nobody(fault: str) -> None:
    rig = bench(*(meter(unit, MODELS[unit % 4], **{fault: 0.25}) for unit in (2, 3, 5, 8)))
    state = scan(rig, units=range(1, 13), thorough=True)
    assert units(state) == [2, 3, 5, 8]
    named = [(unit, model) for unit, model in zip(units(state), models(state), strict=True) if model]
    assert all(model == MODELS[unit % 4] for unit, model in named)


def test_a_slow_meter_is_found_by_the_thorough_pass() -> None:
    rig = bench(meter(3, delay_s=0.95), meter(7, delay_s=0.2))
    assert units(scan(rig, units=range(1, 9), thorough=True)) == [3, 7]


def test_whoever_is_found_late_is_identified_too_even_if_the_time_is_spent() -> None:
    """Eight that nothing is known of use the time up; the ninth answers only to the patient call."""
    odd = [scripted(unit, lambda pdu: bytes((pdu[0] | 0x80, 2)), delay_s=0.07) for unit in range(1, 15)]
    state = scan(bench(*odd, meter(20, delay_s=0.15)), units=range(1, 24))
    assert units(state) == [*range(1, 15), 20]
    assert models(state)[-1] == MODELS[0]


def test_those_found_first_are_identified_before_the_others_are_called_again() -> None:
    notes = Notes()
    scan(bench(meter(2)), watcher=notes)
    identified = next(i for i, step in enumerate(notes.steps) if step[1] == 2 and i > 2)
    assert sum(unit == 9 for _, unit, *_ in notes.steps[identified:]) == 1


def test_a_late_reply_is_a_sign_of_life_of_whoever_sends_it() -> None:
    rig = bench(meter(1, delay_s=0.12))
    state = scan(rig, units=range(1, 4))
    assert units(state) == [1]
    assert state.found[0].delay_s == pytest.approx(0.12, abs=0.03)


# ---------------------------------------------------------------- what is no meter


def test_a_device_that_refuses_everything_is_found_and_not_named() -> None:
    for code in (1, 2, 4):
        state = scan(bench(scripted(5, refuse(code))), units=range(1, 8))
        assert units(state) == [5]
        assert models(state) == [None]


def test_a_unit_that_falls_silent_is_told_as_not_identified() -> None:
    replies = iter([bytes((0x83, 2))])
    state = scan(bench(scripted(5, lambda _: next(replies, b""))), units=range(4, 6))
    assert units(state) == [5]
    assert state.found[0].identity is not None
    assert not state.found[0].identity.complete


# ---------------------------------------------------------------- networks


def test_a_gateway_that_says_who_is_absent() -> None:
    rig = bench(meter(2), meter(9, MODELS[3]), answer_unknown=True)
    notes = Notes()
    state = scan(rig, NETWORK, [*UNITS, 255], watcher=notes)
    assert units(state) == [2, 9]
    assert models(state) == [MODELS[0], MODELS[3]]
    assert len(state.absent[NETWORK[0].label]) == 246 + 1 - 1
    # Nobody who is absent is called twice; unit 0 is a broadcast, to which the gateway is silent.
    assert rig.bus.counts["unknown_unit"] == 246 + 1 - 1


def test_a_gateway_that_is_silent_about_absent_units() -> None:
    rig = bench(meter(2), meter(9, delay_s=0.3))
    assert units(scan(rig, NETWORK, range(1, 12))) == [2, 9]


def test_a_slow_gateway_is_given_the_time_it_needs() -> None:
    absent = (scripted(unit, refuse(11), delay_s=0.9) for unit in range(1, 9))
    rig = bench(*absent, meter(9, delay_s=0.9))
    state = scan(rig, NETWORK, range(1, 10))
    assert units(state) == [9]
    # Only the first request was given up too early; else the last unit would have been found on a second round.
    assert set(state.asked[NETWORK[0].label]) == {"fast"}
    assert state.absent[NETWORK[0].label] == set(range(1, 9))


def test_a_reply_that_names_another_unit_is_nobodys() -> None:
    assert units(scan(bench(meter(1, wrong_unit=1.0), meter(4)), NETWORK, range(1, 6))) == [4]


def test_a_device_that_answers_for_every_unit_is_one_device() -> None:
    rig = bench(meter(1, MODELS[3]), bus=EveryUnit)
    state = scan(rig, NETWORK, [*UNITS, 255, 0])
    assert [(f.unit, f.every_unit) for f in state.found] == [(1, True)]
    assert models(state) == [MODELS[3]]


def test_units_outside_the_wish_are_not_reported() -> None:
    assert units(scan(bench(meter(1), meter(4)), NETWORK, range(3, 6))) == [4]


def test_a_server_that_is_no_modbus_server() -> None:
    class Web(Bus):
        pass

    rig = bench(scripted(1, lambda _: b""))
    target = parse_target("tcp://meters")

    async def main() -> None:
        prober = Prober(rig.open, target)
        await prober.ask(1, objects.request(), 0.01)
        prober.data_received(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await asyncio.sleep(0.1)
        heard = await prober.ask(1, objects.request(), 0.01)
        assert heard.pdu is None
        await prober.close()

    run(main)
    assert len(rig.opened) == 2


@pytest.mark.parametrize("address", ["ascii:/dev/ttyUSB0", "rtu-tcp://meters:4001", "udp://meters"])
def test_every_kind_of_bus_is_searched(address: str) -> None:
    target = parse_target(address)
    serial = address.startswith("ascii")
    where = [line_setting(target) if serial else Setting(address, target, serial=False)]
    state = scan(bench(meter(2), meter(5, MODELS[1])), where, range(1, 7))
    assert units(state) == [2, 5]
    assert models(state) == list(MODELS[:2])
    assert where[0].label == ("9600 7N1" if serial else address)


def test_ascii_noise_is_counted() -> None:
    async def main() -> int:
        prober = Prober(bench(scripted(1, lambda _: b"")).open, parse_target("ascii:/dev/ttyUSB0"))
        asking = asyncio.ensure_future(prober.ask(1, objects.request(), 0.2))
        await asyncio.sleep(0.1)
        prober.data_received(b"what?\r\n")
        heard = await asking
        await prober.close()
        return heard.noise

    assert run(main) == 7


def test_a_late_reply_is_not_taken_for_the_answer_to_the_next_request() -> None:
    asked = []

    def slow_once(pdu: bytes) -> bytes:
        asked.append(pdu)
        return bytes((3, 2)) + pdu[1:3]

    station = scripted(1, slow_once, delay_s=0.4)

    async def main() -> bytes | None:
        prober = Prober(bench(station).open, LINE_9600[0].target)
        assert (await prober.ask(1, struct.pack(">BHH", 3, 10, 1), 0.1)).pdu is None
        heard = await prober.ask(1, struct.pack(">BHH", 3, 20, 1), 0.6)
        await prober.close()
        return heard.pdu

    assert run(main) == struct.pack(">BBH", 3, 2, 20)
    assert len(asked) == 2


def test_a_network_target_is_no_line() -> None:
    with pytest.raises(TypeError):
        line_setting(NETWORK[0].target)


# ---------------------------------------------------------------- politeness, interruption


def test_only_reads_are_ever_sent() -> None:
    async def main() -> None:
        prober = Prober(bench().open, LINE_9600[0].target)
        with pytest.raises(ValueError, match="no read"):
            await prober.ask(1, b"\x06\x00\x00\x00\x01", 0.1)

    run(main)


def test_a_search_that_is_stopped_goes_on_where_it_was() -> None:
    whole = scan(bench(meter(2), meter(20, MODELS[1])))
    for stop_s in (0.01, 0.3, 1.5, 4.0, 7.5):
        rig = bench(meter(2), meter(20, MODELS[1]))
        state = State()
        search = Search(settings=LINE_9600, units=range(1, 33), profiles=profiles())

        async def stopped(
            search: Search = search, state: State = state, rig: Bench = rig, after: float = stop_s
        ) -> None:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(after):
                    await Scanner(rig.open, search, state, Notes()).run()

        run(stopped)
        first = {name: set(asked) for name, asked in state.asked.get("9600 8N1", {}).items()}
        resumed = decode("scan.json", DEVICE, encode(DEVICE, state))
        assert resumed == state
        rig = bench(meter(2), meter(20, MODELS[1]))
        scan(rig, state=resumed)
        assert (units(resumed), models(resumed)) == (units(whole), models(whole))
        assert rig.bus.counts["unknown_unit"] == 60 - sum(len(asked - {2, 20}) for asked in first.values())


def test_a_bus_that_can_not_be_opened_keeps_what_was_found() -> None:
    async def main() -> None:
        async def closed(*_: Any) -> asyncio.Transport:
            raise BusDownError("can not open it")

        with pytest.raises(BusDownError):
            await Scanner(closed, Search(settings=LINE_9600, units=[1], profiles=[]), State(), Notes()).run()

    run(main)


def test_a_rate_that_the_port_does_not_have_is_passed_over_and_a_port_that_is_gone_is_not() -> None:
    rig = bench(meter(2), parity="E")

    async def choosy(endpoint: Any, protocol: Any) -> asyncio.Transport:
        if endpoint.baudrate in bad:
            raise BusDownError("invalid argument")
        return await rig.open(endpoint, protocol)

    def search(state: State) -> None:
        what = Search(settings=line([9600, 19_200], ["E"]), units=range(1, 5), profiles=profiles())
        run(lambda: Scanner(choosy, what, state, Notes()).run())

    bad = {19_200}
    state = State()
    search(state)
    assert (units(state), state.given_up) == ([2], {"19200 8E1"})
    bad = {9600, 19_200}
    with pytest.raises(BusDownError):
        search(State())


# ---------------------------------------------------------------- state and units


@given(st.sets(st.integers(0, 255)))
@settings(max_examples=50)
def test_units_read_as_they_are_written(some: set[int]) -> None:
    assert parse_units(units_text(some)) == some


@pytest.mark.parametrize("text", ["1-", "-3", "7-3", "256", "1,,2", "a", "1-2-3", "²"])
def test_what_is_no_list_of_units(text: str) -> None:
    with pytest.raises(ValueError, match="units"):
        parse_units(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(key=st.sampled_from(["format", "target", "asked", "absent", "noise", "given_up", "found"]), value=JSON)
@settings(max_examples=150)
def test_a_hostile_state_file_is_refused_with_its_name(key: str, value: Any) -> None:
    state = State(found=[Found(setting="9600 8N1", unit=3, delay_s=0.03)], noise=Counter({"9600 8N1": 3}))
    facts = json.loads(encode(DEVICE, state)) | {key: value}
    try:
        decode("scan.json", DEVICE, json.dumps(facts))
    except ConfigurationError as error:
        assert "scan.json" in str(error)  # noqa: PT017  either it is read or it is refused


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["unit"], 9999, "units are 0 to 255"),
        (["unit"], "3", "found.0.unit: "),
        (["delay_s"], "soon", "found.0.delay_s: "),
        (["values"], [[1, 2]], "found.0.values.0.0: "),
        (["identity", "objects"], [], "found.0.identity.objects: "),
        (["identity", "candidates", 0, "points"], "many", "found.0.identity.candidates.0.points: "),
    ],
)
def test_what_was_found_is_of_its_types_or_refused(path: list[Any], value: Any, fault: str) -> None:
    candidate = Candidate(profile="p", manufacturer="m", model="x", points=60, certain=True, reasons=("code",))
    found = Found(setting="9600 8N1", unit=3, delay_s=0.03, identity=Identity(candidates=[candidate]))
    facts = json.loads(encode(DEVICE, State(found=[found])))
    place = facts["found"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ConfigurationError) as caught:
        decode("scan.json", DEVICE, json.dumps(facts))
    assert caught.value.faults[0].startswith("scan.json: ")
    assert fault in caught.value.faults[0]


def test_the_state_of_another_bus_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="of tcp://a, not of tcp://b"):
        decode("s.json", "tcp://b", encode("tcp://a", State()))
    for text in ("", "[]", "{}", "[" * 100_000, "null"):
        with pytest.raises(ConfigurationError, match=r"s\.json"):
            decode("s.json", "tcp://b", text)


def test_the_register_read_that_is_called_with_is_two_registers() -> None:
    from energybid.drivers.scan import FAST, SLOW

    assert [struct.unpack(">BHH", call.pdu) for call in (FAST, SLOW)] == [(3, 0, 2), (4, 0, 2)]
