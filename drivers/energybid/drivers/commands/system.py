"""The real machine for commands at the cabinet: buses, clocks, the terminal, files. Nothing else of them touches it."""

import os
import random
import sys
import tempfile
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from energybid.core.ports import Platform, Uplink, UplinkSettings
from energybid.core.quantities import ClockState
from energybid.drivers.system import open_bus

WIDTH = 80
"""Columns of a terminal that does not tell."""


def platform() -> Platform:
    """A machine with buses and clocks; it has no broker, database or thread, for nothing here needs any."""
    return Platform(
        now_ns=time.time_ns,
        clock_state=lambda: ClockState.UNSYNCHRONISED,
        boot_id=bytes(16),
        entropy=os.urandom,
        random=random.Random(),  # noqa: S311  for jitter only
        offload=_none,
        open_bus=open_bus,
        connect_uplink=_no_uplink,
        open_database=_none,
        notify=lambda _: None,
    )


def _none(*_: Any, **__: Any) -> Any:  # noqa: ANN401
    raise NotImplementedError("commands at the cabinet need no such thing")


def _no_uplink(_: UplinkSettings) -> AbstractAsyncContextManager[Uplink]:
    raise NotImplementedError("commands at the cabinet need no broker")


def terminal_width() -> int | None:
    """Columns of the terminal that standard error is; None where it is none."""
    if not sys.stderr.isatty():
        return None
    return os.get_terminal_size(sys.stderr.fileno()).columns or WIDTH


def replace_file(path: Path, text: str) -> None:
    """Write a file so that it is there in its old or its new state, whatever happens meanwhile.

    Raises:
        OSError: It can not be written; the old one stays.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".new")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
