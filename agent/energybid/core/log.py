"""The log: gives entries their sequence, salt and hash, and signs checkpoints. Pure: keeps no entry, touches no disk.

Whoever owns a Log appends to it and, at a commit, stores the entries appended since the last checkpoint together with
the new one, in one transaction. What was appended and not committed is lost with the process, and was never sent.
"""

from collections.abc import Callable, Iterable

from energybid.core import cbor
from energybid.core.cose import Signer
from energybid.core.entries import (
    ENTRY_MAX,
    ID_SIZE,
    VERSION,
    Entry,
    Known,
    Unknown,
    canonical,
    check,
    is_origin,
    parse,
)
from energybid.core.errors import EvidenceError
from energybid.core.evidence import Checkpoint, SignedCheckpoint, sign_checkpoint
from energybid.core.salt import SEED_SIZE, SPAN, salter, span_seed
from energybid.core.tree import Frontier, leaf_hash


class Salts:
    """Salts of an epoch, from its secret (on the gateway) or from the seeds that came with a batch.

    Not to be used by two threads at once.
    """

    __slots__ = ("_encode", "_known", "_salter", "_secret", "_span")

    def __init__(self, secret: bytes | None = None, seeds: Iterable[tuple[int, bytes]] = ()) -> None:
        """Derive from ``secret``, or know only the given (span, seed) pairs.

        Raises:
            EvidenceError: A secret or seed is not of 32 bytes. (HMAC pads keys with zeros: without this a seed could
                be written in several ways.)
        """
        self._secret = secret
        self._known = dict(seeds)
        self._encode = cbor.encoder()
        self._span = -1
        self._salter: Callable[[int], bytes]
        if any(
            len(seed) != SEED_SIZE for seed in (*self._known.values(), bytes(SEED_SIZE) if secret is None else secret)
        ):
            raise EvidenceError(f"a seed or secret for salts has {SEED_SIZE} bytes")

    def seed(self, span: int) -> bytes:
        """Seed of a span.

        Raises:
            EvidenceError: It is not known here.
        """
        if span in self._known:
            return self._known[span]
        if self._secret is None:
            raise EvidenceError(f"no salt seed for span {span}")
        return span_seed(self._secret, span)

    def salt(self, sequence: int) -> bytes:
        """Salt of an entry."""
        span = sequence // SPAN
        if span != self._span:
            self._salter = salter(self.seed(span))
            self._span = span
        return self._salter(sequence)

    def canonical(self, sequence: int, entry: Entry) -> bytes:
        """Canonical bytes of an entry at its place."""
        if isinstance(entry, Unknown):
            return entry.raw
        return canonical(entry, self.salt(sequence), self._encode)


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

        Raises:
            ValueError: The origin or the epoch has another form.
        """
        if not is_origin(origin) or len(epoch) != ID_SIZE:
            raise ValueError(f"origin {origin!r} is not tenant/gateway, or the epoch's id has not {ID_SIZE} bytes")
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
        """Append an entry; returns its sequence number.

        Raises:
            ValueError: The entry does not fit docs/formats.md §3. Signed, it would be refused by every receiver.
        """
        sequence = self._frontier.size
        try:
            check(entry)
        except EvidenceError as error:
            raise ValueError(str(error)) from None
        raw = self.salts.canonical(sequence, entry)
        if len(raw) > ENTRY_MAX:
            raise ValueError(f"an entry of {len(raw)} bytes; at most {ENTRY_MAX} are allowed")
        self._frontier.append(leaf_hash(raw))
        return sequence

    def checkpoint(self, time_ms: int, clock: int) -> SignedCheckpoint:
        """Sign the log as it stands. When the signer fails nothing has changed but the counter."""
        self._counter += 1
        size, root = self._frontier.size, self._frontier.root()
        checkpoint = Checkpoint(
            self.origin,
            self.epoch,
            size,
            root,
            self._signed_size,
            self._signed_root,
            time_ms,
            clock,
            self._counter,
        )
        signed = sign_checkpoint(checkpoint, self._signer)
        self._signed_size, self._signed_root = size, root
        return signed


def parse_entry(raw: bytes) -> Entry:
    """Canonical bytes → entry without its salt."""
    return parse(raw)[1]


__all__ = ["SPAN", "VERSION", "Log", "Salts", "parse_entry", "seeds_for"]
