"""Mixture-of-experts settings that families share."""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.family import HfConfig


def routed_settings(config: HfConfig, *, num_experts: int, moe_layers: list[int]) -> dict[str, Any]:
    """Routed experts: moe_layers has 1 for each layer of experts and 0 for each dense one."""
    return {
        "num_moe_experts": num_experts,
        "moe_router_topk": config.num_experts_per_tok,
        "moe_ffn_hidden_size": getattr(config, "moe_intermediate_size", None) or config.intermediate_size,
        "moe_layer_freq": moe_layers,
    }


def softmax_router(*, normalise_after_choice: bool) -> dict[str, Any]:
    """Softmax over all experts before the choice, or over the chosen ones after it.

    Dividing the chosen probabilities by their sum is the same as a softmax over the chosen logits alone.
    """
    return {"moe_router_score_function": "softmax", "moe_router_pre_softmax": not normalise_after_choice}
