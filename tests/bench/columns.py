"""What columns cost: bytes and microseconds a value, for a journal's segment, a 10 s and a 60 s batch.

    python tests/bench/columns.py [--json]

Reads the recorded polls of tests/sync/data: 32 meters × 24 quantities at 1 Hz for 60 s. CPU time of this process, the
best of several rounds; run it on a quiet machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sync"))

from energybid.sync import columns
from log_entries import METERS, recorded

ROUNDS = 7


def cost(work: Callable[[], Any], values: int) -> float:
    """Microseconds a value, the best of ROUNDS."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best / values * 1e6


def measure(polls: int) -> dict[str, float]:
    """Figures for streams of ``polls`` polls of all meters."""
    entries = recorded(60)
    parts = [entries[at : at + polls * METERS] for at in range(0, len(entries), polls * METERS)]
    values = sum(len(entry.values) for entry in entries)
    raws = [columns.encode(part) for part in parts]
    packs = [columns.pack(raw) for raw in raws]
    limit = len(entries)
    memory = columns.Memory()
    columns.encode(parts[0], memory=memory)
    return {
        "polls": polls,
        "raw_bytes": sum(map(len, raws)) / values,
        "packed_bytes": sum(len(packed) for _, packed in packs) / values,
        "encode_us": cost(lambda: [columns.encode(part) for part in parts], values),
        "encode_with_memory_us": cost(lambda: [columns.encode(part, memory=memory) for part in parts], values),
        "pack_us": cost(lambda: [columns.pack(raw) for raw in raws], values),
        "unpack_us": cost(lambda: [columns.unpack(*pack, limit=columns.RAW_MAX) for pack in packs], values),
        "decode_trusted_us": cost(lambda: [columns.decode(raw, limit=limit, trusted=True) for raw in raws], values),
        "decode_us": cost(lambda: [columns.decode(raw, limit=limit) for raw in raws], values),
    }


def table(rows: list[dict[str, float]]) -> str:
    """A Markdown table."""
    cells = [list(rows[0]), ["---"] * len(rows[0])]
    cells += [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description="What columns cost.")
    parser.add_argument("--json", action="store_true", help="one JSON array instead of a table")
    arguments = parser.parse_args()
    rows = [measure(polls) for polls in (1, 10, 60)]
    sys.stdout.write((json.dumps(rows) if arguments.json else table(rows)) + "\n")


if __name__ == "__main__":
    main()
