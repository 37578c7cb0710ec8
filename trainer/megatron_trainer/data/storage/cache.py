"""Folders that are built once and found by a key, whichever process or node asks first.

The builder writes a folder aside, makes it durable, and renames it, so that a folder is there completely or not at
all. A list of its files with their lengths tells what a crash of the machine, or somebody else, has left of it since:
such a folder is built again. A lock file says
that somebody builds; its owner touches it while it lives, and a lock that no one touches is taken over. Should two
build at the same time all the same (a node was cut off for a while, a file system lacks exclusive creation), both build
the same content, and what is finished first stays: others may read it already.
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
    """The folder, after `build` filled it, here or in another process.

    renew: build even when the folder is there; it replaces the old one.
    dead_after_s: a builder that shows no life for so long is given up. What `build` raises is raised here.
    """
    if is_whole(folder) and not renew:
        return folder
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not renew:
        logger.warning("the cached data in %s is not whole and is made again", folder)
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
    """What `open_` makes of the folder. One that it cannot read, whole as it may look, is built again, once."""
    built_once(folder, build, renew=renew)
    try:
        return open_(folder)
    except (OSError, ValueError) as err:
        logger.warning("the cached data in %s cannot be read and is made again: %s", folder, err)
    built_once(folder, build, renew=True)
    return open_(folder)


def is_whole(folder: Path) -> bool:
    """Whether every file that was built is there in its length."""
    try:
        lengths = input_file.read_json(folder / LENGTHS)
        return all((folder / name).stat().st_size == length for name, length in lengths.items())
    except (OSError, ValueError, AttributeError):
        return False


def _complete(aside: Path) -> None:
    """Writes the list of files, and makes all of them durable."""
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
    """A place that cannot be written does not get better by trying again."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as err:
        message = f"cannot write tokenized data to {place}: {err.strerror or err}; give another save, or free the place"
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, message) from err


def _build_aside(folder: Path, build: Callable[[Path], None], *, renew: bool) -> None:
    aside, old = (folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.part") for _ in range(2))
    try:
        build(aside)
        with _writing(folder.parent):
            _complete(aside)
            if folder.exists() and (renew or not is_whole(folder)):
                folder.rename(old)
            aside.rename(folder)  # fails where the folder is there
    except (FileExistsError, TrainingError):
        if not is_whole(folder):  # somebody else's is as good as ours
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
