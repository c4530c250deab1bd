"""What the same bytes say and hash to is the same every time: simulations remember it.

A simulated day opens, checks, uploads and compares the same rows of a journal many times over, each time from its
bytes; a third of a run's CPU went into that. ``columns.decode`` is a function of its arguments alone and entries are
immutable, and so are the leaf hashes of a row that an opening journal checks (``rows.leaves_of``), given the seed of
their salts: the second time is the first one's answer. The key is all of the bytes: a single bit that differs is
decoded anew, and what does not decode is never remembered. Nothing else of the product is touched; the oracle decodes
by the same way but hashes by itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from energybid.agent import rows
from energybid.core.salt import SPAN
from energybid.sync import columns

if TYPE_CHECKING:
    from energybid.core.entries import Entry
    from energybid.core.log import Salts

ROWS_MAX = 4096
"""Rows whose entries are remembered; then those that were met first are forgotten, for order must not depend on
anything but the run itself."""
LEAVES_MAX = 65_536
"""Rows whose hashes are."""

K = TypeVar("K")
V = TypeVar("V")


def _kept(known: dict[K, V], key: K, value: V, most: int) -> V:
    if len(known) >= most:
        del known[next(iter(known))]
    known[key] = value
    return value


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, in this thread of execution's process, hardly a row is decoded twice, and none hashed twice."""
    decode, leaves_of = columns.decode, rows.leaves_of
    known: dict[tuple[bytes, bool], tuple[Entry, ...]] = {}
    hashed: dict[tuple[object, ...], tuple[bytes, ...]] = {}

    def quick(data: bytes, *, limit: int, trusted: bool = False) -> list["Entry"]:
        key = bytes(data), trusted
        entries = known.get(key)
        if entries is None or len(entries) > limit:
            entries = _kept(known, key, tuple(decode(data, limit=limit, trusted=trusted)), ROWS_MAX)
        return list(entries)

    def quick_leaves(salts: "Salts", segment: "rows.Segment") -> list[bytes]:
        key = salts.seed(segment.first // SPAN), segment[:2], segment[-4:]
        leaves = hashed.get(key)
        if leaves is None:
            leaves = _kept(hashed, key, tuple(leaves_of(salts, segment)), LEAVES_MAX)
        return list(leaves)

    columns.decode, rows.leaves_of = quick, quick_leaves
    try:
        yield
    finally:
        columns.decode, rows.leaves_of = decode, leaves_of
