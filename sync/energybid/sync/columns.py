"""Columns: entries of the log as few bytes, and back, exactly (docs/formats.md §6).

Entries in log order become one stream of ``bits.py``, the same on every machine and Python. Readings are torn apart
into tables, tables into columns; each column is predicted (``formulas.py``, ``predict.py``) and what is left is written
as vectors. Every other entry travels as it is, without its salt. Compression is a step of its own: ``pack``.

Nothing here knows sequence numbers, salts or hashes; those are the batch's and the journal's.

**Choices.** How to predict and how to write a vector is the encoder's to choose, and the choice is in the bytes: a
decoder follows any, so encoders may become cleverer without a new format. Under its own choices each stream is the only
one for its entries, and ``decode`` checks that by encoding again.

**Layout.** All of it is in control but for what vectors put elsewhere; each line in turn::

    entries    varint: how many
    others     varint: how many of them are not readings
    shapes     varint: how many; for each: varint number of values, then the statuses: varint number of runs (0: all
               OK), for each run varint length and varint status
    tables     varint: how many, at most the readings. A table is all readings of one declaration, group, start, shape;
               tables and shapes stand in order of first appearance. Four columns, each of a single run of all tables:
               declaration, group, start, number of the shape
    order      varint n, then if n > 0 a vector (after its choice) of n unsigned integers: see below
    times      four columns of all readings, table after table, a run a table: time_ms, span_ms, clock,
               time_ms - mono_ms
    values     for each shape that has numbers: formulas, then one column for each quantity with a number, over all
               tables of that shape, a run a table: first those without a formula in ascending order, then the targets
               in the order of their formulas
    entries    that are not readings, in log order: varint (bytes x 2 + 1 if Unknown), then the bytes: canonical bytes
               of an Unknown, else the deterministic CBOR array [type, *fields]

**Order.** Each entry has a symbol: 0 if it is no reading, else 1 + its table. After a symbol the one that followed it
last is expected; where none has yet (and at the start), the lowest table not seen, or 1 when all were. The vector holds
how many entries were as expected, then the symbol that was not, and so on; at the end of the entries it stops, behind a
symbol if the last entry was unexpected, else behind a count.

**Formulas.** varint how many, at most 64; for each varint target, a byte of kind x 8 + k, varints of the operands.
Columns are numbered among those of the shape that have numbers. Each operand has no formula, or an earlier one.

**A column.** A byte: mode x 32 + the choice of its first vector; for PACED the pace, signed; then by mode: PLAIN: the
vector of all numbers; else the vector of the firsts, and, if a run is longer than one, a byte: the choice of the vector
of the rests, and that vector. All are signed integers. The pace is not 0; where all runs are of one number, the mode is
PLAIN or DELTA; the rests of SMOOTH are not all 0.
"""

import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from energybid.core import cbor
from energybid.core.entries import (
    STATUS_MAX,
    TYPE_OF,
    UINT_MAX,
    VALUES_MAX,
    Entry,
    Known,
    Reading,
    Unknown,
    check,
    parse,
)
from energybid.core.errors import EvidenceError
from energybid.core.quantities import MANTISSA_MAX, MANTISSA_MIN, ClockState, Status
from energybid.sync import bits, formulas, predict
from energybid.sync.formulas import Formula
from energybid.sync.predict import DELTA, PACED, PLAIN, SMOOTH, Runs

RAW_MAX = 4 * 1024 * 1024
"""Most bytes of columns before compression that anything here accepts."""
CELLS_MAX = 1 << 20
"""Most values of readings in one stream (a constant column costs no bytes, so this bounds the memory)."""
STORED, DEFLATE = 0, 1
"""Compression methods of ``pack``."""

_Columns = Sequence[Sequence[int]]
_KINDS: dict[int, type[Known]] = {number: kind for kind, number in TYPE_OF.items() if kind is not Reading}
_TRIED = 32
"""Formulas are tried on about so many rows."""
_STREAMS_KEPT, _SHAPES_KEPT = 100, 256
"""How many streams of how many shapes do without a search after one."""
_FORMULA_BITS = 32
"""What a formula costs by itself, about."""


class TooLargeError(ValueError):
    """More than one stream holds: take fewer entries."""


