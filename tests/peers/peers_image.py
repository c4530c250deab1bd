"""The registers that every server of these tests holds, and the profile by which the driver reads them."""

from energybid.drivers.dump import Dump, Run, Span
from energybid.drivers.profile import parse_profile

SIZE = 200
"""Holding and input registers 0 to 199; there is nothing behind them."""
MOST = 125
UNIT, WRITE_UNIT, NOBODY = 1, 2, 77
SINGLE, SEVERAL = 150, 152


def word(register: int) -> int:
    """What a register holds."""
    return (register * 257 + 1) & 0xFFFF


WORDS = [word(register) for register in range(SIZE)]
IMAGE = b"".join(value.to_bytes(2, "big") for value in WORDS)
RECORDING = Dump(
    manufacturer="Example",
    model="Image",
    hardware="1",
    firmware="1",
    max_registers=MOST,
    runs=[Run(Span(table, 0, SIZE), IMAGE) for table in (3, 4)],
)

QUANTITIES = [*((3, first) for first in range(0, 20, 2)), (3, SIZE), *((4, first) for first in range(0, 150, 2))]
"""(function, register) of the numbers, two registers each, in the order in which a poll has them."""
MISSING = QUANTITIES.index((3, SIZE))
"""The number that is not there."""


def _row(number: int, function: int, first: int) -> str:
    table = "input" if function == 4 else "holding"
    return (
        f'  {{ name = "q{number}", obis = "1-{number // 250}:{number % 250 + 1}.7.0", table = "{table}", '
        f'register = {first}, unit = "Wh", resolution = "1" }},\n'
    )


PROFILE = f"""
manufacturer = "Test"
model = "Image"
source = [{{ title = "this test" }}]
max_registers = {MOST}
baudrates = [115200]
parities = ["N"]
timeout = "300 ms"
defaults = {{ table = "input", type = "uint32" }}
block = [
  {{ table = "input", first = 0, count = {SIZE} }},
  {{ table = "holding", first = 0, count = {SIZE} }},
  {{ table = "holding", first = {SIZE}, count = 2 }},
]
quantity = [
{"".join(_row(n, f, r) for n, (f, r) in enumerate(QUANTITIES))}]
[[writable]]
name = "single"
register = {SINGLE}
type = "uint16"
scale = "1"
unit = "W"
minimum = "0"
maximum = "65535"
safe = "0"
[[writable]]
name = "several"
register = {SEVERAL}
type = "uint32"
scale = "1"
unit = "W"
minimum = "0"
maximum = "4294967295"
safe = "0"
"""
LOADED = parse_profile("image", PROFILE.encode(), source="image.toml")
WRITABLES = parse_profile(
    "writables",
    PROFILE[: PROFILE.index("block = [")].encode()
    + b'block = [{ table = "input", first = 0, count = 2 }]\n'
    + b'quantity = [{ name = "v", obis = "1-0:32.7.0", register = 0, unit = "V", resolution = "1" }]\n'
    + PROFILE[PROFILE.index("[[writable]]") :].encode(),
    source="writables.toml",
)
"""The same two writable numbers, of a meter that the simulator can measure with."""
VALUES = tuple(word(first) << 16 | word(first + 1) if first < SIZE else None for _, first in QUANTITIES)
