"""Opening the journal: what the agent does before it signs anything.

A damaged journal is quarantined and replaced, by itself: reading must go on. But only if it looks damaged twice: a read
that fails once is no damage. A journal that a receipt has contradicted
is not: whoever restored or copied it must say so (``energybid journal new-epoch``). A full disk gets its ballast back.
"""

import asyncio
import logging
from functools import partial

from energybid.agent import quarantine
from energybid.agent.budget import DEFAULT, Budget
from energybid.agent.journal import Journal
from energybid.agent.recorder import Recorder
from energybid.agent.rows import Succession
from energybid.agent.space import Limits
from energybid.core.cose import PublicKey, Signer
from energybid.core.errors import JournalDamagedError, JournalStalledError, RollbackError
from energybid.core.ports import Platform
from energybid.core.salt import SECRET_SIZE

logger = logging.getLogger("energybid.agent")

LOOK_AGAIN_S = 1.0
"""So long after it was found damaged, a journal is looked at again."""
KEEP_LEAST_S = 86400.0
RENAMED = "renamed"


def open_journal(
    platform: Platform, path: str, origin: str, budget: int, headend_key: PublicKey | None, *, replace: bool
) -> Journal:
    """Open or make the journal, check it, begin an epoch where there is none; blocks, call it through ``offload``.

    Args:
        platform: Disk, clock and entropy.
        path: The journal.
        origin: ``tenant/gateway``.
        budget: Bytes.
        headend_key: For the stored receipt; None where there is no head-end.
        replace: A damaged journal is set aside and replaced.

    Raises:
        JournalDamagedError: It is damaged, and not to be replaced.
        RollbackError: A receipt contradicts it; an operator has to decide.
        JournalError: It can not be used.
    """
    try:
        if platform.disk:
            quarantine.complete(platform.disk, path)
            quarantine.resume(platform, path, origin, headend_key)
        return _open_or_replace(platform, path, origin, budget, headend_key, replace=replace)
    except OSError as error:
        raise JournalStalledError(f"{path}: {error}") from error


def _open_or_replace(
    platform: Platform, path: str, origin: str, budget: int, headend_key: PublicKey | None, *, replace: bool
) -> Journal:
    try:
        return _open(platform, path, origin, budget)
    except JournalStalledError:
        if platform.disk is None or platform.disk.size(f"{path}.ballast") is None:
            raise
        platform.disk.reserve(f"{path}.ballast", 0)
        return _open(platform, path, origin, budget)
    except JournalDamagedError as error:
        if not replace:
            raise
        quarantine.replace(platform, path, origin, error, headend_key)
        return _open(platform, path, origin, budget)


def _open(platform: Platform, path: str, origin: str, budget: int) -> Journal:
    journal = Journal(platform.open_database(path), path, wal_pages=Budget(budget).wal_pages, fold=True)
    try:
        journal.check()
        _may_sign(journal)
        if journal.head is None or journal.head.epoch.origin != origin:
            _begin(platform, journal, origin)
    except BaseException:
        journal.close()
        raise
    return journal


def _may_sign(journal: Journal) -> None:
    contradiction = journal.contradiction()
    if contradiction:
        raise RollbackError(
            f"{contradiction.detail}; nothing is signed until an operator runs 'energybid journal new-epoch'"
        )


def _begin(platform: Platform, journal: Journal, origin: str) -> None:
    succession = None
    if journal.head:
        before = journal.head.epoch
        now_ms = platform.now_ns() // 1_000_000
        succession = Succession(RENAMED, f"was {before.origin}", now_ms, journal.last_of(before))
    journal.begin_epoch(
        id_=platform.entropy(16), origin=origin, secret=platform.entropy(SECRET_SIZE), succession=succession
    )


async def open_recorder(  # noqa: PLR0913  each a setting of its own
    platform: Platform,
    path: str,
    origin: str,
    signer: Signer,
    *,
    commit_interval_s: float,
    keep_s: float,
    keep_least_s: float = KEEP_LEAST_S,
    budget: int = DEFAULT,
    headend_key: PublicKey | None = None,
) -> Recorder:
    """Open the journal, with whatever that takes, and hand it to a recorder.

    Raises:
        RollbackError: A receipt contradicts the journal.
        JournalError: It can not be used.
    """
    opening = partial(open_journal, platform, path, origin, budget, headend_key)
    try:
        journal = await platform.offload(partial(opening, replace=False))
    except JournalDamagedError as error:
        logger.error("%s; looking again", error)  # noqa: TRY400  no bug
        await asyncio.sleep(LOOK_AGAIN_S)
        journal = await platform.offload(partial(opening, replace=True))
    limits = Limits(budget, keep_s, min(keep_least_s, keep_s))
    return Recorder(platform, journal, signer, commit_interval_s=commit_interval_s, limits=limits)
