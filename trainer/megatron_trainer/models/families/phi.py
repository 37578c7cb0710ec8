"""Phi-3 and Phi-4: the plain decoder with query, key and value in one tensor, and gate and up in another."""

from __future__ import annotations

from megatron_trainer.models.family import Family, Weight
from megatron_trainer.models.weights import ATTENTION, HF_ATTENTION, HF_LAYER, LAYER

PHI3 = Family(
    model_type="phi3",
    settings=lambda _: {},
    weights=(
        Weight(
            parameter=ATTENTION + "linear_qkv.weight",
            rule="fused_qkv",
            names=(HF_ATTENTION + "qkv_proj.weight",),
        ),
        Weight(
            parameter=LAYER + "mlp.linear_fc1.weight",
            rule="fused_gated",
            names=(HF_LAYER + "mlp.gate_up_proj.weight",),
        ),
    ),
)
