"""What a check has found, and how it is said: to people and to programs. Pure."""

from __future__ import annotations

import textwrap
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

WIDTH = 79
INDENT = 10


class Severity(Enum):
    """How sure it is that something must be done."""

    ERROR = "error"
    """It is wrong."""
    WARNING = "warning"
    """It is probably wrong; what speaks against it is said."""
    NOTE = "note"
    """It can not be told, or is only remarkable."""


class Finding(NamedTuple):
    """One thing that was found."""

    severity: Severity
    check: str
    """Short name that does not change, for programs."""
    where: str
    """The meter's name, or the bus's."""
    measured: str
    means: str
    cure: str
    """What to do."""


def error(check: str, where: str, measured: str, means: str, cure: str) -> Finding:
    """Something is wrong."""
    return Finding(Severity.ERROR, check, where, measured, means, cure)


def warning(check: str, where: str, measured: str, means: str, cure: str) -> Finding:
    """Something is probably wrong."""
    return Finding(Severity.WARNING, check, where, measured, means, cure)


def note(check: str, where: str, measured: str, means: str, cure: str) -> Finding:
    """Something can not be told."""
    return Finding(Severity.NOTE, check, where, measured, means, cure)


def counts(findings: Iterable[Finding]) -> bool:
    """Whether anything has to be done."""
    return any(finding.severity != Severity.NOTE for finding in findings)


def lines(finding: Finding) -> list[str]:
    """A finding for people: what was measured, what it means, what to do."""
    label = "note" if finding.severity == Severity.NOTE else finding.severity.value.upper()
    wrapped = []
    for text in (finding.measured, finding.means, finding.cure):
        wrapped += textwrap.wrap(text, WIDTH - INDENT, break_long_words=False, break_on_hyphens=False)
    return [f"  {label if n == 0 else '':{INDENT - 2}}{line}" for n, line in enumerate(wrapped)]


def facts(finding: Finding) -> dict[str, str]:
    """A finding for programs."""
    return {
        "severity": finding.severity.value,
        "check": finding.check,
        "where": finding.where,
        "measured": finding.measured,
        "means": finding.means,
        "do": finding.cure,
    }
