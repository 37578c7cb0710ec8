"""Human-readable durations."""

from __future__ import annotations


def in_words(seconds: float) -> str:
    """Days to seconds, without leading zero parts: "42s", "3m 21s", "1h 0m 5s", "2d 1h 0m 5s"."""
    left = max(0, round(seconds))
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        count, left = divmod(left, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join([*parts, f"{left}s"])
