"""Writing to the folder of a run's checkpoints: who may, what is published, what is removed. Writes no tensors.

What lies there and how it is read: megatron_trainjob.checkpoint_folder.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_trainjob.checkpoint_folder import (
    MANIFEST,
    OWNER,
    TRACKER,
    Checkpoint,
    Manifest,
    checkpoints,
    iteration_folder,
)


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who writes to a folder: one attempt of one job (uid is empty for a run that no operator started)."""

    job_uid: str
    attempt: int


def owner(save: Path) -> Owner | None:
    """Who claimed the folder last; None before anybody did."""
    try:
        return Owner(**json.loads((save / OWNER).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def claim(save: Path, claimant: Owner) -> bool:
    """Takes the folder over: whoever had it publishes nothing more. False: a newer attempt of this job has it.

    This is what keeps a pod that a dead node still runs from writing beside the attempt that replaced it. What an
    attempt that is gone left half written is removed.
    """
    save.mkdir(parents=True, exist_ok=True)
    current = owner(save)
    if current is not None and current.job_uid == claimant.job_uid and current.attempt > claimant.attempt:
        return False
    replace_text(save / OWNER, json.dumps(asdict(claimant)))
    for left in save.glob(".iter_*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    return True


def folder_aside(save: Path, iteration: int, writer: Owner) -> Path:
    """Where the checkpoint of this iteration is written before it is published."""
    return save / f".{iteration_folder(save, iteration).name}.attempt{writer.attempt}.tmp"


def publish(aside: Path, manifest: Manifest, writer: Owner) -> Path:
    """Completes the folder and gives it its name, all at once and durably; an older one of the same iteration goes.

    Raises:
        OSError: somebody else has claimed the folder, or it cannot be written.
    """
    save = aside.parent
    current = owner(save)
    if current != writer:
        raise OSError(f"{save} was taken over by {current}; {writer} publishes nothing more")
    replace_text(aside / MANIFEST, manifest.to_text())
    synchronize(aside)
    final = iteration_folder(save, manifest.iteration)
    if final.exists():
        remove(final)
    aside.rename(final)
    synchronize(save)
    replace_text(save / TRACKER, str(manifest.iteration))
    return final


def superfluous(found: Iterable[Checkpoint], newest: int, limit: int) -> tuple[Checkpoint, ...]:
    """What may go once iteration `newest` is published and `limit` checkpoints are to stay.

    Kept are the newest `limit` complete ones, and the one with the lowest validation loss beside them. Damaged ones do
    not count; they go when they are older than all that are kept. Later iterations than `newest` are of another run.
    """
    own = sorted((each for each in found if each.iteration <= newest), key=lambda each: -each.iteration)
    complete = [each for each in own if each.manifest is not None]
    if len(complete) < limit:
        return ()
    best = min(complete, key=_validation_loss)
    oldest_kept = complete[limit - 1].iteration
    return tuple(
        each for each in own if each.iteration < oldest_kept and (each != best or _validation_loss(each) == math.inf)
    )


def prune(save: Path, newest: int, limit: int) -> None:
    """Removes what `superfluous` names."""
    for checkpoint in superfluous(checkpoints(save), newest, limit):
        remove(checkpoint.path)


def remove(path: Path) -> None:
    """Deletes a checkpoint: hides it first, so that nobody sees half of it."""
    hidden = path.with_name(f".{path.name}.removed.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Writes the file at once and durably: a reader sees the old text or the new one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def synchronize(folder: Path) -> None:
    """Makes the names in a folder durable; a crash of the machine cannot undo a rename after it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _validation_loss(checkpoint: Checkpoint) -> float:
    loss = checkpoint.manifest.validation_loss if checkpoint.manifest else None
    return math.inf if loss is None else loss
