"""Salts: 16 bytes in every entry, so that a disclosed neighbour's hash can not be searched for by guessing readings.

An epoch has one secret of 32 bytes that stays in the gateway's journal. Each aligned span of sequence numbers has a
seed derived from it (HKDF-Expand, RFC 5869 §2.3); seeds travel in batches, salts never need to. One reading is
disclosed with its salt alone.
"""

import hmac

SPAN = 256
"""Sequence numbers that share one seed: [k·256, (k+1)·256)."""

SECRET_SIZE = 32
SEED_SIZE = 32
SALT_SIZE = 16


def span_seed(secret: bytes, span: int) -> bytes:
    """Seed of one span, 32 bytes: HKDF-Expand-SHA-256(secret, "energybid span" ‖ span as uint64, 32).

    Args:
        secret: The epoch's secret, 32 bytes, itself a pseudorandom key.
        span: ``sequence // SPAN``.
    """
    return hmac.digest(secret, b"energybid span" + span.to_bytes(8, "big") + b"\x01", "sha256")


def entry_salt(seed: bytes, sequence: int) -> bytes:
    """Salt of one entry, 16 bytes: HKDF-Expand-SHA-256(seed, "energybid salt" ‖ (sequence mod 256) as uint8, 16)."""
    return hmac.digest(seed, b"energybid salt" + bytes((sequence % SPAN, 1)), "sha256")[:SALT_SIZE]
