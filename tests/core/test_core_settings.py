"""Settings: every fault of a file at once, with file, key and what is allowed."""

from typing import Annotated

import pytest
from energybid.core.errors import ConfigurationError
from energybid.core.settings import Duration, Settings, Size, check, parse_toml
from pydantic import Field


class Meter(Settings):
    name: str
    unit: Annotated[int, Field(ge=1, le=247)]


class Example(Settings):
    interval: Duration = 5.0
    budget: Size = 1024
    label: str | None = None
    meters: list[Meter] = Field(default=[])


def faults(text: str | bytes) -> list[str]:
    data = text.encode() if isinstance(text, str) else text
    with pytest.raises(ConfigurationError) as caught:
        parse_toml("gateway.toml", data, Example)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


def test_names_every_fault_at_once() -> None:
    found = faults(
        """
        interval = 5
        budget = "5 MB"
        lable = "typo"
        [[meters]]
        name = "a"
        unit = 248
        [[meters]]
        unit = "1"
        """
    )
    size = 'write a number and a unit (B, KiB, MiB, GiB) in quotes, such as "2 GiB"'
    assert found == [
        'gateway.toml: interval: write a number and a unit (ms, s, min, h, d) in quotes, such as "5 s" (found 5)',
        f"gateway.toml: budget: {size} (found '5 MB')",
        "gateway.toml: meters[0].unit: Input should be less than or equal to 247 (found 248)",
        "gateway.toml: meters[1].name: is missing",
        "gateway.toml: meters[1].unit: Input should be a valid integer (found '1')",
        "gateway.toml: lable: no such key",
    ]


def test_an_empty_file_has_the_defaults() -> None:
    assert parse_toml("gateway.toml", b"", Example) == Example()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250 ms", 0.25), ("5 s", 5), ("5s", 5), (" 1.5 min ", 90), ("2 h", 7200), ("1 d", 86400), ("0 s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert check("f", {"interval": text}, Example).interval == pytest.approx(seconds)


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "5",
        "s",
        "5 S",
        "-5 s",
        "1e3 s",
        ".5 s",
        "5. s",
        "inf s",
        "\u0665 s",
        "5 s 5 s",
        "9" * 400 + " s",
        5,
        0.5,
        True,
        None,
    ],
)
def test_refuses_other_durations(bad: object) -> None:
    with pytest.raises(ConfigurationError, match=r"f: interval: write a number and a unit \(ms, s, min, h, d\)"):
        check("f", {"interval": bad}, Example)


@pytest.mark.parametrize(("text", "size"), [("0 B", 0), ("512 KiB", 2**19), ("2GiB", 2**31), ("3 MiB", 3 * 2**20)])
def test_sizes(text: str, size: int) -> None:
    assert check("f", {"budget": text}, Example).budget == size


@pytest.mark.parametrize("bad", ["", "5", "5 KB", "1.5 MiB", "-1 B", "\u0665 B", "9" * 5000 + " B", 5, True, None])
def test_refuses_other_sizes(bad: object) -> None:
    with pytest.raises(ConfigurationError, match=r"f: budget: write a number and a unit \(B, KiB, MiB, GiB\)"):
        check("f", {"budget": bad}, Example)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"label = 'a\xff'", "gateway.toml: not UTF-8 at byte 10"),
        (b"label =", "gateway.toml: not TOML: "),
        (b"label = 'a'\nlabel = 'b'", "gateway.toml: not TOML: "),
        (b"budget = " + b"9" * 5000, "gateway.toml: not TOML: "),
        (b"label = " + b"[" * 100_000, "gateway.toml: not TOML: "),
    ],
)
def test_refuses_what_is_not_toml(data: bytes, fault: str) -> None:
    assert [found.startswith(fault) for found in faults(data)] == [True]


def test_a_long_value_does_not_flood_the_message() -> None:
    assert len(faults(f"interval = '{'x' * 10_000}'")[0]) < 200


def test_settings_never_change_and_coerce_nothing() -> None:
    example = check("f", {"label": "a"}, Example)
    with pytest.raises(ValueError, match="frozen"):
        example.label = "b"  # type: ignore[misc]
    with pytest.raises(ConfigurationError, match="f: label: Input should be a valid string"):
        check("f", {"label": 1}, Example)
