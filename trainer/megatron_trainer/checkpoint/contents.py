"""The contents of a checkpoint, as Megatron's sharded state dicts: model, optimizer, random generators, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensorFactory
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_trainer.backend import Backend
from megatron_trainer.engine import Engine
from megatron_trainer.lora.names import is_adapter
from megatron_trainer.megatron.patches.optimizer_state import create_state
from megatron_trainer.state import TrainState

StateDict = dict[str, Any]
OptimizerState = dict[str | int, Any]
"""Keys are names for one optimizer, numbers for several."""


def metadata() -> StateDict:
    """Megatron's sharding metadata: the optimizer state can be loaded into any other layout."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


Part = Literal["whole", "trainable", "base"]
"""Parts of a model: everything, what trains (a LoRA run's adapters; in FP8 the scaling too), all but the adapters."""

SCALING = "_extra_state"
"""Part of the names of TransformerEngine's own entries: FP8 scaling and its history; empty without FP8."""


def model_state(engine: Engine, part: Part) -> StateDict:
    """Sharded tensors of this part of every model chunk. Collective.

    Megatron stacks parameters of all layers into one tensor with a layer axis; where only some layers train, that
    tensor would have gaps, so each layer gets its own tensors.
    """
    layered = {"non_homogeneous_layers": True} if part == "trainable" and engine.trains_some_layers_only() else {}
    states = {}
    for index, model in enumerate(engine.models):
        state = model.sharded_state_dict(metadata={**metadata(), **layered})
        names = engine.trainable_names(index)
        if engine.config.fp8 is not None:
            names |= {name for name in state if SCALING in name}
        states[_chunk_key(engine, index)] = {
            name: value for name, value in state.items() if _is_in(part, name, trained=names)
        }
    for value in nested_values(states):
        if isinstance(value, ShardedTensorFactory):
            _merge_in_place(value)
    return states


def _is_in(part: Part, name: str, *, trained: Set[str]) -> bool:
    match part:
        case "whole":
            return True
        case "trainable":
            return name in trained
        case "base":
            return not is_adapter(name)


def _merge_in_place(factory: ShardedTensorFactory) -> None:
    """Loads gate and up directly into the parameter; Megatron would concatenate copies for all layers afterwards."""
    whole, join = factory.data, factory.merge_fn

    def merge(parts: Any) -> Any:  # noqa: ANN401 - a list of tensors, or what another factory nests
        first = whole.data_ptr()
        is_inside = all(first <= part.data_ptr() < first + whole.nbytes for part in nested_values(parts))
        return whole if is_inside else join(parts)

    factory.merge_fn = merge


def model_names(index: Metadata) -> set[str]:
    """Names of the model's tensors in the index of a checkpoint; the optimizer's have separate names."""
    tensors = {name for name, value in index.state_dict_metadata.items() if isinstance(value, TensorStorageMetadata)}
    return {name for name in tensors if not name.startswith(("optimizer.", "chained_"))}


