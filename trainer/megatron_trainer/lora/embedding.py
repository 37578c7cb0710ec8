"""The adapter of the word embeddings, s * B(A[:, token]): A is sharded by vocabulary like the table, B is replicated.

As in PEFT, A is zero and B normal at first, and there is no dropout (token ids cannot be scaled).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding, set_tensor_model_parallel_attributes
from megatron.core.tensor_parallel.mappings import (
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from megatron.core.utils import make_sharded_tensor_for_checkpoint, make_tp_sharded_tensor_for_checkpoint

from megatron_trainer.lora.adapter import Adapter, Offsets, Pair, Settings
from megatron_trainer.lora.layer import generator_of
from megatron_trainer.megatron.marks import sum_over_sequence


class EmbeddingAdapter(Adapter):
    """A [r, V/tp] and B [H, r] of a VocabParallelEmbedding (V vocabulary, H hidden size)."""

    def __init__(self, name: str, table: VocabParallelEmbedding, settings: Settings) -> None:
        super().__init__()
        weight: torch.nn.Parameter = table.weight
        self.settings = settings
        self.group = table.tp_group
        self.first_token: int = table.vocab_start_index
        self.scattered: bool = table.reduce_scatter_embeddings
        self.A = torch.nn.Parameter(weight.new_zeros(settings.rank, weight.shape[0]))
        self.B = torch.nn.Parameter(_normal(name, weight, settings))
        set_tensor_model_parallel_attributes(self.A, is_parallel=True, dim=1, stride=1)
        sum_over_sequence(self.B, is_summed=self.scattered)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """The adapter's term for the embeddings of `tokens` [B, T], in the embedding's own layout."""
        local = tokens - self.first_token
        held = (local >= 0) & (local < self.A.shape[1])
        low = torch.nn.functional.embedding(local.where(held, 0), self.A.t())
        low = low * (held.unsqueeze(-1) * self.settings.scale).to(low.dtype)
        if self.scattered:
            low = reduce_scatter_to_sequence_parallel_region(low.transpose(0, 1).contiguous(), group=self.group)
        else:
            low = reduce_from_tensor_model_parallel_region(low, group=self.group)
        return torch.nn.functional.linear(low, self.B)

    def pairs(self, base: torch.nn.Module) -> Iterator[Pair]:
        """The table [V/tp, H] of `base` and its A and B."""
        yield Pair(weight=base.get_parameter("weight"), a=self.A, b=self.B, transposed=True)

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Offsets = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """A sharded by vocabulary (padding may differ between layouts) and B replicated."""
        groups = {
            "tp_group": self.group,
            "dp_cp_group": ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        }
        return {
            f"{prefix}A": make_tp_sharded_tensor_for_checkpoint(
                self.A,
                f"{prefix}A",
                1,
                prepend_offsets=sharded_offsets,
                allow_shape_mismatch=True,
                **groups,
            ),
            f"{prefix}B": make_sharded_tensor_for_checkpoint(
                self.B, f"{prefix}B", prepend_offsets=sharded_offsets, **groups
            ),
        }


def _normal(name: str, weight: torch.Tensor, settings: Settings) -> torch.Tensor:
    whole = torch.empty(weight.shape[1], settings.rank, dtype=torch.float32, device="cpu")
    return whole.normal_(generator=generator_of(name, settings)).to(dtype=weight.dtype, device=weight.device)
