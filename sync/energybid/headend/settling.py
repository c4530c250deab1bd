"""Settling a gateway's rounds from the head-end's database, also while the head-end runs: for a market.

Reads only, each call in one snapshot; what was read before is not read again. Every call takes its time in SQLite: call
it through ``offload``, one at a time.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw

from energybid.core.errors import JournalError
from energybid.headend.history import histories
from energybid.sync.settling import Logs, Messages, Never, Ready, RoundName, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from energybid.sync.bundle import Bundle, Inputs
    from energybid.sync.market import Award, Bid, Round


class Settler:
    """One gateway's rounds."""

    def __init__(self, path: str, origin: str, meter: str) -> None:
        """Read nothing yet.

        Args:
            path: The head-end's database; it need not be there yet.
            origin: ``tenant/gateway``.
            meter: The gateway's name for the meter that the market settles by.
        """
        self._path, self._origin = path, origin
        self._logs = Logs(meter)

    def settle(self, made: Round, bid: Bid, award: Award, asked: Inputs) -> Ready | Waiting | Never:
        """What a round is worth by what the head-end has stored.

        Args:
            made: The round.
            bid: That the award answers.
            award: It.
            asked: The programme's file, meter, registers, interval and other event days; no loads.

        Returns:
            ``Ready``, of which a statement is made; ``Waiting`` while readings are still to come; ``Never``.

        Raises:
            JournalError: The database can not be read.
            ValueError: The programme's file is none, or does not fit the round.
            EvidenceError: The intervals do not fill the round.
        """
        with self._reading() as logs:
            return logs.settle(made, bid, award, asked)

    def settled(self) -> dict[RoundName, Messages]:
        """Rounds of which the gateway's log holds the statement and all that it answers.

        Raises:
            JournalError: The database can not be read.
        """
        with self._reading() as logs:
            return logs.settled()

    def bundle(self, messages: Messages, inputs: Inputs) -> Bundle:
        """The evidence of a round.

        Raises:
            JournalError: The database can not be read.
        """
        with self._reading() as logs:
            return logs.bundle(messages, inputs)

    @contextmanager
    def _reading(self) -> Iterator[Logs]:
        try:
            database = apsw.Connection(self._path, flags=apsw.SQLITE_OPEN_READONLY)
            try:
                database.execute("PRAGMA busy_timeout = 5000; BEGIN")
                found = histories(database, self._path) or []
                self._logs.read(history for history in found if history.origin == self._origin)
                yield self._logs
            finally:
                database.close()
        except apsw.Error as error:
            raise JournalError(f"{self._path}: {error}") from None
