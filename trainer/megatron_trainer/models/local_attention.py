"""Core attention for transformer_impl local: padded and packed sequences, context parallelism, GQA and MLA.

megatron-core's own local attention supports neither packing nor context parallelism and cannot be built for MLA. This
one calls torch's scaled_dot_product_attention sequence by sequence, so no mask over a whole packed row exists. On GPUs
TransformerEngine is used instead.

Shapes: T tokens of this rank, S tokens of the whole row, B batch (1 when packed), N heads, G key-value
heads, D head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    is_layer_window_attention,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor

from megatron_trainer.parallel import bounds, context_positions


class CoreAttention(MegatronModule):  # type: ignore[misc]  # megatron-core has no types
    """Causal attention over each sequence separately. Replaces megatron-core's DotProductAttention."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        self.scale = softmax_scale if softmax_scale is not None else (k_channels or config.kv_channels) ** -0.5
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.tensor_group = pg_collection.tp if pg_collection else parallel_state.get_tensor_model_parallel_group()
        self.group = pg_collection.cp if pg_collection else parallel_state.get_context_parallel_group()
        windowed = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size[0] + 1 if windowed else None
        self.softmax_offset: torch.nn.Parameter | None = None
        if config.softmax_type == "learnable":
            heads = config.num_attention_heads // config.tensor_model_parallel_size
            self.softmax_offset = torch.nn.Parameter(torch.empty(heads, dtype=config.params_dtype))
            if config.perform_initialization:
                config.init_method(self.softmax_offset)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Mixed values: [T, B, N*D] from query [T, B, N, D], key and value [T, B, G, D]; packed [T, N*D]
        from [T, N, D].

        attention_mask: bool [B, 1, S, S], True where attention is forbidden; None is causal. Or int64 [B, S], the last
        token that each token may see (whole_images.py).
        """
        if attention_bias is not None:
            raise ValueError("attention with an additive bias needs transformer_impl transformer_engine")
        packed = packed_seq_params is not None
        if packed:
            query, key, value = (t.unsqueeze(1) if t.ndim == 3 else t for t in (query, key, value))
        last_BS = attention_mask if attention_mask is not None and attention_mask.dtype != torch.bool else None
        mask = None if packed or last_BS is not None else attention_mask
        size = self.group.size()
        sequence_bounds = bounds(starts(packed_seq_params), query.size(0) * size)
        if size > 1:
            mixed_TBND = self._context_parallel(query, key, value, sequence_bounds, last_BS)
        else:
            mixed_TBND = self._by_sequence(query, key, value, sequence_bounds, mask, last_BS)
        mixed = mixed_TBND.flatten(2)
        return mixed.squeeze(1) if packed else mixed

    def _by_sequence(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sequence_bounds: list[int],
        mask: Tensor | None,
        last_BS: Tensor | None,
    ) -> Tensor:
        visible = None if mask is None else self._within_window(_visible(mask))
        outputs = []
        for start, end in zip(sequence_bounds[:-1], sequence_bounds[1:], strict=True):
            q, k, v = (t[start:end] for t in (query, key, value))
            is_beyond = self.window is not None and end - start > self.window
            if visible is None and (is_beyond or last_BS is not None):
                positions = torch.arange(start, end, device=query.device)
                outputs.append(self._attend(q, k, v, self._seen(positions, positions, last_BS)))
            else:
                outputs.append(self._attend(q, k, v, visible))
        return torch.cat(outputs)

    def _context_parallel(
        self, query: Tensor, key: Tensor, value: Tensor, sequence_bounds: list[int], last_BS: Tensor | None
    ) -> Tensor:
        """Attends from this rank's queries to the keys and values of all context ranks; the gather's backward
        reduce-scatters.
        """
        size, rank = self.group.size(), self.group.rank()
        positions = [context_positions(sequence_bounds, rank=r, size=size) for r in range(size)]
        order = torch.cat(positions).argsort().to(query.device)
        whole = gather_from_sequence_parallel_region(torch.cat([key, value], dim=-1), group=self.group)[order]
        key, value = whole.split([key.size(-1), value.size(-1)], dim=-1)
        mine = positions[rank].to(query.device)
        outputs = []
        first = 0
        for start, end in zip(sequence_bounds[:-1], sequence_bounds[1:], strict=True):
            last = first + (end - start) // size
            visible = self._seen(mine[first:last], torch.arange(start, end, device=query.device), last_BS)
            outputs.append(self._attend(query[first:last], key[start:end], value[start:end], visible))
            first = last
        return torch.cat(outputs)

    def _within_window(self, visible: Tensor) -> Tensor:
        """The mask of padded rows, bool [B, 1, S, S], with positions before the window masked too."""
        positions = torch.arange(visible.size(-1), device=visible.device)
        return visible if self.window is None else visible & (positions[:, None] - positions < self.window)

    def _seen(self, query_positions: Tensor, key_positions: Tensor, last_BS: Tensor | None) -> Tensor:
        """Which keys of each query are visible, for attention: bool, of all rows alike or [B, 1, queries, keys]."""
        if last_BS is None:
            return self._causal(query_positions, key_positions)
        visible = (key_positions <= last_BS[:, query_positions, None])[:, None]
        return visible if self.window is None else visible & (query_positions[:, None] - key_positions < self.window)

    def _causal(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """bool [queries, keys]: a key is visible from its own position on, within the window."""
        distance = query_positions[:, None] - key_positions[None]
        visible = distance >= 0
        return visible if self.window is None else visible & (distance < self.window)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """One attention over [T, B, N, D] -> [T, B, N, Dv]; without a mask it is causal."""
        q, k, v = (t.permute(1, 2, 0, 3) for t in (query, key, value))
        if q.size(1) != k.size(1):
            k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
        dropout = self.dropout if self.training else 0.0
        if dropout:
            # Heads differ between tensor-parallel ranks, so their dropout must differ too.
            with get_cuda_rng_tracker().fork():
                mixed = self._sdpa(q, k, v, visible, dropout)
        else:
            mixed = self._sdpa(q, k, v, visible, dropout)
        return mixed.permute(2, 0, 1, 3)

    def _sdpa(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
        if self.softmax_offset is not None:
            return self._with_sinks(q, k, v, visible, dropout)
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, is_causal=visible is None, dropout_p=dropout, scale=self.scale
        )

    def _with_sinks(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, dropout: float) -> Tensor:
        """The same where each head has one more score in its softmax, which has no value: torch's has none."""
        assert self.softmax_offset is not None  # its caller has looked
        if visible is None:
            positions = torch.arange(q.size(2), device=q.device)
            visible = self._causal(positions, positions)
        scores_BNTS = (q @ k.transpose(-1, -2) * self.scale).masked_fill(~visible, float("-inf"))
        sinks = self.softmax_offset.view(1, -1, 1, 1).expand(*scores_BNTS.shape[:3], 1)
        shares = torch.cat([scores_BNTS, sinks], dim=-1).float().softmax(dim=-1)[..., :-1].to(v.dtype)
        return torch.nn.functional.dropout(shares, dropout) @ v

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Sequence[Any] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For checkpoints of any layout: tensor-parallel ranks have the sinks of their heads."""
        own = {} if self.softmax_offset is None else {"softmax_offset": self.softmax_offset}
        groups = {
            "tp_group": self.tensor_group,
            "dp_cp_group": ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        }
        found: dict[str, Any] = make_sharded_tensors_for_checkpoint(
            own, prefix, dict.fromkeys(own, 0), sharded_offsets, **groups
        )
        return found


def starts(packed_seq_params: PackedSeqParams | None) -> Tensor | None:
    """Where the sequences of a packed row start and end, None for rows of one sequence."""
    if packed_seq_params is None:
        return None
    padded: Tensor | None = packed_seq_params.cu_seqlens_q_padded
    unpadded: Tensor | None = packed_seq_params.cu_seqlens_q
    return padded if padded is not None else unpadded


def _visible(attention_mask: Tensor) -> Tensor:
    """The mask in torch's sense. A padding token that may attend to nothing attends to itself: its output is never
    used, but a softmax over nothing is NaN and would spread through the gradients.
    """
    diagonal = torch.eye(attention_mask.size(-1), dtype=torch.bool, device=attention_mask.device)
    return ~attention_mask | diagonal
