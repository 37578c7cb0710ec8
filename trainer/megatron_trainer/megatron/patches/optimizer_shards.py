"""The distributed optimizer's state in a checkpoint: every rank's own part, in pieces that any layout can read.

A data-parallel rank holds a run of consecutive elements of a parameter. To save it for other layouts too, megatron-core
0.19 first gathers the whole state in the host memory of every rank, in several copies. Here a run is cut into boxes,
slices of the whole tensor that torch's checkpoints join again as the reader needs them. The names are those of the
gathered form, so that each form can read the other.
"""

# ruff: noqa: ANN401 - values of torch and megatron-core that are passed on as they are
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories

from megatron_trainer.megatron.patches import fused_adam


@dataclass(frozen=True, kw_only=True)
class Box:
    """A slice of a tensor: its offset and length in every dimension."""

    offset: tuple[int, ...]
    shape: tuple[int, ...]


def boxes(shape: Sequence[int], start: int, stop: int) -> list[Box]:
    """The elements [start, stop) of a row-major tensor as boxes, in their order: at most 2 n - 1 in n dimensions."""
    if start >= stop:
        return []
    if len(shape) < 2:
        return [Box(offset=(start,) * len(shape), shape=(stop - start,) * len(shape))]
    row = math.prod(shape[1:])
    index, begun = divmod(start, row)
    if begun or stop - start < row:
        end = min(stop, (index + 1) * row)
        part = boxes(shape[1:], begun, end - index * row)
        return [Box(offset=(index, *box.offset), shape=(1, *box.shape)) for box in part] + boxes(shape, end, stop)
    end = stop // row
    whole = Box(offset=(index,) + (0,) * (len(shape) - 1), shape=(end - index, *shape[1:]))
    return [whole, *boxes(shape, end * row, stop)]


def install() -> None:
    """Replaces Megatron's gathered form by saving and loading in pieces."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    DistributedOptimizer.sharded_param_state_fully_reshardable = _sharded_state
    DistributedOptimizer.load_parameter_state_from_fully_reshardable = _load_state


def _sharded_state(
    optimizer: Any,
    model_state: Mapping[str, Any],
    is_loading: bool = False,  # noqa: FBT001 - as Megatron passes it
    *_: object,
) -> dict[int, dict[str, dict[int, ShardedTensor]]]:
    """Main parameter and moments of each parameter that this rank holds a part of, each in pieces.

    The pieces are views of the optimizer's own tensors, also when loading; of copies in float32 where TransformerEngine
    holds fewer bits.
    """
    found, _ = extract_sharded_tensors_and_factories(model_state)
    shardings = {sharding.data: sharding for sharding in nested_values(found)}
    state = {}
    for index, (parameter, held) in enumerate(_held(optimizer)):
        sharding = shardings[parameter]
        replica = (*sharding.replica_id[:2], optimizer.distributed_optimizer_instance_id)
        wholes = _wholes(sharding)
        tensors = _states(optimizer, parameter, is_loading=is_loading)
        state[index] = {
            name: dict(enumerate(_pieces(wholes, tensors[name], held.start, f"optimizer.state.{name}.", replica)))
            for name in ("param", *optimizer.optimizer_state_keys)
        }
    return state


@torch.no_grad()
def _load_state(optimizer: Any, state: Mapping[int, Mapping[str, Mapping[int, torch.Tensor]]]) -> None:
    """Passes the optimizer what was loaded into the pieces of `_sharded_state`."""
    for index, (parameter, _) in enumerate(_held(optimizer)):
        tensors = {
            name: torch.cat([pieces[number].reshape(-1) for number in sorted(pieces)])
            for name, pieces in state[index].items()
        }
        if fused_adam.is_fused(optimizer):
            fused_adam.set_states(optimizer, parameter, tensors)
        else:
            optimizer._set_main_param_and_optimizer_states(parameter, tensors)
    # The offloading optimizer passes the state on to its parts on GPU and host.
    if hasattr(optimizer.optimizer, "_sync_hdo_state_to_sub_optimizers"):
        optimizer.optimizer._sync_hdo_state_to_sub_optimizers()


def _states(optimizer: Any, parameter: torch.nn.Parameter, *, is_loading: bool) -> dict[str, torch.Tensor]:
    if fused_adam.is_fused(optimizer):
        return fused_adam.states(optimizer, parameter, is_loading=is_loading)
    tensors: dict[str, torch.Tensor] = optimizer._get_main_param_and_optimizer_states(parameter)
    return tensors


def _held(optimizer: Any) -> Iterator[tuple[torch.nn.Parameter, Any]]:
    """The parameters of which this rank holds a part, with the range of elements."""
    buckets = chain.from_iterable(chain.from_iterable(ranges.values() for ranges in optimizer.gbuf_ranges))
    for bucket in buckets:
        for parameter, ranges in bucket["param_map"].items():
            yield parameter, ranges["param"]


def _wholes(sharding: ShardedTensor | ShardedTensorFactory) -> list[tuple[int, ShardedTensor]]:
    """The checkpoint tensors of a local parameter, with the element at which each begins.

    One, or several where Megatron saves a parameter in parts (gate and up of a gated MLP).
    """
    if isinstance(sharding, ShardedTensor):
        return [(0, sharding)]
    local = torch.empty(sharding.data.shape, device="meta")
    parts = list(nested_values(sharding.build_fn(sharding.key, local, sharding.replica_id, None)))
    assert all(part.data._base is local and part.data.is_contiguous() for part in parts), sharding.key
    return [(part.data.storage_offset(), part) for part in parts]


def _pieces(
    wholes: Sequence[tuple[int, ShardedTensor]], values: torch.Tensor, start: int, prefix: str, replica: tuple[int, ...]
) -> Iterator[ShardedTensor]:
    """`values`, the elements of the local parameter from `start` on, as slices of the tensors of the checkpoint."""
    flat = values.detach().reshape(-1)
    for begin, whole in wholes:
        shape, prepended = whole.local_shape, whole.prepend_axis_num
        low, high = max(start, begin), min(start + flat.numel(), begin + math.prod(shape))
        position = low - start
        for box in boxes(shape, low - begin, high - begin):
            end = position + math.prod(box.shape)
            corner = (*(0,) * prepended, *box.offset)
            extent = (*(1,) * prepended, *box.shape)
            yield ShardedTensor(
                key=prefix + whole.key,
                data=flat[position:end].view(extent),
                dtype=flat.dtype,
                local_shape=extent,
                global_shape=whole.global_shape,
                global_offset=tuple(map(sum, zip(whole.global_offset, corner, strict=True))),
                axis_fragmentations=None,
                replica_id=replica,
                allow_shape_mismatch=whole.allow_shape_mismatch,
            )
            position = end
