"""Where a run starts: its own newest checkpoint, the ones in `load` and `adapter_load`, or the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch.distributed as dist

from megatron_trainer import parallel
from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import load as checkpoint_load
from megatron_trainer.checkpoint import memory_load
from megatron_trainer.checkpoint.memory import Memory
from megatron_trainer.checkpoint.memory_load import Found
from megatron_trainer.checkpoint.nodes import PeerFailure
from megatron_trainer.convert.adapter import load_adapter
from megatron_trainer.convert.adapter_source import holds_adapter
from megatron_trainer.engine import Engine
from megatron_trainer.environment import Environment
from megatron_trainer.failure import TrainingError
from megatron_trainer.models.spec import ModelSpec
from megatron_trainer.state import TrainState
from megatron_trainer.train import resume
from megatron_trainer.train.resume import Record
from megatron_trainjob.args.tree import TrainArgs
from megatron_trainjob.checkpoint_folder import Checkpoint, checkpoints
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)


def start_state(
    args: TrainArgs,
    env: Environment,
    engine: Engine,
    backend: Backend,
    save: Path,
    spec: ModelSpec,
    record: Record,
    *,
    memory: Memory | None = None,
) -> TrainState:
    """Loads the checkpoint that this run resumes from, if any, into the engine; returns the state. Collective.

    memory: may hold a newer one than the save folder. record: to compare with the checkpoint's.
    """
    policy = checkpoint_load.LoadPolicy(
        layout=parallel.layout(),
        with_optimizer=not args.no_load_optim,
        with_rng=not args.no_load_rng,
    )
    if env.resume != "Never":
        remembered, own = _newest(memory, save, policy)
        if remembered is not None:
            resume.check(remembered.checkpoint, record, with_optimizer=policy.with_optimizer)
            _load_base_of_adapters(args, engine, save)
            state = _resumed_from_memory(engine, remembered, backend, policy)
            if state is not None:
                return state
            own = checkpoint_load.find(save)
        if own is not None:
            logger.info("resuming job=%s from=%s", env.job_name, own.path)
            resume.check(own, record, with_optimizer=policy.with_optimizer)
            _load_base_of_adapters(args, engine, save)
            return checkpoint_load.resume(engine, own, backend, policy)
        if env.resume == "Required":
            raise TrainingError(ExitCode.NO_CHECKPOINT, f"resume is Required, but {save} has no complete checkpoint")
    for found, part in _given_checkpoints(args):
        if args.finetune or (part == "base" and args.train_type != "full"):
            checkpoint_load.weights(engine, found, part)
        else:
            resume.check(found, record, with_optimizer=policy.with_optimizer)
            return checkpoint_load.resume(engine, found, backend, policy)
    if args.adapter_load and holds_adapter(Path(args.adapter_load)):
        load_adapter(engine.models, spec, args, Path(args.adapter_load))
        engine.optimizer.reload_model_params()
    return TrainState()


def _newest(
    memory: Memory | None, save: Path, policy: checkpoint_load.LoadPolicy
) -> tuple[Found | None, Checkpoint | None]:
    """The memory checkpoint to resume from, or else the one of the save folder. Collective.

    The save folder is read only where its newest checkpoint looks newer, and damaged ones in it hide no memory.

    Raises:
        TrainingError: neither has an undamaged checkpoint, though the save folder has others.
    """
    found = None if memory is None else _in_memory(memory, policy)
    if found is None:
        return None, checkpoint_load.find(save)
    iteration = found.manifest.iteration
    if _newest_on_disk(save) <= iteration:
        return found, None
    try:
        own = checkpoint_load.find(save)
    except TrainingError as err:
        logger.warning("resuming from memory: %s", err)
        return found, None
    if own is None or own.iteration <= iteration:
        return found, None
    logger.info("the memory checkpoint of iteration=%d is older than that of the save folder", iteration)
    return None, own


def _in_memory(memory: Memory, policy: checkpoint_load.LoadPolicy) -> Found | None:
    """The newest memory checkpoint, with its index on every node. Collective."""
    found = memory_load.find(memory, policy.layout)
    try:
        if found is not None:
            found.gather_index()
    except PeerFailure as err:
        logger.warning("resuming from the save folder, not from memory: %s", err)
        return None
    return found


def _newest_on_disk(save: Path) -> int:
    """The iteration of the newest checkpoint that looks complete, 0 without one. Collective."""
    complete = (each.iteration for each in checkpoints(save) if each.manifest is not None)
    newest = [next(complete, 0) if dist.get_rank() == 0 else 0]
    dist.broadcast_object_list(newest, src=0)
    return newest[0]


def _resumed_from_memory(
    engine: Engine, found: Found, backend: Backend, policy: checkpoint_load.LoadPolicy
) -> TrainState | None:
    """The state of a memory checkpoint, loaded into the engine; None, with nothing loaded, if a node cannot get it.

    Raises:
        TrainingError: it cannot be loaded after all; a restart resumes from the save folder.
    """
    logger.info("resuming from memory iteration=%d", found.manifest.iteration)
    try:
        state = checkpoint_load.resume(engine, found.checkpoint, backend, policy, gather=found.gather)
    except PeerFailure as err:
        logger.warning("resuming from the save folder, not from memory: %s", err)
        return None
    except TrainingError as err:
        found.memory.leave(forget=True)
        message = f"{err}; it was removed from memory, and a restart resumes from the save folder"
        raise TrainingError(ExitCode.ERROR, message) from err
    found.release()
    return state


def _load_base_of_adapters(args: TrainArgs, engine: Engine, save: Path) -> None:
    """Loads the base in `load` for a LoRA run, whose own checkpoints hold only adapters.

    A run that loads from its own folder started from the model, which is loaded already.
    """
    if args.train_type == "full" or args.load is None or Path(args.load).resolve() == save.resolve():
        return
    base = _checkpoint_in(args, "load", args.load)
    if base is not None:
        checkpoint_load.weights(engine, base, "base")


def _given_checkpoints(args: TrainArgs) -> list[tuple[Checkpoint, Literal["base", "trainable"]]]:
    """The checkpoints in load and adapter_load, each with the part of the model that it holds; the base comes first."""
    sources: tuple[tuple[str, str | None, Literal["base", "trainable"]], ...] = (
        ("load", args.load, "base"),
        ("adapter_load", args.adapter_load, "trainable"),
    )
    found = ((_checkpoint_in(args, name, path), part) for name, path, part in sources if path is not None)
    return [(checkpoint, part) for checkpoint, part in found if checkpoint is not None]


def _checkpoint_in(args: TrainArgs, name: str, path: str) -> Checkpoint | None:
    """The newest checkpoint in the folder of an argument; None for a PEFT adapter, or if none is there and need be."""
    if holds_adapter(Path(path)):
        return None
    checkpoint = checkpoint_load.find(Path(path), recognizes_others=args.auto_detect_ckpt_format)
    if checkpoint is None and args.exit_on_missing_checkpoint:
        message = f"spec.args.{name}: {path} has no complete checkpoint; name the folder above iter_NNNNNNN"
        raise TrainingError(ExitCode.NO_CHECKPOINT, message)
    if checkpoint is None:
        logger.warning("no complete checkpoint in %s=%s; continuing without it", name, path)
    return checkpoint
