"""The wall clock, read in one place; durations use time.monotonic."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def epoch_s() -> float:
    """Seconds since the epoch, for records that other machines read."""
    return time.time()


def stamp() -> str:
    """Local date and time in the form of a version folder, for example 20261124-083000."""
    return datetime.now(UTC).astimezone().strftime("%Y%m%d-%H%M%S")