class _Shape(NamedTuple):
    """What tables whose columns stand side by side have in common."""

    width: int
    status: tuple[int, ...] | None

    def present(self) -> list[int]:
        """Which quantities have numbers."""
        if self.status is None:
            return list(range(self.width))
        return [i for i, mark in enumerate(self.status) if not 0 < mark < Status.SUSPECT]


class _Table(NamedTuple):
    """What the readings of a table have in common."""

    declaration: int
    group: int
    start: int
    shape: int


def _runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(start, end) of runs of these sizes, one after another."""
    runs, at = [], 0
    for size in sizes:
        runs.append((at, at + size))
        at += size
    return runs


# ---------------------------------------------------------------- choices


class Memory:
    """Which formulas held in earlier streams of one encoder, so that not every stream need search for them."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._found: dict[_Shape, tuple[int, list[Formula]]] = {}

    def recall(self, shape: _Shape) -> list[Formula] | None:
        """Formulas that held for such tables lately; None: search."""
        left, found = self._found.get(shape, (0, []))
        if not left:
            return None
        self._found[shape] = (left - 1, found)
        return found

    def keep(self, shape: _Shape, found: list[Formula]) -> None:
        """Remember what a search found."""
        if len(self._found) >= _SHAPES_KEPT:
            self._found.clear()
        self._found[shape] = (_STREAMS_KEPT, found)


class _Fresh:
    """Makes good choices."""

    vector = staticmethod(bits.choose)

    def __init__(self, memory: Memory | None = None) -> None:
        self._memory = memory

    @staticmethod
    def column(column: Sequence[int], runs: Runs, heads: Sequence[int], *, plain: bool) -> tuple[int, int, list[int]]:
        """(mode, pace, rests) of a column."""
        return predict.choose(column, runs, heads, plain=plain)[:3]

    def formulas(self, shape: _Shape, columns: _Columns, runs: Runs) -> list[Formula]:
        """Formulas that pay."""
        found = self._memory.recall(shape) if self._memory else None
        if found is None:
            found = _paying(columns, runs)
            if self._memory and len(columns[0]) >= _TRIED:
                self._memory.keep(shape, found)
        return found


def _paying(columns: _Columns, runs: Runs) -> list[Formula]:
    """Formulas that pay, as far as the first rows tell."""
    found = formulas.search(columns)
    if not found:
        return found
    height = runs[-1][1]
    runs = runs[: 1 + next((place for place, (_, end) in enumerate(runs) if end >= _TRIED), len(runs))]
    tried = [column[: runs[-1][1]] for column in columns]
    price = _FORMULA_BITS * runs[-1][1] // height

    def bits_left(column: Sequence[int], *, plain: bool) -> int:
        return predict.choose(column, runs, predict.firsts(column, runs), plain=plain)[3]

    return [
        formula
        for formula in found
        if bits_left(formulas.subtract(formula, tried[formula.target], tried), plain=True) + price
        < bits_left(tried[formula.target], plain=False)
    ]


class _Again:
    """Makes the choices that a reader met, in their order."""

    def __init__(self, choices: list[Any]) -> None:
        self._choices: Iterator[Any] = iter(choices)

    def vector(self, values: Sequence[int], *, dense: bool = False) -> int:  # noqa: ARG002  like bits.choose
        choice: int = next(self._choices)
        return choice

    def column(
        self,
        column: Sequence[int],
        runs: Runs,
        heads: Sequence[int],  # noqa: ARG002
        *,
        plain: bool,  # noqa: ARG002
    ) -> tuple[int, int, list[int]]:
        mode, pace = next(self._choices)
        return mode, pace, [] if mode == PLAIN else predict.rests(column, runs, mode, pace)

    def formulas(self, *_: object) -> list[Formula]:
        chosen: list[Formula] = next(self._choices)
        return chosen


# ---------------------------------------------------------------- order


def _expected(symbol: int, after: dict[int, int], seen: int, tables: int) -> int:
    """The symbol expected after ``symbol``, when tables 1 to ``seen`` were seen."""
    following = after.get(symbol)
    if following is not None:
        return following
    return seen + 1 if seen < tables else min(1, tables)


def _surprises(symbols: Sequence[int], tables: int) -> list[int]:
    """How many symbols were as expected, the one that was not, and so on."""
    after: dict[int, int] = {}
    out, run, seen, last = [], 0, 0, 0
    for symbol in symbols:
        if symbol == _expected(last, after, seen, tables):
            run += 1
        else:
            out += [run, symbol]
            run = 0
        after[last] = last = symbol
        seen = max(seen, symbol)
    return [*out, run] if run else out


