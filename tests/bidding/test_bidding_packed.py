"""What was learned as bytes: what comes back, and what is refused."""

import zlib

import numpy as np
import pytest
from energybid.bidding.packed import MAGIC, Fine, pack, plain, unpack
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

NUMBERS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-3)


@given(arrays.arrays(float, st.tuples(st.integers(0, 5), st.integers(1, 4)), elements=NUMBERS))
@settings(max_examples=60)
def test_numbers_come_back_as_exact_as_promised(array):
    made = unpack(pack({"coarse": array, "fine": Fine(array), "deep": [{"n": array}, None, "x"]}))
    most = np.abs(array).max(initial=0.0)
    assert np.allclose(made["coarse"], array, rtol=2**-11, atol=most * 2**-11)
    assert np.allclose(made["fine"], array, rtol=2**-16, atol=1e-30)
    assert np.array_equal(made["deep"][0]["n"], made["coarse"])
    assert made["deep"][1:] == [None, "x"]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20))
@settings(max_examples=60)
def test_whole_numbers_stay_whole(numbers):
    array = np.array(numbers, dtype=np.int64)
    assert unpack(pack({"n": array}))["n"].tolist() == numbers


def test_gaps_and_nothing_come_back():
    array = np.array([1.0, np.nan, -3.0])
    made = unpack(pack({"gaps": array, "fine": Fine(array), "none": np.full(2, np.nan), "zero": np.zeros(2)}))
    for name in ("gaps", "fine"):
        assert np.allclose(made[name], array, rtol=2**-11, equal_nan=True)
    assert np.isnan(made["none"]).all()
    assert not made["zero"].any()


def test_every_altered_byte_is_found():
    data = pack({"n": np.arange(5), "x": np.linspace(0, 1, 7)})
    refused = 0
    for at in range(len(data)):
        for altered in (data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], data[:at]):
            try:
                found = unpack(altered)
            except ValueError:
                refused += 1
            else:  # of deflate's few bits that say nothing
                assert np.array_equal(found["n"], np.arange(5))
    assert refused > 1.9 * len(data)


def test_a_block_that_grows_without_end_is_refused():
    data = pack({"n": 1})
    with pytest.raises(ValueError, match="damaged"):
        unpack(data[: len(MAGIC) + 16] + zlib.compress(bytes(5 << 20)))


def test_what_is_no_array_is_refused():
    assert plain(Fine(np.ones(2))).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="missing"):
        plain("text")
