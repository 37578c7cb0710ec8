"""A process that saves into a checkpoint folder and is frozen (SIGSTOP) before one chosen step of it.

A step is every call that changes the folder: making, renaming and removing folders, opening files for writing. Plain
processes without torch: what is tried are the names in the folder, which do not depend on what the files hold.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from megatron_trainer.checkpoint import folder
from megatron_trainer.checkpoint.folder import Owner, TakenOver
from tests.support.checkpoint import checkpoint_files

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree"}
WRITTEN, TAKEN_OVER, NOT_CLAIMED, BROKEN = 0, 3, 4, 5


def owner(attempt: int) -> Owner:
    return Owner(job_uid="a", attempt=attempt, job_name="job", token=f"t{attempt}")


def save(place: Path, attempt: int, iteration: int, content: bytes, *, limit: int = 2) -> None:
    """One checkpoint of two ranks' files, published; older ones pruned."""
    writer = owner(attempt)
    aside = folder.folder_aside(place, iteration, writer)
    with folder.owned(place, writer):
        folder.make_aside(aside)
        files = {"__0_0.distcp": content, "__1_0.distcp": content, ".metadata": checkpoint_files.INDEX}
        manifest = checkpoint_files.manifest(aside, files, iteration=iteration)
    folder.publish(aside, manifest, writer)
    folder.prune(place, iteration, limit, writer)


def claim_and_save(place: Path, attempt: int, iteration: int, content: bytes) -> None:
    if not folder.claim(place, owner(attempt)):
        sys.exit(NOT_CLAIMED)
    save(place, attempt, iteration, content)


def write_shard(place: Path, attempt: int, iteration: int, content: bytes) -> None:
    """The second rank: its file alone."""
    with folder.owned(place, owner(attempt)):
        (folder.folder_aside(place, iteration, owner(attempt)) / "__1_0.distcp").write_bytes(content)


def start_frozen(action: Callable[[], None], step: int) -> tuple[int, bool]:
    """The process that does it, stopped before its step (from 0), and whether it stopped there; else it is through."""
    pid = os.fork()
    if pid == 0:
        os._exit(_run(action, step))
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return pid, True
    return os.waitstatus_to_exitcode(status), False


def wake(pid: int) -> int:
    """Lets it go on; its exit code."""
    os.kill(pid, signal.SIGCONT)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Freezer:
    """Stops this process before one of the changes that it makes to a folder. An audit hook stays: there is one."""

    def __init__(self) -> None:
        self.seen, self._step = 0, -1
        sys.addaudithook(self._hear)

    def arm(self, step: int) -> None:
        """Stops before the change of this number, counted from here; -1: before none."""
        self.seen, self._step = 0, step

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        is_write = event == "open" and isinstance(arguments[1], str) and "w" in arguments[1]
        if event in CHANGES or is_write:
            self.seen += 1
            if self.seen - 1 == self._step:
                os.kill(os.getpid(), signal.SIGSTOP)


def _run(action: Callable[[], None], step: int) -> int:
    Freezer().arm(step)
    try:
        action()
    except SystemExit as end:
        return int(str(end.code))
    except TakenOver as err:
        return TAKEN_OVER if "was taken over by attempt 1 of job job" in str(err) else BROKEN
    except BaseException:  # noqa: BLE001 - a process of its own: its code says it
        return BROKEN
    return WRITTEN
