"""dots.llm1: Qwen3's attention with DeepSeek-V3's experts."""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.experts import experts_after_dense_layers, refuse_sigmoid_router, sigmoid_router
from megatron_trainer.models.family import Family, HfConfig
from megatron_trainer.models.weights import experts, router, shared_experts


def _settings(config: HfConfig) -> dict[str, Any]:
    settings = {"qk_layernorm": True, "add_qkv_bias": config.attention_bias}
    routed = experts_after_dense_layers(config)
    return {**settings, **routed, **(sigmoid_router(config) if routed else {})}


DOTS1 = Family(
    model_type="dots1",
    settings=_settings,
    weights=(*router(), *experts(), *shared_experts("shared_experts")),
    output_bias=lambda config: config.attention_bias,
    refuse=lambda config: tuple(refuse_sigmoid_router(config)),
)
