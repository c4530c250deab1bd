"""A recorded meter as a file: TOML, small, eight registers on a line, so that two recordings can be compared by diff.

Here lives the file's shape. Files are made by ``energybid dump`` and edited by people: every fault is named. Imports
pydantic, so only commands and tests import this.
"""

import json
import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from energybid.core.errors import ConfigurationError
from energybid.core.settings import Settings, parse_toml
from energybid.drivers.dump import Dump, Refused, Run, Span
from energybid.drivers.modbus.map import ADDRESSES, REGISTERS_MAX, TABLES
from energybid.drivers.profile import FUNCTION_OF

FORMAT = 1
WORDS = 8
"""Registers on a line."""
SIZE_MAX = 4 << 20
"""Longest file that is read, bytes."""
_LINE = re.compile(rf"(\d{{5}}):((?: [0-9a-f]{{4}}){{1,{WORDS}}})", re.ASCII)

Table = Literal["holding", "input"]
Text = Annotated[str, Field(min_length=1, max_length=255)]


def _words(text: str) -> str:
    if not _LINE.fullmatch(text):
        raise ValueError('write an address and one to eight registers, such as "00342: 4366 3333"')
    return text


class _Place(Settings):
    table: Table
    first: int = Field(ge=0, lt=ADDRESSES)


class _Registers(_Place):
    count: int = Field(ge=1, le=ADDRESSES)

    def span(self) -> Span:
        return Span(FUNCTION_OF[self.table], self.first, self.first + self.count)


class RunModel(_Place):
    """``[[run]]``: registers that can be read together."""

    words: list[Annotated[str, AfterValidator(_words)]] = Field(min_length=1, max_length=ADDRESSES // WORDS + 1)


class RefusedModel(_Registers):
    """``[[refused]]``: registers that can not be read."""

    code: int = Field(ge=0, le=255)
    """The exception; 0 where the meter did not answer."""


class MaskedModel(_Registers):
    """``[[masked]]``: registers that were replaced by zeros."""

    what: Text


class DumpFile(Settings):
    """All of the file."""

    format: Literal[1]
    manufacturer: Text
    model: Text
    hardware: Text
    firmware: Text
    profile: Text | None = None
    max_registers: int = Field(ge=1, le=REGISTERS_MAX)
    objects_refused: int | None = Field(None, ge=0, le=255)
    objects: dict[str, Annotated[str, Field(max_length=255)]] = Field(default_factory=dict)
    run: list[RunModel] = Field(default_factory=list, max_length=ADDRESSES)
    refused: list[RefusedModel] = Field(default_factory=list, max_length=ADDRESSES)
    masked: list[MaskedModel] = Field(default_factory=list, max_length=ADDRESSES)


def parse(source: str, data: bytes) -> Dump:
    """Read a file.

    Args:
        source: Its name, for messages.
        data: Its bytes.

    Raises:
        ConfigurationError: Every fault in it.
    """
    if len(data) > SIZE_MAX:
        raise ConfigurationError([f"{source}: longer than {SIZE_MAX >> 20} MiB"])
    file = parse_toml(source, data, DumpFile)
    faults: list[str] = []
    runs = [_run(index, model, faults) for index, model in enumerate(file.run)]
    for a, b in pairwise(sorted(run.span for run in runs)):
        if a.function == b.function and a.end > b.first:
            faults.append(f"run: {b} is there twice")
    objects = {int(key): value for key, value in file.objects.items() if re.fullmatch(r"\d{1,3}", key, re.ASCII)}
    if len(objects) != len(file.objects) or not all(number < 256 for number in objects):  # noqa: PLR2004  one byte
        faults.append("objects: keys are numbers from 0 to 255")
    if faults:
        raise ConfigurationError([f"{source}: {fault}" for fault in faults])
    return Dump(
        manufacturer=file.manufacturer,
        model=file.model,
        hardware=file.hardware,
        firmware=file.firmware,
        profile=file.profile,
        max_registers=file.max_registers,
        objects=dict(sorted(objects.items())),
        objects_refused=file.objects_refused,
        runs=sorted(runs),
        refused=[Refused(model.span(), model.code) for model in file.refused],
        masked=[(model.span(), model.what) for model in file.masked],
    )


def _run(index: int, model: RunModel, faults: list[str]) -> Run:
    at, data = model.first, b""
    for line in model.words:
        address, _, words = line.partition(":")
        if int(address) != at:
            faults.append(f"run[{index}].words: {line!r} should begin with {at:05}")
        data += bytes.fromhex(words)
        at = model.first + len(data) // 2
    if at > ADDRESSES:
        faults.append(f"run[{index}].words: ends behind register {ADDRESSES - 1}")
    return Run(Span(FUNCTION_OF[model.table], model.first, at), data)


def encode(dump: Dump) -> str:
    """A recording as a file's text; ``parse`` gives the same recording again."""
    head = {
        "format": FORMAT,
        "manufacturer": dump.manufacturer,
        "model": dump.model,
        "hardware": dump.hardware,
        "firmware": dump.firmware,
        "profile": dump.profile,
        "max_registers": dump.max_registers,
        "objects_refused": dump.objects_refused,
    }
    lines = [
        "# A recorded meter: what its registers held, and what it refused to say. Made by `energybid dump`;",
        "# `energybid simulate bus --dump FILE` is that meter again.",
        *(f"{key} = {_quoted(value)}" for key, value in head.items() if value is not None),
        "",
        "[objects] # device identification",
        *(f"{number} = {_quoted(value)}" for number, value in sorted(dump.objects.items())),
    ]
    for span, what in dump.masked:
        lines += ["", "[[masked]] # zeros stand in their place", *_registers(span), f"what = {_quoted(what)}"]
    for span, data in dump.runs:
        lines += ["", "[[run]]", f'table = "{TABLES[span.function]}"', f"first = {span.first}", "words = ["]
        lines += [f'  "{line}",' for line in _lines(span.first, data)]
        lines.append("]")
    for span, code in dump.refused:
        lines += ["", "[[refused]]", *_registers(span), f"code = {code}"]
    return "\n".join(lines) + "\n"


def _registers(span: Span) -> list[str]:
    return [f'table = "{TABLES[span.function]}"', f"first = {span.first}", f"count = {span.end - span.first}"]


def _lines(first: int, data: bytes) -> list[str]:
    step = 2 * WORDS
    return [f"{first + at // 2:05}: {data[at : at + step].hex(' ', 2)}" for at in range(0, len(data), step)]


def _quoted(value: object) -> str:
    # JSON's escapes are TOML's, but for DEL.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def file_name(dump: Dump) -> str:
    """manufacturer-model_hardware_firmware.toml, in small letters."""
    parts = (f"{dump.manufacturer} {dump.model}", dump.hardware, dump.firmware)
    return "_".join(re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.") or "unknown" for part in parts) + ".toml"
