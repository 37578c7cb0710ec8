"""Model-parallel groups: this rank's coordinates, sums over groups, and its part of a sequence.

Creates and destroys megatron-core's groups, independently of models; invalid layouts have been refused by the argument
rules and by args/model/check.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor
from torch.distributed import (  # type: ignore[attr-defined]  # TCPStore is in torch's documentation, not in its __all__
    TCPStore,
    distributed_c10d,
)
from torch.distributed.distributed_c10d import PrefixStore, Store

from megatron_trainer.backend import Backend
from megatron_trainer.data.values import MicroBatch
from megatron_trainjob.args.tree import TrainArgs

STORE_LOOK_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """This rank's index in each group that contains it, and the groups' sizes."""

    rank: int
    world_size: int
    tensor: int
    tensor_size: int
    pipeline: int
    pipeline_size: int
    context: int
    context_size: int
    data: int
    data_size: int
    expert: int
    expert_size: int


PATIENCE_S = 18_000_000.0
"""How long ranks wait for each other outside of steps: for reading, encoding, loading, saving or exporting, which may
take one rank hours. Whether it makes progress is for the operator's hang detection to say."""


def join(
    backend: Backend,
    *,
    rank: int,
    world_size: int,
    master_address: str,
    master_port: int,
    attempt: int = 0,
    timeout_s: float = PATIENCE_S,
    store: Store | None = None,
) -> None:
    """Joins the process group of this attempt at the master's address, or through the given store. Waits for all."""
    if store is None:
        address = (master_address, master_port)
        store = meet(address, rank=rank, world_size=world_size, attempt=attempt, timeout_s=timeout_s)
    dist.init_process_group(
        backend.collective,
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=timeout_s),
        store=store,
    )


