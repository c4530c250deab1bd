"""A search's state as JSON: the file that ``energybid scan --resume`` reads and writes.

Here lives the file's shape alone. It is written by this program and may have been edited by anybody: what does not fit
is refused, with the reason. Imports pydantic, so only commands and tests import this.
"""

import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter, ValidationError

from energybid.core.errors import ConfigurationError
from energybid.drivers.scan import Found, State

FORMAT = 1
UNIT_MAX = 255
"""One byte."""
_FOUND = TypeAdapter(list[Found])


def encode(target: str, state: State) -> str:
    """The file's text.

    Args:
        target: The bus as the user named it.
        state: All that is known.
    """
    facts = {
        "format": FORMAT,
        "target": target,
        "complete": state.complete,
        "asked": {
            label: {name: units_text(units) for name, units in calls.items()} for label, calls in state.asked.items()
        },
        "absent": {label: units_text(units) for label, units in state.absent.items()},
        "noise": dict(state.noise),
        "given_up": sorted(state.given_up),
        "found": [asdict(found) for found in state.found],
    }
    return json.dumps(facts, indent=1) + "\n"


def decode(source: str, target: str, text: str) -> State:
    """Read the file's text.

    Args:
        source: The file's name, for messages.
        target: The bus that is to be searched now.
        text: The file's text.

    Raises:
        ConfigurationError: It is no such file, or one of another bus.
    """
    try:
        facts = json.loads(text)
        other, state = facts["target"], _state(facts)
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise ConfigurationError(
            [f"{source}: found.{key}: {wrong['msg']}: is no state of a scan; remove it to begin anew"]
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ConfigurationError([f"{source}: is no state of a scan ({error}); remove it to begin anew"]) from None
    if other != target:
        raise ConfigurationError([f"{source}: is the state of a scan of {other}, not of {target}"])
    return state


def _state(facts: dict[str, Any]) -> State:
    if facts["format"] != FORMAT:
        raise ValueError(f"format {facts['format']!r}")
    return State(
        asked={label: {name: parse_units(t) for name, t in c.items()} for label, c in facts["asked"].items()},
        absent={label: parse_units(text) for label, text in facts["absent"].items()},
        noise=Counter({str(label): int(count) for label, count in facts["noise"].items()}),
        given_up={str(label) for label in facts["given_up"]},
        found=_found(facts["found"]),
        complete=bool(facts["complete"]),
    )


def _found(facts: object) -> list[Found]:
    """What was found, every type checked."""
    found = _FOUND.validate_json(json.dumps(facts), strict=True)
    if not all(0 <= one.unit <= UNIT_MAX for one in found):
        raise ValueError(f"units are 0 to {UNIT_MAX}")
    return found


def units_text(units: set[int]) -> str:
    """Units as people write them, "1-3,7"; what ``parse_units`` reads."""
    spans: list[list[int]] = []
    for unit in sorted(units):
        if spans and spans[-1][1] == unit - 1:
            spans[-1][1] = unit
        else:
            spans.append([unit, unit])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def parse_units(text: str) -> set[int]:
    """Units written as "1-32,247".

    Raises:
        ValueError: It is not so written, or a unit is not 0 to UNIT_MAX.
    """
    units: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"write units as 1-32 or 1,5,7-9 (found {text!r})")
        low, high = int(first), int(last) if dash else int(first)
        if not 0 <= low <= high <= UNIT_MAX:
            raise ValueError(f"units are 0 to {UNIT_MAX}, the lower first (found {part.strip()!r})")
        units.update(range(low, high + 1))
    return units
