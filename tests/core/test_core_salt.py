"""Salts: HKDF-Expand as an independent library has it, seeds and secrets of one length."""

import golden_core
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from energybid.core.errors import EvidenceError
from energybid.core.log import Salts, seeds_for
from energybid.core.salt import SPAN, entry_salt, salter, span_seed
from hypothesis import given
from hypothesis import strategies as st

KEY = st.binary(min_size=32, max_size=32)
SEQUENCE = st.integers(0, 2**63 - 1)


def hkdf(key: bytes, info: bytes, size: int) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=size, info=info).derive(key)


@given(KEY, SEQUENCE)
def test_is_hkdf_expand(secret: bytes, sequence: int) -> None:
    span = sequence // 256
    seed = span_seed(secret, span)
    assert seed == hkdf(secret, b"energybid span" + span.to_bytes(8, "big"), 32)
    salt = hkdf(seed, b"energybid salt" + bytes([sequence % 256]), 16)
    assert entry_salt(seed, sequence) == salter(seed)(sequence) == Salts(secret).salt(sequence) == salt


def test_golden_seeds_and_salts() -> None:
    log = golden_core.read("log")
    for span, seed in log["seeds"].items():
        assert span_seed(log["secret"], int(span)) == seed
    salts = Salts(log["secret"])
    assert {n: salts.salt(int(n)) for n in log["salts"]} == log["salts"]


@pytest.mark.parametrize(
    ("first", "end", "spans"), [(0, 0, []), (0, 1, [0]), (0, 256, [0]), (255, 257, [0, 1]), (512, 513, [2])]
)
def test_seeds_cover_a_range(first: int, end: int, spans: list[int]) -> None:
    secret = bytes(32)
    assert seeds_for(Salts(secret), first, end) == [(span, span_seed(secret, span)) for span in spans]


def test_given_seeds_give_the_same_salts_and_no_others() -> None:
    secret = bytes(range(32))
    given_seeds = Salts(seeds=[(1, span_seed(secret, 1))])
    assert given_seeds.salt(SPAN) == Salts(secret).salt(SPAN)
    with pytest.raises(EvidenceError, match="no salt seed for span 2"):
        given_seeds.salt(2 * SPAN)


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_refuses_secrets_and_seeds_of_other_lengths(size: int) -> None:
    with pytest.raises(EvidenceError, match="32 bytes"):
        Salts(bytes(size))
    with pytest.raises(EvidenceError, match="32 bytes"):
        Salts(seeds=[(0, bytes(size))])
