"""Experts and a dense block in the same layer, each between norms of its own (Gemma-4).

    x -> norm -> dense block -> norm --+
    x -> norm -> experts -> norm ------+-> sum
    x -> norm without weight -> scale -> router

megatron-core's shared experts take the place of the dense block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules
from megatron.core.transformer.utils import sharded_state_dict_default
from torch import Tensor

from megatron_trainer.megatron.marks import sum_over_sequence
from megatron_trainer.models.layers import RMSNorm, UnitNorm


def with_experts_beside_dense(layer: TransformerLayerSubmodules) -> TransformerLayerSubmodules:
    """A layer with experts and shared ones as one with experts beside a dense block."""
    parts = layer.mlp.keywords["submodules"]
    dense = partial(NormedDense, submodules=parts.shared_experts.keywords["submodules"])
    own = replace(parts, router=ScaledRouter, shared_experts=dense)
    return replace(layer, mlp=partial(ExpertsBesideDense, submodules=own), pre_mlp_layernorm=IdentityOp)


class NormedDense(SharedExpertMLP):  # type: ignore[misc]  # megatron-core has no types
    """The dense block between its norms."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - megatron's signature
        super().__init__(*args, **settings)
        self.input_norm, self.output_norm = (_norm(self.config) for _ in range(2))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The block's output, normalized."""
        normed: Tensor = self.output_norm(super().forward(self.input_norm(hidden_states)))
        return normed

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Sequence[Any] = (), metadata: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """For checkpoints of any layout: megatron-core takes the norms of a block for those of this rank alone."""
        found: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        for name in ("input_norm", "output_norm"):
            norm = getattr(self, name)
            found |= sharded_state_dict_default(norm, f"{prefix}{name}.", sharded_offsets, metadata, self.tp_group)
        return found


class ScaledRouter(TopKRouter):  # type: ignore[misc]  # megatron-core has no types
    """A router that normalizes and scales what it reads, and scales the probabilities of each expert."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - megatron's signature
        super().__init__(*args, **settings)
        config = self.config
        self.norm = UnitNorm(config.hidden_size, config.layernorm_epsilon)
        self.scale = torch.nn.Parameter(torch.ones(config.hidden_size, dtype=config.params_dtype))
        self.per_expert_scale = torch.nn.Parameter(torch.ones(config.num_moe_experts, dtype=config.params_dtype))
        for parameter in (self.scale, self.per_expert_scale):
            sum_over_sequence(parameter, is_summed=config.sequence_parallel)

    def forward(self, hidden_states: Tensor, padding_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(probabilities, chosen experts), as of TopKRouter."""
        scaled = self.norm(hidden_states) * self.scale * self.config.hidden_size**-0.5
        result: tuple[Tensor, Tensor] = super().forward(scaled, padding_mask)
        return result

    def routing(self, logits: Tensor, *args: Any, **settings: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
        """As of TopKRouter; balancing losses see probabilities before they are scaled."""
        probabilities_TE, chosen_TE = super().routing(logits, *args, **settings)
        return probabilities_TE * self.per_expert_scale.to(probabilities_TE.dtype), chosen_TE


class ExpertsBesideDense(MoELayer):  # type: ignore[misc]  # megatron-core has no types
    """Experts between their norms, and a dense block beside them."""

    def __init__(self, *args: Any, **settings: Any) -> None:  # noqa: ANN401 - megatron's signature
        super().__init__(*args, **settings)
        self.input_norm, self.output_norm = (_norm(self.config) for _ in range(2))

    def preprocess(self, hidden_states: Tensor, probs: Tensor, routing_map: Tensor) -> Any:  # noqa: ANN401
        """As of MoELayer, from normalized states."""
        return super().preprocess(self.input_norm(hidden_states), probs, routing_map)

    def postprocess(self, output: Tensor, shared_expert_output: Tensor) -> Tensor:
        """The sum of both."""
        summed: Tensor = self.output_norm(super().postprocess(output, None)) + shared_expert_output
        return summed


def _norm(config: Any) -> RMSNorm:  # noqa: ANN401 - megatron-core has no types
    return RMSNorm(config, config.hidden_size, config.layernorm_epsilon)
