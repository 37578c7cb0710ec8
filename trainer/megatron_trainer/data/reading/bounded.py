"""Bounds for what a chat template may take: it is a program that came with the model, and may loop or grow forever.

Jinja's sandbox keeps a template from running code; it does not keep `{% for %}` within `{% for %}` from taking a year,
nor 'a' * 10**12 from taking all memory.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SECONDS = 10.0
EXTRA_BYTES = 1 << 30
_PAGE_BYTES = resource.getpagesize()


class TooMuch(BaseException):
    """A bounded piece of work took longer than it may. No Exception: Jinja swallows those while it compiles."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> Iterator[None]:
    """Within it, more time raises TooMuch and more memory MemoryError.

    Time is bounded in the main thread alone, where Python can be interrupted; memory where /proc says what is in use.
    """
    with bounded_memory(extra_bytes), _bounded_time(seconds):
        yield


@contextlib.contextmanager
def _bounded_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TooMuch(f"took longer than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    surrounding = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *surrounding)


@contextlib.contextmanager
def bounded_memory(extra_bytes: int) -> Iterator[None]:
    """Within it, so much more memory than now raises MemoryError, of Arrow too."""
    used = _data_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = 0 if used is None else used + extra_bytes
    if used is None or (soft != resource.RLIM_INFINITY and soft < limit):
        yield
        return
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """Memory that counts against RLIMIT_DATA; None where the kernel does not say."""
    try:
        return int(os.pread(_statistics(os.getpid()), 128, 0).split()[5]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


@functools.cache
def _statistics(process: int) -> int:
    """An open file that says what a process uses; opening it anew would cost more than rendering a row."""
    return os.open(f"/proc/{process}/statm", os.O_RDONLY | os.O_CLOEXEC)
