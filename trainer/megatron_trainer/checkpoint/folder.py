"""Writing to the folder of a run's checkpoints: who may, what is published, what is removed. Writes no tensors.

What lies there and how it is read: megatron_trainjob.checkpoint_folder.

An attempt may be replaced at any moment, and be frozen at any moment and wake later: no check that it makes holds for
the next line. So nothing here is checked and then done. Each attempt has a workshop, a folder of its own, made when it
claims the save folder and taken away by whoever claims it next. Whatever appears in the save folder is renamed out of
the workshop's door, and whatever disappears from it is renamed into the door: without it every such rename fails. The
door is a folder that a claim alone makes; the workshop comes back where a library that woke in the middle of a save
makes the missing parents of what it writes. Needs nothing of a file system but an atomic rename; neither locks nor
clocks.
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
)

logger = logging.getLogger(__name__)

WORKSHOP = ".attempt-"
NAME_OF_WORKSHOP = re.compile(r"\.attempt-(\d+)-([0-9a-f]{8})-\w*")
SWEPT = ".swept-"
DOOR = "door"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who writes to a folder: one attempt of one job (uid is empty for a run that no operator started).

    token: of the start of its ranks; a pod may start them more than once within an attempt.
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
    """The folder is another job's."""


def owner(save: Path) -> Owner | None:
    """Who claimed the folder last; None before anybody did."""
    try:
        return Owner(**input_file.read_json(save / OWNER))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def claim(save: Path, claimant: Owner, *, adopts: bool = False) -> bool:
    """Takes the folder over: whoever had it publishes nothing more. False: a newer attempt of this job has it.

    adopts: also from another job that has ended. A job that was deleted and made again under its name is the same.

    Raises:
        Occupied: another job has the folder, or had it and adopts is false.

    What an attempt that is gone left half written is removed; a checkpoint that it was about to replace comes back.
    The workshop comes first, then others' go, then it is looked for newer ones: of two attempts that claim at once, in
    whichever order their steps come, the newer one has the folder.
    """
    save.mkdir(parents=True, exist_ok=True)
    own = workshop(save, claimant)
    own.mkdir()
    try:
        _check_free(save, claimant, adopts=adopts)
    except Occupied:
        own.rmdir()
        raise
    with contextlib.suppress(FileNotFoundError):  # a newer attempt has swept the workshop: nothing is renamed below
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
    for left in [*save.glob(f"{SWEPT}*"), *save.glob(".iter_*.tmp")]:  # the second are of an earlier release
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
        raise Occupied(f"{save} is in use by {current} ({held}); stop that run, or give this one another save folder")
    is_other = current.job_uid and current.job_name and current.job_name != claimant.job_name
    if is_other and not adopts:
        message = f"{save} holds the run of another job, {current.job_name}; give this one another save folder"
        raise Occupied(f"{message}, or let it go on from there with spec.checkpoint.adopt: true")


def workshop(save: Path, writer: Owner) -> Path:
    """The writer's own folder. It is there from its claim until the next one."""
    return save / f"{WORKSHOP}{writer.attempt}-{_job_key(writer)}-{writer.token}"


def door(save: Path, writer: Owner) -> Path:
    """The folder through which everything of the writer comes and goes. Without it the folder has been taken over."""
    return workshop(save, writer) / DOOR


def _job_key(writer: Owner) -> str:
    return uuid.uuid5(uuid.NAMESPACE_OID, writer.job_uid).hex[:8]


def _maker(left: Path) -> tuple[int, str]:
    """Attempt and job of a workshop, by its name; (-1, "") where it is none."""
    match = NAME_OF_WORKSHOP.fullmatch(left.name)
    return (int(match[1]), match[2]) if match else (-1, "")


def _sweep(left: Path) -> None:
    """Takes a workshop away: from here on nothing is renamed into it or out of it by its name."""
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
    """Makes the empty folder that a checkpoint is written into.

    Raises:
        FileNotFoundError: another run has claimed the folder.
    """
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()


def publish(aside: Path, manifest: Manifest, writer: Owner) -> Path:
    """Completes the folder and gives it its name, all at once and durably; an older one of the same iteration goes.

    Raises:
        TakenOver: another run has claimed the folder; nothing in it has changed.
        OSError: it cannot be written.
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
    """Says of a failure within it that the folder was taken over, where that is its cause.

    Raises:
        TakenOver: instead of whatever the missing workshop raised.
    """
    try:
        yield
    except BaseException as err:
        if door(save, writer).is_dir():
            raise
        raise TakenOver(f"{save} was taken over by {owner(save)}; {writer} publishes nothing more") from err


def drop(aside: Path, writer: Owner) -> None:
    """Removes what a save that failed has left, and a workshop that came back after it was taken away."""
    save = aside.parent.parent
    shutil.rmtree(aside if door(save, writer).is_dir() else workshop(save, writer), ignore_errors=True)


def superfluous(found: Iterable[Checkpoint], newest: int, limit: int) -> tuple[Checkpoint, ...]:
    """What may go once iteration `newest` is published and `limit` checkpoints are to stay.

    Kept are the newest `limit` complete ones, and the best one beside them. Damaged ones do
    not count; they go when they are older than all that are kept. Later iterations than `newest` are of another run.
    """
    own = sorted((each for each in found if each.iteration <= newest), key=lambda each: -each.iteration)
    complete = [each for each in own if each.manifest is not None]
    if len(complete) < limit:
        return ()
    kept = best(complete)
    oldest_kept = complete[limit - 1].iteration
    return tuple(each for each in own if each.iteration < oldest_kept and each != kept)


def point(save: Path, newest: int, writer: Owner) -> None:
    """Lets `last` lead to iteration `newest`, which is published, and `best` to the best one up to there."""
    with owned(save, writer):
        _point(save / LAST, iteration_folder(save, newest), writer)
        found = best(each for each in checkpoints(save) if each.iteration <= newest)
        if found is not None:
            _point(save / BEST, found.path, writer)


def _point(link: Path, target: Path, writer: Owner) -> None:
    """Replaces the link at once; where storage has no links, a file that holds the name."""
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
    """Moves away a folder in the link's place: a copy of the save folder that followed its links. Nothing is lost."""
    if link.is_symlink() or not link.is_dir():
        return
    names = (link.with_name(f"{link.name}-copied{number or ''}") for number in count())
    kept = next(name for name in names if not name.exists())
    link.rename(kept)
    logger.warning("%s was a folder, not a link, and is kept as %s; remove it when nothing needs it", link, kept.name)


def prune(save: Path, newest: int, limit: int, writer: Owner) -> None:
    """Removes what `superfluous` names."""
    with owned(save, writer):
        for checkpoint in superfluous(checkpoints(save), newest, limit):
            removed = door(save, writer) / f"{checkpoint.path.name}.removed"
            shutil.rmtree(removed, ignore_errors=True)
            checkpoint.path.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)


def publish_text(path: Path, text: str, writer: Owner) -> None:
    """Replaces a file of the save folder at once and durably; fails when the folder was taken over."""
    aside = door(path.parent, writer) / path.name
    _write(aside, text)
    aside.replace(path)


def replace_text(path: Path, text: str) -> None:
    """Writes the file at once and durably: a reader sees the old text or the new one."""
    aside = path.with_name(path.name + ".tmp")
    _write(aside, text)
    aside.replace(path)


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def synchronize(folder: Path) -> None:
    """Makes the names in a folder durable; a crash of the machine cannot undo a rename after it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
