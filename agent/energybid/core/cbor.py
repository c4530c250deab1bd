"""Deterministic CBOR (RFC 8949 §4.2.1), the only serialisation of anything that is hashed or signed.

The profile is docs/formats.md §2: only arrays, 64-bit integers, byte and text strings, null, false and true; no floats,
tags or maps. So one value has one encoding, and no library's choice of Python types for tags can let two readers
differ. Writing is left to cbor2; reading is done here, because hostile bytes arrive here and cbor2's versions do not
agree on what they accept.
"""

from collections.abc import Callable
from io import BytesIO
from typing import Any

import cbor2

from energybid.core.errors import EvidenceError

DEPTH_MAX = 16
"""Most arrays inside each other."""

encode = cbor2.dumps

_SIMPLE = {0xF4: False, 0xF5: True, 0xF6: None}
_LEAST = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}
"""Additional information → the smallest argument that needs so many bytes."""


def encoder() -> Callable[[object], bytes]:
    """Make an ``encode`` at half the cost, for one owner: it must not be used by two threads at once."""
    return cbor2.CBOREncoder(BytesIO()).encode_to_bytes


def decode(data: bytes) -> Any:  # noqa: ANN401  CBOR is untyped; callers check the shape
    """Decode one item that fills ``data`` exactly; arrays become lists.

    Raises:
        EvidenceError: Not CBOR, trailing bytes, not the deterministic encoding, a type outside the profile, or arrays
            more than DEPTH_MAX deep.
    """
    try:
        item, end = _item(data, 0, 0)
    except IndexError:
        raise EvidenceError("CBOR ends in the middle of an item") from None
    except UnicodeDecodeError:
        raise EvidenceError("CBOR text is not UTF-8") from None
    if end != len(data):
        raise EvidenceError(f"{len(data) - end} bytes follow the CBOR item")
    return item


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    """Item that begins at ``at``, and where it ends. IndexError: the data ends before."""
    initial = data[at]
    if initial in _SIMPLE:
        return _SIMPLE[initial], at + 1
    argument, at = _argument(data, at)
    match initial >> 5:
        case 0:
            return argument, at
        case 1:
            return -1 - argument, at
        case 2:
            return _take(data, at, argument), at + argument
        case 3:
            return _take(data, at, argument).decode(), at + argument
        case 4:
            return _array(data, at, argument, depth + 1)
    raise EvidenceError(f"CBOR type {initial:#04x} is not used here (maps, tags, floats, undefined)")


def _argument(data: bytes, at: int) -> tuple[int, int]:
    """Argument of the head at ``at`` (RFC 8949 §3), and where the head ends."""
    information = data[at] & 0x1F
    at += 1
    if information < 24:  # noqa: PLR2004  RFC 8949 §3: the argument itself
        return information, at
    if information not in _LEAST:
        raise EvidenceError("CBOR of indefinite or reserved length")
    end = at + (1 << information - 24)
    if end > len(data):
        raise IndexError
    argument = int.from_bytes(data[at:end], "big")
    if argument < _LEAST[information]:
        raise EvidenceError("CBOR is not in its shortest form (RFC 8949 §4.2.1)")
    return argument, end


def _take(data: bytes, at: int, size: int) -> bytes:
    taken = data[at : at + size]
    if len(taken) != size:
        raise IndexError
    return taken


def _array(data: bytes, at: int, count: int, depth: int) -> tuple[list[Any], int]:
    if depth > DEPTH_MAX:
        raise EvidenceError(f"CBOR arrays are more than {DEPTH_MAX} deep")
    if count > len(data) - at:
        raise IndexError
    items = []
    for _ in range(count):
        initial = data[at]
        if initial < 24:  # noqa: PLR2004  by far the commonest item: a small integer
            items.append(initial)
            at += 1
        else:
            item, at = _item(data, at, depth)
            items.append(item)
    return items, at
