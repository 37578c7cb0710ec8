"""What a checkpoint holds, as Megatron's sharded state dicts: model, optimizer, random generators, state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject

from megatron_trainer.backend import Backend
from megatron_trainer.backend.adam_step import create_state
from megatron_trainer.engine import Engine
from megatron_trainer.lora.names import is_adapter
from megatron_trainer.state import TrainState

StateDict = dict[str, Any]


def metadata() -> StateDict:
    """How Megatron shards what it saves: the optimizer state can be loaded into any other layout."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "singleton_local_shards": False,
        "chained_optim_avoid_prefix": True,
    }


Part = Literal["whole", "trainable", "base"]
"""Of a model: everything, what trains (a LoRA run's adapters), or all but the adapters."""


def model_state(engine: Engine, part: Part) -> StateDict:
    """Sharded tensors of this part of every model chunk."""
    states = {}
    for index, model in enumerate(engine.models):
        state = model.sharded_state_dict(metadata=metadata())
        names = engine.trainable_names(index)
        kept = {"whole": lambda _: True, "trainable": names.__contains__, "base": lambda name: not is_adapter(name)}
        states[_chunk_key(engine, index)] = {name: value for name, value in state.items() if kept[part](name)}
    return states


def load_model_state(engine: Engine, loaded: Mapping[str, Any], *, strict: bool) -> None:
    """Copies loaded tensors into the chunks; strict demands every tensor of the model."""
    for index, model in enumerate(engine.models):
        model.load_state_dict(loaded[_chunk_key(engine, index)], strict=strict)


def optimizer_state(engine: Engine, models: StateDict, *, is_loading: bool) -> StateDict:
    """Sharded tensors of the optimizer for the model state that is saved or loaded with it."""
    # Also before saving: in float16 every step so far may have been skipped.
    for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer]):
        create_state(part)
    merged = models if len(engine.models) > 1 else models["model"]
    return engine.optimizer.sharded_state_dict(merged, is_loading=is_loading, metadata=metadata())


def random_state(backend: Backend) -> ShardedObject:
    """Every random generator of this rank."""
    return ShardedObject("rng_state", backend.rng_state(), (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)


def train_state(state: TrainState) -> StateDict:
    """The plain numbers, equal on all ranks."""
    return asdict(state)


def _chunk_key(engine: Engine, index: int) -> str:
    return "model" if len(engine.models) == 1 else f"model{index}"
