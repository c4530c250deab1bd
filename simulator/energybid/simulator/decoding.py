"""Decoding the same bytes twice gives the same entries: simulations remember them.

A simulated day opens, checks, uploads and compares the same rows of a journal many times over, each time from its
bytes; a third of a run's CPU went into that. ``columns.decode`` is a function of its arguments alone and entries are
immutable, so the second time is the first one's answer. The key is all of the bytes: a single bit that differs is
decoded anew, and what does not decode is never remembered. Nothing else of the product is touched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from energybid.sync import columns

if TYPE_CHECKING:
    from energybid.core.entries import Entry

ROWS_MAX = 20_000
"""Rows that are remembered; then all are forgotten, for order must not depend on anything but the run itself."""


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, in this thread of execution's process, no row is decoded twice."""
    decode = columns.decode
    known: dict[tuple[bytes, int, bool], tuple[Entry, ...]] = {}

    def quick(data: bytes, *, limit: int, trusted: bool = False) -> list["Entry"]:
        key = bytes(data), limit, trusted
        entries = known.get(key)
        if entries is None:
            if len(known) >= ROWS_MAX:
                known.clear()
            entries = known[key] = tuple(decode(data, limit=limit, trusted=trusted))
        return list(entries)

    columns.decode = quick
    try:
        yield
    finally:
        columns.decode = decode
