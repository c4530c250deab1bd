"""Moments as people write them: ISO 8601 with a zone, to the millisecond. Pure."""

from datetime import UTC, datetime, timedelta

_1970 = datetime(1970, 1, 1, tzinfo=UTC)
_MS = timedelta(milliseconds=1)


def moment_text(time_ms: int) -> str:
    """Milliseconds since 1970 → ``2026-11-22T12:00:00.000Z``; as a number where no calendar goes."""
    try:
        moment = _1970 + timedelta(milliseconds=time_ms)
    except OverflowError:
        return f"{time_ms} ms after 1970-01-01T00:00:00Z"
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def moment_ms(text: str) -> int:
    """``2026-11-22T12:00:00Z`` or ``2026-11-22 13:00+01:00`` → milliseconds since 1970, rounded down.

    Raises:
        ValueError: Not such a moment, or without its zone.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a time: write 2026-11-22T12:00:00Z or 2026-11-22T13:00:00+01:00") from None
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} names no zone: add Z for UTC, or an offset such as +01:00")
    return (moment - _1970) // _MS
