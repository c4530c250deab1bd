"""The trace of a run: a hash over everything that happened, and the last of it in words."""

import asyncio
from collections import Counter, deque
from hashlib import sha256

RECENT = 400
"""Lines of the event log before the end of a failed run."""


class Trace:
    """Hashes events; keeps the faults and the newest events as text."""

    def __init__(self) -> None:
        """Begin empty."""
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.recent: deque[str] = deque(maxlen=RECENT)
        self._hash = sha256()

    def event(self, kind: str, text: str, *payloads: bytes) -> None:
        """Something happened.

        Args:
            kind: What it is; counted.
            text: About it, in words.
            payloads: Its bytes, which go into the hash too.
        """
        self.counts[kind] += 1
        line = f"{_clock()} {kind} {text}"
        self.recent.append(line)
        self._hash.update(line.encode())
        for payload in payloads:
            self._hash.update(len(payload).to_bytes(4, "big") + payload)

    def fault(self, text: str) -> None:
        """The world did harm."""
        self.event("fault", text)
        self.faults.append(f"{_clock()} {text}")

    def digest(self) -> str:
        """The hash so far."""
        return self._hash.hexdigest()


def _clock() -> str:
    seconds = asyncio.get_running_loop().time()
    days, rest = divmod(int(seconds * 1000), 86_400_000)
    hours, rest = divmod(rest, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{days}d {hours:02}:{minutes:02}:{rest // 1000:02}.{rest % 1000:03}"