def _symbols(surprises: Sequence[int], count: int, tables: int) -> list[int]:
    """Undo ``_surprises`` for ``count`` symbols."""
    after: dict[int, int] = {}
    out: list[int] = []
    seen = last = 0
    for place, number in enumerate(surprises):
        if number > (tables if place & 1 else count - len(out)):
            raise EvidenceError("columns: the order of the entries is broken")
        for _ in range(1 if place & 1 else number):
            symbol = number if place & 1 else _expected(last, after, seen, tables)
            out.append(symbol)
            after[last] = last = symbol
            seen = max(seen, symbol)
    if len(out) != count:
        raise EvidenceError("columns: the order of the entries is broken")
    return out


# ---------------------------------------------------------------- encoding


class _Encoder:
    """Writes one stream."""

    def __init__(self, choices: _Fresh | _Again) -> None:
        self._choices = choices
        self._out = bits.Writer(choices.vector)
        self._others: list[Entry] = []
        self._shapes: dict[_Shape, int] = {}
        self._tables: dict[_Table, int] = {}
        self._readings: list[list[Reading]] = []

    def stream(self, entries: Sequence[Entry]) -> bytes:
        """The whole stream."""
        symbols = self._split(entries)
        out = self._out
        out.varint(len(entries))
        out.varint(len(self._others))
        out.varint(len(self._shapes))
        for shape in self._shapes:
            self._shape(shape)
        out.varint(len(self._tables))
        if self._tables:
            for column in zip(*self._tables, strict=True):
                self._column(column, [(0, len(column))])
        surprises = _surprises(symbols, len(self._tables))
        out.varint(len(surprises))
        out.vector(surprises)
        if self._tables:
            self._times()
            for number, shape in enumerate(self._shapes):
                self._values(shape, [t.shape == number for t in self._tables])
        for entry in self._others:
            self._other(entry)
        return out.finish()

    def _split(self, entries: Sequence[Entry]) -> list[int]:
        """Sort the entries out; returns the symbol of each."""
        symbols: list[int] = []
        known: dict[tuple[Any, ...], int] = {}
        cells = 0
        for entry in entries:
            if not isinstance(entry, Reading):
                self._others.append(entry)
                symbols.append(0)
                continue
            declaration, group, _, _, _, start, _, values, status = entry
            width = len(values)
            cells += width
            key = (declaration, group, start, width, status)
            symbol = known.get(key)
            if symbol is None:
                shape = self._shapes.setdefault(_Shape(width, status), len(self._shapes))
                symbol = known[key] = len(known) + 1
                self._tables[_Table(declaration, group, start, shape)] = symbol
                self._readings.append([])
            self._readings[symbol - 1].append(entry)
            symbols.append(symbol)
        if cells > CELLS_MAX:
            raise TooLargeError(f"{cells} values; one stream holds at most {CELLS_MAX}")
        return symbols

    def _shape(self, shape: _Shape) -> None:
        self._out.varint(shape.width)
        runs: list[list[int]] = []
        for mark in shape.status or ():
            if runs and runs[-1][1] == mark:
                runs[-1][0] += 1
            else:
                runs.append([1, mark])
        self._out.varint(len(runs))
        for number in chain.from_iterable(runs):
            self._out.varint(number)

    def _times(self) -> None:
        runs = _runs(list(map(len, self._readings)))
        readings = list(chain.from_iterable(self._readings))
        time = [r[2] for r in readings]
        self._column(time, runs)
        self._column([r[3] for r in readings], runs)
        self._column([r[4] for r in readings], runs)
        self._column([t - r[6] for t, r in zip(time, readings, strict=True)], runs)

    def _values(self, shape: _Shape, mine: list[bool]) -> None:
        """Columns of the tables of one shape."""
        present = shape.present()
        if not present:
            return
        tables = [readings for readings, is_mine in zip(self._readings, mine, strict=True) if is_mine]
        runs = _runs(list(map(len, tables)))
        every: list[Any] = list(zip(*[reading[7] for readings in tables for reading in readings], strict=True))
        columns = [every[number] for number in present]
        chosen = self._choices.formulas(shape, columns, runs)
        self._formulas(chosen)
        targets = {formula.target for formula in chosen}
        for number, column in enumerate(columns):
            if number not in targets:
                self._column(column, runs)
        for formula in chosen:
            self._column(formulas.subtract(formula, columns[formula.target], columns), runs, plain=True)

    def _formulas(self, chosen: list[Formula]) -> None:
        self._out.varint(len(chosen))
        for formula in chosen:
            self._out.varint(formula.target)
            self._out.control.append(formula.kind << 3 | formula.decimals)
            for operand in formula.operands:
                self._out.varint(operand)

    def _column(self, column: Sequence[int], runs: Runs, *, plain: bool = False) -> None:
        out, heads = self._out, predict.firsts(column, runs)
        mode, pace, rest = self._choices.column(column, runs, heads, plain=plain)
        first = bits.folded(column if mode == PLAIN else heads)
        choice = out.choose(first)
        out.control.append(mode << bits.CHOICE_BITS | choice)
        if mode == PACED:
            out.varint(bits.folded((pace,))[0])
        out.chosen(first, choice)
        if rest:
            out.vector(bits.folded(rest))

    def _other(self, entry: Entry) -> None:
        unknown = isinstance(entry, Unknown)
        raw = entry.raw if isinstance(entry, Unknown) else cbor.encode((TYPE_OF[type(entry)], *entry))
        self._out.varint(len(raw) << 1 | unknown)
        self._out.control += raw


