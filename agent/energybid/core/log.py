"""The log: gives entries their sequence, salt and hash, and signs checkpoints. Pure: keeps no entry, touches no disk.

Whoever owns a Log appends to it and, at a commit, stores the entries appended since the last checkpoint together with
the new one, in one transaction. What was appended and not committed is lost with the process, and was never sent.
"""

from collections.abc import Iterable

from energybid.core.cose import Signer
from energybid.core.entries import VERSION, Entry, Known, Unknown, canonical, parse
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, SignedCheckpoint, sign_checkpoint
from energybid.core.salt import SPAN, entry_salt, span_seed
from energybid.core.tree import Frontier, leaf_hash


class Salts:
    """Salts of an epoch, from its secret (on the gateway) or from the seeds that came with a batch."""

    __slots__ = ("_known", "_secret")

    def __init__(self, secret: bytes | None = None, seeds: Iterable[tuple[int, bytes]] = ()) -> None:
        """Derive from ``secret``, or know only the given (span, seed) pairs."""
        self._secret = secret
        self._known = dict(seeds)

    def seed(self, span: int) -> bytes:
        """Seed of a span.

        Raises:
            EvidenceError: It is not known here.
        """
        seed = self._known.get(span)
        if seed is None:
            if self._secret is None:
                raise EvidenceError(f"no salt seed for span {span}")
            if len(self._known) > 64:  # noqa: PLR2004  a bound, far above what one batch needs
                self._known.clear()
            seed = self._known[span] = span_seed(self._secret, span)
        return seed

    def salt(self, sequence: int) -> bytes:
        """Salt of an entry."""
        return entry_salt(self.seed(sequence // SPAN), sequence)

    def canonical(self, sequence: int, entry: Entry) -> bytes:
        """Canonical bytes of an entry at its place."""
        if isinstance(entry, Unknown):
            return entry.raw
        return canonical(entry, self.salt(sequence))


def seeds_for(salts: Salts, first: int, end: int) -> list[tuple[int, bytes]]:
    """(span, seed) pairs that cover sequences [first, end)."""
    return [(span, salts.seed(span)) for span in range(first // SPAN, (end + SPAN - 1) // SPAN)]


class Log:
    """The append-only log of one gateway in one epoch."""

    def __init__(
        self, *, origin: str, epoch: bytes, secret: bytes, signer: Signer, frontier: Frontier, counter: int
    ) -> None:
        """Resume at a committed state.

        Args:
            origin: ``tenant/gateway``.
            epoch: The epoch's id, 16 bytes.
            secret: The epoch's secret for salts, 32 bytes.
            signer: The log key.
            frontier: The committed tree; the Log takes it over.
            counter: Of the last checkpoint ever signed, over all epochs; 0 if there is none.
        """
        self.origin = origin
        self.epoch = epoch
        self.salts = Salts(secret)
        self._signer = signer
        self._frontier = frontier
        self._counter = counter
        self._signed_size = frontier.size
        self._signed_root = frontier.root()

    @property
    def size(self) -> int:
        """Entries so far, those appended since the last checkpoint included."""
        return self._frontier.size

    @property
    def signed_size(self) -> int:
        """Entries under the last checkpoint."""
        return self._signed_size

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """The frontier's hashes at ``size``."""
        return self._frontier.peaks

    def append(self, entry: Known) -> int:
        """Append an entry; returns its sequence number."""
        sequence = self._frontier.size
        self._frontier.append(leaf_hash(canonical(entry, self.salts.salt(sequence))))
        return sequence

    def checkpoint(self, time_ms: int, clock: int) -> SignedCheckpoint:
        """Sign the log as it stands."""
        self._counter += 1
        root = self._frontier.root()
        checkpoint = Checkpoint(
            self.origin,
            self.epoch,
            self.size,
            root,
            self._signed_size,
            self._signed_root,
            time_ms,
            clock,
            self._counter,
        )
        self._signed_size, self._signed_root = self.size, root
        return sign_checkpoint(checkpoint, self._signer)


def parse_entry(raw: bytes) -> Entry:
    """Canonical bytes → entry without its salt."""
    return parse(raw)[1]


__all__ = ["SPAN", "VERSION", "Log", "Salts", "parse_entry", "seeds_for"]
