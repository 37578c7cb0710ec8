"""Reads a checkpoint into a built engine: everything for a resume, or the weights alone for a new run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException

from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import contents, folder
from megatron_trainer.checkpoint.folder import Checkpoint, Manifest
from megatron_trainer.engine import Engine
from megatron_trainer.failure import TrainingError
from megatron_trainer.state import TrainState, from_plain
from megatron_trainjob.exit_codes import ExitCode


@dataclass(frozen=True, kw_only=True)
class LoadPolicy:
    """What a resume takes from the checkpoint, and the layout that reads it."""

    layout: dict[str, int]
    with_optimizer: bool
    with_rng: bool


def find(load: Path) -> Checkpoint | None:
    """The newest complete checkpoint below `load`, or `load` itself when it is an iter_ folder; None if none is."""
    if folder.NAME.fullmatch(load.name):
        found = folder.inspect(load)
        return found if found.problem is None else None
    return folder.newest_complete(load)


def resume(engine: Engine, checkpoint: Checkpoint, backend: Backend, policy: LoadPolicy) -> TrainState:
    """Restores model, optimizer, generators and the train state, which is returned. Collective.

    Generators are restored in the layout that saved them only: in another one ranks have other roles.

    Raises:
        TrainingError: the checkpoint is of another model or run type, or a file in it is damaged.
    """
    manifest = _manifest(checkpoint)
    is_lora = manifest.train_type == "lora"
    wanted = contents.model_state(engine, "trainable" if is_lora else "whole")
    models = dict(wanted)
    wanted["train_state"] = {}
    if policy.with_optimizer and manifest.has_optimizer:
        wanted["optimizer"] = contents.optimizer_state(engine, models, is_loading=True)
    same_layout = dict(manifest.layout) == policy.layout and manifest.world_size == dist.get_world_size()
    if policy.with_rng and manifest.has_rng and same_layout:
        wanted["rng_state"] = contents.random_state(backend)
    loaded = _load(wanted, checkpoint)
    contents.load_model_state(engine, loaded, strict=not is_lora)
    if "optimizer" in wanted:
        engine.optimizer.load_state_dict(loaded["optimizer"])
    else:
        engine.optimizer.reload_model_params()
    if "rng_state" in wanted:
        backend.set_rng_state(loaded["rng_state"])
    return from_plain(loaded["train_state"])


def weights(engine: Engine, checkpoint: Checkpoint, part: Literal["base", "trainable"]) -> None:
    """Loads the model alone: the base of a LoRA run, an adapter, the start of a fine-tuning. Collective."""
    loaded = _load(contents.model_state(engine, part), checkpoint)
    contents.load_model_state(engine, loaded, strict=False)
    engine.optimizer.reload_model_params()


def _manifest(checkpoint: Checkpoint) -> Manifest:
    if checkpoint.manifest is None:
        raise TrainingError(ExitCode.NO_CHECKPOINT, f"{checkpoint.path}: {checkpoint.problem}")
    return checkpoint.manifest


def _load(wanted: contents.StateDict, checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return dict(dist_checkpointing.load(wanted, str(checkpoint.path)))
    except (CheckpointingException, KeyError, ValueError, RuntimeError, OSError) as err:
        message = f"{checkpoint.path} does not fit this model or cannot be read: {err}"
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, message) from err
