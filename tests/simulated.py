"""``energybid simulate bus`` as a process of its own, for tests of commands that people type."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COMMAND = [sys.executable, "-m", "energybid.agent.cli"]
DEADLINE_S = 60


@contextmanager
def simulated(folder: Path, *options: str) -> Iterator[dict[str, str]]:
    """Serve buses; gives the target of each by its name.

    Args:
        folder: Where the command runs; the names of devices in bus.toml begin there.
        options: Of ``energybid simulate bus``.
    """
    command = [*COMMAND, "simulate", "bus", "--json", *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        ready = json.loads(process.stdout.readline())
        yield {
            bus["name"]: f"tcp://127.0.0.1:{bus['port']}" if "port" in bus else str(folder / bus["device"])
            for bus in ready["buses"]
        }
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE_S)
