"""Reads a checkpoint into a built engine: everything for a resume, or the weights alone for a new run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader

from megatron_trainer import lost_peer, silent_rank
from megatron_trainer.backend import Backend
from megatron_trainer.checkpoint import contents, foreign, legacy, parallel_read, unpickle
from megatron_trainer.engine import Engine
from megatron_trainer.failure import TrainingError
from megatron_trainer.megatron.patches import pickled_scaling
from megatron_trainer.state import TrainState, from_plain
from megatron_trainjob.checkpoint_folder import NAME, Checkpoint, Manifest, checkpoints, damage, inspect, pointed_at
from megatron_trainjob.exit_codes import ExitCode

logger = logging.getLogger(__name__)

SHOWN_NAMES = 4
"""Maximum number of tensors named in a message."""


@dataclass(frozen=True, kw_only=True)
class LoadPolicy:
    """What a resume loads from the checkpoint, and the layout of this run."""

    layout: dict[str, int]
    with_optimizer: bool
    with_rng: bool


def find(load: Path, *, recognizes_others: bool = False) -> Checkpoint | None:
    """The newest complete checkpoint below `load`, or `load` itself when it is an iter_ folder; None if there is none.

    Reads every file and verifies checksums, divided over the ranks, before anything is loaded. A damaged checkpoint is
    skipped with a warning that names the file. recognizes_others: accepts checkpoints of other tools of the Megatron
    family, which have no manifest. Collective: all ranks get the same result, whatever they see of a shared volume.

    Raises:
        TrainingError: there are checkpoints, but all of them are damaged or in another format.
    """
    candidates: list[tuple[Checkpoint, ...]] = [_candidates(load) if dist.get_rank() == 0 else ()]
    dist.broadcast_object_list(candidates, src=0)
    problems = []
    for candidate in candidates[0]:
        problem = candidate.problem or damage_in(candidate)
        if problem is None:
            return candidate
        logger.warning("skipping the checkpoint of iteration=%d: %s", candidate.iteration, problem)
        problems.append(problem)
    if recognizes_others:
        other = [foreign.find(load) if dist.get_rank() == 0 else None]
        dist.broadcast_object_list(other, src=0)
        if other[0] is not None:
            return foreign.accepted(other[0])
    if problems:
        reasons = "; ".join(problems)
        message = f"{load} has no complete checkpoint: {reasons}; remove the iter_ folders to start over"
        raise TrainingError(ExitCode.NO_CHECKPOINT, message)
    return None


def _candidates(load: Path) -> tuple[Checkpoint, ...]:
    load = pointed_at(load)
    return (inspect(load),) if NAME.fullmatch(load.name) else checkpoints(load)


def damage_in(checkpoint: Checkpoint) -> str | None:
    """Damage in the contents of the files, each read by one rank. Collective: the same on all ranks."""
    if checkpoint.manifest is None:
        return checkpoint.problem
    share = sorted(checkpoint.manifest.files)[dist.get_rank() :: dist.get_world_size()]
    found: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(found, list(damage(checkpoint.path, checkpoint.manifest, share, with_contents=True)))
    return next((text for texts in found for text in texts), None)


def resume(
    engine: Engine,
    checkpoint: Checkpoint,
    backend: Backend,
    policy: LoadPolicy,
    *,
    gather: Callable[[contents.StateDict], None] | None = None,
) -> TrainState:
    """Restores model, optimizer, generators and the train state, which is returned. Collective.

    Generators are restored only in the layout that saved them: in another layout ranks have other roles. gather: called
    with the wanted state before anything is read, to bring here what is missing.

    Raises:
        TrainingError: the checkpoint belongs to another model or run type, or a file in it is damaged.
    """
    manifest = _manifest(checkpoint)
    is_split = contents.is_split_over_ranks(engine)
    has_experts = engine.config.num_moe_experts is not None
    moves_experts = has_experts and _moves_experts(checkpoint.path, manifest, policy, is_split=is_split)
    is_lora = manifest.train_type == "lora"
    wanted = contents.model_state(engine, "trainable" if is_lora else "whole")
    models = dict(wanted)
    wanted["train_state"] = {}
    if policy.with_optimizer and manifest.has_optimizer:
        wanted["optimizer"] = contents.optimizer_state(engine, models, is_loading=True)
    same_layout = dict(manifest.layout) == policy.layout and manifest.world_size == dist.get_world_size()
    if policy.with_rng and manifest.has_rng and same_layout:
        wanted["rng_state"] = contents.random_state(backend)
    if gather is not None:
        gather(wanted)
    with _fitting(checkpoint):
        _check_names(models, checkpoint, refuses_more=True)
        loaded = _read(wanted, checkpoint)
        for chunk in models:
            unpickle.check_scaling({name: each for name, each in loaded[chunk].items() if contents.SCALING in name})
        with pickled_scaling.allowed():
            contents.load_model_state(engine, loaded, strict=not is_lora)
        if "optimizer" in wanted:
            state = loaded["optimizer"]
            if moves_experts:
                state = contents.regrouped_optimizer_state(engine, state)
            engine.optimizer.load_state_dict(contents.with_own_settings(engine, state))
        else:
            engine.optimizer.reload_model_params()
        if "rng_state" in wanted:
            backend.set_rng_state(loaded["rng_state"])
        return from_plain(loaded["train_state"])


def weights(engine: Engine, checkpoint: Checkpoint, part: Literal["base", "trainable"]) -> None:
    """Loads the model alone: the base of a LoRA run, an adapter, the start of a fine-tuning. Collective."""
    read_part(engine, checkpoint, part)
    engine.optimizer.reload_model_params()


def read_part(engine: Engine, checkpoint: Checkpoint, part: Literal["base", "trainable"]) -> None:
    """The same without refreshing the optimizer's main parameters, for a model that does not train. Collective.

    FP8 scaling is not loaded: a new run determines its own.
    """
    if foreign.recognize(checkpoint.path) == "torch":
        legacy.read(engine.models, checkpoint.path)
        return
    models = contents.model_state(engine, part)
    wanted = {
        chunk: {name: value for name, value in state.items() if contents.SCALING not in name}
        for chunk, state in models.items()
    }
    with _fitting(checkpoint):
        _check_names(wanted, checkpoint, refuses_more=False)
        loaded = _read(wanted, checkpoint)
        contents.load_model_state(engine, loaded, strict=False)


def _manifest(checkpoint: Checkpoint) -> Manifest:
    if checkpoint.manifest is None:
        message = (
            f"{checkpoint.path} was written by another program, which left no state to resume from; take its weights "
            "alone (finetune true)"
        )
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, message)
    return checkpoint.manifest


def _moves_experts(path: Path, manifest: Manifest, policy: LoadPolicy, *, is_split: bool) -> bool:
    """Whether experts are distributed otherwise than the rest in the checkpoint but not here, or vice versa.

    Raises:
        TrainingError: Megatron's non-distributed optimizer numbers its parameters, and the numbers differ in this case.
    """
    saved, wanted = manifest.layout, policy.layout
    if _spreads_experts(saved) == _spreads_experts(wanted):
        return False
    if policy.with_optimizer and manifest.has_optimizer and not is_split:
        message = (
            f"{path} was saved with {_expert_sizes(saved)}; without use_distributed_optimizer its optimizer state "
            f"cannot be read with {_expert_sizes(wanted)}: keep the former, or continue without that state "
            "(no_load_optim true)"
        )
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, message)
    return True


def _spreads_experts(layout: Mapping[str, int]) -> bool:
    """Whether Megatron gives experts an optimizer of their own: they have other data-parallel ranks than the rest."""
    return layout["ep"] > 1 or "etp" in layout


def _expert_sizes(layout: Mapping[str, int]) -> str:
    """The sizes of a layout that decide this, as arguments."""
    tensor = f" and expert_tensor_parallel_size {layout['etp']}" if "etp" in layout else ""
    return f"expert_model_parallel_size {layout['ep']}{tensor}"


def _check_names(models: contents.StateDict, checkpoint: Checkpoint, *, refuses_more: bool) -> None:
    """Compares the tensors that all ranks want with those in the checkpoint. Collective.

    Megatron ignores tensors that it does not request: a model with fewer layers, or with tied embeddings, would
    silently load a part of a larger one. refuses_more: raises for extra tensors, else warns.

    Raises:
        TrainingError: names the missing and the extra tensors of the checkpoint.
    """
    own = {part.key for part in nested_values(models) if isinstance(part, ShardedTensor | ShardedTensorFactory)}
    gathered: list[set[str]] = [own] * dist.get_world_size()
    dist.all_gather_object(gathered, own)
    with unpickle.restricted():
        index = FileSystemReader(checkpoint.path).read_metadata()
    wanted, there = set().union(*gathered), contents.model_names(index)
    missing, left = sorted(wanted - there), sorted(there - wanted)
    if missing or (left and refuses_more):
        parts = [f"it lacks {_some(missing)}"] * bool(missing) + [f"this model has no {_some(left)}"] * bool(left)
        message = f"{checkpoint.path} is of another model: {'; '.join(parts)}"
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, message)
    if left:
        logger.warning("%s has tensors that this model does not use: %s", checkpoint.path, _some(left))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _read(wanted: contents.StateDict, checkpoint: Checkpoint) -> dict[str, Any]:
    """The requested values from the checkpoint; no code in its files is executed."""
    with unpickle.restricted(), parallel_read.in_threads():
        loaded = dist_checkpointing.load(wanted, str(checkpoint.path))
    return contents.with_empty_parts(loaded, wanted)


@contextlib.contextmanager
def _fitting(checkpoint: Checkpoint) -> Iterator[None]:
    """Context that reports any failure to load a checkpoint into the engine as a mismatch; a retry does not help.

    Not so the loss of another rank: it ends this one too, and the checkpoint may be whole. torch's CheckpointException
    is a BaseException, which passes every handler of Exception.
    """
    try:
        yield
    except TrainingError:
        raise
    except (Exception, CheckpointException) as err:
        if lost_peer.is_cause(err) or silent_rank.is_cause(err):
            raise
        message = f"{checkpoint.path} does not fit this model or cannot be read: {type(err).__name__}: {err}"
        raise TrainingError(ExitCode.CHECKPOINT_INCOMPATIBLE, message) from err
