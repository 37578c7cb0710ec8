"""Waiting for what a cluster does in its own time."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

PATIENCE_S = 120.0


def wait_until[Value](
    read: Callable[[], Value], wanted: Callable[[Value], bool], what: str, patience_s: float = PATIENCE_S
) -> Value:
    """The first value read that is as wanted; fails with the last one when none came in time."""
    deadline = time.monotonic() + patience_s
    while True:
        value = read()
        if wanted(value):
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {patience_s:.0f} s for {what}; last seen: {value}")
        time.sleep(0.1)


def is_ready(port: int, host: str = "127.0.0.1") -> bool:
    """Whether the program with its health server there says that it is ready."""
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=5):
            return True
    except OSError:  # URLError and HTTPError among them
        return False
