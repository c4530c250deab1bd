"""The table of topics, its document, and the names that may not stand in a topic."""

import pathlib
import re

import pytest
from energybid.sync import topics
from hypothesis import given
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).parents[2]
names = st.from_regex(topics.NAME, fullmatch=True)


def test_the_document_is_current() -> None:
    assert (ROOT / "docs/topics.md").read_text() == topics.document(), (
        "python -m energybid.sync.topics > docs/topics.md"
    )


def test_one_field_for_each_row() -> None:
    assert topics.Topics._fields == tuple(row.kind for row in topics.TABLE)
    assert topics.MarketTopics._fields == tuple(row.kind.replace("-", "_") for row in topics.MARKET_TABLE)


def test_the_sections_it_names_are_there() -> None:
    formats, market = ((ROOT / "docs" / name).read_text() for name in ("formats.md", "market.md"))
    for row in (*topics.TABLE, *topics.MARKET_TABLE):
        if row.where.startswith("§"):
            assert re.search(rf"(?m)^#+ {re.escape(row.where[1:])}\.? ", formats), row.where
        else:
            title = row.where[1:].partition("]")[0]
            assert row.where == f"[{title}](market.md#{title.lower()})"
            assert re.search(rf"(?m)^## {title}$", market), row.where


@given(names, names)
def test_topics_parse_back(tenant: str, gateway: str) -> None:
    for kind, topic in topics.topics_for(tenant, gateway)._asdict().items():
        assert topics.parse(topic) == (tenant, gateway, kind)
    for field, topic in topics.market_topics(f"{tenant}/{gateway}")._asdict().items():
        assert topics.parse(topic) == (tenant, gateway, field.replace("_", "-"))


@given(st.text(), names)
def test_only_names_stand_in_topics(text: str, good: str) -> None:
    fits = bool(text) and len(text) <= 64 and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    for pair in (text, good), (good, text):
        try:
            built = topics.topics_for(*pair)
        except ValueError:
            assert not fits
        else:
            assert fits
            assert not set("#+$") & set(built.log)


@pytest.mark.parametrize("name", ["", "+", "#", "a/b", "a+", "ä", "x" * 65, "a\n", " "])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        topics.topics_for(name, "gateway")
    with pytest.raises(ValueError, match=r"letters, digits|write tenant/market"):
        topics.market_topics(f"{name}/market" if "/" not in name else name.replace("/", "+"))
    with pytest.raises(ValueError, match="letters, digits"):
        topics.market_topics(f"tenant/{name}")
    assert topics.parse(f"energybid/1/{name}/gateway/log") is None


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "energybid/2/a/b/log",
        "energybid/1/a/b/other",
        "energybid/1/a/log",
        "energybid/1/a/b/log/x",
        "other/1/a/b/log",
    ],
)
def test_foreign_topics(topic: str) -> None:
    assert topics.parse(topic) is None


def test_a_gateways_topics_and_a_markets() -> None:
    assert topics.topics_for("demo", "gw-1").award == "energybid/1/demo/gw-1/award"
    assert topics.market_topics("demo/power") == tuple(
        f"energybid/1/demo/power/{kind}" for kind in ("round", "day-ahead", "real-time")
    )


def test_every_names_a_kind() -> None:
    assert topics.every("log") == "energybid/1/+/+/log"
    assert topics.every("bid", "demo") == "energybid/1/demo/+/bid"
    with pytest.raises(ValueError, match="no topic 'bids'"):
        topics.every("bids")
    with pytest.raises(ValueError, match="tenant '#'"):
        topics.every("bid", "#")
