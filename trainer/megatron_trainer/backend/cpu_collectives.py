"""Collectives that megatron-core uses and gloo lacks: gather and scatter with different sizes per rank.

Needed for experts spread over both expert and expert-tensor ranks, where ranks hold different numbers of tokens.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

_even_all_gather = dist.all_gather
_even_reduce_scatter = dist.reduce_scatter


def _are_even(tensors: list[torch.Tensor]) -> bool:
    return len({tensor.shape for tensor in tensors}) == 1


def all_gather(
    tensor_list: list[torch.Tensor],
    tensor: torch.Tensor,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,  # noqa: FBT001 - torch's signature
) -> Any:
    """torch.distributed.all_gather that also accepts different sizes: then one broadcast per rank."""
    if _are_even(tensor_list):
        return _even_all_gather(tensor_list, tensor, group=group, async_op=async_op)
    _refuse_asynchronous(async_op=async_op)
    rank = dist.get_rank(group)
    for source, part in enumerate(tensor_list):
        if source == rank:
            part.copy_(tensor)
        dist.broadcast(part, group=group, group_src=source)
    return None


def reduce_scatter(
    output: torch.Tensor,
    input_list: list[torch.Tensor],
    op: Any = dist.ReduceOp.SUM,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,  # noqa: FBT001 - torch's signature
) -> Any:
    """torch.distributed.reduce_scatter that also accepts different sizes: then a single all_reduce."""
    if _are_even(input_list):
        return _even_reduce_scatter(output, input_list, op=op, group=group, async_op=async_op)
    _refuse_asynchronous(async_op=async_op)
    everything = torch.cat(input_list)
    dist.all_reduce(everything, op=op, group=group)
    output.copy_(torch.split(everything, [part.shape[0] for part in input_list])[dist.get_rank(group)])
    return None


def _refuse_asynchronous(*, async_op: bool) -> None:
    if async_op:
        raise NotImplementedError("gloo: parts of different sizes are gathered and scattered in step only")


def install() -> None:
    """Replaces the two functions, which megatron-core looks up at each call."""
    for stand_in in (all_gather, reduce_scatter):
        setattr(dist, stand_in.__name__, stand_in)
