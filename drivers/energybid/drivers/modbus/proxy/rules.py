"""What a master may ask, and what the answer to it must look like. Pure: PDUs in, verdicts out.

Functions 1 to 6, 15 and 16 pass (Modbus Application Protocol V1.1b3 §6). All else is refused: a reply whose length
nobody knows can not be told from noise on a line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from energybid.drivers.modbus.map import ADDRESSES, HOLDING, INPUT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from energybid.drivers.modbus.proxy.plan import Allowed

# Exception codes, V1.1b3 §7.
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3
BUSY = 6
NO_PATH, NO_REPLY = 0x0A, 0x0B
"""Gateway path unavailable; gateway target device failed to respond."""

COILS, DISCRETES = 1, 2
WRITE_COIL, WRITE_REGISTER, WRITE_COILS, WRITE_REGISTERS = 5, 6, 15, 16
REGISTERS = frozenset({HOLDING, INPUT})
TABLES = {WRITE_COIL: "coil", WRITE_COILS: "coil", WRITE_REGISTER: "holding", WRITE_REGISTERS: "holding"}
"""Function that writes → what it writes."""
_MOST = {COILS: 2000, DISCRETES: 2000, HOLDING: 125, INPUT: 125, WRITE_COILS: 1968, WRITE_REGISTERS: 123}
_SINGLE = 5
"""Length of every request but those that write several."""
_DATA_AT = 6


class Wanted(NamedTuple):
    """What a request is about."""

    function: int
    first: int
    size: int
    """How many registers or coils."""


def wanted(pdu: bytes) -> Wanted | int:
    """What a request asks for, or the exception code that answers it (V1.1b3 §6, state diagrams)."""
    function = pdu[0]
    if function not in TABLES and function not in _MOST:
        return ILLEGAL_FUNCTION
    if len(pdu) < _SINGLE:
        return ILLEGAL_VALUE
    first, number = int.from_bytes(pdu[1:3], "big"), int.from_bytes(pdu[3:5], "big")
    count = number if function in _MOST else 1
    if not 1 <= count <= _MOST.get(function, 1) or len(pdu) != _length(function, count):
        return ILLEGAL_VALUE
    if len(pdu) > _SINGLE and pdu[_SINGLE] != len(pdu) - _DATA_AT:
        return ILLEGAL_VALUE
    if function == WRITE_COIL and number not in {0, 0xFF00}:
        return ILLEGAL_VALUE
    return Wanted(function, first, count) if first + count <= ADDRESSES else ILLEGAL_ADDRESS


def _length(function: int, count: int) -> int:
    if function == WRITE_REGISTERS:
        return _DATA_AT + 2 * count
    return _DATA_AT + (count + 7) // 8 if function == WRITE_COILS else _SINGLE


def may_write(allow: Iterable[Allowed], unit: int, wish: Wanted) -> int:
    """0 where a write is allowed, or else the exception code that answers it."""
    table = TABLES[wish.function]
    mine = [allowed for allowed in allow if allowed.unit == unit and allowed.table == table]
    if not mine:
        return ILLEGAL_FUNCTION
    inside = (a.first <= wish.first and wish.first + wish.size <= a.first + a.count for a in mine)
    return 0 if any(inside) else ILLEGAL_ADDRESS


def reply_shape(pdu: bytes) -> tuple[bytes, int]:
    """How the reply's PDU begins, and its length, for a request that ``wanted`` has found whole."""
    function, count = pdu[0], int.from_bytes(pdu[3:5], "big")
    if function in TABLES:
        return pdu[:_SINGLE], _SINGLE  # writes are answered by their own beginning
    size = 2 * count if function in REGISTERS else (count + 7) // 8
    return bytes((function, size)), 2 + size


def refusal(pdu: bytes, code: int) -> bytes:
    """The exception that answers a request."""
    return bytes((pdu[0] & 0x7F | 0x80, code))
