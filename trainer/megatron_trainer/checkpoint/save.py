"""Writes a checkpoint: all ranks write beside the final place, then the first rank publishes it by renaming.

A crash at any moment leaves either no folder of that iteration or a whole one.
"""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch.distributed.checkpoint import CheckpointException

from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import contents, folder
from megatron_trainer.checkpoint.folder import Manifest, Owner
from megatron_trainer.engine import Engine
from megatron_trainer.failure import TrainingError
from megatron_trainer.state import TrainState
from megatron_trainjob.exit_codes import ExitCode


@dataclass(frozen=True, kw_only=True)
class SavePolicy:
    """What goes into a checkpoint and how it is labelled. owner: who writes, as claimed at the start."""

    save: Path
    layout: dict[str, int]
    train_type: str
    with_optimizer: bool
    with_rng: bool
    owner: Owner


def save(engine: Engine, state: TrainState, backend: Backend, policy: SavePolicy, loss: float | None) -> Path:
    """The published folder. Collective.

    Raises:
        TrainingError: a rank could not write (disk full, volume gone); older checkpoints are untouched.
    """
    final = folder.iteration_folder(policy.save, state.iteration)
    aside = final.with_name(f".{final.name}.attempt{policy.owner.attempt}.tmp")
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    dist.barrier()
    # Megatron hands results over in a process of its own, which takes 10 s to start. A save that we wait for writes
    # in threads of this process, where a plain queue does.
    filesystem_async._results_queue = queue.Queue()
    _all_ranks(lambda: dist_checkpointing.save(_state(engine, state, backend, policy), str(aside)), backend)
    _all_ranks(lambda: _publish(aside, final, state, policy, loss), backend)
    return final


def _state(engine: Engine, state: TrainState, backend: Backend, policy: SavePolicy) -> contents.StateDict:
    models = contents.model_state(engine, "trainable" if policy.train_type == "lora" else "whole")
    saved = {**models, "train_state": contents.train_state(state)}
    if policy.with_optimizer:
        saved["optimizer"] = contents.optimizer_state(engine, models, is_loading=False)
    if policy.with_rng:
        saved["rng_state"] = contents.random_state(backend)
    return saved


def _publish(aside: Path, final: Path, state: TrainState, policy: SavePolicy, loss: float | None) -> None:
    if dist.get_rank() != 0:
        return
    current = folder.owner(policy.save)
    if current != policy.owner:
        raise OSError(f"{policy.save} was taken over by {current}; {policy.owner} publishes nothing more")
    manifest = Manifest(
        iteration=state.iteration,
        layout=policy.layout,
        world_size=dist.get_world_size(),
        train_type=policy.train_type,
        has_optimizer=policy.with_optimizer,
        has_rng=policy.with_rng,
        loss=loss,
        files=folder.file_sizes(aside),
    )
    folder.write_manifest(aside, manifest)
    shutil.rmtree(final, ignore_errors=True)  # an incomplete or older one of the same iteration
    aside.rename(final)
    folder.write_tracker(policy.save, state.iteration)


def _all_ranks(action: Callable[[], object], backend: Backend) -> None:
    """Runs the action; when it fails on any rank, fails on all: nobody waits for a rank that gave up."""
    error: Exception | None = None
    try:
        action()
    except (OSError, RuntimeError, CheckpointException) as err:
        error = err
    failed = torch.tensor([int(error is not None)], device=backend.device)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    if failed.item():
        reasons: list[str] = [""] * dist.get_world_size()
        dist.all_gather_object(reasons, "" if error is None else str(error))
        reason = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reasons) if text)
        raise TrainingError(ExitCode.OUTPUT_NOT_WRITABLE, f"cannot write the checkpoint: {reason}") from error