def meet(address: tuple[str, int], *, rank: int, world_size: int, attempt: int, timeout_s: float) -> Store:
    """The store of this attempt at the master's address, which rank 0 opens.

    Where ranks start again in living pods, those of the attempt before may still listen at the same address: a store
    in which rank 0 of this attempt has not said so is left, and looked for again.
    """
    prefix, timeout = f"attempt-{attempt}", timedelta(seconds=timeout_s)
    host, port = address
    if rank == 0:
        opened = TCPStore(host, port, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        opened.set(f"{prefix}/open", "1")
        return PrefixStore(prefix, opened)
    until = time.monotonic() + timeout_s
    while True:
        found = TCPStore(host, port, world_size, is_master=False, timeout=timeout, wait_for_workers=False)
        try:
            found.wait([f"{prefix}/open"], timedelta(seconds=STORE_LOOK_S))
            return PrefixStore(prefix, found)
        except (dist.DistNetworkError, dist.DistStoreError):
            if time.monotonic() > until:
                raise


_limit_s: ContextVar[float] = ContextVar("limit_s", default=PATIENCE_S)


@contextlib.contextmanager
def waits_at_most(seconds: float) -> Iterator[None]:
    """Context in which a collective of any group fails after so many seconds; afterwards the limit is as before.

    Not collective: a rank may be within while another is not yet. Groups that are made within are not affected.
    """
    outer = _limit_s.set(seconds)
    _set_timeouts(seconds)
    try:
        yield
    finally:
        _limit_s.reset(outer)
        _set_timeouts(_limit_s.get())


def _set_timeouts(seconds: float) -> None:
    change = getattr(dist, "set_timeout", None) or distributed_c10d._set_pg_timeout  # public since torch 2.15
    for group in distributed_c10d._world.pg_map:
        change(timedelta(seconds=seconds), group)


def leave() -> None:
    """Destroys the groups and the process group, if they exist."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def interleave(virtual_stages: int | None) -> None:
    """Gives each pipeline stage this many model chunks (interleaved schedule), for models built afterwards."""
    parallel_state.set_virtual_pipeline_model_parallel_world_size(virtual_stages)
    parallel_state.set_virtual_pipeline_model_parallel_rank(None if virtual_stages is None else 0)


def initialize(args: TrainArgs, *, virtual_stages: int | None = None) -> Coordinates:
    """Creates all groups for the layout of the arguments and seeds their random states. Collective.

    Ranks are ordered tensor, context, expert, data, pipeline, the fastest first, so that tensor-parallel
    ranks are neighbors on one machine.
    """
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=args.tensor_model_parallel_size,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=virtual_stages,
        context_parallel_size=args.context_parallel_size,
        expert_model_parallel_size=args.expert_model_parallel_size,
        expert_tensor_parallel_size=expert_tensor_parallel_size(args),
        distributed_timeout_minutes=PATIENCE_S / 60,
    )
    seed(args.seed)
    return coordinates()


def expert_tensor_parallel_size(args: TrainArgs) -> int:
    """Ranks that shard each expert: the argument, else the tensor-parallel size, as in the reference."""
    return args.expert_tensor_parallel_size or args.tensor_model_parallel_size


def seed(value: int) -> None:
    """Seeds torch and megatron-core's named states: dropout differs between tensor-parallel ranks where it must."""
    torch.manual_seed(value)
    tensor_parallel.model_parallel_cuda_manual_seed(value)


def coordinates() -> Coordinates:
    """This rank's coordinates in the groups that `initialize` created."""
    return Coordinates(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
        pipeline=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel_state.get_pipeline_model_parallel_world_size(),
        context=parallel_state.get_context_parallel_rank(),
        context_size=parallel_state.get_context_parallel_world_size(),
        data=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        expert=parallel_state.get_expert_model_parallel_rank(),
        expert_size=parallel_state.get_expert_model_parallel_world_size(),
    )


def sum_over_context(values: Tensor) -> Tensor:
    """The sum over the ranks that hold parts of the same sequences. Collective."""
    return _sum_over(values, parallel_state.get_context_parallel_group())


def _sum_over(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = values.clone()
    dist.all_reduce(total, group=group)
    return total


class _SumOfParts(torch.autograd.Function):
    """Each rank's part enters the sum with factor 1, and every rank computes the same loss from the sum, so the
    gradient of a part is that of the sum. (torch's own function would sum the equal gradients of all ranks.)
    """

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:  # noqa: ANN401 (torch's signature)
        return _sum_over(part, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 (torch's signature)
        return gradient, None


def sum_of_context_parts(part: Tensor) -> Tensor:
    """The differentiable sum over the ranks that hold parts of the same sequences. Collective."""
    total: Tensor = _SumOfParts.apply(part, parallel_state.get_context_parallel_group())
    return total


def sum_of_tensor_parts(part: Tensor) -> Tensor:
    """The differentiable sum over the tensor-parallel ranks of the values of their own tokens. Collective."""
    total: Tensor = _SumOfParts.apply(part, parallel_state.get_tensor_model_parallel_group())
    return total


def with_everyones_groups(batches: Sequence[MicroBatch]) -> Sequence[MicroBatch]:
    """The micro-batches, each with the groups of the corresponding ones on all data-parallel ranks, and with the loss
    share that gives all groups of the global batch equal weight. Collective.
    """
    group = parallel_state.get_data_parallel_group()
    everyones: list[list[tuple[int, ...]]] = [[]] * group.size()
    dist.all_gather_object(everyones, [batch.groups for batch in batches], group=group)
    together = list(zip(*everyones, strict=True))
    counts = [sum(map(len, each)) for each in together]
    total = max(sum(counts), 1)
    return [
        replace(batch, everyones_groups=each, loss_share=count * len(batches) / total)
        for batch, each, count in zip(batches, together, counts, strict=True)
    ]


def gathered_over_data(own_SH: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all data-parallel ranks, in the order of the ranks; rows of other ranks have no gradient.

    own_SH: this rank's rows, which keep theirs. sizes: rows of each rank. Collective.
    """
    group = parallel_state.get_data_parallel_group()
    padded = own_SH.new_zeros(max(*sizes, 1), own_SH.shape[1])
    padded[: len(own_SH)] = own_SH.detach()
    found = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(found, padded, group=group)
    rows = [each[:size] for each, size in zip(found, sizes, strict=True)]
    rows[group.rank()] = own_SH
    return torch.cat(rows)


def is_true_everywhere(condition: bool, backend: Backend) -> bool:  # noqa: FBT001 (a value, not an option)
    """Whether the condition holds on every rank. Collective over all ranks."""
    flag = torch.tensor([int(condition)], device=backend.device)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag.item())


def sums_by_name(own: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """The sums over all ranks of pairs whose names not all ranks know, ordered by name. Collective."""
    everyones: list[Mapping[str, tuple[float, float]]] = [{}] * dist.get_world_size()
    dist.all_gather_object(everyones, dict(own))
    names = sorted({name for sums in everyones for name in sums})
    pairs = {name: [sums[name] for sums in everyones if name in sums] for name in names}
    return {name: (sum(a for a, _ in found), sum(b for _, b in found)) for name, found in pairs.items()}


def bounds(cu_seqlens: Tensor | None, num_tokens: int) -> list[int]:
    """Starts of the sequences of a row and its end, in whole-row positions; one sequence without packing."""
    return [0, num_tokens] if cu_seqlens is None else [int(start) for start in cu_seqlens.tolist()]


def context_positions(sequence_bounds: list[int], *, rank: int, size: int) -> Tensor:
    """Positions of the whole row that context rank `rank` holds, int64[T / size].

    Each sequence is cut into 2 * size chunks and rank r takes chunks r and 2 * size - 1 - r, so that all ranks do equal
    work under a causal mask. Two sequences of 8 and 4 tokens over two ranks:

        whole row   0 1 2 3 4 5 6 7 | 8 9 10 11
        rank 0      0 1         6 7 | 8      11
        rank 1          2 3 4 5     |   9 10

    Raises:
        ValueError: a sequence does not divide into 2 * size chunks.
    """
    parts: list[Tensor] = []
    for start, end in zip(sequence_bounds[:-1], sequence_bounds[1:], strict=True):
        length, rest = divmod(end - start, 2 * size)
        if rest:
            raise ValueError(
                f"a sequence of {end - start} tokens is not divisible into 2 * context_parallel_size = {2 * size} "
                "chunks; the collator has to pad it"
            )
        for chunk in (rank, 2 * size - 1 - rank):
            parts.append(torch.arange(start + chunk * length, start + (chunk + 1) * length))
    return torch.cat(parts)


def local_part(batch: MicroBatch) -> MicroBatch:
    """This context rank's part of a micro-batch; `cu_seqlens`, images and counts still refer to the whole.

    A padded batch loses its attention mask when it is split: padding is on the right, where a causal mask hides it from
    every real token.

    Raises:
        ValueError: a row is padded on the left, or a sequence does not divide into 2 * size chunks.
    """
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return batch
    if batch.cu_seqlens is None and bool(batch.padding_BT[:, 0].any()):
        raise ValueError("context parallelism needs padding on the right; set padding_free or padding_side: right")
    sequence_bounds = bounds(batch.cu_seqlens, batch.tokens_BT.shape[1])
    rank = parallel_state.get_context_parallel_rank()
    on_host = context_positions(sequence_bounds, rank=rank, size=size)
    positions = on_host.to(batch.tokens_BT.device)
    places_3BT, has_loss_BT = batch.mrope_position_ids_3BT, batch.has_loss_BT
    return replace(
        batch,
        tokens_BT=batch.tokens_BT[:, positions],
        labels_BT=batch.labels_BT[:, positions],
        loss_weight_BT=batch.loss_weight_BT[:, positions],
        position_ids_BT=batch.position_ids_BT[:, positions],
        sequence_BT=batch.sequence_BT[:, positions],
        mrope_position_ids_3BT=None if places_3BT is None else places_3BT[..., positions],
        attention_mask=None,
        has_loss_BT=None if has_loss_BT is None else has_loss_BT[:, on_host.numpy()],
    )


def local_tokens(batch: MicroBatch, values_BT: Tensor) -> Tensor:
    """This context rank's part of values of all tokens of a micro-batch."""
    size = parallel_state.get_context_parallel_world_size()
    if size == 1:
        return values_BT
    sequence_bounds = bounds(batch.cu_seqlens, batch.tokens_BT.shape[1])
    rank = parallel_state.get_context_parallel_rank()
    return values_BT[:, context_positions(sequence_bounds, rank=rank, size=size).to(values_BT.device)]


def packed_sequence_parameters(batch: MicroBatch) -> PackedSeqParams | None:
    """The parameters with which attention separates packed sequences, None for a padded batch.

    Lengths are of the whole sequences, even when context ranks hold parts: attention and rotary embedding divide them.
    """
    if batch.cu_seqlens is None:
        return None
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=batch.cu_seqlens,
        cu_seqlens_kv=batch.cu_seqlens,
        max_seqlen_q=batch.max_seqlen,
        max_seqlen_kv=batch.max_seqlen,
    )


def layout() -> dict[str, int]:
    """Sizes of the parallel axes of this run, under the names that checkpoints and reports use.

    That of tensor-parallel ranks of experts is there where it differs from tp.
    """
    here = coordinates()
    expert_tensor_size = parallel_state.get_expert_tensor_parallel_world_size()
    return {
        "tp": here.tensor_size,
        "pp": here.pipeline_size,
        "cp": here.context_size,
        "dp": here.data_size,
        "ep": here.expert_size,
        **({"etp": expert_tensor_size} if expert_tensor_size != here.tensor_size else {}),
    }
