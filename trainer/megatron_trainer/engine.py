"""The model under training: Megatron's wrapped model chunks and their optimizer, as one value."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.transformer import TransformerConfig

from megatron_trainer.lora import agree
from megatron_trainer.lora.names import named_parameters

if TYPE_CHECKING:  # needs Triton
    from megatron_trainer.megatron.patches.one_pass_update import OnePassUpdate

_LAYER = re.compile(r"decoder\.layers\.(?P<number>\d+)\.(?P<rest>.*)")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """models: the unwrapped chunks of this rank (one per virtual stage); chunks: the same, wrapped for training.

    one_pass: takes the optimizer's steps where its kernel fits.
    """

    config: TransformerConfig
    models: Sequence[GPTModel]
    chunks: Sequence[DistributedDataParallel]
    optimizer: MegatronOptimizer
    one_pass: OnePassUpdate | None = None

    def defers_scaling(self) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward passes whose gradients `update` is to scale."""
        return contextlib.nullcontext() if self.one_pass is None else self.one_pass.defers_scaling()

    def update(self) -> tuple[bool, Any, Any]:
        """The optimizer's step: whether it was taken, the norm of the gradients, the zeros in them. Collective."""
        result: tuple[bool, Any, Any] = (self.optimizer if self.one_pass is None else self.one_pass).step()
        return result

    def trainable_names(self, index: int) -> frozenset[str]:
        """Names of the parameters that train in chunk `index`."""
        return frozenset(name for name, p in self.models[index].named_parameters() if p.requires_grad)

    def trains_some_layers_only(self) -> bool:
        """Whether a parameter of the layers trains in some layers but not in others. Collective."""
        names = agree.union(name for name, p in named_parameters(list(self.models)) if p.requires_grad)
        layers: dict[str, set[str]] = {}
        for match in filter(None, map(_LAYER.match, names)):
            layers.setdefault(match["rest"], set()).add(match["number"])
        return any(len(numbers) < self.config.num_layers for numbers in layers.values())

    def gather_parameters(self) -> None:
        """Gathers all updated parameters, which overlap_param_gather defers to the next forward pass. Collective."""
        for chunk in self.chunks:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)

    def settings(self) -> dict[str, object]:
        """Megatron's own settings of the model as built, for the record: only plain values."""
        return {
            name: value
            for name, value in sorted(vars(self.config).items())
            if _is_plain(value) or (isinstance(value, list) and all(map(_is_plain, value)))
        }

    def num_parameters(self, *, trainable_only: bool) -> int:
        """Parameters of the whole model, each counted once whatever the layout. Collective."""
        own = sum(
            p.numel() / _num_holders(p)
            for model in self.models
            for p in model.parameters()
            if not getattr(p, "shared", False) and (p.requires_grad or not trainable_only)
        )
        total = torch.tensor(own, dtype=torch.float64, device=next(self.models[0].parameters()).device)
        dist.all_reduce(total)
        return round(total.item())

    def params_norm(self) -> float:
        """L2 norm of all parameters of the model, each counted once whatever the layout. Collective."""
        self.gather_parameters()
        own = sum(
            p.detach().double().square().sum() / _num_holders(p)
            for model in self.models
            for p in model.parameters()
            if not getattr(p, "shared", False)
        )
        total = torch.as_tensor(own, dtype=torch.float64, device=next(self.models[0].parameters()).device)
        dist.all_reduce(total)
        return total.sqrt().item()


def _num_holders(parameter: torch.nn.Parameter) -> int:
    """Ranks that hold the same values of a parameter (Megatron marks experts with allreduce=False)."""
    is_expert = not getattr(parameter, "allreduce", True)
    shards: int = parallel_state.get_expert_model_parallel_world_size() if is_expert else 1
    tensor_shards: int = (
        parallel_state.get_expert_tensor_parallel_world_size()
        if is_expert
        else parallel_state.get_tensor_model_parallel_world_size()
    )
    stages: int = parallel_state.get_pipeline_model_parallel_world_size()
    if getattr(parameter, "tensor_model_parallel", False):
        shards *= tensor_shards
    return dist.get_world_size() // (shards * stages)


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
