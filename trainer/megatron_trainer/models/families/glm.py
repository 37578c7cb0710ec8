"""GLM-4 (dense): norms after attention and MLP, half of each head rotated in pairs, gate and up in one
tensor.
"""

from __future__ import annotations

from megatron_trainer.models.family import Family, Weight
from megatron_trainer.models.weights import HF_LAYER, LAYER, POST_NORMS

GLM4 = Family(
    model_type="glm4",
    settings=lambda config: {"add_qkv_bias": config.attention_bias, "rotary_interleaved": True},
    weights=(
        Weight(
            parameter=LAYER + "mlp.linear_fc1.weight",
            rule="fused_gated",
            names=(HF_LAYER + "mlp.gate_up_proj.weight",),
        ),
        *POST_NORMS,
    ),
    post_norms=True,
)
