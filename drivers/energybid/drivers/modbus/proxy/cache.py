"""What was read of a bus lately, by polls and for masters: answers that cost the bus nothing. Pure; bounded.

A request is answered only from registers that came in **one** reply: two replies put together could hold the halves of
a number from two moments. Age counts from when the request was sent.
"""

from collections import defaultdict

from energybid.drivers.modbus.proxy.rules import REGISTERS, Wanted

REPLIES_MAX = 1000
"""Replies that are kept; the oldest goes first."""

_Key = tuple[int, int, int, int]
"""Unit, function, first, count."""


class Cache:
    """Replies by what they answer."""

    def __init__(self, max_age_s: float) -> None:
        """Keep what is younger than ``max_age_s`` seconds."""
        self._max_age_s = max_age_s
        self._replies: dict[_Key, tuple[float, bytes]] = {}
        """In the order in which they came."""
        self._shelves: defaultdict[tuple[int, int], dict[tuple[int, int], None]] = defaultdict(dict)
        """(unit, function) → first, count of what is there."""
        self._written_at: dict[int, float] = {}

    def put(self, unit: int, wish: Wanted, data: bytes, sent_at: float) -> None:
        """Keep a reply.

        Args:
            unit: Who gave it.
            wish: What was asked.
            data: The registers' or coils' bytes.
            sent_at: When it was asked, loop seconds.
        """
        if sent_at < self._written_at.get(unit, sent_at) or not self._max_age_s:
            return  # from before a write
        key = (unit, *wish)
        self._replies.pop(key, None)
        self._replies[key] = sent_at, data
        self._shelves[unit, wish.function][wish.first, wish.size] = None
        if len(self._replies) > REPLIES_MAX:
            self._forget(next(iter(self._replies)))

    def _forget(self, key: _Key) -> None:
        unit, function, first, count = key
        del self._replies[key], self._shelves[unit, function][first, count]

    def written(self, unit: int, now: float) -> None:
        """Something was written in a unit: whatever was read of it before may be wrong."""
        self._written_at[unit] = now
        for key in [key for key in self._replies if key[0] == unit]:
            self._forget(key)

    def get(self, unit: int, wish: Wanted, now: float) -> bytes | None:
        """The bytes that answer a request, if they were asked no longer ago than is allowed; the newest there are."""
        newest, data = now - self._max_age_s, None
        for first, count in self._shelves.get((unit, wish.function), ()):
            if (first, count) != (wish.first, wish.size) and not _holds(first, count, wish):
                continue
            sent_at, found = self._replies[unit, wish.function, first, count]
            if sent_at > newest:
                newest, at = sent_at, 2 * (wish.first - first)
                data = found[at : at + 2 * wish.size] if wish.function in REGISTERS else found
        return data


def _holds(first: int, count: int, wish: Wanted) -> bool:
    """Whether registers hold what is wished for; coils are packed, so for them only the very same request counts."""
    return wish.function in REGISTERS and first <= wish.first and wish.first + wish.size <= first + count
