"""Mixtral: a mixture of experts in every layer, softmax over the selected ones."""

from __future__ import annotations

from megatron_trainjob.families.config import Config, Optional
from megatron_trainjob.families.decoder import DECODER, decoder, refuse_windows, window_everywhere
from megatron_trainjob.families.experts import routed, softmax_router
from megatron_trainjob.families.family import Family
from megatron_trainjob.families.model import Model


def _mixtral(config: Config) -> Model:
    layers = (True,) * config["num_hidden_layers"]
    router = softmax_router(normalized=True)
    experts = routed(config, router, layers, num_experts="num_local_experts", width="intermediate_size")
    return decoder(config, **experts, **window_everywhere(config))


MIXTRAL = Family(
    model_type="mixtral",
    classifier="MixtralForSequenceClassification",
    title="Mixtral 8x7B, 8x22B",
    keys={
        **DECODER,
        "head_dim": Optional(),
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "rope_theta": 1000000.0,
        "sliding_window": Optional(),
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "router_jitter_noise": 0.0,
    },
    aliases={"num_experts": "num_local_experts"},
    build=_mixtral,
    refuse=refuse_windows,
)
