"""Columns: entries of the log as few bytes, and back, exactly (docs/formats.md §6).

First form, to build on; the layout is not final.
"""

import zlib
from collections.abc import Sequence
from typing import Any

from energybid.core import cbor
from energybid.core.entries import TYPE_OF, VALUES_MAX, Entry, Known, Reading, Unknown, check
from energybid.core.errors import EvidenceError

RAW_MAX = 4 * 1024 * 1024
"""Most bytes of columns before compression that anything here accepts."""
STORED, DEFLATE = 0, 1
"""Compression methods of ``pack``."""

_KINDS: dict[int, type[Known]] = {number: kind for kind, number in TYPE_OF.items()}
_INT_MAX = 1 << 70


def _put(out: bytearray, x: int) -> None:
    while x > 127:
        out.append(x & 127 | 128)
        x >>= 7
    out.append(x)


def _put_signed(out: bytearray, x: int) -> None:
    _put(out, x << 1 if x >= 0 else (-x << 1) - 1)


class _Bytes:
    """A cursor over untrusted bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def uint(self) -> int:
        x = shift = 0
        while True:
            if self.at >= len(self.data) or shift > 70:
                raise EvidenceError("columns: cut off, or a number is too long")
            byte = self.data[self.at]
            self.at += 1
            x |= (byte & 127) << shift
            if byte < 128:
                return x
            shift += 7

    def sint(self) -> int:
        x = self.uint()
        return x >> 1 if not x & 1 else -((x + 1) >> 1)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise EvidenceError("columns: cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def left(self) -> int:
        return len(self.data) - self.at


def _put_column(out: bytearray, column: Sequence[int]) -> None:
    before = 0
    for x in column:
        _put_signed(out, x - before)
        before = x


def _column(source: _Bytes, rows: int) -> list[int]:
    x, column = 0, []
    for _ in range(rows):
        x += source.sint()
        column.append(x)
    return column


def encode(entries: Sequence[Entry]) -> bytes:
    """Entries → bytes, uncompressed; the same bytes on every machine."""
    tables: dict[tuple[Any, ...], list[Reading]] = {}
    numbers: dict[tuple[Any, ...], int] = {}
    order, others = bytearray(), bytearray()
    for entry in entries:
        if isinstance(entry, Reading):
            key = (entry.declaration, entry.group, entry.start, len(entry.values), entry.status)
            _put(order, 1 + numbers.setdefault(key, len(numbers)))
            tables.setdefault(key, []).append(entry)
            continue
        _put(order, 0)
        raw = entry.raw if isinstance(entry, Unknown) else cbor.encode((TYPE_OF[type(entry)], *entry))
        _put(others, len(raw) << 1 | isinstance(entry, Unknown))
        others += raw
    out = bytearray()
    _put(out, len(entries))
    _put(out, len(tables))
    out += order
    for (declaration, group, start, width, status), rows in tables.items():
        for x in (declaration, group, start, width):
            _put(out, x)
        if status is None:
            out.append(0)
        else:
            out.append(1)
            out += bytes(status)
        _put_column(out, [r.time_ms for r in rows])
        _put_column(out, [r.span_ms for r in rows])
        _put_column(out, [r.clock for r in rows])
        _put_column(out, [r.time_ms - r.mono_ms for r in rows])
        for column in zip(*(r.values for r in rows), strict=True):
            if column[0] is not None:
                _put_column(out, column)
    return bytes(out + others)


def _table(source: _Bytes, rows: int) -> list[Reading]:
    declaration, group, start, width = (source.uint() for _ in range(4))
    if not 0 < width <= VALUES_MAX:
        raise EvidenceError("columns: a table of no values, or of too many")
    flag = source.uint()
    status = tuple(source.take(width)) if flag else None
    time, span, clock, offset = (_column(source, rows) for _ in range(4))
    values: list[list[Any]] = [
        [None] * rows if status is not None and 0 < status[i] < 16 else _column(source, rows) for i in range(width)
    ]
    return [
        Reading(declaration, group, t, s, c, start, t - o, v, status)
        for t, s, c, o, v in zip(time, span, clock, offset, zip(*values, strict=True), strict=True)
    ]


def _other(source: _Bytes) -> Entry:
    size = source.uint()
    raw = source.take(size >> 1)
    if size & 1:
        return Unknown(raw)
    item = cbor.decode(raw)
    if not isinstance(item, list) or not item or type(item[0]) is not int or item[0] not in _KINDS:
        raise EvidenceError("columns: not an entry")
    kind = _KINDS[item[0]]
    if len(item) != 1 + len(kind._fields):
        raise EvidenceError("columns: an entry with the wrong number of fields")
    return kind(*map(_tuples, item[1:]))


def _tuples(item: Any) -> Any:  # noqa: ANN401
    return tuple(map(_tuples, item)) if isinstance(item, list) else item


def decode(data: bytes, *, limit: int, trusted: bool = False) -> list[Entry]:
    """Bytes → entries.

    Args:
        data: What ``encode`` made.
        limit: Most entries.
        trusted: The bytes are protected otherwise: do not check that they re-encode to themselves.

    Raises:
        EvidenceError: Broken, longer than ``limit``, or not what ``encode`` makes of these entries.
    """
    source = _Bytes(data)
    count, tables = source.uint(), source.uint()
    if count > limit or count > source.left() or tables > count:
        raise EvidenceError(f"columns: {count} entries; at most {limit} are allowed")
    order = [source.uint() for _ in range(count)]
    if order and max(order) > tables:
        raise EvidenceError("columns: no such table")
    rows = [iter(_table(source, order.count(1 + number))) for number in range(tables)]
    entries: list[Entry] = [next(rows[number - 1]) if number else _other(source) for number in order]
    if source.left():
        raise EvidenceError("columns: trailing bytes")
    for entry in entries:
        if not isinstance(entry, Unknown):
            check(entry)
    if not trusted and encode(entries) != data:
        raise EvidenceError("columns: not the encoding of these entries")
    return entries


def pack(raw: bytes) -> tuple[int, bytes]:
    """(method, bytes): the smallest of the compression methods."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -15, 9)
    packed = packer.compress(raw) + packer.flush()
    return (DEFLATE, packed) if len(packed) < len(raw) else (STORED, raw)


def unpack(method: int, data: bytes, *, limit: int) -> bytes:
    """Undo ``pack``.

    Args:
        method: Compression method.
        data: What ``pack`` gave.
        limit: Most bytes that may come out.

    Raises:
        EvidenceError: An unknown method, broken data, bytes after its end, or more than ``limit`` bytes.
    """
    if method == STORED:
        if len(data) > limit:
            raise EvidenceError(f"columns: more than {limit} bytes")
        return data
    if method != DEFLATE:
        raise EvidenceError(f"columns: compression method {method} is not known; update this program")
    unpacker = zlib.decompressobj(-15)
    try:
        raw = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise EvidenceError(f"columns: deflate: {error}") from None
    if len(raw) > limit or not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        raise EvidenceError(f"columns: broken deflate stream, or more than {limit} bytes")
    return raw