def encode(entries: Sequence[Entry], *, memory: Memory | None = None) -> bytes:
    """Entries → bytes, uncompressed; the same bytes on every machine.

    Args:
        entries: Valid ones (``energybid.core.entries.check``), in log order.
        memory: Of streams of the same meters before. Spares about a third of the time for a few hundred values; then
            the bytes depend on it too.

    Raises:
        TooLargeError: More than CELLS_MAX values of readings, or RAW_MAX bytes.
    """
    raw = _Encoder(_Fresh(memory)).stream(entries)
    if len(raw) > RAW_MAX:
        raise TooLargeError(f"{len(raw)} bytes of columns; at most {RAW_MAX} are allowed")
    return raw


# ---------------------------------------------------------------- decoding


def _within(values: Sequence[int], least: int, most: int, name: str) -> Sequence[int]:
    if min(values) < least or max(values) > most:
        raise EvidenceError(f"columns: {name} is out of its bounds")
    return values


class _Decoder:
    """Reads one stream that may be anything."""

    def __init__(self, data: bytes) -> None:
        self._in = bits.Reader(data)

    def entries(self, limit: int) -> list[Entry]:
        """The entries, each valid."""
        count, others = self._in.varint(), self._in.varint()
        if count > limit or others > count:
            raise EvidenceError(f"columns: {count} entries; at most {limit} are allowed")
        shapes = self._shapes(count - others)
        tables = self._tables(count - others, len(shapes))
        symbols = self._order(count, len(tables))
        sizes = [0] * (len(tables) + 1)
        for symbol in symbols:
            sizes[symbol] += 1
        if sizes[0] != others:
            raise EvidenceError("columns: the order does not fit the entries")
        sources: list[Iterator[Entry]] = list(map(iter, self._readings(shapes, tables, sizes[1:])))
        sources.insert(0, iter([self._other() for _ in range(others)]))
        self._in.end()
        return [next(sources[symbol]) for symbol in symbols]

    def choices(self) -> list[Any]:
        """What the encoder chose, for ``_Again``."""
        return self._in.choices

    def _bounded(self, most: int, name: str) -> int:
        count = self._in.varint()
        if count > most:
            raise EvidenceError(f"columns: {count} {name}; at most {most} are possible here")
        return count

    def _shapes(self, most: int) -> list[_Shape]:
        shapes: list[_Shape] = []
        cells = 0
        for _ in range(self._bounded(most, "shapes")):
            shapes.append(self._shape())
            cells += shapes[-1].width
            if cells > CELLS_MAX:
                raise EvidenceError(f"columns: more than {CELLS_MAX} values")
        if len(set(shapes)) != len(shapes):
            raise EvidenceError("columns: a shape twice")
        return shapes

    def _shape(self) -> _Shape:
        width = self._bounded(VALUES_MAX, "values")
        status: list[int] = []
        for _ in range(self._bounded(width, "statuses")):
            length = self._bounded(width - len(status), "statuses")
            status += [self._bounded(STATUS_MAX, "as a status")] * length
        if not width or (status and (len(status) != width or not any(status))):
            raise EvidenceError("columns: a table without values, or with statuses that do not fit them")
        return _Shape(width, tuple(status) or None)

    def _tables(self, most: int, shapes: int) -> list[_Table]:
        count = self._bounded(most, "tables")
        if not count and not shapes:
            return []
        if not count:
            raise EvidenceError("columns: shapes without tables")
        columns = [
            _within(self._column([(0, count)]), 0, top, "a table's head")
            for top in (UINT_MAX, UINT_MAX, UINT_MAX, shapes - 1)
        ]
        tables = [_Table(*row) for row in zip(*columns, strict=True)]
        if len(set(tables)) != count or list(dict.fromkeys(columns[-1])) != list(range(shapes)):
            raise EvidenceError("columns: a table twice, or a shape at the wrong place")
        return tables

    def _order(self, count: int, tables: int) -> list[int]:
        """The entries' symbols; tables must appear in their own order."""
        surprises = self._in.vector(self._bounded(2 * count, "surprises"))
        symbols = _symbols(surprises, count, tables)
        seen = [symbol for symbol in dict.fromkeys(symbols) if symbol]
        if seen != list(range(1, tables + 1)) or surprises != _surprises(symbols, tables):
            raise EvidenceError("columns: the order of the entries is not in its one form")
        return symbols

    def _readings(self, shapes: list[_Shape], tables: list[_Table], sizes: list[int]) -> list[list[Reading]]:
        """Readings of each table."""
        if not tables:
            return []
        if sum(size * shapes[table.shape].width for table, size in zip(tables, sizes, strict=True)) > CELLS_MAX:
            raise EvidenceError(f"columns: more than {CELLS_MAX} values")
        runs = _runs(sizes)
        times = self._times(runs)
        values: list[list[Any]] = [[] for _ in tables]
        for number, shape in enumerate(shapes):
            mine = [place for place, table in enumerate(tables) if table.shape == number]
            rows = self._values(shape, _runs([sizes[place] for place in mine]))
            at = 0
            for place in mine:
                values[place] = rows[at : at + sizes[place]]
                at += sizes[place]
        return [
            [
                Reading(
                    table.declaration,
                    table.group,
                    time,
                    span,
                    clock,
                    table.start,
                    mono,
                    row,
                    shapes[table.shape].status,
                )
                for (time, span, clock, mono), row in zip(times[start:end], rows, strict=True)
            ]
            for table, (start, end), rows in zip(tables, runs, values, strict=True)
        ]

    def _times(self, runs: Runs) -> list[tuple[int, int, int, int]]:
        time = _within(self._column(runs), MANTISSA_MIN, MANTISSA_MAX, "time_ms")
        span = _within(self._column(runs), 0, UINT_MAX, "span_ms")
        clock = _within(self._column(runs), 0, ClockState.SYNCHRONISED, "clock")
        offset = self._column(runs)
        mono = _within([t - o for t, o in zip(time, offset, strict=True)], 0, UINT_MAX, "mono_ms")
        return list(zip(time, span, clock, mono, strict=True))

    def _values(self, shape: _Shape, runs: Runs) -> list[tuple[int | None, ...]]:
        """Rows of all tables of one shape."""
        height, present = runs[-1][1], shape.present()
        columns: list[list[int]] = [[] for _ in present]
        chosen = self._formulas(len(present)) if present else []
        targets = {formula.target for formula in chosen}
        for number in range(len(present)):
            if number not in targets:
                columns[number] = self._checked(self._column(runs))
        for formula in chosen:
            columns[formula.target] = self._checked(formulas.restore(formula, self._column(runs), columns))
        every: list[list[Any]] = [[None] * height] * shape.width
        for number, column in zip(present, columns, strict=True):
            every[number] = column
        return list(zip(*every, strict=True))

    @staticmethod
    def _checked(column: list[int]) -> list[int]:
        _within(column, MANTISSA_MIN, MANTISSA_MAX, "a value")
        return column

    def _formulas(self, width: int) -> list[Formula]:
        chosen = [self._formula() for _ in range(self._bounded(min(width, formulas.SEARCHED_MAX), "formulas"))]
        later = {formula.target for formula in chosen}
        if len(later) != len(chosen):
            raise EvidenceError("columns: two formulas for one column")
        for formula in chosen:
            if max(formula.target, *formula.operands) >= width or not later.isdisjoint(formula.operands):
                raise EvidenceError("columns: a formula needs what is not known")
            later.discard(formula.target)
        self._in.choices.append(chosen)
        return chosen

    def _formula(self) -> Formula:
        target, byte = self._in.varint(), self._in.byte()
        kind, decimals = byte >> 3, byte & 7
        if kind >= len(formulas.OPERANDS) or decimals > (formulas.DECIMALS_MAX if kind == formulas.PRODUCT else 0):
            raise EvidenceError(f"columns: there is no formula {byte}")
        return Formula(target, kind, tuple(self._in.varint() for _ in range(formulas.OPERANDS[kind])), decimals)

    def _column(self, runs: Runs) -> list[int]:
        byte = self._in.byte()
        mode, choice = byte >> bits.CHOICE_BITS, byte & bits.CHOICE_MASK
        if mode > SMOOTH:
            raise EvidenceError(f"columns: there is no way {mode} to predict a column")
        height = runs[-1][1]
        pace = bits.unfolded((self._in.varint(),))[0] if mode == PACED else 0
        if (mode == PACED and not pace) or (mode > DELTA and height == len(runs)):
            raise EvidenceError("columns: a column is predicted in a way that changes nothing")
        self._in.choices.append((mode, pace))
        first = bits.unfolded(self._in.chosen(height if mode == PLAIN else len(runs), choice))
        if mode == PLAIN:
            return first
        rest = bits.unfolded(self._in.vector(height - len(runs)))
        if mode == SMOOTH and not any(rest):
            raise EvidenceError("columns: a column is predicted in a way that changes nothing")
        return predict.undo(first, rest, runs, mode, pace)

    def _other(self) -> Entry:
        size = self._in.varint()
        raw = self._in.take(size >> 1)
        if size & 1:
            if not isinstance(parse(raw)[1], Unknown):
                raise EvidenceError("columns: a known entry that travels as an unknown one")
            return Unknown(raw)
        item = cbor.decode(raw)
        if not isinstance(item, list) or not item or type(item[0]) is not int or item[0] not in _KINDS:
            raise EvidenceError("columns: not an entry")
        kind = _KINDS[item[0]]
        if len(item) != 1 + len(kind._fields):
            raise EvidenceError("columns: an entry with the wrong number of fields")
        entry = kind(*map(_tuples, item[1:]))
        check(entry)
        return entry


