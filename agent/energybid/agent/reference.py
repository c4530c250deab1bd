"""The list of configuration keys, generated from the models.

``python -m energybid.agent.reference > docs/configuration.md`` writes it; a test checks that the file is current.
"""

import ast
import inspect
import itertools
import sys
import textwrap
import typing
from collections.abc import Iterator
from types import NoneType, UnionType

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from energybid.agent.config import GatewayFile
from energybid.core.settings import Duration, Energy, Power, Size, TimeOfDay

HEAD = """\
# Configuration of the agent

Written by `python -m energybid.agent.reference > docs/configuration.md`; do not edit.

`gateway.toml` is checked whole by `energybid config check`: every fault is reported at once, unknown keys too.
Durations are text with a unit (`"250 ms"`, `"5 s"`, `"1 min"`, `"2 h"`, `"1 d"`), sizes too (`"512 KiB"`, `"2 GiB"`),
powers (`"500 W"`, `"4.2 kW"`), energies (`"500 Wh"`, `"13.5 kWh"`) and times of day (`"07:30"`).
Relative paths begin at the file.
"""


KINDS = {
    typing.get_args(kind)[1]: name
    for kind, name in (
        (Duration, "duration"),
        (Size, "size"),
        (Power, "power"),
        (Energy, "energy"),
        (TimeOfDay, "time"),
    )
}
"""What makes a number one with a unit → what it is called."""
UNITS = {"power": "W", "energy": "Wh"}


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """Field → the string below it, base classes included."""
    found: dict[str, str] = {}
    for base in reversed([b for b in model.__mro__ if issubclass(b, BaseModel) and b is not BaseModel]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, text in itertools.pairwise(statements):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[name] = " ".join(words.split()).replace("``", "`")
    return found


def _kind(metadata: typing.Iterable[object]) -> str | None:
    return next((KINDS[mark] for mark in metadata if isinstance(mark, BeforeValidator) and mark in KINDS), None)


def _type(annotation: object) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *metadata = typing.get_args(annotation)
        return _kind(metadata) or _type(inner)
    if origin is typing.Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in typing.get_args(annotation))
    if origin in {typing.Union, UnionType}:
        return " or ".join(_type(a) for a in typing.get_args(annotation) if a is not NoneType)
    if origin is list:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    names: dict[object, str] = {str: "text", int: "integer", float: "number", bool: "true or false"}
    return names.get(annotation, "table")


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "≥", "gt": ">", "le": "≤", "min_length": "length ≥", "max_length": "length ≤", "pattern": "matches"}
    parts = []
    sized = _kind(field.metadata) == "size"
    for constraint in field.metadata:
        for name, word in words.items():
            value = getattr(constraint, name, None)
            if value is not None:
                parts.append(
                    f"{word} {_size(value)}"
                    if sized
                    else f"{word} {value:g}"
                    if isinstance(value, float)
                    else f"{word} {value}"
                    if isinstance(value, int)
                    else f"{word} `{value}`"
                )
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "d"), (60, "min"), (1, "s")):
        if seconds >= size and seconds % size == 0:
            return f'`"{seconds / size:g} {unit}"`'
    return f'`"{seconds * 1000:g} ms"`'


def _amount(number: int) -> str:
    return f"{number // 1000} k" if number and number % 1000 == 0 else f"{number} "


def _size(size: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f'"{size // unit} {name}"'
    return f'"{size} B"'


def _default(field: FieldInfo, kind: str) -> str:
    if field.default is PydanticUndefined:
        return "**required**" if field.is_required() else "–"
    if field.default is None:
        return "–"
    if kind == "duration":
        return _duration(field.default)
    return f"`{_written(field.default, kind)}`"


def _written(default: object, kind: str) -> str:
    """As it would stand in the file."""
    match default:
        case bool():
            return str(default).lower()
        case int() if kind == "size":
            return _size(default)
        case int() if kind in UNITS:
            return f'"{_amount(default)}{UNITS[kind]}"'
        case str():
            return f'"{default}"'
        case _:
            return f"{default}"


def tables(model: type[BaseModel], path: str = "", seen: set[type[BaseModel]] | None = None) -> Iterator[str]:
    """Markdown for a model and the tables inside it, each once."""
    seen = set() if seen is None else seen
    inner: list[tuple[str, type[BaseModel]]] = []
    rows: list[str] = []
    texts = docstrings(model)
    for name, field in model.model_fields.items():
        models = list(_models(field.annotation))
        if models:
            array = typing.get_origin(field.annotation) is list
            label = f"{path}.{name}" if path else name
            inner += [(f"[[{label}]]" if array else f"[{label}]", m) for m in models]
            continue
        kind = _kind(field.metadata) or _type(field.annotation)
        cells = (f"`{name}`", kind, _bounds(field), _default(field, kind), texts.get(name, ""))
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if rows:
        yield "| key | type | bounds | default | |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
    for label, table in inner:
        if table in seen:
            continue
        seen.add(table)
        yield f"## `{label}`\n\n{inspect.getdoc(table)}\n".replace("``", "`")
        yield from tables(table, label.strip("[]"), seen)


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _models(argument)


def reference() -> str:
    """docs/configuration.md."""
    return "\n".join([HEAD, *tables(GatewayFile)])


if __name__ == "__main__":
    sys.stdout.write(reference())
