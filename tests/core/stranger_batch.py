"""Batches for the stranger's verifier: docs/formats.md §6 and §7, written from that page alone.

It does not encode the columns again to see whether they are in their one form (§6): what the signature covers are the
entries, and those it rebuilds.
"""

import hashlib
import zlib
from math import isqrt
from typing import Any

import stranger
from stranger import cbor, is_bytes, is_clock, is_id, is_int, is_uint, need


class Stream:
    """§6.1"""

    def __init__(self, data: bytes) -> None:
        sizes, at = [], 0
        for _ in range(3):
            size, at = varint(data, at)
            sizes.append(size)
        need(at + sum(sizes) <= len(data), "cut off")
        self.control, at = data[at : at + sizes[0]], at + sizes[0]
        self.escapes, at = data[at : at + sizes[1]], at + sizes[1]
        self.unary, self.low = bits(data[at : at + sizes[2]]), bits(data[at + sizes[2] :])
        self.at = self.escape = self.one = self.bit = 0

    def varint(self) -> int:
        x, self.at = varint(self.control, self.at)
        return x

    def byte(self) -> int:
        return self.take(1)[0]

    def take(self, size: int) -> bytes:
        need(self.at + size <= len(self.control), "cut off")
        self.at += size
        return self.control[self.at - size : self.at]

    def vector(self, n: int, choice: int | None = None) -> list[int]:
        if n == 0:
            return []
        choice = self.byte() if choice is None else choice
        if choice == 31:
            return [0] * n
        if choice == 30:
            return self.sparse(n)
        need(choice <= 28, "choice")
        quotients = [self.quotient() for _ in range(n)]
        return [q << choice | self.lows(choice) for q in quotients]

    def quotient(self) -> int:
        end = self.unary.find("1", self.one)
        need(end >= 0, "cut off")
        q, self.one = end - self.one, end + 1
        need(q <= 32, "quotient")
        if q == 32:
            more, self.escape = varint(self.escapes, self.escape)
            return q + more
        return q

    def lows(self, k: int) -> int:
        need(self.bit + k <= len(self.low), "cut off")
        self.bit += k
        return int(self.low[self.bit - k : self.bit] or "0", 2)

    def sparse(self, n: int) -> list[int]:
        m = self.varint()
        need(0 < m < n, "sparse")
        parts = []
        for _ in range(2):
            choice = self.byte()
            need(choice != 30, "sparse inside sparse")
            parts.append(self.vector(m, choice))
        values: list[int] = []
        for zeros, less in zip(*parts, strict=True):
            need(len(values) + zeros < n, "sparse")
            values += [0] * zeros + [less + 1]
        return values + [0] * (n - len(values))

    def signed(self, n: int, choice: int | None = None) -> list[int]:
        return [x // 2 if x % 2 == 0 else -(x + 1) // 2 for x in self.vector(n, choice)]

    def column(self, runs: list[int]) -> list[int]:
        """§6.3; ``runs`` are lengths."""
        byte = self.byte()
        mode, choice = byte // 32, byte % 32
        need(mode <= 3, "mode")
        pace = self.varint() if mode == 2 else 0
        need(mode != 2 or pace, "a pace of 0")
        need(mode < 2 or sum(runs) > len(runs), "a mode that changes nothing")
        pace = pace // 2 if pace % 2 == 0 else -(pace + 1) // 2
        if mode == 0:
            return self.signed(sum(runs), choice)
        firsts = self.signed(len(runs), choice)
        rests = iter(self.signed(sum(runs) - len(runs)))
        numbers: list[int] = []
        first = 0
        for less, run in zip(firsts, runs, strict=True):
            first += less
            numbers.append(first)
            m = 4 * first
            for _ in range(run - 1):
                rest = next(rests)
                numbers.append(rest + ((m + 2) // 4 if mode == 3 else numbers[-1] + pace))
                m += rest
        return numbers

    def end(self) -> None:
        need(self.at == len(self.control) and self.escape == len(self.escapes), "left over")
        for plane, used in ((self.unary, self.one), (self.low, self.bit)):
            need(len(plane) - used < 8 and "1" not in plane[used:], "left over")


def varint(data: bytes, at: int) -> tuple[int, int]:
    x = 0
    for place in range(20):
        need(at + place < len(data), "cut off")
        byte = data[at + place]
        x |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            need(byte or place == 0, "a needless last byte")
            return x, at + place + 1
    raise stranger.Refused("varint")


def bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def shapes_of(stream: Stream) -> list[list[int]]:
    """§6.2, 2: the statuses of each shape, all 0 where there are none."""
    shapes = []
    for _ in range(stream.varint()):
        width, status = stream.varint(), []
        for _ in range(stream.varint()):
            length = stream.varint()
            need(len(status) + length <= width <= 1024, "statuses")
            status += [stream.varint()] * length
        need(0 < width <= 1024 and len(status) in (0, width), "shape")
        shapes.append(status or [0] * width)
    return shapes


def order(stream: Stream, count: int, tables: int) -> list[int]:
    """§6.4"""
    symbols: list[int] = []
    after: dict[int, int] = {}
    last = 0

    def put(symbol: int) -> None:
        nonlocal last
        need(symbol <= tables and len(symbols) < count, "order")
        symbols.append(symbol)
        after[last] = last = symbol

    for place, number in enumerate(stream.vector(stream.varint())):
        if place % 2:
            put(number)
            continue
        for _ in range(number):
            unseen = [t for t in range(1, tables + 1) if t not in symbols]
            put(after.get(last, (unseen or [min(1, tables)])[0]))
    need(len(symbols) == count, "order")
    return symbols


def said(kind: int, k: int, row: list[int]) -> int:
    if kind <= 1:
        return sum(row)
    a, b = row
    if kind == 2:
        return (abs(a * b) + 10**k // 2) // 10**k
    return isqrt(abs(a * a - b * b) if kind == 3 else a * a + b * b)


def values_of(stream: Stream, status: list[int], runs: list[int]) -> list[list[int | None]]:
    """§6.2, 6 and §6.5: the rows of all tables of one shape."""
    present = [i for i, mark in enumerate(status) if not 1 <= mark <= 15]
    rows: list[list[int | None]] = [[None] * len(status) for _ in range(sum(runs))]
    if not present:
        return rows
    formulas = []
    for _ in range(stream.varint()):
        target, byte = stream.varint(), stream.byte()
        need(byte // 8 < 5, "formula")
        formulas.append((target, byte // 8, byte % 8, [stream.varint() for _ in range(3 if byte // 8 == 1 else 2)]))
    columns: dict[int, list[int]] = {}
    targets = {formula[0] for formula in formulas}
    for number in range(len(present)):
        if number not in targets:
            columns[number] = stream.column(runs)
    for target, kind, k, operands in formulas:
        need(all(number in columns for number in operands) and target < len(present), "formula")
        column: list[int] = []
        for left, *row in zip(stream.column(runs), *(columns[number] for number in operands), strict=True):
            sign = -1 if kind >= 2 and column and column[-1] < 0 else 1
            column.append(left + sign * said(kind, k, row))
        columns[target] = column
    for number, quantity in enumerate(present):
        for row_values, x in zip(rows, columns[number], strict=True):
            row_values[quantity] = x
    return rows


def columns_of(data: bytes, limit: int) -> list[Any]:
    """Entries of a stream: bytes (other versions and types), or arrays without version and salt. §6.2"""
    stream = Stream(data)
    count, others = stream.varint(), stream.varint()
    need(others <= count <= limit, "count")
    shapes = shapes_of(stream)
    tables = stream.varint()
    need(tables <= count, "tables")
    heads = list(zip(*(stream.column([tables]) for _ in range(4)), strict=True)) if tables else []
    need(all(0 <= table[3] < len(shapes) for table in heads), "shape")
    symbols = order(stream, count, tables)
    runs = [symbols.count(1 + table) for table in range(tables)]
    need(symbols.count(0) == others and all(runs), "order")
    times = list(zip(*(stream.column(runs) for _ in range(4)), strict=True)) if tables else []
    of_shape: dict[int, list[list[int | None]]] = {}
    for shape, status in enumerate(shapes):
        mine = [run for run, table in zip(runs, heads, strict=True) if table[3] == shape]
        of_shape[shape] = values_of(stream, status, mine)
    sources: list[list[Any]] = [[other(stream) for _ in range(others)]]
    for (declaration, group, start, shape), run in zip(heads, runs, strict=True):
        status = shapes[shape] if any(shapes[shape]) else None
        readings = []
        for _ in range(run):
            time, span, clock, less = times.pop(0)
            values = of_shape[shape].pop(0)
            readings.append([3, declaration, group, time, span, clock, start, time - less, values, status])
        sources.append(readings)
    stream.end()
    return [sources[symbol].pop(0) for symbol in symbols]


def other(stream: Stream) -> Any:
    size = stream.varint()
    raw = stream.take(size // 2)
    return raw if size % 2 else cbor(raw)


def bytes_of(x: Any) -> bytes:
    """An item as deterministic CBOR, §2."""
    if x is None or isinstance(x, bool):
        return b"\xf6" if x is None else b"\xf5" if x else b"\xf4"
    if isinstance(x, int):
        return start_of(0, x) if x >= 0 else start_of(1, -1 - x)
    if isinstance(x, bytes):
        return start_of(2, len(x)) + x
    if isinstance(x, str):
        return start_of(3, len(x.encode())) + x.encode()
    return start_of(4, len(x)) + b"".join(map(bytes_of, x))


def start_of(major: int, argument: int) -> bytes:
    if argument < 24:
        return bytes([major << 5 | argument])
    width = next(n for n in range(4) if argument < 1 << (8 << n))
    return bytes([major << 5 | 24 + width]) + argument.to_bytes(1 << width, "big")


def batch(frame: bytes, origin: str, pem: str, leaves: list[bytes]) -> tuple[list[bytes], bytes]:
    """(canonical bytes of the entries, root) of a verified batch; ``leaves`` are all leaf hashes before it. §7"""
    need(len(frame) <= 262_144 and frame[:1] == b"\x01", "frame")
    need(hashlib.sha256(frame[:-16]).digest()[:16] == frame[-16:], "digest")
    array = cbor(frame[1:-16])
    need(isinstance(array, list) and len(array) == 14, "header")
    epoch, first, count, seeds, peaks, since, time_ms, clock, counter, _, kid, signature, method, packed = array
    need(is_id(epoch) and is_uint(first) and is_int(count, 1, 65_536) and is_int(since, 0, count), "header")
    need(is_int(time_ms) and is_clock(clock) and is_int(counter, 1) and is_bytes(signature, 64), "header")
    need(first == len(leaves), "another place in the log")
    spans = range(first // 256, (first + count - 1) // 256 + 1)
    need(is_bytes(seeds, 32 * len(spans)), "seeds")
    need(peaks is None or (first > 0 and peaks == frontier(leaves)), "frontier")
    entries = columns_of(unpacked(method, packed), count)
    need(len(entries) == count, "count")
    canonical = []
    for sequence, found in enumerate(entries, first):
        at = 32 * (sequence // 256 - spans[0])
        salt = stranger.salt(seeds[at : at + 32], sequence)
        raw = found if isinstance(found, bytes) else bytes_of([1, found[0], salt, *found[1:]])
        need((stranger.entry(raw)[0] == 1 and cbor(raw)[1] < 6) == (not isinstance(found, bytes)), "a known entry")
        canonical.append(raw)
    leaves = leaves + [stranger.leaf(raw) for raw in canonical]
    root, before = stranger.root(leaves), stranger.root(leaves[: first + since])
    name = "energybid checkpoint 1"
    fields = [name, origin, epoch, len(leaves), root, first + since, before, time_ms, clock, counter]
    payload = bytes_of(fields)
    key = stranger.load_pem_public_key(pem.encode())
    assert isinstance(key, stranger.Key)
    ed = isinstance(key, stranger.ed25519.Ed25519PublicKey)
    need(array[9] == (-8 if ed else -7) and kid == stranger.thumbprint(key)[:8], "key")
    protected = bytes.fromhex("a201 27 0448" if ed else "a201 26 0448") + kid
    stranger.verify(key, signature, bytes_of(["Signature1", protected, b"", payload]))
    stranger.checkpoint(payload)
    return canonical, root


def frontier(leaves: list[bytes]) -> bytes:
    hashes, at = b"", 0
    for bit in reversed(range(len(leaves).bit_length())):
        if len(leaves) & 1 << bit:
            hashes += stranger.root(leaves[at : at + (1 << bit)])
            at += 1 << bit
    return hashes


def unpacked(method: Any, packed: Any) -> bytes:
    """§6.6"""
    need(isinstance(packed, bytes) and is_int(method, 0, 1), "method")
    if method == 0:
        return bytes(packed)
    inflate = zlib.decompressobj(-15)
    try:
        raw = inflate.decompress(packed, 4_194_305)
    except zlib.error:
        raise stranger.Refused("deflate") from None
    need(inflate.eof and not inflate.unused_data and len(raw) <= 4_194_304, "deflate")
    return raw
