"""Writes to the folder of a run's checkpoints: ownership, publishing, pruning. Writes no tensors.

Its layout and how it is read: megatron_trainjob.checkpoint_folder.

An attempt may be replaced at any moment, and may be frozen at any moment and resume later: the result of a check may be
stale by the next line. So nothing here is check-then-act. Each attempt has a workshop, a folder of its own that is
created when it claims the save folder and removed by the next claim. Everything that is added to the save folder is
renamed out of the workshop's door, and everything that is removed is renamed into the door: without a door every such
rename fails. Only a claim creates the door; the workshop itself may reappear when a library that resumes in the middle
of a save creates missing parent folders. Requires only atomic renames of the file system; neither locks nor clocks.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

from megatron_trainer.checkpoint import lease
from megatron_trainjob import input_file
from megatron_trainjob.checkpoint_folder import (
    BEST,
    LAST,
    MANIFEST,
    OWNER,
    TRACKER,
    Checkpoint,
    Manifest,
    best,
    checkpoints,
    iteration_folder,
    of_run,
)

logger = logging.getLogger(__name__)

WORKSHOP = ".attempt-"
NAME_OF_WORKSHOP = re.compile(r"\.attempt-(\d+)-([0-9a-f]{8})-\w*")
SWEPT = ".swept-"
DOOR = "door"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The writer of a folder: one attempt of one job (uid is empty for a run without an operator).

    token: identifies one launch of its ranks; a pod may launch them more than once within an attempt.
    """

    job_uid: str
    attempt: int
    job_name: str = ""
    token: str = ""

    def __str__(self) -> str:
        return f"attempt {self.attempt} of job {self.job_name or self.job_uid or 'without a name'}"


class TakenOver(OSError):
    """Another attempt, or another job, has claimed the folder."""


class Occupied(Exception):
    """The folder belongs to another job."""


def owner(save: Path) -> Owner | None:
    """The owner that claimed the folder last; None if it was never claimed."""
    try:
        return Owner(**input_file.read_json(save / OWNER))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def claim(save: Path, claimant: Owner, *, adopts: bool = False) -> bool:
    """Claims the folder: its previous owner can publish nothing more. False: a newer attempt of this job has it.

    adopts: also claims from another job that has ended. A job recreated under the same name counts as the same job.

    Raises:
        Occupied: another job has the folder, or had it and adopts is false.

    Partial files of previous attempts are removed; a checkpoint that such an attempt was about to replace is restored.
    The own workshop is created first, then others are removed, then newer ones are looked for: of two concurrent claims
    the newer attempt gets the folder, however their steps interleave.
    """
    save.mkdir(parents=True, exist_ok=True)
    own = workshop(save, claimant)
    own.mkdir()
    try:
        _check_free(save, claimant, adopts=adopts)
    except Occupied:
        own.rmdir()
        raise
    with contextlib.suppress(FileNotFoundError):  # a newer attempt has removed the workshop: nothing below is renamed
        (own / DOOR).mkdir()
    newer = False
    for left in save.glob(f"{WORKSHOP}*"):
        attempt, job = _maker(left)
        if job == _job_key(claimant) and attempt > claimant.attempt:
            newer = True
        elif left != own:
            _sweep(left)
    current = owner(save)
    if newer or (current and current.job_uid == claimant.job_uid and current.attempt > claimant.attempt):
        shutil.rmtree(own, ignore_errors=True)
        return False
    for left in [*save.glob(f"{SWEPT}*"), *save.glob(".iter_*.tmp")]:  # the second pattern is of an earlier release
        shutil.rmtree(left, ignore_errors=True)
    try:
        publish_text(save / OWNER, json.dumps(asdict(claimant)), claimant)
    except FileNotFoundError:
        return False
    synchronize(save)
    return True


def _check_free(save: Path, claimant: Owner, *, adopts: bool) -> None:
    current, own = owner(save), workshop(save, claimant)
    if current is None or (current.job_uid == claimant.job_uid and claimant.job_uid):
        return
    held = lease.holder(workshop(save, current), now_s=own.stat().st_mtime)
    if held:
        raise Occupied(
            f"{save} is in use by {current} ({held}); stop that run, or use another save folder for this one"
        )
    is_other = current.job_uid and current.job_name and current.job_name != claimant.job_name
    if is_other and not adopts:
        message = f"{save} has the run of another job, {current.job_name}; use another save folder for this one"
        raise Occupied(f"{message}, or let it continue there with spec.checkpoint.adopt: true")


def workshop(save: Path, writer: Owner) -> Path:
    """The writer's own folder. It exists from its claim until the next claim."""
    return save / f"{WORKSHOP}{writer.attempt}-{_job_key(writer)}-{writer.token}"


def door(save: Path, writer: Owner) -> Path:
    """The folder through which the writer publishes and removes. It is missing after a takeover."""
    return workshop(save, writer) / DOOR


def _job_key(writer: Owner) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, writer.job_uid).hex[:8]


def _maker(left: Path) -> tuple[int, str]:
    """Attempt and job of a workshop, by its name; (-1, "") for any other folder."""
    match = NAME_OF_WORKSHOP.fullmatch(left.name)
    return (int(match[1]), match[2]) if match else (-1, "")


