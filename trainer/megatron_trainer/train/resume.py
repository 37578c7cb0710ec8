"""Compares a run's arguments with those of the checkpoint it resumes from: changes are logged or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from megatron_trainer.failure import InvalidInput
from megatron_trainer.state import TrainState
from megatron_trainjob import input_file
from megatron_trainjob.args import resume
from megatron_trainjob.checkpoint_folder import RECORD, Checkpoint
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)


Record = Callable[[TrainState], Mapping[str, Any]]
"""The args.json of a run that continues after this state, on which the number of its steps depends."""


def check(checkpoint: Checkpoint, record: Record, *, with_optimizer: bool) -> None:
    """Logs each argument that differs from the checkpoint's, and the step from which it takes effect.

    with_optimizer: the optimizer's state is to be loaded.

    Raises:
        InvalidInput: an argument has changed that cannot change, or that no remaining step would use; names all, with
        both values.
    """
    saved = recorded(checkpoint.path)
    if saved is None:
        logger.warning(
            "%s has no readable %s: it is not known whether it was written with other arguments",
            checkpoint.path,
            RECORD,
        )
        return
    after = json.loads(json.dumps(record(_before_loading(checkpoint, saved))))
    found = resume.changes(saved, after)
    has_steps_left = checkpoint.iteration < after["resolved"]["train_iters"]
    wrong = resume.refused(found, str(checkpoint.path), with_optimizer=with_optimizer, has_steps_left=has_steps_left)
    if wrong:
        raise InvalidInput(wrong, ExitCode.CHECKPOINT_INCOMPATIBLE)
    for change in found:
        _tell(change, checkpoint.iteration, has_steps_left=has_steps_left)


def _before_loading(checkpoint: Checkpoint, saved: Mapping[str, Any]) -> TrainState:
    """The state in the checkpoint as far as it is known without loading it: as if all steps had been of one size."""
    samples = checkpoint.iteration * int(saved["arguments"].get("global_batch_size") or 0)
    return TrainState(iteration=checkpoint.iteration, consumed_samples=samples)


def _tell(change: resume.Change, iteration: int, *, has_steps_left: bool) -> None:
    if change.verdict == "another start":
        logger.warning("%s; training continues from the checkpoint's weights", change)
    elif change.verdict != "not of the training" and has_steps_left:
        logger.warning("from step %d on: %s", iteration + 1, change)
    elif change.verdict != "not of the training":
        logger.warning("all steps are already done, so these have no effect: %s", change)


def recorded(checkpoint: Path) -> Mapping[str, Any] | None:
    """The args.json in the checkpoint, or (earlier releases) beside it, from the last run. None: unreadable."""
    for path in (checkpoint / RECORD, checkpoint.parent / RECORD):
        try:
            record = input_file.read_json(path)
        except (OSError, ValueError):
            continue
        if resume.is_record(record):
            return record
    return None
