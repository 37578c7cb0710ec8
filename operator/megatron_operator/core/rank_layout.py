"""The coordinates of each rank in Megatron's parallel groups, as megatron-core lays them out. Pure.

megatron-core numbers ranks with tensor parallel fastest, then context, data and pipeline; the expert grid runs
over the same ranks with expert tensor fastest, then expert, expert data and pipeline:

    tp 2, cp 1, dp 2, pp 2:   rank 0 1 2 3 4 5 6 7
                                tp 0 1 0 1 0 1 0 1
                                dp 0 0 1 1 0 0 1 1
                                pp 0 0 0 0 1 1 1 1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_operator.core.job import Job
from megatron_trainjob.args import derive, placement


@dataclass(frozen=True, kw_only=True)
class Rank:
    """One process and its coordinates. `layers` are (first, past the last) of its chunks of layers, () if unknown."""

    rank: int
    node: int
    local_rank: int
    tensor: int
    context: int
    data: int
    pipeline: int
    expert: int
    expert_tensor: int
    layers: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The size of every group."""

    tensor: int
    context: int
    data: int
    pipeline: int
    expert: int
    expert_tensor: int
    expert_data: int


def sizes(job: Job) -> Sizes:
    """The group sizes for the arguments and the number of processes."""
    args = job.args
    return Sizes(
        tensor=args.tensor_model_parallel_size,
        context=args.context_parallel_size,
        data=derive.data_parallel_size(args, job.world_size),
        pipeline=args.pipeline_model_parallel_size,
        expert=args.expert_model_parallel_size,
        expert_tensor=derive.expert_tensor_parallel_size(args),
        expert_data=derive.expert_data_parallel_size(args, job.world_size),
    )


def ranks(job: Job, num_layers: int | None) -> list[Rank]:
    """Every rank of the job in order."""
    group, stages = sizes(job), layer_ranges(job, num_layers)
    return [_rank(rank, job, group, stages) for rank in range(job.world_size)]


def layer_ranges(job: Job, num_layers: int | None) -> list[tuple[tuple[int, int], ...]]:
    """(first, past the last) layer of each chunk of each pipeline stage, [] if the number of layers is unknown."""
    if num_layers is None:
        return []
    stages = placement.chunks_of_stages(job.args, num_layers)
    return [tuple((chunk.start, chunk.stop) for chunk in chunks) for chunks in stages]


def num_layers(job: Job, hf_config: Mapping[str, Any] | None) -> int | None:
    """Number of layers of the model, from the arguments or its config.json."""
    found: int | None = derive.model_value(job.args, hf_config or {}, "num_layers")
    return found


def _rank(rank: int, job: Job, group: Sizes, stages: list[tuple[tuple[int, int], ...]]) -> Rank:
    rest, tensor = divmod(rank, group.tensor)
    rest, context = divmod(rest, group.context)
    pipeline, data = divmod(rest, group.data)
    rest, expert_tensor = divmod(rank, group.expert_tensor)
    expert = rest % group.expert
    node, local_rank = divmod(rank, job.nproc_per_node)
    return Rank(
        rank=rank,
        node=node,
        local_rank=local_rank,
        tensor=tensor,
        context=context,
        data=data,
        pipeline=pipeline,
        expert=expert,
        expert_tensor=expert_tensor,
        layers=stages[pipeline] if stages else (),
    )
