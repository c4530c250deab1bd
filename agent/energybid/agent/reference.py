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

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from energybid.agent.config import GatewayFile
from energybid.core.settings import Duration, Size

HEAD = """\
# Configuration of the agent

Written by `python -m energybid.agent.reference > docs/configuration.md`; do not edit.

`gateway.toml` is checked whole by `energybid config check`: every fault is reported at once, unknown keys too.
Durations are text with a unit (`"250 ms"`, `"5 s"`, `"1 min"`, `"2 h"`, `"1 d"`), sizes too (`"512 KiB"`, `"2 GiB"`).
Relative paths begin at the file.
"""


SIZE = typing.get_args(Size)[1]
"""What makes an integer a size."""


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


def _type(annotation: object) -> str:
    if annotation in {float, Duration}:
        return "duration"
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _type(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        return " or ".join(f"`{value!r}`".replace("'", '"') for value in typing.get_args(annotation))
    if origin in {typing.Union, UnionType}:
        return _type(next(a for a in typing.get_args(annotation) if a is not NoneType))
    if origin is list:
        return f"list of {_type(typing.get_args(annotation)[0])}"
    names: dict[object, str] = {str: "text", int: "integer", bool: "true or false"}
    return names.get(annotation, "table")


def _bounds(field: FieldInfo) -> str:
    words = {"ge": "≥", "le": "≤", "min_length": "length ≥", "max_length": "length ≤", "pattern": "matches"}
    parts = []
    sized = SIZE in field.metadata
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
    if kind == "size":
        return f"`{_size(field.default)}`"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    return f'`"{field.default}"`' if isinstance(field.default, str) else f"`{field.default}`"


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
        kind = "size" if SIZE in field.metadata else _type(field.annotation)
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
