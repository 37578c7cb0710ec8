"""The folder of a run's checkpoints: names, the manifest that proves one complete, and which to resume from.

A checkpoint is written beside its final place and renamed when its manifest is in it, so a folder named
iter_NNNNNNN was complete once; the manifest's file sizes tell whether it still is. Nothing here reads tensors.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
MANIFEST = "manifest.json"
OWNER = "owner.json"
NAME = re.compile(r"iter_(\d{7})")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds. layout: sizes by axis (tp, pp, cp, ep, etp, dp); files: bytes by name."""

    iteration: int
    layout: Mapping[str, int]
    world_size: int
    train_type: str
    has_optimizer: bool
    has_rng: bool
    loss: float | None
    files: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Who writes to a folder: one attempt of one job (uid is empty for a run that no operator started)."""

    job_uid: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One iter_ folder. manifest and problem: exactly one of them is None."""

    path: Path
    iteration: int
    manifest: Manifest | None
    problem: str | None


def iteration_folder(save: Path, iteration: int) -> Path:
    """Where the checkpoint of this iteration lies."""
    return save / f"iter_{iteration:07d}"


def checkpoints(save: Path) -> tuple[Checkpoint, ...]:
    """Every iter_ folder in `save`, newest first, each with its manifest or with what is wrong with it."""
    folders = [path for path in save.iterdir() if NAME.fullmatch(path.name)] if save.is_dir() else []
    return tuple(inspect(path) for path in sorted(folders, reverse=True))


def newest_complete(save: Path) -> Checkpoint | None:
    """The checkpoint to resume from; None when there is no complete one."""
    return next((found for found in checkpoints(save) if found.problem is None), None)


def inspect(path: Path) -> Checkpoint:
    """Reads the manifest and compares the files' sizes with it."""
    iteration = int(path.name.removeprefix("iter_"))
    try:
        manifest = Manifest(**json.loads((path / MANIFEST).read_text()))
    except FileNotFoundError:
        return Checkpoint(path=path, iteration=iteration, manifest=None, problem=f"{path / MANIFEST} is missing")
    except (OSError, ValueError, TypeError) as err:
        problem = f"{path / MANIFEST} cannot be read: {err}"
        return Checkpoint(path=path, iteration=iteration, manifest=None, problem=problem)
    damaged = [_damage(path / name, size) for name, size in manifest.files.items()]
    problem = next((text for text in damaged if text), None)
    return Checkpoint(path=path, iteration=iteration, manifest=None if problem else manifest, problem=problem)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Completes a folder that is still beside its final place."""
    replace_text(folder / MANIFEST, json.dumps(asdict(manifest), indent=1))


def file_sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below the folder, by relative name."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(files)}


def write_tracker(save: Path, iteration: int) -> None:
    """Names the newest checkpoint for other tools of the Megatron family; we look at the folders."""
    replace_text(save / TRACKER, str(iteration))


def owner(save: Path) -> Owner | None:
    """Who claimed the folder last; None before anybody did."""
    try:
        return Owner(**json.loads((save / OWNER).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def claim(save: Path, claimant: Owner) -> bool:
    """Takes the folder over: whoever had it publishes nothing more. False: a newer attempt of this job has it.

    This is what keeps a pod that a dead node still runs from writing beside the attempt that replaced it.
    """
    save.mkdir(parents=True, exist_ok=True)
    current = owner(save)
    if current is not None and current.job_uid == claimant.job_uid and current.attempt > claimant.attempt:
        return False
    replace_text(save / OWNER, json.dumps(asdict(claimant)))
    return True


def replace_text(path: Path, text: str) -> None:
    """Writes the file at once and durably: a reader sees the old text or the new one."""
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def _damage(path: Path, size: int) -> str | None:
    try:
        actual = path.stat().st_size
    except OSError:
        return f"{path} is missing"
    return None if actual == size else f"{path} has {actual} bytes, expected {size}"
