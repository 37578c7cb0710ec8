"""How one weight is sharded over the tensor-parallel ranks, from Megatron's own attributes of the weight.

No class of TransformerEngine is named here: its linears have the same attributes as Megatron's local ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from megatron.core import parallel_state
from megatron.core.transformer import TransformerConfig

from megatron_trainer.megatron.marks import split_dim
from megatron_trainjob.families.vision import is_tower

Split = Literal["column", "row", "none"]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """`in_features` and `out_features` count the whole matrix; `rank` and `size` are of the group that shards it.

    `sequence_parallel`: activations on the unsharded side hold only this rank's part of the sequence.
    `gated`: the rows are two halves, gate over up, each sharded separately: rank r holds [gate_r; up_r].
    """

    split: Split
    in_features: int
    out_features: int
    group: torch.distributed.ProcessGroup
    rank: int
    size: int
    sequence_parallel: bool
    expert: bool
    gated: bool
    vocabulary: bool
    data_parallel_all_reduce: bool
    dtype: torch.dtype
    device: torch.device


def placement(name: str, weight: torch.nn.Parameter, config: TransformerConfig) -> Placement:
    """The placement of the weight [rows, columns] of the module called `name`.

    Experts are sharded over the expert tensor-parallel group; sequence parallelism does not split their tokens.
    """
    expert = is_expert(name)
    group = _group(expert=expert)
    size = group.size()
    split = _split(weight) if size > 1 else "none"
    rows, columns = weight.shape
    return Placement(
        split=split,
        in_features=columns * (size if split == "row" else 1),
        out_features=rows * (size if split == "column" else 1),
        group=group,
        rank=group.rank(),
        size=size,
        sequence_parallel=bool(config.sequence_parallel) and size > 1 and not expert and not is_tower(name),
        expert=expert,
        gated=name.endswith("linear_fc1") and bool(config.gated_linear_unit) and not is_tower(name),
        vocabulary=name.endswith("output_layer"),
        data_parallel_all_reduce=getattr(weight, "allreduce", True),
        dtype=weight.dtype,
        device=weight.device,
    )


def is_expert(name: str) -> bool:
    """Whether the module belongs to one routed expert (a shared expert is an ordinary MLP)."""
    return ".experts." in name


def _group(*, expert: bool) -> torch.distributed.ProcessGroup:
    group: torch.distributed.ProcessGroup = (
        parallel_state.get_expert_tensor_parallel_group()
        if expert
        else parallel_state.get_tensor_model_parallel_group()
    )
    return group


def _split(weight: torch.nn.Parameter) -> Split:
    dim = split_dim(weight)
    if dim is None:
        return "none"
    return "row" if dim == 1 else "column"
