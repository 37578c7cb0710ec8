"""Limits time and memory of a chat template: it is a program from the model's publisher and may loop or grow forever.

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
    """Bounded work exceeded its time limit. Not an Exception: Jinja swallows those while it compiles."""


@contextlib.contextmanager
def bounded(seconds: float = SECONDS, extra_bytes: int = EXTRA_BYTES) -> Iterator[None]:
    """Context in which exceeding the time raises TooMuch and exceeding the memory MemoryError.

    Time is limited only in the main thread, where Python can be interrupted; memory only where /proc reports usage.
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
    """Context in which using this much more memory than now raises MemoryError, also in Arrow."""
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
    """Memory that counts against RLIMIT_DATA; None if the kernel does not report it."""
    try:
        return int(os.pread(_statistics(os.getpid()), 128, 0).split()[5]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return None


@functools.cache
def _statistics(process: int) -> int:
    """An open file with the memory usage of a process; reopening it would cost more than rendering a row."""
    return os.open(f"/proc/{process}/statm", os.O_RDONLY | os.O_CLOEXEC)
