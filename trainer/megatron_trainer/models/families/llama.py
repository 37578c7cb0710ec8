"""Llama 1 to 3.2 and Mistral: the plain decoder."""

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
