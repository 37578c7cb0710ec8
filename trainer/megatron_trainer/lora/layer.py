"""The adapter of one linear, s * B(A(dropout(x))), for every way in which Megatron shards the linear.

    weight W      A              B              between A and B; with sequence parallelism
    column        [r, I] whole   [O/tp, r]      copy (gradient summed); gathered along the sequence
    row           [r, I/tp]      [O, r] whole   summed over ranks;      summed and scattered along the sequence
    none          [r, I] whole   [O, r] whole   nothing

Only tensors of width r, not I or O, are communicated, and s*B@A is sharded like W, so merging needs no communication.
Shapes: I inputs, O outputs, r the adapter's rank, s the scale.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker, get_expert_parallel_rng_tracker_name

from megatron_trainer.lora import fused
from megatron_trainer.lora.adapter import Adapter, Offsets, Pair, Settings
from megatron_trainer.lora.placement import Placement
from megatron_trainer.lora.sharding import sharded_pair
from megatron_trainer.megatron.marks import reduce_over_data, sum_over_sequence


class LinearAdapter(Adapter):
    """A and B of one linear. Initially zero: A is Kaiming-uniform, B is zero (Hu et al. 2021)."""

    def __init__(self, name: str, place: Placement, settings: Settings) -> None:
        super().__init__()
        self.place = place
        self.group = place.group
        self.settings = settings
        self.A = torch.nn.Parameter(share_of_A(kaiming_uniform(name, place.in_features, settings), place))
        rows = place.out_features // (place.size if place.split == "column" else 1)
        self.B = torch.nn.Parameter(torch.zeros(rows, settings.width, dtype=place.dtype, device=place.device))
        mark(self.A, self.B, place)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The adapter's term for the linear's output, sharded like that output. x: the input of the linear."""
        low = torch.nn.functional.linear(self._dropped(x), self.A) * self.settings.scale
        return torch.nn.functional.linear(_exchanged(low, self.place), self.B)

    def branch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """On a GPU the product with A, in one pass over x forward and one backward."""
        if not fused.fits(x, self.A):
            return x, None
        dropout = self.settings.dropout if self.training else 0.0
        with dropout_generator(self.place) if dropout else nullcontext():
            return fused.branch(x, self.A, scale=self.settings.scale, dropout=dropout)

    def add_to(
        self, y: torch.Tensor, seen: torch.Tensor, low: torch.Tensor | None, *args: torch.Tensor
    ) -> torch.Tensor:
        """The output y plus the adapter's term, in place where the kernels run."""
        y, low = self.apart(y, seen, low, *args)
        return y if low is None else fused.add_up(y, low, self.B)

    def apart(
        self, y: torch.Tensor, seen: torch.Tensor, low: torch.Tensor | None, *args: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(y, what fused.add_up with B adds to it), or (the sum, None) where its kernels do not run."""
        if low is None:  # not from `branch`: a fused norm's output, or no kernels here
            _, low = self.branch(seen)
        if low is None:
            return super().add_to(y, seen, None, *args), None
        low = _exchanged(low, self.place)
        if y.dtype == low.dtype and y.is_contiguous():
            return y, low
        return y + torch.nn.functional.linear(low, self.B), None

    def pairs(self, base: torch.nn.Module) -> Iterator[Pair]:
        """The weight of `base` and its A and B."""
        yield Pair(weight=base.get_parameter("weight"), a=self.A, b=self.B)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A and B for a distributed checkpoint, sharded like the weight, so that any layout can load them."""
        return sharded_pair(self.A, self.B, self.place, prefix, sharded_offsets, metadata)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.settings.dropout == 0:
            return x
        with dropout_generator(self.place):
            return torch.nn.functional.dropout(x, self.settings.dropout)


def generator_of(name: str, settings: Settings) -> torch.Generator:
    """The random stream of one module, derived only from the seed and the module's whole-model name.

    So every layout starts from the same adapters, and ranks with replicas need no communication.
    """
    digest = hashlib.sha256(f"{settings.seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


def kaiming_uniform(name: str, in_features: int, settings: Settings) -> torch.Tensor:
    """The whole initial A [r, I], uniform within +-1/sqrt(I), float32 on the host."""
    whole = torch.empty(settings.width, in_features, dtype=torch.float32, device="cpu")
    return torch.nn.init.kaiming_uniform_(whole, a=math.sqrt(5), generator=generator_of(name, settings))


def share_of_A(whole: torch.Tensor, place: Placement) -> torch.Tensor:
    """This rank's part of a whole A, in the weight's type and on its device."""
    part = whole.chunk(place.size, dim=1)[place.rank] if place.split == "row" else whole
    return part.to(dtype=place.dtype, device=place.device).contiguous()


def mark(a: torch.nn.Parameter, b: torch.nn.Parameter, place: Placement) -> None:
    """Marks how A and B are sharded and over which ranks Megatron sums their gradients.

    A matrix that is replicated but saw only a part of the sequence gets a partial gradient; `sequence_parallel` makes
    finalize_model_grads sum the parts. An expert's matrices count as sharded even over one rank: the gradient norm
    takes replicated parameters from tensor-parallel rank 0 only, which holds another expert.
    """
    for parameter in (a, b):
        reduce_over_data(parameter, over_all_ranks=place.data_parallel_all_reduce)
    if place.split == "row" or place.expert:
        set_tensor_model_parallel_attributes(a, is_parallel=True, dim=1, stride=1)
    if place.split == "column" or place.expert:
        set_tensor_model_parallel_attributes(b, is_parallel=True, dim=0, stride=1)
    if place.sequence_parallel:
        sum_over_sequence(a, is_summed=place.split != "row")
        sum_over_sequence(b, is_summed=place.split != "column")


def dropout_generator(place: Placement) -> AbstractContextManager[None]:
    """The random stream for dropout: shared by ranks with the same input, otherwise one per rank."""
    generator: AbstractContextManager[None] = nullcontext()
    if place.expert:
        generator = get_cuda_rng_tracker().fork(get_expert_parallel_rng_tracker_name())
    elif place.split == "row" or place.sequence_parallel:
        generator = get_cuda_rng_tracker().fork()
    return generator


def _exchanged(low: torch.Tensor, place: Placement) -> torch.Tensor:
    if place.split == "none":
        return low
    if place.split == "column":
        exchange = (
            gather_from_sequence_parallel_region if place.sequence_parallel else copy_to_tensor_model_parallel_region
        )
    elif place.sequence_parallel:
        exchange = reduce_scatter_to_sequence_parallel_region
    else:
        exchange = reduce_from_tensor_model_parallel_region
    exchanged: torch.Tensor = exchange(low, group=place.group)
    return exchanged
