"""Qwen2, Qwen3 and their mixtures of experts."""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.experts import routed_settings, softmax_router
from megatron_trainer.models.family import Family, HfConfig, plain
from megatron_trainer.models.weights import HF_LAYER, LAYER, experts, router, shared_experts


def _moe_layers(config: HfConfig) -> list[int]:
    """1 for each layer of experts, 0 for a dense one."""
    return [
        int(layer not in (config.mlp_only_layers or []) and (layer + 1) % config.decoder_sparse_step == 0)
        for layer in range(config.num_hidden_layers)
    ]


def _qwen3(config: HfConfig) -> dict[str, Any]:
    return {"qk_layernorm": True, "add_qkv_bias": config.attention_bias}


def _qwen2_moe(config: HfConfig) -> dict[str, Any]:
    return {
        "add_qkv_bias": config.qkv_bias,
        **routed_settings(config, num_experts=config.num_experts, moe_layers=_moe_layers(config)),
        **softmax_router(normalise_after_choice=config.norm_topk_prob),
        "moe_shared_expert_intermediate_size": config.shared_expert_intermediate_size,
        "moe_shared_expert_gate": True,
    }


def _qwen3_moe(config: HfConfig) -> dict[str, Any]:
    return {
        **_qwen3(config),
        **routed_settings(config, num_experts=config.num_experts, moe_layers=_moe_layers(config)),
        **softmax_router(normalise_after_choice=config.norm_topk_prob),
    }


QWEN2 = Family(model_type="qwen2", settings=lambda _: {"add_qkv_bias": True})

QWEN3 = Family(model_type="qwen3", settings=_qwen3, output_bias=lambda config: config.attention_bias)

QWEN2_MOE = Family(
    model_type="qwen2_moe",
    settings=_qwen2_moe,
    weights=(
        *router(),
        *experts(),
        *shared_experts("shared_expert"),
        plain(LAYER + "mlp.shared_experts.gate_weight", HF_LAYER + "mlp.shared_expert_gate.weight"),
    ),
)

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    settings=_qwen3_moe,
    weights=(*router(), *experts()),
    output_bias=lambda config: config.attention_bias,
)
