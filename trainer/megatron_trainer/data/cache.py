"""Folders that are built once and found by a key, whichever process or node asks first.

The builder writes a folder aside and renames it, so that a folder is there completely or not at all. A lock file says
that somebody builds; its owner touches it while it lives, and a lock that nobody touches is taken over. Should two
build at the same time all the same (a node was cut off for a while, a file system lacks exclusive creation), both build
the same content, and what is finished first stays: others may read it already.
"""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

BEAT_S = 1.0
DEAD_AFTER_S = 20.0
LOOK_AGAIN_S = 0.1


def built_once(
    folder: Path, build: Callable[[Path], None], *, dead_after_s: float = DEAD_AFTER_S, renew: bool = False
) -> Path:
    """The folder, after `build` filled it, here or in another process.

    renew: build even when the folder is there; it replaces the old one.
    dead_after_s: a builder that shows no life for so long is given up. What `build` raises is raised here.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not renew:
        return folder
    lock = folder.with_name(folder.name + ".lock")
    watch = _Watch(lock, dead_after_s)
    while not _take(lock):
        watch.look()
        if folder.exists() and not renew:
            return folder
        time.sleep(LOOK_AGAIN_S)
    with _alive(lock):
        if renew or not folder.exists():
            _build_aside(folder, build, renew=renew)
    return folder


def _build_aside(folder: Path, build: Callable[[Path], None], *, renew: bool) -> None:
    aside, old = (folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part") for _ in range(2))
    try:
        build(aside)
        if renew and folder.exists():
            folder.rename(old)
        aside.rename(folder)  # fails where the folder is there
    except OSError:
        if not folder.exists():  # somebody else's is as good as ours
            raise
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _take(lock: Path) -> bool:
    try:
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    return True


@contextmanager
def _alive(lock: Path) -> Iterator[None]:
    """Touches the lock until the work is done, then removes it."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_S):
            try:
                os.utime(lock)
            except FileNotFoundError:
                return  # taken over; the rename at the end is still safe

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        lock.unlink(missing_ok=True)


class _Watch:
    """Removes another's lock once it has not been touched for too long, by this machine's own clock."""

    def __init__(self, lock: Path, dead_after_s: float) -> None:
        self._lock = lock
        self._dead_after_s = dead_after_s
        self._seen: int | None = None
        self._since = time.monotonic()

    def look(self) -> None:
        try:
            touched = self._lock.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if touched != self._seen:
            self._seen, self._since = touched, time.monotonic()
        elif time.monotonic() - self._since > self._dead_after_s:
            logger.warning("gave up a builder that shows no life lock=%s seconds=%.0f", self._lock, self._dead_after_s)
            self._lock.unlink(missing_ok=True)
