"""RFC 3339 text, as Kubernetes writes times, to and from seconds since the epoch. Reads no clock."""

from __future__ import annotations

from datetime import UTC, datetime


def to_text(seconds: float) -> str:
    """The time as Kubernetes writes it, whole seconds in UTC: "2026-11-24T10:00:00Z"."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_seconds(text: str | None) -> float | None:
    """Seconds since the epoch of an RFC 3339 time (fractions allowed), None for none."""
    if not text:
        return None
    return datetime.fromisoformat(text).timestamp()