def with_empty_parts(loaded: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The loaded state with the containers that are missing from it because this rank wants nothing in them.

    A stage without trained parameters has such. Megatron loads only those that the first rank, whose plain values are
    the checkpoint's, had too.
    """
    filled = dict(loaded)
    for name, part in wanted.items():
        if isinstance(part, dict) and isinstance(loaded.get(name), dict):
            filled[name] = with_empty_parts(loaded[name], part)
        elif name not in loaded and isinstance(part, dict | list) and not any(True for _ in nested_values(part)):
            filled[name] = part
    return filled


def load_model_state(engine: Engine, loaded: Mapping[str, Any], *, strict: bool) -> None:
    """Copies loaded tensors into the chunks; strict requires every tensor of the model."""
    for index, model in enumerate(engine.models):
        model.load_state_dict(loaded[_chunk_key(engine, index)], strict=strict)


def optimizer_state(engine: Engine, models: StateDict, *, is_loading: bool) -> StateDict:
    """Sharded tensors of the optimizer for the model state that is saved or loaded with it. Collective."""
    if engine.trains_some_layers_only():
        models = model_state(engine, "trainable")
    # Needed before saving too: in float16 every step so far may have been skipped.
    for part in _parts(engine):
        create_state(part)
    merged = models if len(engine.models) > 1 else models["model"]
    state: StateDict = engine.optimizer.sharded_state_dict(merged, is_loading=is_loading, metadata=metadata())
    if is_loading:
        return state
    if is_split_over_ranks(engine):
        _leave_out_classes(state)
        _count_steps_alike(state)
    else:
        _share_step_counts(state)
    return state


def _inner(state: StateDict) -> list[StateDict]:
    """The state of torch's own optimizer in every part, which Megatron nests where it has main parameters beside it."""
    parts = [state] if state.keys() & {"optimizer", "param_groups"} else list(state.values())
    return [part.get("optimizer", part) for part in parts]


def _groups(state: StateDict) -> list[StateDict]:
    """The groups of parameters of every part of the optimizer."""
    return [group for part in _inner(state) for group in part["param_groups"]]


def _leave_out_classes(state: StateDict) -> None:
    """Removes optimizer classes from the groups of an offloaded optimizer: a checkpoint holds plain values only."""
    for group in _groups(state):
        for name in [name for name, value in group.items() if isinstance(value, type)]:
            del group[name]


def _count_steps_alike(state: StateDict) -> None:
    """Synchronizes the step count of every parameter group over the ranks. Collective.

    The first rank's counts are saved for all, but it has none for parameters that only other ranks hold, such as
    experts when the first stage has none.
    """
    groups = _groups(state)
    steps = [0.0] * dist.get_world_size()
    dist.all_gather_object(steps, max((group.get("step") or 0 for group in groups), default=0))
    for group in groups if max(steps) else ():
        group["step"] = max(steps)


def _share_step_counts(state: StateDict) -> None:
    """Gives the first rank, whose plain values are saved, the step count of parts of which it has no parameter.

    Collective.
    """
    parts = _inner(state)
    # What is not a dict stands for nothing, and is neither saved nor loaded.
    held = [part["state"] if isinstance(part["state"], dict) else {} for part in parts]
    steps: list[list[torch.Tensor | None]] = [[]] * dist.get_world_size()
    dist.all_gather_object(steps, [each.get("common_step") for each in held])
    for part, own, found in zip(parts, held, zip(*steps, strict=True), strict=True):
        known = [step for step in found if step is not None]
        if known:
            part["state"] = {**own, "common_step": max(known)}


def is_split_over_ranks(engine: Engine) -> bool:
    """Whether Megatron's distributed optimizer holds the state, with tensors named after the model's only."""
    return all(isinstance(part, DistributedOptimizer) for part in _parts(engine))


def regrouped_optimizer_state(engine: Engine, loaded: OptimizerState) -> OptimizerState:
    """Converts loaded `optimizer_state` between engines with experts distributed over ranks and engines without.

    Megatron gives distributed experts a separate optimizer. The tensors have the same names either way and are placed
    as this engine requested them; the plain values are placed as in the saved engine: numbered, or at the top level.
    Its parameter groups are all of the saved ones: `with_own_settings` takes what they have in common.
    """
    numbered = {index: value for index, value in loaded.items() if isinstance(index, int)}
    top = {name: value for name, value in loaded.items() if not isinstance(name, int)}
    saved = [top] if "optimizer" in top else [numbered[index] for index in sorted(numbered)]
    groups = [group for each in saved for group in each["optimizer"]["param_groups"]]
    plain = {**saved[0], "optimizer": {**saved[0]["optimizer"], "param_groups": groups}}
    if len(_parts(engine)) == 1:
        return {**plain, "param_state": top.get("param_state", {})}
    # A stage without experts requested no tensors of experts.
    tensors = [numbered.get(index, {}).get("param_state", {}) for index in range(len(_parts(engine)))]
    return {index: {**plain, "param_state": own} for index, own in enumerate(tensors)}


def with_own_settings(engine: Engine, loaded: OptimizerState) -> OptimizerState:
    """The loaded optimizer state with this run's settings of the parameter groups.

    Only the step count is taken from the saved groups. Megatron matches groups by their learning rates, which a new lr
    or min_lr changes, and torch loads betas and epsilon too: a run would continue with the old values.
    """
    parts = _parts(engine)
    if len(parts) == 1:
        return _with_groups_of(parts[0], loaded)
    return {index: _with_groups_of(part, loaded[index]) for index, part in enumerate(parts)}


def _with_groups_of(part: MegatronOptimizer, state: OptimizerState) -> OptimizerState:
    is_wrapped = "optimizer" in state
    inner = state["optimizer"] if is_wrapped else state
    own = part.state_dict()
    groups = (own["optimizer"] if is_wrapped else own)["param_groups"]
    steps = [group["step"] for group in inner["param_groups"] if group.get("step") is not None]
    count = {"step": max(steps)} if steps else {}
    inner = {**inner, "param_groups": [{**group, **count} for group in groups]}
    return {**state, "optimizer": inner} if is_wrapped else inner


def _parts(engine: Engine) -> Sequence[MegatronOptimizer]:
    parts: Sequence[MegatronOptimizer] = getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])
    return parts


def random_state(backend: Backend) -> ShardedObject:
    """Every random generator of this rank."""
    return ShardedObject("rng_state", backend.rng_state(), (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)


def train_state(state: TrainState) -> StateDict:
    """The plain numbers, equal on all ranks."""
    return asdict(state)


def _chunk_key(engine: Engine, index: int) -> str:
    return "model" if len(engine.models) == 1 else f"model{index}"