def _tuples(item: Any) -> Any:  # noqa: ANN401
    return tuple(map(_tuples, item)) if isinstance(item, list) else item


def decode(data: bytes, *, limit: int, trusted: bool = False) -> list[Entry]:
    """Bytes → entries, each valid.

    Args:
        data: What ``encode`` made.
        limit: Most entries.
        trusted: The bytes are protected otherwise: do not check that they re-encode to themselves.

    Raises:
        EvidenceError: Broken, longer than ``limit``, or not what their own choices make of these entries.
    """
    if len(data) > RAW_MAX:
        raise EvidenceError(f"columns: {len(data)} bytes; at most {RAW_MAX} are allowed")
    decoder = _Decoder(data)
    entries = decoder.entries(limit)
    if not trusted and _Encoder(_Again(decoder.choices())).stream(entries) != data:
        raise EvidenceError("columns: not the encoding of these entries")
    return entries


def others(data: bytes) -> int:
    """How many entries of a stream are no readings: who looks for others need not decode those without.

    Raises:
        EvidenceError: It is cut off.
    """
    return bits.head(data, 2)[1]


# ---------------------------------------------------------------- compression


def pack(raw: bytes) -> tuple[int, bytes]:
    """(method, bytes): the smallest of the compression methods. Its bytes may differ between zlib's builds."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
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
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        raw = unpacker.decompress(data, limit + 1)
    except zlib.error as error:
        raise EvidenceError(f"columns: deflate: {error}") from None
    if len(raw) > limit or not unpacker.eof or unpacker.unused_data or unpacker.unconsumed_tail:
        raise EvidenceError(f"columns: broken deflate stream, or more than {limit} bytes")
    return raw
