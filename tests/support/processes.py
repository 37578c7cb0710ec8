"""Other processes as a test sees them: whether one still runs, and waiting for what one does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 60.0


def is_alive(pid: int) -> bool:
    """Whether it runs; one that has ended does not, although its parent may not have asked for its code yet."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(is_so: Callable[[], object]) -> None:
    """Returns as soon as it is so; a minute is more than any machine needs, and then the test fails."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
