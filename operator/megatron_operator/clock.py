"""The operator's only reader of the wall clock: the shells read `now` here and pass it to the pure core."""

from __future__ import annotations

import time


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
