"""Attributes that Megatron reads from parameters and that torch's Parameter does not declare."""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes

_SEQUENCE_PARALLEL = "sequence_parallel"
_ALL_REDUCE = "allreduce"
_PARTITION_DIM = "partition_dim"


def sum_over_sequence(parameter: torch.nn.Parameter, *, is_summed: bool) -> None:
    """Whether finalize_model_grads sums the gradients over the ranks that hold parts of the sequence."""
    setattr(parameter, _SEQUENCE_PARALLEL, is_summed)


def reduce_over_data(parameter: torch.nn.Parameter, *, over_all_ranks: bool) -> None:
    """Whether its gradient is reduced over all data-parallel ranks, or over those of its expert only."""
    setattr(parameter, _ALL_REDUCE, over_all_ranks)


def split_over_heads(parameter: torch.nn.Parameter) -> None:
    """Marks a parameter whose rows tensor-parallel ranks share."""
    set_tensor_model_parallel_attributes(parameter, is_parallel=True, dim=0, stride=1)


def split_dim(parameter: torch.Tensor) -> int | None:
    """Dimension along which tensor-parallel ranks share the parameter, None when each holds all of it."""
    if not getattr(parameter, "tensor_model_parallel", False):
        return None
    dim: int = getattr(parameter, _PARTITION_DIM)
    return dim
