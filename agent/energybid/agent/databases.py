"""Journals and head-ends' databases as a source of evidence: opened for reading, whoever writes meanwhile.

A head-end's database is read by what is registered for it (entry points ``energybid.provers``): the agent knows no
head-end.
"""

import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from energybid.agent.history import journal_histories
from energybid.core.errors import EnergybidError, JournalError
from energybid.core.ports import Database
from energybid.core.prover import History

if TYPE_CHECKING:
    from collections.abc import Callable


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """A read-only connection that sees one state of the file.

    Raises:
        EnergybidError: There is no such file.
        JournalError: It can not be read.
    """
    if not path.exists():
        raise EnergybidError(f"{path}: no such file")
    try:
        database = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            database.execute("PRAGMA busy_timeout = 5000; BEGIN")
            yield database
        finally:
            database.close()
    except apsw.Error as error:
        raise JournalError(f"{path}: {error}") from None


def histories(database: Database, path: Path) -> list[History]:
    """Every epoch of every gateway in it, oldest first.

    Raises:
        EnergybidError: It is neither a journal nor a head-end's database.
    """
    found = journal_histories(database, str(path))
    for entry in importlib.metadata.entry_points(group="energybid.provers") if found is None else ():
        load: Callable[[Database, str], list[History] | None] = entry.load()
        found = load(database, str(path)) if found is None else found
    if found is None:
        raise EnergybidError(f"{path} is neither a journal nor a head-end's database")
    return found
