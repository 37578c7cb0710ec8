"""Layers that differ from each other in their attention, and whose output has a stored factor (Gemma-4).

Shapes: T tokens of this rank, B batch, N heads, G key-value heads, D head.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import all_gather_last_dim_from_tensor_parallel_region
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from torch import Tensor

from megatron_trainer.models import whole_images
from megatron_trainer.models.layers import PostNormAdd, UnitNorm
from megatron_trainjob.families.model import Model

Sizes = Model
"""The model with the attention of one layer in all of them (Model.at)."""


def with_own_attention(layer: TransformerLayerSubmodules, model: Model, index: int) -> TransformerLayerSubmodules:
    """The layer of this index with the attention that it has in the model."""
    attention = layer.self_attention
    first = model.qk_head_size // 2 if model.is_wide(index) else 0
    own = {**attention.params, "sizes": model.at(index), "first_pair": first}
    own["is_causal"] = bool(model.vision and model.vision.sees_whole) and not model.window_layers[index]
    return replace(layer, self_attention=replace(attention, module=AttentionOfItsLayer, params=own))


class AttentionOfItsLayer(SelfAttention):  # type: ignore[misc]  # megatron-core has no types
    """Attention whose heads are those of one layer, with a norm of values; values may be the keys.

    megatron-core's configuration has one size for all layers. first_pair: of this layer's rotary angles among those of
    all kinds of layers, which lie side by side. is_causal: here tokens of images do not see their whole image, as in
    other layers of the model.
    """

    def __init__(
        self,
        config: TransformerConfig,
        submodules: SelfAttentionSubmodules,
        *args: Any,  # noqa: ANN401 - megatron's signature
        sizes: Sizes,
        first_pair: int,
        is_causal: bool,
        **settings: Any,  # noqa: ANN401
    ) -> None:
        config = copy(config)
        config.kv_channels, config.num_query_groups = sizes.qk_head_size, sizes.num_kv_heads
        super().__init__(config, submodules, *args, **settings)
        self.pairs = slice(first_pair, first_pair + sizes.qk_head_size // 2)
        self.is_causal = is_causal
        self.value_norm = UnitNorm(sizes.qk_head_size, config.layernorm_epsilon)
        self.keys_as_values = sizes.keys_as_values
        if self.keys_as_values:
            self.linear_qkv_out_dim = self.query_projection_size + self.kv_projection_size
            self.linear_qkv = submodules.linear_qkv(
                config.hidden_size,
                self.linear_qkv_out_dim,
                config=config,
                init_method=config.init_method,
                gather_output=False,
                bias=False,
                skip_bias_add=False,
                is_expert=False,
                tp_comm_buffer_name="qkv",
                tp_group=self.pg_collection.tp,
            )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        *args: Any,  # noqa: ANN401 - megatron's signature
        rotary_pos_emb: Tensor | None = None,
        **settings: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor | None]:
        """As SelfAttention; of the angles those of this layer."""
        own = None if rotary_pos_emb is None else rotary_pos_emb[..., self.pairs]
        angles = None if own is None else torch.cat((own, own), dim=-1)
        if self.is_causal:
            attention_mask = whole_images.closed(attention_mask)
        result: tuple[Tensor, Tensor | None] = super().forward(
            hidden_states, attention_mask, *args, rotary_pos_emb=angles, **settings
        )
        return result

    def get_query_key_value_tensors(
        self,
        hidden_states: Tensor,
        *args: Any,  # noqa: ANN401 - megatron's signature
        **settings: Any,  # noqa: ANN401
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, B, N, D], keys and values [T, B, G, D]."""
        if not self.keys_as_values:
            query, key, value = super().get_query_key_value_tensors(hidden_states, *args, **settings)
            return query, key, self.value_norm(value)
        query, key = self._queries_and_keys(hidden_states)
        return self.q_layernorm(query), self.k_layernorm(key), self.value_norm(key)

    def _queries_and_keys(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Where ranks share a key-value head, each has that head whole, and its own queries."""
        mixed_TBX, _ = self.linear_qkv(hidden_states)
        size, group = self.hidden_size_per_attention_head, self.pg_collection.tp
        sharing = max(group.size() // self.config.num_query_groups, 1)
        if sharing > 1:
            every = all_gather_last_dim_from_tensor_parallel_region(mixed_TBX, group=group)
            mixed_TBX = every.chunk(self.config.num_query_groups, dim=-1)[group.rank() // sharing]
        by_group = mixed_TBX.unflatten(-1, (self.num_query_groups_per_partition, -1, size))
        query, key = by_group[..., :-1, :].flatten(2, 3), by_group[..., -1, :]
        if sharing > 1:
            query = query.chunk(sharing, dim=2)[group.rank() % sharing]
        return query, key


class ScaledPostNormAdd(PostNormAdd):
    """The end of a layer whose output has a factor, which is part of the checkpoint and does not train."""

    layer_scale: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.register_buffer("layer_scale", torch.ones(1, dtype=config.params_dtype))

    def forward(self, training: bool, fused: bool) -> Callable[..., Tensor]:  # noqa: FBT001 - megatron's signature
        """As of PostNormAdd, with the factor."""
        add = super().forward(training, fused)

        def add_and_scale(*given: Any) -> Tensor:  # noqa: ANN401
            return add(*given) * self.layer_scale

        return add_and_scale