def _sweep(left: Path) -> None:
    """Removes a workshop: from then on nothing can be renamed into it or out of it by its name."""
    swept = left.with_name(f"{SWEPT}{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):
        left.rename(swept)
        for taken in [*swept.glob(f"{DOOR}/iter_*.replaced"), *swept.glob("iter_*.replaced")]:  # of an earlier release
            final = left.parent / taken.name.removesuffix(".replaced")
            if not final.exists():
                taken.rename(final)
        shutil.rmtree(swept, ignore_errors=True)


def folder_aside(save: Path, iteration: int, writer: Owner) -> Path:
    """Where the checkpoint of this iteration is written before it is published."""
    return workshop(save, writer) / iteration_folder(save, iteration).name


def make_aside(aside: Path) -> None:
    """Creates the empty folder that a checkpoint is written into.

    Raises:
        FileNotFoundError: another run has claimed the folder.
    """
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()


def publish(aside: Path, manifest: Manifest, writer: Owner) -> Path:
    """Completes the folder and renames it atomically and durably; replaces an older one of the same iteration.

    Raises:
        TakenOver: another run has claimed the folder; nothing in it has changed.
        OSError: the folder cannot be written.
    """
    save = aside.parent.parent
    with owned(save, writer):
        replace_text(aside / MANIFEST, manifest.to_text())
        synchronize(aside)
        final = iteration_folder(save, manifest.iteration)
        ready, replaced = (door(save, writer) / f"{final.name}{suffix}" for suffix in ("", ".replaced"))
        for left in (ready, replaced):
            shutil.rmtree(left, ignore_errors=True)
        aside.rename(ready)
        with contextlib.suppress(FileNotFoundError):
            final.rename(replaced)
        ready.rename(final)
        synchronize(save)
        shutil.rmtree(replaced, ignore_errors=True)
        publish_text(save / TRACKER, str(manifest.iteration), writer)
    return final


@contextlib.contextmanager
def owned(save: Path, writer: Owner) -> Iterator[None]:
    """Context that reports a failure as a takeover of the folder where that is the cause.

    Raises:
        TakenOver: instead of the error caused by the missing workshop.
    """
    try:
        yield
    except BaseException as err:
        if door(save, writer).is_dir():
            raise
        raise TakenOver(f"{save} was taken over by {owner(save)}; {writer} publishes nothing anymore") from err


def drop(aside: Path, writer: Owner) -> None:
    """Removes the remains of a failed save, and a workshop that reappeared after its removal."""
    save = aside.parent.parent
    shutil.rmtree(aside if door(save, writer).is_dir() else workshop(save, writer), ignore_errors=True)


def superfluous(found: Iterable[Checkpoint], newest: int, limit: int) -> tuple[Checkpoint, ...]:
    """Checkpoints to prune once iteration `newest` is published, with `limit` checkpoints to keep.

    The newest `limit` complete ones and the best one are kept. Damaged ones do not count; they are pruned when older
    than all that are kept. Those of another run stay.
    """
    own = of_run(found, newest)
    complete = [each for each in own if each.manifest is not None]
    if len(complete) < limit:
        return ()
    kept = best(complete)
    oldest_kept = complete[limit - 1].iteration
    return tuple(each for each in own if each.iteration < oldest_kept and each != kept)


def point(save: Path, newest: int, writer: Owner) -> None:
    """Points `last` to iteration `newest`, which is published, and `best` to the best one up to it."""
    with owned(save, writer):
        _point(save / LAST, iteration_folder(save, newest), writer)
        found = best(of_run(checkpoints(save), newest))
        if found is not None:
            _point(save / BEST, found.path, writer)


def _point(link: Path, target: Path, writer: Owner) -> None:
    """Replaces the link atomically; where storage has no links, a file that holds the name."""
    aside = door(link.parent, writer) / link.name
    aside.unlink(missing_ok=True)
    _keep_copied(link)
    try:
        aside.symlink_to(target.name)
    except OSError:
        publish_text(link, target.name, writer)
    else:
        aside.replace(link)


def _keep_copied(link: Path) -> None:
    """Moves aside a folder with the link's name, as in a copy of the save folder that followed links."""
    if link.is_symlink() or not link.is_dir():
        return
    names = (link.with_name(f"{link.name}-copied{number or ''}") for number in count())
    kept = next(name for name in names if not name.exists())
    link.rename(kept)
    logger.warning(
        "%s was a folder, not a link, and is kept as %s; remove it when it is no longer needed", link, kept.name
    )


def prune(save: Path, newest: int, limit: int, writer: Owner) -> None:
    """Removes what `superfluous` names."""
    with owned(save, writer):
        for checkpoint in superfluous(checkpoints(save), newest, limit):
            removed = door(save, writer) / f"{checkpoint.path.name}.removed"
            shutil.rmtree(removed, ignore_errors=True)
            checkpoint.path.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)


def publish_text(path: Path, text: str, writer: Owner) -> None:
    """Replaces a file of the save folder atomically and durably; fails when the folder was taken over."""
    aside = door(path.parent, writer) / path.name
    _write(aside, text)
    aside.replace(path)


def replace_text(path: Path, text: str) -> None:
    """Writes the file atomically and durably: a reader sees the old text or the new one."""
    aside = path.with_name(path.name + ".tmp")
    _write(aside, text)
    aside.replace(path)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def synchronize(folder: Path) -> None:
    """Syncs a folder to disk, so that a crash of the machine cannot undo renames in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
