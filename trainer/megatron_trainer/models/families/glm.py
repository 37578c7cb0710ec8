"""GLM-4: the dense models, which rotate half of each head in pairs, and the 4.5 mixtures of experts."""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.experts import experts_after_dense_layers, refuse_sigmoid_router, sigmoid_router
from megatron_trainer.models.family import Family, HfConfig, Weight
from megatron_trainer.models.weights import (
    HF_LAYER,
    LAYER,
    POST_NORMS,
    experts,
    prediction_layers,
    router,
    shared_experts,
)

_GATE_AND_UP_IN_ONE = Weight(
    parameter=LAYER + "mlp.linear_fc1.weight",
    rule="fused_gated",
    names=(HF_LAYER + "mlp.gate_up_proj.weight",),
)


def _dense(config: HfConfig) -> dict[str, Any]:
    return {"add_qkv_bias": config.attention_bias, "rotary_interleaved": True}


def _mixture(config: HfConfig) -> dict[str, Any]:
    settings = {"add_qkv_bias": config.attention_bias, "qk_layernorm": config.use_qk_norm}
    routed = experts_after_dense_layers(config)
    return {**settings, **routed, **(sigmoid_router(config) if routed else {})}


GLM = Family(model_type="glm", settings=_dense, weights=(_GATE_AND_UP_IN_ONE,))

GLM4 = Family(model_type="glm4", settings=_dense, weights=(_GATE_AND_UP_IN_ONE, *POST_NORMS), post_norms=True)

GLM4_MOE = Family(
    model_type="glm4_moe",
    settings=_mixture,
    weights=(*router(), *experts(), *shared_experts("shared_experts")),
    refuse=lambda config: tuple(refuse_sigmoid_router(config)),
    copied=prediction_layers,
)
