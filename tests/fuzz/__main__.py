"""Fuzzing of every parser that takes bytes from outside, guided by coverage (atheris, which is libFuzzer).

``make fuzz`` (10 minutes) or ``python -m fuzz --for 30m --only mbap --only profile`` with PYTHONPATH=tests. Each parser
gets an equal share of the time. Exit code 1 when something was found; the input is then in ``tests/fuzz/found/``, from
where a test replays it from then on.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fuzz.targets import TARGETS, name_of

FOUND = Path(__file__).parent / "found"
UNITS = {"s": 1, "m": 60, "h": 3600}
HANG_S = 5
"""One input may take no longer."""
MEMORY_MB = 512
"""A process may have no more."""
LENGTH_MAX = 8192
"""Bytes of an input."""
GRACE_S = 120
HOSTILE = (
    b"nan",
    b"-inf",
    b"1e999",
    b"-1",
    b"null",
    b"true",
    b"[[",
    b"]]",
    b"\\ud800",
    b"\xed\xa0\x80",
    b"65536",
    b"18446744073709551616",
)


def duration(text: str) -> float:
    """10m → 600.0."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError("a number and s, m or h, such as 10m")
    return float(match[1]) * UNITS[match[2]]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--for", dest="for_s", type=duration, default=600.0, metavar="DURATION", help="10m, in all")
    parser.add_argument("--only", action="append", choices=TARGETS, metavar="NAME", help=", ".join(TARGETS))
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output at the end")
    return parser.parse_args()


def dictionary(seeds: tuple[bytes, ...]) -> str:
    """Words to put together, in libFuzzer's form: those of the seeds, and what numbers and texts go wrong with."""
    words = {word for seed in seeds for word in re.findall(rb"[A-Za-z][A-Za-z_0-9-]{2,30}", seed)} | set(HOSTILE)
    escaped = ("".join(map("\\x{:02x}".format, word)) for word in sorted(words))
    return "".join(f'"{word}"\n' for word in escaped)


def fuzz(name: str, for_s: float, folder: Path) -> dict[str, Any]:
    """One target: executions, and the files of what was found."""
    corpus, artifacts = folder / "corpus", folder / "artifacts"
    corpus.mkdir(parents=True)
    artifacts.mkdir()
    for number, seed in enumerate(TARGETS[name].seeds):
        (corpus / str(number)).write_bytes(seed)
    (folder / "words").write_text(dictionary(TARGETS[name].seeds))
    options = [
        f"-dict={folder / 'words'}",
        f"-max_total_time={max(1, round(for_s))}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-max_len={LENGTH_MAX}",
        f"-artifact_prefix={artifacts}/",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-m", "fuzz.one", name, *options, str(corpus)]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=for_s + GRACE_S, check=False
    )
    ran = re.search(r"number_of_executed_units: *(\d+)", done.stderr)
    found = [keep(name, path.read_bytes()) for path in sorted(artifacts.iterdir())]
    if done.returncode and not found:
        raise SystemExit(f"{name} did not run: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    why = re.search(r"Uncaught Python exception: ===\n(.*\n)", done.stdout + done.stderr)
    return {
        "parser": name,
        "executions": int(ran[1]) if ran else 0,
        "seconds": round(for_s),
        "found": found,
        "why": why[1].strip() if why else "",
    }


def keep(name: str, data: bytes) -> str:
    """Put an input where the regression test replays it."""
    path = FOUND / name_of(name, data)
    path.write_bytes(data)
    return os.path.relpath(path)


def main() -> None:
    """Fuzz all."""
    chosen = arguments()
    names = chosen.only or list(TARGETS)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    results = []
    try:
        for name in names:
            result = fuzz(name, chosen.for_s / len(names), folder / name)
            results.append(result)
            more = f"  FOUND {result['why']}: {', '.join(result['found'])}" if result["found"] else ""
            sys.stderr.write(f"{name:22} {result['executions']:>11,} executions{more}\n")
    finally:
        shutil.rmtree(folder)
    total = sum(result["executions"] for result in results)
    sys.stderr.write(f"{'all':22} {total:>11,} executions\n")
    if chosen.json:
        sys.stdout.write(json.dumps({"executions": total, "parsers": results}) + "\n")
    raise SystemExit(any(result["found"] for result in results))


if __name__ == "__main__":
    main()
