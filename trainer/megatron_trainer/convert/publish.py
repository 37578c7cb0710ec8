"""Writes a directory with all ranks; under its final name it is either complete or absent.

Requires a file system shared by all ranks.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch.distributed as dist
from safetensors import SafetensorError

from megatron_trainer.failure import TrainingError
from megatron_trainjob.exit_codes import ExitCode

Step = Callable[[Path], None]

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


class Alone(Exception):
    """An error of a rank in the midst of a collective, where nothing reaches the others: they end because it does."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def publish(directory: Path, steps: Sequence[Step], *, keeps_others: bool = False, door: Path | None = None) -> None:
    """Runs the steps, each on all ranks, in a temporary folder; then the first rank renames it. Collective.

    An existing directory is replaced. keeps_others: its files are kept instead, except weights of an earlier export,
    and the new files are moved in one by one, config.json last. door: of the run that owns the directory, through which
    it is renamed; a run that has lost its folder has none (checkpoint.folder).

    A step that is collective raises Alone where other ranks may be waiting inside; any other error it raises after its
    last collective.

    Raises:
        TrainingError: on all ranks, when any rank could not write (OUTPUT_NOT_WRITABLE) or failed otherwise (ERROR);
        the temporary folder is removed.
    """
    aside = (directory.parent if door is None else door.parent) / f".{directory.name}.partial"
    give_name = _move_into if keeps_others and directory.is_dir() else partial(_replace, door=door)
    for step in (on_first_rank(_start), *steps, on_first_rank(lambda folder: give_name(folder, directory))):
        error: Exception | None = None
        try:
            step(aside)
        except Alone as err:
            raise err.error from None
        except Exception as err:  # noqa: BLE001 - whatever it is, the other ranks wait to hear of it
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


def _agree(error: Exception | None, aside: Path, directory: Path) -> None:
    """Fails on all ranks if one failed; also the barrier between steps."""
    own = ("", ExitCode.OK) if error is None else (f"rank {dist.get_rank()}: {_words(error)}", _exit_code(error))
    every = [own] * dist.get_world_size()
    dist.all_gather_object(every, own)
    problems = [text for text, _ in every if text]
    if problems:
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        code = next(code for text, code in every if text)
        raise TrainingError(code, f"could not write {directory}: {'; '.join(problems)}") from error


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, OSError | SafetensorError) else f"{type(error).__name__}: {error}"


def _exit_code(error: Exception) -> ExitCode:
    """SafetensorError is what safetensors makes of a full disk."""
    return ExitCode.OUTPUT_NOT_WRITABLE if isinstance(error, OSError | SafetensorError) else ExitCode.ERROR
