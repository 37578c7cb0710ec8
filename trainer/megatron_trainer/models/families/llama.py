"""Llama 1 to 3.2, Mistral, Seed-OSS and ERNIE 4.5 (dense): the plain decoder; they differ in their biases."""

from __future__ import annotations

from typing import Any

from megatron_trainer.models.family import Family, HfConfig


def _llama(config: HfConfig) -> dict[str, Any]:
    return {"add_qkv_bias": config.attention_bias}


LLAMA = Family(
    model_type="llama",
    settings=_llama,
    output_bias=lambda config: config.attention_bias,
    mlp_bias=lambda config: config.mlp_bias,
)

MISTRAL = Family(model_type="mistral", settings=lambda _: {})

SEED_OSS = Family(
    model_type="seed_oss",
    settings=_llama,
    output_bias=lambda config: config.attention_out_bias,
    mlp_bias=lambda config: config.mlp_bias,
)

ERNIE4_5 = Family(
    model_type="ernie4_5",
    settings=lambda config: {"add_qkv_bias": config.use_bias, "rotary_interleaved": True},
    output_bias=lambda config: config.use_bias,
    mlp_bias=lambda config: config.use_bias,
)
