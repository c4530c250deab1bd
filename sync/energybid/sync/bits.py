"""Vectors of integers as few bits, in plain Python at a few tenths of a microsecond each (docs/formats.md §6).

Rice codes, but not one after another: all quotients go into one bit string in unary, all low bits into another, so that
both are made by table look-up and ``str.join`` and read by ``str.split`` and slices. Nothing here knows what the
integers mean. Which parameter a vector has is a *choice*: it stands in the bytes, and a decoder takes any.

A **varint** is little-endian base 128, the high bit set in all bytes but the last, no needless last byte of zero.
A **signed** integer x is written as 2x if x ≥ 0, else as -2x - 1.

A **vector** of n unsigned integers (n is known from elsewhere, a vector of none is not written at all) is::

    choice 0 to 28   k = choice: each integer is quotient = x >> k and k low bits, most significant first. The quotient
                     is so many 0 and a 1 in the unary plane; from 32 on it is 32 times 0 and a 1, and
                     quotient - 32 is a varint in the escapes.
    choice 30        sparse: control has the number m of integers above zero, 0 < m < n, as a varint, then the choices
                     of two vectors of m: how many zeros stand before each of them, and the integers less 1. Neither
                     is sparse.
    choice 31        all zero: nothing more.

The **stream** is: varints of the lengths in bytes of control, escapes and unary plane; control; escapes; unary plane;
low plane, to the end. Both planes begin at the most significant bit of their first byte and are filled up with zeros.
"""

from collections.abc import Callable, Sequence
from typing import Any

from energybid.core.errors import EvidenceError

ZERO, SPARSE = 31, 30
K_MAX = 28
CHOICE_BITS, CHOICE_MASK = 5, 31
ESCAPE = 32
"""Quotients from here on are escaped."""
TOKENS_MAX = 1 << 22
"""Most integers that one stream may write out."""
_VARINT_MAX = 20
"""Longest varint, bytes: products of two 64-bit numbers fit."""
_TABLE_BITS = 10
"""Low bits up to so many are looked up."""

_UNARY = tuple("0" * q + "1" for q in range(ESCAPE + 1))
_LOWS = tuple(tuple(f"{x:0{k}b}" for x in range(1 << k)) for k in range(_TABLE_BITS + 1))
_VALUES = tuple({text: x for x, text in enumerate(texts)} for texts in _LOWS)


def put_varint(out: bytearray, x: int) -> None:
    """Append an unsigned integer."""
    while x > 0x7F:  # noqa: PLR2004  seven bits a byte
        out.append(x & 0x7F | 0x80)
        x >>= 7
    out.append(x)


def folded(values: Sequence[int]) -> list[int]:
    """Signed → unsigned; small stays small."""
    return [x << 1 if x >= 0 else ~(x << 1) for x in values]


def unfolded(values: Sequence[int]) -> list[int]:
    """Undo ``folded``."""
    return [x >> 1 ^ -(x & 1) for x in values]


def choose(values: Sequence[int], *, dense: bool = False) -> int:
    """A good choice for a vector of unsigned integers, not always the best.

    The mean number of significant bits says it: unlike the mean it does not follow a few large outliers.

    Args:
        values: At least one.
        dense: Not SPARSE.
    """
    size, zeros = len(values), values.count(0)
    if zeros == size:
        return ZERO
    if zeros * 5 > size * 4 and size > 8 and not dense:  # noqa: PLR2004  fewer bits from about there on
        return SPARSE
    k = (sum(map(int.bit_length, values)) * 16 + size * 11) // (size * 16) - 1
    return min(max(k, 0), K_MAX)


def _bytes_of(text: str) -> bytes:
    size = (len(text) + 7) // 8
    return int(text.ljust(size * 8, "0"), 2).to_bytes(size, "big") if text else b""


def _text_of(data: bytes) -> str:
    return bin(int.from_bytes(b"\1" + data, "big"))[3:]


class Writer:
    """Takes varints and vectors; ``finish`` gives the stream."""

    def __init__(self, chooser: Callable[..., int] = choose) -> None:
        """Begin an empty stream; ``chooser`` has the form of ``choose``."""
        self.control = bytearray()
        self.choose = chooser
        self._escapes = bytearray()
        self._unary: list[str] = []
        self._lows: list[str] = []

    def varint(self, x: int) -> None:
        """Write an unsigned integer to control."""
        put_varint(self.control, x)

    def vector(self, values: Sequence[int]) -> None:
        """Write a byte with the choice, and the vector, if it is not empty."""
        if values:
            choice = self.choose(values)
            self.control.append(choice)
            self.chosen(values, choice)

    def chosen(self, values: Sequence[int], choice: int) -> None:
        """Write a vector, at least one unsigned integer, whose choice the caller has written."""
        if choice == SPARSE:
            self._sparse(values)
        elif choice != ZERO:
            self._rice(values, choice)

    def _rice(self, values: Sequence[int], k: int) -> None:
        quotients = [x >> k for x in values] if k else values
        try:
            self._unary.append("".join(map(_UNARY.__getitem__, quotients)))
            # Index 32 is the escape's own token: found here, as it raises no IndexError.
            escaped = ESCAPE in quotients
        except IndexError:
            escaped = True
            self._unary.append("".join([_UNARY[min(q, ESCAPE)] for q in quotients]))
        if escaped:
            for q in quotients:
                if q >= ESCAPE:
                    put_varint(self._escapes, q - ESCAPE)
        if k > _TABLE_BITS:
            mask, one = (1 << k) - 1, 1 << k
            self._lows.extend([bin(x & mask | one)[3:] for x in values])  # "0b1" and the low bits
        elif k:
            mask, texts = (1 << k) - 1, _LOWS[k]
            self._lows.append("".join([texts[x & mask] for x in values]))

    def _sparse(self, values: Sequence[int]) -> None:
        places = [place for place, x in enumerate(values) if x]
        gaps = [place - before - 1 for before, place in zip([-1, *places], places, strict=False)]
        self.varint(len(places))
        for part in (gaps, [values[place] - 1 for place in places]):
            choice = self.choose(part, dense=True)
            self.control.append(choice)
            self.chosen(part, choice)

    def finish(self) -> bytes:
        """The whole stream."""
        unary = _bytes_of("".join(self._unary))
        out = bytearray()
        for part in (self.control, self._escapes, unary):
            put_varint(out, len(part))
        return bytes(out + self.control + self._escapes + unary) + _bytes_of("".join(self._lows))


