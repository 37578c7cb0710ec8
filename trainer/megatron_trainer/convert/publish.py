"""Writes a directory with all ranks; under its final name it is either complete or absent.

Requires a file system shared by all ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch.distributed as dist

from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode

Step = Callable[[Path], None]

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def publish(directory: Path, steps: Sequence[Step], *, keeps_others: bool = False, door: Path | None = None) -> None:
    """Runs the steps, each on all ranks, in a temporary folder; then the first rank renames it. Collective.

    An existing directory is replaced. keeps_others: its files are kept instead, except weights of an earlier export,
    and the new files are moved in one by one, config.json last. door: of the run that owns the directory, through which
    it is renamed; a run that has lost its folder has none (checkpoint.folder).

    Raises:
        TrainingError: OUTPUT_NOT_WRITABLE, on all ranks, when any rank could not write; the temporary folder is
        removed.
    """
    aside = (directory.parent if door is None else door.parent) / f".{directory.name}.partial"
    give_name = _move_into if keeps_others and directory.is_dir() else partial(_replace, door=door)
    for step in (on_first_rank(_start), *steps, on_first_rank(lambda folder: give_name(folder, directory))):
        error: OSError | None = None
        try:
            step(aside)
        except OSError as err:
            error = err
        _agree(error, aside, directory)


def on_first_rank(step: Step) -> Step:
    """Runs the step on the first rank, nothing on the others."""
    return step if dist.get_rank() == 0 else lambda _: None


def _start(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _replace(aside: Path, directory: Path, *, door: Path | None) -> None:
    old = (directory.parent if door is None else door) / f".{directory.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if door is not None:
        shutil.rmtree(door / directory.name, ignore_errors=True)
        aside = aside.rename(door / directory.name)
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _move_into(aside: Path, directory: Path) -> None:
    for pattern in _WEIGHTS:
        for path in directory.glob(pattern):
            path.unlink()
    for path in sorted(aside.iterdir(), key=lambda path: path.suffix == ".json"):
        target = directory / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    aside.rmdir()


def _agree(error: OSError | None, aside: Path, directory: Path) -> None:
    """Fails on all ranks if one failed; also the barrier between steps."""
    every: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, None if error is None else f"rank {dist.get_rank()}: {error}")
    problems = [text for text in every if text]
    if problems:
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, f"could not write {directory}: {'; '.join(problems)}")
