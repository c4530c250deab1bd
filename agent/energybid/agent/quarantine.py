"""Quarantine: what happens to a journal that is damaged. Nothing is repaired in place and nothing is thrown away.

The file is renamed and kept. What can be read of the newest epoch and verifies from the acknowledged mark on, without
a gap, goes into a new journal under its old place in the log, to be delivered; then a new epoch begins that names where
the old one ended. Entries behind the first damage stay in the quarantined file, for ``energybid journal salvage``.

All functions block: call them through ``Platform.offload``.
"""

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import apsw

from energybid.agent.journal import Journal
from energybid.agent.rows import Acknowledged, EpochRow, Segment, Succession, walk
from energybid.core import cose
from energybid.core.entries import UINT_MAX
from energybid.core.errors import EvidenceError, JournalDamagedError, JournalError, JournalStalledError
from energybid.core.evidence import Receipt, parse_receipt, verify_receipt
from energybid.core.salt import SECRET_SIZE
from energybid.core.tree import EMPTY_ROOT

if TYPE_CHECKING:
    from energybid.core.cose import PublicKey
    from energybid.core.ports import Disk, Platform

T = TypeVar("T")

logger = logging.getLogger("energybid.agent")

QUARANTINES_MAX = 8
"""So many damaged journals are kept; then the agent stops and asks for a new card."""
NUMBERS_MAX = 99
"""They are numbered on from the newest that is there, up to this."""
SEGMENTS_AT_ONCE = 256
DAMAGED = "damaged"
UNDER_WAY = ".replacing"
"""Ending of a file that is there while a damaged journal is being replaced."""
SALVAGED = ".salvaged"
"""Ending of the new journal until it is whole."""


def quarantines(disk: "Disk", path: str) -> list[str]:
    """Paths of the quarantined journals, oldest first."""
    names = (f"{path}.quarantine-{n}" for n in range(1, NUMBERS_MAX + 1))
    return [name for name in names if disk.size(name) is not None]


def complete(disk: "Disk", path: str) -> None:
    """Finish a quarantine that a power cut interrupted: the old log must not be taken for a new file's."""
    if disk.size(path) is None and disk.size(f"{path}-wal") is not None:
        kept = quarantines(disk, path)
        if kept and disk.size(f"{kept[-1]}-wal") is None:
            disk.rename(f"{path}-wal", f"{kept[-1]}-wal")
        else:
            raise JournalError(f"{path}-wal is there, but not {path}: put the journal back, or move the file away")


def set_aside(disk: "Disk", path: str) -> str:
    """Rename a closed journal, with its write-ahead log; returns the new path.

    Raises:
        JournalError: Too many are there already.
    """
    kept = quarantines(disk, path)
    number = int(kept[-1].rpartition("-")[2]) + 1 if kept else 1
    if len(kept) >= QUARANTINES_MAX or number > NUMBERS_MAX:
        raise JournalError(
            f"{path} is damaged, and so were {len(kept)} before it ({kept[0]} ...): replace the disk,"
            " and move the quarantined files away"
        )
    target = f"{path}.quarantine-{number}"
    disk.rename(path, target)
    if disk.size(f"{path}-wal") is not None:
        disk.rename(f"{path}-wal", f"{target}-wal")
    disk.reserve(f"{path}-shm", 0)
    return target


class Salvaged(NamedTuple):
    """What was found in a damaged journal."""

    previous: tuple[bytes, int, bytes] | None
    """Id, size and root of the last epoch, as far as it is known to be right."""
    counter: int
    """At least that of the last checkpoint ever signed."""
    waiting: int
    """Entries that are not acknowledged and went into the new journal."""


def replace(platform: "Platform", path: str, origin: str, error: JournalDamagedError, key: "PublicKey | None") -> None:
    """Set a damaged journal aside and put a new one in its place, with what could be saved and a new epoch.

    Args:
        platform: Disk, clock and entropy.
        path: The journal; nobody has it open.
        origin: ``tenant/gateway``, of the new epoch.
        error: What is wrong with it.
        key: The head-end's, for the stored receipt; None where there is no head-end.

    Raises:
        JournalDamagedError: ``error``, where there is no disk to rename files on.
        JournalError: The new journal can not be made.
    """
    disk = platform.disk
    if disk is None:
        raise error
    try:
        disk.reserve(path + UNDER_WAY, 1)
        kept = set_aside(disk, path)
        logger.critical("the journal is damaged: %s; it is kept as %s", error, kept)
        _rebuild(platform, disk, path, origin, _Old(kept, str(error), key))
    except OSError as refusal:
        raise JournalStalledError(f"{error}; it can not be set aside: {refusal}") from refusal


def resume(platform: "Platform", path: str, origin: str, key: "PublicKey | None") -> None:
    """Go on with a replacement that was interrupted; what is there of the new journal is made anew.

    Raises:
        JournalError: The new journal can not be made.
        OSError: The disk refused.
    """
    disk = platform.disk
    if disk is None or disk.size(path + UNDER_WAY) is None:
        return
    kept = quarantines(disk, path)
    if disk.size(path) is None and kept:
        _rebuild(platform, disk, path, origin, _Old(kept[-1], "found damaged before the agent was stopped", key))
    else:
        disk.reserve(path + UNDER_WAY, 0)


class _Old(NamedTuple):
    path: str
    fault: str
    key: "PublicKey | None"


