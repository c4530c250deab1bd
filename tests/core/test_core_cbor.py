"""Deterministic CBOR: one value has one encoding, and nothing else is read (docs/formats.md §2)."""

import contextlib
from typing import Any

import cbor2
import pytest
from energybid.core import cbor
from energybid.core.errors import EvidenceError
from hypothesis import example, given
from hypothesis import strategies as st

LEAVES = st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=80) | st.none() | st.booleans()
PROFILE = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=30), max_leaves=60)


def depth(item: Any) -> int:
    return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0


def same(a: Any, b: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(PROFILE.filter(lambda item: depth(item) <= cbor.DEPTH_MAX))
@example([False, 0, True, 1, None, "", b""])
@example([2**64 - 1, -(2**64), 23, 24, 255, 256, 65535, 65536, 2**32 - 1, 2**32, -24, -25])
def test_reads_back_what_it_writes(item: Any) -> None:
    assert same(cbor.decode(cbor.encode(item)), item)
    assert cbor.encoder()(item) == cbor.encode(item)


@given(st.binary(max_size=64))
@example(b"\x82\x01")
def test_reads_nothing_that_it_would_write_otherwise(data: bytes) -> None:
    with contextlib.suppress(EvidenceError):
        assert cbor2.dumps(cbor.decode(data), canonical=True) == data


@given(PROFILE, st.data())
def test_refuses_what_is_cut_off_or_followed(item: Any, data: st.DataObject) -> None:
    raw = cbor.encode(item)
    with pytest.raises(EvidenceError):
        cbor.decode(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(EvidenceError):
        cbor.decode(raw + b"\0")


# RFC 8949 appendix A, what the profile has.
RFC_8949 = {
    "00": 0,
    "17": 23,
    "1818": 24,
    "1903e8": 1000,
    "1a000f4240": 1000000,
    "1b000000e8d4a51000": 1000000000000,
    "1bffffffffffffffff": 18446744073709551615,
    "3bffffffffffffffff": -18446744073709551616,
    "20": -1,
    "3863": -100,
    "3903e7": -1000,
    "f4": False,
    "f5": True,
    "f6": None,
    "4401020304": b"\1\2\3\4",
    "62c3bc": "ü",
    "64f0908591": "𐅑",
    "8301820203820405": [1, [2, 3], [4, 5]],
}


@pytest.mark.parametrize("raw", RFC_8949)
def test_examples_of_the_rfc(raw: str) -> None:
    assert same(cbor.decode(bytes.fromhex(raw)), RFC_8949[raw])
    assert cbor.encode(RFC_8949[raw]).hex() == raw


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        ("", "ends in the middle"),
        ("1800", "shortest"),
        ("1817", "shortest"),
        ("1900ff", "shortest"),
        ("1a0000ffff", "shortest"),
        ("1b00000000ffffffff", "shortest"),
        ("3817", "shortest"),
        ("580161", "shortest"),
        ("780161", "shortest"),
        ("980100", "shortest"),
        ("9f00ff", "indefinite"),
        ("5f4100ff", "indefinite"),
        ("7f6161ff", "indefinite"),
        ("ff", "indefinite"),
        ("1c", "reserved"),
        ("a0", "not used here"),
        ("a10102", "not used here"),
        ("c100", "not used here"),
        ("c24101", "not used here"),
        ("c249010000000000000000", "not used here"),
        ("c4821b7fffffffffffffff01", "not used here"),  # raised past cbor2's own exceptions
        ("d82361282b2b29", "not used here"),
        ("d81c81d81d00", "not used here"),
        ("d9d9f700", "not used here"),
        ("f0", "not used here"),
        ("f7", "not used here"),
        ("f8ff", "not used here"),
        ("f818", "not used here"),
        ("f90000", "shortest"),
        ("f93c00", "not used here"),
        ("f97e00", "not used here"),
        ("fb3ff0000000000000", "not used here"),
        ("61ff", "not UTF-8"),
        ("63eda080", "not UTF-8"),
        ("62c080", "not UTF-8"),
        ("5bffffffffffffffff", "ends in the middle"),
        ("7bffffffffffffffff", "ends in the middle"),
        ("9bffffffffffffffff", "ends in the middle"),
        ("9a7fffffff00", "ends in the middle"),
        ("0000", "1 bytes follow"),
    ],
)
def test_refuses(raw: str, why: str) -> None:
    with pytest.raises(EvidenceError, match=why):
        cbor.decode(bytes.fromhex(raw))


def test_depth_at_the_bound() -> None:
    deepest = b"\x81" * (cbor.DEPTH_MAX - 1) + b"\x80"
    assert cbor.encode(cbor.decode(deepest)) == deepest
    with pytest.raises(EvidenceError, match="deep"):
        cbor.decode(b"\x81" + deepest)
    with pytest.raises(EvidenceError, match="deep"):
        cbor.decode(b"\x81" * 1_000_000)
