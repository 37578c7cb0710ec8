"""Assembles checkpoint tensors from the shards of all ranks, one parameter at a time, each on one rank only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_trainer.convert import table
from megatron_trainer.convert.rules import RULES, Sizes
from megatron_trainer.convert.table import Entry
from megatron_trainer.models.spec import ModelSpec

Read = Callable[[Tensor], Tensor | None]
"""Parameter -> the tensor to stream for it, None to leave it out."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor of the checkpoint before it is assembled: name and shape, and the type of its parameter."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def none(_: Entry) -> bool:
    """The `first` of an export that puts no entries before the others."""
    return False


def exported(
    chunks: Sequence[torch.nn.Module], spec: ModelSpec, *, first: Callable[[Entry], bool] = none
) -> list[Entry]:
    """The parameters that an export reads, larger types first, in the same order on all ranks of a stage.

    This order keeps every tensor of a file aligned to its element size. first: those that come before all others,
    because what is written for them has another type.
    """
    kept = [entry for entry in table.entries(chunks, spec) if not entry.is_copy]
    return sorted(kept, key=lambda entry: (not first(entry), -entry.parameter.element_size()))


def writes(entry: Entry) -> bool:
    """Whether this rank receives the tensors of the entry: the first of the ranks that replicate or shard it."""
    return takes_part(entry) and entry.group.rank() == 0


def takes_part(entry: Entry) -> bool:
    """Whether this rank's shard is read; of data-parallel (and context-parallel) replicas only the first is."""
    rank: int = (
        parallel_state.get_expert_data_parallel_rank()
        if entry.is_expert
        else parallel_state.get_data_parallel_rank(with_context_parallel=True)
    )
    return rank == 0


def pieces(entry: Entry, sizes: Sizes) -> list[Piece]:
    """The checkpoint tensors of an entry, without reading its data and without copies of it."""
    share = torch.empty_like(entry.parameter, device="meta")
    num_shares = entry.group.size() if entry.dim is not None else 1
    tensors = RULES[entry.rule].unshard([share] * num_shares, entry.dim, sizes)
    return [
        Piece(name=name, shape=tuple(tensor.shape), dtype=entry.parameter.dtype)
        for name, tensor in zip(entry.names, tensors, strict=True)
    ]


def written_pieces(entry: Entry, sizes: Sizes) -> list[Piece]:
    """The same with the copies that a checkpoint holds too."""
    own = pieces(entry, sizes)
    return own + [replace(own[0], name=name) for name in entry.copies]


def _named(entry: Entry, tensors: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of an entry by name, and its only tensor under the names of its copies too."""
    yield from zip(entry.names, tensors, strict=True)
    yield from ((name, tensors[0]) for name in entry.copies)


def own_data(parameter: Tensor) -> Tensor:
    """The parameter's values."""
    return parameter.data


@torch.no_grad()
def tensors(
    chunks: Sequence[torch.nn.Module],
    spec: ModelSpec,
    *,
    read: Read = own_data,
    first: Callable[[Entry], bool] = none,
) -> Iterator[tuple[str, Tensor]]:
    """(checkpoint name, whole tensor) for each tensor that this rank writes. Collective: every rank has to exhaust it.

    Parameters are gathered one at a time, so no more than one is held beyond the model.
    """
    sizes = table.sizes(spec)
    for entry in exported(chunks, spec, first=first):
        if not takes_part(entry):
            continue
        share = read(entry.parameter)
        if share is None:
            continue
        shares = _gather(share.contiguous(), entry)
        if shares:
            yield from _named(entry, RULES[entry.rule].unshard(shares, entry.dim, sizes))


def _gather(share: Tensor, entry: Entry) -> list[Tensor]:
    """All shards on the group's first rank, nothing on the others."""
    group = entry.group
    is_first = group.rank() == 0
    if entry.dim is None or group.size() == 1:
        return [share] if is_first else []
    shares = [torch.empty_like(share) for _ in range(group.size())] if is_first else None
    dist.gather(share, shares, group=group, group_dst=0)
    return shares or []
