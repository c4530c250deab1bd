"""The request planner against a brute-force search over every way to divide what is wanted."""

from collections.abc import Iterator

import pytest
from energybid.core.ports import SerialEndpoint, TcpEndpoint
from energybid.drivers.modbus.map import HOLDING, INPUT
from energybid.drivers.planner import Cost, Span, bus_cost, choices, plan, serial_cost, tcp_cost
from hypothesis import given, settings
from hypothesis import strategies as st


def divisions(items: list[Span]) -> Iterator[list[list[Span]]]:
    """Every division into sets, in any order: nothing is taken for granted about the best one."""
    if not items:
        yield []
        return
    head, *tail = items
    for division in divisions(tail):
        yield [[head], *division]
        for index, part in enumerate(division):
            yield [*division[:index], [head, *part], *division[index + 1 :]]


def brute_force(wanted: list[Span], readable: list[Span], cost: Cost, most: int) -> tuple[int, int] | None:
    """Least cost, and the fewest requests at that cost; None where there is no plan."""
    found = []
    for division in divisions(wanted):
        requests = [Span(part[0].function, min(s.first for s in part), max(s.end for s in part)) for part in division]
        tables_are_pure = all(len({span.function for span in part}) == 1 for part in division)
        if tables_are_pure and all(r.length <= most and any(b.holds(r) for b in readable) for r in requests):
            found.append((cost.of(requests), len(requests)))
    return min(found, default=None)


@st.composite
def profiles(draw: st.DrawFn) -> tuple[list[Span], list[Span]]:
    """Readable blocks with forbidden registers between some, and up to 6 numbers of 1, 2 or 4 registers in them."""
    readable: list[Span] = []
    wanted: list[Span] = []
    for function in (HOLDING, INPUT):
        at = draw(st.integers(0, 5))
        for _ in range(draw(st.integers(0, 2))):
            first = at
            for _ in range(draw(st.integers(1, 4))):
                at += draw(st.sampled_from([0, 0, 1, 3, 9]))
                size = draw(st.sampled_from([1, 2, 4]))
                if len(wanted) < 6:
                    wanted.append(Span(function, at, at + size))
                at += size
            at += draw(st.integers(0, 3))
            readable.append(Span(function, first, at))
            at += draw(st.sampled_from([0, 1, 5]))
    return draw(st.permutations(wanted)), draw(st.permutations(readable))


@settings(max_examples=200, deadline=None)
@given(profiles(), st.integers(0, 20), st.integers(0, 5), st.integers(4, 30), st.integers(4, 30))
def test_the_plan_is_as_cheap_as_the_best_of_all_divisions(
    profile: tuple[list[Span], list[Span]], request: int, register: int, meter: int, buffer: int
) -> None:
    wanted, readable = profile
    cost = Cost(request_ns=request, register_ns=register, registers_max=buffer)
    requests = plan(wanted, readable, cost, registers_max=meter)
    assert (cost.of(requests), len(requests)) == brute_force(wanted, readable, cost, min(meter, buffer))
    assert all(sum(request.holds(span) for request in requests) == 1 for span in wanted)
    assert all(any(block.holds(request) for block in readable) for request in requests)
    assert requests == sorted(requests)


def test_a_gap_is_read_over_where_that_is_cheaper_than_a_request() -> None:
    wanted = [Span(INPUT, 0, 2), Span(INPUT, 40, 42)]
    blocks = [Span(INPUT, 0, 100)]
    assert plan(wanted, blocks, tcp_cost(), registers_max=125) == [Span(INPUT, 0, 42)]
    assert plan(wanted, blocks, serial_cost(9600), registers_max=125) == wanted
    assert plan(wanted, blocks, serial_cost(9600, reply_delay_s=0.1), registers_max=125) == [Span(INPUT, 0, 42)]
    assert plan(wanted, blocks, serial_cost(115_200), registers_max=125) == [Span(INPUT, 0, 42)]


def test_limits_and_forbidden_registers() -> None:
    wanted = [Span(INPUT, at, at + 2) for at in range(0, 200, 2)]
    whole = [Span(INPUT, 0, 200)]
    assert [span.length for span in plan(wanted, whole, tcp_cost(), registers_max=125)] == [124, 76]
    small = Cost(request_ns=1, register_ns=0, registers_max=60)
    assert len(plan(wanted, whole, small, registers_max=125)) == 4
    parts = [Span(INPUT, 0, 50), Span(INPUT, 50, 200)]
    assert plan(wanted[20:30], parts, tcp_cost(), registers_max=125) == [Span(INPUT, 40, 50), Span(INPUT, 50, 60)]


def test_numbers_that_share_registers_are_read_together() -> None:
    wanted = [Span(HOLDING, 0, 4), Span(HOLDING, 2, 3), Span(HOLDING, 3, 5)]
    assert plan(wanted, [Span(HOLDING, 0, 9)], Cost(request_ns=0, register_ns=1), registers_max=9) == [
        Span(HOLDING, 0, 5)
    ]


def test_what_can_not_be_read_is_said() -> None:
    for span, most in ((Span(HOLDING, 0, 2), 9), (Span(INPUT, 8, 10), 9), (Span(INPUT, 0, 4), 3)):
        with pytest.raises(ValueError, match=f"first={span.first}, end={span.end}.* can not be read"):
            plan([span], [Span(INPUT, 0, 9)], tcp_cost(), registers_max=most)
    assert plan([], [], tcp_cost(), registers_max=1) == []


def test_costs_are_those_of_the_frames() -> None:
    # 13 characters and 3.5 of silence at 10 bits, 9,600 baud, and the delay; 20 bits a register.
    assert serial_cost(9600, reply_delay_s=0) == Cost(request_ns=17_187_500, register_ns=2_083_333)
    assert serial_cost(9600) == Cost(request_ns=37_187_500, register_ns=2_083_333, assumed_ns=20_000_000)
    assert serial_cost(9600).with_delay(0.01).request_ns == 27_187_500
    assert serial_cost(9600, reply_delay_s=0.01).request_ns == 27_187_500
    assert serial_cost(19_200, parity="E", reply_delay_s=0).register_ns == round(22 / 19_200 * 1e9)
    assert serial_cost(115_200, reply_delay_s=0).request_ns == round(130 / 115_200 * 1e9 + 1_750_000)
    # ASCII: 28 characters of 10 bits (7E1) and 4 a register, no silence.
    ascii_cost = serial_cost(9600, parity="E", reply_delay_s=0, is_ascii=True)
    assert ascii_cost == Cost(request_ns=29_166_667, register_ns=4_166_667)
    line = SerialEndpoint(device="/dev/ttyUSB0", baudrate=9600, parity="E")
    assert bus_cost(line, reply_delay_s=0.01) == serial_cost(9600, parity="E", reply_delay_s=0.01)
    assert bus_cost(TcpEndpoint(host="x", port=502)) == tcp_cost()
    assert tcp_cost(reply_delay_s=0).request_ns > 125 * tcp_cost().register_ns


def test_groups_that_may_fall_due_at_once() -> None:
    assert list(choices(1)) == []
    assert list(choices(3)) == [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