class _Cursor:
    """A place in untrusted bytes."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def varint(self) -> int:
        x = shift = 0
        while True:
            if self.at >= len(self.data) or shift >= 7 * _VARINT_MAX:
                raise EvidenceError("columns: cut off, or a number is too long")
            byte = self.data[self.at]
            self.at += 1
            x |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004  the last byte
                return x
            shift += 7

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise EvidenceError("columns: cut off")
        self.at += size
        return self.data[self.at - size : self.at]

    def left(self) -> int:
        return len(self.data) - self.at


def head(data: bytes, count: int) -> list[int]:
    """The first varints of a stream's control, without a look at the rest.

    Raises:
        EvidenceError: It is cut off.
    """
    whole = _Cursor(data)
    control, _, _ = (whole.varint() for _ in range(3))
    cursor = _Cursor(whole.take(control))
    return [cursor.varint() for _ in range(count)]


class Reader:
    """Reads a stream that may be anything.

    Raises:
        EvidenceError: From every method: cut off, or not what a Writer writes.
    """

    def __init__(self, data: bytes) -> None:
        """Take the stream apart."""
        whole = _Cursor(data)
        sizes = [whole.varint() for _ in range(3)]
        control, escapes, unary = map(whole.take, sizes)
        self._control, self._escapes = _Cursor(control), _Cursor(escapes)
        if int.from_bytes(unary, "big").bit_count() > TOKENS_MAX:
            raise EvidenceError(f"columns: more than {TOKENS_MAX} numbers")
        self._quotients = list(map(len, _text_of(unary).split("1")))
        self._quotients.pop()  # what fills the last byte
        self._token = 0
        self._lows = _text_of(whole.take(whole.left()))
        self._low = 0
        self.choices: list[Any] = []
        """Every choice met, in the order in which a writer asks for them."""

    def varint(self) -> int:
        """An unsigned integer from control."""
        return self._control.varint()

    def byte(self) -> int:
        """One byte of control."""
        return self._control.take(1)[0]

    def take(self, size: int) -> bytes:
        """Bytes of control."""
        return self._control.take(size)

    def vector(self, size: int) -> list[int]:
        """A choice and a vector of ``size`` unsigned integers."""
        return self.chosen(size, self.byte()) if size else []

    def chosen(self, size: int, choice: int) -> list[int]:
        """A vector of ``size`` unsigned integers, at least one, whose choice the caller has read."""
        self.choices.append(choice)
        if choice == ZERO:
            return [0] * size
        if choice == SPARSE:
            return self._sparse(size)
        if choice > K_MAX:
            raise EvidenceError(f"columns: there is no way {choice} to write a vector")
        return self._rice(size, choice)

    def _rice(self, size: int, k: int) -> list[int]:
        quotients = self._quotients[self._token : self._token + size]
        self._token += size
        end = self._low + k * size
        if len(quotients) != size or end > len(self._lows):
            raise EvidenceError("columns: cut off")
        if max(quotients) >= ESCAPE:
            quotients = [q if q < ESCAPE else self._escaped(q) for q in quotients]
        if not k:
            return quotients
        text, places = self._lows, range(self._low, end, k)
        self._low = end
        if k > _TABLE_BITS:
            return [q << k | int(text[place : place + k], 2) for q, place in zip(quotients, places, strict=True)]
        values = _VALUES[k]
        return [q << k | values[text[place : place + k]] for q, place in zip(quotients, places, strict=True)]

    def _escaped(self, quotient: int) -> int:
        if quotient > ESCAPE:
            raise EvidenceError("columns: a quotient is too long")
        return ESCAPE + self._escapes.varint()

    def _sparse(self, size: int) -> list[int]:
        count = self.varint()
        if not 0 < count < size:
            raise EvidenceError("columns: a sparse vector that is none")
        gaps, rest = (self.chosen(count, self._dense()) for _ in range(2))
        values, place = [0] * size, -1
        for gap, x in zip(gaps, rest, strict=True):
            place += gap + 1
            if place >= size:
                raise EvidenceError("columns: a sparse vector is too long")
            values[place] = x + 1
        return values

    def _dense(self) -> int:
        choice = self.byte()
        if choice == SPARSE:
            raise EvidenceError("columns: a sparse vector inside another")
        return choice

    def end(self) -> None:
        """Check that all was read (what only fills the last bytes is left to the re-encoding check)."""
        if self._control.left() or self._escapes.left() or self._token != len(self._quotients):
            raise EvidenceError("columns: bytes are left over")
        if len(self._lows) - self._low >= 8:  # noqa: PLR2004  bits of a byte
            raise EvidenceError("columns: bits are left over")
