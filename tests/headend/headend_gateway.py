"""A gateway for the head-end's tests: a real log, cut into real batches, without an agent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from energybid.core.cose import EDDSA, PrivateKey
from energybid.core.entries import Declaration, Entry, Epoch, Known, Reading, Start
from energybid.core.log import Log
from energybid.core.ports import Message
from energybid.core.tree import Frontier, leaf_hash
from energybid.headend.ledger import Registration
from energybid.sync.batch import encode_batch
from energybid.sync.topics import topics_for

if TYPE_CHECKING:
    from energybid.core.evidence import SignedCheckpoint


def key(number: int, algorithm: int = EDDSA) -> PrivateKey:
    return PrivateKey.from_entropy(bytes([number]) * 48, algorithm)


class Gateway:
    """Appends, commits, and makes batches of any stretch between two commits."""

    def __init__(
        self,
        name: str = "gw-1",
        *,
        tenant: str = "demo",
        signer: PrivateKey | None = None,
        epoch: bytes = b"e" * 16,
        previous: tuple[bytes, int, bytes] | None = None,
        start: Sequence[Known] | None = None,
    ) -> None:
        self.tenant, self.name = tenant, name
        self.origin = f"{tenant}/{name}"
        self.key = signer or key(1)
        self.log = Log(
            origin=self.origin, epoch=epoch, secret=b"s" * 32, signer=self.key, frontier=Frontier(), counter=0
        )
        self.entries: list[Known] = []
        self.checkpoints: dict[int, SignedCheckpoint] = {}
        self.append(
            start
            or [
                Epoch(self.origin, 1000, previous),
                Start(b"b" * 16, 1000, 1, 2, "test", b"c" * 32),
                Declaration("m", "p", b"p" * 32, None, ((1000, ((bytes(6), "W", 0, False),)),)),
            ]
        )

    @property
    def size(self) -> int:
        return len(self.entries)

    def append(self, entries: Sequence[Known]) -> None:
        """Append and commit."""
        for entry in entries:
            self.log.append(entry)
            self.entries.append(entry)
        self.checkpoints[self.size] = self.log.checkpoint(1000 + self.size, 2)

    def read(self, count: int = 10, offset: int = 0) -> None:
        """Commit some readings."""
        at = self.size
        self.append(
            [Reading(2, 0, 1_000_000 + 1000 * i, 5, 2, 1, 1000 * i, (i + offset,), None) for i in range(at, at + count)]
        )

    def frame(self, first: int, end: int | None = None, *, peaks: bool = False) -> bytes:
        """A batch of the entries [first, end)."""
        end = end or self.size
        salts = self.log.salts
        tree = Frontier()
        for sequence, entry in enumerate(self.entries[:first]):
            tree.append(leaf_hash(salts.canonical(sequence, entry)))
        entries: list[Entry] = list(self.entries[first:end])
        return encode_batch(
            first=first,
            entries=entries,
            checkpoint=self.checkpoints[end],
            salts=salts,
            frontier=tree if peaks else None,
        )

    def message(self, first: int, end: int | None = None, *, peaks: bool = False) -> Message:
        """The batch as it comes from the broker."""
        return Message(topics_for(self.tenant, self.name).log, self.frame(first, end, peaks=peaks), retained=False)

    @property
    def registration(self) -> Registration:
        return Registration(self.tenant, self.name, (self.key.public,))

    def root(self, size: int | None = None) -> bytes:
        return self.checkpoints[size or self.size].checkpoint.root
