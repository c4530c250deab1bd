"""The golden files are what the code makes today, and their shapes are those of docs/formats.cddl."""

from pathlib import Path
from typing import Any

import cbor2
import golden_core
import pytest
from cddl_verifier import Validator
from energybid.core import cbor
from energybid.core.entries import Known, canonical
from hypothesis import given, settings
from strategies_core import ENTRIES

CDDL = Validator(Path(__file__).parents[2] / "docs" / "formats.cddl")
RULES = {
    name: "unknown-entry" if name.startswith("entry-unknown") else f"{name.split('-')[1]}-entry"
    for name in golden_core.files()
    if name.startswith("entry-")
}
SIGNED = [name for name in golden_core.files() if name.startswith(("checkpoint", "receipt"))]
PROOFS = [name for name in golden_core.files() if name.startswith("proof")]


def fits(data: bytes, rule: str) -> bool:
    return bool(CDDL.validate(data, root_type=rule).valid)


@pytest.mark.parametrize("name", golden_core.files())
def test_files_are_up_to_date(name: str) -> None:
    made = golden_core.unplain(
        golden_core.json.loads(golden_core.json.dumps(golden_core.plain(golden_core.files()[name])))
    )
    kept = golden_core.read(name)
    if name in SIGNED and name.endswith("-es256"):  # the signature differs each time
        made.pop("message"), kept.pop("message")
    assert made == kept


@pytest.mark.parametrize(("name", "rule"), RULES.items())
def test_entries_fit_the_cddl(name: str, rule: str) -> None:
    raw = golden_core.read(name)["canonical"]
    assert fits(raw, rule)
    assert fits(raw, "any-entry")
    assert fits(raw, "entry") == (rule != "unknown-entry")


@pytest.mark.parametrize("name", SIGNED)
def test_signed_files_fit_the_cddl(name: str) -> None:
    kind = name.split("-", maxsplit=1)[0]
    golden = golden_core.read(name)
    assert fits(golden["payload"], f"{kind}-payload")
    assert fits(golden["message"], f"{kind}-message")


@pytest.mark.parametrize("name", PROOFS)
def test_proof_files_fit_the_cddl(name: str) -> None:
    rule = f"{name.split('-')[1]}-proof"
    file = golden_core.read(name)["file"]
    assert fits(file, rule)
    for item in wrong(cbor.decode(file)):
        assert not fits(cbor2.dumps(item), rule)


@given(ENTRIES)
@settings(max_examples=40, deadline=None)
def test_any_entry_fits_the_cddl(entry: Known) -> None:
    rule = type(entry).__name__.removesuffix("Message").lower()
    assert fits(canonical(entry, bytes(16)), f"{rule}-entry")


def wrong(item: list[Any]) -> list[list[Any]]:
    """Each field replaced by values of other types, left out, and one more at the end."""
    changed = [
        [*item[:n], other, *item[n + 1 :]] for n in range(len(item)) for other in (1.5, {}, [[[]]], -(2**63) - 1)
    ]
    return [*changed, *([*item[:n], *item[n + 1 :]] for n in range(len(item))), [*item, None]]


@pytest.mark.parametrize(("name", "rule"), [(n, r) for n, r in RULES.items() if r != "unknown-entry"])
def test_wrong_entries_do_not_fit_the_cddl(name: str, rule: str) -> None:
    for item in wrong(cbor.decode(golden_core.read(name)["canonical"])):
        assert not fits(cbor2.dumps(item), rule), item


@pytest.mark.parametrize("name", SIGNED)
def test_wrong_payloads_and_messages_do_not_fit_the_cddl(name: str) -> None:
    kind = name.split("-", maxsplit=1)[0]
    golden = golden_core.read(name)
    for item in wrong(cbor.decode(golden["payload"])):
        assert not fits(cbor2.dumps(item), f"{kind}-payload"), item
    array = list(cbor2.loads(golden["message"]).value)
    for item in wrong(array):
        if item[1:2] != [{}] or len(item) != 4 or item == array:
            continue
        assert not fits(cbor2.dumps(cbor2.CBORTag(18, item)), f"{kind}-message"), item
    assert not fits(cbor2.dumps(array), f"{kind}-message")
    assert not fits(cbor2.dumps(cbor2.CBORTag(18, [array[0], {4: b""}, *array[2:]])), f"{kind}-message")


@pytest.mark.parametrize(
    ("name", "position", "other"),
    [
        ("entry-reading", 7, 3),
        ("entry-reading", 2, bytes(15)),
        ("entry-reading", 10, []),
        ("entry-reading", 11, [256]),
        ("entry-epoch", 3, "no-slash"),
        ("entry-start", 3, bytes(17)),
        ("entry-declaration", 3, "x" * 256),
        ("entry-declaration", 7, [[1, [[bytes(6), "kWh", 0, True]]]]),
        ("entry-declaration", 7, [[1, [[bytes(6), "Wh", 19, True]]]]),
        ("entry-gap", 6, 2**63),
    ],
)
def test_the_cddl_knows_the_bounds(name: str, position: int, other: Any) -> None:
    item = cbor.decode(golden_core.read(name)["canonical"])
    assert not fits(cbor2.dumps([*item[:position], other, *item[position + 1 :]]), RULES[name])
