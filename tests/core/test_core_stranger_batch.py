"""The stranger reads our batches, from docs/formats.md §6 and §7 alone."""

from itertools import chain
from pathlib import Path
from typing import Any

import golden_core
import pytest
import stranger
import stranger_batch
from cddl_verifier import Validator
from energybid.core.entries import TYPE_OF, Entry, Known, Reading, Unknown
from energybid.core.log import Log, Salts
from energybid.core.tree import Frontier, leaf_hash
from energybid.sync import columns
from energybid.sync.batch import encode_batch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies_core import ENTRIES, readings

CDDL = Validator(Path(__file__).parents[2] / "docs" / "formats.cddl")
KEY = golden_core.KEYS["ed25519"]
PEM = KEY.public.pem().decode()


def as_arrays(entries: list[Entry]) -> list[Any]:
    return [
        entry.raw if isinstance(entry, Unknown) else [TYPE_OF[type(entry)], *golden_core.untuple(list(entry))]
        for entry in entries
    ]


def steady(rows: int, meters: int) -> list[Entry]:
    """Readings as meters give them: totals of phases, products, counters, a clock that goes on."""
    made: list[Entry] = []
    for row in range(rows):
        for meter in range(meters):
            volts = [2300 + (row * (7 + n) + meter) % 13 for n in range(3)]
            amperes = [(50 + (row * row + n * 5) % 31) * (-1 if n == 2 and row % 5 == 0 else 1) for n in range(3)]
            apparent = [abs(v * a) // 10 for v, a in zip(volts, amperes, strict=True)]
            reactive = [100 + (row * 3 + n) % 50 for n in range(3)]
            values = (*volts, *amperes, *apparent, sum(apparent), *reactive, sum(reactive), 10**9 + row * 17, 0)
            now = 1_767_225_600_000 + row * 1000 + meter * 3
            made.append(Reading(meter, 0, now + row % 2, 30 + row % 4, 2, 1, now - 10**12, values, None))
    return made


@pytest.mark.parametrize(("rows", "meters"), [(1, 1), (2, 3), (60, 2), (200, 1)])
def test_reads_columns_of_steady_meters(rows: int, meters: int) -> None:
    entries = steady(rows, meters)
    assert stranger_batch.columns_of(columns.encode(entries), len(entries)) == as_arrays(entries)


@pytest.mark.untraced
@given(st.lists(ENTRIES | readings(), max_size=30))
@settings(max_examples=80, deadline=None)
def test_reads_columns_of_anything(entries: list[Entry]) -> None:
    assert stranger_batch.columns_of(columns.encode(entries), len(entries)) == as_arrays(entries)


def test_reads_the_golden_entries_as_columns() -> None:
    entries = list(chain(golden_core.ENTRIES.values(), *[golden_core.ENTRIES.values()] * 3))
    assert stranger_batch.columns_of(columns.encode(entries), 100) == as_arrays(entries)


def log_of(entries: list[Known]) -> tuple[list[bytes], list[bytes]]:
    """Two batches of one log (the second with its frontier), and all leaf hashes."""
    log = Log(
        origin="acme/gw-7",
        epoch=golden_core.EPOCH,
        secret=golden_core.SECRET,
        signer=KEY,
        frontier=Frontier(),
        counter=6,
    )
    salts, frames, leaves = Salts(golden_core.SECRET), [], []
    for part in (entries[:300], entries[300:]):
        first, frontier = log.size, Frontier(log.size, log.peaks)
        for entry in part:
            sequence = log.append(entry)
            leaves.append(leaf_hash(salts.canonical(sequence, entry)))
        signed = log.checkpoint(1_767_225_700_000, 2)
        frames.append(encode_batch(first=first, entries=part, checkpoint=signed, salts=salts, frontier=frontier))
    return frames, leaves


def test_verifies_batches_and_refuses_every_flipped_bit() -> None:
    entries: list[Known] = [golden_core.known(name) for name in ("epoch", "start", "declaration")]
    entries += [entry for entry in steady(150, 2) if isinstance(entry, Reading)]
    frames, leaves = log_of(entries)
    for frame in frames:
        assert CDDL.validate(frame[1:-16], root_type="batch-header").valid
        assert not CDDL.validate(b"\x8d" + frame[19:-16], root_type="batch-header").valid
    canonical, root = stranger_batch.batch(frames[0], "acme/gw-7", PEM, [])
    assert [stranger.leaf(raw) for raw in canonical] == leaves[:300]
    canonical, root = stranger_batch.batch(frames[1], "acme/gw-7", PEM, leaves[:300])
    assert [stranger.leaf(raw) for raw in canonical] == leaves[300:]
    assert root == stranger.root(leaves)
    number = int.from_bytes(frames[1], "big")
    for bit in range(8 * len(frames[1])):
        changed = (number ^ 1 << bit).to_bytes(len(frames[1]), "big")
        with pytest.raises(stranger.Refused):
            stranger_batch.batch(changed, "acme/gw-7", PEM, leaves[:300])


@pytest.mark.parametrize("origin", ["acme/gw-8", "other/gw-7"])
def test_refuses_another_origin_key_and_place(origin: str) -> None:
    frames, leaves = log_of([golden_core.known("epoch")] + [golden_core.known("reading")] * 310)
    stranger_batch.batch(frames[0], "acme/gw-7", PEM, [])
    for frame, name, pem, before in (
        (frames[0], origin, PEM, []),
        (frames[0], "acme/gw-7", golden_core.KEYS["es256"].public.pem().decode(), []),
        (frames[1], "acme/gw-7", PEM, []),
        (frames[1], "acme/gw-7", PEM, [*leaves[:299], bytes(32)]),
    ):
        with pytest.raises(stranger.Refused):
            stranger_batch.batch(frame, name, pem, before)


@pytest.mark.parametrize("name", ["batch-whole", "batch-later", "batch-readings"])
def test_verifies_the_golden_batches(name: str) -> None:
    golden, log = golden_core.read(name), golden_core.read("log")
    kid = golden["checkpoint"][8:16]
    pem = next(key["pem"] for key in log["keys"].values() if key["kid"] == kid)
    leaves = list(golden_core.read("tree")["leaves"][: golden["first"]])
    canonical, root = stranger_batch.batch(golden["frame"], golden["origin"], pem, leaves)
    assert canonical == list(golden["canonical"])
    assert stranger.checkpoint(stranger.signed(golden["checkpoint"], pem))[3] == root
    assert stranger_batch.columns_of(golden["columns"], len(canonical))
