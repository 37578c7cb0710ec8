"""RFC 3339 text, as Kubernetes writes times, to and from seconds since the epoch. Reads no clock."""

from __future__ import annotations

from datetime import UTC, datetime

EARLIEST_S, LATEST_S = 0.0, 253_402_300_799.0  # the years 1970 to 9999: others do not fit the format


def to_text(seconds: float) -> str:
    """The time as Kubernetes writes it, whole seconds in UTC: "2026-11-24T10:00:00Z".

    Times outside the years 1970 to 9999 are clamped.
    """
    return datetime.fromtimestamp(min(max(seconds, EARLIEST_S), LATEST_S), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_milliseconds_text(seconds: float) -> str:
    """The same with milliseconds, for phases that take less than a second: "2026-11-24T10:00:00.250Z"."""
    moment = datetime.fromtimestamp(min(max(seconds, EARLIEST_S), LATEST_S), UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def to_seconds(text: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time (fractions allowed), None for none.

    Also None for one that the API server accepts and Python has no value for, such as one in the year 0: an odd time
    makes no pod unreadable.
    """
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
