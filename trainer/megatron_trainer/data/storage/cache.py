"""Folders that are built once and looked up by key, by whichever process or node comes first.

The builder writes a temporary folder, syncs it to disk, and renames it, so that a folder exists completely or not at
all. A list of its files with their sizes detects later damage by a crash of the machine or by others: such a folder is
rebuilt. A lock file marks a build in progress; its owner touches it while alive, and a lock that is no longer touched
is taken over. If two processes nevertheless build at the same time (a node was cut off for a while, a file system lacks
exclusive creation), both build the same content, and the one that finishes first is kept: others may already be reading
it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_trainer.failure import TrainingError
from megatron_trainjob import input_file
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)

LENGTHS = "lengths.json"
BEAT_S = 1.0
DEAD_AFTER_S = 20.0
LOOK_AGAIN_S = 0.1


def built_once(
    folder: Path, build: Callable[[Path], None], *, dead_after_s: float = DEAD_AFTER_S, renew: bool = False
) -> Path:
    """The folder, after `build` has filled it, here or in another process.

    renew: build even if the folder exists; the new one replaces it.
    dead_after_s: a builder without a sign of life for this long is considered dead. Exceptions of `build` are raised
    here.
    """
    if is_whole(folder) and not renew:
        return folder
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not renew:
        logger.warning("the cached data in %s is incomplete and is created again", folder)
    lock = folder.with_name(folder.name + ".lock")
    watch = _Watch(lock, dead_after_s)
    while not _take(lock):
        watch.look()
        if is_whole(folder) and not renew:
            return folder
        time.sleep(LOOK_AGAIN_S)
    with _alive(lock):
        if renew or not is_whole(folder):
            _build_aside(folder, build, renew=renew)
    return folder


def opened[Opened](
    folder: Path, build: Callable[[Path], None], open_: Callable[[Path], Opened], *, renew: bool = False
) -> Opened:
    """The result of `open_` for the folder. A folder that looks complete but cannot be read is rebuilt once."""
    built_once(folder, build, renew=renew)
    try:
        return open_(folder)
    except (OSError, ValueError) as err:
        logger.warning("the cached data in %s cannot be read and is created again: %s", folder, err)
    built_once(folder, build, renew=True)
    return open_(folder)


def is_whole(folder: Path) -> bool:
    """Whether every file is present with its recorded size."""
    try:
        lengths = input_file.read_json(folder / LENGTHS)
        return all((folder / name).stat().st_size == length for name, length in lengths.items())
    except (OSError, ValueError, AttributeError):
        return False


def _complete(aside: Path) -> None:
    """Writes the list of files and syncs all of them to disk."""
    files = [path for path in sorted(aside.rglob("*")) if path.is_file()]
    lengths = {str(path.relative_to(aside)): path.stat().st_size for path in files}
    (aside / LENGTHS).write_text(json.dumps(lengths))
    for path in (*files, aside / LENGTHS, aside):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """A location that cannot be written is an error of the user; a retry does not help."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as err:
        message = f"cannot write tokenized data to {place}: {err.strerror or err}; use another save, or free space"
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, message) from err


def _build_aside(folder: Path, build: Callable[[Path], None], *, renew: bool) -> None:
    aside, old = (folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part") for _ in range(2))
    try:
        build(aside)
        with _writing(folder.parent):
            _complete(aside)
            if folder.exists() and (renew or not is_whole(folder)):
                folder.rename(old)
            aside.rename(folder)  # fails if the folder exists
    except (FileExistsError, TrainingError):
        if not is_whole(folder):  # another process's folder is as good as ours
            raise
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _take(lock: Path) -> bool:
    try:
        with _writing(lock.parent):
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
    """Removes another process's lock once it has not been touched for too long, by this machine's own clock."""

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
            logger.warning(
                "took over from a builder without a heartbeat lock=%s seconds=%.0f", self._lock, self._dead_after_s
            )
            self._lock.unlink(missing_ok=True)
