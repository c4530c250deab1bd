"""What models have learned as few bytes: names, numbers and arrays in, one block with a checksum out, and back.

Numbers in arrays are cut to what a forecast knows: ``Fine`` keeps 16 bits of each number, an array alone 11 bits, whole
numbers are kept whole. Their bytes are laid plane by plane, so that deflate finds what repeats. Needs numpy (extra
``bidding``). Pure.
"""

from __future__ import annotations

import json
import zlib
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAGIC = b"EBS1"
CHECK_BYTES = 16
RAW_MAX = 4 << 20
"""Of a block that is unpacked."""
_WHOLE = ("u1", "<u2", "<u4")


class Fine(NamedTuple):
    """An array whose numbers are kept to 16 bits beside sign and exponent."""

    array: NDArray[np.float64]


def pack(state: dict[str, Any]) -> bytes:
    """A block.

    Args:
        state: JSON, in which arrays and ``Fine`` may stand as values.
    """
    arrays: list[bytes] = []
    head = json.dumps(_head(state, arrays), separators=(",", ":")).encode()
    raw = len(head).to_bytes(4, "big") + head + b"".join(arrays)
    return MAGIC + sha256(raw).digest()[:CHECK_BYTES] + zlib.compress(raw, 9)


def unpack(data: bytes) -> dict[str, Any]:
    """What was packed; arrays of floats are float64.

    Raises:
        ValueError: It is no block, or damaged.
    """
    begin = len(MAGIC) + CHECK_BYTES
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError("what was learned has another format")
    try:
        reader = zlib.decompressobj()
        raw = reader.decompress(data[begin:], RAW_MAX)
    except zlib.error as error:
        raise ValueError(f"what was learned is damaged: {error}") from None
    if not reader.eof or sha256(raw).digest()[:CHECK_BYTES] != data[len(MAGIC) : begin]:
        raise ValueError("what was learned is damaged: its checksum does not fit")
    size = int.from_bytes(raw[:4], "big")
    made, end = _body(json.loads(raw[4 : 4 + size]), raw, 4 + size)
    assert end == len(raw)  # noqa: S101 (the checksum fits: nobody else makes these)
    return dict(made)


def _head(item: Any, arrays: list[bytes]) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(item, dict):
        return {str(name): _head(value, arrays) for name, value in item.items()}
    if isinstance(item, list | tuple) and not isinstance(item, Fine):
        return [_head(value, arrays) for value in item]
    if isinstance(item, Fine | np.ndarray):
        kind, scale, planes = _encoded(item)
        arrays.append(planes)
        shape = item.array.shape if isinstance(item, Fine) else item.shape
        return {"": [kind, scale, list(shape)]}
    return item


def _encoded(item: Fine | NDArray[Any]) -> tuple[str, float, bytes]:
    if isinstance(item, Fine):
        bits = np.ascontiguousarray(item.array, dtype="<f4").view("<u4")
        # Rounded to 16 bits of the mantissa; infinities and NaN have none that could overflow.
        bits = np.where(np.isfinite(item.array), bits + np.uint32(0x40), bits).astype("<u4") & np.uint32(0xFFFFFF80)
        return "f4", 1.0, _planes(bits)
    if item.dtype.kind in "iu":
        kind = next(kind for kind in _WHOLE if not item.size or item.max() <= np.iinfo(kind).max)
        return kind, 1.0, _planes(item.astype(kind))
    most = float(np.nanmax(np.abs(item), initial=0.0)) if np.isfinite(item).any() else 0.0
    scale = most / 32768 if most > 0 else 1.0
    return "<f2", scale, _planes((item / scale).astype("<f2"))


def _planes(array: NDArray[Any]) -> bytes:
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(np.uint8).reshape(-1, array.dtype.itemsize).T.tobytes()


def _body(item: Any, raw: bytes, at: int) -> tuple[Any, int]:  # noqa: ANN401
    """The same with its arrays, and where the next one begins."""
    if isinstance(item, list):
        result = []
        for value in item:
            made, at = _body(value, raw, at)
            result.append(made)
        return result, at
    if not isinstance(item, dict):
        return item, at
    if "" in item:
        kind, scale, shape = item[""]
        return _array(np.dtype(kind), scale, shape, raw, at)
    table = {}
    for name, value in item.items():
        table[name], at = _body(value, raw, at)
    return table, at


def _array(kind: np.dtype[Any], scale: float, shape: list[int], raw: bytes, at: int) -> tuple[NDArray[Any], int]:
    count = int(np.prod(shape))
    end = at + count * kind.itemsize
    planes = np.frombuffer(raw[at:end], dtype=np.uint8).reshape(kind.itemsize, count)
    flat = np.ascontiguousarray(planes.T).reshape(-1).view(kind).reshape(shape)
    return (flat if kind.kind == "u" else flat.astype(np.float64) * scale), end


def plain(found: Fine | NDArray[Any]) -> NDArray[Any]:
    """An array of a state that was packed or not.

    Raises:
        ValueError: It is none.
    """
    array = found.array if isinstance(found, Fine) else found
    if not isinstance(array, np.ndarray):
        raise ValueError("numbers are missing")  # noqa: TRY004 (the state is damaged)
    return array
