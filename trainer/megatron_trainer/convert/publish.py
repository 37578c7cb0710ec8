"""Writes a directory that is either complete under its name or not there, with all ranks taking part.

Needs one file system under all ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode

Step = Callable[[Path], None]


def publish(directory: Path, steps: Sequence[Step]) -> None:
    """Runs the steps, each on all ranks, in a folder aside; then the first rank gives it its name. Collective.

    A directory of that name is replaced.

    Raises:
        TrainingError: OUTPUT_NOT_WRITABLE, on all ranks, when any rank could not write.
    """
    aside = directory.with_name(f".{directory.name}.partial")
    for step in (_only_first_rank(_start), *steps, _only_first_rank(lambda folder: _replace(folder, directory))):
        error: OSError | None = None
        try:
            step(aside)
        except OSError as err:
            error = err
        _agree(error, directory)


def _only_first_rank(step: Step) -> Step:
    return step if dist.get_rank() == 0 else lambda _: None


def _start(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _replace(aside: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _agree(error: OSError | None, directory: Path) -> None:
    """Lets all ranks fail when one did; also the barrier between steps."""
    every: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(every, None if error is None else f"rank {dist.get_rank()}: {error}")
    told = [text for text in every if text]
    if told:
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, f"could not write {directory}: {'; '.join(told)}")