def _rebuild(platform: "Platform", disk: "Disk", path: str, origin: str, old: _Old) -> None:
    """Make the new journal under another name: whole or not at all, it takes the place of the damaged one."""
    made = path + SALVAGED
    for ending in ("", "-wal", "-shm"):
        disk.reserve(made + ending, 0)
    target = Journal(platform.open_database(made), made)
    try:
        now_ms = platform.now_ns() // 1_000_000
        found = _salvage(platform, old.path, target, old.key, now_ms)
        target.reread()
        reason = f"{old.fault}; kept as {old.path}"[:1000]
        succession = Succession(DAMAGED, reason, now_ms, found.previous, found.counter)
        target.begin_epoch(
            id_=platform.entropy(16), origin=origin, secret=platform.entropy(SECRET_SIZE), succession=succession
        )
    finally:
        target.close()
    if disk.size(f"{made}-wal"):
        raise JournalStalledError(f"{made}: the write-ahead log could not be folded into it")
    disk.rename(made, path)
    disk.reserve(path + UNDER_WAY, 0)
    named = f"{found.previous[1]} entries of {found.previous[0].hex()}" if found.previous else "nothing before it"
    logger.critical(
        "a new epoch begins that names %s; %d entries without a receipt were salvaged, others may be left: see"
        " 'energybid journal salvage'",
        named,
        found.waiting,
    )


def _salvage(platform: "Platform", kept: str, target: Journal, key: "PublicKey | None", now_ms: int) -> Salvaged:
    try:
        source = Journal(platform.open_database(kept), kept, check=False)
    except JournalError:
        return Salvaged(None, now_ms // 1000, 0)
    try:
        return salvage(source, target, key, now_ms // 1000)
    finally:
        source.close()


def salvage(source: Journal, target: Journal, key: "PublicKey | None", counter: int) -> Salvaged:
    """Move what still has to be delivered from a damaged journal into a new, empty one.

    Args:
        source: The damaged one.
        target: The new one.
        key: The head-end's, for the stored receipt.
        counter: A number that no checkpoint's counter has reached, for when the last one can not be read.
    """
    epochs = _tolerated(source.epochs) or []
    mark = _tolerated(source.acknowledged)
    receipt = mark and _receipt(mark, key)
    waiting = 0
    previous = (receipt.epoch, receipt.size, receipt.root) if receipt else None
    for epoch in epochs:
        if receipt and mark and epoch.number < mark.epoch:
            continue
        own = receipt if receipt and receipt.epoch == epoch.id else None
        end, root = _adopt(source, target, epoch, mark if own else None)
        if own and end < own.size:
            end, root = own.size, own.root
        previous = epoch.id, end, root
        waiting += end - (own.size if own else 0)
    head = _tolerated(source.newest_counter)
    return Salvaged(previous, head if head is not None and head < UINT_MAX // 2 else counter, waiting)


def _receipt(mark: Acknowledged, key: "PublicKey | None") -> Receipt | None:
    """The receipt of a mark, if mark and receipt are whole."""
    try:
        receipt = verify_receipt(mark.receipt, key) if key else parse_receipt(cose.peek(mark.receipt)[1])
    except EvidenceError:
        return None
    return receipt if receipt.size == mark.size else None


def _adopt(source: Journal, target: Journal, epoch: EpochRow, mark: Acknowledged | None) -> tuple[int, bytes]:
    """Copy the segments from the anchor before the mark on, as long as they verify; (size, root) reached."""
    last = mark.size - 1 if mark and mark.size else 0  # its root is named by the checkpoint of what follows it
    begin = _tolerated(lambda: source.anchor_at(epoch, last)) or 0
    target.adopt(epoch, mark)
    end, root, some = 0, EMPTY_ROOT, list[Segment]()
    for segment in _verified(epoch, source.segments(epoch.number, begin)):
        some.append(segment)
        end, root = segment.end, segment.root
        if len(some) == SEGMENTS_AT_ONCE:
            target.adopt_segments(epoch, some)
            some = []
    target.adopt_segments(epoch, some)
    return end, root


def _verified(epoch: EpochRow, segments: Iterator[Segment]) -> Iterator[Segment]:
    """Segments up to the first that does not verify."""
    try:
        for segment, _ in walk(epoch, segments):
            yield segment
    except (EvidenceError, JournalDamagedError) as error:
        logger.warning("salvage ends: %s", error)


def _tolerated(ask: Callable[[], T]) -> T | None:
    """The answer, or None where the damage is in its way."""
    try:
        return ask()
    except (apsw.Error, EvidenceError, JournalError, UnicodeDecodeError):
        return None


class Rescued(NamedTuple):
    """What ``rescue`` wrote."""

    epochs: int
    segments: int
    entries: int
    unreadable: int
    """Segments that are there and whose entries can not be read."""


def rescue(source: Journal, target: Journal) -> Rescued:
    """Copy every segment that can be read by itself, whether or not those before it can, for people to look at.

    Args:
        source: A damaged journal, opened without a check.
        target: A new, empty one.
    """
    epochs = _tolerated(source.epochs) or []
    mark = _tolerated(source.acknowledged)
    segments = entries = unreadable = 0
    for epoch in epochs:
        target.adopt(epoch, mark)
        some: list[Segment] = []
        for segment in source.readable(epoch.number):
            count = _tolerated(lambda s=segment: len(s.entries()))  # type: ignore[misc]
            if count is None:
                unreadable += 1
                continue
            some.append(segment)
            segments, entries = segments + 1, entries + count
            if len(some) == SEGMENTS_AT_ONCE:
                target.adopt_segments(epoch, some)
                some = []
        target.adopt_segments(epoch, some)
    return Rescued(len(epochs), segments, entries, unreadable)
